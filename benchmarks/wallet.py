"""The wallet by itself: debits, reservations, batches, grants, the end of a month, the ledger.

Floor and product stand on one server, and their slices alternate: a ratio is taken within its round, and its median
is reported. Afterwards the books must say what was answered, to the token and to the row.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import asyncpg
import uvloop

from benchmarks import wallet_batches, wallet_books, wallet_ledger, wallet_month, wallet_pgbench
from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.processes import temporary_home
from benchmarks.wallet_books import Done, Range
from benchmarks.wallet_pgbench import FLOOR_DATABASE, Measured, Pgbench, Slice
from benchmarks.wallet_points import (
    ADMIN,
    BALANCE_AT,
    BYTES,
    FLOOR,
    GRANTS,
    HOT,
    LONG,
    MANY_GRANTS,
    MANY_GRANTS_FIRST,
    MONTH,
    ONE_GRANT_FIRST,
    OTHERS,
    OURS,
    SPREAD_FIRST,
    VERIFY,
    Batches,
    Point,
    points,
)
from benchmarks.wallets import check_durable
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import ContextSigner, Identity, load_signer
from vanilla_saas.database.embedded import EmbeddedServer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations.first_run import DEFAULT_TENANT
from vanilla_saas.settings import Settings

FLOOR_TEXT = (
    "one prepared statement that updates a counter and inserts a ledger row with a uuid primary key and three more"
    " indexes, on the same server with the same client; of the month one set-based UPDATE of as many wallets"
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run does."""

    rounds: int
    seconds: int
    wallets: int
    grant_wallets: int
    transactions: int
    """Of each of eight clients, where bytes are counted."""
    entries: int
    """Of the wallet with the long history."""
    month_wallets: int
    month_rounds: int


FULL = Size(5, 3, 10_000, 200, 2500, 1_000_000, 100_000, 3)
QUICK = Size(1, 1, 1000, 20, 250, 10_000, 1000, 1)


@dataclass(slots=True)
class Run:
    """A prepared server, and what was found on it."""

    server: EmbeddedServer
    signer: ContextSigner
    pgbench: Pgbench
    size: Size
    spread: Range
    done: Done = field(default_factory=Done)
    found: dict[tuple[str, str], list[Measured]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.dsn()

    async def measure(self, point: Point, target: str) -> None:
        """One slice."""
        wanted = point.floor if target == FLOOR else point.ours[target]
        if isinstance(wanted, Batches):
            measured = await self._batches(point, wanted)
            self.done.debits += measured.count
        else:
            measured = self.pgbench.run(self._signed(wanted), seconds=self.size.seconds)
            self._count(point, target, measured.count)
        self.found.setdefault((point.name, target), []).append(measured)

    async def _batches(self, point: Point, wanted: Batches) -> Measured:
        if point.hot:
            hot = wallet_pgbench.user_id(HOT.first)
            return await wallet_batches.hot_wallet_batches(
                self.url, hot, wanted.size, wanted.connections, self.size.seconds
            )
        users = wallet_books.users(self.spread)
        return await wallet_batches.spread_batches(self.url, users, wanted.size, wanted.connections, self.size.seconds)

    def _signed(self, wanted: Slice) -> Slice:
        if wanted.login != "vanilla_app":
            return wanted
        admin = Identity(DEFAULT_TENANT, wallet_pgbench.user_id(ADMIN.first), "admin")
        return replace(wanted, variables={"token": self.signer.sign(admin)})

    def _count(self, point: Point, target: str, number: int) -> None:
        if target == FLOOR:
            self.done.floor += number
        elif point.settles:
            self.done.settlements += number
        else:
            self.done.debits += number


def run(options: Options) -> Result:
    """The points, or those that `options.only` names. Raises BenchmarkError when the books are wrong afterwards."""
    return uvloop.run(_run(options))


async def _run(options: Options) -> Result:
    size = QUICK if options.quick else FULL
    wanted = _wanted(options.only)
    with temporary_home() as home, tempfile.TemporaryDirectory() as scripts:
        settings = Settings(_env_file=None, home=home)
        signer = load_signer(settings)
        with addresses(settings, signer) as where:
            assert where.server is not None
            spread = Range(SPREAD_FIRST, SPREAD_FIRST + size.wallets - 1)
            run = Run(where.server, signer, Pgbench(where.server, Path(scripts)), size, spread)
            await _prepare(run)
            await _slices(run, [point for point in points(spread) if point.name in wanted])
            await _others(run, wanted)
            await wallet_books.close_books(run.url, run.server.dsn(database=FLOOR_DATABASE), run.done)
    return _report(run)


def _wanted(only: Sequence[str]) -> set[str]:
    known = {point.name for point in points(Range(0, 0))} | set(OTHERS)
    if unknown := set(only) - known:
        raise BenchmarkError(f"there is no point {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return set(only) or known


async def _prepare(run: Run) -> None:
    """Wallets and floor. A checkpoint that falls into one slice would meet it alone: none comes during the run."""
    await migrate(run.url, run.signer)
    await wallet_books.make_wallets(run.url, run.spread)
    await wallet_books.make_wallets(run.url, HOT)
    await wallet_books.make_wallets(run.url, ADMIN, role="admin")
    connection = await asyncpg.connect(run.url)
    try:
        await check_durable(connection)
        await connection.execute("alter system set checkpoint_timeout = '1h'")
        await connection.execute("alter system set max_wal_size = '16GB'")
        await connection.execute("select pg_reload_conf()")
        await connection.execute(f"create database {FLOOR_DATABASE}")
        await wallet_books.make_floor(run.server.dsn(database=FLOOR_DATABASE), [run.spread, HOT])
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
    finally:
        await connection.close()


async def _slices(run: Run, wanted: Sequence[Point]) -> None:
    for number in range(run.size.rounds):
        for point in wanted:
            targets = [FLOOR, *point.ours]
            # another one begins each round
            for target in targets[number % len(targets) :] + targets[: number % len(targets)]:
                await run.measure(point, target)
    for point in wanted:
        _compare(run, point)


async def _others(run: Run, wanted: set[str]) -> None:
    if GRANTS in wanted:
        await _grants(run)
    if BYTES in wanted:
        await _bytes(run)
    if {VERIFY, BALANCE_AT} & wanted:
        await wallet_books.make_wallets(run.url, LONG)
        await wallet_ledger.fill(run.url, LONG.first, run.size.entries)
        run.done.debits += run.size.entries
    if BALANCE_AT in wanted:
        run.ratios["balance_at_ms"], figures = await wallet_ledger.balance_at(run.url, LONG.first, 2000)
        run.figures |= figures
    if VERIFY in wanted:
        run.ratios["verified_entries_per_cpu_s"], figures = await wallet_ledger.verify(run.url)
        run.figures |= figures
    if MONTH in wanted:
        quotients, figures = await wallet_month.month_close(
            run.server, run.signer, run.size.month_wallets, run.size.month_rounds
        )
        run.ratios["month_close_to_update"] = middle(quotients)
        run.figures |= {"month_close_to_update_range": _range(quotients), **figures}


async def _grants(run: Run) -> None:
    """Wallets of one grant and of many in one slice, each debit by lot: what disturbs one disturbs the other."""
    scripts = []
    for first, grants in ((ONE_GRANT_FIRST, 1), (MANY_GRANTS_FIRST, MANY_GRANTS)):
        wanted = Range(first, first + run.size.grant_wallets - 1)
        await wallet_books.make_wallets(run.url, wanted, rich=False)
        await wallet_books.add_grants(run.url, wanted, grants - 1)
        scripts.append(wallet_pgbench.over(wallet_pgbench.DEBIT, wanted.first, wanted.last))
    by_lot = Slice(scripts, 1, 0, 0, durable=False)
    quotients = []
    for _ in range(run.size.rounds):
        measured = run.pgbench.run(by_lot, seconds=run.size.seconds)
        run.done.debits += measured.count
        one, many = measured.latencies_ms
        quotients.append(many / one)
    run.ratios["grants_100_to_1"] = middle(quotients)
    run.figures["grants_100_to_1_range"] = _range(quotients)


async def _bytes(run: Run) -> None:
    first, last = run.spread.first, run.spread.last
    slices = {
        OURS: (Slice([wallet_pgbench.DEBIT], 8, first, last), "user_token_ledger"),
        "without_key": (Slice([wallet_pgbench.DEBIT_WITHOUT_KEY], 8, first, last), "user_token_ledger"),
        FLOOR: (Slice([wallet_pgbench.FLOOR], 8, first, last, FLOOR_DATABASE), "floor_ledger"),
    }
    for target, (wanted, table) in slices.items():
        found, count = await wallet_ledger.bytes_of(
            run.server, run.pgbench, wanted, table, run.size.rounds, run.size.transactions
        )
        if target == FLOOR:
            run.done.floor += count
        else:
            run.done.debits += count
        if target == OURS:
            run.ratios |= {"wal_bytes_per_debit": found.wal, "disk_bytes_per_debit": found.disk}
            run.figures["wal_page_image_bytes_per_debit"] = found.page_images
        else:
            run.figures |= {f"{target}_wal_bytes": found.wal, f"{target}_disk_bytes": found.disk}


def _compare(run: Run, point: Point) -> None:
    floor = run.found[point.name, FLOOR]
    quotients = {
        target: [one.tps / two.tps for one, two in zip(run.found[point.name, target], floor, strict=True)]
        for target in point.ours
    }
    best = max(point.best_of, key=lambda target: middle(quotients[target]))
    run.ratios[f"{point.name}_to_floor"] = middle(quotients[best])
    run.figures[f"{point.name}_to_floor_range"] = _range(quotients[best])
    if len(point.best_of) > 1:
        run.figures[f"{point.name}_best"] = best
    for target, values in quotients.items():
        if target != best:
            run.figures[f"{point.name}_{target}_to_floor"] = round(middle(values), 3)
            run.figures[f"{point.name}_{target}_to_floor_range"] = _range(values)
    for target in (FLOOR, *point.ours):
        run.figures |= _numbers(f"{point.name}_{target}", run.found[point.name, target])


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def _numbers(name: str, slices: Sequence[Measured]) -> Mapping[str, Figure]:
    numbers: dict[str, Figure] = {f"{name}_per_s": middle([s.tps for s in slices])}
    used = [s.cpu_us for s in slices if s.cpu_us is not None]
    return numbers | ({f"{name}_cpu_us": middle(used)} if used else {})


def _report(run: Run) -> Result:
    figures: dict[str, Figure] = {
        "rounds": run.size.rounds,
        "slice_s": run.size.seconds,
        "wallets": run.size.wallets,
        "debits": run.done.debits,
        "settlements": run.done.settlements,
        "floor_operations": run.done.floor,
    }
    return Result("wallet", FLOOR_TEXT, judge("wallet", run.ratios), figures | run.figures, {})
