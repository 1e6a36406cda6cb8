-- A SECURITY DEFINER function of ours belongs to a role that policies do not bind, and acts with its rights.
-- Mend: Give it back to vanilla_definer, or vanilla_keyring for those that read context keys, as a superuser.
select p.oid::regprocedure::text as function, p.proowner::regrole::text as owner,
    format('alter function %s owner to %s', p.oid::regprocedure, case
        when p.proname in ('claim', 'install_context_key', 'expire_context_key', 'context_key_states') then 'vanilla_keyring'
        when p.proname in ('ensure_partitions', 'schema_files', 'drop_log_month', 'delete_log_rows', 'person_tables') then 'vanilla_owner' else 'vanilla_definer' end) as mend
from pg_proc p
where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and p.prosecdef
  and p.proowner::regrole::text not in ('vanilla_owner', 'vanilla_definer', 'vanilla_system', 'vanilla_keyring')
  and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
