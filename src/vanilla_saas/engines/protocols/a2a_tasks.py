"""A run as an A2A task, in the JSON of the protocol: nothing of a task is kept but the run."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

from pydantic import ValidationError

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines.protocols.calls import Decision, Offer, Signal
from vanilla_saas.engines.protocols.store import Answer
from vanilla_saas.providers.engine_chat import input_of, text_of

USAGE = "urn:vanilla-saas:a2a:usage:1"
"""In a task's metadata: charged_tokens, cost_micros, and of an agent's run `runs`, the same for each of its tree."""
SCHEMAS = "urn:vanilla-saas:a2a:schemas:1"
"""In a card: the JSON schemas of input and output; a data part is the input."""
ENDED = frozenset({"completed", "failed", "canceled", "rejected"})
ASKS = frozenset({"input_required", "auth_required"})
TO_TASK = "To a task a message is one data part: signal and payload, or approval_id, decision, comment and value."
_ASKED = ("title", "prompt", "subject", "edit")
_MOST_KEY = 255
_BEARER = {"httpAuthSecurityScheme": {"scheme": "Bearer", "description": "an API key or a session"}}


def card(offer: Offer, url: str) -> dict[str, Any]:
    """The agent card, for who may run it."""
    described = offer.description or offer.name
    skill = {"id": offer.called, "name": offer.name, "description": described, "tags": [offer.kind]}
    schemas = {"input": offer.input} | ({"output": offer.output} if offer.output else {})
    return {
        "name": offer.name,
        "description": described,
        "version": str(offer.version),
        "supportedInterfaces": [{"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
        "capabilities": {
            "streaming": True,
            "pushNotifications": True,
            "extensions": [
                {"uri": USAGE, "description": "What a task was charged, in its metadata."},
                {"uri": SCHEMAS, "description": "A data part is the input.", "params": schemas},
            ],
        },
        "securitySchemes": {"bearer": _BEARER},
        "securityRequirements": [{"schemes": {"bearer": {}}}],
        "defaultInputModes": ["text/plain", "application/json"],
        "defaultOutputModes": ["text/plain", "application/json"],
        "skills": [skill],
    }


def prefix_of(offer: Offer) -> str:
    """What the idempotency keys of its messages begin with."""
    return f"a2a/{offer.called}/"


def key_of(offer: Offer, context_id: str, message_id: str) -> str:
    """The idempotency key of a message: within an agent and a context the same message is the same task.

    Raises VanillaError `invalid_request` when the ids are too long.
    """
    key = f"{prefix_of(offer)}{quote(context_id, safe='')}/{message_id}"
    if not message_id or len(key) > _MOST_KEY:
        raise VanillaError("invalid_request", "messageId and contextId are too long, or there is no messageId.")
    return key


def input_of_message(offer: Offer, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a message's parts are as input: one data part is all of it, texts are its message.

    Raises VanillaError `invalid_request`, InvalidRequest `input_required`, ValueError for parts of other kinds.
    """
    data = [part["data"] for part in parts if "data" in part]
    texts = [part["text"] for part in parts if "text" in part]
    if len(data) + len(texts) < len(parts):
        raise ValueError("raw and url parts")
    if (data and (texts or len(data) > 1 or not isinstance(data[0], dict))) or not parts:
        raise VanillaError("invalid_request", "A message is texts, or one data part that is an object.")
    if data:
        return dict(data[0])
    said = "\n".join(texts)
    if offer.kind == "agent":
        return {"message": said}
    chat = {"model": f"engine/{offer.slug}", "messages": [{"role": "user", "content": said}]}
    return input_of(chat, offer.slug, offer.input, offer.parameters)


def told_to_task(parts: Sequence[dict[str, Any]]) -> Signal | Decision:
    """What a message says to its task: one data part that names the signal, or the approval that it decides.

    It is named, so that a message that is sent again never answers the next question. Raises VanillaError
    `invalid_request`.
    """
    data = parts[0].get("data") if len(parts) == 1 else None
    if not isinstance(data, dict):
        raise VanillaError("invalid_request", TO_TASK)
    try:
        return Signal.model_validate(data) if "signal" in data else Decision.model_validate(data)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(str(one) for one in wrong["loc"])
        raise VanillaError("invalid_request", f"{field}: {wrong['msg']}. {TO_TASK}", {"param": field}) from None


def task(offer: Offer, run: Answer, tree: Sequence[Answer], made: Sequence[Answer]) -> dict[str, Any]:
    """The task that a run is."""
    task_id, context_id, message_id = str(run["execution_id"]), context_of(run), _said(run)[1]
    told = {
        "id": task_id,
        "contextId": context_id,
        "status": status(run),
        "artifacts": artifacts(run, made),
        "metadata": {USAGE: usage(run, tree)},
    }
    if message_id:
        part = {"text": run["input"]["message"]} if offer.kind == "agent" else {"data": run["input"]}
        said = {"messageId": message_id, "role": "ROLE_USER", "contextId": context_id, "taskId": task_id}
        told["history"] = [said | {"parts": [part]}]
    return told


def context_of(run: Answer) -> str:
    """The context that the client named, else one that is the task's own."""
    return _said(run)[0] or str(run["execution_id"])


def status(run: Answer) -> dict[str, Any]:
    """The state of a run since when, with why when it is no answer."""
    state = run["task_state"]
    told: dict[str, Any] = {
        "state": f"TASK_STATE_{state.upper()}",
        "timestamp": _time(run["finished_at"] or run["started_at"]),
    }
    words = None
    if state in ASKS:
        words = "It waits for people, who decide what it asked."
    elif state in ENDED and state != "completed":
        words = (run["error"] or {}).get("message") or f"It was {run['status']}."
    if words:
        task_id = str(run["execution_id"])
        told["message"] = {
            "messageId": f"{task_id}-{state}",
            "role": "ROLE_AGENT",
            "taskId": task_id,
            "parts": [{"text": words}],
            "metadata": {"reason": run["stop_reason"] or run["reason"] or state},
        }
        if state in ASKS and (asked := run.get("approvals")):
            shown = [{"approval_id": str(one["id"])} | {name: one[name] for name in _ASKED} for one in asked]
            told["message"]["parts"].append({"data": {"approvals": shown}, "mediaType": "application/json"})
    return told


def artifacts(run: Answer, made: Sequence[Answer]) -> list[dict[str, Any]]:
    """What the runs of the tree made so far, and the output when it has ended."""
    found = [
        {
            "artifactId": str(one["id"]),
            "name": one["name"],
            "parts": [{"text": one["content"], "mediaType": one["media_type"]}],
        }
        for one in made
    ]
    if run["status"] == "succeeded":
        output, parts = run["output"], []
        if isinstance(output, str) or (isinstance(output, dict) and isinstance(output.get("text"), str)):
            parts.append({"text": text_of(output), "mediaType": "text/plain"})
        if not isinstance(output, str):
            parts.append({"data": output, "mediaType": "application/json"})
        found.append({"artifactId": "output", "name": "output", "parts": parts})
    return found


def usage(run: Answer, tree: Sequence[Answer]) -> dict[str, Any]:
    """What was charged so far; the runs of a tree add up to it."""
    told = {name: run[name] for name in ("charged_tokens", "cost_micros", "version")}
    runs = [
        {name: str(value) if name in ("run_id", "parent_run_id") and value else value for name, value in one.items()}
        for one in tree
    ]
    return told | {"execution_id": str(run["execution_id"])} | ({"runs": runs} if runs else {})


def _said(run: Answer) -> tuple[str, str]:
    """Context and message id of the key that began it; empty when another protocol did."""
    kind, _, rest = (run["idempotency_key"] or "").partition("/")
    parts = rest.split("/", 2)
    return (unquote(parts[1]), parts[2]) if kind == "a2a" and len(parts) == 3 else ("", "")


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
