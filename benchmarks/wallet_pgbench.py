"""Slices of pgbench, the client that costs the least: prepared statements, script files, random wallets.

Wallets have ids that a script can count to: `PREFIX` and twelve digits.
"""

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from benchmarks.frame import BenchmarkError
from benchmarks.machine import processor_s
from vanilla_saas.database import postmaster
from vanilla_saas.database.embedded import DATABASE, EmbeddedServer
from vanilla_saas.database.embedded_data import SUPERUSER
from vanilla_saas.operations.first_run import DEFAULT_TENANT

PREFIX = "00000000-0000-7000-9000-"
AMOUNT, HELD, SETTLED = 7, 100, 40
"""Tokens of a debit; of a reservation, and of its settlement."""
FLOOR_DATABASE = "wallet_floor"

_PICK = "\\set n random(:first, :last)\n"
_USER = f"('{PREFIX}' || :n)::uuid"
_KEY = ", p_idempotency_key => gen_random_uuid()::text"
_DEBIT = f"adjust_user_tokens({_USER}, {AMOUNT}, 'debit', 'benchmark'{_KEY})"

FLOOR = f"""{_PICK}with u as (
    update floor_wallets set balance = balance - {AMOUNT} where user_id = {_USER} returning tenant_id, user_id, balance)
insert into floor_ledger (id, tenant_id, user_id, amount, balance_after, direction, reason, created_at)
select gen_random_uuid(), tenant_id, user_id, -{AMOUNT}, balance, 'debit', 'benchmark', clock_timestamp() from u;
"""
DEBIT = f"{_PICK}select {_DEBIT};\n"
DEBIT_WITHOUT_KEY = DEBIT.replace(_KEY, "")
DEBIT_IN_CONTEXT = f"{_PICK}begin;\nselect vanilla.set_context(:token);\nselect {_DEBIT};\ncommit;\n"
DEBIT_WITH_CONTEXT = f"""{_PICK}with c as materialized (select vanilla.set_context(:token)) select {_DEBIT} from c;
"""
RESERVE_AND_SETTLE = f"""{_PICK}select adjust_user_tokens({_USER}, {HELD}, 'reserve', 'benchmark'{_KEY}) ->> 'hold_id' as hold \\gset
select settle_user_tokens(:hold::uuid, {SETTLED}, p_tenant_id => '{DEFAULT_TENANT}'::uuid);
"""  # noqa: E501


def user_id(number: int) -> UUID:
    """The id that a script makes of a number."""
    return UUID(f"{PREFIX}{number:012d}")


def over(script: str, first: int, last: int) -> str:
    """The script with a range of wallets of its own, whatever the slice's is."""
    return script.replace(":first", str(first)).replace(":last", str(last))


@dataclass(frozen=True, slots=True)
class Slice:
    """What one run of pgbench does."""

    scripts: Sequence[str]
    """One, or several of which each transaction takes one by lot."""
    clients: int
    first: int
    last: int
    database: str = DATABASE
    login: str = SUPERUSER
    durable: bool = True
    """With synchronous_commit."""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a slice came to."""

    tps: float
    count: int
    cpu_us: float | None = None
    """Processor time of the server's backends per transaction, where the system tells it."""
    latencies_ms: Sequence[float] = ()
    """Mean of each script, when there are several."""


class Pgbench:
    """Runs slices on an embedded server; scripts are written to `folder`."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._postmaster = postmaster.first_pid(postmaster.pid_file(server.data_dir))

    def run(self, wanted: Slice, seconds: int = 0, transactions: int = 0) -> Measured:
        """For whole seconds, or for a number of transactions of each client.

        Raises BenchmarkError for any error: a refused operation is cheap.
        """
        command = [str(self._server.bin_dir / "pgbench"), "-n", "-M", "prepared", "-h", str(self._server.socket_dir)]
        command += ["-p", str(postmaster.PORT), "-U", wanted.login, "-c", str(wanted.clients)]
        command += ["-j", str(min(wanted.clients, 2))]
        command += ["-t", str(transactions)] if transactions else ["-T", str(seconds)]
        for number, script in enumerate(wanted.scripts):
            path = self._folder / f"script{number}.sql"
            path.write_text(script)
            command += ["-f", str(path)]
        for name, value in {"first": wanted.first, "last": wanted.last, **wanted.variables}.items():
            command += ["-D", f"{name}={value}"]
        before_backends = self._backends()
        before = processor_s(self._postmaster, of_children=True)
        done = subprocess.run(
            [*command, wanted.database], env=self._environment(wanted), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchmarkError(f"pgbench failed:\n{done.stderr[-2000:]}")
        self._wait_until_only(before_backends)
        after = processor_s(self._postmaster, of_children=True)
        return _measured(done.stdout, None if before is None or after is None else after - before)

    def _environment(self, wanted: Slice) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return kept | {"PGOPTIONS": f"-c synchronous_commit={'on' if wanted.durable else 'off'}"}

    def _backends(self) -> set[str]:
        """Process ids of the connections; empty where there is no /proc."""
        children = _read(Path(f"/proc/{self._postmaster}/task/{self._postmaster}/children")).decode().split()
        titles = {pid: _read(Path(f"/proc/{pid}/cmdline")) for pid in children}
        # one that ended and is not waited for yet has no title left
        return {pid for pid, title in titles.items() if b"[local]" in title or not title}

    def _wait_until_only(self, backends: set[str]) -> None:
        """A backend's processor time counts for the postmaster once that has waited for it."""
        deadline = time.monotonic() + 2
        while self._backends() - backends and time.monotonic() < deadline:
            time.sleep(0.01)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _measured(said: str, cpu_s: float | None) -> Measured:
    count = re.search(r"^number of transactions actually processed: (\d+)", said, re.MULTILINE)
    failed = re.search(r"^number of failed transactions: (\d+)", said, re.MULTILINE)
    tps = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    if count is None or tps is None or int(count[1]) == 0 or (failed and int(failed[1])):
        raise BenchmarkError(f"pgbench did not say what it did:\n{said[-2000:]}")
    number = int(count[1])
    latencies = [float(found) for found in re.findall(r"^ - latency average = ([\d.]+) ms", said, re.MULTILINE)]
    return Measured(float(tps[1]), number, None if cpu_s is None else cpu_s / number * 1e6, latencies)
