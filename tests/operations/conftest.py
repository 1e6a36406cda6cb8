"""What the tests of webhooks share."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.operations.webhook_support import Hooks, Receiver, receiving, sending
from vanilla_saas.database.pool import Database
from vanilla_saas.operations.webhooks import WebhookSender


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started


@pytest.fixture
async def hooks(operator: asyncpg.Connection) -> AsyncIterator[Hooks]:
    made = Hooks(operator)
    yield made
    await made.restore()


@pytest.fixture
async def sender(database: Database) -> AsyncIterator[WebhookSender]:
    async with sending(database) as made:
        yield made
