-- A step is queued, or with a worker, of an execution that has ended or is not there: a worker would run it for nothing.
-- Mend: Report it as a defect, and delete the row; what its worker says of it then does not count.
select q.tenant_id, q.execution_id, q.node, q.item, q.worker,
       format('delete from public.workflow_queue where tenant_id = %L and execution_id = %L and node = %s and item = %s', q.tenant_id,
              q.execution_id, q.node, q.item) as mend
from public.workflow_queue q
where not exists (
    select from public.workflow_executions e where e.tenant_id = q.tenant_id and e.id = q.execution_id and e.finished_at is null)
