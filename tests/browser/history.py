"""A wallet with a month behind it: the clock is moved, the product's own functions do the rest."""

import random
import uuid
from datetime import UTC, datetime, timedelta

import asyncpg

from tests.conftest import DEFAULT_TENANT
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, token_hash

_RESTORED = "create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe as"
PREMIUM = uuid.UUID("00000000-0000-7000-8001-000000000103")


async def _set_clock(operator: asyncpg.Connection, moment: datetime | None) -> None:
    body = "select pg_catalog.clock_timestamp()" if moment is None else f"select '{moment.isoformat()}'::timestamptz"
    await operator.execute(f"{_RESTORED} $clock${body}$clock$")


async def month_of_calls(
    operator: asyncpg.Connection, database: Database, email: str, *, days: int = 30, calls_a_day: int = 6
) -> uuid.UUID:
    """A premium user with about two hundred calls on the last thirty days; returns their id."""
    dice = random.Random(7)
    now = datetime.now(UTC)
    try:
        await _set_clock(operator, now - timedelta(days=days))
        user_id: uuid.UUID = await operator.fetchval(
            "select create_user($1, 'admin', 'Ada Lindqvist', p_level_id => $2, p_must_change_password => false,"
            " p_tenant_id => $3)",
            email,
            PREMIUM,
            DEFAULT_TENANT,
        )
        key = new_token(KEY_PREFIX)
        await operator.fetchval(
            "select create_api_key('support assistant', $1, $2, '{chat,read}', p_user_id => $3)",
            key[:12],
            token_hash(key),
            user_id,
        )
        for day in range(days, -1, -1):
            start = (now - timedelta(days=day)).replace(hour=7, minute=0, second=0)
            busy = 0.35 if start.weekday() >= 5 else 1.0
            for n in range(max(1, int(calls_a_day * busy * dice.uniform(0.7, 1.4)))):
                moment = start + timedelta(minutes=95 * n + dice.randrange(60), seconds=dice.randrange(60))
                if moment > now - timedelta(minutes=5):
                    break
                await _set_clock(operator, moment)
                await _call(database, key, dice)
            if day == 12:
                await operator.fetchval(
                    "select adjust_user_tokens($1, 250000, 'credit', 'invoice 2026-114', 'purchase')", user_id
                )
        return user_id
    finally:
        await _set_clock(operator, None)


async def _call(database: Database, key: str, dice: random.Random) -> None:
    prompt, output = dice.randrange(900, 5200), dice.randrange(300, 2600)
    admitted = await database.call(
        "select vanilla.admit_call($1, null, null, $2, $3, $3, 4000, 1, $4, true, interval '10 minutes')",
        token_hash(key),
        dice.choice(["sandbox-small", "sandbox-small", "sandbox-large"]),
        prompt,
        uuid.uuid4(),
    )
    await database.call(
        "select vanilla.settle_call($1, $2, 'succeeded', $3, $4, 0, 0, false, null, $5, $6)",
        uuid.UUID(admitted["tenant_id"]),
        uuid.UUID(admitted["hold_id"]),
        prompt,
        output,
        dice.randrange(700, 6000),
        dice.randrange(120, 600),
    )
