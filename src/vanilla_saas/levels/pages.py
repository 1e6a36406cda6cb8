"""Pages of levels: what one's own allows, what each is worth with forms for admins, and the public price page."""

from typing import Annotated, get_args
from uuid import UUID

from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.console.security import read_cookie
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.levels import analytics_pages, store
from vanilla_saas.levels.change_pages import plan_facts
from vanilla_saas.levels.change_pages import router as change_router
from vanilla_saas.levels.models import Cycle, FeatureBody, Period, PriceBody, RestrictionBody, RestrictionType
from vanilla_saas.levels.money import minor_units, money
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageAdmin, PageCaller
from vanilla_saas.tenancy.sign_in_pages import TENANT_NAME_COOKIE

router = page_router()
router.include_router(analytics_pages.router)
router.include_router(change_router)
CYCLES = {
    "one_time": "once on joining",
    "monthly": "a month",
    "quarterly": "a quarter",
    "yearly": "a year",
    "lifetime": "once and for all",
}
PERIODS = {"daily": "a day", "weekly": "a week", "monthly": "a month", "yearly": "a year", "lifetime": "in all"}
REASONS = {
    "no_level": "you are on no level",
    "not_in_level": "not in your level",
    "off": "not in your level",
    "limit": "the limit is reached",
}
Short = Annotated[str, Form(max_length=63)]


@router.get("/plan")
async def own_plan(request: Request, caller: PageCaller, notice: str = "") -> Response:
    identity = caller.identity
    async with acting(request, caller, read_only=True) as connection:
        states = await store.check_all(connection, identity.tenant_id, identity.user_id)
        facts = await plan_facts(connection, identity.tenant_id, identity.user_id)
    return render(
        request, "levels/plan.html", states=states, periods=PERIODS, reasons=REASONS, tenant=caller.tenant,
        notice=notice, **facts,
    )  # fmt: skip


@router.get("/levels")
async def levels(request: Request, caller: PageAdmin, notice: str = "") -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.terms(connection, caller.identity.tenant_id)
    return render(
        request, "levels/levels.html", rows=rows, notice=notice, periods=PERIODS, cycles=CYCLES, money=money,
        tenant=caller.tenant, types=get_args(RestrictionType),
    )  # fmt: skip


@router.post("/levels/{level_id}/feature")
async def set_feature(
    request: Request,
    caller: PageAdmin,
    level_id: UUID,
    feature: Short,
    name: Annotated[str, Form(max_length=200)] = "",
    category: Short = "general",
    enabled: Annotated[bool, Form()] = False,
    limit: Annotated[str, Form(max_length=16, pattern="^[0-9]*$")] = "",
    period: Annotated[Period, Form()] = "monthly",
) -> Response:
    body = FeatureBody.model_construct(
        enabled=enabled,
        limit=int(limit) if limit else None,
        period=period if limit else None,
        category=category.strip() or "general",
        name=name.strip(),
    )
    async with acting(request, caller) as connection:
        await store.set_feature(connection, caller.identity.tenant_id, level_id, feature.strip(), body)
    return redirect(request, "/levels?notice=feature")


@router.post("/levels/{level_id}/feature/remove")
async def remove_feature(request: Request, caller: PageAdmin, level_id: UUID, feature: Short) -> Response:
    async with acting(request, caller) as connection:
        await store.delete_feature(connection, caller.identity.tenant_id, level_id, feature)
    return redirect(request, "/levels?notice=removed")


@router.post("/levels/{level_id}/restriction")
async def set_restriction(
    request: Request,
    caller: PageAdmin,
    level_id: UUID,
    type: Annotated[RestrictionType, Form()],
    value: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """A number, patterns separated by commas, or nothing to lift the restriction."""
    value = value.strip()
    async with acting(request, caller) as connection:
        if not value:
            await store.delete_restriction(connection, caller.identity.tenant_id, level_id, type)
        else:
            models = type in ("allowed_models", "denied_models")
            if not models and not value.isdecimal():
                raise VanillaError("invalid_request", f"{type} is a number.", {"param": "value"})
            patterns = [pattern.strip() for pattern in value.split(",")] if models else None
            body = RestrictionBody.model_construct(amount=None if models else int(value), patterns=patterns)
            await store.set_restriction(connection, caller.identity.tenant_id, level_id, type, body)
    return redirect(request, "/levels?notice=restriction")


@router.post("/levels/{level_id}/price")
async def set_price(
    request: Request,
    caller: PageAdmin,
    level_id: UUID,
    cycle: Annotated[Cycle, Form()],
    currency: Annotated[str, Form(min_length=3, max_length=3)],
    amount: Annotated[str, Form(max_length=20, pattern=r"^[0-9]+(\.[0-9]{1,4})?$")],
    trial_days: Annotated[int, Form(ge=0, le=3660)] = 0,
    trial_credits: Annotated[int, Form(ge=0, le=10**15)] = 0,
) -> Response:
    """The price from now on, in whole units of the currency; the one before ends."""
    code = currency.upper()
    body = PriceBody.model_construct(
        cycle=cycle,
        currency=code,
        amount=minor_units(amount, code),
        trial_days=trial_days,
        trial_credits=trial_credits,
        valid_from=None,
        valid_until=None,
        replace=True,
    )
    async with acting(request, caller) as connection:
        await store.set_price(connection, caller.identity.tenant_id, level_id, body)
    return redirect(request, "/levels?notice=price")


@router.post("/prices/{price_id}/end")
async def end_price(request: Request, caller: PageAdmin, price_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        await store.end_price(connection, caller.identity.tenant_id, price_id)
    return redirect(request, "/levels?notice=ended")


@router.get("/pricing")
async def pricing(request: Request, tenant: str = "") -> Response:
    """The price page, for anybody; drawn from what GET /api/v1/pricing answers."""
    slug = tenant or read_cookie(request, TENANT_NAME_COOKIE) or "default"
    found = await store.price_list(request.app.state.database, slug)
    return render(request, "levels/pricing.html", plans=found, periods=PERIODS, cycles=CYCLES, money=money)


ROOM = Room(
    "levels",
    "vanilla_saas.levels",
    router,
    (
        NavigationEntry("Tokens", "Plan", "/plan", "plan", 12),
        NavigationEntry("Access", "Levels", "/levels", "levels", 24, "admin"),
    ),
)
