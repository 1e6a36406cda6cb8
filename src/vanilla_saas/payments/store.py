"""Every statement about payments: reads under row-level security, writes through the functions of 007.

`account`, `bind_customer` and `apply_event` run on the runtime pool; they prove themselves by an account's endpoint.
"""

from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.pool import Database

Rows = list[asyncpg.Record]

PRICES = """
select p.id, p.price_id, p.kind, p.name, p.level_id, l.name as level_name, p.tokens, p.currency, p.amount, p.status
from public.payment_prices p
left join public.levels l on l.tenant_id = p.tenant_id and l.id = p.level_id
where p.tenant_id = $1 and (p.status = 'active' or $2)
order by p.kind desc, p.currency, p.amount, p.price_id
"""
SUBSCRIPTIONS = """
select s.subscription_id, s.user_id, s.state, s.level_id, l.name as level_name, s.current_period_end,
    s.ends_at_period_end, s.past_due_since, s.grace_until, s.lapsed_at
from public.payment_subscriptions s
left join public.levels l on l.tenant_id = s.tenant_id and l.id = s.level_id
where s.tenant_id = $1 and s.user_id = $2
order by s.created_at desc
limit 20
"""
PAYMENTS = """
select p.id, p.user_id, p.cause, p.state, p.price_id, p.tokens, p.currency, p.amount, p.returned_amount,
    p.reversed_tokens, p.error, p.created_at, p.paid_at
from public.payments p
where p.tenant_id = $1 and p.user_id = $5 and (p.created_at, p.id) < ($2, $3)
order by p.created_at desc, p.id desc
limit $4
"""
TOP_UP = """
select t.price_id, p.name, p.tokens, p.currency, p.amount, t.threshold, t.monthly_ceiling, t.enabled, t.paused_reason,
    coalesce((select sum(q.amount) from public.payments q
        where q.tenant_id = t.tenant_id and q.user_id = t.user_id and q.cause = 'auto_top_up'
          and q.state in ('pending', 'succeeded')
          and q.created_at >= date_trunc('month', vanilla.clock() at time zone n.time_zone) at time zone n.time_zone
        ), 0)::bigint as spent_this_month
from public.payment_top_ups t
join public.payment_prices p on p.tenant_id = t.tenant_id and p.id = t.price_id
join public.tenants n on n.tenant_id = t.tenant_id and n.id = t.tenant_id
where t.tenant_id = $1 and t.user_id = $2
"""
ACCOUNT = """
select a.id, encode(a.endpoint, 'hex') as endpoint, a.status, a.secret_hint, a.stripe_account, a.livemode, a.grace_days
from public.payment_accounts a
where a.tenant_id = $1
"""
EVENTS = """
select e.event_id, e.type, e.outcome, e.created_at, e.received_at
from public.payment_events e
where e.tenant_id = $1
order by e.received_at desc, e.event_id
limit $2
"""


# with Stripe ------------------------------------------------------------------------------------------------------


async def account(database: Database, endpoint: bytes) -> dict[str, Any] | None:
    """The sealed secrets of an active account: `tenant_id`, `id`, `secret` and `webhook_secret` in Base64, or None."""
    found: dict[str, Any] | None = await database.call("select vanilla.payment_account($1)", endpoint)
    return found


async def bind_customer(database: Database, endpoint: bytes, customer_key: UUID, customer_id: str) -> str:
    """Keeps the customer that Stripe made for a user; the one that stands, when another was first."""
    bound: str = await database.call(
        "select vanilla.bind_payment_customer($1, $2, $3)", endpoint, customer_key, customer_id
    )
    return bound


async def apply_event(
    database: Database, endpoint: bytes, event: dict[str, Any], *, asked: bool = False
) -> dict[str, Any]:
    """What a verified event means: `event_id`, `outcome`, `replayed`. `asked`: with what Stripe answered just now."""
    applied: dict[str, Any] = await database.call(
        "select vanilla.apply_payment_event($1, $2, $3)", endpoint, event, asked
    )
    return applied


async def claim_top_ups(connection: asyncpg.Connection, limit: int) -> list[dict[str, Any]]:
    """Leased charges without the user, each with everything that Stripe is to be asked for."""
    claimed: list[dict[str, Any]] = await connection.fetchval("select vanilla.claim_top_ups($1)", limit)
    return claimed


async def finish_top_up(
    connection: asyncpg.Connection, claimed: dict[str, Any], intent: dict[str, Any] | None, error: str | None
) -> str | None:
    """The state of the charge; None when a webhook was first."""
    state: str | None = await connection.fetchval(
        "select vanilla.finish_top_up($1, $2, $3, $4, $5)",
        UUID(claimed["tenant_id"]),
        UUID(claimed["payment_id"]),
        UUID(claimed["lease_id"]),
        intent,
        error,
    )
    return state


async def account_of(connection: asyncpg.Connection, endpoint: bytes) -> dict[str, Any] | None:
    """The same as `account`, for the operator's connection of a job."""
    found: dict[str, Any] | None = await connection.fetchval("select vanilla.payment_account($1)", endpoint)
    return found


# what a user does -------------------------------------------------------------------------------------------------


async def begin_portal(connection: asyncpg.Connection) -> dict[str, Any]:
    begun: dict[str, Any] = await connection.fetchval("select public.begin_payment_portal()")
    return begun


async def begin_checkout(connection: asyncpg.Connection, price_id: UUID) -> dict[str, Any]:
    begun: dict[str, Any] = await connection.fetchval("select public.begin_checkout($1)", price_id)
    return begun


async def prices(connection: asyncpg.Connection, tenant_id: UUID, *, hidden: bool = False) -> Rows:
    rows: Rows = await connection.fetch(PRICES, tenant_id, hidden)
    return rows


async def subscriptions(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> Rows:
    """The newest twenty."""
    rows: Rows = await connection.fetch(SUBSCRIPTIONS, tenant_id, user_id)
    return rows


async def payments(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, bounds: tuple[Any, ...]) -> Rows:
    """Newest first; `bounds` as of `database.cursor`."""
    rows: Rows = await connection.fetch(PAYMENTS, tenant_id, *bounds, user_id)
    return rows


async def top_up(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> asyncpg.Record | None:
    row: asyncpg.Record | None = await connection.fetchrow(TOP_UP, tenant_id, user_id)
    return row


async def may_charge(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> bool:
    """Whether a payment method is kept that may be charged without the user."""
    found: bool = await connection.fetchval(
        "select exists (select from public.payment_customers c"
        " where c.tenant_id = $1 and c.user_id = $2 and c.payment_method is not null)",
        tenant_id,
        user_id,
    )
    return found


async def set_top_up(
    connection: asyncpg.Connection,
    price_id: UUID,
    threshold: int,
    monthly_ceiling: int,
    enabled: bool,
    user_id: UUID | None,
) -> None:
    await connection.execute(
        "select public.set_auto_top_up($1, $2, $3, $4, $5)", price_id, threshold, monthly_ceiling, enabled, user_id
    )


# what an admin sets -----------------------------------------------------------------------------------------------


async def own_account(connection: asyncpg.Connection, tenant_id: UUID) -> asyncpg.Record | None:
    """The tenant's account without its secrets."""
    row: asyncpg.Record | None = await connection.fetchrow(ACCOUNT, tenant_id)
    return row


async def set_account(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    account_id: UUID,
    endpoint: bytes,
    *,
    secret: bytes | None,
    secret_hint: str | None,
    webhook_secret: bytes | None,
    stripe_account: str | None,
    livemode: bool | None,
    grace_days: int | None,
    status: str | None,
) -> None:
    await connection.fetchval(
        "select public.set_payment_account($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        account_id,
        endpoint,
        secret,
        secret_hint,
        webhook_secret,
        stripe_account,
        livemode,
        grace_days,
        status,
        tenant_id,
    )


async def set_price(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    price_id: str,
    *,
    kind: str,
    name: str,
    currency: str,
    amount: int,
    tokens: int | None,
    level_id: UUID | None,
    status: str,
) -> UUID:
    made: UUID = await connection.fetchval(
        "select public.set_payment_price($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        price_id,
        kind,
        name,
        currency,
        amount,
        tokens,
        level_id,
        status,
        tenant_id,
    )
    return made


async def events(connection: asyncpg.Connection, tenant_id: UUID, limit: int) -> Rows:
    """The last events of the tenant's account, with what came of each."""
    rows: Rows = await connection.fetch(EVENTS, tenant_id, limit)
    return rows
