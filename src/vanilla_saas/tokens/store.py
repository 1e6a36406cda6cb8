"""The wallet's statements: reads under row-level security, writes through the functions of 002."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.coalescer import Coalescer, Function
from vanilla_saas.database.errors import VanillaError, from_parts
from vanilla_saas.tokens.models import (
    Adjustment,
    BatchedAdjustment,
    Entry,
    Execution,
    Grant,
    Level,
    LevelWithPolicy,
    Policy,
    Problem,
    UserPolicy,
    Verification,
    Wallet,
)

WALLET = """
select w.user_id, w.status, w.available_tokens, w.reserved_tokens, w.borrowed_tokens, w.spent_tokens, w.seq,
    w.period_start, w.next_reset_at, w.enforcement_mode, w.warn_below,
    v.id as level_id, v.slug as level_slug, v.name as level_name
from public.user_token_wallets w
left join public.levels v on v.tenant_id = w.tenant_id and v.id = w.level_id
where w.tenant_id = $1 and w.user_id = $2
"""
REFRESH = """
select public.refresh_token_wallet(w.user_id)
from public.user_token_wallets w
where w.tenant_id = $1 and w.user_id = $2 and w.next_event_at <= vanilla.clock()
"""
GRANTS = """
select g.id, g.kind, g.amount, g.remaining, g.effective_at, nullif(g.expires_at, 'infinity') as expires_at
from vanilla.grants_after_burn($1, $2) g
where g.remaining > 0
order by g.priority, g.expires_at, g.id
"""
LEDGER = """
select seq, id, created_at, direction, amount, reserved_amount, available_after, reserved_after, borrowed_after, reason,
    source, reference_type, reference_id, execution_id, hold_id, grant_id, actor_id, metadata,
    encode(hash, 'hex') as hash
from public.user_token_ledger
where tenant_id = $1 and user_id = $2 and seq < coalesce($3, 9223372036854775807)
    and ($4::text is null or direction = $4)
order by seq desc
limit $5
"""
LEDGER_OF_EXECUTION = """
select seq, id, created_at, direction, amount, reserved_amount, available_after, reserved_after, borrowed_after, reason,
    source, reference_type, reference_id, execution_id, hold_id, grant_id, actor_id, metadata,
    encode(hash, 'hex') as hash
from public.user_token_ledger
where tenant_id = $1 and user_id = $2 and seq < coalesce($3, 9223372036854775807)
    and ($4::text is null or direction = $4)
    and execution_id = $6
order by seq desc
limit $5
"""
EXECUTIONS_OF_TENANT = """
select id, created_at, user_id, api_key_id, provider, model, status, error_code, input_tokens, output_tokens,
    cached_input_tokens, reasoning_tokens, charged_tokens, cost_micros, latency_ms, first_token_ms, streamed,
    usage_estimated, request_id
from public.ai_executions
where tenant_id = $1
    and (created_at, id)
        < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
order by created_at desc, id desc
limit $4
"""
EXECUTIONS_OF_USER = """
select id, created_at, user_id, api_key_id, provider, model, status, error_code, input_tokens, output_tokens,
    cached_input_tokens, reasoning_tokens, charged_tokens, cost_micros, latency_ms, first_token_ms, streamed,
    usage_estimated, request_id
from public.ai_executions
where tenant_id = $1 and user_id = $5
    and (created_at, id)
        < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
order by created_at desc, id desc
limit $4
"""
LEVELS = """
select v.id, v.slug, v.name, v.description, v.tier, v.is_default, v.status, p.id as policy_id, p.base_allocation,
    p.monthly_allocation, p.period, p.period_anchor, p.rollover_percent, p.rollover_cap, p.monthly_cap,
    p.enforcement_mode, p.warning_percent
from public.levels v
left join public.level_token_policies p on p.tenant_id = v.tenant_id and p.level_id = v.id
where v.tenant_id = $1
order by v.tier, v.slug
"""
ADJUST = """
select public.adjust_user_tokens($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, coalesce($11, 'infinity'::timestamptz))
"""
ADJUST_BY_KEY = Function(
    "adjust",
    "select vanilla.adjust_by_key($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    (
        *("key_hash", "user_id", "amount", "direction", "reason", "source", "reference_type", "reference_id"),
        *("execution_id", "metadata", "idempotency_key", "expires_at", "request_id", "client_ip"),
    ),
)
ADJUST_BATCH = "select public.adjust_user_tokens_batch($1, $2)"
FIND_USER = """
select u.tenant_id, u.id
from public.tenants t
join public.users u on u.tenant_id = t.id
where t.slug = $1 and u.status <> 'deleted'
    and (u.email = lower($2) or u.external_id = $2 or u.id::text = lower($2))
"""
FIND_LEVEL = """
select v.id
from public.tenants t
join public.levels v on v.tenant_id = t.id
where t.slug = $1 and (v.slug = $2 or v.id::text = lower($2))
"""


async def refresh_wallet(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> None:
    """`refresh_token_wallet` when something is due: what is read next is what the next operation would find."""
    await connection.execute(REFRESH, tenant_id, user_id)


async def read_wallet(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> Wallet:
    """The wallet with its open grants. Raises VanillaError `not_found`, also for users the caller may not see."""
    row = await connection.fetchrow(WALLET, tenant_id, user_id)
    if row is None:
        raise VanillaError("not_found", "no such user", {"user_id": str(user_id)})
    level = row["level_id"]
    below = row["warn_below"]
    return Wallet(
        user_id=row["user_id"],
        status=row["status"],
        available=row["available_tokens"],
        reserved=row["reserved_tokens"],
        borrowed=row["borrowed_tokens"],
        spent=row["spent_tokens"],
        level=Level(id=level, slug=row["level_slug"], name=row["level_name"]) if level else None,
        period_start=row["period_start"],
        next_reset_at=row["next_reset_at"],
        enforcement_mode=row["enforcement_mode"],
        warn_below=below,
        warning=row["borrowed_tokens"] > 0 or (below is not None and row["available_tokens"] < below),
        policy=await read_policy(connection, user_id),
        grants=[Grant(**grant) for grant in await connection.fetch(GRANTS, tenant_id, user_id)],
    )


async def read_policy(connection: asyncpg.Connection, user_id: UUID) -> UserPolicy:
    """`get_user_token_policy`: what holds for a user, exceptions apart."""
    return UserPolicy(**await connection.fetchval("select public.get_user_token_policy($1)", user_id))


async def read_ledger(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    user_id: UUID,
    *,
    before_seq: int | None = None,
    direction: str | None = None,
    execution_id: UUID | None = None,
    limit: int,
) -> list[Entry]:
    """Up to `limit` entries below `before_seq`, newest first."""
    common = (tenant_id, user_id, before_seq, direction, limit)
    if execution_id is None:
        rows = await connection.fetch(LEDGER, *common)
    else:
        rows = await connection.fetch(LEDGER_OF_EXECUTION, *common, execution_id)
    return [Entry(**row) for row in rows]


async def read_executions(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    user_id: UUID | None,
    *,
    before: tuple[datetime, UUID] | None = None,
    limit: int,
) -> list[Execution]:
    """Up to `limit` model calls before (created_at, id), newest first: of a user, or of all whom the caller may see."""
    common = (tenant_id, *(before or (None, None)), limit)
    if user_id is None:
        rows = await connection.fetch(EXECUTIONS_OF_TENANT, *common)
    else:
        rows = await connection.fetch(EXECUTIONS_OF_USER, *common, user_id)
    return [Execution(**row) for row in rows]


async def read_levels(connection: asyncpg.Connection, tenant_id: UUID) -> list[LevelWithPolicy]:
    """The tenant's levels by tier; row-level security keeps policies from everyone but admins."""
    return [
        LevelWithPolicy(**row, policy=Policy(**row) if row["policy_id"] else None)
        for row in await connection.fetch(LEVELS, tenant_id)
    ]


def _operation(body: Adjustment) -> tuple[object, ...]:
    """The parameters that every form of an adjustment takes in this order, between user and idempotency key."""
    return (
        body.amount,
        body.direction,
        body.reason,
        body.source,
        body.reference_type,
        body.reference_id,
        body.execution_id,
        body.metadata,
    )


async def adjust(
    connection: asyncpg.Connection, user_id: UUID, body: Adjustment, idempotency_key: str | None
) -> dict[str, Any]:
    """`adjust_user_tokens`: the ledger entry, with `replayed` true when the key had been used."""
    entry: dict[str, Any] = await connection.fetchval(
        ADJUST,
        user_id,
        *_operation(body),
        idempotency_key,
        body.expires_at,
    )
    return entry


async def adjust_by_key(
    coalescer: Coalescer, key_hash: bytes, user_id: UUID, body: Adjustment, key: str, request_id: str, client_ip: str
) -> dict[str, Any]:
    """`adjust_user_tokens` for the bearer of an API key, together with the calls that wait at the same moment."""
    entry: dict[str, Any] = await coalescer.call(
        ADJUST_BY_KEY,
        key_hash,
        user_id,
        *_operation(body),
        key,
        body.expires_at,
        request_id,
        client_ip,
        lane=key_hash,
    )
    return entry


async def adjust_batch(
    connection: asyncpg.Connection, operations: Sequence[BatchedAdjustment], atomic: bool
) -> list[dict[str, Any]]:
    """`adjust_user_tokens_batch`: `entry` or `error` (a problem) for each operation, in order."""
    sent = [operation.model_dump(mode="json") for operation in operations]
    outcomes = await connection.fetchval(ADJUST_BATCH, sent, atomic)
    return [
        outcome if outcome["ok"] else {"ok": False, "error": from_parts(**outcome["error"]).problem()}
        for outcome in outcomes
    ]


async def allocate_level(connection: asyncpg.Connection, user_id: UUID, level_id: UUID) -> dict[str, Any]:
    """`auto_allocate_tokens_for_level`: what was granted."""
    granted: dict[str, Any] = await connection.fetchval(
        "select public.auto_allocate_tokens_for_level($1, $2)", user_id, level_id
    )
    return granted


async def set_status(connection: asyncpg.Connection, user_id: UUID, status: str, reason: str) -> None:
    """`set_wallet_status`."""
    await connection.fetchval("select public.set_wallet_status($1, $2, $3)", user_id, status, reason)


async def verify(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> Verification:
    """`verify_token_ledger` of one wallet, with the number of its entries."""
    problems = await connection.fetch("select seq, problem from public.verify_token_ledger($1)", user_id)
    row = await connection.fetchrow(WALLET, tenant_id, user_id)
    if row is None:
        raise VanillaError("not_found", "no such user", {"user_id": str(user_id)})
    return Verification(
        verified=not problems, entries=row["seq"], problems=[Problem(**problem) for problem in problems]
    )


async def broken_chains(connection: asyncpg.Connection, user_id: UUID | None = None) -> list[dict[str, Any]]:
    """`verify_token_ledger` of a user, or of every wallet the caller may prove: no row when all is well."""
    rows = await connection.fetch(
        "select tenant_id, user_id, seq, problem from public.verify_token_ledger($1)", user_id
    )
    return [dict(row) for row in rows]


async def differences(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """`reconcile_token_wallets`: no row when the books are right."""
    rows = await connection.fetch(
        "select tenant_id, user_id, problem, expected, found from public.reconcile_token_wallets()"
    )
    return [dict(row) for row in rows]


async def reset_part(connection: asyncpg.Connection, most: int) -> int:
    """`reset_monthly_tokens(most)`: the number of wallets whose period was closed; less than `most` when it is done."""
    count: int = await connection.fetchval("select public.reset_monthly_tokens($1)", most)
    return count


async def count_due(connection: asyncpg.Connection) -> int:
    """Wallets whose period has ended; for the operator."""
    count: int = await connection.fetchval(
        "select count(*) from public.user_token_wallets, (select vanilla.clock() as now) c"
        " where next_event_at <= now and next_reset_at <= now"
    )
    return count


async def find_user(connection: asyncpg.Connection, tenant: str, name: str) -> tuple[UUID, UUID]:
    """(tenant id, user id) of an email, external id or UUID in a tenant's slug, for the operator.

    Raises VanillaError `not_found`, or `invalid_request` when the name fits two users.
    """
    rows = await connection.fetch(FIND_USER, tenant, name)
    if not rows:
        raise VanillaError("not_found", f"The tenant {tenant} has no user {name}.")
    if len(rows) > 1:
        raise VanillaError("invalid_request", f"{name} is the name of two users.", hint="Use the user's id.")
    return rows[0]["tenant_id"], rows[0]["id"]


async def find_level(connection: asyncpg.Connection, tenant: str, name: str) -> UUID:
    """The id of a level by slug or UUID, for the operator. Raises VanillaError `not_found`."""
    level: UUID | None = await connection.fetchval(FIND_LEVEL, tenant, name)
    if level is None:
        raise VanillaError("not_found", f"The tenant {tenant} has no level {name}.")
    return level
