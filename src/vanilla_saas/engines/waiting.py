"""Waits for the end of a run, for whoever is answered with it. A run is durable: nothing here ends one."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

import asyncpg
import structlog

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.workflows.attending import Attended, OpenWords
from vanilla_saas.workflows.execution_events import AGAIN, KNOWN_S, POLL_S, SHARE, SLOWEST_S, Identify, Streams
from vanilla_saas.workflows.worker import Worker

log = structlog.get_logger()
T = TypeVar("T")
FIRST_S = 0.05
"""When a run is looked at first, unless a worker of this process tells of it; the pauses grow by half from there."""
BEGIN_S = 2.0
"""How long a worker may take to begin, from when somebody first waits."""


class Ends:
    """Those who wait in this process; each has a place among the streams of events."""

    def __init__(self, database: Database, streams: Streams):
        self._database = database
        self._streams = streams
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.worker: Worker | None = None
        """Works for the runs that are waited for."""
        self.wanted = asyncio.Event()
        """Somebody has waited, so a worker is of use."""
        self._begins_by = 0.0

    def work_with(self, worker: Worker) -> None:
        self.worker = worker

    async def attend(self, tenant_id: UUID, execution_id: UUID, words: OpenWords | None = None) -> Attended | None:
        """This process works for a run; None when it does not, or does for another who waits for the same."""
        if not self.wanted.is_set():
            self.wanted.set()
            self._begins_by = asyncio.get_running_loop().time() + BEGIN_S
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._begins_by):
                while self.worker is None or not self.worker.ready:
                    await asyncio.sleep(0.01)
        return self.worker.attend(tenant_id, execution_id, words) if self.worker else None

    def about_to_attend(self) -> AbstractContextManager[None]:
        """Within it a run is started and attended, and no step of it is computed here before its end."""
        return self.worker.about_to_attend() if self.worker else nullcontext()

    def leave(self, attended: Attended | None) -> None:
        if attended is not None and self.worker is not None:
            self.worker.leave(attended)

    @property
    def full(self) -> bool:
        return self._streams.open >= self._streams.most

    @property
    def stopping(self) -> bool:
        return self._streams.stopping

    def place(self) -> AbstractContextManager[None]:
        """One of the places, for the time of the block. Raises VanillaError `saturated`."""
        return self._streams.one()

    def look(self, execution_id: str, told: Attended | None = None) -> None:
        """A step of this run has ended: who waits for the run looks now, but for the one whose look told it."""
        for news in self._waiting.get(execution_id, ()):
            if told is None or news is not told.news:
                news.set()

    async def wait(
        self,
        execution_id: UUID,
        identity: Identity,
        seconds: float,
        identify: Identify,
        find: Callable[[asyncpg.Connection], Awaitable[T | None]],
        gone: asyncio.Event | None = None,
        attended: Attended | None = None,
        known: Callable[[Attended], T | None] | None = None,
    ) -> T | None:
        """What `find` gives, as soon as it gives something; None when the time is over, `gone` is set or all stops.

        An attended run is worked for meanwhile, and asked only when it has ended; what `known` gives of it is enough.
        Between two looks no connection is held. Raises VanillaError when the key or session is not good any more.
        """
        last = None
        looks = self.looks(execution_id, identity, seconds, identify, find, gone, attended, known)
        async with aclosing(looks):
            async for found in looks:
                last = found
        return last

    async def looks(
        self,
        execution_id: UUID,
        identity: Identity,
        seconds: float,
        identify: Identify,
        find: Callable[[asyncpg.Connection], Awaitable[T | None]],
        gone: asyncio.Event | None = None,
        attended: Attended | None = None,
        known: Callable[[Attended], T | None] | None = None,
    ) -> AsyncGenerator[T | None]:
        """As `wait`, for who watches: after each look None, until there is what `find` gives."""
        name, news = str(execution_id), attended.news if attended else asyncio.Event()
        self._waiting.setdefault(name, set()).add(news)
        left = asyncio.create_task(_pass_on(gone, news)) if gone else None
        try:
            one = _Waiting(name, identity, identify, find, gone or asyncio.Event(), news, attended, known)
            async for found in self._looks(one, seconds):
                yield found
        finally:
            if left:
                left.cancel()
            self._waiting[name].discard(news)
            if not self._waiting[name]:
                del self._waiting[name]

    async def _looks(self, one: "_Waiting[T]", seconds: float) -> AsyncGenerator[T | None]:
        clock = asyncio.get_running_loop().time
        soonest = clock()
        until, ask_at = soonest + seconds, soonest + KNOWN_S
        pause = 0.0 if one.attended and not one.attended.running else FIRST_S
        latest = min(soonest + pause, until)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(latest, ask_at)):
                    if not one.works:
                        await asyncio.sleep(soonest - clock())  # a worker may tell of a thousand steps a second
                    await one.news.wait()
            if one.gone.is_set() or self.stopping:
                return
            began, found = clock(), None
            try:
                if began >= ask_at:
                    ask_at = began + POLL_S
                    one.identity, ask_at = await one.identify(), began + KNOWN_S
                if began < latest and (not one.news.is_set() or (began < soonest and not one.works)):
                    continue
                one.news.clear()
                found = await self._look(one)
            except VanillaError as error:
                if error.name not in AGAIN:
                    raise
                log.info("execution_not_seen", execution_id=one.name, error=error.name)
            rest = min((clock() - began) / SHARE, SLOWEST_S)
            pause = max(min(max(pause, FIRST_S) * 1.5, POLL_S), rest)
            soonest, latest = clock() + rest, min(clock() + pause, until)
            yield found
            if found is not None or clock() >= until:
                return

    async def _look(self, one: "_Waiting[T]") -> T | None:
        if one.attended is None or self.worker is None or not self.worker.ready:
            return await self._find(one)
        if one.attended.alone and one.attended.running and not one.tells:
            return None  # nobody else changes it; were it cancelled, its steps would be taken away, which is news
        if one.tells:
            await self.worker.look(one.attended)
        else:
            async with self._streams.looks:
                await self.worker.look(one.attended)
        if one.attended.end is None:
            return None
        if one.known is not None and (known := one.known(one.attended)) is not None:
            return known
        return await self._find(one)

    async def _find(self, one: "_Waiting[T]") -> T | None:
        async with self._streams.looks, self._database.transaction(one.identity, read_only=True) as connection:
            return await one.find(connection)


@dataclass(slots=True)
class _Waiting(Generic[T]):
    """Who waits for a run, and how it is looked at."""

    name: str
    identity: Identity
    identify: Identify
    find: Callable[[asyncpg.Connection], Awaitable[T | None]]
    gone: asyncio.Event
    news: asyncio.Event
    attended: Attended | None
    known: Callable[[Attended], T | None] | None

    @property
    def works(self) -> bool:
        """Whether news is of steps that end here: each is told at once."""
        return self.attended is not None and bool(self.attended.running or self.attended.done)

    @property
    def tells(self) -> bool:
        """Whether a step has ended here and the database is to be told."""
        return self.attended is not None and bool(self.attended.done)


async def _pass_on(gone: asyncio.Event, news: asyncio.Event) -> None:
    await gone.wait()
    news.set()
