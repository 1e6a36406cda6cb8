"""`vanilla-saas workflows run`, and what is done with executions, as the operator."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import orjson
import typer
from rich.console import Console

from vanilla_saas.database.context import Identity, load_signer
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.settings import Settings
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows import execution_store, executions, store
from vanilla_saas.workflows.drafts import read_value
from vanilla_saas.workflows.execution_models import Status
from vanilla_saas.workflows.execution_view import tree

Id = Annotated[UUID, typer.Argument(metavar="ID", help="Id of an execution.")]
ApprovalId = Annotated[UUID, typer.Argument(metavar="ID", help="Id of an approval.")]
Decider = Annotated[str, typer.Option("--user", help="Who decides: email, external id or UUID.")]
Comment = Annotated[str | None, typer.Option(help="Why; what a gate that asked tells the step it retries.")]
Answer = dict[str, Any]


def register(workflows: typer.Typer) -> None:
    """Adds the commands to the group."""
    commands: dict[str, Callable[..., None]] = {
        "executions": list_executions, "show": show_execution, "cancel": cancel, "pause": pause, "resume": resume,
        "restart": restart, "replay": replay, "signal": signal, "approvals": approvals, "approve": approve,
        "reject": reject, "gates": gates,
    }  # fmt: skip
    for name, command in commands.items():
        workflows.command(name)(command)


def list_executions(
    workflow: Annotated[str | None, typer.Option(help="Only of this workflow: slug or UUID.")] = None,
    status: Annotated[Status | None, typer.Option(help="`failed` lists the dead letters.")] = None,
    user: Annotated[str | None, typer.Option(help="Only of this user: email, external id or UUID.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Executions of a tenant, newest first."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        owner = await tenant_id(connection, tenant)
        found = await store.find(connection, owner, workflow) if workflow else None
        user_id = (await find_user(connection, tenant, user))[1] if user else None
        return await execution_store.executions(
            connection,
            owner,
            user_id=user_id,
            workflow_id=found["id"] if found else None,
            status=status,
            limit=limit,
        )

    rows = as_operator(run)
    columns = ("id", "workflow", "version", "status", "reason", "charged_tokens", "started_at", "finished_at")
    show(rows if as_json else [{name: row[name] for name in columns} for row in rows], as_json)


def show_execution(execution: Id, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """An execution with its steps, and its output or error."""
    tell_progress(
        _of(tenant, lambda connection, owner: execution_store.progress(connection, owner, execution)), as_json
    )


def tell_progress(progress: Answer, as_json: bool) -> None:
    """The tree with the output or the error, or all of it as JSON."""
    if as_json:
        tell("", progress, True)
        return
    Console(highlight=False).print(tree(progress))
    tell_end(progress)


def tell_end(progress: Answer) -> None:
    """The output as JSON, or the error; nothing of one that goes on."""
    if progress["status"] == "succeeded":
        typer.echo(orjson.dumps(progress["output"], option=orjson.OPT_INDENT_2).decode())
    elif progress["error"] or progress["reason"]:
        error = progress["error"] or {}
        where = f" in {error['node']}" if error.get("node") else ""
        typer.echo(f"{progress['reason']}{where}: {error.get('message') or progress['status']}", err=True)


def cancel(
    execution: Id,
    reason: Annotated[str | None, typer.Option(help="Written to the audit log.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """End an execution with its children; what runs is given up and not charged."""
    told = _of(tenant, lambda connection, owner: execution_store.cancel(connection, owner, execution, reason))
    tell("It is cancelled.", told, as_json)


def pause(execution: Id, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Let what runs end and start nothing further. Deadlines go on."""
    told = _of(tenant, lambda connection, owner: execution_store.pause(connection, owner, execution))
    tell("It is paused.", told, as_json)


def resume(execution: Id, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Go on with an execution that is paused, or that ended for want of tokens."""
    told = _of(tenant, lambda connection, owner: execution_store.resume(connection, owner, execution))
    tell("It goes on.", told, as_json)


def restart(
    execution: Id,
    node: Annotated[str | None, typer.Option(help="Where it begins (where it failed).")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="A newer version to go on with (its own).")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Run an ended execution again from where it failed, or from a node and all that depends on it."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> Answer:
        return await executions.restart(partial(nullcontext, connection), owner, execution, node, version)

    told = _of(tenant, run)
    tell(f"It runs again{f' on version {version}' if version else ''}.", told, as_json)


def replay(
    workflow: Annotated[str | None, typer.Option(help="Only of this workflow: slug or UUID.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only those that failed for it, as `executions` shows it.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the oldest first.")] = 100,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Restart failed executions from where they failed."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> Answer:
        found = await store.find(connection, owner, workflow) if workflow else None
        return await execution_store.replay(connection, owner, found["id"] if found else None, reason, limit)

    told = _of(tenant, run)
    tell(f"{len(told['restarted'])} run again, {len(told['refused'])} could not.", told, as_json)


def signal(
    execution: Id,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the signal.")],
    payload: Annotated[str | None, typer.Argument(metavar="PAYLOAD", help="YAML or JSON.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Send a signal to an execution; it may come before the node that waits for it."""
    value = None if payload is None else read_value(payload)

    async def run(connection: asyncpg.Connection, owner: UUID) -> Answer:
        return await executions.signal(partial(nullcontext, connection), owner, execution, name, value)

    told = _of(tenant, run)
    tell(
        f"{told['steps']} steps waited for it." if told["steps"] else "It is kept until it is asked for.", told, as_json
    )


def approvals(
    user: Annotated[str | None, typer.Option(help="Only what they may decide: email, external id or UUID.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """What waits for people's decision; of a user with what they are shown."""

    async def run(connection: asyncpg.Connection, owner: UUID) -> list[Answer]:
        if user is None:
            return await execution_store.open_approvals(connection, owner)
        await _act_as(connection, tenant, user)
        return await execution_store.approvals(connection)

    rows = _of(tenant, run)
    columns = ("id", "execution_id", "workflow", "title", "quorum", "deadline_at", "created_at")
    show(rows if as_json else [{name: row[name] for name in columns} for row in rows], as_json)


def approve(
    approval: ApprovalId,
    user: Decider,
    comment: Comment = None,
    value: Annotated[str | None, typer.Option(help="What is approved as it was changed: YAML or JSON.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Approve in a user's name, who must be among those who were asked."""
    changed = None if value is None else read_value(value)
    if changed is not None and not isinstance(changed, dict):
        raise typer.BadParameter("A value is an object.", param_hint="--value")
    _decide(approval, user, "approved", comment, changed, tenant, as_json)


def reject(
    approval: ApprovalId,
    user: Decider,
    comment: Comment = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Reject in a user's name, who must be among those who were asked."""
    _decide(approval, user, "rejected", comment, None, tenant, as_json)


def gates(
    name: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Slug or UUID.")],
    days: Annotated[int, typer.Option(min=1, max=3660, help="How many days back.")] = 30,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """What a workflow's gates found, for each gate and day (UTC)."""
    end = datetime.now(UTC)

    async def run(connection: asyncpg.Connection, owner: UUID) -> list[Answer]:
        found = await store.find(connection, owner, name)
        return await execution_store.gates(connection, owner, found["id"], end - timedelta(days=days), end)

    show(_of(tenant, run), as_json)


def _of(tenant: str, run: Callable[[asyncpg.Connection, UUID], Awaitable[Any]]) -> Any:
    """The result of `run` in one transaction as the operator, with the tenant's id."""

    async def with_tenant(connection: asyncpg.Connection) -> Any:
        return await run(connection, await tenant_id(connection, tenant))

    return as_operator(with_tenant)


def _decide(
    approval: UUID, user: str, decision: str, comment: str | None, value: Answer | None, tenant: str, as_json: bool
) -> None:
    async def run(connection: asyncpg.Connection, owner: UUID) -> Answer:
        await _act_as(connection, tenant, user)
        return await executions.decide(partial(nullcontext, connection), approval, decision, comment, value)

    told = _of(tenant, run)
    waits = f": {told['approved_by']} of {told['quorum']} have approved" if told["status"] == "open" else ""
    tell(f"It is {told['status']}{waits}.", told, as_json)


async def _act_as(connection: asyncpg.Connection, tenant: str, user: str) -> None:
    """The rest of the transaction acts as a user. Raises VanillaError `not_found`."""
    owner, user_id = await find_user(connection, tenant, user)
    identity = Identity(owner, user_id, await execution_store.role(connection, owner, user_id))
    await connection.execute("select vanilla.set_context($1)", load_signer(Settings()).sign(identity))
