"""The anchor as a file: JSON lines, one for each chain's end, and a last line that seals those before it.

    {"tenant_id": ..., "user_id": ..., "seq": 41, "hash": "<64 hex>"}
    {"count": 1, "at": "2026-03-01T12:00:00Z", "sha256": "<of every byte before this line>"}

Kept where nobody who can write to the database can write, it convicts whoever rewrites a whole chain.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tokens import wallet_store

PART = 10_000
"""Chains that are read or compared at once."""
LONGEST_LINE = 1000
_CHAIN, _SEAL = {"tenant_id", "user_id", "seq", "hash"}, {"count", "at", "sha256"}
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Seal:
    """The last line."""

    count: int
    at: datetime
    sha256: str


@dataclass(slots=True)
class Checked:
    """What comparing an anchor with the ledger found."""

    seal: Seal
    checked: int
    problems: list[asyncpg.Record]


async def lines(connection: asyncpg.Connection, progress: Callable[[int], None] | None = None) -> AsyncIterator[bytes]:
    """The file of what the caller may anchor, in parts, within the connection's transaction."""
    digest, count = hashlib.sha256(), 0
    at = await wallet_store.now(connection)
    async for rows in wallet_store.chain_ends(connection, PART):
        part = b"".join(orjson.dumps(dict(row), default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        digest.update(part)
        count += len(rows)
        if progress:
            progress(len(rows))
        yield part
    seal = {"count": count, "at": at, "sha256": digest.hexdigest()}
    yield orjson.dumps(seal, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


@dataclass(slots=True)
class Reader:
    """Takes the file line by line. Raises VanillaError `invalid_request` where it is damaged or cut off."""

    seal: Seal | None = None
    count: int = 0
    _line: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def take(self, line: bytes) -> dict[str, Any] | None:
        """The chain of a line; None for the last."""
        self._line += 1
        if self.seal is not None:
            raise _damaged(f"line {self._line} follows the last line")
        if not line.endswith(b"\n"):
            raise _damaged(f"line {self._line} is cut off")
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise _damaged(f"line {self._line} is not JSON") from None
        if isinstance(value, dict) and value.keys() == _SEAL:
            self._close(value)
            return None
        if not _is_chain(value):
            raise _damaged(f"line {self._line} is not the end of a chain")
        self._digest.update(line)
        self.count += 1
        return value  # type: ignore[no-any-return]

    def _close(self, value: dict[str, Any]) -> None:
        if value["count"] != self.count or value["sha256"] != self._digest.hexdigest():
            raise _damaged("its lines are not those that the last line seals")
        try:
            self.seal = Seal(self.count, datetime.fromisoformat(value["at"]), value["sha256"])
        except (TypeError, ValueError):
            raise _damaged("its last line has no time") from None

    def end(self) -> Seal:
        """The last line, which must have come."""
        if self.seal is None:
            raise _damaged("it ends before its last line")
        return self.seal


async def check(
    connection: asyncpg.Connection,
    given: Iterable[bytes],
    *,
    tenant_id: UUID | None = None,
    user_id: UUID | None = None,
    progress: Callable[[int], None] | None = None,
) -> Checked:
    """Compares the chains of a file, or those of one tenant or user, with the ledger, `PART` at once."""
    reader, problems, part, checked = Reader(), list[asyncpg.Record](), list[dict[str, Any]](), 0
    for line in given:
        chain = reader.take(line)
        if chain is None or (tenant_id and UUID(chain["tenant_id"]) != tenant_id):
            continue
        if user_id and UUID(chain["user_id"]) != user_id:
            continue
        part.append(chain)
        if len(part) == PART:
            problems += await wallet_store.compare_anchor(connection, part)
            checked += len(part)
            if progress:
                progress(len(part))
            part = []
    seal = reader.end()
    problems += await wallet_store.compare_anchor(connection, part)
    return Checked(seal, checked + len(part), problems)


def _is_chain(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != _CHAIN:
        return False
    seq, link = value["seq"], value["hash"]
    if type(seq) is not int or not 0 < seq < 2**63 or not isinstance(link, str) or not _HEX.fullmatch(link):
        return False
    try:
        return all(str(UUID(value[name])) == value[name] for name in ("tenant_id", "user_id"))
    except (ValueError, AttributeError, TypeError):
        return False


def _damaged(what: str) -> VanillaError:
    return VanillaError(
        "invalid_request",
        f"The anchor is damaged: {what}.",
        {"param": "anchor"},
        "Nothing was compared to the end. Take another copy of the file as it was written.",
    )
