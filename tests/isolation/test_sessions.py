"""Whatever SQL ran in a transaction, the next one on that connection is served as on a fresh one."""

from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import UUID

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.isolation.conftest import TENANTS_SEEN, identity, open_pools
from tests.isolation.poisons import ACROSS_THE_END, POISONS, PUBLISHED, SESSION
from tests.isolation.rows import World
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database


async def _visit(database: Database, world: World, tenant: str) -> list[object]:
    """What a request of the tenant gets from its statements, and the state of the session under it."""
    async with database.transaction(identity(world, tenant), request_id="r-1", client_ip="192.0.2.1") as connection:
        return [
            await connection.fetchval(PUBLISHED),
            await connection.fetchval(TENANTS_SEEN),
            await connection.fetchval("select $1::text || $2", "é", "\\"),
            await connection.fetchval(SESSION),
            await connection.fetchval("select count(*) from public.ai_models"),
        ]


@pytest.fixture(scope="module", params=["directly", "through pgbouncer"])
async def fresh(
    request: pytest.FixtureRequest, cluster: Cluster, world_name: str, world: World
) -> AsyncIterator[Database]:
    """On its connection nobody leaves anything."""
    where = cluster if request.param == "directly" else request.getfixturevalue("fresh_bouncer")
    opened = await open_pools(where, world_name, world.signer)
    yield opened
    await opened.close()


@pytest.fixture
async def used(
    fresh: Database, request: pytest.FixtureRequest, cluster: Cluster, world_name: str, world: World
) -> AsyncIterator[Database]:
    where = request.getfixturevalue("bouncer") if fresh.shared else cluster
    opened = await open_pools(where, world_name, world.signer)
    yield opened
    await opened.close()


async def test_nobody_of_the_same_login_reads_a_token_in_the_text_of_a_statement(
    fresh: Database, cluster: Cluster, world_name: str, world: World
) -> None:
    neighbour = await asyncpg.connect(cluster.url("vanilla_app", world_name))
    async with fresh.transaction(identity(world, "b"), request_id="r-1"):
        # the last statement of that session is the one that set the context, and its text stays until the next
        rows = await neighbour.fetch(
            "select query from pg_stat_activity where usename = 'vanilla_app' and pid <> pg_backend_pid()"
        )
    await neighbour.close()
    texts = [row["query"] for row in rows]
    assert any("vanilla.set_context" in text for text in texts)
    assert [text for text in texts if world.b.id in text] == []


@pytest.mark.parametrize("ended", ["in the transaction", "in one of its own"])
@pytest.mark.parametrize("poison", POISONS)
async def test_the_next_request_finds_the_connection_as_if_it_were_new(
    fresh: Database, used: Database, world: World, poison: str, ended: str
) -> None:
    await _visit(used, world, "a")
    await _inject(used, world, POISONS[poison], alone=ended == "in one of its own")
    assert await _visit(used, world, "b") == await _visit(fresh, world, "b")
    assert await _visit(used, world, "a") == await _visit(fresh, world, "a")


async def _inject(database: Database, world: World, statements: list[str], *, alone: bool) -> None:
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, VanillaError):
        async with database.transaction(identity(world, "a")) as connection:
            for statement in statements:
                await connection.execute(ACROSS_THE_END.format(statement) if alone else statement)


async def test_a_pooler_is_noticed_and_nothing_is_prepared_by_name_behind_it(
    bouncer: Cluster, cluster: Cluster, world_name: str, world: World
) -> None:
    for where, lent in ((cluster, False), (bouncer, True)):
        database = await open_pools(where, world_name, world.signer)
        assert database.shared is lent
        async with database.transaction(identity(world, "a")) as connection:
            await connection.fetchval(TENANTS_SEEN)
            named = await connection.fetchval("select count(*) from pg_prepared_statements where name <> ''")
            assert (named == 0) is lent
        await database.close()


async def test_a_transaction_in_a_transaction_is_a_savepoint(pool: Database, world: World) -> None:
    left = "select count(*) from pg_cursors where name = 'c'"
    async with pool.transaction(identity(world, "a")) as connection:
        with suppress(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await connection.execute("declare c cursor for select 1")
                async with connection.transaction():
                    await connection.execute("select 1 / 0")
        assert await connection.fetchval(left) == 0
        async with connection.transaction():
            await connection.execute("declare c cursor for select 1")
        assert await connection.fetchval(left) == 1
        assert await connection.fetchval(TENANTS_SEEN) == [world.a.id]


async def test_a_transaction_that_only_reads_writes_nothing(pool: Database, world: World) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with pool.transaction(identity(world, "a"), read_only=True) as connection:
            await connection.execute(
                "update public.users set display_name = 'x' where tenant_id = $1", UUID(world.a.id)
            )
