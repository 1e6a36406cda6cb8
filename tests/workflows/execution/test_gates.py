"""Gates: every check, their mean, and people who are asked last."""

import orjson
import pytest

from tests.providers.provider_support import answering, raw_provider
from tests.workflows.execution.conftest import Compute, Receiver
from tests.workflows.execution.support import Admissions, script
from vanilla_saas.providers.sandbox import SandboxServer
from vanilla_saas.workflows.execution.steps import Outcome

PEOPLE = {"check": "human", "title": "Good, {{ input.who }}?", "approvers": ["role:admin"], "deadline_s": 60}
APPROVED = {"decision": "approved", "comment": "fine", "value": None, "by": ["u1"]}


def gate(*checks: dict, **fields: object) -> dict:
    return {"kind": "gate", "of": "input.value", "checks": list(checks), **fields}


async def judged(compute: Compute, check: dict, value: object) -> tuple[float, str]:
    outcome = await compute(gate(check), input={"value": value})
    assert outcome.kind == "gate", outcome
    assert outcome.fields["value"] == value
    return outcome.fields["score"], outcome.fields["feedback"]


def rule(text: str, **fields: object) -> dict:
    return {"check": "rule", "rule": text, **fields}


@pytest.mark.parametrize(
    ("check", "value", "score"),
    [
        (rule("value == 3"), 3, 1),
        (rule("value == 3"), 4, 0),
        (rule("0.25"), None, 0.25),
        (rule("1"), None, 1),
        ({"check": "regex", "pattern": "b+"}, "abbc", 1),
        ({"check": "regex", "pattern": "^b"}, "abbc", 0),
        ({"check": "regex", "pattern": "b", "found": False}, "abbc", 0),
        ({"check": "regex", "pattern": "b", "found": False}, "ac", 1),
        ({"check": "regex", "pattern": '"a":1'}, {"a": 1}, 1),
        ({"check": "regex", "pattern": "^$"}, None, 1),
        ({"check": "json_schema", "schema": {"type": "object"}}, {"a": 1}, 1),
        ({"check": "json_schema", "schema": {"type": "object"}}, '{"a": 1}', 1),
        ({"check": "json_schema", "schema": {"type": "object"}}, "[]", 0),
        ({"check": "json_schema", "schema": {"type": "object"}}, "none", 0),
        ({"check": "json_schema", "schema": {"type": "string"}}, "none", 1),
        ({"check": "json_schema", "schema": {"type": "string"}}, "12", 1),
        ({"check": "length", "min": 2, "max": 3}, "héé", 1),
        ({"check": "length", "min": 2, "max": 3}, "héél", 0),
        ({"check": "length", "min": 2}, "h", 0),
        ({"check": "length", "unit": "words", "max": 2}, "one  two", 1),
        ({"check": "length", "unit": "words", "max": 2}, "one two three", 0),
        ({"check": "length", "unit": "items", "min": 2}, [1, 2], 1),
        ({"check": "length", "unit": "items", "min": 2}, [1], 0),
        ({"check": "length", "unit": "items", "min": 2}, "ab", 0),
        ({"check": "similarity", "to": "'the same'", "model": "sandbox-embed"}, "the same", 1),
        ({"check": "similarity", "to": "''", "model": "sandbox-embed"}, "", 1),
    ],
)
async def test_a_check_gives_a_score(compute: Compute, check: dict, value: object, score: float) -> None:
    found, feedback = await judged(compute, check, value)
    assert found == pytest.approx(score)
    assert bool(feedback) == (found < 1), "whoever does it again reads why"


async def test_similarity_is_one_call_of_two_texts(
    compute: Compute, sandbox: SandboxServer, admissions: Admissions
) -> None:
    sandbox.counters.reset()
    check = {"check": "similarity", "to": "input.to", "model": "sandbox-embed"}
    outcome = await compute(gate(check), input={"value": "one two three", "to": "one two four"})
    assert 0.3 < outcome.fields["score"] < 0.9
    assert not outcome.fields["passed"]
    assert sandbox.counters.embeddings == 1
    (call,) = outcome.calls
    assert (call["status"], call["input"], call["output"]) == ("succeeded", 7, 0)
    ((*_, prompt, sandbox_prompt, limit, choices, _, streamed, _, _, _, _),) = admissions.asked
    assert prompt > sandbox_prompt == 7
    assert (limit, choices, streamed) == (0, 1, False), "nothing is reserved for an output that there is not"


async def test_an_empty_text_is_sent_as_one_that_providers_take(
    compute: Compute, admissions: Admissions, receiver: Receiver
) -> None:
    admissions.kind, admissions.base_url = "custom", receiver.url  # type: ignore[assignment]
    await compute(gate({"check": "similarity", "to": "' '", "model": "m"}), input={"value": "b"})
    ((_, path, _, body),) = receiver.requests
    assert path == "/embeddings"
    assert orjson.loads(body) == {"model": "m", "input": ["b", "-"]}


@pytest.mark.parametrize(
    "body", [b'{"data": []}', b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}',
             b'{"data": [{"index": 0, "embedding": ["x"]}, {"index": 1, "embedding": ["y"]}]}', b"{}"]
)  # fmt: skip
async def test_vectors_that_cannot_be_compared_fail(compute: Compute, admissions: Admissions, body: bytes) -> None:
    check = {"check": "similarity", "to": "'a'", "model": "m"}
    async with raw_provider(answering(200, body)) as url:
        admissions.kind, admissions.base_url = "custom", url  # type: ignore[assignment]
        outcome = await compute(gate(check), input={"value": "b"})
    assert outcome.code == "provider_error"
    assert len(outcome.calls) == 1


async def test_a_provider_without_embeddings_says_so(compute: Compute, admissions: Admissions) -> None:
    admissions.kind = "anthropic"
    outcome = await compute(gate({"check": "similarity", "to": "'a'", "model": "m"}), input={"value": "b"})
    assert outcome.code == "unsupported_parameter"
    assert "no embeddings" in outcome.fields["error"]["message"]
    assert [call["error_code"] for call in outcome.calls] == ["unsupported_parameter"]


async def test_a_judge_gives_marks_feedback_and_suggestions(compute: Compute) -> None:
    said = '{"score": 0.5, "feedback": "Too long.", "suggestions": ["Cut it.", "Halve it."]}'
    check = {"check": "judge", "model": "sandbox-small", "prompt": "{{ value }}"}
    outcome = await compute(gate(check, threshold=0.5), input={"value": script(reply=said)})
    assert outcome.fields["passed"]
    assert (outcome.fields["score"], outcome.fields["feedback"]) == (0.5, "Too long.")
    assert outcome.fields["suggestions"] == ["Cut it.", "Halve it."]
    assert len(outcome.calls) == 1


@pytest.mark.parametrize("said", ['{"score": 0.6, "feedback": "", "suggestions": []}', '{"score": 1}', "good"])
async def test_a_judge_that_does_not_judge_fails(compute: Compute, said: str) -> None:
    check = {"check": "judge", "model": "sandbox-small", "prompt": "{{ value }}"}
    outcome = await compute(gate(check), input={"value": script(reply=said)})
    assert outcome.code == "schema_mismatch"
    assert len(outcome.calls) == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("'a'", "expression_type"),
        ("2", "expression_type"),
        ("-0.1", "expression_type"),
        ("value.x.y", "expression_failed"),
    ],
)
async def test_a_rule_that_gives_no_score_fails(compute: Compute, text: str, code: str) -> None:
    outcome = await compute(gate(rule(text)), input={"value": {}})
    assert outcome.code == code
    assert "checks.0.rule" in outcome.fields["error"]["message"]


async def test_a_pattern_that_is_none_fails(compute: Compute) -> None:
    outcome = await compute(gate({"check": "regex", "pattern": "("}), input={"value": "a"})
    assert outcome.code == "regex_syntax"


async def test_scores_are_weighed(compute: Compute) -> None:
    checks = (rule("true", weight=3), rule("false", weight=1))
    passed = await compute(gate(*checks, threshold=0.75), input={"value": 1})
    failed = await compute(gate(*checks, threshold=0.76), input={"value": 1})
    assert passed.fields["score"] == failed.fields["score"] == 0.75
    assert (passed.fields["passed"], failed.fields["passed"]) == (True, False)
    assert passed.fields["threshold"] == 0.75
    assert passed.fields["metrics"] == {
        "checks": [
            {"check": "rule", "score": 1.0, "weight": 3, "feedback": ""},
            {"check": "rule", "score": 0.0, "weight": 1, "feedback": "The rule does not hold: false"},
        ]
    }


async def test_rounding_fails_nobody(compute: Compute) -> None:
    checks = (rule("0.3", weight=0.1),) * 3  # their mean is 0.29999999999999993
    assert (await compute(gate(*checks, threshold=0.3), input={"value": 1})).fields["passed"]


async def asked(compute: Compute, node: dict) -> Outcome:
    outcome = await compute(node, input={"value": 3, "who": "Ada"})
    assert outcome.kind == "waiting", outcome
    return outcome


async def test_people_are_asked_with_the_value(compute: Compute) -> None:
    outcome = await asked(compute, gate(PEOPLE))
    assert outcome.fields["wait"] == {
        "kind": "approval", "title": "Good, Ada?", "prompt": None, "subject": 3, "edit": None,
        "approvers": ["role:admin"], "quorum": 1, "deadline_s": 60, "on_deadline": None, "escalate_to": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "passed", "feedback"),
    [
        (APPROVED, True, ""),
        (APPROVED | {"decision": "rejected", "comment": "dull"}, False, "dull"),
        (APPROVED | {"decision": "rejected", "comment": None}, False, "It was not accepted."),
        ({"decision": "expired"}, False, "Nobody decided in time."),
    ],
)
async def test_what_people_decide_is_a_score(compute: Compute, decision: dict, passed: bool, feedback: str) -> None:
    waiting = await asked(compute, gate(PEOPLE))
    given = {"value": 3, "who": "Ada"}
    outcome = await compute(gate(PEOPLE), input=given, state=waiting.fields["state"], decision=decision)
    assert outcome.kind == "gate"
    assert (outcome.fields["passed"], outcome.fields["feedback"]) == (passed, feedback)


async def test_what_was_found_waits_with_the_people_and_is_not_paid_twice(compute: Compute) -> None:
    said = script(reply='{"score": 0.5, "feedback": "So so.", "suggestions": ["More."]}')
    judge = {"check": "judge", "model": "sandbox-small", "prompt": "{{ input.say }}"}
    node = gate(PEOPLE, judge, PEOPLE | {"title": "And you?"}, threshold=0.8)
    given = {"value": 3, "who": "Ada", "say": said}
    first = await compute(node, input=given)
    assert first.fields["wait"]["title"] == "Good, Ada?"
    assert len(first.calls) == 1
    second = await compute(node, input=given, state=first.fields["state"], decision=APPROVED)
    assert second.fields["wait"]["title"] == "And you?"
    last = await compute(node, input=given, state=second.fields["state"], decision=APPROVED)
    assert second.calls == last.calls == ()
    assert last.fields["passed"]
    assert [one["score"] for one in last.fields["metrics"]["checks"]] == [1, 0.5, 1]
    assert last.fields["suggestions"] == ["More."]


async def test_nobody_is_asked_about_what_fails_anyway(compute: Compute) -> None:
    node = gate(PEOPLE, rule("false"), threshold=0.6)
    outcome = await compute(node, input={"value": 3, "who": "Ada"})
    assert outcome.kind == "gate"
    assert not outcome.fields["passed"]
    assert [one["check"] for one in outcome.fields["metrics"]["checks"]] == ["rule"]
    assert (await compute(node | {"threshold": 0.5}, input={"value": 3, "who": "Ada"})).kind == "waiting"
