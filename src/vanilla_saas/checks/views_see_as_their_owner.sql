-- A view reads with its owner's rights, past the policies of whoever asks; a materialized view always does.
-- Mend: Let the view ask as its reader; a materialized view is dropped, or taken from every role that serves requests.
select c.oid::regclass::text as view, case c.relkind
    when 'm' then format('drop materialized view %s', c.oid::regclass)
    else format('alter view %s set (security_invoker = true)', c.oid::regclass) end as mend
from pg_class c
where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and c.relkind in ('v', 'm')
  and (c.relkind = 'm' or not coalesce(
      (select o.option_value::boolean from pg_options_to_table(c.reloptions) o where o.option_name = 'security_invoker'), false))
  and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
