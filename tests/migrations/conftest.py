"""The rows and partitions of a fresh installation are looked at in a database that no other test has used."""

import uuid
from collections.abc import AsyncIterator

import pytest

from tests.conftest import TEST_KEY, Cluster, create_database
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate


@pytest.fixture(scope="session")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    name = f"fresh_{uuid.uuid4().hex[:12]}"
    async with create_database(cluster, name):
        await migrate(cluster.url(database=name), ContextSigner(bytes.fromhex(TEST_KEY)))
        yield name
