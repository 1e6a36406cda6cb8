"""Attacks on row-level security that are known to have worked somewhere, each with what must come of it here."""

from dataclasses import dataclass

APP, READONLY, RUNTIME = "vanilla_app", "vanilla_readonly", "vanilla_runtime"
EVERY = (APP, READONLY, RUNTIME)
DENIED = "42501"


@dataclass(frozen=True)
class Known:
    """`outcome` is a SQLSTATE, or what it comes to: `ok`, `nothing` (no row given or changed), or the status of a command.

    `*` where it depends on how PostgreSQL was built: whatever comes, nothing is told. `why` is the comment."""

    why: str
    statement: str
    outcome: str = DENIED
    logins: tuple[str, ...] = (APP,)


KNOWN = (
    # identities that are only settings
    Known("a plain setting named the tenant", "select set_config('app.tenant_id', '{b}', true), count(*) from users"
          " where tenant_id = '{b}' having count(*) > 0", "nothing"),
    Known("a plain setting named the user", "select set_config('app.user_id', '{b_admin}', true) from users where id = '{b_admin}'", "nothing"),
    Known("PostgREST's claims, from another login than its own", "select set_config('request.jwt.claims',"
          " '{{\"tenant_id\": \"{b}\", \"role\": \"service_role\"}}', true) from users where tenant_id = '{b}'", "nothing"),
    Known("a claim edited inside the signed token", "select 1 from (select set_config('vanilla.context',"
          " replace('{token}', '{a}', '{b}'), true) as c offset 0) s"
          " where case when c <> '' then vanilla.current_tenant_id() end is not null", "nothing", (APP, READONLY)),
    Known("a function asked under an edited claim", "select create_user('x@x.test') from (select set_config('vanilla.context',"
          " replace('{token}', '{a}', '{b}'), true) offset 0) c where c is not null", "VS401"),
    Known("a role raised inside the signed token", "select vanilla.set_context(replace('{token}', '.admin.', '.superadmin.'))", "VS401",
          (APP, READONLY)),
    Known("the context taken away", "do $$ begin perform set_config('vanilla.context', '', true);"
          " if exists (select from public.levels) then raise exception 'seen'; end if; end $$", "DO"),
    # becoming another role
    Known("SET ROLE per tenant is undone by RESET", "set role vanilla_definer", DENIED, EVERY),
    Known("the role as a setting", "select set_config('role', 'vanilla_owner', true)", DENIED, EVERY),
    Known("SET SESSION AUTHORIZATION", "set session authorization postgres", DENIED, EVERY),
    Known("a role granted to oneself", "grant vanilla_system to {login}", DENIED, EVERY),
    Known("BYPASSRLS for oneself", "alter role {login} bypassrls", DENIED, EVERY),
    Known("a password for a role of ours", "alter role vanilla_definer login password 'x'", DENIED, EVERY),
    # switching policies off
    Known("row_security off refuses where it would filter", "set local row_security = off; select * from users", DENIED),
    Known("the table's own switch", "alter table users disable row level security", DENIED, EVERY),
    Known("a policy of one's own", "create policy mine on users using (true)", DENIED, EVERY),
    Known("triggers and keys off", "set session_replication_role = replica", DENIED, EVERY),
    Known("leaky predicates pushed down by a free function", "create function pg_temp.leak(text) returns boolean language plpgsql"
          " cost 0.0000001 as $$ begin raise notice '%', $1; return true; end $$", DENIED, EVERY),
    Known("catalog updates", "set allow_system_table_mods = on", DENIED, EVERY),
    Known("a table's statistics", "select * from pg_statistic", DENIED, EVERY),
    Known("statistics of columns under policies", "select * from pg_stats where schemaname = 'public'", "nothing", EVERY),
    # the holes of the schema this one replaces
    Known("own wallet raised", "update user_token_wallets set available_tokens = 1000000000", DENIED),
    Known("own role raised", "update users set role = 'superadmin' where id = '{user}'", DENIED),
    Known("own row moved to another tenant", "update users set tenant_id = '{b}' where id = '{user}'", DENIED),
    Known("the admin's password set", "update users set password_hash = '$argon2id$x'", DENIED),
    Known("the password hashes of the tenant", "select password_hash from users", DENIED, (APP, READONLY)),
    Known("a whole row, hidden columns with it", "select u from users u", DENIED, (APP, READONLY)),
    Known("a whole row as JSON", "select row_to_json(u) from users u", DENIED, (APP, READONLY)),
    Known("the platform's provider pointed elsewhere", "update ai_providers set base_url = 'http://thief' where tenant_id <> '{a}'", "nothing"),
    Known("the platform's models deleted", "delete from ai_models where tenant_id <> '{a}'", "nothing"),
    Known("a row made for another tenant", "insert into system_configurations (tenant_id, key, value) values ('{b}', 'k', '1')"),
    Known("a row made for everybody", "insert into system_configurations (tenant_id, key, value, is_public) values ('{platform}', 'k', '1', true)"),
    Known("a row made for no tenant", "insert into system_configurations (tenant_id, key, value) values (null, 'k', '1')"),
    Known("a call logged for another tenant", "insert into ai_executions (tenant_id, user_id, provider, model, status)"
          " values ('{b}', '{b_user}', 'x', 'x', 'succeeded')", DENIED, EVERY),
    Known("own allocation written", "update level_token_policies set monthly_allocation = 10000000"),
    Known("the own tenant deleted, with all that hangs on it", "delete from tenants where id = '{a}'"),
    Known("the ledger rewritten", "update user_token_ledger set amount = 1", DENIED, EVERY),
    Known("the ledger shortened", "delete from user_token_ledger", DENIED, EVERY),
    Known("truncate, which no policy binds", "truncate users cascade", DENIED, EVERY),
    Known("a debit through the function, of another tenant's user", "select adjust_user_tokens('{b_user}', -5, 'adjustment')", "VS404"),
    Known("a level of another tenant referenced", "select auto_allocate_tokens_for_level('{user}', '{b}')", "VS404"),
    # what keys and checks tell
    Known("a duplicate key as an oracle", "insert into ai_providers (tenant_id, slug, name, kind, base_url) select '{b}', slug,"
          " name, kind, base_url from ai_providers limit 1"),
    Known("an upsert over another tenant's row", "insert into system_configurations (tenant_id, key, value) values ('{b}', 'k', '1')"
          " on conflict (tenant_id, key) do update set value = '2' returning *"),
    Known("a merge over another tenant's rows", "merge into ai_models t using (select 1) s on t.tenant_id = '{b}' when matched then delete", "nothing"),
    Known("division as an oracle", "select 1 / (case when tenant_id = '{b}' then 0 else 1 end) from users", "ok", (APP, READONLY)),
    Known("values in the text of an error", "select (string_agg(email, ''))::int from users where tenant_id <> '{a}' having count(*) > 0",
          "nothing", (APP, READONLY)),
    Known("rows counted by a plan", "explain (analyze, verbose, costs off) select id from users where tenant_id = '{b}'", "ok", (APP, READONLY)),
    Known("a sampled table", "select id from users tablesample system (100) where tenant_id = '{b}'", "nothing", (APP, READONLY)),
    Known("a row by its place", "select id from users where ctid = any (array(select format('(0,%s)', n)::tid from generate_series(1, 50) n))"
          " and tenant_id <> '{a}'", DENIED, (APP, READONLY)),
    Known("locks on rows of others", "select 1 from ai_models where tenant_id = '{b}' for update", "nothing"),
    # other ways to the same rows
    Known("a partition, which the parent's policies do not bind", "select * from audit_logs_default", DENIED, EVERY),
    Known("a view with its owner's rights", "create view mine as select * from users", DENIED, EVERY),
    Known("a rule", "create rule mine as on select to users do instead select 1", DENIED, EVERY),
    Known("a trigger", "create trigger mine before insert on users execute function suppress_redundant_updates_trigger()", DENIED, EVERY),
    Known("an index over a free expression", "create index on users ((email::int))", DENIED, EVERY),
    Known("a copy of the table", "copy users to stdout", DENIED),
    Known("a file", "copy (select 1) to '/tmp/x'", DENIED, EVERY),
    Known("a program", "copy (select 1) to program 'true'", DENIED, EVERY),
    Known("a file of the server", "select pg_read_file('postgresql.conf')", DENIED, EVERY),
    Known("the server's folders", "select pg_ls_dir('.')", DENIED, EVERY),
    Known("a file as a large object", "select lo_import('/etc/passwd')", DENIED, EVERY),
    Known("a query inside a function", "select query_to_xml('select email from public.users where tenant_id = ''{b}''', true, false, '')::text", "*",
          (APP, READONLY)),
    Known("a whole database as XML", "select database_to_xml(true, false, '')::text", "*", EVERY),
    Known("words of a text search", "select * from ts_stat('select to_tsvector(email) from public.users where tenant_id = ''{b}''')", "nothing",
          (APP, READONLY)),
    Known("the write-ahead log", "select pg_logical_slot_get_changes('x', null, null)", DENIED, EVERY),
    Known("a slot", "select pg_create_logical_replication_slot('x', 'pgoutput')", DENIED, EVERY),
    Known("another server", "create extension postgres_fdw", "*", EVERY),
    Known("the settings of the server", "select pg_reload_conf()", DENIED, EVERY),
    Known("the values of statements, into the server's log", "set log_statement = 'all'", DENIED, EVERY),
    Known("a language without a fence", "create function mine() returns int language c as 'x', 'y'", DENIED, EVERY),
    # the context's keys
    Known("the keys", "select * from vanilla.context_keys", DENIED, EVERY),
    Known("a key of one's own", "select vanilla.install_context_key('mine', repeat('x', 32)::bytea)", DENIED, EVERY),
    Known("the verifier replaced", "create or replace function vanilla.claim(p_index integer) returns text language sql return '{b}'", DENIED, EVERY),
    Known("the clock replaced, for a token without end", "create or replace function vanilla.clock() returns timestamptz language sql"
          " return '2000-01-01'::timestamptz", DENIED, EVERY),
    Known("a function of ours shadowed", "create temp table context_keys (key_id text)", DENIED, EVERY),
    Known("a hashing function shadowed", "create function pg_temp.sha256(bytea) returns bytea language sql return '\\x00'::bytea", DENIED, EVERY),
    # other sessions
    Known("statements left prepared in the session", "select * from pg_prepared_statements", "ok", EVERY),
    Known("cursors left open in the session", "select * from pg_cursors where is_holdable", "nothing", EVERY),
    Known("what other sessions run", "select query from pg_stat_activity", "ok", EVERY),
    Known("a snapshot of another session", "select pg_export_snapshot()", "ok", EVERY),
    Known("memory of other sessions", "select * from pg_shmem_allocations", DENIED, EVERY),
    Known("the functions behind no policy", "select vanilla.make_user('{b}', 'x@x.test', null, '', 'admin', null, false, null)", DENIED, EVERY),
    Known("a right of the gateway from a request", "select vanilla.key_identity('x')", DENIED, (APP, READONLY)),
    Known("a right of a request from the gateway", "select create_user('x@x.test')", DENIED, (RUNTIME, READONLY)),
    Known("another tenant's hold, without its id's other half", "select vanilla.settle_call('{b}', '{user}', 'succeeded', 1, 1, 0, 0)", "VS404", (RUNTIME,)),
    Known("SQL in an argument of a function that builds DDL", "select vanilla.protect_table('public.users', 'user_owned',"
          " p_owner => 'id or true')", DENIED, EVERY),
    Known("the rules written anew", "select vanilla.repair_protection('public.users')", DENIED, EVERY),
    Known("the rules as they should be, read", "select vanilla.expected_protection('public.users')", DENIED, EVERY),
)  # fmt: skip
