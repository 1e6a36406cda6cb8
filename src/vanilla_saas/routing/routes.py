"""Workers and routing over HTTP: admins see the tenant's, super admins at the platform the platform's."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request

from vanilla_saas.database.cursor import Page
from vanilla_saas.database.paging import Paging
from vanilla_saas.routing import store
from vanilla_saas.routing.models import (
    Decision,
    DecisionSummary,
    DrainBody,
    RouteBody,
    Routed,
    Slug,
    Status,
    Strategies,
    Strategy,
    StrategyBody,
    Worker,
    WorkerEvent,
    WorkerMinute,
    WorkerMinutes,
    Workers,
)
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting

router = APIRouter(prefix="/api/v1", tags=["routing"])


def _reads(caller: Caller) -> UUID:
    caller.require_scope("read")
    caller.require_admin()
    return caller.identity.tenant_id


@router.get("/workers")
async def workers(
    request: Request,
    caller: CurrentCaller,
    status: Annotated[Status | None, Query(description="Only these.")] = None,
    pool: Annotated[Slug | None, Query(description="Only those that serve it.")] = None,
) -> Workers:
    """Workers, those that live first; ended ones stay for retention.workers_days."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.workers(connection, tenant_id, status, pool)
    return Workers(data=[Worker(**row) for row in rows])


@router.get("/workers/{worker_id}")
async def worker(request: Request, caller: CurrentCaller, worker_id: UUID) -> Worker:
    """A worker as its last heartbeat left it."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        return Worker(**await store.worker(connection, tenant_id, worker_id))


@router.get("/workers/{worker_id}/events")
async def events(request: Request, caller: CurrentCaller, worker_id: UUID, paging: Paging) -> Page[WorkerEvent]:
    """Every transition of a worker with its reason, newest first."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.events(connection, tenant_id, worker_id, paging.bounds)
    return paging.page(rows, _event)


def _event(row: dict[str, Any]) -> WorkerEvent:
    return WorkerEvent(**row)


@router.get("/workers/{worker_id}/metrics")
async def metrics(
    request: Request,
    caller: CurrentCaller,
    worker_id: UUID,
    minutes: Annotated[int, Query(ge=1, le=1440, description="How far back.")] = 60,
) -> WorkerMinutes:
    """The minutes in which a worker did something, oldest first."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.metrics(connection, tenant_id, worker_id, minutes)
    return WorkerMinutes(data=[WorkerMinute(**row) for row in rows])


@router.post("/workers/{worker_id}/drain")
async def drain(request: Request, caller: CurrentCaller, worker_id: UUID, body: DrainBody) -> Worker:
    """Let a worker finish what it has and take no more; it learns so with its next heartbeat."""
    caller.require_scope("admin")
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        await store.drain(connection, tenant_id, worker_id, body.reason)
        return Worker(**await store.worker(connection, tenant_id, worker_id))


@router.get("/routing/strategies")
async def strategies(request: Request, caller: CurrentCaller) -> Strategies:
    """Strategies of the platform and of the tenant; of one slug the tenant's own is used."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.strategies(connection, caller.identity.tenant_id)
    return Strategies(data=[Strategy(**row) for row in rows])


@router.put("/routing/strategies/{slug}")
async def set_strategy(
    request: Request, caller: CurrentCaller, slug: Annotated[Slug, Path()], body: StrategyBody
) -> Strategy:
    """Make or replace a strategy of the tenant, or of the platform by a super admin there."""
    caller.require_scope("admin")
    async with acting(request, caller) as connection:
        made = await store.set_strategy(connection, caller.identity.tenant_id, slug, **body.model_dump())
    return Strategy(**made, own=True)


@router.post("/routing/decisions")
async def decide(request: Request, caller: CurrentCaller, body: RouteBody) -> Routed:
    """Route by a strategy and record the decision, to see what it would choose and why."""
    caller.require_scope("admin")
    async with acting(request, caller) as connection:
        decided = await store.route(
            connection, caller.identity.tenant_id, body.strategy, body.candidates, body.context, body.seed
        )
    return Routed(**decided)


@router.get("/routing/decisions")
async def decisions(request: Request, caller: CurrentCaller, paging: Paging) -> Page[DecisionSummary]:
    """Recorded decisions, newest first: of strategies that explain, and those that were asked for."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.decisions(connection, tenant_id, paging.bounds)
    return paging.page(rows, _decision)


def _decision(row: dict[str, Any]) -> DecisionSummary:
    return DecisionSummary(**row)


@router.get("/routing/decisions/{decision_id}")
async def decision(request: Request, caller: CurrentCaller, decision_id: UUID) -> Decision:
    """A decision with all that went in, in sentences, and whether routing it again gives the same."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        return Decision(**await store.explain(connection, tenant_id, decision_id))
