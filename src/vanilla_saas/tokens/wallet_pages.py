"""Pages around a wallet: its grants, its holds, the policy that holds for it, and its statement."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
from fastapi import Form, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError

from vanilla_saas.console import page_router, redirect, render
from vanilla_saas.database.cursor import first_page, page_bounds, page_rows
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageAdmin, PageCaller
from vanilla_saas.tokens import page_store, statement, wallet_store
from vanilla_saas.tokens import store as wallets
from vanilla_saas.tokens.models import PolicyExceptions
from vanilla_saas.tokens.proof_routes import statement_answer
from vanilla_saas.tokens.wallet_models import GrantBody

router = page_router()
PAGE = 50
SHOWN = 200
"""Entries of a statement that its page shows; the download has all."""
HOLD_STATES = ("open", "all", "settled", "released", "expired")
Reason = Annotated[str, Form(min_length=1, max_length=500)]
Key = Annotated[str, Form(min_length=8, max_length=100)]


async def _frame(connection: asyncpg.Connection, caller: Caller, user_id: UUID) -> dict[str, Any]:
    """What every page of a wallet shows around its own part. Raises VanillaError `not_found`."""
    wallet = await page_store.wallet(connection, caller.identity.tenant_id, user_id)
    if wallet is None:
        raise VanillaError("not_found", "There is no such wallet in this tenant.")
    return {
        "wallet": wallet,
        "own": user_id == caller.identity.user_id,
        "may_change": caller.identity.role != "user",
        "key": f"console-{uuid4()}",
    }


@router.get("/wallet/{user_id}/grants")
async def grants(request: Request, caller: PageCaller, user_id: UUID, before: str = "", notice: str = "") -> Response:
    async with acting(request, caller) as connection:
        await wallets.refresh_wallet(connection, caller.identity.tenant_id, user_id)
        frame = await _frame(connection, caller, user_id)
        rows = await wallet_store.grants(connection, caller.identity.tenant_id, user_id, page_bounds(before, PAGE))
    return render(request, "tokens/grants.html", notice=notice, **frame, **page_rows(rows, PAGE))


@router.post("/wallet/{user_id}/grants")
async def give(
    request: Request,
    caller: PageAdmin,
    user_id: UUID,
    amount: Annotated[int, Form()],
    kind: Annotated[str, Form(max_length=20)],
    reason: Reason,
    idempotency_key: Key,
    begins: Annotated[str, Form(max_length=30)] = "",
    ends: Annotated[str, Form(max_length=30)] = "",
    priority: Annotated[str, Form(max_length=3)] = "",
) -> Response:
    body = _checked(
        GrantBody,
        {
            "amount": amount,
            "kind": kind,
            "effective_at": _moment(begins, "begins"),
            "expires_at": _moment(ends, "ends"),
            "priority": priority or None,
            "reason": reason,
        },
    )
    async with acting(request, caller) as connection:
        await wallet_store.give(connection, user_id, body, idempotency_key)
    return redirect(request, f"/wallet/{user_id}/grants?notice=given")


@router.post("/wallet/{user_id}/grants/{grant_id}/void")
async def void(
    request: Request, caller: PageAdmin, user_id: UUID, grant_id: UUID, reason: Reason, idempotency_key: Key
) -> Response:
    async with acting(request, caller) as connection:
        await wallet_store.void(connection, grant_id, reason.strip(), idempotency_key)
    return redirect(request, f"/wallet/{user_id}/grants?notice=voided")


@router.get("/wallet/{user_id}/holds")
async def holds(
    request: Request,
    caller: PageCaller,
    user_id: UUID,
    state: str = "open",
    before: Annotated[int | None, Query(ge=1)] = None,
    notice: str = "",
) -> Response:
    tenant_id = caller.identity.tenant_id
    chosen = state if state in HOLD_STATES else "open"
    async with acting(request, caller, read_only=True) as connection:
        frame = await _frame(connection, caller, user_id)
        if chosen == "open":
            rows = await wallet_store.open_holds(connection, tenant_id, user_id, first_page(SHOWN))
        else:
            only = None if chosen == "all" else chosen
            rows = await wallet_store.holds(
                connection, tenant_id, user_id, before_seq=before, limit=PAGE + 1, state=only
            )
        now = await wallet_store.now(connection)
    more = chosen != "open" and len(rows) > PAGE
    return render(
        request,
        "tokens/holds.html",
        rows=rows[:PAGE] if more else rows,
        older=rows[PAGE - 1]["seq"] if more else None,
        state=chosen,
        states=HOLD_STATES,
        now=now,
        notice=notice,
        **frame,
    )


@router.post("/wallet/{user_id}/holds/{hold_id}/release")
async def release(
    request: Request, caller: PageAdmin, user_id: UUID, hold_id: UUID, reason: Reason, idempotency_key: Key
) -> Response:
    async with acting(request, caller) as connection:
        await wallet_store.release(connection, hold_id, reason.strip(), idempotency_key)
    return redirect(request, f"/wallet/{user_id}/holds?notice=released")


@router.post("/wallet/{user_id}/holds/{hold_id}/extend")
async def extend(
    request: Request,
    caller: PageAdmin,
    user_id: UUID,
    hold_id: UUID,
    hours: Annotated[int, Form(ge=1, le=720)],
) -> Response:
    """By hours from now: nobody has to reckon in UTC."""
    async with acting(request, caller) as connection:
        until = await wallet_store.now(connection) + timedelta(hours=hours)
        await wallet_store.extend(connection, hold_id, until)
    return redirect(request, f"/wallet/{user_id}/holds?notice=extended")


@router.get("/wallet/{user_id}/policy")
async def policy(request: Request, caller: PageCaller, user_id: UUID, notice: str = "") -> Response:
    async with acting(request, caller, read_only=True) as connection:
        frame = await _frame(connection, caller, user_id)
        effective = await wallets.read_policy(connection, user_id)
    return render(request, "tokens/policy.html", policy=effective, notice=notice, **frame)


@router.post("/wallet/{user_id}/policy")
async def set_policy(request: Request, caller: PageAdmin, user_id: UUID) -> Response:
    form = await request.form()
    given = {name: str(form.get(name, "")).strip() or None for name in PolicyExceptions.model_fields}
    body = _checked(PolicyExceptions, given)
    async with acting(request, caller) as connection:
        await wallet_store.set_user_policy(connection, user_id, body)
    return redirect(request, f"/wallet/{user_id}/policy?notice=saved")


@router.get("/wallet/{user_id}/statement")
async def statement_page(
    request: Request, caller: PageCaller, user_id: UUID, since: str = "", until: str = ""
) -> Response:
    """The last day counts: a statement until the 31st has the 31st in it."""
    async with acting(request, caller, read_only=True) as connection:
        frame = await _frame(connection, caller, user_id)
        today = (await wallet_store.now(connection)).astimezone(UTC).date()
        last = _day(until, "until") or today
        first = _day(since, "since") or statement.usual_start(_start(last)).date()
        begin, end = _start(first), _after(last)
        around = await wallet_store.statement_frame(connection, user_id, begin, end)
        rows = await wallet_store.statement_part(connection, user_id, begin, end, around["after_seq"], SHOWN)
    return render(
        request, "tokens/statement.html", first=first, last=last, around=around, rows=rows, shown=SHOWN, **frame
    )


@router.get("/wallet/{user_id}/statement/download")
async def download(
    request: Request, caller: PageCaller, user_id: UUID, since: str, until: str, format: statement.Format = "csv"
) -> Response:
    first, last = _day(since, "since"), _day(until, "until")
    return await statement_answer(
        request, caller, user_id, _start(first) if first else None, _after(last) if last else None, format
    )


def _checked(model: Any, values: dict[str, Any]) -> Any:
    try:
        return model(**values)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0]).replace("_", " ") if wrong["loc"] else "the form"
        raise VanillaError("invalid_request", f"{name}: {wrong['msg']}", {"param": name}) from None


def _moment(text: str, name: str) -> datetime | None:
    """Of a field datetime-local, which has no zone: UTC, as the label says."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None
    except ValueError:
        raise VanillaError("invalid_request", f"{name} is not a time.", {"param": name}) from None


def _day(text: str, name: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise VanillaError("invalid_request", f"{name} is not a day.", {"param": name}) from None


def _start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _after(day: date) -> datetime:
    return _start(day) + timedelta(days=1) if day < date.max else datetime.max.replace(tzinfo=UTC)
