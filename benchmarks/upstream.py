"""A model server that costs as little as Python can: canned answers from an asyncio protocol.

`python -m benchmarks.upstream <port>`. The whole answer, or 22 events in one write when the request streams;
both report 20 prompt and 30 completion tokens.
"""

import asyncio
import sys
from typing import cast

import orjson
import uvloop

PROMPT_TOKENS, COMPLETION_TOKENS = 20, 30
_USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
}
_HEAD = {"id": "chatcmpl-canned", "created": 1_767_225_600, "model": "sandbox-small"}
_TEXT = "Hello! This canned answer is long enough to look like a short real one, and it is always the same."


def _whole() -> bytes:
    message = {"role": "assistant", "content": _TEXT, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = orjson.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE})
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _streamed() -> bytes:
    def event(**fields: object) -> bytes:
        return b"data: " + orjson.dumps({**_HEAD, "object": "chat.completion.chunk", **fields}) + b"\n\n"

    def choice(delta: object, finish: str | None = None) -> list[object]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

    events = [event(choices=choice({"role": "assistant", "content": "tok0 "}))]
    events += [event(choices=choice({"content": f"tok{number} "})) for number in range(1, 20)]
    events += [event(choices=choice({}, "stop")), event(choices=[], usage=_USAGE), b"data: [DONE]\n\n"]
    body = b"".join(events)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


WHOLE, STREAMED = _whole(), _streamed()


class Upstream(asyncio.Protocol):
    """One connection; requests carry content-length and come one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, rest = head.lower().partition(b"content-length:")
        if len(body) < int(rest.split(b"\r\n", 1)[0] or 0):
            return
        self.buffer = b""
        streams = b'"stream":true' in body or b'"stream": true' in body
        self.transport.write(STREAMED if streams else WHOLE)


async def _serve(port: int) -> None:
    listener = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
    await listener.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
