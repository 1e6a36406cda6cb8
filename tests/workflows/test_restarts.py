"""What is run again: joins wait for all they waited for, places and deadlines hold, handled failures stay."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.workflows.hands import Outcome, Room, Step, workflow
from tests.workflows.proof.invariants import require_invariants
from tests.workflows.test_claims import call


async def test_a_join_waits_for_every_branch_that_was_cut_off(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "a>c b>c")))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        await hands.tick(steps["a"].failed())
        await desk.operator.fetchval("select restart_execution($1)", execution)
        again = {step.node: step for step in await hands.tick()}
        assert set(again) == {"a", "b"}
        # c does not begin with a alone
        assert await hands.tick(again["a"].done(output=1)) == []
        assert (await hands.one(again["b"].done(output=2))).node == "c"


async def test_a_gate_that_sends_back_does_not_take_what_still_runs_for_done(desk: Room) -> None:
    gate = {"of": "1", "check": "rule", "rule": "true", "on_fail": "retry", "retry": {"node": "a", "times": 1}}
    await desk.start(await desk.publish(workflow("a g=gate b c", "a>g g>c b>c", g=gate)))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        judged = await hands.one(steps["a"].done(output=1))
        refused = judged.done(
            "gate", passed=False, score=0, threshold=1, feedback="", suggestions=[], metrics={}, value=1
        )
        judged = await hands.one((await hands.one(refused)).done(output=2))
        assert await hands.tick(judged.done("gate", passed=True, score=1, threshold=1, feedback="", metrics={})) == []
        assert (await hands.one(steps["b"].done(output=3))).node == "c"


async def test_a_failure_that_had_its_branch_is_not_run_again(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b", "a>b:failed", a={"retry": {"attempts": 1}})))
    async with desk.worker() as hands:
        after = await hands.one((await hands.one()).failed())
        assert after.node == "b"
        await hands.tick(after.failed())
        await desk.operator.fetchval("select restart_execution($1)", execution)
        assert (await hands.one()).node == "b"


async def test_a_restarted_one_has_its_place_and_its_deadline_again(desk: Room) -> None:
    concurrency = {"key": "'k'", "limit": 1}
    shape = await desk.publish(workflow("a", concurrency=concurrency, max_duration_s=60))
    timers = "select count(*) from workflow_timers where execution_id = $1 and node = -1"
    async with desk.worker() as hands:

        async def begin() -> tuple[object, object]:
            execution = await desk.start(shape)
            begun = await hands.one()
            return execution, await hands.one(begun.done("go", key="k", limit=1))

        first, step = await begin()
        await hands.tick(step.failed())  # type: ignore[attr-defined]
        second, other = await begin()
        with pytest.raises(asyncpg.PostgresError, match="concurrency key"):
            await desk.operator.fetchval("select restart_execution($1)", first)
        told = await desk.operator.fetchval("select replay_executions($1)", shape)
        assert (told["restarted"], [one["execution_id"] for one in told["refused"]]) == ([], [str(first)])
        await hands.tick(other.done(output=1))  # type: ignore[attr-defined]
        await desk.operator.fetchval("select restart_execution($1)", first)
        assert await desk.operator.fetchval(timers, first) == 1
        held = "select slot_held from workflow_executions where id = any($1) order by id"
        assert [row[0] for row in await desk.operator.fetch(held, [first, second])] == [True, False]


def echo(step: Step) -> Outcome:
    return step.done(output=step.node)


def failing(*names: str) -> Callable[[Step], Outcome]:
    """Named steps fail, others give their name."""
    return lambda step: step.failed() if step.node in names else echo(step)


async def steps_of(desk: Room, execution: UUID) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = (await desk.execution(execution))["steps"]
    return found


async def audited(desk: Room, execution: UUID) -> list[dict[str, Any]]:
    query = "select details from audit_logs where action = 'execution.restarted' and target_id = $1 order by created_at"
    return [row[0] for row in await desk.operator.fetch(query, execution)]


async def test_a_newer_version_mends_what_failed_and_keeps_what_was_done(desk: Room) -> None:
    shape = await desk.publish(workflow("a b c d", "a>b b>c", b={"value": "1/0"}))
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        first_steps = {step.node: step for step in await hands.tick()}
        await hands.tick(echo(first_steps["d"]), n=0)
        assert await hands.run(failing("b"), echo(first_steps["a"])) == ["b"]
        before = await steps_of(desk, execution)
        # numbers change: x comes before everything, c is gone, e is new
        newer = await desk.publish_next(shape, workflow("x d b a e", "a>b b>e x>e", b={"value": "2"}, a={"name": "A"}))
        assert await desk.restart(execution, version=newer) == "running"
        kept = await steps_of(desk, execution)
        assert (kept["a"], kept["d"]) == (before["a"], before["d"])
        assert sorted(await hands.run(echo)) == ["b", "e", "x"]
    found = await desk.execution(execution)
    assert (found["status"], found["version"]) == ("succeeded", newer)
    assert found["output"] == {"d": "d", "e": "e"}
    assert await audited(desk, execution) == [{"node": None, "version": newer, "version_before": 1}]
    await require_invariants(desk.operator)


REFUSED = {
    "a node that is gone": (workflow("b c", "b>c"), "a gave is not of version 2: it is not there"),
    "a node of another kind": (workflow("a=wait b c", "a>b b>c", a={"seconds": 1}), "of the kind wait"),
    "a node that is defined otherwise": (workflow("a b c", "a>b b>c", a={"value": "2"}), "a gave .* another value"),
    "a node that something new comes before": (workflow("n a b c", "n>a a>b b>c"), "a gave .* other connections"),
    "a node whose failure ends it": (
        workflow("a f k b c", "a>b b>c f>k", f={"retry": {"attempts": 1}}),
        "f gave .* nothing follows its branch failed",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
async def test_a_version_that_would_have_had_another_outcome_is_refused(desk: Room, why: str) -> None:
    definition, message = REFUSED[why]
    shape = await desk.publish(workflow("a f k b c", "a>b b>c f>k:failed", f={"retry": {"attempts": 1}}))
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        await hands.run(failing("f", "b"))
        newer = await desk.publish_next(shape, definition)
        with pytest.raises(asyncpg.PostgresError, match=message) as refused:
            await desk.restart(execution, version=newer)
        assert refused.value.sqlstate == "VS409"
        assert (await desk.execution(execution))["status"] == "failed"
        assert await desk.restart(execution) == "running"
        await hands.run(echo)


async def test_what_runs_again_may_be_anything_and_so_may_what_was_skipped(desk: Room) -> None:
    shape = await desk.publish(workflow("a=condition b c d", "a>b:true a>c:false b>d"))
    execution = await desk.start(shape)
    async with desk.worker() as hands:

        def answer(step: Step) -> Outcome:
            return step.failed() if step.node == "d" else step.done(output=step.node, branch="true")

        assert await hands.run(answer) == ["a", "b", "d"]
        newer = await desk.publish_next(
            shape, workflow("a=condition b c d e", "a>b:true a>c:false c>e b>d d>e", c={"value": "2"})
        )
        await desk.restart(execution, "b", newer)
        assert await hands.run(echo) == ["b", "d", "e"]
    assert (await steps_of(desk, execution))["c"]["status"] == "skipped"


async def test_a_skipped_node_counts_when_another_ran_because_of_it(desk: Room) -> None:
    shape = await desk.publish(workflow("a=condition b c j d", "a>b:true a>c:false b>j c>j j>d"))
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        await hands.run(lambda step: step.failed() if step.node == "d" else step.done(output=1, branch="true"))
        newer = await desk.publish_next(shape, workflow("a=condition b c j d", "a>b:true a>c:true b>j c>j j>d"))
        with pytest.raises(asyncpg.PostgresError, match=r"node c gave .* other connections"):
            await desk.restart(execution, version=newer)
        same = await desk.publish_next(
            shape, workflow("a=condition b c j d", "a>b:true a>c:false b>j c>j j>d", c={"value": "2"})
        )
        await desk.restart(execution, version=same)
        assert await hands.run(echo) == ["d"]


async def test_only_newer_versions_that_could_be_started_are_taken(desk: Room) -> None:
    shape = await desk.publish(workflow("a"))
    older = await desk.publish_next(shape, workflow("a", "", a={"value": "2"}))
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        await hands.run(failing("a"))
        with pytest.raises(asyncpg.PostgresError, match="version 1 is older"):
            await desk.restart(execution, version=1)
        with pytest.raises(asyncpg.PostgresError, match="no such version"):
            await desk.restart(execution, version=3)
        newer = await desk.publish_next(shape, workflow("b"))
        with pytest.raises(asyncpg.PostgresError, match="node a is not in version 3"):
            await desk.restart(execution, "a", newer)
        await desk.operator.fetchval("select retire_workflow($1, $2)", shape, newer)
        with pytest.raises(asyncpg.PostgresError, match="version 3 is retired"):
            await desk.restart(execution, version=newer)
        assert await desk.restart(execution, version=older) == "running"
        assert await hands.run(echo) == ["a"]


async def test_a_node_that_the_newer_version_does_not_have_is_left_out(desk: Room) -> None:
    shape = await desk.publish(workflow("a b", "a>b"))
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        await hands.run(failing("b"))
        newer = await desk.publish_next(shape, workflow("a", max_duration_s=60))
        assert await desk.restart(execution, version=newer) == "succeeded"
    assert (await desk.execution(execution))["output"] == {"a": "a"}
    await require_invariants(desk.operator)


async def test_a_map_keeps_its_items_and_a_waiting_one_beside_is_done_anew(desk: Room) -> None:
    each = {"over": "[1, 2]", "item": {"kind": "transform", "value": "item"}}
    shape = await desk.publish(workflow("m=map s=signal b", "m>b", m=each, s={"signal": "go"}))
    execution = await desk.start(shape)

    def answer(step: Step) -> Outcome:
        if step.node == "s":
            return step.done("waiting", wait={"kind": "signal", "name": "go", "timeout_s": 60})
        if step.node == "m" and step.item is None:
            return step.done("items", items=[1, 2])
        return step.failed() if step.node == "b" else step.done(output=step.value)

    async with desk.worker() as hands:
        await hands.run(answer)
        newer = await desk.publish_next(shape, workflow("b s=signal m=map", "m>b", m=each, s={"signal": "go"}))
        await desk.restart(execution, version=newer)
        items = "select node, value, output from workflow_steps where execution_id = $1 and item >= 0 order by item"
        assert [tuple(row) for row in await desk.operator.fetch(items, execution)] == [(3, 1, 1), (3, 2, 2)]
        assert await hands.run(lambda step: answer(step) if step.node == "s" else echo(step)) == ["b", "s"]
        await require_invariants(desk.operator)
        await desk.operator.fetchval("select signal_execution($1, 'go')", execution)
    assert (await desk.execution(execution))["output"] == {"b": "b", "s": None}


async def test_a_join_of_any_that_went_on_waits_for_nobody(desk: Room) -> None:
    any_of = {"mode": "any"}
    shape = await desk.publish(workflow("a b j=join c", "a>j b>j j>c", j=any_of))
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        joined = await hands.one(echo(steps["a"]))
        await hands.tick((await hands.one(echo(joined))).failed())
        newer = await desk.publish_next(shape, workflow("c a b j=join", "a>j b>j j>c", j=any_of, b={"value": "2"}))
        await desk.restart(execution, "c", newer)
        assert await hands.run(echo) == ["c"]
    assert (await desk.execution(execution))["steps"]["b"]["status"] == "skipped"
    await require_invariants(desk.operator)


async def test_charges_stay_also_of_nodes_that_are_gone(desk: Room) -> None:
    shape = await desk.publish(workflow("a=llm b=llm c", "a>b b>c"))
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        for _ in range(2):
            step = await hands.one()
            await hands.tick(step.done(output=1, calls=[await call(hands, step)]), n=0)
        await hands.run(failing("c"))
        before = await desk.execution(execution)
        a, b = (before["steps"][name]["charged_tokens"] for name in "ab")
        assert min(a, b) > 0
        newer = await desk.publish_next(shape, workflow("z c a=llm", "a>c z>c"))
        await desk.restart(execution, "a", newer)
        after = await steps_of(desk, execution)
        assert {name: step["charged_tokens"] for name, step in after.items()} == {"z": 0, "c": 0, "a": a, "$end": b}
        await hands.run(echo)
    found = await desk.execution(execution)
    assert (found["charged_tokens"], found["cost_micros"]) == (before["charged_tokens"], before["cost_micros"])
    await require_invariants(desk.operator)


async def test_an_input_that_another_version_describes_is_checked_before_anything_goes_on(desk: Room) -> None:
    shape = await desk.publish(workflow("a b c", "a>b", input={"type": "object"}))
    execution = await desk.start(shape, text=1)
    async with desk.worker() as hands:
        begun = await hands.one()
        await hands.run(failing("b"), begun.done("go"))
        newer = await desk.publish_next(shape, workflow("b a c", "a>b", input={"type": "object", "required": ["text"]}))
        await desk.restart(execution, version=newer)
        await require_invariants(desk.operator)
        begun = await hands.one()
        assert (begun.node, (await steps_of(desk, execution))["b"]["waits_for"]) == ("$start", "start")
        # found wrong, and mended by one more version: what was done stays done
        await hands.tick(begun.failed("input_invalid"))
        assert (await desk.execution(execution))["reason"] == "input_invalid"
        await desk.restart(execution)
        assert (await hands.one()).node == "$start"
        await desk.operator.fetchval("select cancel_execution($1)", execution)
        newest = await desk.publish_next(shape, workflow("a c b", "a>b", input={"type": "object", "title": "Any"}))
        await desk.restart(execution, version=newest)
        begun = await hands.one()
        assert await hands.run(echo, begun.done("go")) == ["b"]
    assert (await desk.execution(execution))["output"] == {"b": "b", "c": "c"}
    await require_invariants(desk.operator)


async def test_paused_while_its_input_is_checked_it_goes_on_when_it_is_resumed(desk: Room) -> None:
    shape = await desk.publish(workflow("a b", "a>b"))
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        await hands.run(failing("b"))
        newer = await desk.publish_next(shape, workflow("a b", "a>b", input={"type": "object"}))
        await desk.restart(execution, version=newer)
        begun = await hands.one()
        await desk.operator.fetchval("select pause_execution($1)", execution)
        assert await hands.tick(begun.done("go")) == []
        await require_invariants(desk.operator)
        await desk.operator.fetchval("select resume_execution($1)", execution)
        assert await hands.run(echo) == ["b"]


async def test_another_concurrency_key_is_taken_or_waited_for(desk: Room) -> None:
    shape = await desk.publish(workflow("a", concurrency={"key": "'k'", "limit": 1}))
    first = await desk.start(shape)
    async with desk.worker() as hands:
        await hands.tick((await hands.one((await hands.one()).done("go", key="k", limit=1))).failed())
        newer = await desk.publish_next(shape, workflow("a", concurrency={"key": "'l'", "limit": 1}))
        second = await desk.start(shape)
        other = await hands.one((await hands.one()).done("go", key="l", limit=1))
        await desk.restart(first, version=newer)
        assert await hands.tick((await hands.one()).done("go", key="l", limit=1)) == []
        assert (await steps_of(desk, first))["$start"]["waits_for"] == "slot"
        await hands.tick(echo(other))
        await desk.pass_time(first)
        assert await hands.run(lambda step: step.done("go", key="l", limit=1) if step.node == "$start" else echo(step))
        assert [(await desk.execution(one))["status"] for one in (first, second)] == ["succeeded"] * 2
        free = await desk.publish_next(shape, workflow("a"))
        await desk.restart(first, "a", free)
        slot = "select slot, slot_limit from workflow_executions where id = $1"
        assert tuple(await desk.operator.fetchrow(slot, first)) == (None, None)
        await hands.run(echo)


async def test_people_are_asked_anew_and_children_that_were_left_are_ended(desk: Room) -> None:
    ask = {"title": "Well?", "approvers": ["role:admin"]}
    child = await desk.publish(workflow("x", x={"pool": "nobody"}))
    ref = await desk.operator.fetchval("select slug from ai_workflows where id = $1", child)
    nodes = {"p": ask, "w": {"ref": ref}, "j": {"mode": "any"}}
    shape = await desk.publish(workflow("a p=approval w=workflow j=join", "a>j p>j w>j", **nodes))
    execution = await desk.start(shape)
    waits = {"p": {"kind": "approval", **ask}, "w": {"kind": "execution", "ref": ref, "input": {}}}

    def answer(step: Step) -> Outcome:
        return step.done("waiting", wait=waits[step.node]) if step.node in waits else echo(step)

    asked = "select node, status from workflow_approvals where execution_id = $1 order by id"
    children = "select status, reason from workflow_executions where parent_execution_id = $1 order by id"
    async with desk.worker() as hands:
        first = {step.node: step for step in await hands.tick()}
        await hands.tick(answer(first["p"]), answer(first["w"]), n=0)
        await hands.run(answer, answer(first["a"]))
        assert (await desk.execution(execution))["status"] == "succeeded"
        newer = await desk.publish_next(shape, workflow("j=join w=workflow p=approval a", "a>j p>j w>j", **nodes))
        await desk.restart(execution, "a", newer)
        steps = await hands.tick()
        await hands.tick(*(answer(step) for step in steps if step.node != "a"), n=0)
        found = await desk.operator.fetch(asked, execution), await desk.operator.fetch(children, execution)
        assert [[tuple(row) for row in rows] for rows in found] == [
            [(2, "cancelled"), (3, "open")],
            [("cancelled", "not_needed"), ("running", None)],
        ]
        await require_invariants(desk.operator)
        await desk.operator.fetchval("select cancel_execution($1)", execution)


async def test_what_goes_on_without_a_budget_is_paid_by_the_wallet(desk: Room) -> None:
    person = await desk.people.user(balance=1000)
    shape = await desk.publish(workflow("a", budget_tokens=500), person)
    execution = await desk.start(shape)
    async with desk.worker() as hands:
        await hands.tick((await hands.one()).failed())
        await desk.restart(execution, version=await desk.publish_next(shape, workflow("a")))
        step = await hands.one()
        await hands.tick(step.done(calls=[await call(hands, step)]))
    found = await desk.execution(execution)
    assert (found["status"], found["charged_tokens"] > 0) == ("succeeded", True)
    await require_invariants(desk.operator)
