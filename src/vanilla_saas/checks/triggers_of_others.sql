-- A trigger or rule on a table of ours runs code that no migration wrote: it sees and may change every row.
-- Mend: Drop it, unless you know whose it is.
select c.relname as table_name, t.name, format('drop %s %I on %s', t.kind, t.name, c.oid::regclass) as mend
from pg_class c
cross join lateral (
    select 'trigger' as kind, g.tgname as name from pg_trigger g join pg_proc p on p.oid = g.tgfoid
        where g.tgrelid = c.oid and not g.tgisinternal and p.proowner::regrole::text not like 'vanilla\_%'
    union all
    select 'rule', r.rulename from pg_rewrite r where r.ev_class = c.oid and r.rulename <> '_RETURN') t
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and pg_get_userbyid(c.relowner) like 'vanilla\_%'
