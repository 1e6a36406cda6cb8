"""The loop of pydantic-ai: our metered call is its model, our tools are its tools, the journal makes it durable.

It begins with the conversation that the journal has, up to the last turn whose calls are still to be made: that one is
given back to it (`pydantic_durability`), so that nothing older is computed again.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.durable_exec import replay_scope
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
from pydantic_ai.usage import UsageLimits

from vanilla_saas.orchestration import conversation
from vanilla_saas.orchestration.conversation import Run
from vanilla_saas.orchestration.loop import Turns
from vanilla_saas.orchestration.pydantic_durability import JournalBackend, JournalDurability, Left, answer_of
from vanilla_saas.workflows.execution.steps import Outcome


async def go_on(turns: Turns, state: Run, corrections: Mapping[int, str]) -> Run | Outcome:
    """Runs the agent that has the word until it has answered, hands over or waits; raises as `Turns.turn` does."""
    described = await turns.described(state)
    functions = {one["function"]["name"]: one["function"] for one in conversation.functions(state, described)}
    journal = JournalBackend(turns, state, functions)
    if journal.replays and journal.is_foreign():
        return await turns.made(state)
    body = await turns.body(journal.before, corrections)
    agent = Agent(
        _MeteredModel(journal, body),
        name=state.speaker,
        output_type=[str, DeferredToolRequests],
        tools=[_tool(journal, function) for function in functions.values()],
        capabilities=[JournalDurability(journal)],
    )
    said = [message for message in body["messages"] if message["content"] != conversation.ALMOST]
    try:
        with replay_scope():
            # how many requests there may be is the run's limits
            await agent.run(message_history=list(_history(said)), usage_limits=UsageLimits(request_limit=None))
    except Left as left:
        return left.outcome or journal.state
    if journal.state is state:
        raise RuntimeError("pydantic-ai has ended without asking its model")
    return journal.state


def _tool(journal: JournalBackend, function: Mapping[str, Any]) -> Tool[None]:
    async def call(context: RunContext[None], /, **_: Any) -> str:
        return await journal.call(str(context.tool_call_id))

    return Tool.from_schema(
        call, function["name"], function["description"], dict(function["parameters"]), takes_ctx=True
    )


class _MeteredModel(Model):
    """One metered call of our provider layer."""

    def __init__(self, journal: JournalBackend, body: Mapping[str, Any]) -> None:
        super().__init__()
        self._journal = journal
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
        state = self._journal.state
        body = {**self._options, "messages": list(_messages(messages))}
        if state.view["budget"]["notified"]:
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
        return answer_of(await self._journal.turns.ask(state, body))


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
