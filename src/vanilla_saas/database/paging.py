"""The page that a route was asked for, as a dependency of FastAPI; what a page is stands in database/cursor.py."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query, Request

from vanilla_saas.database.cursor import NEWEST, Keyset, decode_cursor, not_ours


def _paging(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200, description="Most items of a page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=300, description="next_cursor of the page before.")] = None,
) -> Keyset:
    created_at, id = NEWEST
    if cursor is not None:
        listing, created_at, id = decode_cursor(cursor, [str, datetime, UUID])
        if listing != request.url.path:
            raise not_ours()
    return Keyset(limit, created_at, id, request.url.path)


Paging = Annotated[Keyset, Depends(_paging)]
"""FastAPI dependency: `limit` 1 to 200, default 50, and `cursor` of a listing route."""
