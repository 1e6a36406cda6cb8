"""What a request can cost at most, known before it is sent.

Why bytes bound tokens: a byte-level BPE (tiktoken's encodings, Claude's, Llama 3's, Qwen's) starts from
single bytes and only merges, so every token of a text covers at least one of its UTF-8 bytes, and special
tokens inside user text are encoded as plain text. The JSON of a message is never shorter than the bytes of
its texts (escapes lengthen, non-ASCII stays as it is), so the length of that JSON bounds its tokens without
a tokenizer, without the data files of one, and in one pass of C code. English costs about a quarter of the
bound; the difference is held for the duration of the call and returned at settle.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import orjson

from vanilla_saas.providers import sandbox_rules

TOKENS_PER_PROMPT = 64
"""Start of the prompt, priming of the reply, date lines and the like of a chat template."""
TOKENS_PER_MESSAGE = 16
"""Markers around a message; OpenAI's are 3 to 5, Llama's 6."""
TOKENS_PER_TOOL = 64
"""Text that a provider writes around one tool declaration."""
TOKENS_FOR_TOOLS = 1024
"""The instructions that come with the first tool; Anthropic documents up to 530 tokens."""
TOKENS_PER_IMAGE = 16_384
"""An image of detail auto or high: OpenAI's largest is 10,000 patches times 1.2, Anthropic's below 5,000,
Gemini's 258 for each tile of 768 pixels."""
TOKENS_PER_IMAGE_LOW = 5_120
"""An image of detail low. Not the 85 of OpenAI: others ignore the field and count the whole image."""
TOKENS_PER_IMAGE_4O_MINI = 49_152
"""gpt-4o-mini counts 2,833 tokens and 5,667 a tile, at most 8 tiles."""
AUDIO_BYTES_PER_TOKEN = 16
"""Gemini counts 32 tokens a second, the most of all; the thinnest speech codecs write 600 bytes a second."""
TOKENS_PER_AUDIO = 64

MAX_OUTPUT_LIMIT = 10_000_000
MAX_CHOICES = 16
MAX_USER_BYTES = 128
MAX_INPUTS = 2048
"""Texts of one embeddings request."""

Operation = Literal["chat", "embeddings"]


class Sizes(NamedTuple):
    """What a request can cost at most, in model tokens."""

    prompt: int
    """The prompt does not exceed it."""
    sandbox_prompt: int
    """What the sandbox counts in the prompt."""
    output_limit: int | None
    """Over all choices; None when the request names none, 0 for embeddings."""
    choices: int


class InvalidRequest(Exception):
    """A request that is refused before it costs anything, in the vocabulary of OpenAI's error object."""

    status = 400

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def body(self) -> bytes:
        """The JSON that a client of the OpenAI API expects."""
        error = {
            "message": self.message,
            "type": "invalid_request_error",
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error})


def sizes_of(operation: Operation, body: Mapping[str, Any]) -> Sizes:
    """Validates a request and measures it. Raises InvalidRequest for one that is not to be sent."""
    if operation == "embeddings":
        validate_embeddings(body)
        limit: int | None = 0
    else:
        limit = requested_output_limit(body)
    refuse_unpriced(body)
    asked = 1 if operation == "embeddings" else choices(body)
    return Sizes(prompt_upper_bound(body), estimate_prompt_tokens("sandbox", body), limit, asked)


def prompt_upper_bound(body: Mapping[str, Any], *, model: str | None = None) -> int:
    """A number of tokens that the prompt of a chat or embeddings request does not exceed.

    `model` is the provider's name of the model when it differs from the body's; only the price of images
    depends on it. Everything in the body counts as if it reached the prompt, because schemas, tools and
    names do. Raises InvalidRequest for a content part whose size cannot be bounded.
    """
    name = model if model is not None else body.get("model")
    media, texts = 0, dict(body)
    messages = body.get("messages")
    if isinstance(messages, list) and any(_has_parts(message) for message in messages):
        texts["messages"] = kept = []
        for index, message in enumerate(messages):
            if _has_parts(message):
                tokens, parts = _split_parts(message, str(name or ""), index)
                media += tokens
                message = {**message, "content": parts}
            kept.append(message)
    tools = [*_list(body.get("tools")), *_list(body.get("functions"))]
    overhead = TOKENS_PER_PROMPT + TOKENS_PER_MESSAGE * len(_list(messages))
    if tools:
        overhead += TOKENS_FOR_TOOLS + TOKENS_PER_TOOL * len(tools)
    # an embeddings input of token ids: an id and its comma are at least two bytes
    return len(_dumps(texts)) + overhead + media


def estimate_prompt_tokens(provider: str, body: Mapping[str, Any]) -> int:
    """The likely prompt tokens, for a call whose provider reported no usage: never above the bound.

    Exact for the sandbox; a quarter of the bytes of all texts, rounded up, for the others.
    """
    if provider == "sandbox":
        count = sandbox_rules.prompt_tokens if "messages" in body else sandbox_rules.embedding_tokens
        return count(body)
    size = sum(len(text.encode()) for text in _strings(body.get("messages") or body.get("input")))
    if body.get("tools"):
        size += len(_dumps(body["tools"]))
    ids = sum(_count_ids(item) for item in _list(body.get("input")))
    return -(-size // 4) + 4 * len(_list(body.get("messages"))) + ids + 3


def requested_output_limit(body: Mapping[str, Any]) -> int | None:
    """Validates a chat request; the output tokens it asks for over all its choices, None when unlimited.

    A provider applies its limit to each choice, so the answer is `n` times `max_completion_tokens` or
    `max_tokens`.
    """
    limits = {
        name: _limit(name, body[name]) for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None
    }
    if len(set(limits.values())) > 1:
        raise InvalidRequest(
            "invalid_request",
            "max_tokens and max_completion_tokens differ; set only max_completion_tokens.",
            "max_tokens",
        )
    validate(body)
    return next(iter(limits.values())) * choices(body) if limits else None


def choices(body: Mapping[str, Any]) -> int:
    """How many answers the request asks for."""
    value = body.get("n")
    if value is None:
        return 1
    if type(value) is not int or not 1 <= value <= MAX_CHOICES:
        raise InvalidRequest("invalid_request", f"n must be an integer in 1..{MAX_CHOICES}.", "n")
    return value


def validate(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest unless the fields that the metered call relies on are sound."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("invalid_request", "messages must be a list with at least one message.", "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest("invalid_request", "A message must be a JSON object.", f"messages[{index}]")
    validate_common(body)
    choices(body)


def validate_embeddings(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest unless it is a request for embeddings as OpenAI's API defines it."""
    validate_common(body)
    if "messages" in body:  # they would be counted in place of the input
        raise InvalidRequest("unsupported_parameter", "A request for embeddings has no messages.", "messages")
    if body.get("stream"):
        raise InvalidRequest("unsupported_parameter", "Embeddings are not streamed.", "stream")
    given = body.get("input")
    inputs = given if isinstance(given, list) and not _are_ids(given) else [given]
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidRequest("invalid_request", f"input has {len(inputs)} texts; it takes 1 to {MAX_INPUTS}.", "input")
    fits = _is_text if isinstance(inputs[0], str) else _are_ids
    for index, item in enumerate(inputs):
        if not fits(item):
            raise InvalidRequest(
                "invalid_request",
                "input must be a text that is not empty, a list of such texts, or token ids for one text or for each.",
                "input" if inputs is not given else f"input[{index}]",
            )
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidRequest("invalid_request", "encoding_format must be float or base64.", "encoding_format")
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise InvalidRequest("invalid_request", "dimensions must be a positive integer.", "dimensions")


def validate_common(body: Mapping[str, Any]) -> None:
    """The part of `validate` that also holds for embeddings: model, stream, user, text that can be stored."""
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise InvalidRequest("invalid_request", "model must be a text.", "model")
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidRequest("invalid_request", "stream must be true or false.", "stream")
    options = body.get("stream_options")
    if not isinstance(options, dict | None):
        raise InvalidRequest("invalid_request", "stream_options must be an object.", "stream_options")
    user = body.get("user")
    if user is not None and (not isinstance(user, str) or len(user.encode(errors="surrogatepass")) > MAX_USER_BYTES):
        raise InvalidRequest("invalid_request", f"user must be a text of at most {MAX_USER_BYTES} bytes.", "user")
    # the cheap test also meets the six characters \u0000 in honest text, the walk tells them apart
    if b"\\u0000" in _dumps(body) and any("\0" in text for text in _strings(body)):
        raise InvalidRequest("invalid_request", "A text contains the character U+0000, which cannot be stored.")


def refuse_unpriced(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for options that a provider bills beside or above the catalogue's prices."""
    tier = body.get("service_tier")
    if tier not in (None, "default"):
        raise InvalidRequest(
            "unsupported_parameter",
            f"service_tier {tier!r} is refused: its price is not in the catalogue. Leave it out.",
            "service_tier",
        )
    for name in ("web_search_options", "audio", "prediction"):
        if body.get(name) is not None:
            raise InvalidRequest(
                "unsupported_parameter",
                f"{name} is refused: what it adds to the bill is not in the catalogue.",
                name,
            )
    if body.get("modalities") not in (None, ["text"]):
        raise InvalidRequest("unsupported_parameter", "Only text output is priced.", "modalities")
    for index, message in enumerate(_list(body.get("messages"))):
        parts = _list(message.get("content")) if isinstance(message, dict) else []
        if any(isinstance(part, dict) and part.get("type") == "input_audio" for part in parts):
            raise InvalidRequest(
                "unsupported_content",
                "Audio input is refused: it has a price of its own, which the catalogue lacks.",
                f"messages[{index}].content",
            )


def _limit(name: str, value: object) -> int:
    if type(value) is not int:
        raise InvalidRequest("invalid_request", f"{name} must be an integer.", name)
    if not 1 <= value <= MAX_OUTPUT_LIMIT:
        raise InvalidRequest("invalid_request", f"{name} must lie in 1..{MAX_OUTPUT_LIMIT}.", name)
    return value


def _has_parts(message: object) -> bool:
    return isinstance(message, dict) and (isinstance(message.get("content"), list) or message.get("audio") is not None)


def _split_parts(message: Mapping[str, Any], model: str, index: int) -> tuple[int, list[Any]]:
    """Tokens of the media parts, and the parts that are text."""
    where = f"messages[{index}].content"
    if message.get("audio") is not None:
        why = "A reference to earlier audio has no known size."
        raise InvalidRequest("unsupported_content", why, f"messages[{index}].audio")
    tokens, texts = 0, []
    for number, part in enumerate(message["content"]):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str) or kind in ("text", "refusal"):
            texts.append(part)
        elif kind == "image_url":
            tokens += _image_tokens(part.get("image_url"), model)
        elif kind == "input_audio":
            tokens += _audio_tokens(part.get("input_audio"), f"{where}[{number}]")
        else:
            raise InvalidRequest(
                "unsupported_content",
                f"A content part of type {kind!r} is refused: its tokens cannot be bounded before the call.",
                f"{where}[{number}]",
            )
    return tokens, texts


def _image_tokens(image: object, model: str) -> int:
    if "4o-mini" in model:
        return TOKENS_PER_IMAGE_4O_MINI
    low = isinstance(image, dict) and image.get("detail") == "low"
    return TOKENS_PER_IMAGE_LOW if low else TOKENS_PER_IMAGE


def _audio_tokens(audio: object, where: str) -> int:
    data = audio.get("data") if isinstance(audio, dict) else None
    if not isinstance(data, str):
        raise InvalidRequest("unsupported_content", "Audio must carry its base64 data.", where)
    return math.ceil(len(data) * 3 / 4 / AUDIO_BYTES_PER_TOKEN) + TOKENS_PER_AUDIO


def _is_text(item: object) -> bool:
    return isinstance(item, str) and item != ""


def _are_ids(item: object) -> bool:
    # without a loop of Python's: a body may hold millions
    return isinstance(item, list) and set(map(type, item)) == {int} and min(item) >= 0


def _count_ids(item: object) -> int:
    """Token ids of one element of an embeddings input, itself an id or a list of them."""
    return 1 if isinstance(item, int) else len(item) if isinstance(item, list) else 0


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:  # lone surrogates, depth, integers beyond 64 bits
        raise InvalidRequest("invalid_request", f"The request is not plain JSON: {error}.") from error


def _strings(value: object) -> Iterator[str]:
    """Every text in a JSON value, keys included; `_dumps` has taken it, so it is at most 254 deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
