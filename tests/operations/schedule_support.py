"""A database of its own whose clock, jobs and months of logs tests move as they like."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg

from tests.conftest import DEFAULT_TENANT, Cluster, migrated_database
from vanilla_saas.database.pool import _prepare

CLOCK = """
create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe
    as 'select pg_catalog.clock_timestamp() + interval ''{seconds} seconds'''
"""
MONTH = "date_trunc('month', vanilla.clock() at time zone 'UTC') - make_interval(months => $1)"
COLUMNS = {
    "ai_executions": ("user_id, provider, model, status", "vanilla.uuid7(), 'p', 'a \"m\", 1', 'succeeded'"),
    "audit_logs": ("actor_role, action, details", "'operator', 'test', '{\"a\": 1}'"),
    "events": ("type", "'token.test'"),
    "worker_event_logs": (
        "worker_id, worker, event, to_status, reason, health_score",
        "vanilla.uuid7(), 'w', 'registered', 'registered', 'test', 100",
    ),
    "routing_metrics": ("worker_id", "vanilla.uuid7()"),
    "routing_decisions": (
        "strategy, kind, target, config, candidates, context, seed, result",
        "'test', 'sticky', 'worker', '{}', '[]', '{}', 1, '{}'",
    ),
    "engine_executions": (
        "id, user_id, engine_tenant_id, engine_id, version, source, config_hash, price_hash, estimated_from",
        "vanilla.uuid7(), vanilla.uuid7(), vanilla.platform(), vanilla.uuid7(), 1, 'reference', '', '', 0",
    ),
}


@dataclass
class Time:
    """The operator's connection to the database, and what the tests do to it."""

    connection: asyncpg.Connection
    url: str
    name: str

    async def move(self, ahead: timedelta) -> None:
        """Puts the clock so far ahead of the true time, whatever it was before."""
        await self.connection.execute(CLOCK.format(seconds=round(ahead.total_seconds())))

    async def job(self, name: str) -> asyncpg.Record:
        return await self.connection.fetchrow("select * from list_schedules() where name = $1", name)

    async def part(self, name: str) -> dict[str, Any]:
        return await self.connection.fetchval("select vanilla.run_schedule_part($1)", name)

    async def run(self, name: str) -> dict[str, Any]:
        """Every part of a job that is due; what its last run came to."""
        while (await self.part(name))["more"]:
            pass
        return (await self.job(name))["last_result"]

    async def make_due(self, *names: str) -> None:
        await self.connection.execute(
            "update schedules set next_run_at = vanilla.clock(), requested_at = null where name = any($1)", names
        )

    async def add_job(self, name: str, body: str, period: str = "1 hour") -> None:
        """An SQL job that is due; `body` is its function's, in plpgsql."""
        await self.change_job(name, body)
        await self.connection.execute(
            "insert into schedules (tenant_id, name, description, period, next_run_at)"
            " values (vanilla.platform(), $1, 'test', $2::text::interval, vanilla.clock())",
            name,
            period,
        )

    async def change_job(self, name: str, body: str) -> None:
        """Another function for a job that there is."""
        await self.connection.execute(
            f"create or replace function vanilla.job_{name}(p_limit integer) returns jsonb language plpgsql as"
            f" $f$ begin {body}; end $f$; alter function vanilla.job_{name}(integer) owner to vanilla_definer"
        )

    async def add_python_job(self, name: str) -> None:
        await self.connection.execute(
            "insert into schedules (tenant_id, name, description, kind, period, next_run_at)"
            " values (vanilla.platform(), $1, 'test', 'python', '1 hour', vanilla.clock())",
            name,
        )

    async def forget(self, name: str) -> None:
        await self.connection.execute("delete from schedules where name = $1", name)
        await self.connection.execute(f"drop function if exists vanilla.job_{name}(integer)")

    async def log_rows(self, log: str, months_ago: int, rows: int) -> str:
        """Rows of a log spread over a month that has passed, in a partition of their own; the partition's name."""
        columns, values = COLUMNS[log]
        await self.connection.execute(
            f"insert into {log} (tenant_id, created_at, {columns}) select $2, (({MONTH}) at time zone 'UTC')"
            f" + n * interval '28 days' / $3, {values} from generate_series(0, $3::integer - 1) n",
            months_ago,
            DEFAULT_TENANT,
            rows,
        )
        await self.connection.execute("select vanilla.ensure_partitions(3)")
        return f"{log}_" + await self.connection.fetchval(f"select to_char({MONTH}, 'YYYYMM')", months_ago)

    async def months(self, log: str) -> set[str]:
        """Names of a log's partitions."""
        rows = await self.connection.fetch(
            "select inhrelid::regclass::text from pg_inherits where inhparent = $1::text::regclass", log
        )
        return {row[0] for row in rows}

    async def set(self, key: str, value: Any) -> None:
        await self.connection.execute(
            "update system_configurations set value = $2 where tenant_id = vanilla.platform() and key = $1", key, value
        )


@asynccontextmanager
async def own_time(cluster: Cluster) -> AsyncIterator[Time]:
    async with migrated_database(cluster) as name:
        url = cluster.url(database=name)
        connection = await asyncpg.connect(url)
        await _prepare(connection)
        yield Time(connection, url, name)
        await connection.close()
