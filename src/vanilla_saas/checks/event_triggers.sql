-- Code that is not ours runs whenever the schema changes, with the rights of whoever migrates. A platform's own are left out.
-- Severity: warning
-- Mend: Drop it, unless you know whose it is.
select e.evtname as event_trigger, e.evtfoid::regprocedure::text as function, format('drop event trigger %I', e.evtname) as mend
from pg_event_trigger e
where e.evtenabled <> 'D' and pg_get_userbyid(e.evtowner) not in ('supabase_admin', 'rdsadmin', 'cloudsqladmin', 'azuresu')
  and not exists (select from pg_depend d where d.classid = 'pg_event_trigger'::regclass and d.objid = e.oid and d.deptype = 'e')
