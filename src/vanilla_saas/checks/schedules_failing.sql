-- A job has failed more than once in a row; it is tried again by itself, after an hour at the most.
-- Mend: Remove what its last error names, then: vanilla-saas schedules run NAME.
select s.name, s.failures, s.last_error, s.next_run_at as tried_again_at
from public.schedules s
where s.tenant_id = vanilla.platform() and s.enabled and s.failures > 1
