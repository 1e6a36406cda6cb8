"""What the runner promises besides throughput: each row is a ratio of two situations of the product in the same run.

Each situation has a database of its own, copied from the prepared one, so that both can be measured in turn.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
import orjson

from benchmarks import workflows_load, workflows_runner
from benchmarks.frame import BenchmarkError, Figure, middle
from benchmarks.processes import VANILLA_SAAS, environment
from benchmarks.wallet_pgbench import Pgbench, Slice
from benchmarks.workflows_runner import Tenant, register
from vanilla_saas.database.embedded import DATABASE, EmbeddedServer

CLAIM = 10
"""Steps of a claim that is timed."""
HANDLER_S = 0.005
"""How long a worker is busy with a batch, beside a flood."""
QUIET, WRITERS, LISTENERS = 20, 16, 100
CHANNEL = "vanilla_work"
CHAIN, SINGLE, WAITING, FLOOD = "chain", "single", "waiting", "flood"
STARTS = """\\set n random(:first, :last)
select start_workflow(workflow_id, '{}', p_user_id => user_id, p_tenant_id => tenant_id)
    from bench_targets where n = :n;
"""

REGISTERED = "select count(*) from worker_registry"
WAITED = """
select extract(epoch from s.started_at - e.started_at)::float8 * 1000 as ms
from workflow_executions e join workflow_steps s on s.tenant_id = e.tenant_id and s.execution_id = e.id and s.node = 1
where e.id = any ($1) and s.started_at is not null
"""
UNDER_WAY = "select count(*) from workflow_executions where id = any ($1) and finished_at is null"
TOOK = """
select extract(epoch from max(e.finished_at) - min(s.started_at))
from workflow_executions e join workflow_steps s on s.tenant_id = e.tenant_id and s.execution_id = e.id and s.node = 1
where e.id = any ($1)
"""

Found = tuple[dict[str, float], dict[str, Figure]]


class Missing(Exception):
    """A point that cannot be measured yet, and why."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run does."""

    rounds: int
    tenants: int
    claims: int
    """Timed in a slice: no more than a small part of the fewest pending steps in all slices of a run."""
    few: int
    many: int
    """Pending steps."""
    dead: int
    flood: int
    """Steps that the loud tenant has queued, in chains."""
    waiting: int
    seconds: int
    """Of a slice of starts."""


FULL = Size(3, 500, 40, 10_000, 1_000_000, 100_000, 100_000, 1_000_000, 5)
QUICK = Size(1, 50, 20, 2000, 20_000, 5000, 5000, 10_000, 2)


@dataclass(frozen=True, slots=True)
class Bench:
    """A server whose database is migrated and has tenants with workflows."""

    server: EmbeddedServer
    size: Size
    tenants: Sequence[Tenant]
    folder: Path

    async def copy(self, name: str, template: str = DATABASE) -> str:
        """Another database like it."""
        admin = await asyncpg.connect(self.server.dsn(database="postgres"))
        try:
            await admin.execute(f"create database {name} template {template}")
        finally:
            await admin.close()
        return name

    async def drop(self, *names: str) -> None:
        admin = await asyncpg.connect(self.server.dsn(database="postgres"))
        try:
            for name in names:
                await admin.execute(f"drop database {name} with (force)")
        finally:
            await admin.close()

    def runtime(self, database: str) -> str:
        return self.server.dsn("vanilla_runtime", database)

    async def load(self, database: str, tenants: Sequence[Tenant], workflow: str, total: int) -> None:
        """`total` executions that have only been started, as many of each tenant."""
        connection = await asyncpg.connect(self.server.dsn(database=database))
        try:
            begun = [execution for tenant in tenants for execution in await start(connection, tenant, workflow)]
            await workflows_load.copy(connection, begun, total)
        finally:
            await connection.close()


start = workflows_runner.start


async def pending(bench: Bench) -> Found:
    """A claim of ten with a million steps pending, by one with ten thousand."""
    names = {"few": bench.size.few, "many": bench.size.many}
    for name, total in names.items():
        await bench.load(await bench.copy(name), bench.tenants, SINGLE, total)
    found = await _claims(bench, list(names))
    await bench.drop(*names)
    figures: dict[str, Figure] = {f"pending_{name}": total for name, total in names.items()}
    return _compared("claim_many_to_few", found, "many", "few", figures)


async def dead_spread(bench: Bench) -> Found:
    """A claim beside dead rows of many tenants that an old snapshot keeps, by one without."""
    return await _dead(bench, "spread", bench.tenants)


async def dead_one(bench: Bench) -> Found:
    """The same where one tenant owns all rows, dead and alive."""
    return await _dead(bench, "one_tenant", bench.tenants[:1])


async def _dead(bench: Bench, form: str, tenants: Sequence[Tenant]) -> Found:
    clean, full = await bench.copy(f"clean_{form}"), await bench.copy(f"dead_{form}")
    await bench.load(clean, tenants, SINGLE, bench.size.few)
    # a row of the queue dies with each
    executions = -(-bench.size.dead // len(tenants)) * len(tenants)
    snapshot = await asyncpg.connect(bench.server.dsn(database=full))
    try:
        await snapshot.execute("begin isolation level repeatable read")
        await snapshot.fetchval(f"select count(*) from {workflows_load.EXECUTIONS}")
        await bench.load(full, tenants, SINGLE, executions)
        drained = await workflows_runner.drain(bench.runtime(full), executions, 100)
        await bench.load(full, tenants, SINGLE, bench.size.few)
        found = await _claims(bench, [clean, full])
    finally:
        await snapshot.close()
    await bench.drop(clean, full)
    return _compared(f"claim_dead_{form}_to_none", found, full, clean, {f"dead_{form}_rows": drained.outcomes})


async def approvals(bench: Bench) -> Found:
    """A claim beside a million executions that wait for a person, by one without."""
    none, waiting = await bench.copy("nobody_waits"), await bench.copy("many_wait")
    connection = await asyncpg.connect(bench.server.dsn(database=waiting))
    try:
        begun = [execution for tenant in bench.tenants for execution in await start(connection, tenant, WAITING)]
        await workflows_runner.settle(bench.runtime(waiting))
        await workflows_load.copy(connection, begun, bench.size.waiting)
    finally:
        await connection.close()
    for name in (none, waiting):
        await bench.load(name, bench.tenants, SINGLE, bench.size.few)
    found = await _claims(bench, [none, waiting])
    await bench.drop(none, waiting)
    return _compared("claim_waiting_to_none", found, waiting, none, {"waiting_approvals": bench.size.waiting})


async def fair(bench: Bench) -> Found:
    """Quiet tenants beside a loud one; first-in-first-out is the same work, all of it the loud tenant's."""
    loud, *others = bench.tenants
    await bench.load(await bench.copy(FLOOD), [loud], CHAIN, bench.size.flood // workflows_runner.STEPS)
    ways = {"fair": others[:QUIET], "fifo": [loud] * QUIET}
    waits: dict[str, list[float]] = {way: [] for way in ways}
    floods: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(bench.size.rounds):
        for way, quiet in ways.items():
            wait, flood = await _beside_the_flood(bench, await bench.copy(way, FLOOD), quiet)
            waits[way].append(wait)
            floods[way].append(flood)
            await bench.drop(way)
    await bench.drop(FLOOD)
    ratios = {
        "quiet_wait_fifo_to_fair": _middle_ratio(waits["fifo"], waits["fair"]),
        "flood_fair_to_fifo": _middle_ratio(floods["fair"], floods["fifo"]),
    }
    figures: dict[str, Figure] = {"flood_steps": bench.size.flood, "quiet_tenants": QUIET}
    for way in ways:
        figures |= {f"{way}_quiet_wait_s": middle(waits[way]), f"{way}_flood_s": middle(floods[way])}
    return ratios, figures


async def _beside_the_flood(bench: Bench, database: str, quiet: Sequence[Tenant]) -> tuple[float, float]:
    """Seconds until the last of the quiet is served, and until the flood is."""
    connection = await asyncpg.connect(bench.server.dsn(database=database))
    try:
        asked = {str(execution) for tenant in quiet for execution in await start(connection, tenant, CHAIN)}
    finally:
        await connection.close()
    ends = bench.size.flood // workflows_runner.STEPS + len(asked)
    drained = await workflows_runner.drain(bench.runtime(database), ends, CLAIM, HANDLER_S)
    await workflows_runner.check_ends(bench.server.dsn(database=database))
    served = [at for execution, at in drained.ended_s.items() if execution in asked]
    flood = [at for execution, at in drained.ended_s.items() if execution not in asked]
    if len(served) != len(asked) or len(flood) != ends - len(asked):
        raise BenchmarkError(f"{len(served)} quiet and {len(flood)} loud executions ended")
    return max(served), max(flood)


async def listeners(bench: Bench) -> Found:
    """Starts a second with a hundred sessions that listen for work, by those with none."""
    database = await bench.copy("listened")
    url = bench.server.dsn(database=database)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "create table bench_targets (n int primary key, workflow_id uuid, user_id uuid, tenant_id uuid)"
        )
        rows = [(n, t.workflows[SINGLE], t.user_id, t.id) for n, t in enumerate(bench.tenants[:QUIET], 1)]
        await connection.copy_records_to_table("bench_targets", records=rows)
    finally:
        await connection.close()
    pgbench = Pgbench(bench.server, bench.folder)
    wanted = Slice([STARTS], WRITERS, 1, QUIET, database)
    tps: dict[int, list[float]] = {0: [], LISTENERS: []}
    for number in range(bench.size.rounds):
        for count in list(tps)[:: -1 if number % 2 else 1]:
            async with AsyncExitStack() as stack:
                for _ in range(count):
                    listener = await asyncpg.connect(url)
                    stack.push_async_callback(listener.close)
                    await listener.add_listener(CHANNEL, lambda *_: None)
                # in a thread: the listeners read meanwhile
                measured = await asyncio.to_thread(pgbench.run, wanted, seconds=bench.size.seconds)
            tps[count].append(measured.tps)
    await bench.drop(database)
    figures: dict[str, Figure] = {"listeners": LISTENERS, "starts_per_s": middle(tps[0])}
    figures |= {"starts_listened_per_s": middle(tps[LISTENERS])}
    return {"starts_listeners_to_none": _middle_ratio(tps[LISTENERS], tps[0])}, figures


@asynccontextmanager
async def working(bench: Bench, *options: str) -> AsyncIterator[asyncpg.Connection]:
    """A worker in a process of its own, as people run it; yields a connection to its database."""
    command = [*VANILLA_SAAS, "worker", *options]
    connection = await asyncpg.connect(bench.server.dsn())
    before = await connection.fetchval(REGISTERED)
    with tempfile.TemporaryFile() as log:
        env = environment(bench.server.home)
        child = await asyncio.create_subprocess_exec(*command, env=env, stdout=log, stderr=log)
        try:
            async with asyncio.timeout(60):
                while await connection.fetchval(REGISTERED) == before:
                    if child.returncode is not None:
                        log.seek(0)
                        raise BenchmarkError(f"the worker did not start: {log.read().decode(errors='replace')[-2000:]}")
                    await asyncio.sleep(0.05)
            yield connection
        finally:
            child.terminate()
            await child.wait()
            await connection.close()


async def pick_up(bench: Bench) -> Found:
    """From the start of an execution to its first step in a worker's hands, by the database's clock."""
    count = 100 if bench.size is QUICK else 500
    started = []
    async with working(bench) as connection:
        await asyncio.sleep(2)  # it is idle: it looks once a second
        for n in range(count):
            await asyncio.sleep(random.uniform(0.02, 0.3))
            started += await start(connection, bench.tenants[n % len(bench.tenants)], SINGLE)
        await asyncio.sleep(1)
        waited = sorted(row["ms"] for row in await connection.fetch(WAITED, started))
    if len(waited) != count:
        raise BenchmarkError(f"{len(waited)} of {count} steps were picked up")
    found = {"pick_up_p50_ms": waited[count // 2], "pick_up_p99_ms": waited[int(count * 0.99) - 1]}
    return found, {"pick_ups": count}


async def with_worker(bench: Bench, chains: int) -> float:
    """Steps a second of chains that one worker computes, each expression in its evaluator."""
    connection = await asyncpg.connect(bench.server.dsn())
    try:
        share = -(-chains // QUIET)
        started = [e for tenant in bench.tenants[:QUIET] for e in await start(connection, tenant, CHAIN, share)]
    finally:
        await connection.close()
    async with working(bench, "--capacity", "100") as connection:
        while await connection.fetchval(UNDER_WAY, started):
            await asyncio.sleep(0.1)
        seconds = await connection.fetchval(TOOK, started)
    return len(started) * workflows_runner.STEPS / float(seconds)


async def _claims(bench: Bench, databases: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds of the median claim of each round; nothing waits for the disk, which would hide the rest."""
    found: dict[str, list[float]] = {database: [] for database in databases}
    urls = {database: bench.server.dsn(database=database) for database in databases}
    async with AsyncExitStack() as stack:
        workers = {d: await register(stack, bench.runtime(d), "bench-claims", durable=False) for d in databases}
        for worker in workers.values():  # plans and caches
            await _timed_claims(worker, 10)
        for number in range(bench.size.rounds):
            for database in list(databases)[:: -1 if number % 2 else 1]:
                await _vacuum(urls[database])
                found[database].append(middle(await _timed_claims(workers[database], bench.size.claims)))
    return found


async def _vacuum(url: str) -> None:
    """What the claims themselves left behind is a larger part of few steps than of many."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("vacuum", timeout=1800)
    finally:
        await connection.close()


async def _timed_claims(worker: workflows_runner.Worker, count: int) -> list[float]:
    """What is claimed stays claimed: a worker that is told of it and takes it back would be told of what is not so."""
    waits = []
    for _ in range(count):
        began = time.perf_counter()
        steps = await worker.tick([], CLAIM)
        waits.append((time.perf_counter() - began) * 1000)
        if len(steps) != CLAIM:
            raise BenchmarkError(f"a claim of {CLAIM} brought {len(steps)}")
    return waits


def _compared(name: str, found: dict[str, list[float]], above: str, below: str, figures: dict[str, Figure]) -> Found:
    for key, database in (("above", above), ("below", below)):
        figures[f"{name}_{key}_ms"] = middle(found[database])
    return {name: _middle_ratio(found[above], found[below])}, figures


def _middle_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return middle([one / two for one, two in zip(above, below, strict=True)])


async def make_tenants(connection: asyncpg.Connection, count: int) -> list[Tenant]:
    """Tenants with a user and the workflows, by the product's own functions."""
    made = []
    definitions = {
        CHAIN: workflows_runner.chain(),
        SINGLE: workflows_runner.chain(1),
        WAITING: workflows_runner.waiting(),
    }
    for number in range(count):
        tenant: UUID = await connection.fetchval("select create_tenant($1, 'Bench')", f"bench-{number}")
        user: UUID = await connection.fetchval(
            "select create_user($1, 'admin', p_must_change_password => false, p_tenant_id => $2)",
            f"bench-{number}@example.test", tenant,
        )  # fmt: skip
        made.append(
            Tenant(tenant, user, {n: await _publish(connection, tenant, user, n, definitions[n]) for n in definitions})
        )
    return made


async def _publish(connection: asyncpg.Connection, tenant: UUID, user: UUID, slug: str, definition: object) -> UUID:
    text = orjson.dumps(definition).decode()
    workflow: UUID = await connection.fetchval(
        "select (save_workflow($1, $2::text::jsonb, p_user_id => $3, p_tenant_id => $4) ->> 'id')::uuid",
        slug, text, user, tenant,
    )  # fmt: skip
    await connection.execute("select publish_workflow($1, null, null, $2)", workflow, tenant)
    return workflow
