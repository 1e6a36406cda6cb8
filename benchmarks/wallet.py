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

from benchmarks import wallet_batches, wallet_books, wallet_pgbench
from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.processes import temporary_home
from benchmarks.wallet_books import Done, Range
from benchmarks.wallet_pgbench import FLOOR_DATABASE, Measured, Pgbench, Slice
from benchmarks.wallet_points import ADMIN, FLOOR, HOT, SPREAD_FIRST, Batches, Point, points
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


FULL = Size(rounds=5, seconds=3, wallets=10_000)
QUICK = Size(rounds=1, seconds=1, wallets=1000)


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
            await wallet_books.close_books(run.url, run.server.dsn(database=FLOOR_DATABASE), run.done)
    return _report(run)


def _wanted(only: Sequence[str]) -> set[str]:
    known = {point.name for point in points(Range(0, 0))}
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
