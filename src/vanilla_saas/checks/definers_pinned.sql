-- A SECURITY DEFINER function without a pinned search_path: who calls it chooses what its names mean.
-- Mend: alter function <function> set search_path = pg_catalog, pg_temp; name every object with its schema.
select p.oid::regprocedure::text as function
from pg_proc p
where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and p.prosecdef
  and not exists (select from unnest(p.proconfig) setting where setting like 'search\_path=%')
  and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
