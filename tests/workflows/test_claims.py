"""Who gets which step: tenants in turn, priorities that age, caps, leases that are lost, and what that costs."""

import asyncio
import uuid

import asyncpg
import pytest

from tests.conftest import Person
from tests.workflows.hands import Hands, Room, Step, workflow

ADMIT = (
    "select vanilla.admit_call(null, null, null, 'sandbox-small', 10, 10, 40, 1, $1, false, '11 minutes',"
    " null, null, $2)"
)
CALL = {"status": "succeeded", "input": 10, "output": 5, "cached": 0, "reasoning": 0, "estimated": False,
        "error_code": None, "latency_ms": 5, "first_token_ms": None}  # fmt: skip


def key(hands: Hands, step: Step) -> dict[str, object]:
    names = ("tenant_id", "execution_id", "n", "item", "lease")
    return {name: step.claim[name] for name in names} | {"worker": str(hands.worker)}


async def call(hands: Hands, step: Step) -> dict[str, object]:
    """A model call of a step, admitted: what settles it."""
    admitted = await hands.connection.fetchval(ADMIT, uuid.uuid4(), key(hands, step))
    return CALL | {"hold_id": admitted["hold_id"]}


async def money(desk: Room, person: Person) -> tuple[int, int]:
    wallet = await desk.people.wallet(person)
    return wallet["available_tokens"], wallet["reserved_tokens"]


async def drain(hands: Hands) -> None:
    await hands.run(lambda step: step.done())


async def test_a_quiet_tenant_is_served_beside_a_flood(desk: Room) -> None:
    quiet = await desk.people.user(tenant_id=await desk.people.tenant())
    flood = await desk.publish(workflow("a"))
    for _ in range(40):
        await desk.start(flood)
    one = await desk.start(await desk.publish(workflow("a"), quiet))
    async with desk.worker() as hands:
        first = await hands.tick(n=4)
        assert str(one) in {step.execution_id for step in first}
        assert len(first) == 4  # and there is no empty place while the flood has work
        await hands.run(lambda step: step.done(), *(step.done() for step in first))


async def test_a_tenant_of_more_weight_gets_more_of_each_turn(desk: Room) -> None:
    people = [await desk.people.user(tenant_id=await desk.people.tenant()) for _ in range(2)]
    await desk.operator.fetchval("select set_workflow_share($1, 3)", people[0].identity.tenant_id)
    for person in people:
        shape = await desk.publish(workflow("a"), person)
        for _ in range(12):
            await desk.start(shape)
    async with desk.worker() as hands:
        seen = [step.tenant_id for _ in range(3) for step in await hands.tick(n=4)]
        assert seen.count(str(people[0].identity.tenant_id)) == 9
        for worker_steps in [await hands.tick(n=100)]:
            assert len(worker_steps) == 12
    await desk.operator.execute("delete from workflow_queue")


async def test_a_cap_holds_for_all_workers_together(desk: Room) -> None:
    person = await desk.people.user(tenant_id=await desk.people.tenant())
    await desk.operator.fetchval("select set_workflow_share($1, 1, 3)", person.identity.tenant_id)
    shape = await desk.publish(workflow("a"), person)
    for _ in range(10):
        await desk.start(shape)
    async with desk.worker() as one, desk.worker() as two, desk.worker() as three:
        claimed = await asyncio.gather(*(hands.tick(n=10) for hands in (one, two, three)))
        # who finds the tenant being looked at passes it by
        rest = await one.tick(n=10)
        assert sum(map(len, claimed)) + len(rest) == 3
        hands, steps = next((h, s) for h, s in zip((one, two, three), claimed, strict=True) if s)
        assert len(await hands.tick(steps[0].done(), n=10)) == 1
    await desk.operator.execute("delete from workflow_queue")


async def test_priority_goes_first_and_waiting_makes_up_for_it(desk: Room) -> None:
    shape = await desk.publish(workflow("a"))
    start = "select (start_workflow($1, p_priority => $2) ->> 'execution_id')::uuid"
    low, high = [await desk.operator.fetchval(start, shape, priority) for priority in (0, 9)]
    old = await desk.operator.fetchval(start, shape, 0)
    await desk.operator.execute(
        "update workflow_queue set rank = vanilla.step_rank(vanilla.clock() - interval '271 s', 0)"
        " where execution_id = $1",
        old,
    )
    async with desk.worker() as hands:
        order = [(await hands.tick(n=1))[0].execution_id for _ in range(3)]
    assert order == [str(old), str(high), str(low)]
    await desk.operator.execute("delete from workflow_queue")


async def test_a_worker_takes_steps_of_its_pools_only(desk: Room) -> None:
    await desk.start(await desk.publish(workflow("a b", a={"pool": "gpu"})))
    async with desk.worker("gpu") as gpu, desk.worker() as usual:
        assert [step.node for step in await gpu.tick()] == ["a"]
        assert [step.node for step in await usual.tick()] == ["b"]
    async with desk.worker("gpu", "default") as both:
        await desk.start(await desk.publish(workflow("a b", a={"pool": "gpu"})))
        assert [step.node for step in await both.tick()] == ["a", "b"]
    await desk.operator.execute("delete from workflow_queue")


async def test_two_workers_never_have_the_same_step(desk: Room) -> None:
    shape = await desk.publish(workflow("a b", "a>b"))
    executions = [await desk.start(shape) for _ in range(60)]
    ran: list[tuple[str, str]] = []

    async def work(hands: Hands) -> None:
        while steps := await hands.tick(n=7):
            while steps:
                ran.extend((step.execution_id, step.node) for step in steps)
                steps = await hands.tick(*(step.done() for step in steps), n=7)

    async with desk.worker() as one, desk.worker() as two, desk.worker() as three:
        await asyncio.gather(*map(work, (one, two, three)))
        await work(one)
    assert sorted(ran) == sorted((str(e), node) for e in executions for node in "ab")
    done = await desk.operator.fetchval(
        "select count(*) from workflow_executions where id = any($1) and status = 'succeeded'", executions
    )
    assert done == 60


async def test_a_call_is_settled_with_its_step_and_charged_to_who_started_it(desk: Room) -> None:
    person = await desk.people.user(balance=1000)
    execution = await desk.start(await desk.publish(workflow("a b", "a>b"), person))
    async with desk.worker() as hands:
        step = await hands.one()
        settled = [await call(hands, step), await call(hands, step)]
        assert (await money(desk, person))[1] > 0
        b = await hands.one(step.done(output="x", calls=settled))
        failed = await call(hands, b)
        await hands.tick(b.done("failed", error={"code": "schema_mismatch", "message": "no"}, calls=[failed]))
    found = await desk.execution(execution)
    charged = [found["steps"][name]["charged_tokens"] for name in "ab"]
    assert charged[0] == 2 * charged[1] > 0
    assert (await money(desk, person)) == (1000 - sum(charged), 0)
    assert found["charged_tokens"] == sum(charged)
    # what it cost is what the ledger says
    ledger = await desk.operator.fetchval(
        "select -sum(l.amount) from user_token_ledger l"
        " where l.reference_type = 'workflow_execution' and l.reference_id = $1",
        execution,
    )
    assert ledger == sum(charged)
    assert (
        await desk.operator.fetchval("select count(*) from ai_executions where user_id = $1", person.identity.user_id)
        == 3
    )


@pytest.mark.parametrize("how", ["cancel", "reclaim", "deadline", "stale"])
async def test_a_step_that_is_taken_away_costs_nothing(desk: Room, how: str) -> None:
    person = await desk.people.user(balance=1000)
    execution = await desk.start(await desk.publish(workflow("a"), person))
    async with desk.worker() as hands:
        step = await hands.one()
        settlement = await call(hands, step)
        if how == "cancel":
            await desk.operator.fetchval("select cancel_execution($1)", execution)
        elif how == "reclaim":
            assert await desk.operator.fetchval("select vanilla.reclaim_leases($1)", hands.worker) == 1
        elif how == "deadline":
            await desk.operator.execute(
                "update workflow_queue set deadline_at = now() where execution_id = $1", execution
            )
            assert await desk.tend() == 1
        else:
            await desk.operator.execute(
                "update workflow_queue set worker = null, lease = null where execution_id = $1", execution
            )
        if how != "stale":
            assert await money(desk, person) == (1000, 0)
        with pytest.raises(asyncpg.PostgresError) as raised:
            await call(hands, step)
        assert raised.value.sqlstate == "VS409"
        again = await hands.tick(step.done(output=1, calls=[settlement]))
        assert hands.stale == [step.lease]
        assert await money(desk, person) == (1000, 0)
        assert len(again) == (0 if how == "cancel" else 1)
        await hands.run(lambda s: s.done(), *(s.done() for s in again))


async def test_a_step_with_which_three_workers_end_fails(desk: Room) -> None:
    execution = await desk.start(await desk.publish(workflow("a")))
    async with desk.worker() as hands:
        for _ in range(3):
            await hands.one()
            await desk.operator.fetchval("select vanilla.reclaim_leases($1)", hands.worker)
        assert await hands.tick() == []
    found = await desk.execution(execution)
    assert (found["status"], found["reason"]) == ("failed", "worker_lost")


async def test_a_step_that_is_handed_back_has_not_used_an_attempt(desk: Room) -> None:
    await desk.start(await desk.publish(workflow("a")))
    async with desk.worker() as hands:
        step = await hands.one()
        again = await hands.one(step.done("handed_back"))
        assert again.attempt == 1
        assert again.lease > step.lease
        await drain(hands)
        await hands.tick(again.done())


async def test_an_execution_without_tokens_stops_and_goes_on_after_a_top_up(desk: Room) -> None:
    person = await desk.people.user(balance=20)
    execution = await desk.start(await desk.publish(workflow("a"), person))
    async with desk.worker() as hands:
        step = await hands.one()
        with pytest.raises(asyncpg.PostgresError) as raised:
            await call(hands, step)
        assert raised.value.sqlstate == "VS402"
        await hands.tick(step.failed("insufficient_tokens"))
        assert (await desk.execution(execution))["reason"] == "insufficient_tokens"
        await desk.people.set_balance(person, 1000)
        await desk.operator.fetchval("select resume_execution($1)", execution)
        again = await hands.one()
        await hands.tick(again.done(calls=[await call(hands, again)]))
    assert (await desk.execution(execution))["status"] == "succeeded"


async def test_an_estimate_is_reserved_at_the_start_used_by_calls_and_returned(desk: Room) -> None:
    person = await desk.people.user(balance=100)
    shape = await desk.publish(workflow("a", estimate_tokens=90), person)
    execution = await desk.start(shape)
    assert await money(desk, person) == (10, 90)
    with pytest.raises(asyncpg.PostgresError) as raised:
        await desk.start(shape)
    assert raised.value.sqlstate == "VS402"
    async with desk.worker() as hands:
        step = await hands.one()
        settlement = await call(hands, step)  # it needs more than the 10 that are free
        available, reserved = await money(desk, person)
        assert (available + reserved, reserved) == (100, 90)
        await hands.tick(step.done(calls=[settlement]))
    charged = (await desk.execution(execution))["charged_tokens"]
    assert await money(desk, person) == (100 - charged, 0)


async def test_the_same_key_starts_once(desk: Room) -> None:
    shape = await desk.publish(workflow("a"))
    start = "select start_workflow($1, $2, p_idempotency_key => 'k')"
    first = await desk.operator.fetchval(start, shape, {"n": 1})
    again = await desk.operator.fetchval(start, shape, {"n": 1})
    assert (first["replayed"], again["replayed"], again["execution_id"]) == (False, True, first["execution_id"])
    with pytest.raises(asyncpg.PostgresError) as raised:
        await desk.operator.fetchval(start, shape, {"n": 2})
    assert raised.value.sqlstate == "VS410"
    await desk.operator.fetchval("select cancel_execution($1)", uuid.UUID(first["execution_id"]))
    await desk.operator.fetchval("select retire_workflow($1)", shape)
    late = await desk.operator.fetchval(start, shape, {"n": 1})
    assert (late["replayed"], late["status"], late["execution_id"]) == (True, "cancelled", first["execution_id"])


async def test_a_start_that_is_undone_leaves_nothing(desk: Room) -> None:
    shape = await desk.publish(workflow("a"))
    before = await desk.operator.fetchval("select count(*) from workflow_executions")
    transaction = desk.operator.transaction()
    await transaction.start()
    await desk.start(shape)
    await transaction.rollback()
    assert await desk.operator.fetchval("select count(*) from workflow_executions") == before
    async with desk.worker() as hands:
        assert await hands.tick() == []
