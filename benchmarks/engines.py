"""Engines: what a run of one node through the gateway costs beside the model call it makes, and how the choice grows.

Both calls go to one server process with a worker beside it, one after the other in each round, the same messages to the
same model from the same users; the model server is a process of its own. What they cost is processor time of that
process and of PostgreSQL, each call's. The first call of a user looks up what the engine is; later ones know it.
Afterwards every answer must have been charged once.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg

from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.gateway import BODY, PATH
from benchmarks.load import Client, Measured, Slice
from benchmarks.machine import family_s
from benchmarks.options import Options
from benchmarks.processes import VANILLA_SAAS, environment, free_port, server, temporary_home
from benchmarks.upstream import COMPLETION_TOKENS, PROMPT_TOKENS
from benchmarks.wallets import check_durable, close_books, make_users
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations.first_run import DEFAULT_TENANT
from vanilla_saas.settings import Settings

FLOOR = (
    "the call of the same model through the same gateway, without an engine; of the choice itself with few assignments"
)
CONNECTIONS = 8
USERS = 50
FLOW = {
    "name": "Hello",
    "input": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "nodes": [
        {"id": "a", "kind": "llm", "model": "sandbox-small", "prompt": "{{ input.text }}", "max_output_tokens": 64}
    ],
    "connections": [],
}
DEPLOY = """
with flow as materialized (
    select (save_workflow('hello', $1, p_user_id => (select id from users where tenant_id = $2 limit 1),
        p_tenant_id => $2) ->> 'id')::uuid as id)
select publish_workflow(id, p_tenant_id => $2) is not null, id from flow
"""
OFFER = """
select set_engine((deploy_engine('hello', $1, p_tenant_id => $2) ->> 'engine_id')::uuid, p_default_access => 'execute',
    p_tenant_id => $2) ->> 'engine_id'
"""
MORE_ASSIGNED = """
with made as (
    insert into users (tenant_id, id, external_id, email, role)
        select $1, gen_random_uuid(), 'assigned-' || n, null, 'user' from generate_series($3::int, $4::int) n
        returning id)
insert into engine_assignments (tenant_id, engine_tenant_id, engine_id, target, user_id, assigned_at)
    select $1, $1, $2, 'user', id, clock_timestamp() from made
"""
SOME = """
select array_agg(id) from (
    select id from users where external_id like 'assigned-%' order by md5(id::text) limit $1) s
"""
RESOLVE = """
select version, source from vanilla.resolve_engines(array[$1::uuid], array[$2::uuid], array[null], vanilla.clock())
"""
CALL, CHOICE = "call", "choice"


@dataclass(slots=True)
class Cost:
    """Processor time of slices, in milliseconds a call."""

    server_ms: list[float] = field(default_factory=list)
    postgres_ms: list[float] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    def whole_ms(self) -> list[float]:
        return [ours + theirs for ours, theirs in zip(self.server_ms, self.postgres_ms, strict=True)]


def run(options: Options) -> Result:
    """Both points, or those that `options.only` names. Raises BenchmarkError when the books are wrong."""
    known = (CALL, CHOICE)
    if unknown := set(options.only) - set(known):
        raise BenchmarkError(f"there is no point {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    ratios: dict[str, float] = {}
    figures: dict[str, Figure] = {}
    with ExitStack() as stack:
        home = stack.enter_context(temporary_home())
        settings = Settings(_env_file=None, home=home)
        where = stack.enter_context(addresses(settings, load_signer(settings)))
        assert where.server is not None
        keys, engine = asyncio.run(_prepare(where.admin, settings))
        if not options.only or CALL in options.only:
            postmaster = int((where.server.data_dir / "postmaster.pid").read_text().split()[0])
            costs = _calls(stack, home, keys, postmaster, options.quick)
            answered = sum(m.answered for cost in costs.values() for m in cost.measured)
            books = asyncio.run(close_books(where.admin, answered, PROMPT_TOKENS + COMPLETION_TOKENS))
            pairs = zip(costs["engine"].whole_ms(), costs["direct"].whole_ms(), strict=True)
            ratios["call_cpu_to_direct"] = middle([one / other for one, other in pairs])
            figures |= {"calls": books.calls, "tokens_charged": books.tokens, "connections": CONNECTIONS}
            for name, cost in costs.items():
                figures |= {
                    f"{name}_server_cpu_ms": middle(cost.server_ms),
                    f"{name}_postgres_cpu_ms": middle(cost.postgres_ms),
                    f"{name}_p50_ms": middle([m.p50_ms for m in cost.measured]),
                    f"{name}_rps": middle([m.rps for m in cost.measured]),
                }
        if not options.only or CHOICE in options.only:
            few, many = (200, 20_000) if options.quick else (1000, 1_000_000)
            few_us, many_us = asyncio.run(_choices(where.admin, engine, few, many))
            ratios["choice_many_to_few"] = many_us / few_us
            figures |= {f"choice_{few}_us": few_us, f"choice_{many}_us": many_us}
    return Result("engines", FLOOR, judge("engines", ratios), figures, {})


async def _prepare(url: str, settings: Settings) -> tuple[list[str], UUID]:
    """Keys of users who may run the engine, and its id."""
    await migrate(url, load_signer(settings))
    keys = await make_users(url, USERS)
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(DEPLOY, json.dumps(FLOW), DEFAULT_TENANT)
        engine = UUID(await connection.fetchval(OFFER, row["id"], DEFAULT_TENANT))
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()
    return keys, engine


def _calls(stack: ExitStack, home: Path, keys: Sequence[str], postmaster: int, quick: bool) -> dict[str, Cost]:
    client = stack.enter_context(Client())
    upstream, port = free_port(), free_port()
    canned = [VANILLA_SAAS[0], "-m", "benchmarks.upstream", str(upstream)]
    stack.enter_context(server(canned, upstream, environment(home)))
    product = stack.enter_context(
        server(
            [*VANILLA_SAAS, "serve", "--port", str(port)],
            port,
            environment(home, VANILLA_SAAS_SANDBOX_URL=f"http://127.0.0.1:{upstream}/v1"),
            home,
        )
    )
    direct = BODY % ""
    bodies = {"direct": direct, "engine": direct.replace("sandbox-small", "engine/hello")}
    costs = {name: Cost() for name in bodies}
    headers = [f"authorization: Bearer {key}" for key in keys]
    rounds, seconds = (3, 1.0) if quick else (7, 5.0)
    for number in range(rounds + 1):
        for name in sorted(bodies, reverse=bool(number % 2)):
            before = _used(product.pid, postmaster)
            measured = client.run(Slice(port, PATH, bodies[name], headers, CONNECTIONS, seconds))
            after = _used(product.pid, postmaster)
            if measured.errors:
                raise BenchmarkError(f"{measured.errors} errors of {name}: {measured.first_error}")
            costs[name].measured.append(measured)
            if number:  # the first round fills caches
                costs[name].server_ms.append((after[0] - before[0]) * 1000 / measured.answered)
                costs[name].postgres_ms.append((after[1] - before[1]) * 1000 / measured.answered)
    return costs


def _used(product: int, postmaster: int) -> tuple[float, float]:
    """Processor seconds of the server with its children, and of PostgreSQL's processes."""
    return family_s(product), family_s(postmaster)


async def _choices(url: str, engine: UUID, few: int, many: int) -> tuple[float, float]:
    """Median microseconds of a choice with so many assignments of users, and with so many."""
    connection = await asyncpg.connect(url)
    try:
        await check_durable(connection)
        found, first = [], 1
        for count in (few, many):
            await connection.execute(MORE_ASSIGNED, DEFAULT_TENANT, engine, first, count)
            await connection.execute("vacuum analyze users, engine_assignments")
            found.append(await _choice_us(connection))
            first = count + 1
    finally:
        await connection.close()
    return found[0], found[1]


async def _choice_us(connection: asyncpg.Connection) -> float:
    people = await connection.fetchval(SOME, 200)
    clock, times = asyncio.get_running_loop().time, []
    for _ in range(5):
        for person in people:
            began = clock()
            row = await connection.fetchrow(RESOLVE, DEFAULT_TENANT, person)
            times.append((clock() - began) * 1e6)
            if tuple(row) != (1, "user"):
                raise BenchmarkError(f"an assignment was not what chose: {tuple(row)}")
    return middle(times[len(people) :])
