"""Files of a backup, plain or encrypted: AES-256-GCM in chunks, so that any size streams and nothing is read unproven.

    magic "VSENC1" || nonce prefix (7 bytes) || chunks: length (4 bytes, big endian) || ciphertext and tag

The nonce of chunk n is prefix || n (4 bytes) || 1 for the last chunk, else 0 (the STREAM construction of Hoang and
others, 2015): chunks that are reordered, repeated or cut off do not open. The file's name is associated data, and each
backup has a key of its own, made from the passphrase and a salt: a file of another backup does not open either.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from vanilla_saas.operations.backup_errors import BackupError

CHUNK = 1024 * 1024
MAGIC = b"VSENC1"
SCRYPT = {"n": 2**15, "r": 8, "p": 1}
_TAG = 16
_HEADER = len(MAGIC) + 7


@dataclass(frozen=True, slots=True)
class BackupKey:
    """The key of one backup; `described` is what its manifest says of it, enough to make it from the passphrase."""

    secret: bytes
    described: dict[str, Any]

    @classmethod
    def new(cls, passphrase: str) -> Self:
        return cls._of(passphrase, {"cipher": "AES-256-GCM", "kdf": "scrypt", "salt": os.urandom(16).hex(), **SCRYPT})

    @classmethod
    def open(cls, passphrase: str | None, described: dict[str, Any]) -> Self:
        """Raises BackupError `backup_locked`, `backup_newer`, `backup_damaged`."""
        if (described.get("cipher"), described.get("kdf")) != ("AES-256-GCM", "scrypt"):
            raise BackupError("backup_newer", "The backup is encrypted in a way that this version does not know.")
        if not passphrase:
            raise BackupError(
                "backup_locked",
                "The backup is encrypted.",
                "Set VANILLA_SAAS_BACKUP_PASSPHRASE to the passphrase it was made with.",
            )
        cost = [described.get(name) for name in ("n", "r", "p")]
        # a manifest that asks for terabytes of memory is not ours
        if cost != [SCRYPT["n"], SCRYPT["r"], SCRYPT["p"]] or not re.fullmatch(
            "[0-9a-f]{32}", str(described.get("salt"))
        ):
            raise BackupError("backup_damaged", "The manifest's encryption is not one that this product writes.")
        return cls._of(passphrase, described)

    @classmethod
    def _of(cls, passphrase: str, described: dict[str, Any]) -> Self:
        salt = bytes.fromhex(described["salt"])
        made = Scrypt(salt, 32, n=described["n"], r=described["r"], p=described["p"]).derive(passphrase.encode())
        return cls(made, described)

    def seal(self, message: bytes) -> str:
        """Authenticates the manifest."""
        return hmac.digest(self._derived(b"manifest"), message, "sha256").hex()

    def cipher(self) -> AESGCM:
        return AESGCM(self._derived(b"files"))

    def _derived(self, use: bytes) -> bytes:
        return hmac.digest(self.secret, b"vanilla-saas backup " + use, "sha256")


class FileWriter:
    """Writes a file of a backup and knows its size and SHA-256; it is on disk when the block ends well."""

    def __init__(self, path: Path, key: BackupKey | None = None):
        self._file: BinaryIO = path.open("xb")
        self._digest = hashlib.sha256()
        self._key, self._name = key, path.name.encode()
        self._pending, self._count = bytearray(), 0
        self.bytes = 0
        if key:
            self._cipher, self._prefix = key.cipher(), os.urandom(7)
            self._put(MAGIC + self._prefix)

    def write(self, data: bytes) -> None:
        """Raises OSError, above all when the disk is full."""
        if self._key is None:
            self._put(data)
            return
        self._pending += data
        while len(self._pending) > CHUNK:  # never all of it: the last chunk is marked, and it is not known yet
            self._put_chunk(bytes(self._pending[:CHUNK]), last=False)
            del self._pending[:CHUNK]

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _put_chunk(self, data: bytes, *, last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._prefix, self._count, last), data, self._name)
        self._put(len(sealed).to_bytes(4, "big") + sealed)
        self._count += 1

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._key:
                    self._put_chunk(bytes(self._pending), last=True)
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def read_file(path: Path, key: BackupKey | None) -> Iterator[bytes]:
    """The content in parts, each proven before it is handed out.

    Raises BackupError `backup_damaged`, `backup_locked`.
    """
    with path.open("rb") as file:
        if key is None:
            while part := file.read(CHUNK):
                yield part
            return
        header = file.read(_HEADER)
        if len(header) < _HEADER or not header.startswith(MAGIC):
            raise BackupError("backup_damaged", f"{path.name} is not an encrypted file of a backup.")
        yield from _opened(file, header[len(MAGIC) :], key.cipher(), path.name)


def read_lines(path: Path, key: BackupKey | None) -> Iterator[bytes]:
    """The lines of a file with their ends, as `read_file` reads it; never the whole of it in memory."""
    rest = b""
    for part in read_file(path, key):
        *lines, rest = (rest + part).splitlines(keepends=True) or [b""]
        yield from lines
        if rest.endswith(b"\n"):
            yield rest
            rest = b""
    if rest:
        yield rest


def _opened(file: BinaryIO, prefix: bytes, cipher: AESGCM, name: str) -> Iterator[bytes]:
    count, length = 0, file.read(4)
    while True:
        size = int.from_bytes(length, "big")
        sealed = file.read(size) if _TAG <= size <= CHUNK + _TAG else b""
        if len(length) < 4 or not sealed or len(sealed) < size:
            raise BackupError("backup_damaged", f"{name} is cut off or changed.")
        length = file.read(4)
        last = not length
        try:
            yield cipher.decrypt(_nonce(prefix, count, last), sealed, name.encode())
        except InvalidTag:
            raise BackupError(
                "backup_locked" if count == 0 else "backup_damaged",
                f"{name} does not open: the passphrase is another one, or the file was changed or cut off.",
            ) from None
        if last:
            return
        count += 1


def _nonce(prefix: bytes, count: int, last: bool) -> bytes:
    return prefix + count.to_bytes(4, "big") + bytes([last])
