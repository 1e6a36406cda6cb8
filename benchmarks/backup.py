"""Backup and verified restore of a large ledger, against pg_dump and pg_restore of the same database alone.

Ours does more: rows and digests of every table, the catalog, the ends of all chains, and in the restore the checks and
the chain of every ledger row. The ratios say what that costs.
"""

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg

from benchmarks.frame import BenchmarkError, Figure, Result, judge
from benchmarks.options import Options
from benchmarks.processes import temporary_home
from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.embedded import EmbeddedServer, attach
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations.rehearsal import scheduled_backup, scheduled_rehearsal
from vanilla_saas.settings import Settings

FLOOR = "pg_dump and pg_restore of the same database, the same format and number of connections, nothing compared"
JOBS = 2
PER_WALLET = 5_000
FULL, QUICK = 5_000_000, 20_000
TENANT = "00000000-0000-7000-8000-000000000001"
MAKE_USERS = f"select create_user('w' || n || '@example.test', p_tenant_id => '{TENANT}') from generate_series(1, $1) n"
# Entries as move_tokens writes them, one wallet a transaction: through the function 5,000,000 would take half an hour.
FILL = """
do $d$
declare
    v_wallet public.user_token_wallets;
    v_row public.user_token_ledger;
begin
    set synchronous_commit = off;
    for v_wallet in select * from public.user_token_wallets where seq > 0 and seq < {per_wallet} order by user_id loop
        for i in v_wallet.seq + 1 .. {per_wallet} loop
            v_row := row(v_wallet.tenant_id, v_wallet.user_id, i, vanilla.uuid7(), clock_timestamp(), -1, 0,
                v_wallet.available_tokens - 1, v_wallet.reserved_tokens, v_wallet.borrowed_tokens, 'debit', 'benchmark',
                'api', null, null, null, null, null, null, gen_random_uuid()::text, null, '{{}}', null);
            v_row.hash := vanilla.ledger_hash(v_wallet.head, v_row);
            v_wallet.head := v_row.hash;
            v_wallet.available_tokens := v_row.available_after;
            insert into public.user_token_ledger select v_row.*;
        end loop;
        update public.user_token_wallets set available_tokens = v_wallet.available_tokens, head = v_wallet.head,
            burn = burn + {per_wallet} - seq, spent_tokens = spent_tokens + {per_wallet} - seq, seq = {per_wallet},
            last_entry_at = v_row.created_at
        where tenant_id = v_wallet.tenant_id and user_id = v_wallet.user_id;
        commit;
    end loop;
end
$d$
"""


def run(options: Options) -> Result:
    """One backup and one rehearsal of 5,000,000 entries, or of a few with `--quick`; the floors before each."""
    entries = QUICK if options.quick else FULL
    with temporary_home() as home, tempfile.TemporaryDirectory(prefix="vs-benchmark-") as folder:
        settings = Settings(_env_file=None, home=home, backup_dir=Path(folder) / "ours")
        with attach(settings) as server:
            return asyncio.run(_measure(server, settings, entries, Path(folder)))


async def _measure(server: EmbeddedServer, settings: Settings, entries: int, folder: Path) -> Result:
    where = Addresses(server.dsn(), "", "", server)
    await migrate(where.admin, ContextSigner(os.urandom(32)))
    await _fill(where.admin, entries)
    dump_s = _timed(server, ["pg_dump", "-Fc", "-d", "vanilla_saas", "-f", str(folder / "floor.dump")])
    made = await scheduled_backup(where, settings, jobs=JOBS)
    await _database(server, "create database floor")
    restore = ["pg_restore", f"--jobs={JOBS}", "-d", "floor", str(folder / "floor.dump")]
    restore_s = _timed(server, restore)
    await _database(server, "drop database floor")
    began = time.perf_counter()
    proof = await scheduled_rehearsal(where, settings, jobs=JOBS)
    rehearsed_s = time.perf_counter() - began
    if proof.errors:
        raise BenchmarkError(f"the backup did not stand its rehearsal: {proof.errors[:3]}")
    if made.manifest.ledger["entries"] < entries:
        raise BenchmarkError(f"{made.manifest.ledger['entries']} ledger rows instead of {entries}")
    ratios = {
        "backup_to_pg_dump": made.manifest.seconds / dump_s,
        "rehearsal_to_pg_restore": rehearsed_s / restore_s,
    }
    figures: dict[str, Figure] = {
        "ledger_rows": made.manifest.ledger["entries"],
        "rows": made.manifest.rows,
        "chains": proof.chains,
        "backup_s": made.manifest.seconds,
        "backup_bytes": made.manifest.size,
        "pg_dump_s": dump_s,
        "pg_dump_bytes": (folder / "floor.dump").stat().st_size,
        "rehearsal_s": rehearsed_s,
        "pg_restore_s": restore_s,
        **{f"rehearsal_{phase}_s": seconds for phase, seconds in proof.seconds.items()},
    }
    return Result("backup", FLOOR, judge("backup", ratios), figures, {})


async def _fill(url: str, entries: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("update level_token_policies set base_allocation = $1", 10 * PER_WALLET)
        per_wallet = min(PER_WALLET, entries // 4)
        await connection.fetch(MAKE_USERS, -(-entries // per_wallet), timeout=1800)
        await connection.execute(FILL.format(per_wallet=per_wallet), timeout=7200)
        await connection.execute("vacuum analyze", timeout=1800)
    finally:
        await connection.close()


async def _database(server: EmbeddedServer, statement: str) -> None:
    connection = await asyncpg.connect(server.dsn(database="postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _timed(server: EmbeddedServer, command: list[str]) -> float:
    environment = os.environ | server.pg_environment() | {"PGOPTIONS": "-c synchronous_commit=off"}
    began = time.perf_counter()
    done = subprocess.run(
        [str(server.bin_dir / command[0]), *command[1:]], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{command[0]} failed:\n{done.stderr[-1000:]}")
    return time.perf_counter() - began
