"""`vanilla-saas workers`: who lives, what happened to them, and draining one; as the operator."""

from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.context import PLATFORM
from vanilla_saas.database.cursor import first_page
from vanilla_saas.database.operator import AsJson, as_operator, show, tell
from vanilla_saas.routing import store

workers = typer.Typer(no_args_is_help=True, help="Workers of the platform: list, events, drain.")
Id = Annotated[UUID, typer.Argument(metavar="WORKER", help="Id of the worker.")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Most rows to list, newest first.")]
COLUMNS = (
    "id",
    "name",
    "status",
    "health_score",
    "in_flight",
    "capacity",
    "pools",
    "region",
    "release",
    "heartbeat_at",
)
EVENT_COLUMNS = ("created_at", "worker", "event", "from_status", "to_status", "health_score", "reason")


@workers.command("list")
def list_workers(
    status: Annotated[str | None, typer.Option(help="registered, active, draining, stopped or dead.")] = None,
    pool: Annotated[str | None, typer.Option(help="Only those that serve this pool.")] = None,
    as_json: AsJson = False,
) -> None:
    """Workers with their health and load, those that live first. Times are UTC."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        return await store.workers(connection, PLATFORM, status, pool)

    rows = as_operator(run)
    show(rows if as_json else [{column: row[column] for column in COLUMNS} for row in rows], as_json)


@workers.command("show")
def show_worker(worker: Id, as_json: AsJson = False) -> None:
    """A worker and the figures of its last hour."""

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        found = await store.worker(connection, PLATFORM, worker)
        return found | {"minutes": await store.metrics(connection, PLATFORM, worker, 60)}

    found = as_operator(run)
    minutes = found["minutes"]
    lines = [f"{name}: {value}" for name, value in found.items() if name != "minutes"]
    done, failed = sum(minute["finished"] for minute in minutes), sum(minute["failed"] for minute in minutes)
    tell("\n".join([*lines, f"last hour: {done} steps finished, {failed} failed"]), found, as_json)


@workers.command("events")
def worker_events(
    worker: Annotated[UUID | None, typer.Argument(metavar="WORKER", help="Id of the worker; all without.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Transitions of a worker or of all, newest first, with their reasons."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        return await store.events(connection, PLATFORM, worker, first_page(limit))

    rows = as_operator(run)
    show(rows if as_json else [{column: row[column] for column in EVENT_COLUMNS} for row in rows], as_json)


@workers.command("drain")
def drain(
    worker: Id,
    reason: Annotated[str, typer.Option(help="What its log is to say.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let a worker finish what it has and take no more."""

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        await store.drain(connection, PLATFORM, worker, reason)
        return await store.worker(connection, PLATFORM, worker)

    found = as_operator(run)
    tell(f"{found['name']} drains: it has {found['in_flight']} steps to finish.", found, as_json)
