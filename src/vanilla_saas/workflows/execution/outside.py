"""Kinds that reach outside: http and tool."""

import base64

import orjson

from vanilla_saas.providers.adapters import retry_after_seconds
from vanilla_saas.workflows.execution.attempt import Attempt
from vanilla_saas.workflows.execution.failures import Failure
from vanilla_saas.workflows.execution.http_client import HttpAnswer
from vanilla_saas.workflows.execution.mcp import calling as mcp
from vanilla_saas.workflows.execution.steps import Outcome, succeeded
from vanilla_saas.workflows.execution.tools import MCP, ToolContext
from vanilla_saas.workflows.nodes import Http, Tool

SHOWN = 500
"""Characters of a refusing answer that the error shows."""


async def http(attempt: Attempt, node: Http) -> Outcome:
    """`{status, headers, body}`: the body as JSON when it says that it is, as text, or what is no text as base64.

    A status that is not allowed fails: 429 as rate_limited, from 500 on as provider_error, else as http_status.
    """
    templates = {"url": node.url} | {f"headers.{name}": text for name, text in node.headers.items()}
    if node.body is not None:
        templates["body"] = node.body
    texts = await attempt.render(templates)
    headers = {name: texts[f"headers.{name}"].strip() for name in node.headers}
    answer = await attempt.tooling.http.fetch(node.method, texts["url"], headers, texts.get("body"))
    allowed = answer.status in node.allowed_status if node.allowed_status else 200 <= answer.status < 300
    if not allowed:
        raise _refused(answer)
    return succeeded({"status": answer.status, "headers": dict(answer.headers), "body": _body(answer)})


def _refused(answer: HttpAnswer) -> Failure:
    code = "rate_limited" if answer.status == 429 else "provider_error" if answer.status >= 500 else "http_status"
    details = {"status": answer.status, "body": answer.body[:SHOWN].decode("utf-8", "replace").replace("\0", "")}
    if "location" in answer.headers:
        details["location"] = answer.headers["location"]
    message = f"The answer has status {answer.status}."
    if 300 <= answer.status < 400:
        message += " Redirects are not followed; name the address that it leads to."
    after = retry_after_seconds(answer.headers) if answer.status in (429, 502, 503, 504) else None
    return Failure(code, message, details, retry_after_s=after)


def _body(answer: HttpAnswer) -> object:
    kind = answer.content_type
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            pass
    try:
        text = answer.body.decode(answer.charset)
    except (UnicodeError, LookupError):
        return base64.b64encode(answer.body).decode()
    return base64.b64encode(answer.body).decode() if "\0" in text else text


async def tool(attempt: Attempt, node: Tool) -> Outcome:
    step = attempt.step
    context = ToolContext(
        step.tenant_id, step.user_id, step.execution_id, step.node, step.item, step.attempt, step.round
    )
    if node.tool.startswith(MCP):
        return succeeded(await mcp.call(attempt, node.tool, node.arguments, context))
    found = attempt.tooling.tools.get(node.tool)
    if found is None:
        raise Failure("tool_unknown", f"This worker has no tool {node.tool}.", {"tool": node.tool})
    arguments = await attempt.compute_object("arguments", node.arguments)
    return succeeded(await found.call(arguments, context))
