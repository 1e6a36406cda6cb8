"""The verbs that run the product: up, serve, migrate, doctor, demo, export."""

import asyncio
import os
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.embedded import EmbeddedServerError
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import migrate as run_migrations
from vanilla_saas.operations import serving
from vanilla_saas.operations.doctor import diagnose
from vanilla_saas.operations.sessions import Look, look
from vanilla_saas.settings import Settings

Host = Annotated[str | None, typer.Option(help="Address to listen on [VANILLA_SAAS_HOST, 127.0.0.1].")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on [VANILLA_SAAS_PORT, 8000].")]
AllowSuperuser = Annotated[
    bool, typer.Option("--allow-superuser", help="Serve although DATABASE_URL's login bypasses row-level security.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


def up(host: Host = None, port: Port = None, allow_superuser: AllowSuperuser = False) -> None:
    """Start everything: PostgreSQL, migrations, seed, API and console. One command, ready in seconds."""
    serving.up(_settings(host, port, allow_superuser), Console(highlight=False))


def serve(
    host: Host = None,
    port: Port = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Server processes that share the port.")] = 1,
    allow_superuser: AllowSuperuser = False,
) -> None:
    """Serve the API and the console over a migrated database."""
    serving.serve(_settings(host, port, allow_superuser), Console(highlight=False), processes)


def migrate(
    repair: Annotated[
        bool, typer.Option("--repair", help="Run all again: restores functions, policies, grants and partitions.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Apply the migrations that are missing and make the run-time logins."""
    settings = Settings()
    signer = load_signer(settings)
    with addresses(settings, signer) as where:
        ran = asyncio.run(run_migrations(where.admin, signer, repair=repair))
    if as_json:
        typer.echo(orjson.dumps({"applied": ran}))
        return
    for name in ran:
        typer.echo(f"applied {name}")
    if not ran:
        typer.echo("The schema is current.")


def doctor(
    what: Annotated[
        Look | None,
        typer.Argument(help="locks: who waits for whom; slow: statements that run long.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong and say how to mend it. Exit code 1: there are errors, 2: it could not look.

    `doctor locks` shows who waits for whom, `doctor slow` what runs long and, by pg_stat_statements, what costs most.
    """
    try:
        settings = Settings()
        signer = load_signer(settings)
        with addresses(settings, signer) as where:
            if what is not None:
                _show(asyncio.run(look(where.admin, what)), as_json)
                return
            found = asyncio.run(diagnose(where, signer, settings))
    except (VanillaError, EmbeddedServerError) as error:
        typer.echo(f"error {error.name if isinstance(error, VanillaError) else error.code}: {error}", err=True)
        typer.echo(error.hint or "", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(orjson.dumps([finding.as_dict() for finding in found]))
    else:
        for finding in found:
            typer.echo(f"{finding.severity} {finding.check}: {finding.found}\n  mend: {finding.mend}")
        errors = sum(finding.severity == "error" for finding in found)
        typer.echo(f"{errors} errors, {len(found) - errors} warnings." if found else "All is well.")
    raise typer.Exit(1 if any(finding.severity == "error" for finding in found) else 0)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(rows))
        return
    for row in rows:
        typer.echo("\n".join(f"{name:18} {value}" for name, value in row.items() if value is not None) + "\n")
    if not rows:
        typer.echo("There are none.")


def demo(
    url: Annotated[str | None, typer.Option(help="A running server over the same database.")] = None,
) -> None:
    """A tour: calls and a race with the openai package, the wallet in depth, and attacks of one tenant on another."""
    from vanilla_saas.operations.demo import run_demo

    run_demo(Settings(), Console(highlight=False), url)


def _settings(host: str | None, port: int | None, allow_superuser: bool) -> Settings:
    """The settings with the command's options, which are also put where child processes read them."""
    given: dict[str, Any] = {"host": host, "port": port, "allow_superuser": allow_superuser or None}
    chosen = {name: str(value) for name, value in given.items() if value is not None}
    os.environ.update({f"VANILLA_SAAS_{name.upper()}": value for name, value in chosen.items()})
    return Settings()
