"""Plans of the first minutes: tables have no statistics yet, and connections keep the plans they make now."""

import uuid
from typing import Any

import asyncpg
import pytest

from tests.concurrency.test_coalescer import adjustment, admission, encoded, settlement
from tests.conftest import TEST_KEY, Cluster, People, create_database
from vanilla_saas.database.coalescer import RUN_CALLS
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import _prepare

READ = (
    "select relname, (seq_tup_read + coalesce(idx_tup_fetch, 0))::int as read"
    " from pg_stat_xact_user_tables where seq_tup_read + idx_tup_fetch > 0"
)
USABLE = """
select count(set_level_feature(id, 'used', 100000, 'daily', p_tenant_id => tenant_id)) from levels where is_default
"""
CONSUME = "select consume_feature($1, 'used', 1, $2)"
HELD = "select (adjust_user_tokens($1, 5, 'reserve') ->> 'hold_id')::uuid"
LATER = "select extend_token_hold($1, now() + interval '2 hours')"
CHARGED, RELEASED = "select settle_user_tokens($1, 3)", "select release_token_hold($1)"
HOLD = "select * from user_token_holds where tenant_id = $1 and id = $2"


@pytest.mark.parametrize("statistics", ["none", "of an empty table"])
async def test_a_settlement_finds_its_hold_by_the_primary_key_whatever_the_statistics(
    cluster: Cluster, statistics: str
) -> None:
    name = f"test_{uuid.uuid4().hex[:12]}"
    async with create_database(cluster, name):
        await migrate(cluster.url(database=name), ContextSigner(bytes.fromhex(TEST_KEY)))
        connection = await asyncpg.connect(cluster.url(database=name))
        try:
            if statistics != "none":
                await connection.execute("analyze user_token_holds")
            await connection.execute(f"prepare hold(uuid, uuid) as {HOLD}")
            await connection.execute("set plan_cache_mode = force_generic_plan")
            # what settle_call is declared with; without it an empty table is read whole
            settings = await connection.fetchval("select proconfig from pg_proc where proname = 'settle_call'")
            assert "enable_seqscan=off" in settings
            await connection.execute("set enable_seqscan = off")
            plan = await connection.fetch(f"explain execute hold('{uuid.uuid4()}', '{uuid.uuid4()}')")
        finally:
            await connection.close()
    assert "Index Scan using user_token_holds_pkey" in plan[0][0], plan


@pytest.mark.parametrize("statistics", ["none", "of empty tables"])
async def test_a_batch_reads_no_more_of_young_tables_as_they_grow(cluster: Cluster, statistics: str) -> None:
    name = f"test_{uuid.uuid4().hex[:12]}"
    async with create_database(cluster, name):
        await migrate(cluster.url(database=name), ContextSigner(bytes.fromhex(TEST_KEY)))
        connection = await asyncpg.connect(cluster.url(database=name))
        await _prepare(connection)
        try:
            people = People(connection)
            admin, person = await people.user(role="admin", scopes=["admin"]), await people.user(balance=100_000)

            async def read(calls: list[tuple[Any, ...]]) -> tuple[dict[str, int], list[Any]]:
                """Rows of each table that a batch looks at, and its answers."""
                await connection.execute("select pg_stat_force_next_flush()")
                async with connection.transaction():
                    outcomes = await connection.fetchval(RUN_CALLS, [encoded(call) for call in calls])
                    rows = await connection.fetch(READ)
                return {row["relname"]: row["read"] for row in rows}, [outcome["ok"] for outcome in outcomes]

            await connection.fetchval(USABLE)
            if statistics != "none":
                await connection.execute("vacuum analyze")

            async def uses() -> dict[str, int]:
                """Rows of each table that ten uses of a feature look at."""
                await connection.execute("select pg_stat_force_next_flush()")
                async with connection.transaction():
                    for n in range(10):
                        key = None if n % 2 else uuid.uuid4().hex
                        await connection.fetchval(CONSUME, person.identity.user_id, key)
                    rows = await connection.fetch(READ)
                return {row["relname"]: row["read"] for row in rows}

            async def by_hand() -> dict[str, int]:
                """Rows of each table that ten holds look at which are made, put off and charged or released by hand."""
                await connection.execute("select pg_stat_force_next_flush()")
                async with connection.transaction():
                    for n in range(10):
                        hold = await connection.fetchval(HELD, person.identity.user_id)
                        await connection.fetchval(LATER, hold)
                        await connection.fetchval(RELEASED if n % 2 else CHARGED, hold)
                    rows = await connection.fetch(READ)
                return {row["relname"]: row["read"] for row in rows}

            async def batches() -> list[dict[str, int]]:
                of_hands = await by_hand()
                debits = [adjustment(admin, person, 1, "debit", key=uuid.uuid4().hex) for _ in range(10)]
                of_debits, _ = await read(debits)
                of_admissions, admitted = await read([admission(person) for _ in range(10)])
                of_settlements, _ = await read([settlement(found) for found in admitted])
                return [of_debits, of_admissions, of_settlements, await uses(), of_hands]

            for _ in range(10):
                young = await batches()
            for _ in range(200):
                await people.user()
            for _ in range(20):
                grown = await batches()
        finally:
            await connection.close()
    # a dozen look-ups for each call
    assert max(read for tables in young + grown for read in tables.values()) <= 120, (young, grown)
