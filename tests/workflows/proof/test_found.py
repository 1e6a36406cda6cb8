"""What the proofs found in the runner, each as small as it gets."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.concurrency.test_tenancy_races import first_then, pair
from tests.conftest import TEST_KEY, Cluster
from tests.workflows.hands import Hands, Room, Step, workflow
from tests.workflows.proof.invariants import broken
from tests.workflows.test_claims import ADMIT, call, key, money
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.pool import _prepare


@pytest.fixture(autouse=True)
async def _nothing_left(desk: Room) -> AsyncIterator[None]:
    yield
    assert await broken(desk.operator) == {}
    for row in await desk.operator.fetch("select id from workflow_executions where finished_at is null order by depth"):
        cancel = "select vanilla.cancel_one(e.tenant_id, e.id, 'end') from workflow_executions e where e.id = $1"
        await desk.operator.fetchval(cancel, row["id"])
    await desk.tend()


GATE = {"on_fail": "retry", "retry": {"node": "a", "times": 3}}


def judged(step: Step, passed: bool) -> dict[str, Any]:
    return step.done("gate", passed=passed, score=int(passed), threshold=1, feedback="", value=1)


def by_node(steps: list[Step]) -> dict[str, Step]:
    return {step.node: step for step in steps}


async def test_what_a_gate_sends_back_still_waits_for_what_runs_beside_it(desk: Room) -> None:
    await desk.start(await desk.publish(workflow("a g=gate c d", "a>g a>c d>c", g=GATE)))
    async with desk.worker() as hands:
        first = by_node(await hands.tick())
        g = await hands.one(first["a"].done())
        a = await hands.one(judged(g, False))
        assert await hands.tick(first["d"].done()) == []  # not c: a is not done again
        assert sorted(step.node for step in await hands.tick(a.done())) == ["c", "g"]


async def test_a_restart_waits_for_all_that_was_cut_off(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "a>c b>c")))
    async with desk.worker() as hands:
        await hands.tick((await hands.tick())[0].failed())
        await desk.operator.fetchval("select restart_execution($1)", execution)
        a, b = await hands.tick()
        assert await hands.tick(a.done()) == []
        assert [step.node for step in await hands.tick(b.done())] == ["c"]


async def test_a_restart_from_elsewhere_waits_for_what_failed(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "a>c b>c")))
    async with desk.worker() as hands:
        a, b = await hands.tick()
        await hands.tick(b.done(), n=0)
        await hands.tick(a.failed())
        await desk.operator.fetchval("select restart_execution($1, 'b')", execution)
        again = by_node(await hands.tick())
        assert await hands.tick(again["a"].done()) == []
        assert [step.node for step in await hands.tick(again["b"].done())] == ["c"]


async def test_a_restart_leaves_a_failure_that_was_handled(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a b c", "a>b:failed b>c")))
    async with desk.worker() as hands:
        b = await hands.one((await hands.one()).failed())
        await hands.tick((await hands.one(b.done())).failed())
        await desk.operator.fetchval("select restart_execution($1)", execution)
        assert [step.node for step in await hands.tick()] == ["c"]


async def test_two_connections_to_one_node_are_counted_by_their_branch_when_it_is_sent_back(desk: Room) -> None:
    shape = workflow("s=switch a g=gate c", "s>c:x s>c:y a>g a>c g>c:passed", g=GATE)
    execution = await desk.start(await desk.publish(shape))
    async with desk.worker() as hands:
        first = by_node(await hands.tick())
        g = await hands.one(first["s"].done(branch="y"), first["a"].done())
        a = await hands.one(judged(g, False))
        undecided = "select undecided, taken from workflow_steps where execution_id = $1 and node = 4"
        assert tuple(await desk.operator.fetchrow(undecided, execution)) == (2, 1)
        await hands.tick(a.done(), n=0)


async def test_a_map_that_was_cut_off_starts_anew_and_its_old_items_do_not_count(desk: Room) -> None:
    each = {"over": "input.list", "item": {"kind": "transform", "value": "item"}}
    execution = await desk.start(await desk.publish(workflow("a=map b c", "b>c", a=each)))
    async with desk.worker() as hands:
        first = by_node(await hands.tick())
        items = await hands.tick(first["a"].done("items", items=[1, 2]), first["b"].done())
        c = next(step for step in items if step.node == "c")
        await hands.tick(c.failed())
        await desk.operator.fetchval("select restart_execution($1, 'b')", execution)
        again = await hands.tick()
        assert sorted((step.node, step.item) for step in again) == [("a", None), ("b", None)]


async def test_a_step_lost_while_paused_waits_until_it_goes_on(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a")))
    async with desk.worker() as hands:
        await hands.one()
        await desk.operator.fetchval("select pause_execution($1)", execution)
        await desk.operator.fetchval("select vanilla.reclaim_leases($1)", hands.worker)
        assert await hands.tick() == []
        await desk.operator.fetchval("select resume_execution($1)", execution)
        assert (await hands.one()).attempt == 1


async def started(desk: Room, hands: Hands, shape: uuid.UUID) -> tuple[uuid.UUID, list[Step]]:
    """An execution whose concurrency key was looked at, and what of it can run."""
    execution = await desk.start(shape)
    start = await hands.one()
    return execution, await hands.tick(start.done("go", key="k", limit=1))


async def test_a_place_is_not_lost_with_the_one_that_was_told_of_it(desk: Room) -> None:
    shape = await desk.publish(workflow("a", concurrency={"key": "'k'", "limit": 1}))
    async with desk.worker() as hands:
        _, (a,) = await started(desk, hands, shape)
        (second, _), (third, _) = [await started(desk, hands, shape) for _ in range(2)]
        await hands.tick(a.done())  # tells the second
        await desk.operator.fetchval("select cancel_execution($1)", second)
        await desk.tend()
        assert (await hands.one()).execution_id == str(third)


async def test_one_that_is_paused_does_not_keep_others_from_a_place(desk: Room) -> None:
    shape = await desk.publish(workflow("a", concurrency={"key": "'k'", "limit": 1}))
    async with desk.worker() as hands:
        _, (a,) = await started(desk, hands, shape)
        (second, _), (third, _) = [await started(desk, hands, shape) for _ in range(2)]
        await desk.operator.fetchval("select pause_execution($1)", second)
        await hands.tick(a.done())
        await desk.tend()
        assert (await hands.one()).execution_id == str(third)


async def test_a_restart_needs_a_place_too_and_does_not_begin_again(desk: Room) -> None:
    shape = await desk.publish(workflow("a b", "a>b", concurrency={"key": "'k'", "limit": 1}))
    async with desk.worker() as hands:
        first, (a,) = await started(desk, hands, shape)
        await hands.tick(a.failed())
        second, (other,) = await started(desk, hands, shape)
        with pytest.raises(asyncpg.PostgresError, match="all places"):
            await desk.operator.fetchval("select restart_execution($1)", first)
        await desk.operator.fetchval("select cancel_execution($1)", second)
        await desk.operator.fetchval("select restart_execution($1)", first)
        assert [step.node for step in await hands.tick(other.done())] == ["a"]


async def test_a_child_ends_when_its_step_is_sent_back_and_what_it_says_does_not_count(desk: Room) -> None:
    inner = await desk.publish(workflow("x"))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", inner)
    outer = await desk.start(await desk.publish(workflow("a g=gate w=workflow", "a>g a>w", g=GATE, w={"ref": slug})))
    async with desk.worker() as hands:
        first = by_node(await hands.tick((await hands.one()).done()))
        wait = {"kind": "execution", "ref": slug, "input": {}}
        x = await hands.one(first["w"].done("waiting", wait=wait, state=None))
        a = await hands.one(judged(first["g"], False))
        assert await hands.tick(x.done()) == []
        assert hands.stale == [x.lease]
        await desk.tend()
        assert await hands.tick() == []  # w waits for a, whatever the child said
        assert sorted(step.node for step in await hands.tick(a.done())) == ["g", "w"]
    children = await desk.operator.fetch("select status from workflow_executions where parent_execution_id = $1", outer)
    assert [row["status"] for row in children] == ["cancelled"]


async def test_a_call_of_which_the_worker_knows_nothing_is_given_back_with_the_step(desk: Room) -> None:
    person = await desk.people.user(balance=1000)
    await desk.start(await desk.publish(workflow("a b", "a>b"), person))
    async with desk.worker() as hands:
        a = await hands.one()
        await call(hands, a)  # the answer is lost
        await hands.tick(a.done("handed_back"), n=0)
        assert await money(desk, person) == (1000, 0)


async def test_what_is_admitted_while_its_lease_is_taken_is_refused_or_given_back(desk: Room, cluster: Cluster) -> None:
    for taker in ("select vanilla.reclaim_leases($1)", "select vanilla.stop_worker($1)"):
        for taken_first in (True, False):
            person = await desk.people.user(balance=1000)
            await desk.start(await desk.publish(workflow("a"), person))
            async with desk.worker() as hands, pair(cluster, desk.name) as (one, two):
                await asyncio.gather(_prepare(one), _prepare(two))
                step = await hands.one()
                taking, admitting = (one, two) if taken_first else (two, one)
                take = taking.fetchval(taker, hands.worker)
                admit = admitting.fetchval(ADMIT, uuid.uuid4(), key(hands, step))
                begun, then = (take, admit) if taken_first else (admit, take)
                outcome = await first_then(desk.operator, one, begun, two, then)
                if taken_first:
                    assert isinstance(outcome, asyncpg.PostgresError)
                    assert outcome.sqlstate in ("VS409", "VS430")
            assert await money(desk, person) == (1000, 0)
            await desk.operator.execute("delete from workflow_queue")
            await desk.operator.execute(
                "update workflow_executions set status = 'cancelled', finished_at = now() where finished_at is null"
            )


async def test_who_decides_while_the_asker_is_erased_is_told_that_there_is_nothing(
    desk: Room, cluster: Cluster
) -> None:
    person = await desk.people.user()
    admin = await desk.people.user("admin")
    await desk.start(await desk.publish(workflow("a=approval", a={"title": "?", "approvers": ["role:admin"]}), person))
    asked = {"kind": "approval", "title": "?", "prompt": "", "approvers": ["role:admin"], "quorum": 1}
    async with desk.worker() as hands:
        await hands.tick((await hands.one()).done("waiting", wait=asked, state=None))
    approval = await desk.operator.fetchval(
        "select id from workflow_approvals where user_id = $1", person.identity.user_id
    )
    token = ContextSigner(bytes.fromhex(TEST_KEY)).sign(admin.identity)
    async with pair(cluster, desk.name) as (erasing, deciding):
        await deciding.execute("select set_config('vanilla.context', $1, false)", token)
        decide = deciding.fetchval("select decide_approval($1, 'approved')", approval)
        erase = erasing.fetchval("select erase_user($1, 'left')", person.identity.user_id)
        outcome = await first_then(desk.operator, erasing, erase, deciding, decide)
    assert isinstance(outcome, asyncpg.PostgresError)
    assert outcome.sqlstate == "VS404"


async def test_a_child_that_ends_while_its_parent_is_cancelled_is_not_in_the_way(desk: Room, cluster: Cluster) -> None:
    inner = await desk.publish(workflow("x"))
    slug = await desk.operator.fetchval("select slug from ai_workflows where id = $1", inner)
    outer = await desk.start(await desk.publish(workflow("a=workflow", a={"ref": slug})))
    async with desk.worker() as hands, pair(cluster, desk.name) as (ending, cancelling):
        await _prepare(ending)
        step = await hands.one()
        x = await hands.one(step.done("waiting", wait={"kind": "execution", "ref": slug, "input": {}}, state=None))
        tick = ending.fetchval("select vanilla.tick_worker($1, $2, 0)", hands.worker, [x.done()])
        cancel = cancelling.fetchval("select cancel_execution($1)", outer)
        outcome = await first_then(desk.operator, ending, tick, cancelling, cancel)
        assert not isinstance(outcome, BaseException), outcome
    assert (await desk.execution(outer))["status"] == "cancelled"
