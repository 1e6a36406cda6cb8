"""`client.engines`: lists, runs, waits, and says with a code what went wrong."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.conftest import serve, settings_for
from tests.engines.shop import Shop, plain
from tests.engines.test_engines import offered
from vanilla_saas import client as clients
from vanilla_saas.app import create_app
from vanilla_saas.client import ApiError, Client, WorkflowFailed


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


async def test_a_run_that_fails_has_its_code_and_one_that_lasts_is_asked_for_again(
    address: str, floor: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, user = await floor.deploy(plain("1 / (input.n - input.n)")), await floor.person()
    waits = await floor.deploy({"nodes": [{"id": "s", "kind": "signal", "signal": "go"}], "connections": []})
    monkeypatch.setattr(clients, "LOOK_S", 0.05)
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
