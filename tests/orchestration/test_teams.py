"""Teams: a document of agents and a pattern becomes what runs."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import Person
from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says
from tests.orchestration.test_runs import ended_flow, settled
from vanilla_saas.orchestration.teams import Plan, Team, plan
from vanilla_saas.workflows.definition import plain

LOOPS = BOTH_LOOPS
MEMBER = {"model": "m", "instructions": "x"}


async def saved(desk: Studio, team: dict[str, Any]) -> Plan:
    made = plan(Team.model_validate(team))
    for slug, definition in made.agents.items():
        await desk.shop.ask(
            desk.shop.admin,
            "save_agent",
            slug,
            definition.model_copy(update={"loop": desk.loop}).document(),
            p_shared=True,
        )
    return made


async def flow(desk: Studio, person: Person, team: dict[str, Any]) -> Any:
    made = await saved(desk, team)
    assert made.workflow is not None
    return await ended_flow(desk, person, plain(made.workflow), message="Mushrooms")


async def test_a_sequence_gives_each_what_the_last_one_said(desk: Studio) -> None:
    person = await desk.shop.person()
    plain_agent = {"model": "sandbox-small", "instructions": "You repeat."}
    team = {"name": "chain", "pattern": "sequential", "agents": {"one": agent(says("First.")), "two-b": plain_agent}}
    found = await flow(desk, person, team)
    assert (found["status"], found["output"]["text"]) == ("succeeded", 'You said: "First."')


@pytest.mark.parametrize(("join", "canceled"), [("all", 0), ("any", 2), (2, 1)])
async def test_a_fan_waits_for_as_many_as_it_says_and_cancels_the_rest(desk: Studio, join: Any, canceled: int) -> None:
    person = await desk.shop.person(balance=1_000_000)
    slow = 60_000 if canceled else 0
    agents = {
        "a": agent(says("A.", latency_ms=800)),
        "b": agent(says("B.", latency_ms=800 if join != "any" else slow)),
        "c": agent(says("C.", latency_ms=slow)),
    }
    team = {
        "name": f"fan{join}",
        "pattern": "concurrent",
        "join": join,
        "merge": "m",
        "agents": agents | {"m": {"model": "sandbox-small", "instructions": "Merge."}},
        "budget_tokens": 50_000,
    }
    found = await flow(desk, person, team)
    assert (found["status"], found["output"]["agent"]) == ("succeeded", f"fan{join}-m")
    states = await desk.shop.operator.fetch("select state from agent_runs where execution_id = $1", found["id"])
    assert sum(row["state"] == "canceled" for row in states) == canceled
    held = await desk.shop.operator.fetchval(
        "select reserved_tokens from user_token_wallets where user_id = $1", person.identity.user_id
    )
    assert held == 0


async def test_handovers_go_to_everybody_else_of_the_team(desk: Studio) -> None:
    person = await desk.shop.person()
    agents = {"front": agent(calls(("transfer_to_desk-back", {}))), "back": agent(says(""), says("From the back."))}
    made = await saved(desk, {"name": "desk", "pattern": "handoff", "agents": agents, "budget_tokens": 9_000})
    run = await desk.ended(await desk.start(person, made.start))
    assert (run["output"]["agent"], run["output"]["text"], run["limits"]["tokens"]) == (
        "desk-back",
        "From the back.",
        9000,
    )
    await settled(desk, run)


async def test_a_manager_asks_its_members_as_often_as_it_likes(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    ask = calls(("delegate_to_lab-chemist", {"message": "Mix"}))
    again = calls(("delegate_to_lab-chemist", {"message": "Mix again"}), ("delegate_to_lab-clerk", {"message": "Note"}))
    agents = {
        "chemist": agent(says("Blue.")),
        "boss": agent(ask, again, says("It is blue.")),
        "clerk": agent(says("Noted.")),
    }
    made = await saved(desk, {"name": "lab", "pattern": "manager", "lead": "boss", "agents": agents})
    assert "You lead these agents: chemist, clerk." in made.agents["lab-boss"].instructions
    run = await desk.ended(await desk.start(person, made.start))
    assert run["output"]["text"] == "It is blue."
    assert await desk.shop.operator.fetchval("select count(*) from agent_runs where parent_run_id = $1", run["id"]) == 3
    await settled(desk, run)


@pytest.mark.parametrize(
    ("floor", "start"), [("round_robin", "panel-chat"), ("manager", "panel-ann"), ("bid", "panel-chat")]
)
async def test_a_panel_talks_by_its_floor(desk: Studio, floor: str, start: str) -> None:
    person = await desk.shop.person(balance=1_000_000)
    lead = (
        agent(calls(("transfer_to_panel-bob", {})), says("Thanks, Bob."))
        if floor == "manager"
        else agent(says("7 from Ann."))
    )
    agents = {"ann": lead, "bob": agent(says("5 from Bob.")), "cid": agent(says("3 from Cid."))}
    made = await saved(desk, {"name": "panel", "pattern": "group_chat", "floor": floor, "rounds": 1, "agents": agents})
    assert made.start == start
    run = await desk.ended(await desk.start(person, made.start))
    ends = {"round_robin": "3 from Cid.", "manager": "Thanks, Bob.", "bid": "7 from Ann."}
    assert (run["stop_reason"], run["output"]["text"]) == ("done", ends[floor])
    await settled(desk, run)


async def test_a_contract_goes_to_the_member_who_asks_least(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    offers = {name: agent(says(f'{{"price_tokens": {price}}}')) for name, price in (("dear", 3000), ("cheap", 900))}
    lead = agent(calls(("contract_out", {"message": "Mow the lawn."})), says("Mown."))
    made = await saved(desk, {"name": "yard", "pattern": "contract_net", "agents": {"boss": lead, **offers}})
    run = await desk.ended(await desk.start(person, made.start))
    assert run["output"]["text"] == "Mown."
    won = await desk.shop.operator.fetchval(
        "select a.slug from contract_bids b join agents a on a.id = b.agent_id where b.state = 'done' and a.slug like 'yard-%' order by b.id desc limit 1"
    )
    assert won == "yard-cheap"
    await settled(desk, run)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"lead": "nobody"}, "lead names nobody"),
        ({"merge": "nobody"}, "merge names nobody"),
        ({"join": 2}, "join counts 1 to 1"),
        ({"agents": {}}, "at least 1"),
        *(({"agents": {name: MEMBER}}, "has a name of more than") for name in ("Ab", "é", "²", "a" * 20, "a b", "")),
        ({"agents": {"a-b": MEMBER, "a_b": MEMBER}}, "a-b and a_b would be one node"),
        ({"pattern": "group_chat", "agents": {"a": MEMBER, "chat": MEMBER}}, "chat is what the team itself is called"),
    ],
)
def test_a_team_that_cannot_be_made_says_why(change: dict[str, Any], why: str) -> None:
    team = {"name": "t", "pattern": "concurrent", "agents": {"a": MEMBER}}
    with pytest.raises(ValidationError, match=why):
        Team.model_validate(team | change)


@pytest.mark.parametrize("pattern", ["handoff", "manager"])
def test_names_that_only_nodes_would_share_are_two(pattern: str) -> None:
    made = plan(Team.model_validate({"name": "t", "pattern": pattern, "agents": {"a-b": MEMBER, "a_b": MEMBER}}))
    assert set(made.agents) == {"t-a-b", "t-a_b"}


def test_a_manager_of_a_chat_may_be_called_chat() -> None:
    agents = {"chat": MEMBER, "a": MEMBER, "b": MEMBER}
    made = plan(Team.model_validate({"name": "t", "pattern": "group_chat", "floor": "manager", "agents": agents}))
    assert (set(made.agents), made.start) == ({"t-chat", "t-a", "t-b"}, "t-chat")
