"""Level analytics over HTTP, for admins; the tenant's own plan, which the platform sets."""

from datetime import date
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request

from vanilla_saas.levels import analytics_store as store
from vanilla_saas.levels.analytics_models import LevelDays, RolledUp, RollUpBody, Subscribed, TenantPlan, TierBody
from vanilla_saas.tenancy.identity import CurrentCaller, acting

router = APIRouter()


@router.get("/levels/analytics")
async def level_analytics(
    request: Request,
    caller: CurrentCaller,
    first: Annotated[date | None, Query(alias="from", description="30 days before the last")] = None,
    last: Annotated[date | None, Query(alias="to", description="today")] = None,
) -> LevelDays:
    """What happened on each level of the tenant, a row for each day and level that was rolled up."""
    caller.require_scope("read")
    caller.require_admin()
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        first, last = await store.period(connection, tenant_id, first, last)
        return LevelDays(data=await store.days(connection, tenant_id, first, last))


@router.post("/levels/analytics")
async def roll_up_level_analytics(request: Request, caller: CurrentCaller, body: RollUpBody) -> RolledUp:
    """Computes days again; the job does it once for every day that is over."""
    async with acting(request, caller) as connection:
        rows = await store.roll_up(connection, caller.identity.tenant_id, body.from_day, body.to_day)
    return RolledUp(rows=rows)


@router.get("/tenant-plan")
async def tenant_plan(request: Request, caller: CurrentCaller) -> TenantPlan:
    """The tenant's own plan with the platform: what it allows and what is used; for admins."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return TenantPlan(**await store.plan(connection, caller.identity.tenant_id))


@router.put("/tenants/{tenant_id}/subscription-tier")
async def set_subscription_tier(request: Request, caller: CurrentCaller, tenant_id: UUID, body: TierBody) -> Subscribed:
    """Puts a tenant on a plan of the platform, or on none; super admins at the platform."""
    async with acting(request, caller) as connection:
        return Subscribed(**await store.subscribe(connection, tenant_id, body.tier))
