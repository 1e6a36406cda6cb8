"""One PostgreSQL for a whole test run, shared by its xdist workers, and a database for each of them."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vanilla_saas.database import postmaster
from vanilla_saas.database.embedded import EmbeddedServer, attach
from vanilla_saas.settings import Settings

OPTIONS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
"""Speed before durability: the data is thrown away."""


@contextlib.contextmanager
def session_server(version: int = 18) -> Iterator[EmbeddedServer]:
    """The server of this test run; the last process that leaves removes its home."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"process {os.getpid()}")
    name = hashlib.sha256(f"{run} {version}".encode()).hexdigest()[:12]
    home = Path(tempfile.gettempdir()) / f"vs-{name}"
    server = attach(Settings(home=home, pg_version=version), OPTIONS)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close()
        remove_home(server)


def create_database(server: EmbeddedServer, name: str) -> str:
    """A fresh, empty database of that name (`gw0`, a worker's) and its URL for the superuser."""
    statements = f'drop database if exists "{name}" with (force);\ncreate database "{name}";\n'
    subprocess.run(
        [server.bin_dir / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"],
        input=statements,
        env=server.pg_environment() | {"PGOPTIONS": "-c client_min_messages=warning"},
        text=True,
        check=True,
        capture_output=True,
    )
    return server.dsn(database=name)


def remove_home(server: EmbeddedServer, seconds: float = 30.0) -> None:
    """Waits for the stop and removes the home with its data, unless other processes still use it."""
    deadline = time.monotonic() + seconds
    while server.home.exists() and time.monotonic() < deadline:
        with contextlib.ExitStack() as held:
            for lock in ("start.lock", "users.lock"):
                try:
                    descriptor = postmaster.try_lock(server.home / lock, fcntl.LOCK_EX)
                except FileNotFoundError:
                    return
                if descriptor is None:
                    break
                held.callback(os.close, descriptor)
            else:
                if not postmaster.postmaster_pid(server.data_dir):
                    shutil.rmtree(server.home)
                    if not server.data_dir.is_relative_to(server.home):
                        shutil.rmtree(server.data_dir.parent)
                    if server.socket_dir.exists():
                        shutil.rmtree(server.socket_dir)
                    return
            if lock == "users.lock" and _shared(server.home / lock):
                return
        time.sleep(0.02)


def _shared(path: Path) -> bool:
    """Whether users hold the lock, and not the keeper that is stopping."""
    descriptor = postmaster.try_lock(path, fcntl.LOCK_SH)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None
