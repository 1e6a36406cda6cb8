"""The MCP server of one process, over streamable HTTP, begun when somebody asks for it first."""

import asyncio
from contextlib import suppress

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Receive, Scope, Send

from vanilla_saas.engines.protocols import mcp_tools
from vanilla_saas.tenancy.identity import Caller
from vanilla_saas.tenancy.secret_tokens import token_hash

SESSIONS = 1000
"""Of clients before 2026-07-28, whose protocol has sessions; others have none."""
IDLE_S = 300.0


class McpServer:
    """Serves requests whose caller is known."""

    def __init__(self, most_bytes: int):
        server = Server(
            "vanilla-saas",
            version="0.1.0",
            title="Vanilla SaaS",
            instructions="A tool runs an engine or an agent and costs tokens; run_result follows what takes long.",
            on_list_tools=mcp_tools.list_tools,
            on_call_tool=mcp_tools.call_tool,
            # the library knows no caller here, whose schema it is: `call_tool` looks at the headers
            get_tool_input_schema=lambda name: None,
        )
        self._sessions = StreamableHTTPSessionManager(
            server, session_idle_timeout=IDLE_S, max_sessions=SESSIONS, max_request_body_size=most_bytes
        )
        self._begun, self._stop = asyncio.Event(), asyncio.Event()
        self._serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        async with self._sessions.run():
            self._begun.set()
            await self._stop.wait()

    async def answer(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """A session is of the key or session that opened it: to others it is not there."""
        await self._begun.wait()
        token = AccessToken(token=caller.token, client_id=token_hash(caller.token).hex(), scopes=[])
        scope["user"] = AuthenticatedUser(token)
        await self._sessions.handle_request(scope, receive, send)

    async def close(self) -> None:
        self._stop.set()
        with suppress(asyncio.CancelledError):
            await self._serving
