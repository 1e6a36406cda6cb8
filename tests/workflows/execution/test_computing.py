"""Kinds that compute from what is there, and the two ends of a workflow."""

import pytest

from tests.workflows.execution.conftest import Compute
from tests.workflows.execution.support import done, plan, step
from vanilla_saas.workflows.execution.computing import same
from vanilla_saas.workflows.execution.run import execute
from vanilla_saas.workflows.execution.tooling import Tooling


async def test_a_prompt_gives_its_text(compute: Compute) -> None:
    outcome = await compute({"kind": "prompt", "template": "Hello {{ input.name }}"}, input={"name": "Ada"})
    assert outcome.json() == {"lease": 7, "attempt": 2, "outcome": "succeeded", "output": "Hello Ada"}


async def test_every_name_is_there_in_a_template_and_null_when_there_is_nothing(compute: Compute) -> None:
    template = "{{ [input, execution.id, item, index, value, feedback] }}"
    outcome = await compute({"kind": "prompt", "template": template})
    assert outcome.fields["output"] == '[{},"e1",null,null,null,null]'


async def test_a_step_of_which_nothing_is_known_is_null_and_not_missing(tooling: Tooling) -> None:
    line = plan({"id": "a", "kind": "transform", "value": "1"}, {"id": "b", "kind": "transform", "value": "steps.a"})
    outcome = await execute(step("b"), line, tooling)
    assert outcome.fields["output"] == {"output": None, "status": None, "branch": None, "error": None}


async def test_a_transform_sees_steps_and_feedback(compute: Compute) -> None:
    outcome = await compute(
        {"kind": "transform", "value": "[steps.b.output.n + 1, feedback.attempt]"},
        steps={"b": done({"n": 1})},
        feedback={"attempt": 3},
    )
    assert outcome.fields["output"] == [2, 3]


@pytest.mark.parametrize(
    ("node", "code", "field"),
    [
        ({"kind": "prompt", "template": "{{ input.missing }}"}, "template_undefined", "template"),
        ({"kind": "prompt", "template": "{{ 1 // 0 }}"}, "template_failed", "template"),
        ({"kind": "prompt", "template": "{% for a in range(100000) %}{{ a }}{{ a }}{{ a }}{% endfor %}"},
         "template_too_large", "template"),
        ({"kind": "transform", "value": "input.missing"}, "expression_failed", "value"),
        ({"kind": "transform", "value": "1 + dyn('a')"}, "expression_type", "value"),
        ({"kind": "transform", "value": "1 +"}, "expression_syntax", "value"),
        ({"kind": "condition", "condition": "1"}, "expression_type", "condition"),
        ({"kind": "map", "over": "{}", "item": {"kind": "transform", "value": "item"}}, "expression_type", "over"),
    ],
)  # fmt: skip
async def test_a_text_that_cannot_be_computed_says_which(compute: Compute, node, code: str, field: str) -> None:
    outcome = await compute(node)
    assert outcome.code == code
    assert outcome.fields["error"]["message"].startswith(f"{field}: ")
    assert outcome.fields["error"]["details"]["field"] == field
    assert outcome.fields["error"]["retryable"] is False


@pytest.mark.parametrize(("text", "branch"), [("1 < 2", "true"), ("2 < 1", "false")])
async def test_a_condition_takes_a_branch(compute: Compute, text: str, branch: str) -> None:
    outcome = await compute({"kind": "condition", "condition": text})
    assert outcome.fields == {"output": branch == "true", "branch": branch}


@pytest.mark.parametrize(
    ("value", "branch"),
    [("'red'", "red"), ("1.0", "one"), ("true", "yes"), ("'blue'", "default"), ("{'a': [1]}", "nested"),
     ("null", "nothing")],
)  # fmt: skip
async def test_a_switch_takes_the_case_that_equals(compute: Compute, value: str, branch: str) -> None:
    cases = ["red", {"name": "yes", "equals": True}, {"name": "one", "equals": 1},
             {"name": "nested", "equals": {"a": [1.0]}}, {"name": "nothing", "equals": None}]  # fmt: skip
    outcome = await compute({"kind": "switch", "value": value, "cases": cases})
    assert outcome.fields["branch"] == branch


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [(1, 1.0, True), (1, True, False), (0, False, False), (None, False, False), ([1], [True], False),
     ([1], [1, 2], False), ({"a": 1}, {"a": 1.0}, True), ({"a": 1}, {"b": 1}, False), ("1", 1, False)],
)  # fmt: skip
def test_equality_is_that_of_json(a: object, b: object, equal: bool) -> None:
    assert same(a, b) is equal


MAP = {"kind": "map", "over": "input.list", "max_items": 3, "concurrency": 2}


async def test_a_map_gives_its_items(compute: Compute) -> None:
    node = MAP | {"item": {"kind": "transform", "value": "item"}}
    assert (await compute(node, input={"list": [1, "b"]})).json() == {
        "lease": 7, "attempt": 2, "outcome": "items", "items": [1, "b"], "concurrency": 2,
    }  # fmt: skip
    assert (await compute(node, input={"list": []})).fields["items"] == []
    # how many it takes is the database's to say
    assert (await compute(node, input={"list": [1, 2, 3, 4]})).fields["items"] == [1, 2, 3, 4]


@pytest.mark.parametrize("place", [0, 1])
async def test_an_item_of_a_map_is_computed_with_its_element_and_place(compute: Compute, place: int) -> None:
    node = MAP | {"item": {"kind": "transform", "value": "[item, index]"}}
    outcome = await compute(node, item=place, value="x")
    assert outcome.fields["output"] == ["x", place]


@pytest.mark.parametrize(
    "mode", [{"mode": "all"}, {"mode": "any"}, {"mode": "count", "count": 1}], ids=["all", "any", "count"]
)
async def test_a_join_gives_the_predecessors_that_have_succeeded(compute: Compute, mode) -> None:
    outcome = await compute(
        {"kind": "join", **mode},
        predecessors=["x", "y", "z", "late"],
        steps={"x": done(1), "y": done(None, status="skipped"), "z": done(None), "other": done(5)},
    )
    assert outcome.fields["output"] == {"x": 1, "z": None}


NODE = {"id": "a", "kind": "transform", "value": "1"}
INPUT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def test_the_start_lets_a_right_input_go_with_its_key(tooling: Tooling) -> None:
    keyed = plan(NODE, input=INPUT, concurrency={"key": "'k' + string(input.n)", "limit": 3})
    outcome = await execute(step("$start", input={"n": 5}), keyed, tooling)
    assert outcome.json() == {"lease": 7, "attempt": 2, "outcome": "go", "key": "k5", "limit": 3}


@pytest.mark.parametrize(("key", "text"), [("input.n", "5"), ("{'b': 1, 'a': 2}", '{"a":2,"b":1}'), ("null", None)])
async def test_a_key_is_a_text_or_none(tooling: Tooling, key: str, text: str | None) -> None:
    keyed = plan(NODE, concurrency={"key": key})
    outcome = await execute(step("$start", input={"n": 5}), keyed, tooling)
    assert outcome.fields == {"key": text, "limit": None if text is None else 1}


async def test_without_schema_and_concurrency_any_object_goes(tooling: Tooling) -> None:
    assert (await execute(step("$start"), plan(NODE), tooling)).fields == {"key": None, "limit": None}
    assert (await execute(step("$start", input=[1]), plan(NODE), tooling)).code == "input_invalid"


async def test_the_start_refuses_a_wrong_input_with_its_places(tooling: Tooling) -> None:
    outcome = await execute(step("$start", input={"n": "five"}), plan(NODE, input=INPUT), tooling)
    assert outcome.code == "input_invalid"
    assert [one["path"] for one in outcome.fields["error"]["details"]["mismatches"]] == ["n"]


async def test_a_key_without_end_is_refused(tooling: Tooling) -> None:
    keyed = plan(NODE, concurrency={"key": "input.n"})
    assert (await execute(step("$start", input={"n": "x" * 1001}), keyed, tooling)).code == "expression_too_large"


async def test_the_end_computes_the_output(tooling: Tooling) -> None:
    ended = plan(NODE, output="{'n': steps.a.output, 'of': input.who}")
    outcome = await execute(step("$end", steps={"a": done(4)}, input={"who": "Ada"}), ended, tooling)
    assert outcome.fields == {"output": {"n": 4, "of": "Ada"}}
