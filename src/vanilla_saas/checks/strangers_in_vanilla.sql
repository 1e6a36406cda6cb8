-- Schema vanilla holds an object that no migration made.
-- Mend: Drop it, or move it to another schema.
select o.what, o.owner::regrole::text as owner, format('drop %s', o.what) as mend
from (
    select format('%s %s', case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
                when 'f' then 'foreign table' else 'table' end, c.oid::regclass) as what, c.relowner as owner
        from pg_class c
        where c.relnamespace = 'vanilla'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
          and (pg_get_userbyid(c.relowner) not like 'vanilla\_%'
               or c.relname not in ('schema_migrations', 'context_keys', 'table_ownership', 'blocked_sessions', 'running_statements', 'wake_ups',
                                    'workflow_leases'))
    union all
    select format('function %s', p.oid::regprocedure), p.proowner from pg_proc p
        where p.pronamespace = 'vanilla'::regnamespace and pg_get_userbyid(p.proowner) not like 'vanilla\_%' and not p.prosecdef
    union all
    select format('extension %I', e.extname), e.extowner from pg_extension e where e.extnamespace = 'vanilla'::regnamespace) o
