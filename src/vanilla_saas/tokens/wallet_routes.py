"""Grants, holds and policies over HTTP: read by their owner and by admins, changed by admins."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from vanilla_saas.database.cursor import Page, decode_cursor, encode_cursor, first_page
from vanilla_saas.database.paging import Paging
from vanilla_saas.tenancy.identity import CurrentCaller, acting
from vanilla_saas.tokens import store, wallet_store
from vanilla_saas.tokens.models import AdjustedEntry, PolicyExceptions, UserPolicy
from vanilla_saas.tokens.wallet_models import (
    ExtendBody,
    Extended,
    GrantBody,
    GrantOfAnyState,
    GrantState,
    Hold,
    HoldState,
    LevelPolicy,
    LevelPolicyBody,
    MadeGrant,
    ReleaseBody,
    SettleBody,
    VoidBody,
)
from vanilla_saas.web import MoneyKey, OfUser, tell_replay

router = APIRouter(prefix="/api/v1", tags=["tokens"])


@router.get("/grants")
async def grants(
    request: Request,
    caller: CurrentCaller,
    paging: Paging,
    user_id: OfUser = None,
    state: GrantState | None = None,
    kind: Annotated[str | None, Query(max_length=20)] = None,
) -> Page[GrantOfAnyState]:
    """Every grant of a wallet, newest first; `/wallet` has those that can be spent, in order of burning."""
    caller.require_scope("read")
    tenant_id, owner = caller.identity.tenant_id, user_id or caller.identity.user_id
    async with acting(request, caller) as connection:
        await store.refresh_wallet(connection, tenant_id, owner)
        await store.read_wallet(connection, tenant_id, owner)
        rows = await wallet_store.grants(connection, tenant_id, owner, paging.bounds, state, kind)
    return paging.page(rows, GrantOfAnyState.of)


@router.post("/wallets/{user_id}/grants")
async def give(
    request: Request, response: Response, caller: CurrentCaller, user_id: UUID, body: GrantBody, key: MoneyKey
) -> MadeGrant:
    """Gives tokens of a kind, from now or a later moment on. Needs an Idempotency-Key."""
    async with acting(request, caller) as connection:
        grant = MadeGrant(**await wallet_store.give(connection, user_id, body, key))
    tell_replay(response, grant.replayed)
    return grant


@router.post("/grants/{grant_id}/void")
async def void(
    request: Request, response: Response, caller: CurrentCaller, grant_id: UUID, body: VoidBody, key: MoneyKey
) -> MadeGrant:
    """Takes what is left of a grant away, or calls off one that has not begun; what was spent or is held stays so."""
    async with acting(request, caller) as connection:
        grant = MadeGrant(**await wallet_store.void(connection, grant_id, body.reason, key))
    tell_replay(response, grant.replayed)
    return grant


@router.get("/holds")
async def holds(
    request: Request,
    caller: CurrentCaller,
    user_id: OfUser = None,
    state: Annotated[HoldState | Literal["all"], Query(description="all: every state")] = "open",
    cursor: Annotated[str | None, Query(max_length=500, description="next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="rows of a page")] = 50,
) -> Page[Hold]:
    """Holds of a wallet, newest first; the open ones when nothing else is asked."""
    caller.require_scope("read")
    tenant_id, owner = caller.identity.tenant_id, user_id or caller.identity.user_id
    seq, bounds = None, first_page(limit + 1)
    if cursor and state == "open":
        created_at, hold_id = decode_cursor(cursor, [datetime, UUID])
        bounds = (created_at, hold_id, limit + 1)
    elif cursor:
        seq = decode_cursor(cursor, [int])[0]
    async with acting(request, caller, read_only=True) as connection:
        await store.read_wallet(connection, tenant_id, owner)
        if state == "open":
            rows = await wallet_store.open_holds(connection, tenant_id, owner, bounds)
        else:
            only = None if state == "all" else state
            rows = await wallet_store.holds(connection, tenant_id, owner, before_seq=seq, limit=limit + 1, state=only)
    page, more = rows[:limit], None
    if len(rows) > limit:
        last = page[-1]
        more = encode_cursor([last["created_at"], last["id"]] if state == "open" else [last["seq"]])
    return Page[Hold](items=[Hold.of(row) for row in page], next_cursor=more)


@router.post("/holds/{hold_id}/settle")
async def settle(
    request: Request, response: Response, caller: CurrentCaller, hold_id: UUID, body: SettleBody, key: MoneyKey
) -> AdjustedEntry:
    """Charges the actual and returns the rest, or with `final` false charges a part and keeps holding the rest."""
    async with acting(request, caller) as connection:
        entry = AdjustedEntry(
            **await wallet_store.settle(connection, hold_id, body.actual, body.reason, body.final, key)
        )
    tell_replay(response, entry.replayed)
    return entry


@router.post("/holds/{hold_id}/release")
async def release(
    request: Request, response: Response, caller: CurrentCaller, hold_id: UUID, body: ReleaseBody, key: MoneyKey
) -> AdjustedEntry:
    """Returns what a hold still holds; a call in flight that it was made for is then not charged."""
    async with acting(request, caller) as connection:
        entry = AdjustedEntry(**await wallet_store.release(connection, hold_id, body.reason, key))
    tell_replay(response, entry.replayed)
    return entry


@router.post("/holds/{hold_id}/extend")
async def extend(request: Request, caller: CurrentCaller, hold_id: UUID, body: ExtendBody) -> Extended:
    """Moves the end of an open hold; moves no tokens, and doing it again changes nothing."""
    async with acting(request, caller) as connection:
        until = await wallet_store.extend(connection, hold_id, body.expires_at)
    return Extended(hold_id=hold_id, expires_at=until)


@router.get("/wallets/{user_id}/policy")
async def user_policy(request: Request, caller: CurrentCaller, user_id: UUID) -> UserPolicy:
    """The policy that holds for a user: own, or any of the tenant's for an admin."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return (await store.read_wallet(connection, caller.identity.tenant_id, user_id)).policy


@router.put("/wallets/{user_id}/policy")
async def set_user_policy(request: Request, caller: CurrentCaller, user_id: UUID, body: PolicyExceptions) -> UserPolicy:
    """Sets all of a user's exceptions. Enforcement takes effect at once, amounts with the next period."""
    async with acting(request, caller) as connection:
        await wallet_store.set_user_policy(connection, user_id, body)
        return await store.read_policy(connection, user_id)


@router.get("/levels/{level_id}/policy")
async def level_policy(request: Request, caller: CurrentCaller, level_id: UUID) -> LevelPolicy:
    """What a level grants; admins only."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return LevelPolicy(**await wallet_store.level_policy(connection, caller.identity.tenant_id, level_id))


@router.put("/levels/{level_id}/policy")
async def set_level_policy(
    request: Request, caller: CurrentCaller, level_id: UUID, body: LevelPolicyBody
) -> LevelPolicy:
    """Sets what a level grants. Enforcement takes effect at once, amounts with the next period."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        await wallet_store.set_level_policy(connection, tenant_id, level_id, body)
        return LevelPolicy(**await wallet_store.level_policy(connection, tenant_id, level_id))
