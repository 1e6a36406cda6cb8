"""An engine as a model of the OpenAI surface: what a chat gives it as input, and its end as an answer.

What runs engines is above this room: app.py hands it in as `Engines`.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import orjson

from vanilla_saas.providers.estimate import InvalidRequest, choices, validate, validate_common

if TYPE_CHECKING:
    from vanilla_saas.tenancy.identity import Caller  # the framework of a server, which no worker needs

PREFIX = "engine/"
TEXT_NAMES = ("prompt", "question", "text", "task", "input")
"""Properties that a message goes into when the required ones do not say which."""
PIECE = 4096
"""Characters of a chunk of a streamed answer."""
SAME = {"input_invalid": "invalid_input", "key_revoked": "authentication_failed"}
"""Reasons of runs, and what is refused for the same before there is one."""
_STATUS = {
    "invalid_input": 422,
    "insufficient_tokens": 402,
    "authentication_failed": 401,
    "wallet_inactive": 403,
    "forbidden": 403,
    "cancelled": 409,
    "limit_reached": 429,
    "rate_limited": 429,
    "timeout": 504,
    "deadline": 504,
}
"""Of reasons that a run ends by; any other is 502."""


@dataclass(frozen=True, slots=True)
class EngineRun:
    """A run that was started, or was before with the same Idempotency-Key."""

    execution_id: UUID
    engine: str
    version: int
    alias: str | None
    source: str
    """What chose it, as `execute_engine` says."""
    model: str
    """As it was asked for."""
    began: int
    """Unix time."""
    caller: "Caller"
    attended: Any = None
    """What this process knows of it because it works for it itself."""

    def card(self, charged_tokens: int) -> dict[str, Any]:
        return {
            "execution_id": str(self.execution_id),
            "engine": self.engine,
            "version": self.version,
            "alias": self.alias,
            "source": self.source,
            "charged_tokens": charged_tokens,
        }


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """What came of a run. `charged_tokens` are the wallet's, the others the sums of its model calls'."""

    status: str
    reason: str | None
    error: Mapping[str, Any] | None
    output: Any
    charged_tokens: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int


class Words:
    """What a stream has said of a run's answer, while its last model call speaks: said is said.

    Each attempt of that call opens it anew. One that repeats what was said goes on from there; one that says something
    else has `changed` it, and so has an answer that is another in the end.
    """

    def __init__(self) -> None:
        self.changed = False
        self.news = asyncio.Event()
        self._said: list[str] = []
        self._new: list[str] = []
        self._attempt = 0

    def open(self) -> Callable[[str], None]:
        """Where the words of a new attempt go; what an earlier one still says is not heard."""
        self._attempt += 1
        number, repeated = self._attempt, "".join(self._said)

        def say(text: str) -> None:
            nonlocal repeated
            if number != self._attempt or self.changed:
                return
            both = min(len(repeated), len(text))
            self.changed = text[:both] != repeated[:both]
            repeated, text = repeated[both:], text[both:]
            if text and not self.changed:
                self._said.append(text)
                self._new.append(text)
            self.news.set()

        return say

    def take(self) -> str:
        """What is new since the last time."""
        text, self._new = "".join(self._new), []
        return text

    def rest(self, answer: str) -> str | None:
        """What is left to say of the whole answer; None when it does not begin with what was said."""
        said = "".join(self._said).removesuffix("".join(self._new))
        return answer[len(said) :] if answer.startswith(said) else None


class Engines(Protocol):
    """Runs engines for callers who are known by a token. All raise VanillaError."""

    def place(self) -> AbstractContextManager[None]:
        """A place among those who wait, for the time of the block. Raises VanillaError `saturated`."""

    async def start(
        self,
        token: str,
        ref: str | None,
        body: Mapping[str, Any],
        *,
        idempotency_key: str | None,
        request_id: str | None,
        client_ip: str,
        words: Words | None = None,
    ) -> EngineRun:
        """Runs what `ref` means to the caller, None what is chosen for them. Raises InvalidRequest as `input_of`.

        This process works for the run, as far as it may, until `leave`; `words` hears of its answer as it comes.
        """

    async def end(self, run: EngineRun, gone: asyncio.Event) -> EngineEnd | None:
        """Waits for the end; None when `gone` is set before. Raises VanillaError `still_running`."""

    def leave(self, run: EngineRun) -> None:
        """Nobody waits for it any more."""

    async def models(self, token: str) -> tuple[list[dict[str, Any]], bool]:
        """Rows of `GET /v1/models` of what the caller may run, and whether they may call nothing else."""


class EngineFailed(Exception):
    """A run that gave no answer, in the fields of a VanillaError; `name` is the reason of the run."""

    hint = None

    def __init__(self, run: EngineRun, end: EngineEnd):
        error = end.error or {}
        reason = end.reason or end.status
        self.name = SAME.get(reason, end.status if end.status == "cancelled" else reason)
        self.status = _STATUS.get(self.name, 502)
        self.message = str(error.get("message") or f"The run of the engine {run.engine} ended as {end.status}.")
        super().__init__(self.message)
        details = error.get("details")
        self.detail = {
            **(details if isinstance(details, dict) else {}),
            "execution_id": str(run.execution_id),
            "engine": run.card(end.charged_tokens),
        }


class AnswerChanged(EngineFailed):
    """Another attempt, or another worker, gave an answer that does not begin with what a stream has said of it."""

    def __init__(self, run: EngineRun, end: EngineEnd | None = None):
        Exception.__init__(self)
        self.name, self.status = "answer_changed", 502
        self.message = (
            "The model call broke off, and its next attempt gave another answer; the run's output is the later one."
        )
        self.detail = {"execution_id": str(run.execution_id)}
        if end is not None:
            self.detail["engine"] = run.card(end.charged_tokens)


def refuse_options(body: Mapping[str, Any], payer: str | None) -> None:
    """Raises InvalidRequest for what would be silently left out; sampling is the matter of the engine's nodes."""
    validate_common(body)
    if choices(body) != 1:
        raise InvalidRequest("unsupported_parameter", "An engine gives one answer; leave n out.", "n")
    for name in ("tools", "functions"):
        if body.get(name):
            raise InvalidRequest("unsupported_parameter", f"An engine has tools of its own; leave {name} out.", name)
    if payer is not None:
        message = "An engine runs as the user of the key, who pays; leave X-Vanilla-User and user out."
        raise InvalidRequest("unsupported_parameter", message, "user")


def input_of(body: Mapping[str, Any], engine: str, schema: object, parameters: object) -> dict[str, Any]:
    """The engine's input that a chat is, by the schema of its input and its declared parameters.

    The body's field `input` is all of it. Else `messages` go into a list of that name, or the last message of the user
    into the one text that is required and has no default, or that is named as one of TEXT_NAMES.
    Raises InvalidRequest `input_required` when none of these is there.
    """
    given = body.get("input")
    if given is not None:
        if not isinstance(given, dict):
            raise InvalidRequest("invalid_request", "input is an object: what the engine is given.", "input")
        return given
    validate(body)
    properties = _object(_object(schema).get("properties"))
    if _is(properties.get("messages"), "array"):
        return {"messages": body["messages"]}
    name = _text_property(properties, _object(schema).get("required"), _object(parameters))
    if name is None:
        takes = f"an object with {', '.join(properties)}" if properties else "an object, which may be empty"
        raise InvalidRequest(
            "input_required",
            f"It is not clear where in the input of the engine {engine} a message belongs: it takes {takes}."
            " Send that as the body's field input (of OpenAI's SDK: extra_body).",
            "input",
        )
    return {name: _last_text(body["messages"])}


def _text_property(properties: Mapping[str, Any], required: object, parameters: Mapping[str, Any]) -> str | None:
    texts = [name for name, schema in properties.items() if _is(schema, "string")]
    needed = [
        name
        for name in texts
        if isinstance(required, list) and name in required and "default" not in _object(parameters.get(name))
    ]
    for found in (needed, [name for name in TEXT_NAMES if name in texts]):
        if len(found) == 1:
            return found[0]
    return None


def _last_text(messages: list[Any]) -> str:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].get("role") == "user":
            return _text(messages[index].get("content"), f"messages[{index}].content")
    raise InvalidRequest("invalid_request", "There is no message of the role user.", "messages")


def _text(content: object, where: str) -> str:
    parts = [content] if isinstance(content, str) else content if isinstance(content, list) else [None]
    texts = [part if isinstance(part, str) else _object(part).get("text") for part in parts]
    said = [text for text in texts if isinstance(text, str)]
    if len(said) < len(texts):
        message = "An engine is given text; send anything else in the body's field input."
        raise InvalidRequest("unsupported_content", message, where)
    return "\n".join(said)


def _is(schema: object, kind: str) -> bool:
    found = _object(schema).get("type")
    return found == kind or (isinstance(found, list) and kind in found)


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def text_of(output: object) -> str:
    """An output as a message: a text itself, the `text` of an object or of its only member, else JSON."""
    if isinstance(output, str):
        return output
    only = next(iter(output.values())) if isinstance(output, dict) and len(output) == 1 else None
    for found in (output, only):
        if isinstance(found, dict) and isinstance(found.get("text"), str):
            return str(found["text"])
    return orjson.dumps(output).decode()


def completion(run: EngineRun, end: EngineEnd) -> bytes:
    """A whole answer. Raises EngineFailed."""
    message = {"role": "assistant", "content": _answer(run, end), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    more = {"usage": _usage(end), "engine": run.card(end.charged_tokens)}
    return orjson.dumps(_envelope(run, "chat.completion") | {"choices": [choice]} | more)


def first_chunk(run: EngineRun) -> bytes:
    """What a stream begins with, so that a client sees the run before its end."""
    return _chunk(run, {"role": "assistant", "content": ""})


def words_chunk(run: EngineRun, text: str) -> bytes:
    """Words while they are generated."""
    return _chunk(run, {"content": text})


def last_chunks(run: EngineRun, end: EngineEnd, body: Mapping[str, Any], words: Words) -> Iterator[bytes]:
    """The rest of a stream whose run has ended. Raises EngineFailed."""
    text = words.rest(_answer(run, end))
    if text is None:
        raise AnswerChanged(run, end)
    for begin in range(0, len(text), PIECE):
        yield _chunk(run, {"content": text[begin : begin + PIECE]})
    yield _chunk(run, {}, "stop", engine=run.card(end.charged_tokens))
    if _object(body.get("stream_options")).get("include_usage") is True:
        yield _event(_envelope(run, "chat.completion.chunk") | {"choices": [], "usage": _usage(end)})
    yield b"data: [DONE]\n\n"


def _answer(run: EngineRun, end: EngineEnd) -> str:
    if end.status != "succeeded":
        raise EngineFailed(run, end)
    return text_of(end.output)


def _chunk(run: EngineRun, delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event(_envelope(run, "chat.completion.chunk") | {"choices": [choice]} | more)


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _envelope(run: EngineRun, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{run.execution_id}", "object": kind, "created": run.began, "model": run.model}


def _usage(end: EngineEnd) -> dict[str, Any]:
    return {
        "prompt_tokens": end.input_tokens,
        "completion_tokens": end.output_tokens,
        "total_tokens": end.input_tokens + end.output_tokens,
        "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
    }
