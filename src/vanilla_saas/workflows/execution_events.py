"""Executions as they go, as server-sent events: the whole at first, then what changed, then the end.

Between two looks no connection is held, and each look has a context of its own, so a stream may last for days. Who may
not look any more, because the key or session was revoked, is told so within a quarter of a minute.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import structlog

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.workflows import execution_store as store

log = structlog.get_logger()
POLL_S = 0.25
SHARE = 0.1
"""The most of the time that a stream spends looking: what takes long, or has to wait, is looked at less often."""
SLOWEST_S = 5.0
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": still here\n\n"
AGAIN = ("saturated", "database_unavailable")
Identify = Callable[[], Awaitable[Identity]]
"""Looks the caller up again. Raises VanillaError when the key or session is not good any more."""
Look = Callable[[asyncpg.Connection], Awaitable[dict[str, Any]]]
"""Something with a `finished_at`, as it is now; all of it each time."""


class Streams:
    """How many streams this process keeps, how many look at the same time, and whether they end because it stops."""

    def __init__(self, most: int, looks: int = 2):
        self.most = most
        # however many streams there are, connections are left for requests
        self.looks = asyncio.Semaphore(looks)
        self.open = 0
        self.stopping = False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises VanillaError `saturated`."""
        self.refuse_when_full()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def refuse_when_full(self) -> None:
        """Raises VanillaError `saturated`."""
        if self.open >= self.most:
            raise VanillaError(
                "saturated",
                f"This process keeps {self.most} streams of events already.",
                {"limit": self.most, "retry_after_s": 5},
                "Ask for the execution itself now and then instead.",
            )

    def stop(self) -> None:
        """Every stream ends within a moment; clients that follow come back, to a process that goes on."""
        self.stopping = True


@contextmanager
def ended_by_signals(streams: Streams) -> Iterator[None]:
    """Ends the streams as soon as the process is told to stop: the server waits for answers that are under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def told(number: int, frame: Any) -> None:
        streams.stop()
        handler = former[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    chained = {number: told for number, handler in former.items() if callable(handler)}
    for number, handler in chained.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in chained:
            if signal.getsignal(number) is told:
                signal.signal(number, former[number])


async def whole(database: Database, identity: Identity, execution_id: UUID) -> dict[str, Any]:
    """The execution as it is now. Raises VanillaError `not_found`."""
    async with database.transaction(identity, read_only=True) as connection:
        return await store.progress(connection, identity.tenant_id, execution_id)


async def events(
    database: Database,
    identity: Identity,
    first: dict[str, Any],
    streams: Streams,
    identify: Identify,
    look: Look | None = None,
) -> AsyncIterator[bytes]:
    """Server-sent events of an execution from `first`, which `whole` gave, to its end; or of what `look` gives.

    `progress` is the whole at first, then the fields and steps that changed; `end` is the whole with the output;
    `error` is a problem, after which nothing follows.
    """
    with streams.one():
        try:
            async for event in _events(database, identity, first, streams, identify, look):
                yield event
        except VanillaError as error:
            yield _event("error", error.problem())


async def _events(
    database: Database,
    identity: Identity,
    first: dict[str, Any],
    streams: Streams,
    identify: Identify,
    look: Look | None,
) -> AsyncIterator[bytes]:
    known, clock = first, asyncio.get_running_loop().time
    yield b"retry: 1000\n\n" + _event("progress", first)
    looked_s, told_at = 0.0, clock()
    while known["finished_at"] is None:
        await asyncio.sleep(max(POLL_S, min(looked_s / SHARE, SLOWEST_S)))
        if streams.stopping:
            return
        began = clock()
        if began - told_at >= KEEP_ALIVE_S:
            identity, told_at = await identify(), clock()
            yield KEEP_ALIVE
        try:
            async with streams.looks, database.transaction(identity, read_only=True) as connection:
                found = await (look(connection) if look else store.watch(connection, UUID(first["id"])))
        except VanillaError as error:
            if error.name not in AGAIN:
                raise
            log.info("execution_not_seen", execution_id=first.get("id"), error=error.name)
            continue
        looked_s = clock() - began
        if (changed := changes(known, found)) and found["finished_at"] is None:
            yield _event("progress", changed)
        known = found
    if look is None and known is not first:
        known = await whole(database, identity, UUID(first["id"]))
    yield _event("end", known)


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Fields of `after` that differ, and of its steps those that do; empty: none."""
    changed = {name: value for name, value in after.items() if name != "steps" and before.get(name) != value}
    was = {step["node"]: step for step in before.get("steps", ())}
    steps = [step for step in after.get("steps", ()) if was.get(step["node"]) != step]
    return changed | ({"steps": steps} if steps else {})


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
