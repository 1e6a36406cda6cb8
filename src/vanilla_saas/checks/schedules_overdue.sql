-- A job has been due for long and does not run: no process runs schedules, or none that knows it. Severity: warning
-- Mend: Start vanilla-saas serve with VANILLA_SAAS_RUN_SCHEDULES on, of the newest release.
select s.name, s.next_run_at as due_since
from public.schedules s, (select vanilla.clock() as now) c
where s.tenant_id = vanilla.platform() and s.enabled and s.next_run_at < now - greatest(2 * s.period, interval '15 minutes')
  -- of a database where nothing has run yet, nothing is late
  and exists (select from public.schedules r where r.tenant_id = vanilla.platform() and r.last_run_at is not null)
