"""Statements, balances, anchors and the proofs of the books over HTTP."""

import tempfile
from collections.abc import Iterator
from datetime import UTC
from typing import IO, Annotated
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime
from starlette.background import BackgroundTask

from vanilla_saas.database.context import PLATFORM
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting
from vanilla_saas.tokens import anchor_file, statement, store, wallet_store
from vanilla_saas.tokens.wallet_models import (
    AnchorChecked,
    Balance,
    BooksReconciled,
    BrokenChain,
    ChainsVerified,
    Difference,
)
from vanilla_saas.web import OfUser

router = APIRouter(prefix="/api/v1", tags=["tokens"])
MOST_PROBLEMS = 1000


@router.get(
    "/statement",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The statement, as JSON or as CSV (`format`, else what Accept asks for).",
            "content": {"application/json": {}, "text/csv": {}},
        }
    },
)
async def read_statement(
    request: Request,
    caller: CurrentCaller,
    user_id: OfUser = None,
    since: Annotated[AwareDatetime | None, Query(alias="from", description="included; a month before until")] = None,
    until: Annotated[AwareDatetime | None, Query(description="not included; now")] = None,
    format: Annotated[statement.Format | None, Query()] = None,
) -> StreamingResponse:
    """The ledger of a period, oldest entry first, with the balance before and after it."""
    caller.require_scope("read")
    form = format or ("csv" if "text/csv" in request.headers.get("accept", "") else "json")
    return await statement_answer(request, caller, user_id or caller.identity.user_id, since, until, form)


async def statement_answer(
    request: Request,
    caller: Caller,
    user_id: UUID,
    since: AwareDatetime | None,
    until: AwareDatetime | None,
    form: statement.Format,
) -> StreamingResponse:
    """A statement as a download. Every part is a transaction of its own: a slow reader holds no connection."""
    async with acting(request, caller, read_only=True) as connection:
        await store.read_wallet(connection, caller.identity.tenant_id, user_id)
        until = until or await wallet_store.now(connection)
        since = since or statement.usual_start(until)
        frame = await wallet_store.statement_frame(connection, user_id, since, until)
    document = statement.Statement(user_id, since, until, **dict(frame))

    async def read(after_seq: int, limit: int) -> list[asyncpg.Record]:
        async with acting(request, caller, read_only=True) as connection:
            return await wallet_store.statement_part(connection, user_id, since, until, after_seq, limit)

    return StreamingResponse(
        statement.write(document, form, read),
        media_type=statement.MEDIA_TYPES[form],
        headers=_download(document.file_name(form)),
    )


@router.get("/balance")
async def balance(request: Request, caller: CurrentCaller, at: AwareDatetime, user_id: OfUser = None) -> Balance:
    """What a wallet had (available - borrowed) at a moment."""
    caller.require_scope("read")
    owner = user_id or caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        await store.read_wallet(connection, caller.identity.tenant_id, owner)
        return Balance(user_id=owner, at=at, balance=await wallet_store.balance_at(connection, owner, at))


@router.get("/ledger/verify")
async def verify(request: Request, caller: CurrentCaller) -> ChainsVerified:
    """Recomputes every chain of the tenant; admins only."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.broken_chains(connection)
    return ChainsVerified(verified=not rows, problems=[BrokenChain.of(row) for row in rows])


@router.get("/ledger/reconcile")
async def reconcile(request: Request, caller: CurrentCaller) -> BooksReconciled:
    """Compares the tenant's wallets with their ledger, holds and grants; admins only."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.differences(connection)
    return BooksReconciled(clean=not rows, differences=[Difference.of(row) for row in rows])


@router.get(
    "/ledger/anchor",
    response_class=StreamingResponse,
    responses={200: {"description": "JSON lines, the last one a seal.", "content": {"application/x-ndjson": {}}}},
)
async def anchor(request: Request, caller: CurrentCaller) -> StreamingResponse:
    """The end of every chain: the tenant's for its admins, the platform's for super admins. Keep it elsewhere."""
    # written to a file first: the transaction is over before a slow reader begins
    file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - closed when it is sent
    try:
        async with acting(request, caller, read_only=True) as connection:
            async for part in anchor_file.lines(connection):
                file.write(part)
            day = f"{(await wallet_store.now(connection)).astimezone(UTC):%Y-%m-%d}"
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return StreamingResponse(
        _pieces(file),
        media_type="application/x-ndjson",
        headers=_download(f"anchor-{day}.jsonl"),
        background=BackgroundTask(file.close),
    )


@router.post(
    "/ledger/anchor/check",
    openapi_extra={"requestBody": {"required": True, "content": {"application/x-ndjson": {"schema": {}}}}},
)
async def check_anchor(request: Request, caller: CurrentCaller) -> AnchorChecked:
    """Compares a kept anchor with the ledger; a file above the body limit is checked with `wallets verify --anchor`."""
    identity = caller.identity
    everything = identity.role == "superadmin" and identity.tenant_id == PLATFORM
    given = (await request.body()).splitlines(keepends=True)
    async with acting(request, caller, read_only=True) as connection:
        found = await anchor_file.check(connection, given, tenant_id=None if everything else identity.tenant_id)
    return AnchorChecked(
        verified=not found.problems,
        chains=found.seal.count,
        checked=found.checked,
        taken_at=found.seal.at,
        found=len(found.problems),
        problems=[BrokenChain.of(row) for row in found.problems[:MOST_PROBLEMS]],
    )


def _download(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(1 << 16):
        yield piece
