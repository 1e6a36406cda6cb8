"""`vanilla-saas workflows schedules`: when workflows start by themselves, as the operator."""

from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows import schedules, store
from vanilla_saas.workflows.run_cli import InputFields, InputFile, read_input

schedules_group = typer.Typer(no_args_is_help=True, help="When workflows start by themselves.")
Workflow = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Slug or UUID.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the schedule in its workflow, as nightly.")]


@schedules_group.command("list")
def list_schedules(workflow: Workflow, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Schedules of a workflow, with their next time and what the last one came to."""

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        owner = await tenant_id(connection, tenant)
        return await schedules.schedules(connection, owner, (await store.find(connection, owner, workflow))["id"])

    rows = as_operator(run)
    if not as_json:
        columns = ("name", "cron", "time_zone", "catch_up", "payer", "last_at", "last_status", "last_error")
        rows = [{"next": next(iter(row["next_times"]), None), **{name: row[name] for name in columns}} for row in rows]
    show(rows, as_json)


@schedules_group.command("set")
def set_schedule(
    workflow: Workflow,
    name: Name,
    cron: Annotated[str, typer.Argument(metavar="CRON", help='Five fields in quotes, as "30 2 * * 1-5".')],
    time_zone: Annotated[str | None, typer.Option(help="As Europe/Vienna (the tenant's).")] = None,
    value: InputFields = None,
    input_file: InputFile = None,
    catch_up: Annotated[
        Literal["none", "one", "all"], typer.Option(help="Which of the times that were missed are started.")
    ] = "one",
    enabled: Annotated[bool, typer.Option("--enabled/--disabled", help="Whether it starts anything.")] = True,
    user: Annotated[
        str | None, typer.Option(help="Who pays: email, external id or UUID (the workflow's owner).")
    ] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make or change a schedule of a workflow; the first time is the next one after now."""
    given = read_input(value or [], input_file)

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        owner = await tenant_id(connection, tenant)
        user_id = (await find_user(connection, tenant, user))[1] if user else None
        return await schedules.put(
            partial(nullcontext, connection), owner, workflow, name, cron, time_zone=time_zone, given=given,
            catch_up=catch_up, enabled=enabled, user_id=user_id,
        )  # fmt: skip

    made = as_operator(run)
    then = f"it starts next at {made['next_times'][0]:%Y-%m-%d %H:%M} UTC" if enabled else "it starts nothing"
    tell(f"{name} is set: {then}.", made, as_json)


@schedules_group.command("delete")
def delete(workflow: Workflow, name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """End a schedule of a workflow; what it started stays."""

    async def run(connection: asyncpg.Connection) -> UUID:
        return await schedules.delete(connection, await tenant_id(connection, tenant), workflow, name)

    tell(f"{name} is deleted.", {"id": as_operator(run), "status": "deleted"}, as_json)
