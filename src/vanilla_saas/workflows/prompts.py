"""Templates, the language of prompts: minijinja (https://docs.rs/minijinja/latest/minijinja/syntax/) over JSON.

Text is written as it is, every other value as JSON. A name that is not there is an error, nothing is escaped, nothing
is included, and no method changes a value.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from vanilla_saas.workflows.evaluator import SECONDS, EvaluatorError, ask
from vanilla_saas.workflows.names import Names, referenced

MAX_BYTES = 64 << 10
MAX_RESULT_BYTES = 1 << 20


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
