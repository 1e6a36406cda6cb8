"""The command line as an operator has it: real processes with a clean environment, real signals."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from tests.conftest import TEST_KEY, Cluster
from vanilla_saas.database import embedded, postmaster
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.embedded import EmbeddedServer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import _prepare
from vanilla_saas.settings import Settings

COMMAND = Path(sys.executable).with_name("vanilla-saas")
START_SECONDS = 90.0
"""Generous: a busy machine starts an interpreter in seconds."""
STOP_SECONDS = 60.0


class Installation:
    """A home and an environment; none of this process's own settings reach the commands."""

    def __init__(self, home: Path, **environment: str):
        self.home = home
        self.environment = environment

    def _environment(self, extra: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        wide = {"COLUMNS": "200", "TERM": "dumb"}
        return kept | wide | {"VANILLA_SAAS_HOME": str(self.home)} | self.environment | extra

    def run(self, *arguments: str, given: str = "", seconds: float = 120, **extra: str) -> "Finished":
        """Runs a command to its end."""
        done = subprocess.run(
            [str(COMMAND), *arguments],
            input=given,
            env=self._environment(extra),
            cwd=_somewhere(self.home),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, **extra: str) -> "Running":
        """Starts a command that serves; on a free port unless told."""
        environment = {"VANILLA_SAAS_PORT": "0"} | self._environment(extra)
        return Running(list(arguments), environment, _somewhere(self.home))

    @asynccontextmanager
    async def serving(self, *arguments: str, **extra: str) -> AsyncIterator["Running"]:
        """A started server that is ready; killed at the end unless it has ended."""
        process = self.start(*arguments, **extra)
        try:
            await process.ready()
            yield process
        finally:
            await process.end()


class Finished:
    """What a command came to."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Running:
    """A server process; what it prints goes to files, so that it never waits for a reader."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path, **popen: Any):
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (closed in end)
        command = popen.pop("command", [str(COMMAND)])
        self.process = subprocess.Popen(
            [*command, *arguments],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
            # a group of its own: a signal to the tests' terminal is not a signal to it
            start_new_session=True,
            **popen,
        )
        self.url = ""
        self._last: tuple[str, str] | None = None

    @property
    def out(self) -> str:
        return self._printed(0)

    @property
    def err(self) -> str:
        return self._printed(1)

    def _printed(self, number: int) -> str:
        if self._last:
            return self._last[number]
        # not read(): the child shares the position
        descriptor = self._files[number].fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    async def ready(self) -> None:
        """Waits until it has said where it listens, and answers there."""

        async def answers() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}\n{self.out}\n{self.err}"
            found = re.search(r"http://[^\s/]+:\d+", self.out)
            if found is None:
                return False
            self.url = found[0]
            return True

        await eventually(answers, START_SECONDS, lambda: f"{self.out}\n{self.err}")
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/v1/models") as answer:
            assert answer.status == 401

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code."""
        await eventually(self._ended, seconds, lambda: f"it did not end\n{self.out}\n{self.err}")
        return self.process.returncode

    async def stop(self) -> int:
        self.send(signal.SIGTERM)
        return await self.wait()

    async def end(self) -> None:
        """Kills it and its children, whatever state it is in."""
        try:
            if self.process.poll() is None:
                self.send(signal.SIGCONT)
                self.send(signal.SIGTERM)
                await self.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._last = (self.out, self.err)
            for file in self._files:
                file.close()

    async def stands(self) -> None:
        """Waits until it has stopped itself, as a moment that ends in `:stop` has it."""

        async def stopped() -> bool:
            assert self.process.poll() is None, self.err
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state == "T"

        await eventually(stopped, 60, lambda: self.err)

    async def _ended(self) -> bool:
        return self.process.poll() is not None


async def eventually(
    ask: Callable[[], Awaitable[Any]], seconds: float = 20, why: Callable[[], str] = lambda: "it did not happen in time"
) -> Any:
    """The first answer that is not empty, within a deadline."""
    end = time.monotonic() + seconds
    while not (found := await ask()):
        assert time.monotonic() < end, why()
        await asyncio.sleep(0.02)
    return found


async def reached(**where: Any) -> asyncpg.Connection:
    """A connection, prepared as the product's are; waits while PostgreSQL is coming back."""

    async def connect() -> asyncpg.Connection | None:
        try:
            return await asyncpg.connect(**where)
        except (OSError, asyncpg.PostgresError):
            return None

    connection = await eventually(connect, 60)
    await _prepare(connection)
    return connection


FAST = {"fsync": "off", "full_page_writes": "off"}
"""A killed process loses nothing that the kernel has."""


@asynccontextmanager
async def own_server(database: str) -> AsyncIterator[tuple[EmbeddedServer, Path]]:
    """A server that may be killed, with a migrated database in it, and its home."""
    async with new_home() as home:
        with await asyncio.to_thread(embedded.attach, Settings(home=home), FAST) as server:  # type: ignore[arg-type]
            connection = await asyncpg.connect(server.dsn())
            await connection.execute(f'create database "{database}"')
            await connection.close()
            await migrate(server.dsn(database=database), ContextSigner(bytes.fromhex(TEST_KEY)))
            yield server, home


async def kill_postgresql(data: Path) -> None:
    """Kills the server of a data directory; returns when another has begun there."""
    before = postmaster.postmaster_pid(data)
    os.kill(before, signal.SIGKILL)

    async def back() -> bool:
        with suppress(OSError, ValueError, IndexError):
            return postmaster.postmaster_pid(data) not in (0, before)
        return False

    await eventually(back, 60)


def over(cluster: Cluster, database: str, home: Path, **more: str) -> Installation:
    """An installation over a database of the tests' own server, which lets us in as any role."""
    return Installation(
        home,
        DATABASE_URL=cluster.url("vanilla_app", database),
        VANILLA_SAAS_APP_URL=cluster.url("vanilla_app", database),
        VANILLA_SAAS_RUNTIME_URL=cluster.url("vanilla_runtime", database),
        VANILLA_SAAS_CONTEXT_KEY=TEST_KEY,
        VANILLA_SAAS_SECRET_KEY="c3" * 32,
        **more,
    )


async def assert_books_are_clean(operator: asyncpg.Connection) -> None:
    """Every wallet is the sum of its ledger, its holds and its grants; every chain verifies."""
    assert await operator.fetch("select * from reconcile_token_wallets()") == []
    assert await operator.fetch("select * from verify_token_ledger()") == []
    twice = await operator.fetch(
        "select hold_id from user_token_ledger where direction = 'settle'"
        " and metadata ->> 'final' is distinct from 'false'"
        " group by hold_id having count(*) > 1"
    )
    assert twice == []


def _somewhere(home: Path) -> Path:
    """A folder without an .env file of ours."""
    return home if home.is_dir() else Path("/")


async def keeper_has_left(home: Path) -> None:
    """Waits until the embedded server of a home has stopped, if there is one."""
    if not (home / "keeper.lock").exists():
        return

    async def stopped() -> bool:
        return not embedded._keeper_lives(home)

    await eventually(stopped, STOP_SECONDS)


@asynccontextmanager
async def new_home() -> AsyncIterator[Path]:
    """A home that is not there yet, short and where root's server user can reach it; stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    folder.chmod(0o755)
    yield folder / "home"
    await keeper_has_left(folder / "home")
    shutil.rmtree(folder)
