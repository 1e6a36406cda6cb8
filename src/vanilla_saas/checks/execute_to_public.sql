-- A function of ours that every login may execute.
-- Mend: Take the right from public; then grant it to the roles that need it.
select p.oid::regprocedure::text as function,
    format('set role %s; revoke execute on function %s from public', p.proowner::regrole, p.oid::regprocedure) as mend
from pg_proc p
where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and pg_get_userbyid(p.proowner) like 'vanilla\_%'
  and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
              where a.grantee = 0 and a.privilege_type = 'EXECUTE')
