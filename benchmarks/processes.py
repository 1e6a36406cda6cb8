"""Child processes of a benchmark: homes that vanish, servers that are stopped, ports that are free."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.frame import BenchmarkError
from vanilla_saas.database import postmaster

ROOT = Path(__file__).resolve().parent.parent
VANILLA_SAAS = [sys.executable, "-c", "from vanilla_saas.cli import main; main()"]
"""The command line as the console script runs it."""
START_SECONDS = 60.0


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a child that uses the embedded server of `home` and nothing else of this machine's configuration."""
    kept = {
        name: value
        for name, value in os.environ.items()
        # an installed product has its bytecode, so it is kept here too
        if not name.startswith(("VANILLA_SAAS_", "PG")) and name not in ("DATABASE_URL", "PYTHONDONTWRITEBYTECODE")
    }
    return kept | {"VANILLA_SAAS_HOME": str(home), "PYTHONUNBUFFERED": "1"} | more


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """A home that does not exist yet; when the block ends its server has stopped and it is removed."""
    home = Path(tempfile.gettempdir()) / f"vs-benchmark-{uuid.uuid4().hex[:8]}"
    try:
        yield home
    finally:
        wait_until_stopped(home)
        shutil.rmtree(home, ignore_errors=True)


def wait_until_stopped(home: Path, seconds: float = 60.0) -> None:
    """The keeper of the embedded server is the last process of a home."""
    deadline = time.monotonic() + seconds
    while home.exists():
        held = postmaster.try_lock(home / "keeper.lock", fcntl.LOCK_EX)
        if held is not None:
            os.close(held)
            return
        if time.monotonic() > deadline:
            raise BenchmarkError(f"the embedded server did not stop within {seconds:.0f} s")
        time.sleep(0.01)


@contextlib.contextmanager
def server(
    command: Sequence[str], port: int, env: Mapping[str, str], cwd: Path = ROOT
) -> Iterator["subprocess.Popen[bytes]"]:
    """A child that listens on a port of loopback; its errors are shown only when it fails."""
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(port):
                if child.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-2000:]
                    raise BenchmarkError(f"{' '.join(command[:4])} ... did not start:\n{said}")
                time.sleep(0.02)
            yield child
        finally:
            stop(child)


def stop(child: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """Asks the child to end, then ends it."""
    child.terminate()
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
