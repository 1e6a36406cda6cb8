-- An engine's version runs another text than was frozen: its flow, or what of it was brought to a tenant, has another hash.
-- Mend: Report it as a defect with the ids. retire_engine(id, version) starts no more of it; deploy the flow again.
select v.tenant_id, v.engine_id, v.version, w.tenant_id as runs_in
from public.engine_versions v
join public.workflow_versions w on w.workflow_id = v.workflow_id and w.version = v.workflow_version
    and (w.tenant_id = v.tenant_id or exists (
        select from public.ai_workflows f where f.tenant_id = w.tenant_id and f.id = w.workflow_id and f.origin_tenant_id = v.tenant_id))
where encode(w.hash, 'hex') <> v.config #>> '{flow,hash}'
