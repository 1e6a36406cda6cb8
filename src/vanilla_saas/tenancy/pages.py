"""Pages of tenancy: users, API keys, audit log, and for super admins the tenants."""

from typing import Annotated
from uuid import UUID

from fastapi import Form, Request
from fastapi.responses import RedirectResponse, Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.console.security import forget_cookie, set_cookie
from vanilla_saas.database.cursor import page_bounds, page_rows
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tenancy import models, page_store, person_pages, sign_in, sign_in_pages, store
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import TENANT_COOKIE, PageAdmin, PageCaller, PlatformCaller, opened_tenant
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, ONE_TIME_PREFIX, new_token, prefix_of, token_hash
from vanilla_saas.web import base_of

"""How much of a key is kept in the clear, to recognise it by."""
OPENED_S = 8 * 3600

router = page_router()
router.include_router(sign_in_pages.router)
router.include_router(person_pages.router)
Text = Annotated[str, Form(max_length=1024)]


def _optional_number(text: str, name: str) -> int | None:
    if not text.strip():
        return None
    if not text.strip().isdecimal():
        raise VanillaError("invalid_request", "That is not a whole number.", {"param": name})
    return int(text)


def _link(request: Request, token: str) -> str:
    return sign_in.password_link(base_of(request), token)


@router.get("/")
async def start(caller: PageCaller) -> Response:
    return RedirectResponse("/tenants" if caller.identity.role == "superadmin" else "/wallet", 303)


# users ----------------------------------------------------------------------------------------------------


@router.get("/users")
async def users(
    request: Request, caller: PageAdmin, q: str = "", before: UUID | None = None, notice: str = ""
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        rows, older = page_store.cursor_of(await page_store.users(connection, tenant_id, q.strip(), before))
        levels = await page_store.levels(connection, tenant_id)
    return render(
        request,
        "tenancy/users.html",
        rows=rows,
        older=older,
        q=q,
        levels=levels,
        notice=notice,
        me=caller.identity.user_id,
    )


@router.post("/users")
async def create_user(
    request: Request,
    caller: PageAdmin,
    email: Text,
    role: Text = "user",
    display_name: Text = "",
    level_id: Annotated[UUID | None, Form()] = None,
) -> Response:
    token = new_token(ONE_TIME_PREFIX)
    async with acting(request, caller) as connection:
        until = await page_store.create_user(
            connection,
            caller.identity.tenant_id,
            email.strip(),
            role,
            display_name.strip(),
            level_id,
            token_hash(token),
        )
    return render(
        request, "tenancy/link.html", email=email.strip(), link=_link(request, token), until=until, created=True
    )


@router.post("/users/{user_id}/link")
async def password_link(request: Request, caller: PageAdmin, user_id: UUID) -> Response:
    token = new_token(ONE_TIME_PREFIX)
    async with acting(request, caller) as connection:
        until = await store.issue_one_time_token(connection, caller.identity.tenant_id, user_id, token_hash(token))
        email = await page_store.user_email(connection, caller.identity.tenant_id, user_id)
    return render(request, "tenancy/link.html", email=email, link=_link(request, token), until=until, created=False)


@router.post("/users/{user_id}/role")
async def set_role(request: Request, caller: PageAdmin, user_id: UUID, role: Text) -> Response:
    async with acting(request, caller) as connection:
        await store.set_user_role(connection, caller.identity.tenant_id, user_id, role)
    return redirect(request, "/users?notice=saved")


@router.post("/users/{user_id}/status")
async def set_status(request: Request, caller: PageAdmin, user_id: UUID, status: Text) -> Response:
    async with acting(request, caller) as connection:
        await store.set_user_status(connection, caller.identity.tenant_id, user_id, status)
    return redirect(request, "/users?notice=saved")


# keys -----------------------------------------------------------------------------------------------------


@router.get("/keys")
async def keys(request: Request, caller: PageCaller, before: UUID | None = None, notice: str = "") -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows, older = page_store.cursor_of(await page_store.keys(connection, caller.identity.tenant_id, before))
    return render(
        request,
        "tenancy/keys.html",
        rows=rows,
        older=older,
        notice=notice,
        admin=caller.identity.role != "user",
        me=caller.identity.user_id,
    )


@router.post("/keys")
async def create_key(
    request: Request,
    caller: PageCaller,
    name: Text,
    scopes: Annotated[list[str] | None, Form()] = None,
    lifetime_days: Text = "",
    budget_tokens: Text = "",
) -> Response:
    key = new_token(KEY_PREFIX)
    async with acting(request, caller) as connection:
        await page_store.create_key(
            connection,
            name.strip(),
            prefix_of(key),
            token_hash(key),
            scopes or [],
            _optional_number(lifetime_days, "lifetime_days"),
            _optional_number(budget_tokens, "budget_tokens"),
        )
    return render(request, "tenancy/key_made.html", name=name.strip(), key=key, back="/keys")


@router.post("/keys/{key_id}/revoke")
async def revoke_key(request: Request, caller: PageCaller, key_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        await store.revoke_api_key(connection, caller.identity.tenant_id, key_id)
    return redirect(request, "/keys?notice=revoked")


# audit ----------------------------------------------------------------------------------------------------


@router.get("/audit")
async def audit(request: Request, caller: PageAdmin, action: str = "", before: str = "") -> Response:
    async with acting(request, caller, read_only=True) as connection:
        bounds = page_bounds(before, page_store.PAGE)
        rows = await page_store.audit(connection, caller.identity.tenant_id, action.strip(), bounds)
    return render(request, "tenancy/audit.html", action=action, **page_rows(rows, page_store.PAGE))


# tenants --------------------------------------------------------------------------------------------------


@router.get("/tenants")
async def tenants(
    request: Request, caller: PlatformCaller, q: str = "", before: UUID | None = None, notice: str = ""
) -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows, older = page_store.cursor_of(await page_store.tenants(connection, q.strip(), before))
        grace = await page_store.grace_days(connection)
    return render(request, "tenancy/tenants.html", rows=rows, older=older, q=q, notice=notice, grace=grace)


@router.post("/tenants")
async def create_tenant(
    request: Request, caller: PlatformCaller, slug: Text, name: Text, time_zone: Text = "UTC"
) -> Response:
    async with acting(request, caller) as connection:
        await store.create_tenant(connection, slug.strip(), name.strip(), time_zone.strip())
    return redirect(request, "/tenants?notice=created")


@router.post("/tenants/leave")
async def leave_tenant(request: Request, caller: PlatformCaller) -> Response:
    if opened := opened_tenant(request):
        async with acting(request, caller) as connection:
            await store.leave_tenant(connection, opened)
    response = redirect(request, "/tenants")
    forget_cookie(request, response, TENANT_COOKIE)
    return response


@router.post("/tenants/{tenant_id}/status")
async def set_tenant_status(request: Request, caller: PlatformCaller, tenant_id: UUID, status: Text) -> Response:
    async with acting(request, caller) as connection:
        await store.set_tenant_status(connection, tenant_id, status)
    return redirect(request, "/tenants?notice=saved")


@router.post("/tenants/{tenant_id}/close")
async def close_tenant(
    request: Request, caller: PlatformCaller, tenant_id: UUID, reason: Text, grace_days: Text = ""
) -> Response:
    grace = _optional_number(grace_days, "grace_days")
    if grace is not None and grace > models.MOST_GRACE_DAYS:
        raise VanillaError("invalid_request", "A grace is 0 to 36,500 days.", {"param": "grace_days"})
    async with acting(request, caller) as connection:
        await store.close_tenant(connection, tenant_id, reason, grace)
    return redirect(request, "/tenants?notice=closed")


@router.post("/tenants/{tenant_id}/open")
async def open_tenant(request: Request, caller: PlatformCaller, tenant_id: UUID, reason: Text) -> Response:
    async with acting(request, caller) as connection:
        await store.open_tenant(connection, tenant_id, reason)
    response = redirect(request, "/users")
    set_cookie(request, response, TENANT_COOKIE, str(tenant_id), max_age_s=OPENED_S)
    return response


ROOM = Room(
    "tenancy",
    "vanilla_saas.tenancy",
    router,
    (
        NavigationEntry("Access", "API keys", "/keys", "key", 20),
        NavigationEntry("Access", "Users", "/users", "users", 21, "admin"),
        NavigationEntry("Access", "Audit log", "/audit", "audit", 22, "admin"),
        NavigationEntry("Platform", "Tenants", "/tenants", "tenants", 30, "superadmin"),
    ),
)
