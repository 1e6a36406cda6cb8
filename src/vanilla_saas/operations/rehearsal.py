"""Backups and rehearsals as an operator, a schedule and a test start them: plain coroutines whose result is kept.

    await scheduled_backup(where, settings)
    await scheduled_rehearsal(where, settings)

Each returns what it recorded in `system_configurations` (keys `backup.*`), where doctor and the console find it, and
raises what went wrong after recording that too.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.embedded import attach
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.operations import backup_store as store
from vanilla_saas.operations.backup import Made, Progress, connected, make_backup
from vanilla_saas.operations.backup_errors import BackupError
from vanilla_saas.operations.backup_manifest import LATEST, Backup, backup_folders, find_backup, open_backup
from vanilla_saas.operations.restore import Proof, verify
from vanilla_saas.settings import Settings

MADE, FAILED, REHEARSED, RESTORED = "backup.made", "backup.failed", "backup.rehearsed", "backup.restored"
_MEANING = {
    MADE: "The last backup.",
    FAILED: "The last backup that did not come about.",
    REHEARSED: "The last rehearsal: a backup restored for trial.",
}


def passphrase(settings: Settings) -> str | None:
    return settings.backup_passphrase.get_secret_value() if settings.backup_passphrase else None


async def scheduled_backup(
    where: Addresses,
    settings: Settings,
    *,
    directory: Path | None = None,
    keep: int | None = None,
    jobs: int = 2,
    progress: Progress = lambda _: None,
) -> Made:
    """Makes a backup into the configured folder and records it, or that it failed.

    Raises BackupError, VanillaError `database_unavailable`, `invalid_state`.
    """
    url = settings.backup_url.get_secret_value() if settings.backup_url else where.admin
    try:
        made = await make_backup(
            url,
            directory or settings.backup_directory(),
            keep=settings.backup_keep if keep is None else keep,
            passphrase=passphrase(settings),
            jobs=jobs,
            pg_bin=programs_folder(where, settings),
            progress=progress,
        )
    except VanillaError as error:
        await _keep(where.admin, FAILED, {"code": error.name, "message": error.message})
        raise
    facts = {
        "backup": made.path.name,
        "folder": str(made.path.parent),
        "bytes": made.manifest.size,
        "rows": made.manifest.rows,
        "seconds": made.manifest.seconds,
        "encrypted": made.manifest.encryption is not None,
    }
    await _keep(where.admin, MADE, facts)
    return made


async def scheduled_rehearsal(
    where: Addresses,
    settings: Settings,
    *,
    directory: Path | None = None,
    name: str = LATEST,
    scratch_cluster: bool | None = None,
    jobs: int = 2,
    progress: Progress = lambda _: None,
) -> Proof:
    """Restores the newest backup for trial, proves it, and records how that went.

    Into a scratch database of the configured server when its login is a superuser, else (or with `scratch_cluster`)
    into an embedded server of its own, where the roles are made anew too. Raises BackupError, VanillaError.
    """
    began, tried = time.monotonic(), name
    try:
        path = await asyncio.to_thread(find_backup, directory or settings.backup_directory(), name)
        tried = path.name
        backup = await asyncio.to_thread(open_backup, path, passphrase(settings))
        if scratch_cluster is None:
            scratch_cluster = not await _is_superuser(where.admin)
        async with _place(where, settings, scratch_cluster) as (url, programs):
            proof = await verify(backup, url, jobs=jobs, pg_bin=programs, progress=progress)
    except VanillaError as error:
        await _keep(
            where.admin, REHEARSED, {"backup": tried, "ok": False, "problems": [f"{error.name}: {error.message}"]}
        )
        raise
    await _keep(where.admin, REHEARSED, _facts(backup, proof, time.monotonic() - began))
    return proof


def _facts(backup: Backup, proof: Proof, seconds: float) -> dict[str, Any]:
    return {
        "backup": backup.path.name,
        "ok": not proof.errors,
        "problems": proof.errors[:20],
        "rows": proof.rows,
        "chains": proof.chains,
        "seconds": round(seconds, 3),
        "phases": proof.seconds,
    }


async def _is_superuser(url: str) -> bool:
    async with connected(url) as connection:
        return await store.is_superuser(connection)


@asynccontextmanager
async def _place(where: Addresses, settings: Settings, apart: bool) -> AsyncIterator[tuple[str, Path | None]]:
    """Where a copy can be made, and the folder of the programs that fit it."""
    if not apart:
        yield where.admin, programs_folder(where, settings)
        return
    with tempfile.TemporaryDirectory(prefix="vs-", dir=_short_folder()) as folder:
        Path(folder).chmod(0o755)  # noqa: ASYNC240 (root's server runs as another user, who passes)
        home = Path(folder) / "home"
        options = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}  # nothing here is to last
        apart_settings = settings.model_copy(update={"home": home, "database_url": None, "pg_bin": settings.pg_bin})
        server = await asyncio.to_thread(attach, apart_settings, options)
        try:
            yield server.dsn("postgres"), server.bin_dir
        finally:
            server.close()
            await asyncio.to_thread(_wait_until_stopped, home)
            if not server.data_dir.is_relative_to(home):
                shutil.rmtree(server.data_dir.parent, ignore_errors=True)


def _short_folder() -> str | None:
    """A Unix socket's path is short, and some systems' folders for temporary files are not."""
    return "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108


def _wait_until_stopped(home: Path, seconds: float = 60.0) -> None:
    from vanilla_saas.database.embedded import _keeper_lives

    deadline = time.monotonic() + seconds
    while _keeper_lives(home) and time.monotonic() < deadline:
        time.sleep(0.05)


def programs_folder(where: Addresses, settings: Settings) -> Path | None:
    """Where to look for PostgreSQL's programs first."""
    return where.server.bin_dir if where.server else settings.pg_bin


async def _keep(url: str, key: str, facts: dict[str, Any]) -> None:
    """A result that cannot be kept does not undo what was done: a database of another version may lack the table."""
    with suppress(VanillaError, asyncpg.PostgresError, OSError):
        async with connected(url) as connection:
            await store.record(connection, key, facts, _MEANING[key])


def list_backups(directory: Path, secret: str | None) -> list[dict[str, Any]]:
    """Every backup of a folder, newest first, with what its manifest says or why it does not open."""
    found: list[dict[str, Any]] = []
    for path in reversed(backup_folders(directory)):
        row: dict[str, Any] = {
            "backup": path.name,
            "made_at": "",
            "database": "",
            "rows": None,
            "bytes": None,
            "seconds": None,
            "encrypted": None,
            "problem": "",
        }
        try:
            manifest = open_backup(path, secret).manifest
        except BackupError as error:
            row["problem"] = f"{error.name}: {error.message}"
        else:
            row |= {
                "made_at": manifest.made_at,
                "database": manifest.database["name"],
                "rows": manifest.rows,
                "bytes": manifest.size,
                "seconds": manifest.seconds,
                "encrypted": manifest.encryption is not None,
            }
        found.append(row)
    return found
