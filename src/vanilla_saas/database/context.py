"""The signed context of a transaction: who acts, verified by the database itself (docs/design/database.md)."""

import hashlib
import hmac
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

from vanilla_saas.settings import Settings

Role = Literal["user", "admin", "superadmin", "service"]
PLATFORM = UUID(int=0)
"""The tenant of platform-wide rows and of super admins."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request acts as; `role` is what they may do inside `tenant_id`."""

    tenant_id: UUID
    user_id: UUID
    role: Role


class ContextSigner:
    """Signs `v1.<key id>.<tenant>.<user>.<role>.<expiry>.<hmac>` tokens, valid for at most 60 s."""

    def __init__(self, key: bytes):
        if len(key) != 32:
            raise ValueError("a context key has 32 bytes")
        self._key = key
        self.key_id = hashlib.sha256(b"vanilla context key id" + key).hexdigest()[:12]

    @property
    def key(self) -> bytes:
        return self._key

    def sign(self, identity: Identity, lifetime_s: int = 60) -> str:
        expiry = int(time.time()) + lifetime_s
        payload = f"v1.{self.key_id}.{identity.tenant_id}.{identity.user_id}.{identity.role}.{expiry}"
        return f"{payload}.{hmac.new(self._key, payload.encode(), hashlib.sha256).hexdigest()}"

    def login_password(self, role: str) -> str:
        """Password of a run-time login, derived so that one secret serves API, workers and migrate."""
        return hmac.new(self._key, f"login:{role}".encode(), hashlib.sha256).hexdigest()


def load_signer(settings: Settings) -> ContextSigner:
    """From `VANILLA_SAAS_CONTEXT_KEY`, else `$VANILLA_SAAS_HOME/context.key`, which is made (0600) when missing."""
    return ContextSigner(
        load_key(
            settings.context_key.get_secret_value() if settings.context_key else None,
            settings.home / "context.key",
        )
    )


def load_key(configured: str | None, path: Path) -> bytes:
    """A 32-byte key from 64 hex digits, else from a file that is created with random bytes.

    Raises ValueError when the text is not 64 hex digits.
    """
    text = configured
    if text is None:
        if not path.exists():
            _create_key_file(path)
        text = path.read_text().strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError(f"{'the configured key' if configured else path} is not 64 hexadecimal digits")
    return key


def _create_key_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(os.urandom(32).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)  # atomic, and never over another process's key
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
