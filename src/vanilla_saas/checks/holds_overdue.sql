-- A hold is open more than an hour past its expiry: nobody runs maintenance, so reserved tokens do not come back.
-- Mend: Start vanilla-saas serve or a worker, which tick every 30 seconds, or run: select vanilla.run_maintenance()
select h.tenant_id, h.user_id, h.id as hold_id, h.amount, h.expires_at
from public.user_token_holds h
where h.state = 'open' and h.expires_at < vanilla.clock() - interval '1 hour'
