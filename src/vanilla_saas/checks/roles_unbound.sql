-- A role of ours has an attribute that no policy or grant binds, or may log in although it only owns and decides.
-- Mend: Take the attribute away; as a superuser, if it is superuser, replication or bypassrls.
select r.rolname as role, a.attribute, format('alter role %I %s', r.rolname, a.without) as mend
from pg_roles r
cross join lateral (values
    ('superuser', 'nosuperuser', r.rolsuper),
    ('bypassrls', 'nobypassrls', r.rolbypassrls),
    ('createrole', 'nocreaterole', r.rolcreaterole),
    ('createdb', 'nocreatedb', r.rolcreatedb),
    ('replication', 'noreplication', r.rolreplication),
    ('login', 'nologin', r.rolcanlogin and r.rolname not in ('vanilla_app', 'vanilla_runtime', 'vanilla_readonly'))
) a (attribute, without, has)
where r.rolname in ('vanilla_owner', 'vanilla_definer', 'vanilla_system', 'vanilla_keyring', 'vanilla_operator',
                    'vanilla_app', 'vanilla_runtime', 'vanilla_readonly') and a.has
