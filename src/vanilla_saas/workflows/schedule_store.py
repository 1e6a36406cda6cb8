"""Statements of the schedules of workflows: lists under row-level security, writes through the functions of 006."""

from typing import Any
from uuid import UUID

import asyncpg

LIST = """
select s.id, s.name, s.cron, s.time_zone, s.input, s.catch_up, s.enabled, s.user_id,
    coalesce(u.email, u.external_id) as payer, s.last_at, s.last_execution_id, e.status as last_status, s.last_error,
    vanilla.clock() as now
from public.workflow_schedules s
left join public.workflow_executions e on e.tenant_id = s.tenant_id and e.id = s.last_execution_id
left join public.users u on u.tenant_id = s.tenant_id and u.id = s.user_id
where s.tenant_id = $1 and s.workflow_id = $2 and ($3::text is null or s.name = $3)
order by s.name
"""
ZONE = """
select t.time_zone, vanilla.clock() as now from public.tenants t where t.tenant_id = $1 and t.id = $1
"""
SET = "select public.set_workflow_schedule($1, $2, $3, $4, $5, $6, $7, $8, $9)"
DELETE = "select public.delete_workflow_schedule($1, $2)"
Row = dict[str, Any]


async def schedules(
    connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID, name: str | None = None
) -> list[Row]:
    """Those of a workflow that the caller pays, or all of them for an admin, by name; `now` is the database's clock."""
    return [dict(row) for row in await connection.fetch(LIST, tenant_id, workflow_id, name)]


async def clock_of(connection: asyncpg.Connection, tenant_id: UUID) -> Row:
    """`now` by the database, and the `time_zone` of a tenant."""
    return dict(await connection.fetchrow(ZONE, tenant_id))


async def set_schedule(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    workflow_id: UUID,
    name: str,
    cron: str,
    *,
    time_zone: str | None,
    given: dict[str, Any],
    catch_up: str,
    enabled: bool,
    user_id: UUID | None,
) -> UUID:
    """`set_workflow_schedule`: the id of the schedule of a name, which is made or changed."""
    made: UUID = await connection.fetchval(
        SET, workflow_id, name, cron, time_zone, given, catch_up, enabled, user_id, tenant_id
    )
    return made


async def delete(connection: asyncpg.Connection, tenant_id: UUID, schedule_id: UUID) -> None:
    """`delete_workflow_schedule`."""
    await connection.execute(DELETE, schedule_id, tenant_id)
