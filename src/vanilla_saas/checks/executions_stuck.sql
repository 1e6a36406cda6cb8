-- A running execution does not go on by itself: a step is ready and not queued, or waits for what will not come, or none is left.
-- Mend: Report it as a defect with the execution's id. select cancel_execution(id), then restart_execution(id): it goes on from
-- what has no outcome.
select e.tenant_id, e.id as execution_id, s.node, s.item, s.status, s.waits_for
from public.workflow_executions e
left join public.workflow_steps s on s.tenant_id = e.tenant_id and s.execution_id = e.id and s.status in ('ready', 'waiting')
where e.status = 'running' and case
    when s.status is null then true
    when s.status = 'ready' then not exists (
        select from public.workflow_queue q
        where q.tenant_id = s.tenant_id and q.execution_id = s.execution_id and q.node = s.node and q.item = s.item)
        and (e.at_once is null or e.at_once > (
            select count(*) from public.workflow_queue q where q.tenant_id = e.tenant_id and q.execution_id = e.id))
    when s.waits_for like 'signal:%' then false
    when s.waits_for = 'approval' then not exists (
        select from public.workflow_approvals a
        where a.tenant_id = s.tenant_id and a.execution_id = s.execution_id and a.node = s.node and a.status = 'open')
    when s.waits_for = 'start' then not exists (
        select from public.workflow_steps f
        where f.tenant_id = s.tenant_id and f.execution_id = s.execution_id and f.node = 0 and f.status in ('ready', 'waiting'))
    when s.waits_for = 'items' then not exists (
        select from public.workflow_steps i
        where i.tenant_id = s.tenant_id and i.execution_id = s.execution_id and i.node = s.node and i.item >= 0
          and i.status in ('ready', 'waiting'))
    when exists (
        select from public.workflow_timers t
        where t.tenant_id = s.tenant_id and t.execution_id = s.execution_id and t.node = s.node and t.item = s.item) then false
    when s.waits_for = 'execution' then not exists (
        select from public.workflow_executions c
        where c.tenant_id = s.tenant_id and c.parent_execution_id = s.execution_id and c.parent_node = s.node and c.parent_item = s.item
          and c.finished_at is null)
    when s.waits_for = 'slot' then not exists (
        select from public.workflow_executions o
        where o.tenant_id = e.tenant_id and o.workflow_id = e.workflow_id and o.slot = e.slot and o.slot_held and o.finished_at is null)
    else true end
