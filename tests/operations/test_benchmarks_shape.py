"""The benchmarks' frame: what it prints and what it refuses. No figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.frame import BenchmarkError, judge

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_help_names_every_benchmark() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("cli", "startup", "gateway", "wallet", "--quick", "--json"))


def test_json_is_one_object_of_the_promised_shape_and_nothing_else() -> None:
    done = run("cli", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"name", "floor", "ratios", "figures", "machine", "notes"}
    for ratio in report["ratios"].values():
        assert set(ratio) == {"value", "target", "better", "met", "provisional"}
        assert ratio["met"] is (
            ratio["value"] >= ratio["target"] if ratio["better"] == "higher" else ratio["value"] <= ratio["target"]
        )
    assert {"cores", "cpu", "memory_gib", "os", "python", "postgresql", "load_before", "load_after"} <= set(
        report["machine"]
    )
    assert str(ROOT) not in done.stdout


def test_a_ratio_without_a_target_is_an_error(tmp_path: Path) -> None:
    targets = tmp_path / "targets.toml"
    targets.write_text('[some.known]\ntarget = 2.0\nbetter = "higher"\n')
    assert [ratio.met for ratio in judge("some", {"known": 2.5}, targets).values()] == [True]
    assert [ratio.met for ratio in judge("some", {"known": 1.5}, targets).values()] == [False]
    with pytest.raises(BenchmarkError, match=r"some\.unknown"):
        judge("some", {"unknown": 1.0}, targets)
