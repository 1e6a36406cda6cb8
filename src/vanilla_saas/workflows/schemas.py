"""JSON schemas and regular expressions that people wrote.

Schemas are draft 2020-12 unless `$schema` says otherwise; references point into the schema itself, nothing is fetched.
Regular expressions are RE2's (https://github.com/google/re2/wiki/Syntax): no text makes one slow.
"""

from collections.abc import Iterable
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


def _pointer(path: Iterable[str | int]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


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
