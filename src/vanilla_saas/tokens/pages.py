"""Pages of the wallet: figures, spending by day, the ledger and its proof; for admins, an adjustment."""

from datetime import date
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.console.security import is_fragment
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageAdmin, PageCaller
from vanilla_saas.tokens import page_store as store
from vanilla_saas.tokens import wallet_pages
from vanilla_saas.tokens.store import refresh_wallet

router = page_router()
Direction = Annotated[str, Form(max_length=32)]
Reason = Annotated[str, Form(min_length=1, max_length=500)]


def _by_day(rows: list[asyncpg.Record], after: date | None) -> list[tuple[date | None, list[asyncpg.Record]]]:
    """Entries under their day (UTC); the first group has no day when the page before ended with it."""
    groups: list[tuple[date | None, list[asyncpg.Record]]] = []
    current = after
    for row in rows:
        day = row["created_at"].date()
        if day != current or not groups:
            groups.append((None if day == current else day, []))
            current = day
        groups[-1][1].append(row)
    return groups


async def _ledger_page(
    connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, before: int | None, after: date | None
) -> dict[str, Any]:
    found = await store.ledger(connection, tenant_id, user_id, before)
    rows = found[: store.PAGE]
    more = {"before": rows[-1]["seq"], "day": rows[-1]["created_at"].date()} if len(found) > store.PAGE else None
    return {"groups": _by_day(rows, after), "more": more, "owner_id": user_id}


async def _wallet_page(request: Request, caller: Caller, user_id: UUID, *, notice: str = "") -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        await refresh_wallet(connection, tenant_id, user_id)
        wallet = await store.wallet(connection, tenant_id, user_id)
        if wallet is None:
            if user_id == caller.identity.user_id:
                return render(request, "tokens/no_wallet.html")
            raise VanillaError("not_found", "There is no such wallet in this tenant.")
        days = await store.spent_by_day(connection, tenant_id, user_id)
        ledger = await _ledger_page(connection, tenant_id, user_id, None, None)
    peak = max(days, key=lambda row: row["spent"])
    return render(
        request,
        "tokens/wallet.html",
        wallet=wallet,
        days=[row["at"] for row in days],
        values=[row["spent"] for row in days],
        total=sum(row["spent"] for row in days),
        peak=peak,
        own=user_id == caller.identity.user_id,
        may_adjust=caller.identity.role != "user",
        notice=notice,
        **ledger,
    )


@router.get("/wallet")
async def own_wallet(request: Request, caller: PageCaller) -> Response:
    return await _wallet_page(request, caller, caller.identity.user_id)


@router.get("/wallet/{user_id}")
async def wallet_of(request: Request, caller: PageAdmin, user_id: UUID, notice: str = "") -> Response:
    return await _wallet_page(request, caller, user_id, notice=notice)


@router.get("/wallet/{user_id}/ledger")
async def older_entries(
    request: Request, caller: PageCaller, user_id: UUID, before: int, day: date | None = None
) -> Response:
    """The next rows of the table; row-level security decides whose."""
    async with acting(request, caller, read_only=True) as connection:
        ledger = await _ledger_page(connection, caller.identity.tenant_id, user_id, before, day)
    return render(request, "tokens/entries.html" if is_fragment(request) else "tokens/ledger_page.html", **ledger)


@router.post("/wallet/{user_id}/verify")
async def verify(request: Request, caller: PageCaller, user_id: UUID) -> Response:
    async with acting(request, caller, read_only=True) as connection:
        entries, problems = await store.verify(connection, caller.identity.tenant_id, user_id)
    return render(request, "tokens/verified.html", entries=entries, problems=problems, owner_id=user_id)


@router.post("/wallet/{user_id}/adjust/preview")
async def preview_adjustment(
    request: Request,
    caller: PageAdmin,
    user_id: UUID,
    amount: Annotated[int, Form()],
    direction: Direction,
    reason: Reason,
) -> Response:
    key = f"console-{uuid4()}"
    async with acting(request, caller) as connection:
        before = await store.wallet(connection, caller.identity.tenant_id, user_id)
        entry = await store.preview_adjustment(connection, user_id, amount, direction, reason.strip(), key)
    return render(
        request,
        "tokens/confirm.html",
        before=before,
        entry=entry,
        form={"amount": amount, "direction": direction, "reason": reason.strip(), "idempotency_key": key},
        owner_id=user_id,
    )


@router.post("/wallet/{user_id}/adjust")
async def adjust(
    request: Request,
    caller: PageAdmin,
    user_id: UUID,
    amount: Annotated[int, Form()],
    direction: Direction,
    reason: Reason,
    idempotency_key: Annotated[str, Form(min_length=8, max_length=100)],
) -> Response:
    async with acting(request, caller) as connection:
        await store.adjust(connection, user_id, amount, direction, reason, idempotency_key)
    return redirect(request, f"/wallet/{user_id}?notice=adjusted")


router.include_router(wallet_pages.router)
ROOM = Room(
    "tokens",
    "vanilla_saas.tokens",
    router,
    (NavigationEntry("Tokens", "Wallet", "/wallet", "wallet", 10),),
)
