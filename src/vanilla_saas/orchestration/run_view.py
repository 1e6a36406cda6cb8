"""A tree of runs for a terminal: who has the word, what each turn asked for, tokens and money."""

from collections.abc import Mapping
from typing import Any

import orjson
from rich.text import Text
from rich.tree import Tree

from vanilla_saas.database.operator import printable

MARKS = {
    "submitted": ("·", "dim"),
    "working": ("▸", "cyan"),
    "input_required": ("◦", "yellow"),
    "auth_required": ("◦", "yellow"),
    "completed": ("✓", "green"),
    "failed": ("✗", "red"),
    "canceled": ("■", "red"),
    "rejected": ("✗", "red"),
    "open": ("▸", "cyan"),
    "done": ("✓", "green"),
    "refused": ("✗", "red"),
}
SHOWN = 80
"""Characters of arguments and answers."""


def tree(found: Mapping[str, Any]) -> Tree:
    """The tree that `run_events.told` gives, the root above."""
    children: dict[Any, list[Mapping[str, Any]]] = {}
    for run in found["runs"]:
        children.setdefault(run["parent_run_id"], []).append(run)
    return _run(children[None][0], {str(run["id"]): run for run in found["runs"]})


def _run(run: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]) -> Tree:
    mark, style = MARKS[run["state"]]
    stop = f" ({run['stop_reason']})" if run["stop_reason"] not in (None, "done") else ""
    made = Tree(
        Text.assemble(
            (f"{mark} ", style), (f"{printable(run['agent'] or '?')} v{run['version']}", "bold"),
            f"  {run['state']}{stop}",
            f"  {run['turns']} turns  {_money(run)}", (f"  {_budget(run['budget'])}", "dim"), (f"  {run['id']}", "dim"),
        )
    )  # fmt: skip
    for step in run["steps"]:
        mark, style = MARKS[step["status"]]
        branch = made.add(Text.assemble((f"{mark} ", style), _step(step), (f"  {_money(step)}", "dim")))
        if step["child_run_id"] is not None and str(step["child_run_id"]) in by_id:
            branch.add(_run(by_id[str(step["child_run_id"])], by_id))
    return made


def _step(step: Mapping[str, Any]) -> str:
    if step["kind"] in ("model", "bid"):
        result = step["result"] or {}
        said = result.get("text") or ", ".join(call["name"] for call in result.get("calls") or ())
        by = f" by {printable(step['name'])}" if step["name"] else ""
        return f"turn {step['turn']}{by}: {_short(said)}"
    waits = "  waits" if step["status"] == "open" else ""
    return printable(f"{step['name']} {_short(orjson.dumps(step['arguments']).decode())}{waits}")


def _money(row: Mapping[str, Any]) -> str:
    return f"{row['charged_tokens']} tokens, ${row['cost_micros'] / 1_000_000:.6f}" if row["charged_tokens"] else ""


def _budget(budget: Mapping[str, Any] | None) -> str:
    if budget is None:
        return ""
    held = budget["held"] + budget["carved"]
    return f"{budget['spent']} spent, {held} held, {budget['left']} left of {budget['tokens']}"


def _short(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
