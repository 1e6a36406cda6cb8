"""Serving: `up` makes everything that is needed and serves it; `serve` serves what is there."""

import asyncio
import errno
import importlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvicorn
from rich.console import Console
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from vanilla_saas.database.connection import Addresses, addresses, connect_admin
from vanilla_saas.database.context import ContextSigner, load_signer
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import Database
from vanilla_saas.metrics import share_counts
from vanilla_saas.operations.first_run import DEMO_EMAIL, FirstRun, prepare_first_run
from vanilla_saas.providers.secrets import SecretBox
from vanilla_saas.settings import Settings

APPLICATION = "vanilla_saas.app:create_app"
CHILD_APPLICATION = "vanilla_saas.operations.serving:create_child_app"
BACKLOG = 2048
Ready = Callable[[], Coroutine[Any, Any, None]]


def up(settings: Settings, console: Console) -> None:
    """Embedded server or configured database, migrations, seed, API and console; returns when stopped."""
    began = time.perf_counter()
    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings))
        signer, _ = load_signer(settings), SecretBox.from_settings(settings)
        with console.status("Starting PostgreSQL"):
            where = stack.enter_context(addresses(settings, signer))
            asyncio.run(refuse_superuser(where, settings))
        database_s = time.perf_counter() - began
        with console.status("Migrating"):
            ran = asyncio.run(migrate(where.admin, signer))
            asyncio.run(check_logins(where, settings, signer))
        migrated_s = time.perf_counter() - began - database_s

        async def ready() -> None:
            # the secrets are made when nothing more can fail, so that those that are made are also shown
            first = await prepare_first_run(where.admin, with_demo=where.server is not None)
            total = time.perf_counter() - began
            _announce(console, _url(settings, listener), where, first, len(ran), (total, database_s, migrated_s))

        _run(settings, listener, ready)


def serve(settings: Settings, console: Console, processes: int) -> None:
    """The API and the console over a migrated database, in `processes` processes that share one port."""
    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings))
        signer, _ = load_signer(settings), SecretBox.from_settings(settings)
        where = stack.enter_context(addresses(settings, signer))
        asyncio.run(refuse_superuser(where, settings))
        asyncio.run(check_logins(where, settings, signer))

        async def ready() -> None:
            console.out(f"Serving {_url(settings, listener)} (Ctrl+C stops)")

        if processes == 1:
            _run(settings, listener, ready)
        else:
            _run_many(settings, listener, ready, processes)


def bind(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything else is started.

    Raises VanillaError `invalid_state` when the port is in use or not allowed.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # listening already: two that only bind may both have the port, and clients wait instead of being refused
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise VanillaError(
            "invalid_state",
            f"{settings.host}:{settings.port} {why}.",
            {"host": settings.host, "port": settings.port},
            "Choose another with --port or VANILLA_SAAS_PORT.",
        ) from None
    listener.set_inheritable(True)
    return listener


async def refuse_superuser(where: Addresses, settings: Settings) -> None:
    """A server on the network does not hold credentials that no policy binds; the embedded server has none.

    Raises VanillaError `forbidden`, `database_unavailable`.
    """
    if where.server is not None or settings.allow_superuser:
        return
    connection = await connect_admin(where.admin)
    try:
        row = await connection.fetchrow(
            "select rolname, rolsuper, rolbypassrls from pg_roles where rolname = session_user"
        )
    finally:
        await connection.close()
    if row["rolsuper"] or row["rolbypassrls"]:
        raise VanillaError(
            "forbidden",
            f"DATABASE_URL connects as {row['rolname']}, which no row-level security binds.",
            {"need": "NOSUPERUSER"},
            "Use a login that is NOSUPERUSER CREATEROLE and owns the database; --allow-superuser overrides.",
        )


async def check_logins(where: Addresses, settings: Settings, signer: ContextSigner) -> None:
    """Refuses in plain words what would otherwise end every server process at its start.

    Raises VanillaError `database_unavailable`, `forbidden`, `invalid_state`, `context_invalid`.
    """
    database = await Database.configured(where, settings, signer, size=1)
    await database.close()


def _url(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


def _config(settings: Settings, application: str = APPLICATION, processes: int = 1) -> uvicorn.Config:
    """The factory reads its settings from the environment, in this process and in children alike."""
    return uvicorn.Config(
        application,
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=processes,
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=30,
    )


def _run(settings: Settings, listener: socket.socket, ready: Ready) -> None:
    server = _Server(_config(settings), ready)
    server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
    if not server.started:
        raise VanillaError("internal_error", "The server did not start; the log above says why.")


def _run_many(settings: Settings, listener: socket.socket, ready: Ready, processes: int) -> None:
    with share_counts():
        supervisor = Multiprocess(_config(settings, CHILD_APPLICATION, processes), [listener])
        asyncio.run(ready())
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise VanillaError("internal_error", "A server process did not start; the log above says why.")


def create_child_app() -> Any:
    """The application in one of several processes, which ends in good order when the process above it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    module, _, factory = APPLICATION.partition(":")
    return getattr(importlib.import_module(module), factory)()


class _Server(uvicorn.Server):
    """Says when it is ready; ends normally, not by the signal that asked for it."""

    def __init__(self, config: uvicorn.Config, ready: Ready):
        super().__init__(config)
        self._ready = ready
        self.failure: Exception | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            try:
                await self._ready()
            except Exception as error:
                self.failure = error
                self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            # uvicorn would raise them again, which ends the process before the shares of the database are given up
            self._captured_signals.clear()


def _announce(
    console: Console,
    base: str,
    where: Addresses,
    first: FirstRun | None,
    migrations: int,
    seconds: tuple[float, float, float],
) -> None:
    applied = f"{migrations} migrations {seconds[2]:.2f} s" if migrations else f"schema current {seconds[2]:.2f} s"
    say = console.out
    say(f"Vanilla SaaS is ready in {seconds[0]:.2f} s (database {seconds[1]:.2f} s, {applied})\n")
    say(f"  Console   {base}")
    say(f"  API       {base}/v1 for OpenAI clients, {base}/api/v1 for the rest")
    if where.server is not None:
        say(f"  Database  embedded PostgreSQL {where.server.version} in {where.server.home} (vanilla-saas psql)")
    if first is not None:
        say("\n  Shown once:")
        say(f"  Super admin   tenant platform, {first.admin_email}, password {first.admin_password} (to be changed)")
        if first.demo_password:
            say(f"  Demo user     tenant default, {DEMO_EMAIL}, password {first.demo_password}")
            say(f"  Demo key      {first.demo_key}")
            say("\n  Try it:")
            say(f"  curl {base}/v1/chat/completions -H 'Authorization: Bearer {first.demo_key}' \\")
            say('    -d \'{"model": "sandbox-small", "messages": [{"role": "user", "content": "Hello"}]}\'')
    say("\nCtrl+C stops it.")
