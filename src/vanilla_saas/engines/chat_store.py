"""Statements of engines that are called as models, beside those of every run."""

RESOLVE = """
select public.resolve_engine(null, coalesce(k.engine_ref, $1)) as found, k.engine_ref, k.budget_tokens
from (select) o left join public.api_keys k on k.tenant_id = $2 and k.id = $3
"""
"""Of a key of an engine its own, whatever was asked for: it tells nothing of others."""
RUNNABLE = "select engine_id, slug, platform from public.my_engines() where access = 'execute'"
END = """
select e.status, e.reason, e.error, e.output, e.charged_tokens, u.input_tokens, u.output_tokens, u.cached_tokens,
    u.reasoning_tokens
from public.workflow_executions e
cross join lateral (
    select coalesce(sum(a.input_tokens), 0)::bigint as input_tokens,
        coalesce(sum(a.output_tokens), 0)::bigint as output_tokens,
        coalesce(sum(a.cached_input_tokens), 0)::bigint as cached_tokens,
        coalesce(sum(a.reasoning_tokens), 0)::bigint as reasoning_tokens
    from (
        select h.execution_id from public.user_token_holds h
        where h.tenant_id = e.tenant_id and h.reference_id = e.id and h.reference_type = 'workflow_execution'
        union all
        select h.execution_id from public.allocation_holds h
        where h.tenant_id = e.tenant_id and h.allocation_id = e.allocation_id
            and h.call ->> 'workflow_execution_id' = e.id::text) h
    join public.ai_executions a on a.tenant_id = e.tenant_id and a.id = h.execution_id
        and a.created_at >= e.started_at) u
where e.tenant_id = $1 and e.id = $2 and e.finished_at is not null
"""
"""No row: it has not ended."""
BEGIN = "select vanilla.begin_engine($1, $2, $3, $4, $5, $6, $7, $8, $9)"
"""Of the runtime login, which a key's or a session's hash tells who calls."""
