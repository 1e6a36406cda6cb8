"""Agents over HTTP: saved with every problem named, run within a budget, watched, cancelled."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from tests.conftest import Person
from tests.orchestration.studio import Studio, agent, calls, says
from tests.workflows.test_events import following
from vanilla_saas.client import Client
from vanilla_saas.database.errors import VanillaError


@pytest.fixture
async def http(desk: Studio) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"{desk.address}/api/v1/") as session:
        yield session


async def ask(
    http: aiohttp.ClientSession,
    who: Person,
    method: str,
    path: str,
    body: Any = None,
    status: int = 200,
    **headers: str,
) -> dict[str, Any]:
    async with http.request(method, path, json=body, headers=who.headers | headers) as answer:
        found = await answer.json(content_type=None)
        assert answer.status == status, found
        return dict(found)


async def saved(http: aiohttp.ClientSession, who: Person, *turns: dict[str, Any], **more: Any) -> str:
    slug = f"a{uuid.uuid4().hex[:10]}"
    await ask(http, who, "PUT", f"agents/{slug}", {"definition": agent(*turns, **more)})
    return slug


async def test_an_agent_is_saved_read_and_retired(desk: Studio, http: aiohttp.ClientSession) -> None:
    person = await desk.shop.person()
    slug = await saved(http, person, says("Hello."))
    again = await ask(http, person, "PUT", f"agents/{slug}", {"definition": agent(says("Hello."))})
    assert (again["version"], again["unchanged"]) == (1, True)
    await ask(http, person, "PUT", f"agents/{slug}", {"definition": agent(says("Hi.")), "shared": True})
    found = await ask(http, person, "GET", f"agents/{slug}")
    assert ([row["version"] for row in found["data"]], found["shared"]) == ([2, 1], True)
    assert found["definition"]["limits"]["turns"] == 20
    first = await ask(http, person, "GET", f"agents/{slug}?version=1")
    assert "Hello." in first["definition"]["instructions"]
    assert (await ask(http, person, "POST", f"agents/{slug}/retire"))["status"] == "retired"
    refused = await ask(http, person, "POST", f"agents/{slug}/runs", {}, 409)
    assert refused["code"] == "invalid_state"


async def test_a_level_limits_the_agents_that_are_not_retired(desk: Studio, http: aiohttp.ClientSession) -> None:
    person, level = await desk.shop.person("premium"), await desk.shop.level("premium")
    await desk.shop.ask(desk.shop.admin, "set_level_restriction", level, "agents", 1)
    try:
        first = await saved(http, person, says("One."))
        body = {"definition": agent(says("Two."))}
        refused = await ask(http, person, "PUT", "agents/second", body, 429)
        assert (refused["code"], refused["restriction"], refused["limit"]) == ("limit_reached", "agents", 1)
        # what is there is saved as before, and a retired one leaves its place, which it needs again to come back
        await ask(http, person, "PUT", f"agents/{first}", body)
        await ask(http, person, "POST", f"agents/{first}/retire")
        second = await saved(http, person, says("Two."))
        assert (await ask(http, person, "PUT", f"agents/{first}", body, 429))["restriction"] == "agents"
        with pytest.raises(VanillaError, match="the level allows 1 agents"):
            await desk.save(agent(says("Two.")), first)
        await ask(http, person, "POST", f"agents/{second}/retire")
        assert (await ask(http, person, "PUT", f"agents/{first}", body))["unchanged"]
        await ask(http, person, "POST", f"agents/{first}/runs", {}, 202)
    finally:
        await desk.shop.ask(desk.shop.admin, "delete_level_restriction", level, "agents")


async def test_every_problem_of_a_definition_is_named(desk: Studio, http: aiohttp.ClientSession) -> None:
    person = await desk.shop.person()
    limits = {"turns": 0, "odd": 1}
    wrong = {"instructions": "x", "modle": "m", "limits": limits, "handoffs": ["A b"], "output": 3, "loop": "mine"}
    refused = await ask(http, person, "PUT", "agents/wrong", {"definition": wrong}, 422)
    assert refused["code"] == "invalid_definition"
    assert sorted((one["path"], one["code"]) for one in refused["problems"]) == [
        ("handoffs.0.agent", "wrong_form"),
        ("limits.odd", "field_unknown"),
        ("limits.turns", "out_of_range"),
        ("loop", "value_unknown"),
        ("model", "field_missing"),
        ("modle", "field_unknown"),
        ("output", "wrong_type"),
    ]
    told = {one["path"]: one["message"] for one in refused["problems"]}
    assert told["modle"] == "Remove modle, which is not a field here; did you mean model."
    assert told["output"] == "Write a JSON schema: an object."
    assert all(one["message"] for one in refused["problems"])


async def test_a_run_is_waited_for_and_told_as_a_tree(desk: Studio, http: aiohttp.ClientSession) -> None:
    person = await desk.shop.person()
    writer = await saved(http, person, says("A poem."))
    boss = await saved(
        http, person, calls((f"delegate_to_{writer}", {"message": "Write"})), says("Done."), delegates=[writer]
    )
    body = {"input": {"message": "Go"}, "tokens": 9000, "wait_s": 30}
    run = await ask(http, person, "POST", f"agents/{boss}/runs", body, 200, **{"Idempotency-Key": "k"})
    assert (run["state"], run["stop_reason"], run["output"]["text"], run["replayed"]) == (
        "completed",
        "done",
        "Done.",
        False,
    )
    root, child = run["runs"]
    assert (root["agent"], child["agent"], child["parent_run_id"]) == (boss, writer, root["id"])
    assert [(step["kind"], step["status"]) for step in root["steps"]] == [
        ("model", "done"),
        ("delegate", "done"),
        ("model", "done"),
    ]
    assert root["steps"][1]["child_run_id"] == child["id"]
    assert (root["budget"]["tokens"], root["budget"]["state"]) == (9000, "closed")
    assert run["charged_tokens"] == root["budget"]["spent"] > root["charged_tokens"]
    again = await ask(http, person, "POST", f"agents/{boss}/runs", body, 200, **{"Idempotency-Key": "k"})
    assert (again["run_id"], again["replayed"]) == (run["run_id"], True)
    tree = await ask(http, person, "GET", f"agent-runs?root={run['run_id']}&state=completed")
    assert {row["id"] for row in tree["data"]} == {root["id"], child["id"]}
    page = await ask(http, person, "GET", "agent-runs?limit=1")
    rest = await ask(http, person, "GET", f"agent-runs?cursor={page['next_cursor']}")
    assert [row["id"] for row in page["data"] + rest["data"]] == sorted([root["id"], child["id"]], reverse=True)


async def test_events_tell_a_run_to_its_end_and_go_on_where_they_broke_off(
    desk: Studio, http: aiohttp.ClientSession
) -> None:
    person = await desk.shop.person()
    slug = await saved(http, person, calls(("tick", {})), says("Late.", latency_ms=1500), tools=["tick"])
    run = await ask(http, person, "POST", f"agents/{slug}/runs", {}, 202)
    told = await events(http, person, run["run_id"])
    assert told[0][0] == "progress"
    assert (told[-1][0], told[-1][2]["output"]["text"]) == ("end", "Late.")
    assert len(told) >= 3
    assert [name for name, _, _ in await events(http, person, run["run_id"], told[-1][1])] == ["end"]
    assert [name for name, _, _ in await events(http, person, run["run_id"], told[0][1])] == ["progress", "end"]


async def test_a_stream_reads_a_step_that_is_over_once(desk: Studio, http: aiohttp.ClientSession) -> None:
    person = await desk.shop.person()
    turns = calls(("tick", {}), ("look_up", {"name": "Ada"})), says("Late.", latency_ms=1500)
    slug = await saved(http, person, *turns, tools=["tick", "look_up"])
    run = await ask(http, person, "POST", f"agents/{slug}/runs", {}, 202)
    told, changed = [], False
    async with Client(desk.address, person.key) as client:
        async for name, tree in client.stream(f"/agent-runs/{run['run_id']}/events"):
            told.append((name, tree))
            if not changed and [step["status"] for step in tree["runs"][0]["steps"]] == ["done"] * 3:
                changed = True
                await desk.shop.operator.execute(
                    "update agent_run_steps set result = '5' where run_id = $1 and n = 3", uuid.UUID(run["run_id"])
                )
    name, end = told[-1]
    assert (name, changed) == ("end", True)
    assert [step["n"] for step in end["runs"][0]["steps"]] == [1, 2, 3, 4]
    assert end["runs"][0]["steps"][2]["result"] == {"name": "Ada", "plan": "pro"}
    assert end["runs"][0]["steps"][3]["result"]["text"] == "Late."


async def events(http: aiohttp.ClientSession, who: Person, run_id: str, seen: str = "") -> list[tuple[str, str, Any]]:
    headers = who.headers | ({"Last-Event-ID": seen} if seen else {})
    async with http.get(f"agent-runs/{run_id}/events", headers=headers) as answer:
        assert answer.status == 200
        blocks = (await answer.text()).split("\n\n")
    found = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks if "event: " in block]
    return [(one["event"], one["id"], orjson.loads(one["data"])) for one in found]


async def test_a_revoked_key_is_told_nothing_more_of_a_run_within_a_second(
    desk: Studio, http: aiohttp.ClientSession
) -> None:
    person = await desk.shop.person()
    slug = await saved(http, person, says("Never.", latency_ms=60_000))
    run = await ask(http, person, "POST", f"agents/{slug}/runs", {}, 202)
    async with following(http, person, f"agent-runs/{run['run_id']}/events") as events:
        assert (await anext(events))[0] == "progress"
        await desk.shop.operator.execute("select revoke_api_key($1)", person.key_id)
        async with asyncio.timeout(1):
            told = [event async for event in events]
    assert (told[-1][0], told[-1][1]["code"]) == ("error", "authentication_failed")
    assert "end" not in [name for name, _ in told]


async def test_a_run_is_cancelled_and_its_budget_comes_back(desk: Studio, http: aiohttp.ClientSession) -> None:
    person = await desk.shop.person()
    slug = await saved(http, person, says("Never.", latency_ms=60_000))
    run = await ask(http, person, "POST", f"agents/{slug}/runs", {}, 202)
    await ask(http, person, "POST", f"agent-runs/{run['run_id']}/cancel", {"reason": "enough"})
    found = await ask(http, person, "GET", f"agent-runs/{run['run_id']}")
    assert (found["state"], found["stop_reason"], found["runs"][0]["budget"]["state"]) == (
        "canceled",
        "canceled",
        "closed",
    )


async def test_others_neither_see_nor_start_what_is_private(desk: Studio, http: aiohttp.ClientSession) -> None:
    person, stranger = await desk.shop.person(), await desk.shop.person()
    slug = await saved(http, person, says("Mine."))
    run = await ask(http, person, "POST", f"agents/{slug}/runs", {"wait_s": 30})
    for method, path in (
        ("GET", f"agents/{slug}"),
        ("POST", f"agents/{slug}/retire"),
        ("POST", f"agents/{slug}/runs"),
        ("GET", f"agent-runs/{run['run_id']}"),
        ("GET", f"agent-runs/{run['run_id']}/events"),
        ("POST", f"agent-runs/{run['run_id']}/cancel"),
    ):
        await ask(http, stranger, method, path, {} if method == "POST" else None, 404)
    assert (await ask(http, stranger, "GET", "agent-runs"))["data"] == []
