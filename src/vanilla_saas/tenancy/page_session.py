"""The session behind a page: a cookie, the person it stands for, and the tenant a super admin has opened."""

from datetime import timedelta
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Depends, Request
from fastapi.responses import Response

from vanilla_saas.console import Redirect, Viewer
from vanilla_saas.console.security import forget_cookie, is_fragment, read_cookie, set_cookie
from vanilla_saas.database.context import PLATFORM
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tenancy.identity import Caller, identify
from vanilla_saas.tenancy.secret_tokens import SESSION_PREFIX

SESSION_COOKIE, TENANT_COOKIE = "vs_session", "vs_tenant"
SESSION_LIFETIME = timedelta(hours=12)


def _show(request: Request, caller: Caller) -> None:
    identity = caller.identity
    request.state.viewer = Viewer(
        name=caller.display_name or caller.email or "Signed in",
        email=caller.email or "",
        role=identity.role,
        tenant=caller.tenant,
        tenant_name=caller.tenant_name,
        opened=identity.role == "superadmin" and identity.tenant_id != PLATFORM,
        restricted=caller.must_change_password,
    )


def sign_in_path(request: Request) -> str:
    """The sign-in page, which leads back to where the visitor wanted to go."""
    if request.method != "GET" or is_fragment(request) or request.url.path == "/":
        return "/sign-in"
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return "/sign-in?" + urlencode({"next": wanted})


def session_token(request: Request) -> str:
    """The session's token; an API key in the cookie opens no page. Raises Redirect to the sign-in page."""
    token = read_cookie(request, SESSION_COOKIE)
    if not token.startswith(SESSION_PREFIX):
        request.state.refused = bool(token)  # to show nothing is not to be refused
        raise Redirect(sign_in_path(request))
    return token


async def _identified(request: Request, tenant_id: UUID | None) -> Caller:
    try:
        return await identify(request.app.state.database, session_token(request), tenant_id)
    except VanillaError as error:
        if error.name != "authentication_failed":
            raise
        request.state.refused = True
        if tenant_id is not None:
            # the opening has ended, the session perhaps not: out of the tenant, and asked again there
            raise Redirect("/tenants", forget=(TENANT_COOKIE,)) from None
        raise Redirect(sign_in_path(request), forget=(SESSION_COOKIE,)) from None


def opened_tenant(request: Request) -> UUID | None:
    """The tenant that this browser says is open."""
    try:
        return UUID(read_cookie(request, TENANT_COOKIE))
    except ValueError:
        return None


async def _signed_in(request: Request) -> Caller:
    caller = await _identified(request, opened_tenant(request))
    _show(request, caller)
    if caller.must_change_password and request.url.path != "/password":
        raise Redirect("/password")
    return caller


async def _admin(caller: Annotated[Caller, Depends(_signed_in)]) -> Caller:
    if caller.identity.role not in ("admin", "superadmin"):
        raise VanillaError("forbidden", "This page is for the admins of the tenant.", {"need": "admin"})
    return caller


async def _at_platform(request: Request, viewer: Annotated[Caller, Depends(_signed_in)]) -> Caller:
    if viewer.identity.role != "superadmin":
        raise VanillaError("forbidden", "This page is for super admins.", {"need": "superadmin"})
    # whatever tenant is open: these pages act at the platform
    return viewer if viewer.identity.tenant_id == PLATFORM else await _identified(request, None)


PageCaller = Annotated[Caller, Depends(_signed_in)]
"""The person behind a page, else the sign-in page; a password that must be changed comes first."""
PageAdmin = Annotated[Caller, Depends(_admin)]
"""An admin of the tenant, or a super admin who has opened it."""
PlatformCaller = Annotated[Caller, Depends(_at_platform)]
"""A super admin, acting at the platform even while a tenant is open."""


def keep_session(request: Request, response: Response, token: str) -> None:
    """The session's cookie; a tenant that someone opened in this browser before is left."""
    set_cookie(request, response, SESSION_COOKIE, token, max_age_s=int(SESSION_LIFETIME.total_seconds()))
    forget_cookie(request, response, TENANT_COOKIE)


def forget_session(request: Request, response: Response) -> None:
    forget_cookie(request, response, SESSION_COOKIE)
    forget_cookie(request, response, TENANT_COOKIE)
