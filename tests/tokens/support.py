"""A wallet in a database whose clock the test moves, through the product's own functions."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TEST_CLOCK = """
create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe
    as $f$ select coalesce(nullif(current_setting('vanilla_test.now', true), '')::timestamptz, clock_timestamp()) $f$
"""


@dataclass
class User:
    """A user with an empty wallet, alone in a tenant; `levels` are its levels' ids by slug."""

    tenant_id: uuid.UUID
    id: uuid.UUID
    levels: dict[str, uuid.UUID]


class Books:
    """Calls as the operator, at the moment that `at` set for this connection."""

    def __init__(self, connection: asyncpg.Connection):
        self.connection = connection

    async def at(self, moment: datetime) -> None:
        await self.connection.execute("select set_config('vanilla_test.now', $1, false)", moment.isoformat())

    async def user(self, mode: str = "hard", balance: int = 0, time_zone: str = "UTC", **policy: Any) -> User:
        """A user on level free of a new tenant; the level grants what `policy` says, nothing by default."""
        slug = f"t{uuid.uuid4().hex[:12]}"
        tenant = await self.connection.fetchval("select create_tenant($1, $1, $2)", slug, time_zone)
        rows = await self.connection.fetch("select slug, id from levels where tenant_id = $1", tenant)
        levels = {row["slug"]: row["id"] for row in rows}
        await self.policy(tenant, levels["free"], enforcement_mode=mode, **policy)
        user_id = await self.connection.fetchval(
            "select create_user($1, p_tenant_id => $2)", f"{slug}@example.test", tenant
        )
        user = User(tenant, user_id, levels)
        if balance:
            await self.adjust(user, balance, "credit")
        return user

    async def policy(self, tenant_id: uuid.UUID, level_id: uuid.UUID, **policy: Any) -> None:
        values = {"base_allocation": 0, "monthly_allocation": 0} | policy
        named = ", ".join(f"p_{name} => ${n}" for n, name in enumerate(values, 3))
        await self.connection.execute(
            f"select set_level_token_policy(p_level_id => $1, p_tenant_id => $2, {named})",
            level_id,
            tenant_id,
            *values.values(),
        )

    async def adjust(self, user: User, amount: int | None, direction: str | None, **more: Any) -> dict[str, Any]:
        named = "".join(f", p_{name} => ${n}" for n, name in enumerate(more, 4))
        return await self.connection.fetchval(
            f"select adjust_user_tokens($1, $2, $3{named})", user.id, amount, direction, *more.values()
        )

    async def settle(self, hold_id: str | uuid.UUID, actual: int | None) -> dict[str, Any]:
        return await self.connection.fetchval("select settle_user_tokens($1, $2)", hold_id, actual)

    async def allocate(self, user: User, level: str) -> dict[str, Any]:
        return await self.connection.fetchval(
            "select auto_allocate_tokens_for_level($1, $2)", user.id, user.levels[level]
        )

    async def reset(self) -> int:
        return await self.connection.fetchval("select reset_monthly_tokens()")

    async def reset_due_grants(self) -> None:
        """What the tick does with grants that begin or lapse."""
        await self.connection.fetchval("select vanilla.fold_due_wallets(null)")

    async def reap(self) -> None:
        await self.connection.execute("select vanilla.reap_holds()")

    async def wallet(self, user: User) -> asyncpg.Record:
        return await self.connection.fetchrow("select * from user_token_wallets where user_id = $1", user.id)

    async def figures(self, user: User) -> tuple[int, int, int]:
        """(available, reserved, borrowed)."""
        wallet = await self.wallet(user)
        return wallet["available_tokens"], wallet["reserved_tokens"], wallet["borrowed_tokens"]

    async def grants(self, user: User) -> list[tuple[str, int]]:
        """(kind, remaining) of the grants with something left, in order of burning."""
        rows = await self.connection.fetch(
            "select kind, remaining from vanilla.grants_after_burn($1, $2) where remaining > 0"
            " order by priority, expires_at, id",
            user.tenant_id,
            user.id,
        )
        return [(row["kind"], row["remaining"]) for row in rows]

    async def entries(self, user: User) -> list[tuple[str, int, int]]:
        """(direction, amount, reserved_amount) of the whole ledger, oldest first."""
        rows = await self.connection.fetch("select * from user_token_ledger where user_id = $1 order by seq", user.id)
        return [(row["direction"], row["amount"], row["reserved_amount"]) for row in rows]

    async def problems(self) -> list[str]:
        """What reconcile and verify find in the whole database."""
        rows = await self.connection.fetch(
            "select problem from reconcile_token_wallets() union all select problem from verify_token_ledger()"
        )
        return [row["problem"] for row in rows]
