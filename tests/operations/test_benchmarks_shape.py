"""The benchmarks' frame: what it prints and what it refuses. No figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import isolation
from benchmarks.frame import BenchmarkError, judge
from benchmarks.options import Options
from benchmarks.pgbench import Slice, measure
from tests.conftest import Cluster

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_help_names_every_benchmark() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("cli", "startup", "isolation", "gateway", "--quick", "--json"))
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


def test_agents_have_points_to_choose_from() -> None:
    done = run("agents", "--quick", "--only", "turn")
    assert done.returncode == 1
    assert "no point turn; there are channels, turns, footprint" in done.stderr


def test_a_ratio_without_a_target_is_an_error(tmp_path: Path) -> None:
    targets = tmp_path / "targets.toml"
    targets.write_text('[some.known]\ntarget = 2.0\nbetter = "higher"\n')
    assert [ratio.met for ratio in judge("some", {"known": 2.5}, targets).values()] == [True]
    assert [ratio.met for ratio in judge("some", {"known": 1.5}, targets).values()] == [False]
    with pytest.raises(BenchmarkError, match=r"some\.unknown"):
        judge("some", {"unknown": 1.0}, targets)


@pytest.mark.long
def test_the_isolation_benchmark_judges_every_operation_in_both_forms() -> None:
    done = run("isolation", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    operations = ["point", "list", "aggregate", "insert", "owned_point", "owned_list", "owned_aggregate"]
    expected = {
        f"{operation}_{variant}_{form}"
        for operation in operations
        for variant in ("policies", "signed")
        for form in ("transaction", "statement")
    }
    expected |= {f"{operation}_signed_growth" for operation in operations[:4]}
    assert set(report["ratios"]) == expected
    assert all(f"{name}_quartiles" in report["figures"] for name in expected)
    size = isolation.QUICK
    # one round more than is reported; nothing is written but what the inserts of each slice write
    inserts = (size.rounds + 1) * size.transactions
    rows = size.tenants * size.per_tenant
    assert report["figures"]["owned_rows_at_the_end"] == rows
    assert report["figures"]["grown_rows_at_the_end"] == rows * size.growth + 2 * inserts
    assert report["figures"]["shared_rows_at_the_end"] == rows + 8 * inserts


@pytest.mark.long
def test_a_floor_that_policies_bind_voids_the_isolation_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(isolation.VARIANTS, "floor", "bench_plain")
    with pytest.raises(BenchmarkError, match="floor sees"):
        isolation.run(Options(quick=True))


def test_a_statement_that_fails_voids_its_slice(cluster: Cluster) -> None:
    with pytest.raises(BenchmarkError, match="division by zero"):
        measure(Slice(cluster.url(), "select 1 / (:n::int);", 150, {"n": "0"}))
    assert measure(Slice(cluster.url(), "select 1 / (:n::int);", 150, {"n": "1"})) > 0
