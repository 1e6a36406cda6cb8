-- Somebody was granted a partition: the policies of the parent do not bind who reads it directly.
-- Mend: revoke all on public.<partition> from <role>; rows are read through the parent.
select c.relname as partition, coalesce(r.rolname, 'public') as grantee, a.privilege_type as privilege
from pg_class c
cross join lateral (
    select x.grantee, x.privilege_type from aclexplode(c.relacl) x
    union all
    select x.grantee, x.privilege_type from pg_attribute t cross join aclexplode(t.attacl) x where t.attrelid = c.oid) a
left join pg_roles r on r.oid = a.grantee
where c.relnamespace = 'public'::regnamespace and c.relispartition and pg_get_userbyid(c.relowner) like 'vanilla\_%'
  and a.grantee <> c.relowner
  and not (a.grantee = 'vanilla_operator'::regrole and a.privilege_type = 'SELECT')      -- pg_dump reads them one by one
