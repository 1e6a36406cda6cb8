"""The scheduler: runs what is due, in any number of processes, each job once (docs/design/operations.md).

Rules are SQL: what is due, who has it, when it is tried again. This module asks, runs parts of SQL jobs and the
coroutines of the others, and says what failed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import structlog

from vanilla_saas import metrics
from vanilla_saas.database.connection import Addresses, connect_admin
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.operations import schedules_store as store
from vanilla_saas.settings import Settings

log = structlog.get_logger()
TICK_SECONDS = 30.0
"""The longest between two looks; another process may have made something due meanwhile."""
LEAST_SECONDS = 1.0
AT_ONCE = 2
"""Parts of jobs that run at once in a process: the pool is there for requests."""
CLOSE_SECONDS = 5.0
_UNREACHED = (VanillaError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a job of this process may use: the addresses (the operator's among them) and the settings."""

    where: Addresses
    settings: Settings


Job = Callable[[JobContext], Awaitable[dict[str, Any]]]
"""Does all that is due; returns figures for `last_result`, raises what went wrong. After a kill it is run again."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run came to."""

    result: dict[str, Any]
    error: str | None


class Scheduler:
    """`tick` starts what is due; `start` does so in the background until `close`."""

    def __init__(self, database: Database, context: JobContext, jobs: Mapping[str, Job]):
        self._database = database
        self._context = context
        self._jobs = jobs
        self._running: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._woken = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._operates: bool | None = None

    def start(self) -> None:
        """Looks in the background: when the next job is due, and at least every 30 s."""
        self._loop = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Looks at once: somebody asked for a run."""
        self._woken.set()

    async def tick(self) -> float:
        """Starts every job that is due and that this process knows; the seconds until the next look."""
        found = await store.due(self._database)
        for job in found["due"]:
            name = job["name"]
            run = self._run_sql if job["kind"] == "sql" else self._run_python
            if name in self._running or (job["kind"] != "sql" and name not in self._jobs):
                continue  # a job that only another release knows is left to it
            task = asyncio.create_task(run(name))
            self._running[name] = task
            task.add_done_callback(lambda _, name=name: self._running.pop(name))  # type: ignore[misc]
        return min(max(float(found["next_in_s"]), LEAST_SECONDS), TICK_SECONDS)

    async def drain(self) -> None:
        """Waits until nothing runs here."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def close(self) -> None:
        """Ends: what runs gets five seconds; what is cut off is taken up again, here or elsewhere."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        if self._running:
            _, late = await asyncio.wait(self._running.values(), timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _run(self) -> None:
        while True:
            seconds = TICK_SECONDS
            try:
                seconds = await self.tick()
            except _UNREACHED as error:
                log.warning("schedules_not_read", error=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), seconds)
            self._woken.clear()

    async def _run_sql(self, name: str) -> None:
        try:
            more = True
            while more:
                async with self._slots:
                    part = await store.run_part(self._database, name)
                more = part["more"]
            self._tell(name, part.get("error"))
        except _UNREACHED as error:
            self._tell_not_run(name, error)

    async def _run_python(self, name: str) -> None:
        try:
            if not await self._is_operator():
                return  # left to a process that is; doctor tells of a job that nobody runs
            async with self._database.session() as connection:
                run = await run_job(connection, name, self._jobs[name], self._context)
            if run:
                self._tell(name, run.error)
        except _UNREACHED as error:
            self._tell_not_run(name, error)

    async def _is_operator(self) -> bool:
        """Whether this process's administering login may act as the operator, which the coroutines do."""
        if self._operates is None:
            connection = await connect_admin(self._context.where.admin)
            try:
                self._operates = await store.is_operator(connection)
            finally:
                await connection.close()
        return self._operates

    def _tell(self, name: str, error: str | None) -> None:
        metrics.SCHEDULE_RUNS.labels(name, "failed" if error else "done").inc()
        if error:
            log.warning("schedule_failed", schedule=name, error=error)

    def _tell_not_run(self, name: str, error: BaseException) -> None:
        """Nothing is recorded, so it is due as before: the next look takes it up."""
        metrics.SCHEDULE_RUNS.labels(name, "not_run").inc()
        log.warning("schedule_not_run", schedule=name, error=str(error))


async def run_job(connection: asyncpg.Connection, name: str, job: Job, context: JobContext) -> Run | None:
    """Runs a coroutine's job, if it is due and nobody else does, in the transaction that is open on the connection.

    The transaction holds the job's lock and nothing else. When its session is lost, so is the lock, and the coroutine
    is cancelled: another process may have begun. None when it was not this one's turn.
    """
    if not await store.begin(connection, name):
        return None
    began = time.perf_counter()
    task = asyncio.ensure_future(job(context))

    def lost(_: object) -> None:
        task.cancel()

    connection.add_termination_listener(lost)
    result: dict[str, Any] = {}
    error = None
    try:
        result = await task
    except asyncio.CancelledError:
        if not connection.is_closed():
            raise
        raise VanillaError("database_unavailable", f"The session that held the job {name} was lost.") from None
    except Exception as failure:  # whatever it is, it is what the run came to
        error = failure.message if isinstance(failure, VanillaError) else f"{type(failure).__name__}: {failure}"
        log.debug("schedule_failure", schedule=name, exc_info=True)
    finally:
        task.cancel()
        if not connection.is_closed():
            connection.remove_termination_listener(lost)
    await store.finish(connection, name, round((time.perf_counter() - began) * 1000), result, error)
    return Run(result, error)
