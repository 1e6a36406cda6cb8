"""What the pages of providers read and write."""

from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.context import PLATFORM
from vanilla_saas.database.pool import Database

Rows = list[asyncpg.Record]


async def models(database: Database, session_hash: bytes) -> list[dict[str, Any]]:
    """Chat models that the session's person may see: the sandbox's first, then what is ready, then the rest."""
    found: list[dict[str, Any]] = await database.call("select vanilla.list_models(null, $1)", session_hash)
    chats = [m for m in found if m["kind"] == "chat"]
    return sorted(chats, key=lambda m: (not m["ready"], m["owned_by"] != "sandbox", m["output_price"] or 0))


async def quote(
    database: Database, session_hash: bytes, model: str, prompt: int, sandbox_prompt: int, output_limit: int | None
) -> dict[str, Any]:
    """What a call would reserve: `reserved`, `output_limit`, `clamped`, `available_after`, in tokens."""
    found: dict[str, Any] = await database.call(
        "select vanilla.quote_call($1, $2, $3, $4, $5)", session_hash, model, prompt, sandbox_prompt, output_limit
    )
    return found


async def balance(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> int | None:
    available: int | None = await connection.fetchval(
        "select available_tokens from user_token_wallets where tenant_id = $1 and user_id = $2", tenant_id, user_id
    )
    return available


async def execution(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> asyncpg.Record | None:
    """One model call as its person or an admin may see it."""
    row: asyncpg.Record | None = await connection.fetchrow(
        "select e.id, e.created_at, e.user_id, e.provider, e.model, e.status, e.error_code,"
        " e.input_tokens, e.output_tokens, e.cached_input_tokens,"
        " e.reasoning_tokens, e.charged_tokens, e.cost_micros, e.latency_ms, e.first_token_ms,"
        " e.streamed, e.usage_estimated, e.request_id, coalesce(u.email, u.external_id) as owner, k.name as key_name"
        " from ai_executions e"
        " left join users u on u.tenant_id = e.tenant_id and u.id = e.user_id"
        " left join api_keys k on k.tenant_id = e.tenant_id and k.id = e.api_key_id"
        " where e.tenant_id = $1 and e.id = $2",
        tenant_id,
        execution_id,
    )
    return row


async def providers(connection: asyncpg.Connection) -> Rows:
    """The platform's providers, with how many of their models have a price."""
    rows: Rows = await connection.fetch(
        "select p.id, p.slug, p.name, p.kind, p.base_url, p.secret_hint, p.status,"
        " count(m.id) filter (where m.status = 'active') as models,"
        " count(m.id) filter (where m.status = 'active'"
        "  and m.input_price is not null and m.output_price is not null) as priced"
        " from ai_providers p"
        " left join ai_models m on m.tenant_id = $1 and m.provider_tenant_id = p.tenant_id and m.provider_id = p.id"
        " where p.tenant_id = $1 group by p.tenant_id, p.id order by p.kind <> 'sandbox', p.slug",
        PLATFORM,
    )
    return rows


async def set_secret(connection: asyncpg.Connection, provider_id: UUID, secret: bytes | None, hint: str | None) -> None:
    await connection.fetchval("select set_provider_secret($1, $2, $3)", provider_id, secret, hint)
