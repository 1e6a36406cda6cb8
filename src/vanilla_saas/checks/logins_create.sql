-- A run-time login may make objects: a table or type it leaves behind is found before ours by whoever comes next.
-- Mend: Take the right away, also from public.
select l.login, o.what, format('revoke %s from public, %I', o.what, l.login) as mend
from unnest(array['vanilla_app', 'vanilla_runtime', 'vanilla_readonly']) l (login)
cross join lateral (values
    ('create on schema public', has_schema_privilege(l.login, 'public', 'create')),
    ('create on schema vanilla', has_schema_privilege(l.login, 'vanilla', 'create')),
    (format('create on database %I', current_database()), has_database_privilege(l.login, current_database(), 'create')),
    (format('temporary on database %I', current_database()), has_database_privilege(l.login, current_database(), 'temporary'))
) o (what, may)
where o.may
