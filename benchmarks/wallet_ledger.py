"""What the ledger costs: bytes of a debit, the proof of the chain, the balance of a moment of the past."""

import random
import re
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from benchmarks import wallet_pgbench
from benchmarks.frame import BenchmarkError, Figure, middle
from benchmarks.machine import processor_s
from benchmarks.wallet_pgbench import AMOUNT, Pgbench, Slice
from vanilla_saas.database.embedded import EmbeddedServer

ENTRIES = "select count(*) from user_token_ledger"
# In parts: one transaction would leave every version of the wallet's row behind the last.
FILL = """
do $d$
begin
    set synchronous_commit = off;
    for i in 1..{count} loop
        perform adjust_user_tokens('{user}', {amount}, 'debit', 'benchmark',
            p_idempotency_key => gen_random_uuid()::text);
        if i % 50 = 0 then commit; end if;
    end loop;
end
$d$
"""
HISTORY = """
select min(created_at) as first, max(created_at) as last, count(*) as entries from user_token_ledger where user_id = $1
"""
SCANNED = """
select available_after - borrowed_after from user_token_ledger where user_id = $1 and created_at <= $2
order by seq desc limit 1
"""
_TOTAL = re.compile(r"^Total\s+(\d+)\s+(\d+) \[[\d.]+%\]\s+(\d+) \[", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Of one operation, full page images left out of `wal` and given apart."""

    wal: float
    page_images: float
    disk: float


async def bytes_of(
    server: EmbeddedServer, pgbench: Pgbench, wanted: Slice, table: str, rounds: int, transactions: int
) -> tuple[Bytes, int]:
    """What an operation of `wanted` writes, and how many ran. `table` is measured with its indexes.

    The log says what of it were images of pages, which depend on how long ago the last checkpoint was.
    """
    connection = await asyncpg.connect(server.dsn(database=wanted.database))
    found: list[Bytes] = []
    total = 0
    try:
        for _ in range(rounds):
            await connection.execute("checkpoint")
            size = await connection.fetchval("select pg_total_relation_size($1::text::regclass)", table)
            start = await connection.fetchval("select pg_current_wal_insert_lsn()::text")
            count = pgbench.run(wanted, transactions=transactions).count
            end = await connection.fetchval("select pg_current_wal_flush_lsn()::text")
            written = await connection.fetchval(
                "select pg_wal_lsn_diff($1::text::pg_lsn, $2::text::pg_lsn)::bigint", end, start
            )
            grown = await connection.fetchval("select pg_total_relation_size($1::text::regclass)", table) - size
            images = _page_images(server, start, end)
            found.append(Bytes((written - images) / count, images / count, grown / count))
            total += count
    finally:
        await connection.close()
    middles = (middle([getattr(one, name) for one in found]) for name in ("wal", "page_images", "disk"))
    return Bytes(*middles), total


def _page_images(server: EmbeddedServer, start: str, end: str) -> int:
    """Bytes of full page images between two places of the log."""
    command = [str(server.bin_dir / "pg_waldump"), "--stats", "-p", str(server.data_dir / "pg_wal")]
    done = subprocess.run([*command, "-s", start, "-e", end], capture_output=True, text=True, check=False)
    found = _TOTAL.search(done.stdout)
    if found is None:
        raise BenchmarkError(f"pg_waldump did not say what is in the log:\n{done.stderr[-1000:]}{done.stdout[-1000:]}")
    return int(found[3])


async def fill(url: str, wallet: int, count: int) -> None:
    """Debits one wallet `count` times."""
    connection = await asyncpg.connect(url)
    try:
        user = wallet_pgbench.user_id(wallet)
        await connection.execute(FILL.format(count=count, user=user, amount=AMOUNT), timeout=1800)
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()


async def verify(url: str) -> tuple[float, dict[str, Figure]]:
    """Entries that `verify_token_ledger` proves in a second of processor time, all wallets, and figures."""
    connection = await asyncpg.connect(url)
    try:
        entries = await connection.fetchval(ENTRIES)
        pid = connection.get_server_pid()
        used, began = processor_s(pid), time.perf_counter()
        problems = await connection.fetch("select * from verify_token_ledger()", timeout=1800)
        elapsed = time.perf_counter() - began
        after = processor_s(pid)
    finally:
        await connection.close()
    if problems:
        raise BenchmarkError(f"the chain is broken: {problems[:5]}")
    spent = elapsed if used is None or after is None else after - used
    return entries / spent, {"verify_entries": entries, "verify_s": elapsed, "verify_cpu_s": spent}


async def balance_at(url: str, wallet: int, samples: int) -> tuple[float, dict[str, Figure]]:
    """Median milliseconds of `token_balance_at` at random moments, as a client sees them, and figures."""
    user = wallet_pgbench.user_id(wallet)
    connection = await asyncpg.connect(url)
    try:
        history = await connection.fetchrow(HISTORY, user)
        ask = await connection.prepare("select token_balance_at($1, $2)")
        times: list[float] = []
        for number in range(samples):
            at = _between(history["first"], history["last"])
            began = time.perf_counter()
            balance = await ask.fetchval(user, at)
            times.append((time.perf_counter() - began) * 1000)
            # reading the history backwards is slow, so not every time
            if number % (samples // 20) == 0 and balance != await connection.fetchval(SCANNED, user, at):
                raise BenchmarkError(f"token_balance_at says {balance} at {at}, and the ledger does not")
    finally:
        await connection.close()
    times.sort()
    figures: dict[str, Figure] = {
        "balance_at_entries": history["entries"],
        "balance_at_p99_ms": times[len(times) * 99 // 100],
    }
    return middle(times), figures


def _between(first: datetime, last: datetime) -> datetime:
    return first + timedelta(seconds=random.uniform(0, (last - first).total_seconds()))
