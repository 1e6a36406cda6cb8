"""What the pages of agents read beside the store: costs, the runs of a page, and what the runs of a tree made."""

from typing import Any
from uuid import UUID

import asyncpg

PAGE = 25
"""Runs of a page."""
MOST_TEXT = 20_000
"""Characters of a text that a page shows."""
MOST_MADE = 100
"""Artifacts, and keys of the shared state, that a page shows."""
COST_DAYS = 30
Answer = dict[str, Any]

COSTS = """
select r.agent_id, count(*) filter (where r.parent_run_id is null) as runs,
    sum(r.charged_tokens)::bigint as tokens, sum(r.cost_micros)::bigint as cost_micros
from public.agent_runs r
where r.tenant_id = $1 and r.started_at > vanilla.clock() - make_interval(days => $2)
group by r.agent_id
"""
ROOTS = """
select r.id, r.state, r.stop_reason, r.version, r.started_at, r.finished_at, r.children, t.tokens, t.cost_micros,
    a.slug as agent, a.name, coalesce(u.email, u.external_id) as payer
from public.agent_runs r
left join public.agents a on a.tenant_id = r.tenant_id and a.id = r.agent_id
left join public.users u on u.tenant_id = r.tenant_id and u.id = r.user_id
cross join lateral (
    select sum(c.charged_tokens)::bigint as tokens, sum(c.cost_micros)::bigint as cost_micros
    from public.agent_runs c where c.tenant_id = r.tenant_id and c.root_run_id = r.id) t
where r.tenant_id = $1 and r.parent_run_id is null and ($2 = '' or r.state = $2)
    and ($3 = '' or r.agent_id = (select f.id from public.agents f where f.tenant_id = $1 and f.slug = $3))
    and ($4::uuid is null or r.id < $4)
order by r.id desc
limit $5
"""
PAYER = """
select coalesce(u.email, u.external_id) as payer from public.users u where u.tenant_id = $1 and u.id = $2
"""
ARTIFACTS = """
select f.run_id, f.name, f.media_type, left(f.content, $3) as content, length(f.content) as length, f.created_at
from public.run_artifacts f
where f.tenant_id = $1 and f.run_id in (
    select r.id from public.agent_runs r where r.tenant_id = $1 and r.root_run_id = $2)
order by f.created_at, f.id
limit $4
"""
STATE = """
select s.key, left(s.value::text, $3) as value, length(s.value::text) as length, s.version, s.run_id, s.updated_at
from public.agent_run_state s
where s.tenant_id = $1 and s.root_run_id = $2
order by s.key
limit $4
"""


async def costs(connection: asyncpg.Connection, tenant_id: UUID) -> dict[UUID, Answer]:
    """Of the last COST_DAYS days by agent: runs that people started, and what all its turns came to."""
    return {row["agent_id"]: dict(row) for row in await connection.fetch(COSTS, tenant_id, COST_DAYS)}


async def roots(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    *,
    state: str = "",
    agent: str = "",
    before: UUID | None = None,
    limit: int = PAGE + 1,
) -> list[Answer]:
    """Runs that nothing else started, newest first, each with what its whole tree cost."""
    return [dict(row) for row in await connection.fetch(ROOTS, tenant_id, state, agent, before, limit)]


async def payer(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID) -> str | None:
    name: str | None = await connection.fetchval(PAYER, tenant_id, user_id)
    return name


async def made(connection: asyncpg.Connection, tenant_id: UUID, root_run_id: UUID) -> dict[str, list[Answer]]:
    """The artifacts and the shared state of a tree, cut to what a page shows."""
    given = tenant_id, root_run_id, MOST_TEXT, MOST_MADE
    return {
        "artifacts": [dict(row) for row in await connection.fetch(ARTIFACTS, *given)],
        "shared": [dict(row) for row in await connection.fetch(STATE, *given)],
    }
