"""What a benchmark reports: ratios with their targets first, then figures, then the machine."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

TARGETS = Path(__file__).with_name("targets.toml")

Better = Literal["higher", "lower"]
Figure = float | int | str | bool


class BenchmarkError(Exception):
    """The measurement is void: an error under load, wrong books, a ratio without a target."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A value that carries between machines, and what it should be."""

    value: float
    target: float
    better: Better
    met: bool
    provisional: bool
    """The target is ours and may move; the others are promises."""


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one benchmark."""

    name: str
    floor: str
    """The least that could do the work, measured in the same run."""
    ratios: dict[str, Ratio]
    figures: dict[str, Figure]
    machine: dict[str, Figure]
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(name: str, values: Mapping[str, float], targets: Path = TARGETS) -> dict[str, Ratio]:
    """The ratios with their targets. Raises BenchmarkError for a ratio that has none."""
    known = tomllib.loads(targets.read_text()).get(name, {})
    ratios = {}
    for key, value in values.items():
        if key not in known:
            raise BenchmarkError(f"targets.toml has no [{name}.{key}]: a ratio nobody judges is not reported.")
        target, better = known[key]["target"], known[key]["better"]
        value = round(value, 3)
        met = value >= target if better == "higher" else value <= target
        ratios[key] = Ratio(value, target, better, met, known[key].get("provisional", False))
    return ratios


def middle(values: list[float]) -> float:
    """The median: one slice that another process disturbed does not move it."""
    return median(values)


def show(result: Result, console: Console) -> None:
    """The report for people."""
    console.print(f"[bold]{result.name}[/bold]")
    console.print(f"Floor: {result.floor}.", highlight=False)
    table = Table("ratio", "value", "target", "met")
    for key, ratio in result.ratios.items():
        sign = ">=" if ratio.better == "higher" else "<="
        target = f"{sign} {ratio.target:g}" + (" (provisional)" if ratio.provisional else "")
        table.add_row(key, f"{ratio.value:g}", target, "yes" if ratio.met else "[red]no[/red]")
    console.print(table)
    for title, rows in (("figure", result.figures), ("machine", result.machine)):
        table = Table(title, "value")
        for key, value in rows.items():
            table.add_row(key, _text(value))
        console.print(table)
    for note in result.notes:
        console.print(f"- {note}", highlight=False)


def markdown(result: Result) -> str:
    """The tables of docs/benchmarks.md."""
    lines = [f"### {result.name}", "", f"Floor: {result.floor}.", ""]
    lines += ["| ratio | value | target | met |", "|---|---|---|---|"]
    for key, ratio in result.ratios.items():
        sign = "at least" if ratio.better == "higher" else "at most"
        target = f"{sign} {ratio.target:g}" + (", provisional" if ratio.provisional else "")
        lines.append(f"| {key} | {ratio.value:g} | {target} | {'yes' if ratio.met else '**no**'} |")
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {key} | {_text(value)} |" for key, value in result.figures.items()]
    lines += ["", "Machine: " + "; ".join(f"{key} {_text(value)}" for key, value in result.machine.items()) + ".", ""]
    lines += [f"- {note}" for note in result.notes]
    return "\n".join(lines).rstrip() + "\n"


def _text(value: Figure) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value
