"""`vanilla-saas levels analytics, plan, subscribe`: as the operator."""

from datetime import UTC, date, datetime
from typing import Annotated, Any

import asyncpg
import typer

from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.levels import analytics_store as store
from vanilla_saas.levels.money import money

_DAY = {"parser": date.fromisoformat, "metavar": "YYYY-MM-DD"}
FIGURES = (
    "level", "users", "active_users", "new_users", "upgraded", "downgraded", "churned", "trials_ended",
    "trials_converted", "tokens_granted", "tokens_spent", "tokens_lapsed",
)  # fmt: skip


def analytics(
    first: Annotated[date | None, typer.Option("--from", help="First day; 30 days until the last.", **_DAY)] = None,
    last: Annotated[date | None, typer.Option("--to", help="Last day; today.", **_DAY)] = None,
    roll_up: Annotated[bool, typer.Option("--roll-up", help="Compute these days now.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """What happened on each level of a tenant, day by day."""

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        owner = await tenant_id(connection, tenant)
        since, until = await store.period(connection, owner, first, last)
        if roll_up:
            await store.roll_up(connection, owner, since, until)
        found = await store.days(connection, owner, since, until)
        return [row.model_dump(mode="json" if as_json else "python") for row in found]

    rows = as_operator(run)
    if as_json:
        show(rows, True)
        return
    show(
        [
            {"day": f"{row['day']}{'' if row['is_final'] else ' so far'}"}
            | {name: row[name] for name in FIGURES}
            | {"run_rate": [money(amount, currency) for currency, amount in sorted(row["run_rate"].items())]}
            | {"limit_hits": [f"{feature} {hits}" for feature, hits in sorted(row["limit_hits"].items())]}
            for row in rows
        ],
        False,
    )


def plan(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """A tenant's own plan with the platform: what it allows and what is used."""

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        return await store.plan(connection, await tenant_id(connection, tenant))

    found = as_operator(run)
    if as_json:
        tell("", found, True)
        return

    def used(what: str) -> str:
        limit = found[what]["limit"]
        return f"{found[what]['used']:,}" + (f" of {limit:,}" if limit is not None else ", no limit")

    typer.echo(f"{tenant} is on {'no plan' if found['tier'] is None else 'the plan ' + found['tier']}")
    typer.echo(f"users: {used('users')}")
    stopped = ", calls are stopped" if found["tokens"]["stopped"] else ""
    until = datetime.fromisoformat(found["tokens"]["resets_at"]).astimezone(UTC)
    typer.echo(f"tokens this month: {used('tokens')}{stopped}, until {until:%Y-%m-%d %H:%M} UTC")
    typer.echo(f"days of history: {found['history_days'] or 'as each level says'}")


def subscribe(
    tier: Annotated[
        str | None, typer.Argument(metavar="[PLAN]", help="Slug of a level of the platform; none: no limits.")
    ] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Put a tenant on a plan of the platform, or on none."""

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        return await store.subscribe(connection, await tenant_id(connection, tenant), tier)

    done = as_operator(run)
    tell(f"{tenant} is on {'no plan' if tier is None else 'the plan ' + tier}.", done, as_json)


def add_to(levels: typer.Typer) -> None:
    """Adds these commands to the group."""
    for command in (analytics, plan, subscribe):
        levels.command(command.__name__)(command)
