"""The database of a module that runs engines: no other test's steps are in it."""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Cluster
from tests.engines.shop import Shop, shop


@pytest.fixture(scope="module")
async def floor(cluster: Cluster) -> AsyncIterator[Shop]:
    async with shop(cluster) as made:
        yield made
