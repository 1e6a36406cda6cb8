"""An execution as a tree for a terminal: how each step stands, and what it took."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from vanilla_saas.database.operator import printable

MARKS = {
    "pending": ("·", "dim"),
    "ready": ("·", ""),
    "running": ("▸", "cyan"),
    "waiting": ("◦", "yellow"),
    "succeeded": ("✓", "green"),
    "failed": ("✗", "red"),
    "skipped": ("–", "dim"),
}


def tree(progress: Mapping[str, Any], now: datetime | None = None) -> Table:
    """The execution above, its steps below it; times run on until `now`."""
    now = now or datetime.now(UTC)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    name = progress["workflow"] or progress["workflow_id"]
    table.add_row(
        Text(f"{name} v{progress['version']}", "bold"),
        Text(progress["status"], "bold"),
        _took(progress, now),
        Text(f"{progress['charged_tokens']} tokens"),
        Text(str(progress["id"]), "dim"),
    )
    steps = [step for step in progress["steps"] if not step["node"].startswith("$") or step["status"] == "failed"]
    for n, step in enumerate(steps):
        mark, style = MARKS[step["status"]]
        branch = "└─" if n == len(steps) - 1 else "├─"
        table.add_row(
            Text.assemble((f"{branch} ", "dim"), (f"{mark} ", style), printable(step["node"])),
            Text(status_of(step), style),
            _took(step, now),
            Text(f"{step['charged_tokens']} tokens" if step["charged_tokens"] else ""),
            Text(told(step), "dim"),
        )
    return table


def status_of(step: Mapping[str, Any]) -> str:
    """`waiting for approval`, `running (2)` in the second attempt, else the status."""
    if step["status"] == "waiting":
        return f"waiting for {printable(step['waits_for'] or 'something')}"
    return f"{step['status']} ({step['attempts']})" if step["attempts"] > 1 else str(step["status"])


def told(step: Mapping[str, Any]) -> str:
    """What else is to be said: kind, items, branch, score, round, error."""
    facts = [step["kind"]]
    if step.get("items"):
        facts.append(f"{step['items_done']}/{step['items']} items")
    if step["branch"]:
        facts.append(f"→ {step['branch']}")
    if step.get("score") is not None:
        facts.append(f"score {step['score']:.2f}")
    if step["round"]:
        facts.append(f"round {step['round'] + 1}")
    if step["error"]:
        facts.append(": ".join(filter(None, (step["error"]["code"], step["error"].get("message")))))
    return printable("  ".join(facts))


def _took(timed: Mapping[str, Any], now: datetime) -> Text:
    begin, end = (_moment(timed[name]) for name in ("started_at", "finished_at"))
    if begin is None:
        return Text("")
    return Text(f"{max(((end or now) - begin).total_seconds(), 0):.1f} s", justify="right")


def _moment(value: str | datetime | None) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else value
