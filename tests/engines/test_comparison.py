"""How a comparison goes: so many runs at a time, and after an interruption on from where it was."""

import asyncio
from typing import Any

import pytest

from vanilla_saas.engines.comparison import CaseError, Side, cases_of, compare, percentile, read_cases, sides_of


class Told:
    """Runs that are done as they are told to: `most` is how many were under way at the same time."""

    def __init__(self, breaks_at: int = 0) -> None:
        self.begun: dict[str, Any] = {}
        self.started = self.open = self.most = 0
        self.breaks_at = breaks_at

    async def resolve(self, ref: str) -> dict[str, Any]:
        engine, _, version = ref.partition("@")
        return {"engine_id": "e", "engine": engine, "version": int(version), "denied_reason": None, "source_id": None}

    async def overlay(self, copy_id: str) -> dict[str, Any]:
        return {}

    async def start(self, ref: str, given: dict[str, Any], key: str | None) -> str:
        assert key is not None
        self.started += 1
        if self.started == self.breaks_at:
            raise ConnectionError("it broke off")
        self.begun.setdefault(key, (ref, given))
        return key

    async def ended(self, execution_id: str) -> dict[str, Any]:
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0)
        self.open -= 1
        ref, given = self.begun[execution_id]
        output = given["n"] if ref.endswith("1") else given["of"]
        return {"status": "succeeded", "reason": None, "output": output, "ms": 3, "charged_tokens": 2, "cost_micros": 1,
                "gates": 1, "gates_passed": 1}  # fmt: skip


REFS = ("e@1", "e@2")
CASES = [{"n": n, "of": n if n % 2 else 9} for n in range(20)]


@pytest.mark.parametrize("at_once", [1, 3, 100])
async def test_so_many_run_at_the_same_time(at_once: int) -> None:
    runs, cases = Told(), cases_of(CASES)
    found = await compare(runs, await sides_of(runs, REFS, cases), cases, at_once)
    assert runs.most == min(at_once, 40)
    assert (found["a"]["succeeded"], found["b"]["charged_tokens"], found["equal"]) == (20, 40, 10)


async def test_what_broke_off_goes_on_with_what_it_began() -> None:
    runs, cases = Told(breaks_at=17), cases_of(CASES)
    sides = await sides_of(runs, REFS, cases)
    with pytest.raises(ConnectionError):
        await compare(runs, sides, cases, 3)
    before = dict(runs.begun)
    assert len(before) < 30
    await compare(runs, sides, cases, 3)
    assert len(runs.begun) == 40
    assert runs.begun.items() >= before.items()


async def test_another_version_input_or_name_is_another_run_and_the_same_input_twice_too() -> None:
    runs, cases = Told(), cases_of([{"n": 1}, {"n": 1}, {"n": True}, {"n": 2}])
    sides = [*await sides_of(runs, REFS, cases), (await sides_of(runs, ("e@3", "f@1"), cases))[1]]
    keys = {side.key(case, name) for side in sides for case in cases for name in ("", "x")}
    assert len(keys) == 24
    copies = [Side("my/x", "my/x", engine, version, {"t": t}) for engine in "ef" for version in (1, 2) for t in (1, 2)]
    assert len({copy.key(cases[0], "") for copy in copies}) == 8
    # wherever it stands
    (moved,) = cases_of([{"n": 2}])
    assert sides[0].key(moved, "") == sides[0].key(cases[3], "")


@pytest.mark.parametrize(
    ("equal", "outputs"), [(False, (1, True)), (False, (1, None)), (True, ({"x": 1, "y": 2}, {"y": 2, "x": 1}))]
)
async def test_outputs_are_compared_as_json(equal: bool, outputs: tuple[Any, Any]) -> None:
    runs, cases = Told(), cases_of([{"n": outputs[0], "of": outputs[1]}])
    found = await compare(runs, await sides_of(runs, REFS, cases), cases, 1)
    assert (found["cases"][0]["equal"], found["equal"]) == (equal, int(equal))


def test_a_line_is_a_json_object() -> None:
    assert [(case.line, case.input, case.nth) for case in read_cases('{"a": 1}\r\n\n{"a":1}\n')] == [
        (1, {"a": 1}, 0), (3, {"a": 1}, 1),
    ]  # fmt: skip
    for text in ("", "\n", "[]", '{"a": NaN}', '{"a": 1} {"b": 2}'):
        with pytest.raises(CaseError):
            read_cases(text)
    with pytest.raises(CaseError, match="Line 10001"):
        read_cases("{}\n" * 10_001)


def test_percentiles_are_values_that_were_measured() -> None:
    assert [percentile([1, 2, 3, 4], share) for share in (0.5, 0.95)] == [2, 4]
    assert percentile([7], 0.95) == percentile([7], 0.5) == 7
