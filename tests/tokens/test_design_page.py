"""The examples of docs/design/tokens.md run in psql as they stand."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.conftest import Cluster
from vanilla_saas.database.binaries import find_binaries
from vanilla_saas.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "design" / "tokens.md"


async def test_the_examples_run_in_psql(cluster: Cluster, clocked_name: str) -> None:
    [script] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = subprocess.run(
        [
            shutil.which("psql") or find_binaries(Settings()).folder / "psql",
            "-XAt",
            "-v",
            "ON_ERROR_STOP=1",
            cluster.url(database=clocked_name),
        ],
        input=f"begin;\n{script}\nrollback;",
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\d+\|(\w+)\|(-?\d+)\|(-?\d+)\|(\d+)\|", done.stdout, re.MULTILINE) == [
        ("credit", "5000", "0", "5000"),
        ("credit", "10000", "0", "15000"),
        ("credit", "500", "0", "15500"),
        ("reserve", "-100", "100", "15400"),
        ("settle", "60", "-100", "15460"),
    ]
    assert set(re.findall(r"^(plan|base|promo)\|(\d+)\|", done.stdout, re.MULTILINE)) == {
        ("plan", "9960"),
        ("base", "5000"),
        ("promo", "500"),
    }
