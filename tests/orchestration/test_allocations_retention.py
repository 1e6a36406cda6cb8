"""Trees of budgets that have ended are deleted after their time, never one that is open or paid what is kept."""

import uuid
from typing import Any

import pytest

from tests.orchestration.studio import Studio, agent, says
from tests.orchestration.support import Trees
from tests.orchestration.test_allocations import refused
from tests.tokens.support import START
from vanilla_saas.checks import BOOKS, run_checks

LEFT = "select (select count(*) from resource_allocations where user_id = $1), (select count(*) from allocation_holds where user_id = $1)"
OLD = (
    "update resource_allocations set closed_at = closed_at - interval '91 days' where root_id = $1 and state <> 'open'"
)
OLD_STEPS = (
    "update allocation_holds set closed_at = closed_at - interval '91 days' where user_id = $1 and state <> 'open'"
)


@pytest.fixture(autouse=True)
async def nothing_old(trees: Trees) -> None:
    """Trees of other tests have gone before."""
    await trees.later(days=3650)
    await job(trees, 100_000)
    await trees.at(START)


async def job(trees: Trees, limit: int = 100) -> dict[str, Any]:
    return dict(await trees.connection.fetchval("select vanilla.job_workflow_history($1)", limit))


async def test_trees_that_ended_long_ago_go_with_their_steps_and_the_ledger_stays(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 600, idempotency_key="old")
    child = await trees.carve(root, 400)
    await trees.pay(await trees.hold(child, "one", 150), 100)
    await trees.release(await trees.hold(root, "two", 50))
    await trees.end(root)
    ledger = await trees.entries(user)
    await trees.later(days=89)
    assert (await job(trees))["allocations"] == 0
    await trees.later(days=2)
    assert await job(trees) == {"executions": 0, "allocations": 1, "more": False}
    assert tuple(await trees.connection.fetchrow(LEFT, user.id)) == (0, 0)
    assert await trees.entries(user) == ledger
    assert await trees.broken() == []
    told = await refused(trees.open(user, 600, idempotency_key="old"), "VS404")
    assert told["allocation_id"] == root["allocation_id"]


async def test_what_is_open_stays_and_what_expired_goes(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    expired = await trees.open(user, 100)
    await trees.later(hours=2)
    await trees.reap_trees()
    await trees.later(days=80)
    late, ended = await trees.open(user, 100), await trees.open(user, 100)
    await trees.end(ended)
    await trees.later(days=11)
    # its time is over, and nobody has written that down yet
    assert (await job(trees))["allocations"] == 1
    found = await trees.connection.fetch("select id from resource_allocations where user_id = $1 order by id", user.id)
    assert [str(row["id"]) for row in found] == sorted([late["allocation_id"], ended["allocation_id"]])
    assert expired["allocation_id"] not in {str(row["id"]) for row in found}
    assert await trees.broken() == []


async def test_a_tree_whose_hold_is_open_stays(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    root = await trees.open(user, 100)
    id_ = uuid.UUID(root["allocation_id"])
    await trees.connection.execute(
        "update resource_allocations set state = 'closed', closed_at = vanilla.clock() where id = $1", id_
    )
    await trees.later(days=91)
    assert (await job(trees))["allocations"] == 0
    await trees.connection.fetchval("select release_token_hold(hold_id) from resource_allocations where id = $1", id_)
    assert (await job(trees))["allocations"] == 1


async def test_so_many_at_a_time(trees: Trees) -> None:
    user = await trees.user(balance=1000)
    for _ in range(3):
        await trees.end(await trees.open(user, 100))
    await trees.later(days=91)
    assert await job(trees, 2) == {"executions": 0, "allocations": 2, "more": True}
    assert await job(trees, 2) == {"executions": 0, "allocations": 1, "more": False}


async def test_the_budget_of_a_run_stays_as_long_as_the_run(desk: Studio) -> None:
    person, operator = await desk.shop.person(balance=100_000), desk.shop.operator
    slug = await desk.save(agent(says("Yes."), limits={"tokens": 9000}))
    run = await desk.ended(await desk.start(person, slug))
    await operator.execute(OLD, run["allocation_id"])
    await operator.execute(OLD_STEPS, person.identity.user_id)
    job = "select vanilla.job_workflow_history(100)"
    assert (await operator.fetchval(job))["allocations"] == 0
    await operator.fetchval("select vanilla.delete_runs($1, array[$2::uuid])", run["tenant_id"], run["execution_id"])
    assert (await operator.fetchval(job))["allocations"] == 1
    assert tuple(await operator.fetchrow(LEFT, person.identity.user_id)) == (0, 0)
    charged = "select spent_tokens from user_token_wallets where user_id = $1"
    assert await operator.fetchval(charged, person.identity.user_id) == run["charged_tokens"]
    assert [str(one) for one in await run_checks(operator, BOOKS)] == []


async def test_the_budget_of_a_workflow_stays_as_long_as_the_execution(desk: Studio) -> None:
    person, operator = await desk.shop.person(balance=100_000), desk.shop.operator
    node = {"id": "a", "kind": "llm", "model": "sandbox-small", "prompt": "Hi", "max_output_tokens": 50}
    flow = await desk.shop.flow({"nodes": [node], "connections": [], "budget_tokens": 5000}, person)
    started = await desk.shop.ask(person, "start_workflow", flow, {})
    execution = uuid.UUID(started["execution_id"])
    await desk.shop.ask(person, "cancel_execution", execution)
    root = await operator.fetchval("select allocation_id from workflow_executions where id = $1", execution)
    await operator.execute(OLD, root)
    await operator.execute(OLD_STEPS, person.identity.user_id)
    job = "select vanilla.job_workflow_history(100)"
    assert (await operator.fetchval(job))["allocations"] == 0
    await operator.execute("delete from workflow_steps where execution_id = $1", execution)
    await operator.execute("delete from workflow_executions where id = $1", execution)
    assert (await operator.fetchval(job))["allocations"] == 1
    assert tuple(await operator.fetchrow(LEFT, person.identity.user_id)) == (0, 0)
