"""The page Schedules: what runs by itself, what it came to, and buttons to run, pause and resume; for super admins."""

from typing import Annotated, Literal

from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.operations import schedules_store as store
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PlatformCaller

router = page_router()
Act = Annotated[Literal["run", "pause", "resume"], Form()]


@router.get("/schedules")
async def schedules(request: Request, caller: PlatformCaller, notice: str = "") -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.schedules(connection)
    return render(request, "operations/schedules.html", rows=rows, notice=notice)


@router.post("/schedules/{name}")
async def change(request: Request, caller: PlatformCaller, name: str, act: Act) -> Response:
    async with acting(request, caller) as connection:
        if act == "run":
            await store.request_run(connection, name)
        else:
            await store.set_enabled(connection, name, act == "resume")
    request.app.state.scheduler.wake()
    return redirect(request, f"/schedules?notice={act}")


ROOM = Room(
    "operations",
    "vanilla_saas.operations",
    router,
    (NavigationEntry("Platform", "Schedules", "/schedules", "schedule", 33, "superadmin"),),
)
