"""Writes docs/reference/*.md and openapi.json from the code: `uv run python -m tests.docs.reference`.

A test fails when they differ.
"""

import ast
import asyncio
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import asyncpg
import click
import orjson
import typer
from typer.core import TyperGroup

from vanilla_saas import metrics
from vanilla_saas.app import create_app
from vanilla_saas.cli import app
from vanilla_saas.database.errors import ERROR_CODES
from vanilla_saas.settings import Settings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
GENERATED = "<!-- written by `uv run python -m tests.docs.reference` -->\n"
OBJECTS = """
select n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' as name,
       pg_get_function_result(p.oid) as result, obj_description(p.oid, 'pg_proc') as meaning
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where n.nspname in ('public', 'vanilla')
order by n.nspname, p.proname, 1
"""
TABLES = """
select c.relname as name, o.ownership, obj_description(c.oid, 'pg_class') as meaning
from pg_class c join vanilla.table_ownership o on o.relation = c.relname
where c.relnamespace = 'public'::regnamespace and not c.relispartition and c.relkind in ('r', 'p')
order by c.relname
"""


def settings_page() -> str:
    """Every setting: its variable, default and meaning."""
    lines = [
        "# Settings",
        "",
        GENERATED,
        "Read from the environment and `.env`.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, variable, default, meaning in setting_rows():
        lines.append(f"| `{variable}` | {default} | {meaning or name} |")
    return "\n".join(lines) + "\n"


def setting_rows() -> Iterator[tuple[str, str, str, str]]:
    # pydantic could read them too, in every process that starts: a tenth of the time of importing the application
    body = ast.parse(inspect.getsource(Settings)).body[0].body  # type: ignore[attr-defined]
    meanings = {
        field.target.id: ast.literal_eval(after.value)
        for field, after in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
    for name, setting in Settings.model_fields.items():
        variable = str(setting.validation_alias or f"VANILLA_SAAS_{name.upper()}")
        default = (
            "a per-user data directory" if name == "home" else "" if setting.default is None else f"`{setting.default}`"
        )
        yield name, variable, default, " ".join(meanings.get(name, "").split())


def errors_page() -> str:
    """Every stable code with its SQLSTATE, HTTP status and meaning."""
    lines = [
        "# Errors",
        "",
        GENERATED,
        "The same code is in `code` of a problem+json answer (`/api/v1`), in `code` of an OpenAI error (`/v1`), on the",
        "first line of a refused command and, as SQLSTATE, in SQL. `detail` and `hint` say what to do.",
        "",
        "| code | HTTP | SQLSTATE | meaning |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{code.name}` | {code.status} | `{code.sqlstate}` | {code.meaning} |" for code in ERROR_CODES]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """`--help` of every command."""
    lines = ["# Commands", "", GENERATED, "Exit code 0: done, 1: refused, 2: used wrongly."]
    for path, command in commands():
        usage = f"vanilla-saas {path} {' '.join(command.collect_usage_pieces(click.Context(command)))}"
        lines += ["", f"## `{path}`", "", f"`{' '.join(usage.split())}`", "", (command.help or "").strip()]
        options = [p for p in command.params if p.param_type_name == "option" and getattr(p, "help", None)]
        if options:
            lines += ["", "| option | meaning |", "|---|---|"]
            lines += [f"| `{', '.join(p.opts)}` | {' '.join(str(p.help).split())} |" for p in options]  # type: ignore[attr-defined]
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[str, "click.Command"]]:
    """Every leaf command with its path, in the order of `--help`."""

    def walk(command: "click.Command", path: str) -> Iterator[tuple[str, "click.Command"]]:
        if not isinstance(command, TyperGroup):
            yield path, command
            return
        if path and command.invoke_without_command:
            yield path, command
        context = typer.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from walk(child, f"{path} {name}".strip())

    yield from walk(typer.main.get_command(app), "")  # type: ignore[arg-type]


async def sql_page(connection: asyncpg.Connection) -> str:
    """Every table with its ownership class and every function with its comment, from the catalog."""
    lines = ["# SQL", "", GENERATED, "## Tables", "", "| table | ownership | meaning |", "|---|---|---|"]
    tables = await connection.fetch(TABLES)
    lines += [f"| `{row['name']}` | {row['ownership']} | {row['meaning']} |" for row in tables]
    for schema, title in (("public", "Functions"), ("vanilla", "Private machinery (schema `vanilla`)")):
        lines += ["", f"## {title}", ""]
        for row in await connection.fetch(OBJECTS):
            if row["name"].startswith(f"{schema}."):
                name = row["name"].removeprefix("public.")
                lines += [
                    f"### `{name.partition('(')[0]}`",
                    "",
                    f"`{name}` → `{row['result']}`",
                    "",
                    row["meaning"] or "",
                    "",
                ]
    return "\n".join(lines).rstrip() + "\n"


def metrics_page() -> str:
    """Every metric with its type, labels and meaning."""
    lines = [
        "# Metrics",
        "",
        GENERATED,
        "`GET /metrics` in Prometheus' text format, beside the process's own `process_*` and `python_*`. Without",
        "`VANILLA_SAAS_METRICS_TOKEN` only this machine may ask. The processes of one `serve --processes n` answer as",
        "one; then `process_*` is absent. No label names a tenant, a user, a key or a model. Units: seconds, tokens.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in metrics.metrics():
        (family,) = metric.describe()
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def openapi_document() -> str:
    """What `/openapi.json` answers, readable in a diff."""
    settings = Settings(_env_file=None, DATABASE_URL=None)  # type: ignore[call-arg]
    return orjson.dumps(create_app(settings).openapi(), option=orjson.OPT_INDENT_2).decode() + "\n"


async def _write() -> None:
    import uuid

    from tests.conftest import TEST_KEY, Cluster, create_database
    from tests.postgres import session_server
    from vanilla_saas.database.context import ContextSigner
    from vanilla_saas.database.migrator import migrate

    REFERENCE.mkdir(parents=True, exist_ok=True)
    (REFERENCE / "settings.md").write_text(settings_page())
    (REFERENCE / "errors.md").write_text(errors_page())
    (REFERENCE / "commands.md").write_text(commands_page())
    (REFERENCE / "metrics.md").write_text(metrics_page())
    (ROOT / "openapi.json").write_text(openapi_document())
    with session_server() as server:
        cluster = Cluster(str(server.socket_dir), 5432)
        async with create_database(cluster, f"docs_{uuid.uuid4().hex[:8]}") as name:
            await migrate(cluster.url(database=name), ContextSigner(bytes.fromhex(TEST_KEY)))
            connection = await asyncpg.connect(cluster.url(database=name))
            (REFERENCE / "sql.md").write_text(await sql_page(connection))
            await connection.close()


if __name__ == "__main__":
    asyncio.run(_write())
