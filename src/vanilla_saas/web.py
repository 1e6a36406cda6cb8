"""What HTTP has in common in every room: a request id, errors as problem+json (RFC 9457), a few parameters."""

import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated
from uuid import UUID, uuid4

import structlog
from fastapi import Depends, FastAPI, Header, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vanilla_saas import metrics, tracing
from vanilla_saas.database.errors import VanillaError

log = structlog.get_logger()
SlugOrId = Annotated[str, Path(max_length=63, description="slug or id")]
OfUser = Annotated[UUID | None, Query(description="another user of the tenant; admins only")]


def _money_key(idempotency_key: Annotated[str | None, Header(max_length=255)] = None) -> str:
    if not idempotency_key:
        raise VanillaError(
            "invalid_request",
            "This changes money and needs the header Idempotency-Key.",
            {"param": "Idempotency-Key"},
            "Send a fresh UUID with each new operation, and the same one when you repeat it.",
        )
    return idempotency_key


MoneyKey = Annotated[str, Depends(_money_key)]
"""The Idempotency-Key, without which nothing moves."""


def tell_replay(response: Response, replayed: bool) -> None:
    """Marks an answer that was given before."""
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"


def base_of(request: Request) -> str:
    """The address of this installation, as it is configured or as the request has it."""
    return str(request.app.state.settings.public_url or request.base_url).rstrip("/")


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events, which nothing on the way keeps or holds back."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def install_problems(app: FastAPI) -> None:
    """Answers refusals, malformed requests and failures of the framework's routes as problem+json."""
    app.add_exception_handler(VanillaError, _refusal)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(StarletteHTTPException, _plain)
    app.add_exception_handler(Exception, _failure)


class RequestIds:
    """Gives every request an id (the caller's, when it is plain) and answers with it in X-Request-Id."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        # a request is a task of its own: what is said in it, and in what it starts, has its ids
        structlog.contextvars.bind_contextvars(request_id=request_id)

        async def send_with_id(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]  # type: ignore[misc]
                _log_refusal(scope, request_id, message["status"])
            await send(message)

        await self.app(scope, receive, send_with_id)  # type: ignore[arg-type]


def _log_refusal(scope: Scope, request_id: str, status: object) -> None:
    """One line for every request that was not let in, whichever surface it came to; never what it showed to get in."""
    # a page answers with a redirect to the door; whoever refused the cookie says so
    if status in (401, 403) or scope["state"].get("refused"):
        client = scope.get("client")
        log.warning(
            "request_refused",
            status=status,
            method=scope["method"],
            path=scope["path"][:200],
            ip=client[0] if client else "",
            request_id=request_id,
        )


class Observed:
    """Counts, traces and, when told to, logs every request by the template of its route: never by its address."""

    def __init__(self, app: ASGIApp, log_requests: bool = False):
        self.app = app
        self.log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        method = scope["method"] if scope["method"] in _METHODS else "other"
        headers = {name: value.decode("latin-1") for name, value in _headers(scope) if name in _TRACE_HEADERS}

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with tracing.span(method, "server", {"http.request.method": method}, headers) as span:
            try:
                await self.app(scope, receive, watched)
            finally:
                route, seconds = route_template(scope), time.perf_counter() - began
                metrics.HTTP_REQUESTS.labels(method, route, str(status)).observe(seconds)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                if self.log_requests:
                    log.info("request", method=method, route=route, status=status, ms=round(seconds * 1000, 1))


_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}
_TRACE_HEADERS = {"traceparent", "tracestate"}
_GATEWAY = {"/v1/chat/completions", "/v1/embeddings", "/v1/models"}


def _headers(scope: Scope) -> Iterator[tuple[str, bytes]]:
    return ((name.decode("latin-1"), value) for name, value in scope["headers"])


def route_template(scope: Scope) -> str:
    """`/api/v1/keys/{key_id}`; `unknown` for an address that no route has, so that nobody makes series by asking."""
    if scope["path"].startswith("/v1/"):
        model = scope["path"].startswith("/v1/models/")
        return scope["path"] if scope["path"] in _GATEWAY else "/v1/models/{id}" if model else "unknown"
    return getattr(scope.get("route"), "path", None) or "unknown"


class BodyLimit:
    """Refuses a body above `most` bytes before it is read, or as soon as that is seen; the framework reads all."""

    def __init__(self, app: ASGIApp, most: int):
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            if declared.isdigit() and int(declared) > self.most:
                raise self._too_large()
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise self._too_large()
            return message

        await self.app(scope, limited, send)

    def _too_large(self) -> HTTPException:
        # of FastAPI's class: any other error while it reads a body becomes a plain 400
        return HTTPException(413, f"The body is above {self.most} bytes.")


def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, VanillaError)
    headers = {"retry-after": str(error.detail["retry_after_s"])} if error.detail.get("retry_after_s") else None
    return JSONResponse(
        error.problem(getattr(request.state, "request_id", None)),
        error.status,
        headers=headers,
        media_type="application/problem+json",
    )


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    unparsed = first["type"] == "json_invalid"
    where = "body" if unparsed else ".".join(str(part) for part in first["loc"][1:]) or "body"
    # a field's name is the caller's text and need not be encodable
    where = where.encode("utf-8", "replace").decode()
    return _refusal(request, VanillaError("invalid_request", f"{where}: {first['msg']}", {"param": where}))


_NAMES = {401: "authentication_failed", 403: "forbidden", 404: "not_found", 413: "body_too_large"}


def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    refusal = VanillaError(_NAMES.get(error.status_code, "invalid_request"), str(error.detail))
    body = refusal.problem(getattr(request.state, "request_id", None)) | {"status": error.status_code}
    return JSONResponse(body, error.status_code, headers=error.headers, media_type="application/problem+json")


def _failure(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", "")
    log.error("request_failed", path=request.url.path, request_id=request_id, exc_info=error)
    answer = _refusal(request, VanillaError("internal_error", "Something failed on our side."))
    # this answer is made outside the middleware that names requests
    answer.headers["x-request-id"] = request_id
    return answer
