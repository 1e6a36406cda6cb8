"""`client.engines`: lists, runs, waits, and says with a code what went wrong."""

import asyncio
import inspect
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import serve, settings_for
from tests.engines.shop import Shop, plain
from tests.engines.test_engines import offered
from vanilla_saas import client_http
from vanilla_saas.app import create_app
from vanilla_saas.client import ApiError, Client, WorkflowFailed
from vanilla_saas.engines.routes import router as routes_of
from vanilla_saas.engines.run_routes import router as runs_of

ADMIN = ["read", "chat", "admin"]


@pytest.fixture(scope="module")
async def address(floor: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    home = tmp_path_factory.mktemp("home")
    async with serve(create_app(settings_for(floor.room.cluster, floor.room.name, home, run_worker=True))) as found:
        yield found


async def test_an_engine_is_listed_run_and_gives_its_output(address: str, floor: Shop) -> None:
    engine, user = await floor.deploy(plain("input.n * 2", output="steps.a.output")), await floor.person()
    async with Client(address, user.key) as client:
        [card] = [card for card in await client.engines.list() if card["slug"] == engine.slug]
        assert (card["access"], card["version"]) == ("execute", 1)
        assert await client.engines.run(engine.slug, {"n": 4}, idempotency_key="k") == 8
        again = await client.engines.start(engine.slug, {"n": 4}, idempotency_key="k")
        assert (again.replayed, again.source, again.engine_id) == (True, "reference", str(engine.id))
        assert await client.engines.result(again.execution_id) == 8
        with pytest.raises(ApiError) as refused:
            await client.engines.run("none")
        assert (refused.value.code, refused.value.status) == ("not_found", 404)
        with pytest.raises(ApiError):
            await client.engines.result(uuid.uuid4())


async def test_copies_move_offers_are_listed_and_versions_are_compared(address: str, floor: Shop) -> None:
    engine, user = (
        await floor.deploy(plain(input={"type": "object"}), p_parameters={"tone": {"type": "string"}}),
        await floor.person(),
    )
    await floor.ask(user, "fork_engine", engine.slug, "mine", {"tone": "kind"})
    await floor.ask(floor.admin, "deploy_engine", engine.slug, engine.flow)
    platforms = await offered(floor)
    admin = await floor.room.people.user("admin", scopes=["read", "admin"])
    async with Client(address, user.key) as client:
        [copy] = await client.engines.copies()
        with pytest.raises(ApiError) as refused:
            await client.engines.rebase(copy["id"], 2)
        assert refused.value.problem["problems"][0]["code"] == "parameter_undeclared"
        looked = await client.engines.rebase(copy["id"], 2, drop=True, dry_run=True)
        assert (looked["dropped"], looked["conflicts"]) == (["tone"], [])
        assert (await client.engines.rebase(copy["id"], 2, overlay={"tone": None}))["version"] == 2
        with pytest.raises(ApiError) as refused:
            await client.engines.rebase(copy["id"], "canary")
        assert refused.value.code == "not_found"
        await client.engines.run(engine.slug)
    async with Client(address, admin.key) as client:
        assert [one["version"] for one in await client.engines.rebase_all(engine.slug)] == [1]
        assert str(platforms.id) in [offer["engine_id"] for offer in await client.engines.offered()]
        assert [(row["version"], row["alias"]) for row in await client.engines.report(engine.slug)] == [(1, "stable")]


async def test_an_admin_deploys_promotes_permits_assigns_and_retires(address: str, floor: Shop) -> None:
    admin, user = await floor.room.people.user("admin", scopes=ADMIN), await floor.person()
    slug, level = f"e{uuid.uuid4().hex[:10]}", await floor.level("free")
    mine = {"user_id": user.identity.user_id}
    async with Client(address, admin.key) as client:
        engines = client.engines
        flows = [await floor.flow(plain(text, output="steps.a.output"), admin) for text in ("1", "2")]
        made = await engines.deploy(slug, flows[0], name="Adds", mode="sequential", output={"type": "integer"})
        assert (made["version"], made["unchanged"]) == (1, False)
        assert (await engines.deploy(slug, flows[1], workflow_version=1))["version"] == 2
        assert (await engines.change(slug, default_access="read", description="Of one."))["default_access"] == "read"
        [row] = [row for row in await engines.catalog() if row["slug"] == slug]
        assert (row["name"], row["description"], row["versions"]) == ("Adds", "Of one.", 2)
        assert (await engines.version(made["engine_id"], 1))["mode"] == "sequential"
        await engines.permit(slug, level, "execute")
        assert {one["level"]: one["access"] for one in (await engines.show(slug))["access"]}["free"] == "execute"
        assert (await engines.promote(slug, 2, "canary", weight=5))["weight"] == 5
        assert (await engines.rollback(slug, "canary"))["version"] is None
        assert (await engines.promote(slug, 2))["alias"] == "stable"
        assert (await engines.rollback(slug))["version"] == 1
        assert (await engines.resolve(slug, **mine))["version"] == 1
        told = await engines.preview(slug, {}, **mine)
        assert (told["version"], told["estimate"]["runs"], told["prices_changed"]) == (1, 0, False)
        until = datetime.now(UTC) + timedelta(days=1)
        chosen = await engines.assign(slug, "user", user.identity.user_id, pin=2, priority=3, valid_to=until)
        assert (chosen["pin"], chosen["priority"], datetime.fromisoformat(chosen["valid_to"])) == ("2", 3, until)
        assert [row["id"] for row in await engines.assignments(slug)] == [chosen["id"]]
        first, *_ = await engines.explain(**mine)
        assert (first["source"], first["chosen"], first["source_id"]) == ("user", True, chosen["id"])
        assert await engines.result((await engines.start(**mine)).execution_id) == 2
        assert slug in [card["slug"] for card in await engines.list(**mine)]
        assert [row["runs"] for row in await engines.report(slug, until=until)] == [1]
        assert await engines.report(slug, until=until - timedelta(days=2)) == []
        await engines.unassign(chosen["id"])
        assert await engines.assignments(slug) == []
        await engines.permit(slug, level, None)
        assert (await engines.resolve(slug, **mine))["denied_reason"] == "read_only"
        assert (await engines.retire(slug, 2))["version"] == 2
        assert (await engines.retire(slug))["version"] is None
        with pytest.raises(ApiError) as refused:
            await engines.promote(slug, 2)
        assert refused.value.code == "invalid_state"
    async with Client(address, user.key) as client:
        with pytest.raises(ApiError) as refused:
            await client.engines.catalog()
        assert refused.value.code == "forbidden"


async def test_a_copy_is_made_and_deleted_and_a_key_is_made_and_revoked(address: str, floor: Shop) -> None:
    shape = plain("input.tone", input={"type": "object"}, output="steps.a.output")
    engine = await floor.deploy(shape, p_parameters={"tone": {"type": "string"}})
    user = await floor.room.people.user("admin", scopes=ADMIN, balance=100_000)
    until = datetime.now(UTC) + timedelta(days=1)
    async with Client(address, user.key) as client:
        made = await client.engines.fork(engine.slug, "mine", {"tone": "kind"}, is_default=True)
        assert (made["ref"], made["is_default"]) == ("my/mine", True)
        assert (await client.engines.resolve())["source"] == "copy"
        key = await client.engines.create_key("my/mine", "site", budget_tokens=1000, expires_at=until)
        assert (key["budget_tokens"], datetime.fromisoformat(key["expires_at"])) == (1000, until)
        async with Client(address, key["key"]) as site:
            assert await site.engines.run() == "kind"
            await client.engines.revoke_key(key["id"], cancel_runs=False)
            with pytest.raises(ApiError) as refused:
                await site.engines.run()
        assert refused.value.status == 401
        await client.engines.delete_copy(made["id"])
        assert await client.engines.copies(user_id=user.identity.user_id) == []


async def test_every_route_of_engines_has_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[tuple[str, str]] = set()

    async def noted(_: Client, method: str, path: str, *arguments: Any, **named: Any) -> Any:
        called.add((method, path))
        raise ApiError(400, {})

    monkeypatch.setattr(Client, "call", noted)
    engines = Client("http://127.0.0.1:1", "").engines
    given = {"cases": [{}]}
    public = [one for one in inspect.getmembers(engines, inspect.iscoroutinefunction) if not one[0].startswith("_")]
    for _, method in public:
        needed = [one.name for one in inspect.signature(method).parameters.values() if one.default is one.empty]
        with suppress(ApiError):
            await method(*(given.get(one, 1) for one in needed))
    routes = [route for router in (routes_of, runs_of) for route in router.routes if "/events" not in route.path]
    assert [
        f"{method} {route.path}"
        for route in routes
        for method in route.methods
        if not any(method == verb and route.path_regex.fullmatch(f"/api/v1{path}") for verb, path in called)
    ] == []


async def test_a_run_that_fails_has_its_code_and_one_that_lasts_is_asked_for_again(
    address: str, floor: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, user = await floor.deploy(plain("1 / (input.n - input.n)")), await floor.person()
    waits = await floor.deploy({"nodes": [{"id": "s", "kind": "signal", "signal": "go"}], "connections": []})
    monkeypatch.setattr(client_http, "LOOK_S", 0.05)
    async with Client(address, user.key) as client:
        with pytest.raises(WorkflowFailed) as failed:
            await client.engines.run(broken.slug, {"n": 1})
        assert (failed.value.code, failed.value.node) == ("expression_failed", "a")
        begun = await client.engines.start(waits.slug)
        result = asyncio.create_task(client.engines.result(begun.execution_id))
        assert (await client.engines.get(begun.execution_id, wait_s=0.3))["status"] == "running"
        assert not result.done()
        await client.workflows.signal(begun.execution_id, "go")
        await result


async def test_workflows_run_engines(address: str, floor: Shop) -> None:
    shape = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    engine = await floor.deploy(plain("input.n * 2", input=shape, output="steps.a.output"))
    user = await floor.person()
    outer = {
        "name": "Outer",
        "nodes": [
            {"id": "one", "kind": "engine", "ref": f"{engine.slug}@stable", "input": "{'n': input.n}"},
            {
                "id": "each", "kind": "map", "over": "[1, 2, 3]",
                "item": {"kind": "engine", "ref": engine.slug, "input": "{'n': item}"},
            },
        ],
        "output": "[steps.one.output] + steps.each.output",
    }  # fmt: skip
    slug = f"outer-{uuid.uuid4().hex[:8]}"
    async with Client(address, user.key) as client:
        await client.workflows.publish(slug, outer)
        begun = await client.workflows.start(slug, {"n": 4})
        assert await client.workflows.result(begun.execution_id) == [8, 2, 4, 6]
        with pytest.raises(WorkflowFailed) as failed:
            await client.workflows.result((await client.workflows.start(slug, {"n": "x"})).execution_id)
        assert (failed.value.code, failed.value.node) == ("engine_failed", "one")
        assert failed.value.execution["error"]["details"]["error"]["code"] == "input_invalid"
        wrong = {"name": "Outer", "nodes": [{"id": "one", "kind": "engine", "ref": "a@b"}]}
        with pytest.raises(ApiError) as refused:
            await client.workflows.publish(slug, wrong)
    assert [(found["node"], found["field"], found["code"]) for found in refused.value.problem["problems"]] == [
        ("one", "ref", "wrong_form")
    ]


async def test_a_run_is_followed_with_a_key_of_the_engine(address: str, floor: Shop) -> None:
    waits = await floor.deploy({"nodes": [{"id": "s", "kind": "signal", "signal": "go"}], "connections": []})
    user = await floor.person()
    key, _ = await floor.key(user, waits.slug)
    async with Client(address, key) as site, Client(address, user.key) as person:
        begun = await site.engines.start()
        told: list[tuple[str, bool]] = []
        async for run in site.engines.follow(begun.execution_id):
            told.append((run["status"], run["output"] is None))
            assert (run["execution_id"], run["version"]) == (begun.execution_id, 1)
            if len(told) == 1:
                await person.workflows.signal(begun.execution_id, "go", 5)
        assert told == [("running", True), ("succeeded", False)]
        with pytest.raises(ApiError) as refused:
            await anext(site.workflows.follow(begun.execution_id))
        assert refused.value.code == "forbidden"


async def test_two_references_are_compared(address: str, floor: Shop) -> None:
    shape = plain("input.n * (input.tone == 'kind' ? 2 : 3)", output="steps.a.output")
    shape["input"] = {"type": "object", "properties": {"n": {"type": "integer"}, "tone": {"type": "string"}}}
    engine = await floor.deploy(shape, p_parameters={"tone": {"type": "string", "default": "kind"}})
    user = await floor.person()
    await floor.ask(user, "fork_engine", engine.slug, "mine", {"tone": "short"})
    cases = [{"n": 0}, {"n": 2}, {"n": "x"}]
    async with Client(address, user.key) as client:
        found = await client.engines.compare(engine.slug, "my/mine", cases)
        assert [(row["a"]["output"], row["b"]["output"], row["equal"]) for row in found["cases"]] == [
            (0, 0, True), (4, 6, False), (None, None, None),
        ]  # fmt: skip
        assert (found["a"]["runs"], found["b"]["runs"]) == (f"{engine.slug}@1", "my/mine")
        assert (found["b"]["failed"], found["cases"][2]["b"]["reason"]) == (1, "input_invalid")
        again = await client.engines.compare(engine.slug, "my/mine", cases)
        assert again == found
        # a copy that was changed is another one to run
        await floor.ask(user, "fork_engine", engine.slug, "mine", {"tone": "kind"})
        changed = await client.engines.compare(engine.slug, "my/mine", cases)
        assert (changed["equal"], changed["compared"]) == (2, 2)
        assert changed["cases"][0]["a"] == found["cases"][0]["a"]
        with pytest.raises(ValueError, match="both"):
            await client.engines.compare(engine.slug, f"{engine.slug}@1", cases)
        with pytest.raises(ApiError) as refused:
            await client.engines.compare(engine.slug, "none", cases)
        assert refused.value.code == "not_found"
