"""A worker registers, lives by its heartbeats, drains, stops or dies; each transition is written, none is taken back."""

import asyncio
import math
import uuid
from collections.abc import Awaitable
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.routing.conftest import TICK, Workers
from tests.routing.test_strategies import hypothesize

WAITING = """
select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
"""


async def refused(call: Awaitable[Any]) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await call
    return refusal.value


async def until_somebody_waits(workers: Workers) -> None:
    async with asyncio.timeout(20):
        while not await workers.connection.fetchval(WAITING):
            await asyncio.sleep(0.01)


async def test_a_worker_registers_becomes_active_drains_and_stops(workers: Workers) -> None:
    worker = await workers.register("w", pools=["default", "gpu"], labels={"gpu": "a100"}, region="eu", release="1.2")
    row = await workers.row(worker)
    assert (row["pools"], row["capacity"], row["labels"], row["region"]) == (
        ["default", "gpu"],
        10,
        {"gpu": "a100"},
        "eu",
    )
    assert (row["status"], row["health_score"]) == ("registered", 100)
    assert await workers.beat(worker) == {"status": "active", "health_score": 100, "allowance": 10}
    await workers.connection.execute("select vanilla.drain_worker($1)", worker)
    await workers.connection.execute("select vanilla.drain_worker($1)", worker)
    assert await workers.beat(worker, in_flight=2) == {"status": "draining", "health_score": 100, "allowance": 0}
    for _ in range(2):
        await workers.connection.execute("select vanilla.stop_worker($1)", worker)
    assert await workers.beat(worker) == {"status": "stopped", "health_score": 0, "allowance": 0}
    assert (await workers.row(worker))["stopped_at"] is not None
    assert await workers.events(worker) == [
        ("registered", None, "registered"),
        ("activated", "registered", "active"),
        ("draining", "active", "draining"),
        ("stopped", "draining", "stopped"),
    ]


async def test_what_a_worker_still_held_when_it_stopped_is_given_back(workers: Workers) -> None:
    worker, other = await workers.register(), await workers.register("other")
    await workers.claim(worker, "a")
    await workers.claim(other, "b")
    await workers.connection.execute("select vanilla.stop_worker($1)", worker)
    assert await workers.claimed() == [other]


@pytest.mark.parametrize(
    "wrong",
    [{"pools": []}, {"pools": None}, {"capacity": 0}, {"capacity": 10_001}, {"labels": ["x"]}, {"region": "x" * 101},
     {"pools": ["default", None]}, {"labels": {"x": "y" * 8192}}],
)  # fmt: skip
async def test_a_worker_that_makes_no_sense_is_refused(workers: Workers, wrong: dict[str, Any]) -> None:
    assert (await refused(workers.register(**wrong))).sqlstate == "VS400"
    assert (await refused(workers.register(""))).sqlstate == "VS400"


@pytest.mark.parametrize("report", [{"finished": -1}, {"failed": "x"}, {"in_flight": 1e13}, {"latency_ms_sum": []}])
async def test_a_report_that_makes_no_sense_is_refused(workers: Workers, report: dict[str, Any]) -> None:
    worker = await workers.register()
    assert (await refused(workers.beat(worker, **report))).sqlstate == "VS400"


# allowance --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("health", "n", "allowed"),
    [(100, 10, 10), (50, 10, 5), (7, 10, 1), (0, 10, 1), (80, 1, 1), (100, 0, 0), (100, -3, 0)],
)
async def test_a_worker_may_claim_its_share_by_health(workers: Workers, health: int, n: int, allowed: int) -> None:
    worker = await workers.register()
    await workers.beat(worker)
    await workers.connection.execute("update worker_registry set health_score = $2 where id = $1", worker, health)
    assert await workers.allowance(worker, n) == allowed


async def test_a_worker_may_claim_before_its_first_heartbeat_and_not_while_it_drains(workers: Workers) -> None:
    worker = await workers.register()
    assert await workers.allowance(worker) == 10
    await workers.connection.execute("select vanilla.drain_worker($1)", worker)
    assert await workers.allowance(worker) == 0


@pytest.mark.parametrize("end", ["stopped", "dead", "unknown"])
async def test_a_worker_that_has_ended_learns_it_when_it_asks_for_work(workers: Workers, end: str) -> None:
    worker = await workers.register() if end != "unknown" else uuid.uuid4()
    if end == "stopped":
        await workers.connection.execute("select vanilla.stop_worker($1)", worker)
    if end == "dead":
        await workers.silent(worker, 11)
        assert await workers.bury() == [worker]
    error = await refused(workers.allowance(worker))
    assert (error.sqlstate, f'"status": "{end}"' in error.detail) == ("VS409", True)
    assert (await workers.beat(worker))["status"] == ("stopped" if end == "stopped" else "dead")
    drain = await refused(workers.connection.execute("select vanilla.drain_worker($1)", worker))
    assert drain.sqlstate == "VS409"
    if end != "stopped":
        stop = await refused(workers.connection.execute("select vanilla.stop_worker($1)", worker))
        assert stop.sqlstate == "VS409"


# death ------------------------------------------------------------------------------------------------------------
async def test_a_silent_worker_is_declared_dead_and_its_work_given_back(workers: Workers) -> None:
    dead, late, other = [await workers.register(name) for name in ("dead", "late", "other")]
    await workers.beat(dead, in_flight=3)
    await workers.claim(dead, "a", "b")
    await workers.claim(other, "c")
    await workers.silent(dead, 10.5)
    await workers.silent(late, 9)
    assert await workers.bury() == [dead]
    assert await workers.bury() == []
    row = await workers.row(dead)
    assert (row["status"], row["health_score"], row["in_flight"]) == ("dead", 0, 0)
    assert (await workers.row(late))["status"] == "registered"
    assert (await workers.events(dead))[-1] == ("died", "active", "dead")
    assert await workers.claimed() == [other]


async def test_a_draining_worker_that_falls_silent_dies_too(workers: Workers) -> None:
    worker = await workers.register()
    await workers.connection.execute("select vanilla.drain_worker($1)", worker)
    await workers.silent(worker, 11)
    assert await workers.bury() == [worker]
    assert (await workers.events(worker))[-1] == ("died", "draining", "dead")


async def test_a_heartbeat_that_is_under_way_keeps_a_silent_worker_alive(workers: Workers) -> None:
    worker = await workers.register()
    await workers.silent(worker, 60)
    async with workers.another() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.fetchval("select vanilla.heartbeat_worker($1)", worker)
        assert await workers.bury() == []  # and does not wait
        await transaction.commit()
    assert await workers.bury() == []
    assert (await workers.row(worker))["status"] == "active"


async def test_a_heartbeat_that_comes_while_its_worker_is_buried_learns_it(workers: Workers) -> None:
    worker = await workers.register()
    await workers.silent(worker, 60)
    async with workers.another() as gravedigger, workers.another() as zombie:
        transaction = gravedigger.transaction()
        await transaction.start()
        assert await gravedigger.fetchval("select vanilla.bury_workers()") == [worker]
        beat = asyncio.create_task(zombie.fetchval("select vanilla.heartbeat_worker($1)", worker))
        await until_somebody_waits(workers)
        await transaction.commit()
        assert (await beat)["status"] == "dead"
    assert (await workers.row(worker))["status"] == "dead"


async def test_no_lease_outlives_a_burial_that_meets_a_claim(workers: Workers) -> None:
    worker = await workers.register()
    await workers.ready("late")
    await workers.silent(worker, 60)
    async with workers.another() as zombie:
        transaction = zombie.transaction()
        await transaction.start()
        assert (await zombie.fetchval(TICK, worker))["steps"]
        assert await workers.bury() == []  # the lease is not visible yet: it would be left behind
        assert (await workers.beat(worker))["status"] == "active"  # a heartbeat does not wait for a claim
        await workers.silent(worker, 60)
        await transaction.commit()
    assert await workers.bury() == [worker]
    assert await workers.claimed() == []


async def test_a_claim_that_comes_while_its_worker_is_buried_is_refused(workers: Workers) -> None:
    worker = await workers.register()
    await workers.silent(worker, 60)
    async with workers.another() as gravedigger, workers.another() as zombie:
        transaction = gravedigger.transaction()
        await transaction.start()
        await gravedigger.fetchval("select vanilla.bury_workers()")
        claim = asyncio.create_task(zombie.fetchval("select (vanilla.worker_allowance($1, 5)).allowed", worker))
        await until_somebody_waits(workers)
        await transaction.commit()
        assert (await refused(claim)).sqlstate == "VS409"


async def test_many_who_bury_at_once_bury_each_worker_once(workers: Workers) -> None:
    silent = [await workers.register(f"w{n}") for n in range(20)]
    for worker in silent:
        await workers.silent(worker, 60)
    connections = [await asyncpg.connect(workers.desk.cluster.url(database=workers.desk.name)) for _ in range(6)]
    found = await asyncio.gather(*(c.fetchval("select vanilla.bury_workers()") for c in connections))
    for connection in connections:
        await connection.close()
    assert sorted(worker for buried in found for worker in buried) == sorted(silent)


async def test_the_job_buries_and_forgets_those_that_ended_long_ago(workers: Workers) -> None:
    old, recent, silent = [await workers.register(name) for name in ("old", "recent", "silent")]
    for worker in (old, recent):
        await workers.connection.execute("select vanilla.stop_worker($1)", worker)
    await workers.connection.execute(
        "update worker_registry set stopped_at = now() - interval '31 days' where id = $1", old
    )
    await workers.silent(silent, 60)
    found = await workers.connection.fetchval("select vanilla.job_workers(20)")
    assert found == {"buried": 1, "forgotten": 1, "more": False}
    left = {
        row["name"]: row["status"] for row in await workers.connection.fetch("select name, status from worker_registry")
    }
    assert left == {"recent": "stopped", "silent": "dead"}


# health -----------------------------------------------------------------------------------------------------------
def healthy(success: float, latency: float | None, peers: float | None, gap: float) -> float:
    """As docs/design/routing.md says it."""
    speed = 1.0
    if latency is not None and peers is not None and latency > 2 * peers:
        speed = max(0.5, 2 * peers / latency)
    return 100 * success * speed * min(1.0, max(0.0, (10 - gap) / 5))


async def test_health_is_success_by_speed_by_punctuality(operator: asyncpg.Connection) -> None:
    def run(route: Any) -> None:
        @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.floats(0, 1), st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.floats(0, 600))
        def agrees(success: float, latency: float | None, peers: float | None, gap: float) -> None:
            asked = operator.fetchval("select vanilla.worker_health($1, $2, $3, $4)", success, latency, peers, gap)
            found = asyncio.run_coroutine_threadsafe(asked, route.loop).result(60)
            assert math.isclose(found, healthy(success, latency, peers, gap), abs_tol=0.5000001)

        agrees()

    await hypothesize(operator, run)


async def test_failures_make_a_worker_unhealthy_and_successes_well_again(workers: Workers) -> None:
    worker = await workers.register()
    told = await workers.beat(worker, finished=5, failed=5, latency_ms_sum=100)
    expected = 0.9**10 + 0.5 * (1 - 0.9**10)
    row = await workers.row(worker)
    assert math.isclose(row["success_ewma"], expected)
    assert told == {"status": "active", "health_score": round(100 * expected), "allowance": 6}
    assert (await workers.beat(worker, failed=20, latency_ms_sum=20))["health_score"] < 20
    assert (await workers.beat(worker, finished=60, latency_ms_sum=60))["health_score"] > 90
    assert [event for event, _, _ in await workers.events(worker)] == [
        "registered",
        "activated",
        "unhealthy",
        "recovered",
    ]


async def test_a_slow_sample_counts_at_once_and_a_fast_one_in_the_course_of_ten_seconds(workers: Workers) -> None:
    worker = await workers.register()
    for latency, gap, expected in ((100, 3, 100), (400, 3, 400), (100, 5, 100 + 300 * math.exp(-0.5))):
        await workers.silent(worker, gap)
        await workers.beat(worker, finished=2, latency_ms_sum=2 * latency)
        assert math.isclose((await workers.row(worker))["latency_ewma_ms"], expected, rel_tol=0.02)


async def test_a_worker_much_slower_than_its_peers_is_less_healthy(workers: Workers) -> None:
    quick = [await workers.register(f"quick{n}") for n in range(3)]
    elsewhere, slow = await workers.register("gpu", pools=["gpu"]), await workers.register("slow")
    for worker in (*quick, elsewhere):
        await workers.beat(worker, finished=1, latency_ms_sum=100)
    assert (await workers.beat(slow, finished=1, latency_ms_sum=150))["health_score"] == 100
    assert (await workers.beat(slow, finished=1, latency_ms_sum=250))["health_score"] == 80
    assert (await workers.beat(slow, finished=1, latency_ms_sum=9000))["health_score"] == 50
    # nobody else is in that pool
    assert (await workers.beat(elsewhere, finished=1, latency_ms_sum=9000))["health_score"] == 100


async def test_a_late_heartbeat_costs_health_until_the_next_one(workers: Workers) -> None:
    worker = await workers.register()
    await workers.silent(worker, 7.5)
    assert 48 <= (await workers.beat(worker))["health_score"] <= 50
    assert (await workers.beat(worker))["health_score"] == 100


async def test_huge_reports_stay_figures(workers: Workers) -> None:
    worker = await workers.register()
    await workers.silent(worker, 9)
    told = await workers.beat(worker, finished=10**12, failed=10**12, latency_ms_sum=10**12, in_flight=10**12)
    assert told["status"] == "active"
    await workers.connection.execute(
        "update worker_registry set heartbeat_at = now() + interval '1 hour' where id = $1", worker
    )
    assert (await workers.beat(worker))["status"] == "active"


# figures ----------------------------------------------------------------------------------------------------------
async def test_a_minute_of_a_worker_is_one_row_and_an_idle_one_none(workers: Workers) -> None:
    worker, idle = await workers.register(), await workers.register("idle")
    await workers.connection.execute(
        "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe"
        " as 'select date_trunc(''minute'', pg_catalog.clock_timestamp()) + interval ''30 s'''"
    )
    try:
        await workers.beat(worker, finished=3, failed=1, latency_ms_sum=400, in_flight=2)
        await workers.beat(worker, finished=2, latency_ms_sum=100, in_flight=7)
        await workers.beat(idle)
    finally:
        await workers.connection.execute(
            "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe"
            " as 'select pg_catalog.clock_timestamp()'"
        )
    rows = await workers.connection.fetch("select * from routing_metrics where worker_id = any($1)", [worker, idle])
    figures = "finished", "failed", "latency_ms_sum", "in_flight_max"
    assert [[row[name] for name in figures] for row in rows] == [[5, 1, 500, 7]]
    assert rows[0]["created_at"].second == 0


async def test_heartbeats_change_rows_in_place(workers: Workers) -> None:
    worker = await workers.register()
    await workers.connection.execute("select pg_stat_force_next_flush()")
    before = await _updates(workers)
    for _ in range(20):
        await workers.beat(worker, finished=1, latency_ms_sum=5)
    await workers.connection.execute("select pg_stat_force_next_flush()")
    updates, in_place = (new - old for new, old in zip(await _updates(workers), before, strict=True))
    assert updates >= 20
    assert in_place >= updates * 0.9  # a full page is left now and then


async def _updates(workers: Workers) -> tuple[int, int]:
    return tuple(
        await workers.connection.fetchrow(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'worker_registry'"
        )
    )


# rights -----------------------------------------------------------------------------------------------------------
async def test_the_login_of_workers_may_call_their_functions_and_read_nothing(workers: Workers) -> None:
    async with workers.another("vanilla_runtime") as runtime:
        worker = await runtime.fetchval("select vanilla.register_worker('r', '{default}', 4)")
        assert (await runtime.fetchval("select vanilla.heartbeat_worker($1)", worker))["status"] == "active"
        assert await runtime.fetchval("select (vanilla.worker_allowance($1, 4)).allowed", worker) == 4
        await runtime.fetchval("select vanilla.bury_workers()")
        for statement in (
            "select * from worker_registry",
            "select vanilla.route('{}', '[]')",
            "select vanilla.worker_candidates(vanilla.platform())",
            f"select public.drain_worker('{worker}')",
        ):
            assert (await refused(runtime.fetch(statement))).sqlstate == "42501"
        await runtime.fetchval("select vanilla.drain_worker($1)", worker)
        await runtime.fetchval("select vanilla.stop_worker($1)", worker)
