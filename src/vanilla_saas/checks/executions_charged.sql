-- What an ended execution of a workflow says it was charged is not what the ledger says its calls were.
-- Mend: The ledger is right. Report it as a defect with the execution's id; correct charged_tokens of the execution and its steps.
select e.tenant_id, e.user_id, e.id as execution_id, e.charged_tokens, coalesce(l.actual, 0) as ledger_tokens
from public.workflow_executions e
left join (
    select r.tenant_id, r.reference_id, sum((r.metadata ->> 'actual')::bigint) as actual
    from public.user_token_ledger r
    where r.reference_type = 'workflow_execution' and r.direction = 'settle'
    group by r.tenant_id, r.reference_id) l on l.tenant_id = e.tenant_id and l.reference_id = e.id
where e.finished_at is not null and e.charged_tokens <> coalesce(l.actual, 0)
