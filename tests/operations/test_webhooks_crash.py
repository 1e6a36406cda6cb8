"""A sender is killed between sending and recording: the event arrives again, under the same id."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from tests.conftest import Cluster, migrated_database
from tests.operations.webhook_support import Handler, Hooks, Receiver, send_due, sending
from tests.processes import Running, eventually, over
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.pool import Database
from vanilla_saas.operations.webhooks import WebhookSender


@pytest.fixture(scope="module")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    async with migrated_database(cluster) as name:
        yield name


@pytest.fixture(scope="module")
async def database(cluster: Cluster, database_name: str, signer: ContextSigner) -> AsyncIterator[Database]:
    opened = await Database.open(
        cluster.url("vanilla_app", database_name),
        cluster.url("vanilla_runtime", database_name),
        signer,
        size=4,
    )
    yield opened
    await opened.close()


@pytest.fixture
async def server(cluster: Cluster, database_name: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A real server process, which sends in the background."""
    installation = over(cluster, database_name, tmp_path, VANILLA_SAAS_WEBHOOKS_TO_PRIVATE="true")
    async with installation.serving("serve") as running:
        yield running


async def test_a_server_killed_before_it_recorded_the_outcome_loses_nothing(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender, server: Running
) -> None:
    async def kill_the_sender(_: web.Request) -> web.Response:
        server.send(signal.SIGKILL)
        return web.Response()

    hook = await hooks.make(receiver.url)
    receiver.script = [kill_the_sender]
    await hooks.credit(hook)
    await server.wait()
    assert len(receiver.requests) == 1
    lost = await hooks.delivery(hook)
    assert (lost["state"], lost["attempts"]) == ("pending", 1)
    assert lost["lease_id"] is not None
    assert await send_due(sender) == 0, "the lease still runs"
    await hooks.later(timedelta(seconds=50))
    assert await send_due(sender) == 1
    assert receiver.requests[1].id == receiver.requests[0].id
    assert receiver.requests[1].body == receiver.requests[0].body
    assert await hooks.attempts(hook) == [
        (1, None, "the sender stopped before it recorded the outcome"),
        (2, 200, None),
    ]


async def test_a_sender_that_is_too_late_to_record_changes_nothing(
    hooks: Hooks, receiver: Receiver, sender: WebhookSender, database: Database
) -> None:
    arrived, release = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]

    def stalled(number: int, status: int) -> Handler:
        async def answer(_: web.Request) -> web.Response:
            arrived[number].set()
            await release[number].wait()
            return web.Response(status=status)

        return answer

    hook = await hooks.make(receiver.url)
    receiver.script = [stalled(0, 500), stalled(1, 200)]
    await hooks.credit(hook)
    await sender.run_once()
    await asyncio.wait_for(arrived[0].wait(), 20)
    await hooks.later(timedelta(seconds=50))
    async with sending(database) as second:
        assert await second.run_once() == 1
        await asyncio.wait_for(arrived[1].wait(), 20)
        before = dict(await hooks.delivery(hook))
        release[0].set()
        await sender.drain()
        assert dict(await hooks.delivery(hook)) == before, "the second sender has it now"
        release[1].set()
        await second.drain()
    assert (await hooks.delivery(hook))["state"] == "delivered"
    assert [status for _, status, _ in await hooks.attempts(hook)] == [None, 200]


async def test_a_server_that_is_told_to_stop_waits_for_what_is_in_flight_and_records_it(
    hooks: Hooks, receiver: Receiver, server: Running
) -> None:
    hung_up: list[bool] = []

    async def slow(request: web.Request) -> web.Response:
        server.send(signal.SIGTERM)
        await eventually(lambda: _refuses(server.url))
        end = time.monotonic() + 1
        while not (gone := request.transport is None or request.transport.is_closing()) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        hung_up.append(gone)
        return web.Response()

    hook = await hooks.make(receiver.url)
    receiver.script = [slow]
    await hooks.credit(hook)
    assert await server.wait() == 0
    assert hung_up == [False]
    assert (await hooks.delivery(hook))["state"] == "delivered"


async def _refuses(url: str) -> bool:
    """Whether the server has begun to stop: it takes no new connections."""
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return True
    writer.close()
    return False


async def test_a_server_sends_in_the_background(hooks: Hooks, receiver: Receiver, server: Running) -> None:
    hook = await hooks.make(receiver.url)
    await hooks.credit(hook)

    async def delivered() -> bool:
        return (await hooks.delivery(hook))["state"] == "delivered"

    await eventually(delivered)
    receiver.requests[0].verify(hook.secret)
