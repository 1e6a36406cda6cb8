"""Statements as JSON and CSV, written part by part: a million entries take no more memory than one part."""

import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import asyncpg
import orjson

PART = 5000
"""Entries that are read at once."""
USUAL = timedelta(days=31)
"""How far a statement goes back when nobody says."""
Format = Literal["json", "csv"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "csv": "text/csv; charset=utf-8"}
TEXTS = ("reason", "source", "reference_type")
COLUMNS = (
    "seq",
    "created_at",
    "direction",
    "amount",
    "reserved_amount",
    "available_tokens",
    "reserved_tokens",
    "borrowed_tokens",
    "reason",
    "source",
    "reference_type",
    "reference_id",
    "execution_id",
    "hold_id",
    "id",
)
ReadPart = Callable[[int, int], Awaitable[list[asyncpg.Record]]]
"""(after_seq, limit) -> entries, oldest first."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A user's ledger from `since` (included) until `until` (not): entries after_seq + 1 to last_seq."""

    user_id: UUID
    since: datetime
    until: datetime
    after_seq: int
    last_seq: int
    opening_balance: int
    closing_balance: int

    def file_name(self, form: Format) -> str:
        return f"statement-{self.user_id}-{self.since:%Y-%m-%d}-{self.until:%Y-%m-%d}.{form}"


def usual_start(until: datetime) -> datetime:
    """A month before the end."""
    try:
        return until - USUAL
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


async def write(statement: Statement, form: Format, read: ReadPart) -> AsyncIterator[bytes]:
    """The document in parts. What is written meanwhile is not in it: the last entry is known from the start."""
    if form == "csv":
        yield _csv_line(COLUMNS)
        async for rows in parts(statement, read):
            yield b"".join(_csv_line(_cells(row)) for row in rows)
        return
    head = orjson.dumps(
        {
            "user_id": statement.user_id,
            "from": statement.since,
            "until": statement.until,
            "opening_balance": statement.opening_balance,
            "closing_balance": statement.closing_balance,
            "count": statement.last_seq - statement.after_seq,
        },
        default=str,
    )
    yield head[:-1] + b',"entries":['
    comma = b""
    async for rows in parts(statement, read):
        yield comma + b",".join(orjson.dumps(_entry(row), default=str) for row in rows)
        comma = b","
    yield b"]}\n"


async def parts(statement: Statement, read: ReadPart) -> AsyncIterator[list[asyncpg.Record]]:
    """The entries, oldest first, up to `PART` at once."""
    after = statement.after_seq
    while after < statement.last_seq:
        rows = await read(after, min(PART, statement.last_seq - after))
        if not rows:  # somebody removed entries; verify tells where
            return
        after = rows[-1]["seq"]
        yield rows


def _entry(row: asyncpg.Record) -> dict[str, object]:
    return {name: row[name] for name in COLUMNS}


def _cells(row: asyncpg.Record) -> list[str]:
    return [_text(row[name]) if name in TEXTS else _cell(row[name]) for name in COLUMNS]


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return "" if value is None else str(value)


def _text(value: str | None) -> str:
    """A text that a spreadsheet does not take for a formula (OWASP, CSV injection)."""
    if not value:
        return ""
    return f"'{value}" if value.lstrip()[:1] in ("=", "+", "-", "@") or value[0] in "\t\r\n" else value


def _csv_line(cells: "tuple[str, ...] | list[str]") -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()
