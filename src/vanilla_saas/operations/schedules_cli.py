"""`vanilla-saas schedules` and `vanilla-saas cleanup`: what time brings, as the operator."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import asyncpg
import typer
from rich.console import Console

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, as_operator, in_parts, show, tell
from vanilla_saas.operations import schedules_store as store
from vanilla_saas.operations.schedules import JobContext, run_job
from vanilla_saas.operations.schedules_jobs import JOBS
from vanilla_saas.settings import Settings

schedules = typer.Typer(no_args_is_help=True, help="Jobs that time brings: resets, retention, clean-up.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the job.")]
COLUMNS = ("name", "state", "period", "next_run_at", "last_run_at", "last_duration_ms", "failures", "last_error")


@schedules.command("list")
def list_schedules(as_json: AsJson = False) -> None:
    """Every job with its state, its next run and what the last one came to. Times are UTC."""
    rows = as_operator(store.schedules)
    show(rows if as_json else [{column: row[column] for column in COLUMNS} for row in rows], as_json)


@schedules.command("run")
def run(name: Name, as_json: AsJson = False) -> None:
    """Run a job now, here, to its end; also one that is paused or waits for a clock to settle."""

    async def work(connection: asyncpg.Connection, where: Addresses) -> dict[str, Any]:
        return await run_now(connection, where, name)

    result = in_parts(work)
    tell(f"{name} is done: {_figures(result)}.", {"name": name, "result": result}, as_json)


@schedules.command("pause")
def pause(name: Name, as_json: AsJson = False) -> None:
    """Run a job no more until it is resumed; one that runs in parts stops after the part."""
    _set_enabled(name, False, as_json)


@schedules.command("resume")
def resume(name: Name, as_json: AsJson = False) -> None:
    """Run a paused job again; one that failed is tried at once."""
    _set_enabled(name, True, as_json)


def _set_enabled(name: str, enabled: bool, as_json: bool) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await store.set_enabled(connection, name, enabled)

    as_operator(work)
    tell(f"{name} is {'resumed' if enabled else 'paused'}.", {"name": name, "enabled": enabled}, as_json)


@schedules.command("pg-cron")
def pg_cron(
    off: Annotated[bool, typer.Option("--off", help="Take the line out again.")] = False, as_json: AsJson = False
) -> None:
    """Let pg_cron run the SQL jobs every minute, so that they run without a vanilla-saas process too."""

    async def work(connection: asyncpg.Connection) -> str:
        return await store.use_pg_cron(connection, not off)

    command = as_operator(work)
    sentence = "pg_cron runs the SQL jobs no longer." if off else f"pg_cron runs every minute: {command}"
    tell(sentence, {"on": not off, "command": command}, as_json)


def cleanup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is past retention now: whole months of logs are dropped, exported first where that is asked for."""
    if dry_run:
        show(as_operator(store.preview_retention), as_json)
        return

    async def work(connection: asyncpg.Connection, where: Addresses) -> dict[str, Any]:
        done = {}
        if await store.months_to_export(connection):
            done["log_export"] = await run_now(connection, where, "log_export")
        for name in ("retention", "history", "webhook_deliveries", "sign_ins"):
            done[name] = await run_now(connection, where, name)
        return done

    done = in_parts(work)
    tell("\n".join(f"{name}: {_figures(result)}" for name, result in done.items()), done, as_json)


async def run_now(connection: asyncpg.Connection, where: Addresses, name: str) -> dict[str, Any]:
    """Runs a job to its end over a connection outside a transaction; what it came to.

    Raises VanillaError `not_found`, `invalid_state` when it failed, another process runs it or this release has it not.
    """
    job = await store.schedule(connection, name)
    if job["kind"] != "sql" and name not in JOBS:
        raise VanillaError("invalid_state", f"This release has no job {name}.", {"schedule": name})
    await store.request_run(connection, name)
    with _progress(name) as say:
        if job["kind"] == "sql":
            ran, error = await _run_parts(connection, name, say)
        else:
            async with connection.transaction():
                run = await run_job(connection, name, JOBS[name], JobContext(where, Settings()))
            ran, error = run is not None, run.error if run else None
    if error:
        raise VanillaError("invalid_state", f"The job {name} failed: {error}", {"schedule": name})
    if not ran:
        raise VanillaError(
            "invalid_state",
            f"Another process runs {name} at this moment; it has been asked to do what is due.",
            {"schedule": name},
            "vanilla-saas schedules list shows what it comes to.",
        )
    result: dict[str, Any] = (await store.schedule(connection, name))["last_result"] or {}
    return result


async def _run_parts(connection: asyncpg.Connection, name: str, say: Any) -> tuple[bool, str | None]:
    """Whether parts ran here, and the error that ended them."""
    ran, more = False, True
    part: dict[str, Any] = {}
    while more:
        part = await store.run_part_as_operator(connection, name)
        ran, more = ran or part["ran"], part["more"]
        say((await store.schedule(connection, name))["progress"] if more else {})
    return ran, part.get("error")


@contextmanager
def _progress(name: str) -> Iterator[Any]:
    """A line on a terminal that counts; silence elsewhere."""
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda figures: None
        return
    with console.status(name) as status:
        yield lambda figures: status.update(f"{name}: {_figures(figures)}")


def _figures(result: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(result.items())) or "nothing was due"
