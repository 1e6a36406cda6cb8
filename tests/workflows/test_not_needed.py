"""What leads only to joins that have enough is given up there and then: nobody goes on with it, and nothing is held."""

import uuid

import pytest

from tests.workflows.hands import Room, Step, workflow
from tests.workflows.proof.invariants import require_invariants
from tests.workflows.test_claims import call, money

ANY = {"mode": "any"}


def echo(step: Step) -> dict[str, object]:
    return step.done(output=step.node)


async def statuses(desk: Room, execution: uuid.UUID) -> dict[str, str]:
    found = await desk.execution(execution)
    return {name: step["status"] for name, step in found["steps"].items() if name != "$end"}


async def test_a_model_call_that_a_join_does_not_wait_for_holds_and_costs_nothing(desk: Room) -> None:
    shape = workflow("quick slow=llm j=join after", "quick>j slow>j j>after", j=ANY)
    execution = await desk.start(await desk.publish(shape))
    before = await money(desk, desk.owner)
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        late = await call(hands, steps["slow"])
        assert (await money(desk, desk.owner))[1] > 0
        (joined,) = await hands.tick(steps["quick"].done(output=1))
        assert joined.node == "j"
        assert await money(desk, desk.owner) == before
        held = await hands.connection.fetchval("select vanilla.held_leases($1)", hands.worker)
        assert [lease["lease"] for lease in held] == [joined.lease]  # its worker hangs up
        given_up = (await desk.execution(execution))["steps"]["slow"]
        assert (given_up["status"], given_up["error"]["code"]) == ("skipped", "not_needed")
        await require_invariants(desk.operator)
        assert await hands.run(echo, steps["slow"].done(output=2, calls=[late]), joined.done(output=1)) == ["after"]
    assert await money(desk, desk.owner) == before
    assert (await desk.execution(execution))["output"] == {"after": "after"}


async def test_what_was_used_before_it_was_given_up_is_paid_once(desk: Room) -> None:
    again = {"retry": {"attempts": 3, "initial_ms": 0, "max_ms": 0}}
    shape = workflow("quick slow=llm j=join", "quick>j slow>j", j=ANY, slow=again)
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        used = await call(hands, steps["slow"])
        await hands.tick(steps["slow"].failed("provider_error", retryable=True) | {"calls": [used]}, n=0)
        paid = (await money(desk, desk.owner))[0]
        assert (await hands.run(echo, steps["quick"].done())) == ["j"]
    assert await desk.tend() == 0  # no other attempt
    found = await desk.execution(execution)
    assert (found["status"], found["charged_tokens"]) == ("succeeded", found["steps"]["slow"]["charged_tokens"])
    assert found["charged_tokens"] > 0
    assert await money(desk, desk.owner) == (paid, 0)
    await require_invariants(desk.operator)


SHAPES = {
    "what leads to the join over others": ("a b c j=join", "a>j b>c c>j", {"b", "c"}),
    "what another node wants too goes on": ("a b d j=join", "a>j b>j b>d", set()),
    "what leads to two joins, of which one has enough": ("a b c e=join j=join", "a>j b>j b>e c>e", set()),
    "a join that has not enough, before one that has": ("a b c e=join j=join", "a>j b>e c>e e>j", {"b", "c", "e"}),
    "on a branch too": ("a b=condition c d j=join", "a>j b>c:true b>d:false c>j d>j", {"b", "c", "d"}),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_given_up_is_what_leads_to_nothing_else(desk: Room, shape: str) -> None:
    nodes, links, given_up = SHAPES[shape]
    execution = await desk.start(await desk.publish(workflow(nodes, links, j=ANY, e=ANY)))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        await hands.tick(steps["a"].done(), n=0)
        found = await statuses(desk, execution)
        assert {name for name, status in found.items() if status == "skipped"} == given_up
        await require_invariants(desk.operator)
        left = [step.done(branch="true") for name, step in steps.items() if name != "a" and name not in given_up]
        await hands.run(lambda step: step.done(branch="true"), *left)
    assert (await desk.execution(execution))["status"] == "succeeded"


async def test_a_quorum_gives_up_items_waits_and_signals(desk: Room) -> None:
    shape = workflow(
        "a b m=map w=wait s=signal j=join",
        "a>j b>j m>j w>j s>j",
        m={"over": "[1, 2]", "item": {"kind": "transform", "value": "item"}},
        w={"seconds": "60"},
        s={"signal": "go"},
        j={"mode": "count", "count": 2},
    )
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        timer = {"kind": "timer", "due_at": "2100-01-01T00:00:00Z"}
        items = await hands.tick(
            steps["m"].done("items", items=[1, 2], concurrency=1),
            steps["w"].done("waiting", wait=timer),
            steps["s"].done("waiting", wait={"kind": "signal", "name": "go", "timeout_s": 60}),
        )
        assert await hands.tick(steps["a"].done(), n=0) == []
        await require_invariants(desk.operator)
        assert (await statuses(desk, execution))["m"] == "waiting"
        assert [step.node for step in await hands.tick(steps["b"].done())] == ["j"]
        found = await statuses(desk, execution)
        assert {name for name, status in found.items() if status == "skipped"} == {"m", "w", "s"}
        of_map = "select array_agg(distinct status) from workflow_steps where execution_id = $1 and item >= 0"
        assert await desk.operator.fetchval(of_map, execution) == ["skipped"]
        assert await desk.operator.fetchval("select count(*) from workflow_timers") == 0
        await hands.tick(*(item.done() for item in items), n=0)
        assert hands.stale == [items[0].lease]
        await require_invariants(desk.operator)
        await desk.operator.fetchval("select cancel_execution($1)", execution)


async def test_a_gate_that_sends_back_before_the_join_brings_back_what_was_given_up(desk: Room) -> None:
    gate = {"of": "1", "check": "rule", "rule": "true", "on_fail": "retry", "retry": {"node": "a", "times": 1}}
    shape = workflow("a p b j=join g=gate", "a>j p>b b>j j>g", j=ANY, g=gate)
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        first = {step.node: step for step in await hands.tick()}
        joined = await hands.one(first["a"].done(output=1))
        assert (await statuses(desk, execution))["b"] == "skipped"
        judged = await hands.one(joined.done())
        refused = judged.done("gate", passed=False, score=0, threshold=1, feedback="no", value=1)
        again = {step.node: step for step in await hands.tick(refused)}
        assert again.keys() == {"a", "p"}
        await require_invariants(desk.operator)
        # this time the other way is first
        b = await hands.one(again["p"].done())
        joined = await hands.one(b.done(output="b"))
        assert (await statuses(desk, execution))["a"] == "skipped"
        judged = await hands.one(joined.done())
        passed = judged.done("gate", passed=True, score=1, threshold=1, feedback="", value=1)
        assert await hands.tick(passed) == []
    assert (await desk.execution(execution))["status"] == "succeeded"
    await require_invariants(desk.operator)
