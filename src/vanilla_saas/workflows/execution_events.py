"""Executions as they go, as server-sent events: the whole at first, then what changed, then the end.

Between two looks no connection is held, and each look has a context of its own, so a stream may last for days. Who may
not look any more, because the key or session was revoked, is told so within a second, and never the end.
"""

import asyncio
import hashlib
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg
import orjson
import structlog

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.workflows import execution_store as store

log = structlog.get_logger()
T = TypeVar("T")
POLL_S = 0.25
SHARE = 0.1
"""The most of the time that a stream spends looking: what takes long, or has to wait, is looked at less often."""
SLOWEST_S = 5.0
KNOWN_S = 0.6
"""How long a caller is believed to have their key or session still: with the pause between two looks below a second."""
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": still here\n\n"
AGAIN = ("saturated", "database_unavailable")
Identify = Callable[[], Awaitable[Identity]]
"""Looks the caller up again. Raises VanillaError when the key or session is not good any more."""
Look = Callable[[asyncpg.Connection], Awaitable[dict[str, Any]]]
"""Something with a `finished_at`, as it is now; all of it each time."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """What a look found."""

    found: T
    over: bool = False
    """Nothing comes after it: the caller is looked up again before it is told."""
    more: bool = False
    """There is more already, and no pause before it is looked at."""


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
            async for told in _events(database, identity, first, streams, identify, look):
                yield told
        except VanillaError as error:
            yield event("error", error.problem())


async def _events(
    database: Database,
    identity: Identity,
    first: dict[str, Any],
    streams: Streams,
    identify: Identify,
    look: Look | None,
) -> AsyncIterator[bytes]:
    async def seen(identity: Identity) -> Seen[dict[str, Any]]:
        async with database.transaction(identity, read_only=True) as connection:
            found = await (look(connection) if look else store.watch(connection, UUID(first["id"])))
            if look is None and found["finished_at"] is not None:
                found = await store.progress(connection, identity.tenant_id, UUID(first["id"]))
        return Seen(found, over=found["finished_at"] is not None)

    known = first
    yield b"retry: 1000\n\n" + event("progress", first)
    async for one in looks(streams, identity, identify, seen, Seen(first, over=first["finished_at"] is not None)):
        if one is None:
            yield KEEP_ALIVE
        elif one.over:
            yield event("end", one.found)
        elif changed := changes(known, one.found):
            yield event("progress", changed)
            known = one.found


async def looks(
    streams: Streams,
    identity: Identity,
    identify: Identify,
    look: Callable[[Identity], Awaitable[Seen[T]]],
    seen: Seen[T],
) -> AsyncIterator[Seen[T] | None]:
    """What was `seen` first, then what each look finds, until it is over or the process stops; None: a sign of life.

    Raises VanillaError when the key or session is not good any more.
    """
    clock = asyncio.get_running_loop().time
    known_at = told_at = look_at = clock()
    yield seen
    while not seen.over:
        if not seen.more:
            await asyncio.sleep(POLL_S)
        if streams.stopping:
            return
        if clock() - told_at >= KEEP_ALIVE_S:
            told_at = clock()
            yield None
        began = clock()
        try:
            async with streams.looks:
                if clock() - known_at >= KNOWN_S:
                    identity, known_at = await identify(), began
                if clock() < look_at:
                    continue
                found = await look(identity)
                if found.over:
                    await identify()
        except VanillaError as error:
            if error.name not in AGAIN:
                raise
            log.info("stream_not_seen", error=error.name)
            seen = Seen(seen.found)
            continue
        if not found.more:
            look_at = clock() + min((clock() - began) / SHARE, SLOWEST_S)
        seen = found
        yield seen


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Fields of `after` that differ, and of its steps those that do; empty: none."""
    changed = {name: value for name, value in after.items() if name != "steps" and before.get(name) != value}
    was = {step["node"]: step for step in before.get("steps", ())}
    steps = [step for step in after.get("steps", ()) if was.get(step["node"]) != step]
    return changed | ({"steps": steps} if steps else {})


def fingerprint(value: Any) -> str:
    """A short name of what was seen, the same as long as nothing of it changes."""
    return hashlib.sha256(orjson.dumps(value, default=str)).hexdigest()[:20]


def event(name: str, data: Any, id: str = "") -> bytes:
    identified = b"id: " + id.encode() + b"\n" if id else b""
    return identified + b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data, default=str) + b"\n\n"
