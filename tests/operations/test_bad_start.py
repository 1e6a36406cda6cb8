"""What cannot start says why in plain words, ends with 1, leaves nothing half-made, and starts when it is mended."""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import LONG, TEST_KEY, Cluster, create_database
from tests.processes import Finished, Installation, eventually, keeper_has_left, new_home, over
from vanilla_saas.database.embedded import attach
from vanilla_saas.settings import Settings

UNREACHABLE = "postgresql://owner:s3cret@127.0.0.1:1/vanilla"


def refused(done: Finished, code: str, *words: str) -> None:
    """Exit code 1, one line `error <code>: <sentence>`, one line with the way out; no traceback, no secret."""
    assert done.code == 1, done
    first, _, hint = done.err.strip().partition("\n")
    assert re.fullmatch(rf"error {code}: \S.+", first), done
    assert len(hint) > 15, done
    for word in words:
        assert word in done.err, done
    assert "Traceback" not in done.out + done.err
    assert "s3cret" not in done.out + done.err


@pytest.fixture
async def home() -> AsyncIterator[Path]:
    async with new_home() as home:
        yield home


WRONG = [
    ("DATABASE_URL", UNREACHABLE, "database_unavailable", "Connection refused"),
    ("DATABASE_URL", "postgresql://owner:s3cret@127.0.0.1:port/x", "database_unavailable", "not valid"),
    ("DATABASE_URL", "owner:s3cret@localhost", "invalid_request", "DATABASE_URL"),
    ("DATABASE_URL", "postgresql://owner:s3cret@[::1/x", "invalid_request", "DATABASE_URL"),
    ("VANILLA_SAAS_CONTEXT_KEY", "s3cret", "invalid_request", "VANILLA_SAAS_CONTEXT_KEY"),
    ("VANILLA_SAAS_POOL_SIZE", "s3cret", "invalid_request", "VANILLA_SAAS_POOL_SIZE"),
    ("VANILLA_SAAS_POOL_SIZE", "0", "invalid_request", "VANILLA_SAAS_POOL_SIZE"),
    ("VANILLA_SAAS_PORT", "99999", "invalid_request", "VANILLA_SAAS_PORT"),
    ("VANILLA_SAAS_HOME", "/dev/null/home", "invalid_state", "Not a directory"),
]
VERBS = ["serve", "up", "migrate", "providers list"]
PAIRS = [
    (verb, *wrong)
    for number, wrong in enumerate(WRONG)
    for verb in VERBS
    # each setting with one verb and each verb with two settings; all with all in the long version
    if LONG or verb == VERBS[number % len(VERBS)] or number in (0, len(WRONG) - 1)
]


@pytest.mark.parametrize(("verb", "setting", "value", "code", "word"), PAIRS)
def test_a_wrong_setting_is_named(verb: str, setting: str, value: str, code: str, word: str, tmp_path: Path) -> None:
    installation = Installation(tmp_path / "home", DATABASE_URL=UNREACHABLE, VANILLA_SAAS_PORT="0")
    refused(installation.run(*verb.split(), **{setting: value}), code, word)
    assert {path.name for path in tmp_path.rglob("*")} <= {"home", "context.key", "secret.key"}


def test_a_secret_key_that_is_none_stops_the_start_before_anything_is_made(tmp_path: Path) -> None:
    done = Installation(tmp_path / "home", VANILLA_SAAS_PORT="0").run("up", VANILLA_SAAS_SECRET_KEY="s3cret")
    refused(done, "secret_key_missing", "VANILLA_SAAS_SECRET_KEY")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["context.key"]


def test_a_port_that_is_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = Installation(tmp_path / "home").run("up", "--port", str(port))
    refused(done, "invalid_state", f"127.0.0.1:{port} is in use", "--port")
    assert list(tmp_path.iterdir()) == []


async def test_a_login_that_no_policy_binds_serves_only_when_told(
    cluster: Cluster, database_name: str, tmp_path: Path
) -> None:
    installation = Installation(
        tmp_path, DATABASE_URL=cluster.url("postgres", database_name), VANILLA_SAAS_CONTEXT_KEY=TEST_KEY
    )
    refused(installation.run("serve", VANILLA_SAAS_PORT="0"), "forbidden", "postgres", "--allow-superuser")
    async with installation.serving("serve", "--allow-superuser") as running:
        assert await running.stop() == 0


async def test_a_database_without_the_schema_or_with_another_key_is_not_served(
    cluster: Cluster, database_name: str, tmp_path: Path
) -> None:
    async with create_database(cluster, f"empty_{uuid.uuid4().hex[:12]}") as empty:
        done = over(cluster, empty, tmp_path).run("serve", VANILLA_SAAS_PORT="0")
        refused(done, "invalid_state", "not migrated", "vanilla-saas migrate")
    other_key = over(cluster, database_name, tmp_path, VANILLA_SAAS_PORT="0")
    done = other_key.run("serve", "--processes", "2", VANILLA_SAAS_CONTEXT_KEY="0f" * 32)
    refused(done, "context_invalid", "vanilla-saas migrate")


async def test_data_of_another_major_version_is_left_alone(home: Path) -> None:
    attach(Settings(home=home, pg_version=16), {"fsync": "off"}).close()
    await keeper_has_left(home)
    installation = Installation(home, VANILLA_SAAS_PORT="0")
    refused(installation.run("up"), "embedded_version_mismatch", "PostgreSQL 16", "VANILLA_SAAS_PG_VERSION=16")
    assert installation.run("migrate", VANILLA_SAAS_PG_VERSION="16").out.startswith("applied 001_initial_schema.sql")


@pytest.fixture
async def small_disk(home: Path) -> AsyncIterator[Path]:
    """An empty file system of 120 MB."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = home.parent / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=120m,mode=755"):
        pytest.skip("a file system of our own cannot be mounted here")
    yield disk
    await keeper_has_left(disk / "home")
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("free", "code"), [(0, "invalid_state"), (20_000_000, "embedded_disk_full")], ids=["for its keys", "for its data"]
)
def test_a_full_disk_is_named_and_the_start_succeeds_when_there_is_space(
    free: int, code: str, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - max(free, 4096))
        if not free:
            file.seek(0, os.SEEK_END)
            while _grows(file.fileno()):
                pass
    installation = Installation(small_disk / "home", VANILLA_SAAS_PORT="0")
    refused(installation.run("up"), code, "No space left on device")
    assert [path for path in (small_disk / "home").glob("*.key*") if not path.stat().st_size] == []
    assert list((small_disk / "home").glob(".*")) == []
    ballast.unlink()
    assert installation.run("migrate").out.startswith("applied 001_initial_schema.sql")


def _grows(descriptor: int) -> bool:
    """Whether another byte found room."""
    try:
        return os.write(descriptor, b"x" * 4096) > 0
    except OSError:
        return False


async def test_a_start_that_is_interrupted_can_be_repeated(home: Path) -> None:
    installation = Installation(home)
    half = installation.start("up")
    try:

        async def begun() -> bool:
            return (home / "start.lock").exists()

        await eventually(begun, 60)
        half.send(signal.SIGTERM)
        await half.wait()
    finally:
        await half.end()
    async with installation.serving("up") as running:
        assert "Super admin" in running.out
        assert await running.stop() == 0
