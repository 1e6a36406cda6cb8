"""Executions over HTTP: what starts, who sees it, what is refused before anything is written."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import Person, serve, settings_for
from tests.tokens.test_routes import get, post
from tests.workflows.hands import Room, workflow
from vanilla_saas.app import create_app
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, token_hash

INPUT = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
EXECUTIONS = "select count(*) from workflow_executions where workflow_id = $1"


@pytest.fixture(scope="module")
async def http(desk: Room, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an API with a worker beside it."""
    home = tmp_path_factory.mktemp("home")
    async with (
        serve(create_app(settings_for(desk.cluster, desk.name, home, run_worker=True))) as address,
        aiohttp.ClientSession(address) as session,
    ):
        yield session


async def ended(http: aiohttp.ClientSession, person: Person, execution: str, seconds: float = 20) -> dict[str, Any]:
    async with asyncio.timeout(seconds):
        while True:
            found: dict[str, Any] = await get(http, person, f"/workflow-executions/{execution}")
            if found["finished_at"]:
                return found
            await asyncio.sleep(0.02)


async def waiting(http: aiohttp.ClientSession, person: Person, execution: str, node: str) -> None:
    async with asyncio.timeout(20):
        while True:
            found = await get(http, person, f"/workflow-executions/{execution}")
            if {step["node"]: step for step in found["steps"]}[node]["status"] == "waiting":
                return
            await asyncio.sleep(0.02)


async def start(
    http: aiohttp.ClientSession, person: Person, shape: uuid.UUID, status: int = 201, **given: Any
) -> dict[str, Any]:
    started, _ = await post(http, person, f"/workflows/{shape}/executions", {"input": given}, status=status)
    return started


def adding(**more: Any) -> dict[str, Any]:
    return workflow("a", a={"value": "input.n + 1"}, output="steps.a.output", input=INPUT, **more)


async def test_an_execution_is_started_and_read_with_its_steps_and_output(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    shape = await desk.publish(adding())
    started = await start(http, desk.owner, shape, n=20)
    assert (started["version"], started["status"], started["replayed"]) == (1, "running", False)
    found = await ended(http, desk.owner, started["execution_id"])
    assert (found["status"], found["output"], found["input"]) == ("succeeded", 21, {"n": 20})
    assert found["workflow"].startswith("w")
    step = await get(http, desk.owner, f"/workflow-executions/{found['id']}/steps/a")
    assert (step["output"], step["status"], step["attempts"], step["data"]) == (21, "succeeded", 1, [])
    await get(http, desk.owner, f"/workflow-executions/{found['id']}/steps/none", status=404)


async def test_an_input_that_does_not_fit_is_refused_by_field_and_nothing_is_written(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    shape = await desk.publish(adding())
    for given, field in (({"n": 0}, "input.n"), ({}, "input"), ({"n": "x"}, "input.n")):
        problem = await start(http, desk.owner, shape, status=422, **given)
        assert (problem["code"], problem["problems"][0]["field"]) == ("invalid_input", field)
    assert await desk.operator.fetchval(EXECUTIONS, shape) == 0


async def test_a_key_that_is_sent_again_is_answered_with_the_first_start(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    shape = await desk.publish(adding())
    path, key = f"/workflows/{shape}/executions", "once"
    first, _ = await post(http, desk.owner, path, {"input": {"n": 1}}, status=201, key=key)
    again, headers = await post(http, desk.owner, path, {"input": {"n": 1}}, status=200, key=key)
    assert (again["execution_id"], again["replayed"]) == (first["execution_id"], True)
    assert headers["Idempotency-Replayed"] == "true"
    other, _ = await post(http, desk.owner, path, {"input": {"n": 2}}, status=409, key=key)
    assert other["code"] == "idempotency_key_reused"
    # a newer version that wants another input does not change what was answered
    slug = (await get(http, desk.owner, f"/workflows/{shape}"))["slug"]
    await desk.operator.fetchval(
        "select save_workflow($1, $2, p_user_id => $3)",
        slug,
        {"name": "Test", **adding(), "input": INPUT | {"required": ["m"]}},
        desk.owner.identity.user_id,
    )
    await desk.operator.fetchval("select publish_workflow($1)", shape)
    await post(http, desk.owner, path, {"input": {"n": 1}}, status=200, key=key)
    assert await desk.operator.fetchval(EXECUTIONS, shape) == 1


async def test_nobody_but_the_owner_and_admins_sees_an_execution_or_starts_the_workflow(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    shape = await desk.publish(adding())
    started = await start(http, desk.owner, shape, n=1)
    other = await desk.people.user()
    stranger = await desk.people.user("admin", await desk.people.tenant(), scopes=["read", "chat", "admin"])
    admin = await desk.people.user("admin", scopes=["read", "chat", "admin"])
    path = f"/workflow-executions/{started['execution_id']}"
    for person in (other, stranger):
        for below in ("", "/steps/a", "/gates", "/events"):
            await get(http, person, path + below, status=404)
        for verb in ("cancel", "pause", "resume", "restart"):
            await post(http, person, f"{path}/{verb}", {}, status=404)
        await post(http, person, f"{path}/signals", {"name": "go"}, status=404)
        await start(http, person, shape, status=404, n=1)
        mine = await get(http, person, "/workflow-executions")
        assert started["execution_id"] not in [row["id"] for row in mine["data"]]
    assert (await get(http, admin, path))["user_id"] == str(desk.owner.identity.user_id)
    # who pays is an admin's to say
    body = {"input": {"n": 1}, "user_id": str(other.identity.user_id)}
    await post(http, desk.owner, f"/workflows/{shape}/executions", body, status=403)
    paid, _ = await post(http, admin, f"/workflows/{shape}/executions", body, status=201)
    assert (await get(http, other, f"/workflow-executions/{paid['execution_id']}"))["id"] == paid["execution_id"]


async def test_keys_need_the_scope_and_none_with_a_budget_starts_anything(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    shape = await desk.publish(adding())
    reader = await desk.people.user(scopes=["read"])
    problem = await start(http, reader, shape, status=403, n=1)
    assert problem["need"] == "chat"
    key = new_token(KEY_PREFIX)
    key_id = await desk.operator.fetchval(
        "select create_api_key('limited', $1, $2, '{chat,read}', p_budget_tokens => 10, p_user_id => $3)",
        key[:12],
        token_hash(key),
        desk.owner.identity.user_id,
    )
    limited = Person(desk.owner.identity, key, key_id)
    failed = await failing(desk, http)
    for path, body in (
        (f"/workflows/{shape}/executions", {"input": {"n": 1}}),
        (f"/workflow-executions/{failed}/restart", {}),
        (f"/workflow-executions/{failed}/resume", {}),
        ("/workflow-executions/replay", {}),
    ):
        problem, _ = await post(http, limited, path, body, status=403)
        assert problem["need"] == "key_without_budget"
    assert await desk.operator.fetchval(EXECUTIONS, shape) == 0


async def failing(desk: Room, http: aiohttp.ClientSession, person: Person | None = None) -> str:
    """An execution that has failed at b, for division by zero."""
    person = person or desk.owner
    shape = await desk.publish(workflow("a b", "a>b", b={"value": "1 / (input.n - input.n)"}), person)
    started = await start(http, person, shape, n=1)
    found = await ended(http, person, started["execution_id"])
    assert (found["status"], found["error"]["node"]) == ("failed", "b")
    return str(started["execution_id"])


async def test_failed_ones_are_listed_page_by_page_and_replayed(desk: Room, http: aiohttp.ClientSession) -> None:
    person = await desk.people.user(balance=1000)
    made = [await failing(desk, http, person) for _ in range(3)]
    listed: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(http, person, "/workflow-executions?status=failed", limit=2, **cursor)
        listed += [row["id"] for row in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert listed == made[::-1]
    shape = (await get(http, person, f"/workflow-executions/{made[0]}"))["workflow_id"]
    one = await get(http, person, "/workflow-executions", workflow=shape)
    assert [row["id"] for row in one["data"]] == made[:1]
    told, _ = await post(http, person, "/workflow-executions/replay", {"limit": 2})
    assert (told["restarted"], told["refused"]) == (made[:2], [])
    for execution in made[:2]:
        assert (await ended(http, person, execution))["status"] == "failed"
    told, _ = await post(http, person, "/workflow-executions/replay", {"workflow": shape})
    assert told["restarted"] == made[:1]
    told, _ = await post(http, person, "/workflow-executions/replay", {"reason": "timeout"})
    assert told == {"restarted": [], "refused": []}


async def test_one_is_paused_resumed_cancelled_and_restarted_from_a_node(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    shape = await desk.publish(workflow("a w=wait b", "a>w w>b", w={"seconds": 3600}))
    path = f"/workflow-executions/{(await start(http, desk.owner, shape))['execution_id']}"
    await waiting(http, desk.owner, path.rpartition("/")[2], "w")
    assert (await post(http, desk.owner, f"{path}/pause", None))[0]["status"] == "paused"
    assert (await post(http, desk.owner, f"{path}/pause", {}, status=409))[0]["code"] == "invalid_state"
    assert (await post(http, desk.owner, f"{path}/resume", None))[0]["status"] == "running"
    assert (await post(http, desk.owner, f"{path}/cancel", {"reason": "enough"}))[0]["status"] == "cancelled"
    found = await get(http, desk.owner, path)
    assert (found["reason"], found["error"]["message"]) == ("cancelled", "enough")
    assert (await post(http, desk.owner, f"{path}/restart", {"node": "a"}))[0]["status"] == "running"
    await waiting(http, desk.owner, path.rpartition("/")[2], "w")
    await post(http, desk.owner, f"{path}/cancel", None)


async def test_one_that_failed_goes_on_with_a_newer_version_that_its_input_fits(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    shape = await desk.publish(workflow("a b", "a>b", a={"value": "input.n"}, b={"value": "1 / 0"}, input=INPUT))
    execution = (await start(http, desk.owner, shape, n=2))["execution_id"]
    assert (await ended(http, desk.owner, execution))["reason"] == "expression_failed"
    path = f"/workflow-executions/{execution}/restart"
    mended = {"a": {"value": "input.n"}, "b": {"value": "steps.a.output * 2"}}
    strict = INPUT | {"properties": {"n": {"type": "integer", "minimum": 3}}}
    versions = [
        await desk.publish_next(shape, workflow("b a", "a>b", input=strict, **mended)),
        await desk.publish_next(shape, workflow("b a", "a>b", input=INPUT, **mended | {"a": {"value": "1"}})),
        await desk.publish_next(shape, workflow("b a", "a>b", input=INPUT | {"title": "N"}, **mended)),
    ]
    unfit, _ = await post(http, desk.owner, path, {"version": versions[0]}, status=422)
    assert (unfit["code"], unfit["param"]) == ("invalid_input", "input.n")
    other, _ = await post(http, desk.owner, path, {"version": versions[1]}, status=409)
    assert (other["code"], other["node"], other["version"]) == ("invalid_state", "a", versions[1])
    assert (await post(http, desk.owner, path, {"version": versions[2]}))[0]["status"] == "running"
    found = await ended(http, desk.owner, execution)
    assert (found["status"], found["version"], found["output"]) == ("succeeded", versions[2], {"b": 4})


async def test_a_signal_must_be_one_that_a_node_waits_for_and_fit_its_schema(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    shape = await desk.publish(
        workflow("s=signal b", "s>b", s={"signal": "paid", "schema": INPUT}, b={"value": "steps.s.output.n"},
                 output="steps.b.output")
    )  # fmt: skip
    execution = (await start(http, desk.owner, shape))["execution_id"]
    path = f"/workflow-executions/{execution}/signals"
    unknown, _ = await post(http, desk.owner, path, {"name": "payd"}, status=404)
    assert unknown["signals"] == ["paid"]
    refused, _ = await post(http, desk.owner, path, {"name": "paid", "payload": {"n": 0}}, status=422)
    assert (refused["code"], refused["param"]) == ("invalid_input", "payload.n")
    assert await desk.operator.fetchval("select count(*) from workflow_signals") == 0
    told, _ = await post(http, desk.owner, path, {"name": "paid", "payload": {"n": 3}})
    assert told["signal"] == "paid"
    assert (await ended(http, desk.owner, execution))["output"] == 3
    again, _ = await post(http, desk.owner, path, {"name": "paid", "payload": {"n": 3}}, status=409)
    assert again["status"] == 409


async def test_an_approval_is_decided_by_those_who_are_asked_with_a_value_that_fits(
    desk: Room, http: aiohttp.ClientSession
) -> None:
    asked, other = await desk.people.user(), await desk.people.user()
    edit = {"type": "object", "properties": {"text": {"type": "string", "minLength": 2}}, "required": ["text"],
            "additionalProperties": False}  # fmt: skip
    shape = await desk.publish(
        workflow("p=approval b", "p>b:approved",
                 p={"title": "Look", "of": "{'text': 'Draft', 'by': input.by}", "edit": edit,
                    "approvers": [f"user:{asked.identity.user_id}"], "quorum": 1},
                 b={"value": "steps.p.output.value"}, output="steps.b.output")
    )  # fmt: skip
    execution = (await start(http, desk.owner, shape, by="me"))["execution_id"]
    await waiting(http, desk.owner, execution, "p")
    assert (await get(http, other, "/approvals"))["data"] == []
    [approval] = (await get(http, asked, "/approvals"))["data"]
    assert (approval["title"], approval["subject"]) == ("Look", {"text": "Draft", "by": "me"})
    path = f"/approvals/{approval['id']}/decision"

    async def decide(person: Person, status: int, **value: Any) -> dict[str, Any]:
        told, _ = await post(http, person, path, {"decision": "approved", "value": value}, status=status)
        return told

    assert (await decide(other, 404, text="Mine", by="me"))["code"] == "not_found"
    assert (await decide(desk.owner, 403, text="Mine", by="me"))["code"] == "forbidden"
    # of a value the editable part fits the schema, and the rest is as it was shown
    assert (await decide(asked, 422, text="M", by="me"))["param"] == "value.text"
    assert (await decide(asked, 400, text="Mine", by="you"))["may_change"] == ["text"]
    assert await desk.operator.fetchval("select count(*) from workflow_approval_votes") == 0
    assert (await decide(asked, 200, text="Mine", by="me"))["status"] == "approved"
    assert (await ended(http, desk.owner, execution))["output"] == {"text": "Mine", "by": "me"}
    assert (await decide(asked, 409, text="Mine", by="me"))["code"] == "invalid_state"


async def test_items_of_a_map_come_in_pages(desk: Room, http: aiohttp.ClientSession) -> None:
    each = {"over": "[1, 2, 3, 4, 5]", "max_items": 10, "item": {"kind": "transform", "value": "item * 10"}}
    shape = await desk.publish(workflow("m=map", m=each))
    found = await ended(http, desk.owner, (await start(http, desk.owner, shape))["execution_id"])
    assert [step["items_done"] for step in found["steps"] if step["node"] == "m"] == [5]
    path, seen, cursor = f"/workflow-executions/{found['id']}/steps/m", [], {}
    while True:
        page = await get(http, desk.owner, path, limit=2, **cursor)
        seen += [(item["item"], item["value"], item["output"]) for item in page["data"]]
        assert (page["output"], page["kind"]) == ([10, 20, 30, 40, 50], "map")
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [(n, n + 1, (n + 1) * 10) for n in range(5)]


async def test_what_gates_found_is_told_by_execution_and_by_day(desk: Room, http: aiohttp.ClientSession) -> None:
    shape = await desk.publish(
        workflow("a g=gate", "a>g", a={"value": "'too long'"},
                 g={"of": "steps.a.output", "check": "length", "unit": "characters", "max": 3, "on_fail": "retry",
                    "retry": {"node": "a", "times": 1}})
    )  # fmt: skip
    found = await ended(http, desk.owner, (await start(http, desk.owner, shape))["execution_id"])
    assert (found["status"], found["reason"]) == ("failed", "gate_failed")
    assert {step["node"]: step.get("score") for step in found["steps"]}["g"] == 0
    results = (await get(http, desk.owner, f"/workflow-executions/{found['id']}/gates"))["data"]
    assert [(one["gate"], one["round"], one["passed"]) for one in results] == [("g", 0, False), ("g", 1, False)]
    [day] = (await get(http, desk.owner, f"/workflows/{shape}/gates"))["data"]
    assert (day["gate"], day["judged"], day["passed"], day["average_score"]) == ("g", 2, 0, 0)
    assert (await get(http, desk.owner, f"/workflows/{shape}/gates", until="2020-01-01"))["data"] == []
    step = await get(http, desk.owner, f"/workflow-executions/{found['id']}/steps/a")
    assert step["feedback"]["value"] == "too long"
