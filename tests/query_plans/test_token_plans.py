"""The hot statements of the wallet use the index that was made for them, on a database with rows enough to care."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, Cluster, migrated_database
from vanilla_saas.tokens import store

USERS, WALLETS, ROWS = 400, 20_000, 20_000
FILL = f"""
set local session_replication_role = replica;
insert into users (tenant_id, id, external_id)
    select '{DEFAULT_TENANT}', md5(n::text)::uuid, n from generate_series(1, {WALLETS}) n;
insert into user_token_wallets (tenant_id, user_id, reserved_tokens, seq, next_event_at)
    select '{DEFAULT_TENANT}', md5(n::text)::uuid, 1000, 1000,
        case when n % 400 = 0 then now() else now() + interval '9 days' end
    from generate_series(1, {WALLETS}) n;
insert into user_token_ledger (tenant_id, user_id, seq, id, created_at, amount, reserved_amount, available_after,
        reserved_after, borrowed_after, direction, reason, source, execution_id, idempotency_key, hash)
    select '{DEFAULT_TENANT}', md5((n % {USERS} + 1)::text)::uuid, n / {USERS} + 1, gen_random_uuid(), now(), -1, 0, 0,
        0, 0, 'debit', 'x', 'x', md5(n::text)::uuid, n, '\\x00'
    from generate_series(0, {ROWS} - 1) n;
insert into user_token_holds (tenant_id, user_id, amount, requested, epoch, expires_at, state, closed_at)
    select '{DEFAULT_TENANT}', md5((n % {USERS} + 1)::text)::uuid, 1, 1, 0, now(),
        case when n % 50 = 0 then 'open' else 'settled' end, case when n % 50 = 0 then null else now() end
    from generate_series(0, {ROWS} - 1) n;
insert into ai_executions (tenant_id, user_id, provider, model, status, created_at)
    select '{DEFAULT_TENANT}', md5((n % {USERS} + 1)::text)::uuid, 'p', 'm', 'succeeded',
        date_trunc('month', now()) + n * interval '1 second'
    from generate_series(0, {ROWS} - 1) n;
insert into api_keys (tenant_id, user_id, name, prefix, key_hash)
    select '{DEFAULT_TENANT}', md5((n % {USERS} + 1)::text)::uuid, 'k', 'vsk_', sha256(n::text::bytea)
    from generate_series(0, {ROWS} - 1) n;
"""
USER = uuid.UUID("c4ca4238-a0b9-2382-0dcc-509a6f75849b")  # md5('1')

PLANS = [
    # a page of a user's ledger: the primary key backwards, no sort
    ("ledger page", store.LEDGER, (DEFAULT_TENANT, USER, 40, None, 21), "user_token_ledger_pkey"),
    (
        "ledger of an execution",
        store.LEDGER_OF_EXECUTION,
        (DEFAULT_TENANT, USER, None, None, 21, USER),
        "user_token_ledger_execution_idx",
    ),
    (
        "replay of an idempotency key",
        "select * from public.user_token_ledger where tenant_id = $1 and user_id = $2 and idempotency_key = $3",
        (DEFAULT_TENANT, USER, "400"),
        "user_token_ledger_idempotency_idx",
    ),
    (
        "balance at a moment",
        "select created_at from public.user_token_ledger where tenant_id = $1 and user_id = $2 and seq = $3",
        (DEFAULT_TENANT, USER, 9),
        "user_token_ledger_pkey",
    ),
    (
        "export of a ledger",
        "select seq from public.user_token_ledger where tenant_id = $1 and $2 in (user_id)"
        " order by tenant_id, user_id, seq",
        (DEFAULT_TENANT, USER),
        "user_token_ledger_pkey",
    ),
    (
        "executions of a user",
        store.EXECUTIONS_OF_USER,
        (DEFAULT_TENANT, None, None, 21, USER),
        "tenant_id_user_id_created_at_idx",
    ),
    ("executions of a tenant", store.EXECUTIONS_OF_TENANT, (DEFAULT_TENANT, None, None, 21), "_pkey"),
    (
        "an API key by its hash",
        "select * from public.api_keys where key_hash = $1",
        (b"\0" * 32,),
        "api_keys_key_hash_key",
    ),
    (
        "expired holds of a wallet",
        "select * from public.user_token_holds where tenant_id = $1 and user_id = $2 and state = 'open'"
        " and expires_at <= now() order by expires_at, id",
        (DEFAULT_TENANT, USER),
        "user_token_holds_open_idx",
    ),
]


PAGES = (store.LEDGER, store.LEDGER_OF_EXECUTION, store.EXECUTIONS_OF_USER, store.EXECUTIONS_OF_TENANT)


@pytest.fixture(scope="module")
async def filled(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    async with migrated_database(cluster, "test_tokens") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        async with connection.transaction():
            await connection.execute(FILL)
        await connection.execute("analyze")
        yield connection
        await connection.close()


@pytest.mark.parametrize(("name", "statement", "arguments", "index"), PLANS, ids=[plan[0] for plan in PLANS])
async def test_a_hot_statement_uses_its_index(
    filled: asyncpg.Connection, name: str, statement: str, arguments: tuple[Any, ...], index: str
) -> None:
    nodes = await plan(filled, statement, arguments)
    # what to do with empty partitions and tenants, of which there are few, is the planner's own business
    small = {row["relname"] for row in await filled.fetch("select relname from pg_class where reltuples < 100")}
    scans = [node for node in nodes if node["Relation Name"] not in small]
    assert scans
    for scan in scans:
        assert index in scan.get("Index Name", scan["Node Type"]), (name, scan)


async def plan(connection: asyncpg.Connection, statement: str, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    """The scans of a statement's plan, with the index of a bitmap scan."""
    literals = ", ".join([await connection.fetchval("select quote_nullable($1::text)", written(a)) for a in arguments])
    async with connection.transaction():
        # the worst plan that a prepared statement may settle on: it does not know the arguments
        await connection.execute("set local plan_cache_mode = force_generic_plan")
        if statement in PAGES:  # read under row-level security
            await connection.execute("set local role vanilla_app")
        await connection.execute(f"prepare hot as {statement}")
        call = f"execute hot ({literals})" if arguments else "execute hot"
        explained = json.loads(await connection.fetchval(f"explain (format json) {call}"))
        await connection.execute("deallocate hot")
    found: list[dict[str, Any]] = []

    def walk(node: dict[str, Any]) -> None:
        children = node.get("Plans", [])
        if "Relation Name" in node:
            bitmaps = [child for child in children if "Index Name" in child]
            found.append(node | ({"Index Name": bitmaps[0]["Index Name"]} if bitmaps else {}))
        for child in children:
            walk(child)

    walk(explained[0]["Plan"])
    return found


def written(argument: object) -> str | None:
    if isinstance(argument, bytes):
        return f"\\x{argument.hex()}"
    return None if argument is None else str(argument)


@pytest.mark.parametrize(
    ("call", "index"),
    [
        ("select reset_monthly_tokens()", "user_token_wallets_event_idx"),
        ("select reset_monthly_tokens(10)", "user_token_wallets_event_idx"),
        ("select vanilla.reap_holds(10)", "user_token_holds_open_idx"),
        ("select vanilla.job_closings(10)", "user_token_wallets_suspended_idx"),
    ],
)
async def test_maintenance_finds_what_is_due_by_index(filled: asyncpg.Connection, call: str, index: str) -> None:
    """Read from the statistics: the statements are inside functions."""
    table = index.rsplit("_", 2)[0]
    before = await scans_of(filled, table, index)
    async with filled.transaction():
        await filled.execute(call)
    after = await scans_of(filled, table, index)
    assert after["idx_scan"] > before["idx_scan"]
    assert after["seq_scan"] == before["seq_scan"]


async def scans_of(connection: asyncpg.Connection, table: str, index: str) -> asyncpg.Record:
    await connection.execute("select pg_stat_force_next_flush()")
    return await connection.fetchrow(
        "select t.seq_scan, i.idx_scan from pg_stat_user_tables t join pg_stat_user_indexes i using (relid)"
        " where t.relname = $1 and i.indexrelname = $2",
        table,
        index,
    )
