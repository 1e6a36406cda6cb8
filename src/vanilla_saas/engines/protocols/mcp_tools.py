"""Engines and agents as tools of an MCP server: what is listed, how a call is a run, and what a run answers.

Only this file and `mcp_server` import the library, so whoever is never asked for `/mcp` has none of it in memory.
"""

import asyncio
from contextlib import suppress
from typing import Any
from uuid import UUID

import anyio
import structlog
from fastapi import Request
from mcp.server import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import validate_mcp_param_headers
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import runs
from vanilla_saas.engines.protocols import calls
from vanilla_saas.engines.protocols.calls import Called, Offer
from vanilla_saas.engines.protocols.store import Answer
from vanilla_saas.engines.starts import defaults_of
from vanilla_saas.providers.engine_chat import text_of
from vanilla_saas.tenancy.identity import Caller

log = structlog.get_logger()
Context = ServerRequestContext[Any, Request]
KEY, WAIT, RUN = (f"vanilla-saas/{name}" for name in ("idempotency-key", "wait-s", "run"))
"""In `_meta`: of a call the idempotency key and the seconds to wait, of a result the run."""
TICK_S = 1.0
"""How often a client that asked for it is told that its run goes on."""
_RUN_ID = {"type": "string", "format": "uuid", "description": "execution_id of a result"}
_SECONDS = {"type": "number", "minimum": 0, "maximum": calls.WAIT_S, "description": "seconds to wait for its end"}
_OWN_TOOLS = [
    Tool(
        name="run_result",
        description="A run that a call of another tool began: its status, and its output when it has ended.",
        input_schema={
            "type": "object",
            "properties": {"execution_id": _RUN_ID, "wait_s": _SECONDS},
            "required": ["execution_id"],
        },
        annotations=ToolAnnotations(read_only_hint=True),
    ),
    Tool(
        name="run_cancel",
        description="Ends a run that a call of another tool began; what runs of it is given up and not charged.",
        input_schema={"type": "object", "properties": {"execution_id": _RUN_ID}, "required": ["execution_id"]},
        annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=True),
    ),
]


async def list_tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
    """What the caller may run, and what they may do with their runs."""
    request, caller = _asked(context)
    found = await calls.offers(request, caller)
    return ListToolsResult(tools=[_tool(offer) for offer in found] + (_OWN_TOOLS if found else []))


async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
    """Runs one and waits; a refusal is a result too, with its code, so that a model can read it."""
    request, caller = _asked(context)
    given = params.arguments or {}
    try:
        if params.name == "run_result":
            seconds = _seconds(given.get("wait_s"), 0)
            return _told(await calls.ended(request, caller, _run_id(given), seconds))
        if params.name == "run_cancel":
            return _told(await calls.cancel(request, caller, _run_id(given), "cancelled by the client"))
        offer = await _offered(request, caller, params.name)
        _refuse_headers(context, offer, given)
        return await _run(context, offer, given)
    except VanillaError as error:
        return _refused(error)
    except MCPError:
        raise
    except Exception as error:
        log.error("mcp_call_failed", tool=params.name[:128], exc_info=error)
        return _refused(VanillaError("internal_error", "Something failed on our side."))


async def _run(context: Context, offer: Offer, given: dict[str, Any]) -> CallToolResult:
    request, caller = _asked(context)
    meta: dict[str, Any] = dict(context.meta or {})
    key, seconds = meta.get(KEY), _seconds(meta.get(WAIT), calls.WAIT_S)
    if key is not None and not isinstance(key, str):
        raise VanillaError("invalid_request", f"{KEY} is a text.", {"param": KEY})
    request.app.state.streams.refuse_when_full()
    called = await calls.start(request, caller, offer, given, key)
    telling = asyncio.create_task(_tell(context, called))
    try:
        run = await calls.ended(request, caller, called.execution_id, seconds)
    except asyncio.CancelledError:
        # a client that only leaves has not cancelled: its run goes on
        if context.session._request_outbound.cancel_requested.is_set():
            with anyio.CancelScope(shield=True):
                await calls.cancel(request, caller, called.execution_id, "cancelled by the client")
        raise
    finally:
        telling.cancel()
    return _result(called, run)


async def _tell(context: Context, called: Called) -> None:
    """The run at once, so that a client has its id, then every second that it goes on."""
    begun = asyncio.get_running_loop().time()
    with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
        while True:
            seconds = asyncio.get_running_loop().time() - begun
            await context.session.report_progress(round(seconds, 3), message=f"run {called.execution_id} goes on")
            await asyncio.sleep(TICK_S)


def _asked(context: Context) -> tuple[Request, Caller]:
    assert context.request is not None
    return context.request, context.request.state.caller


async def _offered(request: Request, caller: Caller, name: str) -> Offer:
    try:
        return await calls.offered(request, caller, name)
    except VanillaError as error:
        if error.name != "not_found":
            raise
        raise MCPError(INVALID_PARAMS, f"Unknown tool: {name[:128]}", {"code": "not_found"}) from None


def _refuse_headers(context: Context, offer: Offer, given: dict[str, Any]) -> None:
    """Arguments that the schema marks with `x-mcp-header` are headers too, and say the same."""
    if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
        wrong = validate_mcp_param_headers(_input(offer), given, _asked(context)[0].headers)
        if wrong is not None:
            raise MCPError(wrong.code, wrong.message, wrong.data)


def _tool(offer: Offer) -> Tool:
    return Tool(
        name=offer.called,
        title=offer.name,
        description=offer.description or offer.name,
        input_schema=_input(offer),
        output_schema=_output(offer.output),
        _meta={"vanilla-saas/offer": {"kind": offer.kind, "slug": offer.slug, "version": offer.version}},
    )


def _input(offer: Offer) -> dict[str, Any]:
    """Its schema; what has a default need not be sent."""
    schema, filled = offer.input | {"type": "object"}, defaults_of(offer.parameters)
    if filled:
        fields = dict(schema.get("properties") or {})
        schema["properties"] = fields | {n: {**fields[n], "default": v} for n, v in filled.items() if n in fields}
        schema["required"] = [name for name in schema.get("required", []) if name not in filled]
    return schema


def _output(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is no object is the member `output` of one; schemas before 2026-07-28 are of objects alone."""
    if schema is None or schema.get("type") == "object":
        return schema
    inner = {name: value for name, value in schema.items() if name != "$defs"}
    shared = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {"type": "object", "properties": {"output": inner}, "required": ["output"]} | shared


def _content(run: Answer, schema: dict[str, Any] | None) -> dict[str, Any]:
    plain = isinstance(run["output"], dict) and (schema is None or schema.get("type") == "object")
    return run["output"] if plain else {"output": run["output"]}


def _result(called: Called, run: Answer) -> CallToolResult:
    offer = called.offer
    meta = {RUN: _card(run) | {offer.kind: offer.slug, "replayed": called.replayed}}
    try:
        _refuse_unended(run)
        runs.refuse_failed(run)
    except VanillaError as error:
        return _refused(error, meta)
    return CallToolResult(
        content=[TextContent(text=text_of(run["output"]))],
        structured_content=_content(run, offer.output),
        _meta=meta,
    )


def _refuse_unended(run: Answer) -> None:
    if run["finished_at"] is None:
        raise VanillaError(
            "still_running",
            "The run goes on and is not waited for any longer.",
            {"execution_id": str(run["execution_id"])},
            "Call run_result with its execution_id, or the same again with the same idempotency key.",
        )


def _told(run: Answer) -> CallToolResult:
    """What `run_result` and `run_cancel` answer: how it ended is no error of theirs."""
    card = _card(run)
    told = card | {"output": run["output"], "error": run["error"]}
    text = text_of(run["output"]) if run["status"] == "succeeded" else f"The run is {run['status']}."
    return CallToolResult(content=[TextContent(text=text)], structured_content=told, _meta={RUN: card})


def _card(run: Answer) -> dict[str, Any]:
    card = {
        "execution_id": str(run["execution_id"]),
        "status": run["status"],
        "reason": run["reason"],
        "version": run["version"],
        "charged_tokens": run["charged_tokens"],
        "cost_micros": run["cost_micros"],
    }
    return card | ({"run_id": str(run["run_id"]), "stop_reason": run["stop_reason"]} if run["run_id"] else {})


def _refused(error: VanillaError, meta: dict[str, Any] | None = None) -> CallToolResult:
    problem = error.problem()
    text = f"{error.name}: {error.message}" + (f" {error.hint}" if error.hint else "")
    for one in problem.get("problems", ()):
        text += f"\n{one['field']}: {one['message']}"
    return CallToolResult(content=[TextContent(text=text)], structured_content=problem, is_error=True, _meta=meta)


def _run_id(given: dict[str, Any]) -> UUID:
    try:
        return UUID(given["execution_id"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise VanillaError("invalid_request", "execution_id is a UUID.", {"param": "execution_id"}) from None


def _seconds(given: object, left_out: float) -> float:
    if given is None:
        return left_out
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= calls.WAIT_S:
        raise VanillaError("invalid_request", f"Seconds to wait are 0 to {calls.WAIT_S:g}.", {"param": "wait_s"})
    return float(given)
