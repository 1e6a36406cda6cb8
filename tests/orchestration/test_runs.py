"""Runs of agents: turns, tools, people, other agents, stops; each costs what the ledger says, within its budget."""

import asyncio
import uuid
from itertools import pairwise
from typing import Any

import pytest

from tests.conftest import Person
from tests.orchestration.hands import DONE
from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says
from vanilla_saas.checks import run_checks
from vanilla_saas.client import Client
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.orchestration.journal import Journal
from vanilla_saas.workflows.execution.steps import Step

LOOPS = BOTH_LOOPS
MONEY = (
    *("allocations_reconcile", "executions_against_ledger", "executions_charged", "executions_charged_twice"),
    *("ledger_verify", "wallets_reconcile", "steps_without_execution", "executions_stuck"),
)
OPEN_APPROVAL = """
select a.* from workflow_approvals a join agent_runs r on r.tenant_id = a.tenant_id and r.execution_id = a.execution_id
where r.id = $1 and a.status = 'open'
"""
CHILD_CALLS = """
select exists (select from agent_runs c
    join allocation_holds h on h.tenant_id = c.tenant_id and h.allocation_id = c.allocation_id
    where c.parent_run_id = $1 and h.state = 'open')
"""
OWN_CALLS = """
select exists (select from agent_runs r
    join allocation_holds h on h.tenant_id = r.tenant_id and h.allocation_id = r.allocation_id
    where r.id = $1 and h.state = 'open')
"""


async def settled(desk: Studio, run: dict[str, Any]) -> None:
    """The tree costs what the ledger has, and nothing of it is held any more."""
    rows = await desk.shop.operator.fetch(
        "select charged_tokens, allocation_id from agent_runs where root_run_id = $1", run["root_run_id"]
    )
    assert sum(row["charged_tokens"] for row in rows) == await desk.charged(run["root_run_id"])
    left = await desk.shop.operator.fetch(
        "select state, held_tokens, carved_tokens from resource_allocations where id = any($1)",
        [row["allocation_id"] for row in rows],
    )
    assert {(row["state"], row["held_tokens"], row["carved_tokens"]) for row in left} == {("closed", 0, 0)}
    wallet = await desk.shop.operator.fetchrow(
        "select reserved_tokens, borrowed_tokens from user_token_wallets where user_id = $1", run["user_id"]
    )
    assert tuple(wallet) == (0, 0)
    assert [str(found) for found in await run_checks(desk.shop.operator, MONEY)] == []


async def journal_told(desk: Studio, run: dict[str, Any]) -> list[str]:
    """What the API says of a run's steps, to who may read all of the tenant's: their kinds."""
    admin = await desk.shop.room.people.user("admin", scopes=["read", "admin"])
    async with Client(desk.address, admin.key) as client:
        found = await client.agents.get(run["id"])
    (asked,) = [one for one in found["runs"] if one["id"] == str(run["id"])]
    return [step["kind"] for step in asked["steps"]]


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
        ("model", None, "done"),
        ("tool", "look_up", "done"),
        ("tool", "refund", "done"),
        ("model", None, "done"),
    ]
    assert steps[1]["result"] == {"name": "Ada", "plan": "pro"}
    assert DONE[f"{run['id']}:3"] == ["5"]
    await settled(desk, run)


async def test_an_agent_hands_over_and_another_delegates(desk: Studio) -> None:
    person = await desk.shop.person()
    writer = await desk.save(agent(says("A poem.")))
    manager = await desk.save(
        agent(
            says(""),
            calls(
                (f"delegate_to_{writer}", {"message": "Write"}), (f"delegate_to_{writer}", {"message": "Write more"})
            ),
            says("Here: a poem."),
            delegates=[writer],
        )
    )
    front = await desk.save(agent(calls((f"transfer_to_{manager}", {})), handoffs=[manager]))
    run = await desk.ended(await desk.start(person, front))
    assert (run["stop_reason"], run["output"]["text"], run["output"]["agent"]) == ("done", "Here: a poem.", manager), (
        run
    )
    children = await desk.shop.operator.fetch("select * from agent_runs where parent_run_id = $1", run["id"])
    assert [(c["state"], c["output"]["text"], c["depth"]) for c in children] == [("completed", "A poem.", 1)] * 2
    await settled(desk, run)


async def stopped(desk: Studio, definition: dict[str, Any], tokens: int | None = None) -> dict[str, Any]:
    """The run of an agent that does not end well, and its wallet is exact."""
    person = await desk.shop.person(balance=1_000_000)
    slug = await desk.save(definition)
    run = await desk.ended(await desk.start(person, slug, p_tokens=tokens))
    await settled(desk, run)
    return run


async def test_the_same_call_with_the_same_answer_is_not_made_a_third_time(desk: Studio) -> None:
    run = await stopped(desk, agent(calls(("look_up", {"name": "Ada"})), tools=["look_up"]))
    assert (run["state"], run["stop_reason"], run["turns"]) == ("failed", "loop_detected", 3)
    statuses = [s["status"] for s in await desk.steps(run["id"]) if s["kind"] == "tool"]
    assert statuses == ["done", "done", "refused"]


async def test_the_same_call_with_other_answers_goes_on(desk: Studio) -> None:
    turns = [calls(("tick", {}))] * 5
    run = await stopped(desk, agent(*turns, says("Five."), tools=["tick"]))
    assert (run["stop_reason"], run["output"]["text"]) == ("done", "Five.")


async def test_a_run_has_so_many_turns(desk: Studio) -> None:
    run = await stopped(desk, agent(calls(("tick", {})), tools=["tick"], limits={"turns": 4}))
    assert (run["state"], run["stop_reason"], run["turns"]) == ("failed", "max_turns", 4)


async def test_a_run_has_more_turns_than_fifty_when_its_limits_allow_them(desk: Studio) -> None:
    turns = [calls(("tick", {}))] * 51
    run = await stopped(
        desk, agent(*turns, says("At last."), tools=["tick"], limits={"turns": 60, "tokens": 900_000}), tokens=900_000
    )
    assert (run["stop_reason"], run["turns"], run["output"]["text"]) == ("done", 52, "At last.")


async def test_a_blank_answer_is_an_answer(desk: Studio) -> None:
    run = await stopped(desk, agent(calls(("tick", {})), says(""), tools=["tick"]))
    assert (run["stop_reason"], run["turns"], run["output"]["text"]) == ("done", 2, "")


async def test_a_tree_makes_so_many_tool_calls(desk: Studio) -> None:
    run = await stopped(desk, agent(calls(("tick", {}), ("tick", {})), tools=["tick"], limits={"tool_calls": 5}))
    assert (run["state"], run["stop_reason"], run["tool_calls"]) == ("failed", "max_tool_calls", 4)
    assert (await desk.steps(run["id"]))[-1]["status"] == "refused"


async def test_agents_that_hand_over_to_each_other_are_stopped(desk: Studio) -> None:
    b = await desk.save(agent(says("I am b.")))
    a = await desk.save(agent(calls((f"transfer_to_{b}", {})), handoffs=[b]))
    await desk.save(agent(says(""), calls((f"transfer_to_{a}", {})), handoffs=[a]), slug=b)
    person = await desk.shop.person()
    run = await desk.ended(await desk.start(person, a))
    assert (run["state"], run["stop_reason"], run["turns"]) == ("failed", "cycle_refused", 2)
    await settled(desk, run)


async def test_agents_that_may_go_back_do(desk: Studio) -> None:
    b = await desk.save(agent(says("")))
    a = await desk.save(agent(calls((f"transfer_to_{b}", {})), says(""), says("Back again."), handoffs=[b]))
    await desk.save(agent(says(""), calls((f"transfer_to_{a}", {})), handoffs=[{"agent": a, "again": True}]), slug=b)
    person = await desk.shop.person()
    run = await desk.ended(await desk.start(person, a))
    assert (run["stop_reason"], run["output"]["text"]) == ("done", "Back again.")


async def test_delegation_goes_so_deep(desk: Studio) -> None:
    names = [f"deep{n}-{id(desk)}" for n in range(7)]
    await desk.save(agent(says("Bottom.")), slug=names[-1])
    for name, below in reversed(list(pairwise(names))):
        await desk.save(
            agent(calls((f"delegate_to_{below}", {"message": "Go"})), says(f"From {below}."), delegates=[below]),
            slug=name,
        )
    person = await desk.shop.person(balance=10_000_000)
    run = await desk.ended(await desk.start(person, names[0]))
    tree = await desk.shop.operator.fetch(
        "select depth, state, stop_reason from agent_runs where root_run_id = $1 order by depth", run["id"]
    )
    assert [tuple(row) for row in tree] == [
        (0, "completed", "done"),
        (1, "completed", "done"),
        (2, "completed", "done"),
        (3, "completed", "done"),
        (4, "failed", "max_depth"),
    ]
    await settled(desk, run)


async def test_a_tree_has_so_many_children(desk: Studio) -> None:
    child = await desk.save(agent(says("Yes.")))
    wanted = [(f"delegate_to_{child}", {"message": f"{n}"}) for n in range(500)]
    run = await stopped(desk, agent(calls(*wanted), says("All."), delegates=[child], limits={"children": 7}))
    assert (run["state"], run["stop_reason"]) == ("failed", "max_children")
    assert await desk.shop.operator.fetchval("select count(*) from agent_runs where parent_run_id = $1", run["id"]) == 0


async def test_a_budget_that_is_used_up_leaves_one_turn_for_an_answer(desk: Studio) -> None:
    run = await stopped(
        desk, agent(calls(("tick", {}), completion_tokens=300), tools=["tick"], limits={"turns": 1000}), tokens=6000
    )
    assert (run["state"], run["stop_reason"]) == ("completed", "budget_exhausted"), run
    assert run["charged_tokens"] <= 6000
    last = (await desk.steps(run["id"]))[-1]
    assert (last["kind"], last["status"]) == ("model", "done")


async def test_an_answer_of_a_schema_is_asked_for_again_until_it_fits(desk: Studio) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    run = await stopped(desk, agent(says("no json"), says('{"n": "one"}'), says('{"n": 1}'), output=schema))
    assert (run["stop_reason"], run["output"]["json"], run["turns"]) == ("done", {"n": 1}, 3)


@pytest.mark.parametrize(("schema", "turn"), [({"type": "object"}, 1), (True, 1), ({"required": ["full"]}, 2)])
async def test_markdown_around_an_answer_is_none_of_it(desk: Studio, schema: Any, turn: int) -> None:
    answers = says('```json\n{"turn": 1}\n```'), says('```\n{"turn": 2, "full": true}\n```')
    run = await stopped(desk, agent(*answers, output=schema))
    assert (run["stop_reason"], run["turns"], run["output"]["json"]["turn"]) == ("done", turn, turn)


async def test_turns_and_calls_say_how_the_run_stands_so_the_journal_is_read_once(
    desk: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, begun = Journal.begin, []

    async def counted(journal: Journal, step: Step, ref: str, given: Any) -> dict[str, Any]:
        begun.append(step.execution_id)
        return await begin(journal, step, ref, given)

    monkeypatch.setattr(Journal, "begin", counted)
    schema = {"type": "object", "required": ["n"]}
    run = await stopped(desk, agent(says("no json"), says("{}"), says('{"n": 1}'), output=schema))
    assert (run["turns"], begun.count(str(run["execution_id"]))) == (3, 1)
    run = await stopped(desk, agent(calls(("tick", {})), calls(("tick", {})), says("Two."), tools=["tick"]))
    assert (run["turns"], begun.count(str(run["execution_id"]))) == (3, 1)


async def test_a_tool_that_fails_is_told_to_the_model(desk: Studio) -> None:
    run = await stopped(desk, agent(calls(("breaks", {})), says("It broke."), tools=["breaks"]))
    failed = (await desk.steps(run["id"]))[1]
    assert (failed["status"], failed["result"]["code"]) == ("failed", "tool_failed")
    assert run["stop_reason"] == "done"


async def test_a_tool_that_is_not_the_agents_is_not_called(desk: Studio) -> None:
    run = await stopped(desk, agent(calls(("refund", {"amount": 9})), says("No."), tools=["look_up"]))
    assert (await desk.steps(run["id"]))[1]["result"] == {"error": "There is no tool refund."}


@pytest.mark.parametrize(
    ("status", "code", "reason", "times"),
    [(500, "provider_error", "provider_failed", 3), (400, "invalid_request", "failed", 1)],
)
async def test_a_provider_that_fails_is_tried_again_and_one_that_refuses_is_not(
    desk: Studio, status: int, code: str, reason: str, times: int
) -> None:
    run = await stopped(desk, agent({"status": status}))
    assert (run["state"], run["error"]["code"], run["stop_reason"]) == ("failed", code, reason)
    made = "select count(*) from ai_executions where user_id = $1"
    assert await desk.shop.operator.fetchval(made, run["user_id"]) == times


async def test_who_is_handed_over_to_and_is_not_there_is_told_to_the_model(desk: Studio) -> None:
    other = await desk.save(agent(says("I am another.")))
    run = await stopped(desk, agent(calls(("transfer_to_nobody", {})), says("Alone then."), handoffs=[other]))
    assert (await desk.steps(run["id"]))[1]["result"] == {"error": "There is no such agent."}
    assert (run["stop_reason"], run["output"]["text"], run["turns"]) == ("done", "Alone then.", 2)
    attempts = "select attempts from workflow_steps where execution_id = $1 and item = -1"
    assert await desk.shop.operator.fetchval(attempts, run["execution_id"]) == 1


async def test_two_calls_of_one_id_are_two_calls(desk: Studio) -> None:
    wanted = [{"id": "same", "name": "refund", "arguments": {"amount": amount}} for amount in (1, 2)]
    run = await stopped(desk, agent({"tool_calls": wanted}, says("Done."), tools=["refund"]))
    assert [DONE[f"{run['id']}:{n}"] for n in (2, 3)] == [["1"], ["2"]]
    assert [step["result"] for step in await desk.steps(run["id"])][1:3] == ["refunded 1", "refunded 2"]


async def test_an_argument_that_no_tool_has_ends_no_run(desk: Studio) -> None:
    wanted = calls(("look_up", {"name": "Ada", "context": 1, "self": 2}))
    run = await stopped(desk, agent(wanted, says("Done."), tools=["look_up"]))
    assert (run["stop_reason"], run["turns"]) == ("done", 2)


async def approval_of(desk: Studio, run_id: Any) -> Any:
    async with asyncio.timeout(10):
        while True:
            found = await desk.shop.operator.fetchrow(
                OPEN_APPROVAL,
                run_id,
            )
            if found is not None:
                return found
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("decision", "paid"), [("approved", True), ("rejected", False)])
async def test_people_decide_before_a_tool_is_called(desk: Studio, decision: str, paid: bool) -> None:
    person = await desk.shop.person()
    tool = {"tool": "refund", "approval": {"approvers": ["role:admin"]}}
    slug = await desk.save(agent(calls(("refund", {"amount": 7})), says("Done."), tools=[tool]))
    run_id = await desk.start(person, slug)
    approval = await approval_of(desk, run_id)
    assert (await desk.run(run_id))["state"] == "input_required"
    assert approval["subject"]["arguments"] == {"amount": 7}
    await desk.shop.ask(desk.shop.admin, "decide_approval", approval["id"], decision, "because")
    run = await desk.ended(run_id)
    step = (await desk.steps(run_id))[1]
    assert (step["status"], f"{run_id}:2" in DONE, step["approval"]["decision"]) == (
        "done" if paid else "failed",
        paid,
        decision,
    )
    assert run["stop_reason"] == "done"
    await settled(desk, run)


async def test_a_cancelled_run_ends_with_its_children_and_gives_everything_back(desk: Studio) -> None:
    person = await desk.shop.person()
    slow = await desk.save(agent(says("Late.", latency_ms=60000)))
    boss = await desk.save(agent(calls((f"delegate_to_{slow}", {"message": "Go"})), delegates=[slow]))
    run_id = await desk.start(person, boss)
    async with asyncio.timeout(10):
        while not await desk.shop.operator.fetchval(
            CHILD_CALLS,
            run_id,
        ):
            await asyncio.sleep(0.02)
    await desk.shop.ask(person, "cancel_execution", (await desk.run(run_id))["execution_id"])
    run = await desk.ended(run_id)
    assert (run["state"], run["stop_reason"]) == ("canceled", "canceled")
    child = await desk.shop.operator.fetchrow(
        "select state, stop_reason from agent_runs where parent_run_id = $1", run_id
    )
    assert tuple(child) == ("canceled", "canceled")
    await settled(desk, run)


async def test_a_start_with_the_same_key_is_the_same_run(desk: Studio) -> None:
    person = await desk.shop.person()
    slug = await desk.save(agent(says("Once.")))
    first = await desk.start(person, slug, p_idempotency_key="k1")
    assert await desk.start(person, slug, p_idempotency_key="k1") == first
    await desk.ended(first)
    assert await desk.start(person, slug, p_idempotency_key="k1") == first
    with pytest.raises(VanillaError, match="started something else"):
        await desk.start(person, slug, "Something else", p_idempotency_key="k1")


async def test_a_budget_above_the_wallet_starts_nothing(desk: Studio) -> None:
    person = await desk.shop.person(balance=100)
    slug = await desk.save(agent(says("Never.")))
    with pytest.raises(VanillaError) as refused:
        await desk.start(person, slug, p_tokens=101)
    assert refused.value.name == "insufficient_tokens"
    assert (
        await desk.shop.operator.fetchval("select count(*) from agent_runs where user_id = $1", person.identity.user_id)
        == 0
    )


async def test_a_node_of_a_workflow_is_a_run_that_a_gate_sends_back(desk: Studio) -> None:
    person = await desk.shop.person()
    slug = await desk.save(agent(says("Two words")))
    flow = {
        "nodes": [
            {"id": "write", "kind": "agent", "ref": slug, "input": "{'message': input.topic}"},
            {
                "id": "check",
                "kind": "gate",
                "check": "length",
                "unit": "words",
                "min": 3,
                "of": "steps.write.output.text",
                "on_fail": "retry",
                "retry": {"node": "write", "times": 1},
            },
        ],
        "connections": [{"from": "write", "to": "check"}],
    }
    started = await desk.shop.ask(person, "start_workflow", await desk.shop.flow(flow, person), {"topic": "Words"})
    execution = uuid.UUID(started["execution_id"])
    async with asyncio.timeout(20):
        while (found := await desk.shop.room.execution(execution))["finished_at"] is None:
            await asyncio.sleep(0.02)
    assert (found["status"], found["reason"]) == ("failed", "gate_failed")
    runs = await desk.shop.operator.fetch("select * from agent_runs where execution_id = $1 order by id", execution)
    assert [(run["state"], run["stop_reason"]) for run in runs] == [("completed", "done")] * 2
    assert found["charged_tokens"] == sum(run["charged_tokens"] for run in runs) > 0


async def ended_flow(desk: Studio, person: Person, flow: dict[str, Any], **given: Any) -> Any:
    started = await desk.shop.ask(person, "start_workflow", await desk.shop.flow(flow, person), given)
    execution = uuid.UUID(started["execution_id"])
    async with asyncio.timeout(20):
        while (found := await desk.shop.room.execution(execution))["finished_at"] is None:
            await asyncio.sleep(0.02)
    return found


def team(agents: int, slug: str, *more: dict[str, Any], count: int | None = None, **fields: Any) -> dict[str, Any]:
    """So many runs of one agent at the same time, and a join."""
    nodes = [{"id": f"a{n}", "kind": "agent", "ref": slug, "input": "{'message': input.topic}"} for n in range(agents)]
    join = (
        {"id": "done", "kind": "join", "mode": "all"}
        if count is None
        else {"id": "done", "kind": "join", "mode": "count", "count": count}
    )
    return {
        "nodes": [*nodes, join, *more],
        "connections": [{"from": f"a{n}", "to": "done"} for n in range(agents)],
        **fields,
    }


async def test_a_budget_of_a_workflow_holds_for_all_that_it_starts(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    slug = await desk.save(agent(says("Yes.", completion_tokens=40)))
    last = {"id": "sum", "kind": "llm", "model": "sandbox-small", "prompt": "Sum", "max_output_tokens": 50}
    flow = team(4, slug, last, budget_tokens=20_000)
    flow["connections"].append({"from": "done", "to": "sum"})
    found = await ended_flow(desk, person, flow, topic="Go")
    assert found["status"] == "succeeded", found
    root = await desk.shop.operator.fetchrow(
        "select a.* from resource_allocations a join workflow_executions e on e.allocation_id = a.id where e.id = $1",
        found["id"],
    )
    assert (root["state"], root["budget_tokens"], root["spent_tokens"]) == ("closed", 20_000, found["charged_tokens"])
    parts = await desk.shop.operator.fetch(
        "select budget_tokens from resource_allocations where parent_id = $1", root["id"]
    )
    assert len(parts) == 4
    assert (
        await desk.shop.operator.fetchval(
            "select reserved_tokens from user_token_wallets where user_id = $1", person.identity.user_id
        )
        == 0
    )


async def test_a_budget_that_is_too_small_stops_calls_of_models_too(desk: Studio) -> None:
    person = await desk.shop.person()
    node = {"id": "a", "kind": "llm", "model": "sandbox-small", "prompt": "Hi", "max_output_tokens": 500}
    found = await ended_flow(desk, person, {"nodes": [node], "connections": [], "budget_tokens": 100})
    assert (found["status"], found["reason"], found["charged_tokens"]) == ("failed", "limit_reached", 0)
    assert found["error"]["details"]["stop_reason"] == "budget_exhausted"


async def test_those_that_a_quorum_does_not_wait_for_are_cancelled(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    quick = await desk.save(agent(says("Quick.", latency_ms=500)))
    slow = await desk.save(agent(says("Slow.", latency_ms=60_000)))
    flow = team(3, quick, count=3, budget_tokens=40_000)
    flow["nodes"].append({"id": "late", "kind": "agent", "ref": slow, "input": "{'message': 'Go'}"})
    flow["connections"].append({"from": "late", "to": "done"})
    found = await ended_flow(desk, person, flow, topic="Go")
    assert found["status"] == "succeeded"
    runs = await desk.shop.operator.fetch(
        "select state, stop_reason from agent_runs where execution_id = $1 order by state", found["id"]
    )
    assert sorted(map(tuple, runs)) == [("canceled", "canceled")] + [("completed", "done")] * 3
    assert (
        await desk.shop.operator.fetchval(
            "select reserved_tokens from user_token_wallets where user_id = $1", person.identity.user_id
        )
        == 0
    )


async def test_who_is_not_waited_for_ends_at_the_join_with_all_that_it_asked(desk: Studio) -> None:
    person, operator = await desk.shop.person(balance=1_000_000), desk.shop.operator
    quick = await desk.save(agent(says("Quick.", latency_ms=1500)))
    slow = await desk.save(agent(says("Slow.", latency_ms=60_000)))
    asks = agent(calls((f"delegate_to_{slow}", {"message": "Think"})), delegates=[{"agent": slow}])
    late = await desk.save(asks)
    flow = team(1, quick, count=1, budget_tokens=40_000)
    flow["nodes"] += [
        {"id": "late", "kind": "agent", "ref": late, "input": "{'message': 'Go'}"},
        {"id": "go", "kind": "signal", "signal": "go", "timeout_s": 60},
    ]
    flow["connections"] += [{"from": "late", "to": "done"}, {"from": "done", "to": "go"}]
    started = await desk.shop.ask(person, "start_workflow", await desk.shop.flow(flow, person), {"topic": "Go"})
    execution = uuid.UUID(started["execution_id"])
    async with asyncio.timeout(20):
        while (await desk.shop.room.execution(execution))["steps"]["go"]["status"] != "waiting":
            await asyncio.sleep(0.02)
    found = await desk.shop.room.execution(execution)
    assert (found["status"], found["steps"]["late"]["status"]) == ("running", "skipped")
    runs = await operator.fetch(
        "select r.state, a.state as budget, e.status, e.reason from agent_runs r join agents g on g.id = r.agent_id"
        " join resource_allocations a on a.id = r.allocation_id join workflow_executions e on e.id = r.execution_id"
        " where g.slug = any ($1) order by r.depth",
        [late, slow],
    )
    assert [tuple(run) for run in runs] == [
        ("canceled", "closed", "running", None),
        ("canceled", "closed", "cancelled", "not_needed"),
    ]
    root = await operator.fetchrow(
        "select a.* from resource_allocations a join workflow_executions e on e.allocation_id = a.id where e.id = $1",
        execution,
    )
    charged = await operator.fetchval("select sum(charged_tokens) from agent_runs where user_id = $1", root["user_id"])
    assert (root["state"], root["carved_tokens"], root["held_tokens"]) == ("open", 0, 0)
    assert root["spent_tokens"] == charged > 0
    await desk.shop.ask(person, "signal_execution", execution, "go")
    async with asyncio.timeout(20):
        while (await desk.shop.room.execution(execution))["status"] == "running":
            await asyncio.sleep(0.02)
    wallet = await desk.shop.room.people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (1_000_000 - charged, 0)


async def test_agents_of_a_tree_share_what_they_write_by_version(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    wanted = ("state_write", {"key": "plan", "value": ["b"], "version": 1})
    worker = await desk.save(
        agent(calls(("state_read", {"key": "plan"})), calls(wanted), says("Done."), tools=["state_read", "state_write"])
    )
    first, again = {"key": "plan", "value": ["a"], "version": 0}, {"key": "plan", "value": ["c"], "version": 1}
    boss = await desk.save(
        agent(
            calls(("state_write", first)),
            calls((f"delegate_to_{worker}", {"message": "Go"})),
            calls(("state_write", again)),
            says("So be it."),
            tools=["state_write"],
            delegates=[worker],
        )
    )
    run = await desk.ended(await desk.start(person, boss))
    assert run["stop_reason"] == "done", run
    results = [s["result"] for s in await desk.steps(run["id"]) if s["kind"] == "tool"]
    assert results == [{"version": 1}, {"error": "Somebody else has written it since.", "value": ["b"], "version": 2}]
    kept = await desk.shop.operator.fetchrow(
        "select value, version from agent_run_state where root_run_id = $1", run["id"]
    )
    assert tuple(kept) == (["b"], 2)


async def test_an_agent_keeps_what_it_makes(desk: Studio) -> None:
    save = calls(
        ("artifact_save", {"name": "poem.md", "content": "# Poem", "media_type": "text/markdown"}),
        ("artifact_save", {"name": "", "content": "x"}),
    )
    run = await stopped(desk, agent(save, says("Here."), tools=["artifact_save"]))
    kept = await desk.shop.operator.fetch(
        "select name, media_type, content from run_artifacts where run_id = $1", run["id"]
    )
    assert [tuple(row) for row in kept] == [("poem.md", "text/markdown", "# Poem")]
    assert [s["status"] for s in await desk.steps(run["id"]) if s["kind"] == "tool"] == ["done", "failed"]


async def test_who_cannot_be_asked_because_the_wallet_is_locked_holds_up_nobody(desk: Studio) -> None:
    person, other = await desk.shop.person(), await desk.shop.person()
    writer = await desk.save(agent(says("Written.")))
    wanted = calls((f"delegate_to_{writer}", {"message": "Write"}), latency_ms=1500)
    run_id = await desk.start(person, await desk.save(agent(wanted, says("All."), delegates=[writer])))
    async with asyncio.timeout(20):
        while not await desk.shop.operator.fetchval(OWN_CALLS, run_id):
            await asyncio.sleep(0.02)
    lock = "update user_token_wallets set status = 'locked' where user_id = $1"
    await desk.shop.operator.execute(lock, person.identity.user_id)
    run = await desk.ended(run_id)
    (row,) = [step for step in await desk.steps(run_id) if step["kind"] == "delegate"]
    assert (row["status"], row["result"]) == ("failed", {"error": "the wallet is locked"})
    assert run["state"] == "failed"
    beside = await desk.ended(await desk.start(other, writer))
    assert beside["stop_reason"] == "done"
    await settled(desk, run)
