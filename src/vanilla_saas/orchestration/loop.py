"""The agent loop: reads the journal, does what is open, asks the model again, until there is an answer or a stop.

Everything that has an effect is in the journal when the next thing begins. So whoever takes the step after a death does
nothing twice but what was in flight: at most one model call, which is then charged once, or one tool call, which has
the same idempotency key.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.orchestration import conversation, tools
from vanilla_saas.orchestration.conversation import WRAP_UP, Run
from vanilla_saas.orchestration.definition import AgentTool
from vanilla_saas.orchestration.journal import Journal
from vanilla_saas.providers.adapters import UpstreamError
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.providers.step_metering import ModelAnswer
from vanilla_saas.workflows.execution.attempt import Attempt, of_call
from vanilla_saas.workflows.execution.failures import Failure, of_refusal, said
from vanilla_saas.workflows.execution.steps import Outcome, waiting
from vanilla_saas.workflows.execution.waits import asked_of_people
from vanilla_saas.workflows.nodes import Agent

STOPPED: Mapping[str, str] = {
    "max_turns": "It has had all of its turns and has no answer.",
    "max_tool_calls": "It has made all of its tool calls and wants more.",
    "max_depth": "It wanted to delegate deeper than it may.",
    "max_children": "Its tree has started all the agents that it may and wants more.",
    "budget_exhausted": "Its budget is used up.",
    "deadline": "Its time is over.",
    "loop_detected": "It wanted the same call again that has had the same answer each time.",
    "cycle_refused": "It wanted to turn to an agent that it came from.",
}


async def run(attempt: Attempt, node: Agent) -> Outcome:
    """`{text, json, agent, run_id, turns, stop_reason}`: `json` null without an output schema."""
    journal = attempt.tooling.agents
    if journal is None:
        raise Failure("not_available", "This process runs no agents.", {"kind": "agent"})
    given = await attempt.compute_object("input", node.input)
    return await _Turns(attempt, journal, node, given).run()


class _Turns:
    def __init__(self, attempt: Attempt, journal: Journal, node: Agent, given: Mapping[str, Any]) -> None:
        self.attempt, self.journal, self.node, self.given = attempt, journal, node, given

    async def run(self) -> Outcome:
        while True:
            state = await self._begin()
            if (asked := await self._tools(state)) is not None:
                return asked
            if state.open_calls("delegate"):
                return waiting({"kind": "agents"})
            if state.open_calls("tool"):  # what they gave is read from the journal
                continue
            corrections = await self._corrections(state)
            answer = state.answer()
            if answer is not None and state.steps[-1]["n"] not in corrections:
                return self._answered(state, answer, "done")
            stop, state = await self._turn(state, corrections)
            if stop == "budget_exhausted":
                return await self._wrap_up(state, corrections)
            if stop is not None:
                raise _stopped(stop)

    async def _begin(self) -> Run:
        try:
            return Run(await self.journal.begin(self.attempt.step, self.node.ref, self.given))
        except VanillaError as error:
            raise of_refusal(error) from None

    async def _tools(self, state: Run) -> Outcome | None:
        """Makes the calls that are open; an outcome when people have to be asked first."""
        known = tools.by_called_name(state.definition)
        for step in state.open_calls("tool"):
            tool = known.get(step["name"])
            if tool is None:
                await self._record(step, "failed", {"error": f"There is no tool {step['name']}."})
                continue
            if tool.approval is not None:
                approval = step["approval"] or await self._decision(step)
                if approval is None:
                    return self._ask(state, step, tool)
                if approval["decision"] != "approved":
                    words = f": {approval['comment']}" if approval.get("comment") else "."
                    await self._record(step, "failed", {"error": f"The call was {approval['decision']}{words}"})
                    continue
            try:
                await self._record(step, "done", await tools.call(self.attempt, state.run_id, step, tool))
            except Failure as failure:
                if failure.retryable or failure.code in ("timeout", "provider_error", "rate_limited"):
                    raise
                await self._record(step, "failed", {"error": failure.message, "code": failure.code})
        return None

    async def _decision(self, step: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What people said to this call, when they were asked for it."""
        asked, said_ = self.attempt.step.state, self.attempt.step.decision
        if said_ is None or not isinstance(asked, dict) or asked.get("n") != step["n"]:
            return None
        await self._record(step, "approval", dict(said_))
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

    async def _record(self, step: Mapping[str, Any], status: str, result: Any) -> None:
        try:
            await self.journal.record_call(self.attempt.step, step["n"], status, result)
        except VanillaError as error:
            raise of_refusal(error) from None

    async def _corrections(self, state: Run) -> dict[int, str]:
        """What is wrong with answers that must be of a schema, by their place in the journal."""
        schema = state.definition.output
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
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return "Your answer is no JSON. Answer with JSON of the schema and nothing else."
        wrong = await self.attempt.mismatches("output", schema, value)
        return f"Your answer {said(wrong)}. Answer again." if wrong else None

    async def _turn(self, state: Run, corrections: Mapping[int, str]) -> tuple[str | None, Run]:
        """One model call and its record; why the run must stop, and the run then."""
        body = await self._body(state, corrections)
        body_tools = conversation.functions(state, await tools.described(self.attempt, state.definition))
        if body_tools:
            body["tools"] = body_tools
        try:
            answer = await self._chat(state, body)
        except VanillaError as error:
            if (stop := error.detail.get("stop_reason")) is None:
                raise of_refusal(error) from None
            return str(stop), state
        view = await self._record_turn(state, answer)
        return view["stop"], Run(view)

    async def _chat(self, state: Run, body: Mapping[str, Any], *, wrap_up: bool = False) -> ModelAnswer:
        try:
            return await self.journal.chat(self.attempt.step, state.run_id, body, self.attempt.calls, wrap_up=wrap_up)
        except (UpstreamError, InvalidRequest) as error:
            raise of_call(error) from None

    async def _body(self, state: Run, corrections: Mapping[int, str]) -> dict[str, Any]:
        definition = state.definition
        texts = await self.attempt.render({"instructions": definition.instructions}, input=self.given)
        body: dict[str, Any] = {
            "model": definition.model,
            "messages": conversation.messages(state, texts["instructions"], corrections),
        }
        if definition.temperature is not None:
            body["temperature"] = definition.temperature
        if definition.max_output_tokens is not None:
            body["max_completion_tokens"] = definition.max_output_tokens
        if isinstance(definition.output, Mapping):
            form = {"name": "answer", "schema": definition.output}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    async def _record_turn(self, state: Run, answer: ModelAnswer, *, wrap_up: bool = False) -> dict[str, Any]:
        """The call is settled with its record, never by the outcome of the step: without a record it costs nothing."""
        kept = {"text": answer.text, "calls": _calls_of(answer, state.turns + 1)}
        settlement = self.attempt.calls.pop()
        try:
            return await self.journal.record_turn(self.attempt.step, state.turns + 1, settlement, kept, wrap_up=wrap_up)
        except VanillaError as error:
            raise of_refusal(error) from None

    async def _wrap_up(self, state: Run, corrections: Mapping[int, str]) -> Outcome:
        """One turn without tools, paid by what was put by for it."""
        body = await self._body(state, corrections)
        body["messages"].append({"role": "system", "content": WRAP_UP})
        try:
            answer = await self._chat(state, body, wrap_up=True)
        except VanillaError:
            raise _stopped("budget_exhausted") from None
        view = await self._record_turn(state, answer, wrap_up=True)
        return self._answered(Run(view), {"text": answer.text}, "budget_exhausted")

    def _answered(self, state: Run, answer: Mapping[str, Any], stop_reason: str) -> Outcome:
        text, value = answer.get("text") or "", None
        if state.definition.output is not None:
            try:
                value = orjson.loads(text)
            except orjson.JSONDecodeError:  # of a wrap-up: there is no turn to correct it in
                value = None
        found = {"text": text, "json": value, "agent": state.speaker, "run_id": state.run_id, "turns": state.turns}
        # `run`: the database ends the run with the step
        return Outcome("succeeded", {"output": found | {"stop_reason": stop_reason}, "run": state.run_id})


def _stopped(reason: str) -> Failure:
    return Failure(reason, STOPPED.get(reason, "The run was stopped."), {"stop_reason": reason}, retryable=False)


def _calls_of(answer: ModelAnswer, turn: int) -> list[dict[str, Any]]:
    """The calls that a model asked for; arguments that are no JSON object are kept as what they are."""
    found = answer.body.get("choices")
    first = found[0] if isinstance(found, list) and found else {}
    calls = (first.get("message") or {}).get("tool_calls") if isinstance(first, dict) else None
    return [_call(call, turn, number) for number, call in enumerate(calls or ()) if isinstance(call, dict)]


def _call(call: Mapping[str, Any], turn: int, number: int) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        arguments = {"malformed": function.get("arguments")}
    return {
        "id": str(call.get("id") or f"call_{turn}_{number}"),
        "name": str(function.get("name", "")),
        "arguments": arguments if isinstance(arguments, dict) else {"value": arguments},
    }
