"""A session with an MCP server, which the steps of a worker share: imported with the extra `mcp` alone."""

import asyncio
import logging
import math
from importlib.metadata import version
from typing import Any

import anyio
import orjson
import structlog
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    HEADER_MISMATCH,
    PARSE_ERROR,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    InputRequiredResult,
    PaginatedRequestParams,
    Tool,
)
from pydantic import TypeAdapter, ValidationError

from vanilla_saas.workflows.execution.failures import UPSTREAM, Failure
from vanilla_saas.workflows.execution.mcp.config import HttpServer, Server
from vanilla_saas.workflows.execution.mcp.http import http
from vanilla_saas.workflows.execution.mcp.servers import SessionGone
from vanilla_saas.workflows.execution.mcp.stdio import stdio
from vanilla_saas.workflows.execution.mcp.wire import (
    MESSAGE_BYTES,
    REFUSED,
    SESSION_GONE,
    TOO_LARGE,
    UNREACHED,
    heard,
)

log = structlog.get_logger()
# it logs what servers say, which is content
logging.getLogger("mcp").setLevel(logging.CRITICAL)

CONNECT_S = 30.0
LOOK_S = 10.0
"""How long a server has to tell its tools after a call to it was given up."""
GIVEN_UP = 20
"""Calls given up in a session before another takes its place: what they wait for may be kept for them."""
AGAIN_S = 5.0
"""The shortest between two readings of a server's tools."""
PAGES, TOOLS = 50, 1000
MESSAGE = 2000
"""Characters of what a server says of a failure that are kept."""
_RESULT: TypeAdapter[CallToolResult | InputRequiredResult] = TypeAdapter(CallToolResult | InputRequiredResult)


class Session:
    """`live` connects and stays until the server is gone, or until it is told to end; others call meanwhile."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.usable = True
        """Takes calls, or will when it is connected."""
        self.tools: dict[str, Tool] = {}
        self._server = server
        self._client: Client
        self._settled, self._over = asyncio.Event(), asyncio.Event()
        self._scope = anyio.CancelScope()
        self._failure: Failure | None = None
        self._calls = self._given_up = 0
        self._left: set[asyncio.Task[Any]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._read_at = -math.inf

    async def live(self) -> None:
        """Returns when the session has ended, whatever ended it."""
        transport = http(self._server) if isinstance(self._server, HttpServer) else stdio(self._server)
        info = Implementation(name="vanilla-saas", version=version("vanilla-saas"))
        self._scope.deadline = anyio.current_time() + CONNECT_S
        failed: BaseException | None = None
        try:
            with self._scope:
                async with Client(heard(transport, self.end), client_info=info) as self._client:
                    await self._read()
                    self._scope.deadline = math.inf
                    self._settled.set()
                    await self._over.wait()
        except Exception as error:
            failed = _first(error)
        if not self._settled.is_set():
            self._failure = self._not_connected(failed)
        log.debug("mcp_session_ended", server=self.name, error=type(failed).__name__ if failed else None)
        self.usable = False
        self._settled.set()

    async def connected(self) -> None:
        """Returns when it can be called. Raises Failure when it cannot be."""
        await self._settled.wait()
        if self._failure is not None:
            failure = self._failure
            raise Failure(failure.code, failure.message, failure.details, retry_after_s=failure.retry_after_s)

    async def call_tool(self, tool: str, arguments: dict[str, Any], meta: dict[str, Any]) -> CallToolResult:
        """What the server answers. Raises SessionGone, and Failure as `_of_error` has it."""
        if not self.usable:
            raise SessionGone
        params = CallToolRequestParams(name=tool, arguments=arguments, _meta=meta)
        self._calls += 1
        # not Client.call_tool: it checks the answer against the server's schema here, with patterns that never end
        request = asyncio.create_task(self._client.session.send_request(CallToolRequest(params=params), _RESULT))
        request.add_done_callback(self._ended)
        self._left.add(request)
        try:
            result = await asyncio.shield(request)
        except asyncio.CancelledError:
            if not request.cancelled():
                # the server is told, which may take a while: nobody waits for it
                request.cancel()
                self._given_up += 1
                self.retire() if self._given_up >= GIVEN_UP else self._look()
            raise
        except Exception as error:
            raise self._of_error(error) from None
        if isinstance(result, InputRequiredResult):
            raise Failure("tool_failed", f"{self._named(tool)} asks a person for something, which a step cannot.")
        return result

    async def read_again(self) -> bool:
        """Reads the server's tools, which may have changed; False when they were read just now. Raises Failure."""
        if asyncio.get_running_loop().time() - self._read_at < AGAIN_S:
            return False
        try:
            await asyncio.shield(self._look())
        except Exception as error:
            raise self._of_error(error) from None
        return True

    def end(self) -> None:
        """Takes no more calls, and ends."""
        self.usable = False
        self._over.set()

    def stop(self) -> None:
        """Ends without waiting for the server, but for its process."""
        self._scope.cancel()

    def retire(self) -> None:
        """Takes no more calls, and ends with the last of those that wait."""
        self.usable = False
        if not self._calls:
            self._over.set()

    def _ended(self, request: asyncio.Task[Any]) -> None:
        self._left.discard(request)
        self._calls -= 1
        if not request.cancelled():
            request.exception()  # of a call that was given up nobody asks for it
        if not self.usable:
            self.retire()

    def _look(self) -> asyncio.Task[None]:
        """Reads its tools, and thereby whether it answers at all; a server that does not is replaced."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._looked)
        return self._reading

    def _looked(self, reading: asyncio.Task[None]) -> None:
        if (reading.cancelled() or reading.exception() is not None) and self.usable:
            log.warning("mcp_server_silent", server=self.name)
            self.retire()

    async def _read(self) -> None:
        """Its tools, page by page."""
        found: dict[str, Tool] = {}
        size, cursor = 0, None
        with anyio.fail_after(LOOK_S):
            for _ in range(PAGES):
                page = await self._client.session.list_tools(params=PaginatedRequestParams(cursor=cursor))
                found |= {tool.name: tool for tool in page.tools}
                size += sum(len(orjson.dumps((t.description, t.input_schema, t.output_schema))) for t in page.tools)
                cursor = page.next_cursor
                if len(found) > TOOLS or size > MESSAGE_BYTES:
                    raise MCPError(TOO_LARGE, "Its list of tools is too long.")
                if cursor is None:
                    break
            else:
                raise MCPError(TOO_LARGE, "Its list of tools does not end.")
        self.tools = found
        self._read_at = asyncio.get_running_loop().time()

    def _not_connected(self, failed: BaseException | None) -> Failure:
        if failed is None:
            return Failure("provider_error", f"The MCP server {self.name} did not answer within {CONNECT_S:g} s.")
        if isinstance(failed, OSError) and not isinstance(failed, TimeoutError):
            why = failed.strerror or type(failed).__name__
            return Failure("provider_error", f"The MCP server {self.name} cannot be started: {why}.")
        said = self._of_error(failed)
        gone = Failure("provider_error", f"The MCP server {self.name} ends its sessions at once.")
        return said if isinstance(said, Failure) else gone

    def _of_error(self, error: BaseException) -> Failure | SessionGone:
        """tool_failed for what the server itself says, else of the classes of other servers."""
        server = f"The MCP server {self.name}"
        if isinstance(error, MCPError):
            match error.code:
                case c if c == SESSION_GONE:
                    return SessionGone()
                case c if c == TOO_LARGE:
                    return Failure("output_too_large", f"{server} says too much: {error.message}")
                case c if c == REFUSED:
                    return _of_status(server, error.data)
                case c if c in (UNREACHED, CONNECTION_CLOSED):
                    return Failure("provider_error", f"{server} gave no answer: {error.message}"[:MESSAGE])
                case c if c not in (PARSE_ERROR, HEADER_MISMATCH):
                    message = f"{server} refused the call: {error.message}"[:MESSAGE]
                    return Failure("tool_failed", message, {"rpc_code": error.code})
        if isinstance(error, TimeoutError):
            return Failure("timeout", f"{server} did not tell its tools within {LOOK_S:g} s.")
        if not isinstance(error, MCPError | ValidationError):
            log.warning("mcp_failed", server=self.name, error=type(error).__name__)
        return Failure("provider_error", f"{server} gave an answer that is not understood.")

    def _named(self, tool: str) -> str:
        return f"The tool mcp/{self.name}/{tool}"


def _of_status(server: str, said: Any) -> Failure:
    status, after = said["status"], said["retry_after_s"]
    message, details = f"{server} answered with status {status}.", {"status": status}
    if status in (401, 403):
        return Failure(UPSTREAM["authentication"], f"{message} Its headers are the operator's to set.", details)
    code = "rate_limited" if status == 429 else "provider_error" if status >= 500 else "http_status"
    return Failure(code, message, details, retry_after_s=after)


def _first(error: BaseException) -> BaseException:
    """Of the groups in which tasks put what they raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
