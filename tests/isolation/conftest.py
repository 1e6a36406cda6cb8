"""A database of its own with two populated tenants; every test leaves B as it found it."""

import uuid
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from tests.conftest import Cluster, migrated_database
from tests.isolation.rows import World, populate
from tests.pgbouncer import pgbouncer, through
from vanilla_saas.database.context import ContextSigner, Identity, Role
from vanilla_saas.database.pool import Database

TENANTS_SEEN = "select array_agg(distinct tenant_id::text) from public.users"


@pytest.fixture(scope="session")
async def world_name(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster, "isolation") as name:
        yield name


@pytest.fixture(scope="session")
async def world(cluster: Cluster, world_name: str, signer: ContextSigner) -> World:
    connection = await asyncpg.connect(cluster.url(database=world_name))
    try:
        return await populate(connection, signer)
    finally:
        await connection.close()


@pytest.fixture
async def superuser(operator_of_world: asyncpg.Connection, world: World) -> AsyncIterator[asyncpg.Connection]:
    """A superuser of the world's database; asserts that nothing of anybody but A changed."""
    before = await world.digest(operator_of_world)
    yield operator_of_world
    assert await world.digest(operator_of_world) == before, "rows that are not A's changed"


@pytest.fixture
async def operator_of_world(cluster: Cluster, world_name: str, world: World) -> AsyncIterator[asyncpg.Connection]:
    """A superuser without a context, who may change rows of the platform and of A."""
    connection = await asyncpg.connect(cluster.url(database=world_name), max_cacheable_statement_size=0)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def bouncer(cluster: Cluster, signer: ContextSigner) -> Iterator[Cluster]:
    """PgBouncer in transaction mode with one session for each login, so that every client meets what others left."""
    with pgbouncer(cluster, signer, default_pool_size="1") as running:
        yield running


@pytest.fixture(scope="session")
def fresh_bouncer(cluster: Cluster, signer: ContextSigner) -> Iterator[Cluster]:
    """Another one, on whose sessions nobody leaves anything."""
    with pgbouncer(cluster, signer, default_pool_size="1") as running:
        yield running


async def open_pools(where: Cluster, database: str, signer: ContextSigner, size: int = 1) -> Database:
    """The product's pools, directly or through PgBouncer."""
    return await Database.open(
        through(where, "vanilla_app", database, signer),
        through(where, "vanilla_runtime", database, signer),
        signer,
        size=size,
    )


@pytest.fixture(params=["directly", "through pgbouncer"])
async def pool(
    request: pytest.FixtureRequest, cluster: Cluster, world_name: str, world: World
) -> AsyncIterator[Database]:
    """The product's pools with one connection each: every transaction meets what the one before it left."""
    where = cluster if request.param == "directly" else request.getfixturevalue("bouncer")
    opened = await open_pools(where, world_name, world.signer)
    yield opened
    await opened.close()


@pytest.fixture
async def app(cluster: Cluster, world_name: str, world: World) -> AsyncIterator[asyncpg.Connection]:
    """A bare connection of vanilla_app: what injected SQL has."""
    connection = await asyncpg.connect(cluster.url("vanilla_app", world_name))
    yield connection
    await connection.close()


def identity(world: World, tenant: str = "a", role: Role = "admin") -> Identity:
    chosen = getattr(world, tenant)
    return Identity(uuid.UUID(chosen.id), uuid.UUID(getattr(chosen, role).id), role)


async def accepted(connection: asyncpg.Connection, token: str) -> list[str] | None:
    """Sets the context as the product does: the tenants whose users are then seen, or None when it is refused."""
    try:
        async with connection.transaction():
            await connection.fetchval("select vanilla.set_context($1)", token)
            return await connection.fetchval(TENANTS_SEEN) or []
    except asyncpg.PostgresError as error:
        if error.sqlstate != "VS401":
            raise
        return None
