"""Schedules of workflows over HTTP: when they start by themselves. The jobs of the installation are other schedules."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field

from vanilla_saas.tenancy.identity import CurrentCaller, acting
from vanilla_saas.web import SlugOrId
from vanilla_saas.workflows import schedules, store
from vanilla_saas.workflows.execution_models import Body, Status
from vanilla_saas.workflows.execution_routes import require_spender

router = APIRouter(prefix="/api/v1", tags=["workflows"])
ScheduleName = Annotated[str, Path(max_length=63, description="its name in the workflow")]
CatchUp = Literal["none", "one", "all"]
CRON = 'five fields: minute, hour, day, month, weekday, as "30 2 * * 1-5"'


class ScheduleBody(Body):
    cron: str = Field(max_length=200, description=CRON)
    time_zone: str | None = Field(None, max_length=100, description="as Europe/Vienna; left out: the tenant's")
    input: dict[str, Any] = Field(default_factory=dict, description="what each start gets, beside `scheduled_at`")
    catch_up: CatchUp = Field(
        "one", description="which missed times are started: none, one for all, all (the first 100)"
    )
    enabled: bool = True
    user_id: UUID | None = Field(None, description="who pays; admins only")


class WorkflowSchedule(BaseModel):
    id: UUID
    name: str
    cron: str
    time_zone: str
    input: dict[str, Any]
    catch_up: CatchUp
    enabled: bool
    user_id: UUID = Field(description="who pays")
    next_times: list[datetime] = Field(description="the next three; none of one that is not enabled")
    last_at: datetime | None = Field(description="the last time that was started")
    last_execution_id: UUID | None
    last_status: Status | None = Field(description="of that execution; null when it is deleted")
    last_error: str | None = Field(description="why its last time started nothing")


class WorkflowSchedules(BaseModel):
    data: list[WorkflowSchedule]


class ScheduleTimes(BaseModel):
    data: list[datetime]


@router.get("/workflows/{workflow}/schedules")
async def list_schedules(request: Request, caller: CurrentCaller, workflow: SlugOrId) -> WorkflowSchedules:
    """When a workflow starts by itself: own schedules, or all of them for an admin."""
    caller.require_scope("read")
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, tenant_id, workflow)
        rows = await schedules.schedules(connection, tenant_id, found["id"])
    return WorkflowSchedules(data=[WorkflowSchedule(**row) for row in rows])


@router.get("/workflows/{workflow}/schedule-times")
async def schedule_times(
    request: Request,
    caller: CurrentCaller,
    workflow: SlugOrId,
    cron: Annotated[str, Query(max_length=200, description=CRON)],
    time_zone: Annotated[str | None, Query(max_length=100, description="left out: the tenant's")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> ScheduleTimes:
    """The next times of a schedule before it is set; nothing is written."""
    caller.require_scope("read")
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        await store.find(connection, tenant_id, workflow)
        return ScheduleTimes(data=await schedules.preview(connection, tenant_id, cron, time_zone, limit))


@router.put("/workflows/{workflow}/schedules/{schedule}")
async def set_schedule(
    request: Request, caller: CurrentCaller, workflow: SlugOrId, schedule: ScheduleName, body: ScheduleBody
) -> WorkflowSchedule:
    """Makes or changes the schedule of a name; the first time is the next one after now.

    Its starts are paid by the caller, or by whom an admin names. An input that does not fit the latest version's
    schema is refused (422) by field.
    """
    await require_spender(request, caller)
    row = await schedules.put(
        lambda: acting(request, caller), caller.identity.tenant_id, workflow, schedule, body.cron,
        time_zone=body.time_zone, given=body.input, catch_up=body.catch_up, enabled=body.enabled, user_id=body.user_id,
    )  # fmt: skip
    return WorkflowSchedule(**row)


@router.delete("/workflows/{workflow}/schedules/{schedule}", status_code=204)
async def delete_schedule(request: Request, caller: CurrentCaller, workflow: SlugOrId, schedule: ScheduleName) -> None:
    """Ends a schedule; what it started stays."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        await schedules.delete(connection, caller.identity.tenant_id, workflow, schedule)
