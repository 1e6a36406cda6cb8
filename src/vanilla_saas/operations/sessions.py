"""`vanilla-saas doctor locks` and `doctor slow`: what the sessions of the database do and wait for."""

from enum import StrEnum
from typing import Any

import asyncpg

from vanilla_saas.database.connection import connect_admin
from vanilla_saas.database.pool import translated_errors

LOCKS = "select * from vanilla.blocked_sessions order by waited desc nulls last"
RUNNING = "select * from vanilla.running_statements order by running desc nulls last"
STATISTICS_SCHEMA = "select extnamespace::regnamespace::text from pg_extension where extname = 'pg_stat_statements'"
SLOWEST = (
    "select calls, round(mean_exec_time::numeric, 3) as mean_ms, round(total_exec_time::numeric) as total_ms, rows,"
    " query as statement from pg_stat_statements"
    " where dbid = (select oid from pg_database where datname = current_database())"
    " order by total_exec_time desc limit 20"
)
"""Needs the extension, whose schema stands in search_path."""


class Look(StrEnum):
    """What to look at instead of what is wrong."""

    locks = "locks"
    slow = "slow"


async def look(url: str, what: Look) -> list[dict[str, Any]]:
    """Rows of the view, the longest first; of `slow` also the costliest statements since the statistics began.

    Times are in seconds unless the name says ms. The text of another login's statement needs pg_read_all_stats.
    Raises VanillaError `database_unavailable`.
    """
    connection = await connect_admin(url)
    try:
        async with translated_errors(), connection.transaction(readonly=True):
            rows = [_plain(row) for row in await connection.fetch(LOCKS if what is Look.locks else RUNNING)]
            schema = await connection.fetchval(STATISTICS_SCHEMA) if what is Look.slow else None
            if schema is not None and await connection.fetchval(
                "select current_setting('shared_preload_libraries') like '%pg_stat_statements%'"
            ):
                await connection.execute("select set_config('search_path', $1, true)", schema)
                rows += [_plain(row) for row in await connection.fetch(SLOWEST)]
            return rows
    finally:
        await connection.close()


def _plain(row: asyncpg.Record) -> dict[str, Any]:
    return {
        name: round(value.total_seconds(), 3)
        if hasattr(value, "total_seconds")
        else value
        if value is None or isinstance(value, int)
        else str(value)
        for name, value in row.items()
    }
