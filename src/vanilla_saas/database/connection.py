"""Where the database is: `DATABASE_URL`, then libpq's `PG*` variables, then the embedded server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.embedded import EmbeddedServer, attach
from vanilla_saas.settings import Settings


@dataclass(frozen=True, slots=True)
class Addresses:
    """Connection URLs: `admin` migrates and administers, `app` and `runtime` serve; `server` when it is embedded."""

    admin: str
    app: str
    runtime: str
    server: EmbeddedServer | None = None


@contextmanager
def addresses(settings: Settings, signer: ContextSigner) -> Iterator[Addresses]:
    """The addresses of the configured database; starts or shares the embedded server for the time of the block."""
    if settings.uses_embedded_server():
        with attach(settings) as server:
            yield Addresses(server.dsn("postgres"), server.dsn("vanilla_app"), server.dsn("vanilla_runtime"), server)
        return
    admin = settings.database_url.get_secret_value() if settings.database_url else _from_libpq_variables()
    yield Addresses(
        admin,
        settings.app_url.get_secret_value() if settings.app_url else _as_login(admin, "vanilla_app", signer),
        settings.runtime_url.get_secret_value()
        if settings.runtime_url
        else _as_login(admin, "vanilla_runtime", signer),
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


def _as_login(url: str, login: str, signer: ContextSigner) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{login}:{signer.login_password(login)}@{place}"))
