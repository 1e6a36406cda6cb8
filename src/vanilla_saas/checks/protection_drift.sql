-- The policies, grants, column grants or switches of a table or partition are not those that its declaration says.
-- Mend: vanilla-saas migrate --repair
select c.relname as table_name, d.object, coalesce(d.expected, 'none') as expected, coalesce(d.found, 'none') as found
from pg_class c
cross join lateral vanilla.protection_drift(c.oid) d
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and pg_get_userbyid(c.relowner) like 'vanilla\_%'
  and (c.relispartition or exists (select from vanilla.table_ownership o where o.relation = c.relname))
