"""What the page of a run shows: the tree nested, its budgets as bars, and why it stopped in words."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson

from vanilla_saas.workflows.run_view import shown, took

BAR = 300
"""Width of a budget's bar."""
STOPS = {
    "done": "It answered.",
    "budget_exhausted": "Its budget is used up.",
    "max_turns": "It has had all the turns that its limits allow.",
    "max_tool_calls": "It wanted more calls of tools than its limits allow.",
    "max_children": "It wanted to start more runs than its limits allow.",
    "max_depth": "It wanted to delegate deeper than its limits allow.",
    "deadline": "Its time is over.",
    "loop_detected": "It made a call again that had had the same answer each time.",
    "cycle_refused": "It wanted to turn to an agent that it came from.",
    "provider_failed": "The model did not answer, also when it was tried again.",
    "canceled": "Somebody ended it.",
    "failed": "It failed.",
}
WAITS = {
    "submitted": "It waits for a worker.",
    "working": "It is at work.",
    "input_required": "It waits for people to agree.",
    "auth_required": "It waits for somebody to sign in.",
}
Node = dict[str, Any]


def nodes(runs: list[Mapping[str, Any]], asked: UUID) -> list[Node]:
    """The roots of the tree; `children` of a step is the run that it started, `loose` are those that no step names."""
    made = {str(run["id"]): _node(run, asked) for run in runs}
    started = set()
    for node in made.values():
        for step in node["steps"]:
            child = made.get(str(step["child_run_id"]))
            if child is not None and child is not node:
                step["child"] = child
                started.add(str(child["id"]))
    for key, node in made.items():
        parent = made.get(str(node["parent_run_id"]))
        if parent is not None and key not in started:
            parent["loose"].append(node)
    return [node for node in made.values() if str(node["parent_run_id"]) not in made]


def _node(run: Mapping[str, Any], asked: UUID) -> Node:
    return dict(run) | {
        "asked": run["id"] == asked,
        "words": words(run),
        "took": took(run["started_at"], run["finished_at"]),
        "bar": bar(run["budget"]),
        "steps": [_step(step) for step in run["steps"]],
        "loose": [],
    }


def words(run: Mapping[str, Any]) -> str:
    """Why it stopped, or what it does."""
    return STOPS.get(run["stop_reason"]) or WAITS.get(run["state"], "")


def _step(step: Mapping[str, Any]) -> Node:
    result = step["result"]
    return dict(step) | {
        "child": None,
        "said": (result or {}).get("text") or "" if step["kind"] == "model" else "",
        "asks": orjson.dumps(step["arguments"]).decode() if step["arguments"] else "",
        "shown": shown(result) if result is not None and step["kind"] != "model" else None,
    }


def bar(budget: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Parts of a budget from left to right: what each is, its tokens, where it begins and how wide it is."""
    if budget is None:
        return []
    parts, at = [], 0.0
    whole = max(budget["tokens"], sum(budget[name] for name in ("spent", "held", "carved")), 1)
    for name in ("spent", "held", "carved"):
        width = BAR * budget[name] / whole
        parts.append({"name": name, "tokens": budget[name], "x": round(at, 1), "width": round(width, 1)})
        at += width
    return parts
