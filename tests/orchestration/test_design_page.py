"""The example of docs/design/allocations.md runs in psql as it stands."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.conftest import Cluster
from vanilla_saas.database.binaries import find_binaries
from vanilla_saas.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "design" / "allocations.md"


async def test_the_example_runs_in_psql(cluster: Cluster, forest_name: str) -> None:
    [script] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    psql = shutil.which("psql") or find_binaries(Settings()).folder / "psql"
    done = subprocess.run(
        [psql, "-XAtq", "-v", "ON_ERROR_STOP=1", cluster.url(database=forest_name)],
        input=f"begin;\n{script}\nrollback;",
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1880", "0|open|5000|2000|0|0|1", "1|open|2000|0|0|120|1", "120", "120"]
