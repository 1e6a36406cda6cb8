"""The journal of runs: what a worker reads of it and writes to it, each in one statement under the step's lease."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vanilla_saas.database.pool import Database
from vanilla_saas.providers.step_metering import MeteredStepCalls, ModelAnswer, StepLease, ToolResult
from vanilla_saas.workflows.execution.steps import Step

BEGIN = "select vanilla.begin_run($1::jsonb, $2, $3::jsonb)"
ASK_ENGINE = "select vanilla.ask_engine($1::jsonb, $2, $3::jsonb)"
RECORD_TURN = "select vanilla.record_turn($1::jsonb, $2, $3::jsonb, $4::jsonb, $5)"
MAKE_CALL = "select vanilla.make_call($1::jsonb, $2)"
RECORD_CALL = "select vanilla.record_call($1::jsonb, $2, $3, $4::jsonb)"


@dataclass(frozen=True, slots=True)
class Journal:
    """Of the runs that the worker with the id `worker` computes. Its methods raise VanillaError."""

    database: Database
    metered: MeteredStepCalls
    worker: str

    def _lease(self, step: Step, run_id: str | None = None, wrap_up: bool = False) -> StepLease:
        return StepLease(
            self.worker,
            step.tenant_id,
            step.execution_id,
            step.n,
            step.item,
            step.lease,
            run_id=run_id,
            wrap_up=wrap_up,
        )

    async def begin(self, step: Step, ref: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The run of the step as it stands (`vanilla.run_view`); a new one when none is under way."""
        return dict(await self.database.call(BEGIN, asdict(self._lease(step)), ref, given))

    async def chat(
        self,
        step: Step,
        run_id: str,
        body: Mapping[str, Any],
        calls: list[dict[str, Any]],
        before: ToolResult | None = None,
        *,
        wrap_up: bool,
    ) -> ModelAnswer:
        """A model call that the budget of the run pays, `before` which a tool has given something that is not kept yet.

        Raises as `MeteredStepCalls.step_chat` does.
        """
        return await self.metered.step_chat(self._lease(step, run_id, wrap_up), body, calls, before=before)

    async def ask_engine(self, step: Step, turn: int, given: Mapping[str, Any]) -> None:
        """Writes down that a turn is a run of the engine with this input, which starts when the step waits."""
        await self.database.call(ASK_ENGINE, asdict(self._lease(step)), turn, given)

    async def record_turn(
        self, step: Step, turn: int, calls: Sequence[Mapping[str, Any]], answer: Mapping[str, Any], *, wrap_up: bool
    ) -> dict[str, Any]:
        """Settles the turn's calls and keeps the answer of the last one; what `Run.after` takes, and `stop`."""
        lease = asdict(self._lease(step))
        return dict(await self.database.call(RECORD_TURN, lease, turn, list(calls), answer, wrap_up))

    async def make_call(self, step: Step, n: int) -> dict[str, Any]:
        """Makes a call of a tool of the database itself, and keeps what it gave; what `Run.with_call` takes."""
        return dict(await self.database.call(MAKE_CALL, asdict(self._lease(step)), n))

    async def record_call(self, step: Step, n: int, status: str, result: Any) -> dict[str, Any]:
        """Keeps what a tool gave (`done`, `failed`), or what people said (`approval`); what `Run.with_call` takes."""
        return dict(await self.database.call(RECORD_CALL, asdict(self._lease(step)), n, status, result))


def as_kept(value: Any) -> Any:
    """JSON as the journal will give it back: PostgreSQL sorts keys by their length, then by their bytes.

    Raises ValueError for fractions and large numbers, which it may write in another way.
    """
    match value:
        case None | str() | bool():
            return value
        case int() if -(2**63) <= value < 2**63:
            return value
        case list():
            return [as_kept(one) for one in value]
        case dict():
            return {key: as_kept(value[key]) for key in sorted(value, key=_key_order)}
    raise ValueError(f"{type(value).__name__} may be kept in another form")


def _key_order(key: str) -> tuple[int, bytes]:
    return len(key.encode()), key.encode()
