"""The data directory of the embedded server: made whole or not at all, pinned to its major version."""

import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path

from vanilla_saas.database.binaries import Binaries
from vanilla_saas.database.embedded_place import EmbeddedServerError, Place, ServerUser
from vanilla_saas.database.postmaster import clean_environment

if sys.platform != "win32":
    import pwd

SUPERUSER = "postgres"
IDENT_MAP = "vanilla_saas"
DEFAULTS = {"shared_buffers": "128MB", "max_connections": "100", "timezone": "UTC", "log_timezone": "UTC"}
"""Written to postgresql.conf by initdb, so that an owner may change them."""
HBA = f"""\
# Every connection comes through the Unix socket and is named by the kernel.
local all all peer map={IDENT_MAP}
local replication all peer map={IDENT_MAP}
"""


def check_version(place: Place, binaries: Binaries) -> None:
    try:
        found = (place.data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if place.data.exists():
            raise EmbeddedServerError(
                "embedded_data_damaged",
                f"{place.data} has no PG_VERSION; it is not a data directory of PostgreSQL.",
                "Move it away, or restore a backup.",
            ) from None
        return
    if found != str(binaries.version):
        raise EmbeddedServerError(
            "embedded_version_mismatch",
            f"{place.data} was made by PostgreSQL {found}, but the binaries in {binaries.folder} are "
            f"PostgreSQL {binaries.version}.",
            f"Set VANILLA_SAAS_PG_VERSION={found}, or stop every process and upgrade the data with "
            "`vanilla-saas pg-upgrade`.",
        )


def initialise(place: Place, binaries: Binaries, durable: bool, libc: bool = False) -> None:
    """initdb into a sibling that becomes the data directory only when it is whole.

    `libc` takes the system's C.UTF-8 although the version has its own: pg_upgrade from 16 asks for the same provider.
    """
    if (before := sorted(place.data.parent.glob("data.[0-9]*"))) and place.data.name == "data":
        raise EmbeddedServerError(
            "embedded_data_damaged",
            f"{place.data} is gone, but {before[-1]} is there: an upgrade was cut short.",
            f"Rename it to {place.data}, and upgrade again.",
        )
    for left in place.data.parent.glob("data.new-*"):
        shutil.rmtree(left)
    locales = [["--locale-provider=builtin", "--locale=C.UTF-8"]]
    if binaries.version < 17:
        # not every libc has C.UTF-8
        locales = [["--locale=C.UTF-8"], ["--locale=C"]]
    elif libc:
        locales = [["--locale-provider=libc", "--locale=C.UTF-8"], ["--locale-provider=libc", "--locale=C"]]
    command = [
        str(binaries.folder / "initdb"),
        "--username",
        SUPERUSER,
        "--encoding=UTF8",
        "--data-checksums",
    ]
    command += ["--auth-local=peer", "--auth-host=reject", "--no-instructions"]
    command += [] if durable else ["--no-sync"]
    for name, value in DEFAULTS.items():
        command += ["--set", f"{name}={value}"]
    for locale in locales:
        new = Path(tempfile.mkdtemp(prefix="data.new-", dir=place.data.parent))
        try:
            if place.user.is_other:
                os.chown(new, place.user.uid, place.user.gid)
            code, said = place.user.run([*command, *locale, "--pgdata", str(new)], env=clean_environment())
            if code == 0:
                _write_as(place.user, new / "pg_hba.conf", HBA)
                write_ident_map(new, place.user)
                new.rename(place.data)
                return
        finally:
            shutil.rmtree(new, ignore_errors=True)
        if "locale" not in said:
            break
    if "No space left on device" in said:
        raise disk_full(place.data.parent, last_lines(said))
    raise EmbeddedServerError("embedded_initdb_failed", f"initdb failed in {place.data.parent}:\n{last_lines(said)}")


def write_ident_map(data: Path, user: ServerUser) -> None:
    """The server's user and root may log in as every role; nobody else can even reach the socket."""
    names = dict.fromkeys((user.name, pwd.getpwuid(0).pw_name))
    text = "".join(f'{IDENT_MAP} "{name}" all\n' for name in names)
    path = data / "pg_ident.conf"
    try:
        unchanged = path.read_text() == text
    except OSError:
        unchanged = False
    if not unchanged:
        _write_as(user, path, text)


def _write_as(user: ServerUser, path: Path, text: str) -> None:
    """As its owner, because root must not follow a link that the server's user put there."""
    code, said = user.run(["/bin/sh", "-c", 'cat > "$1"', "sh", str(path)], text=text)
    if code:
        raise OSError(errno.ENOSPC if "No space left" in said else errno.EIO, said.strip(), str(path))


def last_lines(text: str, count: int = 12) -> str:
    return "\n".join(line for line in text.splitlines()[-count:] if line.strip())


def disk_full(path: Path, said: str) -> EmbeddedServerError:
    return EmbeddedServerError(
        "embedded_disk_full",
        f"No space is left for the embedded server in {path}:\n{said}",
        "Free some space (a new server needs about 50 MB), or set VANILLA_SAAS_HOME to another disk.",
    )
