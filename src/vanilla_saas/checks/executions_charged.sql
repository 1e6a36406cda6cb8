-- What an execution of a workflow was charged, what its nodes were, and what the ledger says its calls were is not the same; or the
-- cost of one that ended is not its nodes'. Nodes are not there any more when the person was erased.
-- Mend: The ledger is right. Report it as a defect with the execution's id; correct charged_tokens of the execution and its steps.
select e.tenant_id, e.user_id, e.id as execution_id, e.charged_tokens, s.charged_tokens as nodes_tokens, coalesce(l.actual, 0) as ledger_tokens,
       e.cost_micros, s.cost_micros as nodes_micros
from public.workflow_executions e
left join (
    select n.tenant_id, n.execution_id, sum(n.charged_tokens) as charged_tokens, sum(n.cost_micros) as cost_micros
    from public.workflow_steps n
    where n.item = -1
    group by n.tenant_id, n.execution_id) s on s.tenant_id = e.tenant_id and s.execution_id = e.id
left join (
    select r.tenant_id, r.reference_id, sum((r.metadata ->> 'actual')::bigint) as actual
    from public.user_token_ledger r
    where r.reference_type = 'workflow_execution' and r.direction = 'settle'
    group by r.tenant_id, r.reference_id) l on l.tenant_id = e.tenant_id and l.reference_id = e.id
where s.charged_tokens <> coalesce(l.actual, 0)
   or e.finished_at is not null and (e.charged_tokens <> coalesce(l.actual, 0) or (s.charged_tokens, s.cost_micros) <> (e.charged_tokens, e.cost_micros))
