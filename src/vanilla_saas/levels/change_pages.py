"""Pages of changes: what one's plan may become, its preview; for admins paths and scheduled changes."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi import Form, Query, Request
from fastapi.responses import Response

from vanilla_saas.console import page_router, redirect, render
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.levels import change_store, store
from vanilla_saas.levels.change_models import ChangeBody, Path, PathBody, PreviewBody, Timing, When
from vanilla_saas.levels.models import Price, Terms
from vanilla_saas.levels.money import money
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageAdmin, PageCaller
from vanilla_saas.tokens.store import find_user

router = page_router()
LINES = {
    "charge": "for the period",
    "fee": "once on joining",
    "credit": "back for the rest of the period",
    "fee_credit": "back of what was paid on joining",
    "renewal": "for the next period",
    "billed": "as the provider billed it",
}
EVERY = {"monthly": "a month", "quarterly": "a quarter", "yearly": "a year", "lifetime": "once and for all"}
WHEN = {"now": "at once", "period_end": "when the period ends"}
TIMINGS = {"now": "at once", "period_end": "when the period ends", "any": "at once or when the period ends"}
_CHOICE = "^([a-z]+ [A-Z]{3})?$"
PriceChoice = Annotated[str, Query(max_length=20, pattern=_CHOICE)]
PriceField = Annotated[str, Form(max_length=20, pattern=_CHOICE)]


@dataclass(frozen=True)
class Choice:
    """A level that one may change to, with what it costs now."""

    path: Path
    level: Terms
    prices: list[Price]

    @property
    def times(self) -> list[str]:
        return ["now", "period_end"] if self.path.timing == "any" else [self.path.timing]


async def plan_facts(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> dict[str, Any]:
    """What the page of one's plan shows of what is paid and of what it may become."""
    held = await change_store.subscription(connection, tenant_id, user_id)
    levels = {terms.slug: terms for terms in await store.terms(connection, tenant_id, counted=False)}
    now = datetime.now(UTC)
    choices = [
        Choice(path, levels[path.to_level], [p for p in levels[path.to_level].prices if _can_be_paid(p, now)])
        for path in await change_store.paths(connection, tenant_id)
        if held and path.from_level == held.level and levels[path.to_level].status == "active"
    ]
    return {"held": held, "choices": choices, "money": money, "every": EVERY, "lines": LINES, "when": WHEN}


def _can_be_paid(price: Price, now: datetime) -> bool:
    return price.cycle in EVERY and price.valid_from <= now


def _body(level: UUID, when: When, price: str) -> PreviewBody:
    cycle, _, currency = price.partition(" ")
    if cycle and cycle not in EVERY:
        raise VanillaError("invalid_request", f"{cycle} is no cycle of a price.", {"param": "price"})
    return PreviewBody.model_validate(
        {"level_id": level, "when": when, "cycle": cycle or None, "currency": currency or None}
    )


@router.get("/plan/change")
async def preview_own(
    request: Request, caller: PageCaller, level: UUID, when: When = "now", price: PriceChoice = ""
) -> Response:
    return await _preview(request, caller, caller.identity.user_id, level, when, price, "/plan")


@router.get("/levels/paths/change")
async def preview_other(
    request: Request,
    caller: PageAdmin,
    user: Annotated[str, Query(min_length=1, max_length=254)],
    level: UUID,
    when: When = "now",
    price: PriceChoice = "",
) -> Response:
    """`user` is an email, an external id or an id of the tenant."""
    async with acting(request, caller, read_only=True) as connection:
        _, user_id = await find_user(connection, caller.tenant, user.strip())
    return await _preview(request, caller, user_id, level, when, price, "/levels/paths", user.strip())


async def _preview(
    request: Request,
    caller: PageCaller,
    user_id: UUID,
    level: UUID,
    when: When,
    price: str,
    back: str,
    who: str = "",
) -> Response:
    # not read-only: what is due for the user anyway is brought up to date
    async with acting(request, caller) as connection:
        told = await change_store.preview(connection, user_id, _body(level, when, price))
        held = await change_store.subscription(connection, caller.identity.tenant_id, user_id)
    may = back != "/plan" or told.self_service or caller.identity.role != "user"
    return render(
        request, "levels/change.html", told=told, held=held, level=level, price=price, key=uuid.uuid4(), money=money,
        lines=LINES, every=EVERY, back=back, who=who, may=may,
    )  # fmt: skip


@router.post("/plan/change")
async def change_own(
    request: Request,
    caller: PageCaller,
    level: Annotated[UUID, Form()],
    key: Annotated[UUID, Form()],
    when: Annotated[When, Form()] = "now",
    price: PriceField = "",
) -> Response:
    return await _change(request, caller, caller.identity.user_id, _body(level, when, price), key, "/plan")


async def _change(
    request: Request, caller: PageCaller, user_id: UUID, asked: PreviewBody, key: UUID, back: str
) -> Response:
    body = ChangeBody(**asked.model_dump())
    async with acting(request, caller) as connection:
        done = await change_store.change(connection, user_id, body, str(key))
    return redirect(request, f"{back}?notice={done.state}")


@router.post("/levels/paths/change")
async def change_other(
    request: Request,
    caller: PageAdmin,
    user_id: Annotated[UUID, Form()],
    level: Annotated[UUID, Form()],
    key: Annotated[UUID, Form()],
    when: Annotated[When, Form()] = "now",
    price: PriceField = "",
) -> Response:
    return await _change(request, caller, user_id, _body(level, when, price), key, "/levels/paths")


@router.post("/plan/undo")
async def undo_own(request: Request, caller: PageCaller) -> Response:
    async with acting(request, caller) as connection:
        await change_store.undo(connection, caller.identity.user_id)
    return redirect(request, "/plan?notice=undone")


@router.post("/levels/paths/undo")
async def undo_other(request: Request, caller: PageAdmin, user_id: Annotated[UUID, Form()]) -> Response:
    async with acting(request, caller) as connection:
        await change_store.undo(connection, user_id)
    return redirect(request, "/levels/paths?notice=undone")


@router.get("/levels/paths")
async def paths(request: Request, caller: PageAdmin, notice: str = "") -> Response:
    tenant = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        rows = await change_store.paths(connection, tenant)
        levels = await store.terms(connection, tenant)
        scheduled = await change_store.scheduled(connection, tenant)
    prices = sorted({f"{p.cycle} {p.currency}" for terms in levels for p in terms.prices if p.cycle in EVERY})
    return render(
        request, "levels/paths.html", rows=rows, levels=levels, scheduled=scheduled, notice=notice, money=money,
        timings=TIMINGS, when=WHEN, prices=prices,
    )  # fmt: skip


@router.post("/levels/paths")
async def set_path(
    request: Request,
    caller: PageAdmin,
    start: Annotated[UUID, Form()],
    end: Annotated[UUID, Form()],
    discount_percent: Annotated[int, Form(ge=0, le=100)] = 0,
    timing: Annotated[Timing, Form()] = "any",
    self_service: Annotated[bool, Form()] = False,
) -> Response:
    body = PathBody(discount_percent=discount_percent, timing=timing, self_service=self_service)
    async with acting(request, caller) as connection:
        await change_store.set_path(connection, caller.identity.tenant_id, start, end, body)
    return redirect(request, "/levels/paths?notice=path")


@router.post("/levels/paths/remove")
async def remove_path(
    request: Request, caller: PageAdmin, start: Annotated[UUID, Form()], end: Annotated[UUID, Form()]
) -> Response:
    async with acting(request, caller) as connection:
        await change_store.delete_path(connection, caller.identity.tenant_id, start, end)
    return redirect(request, "/levels/paths?notice=removed")
