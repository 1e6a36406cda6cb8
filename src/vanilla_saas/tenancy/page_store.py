"""What the pages of tenancy read and write. Reads act under row-level security and still name the tenant."""

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.tenancy import store

PAGE = 50
Rows = list[asyncpg.Record]


async def users(connection: asyncpg.Connection, tenant_id: UUID, search: str, before: UUID | None) -> Rows:
    """Users with level and wallet, newest first; one more than a page when there are more."""
    rows: Rows = await connection.fetch(
        "select u.id, u.email, u.external_id, u.display_name, u.role, u.status, u.last_sign_in_at, u.created_at,"
        " w.available_tokens, w.borrowed_tokens, w.status as wallet_status, l.name as level"
        " from users u"
        " left join user_token_wallets w on w.tenant_id = u.tenant_id and w.user_id = u.id"
        " left join levels l on l.tenant_id = w.tenant_id and l.id = w.level_id"
        " where u.tenant_id = $1 and u.status <> 'deleted' and ($2::uuid is null or u.id < $2)"
        " and ($3 = '' or position(lower($3) in lower(concat_ws(' ', u.email, u.external_id, u.display_name))) > 0)"
        " order by u.id desc limit $4",
        tenant_id,
        before,
        search,
        PAGE + 1,
    )
    return rows


async def levels(connection: asyncpg.Connection, tenant_id: UUID) -> Rows:
    rows: Rows = await connection.fetch(
        "select id, name, is_default from levels where tenant_id = $1 and status = 'active' order by tier, slug",
        tenant_id,
    )
    return rows


async def create_user(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    email: str,
    role: str,
    name: str,
    level_id: UUID | None,
    link_hash: bytes,
) -> datetime:
    """A user without a password and the one-time token with which they set it; returns until when that works."""
    user_id: UUID = await connection.fetchval(
        "select create_user($1, $2, $3, p_level_id => $4)", email, role, name, level_id
    )
    return await store.issue_one_time_token(connection, tenant_id, user_id, link_hash)


async def user_email(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> str:
    found: str | None = await connection.fetchval(
        "select coalesce(email, external_id) from users where tenant_id = $1 and id = $2", tenant_id, user_id
    )
    return found or ""


async def preview_erasure(
    connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, reason: str
) -> dict[str, Any]:
    """What `erase_user` would answer: it is done and undone, so no rule is written down twice."""
    facts = {"sessions": 0, "keys": 0, "wallet": None, "open_holds": 0, "voided_tokens": 0, "debt": 0}
    attempt = connection.transaction()
    await attempt.start()
    try:
        return facts | await store.erase_user(connection, tenant_id, user_id, reason)
    finally:
        await attempt.rollback()


async def keys(connection: asyncpg.Connection, tenant_id: UUID, before: UUID | None) -> Rows:
    """The keys that the caller may see, with their owners; newest first."""
    rows: Rows = await connection.fetch(
        "select k.id, k.user_id, k.name, k.prefix, k.scopes, k.engine_ref, k.budget_tokens, k.used_tokens,"
        " k.last_used_at, k.created_at, k.revoked_at, nullif(k.expires_at, 'infinity') as expires_at,"
        " case when k.revoked_at is not null then 'revoked' when k.expires_at <= vanilla.clock() then 'expired'"
        " else 'active' end as state, coalesce(u.email, u.external_id) as owner"
        " from api_keys k left join users u on u.tenant_id = k.tenant_id and u.id = k.user_id"
        " where k.tenant_id = $1 and ($2::uuid is null or k.id < $2) order by k.id desc limit $3",
        tenant_id,
        before,
        PAGE + 1,
    )
    return rows


async def create_key(
    connection: asyncpg.Connection,
    name: str,
    prefix: str,
    key_hash: bytes,
    scopes: list[str],
    lifetime_days: int | None,
    budget_tokens: int | None,
) -> None:
    await connection.fetchval(
        "select create_api_key($1, $2, $3, $4,"
        " coalesce(vanilla.clock() + make_interval(days => $5::integer), 'infinity'), $6)",
        name,
        prefix,
        key_hash,
        scopes,
        lifetime_days,
        budget_tokens,
    )


async def audit(
    connection: asyncpg.Connection, tenant_id: UUID, action: str, bounds: tuple[datetime, UUID, int]
) -> Rows:
    """Audit rows of an action, or of all that begin with it, newest first; `bounds` is page_bounds'."""
    rows: Rows = await connection.fetch(
        "select a.id, a.created_at, a.action, a.actor_role, a.target_type, a.target_id, a.details, a.ip, a.request_id,"
        " coalesce(u.email, u.external_id) as actor, coalesce(t.email, t.external_id) as target"
        " from audit_logs a"
        " left join users u on u.tenant_id = a.tenant_id and u.id = a.actor_id"
        " left join users t on t.tenant_id = a.tenant_id and t.id = a.target_id and a.target_type = 'user'"
        " where a.tenant_id = $1 and ($2 = '' or starts_with(a.action, $2))"
        " and (a.created_at, a.id) < ($3, $4) order by a.created_at desc, a.id desc limit $5",
        tenant_id,
        action,
        *bounds,
    )
    return rows


async def tenants(connection: asyncpg.Connection, search: str, before: UUID | None) -> Rows:
    """Tenants, newest first. Only a super admin's context at the platform sees more than its own."""
    rows: Rows = await connection.fetch(
        "select t.id, t.slug, t.name, t.status, t.time_zone, t.self_registration, t.created_at, t.erase_at,"
        " t.erased_at, coalesce(t.erase_at <= vanilla.clock(), false) as grace_over from tenants t"
        " where t.tenant_id = t.id and t.id <> vanilla.platform() and ($1::uuid is null or t.id < $1)"
        " and ($2 = '' or position(lower($2) in lower(t.slug || ' ' || t.name)) > 0)"
        " order by t.id desc limit $3",
        before,
        search,
        PAGE + 1,
    )
    return rows


async def grace_days(connection: asyncpg.Connection) -> int | None:
    """The platform's setting: days after its closing in which a tenant can be opened again."""
    days: int | None = await connection.fetchval(
        "select (value #>> '{}')::integer from system_configurations"
        " where tenant_id = vanilla.platform() and key = 'tenants.grace_days'"
    )
    return days


def cursor_of(rows: Rows, name: str = "id") -> tuple[Rows, Any]:
    """The rows of this page, and what the next one starts after; None on the last."""
    return rows[:PAGE], rows[PAGE - 1][name] if len(rows) > PAGE else None
