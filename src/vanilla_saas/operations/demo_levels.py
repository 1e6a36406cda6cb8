"""The tour's visitor changes plans: what a preview tells is what is charged, and undoing leaves it as it was."""

from typing import Any
from uuid import UUID

import asyncpg
from rich.console import Console

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.levels import change_store, store
from vanilla_saas.levels.change_models import Change, ChangeBody
from vanilla_saas.levels.money import money


async def show(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    """Raises VanillaError `internal_error` when a figure of the change is not the one that was previewed."""
    tenant_id = await operator.fetchval("select tenant_id from users where id = $1", user_id)
    levels = {terms.slug: terms.id for terms in await store.terms(operator, tenant_id)}
    for slug in ("basic", "premium"):
        body = ChangeBody(level_id=levels[slug], currency="USD", trial=False)
        told = await change_store.preview(operator, user_id, body)
        done = await change_store.change(operator, user_id, body, None)
        parts = ", ".join(f"{line.kind} {line.level} {money(line.amount, 'USD')}" for line in done.lines)
        console.print(f"   {done.from_} to {slug}: {parts}; {_tokens(done)}")
        # between the two a moment passed: the rest of the period is a cent shorter at most
        if abs(told.due - done.due) > 1:
            raise VanillaError("internal_error", "A change cost something else than its preview said.")
    before = await _held(operator, tenant_id, user_id)
    later = ChangeBody(level_id=levels["free"], when="period_end")
    asked = await change_store.change(operator, user_id, later, None)
    await change_store.undo(operator, user_id)
    if await _held(operator, tenant_id, user_id) != before:
        raise VanillaError("internal_error", "An undone change left something behind.")
    console.print(f"   down to free on {asked.effective_at:%Y-%m-%d}, undone: nothing is different")
    total = sum(line["amount"] for line in before["lines"])
    console.print(f"   the lines of the period add up to {money(total, 'USD')}, premium's month")


async def _held(operator: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> dict[str, Any]:
    held = await change_store.subscription(operator, tenant_id, user_id)
    assert held is not None
    return held.model_dump()


def _tokens(done: Change) -> str:
    assert done.tokens is not None
    return f"{done.tokens.granted:,} tokens for the rest of the month"
