"""Pages of a listing, newest first: keyset over `(created_at, id)`, so that a page costs the same however deep it is.

A route takes `paging: Paging` and ends with `paging.page(rows, Model.of)`; its statement binds three values:

    where tenant_id = $1 and (created_at, id) < ($2, $3) order by created_at desc, id desc limit $4

    rows = await connection.fetch(STATEMENT, tenant_id, *paging.bounds)
"""

import base64
import binascii
import hmac
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Query, Request
from pydantic import BaseModel

from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError

Item = TypeVar("Item")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_POSITION = struct.Struct(">q16s")
_NEWEST = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))


class Page(BaseModel, Generic[Item]):
    """One page; `next_cursor` is null on the last one."""

    items: list[Item]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Keyset:
    """Where a page begins: strictly before `(created_at, id)`; `listing` is what its cursors are good for."""

    limit: int
    created_at: datetime
    id: UUID
    listing: str
    signer: ContextSigner

    @property
    def bounds(self) -> tuple[datetime, UUID, int]:
        """Values for the statement: created_at, id, and a row more than a page, which tells whether there is a next."""
        return self.created_at, self.id, self.limit + 1

    def page(self, rows: Sequence[Any], make: Callable[[Any], Item]) -> Page[Item]:
        """The page made of rows with `created_at` and `id`, of which `make` turns each into an item."""
        shown = rows[: self.limit]
        more = len(rows) > self.limit
        cursor = encode(shown[-1]["created_at"], shown[-1]["id"], self.listing, self.signer) if more else None
        return Page(items=[make(row) for row in shown], next_cursor=cursor)


def first_page(limit: int) -> tuple[datetime, UUID, int]:
    """Values for the statement outside a route: the newest `limit` rows."""
    return *_NEWEST, limit


def encode(created_at: datetime, id: UUID, listing: str, signer: ContextSigner) -> str:
    """The opaque cursor of a position, sealed for its listing."""
    position = _POSITION.pack((created_at - _EPOCH) // _MICROSECOND, id.bytes)
    return base64.urlsafe_b64encode(position + signer.seal(f"cursor:{listing}", position)).decode()


def decode(cursor: str, listing: str, signer: ContextSigner) -> tuple[datetime, UUID]:
    """The position of a cursor. Raises VanillaError `invalid_request` when it is not one of this listing's."""
    try:
        raw = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raw = b""
    position, seal = raw[: _POSITION.size], raw[_POSITION.size :]
    if not hmac.compare_digest(seal, signer.seal(f"cursor:{listing}", position)):
        raise VanillaError(
            "invalid_request",
            "The cursor is not one that this listing gave out.",
            {"param": "cursor"},
            "Send next_cursor of the page before as it is, or none for the first page.",
        )
    micros, id_bytes = _POSITION.unpack(position)
    return _EPOCH + micros * _MICROSECOND, UUID(bytes=id_bytes)


def _paging(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200, description="Most items of a page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="next_cursor of the page before.")] = None,
) -> Keyset:
    signer, listing = request.app.state.database.signer, request.url.path
    created_at, id = decode(cursor, listing, signer) if cursor is not None else _NEWEST
    return Keyset(limit, created_at, id, listing, signer)


Paging = Annotated[Keyset, Depends(_paging)]
"""FastAPI dependency: `limit` 1 to 200, default 50, and `cursor` of a listing route."""
