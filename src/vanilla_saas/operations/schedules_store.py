"""Statements of schedules: ticks run them as `vanilla_runtime`, commands as the operator, requests as a super admin."""

from typing import Any

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database

Rows = list[dict[str, Any]]


async def due(database: Database) -> dict[str, Any]:
    """`due`: name and kind of the jobs that are due, the longest due first; `next_in_s` until another is."""
    found: dict[str, Any] = await database.call("select vanilla.due_schedules()")
    return found


async def run_part(database: Database, name: str) -> dict[str, Any]:
    """A part of an SQL job: `ran`, `more`, `error`, `ms`, `figures`."""
    part: dict[str, Any] = await database.call("select vanilla.run_schedule_part($1)", name)
    return part


async def run_part_as_operator(connection: asyncpg.Connection, name: str) -> dict[str, Any]:
    """The same over a connection of the operator, outside a transaction."""
    part: dict[str, Any] = await connection.fetchval("select vanilla.run_schedule_part($1)", name)
    return part


async def begin(connection: asyncpg.Connection, name: str) -> bool:
    """Takes a job for the transaction that is open on this connection; false when it is not due or somebody has it."""
    # the job may take hours, in which this session says nothing
    await connection.execute("set local idle_in_transaction_session_timeout = 0")
    taken: bool = await connection.fetchval("select vanilla.begin_schedule($1)", name)
    return taken


async def finish(
    connection: asyncpg.Connection, name: str, duration_ms: int, result: dict[str, Any] | None, error: str | None
) -> None:
    """Records what the job that this transaction has taken came to. Raises VanillaError `invalid_state` for another."""
    await connection.execute("select vanilla.finish_schedule($1, $2, $3::jsonb, $4)", name, duration_ms, result, error)


async def schedules(connection: asyncpg.Connection) -> Rows:
    """Every job of the platform with its state, for a super admin or the operator."""
    return [dict(row) for row in await connection.fetch("select * from public.list_schedules()")]


async def schedule(connection: asyncpg.Connection, name: str) -> dict[str, Any]:
    """One job. Raises VanillaError `not_found`."""
    row = await connection.fetchrow("select * from public.list_schedules() s where s.name = $1", name)
    if row is None:
        raise VanillaError(
            "not_found", "no such schedule", {"schedule": name}, "vanilla-saas schedules list names them all."
        )
    return dict(row)


async def set_enabled(connection: asyncpg.Connection, name: str, enabled: bool) -> None:
    """Pauses or resumes a job. Raises VanillaError `not_found`, `forbidden`."""
    await connection.execute("select public.set_schedule($1, $2)", name, enabled)


async def request_run(connection: asyncpg.Connection, name: str) -> None:
    """Asks for a run out of turn. Raises VanillaError `not_found`, `forbidden`."""
    await connection.execute("select public.request_schedule($1)", name)


async def use_pg_cron(connection: asyncpg.Connection, on: bool) -> str:
    """Lets pg_cron run the SQL jobs, or no longer; the line's command. Raises VanillaError `invalid_state`."""
    command: str = await connection.fetchval("select vanilla.use_pg_cron($1)", on)
    return command


async def preview_retention(connection: asyncpg.Connection) -> Rows:
    """What retention would remove now, counted; for the operator."""
    return [dict(row) for row in await connection.fetch("select * from vanilla.preview_retention()")]


async def months_to_export(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """(log_table, month, partition_name) of what waits to be exported, oldest first; for the operator."""
    rows: list[asyncpg.Record] = await connection.fetch("select * from vanilla.months_to_export()")
    return rows


async def columns(connection: asyncpg.Connection, table: str) -> list[tuple[str, str]]:
    """Names and types of a log table's columns, in their order."""
    rows = await connection.fetch(
        "select attname, format_type(atttypid, null) from pg_attribute"
        " where attrelid = format('public.%I', $1::text)::regclass and attnum > 0 and not attisdropped order by attnum",
        table,
    )
    return [(row[0], row[1]) for row in rows]


async def record_export(
    connection: asyncpg.Connection, log_table: str, month: Any, rows: int, size: int, sha256: bytes, location: str
) -> None:
    """Says that a month is safely written elsewhere; from now on retention may drop it."""
    await connection.execute(
        "select vanilla.record_log_export($1, $2, $3, $4, $5, $6)", log_table, month, rows, size, sha256, location
    )


async def is_operator(connection: asyncpg.Connection) -> bool:
    """Whether the login has the operator's rights; a superuser has."""
    return bool(await connection.fetchval("select pg_has_role('vanilla_operator', 'usage')"))
