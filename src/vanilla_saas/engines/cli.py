"""`vanilla-saas engines`: workflows deployed as engines, who runs which, and what came of it, as the operator."""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.engines import compare_cli, files, run_cli, store
from vanilla_saas.engines.models import Access, Alias, Mode, Target
from vanilla_saas.tenancy.cli import expiry
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, prefix_of, token_hash
from vanilla_saas.tokens.store import find_level, find_user
from vanilla_saas.workflows import drafts
from vanilla_saas.workflows import store as workflow_store
from vanilla_saas.workflows.run_cli import read_input

engines = typer.Typer(no_args_is_help=True, help="Engines of a tenant: deployed, promoted, assigned, permitted, run.")
Name = Annotated[str, typer.Argument(metavar="ENGINE", help="Slug or UUID.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="slug, slug@3, slug@stable, slug@canary, or my/slug.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=1)]
Who = Annotated[str, typer.Option("--user", help="Email, external id or UUID.")]
Answer = dict[str, Any]
COLUMNS = ("slug", "name", "status", "default_access", "offered", "versions", "stable", "canary")
VERSION_COLUMNS = ("version", "state", "hash", "mode", "at_once", "workflow", "workflow_version", "deployed_at")


@engines.command("deploy")
def deploy(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="Name of the engine; made when it is not there.")],
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Slug or UUID.")],
    version: Annotated[int | None, typer.Option(min=1, help="Of the workflow (the latest).")] = None,
    name: Annotated[str | None, typer.Option(help="As people read it (as it was, or the workflow's).")] = None,
    description: Annotated[str | None, typer.Option(help="What it does.")] = None,
    mode: Annotated[Mode, typer.Option(help="Whether nodes of a run may run at the same time.")] = "parallel",
    at_once: Annotated[int | None, typer.Option(min=1, max=1000, help="Nodes at the same time (no limit).")] = None,
    parameters: Annotated[
        Path | None,
        typer.Option(help="What copies may set, in YAML or JSON: name: {type, default, ...}.", exists=True),
    ] = None,
    access: Annotated[Access | None, typer.Option(help="What users may whose level says nothing (as it was).")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Freeze a published workflow as the next version of an engine."""
    declared = drafts.read_value(parameters.read_text()) if parameters else {}

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        found = await workflow_store.find(connection, owner, workflow)
        made = await store.deploy(
            connection, owner, slug, found["id"], workflow_version=version, name=name, description=description,
            mode=mode, at_once=at_once, parameters=declared,
        )  # fmt: skip
        if access is not None:
            await store.change(connection, owner, UUID(made["engine_id"]), default_access=access)
        return made

    made = as_operator(run)
    again = " already" if made["unchanged"] else ""
    tell(f"{slug} is deployed{again}: version {made['version']}, {made['hash'][:12]}.", made, as_json)


@engines.command("apply")
def apply(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Engines in YAML, or JSON when it ends so.", exists=True, dir_okay=False
        ),
    ],
    user: Annotated[
        str | None, typer.Option(help="Whose a new workflow is: email, external id or UUID (the only user).")
    ] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make engines what files say, flow included: all of them or none; applied again, nothing is deployed."""
    read = [files.read(path) for path in paths]

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        owner = await tenant_id(connection, tenant)
        user_id = (await find_user(connection, tenant, user))[1] if user else None
        return [await files.apply(connection, owner, file, user_id) for file in read]

    made = as_operator(run)
    if as_json:
        show(made, True)
        return
    for one in made:
        again = "" if one["changed"] else " already"
        typer.echo(f"{one['slug']} is{again} what its file says: version {one['version']}, {one['hash'][:12]}.")


@engines.command("list")
def list_engines(
    user: Annotated[str | None, typer.Option(help="What they may read or run: email, external id or UUID.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Engines of a tenant, or those that a user may read or run."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        if user is None:
            return await store.deployed(connection, await tenant_id(connection, tenant))
        return await store.cards(connection, *await find_user(connection, tenant, user))

    rows = as_operator(run)
    if not as_json and user is None:
        rows = [_with_aliases(row) for row in rows]
        rows = [{column: row[column] for column in COLUMNS} for row in rows]
    elif not as_json:
        columns = ("slug", "name", "access", "version", "alias", "mode", "platform")
        rows = [{column: row[column] for column in columns} for row in rows]
    show(rows, as_json)


@engines.command("offered")
def offered(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Engines that the platform offers, also those that no level of the tenant may run yet."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> list[Answer]:
        return await store.offered(connection, owner)

    rows = run_cli.of(tenant, run)
    if not as_json:
        columns = ("slug", "name", "version", "default_access", "hidden")
        rows = [
            {column: row[column] for column in columns}
            | {"levels": ", ".join(f"{one['level']}: {one['access']}" for one in row["levels"] if one["access"])}
            for row in rows
        ]
    show(rows, as_json)


def _with_aliases(row: Answer) -> Answer:
    meant = {alias["alias"]: alias for alias in row["aliases"]}
    canary = meant.get("canary")
    return row | {
        "stable": meant["stable"]["version"],
        "canary": f"{canary['version']} ({canary['weight']} of 100)" if canary else None,
    }


@engines.command("show")
def show_engine(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """An engine with its versions, what each level may, and its assignments."""

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        found = await store.find(connection, owner, name)
        return found | {
            "data": await store.versions(connection, owner, found["id"]),
            "access": await store.access(connection, owner, found["id"]),
            "assignments": await store.assignments(connection, owner, found["id"]),
        }

    found = as_operator(run)
    if as_json:
        tell("", found, True)
        return
    row = _with_aliases(found)
    typer.echo(f"{row['name']} ({row['slug']}), {row['status']}, {row['default_access']} where a level says nothing")
    typer.echo(f"stable: {row['stable']}" + (f", canary: {row['canary']}" if row["canary"] else ""))
    show([{c: v[c] if c != "hash" else v[c][:12] for c in VERSION_COLUMNS} for v in found["data"]], False)
    show([{c: a[c] for c in ("level", "tier", "access")} for a in found["access"]], False)
    columns = ("id", "target", "target_name", "tier", "pin", "priority", "valid_from", "valid_to")
    show([{c: a[c] for c in columns} for a in found["assignments"]], False)


@engines.command("promote")
def promote(
    name: Name,
    version: Version,
    alias: Annotated[Alias, typer.Option(help="Which name is to mean it.")] = "stable",
    weight: Annotated[int | None, typer.Option(min=0, max=100, help="Of a canary: how many of 100 users.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Let stable, or for a part of the users canary, mean a version from the next start on."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> Answer:
        found = await store.find(connection, owner, name)
        return await store.promote(connection, owner, found["id"], version, alias, weight)

    told = run_cli.of(tenant, run)
    of = f" for {weight} of 100 users" if weight is not None else ""
    tell(f"{name}@{alias} is version {version}{of}.", told, as_json)


@engines.command("rollback")
def rollback(
    name: Name,
    alias: Annotated[Alias, typer.Option(help="canary: end it.")] = "stable",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Let stable mean again what it meant before, or end the canary."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> Answer:
        found = await store.find(connection, owner, name)
        return await store.rollback(connection, owner, found["id"], alias)

    told = run_cli.of(tenant, run)
    now = f"{name}@{alias} is version {told['version']} again." if told["version"] else f"{name} has no canary now."
    tell(now, told, as_json)


@engines.command("retire")
def retire(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="A version; the engine without.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Let nothing start on a version any more, or on the engine until it is deployed again."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> Answer:
        found = await store.find(connection, owner, name)
        return await store.retire(connection, owner, found["id"], version)

    told = run_cli.of(tenant, run)
    tell(f"{f'Version {version} of {name}' if version else name} is retired.", told, as_json)


@engines.command("assign")
def assign(
    name: Name,
    target: Annotated[Target, typer.Argument(metavar="TARGET", help="user, level, tier, tenant or platform.")],
    who: Annotated[str | None, typer.Argument(metavar="WHO", help="Of a user, a level or a tier: which.")] = None,
    pin: Annotated[str | None, typer.Option(help="A version, stable or canary (what the name means).")] = None,
    priority: Annotated[int, typer.Option(help="Among those of the same target, the highest counts.")] = 0,
    until: Annotated[str | None, typer.Option(help="A date and time, or days from now such as 90d.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Choose an engine for those who name none; it permits nothing (`engines access` does)."""
    if target == "tier" and not (who or "").lstrip("-").isdecimal():
        raise typer.BadParameter("A tier is a number.", param_hint="WHO")

    async def run(connection: asyncpg.Connection, owner: UUID) -> Answer:
        target_id, tier = None, None
        if target == "tier":
            tier = int(who or 0)
        elif target == "user" and who:
            target_id = (await find_user(connection, tenant, who))[1]
        elif target == "level" and who:
            target_id = await find_level(connection, tenant, who)
        elif who:
            raise VanillaError("invalid_request", f"The target {target} is of nobody in particular.", {"param": "who"})
        engine_id = await store.engine_id(connection, owner, name)
        made = await store.assign(
            connection, owner, engine_id, target, target_id=target_id, tier=tier, pin=pin, priority=priority,
            valid_to=expiry(until),
        )  # fmt: skip
        return {"id": made, "engine_id": engine_id}

    told = run_cli.of(tenant, run)
    tell(f"{name} is chosen for {target}{f' {who}' if who else ''}: {told['id']}.", told, as_json)


@engines.command("unassign")
def unassign(
    assignment: Annotated[UUID, typer.Argument(metavar="ID", help="Id of an assignment; `engines show` lists them.")],
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Take an assignment back."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> None:
        await store.unassign(connection, owner, assignment)

    run_cli.of(tenant, run)
    tell("It is taken back.", {"id": assignment, "status": "deleted"}, as_json)


@engines.command("access")
def access(
    name: Name,
    level: Annotated[str, typer.Argument(metavar="LEVEL", help="Slug or UUID; `-` sets the engine's default.")],
    what: Annotated[str, typer.Argument(metavar="ACCESS", help="none, read, execute, or default.")],
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Say what users of a level may with an engine."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> None:
        if level == "-":
            found = await store.find(connection, owner, name)
            await store.change(connection, owner, found["id"], default_access=what)
            return
        engine_id = await store.engine_id(connection, owner, name)
        wanted = None if what == "default" else what
        await store.set_access(connection, owner, await find_level(connection, tenant, level), engine_id, wanted)

    run_cli.of(tenant, run)
    whose = "where levels say nothing" if level == "-" else f"for {level}"
    tell(f"{name} is {what} {whose}.", {"engine": name, "level": level, "access": what}, as_json)


@engines.command("explain")
def explain(
    user: Who,
    ref: Annotated[str | None, typer.Argument(metavar="REF", help="A reference; what runs without one (none).")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Show everything that could choose an engine for a user, which one does, and why the others do not."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        return await store.explain(connection, *await find_user(connection, tenant, user), ref)

    rows = as_operator(run)
    columns = ("source", "engine", "version", "alias", "priority", "access", "chosen", "reason")
    show(rows if as_json else [{column: row[column] for column in columns} for row in rows], as_json)


@engines.command("report")
def report(
    name: Name,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How far back.")] = 30,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """What the runs of an engine came to, the versions side by side."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> list[Answer]:
        end = datetime.now(UTC)
        engine_id = await store.engine_id(connection, owner, name)
        return await store.report(connection, owner, engine_id, end - timedelta(days=days), end)

    rows = run_cli.of(tenant, run)
    show(rows if as_json else _side_by_side(rows), as_json)


def _side_by_side(rows: list[Answer]) -> list[Answer]:
    """A line for each figure, a column for each version and what means it."""
    named = {" ".join(filter(None, (str(row["version"]), row["alias"]))): row for row in rows}
    figures = [figure for figure in (rows[0] if rows else {}) if figure not in ("version", "alias")]
    return [{"version": figure} | {name: row[figure] for name, row in named.items()} for figure in figures]


@engines.command("fork")
def fork(
    ref: Ref,
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="Name of the copy, which runs as my/SLUG.")],
    user: Who,
    overlay: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A declared parameter; a value is YAML. Repeatable."),
    ] = None,
    default: Annotated[bool, typer.Option("--default", help="What runs when no engine is named.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a user's copy of an engine: it stays on the version, with values of their own."""
    values = read_input(overlay or [], option="--set")

    async def run(connection: asyncpg.Connection) -> Answer:
        owner, user_id = await find_user(connection, tenant, user)
        return await store.fork(connection, owner, ref, slug, values, is_default=default, user_id=user_id)

    made = as_operator(run)
    tell(f"{made['ref']} is version {made['version']} of {made['engine']}.", made, as_json)


@engines.command("rebase")
def rebase(
    what: Annotated[str, typer.Argument(metavar="ENGINE_OR_COPY", help="An engine: all copies of it; my/SLUG: one.")],
    user: Annotated[str | None, typer.Option(help="Whose copy my/SLUG is: email, external id or UUID.")] = None,
    to: Annotated[str | None, typer.Option(help="A version, stable or canary (what the name means).")] = None,
    overlay: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Of one copy: a value, null takes it away. Repeatable."),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Take away the values that do not fit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would come to, and change nothing.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Take copies of an engine to another version; exit code 1 when one does not fit, which stays as it is."""
    values, one = read_input(overlay or [], option="--set"), what.startswith("my/")
    if one is not (user is not None):
        raise typer.BadParameter("my/SLUG is the copy of a --user, and an engine is of nobody.", param_hint="--user")
    if values and not one:
        raise typer.BadParameter("Only one copy is given values; name it as my/SLUG.", param_hint="--set")

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        if user is None:
            owner = await tenant_id(connection, tenant)
            engine_id = await store.engine_id(connection, owner, what)
            return await store.rebase_all(connection, owner, engine_id, to=to, drop=drop, dry_run=dry_run)
        owner, user_id = await find_user(connection, tenant, user)
        found = [row["id"] for row in await store.copies(connection, owner, user_id) if row["ref"] == what]
        if not found:
            raise VanillaError("not_found", "no such copy", {"copy": what})
        move = partial(store.rebase, connection, owner, found[0], to=to, overlay=values, drop=drop)
        looked = await move(dry_run=True)
        return [looked if dry_run or looked["conflicts"] else await move()]

    rows = as_operator(run)
    if as_json:
        show(rows, True)
    else:
        show([_with_conflicts(row) for row in rows], False)
    raise typer.Exit(1 if any(row["conflicts"] for row in rows) else 0)


def _with_conflicts(row: Answer) -> Answer:
    told = {name: row[name] for name in ("ref", "user_id", "from", "version", "changed")}
    said = "; ".join(f"{one['field']}: {one['message']}" for one in row["conflicts"])
    return told | {"dropped": ", ".join(row["dropped"]), "conflicts": said}


@engines.command("key")
def key(
    ref: Ref,
    user: Who,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "made by the operator",
    budget: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Most tokens it may ever spend.")] = None,
    expires: Annotated[str | None, typer.Option(help="A date and time, or days from now such as 90d.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a key that runs one engine and opens nothing else, and print it once; `keys revoke` ends it."""
    secret, until = new_token(KEY_PREFIX), expiry(expires)

    async def run(connection: asyncpg.Connection) -> UUID:
        owner, user_id = await find_user(connection, tenant, user)
        return await store.create_key(
            connection, owner, ref, name=name, prefix=prefix_of(secret), key_hash=token_hash(secret), expires_at=until,
            budget_tokens=budget, user_id=user_id,
        )  # fmt: skip

    made = as_operator(run)
    tell(f"{secret}\nShown once. Its id is {made}.", {"id": made, "key": secret, "prefix": prefix_of(secret)}, as_json)


engines.command("preview")(run_cli.preview)
engines.command("run")(run_cli.run)
engines.command("compare")(compare_cli.compare)
