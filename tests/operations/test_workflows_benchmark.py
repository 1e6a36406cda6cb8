"""The benchmark of workflows: its floors do each job exactly once, and what cannot be measured is named."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks import workflows_floor
from benchmarks.frame import BenchmarkError
from tests.conftest import Cluster, create_database

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", "workflows", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
async def url(cluster: Cluster) -> AsyncIterator[str]:
    async with create_database(cluster, "workflows_floor") as name:
        made = cluster.url(database=name)
        await workflows_floor.make(made)
        yield made


@pytest.mark.parametrize("floor", workflows_floor.FLOORS, ids=lambda floor: floor.name)
async def test_a_floor_empties_its_queue(url: str, floor: workflows_floor.Floor) -> None:
    # not a multiple of the batch
    assert await workflows_floor.drain(url, floor, 1007 if floor.batch > 1 else 50) > 0


async def test_a_floor_that_loses_jobs_voids_the_run(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows_floor, "COMPLETE", "select $1::int, $2::bigint[]")
    with pytest.raises(BenchmarkError, match="50 are left"):
        await workflows_floor.drain(url, workflows_floor.TWO_COMMITS, 50)


def test_a_point_that_does_not_exist_is_refused() -> None:
    done = run("--quick", "--only", "fairness")
    assert done.returncode == 1
    assert "no point fairness" in done.stderr


@pytest.mark.long
def test_peers_that_are_not_asked_for_are_named() -> None:
    done = run("--quick", "--no-peers", "--only", "throughput", "--json")
    assert done.returncode == 0, done.stderr
    notes = json.loads(done.stdout)["notes"]
    assert all(any(name in note for note in notes) for name in ("dbos", "absurd", "procrastinate", "pgqueuer"))
