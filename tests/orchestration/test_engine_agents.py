"""Agents with an engine in place of a model: each turn is one run of it, within the agent's budget, limits and end."""

import asyncio
import json
import uuid
from typing import Any

import pytest

from tests.engines.shop import Made, asking
from tests.engines.test_engines import offered
from tests.orchestration.mortals import Ward
from tests.orchestration.studio import BOTH_LOOPS, Studio, agent, calls, says
from tests.orchestration.test_runs import MONEY
from tests.orchestration.test_teams import flow as team_flow
from vanilla_saas.checks import run_checks
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.orchestration import drafts
from vanilla_saas.orchestration.definition import AgentDefinition
from vanilla_saas.orchestration.teams import MESSAGE

LOOPS = BOTH_LOOPS
ENGINE_RUNS = """
select e.id, e.status, e.reason, e.input, e.charged_tokens, e.depth, e.parent_execution_id, x.version, x.engine_id
from engine_executions x join workflow_executions e on e.tenant_id = x.tenant_id and e.id = x.id
where e.parent_execution_id = $1 order by e.id
"""
CHARGED = """
with recursive tree as (
    select $1::uuid as id
    union all
    select e.id from tree t join workflow_executions e on e.parent_execution_id = t.id)
select coalesce(sum((l.metadata ->> 'actual')::bigint), 0) from tree t
join user_token_ledger l on l.reference_id = t.id and l.direction = 'settle'
"""
TALK = {"type": "object", "properties": {"messages": {"type": "array"}}, "required": ["messages"]}
TEAM_BUDGET = {"budget_tokens": 20_000}
ASKED = {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}


def flow(reply: str = "It is noon.", schema: Any = ASKED, **script: Any) -> dict[str, Any]:
    """A flow of one model call that answers so."""
    prompt = "{% raw %}sandbox: " + json.dumps({"reply": reply} | script) + "{% endraw %}"
    made = asking(input=schema, output="steps.a.output.text")
    made["nodes"][0] |= {"prompt": prompt, "max_output_tokens": 50}
    return made


def of_engine(engine: Made | str, **more: Any) -> dict[str, Any]:
    return {"instructions": "You help.", "engine": engine if isinstance(engine, str) else engine.slug, **more}


async def engine_runs(desk: Studio, run: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in await desk.shop.operator.fetch(ENGINE_RUNS, run["execution_id"])]


async def paid_once(desk: Studio, run: dict[str, Any]) -> int:
    """The journal, the run and the ledger of all that it started say the same; nothing is held any more."""
    steps = await desk.steps(run["id"])
    charged = await desk.shop.operator.fetchval(CHARGED, run["execution_id"])
    assert sum(step["charged_tokens"] for step in steps) == run["charged_tokens"] == charged
    assert sum(step["cost_micros"] for step in steps) == run["cost_micros"]
    root = await desk.shop.operator.fetchrow(
        "select state, spent_tokens, overrun_tokens from resource_allocations where id = $1", run["allocation_id"]
    )
    assert tuple(root) == ("closed", charged, 0)
    left = await desk.shop.operator.fetchval(
        "select count(*) from resource_allocations where user_id = $1 and state = 'open'", run["user_id"]
    )
    wallet = await desk.shop.operator.fetchrow(
        "select reserved_tokens, borrowed_tokens from user_token_wallets where user_id = $1", run["user_id"]
    )
    assert (left, *wallet) == (0, 0, 0)
    assert [str(found) for found in await run_checks(desk.shop.operator, MONEY)] == []
    return int(charged)


async def started(desk: Studio, run_id: uuid.UUID) -> dict[str, Any]:
    """The run of the engine that a run of an agent waits for, as soon as its model is asked."""
    run = await desk.run(run_id)
    async with asyncio.timeout(20):
        while not (
            (made := await engine_runs(desk, run))
            and await desk.shop.operator.fetchval(
                "select exists (select from allocation_holds where call ->> 'workflow_execution_id' = $1"
                " and state = 'open')",
                str(made[-1]["id"]),
            )
        ):
            await asyncio.sleep(0.02)
    return made[-1]


async def test_a_turn_is_one_run_of_the_engine_and_costs_what_that_costs(desk: Studio) -> None:
    person = await desk.shop.person()
    engine = await desk.shop.deploy(flow())
    run = await desk.ended(await desk.start(person, await desk.save(of_engine(engine)), "What time is it?"))
    assert (run["state"], run["stop_reason"], run["turns"]) == ("completed", "done", 1), run["error"]
    assert (run["output"]["text"], run["output"]["json"]) == ("It is noon.", None)
    (made,) = await engine_runs(desk, run)
    assert (made["status"], made["input"], made["depth"]) == ("succeeded", {"question": "What time is it?"}, 1)
    (step,) = await desk.steps(run["id"])
    assert (step["kind"], step["name"], step["status"], step["child_execution_id"]) == (
        "model", f"engine/{engine.slug}@1", "done", made["id"],
    )  # fmt: skip
    assert step["result"] == {"text": "It is noon.", "calls": []}
    assert await paid_once(desk, run) == made["charged_tokens"] > 0


async def test_an_engine_that_takes_messages_is_given_the_conversation(desk: Studio) -> None:
    engine = await desk.shop.deploy(flow(schema=TALK))
    slug = await desk.save(of_engine(engine, instructions="You help {{ input.message }}."))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug, "Ada"))
    (made,) = await engine_runs(desk, run)
    said = [(one["role"], one["content"]) for one in made["input"]["messages"]]
    assert said == [("system", "You help Ada."), ("user", "Ada")]


async def test_an_answer_that_does_not_fit_is_asked_for_again_until_turns_are_over(desk: Studio) -> None:
    schema = {"type": "object", "properties": {"hour": {"type": "integer"}}, "required": ["hour"]}
    right = await desk.shop.deploy(flow('{"hour": 12}'))
    run = await desk.ended(await desk.start(await desk.shop.person(), await desk.save(of_engine(right, output=schema))))
    assert (run["stop_reason"], run["output"]["json"], run["turns"]) == ("done", {"hour": 12}, 1)
    await paid_once(desk, run)
    wrong = await desk.shop.deploy(flow("Noon.", TALK))
    slug = await desk.save(of_engine(wrong, output=schema, limits={"turns": 2}))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug))
    assert (run["state"], run["stop_reason"], run["turns"]) == ("failed", "max_turns", 2), run["error"]
    first, second = await engine_runs(desk, run)
    assert second["input"]["messages"][: len(first["input"]["messages"])] == first["input"]["messages"]
    assert "no JSON" in second["input"]["messages"][-1]["content"]
    await paid_once(desk, run)


async def test_the_platforms_engines_and_copies_are_run_as_their_user_would(desk: Studio) -> None:
    person = await desk.shop.person()
    engine = await offered(desk.shop)
    run = await desk.ended(await desk.start(person, await desk.save(of_engine(engine))))
    assert (run["stop_reason"], run["error"]["code"]) == ("failed", "input_required")  # it takes no message
    shape = flow("It is noon.") | {"output": "input.tone + ': ' + input.question"}
    shape["input"] = {"type": "object", "properties": ASKED["properties"] | {"tone": {"type": "string"}}}
    own = await desk.shop.deploy(shape, p_parameters={"tone": {"type": "string", "default": "plain"}})
    await desk.shop.ask(person, "fork_engine", own.slug, "mine", {"tone": "warm"})
    slug = await desk.save(of_engine("my/mine"), who=person)
    run = await desk.ended(await desk.start(person, slug, "Ada"))
    assert (run["stop_reason"], run["output"]["text"]) == ("done", "warm: Ada"), run["error"]
    with pytest.raises(VanillaError):
        await desk.start(await desk.shop.person(), slug)
    await paid_once(desk, run)


@pytest.mark.parametrize(("access", "name"), [("none", "not_found"), ("read", "forbidden")])
async def test_who_may_not_run_the_engine_starts_no_run(desk: Studio, access: str, name: str) -> None:
    person = await desk.shop.person()
    engine = await desk.shop.deploy(flow(), access=access)
    with pytest.raises(VanillaError) as refused:
        await desk.start(person, await desk.save(of_engine(engine)))
    assert refused.value.name == name
    runs = "select count(*) from agent_runs where user_id = $1"
    assert await desk.shop.operator.fetchval(runs, person.identity.user_id) == 0


async def test_a_delegate_whose_engine_may_not_be_run_is_told_to_who_asked(desk: Studio) -> None:
    hidden = await desk.save(of_engine(await desk.shop.deploy(flow(), access="none")))
    known = await desk.save(of_engine(await desk.shop.deploy(flow("Known."))))
    turns = [calls((f"delegate_to_{one}", {"message": "Go"})) for one in (hidden, known)]
    boss = await desk.save(agent(*turns, says("So."), delegates=[hidden, known]))
    run = await desk.ended(await desk.start(await desk.shop.person(balance=1_000_000), boss))
    asked = [step for step in await desk.steps(run["id"]) if step["kind"] == "delegate"]
    assert run["stop_reason"] == "done"
    assert [step["status"] for step in asked] == ["failed", "done"]
    assert asked[0]["result"] == {"error": "no such engine"}
    assert asked[1]["result"]["output"]["text"] == "Known."


async def test_who_is_handed_over_to_answers_by_its_engine(desk: Studio) -> None:
    engine = await desk.shop.deploy(flow("From the engine.", TALK))
    expert = await desk.save(of_engine(engine))
    front = await desk.save(agent(calls((f"transfer_to_{expert}", {})), handoffs=[expert]))
    run = await desk.ended(await desk.start(await desk.shop.person(), front))
    assert (run["stop_reason"], run["output"]["agent"], run["output"]["text"]) == ("done", expert, "From the engine.")
    assert [step["kind"] for step in await desk.steps(run["id"])] == ["model", "handoff", "model"]
    await paid_once(desk, run)


async def test_a_group_chat_has_members_with_engines(desk: Studio) -> None:
    person = await desk.shop.person(balance=1_000_000)
    engine = await desk.shop.deploy(flow("I am an engine.", TALK))
    members = [await desk.save(of_engine(engine)), await desk.save(agent(says("I am a model."), says("Again.")))]
    chat = {"members": members, "floor": "round_robin", "rounds": 1}
    run = await desk.ended(await desk.start(person, await desk.save(agent(chat=chat))))
    said = [step["result"]["text"] for step in await desk.steps(run["id"])]
    assert (run["stop_reason"], said[0], len(said)) == ("done", "I am an engine.", 2), run["error"]
    await paid_once(desk, run)


@pytest.mark.parametrize("own", [None, 10], ids=["of the run", "of the flow"])
async def test_a_budget_that_is_too_small_ends_the_run(desk: Studio, own: int | None) -> None:
    engine = await desk.shop.deploy(flow() | ({} if own is None else {"budget_tokens": own}))
    tokens = {} if own is not None else {"p_tokens": 10}
    run = await desk.ended(await desk.start(await desk.shop.person(), await desk.save(of_engine(engine)), **tokens))
    assert (run["state"], run["stop_reason"], run["charged_tokens"]) == ("failed", "budget_exhausted", 0), run["error"]
    (made,) = await engine_runs(desk, run)
    (step,) = await desk.steps(run["id"])
    assert (made["status"], step["status"]) == ("failed", "failed")
    await paid_once(desk, run)


async def test_a_budget_that_is_used_up_starts_no_further_run(desk: Studio) -> None:
    engine = await desk.shop.deploy(flow("Noon.", TALK, completion_tokens=45))
    slug = await desk.save(of_engine(engine, output={"type": "object"}))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug, p_tokens=400))
    assert (run["state"], run["stop_reason"]) == ("failed", "budget_exhausted"), run["error"]
    assert 0 < await paid_once(desk, run) <= 400


async def test_a_turn_whose_engine_cannot_be_started_says_why(desk: Studio) -> None:
    person = await desk.shop.person()
    engine = await desk.shop.deploy(flow("Noon.", TALK, latency_ms=1500))
    run_id = await desk.start(person, await desk.save(of_engine(engine, output={"type": "object"})))
    await started(desk, run_id)
    lock = "update user_token_wallets set status = 'locked' where user_id = $1"
    await desk.shop.operator.execute(lock, person.identity.user_id)
    run = await desk.ended(run_id)
    assert (run["state"], run["stop_reason"], run["error"]["code"]) == ("failed", "failed", "engine_not_started")
    assert run["error"]["message"] == "The engine could not be run: the wallet is locked."
    assert [step["status"] for step in await desk.steps(run_id)] == ["done", "failed"]
    assert len(await engine_runs(desk, run)) == 1
    await paid_once(desk, run)


async def test_what_goes_wrong_in_the_engine_ends_the_run(desk: Studio) -> None:
    broken = flow() | {"nodes": [{"id": "a", "kind": "transform", "value": "1 / 0"}], "output": "steps.a.output"}
    engine = await desk.shop.deploy(broken)
    run = await desk.ended(await desk.start(await desk.shop.person(), await desk.save(of_engine(engine))))
    (made,) = await engine_runs(desk, run)
    assert (run["state"], run["stop_reason"], run["error"]["code"]) == ("failed", "failed", "engine_failed"), run[
        "error"
    ]
    assert run["error"]["details"]["execution_id"] == str(made["id"])
    await paid_once(desk, run)


async def test_models_of_the_engine_that_do_not_answer_are_a_provider_that_failed(desk: Studio) -> None:
    silent = flow(status=500)
    silent["nodes"][0]["retry"] = {"attempts": 1}
    engine = await desk.shop.deploy(silent)
    run = await desk.ended(await desk.start(await desk.shop.person(), await desk.save(of_engine(engine))))
    assert (run["state"], run["stop_reason"]) == ("failed", "provider_failed"), run["error"]
    assert len(await engine_runs(desk, run)) == 1


async def test_an_engine_that_cannot_be_given_a_chat_says_so(desk: Studio) -> None:
    two = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a", "b"]}
    engine = await desk.shop.deploy(flow(schema=two))
    run = await desk.ended(await desk.start(await desk.shop.person(), await desk.save(of_engine(engine))))
    assert (run["stop_reason"], run["error"]["code"]) == ("failed", "input_required")
    assert await engine_runs(desk, run) == []


async def test_the_version_of_the_start_stays_for_the_whole_run(desk: Studio) -> None:
    schema = {"type": "object"}
    engine = await desk.shop.deploy(flow("Noon.", TALK, latency_ms=1500))
    slug = await desk.save(of_engine(engine, output=schema, limits={"turns": 2}))
    run_id = await desk.start(await desk.shop.person(), slug)
    await started(desk, run_id)
    later = await desk.shop.deploy(flow('{"new": true}', TALK), engine.slug)
    await desk.shop.ask(desk.shop.admin, "promote_engine", engine.id, later.version)
    await desk.shop.ask(desk.shop.admin, "retire_engine", engine.id, 1)
    run = await desk.ended(run_id)
    assert (run["stop_reason"], [one["version"] for one in await engine_runs(desk, run)]) == ("max_turns", [1, 1]), run[
        "error"
    ]
    await paid_once(desk, run)
    after = await desk.ended(await desk.start(await desk.shop.person(), slug))
    assert (after["output"]["json"], [one["version"] for one in await engine_runs(desk, after)]) == ({"new": True}, [2])


async def test_a_cancelled_run_cancels_the_run_of_its_engine(desk: Studio) -> None:
    person = await desk.shop.person()
    slug = await desk.save(of_engine(await desk.shop.deploy(flow(latency_ms=60_000))))
    run_id = await desk.start(person, slug)
    made = await started(desk, run_id)
    await desk.shop.ask(person, "cancel_execution", (await desk.run(run_id))["execution_id"])
    run = await desk.ended(run_id)
    assert (run["state"], run["stop_reason"]) == ("canceled", "canceled")
    assert (await desk.shop.room.execution(made["id"]))["status"] == "cancelled"
    assert [step["status"] for step in await desk.steps(run_id)] == ["refused"]
    await paid_once(desk, run)


async def test_what_an_engine_cost_before_its_run_was_cancelled_is_the_runs(desk: Studio) -> None:
    person = await desk.shop.person()
    shape = flow()
    second = flow(latency_ms=60_000)["nodes"][0] | {"id": "b"}
    shape |= {"nodes": [*shape["nodes"], second], "connections": [{"from": "a", "to": "b"}], "output": "1"}
    run_id = await desk.start(person, await desk.save(of_engine(await desk.shop.deploy(shape))))
    first = "select exists (select from workflow_steps where execution_id = $1 and charged_tokens > 0)"
    made = await started(desk, run_id)
    async with asyncio.timeout(20):
        while not await desk.shop.operator.fetchval(first, made["id"]):
            await asyncio.sleep(0.02)
    await desk.shop.ask(person, "cancel_execution", (await desk.run(run_id))["execution_id"])
    run = await desk.ended(run_id)
    assert run["state"] == "canceled"
    assert await paid_once(desk, run) > 0


async def test_time_that_is_over_ends_the_engine_too(desk: Studio) -> None:
    engine = await desk.shop.deploy(flow() | {"nodes": [{"id": "a", "kind": "wait", "seconds": 600}], "output": "1"})
    slug = await desk.save(of_engine(engine, limits={"seconds": 2}))
    run = await desk.ended(await desk.start(await desk.shop.person(), slug))
    assert (run["state"], run["stop_reason"]) == ("failed", "deadline"), run["error"]
    (made,) = await engine_runs(desk, run)
    assert made["status"] == "cancelled"
    await paid_once(desk, run)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"engine": "e", "model": "sandbox-small"}, "model", "fields_exclusive"),
    ({"engine": "e", "fallbacks": ["sandbox-small"]}, "fallbacks", "fields_exclusive"),
    ({"engine": "e", "tools": ["refund"]}, "tools", "fields_exclusive"),
    ({"engine": "e", "handoffs": [{"agent": "other"}]}, "handoffs", "fields_exclusive"),
    ({"engine": "e", "delegates": [{"agent": "other"}]}, "delegates", "fields_exclusive"),
    ({"engine": "e", "contract": {"bidders": [{"agent": "other"}]}}, "contract", "fields_exclusive"),
    ({"engine": "e", "chat": {"members": [{"agent": "a"}, {"agent": "b"}]}}, "chat", "fields_exclusive"),
    ({"engine": "e", "temperature": 0.0}, "temperature", "fields_exclusive"),
    ({"engine": "e", "max_output_tokens": 5}, "max_output_tokens", "fields_exclusive"),
    ({"engine": "No engine"}, "engine", "wrong_form"),
    ({}, "model", "field_missing"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "path", "code"), WRONG, ids=[f"{path} {code}" for _, path, code in WRONG])
def test_what_does_not_go_with_an_engine_is_named(given: dict[str, Any], path: str, code: str) -> None:
    with pytest.raises(VanillaError) as refused:
        drafts.document({"instructions": "x"} | given)
    assert refused.value.name == "invalid_definition"
    assert [(one["path"], one["code"]) for one in refused.value.detail["problems"]] == [(path, code)]


@pytest.mark.parametrize("more", [given for given, _, code in WRONG if code != "wrong_form"])
async def test_the_database_refuses_it_too(desk: Studio, more: dict[str, Any]) -> None:
    with pytest.raises(VanillaError) as refused:
        await desk.shop.ask(desk.shop.admin, "save_agent", "odd", {"instructions": "x"} | more)
    assert refused.value.name == "invalid_definition"


DEATHS = [
    *("ask_engine:before:1", "ask_engine:after:1", "tick_worker+:before:2", "call:1"),
    *("begin_run:after:3", "record_turn:before:1", "record_turn:after:1"),
]
"""Before and after a turn is written down; before its engine starts, in its model call, when it has ended."""


@pytest.fixture(scope="module")
async def clerk(ward: Ward) -> str:
    """An agent with an engine where workers are killed."""
    admin = ward.people[1]
    saved = await ward.ask(admin, "select save_workflow('clock', $1)", flow() | {"name": "Clock"})
    workflow = uuid.UUID(saved["id"])
    await ward.ask(admin, "select publish_workflow($1)", workflow)
    made = await ward.ask(admin, "select deploy_engine('clock', $1)", workflow)
    access = "select set_engine($1, p_default_access => 'execute')"
    await ward.ask(admin, access, uuid.UUID(made["engine_id"]))
    document = AgentDefinition.model_validate(of_engine("clock")).document()
    await ward.ask(admin, "select save_agent('clerk', $1, p_shared => true)", document)
    return "clerk"


@pytest.mark.parametrize("ward", BOTH_LOOPS[:1], indirect=True)  # neither is asked
@pytest.mark.parametrize("death", DEATHS)
async def test_a_worker_that_is_killed_anywhere_runs_the_engine_once(ward: Ward, clerk: str, death: str) -> None:
    ward.sandbox.asked.clear()
    start = "select (start_agent($1, '{\"message\": \"What time is it?\"}') ->> 'run_id')::uuid"
    run = await ward.ask(ward.people[0], start, clerk)
    assert await ward.killed(run, death), "it did not come to that"
    async with ward.another():
        await ward.ended(run, 60)
    async with ward.operator() as operator:
        found = await operator.fetchrow("select * from agent_runs where id = $1", run)
        assert (found["stop_reason"], found["turns"], found["output"]["text"]) == ("done", 1, "It is noon."), dict(
            found
        )
        (made,) = await operator.fetch(ENGINE_RUNS, found["execution_id"])
        (step,) = await operator.fetch("select * from agent_run_steps where run_id = $1", run)
        rows = "select count(*) from user_token_ledger where reference_id = $1 and direction = 'settle'"
        assert (step["child_execution_id"], await operator.fetchval(rows, made["id"])) == (made["id"], 1)
        charged = await operator.fetchval(CHARGED, found["execution_id"])
        assert found["charged_tokens"] == step["charged_tokens"] == made["charged_tokens"] == charged > 0
        await ward.require_nothing_held(operator)
    assert ward.sandbox.asked.total() <= 1 + (death == "call:1")


async def test_in_a_team_with_a_budget_an_engine_is_paid_of_that(desk: Studio) -> None:
    person = await desk.shop.person()
    engine = await desk.shop.deploy(flow("From the engine.", MESSAGE))
    agents = {"first": of_engine(engine), "second": {"model": "sandbox-small", "instructions": "You repeat."}}
    found = await team_flow(desk, person, {"name": "mixed", "pattern": "sequential", "agents": agents} | TEAM_BUDGET)
    assert (found["status"], found["output"]["text"]) == ("succeeded", 'You said: "From the engine."')
    charged = await desk.shop.operator.fetchval(CHARGED, found["id"])
    root = await desk.shop.operator.fetchrow(
        "select a.* from resource_allocations a join workflow_executions e on e.allocation_id = a.id where e.id = $1",
        found["id"],
    )
    assert (root["state"], root["budget_tokens"], root["spent_tokens"]) == ("closed", 20_000, charged)
    runs = "select sum(charged_tokens) from agent_runs where execution_id = $1"
    assert await desk.shop.operator.fetchval(runs, found["id"]) == charged
    assert [str(one) for one in await run_checks(desk.shop.operator, MONEY)] == []


@pytest.mark.parametrize(
    "team",
    [{"pattern": "manager"}, {"pattern": "contract_net"}, {"pattern": "group_chat", "floor": "manager"}],
    ids=["manager", "contract_net", "group_chat"],
)
def test_who_leads_by_calling_others_has_no_engine(team: dict[str, Any]) -> None:
    with pytest.raises(VanillaError, match="does not validate") as refused:
        drafts.team({"name": "t", "agents": {"a": of_engine("e"), "b": {"model": "m", "instructions": "x"}}} | team)
    assert "give it a model, not an engine" in refused.value.detail["problems"][0]["message"]


def test_a_chat_without_a_lead_takes_a_model_from_who_has_one() -> None:
    agents: dict[str, Any] = {"a": of_engine("e"), "b": {"model": "m", "instructions": "x"}}
    made = drafts.team({"name": "t", "pattern": "group_chat", "agents": agents})
    assert (made.agents["t-chat"].model, made.agents["t-a"].engine) == ("m", "e")
    agents["b"] = of_engine("e")
    with pytest.raises(VanillaError) as refused:
        drafts.team({"name": "t", "pattern": "group_chat", "agents": agents})
    assert "has a model" in refused.value.detail["problems"][0]["message"]


def test_who_has_an_engine_hands_over_to_nobody_of_its_team() -> None:
    agents = {"a": {"model": "m", "instructions": "x"}, "b": of_engine("e")}
    made = drafts.team({"name": "t", "pattern": "handoff", "agents": agents})
    assert [[edge.agent for edge in made.agents[f"t-{name}"].handoffs] for name in "ab"] == [["t-b"], []]


def test_a_definition_with_an_engine_reads_as_it_was_written() -> None:
    text = "instructions: Help.\nengine: support@canary\n"
    assert drafts.as_text(drafts.document(drafts.read(text, "yaml"))) == text
