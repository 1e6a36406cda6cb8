"""The `sandbox` provider: a deterministic model server that speaks OpenAI's HTTP and SSE.

It is part of the product: a fresh install answers without any key, tests and benchmarks use it as their
upstream, and a request can script how it answers or fails (docs/sandbox.md).
Alone: `python -m vanilla_saas.providers.sandbox --port 8900`.
"""

import argparse
import asyncio
import hashlib
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import orjson
import uvicorn
from uvicorn.config import Config

from vanilla_saas import event_loop
from vanilla_saas.providers.sandbox_rules import (
    MODELS,
    Reply,
    SandboxError,
    Script,
    ToolCall,
    compose,
    embed,
    pieces,
    prompt_tokens,
    script_of,
    usage_of,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CREATED = 1_700_000_000
"""A constant, so that the same request has the same answer to the byte."""
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_CHOICES = 16
_JSON = (b"content-type", b"application/json")
_SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_DONE = b"data: [DONE]\n\n"


class Counters:
    """What the sandbox has been asked since it started or was reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total = self.chat = self.streams = self.embeddings = self.models = self.errors = 0
        self.aborted = 0
        """Calls whose client left before the answer ended."""
        self.chunks_sent = 0
        """Content chunks of the last stream, of one token each; also when it was aborted."""
        self.last: dict[str, Any] | None = None
        """The last chat or embeddings body without its texts."""

    def saw(self, body: dict[str, Any]) -> None:
        self.last = {key: value for key, value in body.items() if key not in ("messages", "input")}
        self.last["messages"] = len(body.get("messages") or [])

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "last_max_tokens": self._last_limit()}

    def _last_limit(self) -> int | None:
        last = self.last or {}
        limit = last.get("max_completion_tokens")
        return limit if limit is not None else last.get("max_tokens")


class Sandbox:
    """The ASGI application."""

    def __init__(self) -> None:
        self.counters = Counters()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.counters.total += 1
        try:
            await self._route(scope, receive, send)
        except SandboxError as error:
            self.counters.errors += 1
            await _answer(send, error.status, error.body())

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (scope["method"], scope["path"])
        if route == ("POST", "/v1/chat/completions"):
            await self._chat(scope, receive, send)
        elif route == ("POST", "/v1/embeddings"):
            await self._embeddings(scope, receive, send)
        elif route == ("GET", "/v1/models"):
            self.counters.models += 1
            data = [{"id": m, "object": "model", "created": CREATED, "owned_by": "sandbox"} for m in MODELS]
            await _answer(send, 200, orjson.dumps({"object": "list", "data": data}))
        elif route == ("GET", "/sandbox/requests"):
            self.counters.total -= 1
            await _answer(send, 200, orjson.dumps(self.counters.as_dict()))
        elif route == ("DELETE", "/sandbox/requests"):
            self.counters.reset()
            await _answer(send, 200, b"{}")
        else:
            raise SandboxError(404, f"The sandbox has no {route[0]} {route[1]}.", code="not_found")

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.counters.chat += 1
        raw, body, script = await self._asked(scope, receive)
        try:
            call = _Call(body, script, raw, self.counters)
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            # most fields are read as they come: a schema or an option of another shape ends here
            raise SandboxError(400, "A field of the request has a shape that it cannot have.") from error
        # a client that leaves is only seen by receiving: one waiting task a call
        gone = asyncio.ensure_future(receive())
        try:
            if await self._ends_early(script, gone, send):
                return
            if call.streams:
                self.counters.streams += 1
                await call.stream(send, gone)
            else:
                await call.complete(send)
        finally:
            gone.cancel()

    async def _embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.counters.embeddings += 1
        _, body, script = await self._asked(scope, receive)
        _known_model(body)
        try:
            answer = embed(body)
        except (TypeError, AttributeError) as error:
            raise SandboxError(400, "input has a shape that it cannot have.", param="input") from error
        if script.usage == "missing":
            del answer["usage"]
        elif script.usage is not None:
            answer["usage"] = script.usage
        gone = asyncio.ensure_future(receive())
        try:
            if not await self._ends_early(script, gone, send):
                await _answer_whole(send, script, answer)
        finally:
            gone.cancel()

    async def _asked(self, scope: Scope, receive: Receive) -> tuple[bytes, dict[str, Any], Script]:
        """The body, raw and parsed, and what it or its header scripts."""
        raw = await _read(receive)
        body = _parsed(raw)
        self.counters.saw(body)
        header = next((value for name, value in scope["headers"] if name == b"x-sandbox-script"), None)
        return raw, body, script_of(header, body)

    async def _ends_early(self, script: Script, gone: asyncio.Future[Any], send: Send) -> bool:
        """Waits the scripted time; True when the client has left by then, or the script's error was the answer."""
        if script.latency_ms and await _left_within(gone, script.latency_ms):
            self.counters.aborted += 1
            return True
        if script.status is not None:
            self.counters.errors += 1
            await _refuse(send, script)
            return True
        return False


class _Call:
    """One chat completion."""

    def __init__(self, body: dict[str, Any], script: Script, raw: bytes, counters: Counters) -> None:
        _known_model(body)
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            raise SandboxError(400, "messages must be a list with at least one message.", param="messages")
        self.choices = 1 if body.get("n") is None else body["n"]
        if type(self.choices) is not int or not 1 <= self.choices <= MAX_CHOICES:
            raise SandboxError(400, f"n must lie in 1..{MAX_CHOICES}.", param="n")
        self.script = script
        self.counters = counters
        self.streams = body.get("stream") is True
        self.reply: Reply = compose(body, script)
        self.model: str = body["model"]
        self.id = "chatcmpl-" + hashlib.blake2b(raw, digest_size=12).hexdigest()
        options = body.get("stream_options")
        self.reports_usage = isinstance(options, dict) and options.get("include_usage") is True
        self.usage: dict[str, Any] | None
        if script.usage == "missing":
            self.usage = None
        else:
            counted = usage_of(prompt_tokens(body), self.reply.completion_tokens * self.choices)
            self.usage = script.usage if isinstance(script.usage, dict) else counted

    async def complete(self, send: Send) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": self.reply.text, "refusal": None}
        if self.reply.tool_calls:
            message["content"] = None
            message["tool_calls"] = [_call_object(call) for call in self.reply.tool_calls]
        choices = [
            {"index": i, "message": message, "logprobs": None, "finish_reason": self.reply.finish_reason}
            for i in range(self.choices)
        ]
        answer: dict[str, Any] = {"id": self.id, "object": "chat.completion", "created": CREATED}
        answer |= {"model": self.model, "choices": choices}
        if self.usage is not None:
            answer["usage"] = self.usage
        await _answer_whole(send, self.script, answer)

    async def stream(self, send: Send, gone: asyncio.Future[Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
        self.counters.chunks_sent = 0
        for index in range(self.choices):
            await send(_chunk(self._event(index, {"role": "assistant", "content": ""})))
            for delta, is_content in self._deltas():
                if is_content and not await self._may_send_content(send, gone):
                    return
                await send(_chunk(self._event(index, delta)))
                self.counters.chunks_sent += is_content
            await send(_chunk(self._event(index, {}, self.reply.finish_reason)))
        if self.script.error_after_chunks is not None:
            return
        if self.reports_usage and self.usage is not None:
            await send(_chunk(_event(self._head(), choices=[], usage=self.usage)))
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})

    async def _may_send_content(self, send: Send, gone: asyncio.Future[Any]) -> bool:
        """Wait the scripted time; False when the stream ends here, by script or because the client left."""
        sent = self.counters.chunks_sent
        if self.script.error_after_chunks is not None and sent >= self.script.error_after_chunks:
            return False
        if self.script.malformed and sent == 1:
            await send(_chunk(b'data: {"id":"chatcmpl-broken","choices":[{\n\n'))
        wait = self.script.chunk_latency_ms
        if gone.done() or (wait and await _left_within(gone, wait)):
            self.counters.aborted += 1
            return False
        return True

    def _deltas(self) -> list[tuple[dict[str, Any], bool]]:
        """Deltas of one choice, each with whether it carries one token of content."""
        if not self.reply.tool_calls:
            return [({"content": piece}, True) for piece in pieces(self.reply.text)]
        deltas: list[tuple[dict[str, Any], bool]] = []
        for number, call in enumerate(self.reply.tool_calls):
            opening = {"index": number, **_call_object(ToolCall(call.id, call.name, ""))}
            deltas.append(({"tool_calls": [opening]}, False))
            deltas += [
                ({"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, True)
                for piece in pieces(call.arguments)
            ]
        return deltas

    def _event(self, index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if self.reports_usage:
            return _event(self._head(), choices=[choice], usage=None)
        return _event(self._head(), choices=[choice])

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": self.model,
        }


def _event(head: dict[str, Any], **rest: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps({**head, **rest})


def _chunk(event: bytes) -> MutableMapping[str, Any]:
    return {"type": "http.response.body", "body": event, "more_body": True}


def _call_object(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _known_model(body: dict[str, Any]) -> None:
    if body.get("model") not in MODELS:
        raise SandboxError(
            404,
            f"The sandbox has no model {body.get('model')!r}; it has {', '.join(MODELS)}.",
            code="model_not_found",
            param="model",
        )


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise SandboxError(400, "The body is not JSON.") from error
    if not isinstance(body, dict):
        raise SandboxError(400, "The body is not a JSON object.")
    return body


async def _left_within(gone: asyncio.Future[Any], milliseconds: int) -> bool:
    """Wait; True as soon as the client has left."""
    done, _ = await asyncio.wait((gone,), timeout=milliseconds / 1000)
    return bool(done)


async def _read(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise SandboxError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
    return body


async def _answer(send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def _answer_whole(send: Send, script: Script, answer: dict[str, Any]) -> None:
    if script.error_after_chunks is not None:
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON]})
        await send({"type": "http.response.body", "body": b'{"id":', "more_body": True})
        return  # the response is left unfinished: the server cuts the connection
    encoded = orjson.dumps(answer)
    await _answer(send, 200, encoded[: len(encoded) // 2] if script.malformed else encoded)


async def _refuse(send: Send, script: Script) -> None:
    status = script.status or 500
    error = SandboxError(status, script.reply or f"The script asked for status {status}.", code="scripted")
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if script.retry_after is not None:
        headers = ((b"retry-after", str(script.retry_after).encode()),)
    await _answer(send, status, b"{not json" if script.malformed else error.body(), headers)


_SILENT = logging.Logger("sandbox.silent", logging.CRITICAL + 1)


def _quiet_protocol() -> Any:
    """uvicorn's HTTP protocol, httptools when it is installed, that logs nothing.

    uvicorn's loggers are global: lowering their level here would also silence the server of the product
    in the same process. A scripted cut would otherwise log an error for each.
    """
    base: Any
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as base
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as base

    class QuietProtocol(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.logger = _SILENT
            self.access_log = False

    return QuietProtocol


class _QuietServer(uvicorn.Server):
    def _log_started_message(self, listeners: Any) -> None:
        """The owner announces the address."""


class SandboxServer:
    """Serves a sandbox on loopback inside the running loop: `async with SandboxServer() as sandbox`."""

    def __init__(self, port: int = 0) -> None:
        self.app = Sandbox()
        self._port = port
        self._socket: socket.socket | None = None
        self._server: _QuietServer | None = None
        self._ticks: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        if self._socket is None:
            raise RuntimeError("the sandbox is not running")
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The base address of the OpenAI surface."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def counters(self) -> Counters:
        return self.app.counters

    async def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port), backlog=2048)
        listener.setblocking(False)
        self._socket = listener
        config = Config(
            self.app,
            http=_quiet_protocol(),
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            log_level=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
        )
        config.load()
        server = _QuietServer(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        self._server = server
        # not serve(): that would take over the signal handlers of the process
        self._ticks = asyncio.create_task(server.main_loop())

    async def stop(self) -> None:
        server, ticks = self._server, self._ticks
        if server is None or ticks is None or self._socket is None:
            return
        self._server = self._ticks = None
        ticks.cancel()
        for listener in server.servers:
            listener.close()
        # not shutdown(): that waits for clients, and a scripted answer may take minutes
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        running = list(server.server_state.tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(ticks, *running, return_exceptions=True)
        for listener in server.servers:
            await listener.wait_closed()
        self._socket.close()
        self._socket = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def _serve(port: int) -> None:
    async with SandboxServer(port) as sandbox:
        print(f"sandbox model server on {sandbox.url}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the deterministic sandbox model provider.")
    parser.add_argument("--port", type=int, default=8900)
    port = parser.parse_args().port
    with suppress(KeyboardInterrupt):
        event_loop.run(_serve(port))


if __name__ == "__main__":
    main()
