"""Two references to engines, run on the same cases: what each run came to, and what that is in all.

A run is begun under a key made of all that it is: the name of the comparison, the engine, its version, a copy's values
and the input. So a comparison that is begun again, after an interruption or with more cases, takes up what it began
before, and one with another version in common takes up the runs of that version.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import orjson

Answer = dict[str, Any]
MOST_CASES = 10_000
SIDES = ("a", "b")


class CaseError(ValueError):
    """A file of cases cannot be read: what is wrong, by line."""


@dataclass(frozen=True, slots=True)
class Case:
    """A line of the file, from 1, and the input that it is; `nth` of the same input, from 0."""

    line: int
    input: Answer
    nth: int = 0


@dataclass(frozen=True, slots=True)
class Side:
    """A reference as it was resolved when the comparison began: what it runs does not change any more."""

    ref: str
    runs: str
    """The reference that pins it: `slug@version`, or the copy."""
    engine_id: str
    version: int
    overlay: Answer

    def key(self, case: Case, name: str) -> str:
        """The idempotency key of a case's run."""
        what = [name, self.runs, self.engine_id, self.version, self.overlay, case.input, case.nth]
        return "compare-" + hashlib.sha256(_same(what)).hexdigest()


class Unfit(Exception):
    """An input that an engine does not take: a case that has failed, as it does where a run finds it out."""


UNFIT: Mapping[str, Any] = {
    "execution_id": None, "status": "failed", "reason": "input_invalid", "output": None, "ms": 0, "charged_tokens": 0,
    "cost_micros": 0, "gates": 0, "gates_passed": 0,
}  # fmt: skip


class Runs(Protocol):
    """How runs are begun and read: by the database's functions, or over HTTP."""

    async def resolve(self, ref: str) -> Answer:
        """What `resolve_engine` says."""

    async def overlay(self, copy_id: str) -> Answer:
        """The values of a copy."""

    async def start(self, ref: str, given: Answer, key: str | None) -> str:
        """The id of the execution. Raises Unfit, and what else refuses it."""

    async def ended(self, execution_id: str) -> Answer:
        """Waits for the end: status, reason, output, ms, charged_tokens, cost_micros, gates, gates_passed."""


def read_cases(text: str) -> list[Case]:
    """A JSON object a line; empty lines count as lines and are no cases. Raises CaseError."""
    found: list[Case] = []
    seen: Counter[bytes] = Counter()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            given = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise CaseError(f"Line {number} is no JSON: {error}.") from None
        if not isinstance(given, dict):
            raise CaseError(f"Line {number} is no JSON object.")
        same = _same(given)
        found.append(Case(number, given, seen[same]))
        seen[same] += 1
        if len(found) > MOST_CASES:
            raise CaseError(f"Line {number} is one case too many: {MOST_CASES:,} at most.")
    if not found:
        raise CaseError("There is no case in it: a case is a line with a JSON object.")
    return found


def cases_of(inputs: Iterable[Mapping[str, Any]]) -> list[Case]:
    """The same of inputs that are no file; `line` is their place from 1. Raises CaseError."""
    return read_cases("\n".join(orjson.dumps(dict(given)).decode() for given in inputs))


async def sides_of(runs: Runs, refs: Sequence[str], cases: Sequence[Case]) -> list[Side]:
    """What the references mean now. Raises what refuses them, CaseError when they mean the same."""
    found = []
    for ref in refs:
        told = await runs.resolve(ref)
        if told["engine_id"] is None or told["denied_reason"]:
            await runs.start(ref, cases[0].input, None)  # the refusal says why
            told = await runs.resolve(ref)  # unless it was permitted meanwhile
        is_copy = ref.startswith("my/")
        overlay = await runs.overlay(str(told["source_id"])) if is_copy else {}
        pinned = ref if is_copy else f"{told['engine']}@{told['version']}"
        found.append(Side(ref, pinned, str(told["engine_id"]), told["version"], overlay))
    if found[0].runs == found[1].runs:
        raise CaseError(f"{refs[0]} and {refs[1]} are both {found[0].runs} now.")
    return found


async def compare(runs: Runs, sides: Sequence[Side], cases: Sequence[Case], at_once: int, name: str = "") -> Answer:
    """Both sides of each case, `at_once` runs at the same time, and what they came to."""
    rows: list[Answer] = [{"line": case.line, "input": case.input} for case in cases]
    waiting = _each(sides, cases, rows)

    async def work() -> None:
        for letter, side, case, row in waiting:
            try:
                execution_id = await runs.start(side.runs, case.input, side.key(case, name))
            except Unfit as refused:
                row[letter] = {**UNFIT, "error": {"code": "input_invalid", "message": str(refused)}}
                continue
            row[letter] = {"execution_id": execution_id, **await runs.ended(execution_id)}

    working = [asyncio.create_task(work()) for _ in range(min(at_once, 2 * len(cases)))]
    try:
        await asyncio.gather(*working)
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    for row in rows:
        both = all(row[letter]["status"] == "succeeded" for letter in SIDES)
        row["equal"] = _same(row["a"]["output"]) == _same(row["b"]["output"]) if both else None
    return {
        **{
            letter: {"ref": side.ref, "runs": side.runs, **_summary([row[letter] for row in rows])}
            for letter, side in zip(SIDES, sides, strict=True)
        },
        "cases": rows,
        "compared": sum(row["equal"] is not None for row in rows),
        "equal": sum(row["equal"] is True for row in rows),
    }


def _each(
    sides: Sequence[Side], cases: Sequence[Case], rows: Sequence[Answer]
) -> Iterator[tuple[str, Side, Case, Answer]]:
    """Both sides of a case beside each other, so that they meet the same load."""
    for case, row in zip(cases, rows, strict=True):
        for letter, side in zip(SIDES, sides, strict=True):
            yield letter, side, case, row


def _summary(ran: Sequence[Answer]) -> Answer:
    took = sorted(run["ms"] for run in ran)
    ends = Counter(run["status"] for run in ran)
    return {
        "succeeded": ends["succeeded"],
        "failed": ends["failed"],
        "cancelled": ends["cancelled"],
        "p50_ms": percentile(took, 0.5),
        "p95_ms": percentile(took, 0.95),
        **{name: sum(run[name] for run in ran) for name in ("charged_tokens", "cost_micros", "gates", "gates_passed")},
    }


def _same(value: Any) -> bytes:
    """The same bytes for the same JSON; unlike Python it knows true from 1."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that so large a share does not exceed, as PostgreSQL's percentile_disc."""
    return ordered[max(ceil(share * len(ordered)) - 1, 0)]
