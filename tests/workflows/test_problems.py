"""Every problem names the node and the field and says what to do, and whatever is given, it is found quickly."""

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workflows.graphs import JSON, definitions
from vanilla_saas.workflows import problems as problems_module
from vanilla_saas.workflows.graph import ancestors
from vanilla_saas.workflows.problems import DefinitionError, Problem, problems, validated

PERSON = "user:00000000-0000-7000-8000-000000000001"


def llm(name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": name, "kind": "llm", "model": "sandbox-small", "prompt": "x", **fields}


def gate(**fields: Any) -> dict[str, Any]:
    return {"id": "g", "kind": "gate", "check": "rule", "rule": "value != ''", "of": "steps.a.output.text", **fields}


def approval(**fields: Any) -> dict[str, Any]:
    return {"id": "p", "kind": "approval", "title": "x", "approvers": ["role:admin"], **fields}


def expression(text: str, name: str = "t") -> dict[str, Any]:
    return {"id": name, "kind": "transform", "value": text}


def mapped(**item: Any) -> dict[str, Any]:
    return {"id": "m", "kind": "map", "over": "input.l", "item": item}


A_G = [{"from": "a", "to": "g"}]
Row = tuple[list[Any], list[Any], dict[str, Any], tuple[str | None, str, str]]
TABLE: dict[str, Row] = {
    # nodes, connections, other fields, (node, field, code)
    "no nodes": ([], [], {}, (None, "nodes", "out_of_range")),
    "no name": ([llm()], [], {"name": None}, (None, "name", "wrong_type")),
    "name too long": ([llm()], [], {"name": "x" * 201}, (None, "name", "out_of_range")),
    "field that is none": ([llm()], [], {"node": 1}, (None, "node", "field_unknown")),
    "priority": ([llm()], [], {"priority": 10}, (None, "priority", "out_of_range")),
    "text for a number": ([llm()], [], {"priority": "3"}, (None, "priority", "wrong_type")),
    "input is no schema": ([llm()], [], {"input": {"type": "foo"}}, (None, "input", "schema_syntax")),
    "input fetches": ([llm()], [], {"input": {"$ref": "http://example.com/s"}}, (None, "input", "schema_syntax")),
    "output syntax": ([llm()], [], {"output": "1 +"}, (None, "output", "expression_syntax")),
    "output names": ([llm()], [], {"output": "foo"}, (None, "output", "name_unknown")),
    "output step": ([llm()], [], {"output": "steps.b.output"}, (None, "output", "step_unknown")),
    "concurrency knows no steps": (
        [llm()], [], {"concurrency": {"key": "steps.a.output"}}, (None, "concurrency.key", "name_unknown"),
    ),
    "concurrency limit": ([llm()], [], {"concurrency": {"key": "1", "limit": 0}}, (None, "concurrency.limit", "out_of_range")),
    "node is no object": ([5], [], {}, (None, "nodes.0", "wrong_type")),
    "node without kind": ([{"id": "a"}], [], {}, ("a", "kind", "field_missing")),
    "node without id": ([{"kind": "wait", "seconds": 1}], [], {}, (None, "nodes.0.id", "field_missing")),
    "id": ([llm("A-b")], [], {}, ("A-b", "id", "wrong_form")),
    "kind": ([{"id": "a", "kind": "llmm"}], [], {}, ("a", "kind", "kind_unknown")),
    "misspelt": ([llm(temprature=1)], [], {}, ("a", "temprature", "field_unknown")),
    "temperature": ([llm(temperature=3)], [], {}, ("a", "temperature", "out_of_range")),
    "bool is no number": ([llm(temperature=True)], [], {}, ("a", "temperature", "wrong_type")),
    "no prompt": ([{"id": "a", "kind": "llm", "model": "m"}], [], {}, ("a", "prompt", "field_missing")),
    "both": ([llm(messages=[{"role": "user", "content": "x"}])], [], {}, ("a", "messages", "fields_exclusive")),
    "role": (
        [{"id": "a", "kind": "llm", "model": "m", "messages": [{"role": "boss", "content": "x"}]}], [], {},
        ("a", "messages.0.role", "value_unknown"),
    ),
    "json_schema": ([llm(json_schema={"pattern": "("})], [], {}, ("a", "json_schema", "schema_syntax")),
    "json_schema is a text": ([llm(json_schema="x")], [], {}, ("a", "json_schema", "wrong_type")),
    "retry": ([llm(retry={"attempts": 0})], [], {}, ("a", "retry.attempts", "out_of_range")),
    "retry on": ([llm(retry={"on": ["Time Out"]})], [], {}, ("a", "retry.on.0", "wrong_form")),
    "retry node is a gate's": ([llm(retry={"node": "a"})], [], {}, ("a", "retry.node", "field_unknown")),
    "timeout": ([llm(timeout_s=0)], [], {}, ("a", "timeout_s", "out_of_range")),
    "template": ([llm(prompt="{{ 1")], [], {}, ("a", "prompt", "template_syntax")),
    "filter": ([llm(prompt="{{ input|nofilter }}")], [], {}, ("a", "prompt", "template_syntax")),
    "include": ([llm(prompt="{% include 'x' %}")], [], {}, ("a", "prompt", "template_syntax")),
    "template name": ([llm(system="{{ foo }}")], [], {}, ("a", "system", "name_unknown")),
    "message": (
        [{"id": "a", "kind": "llm", "model": "m", "messages": [{"role": "user", "content": "{{ x }}"}]}], [], {},
        ("a", "messages.0.content", "name_unknown"),
    ),
    "item outside a map": ([llm(prompt="{{ item }}")], [], {}, ("a", "prompt", "name_unknown")),
    "feedback of nobody": ([llm(prompt="{{ feedback }}")], [], {}, ("a", "prompt", "name_unknown")),
    "value outside a gate": ([expression("value")], [], {}, ("t", "value", "name_unknown")),
    "own outcome": ([llm(prompt="{{ steps.a.output }}")], [], {}, ("a", "prompt", "step_not_upstream")),
    "later outcome": (
        [llm(prompt="{{ steps.b.output }}"), llm("b")], [{"from": "a", "to": "b"}], {},
        ("a", "prompt", "step_not_upstream"),
    ),
    "neighbour's outcome": (
        [llm(), llm("b"), expression("steps.b.output")], [{"from": "a", "to": "t"}], {},
        ("t", "value", "step_not_upstream"),
    ),
    "no such step": ([expression("steps.sumarise.output")], [], {}, ("t", "value", "step_unknown")),
    "output forgotten": (
        [llm(), expression("steps.a.text")], [{"from": "a", "to": "t"}], {}, ("t", "value", "step_field_unknown"),
    ),
    "types": ([expression("'a' + 1")], [], {}, ("t", "value", "expression_type")),
    "function": ([expression("nowhere(1)")], [], {}, ("t", "value", "expression_type")),
    "expression too long": ([expression("'" + "é" * 5000 + "'")], [], {}, ("t", "value", "expression_too_large")),
    "expression too deep": ([expression("(" * 60 + "1" + ")" * 60)], [], {}, ("t", "value", "expression_too_large")),
    "map of gates": ([mapped(kind="gate")], [], {}, ("m", "item.kind", "kind_not_in_map")),
    "map of maps": ([mapped(kind="map", over="item", item={})], [], {}, ("m", "item.kind", "kind_not_in_map")),
    "map of nothing known": ([mapped(kind="magic")], [], {}, ("m", "item.kind", "kind_unknown")),
    "map item": ([mapped(kind="llm", model=3, prompt="x")], [], {}, ("m", "item.model", "wrong_type")),
    "map item is no node": (
        [mapped(kind="transform", value="item", id="x")], [], {}, ("m", "item.id", "field_unknown"),
    ),
    "map item names": ([mapped(kind="transform", value="items")], [], {}, ("m", "item.value", "name_unknown")),
    "map is not its item": (
        [{**mapped(kind="transform", value="item"), "over": "item"}], [], {}, ("m", "over", "name_unknown"),
    ),
    "map too large": ([{**mapped(kind="prompt", template="x"), "max_items": 10_001}], [], {}, ("m", "max_items", "out_of_range")),
    "case twice": (
        [{"id": "s", "kind": "switch", "value": "1", "cases": ["a", "a"]}], [], {}, ("s", "cases", "case_name"),
    ),
    "case default": (
        [{"id": "s", "kind": "switch", "value": "1", "cases": ["default"]}], [], {}, ("s", "cases", "case_name"),
    ),
    "count": ([{"id": "j", "kind": "join", "mode": "count"}], [], {}, ("j", "count", "fields_exclusive")),
    "wait": ([{"id": "w", "kind": "wait"}], [], {}, ("w", "seconds", "field_missing")),
    "wait twice": (
        [{"id": "w", "kind": "wait", "seconds": 1, "until": "input.t"}], [], {}, ("w", "seconds", "fields_exclusive"),
    ),
    "header": (
        [{"id": "h", "kind": "http", "url": "x", "headers": {"a b": "x"}}], [], {}, ("h", "headers.a b", "wrong_form"),
    ),
    "header value": (
        [{"id": "h", "kind": "http", "url": "x", "headers": {"X-A": "{{ 1"}}], [], {}, ("h", "headers.X-A", "template_syntax"),
    ),
    "ref": ([{"id": "e", "kind": "workflow", "ref": "A b"}], [], {}, ("e", "ref", "wrong_form")),
    "alias that no engine has": (
        [{"id": "e", "kind": "engine", "ref": "e@latest"}], [], {}, ("e", "ref", "wrong_form"),
    ),
    "version of a copy": ([{"id": "e", "kind": "engine", "ref": "my/e@2"}], [], {}, ("e", "ref", "wrong_form")),
    "engine of an item": (
        [{"id": "e", "kind": "map", "over": "[]", "item": {"kind": "engine", "ref": "e@0"}}], [], {},
        ("e", "item.ref", "wrong_form"),
    ),
    "approver": ([approval(approvers=["bob"])], [], {}, ("p", "approvers.0", "wrong_form")),
    "escalate to nobody": (
        [approval(deadline_s=5, on_deadline="escalate")], [], {}, ("p", "escalate_to", "fields_exclusive"),
    ),
    "no deadline": ([approval(on_deadline="reject")], [], {}, ("p", "deadline_s", "field_missing")),
    "edit of nothing": ([approval(edit={})], [], {}, ("p", "of", "field_missing")),
    "edit": ([approval(of="1", edit={"type": 3})], [], {}, ("p", "edit", "schema_syntax")),
    "quorum": ([approval(approvers=[PERSON, PERSON], quorum=2)], [], {}, ("p", "quorum", "quorum_too_high")),
    "approval's value without of": ([approval(title="{{ value }}")], [], {}, ("p", "title", "name_unknown")),
    "signal schema": (
        [{"id": "s", "kind": "signal", "signal": "paid", "schema": {"type": 3}}], [], {}, ("s", "schema", "schema_syntax"),
    ),
    "check": ([llm(), gate(check="magic")], A_G, {}, ("g", "check", "check_unknown")),
    "check and checks": ([llm(), gate(checks=[])], A_G, {}, ("g", "check", "fields_exclusive")),
    "regex": (
        [llm(), {"id": "g", "kind": "gate", "check": "regex", "pattern": "(", "of": "'x'"}], A_G, {},
        ("g", "pattern", "regex_syntax"),
    ),
    "of missing": ([llm(), {**gate(), "of": None}], A_G, {}, ("g", "of", "wrong_type")),
    "rule": ([llm(), gate(rule="valeu")], A_G, {}, ("g", "rule", "name_unknown")),
    "of knows no value": ([llm(), gate(of="value")], A_G, {}, ("g", "of", "name_unknown")),
    "threshold": ([llm(), gate(threshold=2)], A_G, {}, ("g", "threshold", "out_of_range")),
    "retry of nobody": ([llm(), gate(on_fail="retry")], A_G, {}, ("g", "retry.node", "field_missing")),
    "retry times": (
        [llm(), gate(on_fail="retry", retry={"node": "a", "times": 11})], A_G, {}, ("g", "retry.times", "out_of_range"),
    ),
    "retry unknown": (
        [llm(), gate(on_fail="retry", retry={"node": "b", "times": 1})], A_G, {}, ("g", "retry.node", "step_unknown"),
    ),
    "retry downstream": (
        [llm(), gate(on_fail="retry", retry={"node": "b", "times": 1}), llm("b")], [*A_G, {"from": "g", "to": "b"}], {},
        ("g", "retry.node", "step_not_upstream"),
    ),
    "retry not asked for": ([llm(), gate(retry={"node": "a", "times": 1})], A_G, {}, ("g", "retry", "fields_exclusive")),
    "branch to nowhere": ([llm(), gate(on_fail="branch")], A_G, {}, ("g", "on_fail", "branch_missing")),
    "branch of a kind without": (
        [llm(), llm("b")], [{"from": "a", "to": "b", "on": "failed"}], {}, ("a", "connections.0.on", "branch_unknown"),
    ),
    "branch of a condition": (
        [{"id": "c", "kind": "condition", "condition": "true"}, llm()], [{"from": "c", "to": "a", "on": "yes"}], {},
        ("c", "connections.0.on", "branch_unknown"),
    ),
    "branch of a switch": (
        [{"id": "s", "kind": "switch", "value": "1", "cases": ["x"]}, llm()], [{"from": "s", "to": "a", "on": "y"}], {},
        ("s", "connections.0.on", "branch_unknown"),
    ),
    "connection to": ([llm()], [{"from": "a"}], {}, (None, "connections.0.to", "field_missing")),
    "connection field": ([llm()], [{"from": "a", "to": "a", "if": 1}], {}, (None, "connections.0.if", "field_unknown")),
    "not JSON": ([llm(prompt=object())], [], {}, (None, "nodes.0.prompt", "not_json")),
    "not for the database": ([llm(prompt="\0")], [], {}, (None, "nodes.0.prompt", "not_json")),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_a_bad_definition_has_the_problem_and_no_other(row: Row) -> None:
    nodes, connections, other, expected = row
    found = problems({"name": "x", "nodes": nodes, "connections": connections, **other})
    assert [(p.node, p.field, p.code) for p in found] == [expected], [str(p) for p in found]
    assert found[0].message[0].isupper()
    assert found[0].message[-1] == "."


def test_checks_of_a_list_are_named_by_their_place() -> None:
    checks = [
        {"check": "length", "min": 3, "max": 1}, {"check": "regex", "pattern": "("}, {"check": "json_schema", "schema": 3},
        {"check": "judge", "model": "m", "prompt": "{{ valeu }}"}, {"check": "similarity", "to": "input.", "model": "m"},
        {"check": "human", "title": "{{ value }}", "approvers": [PERSON], "quorum": 2},
    ]  # fmt: skip
    bare = {name: value for name, value in gate().items() if name not in ("check", "rule")}
    found = problems({"name": "x", "nodes": [llm(), {**bare, "checks": checks}], "connections": A_G})
    assert {(p.field, p.code) for p in found} == {("checks.0.max", "out_of_range"), ("checks.2.schema", "wrong_type")}
    found = problems({"name": "x", "nodes": [llm(), {**bare, "checks": [checks[1], *checks[3:]]}], "connections": A_G})
    assert {(p.field, p.code) for p in found} == {
        ("checks.0.pattern", "regex_syntax"), ("checks.1.prompt", "name_unknown"), ("checks.2.to", "expression_syntax"),
        ("checks.3.quorum", "quorum_too_high"),
    }  # fmt: skip


def test_all_problems_are_told_at_once_also_of_nodes_beside_one_that_cannot_be_read() -> None:
    nodes = [llm(temprature=1), expression("foo"), {"id": "z", "kind": "magic"}]
    found = problems({"name": "x", "nodes": nodes, "connections": [], "output": "bar"})
    assert {(p.node, p.code) for p in found} == {
        ("a", "field_unknown"), ("z", "kind_unknown"), ("t", "name_unknown"), (None, "name_unknown"),
    }  # fmt: skip


def test_a_message_says_what_was_meant() -> None:
    nodes = [llm("summarise", temprature=1), expression("steps.sumarise.output")]
    told = [str(p) for p in problems({"name": "x", "nodes": nodes, "connections": []})]
    assert told == [
        "summarise.temprature: Remove temprature, which is not a field here; did you mean temperature.",
        "t.value: Name a node that is there; sumarise is not, summarise is.",
    ]
    nodes = [llm(), expression("a.output")]
    (problem,) = problems({"name": "x", "nodes": nodes, "connections": [{"from": "a", "to": "t"}]})
    assert problem == Problem("t", "value", "name_unknown", "Write steps.a.output instead of a.")


def test_names_that_have_a_place_are_known_there() -> None:
    nodes = [
        llm(prompt="{{ input }}{% if feedback %}{{ feedback.feedback }}{% endif %}{{ execution.id }}"),
        gate(on_fail="retry", retry={"node": "a", "times": 2}, rule="value != '' && steps.a.status != ''"),
        mapped(kind="llm", model="m", prompt="{{ item }} {{ index }} {{ steps.g.output.score }}"),
        approval(of="steps.m.output", title="{{ value }} of {{ steps.a.output.text }}"),
    ]
    links = [*A_G, {"from": "g", "to": "m", "on": "passed"}, {"from": "m", "to": "p"}]
    assert problems({"name": "x", "nodes": nodes, "connections": links, "output": "steps.p.output"}) == []


def test_graphs_that_the_database_refuses_are_survived_and_not_reported_here() -> None:
    ring = [{"from": "a", "to": "t"}, {"from": "t", "to": "a"}, {"from": "a", "to": "a"}, {"from": "a", "to": "gone"}]
    twice = [llm(), expression("steps.a.output"), expression("steps.t.output")]
    assert problems({"name": "x", "nodes": twice, "connections": ring}) == []


@pytest.mark.parametrize("ref", ["translate", "translate@3", "translate@stable", "translate@canary", "my/copy"])
def test_an_engine_is_named_as_where_it_is_run(ref: str) -> None:
    node = {"kind": "engine", "ref": ref}
    made = {"name": "X", "nodes": [{"id": "e", **node}, {"id": "m", "kind": "map", "over": "[]", "item": node}]}
    assert problems(made) == []


def test_a_definition_with_problems_is_not_validated() -> None:
    document = {"name": "x", "nodes": [llm()], "connections": []}
    assert validated(document).nodes[0].id == "a"
    with pytest.raises(DefinitionError) as refused:
        validated(document | {"output": "foo"})
    assert [p.code for p in refused.value.problems] == ["name_unknown"]


CALM = settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.sampled_from(
    [
        "name",
        "nodes",
        "connections",
        "id",
        "kind",
        "item",
        "checks",
        "check",
        "retry",
        "from",
        "to",
        "on",
        "cases",
        "schema",
    ]
)
VALUES = st.recursive(
    JSON
    | st.sampled_from(
        ["a", "llm", "gate", "map", "switch", "regex", "rule", "steps.a.output", "{{ steps }}", "prompt"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=20,
)


@CALM
@given(VALUES)
def test_no_json_crashes_it_or_takes_long(value: Any) -> None:
    assert problems(value)


@CALM
@given(definitions(most=4), st.data())
def test_a_definition_with_one_value_replaced_never_crashes_it(document: dict[str, Any], data: st.DataObject) -> None:
    """Replaces a value somewhere inside: most of what it meets is still what it expects."""
    target: Any = document
    for _ in range(data.draw(st.integers(0, 5))):
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(target[key], dict | list) and target[key]:
            target = target[key]
            continue
        target[key] = data.draw(VALUES)
        break
    assert all(isinstance(problem, Problem) for problem in problems(document))


def test_a_ring_of_a_thousand_nodes_with_all_connections_takes_no_time() -> None:
    names = [f"n{n}" for n in range(1000)]
    links = [(names[n], names[(n + step) % 1000]) for n in range(1000) for step in (1, 7, 50, 333, 999)]
    began = time.monotonic()
    found = ancestors(names, links)
    assert time.monotonic() - began < 5
    assert all(len(found[name]) == 1000 for name in names)


def test_ancestors_are_those_from_which_there_is_a_way() -> None:
    found = ancestors("abcde", [("a", "b"), ("b", "c"), ("d", "c"), ("c", "x"), ("e", "e")])
    assert found == {"a": frozenset(), "b": {"a"}, "c": {"a", "b", "d"}, "d": frozenset(), "e": {"e"}}


def test_a_thousand_nodes_are_read_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [expression(f"input.x + {n}", f"n{n}") for n in range(1000)]
    links = [{"from": f"n{n}", "to": f"n{n + 1}"} for n in range(999)]
    document = {"name": "x", "nodes": nodes, "connections": links}
    began = time.monotonic()
    assert problems(document) == []
    assert time.monotonic() - began < problems_module.SECONDS
    monkeypatch.setattr(problems_module, "SECONDS", 0)
    assert [p.code for p in problems(document)] == ["check_timeout"]


def test_more_than_a_person_reads_is_not_reported() -> None:
    nodes = [expression("foo", f"n{n}") for n in range(500)]
    assert len(problems({"name": "x", "nodes": nodes, "connections": []})) == problems_module.MAX_PROBLEMS
    large = {"name": "x", "nodes": [llm(prompt="x" * 60_000, name="n")] * 20, "connections": []}
    assert [p.code for p in problems(large)] == ["too_large"]
