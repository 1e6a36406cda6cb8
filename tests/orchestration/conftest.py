"""A database of its own, whose rules read the time from a setting of the connection."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.conftest import Cluster, migrated_database
from tests.orchestration.hall import CLOCK, Hall, hall


@pytest.fixture(scope="session")
async def clocked_url(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster, "test_talk") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await connection.execute(CLOCK)
        await connection.close()
        yield cluster.url(database=name)


@pytest.fixture
async def talk(clocked_url: str) -> AsyncIterator[Hall]:
    connection = await asyncpg.connect(clocked_url)
    yield await hall(connection)
    await connection.close()
