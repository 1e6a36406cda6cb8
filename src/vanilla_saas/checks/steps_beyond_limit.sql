-- More steps of an execution are queued or run than its engine's mode lets in at the same time.
-- Mend: Report it as a defect with the execution's id. What runs ends as it should; cancel_execution(id) ends it now.
select e.tenant_id, e.id as execution_id, e.at_once, count(*) as queued
from public.workflow_executions e
join public.workflow_queue q on q.tenant_id = e.tenant_id and q.execution_id = e.id
where e.at_once is not null
group by e.tenant_id, e.id
having count(*) > e.at_once
