"""A database of its own with two populated tenants; every test leaves B as it found it."""

import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.conftest import Cluster, create_database
from tests.isolation.rows import World, populate
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate


@pytest.fixture(scope="session")
async def world_name(cluster: Cluster, signer: ContextSigner) -> AsyncIterator[str]:
    async with create_database(cluster, f"isolation_{uuid.uuid4().hex[:12]}") as name:
        await migrate(cluster.url(database=name), signer)
        yield name


@pytest.fixture(scope="session")
async def world(cluster: Cluster, world_name: str, signer: ContextSigner) -> World:
    connection = await asyncpg.connect(cluster.url(database=world_name))
    try:
        return await populate(connection, signer)
    finally:
        await connection.close()


@pytest.fixture
async def superuser(cluster: Cluster, world_name: str, world: World) -> AsyncIterator[asyncpg.Connection]:
    """A superuser of the world's database; asserts that nothing of anybody but A changed."""
    connection = await asyncpg.connect(cluster.url(database=world_name))
    before = await world.digest(connection)
    yield connection
    assert await world.digest(connection) == before, "rows that are not A's changed"
    await connection.close()
