"""Writes months of log tables that are past retention to files before they are dropped.

A file is complete and on disk (or in the bucket) before the database hears of it, and the database drops no month that
it has not heard of. Killed in between, the month is written again.
"""

import asyncio
import gzip
import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Any

import asyncpg

from vanilla_saas.database.connection import connect_admin
from vanilla_saas.operations import schedules_store as store
from vanilla_saas.operations.log_export_files import Target, open_target, write_parquet
from vanilla_saas.operations.schedules import JobContext
from vanilla_saas.settings import Settings

BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file: rows in it, bytes of it."""

    rows: int
    size: int


async def export_logs(context: JobContext) -> dict[str, Any]:
    """The job `log_export`: every month that waits, oldest first.

    Raises VanillaError `invalid_state` when something waits and no place is set or the extra is absent, OSError.
    """
    connection = await connect_admin(context.where.admin)
    try:
        waiting = await store.months_to_export(connection)
        if not waiting:
            return {"months": 0}
        target = await asyncio.to_thread(open_target, context.settings)
        rows = size = 0
        for log_table, month, partition in waiting:
            written = await _export(connection, target, context.settings, log_table, month, partition)
            rows, size = rows + written.rows, size + written.size
        return {"months": len(waiting), "rows": rows, "bytes": size}
    finally:
        await connection.close()


async def _export(
    connection: asyncpg.Connection, target: Target, settings: Settings, log_table: str, month: date, partition: str
) -> Written:
    parquet = settings.export_format == "parquet"
    name = f"{log_table}_{month:%Y-%m}.{'parquet' if parquet else 'csv.gz'}"
    with tempfile.TemporaryDirectory(dir=target.scratch, prefix=".export-") as folder:
        plain = Path(folder) / name
        if parquet:
            table = Path(folder) / "table.csv"
            rows = await _copy(connection, partition, table, lambda file: file)
            await asyncio.to_thread(write_parquet, table, plain, await store.columns(connection, log_table))
        else:
            rows = await _copy(
                connection, partition, plain, lambda file: gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0)
            )
        size, sha256 = await asyncio.to_thread(_seal, plain)
        location = await asyncio.to_thread(target.keep, plain, name)
    await store.record_export(connection, log_table, month, rows, size, sha256, location)
    return Written(rows, size)


async def _copy(connection: asyncpg.Connection, partition: str, path: Path, wrap: Callable[[IO[bytes]], Any]) -> int:
    """Writes all rows of a partition as CSV with a header; how many there are."""
    buffer = bytearray()
    with path.open("xb") as file:
        out = wrap(file)

        async def take(chunk: bytes) -> None:
            buffer.extend(chunk)
            if len(buffer) >= BUFFER:
                await flush()

        async def flush() -> None:
            # compressing beside the loop: it has requests to serve
            await asyncio.to_thread(out.write, bytes(buffer))
            buffer.clear()

        sink: Callable[[bytes], Awaitable[None]] = take
        copied: str = await connection.copy_from_table(
            partition, schema_name="public", output=sink, format="csv", header=True
        )
        await flush()
        if out is not file:
            out.close()
    return int(copied.rpartition(" ")[2])


def _seal(path: Path) -> tuple[int, bytes]:
    """Puts a file on the disk; its bytes and SHA-256, as they are read back."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(BUFFER):
            digest.update(chunk)
    return path.stat().st_size, digest.digest()
