"""The flows at the door, for the API and the pages alike: register, sign in, refresh, change or redeem a password.

The rules are the database's. What happens here is what it cannot do: hash passwords and make tokens, of which it keeps
only hashes. A sign-in takes the same steps for an unknown address as for a wrong password.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy import passwords, store
from vanilla_saas.tenancy.secret_tokens import ONE_TIME_PREFIX, REFRESH_PREFIX, SESSION_PREFIX, new_token, token_hash

LIFETIME, REFRESH_LIFETIME = timedelta(hours=1), timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Tokens:
    """An open session. The tokens are shown once; the database has their hashes."""

    access_token: str
    refresh_token: str
    expires_at: datetime
    must_change_password: bool


def password_link(public_url: str | None, token: str) -> str:
    """Where a one-time token is redeemed; a path when the installation does not know its address."""
    return f"{(public_url or '').rstrip('/')}/password/set?{urlencode({'token': token})}"


async def register(
    database: Database, tenant: str, email: str, password: str, display_name: str, ip: str
) -> dict[str, Any]:
    """A new user of a tenant that takes registrations: tenant_id and user_id.

    Raises VanillaError `limit_reached`, `invalid_request`, `forbidden`, or `invalid_state` for a taken address.
    """
    passwords.check_policy(password, email)
    _refuse_until(await store.begin_registration(database, ip), "Too many registrations from this network.")
    return await store.register_user(database, tenant, email, await passwords.hash_password(password), display_name, ip)


async def sign_in(
    database: Database,
    tenant: str,
    email: str,
    password: str,
    ip: str,
    user_agent: str,
    lifetime: timedelta = LIFETIME,
    refresh_lifetime: timedelta = REFRESH_LIFETIME,
) -> Tokens:
    """Compares the password and opens a session.

    Raises VanillaError `limit_reached` with retry_after_s after ten attempts in 15 minutes, or
    `authentication_failed` in the same words and after the same work for a wrong tenant, address or password.
    """
    attempt = await store.begin_sign_in(database, tenant, email, ip)
    _refuse_until(attempt.retry_after_s, "Too many attempts to sign in.")
    right = await passwords.verify_password(attempt.password_hash, password)
    if attempt.password_hash is None or not right:
        await store.fail_sign_in(database, tenant, email, ip)
        raise VanillaError("authentication_failed", "Tenant, email or password is wrong.")
    outdated = passwords.needs_rehash(attempt.password_hash)
    access, refresh = new_token(SESSION_PREFIX), new_token(REFRESH_PREFIX)
    facts = await store.finish_sign_in(
        database,
        tenant,
        email,
        token_hash(access),
        token_hash(refresh),
        ip,
        user_agent,
        lifetime,
        refresh_lifetime,
        attempt.password_hash,
        await passwords.hash_password(password) if outdated else None,
    )
    return Tokens(access, refresh, datetime.fromisoformat(facts["expires_at"]), facts["must_change_password"])


async def refresh(database: Database, refresh_token: str, ip: str) -> Tokens:
    """New tokens for a refresh token, once: used twice it ends the sign-in. Raises `authentication_failed`."""
    access, renewed = new_token(SESSION_PREFIX), new_token(REFRESH_PREFIX)
    facts = await store.rotate_session(database, token_hash(refresh_token), token_hash(access), token_hash(renewed), ip)
    if facts["outcome"] != "rotated":
        raise VanillaError(
            "authentication_failed",
            "The refresh token was used before; the sign-in is ended."
            if facts["outcome"] == "reused"
            else "The refresh token is wrong, expired or revoked.",
            hint="Sign in again.",
        )
    return Tokens(access, renewed, datetime.fromisoformat(facts["expires_at"]), facts["must_change_password"])


async def change_password(database: Database, token: str, email: str | None, old: str, new: str, ip: str) -> None:
    """Replaces the password of a session's user and ends their other sessions.

    Raises VanillaError `invalid_request`, `limit_reached`, or `authentication_failed` when `old` is wrong.
    """
    passwords.check_policy(new, email)
    if new == old:
        raise VanillaError("invalid_request", "The new password is the old one.", {"param": "password"})
    attempt = await store.begin_password_change(database, token_hash(token))
    _refuse_until(attempt.retry_after_s, "Too many attempts to change the password.")
    if not await passwords.verify_password(attempt.password_hash, old):
        raise VanillaError("authentication_failed", "The old password is wrong.")
    if not await store.change_password(database, token_hash(token), await passwords.hash_password(new), ip):
        raise VanillaError("authentication_failed", "The session has ended.", hint="Sign in again.")


async def redeem(database: Database, token: str, password: str, ip: str) -> dict[str, Any]:
    """Sets a password with a one-time token: tenant (slug) and email of the user. Ends all their sessions.

    Raises VanillaError `invalid_request`, or `authentication_failed` for a token that is wrong, used or too old.
    """
    user = await store.one_time_token_user(database, token_hash(token))
    if user is None:
        raise VanillaError(
            "authentication_failed", "the link is used up or too old", hint="Ask an admin for a new one."
        )
    passwords.check_policy(password, user["email"])
    return await store.redeem_one_time_token(database, token_hash(token), await passwords.hash_password(password), ip)


async def request_link(database: Database, tenant: str, email: str, ip: str) -> tuple[str, str] | None:
    """The address to write to and a new one-time token; None when nobody is to get one."""
    token = new_token(ONE_TIME_PREFIX)
    address = await store.request_password_link(database, tenant, email, ip, token_hash(token))
    return (address, token) if address else None


def _refuse_until(retry_after_s: int, message: str) -> None:
    if retry_after_s > 0:
        raise VanillaError("limit_reached", message, {"retry_after_s": retry_after_s})
