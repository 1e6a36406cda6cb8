"""What the tests of operations share: receivers of webhooks, and a hosted database with passwords."""

import os
import pwd
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from tests.migrations.tools import binaries, run
from tests.operations.webhook_support import Hooks, Receiver, receiving, sending
from tests.processes import Installation
from vanilla_saas.database.pool import Database
from vanilla_saas.operations.webhooks import WebhookSender

OWNER_PASSWORD = "p@ss/word: 100%"  # every character that a URL must encode
KEYS = {"before": "1b" * 32, "after": "2c" * 32}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of its own on loopback, scram for everybody."""
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    (folder / "password").write_text("superuser")
    (folder / "password").chmod(0o644)
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:  # initdb refuses root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    programs = binaries(18)
    options = ("--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync", "--no-locale", "--encoding=UTF8")
    made = run(programs / "initdb", "-D", folder / "data", "-U", "postgres", *options, cwd="/", **as_user)
    assert made.returncode == 0, made.stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    start = (programs / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w", "-o")
    settings = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    done = run(*start, settings, "start", cwd="/", **as_user)
    assert done.returncode == 0, (folder / "log").read_text()
    try:
        yield port
    finally:
        run(programs / "pg_ctl", "-D", folder / "data", "-m", "fast", "-w", "stop", cwd="/", **as_user)
        deadline = time.monotonic() + 10
        while (folder / "data" / "postmaster.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def superuser(port: int) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(host="127.0.0.1", port=port, user="postgres", password="superuser")
    await connection.execute(f"create role owner login nosuperuser createrole password '{OWNER_PASSWORD}'")
    await connection.execute("create database hosted owner owner")
    yield connection
    await connection.close()


@pytest.fixture
def installation(port: int, superuser: asyncpg.Connection, tmp_path: Path) -> Installation:
    url = f"postgresql://owner:{quote(OWNER_PASSWORD, safe='')}@127.0.0.1:{port}/hosted"
    return Installation(tmp_path, DATABASE_URL=url, VANILLA_SAAS_CONTEXT_KEY=KEYS["before"], VANILLA_SAAS_PORT="0")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started


@pytest.fixture
async def hooks(operator: asyncpg.Connection) -> AsyncIterator[Hooks]:
    made = Hooks(operator)
    yield made
    await made.restore()


@pytest.fixture
async def sender(database: Database) -> AsyncIterator[WebhookSender]:
    async with sending(database) as made:
        yield made
