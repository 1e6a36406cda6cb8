"""The worker: claims steps, computes them side by side, tells what came of them; docs/design/workflows.md.

One statement a round: outcomes go, steps come. Whatever happens to a round, it may be repeated, because outcomes are
fenced by leases: those that are not held any more are dropped by the database.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import asyncpg
import structlog
from pydantic import ValidationError

from vanilla_saas import metrics
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.providers.step_metering import Admitted
from vanilla_saas.workflows import worker_store as store
from vanilla_saas.workflows.attending import Attended, OpenWords
from vanilla_saas.workflows.clock import start_due
from vanilla_saas.workflows.execution.failures import Failure
from vanilla_saas.workflows.execution.opening import Opening, opening
from vanilla_saas.workflows.execution.plan import Plan
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.steps import Step, handed_back
from vanilla_saas.workflows.execution.tooling import Tooling

log = structlog.get_logger()

HEARTBEAT_S = 3.0
LEASES_S = 0.5
"""How often a worker looks which of its leases were taken away."""
TEND_S = 0.2
"""How often it does what time brings: attempts, ends of waits, deadlines."""
CLOCK_S = 1.0
"""How often it looks for schedules whose time has come."""
BURY_S = 2.0
"""How often it looks for workers that are dead."""
POLL_S = 1.0
"""The longest between two looks when nothing is heard; right after there was something it looks again soon."""
FIRST_POLL_S = 0.01
DRAIN_S = 25.0
"""How long steps may run on when the worker is told to stop; then they are handed back."""
LEAVE_S = 10.0
OWN = "="
"""Before the name of a pool: of it, the steps of attended runs alone."""
PLANS = 200
"""Definitions that are kept."""
ToolingFor = Callable[[str], Tooling]
"""Makes what steps are computed with, for the id under which the worker is registered."""
Told = Callable[[str, Attended | None], None]
"""Hears of an execution, by id, that a step of it has ended and that the database knows; and for whom that was told."""
_UNREACHED = (VanillaError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker says of itself."""

    name: str
    pools: tuple[str, ...] = ("default",)
    capacity: int = 20
    """Steps at the same time."""
    labels: Mapping[str, str] = field(default_factory=dict)
    region: str = ""
    release: str = "0.1.0"
    polls: bool = True
    """Whether it looks for anybody's work; one that does not takes steps of attended runs alone."""


@dataclass(slots=True)
class _Running:
    """A step under way, and the settlements of its model calls so far."""

    step: Step
    key: dict[str, Any]
    task: asyncio.Task[None] | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    taken_away: bool = False


@dataclass(slots=True)
class _Report:
    """What the next heartbeat tells."""

    finished: int = 0
    failed: int = 0
    latency_ms: float = 0

    def add(self, untold: "_Report") -> None:
        self.finished += untold.finished
        self.failed += untold.failed
        self.latency_ms += untold.latency_ms


class Worker:
    """`run` works until it is cancelled or `stop` is called, then drains."""

    def __init__(
        self,
        database: Database,
        options: WorkerOptions,
        tooling: ToolingFor,
        *,
        drain_s: float = DRAIN_S,
        told: Told | None = None,
    ):
        self._database = database
        self._options = options
        self._tooling_for = tooling
        self._drain_s = drain_s
        self._told = told
        self._tooling: Tooling | None = None
        self._worker: UUID | None = None
        self._running: dict[int, _Running] = {}
        self._attended: dict[str, Attended] = {}
        self._starts: set[asyncio.Future[None]] = set()
        """Of runs that will be attended."""
        self._done: list[dict[str, Any]] = []
        self._telling: set[int] = set()
        self._state: dict[str, Any] = {}
        self._plans: dict[tuple[str, str, int], Plan] = {}
        self._woken = asyncio.Event()
        self._beginning = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._report = _Report()
        self._quiet_s = FIRST_POLL_S
        self._unknown: set[int] = set()

    @property
    def id(self) -> UUID | None:
        """None before it is registered."""
        return self._worker

    @property
    def ready(self) -> bool:
        """Whether it takes steps now."""
        return self._worker is not None and not self._stopping.is_set()

    def stop(self) -> None:
        """Lets `run` drain: nothing more is claimed, what runs ends or is handed back."""
        self._stopping.set()
        self._woken.set()

    def wake(self) -> None:
        """There is work, or there may be."""
        self._quiet_s = FIRST_POLL_S
        self._woken.set()

    async def run(self) -> None:
        """Registers and works. Raises VanillaError when it cannot register."""
        await self._register()
        beside = [
            asyncio.create_task(self._every(HEARTBEAT_S, self._heartbeat)),
            asyncio.create_task(self._every(LEASES_S, self._look_at_leases)),
            asyncio.create_task(self._every(TEND_S, self._tend)),
            asyncio.create_task(self._every(BURY_S, self._bury)),
        ]
        if self._options.polls:
            beside.append(asyncio.create_task(self._every(CLOCK_S, self._look_at_clock)))
            if not self._database.shared:
                beside.append(asyncio.create_task(self._listen()))
        try:
            while not self._stopping.is_set():
                if self._options.polls or self._done:
                    await self._round(max(self._options.capacity - len(self._running), 0) if self._options.polls else 0)
                await self._rest()
            await self._drain()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            for running in list(self._running.values()):
                if running.task:
                    running.task.cancel()
            await asyncio.gather(*(r.task for r in self._running.values() if r.task), return_exceptions=True)
            with suppress(*_UNREACHED):
                await self._database.call(store.STOP, self._worker)

    async def _register(self) -> None:
        options = self._options
        pools = [pool if options.polls else OWN + pool for pool in options.pools]
        self._worker = await self._database.call(
            store.REGISTER, options.name, pools, options.capacity, dict(options.labels), options.region,
            options.release,
        )  # fmt: skip
        self._tooling = self._tooling_for(str(self._worker))
        self._state = {}
        log.debug("worker_registered", worker_id=str(self._worker), pools=options.pools, capacity=options.capacity)

    async def _every(self, seconds: float, act: Any) -> None:
        while True:
            await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 (workers do not look all at once)
            try:
                await act()
            except _UNREACHED as error:
                log.warning("worker_not_reached", what=act.__name__.strip("_"), error=str(error))

    async def _rest(self) -> None:
        """Until there is something to tell or to take: soon after there was something, within a second at last."""
        if self._done or (self._woken.is_set() and len(self._running) < self._options.capacity):
            self._woken.clear()
            return
        self._woken.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), self._quiet_s)
        self._quiet_s = min(self._quiet_s * 2, POLL_S)

    async def _round(self, free: int) -> None:
        done, self._done = self._done[:500], self._done[500:]
        leases = {outcome["lease"] for outcome in done}
        self._telling |= leases
        worker = self._worker
        try:
            answer = await self._database.call(store.TICK, worker, done, free, self._state)
        except _UNREACHED as error:
            self._done = done + self._done
            await self._not_told(error, done, worker)
            return
        finally:
            self._telling -= leases
        self._state = answer["state"]
        if self._told is not None:
            for execution in {one["execution_id"] for one in done if one["outcome"] in ("succeeded", "failed")}:
                self._told(execution, None)
        for lease in answer["stale"]:
            log.info("step_lost", lease=lease)
        for claim in answer["steps"]:
            self._start(claim)
        if answer["steps"]:
            self._quiet_s = FIRST_POLL_S

    async def _not_told(self, error: BaseException, done: list[dict[str, Any]], worker: UUID | None) -> None:
        if isinstance(error, VanillaError) and error.name == "invalid_state":
            await self._begin_again(worker, error.message)
            return
        log.warning("round_not_told", outcomes=len(done), error=str(error))
        if _of_an_outcome(error):
            await self._tell_one_by_one(done)
        else:
            await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 (jitter)

    async def _begin_again(self, worker: UUID | None, why: str) -> None:
        """Declared dead while it was away: its steps are others' by now, and it is another worker."""
        async with self._beginning:
            if worker != self._worker:
                return  # it is already: heartbeat and round learn of it one after the other
            log.warning("worker_dead", worker_id=str(worker), why=why)
            for running in list(self._running.values()):
                self._give_up(running)
            self._done = []
            for attended in self._attended.values():
                attended.done = []
            try:
                await self._register()
            except _UNREACHED as error:  # the next round is refused too, and this is tried again
                log.warning("worker_not_reached", what="register", error=str(error))
                await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 (jitter)

    async def _tell_one_by_one(self, done: list[dict[str, Any]]) -> None:
        """One of them cannot be stored: it alone fails, the others are told."""
        self._done = self._done[len(done) :]
        for outcome in done:
            try:
                await self._database.call(store.TICK, self._worker, [outcome], 0, {})
            except _UNREACHED as error:
                if not _of_an_outcome(error):
                    self._done.append(outcome)  # it is as good as before
                    continue
                log.error("outcome_not_stored", execution_id=outcome["execution_id"], error=str(error))
                told = {"code": "internal_error", "message": "The outcome could not be stored."}
                keys = ("lease", "attempt", "tenant_id", "execution_id", "n", "item", "node")
                failed = {key: outcome[key] for key in keys} | {"outcome": "failed", "error": told}
                with suppress(*_UNREACHED):  # its deadline ends it
                    await self._database.call(store.TICK, self._worker, [failed], 0, {})

    def _start(self, claim: Mapping[str, Any], admitted: Admitted | None = None) -> None:
        step = Step.from_json(claim)
        if admitted is not None:
            step = replace(step, admitted=admitted)
        if attended := self._attended.get(step.execution_id):
            attended.running += 1
        key = {name: claim[name] for name in ("lease", "attempt", "tenant_id", "execution_id", "n", "item", "node")}
        running = self._running[step.lease] = _Running(step, key)
        running.task = asyncio.create_task(self._compute(running))

    async def _compute(self, running: _Running) -> None:
        step, loop = running.step, asyncio.get_running_loop()
        began = loop.time()
        try:
            plan = await self._plan(step)
            if self._starts and step.node == plan.speaker and step.execution_id not in self._attended:
                await asyncio.wait(self._starts)  # one of them may be this run's, whose words somebody is to hear
            outcome = (await execute(step, plan, self._tooling_of(step), running.calls)).json()
        except asyncio.CancelledError:
            if running.taken_away:
                return
            outcome = handed_back(step, running.calls).json()
        except _UNREACHED as error:
            log.warning("plan_not_read", execution_id=step.execution_id, error=str(error))
            outcome = handed_back(step, running.calls).json()
        except ValidationError as error:
            # published by SQL alone, or by a release that takes more
            wrong = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, wrong["loc"]))
            log.warning("plan_not_valid", execution_id=step.execution_id, field=field, problem=wrong["msg"])
            message = f"This release cannot run the definition: {field}: {wrong['msg']}."
            outcome = Failure("invalid_definition", message).outcome([]).json()
        finally:
            self._running.pop(step.lease, None)
            attended = self._attended.get(step.execution_id)
            if attended is not None:
                attended.running -= 1
                attended.news.set()
        kind = outcome["outcome"]
        self._report.finished += kind != "failed"
        self._report.failed += kind == "failed"
        self._report.latency_ms += (loop.time() - began) * 1000
        metrics.STEPS.labels(kind).inc()
        if attended is not None and self.ready:
            attended.done.append(outcome | running.key)
        else:
            self._done.append(outcome | running.key)
            self._woken.set()

    def _tooling_of(self, step: Step) -> Tooling:
        assert self._tooling is not None
        attended = self._attended.get(step.execution_id)
        if attended is None or attended.words is None:
            return self._tooling
        return replace(self._tooling, words=attended.words)

    def attend(self, tenant_id: UUID, execution_id: UUID, words: OpenWords | None = None) -> Attended | None:
        """Somebody in this process waits for a run: its steps are computed here, as far as this worker may have them.

        `words` gets those of the model call that ends it. None when another waits for it here already.
        """
        name = str(execution_id)
        if name in self._attended or not self.ready:
            return None
        self._attended[name] = attended = Attended(tenant_id, execution_id, words)
        attended.running = sum(running.step.execution_id == name for running in self._running.values())
        return attended

    @contextmanager
    def about_to_attend(self) -> Iterator[None]:
        """Within it a run is started and attended: steps that are taken meanwhile are computed after it."""
        start = asyncio.get_running_loop().create_future()
        self._starts.add(start)
        try:
            yield
        finally:
            self._starts.discard(start)
            start.set_result(None)

    def leave(self, attended: Attended) -> None:
        """Nobody waits for it any more: what this worker has of it ends as any other step."""
        self._attended.pop(str(attended.execution_id), None)
        if attended.done:
            self._leave_to_all(attended.done)
            attended.done = []

    def take(self, claims: Sequence[Mapping[str, Any]], admitted: Admitted | None = None) -> None:
        """Computes steps that a statement has claimed for this worker; `admitted` is the call of the only one."""
        for claim in claims:
            self._start(claim, admitted)

    def opening(self, tenant_id: str, workflow_id: str, version: int, given: Mapping[str, Any]) -> Opening | None:
        """What is known of a run before it begins; None when this worker does not know its definition yet."""
        plan = self._plans.get((tenant_id, workflow_id, version))
        return None if plan is None else opening(plan, given)

    def room(self, attended: Attended | None = None) -> int:
        """How many steps of an attended run it takes: one always, who waits has a place; more within its capacity."""
        alone = 1 if self.ready and (attended is None or not attended.running) else 0
        return max(min(self._options.capacity - len(self._running), 1000) if self.ready else 0, alone)

    async def look(self, attended: Attended) -> None:
        """A round for an attended run: tells what came of its steps, takes what can run, sees how it ended.

        What cannot be told now is told by the next round of all.
        """
        done, attended.done = attended.done, []
        leases, worker = {outcome["lease"] for outcome in done}, self._worker
        self._telling |= leases
        try:
            answer = await self._database.call(
                store.TICK_RUN, worker, done, self.room(attended), attended.tenant_id, attended.execution_id
            )
        except _UNREACHED as error:
            if isinstance(error, VanillaError) and error.name == "invalid_state":
                await self._begin_again(worker, error.message)
                return
            log.warning("round_not_told", outcomes=len(done), error=str(error))
            self._leave_to_all(done)
            attended.alone = False  # it does not hear of them
            return
        except asyncio.CancelledError:  # whoever waited does not any more; it may be told already, and then is stale
            self._leave_to_all(done)
            raise
        finally:
            self._telling -= leases
        attended.heard(done, answer)
        if done and self._told is not None:
            self._told(str(attended.execution_id), attended)
        self.take(answer["steps"])

    def _leave_to_all(self, done: list[dict[str, Any]]) -> None:
        """The round of all tells them, and knows what to do with what cannot be told."""
        self._done += done
        self._woken.set()

    async def _plan(self, step: Step) -> Plan:
        key = (step.tenant_id, step.workflow_id, step.version)
        if key not in self._plans:
            found = await self._database.call(store.PLAN, UUID(step.tenant_id), UUID(step.workflow_id), step.version)
            if len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = Plan.from_json(found)
        return self._plans[key]

    def _give_up(self, running: _Running) -> None:
        running.taken_away = True
        if attended := self._attended.get(running.step.execution_id):
            attended.alone = False
        self._running.pop(running.step.lease, None)
        if running.task is not None:
            running.task.cancel()

    async def _look_at_leases(self) -> None:
        """Stops what was cancelled or taken away; hands back what the answer to a lost round had given it."""
        known = set(self._running)
        held = {row["lease"]: row for row in await self._database.call(store.LEASES, self._worker)}
        for lease in known - held.keys():
            if running := self._running.get(lease):
                self._give_up(running)
        waiting = [outcome for attended in self._attended.values() for outcome in attended.done]
        told = self._telling | {outcome["lease"] for outcome in self._done + waiting}
        unknown = held.keys() - known - self._running.keys() - told
        # a round that is under way may have claimed them: what is still unknown at the next look was lost
        lost = unknown & self._unknown
        self._unknown = unknown - lost
        self._done += [held[lease] | {"node": "", "outcome": "handed_back"} for lease in lost]
        if lost:
            self._woken.set()

    async def _heartbeat(self) -> None:
        worker, report, self._report = self._worker, self._report, _Report()
        told = {
            "in_flight": len(self._running),
            "finished": report.finished,
            "failed": report.failed,
            "latency_ms_sum": round(report.latency_ms),
        }
        try:
            answer = await self._database.call(store.HEARTBEAT, worker, told)
        except _UNREACHED:
            self._report.add(report)
            raise
        if answer["status"] == "draining":
            self.stop()
        elif answer["status"] != "active":
            await self._begin_again(worker, answer["status"])

    @property
    def _needed(self) -> bool:
        """Whether it looks after what time brings: always, or while somebody waits, who may have no other worker."""
        return self._options.polls or bool(self._attended)

    async def _tend(self) -> None:
        if self._needed and await self._database.call(store.TEND):
            self.wake()

    async def _bury(self) -> None:
        if self._needed and await self._database.call(store.BURY):
            self.wake()

    async def _look_at_clock(self) -> None:
        if await start_due(self._database):
            self.wake()

    async def _listen(self) -> None:
        """Hears of work at once; without it the worker looks every second."""
        while True:
            try:
                async with self._database.listener(store.CHANNEL, self._heard) as ended:
                    await ended
            except _UNREACHED as error:
                log.warning("worker_not_listening", error=str(error))
            await asyncio.sleep(1)

    def _heard(self, pool: str) -> None:
        if pool in self._options.pools:
            self.wake()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(*_UNREACHED):
            await self._database.call(store.DRAIN, self._worker)
        hand_back_at, leave_at = loop.time() + self._drain_s, loop.time() + self._drain_s + LEAVE_S
        while (self._running or self._done) and loop.time() < leave_at:
            if self._done:
                await self._round(0)
                continue
            if loop.time() >= hand_back_at:
                for running in self._running.values():
                    if running.task is not None:
                        running.task.cancel()
            self._woken.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), 0.5)


def _of_an_outcome(error: BaseException) -> bool:
    """Whether the database refuses what an outcome says, which it would again; not that it is away or busy."""
    if isinstance(error, VanillaError):
        return error.name == "invalid_request"
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate[:2] in ("22", "23")
