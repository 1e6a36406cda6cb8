"""Forms made from schemas: which control a property has, and what a form that was sent means."""

from typing import Any

import pytest

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.workflows.forms import WHOLE, fields_of, read


def schema(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or []}


@pytest.mark.parametrize(
    ("part", "control", "value"),
    [
        ({"type": "string"}, "text", ""),
        ({"type": "string", "default": "a\nb"}, "text", "a\nb"),
        ({"enum": ["x", "y"], "default": "y"}, "choice", "y"),
        ({"enum": ["x", 1]}, "json", ""),
        ({"type": "number", "default": 1.5}, "number", "1.5"),
        ({"type": "integer", "default": 0}, "integer", "0"),
        ({"type": "boolean", "default": False}, "boolean", "false"),
        ({"type": ["string", "null"]}, "json", ""),
        ({"type": "array", "default": [1]}, "json", "[\n  1\n]"),
        # a default that is no text cannot stand in a text field
        ({"type": "string", "default": 5}, "json", "5"),
        (True, "json", ""),
    ],
)
def test_a_property_has_the_control_of_its_type(part: Any, control: str, value: str) -> None:
    (field,) = fields_of(schema(one=part))
    assert (field.control, field.value, field.required) == (control, value, False)


@pytest.mark.parametrize("none", [None, True, {}, {"type": "object"}, {"properties": {}}, {"properties": 5}])
def test_without_properties_the_object_is_one_field(none: Any) -> None:
    (field,) = fields_of(none)
    assert (field.name, field.control, field.value) == (WHOLE, "json", "{}")
    assert read([field], {"field.": '{"a": 1}'}) == {"a": 1}
    with pytest.raises(VanillaError, match="no JSON object"):
        read([field], {"field.": "[1]"})


def test_what_is_required_comes_first_in_the_order_of_its_list() -> None:
    assert [field.name for field in fields_of(schema(["c", "b"], a={}, b={}, c={}))] == ["c", "b", "a"]


def test_what_was_sent_is_read_by_the_types() -> None:
    fields = fields_of(
        schema(
            ["empty"], text={"type": "string"}, empty={"type": "string"}, gone={"type": "string"},
            n={"type": "integer"}, x={"type": "number"}, yes={"type": "boolean"}, rest={},
        )
    )  # fmt: skip
    form = {"field.text": "a\r\nb", "field.empty": "", "field.gone": "", "field.n": "3", "field.x": "1e3"}
    form |= {"field.yes": "true", "field.rest": '{"k": null}', "decision": "approved"}
    assert read(fields, form) == {"text": "a\nb", "empty": "", "n": 3, "x": 1000.0, "yes": True, "rest": {"k": None}}


@pytest.mark.parametrize(
    ("part", "sent", "message"),
    [
        ({"type": "integer"}, "1.5", "a whole number"),
        ({"type": "integer"}, "true", "a whole number"),
        ({"type": "number"}, "NaN", "a number"),
        ({"type": "boolean"}, "maybe", "yes or no"),
        ({"title": "The list"}, "[", "The list is not JSON"),
        ({"type": "integer"}, "", "is missing"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(part: dict[str, Any], sent: str, message: str) -> None:
    with pytest.raises(VanillaError, match=message):
        read(fields_of(schema(["one"], one=part)), {"field.one": sent})
