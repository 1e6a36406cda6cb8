"""The rows and partitions of a fresh installation are looked at in a database that no other test has used."""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Cluster, migrated_database


@pytest.fixture(scope="session")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster) as name:
        yield name
