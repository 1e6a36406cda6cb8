"""Engines and agents as MCP tools, called by the stock client over HTTP, of both kinds of protocol version."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import HEADER_MISMATCH, CallToolResult

from tests.conftest import Cluster, Person
from tests.engines.served import INPUT, WAITS, Served, served
from tests.engines.shop import Made, plain
from tests.orchestration.studio import agent, says
from vanilla_saas.engines.protocols import mcp_tools, surface

LEGACY, MODERN = "legacy", "auto"


@pytest.fixture(scope="module")
async def desk(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(cluster, tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
async def doubling(desk: Served) -> Made:
    return await desk.shop.deploy(plain("input.n * 2", input=INPUT, output="steps.a.output"))


@asynccontextmanager
async def connected(desk: Served, who: Person | str, mode: str = MODERN, **more: Any) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {who if isinstance(who, str) else who.key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http,
        Client(streamable_http_client(f"{desk.address}/mcp", http_client=http), mode=mode, **more) as client,  # type: ignore[arg-type]
    ):
        yield client


def code(result: CallToolResult) -> str:
    assert result.is_error
    assert result.content[0].text.startswith(f"{result.structured_content['code']}: ")
    return str(result.structured_content["code"])


@pytest.mark.parametrize("mode", [MODERN, LEGACY])
async def test_the_tools_are_what_the_caller_may_run_and_a_call_is_a_run(
    desk: Served, doubling: Made, mode: str
) -> None:
    user = await desk.shop.person()
    closed = await desk.shop.deploy(access="read")
    outside = await desk.shop.room.people.user("admin", tenant_id=await desk.shop.room.people.tenant())
    async with connected(desk, user, mode) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {doubling.slug, "run_result", "run_cancel"} <= set(listed)
        assert closed.slug not in listed
        tool = listed[doubling.slug]
        assert (tool.input_schema, tool.description) == (INPUT, tool.title)
        told = await client.call_tool(doubling.slug, {"n": 21})
    assert (told.is_error, told.structured_content, told.content[0].text) == (False, {"output": 42}, "42")
    run = told.meta["vanilla-saas/run"]
    row = await desk.shop.room.execution(uuid.UUID(run["execution_id"]))
    assert (run["engine"], run["version"], run["status"], run["replayed"]) == (doubling.slug, 1, "succeeded", False)
    assert (run["charged_tokens"], run["cost_micros"]) == (row["charged_tokens"], row["cost_micros"])
    # to the people of another tenant it is what does not exist, in the same words
    async with connected(desk, outside, mode) as client:
        assert (await client.list_tools()).tools == []
        words = []
        for name in (doubling.slug, "nothing"):
            with pytest.raises(MCPError) as refused:
                await client.call_tool(name, {"n": 1})
            words.append((refused.value.code, refused.value.message.replace(name, "x"), refused.value.data))
        missing, foreign = [
            await client.call_tool("run_result", {"execution_id": id_})
            for id_ in (str(uuid.uuid4()), run["execution_id"])
        ]
    assert words[0] == words[1]
    assert code(missing) == code(foreign) == "not_found"
    assert await desk.runs(outside) == 0


async def test_an_output_schema_is_listed_and_a_default_need_not_be_sent(desk: Served) -> None:
    shape = {"type": "object", "properties": {"tone": {"type": "string"}}, "required": ["tone"]}
    output = {"type": "object", "properties": {"said": {"type": "string"}}, "required": ["said"]}
    flow = plain("{'said': input.tone}", input=shape, output="steps.a.output")
    parameters = {"tone": {"type": "string", "default": "kind"}}
    engine = await desk.shop.deploy(flow, p_parameters=parameters, p_output=output)
    async with connected(desk, await desk.shop.person()) as client:
        tool = next(tool for tool in (await client.list_tools()).tools if tool.name == engine.slug)
        assert (tool.output_schema, tool.input_schema["required"]) == (output, [])
        assert tool.input_schema["properties"]["tone"]["default"] == "kind"
        assert (await client.call_tool(engine.slug, {})).structured_content == {"said": "kind"}


async def test_an_engine_of_a_name_that_is_ours_has_another(desk: Served) -> None:
    user, slug = await desk.shop.person(), f"agent_{uuid.uuid4().hex[:8]}"
    await desk.shop.deploy(plain("'engine'"), slug)
    await desk.save(agent(says("agent")), slug.removeprefix("agent_"))
    async with connected(desk, user) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {slug, f"engine_{slug}"} <= names
        assert (await client.call_tool(f"engine_{slug}", {})).meta["vanilla-saas/run"]["engine"] == slug
        told = await client.call_tool(slug, {"message": "Hello"})
    assert (told.content[0].text, told.meta["vanilla-saas/run"]["stop_reason"]) == ("agent", "done")


async def test_an_agent_that_is_anothers_is_not_there(desk: Served) -> None:
    user = await desk.shop.person()
    slug = await desk.save(agent(says("Hello")), p_shared=False)
    async with connected(desk, user) as client:
        assert f"agent_{slug}" not in {tool.name for tool in (await client.list_tools()).tools}
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool(f"agent_{slug}", {"message": "x"})
        shared = await desk.save(agent(says("Hello")))
        assert code(await client.call_tool(f"agent_{shared}", {"text": "x"})) == "invalid_input"


async def test_an_input_that_does_not_fit_is_refused_with_its_path_and_nothing_is_written(
    desk: Served, doubling: Made
) -> None:
    user = await desk.shop.person()
    async with connected(desk, user) as client:
        told = await client.call_tool(doubling.slug, {"n": "x"})
    assert code(told) == "invalid_input"
    assert [one["pointer"] for one in told.structured_content["problems"]] == ["/n"]
    assert "input.n: " in told.content[0].text
    assert await desk.runs(user) == 0


async def test_the_same_key_is_the_same_run_and_another_input_with_it_is_refused(desk: Served, doubling: Made) -> None:
    user, meta = await desk.shop.person(), {"vanilla-saas/idempotency-key": "one"}
    async with connected(desk, user) as client:
        first, again = [await client.call_tool(doubling.slug, {"n": 2}, meta=meta) for _ in range(2)]  # type: ignore[arg-type]
        other = await client.call_tool(doubling.slug, {"n": 3}, meta=meta)  # type: ignore[arg-type]
    runs = [one.meta["vanilla-saas/run"] for one in (first, again)]
    assert runs[0]["execution_id"] == runs[1]["execution_id"]
    assert [run["replayed"] for run in runs] == [False, True]
    assert code(other) == "idempotency_key_reused"
    assert await desk.runs(user) == 1


@pytest.mark.parametrize("mode", [MODERN, LEGACY])
async def test_a_long_run_tells_that_it_goes_on_and_is_followed_by_its_id(
    desk: Served, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(mcp_tools, "TICK_S", 0.05)
    user, engine, heard = await desk.shop.person(), await desk.shop.deploy(WAITS), []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async with connected(desk, user, mode) as client:
        told = await client.call_tool(engine.slug, {}, progress_callback=hear, meta={"vanilla-saas/wait-s": 0.4})  # type: ignore[arg-type]
        assert code(told) == "still_running"
        run = told.structured_content["execution_id"]
        assert len(heard) > 2
        assert heard == sorted(heard)
        assert {message for _, message in heard} == {f"run {run} goes on"}
        follow = {"execution_id": run}
        assert (await client.call_tool("run_result", follow)).structured_content["status"] == "running"
        await desk.shop.ask(user, "signal_execution", uuid.UUID(run), "go", 7)
        ended = await client.call_tool("run_result", follow | {"wait_s": 20})
    assert (ended.structured_content["status"], ended.structured_content["output"]) == ("succeeded", {"s": 7})


async def test_a_client_that_leaves_leaves_its_run_and_run_cancel_ends_it(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS)
    async with connected(desk, user) as client:
        call = asyncio.create_task(client.call_tool(engine.slug, {}))
        run = await desk.latest(user, "running")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await desk.nobody_waits()
    async with connected(desk, user) as client:
        follow = {"execution_id": str(run)}
        assert (await client.call_tool("run_result", follow)).structured_content["status"] == "running"
        assert (await client.call_tool("run_cancel", follow)).structured_content["status"] == "cancelled"
        assert (await client.call_tool("run_cancel", follow)).structured_content["status"] == "cancelled"


async def test_a_cancelled_request_of_a_session_cancels_its_run(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS)
    async with connected(desk, user, LEGACY) as client:
        call = asyncio.create_task(client.call_tool(engine.slug, {}))
        await desk.latest(user, "running")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await desk.latest(user, "cancelled")


async def test_a_key_of_an_engine_lists_and_runs_that_one(desk: Served, doubling: Made) -> None:
    user, other = await desk.shop.person(), await desk.shop.deploy()
    key, _ = await desk.shop.key(user, doubling.slug)
    twin, _ = await desk.shop.key(user, doubling.slug)
    async with connected(desk, key) as client:
        listed = [tool.name for tool in (await client.list_tools()).tools]
        assert listed == [doubling.slug, "run_result", "run_cancel"]
        told = await client.call_tool(doubling.slug, {"n": 4})
        assert told.structured_content == {"output": 8}
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool(other.slug, {})
        run = {"execution_id": told.meta["vanilla-saas/run"]["execution_id"]}
        assert (await client.call_tool("run_result", run)).structured_content["output"] == 8
    async with connected(desk, twin) as client:
        assert code(await client.call_tool("run_result", run)) == "not_found"


async def test_scopes_are_those_of_runs_over_http(desk: Served, doubling: Made) -> None:
    reader = await desk.shop.room.people.user(scopes=["read"])
    async with connected(desk, reader) as client:
        assert (await client.list_tools()).tools == []
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool(doubling.slug, {"n": 1})
    assert await desk.runs(reader) == 0


async def test_a_key_that_is_revoked_is_told_nothing_more_within_a_second(desk: Served) -> None:
    user, engine = await desk.shop.person(), await desk.shop.deploy(WAITS)
    async with connected(desk, user) as client:
        call = asyncio.create_task(client.call_tool(engine.slug, {}))
        run = await desk.latest(user, "running")
        await desk.shop.operator.execute("select revoke_api_key($1)", user.key_id)
        async with asyncio.timeout(1):
            assert code(await call) == "authentication_failed"
        assert (await desk.shop.room.execution(run))["status"] == "running"
    async with aiohttp.ClientSession() as http, http.post(f"{desk.address}/mcp", headers=user.headers) as answer:
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="vanilla-saas"')
        assert (await answer.json())["code"] == "authentication_failed"


async def test_a_session_is_of_the_key_that_opened_it(desk: Served) -> None:
    user, other = await desk.shop.person(), await desk.shop.person()
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }  # fmt: skip
    accept = {"accept": "application/json, text/event-stream"}
    async with aiohttp.ClientSession(desk.address) as http:
        async with http.post("/mcp", json=hello, headers=user.headers | accept) as answer:
            session = answer.headers["mcp-session-id"]
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}
        for who, status in ((other, 404), (user, 200)):
            headers = who.headers | accept | {"mcp-session-id": session}
            async with http.post("/mcp", json=listing, headers=headers) as answer:
                assert answer.status == status
        async with http.get("/mcp", headers=user.headers | accept) as answer:
            assert answer.status == 405
        async with http.get("/mcp") as answer:
            assert answer.status == 401


def listing(**more: Any) -> dict[str, Any]:
    """A request since protocol 2026-07-28, which says in each what a session would know."""
    meta = {
        f"io.modelcontextprotocol/{name}": value
        for name, value in {
            "protocolVersion": "2026-07-28", "clientCapabilities": {}, "clientInfo": {"name": "t", "version": "1"},
        }.items()
    }  # fmt: skip
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}} | more


def headers_of(who: Person, method: str = "tools/list", **more: str) -> dict[str, str]:
    accept = {"accept": "application/json, text/event-stream"}
    return who.headers | accept | {"mcp-protocol-version": "2026-07-28", "mcp-method": method} | more


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:6274", 200),
        ("http://127.0.0.1:1", 200),
        ("http://[::1]", 200),
        ("https://saas.example", 200),
        ("http://saas.example", 403),
        ("https://saas.example:8443", 403),
        ("http://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://[", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_a_page_of_another_address_may_not_ask(
    desk: Served, monkeypatch: pytest.MonkeyPatch, origin: str | None, status: int
) -> None:
    monkeypatch.setattr(desk.app.state.settings, "public_url", "https://saas.example/vanilla")
    user = await desk.shop.person()
    # a name of the page's own that came to mean this machine: DNS rebinding
    headers = headers_of(user, host="evil.example") | ({} if origin is None else {"origin": origin})
    async with aiohttp.ClientSession(desk.address) as http:
        async with http.post("/mcp", json=listing(), headers=headers) as answer:
            assert answer.status == status
            if status == 403:
                assert (await answer.json())["code"] == "forbidden"
        monkeypatch.setattr(desk.app.state.settings, "public_url", None)
        async with http.post("/mcp", json=listing(), headers=headers | {"origin": "http://evil.example"}) as answer:
            assert answer.status == 403


@pytest.mark.parametrize(
    ("header", "status"),
    [("eu", 200), (" eu ", 200), ("=?base64?ZXU=?=", 200), ("us", 400), (None, 400), ("=?base64?ZXU?=", 400)],
)
async def test_an_argument_that_is_a_header_too_says_the_same_in_both(
    desk: Served, header: str | None, status: int
) -> None:
    user = await desk.shop.person()
    fields = {"region": {"type": "string", "x-mcp-header": "Region"}}
    shape = {"type": "object", "properties": fields}
    engine = await desk.shop.deploy(plain("input.region", input=shape, output="steps.a.output"))
    called = listing(method="tools/call")
    called["params"] |= {"name": engine.slug, "arguments": {"region": "eu"}}
    headers = headers_of(user, "tools/call") | {"mcp-name": f" {engine.slug} "}
    headers |= {} if header is None else {"mcp-param-region": header}
    async with (
        aiohttp.ClientSession(desk.address) as http,
        http.post("/mcp", json=called, headers=headers) as answer,
    ):
        assert answer.status == status
        if status == 400:
            assert (await answer.json())["error"]["code"] == HEADER_MISMATCH
    assert await desk.runs(user) == (1 if status == 200 else 0)
    # sessions have no such headers
    if header is None:
        async with connected(desk, user, LEGACY) as client:
            assert (await client.call_tool(engine.slug, {"region": "eu"})).structured_content == {"output": "eu"}


async def test_without_the_extra_it_says_so(desk: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name="mcp")

    monkeypatch.setattr(surface, "import_module", missing)
    with pytest.raises(Exception, match="does not speak MCP") as refused:
        await surface.imported("mcp_server", "mcp")
    assert (refused.value.name, refused.value.detail) == ("not_found", {"extra": "mcp"})


def test_who_is_not_asked_for_it_imports_none_of_it() -> None:
    program = (
        "import json, sys, vanilla_saas.app, vanilla_saas.workflows.worker; "
        "print(json.dumps([m for m in ('mcp', 'mcp_types', 'a2a', 'google.protobuf') if m in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []
