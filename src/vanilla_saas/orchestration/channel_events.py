"""A channel as it goes, as server-sent events: each message once, in the one order, from the one after a number on.

The number of a message is the id of its event, so that a stream that breaks off goes on where it was. How streams look
is told in `workflows/execution_events.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import orjson
import structlog

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.orchestration import channel_store as store
from vanilla_saas.workflows.execution_events import (
    AGAIN,
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    POLL_S,
    SHARE,
    SLOWEST_S,
    Identify,
    Streams,
)

log = structlog.get_logger()
Answer = dict[str, Any]
PAGE = 500
"""Messages that are read at once."""
STATE = (
    "id", "name", "kind", "status", "floor_policy", "floor_holder", "floor_until", "closed_at", "close_reason",
)  # fmt: skip


def begin_after(after: int | None, last_seen: str | None) -> int:
    """Where a stream goes on; what a client has seen counts before what it was begun with. Raises VanillaError."""
    if last_seen is None:
        return after or 0
    if not last_seen.isascii() or not last_seen.isdecimal() or int(last_seen) >= 2**63:
        raise VanillaError("invalid_request", "Last-Event-ID is the number of a message", {"param": "Last-Event-ID"})
    return int(last_seen)


async def look(database: Database, identity: Identity, channel_id: UUID, after: int) -> tuple[Answer, list[Answer]]:
    """The channel, and messages after a number. Raises VanillaError `not_found`."""
    async with database.transaction(identity, read_only=True) as connection:
        channel = await store.read(connection, identity.tenant_id, channel_id)
        if channel["last_seq"] <= after:
            return channel, []
        return channel, await store.history(connection, identity.tenant_id, channel_id, after, PAGE)


async def events(
    database: Database,
    identity: Identity,
    first: tuple[Answer, list[Answer]],
    after: int,
    streams: Streams,
    identify: Identify,
) -> AsyncIterator[bytes]:
    """`first` is what `look` gave. `channel` says who has the floor, now and at each change; `message`; `end`.

    `error` is a problem, after which nothing follows.
    """
    with streams.one():
        try:
            async for event in _events(database, identity, first, after, streams, identify):
                yield event
        except VanillaError as error:
            yield _event("error", error.problem())


async def _events(
    database: Database,
    identity: Identity,
    first: tuple[Answer, list[Answer]],
    after: int,
    streams: Streams,
    identify: Identify,
) -> AsyncIterator[bytes]:
    clock = asyncio.get_running_loop().time
    channel_id, told, told_at, looked_s = UUID(first[0]["id"]), None, clock(), 0.0
    channel, messages = first
    yield b"retry: 1000\n\n"
    while True:
        for message in messages:
            yield _event("message", message, message["seq"])
            after = message["seq"]
        if len(messages) < PAGE:
            state = {name: channel[name] for name in STATE}
            if state["status"] == "closed":
                yield _event("end", state)
                return
            if state != told:
                yield _event("channel", state)
                told = state
            await asyncio.sleep(max(POLL_S, min(looked_s / SHARE, SLOWEST_S)))
        if streams.stopping:
            return
        began, messages = clock(), []
        if began - told_at >= KEEP_ALIVE_S:
            identity, told_at = await identify(), clock()
            yield KEEP_ALIVE
        try:
            async with streams.looks:
                channel, messages = await look(database, identity, channel_id, after)
        except VanillaError as error:
            if error.name not in AGAIN:
                raise
            log.info("channel_not_seen", channel_id=str(channel_id), error=error.name)
            continue
        looked_s = clock() - began


def _event(name: str, data: Answer, id: int | None = None) -> bytes:
    identified = b"" if id is None else b"id: %d\n" % id
    return identified + b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data, default=str) + b"\n\n"
