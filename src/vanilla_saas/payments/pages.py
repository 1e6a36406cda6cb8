"""Pages of payments: what people buy and have bought, and an admin's account, prices and events."""

from typing import Annotated
from uuid import UUID

from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.console.security import is_fragment
from vanilla_saas.database.cursor import page_bounds, page_rows
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.levels.money import minor_units, money
from vanilla_saas.payments import checkout, store
from vanilla_saas.payments.accounts import Change, save
from vanilla_saas.payments.models import Kind, PaymentAccount
from vanilla_saas.tenancy import page_store
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageAdmin, PageCaller
from vanilla_saas.web import base_of

PAGE = 25
EVENTS = 25
router = page_router()
Short = Annotated[str, Form(max_length=300)]
Money = Annotated[str, Form(max_length=20, pattern=r"^[0-9]+(\.[0-9]{1,4})?$")]
Tokens = Annotated[int, Form(ge=1, le=10**15)]


@router.get("/billing")
async def billing(request: Request, caller: PageCaller, notice: str = "", before: str = "") -> Response:
    tenant_id, user_id = caller.identity.tenant_id, caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        prices = await store.prices(connection, tenant_id)
        subscriptions = await store.subscriptions(connection, tenant_id, user_id)
        payments = await store.payments(connection, tenant_id, user_id, page_bounds(before, PAGE))
        top_up = await store.top_up(connection, tenant_id, user_id)
        may_charge = await store.may_charge(connection, tenant_id, user_id)
    return render(
        request, "payments/billing.html", prices=prices, subscriptions=subscriptions, top_up=top_up, money=money,
        may_charge=may_charge, notice=notice, **page_rows(payments, PAGE),
    )  # fmt: skip


@router.post("/billing/checkout")
async def begin(
    request: Request, caller: PageCaller, price_id: Annotated[UUID, Form()], keep: Annotated[bool, Form()] = False
) -> Response:
    url, _ = await checkout.checkout(request, caller, price_id, keep_method=keep)
    return _leave(request, url)


@router.post("/billing/portal")
async def portal(request: Request, caller: PageCaller) -> Response:
    return _leave(request, await checkout.portal(request, caller))


def _leave(request: Request, url: str) -> Response:
    # no redirect of a form: the content security policy lets forms end here only, and browsers ask it of redirects too
    return redirect(request, url) if is_fragment(request) else render(request, "payments/leave.html", url=url)


@router.post("/billing/auto-top-up")
async def set_top_up(
    request: Request,
    caller: PageCaller,
    price_id: Annotated[UUID, Form()],
    threshold: Tokens,
    ceiling: Money,
    enabled: Annotated[bool, Form()] = False,
) -> Response:
    """The ceiling in whole units of the pack's currency."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        prices = await store.prices(connection, tenant_id, hidden=True)
        currency = next((row["currency"] for row in prices if row["id"] == price_id), None)
        if currency is None:
            raise VanillaError("not_found", "There is no such pack.")
        await store.set_top_up(connection, price_id, threshold, minor_units(ceiling, currency), enabled, None)
    return redirect(request, "/billing?notice=top-up")


@router.get("/payments")
async def settings(request: Request, caller: PageAdmin, notice: str = "") -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        row = await store.own_account(connection, tenant_id)
        prices = await store.prices(connection, tenant_id, hidden=True)
        levels = await page_store.levels(connection, tenant_id)
        events = await store.events(connection, tenant_id, EVENTS)
    seller = PaymentAccount.of(row) if row else None
    base = base_of(request)
    return render(
        request, "payments/settings.html", seller=seller, base=base, prices=prices, levels=levels, events=events,
        money=money, notice=notice,
    )  # fmt: skip


@router.post("/payments/account")
async def set_account(
    request: Request,
    caller: PageAdmin,
    key: Short = "",
    webhook_secret: Short = "",
    stripe_account: Short = "",
    grace_days: Annotated[int, Form(ge=0, le=90)] = 7,
    enabled: Annotated[bool, Form()] = False,
) -> Response:
    change = Change(
        key=key.strip() or None,
        webhook_secret=webhook_secret.strip() or None,
        stripe_account=stripe_account.strip() or None,
        grace_days=grace_days,
        status="active" if enabled else "disabled",
    )
    async with acting(request, caller) as connection:
        await save(connection, request.app.state.settings, caller.identity.tenant_id, change)
    return redirect(request, "/payments?notice=account")


@router.post("/payments/price")
async def set_price(
    request: Request,
    caller: PageAdmin,
    price_id: Short,
    kind: Annotated[Kind, Form()],
    name: Short,
    amount: Money,
    currency: Annotated[str, Form(min_length=3, max_length=3)],
    tokens: Annotated[str, Form(max_length=16, pattern="^[0-9]*$")] = "",
    level_id: Annotated[str, Form(max_length=36)] = "",
    shown: Annotated[bool, Form()] = False,
) -> Response:
    code = currency.upper()
    try:
        level = UUID(level_id) if level_id and kind == "level" else None
    except ValueError:
        raise VanillaError("invalid_request", "level_id is not a UUID.", {"param": "level_id"}) from None
    async with acting(request, caller) as connection:
        await store.set_price(
            connection,
            caller.identity.tenant_id,
            price_id.strip(),
            kind=kind,
            name=name.strip(),
            currency=code,
            amount=minor_units(amount, code),
            tokens=int(tokens) if tokens and kind == "pack" else None,
            level_id=level,
            status="active" if shown else "hidden",
        )
    return redirect(request, "/payments?notice=price")


ROOM = Room(
    "payments",
    "vanilla_saas.payments",
    router,
    (
        NavigationEntry("Tokens", "Billing", "/billing", "card", 13),
        NavigationEntry("Access", "Payments", "/payments", "card", 25, "admin"),
    ),
)
