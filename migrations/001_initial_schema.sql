-- 001: core tables and structure.
--
-- Reads top to bottom:
--   1. roles            who owns, who decides, who connects
--   2. ground           schema, ids, clock, errors
--   3. tables           tenants, users, levels, wallets, ledger, providers, models, executions, keys, sessions, audit
--   4. log partitions   one table a month, made ahead of time
--   5. context          a request's identity is a signed token that the database verifies
--   6. protection       vanilla.protect_table writes grants and policies of one table (used by 003 and 010)
--   7. tenancy          functions that make tenants, users, keys and sessions
--   8. metered call     admit before a model call, settle after it
--   9. events           written with what happened, delivered to webhooks
--  10. Supabase        PostgREST's claims as a context, sign-ups as users, its roles mapped onto ours
--  11. operation       what sessions do and wait for
--
-- Invariants: every row has a tenant; every foreign key carries tenant_id; secrets have no column grant; nobody reads
-- a context key; functions that skip the signature take a key hash, a session hash or a hold, never a tenant id.
-- Lock order: the hold an operation names, then user_token_wallets, user_token_grants, user_rate_windows (007), api_keys;
-- of a sign-in: users, then one_time_tokens, then sessions.
-- Functions of 002 (wallet) are called from here by name and exist before anyone can call these.
--
-- Runs as superuser or as a NOSUPERUSER CREATEROLE database owner; PostgreSQL 15 to 18; any number of times.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));   -- one migrator per database
-- after an upgrade (011 and later) these files would bring back what it changed
do $do$
begin
    if to_regclass('vanilla.schema_migrations') is not null then
        if exists (select from vanilla.schema_migrations where name >= '011') then
            raise exception 'this database was upgraded after 010; the files before are not run over it' using errcode = 'VS409',
                hint = 'vanilla-saas migrate, or psql -f, with the files from 011 on.';
        end if;
    end if;
end
$do$;

-- 1. roles ---------------------------------------------------------------------------------------------------------
-- Cluster-wide, so created and joined only when missing (other databases, re-runs).
--   vanilla_owner     owns tables                       vanilla_app       logs in: requests of people
--   vanilla_definer   functions that check the tenant   vanilla_runtime   logs in: gateway and workers, EXECUTE only
--   vanilla_system    jobs across tenants               vanilla_readonly  logs in: reports
--   vanilla_keyring   context keys and their verifier   vanilla_operator  select and delete everywhere, maintenance
do $do$
declare
    v_role text;
    v_pair text[];
    v_super boolean := (select rolsuper from pg_roles where rolname = session_user);
    v_inherit boolean;
    v_set boolean;
begin
    if current_user <> session_user then
        raise exception 'run the migrations without set role' using errcode = '0A000';
    end if;
    foreach v_role in array array['vanilla_owner', 'vanilla_definer', 'vanilla_system', 'vanilla_keyring',
                                  'vanilla_operator', 'vanilla_app', 'vanilla_runtime', 'vanilla_readonly'] loop
        begin
            if not exists (select from pg_roles where rolname = v_role) then
                execute format('create role %I nologin noinherit', v_role);
            end if;
        exception when duplicate_object or unique_violation then null;  -- another database was first
        end;
    end loop;
    -- session user -> owner -> definer, system, keyring: may SET ROLE, inherits nothing
    -- operator is inherited: the seed's DELETE and SELECT statements work for a migrating non-superuser
    -- Supabase: its API roles inherit ours and cannot become them, so what is granted to ours once is granted to both
    foreach v_pair slice 1 in array array[[session_user::text, 'vanilla_owner'], ['vanilla_owner', 'vanilla_definer'],
                                          ['vanilla_owner', 'vanilla_system'], ['vanilla_owner', 'vanilla_keyring'],
                                          [session_user::text, 'vanilla_operator'],
                                          ['authenticated', 'vanilla_app'], ['service_role', 'vanilla_readonly']] loop
        continue when v_super and v_pair[1] = session_user::text;      -- a superuser may SET ROLE anyway
        continue when not exists (select from pg_roles where rolname = v_pair[1]);
        v_inherit := v_pair[2] in ('vanilla_operator', 'vanilla_app', 'vanilla_readonly');
        v_set := v_pair[2] not in ('vanilla_app', 'vanilla_readonly');
        if current_setting('server_version_num')::int < 160000 then
            continue when exists (select from pg_auth_members
                                  where roleid = v_pair[2]::regrole and member = v_pair[1]::regrole);
            execute format('grant %I to %I', v_pair[2], v_pair[1]);
        else
            continue when pg_has_role(v_pair[1], v_pair[2], case when v_set then 'SET' else 'USAGE' end);
            execute format('grant %I to %I with inherit %s, set %s', v_pair[2], v_pair[1], v_inherit::text, v_set::text);
        end if;
    end loop;
exception when insufficient_privilege then
    raise exception 'the vanilla_* roles of this cluster were made by another role: %', sqlerrm using
        errcode = '42501',
        hint = format('As a superuser: grant vanilla_owner, vanilla_definer, vanilla_system, vanilla_keyring, '
            'vanilla_operator, vanilla_app, vanilla_runtime, vanilla_readonly to %I with admin option', session_user);
end
$do$;

-- Default privileges that somebody set for our roles would grant what no line here grants: Supabase sets such for others.
do $do$
declare
    v record;
begin
    for v in
        select d.defaclrole::regrole as owner, coalesce(' in schema ' || quote_ident(n.nspname), '') as place,
               case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' else 'functions' end as objects,
               case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
        from pg_default_acl d
        left join pg_namespace n on n.oid = d.defaclnamespace
        cross join lateral aclexplode(d.defaclacl) a
        where d.defaclrole in ('vanilla_owner'::regrole, 'vanilla_definer'::regrole, 'vanilla_system'::regrole, 'vanilla_keyring'::regrole)
          and a.grantee <> d.defaclrole and d.defaclobjtype in ('r', 'S', 'f')
    loop
        execute format('set local role %s', v.owner);
        execute format('alter default privileges%s revoke all on %s from %s', v.place, v.objects, v.grantee);
        reset role;
    end loop;
end
$do$;

-- 2. ground --------------------------------------------------------------------------------------------------------
create schema if not exists vanilla authorization vanilla_owner;
grant usage, create on schema public to vanilla_owner;
-- no login makes objects: a table, type or cast left in a pooled session would be found before ours by the next request
revoke create on schema public from public;
do $do$
begin
    if (select rolsuper from pg_roles where rolname = session_user)
       or pg_has_role(session_user, (select datdba from pg_database where datname = current_database()), 'usage') then
        execute format('revoke temporary on database %I from public', current_database());
    end if;                                                   -- else it is for the database's owner to say
end
$do$;
set local role vanilla_owner;
-- the global form: IN SCHEMA cannot take away what PUBLIC has by default; each section repeats it for its owner
alter default privileges revoke execute on functions from public;
grant usage on schema vanilla to vanilla_definer, vanilla_system, vanilla_keyring, vanilla_operator,
    vanilla_app, vanilla_runtime, vanilla_readonly;
-- taken back before commit: a definer role owns objects but makes none at run time
grant create on schema vanilla to vanilla_definer, vanilla_system, vanilla_keyring;
reset role;   -- schema public belongs to pg_database_owner: only the database owner grants there
grant usage on schema public to vanilla_definer, vanilla_system, vanilla_operator,
    vanilla_app, vanilla_runtime, vanilla_readonly;
grant create on schema public to vanilla_definer, vanilla_system;
set local role vanilla_owner;

-- one name on every version; the polyfill keeps 12 sub-millisecond bits, without which the index grows past random ids
do $do$
begin
    if current_setting('server_version_num')::int >= 180000 then
        create or replace function vanilla.uuid7() returns uuid language sql volatile parallel safe
            as 'select pg_catalog.uuidv7()';
    else
        create or replace function vanilla.uuid7() returns uuid language sql volatile parallel safe as $f$
            select encode(
                substring(int8send(floor(extract(epoch from t) * 1000)::bigint) from 3)
                || int2send((28672 + floor(mod((extract(epoch from t) * 1000000)::numeric, 1000) * 4.096))::smallint)
                || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::pg_catalog.uuid
            from (select clock_timestamp() t) s $f$;
    end if;
end
$do$;
comment on function vanilla.uuid7() is 'A time-ordered UUID version 7.';

create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe
    as 'select pg_catalog.clock_timestamp()';
comment on function vanilla.clock() is 'The time of every rule. Tests replace it; running 001 again restores it.';

create or replace function vanilla.platform() returns uuid language sql immutable parallel safe
    return '00000000-0000-0000-0000-000000000000'::uuid;
comment on function vanilla.platform() is 'The tenant that owns platform-wide rows.';

-- Every refusal leaves through here: p_detail is a JSON object that API, CLI and console show.
create or replace function vanilla.refuse(p_sqlstate text, p_message text, p_detail jsonb default '{}', p_hint text default '')
returns void language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_hint = '' then
        raise exception '%', p_message using errcode = p_sqlstate, detail = p_detail::text;
    end if;
    raise exception '%', p_message using errcode = p_sqlstate, detail = p_detail::text, hint = p_hint;
end
$f$;
comment on function vanilla.refuse(text, text, jsonb, text) is
    'Raises an error of class VS with a JSON detail; docs/reference/errors.md lists the codes.';

grant execute on function vanilla.uuid7(), vanilla.clock(), vanilla.platform(), vanilla.refuse(text, text, jsonb, text)
    to vanilla_app, vanilla_readonly, vanilla_definer, vanilla_system, vanilla_operator, vanilla_keyring;

create table if not exists vanilla.schema_migrations (
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default clock_timestamp(),
    constraint schema_migrations_pkey primary key (name)
);
comment on table vanilla.schema_migrations is 'Files that vanilla-saas migrate has applied, with their SHA-256.';
grant select on vanilla.schema_migrations to vanilla_operator;      -- pg_dump

-- Files 002 to 010 begin with this, as 001 does in its own words: upgrades are forward only.
create or replace function vanilla.refuse_after_upgrade() returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if exists (select from vanilla.schema_migrations where name >= '011') then
        raise exception 'this database was upgraded after 010; the files before are not run over it' using errcode = 'VS409',
            hint = 'vanilla-saas migrate, or psql -f, with the files from 011 on.';
    end if;
end
$f$;
comment on function vanilla.refuse_after_upgrade() is
    'Raises VS409 when a file from 011 on was applied: running 001 to 010 again would undo it.';
grant execute on function vanilla.refuse_after_upgrade() to vanilla_operator;

create or replace function vanilla.begin_upgrade(p_name text) returns void language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    perform pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
    if p_name !~ '^[0-9]{3}_[a-z0-9_]+[.]sql$' or p_name < '011' then
        raise exception '% is not the name of an upgrade', p_name using errcode = '22023', hint = '011_what_it_does.sql, and later numbers.';
    end if;
    if exists (select from vanilla.schema_migrations where name >= p_name) then
        raise exception '% or a later upgrade was applied; nothing was changed', p_name using errcode = 'VS409';
    end if;
    insert into vanilla.schema_migrations (name, checksum) values (p_name, '');
end
$f$;
comment on function vanilla.begin_upgrade(text) is
    'First statement of an upgrade (011 and later), as vanilla_owner: each is applied once and in order. migrate writes the checksum.';

create or replace function vanilla.schema_files() returns jsonb language sql stable security definer set search_path = pg_catalog, pg_temp as $f$
    select coalesce(jsonb_object_agg(name, checksum), '{}') from vanilla.schema_migrations
$f$;
comment on function vanilla.schema_files() is
    'Applied files with their SHA-256, by which a server knows that this is its version of the base; empty after psql alone.';
grant execute on function vanilla.schema_files() to vanilla_app, vanilla_readonly, vanilla_runtime, vanilla_operator;

-- 3. tables --------------------------------------------------------------------------------------------------------
create table if not exists public.tenants (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    slug text not null,
    name text not null,
    status text not null default 'active',
    time_zone text not null default 'UTC',
    self_registration boolean not null default false,
    created_at timestamptz not null default clock_timestamp(),
    erase_at timestamptz,
    erased_at timestamptz,
    subscription_tier text,
    calls_stopped_until timestamptz,
    constraint tenants_pkey primary key (tenant_id, id),
    constraint tenants_self_check check (tenant_id = id),
    constraint tenants_slug_key unique (slug),
    constraint tenants_slug_check check (slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    constraint tenants_name_check check (name <> '' and octet_length(name) <= 200),
    constraint tenants_status_check check (status in ('active', 'suspended', 'closed')),
    constraint tenants_subscription_tier_check check (subscription_tier ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    constraint tenants_erase_check check (status = 'closed' or erase_at is null and erased_at is null)
);
create index if not exists tenants_erase_idx on public.tenants (tenant_id, erase_at) where erase_at is not null and erased_at is null;
comment on table public.tenants is 'A customer organisation of the platform; its status opens and closes all access.';
comment on column public.tenants.erase_at is 'When the grace of a closed tenant ends: until then it can be opened again, from then on the job closings erases it.';
comment on column public.tenants.subscription_tier is
    'The tenant''s own plan: the slug of a level of the platform, whose restrictions of tenants (007) bind it; null: none does.';
comment on column public.tenants.calls_stopped_until is
    'Until when calls are refused because the tenant has used the tokens of its plan; written by the job tenant_tokens (007).';
comment on column public.tenants.erased_at is 'When its last person, its secrets and its settings were gone; ledger, executions and logs stay until their retention.';

create table if not exists public.users (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    email text,
    external_id text,
    display_name text not null default '',
    role text not null default 'user',
    status text not null default 'active',
    password_hash text,
    must_change_password boolean not null default false,
    last_sign_in_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    constraint users_pkey primary key (tenant_id, id),
    constraint users_tenant_email_key unique (tenant_id, email),
    constraint users_tenant_external_id_key unique (tenant_id, external_id),
    constraint users_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint users_name_check check (email is not null or external_id is not null or status = 'deleted'),
    constraint users_email_check check (email = lower(email) and email ~ '^[^@[:space:]]+@[^@[:space:]]+$' and octet_length(email) <= 254),
    constraint users_external_id_check check (external_id <> '' and octet_length(external_id) <= 128),
    constraint users_display_name_check check (octet_length(display_name) <= 200),
    constraint users_role_check check (role in ('user', 'admin', 'superadmin')),
    -- super admins are the users of the platform tenant, and nobody else is
    constraint users_platform_check check ((role = 'superadmin') = (tenant_id = '00000000-0000-0000-0000-000000000000')),
    constraint users_status_check check (status in ('active', 'disabled', 'deleted'))
);
create index if not exists users_created_idx on public.users (tenant_id, created_at, id);
-- not led by tenant_id: the operator names a user by id alone, as adjust_user_tokens promises
create index if not exists users_id_idx on public.users (id);
comment on table public.users is 'A person or, by external_id, a customer''s own user that a key pays for.';

create table if not exists public.levels (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    slug text not null,
    name text not null,
    description text not null default '',
    tier integer not null default 0,
    is_default boolean not null default false,
    is_template boolean not null default true,
    status text not null default 'active',
    restrictions jsonb,
    created_at timestamptz not null default clock_timestamp(),
    constraint levels_pkey primary key (tenant_id, id),
    constraint levels_tenant_slug_key unique (tenant_id, slug),
    constraint levels_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint levels_slug_check check (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    constraint levels_status_check check (status in ('active', 'retired'))
);
create unique index if not exists levels_tenant_default_idx on public.levels (tenant_id) where is_default;
comment on table public.levels is 'What a user is on inside a tenant; tier ranks it. The platform''s rows are copied into new tenants.';
comment on column public.levels.is_template is
    'Of the platform''s levels: copied into new tenants, as the default one always is. Others are plans of tenants only.';
comment on column public.levels.restrictions is
    'Copy of the level''s rows of level_restrictions (007), which admit_call reads with the caller; null: none.';

create table if not exists public.level_token_policies (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    level_id uuid not null,
    base_allocation bigint not null default 0,
    monthly_allocation bigint not null default 0,
    period text not null default 'month',
    period_anchor text not null default 'calendar',
    rollover_percent integer not null default 0,
    rollover_cap bigint,
    monthly_cap bigint,
    enforcement_mode text not null default 'hard',
    warning_percent integer not null default 20,
    constraint level_token_policies_pkey primary key (tenant_id, id),
    constraint level_token_policies_level_key unique (tenant_id, level_id),
    constraint level_token_policies_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint level_token_policies_amounts_check check (base_allocation between 0 and 1000000000000000
        and monthly_allocation between 0 and 1000000000000000 and rollover_cap between 0 and 1000000000000000
        and monthly_cap between 0 and 1000000000000000),
    constraint level_token_policies_period_check check (period in ('day', 'week', 'month', 'year')),
    constraint level_token_policies_period_anchor_check check (period_anchor in ('calendar', 'anniversary')),
    constraint level_token_policies_rollover_percent_check check (rollover_percent between 0 and 100),
    constraint level_token_policies_warning_percent_check check (warning_percent between 0 and 100),
    constraint level_token_policies_enforcement_mode_check check (enforcement_mode in ('hard', 'warn', 'monitor'))
);
comment on table public.level_token_policies is
    'Tokens of a level: once on joining (base), every period (monthly), rollover of the unused, cap, enforcement.';

create table if not exists public.user_token_policies (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    monthly_allocation bigint,
    rollover_percent integer,
    rollover_cap bigint,
    monthly_cap bigint,
    enforcement_mode text,
    warning_percent integer,
    trial_allocation bigint,
    constraint user_token_policies_pkey primary key (tenant_id, id),
    constraint user_token_policies_user_key unique (tenant_id, user_id),
    constraint user_token_policies_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint user_token_policies_amounts_check check (monthly_allocation between 0 and 1000000000000000
        and rollover_cap between 0 and 1000000000000000 and monthly_cap between 0 and 1000000000000000
        and trial_allocation between 0 and 1000000000000000),
    constraint user_token_policies_rollover_percent_check check (rollover_percent between 0 and 100),
    constraint user_token_policies_warning_percent_check check (warning_percent between 0 and 100),
    constraint user_token_policies_enforcement_mode_check check (enforcement_mode in ('hard', 'warn', 'monitor'))
);
comment on table public.user_token_policies is 'A user''s exceptions to the policy of the level; null means as the level says.';
comment on column public.user_token_policies.trial_allocation is
    'Tokens a period while a trial runs, before every other allocation: a trial''s own tokens are a grant (007).';

-- Everything that a debit must check is in this one row. No index covers a column that a debit changes: updates stay HOT.
create table if not exists public.user_token_wallets (
    tenant_id uuid not null,
    user_id uuid not null,
    available_tokens bigint not null default 0,
    reserved_tokens bigint not null default 0,
    borrowed_tokens bigint not null default 0,
    spent_tokens bigint not null default 0,
    burn bigint not null default 0,
    seq bigint not null default 0,
    next_event_at timestamptz not null default 'infinity',
    period_start timestamptz,
    next_reset_at timestamptz,
    anchor_at timestamptz not null default clock_timestamp(),
    last_entry_at timestamptz not null default '-infinity',
    level_id uuid,
    epoch integer not null default 0,
    status text not null default 'active',
    enforcement_mode text not null default 'hard',
    warn_below bigint,
    head bytea not null default '\x',
    constraint user_token_wallets_pkey primary key (tenant_id, user_id),
    constraint user_token_wallets_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint user_token_wallets_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    -- each statement reads the stored text of the checks anew: here and in the ledger they are written to be short
    constraint user_token_wallets_amounts_check check (least(available_tokens, reserved_tokens, borrowed_tokens, spent_tokens) >= 0),
    constraint user_token_wallets_status_check check (status ~ '^(active|locked|suspended|closed)$'),
    constraint user_token_wallets_enforcement_mode_check check (enforcement_mode ~ '^(hard|warn|monitor)$')
) with (fillfactor = 70);
-- level first: led by tenant_id it would cost an empty table as little as the primary key does, and a session that plans
-- then and imports users in one transaction would read every wallet of the tenant for each of them
create index if not exists user_token_wallets_level_idx on public.user_token_wallets (level_id, tenant_id);
create index if not exists user_token_wallets_event_idx on public.user_token_wallets (tenant_id, next_event_at) where next_event_at < 'infinity';
-- the job closings looks among these few for wallets of erased users; no debit changes a status, so updates stay HOT
create index if not exists user_token_wallets_suspended_idx on public.user_token_wallets (tenant_id, user_id) where status = 'suspended';
comment on table public.user_token_wallets is
    'The counter. available = remaining of active grants - burn; balance = available - borrowed = sum of ledger amounts.';
comment on column public.user_token_wallets.burn is 'Consumed since the last fold, not yet taken from the grants.';
comment on column public.user_token_wallets.epoch is 'Counts folds: a hold of an older epoch is given back grant by grant.';
comment on column public.user_token_wallets.next_event_at is 'When a grant starts, lapses or the period ends, whichever is first.';

create table if not exists public.user_token_grants (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    kind text not null,
    priority smallint not null default 50,
    amount bigint not null,
    remaining bigint not null,
    effective_at timestamptz not null,
    expires_at timestamptz not null default 'infinity',
    state text not null default 'active',
    level_id uuid,
    idempotency_key text,
    request_hash bytea,
    created_at timestamptz not null default clock_timestamp(),
    reason text,
    metadata jsonb,
    void_reason text,
    void_key text,
    constraint user_token_grants_pkey primary key (tenant_id, id),
    constraint user_token_grants_wallet_fkey foreign key (tenant_id, user_id)
        references public.user_token_wallets (tenant_id, user_id),
    constraint user_token_grants_kind_check check (kind in ('base', 'plan', 'rollover', 'purchase', 'promo', 'trial', 'refund', 'adjustment')),
    constraint user_token_grants_state_check check (state in ('scheduled', 'active', 'expired', 'voided')),
    constraint user_token_grants_amount_check check (amount > 0 and remaining between 0 and amount),
    constraint user_token_grants_times_check check (expires_at > effective_at)
);
create unique index if not exists user_token_grants_idempotency_idx
    on public.user_token_grants (tenant_id, user_id, idempotency_key) where idempotency_key is not null;
create index if not exists user_token_grants_user_idx on public.user_token_grants (tenant_id, user_id, priority, expires_at, id);
comment on table public.user_token_grants is
    'Tokens given. Burned by (priority, expires_at, id); touched only when a wallet is folded.';
comment on column public.user_token_grants.reason is 'Why it was given by hand; a scheduled grant brings it to the ledger when it begins.';
comment on column public.user_token_grants.void_reason is 'Set when it was voided by hand: then coming back to the level does not restore it.';

-- Written only by functions that hold the wallet's row, and wallets are never deleted: checks/grants_of_another_tenant.sql
-- stands for the foreign key. The index it needs, (tenant_id, user_id), would cost more than its two writes a call: before
-- the first ANALYZE the planner prefers it to the primary key, and every settlement reads all holds of the tenant.
create table if not exists public.user_token_holds (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    amount bigint not null,
    requested bigint not null,
    settled bigint,
    state text not null default 'open',
    epoch integer not null,
    expires_at timestamptz not null,
    reference_type text,
    reference_id uuid,
    execution_id uuid,
    api_key_id uuid,
    call jsonb,
    created_at timestamptz not null default clock_timestamp(),
    closed_at timestamptz,
    constraint user_token_holds_pkey primary key (tenant_id, id),
    constraint user_token_holds_state_check check (state in ('open', 'settled', 'released', 'expired')),
    constraint user_token_holds_amount_check check (amount >= 0 and requested >= amount and settled >= 0),
    constraint user_token_holds_closed_check check ((state = 'open') = (closed_at is null))
) with (fillfactor = 80);
create index if not exists user_token_holds_open_idx on public.user_token_holds (tenant_id, user_id, expires_at) where state = 'open';
create index if not exists user_token_holds_reference_idx on public.user_token_holds (tenant_id, reference_id) where reference_id is not null;
comment on table public.user_token_holds is 'Tokens reserved for one call or step; nobody releases another flow''s hold.';
comment on column public.user_token_holds.requested is 'What was asked for; in warn and monitor mode amount may be less.';
comment on column public.user_token_holds.call is 'Of a metered call: model, prices and weights as they were at admission.';

-- Append-only: no role has UPDATE, DELETE or TRUNCATE. The row is written by the statement that holds the wallet row,
-- and wallets are never deleted, so checks/ledger_without_wallet.sql stands for the foreign key (12 to 18 us a call).
create table if not exists public.user_token_ledger (
    tenant_id uuid not null,
    user_id uuid not null,
    seq bigint not null,
    id uuid not null,
    created_at timestamptz not null,
    amount bigint not null,
    reserved_amount bigint not null,
    available_after bigint not null,
    reserved_after bigint not null,
    borrowed_after bigint not null,
    direction text not null,
    reason text not null,
    source text not null,
    reference_type text,
    reference_id uuid,
    execution_id uuid,
    hold_id uuid,
    grant_id uuid,
    actor_id uuid,
    idempotency_key text,
    request_hash bytea,
    metadata jsonb not null default '{}',
    hash bytea not null,
    constraint user_token_ledger_pkey primary key (tenant_id, user_id, seq),
    constraint user_token_ledger_direction_check check (direction ~ '^(credit|debit|reserve|release|adjustment|settle|debt|expire|void)$'),
    constraint user_token_ledger_seq_check check (seq > 0)
);
create unique index if not exists user_token_ledger_idempotency_idx
    on public.user_token_ledger (tenant_id, user_id, idempotency_key) where idempotency_key is not null;
create index if not exists user_token_ledger_execution_idx
    on public.user_token_ledger (tenant_id, execution_id) where execution_id is not null;
create index if not exists user_token_ledger_created_idx on public.user_token_ledger using brin (tenant_id, created_at);
comment on table public.user_token_ledger is
    'One row per change of a wallet: gap-free seq, signed amounts, SHA-256 chain (hash covers the row and the hash before it).';
comment on column public.user_token_ledger.amount is 'Change of available - borrowed; sums to the balance.';
comment on column public.user_token_ledger.reserved_amount is 'Change of reserved; sums to what is held.';
revoke update, delete, truncate on public.user_token_ledger from vanilla_owner;      -- owning it is not a way around

create table if not exists public.ai_providers (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    slug text not null,
    name text not null,
    kind text not null,
    base_url text,
    secret bytea,
    secret_hint text,
    status text not null default 'active',
    created_at timestamptz not null default clock_timestamp(),
    constraint ai_providers_pkey primary key (tenant_id, id),
    constraint ai_providers_tenant_slug_key unique (tenant_id, slug),
    constraint ai_providers_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint ai_providers_slug_check check (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    constraint ai_providers_kind_check check (kind in ('openai', 'anthropic', 'google', 'custom', 'sandbox')),
    constraint ai_providers_base_url_check check (coalesce(base_url ~ '^https?://', kind = 'sandbox')),
    constraint ai_providers_status_check check (status in ('active', 'disabled'))
);
comment on table public.ai_providers is 'Where models are called; secret is AES-256-GCM ciphertext that only the runtime decrypts.';

create table if not exists public.ai_models (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    provider_tenant_id uuid not null,
    provider_id uuid not null,
    slug text not null,
    upstream_model text not null,
    name text not null,
    kind text not null default 'chat',
    context_window integer,
    max_output_tokens integer,
    input_price bigint,
    output_price bigint,
    cached_input_price bigint,
    input_weight numeric(12, 6) not null default 1,
    output_weight numeric(12, 6) not null default 1,
    cached_input_weight numeric(12, 6) not null default 1,
    price_source text not null default '',
    status text not null default 'active',
    created_at timestamptz not null default clock_timestamp(),
    constraint ai_models_pkey primary key (tenant_id, id),
    constraint ai_models_tenant_slug_key unique (tenant_id, slug),
    constraint ai_models_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint ai_models_provider_fkey foreign key (provider_tenant_id, provider_id) references public.ai_providers (tenant_id, id),
    constraint ai_models_provider_check check (provider_tenant_id in (tenant_id, '00000000-0000-0000-0000-000000000000')),
    constraint ai_models_slug_check check (slug ~ '^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$'),
    constraint ai_models_kind_check check (kind in ('chat', 'embedding')),
    constraint ai_models_sizes_check check (context_window > 0 and max_output_tokens > 0),
    constraint ai_models_prices_check check (input_price >= 0 and output_price >= 0 and cached_input_price >= 0),
    constraint ai_models_weights_check check (input_weight >= 0 and output_weight >= 0
        and cached_input_weight between 0 and input_weight),
    constraint ai_models_status_check check (status in ('active', 'deprecated', 'disabled'))
);
create index if not exists ai_models_provider_idx on public.ai_models (provider_tenant_id, provider_id);
comment on table public.ai_models is
    'Models that can be called. Prices: micros of USD per million tokens. Weights: wallet tokens per model token.';

create table if not exists public.api_keys (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    name text not null,
    prefix text not null,
    key_hash bytea not null,
    scopes text[] not null default '{chat}',
    budget_tokens bigint,
    used_tokens bigint not null default 0,
    expires_at timestamptz not null default 'infinity',
    revoked_at timestamptz,
    last_used_at timestamptz,
    engine_tenant_id uuid,
    engine_id uuid,
    engine_ref text,
    created_at timestamptz not null default clock_timestamp(),
    constraint api_keys_pkey primary key (tenant_id, id),
    constraint api_keys_key_hash_key unique (key_hash),      -- 256 random bits: finds the tenant, tells nothing
    constraint api_keys_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint api_keys_name_check check (name <> '' and octet_length(name) <= 200),
    constraint api_keys_key_hash_check check (octet_length(key_hash) = 32),
    constraint api_keys_scopes_check check ((scopes <@ array['chat', 'read', 'admin', 'act_as', 'act_as:create'] or scopes = '{engine}')
        and cardinality(scopes) > 0),
    constraint api_keys_engine_check check (num_nonnulls(engine_tenant_id, engine_id, engine_ref) = case when scopes = '{engine}' then 3 else 0 end
        and engine_tenant_id in (tenant_id, '00000000-0000-0000-0000-000000000000')),
    constraint api_keys_budget_check check (budget_tokens > 0 and used_tokens >= 0)
) with (fillfactor = 80);
create index if not exists api_keys_user_idx on public.api_keys (tenant_id, user_id);
create index if not exists api_keys_created_idx on public.api_keys (tenant_id, created_at, id);
comment on table public.api_keys is 'Keys of programs: shown once, kept as prefix and SHA-256; budget in tokens over the key''s life.';
comment on column public.api_keys.engine_ref is 'Of a key that runs one engine (005) and nothing else: by which name it does.';

create table if not exists public.sessions (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    family_id uuid not null,
    token_hash bytea not null,
    refresh_hash bytea not null,
    expires_at timestamptz not null,
    refresh_expires_at timestamptz not null,
    rotated_at timestamptz,
    revoked_at timestamptz,
    ip text,
    user_agent text,
    created_at timestamptz not null default clock_timestamp(),
    constraint sessions_pkey primary key (tenant_id, id),
    constraint sessions_token_hash_key unique (token_hash),
    constraint sessions_refresh_hash_key unique (refresh_hash),
    constraint sessions_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id)
);
create index if not exists sessions_user_idx on public.sessions (tenant_id, user_id);
create index if not exists sessions_family_idx on public.sessions (tenant_id, family_id);
comment on table public.sessions is 'Sign-ins. A refresh token is used once: the second use revokes its whole family.';

create table if not exists public.one_time_tokens (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    purpose text not null,
    token_hash bytea not null,
    expires_at timestamptz not null,
    used_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    constraint one_time_tokens_pkey primary key (tenant_id, id),
    constraint one_time_tokens_token_hash_key unique (token_hash),
    constraint one_time_tokens_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint one_time_tokens_purpose_check check (purpose in ('set_password', 'claim_super_admin'))
);
create index if not exists one_time_tokens_user_idx on public.one_time_tokens (tenant_id, user_id);
comment on table public.one_time_tokens is 'A link that sets a password once.';

-- Failures are counted by subject, not by user: an unknown address is throttled like a known one.
create table if not exists public.sign_in_throttles (
    tenant_id uuid not null,
    subject_hash bytea not null,
    failures integer not null,
    window_ends_at timestamptz not null,
    constraint sign_in_throttles_pkey primary key (tenant_id, subject_hash)
);
comment on table public.sign_in_throttles is 'Failed sign-ins per address and per network, over fifteen minutes.';

create table if not exists public.tenant_openings (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    reason text not null,
    expires_at timestamptz not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint tenant_openings_pkey primary key (tenant_id, id),
    constraint tenant_openings_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint tenant_openings_reason_check check (btrim(reason) <> '')
);
create index if not exists tenant_openings_user_idx on public.tenant_openings (tenant_id, user_id, expires_at);
comment on table public.tenant_openings is 'A super admin entered a tenant, why and until when; user_id is of the platform tenant.';

create table if not exists public.system_configurations (
    tenant_id uuid not null,
    key text not null,
    value jsonb not null,
    is_public boolean not null default false,
    description text not null default '',
    updated_at timestamptz not null default clock_timestamp(),
    constraint system_configurations_pkey primary key (tenant_id, key),
    constraint system_configurations_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint system_configurations_key_check check (key ~ '^[a-z][a-z0-9_.]{0,99}$'),
    -- what is dropped does not come back: a mistyped period is refused here, however it is written
    constraint system_configurations_retention_check check (key !~ '^retention\.' or
        tenant_id = '00000000-0000-0000-0000-000000000000' and case
            when key ~ '^retention\.(export|whole_months)$' then jsonb_typeof(value) = 'boolean'
            when key !~ '^retention\.[a-z_]+_days$' or jsonb_typeof(value) <> 'number' then false
            else (value #>> '{}')::numeric >= case key when 'retention.audit_logs_days' then 365 else 7 end
                and (value #>> '{}')::numeric <= 36500      -- not between: read back from a dump it would print otherwise
                and (value #>> '{}')::numeric % 1 = 0 end),
    -- a word in its place would refuse every call of the tenant
    constraint system_configurations_gateway_check check (key <> 'gateway.min_output_tokens' or case
            when jsonb_typeof(value) <> 'number' then false
            else (value #>> '{}')::numeric >= 1 and (value #>> '{}')::numeric <= 1000000 and (value #>> '{}')::numeric % 1 = 0 end),
    constraint system_configurations_tenants_check check (key !~ '^tenants\.' or
        tenant_id = '00000000-0000-0000-0000-000000000000' and case
            when key <> 'tenants.grace_days' or jsonb_typeof(value) <> 'number' then false
            else (value #>> '{}')::numeric >= 0 and (value #>> '{}')::numeric <= 36500 and (value #>> '{}')::numeric % 1 = 0 end)
);
comment on table public.system_configurations is
    'Settings the runtime reads: the tenant''s value, else the platform''s. Public rows are readable by all, others by admins.';

create table if not exists public.ai_executions (
    tenant_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    api_key_id uuid,
    provider_id uuid,
    model_id uuid,
    hold_id uuid,
    provider text not null,
    model text not null,
    status text not null,
    error_code text,
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    cached_input_tokens bigint not null default 0,
    reasoning_tokens bigint not null default 0,
    charged_tokens bigint not null default 0,
    cost_micros bigint not null default 0,
    latency_ms integer,
    first_token_ms integer,
    streamed boolean not null default false,
    usage_estimated boolean not null default false,
    request_id text,
    constraint ai_executions_pkey primary key (tenant_id, created_at, id),
    constraint ai_executions_status_check check (status in ('succeeded', 'failed', 'cancelled', 'abandoned'))
) partition by range (created_at);
create index if not exists ai_executions_user_idx on public.ai_executions (tenant_id, user_id, created_at desc);
create index if not exists ai_executions_id_idx on public.ai_executions (tenant_id, id);
comment on table public.ai_executions is
    'One row per model call: abandoned = the process died and the hold ran out. cost_micros: micros of USD.';

create table if not exists public.audit_logs (
    tenant_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    id uuid not null default vanilla.uuid7(),
    actor_id uuid,
    actor_role text not null,
    action text not null,
    target_type text,
    target_id uuid,
    details jsonb not null default '{}',
    ip text,
    request_id text,
    constraint audit_logs_pkey primary key (tenant_id, created_at, id)
) partition by range (created_at);
create index if not exists audit_logs_action_idx on public.audit_logs (tenant_id, action, created_at desc);
comment on table public.audit_logs is 'Every act that concerns security or money. Insert-only until retention ends.';

-- Events and webhooks: section 9 writes them. An event is written once; what happens to it on its way to an endpoint is a
-- delivery, what one try came to an attempt. The body that is signed is made from the event: the same bytes at every try.
create table if not exists public.events (
    tenant_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    id uuid not null default vanilla.uuid7(),
    type text not null,
    user_id uuid,
    payload jsonb not null default '{}',
    constraint events_pkey primary key (tenant_id, created_at, id),
    constraint events_type_check check (type ~ '^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$')
) partition by range (created_at);
create index if not exists events_type_idx on public.events (tenant_id, type, created_at desc);
comment on table public.events is 'What happened in a tenant that programs may want to hear of. Insert-only until retention ends.';
comment on column public.events.user_id is 'Whom it is about, if anyone.';

create table if not exists public.webhook_endpoints (
    tenant_id uuid not null,
    id uuid not null,
    url text not null,
    description text not null default '',
    event_types text[] not null,
    status text not null default 'active',
    disabled_reason text,
    secret bytea not null,
    previous_secret bytea,
    previous_secret_until timestamptz,
    concurrency integer not null default 4,
    failing_since timestamptz,
    execution_id uuid,
    config_id text,
    context_id text,
    created_at timestamptz not null default clock_timestamp(),
    constraint webhook_endpoints_pkey primary key (tenant_id, id),
    constraint webhook_endpoints_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint webhook_endpoints_url_check check (url ~ '^https?://' and octet_length(url) <= 2048),
    constraint webhook_endpoints_description_check check (octet_length(description) <= 500),
    constraint webhook_endpoints_event_types_check check (cardinality(event_types) between 1 and 100),
    constraint webhook_endpoints_status_check check (status in ('active', 'disabled')),
    constraint webhook_endpoints_concurrency_check check (concurrency between 1 and 32),
    constraint webhook_endpoints_task_check check (num_nulls(execution_id, config_id, context_id) in (0, 3)),
    constraint webhook_endpoints_config_check check (octet_length(config_id) between 1 and 255 and octet_length(context_id) between 1 and 255)
);
-- events look at the webhooks of a tenant, however many tasks tell theirs
create index if not exists webhook_endpoints_created_idx on public.webhook_endpoints (tenant_id, created_at, id) where execution_id is null;
create unique index if not exists webhook_endpoints_config_key on public.webhook_endpoints (tenant_id, execution_id, config_id);
comment on table public.webhook_endpoints is
    'Where events are sent: the webhooks of a tenant, and with an execution the push notifications of that task. Secrets are AES-256-GCM ciphertext that only the runtime decrypts.';
comment on column public.webhook_endpoints.event_types is 'Types, or *, or token.* for all of a group.';
comment on column public.webhook_endpoints.previous_secret is 'Signs beside the new one until previous_secret_until.';
comment on column public.webhook_endpoints.concurrency is 'Deliveries in flight at once, over all processes.';
comment on column public.webhook_endpoints.failing_since is 'The first failure since the last success.';
comment on column public.webhook_endpoints.execution_id is
    'Of a push notification (006): the execution that alone is told to it, in its order. Then it is no webhook of the tenant''s, and secret holds token and credentials.';
comment on column public.webhook_endpoints.config_id is 'What the client calls it, one of a task''s.';
comment on column public.webhook_endpoints.context_id is 'The context that the client has the task in.';

create table if not exists public.webhook_deliveries (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    endpoint_id uuid not null,
    event_created_at timestamptz not null,
    event_id uuid not null,
    cause text not null default 'event',
    state text not null default 'pending',
    attempts integer not null default 0,
    next_attempt_at timestamptz not null,
    lease_id uuid,
    last_status_code integer,
    last_error text,
    last_duration_ms integer,
    delivered_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    constraint webhook_deliveries_pkey primary key (tenant_id, id),
    constraint webhook_deliveries_endpoint_fkey foreign key (tenant_id, endpoint_id)
        references public.webhook_endpoints (tenant_id, id),
    constraint webhook_deliveries_cause_check check (cause in ('event', 'redelivery', 'test')),
    constraint webhook_deliveries_state_check check (state in ('pending', 'failed', 'delivered', 'dead')),
    constraint webhook_deliveries_delivered_check check ((state = 'delivered') = (delivered_at is not null))
) with (fillfactor = 80);
create index if not exists webhook_deliveries_endpoint_idx on public.webhook_deliveries (tenant_id, endpoint_id, created_at, id);
create index if not exists webhook_deliveries_open_idx on public.webhook_deliveries (tenant_id, endpoint_id, next_attempt_at, id)
    where state in ('pending', 'failed');
create index if not exists webhook_deliveries_created_idx on public.webhook_deliveries using brin (tenant_id, created_at);
comment on table public.webhook_deliveries is
    'One event on its way to one endpoint: pending, failed (to be tried again), delivered or dead.';
comment on column public.webhook_deliveries.lease_id is
    'Set while a sender has it, until next_attempt_at; only who holds the lease records the outcome.';

create table if not exists public.webhook_attempts (
    tenant_id uuid not null,
    delivery_id uuid not null,
    attempt integer not null,
    status_code integer,
    error text,
    duration_ms integer,
    created_at timestamptz not null default clock_timestamp(),
    constraint webhook_attempts_pkey primary key (tenant_id, delivery_id, attempt),
    constraint webhook_attempts_delivery_fkey foreign key (tenant_id, delivery_id)
        references public.webhook_deliveries (tenant_id, id),
    constraint webhook_attempts_attempt_check check (attempt > 0)
);
comment on table public.webhook_attempts is 'What every try of a delivery came to; error is null when it was delivered.';

-- Work that time brings; section "schedules" of 002 runs it. The platform's rows are jobs over all tenants.
create table if not exists public.schedules (
    tenant_id uuid not null,
    name text not null,
    description text not null,
    kind text not null default 'sql',
    period interval not null,
    enabled boolean not null default true,
    slots_from timestamptz not null default '2026-01-01 00:00+00',
    next_run_at timestamptz not null,
    requested_at timestamptz,
    started_at timestamptz,
    progress jsonb not null default '{}',
    last_run_at timestamptz,
    last_duration_ms bigint,
    last_result jsonb,
    last_error text,
    failures integer not null default 0,
    part_size integer not null default 20,
    longest_gap interval,
    held_since timestamptz,
    constraint schedules_pkey primary key (tenant_id, name),
    constraint schedules_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint schedules_name_check check (name ~ '^[a-z][a-z0-9_]{0,99}$'),
    constraint schedules_kind_check check (kind in ('sql', 'python')),
    -- a month has no length that a grid of slots could be made of
    constraint schedules_period_check check (period between interval '1 second' and interval '366 days'
        and extract(month from period) = 0 and extract(year from period) = 0),
    constraint schedules_figures_check check (failures >= 0 and part_size between 1 and 10000)
);
comment on table public.schedules is
    'Jobs, one row each: what it does, how often, when next, and what its last run came to. docs/design/operations.md.';
comment on column public.schedules.kind is 'sql: vanilla.job_<name>, in parts; python: a coroutine that serving processes register under the name.';
comment on column public.schedules.slots_from is 'Slots are whole periods from here, so a daily job keeps its hour.';
comment on column public.schedules.next_run_at is 'The next slot, sooner after a failure.';
comment on column public.schedules.requested_at is 'Set when somebody asked for a run out of turn, until it has run.';
comment on column public.schedules.started_at is 'Since when a run in parts is under way; progress is what its parts came to so far.';
comment on column public.schedules.failures is 'Since the last success; tried again after 30 s, doubled each time, at most an hour.';
comment on column public.schedules.part_size is 'Rows or wallets in the next part; tuned so that a part takes 15 to 40 ms.';
comment on column public.schedules.longest_gap is
    'Of a job that cannot be undone: when the clock is further ahead of the last run than this, it waits as long once.';

create table if not exists public.log_exports (
    tenant_id uuid not null,
    log_table text not null,
    month date not null,
    rows bigint not null,
    bytes bigint not null,
    sha256 bytea not null,
    location text not null,
    created_at timestamptz not null default clock_timestamp(),
    dropped_at timestamptz,
    constraint log_exports_pkey primary key (tenant_id, log_table, month),
    constraint log_exports_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint log_exports_sizes_check check (rows >= 0 and bytes > 0),
    constraint log_exports_digest_check check (octet_length(sha256) = 32)
);
comment on table public.log_exports is
    'Months of log tables that were written to a file before they left; with retention.export on, none is dropped without.';

-- 4. log partitions ------------------------------------------------------------------------------------------------
create or replace function vanilla.ensure_partitions(p_months integer default 3) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_parent record;
    v_months text;
    v_left boolean;
    v_from date;
    v_bounds text;
    v_name text;
    v_made integer := 0;
begin
    if p_months not between 0 and 24 then
        perform vanilla.refuse('VS400', format('months ahead must be 0 to 24, not %s', p_months));
    end if;
    for v_parent in
        select c.oid::regclass as name, c.relname, d.oid as default_oid, d.oid::regclass as default_name
        from pg_class c
        join pg_partitioned_table p on p.partrelid = c.oid
        left join pg_class d on d.oid = p.partdefid
        where c.relnamespace = 'public'::regnamespace and c.relowner = 'vanilla_owner'::regrole
        order by c.relname
    loop
        if v_parent.default_oid is null then
            execute format('create table public.%I partition of %s default', v_parent.relname || '_default', v_parent.name);
            perform vanilla.repair_protection(format('public.%I', v_parent.relname || '_default')::regclass);
            v_parent.default_name := format('public.%I', v_parent.relname || '_default')::regclass;
        end if;
        v_months := 'select (date_trunc(''month'', vanilla.clock() at time zone ''UTC'') + make_interval(months => n))::date'
            ' from generate_series(0, $1) n';
        v_left := pg_relation_size(v_parent.default_name) > 0;      -- costs no scan, on every tick
        if v_left then                                              -- months that passed while nobody ticked
            v_months := v_months || format(' union select date_trunc(''month'', created_at at time zone ''UTC'')::date from %s',
                v_parent.default_name);
        end if;
        for v_from in execute v_months using p_months loop
            v_name := v_parent.relname || '_' || to_char(v_from, 'YYYYMM');
            continue when to_regclass(format('public.%I', v_name)) is not null;
            -- +00 in the bounds: a bare date would mean another instant in another session's time zone
            v_bounds := format('for values from (%L) to (%L)',
                v_from || ' 00:00:00+00', (v_from + interval '1 month')::date || ' 00:00:00+00');
            execute format('create table public.%I (like %s including defaults including constraints)', v_name, v_parent.name);
            -- rows of that month that arrived before it was made
            execute format('with moved as (delete from %s where created_at >= %L and created_at < %L returning *) '
                'insert into public.%I select * from moved', v_parent.default_name,
                v_from || ' 00:00:00+00', (v_from + interval '1 month')::date || ' 00:00:00+00', v_name);
            execute format('alter table %s attach partition public.%I %s', v_parent.name, v_name, v_bounds);
            perform vanilla.repair_protection(format('public.%I', v_name)::regclass);
            v_made := v_made + 1;
        end loop;
        if v_left and v_made > 0 then      -- attaching has locked it: when all rows have moved, none comes in between
            execute format('select exists (select from %s)', v_parent.default_name) into v_left;
            if not v_left then execute format('truncate only %s', v_parent.default_name); end if;
        end if;
    end loop;
    return v_made;
end
$f$;
comment on function vanilla.ensure_partitions(integer) is
    'Makes the monthly partitions of every log table, this month to p_months ahead and those of rows in the default one; returns how many.';
grant execute on function vanilla.ensure_partitions(integer) to vanilla_runtime, vanilla_system, vanilla_operator, vanilla_definer;

create or replace function vanilla.log_months() returns table (log_table regclass, month regclass, from_at timestamptz, until_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select p.oid::regclass, c.oid::regclass, b.bounds[1]::timestamptz, b.bounds[2]::timestamptz
    from pg_class p
    join pg_inherits i on i.inhparent = p.oid
    join pg_class c on c.oid = i.inhrelid
    -- written and read in the same session, so whatever its time zone and date style the instant is the same
    cross join lateral (select regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM [(]''([^'']+)''[)] TO [(]''([^'']+)''[)]') as bounds) b
    where p.relkind = 'p' and p.relnamespace = 'public'::regnamespace and p.relowner = 'vanilla_owner'::regrole and b.bounds is not null
$f$;
comment on function vanilla.log_months() is 'The partitions of every log table with their bounds, without the default ones.';

-- The parent is locked against everybody for the moment of detaching: who finds it in use gives up soon, because all who
-- come later would wait behind.
create or replace function vanilla.drop_log_month(p_month regclass, p_before timestamptz, p_rows bigint default null) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $f$
declare
    v_log regclass := (select m.log_table from vanilla.log_months() m where m.month = p_month and m.until_at <= p_before);
    v_rows bigint;
    v_bytes bigint := pg_total_relation_size(p_month);
begin
    if v_log is null then
        perform vanilla.refuse('VS409', format('%s is not a month of a log table that had ended by %s', p_month, p_before));
    end if;
    if p_rows is not null then
        execute format('lock table only %s in share mode', p_month);      -- nothing comes in between counting and dropping
        execute format('select count(*) from only %s', p_month) into v_rows;
        if v_rows <> p_rows then return null; end if;
    end if;
    execute format('alter table %s detach partition %s', v_log, p_month);
    execute format('drop table %s', p_month);
    return v_bytes;
end
$f$;
comment on function vanilla.drop_log_month(regclass, timestamptz, bigint) is
    'Detaches and drops a month of a log table that ended by p_before; returns the bytes it had, or null, and drops nothing, when it does not have p_rows rows.';

create or replace function vanilla.delete_log_rows(p_month regclass, p_before timestamptz, p_limit integer) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_deleted integer;
begin
    if not exists (select from vanilla.log_months() m where m.month = p_month) then
        perform vanilla.refuse('VS409', format('%s is not a month of a log table', p_month));
    end if;
    execute format('delete from only %s where ctid = any (array(select ctid from only %1$s where created_at < $1 limit $2))', p_month)
        using p_before, p_limit;
    get diagnostics v_deleted = row_count;
    return v_deleted;
end
$f$;
comment on function vanilla.delete_log_rows(regclass, timestamptz, integer) is
    'Deletes up to p_limit rows of a month of a log table that are older than p_before; returns how many.';
grant execute on function vanilla.log_months(), vanilla.drop_log_month(regclass, timestamptz, bigint),
    vanilla.delete_log_rows(regclass, timestamptz, integer) to vanilla_definer;

-- 5. context -------------------------------------------------------------------------------------------------------
set local role vanilla_keyring;
alter default privileges revoke execute on functions from public;
create table if not exists vanilla.context_keys (
    key_id text not null,
    inner_key bytea not null,
    outer_key bytea not null,
    accept_until timestamptz not null default 'infinity',
    constraint context_keys_pkey primary key (key_id),
    constraint context_keys_id_check check (key_id ~ '^[a-z0-9]{1,16}$'),
    constraint context_keys_size_check check (octet_length(inner_key) = 64 and octet_length(outer_key) = 64)
);
comment on table vanilla.context_keys is 'Keys that sign contexts, padded for HMAC, so that the built-in sha256 suffices. Backups leave them out; a superuser''s plain pg_dump takes them.';

create or replace function vanilla.install_context_key(p_key_id text, p_key bytea, p_accept_until timestamptz default 'infinity')
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_key bytea;
    v_inner bytea := decode(repeat('36', 64), 'hex');
    v_outer bytea := decode(repeat('5c', 64), 'hex');
begin
    if octet_length(p_key) < 32 then
        raise exception 'a context key has at least 32 bytes' using errcode = '22023';
    end if;
    v_key := case when octet_length(p_key) > 64 then sha256(p_key) else p_key end;
    for i in 0 .. octet_length(v_key) - 1 loop
        v_inner := set_byte(v_inner, i, get_byte(v_key, i) # 54);
        v_outer := set_byte(v_outer, i, get_byte(v_key, i) # 92);
    end loop;
    insert into vanilla.context_keys values (p_key_id, v_inner, v_outer, p_accept_until)
    on conflict (key_id) do nothing;
    if exists (select from vanilla.context_keys where key_id = p_key_id and inner_key <> v_inner) then
        raise exception 'context key % exists with other bytes', p_key_id using errcode = '23505',
            hint = 'Install the new key under a new id, sign with it, then expire the old id.';
    end if;
    -- never later: a machine that still has a retired key does not bring it back
    update vanilla.context_keys set accept_until = p_accept_until where key_id = p_key_id and accept_until > p_accept_until;
    if exists (select from vanilla.context_keys where key_id = p_key_id and accept_until < p_accept_until) then
        perform vanilla.refuse('VS409', format('the context key %s was retired by a rotation', p_key_id), jsonb_build_object('key_id', p_key_id),
            'Use the key that replaced it: copy context.key, or VANILLA_SAAS_CONTEXT_KEY, from where it was rotated.');
    end if;
end
$f$;
comment on function vanilla.install_context_key(text, bytea, timestamptz) is
    'Lets tokens signed with this key (32 to 64 bytes) in until accept_until, which is never moved later; vanilla-saas migrate calls it.';

create or replace function vanilla.expire_context_key(p_key_id text, p_accept_until timestamptz) returns timestamptz
language plpgsql security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_until timestamptz;
begin
    update vanilla.context_keys set accept_until = least(accept_until, p_accept_until) where key_id = p_key_id
        returning accept_until into v_until;
    if not found then
        perform vanilla.refuse('VS404', format('there is no context key %s', p_key_id), jsonb_build_object('key_id', p_key_id));
    end if;
    if not exists (select from vanilla.context_keys where accept_until = 'infinity') then
        perform vanilla.refuse('VS409', 'no other context key is installed, so nobody could act', '{}', 'vanilla-saas context-key rotate makes one.');
    end if;
    return v_until;
end
$f$;
comment on function vanilla.expire_context_key(text, timestamptz) is
    'Refuses tokens of a context key from then on, or from an earlier moment that was set before; the last key without an end stays.';

create or replace function vanilla.context_key_states() returns table (key_id text, accept_until timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $f$
    select k.key_id, k.accept_until from vanilla.context_keys k order by k.accept_until desc, k.key_id
$f$;
comment on function vanilla.context_key_states() is 'Ids of the context keys and until when each is accepted; never the keys.';
grant execute on function vanilla.install_context_key(text, bytea, timestamptz),
    vanilla.expire_context_key(text, timestamptz) to vanilla_owner;
grant execute on function vanilla.context_key_states() to vanilla_owner, vanilla_operator;

-- v1.<key id>.<tenant>.<user>.<role>.<expiry, epoch seconds>.<64 lower-case hex>, claims numbered from 1. The signature
-- is compared first and covers every byte before the last dot: only canonical tokens are ever signed, so nothing else
-- needs checking. 7 to 9 us; a regular expression and nested definer calls made it 50.
create or replace function vanilla.claim(p_index integer, p_strict boolean default true) returns text language plpgsql stable parallel restricted
security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_token text := current_setting('vanilla.context', true);
    v_payload text;
    v_inner bytea;
    v_outer bytea;
begin
    if v_token is null or v_token = '' then
        if session_user <> 'authenticator' then return null; end if;        -- no identity: null, hence no rows
        return vanilla.supabase_claim(p_index, p_strict);
    end if;
    if octet_length(v_token) between 150 and 220 and left(v_token, 3) = 'v1.' then     -- of a v2 nothing here is known
        v_payload := left(v_token, -65);
        select k.inner_key, k.outer_key into v_inner, v_outer from vanilla.context_keys k
            where k.key_id = split_part(v_payload, '.', 2) and k.accept_until > clock_timestamp();
        if v_token = v_payload || '.' || encode(sha256(v_outer || sha256(v_inner || convert_to(v_payload, 'UTF8'))), 'hex') then
            if split_part(v_payload, '.', 6)::bigint > extract(epoch from clock_timestamp()) then
                return split_part(v_payload, '.', p_index);
            end if;
        end if;
    end if;
    -- policies see nobody in a bad token: an error there would come only when a row met the query's own leakproof
    -- conditions, which are tried before a policy, and so would tell of every tenant's rows
    if not p_strict then return null; end if;
    raise exception 'context refused' using errcode = 'VS401',
        hint = 'The token is forged, expired or of another key. After installing with psql alone: vanilla-saas migrate installs the key.';
end
$f$;
comment on function vanilla.claim(integer, boolean) is
    'The only verifier of context tokens: one claim, null without a token; for a bad one VS401, or null when not strict. In a session of PostgREST on Supabase, which has no token: supabase_claim.';
grant execute on function vanilla.claim(integer, boolean) to vanilla_app, vanilla_readonly, vanilla_definer, vanilla_system, vanilla_owner;

set local role vanilla_owner;
-- Plain SQL without SET: inlined into policies, so they cost nothing on top of claim. "return" bodies are parsed here and
-- now: as text, the caller's pg_temp.uuid with a cast of its own would be found first and name another tenant.
create or replace function vanilla.current_tenant_id() returns uuid language sql stable parallel restricted return vanilla.claim(3, false)::uuid;
create or replace function vanilla.current_user_id() returns uuid language sql stable parallel restricted return vanilla.claim(4, false)::uuid;
create or replace function vanilla.current_user_role() returns text language sql stable parallel restricted return vanilla.claim(5, false);
create or replace function public.get_current_tenant_id() returns uuid language sql stable parallel restricted return vanilla.claim(3, false)::uuid;
create or replace function public.get_current_user_id() returns uuid language sql stable parallel restricted return vanilla.claim(4, false)::uuid;
comment on function vanilla.current_tenant_id() is 'Tenant of this transaction''s context; null without a valid one.';
comment on function vanilla.current_user_id() is 'User of this transaction''s context; null without a valid one.';
comment on function vanilla.current_user_role() is 'Role of this transaction''s context (user, admin, superadmin, service); null without a valid one.';
comment on function public.get_current_tenant_id() is 'Usual name of vanilla.current_tenant_id().';
comment on function public.get_current_user_id() is 'Usual name of vanilla.current_user_id().';
grant execute on function vanilla.current_tenant_id(), vanilla.current_user_id(), vanilla.current_user_role(),
    public.get_current_tenant_id(), public.get_current_user_id()
    to vanilla_app, vanilla_definer, vanilla_system, vanilla_readonly;

-- 6. protection ----------------------------------------------------------------------------------------------------
create table if not exists vanilla.table_ownership (
    relation name not null,
    ownership text not null,
    hidden name[] not null default '{}',
    writable name[] not null default '{}',
    owner_column name not null default 'user_id',
    append_only boolean not null default false,
    public_column name,
    constraint table_ownership_pkey primary key (relation)
);
comment on table vanilla.table_ownership is
    'What protect_table was told of each table: from it alone follows what the catalog must say (expected_protection).';
grant select on vanilla.table_ownership to vanilla_operator;

-- Conditions stand as pg_get_expr prints them: what is expected is compared with the catalog letter by letter. A policy
-- changed by hand is found and mended, an unchanged one costs no DDL, hence no ACCESS EXCLUSIVE lock on a live database.
create or replace function vanilla.row_conditions(p_rule vanilla.table_ownership, out reads text, out writes text)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_mine text := '(tenant_id = ( SELECT vanilla.current_tenant_id() AS current_tenant_id))';
    v_admin text := '(( SELECT vanilla.current_user_role() AS current_user_role) = ANY (ARRAY[''admin''::text, ''superadmin''::text]))';
    v_owned text := format('(%I = ( SELECT vanilla.current_user_id() AS current_user_id))', p_rule.owner_column);
    v_platform text := '''00000000-0000-0000-0000-000000000000''::uuid';
    v_admins text := format('(%s AND %s)', v_mine, v_admin);
    v_own text := format('(%s AND (%s OR %s))', v_mine, v_owned, v_admin);
begin
    case p_rule.ownership
        when 'tenant_shared' then reads := v_mine; writes := v_admins;
        when 'user_owned' then
            if p_rule.public_column is not null then      -- what its owner shares with the tenant
                v_own := format('(%s AND (%s OR %s OR %I))', v_mine, v_owned, v_admin, p_rule.public_column);
            end if;
            reads := v_own;
            writes := format('(%s AND %s)', v_mine, v_owned);
        when 'user_read' then reads := v_own;
        when 'admin_only' then reads := v_admins; writes := v_admins;
        when 'platform_catalog' then
            reads := format('(%s OR ((tenant_id = %s) AND (( SELECT vanilla.current_tenant_id() AS current_tenant_id) IS NOT NULL)))',
                v_mine, v_platform);
            if p_rule.public_column is not null then
                reads := format('((%s AND %I) OR %s)', reads, p_rule.public_column, v_admins);
            end if;
            writes := v_admins;
        when 'tenant_registry' then      -- tenants: members read their own row, super admins at the platform every row
            reads := format('(%s OR ((( SELECT vanilla.current_user_role() AS current_user_role) = ''superadmin''::text)'
                ' AND (( SELECT vanilla.current_tenant_id() AS current_tenant_id) = %s)))', v_mine, v_platform);
        when 'platform_only' then null;
        else raise exception 'unknown ownership class %', p_rule.ownership using errcode = '22023',
            hint = 'One of tenant_shared, user_owned, user_read, admin_only, platform_catalog, tenant_registry, platform_only.';
    end case;
    if cardinality(p_rule.writable) = 0 then writes := null; end if;       -- functions write
end
$f$;
comment on function vanilla.row_conditions(vanilla.table_ownership) is
    'Which rows requests may read and write by an ownership class, in the words of pg_get_expr; null: none.';

create or replace function vanilla.expected_policies(p_table regclass)
returns table (name name, command text, roles text, reads text, writes text)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    with rule as (
        select o.relation, o.append_only, c.reads, c.writes
        from pg_class t
        join vanilla.table_ownership o on o.relation = t.relname
        cross join lateral vanilla.row_conditions(o) c
        where t.oid = p_table and t.relnamespace = 'public'::regnamespace and not t.relispartition)
    select p.name, p.command, p.roles, p.reads, p.writes
    from rule r
    cross join lateral (values        -- roles in alphabetical order
        -- functions: they check the tenant themselves
        ('definer'::name, 'all', 'vanilla_definer', 'true', 'true', true),
        ('system', 'all', 'vanilla_system', 'true', 'true', true),
        -- the operator: psql, cron, backups; no role we create changes the ledger
        ('operator_select', 'select', 'vanilla_operator', 'true', null, true),
        ('operator_delete', 'delete', 'vanilla_operator',
            case when r.append_only then '(created_at < (now() - ''1 year''::interval))' else 'true' end, null,
            r.relation <> 'user_token_ledger'),
        -- requests
        ('app_select', 'select', 'vanilla_app, vanilla_readonly', r.reads, null, r.reads is not null),
        ('app_insert', 'insert', 'vanilla_app', null, r.writes, r.writes is not null),
        ('app_update', 'update', 'vanilla_app', r.writes, r.writes, r.writes is not null),
        ('app_delete', 'delete', 'vanilla_app', r.writes, null, r.writes is not null)
    ) p (name, command, roles, reads, writes, wanted)
    where p.wanted
    union all
    -- the parent's policies do not bind who reads a partition directly: only its owner does, to move rows, and the operator,
    -- whose pg_dump reads partitions one by one
    select p.name, p.command, p.roles, 'true', p.writes
    from pg_class t cross join (values ('owner'::name, 'all', 'vanilla_owner', 'true'), ('operator_select', 'select', 'vanilla_operator', null)) p (name, command, roles, writes)
    where t.oid = p_table and t.relispartition
$f$;
comment on function vanilla.expected_policies(regclass) is
    'The policies of a declared table or a partition: reads is USING, writes is WITH CHECK.';

create or replace function vanilla.expected_grants(p_table regclass)
returns table (privilege text, "column" name, grantee name)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    with rule as (
        select o.*, c.reads, c.writes
        from pg_class t
        join vanilla.table_ownership o on o.relation = t.relname
        cross join lateral vanilla.row_conditions(o) c
        where t.oid = p_table and t.relnamespace = 'public'::regnamespace and not t.relispartition)
    select g.privilege, null::name, g.grantee
    from rule r
    cross join lateral (
        select p.privilege, f.grantee, p.writes and r.append_only as refused
        from (values ('select', false), ('insert', false), ('update', true), ('delete', true)) p (privilege, writes)
        cross join (values ('vanilla_definer'::name), ('vanilla_system')) f (grantee)
        union all values
            ('select', 'vanilla_operator', false),
            ('delete', 'vanilla_operator', r.relation = 'user_token_ledger'),
            ('delete', 'vanilla_app', r.writes is null)) g (privilege, grantee, refused)
    where not g.refused
    union all
    select g.privilege, a.attname, g.grantee
    from rule r
    join pg_attribute a on a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    cross join lateral (values
        ('select', 'vanilla_app'::name, r.reads is not null and a.attname <> all (r.hidden)),
        ('select', 'vanilla_readonly', r.reads is not null and a.attname <> all (r.hidden)),
        ('insert', 'vanilla_app', r.writes is not null and a.attname = any (r.writable)),
        ('update', 'vanilla_app', r.writes is not null and a.attname = any (r.writable) and a.attname not in ('tenant_id', 'id'))
    ) g (privilege, grantee, wanted)
    where g.wanted
    union all
    select 'select', null, 'vanilla_operator' from pg_class t where t.oid = p_table and t.relispartition
$f$;
comment on function vanilla.expected_grants(regclass) is
    'The privileges that a declared table gives to others than its owner; column is null for the whole table.';

create or replace function vanilla.expected_protection(p_table regclass)
returns table (object text, definition text, statement text)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select s.object, 'on', format('alter table %s %s row level security', p_table, s.verb)
    from (values ('row level security enabled', 'enable'), ('row level security forced', 'force')) s (object, verb)
    union all
    select format('policy %I', p.name), d.definition, format('create policy %I on %s %s', p.name, p_table, d.definition)
    from vanilla.expected_policies(p_table) p
    cross join lateral (select format('as permissive for %s to %s', p.command, p.roles)
        || coalesce(' using (' || p.reads || ')', '') || coalesce(' with check (' || p.writes || ')', '') as definition) d
    union all
    select format('%s to %I', p.what, g.grantee), 'granted', format('grant %s on %s to %I', p.what, p_table, g.grantee)
    from vanilla.expected_grants(p_table) g
    cross join lateral (select g.privilege || coalesce(' (' || quote_ident(g."column") || ')', '') as what) p
$f$;
comment on function vanilla.expected_protection(regclass) is
    'Everything that protects a declared table or a partition, and the statement that makes each part.';

create or replace function vanilla.found_protection(p_table regclass)
returns table (object text, definition text, statement text)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select s.object, 'on', null
    from pg_class c
    cross join lateral (values ('row level security enabled', c.relrowsecurity), ('row level security forced', c.relforcerowsecurity))
        s (object, is_on)
    where c.oid = p_table and s.is_on
    union all
    select format('policy %I', p.polname), format('as %s for %s to %s', case when p.polpermissive then 'permissive' else 'restrictive' end,
            case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
            array_to_string(array(select case r when 0 then 'public' else quote_ident(pg_get_userbyid(r)) end
                                  from unnest(p.polroles) r order by 1), ', '))
            || coalesce(' using (' || pg_get_expr(p.polqual, p_table) || ')', '')
            || coalesce(' with check (' || pg_get_expr(p.polwithcheck, p_table) || ')', ''),
        format('drop policy %I on %s', p.polname, p_table)
    from pg_policy p
    where p.polrelid = p_table
    union all
    select format('%s to %s', g.what, r.name), case when g.is_grantable then 'granted with grant option' else 'granted' end,
        format('revoke %s on %s from %s cascade', g.what, p_table, r.name)
    from pg_class c
    cross join lateral (
        select lower(x.privilege_type) as what, x.grantee, x.is_grantable
        from aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) x
        -- the owner has what owners have, but does not change the ledger
        where x.grantee <> c.relowner
           or c.oid = to_regclass('public.user_token_ledger') and x.privilege_type in ('UPDATE', 'DELETE', 'TRUNCATE')
        union all
        select format('%s (%I)', lower(x.privilege_type), a.attname), x.grantee, x.is_grantable
        from pg_attribute a
        cross join lateral aclexplode(a.attacl) x
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) g
    cross join lateral (select case g.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end as name) r
    where c.oid = p_table
$f$;
comment on function vanilla.found_protection(regclass) is
    'What the catalog says of a table''s protection, in the words of expected_protection, and the statement that removes each part.';

create or replace function vanilla.protection_drift(p_table regclass)
returns table (object text, expected text, found text, repair text)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select coalesce(e.object, f.object), e.definition, f.definition, concat_ws('; ', f.statement, e.statement)
    from vanilla.expected_protection(p_table) e
    full join vanilla.found_protection(p_table) f on f.object = e.object
    where e.definition is distinct from f.definition
$f$;
comment on function vanilla.protection_drift(regclass) is
    'Where the catalog is not what protect_table would write now, and the statements that repair it; null expected: it should not be there.';
grant execute on function vanilla.row_conditions(vanilla.table_ownership), vanilla.expected_policies(regclass),
    vanilla.expected_grants(regclass), vanilla.expected_protection(regclass), vanilla.found_protection(regclass),
    vanilla.protection_drift(regclass) to vanilla_operator;

create or replace function vanilla.repair_protection(p_table regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    v_repair text;
begin
    for v_round in 1 .. 3 loop
        -- one execution for all: a fresh table takes some fifty grants
        select string_agg(d.repair, '; ' order by d.object) into v_repair from vanilla.protection_drift(p_table) d;
        if v_repair is null then return; end if;
        execute v_repair;      -- a privilege revoked from the table is gone from its columns too: look again
    end loop;
    raise exception 'the protection of % does not settle', p_table using errcode = 'XX000',
        detail = (select string_agg(d.object, ', ') from vanilla.protection_drift(p_table) d);
end
$f$;
comment on function vanilla.repair_protection(regclass) is
    'Makes the protection of a declared table or a partition what it should be; nothing, and no lock, when it is.';

create or replace function vanilla.protect_table(
    p_table regclass,
    p_ownership text,
    p_hidden name[] default '{}',        -- secret columns that nobody may select
    p_writable name[] default '{}',      -- columns that requests may insert and update; empty: functions write
    p_owner name default 'user_id',      -- column that names the owner
    p_append_only boolean default false, -- nobody updates; only what is past retention is deleted, by the operator
    p_public name default null)          -- the flag of rows that are for everyone; other rows are the admins' (platform_catalog) or their owner's (user_owned)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $f$
begin
    insert into vanilla.table_ownership as o (relation, ownership, hidden, writable, owner_column, append_only, public_column)
    select c.relname, p_ownership, p_hidden, p_writable, p_owner, p_append_only, p_public from pg_class c where c.oid = p_table
    on conflict (relation) do update set ownership = excluded.ownership, hidden = excluded.hidden, writable = excluded.writable,
            owner_column = excluded.owner_column, append_only = excluded.append_only, public_column = excluded.public_column
        where (o.*) is distinct from (excluded.*);
    perform vanilla.repair_protection(p_table);
    perform vanilla.repair_protection(i.inhrelid) from pg_inherits i where i.inhparent = p_table;
end
$f$;
comment on function vanilla.protect_table(regclass, text, name[], name[], name, boolean, name) is
    'Declares the ownership class of a table and makes grants, ENABLE and FORCE, and policies exactly those of it, of its partitions too.';

create or replace function vanilla.person_tables() returns table (relation name, ownership text, owners name[], columns name[], sorted name[])
language sql stable security definer set search_path = pg_catalog, pg_temp as $f$
    select o.relation, o.ownership, w.owners, c.columns, k.sorted
    from vanilla.table_ownership o
    join pg_class t on t.relname = o.relation and t.relnamespace = 'public'::regnamespace and t.relkind in ('r', 'p')
    cross join lateral (
        -- hashes of tokens, which only functions read, say nothing of a person
        select array_agg(a.attname order by a.attnum) filter (where a.attname <> all (o.hidden) and (o.ownership <> 'platform_only' or a.atttypid <> 'bytea'::regtype)) as columns,
            array_agg(a.attname) as all_columns
        from pg_attribute a where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped) c
    cross join lateral (
        select case when o.owner_column = any (c.all_columns) then array[o.owner_column]
            when c.all_columns @> array['actor_id', 'target_id']::name[] then array['actor_id', 'target_id']::name[] end as owners) w
    cross join lateral (
        select array_agg(a.attname order by p.n) as sorted
        from pg_index i cross join lateral unnest(i.indkey::smallint[]) with ordinality p (attnum, n)
        join pg_attribute a on a.attrelid = t.oid and a.attnum = p.attnum
        where i.indrelid = t.oid and i.indisprimary) k
    where w.owners is not null
$f$;
comment on function vanilla.person_tables() is
    'Declared tables that say whose a row is: by which columns, what of a row may be shown, and its primary key. What a person''s export goes over.';

create or replace function vanilla.person_query(p_relation name, p_owners name[], p_columns name[], p_sorted name[]) returns text
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select format('select to_json(r)::text as entry from (select %s from public.%I where tenant_id = $1 and $2 in (%s) order by %s) r',
        (select string_agg(quote_ident(c), ', ' order by n) from unnest(p_columns) with ordinality u (c, n)), p_relation,
        (select string_agg(quote_ident(c), ', ' order by n) from unnest(p_owners) with ordinality u (c, n)),
        (select string_agg(quote_ident(c), ', ' order by n) from unnest(p_sorted) with ordinality u (c, n)))
$f$;
comment on function vanilla.person_query(name, name[], name[], name[]) is
    'The query of a row of vanilla.person_tables(): one JSON text a row; $1 is the tenant, $2 the person.';
grant execute on function vanilla.person_tables(), vanilla.person_query(name, name[], name[], name[]) to vanilla_app, vanilla_operator, vanilla_definer;
select vanilla.ensure_partitions();

-- 7. tenancy -------------------------------------------------------------------------------------------------------
set local role vanilla_definer;
alter default privileges revoke execute on functions from public;

-- Supabase's key to everything, above row-level security there; without that it is nobody. Apart, because a function with a
-- sub-select is not inlined where it is asked.
create or replace function vanilla.service_role_is_above() returns boolean language sql stable
    return (select r.rolbypassrls from pg_roles r where r.rolname = 'service_role');
comment on function vanilla.service_role_is_above() is 'Whether this server has Supabase''s service_role with BYPASSRLS.';

-- Inside a definer function current_user is its owner; the role setting still names who called. A superuser has every role.
create or replace function vanilla.caller_is_operator() returns boolean language sql stable
    return pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, 'vanilla_operator', 'usage')
        or pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, 'vanilla_system', 'usage')
        or (coalesce(nullif(current_setting('role'), 'none'), session_user) = 'service_role' and vanilla.service_role_is_above());
comment on function vanilla.caller_is_operator() is
    'Whether the role that called, not the owner of this function, is operator, system, superuser or Supabase''s service_role.';

create or replace function vanilla.acting(p_tenant_id uuid default null) returns uuid[] language plpgsql stable
set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.claim(3)::uuid;
    v_token text := current_setting('vanilla.context', true);
    v_role text;
begin
    if v_tenant is null then
        if not vanilla.caller_is_operator() then
            perform vanilla.refuse('VS401', 'no context', '{}', 'Set a signed context first, or connect as the operator.');
        end if;
        return array[p_tenant_id, null];
    end if;
    -- the same bytes, verified two lines above: a claim more would verify them again
    v_role := case when v_token <> '' then split_part(v_token, '.', 5) else vanilla.claim(5) end;
    if v_role not in ('admin', 'superadmin', 'service') then
        perform vanilla.refuse('VS403', 'only an admin of the tenant may do this', '{"need": "admin"}');
    end if;
    if p_tenant_id <> v_tenant then
        if v_role <> 'superadmin' or v_tenant <> vanilla.platform() then
            perform vanilla.refuse('VS404', 'no such tenant');
        end if;
        perform vanilla.refuse('VS403', 'open the tenant first', '{"need": "open_tenant"}',
            'A super admin enters a tenant with open_tenant(tenant, reason); that is written to the audit log.');
    end if;
    return array[v_tenant, case when v_token <> '' then split_part(v_token, '.', 4) else vanilla.claim(4) end::uuid];
end
$f$;
comment on function vanilla.acting(uuid) is
    'The tenant an admin''s context names and its user; or the tenant an operator without a context names and null. Refuses everyone else.';

create or replace function vanilla.acting_tenant(p_tenant_id uuid default null) returns uuid language plpgsql stable
set search_path = pg_catalog, pg_temp as $f$ begin return (vanilla.acting(p_tenant_id))[1]; end $f$;
comment on function vanilla.acting_tenant(uuid) is
    'The tenant an admin''s context names, or the one an operator without a context names; refuses everyone else.';

create or replace function vanilla.tenant_for(p_user_id uuid) returns uuid language plpgsql stable
set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.claim(3)::uuid;
    v_token text;
begin
    if v_tenant is not null then
        v_token := current_setting('vanilla.context', true);
        -- the same bytes, verified above: a claim more would verify them again
        if p_user_id = (case when v_token <> '' then split_part(v_token, '.', 4) else vanilla.claim(4) end)::uuid then return v_tenant; end if;
    end if;
    return (vanilla.acting(null))[1];
end
$f$;
comment on function vanilla.tenant_for(uuid) is
    'The tenant in which the caller may speak of a user: for themselves their own, for others the acting tenant; null for an operator.';

create or replace function vanilla.own_tenant(p_tenant_id uuid) returns uuid language plpgsql stable
set search_path = pg_catalog, pg_temp as $f$
begin
    if p_tenant_id <> vanilla.claim(3)::uuid then
        perform vanilla.refuse('VS404', 'no such tenant');
    end if;
    return vanilla.claim(3)::uuid;
end
$f$;
comment on function vanilla.own_tenant(uuid) is
    'The context''s tenant, for what people do to their own; naming another is refused as if there were none.';

create or replace function vanilla.member_tenant(p_tenant_id uuid) returns uuid language plpgsql stable
set search_path = pg_catalog, pg_temp as $f$
begin
    return case when vanilla.claim(5) = 'user' then vanilla.own_tenant(p_tenant_id) else vanilla.acting_tenant(p_tenant_id) end;
end
$f$;
comment on function vanilla.member_tenant(uuid) is
    'The tenant in which a member looks for what is theirs: a user''s own, for others the acting tenant; null for an operator who names none.';

create or replace function vanilla.audit(
    p_tenant_id uuid, p_action text, p_target_type text default null, p_target_id uuid default null,
    p_details jsonb default '{}', p_actor_id uuid default null, p_actor_role text default null)
returns void language sql volatile set search_path = pg_catalog, pg_temp as $f$
    insert into public.audit_logs (tenant_id, created_at, actor_id, actor_role, action, target_type, target_id, details, ip, request_id)
    values (p_tenant_id, vanilla.clock(), coalesce(p_actor_id, vanilla.claim(4)::uuid),
        coalesce(p_actor_role, vanilla.claim(5), 'operator'), p_action, p_target_type, p_target_id, p_details,
        nullif(current_setting('vanilla.client_ip', true), ''), nullif(current_setting('vanilla.request_id', true), ''))
$f$;
comment on function vanilla.audit(uuid, text, text, uuid, jsonb, uuid, text) is
    'Writes an audit row; address and request id come from the transaction''s settings and are informational.';

-- verifies, checks that tenant and user are live and the role is theirs, sets for the transaction
create or replace function vanilla.set_context(p_token text) returns void language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid;
    v_user uuid;
    v_role text;
begin
    perform set_config('vanilla.context', coalesce(p_token, ''), true);     -- undone by the error when refused
    v_tenant := vanilla.claim(3)::uuid;
    if v_tenant is null then return; end if;
    -- the same bytes, verified one line above: a claim more would verify them again
    v_user := split_part(p_token, '.', 4)::uuid;
    v_role := split_part(p_token, '.', 5);
    if v_role = 'superadmin' and v_tenant <> vanilla.platform() then
        perform from public.tenant_openings o
            join public.users u on u.tenant_id = vanilla.platform() and u.id = o.user_id and u.status = 'active'
            where o.tenant_id = v_tenant and o.user_id = v_user and o.expires_at > vanilla.clock();
    else
        -- a key without the scope admin acts below its user's role: never above it
        perform from public.users u join public.tenants t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
            where u.tenant_id = v_tenant and u.id = v_user and u.status = 'active' and t.status = 'active'
              and (u.role = v_role or v_role = 'user' or (v_role = 'service' and u.role in ('admin', 'superadmin')));
    end if;
    if not found then
        raise exception 'context refused' using errcode = 'VS401',
            hint = 'The tenant or user is not active, or the role is not theirs.';
    end if;
end
$f$;
comment on function vanilla.set_context(text) is 'Verifies a context token and sets it for this transaction; an empty one clears it.';
grant execute on function vanilla.set_context(text) to vanilla_app, vanilla_readonly;

create or replace function public.create_tenant(p_slug text, p_name text, p_time_zone text default 'UTC') returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_id uuid := vanilla.uuid7();
begin
    if vanilla.claim(3)::uuid <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'only a super admin makes tenants', '{"need": "superadmin"}');
    end if;
    perform vanilla.acting_tenant(vanilla.platform());
    if not exists (select from pg_timezone_names where name = p_time_zone) then
        perform vanilla.refuse('VS400', format('unknown time zone %s', p_time_zone), '{"param": "time_zone"}', 'Use a name such as Europe/Berlin.');
    end if;
    begin
        insert into public.tenants (tenant_id, id, slug, name, time_zone, created_at, subscription_tier)
        values (v_id, v_id, lower(p_slug), p_name, p_time_zone, vanilla.clock(),
            (select l.slug from public.levels l where l.tenant_id = vanilla.platform() and l.is_default));
    exception
        when unique_violation then
            perform vanilla.refuse('VS409', format('the slug %s is taken', p_slug), '{"param": "slug"}');
        when check_violation or not_null_violation then
            perform vanilla.refuse('VS400', 'slug or name is not valid', '{"param": "slug"}', 'A slug is 1 to 63 of a-z, 0-9 and hyphens inside; a name 1 to 200 bytes.');
    end;
    -- the platform's levels are the template
    insert into public.levels (tenant_id, slug, name, description, tier, is_default)
        select v_id, slug, name, description, tier, is_default from public.levels
        where tenant_id = vanilla.platform() and status = 'active' and (is_template or is_default);
    insert into public.level_token_policies (tenant_id, level_id, base_allocation, monthly_allocation, period, period_anchor,
            rollover_percent, rollover_cap, monthly_cap, enforcement_mode, warning_percent)
        select v_id, n.id, p.base_allocation, p.monthly_allocation, p.period, p.period_anchor,
            p.rollover_percent, p.rollover_cap, p.monthly_cap, p.enforcement_mode, p.warning_percent
        from public.level_token_policies p
        join public.levels l on l.tenant_id = p.tenant_id and l.id = p.level_id
        join public.levels n on n.tenant_id = v_id and n.slug = l.slug
        where p.tenant_id = vanilla.platform();
    -- 007 knows what else a level has; before it has run there is nothing to copy
    if to_regprocedure('vanilla.copy_level_terms(uuid)') is not null then
        perform vanilla.copy_level_terms(v_id);
    end if;
    perform vanilla.audit(vanilla.platform(), 'tenant.created', 'tenant', v_id, jsonb_build_object('slug', p_slug));
    return v_id;
end
$f$;
comment on function public.create_tenant(text, text, text) is 'Makes a tenant with the platform''s levels; super admin or operator. Returns its id.';

create or replace function public.set_tenant_status(p_tenant_id uuid, p_status text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant public.tenants;
begin
    if vanilla.claim(3)::uuid <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'only a super admin opens and closes tenants', '{"need": "superadmin"}');
    end if;
    perform vanilla.acting_tenant(vanilla.platform());
    if p_status is null or p_status not in ('active', 'suspended') then
        perform vanilla.refuse('VS400', 'a status is active or suspended', '{"param": "status"}', 'close_tenant(tenant, reason) closes.');
    end if;
    if p_tenant_id = vanilla.platform() then
        perform vanilla.refuse('VS409', 'the platform tenant stays active');
    end if;
    select * into v_tenant from public.tenants where tenant_id = p_tenant_id and id = p_tenant_id for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such tenant'); end if;
    -- by the clock, not by how far the job has come: nobody opens a tenant of which some persons are gone
    if v_tenant.erase_at <= vanilla.clock() then
        perform vanilla.refuse('VS409', case when v_tenant.erased_at is null then 'the grace of this tenant is over' else 'the tenant is erased' end,
            jsonb_build_object('status', 'closed', 'erase_at', v_tenant.erase_at, 'erased_at', v_tenant.erased_at), 'Make a new tenant.');
    end if;
    update public.tenants set status = p_status, erase_at = null where tenant_id = p_tenant_id and id = p_tenant_id;
    perform vanilla.audit(vanilla.platform(), 'tenant.status', 'tenant', p_tenant_id, jsonb_build_object('status', p_status));
end
$f$;
comment on function public.set_tenant_status(uuid, text) is
    'active or suspended; suspended refuses all access at once and ends nothing. Opens a closed tenant again while its grace lasts.';

create or replace function public.close_tenant(p_tenant_id uuid, p_reason text, p_grace interval default null) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_status text;
    v_erase_at timestamptz;
    v_ended jsonb;
begin
    if vanilla.claim(3)::uuid <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'only a super admin opens and closes tenants', '{"need": "superadmin"}');
    end if;
    perform vanilla.acting_tenant(vanilla.platform());
    if btrim(coalesce(p_reason, '')) = '' then
        perform vanilla.refuse('VS400', 'a reason is needed', '{"param": "reason"}');
    end if;
    if p_tenant_id = vanilla.platform() then
        perform vanilla.refuse('VS409', 'the platform tenant stays active');
    end if;
    if p_grace not between interval '0' and interval '36500 days' then
        perform vanilla.refuse('VS400', 'a grace is 0 to 36,500 days', '{"param": "grace"}');
    end if;
    v_erase_at := v_now + coalesce(p_grace, make_interval(days => coalesce((vanilla.setting(vanilla.platform(), 'tenants.grace_days') #>> '{}')::integer, 30)));
    -- the tenant's row first: of two at once the second waits here and finds it closed
    select status into v_status from public.tenants where tenant_id = p_tenant_id and id = p_tenant_id for update;
    if not found then perform vanilla.refuse('VS404', 'no such tenant'); end if;
    if v_status = 'closed' then return false; end if;
    update public.tenants set status = 'closed', erase_at = v_erase_at where tenant_id = p_tenant_id and id = p_tenant_id;
    -- users before links before sessions, as at sign-in: one that is under way ends before, or is ended here
    perform from public.users where tenant_id = p_tenant_id order by id for no key update;
    update public.one_time_tokens set used_at = v_now where tenant_id = p_tenant_id and used_at is null;
    with sessions as (
        update public.sessions set revoked_at = v_now where tenant_id = p_tenant_id and revoked_at is null returning 1),
    keys as (
        update public.api_keys set revoked_at = v_now where tenant_id = p_tenant_id and revoked_at is null returning 1),
    openings as (
        update public.tenant_openings set expires_at = v_now where tenant_id = p_tenant_id and expires_at > v_now returning 1)
    select jsonb_build_object('reason', p_reason, 'erase_at', v_erase_at, 'sessions', (select count(*) from sessions), 'keys', (select count(*) from keys),
        'openings', (select count(*) from openings)) into v_ended;
    -- in both logs, as its opening is
    perform vanilla.audit(t, 'tenant.closed', 'tenant', p_tenant_id, v_ended) from unnest(array[vanilla.platform(), p_tenant_id]) t;
    return true;
end
$f$;
comment on function public.close_tenant(uuid, text, interval) is
    'Refuses all access at once: ends sessions, keys, links and openings; calls under way settle. Rows stay for p_grace (null: tenants.grace_days), then the job closings erases its persons, secrets and settings. False, and nothing changed, when it was closed already; super admin or operator.';

create or replace function public.open_tenant(p_tenant_id uuid, p_reason text) returns timestamptz
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_until timestamptz := vanilla.clock() + interval '8 hours';
    v_status text;
begin
    if vanilla.claim(5) is distinct from 'superadmin' or vanilla.claim(3)::uuid <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'only a super admin opens a tenant');
    end if;
    if btrim(coalesce(p_reason, '')) = '' then
        perform vanilla.refuse('VS400', 'a reason is needed', '{"param": "reason"}');
    end if;
    -- shared with close_tenant: an opening is made before it, and ended by it, or refused after it
    select status into v_status from public.tenants where tenant_id = p_tenant_id and id = p_tenant_id for share;
    if not found then
        perform vanilla.refuse('VS404', 'no such tenant');
    end if;
    if v_status = 'closed' then
        perform vanilla.refuse('VS409', 'the tenant is closed', '{"status": "closed"}', 'set_tenant_status(tenant, ''suspended'') lets super admins look.');
    end if;
    insert into public.tenant_openings (tenant_id, user_id, reason, expires_at, created_at)
    values (p_tenant_id, vanilla.claim(4)::uuid, p_reason, v_until, vanilla.clock());
    -- in both logs: the tenant sees who came in
    perform vanilla.audit(t, 'tenant.opened', 'tenant', p_tenant_id, jsonb_build_object('reason', p_reason, 'until', v_until))
        from unnest(array[vanilla.platform(), p_tenant_id]) t;
    return v_until;
end
$f$;
comment on function public.open_tenant(uuid, text) is 'Lets the super admin of this context act in a tenant for eight hours; audited in both logs.';

create or replace function public.leave_tenant(p_tenant_id uuid, p_user_id uuid default null) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_user uuid := vanilla.claim(4)::uuid;
    v_ended uuid[];
begin
    if v_user is null then
        perform vanilla.acting_tenant(p_tenant_id);      -- the operator ends anyone's
        v_user := p_user_id;
    elsif vanilla.claim(5) <> 'superadmin' or vanilla.claim(3)::uuid not in (vanilla.platform(), p_tenant_id) or p_user_id <> v_user then
        perform vanilla.refuse('VS403', 'a super admin leaves a tenant', '{"need": "superadmin"}');
    end if;
    with ended as (
        update public.tenant_openings set expires_at = v_now
            where tenant_id = p_tenant_id and expires_at > v_now and (user_id = v_user or v_user is null) returning user_id)
    select array_agg(user_id) into v_ended from ended;
    if v_ended is null then return 0; end if;
    perform vanilla.audit(t, 'tenant.left', 'tenant', p_tenant_id, jsonb_build_object('who', (select jsonb_agg(distinct x) from unnest(v_ended) x)))
        from unnest(array[vanilla.platform(), p_tenant_id]) t;
    return cardinality(v_ended);
end
$f$;
comment on function public.leave_tenant(uuid, uuid) is
    'Ends what open_tenant began before its eight hours are over: a super admin''s own openings of a tenant, or by the operator one person''s or everyone''s. Returns how many; audited in both logs.';

create or replace function vanilla.make_user(
    p_tenant_id uuid, p_email text, p_external_id text, p_display_name text, p_role text,
    p_password_hash text, p_must_change_password boolean, p_level_id uuid, p_id uuid default null) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_id uuid := coalesce(p_id, vanilla.uuid7());
    v_level uuid;
begin
    select id into v_level from public.levels
        where tenant_id = p_tenant_id and status = 'active' and (id = p_level_id or (p_level_id is null and is_default));
    if v_level is null and (p_level_id is not null or p_tenant_id <> vanilla.platform()) then
        perform vanilla.refuse('VS404', 'no such level', '{"param": "level_id"}', 'Without a level the tenant needs a default one.');
    end if;
    -- 007 knows how many users the tenant's plan allows
    if to_regprocedure('vanilla.take_user_place(uuid)') is not null then
        perform vanilla.take_user_place(p_tenant_id);
    end if;
    begin
        insert into public.users (tenant_id, id, email, external_id, display_name, role, password_hash, must_change_password, created_at)
        values (p_tenant_id, v_id, lower(p_email), p_external_id, coalesce(p_display_name, ''), p_role, p_password_hash,
            p_must_change_password, vanilla.clock());
    exception
        when unique_violation then
            perform vanilla.refuse('VS409', 'a user with this name exists', '{"param": "email"}');
        when check_violation then
            perform vanilla.refuse('VS400', 'email, external id, name or role is not valid', '{"param": "email"}');
    end;
    insert into public.user_token_wallets (tenant_id, user_id, anchor_at) values (p_tenant_id, v_id, vanilla.clock());
    if v_level is not null then
        perform vanilla.assign_level(p_tenant_id, v_id, v_level);
    end if;
    return v_id;
end
$f$;
comment on function vanilla.make_user(uuid, text, text, text, text, text, boolean, uuid, uuid) is
    'A user, a wallet and the tokens of the level (null: the default one), under an id given or new; the caller has checked who may.';

create or replace function public.create_user(
    p_email text, p_role text default 'user', p_display_name text default '', p_password_hash text default null,
    p_level_id uuid default null, p_must_change_password boolean default true, p_tenant_id uuid default null,
    p_external_id text default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_id uuid;
begin
    if not exists (select from public.tenants where tenant_id = v_tenant and id = v_tenant and status = 'active') then
        perform vanilla.refuse('VS404', 'no such tenant');
    end if;
    v_id := vanilla.make_user(v_tenant, p_email, p_external_id, p_display_name, p_role, p_password_hash, p_must_change_password, p_level_id);
    perform vanilla.audit(v_tenant, 'user.created', 'user', v_id, jsonb_build_object('role', p_role));
    return v_id;
end
$f$;
comment on function public.create_user(text, text, text, text, uuid, boolean, uuid, text) is
    'Makes a user with a wallet and the tokens of the level; admin, or operator naming the tenant. Returns the id.';

create or replace function vanilla.find_user(p_tenant_id uuid, p_user_id uuid) returns public.users language plpgsql stable
set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users;
begin
    select u.* into v_user from public.users u
        where u.id = p_user_id and (u.tenant_id = p_tenant_id or p_tenant_id is null) and u.status <> 'deleted';
    if p_tenant_id is null then      -- of the users of two tenants none is meant
        if exists (select from public.users u where u.id = p_user_id and u.tenant_id <> v_user.tenant_id and u.status <> 'deleted') then
            v_user := null;
        end if;
    end if;
    if v_user.id is null then
        perform vanilla.refuse('VS404', 'no such user', jsonb_build_object('user_id', p_user_id));
    end if;
    return v_user;
end
$f$;
comment on function vanilla.find_user(uuid, uuid) is
    'The user by id in a tenant, or in any for the operator (null); VS404 in the same words whether absent or another tenant''s.';

create or replace function vanilla.hold_open(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    -- close_tenant holds its users while it ends keys and links: what is made here is there before and ended, or refused after
    perform from public.users where tenant_id = p_user.tenant_id and id = p_user.id and status <> 'deleted' for share;
    if not found then perform vanilla.find_user(p_user.tenant_id, p_user.id); end if;      -- erased meanwhile: no such user
    if exists (select from public.tenants where tenant_id = p_user.tenant_id and id = p_user.tenant_id and status = 'closed') then
        perform vanilla.refuse('VS409', 'the tenant is closed', '{"status": "closed"}');
    end if;
end
$f$;
comment on function vanilla.hold_open(public.users) is
    'Refuses what close_tenant or erase_user would have ended; until the transaction is over the tenant is not closed and the user not erased.';

create or replace function public.set_display_name(p_name text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.claim(3)::uuid;
    v_user uuid := vanilla.claim(4)::uuid;
begin
    if v_user is null then
        perform vanilla.refuse('VS401', 'no context', '{}', 'Set a signed context first.');
    end if;
    begin
        update public.users set display_name = p_name where tenant_id = v_tenant and id = v_user and status <> 'deleted';
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'a display name has at most 200 bytes', '{"param": "display_name"}');
    end;
    if not found then
        perform vanilla.refuse('VS404', 'no such user', '{}', 'A super admin changes their name outside an opened tenant.');
    end if;
    perform vanilla.audit(v_tenant, 'user.display_name', 'user', v_user);
end
$f$;
comment on function public.set_display_name(text) is 'The name of the user of this context; their own and nobody else''s.';

create or replace function vanilla.keep_an_admin(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    -- all of them, in order: two who would each remove the other meet here, and the second sees what the first did. The user
    -- among them, in that order too: close_tenant takes everyone so.
    perform from public.users where tenant_id = p_user.tenant_id and (id = p_user.id or role <> 'user' and status = 'active') order by id for no key update;
    -- who comes from outside may: the operator, and a super admin in an opened tenant, can make another
    if vanilla.claim(3) is null or vanilla.claim(5) = 'superadmin' and p_user.tenant_id <> vanilla.platform() then return; end if;
    if exists (select from public.users where tenant_id = p_user.tenant_id and id = p_user.id and role <> 'user' and status = 'active')
       and not exists (select from public.users where tenant_id = p_user.tenant_id and id <> p_user.id and role <> 'user' and status = 'active') then
        perform vanilla.refuse('VS409', 'the last admin stays one', jsonb_build_object('user_id', p_user.id), 'Make somebody else an admin first.');
    end if;
end
$f$;
comment on function vanilla.keep_an_admin(public.users) is
    'Locks a user and the admins of the tenant and refuses to lose the last active one, unless the operator or a super admin from outside does it.';

create or replace function public.set_user_role(p_user_id uuid, p_role text, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.acting_tenant(p_tenant_id), p_user_id);
begin
    if p_role is null or p_role not in ('user', 'admin') or v_user.role = 'superadmin' then
        perform vanilla.refuse('VS400', 'a role inside a tenant is user or admin', '{"param": "role"}');
    end if;
    if p_role = 'user' then perform vanilla.keep_an_admin(v_user); end if;
    update public.users set role = p_role where tenant_id = v_user.tenant_id and id = v_user.id and status <> 'deleted';
    if not found then perform vanilla.find_user(v_user.tenant_id, v_user.id); end if;      -- erased meanwhile: no such user
    if p_role = 'user' and v_user.role = 'admin' then
        -- of a user's keys, only those that an admin gave a user may name who pays
        update public.api_keys set revoked_at = vanilla.clock()
            where tenant_id = v_user.tenant_id and user_id = v_user.id and scopes && array['act_as', 'act_as:create'] and revoked_at is null;
    end if;
    perform vanilla.audit(v_user.tenant_id, 'user.role', 'user', v_user.id, jsonb_build_object('from', v_user.role, 'to', p_role));
end
$f$;
comment on function public.set_user_role(uuid, text, uuid) is 'user or admin; by an admin of the tenant or the operator. The last admin stays one; who becomes a user loses keys with act_as.';

create or replace function public.set_user_status(p_user_id uuid, p_status text, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.acting_tenant(p_tenant_id), p_user_id);
begin
    if p_status is null or p_status not in ('active', 'disabled') then
        perform vanilla.refuse('VS400', 'a status is active or disabled', '{"param": "status"}');
    end if;
    if v_user.id = vanilla.claim(4)::uuid then
        perform vanilla.refuse('VS409', 'nobody disables themselves');
    end if;
    if p_status = 'disabled' then perform vanilla.keep_an_admin(v_user); end if;
    update public.users set status = p_status where tenant_id = v_user.tenant_id and id = v_user.id and status <> 'deleted';
    if not found then perform vanilla.find_user(v_user.tenant_id, v_user.id); end if;
    if p_status = 'disabled' then
        update public.sessions set revoked_at = vanilla.clock()
            where tenant_id = v_user.tenant_id and user_id = v_user.id and revoked_at is null;
    end if;
    perform vanilla.audit(v_user.tenant_id, 'user.status', 'user', v_user.id, jsonb_build_object('status', p_status));
end
$f$;
comment on function public.set_user_status(uuid, text, uuid) is 'active or disabled; disabling ends sign-ins and keys at once.';

create or replace function vanilla.close_links(p_tenant_id uuid, p_user_id uuid) returns void language sql volatile
set search_path = pg_catalog, pg_temp as $f$
    update public.one_time_tokens set used_at = vanilla.clock()
    where tenant_id = p_tenant_id and user_id = p_user_id and used_at is null
$f$;
comment on function vanilla.close_links(uuid, uuid) is
    'A new password ends every link that could set another; the caller holds the user''s row.';

-- What stays, and why: docs/design/tenancy.md, "Erasing a person".
create or replace function vanilla.erase_person(p_user public.users, p_reason text, p_details jsonb default '{}',
    p_actor_id uuid default null, p_actor_role text default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_user public.users;
    v_wallet public.user_token_wallets;
    v_erased jsonb := '{}';
begin
    -- as it is now: who asked for this may have read it a while ago
    select u.* into v_user from public.users u where u.tenant_id = p_user.tenant_id and u.id = p_user.id and u.status <> 'deleted' for no key update;
    if not found then perform vanilla.find_user(p_user.tenant_id, p_user.id); end if;      -- another was first: no such user
    p_user := v_user;
    if to_regclass('public.payment_customers') is not null then      -- 007; the customer before the wallet, as Stripe's events lock them
        update public.payment_customers set payment_method = null where tenant_id = p_user.tenant_id and user_id = p_user.id;
        delete from public.payment_top_ups where tenant_id = p_user.tenant_id and user_id = p_user.id;
    end if;
    if to_regclass('public.workflow_executions') is not null then      -- 006; executions before wallets, as workers lock them
        perform vanilla.forget_executions(p_user);
    end if;
    if to_regclass('public.resource_allocations') is not null then      -- 009; allocations and their holds before wallets
        perform vanilla.forget_runs(p_user);
        perform vanilla.forget_allocations(p_user);
    end if;
    -- The wallet before the row is written: losing its address, a row is locked against foreign keys too, and whoever gives a
    -- user a policy holds the wallet when theirs looks at the user. And before keys, as calls do.
    select * into v_wallet from public.user_token_wallets w where w.tenant_id = p_user.tenant_id and w.user_id = p_user.id for update;
    if found then
        v_erased := vanilla.end_wallet(vanilla.lock_wallet(p_user.tenant_id, p_user.id));
    end if;
    update public.users set status = 'deleted', email = null, external_id = null, display_name = '', password_hash = null,
            must_change_password = false, last_sign_in_at = null
        where tenant_id = p_user.tenant_id and id = p_user.id;
    perform vanilla.close_links(p_user.tenant_id, p_user.id);
    with ended as (
        select s.id from public.sessions s
        where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id and s.revoked_at is null and s.rotated_at is null and s.refresh_expires_at > v_now),
    blanked as (
        update public.sessions set revoked_at = coalesce(revoked_at, v_now), ip = null, user_agent = null
            where tenant_id = p_user.tenant_id and user_id = p_user.id)
    select v_erased || jsonb_build_object('sessions', count(*)) into v_erased from ended;
    with ended as (
        select k.id from public.api_keys k
        where k.tenant_id = p_user.tenant_id and k.user_id = p_user.id and k.revoked_at is null and k.expires_at > v_now),
    blanked as (
        update public.api_keys set revoked_at = coalesce(revoked_at, v_now), name = 'erased'
            where tenant_id = p_user.tenant_id and user_id = p_user.id)
    select v_erased || jsonb_build_object('keys', count(*)) into v_erased from ended;
    if p_user.role = 'superadmin' then      -- elsewhere nobody has any
        update public.tenant_openings set expires_at = v_now where user_id = p_user.id and expires_at > v_now;
    end if;
    if to_regclass('public.level_feature_usage') is not null then      -- 007
        delete from public.level_feature_usage where tenant_id = p_user.tenant_id and user_id = p_user.id;
        delete from public.level_feature_keys where tenant_id = p_user.tenant_id and user_id = p_user.id;
        delete from public.user_rate_windows where tenant_id = p_user.tenant_id and user_id = p_user.id;
        perform vanilla.record_level_change(p_user.tenant_id, p_user.id, v_wallet.level_id, null);
        perform vanilla.forget_subscription(p_user);
    end if;
    if to_regclass('public.user_engines') is not null then      -- 005
        perform vanilla.forget_engines(p_user);
    end if;
    if to_regclass('public.ai_workflows') is not null then      -- 006
        perform vanilla.forget_workflows(p_user);
    end if;
    if to_regclass('public.communication_channels') is not null then      -- 009
        perform vanilla.forget_channels(p_user);
    end if;
    -- hashes of an address can be guessed
    delete from public.sign_in_throttles h using public.tenants t
        where t.tenant_id = p_user.tenant_id and t.id = p_user.tenant_id and h.tenant_id = vanilla.platform() and h.subject_hash in (
            sha256(convert_to('email:' || t.slug || ':' || p_user.email, 'UTF8')), sha256(convert_to('link:' || t.slug || ':' || p_user.email, 'UTF8')),
            sha256(convert_to('password:' || p_user.id, 'UTF8')));
    perform vanilla.audit(p_user.tenant_id, 'user.erased', 'user', p_user.id, p_details || jsonb_build_object('reason', p_reason) || v_erased,
        p_actor_id, p_actor_role);
    perform vanilla.emit_event(p_user.tenant_id, 'user.erased', p_user.id);
    return jsonb_build_object('tenant_id', p_user.tenant_id, 'user_id', p_user.id) || v_erased;
end
$f$;
comment on function vanilla.erase_person(public.users, text, jsonb, uuid, text) is
    'Erases a user: name, address, password, what sessions and keys tell; ends sign-ins, keys and links; closes the wallet, or suspends it until calls in flight have settled. Amounts stay. The caller has checked who may; VS404 when erased already.';

create or replace function public.erase_user(p_user_id uuid, p_reason text, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.acting_tenant(p_tenant_id), p_user_id);
begin
    if btrim(coalesce(p_reason, '')) = '' then
        perform vanilla.refuse('VS400', 'a reason is needed', '{"param": "reason"}');
    end if;
    if v_user.id = vanilla.claim(4)::uuid then
        perform vanilla.refuse('VS409', 'nobody erases themselves');
    end if;
    perform vanilla.keep_an_admin(v_user);
    return vanilla.erase_person(v_user, p_reason);
end
$f$;
comment on function public.erase_user(uuid, text, uuid) is
    'Erases a person for good: no name, no sign-in, no key; wallet closed, ledger and executions kept without them. By an admin of the tenant or the operator; never oneself, never the last admin. Returns what ended.';

-- An export goes over every declared table that says whose a row is. Row-level security decides what of it the caller reads:
-- open_person_rows runs as whoever calls it, and only what no request may read is read by a function that asks who it is.
create or replace function vanilla.person_tenant(p_user_id uuid, p_tenant_id uuid default null) returns uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := case when p_user_id = vanilla.claim(4)::uuid then vanilla.own_tenant(coalesce(p_tenant_id, vanilla.claim(3)::uuid))
        else vanilla.acting_tenant(p_tenant_id) end;
begin
    return (vanilla.find_user(v_tenant, p_user_id)).tenant_id;
end
$f$;
comment on function vanilla.person_tenant(uuid, uuid) is
    'The tenant of a person whose data the caller may export: themselves, any of the tenant for an admin, anyone for the operator. Refuses everyone else.';

create or replace function public.start_person_export(p_user_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.person_tenant(p_user_id, p_tenant_id);
begin
    perform vanilla.audit(v_tenant, 'user.exported', 'user', p_user_id);
    return jsonb_build_object('tenant_id', v_tenant, 'user_id', p_user_id, 'exported_at', vanilla.clock() at time zone 'UTC',
        'tables', (select jsonb_agg(t.relation order by t.relation <> 'users', t.relation) from vanilla.person_tables() t
            where not (t.ownership = 'admin_only' and coalesce(vanilla.claim(5), '') = 'user')));
end
$f$;
comment on function public.start_person_export(uuid, uuid) is
    'Says in the audit log that a person''s data is exported, and which tables are to be read with open_person_rows: one''s own, any person''s of the tenant by an admin, or by the operator.';

create or replace function vanilla.platform_rows(p_user_id uuid, p_tenant_id uuid, p_relation text) returns setof text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.person_tenant(p_user_id, p_tenant_id);
    v_query text;
begin
    select vanilla.person_query(t.relation, t.owners, t.columns, t.sorted) into v_query
        from vanilla.person_tables() t where t.relation = p_relation and t.ownership = 'platform_only';
    if not found then
        perform vanilla.refuse('VS404', 'no table of persons has this name', jsonb_build_object('relation', p_relation));
    end if;
    return query execute v_query using v_tenant, p_user_id;
end
$f$;
comment on function vanilla.platform_rows(uuid, uuid, text) is
    'A person''s rows of a table that no request reads (sessions, links), as JSON, for who may export them.';

create or replace function public.open_person_rows(p_user_id uuid, p_tenant_id uuid, p_relation text) returns refcursor
language plpgsql volatile set search_path = pg_catalog, pg_temp set cursor_tuple_fraction = 1 as $f$
declare
    v_tenant uuid := vanilla.person_tenant(p_user_id, p_tenant_id);
    v_rows refcursor := 'person_rows';
    v_ownership text;
    v_query text;
begin
    select t.ownership, vanilla.person_query(t.relation, t.owners, t.columns, t.sorted) into v_ownership, v_query
        from vanilla.person_tables() t where t.relation = p_relation;
    if not found then
        perform vanilla.refuse('VS404', 'no table of persons has this name', jsonb_build_object('relation', p_relation));
    end if;
    if v_ownership = 'platform_only' then
        open v_rows no scroll for select r as entry from vanilla.platform_rows(p_user_id, v_tenant, p_relation) r;
    else
        open v_rows no scroll for execute v_query using v_tenant, p_user_id;
    end if;
    return v_rows;
end
$f$;
comment on function public.open_person_rows(uuid, uuid, text) is
    'Opens the cursor person_rows over a person''s rows of one table, as JSON in the order of the primary key: those that the caller may read. fetch forward 500 from person_rows, then close person_rows.';

create or replace function public.set_user_password(
    p_user_id uuid, p_password_hash text, p_must_change_password boolean default true, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.acting_tenant(p_tenant_id), p_user_id);
begin
    if p_password_hash is null or p_password_hash not like '$argon2id$%' then
        perform vanilla.refuse('VS400', 'an Argon2id hash is expected', '{"param": "password_hash"}', 'Use vanilla-saas users set-password.');
    end if;
    update public.users set password_hash = p_password_hash, must_change_password = p_must_change_password
        where tenant_id = v_user.tenant_id and id = v_user.id and status <> 'deleted';
    if not found then perform vanilla.find_user(v_user.tenant_id, v_user.id); end if;
    perform vanilla.close_links(v_user.tenant_id, v_user.id);
    update public.sessions set revoked_at = vanilla.clock()
        where tenant_id = v_user.tenant_id and user_id = v_user.id and revoked_at is null;
    perform vanilla.audit(v_user.tenant_id, 'user.password_set', 'user', v_user.id);
end
$f$;
comment on function public.set_user_password(uuid, text, boolean, uuid) is 'Sets an Argon2id hash and ends all sign-ins and open links; by an admin or the operator.';

create or replace function public.issue_one_time_token(p_user_id uuid, p_token_hash bytea, p_tenant_id uuid default null) returns timestamptz
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.acting_tenant(p_tenant_id), p_user_id);
    v_until timestamptz := vanilla.clock() + interval '24 hours';
begin
    if octet_length(p_token_hash) is distinct from 32 then
        perform vanilla.refuse('VS400', 'a SHA-256 hash is expected', '{"param": "token_hash"}');
    end if;
    perform vanilla.hold_open(v_user);
    begin
        insert into public.one_time_tokens (tenant_id, user_id, purpose, token_hash, expires_at, created_at)
        values (v_user.tenant_id, v_user.id, 'set_password', p_token_hash, v_until, vanilla.clock());
    exception when unique_violation then
        perform vanilla.refuse('VS409', 'a link with this hash exists', '{"param": "token_hash"}', 'Make a new random token.');
    end;
    perform vanilla.audit(v_user.tenant_id, 'user.password_link', 'user', v_user.id);
    return v_until;
end
$f$;
comment on function public.issue_one_time_token(uuid, bytea, uuid) is 'A link to set a password, valid 24 hours, used once; the caller keeps the token, the database its SHA-256.';

create or replace function vanilla.claim_super_admin() returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    -- two random UUIDs: 244 random bits
    v_token text := 'vst_' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
    v_user uuid;
begin
    if vanilla.claim(3) is not null or not vanilla.caller_is_operator() then
        perform vanilla.refuse('VS403', 'only the operator claims the super admin');
    end if;
    -- the users of the platform are the super admins (users_platform_check)
    select id into v_user from public.users where tenant_id = vanilla.platform() and status = 'active'
        order by created_at, id limit 1;
    if v_user is null then
        perform vanilla.refuse('VS404', 'there is no super admin', '{}', 'Run 004_seed_data.sql again.');
    end if;
    insert into public.one_time_tokens (tenant_id, user_id, purpose, token_hash, expires_at, created_at)
    values (vanilla.platform(), v_user, 'claim_super_admin', sha256(convert_to(v_token, 'UTF8')), vanilla.clock() + interval '1 hour', vanilla.clock());
    perform vanilla.audit(vanilla.platform(), 'user.claim_super_admin', 'user', v_user);
    return v_token;
end
$f$;
comment on function vanilla.claim_super_admin() is 'For psql and Supabase: a one-time token, valid an hour, with which the first super admin sets a password.';

-- sign-in: vanilla_runtime only; the password is compared in Python, which spends the same time on unknown users
create or replace function vanilla.count_sign_in(p_subject text, p_limit integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_row public.sign_in_throttles;
begin
    -- counted before the password is looked at: parallel guesses cannot pass together
    insert into public.sign_in_throttles as t (tenant_id, subject_hash, failures, window_ends_at)
    values (vanilla.platform(), sha256(convert_to(p_subject, 'UTF8')), 1, v_now + interval '15 minutes')
    on conflict (tenant_id, subject_hash) do update set
        failures = case when t.window_ends_at <= v_now then 1 else t.failures + 1 end,
        window_ends_at = case when t.window_ends_at <= v_now then v_now + interval '15 minutes' else t.window_ends_at end
    returning * into v_row;
    if v_row.failures <= p_limit then return 0; end if;
    return ceil(extract(epoch from v_row.window_ends_at - v_now))::integer;
end
$f$;
comment on function vanilla.count_sign_in(text, integer) is
    'Counts one attempt of a subject within 15 minutes; returns the seconds to wait above the limit, else 0.';

create or replace function vanilla.begin_sign_in(p_tenant text, p_email text, p_ip text,
    out password_hash text, out retry_after_s integer)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    retry_after_s := greatest(
        vanilla.count_sign_in('email:' || lower(p_tenant) || ':' || lower(p_email), 10),
        vanilla.count_sign_in('ip:' || coalesce(p_ip, ''), 100));
    select u.password_hash into begin_sign_in.password_hash from public.users u
        join public.tenants t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
        where t.slug = lower(p_tenant) and u.email = lower(p_email) and u.status = 'active' and t.status = 'active';
end
$f$;
comment on function vanilla.begin_sign_in(text, text, text) is
    'Counts the attempt and returns the hash to compare (null for unknown users) and the seconds to wait (0: none). Ten attempts per address, a hundred per network, in 15 minutes.';

create or replace function vanilla.finish_sign_in(p_tenant text, p_email text, p_token_hash bytea, p_refresh_hash bytea,
    p_ip text, p_user_agent text, p_ttl interval default '1 hour', p_refresh_ttl interval default '30 days',
    p_verified_hash text default null, p_rehashed text default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_id uuid := vanilla.uuid7();
    v_user public.users;
begin
    -- locked: a password set while the old one was being compared has ended all sessions, and this is none of its own
    select u.* into v_user from public.users u
        join public.tenants t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
        where t.slug = lower(p_tenant) and u.email = lower(p_email) and u.status = 'active' and t.status = 'active'
        for no key update of u;
    -- asked again: whoever closed the tenant held this row meanwhile, and the statement above still saw it open
    if not found or (p_verified_hash is not null and v_user.password_hash is distinct from p_verified_hash)
       or not exists (select from public.tenants where tenant_id = v_user.tenant_id and id = v_user.tenant_id and status = 'active') then
        perform vanilla.refuse('VS411', 'tenant, email or password is wrong');
    end if;
    insert into public.sessions (tenant_id, id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at, ip, user_agent, created_at)
    values (v_user.tenant_id, v_id, v_user.id, v_id, p_token_hash, p_refresh_hash, v_now + p_ttl, v_now + p_refresh_ttl, p_ip, left(p_user_agent, 300), v_now);
    update public.users set last_sign_in_at = v_now, password_hash = coalesce(p_rehashed, password_hash)
        where tenant_id = v_user.tenant_id and id = v_user.id;
    delete from public.sign_in_throttles where tenant_id = vanilla.platform()
        and subject_hash = sha256(convert_to('email:' || lower(p_tenant) || ':' || lower(p_email), 'UTF8'));
    -- a right password takes back its own count only: an office signs in all morning, a guesser gains nothing
    update public.sign_in_throttles set failures = greatest(failures - 1, 0) where tenant_id = vanilla.platform()
        and subject_hash = sha256(convert_to('ip:' || coalesce(p_ip, ''), 'UTF8'));
    perform set_config('vanilla.client_ip', coalesce(p_ip, ''), true);
    perform vanilla.audit(v_user.tenant_id, 'session.opened', 'user', v_user.id, jsonb_build_object('session_id', v_id), v_user.id, v_user.role);
    return jsonb_build_object('tenant_id', v_user.tenant_id, 'user_id', v_user.id, 'role', v_user.role,
        'must_change_password', v_user.must_change_password, 'expires_at', v_now + p_ttl);
end
$f$;
comment on function vanilla.finish_sign_in(text, text, bytea, bytea, text, text, interval, interval, text, text) is
    'Opens a session after the password was found right: refuses when p_verified_hash, which was compared, is no longer the user''s. p_rehashed is the same password under newer parameters.';

create or replace function vanilla.fail_sign_in(p_tenant text, p_email text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    -- only for addresses that exist: the log is not for strangers to fill
    perform vanilla.audit(u.tenant_id, 'session.refused', 'user', u.id, '{}', u.id, u.role)
        from public.users u join public.tenants t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
        where t.slug = lower(p_tenant) and u.email = lower(p_email);
    if not found then      -- a write and a commit as well: the answer takes as long
        update public.sign_in_throttles set failures = failures where tenant_id = vanilla.platform()
            and subject_hash = sha256(convert_to('email:' || lower(p_tenant) || ':' || lower(p_email), 'UTF8'));
    end if;
end
$f$;
comment on function vanilla.fail_sign_in(text, text) is 'Writes the audit row of a wrong password.';

create or replace function vanilla.session_identity(p_token_hash bytea, p_tenant_id uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
begin
    select s.id as session_id, s.tenant_id, u.id as user_id, u.role, u.email, u.display_name, u.must_change_password,
           t.slug as tenant, t.name as tenant_name, s.expires_at
        into v from public.sessions s
        join public.users u on u.tenant_id = s.tenant_id and u.id = s.user_id
        join public.tenants t on t.tenant_id = s.tenant_id and t.id = s.tenant_id
        where s.token_hash = p_token_hash and s.revoked_at is null and s.rotated_at is null and s.expires_at > vanilla.clock()
          and u.status = 'active' and t.status = 'active';
    if not found then return null; end if;
    if p_tenant_id <> v.tenant_id then
        select t.id, t.slug, t.name into v.tenant_id, v.tenant, v.tenant_name from public.tenant_openings o
            join public.tenants t on t.tenant_id = o.tenant_id and t.id = o.tenant_id
            where o.tenant_id = p_tenant_id and o.user_id = v.user_id and o.expires_at > vanilla.clock() and v.role = 'superadmin'
            limit 1;
        if not found then return null; end if;
    end if;
    return to_jsonb(v);
end
$f$;
comment on function vanilla.session_identity(bytea, uuid) is
    'Who a session token is, or null; a super admin may name a tenant that is open to them.';

create or replace function vanilla.rotate_session(p_refresh_hash bytea, p_token_hash bytea, p_new_refresh_hash bytea,
    p_ttl interval default '1 hour', p_refresh_ttl interval default '30 days') returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_old public.sessions;
begin
    -- users before sessions: two old tokens of one family reused at once would each hold a row the other revokes
    perform from public.users u join public.sessions s on s.tenant_id = u.tenant_id and s.user_id = u.id
        where s.refresh_hash = p_refresh_hash for no key update of u;
    select * into v_old from public.sessions where refresh_hash = p_refresh_hash for update;
    if not found or v_old.revoked_at is not null or v_old.refresh_expires_at <= v_now
       or not exists (select from public.users u join public.tenants t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
                      where u.tenant_id = v_old.tenant_id and u.id = v_old.user_id and u.status = 'active' and t.status = 'active') then
        return jsonb_build_object('outcome', 'unknown');
    end if;
    if v_old.rotated_at is not null then
        -- used twice: one of the two is a thief, so nobody keeps the family. Returned, not raised: an error would undo it.
        update public.sessions set revoked_at = v_now where tenant_id = v_old.tenant_id and family_id = v_old.family_id and revoked_at is null;
        perform vanilla.audit(v_old.tenant_id, 'session.reused', 'user', v_old.user_id, jsonb_build_object('family_id', v_old.family_id), v_old.user_id, 'user');
        return jsonb_build_object('outcome', 'reused');
    end if;
    update public.sessions set rotated_at = v_now where tenant_id = v_old.tenant_id and id = v_old.id;
    insert into public.sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at, ip, user_agent, created_at)
    values (v_old.tenant_id, v_old.user_id, v_old.family_id, p_token_hash, p_new_refresh_hash, v_now + p_ttl, v_now + p_refresh_ttl, v_old.ip, v_old.user_agent, v_now);
    return (select jsonb_build_object('outcome', 'rotated', 'expires_at', v_now + p_ttl, 'must_change_password', u.must_change_password)
            from public.users u where u.tenant_id = v_old.tenant_id and u.id = v_old.user_id);
end
$f$;
comment on function vanilla.rotate_session(bytea, bytea, bytea, interval, interval) is
    'Exchanges a refresh token once: outcome rotated, unknown, or reused (the family is revoked).';

create or replace function vanilla.close_session(p_token_hash bytea) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_row public.sessions;
begin
    -- users before sessions, as in rotate_session: a refresh at the same moment is ended with the family
    perform from public.users u join public.sessions s on s.tenant_id = u.tenant_id and s.user_id = u.id
        where s.token_hash = p_token_hash for no key update of u;
    select * into v_row from public.sessions where token_hash = p_token_hash;
    if not found then return false; end if;
    update public.sessions set revoked_at = vanilla.clock()
        where tenant_id = v_row.tenant_id and family_id = v_row.family_id and revoked_at is null;
    if not found then return false; end if;
    perform vanilla.audit(v_row.tenant_id, 'session.closed', 'user', v_row.user_id, '{}', v_row.user_id, 'user');
    return true;
end
$f$;
comment on function vanilla.close_session(bytea) is 'Signs out: revokes the session''s whole family.';

create or replace function vanilla.begin_password_change(p_token_hash bytea,
    out password_hash text, out retry_after_s integer)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users;
begin
    select u.* into v_user from public.sessions s join public.users u on u.tenant_id = s.tenant_id and u.id = s.user_id
        where s.token_hash = p_token_hash and s.revoked_at is null and s.rotated_at is null and s.expires_at > vanilla.clock() and u.status = 'active';
    if not found then return; end if;
    -- whoever found an open session may not guess the password with it
    retry_after_s := vanilla.count_sign_in('password:' || v_user.id, 10);
    password_hash := v_user.password_hash;
end
$f$;
comment on function vanilla.begin_password_change(bytea) is
    'Counts the attempt and returns the hash to compare before a password is changed and the seconds to wait; nulls when the session is not live.';

create or replace function vanilla.change_password(p_token_hash bytea, p_password_hash text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_row public.sessions;
begin
    -- users before sessions; a session that a new password has just ended changes nothing
    perform from public.users u join public.sessions s on s.tenant_id = u.tenant_id and s.user_id = u.id
        where s.token_hash = p_token_hash for no key update of u;
    select * into v_row from public.sessions
        where token_hash = p_token_hash and revoked_at is null and rotated_at is null and expires_at > vanilla.clock();
    if not found then return false; end if;
    if p_password_hash is null or p_password_hash not like '$argon2id$%' then perform vanilla.refuse('VS400', 'an Argon2id hash is expected'); end if;
    update public.users set password_hash = p_password_hash, must_change_password = false
        where tenant_id = v_row.tenant_id and id = v_row.user_id;
    perform vanilla.close_links(v_row.tenant_id, v_row.user_id);
    update public.sessions set revoked_at = vanilla.clock()
        where tenant_id = v_row.tenant_id and user_id = v_row.user_id and family_id <> v_row.family_id and revoked_at is null;
    delete from public.sign_in_throttles where tenant_id = vanilla.platform()
        and subject_hash = sha256(convert_to('password:' || v_row.user_id, 'UTF8'));
    perform vanilla.audit(v_row.tenant_id, 'user.password_changed', 'user', v_row.user_id, '{}', v_row.user_id, 'user');
    return true;
end
$f$;
comment on function vanilla.change_password(bytea, text) is 'Sets a new hash for the session''s user and ends their other sessions and open links.';

create or replace function vanilla.request_password_link(p_tenant text, p_email text, p_ip text, p_token_hash bytea) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users;
begin
    if octet_length(p_token_hash) is distinct from 32 then
        perform vanilla.refuse('VS400', 'a SHA-256 hash is expected', '{"param": "token_hash"}');
    end if;
    -- nobody's mailbox is filled by a stranger
    if greatest(vanilla.count_sign_in('link:' || lower(p_tenant) || ':' || lower(p_email), 3),
                vanilla.count_sign_in('link-ip:' || coalesce(p_ip, ''), 30)) > 0 then
        return null;
    end if;
    select u.* into v_user from public.users u
        join public.tenants t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
        where t.slug = lower(p_tenant) and u.email = lower(p_email) and u.status = 'active' and t.status = 'active';
    if not found then return null; end if;
    insert into public.one_time_tokens (tenant_id, user_id, purpose, token_hash, expires_at, created_at)
    values (v_user.tenant_id, v_user.id, 'set_password', p_token_hash, vanilla.clock() + interval '1 hour', vanilla.clock());
    perform set_config('vanilla.client_ip', coalesce(p_ip, ''), true);
    perform vanilla.audit(v_user.tenant_id, 'user.password_link', 'user', v_user.id, '{"by": "forgot"}', v_user.id, v_user.role);
    return v_user.email;
end
$f$;
comment on function vanilla.request_password_link(text, text, text, bytea) is
    'Keeps a one-time token of an hour for a user who forgot the password and returns the address to send it to; null when there is none, or after three links in 15 minutes.';

create or replace function vanilla.one_time_token_user(p_token_hash bytea) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('tenant', t.slug, 'email', u.email) from public.one_time_tokens o
    join public.users u on u.tenant_id = o.tenant_id and u.id = o.user_id
    join public.tenants t on t.tenant_id = o.tenant_id and t.id = o.tenant_id
    where o.token_hash = p_token_hash and o.used_at is null and o.expires_at > vanilla.clock() and u.status = 'active'
$f$;
comment on function vanilla.one_time_token_user(bytea) is
    'Whose password a live one-time token sets, or null: a dead one is refused before the new password is hashed.';

create or replace function vanilla.redeem_one_time_token(p_token_hash bytea, p_password_hash text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_row public.one_time_tokens;
begin
    if p_password_hash is null or p_password_hash not like '$argon2id$%' then perform vanilla.refuse('VS400', 'an Argon2id hash is expected'); end if;
    -- users before one-time tokens: two links of one user redeemed at once
    perform from public.users u join public.one_time_tokens o on o.tenant_id = u.tenant_id and o.user_id = u.id
        where o.token_hash = p_token_hash for no key update of u;
    update public.one_time_tokens set used_at = vanilla.clock()
        where token_hash = p_token_hash and used_at is null and expires_at > vanilla.clock() returning * into v_row;
    if not found then perform vanilla.refuse('VS411', 'the link is used up or too old', '{}', 'Ask an admin for a new one.'); end if;
    update public.users set password_hash = p_password_hash, must_change_password = false
        where tenant_id = v_row.tenant_id and id = v_row.user_id and status = 'active';
    if not found then perform vanilla.refuse('VS411', 'the link is used up or too old', '{}', 'Ask an admin for a new one.'); end if;
    perform vanilla.close_links(v_row.tenant_id, v_row.user_id);
    update public.sessions set revoked_at = vanilla.clock()
        where tenant_id = v_row.tenant_id and user_id = v_row.user_id and revoked_at is null;
    perform vanilla.audit(v_row.tenant_id, 'user.password_changed', 'user', v_row.user_id, jsonb_build_object('by', v_row.purpose), v_row.user_id, 'user');
    return (select jsonb_build_object('tenant', t.slug, 'email', u.email) from public.users u
            join public.tenants t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
            where u.tenant_id = v_row.tenant_id and u.id = v_row.user_id);
end
$f$;
comment on function vanilla.redeem_one_time_token(bytea, text) is 'Sets a password with a one-time token and ends all sign-ins and other links.';

create or replace function vanilla.begin_registration(p_ip text) returns integer
language sql volatile security definer set search_path = pg_catalog, pg_temp as $f$
    select vanilla.count_sign_in('register:' || coalesce(p_ip, ''), 100)
$f$;
comment on function vanilla.begin_registration(text) is
    'Counts an attempt to register and returns the seconds to wait (0: none). Its own transaction, before the password is hashed: a refused registration counts too.';

create or replace function vanilla.register_user(p_tenant text, p_email text, p_password_hash text, p_display_name text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant public.tenants;
    v_id uuid;
begin
    select * into v_tenant from public.tenants where slug = lower(p_tenant) and status = 'active';
    if not found or not v_tenant.self_registration then
        perform vanilla.refuse('VS403', 'this tenant does not take registrations', '{"need": "self_registration"}', 'An admin of the tenant can add users.');
    end if;
    if p_password_hash is null or p_password_hash not like '$argon2id$%' then perform vanilla.refuse('VS400', 'an Argon2id hash is expected'); end if;
    v_id := vanilla.make_user(v_tenant.id, p_email, null, p_display_name, 'user', p_password_hash, false, null);
    perform vanilla.audit(v_tenant.id, 'user.registered', 'user', v_id, '{}', v_id, 'user');
    return jsonb_build_object('tenant_id', v_tenant.id, 'user_id', v_id);
end
$f$;
comment on function vanilla.register_user(text, text, text, text) is 'A visitor becomes a user of a tenant that takes registrations, with the default level''s tokens.';

create or replace function vanilla.require_place(p_user public.users, p_restriction text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_most bigint;
    v_have bigint;
begin
    select (l.restrictions ->> p_restriction)::bigint into v_most from public.user_token_wallets w
        join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id
        where w.tenant_id = p_user.tenant_id and w.user_id = p_user.id;
    if v_most is null then return; end if;
    -- two who make the last one meet here; before hold_open, whose lock both of them would have
    perform from public.users u where u.tenant_id = p_user.tenant_id and u.id = p_user.id for no key update;
    if p_restriction = 'api_keys' then
        select count(*) into v_have from public.api_keys k
            where k.tenant_id = p_user.tenant_id and k.user_id = p_user.id and k.revoked_at is null and k.expires_at > vanilla.clock();
    elsif p_restriction = 'workflows' then      -- 006
        select count(*) into v_have from public.ai_workflows w where w.tenant_id = p_user.tenant_id and w.user_id = p_user.id and w.status = 'active';
    else      -- 009
        select count(*) into v_have from public.agents a where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and a.status = 'active';
    end if;
    if v_have >= v_most then
        perform vanilla.refuse('VS429', format('the level allows %s %s', v_most, replace(p_restriction, 'api_keys', 'API keys')), jsonb_build_object(
            'restriction', p_restriction, 'limit', v_most, 'used', v_have, 'resets_at', null),
            case p_restriction when 'api_keys' then 'Revoke' else 'Retire' end || ' one, or ask an admin for another level.');
    end if;
end
$f$;
comment on function vanilla.require_place(public.users, text) is
    'Refuses when a user has as many api_keys, workflows or agents as the level allows; else nobody makes another of theirs until this commits.';

create or replace function vanilla.make_api_key(p_user public.users, p_key public.api_keys) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_id uuid := vanilla.uuid7();
begin
    if p_key.expires_at <= vanilla.clock() then
        perform vanilla.refuse('VS400', 'the expiry is in the past', '{"param": "expires_at"}');
    end if;
    perform vanilla.require_place(p_user, 'api_keys');
    perform vanilla.hold_open(p_user);
    begin
        insert into public.api_keys (tenant_id, id, user_id, name, prefix, key_hash, scopes, budget_tokens, expires_at, engine_tenant_id, engine_id, engine_ref, created_at)
        values (p_user.tenant_id, v_id, p_user.id, p_key.name, p_key.prefix, p_key.key_hash, p_key.scopes, p_key.budget_tokens, p_key.expires_at,
            p_key.engine_tenant_id, p_key.engine_id, p_key.engine_ref, vanilla.clock());
    exception
        when check_violation or not_null_violation then
            perform vanilla.refuse('VS400', 'name, scopes or budget is not valid', '{"param": "scopes"}',
                'Scopes: chat, read, admin, act_as, act_as:create. A budget is positive.');
        when unique_violation then
            perform vanilla.refuse('VS409', 'a key with this hash exists', '{"param": "key_hash"}', 'Make a new random key.');
    end;
    perform vanilla.audit(p_user.tenant_id, 'api_key.created', 'api_key', v_id, jsonb_build_object('user_id', p_user.id, 'scopes', p_key.scopes, 'prefix', p_key.prefix)
        || case when p_key.engine_ref is null then '{}' else jsonb_build_object('engine', p_key.engine_ref) end);
    return v_id;
end
$f$;
comment on function vanilla.make_api_key(public.users, public.api_keys) is 'Keeps a key of a user, as many as the level allows; the caller has checked who may and which scopes.';

create or replace function public.create_api_key(
    p_name text, p_prefix text, p_key_hash bytea, p_scopes text[] default '{chat}', p_expires_at timestamptz default 'infinity',
    p_budget_tokens bigint default null, p_user_id uuid default null, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_self boolean := vanilla.claim(4) is not null and coalesce(p_user_id, vanilla.claim(4)::uuid) = vanilla.claim(4)::uuid;
    v_tenant uuid;
    v_user public.users;
    v_key public.api_keys;
begin
    if v_self and vanilla.claim(5) = 'user' then
        v_tenant := vanilla.own_tenant(p_tenant_id);
        if p_scopes && array['admin', 'act_as', 'act_as:create'] then
            perform vanilla.refuse('VS403', 'only an admin makes keys with these scopes', jsonb_build_object('scopes', p_scopes));
        end if;
    else
        v_tenant := vanilla.acting_tenant(p_tenant_id);
    end if;
    v_user := vanilla.find_user(v_tenant, coalesce(p_user_id, vanilla.claim(4)::uuid));
    if 'admin' = any (p_scopes) and v_user.role = 'user' then
        perform vanilla.refuse('VS400', 'the scope admin needs a user who is an admin', '{"param": "scopes"}');
    end if;
    v_key.name := p_name;
    v_key.prefix := p_prefix;
    v_key.key_hash := p_key_hash;
    v_key.scopes := p_scopes;
    v_key.budget_tokens := p_budget_tokens;
    v_key.expires_at := p_expires_at;
    return vanilla.make_api_key(v_user, v_key);
end
$f$;
comment on function public.create_api_key(text, text, bytea, text[], timestamptz, bigint, uuid, uuid) is
    'Keeps the SHA-256 of a key the caller made; own keys, or any user''s by an admin. Returns the id.';

create or replace function vanilla.key_lock(p_key_id uuid) returns bigint language sql immutable
    return hashtextextended('vanilla_saas.key ' || p_key_id, 0);
comment on function vanilla.key_lock(uuid) is 'The advisory lock at which revoking a key waits for the runs that it is beginning.';

create or replace function public.revoke_api_key(p_key_id uuid, p_tenant_id uuid default null, p_cancel_runs boolean default true) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.member_tenant(p_tenant_id);
    v_row public.api_keys;
    v_cancelled integer := 0;
begin
    select * into v_row from public.api_keys
        where id = p_key_id and (tenant_id = v_tenant or v_tenant is null)
          and (vanilla.claim(5) is distinct from 'user' or user_id = vanilla.claim(4)::uuid);
    if not found then perform vanilla.refuse('VS404', 'no such key'); end if;
    if v_row.engine_id is not null and p_cancel_runs is not false then      -- 006; executions and wallets before keys, as calls lock them
        perform pg_advisory_xact_lock(vanilla.key_lock(v_row.id));
        v_cancelled := vanilla.cancel_runs_of_key(v_row);
    end if;
    update public.api_keys set revoked_at = coalesce(revoked_at, vanilla.clock()) where tenant_id = v_row.tenant_id and id = v_row.id;
    perform vanilla.audit(v_row.tenant_id, 'api_key.revoked', 'api_key', v_row.id, jsonb_build_object('prefix', v_row.prefix, 'runs_cancelled', v_cancelled));
end
$f$;
comment on function public.revoke_api_key(uuid, uuid, boolean) is
    'The next call with this key is refused; own keys, or any of the tenant''s by an admin. What a key of an engine began and has not ended is cancelled with the reason key_revoked, unless p_cancel_runs is false.';

create or replace function vanilla.key_identity(p_key_hash bytea) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
begin
    select k.id as key_id, k.tenant_id, k.user_id, k.scopes,
           case when 'admin' = any (k.scopes) then u.role else 'user' end as role, u.email, u.display_name,
           t.slug as tenant, t.name as tenant_name
        into v from public.api_keys k
        join public.users u on u.tenant_id = k.tenant_id and u.id = k.user_id
        join public.tenants t on t.tenant_id = k.tenant_id and t.id = k.tenant_id
        where k.key_hash = p_key_hash and k.revoked_at is null and k.expires_at > vanilla.clock()
          and u.status = 'active' and t.status = 'active';
    if not found then return null; end if;
    return to_jsonb(v);
end
$f$;
comment on function vanilla.key_identity(bytea) is 'Who a key is, or null; without the scope admin its role is user.';

grant execute on function
    public.create_tenant(text, text, text), public.set_tenant_status(uuid, text), public.close_tenant(uuid, text, interval), public.open_tenant(uuid, text),
    public.leave_tenant(uuid, uuid), public.create_user(text, text, text, text, uuid, boolean, uuid, text), public.set_user_role(uuid, text, uuid),
    public.set_display_name(text), public.set_user_status(uuid, text, uuid), public.set_user_password(uuid, text, boolean, uuid),
    public.erase_user(uuid, text, uuid), public.start_person_export(uuid, uuid), public.open_person_rows(uuid, uuid, text),
    vanilla.platform_rows(uuid, uuid, text), vanilla.person_tenant(uuid, uuid),
    public.issue_one_time_token(uuid, bytea, uuid),
    public.create_api_key(text, text, bytea, text[], timestamptz, bigint, uuid, uuid), public.revoke_api_key(uuid, uuid, boolean)
    to vanilla_app, vanilla_operator;
grant execute on function vanilla.claim_super_admin() to vanilla_operator;
grant execute on function
    vanilla.begin_sign_in(text, text, text),
    vanilla.finish_sign_in(text, text, bytea, bytea, text, text, interval, interval, text, text),
    vanilla.fail_sign_in(text, text), vanilla.session_identity(bytea, uuid),
    vanilla.rotate_session(bytea, bytea, bytea, interval, interval), vanilla.close_session(bytea),
    vanilla.begin_password_change(bytea), vanilla.change_password(bytea, text), vanilla.redeem_one_time_token(bytea, text),
    vanilla.request_password_link(text, text, text, bytea), vanilla.one_time_token_user(bytea),
    vanilla.begin_registration(text), vanilla.register_user(text, text, text, text), vanilla.key_identity(bytea)
    to vanilla_runtime;

-- 8. metered call --------------------------------------------------------------------------------------------------
create or replace function vanilla.setting(p_tenant_id uuid, p_key text) returns jsonb language sql stable
set search_path = pg_catalog, pg_temp as $f$
    select value from public.system_configurations
    where tenant_id in (p_tenant_id, vanilla.platform()) and key = p_key
    order by tenant_id = vanilla.platform() limit 1
$f$;
comment on function vanilla.setting(uuid, text) is 'The tenant''s value of a setting, else the platform''s, else null.';

-- bodies of standard SQL: names are resolved here and now, so no SET is needed and plpgsql inlines the expression
create or replace function vanilla.call_tokens(p_call jsonb, p_input bigint, p_cached bigint, p_output bigint) returns bigint
language sql immutable
    return ceil((p_input - p_cached) * (p_call ->> 'input_weight')::numeric + p_cached * (p_call ->> 'cached_input_weight')::numeric
        + p_output * (p_call ->> 'output_weight')::numeric)::bigint;
comment on function vanilla.call_tokens(jsonb, bigint, bigint, bigint) is 'Wallet tokens of a call: model tokens times the weights pinned at admission, rounded up once.';

create or replace function vanilla.call_cost_micros(p_call jsonb, p_input bigint, p_cached bigint, p_output bigint) returns bigint
language sql immutable
    return ceil(((p_input - p_cached)::numeric * (p_call ->> 'input_price')::bigint
        + p_cached::numeric * coalesce((p_call ->> 'cached_input_price')::bigint, (p_call ->> 'input_price')::bigint)
        + p_output::numeric * (p_call ->> 'output_price')::bigint) / 1000000)::bigint;
comment on function vanilla.call_cost_micros(jsonb, bigint, bigint, bigint) is 'Micros of USD that the provider charges: tokens times price per million, rounded up once.';

-- enable_seqscan: connections keep the plans of their first calls, and those are made while tables are nearly empty. A table
-- that grows a thousandfold before the next ANALYZE would be read whole by every call.
create or replace function vanilla.admit_call(
    p_key_hash bytea, p_session_hash bytea, p_payer text, p_model text,
    p_prompt_tokens bigint, p_sandbox_prompt_tokens bigint, p_output_limit bigint, p_choices integer,
    p_execution_id uuid, p_streamed boolean, p_ttl interval,
    p_idempotency_key text default null, p_request_id text default null, p_step jsonb default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_caller record;
    v_key public.api_keys;
    v_payer uuid;
    v_model public.ai_models;
    v_provider public.ai_providers;
    v_wallet public.user_token_wallets;
    v_entry public.user_token_ledger;
    v_short public.user_token_ledger;
    v_call jsonb;
    v_prompt bigint;
    v_input bigint;
    v_output bigint;
    v_needed bigint;
    v_held jsonb;
    v_others bigint := 0;
    v_clamped boolean := false;
    v_least bigint;
    v_limits jsonb;
    v_rate jsonb;
begin
    -- who calls
    if p_step is not null then      -- a worker, for a step of a workflow (006) whose lease it has
        select q.tenant_id, q.user_id, e.api_key_id as key_id, array['chat'] as scopes, k.budget_tokens, l.restrictions,
                t.calls_stopped_until, t.time_zone, q.execution_id, e.hold_id, e.allocation_id into v_caller
            from public.workflow_queue q
            join public.workflow_executions e on e.tenant_id = q.tenant_id and e.id = q.execution_id
            join public.users u on u.tenant_id = q.tenant_id and u.id = q.user_id
            join public.tenants t on t.tenant_id = q.tenant_id and t.id = q.tenant_id
            left join public.user_token_wallets w on w.tenant_id = q.tenant_id and w.user_id = q.user_id
            left join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id
            left join public.api_keys k on k.tenant_id = e.tenant_id and k.id = e.api_key_id
            where q.tenant_id = (p_step ->> 'tenant_id')::uuid and q.execution_id = (p_step ->> 'execution_id')::uuid and q.node = (p_step ->> 'n')::smallint
              and q.item = coalesce((p_step ->> 'item')::integer, -1) and q.worker = (p_step ->> 'worker')::uuid and q.lease = (p_step ->> 'lease')::bigint
              and u.status = 'active' and t.status = 'active';
    elsif p_key_hash is not null then
        select k.tenant_id, k.user_id, k.id as key_id, k.scopes, k.budget_tokens, l.restrictions, t.calls_stopped_until, t.time_zone, null::uuid as allocation_id into v_caller
            from public.api_keys k
            join public.users u on u.tenant_id = k.tenant_id and u.id = k.user_id
            join public.tenants t on t.tenant_id = k.tenant_id and t.id = k.tenant_id
            left join public.user_token_wallets w on w.tenant_id = k.tenant_id and w.user_id = k.user_id
            left join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id
            where k.key_hash = p_key_hash and k.revoked_at is null and k.expires_at > v_now
              and u.status = 'active' and t.status = 'active';
    else
        select s.tenant_id, s.user_id, null::uuid as key_id, array['chat'] as scopes, null::bigint as budget_tokens, l.restrictions,
                t.calls_stopped_until, t.time_zone, null::uuid as allocation_id into v_caller
            from public.sessions s
            join public.users u on u.tenant_id = s.tenant_id and u.id = s.user_id
            join public.tenants t on t.tenant_id = s.tenant_id and t.id = s.tenant_id
            left join public.user_token_wallets w on w.tenant_id = s.tenant_id and w.user_id = s.user_id
            left join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id
            where s.token_hash = p_session_hash and s.revoked_at is null and s.rotated_at is null and s.expires_at > v_now
              and u.status = 'active' and t.status = 'active';
    end if;
    if not found then
        if p_step is not null then perform vanilla.refuse('VS409', 'the step was taken from this worker, or who pays is not active'); end if;
        perform vanilla.refuse('VS411', 'the key is wrong, revoked or expired');
    end if;
    if not 'chat' = any (v_caller.scopes) then
        perform vanilla.refuse('VS403', 'the key lacks the scope chat', '{"need": "chat"}', 'Make a key with the scope chat.');
    end if;
    if v_caller.calls_stopped_until > v_now then
        perform vanilla.refuse_tenant_tokens(v_caller.tenant_id);
    end if;
    -- who pays
    v_payer := v_caller.user_id;
    v_limits := v_caller.restrictions;
    if p_payer is not null then
        if not v_caller.scopes && array['act_as', 'act_as:create'] then
            perform vanilla.refuse('VS403', 'the key may not name who pays', '{"need": "act_as"}',
                'Leave out X-Vanilla-User and user, or use a key with the scope act_as.');
        end if;
        select id into v_payer from public.users
            where tenant_id = v_caller.tenant_id and external_id = p_payer and status = 'active';
        if not found then
            if not 'act_as:create' = any (v_caller.scopes)
               -- one that another first call has made since the look above is found below
               or exists (select from public.users where tenant_id = v_caller.tenant_id and external_id = p_payer and status <> 'active') then
                perform vanilla.refuse('VS404', 'no such user', jsonb_build_object('user', p_payer),
                    'A key with the scope act_as:create makes users on the default level.');
            end if;
            -- two first calls of one user meet here: the second waits, then finds
            perform pg_advisory_xact_lock(hashtextextended(v_caller.tenant_id::text || ':' || p_payer, 0));
            select id into v_payer from public.users
                where tenant_id = v_caller.tenant_id and external_id = p_payer and status = 'active';
            if not found then
                v_payer := vanilla.make_user(v_caller.tenant_id, null, p_payer, '', 'user', null, false, null);
                perform vanilla.audit(v_caller.tenant_id, 'user.created', 'user', v_payer,
                    jsonb_build_object('by', 'act_as:create'), v_caller.user_id, 'service');
            end if;
        end if;
        -- the payer's level, not the key's user's
        select l.restrictions into v_limits from public.user_token_wallets w
            join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id
            where w.tenant_id = v_caller.tenant_id and w.user_id = v_payer;
    end if;
    -- what is called: the tenant's own model before the platform's of the same name
    select m.* into v_model from public.ai_models m
        where m.tenant_id in (v_caller.tenant_id, vanilla.platform()) and m.slug = p_model and m.status <> 'disabled'
        order by m.tenant_id = vanilla.platform() limit 1;
    if not found then
        perform vanilla.refuse('VS414', format('the model %s does not exist', p_model), jsonb_build_object('model', p_model),
            'GET /v1/models lists what you can call.');
    end if;
    if v_model.kind <> (case p_output_limit when 0 then 'embedding' else 'chat' end) then
        perform vanilla.refuse('VS416', format(case v_model.kind when 'chat' then 'the model %s chats, it makes no embeddings'
                else 'the model %s makes embeddings, it does not chat' end, p_model),
            jsonb_build_object('param', 'model', 'model', p_model, 'kind', v_model.kind), 'GET /v1/models says of what kind a model is.');
    end if;
    select * into v_provider from public.ai_providers
        where tenant_id = v_model.provider_tenant_id and id = v_model.provider_id;
    if v_provider.status <> 'active' or (v_provider.secret is null and v_provider.kind not in ('sandbox', 'custom')) then
        perform vanilla.refuse('VS424', format('the provider %s has no key yet', v_provider.slug), jsonb_build_object('provider', v_provider.slug),
            format('An operator sets it: vanilla-saas providers set-key %s', v_provider.slug));
    end if;
    if v_model.input_price is null or v_model.output_price is null then
        perform vanilla.refuse('VS424', format('the model %s has no price, so it is not called', p_model), jsonb_build_object('model', p_model),
            'Refresh prices with vanilla-saas models sync.');
    end if;
    v_call := jsonb_build_object('model_id', v_model.id, 'model', v_model.slug, 'provider_id', v_provider.id, 'provider', v_provider.slug,
        'input_weight', v_model.input_weight, 'cached_input_weight', v_model.cached_input_weight, 'output_weight', v_model.output_weight,
        'input_price', v_model.input_price, 'cached_input_price', v_model.cached_input_price, 'output_price', v_model.output_price,
        'streamed', p_streamed, 'request_id', p_request_id);
    -- the worst case, clamped to what the wallet affords when the caller named no limit
    v_prompt := case when v_provider.kind = 'sandbox' then p_sandbox_prompt_tokens else p_prompt_tokens end;
    -- the bound counts bytes; four a token is far beyond what the window can take. Of embeddings each input has a window.
    if v_model.kind = 'chat' and v_prompt > 4::bigint * v_model.context_window then
        perform vanilla.refuse('VS400', format('the prompt does not fit the context window of %s tokens', v_model.context_window),
            jsonb_build_object('param', 'messages', 'limit', v_model.context_window));
    end if;
    v_output := coalesce(p_output_limit, coalesce(v_model.max_output_tokens, 4096) * p_choices);
    if v_output > v_model.max_output_tokens * p_choices then
        perform vanilla.refuse('VS400', format('max_tokens is at most %s for this model', v_model.max_output_tokens),
            jsonb_build_object('param', 'max_tokens', 'limit', v_model.max_output_tokens));
    end if;
    if v_limits is not null then
        v_output := vanilla.restrict_call(v_caller.tenant_id, v_payer, v_caller.time_zone, v_limits, v_model.slug, v_prompt, v_output, p_output_limit is not null, p_choices);
        if v_limits ? 'tokens_per_minute' then
            v_call := v_call || '{"rate": true}';
        end if;
    end if;
    v_needed := vanilla.call_tokens(v_call, v_prompt, 0, v_output);
    v_entry.tenant_id := v_caller.tenant_id;
    v_entry.user_id := v_payer;
    v_entry.direction := 'reserve';
    v_entry.reason := 'model call';
    v_entry.source := 'gateway';
    v_entry.reference_type := 'ai_execution';
    v_entry.reference_id := p_execution_id;
    v_entry.execution_id := p_execution_id;
    v_entry.idempotency_key := p_idempotency_key;
    v_entry.actor_id := v_caller.user_id;
    v_entry.metadata := '{}';
    if p_step is not null then
        v_entry.source := 'workflow';
        v_entry.reference_type := 'workflow_execution';
        v_entry.reference_id := v_caller.execution_id;
        v_call := v_call || jsonb_build_object('lease', p_step -> 'lease');
    end if;
    if p_step is not null and (p_step ->> 'run_id' is not null or v_caller.allocation_id is not null) then      -- a budget pays, which the wallet has reserved already (009)
        v_held := vanilla.hold_turn(v_caller.tenant_id, v_caller.allocation_id, p_step, v_call || jsonb_build_object('api_key_id', v_caller.key_id), v_prompt, v_output, p_choices,
            p_output_limit is null, p_ttl, p_execution_id, v_caller.hold_id);
        v_needed := (v_held ->> 'amount')::bigint;
        v_output := (v_held ->> 'output_limit')::bigint;
        v_clamped := (v_held ->> 'clamped')::boolean;
        v_entry.hold_id := (v_held ->> 'hold_id')::uuid;
        v_entry.available_after := (v_held ->> 'left')::bigint;
    end if;
    if p_step is not null then      -- the estimate after the budget: allocations, holds, then the wallet
        if v_caller.hold_id is not null then
            perform vanilla.draw_estimate(v_caller.tenant_id, v_caller.hold_id, v_needed);
        end if;
    end if;
    if v_held is not null then
        if v_limits is not null then
            perform from public.user_token_wallets w where w.tenant_id = v_caller.tenant_id and w.user_id = v_payer for update;
        end if;
    elsif p_idempotency_key is null then      -- the short way: most wallets can pay, and nothing is looked at first
        v_short := v_entry;
        v_short.id := vanilla.uuid7();
        v_short.hold_id := vanilla.uuid7();
        v_short.amount := -v_needed;
        v_short.reserved_amount := v_needed;
        v_short := vanilla.move_tokens(v_short, 0, null, p_ttl, v_caller.key_id, v_call);
    end if;
    if v_short.seq is not null then
        v_entry := v_short;
    elsif v_held is null then
        v_wallet := vanilla.lock_wallet(v_caller.tenant_id, v_payer);
        if p_idempotency_key is not null then
            select * into v_short from public.user_token_ledger
                where tenant_id = v_wallet.tenant_id and user_id = v_payer and idempotency_key = p_idempotency_key;
            if found then
                perform vanilla.refuse('VS410', 'a call with this Idempotency-Key was made already',
                    jsonb_build_object('execution_id', v_short.execution_id), 'Answers are not kept; use a new key to call again.');
            end if;
        end if;
        if p_output_limit is null and v_wallet.enforcement_mode = 'hard' and v_needed > v_wallet.available_tokens and v_model.output_weight > 0 then
            v_input := vanilla.call_tokens(v_call, v_prompt, 0, 0);
            v_least := coalesce((vanilla.setting(v_wallet.tenant_id, 'gateway.min_output_tokens'))::bigint, 16) * p_choices;
            v_clamped := true;
            -- below the least the call is refused, with the figures
            v_output := greatest(floor((v_wallet.available_tokens - v_input) / v_model.output_weight), v_least);
            v_needed := vanilla.call_tokens(v_call, v_prompt, 0, v_output);
        end if;
        v_entry := vanilla.reserve_tokens(v_wallet, v_entry, v_needed, p_ttl, v_caller.key_id, v_call);
    end if;
    -- the wallet is locked: what other calls of the payer have counted is there, and the next one waits
    if v_limits is not null then
        v_rate := vanilla.count_call(v_caller.tenant_id, v_payer, v_caller.time_zone, v_limits, v_needed);
    end if;
    if p_step is not null then
        -- Who takes the step away from now on waits, and then returns what this has reserved. Who is doing so may wait for the
        -- wallet, which is locked here: then this one gives way.
        perform from public.workflow_queue q
            where q.tenant_id = v_caller.tenant_id and q.execution_id = v_caller.execution_id and q.node = (p_step ->> 'n')::smallint
              and q.item = coalesce((p_step ->> 'item')::integer, -1) and q.worker = (p_step ->> 'worker')::uuid and q.lease = (p_step ->> 'lease')::bigint
            for key share skip locked;
        if not found then perform vanilla.refuse('VS430', 'the step is being taken from this worker'); end if;
    end if;
    if v_caller.budget_tokens is not null then
        if p_step is not null then      -- what budgets hold for its other calls is the key's while they hold it
            perform from public.api_keys where tenant_id = v_caller.tenant_id and id = v_caller.key_id for no key update;
            select coalesce(sum(h.amount), 0) into v_others from public.allocation_holds h
                where h.tenant_id = v_caller.tenant_id and h.state = 'open' and h.call ->> 'api_key_id' = v_caller.key_id::text and h.id is distinct from v_entry.hold_id;
        end if;
        update public.api_keys set used_tokens = used_tokens + case when v_held is null then v_needed else 0 end
            where tenant_id = v_caller.tenant_id and id = v_caller.key_id and used_tokens + v_others + v_needed <= budget_tokens;
        if not found then
            select * into v_key from public.api_keys where tenant_id = v_caller.tenant_id and id = v_caller.key_id;
            perform vanilla.refuse('VS429', 'the budget of this key is used up', jsonb_build_object('limit', v_key.budget_tokens,
                'used', v_key.used_tokens + v_others, 'needed', v_needed, 'resets_at', null), 'An admin can make a key with a larger budget.');
        end if;
    end if;
    return jsonb_build_object('tenant_id', v_caller.tenant_id, 'user_id', v_payer, 'hold_id', v_entry.hold_id, 'execution_id', p_execution_id,
        'reserved', v_needed, 'output_limit', v_output, 'clamped', v_clamped, 'available', v_entry.available_after,
        'provider_tenant_id', v_provider.tenant_id, 'provider_id', v_provider.id, 'provider', v_provider.slug, 'kind', v_provider.kind,
        'base_url', v_provider.base_url, 'secret', encode(v_provider.secret, 'base64'), 'model', v_model.slug, 'upstream_model', v_model.upstream_model,
        'rate', v_rate);
end
$f$;
comment on function vanilla.admit_call(bytea, bytea, text, text, bigint, bigint, bigint, integer, uuid, boolean, interval, text, text, jsonb) is
    'Before a model call, in one round trip: key, payer, model, price, worst case reserved. Sizes in model tokens, the output limit over all choices, 0 for embeddings; returns where to call and with what limit.';

create or replace function vanilla.quote_call(p_session_hash bytea, p_model text, p_prompt_tokens bigint, p_sandbox_prompt_tokens bigint,
    p_output_limit bigint, p_choices integer default 1) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_admitted jsonb;
begin
    -- admitted and undone: the quote is what the call will reserve, by the same lines, refusals included
    begin
        v_admitted := vanilla.admit_call(null, p_session_hash, null, p_model, p_prompt_tokens, p_sandbox_prompt_tokens,
            p_output_limit, p_choices, vanilla.uuid7(), true, interval '1 minute');
        raise exception 'undo' using errcode = 'VSUND';
    exception when sqlstate 'VSUND' then null;
    end;
    return jsonb_build_object('reserved', v_admitted -> 'reserved', 'output_limit', v_admitted -> 'output_limit',
        'clamped', v_admitted -> 'clamped', 'available_after', v_admitted -> 'available');
end
$f$;
comment on function vanilla.quote_call(bytea, text, bigint, bigint, bigint, integer) is
    'What admit_call would reserve for a session, and leave available; nothing is written.';

create or replace function vanilla.settle_call(
    p_tenant_id uuid, p_hold_id uuid, p_status text, p_input bigint, p_output bigint, p_cached bigint, p_reasoning bigint,
    p_estimated boolean default false, p_error_code text default null, p_latency_ms integer default null, p_first_token_ms integer default null)
returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_hold public.user_token_holds;
    v_entry public.user_token_ledger;
    v_settled jsonb;
    v_charged bigint;
    v_cost bigint;
begin
    if p_input < 0 or p_output < 0 or p_cached not between 0 and p_input then
        perform vanilla.refuse('VS400', 'usage cannot be negative, and cached tokens are part of the input');
    end if;
    select * into v_hold from public.user_token_holds where tenant_id = p_tenant_id and id = p_hold_id;
    if not found then v_hold := vanilla.allocation_call(p_tenant_id, p_hold_id); end if;      -- the budget of a run has it (009)
    if v_hold.call is null then perform vanilla.refuse('VS404', 'no such hold'); end if;
    v_charged := vanilla.call_tokens(v_hold.call, p_input, p_cached, p_output);
    v_cost := vanilla.call_cost_micros(v_hold.call, p_input, p_cached, p_output);
    -- fenced: whoever closes the hold first writes the money and the execution, nobody does it twice
    if v_hold.reference_type = 'resource_allocation' then
        v_settled := vanilla.allocation_settle(p_tenant_id, p_hold_id, v_charged, jsonb_build_object('input', p_input, 'output', p_output), 'model call');
        if not (v_settled ->> 'replayed')::boolean then v_entry.id := p_hold_id; end if;
    else
        v_entry := vanilla.settle_tokens(p_tenant_id, p_hold_id, v_charged, true, 'model call', v_hold.call ->> 'request_id');
    end if;
    if v_entry.id is null then
        return jsonb_build_object('settled', false);
    end if;
    if v_hold.api_key_id is not null then
        update public.api_keys k set last_used_at = vanilla.clock(),
            -- a late settlement finds the reserved part given back already; what a budget holds was never added
            used_tokens = case when k.budget_tokens is null then k.used_tokens
                else greatest(k.used_tokens + v_charged - case when v_entry.metadata ? 'late' or v_hold.reference_type = 'resource_allocation' then 0 else v_hold.requested end, 0) end
        where k.tenant_id = p_tenant_id and k.id = v_hold.api_key_id
          and (k.budget_tokens is not null or k.last_used_at is null or k.last_used_at < vanilla.clock() - interval '1 minute');
    end if;
    if v_hold.call ? 'rate' then
        perform vanilla.return_rate_tokens(p_tenant_id, v_hold.user_id, v_hold.created_at, v_hold.requested - v_charged);
    end if;
    if v_entry.metadata ? 'late' then              -- its row stands already, as abandoned
        delete from public.ai_executions where tenant_id = p_tenant_id and id = v_hold.execution_id and status = 'abandoned';
    end if;
    insert into public.ai_executions (tenant_id, created_at, id, user_id, api_key_id, provider_id, model_id, hold_id, provider, model, status, error_code,
        input_tokens, output_tokens, cached_input_tokens, reasoning_tokens, charged_tokens, cost_micros, latency_ms, first_token_ms, streamed, usage_estimated, request_id)
    values (p_tenant_id, vanilla.clock(), v_hold.execution_id, v_hold.user_id, v_hold.api_key_id, (v_hold.call ->> 'provider_id')::uuid,
        (v_hold.call ->> 'model_id')::uuid, p_hold_id, v_hold.call ->> 'provider', v_hold.call ->> 'model', p_status, p_error_code,
        p_input, p_output, p_cached, p_reasoning, v_charged, v_cost, p_latency_ms, p_first_token_ms,
        (v_hold.call ->> 'streamed')::boolean, p_estimated, v_hold.call ->> 'request_id');
    return jsonb_build_object('settled', true, 'charged', v_charged, 'cost_micros', v_cost,
        'available', v_entry.available_after, 'borrowed', v_entry.borrowed_after);
end
$f$;
comment on function vanilla.settle_call(uuid, uuid, text, bigint, bigint, bigint, bigint, boolean, text, integer, integer) is
    'After a model call, in one round trip: charges what was used, returns the rest, writes the execution. A second call changes nothing.';

create or replace function vanilla.settle_calls(p_tenant_id uuid, p_calls jsonb, out charged bigint, out cost_micros bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_call record;
    v_settled jsonb;
begin
    charged := 0;
    cost_micros := 0;
    for v_call in select * from jsonb_to_recordset(p_calls) as c (hold_id uuid, status text, input bigint, output bigint, cached bigint, reasoning bigint, estimated boolean,
            error_code text, latency_ms integer, first_token_ms integer) order by c.hold_id
    loop
        v_settled := vanilla.settle_call(p_tenant_id, v_call.hold_id, v_call.status, v_call.input, v_call.output, v_call.cached, v_call.reasoning, v_call.estimated,
            v_call.error_code, v_call.latency_ms, v_call.first_token_ms);
        charged := charged + coalesce((v_settled ->> 'charged')::bigint, 0);
        cost_micros := cost_micros + coalesce((v_settled ->> 'cost_micros')::bigint, 0);
    end loop;
end
$f$;
comment on function vanilla.settle_calls(uuid, jsonb) is
    'Settles the model calls of a step or a turn as a worker tells them, the one that answered and those before it that did not: tokens and micros of USD of all of them.';

create or replace function vanilla.list_models(p_key_hash bytea, p_session_hash bytea default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := coalesce((vanilla.key_identity(p_key_hash) ->> 'tenant_id')::uuid, (vanilla.session_identity(p_session_hash) ->> 'tenant_id')::uuid);
begin
    if v_tenant is null then perform vanilla.refuse('VS411', 'the key is wrong, revoked or expired'); end if;
    return coalesce((select jsonb_agg(jsonb_build_object('id', slug, 'name', name, 'owned_by', provider, 'kind', kind, 'created', extract(epoch from created_at)::bigint,
            'context_window', context_window, 'max_output_tokens', max_output_tokens, 'input_weight', input_weight, 'output_weight', output_weight,
            'input_price', input_price, 'output_price', output_price, 'ready', ready) order by not ready, provider, slug)
        from (select distinct on (m.slug) m.*, p.slug as provider, (p.secret is not null or p.kind in ('sandbox', 'custom')) and m.input_price is not null as ready
              from public.ai_models m join public.ai_providers p on p.tenant_id = m.provider_tenant_id and p.id = m.provider_id
              where m.tenant_id in (v_tenant, vanilla.platform()) and m.status = 'active' and p.status = 'active'
              order by m.slug, m.tenant_id = vanilla.platform()) s), '[]');
end
$f$;
comment on function vanilla.list_models(bytea, bytea) is 'Models of the caller''s tenant and the platform; ready says whether the provider has a key and the model a price.';

create or replace function public.set_provider_secret(p_provider_id uuid, p_secret bytea, p_hint text, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
begin
    update public.ai_providers set secret = p_secret, secret_hint = p_hint where tenant_id = v_tenant and id = p_provider_id;
    if not found then perform vanilla.refuse('VS404', 'no such provider'); end if;
    perform vanilla.audit(v_tenant, 'provider.secret', 'provider', p_provider_id, jsonb_build_object('set', p_secret is not null));
end
$f$;
comment on function public.set_provider_secret(uuid, bytea, text, uuid) is 'Keeps ciphertext made by the runtime; null forgets it. Admin of the provider''s tenant, or operator.';

grant execute on function
    vanilla.admit_call(bytea, bytea, text, text, bigint, bigint, bigint, integer, uuid, boolean, interval, text, text, jsonb),
    vanilla.quote_call(bytea, text, bigint, bigint, bigint, integer),
    vanilla.settle_call(uuid, uuid, text, bigint, bigint, bigint, bigint, boolean, text, integer, integer),
    vanilla.list_models(bytea, bytea) to vanilla_runtime;
grant execute on function public.set_provider_secret(uuid, bytea, text, uuid) to vanilla_app, vanilla_operator;

-- 9. events and webhooks -------------------------------------------------------------------------------------------
-- emit_event is called inside the transaction of what happened, so an event exists exactly when the thing does.
-- Lock order: wallet, then endpoints, then deliveries.
create or replace function vanilla.event_types() returns table (type text, meaning text) language sql immutable
set search_path = pg_catalog, pg_temp as $f$
    values ('token.granted', 'Tokens were given: a credit by an admin, the operator or a purchase.'),
        ('token.adjusted', 'An admin or the operator corrected a balance.'),
        ('token.reset', 'A period ended: what was unused lapsed or rolled over, the new allocation is there.'),
        ('token.expired', 'A grant lapsed with tokens left.'),
        ('token.level_changed', 'A user was put on a level.'),
        ('token.status_changed', 'A wallet was locked, suspended, opened or, for good, closed.'),
        ('token.warning', 'What is left (available and held) fell below the warning mark, once per crossing; or debt began under warn.'),
        ('token.exhausted', 'Nothing is left, available or held.'),
        ('level.change_scheduled', 'A change of level was asked for and takes effect when the period ends.'),
        ('level.change_undone', 'A scheduled change of level was called off.'),
        ('level.renewed', 'A paid period of a level began: a renewal, or the end of a trial.'),
        ('user.erased', 'A person was erased: what a program copied of them is to go too. Only user_id is left.'),
        ('payment.succeeded', 'A pack of tokens was paid and given.'),
        ('payment.reversed', 'A payment was refunded or disputed, or a dispute was won: what was taken back of its tokens changed.'),
        ('payment.subscription', 'A subscription began, changed its state or its level, or ended; or its grace did (lapsed).'),
        ('payment.top_up_paused', 'Tokens are not bought by themselves any more: a charge failed or is disputed. The user says when to go on.'),
        ('payment.top_up_ceiling', 'Tokens would have been bought, but the month''s ceiling is reached; told once a month.'),
        ('workflow.succeeded', 'An execution of a workflow ended well; those that others started are not told.'),
        ('workflow.failed', 'An execution of a workflow failed; reason is the code of what it failed of.'),
        ('workflow.approval_requested', 'A workflow waits for people to approve something.'),
        ('allocation.warning', 'An allocation of an agent has spent or holds 80 % of its budget; told once, and again after a top-up.'),
        ('allocation.overrun', 'A step used more than its allocation had left: the wallet paid apart, and the allocation takes no further hold.'),
        ('task.state', 'A task changed its state, and its push notifications are told, no webhook.'),
        ('webhook.disabled', 'An endpoint was disabled because it kept failing or answered 410.'),
        ('webhook.test', 'Sent by hand to see whether an endpoint works.')
$f$;
comment on function vanilla.event_types() is 'Every type of event and when it is written.';

create or replace function vanilla.emit_event(p_tenant_id uuid, p_type text, p_user_id uuid default null, p_payload jsonb default '{}') returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_id uuid := vanilla.uuid7();
begin
    insert into public.events (tenant_id, created_at, id, type, user_id, payload)
    values (p_tenant_id, v_now, v_id, p_type, p_user_id, coalesce(p_payload, '{}'));
    insert into public.webhook_deliveries (tenant_id, endpoint_id, event_created_at, event_id, next_attempt_at, created_at)
        select e.tenant_id, e.id, v_now, v_id, v_now, v_now from public.webhook_endpoints e
        where e.tenant_id = p_tenant_id and e.execution_id is null and e.status = 'active'
          and e.event_types && array[p_type, '*', split_part(p_type, '.', 1) || '.*']
        -- an endpoint that is being deleted is passed by: a wallet's transaction neither waits for that nor fails
        for key share skip locked;
    return v_id;
end
$f$;
comment on function vanilla.emit_event(uuid, text, uuid, jsonb) is
    'Writes an event into the caller''s transaction, and a delivery for each active endpoint that asked for its type. Returns its id.';

create or replace function vanilla.emit_events(p_type text, p_tenants uuid[], p_users uuid[], p_payloads jsonb[]) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
begin
    if p_tenants is null then return 0; end if;
    with written as (
        insert into public.events (tenant_id, created_at, id, type, user_id, payload)
            select e.tenant_id, v_now, vanilla.uuid7(), p_type, e.user_id, e.payload from unnest(p_tenants, p_users, p_payloads) e (tenant_id, user_id, payload)
            returning tenant_id, id)
    insert into public.webhook_deliveries (tenant_id, endpoint_id, event_created_at, event_id, next_attempt_at, created_at)
        select w.tenant_id, e.id, v_now, w.id, v_now, v_now from written w
        cross join lateral (select k.id from public.webhook_endpoints k where k.tenant_id = w.tenant_id and k.execution_id is null
            and k.status = 'active' and k.event_types && array[p_type, '*', split_part(p_type, '.', 1) || '.*'] for key share skip locked) e;
    return cardinality(p_tenants);
end
$f$;
comment on function vanilla.emit_events(text, uuid[], uuid[], jsonb[]) is 'emit_event for many of one type: tenants, users and payloads side by side. Returns how many.';

create or replace function vanilla.entry_event(p_entry public.user_token_ledger) returns jsonb language sql stable
set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('entry_id', p_entry.id, 'seq', p_entry.seq, 'amount', p_entry.amount, 'reason', p_entry.reason, 'source', p_entry.source,
        'available_tokens', p_entry.available_after, 'reserved_tokens', p_entry.reserved_after, 'borrowed_tokens', p_entry.borrowed_after)
$f$;
comment on function vanilla.entry_event(public.user_token_ledger) is 'A ledger entry as events tell it.';

create or replace function vanilla.webhook_backoff(p_attempts integer) returns interval language sql immutable
set search_path = pg_catalog, pg_temp as $f$
    -- the schedule of the Standard Webhooks specification: ten tries over three days
    select (array['5 s', '5 min', '30 min', '2 h', '5 h', '10 h', '14 h', '20 h', '24 h']::interval[])[p_attempts]
$f$;
comment on function vanilla.webhook_backoff(integer) is
    'The least time after so many failed tries before the next one, or null: no more. Up to a fifth of it is added at random.';

create or replace function vanilla.webhook_endpoint(p_tenant_id uuid, p_endpoint_id uuid) returns public.webhook_endpoints
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_endpoint public.webhook_endpoints;
begin
    select * into v_endpoint from public.webhook_endpoints e where e.tenant_id = p_tenant_id and e.id = p_endpoint_id and e.execution_id is null
        for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such webhook', jsonb_build_object('webhook_id', p_endpoint_id)); end if;
    return v_endpoint;
end
$f$;
comment on function vanilla.webhook_endpoint(uuid, uuid) is 'Locks an endpoint of the tenant; VS404 in the same words whether absent or another tenant''s.';

create or replace function vanilla.check_event_types(p_event_types text[]) returns text[] language plpgsql stable
set search_path = pg_catalog, pg_temp as $f$
declare
    v_wrong text;
begin
    select t into v_wrong from unnest(p_event_types) t
        where t is null or (t <> '*' and not exists (select from vanilla.event_types() k where t in (k.type, split_part(k.type, '.', 1) || '.*'))) limit 1;
    if found or coalesce(cardinality(p_event_types), 0) = 0 then
        perform vanilla.refuse('VS400', format('there are no events %s', coalesce(v_wrong, '')), '{"param": "event_types"}',
            'Name types (token.granted), groups (token.*) or *; GET /api/v1/events/types lists them.');
    end if;
    return array(select distinct t from unnest(p_event_types) t order by t);
end
$f$;
comment on function vanilla.check_event_types(text[]) is 'The types, sorted and each once; VS400 when one matches no event.';

create or replace function public.create_webhook_endpoint(p_endpoint_id uuid, p_url text, p_event_types text[], p_secret bytea,
    p_description text default '', p_concurrency integer default 4, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
begin
    perform from public.tenants where tenant_id = v_tenant and id = v_tenant and status = 'active' for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such tenant'); end if;
    -- every event is copied for every endpoint that wants it; counted under the tenant's row lock
    if (select count(*) from public.webhook_endpoints where tenant_id = v_tenant and execution_id is null) >= 20 then
        perform vanilla.refuse('VS429', 'a tenant has at most 20 webhooks', '{"limit": 20, "used": 20}', 'Delete one that is not needed.');
    end if;
    begin
        insert into public.webhook_endpoints (tenant_id, id, url, event_types, secret, description, concurrency, created_at)
        values (v_tenant, p_endpoint_id, p_url, vanilla.check_event_types(p_event_types), p_secret, p_description, p_concurrency, vanilla.clock());
    exception
        when check_violation or not_null_violation then
            perform vanilla.refuse('VS400', 'the webhook is not valid: ' || sqlerrm, '{}',
                'A URL has at most 2048 bytes, a description 500; concurrency is 1 to 32.');
        when unique_violation then
            perform vanilla.refuse('VS409', 'a webhook with this id exists');
    end;
    perform vanilla.audit(v_tenant, 'webhook.created', 'webhook', p_endpoint_id, jsonb_build_object('url', p_url, 'event_types', p_event_types));
    return p_endpoint_id;
end
$f$;
comment on function public.create_webhook_endpoint(uuid, text, text[], bytea, text, integer, uuid) is
    'Keeps an endpoint; p_secret is ciphertext that the runtime made for this id. Admin, or operator naming the tenant. Returns the id.';

create or replace function vanilla.close_webhook(p_endpoint public.webhook_endpoints, p_reason text) returns void language sql volatile
set search_path = pg_catalog, pg_temp as $f$
    update public.webhook_endpoints set status = 'disabled', disabled_reason = p_reason
        where tenant_id = p_endpoint.tenant_id and id = p_endpoint.id;
    -- those in flight keep their lease: one that still arrives is recorded as delivered
    update public.webhook_deliveries set state = 'dead', last_error = 'the webhook was disabled'
        where tenant_id = p_endpoint.tenant_id and endpoint_id = p_endpoint.id and state in ('pending', 'failed')
$f$;
comment on function vanilla.close_webhook(public.webhook_endpoints, text) is 'Disables a locked endpoint and gives up what waits for it.';

create or replace function public.update_webhook_endpoint(p_endpoint_id uuid, p_url text default null, p_event_types text[] default null,
    p_description text default null, p_concurrency integer default null, p_status text default null, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_endpoint public.webhook_endpoints := vanilla.webhook_endpoint(vanilla.acting_tenant(p_tenant_id), p_endpoint_id);
begin
    if p_status not in ('active', 'disabled') then
        perform vanilla.refuse('VS400', 'a webhook is active or disabled', '{"param": "status"}');
    end if;
    begin
        update public.webhook_endpoints set url = coalesce(p_url, url), description = coalesce(p_description, description),
            event_types = case when p_event_types is null then event_types else vanilla.check_event_types(p_event_types) end,
            concurrency = coalesce(p_concurrency, concurrency)
            where tenant_id = v_endpoint.tenant_id and id = v_endpoint.id;
    exception when check_violation then
        perform vanilla.refuse('VS400', 'the webhook is not valid: ' || sqlerrm, '{}',
            'A URL has at most 2048 bytes, a description 500; concurrency is 1 to 32.');
    end;
    if p_status = 'disabled' and v_endpoint.status = 'active' then
        perform vanilla.close_webhook(v_endpoint, 'by an admin');
    elsif p_status = 'active' then
        update public.webhook_endpoints set status = 'active', disabled_reason = null, failing_since = null
            where tenant_id = v_endpoint.tenant_id and id = v_endpoint.id;
    end if;
    perform vanilla.audit(v_endpoint.tenant_id, 'webhook.updated', 'webhook', v_endpoint.id, jsonb_strip_nulls(jsonb_build_object(
        'url', p_url, 'event_types', p_event_types, 'description', p_description, 'concurrency', p_concurrency, 'status', p_status)));
end
$f$;
comment on function public.update_webhook_endpoint(uuid, text, text[], text, integer, text, uuid) is
    'Changes what is not null. Disabling gives up what waits; activating forgets the failures. Admin or operator.';

create or replace function public.rotate_webhook_secret(p_endpoint_id uuid, p_secret bytea, p_keep interval default '24 hours', p_tenant_id uuid default null) returns timestamptz
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_endpoint public.webhook_endpoints := vanilla.webhook_endpoint(vanilla.acting_tenant(p_tenant_id), p_endpoint_id);
    v_until timestamptz := vanilla.clock() + p_keep;
begin
    if p_secret is null or p_keep not between interval '0' and interval '30 days' then
        perform vanilla.refuse('VS400', 'the former secret is kept for 0 to 30 days', '{"param": "keep_hours"}');
    end if;
    update public.webhook_endpoints set secret = p_secret, previous_secret = v_endpoint.secret, previous_secret_until = v_until
        where tenant_id = v_endpoint.tenant_id and id = v_endpoint.id;
    perform vanilla.audit(v_endpoint.tenant_id, 'webhook.secret_rotated', 'webhook', v_endpoint.id, jsonb_build_object('former_until', v_until));
    return v_until;
end
$f$;
comment on function public.rotate_webhook_secret(uuid, bytea, interval, uuid) is
    'Signs with a new secret, and with the former one beside it for p_keep; returns until when.';

create or replace function public.delete_webhook_endpoint(p_endpoint_id uuid, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_endpoint public.webhook_endpoints := vanilla.webhook_endpoint(vanilla.acting_tenant(p_tenant_id), p_endpoint_id);
begin
    -- stronger than the lock above: no transaction that emits an event adds a delivery from here on
    perform from public.webhook_endpoints where tenant_id = v_endpoint.tenant_id and id = v_endpoint.id for update;
    delete from public.webhook_attempts a using public.webhook_deliveries d
        where d.tenant_id = v_endpoint.tenant_id and d.endpoint_id = v_endpoint.id and a.tenant_id = d.tenant_id and a.delivery_id = d.id;
    delete from public.webhook_deliveries where tenant_id = v_endpoint.tenant_id and endpoint_id = v_endpoint.id;
    delete from public.webhook_endpoints where tenant_id = v_endpoint.tenant_id and id = v_endpoint.id;
    perform vanilla.audit(v_endpoint.tenant_id, 'webhook.deleted', 'webhook', v_endpoint.id, jsonb_build_object('url', v_endpoint.url));
end
$f$;
comment on function public.delete_webhook_endpoint(uuid, uuid) is 'Deletes an endpoint with its deliveries; the events stay. Admin or operator.';

create or replace function public.send_test_webhook(p_endpoint_id uuid, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_endpoint public.webhook_endpoints := vanilla.webhook_endpoint(vanilla.acting_tenant(p_tenant_id), p_endpoint_id);
    v_now timestamptz := vanilla.clock();
    v_event uuid := vanilla.uuid7();
    v_id uuid := vanilla.uuid7();
begin
    if v_endpoint.status <> 'active' then perform vanilla.refuse('VS409', 'the webhook is disabled', '{}', 'Activate it first.'); end if;
    -- to this endpoint alone, whatever it asked for
    insert into public.events (tenant_id, created_at, id, type, user_id, payload)
    values (v_endpoint.tenant_id, v_now, v_event, 'webhook.test', vanilla.claim(4)::uuid, jsonb_build_object('webhook_id', v_endpoint.id));
    insert into public.webhook_deliveries (tenant_id, id, endpoint_id, event_created_at, event_id, cause, next_attempt_at, created_at)
    values (v_endpoint.tenant_id, v_id, v_endpoint.id, v_now, v_event, 'test', v_now, v_now);
    return v_id;
end
$f$;
comment on function public.send_test_webhook(uuid, uuid) is 'An event webhook.test for this endpoint alone; returns the delivery''s id.';

create or replace function public.redeliver_webhook(p_delivery_id uuid, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_now timestamptz := vanilla.clock();
    v_delivery public.webhook_deliveries;
    v_endpoint public.webhook_endpoints;
begin
    select * into v_delivery from public.webhook_deliveries where tenant_id = v_tenant and id = p_delivery_id;
    if not found then perform vanilla.refuse('VS404', 'no such delivery', jsonb_build_object('delivery_id', p_delivery_id)); end if;
    v_endpoint := vanilla.webhook_endpoint(v_tenant, v_delivery.endpoint_id);
    if v_endpoint.status <> 'active' then perform vanilla.refuse('VS409', 'the webhook is disabled', '{}', 'Activate it first.'); end if;
    -- still open: tried now, unless a sender has it this moment; closed: a delivery of its own, so that the log stays
    update public.webhook_deliveries set next_attempt_at = least(next_attempt_at, v_now)
        where tenant_id = v_tenant and id = p_delivery_id and state in ('pending', 'failed') and lease_id is null;
    if found or v_delivery.state in ('pending', 'failed') then return p_delivery_id; end if;
    insert into public.webhook_deliveries (tenant_id, endpoint_id, event_created_at, event_id, cause, next_attempt_at, created_at)
    values (v_tenant, v_endpoint.id, v_delivery.event_created_at, v_delivery.event_id, 'redelivery', v_now, v_now)
    returning id into v_delivery.id;
    return v_delivery.id;
end
$f$;
comment on function public.redeliver_webhook(uuid, uuid) is
    'Sends an event again, under the same webhook-id: an open delivery at once, a closed one as a new delivery. Returns the delivery''s id.';

create or replace function vanilla.claim_webhook_deliveries(p_limit integer default 20, p_lease interval default '60 s') returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_lease uuid := vanilla.uuid7();
    v_endpoint public.webhook_endpoints;
    v_delivery public.webhook_deliveries;
    v_event public.events;
    v_room integer;
    v_claimed jsonb := '[]';
begin
    for v_endpoint in
        -- one probe for each endpoint with open deliveries, however many it has: a backlog costs the others nothing
        with recursive waiting as (
            (select d.tenant_id, d.endpoint_id from public.webhook_deliveries d
             where d.state in ('pending', 'failed') order by d.tenant_id, d.endpoint_id limit 1)
            union all
            select n.tenant_id, n.endpoint_id from waiting w, lateral (
                select d.tenant_id, d.endpoint_id from public.webhook_deliveries d
                where d.state in ('pending', 'failed') and (d.tenant_id, d.endpoint_id) > (w.tenant_id, w.endpoint_id)
                order by d.tenant_id, d.endpoint_id limit 1) n)
        select e.* from waiting w
        join public.webhook_endpoints e on e.tenant_id = w.tenant_id and e.id = w.endpoint_id and e.status = 'active'
        join public.tenants t on t.tenant_id = e.tenant_id and t.id = e.tenant_id and t.status = 'active'
        cross join lateral (
            (select d.next_attempt_at from public.webhook_deliveries d
            where e.execution_id is null and d.tenant_id = e.tenant_id and d.endpoint_id = e.id and d.state in ('pending', 'failed') order by d.next_attempt_at limit 1)
            union all      -- a task's come one after the other: the first one has its answer, or is given up, before the next is sent
            (select d.next_attempt_at from public.webhook_deliveries d
            where e.execution_id is not null and d.tenant_id = e.tenant_id and d.endpoint_id = e.id and d.state in ('pending', 'failed') order by d.id limit 1)) f
        where f.next_attempt_at <= v_now
        -- locked: two processes that claim at once do not both fill an endpoint's room
        order by f.next_attempt_at for no key update of e skip locked
    loop
        exit when jsonb_array_length(v_claimed) >= p_limit;
        select v_endpoint.concurrency - count(*) into v_room from public.webhook_deliveries d
            where d.tenant_id = v_endpoint.tenant_id and d.endpoint_id = v_endpoint.id and d.state in ('pending', 'failed')
              and d.next_attempt_at > v_now and d.lease_id is not null;
        for v_delivery in select * from public.webhook_deliveries d
            where d.tenant_id = v_endpoint.tenant_id and d.endpoint_id = v_endpoint.id and d.state in ('pending', 'failed') and d.next_attempt_at <= v_now
              and (v_endpoint.execution_id is null or d.id = (select o.id from public.webhook_deliveries o
                where o.tenant_id = d.tenant_id and o.endpoint_id = d.endpoint_id and o.state in ('pending', 'failed') order by o.id limit 1))
            order by d.next_attempt_at, d.id limit greatest(least(v_room, p_limit - jsonb_array_length(v_claimed)), 0) for update skip locked
        loop
            if v_delivery.lease_id is not null then      -- its sender ended between sending and recording
                insert into public.webhook_attempts (tenant_id, delivery_id, attempt, error, created_at)
                values (v_delivery.tenant_id, v_delivery.id, v_delivery.attempts, 'the sender stopped before it recorded the outcome', v_now);
            end if;
            select * into v_event from public.events e
                where e.tenant_id = v_delivery.tenant_id and e.created_at = v_delivery.event_created_at and e.id = v_delivery.event_id;
            if not found or (v_delivery.attempts > 0 and vanilla.webhook_backoff(v_delivery.attempts) is null) then
                update public.webhook_deliveries set state = 'dead', lease_id = null,
                    last_error = case when v_event.id is null then 'the event is past retention' else 'the sender stopped before it recorded the outcome' end
                    where tenant_id = v_delivery.tenant_id and id = v_delivery.id;
                continue;
            end if;
            update public.webhook_deliveries set attempts = attempts + 1, lease_id = v_lease, next_attempt_at = v_now + p_lease
                where tenant_id = v_delivery.tenant_id and id = v_delivery.id;
            v_claimed := v_claimed || jsonb_build_object('tenant_id', v_delivery.tenant_id, 'delivery_id', v_delivery.id, 'lease_id', v_lease,
                'attempt', v_delivery.attempts + 1, 'endpoint_id', v_endpoint.id, 'of_task', v_endpoint.execution_id is not null, 'url', v_endpoint.url, 'secret', encode(v_endpoint.secret, 'base64'),
                'previous_secret', case when v_endpoint.previous_secret_until > v_now then encode(v_endpoint.previous_secret, 'base64') end,
                'event', jsonb_build_object('id', v_event.id, 'type', v_event.type, 'created_at', v_event.created_at at time zone 'UTC', 'tenant_id', v_event.tenant_id,
                    'user_id', v_event.user_id, 'payload', v_event.payload));
        end loop;
    end loop;
    return v_claimed;
end
$f$;
comment on function vanilla.claim_webhook_deliveries(integer, interval) is
    'Leases up to p_limit deliveries that are due, of all tenants, the endpoint that waits longest first and none beyond its concurrency; of a task only the first that has no outcome. Not finished within p_lease, they are due again.';

create or replace function vanilla.finish_webhook_delivery(p_tenant_id uuid, p_delivery_id uuid, p_lease_id uuid, p_status_code integer, p_error text,
    p_duration_ms integer, p_retry_after interval default null) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_endpoint public.webhook_endpoints;
    v_delivery public.webhook_deliveries;
    v_delivered boolean := p_error is null and coalesce(p_status_code between 200 and 299, false);
    v_wait interval;
    v_reason text;
begin
    -- endpoints before deliveries, as in delete_webhook_endpoint
    select e.* into v_endpoint from public.webhook_endpoints e
        join public.webhook_deliveries d on d.tenant_id = e.tenant_id and d.endpoint_id = e.id
        where d.tenant_id = p_tenant_id and d.id = p_delivery_id for no key update of e;
    select * into v_delivery from public.webhook_deliveries
        where tenant_id = p_tenant_id and id = p_delivery_id and lease_id = p_lease_id for update;
    if not found then return null; end if;      -- fenced: the lease ran out and another sender has it
    insert into public.webhook_attempts (tenant_id, delivery_id, attempt, status_code, error, duration_ms, created_at)
    values (p_tenant_id, p_delivery_id, v_delivery.attempts, p_status_code,
        case when not v_delivered then coalesce(left(p_error, 500), 'answered ' || p_status_code) end, p_duration_ms, v_now);
    if not v_delivered and v_endpoint.status = 'active' then
        v_reason := case when p_status_code = 410 then 'it answered 410 Gone'
            when v_endpoint.failing_since <= v_now - interval '5 days' then 'every delivery failed for five days' end;
        if v_reason is null then
            v_wait := vanilla.webhook_backoff(v_delivery.attempts) * (1 + get_byte(uuid_send(gen_random_uuid()), 0) / 255.0 * 0.2);
            -- the receiver may ask for more time, at most a day
            if p_retry_after > v_wait then v_wait := least(p_retry_after, interval '24 hours'); end if;
        end if;
    end if;
    update public.webhook_deliveries set lease_id = null, last_status_code = p_status_code, last_duration_ms = p_duration_ms,
        last_error = case when not v_delivered then coalesce(left(p_error, 500), 'answered ' || p_status_code) end,
        state = case when v_delivered then 'delivered' when v_wait is null then 'dead' else 'failed' end,
        next_attempt_at = v_now + coalesce(v_wait, interval '0'), delivered_at = case when v_delivered then v_now end
        where tenant_id = p_tenant_id and id = p_delivery_id returning * into v_delivery;
    if v_delivered and v_endpoint.failing_since is not null then
        update public.webhook_endpoints set failing_since = null where tenant_id = p_tenant_id and id = v_endpoint.id;
    elsif v_reason is not null then
        perform vanilla.close_webhook(v_endpoint, v_reason);
        if v_endpoint.execution_id is null then      -- a task's is no admin's
            perform vanilla.audit(p_tenant_id, 'webhook.disabled', 'webhook', v_endpoint.id, jsonb_build_object('reason', v_reason), null, 'system');
            perform vanilla.emit_event(p_tenant_id, 'webhook.disabled', null, jsonb_build_object('webhook_id', v_endpoint.id,
                'description', v_endpoint.description, 'reason', v_reason, 'failing_since', coalesce(v_endpoint.failing_since, v_now)));
        end if;
    elsif not v_delivered and v_endpoint.failing_since is null then
        update public.webhook_endpoints set failing_since = v_now where tenant_id = p_tenant_id and id = v_endpoint.id;
    end if;
    return v_delivery.state;
end
$f$;
comment on function vanilla.finish_webhook_delivery(uuid, uuid, uuid, integer, text, integer, interval) is
    'Records what a try came to and when the next one is: delivered (2xx), failed, or dead after the last one. 410, or five days of failures, disable the endpoint. Returns the state; null when the lease is no longer the caller''s.';

create or replace function vanilla.prune_webhook_deliveries(p_days integer default 30, p_limit integer default 1000) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_before timestamptz := vanilla.clock() - make_interval(days => p_days);
    v_forgotten integer;
begin
    if p_days < 7 then perform vanilla.refuse('VS400', 'deliveries are kept for at least seven days', '{"param": "days"}'); end if;
    with old as materialized (
        select d.tenant_id, d.id from public.webhook_deliveries d
        where d.created_at < v_before and d.state in ('delivered', 'dead') and d.lease_id is null limit p_limit),
    tries as (
        delete from public.webhook_attempts a using old o where a.tenant_id = o.tenant_id and a.delivery_id = o.id)
    delete from public.webhook_deliveries d using old o where d.tenant_id = o.tenant_id and d.id = o.id;
    get diagnostics v_forgotten = row_count;
    return v_forgotten;
end
$f$;
comment on function vanilla.prune_webhook_deliveries(integer, integer) is
    'Forgets up to p_limit deliveries that were closed and are older than p_days, with their attempts; returns how many. The events stay.';

grant execute on function vanilla.emit_event(uuid, text, uuid, jsonb) to vanilla_system;
grant execute on function vanilla.event_types() to vanilla_app, vanilla_readonly, vanilla_operator;
grant execute on function
    public.create_webhook_endpoint(uuid, text, text[], bytea, text, integer, uuid),
    public.update_webhook_endpoint(uuid, text, text[], text, integer, text, uuid),
    public.rotate_webhook_secret(uuid, bytea, interval, uuid), public.delete_webhook_endpoint(uuid, uuid),
    public.send_test_webhook(uuid, uuid), public.redeliver_webhook(uuid, uuid) to vanilla_app, vanilla_operator;
grant execute on function vanilla.claim_webhook_deliveries(integer, interval),
    vanilla.finish_webhook_delivery(uuid, uuid, uuid, integer, text, integer, interval) to vanilla_runtime;
grant execute on function vanilla.prune_webhook_deliveries(integer, integer) to vanilla_runtime, vanilla_operator, vanilla_system;

-- 10. Supabase -----------------------------------------------------------------------------------------------------
-- Nothing here does anything elsewhere. A user of Supabase Auth is the user of the same id.
create or replace function vanilla.supabase_tenant(p_app_metadata jsonb) returns uuid language sql immutable parallel safe
set search_path = pg_catalog, pg_temp as $f$
    -- user_metadata is never asked: users write it themselves
    select case
        when p_app_metadata ->> 'tenant_id' is null then '00000000-0000-7000-8000-000000000001'::uuid
        when p_app_metadata ->> 'tenant_id' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then (p_app_metadata ->> 'tenant_id')::uuid end
$f$;
comment on function vanilla.supabase_tenant(jsonb) is
    'The tenant in app_metadata, the default tenant when none is named, null when it is not an id.';

create or replace function vanilla.supabase_claim(p_index integer, p_strict boolean default true) returns text language plpgsql stable parallel restricted
security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_claims jsonb;
    v_user public.users;
begin
    -- PostgREST has verified the JWT and it alone logs in as authenticator; current_user is this function's owner here,
    -- the role setting still names whom PostgREST chose. anon has no identity, service_role needs none.
    if session_user <> 'authenticator' or current_setting('role') <> 'authenticated' then return null; end if;
    v_claims := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
    if v_claims is null then return null; end if;
    if jsonb_typeof(v_claims -> 'exp') = 'number' and v_claims ->> 'sub' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
        if (v_claims ->> 'exp')::numeric > extract(epoch from clock_timestamp()) then
            select u.* into v_user from public.users u join public.tenants t on t.tenant_id = u.tenant_id and t.id = u.tenant_id
                where u.tenant_id = vanilla.supabase_tenant(v_claims -> 'app_metadata') and u.id = (v_claims ->> 'sub')::uuid
                  and u.status = 'active' and t.status = 'active' and u.role <> 'superadmin';
            if found then      -- the role is what we know, whatever the claim says
                return case p_index when 3 then v_user.tenant_id::text when 4 then v_user.id::text when 5 then v_user.role end;
            end if;
        end if;
    end if;
    if not p_strict then return null; end if;      -- as in claim: a policy must not tell of rows by failing
    raise exception 'context refused' using errcode = 'VS401',
        hint = 'The token has expired, or sub and app_metadata.tenant_id name no active user of an active tenant.';
end
$f$;
comment on function vanilla.supabase_claim(integer, boolean) is
    'Tenant (3), user (4) or role (5) of the request.jwt.claims of a PostgREST request of an authenticated user; null in any other session; when they name nobody VS401, or null when not strict.';
grant execute on function vanilla.supabase_claim(integer, boolean) to vanilla_keyring;

create or replace function vanilla.close_auth_user(p_user_id uuid) returns void language plpgsql volatile
set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users;
begin
    -- of one tenant only, unless somebody gave an id twice by hand
    for v_user in select u.* from public.users u where u.id = p_user_id and u.status <> 'deleted' for no key update loop
        perform vanilla.erase_person(v_user, 'deleted in Supabase Auth', '{"by": "supabase"}', v_user.id, v_user.role);
    end loop;
end
$f$;
comment on function vanilla.close_auth_user(uuid) is
    'Erases the user of a deleted auth user, as erase_user does.';

create or replace function vanilla.follow_auth_user() returns trigger language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid;
begin
    if tg_op = 'DELETE' then
        perform vanilla.close_auth_user(old.id);
        return null;
    elsif tg_op = 'UPDATE' then
        update public.users set email = coalesce(lower(nullif(new.email, '')), email) where id = new.id and status <> 'deleted';
        return null;
    end if;
    -- a refusal fails the sign-up, on purpose: an auth user without a user and a wallet would be found out much later
    v_tenant := vanilla.supabase_tenant(new.raw_app_meta_data);
    if not exists (select from public.tenants t where t.tenant_id = v_tenant and t.id = v_tenant and t.status = 'active'
                   and t.id <> vanilla.platform() and (t.self_registration or new.raw_app_meta_data ->> 'tenant_id' is not null)) then
        perform vanilla.refuse('VS403', 'this tenant takes no sign-ups', jsonb_build_object('tenant_id', v_tenant),
            'app_metadata.tenant_id names an active tenant; without it the default tenant must have self_registration.');
    end if;
    perform vanilla.make_user(v_tenant, nullif(new.email, ''), case when coalesce(new.email, '') = '' then new.id::text end,
        '', 'user', null, false, null, new.id);
    perform vanilla.audit(v_tenant, 'user.created', 'user', new.id, '{"by": "supabase"}', new.id, 'user');
    return null;
end
$f$;
comment on function vanilla.follow_auth_user() is
    'Trigger of auth.users: a sign-up becomes a user with the default level''s tokens, under the same id, or fails; a new address is followed, a deletion erases the user.';
grant execute on function vanilla.follow_auth_user() to vanilla_operator;

set local role vanilla_owner;
create or replace function vanilla.map_supabase_roles() returns void language plpgsql volatile
set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
begin
    for v in
        with ours as (
            select 'function ' || p.oid::regprocedure as name, p.proowner as owner, coalesce(p.proacl, acldefault('f', p.proowner)) as acl,
                p.pronamespace = 'public'::regnamespace and has_function_privilege('vanilla_operator', p.oid, 'execute') as for_service
            from pg_proc p where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
            union all
            select 'table ' || c.oid::regclass, c.relowner, c.relacl, false from pg_class c
            where c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm', 'S')),
        statements as (
            -- what default privileges, or a "grant all on all tables" once copied from a page, gave away
            select o.owner, format('revoke all on %s from %s', o.name, case a.grantee when 0 then 'public' else a.grantee::regrole::text end) as statement
            from ours o cross join lateral aclexplode(o.acl) a left join pg_roles r on r.oid = a.grantee
            where (a.grantee = 0 or r.rolname in ('anon', 'authenticated', 'service_role')) and not (o.for_service and r.rolname is not distinct from 'service_role')
            union
            select o.owner, format('grant execute on %s to service_role', o.name)
            from ours o join pg_roles r on r.rolname = 'service_role'
            where o.for_service)
        select s.owner::regrole as owner, s.statement from statements s join pg_roles r on r.oid = s.owner and starts_with(r.rolname::text, 'vanilla_')
        order by s.owner::regrole::text, s.statement
    loop
        execute format('set local role %s', v.owner);
        execute v.statement;
    end loop;
    set local role vanilla_owner;
end
$f$;
comment on function vanilla.map_supabase_roles() is
    'Leaves Supabase''s API roles no privilege of their own on ours but service_role''s, to execute the operator''s public functions. authenticated acts as a member of vanilla_app, anon as nobody.';

reset role;
do $do$
declare
    v_may boolean;
begin
    -- the table of Supabase Auth, and no other that happens to be called so
    select has_table_privilege(c.oid, 'trigger') and has_schema_privilege(n.oid, 'usage') into v_may
        from pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'auth'
        where c.relname = 'users' and pg_get_userbyid(c.relowner) = 'supabase_auth_admin'
          and exists (select from pg_attribute where attrelid = c.oid and attname = 'raw_app_meta_data' and atttypid = 'jsonb'::regtype)
          and not exists (select from pg_trigger where tgrelid = c.oid and tgname = 'vanilla_follow_auth_user');
    if v_may then
        create trigger vanilla_follow_auth_user after insert or update of email or delete on auth.users
            for each row execute function vanilla.follow_auth_user();
    elsif not v_may then
        raise warning 'Supabase Auth''s sign-ups will not become users' using
            hint = format('Give %I usage on schema auth and trigger on auth.users, and run this file again.', session_user);
    end if;
end
$do$;

-- 11. operation -----------------------------------------------------------------------------------------------------
-- Both ask as their reader: PostgreSQL shows the text of others' statements to members of pg_read_all_stats alone.
set local role vanilla_owner;
create or replace view vanilla.blocked_sessions with (security_invoker = true) as
select w.pid as waiting_pid, w.usename as waiting_login, clock_timestamp() - l.waitstart as waited, l.locktype as lock,
    l.mode, l.relation::regclass::text as relation, w.query as waiting_statement,
    h.pid as holding_pid, h.usename as holding_login, h.state as holding_state, clock_timestamp() - h.xact_start as held,
    h.query as holding_statement
from pg_locks l
join pg_stat_activity w on w.pid = l.pid and w.datname = current_database()
cross join lateral unnest(pg_blocking_pids(l.pid)) b (pid)
left join pg_stat_activity h on h.pid = b.pid
where not l.granted;
comment on view vanilla.blocked_sessions is
    'Who waits for a lock of this database, for how long, and who holds it. vanilla-saas doctor locks shows it.';
create or replace view vanilla.running_statements with (security_invoker = true) as
select pid, usename as login, state, clock_timestamp() - query_start as running,
    clock_timestamp() - xact_start as in_transaction, wait_event_type, wait_event, query as statement
from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid() and state <> 'idle';
comment on view vanilla.running_statements is
    'What the sessions of this database do at this moment, and since when. vanilla-saas doctor slow shows it.';
grant select on vanilla.blocked_sessions, vanilla.running_statements to vanilla_operator;
revoke create on schema vanilla from vanilla_definer, vanilla_system, vanilla_keyring;
reset role;
revoke create on schema public from vanilla_definer, vanilla_system;
commit;
