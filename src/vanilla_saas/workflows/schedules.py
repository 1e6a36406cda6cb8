"""What a person does with the schedules of a workflow, whoever asks: see their next times, set one, end one.

What cron says and whether the input fits is looked at here, before anything is written; other rules are the database's.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.workflows import execution_store
from vanilla_saas.workflows import schedule_store as store
from vanilla_saas.workflows.clock import times_after
from vanilla_saas.workflows.drafts import Transaction
from vanilla_saas.workflows.executions import require_fit
from vanilla_saas.workflows.store import find

SHOWN = 3
"""Times that a schedule is shown with."""


async def schedules(
    connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID, name: str | None = None
) -> list[dict[str, Any]]:
    """As `schedule_store.schedules`, with the `next_times` of those that are enabled."""
    rows = await store.schedules(connection, tenant_id, workflow_id, name)
    for row in rows:
        row["next_times"] = _times(row) if row["enabled"] else []
        del row["now"]
    return rows


async def preview(
    connection: asyncpg.Connection, tenant_id: UUID, cron: str, time_zone: str | None, most: int = SHOWN
) -> list[datetime]:
    """The next times of a schedule that nobody has set, in UTC; without a time zone in the tenant's.

    Raises VanillaError `invalid_request`.
    """
    clock = await store.clock_of(connection, tenant_id)
    return times_after(cron, time_zone or clock["time_zone"], clock["now"], most)


async def put(
    transaction: Transaction,
    tenant_id: UUID,
    workflow: str,
    name: str,
    cron: str,
    *,
    time_zone: str | None = None,
    given: dict[str, Any] | None = None,
    catch_up: str = "one",
    enabled: bool = True,
    user_id: UUID | None = None,
) -> dict[str, Any]:
    """Sets the schedule of a name; `user_id` is who pays when it is not the caller, nor the owner for an operator.

    Raises VanillaError `invalid_request`, `invalid_input`, `not_found`, `forbidden`.
    """
    async with transaction() as connection:
        found = await find(connection, tenant_id, workflow)
        first, *_ = await preview(connection, tenant_id, cron, time_zone)
        schema = await execution_store.input_schema(connection, tenant_id, found["id"], None)
    # as it is started: with the time that has come
    await require_fit([schema], (given or {}) | {"scheduled_at": first.isoformat()}, "input")
    async with transaction() as connection:
        await store.set_schedule(
            connection, tenant_id, found["id"], name, cron, time_zone=time_zone, given=given or {},
            catch_up=catch_up, enabled=enabled, user_id=user_id,
        )  # fmt: skip
        (row,) = await schedules(connection, tenant_id, found["id"], name)
    return row


async def delete(connection: asyncpg.Connection, tenant_id: UUID, workflow: str, name: str) -> UUID:
    """Ends the schedule of a name; its id. Raises VanillaError `not_found`."""
    found = await find(connection, tenant_id, workflow)
    rows = await store.schedules(connection, tenant_id, found["id"], name)
    if not rows:
        raise VanillaError("not_found", "no such schedule", {"schedule": name})
    schedule_id: UUID = rows[0]["id"]
    await store.delete(connection, tenant_id, schedule_id)
    return schedule_id


def _times(row: dict[str, Any]) -> list[datetime]:
    """None of one that SQL alone has set and that is no cron: `last_error` says so when its time comes."""
    try:
        return times_after(row["cron"], row["time_zone"], row["now"], SHOWN)
    except VanillaError:
        return []
