"""Moves the embedded server's data to another major version with pg_upgrade; the old data is kept."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vanilla_saas.database import postmaster
from vanilla_saas.database.binaries import Binaries, find_binaries, runnable_by
from vanilla_saas.database.embedded_data import SUPERUSER, initialise, last_lines
from vanilla_saas.database.embedded_place import EmbeddedServerError, Place, find_place, prepare_home
from vanilla_saas.settings import Settings

if sys.platform != "win32":
    import fcntl

STOPPING_SECONDS = 30.0
"""How long the stop of a server whose last user has just left is waited for."""


def upgrade(settings: Settings) -> Path | None:
    """Makes the data directory one of `settings.pg_version`; the folder that keeps the old data.

    None when it is of that version already. Raises EmbeddedServerError: embedded_busy while any process
    uses the server, embedded_upgrade_failed with the old data untouched, and those of attach.
    """
    home = prepare_home(settings.home)
    new = find_binaries(settings)
    with _alone(home) as place:
        version = _version(place.data)
        if version == new.version:
            return None
        old = find_binaries(settings.model_copy(update={"pg_version": version, "pg_bin": None}))
        return _upgrade(place, runnable_by(old, place.user), runnable_by(new, place.user))


def _upgrade(place: Place, old: Binaries, new: Binaries) -> Path:
    parent = place.data.parent
    kept = parent / f"data.{old.version}"
    if kept.exists():
        raise EmbeddedServerError(
            "embedded_upgrade_failed", f"{kept} is still there from an upgrade before.", "Move it away."
        )
    made = Place(place.home, parent / "data.upgraded", place.socket_dir, place.user)
    # one that was left by an upgrade cut short is of no use to anybody
    if made.data.exists():
        made.data.rename(parent / "data.new-left")
    initialise(made, new, durable=True, libc=old.version < 17)
    # pg_upgrade writes into its working directory and makes its sockets there, so the path has to be short
    with tempfile.TemporaryDirectory(prefix="vs-", dir="/tmp", ignore_cleanup_errors=True) as work:
        os.chown(work, place.user.uid, place.user.gid)
        code, said = place.user.run(
            [
                *(str(new.folder / "pg_upgrade"), "--username", SUPERUSER),
                *("--old-bindir", str(old.folder), "--new-bindir", str(new.folder)),
                *("--old-datadir", str(place.data), "--new-datadir", str(made.data)),
            ],
            env=postmaster.clean_environment(),
            cwd=work,
        )
    if code:
        made.data.rename(parent / "data.new-left")
        raise EmbeddedServerError(
            "embedded_upgrade_failed",
            f"pg_upgrade of {place.data} from {old.version} to {new.version} failed:\n{last_lines(said, 30)}",
            "The old data is unchanged.",
        )
    place.data.rename(kept)
    made.data.rename(place.data)
    return kept


def _version(data: Path) -> int:
    try:
        return int((data / "PG_VERSION").read_text())
    except (FileNotFoundError, ValueError):
        raise EmbeddedServerError("embedded_data_damaged", f"{data} is not a data directory of PostgreSQL.") from None


@contextmanager
def _alone(home: Path) -> Iterator[Place]:
    """With both locks and no server, so that no process can attach meanwhile."""
    deadline = time.monotonic() + STOPPING_SECONDS
    while True:
        held = [postmaster.try_lock(home / name, fcntl.LOCK_EX) for name in ("start.lock", "users.lock")]
        try:
            if None not in held and not postmaster.postmaster_pid((place := find_place(home)).data):
                yield place
                return
        finally:
            for descriptor in held:
                if descriptor is not None:
                    os.close(descriptor)
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                "embedded_busy", f"The server of {home} is in use.", "Stop every process of Vanilla SaaS first."
            )
        time.sleep(0.05)
