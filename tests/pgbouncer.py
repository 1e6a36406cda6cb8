"""A PgBouncer in transaction mode before the tests' PostgreSQL, with the file of docs/pgbouncer.md."""

import configparser
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Cluster
from vanilla_saas.database.context import ContextSigner

BINARY = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
PAGE = Path(__file__).parents[1] / "docs" / "pgbouncer.md"
PORT = 6432
START_SECONDS = 20.0


@contextmanager
def pgbouncer(cluster: Cluster, signer: ContextSigner, **more: str) -> Iterator[Cluster]:
    """Where it listens, by a socket in a folder of its own; `more` are further settings."""
    if BINARY is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="vs-bouncer-"))
    owner = pwd.getpwuid(Path(cluster.host).stat().st_uid).pw_name
    _write_files(folder, cluster, signer, more)
    # it refuses to be root; the owner of the server's socket may enter as any login
    as_owner = ["-u", owner] if os.geteuid() == 0 else []
    if as_owner:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, owner)
    try:
        with _supervised([BINARY, "-q", *as_owner, str(folder / "pgbouncer.ini")]) as process:
            _wait_until_it_listens(process, folder)
            yield Cluster(str(folder), PORT)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _supervised(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Starts it again when it dies, as an init system does: 1.18 and 1.19 may when a query is cancelled (its #822)."""
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL)]
    stopping = threading.Event()

    def watch() -> None:
        while running[-1].wait() is not None and not stopping.wait(0.1):
            running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield running[0]
    finally:
        stopping.set()
        while watcher.is_alive():  # one may just have been started
            running[-1].terminate()
            watcher.join(0.1)


def _write_files(folder: Path, cluster: Cluster, signer: ContextSigner, more: dict[str, str]) -> None:
    documented = re.search(r"```ini\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert documented
    file = configparser.ConfigParser()
    file.read_string(documented[1])
    file["databases"] = {"*": f"host={cluster.host} port={cluster.port}"}
    file["pgbouncer"].update(
        {
            "listen_addr": "",
            "listen_port": str(PORT),
            "unix_socket_dir": str(folder),
            "auth_file": str(folder / "userlist.txt"),
            "logfile": str(folder / "log"),
            **more,
        }
    )
    with (folder / "pgbouncer.ini").open("w") as out:
        file.write(out)
    # the owner is no login of ours; here it enters with a password of the same making
    logins = [f'"{login}" "{signer.login_password(login)}"' for login in ("vanilla_app", "vanilla_runtime", "plain")]
    (folder / "userlist.txt").write_text("\n".join(logins) + "\n")


def _wait_until_it_listens(process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _listens(folder / f".s.PGSQL.{PORT}"):
        log = folder / "log"
        assert process.poll() is None, log.read_text() if log.exists() else "pgbouncer ended"
        assert time.monotonic() < deadline, "pgbouncer did not start"
        time.sleep(0.02)


def _listens(path: Path) -> bool:
    """The file is there a moment before anybody listens."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def through(bouncer: Cluster, login: str, database: str, signer: ContextSigner) -> str:
    """The URL of a login, with its password: PgBouncer asks for it."""
    return f"postgresql://{login}:{signer.login_password(login)}@/{database}?host={bouncer.host}&port={bouncer.port}"
