"""Runs of agents: turns, tools, people, other agents, stops; each costs what the ledger says, within its budget."""

from typing import Any

from tests.orchestration.hands import DONE
from tests.orchestration.studio import Studio, agent, calls, says


async def settled(desk: Studio, run: dict[str, Any]) -> None:
    """The tree costs what the ledger has, and nothing of it is held any more."""
    rows = await desk.shop.operator.fetch("select charged_tokens, allocation_id from agent_runs where root_run_id = $1", run["root_run_id"])
    assert sum(row["charged_tokens"] for row in rows) == await desk.charged(run["root_run_id"])
    left = await desk.shop.operator.fetch("select state, held_tokens, carved_tokens, spent_tokens, budget_tokens from resource_allocations where id = any($1)", [row["allocation_id"] for row in rows])
    assert {(row["state"], row["held_tokens"], row["carved_tokens"]) for row in left} == {("closed", 0, 0)}
    wallet = await desk.shop.operator.fetchrow("select reserved_tokens, borrowed_tokens from user_token_wallets where user_id = $1", run["user_id"])
    assert tuple(wallet) == (0, 0)


async def test_an_agent_answers(desk: Studio) -> None:
    person = await desk.shop.person()
    slug = await desk.save(agent(says("Good morning.")))
    run = await desk.ended(await desk.start(person, slug))
    assert (run["state"], run["stop_reason"], run["turns"]) == ("completed", "done", 1)
    assert run["output"]["text"] == "Good morning."
    assert run["charged_tokens"] > 0
    await settled(desk, run)


async def test_tools_are_called_and_read(desk: Studio) -> None:
    person = await desk.shop.person()
    turns = (calls(("look_up", {"name": "Ada"}), ("refund", {"amount": 5})), says("Done."))
    slug = await desk.save(agent(*turns, tools=["look_up", "refund"]))
    run = await desk.ended(await desk.start(person, slug))
    assert (run["stop_reason"], run["turns"], run["tool_calls"]) == ("done", 2, 2)
    steps = await desk.steps(run["id"])
    assert [(s["kind"], s["name"], s["status"]) for s in steps] == [
        ("model", None, "done"), ("tool", "look_up", "done"), ("tool", "refund", "done"), ("model", None, "done")]
    assert steps[1]["result"] == {"name": "Ada", "plan": "pro"}
    assert DONE[f"{run['id']}:3"] == ["5"]
    await settled(desk, run)


async def test_an_agent_hands_over_and_another_delegates(desk: Studio) -> None:
    person = await desk.shop.person()
    writer = await desk.save(agent(says("A poem.")))
    manager = await desk.save(agent(says(""), calls((f"delegate_to_{writer}", {"message": "Write"}), (f"delegate_to_{writer}", {"message": "Write more"})), says("Here: a poem."), delegates=[writer]))
    front = await desk.save(agent(calls((f"transfer_to_{manager}", {})), handoffs=[manager]))
    run = await desk.ended(await desk.start(person, front))
    assert (run["stop_reason"], run["output"]["text"], run["output"]["agent"]) == ("done", "Here: a poem.", manager), run
    children = await desk.shop.operator.fetch("select * from agent_runs where parent_run_id = $1", run["id"])
    assert [(c["state"], c["output"]["text"], c["depth"]) for c in children] == [("completed", "A poem.", 1)] * 2
    await settled(desk, run)
