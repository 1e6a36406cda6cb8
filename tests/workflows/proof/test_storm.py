"""Everything at once on the same executions: no deadlock, no error but refusals, nothing lost or left over."""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from tests.concurrency.test_wallet import connections
from tests.conftest import LONG, Cluster, Person, as_person
from tests.workflows.hands import Hands, Room, Step, room, workflow
from tests.workflows.proof.graphs import WITHIN
from tests.workflows.proof.invariants import require_invariants
from tests.workflows.proof.support import DEPLOY
from tests.workflows.test_claims import ADMIT, CALL, key

SECONDS = 120 if LONG else 8
ASKED = {"kind": "approval", "title": "?", "prompt": "", "approvers": ["role:admin"], "quorum": 1, "deadline_s": 1}
GATE = {"on_fail": "retry", "retry": {"node": "a", "times": 3}}
SHAPES: dict[str, dict[str, Any]] = {
    "wide": workflow("a b c d e f", "a>f b>f c>f d>f e>f", estimate_tokens=500),
    "gate": workflow("a side g=gate b w=wait", "a>g a>side g>b side>b w>b", g=GATE, w={"seconds": 1}),
    "map": workflow("a=map b", "a>b", a={"over": "input.list", "item": {"kind": "transform", "value": "item"}}),
    "people": workflow("a=approval b s=signal c", "a>b:approved a>b:rejected a>b:expired s>c:received s>c:expired",
                       a={"title": "?", "approvers": ["role:admin"]}, s={"signal": "go"}),
    "within": workflow("a=workflow b=workflow c", "a>c b>c", a={"ref": "wide"}, b={"ref": "gate"}, estimate_tokens=100),
    "engines": workflow("a=engine b=engine c", "a>c b>c", a={"ref": "wide"}, b={"ref": "gate"}),
    "slots": workflow("a b", "a>b", concurrency={"key": "'k'", "limit": 2}),
}  # fmt: skip


@pytest.fixture
async def desk(cluster: Cluster) -> AsyncIterator[Room]:
    async with room(cluster) as made:
        # a deadlock is looked for soon, so that the storm finds many
        await made.operator.execute(f"alter database \"{made.name}\" set deadlock_timeout = '50 ms'")
        yield made


class Storm:
    """Who does what at the same time; `refused` counts the refusals by code, everything else is in `failures`."""

    def __init__(self, desk: Room, seed: int):
        self.desk = desk
        self.dice = random.Random(seed)
        self.people: list[Person] = []
        self.shapes: list[tuple[Person, str, uuid.UUID]] = []
        self.executions: list[uuid.UUID] = []
        self.held: dict[int, dict[str, Any]] = {}
        self.slugs: dict[tuple[uuid.UUID, str], str] = {}
        self.refused: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.ends = time.monotonic() + SECONDS

    async def join(self) -> None:
        """A new person with a workflow of every shape."""
        person = await self.desk.people.user(balance=100_000)
        for name, shape in SHAPES.items():
            id_ = await self.desk.publish(shape, person)
            slug = await self.desk.operator.fetchval("select slug from ai_workflows where id = $1", id_)
            self.slugs[person.identity.user_id, name] = slug
            if name in ("wide", "gate"):
                await self.desk.operator.fetchval(DEPLOY, slug, id_)
            self.shapes.append((person, name, id_))
        self.people.append(person)

    async def repeat(self, name: str, act: Callable[[], Awaitable[Any]]) -> None:
        while time.monotonic() < self.ends:
            try:
                await act()
                self.done[name] += 1
            except asyncpg.PostgresError as error:
                if str(error.sqlstate).startswith("VS"):
                    self.refused[f"{name} {error.sqlstate}"] += 1
                else:
                    self.failures[f"{name} {error.sqlstate} {error.args[0]}"] += 1
            await asyncio.sleep(0)

    def some(self) -> uuid.UUID:
        return self.dice.choice(self.executions[-30:])

    def answer(self, step: Step) -> dict[str, Any]:
        """Any outcome that the kind of the node can have."""
        calls = {"calls": list(step.claim.get("made", []))}
        if self.dice.random() < 0.05:
            return step.failed(retryable=self.dice.random() < 0.7) | calls
        if self.dice.random() < 0.03:
            return step.done("handed_back") | calls
        if step.node == "$start":
            return step.done("go", key="k", limit=2)
        kind = step.claim["kind"]
        if kind == "gate":
            passed = self.dice.random() < 0.5
            return step.done("gate", passed=passed, score=int(passed), threshold=1, feedback="", value=1) | calls
        if kind == "map" and step.item is None:
            return step.done("items", items=list(range(self.dice.randint(0, 6))), concurrency=3)
        waits: dict[str, dict[str, Any]] = {
            "approval": ASKED,
            "signal": {"kind": "signal", "name": "go", "timeout_s": 1, "check": False},
            "wait": {"kind": "timer", "due_at": "2020-01-01T00:00:00Z"},
        }
        if kind in WITHIN and not step.decision:
            ref = self.slugs[uuid.UUID(step.user_id), "wide" if step.node == "a" else "gate"]
            return step.done("waiting", wait={"kind": "execution", "of": kind, "ref": ref, "input": {}}, state=None)
        if kind in waits:
            return step.done("waiting", wait=waits[kind], state=None)
        return step.done(output=step.node) | calls


async def work(
    storm: Storm, connection: asyncpg.Connection, beside: asyncpg.Connection
) -> Callable[[], Awaitable[None]]:
    """A worker; its calls are admitted on another connection, some of them while it tells outcomes."""
    register = "select vanilla.register_worker('hands', '{default}', 100, '{}', '', 'test')"
    hands = Hands(connection, await connection.fetchval(register))
    kept: list[Step] = []
    kinds: dict[tuple[str, int], dict[str, str]] = {}

    async def kind_of(step: Step) -> str:
        version = (step.workflow_id, step.version)
        if version not in kinds:
            plan = await connection.fetchval(
                "select vanilla.workflow_plan($1, $2, $3)", uuid.UUID(step.tenant_id), uuid.UUID(version[0]), version[1]
            )
            if plan is None:
                return "transform"
            kinds[version] = {node["id"]: node["kind"] for node in plan["definition"]["nodes"]}
        return kinds[version].get(step.node, step.node)

    async def admit(steps: list[Step]) -> None:
        for step in steps:
            if storm.dice.random() < 0.5:
                try:
                    made = await beside.fetchval(ADMIT, uuid.uuid4(), key(hands, step))
                    step.claim.setdefault("made", []).append(CALL | {"hold_id": made["hold_id"]})
                except asyncpg.PostgresError as error:
                    if str(error.sqlstate).startswith("VS"):
                        storm.refused[f"admit {error.sqlstate}"] += 1
                    else:
                        storm.failures[f"admit {error.sqlstate} {error.args[0]}"] += 1

    async def act() -> None:
        nonlocal hands
        storm.dice.shuffle(kept)
        count = storm.dice.randint(0, len(kept))
        told, rest = kept[:count], kept[count:]
        outcomes = [storm.answer(step) for step in told]
        try:
            admitting = asyncio.create_task(admit(rest))
            claimed = await hands.tick(*outcomes, n=storm.dice.randint(0, 12))
            await admitting
        except asyncpg.PostgresError as error:
            await admitting
            if error.sqlstate == "VS409":
                hands = Hands(connection, await connection.fetchval(register))
                kept.clear()
            elif error.sqlstate == "VS404":
                raise AssertionError("an outcome named a hold that is not there") from error
            raise
        kept[:] = rest + claimed
        for step in claimed:
            step.claim["kind"] = await kind_of(step)
        if told and storm.dice.random() < 0.1:
            await hands.tick(*outcomes[:2], n=0)  # told twice

    return act


async def test_nobody_waits_for_each_other(desk: Room, cluster: Cluster) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    storm = Storm(desk, seed)
    for _ in range(3):
        await storm.join()
    admin = await desk.people.user("admin")
    async with connections(cluster, desk.name, 16) as crowd:
        starter, tender, other_tender, burier, *askers = crowd[:8]
        workers = [await work(storm, crowd[n], crowd[n + 1]) for n in range(8, 16, 2)]

        async def start() -> None:
            person, _, id_ = storm.dice.choice(storm.shapes)
            started = await starter.fetchval(
                "select start_workflow($1, '{}', p_user_id => $2)", id_, person.identity.user_id
            )
            storm.executions.append(uuid.UUID(started["execution_id"]))
            await asyncio.sleep(0.01 if len(storm.executions) > 40 else 0)

        async def bury() -> None:
            await asyncio.sleep(0.15)
            await burier.execute(
                "update worker_registry set heartbeat_at = now() - interval '1 minute' where id in ("
                " select id from worker_registry where status in ('registered', 'active') order by random() limit 2)"
            )
            await burier.fetchval("select vanilla.bury_workers()")

        async def people(connection: asyncpg.Connection) -> None:
            if not storm.executions:
                await asyncio.sleep(0.01)
                return
            what = storm.dice.choice(
                ["cancel", "pause", "resume", "resume", "restart", "signal", "approve", "approve", "approve"]
            )
            if what == "approve":
                found = await connection.fetchval(
                    "select id from workflow_approvals where status = 'open' order by random() limit 1"
                )
                async with as_person(connection, admin):
                    await connection.fetchval(
                        "select decide_approval($1, $2)", found, storm.dice.choice(["approved", "rejected"])
                    )
            elif what == "signal":
                await connection.fetchval("select signal_execution($1, 'go', '1')", storm.some())
            else:
                await connection.fetchval(f"select {what}_execution($1)", storm.some())

        async def erase() -> None:
            await asyncio.sleep(1)
            await storm.join()
            person = storm.people.pop(0)
            storm.shapes = [shape for shape in storm.shapes if shape[0] is not person]
            await desk.operator.fetchval("select erase_user($1, 'left')", person.identity.user_id)

        await asyncio.gather(
            storm.repeat("start", start),
            storm.repeat("tend", lambda: tender.fetchval("select vanilla.tend_workflows()")),
            storm.repeat("tend", lambda: other_tender.fetchval("select vanilla.tend_workflows()")),
            storm.repeat("bury", bury),
            storm.repeat("erase", erase),
            *(storm.repeat("people", lambda c=c: people(c)) for c in askers),  # type: ignore[misc]
            *(storm.repeat("work", act) for act in workers),
        )
    print(storm.done, storm.refused)
    assert storm.failures == {}
    assert storm.done["work"] > 50
    await require_invariants(desk.operator)
    for execution in await desk.operator.fetch(
        "select id from workflow_executions where finished_at is null and parent_execution_id is null"
    ):
        await desk.operator.fetchval("select cancel_execution($1)", execution["id"])
    await desk.operator.fetchval("select vanilla.tend_workflows(10000)")
    await require_invariants(desk.operator)
    left = await desk.operator.fetchrow(
        "select (select count(*) from workflow_queue), (select count(*) from workflow_timers),"
        " (select count(*) from user_token_holds where state = 'open'),"
        " (select sum(reserved_tokens) from user_token_wallets)"
    )
    assert tuple(left) == (0, 0, 0, 0)
