"""The end of a month: every plan partly used, half of the rest rolls over, against one UPDATE of as many counters.

In a database of its own, where a month passes by moving `vanilla.clock()`. The product plays each wallet's lapses,
rollover, new plan, ledger rows and chain; the floor writes the new balance and the new period into a copy of the table.
"""

import time
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from benchmarks.frame import BenchmarkError, Figure, middle
from benchmarks.machine import processor_s
from benchmarks.wallet_books import Range, users
from benchmarks.wallet_pgbench import PREFIX
from benchmarks.wallets import DEFECTS
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.embedded import EmbeddedServer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations.first_run import DEFAULT_TENANT

DATABASE = "wallet_month"
PLAN, PERCENT, ROLLOVER_CAP, MONTHLY_CAP = 1000, 50, 300, 1200
FIRST = 100_000_000_000
LEVEL = "basic"
BUDGET_S = 300.0
"""No further round begins after so long."""

POLICY = """
select set_level_token_policy(id, 0, $3, 'hard', $4, $5, $6, p_warning_percent => 0, p_tenant_id => tenant_id)
from levels where tenant_id = $1 and slug = $2
"""
MAKE = """
select count(vanilla.make_user($1, 'month-' || n || '@example.test', null, '', 'user', null, false,
    (select id from levels where tenant_id = $1 and slug = $2), ($5 || n)::uuid))
from generate_series($3::bigint, $4::bigint) n
"""
USE = """
select count(adjust_user_tokens(user_id, used, 'debit', 'benchmark'))
from unnest($1::uuid[], $2::bigint[]) x (user_id, used)
"""
BALANCES = (
    "select array_agg(available_tokens order by user_id) from user_token_wallets where user_id >= $1 and user_id <= $2"
)
COPY = """
create table floor_month (like public.user_token_wallets including all) with (fillfactor = 70);
insert into floor_month select * from public.user_token_wallets where next_reset_at is not null
"""
FLOOR = """
update floor_month set available_tokens = $1, period_start = next_reset_at,
    next_reset_at = next_reset_at + interval '1 month'
where next_reset_at is not null
"""
CLOCK = """
create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe
    as 'select pg_catalog.clock_timestamp() + interval ''%d months'''
"""
DUE = "select count(*) from user_token_wallets where next_reset_at <= vanilla.clock()"


@dataclass(slots=True)
class Month:
    """The wallets, and what each must hold."""

    connection: asyncpg.Connection
    ids: list[UUID]
    used: list[int]
    rollovers: list[int]

    async def use(self) -> None:
        """Each wallet spends its own part of the plan; a rollover is spent first."""
        await self.connection.execute(USE, self.ids, self.used, timeout=1800)

    async def close(self) -> tuple[float, float | None]:
        """Seconds and processor seconds of the reset. Raises BenchmarkError when a wallet holds something else."""
        pid = self.connection.get_server_pid()
        before, began = processor_s(pid), time.perf_counter()
        closed = await self.connection.fetchval("select reset_monthly_tokens()", timeout=1800)
        elapsed = time.perf_counter() - began
        after = processor_s(pid)
        self.rollovers = [
            min((PLAN - max(used - rollover, 0)) * PERCENT // 100, ROLLOVER_CAP, MONTHLY_CAP - PLAN)
            for used, rollover in zip(self.used, self.rollovers, strict=True)
        ]
        found = await self.connection.fetchval(BALANCES, self.ids[0], self.ids[-1])
        if closed != len(self.ids) or found != [PLAN + rollover for rollover in self.rollovers]:
            raise BenchmarkError(f"{closed} of {len(self.ids)} wallets were reset, or some hold what they should not")
        return elapsed, None if before is None or after is None else after - before


async def month_close(
    server: EmbeddedServer, signer: ContextSigner, wallets: int, rounds: int
) -> tuple[list[float], dict[str, Figure]]:
    """The quotients of the rounds, ours by the floor, and figures."""
    month = await _prepare(server, signer, wallets)
    floors, ours, processor = [], [], []
    began = time.monotonic()
    try:
        for number in range(1, rounds + 1):
            await month.use()
            await month.connection.execute("vacuum analyze")
            await month.connection.execute(CLOCK % number)
            await month.connection.execute("checkpoint")
            floors.append(await _floor(month))
            await month.connection.execute("checkpoint")
            elapsed, used = await month.close()
            ours.append(elapsed)
            if used is not None:
                processor.append(used)
            if time.monotonic() - began > BUDGET_S:
                break
        defects = [record[0] for record in await month.connection.fetch(DEFECTS, timeout=1800)]
    finally:
        await month.connection.close()
    if defects:
        raise BenchmarkError("the books are wrong after the month:\n" + "\n".join(defects[:20]))
    figures: dict[str, Figure] = {
        "month_wallets": wallets,
        "month_rounds": len(ours),
        "month_close_s": middle(ours),
        "month_update_s": middle(floors),
    }
    figures |= {"month_close_cpu_s": middle(processor)} if processor else {}
    return [one / two for one, two in zip(ours, floors, strict=True)], figures


async def _prepare(server: EmbeddedServer, signer: ContextSigner, wallets: int) -> Month:
    admin = await asyncpg.connect(server.dsn())
    await admin.execute(f"create database {DATABASE}")
    await admin.close()
    url = server.dsn(database=DATABASE)
    await migrate(url, signer)
    connection = await asyncpg.connect(url)
    wanted = Range(FIRST, FIRST + wallets - 1)
    await connection.execute(POLICY, DEFAULT_TENANT, LEVEL, PLAN, PERCENT, ROLLOVER_CAP, MONTHLY_CAP)
    for first in range(wanted.first, wanted.last + 1, 10_000):
        last = min(first + 9_999, wanted.last)
        await connection.execute(MAKE, DEFAULT_TENANT, LEVEL, first, last, PREFIX, timeout=1800)
        # the statistics of an empty table would plan for it
        await connection.execute("analyze")
    await connection.execute(COPY)
    used = [number * 7 % (PLAN - 1) + 1 for number in range(wallets)]
    return Month(connection, users(wanted), used, [0] * wallets)


async def _floor(month: Month) -> float:
    began = time.perf_counter()
    written = await month.connection.execute(FLOOR, PLAN + 1, timeout=1800)
    elapsed = time.perf_counter() - began
    if written != f"UPDATE {len(month.ids)}":
        raise BenchmarkError(f"the floor of the month wrote {written}, not {len(month.ids)}")
    return elapsed
