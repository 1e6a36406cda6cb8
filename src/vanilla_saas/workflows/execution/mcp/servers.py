"""The MCP servers of a worker, each with one session that its steps share, which is replaced when it breaks."""

import asyncio
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.settings import Settings
from vanilla_saas.workflows.execution.failures import Failure
from vanilla_saas.workflows.execution.mcp.config import Server, read_servers
from vanilla_saas.workflows.execution.tools import MCP

if TYPE_CHECKING:
    from vanilla_saas.workflows.execution.mcp.session import Session


END_S = 5.0
"""How long sessions have to say goodbye, and then to end all the same."""


class SessionGone(Exception):
    """The server does not know the session any more, and has not done what it was asked to."""


class McpServers:
    """An async context manager; at its end sessions and the processes of servers end. Connects when it is asked to."""

    def __init__(self, servers: Mapping[str, Server] | None = None) -> None:
        self._servers = dict(servers or {})
        self._sessions: dict[str, Session] = {}
        self._living: dict[asyncio.Task[None], Session] = {}
        """Those that take no more calls and have not ended are among them."""
        self._session: type[Session]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of the file that the setting names. Raises VanillaError, OSError."""
        return cls(read_servers(settings.mcp_servers, os.environ) if settings.mcp_servers else None)

    async def __aenter__(self) -> Self:
        """Raises VanillaError when there are servers and the extra is not installed."""
        if self._servers:
            self._session = _session()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._living.values():
            session.end()
        await self._ended()
        for session in self._living.values():
            session.stop()
        await self._ended()

    async def _ended(self) -> None:
        if self._living:
            await asyncio.wait(list(self._living), timeout=END_S)

    def names(self) -> list[str]:
        return sorted(self._servers)

    def split(self, name: str) -> tuple[str, str]:
        """Server and tool of `mcp/<server>/<tool>`. Raises Failure `tool_unknown` when none of these servers has it."""
        server, _, tool = name.removeprefix(MCP).partition("/")
        if server not in self._servers:
            raise Failure("tool_unknown", f"This worker has no MCP server {server}.", {"tool": name})
        if not self._servers[server].allows(tool):
            raise Failure("tool_unknown", f"The MCP server {server} is not to give the tool {tool}.", {"tool": name})
        return server, tool

    async def session(self, server: str) -> "Session":
        """A session that is connected. Raises Failure when there is none to be had."""
        session = self._sessions.get(server)
        if session is None or not session.usable:
            session = self._sessions[server] = self._session(server, self._servers[server])
            task = asyncio.create_task(session.live())
            self._living[task] = session
            task.add_done_callback(self._living.pop)
        await session.connected()
        return session

    async def tools(self, server: str) -> dict[str, dict[str, Any]]:
        """Description and input schema of what definitions may call, by whole name. Raises Failure."""
        found = (await self.session(server)).tools
        allows = self._servers[server].allows
        return {
            f"{MCP}{server}/{name}": {"description": tool.description, "parameters": tool.input_schema}
            for name, tool in sorted(found.items())
            if allows(name)
        }


def _session() -> "type[Session]":
    try:
        from vanilla_saas.workflows.execution.mcp.session import Session
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("vanilla_saas"):
            raise
        raise VanillaError(
            "invalid_state",
            "VANILLA_SAAS_MCP_SERVERS names servers, and the package mcp is not installed.",
            {"need": "mcp"},
            "pip install 'vanilla-saas[mcp]'",
        ) from None
    return Session
