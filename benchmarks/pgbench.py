"""One slice of load by PostgreSQL's own pgbench: one connection, prepared statements."""

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from benchmarks.frame import BenchmarkError
from vanilla_saas.database.binaries import find_binaries
from vanilla_saas.settings import Settings

TIMEOUT_SECONDS = 120.0


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
    """Microseconds of a run of the script: the mean of the middle half.

    The first runs, which plan, and those that waited for the scheduler are in neither half's middle.
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
        # an aborted client is reported, and the exit code is 0 or 2 by version
        lines = [line for log in Path(folder).glob("log.*") for line in log.read_text().splitlines()]
        if done.returncode or len(lines) != wanted.transactions:
            raise BenchmarkError(f"pgbench failed: {done.stderr.strip()[-1000:]}")
    ordered = sorted(int(line.split()[2]) for line in lines)
    return fmean(ordered[len(ordered) // 4 : len(ordered) * 3 // 4])


def _pgbench() -> Path:
    path = find_binaries(Settings(_env_file=None)).folder / "pgbench"
    if not path.exists():
        raise BenchmarkError(f"the PostgreSQL in use has no pgbench beside its server: {path}")
    return path
