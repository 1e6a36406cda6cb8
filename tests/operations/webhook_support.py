"""A receiver of webhooks over real HTTP whose answers are scripted, and endpoints that lead to it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import orjson
from aiohttp import web
from standardwebhooks.webhooks import Webhook

from vanilla_saas.database.pool import Database
from vanilla_saas.operations.webhooks import WebhookSender
from vanilla_saas.operations.webhooks_signing import new_secret
from vanilla_saas.providers.secrets import OF_WEBHOOKS, SecretBox

BOX = SecretBox([bytes.fromhex("c3" * 32)], column=OF_WEBHOOKS)
"""Under the secret key of `tests.conftest.settings_for`."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CLOCK = "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe as"


@dataclass
class Received:
    """One request as it arrived."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)
        return found

    def verify(self, secret: str) -> None:
        """By the reference implementation; raises WebhookVerificationError."""
        Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """Answers with the statuses of `script` in turn, then 200; a handler answers as it likes."""

    url: str = ""
    script: list[int | Handler] = field(default_factory=list)
    requests: list[Received] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(Received({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        answer = self.script.pop(0) if self.script else 200
        return web.Response(status=answer) if isinstance(answer, int) else await answer(request)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@dataclass
class Hook:
    """An endpoint, its secret, and a user of its tenant whose wallet makes events."""

    id: uuid.UUID
    tenant_id: uuid.UUID
    user_id: uuid.UUID
    secret: str


@dataclass
class Hooks:
    """Makes endpoints through the product's functions, and moves the clock of a database that is ours alone."""

    operator: asyncpg.Connection
    tenants: list[uuid.UUID] = field(default_factory=list)

    async def make(self, url: str, *types: str, tenant_id: uuid.UUID | None = None, concurrency: int = 4) -> Hook:
        tenant = tenant_id or await self._tenant()
        user = await self.operator.fetchval(
            "select create_user($1, p_tenant_id => $2)", f"{uuid.uuid4().hex[:12]}@example.test", tenant
        )
        made, secret = uuid.uuid4(), new_secret()
        await self.operator.fetchval(
            "select create_webhook_endpoint($1, $2, $3, $4, p_concurrency => $5, p_tenant_id => $6)",
            made,
            url,
            list(types) or ["token.*"],
            BOX.encrypt(tenant, made, secret),
            concurrency,
            tenant,
        )
        return Hook(made, tenant, user, secret)

    async def _tenant(self) -> uuid.UUID:
        slug = f"t{uuid.uuid4().hex[:10]}"
        made: uuid.UUID = await self.operator.fetchval("select create_tenant($1, $1)", slug)
        return made

    async def credit(self, hook: Hook, reason: str = "gift") -> None:
        """Makes one event token.granted."""
        await self.operator.fetchval("select adjust_user_tokens($1, 5, 'credit', $2)", hook.user_id, reason)

    async def deliveries(self, hook: Hook) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.operator.fetch(
            "select * from webhook_deliveries where tenant_id = $1 and endpoint_id = $2 order by created_at, id",
            hook.tenant_id,
            hook.id,
        )
        return rows

    async def delivery(self, hook: Hook) -> asyncpg.Record:
        (row,) = await self.deliveries(hook)
        return row

    async def endpoint(self, hook: Hook) -> asyncpg.Record:
        row: asyncpg.Record = await self.operator.fetchrow("select * from webhook_endpoints where id = $1", hook.id)
        return row

    async def attempts(self, hook: Hook) -> list[tuple[int, int | None, str | None]]:
        rows = await self.operator.fetch(
            "select a.attempt, a.status_code, a.error from webhook_attempts a"
            " join webhook_deliveries d on d.tenant_id = a.tenant_id and d.id = a.delivery_id"
            " where d.endpoint_id = $1 order by d.created_at, d.id, a.attempt",
            hook.id,
        )
        return [tuple(row) for row in rows]

    async def events(self, hook: Hook) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.operator.fetch(
            "select * from events where tenant_id = $1 order by created_at, id", hook.tenant_id
        )
        return rows

    async def later(self, by: timedelta) -> None:
        """From now on the database's clock is so far ahead of the machine's."""
        await self.operator.execute(
            f"{CLOCK} $c$select pg_catalog.clock_timestamp() + interval '{by.total_seconds()} s'$c$"
        )

    async def restore(self) -> None:
        """The right time, and no endpoint that another test would send to."""
        await self.operator.execute(f"{CLOCK} 'select pg_catalog.clock_timestamp()'")
        for row in await self.operator.fetch("select tenant_id, id from webhook_endpoints"):
            await self.operator.fetchval("select delete_webhook_endpoint($1, $2)", row["id"], row["tenant_id"])


@asynccontextmanager
async def sending(database: Database, *, private: bool = True, timeout_s: float = 15) -> AsyncIterator[WebhookSender]:
    """A sender that may reach loopback; closed at the end."""
    sender = WebhookSender(database, BOX, timeout_s=timeout_s, private=private)
    try:
        yield sender
    finally:
        await sender.close()


async def send_due(sender: WebhookSender) -> int:
    """Sends what is due now and waits for the outcomes; returns how many were sent."""
    sent = await sender.run_once()
    await asyncio.wait_for(sender.drain(), 30)
    return sent
