"""The journal as what makes pydantic-ai durable, by its public interface for that (`pydantic_ai.durable_exec`).

A request to the model is a turn of the journal, a call of a tool one of its calls. What has ended there is given back;
else it is done, and written down before pydantic-ai sees it.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from pydantic_ai.durable_exec import (
    BaseDurabilityCapability,
    DurabilityCodec,
    DurabilityEngineSpec,
    DurableOperationId,
    JournalCallableOperationBackend,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
    record_durable_unit,
)
from pydantic_ai.exceptions import CallDeferred
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart

from vanilla_saas.orchestration import conversation
from vanilla_saas.orchestration.conversation import Run
from vanilla_saas.orchestration.loop import Turns
from vanilla_saas.workflows.execution.steps import Outcome


class Left(Exception):
    """pydantic-ai is left in the middle: for what the run waits for, or for a turn that it is not to read."""

    def __init__(self, outcome: Outcome | None = None) -> None:
        self.outcome = outcome


class _Codec(DurabilityCodec):
    """A model's answer as the journal keeps it; anything else as it is."""

    def dump(self, tp: Any, value: Any) -> Any:
        if tp is not ModelResponse:
            return value
        text = "".join(part.content for part in value.parts if isinstance(part, TextPart))
        calls = [part for part in value.parts if isinstance(part, ToolCallPart)]
        return {
            "text": text,
            "calls": [{"id": call.tool_call_id, "name": call.tool_name, "arguments": call.args} for call in calls],
        }

    def load(self, tp: Any, payload: Any) -> Any:
        return answer_of(payload) if tp is ModelResponse else payload


def answer_of(kept: dict[str, Any]) -> ModelResponse:
    """What pydantic-ai reads of a turn of the journal."""
    parts: list[TextPart | ToolCallPart] = [TextPart(kept["text"])] if kept["text"] else []
    parts += [ToolCallPart(call["name"], call["arguments"], tool_call_id=call["id"]) for call in kept["calls"]]
    return ModelResponse(parts=parts)


class JournalBackend(JournalCallableOperationBackend[None]):
    """Units of pydantic-ai as rows of the journal: a turn by its number, a call of it by its id.

    `functions` are the names of what the model can call. The names of units are in no row.
    """

    def __init__(self, turns: Turns, state: Run, functions: Collection[str]) -> None:
        speaker = state.view["speaker"]
        nothing = RoleBasedOperationConfig[None](model=None, event=None, capability=None, tool=None)
        super().__init__(agent_name=f"{speaker['slug']}@{speaker['version']}", config=nothing)
        self.turns, self.state, self._functions = turns, state, functions
        self.replays = bool(state.open_calls("tool"))
        """The turn that the journal has last is given back first, because calls of it are to be made."""

    @property
    def before(self) -> Run:
        """The run without the turn that is given back."""
        steps = [step for step in self.state.steps if not self.replays or step["turn"] != self.state.turns]
        return self.state.changed({"steps": steps})

    def is_foreign(self) -> bool:
        """Whether the last turn has calls that pydantic-ai cannot tell apart, or would answer in words of its own."""
        calls = self._last_turn()[1:]
        names, ids = {step["name"] for step in calls}, {step["call_id"] for step in calls}
        return not names <= set(self._functions) or len(ids) < len(calls)

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: None,
    ) -> object:
        if isinstance(operation_id, ModelRequestId):
            return await self._turn(body)
        if isinstance(operation_id, ToolsetCallToolId):
            return await body()  # which is `call`
        raise TypeError(f"pydantic-ai does something that the journal has no place for: {name}")

    async def _turn(self, body: Callable[[], Awaitable[Any]]) -> object:
        executed, self.replays = not self.replays, False
        if executed:
            self.state = await self.turns.keep(self.state, await body())
        record_durable_unit(executed=executed)
        answer, *calls = self._last_turn()
        if self.is_foreign() or not (calls or answer["result"]["text"]):
            raise Left  # a blank answer is one too; pydantic-ai would ask for another
        return answer["result"]

    async def call(self, call_id: str) -> str:
        """What a call of the last turn gave, or gives now. Raises CallDeferred for what the run does later."""
        step = self._step(call_id)
        executed = step["status"] == "open" and step["kind"] == "tool"
        if executed:
            made = await self.turns.make(self.state, step)
            if isinstance(made, Outcome):
                raise Left(made)
            self.state = made
            step = self._step(call_id)
        record_durable_unit(executed=executed)
        if step["status"] == "open" or (step["kind"] == "handoff" and step["status"] != "failed"):
            raise CallDeferred
        return conversation.of_call(step)

    def _last_turn(self) -> list[dict[str, Any]]:
        return [step for step in self.state.steps if step["turn"] == self.state.turns]

    def _step(self, call_id: str) -> dict[str, Any]:
        return next(step for step in self._last_turn() if step["call_id"] == call_id)


class JournalDurability(BaseDurabilityCapability[None]):
    """Makes one run of pydantic-ai durable; whatever it does is within a run of ours."""

    engine_spec = DurabilityEngineSpec(
        engine_name="Vanilla SaaS",
        durable_unit_noun="step",
        durable_container_noun="run",
        codec=_Codec(),
        wrapped_toolset_kinds=frozenset({"function"}),
        toolset_lifecycles={"function": "enter-never"},
        sequential_tools_in_durable_context=True,
    )

    def __init__(self, backend: JournalBackend) -> None:
        super().__init__()
        self._backend = backend

    @property
    def in_durable_context(self) -> bool:
        return True

    def get_durable_operation_backend(self) -> JournalBackend:
        return self._backend

    def get_default_run_id(self) -> str:
        return f"{self._backend.state.run_id}:{self._backend.state.turns}"

    def get_default_conversation_id(self, run_id: str) -> str:
        return str(self._backend.state.view["root_run_id"])
