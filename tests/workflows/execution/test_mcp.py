"""Tools of MCP servers: the package's own server, as a process of the worker and over streamable HTTP."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.execution.mcp_support import (
    GOOD,
    Caller,
    calling,
    free_port,
    kill,
    left,
    listening,
    over_http,
    until,
)
from tests.workflows.execution.support import EXECUTION, TENANT, plan, step
from vanilla_saas.workflows.execution.attempt import Attempt
from vanilla_saas.workflows.execution.mcp.config import HttpServer, Server
from vanilla_saas.workflows.execution.mcp.servers import McpServers
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.tooling import Tooling


@pytest.fixture(scope="module", params=["stdio", "http", "json"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    if request.param == "stdio":
        yield GOOD
        return
    port = free_port()
    with over_http(request.param, port):
        found = await listening(port)
        yield found.model_copy(update={"headers": {"How": request.param}})


@pytest.fixture
async def call(tooling: Tooling, server: Server) -> AsyncIterator[Caller]:
    async with calling(tooling, server) as caller:
        yield caller


async def test_structured_content_is_the_output(call: Caller) -> None:
    outcome = await call("find", email="a@b.example")
    assert outcome.fields == {"output": {"email": "a@b.example", "orders": 3}}
    assert (await call("number")).fields == {"output": {"result": 1.5}}


async def test_else_text_is_and_else_the_content_as_a_list(call: Caller) -> None:
    assert (await call("say", text="hello", times=2)).fields == {"output": "hello\nhello"}
    assert (await call("picture")).fields == {"output": [{"type": "image", "data": "YWJj", "mimeType": "image/png"}]}


@pytest.mark.parametrize(
    ("arguments", "path"), [({}, ""), ({"email": 3}, "email"), ({"email": "a@b", "limit": "x"}, "limit"),
                            ({"email": "nobody"}, "email")],
)  # fmt: skip
async def test_arguments_that_do_not_fit_do_not_reach_the_server(
    call: Caller, arguments: dict[str, object], path: str
) -> None:
    outcome = await call("find", **arguments)
    assert outcome.code == "tool_arguments"
    assert [one["path"] for one in outcome.fields["error"]["details"]["mismatches"]] == [path]


async def test_an_error_of_the_tool_is_a_failure_with_its_words(call: Caller) -> None:
    outcome = await call("refuse", message="no such order " * 400)
    assert outcome.code == "tool_failed"
    assert not outcome.fields["error"]["retryable"]
    assert "no such order" in outcome.fields["error"]["message"]
    assert len(outcome.fields["error"]["message"]) <= 2000


async def test_a_failure_is_tried_again_when_the_node_says_so(call: Caller) -> None:
    node = {"tool": "mcp/s/refuse", "arguments": "{'message': 'busy'}", "retry": {"on": ["tool_failed"]}}
    assert (await call.step(node)).fields["error"]["retryable"]


async def test_a_server_cannot_ask_a_person(call: Caller) -> None:
    assert (await call("ask")).code == "tool_failed"
    outcome = await call("ask_later")
    assert outcome.code == "tool_failed"
    assert "asks a person" in outcome.fields["error"]["message"]


async def test_the_server_learns_for_whom_and_which_step_it_is(call: Caller) -> None:
    node = {"tool": "mcp/s/who"}
    first = (await call.step(node, lease=1, attempt=1)).fields["output"]["meta"]
    assert first == {
        "vanilla-saas/idempotency-key": f"{EXECUTION}:a", "vanilla-saas/tenant-id": TENANT,
        "vanilla-saas/user-id": step().user_id,
    }  # fmt: skip
    assert (await call.step(node, lease=2, attempt=2)).fields["output"]["meta"] == first, "every attempt says the same"
    sent_back = (await call.step(node, round=1)).fields["output"]["meta"]
    assert sent_back["vanilla-saas/idempotency-key"] == f"{EXECUTION}:a@1"


async def test_an_item_of_a_map_has_a_key_of_its_own(call: Caller) -> None:
    given = plan({"id": "a", "kind": "map", "over": "[]", "item": {"kind": "tool", "tool": "mcp/s/who"}})
    outcome = await execute(step(item=3, value=None, round=2), given, call.tooling)
    assert outcome.fields["output"]["meta"]["vanilla-saas/idempotency-key"] == f"{EXECUTION}:a:3@2"


async def test_what_is_not_there_is_named(call: Caller) -> None:
    for tool, named in (("mcp/s/nothing", "nothing"), ("mcp/else/find", "else"), ("mcp/s", "s")):
        outcome = await call.step({"tool": tool})
        assert outcome.code == "tool_unknown"
        assert named in outcome.fields["error"]["message"]


async def test_a_tool_that_the_operator_left_out_is_not_called(tooling: Tooling, server: Server) -> None:
    async with calling(tooling, server.model_copy(update={"tools": ["number"]})) as call:
        assert (await call("number")).kind == "succeeded"
        assert (await call("die")).code == "tool_unknown"


async def test_an_output_is_as_large_as_that_of_any_step(call: Caller) -> None:
    assert (await call("much", size=(1 << 20) - 100)).kind == "succeeded"
    assert (await call("much", size=1 << 20)).code == "output_too_large"
    assert (await call("much", size=5 << 20)).code == "output_too_large"
    assert (await call("number")).kind == "succeeded"


async def test_a_node_s_deadline_ends_a_call_and_the_server_is_told(
    call: Caller, server: Server, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    node = {"tool": "mcp/s/sleep", "arguments": f"{{'s': 60, 'told': '{told}'}}"}
    assert (await call("number")).kind == "succeeded"
    outcome = await call.step(node, 1.0)
    assert (outcome.code, outcome.fields["error"]["retryable"]) == ("timeout", True)
    await until(lambda: told.read_text() == _at_the_end(server))
    assert (await call("number")).kind == "succeeded"


async def test_a_cancelled_step_ends_at_once_and_the_server_is_told(
    call: Caller, server: Server, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    node = {"tool": "mcp/s/sleep", "arguments": f"{{'s': 60, 'told': '{told}'}}"}
    task = asyncio.create_task(call.step(node))
    await until(told.exists)
    task.cancel()
    async with asyncio.timeout(2):
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: told.read_text() == _at_the_end(server))


def _at_the_end(server: Server) -> str:
    """What a tool has written of a call that was given up: with one JSON answer, the package's server sees no end."""
    return "began" if isinstance(server, HttpServer) and server.headers.get("How") == "json" else "cancelled"


async def test_steps_share_a_session_side_by_side(call: Caller) -> None:
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*(call("say", text=str(n)) for n in range(50)))
    assert [outcome.fields["output"] for outcome in outcomes] == [str(n) for n in range(50)]
    pids = {(await call("who")).fields["output"]["pid"] for _ in range(3)}
    assert len(pids) == 1


async def test_a_tool_that_is_new_is_found(tooling: Tooling, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vanilla_saas.workflows.execution.mcp.session.AGAIN_S", 0.0)
    async with calling(tooling, server) as call:
        await call("grow")
        assert (await call("grown", text="yes")).fields["output"] == {"result": "yes"}


async def test_a_process_gets_no_variables_of_the_worker(tooling: Tooling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    async with calling(tooling, GOOD.model_copy(update={"env": {"MINE": "x"}})) as call:
        names = (await call("who")).fields["output"]["environment"]
    assert "MINE" in names
    assert "DATABASE_URL" not in names


async def test_a_process_that_dies_in_a_call_fails_it_and_is_started_again(tooling: Tooling, tmp_path: Path) -> None:
    async with calling(tooling, GOOD) as call:
        first = (await call("who")).fields["output"]["pid"]
        told = tmp_path / "told"
        other = asyncio.create_task(call("sleep", s=60, told=str(told)))
        await until(told.exists)
        outcome = await call("die")
        assert (outcome.code, outcome.fields["error"]["retryable"]) == ("provider_error", True)
        assert (await other).code == "provider_error"
        again = (await call("who")).fields["output"]["pid"]
        assert again != first
        kill(again)
        await until(lambda: not os.path.exists(f"/proc/{again}"))
        outcome = await call("who")
        if outcome.code == "provider_error":  # asked before it was seen that the process has gone: the next attempt
            outcome = await call("who")
        assert outcome.fields["output"]["pid"] not in (first, again)
    assert not left()


async def test_a_server_over_http_that_is_started_again_is_found_again(tooling: Tooling) -> None:
    port = free_port()
    async with calling(tooling, HttpServer(url=f"http://127.0.0.1:{port}/mcp")) as call:
        outcome = await call("number")
        assert (outcome.code, outcome.fields["error"]["retryable"]) == ("provider_error", True)
        assert str(port) not in outcome.fields["error"]["message"], "whose it is the tenant need not know"
        with over_http("http", port) as process:
            await listening(port)
            assert (await call("number")).kind == "succeeded"
            process.kill()
            process.wait()
            assert (await call("number")).code == "provider_error"
        with over_http("http", port):
            await listening(port)
            assert (await call("number")).kind == "succeeded"


async def test_a_session_taken_out_of_use_just_before_the_call_is_begun_again(
    tooling: Tooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(tooling, GOOD) as call:
        first = (await call("who")).fields["output"]["pid"]
        session = await call.tooling.mcp.session("s")
        fits = Attempt.mismatches

        async def retires(*given: Any) -> Any:
            session.retire()
            return await fits(*given)

        monkeypatch.setattr(Attempt, "mismatches", retires)
        assert (await call("who")).fields["output"]["pid"] != first


async def test_at_the_end_no_process_is_left(tooling: Tooling) -> None:
    async with McpServers({"s": GOOD, "t": GOOD}) as servers:
        caller = Caller(replace(tooling, mcp=servers))
        assert (await caller.step({"tool": "mcp/s/number"})).kind == "succeeded"
        assert (await caller.step({"tool": "mcp/t/number"})).kind == "succeeded"
        assert len(left()) == 2
    assert not left()
