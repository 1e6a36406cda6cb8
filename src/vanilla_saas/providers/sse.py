"""Server-sent events as bytes: where one ends, and what a chat stream has cost so far.

The bytes of an event are never rewritten, only forwarded or withheld. Each is parsed once, a few
microseconds, because three questions need its content: has it usage, is it an error, and how much output did
it carry (the only honest measure when the stream is cut before its usage arrives).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

MAX_EVENT_BYTES = 16 * 1024 * 1024

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)
_LINES = re.compile(_LINE_END)


class MalformedStream(Exception):
    """The provider sent something that is not the stream of chat chunks it announced."""


class ProviderErrorEvent(Exception):
    """The provider reported an error inside a stream that had begun."""


class EventSplitter:
    """Cuts a byte stream at its blank lines; how the network cut it makes no difference."""

    __slots__ = ("_buffer", "_searched")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, each with the blank line that ends it."""
        buffer = self._buffer
        if not buffer and data.endswith(b"\n\n") and b"\r" not in data:
            # nearly every read: whole events with plain line feeds, twice as fast without the expression
            return [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]
        buffer += data
        events: list[bytes] = []
        begin = 0
        for match in _BLANK_LINE.finditer(buffer, max(0, self._searched - 3)):
            end = match.end()
            if end == len(buffer) and buffer[-1] == 0x0D:
                break  # a line feed that belongs to this carriage return may still come
            events.append(bytes(buffer[begin:end]))
            begin = end
        if begin:
            del buffer[:begin]
        self._searched = len(buffer)
        if len(buffer) > MAX_EVENT_BYTES:
            raise MalformedStream(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return events

    def rest(self) -> bytes:
        """What was fed after the last whole event; at the end of a stream, an unfinished event."""
        return bytes(self._buffer)


def data_of(event: bytes) -> bytes:
    """The event's data: its `data` lines joined by line feeds, empty for comments and pings."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2 and b"\r" not in event:
        return event[6:-2]
    values = []
    for line in _LINES.split(event.removeprefix(b"\xef\xbb\xbf")):
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider reports them."""

    prompt_tokens: int
    completion_tokens: int
    """Everything generated, reasoning included."""
    cached_tokens: int = 0
    """The part of the prompt that was read from the provider's cache."""
    reasoning_tokens: int = 0
    """The part of the completion that was reasoning."""


def usage_from(reported: object) -> Usage | None:
    """The usage object of an OpenAI-compatible answer; None when there is none or it makes no sense.

    Some providers (Gemini, xAI) leave reasoning out of `completion_tokens` but not out of `total_tokens`;
    what the total has above the prompt was generated and is billed, so the larger of the two counts.
    """
    if not isinstance(reported, Mapping):
        return None
    prompt = _count(reported.get("prompt_tokens"))
    completion = _count(reported.get("completion_tokens", 0))
    if prompt is None or completion is None:
        return None
    total = _count(reported.get("total_tokens")) or 0
    completion = max(completion, total - prompt)
    cached = _detail(reported, "prompt_tokens_details", "cached_tokens")
    reasoning = _detail(reported, "completion_tokens_details", "reasoning_tokens")
    return Usage(prompt, completion, min(cached, prompt), min(reasoning, completion))


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _detail(reported: Mapping[str, Any], group: str, name: str) -> int:
    details = reported.get(group)
    return (_count(details.get(name)) or 0) if isinstance(details, Mapping) else 0


def output_bytes(delta: object) -> int:
    """UTF-8 bytes of output in a message or delta: text, refusal, reasoning, names and arguments of calls."""
    if not isinstance(delta, dict):
        return 0
    size = 0
    for name in ("content", "refusal", "reasoning_content", "reasoning"):
        value = delta.get(name)
        if isinstance(value, str):
            size += len(value) if value.isascii() else len(value.encode())
    calls = delta.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, delta.get("function_call")):
        if isinstance(function, dict):
            for name in ("name", "arguments"):
                if isinstance(function.get(name), str):
                    size += len(function[name].encode())
    return size


def estimate_completion_tokens(provider: str, sizes: Mapping[int, int]) -> int:
    """Tokens of an output of which only the bytes are known; `sizes` maps a choice to its bytes.

    A quarter of the bytes, rounded up for each choice: the sandbox's own rule, so exact there (unless a
    script overrides its count), and the usual average of English text for byte-level BPE. Providers under
    whose tokenizer that average is wrong may differ to either side. Reasoning that a provider does not
    stream is not in it.
    """
    return sum(-(-size // 4) for size in sizes.values())


class StreamMeter:
    """Follows one chat stream: which bytes go on to the client, and what they cost."""

    __slots__ = ("_keeps_usage", "_splitter", "ended", "finished", "sizes", "usage")

    def __init__(self, *, client_wants_usage: bool) -> None:
        self._splitter = EventSplitter()
        self._keeps_usage = client_wants_usage
        self.usage: Usage | None = None
        """The last usage seen; before the end of the stream at most a floor."""
        self.sizes: dict[int, int] = {}
        """Bytes of output by choice."""
        self.finished = False
        """[DONE] was seen."""
        self.ended = False
        """A finish reason was seen."""

    def feed(self, data: bytes) -> tuple[bytes, Exception | None]:
        """What to forward of `data` and earlier remains, and why nothing may follow it, if so."""
        kept = bytearray()
        try:
            for event in self._splitter.feed(data):
                if self._forwards(event):
                    kept += event
        except (MalformedStream, ProviderErrorEvent) as error:
            return bytes(kept), error
        return bytes(kept), None

    def close(self) -> tuple[bytes, Exception | None]:
        """The stream ended: what is left to forward, and whether the end came too early."""
        rest = self._splitter.rest()
        kept = b""
        if rest.strip():
            # a last event without its blank line: forwarded when it is whole, with the line it lacks
            try:
                kept = rest.rstrip(b"\r\n") + b"\n\n" if self._forwards(rest) else b""
            except (MalformedStream, ProviderErrorEvent) as error:
                return b"", error
        if not (self.finished or self.ended):
            return kept, MalformedStream("it ended before the answer did")
        return kept, None

    def _forwards(self, event: bytes) -> bool:
        data = data_of(event)
        if not data:
            return True
        if data == b"[DONE]":
            self.finished = True
            return True
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise MalformedStream("an event is not JSON") from None
        if not isinstance(chunk, dict):
            raise MalformedStream("an event is not a JSON object")
        if chunk.get("error"):
            raise ProviderErrorEvent(message_of(chunk["error"]))
        found = chunk.get("choices")
        for choice in found if isinstance(found, list) else ():
            if isinstance(choice, dict):
                self._meter(choice)
        reported = chunk.get("usage")
        if reported is not None:
            self.usage = usage_from(reported) or self.usage
            return self._keeps_usage or bool(found)
        return True

    def _meter(self, choice: dict[str, Any]) -> None:
        size = output_bytes(choice.get("delta"))
        if size:
            index = choice.get("index")
            index = index if type(index) is int else 0
            self.sizes[index] = self.sizes.get(index, 0) + size
        if choice.get("finish_reason"):
            self.ended = True


def message_of(error: object) -> str:
    """The words of an error object of any shape."""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else "no message"
