"""`vanilla-saas up`: the first start, the next ones, two at once, and as an ordinary user."""

import asyncio
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
from argon2 import PasswordHasher

import vanilla_saas
from tests.processes import Installation, Running, keeper_has_left, new_home

SECRETS = ("Shown once", "Super admin", "vsk_")


@dataclass
class First:
    """A first start, and what it printed once."""

    running: Running
    installation: Installation
    password: str
    key: str


@pytest.fixture(scope="module")
async def first() -> AsyncIterator[First]:
    async with new_home() as home, (installation := Installation(home)).serving("up") as running:
        password = re.search(r"admin@localhost, password (\S+)", running.out)
        key = re.search(r"Demo key\s+(vsk_\S+)", running.out)
        assert password, running.out
        assert key, running.out
        yield First(running, installation, password[1], key[1])


async def completion(url: str, key: str) -> tuple[int, Any]:
    body = {"model": "sandbox-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}) as answer,
    ):
        return answer.status, await answer.json()


async def rows(home: Path, statement: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(host=str(home / "postgresql" / "run"), user="postgres", database="vanilla_saas")
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


async def test_the_first_start_prints_a_password_and_a_key_that_work(first: First) -> None:
    assert (await completion(first.running.url, first.key))[0] == 200
    statement = "select password_hash from users where role = 'superadmin'"
    (admin,) = await rows(first.installation.home, statement)
    assert PasswordHasher().verify(admin["password_hash"], first.password)
    assert f"{first.running.url}/v1 for OpenAI clients" in first.running.out
    assert all('"event": "request_refused"' in line for line in first.running.err.splitlines())


async def test_a_second_start_on_the_same_port_is_refused_and_one_on_another_shares_the_database(
    first: First,
) -> None:
    port = urlsplit(first.running.url).port
    refused = first.installation.run("up", VANILLA_SAAS_PORT=str(port))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(f"error invalid_state: 127.0.0.1:{port} is in use.")
    async with first.installation.serving("up") as second:
        assert second.url != first.running.url
        assert not [word for word in SECRETS if word in second.out]
        assert (await completion(second.url, first.key))[0] == 200
        assert await second.stop() == 0
    # the one that stays keeps the server that both shared
    assert (await completion(first.running.url, first.key))[0] == 200


async def test_the_tour_runs_against_a_running_server(first: First) -> None:
    done = await asyncio.to_thread(first.installation.run, "demo", "--url", first.running.url)
    assert done.code == 0, done
    assert "10 answered, 190 refused with 402" in done.out
    assert "chain verified" in done.out
    assert "the chain up to here was rewritten" in done.out
    assert "every wallet, no where" in done.out


async def test_two_first_starts_at_once_migrate_once_and_show_one_password() -> None:
    async with new_home() as home, AsyncExitStack() as stack:
        both = [Installation(home).start("up") for _ in range(2)]
        for running in both:
            stack.push_async_callback(running.end)
        await asyncio.gather(*(running.ready() for running in both))
        said = [running.out for running in both]
        assert sorted("Super admin" in text for text in said) == [False, True], said
        assert sorted("schema current" in text for text in said) == [False, True], said
        (key,) = [found[0] for text in said if (found := re.search(r"vsk_[\w-]+", text))]
        for running in both:
            assert (await completion(running.url, key))[0] == 200
        assert [await running.stop() for running in both] == [0, 0]


def _interpreter_for(user: str) -> str | None:
    """An interpreter of our version that this user can run."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = ["/bin/sh", "-c", f'"{python}" -c ""']
        if (
            subprocess.run(command, user=user, extra_groups=[], cwd="/", capture_output=True, check=False).returncode
            == 0
        ):
            return python
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests ran as an ordinary user")
async def test_an_ordinary_user_needs_nothing_else() -> None:
    python = _interpreter_for("nobody")
    if python is None:
        pytest.skip("no interpreter of this version can be run by another user")
    nobody = pwd.getpwnam("nobody")
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    paths = [str(Path(str(vanilla_saas.__path__[0])).parent), *(path for path in sys.path if "-packages" in path)]
    environment = {
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(paths),
        "VANILLA_SAAS_PORT": "0",
    }
    command = [python, "-c", "from vanilla_saas.cli import main; main()"]
    identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    running = Running(["up"], environment, folder, command=command, **identity)
    try:
        await running.ready()
        key = re.search(r"vsk_[\w-]+", running.out)
        assert key
        assert (await completion(running.url, key[0]))[0] == 200
        (home,) = folder.glob("**/context.key")
        owners = {path.stat().st_uid for path in (home, home.parent, home.parent / "postgresql" / "data")}
        assert owners == {nobody.pw_uid}
        assert await running.stop() == 0
    finally:
        await running.end()
    await keeper_has_left(home.parent)
    shutil.rmtree(folder)
