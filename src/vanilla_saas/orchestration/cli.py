"""`vanilla-saas agents`: agents and teams as files, their versions, and their runs, as the operator."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args
from uuid import UUID

import asyncpg
import orjson
import typer
from rich.console import Console

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, in_parts, show, tell, tenant_id
from vanilla_saas.orchestration import files, run_events, store
from vanilla_saas.orchestration.models import State
from vanilla_saas.orchestration.run_view import tree
from vanilla_saas.orchestration.teams import Plan
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows import execution_store, executions
from vanilla_saas.workflows.documents import dump_yaml
from vanilla_saas.workflows.run_cli import (
    InputFields,
    InputFile,
    file_of,
    follow_to_the_end,
    read_input,
    tell_run,
    watched,
    worked,
)

agents = typer.Typer(no_args_is_help=True, help="Agents of a tenant: saved, run within budgets, watched, cancelled.")
Name = Annotated[str, typer.Argument(metavar="AGENT", help="Slug or UUID.")]
RunId = Annotated[UUID, typer.Argument(metavar="ID", help="Id of a run.")]
Shared = Annotated[bool | None, typer.Option("--shared/--private", help="For all of the tenant to run, or not.")]
Answer = dict[str, Any]
COLUMNS = ("slug", "name", "status", "latest_version", "shared", "user_id", "updated_at")
RUN_COLUMNS = (
    "id", "agent", "version", "state", "stop_reason", "turns", "tool_calls", "charged_tokens", "started_at",
    "finished_at",
)  # fmt: skip


@agents.command("save")
def save(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="An agent or a team in YAML, or JSON when it ends so.", exists=True, dir_okay=False
        ),
    ],
    user: Annotated[str | None, typer.Option(help="Whose it is to be, when it is new: email or UUID.")] = None,
    slug: Annotated[str | None, typer.Option(help="Of an agent (the file's name); a team says its own.")] = None,
    shared: Shared = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make an agent of a file, or its next version; of a team its agents and the workflow in which they run."""
    document = files.read(path)
    if slug and isinstance(document, Plan):
        raise typer.BadParameter("A team says its own name.", param_hint="--slug")

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        user_id = (await find_user(connection, tenant, user))[1] if user else None
        if isinstance(document, Plan):
            return await files.save_team(connection, owner, document, shared, user_id)
        return await files.save_agent(connection, owner, slug or path.stem, document, shared, user_id)

    saved = as_operator(run)
    if isinstance(document, Plan):
        names = ", ".join(f"{one['slug']} version {one['version']}" for one in saved["agents"])
        kind = "workflow" if saved["is_workflow"] else "agent"
        tell(f"The team is saved: {names}. Start the {kind} {saved['start']}.", saved, as_json)
        return
    again = " already" if saved["unchanged"] else ""
    tell(f"{saved['slug']} is saved{again}: version {saved['version']}, {saved['hash'][:12]}.", saved, as_json)


@agents.command("list")
def list_agents(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Agents of a tenant."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        return await store.agents(connection, await tenant_id(connection, tenant))

    rows = as_operator(run)
    show(rows if as_json else [{name: row[name] for name in COLUMNS} for row in rows], as_json)


@agents.command("show")
def show_agent(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="Whose definition is shown (the latest).")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """An agent with its versions and its definition, which `save` reads again."""

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        found = await store.find(connection, owner, name)
        number = version or found["latest_version"]
        definition = await store.definition(connection, owner, found["id"], number)
        return found | {"definition": definition, "data": await store.versions(connection, owner, found["id"])}

    found = as_operator(run)
    if as_json:
        tell("", found, True)
        return
    typer.echo(f"{found['name']} ({found['slug']}), {found['status']}, {'shared' if found['shared'] else 'private'}")
    show([row | {"hash": row["hash"][:12]} for row in found["data"]], False)
    typer.echo(dump_yaml(found["definition"]).rstrip("\n"))


@agents.command("retire")
def retire(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Let nothing start it until it is saved again; runs that have begun go on."""

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        return await store.retire(connection, owner, (await store.find(connection, owner, name))["id"])

    tell(f"{name} is retired.", as_operator(run), as_json)


@agents.command("run")
def run(
    what: Annotated[
        str,
        typer.Argument(
            metavar="REF_OR_FILE", help="slug, slug@3, or an agent or a team in YAML or JSON, which is saved."
        ),
    ],
    value: InputFields = None,
    input_file: InputFile = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="The budget (the agent's, or what its calls need).")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show how it goes until it ends.")] = True,
    user: Annotated[str | None, typer.Option(help="Who pays: email, external id or UUID (the only user).")] = None,
    key: Annotated[str | None, typer.Option(help="Repeating the command with this key starts nothing more.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Run an agent or a team within a budget and show how it goes; exit code 1 when it does not complete.

    When no worker is running, the turns run in this command.
    """
    given = read_input(value or [], input_file)
    path = file_of(what)
    document = files.read(path) if path else None
    flow = document if isinstance(document, Plan) and document.workflow is not None else None
    if flow and tokens:
        raise typer.BadParameter("The budget of this team is its budget_tokens.", param_hint="--tokens")

    async def act(connection: asyncpg.Connection, where: Addresses) -> Answer:
        owner = await tenant_id(connection, tenant)
        payer = (await find_user(connection, tenant, user))[1] if user else None
        payer = payer or await execution_store.only_user(connection, owner)
        ref = what
        if isinstance(document, Plan):
            ref = (await files.save_team(connection, owner, document, None, payer))["start"]
        elif path and document:
            ref = (await files.save_agent(connection, owner, path.stem, document, None, payer))["slug"]
        if flow:
            started = await executions.start(
                partial(nullcontext, connection), owner, ref, given, key=key, user_id=payer
            )
            execution = UUID(started["execution_id"])
            return await follow_to_the_end(connection, where, owner, execution, as_json) if follow else started
        started = await store.start(connection, owner, ref, given, tokens=tokens, key=key, user_id=payer)
        run_id = UUID(started["run_id"])
        if not follow:
            return started
        return await _follow(connection, where, owner, run_id, as_json)

    found = in_parts(act)
    if flow:
        tell_run(found, follow, as_json)
        return
    if not follow:
        tell(f"It runs: {found['run_id']}.", found, as_json)
        return
    if as_json:
        tell("", found, True)
    else:
        _tell_end(found)
    raise typer.Exit(0 if found["state"] == "completed" else 1)


@agents.command("runs")
def runs(
    agent: Annotated[str | None, typer.Option(help="Only of this agent: slug or UUID.")] = None,
    state: Annotated[str | None, typer.Option(help=f"One of {', '.join(get_args(State))}.")] = None,
    user: Annotated[str | None, typer.Option(help="Only of this user: email, external id or UUID.")] = None,
    root: Annotated[UUID | None, typer.Option(help="Only the tree of this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Runs of a tenant, newest first."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        owner = await tenant_id(connection, tenant)
        agent_id = (await store.find(connection, owner, agent))["id"] if agent else None
        user_id = (await find_user(connection, tenant, user))[1] if user else None
        return await store.runs(
            connection, owner, user_id=user_id, state=state, root=root, agent_id=agent_id, limit=limit
        )

    rows = as_operator(run)
    show(rows if as_json else [{name: row[name] for name in RUN_COLUMNS} for row in rows], as_json)


@agents.command("run-show")
def run_show(run_id: RunId, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """The tree that a run is in: turns, tools, tokens, money, why each stopped."""

    async def run(connection: asyncpg.Connection) -> Answer:
        return await _tree(connection, await tenant_id(connection, tenant), run_id)

    found = as_operator(run)
    if as_json:
        tell("", found, True)
        return
    Console(highlight=False).print(tree(found))
    _tell_end(found)


@agents.command("cancel")
def cancel(
    run_id: RunId,
    reason: Annotated[str | None, typer.Option(help="Written to the audit log.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """End a run with all that it started; what is left of its budget goes back."""

    async def run(connection: asyncpg.Connection) -> Answer:
        return await store.cancel(connection, await tenant_id(connection, tenant), run_id, reason)

    tell("It is cancelled.", as_operator(run), as_json)


async def _tree(connection: asyncpg.Connection, owner: UUID, run_id: UUID) -> Answer:
    return run_events.told(await store.tree(connection, owner, run_id), run_id)


async def _follow(connection: asyncpg.Connection, where: Addresses, owner: UUID, run_id: UUID, quiet: bool) -> Answer:
    """The tree as it ended, after showing how it went; turns that no worker takes run here."""
    found = await _tree(connection, owner, run_id)
    async with worked(connection, where, owner, [found["runs"][0]["execution_id"]], "turns"):
        return await watched(partial(_tree, connection, owner, run_id), tree, quiet)


def _tell_end(found: Answer) -> None:
    """The answer as text or JSON, or why there is none; nothing of one that goes on."""
    if found["state"] == "completed":
        output = found["output"]
        value = output.get("json")
        typer.echo(output["text"] if value is None else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    elif found["finished_at"] is not None:
        run = next(one for one in found["runs"] if one["id"] == found["run_id"])
        said = (run["error"] or {}).get("message") or run["state"]
        typer.echo(f"{found['stop_reason']}: {said}", err=True)
