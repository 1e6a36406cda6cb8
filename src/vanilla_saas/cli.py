"""Composition root of the command line: the verbs of every room and how refusals are shown."""

import sys

import asyncpg
import typer
from pydantic import ValidationError

from vanilla_saas.database.cli import env, pg_upgrade, psql
from vanilla_saas.database.embedded import EmbeddedServerError
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.rotation_cli import app as context_key
from vanilla_saas.operations.backup_cli import backup, restore
from vanilla_saas.operations.cli import register as register_operations
from vanilla_saas.operations.schedules_cli import cleanup, schedules
from vanilla_saas.operations.webhooks_cli import webhooks
from vanilla_saas.providers.cli import models, providers
from vanilla_saas.providers.secrets import SecretError
from vanilla_saas.tenancy.cli import keys, tenants, users
from vanilla_saas.tokens.cli import app as wallets
from vanilla_saas.tokens.cli import reset_tokens

app = typer.Typer(
    name="vanilla-saas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The back end of a multi-tenant AI SaaS: one PostgreSQL database and a thin Python runtime.",
)
register_operations(app)
app.add_typer(backup, name="backup")
app.command()(restore)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(psql)
app.command()(env)
app.command("reset-tokens")(reset_tokens)
app.command()(cleanup)
app.add_typer(schedules, name="schedules")
app.add_typer(wallets, name="wallets")
app.command("pg-upgrade")(pg_upgrade)
app.add_typer(providers, name="providers")
app.add_typer(models, name="models")
app.add_typer(tenants, name="tenants")
app.add_typer(users, name="users")
app.add_typer(keys, name="keys")
app.add_typer(webhooks, name="webhooks")
app.add_typer(context_key, name="context-key")


def main() -> None:
    """Runs the command line; exit code 0 done, 1 refused, 2 used wrongly."""
    try:
        app()
    except VanillaError as error:
        _refuse(error.name, error.message, error.hint)
    except EmbeddedServerError as error:
        _refuse(error.code, error.detail, error.hint)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0]) if wrong["loc"] else "settings"
        variable = name if name.isupper() else f"VANILLA_SAAS_{name.upper()}"
        _refuse("invalid_request", f"{variable}: {wrong['msg']}.", "docs/reference/settings.md explains every setting.")
    except SecretError as error:
        _refuse(error.code, str(error), "`openssl rand -hex 32` makes a key; without the variable the home keeps one.")
    except ValueError as error:
        _refuse("invalid_request", str(error), None)
    except asyncpg.PostgresError as error:
        _refuse("internal_error", f"PostgreSQL refused this: {error}", f"SQLSTATE {error.sqlstate}.")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _refuse("invalid_state", f"{where}{error.strerror or error}", None)


def _refuse(code: str, message: str, hint: str | None) -> None:
    typer.echo(f"error {code}: {message}", err=True)
    if hint:
        typer.echo(hint, err=True)
    sys.exit(1)
