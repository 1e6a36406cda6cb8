"""A server of the package's own: `good.py stdio`, `good.py http <port>`, `good.py json <port>`."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import InputRequiredResult
from pydantic import BaseModel, Field

server = MCPServer("good", log_level="ERROR")


class Customer(BaseModel):
    email: str
    orders: int


@server.tool()
async def find(email: Annotated[str, Field(pattern="@")], limit: int = 3) -> Customer:
    """Looks a customer up.

    By the address."""
    return Customer(email=email, orders=limit)


@server.tool(structured_output=False)
async def say(text: str, times: int = 1) -> list[str]:
    return [text] * times


@server.tool(structured_output=False)
async def picture() -> Image:
    return Image(data=b"abc", format="png")


@server.tool()
async def number() -> float:
    return 1.5


@server.tool()
async def who(ctx: Context) -> dict[str, Any]:
    meta = {name: value for name, value in (ctx.request_context.meta or {}).items() if name.startswith("vanilla-saas/")}
    return {"pid": os.getpid(), "environment": sorted(os.environ), "meta": meta}


@server.tool()
async def refuse(message: str) -> str:
    raise ToolError(message)


@server.tool()
async def sleep(s: float, told: str) -> str:
    Path(told).write_text("began")
    try:
        await asyncio.sleep(s)
    except asyncio.CancelledError:
        Path(told).write_text("cancelled")
        raise
    return "slept"


@server.tool()
async def die() -> str:
    os._exit(3)


@server.tool(structured_output=False)
async def much(size: int) -> str:
    return "x" * size


@server.tool()
async def grow() -> str:
    """Has one tool more from now on, which takes what it did not take before."""

    def grown(text: str) -> str:
        return text

    server.add_tool(grown)
    return "grown"


@server.tool()
async def ask(ctx: Context) -> str:
    class Answer(BaseModel):
        yes: bool

    return str(await ctx.elicit("May I?", Answer))


@server.tool()
async def ask_later() -> str | InputRequiredResult:
    return InputRequiredResult(request_state="half done")


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", port=int(sys.argv[2]), json_response=sys.argv[1] == "json")
