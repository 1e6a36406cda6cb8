"""SQLSTATE to error: one Python exception, one problem type and one HTTP status for each code of class VS."""

from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """A stable code: `name` is in every answer, `status` the HTTP status, `meaning` its line in the reference."""

    sqlstate: str
    name: str
    status: int
    meaning: str


ERROR_CODES = (
    ErrorCode("VS400", "invalid_request", 400, "A value is missing, malformed or out of range."),
    ErrorCode("VS401", "context_invalid", 401, "The signed context is missing, forged, expired or of another key."),
    ErrorCode("VS402", "insufficient_tokens", 402, "The wallet cannot pay, or is in debt under a hard policy."),
    ErrorCode("VS403", "forbidden", 403, "The caller's role or the key's scopes do not allow this."),
    ErrorCode("VS404", "not_found", 404, "There is no such thing, or it belongs to another tenant."),
    ErrorCode("VS409", "invalid_state", 409, "The thing is not in a state that allows this, or the name is taken."),
    ErrorCode("VS410", "idempotency_key_reused", 409, "The idempotency key was used with another body."),
    ErrorCode("VS411", "authentication_failed", 401, "Key, password, session or link is wrong, expired or revoked."),
    ErrorCode("VS413", "body_too_large", 413, "The request body is larger than VANILLA_SAAS_MAX_BODY_BYTES."),
    ErrorCode("VS414", "model_not_found", 404, "No model of that name can be called."),
    ErrorCode("VS415", "wallet_inactive", 403, "The wallet is locked, suspended or closed."),
    ErrorCode(
        "VS416", "unsupported_model", 400, "The model is of another kind: chat and embeddings have models of their own."
    ),
    ErrorCode("VS422", "invalid_definition", 422, "A definition does not validate."),
    ErrorCode("VS423", "invalid_input", 422, "An input, payload or value does not fit the workflow's schema of it."),
    ErrorCode("VS424", "provider_not_ready", 424, "The provider has no key, or the model no price."),
    ErrorCode("VS425", "run_failed", 422, "A run that was waited for ended without output; `reason` says why."),
    ErrorCode(
        "VS426",
        "agreement_violated",
        422,
        "A message breaks the agreement of its channel; `rule` and `path` say where. It is not sent, and written down.",
    ),
    ErrorCode(
        "VS429",
        "limit_reached",
        429,
        "A limit or budget is used up; the detail says which and when it resets.",
    ),
    ErrorCode("VS430", "saturated", 429, "This process is at its limit of calls in flight; try again shortly."),
    ErrorCode("VS500", "internal_error", 500, "Something failed on our side; the log has the request id."),
    ErrorCode("VS502", "upstream_error", 502, "The model provider failed or refused the operator's key."),
    ErrorCode("VS503", "database_unavailable", 503, "The database does not answer; nothing was charged."),
    ErrorCode("VS504", "upstream_timeout", 504, "The model provider did not answer in time."),
    ErrorCode(
        "VS505", "still_running", 504, "The run of an engine goes on and is not waited for any longer; it is named."
    ),
)
_BY_SQLSTATE = {code.sqlstate: code for code in ERROR_CODES}
_BY_NAME = {code.name: code for code in ERROR_CODES}


class VanillaError(Exception):
    """A refusal with a stable code. `detail` names figures (limit, used, resets_at, param), `hint` what to do."""

    def __init__(self, name: str, message: str, detail: dict[str, Any] | None = None, hint: str | None = None):
        super().__init__(message)
        self.code = _BY_NAME[name]
        self.message = message
        self.detail = detail or {}
        self.hint = hint

    @property
    def name(self) -> str:
        return self.code.name

    @property
    def status(self) -> int:
        return self.code.status

    def problem(self, request_id: str | None = None) -> dict[str, Any]:
        """The body of an RFC 9457 answer (application/problem+json)."""
        body: dict[str, Any] = {
            "type": f"urn:vanilla-saas:error:{self.name}",
            "title": self.name.replace("_", " "),
            "status": self.status,
            "code": self.name,
            "detail": self.message,
        }
        if self.hint:
            body["hint"] = self.hint
        if request_id:
            body["request_id"] = request_id
        return body | {k: v for k, v in self.detail.items() if k not in body}


def from_postgres(error: asyncpg.PostgresError) -> VanillaError | None:
    """The refusal behind a database error, or None when it is not one of ours."""
    state = getattr(error, "sqlstate", None) or ""
    if code := _BY_SQLSTATE.get(state):
        return VanillaError(code.name, error.message, _detail(error.detail), error.hint)
    # 22000 is asyncpg's own: a value that its type cannot carry never left the process
    if state in ("22000", "22P02", "22003", "22007", "22008", "22021", "22P05"):
        return VanillaError("invalid_request", "A value has the wrong form or is out of range.")
    if state == "54000":
        return VanillaError("invalid_request", "A value is too long.")
    # connection lost, shutting down or recovering, out of room, login refused, another transaction had the rows
    if state.startswith(("08", "57P", "53", "28")) or state in ("40001", "40P01"):
        return VanillaError("database_unavailable", "The database does not answer; nothing was charged.")
    return None


def from_parts(sqlstate: str, message: str, detail: dict[str, Any] | None, hint: str | None) -> VanillaError:
    """A refusal that a function told as a value instead of raising it."""
    return VanillaError(_BY_SQLSTATE[sqlstate].name, message, detail, hint)


def _detail(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
