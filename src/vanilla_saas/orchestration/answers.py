"""What a model answered, as the journal keeps it."""

from collections.abc import Mapping
from typing import Any

import orjson

from vanilla_saas.providers.step_metering import ModelAnswer


def kept(answer: ModelAnswer, turn: int) -> dict[str, Any]:
    """`{text, calls}`, each call with its id, its name and its arguments; `turn` names those that have no id."""
    return {"text": answer.text, "calls": _calls_of(answer, turn)}


def _calls_of(answer: ModelAnswer, turn: int) -> list[dict[str, Any]]:
    """The calls that a model asked for; arguments that are no JSON object are kept as what they are."""
    found = answer.body.get("choices")
    first = found[0] if isinstance(found, list) and found else {}
    calls = (first.get("message") or {}).get("tool_calls") if isinstance(first, dict) else None
    return [_call(call, turn, number) for number, call in enumerate(calls or ()) if isinstance(call, dict)]


def _call(call: Mapping[str, Any], turn: int, number: int) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        arguments = {"malformed": function.get("arguments")}
    return {
        "id": str(call.get("id") or f"call_{turn}_{number}"),
        "name": str(function.get("name", "")),
        "arguments": arguments if isinstance(arguments, dict) else {"value": arguments},
    }
