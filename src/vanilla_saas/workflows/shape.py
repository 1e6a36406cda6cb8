"""The shape of a definition: pydantic's errors as problems that name the node and the field, and say what to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vanilla_saas.workflows.checks import CHECK_NAMES, CHECKS
from vanilla_saas.workflows.definition import Connection, Definition
from vanilla_saas.workflows.nodes import ITEM_KINDS, KINDS, GateRetry, Retry


@dataclass(frozen=True, slots=True)
class Problem:
    """`node` is an id, or None; `field` the path inside the node, or inside the definition when there is none."""

    node: str | None
    field: str
    code: str
    message: str

    def __str__(self) -> str:
        where = ".".join(part for part in (self.node, self.field) if part)
        return f"{where}: {self.message}" if where else self.message


_CODES = {
    "missing": "field_missing",
    "extra_forbidden": "field_unknown",
    "literal_error": "value_unknown",
    "string_pattern_mismatch": "wrong_form",
    "union_tag_not_found": "field_missing",
    "string_too_short": "out_of_range",
    "string_too_long": "out_of_range",
    "too_short": "out_of_range",
    "too_long": "out_of_range",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "field_missing": "field_missing",
    "fields_exclusive": "fields_exclusive",
    "out_of_range": "out_of_range",
    "case_name": "case_name",
}
_SCHEMAS = ("json_schema", "schema", "edit")
_TYPES = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def named(node: object, place: str) -> tuple[str | None, str]:
    """The node's id with nothing before the field, or no id and the place of the node."""
    name = node.get("id") if isinstance(node, dict) else None
    return (name, "") if isinstance(name, str) and name else (None, place)


def field_of(node: object, field: str) -> str:
    """As it stands in the document: a gate of one check has the check's fields beside its own."""
    flat = isinstance(node, dict) and "check" in node and "checks" not in node
    return field.removeprefix("checks.0.") if flat else field


def shape_problems(document: dict[str, Any], error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors(include_url=False, include_input=False):
        location = list(detail["loc"])
        node: str | None = None
        before: object = document
        prefix = ""
        if len(location) > 1 and location[0] == "nodes" and isinstance(location[1], int):
            before = document["nodes"][location[1]]
            node, prefix = named(before, f"nodes.{location[1]}")
            location = _without_tags(location[2:])
        yield _problem(node, prefix, location, detail, before)


def _without_tags(location: list[int | str]) -> list[int | str]:
    """pydantic names the member of a union in the path: the kind of a node or item, the check, the type of a schema."""
    rest = location[1:]
    if rest[:1] == ["item"]:
        return ["item", *_of_schema(rest[2:])]
    if rest[:1] == ["checks"] and len(rest) > 1:
        return ["checks", rest[1], *_of_schema(rest[3:])]
    return _of_schema(rest)


def _of_schema(location: list[int | str]) -> list[int | str]:
    return location[:1] if location[:1] and location[0] in _SCHEMAS else location


def _problem(
    node: str | None, prefix: str, location: list[int | str], detail: ErrorDetails, before: object
) -> Problem:  # fmt: skip
    kind, context = detail["type"], detail.get("ctx", {})
    parts = [str(part) for part in location if part != "[key]"]
    inside_item = parts[:1] == ["item"]
    last = parts[-1] if parts else ""
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        discriminator = str(context["discriminator"]).strip("'")
        parts.append(discriminator)
        given = str(context.get("tag", ""))
        allowed = CHECK_NAMES if discriminator == "check" else ITEM_KINDS if inside_item else tuple(KINDS)
        code = "field_missing" if kind == "union_tag_not_found" else f"{discriminator}_unknown"
        if inside_item and given in KINDS:
            code = "kind_not_in_map"
        message = f"Write one of {', '.join(allowed)}{_meant(given, allowed)}."
    else:
        if isinstance(context.get("field"), str):
            parts.append(context["field"])
        code, message = told(detail, last, _fields(before, parts))
    field = field_of(before, ".".join(parts))
    return Problem(node, ".".join(part for part in (prefix, field) if part), code, message)


def told(detail: ErrorDetails, field: str, known: tuple[str, ...] = ()) -> tuple[str, str]:
    """Code and message of an error at a field; `known` are the fields that there are beside one that is not."""
    kind = detail["type"]
    code = _CODES.get(kind) or ("wrong_type" if kind in _TYPES else "invalid_value")
    return code, _message(kind, field, detail, known)


def _message(kind: str, last: str, detail: ErrorDetails, known: tuple[str, ...]) -> str:
    if kind == "missing":
        return f"Add {last}."
    if kind == "extra_forbidden":
        return f"Remove {last}, which is not a field here{_meant(last, known)}."
    if kind == "literal_error":
        return f"Write one of {detail.get('ctx', {}).get('expected')}."
    if kind in _TYPES and last in _SCHEMAS:
        return "Write a JSON schema: an object."
    if kind in _TYPES:
        return f"Write {_TYPES[kind]}."
    said = detail["msg"].removeprefix("Value error, ")
    for noun in ("Input", "String", "List", "Dictionary"):
        said = said.replace(f"{noun} should", "It must")
    return said if said.endswith(".") else f"{said}."


def _meant(given: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(given, [name for name in known if name != given], 1)
    return f"; did you mean {near[0]}" if near else ""


def _fields(before: object, parts: list[str]) -> tuple[str, ...]:
    """The fields that would be known where one is not."""
    if not isinstance(before, dict):
        return ()
    if "nodes" in before and parts[:1] == ["connections"]:
        models: tuple[Any, ...] = (Connection,)
    elif "nodes" in before:
        models = (Definition,)
    elif parts[:1] == ["retry"]:
        models = (Retry, GateRetry)
    else:
        kind = before.get("kind")
        models = (KINDS.get(kind) if isinstance(kind, str) else None, *(CHECKS if kind == "gate" else ()))
    return tuple(field.alias or name for model in models if model for name, field in model.model_fields.items())
