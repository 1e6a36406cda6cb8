-- Steps of an execution that is not there. workflow_steps has no foreign key, so nothing else would tell.
-- Mend: Report it as a defect, and delete them; nothing reads them.
select s.tenant_id, s.execution_id, count(*) as steps,
       format('delete from public.workflow_steps where tenant_id = %L and execution_id = %L', s.tenant_id, s.execution_id) as mend
from public.workflow_steps s
where not exists (select from public.workflow_executions e where e.tenant_id = s.tenant_id and e.id = s.execution_id)
group by s.tenant_id, s.execution_id
