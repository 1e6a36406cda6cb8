"""The two floors, as uvicorn serves them: a bare ASGI application that passes a call on with aiohttp.

FLOOR_DSN empty: nothing but the pass-through. Else one SQL function before the call and one after it: no keys, no
prices, no limits, no history beyond a ledger row, and a wallet that the request names itself (x-floor-wallet).
"""

import os
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import asyncpg
import orjson

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

UPSTREAM = os.environ.get("FLOOR_UPSTREAM", "")
DSN = os.environ.get("FLOOR_DSN", "")
POOL = int(os.environ.get("FLOOR_POOL", "10"))
HEADERS = {"authorization": "Bearer none", "content-type": "application/json"}
RESERVE, SETTLE = "select floor_reserve($1, $2, $3)", "select floor_settle($1, $2, $3, $4)"
TOTAL = re.compile(rb'"total_tokens":(\d+)')


class Floor:
    session: aiohttp.ClientSession
    pool: asyncpg.Pool | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = orjson.loads(body)
        if self.pool is None:
            await self._forward(body, request.get("stream") is True, send)
            return
        wallet = int(next(value for name, value in scope["headers"] if name == b"x-floor-wallet"))
        execution, held = uuid.uuid4(), request["max_tokens"] + len(body)
        if not await self.pool.fetchval(RESERVE, wallet, execution, held):
            raise RuntimeError("the floor's wallet is empty")
        used = await self._forward(body, request.get("stream") is True, send, (wallet, execution, held))
        assert used

    async def _forward(
        self, body: bytes, streams: bool, send: Send, hold: tuple[int, uuid.UUID, int] | None = None
    ) -> int:
        """Passes the answer on; with a hold it is settled before the end of the answer is sent."""
        async with self.session.post(UPSTREAM, data=body, headers=HEADERS) as response:
            if not streams:
                answer = await response.read()
                used = await self._settle(hold, answer)
                length = (b"content-length", str(len(answer)).encode())
                headers = [(b"content-type", b"application/json"), length]
                await send({"type": "http.response.start", "status": response.status, "headers": headers})
                await send({"type": "http.response.body", "body": answer})
                return used
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            used = 0
            async for chunk in response.content.iter_any():
                if b"[DONE]" in chunk:
                    used = await self._settle(hold, chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return used

    async def _settle(self, hold: tuple[int, uuid.UUID, int] | None, answer: bytes) -> int:
        if hold is None or self.pool is None:
            return 0
        found = TOTAL.search(answer)
        assert found
        await self.pool.fetchval(SETTLE, *hold, int(found[1]))
        return int(found[1])

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            if (await receive())["type"] == "lifespan.startup":
                self.session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300), auto_decompress=False
                )
                if DSN:
                    self.pool = await asyncpg.create_pool(DSN, min_size=POOL, max_size=POOL)
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.session.close()
                if self.pool:
                    await self.pool.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


application = Floor()
