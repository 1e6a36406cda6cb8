"""Metered calls of workflows' steps: admitted for the step's lease, settled by the transaction that ends the step.

Whatever ends a call that was admitted, its settlement is in the list of the step's run, from where the outcome carries
it to the database. Only the death of this process, or of the connection while a call is admitted, leaves a hold to its
expiry.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self
from uuid import UUID, uuid4

import orjson

from vanilla_saas.database.coalescer import error_of
from vanilla_saas.providers.adapters import UpstreamError, UpstreamStream
from vanilla_saas.providers.estimate import Operation, Sizes, sizes_of
from vanilla_saas.providers.metering import (
    CALL_SECONDS,
    HOLD_TTL,
    Call,
    MeteredCalls,
    add_usage,
    code_of,
    count_call,
    provider_span,
)
from vanilla_saas.providers.sandbox_rules import texts_of
from vanilla_saas.providers.sse import EventSplitter, Usage, data_of

STEP_STOPPED = "step_stopped"
"""The error code of a call whose step was cancelled or ran out of time."""
ADMISSION_S = 5.0
"""How long a step that is stopped while its call is admitted waits to learn the hold that is to be settled."""

ADMIT_STEP = "select vanilla.admit_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14::jsonb)"
"""ADMIT for a step of a workflow: who pays is the execution's matter, not that of a key or session."""
RECORD_CALL_AND_ADMIT = (
    "select vanilla.record_call_and_admit($1::jsonb, $2, $3, $4::jsonb, $5, $6, $7, $8, $9, $10, $11, $12)"
)


@dataclass(frozen=True, slots=True)
class StepLease:
    """Which attempt of a workflow's step calls: the worker that has it, and the step with its lease."""

    worker: str
    tenant_id: str
    execution_id: str
    n: int
    """The node, by number."""
    item: int | None
    lease: int
    run_id: str | None = None
    """The run of an agent whose budget pays; None: the wallet does."""
    wrap_up: bool = False
    """The last turn of a run whose budget is used up: paid by what was put by for it."""


@dataclass(slots=True)
class ToolResult:
    """What a tool gave to the last call of an agent's turn, which the journal has with the admission of the next."""

    n: int
    """The call's place in the journal."""
    status: str
    """done or failed."""
    result: Any
    kept: bool = False


@dataclass(slots=True)
class Admitted:
    """A call that is asked for by the statement that claims its step; `answer` is that statement's."""

    body: Mapping[str, Any]
    sizes: Sizes
    streamed: bool
    execution_id: UUID
    started: float
    answer: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, body: Mapping[str, Any], *, streamed: bool) -> Self:
        """Raises InvalidRequest."""
        return cls(body, sizes_of("chat", body), streamed, uuid4(), asyncio.get_running_loop().time())

    def asked(self) -> dict[str, Any]:
        """As SQL takes it."""
        prompt, sandbox_prompt, output_limit, choices = self.sizes
        return {
            "model": self.body["model"],
            "prompt_tokens": prompt,
            "sandbox_prompt_tokens": sandbox_prompt,
            "output_limit": output_limit,
            "choices": choices,
            "execution_id": str(self.execution_id),
            "streamed": self.streamed,
            "ttl_s": HOLD_TTL.total_seconds(),
        }


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What a model answered to a step."""

    text: str
    """Of the first choice; empty for embeddings and for an answer without text."""
    body: Mapping[str, Any]
    """The provider's whole answer."""
    usage: Usage
    estimated: bool
    """The provider reported no usage, so it was estimated from sizes."""


@dataclass(slots=True)
class _Heard:
    """What has come of an answer that is told as it comes."""

    say: Callable[[str], None]
    texts: list[str] = field(default_factory=list)
    answer: UpstreamStream | None = None
    first: float | None = None
    splitter: EventSplitter = field(default_factory=EventSplitter)

    def take(self, chunk: bytes) -> None:
        for event in self.splitter.feed(chunk):
            data = data_of(event)
            text = "" if not data or data == b"[DONE]" else _delta_of(orjson.loads(data))
            if text:
                self.first = self.first or asyncio.get_running_loop().time()
                self.texts.append(text)
                self.say(text)

    def first_ms(self, began: float) -> int | None:
        return None if self.first is None else round((self.first - began) * 1000)


class MeteredStepCalls(MeteredCalls):
    """The calls of a process that runs workflows: those of its steps beside those of its gateway."""

    async def step_chat(
        self,
        lease: StepLease,
        body: Mapping[str, Any],
        calls: list[dict[str, Any]],
        say: Callable[[str], None] | None = None,
        admitted: Admitted | None = None,
        before: ToolResult | None = None,
    ) -> ModelAnswer:
        """One whole answer for a workflow's step, which is not settled here: its settlement is appended to `calls`.

        `say` gets its words as they come; an answer that breaks off then is charged as far as it came. `admitted` is
        this call, or another in the place of which this one is made. `before` is kept by the admission, if it is not.
        A settlement has the arguments of vanilla.settle_call but the tenant's, and is there whatever the call comes
        to, once it was admitted; the outcome of the step carries it to the database. Raises InvalidRequest,
        VanillaError and UpstreamError as `admit` and `complete` do.
        """
        return await self._step_call("chat", lease, body, calls, say, admitted, before)

    async def step_embed(self, lease: StepLease, body: Mapping[str, Any], calls: list[dict[str, Any]]) -> ModelAnswer:
        """Embeddings for a workflow's step, `body` as OpenAI's `/embeddings` takes it; else as `step_chat`."""
        return await self._step_call("embeddings", lease, body, calls)

    async def _step_call(
        self,
        operation: Operation,
        lease: StepLease,
        body: Mapping[str, Any],
        calls: list[dict[str, Any]],
        say: Callable[[str], None] | None = None,
        admitted: Admitted | None = None,
        before: ToolResult | None = None,
    ) -> ModelAnswer:
        sizes = sizes_of(operation, body)
        self.enter()
        try:
            given = self._given(admitted, body, calls, streamed=say is not None)
            call, found = given or await self._admit_step(
                operation, lease, body, sizes, calls, before, streamed=say is not None
            )
            status, usage, estimated, code = "failed", Usage(0, 0), False, ""
            heard = None if say is None else _Heard(say)
            try:
                with provider_span(call) as span:
                    ready = self._ready(call, found)
                    if heard is not None:
                        parsed = await self._listen(ready, heard)
                        usage, estimated = self._used(ready, heard.answer, "succeeded")
                    else:
                        answer = await self._ask(ready)
                        parsed = orjson.loads(answer.body)
                        usage, estimated = self._reported(call, answer)
                    add_usage(span, usage)
                    status = "succeeded"
                return ModelAnswer(_text_of(parsed), parsed, usage, estimated)
            except asyncio.CancelledError:
                status, code = "cancelled", STEP_STOPPED
                raise
            except BaseException as error:
                code = code_of(error)
                raise
            finally:
                latency_ms = round((asyncio.get_running_loop().time() - call.started) * 1000)
                if status == "failed" and heard is not None:
                    usage, estimated = self._used(call, heard.answer, status)
                count_call(call, status, usage, latency_ms)
                first = None if heard is None else heard.first_ms(call.started)
                calls.append(_step_settlement(call.hold_id, status, usage, estimated, code or None, latency_ms, first))
        finally:
            self.leave()

    async def _listen(self, call: Call, heard: "_Heard") -> dict[str, Any]:
        """An answer whose words were said as they came, in the form of a whole one. Raises UpstreamError."""
        deadline = call.started + CALL_SECONDS
        async with self._client.stream(call.upstream, call.body, deadline=deadline) as answer:
            heard.answer = answer
            async for chunk in answer:
                heard.take(chunk)
            if not answer.finished:
                raise UpstreamError("connection", answer.status, "it ended the stream before its end", charged=True)
        return {"choices": [{"message": {"role": "assistant", "content": "".join(heard.texts)}}]}

    def _given(
        self, admitted: Admitted | None, body: Mapping[str, Any], calls: list[dict[str, Any]], *, streamed: bool
    ) -> tuple[Call, Mapping[str, Any]] | None:
        """The call as it was admitted with the step; None when it was not, or is another. Raises what refused it."""
        if admitted is None or admitted.answer is None:
            return None
        same = admitted.body == body and admitted.streamed == streamed
        if "error" in admitted.answer:
            if same:
                raise error_of(admitted.answer["error"])
            return None
        found = admitted.answer["ok"]
        if same:
            return self._admitted("chat", found, body, admitted.execution_id, admitted.started), found
        calls.append(_step_settlement(UUID(found["hold_id"]), "cancelled", Usage(0, 0), False, STEP_STOPPED, None))
        return None

    async def _admit_step(
        self,
        operation: Operation,
        lease: StepLease,
        body: Mapping[str, Any],
        sizes: Sizes,
        calls: list[dict[str, Any]],
        before: ToolResult | None,
        *,
        streamed: bool,
    ) -> tuple[Call, Mapping[str, Any]]:
        execution_id, started = uuid4(), asyncio.get_running_loop().time()
        asked = (body["model"], *sizes, execution_id, streamed, HOLD_TTL)
        admission = asyncio.create_task(self._ask_admission(asdict(lease), asked, before))
        admission.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            found = await asyncio.shield(admission)
        except asyncio.CancelledError:
            # a statement that is cut off may have reserved already: it runs to its end, and the hold is given back
            await asyncio.wait({admission}, timeout=ADMISSION_S)
            if admission.done() and not admission.cancelled() and admission.exception() is None:
                hold_id = UUID(admission.result()["hold_id"])
                calls.append(_step_settlement(hold_id, "cancelled", Usage(0, 0), False, STEP_STOPPED, None))
            raise
        return self._admitted(operation, found, body, execution_id, started), found

    async def _ask_admission(
        self, step: Mapping[str, Any], asked: tuple[object, ...], before: ToolResult | None
    ) -> Mapping[str, Any]:
        found: Mapping[str, Any]
        if before is None or before.kept:
            found = await self._database.call(ADMIT_STEP, None, None, None, *asked, None, None, step)
            return found
        kept = (before.n, before.status, before.result)
        found = await self._database.call(RECORD_CALL_AND_ADMIT, step, *kept, *asked)
        before.kept = True
        return found


def _step_settlement(
    hold_id: UUID,
    status: str,
    usage: Usage,
    estimated: bool,
    code: str | None,
    latency_ms: int | None,
    first_token_ms: int | None = None,
) -> dict[str, Any]:
    return {
        "hold_id": str(hold_id),
        "status": status,
        "input": usage.prompt_tokens,
        "output": usage.completion_tokens,
        "cached": usage.cached_tokens,
        "reasoning": usage.reasoning_tokens,
        "estimated": estimated,
        "error_code": code,
        "latency_ms": latency_ms,
        "first_token_ms": first_token_ms,
    }


def _text_of(answer: Mapping[str, Any], part: str = "message") -> str:
    found = answer.get("choices")
    first = found[0] if isinstance(found, list) and found else None
    message = first.get(part) if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return "".join(texts_of(content))


def _delta_of(chunk: Mapping[str, Any]) -> str:
    return _text_of(chunk, "delta")
