"""Kinds that wait, and how they go on when it is over."""

import pytest

from tests.workflows.execution.conftest import Compute
from tests.workflows.execution.support import done

BY = ["00000000-0000-7000-8000-0000000000d1"]


@pytest.mark.parametrize(
    ("fields", "due"),
    [
        ({"seconds": 90}, "2026-03-01T12:01:30+00:00"),
        ({"until": "timestamp('2027-01-01T00:00:00Z')"}, "2027-01-01T00:00:00+00:00"),
        ({"until": "'2027-01-01T00:00:00+02:00'"}, "2027-01-01T00:00:00+02:00"),
    ],
)
async def test_a_wait_is_for_a_moment(compute: Compute, fields, due: str) -> None:
    outcome = await compute({"kind": "wait", **fields})
    assert outcome.fields == {"wait": {"kind": "timer", "due_at": due}}


@pytest.mark.parametrize("until", ["'soon'", "'2027-01-01T00:00:00'", "5", "null", "duration('5s')"])
async def test_a_moment_has_a_zone(compute: Compute, until: str) -> None:
    assert (await compute({"kind": "wait", "until": until})).code == "expression_type"


async def test_a_signal_is_waited_for(compute: Compute) -> None:
    outcome = await compute({"kind": "signal", "signal": "go.now", "timeout_s": 5}, timeout_s=None)
    assert outcome.fields["wait"] == {"kind": "signal", "name": "go.now", "timeout_s": 5, "check": False}
    checked = await compute({"kind": "signal", "signal": "go", "schema": {"type": "object"}})
    assert checked.fields["wait"] == {"kind": "signal", "name": "go", "timeout_s": None, "check": True}


async def test_a_payload_is_checked_when_it_comes_back(compute: Compute) -> None:
    node = {"kind": "signal", "signal": "go", "schema": {"type": "integer"}}
    assert (await compute(node, decision={"payload": 4})).fields == {"output": 4, "branch": "received"}
    refused = await compute(node, decision={"payload": "four"})
    assert refused.code == "schema_mismatch"
    assert "go" in refused.fields["error"]["message"]


async def test_a_null_payload_is_a_payload(compute: Compute) -> None:
    outcome = await compute({"kind": "signal", "signal": "go"}, decision={"payload": None})
    assert outcome.fields["branch"] == "received"


APPROVAL = {
    "kind": "approval",
    "title": "Send {{ value.n }}\n to {{ input.who }}?",
    "prompt": "{{ value }}",
    "approvers": ["role:admin"],
    "of": "steps.b.output",
    "edit": {"type": "object", "required": ["n"]},
}


async def test_an_approval_shows_its_value(compute: Compute) -> None:
    node = APPROVAL | {
        "quorum": 2, "deadline_s": 60, "on_deadline": "escalate", "escalate_to": ["role:user"],
    }  # fmt: skip
    outcome = await compute(node, steps={"b": done({"n": 1})}, input={"who": "Ada"})
    assert outcome.fields["wait"] == {
        "kind": "approval",
        "title": "Send 1 to Ada?",
        "prompt": '{"n":1}',
        "subject": {"n": 1},
        "edit": {"type": "object", "required": ["n"]},
        "approvers": ["role:admin"],
        "quorum": 2,
        "deadline_s": 60,
        "on_deadline": "escalate",
        "escalate_to": ["role:user"],
    }


async def test_an_approval_without_more_has_every_field(compute: Compute) -> None:
    outcome = await compute({"kind": "approval", "title": "x\n x", "approvers": ["role:user"]})
    wait = outcome.fields["wait"]
    assert wait["title"] == "x x"
    assert [name for name, value in wait.items() if value is None] == [
        "subject", "prompt", "edit", "deadline_s", "on_deadline", "escalate_to",
    ]  # fmt: skip


WORKFLOW = {"kind": "workflow", "ref": "other@2", "input": "{'n': input.n}"}


@pytest.mark.parametrize("kind", ["workflow", "engine"])
async def test_another_execution_is_started_and_waited_for(compute: Compute, kind: str) -> None:
    node = WORKFLOW | {"kind": kind}
    outcome = await compute(node, input={"n": 1})
    assert outcome.fields["wait"] == {"kind": "execution", "of": kind, "ref": "other@2", "input": {"n": 1}}
    assert (await compute(node | {"input": "[1]"})).code == "expression_type"
    mapped = {"kind": "map", "over": "[]", "item": {"kind": kind, "ref": "other", "input": "{'n': item}"}}
    assert (await compute(mapped, item=0, value=4)).fields["wait"]["input"] == {"n": 4}


@pytest.mark.parametrize("kind", ["workflow", "engine"])
async def test_its_output_is_the_steps(compute: Compute, kind: str) -> None:
    ended = {"status": "succeeded", "output": {"x": 1}, "error": None, "execution_id": "e2"}
    assert (await compute(WORKFLOW | {"kind": kind}, decision=ended)).fields == {"output": {"x": 1}}


@pytest.mark.parametrize("kind", ["workflow", "engine"])
@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        ("failed", {"code": "timeout", "message": "It was slow."}, "other@2 ended as failed: It was slow."),
        ("cancelled", None, "other@2 ended as cancelled."),
    ],
)
async def test_its_failure_is_the_steps(compute: Compute, kind: str, status: str, error, message: str) -> None:
    ended = {"status": status, "output": None, "error": error, "execution_id": "e2"}
    outcome = await compute(WORKFLOW | {"kind": kind, "retry": {"on": [f"{kind}_failed"]}}, decision=ended)
    assert outcome.code == f"{kind}_failed"
    assert outcome.fields["error"]["message"].endswith(message)
    assert outcome.fields["error"]["details"] == {"execution_id": "e2", "status": status, "error": error}
    assert outcome.fields["error"]["retryable"]


async def test_what_this_release_cannot_run_says_so(compute: Compute) -> None:
    assert (await compute({"kind": "agent", "ref": "x"})).code == "not_available"
    mapped = {"kind": "map", "over": "[]", "item": {"kind": "agent", "ref": "x"}}
    assert (await compute(mapped, item=0, value=1)).code == "not_available"
