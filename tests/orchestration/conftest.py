from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.conftest import LONG, Cluster, migrated_database
from tests.orchestration.hall import Hall, hall
from tests.orchestration.mortals import Ward
from tests.orchestration.recorder import recorder
from tests.orchestration.studio import BOTH_LOOPS, Studio, studio
from tests.orchestration.support import Trees
from tests.tokens.support import START, TEST_CLOCK
from vanilla_saas.database.pool import _prepare


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "desk" in metafunc.fixturenames:
        loops = getattr(metafunc.module, "LOOPS", BOTH_LOOPS[:1])
        metafunc.parametrize("desk", loops, indirect=True, scope="module")


@pytest.fixture(scope="session")
async def forest_name(cluster: Cluster) -> AsyncIterator[str]:
    """A database of its own, whose rules read the time from a setting of the connection."""
    async with migrated_database(cluster, "test_orchestration") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await connection.execute(TEST_CLOCK)
        await connection.close()
        yield name


@pytest.fixture
async def trees(cluster: Cluster, forest_name: str) -> AsyncIterator[Trees]:
    """The operator at START; trees, wallets and ledger agree afterwards, and when all time is over nothing is held."""
    connection = await asyncpg.connect(cluster.url(database=forest_name))
    await _prepare(connection)
    trees = Trees(connection)
    await trees.at(START)
    yield trees
    assert await trees.broken() == []
    await trees.later(days=60)
    await trees.reap_trees()
    assert await connection.fetchval("select count(*) from resource_allocations where state = 'open'") == 0
    assert await trees.broken() == []
    await connection.close()


@pytest.fixture(scope="module")
async def desk(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Studio]:
    """The database of a module that runs agents: no other test's runs are in it."""
    async with studio(cluster, tmp_path_factory.mktemp("home"), request.param) as made:
        yield made


@pytest.fixture(scope="session")
async def clocked_url(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster, "test_talk") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await connection.execute(TEST_CLOCK)
        await connection.close()
        yield cluster.url(database=name)


@pytest.fixture
async def talk(clocked_url: str) -> AsyncIterator[Hall]:
    connection = await asyncpg.connect(clocked_url)
    yield await hall(connection)
    await connection.close()


@pytest.fixture(scope="module", params=BOTH_LOOPS if LONG else BOTH_LOOPS[:1])
async def ward(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Ward]:
    """A support desk whose workers are killed, driven by each of the two loops.

    An ordinary run has the built-in one: of pydantic-ai's, test_pydantic_durability breaks every operation off.
    """
    async with migrated_database(cluster, "mortals") as name, recorder() as sandbox:
        made = Ward(cluster, name, tmp_path_factory.mktemp("home"), sandbox, request.param)
        await made.prepare()
        yield made
