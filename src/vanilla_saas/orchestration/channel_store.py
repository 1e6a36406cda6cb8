"""Statements of channels: all go through the functions of 009."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from vanilla_saas.database.errors import VanillaError

Answer = dict[str, Any]

CHANNELS = "select * from public.my_channels($1)"
OPEN = "select public.channel_open($1, $2, $3, $4, $5, $6, $7)"
READ = "select public.channel_read($1, $2)"
HISTORY = "select * from public.channel_history($1, $2, $3, $4)"
CLOSE = "select public.channel_close($1, $2, $3)"
# null is a body too
SEND = "select public.channel_send($1, $2, $3, $4::text::jsonb, $5, $6, $7, $8)"
RECEIVE = "select * from public.channel_receive($1, $2, $3, $4, $5)"
ACK = "select public.channel_ack($1, $2, $3, $4, $5, $6)"
NACK = "select public.channel_nack($1, $2, $3, $4, $5, $6, $7)"
FLOOR = "select public.channel_floor($1, $2, $3, $4, $5, $6)"


async def channels(connection: asyncpg.Connection, tenant_id: UUID) -> list[Answer]:
    """The newest 1,000 that the caller owns or takes part in; of an admin the tenant's."""
    return [dict(row) for row in await connection.fetch(CHANNELS, tenant_id)]


async def open_channel(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    name: str,
    kind: str,
    participants: list[Answer],
    *,
    agreement_id: UUID | None = None,
    limits: Answer | None = None,
    user_id: UUID | None = None,
) -> Answer:
    """`channel_open`: channel_id, participants by name. Raises VanillaError `not_found`, `invalid_state`."""
    made: Answer = await connection.fetchval(
        OPEN, name, kind, participants, agreement_id, limits or {}, user_id, tenant_id
    )
    return made


async def read(connection: asyncpg.Connection, tenant_id: UUID, channel_id: UUID) -> Answer:
    """A channel with its participants. Raises VanillaError `not_found`."""
    found: Answer = await connection.fetchval(READ, channel_id, tenant_id)
    return found


async def history(
    connection: asyncpg.Connection, tenant_id: UUID, channel_id: UUID, after: int = 0, limit: int = 100
) -> list[Answer]:
    """Messages after a seq, in order, at most 1,000. Raises VanillaError `not_found`."""
    return [dict(row) for row in await connection.fetch(HISTORY, channel_id, after, limit, tenant_id)]


async def close(connection: asyncpg.Connection, tenant_id: UUID, channel_id: UUID, reason: str) -> bool:
    """False: it was closed already."""
    return bool(await connection.fetchval(CLOSE, channel_id, reason, tenant_id))


async def send(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    channel_id: UUID,
    participant_id: UUID,
    performative: str,
    body: Any,
    message_id: str,
    *,
    in_reply_to: int | None = None,
    run_id: UUID | None = None,
) -> Answer:
    """`channel_send`: seq, replayed. A breach is in `refused`: commit, then `refuse_breach`. An answer that is late is
    sent, and `violated` tells of it.
    """
    sent: Answer = await connection.fetchval(
        SEND, channel_id, participant_id, performative, orjson.dumps(body).decode(), message_id, in_reply_to, run_id,
        tenant_id,
    )  # fmt: skip
    return sent


def refuse_breach(sent: Answer) -> None:
    """Raises VanillaError `agreement_violated` for what `send` answered about a message that was not sent."""
    if told := sent.get("refused"):
        detail = {name: value for name, value in told.items() if name not in ("code", "message")}
        raise VanillaError(told["code"], told["message"], detail)


async def receive(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    channel_id: UUID,
    participant_id: UUID,
    limit: int,
    lease: timedelta,
) -> list[Answer]:
    """`channel_receive`, a row for each message; each has the lease's token."""
    rows = await connection.fetch(RECEIVE, channel_id, participant_id, limit, lease, tenant_id)
    return [dict(row) for row in rows]


async def ack(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    channel_id: UUID,
    participant_id: UUID,
    token: UUID,
    seq: int,
    run_id: UUID | None = None,
) -> bool:
    """False: they were acknowledged already. Raises VanillaError `invalid_state` when the lease has ended."""
    return bool(await connection.fetchval(ACK, channel_id, participant_id, token, seq, tenant_id, run_id))


async def nack(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    channel_id: UUID,
    participant_id: UUID,
    token: UUID,
    seq: int,
    error: str,
    retry_after: timedelta,
) -> str:
    """`retry` or `dead`."""
    return str(
        await connection.fetchval(NACK, channel_id, participant_id, token, seq, error, retry_after, tenant_id)
    )  # fmt: skip


async def floor(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    channel_id: UUID,
    participant_id: UUID,
    action: str,
    *,
    to: UUID | None = None,
    bid: Any = None,
) -> Answer:
    """`channel_floor`: floor_policy, floor_holder, floor_until."""
    told: Answer = await connection.fetchval(FLOOR, channel_id, participant_id, action, to, bid, tenant_id)
    return told
