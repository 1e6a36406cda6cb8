"""A small model of the runner in the database: what its transactions do to executions, queue, leases, timers and holds.

An action is a transaction of the SQL and has the name of its function; between two of them anything else may come,
which is what the search in `explore` tries. Functions that hold the execution's row (finish_steps, cancel_execution,
pause_execution, resume_execution, tend_workflows, reclaim_leases) are one action each, since nothing of the same
execution comes between their reads and writes. Where the SQL does without that lock, two transactions can be under way
at once, and the model has two actions: a claim does not lock the execution, and sees the queue as committed; admit_call
reads its lease, and writes its hold under the lock of the queue's row, which takers wait for.

The workflow is a chain of two steps beside a wait that a timer ends; or (`Limits.joined`) the second step is a join of
any of both, before which what has not ended is given up. A worker may die at any time, say an outcome
again, or say it after its lease was taken. `Rules` are the lines of SQL that make it right; each can be left out.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

STEPS = ("a", "b", "w")
AFTER = {"a": "b"}
"""b follows a; w begins at once, waits for a timer and ends."""
LOST_MOST = 2


@dataclass(frozen=True)
class Rules:
    """What the SQL does; False: it does not."""

    fence: bool = True
    """finish_steps deletes the queue's row with worker and lease, and drops the outcome when there is none."""
    cancel_empties_queue: bool = True
    """end_execution deletes what is queued."""
    cancel_stops_timers: bool = True
    """end_execution deletes the timers."""
    cancel_releases: bool = True
    """end_execution returns the holds."""
    finish_locks: bool = True
    """finish_steps locks the execution: without, its reads come before another's commit and its writes after."""
    reclaim_frees: bool = True
    """lose_step takes the lease away."""
    reclaim_releases: bool = True
    """lose_step returns the lease's holds."""
    reclaim_waits_for_admission: bool = True
    """reclaim_leases locks the queue's row for update, which a call that is being admitted holds."""
    reclaim_minds_pause: bool = True
    """lose_step takes the step of a paused execution out of the queue."""
    resume_queues_ready: bool = True
    """resume_execution queues what became ready, or was taken out of the queue, while it was paused."""
    pause_empties_queue: bool = True
    """pause_execution deletes what nobody has."""
    advance_minds_pause: bool = True
    """advance queues only for what is running."""
    stale_releases: bool = True
    """finish_steps returns the holds of a lease whose outcome it drops, or whose outcome does not settle them."""
    join_empties_queue: bool = True
    """stop_steps deletes what is queued of a step that is given up."""
    join_stops_timers: bool = True
    """stop_steps deletes its timer."""
    join_releases: bool = True
    """stop_steps returns the holds of its lease."""


class Lease(NamedTuple):
    """A step in a worker's hands: what the worker believes, whatever the database thinks by now."""

    worker: int
    step: str
    number: int
    call: str = ""
    """of its model call: "", asked (being admitted), held, unknown (admitted, but the answer was lost)."""


class State(NamedTuple):
    """What is committed, and what the workers have in mind."""

    status: str = "running"
    steps: tuple[str, ...] = ("ready", "pending", "ready")
    queue: tuple[tuple[str, int], ...] = (("a", 0), ("w", 0))
    """Steps that can be claimed (lease 0) or are (the number of the lease)."""
    timers: tuple[str, ...] = ()
    fired: bool = False
    """The timer of w has come (what is said twice must not set it again)."""
    holds: tuple[int, ...] = ()
    """Open holds, by the lease for which they were admitted."""
    hands: tuple[Lease, ...] = ()
    begun: tuple[tuple[Lease, str], ...] = ()
    """Without the lock of finish_steps: outcomes that have been looked at and are not written yet."""
    leases: int = 0
    lost: int = 0
    dead: int = 0
    repeats: int = 0
    paused: int = 0
    committed: tuple[int, ...] = (0, 0, 0)
    settled: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()
    """Leases that were taken away."""
    faults: tuple[str, ...] = ()
    """Broken invariants of what happened, rather than of what is."""

    def step(self, name: str) -> str:
        return self.steps[STEPS.index(name)]

    def with_step(self, name: str, status: str) -> "State":
        return self._replace(
            steps=tuple(status if step == name else old for step, old in zip(STEPS, self.steps, strict=True))
        )

    def leased(self, lease: Lease) -> bool:
        return (lease.step, lease.number) in self.queue


@dataclass(frozen=True)
class Limits:
    """How much happens in one life."""

    workers: int = 2
    deaths: int = 1
    repeats: int = 1
    pauses: int = 1
    cancels: int = 1
    leases: int = 4
    joined: bool = False
    """b is a join of any of a and w."""


class Model:
    def __init__(self, rules: Rules, limits: Limits):
        self.rules, self.limits = rules, limits

    def next(self, s: State) -> Iterator[tuple[str, State]]:
        """Every transaction that can be the next, and what it leaves."""
        yield from self.claim_steps(s)
        yield from self.admit_call(s)
        yield from self.finish_steps(s)
        yield from self.reclaim_leases(s)
        yield from self.people(s)
        yield from self.tend_workflows(s)

    def claim_steps(self, s: State) -> Iterator[tuple[str, State]]:
        """Locks rows of the queue only: whatever is committed there and free is taken, by any worker."""
        if s.leases == self.limits.leases:
            return
        for step, number in s.queue:
            if number:
                continue
            for worker in range(self.limits.workers):
                if s.dead >> worker & 1:
                    continue
                lease = Lease(worker, step, s.leases + 1)
                queue = tuple(sorted((name, lease.number if name == step else old) for name, old in s.queue))
                fault = () if s.status == "running" else (f"a step of an execution that is {s.status} was started",)
                yield (
                    f"tick {worker} claims {step}",
                    s._replace(queue=queue, leases=lease.number, hands=(*s.hands, lease), faults=s.faults + fault),
                )

    def admit_call(self, s: State) -> Iterator[tuple[str, State]]:
        """Begins and commits; between the two it holds the queue's row, as far as others look at that."""
        for lease in s.hands:
            if lease.step != "a":
                continue
            if lease.call == "" and s.leased(lease):
                yield (
                    f"admit {lease.number} begins",
                    s._replace(hands=_swap(s.hands, lease, lease._replace(call="asked"))),
                )
            elif lease.call == "asked":
                yield from self._admitted(s, lease)

    def _admitted(self, s: State, lease: Lease) -> Iterator[tuple[str, State]]:
        held = s._replace(holds=tuple(sorted((*s.holds, lease.number))))
        if self.rules.reclaim_waits_for_admission and not s.leased(lease):
            # who was taking it away had the row: this one gives way, and its transaction is undone
            yield (
                f"admit {lease.number} is refused",
                s._replace(hands=_swap(s.hands, lease, lease._replace(call="refused"))),
            )
            return
        yield f"admit {lease.number}", held._replace(hands=_swap(s.hands, lease, lease._replace(call="held")))
        yield (
            f"admit {lease.number}, the answer is lost",
            held._replace(hands=_swap(s.hands, lease, lease._replace(call="unknown"))),
        )

    def finish_steps(self, s: State) -> Iterator[tuple[str, State]]:
        for lease in s.hands:
            if s.dead >> lease.worker & 1 or lease.call == "asked" or self._waits(s, lease.step):
                continue
            forgets = s._replace(hands=tuple(other for other in s.hands if other != lease))
            for outcome in ("done", "back"):
                if self.rules.finish_locks:
                    yield f"tick {outcome} {lease.number}", self._write(forgets, lease, outcome, s.leased(lease))
                    if s.repeats < self.limits.repeats:  # the answer is lost: it will say it again
                        yield (
                            f"tick {outcome} {lease.number}, the answer is lost",
                            self._write(s, lease, outcome, s.leased(lease))._replace(repeats=s.repeats + 1),
                        )
                elif s.leased(lease) or not self.rules.fence:
                    yield f"tick {outcome} {lease.number} looks", forgets._replace(begun=(*s.begun, (lease, outcome)))
        for begun in s.begun:
            waits = s._replace(begun=tuple(other for other in s.begun if other != begun))
            yield f"tick {begun[1]} {begun[0].number} writes", self._write(waits, *begun, leased=True)

    def _waits(self, s: State, step: str) -> bool:
        """Its outcome gives up a step whose call is being admitted: that has the row in the queue."""
        return (
            self.limits.joined
            and s.step("b") == "pending"
            and any(lease.call == "asked" and lease.step != step and s.leased(lease) for lease in s.hands)
        )

    def _write(self, s: State, lease: Lease, outcome: str, leased: bool) -> State:
        """The outcome of a lease, under the execution's lock."""
        mine = tuple(number for number in s.holds if number == lease.number)
        others = tuple(number for number in s.holds if number != lease.number)
        if self.rules.fence and not leased:
            return s._replace(holds=others) if self.rules.stale_releases else s
        s = s._replace(queue=tuple(row for row in s.queue if row[0] != lease.step))
        if outcome == "done" and lease.call == "held" and mine:
            s = s._replace(holds=others, settled=(*s.settled, lease.number))
        elif self.rules.stale_releases:
            s = s._replace(holds=others)
        if outcome == "back":
            return self._queue(s.with_step(lease.step, "ready"), lease.step)
        if lease.step == "w" and not s.fired:
            return s.with_step("w", "waiting")._replace(timers=("w",))
        return self._decide(s, lease.step)

    def _decide(self, s: State, step: str) -> State:
        committed = tuple(count + (name == step) for name, count in zip(STEPS, s.committed, strict=True))
        fault = (
            () if s.status in ("running", "paused") else (f"a step of an execution that is {s.status} was committed",)
        )
        if s.step(step) == "skipped":
            fault = (*fault, "a step that was given up was committed")
        s = s.with_step(step, "done")._replace(committed=committed, faults=s.faults + fault)
        after = AFTER.get(step, "b" if self.limits.joined and step == "w" else None)
        if after and s.step(after) == "pending":
            s = self._queue(s.with_step(after, "ready"), after)
            if self.limits.joined:
                s = self._give_up(s, "w" if step == "a" else "a")
        if all(status in ("done", "skipped") for status in s.steps):
            s = s._replace(status="succeeded", timers=(), holds=())
        return s

    def _give_up(self, s: State, step: str) -> State:
        """The other one before the join: it has not ended, or the join would not have waited."""
        leases = {number for name, number in s.queue if name == step and number}
        s = s.with_step(step, "skipped")
        if self.rules.join_empties_queue:
            queue = tuple(row for row in s.queue if row[0] != step)
            s = s._replace(queue=queue, taken=tuple(sorted({*s.taken, *leases})))
        if self.rules.join_stops_timers and step == "w":
            s = s._replace(timers=())
        if self.rules.join_releases:
            s = s._replace(holds=tuple(number for number in s.holds if number not in leases))
        return s

    def _queue(self, s: State, step: str) -> State:
        if (s.status == "paused" and self.rules.advance_minds_pause) or any(row[0] == step for row in s.queue):
            return s
        return s._replace(queue=tuple(sorted((*s.queue, (step, 0)))))

    def reclaim_leases(self, s: State) -> Iterator[tuple[str, State]]:
        """A worker dies, or is slow and only taken for dead; then its steps are taken from it."""
        for worker in range(self.limits.workers):
            if s.dead >> worker & 1:
                continue
            if s.dead.bit_count() < self.limits.deaths:
                yield f"worker {worker} dies", s._replace(dead=s.dead | 1 << worker)
        for lease in (*s.hands, *(lease for lease, _ in s.begun)):
            if not s.leased(lease) or s.lost >= LOST_MOST or s.status not in ("running", "paused"):
                continue
            if self.rules.reclaim_waits_for_admission and lease.call == "asked":
                continue
            if not s.dead >> lease.worker & 1 and s.lost:
                continue
            yield f"reclaim {lease.number}", self._lose(s._replace(lost=s.lost + 1), lease)

    def _lose(self, s: State, lease: Lease) -> State:
        if self.rules.reclaim_releases:
            s = s._replace(holds=tuple(number for number in s.holds if number != lease.number))
        s = s._replace(taken=tuple(sorted((*s.taken, lease.number))))
        if not self.rules.reclaim_frees:
            return s
        rest = tuple(row for row in s.queue if row[0] != lease.step)
        if s.status == "paused" and self.rules.reclaim_minds_pause:
            return s._replace(queue=rest)
        return s._replace(queue=tuple(sorted((*rest, (lease.step, 0)))))

    def people(self, s: State) -> Iterator[tuple[str, State]]:
        if s.status in ("running", "paused") and self.limits.cancels:
            ended = s._replace(status="cancelled")
            if self.rules.cancel_empties_queue:
                ended = ended._replace(queue=())
            if self.rules.cancel_stops_timers:
                ended = ended._replace(timers=())
            if self.rules.cancel_releases:
                ended = ended._replace(holds=())
            # it deletes rows of the queue: a call that is being admitted has one of them, and is waited for
            if not any(lease.call == "asked" and s.leased(lease) for lease in s.hands):
                yield "cancel", ended
        if s.status == "running" and s.paused < self.limits.pauses:
            queue = tuple(row for row in s.queue if row[1]) if self.rules.pause_empties_queue else s.queue
            yield "pause", s._replace(status="paused", queue=queue, paused=s.paused + 1)
        if s.status == "paused":
            running = s._replace(status="running")
            for step in STEPS:
                if self.rules.resume_queues_ready and s.step(step) == "ready":
                    running = self._queue(running, step)
            yield "resume", running

    def tend_workflows(self, s: State) -> Iterator[tuple[str, State]]:
        if "w" not in s.timers:
            return
        fired = s._replace(timers=(), fired=True)
        if s.status in ("running", "paused") and not self._waits(s, "w"):
            yield "tend", self._decide(fired, "w") if s.step("w") == "waiting" else fired

    def broken(self, s: State) -> list[str]:
        """Invariants that do not hold in this state."""
        found = list(s.faults)
        if max(s.committed) > 1:
            found.append("a committed step was committed again")
        if len(set(s.settled)) < len(s.settled):
            found.append("a lease was settled twice")
        ended = s.status in ("succeeded", "cancelled")
        if ended and s.queue:
            found.append("something is queued of an execution that has ended")
        if ended and s.timers:
            found.append("a timer is left of an execution that has ended")
        if ended and s.holds:
            found.append("a hold is open of an execution that has ended")
        if any(s.step(step) == "skipped" for step, _ in s.queue):
            found.append("a step that was given up is queued")
        if any(s.step(step) == "skipped" for step in s.timers):
            found.append("a timer is left of a step that was given up")
        if any(s.step(lease.step) == "skipped" and lease.number in s.holds for lease in s.hands):
            found.append("a hold is open of a step that was given up")
        leases = {number for _, number in s.queue}
        if leases & set(s.taken):
            found.append("a lease that was taken away is still there")
        known = {lease.number for lease in s.hands if not s.dead >> lease.worker & 1}
        if any(number not in leases and number not in known for number in s.holds):
            found.append("a hold is open for a lease that nobody has")
        if s.status == "paused" and any(number == 0 for _, number in s.queue):
            found.append("a step of a paused execution can be claimed")
        if s.status == "running" and not s.queue and not s.timers and not s.begun:
            found.append("a running execution in which nothing can happen")
        queued = {step for step, _ in s.queue}
        if (
            s.status == "running"
            and not s.begun
            and any(s.step(step) == "ready" and step not in queued for step in STEPS)
        ):
            found.append("a step that is ready and not queued")
        return found


def _swap(hands: tuple[Lease, ...], old: Lease, new: Lease) -> tuple[Lease, ...]:
    return tuple(new if lease == old else lease for lease in hands)


@dataclass(frozen=True)
class Found:
    """What a search came to: how many states, and the shortest life to a broken invariant."""

    states: int
    ends: frozenset[str]
    broken: tuple[str, ...] = ()
    life: tuple[str, ...] = ()


def explore(rules: Rules = Rules(), limits: Limits = Limits(), wanted: str = "") -> Found:
    """Every life within the limits, the shortest first, to the first broken invariant, or to the one that is wanted."""
    model, first = Model(rules, limits), State()
    came: dict[State, tuple[State, str] | None] = {first: None}
    left, ends = deque([first]), set[str]()
    while left:
        state = left.popleft()
        if (found := model.broken(state)) and (not wanted or wanted in found):
            return Found(len(came), frozenset(ends), tuple(found), tuple(_life(came, state)))
        ends.add(state.status)
        for name, after in model.next(state):
            if after not in came:
                came[after] = (state, name)
                left.append(after)
    return Found(len(came), frozenset(ends))


def _life(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    life = []
    while step := came[state]:
        state, name = step
        life.append(name)
    return life[::-1]


RULES = [rule.name for rule in fields(Rules)]
