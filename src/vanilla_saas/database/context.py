"""The signed context of a transaction: who acts, verified by the database itself (docs/design/database.md)."""

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

from vanilla_saas.database.errors import VanillaError
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


def expired(token: str) -> bool:
    """Whether the time of a token that we signed is over."""
    return time.time() >= int(token.rsplit(".", 2)[1])


def load_signer(settings: Settings) -> ContextSigner:
    """From `VANILLA_SAAS_CONTEXT_KEY`, else `$VANILLA_SAAS_HOME/context.key`, which is made (0600) when missing.

    Raises VanillaError `invalid_request` for a key that is none, `invalid_state` for a file that cannot be used.
    """
    path = settings.home / "context.key"
    source = "VANILLA_SAAS_CONTEXT_KEY" if settings.context_key else str(path)
    try:
        text = settings.context_key.get_secret_value() if settings.context_key else _key_file(path)
        key = bytes.fromhex(text)
    except OSError as error:
        raise VanillaError(
            "invalid_state",
            f"{path} cannot be used: {error.strerror}.",
            hint="Set VANILLA_SAAS_HOME to a folder of yours with free space, or VANILLA_SAAS_CONTEXT_KEY.",
        ) from None
    except ValueError:
        key = b""
    if len(key) != 32:
        raise VanillaError(
            "invalid_request",
            f"{source} is not 64 hexadecimal digits.",
            hint=f"`openssl rand -hex 32` makes a key; without VANILLA_SAAS_CONTEXT_KEY one is kept in {path}.",
        )
    return ContextSigner(key)


def _key_file(path: Path) -> str:
    if not path.exists():
        create_key_file(path)
    return path.read_text().strip()


def create_key_file(path: Path) -> None:
    """Writes 64 random hexadecimal digits to a new file, whole or not at all; a file that is there stays.

    Raises OSError.
    """
    # the user that root's embedded server runs as must be able to pass through root's home
    path.parent.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(os.urandom(32).hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # atomic, and never over another process's key
    finally:
        temporary.unlink()
