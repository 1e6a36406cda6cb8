"""A model server that says what a test tells it, word by word."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Answer:
    """Words that go out one by one; before the last `held` of them it waits for `Upstream.go`."""

    words: list[str]
    held: int = 0
    cut: bool = False
    """The connection breaks off behind the words."""


@dataclass
class Upstream:
    answers: list[Answer] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Who asked has hung up before the held words."""
    url: str = ""

    def will(self, *answers: Answer) -> None:
        self.answers, self.asked, self.go, self.left = list(answers), [], asyncio.Event(), asyncio.Event()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        answer = self.answers.pop(0)
        if not body.get("stream"):
            if answer.held:
                await self._held(request)
            said = {"role": "assistant", "content": "".join(answer.words)}
            return web.json_response({"choices": [{"index": 0, "message": said}], "usage": _usage(answer)})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for place, word in enumerate(answer.words):
            if place == len(answer.words) - answer.held:
                await self._held(request)
            await _send(response, {"choices": [{"index": 0, "delta": {"content": word}}]})
        if answer.cut:
            assert request.transport is not None
            request.transport.close()
            return response
        await _send(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await _send(response, {"choices": [], "usage": _usage(answer)})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _held(self, request: web.Request) -> None:
        go, left = self.go, self.left
        while not go.is_set():
            if request.transport is None or request.transport.is_closing():
                left.set()
                return
            await asyncio.sleep(0.01)


def _usage(answer: Answer) -> dict[str, int]:
    return {"prompt_tokens": 10, "completion_tokens": len(answer.words), "total_tokens": 10 + len(answer.words)}


async def _send(response: web.StreamResponse, data: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(data).encode() + b"\n\n")


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    made, app = Upstream(), web.Application()
    app.router.add_post("/v1/chat/completions", made.chat)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield made
    finally:
        made.go.set()
        await runner.cleanup()
