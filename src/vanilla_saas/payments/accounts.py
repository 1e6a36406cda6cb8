"""The Stripe account of a tenant: its two secrets, sealed for its row and never shown again."""

import base64
import re
import secrets
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import structlog

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.payments import store
from vanilla_saas.providers.secrets import SecretBox, SecretError
from vanilla_saas.settings import Settings

log = structlog.get_logger()
_KEY = re.compile(r"(?:sk|rk)_(live|test)_[A-Za-z0-9_]{8,255}")
_WEBHOOK_SECRET = re.compile(r"whsec_[A-Za-z0-9_+/=-]{8,255}")
_ACCOUNT = re.compile(r"acct_[A-Za-z0-9]{4,64}")
_MISSING = VanillaError(
    "invalid_state", "The payment account has no key.", {"need": "payment_account"}, "vanilla-saas payments account"
)
_UNREADABLE = VanillaError(
    "invalid_state",
    "The payment account's secrets cannot be opened.",
    {"need": "payment_account"},
    "An admin sets them again: vanilla-saas payments account",
)


@dataclass(frozen=True, slots=True)
class Change:
    """What of an account is to be changed; None stays."""

    key: str | None = None
    webhook_secret: str | None = None
    stripe_account: str | None = None
    grace_days: int | None = None
    status: str | None = None

    def check(self) -> None:
        """Raises VanillaError `invalid_request`; the message never holds what was sent."""
        for name, value, pattern, form in (
            ("key", self.key, _KEY, "sk_live_..., sk_test_..., rk_live_... or rk_test_..."),
            ("webhook_secret", self.webhook_secret, _WEBHOOK_SECRET, "whsec_..."),
            ("stripe_account", self.stripe_account, _ACCOUNT, "acct_..."),
        ):
            if value is not None and not pattern.fullmatch(value):
                raise VanillaError("invalid_request", f"{name} is not of the form {form}", {"param": name})


def _box(settings: Settings, column: str) -> SecretBox:
    return SecretBox.from_settings(settings, column=column)


async def save(connection: asyncpg.Connection, settings: Settings, tenant_id: UUID, change: Change) -> asyncpg.Record:
    """Makes or changes the tenant's account; the row without its secrets. Raises VanillaError."""
    change.check()
    found = await store.own_account(connection, tenant_id)
    account_id = found["id"] if found else uuid4()
    endpoint = bytes.fromhex(found["endpoint"]) if found else secrets.token_bytes(16)
    key, webhook = change.key, change.webhook_secret
    await store.set_account(
        connection,
        tenant_id,
        account_id,
        endpoint,
        secret=_box(settings, "payment_key").encrypt(tenant_id, account_id, key) if key else None,
        secret_hint=f"{key[:8]}...{key[-4:]}" if key else None,
        webhook_secret=_box(settings, "payment_webhook").encrypt(tenant_id, account_id, webhook) if webhook else None,
        stripe_account=change.stripe_account,
        livemode="_live_" in key[:8] if key else None,
        grace_days=change.grace_days,
        status=change.status,
    )
    saved = await store.own_account(connection, tenant_id)
    assert saved is not None
    return saved


def api_key(settings: Settings, account: dict[str, Any] | None) -> str:
    """The account's API key. Raises VanillaError `invalid_state`."""
    opened = _open(settings, account, "secret", "payment_key")
    if opened is None:
        raise _MISSING
    return opened


def webhook_secret(settings: Settings, account: dict[str, Any] | None) -> str | None:
    """What Stripe signs the account's events with, or None. Raises VanillaError `invalid_state`."""
    return _open(settings, account, "webhook_secret", "payment_webhook")


def _open(settings: Settings, account: dict[str, Any] | None, name: str, column: str) -> str | None:
    if account is None or not account[name]:
        return None
    sealed = base64.b64decode(account[name])
    try:
        return _box(settings, column).decrypt(UUID(account["tenant_id"]), UUID(account["id"]), sealed)
    except SecretError as error:
        log.error("payment_secret_unreadable", account=account["id"], secret=name, error=str(error))
        raise _UNREADABLE from None
