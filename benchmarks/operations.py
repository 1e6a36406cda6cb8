"""What time brings: months of a log that leave, and the end of a month for all wallets through the scheduler.

Retention is measured on the product's own table, filled twice alike: once DELETE and VACUUM remove what is past, once
the job drops it. The reset runs as serving processes run it, part by part; a wallet is locked no longer than its part
takes, as the client sees it from asking to the committed answer.
"""

import asyncio
import time
from dataclasses import dataclass

import asyncpg

from benchmarks.frame import BenchmarkError, Figure, Result, judge
from benchmarks.options import Options
from benchmarks.processes import temporary_home
from benchmarks.wallet_month import CLOCK, DUE, FIRST, LEVEL, MAKE, POLICY
from benchmarks.wallet_pgbench import PREFIX
from benchmarks.wallets import DEFECTS, check_durable
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import ContextSigner, load_signer
from vanilla_saas.database.embedded import EmbeddedServer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import Database
from vanilla_saas.operations import schedules_store as store
from vanilla_saas.operations.first_run import DEFAULT_TENANT
from vanilla_saas.settings import Settings

FLOOR = (
    "DELETE of the same rows from the same table, then VACUUM; of the reset none: the longest part of it is a promise"
)
MONTHS = 10
"""Whole months that leave; as many rows in each."""
FILL = """
insert into ai_executions (tenant_id, created_at, user_id, provider, model, status, input_tokens, output_tokens,
    charged_tokens, cost_micros, latency_ms, request_id)
select $1,
    (date_trunc('month', now() at time zone 'UTC') - make_interval(months => 4 + (n % $3::int)::int)) at time zone 'UTC'
    + n * interval '27 days' / $2, vanilla.uuid7(), 'sandbox', 'sandbox-small', 'succeeded', 100, 50, 150, 75, 400,
    'req-' || n
from generate_series(0, $2::bigint - 1) n
"""
WAL = "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"


@dataclass(frozen=True, slots=True)
class Size:
    rows: int
    wallets: int


FULL, QUICK = Size(2_000_000, 1_000_000), Size(100_000, 3_000)


def run(options: Options) -> Result:
    """Retention and the reset. Raises BenchmarkError when rows or tokens are not what they must be afterwards."""
    size = QUICK if options.quick else FULL
    with temporary_home() as home:
        settings = Settings(home=home, DATABASE_URL=None)
        signer = load_signer(settings)
        with addresses(settings, signer) as where:
            assert where.server is not None
            ratios, figures = asyncio.run(_measure(where.server, signer, size))
    notes = ["a part is measured from the client's question to its committed answer; locks last no longer"]
    return Result("operations", FLOOR, judge("operations", ratios), figures, {}, notes)


async def _measure(
    server: EmbeddedServer, signer: ContextSigner, size: Size
) -> tuple[dict[str, float], dict[str, Figure]]:
    ratios, figures = await _retention(server, signer, size.rows)
    more, further = await _reset(server, signer, size.wallets)
    return ratios | more, figures | further


async def _database(server: EmbeddedServer, signer: ContextSigner, name: str) -> tuple[asyncpg.Connection, Database]:
    admin = await asyncpg.connect(server.dsn())
    await admin.execute(f"create database {name}")
    await admin.close()
    await migrate(server.dsn(database=name), signer)
    database = await Database.open(
        server.dsn("vanilla_app", database=name), server.dsn("vanilla_runtime", database=name), signer, size=2
    )
    connection = await asyncpg.connect(server.dsn(database=name))
    await check_durable(connection)
    return connection, database


async def _retention(
    server: EmbeddedServer, signer: ContextSigner, rows: int
) -> tuple[dict[str, float], dict[str, Figure]]:
    connection, database = await _database(server, signer, "operations_retention")
    try:
        await _fill(connection, rows)
        before, began = await connection.fetchval(WAL), time.perf_counter()
        deleted = await connection.execute(
            "delete from ai_executions where created_at < now() - interval '90 days'", timeout=1800
        )
        await connection.execute("vacuum ai_executions", timeout=1800)
        delete_s, delete_wal = time.perf_counter() - began, await connection.fetchval(WAL) - before
        while (await store.run_part(database, "retention"))["more"]:
            pass  # the months that are empty now
        await _fill(connection, rows)
        await connection.execute("select request_schedule('retention')")
        before, began = await connection.fetchval(WAL), time.perf_counter()
        while (part := await store.run_part(database, "retention"))["more"]:
            pass
        drop_s, drop_wal = time.perf_counter() - began, await connection.fetchval(WAL) - before
        left = await connection.fetchval("select count(*) from ai_executions")
    finally:
        await connection.close()
        await database.close()
    if deleted != f"DELETE {rows}" or left or part["error"]:
        raise BenchmarkError(f"{deleted} of {rows}; after the drop {left} rows are left ({part['error']})")
    ratios = {"retention_delete_to_drop": delete_s / drop_s, "retention_wal_delete_to_drop": delete_wal / drop_wal}
    return ratios, {
        "retention_rows": rows,
        "retention_delete_s": delete_s,
        "retention_drop_s": drop_s,
        "retention_delete_wal_mib": float(delete_wal) / 2**20,
        "retention_drop_wal_mib": float(drop_wal) / 2**20,
    }


async def _fill(connection: asyncpg.Connection, rows: int) -> None:
    """As many rows in each of the months that are past retention, in partitions of their own."""
    await connection.execute(FILL, DEFAULT_TENANT, rows, MONTHS, timeout=1800)
    await connection.execute("select vanilla.ensure_partitions(3)", timeout=1800)
    await connection.execute("vacuum analyze ai_executions", timeout=1800)
    await connection.execute("checkpoint", timeout=600)


async def _reset(
    server: EmbeddedServer, signer: ContextSigner, wallets: int
) -> tuple[dict[str, float], dict[str, Figure]]:
    connection, database = await _database(server, signer, "operations_reset")
    try:
        await connection.execute(POLICY, DEFAULT_TENANT, LEVEL, 1000, 50, 300, 1200)
        for first in range(FIRST, FIRST + wallets, 10_000):
            last = min(first + 9_999, FIRST + wallets - 1)
            await connection.execute(MAKE, DEFAULT_TENANT, LEVEL, first, last, PREFIX, timeout=1800)
            await connection.execute("analyze")
        await connection.execute(CLOCK % 1)
        due = await connection.fetchval(DUE)
        await connection.execute("select request_schedule('monthly_reset')")
        parts: list[float] = []
        began, more = time.perf_counter(), True
        while more:
            started = time.perf_counter()
            part = await store.run_part(database, "monthly_reset")
            parts.append((time.perf_counter() - started) * 1000)
            more = part["more"]
        elapsed = time.perf_counter() - began
        left = await connection.fetchval(DUE)
        defects = [record[0] for record in await connection.fetch(DEFECTS, timeout=3600)]
    finally:
        await connection.close()
        await database.close()
    if due != wallets or left or defects or part["error"]:
        raise BenchmarkError(
            f"{due} of {wallets} wallets were due, {left} are left ({part['error']})\n" + "\n".join(defects[:20])
        )
    parts.sort()
    return {"reset_longest_lock_ms": parts[-1]}, {
        "reset_wallets": wallets,
        "reset_s": elapsed,
        "reset_parts": len(parts),
        "reset_part_median_ms": parts[len(parts) // 2],
        "reset_part_p99_ms": parts[int(len(parts) * 0.99)],
    }
