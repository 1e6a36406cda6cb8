"""A person's data over HTTP: the export of all of it, and its erasure."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Send

from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy import models, person_export, store
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting

router = APIRouter(prefix="/api/v1", tags=["tenancy"])
STALLED_S = 60
"""A client that takes longer than this for one part is let go: it holds a connection of the database."""
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "One JSON document, as an attachment.", "content": {"application/json": {}}}
}


class _Document(StreamingResponse):
    """A stream whose source is closed as soon as nobody reads it."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], name: str):
        self._rest = rest
        headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
        super().__init__(self._parts(first), media_type="application/json", headers=headers)

    async def _parts(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        async for part in self._rest:
            yield part

    async def stream_response(self, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(STALLED_S):
                await send(message)

        async with aclosing(self._rest):
            await super().stream_response(send_soon)


@router.get("/me/export", response_class=StreamingResponse, responses=_ANSWER)
async def export_me(request: Request, caller: CurrentCaller) -> StreamingResponse:
    """All that is kept of the caller, of one moment, as far as their role may read it."""
    return await export_answer(request, caller, caller.identity.user_id)


@router.get("/users/{user_id}/export", response_class=StreamingResponse, responses=_ANSWER)
async def export_user(request: Request, caller: CurrentCaller, user_id: UUID) -> StreamingResponse:
    """All that is kept of a person: one's own, or anyone's of the tenant by an admin. Written to the audit log."""
    return await export_answer(request, caller, user_id)


@router.delete("/users/{user_id}")
async def erase_user(
    request: Request,
    caller: CurrentCaller,
    user_id: UUID,
    reason: Annotated[models.Why, Query(description="Why; written to the audit log. No personal data.")],
) -> models.Erased:
    """Erase a person: name, address, sign-ins, keys. Ledger and executions keep their amounts without them."""
    caller.require_scope("admin")
    async with acting(request, caller) as connection:
        return models.Erased.of(await store.erase_user(connection, caller.identity.tenant_id, user_id, reason))


async def export_answer(request: Request, caller: Caller, user_id: UUID) -> StreamingResponse:
    """The document as a download. Refusals come before its first byte."""
    caller.require_scope("read")
    async with acting(request, caller) as connection:
        begun = await store.start_person_export(connection, caller.identity.tenant_id, user_id)
    database: Database = request.app.state.database

    async def parts() -> AsyncGenerator[bytes, None]:
        async with database.snapshot(caller.identity) as snapshot:
            async for part in person_export.document(begun, snapshot.renewed):
                yield part

    source = parts()
    return _Document(await anext(source), source, person_export.file_name(user_id))
