"""Every statement about events and webhooks. The sender's run on the runtime pool; the others act as their context or
as the operator, and name the tenant either way."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.pool import Database

Rows = list[asyncpg.Record]
Bounds = tuple[datetime, UUID, int]
"""Where a page begins and how many rows to fetch: `database.cursor.Keyset.bounds`."""
ENDPOINT = """
    e.id, e.url, e.description, e.event_types, e.status, e.disabled_reason, e.concurrency, e.failing_since,
    e.created_at,
    case when e.previous_secret_until > vanilla.clock() then e.previous_secret_until end as previous_secret_until
"""
DELIVERY = """
    d.id, d.endpoint_id, d.event_id, v.type as event_type, d.cause, d.state, d.attempts, d.last_status_code,
    d.last_error, d.last_duration_ms, d.delivered_at, d.created_at,
    case when d.state in ('pending', 'failed') then d.next_attempt_at end as next_attempt_at
"""
OF_EVENT = """
    left join public.events v
        on v.tenant_id = d.tenant_id and v.created_at = d.event_created_at and v.id = d.event_id
"""


# the sender -------------------------------------------------------------------------------------------------------


async def claim(database: Database, limit: int, lease: timedelta) -> list[dict[str, Any]]:
    """Leased deliveries with everything that sending them needs; see `claim_webhook_deliveries`."""
    found: list[dict[str, Any]] = await database.call("select vanilla.claim_webhook_deliveries($1, $2)", limit, lease)
    return found


async def finish(
    database: Database,
    delivery: dict[str, Any],
    status: int | None,
    error: str | None,
    duration_ms: int,
    retry_after: timedelta | None,
) -> str | None:
    """The state after this try, or None when the lease had run out."""
    state: str | None = await database.call(
        "select vanilla.finish_webhook_delivery($1, $2, $3, $4, $5, $6, $7)",
        UUID(delivery["tenant_id"]),
        UUID(delivery["delivery_id"]),
        UUID(delivery["lease_id"]),
        status,
        error,
        duration_ms,
        retry_after,
    )
    return state


# events -----------------------------------------------------------------------------------------------------------


async def event_types(connection: asyncpg.Connection) -> Rows:
    """Every `type` with its `meaning`."""
    rows: Rows = await connection.fetch("select type, meaning from vanilla.event_types()")
    return rows


async def events(connection: asyncpg.Connection, tenant_id: UUID, kind: str | None, bounds: Bounds) -> Rows:
    """Events of a tenant, newest first; `kind` is a type."""
    rows: Rows = await connection.fetch(
        "select id, type, created_at, tenant_id, user_id, payload from public.events"
        " where tenant_id = $1 and (created_at, id) < ($2, $3) and ($5::text is null or type = $5)"
        " order by created_at desc, id desc limit $4",
        tenant_id,
        *bounds,
        kind,
    )
    return rows


# endpoints --------------------------------------------------------------------------------------------------------


async def endpoints(connection: asyncpg.Connection, tenant_id: UUID, bounds: Bounds) -> Rows:
    rows: Rows = await connection.fetch(
        f"select {ENDPOINT} from public.webhook_endpoints e where e.tenant_id = $1 and e.execution_id is null"  # noqa: S608 (a constant)
        " and (e.created_at, e.id) < ($2, $3) order by e.created_at desc, e.id desc limit $4",
        tenant_id,
        *bounds,
    )
    return rows


async def endpoint(connection: asyncpg.Connection, tenant_id: UUID, endpoint_id: UUID) -> asyncpg.Record | None:
    row: asyncpg.Record | None = await connection.fetchrow(
        f"select {ENDPOINT} from public.webhook_endpoints e"  # noqa: S608
        " where e.tenant_id = $1 and e.id = $2 and e.execution_id is null",
        tenant_id,
        endpoint_id,
    )
    return row


async def new_id(connection: asyncpg.Connection) -> UUID:
    """An id for an endpoint: its secret is encrypted for it before the row is there."""
    made: UUID = await connection.fetchval("select vanilla.uuid7()")
    return made


async def create_endpoint(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    endpoint_id: UUID,
    *,
    url: str,
    event_types: list[str],
    secret: bytes,
    description: str,
    concurrency: int,
) -> None:
    await connection.fetchval(
        "select public.create_webhook_endpoint($1, $2, $3, $4, $5, $6, $7)",
        endpoint_id,
        url,
        event_types,
        secret,
        description,
        concurrency,
        tenant_id,
    )


async def update_endpoint(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    endpoint_id: UUID,
    *,
    url: str | None = None,
    event_types: list[str] | None = None,
    description: str | None = None,
    concurrency: int | None = None,
    status: str | None = None,
) -> None:
    await connection.fetchval(
        "select public.update_webhook_endpoint($1, $2, $3, $4, $5, $6, $7)",
        endpoint_id,
        url,
        event_types,
        description,
        concurrency,
        status,
        tenant_id,
    )


async def rotate_secret(
    connection: asyncpg.Connection, tenant_id: UUID, endpoint_id: UUID, secret: bytes, keep: timedelta
) -> Any:
    """Until when the former secret signs too."""
    return await connection.fetchval(
        "select public.rotate_webhook_secret($1, $2, $3, $4)", endpoint_id, secret, keep, tenant_id
    )


async def delete_endpoint(connection: asyncpg.Connection, tenant_id: UUID, endpoint_id: UUID) -> None:
    await connection.fetchval("select public.delete_webhook_endpoint($1, $2)", endpoint_id, tenant_id)


async def send_test(connection: asyncpg.Connection, tenant_id: UUID, endpoint_id: UUID) -> UUID:
    """The id of the delivery."""
    made: UUID = await connection.fetchval("select public.send_test_webhook($1, $2)", endpoint_id, tenant_id)
    return made


# deliveries -------------------------------------------------------------------------------------------------------


async def deliveries(
    connection: asyncpg.Connection, tenant_id: UUID, endpoint_id: UUID, state: str | None, bounds: Bounds
) -> Rows:
    """Deliveries of an endpoint, newest first."""
    rows: Rows = await connection.fetch(
        f"select {DELIVERY} from public.webhook_deliveries d {OF_EVENT}"  # noqa: S608
        " where d.tenant_id = $1 and d.endpoint_id = $5 and (d.created_at, d.id) < ($2, $3)"
        " and ($6::text is null or d.state = $6) order by d.created_at desc, d.id desc limit $4",
        tenant_id,
        *bounds,
        endpoint_id,
        state,
    )
    return rows


async def delivery(connection: asyncpg.Connection, tenant_id: UUID, delivery_id: UUID) -> asyncpg.Record | None:
    """One delivery, with its event."""
    row: asyncpg.Record | None = await connection.fetchrow(
        f"select {DELIVERY}, v.tenant_id, v.user_id, v.payload, v.created_at as event_created_at"  # noqa: S608
        f" from public.webhook_deliveries d {OF_EVENT}"
        " join public.webhook_endpoints e on e.tenant_id = d.tenant_id and e.id = d.endpoint_id"
        " where d.tenant_id = $1 and d.id = $2 and e.execution_id is null",
        tenant_id,
        delivery_id,
    )
    return row


async def attempts(connection: asyncpg.Connection, tenant_id: UUID, delivery_id: UUID) -> Rows:
    rows: Rows = await connection.fetch(
        "select attempt, status_code, error, duration_ms, created_at from public.webhook_attempts"
        " where tenant_id = $1 and delivery_id = $2 order by attempt",
        tenant_id,
        delivery_id,
    )
    return rows


async def redeliver(connection: asyncpg.Connection, tenant_id: UUID, delivery_id: UUID) -> UUID:
    """The id of the delivery that is sent: the same one while it is open, else a new one."""
    made: UUID = await connection.fetchval("select public.redeliver_webhook($1, $2)", delivery_id, tenant_id)
    return made
