"""Calls that wait for the database at the same moment leave together: one statement, one commit.

A call leaves at once while a slot is free, as the plain statement of its function. While all slots are taken, calls
queue; when one becomes free, what has gathered leaves as one `vanilla.run_calls`. So nobody waits for company, and the
busier the database is, the larger the batches are. A call that fails fails alone.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import structlog

from vanilla_saas import metrics, tracing
from vanilla_saas.database.errors import VanillaError, from_postgres
from vanilla_saas.database.pool import Database

log = structlog.get_logger()

RUN_CALLS = "select vanilla.run_calls($1)"
LIMIT = 100
"""Calls of one batch."""
IN_FLIGHT = 2
"""Statements of one process under way at a time; docs/design/database.md has the measurement."""
LARGE_BYTES = 65_536
"""A larger call leaves alone: a batch is one JSON value in the database's memory."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the closed list of `vanilla.run_calls`: its name there, its parameters and its own statement."""

    name: str
    statement: str
    parameters: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Call:
    function: Function
    arguments: Sequence[object]
    number: int
    """Its place in the order of arrival."""
    unwanted: Callable[[Any], None] | None
    answer: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def succeed(self, value: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(value)
        elif self.unwanted is not None:
            self.unwanted(value)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def encoded(self) -> orjson.Fragment | None:
        """The call as an element of a batch; None for one that JSON cannot carry as the single statement would."""
        named = {"function": self.function.name} | dict(zip(self.function.parameters, self.arguments, strict=True))
        try:
            text = orjson.dumps(named, default=_as_text)
        except (TypeError, ValueError):
            return None
        # jsonb has no NUL, and would refuse the neighbours too
        return None if len(text) > LARGE_BYTES or b"\\u0000" in text else orjson.Fragment(text)


class Coalescer:
    """The calls of one process on the runtime pool."""

    def __init__(self, database: Database, *, limit: int = LIMIT, in_flight: int = IN_FLIGHT):
        self._database = database
        self._limit = limit
        self._free = in_flight
        self._lanes: OrderedDict[Hashable, deque[_Call]] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()
        self._arrived = 0
        self._closed = False

    async def call(
        self,
        function: Function,
        *arguments: object,
        lane: Hashable = None,
        unwanted: Callable[[Any], None] | None = None,
    ) -> Any:
        """The function's value, as `Database.call` gives it, and with its errors.

        `lane` is whom the call is for: when more wait than a batch takes, lanes take turns. A caller that is
        cancelled while its call waits leaves without effect. Once the call is under way it runs to its end, and
        `unwanted` is given the value that nobody waits for.
        """
        if self._closed:
            raise VanillaError("database_unavailable", "The server is stopping; nothing was charged.")
        self._arrived += 1
        call = _Call(function, arguments, self._arrived, unwanted)
        self._lanes.setdefault(lane, deque()).append(call)
        if self._free:
            self._depart()
        # the statement itself may be many calls' and belongs to none of their traces
        with tracing.span(
            function.name, "client", {"db.system.name": "postgresql", "db.query.text": function.statement}
        ):
            return await call.answer

    async def close(self) -> None:
        """Refuses new calls and waits for those that were taken."""
        self._closed = True
        while self._running:
            await asyncio.wait(self._running)

    def _depart(self) -> None:
        if batch := self._next_batch():
            self._free -= 1
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _next_batch(self) -> list[_Call]:
        """What leaves next, in order of arrival: one call of each lane in turn until the batch is full."""
        batch: list[_Call] = []
        while self._lanes and len(batch) < self._limit:
            lane, calls = self._lanes.popitem(last=False)
            call = calls.popleft()
            if calls:
                self._lanes[lane] = calls  # behind the others
            if not call.answer.done():
                batch.append(call)
        return sorted(batch, key=lambda call: call.number)

    async def _run(self, batch: list[_Call]) -> None:
        metrics.BATCH_SIZE.observe(len(batch))
        try:
            if len(batch) == 1:
                await self._run_alone(batch[0])
            else:
                await self._run_together(batch)
            # callers that have their answer go on first: what they ask next belongs to the next batch
            await asyncio.sleep(0)
        except BaseException as error:
            for call in batch:
                call.fail(VanillaError("internal_error", "The calls were not run to their end."))
            if not isinstance(error, Exception):
                raise
            log.error("coalescer_failed", exc_info=error)
        finally:
            self._free += 1
            self._depart()

    async def _run_alone(self, call: _Call) -> None:
        try:
            value = await self._database.call(call.function.statement, *call.arguments)
        except Exception as error:
            call.fail(error)
        else:
            call.succeed(value)

    async def _run_together(self, batch: list[_Call]) -> None:
        encoded = [(call, call.encoded()) for call in batch]
        alone = [call for call, text in encoded if text is None]
        together = [(call, text) for call, text in encoded if text is not None]
        try:
            outcomes = await self._database.call(RUN_CALLS, [text for _, text in together]) if together else []
        except (VanillaError, asyncpg.PostgresError) as error:
            if isinstance(error, VanillaError) and error.name in ("database_unavailable", "saturated"):
                # whether it was committed may not be known, so nothing is repeated here
                for call, _ in together:
                    call.fail(VanillaError(error.name, error.message, dict(error.detail), error.hint))
            else:
                log.error("batch_failed", calls=len(together), error=str(error))
                alone += [call for call, _ in together]  # undone as a whole: each finds out by itself
        else:
            alone += [call for (call, _), outcome in zip(together, outcomes, strict=True) if not _answer(call, outcome)]
        for call in sorted(alone, key=lambda call: call.number):
            await self._run_alone(call)


def _answer(call: _Call, outcome: dict[str, Any]) -> bool:
    """Gives a call its outcome; False when it was not run and is to be repeated alone."""
    if "ok" in outcome:
        call.succeed(outcome["ok"])
        return True
    found = outcome["error"]
    if found["sqlstate"].startswith("40"):
        return False
    call.fail(error_of(found))
    return True


def error_of(found: Mapping[str, Any]) -> Exception:
    """What `vanilla.call_error` tells: a VanillaError, or PostgreSQL's own."""
    fields = {"C": found["sqlstate"], "M": found["message"], "D": found["detail"], "H": found["hint"]}
    error: Exception = asyncpg.PostgresError.new({name: value for name, value in fields.items() if value is not None})
    return from_postgres(error) or error


def _as_text(value: object) -> str:
    """What orjson does not know, as PostgreSQL reads it."""
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, UUID):  # asyncpg's own kind of it
        return str(value)
    if isinstance(value, timedelta):
        return f"{value.total_seconds()} seconds"
    raise TypeError(type(value).__name__)
