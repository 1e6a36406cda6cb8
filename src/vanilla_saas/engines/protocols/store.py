"""Statements of engines and agents that are called by another protocol, beside those of every run."""

from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines.chat_store import RESOLVE

Answer = dict[str, Any]

AGENTS = """
select a.id, a.slug, a.name, a.description, a.latest_version as version, v.definition -> 'output' as output
from public.agents a
join public.agent_versions v on v.tenant_id = a.tenant_id and v.agent_id = a.id and v.version = a.latest_version
where a.tenant_id = $1 and a.status = 'active'
order by a.slug
"""
START_AGENT = "select public.start_agent($1, $2, p_idempotency_key => $3, p_tenant_id => $4)"
RUN = """
select e.id as execution_id, e.user_id, e.status, e.reason, e.error, e.input, e.output, e.idempotency_key, e.started_at,
    e.finished_at, vanilla.task_state(e.tenant_id, e.id) as task_state, x.engine_id,
    coalesce(x.version, r.version) as version, r.agent_id, r.id as run_id, r.stop_reason,
    coalesce(t.charged_tokens, e.charged_tokens) as charged_tokens,
    coalesce(t.cost_micros, e.cost_micros) as cost_micros
from public.workflow_executions e
left join public.engine_executions x on x.tenant_id = e.tenant_id and x.id = e.id
left join lateral (
    select r.id, r.agent_id, r.version, r.stop_reason
    from public.agent_runs r
    where r.tenant_id = e.tenant_id and r.execution_id = e.id and r.parent_run_id is null and r.agent_id = e.workflow_id
    order by r.id desc
    limit 1) r on true
left join lateral (
    select sum(c.charged_tokens)::bigint as charged_tokens, sum(c.cost_micros)::bigint as cost_micros
    from public.agent_runs c
    where c.tenant_id = e.tenant_id and c.root_run_id = r.id) t on true
where e.tenant_id = $1 and e.id = $2 and (x.id is not null or r.id is not null)
    and ($3::uuid is null or x.api_key_id = $3)
"""
"""Of an agent's run tokens and cost are those of its whole tree."""
TREE = """
select r.id as run_id, r.parent_run_id, a.slug as agent, r.version, r.state, r.stop_reason, r.charged_tokens,
    r.cost_micros
from public.agent_runs r
left join public.agents a on a.tenant_id = r.tenant_id and a.id = r.agent_id
where r.tenant_id = $1 and r.root_run_id = $2
order by r.id
"""
ASKED = """
select m.id, m.title, m.prompt, m.subject, m.edit
from public.workflow_approvals o
cross join lateral public.my_approvals(o.id) m
where o.tenant_id = $1 and o.status = 'open' and o.execution_id = any ($2::uuid || array(
    select c.execution_id from public.agent_runs c where c.tenant_id = $1 and c.root_run_id = $3))
order by o.id
"""
ARTIFACTS = """
select f.id, f.name, f.media_type, f.content
from public.run_artifacts f
join public.agent_runs r on r.tenant_id = f.tenant_id and r.id = f.run_id
where f.tenant_id = $1 and r.root_run_id = $2
order by f.id
"""
BEGUN = """
select b.id, b.total
from (
    select e.id, coalesce(e.finished_at, e.started_at) as at, count(*) over () as total
    from public.workflow_executions e
    where e.tenant_id = $1 and e.user_id = $2 and ($3::uuid is null or e.api_key_id = $3)
        and starts_with(e.idempotency_key, $4)
        and ($5 = '' or starts_with(e.idempotency_key, $4 || $5 || '/')
            or e.id::text = $5 and starts_with(e.idempotency_key, $4 || '/'))) b
where $6::uuid is null or (b.at, b.id) < (
    select coalesce(l.finished_at, l.started_at), l.id
    from public.workflow_executions l
    where l.tenant_id = $1 and l.user_id = $2 and l.id = $6)
order by b.at desc, b.id desc
limit $7
"""
"""By the time of its state, the last first. A run without a context of its client's is its own context."""
SET_NOTIFICATION = "select public.set_task_notification($1, $2, $3, $4, $5, $6, $7)"
NOTIFICATIONS = "select config_id, url, status from public.task_notifications($1, $2)"
DELETE_NOTIFICATION = "select public.delete_task_notification($1, $2, $3)"


async def engine_of_key(connection: asyncpg.Connection, tenant_id: UUID, key_id: UUID | None) -> Answer:
    """`resolve_engine` of the engine that a key is for."""
    row = await connection.fetchrow(RESOLVE, None, tenant_id, key_id)
    found: Answer = row["found"]
    return found


async def agents(connection: asyncpg.Connection, tenant_id: UUID) -> list[Answer]:
    """Agents that the caller may run."""
    return [dict(row) for row in await connection.fetch(AGENTS, tenant_id)]


async def start_agent(
    connection: asyncpg.Connection, tenant_id: UUID, slug: str, given: Answer, key: str | None
) -> Answer:
    """`start_agent`: execution_id, run_id, status, replayed. Raises VanillaError `not_found`, `invalid_state`."""
    started: Answer = await connection.fetchval(START_AGENT, slug, given, key, tenant_id)
    return started


async def run(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID, key_id: UUID | None) -> Answer:
    """A run of an engine or an agent; with a key of an engine one that it began. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(RUN, tenant_id, execution_id, key_id)
    if row is None:
        raise VanillaError("not_found", "no such run", {"execution_id": str(execution_id)})
    return dict(row)


async def tree(connection: asyncpg.Connection, tenant_id: UUID, root_run_id: UUID) -> list[Answer]:
    """The runs of an agent's tree, the root first, each with what its own model calls were charged."""
    return [dict(row) for row in await connection.fetch(TREE, tenant_id, root_run_id)]


async def asked(
    connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID, root_run_id: UUID | None
) -> list[Answer]:
    """What a run and its tree ask that the caller may decide and has not, the oldest first."""
    return [dict(row) for row in await connection.fetch(ASKED, tenant_id, execution_id, root_run_id)]


async def artifacts(connection: asyncpg.Connection, tenant_id: UUID, root_run_id: UUID) -> list[Answer]:
    """What the runs of a tree made, the oldest first."""
    return [dict(row) for row in await connection.fetch(ARTIFACTS, tenant_id, root_run_id)]


async def begun(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    user_id: UUID,
    key_id: UUID | None,
    prefix: str,
    context: str,
    before: UUID | None,
    limit: int,
) -> tuple[list[UUID], int]:
    """A user's runs whose idempotency keys begin so, last changed first, of one context or all, and their number."""
    rows = await connection.fetch(BEGUN, tenant_id, user_id, key_id, prefix, context, before, limit)
    return [row["id"] for row in rows], rows[0]["total"] if rows else 0


async def set_notification(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    execution_id: UUID,
    endpoint_id: UUID,
    name: str,
    context_id: str,
    url: str,
    secret: bytes,
) -> None:
    """`set_task_notification`. Raises VanillaError `not_found`, `invalid_request`, `limit_reached`."""
    await connection.execute(SET_NOTIFICATION, execution_id, endpoint_id, name, context_id, url, secret, tenant_id)


async def notifications(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> list[Answer]:
    """Push notifications of an execution by name: config_id, url, status."""
    return [dict(row) for row in await connection.fetch(NOTIFICATIONS, execution_id, tenant_id)]


async def delete_notification(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID, name: str) -> None:
    await connection.execute(DELETE_NOTIFICATION, execution_id, name, tenant_id)
