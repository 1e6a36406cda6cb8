-- PostgreSQL writes statements with their parameters to its log: context tokens, hashes of keys and what people send.
-- Severity: warning
-- Mend: Log no parameters, or no statements. In postgresql.conf or with alter system: log_parameter_max_length = 0.
select s.role, s.name, s.value, s.mend
from (
    select 'everybody' as role, g.name, g.setting as value,
        case when g.name = 'log_parameter_max_length_on_error' then 'alter system set log_parameter_max_length_on_error = 0'
             else 'alter system set log_parameter_max_length = 0' end as mend
        from pg_settings g
    union all
    select r.rolname, split_part(s.setting, '=', 1), split_part(s.setting, '=', 2),
        format('alter role %I %s reset %I', r.rolname, coalesce('in database ' || quote_ident(d.datname), ''), split_part(s.setting, '=', 1))
        from pg_db_role_setting x
        cross join lateral unnest(x.setconfig) s (setting)
        join pg_roles r on r.oid = x.setrole and r.rolname in ('vanilla_app', 'vanilla_runtime', 'vanilla_readonly')
        left join pg_database d on d.oid = x.setdatabase
        where x.setdatabase = 0 or d.datname = current_database()) s
where (s.name = 'log_statement' and s.value in ('mod', 'all')
       or s.name in ('log_min_duration_statement', 'log_min_duration_sample') and s.value <> '-1'
       or s.name in ('log_transaction_sample_rate', 'log_duration_sample') and s.value::numeric > 0
       or s.name = 'log_parameter_max_length_on_error' and s.value <> '0')
  and (s.name = 'log_parameter_max_length_on_error' or current_setting('log_parameter_max_length') <> '0')
