"""`vanilla-saas levels change | preview | undo | paths | path`, as the operator."""

from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.levels import change_store, store
from vanilla_saas.levels.change_models import Change, ChangeBody, PaidCycle, Path, PathBody, PreviewBody, Timing, When
from vanilla_saas.levels.money import money
from vanilla_saas.tokens.store import find_user

User = Annotated[str, typer.Argument(help="Email, external id or UUID.")]
Level = Annotated[str, typer.Argument(metavar="LEVEL", help="Slug or UUID.")]
WhenOption = Annotated[When, typer.Option(help="At once, or when the period ends.")]
CycleOption = Annotated[PaidCycle | None, typer.Option(help="What is paid for; as it is without.")]
CurrencyOption = Annotated[str | None, typer.Option(help="ISO 4217; as it is without.")]
TrialOption = Annotated[bool, typer.Option("--trial/--no-trial", help="Begin with the price's trial, if it has one.")]


def register(levels: typer.Typer) -> None:
    """Adds the commands to the group."""
    levels.command("preview")(preview)
    levels.command("change")(change)
    levels.command("undo")(undo)
    levels.command("paths")(paths)
    levels.command("path")(path)


def preview(
    user: User,
    level: Level,
    when: WhenOption = "now",
    cycle: CycleOption = None,
    currency: CurrencyOption = None,
    trial: TrialOption = True,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """What a change of level would come to now; changes nothing."""

    async def run(connection: asyncpg.Connection) -> Change:
        _, user_id = await find_user(connection, tenant, user)
        _, level_id = await store.find_level(connection, tenant, level)
        body = PreviewBody(level_id=level_id, when=when, cycle=cycle, currency=currency, trial=trial)
        return await change_store.preview(connection, user_id, body)

    _print(as_operator(run), as_json)


def change(
    user: User,
    level: Level,
    when: WhenOption = "now",
    cycle: CycleOption = None,
    currency: CurrencyOption = None,
    trial: TrialOption = True,
    key: Annotated[str | None, typer.Option(help="Repeating the command with this key changes nothing.")] = None,
    payment_reference: Annotated[
        str | None, typer.Option(help="Of a payment that a provider has taken; no path is asked for.")
    ] = None,
    billed_amount: Annotated[int | None, typer.Option(help="What the provider took, in minor units.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Change a user's level along a path, with invoice lines and tokens for the rest of the period."""

    async def run(connection: asyncpg.Connection) -> Change:
        _, user_id = await find_user(connection, tenant, user)
        _, level_id = await store.find_level(connection, tenant, level)
        body = ChangeBody(
            level_id=level_id, when=when, cycle=cycle, currency=currency, trial=trial,
            payment_reference=payment_reference, billed_amount=billed_amount,
        )  # fmt: skip
        return await change_store.change(connection, user_id, body, key)

    _print(as_operator(run), as_json)


def undo(user: User, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Call off the change of level that is scheduled; one that took effect is refused."""

    async def run(connection: asyncpg.Connection) -> Change:
        _, user_id = await find_user(connection, tenant, user)
        return await change_store.undo(connection, user_id)

    undone = as_operator(run)
    tell(f"The change to {undone.to} is called off.", undone.model_dump(mode="json", by_alias=True), as_json)


def paths(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """From which level to which one changes, when, and by whom."""

    async def run(connection: asyncpg.Connection) -> list[Path]:
        return await change_store.paths(connection, await tenant_id(connection, tenant))

    show(
        [
            {
                "from": found.from_level,
                "to": found.to_level,
                "timing": found.timing,
                "discount_percent": found.discount_percent,
                "self_service": found.self_service,
            }
            for found in as_operator(run)
        ],
        as_json,
    )


def path(
    start: Annotated[str, typer.Argument(metavar="FROM", help="Slug or UUID of a level.")],
    end: Annotated[str, typer.Argument(metavar="TO", help="Slug or UUID of a level.")],
    discount: Annotated[int, typer.Option(min=0, max=100, help="Percent off the first period.")] = 0,
    timing: Annotated[Timing, typer.Option(help="When one may change.")] = "any",
    self_service: Annotated[bool, typer.Option("--self-service", help="Users do it themselves.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the path away.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a path between two levels, change its terms, or take it away."""
    body = PathBody(discount_percent=discount, timing=timing, self_service=self_service)

    async def run(connection: asyncpg.Connection) -> UUID | None:
        owner, first = await store.find_level(connection, tenant, start)
        _, last = await store.find_level(connection, tenant, end)
        if remove:
            await change_store.delete_path(connection, owner, first, last)
            return None
        return await change_store.set_path(connection, owner, first, last, body)

    made = as_operator(run)
    facts: dict[str, Any] = {"id": made, "from": start, "to": end, "removed": remove} | body.model_dump()
    tell(f"The path from {start} to {end} is {'taken away' if remove else 'set'}.", facts, as_json)


def _print(told: Change, as_json: bool) -> None:
    if as_json:
        tell("", told.model_dump(mode="json", by_alias=True), True)
        return
    word = {"preview": "would change", "applied": "changed", "scheduled": "changes"}.get(told.state, told.state)
    at = "" if told.when == "now" else f" at {told.effective_at:%Y-%m-%d %H:%M} UTC"
    typer.echo(f"{told.from_} -> {told.to}: {word}{at}{' (done before, nothing changed)' if told.replayed else ''}")
    currency = told.currency or ""
    if told.lines:
        show([{"line": f"{x.kind} {x.level}", "amount": money(x.amount, currency)} for x in told.lines], False)
    if told.trial and told.period_end:
        first = money(told.amount, currency)
        typer.echo(f"Free until {told.period_end:%Y-%m-%d %H:%M} UTC with {told.trial_credits:,} tokens, then {first}.")
    elif currency:
        typer.echo(f"Due: {money(told.due, currency)}")
    if told.tokens:
        typer.echo(
            f"Tokens: {told.tokens.granted:,} granted, {told.tokens.taken:,} taken"
            + (f", {told.tokens.short:,} owed" if told.tokens.short else "")
        )
