"""`vanilla-saas wallets grant, void, grants, holds, settle, release, extend, policy`: as the operator."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import orjson
import typer

from vanilla_saas.database.cursor import first_page
from vanilla_saas.database.operator import AsJson, as_operator, tell
from vanilla_saas.database.operator import TenantSlug as Tenant
from vanilla_saas.database.operator import show as print_rows
from vanilla_saas.tokens import store, wallet_store
from vanilla_saas.tokens.models import MAX_TOKENS, Enforcement, PolicyExceptions
from vanilla_saas.tokens.wallet_models import GrantBody, GrantKind, GrantOfAnyState, GrantState, Hold, HoldState


def moment(text: str) -> datetime:
    """A time of the command line: ISO 8601, a day alone is its beginning, UTC unless it says otherwise."""
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


User = Annotated[str, typer.Argument(help="Email, external id or UUID.")]
Key = Annotated[str | None, typer.Option(help="Repeating the command with this key changes nothing.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the ledger.")]
HoldId = Annotated[UUID, typer.Argument(metavar="HOLD", help="Id of the hold.")]
Limit = Annotated[int, typer.Option(min=1, help="Newest to print.")]
Moment = Annotated[datetime, typer.Argument(parser=moment, metavar="TIME", help="ISO 8601; UTC when it names no zone.")]
_TIME = {"parser": moment, "metavar": "TIME"}


def grant(
    user: User,
    amount: Annotated[int, typer.Argument(min=1, max=MAX_TOKENS, help="Tokens.")],
    reason: Reason,
    kind: Annotated[GrantKind, typer.Option(help="What it is.")] = "promo",
    since: Annotated[datetime | None, typer.Option("--from", help="When it begins; now.", **_TIME)] = None,
    until: Annotated[datetime | None, typer.Option(help="When what is left lapses; never.", **_TIME)] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=100, help="Less is burned first; as its kind.")] = None,
    key: Key = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Give tokens of a kind, from now or a later time on."""
    body = GrantBody(amount=amount, kind=kind, effective_at=since, expires_at=until, priority=priority, reason=reason)

    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        _, user_id = await store.find_user(connection, tenant, user)
        return await wallet_store.give(connection, user_id, body, key)

    made = as_operator(work)
    again = " (done before, nothing changed)" if made["replayed"] else ""
    tell(f"grant {made['id']}: {made['amount']} tokens, {made['kind']}, {made['state']}{again}", made, as_json)


def void(
    grant_id: Annotated[UUID, typer.Argument(metavar="GRANT", help="Id of the grant.")],
    reason: Reason,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take what is left of a grant away, or call off one that has not begun."""
    voided = as_operator(lambda connection: wallet_store.void(connection, grant_id, reason, key))
    again = " (done before, nothing changed)" if voided["replayed"] else ""
    tell(f"grant {grant_id} is voided{again}", voided, as_json)


def grants(
    user: User,
    state: Annotated[GrantState | None, typer.Option(help="Only these.")] = None,
    limit: Limit = 50,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Print a user's grants, whatever became of them, newest first."""

    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        owner = await store.find_user(connection, tenant, user)
        await store.refresh_wallet(connection, *owner)
        rows = await wallet_store.grants(connection, *owner, first_page(limit), state)
        return [GrantOfAnyState.of(row).model_dump(mode="json") for row in rows]

    _table(
        as_operator(work),
        as_json,
        "id",
        "kind",
        "state",
        "priority",
        "amount",
        "remaining",
        "effective_at",
        "expires_at",
    )


def holds(
    user: User,
    state: Annotated[HoldState | None, typer.Option(help="Holds of this state.")] = "open",
    every: Annotated[bool, typer.Option("--all", help="Holds of every state.")] = False,
    limit: Limit = 50,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Print a user's open holds, or those of another state, newest first."""

    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        owner = await store.find_user(connection, tenant, user)
        if state == "open" and not every:
            rows = await wallet_store.open_holds(connection, *owner, first_page(limit))
        else:
            only = None if every else state
            rows = await wallet_store.holds(connection, *owner, before_seq=None, limit=limit, state=only)
        return [Hold.of(row).model_dump(mode="json") for row in rows]

    _table(as_operator(work), as_json, "id", "state", "amount", "requested", "settled", "created_at", "expires_at")


def settle(
    hold_id: HoldId,
    actual: Annotated[int, typer.Argument(min=0, max=MAX_TOKENS, help="Tokens to charge.")],
    part: Annotated[bool, typer.Option("--part", help="Charge a part and keep holding the rest.")] = False,
    reason: Reason = "settle",
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Charge a hold and return the rest of it."""
    entry = as_operator(lambda connection: wallet_store.settle(connection, hold_id, actual, reason, not part, key))
    tell(_moved(f"charged {actual}", entry), entry, as_json)


def release(hold_id: HoldId, reason: Reason = "release", key: Key = None, as_json: AsJson = False) -> None:
    """Return what a hold still holds; a call in flight that it was made for is then not charged."""
    entry = as_operator(lambda connection: wallet_store.release(connection, hold_id, reason, key))
    tell(_moved(f"released {-entry['reserved_amount']}", entry), entry, as_json)


def extend(hold_id: HoldId, until: Moment, as_json: AsJson = False) -> None:
    """Move the end of an open hold, at most 30 days ahead."""
    end = as_operator(lambda connection: wallet_store.extend(connection, hold_id, until))
    facts = {"hold_id": hold_id, "expires_at": end}
    tell(f"hold {hold_id} ends {end.isoformat(sep=' ', timespec='seconds')}", facts, as_json)


def policy(
    user: User,
    monthly_allocation: Annotated[int | None, typer.Option(help="Tokens a period.")] = None,
    rollover_percent: Annotated[int | None, typer.Option(help="Percent of the unused that roll over.")] = None,
    rollover_cap: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    monthly_cap: Annotated[int | None, typer.Option(help="Tokens: plan and rollover together.")] = None,
    enforcement_mode: Annotated[Enforcement | None, typer.Option(help="What a lack of tokens means.")] = None,
    warning_percent: Annotated[int | None, typer.Option(help="Percent of the allocation.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Drop the exceptions that stand.")] = False,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Print the policy that holds for a user, or change the user's exceptions to that of the level."""
    given = {
        "monthly_allocation": monthly_allocation,
        "rollover_percent": rollover_percent,
        "rollover_cap": rollover_cap,
        "monthly_cap": monthly_cap,
        "enforcement_mode": enforcement_mode,
        "warning_percent": warning_percent,
    }
    change = {name: value for name, value in given.items() if value is not None}

    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        _, user_id = await store.find_user(connection, tenant, user)
        if change or clear:
            standing = {} if clear else (await store.read_policy(connection, user_id)).exceptions.model_dump()
            await wallet_store.set_user_policy(connection, user_id, PolicyExceptions(**standing | change))
        return (await store.read_policy(connection, user_id)).model_dump(mode="json")

    found = as_operator(work)
    if as_json:
        typer.echo(json.dumps(found))
        return
    own = found.pop("exceptions")
    print_rows(
        [{"": name, "holds": value, "own": own.get(name)} for name, value in found.items() if name != "level_id"], False
    )


def _moved(what: str, entry: dict[str, Any]) -> str:
    again = " (done before, nothing changed)" if entry["replayed"] else ""
    left = f"available {entry['available_tokens']}, reserved {entry['reserved_tokens']}"
    return f"{what}: {left}, debt {entry['borrowed_tokens']}{again}"


def _table(rows: list[dict[str, Any]], as_json: bool, *columns: str) -> None:
    if as_json:
        typer.echo(orjson.dumps(rows).decode())
    else:
        print_rows([{column: row[column] for column in columns} for row in rows], False)


def register(app: typer.Typer) -> None:
    """Adds the commands to the group."""
    for command in (grant, void, grants, holds, settle, release, extend, policy):
        app.command()(command)
