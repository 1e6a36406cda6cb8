"""`/api/v1/schedules`: the platform's jobs, for super admins."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from vanilla_saas.operations import schedules_store as store
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting

router = APIRouter(prefix="/api/v1", tags=["schedules"])
Name = Annotated[str, Path(pattern="^[a-z][a-z0-9_]{0,99}$")]
State = Literal["waiting", "due", "running", "failing", "paused", "held"]


class Schedule(BaseModel):
    """A job and what its last run came to."""

    name: str
    description: str
    kind: Literal["sql", "python"] = Field(description="Run by the database, or by a serving process.")
    period_s: float
    enabled: bool
    state: State
    next_run_at: datetime
    last_run_at: datetime | None
    last_duration_ms: int | None
    last_result: dict[str, Any] | None
    last_error: str | None
    failures: int = Field(description="Since the last success.")
    progress: dict[str, Any] = Field(description="What a run in parts has come to so far.")
    held_until: datetime | None = Field(description="Until when it waits because the clock has leapt.")

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Schedule":
        return cls(period_s=row["period"].total_seconds(), **row)


class ScheduleList(BaseModel):
    data: list[Schedule]


@router.get("/schedules")
async def schedules(request: Request, caller: CurrentCaller) -> ScheduleList:
    """Every job with its state."""
    async with acting(request, caller, read_only=True) as connection:
        return ScheduleList(data=[Schedule.of(row) for row in await store.schedules(connection)])


@router.get("/schedules/{name}")
async def schedule(request: Request, caller: CurrentCaller, name: Name) -> Schedule:
    """One job."""
    async with acting(request, caller, read_only=True) as connection:
        return Schedule.of(await store.schedule(connection, name))


@router.post("/schedules/{name}/run", status_code=202)
async def run(request: Request, caller: CurrentCaller, name: Name) -> Schedule:
    """Ask for a run out of turn, of a paused job too; a process that runs schedules does it at once or within 30 s."""
    async with acting(request, caller) as connection:
        await store.request_run(connection, name)
        asked = Schedule.of(await store.schedule(connection, name))
    request.app.state.scheduler.wake()
    return asked


@router.post("/schedules/{name}/pause")
async def pause(request: Request, caller: CurrentCaller, name: Name) -> Schedule:
    """Run a job no more until it is resumed; one that runs in parts stops after the part."""
    return await _set_enabled(request, caller, name, False)


@router.post("/schedules/{name}/resume")
async def resume(request: Request, caller: CurrentCaller, name: Name) -> Schedule:
    """Run a paused job again; one that failed is tried at once."""
    found = await _set_enabled(request, caller, name, True)
    request.app.state.scheduler.wake()
    return found


async def _set_enabled(request: Request, caller: Caller, name: str, enabled: bool) -> Schedule:
    async with acting(request, caller) as connection:
        await store.set_enabled(connection, name, enabled)
        return Schedule.of(await store.schedule(connection, name))
