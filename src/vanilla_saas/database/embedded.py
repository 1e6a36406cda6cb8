"""The embedded PostgreSQL: one private server per home, shared by every process that attaches.

    with attach(Settings()) as server:
        pool = await asyncpg.create_pool(server.dsn("vanilla_app"))

There is no password and no TCP port: the server listens on a Unix socket in a folder that only its own
user and root can enter, and asks the kernel who is calling (peer authentication with an ident map).
States, files and error codes: docs/design/embedded.md. What happens after the start: keeper.py.
"""

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from vanilla_saas.database import keeper, postmaster
from vanilla_saas.database.binaries import Binaries, find_binaries, runnable_by
from vanilla_saas.database.embedded_data import (
    SUPERUSER,
    check_version,
    disk_full,
    initialise,
    last_lines,
    write_ident_map,
)
from vanilla_saas.database.embedded_place import EmbeddedServerError, Place, find_place, prepare_home
from vanilla_saas.settings import Settings

if sys.platform != "win32":
    import fcntl

__all__ = ["EmbeddedServer", "EmbeddedServerError", "attach", "run_psql"]

DATABASE = "vanilla_saas"
LOCK_SECONDS = 120.0
"""How long attach waits for another process that is starting the server."""
GONE_SECONDS = 15.0
"""How long attach waits for a keeper to bring back a postmaster that is not running."""
FULL_BYTES = 1024 * 1024
"""Less free space than this counts as a full disk."""
CREATE_DATABASE = r"""
select 'create database vanilla_saas'
 where not exists (select from pg_database where datname = 'vanilla_saas') \gexec
"""


@dataclass(frozen=True)
class EmbeddedServer:
    """This process's share of a running server; the server stops when the last share is given up."""

    home: Path
    data_dir: Path
    socket_dir: Path
    bin_dir: Path
    """Binaries of the server's version, for psql, pg_dump and pg_restore."""
    version: int
    started: bool
    """Whether this call started the server."""
    _share: FileIO = field(repr=False, compare=False)

    def dsn(self, user: str = SUPERUSER, database: str = DATABASE) -> str:
        """Connection URL over the Unix socket, for asyncpg and libpq. No password is needed."""
        host = quote(str(self.socket_dir), safe="")
        target = f"{quote(user, safe='')}@/{quote(database, safe='')}"
        return f"postgresql://{target}?host={host}&port={postmaster.PORT}"

    def pg_environment(self) -> dict[str, str]:
        """Variables with which `psql -U postgres -d vanilla_saas -f ...` finds this server and its psql."""
        return {
            "PGHOST": str(self.socket_dir),
            "PGPORT": str(postmaster.PORT),
            "PGUSER": SUPERUSER,
            "PGDATABASE": DATABASE,
            "PATH": f"{self.bin_dir}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }

    def hold_for(self, pid: int) -> None:
        """Keeps a share for as long as process `pid` lives, whatever becomes of this one."""
        share = self._share.fileno()
        _run_keeper(["hold", str(share), str(pid)], share)

    def close(self) -> None:
        """Gives up the share; again is allowed.

        As process 1 of a container it also waits for the stop, because the container, with the server
        in it, ends as soon as process 1 does.
        """
        self._share.close()
        if os.getpid() == 1:
            deadline = time.monotonic() + postmaster.STOP_SECONDS
            while _unused(self.home) and _keeper_lives(self.home) and time.monotonic() < deadline:
                time.sleep(postmaster.TICK)

    def __enter__(self) -> "EmbeddedServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attach(settings: Settings, options: Mapping[str, str] | None = None) -> EmbeddedServer:
    """Shares the home's server; initialises the data directory and starts it when needed.

    `options` are PostgreSQL settings of the start (`{"fsync": "off"}` for tests); a server that already
    runs keeps its own. Raises EmbeddedServerError.
    """
    if sys.platform == "win32":
        raise EmbeddedServerError(
            "embedded_platform",
            "The embedded server needs Unix sockets with peer authentication, which Windows has not.",
            "Set DATABASE_URL to a running PostgreSQL.",
        )
    try:
        return _attach(settings, dict(options or {}))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(settings.home, str(error)) from error
        raise EmbeddedServerError(
            "embedded_home_unusable",
            f"The embedded server cannot be set up in {settings.home}: {error}.",
            "Set VANILLA_SAAS_HOME to a folder of yours, or DATABASE_URL to a running PostgreSQL.",
        ) from error


def run_psql(server: EmbeddedServer, arguments: list[str]) -> int:
    """Runs psql of the server's version on the caller's terminal; its exit status."""
    environment = {
        # these would take precedence over PGHOST
        name: value
        for name, value in os.environ.items()
        if name not in ("PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE")
    } | server.pg_environment()
    # Ctrl-C cancels a statement in psql; this process has to outlive it, for it holds the share
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run([str(server.bin_dir / "psql"), *arguments], env=environment, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _attach(settings: Settings, options: dict[str, str]) -> EmbeddedServer:
    for name in options:
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", name):
            raise ValueError(f"{name!r} is not the name of a PostgreSQL setting")
    home = prepare_home(settings.home)
    binaries = find_binaries(settings)
    start = _start_lock(home)
    try:
        share = FileIO(postmaster.wait_lock(home / "users.lock", fcntl.LOCK_SH), "r+")
        try:
            place = find_place(home)
            started = _ensure_running(place, binaries, options)
            binaries = runnable_by(binaries, place.user) if started else binaries
            server = EmbeddedServer(
                home, place.data, place.socket_dir, binaries.folder, binaries.version, started, share
            )
            _ensure_database(server)
        except BaseException:
            share.close()
            raise
    finally:
        os.close(start)
    return server


# Locks


def _start_lock(home: Path) -> int:
    deadline = time.monotonic() + LOCK_SECONDS
    while (start := postmaster.try_lock(home / "start.lock", fcntl.LOCK_EX)) is None:
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                "embedded_busy",
                f"Another process has been starting or stopping the server of {home} for {LOCK_SECONDS:.0f} s.",
                f"Look at {home / 'server.log'}; `fuser {home / 'start.lock'}` names the process.",
            )
        time.sleep(postmaster.TICK)
    return start


def _free(path: Path, operation: int) -> bool:
    descriptor = postmaster.try_lock(path, operation)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def _keeper_lives(home: Path) -> bool:
    return not _free(home / "keeper.lock", fcntl.LOCK_EX)


def _unused(home: Path) -> bool:
    """Whether no process has a share; the keeper's own exclusive lock means the same."""
    return _free(home / "users.lock", fcntl.LOCK_EX) or not _free(home / "users.lock", fcntl.LOCK_SH)


# Start


def _ensure_running(place: Place, binaries: Binaries, options: dict[str, str]) -> bool:
    """Until the server accepts connections and has a keeper; whether this call started it."""
    check_version(place, binaries)
    log = place.home / "server.log"
    offset = log.stat().st_size if log.exists() else 0
    started = False
    seen = time.monotonic()
    while True:
        running = postmaster.postmaster_pid(place.data)
        if not _keeper_lives(place.home):
            started = started or not running
            if not _start_keeper(_plan(place, binaries, options, running)):
                raise _start_failed(place, offset)
        if postmaster.is_ready(place.data):
            return started
        now = time.monotonic()
        seen = now if running and not started else seen
        if now - seen > GONE_SECONDS:
            raise _start_failed(place, offset)
        time.sleep(postmaster.TICK)


def _plan(place: Place, binaries: Binaries, options: dict[str, str], running: int) -> postmaster.Plan:
    """What the keeper shall run; makes the data directory first when there is none."""
    usable = runnable_by(binaries, place.user)
    if not place.data.exists():
        initialise(place, usable, durable=options.get("fsync") != "off")
    if not running:
        write_ident_map(place.data, place.user)
    return postmaster.Plan(
        home=str(place.home),
        data=str(place.data),
        socket_dir=str(place.socket_dir),
        postgres=str(usable.folder / "postgres"),
        uid=place.user.uid,
        gid=place.user.gid,
        drop_privileges=place.user.is_other,
        options=tuple(sorted(options.items())),
    )


def _start_keeper(plan: postmaster.Plan) -> bool:
    """Starts a keeper; whether it has a postmaster."""
    report, theirs = os.pipe()
    try:
        try:
            _run_keeper(["keep", plan.to_json(), str(theirs)], theirs)
        finally:
            os.close(theirs)
        patience = postmaster.OLD_BACKENDS_SECONDS + postmaster.START_SECONDS + postmaster.STOP_SECONDS
        select.select([report], [], [], patience)
        os.set_blocking(report, False)
        with contextlib.suppress(BlockingIOError):
            return os.read(report, 16) == b"ready"
        return False
    finally:
        os.close(report)


def _run_keeper(arguments: list[str], descriptor: int) -> None:
    """Runs the keeper, which leaves our process tree at once, with one inherited descriptor."""
    subprocess.run(
        keeper.command(*arguments),
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        env=postmaster.clean_environment(),
        check=True,
        cwd="/",
    )


# The database


def _ensure_database(server: EmbeddedServer) -> None:
    """Creates the database when it is absent; with it proves that this process may log in."""
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        done = subprocess.run(
            [str(server.bin_dir / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"],
            input=CREATE_DATABASE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env=server.pg_environment() | {"LC_ALL": "C"},
        )
        if done.returncode == 0:
            return
        # the server may have been killed since it was ready; its keeper starts it again
        if postmaster.is_ready(server.data_dir) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if "No space left on device" in done.stdout:
        raise disk_full(server.home, last_lines(done.stdout))
    raise EmbeddedServerError(
        "embedded_connect_failed",
        f"The server of {server.home} runs but refuses this process:\n{last_lines(done.stdout)}",
        f"Look at {server.home / 'server.log'}.",
    )


# Errors


def _start_failed(place: Place, offset: int) -> EmbeddedServerError:
    log = place.home / "server.log"
    said = ""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(offset if log.stat().st_size >= offset else 0)
        said = last_lines(file.read().decode(errors="replace"))
    full = place.data.exists() and shutil.disk_usage(place.data).free < FULL_BYTES
    if full or "No space left on device" in said:
        return disk_full(place.data, said)
    return EmbeddedServerError(
        "embedded_start_failed",
        f"PostgreSQL does not start in {place.data}. Last lines of {log}:\n{said or '(none)'}",
        "Correct the cause and try again, or set DATABASE_URL to a running PostgreSQL.",
    )
