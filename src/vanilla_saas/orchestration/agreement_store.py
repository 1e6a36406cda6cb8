"""Statements of agreements: all go through the functions of 009."""

from typing import Any
from uuid import UUID

import asyncpg

Answer = dict[str, Any]

AGREEMENTS = "select * from public.my_agreements($1)"
READ = "select public.agreement_read($1, $2)"
PROPOSE = "select public.agreement_propose($1, $2, $3, $4, $5, $6)"
RESPOND = "select public.agreement_respond($1, $2, $3, $4, $5, $6)"
AMEND = "select public.agreement_amend($1, $2, $3, $4)"
WITHDRAW = "select public.agreement_withdraw($1, $2, $3)"
SUSPEND = "select public.agreement_suspend($1, $2, $3, $4)"
RESUME = "select public.agreement_resume($1, $2, $3)"
TERMINATE = "select public.agreement_terminate($1, $2, $3, $4)"


async def agreements(connection: asyncpg.Connection, tenant_id: UUID) -> list[Answer]:
    """The newest 1,000 to which the caller is a party; of an admin the tenant's."""
    return [dict(row) for row in await connection.fetch(AGREEMENTS, tenant_id)]


async def read(connection: asyncpg.Connection, tenant_id: UUID, agreement_id: UUID) -> Answer:
    """With its versions and the last 20 violations. Raises VanillaError `not_found`."""
    found: Answer = await connection.fetchval(READ, agreement_id, tenant_id)
    return found


async def propose(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    name: str,
    parties: dict[str, str],
    party: str,
    content: Answer,
    user_id: UUID | None = None,
) -> Answer:
    """`agreement_propose`. Raises VanillaError `invalid_definition` for a rule that could not be enforced."""
    made: Answer = await connection.fetchval(PROPOSE, name, parties, party, content, user_id, tenant_id)
    return made


async def respond(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    agreement_id: UUID,
    party: str,
    content_hash: bytes,
    decision: str,
    content: Answer | None = None,
) -> Answer:
    """`agreement_respond`. Raises VanillaError `invalid_state` when something else is proposed by now."""
    told: Answer = await connection.fetchval(RESPOND, agreement_id, party, content_hash, decision, content, tenant_id)
    return told


async def amend(
    connection: asyncpg.Connection, tenant_id: UUID, agreement_id: UUID, party: str, content: Answer
) -> Answer:
    """`agreement_amend`."""
    made: Answer = await connection.fetchval(AMEND, agreement_id, party, content, tenant_id)
    return made


async def withdraw(connection: asyncpg.Connection, tenant_id: UUID, agreement_id: UUID, party: str) -> Answer:
    """`agreement_withdraw`."""
    told: Answer = await connection.fetchval(WITHDRAW, agreement_id, party, tenant_id)
    return told


async def suspend(
    connection: asyncpg.Connection, tenant_id: UUID, agreement_id: UUID, party: str | None, reason: str
) -> Answer:
    """`agreement_suspend`."""
    told: Answer = await connection.fetchval(SUSPEND, agreement_id, party, reason, tenant_id)
    return told


async def resume(connection: asyncpg.Connection, tenant_id: UUID, agreement_id: UUID, party: str | None) -> Answer:
    """`agreement_resume`."""
    told: Answer = await connection.fetchval(RESUME, agreement_id, party, tenant_id)
    return told


async def terminate(
    connection: asyncpg.Connection, tenant_id: UUID, agreement_id: UUID, party: str | None, reason: str
) -> Answer:
    """`agreement_terminate`."""
    told: Answer = await connection.fetchval(TERMINATE, agreement_id, party, reason, tenant_id)
    return told
