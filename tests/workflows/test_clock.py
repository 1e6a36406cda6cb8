"""Schedules of workflows: times in time zones, what was missed, each time once."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.workflows.hands import Room, workflow
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.workflows.clock import start_due, times_after

SET = "select set_workflow_schedule($1, 'nightly', $2, $3, $4, $5)"


@pytest.fixture(scope="module")
async def database(desk: Room, signer: ContextSigner) -> AsyncIterator[Database]:
    where = (desk.cluster.url("vanilla_app", desk.name), desk.cluster.url("vanilla_runtime", desk.name))
    opened = await Database.open(*where, signer, size=2)
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    ("cron", "zone", "after", "first"),
    [
        ("30 2 * * *", "UTC", "2026-03-01T02:30:00+00:00", "2026-03-02T02:30:00+00:00"),
        ("0 9 * * 1", "Europe/Vienna", "2026-07-01T00:00:00+00:00", "2026-07-06T07:00:00+00:00"),
        ("0 9 * * 1", "Europe/Vienna", "2026-12-01T00:00:00+00:00", "2026-12-07T08:00:00+00:00"),
        # the night that has no 02:30: right after it
        ("30 2 * * *", "Europe/Vienna", "2026-03-28T12:00:00+00:00", "2026-03-29T01:00:00+00:00"),
        # the night that has it twice: once
        ("30 2 * * *", "Europe/Vienna", "2026-10-24T12:00:00+00:00", "2026-10-25T00:30:00+00:00"),
    ],
)
def test_times_are_the_clock_s_of_the_time_zone(cron: str, zone: str, after: str, first: str) -> None:
    found = times_after(cron, zone, datetime.fromisoformat(after), 2)
    assert found[0] == datetime.fromisoformat(first)
    assert found[1] - found[0] > timedelta(hours=2)


@pytest.mark.parametrize("cron", ["61 * * * *", "* * *", "a b c d e", ""])
def test_what_is_no_cron_is_refused(cron: str) -> None:
    with pytest.raises(VanillaError, match="is not a schedule"):
        times_after(cron, "UTC", datetime.now(UTC), 1)


async def schedule(
    desk: Room, cron: str = "0 * * * *", catch_up: str = "one", **values: Any
) -> tuple[uuid.UUID, uuid.UUID]:
    shape = await desk.publish(workflow("a"))
    return shape, await desk.operator.fetchval(SET, shape, cron, "UTC", values, catch_up)


async def starts(desk: Room, shape: uuid.UUID) -> list[str]:
    rows = await desk.operator.fetch(
        "select input ->> 'scheduled_at' as at from workflow_executions where workflow_id = $1 order by id", shape
    )
    return [row["at"] for row in rows]


async def test_the_first_time_is_to_come(desk: Room, database: Database) -> None:
    shape, id_ = await schedule(desk)
    assert await start_due(database) == 0
    next_at = await desk.operator.fetchval("select next_at from workflow_schedules where id = $1", id_)
    assert timedelta() < next_at - datetime.now(UTC) <= timedelta(hours=1)
    assert (next_at.minute, await starts(desk, shape)) == (0, [])


@pytest.mark.parametrize(("catch_up", "hours"), [("none", []), ("one", [0]), ("all", [3, 2, 1, 0])])
async def test_what_was_missed_is_caught_up_as_the_schedule_says(
    desk: Room, database: Database, catch_up: str, hours: list[int]
) -> None:
    # half an hour past whatever the clock says now: none of the times is near
    last = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=30)
    shape, id_ = await schedule(desk, f"{last.minute} * * * *", catch_up, text="x")
    await start_due(database)
    first = last - timedelta(hours=3)
    await desk.operator.execute("update workflow_schedules set next_at = $2 where id = $1", id_, first)
    assert await start_due(database) == len(hours)
    assert await start_due(database) == 0
    wanted = [last - timedelta(hours=back) for back in hours]
    assert [datetime.fromisoformat(at) for at in await starts(desk, shape)] == wanted


async def test_a_time_is_started_once_by_many(desk: Room, database: Database) -> None:
    shape, id_ = await schedule(desk, "* * * * *")
    await start_due(database)
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    await desk.operator.execute("update workflow_schedules set next_at = $2 where id = $1", id_, minute)
    assert sum(await asyncio.gather(*(start_due(database) for _ in range(8)))) == 1
    assert len(await starts(desk, shape)) == 1


async def test_a_schedule_says_what_keeps_it_from_starting_and_goes_on(desk: Room, database: Database) -> None:
    shape, id_ = await schedule(desk, "* * * * *")
    await start_due(database)
    await desk.operator.fetchval("select retire_workflow($1)", shape)
    await desk.operator.execute(
        "update workflow_schedules set next_at = date_trunc('minute', now()) where id = $1", id_
    )
    assert await start_due(database) == 0
    row = await desk.operator.fetchrow("select * from workflow_schedules where id = $1", id_)
    assert (row["enabled"], row["last_error"]) == (True, "the workflow is retired")
    await desk.operator.fetchval("select publish_workflow($1)", shape)
    await desk.operator.execute(
        "update workflow_schedules set next_at = date_trunc('minute', now()) where id = $1", id_
    )
    assert await start_due(database) == 1
    row = await desk.operator.fetchrow("select * from workflow_schedules where id = $1", id_)
    assert row["last_error"] is None
    await desk.operator.execute("update workflow_schedules set cron = '61 * * * *', next_at = now() where id = $1", id_)
    await start_due(database)
    row = await desk.operator.fetchrow("select * from workflow_schedules where id = $1", id_)
    assert row["enabled"] is False
    assert "is not a schedule" in row["last_error"]


@pytest.mark.parametrize(
    ("cron", "zone", "catch_up", "message"),
    [
        ("* * *", "UTC", "one", "not valid"),
        ("* * * * *", "Mars/Base", "one", "no time zone"),
        ("* * * * *", "UTC", "some", "not valid"),
    ],
)
async def test_schedules_that_are_not_valid(desk: Room, cron: str, zone: str, catch_up: str, message: str) -> None:
    shape = await desk.publish(workflow("a"))
    with pytest.raises(asyncpg.PostgresError, match=message) as raised:
        await desk.operator.fetchval(SET, shape, cron, zone, {}, catch_up)
    assert raised.value.sqlstate == "VS400"


async def test_a_deleted_schedule_starts_nothing(desk: Room, database: Database) -> None:
    shape, id_ = await schedule(desk, "* * * * *")
    await desk.operator.fetchval("select delete_workflow_schedule($1)", id_)
    with pytest.raises(asyncpg.PostgresError, match="no such schedule"):
        await desk.operator.fetchval("select delete_workflow_schedule($1)", id_)
    assert (await start_due(database), await starts(desk, shape)) == (0, [])
