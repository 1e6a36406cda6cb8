"""CEL, the language of conditions and values: https://github.com/google/cel-spec.

An expression sees JSON alone. It is computed in a process of its own (`evaluator`), so nothing that a person can write
stops a worker.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vanilla_saas.workflows.evaluator import SECONDS, EvaluatorError, ask
from vanilla_saas.workflows.names import Names, referenced

MAX_BYTES = 8 << 10
MAX_RESULT_BYTES = 256 << 10


class ExpressionError(Exception):
    """`code`: expression_syntax, _timeout, _too_large, _type or _failed; `message`: for who wrote the expression."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True, slots=True)
class Limits:
    seconds: float = SECONDS
    result_bytes: int = MAX_RESULT_BYTES


@dataclass(frozen=True, slots=True)
class Expression:
    text: str
    names: Names
    type_error: str | None
    """What the checker of types refuses, `1 + 'a'`; evaluating fails with it where it is reached."""


DEFAULT = Limits()


@lru_cache(4096)
def compile(text: str) -> Expression:
    """Raises ExpressionError: expression_syntax, expression_too_large, expression_timeout."""
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise ExpressionError("expression_too_large", f"The expression has more than {MAX_BYTES:,} bytes.")
    found = _ask("compile", text=text)
    return Expression(text, Names.of(found["roots"], found["paths"]), found["type_error"])


def evaluate(expression: Expression | str, variables: Mapping[str, Any], limits: Limits = DEFAULT) -> Any:
    """The value as JSON: integers stay integers, times are RFC 3339, durations seconds (`1.5s`), bytes base64.

    `variables` are JSON; those that the expression does not name are left behind. Blocks up to `limits.seconds`:
    call it in a thread. Raises ExpressionError.
    """
    if isinstance(expression, str):
        expression = compile(expression)
    sent = referenced(variables, expression.names)
    answer = _ask(
        "evaluate", seconds=limits.seconds, text=expression.text, variables=sent, result_bytes=limits.result_bytes
    )
    return answer["value"]


def names(expression: Expression | str) -> Names:
    """The names that it takes from outside: not those that map, filter, all and exists bind."""
    return (compile(expression) if isinstance(expression, str) else expression).names


def _ask(operation: str, **arguments: Any) -> dict[str, Any]:
    try:
        return ask(operation, **arguments)
    except EvaluatorError as error:
        raise ExpressionError(f"expression_{error.code}", error.message) from None
