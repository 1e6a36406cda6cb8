"""What a run must come to, said once more without a database: turns, limits, guards, stops, and who has the word.

It knows the scripts of all agents, plays them by the rules of docs/design/orchestration.md and never looks at the
product. Budgets of tokens are none of its matter: they are so large here that nobody is stopped by them.
"""

import json
from dataclasses import dataclass, field
from typing import Any

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FITS = '{"n": 1}'
ATTEMPTS = 3
"""Of a step, when what failed may do better."""
TOOLS = ("look_up", "tick", "breaks", "stumble")


@dataclass(frozen=True)
class Wanted:
    """A call that a model asks for: of a tool, or `to` whom it turns."""

    name: str
    to: str | None = None
    argument: str = ""

    def arguments(self) -> dict[str, Any]:
        if self.to is not None:
            return {"message": self.argument} if self.name == "delegate" else {}
        return {"name": self.argument} if self.name == "look_up" else {}

    def called(self, slugs: dict[str, str]) -> str:
        if self.to is None:
            return self.name
        return f"{'transfer' if self.name == 'handoff' else 'delegate'}_to_{slugs[self.to]}"


@dataclass(frozen=True)
class Turn:
    """What a model does: says something, asks for calls, or its provider fails with a status."""

    text: str = ""
    calls: tuple[Wanted, ...] = ()
    status: int | None = None

    def script(self, slugs: dict[str, str]) -> dict[str, Any]:
        if self.status is not None:
            return {"status": self.status}
        if not self.calls:
            return {"reply": self.text}
        calls = [{"name": call.called(slugs), "arguments": call.arguments()} for call in self.calls]
        return {"tool_calls": calls, "reply": self.text}


@dataclass(frozen=True)
class Player:
    """An agent; `handoffs` and `delegates` say of each other agent that it may turn to whether it may again."""

    name: str
    turns: tuple[Turn, ...]
    tools: frozenset[str]
    handoffs: dict[str, bool]
    delegates: dict[str, bool]
    limits: dict[str, int]
    schema: bool

    def definition(self, slugs: dict[str, str]) -> dict[str, Any]:
        script = json.dumps({"turns": [turn.script(slugs) for turn in self.turns]})
        edges = {
            kind: [{"agent": slugs[name], "again": again} for name, again in sorted(getattr(self, kind).items())]
            for kind in ("handoffs", "delegates")
        }
        made = {"instructions": "{% raw %}sandbox: " + script + "{% endraw %}", "model": "sandbox-small"}
        made |= edges | {"tools": sorted(self.tools), "limits": self.limits | {"tokens": 10**12}}
        return made | ({"output": SCHEMA} if self.schema else {})


DEFAULTS = {"turns": 20, "requests": 200, "tool_calls": 100, "children": 20, "depth": 4, "repeats": 3}


@dataclass
class Played:
    """A run as it was played."""

    player: Player
    parent: "Played | None"
    limits: dict[str, int]
    path: list[str]
    speaker: str
    state: str = "working"
    stop: str | None = None
    turns: int = 0
    requests: int = 0
    counted: int = 0
    """Tool calls of it and all below."""
    children: int = 0
    text: str | None = None
    steps: list[list[Any]] = field(default_factory=list)
    """[kind, name, status, result, key]"""
    below: list["Played"] = field(default_factory=list)

    @property
    def root(self) -> "Played":
        return self if self.parent is None else self.parent.root

    def above(self) -> list["Played"]:
        """It and its ancestors."""
        return [self] + ([] if self.parent is None else self.parent.above())

    def seen(self) -> dict[str, Any]:
        """What is compared with the product."""
        return {
            "agent": self.player.name,
            "speaker": self.speaker,
            "end": (self.state, self.stop),
            "turns": self.turns,
            "tool_calls": sum(step[0] == "tool" and step[2] in ("done", "failed") for step in self.steps),
            "text": self.text,
            "steps": [tuple(step[:3]) for step in self.steps],
            "below": [child.seen() for child in self.below],
        }


class Stop(Exception):
    """Ends a run: not well, unless it is `done`."""


class TooLong(Exception):
    """A drawn example would call too many models."""


class Oracle:
    def __init__(self, cast: dict[str, Player], most: int) -> None:
        self.cast, self.most, self.asked, self.ticks = cast, most, 0, 0

    def play(self, name: str, parent: Played | None = None) -> Played:
        player = self.cast[name]
        limits = DEFAULTS | player.limits
        if parent is not None:
            limits["depth"] = min(limits["depth"], parent.limits["depth"] - 1)
            for shared in ("requests", "tool_calls"):
                limits[shared] = min(limits[shared], parent.limits[shared])
        run = Played(player, parent, limits, ([] if parent is None else parent.path) + [name], name)
        if parent is not None:
            parent.below.append(run)
        try:
            while run.text is None:
                self._turn(run)
            run.state, run.stop = "completed", "done"
        except Stop as stop:
            run.state, run.stop = "failed", str(stop)
        return run

    def _turn(self, run: Played) -> None:
        if run.turns >= run.limits["turns"]:
            raise Stop("max_turns")
        speaker = self.cast[run.speaker]
        turn = speaker.turns[min(run.turns, len(speaker.turns) - 1)]
        for _ in range(ATTEMPTS if turn.status == 500 else 1):
            if any(one.requests >= one.limits["requests"] for one in run.above()):
                raise Stop("budget_exhausted")
            for one in run.above():
                one.requests += 1
            self.asked += 1
            if self.asked > self.most:
                raise TooLong
        if turn.status is not None:
            raise Stop("provider_failed" if turn.status == 500 else "failed")
        run.turns += 1
        run.steps.append(["model", None, "done", None, None])
        # a model that is offered nothing to call calls nothing
        wanted = turn.calls if speaker.tools or speaker.handoffs or speaker.delegates else ()
        if not wanted:
            if not speaker.schema or turn.text == FITS:
                run.text = turn.text
            return
        stop = self._look(run, speaker, wanted)
        if stop is not None:
            for step in run.steps:
                if step[2] == "open":
                    step[2] = "refused"
            raise Stop(stop)
        self._work(run, speaker)

    def _look(self, run: Played, speaker: Player, wanted: tuple[Wanted, ...]) -> str | None:
        """Before any call is made: why it must not be."""
        stop = "max_turns" if run.turns >= run.limits["turns"] else None
        for call in wanted:
            edges = {"handoff": speaker.handoffs, "delegate": speaker.delegates}.get(call.name, {})
            kind = call.name if call.to is not None and edges else "tool"
            key = (call.name, call.to, json.dumps(call.arguments(), sort_keys=True))
            known = call.to in edges
            if stop is None and (kind == "tool" or known):
                stop = self._guard(run, kind, call, edges, key)
            status = "open"
            if stop is None and kind != "tool" and not known:
                status = "failed"
            elif stop is None and kind == "handoff":
                assert call.to is not None
                run.path.append(call.to)
            run.steps.append([kind, (call.name, call.to), status, None, key])
        return stop

    def _guard(self, run: Played, kind: str, call: Wanted, edges: dict[str, bool], key: Any) -> str | None:
        if kind != "tool":
            assert call.to is not None
            if call.to in run.path and not edges[call.to]:
                return "cycle_refused"
            if kind == "delegate" and run.limits["depth"] < 1:
                return "max_depth"
        if kind != "handoff":
            before = [step for step in run.steps if step[4] == key and step[2] in ("done", "failed")]
            answers = {json.dumps(step[3], sort_keys=True) for step in before}
            if before and len(answers) == 1 and len(before) + 1 >= run.limits["repeats"]:
                return "loop_detected"
        if kind == "tool":
            if any(one.counted + 1 > one.limits["tool_calls"] for one in run.above()):
                return "max_tool_calls"
            for one in run.above():
                one.counted += 1
        if kind == "delegate":
            if run.root.children >= run.root.limits["children"]:
                return "max_children"
            run.root.children += 1
        return None

    def _of_turn(self, run: Played) -> list[list[Any]]:
        last = max(n for n, step in enumerate(run.steps) if step[0] == "model")
        return run.steps[last + 1 :]

    def _work(self, run: Played, speaker: Player) -> None:
        """The calls that were let through: tools one after the other, the agents that were asked, who has the word."""
        for step in self._of_turn(run):
            if step[0] == "tool":
                name, to = step[1]
                step[2], step[3] = self._tool(name if to is None else "", speaker, step[4])
        for step in self._of_turn(run):
            if step[0] == "delegate" and step[2] == "open":
                child = self.play(step[1][1], run)
                step[2] = "done" if child.state == "completed" else "failed"
                step[3] = [child.state, child.stop, child.text, child.speaker, child.turns]
        for step in self._of_turn(run):
            if step[0] == "handoff" and step[2] == "open":
                step[2], run.speaker = "done", step[1][1]

    def _tool(self, name: str, speaker: Player, key: Any) -> tuple[str, Any]:
        if name not in speaker.tools:
            return "failed", "unknown"
        if name == "tick":
            self.ticks += 1
            return "done", self.ticks
        return ("failed" if name == "breaks" else "done"), key
