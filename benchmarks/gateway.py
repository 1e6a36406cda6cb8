"""The metered call under load.

One server process of the product, one of each floor and, when present, LiteLLM's proxy stand before the same
upstream; the client is a process of its own. Every round measures each point on all of them, one after the other,
so that a disturbance meets all alike; a ratio is taken within its round, and its median is reported. Afterwards the
books must be right to the token.
"""

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from benchmarks import peers, wallets
from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.load import Client, Measured, Slice
from benchmarks.machine import resident_mib
from benchmarks.options import Options
from benchmarks.processes import VANILLA_SAAS, environment, free_port, server, temporary_home
from benchmarks.upstream import COMPLETION_TOKENS, PROMPT_TOKENS
from vanilla_saas.database.connection import Addresses, addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.settings import Settings

FLOOR = (
    "a bare ASGI pass-through with aiohttp and two SQL functions (reserve, settle) on the same PostgreSQL;"
    " second floor: the pass-through without a database"
)
OURS, TWO_CALLS, PASS, LITELLM = "ours", "two_calls", "pass", "litellm"
POOL = 10
"""Database connections of the product's runtime pool, and of the floor's."""
BODY = '{"model":"sandbox-small","max_tokens":64,"messages":[{"role":"user","content":"Say hello to the load."}]%s}'
UPSTREAMS = {"sandbox": ["vanilla_saas.providers.sandbox", "--port"], "canned": ["benchmarks.upstream"]}
PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Point:
    """What the clients do in a slice."""

    connections: int
    streamed: bool = False
    hot: bool = False
    """All calls on one wallet, instead of one after the other on a thousand."""
    against_peer: bool = False

    @property
    def name(self) -> str:
        return f"c{self.connections}" + ("_streamed" if self.streamed else "") + ("_one_wallet" if self.hot else "")


POINTS = (
    Point(1),
    Point(32, against_peer=True),
    Point(128, against_peer=True),
    Point(32, streamed=True, against_peer=True),
    Point(128, streamed=True, against_peer=True),
    Point(32, hot=True),
)


@dataclass(slots=True)
class Run:
    """Addresses and findings of a run."""

    client: Client
    keys: list[str]
    ports: dict[str, int]
    seconds: float
    found: dict[tuple[str, str], list[Measured]] = field(default_factory=dict)
    answered: int = 0
    peer_errors: int = 0

    def slice(self, target: str, point: Point) -> Measured:
        """Measures one point on one server.

        Raises BenchmarkError for any error of ours or of a floor, because a refused call is cheap. Errors of the
        peer are counted and reported; its rate is of whole answers only.
        """
        keys = self.keys[:1] if point.hot else self.keys
        headers = [f"authorization: Bearer {key}\r\nx-floor-wallet: {i}" for i, key in enumerate(keys)]
        if target == LITELLM:
            headers = [f"authorization: Bearer {peers.KEY}"]
        body = BODY % (',"stream":true' if point.streamed else "")
        measured = self.client.run(
            Slice(self.ports[target], PATH, body, headers, point.connections, self._seconds(target))
        )
        if target == LITELLM:
            self.peer_errors += measured.errors
        if not measured.rps or (measured.errors and target != LITELLM):
            raise BenchmarkError(f"{measured.errors} errors of {target} at {point.name}: {measured.first_error}")
        if target == OURS:
            self.answered += measured.answered
        self.found.setdefault((target, point.name), []).append(measured)
        return measured

    def _seconds(self, target: str) -> float:
        # at 128 connections an answer of LiteLLM takes seconds: a short slice would see none
        return max(self.seconds, 4.0) if target == LITELLM else self.seconds

    def ratio(self, above: str, below: str, point: str) -> float:
        """Median over the rounds of the quotient within a round."""
        pairs = zip(self.found[above, point], self.found[below, point], strict=True)
        return middle([one.rps / two.rps for one, two in pairs])


def run(options: Options) -> Result:
    """All points on all servers; raises BenchmarkError when the books are wrong afterwards."""
    peer = None if options.no_peers else peers.find_litellm(options.peers)
    rounds, seconds = (3, 0.6) if options.quick else (5, 3.0)
    with ExitStack() as stack:
        home = stack.enter_context(temporary_home())
        settings = Settings(_env_file=None, home=home)
        where = stack.enter_context(addresses(settings, load_signer(settings)))
        keys, floor_dsn = asyncio.run(_prepare(where, settings, 50 if options.quick else 1000))
        client = stack.enter_context(Client())
        upstream_port, figures = _choose_upstream(stack, client, home, seconds)
        ports = {name: free_port() for name in (OURS, TWO_CALLS, PASS)}
        product = stack.enter_context(
            server(
                [*VANILLA_SAAS, "serve", "--port", str(ports[OURS])],
                ports[OURS],
                environment(
                    home,
                    VANILLA_SAAS_SANDBOX_URL=f"http://127.0.0.1:{upstream_port}/v1",
                    VANILLA_SAAS_POOL_SIZE=str(POOL),
                ),
                home,
            )
        )
        for name, dsn in ((TWO_CALLS, floor_dsn), (PASS, "")):
            stack.enter_context(_floor(ports[name], home, dsn, upstream_port))
        if peer:
            ports[LITELLM] = free_port()
            peer_process = stack.enter_context(peers.litellm(peer, ports[LITELLM], upstream_port))
        figures["memory_idle_mib"] = resident_mib(product.pid)
        run = Run(client, keys, ports, seconds)
        _measure(run, rounds)
        figures["memory_loaded_mib"] = resident_mib(product.pid)
        if peer:
            figures |= {"memory_litellm_mib": resident_mib(peer_process.pid), "litellm_errors": run.peer_errors}
        books = asyncio.run(wallets.close_books(where.admin, run.answered, PROMPT_TOKENS + COMPLETION_TOKENS))
        figures |= {"calls": books.calls, "tokens_charged": books.tokens, "errors": 0}
        figures |= {"wallets": len(keys), "rounds": rounds, "slice_s": seconds}
    return _report(run, figures, bool(peer))


async def _prepare(where: Addresses, settings: Settings, users: int) -> tuple[list[str], str]:
    """A migrated database with users; and one with the floor's tables beside it, by its address."""
    await migrate(where.admin, load_signer(settings))
    keys = await wallets.make_users(where.admin, users)
    assert where.server is not None
    admin = await asyncpg.connect(where.admin)
    await admin.execute("create database floor")
    await admin.close()
    dsn = where.server.dsn("postgres", "floor")
    floor = await asyncpg.connect(dsn)
    await floor.execute(Path(__file__).with_name("floor.sql").read_text())
    await floor.execute("analyze")
    await floor.close()
    return keys, dsn


def _choose_upstream(stack: ExitStack, client: Client, home: Path, seconds: float) -> tuple[int, dict[str, Figure]]:
    """The quicker of the sandbox and the canned server: whoever answers must not be what is measured."""
    rps: dict[str, float] = {}
    for name, command in UPSTREAMS.items():
        port = free_port()
        with server([sys.executable, "-m", *command, str(port)], port, environment(home)):
            wanted = Slice(port, PATH, BODY % "", ["authorization: Bearer none"], 32, seconds)
            measured = client.run(wanted)
        if measured.errors:
            raise BenchmarkError(f"the upstream {name} failed: {measured.first_error}")
        rps[name] = measured.rps
    quicker = max(rps, key=lambda name: rps[name])
    port = free_port()
    stack.enter_context(server([sys.executable, "-m", *UPSTREAMS[quicker], str(port)], port, environment(home)))
    return port, {"upstream": quicker} | {f"upstream_{name}_rps": value for name, value in rps.items()}


def _floor(port: int, home: Path, dsn: str, upstream_port: int) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "uvicorn", "benchmarks.floor:application", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "warning", "--no-access-log", "--no-server-header"]
    upstream = f"http://127.0.0.1:{upstream_port}{PATH}"
    return server(command, port, environment(home, FLOOR_DSN=dsn, FLOOR_UPSTREAM=upstream, FLOOR_POOL=str(POOL)))


def _measure(run: Run, rounds: int) -> None:
    targets = list(run.ports)
    for target in targets:
        # connections, prepared statements and caches: the first slice is nobody's
        for point in (Point(8), Point(8, streamed=True)):
            run.slice(target, point)
    run.found.clear()
    for number in range(rounds):
        for point in POINTS:
            # another one begins each round
            order = targets[number % len(targets) :] + targets[: number % len(targets)]
            for target in order:
                if target != LITELLM or point.against_peer:
                    run.slice(target, point)


def _report(run: Run, figures: Mapping[str, Figure], with_peer: bool) -> Result:
    ratios: dict[str, float] = {}
    numbers: dict[str, Figure] = {}
    for point in POINTS:
        ratios[f"{point.name}_to_two_calls"] = run.ratio(OURS, TWO_CALLS, point.name)
    for point in POINTS:
        # one call at a time waits for the disk, which says nothing about the code
        if point.connections > 1 and not point.hot:
            ratios[f"{point.name}_to_pass"] = run.ratio(OURS, PASS, point.name)
    for point in POINTS:
        if with_peer and point.against_peer:
            ratios[f"{point.name}_to_litellm"] = run.ratio(OURS, LITELLM, point.name)
    ceiling = float(figures[f"upstream_{figures['upstream']}_rps"])
    ours = [measured for (target, _), slices in run.found.items() if target == OURS for measured in slices]
    numbers["client_share"] = max(measured.rps for measured in ours) / ceiling
    numbers["client_cpu"] = max(measured.client_cpu for measured in ours)
    for (target, point_name), slices in run.found.items():
        numbers |= _numbers(f"{point_name}_{target}", slices)
    notes = [
        "client_share is the product's best slice by what client and upstream reach together without it,"
        " client_cpu the largest part of a core that the client used: neither is what was measured.",
        f"The upstream is the quicker one, {figures['upstream']}: it answers a stream in one write.",
    ]
    if with_peer:
        notes.append(
            f"LiteLLM {peers.litellm_version()} runs without its database, which favours it:"
            " it stores no key, no spend and no log of a call."
        )
    return Result("gateway", FLOOR, judge("gateway", ratios), dict(figures) | numbers, {}, notes)


def _numbers(name: str, slices: Sequence[Measured]) -> dict[str, Figure]:
    return {
        f"{name}_rps": middle([s.rps for s in slices]),
        f"{name}_p50_ms": middle([s.p50_ms for s in slices]),
        f"{name}_p99_ms": middle([s.p99_ms for s in slices]),
    }
