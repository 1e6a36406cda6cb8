"""Statements of routing: reads under row-level security, writes through the functions of 008."""

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError

Rows = list[dict[str, Any]]

WORKERS = """
select w.id, w.name, w.pools, w.capacity, w.labels, w.region, w.release, w.status, w.health_score, w.in_flight,
    w.latency_ewma_ms, w.success_ewma, w.started_at, w.heartbeat_at, w.stopped_at
from public.worker_registry w
where w.tenant_id = $1 and ($2::text is null or w.status = $2) and ($3::text is null or $3 = any (w.pools))
order by w.stopped_at desc nulls first, w.name, w.id
limit $4
"""
WORKER = """
select w.id, w.name, w.pools, w.capacity, w.labels, w.region, w.release, w.status, w.health_score, w.in_flight,
    w.latency_ewma_ms, w.success_ewma, w.started_at, w.heartbeat_at, w.stopped_at
from public.worker_registry w
where w.tenant_id = $1 and w.id = $2
"""
EVENTS = """
select e.id, e.created_at, e.worker_id, e.worker, e.event, e.from_status, e.to_status, e.reason,
    e.health_score, e.actor_id
from public.worker_event_logs e
where e.tenant_id = $1 and ($2::uuid is null or e.worker_id = $2) and (e.created_at, e.id) < ($3, $4)
order by e.created_at desc, e.id desc
limit $5
"""
METRICS = """
select m.created_at as minute, m.finished, m.failed, m.latency_ms_sum, m.in_flight_max, m.health_min
from public.routing_metrics m
where m.tenant_id = $1 and m.worker_id = $2 and m.created_at >= now() - make_interval(mins => $3)
order by m.created_at
"""
STRATEGIES = """
select s.slug, s.kind, s.target, s.config, s.pool, s.explain, s.status, s.description, s.updated_at,
    s.tenant_id = $1 as own
from public.routing_strategies s
where s.tenant_id in ($1, vanilla.platform())
order by s.slug, own desc
"""
DECISIONS = """
select d.id, d.created_at, d.strategy, d.kind, d.target, d.chosen
from public.routing_decisions d
where d.tenant_id = $1 and (d.created_at, d.id) < ($2, $3)
order by d.created_at desc, d.id desc
limit $4
"""
SET = "select public.set_routing_strategy($1, $2, $3, $4, $5, $6, $7, $8, $9)"
DRAIN = "select public.drain_worker($1, $2, $3)"
ROUTE = "select public.route_decision($1, $2, $3, $4, $5)"
EXPLAIN = "select public.explain_routing($1, $2)"


async def workers(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    status: str | None = None,
    pool: str | None = None,
    limit: int = 1000,
) -> Rows:
    """The tenant's workers, those that live first; none for who is no admin."""
    return [dict(row) for row in await connection.fetch(WORKERS, tenant_id, status, pool, limit)]


async def worker(connection: asyncpg.Connection, tenant_id: UUID, worker_id: UUID) -> dict[str, Any]:
    """Raises VanillaError `not_found`."""
    row = await connection.fetchrow(WORKER, tenant_id, worker_id)
    if row is None:
        raise VanillaError("not_found", "no such worker", {"worker_id": str(worker_id)})
    return dict(row)


async def events(
    connection: asyncpg.Connection, tenant_id: UUID, worker_id: UUID | None, bounds: tuple[datetime, UUID, int]
) -> Rows:
    """Transitions of a worker, or of all, newest first."""
    return [dict(row) for row in await connection.fetch(EVENTS, tenant_id, worker_id, *bounds)]


async def metrics(connection: asyncpg.Connection, tenant_id: UUID, worker_id: UUID, minutes: int) -> Rows:
    """The minutes of a worker in which it did something, oldest first."""
    return [dict(row) for row in await connection.fetch(METRICS, tenant_id, worker_id, minutes)]


async def drain(connection: asyncpg.Connection, tenant_id: UUID, worker_id: UUID, reason: str) -> None:
    """`drain_worker`. Raises VanillaError `not_found`, `invalid_state` for one that has ended."""
    await connection.execute(DRAIN, worker_id, reason, tenant_id)


async def strategies(connection: asyncpg.Connection, tenant_id: UUID) -> Rows:
    """The platform's and the tenant's own; of one slug the own first."""
    return [dict(row) for row in await connection.fetch(STRATEGIES, tenant_id)]


async def set_strategy(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    slug: str,
    kind: str,
    *,
    target: str = "worker",
    config: dict[str, Any] | None = None,
    pool: str | None = None,
    explain: bool = False,
    status: str = "active",
    description: str = "",
) -> dict[str, Any]:
    """`set_routing_strategy`. Raises VanillaError `invalid_request`, `invalid_state` when another has the pool."""
    made: dict[str, Any] = await connection.fetchval(
        SET, slug, kind, target, config or {}, pool, explain, status, description, tenant_id
    )
    return made


async def route(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    strategy: str,
    candidates: list[dict[str, Any]] | None,
    context: dict[str, Any],
    seed: int | None,
) -> dict[str, Any]:
    """`route_decision`: without candidates among the tenant's live workers."""
    decided: dict[str, Any] = await connection.fetchval(ROUTE, strategy, candidates, context, seed, tenant_id)
    return decided


async def decisions(connection: asyncpg.Connection, tenant_id: UUID, bounds: tuple[datetime, UUID, int]) -> Rows:
    """Recorded decisions, newest first."""
    return [dict(row) for row in await connection.fetch(DECISIONS, tenant_id, *bounds)]


async def explain(connection: asyncpg.Connection, tenant_id: UUID, decision_id: UUID) -> dict[str, Any]:
    """`explain_routing`. Raises VanillaError `not_found`."""
    told: dict[str, Any] = await connection.fetchval(EXPLAIN, decision_id, tenant_id)
    return told
