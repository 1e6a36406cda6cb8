"""Budget trees of agents over wallets whose clock the test moves."""

import uuid
from datetime import timedelta
from typing import Any

import asyncpg

from tests.tokens.support import Books, User
from vanilla_saas.checks import run_checks

MONEY = ("allocations_reconcile", "wallets_reconcile", "ledger_verify")


class Trees(Books):
    """The functions of allocations as the operator; an id may stand for its row."""

    async def open(self, user: User, tokens: int, limits: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        more = {"user_id": user.id, "limits": {} if limits is None else limits} | more
        return await self._call("allocation_open", tokens, **more)

    async def carve(self, parent: dict[str, Any], tokens: int | None, **more: Any) -> dict[str, Any]:
        return await self._call("allocation_carve", parent["allocation_id"], tokens, **more)

    async def hold(self, node: dict[str, Any], step: str, tokens: int, **more: Any) -> dict[str, Any]:
        return await self._call("allocation_hold", node["allocation_id"], step, tokens, **more)

    async def pay(self, hold: dict[str, Any], actual: int, **more: Any) -> dict[str, Any]:
        return await self._call("allocation_settle", hold["hold_id"], actual, **more)

    async def release(self, hold: dict[str, Any]) -> dict[str, Any]:
        return await self._call("allocation_release", hold["hold_id"])

    async def close(self, node: dict[str, Any]) -> dict[str, Any]:
        return await self._call("allocation_close", node["allocation_id"])

    async def top_up(self, node: dict[str, Any], tokens: int, **more: Any) -> dict[str, Any]:
        return await self._call("allocation_top_up", node["allocation_id"], tokens, **more)

    async def count(self, node: dict[str, Any], calls: int = 1) -> dict[str, Any]:
        return await self._call("allocation_count_tool_call", node["allocation_id"], calls)

    async def end(self, node: dict[str, Any]) -> bool:
        tenant = await self.connection.fetchval(
            "select tenant_id from resource_allocations where id = $1", node["allocation_id"]
        )
        return await self.connection.fetchval("select vanilla.allocation_end($1, $2)", tenant, node["allocation_id"])

    async def reap_trees(self) -> dict[str, Any]:
        return await self.connection.fetchval("select allocation_reap()")

    async def node(self, node: dict[str, Any]) -> asyncpg.Record:
        return await self.connection.fetchrow("select * from resource_allocations where id = $1", node["allocation_id"])

    async def tokens(self, node: dict[str, Any]) -> tuple[int, int, int, int]:
        """(budget, carved, held, spent)."""
        row = await self.node(node)
        return row["budget_tokens"], row["carved_tokens"], row["held_tokens"], row["spent_tokens"]

    async def later(self, **span: float) -> None:
        now = await self.connection.fetchval("select vanilla.clock()")
        await self.at(now + timedelta(**span))

    async def broken(self) -> list[str]:
        return [str(finding) for finding in await run_checks(self.connection, MONEY)]

    async def _call(self, function: str, *values: Any, **named: Any) -> dict[str, Any]:
        values = tuple(uuid.UUID(v) if isinstance(v, str) and len(v) == 36 else v for v in values)
        places = [f"${n}" for n in range(1, len(values) + 1)]
        places += [f"p_{name} => ${n}" for n, name in enumerate(named, len(values) + 1)]
        if function == "allocation_open":
            places[0] = "p_tokens => $1"
        return await self.connection.fetchval(f"select {function}({', '.join(places)})", *values, *named.values())
