"""Where the database is: `DATABASE_URL`, then libpq's `PG*` variables, then the embedded server."""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import asyncpg

from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.embedded import EmbeddedServer, attach
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.settings import Settings

_PASSWORD_REFUSED = (asyncpg.InvalidPasswordError, asyncpg.ProtocolViolationError)
"""How PostgreSQL and, with 08P01, PgBouncer answer a wrong password."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Connection URLs: `admin` migrates and administers, `app` and `runtime` serve; `server` when it is embedded."""

    admin: str
    app: str
    runtime: str
    server: EmbeddedServer | None = None


@contextmanager
def addresses(settings: Settings, signer: ContextSigner) -> Iterator[Addresses]:
    """The addresses of the configured database; starts or shares the embedded server for the time of the block.

    Raises EmbeddedServerError, VanillaError `invalid_request` for a setting that is no URL.
    """
    if settings.uses_embedded_server():
        with attach(settings) as server:
            yield Addresses(server.dsn("postgres"), server.dsn("vanilla_app"), server.dsn("vanilla_runtime"), server)
        return
    admin = settings.database_url.get_secret_value() if settings.database_url else _from_libpq_variables()
    for name, secret in (
        ("DATABASE_URL", settings.database_url),
        ("VANILLA_SAAS_APP_URL", settings.app_url),
        ("VANILLA_SAAS_RUNTIME_URL", settings.runtime_url),
    ):
        if secret is not None:
            _check_url(name, secret.get_secret_value())
    yield Addresses(
        admin,
        settings.app_url.get_secret_value() if settings.app_url else _as_login(admin, "vanilla_app", signer),
        settings.runtime_url.get_secret_value()
        if settings.runtime_url
        else _as_login(admin, "vanilla_runtime", signer),
    )


async def connect_admin(url: str) -> asyncpg.Connection:
    """A connection of the login that migrates and administers.

    Raises VanillaError `database_unavailable` in an operator's words.
    """
    try:
        return await asyncpg.connect(url, timeout=10)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise unreachable(
            error,
            "Check host, port, name and password in DATABASE_URL or the PG* variables;"
            " without both the embedded server is used.",
        ) from None


def unreachable(error: Exception, hint: str) -> VanillaError:
    """Why a connection could not be made. Never repeats the URL, which holds a password."""
    why = str(error)
    if isinstance(error, asyncpg.InterfaceError | ValueError):
        why = "its address is not valid"
    elif isinstance(error, OSError) and error.errno:
        why = os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return VanillaError("database_unavailable", f"The database cannot be reached: {why or 'no answer'}.", hint=hint)


def _check_url(name: str, url: str) -> None:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("postgresql", "postgres"):
        # not repeated: it may hold a password
        raise VanillaError(
            "invalid_request",
            f"{name} is not the URL of a PostgreSQL database.",
            hint="Its form is postgresql://user:password@host:port/database; special characters are percent-encoded.",
        )


def _from_libpq_variables() -> str:
    host = os.environ["PGHOST"]
    user = quote(os.environ.get("PGUSER", "postgres"), safe="")
    password = f":{quote(os.environ['PGPASSWORD'], safe='')}" if os.environ.get("PGPASSWORD") else ""
    port = os.environ.get("PGPORT", "5432")
    database = quote(os.environ.get("PGDATABASE", "vanilla_saas"), safe="")
    if host.startswith("/"):
        return f"postgresql://{user}{password}@/{database}?host={quote(host, safe='')}&port={port}"
    return f"postgresql://{user}{password}@{host}:{port}/{database}"


def login_connector(url: str, signer: ContextSigner) -> Callable[..., Awaitable[asyncpg.Connection]]:
    """How a pool connects as a run-time login whose password comes from the context key, which may be rotated.

    A password that the server refuses is followed by the others that may be in force; the one that worked comes first
    next time. A URL without a password is tried as it is first (peer, trust, a password file); one with a password of
    its own is left as it is.
    """
    parts = urlsplit(url)
    login, given = unquote(parts.username or ""), parts.password
    working = given

    async def connect(*arguments: Any, **options: Any) -> asyncpg.Connection:
        nonlocal working
        try:
            return await asyncpg.connect(*arguments, **options, password=working)
        except _PASSWORD_REFUSED:
            for password in signer.login_passwords(login):
                with suppress(*_PASSWORD_REFUSED):
                    connection = await asyncpg.connect(*arguments, **options, password=password)
                    working = password
                    return connection
            raise

    return connect if given is None or given in signer.login_passwords(login) else asyncpg.connect


def _as_login(url: str, login: str, signer: ContextSigner) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{login}:{signer.login_password(login)}@{place}"))
