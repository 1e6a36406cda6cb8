"""Metered calls of workflows' steps: admitted for the step's lease, settled by the transaction that ends the step.

Whatever ends a call that was admitted, its settlement is in the list of the step's run, from where the outcome carries
it to the database. Only the death of this process, or of the connection while a call is admitted, leaves a hold to its
expiry.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID, uuid4

import orjson

from vanilla_saas.providers.estimate import Operation, Sizes, sizes_of
from vanilla_saas.providers.metering import (
    HOLD_TTL,
    Call,
    MeteredCalls,
    add_usage,
    code_of,
    count_call,
    provider_span,
)
from vanilla_saas.providers.sandbox_rules import texts_of
from vanilla_saas.providers.sse import Usage

STEP_STOPPED = "step_stopped"
"""The error code of a call whose step was cancelled or ran out of time."""
ADMISSION_S = 5.0
"""How long a step that is stopped while its call is admitted waits to learn the hold that is to be settled."""

ADMIT_STEP = "select vanilla.admit_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14::jsonb)"
"""ADMIT for a step of a workflow: who pays is the execution's matter, not that of a key or session."""


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


class MeteredStepCalls(MeteredCalls):
    """The calls of a process that runs workflows: those of its steps beside those of its gateway."""

    async def step_chat(self, lease: StepLease, body: Mapping[str, Any], calls: list[dict[str, Any]]) -> ModelAnswer:
        """One whole answer for a workflow's step, which is not settled here: its settlement is appended to `calls`.

        A settlement has the arguments of vanilla.settle_call but the tenant's, and is there whatever the call comes
        to, once it was admitted; the outcome of the step carries it to the database. Raises InvalidRequest,
        VanillaError and UpstreamError as `admit` and `complete` do.
        """
        return await self._step_call("chat", lease, body, calls)

    async def step_embed(self, lease: StepLease, body: Mapping[str, Any], calls: list[dict[str, Any]]) -> ModelAnswer:
        """Embeddings for a workflow's step, `body` as OpenAI's `/embeddings` takes it; else as `step_chat`."""
        return await self._step_call("embeddings", lease, body, calls)

    async def _step_call(
        self, operation: Operation, lease: StepLease, body: Mapping[str, Any], calls: list[dict[str, Any]]
    ) -> ModelAnswer:
        sizes = sizes_of(operation, body)
        self.enter()
        try:
            call, found = await self._admit_step(operation, lease, body, sizes, calls)
            status, usage, estimated, code = "failed", Usage(0, 0), False, ""
            try:
                with provider_span(call) as span:
                    answer = await self._ask(self._ready(call, found))
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
                count_call(call, status, usage, latency_ms)
                calls.append(_step_settlement(call.hold_id, status, usage, estimated, code or None, latency_ms))
        finally:
            self.leave()

    async def _admit_step(
        self,
        operation: Operation,
        lease: StepLease,
        body: Mapping[str, Any],
        sizes: Sizes,
        calls: list[dict[str, Any]],
    ) -> tuple[Call, Mapping[str, Any]]:
        execution_id, started = uuid4(), asyncio.get_running_loop().time()
        step = asdict(lease)
        arguments = (None, None, None, body["model"], *sizes, execution_id, False, HOLD_TTL)
        admission = asyncio.create_task(self._database.call(ADMIT_STEP, *arguments, None, None, step))
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


def _step_settlement(
    hold_id: UUID, status: str, usage: Usage, estimated: bool, code: str | None, latency_ms: int | None
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
        "first_token_ms": None,
    }


def _text_of(answer: Mapping[str, Any]) -> str:
    found = answer.get("choices")
    first = found[0] if isinstance(found, list) and found else None
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return "".join(texts_of(content))
