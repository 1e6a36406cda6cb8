"""One backup: a dump and what is needed to trust it, taken in one snapshot of a database that goes on working.

Everything is written into a folder with another name, put on disk, and renamed last: what has the name of a backup is
whole. The manifest tells rows and digests of that very snapshot, so that a restore is compared with what was there.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from vanilla_saas.database.errors import VanillaError, from_postgres
from vanilla_saas.database.schema import migrations
from vanilla_saas.operations import backup_store as store
from vanilla_saas.operations.backup_crypto import BackupKey, FileWriter
from vanilla_saas.operations.backup_errors import BackupError, disk_full, is_full
from vanilla_saas.operations.backup_manifest import (
    ANCHOR,
    CATALOG,
    DUMP,
    MANIFEST,
    ROLES,
    Manifest,
    backup_folders,
    folder_name,
    open_backup,
    product_version,
    schema_of,
    sync_folder,
)
from vanilla_saas.operations.backup_programs import CHUNK, client_programs, finish, started
from vanilla_saas.tokens import anchor_file

if sys.platform != "win32":
    import fcntl

UNFINISHED = ".unfinished-"
REMOVED = ".removed-"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Made:
    """A finished backup and the older ones that retention removed."""

    path: Path
    manifest: Manifest
    removed: list[Path]


def roles_sql(more: list[str] | None = None) -> str:
    """Statements that make the roles and memberships a dump needs, in any cluster and any number of times.

    They are the first section of 001, so that what a role is stands in one place. No password is in them.
    """
    text = migrations()[0].path.read_text(encoding="utf-8")
    section = text[text.index("-- 1. roles -") : text.index("-- Default privileges that somebody set")]
    return (
        "-- The roles of a Vanilla SaaS database, as 001 makes them. vanilla-saas migrate lets the logins in.\n"
        f"begin;\nset local client_min_messages = warning;\n{section.rstrip()}\n"
        + "".join(f"{statement}\n" for statement in more or [])
        + "commit;\n"
    )


async def make_backup(
    url: str,
    directory: Path,
    *,
    keep: int = 0,
    passphrase: str | None = None,
    jobs: int = 2,
    pg_bin: Path | None = None,
    progress: Progress = lambda _: None,
) -> Made:
    """Writes a backup of the database at `url` into a new folder of `directory`; keeps the newest `keep`, 0: all.

    The login must be able to read every row. Raises BackupError, VanillaError `database_unavailable`, `invalid_state`.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240
        with _alone(directory):
            _remove_leftovers(directory)
            made = await _make(url, directory, passphrase, jobs, pg_bin, progress)
            return replace(made, removed=_retire(directory, made, keep, passphrase))
    except OSError as error:
        if is_full(error):
            raise disk_full(directory) from None
        raise BackupError(
            "backup_failed",
            f"{error.filename or directory} cannot be written: {error.strerror}.",
            "Name another folder with --to or VANILLA_SAAS_BACKUP_DIR.",
        ) from None


async def _make(
    url: str, directory: Path, passphrase: str | None, jobs: int, pg_bin: Path | None, progress: Progress
) -> Made:
    began, at = time.monotonic(), datetime.now(UTC)
    key = BackupKey.new(passphrase) if passphrase else None
    folder = directory / f"{UNFINISHED}{folder_name(at)}-{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(connected(url))
            await refuse_unreadable(connection)
            database = await store.identity(connection)
            programs = await asyncio.to_thread(client_programs, database["postgresql"], pg_bin)
            await stack.enter_async_context(connection.transaction(isolation="repeatable_read", readonly=True))
            snapshot: str = await connection.fetchval("select pg_export_snapshot()")
            manifest = await _describe(connection, at, database, key)
            writers = [
                _write(folder / ROLES, key, roles_sql(await store.other_roles(connection)).encode()),
                _write(folder / CATALOG, key, orjson.dumps(await store.catalog(connection))),
            ]
            progress("Dumping")
            async with _together() as tasks:
                dump = tasks.create_task(_dump(programs, url, snapshot, folder / DUMP, key))
                figures = tasks.create_task(digests(url, snapshot, jobs, progress))
                anchor, sealed = await _write_anchor(connection, folder / ANCHOR, key)
            tables = figures.result()
        writers += [anchor, dump.result()]
        progress("Writing the manifest")
        manifest = replace(
            manifest,
            tables=tables,
            ledger={"entries": _rows(tables, "public.user_token_ledger"), "anchored": sealed},
            files={name: {"bytes": size, "sha256": digest} for name, size, digest in writers},
            seconds=round(time.monotonic() - began, 3),
        )
        with FileWriter(folder / MANIFEST) as file:
            file.write(manifest.sealed(key))
        sync_folder(folder)
        return Made(_take_name(folder, directory, folder_name(at)), manifest, [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_name(folder: Path, directory: Path, name: str) -> Path:
    """The rename that makes it a backup; of two in one second the second gets a number."""
    for path in (directory / name, *(directory / f"{name}-{number}" for number in range(2, 100))):
        if not path.exists():
            folder.rename(path)
            sync_folder(directory)
            return path
    raise BackupError("backup_busy", f"There are a hundred backups named {name}.")


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first failure itself: a caller of a backup wants one reason."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A session of `backup_store`, whose refusals and losses are VanillaErrors; errors of files pass as they are."""
    connection = await store.connect(url)
    try:
        yield connection
    except asyncpg.PostgresError as error:
        known = from_postgres(error)
        if known is None:
            raise
        raise known from None
    except (asyncpg.InterfaceError, ConnectionError) as error:
        raise VanillaError("database_unavailable", "The connection to the database was lost.") from error
    finally:
        connection.terminate()


async def refuse_unreadable(connection: asyncpg.Connection) -> None:
    """A dump through row-level security is short, or fails halfway: it is refused before it begins.

    Raises BackupError `backup_filtered`, VanillaError `invalid_state` for a database that is not ours.
    """
    if not await store.is_ours(connection):
        raise VanillaError("invalid_state", "The database is not migrated.", hint="vanilla-saas migrate")
    filtered, forbidden = await store.unreadable(connection)
    if filtered or forbidden:
        user = await connection.fetchval("select session_user")
        which = f"row-level security filters {len(filtered)} tables" if filtered else ""
        which = " and ".join(filter(None, [which, f"{len(forbidden)} may not be read" if forbidden else ""]))
        raise BackupError(
            "backup_filtered",
            f"As {user} a backup would be short: {which} ({(filtered or forbidden)[0]} first).",
            "Let VANILLA_SAAS_BACKUP_URL name a login that reads every row; a superuser makes one with: create role"
            " vanilla_backup login bypassrls inherit password '...'; grant vanilla_operator to vanilla_backup",
        )
    if not await store.applied_files(connection):
        raise VanillaError(
            "invalid_state",
            "The database does not say which version of the files made it: psql alone ran them.",
            hint="vanilla-saas migrate adopts it, which changes nothing.",
        )


async def _describe(
    connection: asyncpg.Connection, at: datetime, database: dict[str, Any], key: BackupKey | None
) -> Manifest:
    """What is known before the dump."""
    return Manifest(
        made_at=f"{at:%Y-%m-%dT%H:%M:%SZ}",
        version=product_version(),
        database=database,
        schema=schema_of(await store.applied_files(connection)),
        tables=[],
        context_keys=await store.context_key_ids(connection),
        ledger={},
        files={},
        seconds=0.0,
        encryption=key.described if key else None,
    )


def _rows(tables: list[dict[str, Any]], name: str) -> int:
    return next((int(table["rows"]) for table in tables if table["name"] == name), 0)


async def _dump(programs: Path, url: str, snapshot: str, path: Path, key: BackupKey | None) -> tuple[str, int, str]:
    """pg_dump's custom format through our own hands: counted, hashed and encrypted on the way to the disk."""
    command: list[str | Path] = [programs / "pg_dump", "--format=custom", "--no-password", f"--snapshot={snapshot}"]
    # nobody but its owner reads it, and a backup must not open what it is a backup of
    command += ["--exclude-table=vanilla.context_keys"]
    async with started(command, url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = asyncio.create_task(process.stderr.read())
        with FileWriter(path, key) as file:
            while part := await process.stdout.read(CHUNK):
                await asyncio.to_thread(file.write, part)
            await finish(process, "backup_failed", "pg_dump", await said)
    return path.name, file.bytes, file.sha256


async def digests(url: str, snapshot: str, jobs: int, progress: Progress = lambda _: None) -> list[dict[str, Any]]:
    """Rows and digest of every table as they are in the snapshot, by name; `jobs` connections share the work."""
    found: list[dict[str, Any]] = []

    async def work(queue: list[asyncpg.Record] | None) -> list[asyncpg.Record]:
        async with connected(url) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            if snapshot:
                # a utility statement takes no parameter; the text is the server's own
                await connection.execute(f"set transaction snapshot '{snapshot}'")
            tables = await store.tables(connection) if queue is None else queue
            if queue is not None:
                while queue:
                    table = queue.pop(0)
                    found.append(await store.digest(connection, table))
                    progress(f"Counted {len(found)} tables")
            return tables

    waiting = await work(None)
    async with _together() as tasks:
        for _ in range(max(1, jobs)):
            tasks.create_task(work(waiting))
    return sorted(found, key=lambda table: table["name"])


def _write(path: Path, key: BackupKey | None, content: bytes) -> tuple[str, int, str]:
    with FileWriter(path, key) as file:
        file.write(content)
    return path.name, file.bytes, file.sha256


async def _write_anchor(
    connection: asyncpg.Connection, path: Path, key: BackupKey | None
) -> tuple[tuple[str, int, str], bool]:
    """The end of every chain of the ledger; of a schema that has no such function an empty file."""
    with FileWriter(path, key) as file:
        anchored = await connection.fetchval("select to_regprocedure('public.token_ledger_anchor()') is not null")
        if anchored:
            async for part in anchor_file.lines(connection):
                await asyncio.to_thread(file.write, part)
    return (path.name, file.bytes, file.sha256), bool(anchored)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One backup at a time into a folder; the kernel gives the lock back when a process is killed."""
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(
                "backup_busy", f"Another backup is being written into {directory}.", "Wait for it to end."
            ) from None
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(directory: Path) -> None:
    """What killed processes left: nobody else writes here while we have the lock."""
    for path in directory.iterdir():
        if path.name.startswith((UNFINISHED, REMOVED)):
            shutil.rmtree(path, ignore_errors=True)


def _retire(directory: Path, made: Made, keep: int, passphrase: str | None) -> list[Path]:
    """Removes the oldest backups of the same database beyond `keep`; what cannot be read is left alone."""
    if keep <= 0:
        return []
    same = []
    for path in backup_folders(directory):
        with suppress(BackupError):
            other = open_backup(path, passphrase).manifest.database
            if all(other.get(name) == made.manifest.database[name] for name in ("name", "cluster")):
                same.append(path)
    removed = []
    for path in same[:-keep]:
        gone = path.with_name(f"{REMOVED}{path.name}")
        path.rename(gone)  # at once no backup any more, however long its files take
        shutil.rmtree(gone, ignore_errors=True)
        removed.append(path)
    return removed
