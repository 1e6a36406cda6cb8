"""Debits of many callers at once, on one wallet and on many: through the coalescer, one by one, and a floor.

All run in this process with the same number of connections, slice after slice in turn; a ratio is taken within its
round. Afterwards the books must be right to the token.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field

import asyncpg
import uvloop

from benchmarks import wallets
from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.processes import temporary_home
from vanilla_saas.database.coalescer import Coalescer
from vanilla_saas.database.connection import Addresses, addresses
from vanilla_saas.database.context import ContextSigner, load_signer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import Database
from vanilla_saas.operations.first_run import DEFAULT_TENANT
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, token_hash
from vanilla_saas.tokens.store import ADJUST_BY_KEY

FLOOR = "one statement that updates a counter and inserts a row, by as many asyncpg connections as there are callers"
CALLERS = 32
SLOTS = (1, 2, 4)
"""Numbers of statements in flight that are compared."""
FLOOR_TABLES = """
create table floor_wallets (id integer primary key, balance bigint not null) with (fillfactor = 70);
create table floor_ledger (id uuid primary key default gen_random_uuid(), wallet_id integer not null, amount bigint
    not null, balance bigint not null, created_at timestamptz not null default clock_timestamp());
insert into floor_wallets select i, 1000000000000 from generate_series(0, 9999) i;
"""
FLOOR_DEBIT = """
with moved as (update floor_wallets set balance = balance - 1 where id = $1 and balance >= 1 returning id, balance)
insert into floor_ledger (wallet_id, amount, balance) select id, -1, balance from moved returning balance
"""
ADMIN_KEY = """
select create_api_key('load', 'vsk_load', $2, '{admin}', p_user_id => create_user('load-admin@example.test', 'admin',
    p_must_change_password => false, p_tenant_id => $1))
"""
CHARGED = "select coalesce(-sum(amount), 0)::bigint from user_token_ledger where direction = 'debit'"

Debit = Callable[[int], Awaitable[object]]


@dataclass(slots=True)
class Run:
    """What is measured, and what was found."""

    seconds: float
    debits: dict[str, Debit]
    found: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    slow: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    charged: int = 0

    async def slice(self, name: str, place: str, count: int) -> None:
        """Operations a second of CALLERS that ask again when they are answered, and the 99th percentile of one."""
        debit, targets, waits = self.debits[name], itertools.cycle(range(count)), list[float]()
        clock = time.perf_counter
        end = clock() + self.seconds

        async def caller() -> None:
            while (began := clock()) < end:
                await debit(next(targets))
                waits.append(clock() - began)

        began = clock()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        self.found.setdefault((name, place), []).append(len(waits) / (clock() - began))
        self.slow.setdefault((name, place), []).append(sorted(waits)[len(waits) * 99 // 100] * 1000)
        if name != "floor":
            self.charged += len(waits)

    def ratio(self, name: str, place: str) -> float:
        pairs = zip(self.found[name, place], self.found["floor", place], strict=True)
        return middle([ours / floor for ours, floor in pairs])


def run(options: Options) -> Result:
    """Both places, all ways; raises BenchmarkError when the books are wrong afterwards."""
    with ExitStack() as stack:
        settings = Settings(_env_file=None, home=stack.enter_context(temporary_home()))
        signer = load_signer(settings)
        where = stack.enter_context(addresses(settings, signer))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(where, signer, options))


async def _measure(where: Addresses, signer: ContextSigner, options: Options) -> Result:
    await migrate(where.admin, signer)
    rounds, run = (3, Run(1.0, {})) if options.quick else (7, Run(3.0, {}))
    places = {"one_wallet": 1, "spread": 1000}
    async with AsyncExitStack() as stack:
        users = await _prepare(where.admin)
        run.debits = await _ways(stack, where, signer, users)
        for name in run.debits:  # connections, prepared statements and caches: the first slice is nobody's
            await run.slice(name, "spread", places["spread"])
        run.found.clear()
        run.slow.clear()
        names = list(run.debits)
        for number in range(rounds):
            for place, count in places.items():
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    await run.slice(name, place, count)
        await _close_books(where.admin, run.charged)
    return _report(run, rounds, places)


async def _prepare(admin_url: str) -> tuple[bytes, list[uuid.UUID]]:
    """The hash of an admin's key and users with tokens; and the floor's tables beside them."""
    keys = await wallets.make_users(admin_url, 1000)
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute("create schema floor; set search_path = floor;" + FLOOR_TABLES)
        await admin.execute("set search_path = public")
        key_hash = token_hash(new_token(KEY_PREFIX))
        await admin.execute(ADMIN_KEY, DEFAULT_TENANT, key_hash)
        hashes = [token_hash(key) for key in keys]
        rows = await admin.fetch("select user_id from api_keys where key_hash = any ($1) order by id", hashes)
        await admin.execute("analyze")
    finally:
        await admin.close()
    return key_hash, [row["user_id"] for row in rows]


async def _ways(
    stack: AsyncExitStack, where: Addresses, signer: ContextSigner, prepared: tuple[bytes, list[uuid.UUID]]
) -> dict[str, Debit]:
    key_hash, users = prepared
    database = await Database.open(where.app, where.runtime, signer, size=CALLERS)
    stack.push_async_callback(database.close)
    floor = await asyncpg.create_pool(
        where.admin, min_size=CALLERS, max_size=CALLERS, server_settings={"search_path": "floor"}
    )
    stack.push_async_callback(floor.close)

    def arguments(target: int) -> tuple[object, ...]:
        # as a request sends it, with a key of its own
        texts: tuple[object, ...] = ("load", "manual", None, None, None, {}, uuid.uuid4().hex, None, "", "")
        return (key_hash, users[target], 1, "debit", *texts)

    def through(coalescer: Coalescer) -> Debit:
        return lambda target: coalescer.call(ADJUST_BY_KEY, *arguments(target), lane=key_hash)

    ways: dict[str, Debit] = {
        "floor": lambda target: floor.fetchval(FLOOR_DEBIT, target),
        "alone": lambda target: database.call(ADJUST_BY_KEY.statement, *arguments(target)),
    }
    return ways | {f"slots_{slots}": through(Coalescer(database, in_flight=slots)) for slots in SLOTS}


async def _close_books(admin_url: str, charged: int) -> None:
    connection = await asyncpg.connect(admin_url)
    try:
        found = await connection.fetchval(CHARGED)
        defects = [record[0] for record in await connection.fetch(wallets.DEFECTS)]
    finally:
        await connection.close()
    if found != charged:
        defects.append(f"{charged} debits of one token were answered, the ledger has {found}")
    if defects:
        raise BenchmarkError("the books are wrong after the load:\n" + "\n".join(defects[:20]))


def _report(run: Run, rounds: int, places: dict[str, int]) -> Result:
    ratios = {f"{place}_{name}_to_floor": run.ratio(name, place) for place in places for name in run.debits}
    figures: dict[str, Figure] = {"callers": CALLERS, "rounds": rounds, "slice_s": run.seconds, "debits": run.charged}
    for (name, place), found in run.found.items():
        figures[f"{place}_{name}_ops"] = middle(found)
        figures[f"{place}_{name}_p99_ms"] = middle(run.slow[name, place])
    kept = {name: value for name, value in ratios.items() if "floor_to_floor" not in name}
    notes = [
        "fsync and synchronous_commit are on; every debit has an idempotency key, a chain link and its own answer."
    ]
    return Result("calls", FLOOR, judge("calls", kept), figures, {}, notes)
