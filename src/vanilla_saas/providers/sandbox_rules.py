"""What the sandbox answers: a pure function of the request, without clock, randomness or I/O.

A sandbox token is four bytes of UTF-8, the last one possibly shorter (`count_tokens`). A text cut after
n tokens at a character boundary counts exactly n again, so a stream that dies after n chunks of one token
delivered n tokens: the true charge of an interrupted call is known to tests.
"""

import base64
import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import orjson

MODELS = ("sandbox-small", "sandbox-large", "sandbox-embed")
BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_PROMPT = 3
TOKENS_PER_MEDIA_PART = 256
MAX_SCRIPTED_MS = 600_000
MAX_SCRIPTED_TOKENS = 1_000_000
DEFAULT_DIMENSIONS = 256
MAX_DIMENSIONS = 4096
MAX_NUMBERS = 2**21
"""Of all vectors of one answer: the sandbox shares its process with others."""


class SandboxError(Exception):
    """A refusal in the words of OpenAI's error object."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> bytes:
        kind = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str

    def size(self) -> int:
        return len(self.name.encode()) + len(self.arguments.encode())


@dataclass(frozen=True, slots=True)
class Script:
    """What a request tells the sandbox to do; docs/sandbox.md explains each field."""

    latency_ms: int = 0
    chunk_latency_ms: int = 0
    reply: str | None = None
    completion_tokens: int | None = None
    ignore_max_tokens: bool = False
    status: int | None = None
    retry_after: int | None = None
    error_after_chunks: int | None = None
    usage: Literal["missing"] | dict[str, Any] | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None
    malformed: bool = False


NO_SCRIPT = Script()
_FIELDS = frozenset(field.name for field in fields(Script))
_UPPER_BOUNDS = {
    "latency_ms": MAX_SCRIPTED_MS,
    "chunk_latency_ms": MAX_SCRIPTED_MS,
    "completion_tokens": MAX_SCRIPTED_TOKENS,
    "status": 599,
    "retry_after": 86_400,
    "error_after_chunks": MAX_SCRIPTED_TOKENS,
}


def parse_script(raw: bytes | str) -> Script:
    """The script in `raw`; SandboxError 400 names the first field that is wrong."""
    try:
        values = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _bad_script("it is not JSON") from error
    if not isinstance(values, dict):
        raise _bad_script("it is not a JSON object")
    for name, value in values.items():
        if name not in _FIELDS:
            raise _bad_script(f"field {name!r} is not one of {', '.join(sorted(_FIELDS))}")
        if value is not None and not _fits(name, value):
            raise _bad_script(f"field {name!r} has a value that it cannot take")
    if values.get("tool_calls") is not None:
        values["tool_calls"] = tuple(values["tool_calls"])
    return Script(**{name: value for name, value in values.items() if value is not None})


def _fits(name: str, value: object) -> bool:
    if name in ("ignore_max_tokens", "malformed"):
        return isinstance(value, bool)
    if name == "reply":
        return isinstance(value, str)
    if name == "usage":
        return value == "missing" or isinstance(value, dict)
    if name == "tool_calls":
        return isinstance(value, list) and all(
            isinstance(call, dict)
            and isinstance(call.get("name"), str)
            and isinstance(call.get("arguments", ""), str | dict)
            for call in value
        )
    lowest = 400 if name == "status" else 0
    return type(value) is int and lowest <= value <= _UPPER_BOUNDS[name]


def _bad_script(why: str) -> SandboxError:
    return SandboxError(400, f"The sandbox script is refused: {why}.", code="invalid_script")


def script_of(header: bytes | None, body: Mapping[str, Any]) -> Script:
    """The header's script, else that of a last user message or last input `sandbox: {...}`, else none."""
    if header is not None:
        return parse_script(header)
    if (turns := _turns_of(body)) is not None:
        return turns
    text = (last_user_text(body) if "messages" in body else _last_input(body)).strip()
    if text.startswith("sandbox:") and text[8:].lstrip().startswith("{"):
        return parse_script(text[8:].strip())
    return NO_SCRIPT


def _turns_of(body: Mapping[str, Any]) -> Script | None:
    """Of a first system message that ends with `sandbox: {"turns": [...]}` the script of this turn.

    The turn is the number of answers that the request has already; behind the last one it is the last. Who is offered
    no tools calls none: what the turn says otherwise is its answer.
    """
    messages = _objects(body.get("messages"))
    if not messages or messages[0].get("role") != "system":
        return None
    _, found, raw = "".join(texts_of(messages[0].get("content"))).rpartition("sandbox: {")
    if not found:
        return None
    try:
        turns = orjson.loads("{" + raw).get("turns")
    except orjson.JSONDecodeError as error:
        raise _bad_script("it is not JSON") from error
    if not isinstance(turns, list) or not turns:
        raise _bad_script("field 'turns' is a list of scripts")
    turn = sum(message.get("role") == "assistant" for message in messages)
    script = parse_script(orjson.dumps(turns[min(turn, len(turns) - 1)]))
    if script.tool_calls is None:
        return script
    if not body.get("tools"):
        return replace(script, tool_calls=None)
    calls = ({"id": f"call_{turn}_{number}", **call} for number, call in enumerate(script.tool_calls))
    return replace(script, tool_calls=tuple(calls))


def count_tokens(text: str) -> int:
    """Sandbox tokens of a text: its UTF-8 bytes by four, rounded up."""
    return tokens_of_bytes(len(text.encode()))


def tokens_of_bytes(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)


def cut(text: str, tokens: int) -> str:
    """The longest start of the text that counts at most `tokens` sandbox tokens."""
    return text.encode()[: tokens * BYTES_PER_TOKEN].decode(errors="ignore")


def pieces(text: str) -> list[str]:
    """The text in chunks such that the first n of them count n tokens, for every n."""
    if text.isascii():
        return [text[start : start + BYTES_PER_TOKEN] for start in range(0, len(text), BYTES_PER_TOKEN)]
    parts: list[str] = []
    begin = size = 0
    for position, character in enumerate(text):
        size += len(character.encode())
        if size > (len(parts) + 1) * BYTES_PER_TOKEN:
            parts.append(text[begin:position])
            begin = position
    return [*parts, text[begin:]]


def texts_of(content: object) -> Iterator[str]:
    """The texts of a message's content, a string or a list of parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, str):
                yield part
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _functions(value: object) -> list[dict[str, Any]]:
    """The `function` of each element of a list of tools or tool calls."""
    return [item["function"] for item in _objects(value) if isinstance(item.get("function"), dict)]


def last_user_text(body: Mapping[str, Any]) -> str:
    for message in reversed(_objects(body.get("messages"))):
        if message.get("role") == "user":
            return "".join(texts_of(message.get("content")))
    return ""


def _last_input(body: Mapping[str, Any]) -> str:
    given = body.get("input")
    last = given[-1] if isinstance(given, list) and given else given
    return last if isinstance(last, str) else ""


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Prompt tokens of a chat request.

    3 a prompt, 4 a message, 256 a part that is not text, and `count_tokens` of: each message's texts,
    name and tool calls; the JSON of `tools`.
    """
    total = TOKENS_PER_PROMPT
    for message in _objects(body.get("messages")):
        content = message.get("content")
        size = sum(len(text.encode()) for text in texts_of(content))
        if isinstance(message.get("name"), str):
            size += len(message["name"].encode())
        for function in _functions(message.get("tool_calls")):
            size += sum(
                len(text.encode()) for text in map(function.get, ("name", "arguments")) if isinstance(text, str)
            )
        media = 0
        if isinstance(content, list):
            media = sum(isinstance(part, dict) and "text" not in part for part in content)
        total += TOKENS_PER_MESSAGE + tokens_of_bytes(size) + media * TOKENS_PER_MEDIA_PART
    if body.get("tools"):
        total += tokens_of_bytes(len(orjson.dumps(body["tools"])))
    return total


@dataclass(frozen=True, slots=True)
class Reply:
    """One choice; every choice of a request is the same."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    completion_tokens: int
    """As reported by usage for one choice."""


def compose(body: Mapping[str, Any], script: Script) -> Reply:
    """The answer to a chat request."""
    limit = None if script.ignore_max_tokens else output_limit(body)
    calls = _tool_calls(body, script)
    if calls:
        return _reply_with_calls(calls, limit, script)
    text = script.reply if script.reply is not None else _default_text(body)
    if script.completion_tokens is not None and script.reply is None:
        text = _stretched(text, script.completion_tokens)
    finish = "stop"
    if limit is not None and count_tokens(text) > limit:
        text, finish = cut(text, limit), "length"
    tokens = count_tokens(text)
    if script.completion_tokens is not None:
        tokens = script.completion_tokens if limit is None else min(script.completion_tokens, limit)
    return Reply(text, (), finish, tokens)


def _reply_with_calls(calls: tuple[ToolCall, ...], limit: int | None, script: Script) -> Reply:
    kept, finish = calls, "tool_calls"
    if limit is not None and tokens_of_bytes(sum(call.size() for call in calls)) > limit:
        kept, finish = _calls_within(calls, limit * BYTES_PER_TOKEN), "length"
    tokens = tokens_of_bytes(sum(call.size() for call in kept))
    if script.completion_tokens is not None:
        tokens = script.completion_tokens if limit is None else min(script.completion_tokens, limit)
    return Reply("", kept, finish, tokens)


def _calls_within(calls: tuple[ToolCall, ...], budget: int) -> tuple[ToolCall, ...]:
    kept: list[ToolCall] = []
    for call in calls:
        budget -= len(call.name.encode())
        if budget < 0:
            break
        arguments = call.arguments.encode()[:budget].decode(errors="ignore")
        budget -= len(arguments.encode())
        kept.append(ToolCall(call.id, call.name, arguments))
    return tuple(kept)


def output_limit(body: Mapping[str, Any]) -> int | None:
    """The request's own limit; SandboxError 400 when it is not a positive integer."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise SandboxError(400, f"{name} must be a positive integer.", param=name)
        return value
    return None


def _default_text(body: Mapping[str, Any]) -> str:
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = (form.get("json_schema") or {}).get("schema") or {}
        return orjson.dumps(example_of(schema)).decode()
    said = last_user_text(body).strip()
    if isinstance(form, dict) and form.get("type") == "json_object":
        return orjson.dumps({"reply": cut(said, 64)}).decode()
    shown = cut(said, 64)
    quote = f'You said: "{shown}{"..." if len(shown) < len(said) else ""}"'
    if body.get("model") != "sandbox-large":
        return quote
    count = len(body.get("messages") or [])
    return (
        f"{quote}\n\nI am the sandbox: a model server that answers the same request with the same words. "
        f"I read {count} message{'' if count == 1 else 's'} with {len(said.split())} words in the last one."
    )


def _stretched(text: str, tokens: int) -> str:
    text = text or "sandbox"
    repeats = tokens * BYTES_PER_TOKEN // len(text.encode()) + 1
    return cut(f"{text} " * repeats, tokens)


def _tool_calls(body: Mapping[str, Any], script: Script) -> tuple[ToolCall, ...]:
    if script.tool_calls is not None:
        return tuple(
            ToolCall(str(call.get("id", f"call_{number}")), call["name"], _arguments(call.get("arguments", "{}")))
            for number, call in enumerate(script.tool_calls)
        )
    function = _forced_function(body)
    if function is None:
        return ()
    arguments = orjson.dumps(example_of(function.get("parameters") or {"type": "object"})).decode()
    return (ToolCall("call_0", function["name"], arguments),)


def _arguments(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _forced_function(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The function that `tool_choice` forces: the named one, or the first for "required"."""
    choice = body.get("tool_choice")
    functions = [function for function in _functions(body.get("tools")) if isinstance(function.get("name"), str)]
    if choice == "required":
        return functions[0] if functions else None
    if not isinstance(choice, dict) or not isinstance(choice.get("function"), dict):
        return None
    wanted = choice["function"].get("name")
    for function in functions:
        if function["name"] == wanted:
            return function
    raise SandboxError(400, f"tool_choice names {wanted!r}, which is not in tools.", param="tool_choice")


def example_of(schema: Mapping[str, Any], depth: int = 8) -> Any:
    """A value of a JSON schema: the constant, default or first enum value, else the plainest one."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key) and depth:
            return example_of(schema[key][0], depth - 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        names = schema.get("required", list(schema.get("properties", {})))
        if not depth:
            return {}
        return {name: example_of(schema.get("properties", {}).get(name, {}), depth - 1) for name in names}
    if kind == "array":
        items = schema.get("items", {})
        return [example_of(items, depth - 1) for _ in range(min(schema.get("minItems", 0), 8))] if depth else []
    plain = {"integer": schema.get("minimum", 1), "number": schema.get("minimum", 1.0)}
    return {"boolean": True, "null": None, **plain}.get(str(kind), "sandbox")


def usage_of(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _inputs(body: Mapping[str, Any]) -> list[Any]:
    """What is to be embedded: texts, or lists of token ids."""
    given = body.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int):
        return [given]
    if isinstance(given, list) and given:
        return given
    raise SandboxError(400, "input must be a text, a list of texts or token ids.", param="input")


def embedding_tokens(body: Mapping[str, Any]) -> int:
    """Prompt tokens of an embeddings request: `count_tokens` of each text, one a token id."""
    return sum(count_tokens(item) if isinstance(item, str) else len(item) for item in _inputs(body))


def embed(body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to an embeddings request: hashed words, so texts that share words are near."""
    dimensions = body.get("dimensions")
    dimensions = DEFAULT_DIMENSIONS if dimensions is None else dimensions
    if type(dimensions) is not int or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise SandboxError(400, f"dimensions must lie in 1..{MAX_DIMENSIONS}.", param="dimensions")
    inputs = _inputs(body)
    if dimensions * len(inputs) > MAX_NUMBERS:
        most = MAX_NUMBERS // dimensions
        raise SandboxError(400, f"The sandbox takes {most} inputs of {dimensions} dimensions at a time.", param="input")
    as_base64 = body.get("encoding_format") == "base64"
    data = []
    for index, item in enumerate(inputs):
        words = item.split() if isinstance(item, str) else [str(token) for token in item]
        vector: list[float] | str = _vector(words, dimensions)
        if as_base64:
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = embedding_tokens(body)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.get("model"), "usage": usage}


def _vector(words: list[str], dimensions: int) -> list[float]:
    vector = [0.0] * dimensions
    for word in words or [""]:
        digest = int.from_bytes(hashlib.blake2b(word.lower().encode(), digest_size=8).digest())
        vector[(digest >> 1) % dimensions] += 1.0 if digest & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    if length == 0:
        return [1.0] + [0.0] * (dimensions - 1)
    return [value / length for value in vector]
