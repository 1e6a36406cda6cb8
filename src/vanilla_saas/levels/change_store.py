"""Statements of changes of level: reads under row-level security, writes through the functions of 007."""

from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.levels.change_models import (
    Change,
    ChangeBody,
    InvoiceLine,
    Path,
    PathBody,
    PreviewBody,
    Scheduled,
    Subscription,
)

PATHS = """
select p.id, p.from_level_id, f.slug as from_level, p.to_level_id, t.slug as to_level, p.discount_percent, p.timing,
    p.self_service
from public.level_upgrade_paths p
join public.levels f on f.tenant_id = p.tenant_id and f.id = p.from_level_id
join public.levels t on t.tenant_id = p.tenant_id and t.id = p.to_level_id
where p.tenant_id = $1
order by f.tier, f.slug, t.tier, t.slug
"""
SUBSCRIPTION = """
select u.id as user_id, l.slug as level, l.name as level_name, s.cycle, s.currency, coalesce(s.amount, 0) as amount,
    coalesce(s.trial, false) as trial, s.period_start, nullif(s.period_end, 'infinity') as period_end,
    c.terms as scheduled
from public.users u
join public.user_token_wallets w on w.tenant_id = u.tenant_id and w.user_id = u.id
left join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id
left join public.user_subscriptions s on s.tenant_id = u.tenant_id and s.user_id = u.id
left join public.level_changes c on c.tenant_id = u.tenant_id and c.user_id = u.id and c.state = 'scheduled'
where u.tenant_id = $1 and u.id = $2
"""
LINES = """
select i.id, i.change_id, l.slug as level, i.kind, i.cycle, i.currency, i.amount, i.period_start,
    nullif(i.period_end, 'infinity') as period_end, i.payment_reference, i.created_at
from public.level_invoice_lines i
left join public.levels l on l.tenant_id = i.tenant_id and l.id = i.level_id
where i.tenant_id = $1 and i.user_id = $2
order by i.created_at desc, i.id desc
limit 100
"""
SCHEDULED = """
select c.id as change_id, c.user_id, u.email, c.terms ->> 'from' as from_level, c.terms ->> 'to' as to_level,
    c.effective_at, (c.terms ->> 'due')::bigint as due, c.terms ->> 'currency' as currency
from public.level_changes c
join public.users u on u.tenant_id = c.tenant_id and u.id = c.user_id
where c.tenant_id = $1 and c.state = 'scheduled'
order by c.effective_at, c.id
limit 1000
"""
CHANGE = "select public.change_user_level($1, $2, $3, $4, $5, $6, $7, $8, $9)"
PREVIEW = "select public.preview_level_change($1, $2, $3, $4, $5, $6)"


async def paths(connection: asyncpg.Connection, tenant_id: UUID) -> list[Path]:
    """The upgrade paths of a tenant, by the tiers of their levels."""
    return [Path(**row) for row in await connection.fetch(PATHS, tenant_id)]


async def set_path(
    connection: asyncpg.Connection, tenant_id: UUID, from_level: UUID, to_level: UUID, body: PathBody
) -> UUID:
    """`set_upgrade_path`: its id. Raises VanillaError `invalid_state` for a circle that would pay the user."""
    made: UUID = await connection.fetchval(
        "select public.set_upgrade_path($1, $2, $3, $4, $5, $6)",
        from_level, to_level, body.discount_percent, body.timing, body.self_service, tenant_id,
    )  # fmt: skip
    return made


async def delete_path(connection: asyncpg.Connection, tenant_id: UUID, from_level: UUID, to_level: UUID) -> None:
    """`delete_upgrade_path`. Raises VanillaError `not_found`."""
    await connection.fetchval("select public.delete_upgrade_path($1, $2, $3)", from_level, to_level, tenant_id)


async def preview(connection: asyncpg.Connection, user_id: UUID, body: PreviewBody) -> Change:
    """`preview_level_change`. Raises VanillaError for what the change would be refused for."""
    told = await connection.fetchval(PREVIEW, user_id, body.level_id, body.when, body.cycle, body.currency, body.trial)
    return Change(**told)


async def change(
    connection: asyncpg.Connection, user_id: UUID, body: ChangeBody, idempotency_key: str | None
) -> Change:
    """`change_user_level`. Raises VanillaError `invalid_state`, `forbidden`, `idempotency_key_reused`."""
    told = await connection.fetchval(
        CHANGE, user_id, body.level_id, body.when, body.cycle, body.currency, body.trial, idempotency_key,
        body.payment_reference, body.billed_amount,
    )  # fmt: skip
    return Change(**told)


async def undo(connection: asyncpg.Connection, user_id: UUID) -> Change:
    """`undo_level_change`. Raises VanillaError `invalid_state` when none is scheduled (any more)."""
    return Change(**await connection.fetchval("select public.undo_level_change($1)", user_id))


async def subscription(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> Subscription | None:
    """What a user pays for, or None when there is no such user for the reader."""
    row = await connection.fetchrow(SUBSCRIPTION, tenant_id, user_id)
    if row is None:
        return None
    lines = await connection.fetch(LINES, tenant_id, user_id)
    found: dict[str, Any] = dict(row)
    return Subscription(**found, lines=[InvoiceLine(**line) for line in lines])


async def scheduled(connection: asyncpg.Connection, tenant_id: UUID) -> list[Scheduled]:
    """Scheduled changes that the reader may see, the next ones first."""
    return [Scheduled(**row) for row in await connection.fetch(SCHEDULED, tenant_id)]


async def level_id(connection: asyncpg.Connection, tenant_id: UUID, slug: str) -> UUID:
    """The level of a slug. Raises VanillaError `not_found`."""
    found: UUID | None = await connection.fetchval(
        "select l.id from public.levels l where l.tenant_id = $1 and l.slug = $2", tenant_id, slug
    )
    if found is None:
        raise VanillaError("not_found", f"no level {slug}", {"level": slug})
    return found
