"""What is true of the runner's tables between any two transactions, each as a query that finds what breaks it."""

import asyncpg

from tests.processes import assert_books_are_clean
from vanilla_saas.checks import checks

EDGES = """
    select e.tenant_id, e.id as execution_id, e.status, n.node as from_node, x.node as to_node, x.branch
    from workflow_executions e
    join workflow_nodes n using (tenant_id, workflow_id, version)
    cross join lateral unnest(n.successors, n.branches) x (node, branch)
"""
DECIDED = "(f.status in ('succeeded', 'skipped') or f.status = 'failed' and f.branch is not null)"
(CHARGED,) = (check.sql for check in checks() if check.name == "executions_charged")
WRONG: dict[str, str] = {
    "queued though it has ended": """
        select q.execution_id, q.node from workflow_queue q left join workflow_executions e on e.id = q.execution_id
        where e.id is null or e.finished_at is not null""",
    "timed though it has ended, beyond what the next look removes": """
        select t.execution_id, t.node, t.kind from workflow_timers t left join workflow_executions e on e.id = t.execution_id
        where e.id is null or e.finished_at is not null and t.due_at > now() + interval '1 s'""",
    "free to be claimed though it is paused": """
        select q.execution_id, q.node from workflow_queue q join workflow_executions e on e.id = q.execution_id
        where e.status = 'paused' and q.worker is null""",
    "queued, and not ready": """
        select q.execution_id, q.node, q.item, s.status from workflow_queue q
        left join workflow_steps s on s.execution_id = q.execution_id and s.node = q.node and s.item = q.item
        where s.status is distinct from 'ready'""",
    "ready, and not queued": """
        select s.execution_id, s.node, s.item from workflow_steps s join workflow_executions e on e.id = s.execution_id
        where e.status = 'running' and s.status = 'ready' and not exists (
            select from workflow_queue q where q.execution_id = s.execution_id and q.node = s.node and q.item = s.item)
          and (e.at_once is null or e.at_once > (select count(*) from workflow_queue q where q.execution_id = e.id))""",
    "more at once than its limit": """
        select e.id, e.at_once, count(*) from workflow_executions e join workflow_queue q on q.execution_id = e.id
        where e.at_once is not null group by e.tenant_id, e.id having count(*) > e.at_once""",
    "waiting for what cannot come": """
        select s.execution_id, s.node, s.item, s.waits_for from workflow_steps s join workflow_executions e on e.id = s.execution_id
        where e.finished_at is null and s.status = 'waiting' and case
            when s.waits_for = 'approval' then not exists (
                select from workflow_approvals a where a.execution_id = s.execution_id and a.node = s.node and a.status = 'open')
            when s.waits_for = 'items' then not exists (
                select from workflow_steps i where i.execution_id = s.execution_id and i.node = s.node and i.item >= 0
                    and i.status in ('ready', 'waiting'))
            when s.waits_for like 'signal:%' then false
            when s.waits_for = 'start' then not exists (
                select from workflow_steps f where f.execution_id = s.execution_id and f.node = 0 and f.status in ('ready', 'waiting'))
            else not exists (
                select from workflow_timers t where t.execution_id = s.execution_id and t.node = s.node
                    and (t.item = s.item or t.item = -3 - s.item)) end""",
    "pending, with connections counted wrong": f"""
        select s.execution_id, s.node, s.undecided, s.taken, c.undecided as undecided_really, c.taken as taken_really
        from workflow_steps s join workflow_executions e on e.id = s.execution_id
        cross join lateral (
            select count(*) filter (where not {DECIDED}) as undecided,
                count(*) filter (where {DECIDED} and f.status <> 'skipped' and d.branch in ('', f.branch)) as taken
            from ({EDGES}) d join workflow_steps f on f.execution_id = d.execution_id and f.node = d.from_node and f.item = -1
            where d.execution_id = s.execution_id and d.to_node = s.node) c
        where e.finished_at is null and s.status = 'pending' and s.item = -1
          and ((s.undecided, s.taken) is distinct from (c.undecided, c.taken) or s.undecided = 0)""",
    "not ended, and no way leads from it to what has not begun": f"""
        with recursive ways as (
            select f.execution_id, f.node, d.to_node as at from ({EDGES}) d
            join workflow_steps f on f.execution_id = d.execution_id and f.node = d.from_node and f.item = -1
            where d.status in ('running', 'paused', 'succeeded') and f.status in ('pending', 'ready', 'waiting') and f.node > 0
            union
            select w.execution_id, w.node, d.to_node from ways w
            join workflow_steps s on s.execution_id = w.execution_id and s.node = w.at and s.item = -1
            join ({EDGES}) d on d.execution_id = w.execution_id and d.from_node = w.at
            where s.status = 'pending' or s.waits_for = 'start')
        select w.execution_id, w.node from ways w group by 1, 2 having not exists (
            select from ways x join workflow_executions e on e.id = x.execution_id
            join workflow_nodes n on (n.workflow_id, n.version, n.node) = (e.workflow_id, e.version, x.at)
            where n.name = '$end' and e.finished_at is null and (x.execution_id, x.node) = (w.execution_id, w.node))""",
    "running, and nothing can happen": """
        select e.id from workflow_executions e where e.status = 'running'
          and not exists (select from workflow_queue q where q.execution_id = e.id)
          and not exists (select from workflow_timers t where t.execution_id = e.id)
          and not exists (select from workflow_steps s where s.execution_id = e.id and s.status = 'waiting'
                          and (s.waits_for = 'approval' or s.waits_for like 'signal:%'))""",
    "held though it has ended": """
        select h.id from user_token_holds h join workflow_executions e on e.id = h.reference_id
        where h.state = 'open' and e.finished_at is not null""",
    "held for a lease that nobody has": """
        select h.id from user_token_holds h where h.state = 'open' and h.reference_type = 'workflow_execution' and h.call is not null
          and not exists (select from workflow_queue q where q.lease = (h.call ->> 'lease')::bigint)""",
    "settled twice": """
        select hold_id from user_token_ledger where direction = 'settle' and metadata ->> 'final' is distinct from 'false'
        group by hold_id having count(*) > 1""",
    "charged otherwise than its nodes, or than the ledger says": CHARGED,
    "more of a concurrency key than its limit": """
        select tenant_id, workflow_id, slot, count(*) from workflow_executions where finished_at is null and slot_held
        group by tenant_id, workflow_id, slot having count(*) > min(slot_limit)""",
    "asked for an execution that has ended": """
        select a.id from workflow_approvals a join workflow_executions e on e.id = a.execution_id
        where a.status = 'open' and e.finished_at is not null""",
    "a child without its parent": """
        select c.id from workflow_executions c join workflow_executions p on p.id = c.parent_execution_id
        where c.finished_at is null and p.finished_at is not null""",
}


async def broken(operator: asyncpg.Connection) -> dict[str, list[tuple[object, ...]]]:
    """What is wrong, by name, with the rows that show it."""
    found = {name: [tuple(row) for row in await operator.fetch(query)] for name, query in WRONG.items()}
    return {name: rows for name, rows in found.items() if rows}


async def require_invariants(operator: asyncpg.Connection) -> None:
    """Raises AssertionError with what is wrong in the runner's tables or the books."""
    found = await broken(operator)
    assert not found, "\n".join(f"{name}: {len(rows)}, as {rows[:3]}" for name, rows in found.items())
    await assert_books_are_clean(operator)
