"""`vanilla-saas psql` and `vanilla-saas env`: the database this installation uses, for other tools."""

import json
import os
import shlex
import subprocess
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

import typer

from vanilla_saas.database.embedded import EmbeddedServerError, attach, run_psql
from vanilla_saas.database.embedded_upgrade import upgrade
from vanilla_saas.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The database of this installation.")

PARAMETERS = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "database": "PGDATABASE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "channel_binding": "PGCHANNELBINDING",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
"""libpq's variable for each part of a connection URL."""


def url_environment(url: str) -> dict[str, str]:
    """libpq's variables for a connection URL, password included. Unknown parameters are left out."""
    parts = urlsplit(url)
    hosts = [host.rpartition("@")[2] for host in parts.netloc.split(",")]
    found = {
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "dbname": unquote(parts.path.lstrip("/")),
        "host": ",".join(_host_and_port(host)[0] for host in hosts),
        "port": ",".join(_host_and_port(host)[1] for host in hosts).strip(","),
    }
    found |= dict(parse_qsl(parts.query))
    return {PARAMETERS[name]: value for name, value in found.items() if value and name in PARAMETERS}


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.lstrip(":")
    host, _, port = text.partition(":")
    return unquote(host), port


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open psql on the database, or run it with the given arguments."""
    settings = Settings()
    if settings.uses_embedded_server():
        try:
            with attach(settings) as server:
                raise typer.Exit(run_psql(server, context.args))
        except EmbeddedServerError as error:
            raise _refused(error) from error
    url = settings.database_url
    environment = os.environ | (url_environment(url.get_secret_value()) if url else {})
    try:
        code = subprocess.run(["psql", *context.args], env=environment, check=False).returncode
    except FileNotFoundError:
        typer.echo("psql is not on the PATH; install PostgreSQL's client programs.", err=True)
        code = 127
    raise typer.Exit(code)


@app.command()
def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Print the variables with which psql and pg_dump reach the database: eval "$(vanilla-saas env)".

    The embedded server stays up at least until the terminal session that asked has ended.
    """
    settings = Settings()
    if settings.uses_embedded_server():
        try:
            with attach(settings) as server:
                variables = server.pg_environment()
                server.hold_for(_asking_process())
        except EmbeddedServerError as error:
            raise _refused(error) from error
    elif settings.database_url is not None:
        variables = url_environment(settings.database_url.get_secret_value())
    else:
        variables = {name: value for name, value in os.environ.items() if name in PARAMETERS.values()}
    if as_json:
        typer.echo(json.dumps(variables))
    else:
        for name, value in variables.items():
            typer.echo(f"export {name}={shlex.quote(value)}")


@app.command("pg-upgrade")
def pg_upgrade() -> None:
    """Move the embedded server's data to VANILLA_SAAS_PG_VERSION (18); keeps the old data."""
    settings = Settings()
    if not settings.uses_embedded_server():
        typer.echo("The database is not the embedded one; upgrade it where it runs.", err=True)
        raise typer.Exit(2)
    try:
        kept = upgrade(settings)
    except EmbeddedServerError as error:
        raise _refused(error) from error
    typer.echo(
        f"The data is of PostgreSQL {settings.pg_version} now; {kept} can be deleted."
        if kept
        else f"The data is of PostgreSQL {settings.pg_version} already."
    )


def _asking_process() -> int:
    """The session leader: parents may be short-lived (`uv run`, a subshell), a terminal's shell is not."""
    leader = os.getsid(0)
    return leader if leader not in (0, os.getpid()) else os.getppid()


def _refused(error: EmbeddedServerError) -> typer.Exit:
    typer.echo(f"{error.code}: {error.detail}", err=True)
    if error.hint:
        typer.echo(error.hint, err=True)
    return typer.Exit(1)
