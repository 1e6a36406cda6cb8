"""What the page of a run shows: steps with their times, the graph with the state of each node, what may be done."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from vanilla_saas.console.drawing import Drawing, draw
from vanilla_saas.formats import elapsed
from vanilla_saas.workflows.run_store import MOST_TEXT

MOST_DRAWN = 200
"""Nodes of a graph that a page draws."""
MARKS = {
    "succeeded": "✓",
    "failed": "✕",
    "running": "▶",
    "waiting": "…",
    "ready": "○",
    "pending": "",
    "skipped": "–",
    "stopped": "■",
}
"""What stands in a node beside its colour."""
RUNNERS = {"$start": "Start", "$end": "End"}
SOURCES = {
    "reference": "by name",
    "copy": "as the default copy",
    "user": "for the user",
    "level": "for the level",
    "tier": "for the tier",
    "tenant": "for the tenant",
    "platform": "for everybody",
    "key": "by a key",
}
"""How the engine of a run was chosen."""
_WAITS = {
    "approval": "an approval",
    "execution": "another run",
    "time": "its time",
    "slot": "its turn",
    "start": "the check of its input",
}


def drawing(definition: Mapping[str, Any] | None) -> Drawing | None:
    """The graph of a definition that has no circle; None when it is too large, or not to be read.

    Between two nodes there is one line, with every branch on which it is taken.
    """
    nodes = (definition or {}).get("nodes") or []
    if definition is None or len(nodes) > MOST_DRAWN:
        return None
    labels: dict[tuple[str, str], list[str]] = {}
    for link in definition.get("connections") or []:
        labels.setdefault((link["from"], link["to"]), []).append(link.get("on") or "")
    edges = [(source, target, " ".join(filter(None, found))) for (source, target), found in labels.items()]
    return draw([node["id"] for node in nodes], edges)


def steps_of(progress: Mapping[str, Any], definition: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The steps as rows. The runner's own two are there only when there is something to say of them."""
    titles = {node["id"]: node.get("name") for node in (definition or {}).get("nodes") or []}
    rows = []
    for step in progress["steps"]:
        if step["node"] in RUNNERS and step["status"] not in ("failed", "waiting", "running"):
            continue
        # what an ended run has left stays as it was, for a restart; nothing is under way
        cut = progress["finished_at"] is not None and step["status"] in ("ready", "running", "waiting")
        status = "stopped" if cut else step["status"]
        rows.append(step | {
            "status": status,
            "title": RUNNERS.get(step["node"]) or titles.get(step["node"]) or step["node"],
            "runner": step["node"] in RUNNERS,
            "took": took(step["started_at"], step["finished_at"]),
            "waits": _waits(step) if status == "waiting" else "",
            "badges": _badges(step),
            "mark": MARKS[status],
        })  # fmt: skip
    return rows


def _waits(step: Mapping[str, Any]) -> str:
    what = step["waits_for"] or ""
    if what.startswith("signal:"):
        return f"for the signal {what.removeprefix('signal:')}"
    return f"for {_WAITS[what]}" if what in _WAITS else ""


def _badges(step: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Short texts in a node, and what each means."""
    found = []
    if step.get("items"):
        found.append((f"{step['items_done']}/{step['items']}", f"{step['items_done']} of {step['items']} items done"))
    if step["attempts"] > 1:
        found.append((f"×{step['attempts']}", f"attempt {step['attempts']}"))
    if step["round"] > 0:
        found.append((f"↻{step['round']}", f"sent back {step['round']} times by a gate"))
    return found


def lines_of(graph: Drawing, steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The edges, each with whether it was taken: `taken`, `closed`, or empty as long as that is not known."""
    by_node = {step["node"]: step for step in steps}
    return [
        {"path": line.path, "labels": line.label.split(), "x": line.x, "y": line.y, "below": line.below}
        | {"state": _edge(by_node.get(line.source), line.label)}
        for line in graph.lines
    ]


def _edge(step: Mapping[str, Any] | None, label: str) -> str:
    if step is None or (step["finished_at"] is None and step["status"] != "skipped"):
        return ""
    named = not label or step["branch"] in label.split()
    return "taken" if step["status"] == "succeeded" and named else "closed"


def took(started: datetime | str | None, finished: datetime | str | None) -> str:
    """How long it was under way; empty while it is."""
    if started is None or finished is None:
        return ""
    return elapsed(_moment(finished) - _moment(started))


def _moment(value: datetime | str) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def acts(progress: Mapping[str, Any], definition: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which buttons a run has: what SQL would refuse anyway is not offered."""
    ended, status = progress["finished_at"] is not None, progress["status"]
    ran = [
        step["node"]
        for step in progress["steps"]
        if step["node"] not in RUNNERS and step["status"] not in ("pending", "skipped")
    ]
    nodes = (definition or {}).get("nodes") or []
    return {
        "cancel": not ended,
        "pause": status == "running",
        "resume": status == "paused" or (status == "failed" and progress["reason"] == "insufficient_tokens"),
        "restart": ran if ended and progress["parent_execution_id"] is None else [],
        "unfinished": status in ("failed", "cancelled"),
        "signal": not ended,
        "signals": list(dict.fromkeys(node["signal"] for node in nodes if node.get("kind") == "signal")),
    }


def shown(value: Any) -> tuple[str, bool]:
    """A value as text of at most MOST_TEXT characters, and whether that is not all of it."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return text[:MOST_TEXT], len(text) > MOST_TEXT
