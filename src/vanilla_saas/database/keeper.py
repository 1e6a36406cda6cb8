"""The keeper: parent of the embedded postmaster, and the last to leave.

Two flocks in the home decide everything. `start.lock` is held exclusively by whoever starts, attaches
or stops; `users.lock` is held shared by every process that uses the server. The keeper waits for
`users.lock` exclusively: the kernel grants it when the last user is gone, however it went, and the
keeper then stops the server. While users exist it starts the postmaster again whenever that dies, so
connection pools only have to reconnect. `keeper.lock` says that a keeper is alive.

The keeper runs without site-packages (`command`): it starts in milliseconds and never holds the
application in memory. It therefore imports nothing but the standard library and postmaster.py.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vanilla_saas.database.postmaster import (
    TICK,
    Plan,
    exists,
    is_postmaster,
    log_line,
    postmaster_pid,
    start_once,
    start_patiently,
    stop,
    try_lock,
    wait_for_exit,
    wait_lock,
)

if sys.platform != "win32":
    import fcntl

STEADY_SECONDS = 60.0
"""A postmaster that lived this long is started again without delay."""


def command(*arguments: str) -> list[str]:
    """Command line of a keeper or holder."""
    packages = str(Path(__file__).parents[2])
    program = f"import sys; sys.path.append({packages!r}); from vanilla_saas.database.keeper import main; main()"
    return [sys.executable, "-I", "-S", "-c", program, *arguments]


class Keeper:
    """Waits for three things at once: the postmaster's end, the last user's, and a signal."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.data = Path(plan.data)
        self.home = Path(plan.home)
        self.events: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self.child: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.since = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.events.put(("signal", 0)))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def begin(self) -> bool:
        """Adopts a postmaster whose keeper was killed, or starts one."""
        self.pid = postmaster_pid(self.data)
        if self.pid:
            log_line(self.plan, f"adopted the running postmaster {self.pid}")
        else:
            self.child = start_patiently(self.plan)
            if self.child is None:
                return False
            self.pid = self.child.pid
        self.since = time.monotonic()
        self._spawn(self._watch_postmaster)
        self._spawn(self._watch_users)
        return True

    def run(self) -> None:
        """Until the last user has left or a signal ends the keeper."""
        failures = 0
        while True:
            event, descriptor = self.events.get()
            if event == "postmaster":
                failures = 0 if time.monotonic() - self.since > STEADY_SECONDS else failures + 1
                self._restart(failures)
            elif event == "signal" or self._nobody_starts():
                self._stop()
                return
            else:
                # somebody is attaching: let it have its share, then wait again
                os.close(descriptor)
                time.sleep(0.05)
                self._spawn(self._watch_users)

    def _nobody_starts(self) -> bool:
        return try_lock(self.home / "start.lock", fcntl.LOCK_EX) is not None

    def _restart(self, failures: int) -> None:
        code = self.child.poll() if self.child else None
        delay = min(5.0, 0.1 * 2 ** (failures - 1)) if failures > 1 else 0.0
        ended = f"postmaster {self.pid} ended ({code})" if self.pid else "the start failed"
        log_line(self.plan, f"{ended}; starting again in {delay:.1f} s")
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline and self.events.empty():
            time.sleep(TICK)
        self.pid = postmaster_pid(self.data)
        self.child = None
        if not self.pid and (child := start_once(self.plan)):
            self.child, self.pid = child, child.pid
        self.since = time.monotonic()
        self._spawn(self._watch_postmaster)

    def _stop(self) -> None:
        if self.child:
            stop(self.pid, lambda: self.child is None or self.child.poll() is not None)
        elif self.pid and is_postmaster(self.pid, self.data):
            stop(self.pid, lambda: not is_postmaster(self.pid, self.data))

    def _watch_postmaster(self) -> None:
        if self.child:
            self.child.wait()
        elif self.pid:
            pid = self.pid
            wait_for_exit(pid, lambda: is_postmaster(pid, self.data))
        self.events.put(("postmaster", 0))

    def _watch_users(self) -> None:
        self.events.put(("idle", wait_lock(self.home / "users.lock", fcntl.LOCK_EX)))

    @staticmethod
    def _spawn(target: Callable[[], None]) -> None:
        threading.Thread(target=target, daemon=True).start()


def detach() -> None:
    """Leaves the caller's process tree, so that nobody has to reap us and no terminal reaches us."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.umask(0o077)


def keep(plan: Plan, report: int) -> None:
    """Keeper process: writes `ready` to the pipe `report` or closes it, then keeps the server."""
    detach()
    held = try_lock(Path(plan.home) / "keeper.lock", fcntl.LOCK_EX)
    if held is None:
        return
    keeper = Keeper(plan)
    if not keeper.begin():
        return
    os.write(report, b"ready")
    os.close(report)
    keeper.run()


def hold(share: int, pid: int) -> None:
    """Holder process: keeps an inherited share of the server as long as process `pid` lives."""
    detach()
    wait_for_exit(pid, lambda: exists(pid))
    os.close(share)


def silence() -> None:
    """Points the three standard streams at nothing: the caller's terminal or pipe must be free to close."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)


def main() -> None:
    """`keep <plan> <descriptor>` or `hold <descriptor> <pid>`."""
    silence()
    if sys.argv[1] == "keep":
        keep(Plan.from_json(sys.argv[2]), int(sys.argv[3]))
    else:
        hold(int(sys.argv[2]), int(sys.argv[3]))
