"""How a step fails: a stable code, a sentence, and whether another attempt may help."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.providers.adapters import Kind as UpstreamKind
from vanilla_saas.providers.adapters import UpstreamError
from vanilla_saas.providers.estimate import InvalidRequest
from vanilla_saas.workflows.execution.steps import Outcome
from vanilla_saas.workflows.expressions import ExpressionError
from vanilla_saas.workflows.prompts import TemplateError
from vanilla_saas.workflows.schemas import Mismatch, SchemaError

UPSTREAM: Mapping[UpstreamKind, str] = {
    "timeout": "timeout",
    "rate_limited": "rate_limited",
    "connection": "provider_error",
    "server": "provider_error",
    "malformed": "provider_error",
    "authentication": "provider_not_ready",
    "invalid_request": "invalid_request",
}


@dataclass(eq=False)
class Failure(Exception):
    """Ends a step as failed. `retryable` None: when the node's `retry.on` has the code."""

    code: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    retryable: bool | None = None
    retry_after_s: float | None = None

    def outcome(self, retry_on: list[str]) -> Outcome:
        retryable = self.code in retry_on if self.retryable is None else self.retryable
        error = {"code": self.code, "message": self.message, "retryable": retryable}
        fields: dict[str, Any] = {"error": error | ({"details": dict(self.details)} if self.details else {})}
        if self.retry_after_s is not None:
            fields["retry_after_s"] = self.retry_after_s
        return Outcome("failed", fields)


def of_upstream(error: UpstreamError) -> Failure:
    """A model call that brought no answer."""
    details = {"provider_code": error.provider_code} if error.provider_code else {}
    message = f"The model provider could not answer: {error.detail}."
    return Failure(UPSTREAM[error.kind], message, details, retry_after_s=error.retry_after)


def of_refusal(error: VanillaError) -> Failure:
    """A call that was not admitted: its own name, but for what is our trouble and passes.

    Other calls of the user pass as well, when the level allows so many at a time.
    """
    message = error.message if error.hint is None else f"{error.message.rstrip('.')}. {error.hint}"
    after = error.detail.get("retry_after_s")
    if error.name in ("saturated", "database_unavailable"):
        return Failure("saturated", message, {"cause": error.name}, retryable=True, retry_after_s=after)
    passes = error.detail.get("restriction") == "concurrent_executions"
    return Failure(error.name, message, error.detail, retryable=passes or None, retry_after_s=after)


def of_request(error: InvalidRequest) -> Failure:
    """A call that cannot be sent."""
    return Failure(error.code, error.message, {"param": error.param} if error.param else {})


def of_text(error: ExpressionError | TemplateError | SchemaError, field: str) -> Failure:
    """A text of the definition, in its field `field`, that cannot be computed."""
    line = getattr(error, "line", None)
    details = {"field": field} | ({} if line is None else {"line": line})
    return Failure(error.code, f"{field}: {error.message}", details)


def of_mismatches(code: str, what: str, found: list[Mismatch], **details: Any) -> Failure:
    """A value that is not what its schema says; `what` names it."""
    listed = [{"path": one.path, "pointer": one.pointer, "message": one.message} for one in found]
    return Failure(code, f"{what} {said(found)}", {"mismatches": listed, **details})


def said(found: list[Mismatch]) -> str:
    """`does not fit its schema: a.b: 3 is not of type "string"; ...`, the first three of them."""
    first = "; ".join(f"{one.path}: {one.message}" if one.path else one.message for one in found[:3])
    return f"does not fit its schema: {first}"
