"""Templates, the language of prompts: minijinja (https://docs.rs/minijinja/latest/minijinja/syntax/) over JSON.

Text is written as it is, every other value as JSON. A name that is not there is an error, nothing is escaped, nothing
is included, and no method changes a value.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from vanilla_saas.workflows.evaluator import SECONDS, EvaluatorError, ask
from vanilla_saas.workflows.names import Names, referenced

MAX_BYTES = 64 << 10
MAX_RESULT_BYTES = 1 << 20
_NAME = re.compile(r"\{\{ *([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*) *\}\}")
_MARKS = ("{{", "{%", "{#", "}}", "%}", "#}")


class TemplateError(Exception):
    """`code`: template_syntax, _undefined, _timeout, _too_large, _type or _failed; `line` from 1, where it is known."""

    def __init__(self, code: str, message: str, line: int | None = None):
        super().__init__(message)
        self.code, self.message, self.line = code, message, line


@lru_cache(4096)
def names(template: str) -> Names:
    """The names that it takes from outside. Raises TemplateError when it does not parse."""
    if len(template.encode(errors="surrogatepass")) > MAX_BYTES:
        raise TemplateError("template_too_large", f"The template has more than {MAX_BYTES:,} bytes.")
    found = _ask("parse", text=template)
    return Names.of(found["roots"], found["paths"])


def filled(template: str, variables: Mapping[str, Any]) -> str | None:
    """What `render` gives for text with names of texts in it, at once and without a process; None for all else."""
    parts = _plain_parts(template)
    if parts is None:
        return None
    texts = list(parts)
    for place in range(1, len(parts), 2):
        value: Any = variables
        for name in parts[place].split("."):
            if not isinstance(value, dict) or hasattr(dict, name):
                return None
            value = value.get(name)
        if not isinstance(value, str):
            return None
        texts[place] = value
    text = "".join(texts)
    return text if len(text) * 4 <= MAX_RESULT_BYTES else None


@lru_cache(4096)
def _plain_parts(template: str) -> tuple[str, ...] | None:
    """Text and names in turn, when there is nothing else."""
    parts = tuple(_NAME.split(template))
    plain = len(template) * 4 <= MAX_BYTES and not any(mark in text for text in parts[::2] for mark in _MARKS)
    return parts if plain else None


def render(
    template: str,
    variables: Mapping[str, Any],
    *,
    seconds: float = SECONDS,
    result_bytes: int = MAX_RESULT_BYTES,
) -> str:
    """The text. `variables` are JSON. Blocks up to `seconds`: call it in a thread. Raises TemplateError."""
    sent = referenced(variables, names(template))
    answer = _ask("render", seconds=seconds, text=template, variables=sent, result_bytes=result_bytes)
    return str(answer["value"])


def _ask(operation: str, **arguments: Any) -> dict[str, Any]:
    try:
        return ask(operation, **arguments)
    except EvaluatorError as error:
        raise TemplateError(f"template_{error.code}", error.message, error.line) from None
