-- A publication sends rows of our tables to subscribers: no policy binds who receives them.
-- Severity: warning
-- Mend: Drop it, or take the table out, unless the subscriber is one of your own servers.
select distinct p.pubname as publication, case when p.puballtables then 'every table' else t.tablename end as table_name,
    case when p.puballtables then format('drop publication %I', p.pubname)
         else format('alter publication %I drop table %I.%I', p.pubname, t.schemaname, t.tablename) end as mend
from pg_publication p
join pg_publication_tables t on t.pubname = p.pubname
join pg_class c on c.oid = format('%I.%I', t.schemaname, t.tablename)::regclass
where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and pg_get_userbyid(c.relowner) like 'vanilla\_%'
