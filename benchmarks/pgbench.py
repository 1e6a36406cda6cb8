"""One slice of load by PostgreSQL's own pgbench: one connection, prepared statements."""

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import quantiles

from benchmarks.frame import BenchmarkError
from vanilla_saas.database.binaries import find_binaries
from vanilla_saas.settings import Settings

TIMEOUT_SECONDS = 120.0
BLOCK = 50
"""Runs between two looks at the clock. pgbench gives an answer that was there at once the time of the one before."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A script that is run `transactions` times; `variables` are parameters of its prepared statements."""

    dsn: str
    script: str
    transactions: int
    variables: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the session."""


def measure(wanted: Slice) -> float:
    """Microseconds of a run of the script: the lower quartile of blocks, because what else runs only adds.

    The first block, whose runs plan, is left out; `transactions` is at least three blocks.
    Raises BenchmarkError when a statement fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.sql"
        script.write_text(wanted.script)
        command = [str(_pgbench()), "--no-vacuum", "--client=1", "--protocol=prepared", "--log"]
        command += [f"--log-prefix={folder}/log", f"--file={script}", f"--transactions={wanted.transactions}"]
        command += [f"--define={name}={value}" for name, value in wanted.variables.items()]
        options = " ".join(f"-c {name}={value}" for name, value in wanted.settings.items())
        done = subprocess.run(
            [*command, wanted.dsn],
            env={"PGOPTIONS": options},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        lines = [line for log in Path(folder).glob("log.*") for line in log.read_text().splitlines()]
        if done.returncode or len(lines) != wanted.transactions:
            raise BenchmarkError(f"pgbench failed: {done.stderr.strip()[-1000:]}")
    ends = [int(second) * 1_000_000 + int(micros) for *_, second, micros in map(str.split, lines[BLOCK - 1 :: BLOCK])]
    return quantiles([after - before for before, after in pairwise(ends)], n=4, method="inclusive")[0] / BLOCK


def _pgbench() -> Path:
    path = find_binaries(Settings(_env_file=None)).folder / "pgbench"
    if not path.exists():
        raise BenchmarkError(f"the PostgreSQL in use has no pgbench beside its server: {path}")
    return path
