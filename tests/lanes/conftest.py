"""Every lane's server with the worlds of the other folders, made by that lane's migrator."""

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.books import require_clean_books
from tests.concurrency.test_wallet import crowd
from tests.conftest import TEST_KEY, Cluster, create_database, database
from tests.isolation.conftest import app, operator_of_world, superuser, world
from tests.isolation.matrix import Report, run_matrix, undone
from tests.isolation.rows import World
from tests.lanes.lane import LANES, Lane, LaneCluster
from tests.migrations.tools import Shell, throwaway_server
from tests.pgbouncer import pgbouncer
from tests.tokens.support import START, TEST_CLOCK, Books
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import Database, _prepare

# named here, a fixture is made anew for this folder: one of a whole session would else stay that of another server
__all__ = ["app", "crowd", "database", "operator_of_world", "superuser", "world"]

SAMPLE = {"admin", "edited"}
"""Contexts of the matrix that a lane tries: who may most, and a stranger."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Promises ask a superuser's session, so a pooler in between changes nothing of them."""
    same = [item for item in items if item.name.startswith("test_every_promise_holds[") and _pooled(item)]
    config.hook.pytest_deselected(items=same)
    items[:] = [item for item in items if item not in same]


def _pooled(item: pytest.Item) -> bool:
    lane = item.callspec.params.get("lane") if isinstance(item, pytest.Function) else None
    return isinstance(lane, Lane) and lane.pooled


@pytest.fixture(scope="session", params=LANES, ids=str)
def lane(request: pytest.FixtureRequest) -> Lane:
    return request.param


@pytest.fixture(scope="session")
def signer() -> ContextSigner:
    return ContextSigner(bytes.fromhex(TEST_KEY))


@pytest.fixture(scope="session")
def cluster(lane: Lane, signer: ContextSigner) -> Iterator[Cluster]:
    with throwaway_server(lane.major, "max_connections=200") as server:
        found = LaneCluster(server.host, server.port, lane, signer)
        if lane.owner:
            Shell(server, lane.major, "postgres").statement("create role plain login nosuperuser createrole")
        if not lane.pooled:
            yield found
            return
        with pgbouncer(server, signer, default_pool_size="2") as bouncer:
            found.bouncer = bouncer
            yield found


@asynccontextmanager
async def migrated(cluster: Cluster, lane: Lane, signer: ContextSigner, prefix: str) -> AsyncIterator[str]:
    """A fresh installation, made and owned by the lane's migrator."""
    async with create_database(cluster, f"{prefix}_{uuid.uuid4().hex[:12]}") as name:
        Shell(cluster, lane.major, "postgres").statement(f"alter database {name} owner to {lane.migrator}")
        await migrate(cluster.url(lane.migrator, name), signer)
        yield name


@pytest.fixture(scope="session")
async def database_name(cluster: Cluster, lane: Lane, signer: ContextSigner) -> AsyncIterator[str]:
    async with migrated(cluster, lane, signer, "test") as name:
        yield name
        await require_clean_books(cluster.url(database=name))


@pytest.fixture(scope="session")
async def world_name(cluster: Cluster, lane: Lane, signer: ContextSigner) -> AsyncIterator[str]:
    async with migrated(cluster, lane, signer, "isolation") as name:
        yield name


@pytest.fixture(scope="session")
async def clocked_name(cluster: Cluster, lane: Lane, signer: ContextSigner) -> AsyncIterator[str]:
    async with migrated(cluster, lane, signer, "test_tokens") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await connection.execute(TEST_CLOCK)
        await connection.close()
        yield name


@pytest.fixture
async def books(cluster: Cluster, lane: Lane, clocked_name: str) -> AsyncIterator[Books]:
    """The login that migrated, at START; its books are right afterwards."""
    connection = await asyncpg.connect(cluster.url(lane.migrator, clocked_name))
    await _prepare(connection)
    books = Books(connection)
    await books.at(START)
    yield books
    assert await books.problems() == []
    await connection.close()


@pytest.fixture
async def pool(cluster: Cluster, world_name: str, world: World) -> AsyncIterator[Database]:
    """The product's pools with one connection each, as requests come in on this lane."""
    where = (cluster.url("vanilla_app", world_name), cluster.url("vanilla_runtime", world_name))
    opened = await Database.open(*where, world.signer, size=1)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def sample(lane: Lane) -> set[str]:
    """The matrix asks a superuser's session, so a pooler in between changes nothing of it: one context will do."""
    return {"admin"} if lane.pooled else SAMPLE


@pytest.fixture(scope="session")
async def report(cluster: Cluster, world_name: str, world: World, sample: set[str]) -> Report:
    """A sample of the matrix: every relation, login and command, in some contexts."""
    connection = await asyncpg.connect(cluster.url(database=world_name))
    async with undone(connection):
        report = await run_matrix(connection, world, only=sample)
    await connection.close()
    return report
