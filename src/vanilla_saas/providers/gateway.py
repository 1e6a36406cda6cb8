"""The OpenAI surface, `/v1`: a plain ASGI endpoint, because a framework's request handling would cost more than the
two database calls. Errors have OpenAI's shape, so that its SDKs raise the classes their users expect.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import structlog
from starlette.types import Message, Receive, Scope, Send

from vanilla_saas import metrics
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.providers import engine_chat
from vanilla_saas.providers.adapters import UpstreamError
from vanilla_saas.providers.engine_chat import AnswerChanged, EngineFailed, EngineRun, Engines, Words
from vanilla_saas.providers.estimate import InvalidRequest, Operation
from vanilla_saas.providers.metering import Call, MeteredCalls, Settlement

log = structlog.get_logger()
JSON = b"application/json"
MAX_IDEMPOTENCY_KEY_BYTES = 255
BODY_SECONDS = 60.0
"""How long the body of a request may take to arrive."""
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": still running\n\n"
"""What a stream of an engine says until its run ends."""
OPERATIONS: dict[str, Operation] = {"/v1/chat/completions": "chat", "/v1/embeddings": "embeddings"}
_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class Gateway:
    """`POST /v1/chat/completions` and `/v1/embeddings`, `GET /v1/models` and `/v1/models/{id}` of one process."""

    def __init__(self, calls: MeteredCalls, max_body_bytes: int, engines: Engines):
        self._calls = calls
        self._max_body_bytes = max_body_bytes
        self._engines = engines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request_id = scope.get("state", {}).get("request_id")
        try:
            token = _bearer(headers)
            path, method = scope["path"], scope["method"]
            if path in OPERATIONS and method == "POST":
                await self._call(OPERATIONS[path], token, headers, scope, receive, send)
            elif path.startswith("/v1/models") and method == "GET":
                await self._models(token, path.removeprefix("/v1/models").removeprefix("/"), send)
            else:
                hint = ", ".join(("GET /v1/models", *(f"POST {known}" for known in OPERATIONS)))
                raise VanillaError("not_found", f"There is no {method} {path}.", hint=hint)
        except InvalidRequest as error:
            await _respond(send, error.status, error.body())
        except UpstreamError as error:
            await _respond(send, error.client_status, error.client_body(), _retry_after(error.retry_after))
        except EngineFailed as error:
            await _respond(send, error.status, _error_body(error), _started_headers(error.detail))
        except VanillaError as error:
            if scope["path"] in OPERATIONS:
                metrics.CALLS_REFUSED.labels(error.name).inc()
            limits = _retry_after(error.detail.get("retry_after_s")) + _refused_rate(error.detail)
            await _respond(send, error.status, _error_body(error), limits + _started_headers(error.detail))
        except Exception as error:
            failure = _failure(request_id, error)
            await _respond(send, failure.status, _error_body(failure))

    async def _call(
        self,
        operation: Operation,
        token: str,
        headers: Mapping[bytes, bytes],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        # before a place is taken: whoever sends slowly, with or without a key, must not keep others out
        body = _parse(await _read_body(headers, receive, self._max_body_bytes))
        payer = headers.get(b"x-vanilla-user", b"").decode("latin-1") or body.get("user")
        if operation == "chat" and str(body.get("model")).startswith(engine_chat.PREFIX):
            await self._engine(token, body, headers, payer, scope, receive, send)
            return
        request_id = scope.get("state", {}).get("request_id")
        self._calls.enter()
        try:
            call = await self._calls.admit(
                token,
                body,
                operation=operation,
                payer=payer or None,
                idempotency_key=_idempotency_key(headers),
                request_id=request_id,
            )
            if call.body.get("stream") is True:
                end = await self._stream(call, request_id, receive, send)
            else:
                answer, settled = await self._calls.complete(call)
        finally:
            self._calls.leave()
        # the call is over: a client that does not read its end keeps no place
        if call.body.get("stream") is True:
            await send({"type": "http.response.body", "body": end})
        else:
            await _respond(send, 200, answer, _call_headers(call) + _settled_headers(settled))

    async def _stream(self, call: Call, request_id: str | None, receive: Receive, send: Send) -> bytes:
        """Sends all but the end, which is returned."""
        gone = asyncio.Event()
        watcher = asyncio.create_task(_watch(receive, gone))
        started = False

        async def start() -> None:
            nonlocal started
            started = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers + _call_headers(call)})

        async def write(chunk: bytes) -> None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

        try:
            streamed = await self._calls.stream(call, start, write, gone)
        except Exception as error:
            if not started:
                raise
            return b"data: " + _error_body(_failure(request_id, error)) + b"\n\n"
        finally:
            watcher.cancel()
        if gone.is_set():
            return b""
        if streamed.failure is not None:
            return b"data: " + streamed.failure.client_body() + b"\n\n"
        return streamed.last

    async def _engine(
        self,
        token: str,
        body: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        payer: str | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Takes no place among the calls: those of the run's steps do, and they would wait for each other."""
        engine_chat.refuse_options(body, payer)
        gone = asyncio.Event()
        words = Words() if body.get("stream") is True else None
        with self._engines.place():
            run = await self._engines.start(
                token,
                body["model"].removeprefix(engine_chat.PREFIX) or None,
                body,
                idempotency_key=_idempotency_key(headers),
                request_id=scope.get("state", {}).get("request_id"),
                client_ip=scope["client"][0] if scope.get("client") else "",
                words=words,
            )
            watcher = asyncio.create_task(_watch(receive, gone))
            try:
                if words is not None:
                    last = await self._stream_engine(run, body, words, scope, gone, send)
                else:
                    end = await self._engines.end(run, gone)
            finally:
                watcher.cancel()
                self._engines.leave(run)
        if words is not None:
            await send({"type": "http.response.body", "body": last})
        elif end is not None:
            charged = (b"x-vanilla-charged-tokens", str(end.charged_tokens).encode())
            await _respond(send, 200, engine_chat.completion(run, end), [*_run_headers(run), charged])

    async def _stream_engine(
        self, run: EngineRun, body: Mapping[str, Any], words: Words, scope: Scope, gone: asyncio.Event, send: Send
    ) -> bytes:
        """Passes its last words on as they come, or says that it goes on, until it has ended; the rest is returned."""
        begun = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": begun + _run_headers(run)})
        said = engine_chat.first_chunk(run)
        waiting = asyncio.create_task(self._engines.end(run, gone))
        waiting.add_done_callback(lambda _: words.news.set())
        try:
            while not waiting.done():
                words.news.clear()  # before sending: what comes meanwhile is news
                if said:
                    await send({"type": "http.response.body", "body": said, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await words.news.wait()
                if words.changed:
                    raise AnswerChanged(run)
                said = b"" if words.news.is_set() else KEEP_ALIVE
                if text := words.take():
                    said = engine_chat.words_chunk(run, text)
            end = waiting.result()
            return b"" if end is None else said + b"".join(engine_chat.last_chunks(run, end, body, words))
        except (VanillaError, EngineFailed) as error:
            return b"data: " + _error_body(error) + b"\n\n"
        except Exception as error:
            return b"data: " + _error_body(_failure(scope.get("state", {}).get("request_id"), error)) + b"\n\n"
        finally:
            waiting.cancel()

    async def _models(self, token: str, name: str, send: Send) -> None:
        models = await self._calls.models(token)
        engines, nothing_else = await self._engines.models(token)
        rows = [
            {"object": "model", **{key: m[key] for key in ("id", "created", "owned_by", "kind")}}
            for m in models
            if m["ready"] and not nothing_else
        ] + engines
        if not name:
            await _respond(send, 200, orjson.dumps({"object": "list", "data": rows}))
            return
        found = next((row for row in rows if row["id"] == name), None)
        if found is None:
            raise VanillaError("model_not_found", f"the model {name} does not exist", {"model": name})
        await _respond(send, 200, orjson.dumps(found))


def _bearer(headers: Mapping[bytes, bytes]) -> str:
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise VanillaError("authentication_failed", "No API key was sent.", hint="Send Authorization: Bearer <key>.")
    return token.strip()


def _idempotency_key(headers: Mapping[bytes, bytes]) -> str | None:
    key = headers.get(b"idempotency-key", b"")
    if len(key) > MAX_IDEMPOTENCY_KEY_BYTES:
        raise InvalidRequest(
            "invalid_request", f"Idempotency-Key has at most {MAX_IDEMPOTENCY_KEY_BYTES} bytes.", "Idempotency-Key"
        )
    return key.decode("latin-1") or None


async def _read_body(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    """The request's body; refuses a slow one, and one above `most` bytes before it is read or as soon as it is seen."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _receive_body(headers, receive, most)
    except TimeoutError:
        raise InvalidRequest("invalid_request", f"The body did not arrive within {BODY_SECONDS:.0f} s.") from None


async def _receive_body(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    declared = headers.get(b"content-length", b"0")
    parts, size = [], int(declared) if declared.isdigit() else 0
    if size > most:
        raise VanillaError("body_too_large", f"The body has {size} bytes; the most is {most}.", {"limit": most})
    size = 0
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise VanillaError("invalid_request", "The client left before its request was whole.")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise VanillaError("body_too_large", f"The body is above {most} bytes.", {"limit": most})
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("invalid_json", f"The body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("invalid_json", "The body must be a JSON object.")
    return body


async def _watch(receive: Receive, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _failure(request_id: str | None, error: Exception) -> VanillaError:
    log.error("gateway_failed", request_id=request_id, exc_info=error)
    return VanillaError("internal_error", f"Something failed on our side; request {request_id}.")


def _error_body(error: VanillaError | EngineFailed) -> bytes:
    message = error.message[:1].upper() + error.message[1:]
    if not message.endswith("."):
        message += "."
    if error.hint:
        message += " " + error.hint
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    fields = {"message": message, "type": kind, "param": error.detail.get("param"), "code": error.name}
    return orjson.dumps({"error": fields | {k: v for k, v in error.detail.items() if k not in fields}})


def _retry_after(seconds: float | None) -> list[tuple[bytes, bytes]]:
    return [] if seconds is None else [(b"retry-after", str(max(1, round(seconds))).encode())]


def _started_headers(detail: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """What was started already: SDKs that try again by themselves would start it again."""
    return [(b"x-should-retry", b"false")] if "execution_id" in detail else []


def _run_headers(run: EngineRun) -> list[tuple[bytes, bytes]]:
    return [(b"x-vanilla-execution", str(run.execution_id).encode())]


def _call_headers(call: Call) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-vanilla-execution", str(call.execution_id).encode()),
        (b"x-vanilla-reserved-tokens", str(call.reserved_tokens).encode()),
        *_rate_headers(call.rate),
    ]


def _rate_headers(rates: Sequence[Mapping[str, Any]]) -> list[tuple[bytes, bytes]]:
    """RateLimit and RateLimit-Policy as draft-ietf-httpapi-ratelimit-headers writes them; none without a rate."""
    policies = ", ".join(f'"{rate["name"]}";q={rate["limit"]};w={rate["window_s"]}' for rate in rates)
    left = ", ".join(f'"{rate["name"]}";r={rate["remaining"]};t={rate["reset_s"]}' for rate in rates)
    return [(b"ratelimit-policy", policies.encode()), (b"ratelimit", left.encode())] if policies else []


def _refused_rate(detail: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    if "window_s" not in detail:
        return []
    left = max(detail["limit"] - detail["used"], 0)
    name, reset = detail["restriction"], detail["retry_after_s"]
    return _rate_headers(
        [{"name": name, "limit": detail["limit"], "remaining": left, "reset_s": reset, "window_s": detail["window_s"]}]
    )


def _settled_headers(settled: Settlement) -> list[tuple[bytes, bytes]]:
    if settled.charged_tokens is None:
        return []
    return [
        (b"x-vanilla-charged-tokens", str(settled.charged_tokens).encode()),
        (b"x-vanilla-available-tokens", str(settled.available_tokens).encode()),
    ]


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    base = [(b"content-type", JSON), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": base + (headers or [])})
    await send({"type": "http.response.body", "body": body})
