"""The tour's attack: arbitrary SQL as the login of requests, with the valid token of one tenant, against another.

Every line is an attempt that is made there and then; what it came to is read from the database.
"""

import hashlib
from dataclasses import dataclass
from uuid import UUID, uuid4

import asyncpg
from rich.console import Console
from rich.table import Table

from vanilla_saas.database.connection import login_connector
from vanilla_saas.database.context import ContextSigner, Identity
from vanilla_saas.database.errors import VanillaError

GIVEN = 1_000_000
# everything the victim's tenant has; what an attack must leave as it is
DIGEST = """
select md5(coalesce(string_agg(x.t, ',' order by x.t), '')) from (
    select t::text as t from users t where tenant_id = $1
    union all select t::text from user_token_wallets t where tenant_id = $1
    union all select t::text from user_token_grants t where tenant_id = $1
    union all select t::text from user_token_ledger t where tenant_id = $1
    union all select t::text from audit_logs t where tenant_id = $1) x
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """`statement` under the token `signed`; in it `{victim}` is the other tenant's user, `{tenant}` that tenant."""

    what: str
    statement: str
    signed: str = "valid"


ATTEMPTS = (
    Attempt("update their wallet", "update user_token_wallets set available_tokens = 0 where user_id = '{victim}'"),
    Attempt("write their ledger", "delete from user_token_ledger where user_id = '{victim}'"),
    Attempt("every wallet, no where", "select tenant_id, available_tokens from user_token_wallets"),
    Attempt("their users by name", "select tenant_id, email from users where tenant_id = '{tenant}'"),
    Attempt("a function with their id", f"select adjust_user_tokens('{{victim}}', {GIVEN}, 'debit')"),
    Attempt("another function", "select release_token_hold(gen_random_uuid(), 'x', '{tenant}')"),
    Attempt("an edited token", "select tenant_id from user_token_wallets", "edited"),
    Attempt("a forged token", "select tenant_id from user_token_wallets", "forged"),
    Attempt(
        "set_config of an edited one",
        "select w.tenant_id from set_config('vanilla.context', '{edited}', true) c, user_token_wallets w"
        " where c is not null",
    ),
    Attempt(
        "set_config of claims",
        "select w.tenant_id from set_config('request.jwt.claims', '{claims}', true) c, user_token_wallets w"
        " where c is not null",
        "none",
    ),
    Attempt("become the operator", "set local role vanilla_operator"),
    Attempt("read the signing key", "select * from vanilla.context_keys"),
)


@dataclass(frozen=True, slots=True)
class Tenant:
    id: UUID
    user_id: UUID


async def show(operator: asyncpg.Connection, app_url: str, signer: ContextSigner, console: Console) -> None:
    """Makes two tenants, attacks one as the other, compares it before and after, and closes both.

    Raises VanillaError `internal_error` when anything of the victim was read or changed.
    """
    victim, attacker = await _tenant(operator, "victim"), await _tenant(operator, "attacker")
    before = await operator.fetchval(DIGEST, victim.id)
    tokens = _tokens(signer, victim, attacker)
    table = Table("attempt", "came to", box=None, header_style="dim", padding=(0, 2, 0, 3))
    connection = await login_connector(app_url, signer)(app_url)
    try:
        login = await connection.fetchval("select session_user")
        console.print(f"   any SQL as {login}, with the token of another tenant's admin:")
        for attempt in ATTEMPTS:
            table.add_row(attempt.what, await _try(connection, attempt, tokens, victim, attacker))
    finally:
        await connection.close()
    console.print(table)
    after = await operator.fetchval(DIGEST, victim.id)
    if before != after:
        raise VanillaError("internal_error", "The victim's rows were changed.")
    rows = await operator.fetchval("select count(*) from user_token_ledger where tenant_id = $1", victim.id)
    console.print(f"   the victim's rows before and after: {before[:8]} = {after[:8]}, {rows} ledger entries")
    for tenant in (victim, attacker):
        await operator.fetchval("select close_tenant($1, 'the tour is over')", tenant.id)


async def _tenant(operator: asyncpg.Connection, role: str) -> Tenant:
    slug = f"tour-{role}-{uuid4().hex[:8]}"
    tenant_id = await operator.fetchval("select create_tenant($1, $2)", slug, f"Tour: {role}")
    user_id = await operator.fetchval(
        "select create_user($1, 'admin', p_tenant_id => $2)", f"{slug}@localhost", tenant_id
    )
    await operator.fetchval("select adjust_user_tokens($1, $2, 'credit', 'tour')", user_id, GIVEN)
    return Tenant(tenant_id, user_id)


def _tokens(signer: ContextSigner, victim: Tenant, attacker: Tenant) -> dict[str, str]:
    valid = signer.sign(Identity(attacker.id, attacker.user_id, "admin"))
    edited = valid.replace(str(attacker.id), str(victim.id)).replace(str(attacker.user_id), str(victim.user_id))
    # a key that the attacker made, under the id of ours
    forger = ContextSigner(hashlib.sha256(b"a guess").digest())
    forged = forger.sign(Identity(victim.id, victim.user_id, "admin")).replace(forger.key_id, signer.key_id, 1)
    return {"valid": valid, "edited": edited, "forged": forged, "none": ""}


async def _try(
    connection: asyncpg.Connection, attempt: Attempt, tokens: dict[str, str], victim: Tenant, attacker: Tenant
) -> str:
    """What the attempt came to, in words. Raises VanillaError when it reached the victim."""
    claims = f'{{"sub": "{victim.user_id}", "role": "authenticated", "app_metadata": {{"tenant_id": "{victim.id}"}}}}'
    statement = attempt.statement.replace("{victim}", str(victim.user_id)).replace("{tenant}", str(victim.id))
    statement = statement.replace("{edited}", tokens["edited"]).replace("{claims}", claims)
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.fetchval("select vanilla.set_context($1)", tokens[attempt.signed])
        rows = await connection.fetch(statement)
    except asyncpg.PostgresError as error:
        return f"refused, {error.sqlstate}: {str(error).splitlines()[0]}"
    finally:
        await transaction.rollback()
    if attempt.statement.startswith("set ") or any(str(victim.id) in str(row) for row in rows):
        raise VanillaError("internal_error", f"An attack reached another tenant: {attempt.what}.")
    own = sum(row["tenant_id"] == attacker.id for row in rows)
    return f"{len(rows)} rows" + (", only their own" if own == len(rows) > 0 else "")
