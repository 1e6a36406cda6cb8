"""Plans of the first minutes: tables have no statistics yet, and connections keep the plans they make now."""

import uuid

import asyncpg
import pytest

from tests.conftest import TEST_KEY, Cluster, create_database
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate

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
