"""What is run again: joins wait for all they waited for, places and deadlines hold, handled failures stay."""

import asyncpg
import pytest

from tests.workflows.hands import Room, workflow


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
