"""Gates: the checks of a value, each a score from 0 to 1, and their weighted mean against the threshold.

People are asked last, one check after the other, and not at all when their acceptance could not make the gate pass.
What was found until then waits with the step.
"""

from typing import Any

from vanilla_saas.workflows.checks import Human
from vanilla_saas.workflows.execution.attempt import Attempt
from vanilla_saas.workflows.execution.scores import Score, score
from vanilla_saas.workflows.execution.steps import Outcome, waiting
from vanilla_saas.workflows.execution.waits import asked_of_people
from vanilla_saas.workflows.nodes import Gate

ROUNDING = 1e-9
"""What a weighted mean may lack of the threshold: 0.1 three times is not 0.3 in floating point."""


async def gate(attempt: Attempt, node: Gate) -> Outcome:
    value = await attempt.compute("of", node.of)
    scores: dict[int, Score] = {}
    state = attempt.step.state
    if attempt.step.decision is not None and isinstance(state, dict):
        scores = {int(n): Score.from_json(found) for n, found in state["scores"].items()}
        scores[state["asked"]] = _of_people(attempt.step.decision)
    for n, check in enumerate(node.checks):
        if n not in scores and not isinstance(check, Human):
            scores[n] = await score(attempt, f"checks.{n}", check, value)
    for n, check in enumerate(node.checks):
        if n not in scores and isinstance(check, Human) and _can_pass(node, scores):
            return await _ask(attempt, n, check, value, scores)
    return _judged(node, scores, value)


def _can_pass(node: Gate, scores: dict[int, Score]) -> bool:
    return _mean(node, {n: scores[n].value if n in scores else 1.0 for n in range(len(node.checks))}) >= _needed(node)


def _needed(node: Gate) -> float:
    return node.threshold - ROUNDING


def _mean(node: Gate, values: dict[int, float]) -> float:
    total = sum(check.weight for check in node.checks)
    return sum(check.weight * values.get(n, 0.0) for n, check in enumerate(node.checks)) / total


async def _ask(attempt: Attempt, n: int, check: Human, value: Any, scores: dict[int, Score]) -> Outcome:
    field = f"checks.{n}.title"
    title = (await attempt.render({field: check.title}, value=value))[field]
    asked = asked_of_people(title, value, approvers=check.approvers, quorum=check.quorum, deadline_s=check.deadline_s)
    return waiting(asked, {"asked": n, "scores": {str(n): found.json() for n, found in scores.items()}})


def _of_people(decision: Any) -> Score:
    said = str(decision.get("decision"))
    if said == "approved":
        return Score(1.0, decision.get("comment") or "")
    reason = "Nobody decided in time." if said == "expired" else "It was not accepted."
    return Score(0.0, decision.get("comment") or reason)


def _judged(node: Gate, scores: dict[int, Score], value: Any) -> Outcome:
    mean = _mean(node, {n: found.value for n, found in scores.items()})
    listed = sorted(scores.items())
    return Outcome(
        "gate",
        {
            "passed": mean >= _needed(node),
            "score": min(mean, 1.0),
            "threshold": node.threshold,
            "feedback": "\n".join(found.feedback for _, found in listed if found.value < 1 and found.feedback),
            "suggestions": [one for _, found in listed for one in found.suggestions],
            "metrics": {
                "checks": [
                    {
                        "check": node.checks[n].check,
                        "score": found.value,
                        "weight": node.checks[n].weight,
                        "feedback": found.feedback,
                    }
                    for n, found in listed
                ]
            },
            "value": value,
        },
    )
