"""The runner in the database: what follows what, what is skipped, who has a step, how executions end."""

import uuid

import pytest

from tests.workflows.hands import Room, Step, workflow


def echo(step: Step) -> dict[str, object]:
    return step.done(output=step.node)


async def test_a_chain_runs_in_order_and_gives_the_output_of_its_last_node(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "a>b b>c")), text="x")
    async with desk.worker() as hands:
        assert await hands.run(echo) == ["a", "b", "c"]
    found = await desk.execution(execution)
    assert (found["status"], found["output"]) == ("succeeded", {"c": "c"})
    assert {name: step["status"] for name, step in found["steps"].items()} == dict.fromkeys(
        ["a", "b", "c", "$end"], "succeeded"
    )
    assert await desk.operator.fetchval("select count(*) from workflow_queue") == 0


SHAPES = {
    "a diamond": ("a b c d", "a>b a>c b>d c>d", {}, {"a", "b", "c", "d"}, {}),
    "a branch that is taken": ("a=condition b c", "a>b:true a>c:false", {"a": "true"}, {"a", "b"}, {"c"}),
    "what only a skipped node leads to": (
        "a=condition b c d e",
        "a>b:true a>c:false c>d d>e",
        {"a": "true"},
        {"a", "b"},
        {"c", "d", "e"},
    ),
    "a node behind both branches": (
        "a=condition b c d",
        "a>b:true a>c:false b>d c>d",
        {"a": "false"},
        {"a", "c", "d"},
        {"b"},
    ),
    "a switch": ("a=switch b c d", "a>b:x a>c:y a>d:default", {"a": "y"}, {"a", "c"}, {"b", "d"}),
    "two roots": ("a b c", "a>c b>c", {}, {"a", "b", "c"}, {}),
    "no branch taken": ("a=condition b", "a>b:false", {"a": "true"}, {"a"}, {"b"}),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_runs_and_what_is_skipped(desk: Room, shape: str) -> None:
    nodes, links, branches, runs, skipped = SHAPES[shape]
    execution = await desk.start(await desk.publish(workflow(nodes, links)))

    def answer(step: Step) -> dict[str, object]:
        return step.done(output=step.node, branch=branches.get(step.node))

    async with desk.worker() as hands:
        ran = await hands.run(answer)
    assert sorted(ran) == sorted(runs)
    found = await desk.execution(execution)
    assert found["status"] == "succeeded"
    assert {name for name, step in found["steps"].items() if step["status"] == "skipped"} == set(skipped)


@pytest.mark.parametrize(("mode", "after"), [("any", 1), ("count", 2), ("all", 3)])
async def test_a_join_runs_when_enough_of_its_predecessors_are_done(desk: Room, mode: str, after: int) -> None:
    join = {"mode": mode} | ({"count": 2} if mode == "count" else {})
    execution = await desk.start(await desk.publish(workflow("a b c j=join", "a>j b>j c>j", j=join)))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        for number, name in enumerate("abc", 1):
            ready = await hands.tick(steps[name].done(output=name))
            assert [step.node for step in ready] == (["j"] if number == after else [])
            if ready:
                (join_step,) = ready
                assert join_step.predecessors == ["a", "b", "c"]
                assert {n: s["output"] for n, s in join_step.steps.items() if s["status"] == "succeeded"} == {
                    n: n for n in "abc"[:number]
                }
        await hands.tick(join_step.done(output="joined"))
    assert (await desk.execution(execution))["output"] == {"j": "joined"}


async def test_a_count_that_cannot_be_reached_skips_the_join(desk: Room) -> None:
    join = {"mode": "count", "count": 2}
    shape = workflow("a=condition b c j=join", "a>b:true a>c:false b>j c>j", j=join)
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        assert await hands.run(lambda step: step.done(branch="true")) == ["a", "b"]
    assert (await desk.execution(execution))["steps"]["j"]["status"] == "skipped"


async def test_a_step_is_given_what_its_texts_name(desk: Room) -> None:
    shape = workflow("a b c", "a>b b>c", b={"value": "steps.a.output + 1"}, c={"value": "steps[input.which].output"})
    await desk.start(await desk.publish(shape), which="a")
    async with desk.worker() as hands:
        a = await hands.one()
        assert (a.steps, a.input, a.attempt, a.round, a.item) == ({}, {"which": "a"}, 1, 0, None)
        b = await hands.one(a.done(output=41))
        assert b.steps == {"a": {"output": 41, "status": "succeeded", "branch": None, "error": None}}
        c = await hands.one(b.done(output=42))
        assert c.steps.keys() == {"a", "b"}  # it could be any of them
        await hands.tick(c.done())


async def test_the_input_and_the_output_are_steps_of_the_runner(desk: Room) -> None:
    shape = workflow("a", input={"type": "object"}, output="steps.a.output")
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        start = await hands.one()
        assert start.node == "$start"
        a = await hands.one(start.done("go", key=None, limit=None))
        end = await hands.one(a.done(output=5))
        assert (end.node, end.steps["a"]["output"]) == ("$end", 5)
        await hands.tick(end.done(output={"five": 5}))
    found = await desk.execution(execution)
    assert (found["status"], found["output"]) == ("succeeded", {"five": 5})


async def test_a_step_is_tried_again_and_then_the_execution_fails(desk: Room) -> None:
    shape = workflow("a b", "a>b", a={"retry": {"attempts": 2, "initial_ms": 0, "max_ms": 0}})
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        step = await hands.one()
        assert await hands.tick(step.failed("provider_error", retryable=True)) == []
        assert (await desk.execution(execution))["steps"]["a"]["waits_for"] == "retry"
        assert await desk.tend() == 1
        again = await hands.one()
        assert (again.node, again.attempt) == ("a", 2)
        assert await hands.tick(again.failed("provider_error", retryable=True)) == []
    found = await desk.execution(execution)
    assert (found["status"], found["reason"]) == ("failed", "provider_error")
    assert found["error"] == {"code": "provider_error", "message": "It failed.", "node": "a"}
    assert found["steps"]["b"]["status"] == "pending"


async def test_a_failure_that_is_not_worth_another_attempt_ends_what_runs_beside_it(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "b>c")))
    async with desk.worker() as hands:
        a, b = await hands.tick()
        await hands.tick(a.failed())
        assert await hands.tick(b.done()) == []
        assert hands.stale == [b.lease]
    found = await desk.execution(execution)
    assert (found["status"], found["steps"]["b"]["status"]) == ("failed", "ready")


async def test_a_failed_execution_goes_on_from_where_it_failed(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c d", "a>b b>c d>c")))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        b = await hands.one(steps["a"].done(output=1))
        await hands.tick(b.failed())
        await desk.operator.fetchval("select restart_execution($1)", execution)
        ran = await hands.run(echo)
    assert sorted(ran) == ["b", "c", "d"]  # d was cut off; a stands
    found = await desk.execution(execution)
    assert (found["status"], found["output"]) == ("succeeded", {"c": "c"})


async def test_an_ended_execution_runs_again_from_a_named_node(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "a>b a>c")))
    async with desk.worker() as hands:
        await hands.run(echo)
        await desk.operator.fetchval("select restart_execution($1, 'b')", execution)
        assert await hands.run(lambda step: step.done(output="again")) == ["b"]
    assert (await desk.execution(execution))["output"] == {"b": "again", "c": "c"}


async def test_nothing_of_a_cancelled_execution_is_started_or_counts(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "a>c")))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick(n=1)}
        await desk.operator.fetchval("select cancel_execution($1, 'enough')", execution)
        assert await hands.tick(*(step.done(output=1) for step in steps.values())) == []
        assert hands.stale == [step.lease for step in steps.values()]
    found = await desk.execution(execution)
    assert (found["status"], found["reason"], found["error"]["message"]) == ("cancelled", "cancelled", "enough")
    assert await desk.operator.fetchval("select count(*) from workflow_queue") == 0


async def test_a_paused_execution_ends_what_runs_and_goes_on_when_resumed(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "a>b")))
    async with desk.worker() as hands:
        (a,) = await hands.tick(n=1)
        await desk.operator.fetchval("select pause_execution($1)", execution)
        assert await hands.tick(a.done(output="a")) == []
        assert (await desk.execution(execution))["status"] == "paused"
        await desk.operator.fetchval("select resume_execution($1)", execution)
        assert sorted(await hands.run(echo)) == ["b", "c"]
    assert (await desk.execution(execution))["output"] == {"b": "b", "c": "c"}


async def test_a_map_runs_its_items_so_many_at_a_time_and_lists_them_in_order(desk: Room) -> None:
    each = {"over": "input.list", "item": {"kind": "transform", "value": "item"}, "max_items": 5}
    execution = await desk.start(await desk.publish(workflow("a=map b", "a>b", a=each)))
    async with desk.worker() as hands:
        step = await hands.one()
        items = await hands.tick(step.done("items", items=[10, 20, 30], concurrency=2))
        assert [(item.item, item.value) for item in items] == [(0, 10), (1, 20)]
        found = await desk.execution(execution)
        assert [found["steps"]["a"][name] for name in ("items", "items_done", "items_running")] == [3, 0, 2]
        third = await hands.one(items[1].done(output="second"))
        assert third.item == 2
        b = await hands.one(items[0].done(output="first"), third.done(output="third"))
        assert b.node == "b"
        await hands.tick(b.done())
    found = await desk.operator.fetchval(
        "select output from workflow_steps where execution_id = $1 and node = 1 and item = -1", execution
    )
    assert found == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("items", "status", "reason"), [([], "succeeded", None), ([1] * 6, "failed", "too_many_items")]
)
async def test_maps_over_nothing_and_over_too_much(
    desk: Room, items: list[int], status: str, reason: str | None
) -> None:
    each = {"over": "input.list", "item": {"kind": "transform", "value": "item"}, "max_items": 5}
    execution = await desk.start(await desk.publish(workflow("a=map", a=each)))
    async with desk.worker() as hands:
        step = await hands.one()
        await hands.tick(step.done("items", items=items, concurrency=None))
    found = await desk.execution(execution)
    assert (found["status"], found["reason"]) == (status, reason)


async def test_an_item_that_fails_ends_the_map_and_the_execution(desk: Room) -> None:
    each = {"over": "input.list", "item": {"kind": "transform", "value": "item"}}
    execution = await desk.start(await desk.publish(workflow("a=map", a=each)))
    async with desk.worker() as hands:
        step = await hands.one()
        items = await hands.tick(step.done("items", items=[1, 2], concurrency=None))
        await hands.tick(items[0].failed(), items[1].done(output=2))
        assert hands.stale == [items[1].lease]
    found = await desk.execution(execution)
    assert (found["status"], found["error"]["item"], found["steps"]["a"]["status"]) == ("failed", 0, "failed")


async def test_executions_past_retention_are_deleted_with_all_that_is_theirs(desk: Room) -> None:
    shape = await desk.publish(workflow("a"))
    old, new = await desk.start(shape), await desk.start(shape)
    running = await desk.start(await desk.publish(workflow("b", b={"pool": "nobody"})))
    async with desk.worker() as hands:
        await hands.run(echo)
    moved = "019a0000-0000-7000-8000-"  # an id of October 2025
    for execution in (old, running):
        for table, column in (
            ("workflow_executions", "id"),
            ("workflow_steps", "execution_id"),
            ("workflow_queue", "execution_id"),
        ):
            await desk.operator.execute(
                f"update {table} set {column} = ($2 || right({column}::text, 12))::uuid where {column} = $1",
                execution,
                moved,
            )
    await desk.operator.execute(
        "update workflow_executions set finished_at = now() - interval '91 days'"
        " where id::text like $1 and finished_at is not null",
        f"{moved}%",
    )
    assert await desk.operator.fetchval("select vanilla.job_workflow_history(100)") == {
        "executions": 1,
        "allocations": 0,
        "more": False,
    }
    left = [
        row["id"]
        for row in await desk.operator.fetch("select id from workflow_executions where workflow_id = $1", shape)
    ]
    assert left == [new]
    steps = "select count(*) from workflow_steps where execution_id::text like $1"
    assert await desk.operator.fetchval(steps, f"{moved}%") == 2  # of the one that still runs


ASKS = {"kind": "approval", "title": "Go on?", "approvers": ["role:admin"], "quorum": 1} | dict.fromkeys(
    ("prompt", "subject", "edit", "deadline_s", "on_deadline", "escalate_to")
)
ASK = {"title": "Go on?", "approvers": ["role:admin"]}


async def test_a_question_that_a_join_did_not_wait_for_is_asked_no_more(desk: Room) -> None:
    shape = workflow("quick ask=approval end=join", "quick>end ask>end", ask=ASK, end={"mode": "any"})
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        await hands.tick(steps["ask"].done("waiting", wait=ASKS))
        end = await hands.one(steps["quick"].done())
        assert (await desk.execution(execution))["steps"]["ask"]["status"] == "skipped"
        await hands.tick(end.done())
    assert (await desk.execution(execution))["status"] == "succeeded"
    status = "select status from workflow_approvals where execution_id = $1"
    assert await desk.operator.fetchval(status, execution) == "cancelled"


@pytest.mark.parametrize("had", [False, True], ids=["", "and that somebody has just then"])
async def test_a_child_that_a_join_did_not_wait_for_ends_too(desk: Room, had: bool) -> None:
    child = await desk.publish(workflow("c"))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", child)
    shape = workflow("quick sub=workflow end=join", "quick>end sub>end", sub={"ref": slug}, end={"mode": "any"})
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        steps = {step.node: step for step in await hands.tick()}
        begun = await hands.one(steps["sub"].done("waiting", wait={"kind": "execution", "ref": slug, "input": {}}))
        if had:
            await desk.operator.execute("begin")
            await desk.operator.execute("select from workflow_executions where id = $1 for update", begun.execution_id)
        end = await hands.one(steps["quick"].done())
        if had:
            await desk.operator.execute("rollback")
            assert await desk.tend() == 1
        ended = await desk.execution(uuid.UUID(begun.execution_id))
        assert (ended["status"], ended["reason"]) == ("cancelled", "not_needed")
        assert await hands.tick(begun.done(), n=0) == []
        assert hands.stale == [begun.lease]
        await hands.tick(end.done(), n=0)
    assert (await desk.execution(execution))["status"] == "succeeded"
    assert await desk.tend() == 0
    timers = "select count(*) from workflow_timers where execution_id = any ($1)"
    assert await desk.operator.fetchval(timers, [execution, uuid.UUID(begun.execution_id)]) == 0


async def test_the_run_of_an_only_step_that_somebody_waits_for_ends_with_it(desk: Room) -> None:
    person = await desk.people.user(balance=1000)
    definition = {"instructions": "You help.", "model": "sandbox-small"}
    await desk.operator.fetchval("select save_agent('only', $1, p_user_id => $2)", definition, person.identity.user_id)
    flow = workflow("a=agent", a={"ref": "only", "input": "{'message': 'Hi'}"})
    execution = await desk.start(await desk.publish(flow, person), person=person)
    async with desk.worker() as hands:
        step = await hands.one()
        lease = {**step.claim, "worker": str(hands.worker)}
        run = await hands.connection.fetchval("select vanilla.begin_run($1, 'only', '{}')", lease)
        done = step.done(output={"text": "Hello"}, run=run["run_id"])
        tick = "select vanilla.tick_run($1, $2, 1, $3, $4)"
        told = await hands.connection.fetchval(tick, hands.worker, [done], uuid.UUID(step.tenant_id), execution)
    assert (told["end"]["status"], told["end"]["output"]) == ("succeeded", {"a": {"text": "Hello"}})
    state = "select state from agent_runs where id = $1"
    assert await desk.operator.fetchval(state, uuid.UUID(run["run_id"])) == "completed"
