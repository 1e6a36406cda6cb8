"""Steps that a strategy holds for whom it prefers: the same worker, a region, labels; and when that one is gone."""

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack

import pytest

from tests.workflows.hands import Hands, Room, Step, workflow

SET = "select set_routing_strategy('held', $1, 'worker', $2, 'held', $3, $4)"
POOL = {"pool": "held"}
LONG = {"hold_ms": 3_600_000}
OVER = "update workflow_queue set held_until = vanilla.clock() where held_until is not null and worker is null"
MANY = 24
"""Executions: that all of them prefer one of two workers happens once in eight million times."""
HELD = "select count(*) from workflow_queue where strpos(pool, '@') > 0"


@pytest.fixture(autouse=True)
async def nothing_left(desk: Room) -> AsyncIterator[None]:
    """No worker and no rule of another test."""
    yield
    await desk.operator.execute(
        "update workflow_executions set status = 'cancelled', finished_at = vanilla.clock(), hold_id = null"
    )
    await desk.operator.execute("delete from workflow_queue")
    await desk.operator.execute("delete from routing_strategies where slug = 'held'")
    for worker in await desk.operator.fetch("select id from worker_registry where status not in ('stopped', 'dead')"):
        await desk.operator.fetchval("select vanilla.stop_worker($1)", worker["id"])


async def strategy(desk: Room, kind: str, *, explain: bool = False, status: str = "active", **config: object) -> None:
    await desk.operator.fetchval(SET, kind, config, explain, status)


async def workers(stack: AsyncExitStack, desk: Room, count: int) -> list[Hands]:
    return [await stack.enter_async_context(desk.worker("held")) for _ in range(count)]


async def ask(one: Hands) -> list[Step]:
    """As if it had not been anywhere: a worker that was slow somewhere looks behind that place for 250 ms."""
    one.state = {}
    return await one.tick(n=100)


async def all_ask(hands: Iterable[Hands]) -> list[list[Step]]:
    """Each asks, and again, since the first to ask only puts aside what is others'."""
    got = [await ask(one) for one in hands]
    return [first + await ask(one) for first, one in zip(got, hands, strict=True)]


async def chain(desk: Room, **routing: object) -> uuid.UUID:
    fields = POOL | ({"routing": routing} if routing else {})
    return await desk.publish(workflow("a b", "a>b", a=fields, b=fields))


async def start_many(desk: Room) -> None:
    shape = await chain(desk)
    for _ in range(MANY):
        await desk.start(shape)


async def test_all_steps_of_an_execution_go_to_the_same_worker(desk: Room) -> None:
    await strategy(desk, "sticky", **LONG)
    shape = await chain(desk)
    executions = [str(await desk.start(shape)) for _ in range(12)]
    async with AsyncExitStack() as stack:
        hands = await workers(stack, desk, 3)
        first = await all_ask(hands)
        where = {step.execution_id: n for n, steps in enumerate(first) for step in steps}
        assert where.keys() == set(executions)
        assert len(set(where.values())) > 1
        for one, steps in zip(hands, first, strict=True):
            await one.tick(*(step.done() for step in steps), n=0)
        second = await all_ask(hands)
        assert {step.execution_id: n for n, steps in enumerate(second) for step in steps} == where
        assert {step.node for steps in second for step in steps} == {"b"}


@pytest.mark.parametrize("of", ["user", "tenant", "workflow"])
async def test_the_key_can_be_the_users_the_tenants_or_the_workflows(desk: Room, of: str) -> None:
    await strategy(desk, "sticky", **LONG)
    shape = await chain(desk, key=of)
    for _ in range(12):
        await desk.start(shape)
    async with AsyncExitStack() as stack:
        assert sorted(len(steps) for steps in await all_ask(await workers(stack, desk, 3))) == [0, 0, 12]


async def test_another_may_have_it_when_the_time_is_over(desk: Room) -> None:
    await strategy(desk, "sticky", **LONG)
    await start_many(desk)
    async with AsyncExitStack() as stack:
        one, two = await workers(stack, desk, 2)
        mine = await ask(one)
        assert await ask(one) == []
        held = await desk.operator.fetchval(HELD)
        assert 0 < held == MANY - len(mine)
        assert await desk.tend() == 0
        await desk.operator.execute(OVER)
        assert await desk.tend() == held
        assert len(await ask(one)) == held
        assert await ask(two) == []


async def test_hard_means_that_worker_or_none_until_it_ends(desk: Room) -> None:
    await strategy(desk, "sticky", mode="hard")
    await start_many(desk)
    async with AsyncExitStack() as stack:
        one, two = await workers(stack, desk, 2)
        mine = await ask(one)
        assert (
            await desk.operator.fetchval("select min(held_until) > now() + interval '100 years' from workflow_queue")
            is True
        )
        await desk.operator.fetchval("select vanilla.stop_worker($1)", two.worker)
        assert len(mine) + len(await ask(one)) == MANY


async def test_what_is_held_for_a_dead_worker_is_anothers(desk: Room) -> None:
    await strategy(desk, "sticky", mode="hard")
    await start_many(desk)
    async with AsyncExitStack() as stack:
        one, two = await workers(stack, desk, 2)
        got = await ask(one)
        got += await two.tick(n=2)  # and these it takes with it
        await desk.operator.execute(
            "update worker_registry set heartbeat_at = vanilla.clock() - interval '1 minute' where id = $1", two.worker
        )
        assert await desk.operator.fetchval("select vanilla.bury_workers()") == [two.worker]
        await one.tick(*(step.done() for step in got if step.lease not in one.stale), n=0)
        ran = await one.run(lambda step: step.done())
        assert Counter(ran)["b"] == MANY
        assert await desk.operator.fetchval(HELD) == 0


async def test_a_worker_that_drains_gives_up_what_is_held_for_it(desk: Room) -> None:
    await strategy(desk, "sticky", mode="hard")
    await start_many(desk)
    async with AsyncExitStack() as stack:
        one, two = await workers(stack, desk, 2)
        mine = await ask(one)
        await two.connection.execute("select vanilla.drain_worker($1)", two.worker)
        assert len(mine) + len(await ask(one)) == MANY


async def test_a_region_that_must_be_kept_is_kept(desk: Room) -> None:
    await strategy(desk, "region", residency=True, hold_ms=1000)
    await desk.start(await chain(desk, region="eu"))
    async with desk.worker("held", region="us") as abroad:
        assert await ask(abroad) == []
        await desk.operator.execute(OVER)
        assert await desk.tend() == 1
        assert await ask(abroad) == []  # nor later
        async with desk.worker("held", region="eu") as here:
            assert await ask(here) == []  # nobody has it until it is looked at again
            await desk.operator.execute(OVER)
            await desk.tend()
            assert [step.node for step in await ask(here)] == ["a"]


async def test_the_nearest_region_comes_first_and_others_later(desk: Room) -> None:
    await strategy(desk, "region", **LONG)
    await desk.start(await chain(desk, region="eu"))
    async with desk.worker("held", region="us") as abroad, desk.worker("held", region="eu") as here:
        assert await ask(abroad) == []
        (step,) = await ask(here)
        await here.tick(step.done(), n=0)
        assert await ask(abroad) == []
        await desk.operator.execute(OVER)
        await desk.tend()
        assert [step.node for step in await ask(abroad)] == ["b"]


async def test_labels_attract_and_labels_are_asked_for(desk: Room) -> None:
    await strategy(desk, "affinity", **LONG)
    await desk.start(await chain(desk, prefer=[{"match": {"gpu": "a100"}, "weight": 5}]))
    await desk.start(await chain(desk, require={"disk": "fast"}))
    async with (
        desk.worker("held") as plain,
        desk.worker("held", gpu="a100") as gpu,
        desk.worker("held", disk="fast") as disk,
    ):
        got = await all_ask([plain, gpu, disk])
        assert [len(steps) for steps in got] == [0, 1, 1]


async def test_a_decision_is_kept_and_told(desk: Room) -> None:
    await strategy(desk, "sticky", explain=True, **LONG)
    execution = await desk.start(await chain(desk))
    async with desk.worker("held") as hands:
        (step,) = await ask(hands)
        assert step.execution_id == str(execution)
        decision = await desk.operator.fetchrow(
            "select id, chosen, context from routing_decisions where context ->> 'key' = $1", str(execution)
        )
        assert (decision["chosen"], decision["context"]["pool"]) == (str(hands.worker), "held")
        told = await desk.operator.fetchval("select explain_routing($1)", decision["id"])
        assert told["replayed"] is True


async def test_a_rule_that_changes_frees_what_the_old_one_held(desk: Room) -> None:
    await strategy(desk, "sticky", mode="hard")
    await start_many(desk)
    async with AsyncExitStack() as stack:
        one, _ = await workers(stack, desk, 2)
        mine = await ask(one)
        await strategy(desk, "sticky", status="disabled", mode="hard")
        assert len(mine) + len(await ask(one)) == MANY


async def test_items_and_lost_steps_are_placed_by_themselves(desk: Room) -> None:
    await strategy(desk, "sticky", **LONG)
    item = {"kind": "transform", "value": "1"}
    shape = await desk.publish(
        workflow("each=map", each={"over": "input.list", "item": item, "concurrency": 10} | POOL)
    )
    await desk.start(shape, list=[1, 2, 3])
    async with AsyncExitStack() as stack:
        hands = await workers(stack, desk, 2)
        got = await all_ask(hands)
        [(owner, step)] = [(one, steps[0]) for one, steps in zip(hands, got, strict=True) if steps]
        await owner.tick(step.done("items", items=[1, 2, 3], concurrency=10), n=0)
        pools = "select array_agg(distinct pool) from workflow_queue"
        assert await desk.operator.fetchval(pools) == ["held"]
        claimed = await all_ask(hands)
        assert sum(map(len, claimed)) == 3
        await desk.operator.fetchval("select vanilla.reclaim_leases($1)", owner.worker)
        assert await desk.operator.fetchval(pools) == ["held"]


async def test_a_tenants_rule_holds_its_own_steps_only(desk: Room) -> None:
    other = await desk.people.user(tenant_id=await desk.people.tenant())
    await desk.operator.execute(
        """insert into routing_strategies (tenant_id, slug, kind, config, pool)
        values ($1, 'held', 'sticky', '{"mode": "hard"}', 'held')""",
        other.identity.tenant_id,
    )
    mine = await desk.publish(workflow("a", a=POOL))
    theirs = await desk.publish(workflow("a", a=POOL), other)
    for _ in range(MANY):
        await desk.start(mine)
        await desk.start(theirs)
    async with AsyncExitStack() as stack:
        one, two = await workers(stack, desk, 2)
        tenants = Counter(step.tenant_id for step in await ask(one))
        assert tenants[str(desk.owner.identity.tenant_id)] == MANY
        held = await desk.operator.fetchval(HELD)
        assert 0 < held == MANY - tenants[str(other.identity.tenant_id)]
        assert len(await ask(two)) == held
