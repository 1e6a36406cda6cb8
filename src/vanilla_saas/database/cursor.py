"""Opaque cursors of keyset pages: the sort key of the last row shown, so that no page skips or repeats a row."""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from vanilla_saas.database.errors import VanillaError


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
        raise VanillaError(
            "invalid_request",
            "The cursor is not one of ours.",
            {"param": "cursor"},
            "Pass next_cursor of the page before, unchanged.",
        ) from None


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
