"""What holds for every step: an outcome whatever happens, deadlines, cancellation, and calls that are never lost."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest

from tests.providers.provider_support import eventually
from tests.workflows.execution.support import Admissions, done, plan, script, step
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.providers import step_metering
from vanilla_saas.providers.sandbox import SandboxServer
from vanilla_saas.workflows.execution import run
from vanilla_saas.workflows.execution.calls import WorkerCalls
from vanilla_saas.workflows.execution.plan import Plan
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.steps import Step, handed_back
from vanilla_saas.workflows.execution.tooling import Limits, Tooling
from vanilla_saas.workflows.nodes import KINDS

LLM = {"id": "a", "kind": "llm", "model": "sandbox-small", "prompt": "{{ input.say }}"}
SLOW = {"say": script(latency_ms=60_000)}


def test_every_kind_of_node_is_computed() -> None:
    assert set(run.KINDS) == set(KINDS)


def test_a_step_is_read_from_what_the_database_gives() -> None:
    given = {
        "lease": 1, "attempt": 1, "tenant_id": "t", "execution_id": "e", "workflow_id": "w", "version": 3,
        "user_id": "u", "node": "a", "item": 0, "value": None, "round": 2, "timeout_s": None, "state": None,
        "decision": None, "feedback": None, "input": None, "steps": {}, "predecessors": ["b"], "execution": {},
        "of a later release": True,
    }  # fmt: skip
    read = Step.from_json(given)
    assert (read.item, read.value, read.round, read.predecessors) == (0, None, 2, ("b",))


def test_a_plan_is_read_from_what_the_database_gives() -> None:
    nodes = [{"id": "a", "kind": "wait", "seconds": 1}, {"id": "b", "kind": "wait", "seconds": 1}]
    read = Plan.from_json({"definition": {"name": "W", "nodes": nodes, "connections": [{"from": "a", "to": "b"}]}})
    assert list(read.nodes) == ["a", "b"]


async def test_a_node_that_is_not_there_fails(tooling: Tooling) -> None:
    assert (await execute(step("zz"), plan(LLM), tooling)).code == "node_unknown"


async def test_a_mistake_of_ours_is_a_failure(tooling: Tooling, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setitem(run.KINDS, "wait", broken)  # type: ignore[arg-type]
    outcome = await execute(step(), plan({"id": "a", "kind": "wait", "seconds": 1}), tooling)
    assert outcome.code == "internal_error"
    assert (outcome.lease, outcome.attempt) == (7, 2)


async def test_a_call_that_takes_too_long_is_cut_and_told(
    tooling: Tooling, sandbox: SandboxServer, admissions: Admissions
) -> None:
    sandbox.counters.reset()
    outcome = await execute(step(input=SLOW, timeout_s=2), plan(LLM), tooling)
    assert outcome.code == "timeout"
    assert outcome.fields["error"]["retryable"]
    (call,) = outcome.json()["calls"]
    assert (call["status"], call["error_code"], call["input"], call["output"]) == ("cancelled", "step_stopped", 0, 0)
    await eventually(lambda: sandbox.counters.aborted == 1)


async def test_calls_before_a_failure_are_told_with_it(tooling: Tooling) -> None:
    judge = {"check": "judge", "model": "sandbox-small", "prompt": "{{ input.say }}"}
    node = {"id": "a", "kind": "gate", "of": "1", "checks": [judge, {"check": "rule", "rule": "'no score'"}]}
    said = script(reply='{"score": 1, "feedback": "", "suggestions": []}')
    outcome = await execute(step(input={"say": said}), plan(node), tooling)
    assert outcome.code == "expression_type"
    assert [call["status"] for call in outcome.calls] == ["succeeded"]


async def test_calls_of_an_output_that_is_refused_are_told_with_it(tooling: Tooling) -> None:
    strict = replace(tooling, settings=Limits(output_bytes=50))
    outcome = await execute(step(input={"say": "x" * 100}), plan(LLM), strict)
    assert outcome.code == "output_too_large"
    assert [call["status"] for call in outcome.calls] == ["succeeded"]


async def test_who_cancels_a_step_finds_its_calls(tooling: Tooling, sandbox: SandboxServer) -> None:
    sandbox.counters.reset()
    calls: list[dict[str, Any]] = []
    given = step(input=SLOW)
    running = asyncio.create_task(execute(given, plan(LLM), tooling, calls))
    await eventually(lambda: sandbox.counters.chat == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [call["status"] for call in calls] == ["cancelled"]
    assert handed_back(given, calls).json() == {"lease": 7, "attempt": 2, "outcome": "handed_back", "calls": calls}


@pytest.mark.parametrize("refusal", [None, VanillaError("insufficient_tokens", "no")], ids=["admitted", "refused"])
async def test_a_step_that_is_stopped_while_its_call_is_admitted_tells_the_hold(
    tooling: Tooling, admissions: Admissions, sandbox: SandboxServer, refusal: VanillaError | None
) -> None:
    sandbox.counters.reset()
    admissions.delay, admissions.refusal = asyncio.Event(), refusal
    calls: list[dict[str, Any]] = []
    running = asyncio.create_task(execute(step(input={"say": "a"}), plan(LLM), tooling, calls))
    await eventually(lambda: bool(admissions.asked))
    running.cancel()
    admissions.delay.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [(call["status"], call["input"]) for call in calls] == ([] if refusal else [("cancelled", 0)])
    assert sandbox.counters.chat == 0, "nobody waits for the answer any more"


async def test_an_admission_without_end_holds_up_nobody(
    tooling: Tooling, admissions: Admissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_metering, "ADMISSION_S", 0.05)
    admissions.delay = asyncio.Event()
    outcome = await execute(step(input={"say": "a"}, timeout_s=1), plan(LLM), tooling)
    assert (outcome.code, outcome.calls) == ("timeout", ())
    admissions.delay.set()


async def test_a_process_has_so_many_calls_and_no_more(tooling: Tooling, sandbox: SandboxServer) -> None:
    assert isinstance(tooling.calls, WorkerCalls)
    sandbox.counters.reset()
    running = [asyncio.create_task(execute(step(input=SLOW), plan(LLM), tooling)) for _ in range(8)]
    await eventually(lambda: sandbox.counters.chat == 8)
    outcome = await execute(step(input={"say": "a"}), plan(LLM), tooling)
    assert outcome.code == "saturated"
    assert outcome.fields["error"]["retryable"]
    assert outcome.fields["retry_after_s"] == 1
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert (await execute(step(input={"say": "a"}), plan(LLM), tooling)).kind == "succeeded", "places are given back"


async def test_a_text_without_end_does_not_outlast_its_second(tooling: Tooling) -> None:
    node = {"id": "a", "kind": "transform", "value": "input.l.map(a, input.l.map(b, input.l.map(c, a + b + c)))"}
    async with asyncio.timeout(8):
        outcome = await execute(step(input={"l": list(range(130))}), plan(node), tooling)
    assert outcome.code == "expression_timeout"


@pytest.mark.parametrize(
    ("value", "code"),
    [("input.text", None), ("'a\\u0000b'", "output_invalid"), ("input.text + input.text", "expression_too_large")],
)
async def test_an_output_is_json_that_can_be_stored(tooling: Tooling, value: str, code: str | None) -> None:
    given = {"text": "x" * 200_000}
    outcome = await execute(step(input=given), plan({"id": "a", "kind": "transform", "value": value}), tooling)
    assert outcome.code == code


async def test_what_people_would_be_shown_is_bounded_too(tooling: Tooling) -> None:
    strict = replace(tooling, settings=Limits(output_bytes=300))
    node = {"id": "a", "kind": "approval", "title": "t", "approvers": ["role:user"], "of": "steps.b.output"}
    outcome = await execute(step(steps={"b": done("x" * 400)}), plan(node), strict)
    assert outcome.code == "output_too_large"


async def test_a_failure_can_itself_be_stored(tooling: Tooling) -> None:
    definition = plan(LLM, input={"additionalProperties": {"type": "integer"}})
    outcome = await execute(step("$start", input={"x\0": "a"}), definition, tooling)
    assert outcome.code == "input_invalid"
    assert "x: " in outcome.fields["error"]["message"]
    assert b"\\u0000" not in orjson.dumps(outcome.json())
