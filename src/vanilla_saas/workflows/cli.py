"""`vanilla-saas workflows`: definitions as files, drafts, versions and templates, as the operator."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows import drafts, store
from vanilla_saas.workflows.execution_cli import register
from vanilla_saas.workflows.run_cli import run
from vanilla_saas.workflows.schedules_cli import schedules_group
from vanilla_saas.workflows.tool_cli import tools

workflows = typer.Typer(no_args_is_help=True, help="Workflows of a tenant: drafts, versions, templates, executions.")
Name = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Slug or UUID.")]
File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A definition in YAML, or JSON when it ends so.", exists=True, dir_okay=False),
]
Number = Annotated[int | None, typer.Option(min=1, help="A version; the draft without.")]


def _read(path: Path) -> dict[str, Any]:
    return drafts.read_definition(path.read_bytes(), "json" if path.suffix == ".json" else "yaml")


def _tell_problems(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        tell("", {"problems": found}, True)
        return
    for problem in found:
        where = ": ".join(filter(None, (problem["node"], problem["field"])))
        typer.echo(f"{where or 'definition'}: {problem['message']} ({problem['code']})")


@workflows.command("list")
def list_workflows(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Workflows of a tenant."""

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        return await store.workflows(connection, await tenant_id(connection, tenant))

    columns = ("slug", "name", "status", "latest_version", "revision", "shared", "user_id", "updated_at")
    show([{name: row[name] for name in columns} for row in as_operator(run)], as_json)


@workflows.command("validate")
def validate(path: File, as_json: AsJson = False) -> None:
    """Say everything that is wrong with a definition; exit code 1 when something is."""
    definition = _read(path)

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        return await drafts.every_problem(await store.graph_problems(connection, definition), definition)

    found = as_operator(run)
    if found or as_json:
        _tell_problems(found, as_json)
    else:
        typer.echo("Nothing is wrong with it.")
    raise typer.Exit(1 if found else 0)


@workflows.command("save")
def save(
    path: File,
    user: Annotated[str | None, typer.Option(help="Whose it is to be, when it is new: email or UUID.")] = None,
    slug: Annotated[str | None, typer.Option(help="The file's name without.")] = None,
    shared: Annotated[
        bool | None, typer.Option("--shared/--private", help="For all of the tenant to read, or not.")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Publish it too.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Save a definition as the draft of a workflow, which is made when it is not there."""
    definition = _read(path)
    name = slug or path.stem

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        owner = await tenant_id(connection, tenant)
        user_id = (await find_user(connection, tenant, user))[1] if user else None
        saved = await store.save(connection, owner, name, definition, shared=shared, user_id=user_id)
        saved["problems"] = await drafts.every_problem(saved["problems"], definition)
        if publish:
            saved |= await drafts.publish(partial(nullcontext, connection), owner, name)
        return saved

    saved = as_operator(run)
    version = f" and published as version {saved['version']}" if publish else ""
    tell(f"{name} is saved, revision {saved['revision']}{version}.", saved, as_json)
    if not as_json:
        _tell_problems(saved["problems"], False)


@workflows.command("publish")
def publish(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Freeze the draft as the next version."""

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        return await drafts.publish(partial(nullcontext, connection), await tenant_id(connection, tenant), name)

    made = as_operator(run)
    again = " already" if made["unchanged"] else ""
    tell(f"{name} is published{again}: version {made['version']}, {made['hash'][:12]}.", made, as_json)


@workflows.command("retire")
def retire(name: Name, version: Number = None, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Let nothing start on a version any more, or on the whole workflow until it is published again."""

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        owner = await tenant_id(connection, tenant)
        return await store.retire(connection, owner, (await store.find(connection, owner, name))["id"], version)

    retired = as_operator(run)
    tell(f"{f'Version {version} of {name}' if version else name} is retired.", retired, as_json)


@workflows.command("delete")
def delete(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Delete a workflow with its versions."""

    async def run(connection: asyncpg.Connection) -> UUID:
        owner = await tenant_id(connection, tenant)
        found: UUID = (await store.find(connection, owner, name))["id"]
        await store.delete(connection, owner, found)
        return found

    tell(f"{name} is deleted.", {"id": as_operator(run), "status": "deleted"}, as_json)


@workflows.command("versions")
def versions(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Every version of a workflow, newest first."""

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        owner = await tenant_id(connection, tenant)
        return await store.versions(connection, owner, (await store.find(connection, owner, name))["id"])

    show(as_operator(run), as_json)


@workflows.command("export")
def export(name: Name, version: Number = None, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Print a definition as YAML, or as JSON; `save` reads it again."""

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        return await store.definition(connection, await tenant_id(connection, tenant), name, version)

    definition = as_operator(run)
    tell(drafts.as_text(definition).rstrip("\n"), definition, as_json)


@workflows.command("diff")
def diff(
    name: Name,
    before: Annotated[int, typer.Argument(metavar="FROM", min=1, help="A version.")],
    after: Annotated[int | None, typer.Argument(metavar="TO", min=1, help="A version; the draft without.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """What changed from a version to another, or to the draft."""

    async def run(connection: asyncpg.Connection) -> tuple[dict[str, Any], dict[str, Any]]:
        owner = await tenant_id(connection, tenant)
        return (
            await store.definition(connection, owner, name, before),
            await store.definition(connection, owner, name, after),
        )

    found = drafts.compare(*as_operator(run))
    tell(found.text() or "Nothing differs.", found.data(), as_json)


@workflows.command("templates")
def templates(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Templates to begin from, with their parameters."""

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        return await store.templates(connection, await tenant_id(connection, tenant))

    rows = as_operator(run)
    if not as_json:
        rows = [
            {"slug": row["slug"], "name": row["name"], "parameters": [*row["parameters"].get("properties", {})]}
            for row in rows
        ]
    show(rows, as_json)


@workflows.command("new")
def new(
    template: Annotated[str, typer.Argument(metavar="TEMPLATE", help="`workflows templates` lists them.")],
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="Name of the new workflow.")],
    user: Annotated[str, typer.Option(help="Whose it is to be: email, external id or UUID.")],
    parameter: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter; a value is YAML. Repeatable.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="For all of the tenant to read.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a workflow of a template."""
    parameters = {}
    for one in parameter or []:
        name, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"{one} is not NAME=VALUE.", param_hint="--set")
        parameters[name] = drafts.read_value(value)

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        owner, user_id = await find_user(connection, tenant, user)
        return await drafts.begin(
            partial(nullcontext, connection), owner, template, slug, parameters, shared=shared, user_id=user_id
        )

    made = as_operator(run)
    tell(f"{slug} is made of {template}; publish it with vanilla-saas workflows publish {slug}.", made, as_json)


workflows.command("run")(run)
workflows.command("tools")(tools)
register(workflows)
workflows.add_typer(schedules_group, name="schedules")
