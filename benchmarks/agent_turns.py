"""Turns of agents: the processor time of a durable, metered turn beside a bare loop over HTTP, beside the product's own
loop that keeps nothing, and beside the same agent of pydantic-ai alone; and what a worker weighs.

A run has eight turns, seven with a call of a tool; a handover and a delegation have two agents and three turns. All ask
one sandbox in a process of its own, whose time nobody is charged. The durable side is one worker process, its children
and all of PostgreSQL, start and end of each run included. The loops beside it are this process alone. Slices alternate.
Afterwards every run must have ended with its answer, every turn be charged once and nothing be held.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from benchmarks import agent_loops
from benchmarks.agent_loops import GIVEN, HttpxModel, Model
from benchmarks.frame import BenchmarkError, Figure, middle
from benchmarks.machine import family_s, resident_mib
from benchmarks.processes import VANILLA_SAAS, environment, free_port, server, stop, temporary_home
from benchmarks.wallets import DEFECTS, make_users
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations.first_run import DEFAULT_TENANT
from vanilla_saas.orchestration.definition import AgentDefinition
from vanilla_saas.settings import Settings

TURNS, AT_ONCE = 8, 8
SAVE = "select save_agent($1, $2, true, (select id from users where tenant_id = $3 limit 1), $3)"
USERS = "select array_agg(id) from users where email like 'load-%'"
START = "select (start_agent($1, $2, 500000, p_user_id => $3, p_tenant_id => $4) ->> 'run_id')::uuid"
OPEN = "select count(*) from agent_runs where root_run_id = any($1) and finished_at is null"
WORKING = "select count(*) from worker_registry where status = 'active'"
CAME_TO = """
select count(*) as runs, coalesce(sum(turns), 0)::bigint as turns, coalesce(sum(charged_tokens), 0)::bigint as tokens,
    count(*) filter (where state <> 'completed' or stop_reason <> 'done') as other,
    (select count(*) from ai_executions where status = 'succeeded') as calls,
    (select coalesce(sum((metadata ->> 'actual')::bigint), 0)::bigint from user_token_ledger
        where direction = 'settle' and reference_type = 'workflow_execution') as ledger,
    (select coalesce(sum(reserved_tokens + borrowed_tokens), 0)::bigint from user_token_wallets) as held
from agent_runs
"""
IMPORT = """
import sys, time
sys.modules |= dict.fromkeys(("pydantic_ai", "opentelemetry.sdk"))
began = time.perf_counter()
import vanilla_saas.workflows.worker_cli, vanilla_saas.orchestration.loop
print(time.perf_counter() - began)
"""
STARTED_S, ENDED_S = 60.0, 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """An agent that is started, with whom it turns to, and how many turns its tree has."""

    slug: str
    turns: int
    agents: Mapping[str, Mapping[str, Any]]


def cases() -> list[Case]:
    """The same run by either loop, then two agents."""
    front, writer = _agent(_calls("transfer_to_second")), _agent(_says())
    second = _agent(_says(), _calls("look_up", n=1), _says(), tools=["look_up"])
    boss = _agent(_calls("delegate_to_writer", message="Write"), _says(), delegates=["writer"])
    return [
        Case("builtin", TURNS, {"builtin": long_run()}),
        Case("pydantic_ai", TURNS, {"pydantic_ai": long_run(loop="pydantic_ai")}),
        Case("handover", 3, {"second": second, "handover": {**front, "handoffs": ["second"]}}),
        Case("delegate", 3, {"writer": writer, "delegate": boss}),
    ]


def long_run(**more: Any) -> dict[str, Any]:
    """A definition whose model calls a tool in each turn but the last."""
    return _agent(*(_calls("look_up", n=n) for n in range(1, TURNS)), _says(), tools=["look_up"], **more)


def _calls(name: str, **arguments: Any) -> dict[str, Any]:
    number = arguments.get("n", 0)
    return {"tool_calls": [{"id": f"call_{number}", "name": name, "arguments": arguments}]}


def _says() -> dict[str, Any]:
    return {"reply": "This is the answer that was asked for."}


def _agent(*turns: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    # indented, so that no braces stand together, which would make it a template
    script = json.dumps({"turns": turns}, indent=0)
    return {"model": "sandbox-small", "instructions": f"You help.\nsandbox: {script}", **more}


def turns(quick: bool) -> tuple[dict[str, float], dict[str, Figure]]:
    """Ratios of processor time for a turn. Raises BenchmarkError when the books are wrong."""
    rounds, runs = (3, 16) if quick else (7, 80)
    with ExitStack() as stack:
        home = stack.enter_context(temporary_home())
        settings = Settings(_env_file=None, home=home)
        where = stack.enter_context(addresses(settings, load_signer(settings)))
        assert where.server is not None
        postmaster = int((where.server.data_dir / "postmaster.pid").read_text().split()[0])
        upstream = free_port()
        sandbox = [sys.executable, "-m", "vanilla_saas.providers.sandbox", "--port", str(upstream)]
        stack.enter_context(server(sandbox, upstream, environment(home)))
        url = f"http://127.0.0.1:{upstream}/v1"
        people = asyncio.run(_prepare(where.admin, settings))
        worker = stack.enter_context(_worker(home, url))
        asyncio.run(_until(where.admin, WORKING, (), 1, STARTED_S))
        idle_mib = resident_mib(worker)
        used: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            spent = _floors(url, runs, used_first=bool(number % 2))
            for case in cases():
                before = family_s(worker), family_s(postmaster)
                asyncio.run(_durable(where.admin, case.slug, people, runs))
                after = family_s(worker), family_s(postmaster)
                each = [(b - a) * 1000 / (runs * case.turns) for a, b in zip(before, after, strict=True)]
                spent |= {case.slug: sum(each), f"{case.slug}_worker": each[0], f"{case.slug}_postgres": each[1]}
            if number:  # the first round fills caches and imports
                for name, value in spent.items():
                    used.setdefault(name, []).append(value)
        worked_mib = resident_mib(worker)
        asyncio.run(_check(where.admin, (rounds + 1) * runs))
    ratios = {
        f"{name}_turn_cpu_to_{floor}": middle([one / least for one, least in zip(used[name], used[by], strict=True)])
        for name, floor, by in (
            ("builtin", "bare", "bare"),
            ("pydantic_ai", "bare", "bare"),
            ("builtin", "in_memory", "builtin_in_memory"),
            ("pydantic_ai", "in_memory", "pydantic_ai_in_memory"),
            ("pydantic_ai", "stock", "pydantic_ai_stock"),
            ("handover", "bare", "bare"),
            ("delegate", "bare", "bare"),
        )
    }
    figures: dict[str, Figure] = {f"{name}_turn_cpu_ms": middle(found) for name, found in used.items()}
    return ratios, figures | {"worker_idle_mib": idle_mib, "worker_with_pydantic_ai_mib": worked_mib}


def _floors(url: str, runs: int, *, used_first: bool) -> dict[str, float]:
    """Processor milliseconds for a turn of the loops that keep nothing; in the other order every second time."""

    async def measured(name: str) -> float:
        loop = "pydantic_ai" if name.startswith("pydantic_ai") else "builtin"
        definition = AgentDefinition.model_validate(long_run(loop=loop)).document()
        async with (HttpxModel if name == "bare" else Model)(url) as model:
            if name in ("bare", "bare_aiohttp"):
                made = agent_loops.bare(model, definition, await agent_loops.functions_of(definition))
            elif name == "pydantic_ai_stock":
                made = agent_loops.stock(url, definition)
            else:
                made = agent_loops.in_memory(model, definition)
            return await agent_loops.processor_ms(made, runs, AT_ONCE)

    names = sorted(
        ("bare", "bare_aiohttp", "builtin_in_memory", "pydantic_ai_in_memory", "pydantic_ai_stock"), reverse=used_first
    )
    return {name: asyncio.run(measured(name)) for name in names}


async def _prepare(url: str, settings: Settings) -> Sequence[UUID]:
    """Agents, and people who may run them."""
    await migrate(url, load_signer(settings))
    await make_users(url, 50)
    connection = await asyncpg.connect(url)
    try:
        for case in cases():
            for slug, definition in case.agents.items():
                document = AgentDefinition.model_validate(definition).document()
                await connection.fetchval(SAVE, slug, json.dumps(document), DEFAULT_TENANT)
        people: Sequence[UUID] = await connection.fetchval(USERS)
        await connection.execute("vacuum analyze")
        return people
    finally:
        await connection.close()


async def _durable(url: str, slug: str, people: Sequence[UUID], runs: int) -> None:
    """Starts so many runs, a few at once, and waits until all have ended."""
    connection = await asyncpg.connect(url)
    try:
        given = json.dumps(GIVEN)
        started = [
            await connection.fetchval(START, slug, given, people[number % len(people)], DEFAULT_TENANT)
            for number in range(runs)
        ]
    finally:
        await connection.close()
    await _until(url, OPEN, (started,), 0, ENDED_S)


async def _until(url: str, question: str, values: Sequence[Any], wanted: int, seconds: float) -> None:
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(seconds):
            while await connection.fetchval(question, *values) != wanted:
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise BenchmarkError(f"not within {seconds:.0f} s: {question}") from None
    finally:
        await connection.close()


async def _check(url: str, runs: int) -> None:
    """Raises BenchmarkError unless every run has answered, every turn is charged once and nothing is held."""
    connection = await asyncpg.connect(url)
    try:
        row = dict(await connection.fetchrow(CAME_TO))
        defects = [record[0] for record in await connection.fetch(DEFECTS)]
    finally:
        await connection.close()
    wanted = sum(case.turns for case in cases()) * runs
    expected = {"runs": 5 * runs, "turns": wanted, "other": 0, "calls": wanted, "ledger": row["tokens"], "held": 0}
    if (found := {name: row[name] for name in expected}) != expected or defects:
        raise BenchmarkError(f"runs came to {found} and not to {expected}; {defects[:5]}")


@contextmanager
def _worker(home: Path, url: str) -> Iterator[int]:
    """The id of a worker process, which is stopped after the block."""
    tools = json.dumps(["benchmarks.agent_tools"])
    env = environment(home, VANILLA_SAAS_SANDBOX_URL=url, VANILLA_SAAS_WORKER_TOOLS=tools)
    nothing = subprocess.DEVNULL
    child = subprocess.Popen([*VANILLA_SAAS, "worker"], env=env, stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        yield child.pid
    finally:
        stop(child)


def footprint(quick: bool) -> tuple[dict[str, float], dict[str, Figure]]:
    """Of a fresh process that imports what a worker runs agents with, and nothing of an extra."""
    seconds, memory = [], []
    for _ in range(3 if quick else 7):
        with subprocess.Popen(
            [sys.executable, "-c", IMPORT + "sys.stdout.flush(); sys.stdin.read()"],
            env=environment(Path(os.devnull)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            seconds.append(float(child.stdout.readline()))
            memory.append(resident_mib(child.pid))
            child.communicate()
    return {"worker_mib": middle(memory), "worker_import_s": middle(seconds)}, {}
