"""The signed context of a transaction: who acts, verified by the database itself (docs/design/database.md)."""

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from uuid import UUID

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.settings import Settings

Role = Literal["user", "admin", "superadmin", "service"]
PLATFORM = UUID(int=0)
"""The tenant of platform-wide rows and of super admins."""
LOOK_EVERY_S = 1.0
"""How often a server looks whether its key file was replaced."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request acts as; `role` is what they may do inside `tenant_id`."""

    tenant_id: UUID
    user_id: UUID
    role: Role


@dataclass(frozen=True, slots=True)
class ContextKey:
    """32 bytes and the name under which the database knows them."""

    secret: bytes
    key_id: str

    @classmethod
    def of(cls, secret: bytes) -> Self:
        if len(secret) != 32:
            raise ValueError("a context key has 32 bytes")
        return cls(secret, hashlib.sha256(b"vanilla context key id" + secret).hexdigest()[:12])

    def login_password(self, role: str) -> str:
        """Password of a run-time login, derived so that one secret serves API, workers and migrate."""
        return hmac.new(self.secret, f"login:{role}".encode(), hashlib.sha256).hexdigest()


class ContextSigner:
    """Signs `v1.<key id>.<tenant>.<user>.<role>.<expiry>.<hmac>` tokens, valid for at most 60 s.

    The first key signs. During a rotation the former ones follow it: their login passwords may still be in force.
    With `path` the keys are read again when that file changes, so that a running server follows a rotation.
    """

    def __init__(self, secret: bytes, *former: bytes, path: Path | None = None):
        self.listed = tuple(ContextKey.of(one) for one in (secret, *former))
        self._known = self.listed
        self.path = path
        self._read = _version(path)
        self._looked = time.monotonic()

    @property
    def key(self) -> bytes:
        return self._known[0].secret

    @property
    def key_id(self) -> str:
        return self._known[0].key_id

    def sign(self, identity: Identity, lifetime_s: int = 60) -> str:
        if self.path and time.monotonic() - self._looked > LOOK_EVERY_S:
            self.refresh()
        expiry = int(time.time()) + lifetime_s
        payload = f"v1.{self.key_id}.{identity.tenant_id}.{identity.user_id}.{identity.role}.{expiry}"
        return f"{payload}.{hmac.new(self.key, payload.encode(), hashlib.sha256).hexdigest()}"

    def login_password(self, role: str) -> str:
        """The password that the signing key gives a run-time login."""
        return self._known[0].login_password(role)

    def login_passwords(self, role: str) -> list[str]:
        """All that may be in force at this moment, the newest first; looks at the file."""
        self.refresh()
        return [key.login_password(role) for key in self._known]

    def refresh(self) -> None:
        """Takes the keys of the file if it has changed; what was known stays known behind them."""
        self._looked = time.monotonic()
        if self.path is None or (version := _version(self.path)) in (None, self._read):
            return
        try:
            self.listed = tuple(map(ContextKey.of, parse_keys(self.path.read_text())))
        except (OSError, ValueError):
            return  # unreadable at this moment: the keys at hand go on
        self._read = version
        self._known = self.listed + tuple(key for key in self._known if key not in self.listed)


def parse_keys(text: str) -> list[bytes]:
    """Keys of 64 hexadecimal digits, by comma or line. Raises ValueError."""
    keys = [bytes.fromhex(word) for word in text.replace(",", " ").split()]
    if not keys or any(len(key) != 32 for key in keys):
        raise ValueError("a context key is 64 hexadecimal digits")
    return keys


def _version(path: Path | None) -> tuple[int, int] | None:
    """Changes with every rename over the file."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns) if found else None


def expired(token: str, within_s: int = 0) -> bool:
    """Whether the time of a token that we signed is over, or will be in so many seconds."""
    return time.time() + within_s >= int(token.rsplit(".", 2)[1])


def load_signer(settings: Settings) -> ContextSigner:
    """From `VANILLA_SAAS_CONTEXT_KEY`, else `$VANILLA_SAAS_HOME/context.key`, which is made (0600) when missing.

    Raises VanillaError `invalid_request` for a key that is none, `invalid_state` for a file that cannot be used.
    """
    path = settings.home / "context.key"
    source = "VANILLA_SAAS_CONTEXT_KEY" if settings.context_key else str(path)
    try:
        text = settings.context_key.get_secret_value() if settings.context_key else _key_file(path)
        keys = parse_keys(text)
    except OSError as error:
        raise VanillaError(
            "invalid_state",
            f"{path} cannot be used: {error.strerror}.",
            hint="Set VANILLA_SAAS_HOME to a folder of yours with free space, or VANILLA_SAAS_CONTEXT_KEY.",
        ) from None
    except ValueError:
        raise VanillaError(
            "invalid_request",
            f"{source} is not 64 hexadecimal digits.",
            hint=f"`openssl rand -hex 32` makes a key; without VANILLA_SAAS_CONTEXT_KEY one is kept in {path}.",
        ) from None
    return ContextSigner(*keys, path=None if settings.context_key else path)


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
    temporary = _written_beside(path, os.urandom(32).hex() + "\n")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # atomic, and never over another process's key
    finally:
        temporary.unlink()


def replace_key_file(path: Path, keys: Iterable[bytes]) -> None:
    """Puts these keys, the signing one first, in place of the file: readers see the former content or this one.

    Raises OSError.
    """
    temporary = _written_beside(path, "".join(key.hex() + "\n" for key in keys))
    try:
        if os.geteuid() == 0:  # root rotates for the user the server runs as
            owner = path.stat()
            os.chown(temporary, owner.st_uid, owner.st_gid)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _written_beside(path: Path, text: str) -> Path:
    """A new file in the same folder, on disk and for its owner alone."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink()
        raise
    return temporary
