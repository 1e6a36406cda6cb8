"""The rules of schedules: what is due, who runs it, what an error or a clock that leaps does to it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from tests.conftest import Cluster
from tests.operations.schedule_support import Time, own_time
from vanilla_saas.database.pool import _prepare

SEEDED = {
    "monthly_reset", "grants", "holds", "partitions", "log_export", "retention", "webhook_deliveries", "sign_ins",
    "closings", "feature_usage", "history", "level_analytics", "tenant_tokens", "payments", "auto_top_up", "workers",
    "level_changes", "workflow_history", "allocations",
}  # fmt: skip
COUNT = "return jsonb_build_object('rows', 1, 'more', nextval('public.parts') % 4 <> 0)"
WRITE = "insert into public.ran values (now())"
"""now() is the beginning of the transaction."""


@pytest.fixture(scope="module")
async def database(cluster: Cluster) -> AsyncIterator[Time]:
    async with own_time(cluster) as made:
        await made.connection.execute(
            "create sequence parts; grant usage on sequence parts to vanilla_definer;"
            " create table ran (at timestamptz); grant insert on ran to vanilla_definer"
        )
        yield made


@pytest.fixture
async def time(database: Time) -> AsyncIterator[Time]:
    """The clock is right at first, and none of the product's jobs is due but those a test makes due."""
    await database.move(timedelta(0))
    await database.connection.execute("alter sequence parts restart")
    await database.connection.execute(
        "update schedules set next_run_at = date_bin(period, vanilla.clock(), '2026-01-01 00:00+00') + period,"
        " enabled = true, failures = 0, last_error = null, held_since = null, requested_at = null, started_at = null,"
        " last_run_at = vanilla.clock()"
    )
    yield database
    for name in ("probe", "broken", "lent"):
        await database.forget(name)


async def due(time: Time) -> set[str]:
    found = await time.connection.fetchval("select vanilla.due_schedules()")
    return {job["name"] for job in found["due"]}


async def test_every_job_has_a_row_and_runs_at_the_first_tick_of_a_new_database(cluster: Cluster) -> None:
    async with own_time(cluster) as fresh:
        assert await due(fresh) == SEEDED
        while await fresh.connection.fetchval("select vanilla.tick()"):
            pass
        assert await due(fresh) <= {"log_export", "auto_top_up", "monthly_reset", "grants", "holds", "allocations"}
        paused = await fresh.connection.fetchval(
            "select array_agg(name order by name) from schedules where not enabled"
        )
        assert paused == ["backup", "backup_rehearsal"]  # until the operator says where to
        rows = await fresh.connection.fetch("select * from list_schedules() where kind = 'sql'")
        assert [row["name"] for row in rows if row["last_error"] or not row["last_run_at"]] == []
        # slots are whole periods from the first: jobs keep their hour
        assert (await fresh.job("retention"))["next_run_at"].strftime("%H:%M") == "03:15"


async def test_a_due_job_runs_in_parts_and_then_not_until_its_next_slot(time: Time) -> None:
    await time.add_job("probe", COUNT)
    parts = [await time.part("probe") for _ in range(5)]
    assert [(part["ran"], part["more"]) for part in parts] == [(True, True)] * 3 + [(True, False), (False, False)]
    job = await time.job("probe")
    assert job["last_result"] == {"rows": 4}
    assert job["state"] == "waiting"
    now = await time.connection.fetchval("select vanilla.clock()")
    assert now < job["next_run_at"] <= now + timedelta(hours=1)


async def test_a_run_that_was_stopped_between_parts_goes_on_with_what_it_had(time: Time) -> None:
    await time.add_job("probe", COUNT)
    await time.part("probe")
    await time.part("probe")
    assert (await time.job("probe"))["state"] == "running"
    assert (await time.job("probe"))["progress"] == {"rows": 2}
    assert await time.run("probe") == {"rows": 4}


async def test_many_sessions_at_once_run_a_due_job_once(cluster: Cluster, time: Time) -> None:
    await time.connection.execute("truncate ran")
    await time.add_job("probe", f"{WRITE}; return '{{\"rows\": 1}}'")
    sessions = [await asyncpg.connect(cluster.url("vanilla_runtime", time.name)) for _ in range(8)]
    try:
        for _ in range(5):
            await time.make_due("probe")
            await asyncio.gather(*(s.fetchval("select vanilla.run_schedule_part('probe')") for s in sessions))
    finally:
        for session in sessions:
            await session.close()
    assert await time.connection.fetchval("select count(*) from ran") == 5


async def test_while_one_session_runs_a_part_another_gets_none_and_when_it_is_killed_the_next_does(
    cluster: Cluster, time: Time
) -> None:
    await time.add_job("probe", COUNT)
    first = await asyncpg.connect(cluster.url("vanilla_runtime", time.name))
    await _prepare(first)
    await first.execute("begin")
    assert (await first.fetchval("select vanilla.run_schedule_part('probe')"))["ran"]
    assert (await time.part("probe")) == {"ran": False, "more": False}
    assert (await time.job("probe"))["state"] == "running"
    first.terminate()

    async def free() -> bool:
        return (await time.job("probe"))["state"] == "due"

    for _ in range(500):
        if await free():
            break
        await asyncio.sleep(0.01)
    assert await time.run("probe") == {"rows": 3}  # the part that was lost is not counted


async def test_a_job_that_fails_is_kept_and_tried_again_later_and_later_and_stops_no_other(time: Time) -> None:
    await time.add_job("broken", "return 1 / (p_limit - p_limit)", "30 s")
    await time.add_job("probe", COUNT)
    waits = []
    for failures in range(1, 10):
        await time.make_due("broken")
        part = await time.part("broken")
        assert (part["ran"], part["more"], part["error"]) == (True, False, "division by zero")
        job = await time.job("broken")
        assert (job["state"], job["failures"], job["last_error"]) == ("failing", failures, "division by zero")
        waits.append(round((job["next_run_at"] - job["last_run_at"]).total_seconds()))
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    await time.make_due("broken", "probe")
    while await time.connection.fetchval("select vanilla.tick()"):
        pass
    assert (await time.job("probe"))["last_result"] == {"rows": 4}
    await time.connection.execute("select set_schedule('broken', true)")
    assert (await time.job("broken"))["state"] == "due"


async def test_a_failed_part_leaves_nothing_of_itself_behind(time: Time) -> None:
    await time.connection.execute("truncate ran")
    await time.add_job("broken", f"{WRITE}; return 1 / (p_limit - p_limit)")
    assert (await time.part("broken"))["error"] == "division by zero"
    assert await time.connection.fetchval("select count(*) from ran") == 0


async def test_a_daily_job_that_failed_goes_back_to_its_hour(time: Time) -> None:
    await time.add_job("broken", "return 1 / (p_limit - p_limit)", "1 day")
    await time.connection.execute("update schedules set slots_from = '2026-01-01 03:15+00' where name = 'broken'")
    await time.part("broken")
    await time.change_job("broken", "return '{}'::jsonb")
    await time.make_due("broken")
    await time.run("broken")
    job = await time.job("broken")
    assert (job["state"], job["failures"], job["last_error"]) == ("waiting", 0, None)
    assert job["next_run_at"].strftime("%H:%M:%S") == "03:15:00"


async def test_after_downtime_a_job_runs_once_not_once_for_every_slot_it_missed(time: Time) -> None:
    await time.add_job("probe", COUNT)
    await time.run("probe")
    await time.move(timedelta(days=40))
    assert "probe" in await due(time)
    await time.run("probe")
    assert "probe" not in await due(time)
    assert (await time.job("probe"))["next_run_at"] > await time.connection.fetchval("select vanilla.clock()")


async def test_a_clock_that_goes_back_puts_no_job_off_for_longer_than_its_period(time: Time) -> None:
    await time.add_job("probe", COUNT)
    await time.move(timedelta(days=400))
    await time.run("probe")
    assert "probe" not in await due(time)
    await time.move(timedelta(0))
    assert "probe" in await due(time)
    await time.run("probe")
    now = await time.connection.fetchval("select vanilla.clock()")
    assert now < (await time.job("probe"))["next_run_at"] <= now + timedelta(hours=1)
    assert "probe" not in await due(time)


async def test_retention_does_not_believe_a_clock_that_leaps_ahead_until_it_has_stood_for_a_day(time: Time) -> None:
    kept = await time.log_rows("ai_executions", 0, 3)
    try:
        await time.move(timedelta(days=500))
        assert await time.part("retention") == {"ran": False, "more": False}
        job = await time.job("retention")
        assert job["state"] == "held"
        assert await time.part("retention") == {"ran": False, "more": False}
        assert kept in await time.months("ai_executions")
        # mended: nothing was lost, and it runs as if nothing had been
        await time.move(timedelta(0))
        await time.run("retention")
        assert (await time.job("retention"))["state"] == "waiting"
        assert kept in await time.months("ai_executions")
        # not mended: after a day it is believed
        await time.move(timedelta(days=500))
        await time.part("retention")
        await time.move(timedelta(days=501, minutes=1))
        assert (await time.run("retention"))["months_dropped"] >= 1
        assert kept not in await time.months("ai_executions")
    finally:
        await time.move(timedelta(0))
        await time.connection.execute("select vanilla.ensure_partitions(3)")


async def test_a_clock_that_leaps_again_while_retention_waits_makes_it_wait_again(time: Time) -> None:
    await time.move(timedelta(days=500))
    await time.part("retention")
    await time.move(timedelta(days=900))
    assert await time.part("retention") == {"ran": False, "more": False}
    assert (await time.job("retention"))["state"] == "held"


async def test_a_paused_job_rests_until_it_is_resumed_or_asked_for(time: Time) -> None:
    await time.add_job("probe", COUNT)
    await time.connection.execute("select set_schedule('probe', false)")
    assert (await time.job("probe"))["state"] == "paused"
    assert not (await time.part("probe"))["ran"]
    await time.connection.execute("select request_schedule('probe')")
    assert await time.run("probe") == {"rows": 4}
    assert (await time.job("probe"))["state"] == "paused"
    await time.make_due("probe")
    await time.connection.execute("select set_schedule('probe', true)")
    assert (await time.part("probe"))["ran"]


async def test_a_pause_stops_a_run_after_its_part_and_resuming_goes_on(time: Time) -> None:
    await time.add_job("probe", COUNT)
    await time.part("probe")
    await time.connection.execute("select set_schedule('probe', false)")
    assert not (await time.part("probe"))["ran"]
    await time.connection.execute("select set_schedule('probe', true)")
    assert await time.run("probe") == {"rows": 4}


async def test_a_job_asked_for_runs_out_of_turn_and_keeps_its_slot(time: Time) -> None:
    await time.add_job("probe", COUNT)
    await time.run("probe")
    slot = (await time.job("probe"))["next_run_at"]
    await time.connection.execute("select request_schedule('probe')")
    assert (await time.job("probe"))["state"] == "due"
    assert await time.run("probe") == {"rows": 4}
    assert (await time.job("probe"))["next_run_at"] == slot


async def test_a_job_without_a_function_and_a_row_of_a_tenant_run_nothing(time: Time) -> None:
    await time.add_job("probe", COUNT)
    await time.connection.execute("drop function vanilla.job_probe(integer)")
    assert "does not exist" in (await time.part("probe"))["error"]
    await time.connection.execute(
        "update schedules set tenant_id = $1 where name = 'probe'",
        (await time.connection.fetchval("select id from tenants where slug = 'default'")),
    )
    assert "probe" not in await due(time)
    assert await time.part("probe") == {"ran": False, "more": False}


async def test_parts_shrink_when_they_take_long_and_grow_when_they_do_not(time: Time) -> None:
    await time.add_job("probe", "perform pg_sleep(0.06); return '{\"more\": true}'")
    size = "select part_size from schedules where name = 'probe'"
    await time.part("probe")
    shrunk = await time.connection.fetchval(size)
    assert 1 <= shrunk <= 20 * 25 / 60
    await time.change_job("probe", "return '{\"more\": true}'::jsonb")
    await time.part("probe")
    assert await time.connection.fetchval(size) == 2 * shrunk
    await time.change_job("probe", "return '{}'::jsonb")
    await time.connection.execute("update schedules set part_size = 900 where name = 'probe'")
    await time.part("probe")
    # the next run begins small
    assert await time.connection.fetchval(size) == 20


@pytest.mark.parametrize("period", ["0 s", "1 month", "1 year", "400 days", "-1 hour"])
async def test_a_period_that_is_none_is_refused(time: Time, period: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await time.connection.execute("select set_schedule('holds', null, $1::text::interval)", period)
    assert refusal.value.sqlstate == "VS400"
    assert (await time.job("holds"))["period"] == timedelta(seconds=30)


async def test_a_run_is_recorded_by_the_session_that_holds_it_and_by_no_other(cluster: Cluster, time: Time) -> None:
    await time.add_python_job("lent")
    finish = "select vanilla.finish_schedule('lent', 5, '{\"rows\": 1}')"
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await time.connection.execute(finish)
    assert refusal.value.sqlstate == "VS409"
    async with time.connection.transaction():
        assert await time.connection.fetchval("select vanilla.begin_schedule('lent')")
        other = await asyncpg.connect(cluster.url("vanilla_runtime", time.name))
        assert not await other.fetchval("select vanilla.begin_schedule('lent')")
        with pytest.raises(asyncpg.PostgresError):
            await other.execute(finish)
        await other.close()
        await time.connection.execute(finish)
    assert (await time.job("lent"))["last_result"] == {"rows": 1}


async def test_pg_cron_gets_one_line_that_runs_the_jobs_and_commits_between_parts(time: Time) -> None:
    """The extension is not in the embedded server: a schema with its two functions and its table stands for it."""
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await time.connection.fetchval("select vanilla.use_pg_cron()")
    assert refusal.value.sqlstate == "VS409"
    await time.connection.execute("""
        create schema cron;
        create table cron.job (jobname text primary key, schedule text, command text);
        create function cron.schedule(job_name text, schedule text, command text) returns bigint language sql as
            $$ insert into cron.job values ($1, $2, $3) on conflict (jobname) do update set command = excluded.command;
               select 1::bigint $$;
        create function cron.unschedule(job_name text) returns boolean language sql as
            $$ delete from cron.job where jobname = $1 returning true $$;
    """)
    try:
        for _ in range(2):
            await time.connection.execute("select vanilla.use_pg_cron()")
        line = await time.connection.fetchrow("select * from cron.job")
        assert (line["jobname"], line["schedule"]) == ("vanilla_saas", "* * * * *")
        await time.add_job("probe", f"{WRITE}; {COUNT}")
        await time.connection.execute("truncate ran; set role vanilla_operator")
        await time.connection.execute(line["command"])
        await time.connection.execute("reset role")
        # four parts in four transactions
        assert await time.connection.fetchval("select count(distinct at) from ran") == 4
        assert (await time.job("probe"))["last_result"] == {"rows": 4}
        await time.connection.execute("select vanilla.use_pg_cron(false)")
        assert await time.connection.fetchval("select count(*) from cron.job") == 0
    finally:
        await time.connection.execute("reset role; drop schema cron cascade")
