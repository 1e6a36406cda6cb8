-- What the executions of a hold say they charged is not what its ledger rows took from the wallet.
-- Mend: The ledger is right. Report it as a defect with the execution's id; correct charged_tokens of the execution.
select e.tenant_id, e.user_id, e.execution_id, e.charged_tokens, l.actual as ledger_tokens, l.taken
from (
    select x.tenant_id, x.user_id, x.id as execution_id, x.hold_id, sum(x.charged_tokens) as charged_tokens
    from public.ai_executions x
    where x.hold_id is not null
    group by x.tenant_id, x.user_id, x.id, x.hold_id) e
cross join lateral (
    -- taken is more than actual only by what lapsed while it was held
    select coalesce(sum((r.metadata ->> 'actual')::bigint) filter (where r.direction = 'settle'), 0) as actual,
           coalesce(-sum(r.amount + r.reserved_amount), 0) as taken
    from public.user_token_ledger r
    where r.tenant_id = e.tenant_id and r.execution_id = e.execution_id
      and (r.hold_id = e.hold_id or r.metadata ->> 'allocation_hold' = e.hold_id::text)) l      -- a step of an allocation draws on the tree's hold
where e.charged_tokens <> l.actual or l.taken < l.actual
