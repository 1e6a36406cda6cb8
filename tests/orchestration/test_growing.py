"""A run without a limit of tokens reserves what its calls need, when they need it; nothing is overspent."""

import asyncio
import uuid
from typing import Any

import pytest

from tests.conftest import Person
from tests.orchestration.studio import Studio, agent, calls, says
from tests.orchestration.test_runs import ended_flow, settled, team
from vanilla_saas.checks import BOOKS, run_checks

NODES = "select * from resource_allocations where user_id = $1 order by depth, id"
UNLIMITED: dict[str, Any] = {"max_output_tokens": 200}


async def books(desk: Studio, person: Person, balance: int) -> int:
    """What all runs of a person were charged; everything else is back."""
    operator = desk.shop.operator
    charged = int(
        await operator.fetchval(
            "select sum(charged_tokens) from agent_runs where user_id = $1", person.identity.user_id
        )
    )
    wallet = await desk.shop.room.people.wallet(person)
    figures = wallet["available_tokens"], wallet["reserved_tokens"], wallet["borrowed_tokens"], wallet["spent_tokens"]
    assert figures == (balance - charged, 0, 0, charged)
    for node in await operator.fetch(NODES, person.identity.user_id):
        assert (node["state"], node["overrun_tokens"]) == ("closed", 0)
    assert [str(one) for one in await run_checks(operator, BOOKS)] == []
    return charged


async def test_several_at_once_work_on_a_wallet_that_affords_them_all(desk: Studio) -> None:
    person = await desk.shop.person(balance=12_000)
    slug = await desk.save(agent(says("Yes.", latency_ms=500), **UNLIMITED))
    found = await ended_flow(desk, person, team(5, slug), topic="Go")
    assert found["status"] == "succeeded", found["error"]
    assert await books(desk, person, 12_000) == found["charged_tokens"] > 0
    nodes = await desk.shop.operator.fetch(NODES, person.identity.user_id)
    assert [node["most_tokens"] for node in nodes] == [50_000] * 5
    assert max(node["budget_tokens"] for node in nodes) < 2_400  # not even a fifth
    assert [node["notified_at"] for node in nodes] == [None] * 5


async def test_who_finds_the_wallet_empty_ends_and_nobody_is_in_debt(desk: Studio) -> None:
    balance = 2000
    person = await desk.shop.person(balance=balance)
    slug = await desk.save(agent(says("Yes.", latency_ms=300), max_output_tokens=1000))
    runs = [await desk.start(person, slug) for _ in range(6)]
    ends = {(await desk.ended(run))["stop_reason"] for run in runs}
    assert ends == {"done", "budget_exhausted"}
    await books(desk, person, balance)


async def test_a_limit_is_reserved_as_it_was_said(desk: Studio) -> None:
    person = await desk.shop.person(balance=100_000)
    limited = await desk.save(agent(says("Yes."), limits={"tokens": 9000}))
    free = await desk.save(agent(says("Yes.")))
    for run in (await desk.start(person, limited), await desk.start(person, free, p_tokens=9000)):
        ended = await desk.ended(run)
        node = await desk.shop.operator.fetchrow(
            "select * from resource_allocations where id = $1", ended["allocation_id"]
        )
        assert (node["budget_tokens"], node["most_tokens"], node["wrap_up_tokens"]) == (9000, None, 900)
    await books(desk, person, 100_000)


async def test_those_that_it_asks_grow_with_it(desk: Studio) -> None:
    person = await desk.shop.person(balance=12_000)
    helper = await desk.save(agent(says("Done.", latency_ms=300), **UNLIMITED))
    ask = (f"delegate_to_{helper}", {"message": "Do"})
    boss = agent(calls(ask, ask, ask), says("All done."), delegates=[{"agent": helper}], **UNLIMITED)
    run = await desk.ended(await desk.start(person, await desk.save(boss)))
    assert (run["state"], run["output"]["text"]) == ("completed", "All done.")
    await settled(desk, run)
    await books(desk, person, 12_000)
    root, *below = await desk.shop.operator.fetch(NODES, person.identity.user_id)
    assert [node["parent_id"] for node in below] == [root["id"]] * 3
    assert root["spent_tokens"] == run["charged_tokens"] + sum(node["spent_tokens"] for node in below)


async def test_it_grows_up_to_its_most_and_then_has_one_turn(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    again = [calls(("look_up", {"name": str(n)}), completion_tokens=150) for n in range(20)]
    slug = await desk.save(
        agent(*again, tools=["look_up"], max_output_tokens=200, limits={"turns": 1000, "requests": 1000})
    )
    run = await desk.start(person, slug)
    await desk.shop.operator.execute(
        "update resource_allocations set most_tokens = 9000 where run_id = $1 and budget_tokens < 9000", run
    )
    ended = await desk.ended(run)
    assert ended["stop_reason"] == "budget_exhausted"
    assert ended["turns"] > 3
    node = await desk.shop.operator.fetchrow("select * from resource_allocations where id = $1", ended["allocation_id"])
    assert 7200 < node["budget_tokens"] <= 9000  # what was refused let nothing grow
    assert node["wrap_up_tokens"] == node["budget_tokens"] // 10
    assert node["notified_at"] is not None
    assert await books(desk, person, 1_000_000) <= 9000


async def test_a_top_up_while_it_runs_is_used(desk: Studio) -> None:
    person = await desk.shop.person(balance=3000)
    turns = [calls(("look_up", {"name": str(n)}), completion_tokens=500, latency_ms=200) for n in range(6)]
    slug = await desk.save(agent(*turns, says("End."), tools=["look_up"], max_output_tokens=600))
    run = await desk.start(person, slug)
    async with asyncio.timeout(20):
        while not (await desk.run(run))["turns"]:
            await asyncio.sleep(0.02)
    await desk.shop.room.people.set_balance(person, 50_000)
    assert (await desk.ended(run))["stop_reason"] == "done"


@pytest.mark.parametrize("depth", [1, 2])
async def test_calls_at_once_in_one_tree_do_not_wait_for_each_other_for_ever(desk: Studio, depth: int) -> None:
    """Children grow out of one parent from several connections, while others end."""
    person = await desk.shop.person(balance=400_000)
    leaf = await desk.save(agent(calls(("look_up", {"name": "x"})), says("Done."), tools=["look_up"], **UNLIMITED))
    for _ in range(depth):
        asks = calls(*[(f"delegate_to_{leaf}", {"message": str(n)}) for n in range(3)])
        leaf = await desk.save(agent(asks, says("All."), delegates=[{"agent": leaf}], **UNLIMITED))
    runs: list[uuid.UUID] = [await desk.start(person, leaf) for _ in range(3)]
    for run in runs:
        assert (await desk.ended(run, 60))["state"] == "completed"
    await books(desk, person, 400_000)
