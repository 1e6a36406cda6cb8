"""Who a request is: a session or an API key, looked up at every request, so that revocation is immediate."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import structlog
from fastapi import Depends, Request

from vanilla_saas.database.context import PLATFORM, Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, SESSION_PREFIX, token_hash


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller; `scopes` is None for people, who may do what their role may."""

    identity: Identity
    email: str | None
    tenant: str
    tenant_name: str
    scopes: frozenset[str] | None = None
    must_change_password: bool = False
    display_name: str = ""
    token: str = ""
    key_id: UUID | None = None

    @property
    def outside(self) -> bool:
        """Whether it is a super admin who has opened a tenant: they manage it and are none of its users."""
        return self.identity.role == "superadmin" and self.identity.tenant_id != PLATFORM

    def require_scope(self, scope: str) -> None:
        if self.scopes is not None and scope not in self.scopes and "admin" not in self.scopes:
            raise VanillaError("forbidden", f"The key lacks the scope {scope}.", {"need": scope})

    def require_admin(self) -> None:
        """For reads of an admin's rows: row-level security would show others none, as if there were none."""
        if self.identity.role not in ("admin", "superadmin"):
            raise VanillaError("forbidden", "only an admin of the tenant may do this", {"need": "admin"})


async def identify(database: Database, token: str, tenant_id: UUID | None = None) -> Caller:
    """The caller behind a token; `tenant_id` is a tenant that a super admin has opened.

    Raises VanillaError `authentication_failed`, or `forbidden` for a key that names another tenant.
    """
    found: dict[str, Any] | None = None
    if token.startswith(KEY_PREFIX):
        found = await database.call("select vanilla.key_identity($1)", token_hash(token))
        if found and tenant_id not in (None, UUID(found["tenant_id"])):
            raise VanillaError("forbidden", "A key acts in its own tenant only.", {"param": "X-Vanilla-Tenant"})
    elif token.startswith(SESSION_PREFIX):
        found = await database.call("select vanilla.session_identity($1, $2)", token_hash(token), tenant_id)
    if found is None:
        raise VanillaError("authentication_failed", "The key or session is wrong, expired or revoked.")
    structlog.contextvars.bind_contextvars(tenant_id=found["tenant_id"], user_id=found["user_id"])
    return Caller(
        Identity(UUID(found["tenant_id"]), UUID(found["user_id"]), found["role"]),
        found["email"],
        found["tenant"],
        found["tenant_name"],
        frozenset(found["scopes"]) if "scopes" in found else None,
        found.get("must_change_password", False),
        found.get("display_name", ""),
        token,
        UUID(found["key_id"]) if "key_id" in found else None,
    )


def bearer_token(request: Request) -> str:
    """The token of `Authorization: Bearer`. Raises VanillaError `authentication_failed`."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise VanillaError(
            "authentication_failed", "No key or session was sent.", hint="Send Authorization: Bearer <key or session>."
        )
    return token.strip()


async def caller_of(request: Request) -> Caller:
    """The caller of a request, by `Authorization: Bearer`. Raises VanillaError `authentication_failed`, `forbidden`."""
    token = bearer_token(request)
    tenant = request.headers.get("x-vanilla-tenant")
    try:
        tenant_id = UUID(tenant) if tenant else None
    except ValueError:
        raise VanillaError(
            "invalid_request", "X-Vanilla-Tenant is not a UUID.", {"param": "X-Vanilla-Tenant"}
        ) from None
    database: Database = request.app.state.database
    try:
        caller = await identify(database, token, tenant_id)
    except VanillaError as error:
        if tenant_id is None or error.name != "authentication_failed":
            raise
        await identify(database, token)  # a session that has ended is told so
        raise VanillaError(
            "forbidden",
            "This tenant is not open to you.",
            {"need": "open_tenant", "param": "X-Vanilla-Tenant"},
            "A super admin opens it first: POST /api/v1/tenants/{id}/open.",
        ) from None
    if caller.must_change_password and not request.url.path.startswith("/api/v1/auth/"):
        raise VanillaError(
            "forbidden",
            "The password must be changed first.",
            {"need": "password_change"},
            "POST /api/v1/auth/password",
        )
    return caller


CurrentCaller = Annotated[Caller, Depends(caller_of)]
"""FastAPI dependency: the caller of an API route, by `Authorization: Bearer`."""


async def _key_or_caller(request: Request) -> bytes | Caller:
    token = bearer_token(request)
    if token.startswith(KEY_PREFIX) and "x-vanilla-tenant" not in request.headers:
        return token_hash(token)
    return await caller_of(request)


KeyOrCaller = Annotated[bytes | Caller, Depends(_key_or_caller)]
"""FastAPI dependency for a statement that looks up a key itself: the key's hash, unproven; of a session, the caller."""


def again(request: Request, caller: Caller) -> Callable[[], Awaitable[Identity]]:
    """Looks whoever sent a request up again, as often as it is asked."""

    async def look() -> Identity:
        tenant = caller.identity.tenant_id if "x-vanilla-tenant" in request.headers else None
        return (await identify(request.app.state.database, caller.token, tenant)).identity

    return look


def client_ip(request: Request) -> str:
    """The address the request came from, for throttles and the audit log; empty over a socket."""
    return request.client.host if request.client else ""


@asynccontextmanager
async def acting(request: Request, caller: Caller, *, read_only: bool = False) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that acts as the caller, with the request's id and address for the audit log."""
    database: Database = request.app.state.database
    async with database.transaction(
        caller.identity,
        request_id=getattr(request.state, "request_id", ""),
        client_ip=client_ip(request),
        read_only=read_only,
    ) as connection:
        yield connection
