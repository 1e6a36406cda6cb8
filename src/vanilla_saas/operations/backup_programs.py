"""pg_dump, pg_restore and psql of the server's version, run with their connection in the environment."""

import asyncio
import os
import re
import shutil
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from vanilla_saas.database.binaries import WHEEL, wheel_packages
from vanilla_saas.database.cli import url_environment
from vanilla_saas.operations.backup_errors import BackupError, disk_full

CHUNK = 1024 * 1024
FULL = "No space left on device"
_NEEDED = ("pg_dump", "pg_restore", "psql")


def client_programs(major: int, given: Path | None = None) -> Path:
    """The folder of PostgreSQL's client programs for a server of this major version.

    The same version where there is one, else the next newer: pg_dump refuses newer servers, and a newer pg_restore may
    set what an older server does not know. Raises BackupError `backup_programs_missing`.
    """
    packages = wheel_packages()
    folders = list((packages / WHEEL).glob("pginstall*/bin")) if packages else []
    folders += [Path(f"/usr/lib/postgresql/{number}/bin") for number in range(major, major + 5)]
    folders += [Path(f"/usr/pgsql-{number}/bin") for number in range(major, major + 5)]
    on_path = shutil.which("pg_dump")
    folders += [Path(on_path).resolve().parent] if on_path else []
    found = [(version, folder) for folder in ([given] if given else []) + folders if (version := _version(folder))]
    fitting = sorted((one for one in found if one[0] >= major), key=lambda one: one[0])
    if not fitting:
        have = ", ".join(str(version) for version, _ in found) or "none"
        raise BackupError(
            "backup_programs_missing",
            f"The server is PostgreSQL {major}, and no pg_dump of {major} or newer was found (found: {have}).",
            f"Install PostgreSQL's client programs of version {major}, or set VANILLA_SAAS_PG_BIN to their folder.",
        )
    return fitting[0][1]


def _version(folder: Path) -> int | None:
    if not all(os.access(folder / name, os.X_OK) for name in _NEEDED):
        return None
    try:
        said = subprocess.run([folder / "pg_dump", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(found[1]) if found else None


@asynccontextmanager
async def started(command: list[str | Path], url: str, *, feed: bool = False) -> AsyncIterator[Process]:
    """A program whose connection is in its environment, where no list of processes shows it; ended with the block."""
    connection = url_environment(url)
    # of the thousand small transactions of a restore none has to be on disk before the next: the last one is
    options = f"{connection.get('PGOPTIONS', '')} -c synchronous_commit=off".strip()
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(str(part) for part in command),
        stdin=PIPE if feed else asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env=kept | connection | {"LC_ALL": "C", "PGAPPNAME": "vanilla-saas backup", "PGOPTIONS": options},
        limit=CHUNK,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await _drained(process)
        await process.wait()


async def _drained(process: Process) -> None:
    """Reads what nobody wants any more: asyncio tells of no end while a pipe holds something."""
    assert process.stdout is not None
    while await process.stdout.read(CHUNK):
        pass


async def finish(process: Process, code: str, what: str, said: bytes) -> None:
    """Waits for the end. Raises BackupError `backup_disk_full`, or `code` with the last lines that it printed."""
    if await process.wait() == 0:
        return
    text = said.decode(errors="replace").strip()
    if FULL in text:
        raise disk_full("the place it was written to")
    raise BackupError(code, f"{what} failed:\n" + "\n".join(text.splitlines()[-8:]))


async def fed(process: Process, parts: Iterable[bytes]) -> None:
    """Writes to the program's input; a program that ended early tells why by itself."""
    assert process.stdin is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        for part in parts:
            process.stdin.write(part)
            await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def run_sql(programs: Path, url: str, text: str) -> None:
    """Runs statements with psql, stopping at the first error. Raises BackupError `restore_failed`."""
    command: list[str | Path] = [programs / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"]
    async with started(command, url, feed=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        _, said, _ = await asyncio.gather(process.stdout.read(), process.stderr.read(), fed(process, [text.encode()]))
        await finish(process, "restore_failed", "The roles could not be made", said)
