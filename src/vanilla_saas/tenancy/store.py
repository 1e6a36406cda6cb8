"""Every statement of the room. Calls with a Database run on the runtime pool, before anyone is known; those with a
connection act as its context or as the operator, and name the tenant either way."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.pool import Database

Rows = list[asyncpg.Record]
Bounds = tuple[datetime, UUID, int]
"""Where a page begins and how many rows to fetch: `database.cursor.Keyset.bounds`."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A counted attempt: the hash to compare (None: nobody's) and the seconds to wait (0: none)."""

    password_hash: str | None
    retry_after_s: int


# sign-in ----------------------------------------------------------------------------------------------------------


async def begin_sign_in(database: Database, tenant: str, email: str, ip: str) -> Attempt:
    row = await database.call_row(
        "select password_hash, retry_after_s from vanilla.begin_sign_in($1, $2, $3)", tenant, email, ip
    )
    return Attempt(row["password_hash"], row["retry_after_s"])


async def finish_sign_in(
    database: Database,
    tenant: str,
    email: str,
    token_hash: bytes,
    refresh_hash: bytes,
    ip: str,
    user_agent: str,
    lifetime: timedelta,
    refresh_lifetime: timedelta,
    verified_hash: str,
    rehashed: str | None,
) -> dict[str, Any]:
    """Keys: tenant_id, user_id, role, must_change_password, expires_at."""
    facts: dict[str, Any] = await database.call(
        "select vanilla.finish_sign_in($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        tenant,
        email,
        token_hash,
        refresh_hash,
        ip,
        user_agent,
        lifetime,
        refresh_lifetime,
        verified_hash,
        rehashed,
    )
    return facts


async def fail_sign_in(database: Database, tenant: str, email: str, ip: str) -> None:
    await database.call(
        "select vanilla.fail_sign_in($1, $2) from set_config('vanilla.client_ip', $3, true)", tenant, email, ip
    )


async def rotate_session(
    database: Database, refresh_hash: bytes, token_hash: bytes, new_refresh_hash: bytes, ip: str
) -> dict[str, Any]:
    """Keys: outcome (rotated, reused, unknown), and when rotated expires_at and must_change_password."""
    facts: dict[str, Any] = await database.call(
        "select vanilla.rotate_session($1, $2, $3) from set_config('vanilla.client_ip', $4, true)",
        refresh_hash,
        token_hash,
        new_refresh_hash,
        ip,
    )
    return facts


async def close_session(database: Database, token_hash: bytes, ip: str) -> bool:
    closed: bool = await database.call(
        "select vanilla.close_session($1) from set_config('vanilla.client_ip', $2, true)", token_hash, ip
    )
    return closed


# passwords --------------------------------------------------------------------------------------------------------


async def begin_password_change(database: Database, token_hash: bytes) -> Attempt:
    """Of a live session; without one the hash is None."""
    row = await database.call_row(
        "select password_hash, retry_after_s from vanilla.begin_password_change($1)", token_hash
    )
    return Attempt(row["password_hash"], row["retry_after_s"] or 0)


async def change_password(database: Database, token_hash: bytes, password_hash: str, ip: str) -> bool:
    changed: bool = await database.call(
        "select vanilla.change_password($1, $2) from set_config('vanilla.client_ip', $3, true)",
        token_hash,
        password_hash,
        ip,
    )
    return changed


async def request_password_link(database: Database, tenant: str, email: str, ip: str, token_hash: bytes) -> str | None:
    """The address to send the link to, if anyone is to get one."""
    address: str | None = await database.call(
        "select vanilla.request_password_link($1, $2, $3, $4)", tenant, email, ip, token_hash
    )
    return address


async def one_time_token_user(database: Database, token_hash: bytes) -> dict[str, Any] | None:
    """Keys: tenant (slug), email."""
    found: dict[str, Any] | None = await database.call("select vanilla.one_time_token_user($1)", token_hash)
    return found


async def redeem_one_time_token(database: Database, token_hash: bytes, password_hash: str, ip: str) -> dict[str, Any]:
    """Keys: tenant (slug), email."""
    facts: dict[str, Any] = await database.call(
        "select vanilla.redeem_one_time_token($1, $2) from set_config('vanilla.client_ip', $3, true)",
        token_hash,
        password_hash,
        ip,
    )
    return facts


async def begin_registration(database: Database, ip: str) -> int:
    """Seconds to wait, 0 for none."""
    seconds: int = await database.call("select vanilla.begin_registration($1)", ip)
    return seconds


async def register_user(
    database: Database, tenant: str, email: str, password_hash: str, display_name: str, ip: str
) -> dict[str, Any]:
    """Keys: tenant_id, user_id."""
    facts: dict[str, Any] = await database.call(
        "select vanilla.register_user($1, $2, $3, $4) from set_config('vanilla.client_ip', $5, true)",
        tenant,
        email,
        password_hash,
        display_name,
        ip,
    )
    return facts


# tenants ----------------------------------------------------------------------------------------------------------

_TENANT = "select id, slug, name, status, time_zone, self_registration, created_at, erase_at, erased_at from tenants"


async def tenants(connection: asyncpg.Connection, bounds: Bounds) -> Rows:
    """Those the caller may see: their own, or all for a super admin at the platform and for the operator."""
    rows: Rows = await connection.fetch(
        f"{_TENANT} where (created_at, id) < ($1, $2) order by created_at desc, id desc limit $3", *bounds
    )
    return rows


async def tenant(connection: asyncpg.Connection, tenant_id: UUID) -> asyncpg.Record | None:
    return await connection.fetchrow(f"{_TENANT} where tenant_id = $1 and id = $1", tenant_id)


async def create_tenant(connection: asyncpg.Connection, slug: str, name: str, time_zone: str) -> UUID:
    made: UUID = await connection.fetchval("select create_tenant($1, $2, $3)", slug, name, time_zone)
    return made


async def set_tenant_status(connection: asyncpg.Connection, tenant_id: UUID, status: str) -> None:
    await connection.fetchval("select set_tenant_status($1, $2)", tenant_id, status)


async def close_tenant(
    connection: asyncpg.Connection, tenant_id: UUID, reason: str, grace_days: int | None = None
) -> bool:
    """False when it was closed already; without `grace_days` the platform's setting says when it is erased."""
    closed: bool = await connection.fetchval(
        "select close_tenant($1, $2, make_interval(days => $3::integer))", tenant_id, reason, grace_days
    )
    return closed


async def open_tenant(connection: asyncpg.Connection, tenant_id: UUID, reason: str) -> datetime:
    """When the opening ends."""
    until: datetime = await connection.fetchval("select open_tenant($1, $2)", tenant_id, reason)
    return until


async def leave_tenant(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID | None = None) -> int:
    """How many openings ended: the caller's own; for the operator those of `user_id`, or all."""
    ended: int = await connection.fetchval("select leave_tenant($1, $2)", tenant_id, user_id)
    return ended


# users ------------------------------------------------------------------------------------------------------------

_USER = (
    "select id, email, external_id, display_name, role, status, must_change_password, last_sign_in_at, created_at"
    " from users where tenant_id = $1 and status <> 'deleted'"
)


async def users(connection: asyncpg.Connection, tenant_id: UUID, bounds: Bounds) -> Rows:
    rows: Rows = await connection.fetch(
        f"{_USER} and (created_at, id) < ($2, $3) order by created_at desc, id desc limit $4", tenant_id, *bounds
    )
    return rows


async def user(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> asyncpg.Record | None:
    return await connection.fetchrow(f"{_USER} and id = $2", tenant_id, user_id)


async def user_by_email(connection: asyncpg.Connection, tenant_id: UUID, email: str) -> asyncpg.Record | None:
    return await connection.fetchrow(f"{_USER} and email = lower($2)", tenant_id, email)


async def create_user(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    *,
    email: str | None,
    role: str,
    display_name: str = "",
    password_hash: str | None = None,
    level_id: UUID | None = None,
    must_change_password: bool = True,
    external_id: str | None = None,
) -> UUID:
    made: UUID = await connection.fetchval(
        "select create_user($1, $2, $3, $4, $5, $6, $7, $8)",
        email,
        role,
        display_name,
        password_hash,
        level_id,
        must_change_password,
        tenant_id,
        external_id,
    )
    return made


async def set_display_name(connection: asyncpg.Connection, name: str) -> None:
    await connection.fetchval("select set_display_name($1)", name)


async def set_user_role(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, role: str) -> None:
    await connection.fetchval("select set_user_role($1, $2, $3)", user_id, role, tenant_id)


async def set_user_status(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, status: str) -> None:
    await connection.fetchval("select set_user_status($1, $2, $3)", user_id, status, tenant_id)


async def erase_user(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, reason: str) -> dict[str, Any]:
    """Keys: user_id, sessions, keys, and of the wallet: wallet (its status), open_holds, voided_tokens, debt."""
    erased: dict[str, Any] = await connection.fetchval("select erase_user($1, $2, $3)", user_id, reason, tenant_id)
    return erased


async def start_person_export(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> dict[str, Any]:
    """Writes the audit row. Keys: tenant_id, user_id, exported_at, tables (`users` first)."""
    begun: dict[str, Any] = await connection.fetchval("select start_person_export($1, $2)", user_id, tenant_id)
    return begun


async def open_person_rows(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, table: str) -> None:
    await connection.fetchval("select open_person_rows($1, $2, $3)::text", user_id, tenant_id, table)


async def person_rows(connection: asyncpg.Connection) -> list[str]:
    """The next rows, JSON texts; none at the end."""
    return [row[0] for row in await connection.fetch("fetch forward 500 from person_rows")]


async def close_person_rows(connection: asyncpg.Connection) -> None:
    await connection.execute("close person_rows")


async def set_user_password(
    connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, password_hash: str, must_change: bool
) -> None:
    await connection.fetchval(
        "select set_user_password($1, $2, $3, $4)", user_id, password_hash, must_change, tenant_id
    )


async def issue_one_time_token(
    connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, token_hash: bytes
) -> datetime:
    """When the link lapses."""
    until: datetime = await connection.fetchval(
        "select issue_one_time_token($1, $2, $3)", user_id, token_hash, tenant_id
    )
    return until


# keys -------------------------------------------------------------------------------------------------------------

_KEY = (
    "select id, user_id, name, prefix, scopes, budget_tokens, used_tokens,"
    " nullif(expires_at, 'infinity') as expires_at, revoked_at, last_used_at, created_at"
    " from api_keys where tenant_id = $1"
)


async def keys(connection: asyncpg.Connection, tenant_id: UUID, bounds: Bounds) -> Rows:
    rows: Rows = await connection.fetch(
        f"{_KEY} and (created_at, id) < ($2, $3) order by created_at desc, id desc limit $4", tenant_id, *bounds
    )
    return rows


async def key(connection: asyncpg.Connection, tenant_id: UUID, key_id: UUID) -> asyncpg.Record:
    """A key that was just made, so it is there."""
    return await connection.fetchrow(f"{_KEY} and id = $2", tenant_id, key_id)


async def create_api_key(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    user_id: UUID | None,
    *,
    name: str,
    prefix: str,
    key_hash: bytes,
    scopes: Sequence[str],
    expires_at: datetime | None,
    budget_tokens: int | None,
) -> UUID:
    """A key of `user_id`, or of the caller."""
    made: UUID = await connection.fetchval(
        "select create_api_key($1, $2, $3, $4, coalesce($5::timestamptz, 'infinity'), $6, $7, $8)",
        name,
        prefix,
        key_hash,
        list(scopes),
        expires_at,
        budget_tokens,
        user_id,
        tenant_id,
    )
    return made


async def revoke_api_key(
    connection: asyncpg.Connection, tenant_id: UUID, key_id: UUID, *, cancel_runs: bool = True
) -> None:
    """`revoke_api_key`: what a key of an engine began ends with it, unless `cancel_runs` is False."""
    await connection.fetchval("select revoke_api_key($1, $2, $3)", key_id, tenant_id, cancel_runs)


# audit ------------------------------------------------------------------------------------------------------------


async def audit(connection: asyncpg.Connection, tenant_id: UUID, action: str | None, bounds: Bounds) -> Rows:
    """Rows of the tenant's log, of one action or of all."""
    rows: Rows = await connection.fetch(
        "select id, created_at, actor_id, actor_role, action, target_type, target_id, details, ip, request_id"
        " from audit_logs where tenant_id = $1 and (created_at, id) < ($2, $3) and ($5::text is null or action = $5)"
        " order by created_at desc, id desc limit $4",
        tenant_id,
        *bounds,
        action,
    )
    return rows
