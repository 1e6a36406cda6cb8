"""A tool of an MCP server, called for a step."""

from typing import TYPE_CHECKING, Any

from vanilla_saas.workflows.execution.attempt import Attempt
from vanilla_saas.workflows.execution.failures import Failure, of_mismatches
from vanilla_saas.workflows.execution.mcp.servers import SessionGone
from vanilla_saas.workflows.execution.tools import ToolContext

if TYPE_CHECKING:
    from mcp_types import CallToolResult, Tool

    from vanilla_saas.workflows.execution.mcp.session import Session

MESSAGE = 2000
"""Characters of what a tool says of its failure that are kept."""


async def call(attempt: Attempt, name: str, expression: str, context: ToolContext) -> Any:
    """`call_with` the arguments that `expression` gives."""
    return await call_with(attempt, name, await attempt.compute_object("arguments", expression), context)


async def call_with(attempt: Attempt, name: str, arguments: dict[str, Any], context: ToolContext) -> Any:
    """What the tool `mcp/<server>/<tool>` gives: structured content, else its text, else its content as a list.

    Raises Failure: tool_unknown, tool_arguments, tool_failed, schema_mismatch, schema_*, output_too_large, and for
    the server timeout, provider_error, provider_not_ready, rate_limited and http_status.
    """
    servers = attempt.tooling.mcp
    server, tool = servers.split(name)
    meta = {
        "vanilla-saas/idempotency-key": context.idempotency_key,
        "vanilla-saas/tenant-id": context.tenant_id,
        "vanilla-saas/user-id": context.user_id,
    }
    for _ in range(2):
        session = await servers.session(server)
        try:
            found = await _fitting(attempt, session, name, tool, arguments)
            return await _output(attempt, name, found, await session.call_tool(tool, arguments, meta))
        except SessionGone:  # it has forgotten us, and done nothing
            session.retire()
    raise Failure("provider_error", f"The MCP server {server} ends every session.")


async def _fitting(attempt: Attempt, session: "Session", name: str, tool: str, arguments: dict[str, Any]) -> "Tool":
    """The tool, when the arguments fit what it takes, as the server says now."""
    while True:
        found = session.tools.get(tool)
        if found is None:
            failure = Failure("tool_unknown", f"The MCP server {session.name} has no tool {tool}.", {"tool": name})
        else:
            wrong = await attempt.mismatches(f"input schema of {name}", found.input_schema, arguments)
            if not wrong:
                return found
            failure = of_mismatches("tool_arguments", f"What the tool {name} is given", wrong)
        if not await session.read_again():
            raise failure


async def _output(attempt: Attempt, name: str, tool: "Tool", result: "CallToolResult") -> Any:
    texts = [block.text for block in result.content if block.type == "text"]
    if result.is_error:
        raise Failure("tool_failed", f"The tool {name} failed: {' '.join(texts)}"[:MESSAGE])
    if tool.output_schema is not None:
        wrong = await attempt.mismatches(f"output schema of {name}", tool.output_schema, result.structured_content)
        if wrong:
            raise of_mismatches("schema_mismatch", f"What the tool {name} gives", wrong)
    if "structured_content" in result.model_fields_set:
        return result.structured_content
    if len(texts) == len(result.content):
        return "\n".join(texts)
    return [block.model_dump(by_alias=True, mode="json", exclude_none=True) for block in result.content]
