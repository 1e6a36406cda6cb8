"""MCP servers for tests, and calls of their tools as steps."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from tests.workflows.execution.support import plan, step
from vanilla_saas.workflows.execution.mcp.config import HttpServer, Server, StdioServer
from vanilla_saas.workflows.execution.mcp.servers import McpServers
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.steps import Outcome
from vanilla_saas.workflows.execution.tooling import Tooling

SERVERS = Path(__file__).with_name("mcp_servers")
OURS = f"of-{os.getpid()}"
"""An argument of every process that these tests start, and those hand on."""
GOOD = StdioServer(command=sys.executable, args=[str(SERVERS / "good.py"), "stdio", OURS])


def bad(manner: str = "good") -> StdioServer:
    return StdioServer(command=sys.executable, args=[str(SERVERS / "bad.py"), manner, OURS])


@dataclass
class Caller:
    """Calls tools of the server `s`."""

    tooling: Tooling

    async def __call__(self, tool: str, /, *, seconds: float = 30, **arguments: Any) -> Outcome:
        return await self.step({"tool": f"mcp/s/{tool}", "arguments": orjson.dumps(arguments).decode()}, seconds)

    async def step(self, node: dict[str, Any], seconds: float = 30, **fields: Any) -> Outcome:
        given = plan({"id": "a", "kind": "tool", **node})
        return await execute(step(timeout_s=seconds, **fields), given, self.tooling)


@asynccontextmanager
async def calling(tooling: Tooling, server: Server) -> AsyncIterator[Caller]:
    async with McpServers({"s": server}) as servers:
        yield Caller(replace(tooling, mcp=servers))


@contextmanager
def over_http(how: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The good server as a process; `how` it answers: http (events) or json."""
    process = subprocess.Popen([sys.executable, str(SERVERS / "good.py"), how, str(port)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def listening(port: int) -> HttpServer:
    async with asyncio.timeout(60):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return HttpServer(url=f"http://127.0.0.1:{port}/mcp")
            await asyncio.sleep(0.05)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def left() -> set[int]:
    """Processes of servers that run, and zombies of ours."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            line = (folder / "cmdline").read_bytes().decode()
            if OURS in line or (not line and parent == os.getpid()):
                found.add(int(folder.name))
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def until(condition: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
