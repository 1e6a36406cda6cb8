"""Bars of gates: every judgement is in the picture, and in its place."""

from datetime import date
from typing import Any

from vanilla_saas.workflows.gate_chart import BAR, GAP, HEIGHT, charts

TODAY = date(2026, 11, 27)


def row(day: date, judged: int, passed: int, score: float, gate: str = "check") -> dict[str, Any]:
    return {"gate": gate, "day": day, "judged": judged, "passed": passed, "average_score": score, "charged_tokens": 2}


def test_a_day_is_a_bar_of_what_passed_below_what_was_refused() -> None:
    first, last = row(date(2026, 11, 18), 1, 1, 1.0), row(TODAY, 4, 1, 0.25)
    (chart,) = charts([first, last], TODAY, 10)
    assert (chart.judged, chart.passed, chart.average_score, chart.tokens) == (5, 2, 0.4, 4)
    one, other = chart.bars
    assert (one.x, other.x + BAR) == (0, chart.width)
    assert (one.passed_y, one.passed_height, one.refused_height) == (HEIGHT * 0.75, HEIGHT / 4, 0)
    assert (other.refused_y, other.refused_height, other.passed_height) == (0, HEIGHT * 0.75, HEIGHT / 4)
    assert chart.score == f"M6 0.0 L6 0.0 L{9 * (BAR + GAP) + 6} {HEIGHT * 0.75}"
    assert other.text == "27 November: 1 of 4 passed, average score 0.25"


def test_gates_have_a_chart_each_and_none_has_none() -> None:
    assert [c.gate for c in charts([row(TODAY, 1, 1, 1.0, "a"), row(TODAY, 1, 0, 0.0, "b")], TODAY, 30)] == ["a", "b"]
    assert charts([], TODAY, 30) == []
