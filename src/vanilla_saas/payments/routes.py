"""`/api/v1/payments`: what people buy, what admins set, and where Stripe sends its events.

Money is spent by people who signed in and by keys of scope admin.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request

from vanilla_saas.database.cursor import Page
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.paging import Paging
from vanilla_saas.payments import checkout, store
from vanilla_saas.payments.accounts import Change, api_key, save, webhook_secret
from vanilla_saas.payments.models import (
    Checkout,
    CheckoutBody,
    Link,
    Payment,
    PaymentAccount,
    PaymentAccountBody,
    PaymentEvent,
    PaymentEvents,
    PaymentPrice,
    PaymentPriceBody,
    PaymentPrices,
    Received,
    StripePriceId,
    Subscription,
    Subscriptions,
    TopUp,
    TopUpBody,
)
from vanilla_saas.payments.stripe_api import connected, require_stripe, verified_event
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting
from vanilla_saas.web import OfUser

router = APIRouter(prefix="/api/v1/payments", tags=["payments"])
MOST_EVENT_BYTES = 256 * 1024


def _writer(caller: CurrentCaller) -> Caller:
    caller.require_scope("admin")
    return caller


def _admin(caller: CurrentCaller) -> Caller:
    caller.require_scope("admin")
    caller.require_admin()
    return caller


Writer = Annotated[Caller, Depends(_writer)]
"""Who may spend and set things, as far as the database lets them."""
Admin = Annotated[Caller, Depends(_admin)]


@router.get("/prices")
async def payment_prices(request: Request, caller: CurrentCaller) -> PaymentPrices:
    """What can be bought: packs of tokens and levels."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.prices(connection, caller.identity.tenant_id)
    return PaymentPrices(data=[PaymentPrice.of(row) for row in rows])


@router.put("/prices/{price_id}")
async def set_payment_price(
    request: Request, caller: Writer, price_id: StripePriceId, body: PaymentPriceBody
) -> PaymentPrice:
    """Says what a price of Stripe's is worth: a pack of tokens or a level. `hidden` takes it off the page."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        made = await store.set_price(connection, tenant_id, price_id, **body.model_dump())
        rows = await store.prices(connection, tenant_id, hidden=True)
    return next(PaymentPrice.of(row) for row in rows if row["id"] == made)


@router.post("/checkout", status_code=201)
async def begin_checkout(request: Request, caller: Writer, body: CheckoutBody) -> Checkout:
    """A page of Stripe's where the caller pays for a pack or subscribes to a level; no second subscription."""
    url, payment_id = await checkout.checkout(request, caller, body.price_id, keep_method=body.keep_payment_method)
    return Checkout(url=url, payment_id=payment_id)


@router.post("/portal", status_code=201)
async def portal(request: Request, caller: Writer) -> Link:
    """Stripe's customer portal, where the caller changes cards and subscriptions and finds invoices."""
    return Link(url=await checkout.portal(request, caller))


@router.get("")
async def payments(request: Request, caller: CurrentCaller, paging: Paging, user_id: OfUser = None) -> Page[Payment]:
    """Packs that a user bought or began to buy, newest first."""
    caller.require_scope("read")
    who = user_id or caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.payments(connection, caller.identity.tenant_id, who, paging.bounds)
    return paging.page(rows, Payment.of)


@router.get("/subscriptions")
async def subscriptions(request: Request, caller: CurrentCaller, user_id: OfUser = None) -> Subscriptions:
    """A user's subscriptions, the newest twenty."""
    caller.require_scope("read")
    who = user_id or caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.subscriptions(connection, caller.identity.tenant_id, who)
    return Subscriptions(data=[Subscription.of(row) for row in rows])


@router.get("/auto-top-up")
async def top_up(request: Request, caller: CurrentCaller, user_id: OfUser = None) -> TopUp:
    """What is bought by itself, and what that came to this month. 404 when nothing was ever set."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        row = await store.top_up(connection, caller.identity.tenant_id, user_id or caller.identity.user_id)
    if row is None:
        raise VanillaError("not_found", "no auto top-up was set")
    return TopUp.of(row)


@router.put("/auto-top-up")
async def set_top_up(request: Request, caller: Writer, body: TopUpBody, user_id: OfUser = None) -> TopUp:
    """Buys a pack when fewer tokens are left than a threshold, up to a ceiling a month; or stops. Ends a pause."""
    who = user_id or caller.identity.user_id
    async with acting(request, caller) as connection:
        await store.set_top_up(connection, body.price_id, body.threshold, body.monthly_ceiling, body.enabled, user_id)
        row = await store.top_up(connection, caller.identity.tenant_id, who)
    return TopUp.of(row)


@router.get("/account")
async def account(request: Request, caller: Admin) -> PaymentAccount:
    """The tenant's account at Stripe; 404 when it has none, and the platform's takes its payments, if there is one."""
    async with acting(request, caller, read_only=True) as connection:
        row = await store.own_account(connection, caller.identity.tenant_id)
    if row is None:
        raise VanillaError("not_found", "no payment account was set")
    return PaymentAccount.of(row)


@router.put("/account")
async def set_account(request: Request, caller: Writer, body: PaymentAccountBody) -> PaymentAccount:
    """Makes or changes the tenant's account; secrets are encrypted and never shown again."""
    change = Change(
        key=body.key.get_secret_value() if body.key else None,
        webhook_secret=body.webhook_secret.get_secret_value() if body.webhook_secret else None,
        stripe_account=body.stripe_account,
        grace_days=body.grace_days,
        status=body.status,
    )
    async with acting(request, caller) as connection:
        return PaymentAccount.of(await save(connection, request.app.state.settings, caller.identity.tenant_id, change))


@router.get("/events")
async def events(request: Request, caller: Admin, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> PaymentEvents:
    """The last events that Stripe sent to the tenant's account, with what came of each."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.events(connection, caller.identity.tenant_id, limit)
    return PaymentEvents(data=[PaymentEvent.of(row) for row in rows])


@router.post("/stripe/{endpoint}")
async def receive(
    request: Request,
    endpoint: Annotated[str, Path(max_length=64, description="names the account")],
    stripe_signature: Annotated[str, Header(max_length=4096)] = "",
) -> Received:
    """An event of Stripe's. Whatever is wrong with signature, age or address, the answer is the same 401.

    409 while the account's secrets cannot be opened: Stripe sends the event again.
    """
    require_stripe()
    body = await _body(request)
    try:
        name = bytes.fromhex(endpoint)
    except ValueError:
        name = b""
    database = request.app.state.database
    found = await store.account(database, name)
    event = verified_event(body, stripe_signature, webhook_secret(request.app.state.settings, found))
    if event is None:
        raise VanillaError("authentication_failed", "The signature is not valid.")
    applied = await store.apply_event(database, name, event)
    if applied["outcome"] == "unknown_order":
        # two of the same second: if Stripe cannot be asked now, it is told that this failed and sends the event again
        settings = request.app.state.settings
        async with connected(settings, api_key(settings, found)) as stripe:
            event["data"]["object"] = await stripe.subscription(event["data"]["object"]["id"])
        applied = await store.apply_event(database, name, event, asked=True)
    return Received(**applied)


async def _body(request: Request) -> bytes:
    """The bytes that were signed. Raises HTTPException 413 as soon as there are too many."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_EVENT_BYTES:
            raise HTTPException(413, f"The body is above {MOST_EVENT_BYTES} bytes.")
        parts.append(part)
    return b"".join(parts)
