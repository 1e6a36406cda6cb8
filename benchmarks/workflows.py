"""The durable runner: its throughput against a bare queue and four peers, and what it promises under load.

Everything stands on one server. A round measures the product and each peer once, the floors before it and after the
last: a disk that others use drifts, so a round's floor is the mean of the two beside it. What the product's SQL does
not have yet, and peers that are not installed, are named and left out.
"""

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import asyncpg
import uvloop

from benchmarks import workflows_floor, workflows_peers, workflows_rows, workflows_runner
from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.processes import temporary_home
from benchmarks.wallets import check_durable
from benchmarks.workflows_floor import FLOORS, ONE_STATEMENT_100, TWO_COMMITS, Floor
from benchmarks.workflows_rows import Bench, Found, Missing
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.embedded import attach
from vanilla_saas.database.migrator import migrate
from vanilla_saas.settings import Settings

FLOOR = (
    "claim and complete on a bare table with SKIP LOCKED over 4 connections: two commits for one job, and one statement"
    " for 100; of the other rows the product itself without what the row adds"
)
SERVER = {"max_connections": "300", "shared_buffers": "1GB", "checkpoint_timeout": "1h", "max_wal_size": "16GB"}
THROUGHPUT = "throughput"
ROWS: dict[str, Callable[[Bench], Awaitable[Found]]] = {
    "pick_up": workflows_rows.pick_up,
    "pending": workflows_rows.pending,
    "dead_spread": workflows_rows.dead_spread,
    "dead_one_tenant": workflows_rows.dead_one,
    "fair": workflows_rows.fair,
    "approvals": workflows_rows.approvals,
    "listeners": workflows_rows.listeners,
}
NEEDS_RUNNER = "needs the runner's SQL"
TENANTS = 20
"""Over which the product's chains are spread."""


@dataclass(frozen=True, slots=True)
class Point:
    """One way to run the product's chains."""

    name: str
    batch: int
    chains: int
    quick: int
    floor: Floor
    against: tuple[str, ...] = ("dbos", "absurd")


POINTS = (
    Point("batch1", 1, 1000, 100, TWO_COMMITS),
    Point("batch100", 100, 10_000, 1000, ONE_STATEMENT_100, ("absurd",)),
)
JOBS = {1: (6000, 1000), 100: (200_000, 20_000)}
"""Of a floor's slice by its batch: in full and quick."""


@dataclass(slots=True)
class Run:
    """What is there, and what was found."""

    bench: Bench
    installed: workflows_peers.Installed
    quick: bool
    runner: bool
    found: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, name: str, rate: float) -> None:
        self.found.setdefault(name, []).append(rate)


def run(options: Options) -> Result:
    """The points, or those that `options.only` names. Raises BenchmarkError when a step is not done exactly once."""
    wanted = _wanted(options.only)
    installed = workflows_peers.find(options) if THROUGHPUT in wanted else workflows_peers.Installed({}, [])
    return uvloop.run(_run(options, wanted, installed))


def _wanted(only: tuple[str, ...]) -> list[str]:
    known = [THROUGHPUT, *ROWS]
    if unknown := set(only) - set(known):
        raise BenchmarkError(f"there is no point {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if not only or name in only]


async def _run(options: Options, wanted: list[str], installed: workflows_peers.Installed) -> Result:
    size = workflows_rows.QUICK if options.quick else workflows_rows.FULL
    with ExitStack() as stack:
        settings = Settings(_env_file=None, home=stack.enter_context(temporary_home()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        signer = load_signer(settings)
        server = stack.enter_context(attach(settings, SERVER))
        await migrate(server.dsn(), signer)
        runner, tenants = await _prepare(server.dsn(), size.tenants)
        run = Run(Bench(server, size, tenants, folder), installed, options.quick, runner)
        for name in wanted:
            if name == THROUGHPUT:
                await _throughput(run)
            else:
                await _row(run, name)
    run.notes += [f"not measured: {name}, which is not installed (--peers)" for name in installed.skipped]
    sizes: dict[str, Figure] = {"rounds": size.rounds, "tenants": size.tenants}
    return Result("workflows", FLOOR, judge("workflows", run.ratios), sizes | run.figures, {}, run.notes)


async def _prepare(url: str, count: int) -> tuple[bool, list[workflows_runner.Tenant]]:
    """Whether the database can run workflows; tenants, when it can."""
    connection = await asyncpg.connect(url)
    try:
        await check_durable(connection)
        runner = bool(await connection.fetchval(workflows_runner.EXISTS))
        tenants = await workflows_rows.make_tenants(connection, count) if runner else []
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()
    return runner, tenants


async def _row(run: Run, name: str) -> None:
    try:
        if not run.runner:
            raise Missing(NEEDS_RUNNER)
        ratios, figures = await ROWS[name](run.bench)
    except Missing as missing:
        run.notes.append(f"not measured: {name}, which {missing}")
    else:
        run.ratios |= ratios
        run.figures |= figures


async def _throughput(run: Run) -> None:
    server = run.bench.server
    for name, template in ((workflows_floor.DATABASE, "template1"), *((p.name, "vanilla_saas") for p in _ours(run))):
        await run.bench.copy(name, template)
    await workflows_floor.make(server.dsn(database=workflows_floor.DATABASE))
    for _ in range(run.bench.size.rounds):
        await _floors(run)
        for point in _ours(run):
            run.note(point.name, await _chains(run, point))
        for peer, python in run.installed.commands.items():
            run.note(peer.name, await workflows_peers.measure(server, peer, python, run.quick))
    await _floors(run)
    if run.runner:
        run.figures["with_worker_steps_per_s"] = await workflows_rows.with_worker(run.bench, 100 if run.quick else 1000)
    _compare(run)
    await run.bench.drop(workflows_floor.DATABASE, *(point.name for point in _ours(run)))


def _ours(run: Run) -> tuple[Point, ...]:
    return POINTS if run.runner else ()


async def _floors(run: Run) -> None:
    url = run.bench.server.dsn(database=workflows_floor.DATABASE)
    for floor in FLOORS:
        run.note(floor.name, await workflows_floor.drain(url, floor, JOBS[floor.batch][run.quick]))


async def _chains(run: Run, point: Point) -> float:
    """Steps a second of chains that are started before; what earlier rounds left is there too."""
    total = point.quick if run.quick else point.chains
    url = run.bench.server.dsn(database=point.name)
    connection = await asyncpg.connect(url)
    try:
        for tenant in run.bench.tenants[:TENANTS]:
            await workflows_runner.start(connection, tenant, workflows_rows.CHAIN, total // TENANTS)
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()
    drained = await workflows_runner.drain(run.bench.runtime(point.name), total, point.batch)
    if drained.steps != total * workflows_runner.STEPS:
        raise BenchmarkError(f"{drained.steps} steps were done for {total} chains")
    await workflows_runner.check_ends(url)
    run.figures[f"{point.name}_outcomes_per_step"] = drained.outcomes / drained.steps
    return drained.steps_per_s


def _compare(run: Run) -> None:
    for floor in FLOORS:
        rates = run.found[floor.name]
        run.figures |= {f"{floor.name}_jobs_per_s": middle(rates), f"{floor.name}_drift": rates[-1] / rates[0]}
    for point in _ours(run):
        run.figures[f"{point.name}_steps_per_s"] = middle(run.found[point.name])
        run.ratios[f"{point.name}_to_{point.floor.name}"] = _quotient(run, point.name, point.floor.name)
        for peer in point.against:
            if peer in run.found:
                run.ratios[f"{point.name}_to_{peer}"] = _quotient(run, point.name, peer)
    for one in run.installed.commands:
        run.figures[f"{one.name}_{one.unit}_per_s"] = middle(run.found[one.name])
        floor = ONE_STATEMENT_100 if one.name == "pgqueuer" else TWO_COMMITS
        run.figures[f"{one.name}_to_{floor.name}"] = _quotient(run, one.name, floor.name)
    missing = [point.name for point in POINTS if not run.runner]
    run.notes += [f"not measured: {name}, which {NEEDS_RUNNER}" for name in missing]


def _quotient(run: Run, above: str, below: str) -> float:
    """Median over the rounds; a floor is measured before and after each."""
    rates = run.found[below]
    if len(rates) > len(run.found[above]):
        rates = [(before + after) / 2 for before, after in pairwise(rates)]
    return middle([one / two for one, two in zip(run.found[above], rates, strict=True)])
