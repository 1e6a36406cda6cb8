"""The tour's levels: a day in figures, and the sum of them against the wallets."""

from uuid import UUID

import asyncpg
from rich.console import Console
from rich.table import Table

from vanilla_saas.database.errors import VanillaError

COLUMNS = ("users", "active_users", "new_users", "upgraded", "tokens_granted", "tokens_spent", "tokens_lapsed")
ROLL = (
    "select roll_up_level_analytics(d, d, $1) from (select (vanilla.clock() at time zone time_zone)::date as d"
    " from tenants where id = $1) t"
)
TODAY = (
    "select a.* from level_analytics a join tenants t on t.id = a.tenant_id where a.tenant_id = $1"
    " and a.day = (vanilla.clock() at time zone t.time_zone)::date order by a.users desc, a.level"
)


async def show(operator: asyncpg.Connection, console: Console, user_id: UUID) -> None:
    """Rolls today up, twice. Raises VanillaError `internal_error` when the second time tells something else."""
    tenant_id = await operator.fetchval("select tenant_id from users where id = $1", user_id)
    # one moment for the figures and for what they are compared with
    async with operator.transaction(isolation="repeatable_read"):
        rows = await operator.fetchval(ROLL, tenant_id)
        before = [dict(row) | {"computed_at": None} for row in await operator.fetch(TODAY, tenant_id)]
        await operator.fetchval(ROLL, tenant_id)
        after = [dict(row) | {"computed_at": None} for row in await operator.fetch(TODAY, tenant_id)]
        levels = await operator.fetchval("select count(*) from levels where tenant_id = $1", tenant_id)
        held = await operator.fetchval(
            "select count(*) from user_token_wallets w join users u on u.tenant_id = w.tenant_id and u.id = w.user_id"
            " where w.tenant_id = $1 and w.level_id is not null and u.status <> 'deleted'",
            tenant_id,
        )
    if before != after or rows < levels or sum(row["users"] for row in after) != held:
        raise VanillaError("internal_error", "The figures of the day are not those of the users.")
    table = Table(
        "level", *(name.replace("_", " ") for name in COLUMNS), box=None, header_style="dim", padding=(0, 2, 0, 1)
    )
    for row in after:
        table.add_row(row["level"], *(f"{row[name]:,}" for name in COLUMNS))
    console.print("   today so far, level by level, computed twice and equal:")
    console.print(table)
