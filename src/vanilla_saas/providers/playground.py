"""A metered chat for the playground: admit, stream, settle, as events for a page."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.providers.adapters import (
    Upstream,
    UpstreamClient,
    UpstreamError,
    UpstreamStream,
    with_output_limit,
)
from vanilla_saas.providers.estimate import (
    InvalidRequest,
    estimate_prompt_tokens,
    prompt_upper_bound,
    requested_output_limit,
)
from vanilla_saas.providers.sandbox import SandboxServer
from vanilla_saas.providers.secrets import SecretBox
from vanilla_saas.providers.sse import EventSplitter, Usage, data_of
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy.identity import token_hash

DEADLINE_S = 300.0
HOLD = timedelta(minutes=10)
Event = tuple[str, dict[str, Any]]


async def metered_chat(app_state: Any, *, session_token: str, body: dict[str, Any]) -> AsyncIterator[Event]:
    """Yields `reserved`, `delta` for each piece of text and `settled`; or `refused` with a problem object.

    `body` is a chat request as OpenAI defines it. Closing the iterator cuts the provider's stream; what had
    arrived by then is charged.
    """
    database: Database = app_state.database
    try:
        call = await _admit(database, session_token, body)
        sent = with_output_limit(call["kind"], call["upstream_model"], body, call["output_limit"])
    except VanillaError as error:
        yield "refused", error.problem()
        return
    except InvalidRequest as error:
        yield "refused", VanillaError("invalid_request", error.message, {"param": error.param}).problem()
        return
    yield "reserved", {"tokens": call["reserved"]}

    began = time.monotonic()
    stream: UpstreamStream | None = None
    first_ms: int | None = None
    status, failure = "cancelled", None
    settled: dict[str, Any] = {}
    try:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(UpstreamClient())
            upstream = await _upstream(app_state.settings, call, stack)
            deadline = asyncio.get_running_loop().time() + DEADLINE_S
            stream = await stack.enter_async_context(client.stream(upstream, sent, deadline=deadline))
            async for text in _texts(stream):
                first_ms = first_ms if first_ms is not None else _since(began)
                yield "delta", {"text": text}
        status = "succeeded"
    except UpstreamError as error:
        status, failure = "failed", error
    finally:
        usage, estimated = _used(call["kind"], body, stream, failure)
        settling = _settle(database, call, status, usage, estimated, failure, _since(began), first_ms)
        settled = await asyncio.shield(settling)
    if failure is not None:
        name = "upstream_timeout" if failure.client_status == 504 else "upstream_error"
        message = f"The model provider could not answer: {failure.detail}"
        yield "refused", VanillaError(name, message, {"charged_tokens": settled.get("charged", 0)}).problem()
        return
    yield (
        "settled",
        {
            "charged_tokens": settled.get("charged"),
            "available_tokens": settled.get("available"),
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "latency_ms": _since(began),
            "status": status,
        },
    )


async def _admit(database: Database, session_token: str, body: dict[str, Any]) -> dict[str, Any]:
    limit = requested_output_limit(body)
    call: dict[str, Any] = await database.call(
        "select vanilla.admit_call(null, $1, null, $2, $3, $4, $5, 1, $6, true, $7)",
        token_hash(session_token),
        body["model"],
        prompt_upper_bound(body),
        estimate_prompt_tokens("sandbox", body),
        limit,
        uuid4(),
        HOLD,
    )
    return call


async def _upstream(settings: Settings, call: dict[str, Any], stack: AsyncExitStack) -> Upstream:
    if call["kind"] == "sandbox":
        address = settings.sandbox_url or (await stack.enter_async_context(SandboxServer())).url
        return Upstream("sandbox", address, None, call["upstream_model"])
    key = None
    if call["secret"] is not None:
        box = SecretBox.from_settings(settings)
        stored = base64.b64decode(call["secret"])
        key = box.decrypt(UUID(call["provider_tenant_id"]), UUID(call["provider_id"]), stored)
    return Upstream(call["kind"], call["base_url"].rstrip("/"), key, call["upstream_model"])


async def _texts(stream: UpstreamStream) -> AsyncIterator[str]:
    splitter = EventSplitter()
    async for chunk in stream:
        for event in splitter.feed(chunk):
            data = data_of(event)
            if not data or data == b"[DONE]":
                continue
            for choice in orjson.loads(data).get("choices") or ():
                if text := (choice.get("delta") or {}).get("content"):
                    yield text


def _used(
    kind: str, body: dict[str, Any], stream: UpstreamStream | None, failure: UpstreamError | None
) -> tuple[Usage, bool]:
    """What to charge, and whether it is an estimate: a cut stream has not reported its usage."""
    if stream is None and not (failure and failure.charged):
        return Usage(0, 0), False
    if stream is not None and stream.finished and stream.usage is not None:
        return stream.usage, False
    output = stream.delivered_completion_tokens_estimate if stream is not None else 0
    return Usage(estimate_prompt_tokens(kind, body), output), True


async def _settle(
    database: Database,
    call: dict[str, Any],
    status: str,
    usage: Usage,
    estimated: bool,
    failure: UpstreamError | None,
    latency_ms: int,
    first_ms: int | None,
) -> dict[str, Any]:
    settled: dict[str, Any] = await database.call(
        "select vanilla.settle_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        UUID(call["tenant_id"]),
        UUID(call["hold_id"]),
        status,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
        estimated,
        f"provider_{failure.kind}" if failure else None,
        latency_ms,
        first_ms,
    )
    return settled


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
