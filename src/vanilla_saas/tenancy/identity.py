"""Who a request is: a session or an API key, looked up at every request, so that revocation is immediate."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi import Depends, Request

from vanilla_saas.database.context import Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database

SESSION_PREFIX, REFRESH_PREFIX, KEY_PREFIX, ONE_TIME_PREFIX = "vss_", "vsr_", "vsk_", "vst_"


def new_token(prefix: str) -> str:
    """A secret of 256 random bits, with a prefix that says what it opens."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """What the database keeps of a token: its SHA-256. The token has 256 random bits, so no salt is needed."""
    return hashlib.sha256(token.encode()).digest()


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

    def require_scope(self, scope: str) -> None:
        if self.scopes is not None and scope not in self.scopes and "admin" not in self.scopes:
            raise VanillaError("forbidden", f"The key lacks the scope {scope}.", {"need": scope})


async def identify(database: Database, token: str, tenant_id: UUID | None = None) -> Caller:
    """The caller behind a token; `tenant_id` is a tenant that a super admin has opened.

    Raises VanillaError `authentication_failed`.
    """
    found: dict[str, Any] | None = None
    if token.startswith(KEY_PREFIX):
        found = await database.call("select vanilla.key_identity($1)", token_hash(token))
    elif token.startswith(SESSION_PREFIX):
        found = await database.call("select vanilla.session_identity($1, $2)", token_hash(token), tenant_id)
    if found is None:
        raise VanillaError("authentication_failed", "The key or session is wrong, expired or revoked.")
    return Caller(
        Identity(UUID(found["tenant_id"]), UUID(found["user_id"]), found["role"]),
        found["email"],
        found["tenant"],
        found["tenant_name"],
        frozenset(found["scopes"]) if "scopes" in found else None,
        found.get("must_change_password", False),
        found.get("display_name", ""),
        token,
    )


async def _caller(request: Request) -> Caller:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise VanillaError(
            "authentication_failed", "No key or session was sent.", hint="Send Authorization: Bearer <key or session>."
        )
    tenant = request.headers.get("x-vanilla-tenant")
    try:
        tenant_id = UUID(tenant) if tenant else None
    except ValueError:
        raise VanillaError(
            "invalid_request", "X-Vanilla-Tenant is not a UUID.", {"param": "X-Vanilla-Tenant"}
        ) from None
    caller = await identify(request.app.state.database, token.strip(), tenant_id)
    if caller.must_change_password and not request.url.path.startswith("/api/v1/auth/"):
        raise VanillaError(
            "forbidden",
            "The password must be changed first.",
            {"need": "password_change"},
            "POST /api/v1/auth/password",
        )
    return caller


CurrentCaller = Annotated[Caller, Depends(_caller)]
"""FastAPI dependency: the caller of an API route, by `Authorization: Bearer`."""


@asynccontextmanager
async def acting(request: Request, caller: Caller, *, read_only: bool = False) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that acts as the caller, with the request's id and address for the audit log."""
    database: Database = request.app.state.database
    async with database.transaction(
        caller.identity,
        request_id=getattr(request.state, "request_id", ""),
        client_ip=request.client.host if request.client else "",
        read_only=read_only,
    ) as connection:
        yield connection
