"""What both transports share: errors of our own among the answers of a server, and what of its words is heard."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio
from mcp_types import ErrorData, JSONRPCError, JSONRPCNotification, JSONRPCRequest

MESSAGE_BYTES = 4 << 20
"""Of one message: what a tool gives is in it twice, as text and as structured content."""
MOST_ASKED = 1000
"""Requests of a server that are answered in one session; it may ask for nothing but a ping."""

UNREACHED, TOO_LARGE, SESSION_GONE, REFUSED = -31001, -31002, -31003, -31004
"""Codes of JSON-RPC that a transport puts in place of an answer, beside the protocol's own; REFUSED: an HTTP status."""

Streams = tuple[Any, Any]


def error(code: int, message: str, request: int | None = None, data: Any = None) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=request, error=ErrorData(code=code, message=message, data=data))


@asynccontextmanager
async def heard(transport: Any, ended: Callable[[], None]) -> AsyncIterator[Streams]:
    """The streams of a transport without what nobody asked for; `ended` is called when the server is gone."""
    async with transport as (read, write):
        yield _Heard(read, ended), write


class _Heard:
    """Progress, logs and other notifications are dropped, and requests past the limit: each would be a task."""

    def __init__(self, stream: Any, ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended = ended
        self._asked = 0

    async def receive(self) -> Any:
        while True:
            try:
                item = await self._stream.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                self._ended()
                raise
            if self._wanted(getattr(item, "message", item)):
                return item

    def _wanted(self, message: Any) -> bool:
        if isinstance(message, JSONRPCRequest):
            self._asked += 1
            return self._asked <= MOST_ASKED
        return not isinstance(message, JSONRPCNotification | Exception)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
