"""What holds no worker: time, signals, people, other executions, places of a concurrency key; and gates."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import Person
from tests.workflows.hands import Hands, Room, Step, workflow
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.pool import Database

DECIDE = "select decide_approval($1, $2, $3, $4)"
ASKED = {"kind": "approval", "title": "May it?", "prompt": "", "approvers": ["role:admin"], "quorum": 1}


@pytest.fixture(scope="module")
async def as_people(desk: Room, signer: ContextSigner) -> AsyncIterator[Database]:
    opened = await Database.open(
        desk.cluster.url("vanilla_app", desk.name), desk.cluster.url("vanilla_runtime", desk.name), signer, size=2
    )
    yield opened
    await opened.close()


def echo(step: Step) -> dict[str, object]:
    return step.done(output=step.node)


async def waiting(desk: Room, execution: uuid.UUID, node: str) -> str | None:
    step = (await desk.execution(execution))["steps"][node]
    return step["waits_for"] if step["status"] == "waiting" else None


async def test_a_wait_holds_no_worker_and_ends_by_itself(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a=wait b", "a>b", a={"seconds": 60})))
    due = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    async with desk.worker() as hands:
        step = await hands.one()
        assert await hands.tick(step.done("waiting", wait={"kind": "timer", "due_at": due}, state=None)) == []
        assert (await waiting(desk, execution, "a"), await desk.tend()) == ("time", 0)
        assert await desk.pass_time(execution) == 1
        assert await hands.run(echo) == ["b"]
    assert (await desk.execution(execution))["status"] == "succeeded"


SIGNAL = {"kind": "signal", "name": "paid", "timeout_s": 60, "check": False}


async def test_a_signal_may_come_after_the_node_and_before(desk: Room) -> None:
    shape = await desk.publish(workflow("a=signal b", "a>b:received", a={"signal": "paid"}))
    for early in (True, False):
        execution = await desk.start(shape)
        async with desk.worker() as hands:
            if early:
                await desk.operator.fetchval("select signal_execution($1, 'paid', $2)", execution, {"cents": 5})
            step = await hands.one()
            ready = await hands.tick(step.done("waiting", wait=SIGNAL, state=None))
            if not early:
                assert (ready, await waiting(desk, execution, "a")) == ([], "signal:paid")
                sent = await desk.operator.fetchval("select signal_execution($1, 'paid', $2)", execution, {"cents": 5})
                assert sent["steps"] == 1
                ready = await hands.tick()
            await hands.run(echo, *(b.done() for b in ready))
        found = await desk.operator.fetchrow(
            "select * from workflow_steps where execution_id = $1 and node = 1", execution
        )
        assert (found["status"], found["branch"], found["output"]) == ("succeeded", "received", {"cents": 5})
        assert (
            await desk.operator.fetchval("select count(*) from workflow_timers where execution_id = $1", execution) == 0
        )


async def test_the_first_signal_of_a_name_counts(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a=signal", a={"signal": "paid"})))
    send = "select signal_execution($1, $2, $3)"
    await desk.operator.fetchval(send, execution, "paid", 1)
    with pytest.raises(asyncpg.PostgresError, match="has had the signal paid") as raised:
        await desk.operator.fetchval(send, execution, "paid", 2)
    assert raised.value.sqlstate == "VS409"
    with pytest.raises(asyncpg.PostgresError, match="a signal has a name") as raised:
        await desk.operator.fetchval(send, execution, "Not a name", 1)
    assert raised.value.sqlstate == "VS400"
    await desk.operator.fetchval("select cancel_execution($1)", execution)
    with pytest.raises(asyncpg.PostgresError, match="the execution is cancelled"):
        await desk.operator.fetchval(send, execution, "other", 1)


async def test_a_signal_that_does_not_come_expires(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a=signal b", "a>b:expired", a={"signal": "paid"})))
    async with desk.worker() as hands:
        step = await hands.one()
        await hands.tick(step.done("waiting", wait=SIGNAL, state=None))
        await desk.pass_time(execution)
        assert await hands.run(echo) == ["b"]


async def test_a_payload_with_a_schema_goes_by_a_worker(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a=signal", a={"signal": "paid"})))
    async with desk.worker() as hands:
        step = await hands.one()
        await hands.tick(step.done("waiting", wait=SIGNAL | {"check": True}, state={"kept": 1}))
        await desk.operator.fetchval("select signal_execution($1, 'paid', $2)", execution, {"cents": "five"})
        again = await hands.one()
        assert (again.node, again.attempt, again.decision) == ("a", 1, {"payload": {"cents": "five"}})
        assert again.state["kept"] == 1
        await hands.tick(again.failed("schema_mismatch"))
    assert (await desk.execution(execution))["reason"] == "schema_mismatch"


async def asked(desk: Room, hands: Hands, **more: Any) -> tuple[uuid.UUID, uuid.UUID]:
    """An execution that waits for people, and its approval."""
    shape = workflow(
        "a=approval b c d", "a>b:approved a>c:rejected a>d:expired", a={"title": "May it?", "approvers": ["role:admin"]}
    )
    execution = await desk.start(await desk.publish(shape))
    step = await hands.one()
    assert await hands.tick(step.done("waiting", wait=ASKED | more, state=None)) == []
    return execution, await desk.operator.fetchval(
        "select id from workflow_approvals where execution_id = $1", execution
    )


async def decide(
    people: Database, person: Person, approval: uuid.UUID, decision: str, comment: str = "", value: Any = None
) -> Any:
    async with people.transaction(person.identity) as connection:
        return await connection.fetchval(DECIDE, approval, decision, comment or None, value)


@pytest.mark.parametrize(("decision", "then"), [("approved", "b"), ("rejected", "c")])
async def test_who_is_asked_decides(desk: Room, as_people: Database, decision: str, then: str) -> None:
    admin = await desk.people.user("admin")
    async with desk.worker() as hands:
        execution, approval = await asked(desk, hands, subject={"text": "draft"}, title="May it?" + " " * 300)
        async with as_people.transaction(admin.identity) as connection:
            mine = await connection.fetch("select * from my_approvals()")
        assert [(row["id"], row["node"], row["title"].rstrip(), row["subject"]) for row in mine] == [
            (approval, "a", "May it?", {"text": "draft"})
        ]
        assert len(mine[0]["title"]) == 200
        answer = await decide(as_people, admin, approval, decision, "Looks right.")
        assert answer["status"] == decision
        assert await hands.run(echo) == [then]
    step = await desk.operator.fetchrow("select * from workflow_steps where execution_id = $1 and node = 1", execution)
    assert step["output"] == {
        "value": {"text": "draft"},
        "comment": "Looks right.",
        "by": [str(admin.identity.user_id)],
    }
    with pytest.raises(Exception, match="the approval is"):
        await decide(as_people, admin, approval, "approved")


async def test_others_may_not_decide_nor_see(desk: Room, as_people: Database) -> None:
    stranger = await desk.people.user()
    elsewhere = await desk.people.user("admin", await desk.people.tenant())
    async with desk.worker() as hands:
        execution, approval = await asked(desk, hands)
        for person in (stranger, elsewhere):
            async with as_people.transaction(person.identity) as connection:
                assert await connection.fetch("select * from my_approvals()") == []
            with pytest.raises(Exception, match="no such approval"):
                await decide(as_people, person, approval, "approved")
        with pytest.raises(Exception, match="others are asked"):  # whose execution it is knows of it
            await decide(as_people, desk.owner, approval, "approved")
        assert await waiting(desk, execution, "a") == "approval"
        await desk.operator.fetchval("select cancel_execution($1)", execution)
    status = await desk.operator.fetchval("select status from workflow_approvals where id = $1", approval)
    assert status == "cancelled"


async def test_a_quorum_needs_as_many_people_and_one_rejection_is_enough(desk: Room, as_people: Database) -> None:
    admins = [await desk.people.user("admin") for _ in range(3)]
    async with desk.worker() as hands:
        _, approval = await asked(desk, hands, quorum=2)
        assert (await decide(as_people, admins[0], approval, "approved"))["status"] == "open"
        with pytest.raises(Exception, match="you have decided this already"):
            await decide(as_people, admins[0], approval, "approved")
        assert (await decide(as_people, admins[1], approval, "approved"))["status"] == "approved"
        assert await hands.run(echo) == ["b"]
        _, other = await asked(desk, hands, quorum=2)
        await decide(as_people, admins[0], other, "approved")
        assert (await decide(as_people, admins[1], other, "rejected"))["status"] == "rejected"
        assert await hands.run(echo) == ["c"]


async def test_only_what_may_be_edited_is_edited(desk: Room, as_people: Database) -> None:
    admin = await desk.people.user("admin")
    edit = {"type": "object", "properties": {"text": {"type": "string"}}}
    async with desk.worker() as hands:
        execution, approval = await asked(desk, hands, subject={"text": "a", "to": "b"}, edit=edit)
        for value in ({"text": "x", "to": "c"}, {"text": "x"}, {"text": "x", "to": "b", "more": 1}, [1]):
            with pytest.raises(Exception, match="only the fields of edit"):
                await decide(as_people, admin, approval, "approved", value=value)
        with pytest.raises(Exception, match="nothing of this may be changed"):
            await decide(as_people, admin, approval, "rejected", value={"text": "x", "to": "b"})
        await decide(as_people, admin, approval, "approved", value={"text": "x", "to": "b"})
        assert await hands.run(echo) == ["b"]
    output = await desk.operator.fetchval(
        "select output from workflow_steps where execution_id = $1 and node = 1", execution
    )
    assert output["value"] == {"text": "x", "to": "b"}


@pytest.mark.parametrize(("on_deadline", "then"), [(None, "d"), ("approve", "b"), ("reject", "c")])
async def test_what_happens_at_the_deadline(desk: Room, on_deadline: str | None, then: str) -> None:
    async with desk.worker() as hands:
        execution, _ = await asked(desk, hands, deadline_s=60, on_deadline=on_deadline)
        assert await desk.pass_time(execution) == 1
        assert await hands.run(echo) == [then]


async def test_at_the_deadline_others_are_asked(desk: Room, as_people: Database) -> None:
    boss = await desk.people.user()
    admin = await desk.people.user("admin")
    async with desk.worker() as hands:
        to = [f"user:{boss.identity.user_id}"]
        execution, approval = await asked(desk, hands, deadline_s=60, on_deadline="escalate", escalate_to=to)
        await desk.pass_time(execution)
        with pytest.raises(Exception, match="others are asked"):
            await decide(as_people, admin, approval, "approved")
        await decide(as_people, boss, approval, "approved")
        assert await hands.run(echo) == ["b"]
        execution, approval = await asked(desk, hands, deadline_s=60, on_deadline="escalate", escalate_to=to)
        await desk.pass_time(execution)
        await desk.pass_time(execution)  # they did not either
        assert await hands.run(echo) == ["d"]


def judged(step: Step, score: float, feedback: str = "too long") -> dict[str, object]:
    return step.done("gate", passed=score == 1, score=score, threshold=1, feedback=feedback, suggestions=["shorter"],
                     metrics={"checks": []}, value="what was checked")  # fmt: skip


async def test_a_gate_sends_back_what_depends_on_the_node_and_no_more(desk: Room) -> None:
    gate = {"on_fail": "retry", "retry": {"node": "b", "times": 2}}
    shape = workflow("a b side g=gate c", "a>b b>g b>side g>c b>c", g=gate)
    execution = await desk.start(await desk.publish(shape))
    scores = iter([0.0, 0.5, 1.0])
    seen: list[Any] = []

    def answer(step: Step) -> dict[str, object]:
        if step.node == "b":
            seen.append((step.round, step.feedback))
        return judged(step, next(scores)) if step.node == "g" else step.done(output=f"{step.node}{step.round}")

    async with desk.worker() as hands:
        ran = await hands.run(answer)
    assert [ran.count(name) for name in ("a", "b", "g", "c")] == [1, 3, 3, 1]
    told = {"score": 0.0, "feedback": "too long", "suggestions": ["shorter"], "value": "what was checked", "attempt": 1}
    assert seen == [(0, None), (1, told), (2, told | {"score": 0.5, "attempt": 2})]
    found = await desk.execution(execution)
    assert (found["status"], found["output"]) == ("succeeded", {"c": "c2", "side": "side2"})
    results = await desk.operator.fetch(
        "select round, passed, score from quality_gate_results where execution_id = $1 order by id", execution
    )
    assert [tuple(row) for row in results] == [(0, False, 0.0), (1, False, 0.5), (2, True, 1.0)]


async def test_items_of_a_map_that_is_sent_back_are_of_its_round(desk: Room) -> None:
    each = {"over": "[1, 2]", "item": {"kind": "transform", "value": "item"}}
    gate = {"on_fail": "retry", "retry": {"node": "a", "times": 1}}
    execution = await desk.start(await desk.publish(workflow("a=map g=gate", "a>g", a=each, g=gate)))
    scores = iter([0.0, 1.0])
    seen: list[tuple[int | None, int]] = []

    def answer(step: Step) -> dict[str, object]:
        if step.node == "g":
            return judged(step, next(scores))
        seen.append((step.item, step.round))
        return step.done("items", items=[1, 2]) if step.item is None else step.done(output=1)

    async with desk.worker() as hands:
        await hands.run(answer)
    assert (await desk.execution(execution))["status"] == "succeeded"
    assert seen == [(None, 0), (0, 0), (1, 0), (None, 1), (0, 1), (1, 1)]


async def test_a_gate_that_is_not_passed_in_time_stops_or_branches(desk: Room) -> None:
    gate = {"on_fail": "retry", "retry": {"node": "a", "times": 1}}
    for links, ends in (("a>g g>b:passed", "failed"), ("a>g g>b:failed", "succeeded")):
        execution = await desk.start(await desk.publish(workflow("a g=gate b", links, g=gate)))
        async with desk.worker() as hands:
            ran = await hands.run(lambda step: judged(step, 0) if step.node == "g" else step.done())
        found = await desk.execution(execution)
        assert (found["status"], found["reason"]) == (ends, "gate_failed" if ends == "failed" else None)
        assert ran == ["a", "g", "a", "g"] + (["b"] if ends == "succeeded" else [])


@pytest.mark.parametrize(("decision", "status"), [("approved", "succeeded"), ("rejected", "failed")])
async def test_a_gate_asks_people(desk: Room, as_people: Database, decision: str, status: str) -> None:
    gate = {"on_fail": "escalate", "escalate_to": ["role:admin"]}
    admin = await desk.people.user("admin")
    execution = await desk.start(await desk.publish(workflow("a g=gate b", "a>g g>b", g=gate)))
    async with desk.worker() as hands:
        await hands.run(lambda step: judged(step, 0) if step.node == "g" else step.done())
        approval = await desk.operator.fetchrow("select * from workflow_approvals where execution_id = $1", execution)
        assert (approval["subject"], approval["approvers"]) == ("what was checked", ["role:admin"])
        await decide(as_people, admin, approval["id"], decision)
        await hands.run(echo)
    assert (await desk.execution(execution))["status"] == status


async def test_a_check_by_people_comes_back_to_the_gate(desk: Room, as_people: Database) -> None:
    admin = await desk.people.user("admin")
    execution = await desk.start(await desk.publish(workflow("g=gate", g={"on_fail": "stop"})))
    async with desk.worker() as hands:
        step = await hands.one()
        await hands.tick(step.done("waiting", wait=ASKED, state={"so far": [1]}))
        approval = await desk.operator.fetchval("select id from workflow_approvals where execution_id = $1", execution)
        await decide(as_people, admin, approval, "approved", "Fine.")
        again = await hands.one()
        assert (again.state, again.decision["decision"], again.decision["comment"]) == (
            {"so far": [1]},
            "approved",
            "Fine.",
        )
        await hands.tick(judged(again, 1))
    assert (await desk.execution(execution))["status"] == "succeeded"


async def test_a_node_runs_another_workflow(desk: Room) -> None:
    inner = await desk.publish(workflow("x"))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", inner)
    outer = await desk.start(await desk.publish(workflow("a=workflow b", "a>b", a={"ref": slug})))
    async with desk.worker() as hands:
        step = await hands.one()
        x = await hands.one(
            step.done("waiting", wait={"kind": "execution", "ref": slug, "input": {"n": 1}}, state=None)
        )
        assert (x.node, x.input) == ("x", {"n": 1})
        assert await waiting(desk, outer, "a") == "execution"
        assert await hands.tick(x.done(output=7)) == []
        assert await desk.tend() == 1
        again = await hands.one()
        assert (again.node, again.attempt) == ("a", 1)
        assert (again.decision["status"], again.decision["output"]) == ("succeeded", {"x": 7})
        await hands.run(echo, again.done(output=7))
    assert (await desk.execution(outer))["status"] == "succeeded"


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_workflow_within_ends_with_the_one_that_started_it(desk: Room, how: str) -> None:
    inner = await desk.publish(workflow("x"))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", inner)
    outer = await desk.start(await desk.publish(workflow("a=workflow", a={"ref": slug})))
    async with desk.worker() as hands:
        step = await hands.one()
        x = await hands.one(step.done("waiting", wait={"kind": "execution", "ref": slug, "input": {}}, state=None))
        if how == "late":
            await desk.pass_time(outer)
        else:
            await desk.operator.fetchval("select cancel_execution($1)", outer)
        await hands.tick(x.done())
        assert hands.stale == [x.lease]
    found = await desk.execution(outer)
    assert (found["status"], found["reason"]) == (
        ("failed", "timeout") if how == "late" else ("cancelled", "cancelled")
    )
    assert (
        await desk.operator.fetchval("select status from workflow_executions where parent_execution_id = $1", outer)
        == "cancelled"
    )


async def test_a_workflow_that_starts_itself_ends(desk: Room) -> None:
    shape = workflow("a=workflow", a={"ref": "self"})
    me = await desk.publish(shape)
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", me)
    await desk.start(me)
    depth = 0
    async with desk.worker() as hands:
        while steps := await hands.tick():
            depth += 1
            await hands.tick(
                steps[0].done("waiting", wait={"kind": "execution", "ref": slug, "input": {}}, state=None), n=0
            )
        assert depth == 6
        while await desk.tend():
            for step in await hands.tick():
                await hands.tick(step.failed("child_failed"), n=0)
    ends = await desk.operator.fetch(
        "select distinct status, reason from workflow_executions where workflow_id = $1", me
    )
    assert {tuple(row) for row in ends} == {("failed", "workflow_not_started"), ("failed", "child_failed")}


async def test_so_many_of_a_key_at_a_time(desk: Room) -> None:
    shape = await desk.publish(workflow("a", concurrency={"key": "input.k", "limit": 2}))
    executions = [await desk.start(shape, k="x") for _ in range(3)]
    async with desk.worker() as hands:
        starts = await hands.tick()
        ready = await hands.tick(*(step.done("go", key="x", limit=2) for step in starts))
        assert {step.execution_id for step in ready} == {str(e) for e in executions[:2]}
        assert await waiting(desk, executions[2], "$start") == "slot"
        await hands.tick(ready[0].done())
        assert await desk.tend() == 1
        again = await hands.one()
        third = await hands.one(again.done("go", key="x", limit=2))
        await hands.tick(third.done(), ready[1].done())
    assert {(await desk.execution(e))["status"] for e in executions} == {"succeeded"}


async def test_an_execution_that_takes_too_long_fails(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a", max_duration_s=60)))
    async with desk.worker() as hands:
        step = await hands.one()
        await desk.pass_time(execution)
        await hands.tick(step.done())
        assert hands.stale == [step.lease]
    found = await desk.execution(execution)
    assert (found["status"], found["reason"]) == ("failed", "deadline")


@pytest.mark.parametrize(("ref", "given"), [("{}@stable", {}), ("{}@", {"x": [1] * 400_000}), ("{}@9999999999", {})])
async def test_a_workflow_that_cannot_be_started_ends_its_step_and_not_its_workers_round(
    desk: Room, ref: str, given: dict[str, object]
) -> None:
    slug = await desk.operator.fetchval(
        "select slug from ai_workflows where id = $1", await desk.publish(workflow("x"))
    )
    outer, beside = [await desk.start(await desk.publish(workflow("a=workflow", a={"ref": slug}))) for _ in range(2)]
    async with desk.worker() as hands:
        one, other = sorted(await hands.tick(), key=lambda step: step.execution_id != str(outer))
        wait = {"kind": "execution", "ref": ref.format(slug), "input": given}
        assert await hands.tick(one.done("waiting", wait=wait, state=None), other.done(output=1)) == []
    assert (await desk.execution(outer))["reason"] == "workflow_not_started"
    assert (await desk.execution(beside))["status"] == "succeeded"


@pytest.mark.parametrize(("budget", "status"), [(200_000, "active"), (10, "locked")])
async def test_a_workflow_that_cannot_have_its_tokens_ends_its_step_and_not_its_workers_round(
    desk: Room, budget: int, status: str
) -> None:
    person = await desk.people.user(balance=1000)
    part = await desk.publish(workflow("x", budget_tokens=budget), person)
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", part)
    outer = await desk.start(await desk.publish(workflow("a=workflow", a={"ref": slug}), person), person=person)
    beside = await desk.start(await desk.publish(workflow("a")))
    lock = "update user_token_wallets set status = $2 where user_id = $1"
    await desk.operator.execute(lock, person.identity.user_id, status)
    async with desk.worker() as hands:
        one, other = sorted(await hands.tick(), key=lambda step: step.execution_id != str(outer))
        wait = {"kind": "execution", "ref": slug, "input": {}}
        assert await hands.tick(one.done("waiting", wait=wait, state=None), other.done(output=1)) == []
    assert (await desk.execution(outer))["reason"] == "workflow_not_started"
    assert (await desk.execution(beside))["status"] == "succeeded"
