"""One backup is a folder `vanilla-saas-<UTC>/`; its manifest is written last and says what every other file must be."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import orjson

from vanilla_saas.database.schema import migrations
from vanilla_saas.operations.backup_crypto import BackupKey, read_file
from vanilla_saas.operations.backup_errors import BackupError

FORMAT = 1
PRODUCT = "vanilla-saas"
MANIFEST, DUMP, ROLES, CATALOG, ANCHOR = "manifest.json", "database.dump", "roles.sql", "catalog.json", "anchor.jsonl"
NAME = re.compile(r"vanilla-saas-\d{8}T\d{6}Z(-\d+)?")
LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself. Digests are in hex; `tables` are rows and a digest of each, in one snapshot."""

    made_at: str
    version: str
    database: dict[str, Any]
    """name, cluster (system identifier), postgresql (major version), server (full version)."""
    schema: dict[str, Any]
    """checksum, and files: name and SHA-256 of every migration that was applied."""
    tables: list[dict[str, Any]]
    context_keys: list[str]
    """Ids of the keys that the original accepts; never the keys."""
    ledger: dict[str, Any]
    """entries, and whether anchor.jsonl has the ends of their chains."""
    files: dict[str, dict[str, Any]]
    seconds: float
    encryption: dict[str, Any] | None = None
    format: int = FORMAT
    product: str = PRODUCT

    @property
    def rows(self) -> int:
        return sum(table["rows"] for table in self.tables)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file["bytes"] for file in self.files.values())

    def sealed(self, key: BackupKey | None) -> bytes:
        """The file's bytes: the seal is an HMAC when there is a key, else a checksum against accidents."""
        body = asdict(self)
        return orjson.dumps(body | {"seal": _seal(body, key)}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup whose manifest was read and found whole; its other files are looked at by `check_files`."""

    path: Path
    manifest: Manifest
    key: BackupKey | None = field(repr=False)

    def read(self, name: str) -> bytes:
        """A small file, in clear."""
        return b"".join(read_file(self.path / name, self.key))

    def check_files(self, progress: Callable[[int], None] | None = None) -> None:
        """Compares size and SHA-256 of every file, and opens what is encrypted.

        Raises BackupError `backup_damaged`, `backup_locked`.
        """
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise BackupError("backup_damaged", f"{name} of {self.path.name} is missing.", _ANOTHER)
            if (found := path.stat().st_size) != expected["bytes"]:
                raise BackupError(
                    "backup_damaged",
                    f"{name} of {self.path.name} has {found} bytes instead of {expected['bytes']}: it is cut off"
                    " or was changed.",
                    _ANOTHER,
                )
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(1024 * 1024):
                    digest.update(part)
                    if progress:
                        progress(len(part))
            if digest.hexdigest() != expected["sha256"]:
                raise BackupError("backup_damaged", f"{name} of {self.path.name} was changed.", _ANOTHER)
            if self.key:
                for _ in read_file(path, self.key):
                    pass


_ANOTHER = "Take another backup: `vanilla-saas backup list`."


def product_version() -> str:
    return installed_version(PRODUCT)


def schema_of(files: dict[str, str]) -> dict[str, Any]:
    """`files`: name and SHA-256 of each migration. The checksum is over names and SHA-256 in order."""
    text = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return {"checksum": hashlib.sha256(text.encode()).hexdigest(), "files": files}


def our_schema() -> dict[str, Any]:
    """The schema of this version's files."""
    return schema_of({file.name: file.checksum for file in migrations()})


def folder_name(at: datetime) -> str:
    return f"vanilla-saas-{at.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def find_backup(directory: Path, name: str) -> Path:
    """The folder that a person means: a path, a name in `directory`, or `latest`. Raises BackupError."""
    if name == LATEST:
        if not (found := backup_folders(directory)):
            raise BackupError("backup_not_found", f"There is no backup in {directory}.", "vanilla-saas backup")
        return found[-1]
    path = Path(name).expanduser()
    if not path.exists() and (directory / name).exists():
        path = directory / name
    if not path.exists():
        raise BackupError("backup_not_found", f"There is no backup {name}.", "vanilla-saas backup list")
    return path


def backup_folders(directory: Path) -> list[Path]:
    """Finished backups, oldest first; unfinished ones have another name and no manifest."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: (path.name[:29], len(path.name), path.name))


def open_backup(path: Path, passphrase: str | None) -> Backup:
    """Reads the manifest and says what it is not.

    Raises BackupError `backup_foreign`, `backup_damaged`, `backup_newer`, `backup_locked`.
    """
    if not (path / MANIFEST).is_file():
        unfinished = path.is_dir() and any((path / name).exists() for name in (DUMP, ROLES))
        raise BackupError(
            "backup_damaged" if unfinished else "backup_foreign",
            f"{path} has no {MANIFEST}; it is not a finished backup of Vanilla SaaS.",
            "A plain dump is loaded with psql: docs/backup.md.",
        )
    body = _parse(path)
    if body["format"] > FORMAT:
        raise BackupError(
            "backup_newer",
            f"{path.name} has format {body['format']} (version {body.get('version')}); this version reads {FORMAT}.",
            "Restore it with the version that made it, or a newer one.",
        )
    key = None
    if body.get("encryption") is not None:
        if not isinstance(body["encryption"], dict):
            raise BackupError("backup_damaged", f"The manifest of {path.name} is damaged.")
        key = BackupKey.open(passphrase, body["encryption"])
    seal = body.pop("seal", None)
    if seal != _seal(body, key):
        raise BackupError(
            "backup_locked" if key else "backup_damaged",
            f"The manifest of {path.name} was changed{', or the passphrase is another one' if key else ''}.",
            _ANOTHER,
        )
    try:
        return Backup(path, Manifest(**body), key)
    except TypeError:
        raise BackupError("backup_damaged", f"The manifest of {path.name} lacks something.", _ANOTHER) from None


def _parse(path: Path) -> dict[str, Any]:
    try:
        body = orjson.loads((path / MANIFEST).read_bytes())
    except orjson.JSONDecodeError:
        raise BackupError("backup_damaged", f"The manifest of {path.name} is cut off or no JSON.", _ANOTHER) from None
    if not isinstance(body, dict) or body.get("product") != PRODUCT:
        of = body.get("product") if isinstance(body, dict) else None
        raise BackupError("backup_foreign", f"{path} is a backup of {of or 'something else'}, not of Vanilla SaaS.")
    if type(body.get("format")) is not int:
        raise BackupError("backup_damaged", f"The manifest of {path.name} has no format.", _ANOTHER)
    return body


def _seal(body: dict[str, Any], key: BackupKey | None) -> str:
    message = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    return key.seal(message) if key else hashlib.sha256(message).hexdigest()


def sync_folder(path: Path) -> None:
    """A rename or a new file in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
