"""`/api/v1`: the door (auth), oneself (me), users, tenants, keys and the audit log.

A person may do what their role may; a key needs the scope `read` to read and `admin` to write. What is visible is
row-level security's to say, so a user's list of users has one entry.
"""

from typing import Annotated
from uuid import UUID

import asyncpg
import structlog
from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request, Response

from vanilla_saas.database.cursor import Page
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.paging import Paging
from vanilla_saas.database.pool import Database
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy import mail, models, passwords, sign_in, store
from vanilla_saas.tenancy.identity import (
    Caller,
    CurrentCaller,
    acting,
    bearer_token,
    client_ip,
)
from vanilla_saas.tenancy.secret_tokens import (
    KEY_PREFIX,
    ONE_TIME_PREFIX,
    SESSION_PREFIX,
    new_token,
    prefix_of,
    token_hash,
)

log = structlog.get_logger()
router = APIRouter(prefix="/api/v1", tags=["tenancy"])


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _reader(caller: CurrentCaller) -> Caller:
    caller.require_scope("read")
    return caller


def _writer(caller: CurrentCaller) -> Caller:
    caller.require_scope("admin")
    return caller


Reader = Annotated[Caller, Depends(_reader)]
Writer = Annotated[Caller, Depends(_writer)]


# the door ---------------------------------------------------------------------------------------------------------


@router.post("/auth/register", status_code=201)
async def register(request: Request, body: models.RegisterBody) -> models.Registered:
    """Become a user of a tenant that takes registrations, with the tokens of its default level."""
    return models.Registered.of(
        await sign_in.register(
            _database(request),
            body.tenant,
            body.email,
            body.password.get_secret_value(),
            body.display_name,
            client_ip(request),
        )
    )


@router.post("/auth/sign-in")
async def open_session(request: Request, body: models.SignInBody) -> models.TokensAnswer:
    """An access token of an hour and a refresh token of 30 days. Ten attempts per address in 15 minutes."""
    return _tokens(
        await sign_in.sign_in(
            _database(request),
            body.tenant,
            body.email,
            body.password.get_secret_value(),
            client_ip(request),
            request.headers.get("user-agent", ""),
        )
    )


@router.post("/auth/refresh")
async def refresh(request: Request, body: models.RefreshBody) -> models.TokensAnswer:
    """New tokens for a refresh token. Used twice, it ends the sign-in: one of the two users is a thief."""
    return _tokens(await sign_in.refresh(_database(request), body.refresh_token.get_secret_value(), client_ip(request)))


@router.post("/auth/sign-out", status_code=204)
async def sign_out(request: Request) -> Response:
    """End the sign-in of the access token, expired or not, with all that was refreshed from it."""
    await store.close_session(_database(request), token_hash(bearer_token(request)), client_ip(request))
    return Response(status_code=204)


@router.post("/auth/password", status_code=204)
async def change_password(request: Request, caller: CurrentCaller, body: models.PasswordBody) -> Response:
    """Change one's own password; other sessions and open links end. The only route open until a forced change."""
    if not caller.token.startswith(SESSION_PREFIX):
        raise VanillaError("forbidden", "A key changes no password.", {"need": "session"}, "Sign in first.")
    await sign_in.change_password(
        _database(request),
        caller.token,
        caller.email,
        body.old_password.get_secret_value(),
        body.new_password.get_secret_value(),
        client_ip(request),
    )
    return Response(status_code=204)


@router.post("/auth/password/redeem")
async def redeem(request: Request, body: models.RedeemBody) -> models.Redeemed:
    """Set a password with a one-time token; all sessions and other links of the user end."""
    return models.Redeemed.of(
        await sign_in.redeem(
            _database(request), body.token.get_secret_value(), body.new_password.get_secret_value(), client_ip(request)
        )
    )


@router.post("/auth/password/forgot", status_code=202)
async def forgot(request: Request, body: models.ForgotBody, tasks: BackgroundTasks) -> Response:
    """Always 202. Where mail is set up, a known address gets a link; otherwise an admin of the tenant issues one."""
    settings: Settings = request.app.state.settings
    if settings.smtp_url:
        # after the answer, which therefore says nothing by its timing
        tasks.add_task(_mail_link, _database(request), settings, body.tenant, body.email, client_ip(request))
    return Response(status_code=202, background=tasks)


async def _mail_link(database: Database, settings: Settings, tenant: str, email: str, ip: str) -> None:
    assert settings.smtp_url
    try:
        if link := await sign_in.request_link(database, tenant, email, ip):
            address, token = link
            url = sign_in.password_link(settings.public_url, token)
            await mail.send_password_link(settings.smtp_url.get_secret_value(), address, url)
    except (OSError, ValueError, VanillaError, asyncpg.PostgresError) as error:
        # of a mail server's refusal only the kind: its words may repeat what was sent
        log.error("password_link_not_sent", error=type(error).__name__)


def _tokens(tokens: sign_in.Tokens) -> models.TokensAnswer:
    return models.TokensAnswer(
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        expires_at=tokens.expires_at,
        must_change_password=tokens.must_change_password,
    )


# oneself ----------------------------------------------------------------------------------------------------------


@router.get("/me")
async def me(caller: Reader) -> models.Me:
    """Who the session or key is."""
    return models.Me(
        id=caller.identity.user_id,
        tenant_id=caller.identity.tenant_id,
        tenant=caller.tenant,
        tenant_name=caller.tenant_name,
        email=caller.email,
        display_name=caller.display_name,
        role=caller.identity.role,
        scopes=sorted(caller.scopes) if caller.scopes is not None else None,
    )


@router.patch("/me")
async def rename_me(request: Request, caller: Writer, body: models.MeBody) -> models.User:
    """Change one's own display name."""
    async with acting(request, caller) as connection:
        await store.set_display_name(connection, body.display_name)
        return await _user(connection, caller, caller.identity.user_id)


# users ------------------------------------------------------------------------------------------------------------


@router.get("/users")
async def users(request: Request, caller: Reader, paging: Paging) -> Page[models.User]:
    """The tenant's users for an admin; for a user, themselves."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.users(connection, caller.identity.tenant_id, paging.bounds)
    return paging.page(rows, models.User.of)


@router.post("/users", status_code=201)
async def create_user(request: Request, caller: Writer, body: models.UserBody) -> models.User:
    """A new user with the level's tokens. Without a password they set one by a password link."""
    hashed = None
    if body.password is not None:
        password = body.password.get_secret_value()
        passwords.check_policy(password, body.email)
        hashed = await passwords.hash_password(password)
    async with acting(request, caller) as connection:
        user_id = await store.create_user(
            connection,
            caller.identity.tenant_id,
            email=body.email,
            role=body.role,
            display_name=body.display_name,
            password_hash=hashed,
            level_id=body.level_id,
            must_change_password=body.must_change_password,
            external_id=body.external_id,
        )
        return await _user(connection, caller, user_id)


@router.get("/users/{user_id}")
async def user(request: Request, caller: Reader, user_id: UUID) -> models.User:
    """One user that the caller may see."""
    async with acting(request, caller, read_only=True) as connection:
        return await _user(connection, caller, user_id)


@router.patch("/users/{user_id}")
async def change_user(request: Request, caller: Writer, user_id: UUID, body: models.UserPatch) -> models.User:
    """Change role or status; disabling ends the user's sessions and keys at once."""
    if body.role is None and body.status is None:
        raise VanillaError("invalid_request", "Nothing is to be changed.", {"param": "body"}, "Send role or status.")
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        if body.role is not None:
            await store.set_user_role(connection, tenant_id, user_id, body.role)
        if body.status is not None:
            await store.set_user_status(connection, tenant_id, user_id, body.status)
        return await _user(connection, caller, user_id)


@router.post("/users/{user_id}/password-link", status_code=201)
async def password_link(request: Request, caller: Writer, user_id: UUID) -> models.PasswordLink:
    """A link with which the user sets a password: once, within 24 hours."""
    token = new_token(ONE_TIME_PREFIX)
    async with acting(request, caller) as connection:
        until = await store.issue_one_time_token(connection, caller.identity.tenant_id, user_id, token_hash(token))
    url = sign_in.password_link(request.app.state.settings.public_url, token)
    return models.PasswordLink(token=token, url=url, expires_at=until)


async def _user(connection: asyncpg.Connection, caller: Caller, user_id: UUID) -> models.User:
    row = await store.user(connection, caller.identity.tenant_id, user_id)
    if row is None:
        raise VanillaError("not_found", "no such user", {"user_id": str(user_id)})
    return models.User.of(row)


# tenants ----------------------------------------------------------------------------------------------------------


@router.get("/tenants")
async def tenants(request: Request, caller: Reader, paging: Paging) -> Page[models.Tenant]:
    """All tenants for a super admin at the platform, their own for everybody else."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.tenants(connection, paging.bounds)
    return paging.page(rows, models.Tenant.of)


@router.post("/tenants", status_code=201)
async def create_tenant(request: Request, caller: Writer, body: models.TenantBody) -> models.Tenant:
    """A new tenant with the platform's levels; super admins only."""
    async with acting(request, caller) as connection:
        tenant_id = await store.create_tenant(connection, body.slug, body.name, body.time_zone)
        return await _tenant(connection, tenant_id)


@router.patch("/tenants/{tenant_id}")
async def change_tenant(request: Request, caller: Writer, tenant_id: UUID, body: models.TenantPatch) -> models.Tenant:
    """Suspend a tenant, which refuses all access at once, or open it again. Super admins only."""
    async with acting(request, caller) as connection:
        await store.set_tenant_status(connection, tenant_id, body.status)
        return await _tenant(connection, tenant_id)


@router.post("/tenants/{tenant_id}/close")
async def close_tenant(request: Request, caller: Writer, tenant_id: UUID, body: models.CloseBody) -> models.Tenant:
    """End all sessions, keys and links of a tenant and let nobody in. Until `erase_at` it can be opened again.

    From then on its persons are erased. Closing twice is closing once.
    """
    async with acting(request, caller) as connection:
        await store.close_tenant(connection, tenant_id, body.reason, body.grace_days)
        return await _tenant(connection, tenant_id)


@router.post("/tenants/{tenant_id}/open")
async def open_tenant(request: Request, caller: Writer, tenant_id: UUID, body: models.OpenBody) -> models.Opened:
    """Let a super admin into a tenant for eight hours, by the header X-Vanilla-Tenant; both audit logs say why."""
    async with acting(request, caller) as connection:
        until = await store.open_tenant(connection, tenant_id, body.reason)
    return models.Opened(tenant_id=tenant_id, expires_at=until)


@router.delete("/tenants/{tenant_id}/open", status_code=204)
async def leave_tenant(request: Request, caller: Writer, tenant_id: UUID) -> Response:
    """End one's opening of a tenant before its eight hours are over; nothing happens when there is none."""
    async with acting(request, caller) as connection:
        await store.leave_tenant(connection, tenant_id)
    return Response(status_code=204)


async def _tenant(connection: asyncpg.Connection, tenant_id: UUID) -> models.Tenant:
    row = await store.tenant(connection, tenant_id)
    if row is None:
        raise VanillaError("not_found", "no such tenant")
    return models.Tenant.of(row)


# keys -------------------------------------------------------------------------------------------------------------


@router.get("/keys")
async def keys(request: Request, caller: Reader, paging: Paging) -> Page[models.Key]:
    """The tenant's keys for an admin; for a user, their own."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.keys(connection, caller.identity.tenant_id, paging.bounds)
    return paging.page(rows, models.Key.of)


@router.post("/keys", status_code=201)
async def create_key(request: Request, caller: Writer, body: models.KeyBody) -> models.NewKey:
    """A new key, shown once. Admins make keys for anyone in the tenant; only they give admin and act_as."""
    key, tenant_id = new_token(KEY_PREFIX), caller.identity.tenant_id
    async with acting(request, caller) as connection:
        key_id = await store.create_api_key(
            connection,
            tenant_id,
            body.user_id,
            name=body.name,
            prefix=prefix_of(key),
            key_hash=token_hash(key),
            scopes=body.scopes,
            expires_at=body.expires_at,
            budget_tokens=body.budget_tokens,
        )
        row = await store.key(connection, tenant_id, key_id)
    return models.NewKey.of(dict(row) | {"key": key})


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(
    request: Request,
    caller: Writer,
    key_id: UUID,
    cancel_runs: Annotated[bool, Query(description="of a key of an engine: what it began and has not ended")] = True,
) -> Response:
    """Revoke a key: its next request is refused, and what a key of an engine began is cancelled."""
    async with acting(request, caller) as connection:
        await store.revoke_api_key(connection, caller.identity.tenant_id, key_id, cancel_runs=cancel_runs)
    return Response(status_code=204)


# audit ------------------------------------------------------------------------------------------------------------


@router.get("/audit")
async def audit(
    request: Request,
    caller: Reader,
    paging: Paging,
    action: Annotated[str | None, Query(max_length=100, description="Only this action.")] = None,
) -> Page[models.AuditEntry]:
    """The tenant's audit log for an admin; empty for a user."""
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.audit(connection, caller.identity.tenant_id, action, paging.bounds)
    return paging.page(rows, models.AuditEntry.of)
