"""A channel as it goes, as server-sent events: each message once, in the one order, from the one after a number on.

The number of a message is the id of its event, so that a stream that breaks off goes on where it was. How streams look
is told in `workflows/execution_events.py`.
"""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.orchestration import channel_store as store
from vanilla_saas.workflows.execution_events import KEEP_ALIVE, Identify, Seen, Streams, event, looks

Answer = dict[str, Any]
View = tuple[Answer, list[Answer]]
"""A channel, and messages of it."""
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


async def look(database: Database, identity: Identity, channel_id: UUID, after: int) -> View:
    """The channel, and messages after a number. Raises VanillaError `not_found`."""
    async with database.transaction(identity, read_only=True) as connection:
        channel = await store.read(connection, identity.tenant_id, channel_id)
        if channel["last_seq"] <= after:
            return channel, []
        return channel, await store.history(connection, identity.tenant_id, channel_id, after, PAGE)


async def events(
    database: Database,
    identity: Identity,
    first: View,
    after: int,
    streams: Streams,
    identify: Identify,
) -> AsyncIterator[bytes]:
    """`first` is what `look` gave. `channel` says who has the floor, now and at each change; `message`; `end`.

    `error` is a problem, after which nothing follows.
    """
    with streams.one():
        try:
            async for told in _events(database, identity, first, after, streams, identify):
                yield told
        except VanillaError as error:
            yield event("error", error.problem())


async def _events(
    database: Database,
    identity: Identity,
    first: View,
    after: int,
    streams: Streams,
    identify: Identify,
) -> AsyncIterator[bytes]:
    async def seen(identity: Identity) -> Seen[View]:
        return _seen(await look(database, identity, UUID(first[0]["id"]), after))

    told = None
    yield b"retry: 1000\n\n"
    async for one in looks(streams, identity, identify, seen, _seen(first)):
        if one is None:
            yield KEEP_ALIVE
            continue
        channel, messages = one.found
        for message in messages:
            yield event("message", message, str(message["seq"]))
            after = message["seq"]
        state = {name: channel[name] for name in STATE}
        if one.over:
            yield event("end", state)
        elif state != told and not one.more:
            yield event("channel", state)
            told = state


def _seen(view: View) -> Seen[View]:
    more = len(view[1]) >= PAGE
    return Seen(view, over=view[0]["status"] == "closed" and not more, more=more)
