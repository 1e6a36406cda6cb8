"""Waits for the end of a run, for whoever is answered with it. A run is durable: nothing here ends one."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import TypeVar
from uuid import UUID

import asyncpg
import structlog

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.workflows.execution_events import AGAIN, POLL_S, SHARE, SLOWEST_S, Identify, Streams

log = structlog.get_logger()
T = TypeVar("T")
FIRST_S = 0.05
"""When a run is looked at first, unless a worker of this process tells of it; the pauses grow by half from there."""
KNOWN_S = 1.0
"""How long a caller who waits is believed to have their key or session still."""


class Ends:
    """Those who wait in this process; each has a place among the streams of events."""

    def __init__(self, database: Database, streams: Streams):
        self._database = database
        self._streams = streams
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @property
    def full(self) -> bool:
        return self._streams.open >= self._streams.most

    @property
    def stopping(self) -> bool:
        return self._streams.stopping

    def place(self) -> AbstractContextManager[None]:
        """One of the places, for the time of the block. Raises VanillaError `saturated`."""
        return self._streams.one()

    def look(self, execution_id: str) -> None:
        """A step of this run has ended: who waits for the run looks now."""
        for news in self._waiting.get(execution_id, ()):
            news.set()

    async def wait(
        self,
        execution_id: UUID,
        identity: Identity,
        seconds: float,
        identify: Identify,
        find: Callable[[asyncpg.Connection], Awaitable[T | None]],
        gone: asyncio.Event | None = None,
    ) -> T | None:
        """What `find` gives, as soon as it gives something; None when the time is over, `gone` is set or all stops.

        Between two looks no connection is held. Raises VanillaError when the key or session is not good any more.
        """
        name, news = str(execution_id), asyncio.Event()
        self._waiting.setdefault(name, set()).add(news)
        left = asyncio.create_task(_pass_on(gone, news)) if gone else None
        try:
            return await self._wait(name, identity, seconds, identify, find, gone or asyncio.Event(), news)
        finally:
            if left:
                left.cancel()
            self._waiting[name].discard(news)
            if not self._waiting[name]:
                del self._waiting[name]

    async def _wait(
        self,
        name: str,
        identity: Identity,
        seconds: float,
        identify: Identify,
        find: Callable[[asyncpg.Connection], Awaitable[T | None]],
        gone: asyncio.Event,
        news: asyncio.Event,
    ) -> T | None:
        clock = asyncio.get_running_loop().time
        known_at, pause, rest = clock(), FIRST_S, 0.0
        until = known_at + seconds
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause, max(until - clock(), 0))):
                    await asyncio.sleep(rest)  # a worker may tell of a thousand steps a second
                    await news.wait()
            news.clear()
            if gone.is_set() or self.stopping:
                return None
            looked, found = clock(), None
            try:
                if looked - known_at >= KNOWN_S:
                    identity, known_at = await identify(), looked
                async with self._streams.looks, self._database.transaction(identity, read_only=True) as connection:
                    found = await find(connection)
            except VanillaError as error:
                if error.name not in AGAIN:
                    raise
                log.info("execution_not_seen", execution_id=name, error=error.name)
            if found is not None or clock() >= until:
                return found
            rest = min((clock() - looked) / SHARE, SLOWEST_S)
            pause = max(min(pause * 1.5, POLL_S), rest)


async def _pass_on(gone: asyncio.Event, news: asyncio.Event) -> None:
    await gone.wait()
    news.set()
