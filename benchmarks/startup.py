"""From nothing to ready, and from stopped to ready, as the real command does it.

First start: `vanilla-saas up` in a home that does not exist, until it says that it is ready: initdb, start,
migrations, seed, API. Restart: the same command again. Floors: initdb and start of the same binaries with the
same options, and their start alone.
"""

import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cli import HELP, timed
from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.processes import VANILLA_SAAS, environment, free_port, stop, temporary_home, wait_until_stopped
from vanilla_saas.database import postmaster
from vanilla_saas.database.binaries import Binaries, find_binaries, runnable_by
from vanilla_saas.database.embedded_data import DEFAULTS, SUPERUSER
from vanilla_saas.database.embedded_place import Place, find_place, prepare_home
from vanilla_saas.settings import Settings

FLOOR = "initdb and start of the same PostgreSQL binaries; for the restart their start alone"
FIRST_READY_S, RESTART_READY_S, RESTART_DATABASE_S = 5.0, 2.0, 0.5
"""Promised seconds; the ratios are the measured seconds divided by these."""
READY = re.compile(r"ready in ([\d.]+) s \(database ([\d.]+) s, .+? ([\d.]+) s\)")
READY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds of one `up`: measured outside, and as it prints them."""

    ready: float
    printed: float
    database: float
    migrations: float


def run(options: Options) -> Result:
    """Each round: floors in one home, then first start and restart in another."""
    first: list[Start] = []
    again: list[Start] = []
    floor_first: list[float] = []
    floor_again: list[float] = []
    helps: list[float] = []
    timed(HELP)  # writes the bytecode
    for _ in range(3 if options.quick else 5):
        with temporary_home() as home:
            one, two = _raw(home)
            floor_first.append(one)
            floor_again.append(two)
        with temporary_home() as home:
            first.append(_up(home))
            again.append(_up(home))
        helps.append(timed(HELP))
    ready, restart = middle([s.ready for s in first]), middle([s.ready for s in again])
    restart_database = middle([s.database for s in again])
    ratios = {
        "first_ready_to_5_s": ready / FIRST_READY_S,
        "restart_ready_to_2_s": restart / RESTART_READY_S,
        "restart_database_to_0_5_s": restart_database / RESTART_DATABASE_S,
        "first_database_to_floor": middle([s.database / f for s, f in zip(first, floor_first, strict=True)]),
        "restart_database_to_floor": middle([s.database / f for s, f in zip(again, floor_again, strict=True)]),
    }
    figures: dict[str, Figure] = {
        "rounds": len(first),
        "first_ready_s": ready,
        "first_printed_s": middle([s.printed for s in first]),
        "first_database_s": middle([s.database for s in first]),
        "first_migrations_s": middle([s.migrations for s in first]),
        "restart_ready_s": restart,
        "restart_printed_s": middle([s.printed for s in again]),
        "restart_database_s": restart_database,
        "floor_initdb_and_start_s": middle(floor_first),
        "floor_start_s": middle(floor_again),
        "help_s": middle(helps),
    }
    return Result("startup", FLOOR, judge("startup", ratios), figures, {})


def _up(home: Path) -> Start:
    """Starts the product, waits for its ready line, stops it and its server."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [*VANILLA_SAAS, "up", "--port", str(free_port())],
        env=environment(home),
        cwd=tempfile.gettempdir(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert child.stdout is not None
        said = ""
        while line := child.stdout.readline():
            said += line
            if found := READY.search(line):
                ready = time.perf_counter() - began
                return Start(ready, float(found[1]), float(found[2]), float(found[3]))
        raise BenchmarkError(f"vanilla-saas up ended before it was ready:\n{said}")
    finally:
        stop(child)
        wait_until_stopped(home)


def _raw(home: Path) -> tuple[float, float]:
    """Seconds of initdb and start, and of a start alone, by the user that the product would use."""
    place = find_place(prepare_home(home))
    binaries = runnable_by(find_binaries(Settings(_env_file=None)), place.user)
    began = time.perf_counter()
    place.data.mkdir(mode=0o700)
    if place.user.is_other:
        subprocess.run(["chown", str(place.user.uid), str(place.data)], check=True)
    command = [str(binaries.folder / "initdb"), "--username", SUPERUSER, "--encoding=UTF8", "--data-checksums"]
    command += ["--auth-local=peer", "--auth-host=reject", "--no-instructions"]
    command += ["--locale-provider=builtin", "--locale=C.UTF-8"] if binaries.version >= 17 else ["--locale=C"]
    for name, value in DEFAULTS.items():
        command += ["--set", f"{name}={value}"]
    code, said = place.user.run([*command, "--pgdata", str(place.data)], env=postmaster.clean_environment())
    if code:
        raise BenchmarkError(f"initdb failed:\n{said}")
    first = _start_and_stop(place, binaries) - began
    began = time.perf_counter()
    return first, _start_and_stop(place, binaries) - began


def _start_and_stop(place: Place, binaries: Binaries) -> float:
    """The moment at which a raw server accepted connections; it is stopped again."""
    command = [str(binaries.folder / "postgres"), "-D", str(place.data), "-c", "listen_addresses="]
    command += ["-c", f'unix_socket_directories="{place.socket_dir}"', "-c", f"port={postmaster.PORT}"]
    child = subprocess.Popen(
        command,
        cwd="/",
        env=postmaster.clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=place.user.uid if place.user.is_other else None,
        group=place.user.gid if place.user.is_other else None,
        extra_groups=[] if place.user.is_other else None,
    )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not postmaster.is_ready(place.data):
            if child.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError("the raw PostgreSQL did not start")
            time.sleep(0.002)
        return time.perf_counter()
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)
