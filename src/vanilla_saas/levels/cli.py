"""`vanilla-saas levels`: levels and their terms, features checked and counted, as the operator."""

from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.levels import analytics_cli, change_cli, store
from vanilla_saas.levels.models import (
    Cycle,
    FeatureBody,
    LevelBody,
    Period,
    PriceBody,
    RestrictionBody,
    RestrictionType,
    Terms,
)
from vanilla_saas.levels.money import money
from vanilla_saas.levels.plans import PlanFile
from vanilla_saas.levels.plans_apply import apply, changes
from vanilla_saas.tokens.store import find_user

levels = typer.Typer(no_args_is_help=True, help="Levels of a tenant: features with limits, prices, benefits.")
analytics_cli.add_to(levels)
Level = Annotated[str, typer.Argument(metavar="LEVEL", help="Slug or UUID.")]
FeatureSlug = Annotated[str, typer.Argument(metavar="FEATURE", help="Name of the feature.")]
User = Annotated[str, typer.Argument(help="Email, external id or UUID.")]
change_cli.register(levels)


@levels.command("list")
def list_levels(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Levels of a tenant, lowest tier first, with what they cost now."""

    async def run(connection: asyncpg.Connection) -> list[Terms]:
        return await store.terms(connection, await tenant_id(connection, tenant))

    found = as_operator(run)
    show(
        [
            {
                "slug": level.slug,
                "name": level.name,
                "tier": level.tier,
                "default": level.is_default,
                "status": level.status,
                "users": level.users,
                "features": sum(feature.enabled for feature in level.features),
                "prices": [f"{money(price.amount, price.currency)} {price.cycle}" for price in level.prices],
            }
            for level in found
        ],
        as_json,
    )


@levels.command("show")
def show_level(level: Level, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Features, prices and benefits of a level."""

    async def run(connection: asyncpg.Connection) -> Terms:
        owner, found = await store.find_level(connection, tenant, level)
        return (await store.terms(connection, owner, found))[0]

    terms = as_operator(run)
    if as_json:
        tell("", terms.model_dump(mode="json"), True)
        return
    typer.echo(f"{terms.name} ({terms.slug}), tier {terms.tier}, {terms.users} users")
    show([f.model_dump(exclude={"id"}) for f in terms.features], False)
    show([r.model_dump() for r in terms.restrictions], False)
    show([p.model_dump() | {"amount": money(p.amount, p.currency)} for p in terms.prices], False)
    for benefit in terms.benefits:
        typer.echo(f"{'*' if benefit.highlighted else '-'} {benefit.text}")


@levels.command("apply")
def apply_plans(
    path: Annotated[Path, typer.Argument(metavar="PLANS.YAML", help="Plans; docs/design/levels.md explains them.")],
    yes: Annotated[bool, typer.Option("--yes", help="Change without asking.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a tenant's levels what a file says; shows the differences first, changes all or nothing."""
    file = PlanFile(path)

    async def look(connection: asyncpg.Connection) -> list[dict[str, str]]:
        owner = await tenant_id(connection, tenant)
        found = await changes(connection, owner, file)
        # done and undone: what would be refused is refused before anybody is asked
        attempt = connection.transaction()
        await attempt.start()
        try:
            await apply(connection, owner, file, found)
        finally:
            await attempt.rollback()
        return [change.row for change in found]

    rows = as_operator(look)
    if not rows:
        tell("Nothing differs.", {"changed": False, "changes": []}, as_json)
        return
    if not as_json:
        show(rows, False)
    if not yes and (as_json or not typer.confirm(f"Make {len(rows)} changes?", err=True)):
        tell("Nothing was changed.", {"changed": False, "changes": rows}, as_json)
        return

    async def work(connection: asyncpg.Connection) -> None:
        owner = await tenant_id(connection, tenant)
        found = await changes(connection, owner, file)
        if [change.row for change in found] != rows:
            raise VanillaError("invalid_state", "The levels were changed meanwhile; nothing was.", hint="Look again.")
        await apply(connection, owner, file, found)

    as_operator(work)
    tell(f"{len(rows)} changes made.", {"changed": True, "changes": rows}, as_json)


@levels.command("set")
def set_level(
    slug: Annotated[str, typer.Argument(help="1 to 63 of a-z, 0-9 and hyphens.")],
    name: Annotated[str, typer.Option(help="As people read it.")],
    description: Annotated[str, typer.Option(help="One line.")] = "",
    tier: Annotated[int, typer.Option(min=0, help="Ranks levels, the lowest first.")] = 0,
    default: Annotated[bool, typer.Option("--default", help="The level of new users.")] = False,
    template: Annotated[
        bool | None, typer.Option("--template/--no-template", help="Of the platform: copied into new tenants.")
    ] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a level, or change the one of this slug; a new one grants no tokens."""
    body = LevelBody(slug=slug, name=name, description=description, tier=tier, is_default=default, is_template=template)

    async def run(connection: asyncpg.Connection) -> UUID:
        return await store.set_level(connection, await tenant_id(connection, tenant), body)

    made = as_operator(run)
    tell(f"The level {slug} is set.", {"id": made, "slug": slug}, as_json)


@levels.command("delete")
def delete_level(level: Level, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Delete a level with its terms; the default and one that users hold are refused."""

    async def run(connection: asyncpg.Connection) -> None:
        await store.delete_level(connection, *await store.find_level(connection, tenant, level))

    as_operator(run)
    tell(f"The level {level} is deleted.", {"level": level, "status": "deleted"}, as_json)


@levels.command("feature")
def set_feature(
    level: Level,
    feature: FeatureSlug,
    limit: Annotated[int | None, typer.Option(min=0, help="Uses a period; any number without.")] = None,
    period: Annotated[Period | None, typer.Option(help="What the limit is for.")] = None,
    off: Annotated[bool, typer.Option("--off", help="The level has it not.")] = False,
    category: Annotated[str, typer.Option(help="Groups features.")] = "general",
    name: Annotated[str, typer.Option(help="As people read it.")] = "",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Say what a level allows of a feature; in force at once."""
    body = FeatureBody(enabled=not off, limit=limit, period=period, category=category, name=name)

    async def run(connection: asyncpg.Connection) -> UUID:
        owner, found = await store.find_level(connection, tenant, level)
        return await store.set_feature(connection, owner, found, feature, body)

    made = as_operator(run)
    tell(f"{level} has {feature}.", {"id": made, "feature": feature} | body.model_dump(), as_json)


@levels.command("remove-feature")
def remove_feature(level: Level, feature: FeatureSlug, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Take a feature out of a level."""

    async def run(connection: asyncpg.Connection) -> None:
        await store.delete_feature(connection, *await store.find_level(connection, tenant, level), feature)

    as_operator(run)
    tell(f"{level} has no {feature} any more.", {"level": level, "feature": feature}, as_json)


@levels.command("restrict")
def restrict(
    level: Level,
    kind: Annotated[RestrictionType, typer.Argument(metavar="TYPE", help="What is restricted.")],
    amount: Annotated[int | None, typer.Argument(min=0, help="How much.")] = None,
    pattern: Annotated[
        list[str] | None, typer.Option(help="Of models, * stands for anything; may be repeated.")
    ] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Take the restriction away.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Restrict a level from the next call on, or lift a restriction."""
    body = RestrictionBody(amount=amount, patterns=pattern or None)

    async def run(connection: asyncpg.Connection) -> None:
        owner, found = await store.find_level(connection, tenant, level)
        if lift:
            await store.delete_restriction(connection, owner, found, kind)
        else:
            await store.set_restriction(connection, owner, found, kind, body)

    as_operator(run)
    facts = {"level": level, "type": kind, "lifted": lift} | body.model_dump()
    tell(f"{kind} of {level} is {'lifted' if lift else 'set'}.", facts, as_json)


@levels.command("price")
def set_price(
    level: Level,
    cycle: Annotated[Cycle, typer.Argument(help="What it is paid for.")],
    currency: Annotated[str, typer.Argument(help="ISO 4217.")],
    amount: Annotated[int, typer.Argument(min=0, help="Minor units: cents.")],
    trial_days: Annotated[int, typer.Option(min=0, help="Days free at the beginning.")] = 0,
    trial_credits: Annotated[int, typer.Option(min=0, help="Tokens granted for the trial.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="End the price that holds now.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Set a price of a level from now on."""
    body = PriceBody(
        cycle=cycle,
        currency=currency,
        amount=amount,
        trial_days=trial_days,
        trial_credits=trial_credits,
        replace=replace,
    )

    async def run(connection: asyncpg.Connection) -> UUID:
        owner, found = await store.find_level(connection, tenant, level)
        return await store.set_price(connection, owner, found, body)

    made = as_operator(run)
    text = money(amount, currency.upper())
    tell(f"{level} costs {text} ({cycle}), price {made}.", {"id": made, "amount": amount, "cycle": cycle}, as_json)


@levels.command("end-price")
def end_price(
    price: Annotated[UUID, typer.Argument(metavar="PRICE", help="Id of the price.")],
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """End a price now."""

    async def run(connection: asyncpg.Connection) -> None:
        await store.end_price(connection, await tenant_id(connection, tenant), price)

    as_operator(run)
    tell(f"The price {price} has ended.", {"id": price, "status": "ended"}, as_json)


@levels.command("check")
def check(
    user: User,
    feature: Annotated[str | None, typer.Argument(metavar="FEATURE", help="All of them without.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Whether a user may use a feature once more, why not, and which level would allow it."""

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        owner, user_id = await find_user(connection, tenant, user)
        if feature is not None:
            return [await store.check(connection, user_id, feature)]
        return await store.check_all(connection, owner, user_id)

    columns = ("feature", "allowed", "reason", "used", "limit", "remaining", "period", "resets_at", "level")
    show(
        [
            {name: state[name] for name in columns} | {"allowed_by": (state["allowed_by"] or {}).get("slug")}
            for state in as_operator(run)
        ],
        as_json,
    )


@levels.command("consume")
def consume(
    user: User,
    feature: FeatureSlug,
    amount: Annotated[int, typer.Option(min=1, help="Uses, all or none.")] = 1,
    key: Annotated[str | None, typer.Option(help="Repeating the command with this key counts nothing.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Count uses of a feature by a user."""

    async def run(connection: asyncpg.Connection) -> dict[str, Any]:
        _, user_id = await find_user(connection, tenant, user)
        return await store.consume(connection, user_id, feature, amount, key)

    counted = as_operator(run)
    limit = f" of {counted['limit']}" if counted["limit"] is not None else ""
    again = " (counted before, nothing changed)" if counted["replayed"] else ""
    tell(f"{feature}: {counted['used']}{limit} used{again}", counted, as_json)
