"""A server by streamable HTTP: what goes wrong with one request is the answer to it, and ends no other.

The library ends the whole session when a connection breaks, and reads a JSON answer however long it is.
"""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import orjson
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client
from mcp_types import JSONRPCError

from vanilla_saas.providers.adapters import retry_after_seconds
from vanilla_saas.workflows.execution.mcp.config import HttpServer
from vanilla_saas.workflows.execution.mcp.wire import (
    MESSAGE_BYTES,
    REFUSED,
    SESSION_GONE,
    TOO_LARGE,
    UNREACHED,
    Streams,
    error,
)

CONNECT_S = 10.0
_EVENT_ENDS = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_TOO_LARGE = error(TOO_LARGE, f"It has more than {MESSAGE_BYTES:,} bytes.")


@asynccontextmanager
async def http(server: HttpServer) -> AsyncIterator[Streams]:
    """Messages of the server and to it; nothing is sent before the first."""
    async with (
        httpx2.AsyncClient(
            transport=_Bounded(),
            headers=server.headers | {"Accept-Encoding": "identity"},
            # how long an answer may take the node says
            timeout=httpx2.Timeout(CONNECT_S, read=None, pool=None),
            trust_env=False,
        ) as client,
        streamable_http_client(server.url, http_client=client, max_sse_event_size=2 * MESSAGE_BYTES) as streams,
    ):
        yield streams


class _Bounded(httpx2.AsyncBaseTransport):
    """Answers of bounded size, and errors as answers."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport(
            verify=ssl.create_default_context(),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def __aenter__(self) -> "_Bounded":
        await self._inner.__aenter__()
        return self

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            answer = await self._inner.handle_async_request(request)
        except httpx2.TransportError as failed:
            # its text may quote a header
            return _instead(502, error(UNREACHED, f"{type(failed).__name__}."))
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            await answer.aclose()
            return _instead(502, error(UNREACHED, "It is compressed, which nobody asked for."))
        if answer.status_code == 200 and answer.headers.get("content-type", "").startswith("text/event-stream"):
            return httpx2.Response(200, headers=answer.headers, stream=_Events(answer.stream), request=request)
        try:
            body = await _body(answer.stream)
        except httpx2.TransportError as failed:
            return _instead(502, error(UNREACHED, f"{type(failed).__name__}."))
        finally:
            await answer.aclose()
        if body is None:
            return _instead(502, _TOO_LARGE)
        if refusal := _refusal(request, answer, body):
            return _instead(answer.status_code, refusal)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=body, request=request)


class _Events(httpx2.AsyncByteStream):
    """Whole events alone; one that is too large is an error in its place, and the end."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pending = bytearray()
        async for chunk in self._inner:
            since = max(0, len(pending) - 3)
            pending += chunk
            ends = [found.end() for found in _EVENT_ENDS.finditer(pending, since)]
            if ends:
                yield bytes(pending[: ends[-1]])
                del pending[: ends[-1]]
            if len(pending) > MESSAGE_BYTES:
                yield b"event: message\ndata: " + _json(_TOO_LARGE) + b"\n\n"
                return

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _body(stream: Any) -> bytes | None:
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > MESSAGE_BYTES:
            return None
    return bytes(body)


def _refusal(request: httpx2.Request, answer: httpx2.Response, body: bytes) -> JSONRPCError | None:
    """What stands for an answer with an error's status; None when its own words do."""
    status = answer.status_code
    if status == 404 and MCP_SESSION_ID in request.headers:
        return error(SESSION_GONE, "The session is over.")
    if status < 400 or (status not in (401, 403, 429) and status < 500 and _is_error(body)):
        return None
    after = retry_after_seconds(answer.headers) if status in (429, 502, 503, 504) else None
    return error(REFUSED, f"The answer has status {status}.", data={"status": status, "retry_after_s": after})


def _is_error(body: bytes) -> bool:
    try:
        JSONRPCError.model_validate_json(body)
    except ValueError:
        return False
    return True


def _instead(status: int, what: JSONRPCError) -> httpx2.Response:
    return httpx2.Response(status, headers={"content-type": "application/json"}, content=_json(what))


def _json(what: JSONRPCError) -> bytes:
    return orjson.dumps(what.model_dump(by_alias=True, mode="json"))
