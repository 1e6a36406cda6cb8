"""The postmaster's locks, its identity among the processes, its start and its stop.

Nothing but the standard library is imported here, because the keeper runs without site-packages.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

PORT = 5432
"""Only the name of the socket; nothing listens on TCP."""
LOG_BYTES = 10 * 1024 * 1024
"""A log larger than this is moved to `<name>.1` before a start."""
START_SECONDS = 60.0
"""How long one start, crash recovery included, may take before it counts as failed."""
OLD_BACKENDS_SECONDS = 10.0
"""How long the backends of a killed postmaster may keep its shared memory."""
STOP_SECONDS = 60.0
"""How long a fast stop may take before an immediate one."""
TICK = 0.01


@dataclass(frozen=True)
class Plan:
    """What a keeper needs to know; travels as one JSON argument."""

    home: str
    data: str
    socket_dir: str
    postgres: str
    uid: int
    gid: int
    drop_privileges: bool
    options: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        fields: dict[str, Any] = json.loads(text)
        fields["options"] = tuple((name, value) for name, value in fields["options"])
        return cls(**fields)

    @property
    def log(self) -> Path:
        return Path(self.home) / "server.log"


# Locks


def open_private(path: Path, flags: int) -> int:
    """A 0600 file that belongs to the owner of its folder; a symbolic link is refused.

    Root may work in another user's home: that user must be able to open the file later, and must not
    be able to point root at a file of its choice.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def try_lock(path: Path, operation: int) -> int | None:
    """The descriptor that holds the lock, or None when another process does."""
    descriptor = open_private(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def wait_lock(path: Path, operation: int) -> int:
    """Blocks until the lock is granted."""
    descriptor = open_private(path, os.O_RDWR)
    fcntl.flock(descriptor, operation)
    return descriptor


# Which process is the postmaster


def is_postmaster(pid: int, data: Path) -> bool:
    """Whether this pid is a running postgres of this data directory, not a zombie or a stranger.

    In doubt (a postgres whose working directory we may not read) the answer is yes: taking a stranger
    for ours refuses a start, taking ours for a stranger could cost the lock file of a live server.
    """
    if pid <= 0:
        return False
    process = Path(f"/proc/{pid}")
    if not Path("/proc/self").exists():
        found = subprocess.run(
            ["ps", "-ww", "-o", "stat=,args=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout.split(maxsplit=1)
        return len(found) == 2 and not found[0].startswith("Z") and "postgres" in found[1]
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        if state in "ZX":
            return False
        try:
            # a postmaster lives in its data directory
            return os.path.samefile(process / "cwd", data)
        except PermissionError:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            return os.path.basename(arguments[0]) in (b"postgres", b"postmaster")
    except (OSError, IndexError):
        return False


def pid_file(data: Path) -> list[str]:
    """Lines of postmaster.pid; empty when there is none."""
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return []


def first_pid(lines: list[str]) -> int:
    """The pid of a PostgreSQL lock file; 0 when it has none. A single-user server writes it negative."""
    try:
        return abs(int(lines[0]))
    except (IndexError, ValueError):
        return 0


def postmaster_pid(data: Path) -> int:
    """Pid of the live postmaster of this data directory, or 0."""
    pid = first_pid(pid_file(data))
    return pid if is_postmaster(pid, data) else 0


def is_ready(data: Path) -> bool:
    """Whether the postmaster accepts connections; it writes so in line 8 of its pid file, as pg_ctl reads."""
    lines = pid_file(data)
    return len(lines) >= 8 and lines[7].strip() == "ready" and is_postmaster(first_pid(lines), data)


def remove_stale_files(data: Path, socket_dir: Path) -> list[Path]:
    """Removes lock files whose pid now belongs to a zombie or to a stranger.

    PostgreSQL refuses to start while the pid in such a file exists. A file of a process that is gone
    altogether stays: PostgreSQL removes it itself, after it has used the shared memory id in it to look
    for living backends.
    """
    removed = []
    socket_lock = socket_dir / f".s.PGSQL.{PORT}.lock"
    for path in (data / "postmaster.pid", socket_lock):
        try:
            pid = first_pid(path.read_text(errors="replace").splitlines())
        except OSError:
            continue
        if pid and (not exists(pid) or is_postmaster(pid, data)):
            continue
        path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# Start and stop


def open_log(path: Path) -> int:
    """Log file to append to; a large one is moved aside first."""
    with contextlib.suppress(OSError):
        if path.lstat().st_size > LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    return open_private(path, os.O_WRONLY | os.O_APPEND)


def log_line(plan: Plan, text: str) -> None:
    """One line of the keeper in the server's log; a full disk must not end the keeper."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    with contextlib.suppress(OSError):
        descriptor = open_private(plan.log, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, f"{stamp} [keeper {os.getpid()}] {text}\n".encode())
        finally:
            os.close(descriptor)


def clean_environment() -> dict[str, str]:
    """What the server and its keeper see: no secret of the process that happened to start them."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def launch(plan: Plan) -> "subprocess.Popen[bytes]":
    """Starts the postmaster as our child."""
    options = [
        ("listen_addresses", ""),
        ("unix_socket_directories", f'"{plan.socket_dir}"'),
        ("unix_socket_permissions", "0700"),
        ("port", str(PORT)),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        *plan.options,
    ]
    command = [plan.postgres, "-D", plan.data]
    for name, value in options:
        command += ["-c", f"{name}={value}"]
    log = open_log(plan.log)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=clean_environment(),
            start_new_session=True,
            user=plan.uid if plan.drop_privileges else None,
            group=plan.gid if plan.drop_privileges else None,
            extra_groups=[] if plan.drop_privileges else None,
            umask=0o077,
        )
    finally:
        os.close(log)


def start_once(plan: Plan) -> "subprocess.Popen[bytes] | None":
    """A postmaster that accepts connections, or None when it ended or took too long."""
    for path in remove_stale_files(Path(plan.data), Path(plan.socket_dir)):
        log_line(plan, f"removed the stale {path.name}: its process is not this server")
    try:
        child = launch(plan)
    except OSError as error:
        log_line(plan, f"cannot run {plan.postgres}: {error}")
        return None
    deadline = time.monotonic() + START_SECONDS
    while child.poll() is None:
        lines = pid_file(Path(plan.data))
        if first_pid(lines) == child.pid and len(lines) >= 8 and lines[7].strip() == "ready":
            return child
        if time.monotonic() > deadline:
            log_line(plan, f"not ready after {START_SECONDS:.0f} s; stopping it")
            stop(child.pid, lambda: child.poll() is not None)
            break
        time.sleep(TICK)
    return None


def start_patiently(plan: Plan) -> "subprocess.Popen[bytes] | None":
    """`start_once`, again while backends of a killed postmaster still hold its shared memory."""
    deadline = time.monotonic() + OLD_BACKENDS_SECONDS
    while True:
        size = plan.log.stat().st_size if plan.log.exists() else 0
        child = start_once(plan)
        if child or time.monotonic() > deadline or "shared memory" not in _log_from(plan.log, size):
            return child
        time.sleep(0.1)


def _log_from(path: Path, offset: int) -> str:
    with contextlib.suppress(OSError), path.open("rb") as log:
        # the log may have been moved aside by this very start
        log.seek(offset if path.stat().st_size >= offset else 0)
        return log.read(LOG_BYTES).decode(errors="replace")
    return ""


def stop(pid: int, gone: Callable[[], bool]) -> None:
    """Fast stop; immediate when that takes too long."""
    for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while not gone():
            if time.monotonic() > deadline:
                break
            time.sleep(TICK)
        else:
            return


def wait_for_exit(pid: int, alive: Callable[[], bool]) -> None:
    """Blocks until a process that is not our child has ended."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
            try:
                # the pid may have been reused between the look and the open
                if alive():
                    select.select([descriptor], [], [])
                return
            finally:
                os.close(descriptor)
    while alive():
        time.sleep(0.5)
