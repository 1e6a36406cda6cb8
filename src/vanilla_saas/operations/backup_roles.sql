-- Statements that make the roles which the dump's owners and grants name beside ours, which 001 makes.
select format(E'do $do$ begin\n    if not exists (select from pg_roles where rolname = %L) then create role %I nologin; end if;\nend $do$;',
    name, name) as statement
from (
select distinct pg_get_userbyid(s.role) as name from (
    select r.relowner as role from pg_class r join pg_namespace n on n.oid = r.relnamespace
        where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
    union select nspowner from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'
    union select proowner from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
    union select x.grantee from pg_class r join pg_namespace n on n.oid = r.relnamespace
        cross join lateral aclexplode(r.relacl) x where n.nspname !~ '^pg_'
    union select x.grantee from pg_attribute a join pg_class r on r.oid = a.attrelid
        join pg_namespace n on n.oid = r.relnamespace cross join lateral aclexplode(a.attacl) x where n.nspname !~ '^pg_'
    union select x.grantee from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        cross join lateral aclexplode(p.proacl) x where n.nspname !~ '^pg_'
    union select x.grantee from pg_namespace n cross join lateral aclexplode(n.nspacl) x where n.nspname !~ '^pg_'
    union select unnest(p.polroles) from pg_policy p) s
where s.role <> 0 and pg_get_userbyid(s.role) !~ '^(pg_|vanilla_(owner|definer|system|keyring|operator|app|runtime|readonly)$)'
) named
order by name
