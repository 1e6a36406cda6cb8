"""Tools of an agent: of the operator and of MCP servers, under the names by which models can call them."""

import re
from collections.abc import Mapping
from typing import Any

from vanilla_saas.orchestration.definition import AgentDefinition, AgentTool
from vanilla_saas.workflows.execution.attempt import Attempt
from vanilla_saas.workflows.execution.failures import Failure
from vanilla_saas.workflows.execution.mcp import calling as mcp
from vanilla_saas.workflows.execution.tools import MCP, ToolContext

_KEY = {"type": "string", "minLength": 1, "maxLength": 100}
OWN: Mapping[str, dict[str, Any]] = {
    "state_read": {
        "description": "Reads a value that all agents of this run share, and its version; 0: there is none.",
        "parameters": {"type": "object", "properties": {"key": _KEY}, "required": ["key"]},
    },
    "state_write": {
        "description": "Writes a shared value. `version` is the one that you read; when another has written since, "
        "nothing is written and you get what it is now.",
        "parameters": {
            "type": "object",
            "properties": {"key": _KEY, "value": {}, "version": {"type": "integer", "minimum": 0}},
            "required": ["key", "value", "version"],
        },
    },
    "artifact_save": {
        "description": "Keeps a text that you made under a name, beside your answer; the same name again replaces it.",
        "parameters": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 200},
                "content": {"type": "string"},
                "media_type": {"type": "string", "description": "text/plain without one"},
            },
            "required": ["name", "content"],
        },
    },
}
"""Tools that the database has: their effect and its journal row are one transaction."""


def called(name: str) -> str:
    """The name under which a model calls a tool: providers take letters, digits, `_` and `-`, 64 of them."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name.removeprefix(MCP))[:64]


def by_called_name(definition: AgentDefinition) -> dict[str, AgentTool]:
    return {called(one.tool): one for one in definition.tools}


async def described(attempt: Attempt, definition: AgentDefinition) -> dict[str, dict[str, Any]]:
    """`description` and `parameters` of the agent's tools, by called name. Raises Failure `tool_unknown`."""
    found: dict[str, dict[str, Any]] = {}
    servers = attempt.tooling.mcp
    for one in definition.tools:
        known: Mapping[str, Any] | None
        if one.tool in OWN:
            known = OWN[one.tool]
        elif one.tool.startswith(MCP):
            server, _ = servers.split(one.tool)
            known = (await servers.tools(server)).get(one.tool)
        else:
            tool = attempt.tooling.tools.get(one.tool)
            known = None if tool is None else {"description": tool.description, "parameters": tool.parameters}
        if known is None:
            raise Failure("tool_unknown", f"This worker has no tool {one.tool}.", {"tool": one.tool})
        found[called(one.tool)] = {"description": known["description"] or "", "parameters": known["parameters"]}
    return found


async def call(attempt: Attempt, run_id: str, step: Mapping[str, Any], tool: AgentTool) -> Any:
    """What the tool gives to a call of the journal. Raises Failure.

    Its idempotency key is the run's id and the call's place in the journal: the same whoever makes it again.
    """
    of = attempt.step
    context = ToolContext(
        of.tenant_id, of.user_id, of.execution_id, of.node, of.item, of.attempt, key=f"{run_id}:{step['n']}"
    )
    if tool.tool.startswith(MCP):
        return await mcp.call_with(attempt, tool.tool, step["arguments"], context)
    found = attempt.tooling.tools.get(tool.tool)
    if found is None:
        raise Failure("tool_unknown", f"This worker has no tool {tool.tool}.", {"tool": tool.tool})
    return await found.call(step["arguments"], context)
