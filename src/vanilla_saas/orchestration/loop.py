"""The agent loop: reads the journal, does what is open, asks the model again, until there is an answer or a stop.

Everything that has an effect is in the journal when the next thing begins. So whoever takes the step after a death does
nothing twice but what was in flight: at most one model call, which is then charged once, or one tool call, which has
the same idempotency key. What the last call of a turn gave is written down by the statement that admits the next model
call.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson

from vanilla_saas import tracing
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.orchestration import answers, conversation, tools
from vanilla_saas.orchestration.conversation import WRAP_UP, Run
from vanilla_saas.orchestration.definition import AgentTool
from vanilla_saas.orchestration.journal import Journal, as_kept
from vanilla_saas.orchestration.stops import STOPS
from vanilla_saas.providers.adapters import UpstreamError
from vanilla_saas.providers.engine_chat import PREFIX, input_of, text_of
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.providers.step_metering import ModelAnswer, ToolResult
from vanilla_saas.workflows.execution.attempt import Attempt, of_call
from vanilla_saas.workflows.execution.failures import Failure, of_refusal, said
from vanilla_saas.workflows.execution.models import json_text, response_format
from vanilla_saas.workflows.execution.steps import Outcome, waiting
from vanilla_saas.workflows.execution.waits import asked_of_people
from vanilla_saas.workflows.nodes import Agent


@dataclass(eq=False)
class Stopped(Exception):
    """The run has come to an end within a turn."""

    outcome: Outcome


async def run(attempt: Attempt, node: Agent) -> Outcome:
    """`{text, json, agent, run_id, turns, stop_reason}`: `json` null without an output schema.

    Of a group chat `ended_by` says what ended it: said, manager or rounds.
    """
    journal = attempt.tooling.agents
    if journal is None:
        raise Failure("not_available", "This process runs no agents.", {"kind": "agent"})
    given = await attempt.compute_object("input", node.input)
    turns = Turns(attempt, journal, node, given)
    state = await turns.begin()
    about: tracing.Attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": state.speaker,
        "gen_ai.conversation.id": str(state.view["root_run_id"]),
        "vanilla_saas.run.id": state.run_id,
        "vanilla_saas.step.attempt": attempt.step.attempt,
    }
    with tracing.span(f"invoke_agent {state.speaker}", "internal", about, state.trace):
        try:
            return await turns.run(state)
        except Stopped as stopped:
            return stopped.outcome


async def pydantic_loop(turns: "Turns", state: Run, corrections: Mapping[int, str]) -> Run | Outcome:
    """The loop of pydantic-ai, which is imported when the first run asks for it."""
    try:
        from vanilla_saas.orchestration.pydantic_loop import go_on
    except ImportError:
        message = "This worker has no pydantic-ai; install the extra pydantic-ai."
        raise Failure("not_available", message, {"loop": "pydantic_ai"}) from None
    return await go_on(turns, state, corrections)


class Turns:
    """What every loop does in the same way; `_go_on` is the built-in one."""

    def __init__(self, attempt: Attempt, journal: Journal, node: Agent, given: Mapping[str, Any]) -> None:
        self.attempt, self.journal, self.node, self.given = attempt, journal, node, given
        self._over_at = 0.0
        """When the run's time is over, by the clock of the event loop."""
        self._unkept: ToolResult | None = None
        """What the last call gave, which the model call that comes next keeps."""

    async def run(self, state: Run) -> Outcome:
        try:
            return await self._run(state)
        except Exception:
            with suppress(Failure):
                await self._keep_unkept()
            raise

    async def _run(self, state: Run) -> Outcome:
        while True:
            if state.definition.loop == "pydantic_ai" and state.open_calls("tool"):  # which are its to make
                found = await self._go_on(state, await self._corrections(state))
                if isinstance(found, Outcome):
                    return found
                state = found
                continue
            made = await self.made(state)
            if isinstance(made, Outcome):
                return made
            state = made
            if state.is_behind():
                state = await self.begin()
            if (asked := state.engine_turn()) is not None:
                if asked["status"] == "open" and asked["end"] is None:
                    return waiting({"kind": "agents"})
                state = await self._engine_answered(state, asked)
                continue
            if state.open_calls("delegate") or state.open_calls("contract"):
                return waiting({"kind": "agents"})
            corrections = await self._corrections(state)
            answer = state.answer()
            if answer is not None and state.steps[-1]["n"] not in corrections:
                return self._answered(state, answer, "done")
            found = await self._go_on(state, corrections)
            if isinstance(found, Outcome):
                return found
            state = found

    async def _go_on(self, state: Run, corrections: Mapping[int, str]) -> Run | Outcome:
        """The run after its next turn; an outcome when it has come to an end or waits."""
        if state.definition.engine is not None:
            return await self._ask_engine(state, corrections)
        if state.definition.loop == "pydantic_ai":
            return await pydantic_loop(self, state, corrections)
        body = await self.body(state, corrections)
        if functions := conversation.functions(state, await self.described(state)):
            body["tools"] = functions
        return await self.turn(state, body)

    async def _ask_engine(self, state: Run, corrections: Mapping[int, str]) -> Run:
        """The turn is a run of the engine, which is given the conversation as a chat with it would give it."""
        if state.view["engine"] is None:
            return await self.begin()  # it has just been given the word
        said_ = (await self.body(state, corrections))["messages"]
        found = state.engine
        try:
            chat = {"model": PREFIX + found["engine"], "messages": said_}
            given = input_of(chat, found["engine"], found["input"], found["parameters"])
        except InvalidRequest as error:
            raise of_call(error) from None
        try:
            await self.journal.ask_engine(self.attempt.step, state.turns + 1, given)
        except VanillaError as error:
            if (stop := error.detail.get("stop_reason")) is None:
                raise of_refusal(error) from None
            raise _stopped(stop) from None
        return await self.begin()

    async def _engine_answered(self, state: Run, asked: Mapping[str, Any]) -> Run:
        """The run of the engine has ended: its output is what the turn says. Raises Failure when it has none."""
        end = asked["end"]
        if end is None:
            refused = asked["result"]
            message = f"The engine could not be run: {refused['error']}."
            raise Failure(refused["code"], message, {"engine": asked["name"]}, retryable=False)
        if end["status"] != "succeeded":
            error = end["error"] or {}
            words = f": {error['message']}" if error.get("message") else "."
            message = f"The run of {asked['name']} ended as {end['status']}{words}"
            details = {"engine": asked["name"], "execution_id": end["execution_id"], "error": end["error"]}
            raise Failure(end["code"], message, details, retryable=False)
        return state.after(await self._keep_turn(state, {"text": text_of(end["output"]), "calls": []}, []))

    async def begin(self) -> Run:
        asked_at = asyncio.get_running_loop().time()
        try:
            state = Run(await self.journal.begin(self.attempt.step, self.node.ref, self.given))
        except VanillaError as error:
            raise of_refusal(error) from None
        self._over_at = asked_at + state.view["left_s"]
        return state

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Stops what is awaited within when the run's time is over. Raises Failure then, or when it is already."""
        if self._over_at <= asyncio.get_running_loop().time():
            raise _stopped("deadline")
        try:
            async with asyncio.timeout_at(self._over_at) as deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            raise _stopped("deadline") from None

    async def described(self, state: Run) -> dict[str, dict[str, Any]]:
        """The tools of who has the word, as `tools.described` has them; a server may have to be asked for them."""
        async with self._in_time():
            return await tools.described(self.attempt, state.definition)

    async def made(self, state: Run) -> Run | Outcome:
        """Makes the calls that are open; an outcome when people have to be asked first."""
        for step in state.open_calls("tool"):
            made = await self.make(state, step)
            if isinstance(made, Outcome):
                return made
            state = made
        return state

    async def make(self, state: Run, step: Mapping[str, Any]) -> Run | Outcome:
        """Makes one call and keeps what it gave: the run then; an outcome when people have to be asked first."""
        tool = tools.by_called_name(state.definition).get(step["name"])
        if tool is not None and tool.approval is not None:
            approval = step["approval"] or await self._decision(step)
            if approval is None:
                return self._ask(state, step, tool)
            if approval["decision"] != "approved":
                words = f": {approval['comment']}" if approval.get("comment") else "."
                refused = {"error": f"The call was {approval['decision']}{words}"}
                return state.with_call(await self._record(step["n"], "failed", refused))
        if tool is None:
            made = await self._record(step["n"], "failed", {"error": f"There is no tool {step['name']}."})
        elif tool.tool in tools.OWN:
            with _span(step, tool):
                made = await self._make_own(step)
        else:
            return await self._call(state, step, tool)
        return state.with_call(made)

    async def _call(self, state: Run, step: Mapping[str, Any], tool: AgentTool) -> Run:
        async with self._in_time():
            status, given = await self._tried(state, step, tool)
        with suppress(ValueError, RecursionError):
            after = state.with_call({"n": step["n"], "status": status, "result": as_kept(given)})
            if after.asks_model():
                self._unkept = ToolResult(step["n"], status, given)
                return after
        return state.with_call(await self._record(step["n"], status, given))

    async def _keep_unkept(self) -> None:
        """Writes down what the last call gave, if the admission of a model call has not. Raises Failure."""
        given, self._unkept = self._unkept, None
        if given is not None and not given.kept:
            await self._record(given.n, given.status, given.result)

    async def _tried(self, state: Run, step: Mapping[str, Any], tool: AgentTool) -> tuple[str, Any]:
        """What a call of a tool came to. Raises Failure when another attempt may help; without one it is told too."""
        try:
            with _span(step, tool):
                return "done", await tools.call(self.attempt, state.run_id, step, tool)
        except Failure as failure:
            if failure.retryable or failure.code in ("timeout", "provider_error", "rate_limited"):
                failure.details = {**failure.details, "call": step["n"]}
                raise
            return "failed", {"error": failure.message, "code": failure.code}

    async def _decision(self, step: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What people said to this call, when they were asked for it."""
        asked, said_ = self.attempt.step.state, self.attempt.step.decision
        if said_ is None or not isinstance(asked, dict) or asked.get("n") != step["n"]:
            return None
        await self._record(step["n"], "approval", dict(said_))
        return said_

    def _ask(self, state: Run, step: Mapping[str, Any], tool: AgentTool) -> Outcome:
        assert tool.approval is not None
        if self.attempt.step.item is not None:
            raise Failure("approval_in_map", "Calls of an agent in a map cannot wait for people.", {"tool": tool.tool})
        wanted = tool.approval
        subject = {"agent": state.speaker, "tool": tool.tool, "arguments": step["arguments"], "run_id": state.run_id}
        asked = asked_of_people(
            wanted.title or f"{state.speaker} wants to call {tool.tool}",
            subject,
            approvers=wanted.approvers,
            quorum=wanted.quorum,
            deadline_s=wanted.deadline_s,
        )
        return waiting(asked, {"n": step["n"]})

    async def _record(self, n: int, status: str, result: Any) -> dict[str, Any]:
        try:
            return await self.journal.record_call(self.attempt.step, n, status, result)
        except VanillaError as error:
            raise of_refusal(error) from None

    async def _make_own(self, step: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self.journal.make_call(self.attempt.step, step["n"])
        except VanillaError as error:
            raise of_refusal(error) from None

    async def _corrections(self, state: Run) -> dict[int, str]:
        """What is wrong with answers that must be of a schema, by their place in the journal."""
        schema = state.output
        found: dict[int, str] = {}
        if schema is None:
            return found
        for step in state.steps:
            if step["kind"] != "model" or step["result"].get("calls") or step["agent"] != state.speaker:
                continue
            if (wrong := await self._wrong(step["result"]["text"], schema)) is not None:
                found[step["n"]] = wrong
        return found

    async def _wrong(self, text: str, schema: Mapping[str, Any] | bool) -> str | None:
        try:
            value = orjson.loads(json_text(text))
        except orjson.JSONDecodeError:
            return "Your answer is no JSON. Answer with JSON of the schema and nothing else."
        wrong = await self.attempt.mismatches("output", schema, value)
        return f"Your answer {said(wrong)}. Answer again." if wrong else None

    async def turn(self, state: Run, body: Mapping[str, Any]) -> Run:
        """One model call and its record; the run then. Raises as `ask` and `keep` do."""
        return await self.keep(state, await self.ask(state, body))

    async def ask(self, state: Run, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the model says next, as the journal keeps it. Raises Stopped, with its last answer where it has one."""
        try:
            return answers.kept(await self._chat(state, body), state.turns + 1)
        except VanillaError as error:
            if (stop := error.detail.get("stop_reason")) is None:
                raise of_refusal(error) from None
            if stop == "budget_exhausted":
                raise Stopped(await self._wrap_up(state, body)) from None
            raise _stopped(stop) from None

    async def keep(self, state: Run, kept: Mapping[str, Any]) -> Run:
        """Writes a turn down; the run then. Raises Failure when it may not go on."""
        view = await self._record_turn(state, kept)
        if view["stop"] is not None:
            raise _stopped(view["stop"])
        return state.after(view)

    async def _chat(self, state: Run, body: Mapping[str, Any], *, wrap_up: bool = False) -> ModelAnswer:
        definition = state.definition
        left = [name for name in (definition.model, *definition.fallbacks) if name not in (None, body["model"])]
        while True:
            try:
                async with self._in_time():
                    return await self.journal.chat(
                        self.attempt.step, state.run_id, body, self.attempt.calls, self._unkept, wrap_up=wrap_up
                    )
            except (UpstreamError, InvalidRequest) as error:
                if not left or not isinstance(error, UpstreamError):
                    raise of_call(error) from None
                body = {**body, "model": left.pop(0)}

    async def body(self, state: Run, corrections: Mapping[int, str]) -> dict[str, Any]:
        definition = state.definition
        texts = await self.attempt.render({"instructions": definition.instructions}, input=self.given)
        body: dict[str, Any] = {
            "model": state.view["model"],
            "messages": conversation.messages(state, texts["instructions"], corrections),
        }
        if definition.temperature is not None:
            body["temperature"] = definition.temperature
        if definition.max_output_tokens is not None:
            body["max_completion_tokens"] = definition.max_output_tokens
        if state.output is not None:
            body["response_format"] = response_format(state.output)
        return body

    async def _record_turn(self, state: Run, kept: Mapping[str, Any], *, wrap_up: bool = False) -> dict[str, Any]:
        """The turn's calls are settled with its record, never by the step's outcome: without one they cost nothing."""
        made = list(self.attempt.calls)
        self.attempt.calls.clear()
        return await self._keep_turn(state, kept, made, wrap_up=wrap_up)

    async def _keep_turn(
        self, state: Run, kept: Mapping[str, Any], made: list[dict[str, Any]], *, wrap_up: bool = False
    ) -> dict[str, Any]:
        try:
            return await self.journal.record_turn(self.attempt.step, state.turns + 1, made, kept, wrap_up=wrap_up)
        except VanillaError as error:
            raise of_refusal(error) from None

    async def _wrap_up(self, state: Run, body: Mapping[str, Any]) -> Outcome:
        """One turn without tools, paid by what was put by for it."""
        said_before = [message for message in body["messages"] if message["content"] != conversation.ALMOST]
        asked = {name: value for name, value in body.items() if name != "tools"}
        asked["messages"] = [*said_before, {"role": "system", "content": WRAP_UP}]
        try:
            answer = await self._chat(state, asked, wrap_up=True)
        except VanillaError:
            raise _stopped("budget_exhausted") from None
        view = await self._record_turn(state, answers.kept(answer, state.turns + 1), wrap_up=True)
        return self._answered(state.after(view), {"text": answer.text}, "budget_exhausted")

    def _answered(self, state: Run, answer: Mapping[str, Any], stop_reason: str) -> Outcome:
        text, value = answer.get("text") or "", None
        if state.output is not None:
            try:
                value = orjson.loads(json_text(text))
            except orjson.JSONDecodeError:  # of a wrap-up: there is no turn to correct it in
                value = None
        ended_by = {"ended_by": state.view["chat"]["ended_by"]} if state.phase == "over" else {}
        found = {
            "text": text,
            "json": value,
            "agent": state.speaker,
            "run_id": state.run_id,
            "turns": state.turns,
        } | ended_by
        # `run`: the database ends the run with the step
        return Outcome("succeeded", {"output": found | {"stop_reason": stop_reason}, "run": state.run_id})


def _span(step: Mapping[str, Any], tool: AgentTool) -> AbstractContextManager[Any]:
    about = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool.tool,
        "gen_ai.tool.call.id": step["call_id"],
        "gen_ai.agent.name": step["agent"],
    }
    return tracing.span(f"execute_tool {tool.tool}", "internal", about)


def _stopped(reason: str) -> Failure:
    return Failure(reason, STOPS.get(reason, STOPS["failed"]), {"stop_reason": reason}, retryable=False)
