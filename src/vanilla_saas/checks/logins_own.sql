-- A run-time login owns an object: its owner may change or drop it whatever was granted.
-- Mend: Give the object to vanilla_owner.
select o.what, o.owner::regrole::text as login, format('alter %s owner to vanilla_owner', o.what) as mend
from (
    select format('%s %s', case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence' else 'table' end,
            c.oid::regclass) as what, c.relowner as owner
        from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    union all select format('function %s', p.oid::regprocedure), p.proowner from pg_proc p where p.prokind <> 'p'
    union all select format('schema %I', n.nspname), n.nspowner from pg_namespace n
    union all select format('database %I', d.datname), d.datdba from pg_database d where d.datname = current_database()) o
where o.owner::regrole::text in ('vanilla_app', 'vanilla_runtime', 'vanilla_readonly')
