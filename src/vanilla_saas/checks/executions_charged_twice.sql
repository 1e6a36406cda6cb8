-- Two charged executions of one hold: a call was paid twice. A row abandoned before a late settlement is free.
-- Mend: Report it as a defect with both rows; return the tokens with adjust_user_tokens(user, n, 'credit', p_source => 'refund').
select e.tenant_id, e.user_id, e.hold_id, count(*) as executions, sum(e.charged_tokens) as charged_tokens
from public.ai_executions e
where e.hold_id is not null and e.charged_tokens > 0
group by e.tenant_id, e.user_id, e.hold_id
having count(*) > 1
