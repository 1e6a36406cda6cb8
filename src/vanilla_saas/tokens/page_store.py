"""What the wallet's pages read and write, under row-level security; amounts are tokens."""

from typing import Any
from uuid import UUID

import asyncpg

PAGE = 25
CHART_DAYS = 30
Rows = list[asyncpg.Record]


async def wallet(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> asyncpg.Record | None:
    """The wallet with its owner, its level and what was spent in this period; None when the caller may not see it."""
    row: asyncpg.Record | None = await connection.fetchrow(
        "select w.user_id, w.available_tokens, w.reserved_tokens, w.borrowed_tokens, w.spent_tokens, w.status,"
        " w.enforcement_mode, w.warn_below, w.period_start, w.next_reset_at, w.seq, l.name as level,"
        " coalesce(u.email, u.external_id) as owner, u.display_name,"
        " (select count(*) from user_token_holds h"
        "  where h.tenant_id = w.tenant_id and h.user_id = w.user_id and h.state = 'open') as holds,"
        " (select coalesce(sum("
        "    case e.direction when 'settle' then (e.metadata ->> 'actual')::bigint else -e.amount end), 0)"
        "  from user_token_ledger e where e.tenant_id = w.tenant_id and e.user_id = w.user_id"
        "  and e.direction in ('settle', 'debit') and e.created_at >= coalesce(w.period_start, '-infinity'))::bigint"
        " as spent_this_period"
        " from user_token_wallets w"
        " join users u on u.tenant_id = w.tenant_id and u.id = w.user_id"
        " left join levels l on l.tenant_id = w.tenant_id and l.id = w.level_id"
        " where w.tenant_id = $1 and w.user_id = $2",
        tenant_id,
        user_id,
    )
    return row


async def spent_by_day(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> Rows:
    """Tokens spent on each of the last thirty days (UTC), from the ledger: `day`, `at` in epoch seconds, `spent`."""
    rows: Rows = await connection.fetch(
        "with days as ("
        "  select d, d at time zone 'UTC' as starts_at from generate_series("
        "    date_trunc('day', vanilla.clock() at time zone 'UTC') - make_interval(days => $3 - 1),"
        "    date_trunc('day', vanilla.clock() at time zone 'UTC'), interval '1 day') d),"
        " spent as ("
        "  select date_trunc('day', e.created_at at time zone 'UTC') as d,"
        "    sum(case e.direction when 'settle' then (e.metadata ->> 'actual')::bigint else -e.amount end)::bigint as n"
        "  from user_token_ledger e where e.tenant_id = $1 and e.user_id = $2 and e.direction in ('settle', 'debit')"
        "    and e.created_at >= (select min(starts_at) from days) group by 1)"
        " select d::date as day, extract(epoch from starts_at)::bigint as at, coalesce(n, 0) as spent"
        " from days left join spent using (d) order by d",
        tenant_id,
        user_id,
        CHART_DAYS,
    )
    return rows


async def ledger(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, before: int | None) -> Rows:
    """Entries, newest first, with the model of a call; one more than a page when there are more."""
    rows: Rows = await connection.fetch(
        "select e.seq, e.created_at, e.direction, e.amount, e.reserved_amount, e.available_after, e.borrowed_after,"
        " e.reason, e.source, e.execution_id, (e.metadata ->> 'held')::bigint as held,"
        " (e.metadata ->> 'actual')::bigint as actual, x.model"
        " from user_token_ledger e"
        " left join ai_executions x on x.tenant_id = e.tenant_id and x.id = e.execution_id"
        " where e.tenant_id = $1 and e.user_id = $2 and ($3::bigint is null or e.seq < $3)"
        " order by e.seq desc limit $4",
        tenant_id,
        user_id,
        before,
        PAGE + 1,
    )
    return rows


async def execution_entries(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> Rows:
    """The entries of one model call, in order."""
    rows: Rows = await connection.fetch(
        "select e.seq, e.created_at, e.direction, e.amount, e.reserved_amount, e.available_after, e.reason"
        " from user_token_ledger e where e.tenant_id = $1 and e.execution_id = $2 order by e.seq",
        tenant_id,
        execution_id,
    )
    return rows


async def verify(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> tuple[int, Rows]:
    """How many entries the wallet says it has, and every defect that recomputing its chain finds."""
    entries: int = await connection.fetchval(
        "select seq from user_token_wallets where tenant_id = $1 and user_id = $2", tenant_id, user_id
    )
    rows: Rows = await connection.fetch("select seq, problem from verify_token_ledger($1) order by seq", user_id)
    return entries, rows


async def adjust(
    connection: asyncpg.Connection, user_id: UUID, amount: int, direction: str, reason: str, idempotency_key: str
) -> dict[str, Any]:
    entry: dict[str, Any] = await connection.fetchval(
        "select adjust_user_tokens($1, $2, $3, $4, 'console', p_idempotency_key => $5)",
        user_id,
        amount,
        direction,
        reason,
        idempotency_key,
    )
    return entry


async def preview_adjustment(
    connection: asyncpg.Connection, user_id: UUID, amount: int, direction: str, reason: str, idempotency_key: str
) -> dict[str, Any]:
    """What `adjust` would answer: it is done and undone, so no rule is written down twice."""
    attempt = connection.transaction()
    await attempt.start()
    try:
        return await adjust(connection, user_id, amount, direction, reason, idempotency_key)
    finally:
        await attempt.rollback()
