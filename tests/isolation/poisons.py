"""SQL that a request leaves behind in its connection, for tests of what the next one finds there."""

PUBLISHED = "select pg_catalog.array_agg(distinct tenant_id::text) from public.levels"
"""A statement of the product that every tenant runs: asyncpg keeps it prepared, under a name that can be read."""

REPLACE_ALL = """
    do $do$
    declare
        s record;
    begin
        for s in select * from pg_prepared_statements where not from_sql loop
            execute format('deallocate %I', s.name);
            execute format('prepare %I%s as {statement}', s.name,
                coalesce('(' || nullif(array_to_string(s.parameter_types, ','), '') || ')', ''));
        end loop;
    end
    $do$"""
"""Puts a statement of the attacker's under every name that the driver has prepared."""

ACROSS_THE_END = "commit; {}; begin"
"""What is set in a transaction of its own stays, whatever becomes of the request's."""

POISONS: dict[str, list[str]] = {
    "steal": [
        REPLACE_ALL.format(statement="select set_config(''stolen.token'', current_setting(''vanilla.context''), false)")
    ],
    "answer for": [REPLACE_ALL.format(statement="select array[''forged'']")],
    "deallocate": ["deallocate all"],
    "deallocate one": [
        "do $$ begin execute (select format('deallocate %I', min(name)) from pg_prepared_statements); end $$"
    ],
    "names to come": [
        "do $$ begin for i in 1..2000 loop"
        " execute format('prepare __asyncpg_stmt_%s__ as select array[''forged'']', to_hex(i));"
        " end loop; exception when duplicate_prepared_statement then null; end $$"
    ],
    "deallocate inside a select": ["select query_to_xml('deallocate all', true, false, '')"],
    "any statement": ["prepare poison as select * from public.users"],
    "search path": ["set search_path = pg_temp"],
    "search path by function": ["select set_config('search_path', 'pg_temp, pg_catalog', false)"],
    "row security": ["set row_security = off"],
    "context": ["select set_config('vanilla.context', current_setting('vanilla.context'), false)"],
    "request id": ["select set_config('vanilla.request_id', 'poison', false)"],
    "time zone": ["set time zone 'Asia/Kolkata'"],
    "date style": ["set datestyle = 'German'"],
    "encoding": ["set client_encoding = 'LATIN1'"],
    "literals": ["set standard_conforming_strings = off"],
    "timeout": ["set statement_timeout = '1ms'"],
    "lock timeout": ["set lock_timeout = '1ms'"],
    "idle timeout": ["set idle_session_timeout = '10s'"],
    "read only": ["set session characteristics as transaction read only"],
    "read only setting": ["set default_transaction_read_only = on"],
    "isolation": ["set default_transaction_isolation = 'serializable'"],
    "planner": ["set plan_cache_mode = force_generic_plan", "set enable_indexscan = off"],
    "application name": ["set application_name = 'somebody else'"],
    "null": ["set transform_null_equals = on"],
    "role": ["set role none", "set session authorization default"],
    "listen": ["listen poison"],
    "advisory lock": ["select pg_advisory_lock(hashtext('vanilla_saas.migrate'))"],
    "shared advisory lock": ["select pg_advisory_lock_shared(7, 7)"],
    "cursor with hold": ["declare poison cursor with hold for select * from public.users"],
    "temporary table": ["create temp table users as select 1"],
    "transaction left": ["commit"],
    "transaction left twice": ["rollback", "begin isolation level serializable read only"],
    "transaction chained": ["commit and chain"],
    "savepoint": ["savepoint vanilla", "set local search_path = pg_temp"],
    "failed": ["set search_path = pg_temp", "select 1 / 0"],
    "copy": ["copy (select 1) to stdout"],
    "all at once": [
        ACROSS_THE_END.format(
            "set search_path = pg_temp; set statement_timeout = '1s'; listen poison; select pg_advisory_lock(7);"
            " declare poison cursor with hold for select 1; deallocate all; prepare poison as select 1"
        )
    ],
}
"""Each is run statement by statement in a transaction of tenant A."""

SESSION = """
    select jsonb_build_object(
        'users', (select jsonb_agg(distinct tenant_id) from public.users),
        'settings', (select jsonb_object_agg(name, array[setting, source]) from pg_settings),
        'vanilla', array[current_setting('vanilla.request_id', true), current_setting('vanilla.client_ip', true)],
        'stolen', nullif(current_setting('stolen.token', true), ''),
        'role', array[current_user::text, session_user::text, current_setting('role')],
        'statements', (select count(*) from pg_prepared_statements where from_sql),
        'cursors', (select count(*) from pg_cursors where name = 'poison'),
        'channels', (select count(*) from pg_listening_channels()),
        'locks', (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'),
        'temporary', pg_my_temp_schema()::bigint,
        'literal', 'a\\b', 'accent', 'é', 'null', (select count(*) from (values (null::int)) v (n) where n = null))"""
"""All that a session may carry over, and what its settings do to a statement."""
