-- A role of ours, or everybody in this database, begins its sessions with a setting that changes what policies, names or
-- triggers mean.
-- Mend: Reset the setting.
select coalesce(r.rolname, 'everybody') as role, s.setting,
    format('alter %s reset %I', case
        when r.rolname is null then format('database %I', d.datname)
        when d.datname is null then format('role %I', r.rolname)
        else format('role %I in database %I', r.rolname, d.datname) end, split_part(s.setting, '=', 1)) as mend
from pg_db_role_setting x
cross join lateral unnest(x.setconfig) s (setting)
left join pg_roles r on r.oid = x.setrole
left join pg_database d on d.oid = x.setdatabase
where (x.setdatabase = 0 or d.datname = current_database())
  and (r.rolname like 'vanilla\_%' and split_part(s.setting, '=', 1) in ('search_path', 'role')
       or (r.rolname like 'vanilla\_%' or x.setrole = 0)
          and (s.setting ilike 'row\_security=%' or s.setting ilike 'session\_replication\_role=%' or s.setting ilike 'vanilla.%'))
