"""The loop of pydantic-ai over the journal: our metered call is its model, the journal its memory.

What it would keep in a durable execution of its own is in the journal already: its model and its tools write there
before they return, and a run that goes on begins with the conversation that the journal has. So nothing of it is
replayed, and only its two oldest interfaces, a model and a tool, are stood on.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext, Tool
from pydantic_ai.usage import RequestUsage, UsageLimits

from vanilla_saas.orchestration import conversation, tools
from vanilla_saas.orchestration.conversation import Run
from vanilla_saas.orchestration.loop import Turns
from vanilla_saas.workflows.execution.steps import Outcome, waiting


class _Left(Exception):
    """The agent is left: for somebody who has the word now, or for what the run waits for."""

    def __init__(self, outcome: Outcome | None = None) -> None:
        self.outcome = outcome


async def go_on(turns: Turns, state: Run, corrections: Mapping[int, str]) -> Run | Outcome:
    """Runs the agent that has the word until it has answered, hands over or waits; raises as `Turns.turn` does."""
    body = await turns.body(state, corrections)
    model = _JournalModel(turns, state, body)
    described = await tools.described(turns.attempt, state.definition)
    functions = [one["function"] for one in conversation.functions(state, described)]
    agent = Agent(model, tools=[_tool(model, function) for function in functions])
    said = [message for message in body["messages"] if message["content"] != conversation.ALMOST]
    try:
        # how many requests there may be is the run's limits
        await agent.run(message_history=list(_history(said)), usage_limits=UsageLimits(request_limit=None))
    except _Left as left:
        return left.outcome or model.state
    if model.state is state:
        raise RuntimeError("pydantic-ai has ended without asking its model")
    return model.state


def _tool(model: "_JournalModel", function: Mapping[str, Any]) -> Tool[None]:
    async def call(context: RunContext[None], **_: Any) -> Any:
        return await model.result_of(str(context.tool_call_id))

    return Tool.from_schema(
        call, function["name"], function["description"], dict(function["parameters"]), takes_ctx=True, sequential=True
    )


class _JournalModel(Model):
    """Calls by the metered call, and writes each answer to the journal before pydantic-ai sees it."""

    def __init__(self, turns: Turns, state: Run, body: Mapping[str, Any]) -> None:
        super().__init__()
        self._turns, self.state = turns, state
        self._options = {name: value for name, value in body.items() if name != "messages"}

    @property
    def model_name(self) -> str:
        return str(self._options["model"])

    @property
    def system(self) -> str:
        return "vanilla-saas"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        _, parameters = self.prepare_request(model_settings, model_request_parameters)
        body = {**self._options, "messages": list(_messages(messages))}
        if self.state.view["budget"]["notified"]:
            body["messages"].append({"role": "system", "content": conversation.ALMOST})
        if parameters.function_tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description or "",
                        "parameters": tool.parameters_json_schema,
                    },
                }
                for tool in parameters.function_tools
            ]
        state = self.state = await self._turns.turn(self.state, body)
        known = {tool.name for tool in parameters.function_tools}
        if any(
            step["name"] not in known for kind in ("tool", "delegate", "contract") for step in state.open_calls(kind)
        ):
            raise _Left  # a tool that it does not have is told to it by whoever begins anew
        said = [step for step in state.steps if step["turn"] == state.turns]
        answer = said[0]["result"]
        if len(said) == 1 and not answer["text"]:
            raise _Left  # a blank answer is one too; pydantic-ai would ask for another
        parts: list[TextPart | ToolCallPart] = [TextPart(answer["text"])] if answer["text"] else []
        parts += [ToolCallPart(call["name"], call["arguments"], tool_call_id=call["id"]) for call in answer["calls"]]
        return ModelResponse(parts=parts, usage=RequestUsage(), model_name=self.model_name)

    async def result_of(self, call_id: str) -> Any:
        """What the tool that was asked for under this id gave, or gives now."""
        step = next(step for step in reversed(self.state.steps) if step["call_id"] == call_id)
        if step["kind"] == "handoff" and step["status"] != "failed":
            raise _Left
        if step["kind"] in ("delegate", "contract") and step["status"] == "open":
            rest = [one for one in self.state.open_calls("tool") if one["n"] > step["n"]]
            raise _Left(None if rest else waiting({"kind": "agents"}))
        if step["status"] == "open":
            made = await self._turns.make(self.state, step)
            if isinstance(made, Outcome):
                raise _Left(made)
            self.state = made
            step = next(one for one in self.state.steps if one["n"] == step["n"])
        return conversation.of_call(step)


def _history(said: list[dict[str, Any]]) -> Iterator[ModelMessage]:
    """Messages of a chat request as pydantic-ai keeps them: what is said to the model stands together."""
    names: dict[str, str] = {}
    parts: list[Any] = []
    for message in said:
        role, content = message["role"], message["content"]
        if role == "assistant":
            yield ModelRequest(parts=parts)
            parts = []
            calls = message.get("tool_calls", ())
            names |= {call["id"]: call["function"]["name"] for call in calls}
            answer: list[TextPart | ToolCallPart] = [TextPart(content)] if content else []
            answer += [
                ToolCallPart(call["function"]["name"], call["function"]["arguments"], tool_call_id=call["id"])
                for call in calls
            ]
            yield ModelResponse(parts=answer or [TextPart("")])
        elif role == "tool":
            parts.append(ToolReturnPart(names[message["tool_call_id"]], content, tool_call_id=message["tool_call_id"]))
        else:
            parts.append(SystemPromptPart(content) if role == "system" else UserPromptPart(content))
    if parts:
        yield ModelRequest(parts=parts)


def _messages(history: list[ModelMessage]) -> Iterator[dict[str, Any]]:
    """The messages of a chat request."""
    for message in history:
        if isinstance(message, ModelResponse):
            text = "".join(part.content for part in message.parts if isinstance(part, TextPart))
            calls = [
                {
                    "id": part.tool_call_id,
                    "type": "function",
                    "function": {"name": part.tool_name, "arguments": part.args_as_json_str()},
                }
                for part in message.parts
                if isinstance(part, ToolCallPart)
            ]
            yield {"role": "assistant", "content": text or None} | ({"tool_calls": calls} if calls else {})
            continue
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                yield {"role": "tool", "tool_call_id": part.tool_call_id, "content": part.model_response_str()}
            elif isinstance(part, SystemPromptPart | UserPromptPart):
                role = "system" if isinstance(part, SystemPromptPart) else "user"
                yield {"role": role, "content": _text(part.content)}
            else:
                raise TypeError(f"pydantic-ai said something that a chat request has no place for: {part!r}")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else orjson.dumps(content, default=str).decode()
