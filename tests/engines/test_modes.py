"""One node at a time, or so many: in the order of the graph, and with the same end as without a limit."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import Person, serve, settings_for
from tests.engines.shop import Shop
from tests.tokens.test_routes import post
from tests.workflows.hands import Hands, Step, workflow
from vanilla_saas.app import create_app


async def held(shop: Shop, run: dict[str, Any]) -> int:
    return int(
        await shop.operator.fetchval(
            "select count(*) from workflow_queue where execution_id = $1", uuid.UUID(run["execution_id"])
        )
    )


async def one_by_one(hands: Hands, *done: dict[str, Any]) -> list[str]:
    ran = []
    steps = await hands.tick(*done)
    while steps:
        (step,) = steps
        ran.append(step.node)
        steps = await hands.tick(step.done(output=1))
    return ran


async def test_sequential_is_one_node_at_a_time_in_the_order_of_the_graph(floor: Shop) -> None:
    # written the other way round: the numbers of the nodes are no order
    shape = workflow(
        "end right2 right left2 left start", "start>left start>right left>left2 right>right2 left2>end right2>end"
    )
    engine = await floor.deploy(shape, p_mode="sequential")
    run = await floor.run(await floor.person(), engine.slug)
    async with floor.room.worker() as hands:
        ran = await one_by_one(hands)
    assert (ran[0], ran[-1]) == ("start", "end")
    assert sorted(ran[1:3]) == ["left", "right"]
    assert (await floor.room.execution(uuid.UUID(run["execution_id"])))["status"] == "succeeded"


async def test_every_node_has_its_place_behind_its_predecessors(floor: Shop) -> None:
    shape = await floor.flow(workflow("d c b a x", "a>b b>c c>d a>d x>b"))
    wrong = await floor.operator.fetchval(
        "select count(*) from workflow_nodes n cross join lateral unnest(n.successors) s (node)"
        " join workflow_nodes m on m.workflow_id = n.workflow_id and m.version = n.version and m.node = s.node"
        " where n.workflow_id = $1 and m.place <= n.place",
        shape,
    )
    places = await floor.operator.fetchval(
        "select array_agg(place order by place) from workflow_nodes where workflow_id = $1", shape
    )
    assert (wrong, places) == (0, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize(("at_once", "most"), [(2, 2), (3, 3), (None, 5)])
async def test_parallel_has_at_most_so_many(floor: Shop, at_once: int | None, most: int) -> None:
    engine = await floor.deploy(workflow("a b c d e"), p_at_once=at_once)
    run = await floor.run(await floor.person(), engine.slug)
    assert await held(floor, run) == most
    async with floor.room.worker() as hands:
        steps = await hands.tick()
        assert len(steps) == most
        left = 5 - most
        while steps:
            steps += await hands.tick(steps.pop().done(output=1))
            left = max(left - 1, 0)
            assert await held(floor, run) == len(steps) <= most
    assert (await floor.room.execution(uuid.UUID(run["execution_id"])))["status"] == "succeeded"


@asynccontextmanager
async def at_a_time(floor: Shop, calls: int) -> AsyncIterator[Person]:
    """Somebody whose level allows so many calls at a time."""
    level = await floor.level("free")
    await floor.ask(floor.admin, "set_level_restriction", level, "concurrent_executions", calls)
    try:
        yield await floor.person("free")
    finally:
        await floor.ask(floor.admin, "delete_level_restriction", level, "concurrent_executions")


@pytest.mark.parametrize(
    ("at_once", "calls", "most"), [(None, 2, 2), (3, 2, 2), (2, 4, 2), (None, 0, 1), (None, 5000, 5)]
)
async def test_a_level_bounds_them_too(floor: Shop, at_once: int | None, calls: int, most: int) -> None:
    engine = await floor.deploy(workflow("a b c d e"), p_at_once=at_once)
    async with at_a_time(floor, calls) as user:
        run = await floor.run(user, engine.slug)
        started = await floor.operator.fetchval(
            "select start_workflow($1, p_user_id => $2)", engine.flow, user.identity.user_id
        )
    assert (await held(floor, run), await held(floor, started)) == (most, min(calls or 1, 5))
    async with floor.room.worker() as hands:  # as they began, whatever the level says by now
        ran = await hands.run(lambda step: step.done(output=1))
    assert sorted(ran) == sorted(["a", "b", "c", "d", "e"] * 2)
    for one in (run, started):
        assert (await floor.room.execution(uuid.UUID(one["execution_id"])))["status"] == "succeeded"


async def test_a_run_does_not_fail_by_its_own_calls_at_a_time(floor: Shop, tmp_path: Path) -> None:
    slow = f"sandbox: {json.dumps({'reply': 'slow', 'latency_ms': 200})}"
    asking = {"model": "sandbox-small", "prompt": slow, "retry": {"attempts": 1}}
    engine = await floor.deploy(workflow("a=llm b=llm c=llm", a=asking, b=asking, c=asking))
    app = create_app(settings_for(floor.room.cluster, floor.room.name, tmp_path, run_worker=True))
    async with at_a_time(floor, 1) as user, serve(app) as address, aiohttp.ClientSession(address) as http:
        ran, _ = await post(http, user, "/engines/run", {"ref": engine.slug, "wait_s": 20})
    assert (ran["status"], ran["error"]) == ("succeeded", None)


async def test_items_of_a_map_take_places_too(floor: Shop) -> None:
    shape = workflow("m=map z", m={"over": "input.x", "item": {"kind": "transform", "value": "1"}})
    run = await floor.run(await floor.person(), (await floor.deploy(shape, p_at_once=2)).slug)
    async with floor.room.worker() as hands:
        first = {step.node: step for step in await hands.tick()}
        items = await hands.tick(first["m"].done("items", items=[1, 2, 3], concurrency=None), first["z"].done(output=1))
        assert [step.item for step in items] == [0, 1]
        items += await hands.tick(items.pop(0).done(output=1))
        assert sorted(step.item for step in items) == [1, 2]
        await hands.tick(*(step.done(output=1) for step in items))
    assert (await floor.room.execution(uuid.UUID(run["execution_id"])))["output"] == {"m": [1, 1, 1], "z": 1}


async def test_what_waits_gives_its_place_to_another_and_takes_its_turn_again(floor: Shop) -> None:
    shape = workflow(
        "w=wait p=approval s=signal t=transform",
        "w>t",
        w={"seconds": 60},
        p={"title": "?", "approvers": ["role:admin"]},
        s={"signal": "go"},
        t={"value": "1"},
    )
    engine = await floor.deploy(shape, p_mode="sequential")
    run = uuid.UUID((await floor.run(await floor.person(), engine.slug))["execution_id"])
    async with floor.room.worker() as hands:
        wait = await hands.one()
        approval = await hands.one(wait.done("waiting", wait={"kind": "timer", "due_at": "2099-01-01T00:00:00Z"}))
        signal = await hands.one(
            approval.done("waiting", wait={"kind": "approval", "title": "?", "approvers": ["role:admin"]})
        )
        assert await hands.tick(signal.done("waiting", wait={"kind": "signal", "name": "go", "timeout_s": 9})) == []
        asked = await floor.operator.fetchval("select id from workflow_approvals where execution_id = $1", run)
        await floor.ask(floor.admin, "decide_approval", asked, "approved")
        await floor.operator.fetchval("select signal_execution($1, 'go', '1')", run)
        await floor.operator.execute("update workflow_timers set due_at = vanilla.clock() where execution_id = $1", run)
        await floor.room.tend()
        last = await hands.one()
        assert last.node == "t"
        await hands.tick(last.done(output=1))
    assert (await floor.room.execution(run))["status"] == "succeeded"


async def test_what_people_and_signals_decide_goes_on_at_once(floor: Shop) -> None:
    shape = workflow(
        "s=signal p=approval last",
        "s>p p>last:approved",
        s={"signal": "go"},
        p={"title": "?", "approvers": ["role:admin"]},
    )
    engine = await floor.deploy(shape, p_mode="sequential")
    run = uuid.UUID((await floor.run(await floor.person(), engine.slug))["execution_id"])
    async with floor.room.worker() as hands:
        signal = await hands.one()
        await hands.tick(signal.done("waiting", wait={"kind": "signal", "name": "go", "timeout_s": 9}))
        await floor.operator.fetchval("select signal_execution($1, 'go')", run)
        approval = await hands.one()
        await hands.tick(approval.done("waiting", wait={"kind": "approval", "title": "?", "approvers": ["role:admin"]}))
        asked = await floor.operator.fetchval("select id from workflow_approvals where execution_id = $1", run)
        await floor.ask(floor.admin, "decide_approval", asked, "approved")
        assert (await hands.one()).node == "last"
        await floor.operator.fetchval("select cancel_execution($1)", run)


async def test_a_failed_attempt_does_not_hold_the_others_up(floor: Shop) -> None:
    engine = await floor.deploy(workflow("a b"), p_mode="sequential")
    run = uuid.UUID((await floor.run(await floor.person(), engine.slug))["execution_id"])
    async with floor.room.worker() as hands:
        first = await hands.one()
        second = await hands.one(first.failed(retryable=True))
        await floor.room.pass_time(run)
        assert await hands.tick() == []  # one runs
        again = await hands.one(second.done(output=1))
        assert (again.node, again.attempt) == ("a", 2)
        await hands.tick(again.done(output=1))
    assert (await floor.room.execution(run))["status"] == "succeeded"


async def test_what_is_paused_lost_or_restarted_goes_on_one_at_a_time(floor: Shop) -> None:
    engine = await floor.deploy(workflow("a b c", a={"retry": {"attempts": 1}}), p_mode="sequential")
    run = uuid.UUID((await floor.run(await floor.person(), engine.slug))["execution_id"])
    async with floor.room.worker() as hands, floor.room.worker() as others:
        await floor.operator.fetchval("select pause_execution($1)", run)
        assert await hands.tick() == []
        await floor.operator.fetchval("select resume_execution($1)", run)
        step = await hands.one()
        assert step.node == "a"
        await floor.operator.fetchval("select vanilla.reclaim_leases($1)", hands.worker)
        again = await others.one()
        assert again.node == "a"
        assert await others.tick(again.failed()) == []
        await floor.operator.fetchval("select restart_execution($1)", run)
        assert sorted(await one_by_one(others)) == ["a", "b", "c"]
    assert (await floor.room.execution(run))["status"] == "succeeded"


async def test_one_that_is_lost_for_good_lets_the_next_in(floor: Shop) -> None:
    engine = await floor.deploy(
        workflow("a b after", "a>after:failed", a={"retry": {"attempts": 1}}), p_mode="sequential"
    )
    run = uuid.UUID((await floor.run(await floor.person(), engine.slug))["execution_id"])
    async with floor.room.worker() as hands:
        for _ in range(3):
            assert (await hands.one()).node == "a"
            await floor.operator.fetchval("select vanilla.reclaim_leases($1)", hands.worker)
        assert sorted(await one_by_one(hands)) == ["after", "b"]
    assert (await floor.room.execution(run))["status"] == "succeeded"


async def test_a_step_beyond_its_deadline_that_fails_lets_the_next_in(floor: Shop) -> None:
    engine = await floor.deploy(workflow("a b after", "a>after:failed"), p_mode="sequential")
    run = uuid.UUID((await floor.run(await floor.person(), engine.slug))["execution_id"])
    async with floor.room.worker() as hands:
        for _ in range(3):
            step: Step = await hands.one()
            assert step.node == "a"
            await floor.operator.execute(
                "update workflow_queue set deadline_at = vanilla.clock() where execution_id = $1", run
            )
            await floor.room.tend()
        assert sorted(await one_by_one(hands)) == ["after", "b"]


async def test_both_modes_give_the_same_outputs_at_the_same_charge(floor: Shop, tmp_path: Path) -> None:
    say = {"model": "sandbox-small", "prompt": 'sandbox: {"reply": "{{ input.x }}"}'}
    shape = workflow(
        "a=llm b=llm each=map end",
        "a>end b>end each>end",
        a=say,
        b=say,
        each={"over": "[1, 2, 3]", "item": {"kind": "llm", **say}},
        end={"value": "[steps.a.output.text, steps.b.output.text] + steps.each.output.map(one, one.text)"},
        output="steps.end.output",
    )
    app = create_app(settings_for(floor.room.cluster, floor.room.name, tmp_path, run_worker=True))
    user, found = await floor.person(), []
    async with serve(app) as address, aiohttp.ClientSession(address) as http:
        for mode in ("sequential", "parallel"):
            engine = await floor.deploy(shape, p_mode=mode)
            ran, _ = await post(http, user, "/engines/run", {"ref": engine.slug, "input": {"x": "Hi"}, "wait_s": 20})
            run = uuid.UUID(ran["execution_id"])
            nodes = await floor.operator.fetch(
                "select node, item, status, output, charged_tokens, cost_micros from workflow_steps"
                " where execution_id = $1 order by node, item", run
            )  # fmt: skip
            entries = await floor.operator.fetch(
                "select direction, (metadata ->> 'actual')::bigint as actual from user_token_ledger"
                " where reference_id = $1 and direction = 'settle' order by actual", run
            )  # fmt: skip
            total = sum(entry["actual"] for entry in entries)
            assert (len(entries), total) == (5, ran["charged_tokens"])
            assert sum(node["charged_tokens"] for node in nodes if node["item"] == -1) == total > 0
            found.append((ran["output"], ran["cost_micros"], list(map(tuple, nodes)), list(map(tuple, entries))))
    assert found[0] == found[1]
    assert found[0][0] == ["Hi"] * 5
