"""Statements of levels: reads under row-level security, writes through the functions of 007."""

from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.levels.models import (
    Benefit,
    Feature,
    FeatureBody,
    LevelBody,
    Price,
    PriceBody,
    Restriction,
    RestrictionBody,
    Terms,
)

LEVELS = """
select v.id, v.slug, v.name, v.description, v.tier, v.is_default, v.status,
    (select count(*) from public.user_token_wallets w where w.tenant_id = v.tenant_id and w.level_id = v.id) as users
from public.levels v
where v.tenant_id = $1 and ($2::uuid is null or v.id = $2)
order by v.tier, v.slug
"""
FEATURES = """
select f.id, f.level_id, f.feature, f.name, f.category, f.enabled, f.usage_limit as "limit", f.period
from public.level_features f
where f.tenant_id = $1 and ($2::uuid is null or f.level_id = $2)
order by f.category, f.feature
"""
RESTRICTIONS = """
select r.level_id, r.type, r.amount, r.patterns
from public.level_restrictions r
where r.tenant_id = $1 and ($2::uuid is null or r.level_id = $2)
order by r.type
"""
PRICES = """
select p.id, p.level_id, p.cycle, p.currency, p.amount, p.trial_days, p.trial_credits, p.valid_from,
    nullif(p.valid_until, 'infinity') as valid_until
from public.level_pricing p
where p.tenant_id = $1 and ($2::uuid is null or p.level_id = $2) and p.valid_until > vanilla.clock()
order by p.currency, array_position(array['one_time', 'monthly', 'quarterly', 'yearly', 'lifetime'], p.cycle),
    p.valid_from
"""
BENEFITS = """
select b.level_id, b.text, b.highlighted
from public.level_benefits b
where b.tenant_id = $1 and ($2::uuid is null or b.level_id = $2)
order by b.position
"""
CHECK = "select public.check_feature($1, $2)"
CHECK_ALL = """
select public.check_feature($2, f.feature)
from (select distinct feature from public.level_features where tenant_id = $1) f
order by f.feature
"""
CONSUME = "select public.consume_feature($1, $2, $3, $4)"
SET_FEATURE = "select public.set_level_feature($1, $2, $3, $4, $5, $6, $7, $8)"
SET_PRICE = """
select public.set_level_price($1, $2, $3, $4, $5, $6, $7, coalesce($8, 'infinity'::timestamptz), $9, $10)
"""
FIND_LEVEL = """
select v.tenant_id, v.id
from public.tenants t
join public.levels v on v.tenant_id = t.id
where t.slug = $1 and (v.slug = $2 or v.id::text = lower($2))
"""


async def terms(
    connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID | None = None, *, counted: bool = True
) -> list[Terms]:
    """What the levels of a tenant, or one of them, are worth, by tier; `counted` without users for who sees only one.

    Raises VanillaError `not_found` for a level that is not there.
    """
    levels = await connection.fetch(LEVELS, tenant_id, level_id)
    if level_id is not None and not levels:
        raise VanillaError("not_found", "no such level", {"level_id": str(level_id)})
    features = await connection.fetch(FEATURES, tenant_id, level_id)
    restrictions = await connection.fetch(RESTRICTIONS, tenant_id, level_id)
    prices = await connection.fetch(PRICES, tenant_id, level_id)
    benefits = await connection.fetch(BENEFITS, tenant_id, level_id)
    return [
        Terms(
            **dict(level) | {"users": level["users"] if counted else None},
            features=[Feature(**row) for row in features if row["level_id"] == level["id"]],
            restrictions=[Restriction(**row) for row in restrictions if row["level_id"] == level["id"]],
            prices=[Price(**row) for row in prices if row["level_id"] == level["id"]],
            benefits=[Benefit(**row) for row in benefits if row["level_id"] == level["id"]],
        )
        for level in levels
    ]


async def check(connection: asyncpg.Connection, user_id: UUID, feature: str) -> dict[str, Any]:
    """`check_feature`."""
    state: dict[str, Any] = await connection.fetchval(CHECK, user_id, feature)
    return state


async def check_all(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> list[dict[str, Any]]:
    """`check_feature` for every feature that a level of the tenant names."""
    return [row[0] for row in await connection.fetch(CHECK_ALL, tenant_id, user_id)]


async def consume(
    connection: asyncpg.Connection, user_id: UUID, feature: str, amount: int, idempotency_key: str | None
) -> dict[str, Any]:
    """`consume_feature`. Raises VanillaError `limit_reached`, `forbidden`, `idempotency_key_reused`."""
    counted: dict[str, Any] = await connection.fetchval(CONSUME, user_id, feature, amount, idempotency_key)
    return counted


async def set_feature(
    connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID, feature: str, body: FeatureBody
) -> UUID:
    """`set_level_feature`: its id."""
    made: UUID = await connection.fetchval(
        SET_FEATURE, level_id, feature, body.limit, body.period, body.enabled, body.category, body.name, tenant_id
    )
    return made


async def delete_feature(connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID, feature: str) -> None:
    """`delete_level_feature`."""
    await connection.fetchval("select public.delete_level_feature($1, $2, $3)", level_id, feature, tenant_id)


async def set_restriction(
    connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID, kind: str, body: RestrictionBody
) -> UUID:
    """`set_level_restriction`: its id. Raises VanillaError `invalid_request` for a value of the wrong type."""
    made: UUID = await connection.fetchval(
        "select public.set_level_restriction($1, $2, $3, $4, $5)", level_id, kind, body.amount, body.patterns, tenant_id
    )
    return made


async def delete_restriction(connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID, kind: str) -> None:
    """`delete_level_restriction`."""
    await connection.fetchval("select public.delete_level_restriction($1, $2, $3)", level_id, kind, tenant_id)


async def set_price(connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID, body: PriceBody) -> UUID:
    """`set_level_price`: its id. Raises VanillaError `invalid_state` for one that overlaps."""
    made: UUID = await connection.fetchval(
        SET_PRICE,
        level_id,
        body.cycle,
        body.currency,
        body.amount,
        body.trial_days,
        body.trial_credits,
        body.valid_from,
        body.valid_until,
        body.replace,
        tenant_id,
    )
    return made


async def end_price(connection: asyncpg.Connection, tenant_id: UUID, price_id: UUID) -> None:
    """`end_level_price`, now."""
    await connection.fetchval("select public.end_level_price($1, p_tenant_id => $2)", price_id, tenant_id)


async def set_benefits(
    connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID, benefits: list[Benefit]
) -> None:
    """`set_level_benefits`: all of them, in order."""
    sent = [benefit.model_dump() for benefit in benefits]
    await connection.fetchval("select public.set_level_benefits($1, $2, $3)", level_id, sent, tenant_id)


async def set_level(connection: asyncpg.Connection, tenant_id: UUID, body: LevelBody) -> UUID:
    """`set_level`: its id."""
    made: UUID = await connection.fetchval(
        "select public.set_level($1, $2, $3, $4, $5, $6, $7)",
        body.slug,
        body.name,
        body.description,
        body.tier,
        body.is_default,
        tenant_id,
        body.is_template,
    )
    return made


async def delete_level(connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID) -> None:
    """`delete_level`. Raises VanillaError `invalid_state` for the default and for one that users hold."""
    await connection.fetchval("select public.delete_level($1, $2)", level_id, tenant_id)


async def price_list(database: Database, tenant: str) -> dict[str, Any]:
    """`public_pricing` of a tenant's slug, for anybody. Raises VanillaError `not_found`."""
    found: dict[str, Any] = await database.call("select vanilla.public_pricing($1)", tenant)
    return found


async def find_level(connection: asyncpg.Connection, tenant: str, name: str) -> tuple[UUID, UUID]:
    """(tenant id, level id) by slug or UUID, for the operator. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(FIND_LEVEL, tenant, name)
    if row is None:
        raise VanillaError("not_found", f"The tenant {tenant} has no level {name}.", hint="vanilla-saas levels list")
    return row["tenant_id"], row["id"]
