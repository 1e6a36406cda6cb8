"""All that is kept of one person as one JSON document, part by part: a million rows take the memory of one part.

    {"format": "vanilla-saas.person/1", "exported_at": "...", "user": {...}, "tables": {"api_keys": [...], ...}}

Which tables, and which of their rows, the database says (`start_person_export`, `open_person_rows`).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from vanilla_saas.tenancy import store

FORMAT = "vanilla-saas.person/1"
Reading = Callable[[], Awaitable[asyncpg.Connection]]
"""The connection of one read-only transaction that sees one moment, asked for before every statement."""


def file_name(user_id: UUID) -> str:
    return f"person-{user_id}.json"


async def document(begun: dict[str, Any], reading: Reading) -> AsyncIterator[bytes]:
    """The document in parts; `begun` is what `start_person_export` answered. A document that broke off is no JSON."""
    tenant_id, user_id = UUID(begun["tenant_id"]), UUID(begun["user_id"])
    head = orjson.dumps({"format": FORMAT, "exported_at": begun["exported_at"] + "Z"})
    first, *others = begun["tables"]
    person = [part async for part in _rows(reading, tenant_id, user_id, first)]
    yield head[:-1] + b',\n"user": ' + (b"".join(person) or b"null") + b',\n"tables": {'
    comma = b"\n"
    for table in others:
        yield comma + orjson.dumps(table) + b": ["
        comma = b"],\n"
        between = b"\n"
        async for part in _rows(reading, tenant_id, user_id, table):
            yield between + part
            between = b",\n"
    yield (b"]" if others else b"") + b"}}\n"


async def _rows(reading: Reading, tenant_id: UUID, user_id: UUID, table: str) -> AsyncIterator[bytes]:
    await store.open_person_rows(await reading(), tenant_id, user_id, table)
    while rows := await store.person_rows(await reading()):
        yield ",\n".join(rows).encode()
    await store.close_person_rows(await reading())
