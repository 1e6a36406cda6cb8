"""Provider API keys at rest: AES-256-GCM, bound to the row and column that hold them.

Bytes: version (1) || key id (4) || nonce (12) || ciphertext and tag. The associated data is the tenant's
uuid, the row's uuid and the column's name, so a ciphertext copied to another tenant or row does not open.
Nothing here logs, and no error carries a key or a plaintext.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vanilla_saas.database.context import create_key_file as make_file
from vanilla_saas.settings import Settings

VERSION = 1
KEY_BYTES = 32
OF_WEBHOOKS = "webhook_secret"
"""The column of what signs webhooks, and of the token and credentials of push notifications."""
_KEY_ID = slice(1, 5)
_NONCE = slice(5, 17)
_CIPHERTEXT = slice(17, None)
_TAG_BYTES = 16


class SecretError(Exception):
    """A secret cannot be stored or read."""

    code = "secret_unreadable"


class SecretKeyMissing(SecretError):
    """There is no usable key to encrypt with."""

    code = "secret_key_missing"


class SecretUnreadable(SecretError):
    """The bytes were changed, belong to another row, or were encrypted under a key that is not known."""


class SecretBox:
    """Encrypts with the first of its keys and decrypts with any of them.

    Rotation: put the new key first, re-encrypt what `is_current` says is not, drop the old key.
    """

    def __init__(self, keys: Sequence[bytes], *, column: str = "api_key") -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise SecretKeyMissing(f"A secret key of {KEY_BYTES} bytes is needed.")
        self._column = column.encode()
        self._newest = _key_id(keys[0])
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}

    @classmethod
    def from_settings(cls, settings: Settings, *, column: str = "api_key", create: bool = True) -> Self:
        """Keys of `settings.secret_key`, else of `secret.key` in the home, made there when missing.

        Both hold 64 hex digits a key, several keys separated by white space or commas, the newest first.
        """
        if settings.secret_key is not None:
            return cls(_parse(settings.secret_key.get_secret_value(), "VANILLA_SAAS_SECRET_KEY"), column=column)
        path = settings.home / "secret.key"
        if create:
            create_key_file(path)
        try:
            text = path.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            raise SecretKeyMissing(
                f"{path} cannot be read. Set VANILLA_SAAS_SECRET_KEY or put the key back: without it the "
                "stored provider keys stay closed."
            ) from None
        return cls(_parse(text, str(path)), column=column)

    def __repr__(self) -> str:
        return f"SecretBox(newest={self._newest.hex()}, keys={len(self._ciphers)})"

    def encrypt(self, tenant_id: UUID, row_id: UUID, plaintext: str) -> bytes:
        """The plaintext as bytes to store in that row."""
        # 96 random bits: safe for 2**32 secrets under one key (NIST SP 800-38D, 8.3)
        nonce = os.urandom(12)
        sealed = self._ciphers[self._newest].encrypt(nonce, plaintext.encode(), self._context(tenant_id, row_id))
        return bytes([VERSION]) + self._newest + nonce + sealed

    def decrypt(self, tenant_id: UUID, row_id: UUID, stored: bytes) -> str:
        """The plaintext of that row's bytes; SecretUnreadable when they are not exactly what was stored."""
        stored = bytes(stored)
        if len(stored) < _CIPHERTEXT.start + _TAG_BYTES or stored[0] != VERSION:
            raise SecretUnreadable("The stored secret is not in a form that this version knows.")
        cipher = self._ciphers.get(stored[_KEY_ID])
        if cipher is None:
            raise SecretUnreadable(f"The secret needs key {stored[_KEY_ID].hex()}, which is not known here.")
        try:
            opened = cipher.decrypt(stored[_NONCE], stored[_CIPHERTEXT], self._context(tenant_id, row_id))
        except InvalidTag:
            opened = None
        if opened is None:
            raise SecretUnreadable("The stored secret was changed or belongs to another row.")
        return opened.decode()

    def is_current(self, stored: bytes) -> bool:
        """False when the bytes should be encrypted again under the newest key."""
        return bytes(stored[:5]) == bytes([VERSION]) + self._newest

    def _context(self, tenant_id: UUID, row_id: UUID) -> bytes:
        return tenant_id.bytes + row_id.bytes + self._column


def create_key_file(path: Path) -> None:
    """Writes a new key to `path`, readable by its owner only, unless the file is there already.

    Several processes may start at once and agree on one. Raises SecretKeyMissing.
    """
    try:
        if not path.exists():
            make_file(path)
    except OSError as error:
        raise SecretKeyMissing(f"{path} cannot be created: {error.strerror}.") from None


def _parse(text: str, source: str) -> list[bytes]:
    try:
        keys = [bytes.fromhex(word) for word in text.replace(",", " ").split()]
    except ValueError:
        keys = []
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise SecretKeyMissing(f"{source} must hold {KEY_BYTES * 2} hex digits for each key.")
    return keys


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"vanilla-saas secret key id" + key).digest()[:4]
