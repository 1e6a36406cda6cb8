"""What can be handed to the database: JSON that jsonb takes, of bounded size."""

import json
from typing import Any

import orjson

from vanilla_saas.workflows.execution.failures import Failure


def refuse_unstorable(fields: Any, most_bytes: int) -> None:
    """Raises Failure: output_invalid for NaN, U+0000, half characters and what is no JSON; output_too_large."""
    try:
        text = orjson.dumps(fields)
    except (TypeError, RecursionError) as error:
        raise Failure("output_invalid", f"The output cannot be stored: {error}.") from None
    if len(text) > most_bytes:
        message = f"The output has {len(text):,} bytes as JSON; the most is {most_bytes:,}."
        raise Failure("output_too_large", message, {"bytes": len(text), "limit": most_bytes})
    # both tests look cheaply first: most outputs have neither
    if b"\\u0000" in text and _has_nul(fields):
        raise Failure("output_invalid", "The output cannot be stored: a text in it has the character U+0000.")
    if b"null" in text and not _is_finite(fields):  # orjson writes NaN as null
        raise Failure("output_invalid", "The output cannot be stored: a number in it is NaN or infinite.")


def storable_text(text: str) -> str:
    """A text without what jsonb refuses."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _has_nul(value: Any) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str) and "\0" in item:
            return True
        if isinstance(item, dict):
            stack += (*item.keys(), *item.values())
        elif isinstance(item, list | tuple):
            stack += item
    return False


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
