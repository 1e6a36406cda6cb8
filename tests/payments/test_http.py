"""Payments over HTTP, with a real server in Stripe's place: what it is asked, and what it may tell."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import Cluster, People, Person, serve, settings_for
from tests.payments.support import (
    API_KEY,
    PACK_AMOUNT,
    PACK_TOKENS,
    WEBHOOK_SECRET,
    StripeServer,
    encoded,
    event,
    intent,
    signed,
    subscription,
)
from tests.tokens.test_routes import get, post
from tests.tokens.test_wallet_routes import put
from vanilla_saas.app import create_app
from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import PLATFORM
from vanilla_saas.payments.accounts import Change, save
from vanilla_saas.payments.models import PaymentAccount
from vanilla_saas.payments.top_ups import charge_due
from vanilla_saas.settings import Settings

PAID = "payment_intent.succeeded"


@pytest.fixture
def settings(cluster: Cluster, database_name: str, tmp_path: Path, stripe: StripeServer) -> Settings:
    return settings_for(cluster, database_name, tmp_path, stripe_api_base=stripe.address, run_schedules=False)


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    async with serve(create_app(settings)) as address, aiohttp.ClientSession(address) as session:
        yield session


class Store:
    """A tenant that sells over HTTP, its admin and a user who may pay."""

    def __init__(self, http: aiohttp.ClientSession, people: People):
        self.http, self.people = http, people

    async def open(self) -> "Store":
        self.tenant = await self.people.tenant()
        self.admin = await self.people.user("admin", self.tenant, scopes=["admin"])
        self.user = await self.people.user(tenant_id=self.tenant, balance=0)
        # people pay in a session; this key stands for one
        await self.people.operator.execute("update api_keys set scopes = '{admin}' where id = $1", self.user.key_id)
        account = {"key": API_KEY, "webhook_secret": WEBHOOK_SECRET}
        self.account = await put(self.http, self.admin, "/payments/account", account)
        pack = {"kind": "pack", "name": "Pack", "currency": "usd", "amount": PACK_AMOUNT, "tokens": PACK_TOKENS}
        self.pack = await put(self.http, self.admin, "/payments/prices/price_pack", pack)
        level = await self.people.operator.fetchval(
            "select id from levels where tenant_id = $1 and slug = 'premium'", self.tenant
        )
        offer = {"kind": "level", "name": "Premium", "currency": "usd", "amount": 2900, "level_id": str(level)}
        self.premium = await put(self.http, self.admin, "/payments/prices/price_premium", offer)
        return self

    async def tell(self, told: Any, status: int = 200, path: str = "", **headers: str) -> Any:
        body = told if isinstance(told, bytes) else encoded(told)
        sent = {"stripe-signature": signed(body)} | headers
        async with self.http.post(path or self.account["webhook_path"], data=body, headers=sent) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    async def checkout(self, price: Any, person: Person | None = None, status: int = 201, **more: Any) -> Any:
        body = {"price_id": price["id"], **more}
        return (await post(self.http, person or self.user, "/payments/checkout", body, status=status))[0]

    async def customer(self) -> str:
        return await self.people.operator.fetchval(
            "select customer_id from payment_customers where tenant_id = $1 and user_id = $2",
            self.tenant,
            self.user.identity.user_id,
        )


@pytest.fixture
async def store(http: aiohttp.ClientSession, people: People) -> Store:
    return await Store(http, people).open()


async def test_a_pack_is_paid_at_stripe_and_granted_when_stripe_says_so(store: Store, stripe: StripeServer) -> None:
    begun = await store.checkout(store.pack, keep_payment_method=True)
    assert begun["url"].startswith("https://checkout.stripe.test/")
    [customer] = stripe.sent("customers")
    assert customer["email"] == store.user.email
    [form] = stripe.sent("checkout/sessions")
    assert form["mode"] == "payment"
    assert form["line_items[0][price]"] == "price_pack"
    assert form["customer"] == await store.customer()
    assert form["payment_intent_data[setup_future_usage]"] == "off_session"
    assert form["payment_intent_data[metadata][vanilla_payment]"] == begun["payment_id"]
    assert form["success_url"].endswith("/billing?notice=paid")
    told = event(PAID, intent(form["customer"], begun["payment_id"], f"pi_{uuid.uuid4().hex}"), at=time.time())
    assert (await store.tell(told))["outcome"] == "applied"
    assert await store.tell(told) == {"event_id": told["id"], "outcome": "applied", "replayed": True}
    assert (await store.people.wallet(store.user))["available_tokens"] == PACK_TOKENS
    [paid] = (await get(store.http, store.user, "/payments"))["items"]
    assert (paid["state"], paid["amount"], paid["tokens"]) == ("succeeded", PACK_AMOUNT, PACK_TOKENS)
    # the customer is made once
    await store.checkout(store.pack)
    assert len(stripe.sent("customers")) == 1


async def test_a_level_is_subscribed_to_once_and_changed_in_the_portal(store: Store, stripe: StripeServer) -> None:
    await store.checkout(store.premium)
    [form] = stripe.sent("checkout/sessions")
    assert (form["mode"], form["line_items[0][price]"]) == ("subscription", "price_premium")
    told = subscription(await store.customer(), "price_premium", subscription_id=f"sub_{uuid.uuid4().hex}")
    await store.tell(event("customer.subscription.created", told, at=time.time()))
    [found] = (await get(store.http, store.user, "/payments/subscriptions"))["data"]
    assert (found["state"], found["level_id"]) == ("active", store.premium["level_id"])
    problem = await store.checkout(store.premium, status=409)
    assert problem["need"] == "portal"
    link, _ = await post(store.http, store.user, "/payments/portal", {}, status=201)
    assert link["url"].startswith("https://")
    [form] = stripe.sent("billing_portal/sessions")
    assert form["customer"] == await store.customer()


async def test_whatever_is_wrong_with_a_signature_the_answer_is_one(store: Store) -> None:
    body = encoded(event(PAID, intent("cus_x", uuid.uuid4()), at=time.time()))
    endpoint = store.account["webhook_path"]
    answers = [
        await store.tell(body, 401, path, **{"stripe-signature": header})
        for path, header in (
            (endpoint, signed(body, "whsec_another12345")),
            (endpoint, signed(body + b" ")),
            (endpoint, signed(body, at=time.time() - 301)),
            (endpoint, ""),
            (endpoint, "t=1"),
            (endpoint, "nonsense"),
            (endpoint, f"t={int(time.time())},v1=\xff"),
            (endpoint, signed(body).replace("v1=", "v0=")),
            ("/api/v1/payments/stripe/" + "00" * 16, signed(body)),
            ("/api/v1/payments/stripe/odd", signed(body)),
        )
    ]
    answers.append(await store.tell(b"\xff\xfe", 401))
    answers.append(await store.tell(b"[]", 401))
    answers.append(await store.tell(b"{", 401))
    assert len({tuple(sorted((k, v) for k, v in a.items() if k != "request_id")) for a in answers}) == 1, answers
    count = "select count(*) from payment_events where tenant_id = $1"
    assert await store.people.operator.fetchval(count, store.tenant) == 0


async def test_a_huge_body_is_refused_before_it_is_read(store: Store) -> None:
    answer = await store.tell(b" " * (256 * 1024 + 1), 413)
    assert answer["code"] == "body_too_large"


async def test_sixteen_deliveries_at_once_grant_once(store: Store) -> None:
    begun = await store.checkout(store.pack)
    paid = intent(await store.customer(), begun["payment_id"], f"pi_{uuid.uuid4().hex}")
    told = event(PAID, paid, at=time.time())
    answers = await asyncio.gather(*(store.tell(told) for _ in range(16)))
    assert sorted(answer["replayed"] for answer in answers) == [False, *[True] * 15]
    assert (await store.people.wallet(store.user))["available_tokens"] == PACK_TOKENS


async def test_two_events_of_one_second_are_decided_by_stripe(store: Store, stripe: StripeServer) -> None:
    await store.checkout(store.premium)
    now, number = time.time(), f"sub_{uuid.uuid4().hex}"
    good = subscription(await store.customer(), "price_premium", subscription_id=number)
    await store.tell(event("customer.subscription.updated", good, at=now))
    told = event("customer.subscription.updated", good | {"status": "unpaid"}, at=now)
    # Stripe cannot be asked: it is told so, and sends the event again
    assert (await store.tell(told, 409))["code"] == "invalid_state"
    stripe.subscriptions[number] = good
    assert (await store.tell(told))["outcome"] == "applied"
    [found] = (await get(store.http, store.user, "/payments/subscriptions"))["data"]
    assert found["state"] == "active"


async def test_secrets_are_sealed_and_never_shown(store: Store) -> None:
    shown = await get(store.http, store.admin, "/payments/account")
    assert (shown["secret_hint"], shown["livemode"]) == ("sk_test_...cdef", False)
    assert API_KEY not in str(shown)
    kept = await store.people.operator.fetchrow(
        "select secret, webhook_secret, a::text as everything from payment_accounts a where tenant_id = $1",
        store.tenant,
    )
    assert API_KEY.encode() not in bytes(kept["secret"])
    assert WEBHOOK_SECRET not in kept["everything"]
    # what is left out stays
    changed = await put(store.http, store.admin, "/payments/account", {"grace_days": 3})
    assert (changed["grace_days"], changed["webhook_path"]) == (3, shown["webhook_path"])
    await store.checkout(store.pack)
    for wrong in (
        {"key": "pk_test_1234567890"},
        {"webhook_secret": "x"},
        {"stripe_account": "odd"},
        {"grace_days": 91},
    ):
        problem = await put(store.http, store.admin, "/payments/account", wrong, status=400)
        assert str(next(iter(wrong.values()))) not in problem["detail"], problem


async def test_a_key_that_stripe_does_not_know_is_told_without_being_shown(store: Store) -> None:
    await put(store.http, store.admin, "/payments/account", {"key": "sk_test_unknown1234"})
    problem = await store.checkout(store.pack, status=424)
    assert problem["code"] == "provider_not_ready"
    assert "unknown1234" not in str(problem)


async def test_users_pay_for_themselves_and_admins_set_the_rest(store: Store) -> None:
    for path in ("/payments/account", "/payments/events"):
        await get(store.http, store.user, path, status=403)
    reader = await store.people.user(tenant_id=store.tenant)
    assert [row["kind"] for row in (await get(store.http, reader, "/payments/prices"))["data"]] == ["pack", "level"]
    problem = await store.checkout(store.pack, reader, status=403)
    assert problem["need"] == "admin"
    stranger = await store.people.user("admin", await store.people.tenant(), scopes=["admin"])
    # another tenant's price, and no account there
    assert (await store.checkout(store.pack, stranger, status=409))["need"] == "payment_account"
    assert (await get(store.http, reader, f"/payments?user_id={store.user.identity.user_id}"))["items"] == []


async def test_auto_top_up_charges_without_the_user_and_asks_the_same_again(
    store: Store, stripe: StripeServer, settings: Settings, cluster: Cluster, database_name: str
) -> None:
    url = cluster.url(database=database_name)
    where = Addresses(url, url, url)
    wish = {"price_id": store.pack["id"], "threshold": 500, "monthly_ceiling": 2000}
    problem = await put(store.http, store.user, "/payments/auto-top-up", wish, status=409)
    assert problem["need"] == "payment_method"
    begun = await store.checkout(store.pack, keep_payment_method=True)
    paid = intent(
        await store.customer(), begun["payment_id"], f"pi_{uuid.uuid4().hex}", setup_future_usage="off_session"
    )
    await store.tell(event(PAID, paid, at=time.time()))
    await store.people.set_balance(store.user, 0)
    assert (await put(store.http, store.user, "/payments/auto-top-up", wish))["spent_this_month"] == 0
    # Stripe fails: the charge stays in flight, and the next run does not make another
    stripe.fail["payment_intents"] = (500, {"type": "api_error", "message": "down"})
    assert (await charge_due(where, settings))["pending"] == 1
    assert (await charge_due(where, settings)) == {"succeeded": 0, "failed": 0, "pending": 0, "elsewhere": 0}
    del stripe.fail["payment_intents"]
    await store.people.operator.execute("update payments set lease_until = now() where tenant_id = $1", store.tenant)
    assert (await charge_due(where, settings))["succeeded"] == 1
    tries = [(form, key) for path, form, key in stripe.requests if path == "payment_intents"]
    assert len({key for _, key in tries}) == 1
    form = tries[0][0]
    assert (form["amount"], form["currency"], form["off_session"], form["confirm"]) == ("900", "usd", "true", "true")
    assert (form["payment_method"], form["error_on_requires_action"]) == ("pm_1", "true")
    assert (await get(store.http, store.user, "/payments/auto-top-up"))["spent_this_month"] == PACK_AMOUNT
    assert (await store.people.wallet(store.user))["available_tokens"] == PACK_TOKENS
    # a card that is declined pauses it
    await store.people.set_balance(store.user, 0)
    stripe.fail["payment_intents"] = (402, {"type": "card_error", "code": "card_declined", "message": "no"})
    assert (await charge_due(where, settings))["failed"] == 1
    assert (await get(store.http, store.user, "/payments/auto-top-up"))["paused_reason"] == "card_declined"


async def test_the_platforms_account_serves_a_tenant_without_one(
    store: Store, http: aiohttp.ClientSession, people: People, stripe: StripeServer, settings: Settings
) -> None:
    other = await people.tenant()
    user = await people.user(tenant_id=other, balance=0)
    await people.operator.execute("update api_keys set scopes = '{admin}' where id = $1", user.key_id)
    pack = "select set_payment_price('price_pack', 'pack', 'Pack', 'USD', $1, $2, p_tenant_id => $3)"
    sold = {"id": str(await people.operator.fetchval(pack, PACK_AMOUNT, PACK_TOKENS, other))}
    assert (await store.checkout(sold, user, status=409))["need"] == "payment_account"
    change = Change(key=API_KEY, webhook_secret="whsec_platform12345")
    account = PaymentAccount.of(await save(people.operator, settings, PLATFORM, change))
    try:
        begun = await store.checkout(sold, user)
        customer = stripe.sent("checkout/sessions")[-1]["customer"]
        told = event(PAID, intent(customer, begun["payment_id"], f"pi_{uuid.uuid4().hex}"), at=time.time())
        # the tenant's own account knows nobody of the platform's
        assert (await store.tell(told))["outcome"] == "unknown_customer"
        body = encoded(told)
        header = {"stripe-signature": signed(body, "whsec_platform12345")}
        assert (await store.tell(body, 200, account.webhook_path, **header))["outcome"] == "applied"
        assert (await people.wallet(user))["available_tokens"] == PACK_TOKENS
    finally:
        await people.operator.execute("delete from payment_accounts where tenant_id = $1", PLATFORM)
