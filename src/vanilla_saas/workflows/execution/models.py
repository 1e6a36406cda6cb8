"""Calls of models: the node `llm`, answers of a schema, and how near two texts are."""

import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from vanilla_saas.providers.step_metering import ModelAnswer
from vanilla_saas.workflows.execution.attempt import Attempt
from vanilla_saas.workflows.execution.failures import Failure, of_mismatches
from vanilla_saas.workflows.execution.steps import Outcome, succeeded
from vanilla_saas.workflows.nodes import Llm

SHOWN = 2000
"""Characters of a refused answer that its error shows."""
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


async def llm(attempt: Attempt, node: Llm) -> Outcome:
    """`{text, json, model, usage}`: `json` null without `json_schema`, `usage` in model tokens."""
    body = body_of(node, await attempt.render({field: template for field, _, template in templates_of(node)}))
    if node.json_schema is None:
        aloud = attempt.step.item is None and attempt.step.node == attempt.plan.speaker
        answer, value = await attempt.chat(body, aloud=aloud), None
    else:
        answer, value = await ask_json(attempt, body, node.json_schema, "json_schema")
    return succeeded({"text": answer.text, "json": value, "model": node.model, "usage": _usage(answer)})


def templates_of(node: Llm) -> list[tuple[str, str, str]]:
    """Of each message its field, its role and its template."""
    said = [] if node.system is None else [("system", "system", node.system)]
    if node.prompt is not None:
        said.append(("prompt", "user", node.prompt))
    return said + [(f"messages.{n}.content", one.role, one.content) for n, one in enumerate(node.messages or ())]


def body_of(node: Llm, texts: Mapping[str, str]) -> dict[str, Any]:
    """The call of a model, with the texts of its templates by field."""
    messages = [{"role": role, "content": texts[field]} for field, role, _ in templates_of(node)]
    body: dict[str, Any] = {"model": node.model, "messages": messages}
    if node.temperature is not None:
        body["temperature"] = node.temperature
    if node.max_output_tokens is not None:
        body["max_completion_tokens"] = node.max_output_tokens
    return body


async def ask_json(
    attempt: Attempt, body: Mapping[str, Any], schema: Mapping[str, Any] | bool, field: str
) -> tuple[ModelAnswer, Any]:
    """An answer that is JSON of the schema, and its value. Raises Failure `schema_mismatch`.

    The schema goes to the provider, which may not heed it: what comes back is checked here.
    """
    answer = await attempt.chat({**body, "response_format": response_format(schema)})
    text = json_text(answer.text)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        message = "The model's answer is no JSON" + (": it has no text." if not text.strip() else ".")
        raise Failure("schema_mismatch", message, {"text": answer.text[:SHOWN]}) from None
    if found := await attempt.mismatches(field, schema, value):
        raise of_mismatches("schema_mismatch", "The model's answer", found, text=answer.text[:SHOWN])
    return answer, value


def response_format(schema: Mapping[str, Any] | bool) -> dict[str, Any]:
    """What a request says of an answer of a schema."""
    if not isinstance(schema, Mapping):
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def json_text(text: str) -> str:
    """An answer without the Markdown of providers that do not know `response_format`."""
    fenced = _FENCED.fullmatch(text)
    return text if fenced is None else fenced[1]


def _usage(answer: ModelAnswer) -> dict[str, int]:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


async def similarity(attempt: Attempt, model: str, one: str, other: str) -> float:
    """Cosine of the embeddings of two texts, from 0 (nothing in common, or opposed) to 1; one call."""
    # providers refuse an empty text
    texts = [text if text.strip() else "-" for text in (one, other)]
    answer = await attempt.embed({"model": model, "input": texts})
    a, b = _vectors(answer.body)
    length = math.hypot(*a) * math.hypot(*b)
    return 0.0 if length == 0 else min(max(sum(x * y for x, y in zip(a, b, strict=True)) / length, 0.0), 1.0)


def _vectors(body: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    try:
        ordered = sorted(body["data"], key=lambda one: one["index"])
        a, b = ([float(x) for x in one["embedding"]] for one in ordered)
        if len(a) != len(b):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise Failure("provider_error", "The model provider's embeddings have a form that cannot be read.") from None
    return a, b
