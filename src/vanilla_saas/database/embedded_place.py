"""Where the embedded server lives and as which user of the system it runs.

Not root: everything lies in the home and belongs to the caller. Root: PostgreSQL refuses to run as root,
so the server runs as a system user, and its folders must lie where that user can reach them.
"""

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from vanilla_saas.database.postmaster import PORT, open_private

if sys.platform != "win32":
    import pwd

SYSTEM_USER = "vanilla-saas"
"""Runs the server when root starts it."""
SYSTEM_FOLDER = Path("/var/lib/vanilla-saas")
"""Root's folder for what the system user must reach: copied binaries, and data of unreachable homes."""
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket."""


class EmbeddedServerError(Exception):
    """The embedded server cannot be used. `code` is stable and listed in docs/design/embedded.md."""

    def __init__(self, code: str, detail: str, hint: str = "") -> None:
        super().__init__(f"{detail} {hint}".strip())
        self.code = code
        self.detail = detail
        self.hint = hint


@dataclass(frozen=True)
class ServerUser:
    """The user of the operating system that the postmaster runs as."""

    name: str
    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Whether a child must change its user to become this one."""
        return os.geteuid() == 0 and self.uid != 0

    def run(
        self, command: list[str], text: str = "", env: dict[str, str] | None = None, cwd: str = "/"
    ) -> tuple[int, str]:
        """Runs a command as this user; exit status and both its streams."""
        done = subprocess.run(
            command,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            cwd=cwd,
            env=env,
            umask=0o077,
            user=self.uid if self.is_other else None,
            group=self.gid if self.is_other else None,
            extra_groups=[] if self.is_other else None,
        )
        return done.returncode, done.stdout

    def may_enter(self, folder: Path) -> bool:
        """Whether this user may pass through folder and all its parents; asks the kernel, so ACLs count."""
        if not self.is_other:
            return os.access(folder, os.X_OK)
        return self.run(["/bin/sh", "-c", 'test -x "$1/."', "sh", str(folder)])[0] == 0


@dataclass(frozen=True)
class Place:
    """Folders of one server. Locks and the log lie in `home`, which the server's user cannot change."""

    home: Path
    data: Path
    socket_dir: Path
    user: ServerUser


def prepare_home(home: Path) -> Path:
    """The home's real path, made when absent. Raises EmbeddedServerError: embedded_home_unusable."""
    home = home.expanduser().absolute()
    if not home.exists():
        home.mkdir(parents=True, exist_ok=True)
        # root's home may be passed through by the server's user, whose own folders inside are 0700
        home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    home = home.resolve()
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise EmbeddedServerError(
            "embedded_home_unusable",
            f"{home} is not a folder that this user can read and write.",
            "Set VANILLA_SAAS_HOME to a folder of yours, or DATABASE_URL to a running PostgreSQL.",
        )
    return home


def find_place(home: Path) -> Place:
    """The place of this home's server; makes the folders except `data`. The caller holds `start.lock`.

    Raises EmbeddedServerError: embedded_no_user_name, embedded_system_user, embedded_socket_directory.
    """
    user, folder = _user_and_folder(home)
    _own_folder(folder / "run", user)
    return Place(home, folder / "data", _socket_dir(home, folder / "run", user), user)


def system_folder() -> Path:
    """`SYSTEM_FOLDER`, root's and open for reading whatever the umask. Raises PermissionError otherwise."""
    SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
    if SYSTEM_FOLDER.lstat().st_uid != 0:
        raise PermissionError(f"{SYSTEM_FOLDER} does not belong to root")
    SYSTEM_FOLDER.chmod(0o755)
    return SYSTEM_FOLDER


def _user_and_folder(home: Path) -> tuple[ServerUser, Path]:
    inside = home / "postgresql"
    if os.geteuid() != 0:
        user = _user_of(os.geteuid())
        inside.mkdir(mode=0o700, exist_ok=True)
        return user, inside
    recorded = _recorded_location(home)
    folder = recorded or inside
    if (folder / "data").exists() and (owner := (folder / "data").stat().st_uid):
        return _user_of(owner), folder
    user = _system_user()
    if recorded is None and not user.may_enter(home):
        folder = system_folder() / hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
        _record_location(home, folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    return user, folder


def _recorded_location(home: Path) -> Path | None:
    """Content of `location`, if root wrote it: another user must not point root elsewhere."""
    path = home / "location"
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0:
            return None
        return Path(path.read_text().strip())
    except FileNotFoundError:
        return None


def _record_location(home: Path, folder: Path) -> None:
    descriptor = open_private(home / "location", os.O_WRONLY | os.O_TRUNC)
    with os.fdopen(descriptor, "w") as file:
        os.fchown(descriptor, 0, 0)
        file.write(f"{folder}\n")


def _user_of(uid: int) -> ServerUser:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise EmbeddedServerError(
            "embedded_no_user_name",
            f"User id {uid} has no name on this system, and PostgreSQL identifies its users by name.",
            "Add the user to /etc/passwd, or set DATABASE_URL to a running PostgreSQL.",
        ) from None
    return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _system_user() -> ServerUser:
    """The unprivileged user of root's servers; created once."""
    command = ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent"]
    said = "useradd is not installed"
    deadline = time.monotonic() + 5
    while True:
        try:
            entry = pwd.getpwnam(SYSTEM_USER)
            break
        except KeyError:
            pass
        try:
            done = subprocess.run(
                [*command, "--shell", "/usr/sbin/nologin", SYSTEM_USER],
                capture_output=True,
                text=True,
                check=False,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            )
        except FileNotFoundError:
            done = None
        if done is not None and done.returncode == 0:
            continue
        said = done.stderr.strip() if done else said
        # another process may hold the lock of /etc/passwd, perhaps to create the same user
        if done is None or "lock" not in said or time.monotonic() > deadline:
            if done is not None and "already exists" in said and time.monotonic() < deadline:
                continue
            raise EmbeddedServerError(
                "embedded_system_user",
                f"PostgreSQL does not run as root, and the system user {SYSTEM_USER} cannot be made: {said}.",
                f"Create it (useradd --system {SYSTEM_USER}), run as another user, or set DATABASE_URL.",
            )
        time.sleep(0.1)
    if entry.pw_uid == 0:
        raise EmbeddedServerError(
            "embedded_system_user", f"The user {SYSTEM_USER} is root.", "Give it a user id of its own."
        )
    return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _own_folder(path: Path, user: ServerUser) -> None:
    """Makes a 0700 folder of the server's user, or repairs the mode of one that is the user's already.

    Raises FileExistsError when the path is a link, a file, or somebody else's.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        if user.is_other:
            os.chown(path, user.uid, user.gid)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != user.uid:
            raise PermissionError(f"{path} belongs to another user")
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def _socket_dir(home: Path, preferred: Path, user: ServerUser) -> Path:
    """`preferred`, or a short folder whose name every process of this home derives alike."""
    name = f".s.PGSQL.{PORT}"
    if len(os.fsencode(preferred / name)) <= SOCKET_PATH_BYTES:
        return preferred
    # not $TMPDIR or $XDG_RUNTIME_DIR first: they differ between a login and a service of one user
    fixed = Path("/run") if os.geteuid() == 0 and Path("/run").is_dir() else Path("/tmp")  # noqa: S108
    parent = fixed if os.access(fixed, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    path = parent / f"vanilla-saas-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    if len(os.fsencode(path / name)) > SOCKET_PATH_BYTES:
        raise EmbeddedServerError(
            "embedded_socket_directory",
            f"Both {preferred} and {path} are too long for a Unix socket ({SOCKET_PATH_BYTES} bytes).",
            "Set VANILLA_SAAS_HOME to a shorter path.",
        )
    try:
        _own_folder(path, user)
    except OSError as error:
        raise EmbeddedServerError(
            "embedded_socket_directory",
            f"{path} is not a folder of user {user.name} alone: {error}.",
            "Remove it, or set VANILLA_SAAS_HOME to a shorter path.",
        ) from error
    return path
