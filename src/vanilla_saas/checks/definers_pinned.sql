-- A SECURITY DEFINER function without our search_path: who calls it chooses what its names mean.
-- Mend: Pin it, and name every object in it with its schema.
select p.oid::regprocedure::text as function,
    format('alter function %s set search_path = pg_catalog, pg_temp', p.oid::regprocedure) as mend
from pg_proc p
where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and p.prosecdef
  and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
  and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
