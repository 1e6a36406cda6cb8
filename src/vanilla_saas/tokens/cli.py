"""`vanilla-saas wallets ...` and `vanilla-saas reset-tokens`: the books, as the operator."""

import json
import sys
from typing import Annotated, Any

import asyncpg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.operator import AsJson, as_operator, in_parts
from vanilla_saas.database.operator import TenantSlug as Tenant
from vanilla_saas.database.operator import show as print_rows
from vanilla_saas.tokens import proof_cli, store, wallet_cli
from vanilla_saas.tokens.models import MAX_TOKENS, Adjustment, Direction

app = typer.Typer(no_args_is_help=True, help="Wallets: balances, ledger, proof. Amounts are tokens.")

User = Annotated[str, typer.Argument(help="Email, external id or UUID.")]
Amount = Annotated[int, typer.Argument(min=-MAX_TOKENS, max=MAX_TOKENS, help="Tokens.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the ledger.")]
Key = Annotated[str | None, typer.Option(help="Repeating the command with this key changes nothing.")]
RESET_PART = 200
"""Wallets whose periods are closed in one transaction."""
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
SIGNED = {"ignore_unknown_options": True}
"""Lets -5 be an amount instead of an option."""


@app.command()
def show(user: User, tenant: Tenant = "default", as_json: AsJson = False) -> None:
    """Print a wallet and its open grants."""

    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        owner = await store.find_user(connection, tenant, user)
        await store.refresh_wallet(connection, *owner)
        wallet = await store.read_wallet(connection, *owner)
        return wallet.model_dump(mode="json")

    wallet = as_operator(work)
    if as_json:
        typer.echo(json.dumps(wallet))
        return
    grants, level = wallet.pop("grants"), wallet.pop("level")
    wallet.pop("policy")  # `wallets policy` prints it
    print_rows(
        [{"": name, "wallet": value} for name, value in ({"level": level and level["slug"]} | wallet).items()], False
    )
    print_rows([{k: grant[k] for k in ("kind", "remaining", "amount", "expires_at")} for grant in grants], False)


@app.command()
def ledger(
    user: User,
    limit: Annotated[int, typer.Option(min=1, help="Newest entries to print.")] = 20,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Print a user's newest ledger entries."""

    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        owner = await store.find_user(connection, tenant, user)
        return [entry.model_dump(mode="json") for entry in await store.read_ledger(connection, *owner, limit=limit)]

    entries = as_operator(work)
    if as_json:
        typer.echo(json.dumps(entries))
        return
    columns = ("seq", "created_at", "direction", "amount", "available_after", "borrowed_after", "reason")
    print_rows([{column: entry[column] for column in columns} for entry in entries], False)


@app.command()
def credit(
    user: User,
    amount: Amount,
    reason: Reason,
    source: Annotated[str, typer.Option(help="manual, purchase, promo, trial or refund.")] = "manual",
    key: Key = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Give tokens; debt is repaid first."""
    _adjust(user, amount, "credit", reason, source, key, tenant, as_json)


@app.command()
def debit(
    user: User, amount: Amount, reason: Reason, key: Key = None, tenant: Tenant = "default", as_json: AsJson = False
) -> None:
    """Charge tokens."""
    _adjust(user, amount, "debit", reason, "manual", key, tenant, as_json)


@app.command(context_settings=SIGNED)
def adjust(
    user: User, amount: Amount, reason: Reason, key: Key = None, tenant: Tenant = "default", as_json: AsJson = False
) -> None:
    """Correct a balance by a signed amount; it does not count as spent."""
    _adjust(user, amount, "adjustment", reason, "manual", key, tenant, as_json)


@app.command()
def level(
    user: User,
    name: Annotated[str, typer.Argument(metavar="LEVEL", help="Slug or UUID.")],
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Put a user on a level and grant its tokens, once a period."""

    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        _, user_id = await store.find_user(connection, tenant, user)
        return await store.allocate_level(connection, user_id, await store.find_level(connection, tenant, name))

    granted = as_operator(work)
    if as_json:
        typer.echo(json.dumps(granted))
        return
    typer.echo(
        f"{user} is on {name}: {granted['base_granted']} tokens for joining,"
        f" {granted['period_granted']} for the period, {granted['restored']} restored;"
        f" available {granted['available_tokens']}"
    )


@app.command()
def lock(user: User, reason: Reason, tenant: Tenant = "default", as_json: AsJson = False) -> None:
    """Refuse debits and reservations of a wallet."""
    _set_status(user, "locked", reason, tenant, as_json)


@app.command()
def unlock(user: User, reason: Reason, tenant: Tenant = "default", as_json: AsJson = False) -> None:
    """Open a locked or suspended wallet."""
    _set_status(user, "active", reason, tenant, as_json)


def reset_tokens(as_json: AsJson = False) -> None:
    """Close every period that is due and grant the next allocation, in parts; stopped, it goes on when run again."""

    async def work(connection: asyncpg.Connection, _: Addresses) -> int:
        due = await store.count_due(connection)
        with Progress(*COLUMNS, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task, count, part = progress.add_task("wallets", total=due), 0, RESET_PART
            while part == RESET_PART:
                part = await store.reset_part(connection, RESET_PART)
                count += part
                progress.update(task, completed=count, total=max(due, count))
        return count

    count = in_parts(work)
    typer.echo(json.dumps({"wallets_reset": count}) if as_json else f"{count} wallets reset")


def _adjust(
    user: str, amount: int, direction: Direction, reason: str, source: str, key: str | None, tenant: str, as_json: bool
) -> None:
    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        _, user_id = await store.find_user(connection, tenant, user)
        body = Adjustment(amount=amount, direction=direction, reason=reason, source=source)
        return await store.adjust(connection, user_id, body, key)

    entry = as_operator(work)
    if as_json:
        typer.echo(json.dumps(entry))
        return
    again = " (done before, nothing changed)" if entry["replayed"] else ""
    typer.echo(
        f"{direction} {entry['amount']}: available {entry['available_tokens']}, debt {entry['borrowed_tokens']}{again}"
    )


def _set_status(user: str, status: str, reason: str, tenant: str, as_json: bool) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        _, user_id = await store.find_user(connection, tenant, user)
        await store.set_status(connection, user_id, status, reason)

    as_operator(work)
    typer.echo(json.dumps({"user": user, "status": status}) if as_json else f"the wallet of {user} is {status}")


wallet_cli.register(app)
proof_cli.register(app)
