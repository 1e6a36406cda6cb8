"""Statements of grants, holds, policies and proofs: reads under row-level security, writes by the functions of 002."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tokens.models import PolicyExceptions
from vanilla_saas.tokens.wallet_models import GrantBody, LevelPolicyBody

Rows = list[asyncpg.Record]

# what is left of an active grant depends on what was burned since it was last written
GRANTS = """
select g.id, g.user_id, g.kind, g.state, g.priority, g.amount, coalesce(b.remaining, g.remaining) as remaining,
    g.effective_at, nullif(g.expires_at, 'infinity') as expires_at, g.level_id, g.reason, g.void_reason,
    coalesce(g.metadata, '{}') as metadata, g.created_at
from public.user_token_grants g
left join vanilla.grants_after_burn($1, $2) b on b.id = g.id
where g.tenant_id = $1 and g.user_id = $2 and (g.created_at, g.id) < ($3, $4)
    and ($6::text is null or g.state = $6) and ($7::text is null or g.kind = $7)
order by g.created_at desc, g.id desc
limit $5
"""
OPEN_HOLDS = """
select h.id, h.user_id, h.state, h.amount, h.requested, h.settled, h.expires_at, h.reference_type, h.reference_id,
    h.execution_id, h.created_at, h.closed_at, h.call is not null as of_call, h.call ->> 'model' as model
from public.user_token_holds h
where h.tenant_id = $1 and h.user_id = $2 and h.state = 'open' and (h.created_at, h.id) < ($3, $4)
order by h.created_at desc, h.id desc
limit $5
"""
# closed holds have no index by user: the ledger has, and every hold begins there
HOLDS = """
select h.id, h.user_id, h.state, h.amount, h.requested, h.settled, h.expires_at, h.reference_type, h.reference_id,
    h.execution_id, h.created_at, h.closed_at, l.seq
from public.user_token_ledger l
join public.user_token_holds h on h.tenant_id = l.tenant_id and h.id = l.hold_id
where l.tenant_id = $1 and l.user_id = $2 and l.direction = 'reserve'
    and l.seq < coalesce($3, 9223372036854775807) and ($5::text is null or h.state = $5)
order by l.seq desc
limit $4
"""
LEVEL_POLICY = """
select p.level_id, p.base_allocation, p.monthly_allocation, p.period, p.period_anchor, p.rollover_percent,
    p.rollover_cap, p.monthly_cap, p.enforcement_mode, p.warning_percent
from public.level_token_policies p
where p.tenant_id = $1 and p.level_id = $2
"""


async def grants(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    user_id: UUID,
    bounds: tuple[datetime, UUID, int],
    state: str | None = None,
    kind: str | None = None,
) -> Rows:
    """A user's grants before (created_at, id), newest first."""
    rows: Rows = await connection.fetch(GRANTS, tenant_id, user_id, *bounds, state, kind)
    return rows


async def open_holds(
    connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, bounds: tuple[datetime, UUID, int]
) -> Rows:
    """A user's open holds before (created_at, id), newest first."""
    rows: Rows = await connection.fetch(OPEN_HOLDS, tenant_id, user_id, *bounds)
    return rows


async def holds(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    user_id: UUID,
    *,
    before_seq: int | None,
    limit: int,
    state: str | None = None,
) -> Rows:
    """A user's holds whose reserve stands before `before_seq` in the ledger, newest first, with that `seq`."""
    rows: Rows = await connection.fetch(HOLDS, tenant_id, user_id, before_seq, limit, state)
    return rows


async def give(
    connection: asyncpg.Connection, user_id: UUID, body: GrantBody, idempotency_key: str | None
) -> dict[str, Any]:
    """`grant_user_tokens`: the grant."""
    grant: dict[str, Any] = await connection.fetchval(
        "select public.grant_user_tokens($1, $2, $3, $4, coalesce($5, 'infinity'::timestamptz), $6, $7, $8, $9)",
        user_id,
        body.amount,
        body.kind,
        body.effective_at,
        body.expires_at,
        body.priority,
        body.reason,
        body.metadata,
        idempotency_key,
    )
    return finite(grant)


async def void(
    connection: asyncpg.Connection, grant_id: UUID, reason: str, idempotency_key: str | None
) -> dict[str, Any]:
    """`void_token_grant`: the grant as it is then."""
    grant: dict[str, Any] = await connection.fetchval(
        "select public.void_token_grant($1, $2, p_idempotency_key => $3)", grant_id, reason, idempotency_key
    )
    return finite(grant)


def finite(grant: dict[str, Any]) -> dict[str, Any]:
    """The grant with null where its end is never."""
    return grant | {"expires_at": None} if grant["expires_at"] == "infinity" else grant


async def settle(
    connection: asyncpg.Connection, hold_id: UUID, actual: int, reason: str, final: bool, idempotency_key: str | None
) -> dict[str, Any]:
    """`settle_user_tokens`: the last ledger entry."""
    entry: dict[str, Any] = await connection.fetchval(
        "select public.settle_user_tokens($1, $2, $3, p_final => $4, p_idempotency_key => $5)",
        hold_id,
        actual,
        reason,
        final,
        idempotency_key,
    )
    return entry


async def release(
    connection: asyncpg.Connection, hold_id: UUID, reason: str, idempotency_key: str | None
) -> dict[str, Any]:
    """`release_token_hold`: the ledger entry."""
    entry: dict[str, Any] = await connection.fetchval(
        "select public.release_token_hold($1, $2, p_idempotency_key => $3)", hold_id, reason, idempotency_key
    )
    return entry


async def extend(connection: asyncpg.Connection, hold_id: UUID, expires_at: datetime) -> datetime:
    """`extend_token_hold`: the new end."""
    until: datetime = await connection.fetchval("select public.extend_token_hold($1, $2)", hold_id, expires_at)
    return until


async def set_user_policy(connection: asyncpg.Connection, user_id: UUID, body: PolicyExceptions) -> None:
    """`set_user_token_policy`: all exceptions at once."""
    await connection.fetchval(
        "select public.set_user_token_policy($1, $2, $3, $4, $5, $6, $7)",
        user_id,
        body.monthly_allocation,
        body.rollover_percent,
        body.rollover_cap,
        body.monthly_cap,
        body.enforcement_mode,
        body.warning_percent,
    )


async def level_policy(connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID) -> asyncpg.Record:
    """The policy of a level, for admins. Raises VanillaError `not_found`, also where it may not be seen."""
    row: asyncpg.Record | None = await connection.fetchrow(LEVEL_POLICY, tenant_id, level_id)
    if row is None:
        raise VanillaError("not_found", "no such level, or it has no policy", {"level_id": str(level_id)})
    return row


async def set_level_policy(
    connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID, body: LevelPolicyBody
) -> None:
    """`set_level_token_policy`."""
    await connection.fetchval(
        "select public.set_level_token_policy($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        level_id,
        body.base_allocation,
        body.monthly_allocation,
        body.enforcement_mode,
        body.rollover_percent,
        body.rollover_cap,
        body.monthly_cap,
        body.period,
        body.period_anchor,
        body.warning_percent,
        tenant_id,
    )


async def balance_at(connection: asyncpg.Connection, user_id: UUID, at: datetime) -> int:
    """`token_balance_at`: available - borrowed at a moment."""
    balance: int = await connection.fetchval("select public.token_balance_at($1, $2)", user_id, at)
    return balance


async def statement_frame(
    connection: asyncpg.Connection, user_id: UUID, since: datetime, until: datetime
) -> asyncpg.Record:
    """`token_statement_frame`: after_seq, last_seq, opening_balance, closing_balance."""
    row: asyncpg.Record = await connection.fetchrow(
        "select * from public.token_statement_frame($1, $2, $3)", user_id, since, until
    )
    return row


async def statement_part(
    connection: asyncpg.Connection, user_id: UUID, since: datetime, until: datetime, after_seq: int, limit: int
) -> Rows:
    """`token_statement`: up to `limit` entries after `after_seq`, oldest first."""
    rows: Rows = await connection.fetch(
        "select * from public.token_statement($1, $2, $3, $4, $5)", user_id, since, until, after_seq, limit
    )
    return rows


async def now(connection: asyncpg.Connection) -> datetime:
    """The database's clock."""
    moment: datetime = await connection.fetchval("select vanilla.clock()")
    return moment


async def chain_ends(connection: asyncpg.Connection, part: int) -> AsyncIterator[Rows]:
    """`token_ledger_anchor` in parts, within the connection's transaction."""
    cursor = await connection.cursor(
        "select tenant_id, user_id, seq, encode(hash, 'hex') as hash from public.token_ledger_anchor()"
    )
    while rows := await cursor.fetch(part):
        yield rows


async def compare_anchor(connection: asyncpg.Connection, part: list[dict[str, Any]]) -> Rows:
    """`verify_token_anchor`: the chains of a part that are gone or were rewritten."""
    rows: Rows = await connection.fetch(
        "select tenant_id, user_id, seq, problem from public.verify_token_anchor($1)", part
    )
    return rows
