"""A definition is the same one however it is written, and texts that could mean two things are refused."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings

from tests.workflows.graphs import definitions, load
from vanilla_saas.workflows import documents
from vanilla_saas.workflows.definition import Definition, canonical, dump_yaml, json_schema, plain
from vanilla_saas.workflows.documents import DocumentError
from vanilla_saas.workflows.problems import problems

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

EXAMPLE = """
name: Summarise and check
nodes:
  - id: summarise
    kind: llm
    model: sandbox-small
    prompt: "Summarise {{ input.text }}"
  - id: check
    kind: gate
    check: length
    max: 100
    of: steps.summarise.output.text
    on_fail: branch
  - id: rewrite
    kind: llm
    model: sandbox-small
    prompt: "Shorten {{ steps.summarise.output.text }}"
connections:
  - {from: summarise, to: check}
  - {from: check, to: rewrite, on: failed}
output: "{'summary': steps.summarise.output.text}"
"""


def test_yaml_and_json_of_a_definition_are_the_same() -> None:
    from_yaml = load(EXAMPLE, "yaml")
    from_json = load(json.dumps(documents.parse(EXAMPLE, "yaml"), indent=3), "json")
    assert canonical(from_yaml) == canonical(from_json)
    assert problems(from_yaml) == []


def test_the_example_of_the_page_has_no_problems() -> None:
    page = (Path(__file__).parents[2] / "docs" / "design" / "workflows.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert problems(documents.parse(example, "yaml")) == []


def test_on_is_a_key_and_no_boolean() -> None:
    assert load(EXAMPLE, "yaml").connections[1].on == "failed"


def test_defaults_are_written_out_and_fields_without_a_value_left_out() -> None:
    node = plain(load(EXAMPLE, "yaml"))["nodes"][0]
    retry = {"attempts": 3, "initial_ms": 500, "max_ms": 60000, "on": ["timeout", "provider_error", "rate_limited"]}
    assert node == {
        "id": "summarise", "kind": "llm", "model": "sandbox-small", "prompt": "Summarise {{ input.text }}",
        "retry": retry, "timeout_s": 60, "pool": "default",
    }  # fmt: skip


def test_a_gate_of_one_check_is_a_gate_of_a_list() -> None:
    gate = plain(load(EXAMPLE, "yaml"))["nodes"][1]
    assert gate["checks"] == [{"check": "length", "weight": 1, "unit": "characters", "min": 0, "max": 100}]
    assert (gate["of"], gate["threshold"], "max" in gate) == ("steps.summarise.output.text", 1, False)


def test_numbers_are_the_same_when_the_database_takes_them_for_it() -> None:
    document = documents.parse(EXAMPLE, "yaml")
    forms = []
    for temperature in (1, 1.0, 0.5):
        document["nodes"][0]["temperature"] = temperature
        forms.append(canonical(Definition.model_validate(document)))
    assert forms[0] == forms[1]
    assert forms[0] != forms[2]
    schemas = ({"minimum": 1.0, "maximum": [2.0, 0.5]}, {"maximum": [2, 0.5], "minimum": 1})
    one, other = (canonical(Definition.model_validate(document | {"input": schema})) for schema in schemas)
    assert one == other
    assert b'{"maximum":[2,0.5],"minimum":1}' in one


def test_null_in_a_schema_stays_and_null_of_a_field_is_the_field_left_out() -> None:
    document = documents.parse(EXAMPLE, "yaml")
    left_out = canonical(Definition.model_validate(document))
    assert canonical(Definition.model_validate(document | {"description": None})) == left_out
    schema = {"properties": {"a": {"default": None, "enum": [None, 1]}}}
    kept = Definition.model_validate(document | {"input": schema})
    assert json.loads(canonical(kept))["input"] == schema


def test_null_is_a_value_that_a_case_can_equal() -> None:
    switch = {"id": "s", "kind": "switch", "value": "input.x", "cases": [{"name": "none", "equals": None}, "other"]}
    definition = Definition.model_validate({"name": "x", "nodes": [switch]})
    cases = json.loads(canonical(definition))["nodes"][0]["cases"]
    assert cases == [{"name": "none", "equals": None}, {"name": "other", "equals": "other"}]
    assert load(canonical(definition), "json") == load(dump_yaml(definition), "yaml") == definition


@SLOW
@given(definitions())
def test_every_definition_comes_back_from_each_of_its_texts(document: dict[str, Any]) -> None:
    assert problems(document) == []
    first = Definition.model_validate(document)
    texts = ((canonical(first), "json"), (dump_yaml(first), "yaml"), (documents.dump_yaml(plain(first)), "yaml"))
    for text, form in texts:
        again = load(text, form)  # type: ignore[arg-type]
        assert canonical(again) == canonical(first)
        # canonical bytes sort the keys of what people wrote, YAML keeps their order
        assert form == "json" or dump_yaml(again) == dump_yaml(first)


@pytest.mark.parametrize("character", "\r\x85\u2028\u2029\ufeff\t\u00a0😀")
@pytest.mark.parametrize("text", ["a{}b", "a\n{}b\n", "{}", "\n {}\n\n"])
def test_yaml_keeps_every_character(character: str, text: str) -> None:
    value = {"a": text.format(character), text.format(character): 1}
    assert documents.parse(documents.dump_yaml(value), "yaml") == value


@SLOW
@given(definitions(most=3))
def test_every_definition_is_valid_by_the_published_schema(document: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid(plain(Definition.model_validate(document)))
    assert not VALIDATOR.is_valid(document | {"nodes": [{"id": "a", "kind": "magic"}]})


VALIDATOR = jsonschema_rs.validator_for(json_schema())

REFUSED: list[tuple[str, str, str, int | None]] = [
    # text, format, code, line
    ('{"a": 1, "a": 2}', "json", "document_duplicate_key", None),
    ('{"a": NaN}', "json", "document_value", None),
    ('{"a": -Infinity}', "json", "document_value", None),
    ('{"a": 1e999}', "json", "document_value", None),
    ('{"a": 9007199254740993}', "json", "document_value", None),
    (f'{{"a": {"9" * 5000}}}', "json", "document_value", None),
    ('{"a": "\\u0000"}', "json", "document_value", None),
    ('{"a": "\\ud800"}', "json", "document_value", None),
    ('{"a":', "json", "document_syntax", 1),
    ("[" * 100_000, "json", "document_value", None),
    ("[" * 70 + "]" * 70, "json", "document_value", None),
    ('"' + "x" * (1 << 20) + '"', "json", "document_too_large", None),
    ("a: 1\nb: 2\na: 3\n", "yaml", "document_duplicate_key", 3),
    ("a: {b: 1, b: 2}", "yaml", "document_duplicate_key", 1),
    ("a: .nan", "yaml", "document_value", 1),
    ("a: -.inf", "yaml", "document_value", 1),
    (f"a: {'9' * 5000}", "yaml", "document_value", 1),
    ("a: &x [1]\n", "yaml", "document_syntax", 1),
    ("a: &x [1, 1]\nb: &y [*x, *x]\nc: [*y, *y]\n", "yaml", "document_syntax", 1),
    ("<<: *x\n", "yaml", "document_syntax", 1),
    ("a: !!python/object/apply:os.system [ls]\n", "yaml", "document_syntax", 1),
    ("a: !!int '1'\n", "yaml", "document_syntax", 1),
    ("a: ! 1\n", "yaml", "document_syntax", 1),
    ("a: 1\n---\nb: 2\n", "yaml", "document_syntax", 2),
    ("a: [1\n", "yaml", "document_syntax", 2),
    ("? [a]\n: 1\n", "yaml", "document_value", 1),
    ("a: " + "[" * 70 + "]" * 70, "yaml", "document_value", 1),
    ("a: " + "[" * 100_000, "yaml", "document_syntax", 1),  # the parser's own limit is reached first
    ("a: '\x01'", "yaml", "document_syntax", None),
    ("a: 'x' \x00", "yaml", "document_syntax", None),
]


@pytest.mark.parametrize(("text", "form", "code", "line"), REFUSED)
def test_a_text_that_is_not_plain_data_is_refused(text: str, form: Any, code: str, line: int | None) -> None:
    with pytest.raises(DocumentError) as refused:
        documents.parse(text, form)
    assert (refused.value.code, refused.value.line) == (code, line), refused.value.message


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(DocumentError) as refused:
        documents.parse(b"a: \xff", "yaml")
    assert refused.value.code == "document_encoding"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("2024-01-01", "2024-01-01"), ("012", "012"), ("0x1F", "0x1F"), ("1:30", "1:30"),
        ("1_000", "1_000"), ("'1'", "1"), ("1", 1), ("-1.5e3", -1500.0), ("true", True), ("'true'", "true"),
        ("True", "True"), ("~", None), ("null", None), ("''", ""), ("[a, 1, [b]]", ["a", 1, ["b"]]),
        ("{1: a}", {"1": "a"}), ("", None),
    ],
)  # fmt: skip
def test_yaml_is_read_by_the_rules_of_json(text: str, value: Any) -> None:
    read = documents.parse(text, "yaml")
    assert (read, type(read)) == (value, type(value))
