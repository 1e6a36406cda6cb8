"""The numbered files: what the schema of this version is, and how a database of another version is told."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vanilla_saas.database.errors import VanillaError

FIRST_UPGRADE = "011"
"""Files before it are the base, which may run any number of times; from it on each is applied once, forward only."""
RELOAD = "vanilla-saas backup && vanilla-saas restore latest --reload --replace"
"""Brings the rows of a database that another version of the base made into the tables of this one."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `name` is its file name, `checksum` the SHA-256 of its bytes in hex."""

    name: str
    path: Path
    checksum: str


def migrations_directory() -> Path:
    """The folder of the .sql files: beside the package in a wheel, at the root of a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "migrations", package.parent.parent / "migrations"):
        if (candidate / "001_initial_schema.sql").exists():
            return candidate
    raise FileNotFoundError("the migrations are neither in the package nor beside it")


def migrations() -> list[Migration]:
    """All files in the order in which they run."""
    return [
        Migration(path.name, path, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(migrations_directory().glob("[0-9][0-9][0-9]_*.sql"))
    ]


def changed_files(applied: Mapping[str, str]) -> list[str]:
    """Files that were applied in another version than ours; an empty checksum is one that psql ran."""
    return [file.name for file in migrations() if applied.get(file.name, "") not in ("", file.checksum)]


def refuse_changed_files(applied: Mapping[str, str]) -> None:
    """Raises VanillaError `invalid_state` with the command that reloads the data."""
    if changed := changed_files(applied):
        raise VanillaError(
            "invalid_state",
            f"This database was made by another version of {', '.join(changed)}; nothing was changed.",
            {"reload": RELOAD},
            f"Back it up and bring its rows into this version's tables, after stopping its servers: {RELOAD}",
        )
