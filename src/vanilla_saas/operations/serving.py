"""Serving: `up` makes everything that is needed and serves it; `serve` serves what is there."""

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import asyncpg
import uvicorn
from rich.console import Console
from uvicorn.supervisors import Multiprocess

from vanilla_saas.database.connection import Addresses, addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations.first_run import DEMO_EMAIL, FirstRun, prepare_first_run
from vanilla_saas.settings import Settings

APPLICATION = "vanilla_saas.app:create_app"


def up(settings: Settings, console: Console) -> None:
    """Embedded server or configured database, migrations, seed, API and console; returns when stopped."""
    began = time.perf_counter()
    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings))
        signer = load_signer(settings)
        with console.status("Starting PostgreSQL"):
            where = stack.enter_context(addresses(settings, signer))
            asyncio.run(refuse_superuser(where, settings))
        database_s = time.perf_counter() - began
        with console.status("Migrating"):
            ran = asyncio.run(migrate(where.admin, signer))
            first = asyncio.run(prepare_first_run(where.admin, with_demo=where.server is not None))
        migrated_s = time.perf_counter() - began - database_s

        def ready() -> None:
            total = time.perf_counter() - began
            _announce(console, settings, where, first, len(ran), (total, database_s, migrated_s))

        _run(settings, listener, ready)


def serve(settings: Settings, console: Console, processes: int) -> None:
    """The API and the console over a migrated database, in `processes` processes that share one port."""
    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings))
        where = stack.enter_context(addresses(settings, load_signer(settings)))
        asyncio.run(refuse_superuser(where, settings))

        def ready() -> None:
            console.print(f"Serving http://{settings.host}:{listener.getsockname()[1]} (Ctrl+C stops)")

        if processes == 1:
            _run(settings, listener, ready)
            return
        config = _config(settings, processes)
        ready()
        Multiprocess(config, [listener]).run()


def bind(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything else is started.

    Raises VanillaError `invalid_state` when the port is in use or not allowed.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
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
    try:
        connection = await asyncpg.connect(where.admin, timeout=10)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise VanillaError(
            "database_unavailable",
            f"DATABASE_URL cannot be reached: {error or type(error).__name__}",
            hint="Check host, port, name and password; without DATABASE_URL and PGHOST the embedded server is used.",
        ) from None
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


def _config(settings: Settings, processes: int = 1) -> uvicorn.Config:
    """The factory reads its settings from the environment, in this process and in children alike."""
    return uvicorn.Config(
        APPLICATION,
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=processes,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=30,
    )


def _run(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    server = _Server(_config(settings), ready)
    server.run(sockets=[listener])
    if not server.started:
        raise VanillaError("internal_error", "The server did not start; the log above says why.")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()


def _announce(
    console: Console,
    settings: Settings,
    where: Addresses,
    first: FirstRun | None,
    migrations: int,
    seconds: tuple[float, float, float],
) -> None:
    base = f"http://{settings.host}:{settings.port}"
    applied = f"{migrations} migrations {seconds[2]:.1f} s" if migrations else f"schema current {seconds[2]:.1f} s"
    say = console.out
    say(f"Vanilla SaaS is ready in {seconds[0]:.1f} s (database {seconds[1]:.1f} s, {applied})\n")
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
