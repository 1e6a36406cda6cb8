"""`python -m benchmarks <name>`: runs one benchmark and prints its report."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from benchmarks import (
    agents,
    backup,
    calls,
    cli,
    engines,
    gateway,
    isolation,
    levels,
    machine,
    operations,
    startup,
    wallet,
    workflows,
)
from benchmarks.frame import BenchmarkError, Result, markdown, show
from benchmarks.options import Options

BENCHMARKS: dict[str, tuple[str, Callable[[Options], Result]]] = {
    "cli": ("how long the command line takes to answer", cli.run),
    "startup": ("from nothing to ready, and from stopped to ready", startup.run),
    "calls": ("debits of 32 callers on one wallet and on many, together and alone", calls.run),
    "isolation": ("what row-level security and the signed context cost a statement", isolation.run),
    "gateway": ("the metered call under load, against its floors and LiteLLM", gateway.run),
    "backup": ("backup and verified restore of a large ledger, against pg_dump and pg_restore", backup.run),
    "wallet": ("debits, reservations, batches, the end of a month and the ledger, against the least SQL", wallet.run),
    "levels": ("uses of a feature counted up to a limit, against a bare upsert", levels.run),
    "workflows": (
        "durable steps: throughput against a bare queue and four peers, claims under load, fairness",
        workflows.run,
    ),
    "engines": (
        "a run of one node against the model call it makes; the choice with a million assignments",
        engines.run,
    ),
    "agents": (
        "messages on one hot channel against the least SQL; durable turns against loops that keep nothing",
        agents.run,
    ),
    "operations": ("retention by dropping months, and the end of a month through the scheduler", operations.run),
}


def main() -> int:
    """Exit code 0 when the measurement is sound, whether or not targets were met; 1 when it is void."""
    names = "\n".join(f"  {name:11}{what}" for name, (what, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures against a floor in the same run. docs/benchmarks.md explains the floors.",
        epilog=f"benchmarks:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="fewer and shorter slices: under a minute without peers")
    parser.add_argument("--peers", action="store_true", help="install the pinned peers in a venv of their own, compare")
    parser.add_argument("--no-peers", action="store_true", help="leave installed peers out")
    parser.add_argument(
        "--only", default="", metavar="POINT,...", help="of wallet, workflows, engines, agents: these points alone"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    form.add_argument("--markdown", action="store_true", help="print the tables of docs/benchmarks.md")
    given = parser.parse_args()
    if given.name is None:
        parser.print_help()
        return 0
    only = tuple(filter(None, given.only.split(",")))
    options = Options(quick=given.quick, peers=given.peers, no_peers=given.no_peers, only=only)
    before = machine.load_average()
    try:
        result = BENCHMARKS[given.name][1](options)
    except BenchmarkError as error:
        print(f"The benchmark {given.name} failed: {error}", file=sys.stderr)
        return 1
    result = replace(result, machine=machine.describe(before))
    if given.json:
        print(json.dumps(result.as_json()))
    elif given.markdown:
        print(markdown(result), end="")
    else:
        show(result, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
