"""Composition root of the command line: the verbs of every room and how refusals are shown."""

import sys
from typing import ClassVar

import typer

from vanilla_saas.lazy_commands import LazyCommand, LazyGroup

PASSED_ON = {"context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}


class Commands(LazyGroup):
    """Every room's verbs, in the order in which they are listed."""

    lazy: ClassVar[dict[str, LazyCommand]] = {
        "up": LazyCommand(
            "vanilla_saas.operations.cli:up",
            "Start PostgreSQL, migrations, seed, API and console: one command, ready in seconds.",
        ),
        "serve": LazyCommand(
            "vanilla_saas.operations.cli:serve", "Serve the API and the console over a migrated database."
        ),
        "migrate": LazyCommand(
            "vanilla_saas.operations.cli:migrate", "Apply the migrations that are missing and make the run-time logins."
        ),
        "doctor": LazyCommand("vanilla_saas.operations.cli:doctor", "Look for what is wrong and say how to mend it."),
        "demo": LazyCommand(
            "vanilla_saas.operations.cli:demo",
            "A tour: calls, a race, the wallet in depth, and attacks of one tenant on another.",
        ),
        "backup": LazyCommand(
            "vanilla_saas.operations.backup_cli:backup", "Make, list and prove backups; alone: make one."
        ),
        "restore": LazyCommand(
            "vanilla_saas.operations.backup_cli:restore",
            "Put a backup in the place of the configured database: at once and whole, or not at all.",
        ),
        "psql": LazyCommand(
            "vanilla_saas.database.cli:psql",
            "Open psql on the database, or run it with the given arguments.",
            PASSED_ON,
        ),
        "env": LazyCommand(
            "vanilla_saas.database.cli:env", "Print the variables with which psql and pg_dump reach the database."
        ),
        "reset-tokens": LazyCommand(
            "vanilla_saas.tokens.cli:reset_tokens", "Close every period that is due and grant the next allocation."
        ),
        "cleanup": LazyCommand("vanilla_saas.operations.schedules_cli:cleanup", "Remove what is past retention now."),
        "schedules": LazyCommand(
            "vanilla_saas.operations.schedules_cli:schedules", "Jobs that time brings: resets, retention, clean-up."
        ),
        "wallets": LazyCommand("vanilla_saas.tokens.cli:app", "Wallets: balances, ledger, proof."),
        "levels": LazyCommand(
            "vanilla_saas.levels.cli:levels", "Levels of a tenant: features with limits, prices, benefits."
        ),
        "payments": LazyCommand(
            "vanilla_saas.payments.cli:payments", "Payments through Stripe: account, prices, events (extra stripe)."
        ),
        "workflows": LazyCommand(
            "vanilla_saas.workflows.cli:workflows", "Workflows of a tenant: drafts, versions, templates, executions."
        ),
        "engines": LazyCommand(
            "vanilla_saas.engines.cli:engines", "Engines of a tenant: deployed, promoted, assigned, permitted, run."
        ),
        "agents": LazyCommand(
            "vanilla_saas.orchestration.cli:agents",
            "Agents of a tenant: saved, run within budgets, watched, cancelled.",
        ),
        "channels": LazyCommand(
            "vanilla_saas.orchestration.channel_cli:channels",
            "Channels of agents and people: opened, read, spoken on, closed.",
        ),
        "agreements": LazyCommand(
            "vanilla_saas.orchestration.agreement_cli:agreements",
            "Agreements that channels are held to: proposed, answered, ended.",
        ),
        "worker": LazyCommand("vanilla_saas.workflows.worker_cli:worker", "Run steps of workflows until stopped."),
        "workers": LazyCommand("vanilla_saas.routing.cli:workers", "Workers of the platform: list, events, drain."),
        "pg-upgrade": LazyCommand(
            "vanilla_saas.database.cli:pg_upgrade", "Move the embedded server's data to VANILLA_SAAS_PG_VERSION."
        ),
        "export": LazyCommand(
            "vanilla_saas.operations.export:app", "Write the installation in the form that another tool reads."
        ),
        "providers": LazyCommand("vanilla_saas.providers.cli:providers", "Model providers and their keys."),
        "models": LazyCommand("vanilla_saas.providers.cli:models", "The model catalogue."),
        "tenants": LazyCommand(
            "vanilla_saas.tenancy.cli:tenants", "Tenants: the customer organisations of the platform."
        ),
        "users": LazyCommand(
            "vanilla_saas.tenancy.cli:users", "Users of a tenant; super admins are those of the tenant platform."
        ),
        "keys": LazyCommand("vanilla_saas.tenancy.cli:keys", "API keys."),
        "webhooks": LazyCommand(
            "vanilla_saas.operations.webhooks_cli:webhooks", "Webhooks of a tenant: where its events are sent."
        ),
        "context-key": LazyCommand("vanilla_saas.database.rotation_cli:app", "The key that signs request contexts."),
    }


app = typer.Typer(
    name="vanilla-saas",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The back end of a multi-tenant AI SaaS: one PostgreSQL database and a thin Python runtime.",
)


@app.callback()
def root() -> None:
    """The commands stand in `Commands`."""


def main() -> None:
    """Runs the command line; exit code 0 done, 1 refused, 2 used wrongly."""
    try:
        app()
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        code, message, hint = refusal
        typer.echo(f"error {code}: {message}", err=True)
        if hint:
            typer.echo(hint, err=True)
        sys.exit(1)


def _refusal(error: Exception) -> tuple[str, str, str | None] | None:
    """Code, sentence and hint of an error that is an answer. What it imports, whoever raised it has imported."""
    import asyncpg
    from pydantic import ValidationError

    from vanilla_saas.database.embedded_place import EmbeddedServerError
    from vanilla_saas.database.errors import VanillaError
    from vanilla_saas.providers.secrets import SecretError

    match error:
        case VanillaError():
            return error.name, error.message, error.hint
        case EmbeddedServerError():
            return error.code, error.detail, error.hint
        case ValidationError():
            wrong = error.errors()[0]
            name = str(wrong["loc"][0]) if wrong["loc"] else "settings"
            variable = name if name.isupper() else f"VANILLA_SAAS_{name.upper()}"
            explained = "docs/reference/settings.md explains every setting."
            return "invalid_request", f"{variable}: {wrong['msg']}.", explained
        case SecretError():
            hint = "`openssl rand -hex 32` makes a key; without the variable the home keeps one."
            return error.code, str(error), hint
        case ValueError():
            return "invalid_request", str(error), None
        case asyncpg.PostgresError():
            return "internal_error", f"PostgreSQL refused this: {error}", f"SQLSTATE {error.sqlstate}."
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return "invalid_state", f"{where}{error.strerror or error}", None
    return None
