"""Whoever touches the money of an execution locks budgets, then holds, then the wallet: nobody waits in a ring."""

import asyncio
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Person
from tests.processes import eventually
from tests.workflows.hands import Room, workflow
from tests.workflows.test_claims import call

LOCKS = {
    "budget": "select from resource_allocations where user_id = $1 for no key update",
    "hold": "select from user_token_holds where user_id = $1 and state = 'open' for update",
    "wallet": "select from user_token_wallets where user_id = $1 for update",
}
WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


async def waits_before_the_wallet(desk: Room, person: Person, lock: str, act: Any) -> None:
    """While somebody has the lock, who acts waits for it, and has not the wallet yet."""
    user_id = person.identity.user_id
    other = await asyncpg.connect(desk.cluster.url(database=desk.name))
    async with other.transaction():
        await other.execute(LOCKS[lock], user_id)
        acting = asyncio.create_task(act)
        await eventually(lambda: other.fetchval(WAITING))
        await other.execute(f"{LOCKS['wallet']} nowait", user_id)
    await other.close()
    await acting


async def test_a_call_that_a_budget_pays(desk: Room) -> None:
    person = await desk.people.user(balance=2000)
    flow = workflow("a", budget_tokens=500, estimate_tokens=300)
    execution = await desk.start(await desk.publish(flow, person))
    async with desk.worker() as hands:
        step = await hands.one()
        await waits_before_the_wallet(desk, person, "budget", call(hands, step))
        await hands.tick(step.done())
    assert (await desk.execution(execution))["status"] == "succeeded"


@pytest.mark.parametrize("lock", ["budget", "hold"])
async def test_a_person_who_is_erased(desk: Room, lock: str) -> None:
    person = await desk.people.user(balance=2000)
    await desk.start(await desk.publish(workflow("a"), person))
    opened = await desk.operator.fetchval("select allocation_open(500, p_user_id => $1)", person.identity.user_id)
    await desk.operator.fetchval("select allocation_carve($1, 100)", uuid.UUID(opened["allocation_id"]))
    erasing = desk.operator.fetchval("select erase_user($1, 'left')", person.identity.user_id)
    await waits_before_the_wallet(desk, person, lock, erasing)
    states = "select distinct state from resource_allocations where user_id = $1"
    assert await desk.operator.fetchval(states, person.identity.user_id) == "closed"
