"""Model calls of a step: metered, and settled by the transaction that ends the step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vanilla_saas.providers.step_metering import MeteredStepCalls, ModelAnswer, StepLease
from vanilla_saas.workflows.attending import Say
from vanilla_saas.workflows.execution.steps import Step


class StepCalls(Protocol):
    """Both append the settlement of an admitted call to `calls`, whatever becomes of it, and settle nothing.

    They raise UpstreamError, VanillaError and InvalidRequest.
    """

    async def chat(
        self, step: Step, body: Mapping[str, Any], calls: list[dict[str, Any]], say: Say | None = None
    ) -> ModelAnswer:
        """`body` as OpenAI's `/chat/completions` takes it; `say` gets the words as they come."""

    async def embed(self, step: Step, body: Mapping[str, Any], calls: list[dict[str, Any]]) -> ModelAnswer:
        """`body` as OpenAI's `/embeddings` takes it; the answer's `body` has the vectors."""


@dataclass(frozen=True, slots=True)
class WorkerCalls:
    """The calls of the worker whose id is `worker`."""

    metered: MeteredStepCalls
    worker: str

    async def chat(
        self, step: Step, body: Mapping[str, Any], calls: list[dict[str, Any]], say: Say | None = None
    ) -> ModelAnswer:
        return await self.metered.step_chat(self._lease(step), body, calls, say, step.admitted)

    async def embed(self, step: Step, body: Mapping[str, Any], calls: list[dict[str, Any]]) -> ModelAnswer:
        return await self.metered.step_embed(self._lease(step), body, calls)

    def _lease(self, step: Step) -> StepLease:
        return StepLease(self.worker, step.tenant_id, step.execution_id, step.n, step.item, step.lease)
