"""The wallet over HTTP: read by its owner and by admins, changed by admins."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from vanilla_saas.database.cursor import decode_cursor, encode_cursor
from vanilla_saas.tenancy.identity import (
    Caller,
    CurrentCaller,
    KeyOrCaller,
    acting,
    client_ip,
)
from vanilla_saas.tokens import store
from vanilla_saas.tokens.models import (
    AdjustedEntry,
    Adjustment,
    Batch,
    BatchOutcome,
    EntryDirection,
    EntryPage,
    ExecutionPage,
    LevelAllocation,
    LevelChange,
    Levels,
    Outcome,
    StatusChange,
    Verification,
    Wallet,
)
from vanilla_saas.web import MoneyKey, OfUser, tell_replay

router = APIRouter(prefix="/api/v1", tags=["tokens"])

Limit = Annotated[int, Query(ge=1, le=200, description="rows of a page")]
Cursor = Annotated[str | None, Query(max_length=500, description="next_cursor of the page before")]


@router.get("/wallet")
async def own_wallet(request: Request, caller: CurrentCaller) -> Wallet:
    """The caller's wallet with its open grants."""
    return await _wallet(request, caller, caller.identity.user_id)


@router.get("/wallet/verify")
async def verify_own_ledger(request: Request, caller: CurrentCaller) -> Verification:
    """Recomputes the hash chain of the caller's own ledger."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return await store.verify(connection, caller.identity.tenant_id, caller.identity.user_id)


@router.get("/wallets/{user_id}")
async def wallet_of_user(request: Request, caller: CurrentCaller, user_id: UUID) -> Wallet:
    """The wallet of a user of the tenant; admins see every one, others their own."""
    return await _wallet(request, caller, user_id)


@router.get("/ledger")
async def ledger(
    request: Request,
    caller: CurrentCaller,
    user_id: OfUser = None,
    direction: EntryDirection | None = None,
    execution_id: UUID | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> EntryPage:
    """Ledger entries of a wallet, newest first."""
    caller.require_scope("read")
    before_seq = decode_cursor(cursor, [int])[0] if cursor else None
    tenant_id, owner = caller.identity.tenant_id, user_id or caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        if user_id is not None:
            await store.read_wallet(connection, tenant_id, user_id)
        entries = await store.read_ledger(
            connection,
            tenant_id,
            owner,
            before_seq=before_seq,
            direction=direction,
            execution_id=execution_id,
            limit=limit + 1,
        )
    page = entries[:limit]
    return EntryPage(data=page, next_cursor=encode_cursor([page[-1].seq]) if len(entries) > limit else None)


@router.get("/executions")
async def executions(
    request: Request, caller: CurrentCaller, user_id: OfUser = None, cursor: Cursor = None, limit: Limit = 50
) -> ExecutionPage:
    """Model calls, newest first: the caller's own; for an admin those of the tenant, or of `user_id`."""
    caller.require_scope("read")
    before = None
    if cursor:
        created_at, last_id = decode_cursor(cursor, [datetime, UUID])
        before = (created_at, last_id)
    owner = user_id if user_id or caller.identity.role != "user" else caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        if user_id is not None:
            await store.read_wallet(connection, caller.identity.tenant_id, user_id)
        rows = await store.read_executions(connection, caller.identity.tenant_id, owner, before=before, limit=limit + 1)
    page = rows[:limit]
    more = len(rows) > limit
    return ExecutionPage(data=page, next_cursor=encode_cursor([page[-1].created_at, page[-1].id]) if more else None)


@router.get("/levels")
async def levels(request: Request, caller: CurrentCaller) -> Levels:
    """The tenant's levels, lowest tier first; admins also see what each one grants."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return Levels(data=await store.read_levels(connection, caller.identity.tenant_id))


@router.post("/wallets/{user_id}/adjust")
async def adjust(
    request: Request,
    response: Response,
    caller: KeyOrCaller,
    user_id: UUID,
    body: Adjustment,
    key: MoneyKey,
) -> AdjustedEntry:
    """Changes a wallet and writes its ledger. Needs an Idempotency-Key: sent again, the first answer comes back."""
    if isinstance(caller, Caller):
        async with acting(request, caller) as connection:
            written = await store.adjust(connection, user_id, body, key)
    else:
        about = (getattr(request.state, "request_id", ""), client_ip(request))
        written = await store.adjust_by_key(request.app.state.coalescer, caller, user_id, body, key, *about)
    entry = AdjustedEntry(**written)
    tell_replay(response, entry.replayed)
    return entry


@router.post("/wallets/batch")
async def adjust_batch(request: Request, caller: CurrentCaller, body: Batch) -> BatchOutcome:
    """Up to 1,000 adjustments of any wallets of the tenant in one transaction; each has an idempotency key of its own.

    The answer is 200 with an outcome for each. A batch that is sent again repeats nothing that was written. With
    `atomic` the first refusal undoes all of it and is the answer.
    """
    async with acting(request, caller) as connection:
        outcomes = await store.adjust_batch(connection, body.operations, body.atomic)
    return BatchOutcome(data=[Outcome(**outcome) for outcome in outcomes])


@router.post("/wallets/{user_id}/level")
async def move_to_level(request: Request, caller: CurrentCaller, user_id: UUID, body: LevelChange) -> LevelAllocation:
    """Puts a user on a level and grants its tokens, once a period; doing it again grants nothing."""
    async with acting(request, caller) as connection:
        return LevelAllocation(**await store.allocate_level(connection, user_id, body.level_id))


@router.post("/wallets/{user_id}/status")
async def change_status(request: Request, caller: CurrentCaller, user_id: UUID, body: StatusChange) -> Wallet:
    """Locks, suspends or opens a wallet; while it is not active it refuses debits and reservations."""
    async with acting(request, caller) as connection:
        await store.set_status(connection, user_id, body.status, body.reason)
        return await store.read_wallet(connection, caller.identity.tenant_id, user_id)


async def _wallet(request: Request, caller: Caller, user_id: UUID) -> Wallet:
    caller.require_scope("read")
    async with acting(request, caller) as connection:
        await store.refresh_wallet(connection, caller.identity.tenant_id, user_id)
        return await store.read_wallet(connection, caller.identity.tenant_id, user_id)
