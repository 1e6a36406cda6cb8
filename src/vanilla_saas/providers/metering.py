"""The metered call: admit and reserve, call the provider, settle what was used.

One round trip to the database before the call and one after. Whatever ends a call (an answer, an error, a client
that leaves, a server that stops) its hold is settled here; only the death of this process leaves that to the hold's
expiry. Settling is fenced in SQL, so it is repeated without harm while the database is away.
"""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog

from vanilla_saas import metrics, tracing
from vanilla_saas.database.coalescer import Coalescer, Function
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.providers.adapters import (
    Completion,
    Upstream,
    UpstreamClient,
    UpstreamError,
    UpstreamStream,
    with_output_limit,
)
from vanilla_saas.providers.estimate import InvalidRequest, Operation, estimate_prompt_tokens, sizes_of
from vanilla_saas.providers.secrets import SecretBox, SecretError
from vanilla_saas.providers.sse import Usage
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, token_hash

log = structlog.get_logger()

CALL_SECONDS = 600.0
"""Longest call; a hold outlives it by a minute."""
HOLD_TTL = timedelta(seconds=CALL_SECONDS + 60)
SETTLE_WAIT_S = 2.0
"""How long an answer waits for its settlement when the database is away."""
SETTLE_RETRY_S = 600.0
"""How long a settlement is tried again before the hold is left to expire."""
CLOSE_S = 10.0
STALL_S = 1.0
"""How long after its deadline a call waits for a client that does not read."""

ADMIT = Function(
    "admit",
    "select vanilla.admit_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    (
        *("key_hash", "session_hash", "payer", "model", "prompt_tokens", "sandbox_prompt_tokens", "output_limit"),
        *("choices", "execution_id", "streamed", "ttl", "idempotency_key", "request_id"),
    ),
)
MODELS = "select vanilla.list_models($1, $2)"
SETTLE = Function(
    "settle",
    "select vanilla.settle_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    (
        *("tenant_id", "hold_id", "status", "input", "output", "cached", "reasoning", "estimated"),
        *("error_code", "latency_ms", "first_token_ms"),
    ),
)


@dataclass(frozen=True, slots=True)
class Call:
    """An admitted call: its hold, its limits and where it goes."""

    operation: Operation
    tenant_id: UUID
    hold_id: UUID
    execution_id: UUID
    reserved_tokens: int
    available_tokens: int
    output_limit: int
    """Output tokens over all choices that the reservation covers; 0 for embeddings."""
    upstream: Upstream
    body: Mapping[str, Any]
    started: float
    """Moment of admission on the loop's clock."""
    rate: tuple[Mapping[str, Any], ...] = ()
    """What is left of each rate of the payer's level: `name`, `limit`, `remaining`, `reset_s`, `window_s`."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a call came to; amounts are None while the database is away and the settlement is still being tried."""

    status: str
    usage: Usage
    charged_tokens: int | None
    available_tokens: int | None
    latency_ms: int


@dataclass(frozen=True, slots=True)
class Streamed:
    """How a stream ended: the chunk that is still to be written, what cut the answer short, what it came to."""

    last: bytes
    failure: UpstreamError | None
    settlement: Settlement


class MeteredCalls:
    """The calls of one process."""

    def __init__(
        self,
        database: Database,
        coalescer: Coalescer,
        client: UpstreamClient,
        secrets: SecretBox,
        sandbox_url: str,
        most: int,
    ):
        self._database = database
        self._coalescer = coalescer
        self._client = client
        self._secrets = secrets
        self._sandbox_url = sandbox_url
        self._most = most
        self._running = 0
        self._opened_secrets: dict[str, str] = {}
        self._settling: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Waits for calls and settlements under way, at most ten seconds; what is left expires with its hold."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CLOSE_S
        # a call that was cancelled has yet to begin its settlement
        while (self._running or self._settling) and loop.time() < give_up:
            await asyncio.sleep(0.02)

    def enter(self) -> None:
        """Takes a place among the running calls; raises VanillaError `saturated` when there is none."""
        if self._running >= self._most:
            raise VanillaError(
                "saturated",
                f"This server has {self._most} calls in flight and takes no more now.",
                {"retry_after_s": 1},
                "Try again after the time in Retry-After.",
            )
        self._running += 1
        metrics.CALLS_RUNNING.inc()

    def leave(self) -> None:
        self._running -= 1
        metrics.CALLS_RUNNING.dec()

    async def admit(
        self,
        token: str,
        body: Mapping[str, Any],
        *,
        operation: Operation = "chat",
        payer: str | None = None,
        idempotency_key: str | None = None,
        request_id: str | None = None,
    ) -> Call:
        """Authenticates, prices and reserves the worst case. `token` is an API key or a session token.

        Raises InvalidRequest for a body that cannot be sent, VanillaError for every refusal.
        """
        sizes = sizes_of(operation, body)
        hashed = token_hash(token)
        is_key = token.startswith(KEY_PREFIX)
        execution_id = uuid4()
        started = asyncio.get_running_loop().time()
        found = await self._coalescer.call(
            ADMIT,
            hashed if is_key else None,
            None if is_key else hashed,
            payer,
            body["model"],
            *sizes,
            execution_id,
            body.get("stream") is True,
            HOLD_TTL,
            idempotency_key,
            request_id,
            lane=hashed,
            unwanted=self._return_hold,
        )
        structlog.contextvars.bind_contextvars(tenant_id=found["tenant_id"], user_id=found["user_id"])
        call = self._admitted(operation, found, body, execution_id, started)
        try:
            return self._ready(call, found)
        except BaseException as error:
            await self._settle(call, "failed", Usage(0, 0), False, code_of(error), None)
            raise

    def _admitted(
        self,
        operation: Operation,
        found: Mapping[str, Any],
        body: Mapping[str, Any],
        execution_id: UUID,
        started: float,
    ) -> Call:
        return Call(
            operation,
            UUID(found["tenant_id"]),
            UUID(found["hold_id"]),
            execution_id,
            found["reserved"],
            found["available"],
            found["output_limit"],
            Upstream(found["kind"], found["base_url"] or self._sandbox_url, None, found["upstream_model"]),
            body,
            started,
            tuple(found["rate"] or ()),
        )

    def _return_hold(self, found: Mapping[str, Any]) -> None:
        """Settles a call whose caller was cancelled while it was admitted."""
        hold_id = UUID(found["hold_id"])
        usage = (0, 0, 0, 0, False, "client_disconnected", None, None)
        task = asyncio.create_task(self._settle_surely(hold_id, UUID(found["tenant_id"]), hold_id, "cancelled", *usage))
        self._track(task)

    def _track(self, task: asyncio.Task[Any]) -> None:
        self._settling.add(task)
        metrics.SETTLEMENTS_WAITING.inc()
        task.add_done_callback(self._settled)

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._settling.discard(task)
        metrics.SETTLEMENTS_WAITING.dec()
        if not task.cancelled() and task.exception() is None:
            metrics.CHARGED_TOKENS.inc(task.result().get("charged") or 0)

    def _ready(self, call: Call, found: Mapping[str, Any]) -> Call:
        """The call with its secret opened and, where there is an output, its limit set."""
        body = call.body
        if call.operation == "chat":
            body = with_output_limit(call.upstream.provider, call.upstream.model, body, call.output_limit)
        return replace(call, body=body, upstream=replace(call.upstream, api_key=self._open_secret(found)))

    def _open_secret(self, found: Mapping[str, Any]) -> str | None:
        sealed: str | None = found["secret"]
        if sealed is None:
            return None
        if sealed not in self._opened_secrets:
            try:
                opened = self._secrets.decrypt(
                    UUID(found["provider_tenant_id"]), UUID(found["provider_id"]), base64.b64decode(sealed)
                )
            except SecretError as error:
                log.error("provider_secret_unreadable", provider=found["provider"], error=str(error))
                raise VanillaError(
                    "provider_not_ready",
                    f"The stored key of {found['provider']} cannot be opened.",
                    hint=f"An operator sets it again: vanilla-saas providers set-key {found['provider']}",
                ) from None
            if len(self._opened_secrets) >= 1000:
                self._opened_secrets.clear()
            self._opened_secrets[sealed] = opened
        return self._opened_secrets[sealed]

    async def models(self, token: str) -> list[dict[str, Any]]:
        """What the caller's tenant can call, `ready` or not yet; the fields of vanilla.list_models."""
        hashed = token_hash(token)
        is_key = token.startswith(KEY_PREFIX)
        rows: list[dict[str, Any]] = await self._database.call(
            MODELS, hashed if is_key else None, None if is_key else hashed
        )
        return rows

    async def complete(self, call: Call) -> tuple[bytes, Settlement]:
        """One whole answer and what it came to.

        Raises UpstreamError, and InvalidRequest where the provider has no such operation, after the call was settled:
        nothing is charged for an answer that did not come.
        """
        try:
            with provider_span(call) as span:
                answer = await self._ask(call)
                add_usage(span, answer.usage)
        except BaseException as error:
            await self._settle(call, "failed", Usage(0, 0), False, code_of(error), None)
            raise
        usage, estimated = self._reported(call, answer)
        return answer.body, await self._settle(call, "succeeded", usage, estimated, None, None)

    async def _ask(self, call: Call) -> Completion:
        ask = self._client.embed if call.operation == "embeddings" else self._client.complete
        return await ask(call.upstream, call.body, deadline=call.started + CALL_SECONDS)

    def _reported(self, call: Call, answer: Completion) -> tuple[Usage, bool]:
        """What a whole answer consumed, and whether that is an estimate."""
        if answer.usage is not None:
            return answer.usage, False
        return Usage(self._prompt_estimate(call), answer.completion_tokens_estimate), True

    async def stream(
        self,
        call: Call,
        start: Callable[[], Awaitable[None]],
        write: Callable[[bytes], Awaitable[None]],
        gone: asyncio.Event,
    ) -> Streamed:
        """Passes an answer on as it arrives: `start` once the provider answers, `write` for every chunk but the last.

        `gone` is set when the client has left: the provider's connection is cut and what was generated is charged.
        An error before the first byte is raised as UpstreamError; one after it is returned. The last chunk is
        returned after the settlement, so a client that has read [DONE] finds its wallet charged.
        """
        loop = asyncio.get_running_loop()
        answer: UpstreamStream | None = None
        failure: UpstreamError | None = None
        first_token_ms: int | None = None
        status, code, last = "failed", "internal_error", b""
        try:
            async with (
                _provider_call(call) as span,
                self._client.stream(call.upstream, call.body, deadline=call.started + CALL_SECONDS) as answer,
            ):
                cutter = asyncio.create_task(_cut_when(gone, answer))
                try:
                    async with asyncio.timeout_at(call.started + CALL_SECONDS + STALL_S):
                        await start()
                        async for chunk in answer:
                            if first_token_ms is None:
                                first_token_ms = round((loop.time() - call.started) * 1000)
                            if gone.is_set():
                                break
                            if answer.finished:
                                last += chunk
                            else:
                                await write(chunk)
                except TimeoutError:
                    # the provider's own deadline has passed: it is the client who does not take what is there
                    gone.set()
                finally:
                    cutter.cancel()
                    add_usage(span, answer.usage)
            if gone.is_set() and not answer.finished:
                status, code = "cancelled", "client_disconnected"
            elif answer.finished:
                status, code = "succeeded", ""
            else:
                failure = UpstreamError("connection", answer.status, "it ended the stream before its end", charged=True)
                code = "upstream_connection"
        except UpstreamError as error:
            if gone.is_set():
                status, code = "cancelled", "client_disconnected"
            else:
                failure, code = error, code_of(error)
        finally:
            usage, estimated = self._used(call, answer, status)
            settlement = await self._settle(call, status, usage, estimated, code or None, first_token_ms)
        if failure is not None and answer is None:
            raise failure
        return Streamed(last, failure, settlement)

    def _used(self, call: Call, answer: UpstreamStream | None, status: str) -> tuple[Usage, bool]:
        """What a stream consumed, and whether that is an estimate."""
        if answer is None:
            return Usage(0, 0), False
        generated = answer.delivered_completion_tokens_estimate
        if answer.usage is not None and status == "succeeded":
            return answer.usage, False
        if answer.usage is not None:
            return Usage(answer.usage.prompt_tokens, generated, answer.usage.cached_tokens), True
        return Usage(self._prompt_estimate(call), generated), True

    @staticmethod
    def _prompt_estimate(call: Call) -> int:
        return estimate_prompt_tokens(call.upstream.provider, call.body)

    async def _settle(
        self, call: Call, status: str, usage: Usage, estimated: bool, code: str | None, first_token_ms: int | None
    ) -> Settlement:
        latency_ms = round((asyncio.get_running_loop().time() - call.started) * 1000)
        count_call(call, status, usage, latency_ms)
        task = asyncio.create_task(
            self._settle_surely(
                call.hold_id,
                call.tenant_id,
                call.hold_id,
                status,
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens,
                usage.reasoning_tokens,
                estimated,
                code,
                latency_ms,
                first_token_ms,
            )
        )
        self._track(task)
        try:
            # a cancelled request does not take its settlement with it
            result = await asyncio.wait_for(asyncio.shield(task), SETTLE_WAIT_S)
        except TimeoutError:
            result = {}
        return Settlement(status, usage, result.get("charged"), result.get("available"), latency_ms)

    async def _settle_surely(self, hold_id: UUID, *arguments: object) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        give_up, pause = loop.time() + SETTLE_RETRY_S, 0.05
        while True:
            try:
                result: dict[str, Any] = await self._coalescer.call(SETTLE, *arguments, lane=arguments[0])
                return result
            except Exception as error:
                refused = isinstance(error, VanillaError) and error.name not in ("database_unavailable", "saturated")
                if refused or loop.time() > give_up:
                    log.error("settlement_failed", hold_id=str(hold_id), error=str(error))
                    return {}
                if not isinstance(error, VanillaError):
                    log.error("settlement_delayed", hold_id=str(hold_id), error=str(error))
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 (jitter)
            pause = min(pause * 2, 5.0)


def code_of(error: BaseException) -> str:
    """The code that the execution of a call has for what ended it."""
    if isinstance(error, UpstreamError):
        return f"upstream_{error.kind}"
    if isinstance(error, VanillaError):
        return error.name
    return error.code if isinstance(error, InvalidRequest) else "internal_error"


def provider_span(call: Call) -> AbstractContextManager[Any]:
    """Named as OpenTelemetry's conventions for generative AI say; what was asked and answered is never in it."""
    asked = {"gen_ai.operation.name": call.operation, "gen_ai.provider.name": call.upstream.provider}
    name = f"{call.operation} {call.upstream.model}"
    return tracing.span(name, "client", asked | {"gen_ai.request.model": call.upstream.model})


@asynccontextmanager
async def _provider_call(call: Call) -> AsyncIterator[Any]:
    with provider_span(call) as span:
        yield span


def add_usage(span: Any, usage: Usage | None) -> None:
    if usage is not None:
        span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)


def count_call(call: Call, status: str, usage: Usage, latency_ms: int) -> None:
    provider = call.upstream.provider
    metrics.MODEL_CALLS.labels(provider, status).inc()
    metrics.MODEL_CALL_SECONDS.labels(provider).observe(latency_ms / 1000)
    for kind, amount in (
        ("input", usage.prompt_tokens),
        ("output", usage.completion_tokens),
        ("cached", usage.cached_tokens),
        ("reasoning", usage.reasoning_tokens),
    ):
        if amount:
            metrics.MODEL_TOKENS.labels(provider, kind).inc(amount)


async def _cut_when(gone: asyncio.Event, answer: UpstreamStream) -> None:
    await gone.wait()
    answer.cut()
