"""The rows of a database that another version of the ten files made, brought into the tables of this version.

Table by table in the order of foreign keys, the columns that both have. What the new schema has no place for is counted
first: nothing is lost in silence.
"""

import asyncio
from collections.abc import AsyncIterator
from graphlib import TopologicalSorter

import asyncpg

from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations import backup_store as store
from vanilla_saas.operations.backup import Progress, connected
from vanilla_saas.operations.backup_errors import BackupError

MACHINERY = ("vanilla.schema_migrations", "vanilla.table_ownership")
"""What the files themselves write; the new ones have written it already."""
PARTS = 16
"""Parts of a table under way between the two databases."""


async def reload_into(
    old_url: str, new_url: str, signer: ContextSigner, forget: tuple[str, ...], progress: Progress
) -> None:
    """Makes this version's schema in the empty database `new_url` and copies the rows of `old_url` into it.

    `forget` names columns as `public.users.nickname` and tables as `public.notes` whose content may be lost.
    Raises BackupError `restore_loses`, `restore_failed`.
    """
    progress("Making this version's tables")
    await migrate(new_url, signer, logins=False)
    async with connected(old_url) as old, connected(new_url) as new:
        before = {table["name"]: table for table in await store.tables(old) if table["name"] not in MACHINERY}
        after = {table["name"]: table for table in await store.tables(new) if table["name"] not in MACHINERY}
        await _refuse_loss(old, before, after, forget)
        async with new.transaction():
            # the seed's rows are the old database's too, perhaps changed; the files put back what it had not
            await store.truncate(new, list(after))
            for name in _in_order(after, await store.foreign_keys(new)):
                if name in before:
                    progress(f"Reloading {name}")
                    await _copy(old, new, before[name], after[name])
            await _compare(old, new, before, after)


async def _refuse_loss(
    old: asyncpg.Connection,
    before: dict[str, asyncpg.Record],
    after: dict[str, asyncpg.Record],
    forget: tuple[str, ...],
) -> None:
    lost = []
    for name, table in before.items():
        gone = [c for c in table["columns"] if name not in after or c not in after[name]["columns"]]
        if not gone or name in forget:
            continue
        if name not in after:
            rows = (await store.digest(old, table))["rows"]
            lost += [f"{name} ({rows} rows)"] if rows else []
            continue
        for column in gone:
            if f"{name}.{column}" not in forget and (rows := await store.filled(old, table, column)):
                lost.append(f"{name}.{column} ({rows} values)")
    if lost:
        raise BackupError(
            "restore_loses",
            f"This version has no place for {', '.join(lost)}; nothing was changed.",
            " ".join(f"--forget {one.partition(' ')[0]}" for one in lost) + " leaves them behind.",
        )


def _in_order(tables: dict[str, asyncpg.Record], keys: list[tuple[str, str]]) -> list[str]:
    """Referenced tables before those that refer to them."""
    sorter = TopologicalSorter({name: set() for name in sorted(tables)})
    for child, parent in keys:
        if child in tables and parent in tables:
            sorter.add(child, parent)
    return list(sorter.static_order())


async def _copy(
    old: asyncpg.Connection, new: asyncpg.Connection, source: asyncpg.Record, target: asyncpg.Record
) -> None:
    columns = [column for column in target["columns"] if column in source["columns"]]
    parts: asyncio.Queue[bytes | None] = asyncio.Queue(PARTS)

    async def read() -> None:
        try:
            await old.copy_from_query(await store.select_all(old, source, columns), output=parts.put)
        except Exception:
            await parts.put(None)
            raise
        await parts.put(None)

    async def arriving() -> AsyncIterator[bytes]:
        while (part := await parts.get()) is not None:
            yield part

    reading = asyncio.create_task(read())
    try:
        await new.copy_to_table(
            target["table"], schema_name=target["schema"], columns=columns, source=arriving(), timeout=None
        )
    except asyncpg.PostgresError as error:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        raise BackupError(
            "restore_failed",
            f"The rows of {target['name']} do not fit this version's table: {error}; nothing was changed.",
        ) from None
    await reading


async def _compare(
    old: asyncpg.Connection,
    new: asyncpg.Connection,
    before: dict[str, asyncpg.Record],
    after: dict[str, asyncpg.Record],
) -> None:
    """The columns that both have hold the same, row by row."""
    for name in before.keys() & after:
        columns = [column for column in before[name]["columns"] if column in after[name]["columns"]]
        was, now = await store.digest(old, before[name], columns), await store.digest(new, after[name], columns)
        if (was["rows"], was["digest"]) != (now["rows"], now["digest"]):
            raise BackupError(
                "restore_differs",
                f"{name} has {now['rows']} rows of {was['rows']}, or other ones; nothing was changed.",
            )
