"""MCP servers that lie, hang, die and flood: the step fails with its code, others go on, nothing is left."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.workflows.execution.conftest import Receiver
from tests.workflows.execution.mcp_support import Caller, bad, calling, left, until
from vanilla_saas.workflows.execution.mcp import session
from vanilla_saas.workflows.execution.mcp.config import HttpServer, StdioServer
from vanilla_saas.workflows.execution.tooling import Tooling

MUCH = 100 << 20


class Memory:
    """The most that this process has had since, in bytes."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._most()

    def more(self) -> int:
        return self._most() - self._before

    def _most(self) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.fixture
async def call(tooling: Tooling) -> AsyncIterator[Caller]:
    async with calling(tooling, bad()) as caller:
        yield caller
    assert not left()


@pytest.mark.parametrize(
    ("tool", "code", "retryable"),
    [
        ("garbled", "provider_error", True),
        ("half", "provider_error", True),
        ("input_no_schema", "schema_syntax", False),
        ("input_fetches", "schema_syntax", False),
        ("output_unlike", "schema_mismatch", False),
        ("output_lacks", "schema_mismatch", False),
        ("output_pattern", "schema_mismatch", False),
        ("not_a_number", "output_invalid", False),
        ("nul", "output_invalid", False),
    ],
)
async def test_what_is_no_right_answer_fails_the_step_and_no_other(
    call: Caller, tool: str, code: str, retryable: bool
) -> None:
    later = asyncio.create_task(call("later"))
    outcome = await call(tool)
    assert (outcome.code, outcome.fields["error"]["retryable"]) == (code, retryable)
    assert (await later).fields == {"output": "later"}


async def test_what_is_no_message_is_passed_by(call: Caller) -> None:
    assert (await call("noise")).fields == {"output": "heard"}


@pytest.mark.parametrize("tool", ["much", "much_id_last"])
async def test_a_hundred_megabytes_are_not_kept_and_others_go_on(call: Caller, tool: str) -> None:
    pid = (await call("pid")).fields
    memory = Memory()
    later = asyncio.create_task(call("later"))
    assert (await call(tool)).code == "output_too_large"
    assert memory.more() < MUCH // 4
    assert (await later).fields == {"output": "later"}
    assert (await call("pid")).fields == pid, "the session goes on"


async def test_when_nobody_can_tell_whom_it_answers_the_session_ends(call: Caller) -> None:
    memory = Memory()
    outcome = await call("much_id_lost")
    assert (outcome.code, outcome.fields["error"]["retryable"]) == ("provider_error", True)
    assert memory.more() < MUCH // 4
    assert (await call("fine")).fields == {"output": "fine"}


async def test_a_flood_of_what_nobody_asked_for_is_dropped(call: Caller) -> None:
    memory = Memory()
    assert (await call("flood")).fields == {"output": "flooded"}
    assert memory.more() < MUCH // 4


async def test_a_server_that_never_stops_is_replaced(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOOK_S", 1.0)
    first = (await call("pid")).fields
    memory = Memory()
    assert (await call("endless", seconds=1)).code == "timeout"
    async with asyncio.timeout(20):
        while (await call("pid", seconds=1)).fields.get("output") in (None, first["output"]):
            pass
    assert memory.more() < MUCH // 4


async def test_a_call_without_an_answer_ends_with_the_node_s_time_and_the_session_goes_on(call: Caller) -> None:
    pid = (await call("pid")).fields
    outcome = await call("silent", seconds=0.3)
    assert (outcome.code, outcome.fields["error"]["retryable"]) == ("timeout", True)
    assert (await call("pid")).fields == pid


async def test_after_so_many_of_them_it_does_not(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "GIVEN_UP", 3)
    pid = (await call("pid")).fields
    later = asyncio.create_task(call("later"))
    await asyncio.gather(*(call("silent", seconds=0.3) for _ in range(3)))
    assert (await call("pid")).fields != pid
    assert (await later).fields == {"output": "later"}, "what waits in the old session is answered there"
    await until(lambda: len(left()) == 1)


async def test_a_process_that_is_stuck_is_replaced(tooling: Tooling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOOK_S", 0.5)
    async with calling(tooling, bad("stuck")) as call:
        assert (await call("fine", seconds=0.5)).code == "timeout"
        (first,) = left()
        await until(lambda: first not in left())
        assert (await call("fine", seconds=0.5)).code == "timeout"
    assert not left()


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (bad("dies"), "gave no answer"),
        (StdioServer(command="/no/such/command"), "No such file"),
        (bad("pages"), "does not end"),
        (bad("tools"), "too long"),
    ],
    ids=["dies", "command", "pages", "tools"],
)
async def test_a_server_that_cannot_be_used_fails_the_step(tooling: Tooling, server: StdioServer, message: str) -> None:
    async with calling(tooling, server) as call:
        outcome = await call("fine")
    assert outcome.code == ("output_too_large" if message in ("too long", "does not end") else "provider_error")
    assert message in outcome.fields["error"]["message"]
    assert not left()


async def test_one_that_says_nothing_is_given_up(tooling: Tooling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CONNECT_S", 0.5)
    async with calling(tooling, bad("mute")) as call:
        outcome = await call("fine")
        assert (outcome.code, outcome.fields["error"]["retryable"]) == ("provider_error", True)
        assert (await call("fine", seconds=0.1)).code == "timeout"
    assert not left()


async def test_one_that_does_not_want_to_end_is_killed_with_its_children(tooling: Tooling) -> None:
    async with calling(tooling, bad("stays")) as call:
        assert (await call("fine")).kind == "succeeded"
        assert len(left()) == 2
    assert not left()


async def test_children_of_one_that_ends_by_itself_end_too(tooling: Tooling) -> None:
    async with calling(tooling, bad("child")) as call:
        assert (await call("dies")).code == "provider_error"
        await until(lambda: not left())


# what a server over http does, with a session as those of 2025 have


class Http:
    """`tools/call` is answered by `call`, the rest as it should be."""

    def __init__(self, receiver: Receiver) -> None:
        self.sessions = 0
        self.calls: list[dict[str, Any]] = []
        self.ended = asyncio.Event()
        self.receiver = receiver
        receiver.answer = self.answer

    async def call(self, request: web.Request, id: int) -> web.StreamResponse:
        return self.said(id, {"content": [{"type": "text", "text": f"in session {self.sessions}"}]})

    def said(self, id: int, result: object) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": id, "result": result})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        message = orjson.loads(self.receiver.requests[-1][3])
        match message["method"]:
            case "initialize":
                self.sessions += 1
                about = {"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                         "serverInfo": {"name": "b", "version": "1"}}  # fmt: skip
                answer = self.said(message["id"], about)
                answer.headers["Mcp-Session-Id"] = str(self.sessions)
                return answer
            case "tools/list":
                return self.said(message["id"], {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]})
            case "tools/call":
                self.calls.append(message)
                try:
                    return await self.call(request, message["id"])
                except asyncio.CancelledError:
                    self.ended.set()
                    raise
            case _ if "id" in message:
                error = {"code": -32601, "message": "Method not found"}
                return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error})
        return web.Response(status=202)


@pytest.fixture
def http(receiver: Receiver) -> Http:
    return Http(receiver)


@pytest.fixture
async def call_http(tooling: Tooling, http: Http) -> AsyncIterator[Caller]:
    url = f"{http.receiver.url}/mcp"
    async with calling(tooling, HttpServer(url=url, headers={"Authorization": "Bearer secret"})) as caller:
        yield caller


async def test_a_session_is_kept_and_headers_are_sent(call_http: Caller, http: Http) -> None:
    for _ in range(2):
        assert (await call_http("t")).fields == {"output": "in session 1"}
    assert {headers["Authorization"] for _, _, headers, _ in http.receiver.requests} == {"Bearer secret"}


async def test_proxies_of_the_environment_are_not_used(
    tooling: Tooling, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with calling(tooling, HttpServer(url=f"{http.receiver.url}/mcp")) as call:
        assert (await call("t")).kind == "succeeded"


async def test_a_session_that_the_server_has_forgotten_is_begun_again(call_http: Caller, http: Http) -> None:
    async def forgets(request: web.Request, id: int) -> web.StreamResponse:
        if request.headers["Mcp-Session-Id"] == "1":
            return web.json_response({"error": "who?"}, status=404)
        return await Http.call(http, request, id)

    http.call = forgets  # type: ignore[method-assign]
    assert (await call_http("t")).fields == {"output": "in session 2"}


async def test_one_that_forgets_every_session_fails(call_http: Caller, http: Http) -> None:
    async def forgets(request: web.Request, id: int) -> web.StreamResponse:
        return web.Response(status=404)

    http.call = forgets  # type: ignore[method-assign]
    assert (await call_http("t")).code == "provider_error"
    assert len(http.calls) == 2


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (401, "provider_not_ready", False),
        (403, "provider_not_ready", False),
        (418, "http_status", False),
        (429, "rate_limited", True),
        (500, "provider_error", True),
        (503, "provider_error", True),
    ],
)
async def test_a_status_says_what_class_a_failure_is_of(
    call_http: Caller, http: Http, status: int, code: str, retryable: bool
) -> None:
    async def refuses(request: web.Request, id: int) -> web.StreamResponse:
        return web.Response(status=status, headers={"Retry-After": "7"}, text="no")

    http.call = refuses  # type: ignore[method-assign]
    outcome = await call_http("t")
    assert (outcome.code, outcome.fields["error"]["retryable"]) == (code, retryable)
    assert outcome.fields["error"]["details"] == {"status": status}
    assert outcome.fields.get("retry_after_s") == (7 if status in (429, 503) else None)
    assert http.sessions == 1


async def test_what_the_server_itself_says_is_heard_whatever_the_status(call_http: Caller, http: Http) -> None:
    async def refuses(request: web.Request, id: int) -> web.StreamResponse:
        return web.json_response(
            {"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": "no such order"}}, status=400
        )

    http.call = refuses  # type: ignore[method-assign]
    outcome = await call_http("t")
    assert outcome.code == "tool_failed"
    assert "no such order" in outcome.fields["error"]["message"]
    assert outcome.fields["error"]["details"] == {"rpc_code": -32602}


async def _cut(request: web.Request, id: int) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "application/json"})
    answer.content_length = 100
    await answer.prepare(request)
    await answer.write(b'{"jsonrpc"')
    assert request.transport is not None
    request.transport.close()
    return answer


async def _cut_events(request: web.Request, id: int) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    await answer.write(b'event: message\ndata: {"jsonrpc"')
    assert request.transport is not None
    request.transport.close()
    return answer


async def _no_answer(request: web.Request, id: int) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def _no_json(request: web.Request, id: int) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="application/json")


async def _html(request: web.Request, id: int) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")


async def _compressed(request: web.Request, id: int) -> web.StreamResponse:
    packed = zlib.compressobj(wbits=31)
    body = b"".join(packed.compress(b" " * (1 << 20)) for _ in range(MUCH >> 20)) + packed.flush()
    return web.Response(body=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})


async def _much(request: web.Request, id: int) -> web.StreamResponse:
    return await _send(request, "application/json", b'{"jsonrpc": "2.0", "id": 1, "result": "')


async def _much_event(request: web.Request, id: int) -> web.StreamResponse:
    return await _send(request, "text/event-stream", b'event: message\r\ndata: {"result": "')


async def _send(request: web.Request, kind: str, first: bytes) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": kind})
    await answer.prepare(request)
    await answer.write(first)
    for _ in range(MUCH >> 16):
        await answer.write(b"x" * (1 << 16))
    return answer


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (_cut, "provider_error"),
        (_cut_events, "provider_error"),
        (_no_answer, "provider_error"),
        (_no_json, "provider_error"),
        (_html, "tool_failed"),
        (_compressed, "provider_error"),
        (_much, "output_too_large"),
        (_much_event, "output_too_large"),
    ],
)
async def test_what_goes_wrong_with_one_answer_ends_no_other(
    call_http: Caller, http: Http, answer: Any, code: str
) -> None:
    release = asyncio.Event()

    async def waits(request: web.Request, id: int) -> web.StreamResponse:
        await release.wait()
        return await Http.call(http, request, id)

    http.call = waits  # type: ignore[method-assign]
    other = asyncio.create_task(call_http("t"))
    await until(lambda: http.calls)
    http.call = answer  # type: ignore[method-assign]
    memory = Memory()
    assert (await call_http("t")).code == code
    assert memory.more() < MUCH // 2, "the server is in this process and has its own"
    release.set()
    assert (await other).fields == {"output": "in session 1"}


async def test_events_come_in_any_pieces(call_http: Caller, http: Http) -> None:
    async def piecemeal(request: web.Request, id: int) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        result = {"content": [{"type": "text", "text": "in pieces"}]}
        said = orjson.dumps({"jsonrpc": "2.0", "id": id, "result": result})
        note = b'{"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}'
        for end in (b"\n", b"\r\n"):
            for byte in b": ping" + end * 2 + b"event: message" + end + b"data: " + note + end * 2:
                await answer.write(bytes((byte,)))
        for byte in b"event: message\r\ndata: " + said + b"\r\n\r\n":
            await answer.write(bytes((byte,)))
        return answer

    http.call = piecemeal  # type: ignore[method-assign]
    assert (await call_http("t")).fields == {"output": "in pieces"}


async def test_a_redirect_to_elsewhere_is_not_followed(call_http: Caller, http: Http) -> None:
    async def elsewhere(request: web.Request, id: int) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "http://elsewhere.example/mcp"})

    http.call = elsewhere  # type: ignore[method-assign]
    assert (await call_http("t")).code == "tool_failed"
    assert len(http.calls) == 1


async def test_an_answer_that_does_not_come_is_given_up(call_http: Caller, http: Http) -> None:
    async def never(request: web.Request, id: int) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    http.call = never  # type: ignore[method-assign]
    assert (await call_http("t", seconds=0.3)).code == "timeout"

    def told() -> list[dict[str, Any]]:
        return [orjson.loads(body) for _, _, _, body in http.receiver.requests if b"cancelled" in body]

    await until(told)
    assert told()[0]["params"]["requestId"] == http.calls[0]["id"]
