"""Levels with prices and paths in a database whose clock a test moves, and what a change of level leaves there."""

import uuid
from typing import Any

import asyncpg
import pytest

from tests.tokens.support import Books, User

CARRIED_OUT = "select count(*) from events where user_id = $1 and type in ('token.level_changed', 'level.renewed')"


class Changes:
    """Calls of a user's changes as the operator; `user` is on level free, which costs and grants nothing."""

    def __init__(self, books: Books, user: User):
        self.books = books
        self.connection = books.connection
        self.user = user

    async def level(self, slug: str, tier: int, prices: dict[str, int], plan: int = 0, **more: Any) -> uuid.UUID:
        """A level with these prices in EUR by cycle and so many tokens a calendar month."""
        made: uuid.UUID = await self.connection.fetchval(
            "select set_level($1, $1, p_tier => $2, p_tenant_id => $3)", slug, tier, self.user.tenant_id
        )
        self.user.levels[slug] = made
        await self.books.policy(self.user.tenant_id, made, monthly_allocation=plan)
        for cycle, amount in prices.items():
            await self.price(slug, cycle, amount, **(more if cycle not in ("one_time", "lifetime") else {}))
        return made

    async def price(
        self, slug: str, cycle: str, amount: int, trial_days: int = 0, trial_credits: int = 0, replace: bool = False
    ) -> None:
        """A price in EUR from now on."""
        await self.connection.fetchval(
            "select set_level_price($1, $2, 'EUR', $3, $4, $5, p_replace => $6, p_tenant_id => $7)",
            self.user.levels[slug], cycle, amount, trial_days, trial_credits, replace, self.user.tenant_id,
        )  # fmt: skip

    async def path(
        self, start: str, end: str, discount: int | None = 0, timing: str | None = "any", own: bool = False
    ) -> Any:
        return await self.connection.fetchval(
            "select set_upgrade_path($1, $2, $3, $4, $5, $6)",
            self.user.levels[start], self.user.levels[end], discount, timing, own, self.user.tenant_id,
        )  # fmt: skip

    async def change(self, to: str, when: str | None = "now", **more: Any) -> dict[str, Any]:
        return await self._call("change_user_level", to, when, more)

    async def preview(self, to: str, when: str | None = "now", **more: Any) -> dict[str, Any]:
        return await self._call("preview_level_change", to, when, more)

    async def _call(self, function: str, to: str, when: str | None, more: dict[str, Any]) -> dict[str, Any]:
        named = "".join(f", p_{name} => ${n}" for n, name in enumerate(more, 4))
        return await self.connection.fetchval(
            f"select {function}($1, $2, $3{named})", self.user.id, self.user.levels[to], when, *more.values()
        )

    async def undo(self) -> dict[str, Any]:
        return await self.connection.fetchval("select undo_level_change($1)", self.user.id)

    async def job(self) -> int:
        """Runs the job to its end; how many changes and renewals of this user it carried out."""
        before = await self.connection.fetchval(CARRIED_OUT, self.user.id)
        while (await self.connection.fetchval("select vanilla.job_level_changes(5)"))["more"]:
            pass
        return (await self.connection.fetchval(CARRIED_OUT, self.user.id)) - before

    async def lines(self) -> list[tuple[str, str, int]]:
        """(kind, slug of the level, amount), oldest first."""
        rows = await self.connection.fetch(
            "select i.kind, l.slug, i.amount from level_invoice_lines i join levels l on l.id = i.level_id"
            " where i.user_id = $1 order by i.id",
            self.user.id,
        )
        return [tuple(row) for row in rows]

    async def totals(self) -> dict[Any, int]:
        """The sum of the lines of each period, by its beginning."""
        rows = await self.connection.fetch(
            "select period_start, sum(amount)::bigint from level_invoice_lines where user_id = $1"
            " group by 1 order by 1",
            self.user.id,
        )
        return {row[0]: row[1] for row in rows}

    async def held(self) -> asyncpg.Record | None:
        return await self.connection.fetchrow("select * from user_subscriptions where user_id = $1", self.user.id)

    async def slug(self) -> str:
        return await self.connection.fetchval(
            "select l.slug from user_token_wallets w join levels l on l.tenant_id = w.tenant_id and l.id = w.level_id"
            " where w.user_id = $1",
            self.user.id,
        )

    async def everything(self) -> list[Any]:
        """All that a change writes, to compare before and after."""
        tables = ("user_subscriptions", "level_changes", "level_invoice_lines", "user_token_wallets",
                  "user_token_grants", "user_token_ledger", "audit_logs", "events", "user_token_policies")  # fmt: skip
        return [
            await self.connection.fetchval(
                f"select coalesce(jsonb_agg(to_jsonb(x) order by to_jsonb(x)::text), '[]') from {table} x"
                " where tenant_id = $1",
                self.user.tenant_id,
            )
            for table in (*tables, "level_upgrade_paths", "levels")
        ]


async def refused(work: Any, code: str) -> asyncpg.PostgresError:
    """The refusal, which must have this SQLSTATE."""
    with pytest.raises(asyncpg.PostgresError) as error:
        await work
    assert error.value.sqlstate == code, error.value
    return error.value
