from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.conftest import Cluster, migrated_database
from tests.tokens.support import START, TEST_CLOCK, Books
from vanilla_saas.database.pool import _prepare


@pytest.fixture(scope="session")
async def clocked_name(cluster: Cluster) -> AsyncIterator[str]:
    """A database of its own, whose rules read the time from a setting of the connection."""
    async with migrated_database(cluster, "test_tokens") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await connection.execute(TEST_CLOCK)
        await connection.close()
        yield name


@pytest.fixture
async def books(cluster: Cluster, clocked_name: str) -> AsyncIterator[Books]:
    """The operator at START, in the database with the movable clock; its books are right afterwards."""
    connection = await asyncpg.connect(cluster.url(database=clocked_name))
    await _prepare(connection)
    books = Books(connection)
    await books.at(START)
    yield books
    assert await books.problems() == []
    await connection.close()
