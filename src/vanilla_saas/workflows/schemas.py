"""JSON schemas and regular expressions that people wrote.

Schemas are draft 2020-12 unless `$schema` says otherwise; references point into the schema itself, nothing is fetched.
Regular expressions are RE2's (https://github.com/google/re2/wiki/Syntax): no text makes one slow.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from vanilla_saas.workflows.evaluator import EvaluatorError, ask


class SchemaError(Exception):
    """`code`: schema_syntax, schema_too_large, schema_timeout, or the same of regex."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where an instance is not what its schema says: by names and places, and as a JSON pointer (RFC 6901)."""

    path: str
    message: str
    pointer: str


def check_schema(schema: object) -> None:
    """Raises SchemaError when it is no schema."""
    _ask("schema", "check_schema", schema=_text(schema))


def mismatches(schema: object, instance: object) -> list[Mismatch]:
    """The first twenty; none when the instance is valid."""
    found = _ask("schema", "validate", schema=_text(schema), instance=instance)["value"]
    return [Mismatch(".".join(map(str, error["path"])), error["message"], _pointer(error["path"])) for error in found]


async def unfit(schema: object, instance: object) -> list[Mismatch]:
    """`mismatches`, which are looked for elsewhere unless it is seen at once that there are none."""
    return [] if fits(schema, instance) else await asyncio.to_thread(mismatches, schema, instance)


def _pointer(path: Iterable[str | int]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def fits(schema: object, instance: object) -> bool:
    """Whether it is seen at once that `mismatches` would find none: False says nothing."""
    return _simple(schema) and _fits(schema, instance)


def _fits(schema: Any, instance: object) -> bool:
    kinds = schema["type"]
    if not any(_KINDS[kind](instance) for kind in (kinds if isinstance(kinds, list) else [kinds])):
        return False
    if isinstance(instance, str):
        return bool(schema.get("minLength", 0) <= len(instance) <= schema.get("maxLength", len(instance)))
    if isinstance(instance, list):
        return "items" not in schema or all(_fits(schema["items"], item) for item in instance)
    if not isinstance(instance, dict):
        return True
    known = schema.get("properties", {})
    return (
        all(name in instance for name in schema.get("required", ()))
        and all(_fits(known[name], value) for name, value in instance.items() if name in known)
        and (schema.get("additionalProperties", True) or instance.keys() <= known.keys())
    )


def _simple(schema: object) -> bool:
    """Whether a schema is one, and says nothing but what `_fits` knows."""
    return (
        isinstance(schema, dict)
        and "type" in schema
        and all(word in _SEEN and _SEEN[word](value) for word, value in schema.items())
    )


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len({*value}) == len(value)


def _is_length(value: object) -> bool:
    return type(value) is int and value >= 0


def _anything(_: object) -> bool:
    return True


_KINDS: dict[object, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
}
_SEEN: dict[str, Callable[[Any], bool]] = {
    "type": lambda value: (
        (_are_names(value) and value != [] and _KINDS.keys() >= {*value})
        or (isinstance(value, str) and value in _KINDS)
    ),
    "properties": lambda value: isinstance(value, dict) and all(map(_simple, value.values())),
    "required": _are_names,
    "additionalProperties": lambda value: isinstance(value, bool),
    "items": lambda value: _simple(value),
    "minLength": _is_length,
    "maxLength": _is_length,
    "title": lambda value: isinstance(value, str),
    "description": lambda value: isinstance(value, str),
    "default": _anything,
}
"""Words of a schema of which `fits` knows everything, and the values that they take."""


def check_pattern(pattern: str) -> None:
    """Raises SchemaError when it is no regular expression."""
    search(pattern, "")


def search(pattern: str, text: str) -> bool:
    """Whether the pattern is found anywhere in the text."""
    return bool(_ask("regex", "search", pattern=pattern, text=text)["value"])


def _text(schema: object) -> str:
    try:
        return orjson.dumps(schema).decode()
    except (TypeError, RecursionError) as error:
        raise SchemaError("schema_syntax", f"It is no JSON: {error}.") from None


def _ask(language: str, operation: str, **arguments: Any) -> dict[str, Any]:
    try:
        return ask(operation, **arguments)
    except EvaluatorError as error:
        raise SchemaError(f"{language}_{error.code}", error.message) from None
