"""The wallet's benchmark: it measures what it says, and is void when the books do not say what was answered."""

import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from benchmarks import wallet_batches, wallet_books
from benchmarks.frame import BenchmarkError
from benchmarks.wallet_books import Done, Range
from benchmarks.wallet_pgbench import AMOUNT, HELD, SETTLED, user_id
from tests.conftest import Cluster, create_database, migrated_database

ROOT = Path(__file__).resolve().parents[2]
WALLETS = Range(100_000_000_000, 100_000_000_001)
DEBIT = "select adjust_user_tokens($1, $2, 'debit')"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", "wallet", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@dataclass
class Load:
    """A database with two rich wallets, and the floor's beside it."""

    url: str
    floor_url: str
    connection: asyncpg.Connection

    async def close_books(self, **done: int) -> None:
        await wallet_books.close_books(self.url, self.floor_url, Done(**done))


@pytest.fixture
async def load(cluster: Cluster) -> AsyncIterator[Load]:
    async with migrated_database(cluster) as name, create_database(cluster, f"floor_{uuid.uuid4().hex[:8]}") as floor:
        url, floor_url = cluster.url(database=name), cluster.url(database=floor)
        await wallet_books.make_wallets(url, WALLETS)
        await wallet_books.make_floor(floor_url, [WALLETS])
        connection = await asyncpg.connect(url)
        yield Load(url, floor_url, connection)
        await connection.close()


@pytest.mark.long
def test_a_quick_run_measures_every_point_it_was_asked_for() -> None:
    done = run("--quick", "--json", "--only", "debit_c1,reserve_settle_c8,bytes,month_close")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["ratios"]) == {
        "debit_c1_to_floor",
        "reserve_settle_c8_to_floor",
        "wal_bytes_per_debit",
        "disk_bytes_per_debit",
        "month_close_to_update",
    }
    assert all(ratio["value"] > 0 for ratio in report["ratios"].values())
    counts = ("debits", "settlements", "floor_operations", "month_wallets")
    assert all(report["figures"][name] > 0 for name in counts)
    assert str(ROOT) not in done.stdout


def test_a_point_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = run("--quick", "--only", "debit_c1,nonsense")
    assert done.returncode == 1
    assert "no point nonsense" in done.stderr
    assert "month_close" in done.stderr


async def test_the_books_are_right_when_they_say_what_was_answered(load: Load) -> None:
    await load.connection.fetchval(DEBIT, user_id(WALLETS.first), AMOUNT)
    hold = json.loads(
        await load.connection.fetchval("select adjust_user_tokens($1, $2, 'reserve')", user_id(WALLETS.last), HELD)
    )["hold_id"]
    await load.connection.fetchval("select settle_user_tokens($1, $2)", uuid.UUID(hold), SETTLED)
    batch = await wallet_batches.hot_wallet_batches(load.url, user_id(WALLETS.first), 32, 2, seconds=0.01)
    assert batch.count >= 64
    await load.close_books(debits=1 + batch.count, settlements=1)


@pytest.mark.parametrize("claimed", [{"debits": 0}, {"debits": 2}, {"debits": 1, "settlements": 1}, {"floor": 1}])
async def test_a_run_is_void_when_an_answer_is_not_in_the_books(load: Load, claimed: dict[str, int]) -> None:
    await load.connection.fetchval(DEBIT, user_id(WALLETS.first), AMOUNT)
    with pytest.raises(BenchmarkError, match="were answered"):
        await load.close_books(**claimed)


async def test_a_run_is_void_when_a_debit_took_another_amount(load: Load) -> None:
    await load.connection.fetchval(DEBIT, user_id(WALLETS.first), AMOUNT + 1)
    with pytest.raises(BenchmarkError, match="debited"):
        await load.close_books(debits=1)


async def test_a_run_is_void_when_the_ledger_was_changed(load: Load) -> None:
    await load.connection.fetchval(DEBIT, user_id(WALLETS.first), AMOUNT)
    await load.connection.execute("update user_token_ledger set reason = 'other' where direction = 'debit'")
    with pytest.raises(BenchmarkError, match="was changed"):
        await load.close_books(debits=1)


async def test_a_batch_that_is_refused_is_no_measurement(load: Load) -> None:
    await load.connection.execute("select set_wallet_status($1, 'locked', 'test')", user_id(WALLETS.first))
    with pytest.raises(BenchmarkError, match="refused"):
        await wallet_batches.spread_batches(load.url, [user_id(WALLETS.first)], 10, 1, seconds=0.01)
