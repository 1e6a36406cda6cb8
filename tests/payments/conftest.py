from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.payments.support import Shop, StripeServer, open_shop
from tests.tokens.conftest import books, clocked_name
from tests.tokens.support import Books
from vanilla_saas.database.pool import _prepare

__all__ = ["books", "clocked_name"]


@pytest.fixture
async def shop(books: Books) -> Shop:
    """A tenant with an account, a pack, two levels on sale, and a user with a customer at Stripe."""
    return await open_shop(books)


@pytest.fixture
async def second(cluster: Cluster, clocked_name: str) -> AsyncIterator[asyncpg.Connection]:
    """Another connection to the same database, with no moment set."""
    connection = await asyncpg.connect(cluster.url(database=clocked_name))
    await _prepare(connection)
    yield connection
    await connection.close()


@pytest.fixture
async def stripe() -> AsyncIterator[StripeServer]:
    """A real HTTP server on loopback that answers as Stripe does and keeps what it was sent."""
    server = StripeServer()
    await server.start()
    yield server
    await server.stop()
