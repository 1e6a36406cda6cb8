"""Bars of a gate's judgements: one a day, what passed below what did not. Units are CSS pixels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

BAR, GAP, HEIGHT = 12, 4, 56


@dataclass(frozen=True, slots=True)
class Bar:
    """A day: `x` of the bar, the upper edges and heights of its two parts, and what it says."""

    x: int
    passed_y: float
    passed_height: float
    refused_y: float
    refused_height: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A gate over the days that end with the last one: its bars and its sums."""

    gate: str
    bars: list[Bar]
    judged: int
    passed: int
    average_score: float
    tokens: int
    width: int
    first: date
    last: date
    score: str
    """Path through the average scores of the days, 0 below and 1 above."""
    height: int = HEIGHT


def charts(rows: Iterable[Mapping[str, Any]], today: date, days: int) -> list[Chart]:
    """One for each gate of `gate_statistics`' rows, in their order."""
    by_gate: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_gate.setdefault(row["gate"], []).append(row)
    return [_chart(gate, found, today, days) for gate, found in by_gate.items()]


def _chart(gate: str, rows: list[Mapping[str, Any]], today: date, days: int) -> Chart:
    first = today - timedelta(days=days - 1)
    most = max(row["judged"] for row in rows)
    judged = sum(row["judged"] for row in rows)
    return Chart(
        gate,
        [_bar(row, (row["day"] - first).days, most) for row in rows if row["day"] >= first],
        judged,
        sum(row["passed"] for row in rows),
        sum(row["average_score"] * row["judged"] for row in rows) / judged,
        sum(row["charged_tokens"] for row in rows),
        days * (BAR + GAP) - GAP,
        first,
        today,
        _score([((row["day"] - first).days, row["average_score"]) for row in rows if row["day"] >= first]),
    )


def _score(points: list[tuple[int, float]]) -> str:
    places = [f"{place * (BAR + GAP) + BAR / 2:.0f} {HEIGHT * (1 - score):.1f}" for place, score in points]
    # a line of no length still has its round end: a single day is a dot
    return f"M{places[0]} L{' L'.join(places)}" if places else ""


def _bar(row: Mapping[str, Any], place: int, most: int) -> Bar:
    passed = HEIGHT * row["passed"] / most
    refused = HEIGHT * (row["judged"] - row["passed"]) / most
    return Bar(
        place * (BAR + GAP),
        HEIGHT - passed,
        passed,
        HEIGHT - passed - refused,
        refused,
        f"{row['day']:%-d %B}: {row['passed']} of {row['judged']} passed, average score {row['average_score']:.2f}",
    )
