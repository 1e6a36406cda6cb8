"""What a durable turn is held against: a bare loop over HTTP, the product's own loop with its journal in memory, and
the same agent as one writes it with pydantic-ai alone.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast
from uuid import uuid4

import aiohttp
import httpx2
import orjson

from benchmarks import agent_tools
from benchmarks.frame import BenchmarkError
from vanilla_saas.orchestration.definition import AgentDefinition
from vanilla_saas.orchestration.loop import Turns
from vanilla_saas.orchestration.tools import described
from vanilla_saas.providers.sse import Usage
from vanilla_saas.providers.step_metering import ModelAnswer
from vanilla_saas.workflows.definition import Definition
from vanilla_saas.workflows.execution.attempt import Attempt
from vanilla_saas.workflows.execution.plan import Plan
from vanilla_saas.workflows.execution.steps import Step
from vanilla_saas.workflows.execution.tooling import Tooling
from vanilla_saas.workflows.execution.tools import ToolRegistry
from vanilla_saas.workflows.nodes import AgentNode

Loop = Callable[[], Awaitable[int]]
"""A run from its first turn to its answer; the turns that it took."""
GIVEN = {"message": "Hello"}
NODE = {"id": "agent", "kind": "agent", "ref": "bench", "input": "input"}


async def processor_ms(loop: Loop, runs: int, at_once: int) -> float:
    """Milliseconds of this process's processor time for a turn."""
    left = iter(range(runs))

    async def some() -> int:
        return sum([await loop() for _ in left])

    began = time.process_time()
    turns = sum(await asyncio.gather(*(some() for _ in range(at_once))))
    return (time.process_time() - began) * 1000 / turns


class Model:
    """Chat calls by aiohttp and nothing else."""

    def __init__(self, url: str) -> None:
        self._url = url + "/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Model":
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        assert self._session is not None
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=orjson.dumps(body), headers=headers) as answer:
            return answered(orjson.loads(await answer.read()))


class HttpxModel(Model):
    """Chat calls by httpx2, as most agents make theirs."""

    async def __aenter__(self) -> "HttpxModel":
        self._client = httpx2.AsyncClient()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return answered((await self._client.post(self._url, json=body)).json())


def answered(found: Any) -> dict[str, Any]:
    if "choices" not in found:
        raise BenchmarkError(f"the sandbox refused: {found}")
    return cast(dict[str, Any], found)


def bare(model: Model, definition: Mapping[str, Any], functions: Sequence[Mapping[str, Any]]) -> Loop:
    """The least that is an agent: a list of messages, a call, the tools that it asks for."""

    async def loop() -> int:
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": definition["instructions"]},
            {"role": "user", "content": GIVEN["message"]},
        ]
        body = {"model": definition["model"], "messages": messages} | ({"tools": functions} if functions else {})
        turns = 0
        while True:
            said = (await model.ask(body))["choices"][0]["message"]
            turns += 1
            if not said.get("tool_calls"):
                return turns
            messages.append({"role": "assistant", "content": said["content"], "tool_calls": said["tool_calls"]})
            for call in said["tool_calls"]:
                given = agent_tools.look_up(**orjson.loads(call["function"]["arguments"]))
                content = orjson.dumps(given).decode()
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})

    return loop


def stock(url: str, definition: Mapping[str, Any]) -> Loop:
    """The same agent as one writes it with pydantic-ai and its model for OpenAI's API: nothing is kept or paid."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url, api_key="sandbox")
    agent = Agent(OpenAIChatModel(definition["model"], provider=provider), system_prompt=definition["instructions"])

    @agent.tool_plain
    def look_up(n: int) -> dict[str, int | str]:
        "Looks a customer up."
        return dict(agent_tools.look_up(n=n))

    async def loop() -> int:
        return (await agent.run(GIVEN["message"])).usage.requests

    return loop


def in_memory(model: Model, definition: Mapping[str, Any]) -> Loop:
    """The product's loop of an agent, which keeps nothing and pays nothing."""
    node = AgentNode.model_validate(NODE)
    plan = Plan.of(Definition.model_validate({"name": "bench", "nodes": [NODE], "connections": []}))
    tools = ToolRegistry()
    tools.load("benchmarks.agent_tools")

    async def loop() -> int:
        journal = _Memory(model, definition)
        tooling = Tooling(calls=cast(Any, None), http=cast(Any, None), tools=tools, agents=cast(Any, journal))
        turns = Turns(Attempt(_step(), plan, tooling, []), cast(Any, journal), node, GIVEN)
        outcome = await turns.run(await turns.begin())
        if outcome.kind != "succeeded":
            raise BenchmarkError(f"a run without durability did not end: {outcome}")
        return int(outcome.fields["output"]["turns"])

    return loop


async def functions_of(definition: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools of a request as the product describes them to the model."""
    tools = ToolRegistry()
    tools.load("benchmarks.agent_tools")
    tooling = Tooling(calls=cast(Any, None), http=cast(Any, None), tools=tools)
    plan = Plan.of(Definition.model_validate({"name": "bench", "nodes": [NODE], "connections": []}))
    known = await described(Attempt(_step(), plan, tooling, []), AgentDefinition.model_validate(definition))
    return [{"type": "function", "function": {"name": name, **one}} for name, one in known.items()]


def _step() -> Step:
    made = {name: str(uuid4()) for name in ("tenant_id", "execution_id", "workflow_id", "user_id")}
    return Step.from_json(made | {"lease": 1, "attempt": 1, "version": 1, "node": "agent", "input": GIVEN})


class _Memory:
    """A `Journal` of one run, in a list."""

    def __init__(self, model: Model, definition: Mapping[str, Any]) -> None:
        self._model = model
        speaker = {"agent_id": str(uuid4()), "slug": "bench", "version": 1, "definition": definition, "others": {}}
        self._view: dict[str, Any] = {
            "run_id": str(uuid4()),
            "root_run_id": str(uuid4()),
            "turns": 0,
            "input": GIVEN,
            "chat": None,
            "output_schema": None,
            "model": definition["model"],
            "budget": {"notified": False},
            "engine": None,
            "left_s": 3600,
            "speaker": speaker,
            "steps": [],
        }

    async def begin(self, *_: Any) -> dict[str, Any]:
        return self._copy()

    async def chat(
        self, step: Step, run_id: str, body: Mapping[str, Any], calls: Any, before: Any = None, *, wrap_up: bool
    ) -> ModelAnswer:
        if before is not None and not before.kept:
            self._view["steps"][before.n - 1] |= {"status": before.status, "result": before.result}
            before.kept = True
        answer = await self._model.ask(body)
        used = answer["usage"]
        text = answer["choices"][0]["message"].get("content") or ""
        return ModelAnswer(text, answer, Usage(used["prompt_tokens"], used["completion_tokens"]), False)

    async def record_turn(
        self, step: Step, turn: int, calls: Any, answer: Mapping[str, Any], *, wrap_up: bool
    ) -> dict[str, Any]:
        self._view["turns"] = turn
        self._keep(turn, "model", "done", result=answer)
        for call in answer["calls"]:
            self._keep(turn, "tool", "open", call_id=call["id"], name=call["name"], arguments=call["arguments"])
        new = [dict(step) for step in self._view["steps"] if step["turn"] == turn]
        return {"turns": turn, "steps": new, "stop": None}

    async def record_call(self, step: Step, n: int, status: str, result: Any) -> dict[str, Any]:
        self._view["steps"][n - 1] |= {"status": status, "result": result}
        return dict(self._view["steps"][n - 1])

    def _copy(self) -> dict[str, Any]:
        """As it stands now; what is done later is not in it."""
        return {**self._view, "steps": [dict(step) for step in self._view["steps"]]}

    def _keep(self, turn: int, kind: str, status: str, **more: Any) -> None:
        steps = self._view["steps"]
        nothing = dict.fromkeys(("name", "call_id", "arguments", "approval", "result", "child_run_id"))
        steps.append(
            {"n": len(steps) + 1, "turn": turn, "kind": kind, "agent": "bench", "status": status, **nothing, **more}
        )
