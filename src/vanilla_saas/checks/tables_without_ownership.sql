-- A table of ours without a declared ownership class: nothing says who may read it.
-- Mend: Declare it with select vanilla.protect_table('public.<table>', '<class>') in 003 or 010, then: vanilla-saas migrate --repair
select c.relname as table_name
from pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
  and pg_get_userbyid(c.relowner) like 'vanilla\_%'
  and not exists (select from vanilla.table_ownership o where o.relation = c.relname)
