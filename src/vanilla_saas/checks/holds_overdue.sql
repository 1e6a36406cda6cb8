-- A hold is open more than an hour past its expiry: nobody runs schedules, so reserved tokens do not come back.
-- Mend: Start vanilla-saas serve, which runs the job holds every 30 seconds.
select h.tenant_id, h.user_id, h.id as hold_id, h.amount, h.expires_at, 'select vanilla.run_maintenance()' as mend
from public.user_token_holds h
where h.state = 'open' and h.expires_at < vanilla.clock() - interval '1 hour'
