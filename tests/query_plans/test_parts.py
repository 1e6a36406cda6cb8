"""A part of a long job reads what the part needs: of a million wallets one that reads all locks some for as long."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, Cluster, migrated_database
from tests.query_plans.test_cold_start import READ

WALLETS, PART = 30_000, 10
FILL = f"""
set local session_replication_role = replica;
insert into users (tenant_id, id, external_id)
    select '{DEFAULT_TENANT}', md5(n::text)::uuid, n from generate_series(1, {WALLETS}) n;
insert into user_token_wallets (tenant_id, user_id, level_id, period_start, next_reset_at, next_event_at,
        available_tokens, reserved_tokens)
    select l.tenant_id, md5(n::text)::uuid, l.id, now() - interval '31 days', now() - interval '1 hour',
        now() - interval '1 hour', 5, 1
    from generate_series(1, {WALLETS}) n, levels l where l.tenant_id = '{DEFAULT_TENANT}' and l.slug = 'free';
insert into user_token_grants (tenant_id, id, user_id, kind, priority, amount, remaining, effective_at, expires_at)
    select w.tenant_id, vanilla.uuid7(), w.user_id, 'plan', 10, 5, 5, w.period_start, w.next_reset_at
    from user_token_wallets w where w.next_reset_at is not null;
insert into user_token_holds (tenant_id, user_id, amount, requested, epoch, expires_at, state)
    select w.tenant_id, w.user_id, 1, 1, w.epoch, now() - interval '1 minute', 'open' from user_token_wallets w
    where w.next_reset_at is not null;
"""


@pytest.fixture(scope="module")
async def due(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """Wallets whose period and hold have ended, all of them."""
    async with migrated_database(cluster) as database:
        connection = await asyncpg.connect(cluster.url(database=database))
        async with connection.transaction():
            await connection.execute(FILL)
        await connection.execute("vacuum analyze")
        yield connection
        await connection.close()


@pytest.mark.parametrize(
    "call", ["close_periods($1)", "fold_due_wallets($1, true)", "fold_due_wallets($1, false)", "reap_holds($1)"]
)
@pytest.mark.parametrize("generic", [False, True])
async def test_a_part_reads_no_more_wallets_than_it_is_for(due: asyncpg.Connection, call: str, generic: bool) -> None:
    await due.execute("select pg_stat_force_next_flush()")
    transaction = due.transaction()
    await transaction.start()
    try:
        await due.execute(f"set local plan_cache_mode = force_{'generic' if generic else 'custom'}_plan")
        if call.endswith("false)"):
            await due.execute("update user_token_wallets set next_reset_at = now() + interval '9 days'")
        before = {row["relname"]: row["read"] for row in await due.fetch(READ)}
        assert await due.fetchval(f"select vanilla.{call}", PART) == PART
        after = {row["relname"]: row["read"] for row in await due.fetch(READ)}
    finally:
        await transaction.rollback()
    read = {name: rows - before.get(name, 0) for name, rows in after.items()}
    # each a few times, and dead ones on the way
    assert {name: rows for name, rows in read.items() if rows > 30 * PART} == {}
