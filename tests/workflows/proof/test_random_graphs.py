"""Whatever the graph, whoever runs what of it when, dies or says it twice: the same end, outputs and charge."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from tests.conftest import LONG, Cluster
from tests.workflows.hands import Hands, Outcome, Room, Step, room, workflow
from tests.workflows.proof.graphs import WITHIN, Graph, answer, graphs, joining
from tests.workflows.proof.invariants import broken, require_invariants
from tests.workflows.proof.support import DEPLOY, ours
from tests.workflows.test_claims import call
from vanilla_saas.database.pool import _prepare

BALANCE = 10_000_000
EXAMPLES = 2000 if LONG else 25
START = """
select vanilla.start_version(u, $2, 1, '{}', null, null, null, $3::smallint) ->> 'execution_id'
from users u where u.id = $1
"""
"""As an engine starts it, with a limit of steps at once."""
CHARGED = """
select sum((l.metadata ->> 'actual')::bigint)::bigint from user_token_ledger l
where l.user_id = $1 and l.seq > $2 and l.direction = 'settle'
"""


@pytest.fixture(scope="module")
async def desk(cluster: Cluster) -> AsyncIterator[Room]:
    async with room(cluster) as made:
        await made.people.set_balance(made.owner, BALANCE)
        yield made
        await require_invariants(made.operator)


@pytest.fixture(scope="module")
async def child(desk: Room) -> str:
    """The slug of a workflow for others to start, and of an engine that runs it; its step calls a model."""
    id_ = await desk.publish(workflow("x=llm", x={"model": "sandbox-small"}))
    slug = str(await desk.operator.fetchval("select slug from ai_workflows where id = $1", id_))
    await desk.operator.fetchval(DEPLOY, slug, id_)
    return slug


@pytest.fixture(scope="module")
async def hands(desk: Room) -> AsyncIterator[list[Hands]]:
    made = [await arrive(desk) for _ in range(3)]
    yield made
    for one in made:
        await one.connection.close()


async def arrive(desk: Room, connection: asyncpg.Connection | None = None) -> Hands:
    if connection is None:
        connection = await asyncpg.connect(desk.cluster.url("vanilla_runtime", desk.name))
        await _prepare(connection)
    return Hands(
        connection,
        await connection.fetchval("select vanilla.register_worker('hands', '{default}', 100, '{}', '', 'test')"),
    )


@dataclass
class Run:
    """One execution of a graph, and who works on it."""

    desk: Room
    graph: Graph
    child: str
    execution: uuid.UUID
    hands: list[Hands]
    dice: random.Random
    kept: dict[int, list[Step]] = field(default_factory=dict)
    told: dict[int, list[Outcome]] = field(default_factory=dict)
    befalling: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One worker at a time, so that no step is lost once more than was counted."""

    async def ended(self) -> bool:
        query = "select finished_at is not null from workflow_executions where id = $1"
        return bool(await self.desk.operator_turn(lambda: self.desk.operator.fetchval(query, self.execution)))

    async def outcomes(self, hands: Hands, steps: list[Step]) -> list[Outcome]:
        made = []
        for step in steps:
            calls: list[dict[str, Any]] = []
            if step.node == "x" or (
                self.graph.node(step.node).calls and (step.item is not None or self.graph.node(step.node).kind == "llm")
            ):
                try:
                    calls.append(await call(hands, step))
                except asyncpg.PostgresError as error:
                    if error.sqlstate not in ("VS409", "VS430"):
                        raise
                    if error.sqlstate == "VS430":
                        made.append(step.done("handed_back", calls=[]))
                        continue
            made.append(answer(self.graph, step, self.child, calls))
        return made

    async def time_passes(self) -> int:
        # but not the hour that a child has
        await self.desk.operator.execute(
            "update workflow_timers set due_at = vanilla.clock() - interval '1 ms' where kind <> 'execution'"
        )
        return await self.desk.tend()

    async def one_after_the_other(self) -> None:
        hands, done = self.hands[0], list[Outcome]()
        for _ in range(2000):
            steps = await hands.tick(*done, n=1)
            done = await self.outcomes(hands, steps)
            if any(outcome.get("passed") is False for outcome in done):
                steps = await hands.tick(*done, n=0)
                done = []
                assert await broken(self.desk.operator) == {}
            elif not steps and not await self.time_passes():
                return

    async def side_by_side(self, disturb: Callable[[int], Awaitable[bool]] | None = None) -> None:
        """Each takes and tells as much as it likes, in any order, until the execution has ended."""
        async with asyncio.timeout(60):
            await asyncio.gather(*(self._work(number, disturb) for number in range(len(self.hands))))

    async def _work(self, number: int, disturb: Callable[[int], Awaitable[bool]] | None) -> None:
        kept = self.kept.setdefault(number, [])
        while not await self.ended():
            if disturb and self.dice.random() < 0.25 and await disturb(number):
                continue
            self.dice.shuffle(kept)
            count = self.dice.randint(0, len(kept))
            now, kept[:] = kept[:count], kept[count:]
            done = await self.outcomes(self.hands[number], now)
            kept += await self.hands[number].tick(*done, *self.told.pop(number, []), n=self.dice.randint(0, 4))
            if any(outcome.get("passed") is False for outcome in done):
                assert await self.desk.operator_turn(lambda: broken(self.desk.operator)) == {}
            if self.dice.random() < 0.1:
                self.told[number] = done  # and says it again
            if not kept:
                await self.desk.operator_turn(self.time_passes)

    async def disturb(self, number: int) -> bool:
        """What befalls a worker; False: nothing, since its steps have been lost often enough."""
        async with self.befalling:
            return await self._befall(number)

    async def _befall(self, number: int) -> bool:
        hands, kept = self.hands[number], self.kept[number]
        lost = await self.desk.operator_turn(
            lambda: self.desk.operator.fetchval("select coalesce(max(lost), 0) from workflow_queue")
        )
        if lost >= 2:
            return False
        done = await self.outcomes(hands, kept[:2])
        what = self.dice.choice(["dies before", "dies after", "answer lost", "taken away"])
        if what == "taken away":  # it does not know yet
            await self.desk.operator_turn(
                lambda: self.desk.operator.fetchval("select vanilla.reclaim_leases($1)", hands.worker)
            )
            return True
        if what == "dies before":
            transaction = hands.connection.transaction()
            await transaction.start()
            await hands.tick(*done, n=2)
        else:
            await hands.tick(*done, n=2)
        if what == "answer lost":  # it tells again, and hands back what it does not know of
            kept[:] = kept[2:]
            known = {step.lease for step in kept}
            held = await hands.connection.fetchval("select vanilla.held_leases($1)", hands.worker)
            back = [lease | {"node": "", "outcome": "handed_back"} for lease in held if lease["lease"] not in known]
            self.told[number] = done + back
            return True
        hands.connection.terminate()
        await self.desk.operator_turn(lambda: self.bury(hands.worker))
        self.hands[number] = await arrive(self.desk)
        kept.clear()
        self.told.pop(number, None)
        return True

    async def bury(self, worker: uuid.UUID) -> None:
        for _ in range(200):  # what it was about to do may be on its way
            await self.desk.operator.execute(  # the others live, without a heartbeat of their own
                "update worker_registry set heartbeat_at = vanilla.clock()"
                " - case when id = $1 then interval '1 minute' else interval '0' end",
                worker,
            )
            if worker in await self.desk.operator.fetchval("select vanilla.bury_workers()"):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("a dead worker is not buried")


async def end_of(run: Run) -> dict[str, Any]:
    """What must not depend on the schedule."""
    found = await run.desk.execution(run.execution)
    outputs = await run.desk.operator.fetch(
        "select n.name, s.status, s.output, n.kind, s.error ->> 'code' as code from workflow_steps s"
        " join workflow_executions e on e.id = s.execution_id join workflow_nodes n using (workflow_id, version, node)"
        " where s.execution_id = $1 and s.item = -1 and n.name not like '$%'",
        run.execution,
    )
    steps = {
        row["name"]: (
            row["status"],
            "gate" if row["kind"] == "gate" and row["status"] == "succeeded" else row["output"],
        )
        for row in outputs
    }
    wallet = await run.desk.people.wallet(run.desk.owner)
    return {
        "status": found["status"],
        "reason": found["reason"],
        "steps": steps,
        "given_up": {row["name"] for row in outputs if row["code"] == "not_needed"},
        "output": found["output"],
        "reserved": wallet["reserved_tokens"],
    }


@ours(EXAMPLES)
@given(graph=st.one_of(graphs(), joining()), seed=st.integers(0, 2**32 - 1), at_once=st.sampled_from([None, 1, 2]))
async def test_the_end_and_the_charge_depend_neither_on_the_mode_nor_on_the_schedule(
    desk: Room, child: str, hands: list[Hands], graph: Graph, seed: int, at_once: int | None
) -> None:
    await clear(desk, hands)
    shape = await desk.publish(graph.definition(child))
    steps, codes = graph.outcome()
    event("fails" if codes else "succeeds")
    charges = []
    # as a sequential engine, as a parallel one, and as any of them
    for schedule, most in (("one after the other", 1), ("side by side", None), ("with deaths", at_once)):
        before = (await desk.people.wallet(desk.owner))["seq"]
        execution = uuid.UUID(await desk.operator.fetchval(START, desk.owner.identity.user_id, shape, most))
        run = Run(desk, graph, child, execution, hands, random.Random(f"{seed} {schedule}"))
        match schedule:
            case "one after the other":
                await run.one_after_the_other()
            case "side by side":
                await run.side_by_side()
            case _:
                await run.side_by_side(run.disturb)
        found = await end_of(run)
        assert found["reserved"] == 0, schedule
        if graph.must_fail() or found["status"] == "failed":
            assert found["status"] == "failed", schedule
            assert found["reason"] in codes
            # what was left of it is stale
            for number, one in enumerate(hands):
                assert await one.tick(*await run.outcomes(one, run.kept.get(number, [])), n=10) == []
        else:
            assert (found["status"], found["reason"]) == ("succeeded", None), (schedule, found)
            assert found["given_up"] <= graph.left()
            event("gives up" if found["given_up"] else "gives nothing up")
            assert without(found["steps"], found["given_up"]) == without(steps, found["given_up"]), schedule
            last = {name: steps[name][1] for name in graph.last() if steps[name][0] == "succeeded"}
            ended = {
                name: "gate" if graph.node(name).kind == "gate" else output for name, output in found["output"].items()
            }
            assert ended == last, schedule
            # a child calls, and may be given up before it does
            if not any(graph.node(name).kind in WITHIN for name in graph.uncertain()):
                charges.append(await desk.operator.fetchval(CHARGED, desk.owner.identity.user_id, before) or 0)
        await run.time_passes()
        assert await broken(desk.operator) == {}
        left = await desk.operator.fetchrow(
            "select (select count(*) from workflow_queue), (select count(*) from workflow_timers)"
        )
        assert tuple(left) == (0, 0), schedule
    assert len(set(charges)) <= 1, charges


@ours(EXAMPLES)
@given(graph=graphs(), seed=st.integers(0, 2**32 - 1))
async def test_a_failed_one_ends_on_a_version_that_mends_it_as_if_it_had_begun_on_it(
    desk: Room, child: str, hands: list[Hands], graph: Graph, seed: int
) -> None:
    assume(graph.must_fail())
    await clear(desk, hands)
    shape, dice = await desk.publish(graph.definition(child)), random.Random(seed)
    run = Run(desk, graph, child, await desk.start(shape), hands, dice)
    await run.side_by_side()
    run.kept.clear()
    run.told.clear()
    ran = {name for name, step in (await end_of(run))["steps"].items() if step[0] == "succeeded"}
    run.graph = graph.mended(dice)
    version = await desk.publish_next(shape, run.graph.definition(child))
    await desk.restart(run.execution, version=version)
    assert await broken(desk.operator) == {}
    kept = {name for name, step in (await end_of(run))["steps"].items() if step[0] == "succeeded"}
    event("keeps something" if kept else "keeps nothing")
    assert kept <= ran
    await run.side_by_side()
    steps, _ = run.graph.outcome()
    found = await end_of(run)
    assert (found["status"], found["reserved"]) == ("succeeded", 0)
    assert found["given_up"] <= run.graph.left()
    assert without(found["steps"], found["given_up"]) == without(steps, found["given_up"])
    await run.time_passes()
    assert await broken(desk.operator) == {}


def without(steps: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: step for name, step in steps.items() if name not in names}


async def clear(desk: Room, hands: list[Hands]) -> None:
    """Nothing of an example that failed is in the way of the next; who died in it is replaced."""
    for row in await desk.operator.fetch(
        "select id from workflow_executions where finished_at is null and parent_execution_id is null"
    ):
        await desk.operator.fetchval("select cancel_execution($1)", row["id"])
    await desk.operator.execute("delete from workflow_timers")
    for number, one in enumerate(hands):
        if one.connection.is_closed():
            hands[number] = await arrive(desk)
        elif one.connection.is_in_transaction():
            await one.connection.execute("rollback")
