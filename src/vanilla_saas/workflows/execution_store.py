"""Statements of executions: lists under row-level security, all else through the functions of 006."""

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError

_LIST = """
select e.id, e.workflow_id, w.slug as workflow, e.version, e.user_id, e.status, e.reason, e.error, e.priority,
    e.parent_execution_id, e.charged_tokens, e.cost_micros, e.started_at, e.finished_at
from public.workflow_executions e
left join public.ai_workflows w on w.tenant_id = e.tenant_id and w.id = e.workflow_id
where e.tenant_id = $1 and e.id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
    and ($3::uuid is null or e.workflow_id = $3) and ($4::text is null or e.status = $4)
"""
LIST_OF_TENANT = f"{_LIST} order by e.id desc limit $5"
LIST_OF_USER = f"{_LIST} and e.user_id = $6 order by e.id desc limit $5"
SCHEMAS = """
select v.version, v.definition -> 'input' as input
from public.ai_workflows w
join public.workflow_versions v on v.tenant_id = w.tenant_id and v.workflow_id = w.id
    and v.version = coalesce($3, w.latest_version)
where w.tenant_id = $1 and w.id = $2
"""
STARTED_BEFORE = """
select exists (select from public.workflow_executions e
    where e.tenant_id = $1 and e.user_id = $2 and e.idempotency_key = $3)
"""
SIGNALS = """
select n.value ->> 'signal' as name, n.value -> 'schema' as schema
from public.workflow_executions e
join public.workflow_versions v on v.tenant_id = e.tenant_id and v.workflow_id = e.workflow_id and v.version = e.version
cross join lateral jsonb_array_elements(v.definition -> 'nodes') n
where e.tenant_id = $1 and e.id = $2 and n.value ->> 'kind' = 'signal'
"""
READABLE = """
select exists (select from public.workflow_executions e
    join public.workflow_versions v on v.tenant_id = e.tenant_id and v.workflow_id = e.workflow_id
        and v.version = e.version
    where e.tenant_id = $1 and e.id = $2)
"""
RESULTS = """
select r.id, r.gate, r.round, r.passed, r.score, r.threshold, r.feedback, r.suggestions, r.metrics, r.charged_tokens,
    r.created_at
from public.quality_gate_results r
where r.tenant_id = $1 and r.execution_id = $2
order by r.created_at, r.id
"""
OPEN_APPROVALS = """
select a.id, a.execution_id, w.slug as workflow, a.title, a.approvers, a.quorum, a.deadline_at, a.created_at
from public.workflow_approvals a
join public.workflow_executions e on e.tenant_id = a.tenant_id and e.id = a.execution_id
join public.ai_workflows w on w.tenant_id = e.tenant_id and w.id = e.workflow_id
where a.tenant_id = $1 and a.status = 'open'
order by a.id
limit 200
"""
KEY_HAS_BUDGET = (
    "select exists (select from public.api_keys k where k.tenant_id = $1 and k.id = $2 and k.budget_tokens > 0)"
)
POOLS_OF_VERSION = """
select array_agg(distinct n.pool) from public.workflow_nodes n
where n.tenant_id = $1 and n.workflow_id = $2 and n.version = $3
"""
WORKED_POOLS = """
select coalesce(array_agg(distinct p), '{}') from public.worker_registry w cross join lateral unnest(w.pools) p
where w.tenant_id = vanilla.platform() and w.status in ('registered', 'active')
    and w.heartbeat_at > vanilla.clock() - interval '15 seconds'
"""
USERS_OF_TENANT = """
select u.id, u.email from public.users u where u.tenant_id = $1 and u.status = 'active' order by u.created_at limit 2
"""
ROLE = "select u.role from public.users u where u.tenant_id = $1 and u.id = $2"
START = "select public.start_workflow($1, $2, $3, $4, $5, $6, $7)"
PROGRESS = "select public.execution_progress($1, $2)"
WATCH = "select public.execution_progress($1) - '{input,output}'::text[]"
STEP = "select public.execution_step($1, $2, $3, $4, $5)"
CANCEL = "select public.cancel_execution($1, $2, $3)"
PAUSE = "select public.pause_execution($1, $2)"
RESUME = "select public.resume_execution($1, $2)"
RESTART = "select public.restart_execution($1, $2, $3, $4)"
REPLAY = "select public.replay_executions($1, $2, $3, $4)"
SIGNAL = "select public.signal_execution($1, $2, $3, $4)"
APPROVALS = """
select id, execution_id, workflow, node, title, prompt, subject, edit, quorum, approved_by, deadline_at, created_at
from public.my_approvals($1)
"""
DECIDE = "select public.decide_approval($1, $2, $3, $4)"
GATES = """
select gate, day, judged, passed, average_score, rounds, charged_tokens::bigint
from public.gate_statistics($1, $2, $3, $4)
"""
Answer = dict[str, Any]


async def executions(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    *,
    user_id: UUID | None = None,
    workflow_id: UUID | None = None,
    status: str | None = None,
    before: UUID | None = None,
    limit: int,
) -> list[Answer]:
    """Newest first, strictly before an id: of a user, or without one all that the caller may read."""
    values = (tenant_id, before, workflow_id, status, limit)
    rows = await (
        connection.fetch(LIST_OF_USER, *values, user_id) if user_id else connection.fetch(LIST_OF_TENANT, *values)
    )
    return [dict(row) for row in rows]


async def input_schema(
    connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID, version: int | None
) -> object | None:
    """Of a version, or without a number of the latest; None when it has none or there is no such version."""
    row = await connection.fetchrow(SCHEMAS, tenant_id, workflow_id, version)
    return row["input"] if row else None


async def started_before(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID, key: str) -> bool:
    """Whether the user's idempotency key has started something."""
    found: bool = await connection.fetchval(STARTED_BEFORE, tenant_id, user_id, key)
    return found


async def start(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    workflow_id: UUID,
    given: dict[str, Any],
    *,
    version: int | None = None,
    key: str | None = None,
    priority: int | None = None,
    user_id: UUID | None = None,
) -> Answer:
    """`start_workflow`: execution_id, workflow_id, version, status, replayed."""
    started: Answer = await connection.fetchval(START, workflow_id, given, version, key, priority, user_id, tenant_id)
    return started


async def progress(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> Answer:
    """`execution_progress`. Raises VanillaError `not_found`."""
    found: Answer = await connection.fetchval(PROGRESS, execution_id, tenant_id)
    return found


async def watch(connection: asyncpg.Connection, execution_id: UUID) -> Answer:
    """`execution_progress` without input and output, which may be large."""
    found: Answer = await connection.fetchval(WATCH, execution_id)
    return found


async def step(
    connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID, node: str, *, after: int = -1, limit: int = 50
) -> Answer:
    """`execution_step`. Raises VanillaError `not_found`."""
    found: Answer = await connection.fetchval(STEP, execution_id, node, after, limit, tenant_id)
    return found


async def cancel(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID, reason: str | None) -> Answer:
    """`cancel_execution`."""
    told: Answer = await connection.fetchval(CANCEL, execution_id, reason, tenant_id)
    return told


async def pause(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> Answer:
    """`pause_execution`."""
    told: Answer = await connection.fetchval(PAUSE, execution_id, tenant_id)
    return told


async def resume(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> Answer:
    """`resume_execution`."""
    told: Answer = await connection.fetchval(RESUME, execution_id, tenant_id)
    return told


async def restart(
    connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID, node: str | None, version: int | None = None
) -> Answer:
    """`restart_execution`."""
    told: Answer = await connection.fetchval(RESTART, execution_id, node, tenant_id, version)
    return told


async def replay(
    connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID | None, reason: str | None, limit: int
) -> Answer:
    """`replay_executions`: `restarted` and `refused`."""
    told: Answer = await connection.fetchval(REPLAY, workflow_id, reason, limit, tenant_id)
    return told


async def signals(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> list[Answer] | None:
    """Name and schema of each signal node of the pinned version; None when the caller may not read the version."""
    if not await connection.fetchval(READABLE, tenant_id, execution_id):
        return None
    return [dict(row) for row in await connection.fetch(SIGNALS, tenant_id, execution_id)]


async def signal(
    connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID, name: str, payload: object
) -> Answer:
    """`signal_execution`."""
    told: Answer = await connection.fetchval(SIGNAL, execution_id, name, payload, tenant_id)
    return told


async def approvals(connection: asyncpg.Connection, approval_id: UUID | None = None) -> list[Answer]:
    """`my_approvals`: what the caller may decide and has not, or the one that is named if it is among them."""
    return [dict(row) for row in await connection.fetch(APPROVALS, approval_id)]


async def open_approvals(connection: asyncpg.Connection, tenant_id: UUID) -> list[Answer]:
    """The first 200 open ones of a tenant, for the operator."""
    return [dict(row) for row in await connection.fetch(OPEN_APPROVALS, tenant_id)]


async def decide(
    connection: asyncpg.Connection, approval_id: UUID, decision: str, comment: str | None, value: object
) -> Answer:
    """`decide_approval`: approval_id, execution_id, status, approved_by, quorum."""
    told: Answer = await connection.fetchval(DECIDE, approval_id, decision, comment, value)
    return told


async def gates(
    connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID, begin: datetime, end: datetime
) -> list[Answer]:
    """`gate_statistics`: for each gate and day."""
    return [dict(row) for row in await connection.fetch(GATES, workflow_id, begin, end, tenant_id)]


async def gate_results(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> list[Answer]:
    """Every judgement of an execution's gates, the oldest first."""
    return [dict(row) for row in await connection.fetch(RESULTS, tenant_id, execution_id)]


async def key_has_budget(connection: asyncpg.Connection, tenant_id: UUID, key_id: UUID) -> bool:
    """Whether an API key may spend so many tokens and no more."""
    found: bool = await connection.fetchval(KEY_HAS_BUDGET, tenant_id, key_id)
    return found


async def pools_without_worker(
    connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID, version: int
) -> list[str]:
    """Pools of a version that no worker takes steps of at this moment; for the operator."""
    needed = await connection.fetchval(POOLS_OF_VERSION, tenant_id, workflow_id, version)
    return sorted(set(needed or ()) - set(await connection.fetchval(WORKED_POOLS)))


async def only_user(connection: asyncpg.Connection, tenant_id: UUID) -> UUID:
    """The tenant's user when it has one alone; for the operator. Raises VanillaError `invalid_request`."""
    rows = await connection.fetch(USERS_OF_TENANT, tenant_id)
    if len(rows) != 1:
        raise VanillaError(
            "invalid_request", "Whose it is to be is not said.", {"param": "user"}, "Name them with --user."
        )
    found: UUID = rows[0]["id"]
    return found


async def role(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> Any:
    """What a user is in their tenant."""
    return await connection.fetchval(ROLE, tenant_id, user_id)
