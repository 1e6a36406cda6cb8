-- A table of ours whose row-level security is off, or does not bind its owner.
-- Mend: alter table public.<table> enable row level security; alter table public.<table> force row level security;
select c.relname as table_name, c.relrowsecurity as enabled, c.relforcerowsecurity as forced
from pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and pg_get_userbyid(c.relowner) like 'vanilla\_%'
  and not (c.relrowsecurity and c.relforcerowsecurity)
