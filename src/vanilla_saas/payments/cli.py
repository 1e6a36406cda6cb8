"""`vanilla-saas payments`: the operator's way to a tenant's Stripe account, its prices and what its events came to."""

import sys
from typing import Annotated, Any

import asyncpg
import typer

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.levels.money import minor_units, money
from vanilla_saas.levels.store import find_level
from vanilla_saas.payments import store
from vanilla_saas.payments.accounts import Change, save
from vanilla_saas.payments.models import PaymentAccount
from vanilla_saas.settings import Settings

payments = typer.Typer(no_args_is_help=True, help="Payments through Stripe: account, prices, events.")


@payments.command("account")
def account(
    key: Annotated[bool, typer.Option("--key", help="Ask for the API key (sk_... or rk_...).")] = False,
    webhook_secret: Annotated[
        bool, typer.Option("--webhook-secret", help="Ask for the signing secret of the endpoint (whsec_...).")
    ] = False,
    stripe_account: Annotated[str | None, typer.Option(help="acct_...: events of another are refused.")] = None,
    grace_days: Annotated[
        int | None, typer.Option(min=0, max=90, help="Days that a subscription past due keeps its level.")
    ] = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Take payments with it.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Set a tenant's Stripe account; of the tenant platform, that of all tenants without one.

    Secrets are asked for, or read from standard input, one a line.
    """
    change = Change(
        key=_ask("API key") if key else None,
        webhook_secret=_ask("Signing secret") if webhook_secret else None,
        stripe_account=stripe_account,
        grace_days=grace_days,
        status=None if enable is None else "active" if enable else "disabled",
    )
    settings = Settings()

    async def run(connection: asyncpg.Connection) -> PaymentAccount:
        return PaymentAccount.of(await save(connection, settings, await tenant_id(connection, tenant), change))

    saved = as_operator(run)
    base = (settings.public_url or f"http://{settings.host}:{settings.port}").rstrip("/")
    facts = saved.model_dump() | {"webhook_url": base + saved.webhook_path}
    tell(
        f"The account is {saved.status}, key {saved.secret_hint or 'missing'}. Stripe sends its events to"
        f"\n{facts['webhook_url']}",
        facts,
        as_json,
    )


def _ask(what: str) -> str:
    # never an argument: those stand in the list of processes and in the shell's history
    return str(typer.prompt(what, hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()


@payments.command("prices")
def prices(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """What a tenant's prices at Stripe are worth."""

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        rows = await store.prices(connection, await tenant_id(connection, tenant), hidden=True)
        if as_json:
            return [dict(row) for row in rows]
        return [
            {
                "price": row["price_id"],
                "name": row["name"],
                "worth": row["level_name"] or f"{row['tokens']:,} tokens",
                "amount": money(row["amount"], row["currency"]),
                "status": row["status"],
            }
            for row in rows
        ]

    show(as_operator(run), as_json)


@payments.command("set-price")
def set_price(
    price: Annotated[str, typer.Argument(help="Stripe's id of the price: price_...")],
    name: Annotated[str, typer.Option(help="What people read.")],
    amount: Annotated[str, typer.Option(help="As Stripe charges it, in whole units of the currency: 9 or 9.50.")],
    currency: Annotated[str, typer.Option(help="Three letters.")] = "USD",
    tokens: Annotated[int | None, typer.Option(min=1, help="It is a pack of so many tokens.")] = None,
    level: Annotated[str | None, typer.Option(help="It is a subscription to this level: slug or UUID.")] = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Not on sale any more.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Say what a price of Stripe's is worth: a pack of tokens or a level."""
    if (tokens is None) == (level is None):
        raise VanillaError("invalid_request", "A price is worth --tokens or a --level.", {"param": "tokens"})
    code = currency.upper()

    async def run(connection: asyncpg.Connection) -> Any:
        level_id = (await find_level(connection, tenant, level))[1] if level else None
        return await store.set_price(
            connection,
            await tenant_id(connection, tenant),
            price,
            kind="level" if level else "pack",
            name=name,
            currency=code,
            amount=minor_units(amount, code),
            tokens=tokens,
            level_id=level_id,
            status="hidden" if hidden else "active",
        )

    made = as_operator(run)
    tell(f"The price {price} is saved.", {"id": made, "price_id": price}, as_json)


@payments.command("events")
def events(
    tenant: TenantSlug = "default",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """The last events that Stripe sent to a tenant's account, with what came of each."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        return await store.events(connection, await tenant_id(connection, tenant), limit)

    show(as_operator(run), as_json)
