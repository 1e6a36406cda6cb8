"""Pages at the door: sign in, register, set or change a password, sign out."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Form, Request
from fastapi.responses import RedirectResponse, Response

from vanilla_saas.console import page_router, render
from vanilla_saas.console.security import local_path, read_cookie, set_cookie
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tenancy import sign_in as door
from vanilla_saas.tenancy import store
from vanilla_saas.tenancy.identity import client_ip
from vanilla_saas.tenancy.page_session import (
    SESSION_COOKIE,
    SESSION_LIFETIME,
    PageCaller,
    forget_session,
    keep_session,
)
from vanilla_saas.tenancy.secret_tokens import token_hash

TENANT_NAME_COOKIE = "vs_tenant_name"
_YEAR_S = 365 * 24 * 3600

router = page_router()
Text = Annotated[str, Form(max_length=1024)]


def _refused(request: Request, template: str, error: VanillaError, **context: Any) -> Response:
    """The same form again, with what was wrong above it and what was typed still in it."""
    wait = error.detail.get("retry_after_s")
    return render(
        request,
        template,
        status=error.status,
        headers={"retry-after": str(wait)} if wait else None,
        problem=error.problem(),
        **context,
    )


def _door(request: Request, template: str, **context: Any) -> Response:
    return render(request, template, problem=None, **context)


def _check_repeated(password: str, again: str) -> None:
    if password != again:
        raise VanillaError("invalid_request", "The two new passwords differ.", {"param": "again"})


async def _enter(request: Request, tenant: str, email: str, password: str, wanted: str) -> Response:
    # pages sign in again instead of refreshing: nobody keeps the refresh token
    tokens = await door.sign_in(
        request.app.state.database,
        tenant,
        email,
        password,
        client_ip(request),
        request.headers.get("user-agent", ""),
        SESSION_LIFETIME,
        SESSION_LIFETIME,
    )
    response = RedirectResponse("/password" if tokens.must_change_password else local_path(wanted), 303)
    keep_session(request, response, tokens.access_token)
    set_cookie(request, response, TENANT_NAME_COOKIE, tenant[:64], max_age_s=_YEAR_S)
    return response


@router.get("/sign-in")
async def sign_in_form(
    request: Request, tenant: str = "", email: str = "", next: str = "/", notice: str = ""
) -> Response:
    known = tenant or read_cookie(request, TENANT_NAME_COOKIE) or "default"
    return _door(request, "tenancy/sign_in.html", tenant=known, email=email, next=local_path(next), notice=notice)


@router.post("/sign-in")
async def sign_in(request: Request, tenant: Text, email: Text, password: Text, next: Text = "/") -> Response:
    tenant, email = tenant.strip(), email.strip()
    try:
        return await _enter(request, tenant, email, password, next)
    except VanillaError as error:
        context = {"tenant": tenant, "email": email, "next": local_path(next), "notice": ""}
        return _refused(request, "tenancy/sign_in.html", error, **context)


@router.get("/register")
async def register_form(request: Request, tenant: str = "") -> Response:
    known = tenant or read_cookie(request, TENANT_NAME_COOKIE) or "default"
    return _door(request, "tenancy/register.html", tenant=known, email="", display_name="")


@router.post("/register")
async def register(
    request: Request, tenant: Text, email: Text, password: Text, again: Text, display_name: Text = ""
) -> Response:
    tenant, email = tenant.strip(), email.strip()
    try:
        _check_repeated(password, again)
        await door.register(
            request.app.state.database, tenant, email, password, display_name.strip(), client_ip(request)
        )
        return await _enter(request, tenant, email, password, "/")
    except VanillaError as error:
        context = {"tenant": tenant, "email": email, "display_name": display_name}
        return _refused(request, "tenancy/register.html", error, **context)


@router.get("/password")
async def password_form(request: Request, caller: PageCaller, notice: str = "") -> Response:
    return _door(
        request, "tenancy/password.html", forced=caller.must_change_password, email=caller.email, notice=notice
    )


@router.post("/password")
async def change_password(request: Request, caller: PageCaller, current: Text, password: Text, again: Text) -> Response:
    try:
        _check_repeated(password, again)
        await door.change_password(
            request.app.state.database, caller.token, caller.email, current, password, client_ip(request)
        )
    except VanillaError as error:
        context = {"forced": caller.must_change_password, "email": caller.email, "notice": ""}
        return _refused(request, "tenancy/password.html", error, **context)
    return RedirectResponse("/" if caller.must_change_password else "/password?notice=changed", 303)


@router.get("/password/set")
async def set_password_form(request: Request, token: str = "") -> Response:
    return _door(request, "tenancy/set_password.html", token=token)


@router.post("/password/set")
async def set_password(request: Request, token: Text, password: Text, again: Text) -> Response:
    try:
        _check_repeated(password, again)
        user = await door.redeem(request.app.state.database, token.strip(), password, client_ip(request))
    except VanillaError as error:
        return _refused(request, "tenancy/set_password.html", error, token=token)
    response = RedirectResponse("/sign-in?" + urlencode({**user, "notice": "password-set"}), 303)
    forget_session(request, response)
    return response


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    if token := read_cookie(request, SESSION_COOKIE):
        await store.close_session(request.app.state.database, token_hash(token), client_ip(request))
    response = RedirectResponse("/sign-in?notice=signed-out", 303)
    forget_session(request, response)
    return response
