"""`vanilla-saas workflows tools`: what nodes of the kind tool can call on a worker of these settings."""

import asyncio
from typing import Any

import typer

from vanilla_saas.database.operator import AsJson, show
from vanilla_saas.logs import configure_logs
from vanilla_saas.settings import Settings
from vanilla_saas.workflows.execution.failures import Failure
from vanilla_saas.workflows.execution.mcp.servers import McpServers
from vanilla_saas.workflows.working import tools_of

SHOWN = 80
"""Characters of a description in the table."""


def tools(as_json: AsJson = False) -> None:
    """Tools that workflows can call: Python functions, and those of MCP servers, which are asked for them.

    Exit code 1 when a server does not tell its tools. `--json` gives the schemas of the arguments.
    """
    settings = Settings()
    configure_logs(settings.model_copy(update={"log_level": "warning"}))
    found = {
        tool.name: {"description": tool.description, "parameters": tool.parameters} for tool in tools_of(settings).all()
    }
    of_servers, failed = asyncio.run(_of_servers(settings))
    rows = [{"tool": name, **one} for name, one in (found | of_servers).items()]
    show(rows if as_json else [_line(row) for row in rows], as_json)
    for failure in failed:
        typer.echo(f"{failure.message} ({failure.code})", err=True)
    raise typer.Exit(1 if failed else 0)


async def _of_servers(settings: Settings) -> tuple[dict[str, dict[str, Any]], list[Failure]]:
    async with McpServers.of(settings) as servers:
        answers = await asyncio.gather(*map(servers.tools, servers.names()), return_exceptions=True)
    found: dict[str, dict[str, Any]] = {}
    failed = []
    for answer in answers:
        if isinstance(answer, Failure):
            failed.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found |= answer
    return found, failed


def _line(row: dict[str, Any]) -> dict[str, Any]:
    schema = row["parameters"]
    properties, required = schema.get("properties"), schema.get("required")
    names = properties if isinstance(properties, dict) else {}
    needed = required if isinstance(required, list) else []
    description = (row["description"] or "").strip().partition("\n")[0]
    return {
        "tool": row["tool"],
        "arguments": ", ".join(f"{name}{'' if name in needed else '?'}" for name in names),
        "description": description if len(description) <= SHOWN else f"{description[: SHOWN - 3]}...",
    }
