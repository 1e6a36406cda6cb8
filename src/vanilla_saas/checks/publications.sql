-- A publication sends rows of our tables to subscribers: no policy binds who receives them.
-- Severity: warning
-- Mend: Drop it, or take the table out, unless the subscriber is one of your own servers.
select distinct p.pubname as publication, case when p.puballtables then 'every table' else t.tablename end as table_name,
    case when p.puballtables then format('drop publication %I', p.pubname)
         else format('alter publication %I drop table %I.%I', p.pubname, t.schemaname, t.tablename) end as mend
from pg_publication p
join pg_publication_tables t on t.pubname = p.pubname
join pg_namespace n on n.nspname = t.schemaname
join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
where n.nspname in ('public', 'vanilla') and pg_get_userbyid(c.relowner) like 'vanilla\_%'
