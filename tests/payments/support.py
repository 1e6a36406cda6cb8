"""A tenant that sells, events as Stripe words them, and a server that answers as Stripe does."""

import hashlib
import hmac
import itertools
import json
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web

from tests.tokens.support import START, Books, User

WEBHOOK_SECRET = "whsec_test1234567890"
API_KEY = "sk_test_1234567890abcdef"
PACK_TOKENS, PACK_AMOUNT = 1000, 900
_numbers = itertools.count(1)


def signed(body: bytes, secret: str = WEBHOOK_SECRET, at: float | None = None) -> str:
    """The header that Stripe sends with a body: HMAC-SHA-256 over time, dot and body."""
    moment = int(time.time() if at is None else at)
    return f"t={moment},v1={hmac.new(secret.encode(), f'{moment}.'.encode() + body, hashlib.sha256).hexdigest()}"


def event(
    kind: str, thing: dict[str, Any], at: datetime | float = START, event_id: str | None = None, **more: Any
) -> dict[str, Any]:
    """An event of Stripe's about an object."""
    moment = at.timestamp() if isinstance(at, datetime) else at
    return {
        "id": event_id or f"evt_{next(_numbers)}_{uuid.uuid4().hex[:8]}", "object": "event", "type": kind,
        "created": int(moment), "livemode": False, "data": {"object": thing}, **more,
    }  # fmt: skip


def subscription(
    customer: str, price: str, status: str = "active", subscription_id: str = "sub_1", **more: Any
) -> dict[str, Any]:
    item = {"price": {"id": price}, "current_period_end": int(START.timestamp()) + 30 * 86400}
    return {
        "id": subscription_id, "object": "subscription", "customer": customer, "status": status,
        "cancel_at_period_end": False, "items": {"data": [item]}, **more,
    }  # fmt: skip


def intent(customer: str, payment_id: Any, intent_id: str = "pi_1", **more: Any) -> dict[str, Any]:
    return {
        "id": intent_id, "object": "payment_intent", "customer": customer, "status": "succeeded", "currency": "usd",
        "amount": PACK_AMOUNT, "amount_received": PACK_AMOUNT, "payment_method": "pm_1",
        "metadata": {"vanilla_payment": str(payment_id)}, **more,
    }  # fmt: skip


def refund(amount: int, refund_id: str = "re_1", status: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "id": refund_id, "object": "refund", "amount": amount, "currency": "usd", "payment_intent": "pi_1",
        "status": status, **more,
    }  # fmt: skip


def dispute(status: str, amount: int = PACK_AMOUNT, **more: Any) -> dict[str, Any]:
    return {
        "id": "dp_1", "object": "dispute", "amount": amount, "currency": "usd", "payment_intent": "pi_1",
        "status": status, **more,
    }  # fmt: skip


@dataclass
class Shop:
    """Calls of the operator and of the runtime in the database with the movable clock."""

    books: Books
    user: User
    endpoint: bytes
    customer: str
    pack: uuid.UUID
    intents: str = field(default_factory=lambda: uuid.uuid4().hex[:10])

    async def send(self, kind: str, thing: dict[str, Any], **more: Any) -> str:
        """The outcome of an event."""
        return (await self.apply(event(kind, thing, **more)))["outcome"]

    async def apply(self, told: dict[str, Any], asked: bool = False) -> dict[str, Any]:
        # ids of Stripe's are distinct in an account, and each test has an account of its own
        return await self.books.connection.fetchval(
            "select vanilla.apply_payment_event($1, $2, $3)", self.endpoint, told, asked
        )

    async def payment(self, cause: str = "checkout", state: str = "open", user: User | None = None) -> uuid.UUID:
        """What begin_checkout leaves; its own test calls it as the user."""
        buyer = user or self.user
        return await self.books.connection.fetchval(
            "insert into payments (tenant_id, user_id, account_tenant_id, cause, state, price_id, tokens, currency,"
            " amount, created_at) values ($1, $2, $1, $3, $4, 'price_pack', $5, 'USD', $6, vanilla.clock())"
            " returning id",
            buyer.tenant_id, buyer.id, cause, state, PACK_TOKENS, PACK_AMOUNT,
        )  # fmt: skip

    async def buy(self, intent_id: str = "pi_1") -> uuid.UUID:
        """A pack that was paid."""
        made = await self.payment()
        assert await self.send("payment_intent.succeeded", intent(self.customer, made, intent_id)) == "applied"
        return made

    async def level(self) -> str:
        return await self.books.connection.fetchval(
            "select l.slug from user_token_wallets w join levels l on l.tenant_id = w.tenant_id and l.id = w.level_id"
            " where w.tenant_id = $1 and w.user_id = $2",
            self.user.tenant_id,
            self.user.id,
        )

    async def row(self, payment_id: uuid.UUID) -> Any:
        return await self.books.connection.fetchrow("select * from payments where id = $1", payment_id)

    async def told(self, kind: str) -> list[dict[str, Any]]:
        """Payloads of the events of a type that were written for the tenant."""
        rows = await self.books.connection.fetch(
            "select payload from events where tenant_id = $1 and type = $2 order by created_at, id",
            self.user.tenant_id,
            kind,
        )
        return [row["payload"] for row in rows]

    async def top_up(self, threshold: int = 500, ceiling: int = 2000, kept: bool = True) -> None:
        """An auto top-up of the pack."""
        if kept:
            await self.books.connection.execute(
                "update payment_customers set payment_method = 'pm_1' where tenant_id = $1", self.user.tenant_id
            )
        await self.books.connection.execute(
            "select set_auto_top_up($1, $2, $3, true, $4)", self.pack, threshold, ceiling, self.user.id
        )

    async def claim(self, connection: Any = None) -> list[dict[str, Any]]:
        """What of this tenant was leased; other tests' users are left to them."""
        found = await (connection or self.books.connection).fetchval("select vanilla.claim_top_ups(1000)")
        return [one for one in found if one["tenant_id"] == str(self.user.tenant_id)]

    async def finish(self, claimed: dict[str, Any], answer: Any = None, error: str | None = None) -> str | None:
        return await self.books.connection.fetchval(
            "select vanilla.finish_top_up($1, $2, $3, $4, $5)",
            *(uuid.UUID(claimed[name]) for name in ("tenant_id", "payment_id", "lease_id")), answer, error,
        )  # fmt: skip


async def open_shop(books: Books) -> Shop:
    user = await books.user()
    one = books.connection.fetchval
    endpoint = uuid.uuid4().bytes
    await one(
        "select set_payment_account($1, $2, 'sealed', 'sk_test', 'sealed', p_tenant_id => $3)",
        uuid.uuid4(), endpoint, user.tenant_id,
    )  # fmt: skip
    pack = await one(
        "select set_payment_price('price_pack', 'pack', 'Pack', 'usd', $1, $2, p_tenant_id => $3)",
        PACK_AMOUNT, PACK_TOKENS, user.tenant_id,
    )  # fmt: skip
    for slug in ("basic", "premium"):
        await one(
            "select set_payment_price('price_' || $1, 'level', $1, 'USD', 2900, p_level_id => $2, p_tenant_id => $3)",
            slug, user.levels[slug], user.tenant_id,
        )  # fmt: skip
    customer = f"cus_{uuid.uuid4().hex[:12]}"
    await books.connection.execute(
        "insert into payment_customers (tenant_id, user_id, account_tenant_id, customer_id) values ($1, $2, $1, $3)",
        user.tenant_id, user.id, customer,
    )  # fmt: skip
    return Shop(books, user, endpoint, customer, pack)


class StripeServer:
    """Answers as Stripe does: the same idempotency key gets the first answer; keeps what it was sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], str]] = []
        """(path, form, idempotency key) in order."""
        self.answers: dict[str, dict[str, Any]] = {}
        self.fail: dict[str, tuple[int, dict[str, Any]]] = {}
        """Status and error by path, instead of an answer."""
        self.subscriptions: dict[str, dict[str, Any]] = {}
        """What is answered when one is asked for."""
        self.address = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/{path:.*}", self._post)
        app.router.add_get("/v1/subscriptions/{id}", self._subscription)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def sent(self, path: str) -> list[dict[str, str]]:
        """The forms that a path was sent."""
        return [form for where, form, _ in self.requests if where == path]

    async def _subscription(self, request: web.Request) -> web.Response:
        found = self.subscriptions.get(request.match_info["id"])
        if found is None:
            return web.json_response(
                {"error": {"type": "invalid_request_error", "code": "resource_missing"}}, status=404
            )
        return web.json_response(found)

    async def _post(self, request: web.Request) -> web.Response:
        path, form = request.match_info["path"], {k: str(v) for k, v in (await request.post()).items()}
        key = request.headers.get("idempotency-key", "")
        self.requests.append((path, form, key))
        if request.headers.get("authorization") != f"Bearer {API_KEY}":
            return web.json_response({"error": {"type": "invalid_request_error", "message": "no such key"}}, status=401)
        if path in self.fail:
            status, error = self.fail[path]
            return web.json_response({"error": error}, status=status)
        if key not in self.answers:
            made = self._made(path, form)
            self.answers[key or uuid.uuid4().hex] = made
            return web.json_response(made)
        return web.json_response(self.answers[key])

    def _made(self, path: str, form: dict[str, str]) -> dict[str, Any]:
        number = uuid.uuid4().hex[:12]
        if path == "customers":
            return {"id": f"cus_{number}", "object": "customer"}
        if path == "payment_intents":
            return {
                "id": f"pi_{number}", "object": "payment_intent", "status": "succeeded", "currency": form["currency"],
                "amount": int(form["amount"]), "amount_received": int(form["amount"]), "customer": form["customer"],
                "payment_method": form["payment_method"],
                "metadata": {"vanilla_payment": form["metadata[vanilla_payment]"]},
            }  # fmt: skip
        return {"id": f"cs_{number}", "object": "session", "url": f"https://checkout.stripe.test/{number}"}


def encoded(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode()
