"""Four peers of the runner, each in its own environment, process and database on the same server.

DBOS and Absurd run chains of five steps that do nothing, Procrastinate and PgQueuer jobs: they have no steps. Each in
the way in which it was quickest with four connections; Procrastinate fetches one job at a time, from a pool.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks import peers
from benchmarks.frame import BenchmarkError
from benchmarks.options import Options
from vanilla_saas.database.embedded import EmbeddedServer

SCRIPTS = Path(__file__).with_name("peers_of_workflows")
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Peer:
    """What is measured of a peer."""

    name: str
    unit: str
    chosen: int
    """DBOS: threads; Absurd: workers; Procrastinate: jobs at a time; PgQueuer: jobs in a batch."""
    count: int
    """Chains or jobs of a full run."""
    quick: int


PEERS = (
    Peer("dbos", "steps", 4, 300, 100),
    Peer("absurd", "steps", 4, 1000, 200),
    Peer("procrastinate", "jobs", 20, 1000, 300),
    Peer("pgqueuer", "jobs", 100, 20_000, 5000),
)


@dataclass(frozen=True, slots=True)
class Installed:
    """The peers of a run, and those that it lacks."""

    commands: dict[Peer, Path]
    skipped: list[str]


def find(options: Options) -> Installed:
    """Installs what is missing with `--peers`. Raises BenchmarkError when that fails."""
    commands, skipped = {}, []
    for peer in PEERS:
        folder = None if options.no_peers else peers.find(peer.name, options.peers)
        if folder is None:
            skipped.append(peer.name)
        else:
            commands[peer] = folder / "python"
    return Installed(commands, skipped)


async def measure(server: EmbeddedServer, peer: Peer, python: Path, quick: bool) -> float:
    """Steps or jobs a second, in a database that nothing was in before. Raises BenchmarkError when the peer fails."""
    database, count = f"peer_{peer.name}", peer.quick if quick else peer.count
    admin = await asyncpg.connect(server.dsn())
    try:
        await admin.execute(f"create database {database}")
        answer = _run(python, peer, server.dsn(database=database), count)
        await admin.execute(f"drop database {database} with (force)")
    finally:
        await admin.close()
    return float(answer["done"]) / float(answer["seconds"])


def _run(python: Path, peer: Peer, url: str, count: int) -> dict[str, Any]:
    command = [str(python), str(SCRIPTS / f"with_{peer.name}.py"), url, str(count), str(peer.chosen)]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    try:
        done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{peer.name} did not end within {TIMEOUT_S:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise BenchmarkError(f"{peer.name} failed:\n{done.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
