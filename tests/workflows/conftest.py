"""The database of a module that runs workflows: no other test's steps are in it."""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Cluster
from tests.workflows.hands import Room, room


@pytest.fixture(scope="module")
async def desk(cluster: Cluster) -> AsyncIterator[Room]:
    async with room(cluster) as made:
        yield made
