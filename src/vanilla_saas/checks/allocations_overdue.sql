-- An allocation is open more than an hour past its end or past that of its hold in the wallet, or one of its steps is: nobody runs schedules.
-- Mend: Start vanilla-saas serve, which runs the job allocations every 30 seconds.
select a.tenant_id, a.user_id, a.id as allocation_id, a.expires_at, 'select public.allocation_reap()' as mend
from public.resource_allocations a
left join public.user_token_holds h on h.tenant_id = a.tenant_id and h.id = a.hold_id
where a.state = 'open' and (least(a.expires_at, h.closed_at) < vanilla.clock() - interval '1 hour'
    or exists (select from public.allocation_holds s where s.tenant_id = a.tenant_id and s.allocation_id = a.id and s.state = 'open'
        and s.expires_at < vanilla.clock() - interval '1 hour'))
