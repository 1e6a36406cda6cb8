"""JSON schemas and patterns that people wrote: checked, never fetched, never slow."""

import random
import time
from collections import Counter
from typing import Any

import pytest

from vanilla_saas.workflows import schemas
from vanilla_saas.workflows.executions import require_fit
from vanilla_saas.workflows.schemas import Mismatch, SchemaError, check_pattern, check_schema, mismatches, search

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["b"]}


def test_mismatches_name_the_place() -> None:
    assert mismatches(SCHEMA, {"a": 1, "b": 2}) == []
    assert sorted(mismatches(SCHEMA, {"a": "x"}), key=lambda found: found.path) == [
        Mismatch("", '"b" is a required property', ""),
        Mismatch("a", '"x" is not of type "integer"', "/a"),
    ]
    assert len(mismatches({"items": {"type": "string"}}, list(range(100)))) == 20


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/s", "https://example.com/s", "file:///etc/passwd"])
def test_a_reference_to_elsewhere_is_not_fetched(address: str) -> None:
    with pytest.raises(SchemaError) as refused:
        check_schema({"$ref": address})
    assert refused.value.code == "schema_syntax"
    assert f"{address} is not fetched" in refused.value.message


def test_a_reference_into_the_schema_itself_is_followed() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}}, "required": ["left"]}
    assert [found.path for found in mismatches(tree, {"left": {"left": {}}})] == ["left.left"]


@pytest.mark.parametrize("schema", [{"type": 3}, {"pattern": "("}, {"pattern": "(?=x)"}, {"$ref": "#/nowhere"}, 5])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    with pytest.raises(SchemaError) as refused:
        check_schema(schema)
    assert refused.value.code == "schema_syntax"


def test_a_pattern_is_looked_for_anywhere_and_takes_no_time() -> None:
    assert search("b.", "abc")
    assert not search("^b", "abc")
    began = time.monotonic()
    assert not search("(a+)+$b", "a" * 100_000)
    assert not mismatches({"pattern": "^(a|aa)+$"}, "a" * 100_000)
    assert mismatches({"pattern": "^(a|aa)+$"}, "a" * 100_000 + "b")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "(?=x)", "\\1", "a{5000}"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(SchemaError) as refused:
        check_pattern(pattern)
    assert refused.value.code == "regex_syntax"


def random_schema(dice: random.Random, depth: int = 0) -> Any:
    kind = dice.choice(["string", "integer", "number", "boolean", "null", "object", "array", ["string", "null"]])
    kind = kind if depth else dice.choice(["object", "array", kind])
    made: dict[str, Any] = {"type": kind} if dice.random() < 0.95 else {}
    if kind == "string":
        made |= {"minLength": dice.randrange(3), "maxLength": dice.choice([2, 5, 5, 5, "five"])}
    if depth < 2 and kind == "object":
        made["properties"] = {name: random_schema(dice, depth + 1) for name in "ab"}
        made["required"] = dice.choice([["a"], [], ["a", "b"], *(["a", ["a", "a"]] if dice.random() < 0.2 else [])])
        made["additionalProperties"] = dice.choice(
            [True, False, *([{"type": "string"}] if dice.random() < 0.2 else [])]
        )
    if depth < 2 and kind == "array":
        made["items"] = random_schema(dice, depth + 1)
    return made | ({"pattern": "x"} if dice.random() < 0.05 else {})


def random_value(dice: random.Random, schema: Any) -> Any:
    """What mostly fits, or nearly: at the bounds, with what is missing or more than was asked for."""
    kind = schema.get("type", "string")
    kind = dice.choice(kind) if isinstance(kind, list) else kind
    if dice.random() < 0.1:
        kind = dice.choice(["string", "integer", "number", "boolean", "null", "array", "object"])
    match kind:
        case "object":
            known = schema.get("properties", {"a": {}})
            names = [*(name for name in known if dice.random() < 0.8), *("c" for _ in range(dice.random() < 0.2))]
            return {name: random_value(dice, known.get(name, {})) for name in names}
        case "array":
            return [random_value(dice, schema.get("items", {})) for _ in range(dice.randrange(3))]
        case "string":
            return "x" * dice.choice([0, 1, 2, 5, 6])
    return dice.choice({"integer": [1, 1.0], "number": [1, 2.5], "boolean": [True, False], "null": [None]}[kind])


def test_what_is_seen_to_fit_at_once_fits() -> None:
    dice, seen = random.Random(1), Counter[str]()
    for _ in range(4000):
        schema = random_schema(dice)
        value = random_value(dice, schema)
        if schemas.fits(schema, value):
            assert schemas.mismatches(schema, value) == [], (schema, value)
            seen[f"{type(value).__name__}{' with something' if value else ''}"] += 1
    # of everything it sees there was enough
    assert min(seen[kind] for kind in ("dict with something", "list with something", "str with something")) > 50, seen
    assert schemas.fits({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"a": "x"})


async def test_an_input_that_is_seen_to_fit_is_not_looked_at_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def elsewhere(*of: object, **more: object) -> dict[str, object]:
        asked.append(more["instance"])
        return {"value": []}

    monkeypatch.setattr(schemas, "ask", elsewhere)
    await require_fit([{"type": "object", "required": ["a"]}, {"minimum": 1}], {"a": 1}, "input")
    assert asked == [{"a": 1}]
