"""Users with keys and tokens for the load, made by the product's own functions; and the books after it."""

import secrets
from dataclasses import dataclass

import asyncpg

from benchmarks.frame import BenchmarkError
from vanilla_saas.operations.first_run import DEFAULT_TENANT
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, token_hash

BALANCE = 1_000_000_000_000
LEVEL = "premium"
"""Of hard enforcement: the wallet is checked in full at every call."""

MAKE = """
with made as materialized (
    select k.hash, create_user('load-' || k.number || '@example.test', 'user', p_level_id => l.id,
                               p_must_change_password => false, p_tenant_id => l.tenant_id) as user_id
    from unnest($1::bytea[]) with ordinality k (hash, number), levels l
    where l.tenant_id = $2 and l.slug = $3)
select create_api_key('load', 'vsk_load', hash, '{chat}', p_user_id => user_id),
       adjust_user_tokens(user_id, $4, 'credit', 'benchmark') from made
"""
DEFECTS = """
select format('%s: expected %s, found %s', problem, expected, found) from reconcile_token_wallets()
union all select problem from verify_token_ledger()
"""
BOOKS = """
select (select count(*) from user_token_holds where state = 'open') as open_holds,
       (select count(*) from ai_executions where status = 'succeeded') as succeeded,
       (select count(*) from ai_executions where status <> 'succeeded') as other,
       (select coalesce(sum(charged_tokens), 0)::bigint from ai_executions) as executions,
       (select coalesce(-sum(amount), 0)::bigint from user_token_ledger where execution_id is not null) as ledger,
       (select coalesce(sum(spent_tokens), 0)::bigint from user_token_wallets) as wallets
"""


@dataclass(frozen=True, slots=True)
class Books:
    """What the load came to in the database."""

    calls: int
    tokens: int


async def make_users(admin_url: str, count: int) -> list[str]:
    """Keys of `count` users of the default tenant, each with more tokens than a run can spend."""
    keys = [KEY_PREFIX + secrets.token_urlsafe(32) for _ in range(count)]
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(MAKE, [token_hash(key) for key in keys], DEFAULT_TENANT, LEVEL, BALANCE)
        await connection.execute("analyze")
        await check_durable(connection)
        return keys
    finally:
        await connection.close()


async def check_durable(connection: asyncpg.Connection) -> None:
    """Raises BenchmarkError where a commit does not wait for the disk."""
    if await connection.fetchval("select current_setting('fsync') || current_setting('synchronous_commit')") != "onon":
        raise BenchmarkError("fsync and synchronous_commit must be on: a wallet that is not durable is no wallet")


async def close_books(admin_url: str, answered: int, tokens_per_call: int) -> Books:
    """The totals, when they are right to the token. Raises BenchmarkError otherwise."""
    connection = await asyncpg.connect(admin_url)
    try:
        row = await connection.fetchrow(BOOKS)
        defects = [record[0] for record in await connection.fetch(DEFECTS)]
    finally:
        await connection.close()
    expected = answered * tokens_per_call
    if (row["open_holds"], row["other"], row["succeeded"]) != (0, 0, answered):
        defects.append(f"{answered} answers were received; executions and holds: {dict(row)}")
    defects += [
        f"{answered} answers cost {expected} tokens, but the {name} have {row[name]}"
        for name in ("executions", "ledger", "wallets")
        if row[name] != expected
    ]
    if defects:
        raise BenchmarkError("the books are wrong after the load:\n" + "\n".join(defects[:20]))
    return Books(row["succeeded"], row["ledger"])
