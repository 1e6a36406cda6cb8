"""A worker of the runner without its Python half: it claims, says at once that each step succeeded, and claims again.

What is measured is the product's SQL: readiness, fences, results, successors, ends, fair claims.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from benchmarks.frame import BenchmarkError
from vanilla_saas.workflows.definition import Definition, plain

CONNECTIONS = 4
STEPS = 5
"""Nodes of a chain. It needs neither `$start` nor `$end`: its input has no schema, its output no expression."""
LAST = "last"
"""The last node of a chain; with its outcome the execution ends."""
EXISTS = "select to_regprocedure('vanilla.tick_worker(uuid, jsonb, integer, jsonb)') is not null"
REGISTER = "select vanilla.register_worker($1, '{default}', $2, '{}', null, 'benchmark')"
TICK = "select vanilla.tick_worker($1, $2::text::jsonb, $3, $4::text::jsonb)::text"
TEND = "select vanilla.tend_workflows()"
HEARTBEAT = "select vanilla.heartbeat_worker($1, '{}')"
STOP = "select vanilla.stop_worker($1)"
TEND_S, HEARTBEAT_S, IDLE_S = 0.2, 3.0, 0.002
STUCK_S = 60.0
"""A tick that takes so long, or executions of which none can be claimed for so long, end the run."""
START = """
select array_agg((start_workflow($1, '{}', p_user_id => $2, p_tenant_id => $3) ->> 'execution_id')::uuid)
from generate_series(1, $4::int)
"""
NOT_SUCCEEDED = """
select status, count(*) from workflow_executions where status <> 'succeeded' group by status
"""
OUTPUT = {"ok": True}
APPROVAL = {
    "kind": "approval",
    "title": "Go on?",
    "prompt": None,
    "subject": None,
    "edit": None,
    "approvers": ["role:admin"],
    "quorum": 1,
    "deadline_s": None,
    "on_deadline": None,
    "escalate_to": None,
}


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant with one user and its workflows, by name."""

    id: UUID
    user_id: UUID
    workflows: dict[str, UUID]


@dataclass(slots=True)
class Drained:
    """What workers did until nothing was left."""

    seconds: float = 0.0
    steps: int = 0
    """Nodes; without the runner's own."""
    outcomes: int = 0
    """With them."""
    ended_s: dict[str, float] = field(default_factory=dict)
    """When an execution's end was committed, from the beginning, by its id."""

    @property
    def steps_per_s(self) -> float:
        return self.steps / self.seconds


@dataclass(slots=True)
class Worker:
    """One worker with a connection of its own."""

    connection: asyncpg.Connection
    id: UUID
    state: dict[str, Any] = field(default_factory=dict)

    async def tick(self, outcomes: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
        """Steps that it has now. Raises BenchmarkError when an outcome was dropped: nobody else may have its steps."""
        done = orjson.dumps(outcomes).decode()
        state = orjson.dumps(self.state).decode()
        try:
            answer = orjson.loads(await self.connection.fetchval(TICK, self.id, done, most, state, timeout=STUCK_S))
        except TimeoutError:
            raise BenchmarkError(f"a tick did not answer within {STUCK_S:.0f} s") from None
        if answer.get("stale") or answer.get("stop"):
            raise BenchmarkError(f"leases were lost: {answer.get('stale')} {answer.get('stop')}")
        self.state = answer["state"]
        steps: list[dict[str, Any]] = answer["steps"]
        return steps


def chain(length: int = STEPS) -> dict[str, Any]:
    """`length` transforms, one after the other, with every default written out."""
    names = [*(f"n{place}" for place in range(1, length)), LAST]
    nodes = [{"id": name, "kind": "transform", "value": "1"} for name in names]
    links = [{"from": before, "to": after} for before, after in pairwise(names)]
    return plain(Definition.model_validate({"name": f"Chain of {length}", "nodes": nodes, "connections": links}))


def waiting() -> dict[str, Any]:
    """One approval that nobody gives."""
    node = {"id": "ask", "kind": "approval", "title": "Go on?", "approvers": ["role:admin"]}
    return plain(Definition.model_validate({"name": "Waiting", "nodes": [node], "connections": []}))


def outcome(step: dict[str, Any]) -> dict[str, Any]:
    """What the worker would have computed."""
    fence = {name: step[name] for name in ("lease", "attempt", "tenant_id", "execution_id", "n", "item", "node")}
    if step["node"] == "$start":
        return fence | {"outcome": "go", "key": None, "limit": None}
    if step["node"] == "ask":
        return fence | {"outcome": "waiting", "wait": APPROVAL}
    return fence | {"outcome": "succeeded", "output": OUTPUT}


async def start(connection: asyncpg.Connection, tenant: Tenant, workflow: str, count: int = 1) -> list[UUID]:
    """Starts a workflow `count` times as the operator does; the executions."""
    found: list[UUID] = await connection.fetchval(
        START, tenant.workflows[workflow], tenant.user_id, tenant.id, count, timeout=1800
    )
    return found


async def register(stack: AsyncExitStack, runtime_url: str, name: str, durable: bool = True) -> Worker:
    """A worker whose capacity bounds nothing; it stops with the stack."""
    settings = {} if durable else {"synchronous_commit": "off"}
    connection = await asyncpg.connect(runtime_url, server_settings=settings)
    stack.push_async_callback(connection.close)
    worker = Worker(connection, await connection.fetchval(REGISTER, name, 10_000))
    stack.push_async_callback(connection.execute, STOP, worker.id)
    return worker


async def drain(runtime_url: str, ends: int, batch: int, handler_s: float = 0.0) -> Drained:
    """Four workers, each with a connection, until `ends` executions have come to their end.

    `handler_s` is how long a worker is busy with a batch. An execution that waits for a person must not be among them.
    """
    drained = Drained()
    async with AsyncExitStack() as stack:
        workers = [await register(stack, runtime_url, f"bench-{n}") for n in range(CONNECTIONS)]
        began = time.perf_counter()
        tasks = [asyncio.create_task(_work(w, drained, began, ends, batch, handler_s)) for w in workers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        drained.seconds = time.perf_counter() - began
    return drained


async def _work(worker: Worker, drained: Drained, began: float, ends: int, batch: int, handler_s: float) -> None:
    outcomes: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    tend = heartbeat = busy = began
    while len(drained.ended_s) < ends:
        now = time.perf_counter()
        if now >= tend:
            await worker.connection.execute(TEND)
            tend = now + TEND_S
        if now >= heartbeat:
            await worker.connection.execute(HEARTBEAT, worker.id)
            heartbeat = now + HEARTBEAT_S
        claimed = await worker.tick(outcomes, batch)
        at = time.perf_counter() - began
        drained.outcomes += len(steps)
        drained.steps += sum(step["node"][0] != "$" for step in steps)
        drained.ended_s |= {step["execution_id"]: at for step in steps if step["node"] == LAST}
        steps, outcomes = claimed, [outcome(step) for step in claimed]
        if handler_s and steps:
            await asyncio.sleep(handler_s)
        elif not steps:
            await asyncio.sleep(IDLE_S)
        busy = now if steps else busy
        if now - busy > STUCK_S:
            raise BenchmarkError(f"{len(drained.ended_s)} of {ends} executions ended, and nothing can be claimed")


async def settle(runtime_url: str) -> None:
    """One worker goes on until nothing can be claimed: what is left waits for somebody."""
    async with AsyncExitStack() as stack:
        worker = await register(stack, runtime_url, "bench-settle")
        steps = await worker.tick([], 100)
        while steps:
            steps = await worker.tick([outcome(step) for step in steps], 100)


async def check_ends(url: str) -> None:
    """Raises BenchmarkError when an execution of the database has not succeeded."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(NOT_SUCCEEDED)
    finally:
        await connection.close()
    if rows:
        raise BenchmarkError(f"not every execution succeeded: {[tuple(row) for row in rows]}")
