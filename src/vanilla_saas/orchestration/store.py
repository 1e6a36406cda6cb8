"""Statements of agents and their runs: lists under row-level security, all else through the functions of 009."""

from collections.abc import Iterable
from itertools import takewhile
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError

Answer = dict[str, Any]

_AGENT = """
select a.id, a.slug, a.name, a.description, a.user_id, a.shared, a.status, a.latest_version, a.created_at, a.updated_at
from public.agents a
where a.tenant_id = $1
"""
LIST = f"{_AGENT} order by a.slug"
FIND = f"{_AGENT} and (a.slug = $2 or a.id::text = lower($2)) order by a.slug = $2 desc limit 1"
VERSIONS = """
select v.version, encode(v.hash, 'hex') as hash, v.published_at, v.published_by
from public.agent_versions v
where v.tenant_id = $1 and v.agent_id = $2
order by v.version desc
"""
DEFINITION = """
select v.definition from public.agent_versions v where v.tenant_id = $1 and v.agent_id = $2 and v.version = $3
"""
RUNS = """
select r.id, r.root_run_id, r.parent_run_id, r.user_id, r.execution_id, a.slug as agent, r.version, r.state,
    r.stop_reason, r.turns, r.tool_calls, r.children, r.charged_tokens, r.cost_micros, r.started_at, r.finished_at
from public.agent_runs r
left join public.agents a on a.tenant_id = r.tenant_id and a.id = r.agent_id
where r.tenant_id = $1 and ($2::uuid is null or r.user_id = $2) and ($3::text is null or r.state = $3)
    and ($4::uuid is null or r.root_run_id = $4) and ($5::uuid is null or r.agent_id = $5)
    and ($6::uuid is null or r.id < $6)
order by r.id desc
limit $7
"""
TREE = """
select r.id, r.root_run_id, r.parent_run_id, r.depth, r.user_id, r.execution_id, a.slug as agent, r.version,
    s.slug as speaker, r.state, r.stop_reason, r.error, r.input, r.output, r.limits, r.turns, r.tool_calls, r.children,
    r.charged_tokens, r.cost_micros, r.deadline_at, r.started_at, r.finished_at,
    (select jsonb_build_object('tokens', b.budget_tokens, 'spent', b.spent_tokens, 'held', b.held_tokens,
            'carved', b.carved_tokens, 'left', b.budget_tokens - b.spent_tokens - b.held_tokens - b.carved_tokens,
            'overrun', b.overrun_tokens, 'state', b.state, 'almost_used_up', b.notified_at is not null)
        from public.resource_allocations b where b.tenant_id = r.tenant_id and b.id = r.allocation_id) as budget,
    (select p.id from public.workflow_approvals p where p.tenant_id = r.tenant_id and p.execution_id = r.execution_id
        and p.node = r.node and p.status = 'open' limit 1) as approval_id,
    (select coalesce(jsonb_agg(jsonb_build_object('n', t.n, 'turn', t.turn, 'kind', t.kind, 'name', t.name,
            'arguments', t.arguments, 'status', t.status, 'approval', t.approval, 'result', t.result,
            'child_run_id', t.child_run_id, 'execution_id', t.child_execution_id,
            'charged_tokens', t.charged_tokens, 'cost_micros', t.cost_micros,
            'created_at', t.created_at, 'finished_at', t.finished_at) order by t.n), '[]')
        from public.agent_run_steps t where t.tenant_id = r.tenant_id and t.run_id = r.id
            and t.n > coalesce(($3::jsonb ->> r.id::text)::integer, 0)) as steps
from public.agent_runs r
left join public.agents a on a.tenant_id = r.tenant_id and a.id = r.agent_id
left join public.agents s on s.tenant_id = r.tenant_id and s.id = r.speaker_id
where r.tenant_id = $1 and r.root_run_id = (
    select x.root_run_id from public.agent_runs x where x.tenant_id = $1 and x.id = $2)
order by r.id
"""
EXECUTION_OF = """
select r.execution_id, r.finished_at from public.agent_runs r where r.tenant_id = $1 and r.id = $2
"""
SAVE = "select public.save_agent($1, $2, $3, $4, $5)"
RETIRE = "select public.retire_agent($1, $2)"
START = "select public.start_agent($1, $2, $3, $4, $5, $6, $7)"
CANCEL = "select public.cancel_execution($1, $2, $3)"


async def agents(connection: asyncpg.Connection, tenant_id: UUID) -> list[Answer]:
    """Those that the caller may read, by slug."""
    return [dict(row) for row in await connection.fetch(LIST, tenant_id)]


async def find(connection: asyncpg.Connection, tenant_id: UUID, name: str) -> Answer:
    """An agent by slug or id. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(FIND, tenant_id, name)
    if row is None:
        raise VanillaError("not_found", "no such agent", {"agent": name})
    return dict(row)


async def versions(connection: asyncpg.Connection, tenant_id: UUID, agent_id: UUID) -> list[Answer]:
    """Every version, newest first, without its definition."""
    return [dict(row) for row in await connection.fetch(VERSIONS, tenant_id, agent_id)]


async def definition(connection: asyncpg.Connection, tenant_id: UUID, agent_id: UUID, version: int) -> Answer:
    """That of a version. Raises VanillaError `not_found`."""
    found: Answer | None = await connection.fetchval(DEFINITION, tenant_id, agent_id, version)
    if found is None:
        raise VanillaError("not_found", "no such version", {"version": version})
    return found


async def save(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    slug: str,
    document: Answer,
    *,
    shared: bool | None = None,
    user_id: UUID | None = None,
) -> Answer:
    """`save_agent`. Raises VanillaError `invalid_definition`, `invalid_state` for a slug that is taken."""
    saved: Answer = await connection.fetchval(SAVE, slug, document, shared, user_id, tenant_id)
    return saved


async def retire(connection: asyncpg.Connection, tenant_id: UUID, agent_id: UUID) -> Answer:
    """`retire_agent`."""
    told: Answer = await connection.fetchval(RETIRE, agent_id, tenant_id)
    return told


async def start(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    ref: str,
    given: Answer,
    *,
    tokens: int | None = None,
    key: str | None = None,
    priority: int | None = None,
    user_id: UUID | None = None,
) -> Answer:
    """`start_agent`: run_id, execution_id, replayed. Raises VanillaError `not_found`, `insufficient_tokens`."""
    started: Answer = await connection.fetchval(START, ref, given, tokens, key, priority, user_id, tenant_id)
    return started


async def runs(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    *,
    user_id: UUID | None = None,
    state: str | None = None,
    root: UUID | None = None,
    agent_id: UUID | None = None,
    before: UUID | None = None,
    limit: int = 50,
) -> list[Answer]:
    """Newest first."""
    rows = await connection.fetch(RUNS, tenant_id, user_id, state, root, agent_id, before, limit)
    return [dict(row) for row in rows]


async def tree(
    connection: asyncpg.Connection, tenant_id: UUID, run_id: UUID, known: Iterable[Answer] = ()
) -> list[Answer]:
    """The runs of the tree that a run is in, the root first, each with its journal. Raises VanillaError `not_found`.

    Of `known`, what it was before, steps up to the first one that was open are not read again: they stay as they are.
    """
    over = {str(run["id"]): list(takewhile(lambda step: step["finished_at"], run["steps"])) for run in known}
    read = {run: steps[-1]["n"] for run, steps in over.items() if steps}
    rows = await connection.fetch(TREE, tenant_id, run_id, read)
    if not rows:
        raise VanillaError("not_found", "no such run of an agent", {"run_id": str(run_id)})
    return [dict(row) | {"steps": over.get(str(row["id"]), []) + row["steps"]} for row in rows]


async def finished(connection: asyncpg.Connection, tenant_id: UUID, run_id: UUID) -> bool:
    """Whether a run is over, or not to be read."""
    row = await connection.fetchrow(EXECUTION_OF, tenant_id, run_id)
    return row is None or row["finished_at"] is not None


async def cancel(connection: asyncpg.Connection, tenant_id: UUID, run_id: UUID, reason: str | None) -> Answer:
    """Ends the run's execution with all that it started. Raises VanillaError `not_found`, `invalid_state`."""
    row = await connection.fetchrow(EXECUTION_OF, tenant_id, run_id)
    if row is None:
        raise VanillaError("not_found", "no such run of an agent", {"run_id": str(run_id)})
    await connection.fetchval(CANCEL, row["execution_id"], reason, tenant_id)
    return {"run_id": run_id, "state": "canceled"}
