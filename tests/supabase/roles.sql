-- The roles of a Supabase project, as its image makes them (supabase/postgres, migrations/db). Run by supabase_admin, the
-- superuser that made the cluster; postgres, whom the SQL editor and the CLI log in as, is demoted.
create role postgres login nosuperuser createdb createrole replication bypassrls;
create role anon nologin inherit;
create role authenticated nologin inherit;
create role service_role nologin inherit bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role, supabase_admin to authenticator;
create role supabase_auth_admin login noinherit createrole;
create role dashboard_user nosuperuser createdb createrole replication;
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role supabase_auth_admin set search_path = auth;
alter role supabase_admin set search_path = "$user", public, auth, extensions;
alter role postgres set search_path = "$user", public, extensions;
do $do$
begin
    if current_setting('server_version_num')::int >= 160000 then
        grant anon, authenticated, service_role to postgres with admin option;
    else
        grant anon, authenticated, service_role to postgres;
    end if;
end
$do$;
