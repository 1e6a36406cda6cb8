"""`vanilla-saas engines run`: an engine is run as a user and watched until it ends."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, TypeVar
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, in_parts, tell, tenant_id
from vanilla_saas.engines import starts
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows.run_cli import InputFields, InputFile, follow_to_the_end, read_input, tell_run

T = TypeVar("T")
Answer = dict[str, Any]


def of(tenant: str, act: Callable[[asyncpg.Connection, UUID], Awaitable[T]]) -> T:
    """The result of `act` as the operator, with the tenant's id."""

    async def run(connection: asyncpg.Connection) -> T:
        return await act(connection, await tenant_id(connection, tenant))

    return as_operator(run)


def run(
    user: Annotated[str, typer.Option(help="Who runs it and pays: email, external id or UUID.")],
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="slug, slug@3, slug@canary, my/slug (the one that is chosen).")
    ] = None,
    value: InputFields = None,
    input_file: InputFile = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show how it goes until it ends.")] = True,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 first (the flow's, or 5).")] = None,
    key: Annotated[str | None, typer.Option(help="Repeating the command with this key starts nothing more.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Run an engine as a user and show how it goes; exit code 1 when it fails or is cancelled.

    When no worker is running, the steps run in this command.
    """
    given = read_input(value or [], input_file)

    async def act(connection: asyncpg.Connection, where: Addresses) -> Answer:
        owner, user_id = await find_user(connection, tenant, user)
        started = await starts.start(
            partial(nullcontext, connection), owner, ref, given, key=key, priority=priority, user_id=user_id
        )
        if not follow:
            return started
        return await follow_to_the_end(connection, where, owner, UUID(started["execution_id"]), as_json)

    tell_run(in_parts(act), follow, as_json)


def preview(
    user: Annotated[str, typer.Option(help="Who would run it: email, external id or UUID.")],
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="slug, slug@3, slug@canary, my/slug (the one that is chosen).")
    ] = None,
    value: InputFields = None,
    input_file: InputFile = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """What a run would begin and what those before it cost; refused as the run would be, and nothing is started."""
    given = read_input(value or [], input_file)

    async def act(connection: asyncpg.Connection) -> Answer:
        owner, user_id = await find_user(connection, tenant, user)
        return await starts.preview(partial(nullcontext, connection), owner, ref, given, user_id=user_id)

    found = as_operator(act)
    estimate = found["estimate"]
    cost = "No run of it has ended well yet."
    if estimate["runs"]:
        runs, half, most = estimate["runs"], estimate["p50"], estimate["p95"]
        cost = f"Of the last {runs} run{'s' if runs > 1 else ''} half cost at most {half} tokens, 95 % at most {most}."
    changed = " Prices have changed since it was deployed." if found["prices_changed"] else ""
    tell(f"{found['engine']}@{found['version']}, by {found['source']}. {cost}{changed}", found, as_json)
