"""Statements of runs for people: reads under row-level security, acts through the functions of 006."""

from datetime import date
from typing import Any
from uuid import UUID

import asyncpg

Rows = list[asyncpg.Record]
PAGE = 25
MOST_TEXT = 20_000
"""Characters of a value that a page shows."""
GATE_DAYS = 30

RUNS = """
select e.id, e.status, e.reason, e.version, e.started_at, e.finished_at, e.parent_execution_id, e.workflow_id,
    case when e.finished_at is null then r.tokens else e.charged_tokens end as tokens,
    case when e.finished_at is null then r.cost else e.cost_micros end as cost_micros,
    w.slug, w.name, coalesce(u.email, u.external_id) as payer, coalesce(s.email, s.external_id) as starter,
    e.started_by = e.user_id as same
from public.workflow_executions e
left join public.ai_workflows w on w.tenant_id = e.tenant_id and w.id = e.workflow_id
left join public.users u on u.tenant_id = e.tenant_id and u.id = e.user_id
left join public.users s on s.tenant_id = e.tenant_id and s.id = e.started_by
left join lateral (
    select coalesce(sum(p.charged_tokens), 0)::bigint as tokens, coalesce(sum(p.cost_micros), 0)::bigint as cost
    from public.workflow_steps p
    where e.finished_at is null and p.tenant_id = e.tenant_id and p.execution_id = e.id and p.item = -1) r on true
where e.tenant_id = $1 and ($2 = '' or e.status = $2)
  and ($3 = '' or e.workflow_id = (select f.id from public.ai_workflows f where f.tenant_id = $1 and f.slug = $3))
  and ($4::uuid is null or e.id < $4)
order by e.id desc
limit $5
"""
RUN = """
select w.slug, w.name, v.definition, coalesce(u.email, u.external_id) as payer,
    coalesce(s.email, s.external_id) as starter
from public.workflow_executions e
left join public.ai_workflows w on w.tenant_id = e.tenant_id and w.id = e.workflow_id
left join public.workflow_versions v
    on v.tenant_id = e.tenant_id and v.workflow_id = e.workflow_id and v.version = e.version
left join public.users u on u.tenant_id = e.tenant_id and u.id = e.user_id
left join public.users s on s.tenant_id = e.tenant_id and s.id = e.started_by
where e.tenant_id = $1 and e.id = $2
"""
ENGINES = """
select x.id, x.engine_id, x.engine_tenant_id = vanilla.platform() as platform, x.version, x.alias, x.source,
    x.estimate_p50, x.estimate_p95, x.estimated_from, e.slug, e.name,
    coalesce(k.name, 'my/' || c.slug, u.email, l.slug, a.tier::text) as chosen_by
from public.engine_executions x
left join public.ai_engines e on e.tenant_id = x.engine_tenant_id and e.id = x.engine_id
left join public.api_keys k on k.tenant_id = x.tenant_id and k.id = x.api_key_id
left join public.user_engines c on c.tenant_id = x.tenant_id and c.id = x.source_id
left join public.engine_assignments a on a.tenant_id = x.tenant_id and a.id = x.source_id
left join public.users u on u.tenant_id = a.tenant_id and u.id = a.user_id
left join public.levels l on l.tenant_id = a.tenant_id and l.id = a.level_id
where x.tenant_id = $1 and x.id = any ($2)
"""
CARDS = "select engine_id, slug, name from public.my_engines()"
"""Names of engines for those who do not read the table: users, and of the platform's all tenants."""
JUDGEMENTS = """
select g.gate, g.round, g.passed, g.score, g.threshold, left(g.feedback, 4000) as feedback, g.suggestions, g.metrics,
    g.charged_tokens, g.created_at
from public.quality_gate_results g
where g.tenant_id = $1 and g.execution_id = $2
order by g.id desc
limit 100
"""
ASKED = """
select a.id, a.title, a.status, left(a.comment, 2000) as comment, a.approvers, a.quorum, a.deadline_at, a.decided_at,
    a.status = 'open' and a.id in (select m.id from public.my_approvals() m) as mine,
    array(select coalesce(u.email, u.external_id, v.user_id::text) || ' ' || v.decision
          from public.workflow_approval_votes v
          left join public.users u on u.tenant_id = v.tenant_id and u.id = v.user_id
          where v.tenant_id = a.tenant_id and v.approval_id = a.id order by v.voted_at) as votes
from public.workflow_approvals a
where a.tenant_id = $1 and a.execution_id = $2
order by a.id desc
limit 100
"""
SIGNALS = """
select g.name, g.sent_at, coalesce(u.email, u.external_id) as sender
from public.workflow_signals g
left join public.users u on u.tenant_id = g.tenant_id and u.id = g.sent_by
where g.tenant_id = $1 and g.execution_id = $2
order by g.sent_at
limit 100
"""
CHILDREN = """
select e.id, e.status, w.slug, w.name
from public.workflow_executions e
left join public.ai_workflows w on w.tenant_id = e.tenant_id and w.id = e.workflow_id
where e.tenant_id = $1 and e.parent_execution_id = $2 and e.finished_at is null
order by e.id
limit 100
"""
NEWER = """
select v.version
from public.workflow_executions e
join public.ai_workflows w on w.tenant_id = e.tenant_id and w.id = e.workflow_id and w.status = 'active'
join public.workflow_versions v on v.tenant_id = e.tenant_id and v.workflow_id = e.workflow_id
    and v.version > e.version and v.state = 'published'
where e.tenant_id = $1 and e.id = $2
order by v.version desc
limit 20
"""
STEP = """
select s.status, s.item, s.round, s.attempts, s.branch, s.error, s.charged_tokens, s.cost_micros,
    s.started_at, s.finished_at,
    case when jsonb_typeof(s.output) = 'string' then left(s.output #>> '{}', $5)
         when jsonb_typeof(s.output -> 'text') = 'string' then left(s.output ->> 'text', $5) end as text,
    left(jsonb_pretty(s.output), $5) as output, left(jsonb_pretty(s.value), $5) as value,
    left(jsonb_pretty(s.feedback), $5) as feedback
from public.workflow_steps s
where s.tenant_id = $1 and s.execution_id = $2 and s.node = $3 and s.item = $4
"""
ITEMS = """
select s.item, s.status, s.attempts, s.error, s.charged_tokens, s.started_at, s.finished_at,
    left(s.output::text, 200) as output
from public.workflow_steps s
where s.tenant_id = $1 and s.execution_id = $2 and s.node = $3 and s.item > $4
order by s.item
limit $5
"""
STATISTICS = """
select g.gate, g.day, g.judged, g.passed, g.average_score, g.rounds, g.charged_tokens::bigint as charged_tokens
from public.gate_statistics($1, vanilla.clock() - make_interval(days => $2), vanilla.clock() + interval '1 s', $3) g
"""
TODAY = "select (vanilla.clock() at time zone 'UTC')::date"
APPROVALS = """
select m.*, left(jsonb_pretty(m.subject), $1) as shown, e.id is not null as readable
from public.my_approvals() m
left join public.workflow_executions e on e.tenant_id = $2 and e.id = m.execution_id
order by m.id
"""
WAITING = "select count(*) from public.my_approvals()"


async def runs(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    *,
    status: str = "",
    workflow: str = "",
    before: UUID | None = None,
    limit: int = PAGE,
) -> Rows:
    """Those the caller may read, newest first, one more than `limit` when there are more; `workflow` is a slug."""
    rows: Rows = await connection.fetch(RUNS, tenant_id, status, workflow, before, limit + 1)
    return rows


async def about(connection: asyncpg.Connection, tenant_id: UUID, run_id: UUID) -> dict[str, Any]:
    """Workflow, definition, payer and starter of a run, each None when the caller may not see it."""
    row = await connection.fetchrow(RUN, tenant_id, run_id)
    return dict(row) if row else dict.fromkeys(("slug", "name", "definition", "payer", "starter"))


async def engines(
    connection: asyncpg.Connection, tenant_id: UUID, run_ids: list[UUID], *, named: bool
) -> dict[UUID, dict[str, Any]]:
    """Of the runs that are an engine's: which, its version, and what chose it.

    The name is None when the caller may not read the engine any more. `named`: they are a user of the tenant.
    """
    rows = {row["id"]: dict(row) for row in await connection.fetch(ENGINES, tenant_id, run_ids)}
    unnamed = [row for row in rows.values() if row["slug"] is None]
    if unnamed and named:
        cards = {card["engine_id"]: card for card in await connection.fetch(CARDS)}
        for row in unnamed:
            row |= {name: card[name] for name in ("slug", "name")} if (card := cards.get(row["engine_id"])) else {}
    return rows


async def beside(connection: asyncpg.Connection, tenant_id: UUID, run_id: UUID) -> dict[str, Rows]:
    """What belongs to a run: `judgements` of its gates, what was `asked` of people, `signals`, running `children`, and
    `newer` versions on which it could be restarted.
    """
    return {
        "judgements": await connection.fetch(JUDGEMENTS, tenant_id, run_id),
        "asked": await connection.fetch(ASKED, tenant_id, run_id),
        "signals": await connection.fetch(SIGNALS, tenant_id, run_id),
        "children": await connection.fetch(CHILDREN, tenant_id, run_id),
        "newer": await connection.fetch(NEWER, tenant_id, run_id),
    }


async def step(
    connection: asyncpg.Connection, tenant_id: UUID, run_id: UUID, node: int, item: int
) -> asyncpg.Record | None:
    """A step by its node's number, or an item of it; its values are texts of at most MOST_TEXT + 1 characters."""
    return await connection.fetchrow(STEP, tenant_id, run_id, node, item, MOST_TEXT + 1)


async def items(connection: asyncpg.Connection, tenant_id: UUID, run_id: UUID, node: int, after: int) -> Rows:
    """Items of a map behind one, in order, one more than a page when there are more."""
    rows: Rows = await connection.fetch(ITEMS, tenant_id, run_id, node, after, PAGE + 1)
    return rows


async def statistics(connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID) -> Rows:
    """What the workflow's gates found on each of the last GATE_DAYS days (UTC)."""
    rows: Rows = await connection.fetch(STATISTICS, workflow_id, GATE_DAYS, tenant_id)
    return rows


async def approvals(connection: asyncpg.Connection, tenant_id: UUID) -> Rows:
    """`my_approvals` with what is `shown` as text, and whether the caller may read the run."""
    rows: Rows = await connection.fetch(APPROVALS, MOST_TEXT + 1, tenant_id)
    return rows


async def waiting(connection: asyncpg.Connection) -> int:
    """How many approvals wait for the caller, 200 at most."""
    count: int = await connection.fetchval(WAITING)
    return count


async def today(connection: asyncpg.Connection) -> date:
    """The day in UTC by the database's clock."""
    found: date = await connection.fetchval(TODAY)
    return found
