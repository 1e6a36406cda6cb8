"""A run as the conversation that its model reads, made from the journal alone: the same rows, the same messages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

import orjson

from vanilla_saas.orchestration.definition import AgentDefinition

SHOWN = 65_536
"""Characters of what a tool gave that the model reads."""
TRANSFER, DELEGATE, CONTRACT = "transfer_to_", "delegate_to_", "contract_out"

ALMOST = "You have used most of the budget of this run. Come to an end soon."
BID = "How much do you want to say something now? Answer with a number from 0 (not at all) to 100, and nothing else."
GO_ON = "You have the word again. Go on."
WRAP_UP = "The budget of this run is used up. Answer now with what you have; nothing more can be called."


@dataclass(frozen=True)
class Run:
    """What `vanilla.run_view` gives."""

    view: Mapping[str, Any]

    def after(self, turn: Mapping[str, Any]) -> "Run":
        """With what `vanilla.record_turn` gave: the whole view, or what the turn changed of it."""
        if "speaker" in turn:
            return Run(turn)
        return self.changed({**turn, "steps": [*self.view["steps"], *turn["steps"]]})

    def with_call(self, call: Mapping[str, Any]) -> "Run":
        """With what a call came to, as the journal has it now."""
        return self.changed(
            {"steps": [{**step, **call} if step["n"] == call["n"] else step for step in self.view["steps"]]}
        )

    def changed(self, view: Mapping[str, Any]) -> "Run":
        """The run of the same speaker with other parts of its view."""
        run = Run({**self.view, **view})
        run.__dict__["definition"] = self.definition  # read once: it is the speaker's, who is the same
        return run

    @property
    def run_id(self) -> str:
        return str(self.view["run_id"])

    @property
    def trace(self) -> dict[str, str]:
        """The trace of the whole tree, whichever worker goes on with it: made of the ids of its root and this run."""
        return {"traceparent": f"00-{UUID(self.view['root_run_id']).hex}-{UUID(self.run_id).hex[16:]}-01"}

    @property
    def turns(self) -> int:
        return int(self.view["turns"])

    @property
    def speaker(self) -> str:
        return str(self.view["speaker"]["slug"])

    @cached_property
    def definition(self) -> AgentDefinition:
        return AgentDefinition.model_validate(self.view["speaker"]["definition"])

    @property
    def output(self) -> Any:
        """JSON schema of the answer: of a bid its own, else the agent's."""
        return self.view["output_schema"] or self.definition.output

    @property
    def others(self) -> Mapping[str, str]:
        """Descriptions of the agents that it may turn to, by slug."""
        found: Mapping[str, str] = self.view["speaker"]["others"]
        return found

    @property
    def phase(self) -> str | None:
        """Of a group chat: speak, bid or over."""
        chat = self.view["chat"]
        return None if chat is None else str(chat["phase"])

    @property
    def steps(self) -> list[dict[str, Any]]:
        return list(self.view["steps"])

    @property
    def engine(self) -> Mapping[str, Any]:
        """What the engine of the speaker is in this run: name, version, and what it takes."""
        found: Mapping[str, Any] = self.view["engine"]
        return found

    def engine_turn(self) -> dict[str, Any] | None:
        """A turn that was given to the engine and has no answer yet."""
        last = self.steps[-1] if self.steps else None
        return last if last and last["kind"] in ("model", "bid") and last["status"] != "done" else None

    def open_calls(self, kind: str) -> list[dict[str, Any]]:
        return [step for step in self.steps if step["status"] == "open" and step["kind"] == kind]

    def asks_model(self) -> bool:
        """Nothing is open, and calls were the last thing: the model is asked next."""
        return self.definition.engine is None and all(step["status"] != "open" for step in self.steps)

    def is_behind(self) -> bool:
        """Calls were made whose results only the journal has, or nothing keeps a handover from becoming true."""
        return bool(self.open_calls("tool") or (self.open_calls("handoff") and not self.open_calls("delegate")))

    def answer(self) -> dict[str, Any] | None:
        """The last thing that a model said, when it asked for nothing and nothing follows it."""
        steps = self.steps
        if self.phase in ("speak", "bid"):
            return None
        last = steps[-1] if steps else None
        return last["result"] if last and last["kind"] == "model" and not last["result"].get("calls") else None


def said_by_user(given: Mapping[str, Any]) -> str:
    """`{"message": text}` is the text; any other input is JSON."""
    if set(given) == {"message"} and isinstance(given["message"], str):
        return given["message"]
    return orjson.dumps(given).decode()


def messages(run: Run, instructions: str, corrections: Mapping[int, str]) -> list[dict[str, Any]]:
    """`corrections` are what was wrong with answers of the journal, by `n`."""
    said: list[dict[str, Any]] = [
        {"role": "system", "content": instructions},
        {"role": "user", "content": said_by_user(run.view["input"])},
    ]
    for step in run.steps:
        if step["kind"] == "bid" or (run.phase and step["agent"] != run.speaker and step["kind"] != "model"):
            continue
        if run.phase and step["agent"] != run.speaker:
            if step["result"].get("text"):
                said.append({"role": "user", "content": f"{step['agent']}: {step['result']['text']}"})
        elif step["kind"] == "model":
            said.append(_of_model(step["result"]))
            if step["n"] in corrections:
                said.append({"role": "user", "content": corrections[step["n"]]})
        else:
            said.append({"role": "tool", "tool_call_id": step["call_id"], "content": of_call(step)})
    if run.phase == "bid":
        said.append({"role": "user", "content": BID})
    elif said[-1]["role"] == "assistant":  # of a chat, who has the word twice
        said.append({"role": "user", "content": GO_ON})
    if run.view["budget"]["notified"]:
        said.append({"role": "system", "content": ALMOST})
    return said


def _of_model(answer: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": orjson.dumps(call["arguments"]).decode()},
        }
        for call in answer.get("calls") or ()
    ]
    return {"role": "assistant", "content": answer.get("text") or None} | ({"tool_calls": calls} if calls else {})


def of_call(step: Mapping[str, Any]) -> str:
    """What the model reads of a call that has ended."""
    result = step["result"]
    if step["kind"] == "handoff" and step["status"] == "done":
        return f"The conversation was handed over to {result['agent']}."
    if step["kind"] in ("delegate", "contract") and step["status"] == "done":
        return _text(result["output"].get("json") or result["output"].get("text"))
    return _text(result)


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else orjson.dumps(value).decode())[:SHOWN]


def functions(run: Run, parameters: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools of a request: `parameters` (`description` and `parameters`, by the name a model calls), then agents."""
    return [_function(name, one["description"], one["parameters"]) for name, one in parameters.items()] + list(
        _agents(run)
    )


def _agents(run: Run) -> Iterator[dict[str, Any]]:
    definition = run.definition
    if run.phase == "bid":
        return
    members = definition.chat.members if definition.chat else []
    for edge in [*definition.handoffs, *members]:
        about = run.others.get(edge.slug, "")
        text = f"Hands the conversation over to {edge.slug}, who answers from then on. {about}".strip()
        yield _function(TRANSFER + edge.slug, text, {"type": "object", "properties": {}})
    for edge in definition.delegates:
        about = run.others.get(edge.slug, "")
        text = f"Gives {edge.slug} a task and waits for the answer. {about}".strip()
        message = {"type": "string", "description": "The task, with all that is needed for it."}
        schema = {"type": "object", "properties": {"message": message}, "required": ["message"]}
        yield _function(DELEGATE + edge.slug, text, schema)
    if definition.contract is not None:
        about = "; ".join(f"{edge.slug}: {run.others.get(edge.slug, '')}" for edge in definition.contract.bidders)
        text = f"Puts a task out to bids, gives it to the best one and waits for the work. They can bid: {about}"
        message = {"type": "string", "description": "The task, with all that is needed for it."}
        yield _function(CONTRACT, text, {"type": "object", "properties": {"message": message}, "required": ["message"]})


def _function(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
