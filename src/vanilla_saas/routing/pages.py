"""Pages of workers, for super admins: all of them, and one with its last hour and what happened to it."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.database.cursor import page_bounds, page_rows
from vanilla_saas.routing import store
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PlatformCaller

router = page_router()
EVENTS_SHOWN, MINUTES_DRAWN = 30, 60


@router.get("/workers")
async def workers(request: Request, caller: PlatformCaller, ended: bool = False) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.workers(connection, tenant_id)
        strategies = [row for row in await store.strategies(connection, tenant_id) if row["pool"]]
    live = [row for row in rows if row["stopped_at"] is None]
    return render(
        request, "routing/workers.html", rows=rows if ended else live, strategies=strategies, ended=ended,
        gone=len(rows) - len(live), slots=sum(row["capacity"] for row in live),
        taken=sum(row["in_flight"] for row in live), live=len(live),
        healthy=sum(row["health_score"] > 60 for row in live),
    )  # fmt: skip


@router.get("/workers/{worker_id}")
async def worker(
    request: Request, caller: PlatformCaller, worker_id: UUID, before: str = "", notice: str = ""
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        found = await store.worker(connection, tenant_id, worker_id)
        minutes = await store.metrics(connection, tenant_id, worker_id, MINUTES_DRAWN)
        events = await store.events(connection, tenant_id, worker_id, page_bounds(before, EVENTS_SHOWN))
    return render(
        request, "routing/worker.html", row=found, minutes=minutes, notice=notice, totals=totals(minutes),
        **page_rows(events, EVENTS_SHOWN),
    )  # fmt: skip


def totals(minutes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the minutes come to: steps, failures, milliseconds a step."""
    finished, failed = sum(m["finished"] for m in minutes), sum(m["failed"] for m in minutes)
    milliseconds = sum(m["latency_ms_sum"] for m in minutes)
    return {
        "finished": finished,
        "failed": failed,
        "mean_ms": round(milliseconds / (finished + failed)) if finished + failed else None,
        "in_flight_max": max((m["in_flight_max"] for m in minutes), default=0),
        "since": minutes[0]["minute"] if minutes else datetime.now(UTC),
    }


@router.post("/workers/{worker_id}/drain")
async def drain(
    request: Request,
    caller: PlatformCaller,
    worker_id: UUID,
    reason: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    async with acting(request, caller) as connection:
        await store.drain(connection, caller.identity.tenant_id, worker_id, reason)
    return redirect(request, f"/workers/{worker_id}?notice=drained")


ROOM = Room(
    "routing",
    "vanilla_saas.routing",
    router,
    (NavigationEntry("Platform", "Workers", "/workers", "workers", 34, "superadmin"),),
)
