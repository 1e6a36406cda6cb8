"""Pages of a listing by keyset: a page costs the same however deep it is, and none skips or repeats a row.

A cursor is the sort key of the last row shown. It is not a secret and grants nothing: what a caller may see is decided
by the policies of the transaction that reads the page. A listing by `(created_at, id)` takes `paging: Paging` of
database/paging.py and ends with `paging.page(rows, Model.of)`; its statement binds three values:

    where tenant_id = $1 and (created_at, id) < ($2, $3) order by created_at desc, id desc limit $4

    rows = await connection.fetch(STATEMENT, tenant_id, *paging.bounds)
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import orjson
from pydantic import BaseModel

from vanilla_saas.database.errors import VanillaError

Item = TypeVar("Item")
NEWEST = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))


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

    @property
    def bounds(self) -> tuple[datetime, UUID, int]:
        """Values for the statement: created_at, id, and a row more than a page, which tells whether there is a next."""
        return self.created_at, self.id, self.limit + 1

    def page(self, rows: Sequence[Any], make: Callable[[Any], Item]) -> Page[Item]:
        """The page made of rows with `created_at` and `id`, of which `make` turns each into an item."""
        shown = rows[: self.limit]
        last = shown[-1] if len(rows) > self.limit else None
        cursor = encode_cursor([self.listing, last["created_at"], last["id"]]) if last is not None else None
        return Page(items=[make(row) for row in shown], next_cursor=cursor)


def first_page(limit: int) -> tuple[datetime, UUID, int]:
    """Values for the statement outside a route: the newest `limit` rows."""
    return *NEWEST, limit


def page_bounds(before: str, limit: int) -> tuple[datetime, UUID, int]:
    """Values for the statement of a console page: strictly before the cursor `before`, or from the newest row on.

    Raises VanillaError `invalid_request`.
    """
    created_at, id = decode_cursor(before, [datetime, UUID]) if before else NEWEST
    return created_at, id, limit + 1


def page_rows(rows: Sequence[Any], limit: int) -> dict[str, Any]:
    """What a template shows of the rows that page_bounds asked for: `rows`, and `older`, the next page's `before`."""
    last = rows[limit - 1] if len(rows) > limit else None
    return {"rows": rows[:limit], "older": encode_cursor([last["created_at"], last["id"]]) if last else None}


def encode_cursor(values: Sequence[int | str | datetime | UUID]) -> str:
    """base64url of the JSON array of the values, without padding."""
    # default: asyncpg reads UUIDs as a class of its own
    return base64.urlsafe_b64encode(orjson.dumps(list(values), default=str)).rstrip(b"=").decode()


def decode_cursor(text: str, types: Sequence[type]) -> list[Any]:
    """The values of a cursor, as `types` (int, str, datetime, UUID) say.

    Raises VanillaError `invalid_request` for anything that encode_cursor did not make for these types.
    """
    try:
        values = orjson.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        if not isinstance(values, list):
            raise ValueError("not a list")
        return [_READERS[kind](value) for kind, value in zip(types, values, strict=True)]
    except (ValueError, TypeError, binascii.Error):
        raise not_ours() from None


def not_ours() -> VanillaError:
    return VanillaError(
        "invalid_request",
        "The cursor is not one that this listing gave out.",
        {"param": "cursor"},
        "Send next_cursor of the page before as it is, or none for the first page.",
    )


def _integer(value: object) -> int:
    if type(value) is not int:
        raise TypeError("not an integer")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _moment(value: object) -> datetime:
    moment = datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise ValueError("no time zone")
    return moment


_READERS: dict[type, Callable[[object], object]] = {
    int: _integer,
    str: _text,
    datetime: _moment,
    UUID: lambda value: UUID(_text(value)),
}
