"""Statements of level analytics and of tenants' plans."""

from datetime import date, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.levels.analytics_models import LevelDay

DAYS = """
select a.day, a.level_id, a.level, a.users, a.active_users, a.new_users, a.upgraded, a.downgraded, a.churned,
    a.trials_ended, a.trials_converted, a.tokens_granted, a.tokens_spent, a.tokens_lapsed, a.run_rate, a.limit_hits,
    a.is_final, a.computed_at
from public.level_analytics a
left join public.levels v on v.tenant_id = a.tenant_id and v.id = a.level_id
where a.tenant_id = $1 and a.day between $2 and $3
order by a.day, v.tier, a.level
"""
SHOWN = 30
"""How many days are shown when none are named."""
TODAY = "select (vanilla.clock() at time zone t.time_zone)::date from public.tenants t where t.id = $1"


async def days(connection: asyncpg.Connection, tenant_id: UUID, first: date, last: date) -> list[LevelDay]:
    """The rows of a tenant from a day to another, both included, by day and tier; for admins and the operator."""
    return [LevelDay(**row) for row in await connection.fetch(DAYS, tenant_id, first, last)]


async def period(
    connection: asyncpg.Connection, tenant_id: UUID, first: date | None = None, last: date | None = None
) -> tuple[date, date]:
    """The days that are meant: without a last one until today where the tenant is, without a first one `SHOWN`."""
    last = last or await connection.fetchval(TODAY, tenant_id)
    return first or max(last, date(1, 2, 1)) - timedelta(days=SHOWN - 1), last


async def roll_up(connection: asyncpg.Connection, tenant_id: UUID | None, first: date, last: date) -> int:
    """`roll_up_level_analytics`: how many rows. Raises VanillaError `invalid_request` for days that are none."""
    rows: int = await connection.fetchval("select public.roll_up_level_analytics($1, $2, $3)", first, last, tenant_id)
    return rows


async def plan(connection: asyncpg.Connection, tenant_id: UUID) -> dict[str, Any]:
    """`tenant_plan`."""
    found: dict[str, Any] = await connection.fetchval("select public.tenant_plan($1)", tenant_id)
    return found


async def subscribe(connection: asyncpg.Connection, tenant_id: UUID, tier: str | None) -> dict[str, Any]:
    """`set_subscription_tier`. Raises VanillaError `forbidden`, `not_found`."""
    done: dict[str, Any] = await connection.fetchval("select public.set_subscription_tier($1, $2)", tenant_id, tier)
    return done
