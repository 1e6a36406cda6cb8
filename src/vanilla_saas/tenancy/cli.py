"""`vanilla-saas tenants`, `users` and `keys`: the operator's way to the functions that the API calls.

Passwords and keys are asked for, read from standard input, or made here and printed once; never an argument.
"""

import asyncio
import secrets
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.context import PLATFORM
from vanilla_saas.database.cursor import first_page
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy import models, passwords, person_cli, sign_in, store
from vanilla_saas.tenancy.person_cli import Who, user_id_of
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, ONE_TIME_PREFIX, new_token, prefix_of, token_hash

tenants = typer.Typer(no_args_is_help=True, help="Tenants: the customer organisations of the platform.")
users = typer.Typer(no_args_is_help=True, help="Users of a tenant; super admins are those of the tenant platform.")
keys = typer.Typer(no_args_is_help=True, help="API keys.")

Limit = Annotated[int, typer.Option(min=1, max=100_000, help="Most rows to list, newest first.")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


class Role(StrEnum):
    user = "user"
    admin = "admin"
    superadmin = "superadmin"


# tenants ----------------------------------------------------------------------------------------------------------


@tenants.command("list")
def list_tenants(limit: Limit = 1000, as_json: AsJson = False) -> None:
    """All tenants."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        return await store.tenants(connection, first_page(limit))

    show(as_operator(run), as_json)


@tenants.command("create")
def create_tenant(
    slug: str,
    name: Annotated[str | None, typer.Option(help="What people read; the slug without it.")] = None,
    time_zone: Annotated[str, typer.Option(help="When days and months begin, such as Europe/Berlin.")] = "UTC",
    as_json: AsJson = False,
) -> None:
    """Make a tenant with the platform's levels."""

    async def run(connection: asyncpg.Connection) -> UUID:
        return await store.create_tenant(connection, slug, name or slug, time_zone)

    made = as_operator(run)
    tell(f"Tenant {slug} is made: {made}", {"id": made, "slug": slug}, as_json)


@tenants.command("suspend")
def suspend_tenant(slug: str, as_json: AsJson = False) -> None:
    """Close all access to a tenant at once: sessions, keys, calls. Nothing is lost."""
    _set_tenant_status(slug, "suspended", as_json)


@tenants.command("activate")
def activate_tenant(slug: str, as_json: AsJson = False) -> None:
    """Open a suspended tenant, or a closed one before it is erased; the keys of a closed one stay revoked."""
    _set_tenant_status(slug, "active", as_json)


@tenants.command("close")
def close_tenant(
    slug: str,
    reason: Annotated[str, typer.Option(help="Why; written to both audit logs.")],
    grace_days: Annotated[
        int | None,
        typer.Option(min=0, max=models.MOST_GRACE_DAYS, help="Days until it is erased; tenants.grace_days without it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Close a tenant: end its sessions, keys and links, refuse everybody. After the grace its persons are erased."""

    async def run(connection: asyncpg.Connection) -> tuple[bool, datetime | None]:
        within = await tenant_id(connection, slug)
        closed = await store.close_tenant(connection, within, reason, grace_days)
        row = await store.tenant(connection, within)
        return closed, row["erase_at"] if row else None

    closed, until = as_operator(run)
    sentence = f"Tenant {slug} is closed." if closed else f"Tenant {slug} was closed already."
    if until:
        sentence += f" Its persons are erased on {until:%Y-%m-%d}; until then: vanilla-saas tenants activate {slug}"
    tell(sentence, {"slug": slug, "status": "closed", "changed": closed, "erase_at": until}, as_json)


@tenants.command("leave")
def leave_tenant(
    slug: str,
    user: Annotated[str | None, typer.Option(help="Only this super admin's opening: email or id.")] = None,
    as_json: AsJson = False,
) -> None:
    """End the openings through which super admins are in a tenant, before their eight hours are over."""

    async def run(connection: asyncpg.Connection) -> int:
        who = await user_id_of(connection, PLATFORM, user) if user else None
        return await store.leave_tenant(connection, await tenant_id(connection, slug), who)

    ended = as_operator(run)
    tell(f"{ended} openings of {slug} ended.", {"slug": slug, "ended": ended}, as_json)


def _set_tenant_status(slug: str, status: str, as_json: bool) -> None:
    async def run(connection: asyncpg.Connection) -> None:
        await store.set_tenant_status(connection, await tenant_id(connection, slug), status)

    as_operator(run)
    tell(f"Tenant {slug} is {status}.", {"slug": slug, "status": status}, as_json)


# users ------------------------------------------------------------------------------------------------------------


@users.command("list")
def list_users(tenant: TenantSlug = "default", limit: Limit = 1000, as_json: AsJson = False) -> None:
    """Users of a tenant."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        return await store.users(connection, await tenant_id(connection, tenant), first_page(limit))

    show(as_operator(run), as_json)


@users.command("create")
def create_user(
    email: str,
    tenant: TenantSlug = "default",
    role: Annotated[Role, typer.Option(help="superadmin only in the tenant platform.")] = Role.user,
    name: Annotated[str, typer.Option(help="Display name.")] = "",
    password_stdin: FromStdin = False,
    as_json: AsJson = False,
) -> None:
    """Make a user. Without --password-stdin a password is made, printed once, and must be changed."""
    password = _read_password(email) if password_stdin else _new_password()
    hashed = asyncio.run(passwords.hash_password(password))

    async def run(connection: asyncpg.Connection) -> UUID:
        return await store.create_user(
            connection,
            await tenant_id(connection, tenant),
            email=email,
            role=role,
            display_name=name,
            password_hash=hashed,
            must_change_password=not password_stdin,
        )

    made = as_operator(run)
    shown = {} if password_stdin else {"password": password}
    sentence = f"User {email} is made: {made}"
    if shown:
        sentence += f"\nPassword, shown once and to be changed at the first sign-in: {password}"
    tell(sentence, {"id": made, "email": email, **shown}, as_json)


@users.command("set-role")
def set_role(user: Who, role: Role, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Make a user an admin of the tenant, or a user again."""

    async def run(connection: asyncpg.Connection) -> None:
        within = await tenant_id(connection, tenant)
        await store.set_user_role(connection, within, await user_id_of(connection, within, user), role)

    as_operator(run)
    tell(f"{user} is {role} now.", {"user": user, "role": role}, as_json)


@users.command("disable")
def disable_user(user: Who, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """End a user's sessions and keys at once."""
    _set_user_status(user, tenant, "disabled", as_json)


@users.command("enable")
def enable_user(user: Who, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Let a disabled user in again."""
    _set_user_status(user, tenant, "active", as_json)


def _set_user_status(user: str, tenant: str, status: str, as_json: bool) -> None:
    async def run(connection: asyncpg.Connection) -> None:
        within = await tenant_id(connection, tenant)
        await store.set_user_status(connection, within, await user_id_of(connection, within, user), status)

    as_operator(run)
    tell(f"{user} is {status}.", {"user": user, "status": status}, as_json)


@users.command("set-password")
def set_password(
    user: Who,
    tenant: TenantSlug = "default",
    password_stdin: FromStdin = False,
    generate: Annotated[bool, typer.Option("--generate", help="Make a password and print it once.")] = False,
    must_change: Annotated[
        bool | None, typer.Option(help="Whether it must be changed at the first sign-in; default: when generated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set a password: asked for, from standard input, or generated. Ends the user's sessions and open links."""
    if password_stdin and generate:
        raise typer.BadParameter("--password-stdin and --generate exclude each other")
    if generate:
        password = _new_password()
    elif password_stdin:
        password = _read_password(user)
    else:
        password = typer.prompt("New password", hide_input=True, confirmation_prompt=True)
        passwords.check_policy(password, user)
    hashed = asyncio.run(passwords.hash_password(password))

    async def run(connection: asyncpg.Connection) -> None:
        within = await tenant_id(connection, tenant)
        who = await user_id_of(connection, within, user)
        await store.set_user_password(connection, within, who, hashed, generate if must_change is None else must_change)

    as_operator(run)
    shown = {"password": password} if generate else {}
    sentence = f"The password of {user} is set."
    tell(sentence + (f" Shown once: {password}" if generate else ""), {"user": user, **shown}, as_json)


@users.command("link")
def link(user: Who, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Print a link with which the user sets a password: once, within 24 hours."""
    token = new_token(ONE_TIME_PREFIX)

    async def run(connection: asyncpg.Connection) -> datetime:
        within = await tenant_id(connection, tenant)
        who = await user_id_of(connection, within, user)
        return await store.issue_one_time_token(connection, within, who, token_hash(token))

    until = as_operator(run)
    url = sign_in.password_link(Settings().public_url, token)
    tell(
        f"{url}\nValid once, until {until:%Y-%m-%d %H:%M} UTC.",
        {"token": token, "url": url, "expires_at": until},
        as_json,
    )


def _read_password(email: str) -> str:
    password = sys.stdin.readline().rstrip("\r\n")
    passwords.check_policy(password, email)
    return password


def _new_password() -> str:
    """Twenty characters, 120 random bits."""
    return secrets.token_urlsafe(15)


person_cli.register(users)


# keys -------------------------------------------------------------------------------------------------------------


@keys.command("list")
def list_keys(tenant: TenantSlug = "default", limit: Limit = 1000, as_json: AsJson = False) -> None:
    """Keys of a tenant, by prefix; the keys themselves are not kept."""

    async def run(connection: asyncpg.Connection) -> store.Rows:
        return await store.keys(connection, await tenant_id(connection, tenant), first_page(limit))

    show(as_operator(run), as_json)


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Option(help="Email or id of the user who pays.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "made by the operator",
    scopes: Annotated[str, typer.Option(help="Of chat, read, admin, act_as, act_as:create, by comma.")] = "chat,read",
    budget: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Most tokens it may ever spend.")] = None,
    expires: Annotated[str | None, typer.Option(help="A date and time, or days from now such as 90d.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a key and print it once."""
    key, until = new_token(KEY_PREFIX), expiry(expires)

    async def run(connection: asyncpg.Connection) -> UUID:
        within = await tenant_id(connection, tenant)
        return await store.create_api_key(
            connection,
            within,
            await user_id_of(connection, within, user),
            name=name,
            prefix=prefix_of(key),
            key_hash=token_hash(key),
            scopes=[scope.strip() for scope in scopes.split(",")],
            expires_at=until,
            budget_tokens=budget,
        )

    made = as_operator(run)
    tell(f"{key}\nShown once. Its id is {made}.", {"id": made, "key": key, "prefix": prefix_of(key)}, as_json)


@keys.command("revoke")
def revoke_key(
    key_id: UUID,
    cancel_runs: Annotated[
        bool, typer.Option("--cancel-runs/--keep-runs", help="Of a key of an engine: what it began and has not ended.")
    ] = True,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Revoke a key: its next request is refused, and what a key of an engine began is cancelled."""

    async def run(connection: asyncpg.Connection) -> None:
        owner = await tenant_id(connection, tenant)
        await store.revoke_api_key(connection, owner, key_id, cancel_runs=cancel_runs)

    as_operator(run)
    tell(f"Key {key_id} is revoked.", {"id": key_id, "revoked": True}, as_json)


def expiry(text: str | None) -> datetime | None:
    """A moment, or so many days from now; None: never."""
    if text is None:
        return None
    try:
        if text.endswith("d"):
            return datetime.now(UTC) + timedelta(days=int(text[:-1]))
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter("90d, 2027-01-31 or 2027-01-31T12:00+00:00", param_hint="--expires") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
