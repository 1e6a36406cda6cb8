"""The sandbox as a provider that remembers each call: the same turn of the same run has the same body."""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from vanilla_saas.providers.sandbox import SandboxServer

Message = MutableMapping[str, Any]


class Recorder:
    """`asked` counts calls by body; `at_call` may do something when a call has come and no answer has gone."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.asked: Counter[str] = Counter()
        self.at_call: Callable[[int], Awaitable[None]] | None = None
        self.url = ""

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/chat/completions":
            await self._app(scope, receive, send)
            return
        parts: list[Message] = []
        while not parts or parts[-1].get("more_body"):
            parts.append(await receive())
        body = b"".join(part.get("body", b"") for part in parts)
        self.asked[hashlib.sha256(body).hexdigest()] += 1
        if self.at_call is not None:
            await self.at_call(self.asked.total())

        async def again() -> Message:
            return parts.pop(0) if parts else await receive()

        await self._app(scope, again, send)

    @property
    def repeated(self) -> int:
        return self.asked.total() - len(self.asked)


@asynccontextmanager
async def recorder() -> AsyncIterator[Recorder]:
    server = SandboxServer()
    made = Recorder(server.app)
    server.app = made  # type: ignore[assignment]
    async with server:
        made.url = server.url
        yield made
