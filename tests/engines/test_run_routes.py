"""Runs of engines over HTTP: begun, waited for, refused by the reason of their failure; keys that run one engine."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI

from tests.conftest import Person, serve, settings_for
from tests.engines.served import INPUT, WAITS
from tests.engines.shop import Made, Shop, plain
from tests.tokens.test_routes import get, post
from tests.workflows.test_events import following
from vanilla_saas.app import create_app


@pytest.fixture(scope="module")
async def app(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    home = tmp_path_factory.mktemp("home")
    return create_app(settings_for(floor.room.cluster, floor.room.name, home, run_worker=True))


@pytest.fixture(scope="module")
async def http(app: FastAPI) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an API with a worker beside it."""
    async with serve(app) as address, aiohttp.ClientSession(address) as session:
        yield session


@pytest.fixture(scope="module")
async def doubling(floor: Shop) -> Made:
    return await floor.deploy(plain("input.n * 2", input=INPUT, output="steps.a.output"))


async def key_for(http: aiohttp.ClientSession, floor: Shop, user: Person, ref: str, **more: Any) -> Person:
    """A key of an engine, as the one who has it sees themselves."""
    admin = await floor.room.people.user("admin", scopes=["admin"])
    body = {"ref": ref, "name": "a site", "user_id": str(user.identity.user_id), **more}
    made, _ = await post(http, admin, "/engine-keys", body, status=201)
    return Person(user.identity, made["key"], uuid.UUID(made["id"]))


async def test_a_run_is_begun_at_once_and_followed(http: aiohttp.ClientSession, floor: Shop, doubling: Made) -> None:
    user = await floor.person()
    body = {"ref": doubling.slug, "input": {"n": 21}}
    begun, headers = await post(http, user, "/engines/run", body, status=202)
    assert (begun["version"], begun["alias"], begun["source"], begun["replayed"]) == (1, "stable", "reference", False)
    assert headers["Location"] == begun["follow"] == f"/api/v1/workflow-executions/{begun['execution_id']}"
    ended = await get(http, user, f"/engine-runs/{begun['execution_id']}", wait_s=20)
    assert (ended["status"], ended["output"], ended["events"]) == ("succeeded", 42, f"{begun['follow']}/events")
    assert (await get(http, user, begun["follow"].removeprefix("/api/v1")))["output"] == 42


async def test_a_run_that_is_waited_for_answers_with_its_output(
    http: aiohttp.ClientSession, floor: Shop, doubling: Made
) -> None:
    user = await floor.person()
    body = {"ref": doubling.slug, "input": {"n": 4}, "wait_s": 20, "idempotency_key": "k"}
    ran, _ = await post(http, user, "/engines/run", body)
    assert (ran["status"], ran["output"], ran["reason"]) == ("succeeded", 8, None)
    assert ran["estimate"]["runs"] >= 0
    again, headers = await post(http, user, "/engines/run", body)
    assert (again["execution_id"], again["output"], again["replayed"]) == (ran["execution_id"], 8, True)
    assert headers["Idempotency-Replayed"] == "true"
    # the header says the same as the field
    by_header = {name: value for name, value in body.items() if name != "idempotency_key"}
    assert (await post(http, user, "/engines/run", by_header, key="k"))[0]["execution_id"] == ran["execution_id"]
    other, _ = await post(http, user, "/engines/run", body | {"input": {"n": 5}}, status=409)
    assert other["code"] == "idempotency_key_reused"
    await post(http, user, "/engines/run", body, status=400, key="another")
    for wrong in ({"wait_s": 121}, {"wait_s": -1}, {"input": []}, {"priority": 10}, {"engine": "x"}):
        await post(http, user, "/engines/run", body | wrong, status=400)


async def test_what_a_run_would_be_is_told_before_it(http: aiohttp.ClientSession, floor: Shop, doubling: Made) -> None:
    user, reader = await floor.person(), await floor.room.people.user(scopes=["read"])
    body = {"ref": doubling.slug, "input": {"n": 4}}
    await post(http, user, "/engines/run", body | {"wait_s": 20})
    told, _ = await post(http, user, "/engines/preview", body)
    assert (told["engine"], told["version"], told["alias"], told["source"]) == (
        doubling.slug, 1, "stable", "reference",
    )  # fmt: skip
    assert (told["input"], told["prices_changed"]) == ({"n": 4}, False)
    assert (told["estimate"]["p50"], told["estimate"]["p95"]) == (0, 0)
    ran, _ = await post(http, user, "/engines/run", body, status=202)
    assert ran["estimate"] == told["estimate"]
    problem, _ = await post(http, user, "/engines/preview", body | {"input": {"n": "x"}}, status=422)
    assert (problem["code"], problem["problems"][0]["field"]) == ("invalid_input", "input.n")
    await post(http, user, "/engines/preview", {"ref": "nobody"}, status=404)
    await post(http, reader, "/engines/preview", body, status=403)
    key = await key_for(http, floor, user, doubling.slug)
    await post(http, key, "/engines/preview", body, status=403)
    count = "select count(*) from engine_executions where user_id = $1"
    assert await floor.operator.fetchval(count, user.identity.user_id) == 2


async def test_one_that_is_not_over_by_then_goes_on(http: aiohttp.ClientSession, floor: Shop, app: FastAPI) -> None:
    user, engine = await floor.person(), await floor.deploy(WAITS)
    async with asyncio.timeout(10):
        begun, _ = await post(http, user, "/engines/run", {"ref": engine.slug, "wait_s": 0.3}, status=202)
    assert (begun["status"], begun["finished_at"]) == ("running", None)
    streams = app.state.streams
    assert streams.open == 0
    # a process that keeps as many streams as it may does not wait
    most, streams.most = streams.most, 0
    async with asyncio.timeout(10):
        assert (await get(http, user, f"/engine-runs/{begun['execution_id']}", wait_s=60))["status"] == "running"
    streams.most = most
    cancelled, _ = await post(http, user, f"/workflow-executions/{begun['execution_id']}/cancel", {})
    assert cancelled["status"] == "cancelled"
    ended = await get(http, user, f"/engine-runs/{begun['execution_id']}")
    assert (ended["status"], ended["reason"], ended["output"]) == ("cancelled", "cancelled", None)


async def test_a_run_that_failed_is_an_error_of_its_reason(
    http: aiohttp.ClientSession, floor: Shop, doubling: Made
) -> None:
    user, broken = await floor.person(), await floor.deploy(plain("1 / (input.n - input.n)"))
    # begun in SQL, where nobody looks at the input before
    unfit = await floor.ask(user, "execute_engine", doubling.slug, {"n": "x"})
    told = await get(http, user, f"/engine-runs/{unfit['execution_id']}", wait_s=20)
    assert (told["reason"], told["charged_tokens"]) == ("input_invalid", 0)
    assert [one["pointer"] for one in told["error"]["details"]["mismatches"]] == ["/n"]
    body = {"ref": broken.slug, "input": {"n": 1}, "wait_s": 20}
    problem, _ = await post(http, user, "/engines/run", body, status=422)
    assert (problem["code"], problem["reason"], problem["node"]) == ("run_failed", "expression_failed", "a")
    # asked for itself it is told, not refused
    told = await get(http, user, f"/engine-runs/{problem['execution_id']}", wait_s=5)
    assert (told["status"], told["error"]["node"]) == ("failed", "a")


async def test_an_input_that_does_not_fit_is_refused_by_field_before_anything_starts(
    http: aiohttp.ClientSession, floor: Shop
) -> None:
    parts = {"type": "array", "items": {"type": "object", "properties": {"a/b": {"type": "integer"}}}}
    shape = {
        "type": "object",
        "properties": {"parts": parts, "tone": {"type": "string"}},
        "required": ["parts", "tone"],
    }
    engine = await floor.deploy(plain(input=shape), p_parameters={"tone": {"type": "string", "maxLength": 9}})
    user, body = await floor.person(), {"ref": engine.slug, "input": {"parts": [{"a/b": 1}, {"a/b": "x"}]}}
    key = await key_for(http, floor, user, engine.slug)
    for person in (user, key):
        problem, _ = await post(http, person, "/engines/run", body, status=422)
        assert problem["code"] == "invalid_input"
        assert {(one["field"], one["pointer"]) for one in problem["problems"]} == {
            ("input.parts.1.a/b", "/parts/1/a~1b"), ("input", ""),
        }  # fmt: skip
        assert problem["param"] in ("input", "input.parts.1.a/b")
    runs = "select count(*) from workflow_executions where user_id = $1"
    assert await floor.operator.fetchval(runs, user.identity.user_id) == 0
    # what the copy says and the engine declares is in it by then
    await floor.ask(user, "fork_engine", engine.slug, "mine", {"tone": "kind"})
    fits = {"ref": "my/mine", "input": {"parts": []}, "idempotency_key": "k"}
    begun, _ = await post(http, user, "/engines/run", fits, status=202)
    # a key finds its run again, whatever the schema has become; who may not run it is not told the schema
    await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="none")
    assert (await post(http, user, "/engines/run", fits, status=202))[0]["execution_id"] == begun["execution_id"]
    for person in (user, key):
        refused, _ = await post(http, person, "/engines/run", body, status=404)
        assert "problems" not in refused
    await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="read")
    assert (await post(http, user, "/engines/run", body, status=403))[0]["need"] == "execute"


async def test_nobody_else_sees_a_run_and_an_admin_says_who_pays(
    http: aiohttp.ClientSession, floor: Shop, doubling: Made
) -> None:
    user, other = await floor.person(), await floor.person()
    admin = await floor.room.people.user("admin", scopes=["read", "chat", "admin"])
    body = {"ref": doubling.slug, "input": {"n": 1}, "user_id": str(user.identity.user_id)}
    await post(http, other, "/engines/run", body, status=403)
    begun, _ = await post(http, admin, "/engines/run", body, status=202)
    path = f"/engine-runs/{begun['execution_id']}"
    for person in (user, admin):
        assert (await get(http, person, path))["execution_id"] == begun["execution_id"]
    await get(http, other, path, status=404)
    await get(http, other, path, status=404, wait_s=60)
    reader = await floor.room.people.user(scopes=["read"])
    refused, _ = await post(http, reader, "/engines/run", {"ref": doubling.slug}, status=403)
    assert refused["need"] == "chat"
    writer = await floor.room.people.user(scopes=["chat"])
    own, _ = await post(http, writer, "/engines/run", {"ref": doubling.slug, "input": {"n": 1}}, status=202)
    assert (await get(http, writer, f"/engine-runs/{own['execution_id']}", status=403))["need"] == "read"
    await floor.operator.execute("update api_keys set budget_tokens = 10 where id = $1", writer.key_id)
    refused, _ = await post(http, writer, "/engines/run", {"ref": doubling.slug}, status=403)
    assert refused["need"] == "key_without_budget"


async def test_a_key_of_an_engine_runs_it_sees_what_it_began_and_opens_nothing_else(
    http: aiohttp.ClientSession, floor: Shop, doubling: Made
) -> None:
    user = await floor.person()
    key, twin = [await key_for(http, floor, user, doubling.slug) for _ in range(2)]
    ran, _ = await post(http, key, "/engines/run", {"input": {"n": 3}, "wait_s": 20, "idempotency_key": "one"})
    assert (ran["output"], ran["source"]) == (6, "key")
    assert ran["follow"] == f"/api/v1/engine-runs/{ran['execution_id']}"
    assert ran["events"] == f"{ran['follow']}/events"
    path = ran["follow"].removeprefix("/api/v1")
    assert (await get(http, key, path, wait_s=1))["output"] == 6
    assert (await get(http, user, path))["output"] == 6
    own, _ = await post(http, user, "/engines/run", {"ref": doubling.slug, "input": {"n": 1}}, status=202)
    for person, other in ((twin, path), (key, f"/engine-runs/{own['execution_id']}")):
        await get(http, person, other, status=404)
    for other in ("/engines", "/engine-choice", "/engine-copies", "/workflow-executions", "/wallet", "/users"):
        await get(http, key, other, status=403)
    await get(http, key, f"/workflow-executions/{own['execution_id']}", status=403)
    await post(http, key, "/workflow-executions/replay", {}, status=403)
    await post(http, key, "/engine-keys", {"ref": doubling.slug, "name": "more"}, status=403)
    await post(http, key, "/engine-copies", {"ref": doubling.slug, "slug": "mine"}, status=403)
    for wrong, status in (({"ref": "another"}, 404), ({"priority": 9}, 403), ({"user_id": str(uuid.uuid4())}, 403)):
        await post(http, key, "/engines/run", {"input": {"n": 1}} | wrong, status=status)
    await floor.operator.execute("select revoke_api_key($1)", key.key_id)
    await post(http, key, "/engines/run", {"input": {"n": 3}}, status=401)


async def test_a_key_of_an_engine_follows_what_it_began_and_nothing_else(
    http: aiohttp.ClientSession, floor: Shop, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, user = await floor.deploy(WAITS), await floor.person()
    key, twin = [await key_for(http, floor, user, engine.slug) for _ in range(2)]
    begun, _ = await post(http, key, "/engines/run", {}, status=202)
    own, _ = await post(http, user, "/engines/run", {"ref": engine.slug}, status=202)
    path = begun["events"].removeprefix("/api/v1")
    assert path == f"/engine-runs/{begun['execution_id']}/events"
    refused = [
        (twin, path, 404),
        (await floor.person(), path, 404),
        (key, f"/engine-runs/{own['execution_id']}/events", 404),
        (key, f"/engine-runs/{uuid.uuid4()}/events", 404),
        (key, f"/workflow-executions/{begun['execution_id']}/events", 403),
        (await floor.room.people.user(scopes=["chat"]), path, 403),
    ]
    for person, what, status in refused:
        await get(http, person, what, status=status)
    streams = app.state.streams
    with monkeypatch.context() as full:
        full.setattr(streams, "most", 0)
        await get(http, key, path, status=429)
    async with following(http, key, begun["events"]) as events:
        name, first = await anext(events)
        assert (name, first) == ("progress", await get(http, key, f"/engine-runs/{begun['execution_id']}"))
        assert (first["status"], first["finished_at"], first["charged_tokens"]) == ("running", None, 0)
        await post(http, user, f"/workflow-executions/{begun['execution_id']}/pause", None)
        assert await anext(events) == ("progress", {"status": "paused"})
        await post(http, user, f"/workflow-executions/{begun['execution_id']}/resume", None)
        assert await anext(events) == ("progress", {"status": "running"})
        await post(http, user, f"/workflow-executions/{begun['execution_id']}/signals", {"name": "go", "payload": 7})
        name, last = await anext(events)
        assert (name, last) == ("end", await get(http, key, f"/engine-runs/{begun['execution_id']}"))
        assert (last["status"], last["output"]) == ("succeeded", {"s": 7})
        assert [event async for event in events] == []
    async with following(http, user, f"/api/v1{path}") as events:
        told = [event async for event in events]
    assert [name for name, _ in told] == ["progress", "end"]
    assert told[0][1]["output"] == {"s": 7}
    assert streams.open == 0


@pytest.mark.parametrize("cancels", [True, False], ids=["its runs end", "its runs go on"])
async def test_a_revoked_key_is_told_nothing_more_within_a_second(
    http: aiohttp.ClientSession, floor: Shop, cancels: bool
) -> None:
    engine, user = await floor.deploy(WAITS), await floor.person()
    key = await key_for(http, floor, user, engine.slug)
    begun, _ = await post(http, key, "/engines/run", {}, status=202)
    async with following(http, key, begun["events"]) as events:
        assert (await anext(events))[0] == "progress"
        await floor.operator.execute("select revoke_api_key($1, p_cancel_runs => $2)", key.key_id, cancels)
        async with asyncio.timeout(1):
            told = [event async for event in events if event[0]]
    assert [(name, problem["code"]) for name, problem in told] == [("error", "authentication_failed")]


async def test_a_key_of_an_engine_is_made_by_admins_for_what_its_user_may_run(
    http: aiohttp.ClientSession, floor: Shop, doubling: Made
) -> None:
    user = await floor.person()
    await post(http, user, "/engine-keys", {"ref": doubling.slug, "name": "x"}, status=403)
    admin = await floor.room.people.user("admin", scopes=["admin"])
    body = {"ref": doubling.slug, "name": "x"}
    made, _ = await post(http, admin, "/engine-keys", {**body, "budget_tokens": 5}, status=201)
    assert (made["scopes"], made["budget_tokens"], made["key"][:12]) == (["engine"], 5, made["prefix"])
    for wrong, status in (
        ({"ref": "none"}, 404), ({"ref": "A b"}, 400), ({"name": " "}, 400), ({"budget_tokens": 0}, 400),
        ({"expires_at": "2020-01-01T00:00Z"}, 400), ({"user_id": str(uuid.uuid4())}, 404),
    ):  # fmt: skip
        await post(http, admin, "/engine-keys", body | wrong, status=status)


async def test_the_report_says_how_the_runs_of_each_version_ended(http: aiohttp.ClientSession, floor: Shop) -> None:
    engine = await floor.deploy(plain("10 / input.n"))
    user, admin = await floor.person(), await floor.room.people.user("admin", scopes=["read", "admin"])
    for n, status in ((1, 200), (2, 200), (0, 422)):
        await post(http, user, "/engines/run", {"ref": engine.slug, "input": {"n": n}, "wait_s": 20}, status=status)
    path = f"/engines/{engine.slug}/report"
    [row] = (await get(http, admin, path))["data"]
    assert (row["version"], row["runs"], row["succeeded"], row["failed"], row["running"]) == (1, 3, 2, 1, 0)
    assert row["p50_ms"] <= row["p95_ms"]
    assert (row["alias"], row["weight"], row["p95_tokens"], row["p50_micros"]) == ("stable", 100, 0, 0)
    assert (row["gates"], row["gate_pass_rate"]) == (0, None)


async def test_the_report_holds_a_canary_against_stable(http: aiohttp.ClientSession, floor: Shop) -> None:
    def judged(rule: str) -> dict[str, Any]:
        gate = {"id": "g", "kind": "gate", "check": "rule", "rule": rule, "of": "input.n", "on_fail": "branch"}
        return {
            "nodes": [gate, {"id": "b", "kind": "transform", "value": "1"}],
            "connections": [{"from": "g", "to": "b", "on": "failed"}],
        }

    engine = await floor.deploy(judged("value > 2"))
    flow = await floor.flow(judged("value > 1"))
    await floor.ask(floor.admin, "deploy_engine", engine.slug, flow)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2, "canary", 10)
    user, admin = await floor.person(), await floor.room.people.user("admin", scopes=["read", "admin"])
    ran: dict[int, list[str]] = {1: [], 2: []}
    for version in ran:
        for n in range(1, 5):
            body = {"ref": f"{engine.slug}@{version}", "input": {"n": n}, "wait_s": 20}
            told, _ = await post(http, user, "/engines/run", body)
            ran[version].append(told["execution_id"])
    path = f"/engines/{engine.slug}/report"
    told = (await get(http, admin, path))["data"]
    assert [(row["version"], row["alias"], row["weight"]) for row in told] == [(1, "stable", 100), (2, "canary", 10)]
    assert [(row["gates"], row["gates_passed"], row["gate_pass_rate"]) for row in told] == [(4, 2, 0.5), (4, 3, 0.75)]
    figures = (
        "update workflow_executions set charged_tokens = $2::int, cost_micros = 10 * $2::int,"
        " finished_at = started_at + make_interval(secs => $2::int) where id = $1"
    )
    transaction = floor.operator.transaction()
    await transaction.start()
    for version, runs in ran.items():
        for place, run in enumerate(runs, 1):
            await floor.operator.execute(figures, uuid.UUID(run), place * version)
    # what still runs is in no percentile
    running = "update workflow_executions set status = 'running', finished_at = null where id = $1"
    await floor.operator.execute(running, uuid.UUID(ran[1][3]))
    stable, canary = await floor.operator.fetch("select * from engine_report($1, '-infinity', 'infinity')", engine.id)
    await transaction.rollback()
    assert (stable["runs"], stable["succeeded"], stable["running"], stable["charged_tokens"]) == (4, 3, 1, 10)
    for figure, of in (("tokens", 1), ("micros", 10), ("ms", 1000)):
        assert [row[f"p{part}_{figure}"] for row in (stable, canary) for part in (50, 95)] == [
            2 * of, 3 * of, 4 * of, 8 * of,
        ]  # fmt: skip
    assert (await get(http, admin, path, until="2020-01-01"))["data"] == []
