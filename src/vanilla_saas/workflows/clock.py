"""Schedules of workflows: what cron says of a time zone; the database starts each time once."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.workflows import worker_store as store

MOST_AT_ONCE = 100
"""Missed times that are started when a schedule catches up on all."""
LATE = timedelta(minutes=5)
"""A time that is found later than this was missed."""


def times_after(cron: str, time_zone: str, after: datetime, most: int) -> list[datetime]:
    """The next times in UTC. In a night that skips an hour what falls into it comes right after, as Debian's cron does.

    Raises VanillaError `invalid_request`.
    """
    try:
        found = CronSim(cron, after.astimezone(ZoneInfo(time_zone)))
        return [time.astimezone(UTC) for time in islice(found, most)]
    except ZoneInfoNotFoundError:
        raise VanillaError(
            "invalid_request",
            f"there is no time zone {time_zone}",
            {"param": "time_zone"},
            "Name one as Europe/Vienna.",
        ) from None
    except (CronSimError, ValueError) as error:
        raise VanillaError(
            "invalid_request",
            f"{cron!r} is not a schedule: {error}.",
            {"param": "cron"},
            'Five fields: minute, hour, day, month, weekday, as "30 2 * * 1-5".',
        ) from None


async def start_due(database: Database) -> int:
    """Starts what the clock has brought, in this process or another one; returns how many executions."""
    started = 0
    for schedule in await database.call(store.DUE_SCHEDULES):
        seen = datetime.fromisoformat(schedule["next_at"])
        try:
            times, following = _due(schedule)
            problem = None
        except VanillaError as error:
            times, following, problem = [], None, error.message
        key = (UUID(schedule["tenant_id"]), UUID(schedule["id"]))
        started += await database.call(store.FIRE_SCHEDULE, *key, seen, times, following, problem)
    return started


def _due(schedule: Mapping[str, Any]) -> tuple[list[datetime], datetime | None]:
    """The times to start now, and the one after them; None when cron never comes again."""
    now = datetime.fromisoformat(schedule["now"])
    cron, time_zone = schedule["cron"], schedule["time_zone"]
    following = next(iter(times_after(cron, time_zone, now, 1)), None)
    if schedule["last_at"] is None and datetime.fromisoformat(schedule["next_at"]) not in times_after(
        cron, time_zone, datetime.fromisoformat(schedule["next_at"]) - timedelta(microseconds=1), 1
    ):
        return [], following  # it was made or changed just now: its first time is to come
    first = datetime.fromisoformat(schedule["next_at"])
    missed = [first, *(time for time in times_after(cron, time_zone, first, MOST_AT_ONCE - 1) if time <= now)]
    if schedule["catch_up"] == "all":
        return missed, following
    if schedule["catch_up"] == "none":
        return [time for time in missed[-1:] if now - time <= LATE], following
    return missed[-1:], following
