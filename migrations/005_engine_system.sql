-- 005: engines, a flow frozen and offered: which version a user runs by which name, and what came of it (docs/design/engines.md).
--
-- Tables:  ai_engines, engine_versions, engine_aliases, level_engines, engine_assignments, user_engines, engine_executions
-- Public:  deploy_, set_, promote_, rollback_, retire_engine; set_level_engine; assign_, unassign_engine; fork_engine,
--          rebase_engine_copy, rebase_engine_copies, delete_engine_copy; resolve_engine, explain_engine, my_engines, offered_engines;
--          preview_engine, execute_engine, create_engine_key; engine_report
-- Runtime: execute_by_key     a key of the scope engine runs its engine, as its user; preview_by_key what it would run
-- Private: engine_candidates  everything that could choose an engine for a user, and why it does not
--          resolve_engines    the first of them that may be run
-- Others:  forget_engines     erase_person of 001 calls it
--
-- Runs are executions of 006, started by its functions in the caller's transaction. What names tables or types of 006 here
-- stands in plpgsql, which reads it when it runs; the foreign keys to them are at the end of 006.
--
-- Invariants: a version never changes but for being retired, its hash is that of all it says, and versions of an engine count
-- from 1 without gaps; an alias names a version that is not retired; an assignment chooses and never permits; a run pins its
-- version, so nothing that is done to an engine reaches a run that has begun.
-- Lock order: the engine, its versions and aliases; a user, then their copies. A start locks nothing of an engine.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
select vanilla.refuse_after_upgrade();
set local role vanilla_owner;
grant create on schema vanilla to vanilla_definer;
reset role;
grant create on schema public to vanilla_definer;
set local role vanilla_owner;

-- tables -----------------------------------------------------------------------------------------------------------
create table if not exists public.ai_engines (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    slug text not null,
    name text not null,
    description text not null default '',
    status text not null default 'active',
    default_access text not null default 'none',
    offered boolean not null default false,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    constraint ai_engines_pkey primary key (tenant_id, id),
    constraint ai_engines_slug_key unique (tenant_id, slug),
    constraint ai_engines_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint ai_engines_slug_check check (slug ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    constraint ai_engines_name_check check (name <> '' and octet_length(name) <= 800),
    constraint ai_engines_description_check check (octet_length(description) <= 20000),
    constraint ai_engines_status_check check (status in ('active', 'retired')),
    constraint ai_engines_access_check check (default_access in ('none', 'read', 'execute')),
    constraint ai_engines_offered_check check (not offered or tenant_id = '00000000-0000-0000-0000-000000000000')
);
comment on table public.ai_engines is 'Engines: flows frozen as versions and offered by name. Those of the platform that are offered are there for every tenant.';
comment on column public.ai_engines.default_access is 'What a user may where level_engines says nothing of their level: none, read (card and schemas), execute.';

create table if not exists public.engine_versions (
    tenant_id uuid not null,
    engine_id uuid not null,
    version integer not null,
    workflow_id uuid not null,
    workflow_version integer not null,
    mode text not null,
    at_once smallint,
    config jsonb not null,
    hash bytea not null,
    price_hash bytea not null,
    state text not null default 'published',
    deployed_at timestamptz not null,
    deployed_by uuid,
    retired_at timestamptz,
    constraint engine_versions_pkey primary key (tenant_id, engine_id, version),
    constraint engine_versions_engine_fkey foreign key (tenant_id, engine_id) references public.ai_engines (tenant_id, id),
    constraint engine_versions_version_check check (version > 0),
    constraint engine_versions_mode_check check (mode in ('sequential', 'parallel')),
    constraint engine_versions_at_once_check check ((mode = 'sequential') = (at_once is not distinct from 1) and at_once between 1 and 1000),
    constraint engine_versions_state_check check (state in ('published', 'retired')),
    constraint engine_versions_retired_check check ((state = 'retired') = (retired_at is not null)),
    constraint engine_versions_config_check check ((config #>> '{flow,workflow_id}', config #>> '{flow,version}', config ->> 'mode', config ->> 'at_once')
        is not distinct from (workflow_id::text, workflow_version::text, mode, at_once::text)),
    constraint engine_versions_hash_check check (hash = sha256(convert_to(config::text, 'UTF8'))),
    constraint engine_versions_price_hash_check check (price_hash = sha256(convert_to((config -> 'prices')::text, 'UTF8')))
);
create index if not exists engine_versions_workflow_idx on public.engine_versions (tenant_id, workflow_id, workflow_version);
comment on table public.engine_versions is 'What was deployed, immutable: flow, models and their prices of that day, schemas, parameters, mode. What a run pins.';
comment on column public.engine_versions.config is
    'All that the version says: flow (workflow, version, hash), models, prices, input, output, parameters, mode, at_once.';
comment on column public.engine_versions.at_once is 'How many nodes of a run are queued or run at the same time at most: 1 is sequential, null any number.';
comment on column public.engine_versions.hash is 'SHA-256 of config''s text as PostgreSQL prints jsonb, in UTF-8; price_hash that of its prices.';

create or replace function vanilla.keep_engine_version() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if (old.tenant_id, old.engine_id, old.version, old.workflow_id, old.workflow_version, old.mode, old.at_once, old.config::text, old.hash, old.price_hash,
            old.deployed_at, old.deployed_by)
            is distinct from (new.tenant_id, new.engine_id, new.version, new.workflow_id, new.workflow_version, new.mode, new.at_once, new.config::text, new.hash,
            new.price_hash, new.deployed_at, new.deployed_by)
       or old.state = 'retired' and new.state <> 'retired' then
        raise exception 'a deployed version does not change' using errcode = 'VS409', hint = 'Deploy another version.';
    end if;
    return new;
end
$f$;
comment on function vanilla.keep_engine_version() is 'Trigger: a version may be retired, nothing else.';
create or replace trigger engine_versions_immutable before update on public.engine_versions
    for each row execute function vanilla.keep_engine_version();

create table if not exists public.engine_aliases (
    tenant_id uuid not null,
    engine_id uuid not null,
    alias text not null,
    version integer not null,
    weight smallint not null default 100,
    earlier integer[] not null default '{}',
    updated_at timestamptz not null,
    updated_by uuid,
    constraint engine_aliases_pkey primary key (tenant_id, engine_id, alias),
    constraint engine_aliases_version_fkey foreign key (tenant_id, engine_id, version) references public.engine_versions (tenant_id, engine_id, version),
    constraint engine_aliases_alias_check check (alias in ('stable', 'canary')),
    constraint engine_aliases_weight_check check (weight between 0 and 100 and (alias = 'canary' or weight = 100))
);
create index if not exists engine_aliases_version_idx on public.engine_aliases (tenant_id, engine_id, version);
comment on table public.engine_aliases is 'Which version an engine''s name means: stable, and for a part of the users canary.';
comment on column public.engine_aliases.weight is 'Of 100 users, how many have the canary; the same ones each time.';
comment on column public.engine_aliases.earlier is 'What it meant before, oldest first, at most 20: what rollback_engine goes back to.';

create table if not exists public.level_engines (
    tenant_id uuid not null,
    level_id uuid not null,
    engine_tenant_id uuid not null,
    engine_id uuid not null,
    access text not null,
    constraint level_engines_pkey primary key (tenant_id, level_id, engine_tenant_id, engine_id),
    constraint level_engines_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint level_engines_engine_fkey foreign key (engine_tenant_id, engine_id) references public.ai_engines (tenant_id, id),
    constraint level_engines_tenant_check check (engine_tenant_id in (tenant_id, '00000000-0000-0000-0000-000000000000')),
    constraint level_engines_access_check check (access in ('none', 'read', 'execute'))
);
create index if not exists level_engines_engine_idx on public.level_engines (engine_tenant_id, engine_id);
comment on table public.level_engines is 'What users of a level may with an engine: none, read (card and schemas) or execute. Without a row the engine''s default_access.';

create table if not exists public.engine_assignments (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    engine_tenant_id uuid not null,
    engine_id uuid not null,
    target text not null,
    user_id uuid,
    level_id uuid,
    tier integer,
    pin_version integer,
    pin_alias text,
    priority integer not null default 0,
    valid_from timestamptz not null default '-infinity',
    valid_to timestamptz not null default 'infinity',
    assigned_at timestamptz not null,
    assigned_by uuid,
    constraint engine_assignments_pkey primary key (tenant_id, id),
    constraint engine_assignments_target_key unique nulls not distinct (tenant_id, engine_tenant_id, engine_id, target, user_id, level_id, tier),
    constraint engine_assignments_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint engine_assignments_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint engine_assignments_engine_fkey foreign key (engine_tenant_id, engine_id) references public.ai_engines (tenant_id, id),
    constraint engine_assignments_version_fkey foreign key (engine_tenant_id, engine_id, pin_version)
        references public.engine_versions (tenant_id, engine_id, version),
    constraint engine_assignments_tenant_check check (engine_tenant_id in (tenant_id, '00000000-0000-0000-0000-000000000000')),
    constraint engine_assignments_target_check check (target in ('user', 'level', 'tier', 'tenant', 'platform')),
    constraint engine_assignments_whom_check check (case target when 'user' then user_id is not null and num_nonnulls(level_id, tier) = 0
        when 'level' then level_id is not null and num_nonnulls(user_id, tier) = 0 when 'tier' then tier is not null and num_nonnulls(user_id, level_id) = 0
        when 'tenant' then num_nonnulls(user_id, level_id, tier) = 0
        when 'platform' then num_nonnulls(user_id, level_id, tier) = 0 and tenant_id = '00000000-0000-0000-0000-000000000000' else true end),
    constraint engine_assignments_alias_check check (pin_alias in ('stable', 'canary')),
    constraint engine_assignments_pin_check check (num_nonnulls(pin_version, pin_alias) < 2),
    constraint engine_assignments_validity_check check (valid_from < valid_to)
);
create index if not exists engine_assignments_user_idx on public.engine_assignments (tenant_id, user_id);
create index if not exists engine_assignments_level_idx on public.engine_assignments (tenant_id, level_id);
create index if not exists engine_assignments_wide_idx on public.engine_assignments (tenant_id, target, tier) where user_id is null and level_id is null;
create index if not exists engine_assignments_engine_idx on public.engine_assignments (engine_tenant_id, engine_id, pin_version);
comment on table public.engine_assignments is
    'Which engine somebody runs who names none: a user, those of a level or a tier, a tenant''s or (of the platform) everybody. It chooses; it permits nothing.';
comment on column public.engine_assignments.pin_alias is 'stable or canary, whatever the weights are; with neither pin what the engine''s name means to the user.';

create table if not exists public.user_engines (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    slug text not null,
    engine_tenant_id uuid not null,
    engine_id uuid not null,
    version integer not null,
    overlay jsonb not null default '{}',
    is_default boolean not null default false,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint user_engines_pkey primary key (tenant_id, id),
    constraint user_engines_slug_key unique (tenant_id, user_id, slug),
    constraint user_engines_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint user_engines_version_fkey foreign key (engine_tenant_id, engine_id, version) references public.engine_versions (tenant_id, engine_id, version),
    constraint user_engines_tenant_check check (engine_tenant_id in (tenant_id, '00000000-0000-0000-0000-000000000000')),
    constraint user_engines_slug_check check (slug ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    constraint user_engines_overlay_check check (jsonb_typeof(overlay) = 'object' and octet_length(overlay::text) <= 65536)
);
create unique index if not exists user_engines_default_idx on public.user_engines (tenant_id, user_id) where is_default;
create index if not exists user_engines_version_idx on public.user_engines (engine_tenant_id, engine_id, version);
comment on table public.user_engines is 'Users'' copies of engines: a version they stay on, and values of their own for its declared parameters. Run as my/<slug>.';

create table if not exists public.engine_executions (
    tenant_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    id uuid not null,
    user_id uuid not null,
    engine_tenant_id uuid not null,
    engine_id uuid not null,
    version integer not null,
    alias text,
    source text not null,
    source_id uuid,
    api_key_id uuid,
    config_hash bytea not null,
    price_hash bytea not null,
    estimate_p50 bigint,
    estimate_p95 bigint,
    estimated_from smallint not null,
    constraint engine_executions_pkey primary key (tenant_id, created_at, id),
    constraint engine_executions_alias_check check (alias in ('stable', 'canary')),
    constraint engine_executions_source_check check (source in ('reference', 'copy', 'user', 'level', 'tier', 'tenant', 'platform', 'key'))
) partition by range (created_at);
create index if not exists engine_executions_id_idx on public.engine_executions (tenant_id, id);
create index if not exists engine_executions_user_idx on public.engine_executions (tenant_id, user_id, created_at desc);
create index if not exists engine_executions_engine_idx on public.engine_executions (tenant_id, engine_id, version, created_at desc);
comment on table public.engine_executions is
    'Runs of engines: which version, and how it was chosen. Status, output, time and cost are those of the workflow execution of the same id.';
comment on column public.engine_executions.source_id is 'The copy or the assignment that chose it; null when it was named.';
comment on column public.engine_executions.price_hash is 'SHA-256 of the prices of its models when it began; another than the version''s says that they have changed since it was deployed.';
comment on column public.engine_executions.estimate_p95 is 'Tokens that 95 % of the estimated_from runs of the version before it cost at most; null without any.';
select vanilla.ensure_partitions();

do $do$
begin
    if not exists (select from pg_constraint c where c.conrelid = 'public.api_keys'::regclass and c.conname = 'api_keys_engine_fkey') then
        alter table public.api_keys add constraint api_keys_engine_fkey foreign key (engine_tenant_id, engine_id) references public.ai_engines (tenant_id, id);
    end if;
end
$do$;
create index if not exists api_keys_engine_idx on public.api_keys (engine_tenant_id, engine_id);

-- the same that 010 writes: functions work before it has run, and no login has anything
grant select, insert, update, delete on public.ai_engines, public.engine_versions, public.engine_aliases, public.level_engines, public.engine_assignments,
    public.user_engines to vanilla_definer, vanilla_system;
grant select, insert on public.engine_executions to vanilla_definer, vanilla_system;

set local role vanilla_definer;
alter default privileges revoke execute on functions from public;

-- what a version is made of ----------------------------------------------------------------------------------------
create or replace function vanilla.flow_models(p_definition jsonb) returns table (node text, model text, kind text)
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select n.value ->> 'id', m.model, m.kind
    from jsonb_array_elements(p_definition -> 'nodes') n
    cross join lateral (
        select n.value ->> 'model' as model, case when n.value ->> 'check' = 'similarity' then 'embedding' else 'chat' end as kind
        union all
        select n.value #>> '{item,model}', 'chat'
        union all
        select c.value ->> 'model', case when c.value ->> 'check' = 'similarity' then 'embedding' else 'chat' end
            from jsonb_array_elements(case when jsonb_typeof(n.value -> 'checks') = 'array' then n.value -> 'checks' else '[]' end) c) m
    where m.model is not null
$f$;
comment on function vanilla.flow_models(jsonb) is 'Models that nodes of a definition, items of its maps and checks of its gates name, and of what kind each has to be.';

create or replace function vanilla.known_models(p_tenant_id uuid, p_models text[]) returns table (slug text, kind text, problem text, model jsonb, price jsonb)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    -- as admit_call looks: the tenant's own before the platform's, with a provider that has its key and a price
    select s.slug, m.kind, case
            when m.id is null then format('The model %s does not exist.', s.slug)
            when p.status <> 'active' or p.secret is null and p.kind not in ('sandbox', 'custom') then format('The provider %s has no key yet.', p.slug)
            when m.input_price is null or m.output_price is null then format('The model %s has no price.', s.slug) end,
        jsonb_build_object('tenant_id', m.tenant_id, 'id', m.id, 'kind', m.kind, 'upstream_model', m.upstream_model, 'provider', p.slug),
        jsonb_build_object('input_price', m.input_price, 'cached_input_price', m.cached_input_price, 'output_price', m.output_price, 'input_weight', m.input_weight,
            'cached_input_weight', m.cached_input_weight, 'output_weight', m.output_weight)
    from (select distinct x as slug from unnest(p_models) x) s
    left join lateral (select * from public.ai_models m where m.tenant_id in (p_tenant_id, vanilla.platform()) and m.slug = s.slug and m.status <> 'disabled'
        order by m.tenant_id = vanilla.platform() limit 1) m on true
    left join public.ai_providers p on p.tenant_id = m.provider_tenant_id and p.id = m.provider_id
$f$;
comment on function vanilla.known_models(uuid, text[]) is 'What names of models mean to a tenant today, at which price, and why a call of one would be refused.';

create or replace function vanilla.parameter_misfit(p_parameter jsonb, p_value jsonb) returns text language sql immutable
    return case
        when case p_parameter ->> 'type' when 'integer' then jsonb_typeof(p_value) = 'number' and (p_value #>> '{}')::numeric % 1 = 0
                else jsonb_typeof(p_value) = p_parameter ->> 'type' end is not true then format('It is of the type %s.', p_parameter ->> 'type')
        when not coalesce(p_parameter -> 'enum' @> jsonb_build_array(p_value), true) then format('It is one of %s.', p_parameter -> 'enum')
        when jsonb_typeof(p_value) = 'number' and (p_value #>> '{}')::numeric < (p_parameter ->> 'minimum')::numeric then format('It is at least %s.', p_parameter ->> 'minimum')
        when jsonb_typeof(p_value) = 'number' and (p_value #>> '{}')::numeric > (p_parameter ->> 'maximum')::numeric then format('It is at most %s.', p_parameter ->> 'maximum')
        when jsonb_typeof(p_value) = 'string' and length(p_value #>> '{}') > (p_parameter ->> 'maxLength')::integer
            then format('It has at most %s characters.', p_parameter ->> 'maxLength') end;
comment on function vanilla.parameter_misfit(jsonb, jsonb) is 'Why a value does not fit a declared parameter, as a sentence; null: it does.';

create or replace function vanilla.parameter_problems(p_parameters jsonb, p_input jsonb) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
    v_problems jsonb := '[]';
    v_message text;
begin
    if jsonb_typeof(p_parameters) is distinct from 'object' or octet_length(p_parameters::text) > 65536 then
        return jsonb_build_array(jsonb_build_object('node', null, 'field', 'parameters', 'code', 'parameter_invalid',
            'message', 'Parameters are a JSON object of at most 64 KiB.'));
    end if;
    for v in select p.key, p.value from jsonb_each(p_parameters) p order by p.key loop
        v_message := case
            when v.key !~ '^[a-z][a-z0-9_]{0,62}$' then 'A parameter has a name of 1 to 63 of a-z, 0-9 and _, beginning with a letter.'
            when jsonb_typeof(v.value) <> 'object' or coalesce(v.value ->> 'type', '') not in ('string', 'number', 'integer', 'boolean')
                then 'A parameter is an object with the type string, number, integer or boolean.'
            when v.value - array['type', 'default', 'enum', 'minimum', 'maximum', 'maxLength', 'title', 'description'] <> '{}'
                then 'A parameter says type, default, enum, minimum, maximum, maxLength, title and description, nothing else.'
            when v.value ? 'enum' and (jsonb_typeof(v.value -> 'enum') <> 'array' or v.value -> 'enum' = '[]')
                or exists (select from unnest(array['minimum', 'maximum', 'maxLength']) k where v.value ? k and jsonb_typeof(v.value -> k) <> 'number')
                or v.value ->> 'maxLength' !~ '^[0-9]{1,9}$' then 'enum is a list that is not empty; minimum, maximum and maxLength are numbers.'
            when jsonb_typeof(p_input -> 'properties') = 'object' and not p_input -> 'properties' ? v.key
                then 'It is no property of the flow''s input.'
            when v.value ? 'default' then 'Its default does not fit. ' || vanilla.parameter_misfit(v.value, v.value -> 'default') end;
        if v_message is not null then
            v_problems := v_problems || jsonb_build_object('node', null, 'field', 'parameters.' || left(v.key, 63), 'code', 'parameter_invalid', 'message', v_message);
        end if;
    end loop;
    return v_problems;
end
$f$;
comment on function vanilla.parameter_problems(jsonb, jsonb) is 'What is wrong with the parameters that a version declares: each is a property of the flow''s input with a type and bounds that SQL checks.';

create or replace function vanilla.flow_problems(p_tenant_id uuid, p_definition jsonb) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select coalesce(jsonb_agg(jsonb_build_object('node', p.node, 'field', p.field, 'code', p.code, 'message', p.message) order by p.node, p.field), '[]') from (
        select n.value ->> 'id' as node, 'kind' as field, 'not_self_contained' as code,
                format('What a node of the kind %s starts is not frozen with the engine.', k.kind) as message
            from jsonb_array_elements(p_definition -> 'nodes') n
            cross join lateral (values (n.value ->> 'kind'), (n.value #>> '{item,kind}')) k (kind)
            where k.kind in ('workflow', 'engine', 'agent')
        union all
        select distinct f.node, 'model', case when m.problem is null then 'model_kind' else 'model_not_callable' end,
                coalesce(m.problem, format('The model %s is of the kind %s.', m.slug, m.kind))
            from vanilla.flow_models(p_definition) f
            join vanilla.known_models(p_tenant_id, array(select f.model from vanilla.flow_models(p_definition) f)) m on m.slug = f.model
            where m.problem is not null or m.kind <> f.kind) p
$f$;
comment on function vanilla.flow_problems(uuid, jsonb) is 'Why a published flow makes no engine: nodes that start what is not frozen with it, models that the tenant cannot call.';

-- engines ----------------------------------------------------------------------------------------------------------
create or replace function vanilla.own_engine(p_engine_id uuid, p_tenant_id uuid) returns public.ai_engines
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_engine public.ai_engines;
begin
    select * into v_engine from public.ai_engines e where e.id = p_engine_id and (e.tenant_id = v_tenant or v_tenant is null) for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such engine', jsonb_build_object('engine_id', p_engine_id)); end if;
    return v_engine;
end
$f$;
comment on function vanilla.own_engine(uuid, uuid) is 'An engine of the acting tenant, locked against others who change it.';

create or replace function vanilla.offered_engine(p_engine_id uuid, p_tenant_id uuid, out engine public.ai_engines, out tenant_id uuid)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    tenant_id := vanilla.acting_tenant(p_tenant_id);
    -- until this commits it is neither retired nor taken back
    select e.* into engine from public.ai_engines e where e.id = p_engine_id
        and (e.tenant_id = offered_engine.tenant_id or offered_engine.tenant_id is null or e.tenant_id = vanilla.platform() and e.offered) for share;
    if not found then perform vanilla.refuse('VS404', 'no such engine', jsonb_build_object('engine_id', p_engine_id)); end if;
    tenant_id := coalesce(tenant_id, engine.tenant_id);
    if engine.status = 'retired' then
        perform vanilla.refuse('VS409', 'the engine is retired', jsonb_build_object('engine', engine.slug), 'Deploy it again to offer it.');
    end if;
end
$f$;
comment on function vanilla.offered_engine(uuid, uuid) is 'An engine that the acting tenant may offer to its people, its own or the platform''s, and that tenant.';

create or replace function public.deploy_engine(p_slug text, p_workflow_id uuid, p_workflow_version integer default null, p_name text default null,
    p_description text default null, p_mode text default 'parallel', p_at_once integer default null, p_parameters jsonb default '{}', p_output jsonb default null,
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_now timestamptz := vanilla.clock();
    v_at_once integer := case when p_mode = 'sequential' then coalesce(p_at_once, 1) else p_at_once end;
    v_flow record;
    v_engine public.ai_engines;
    v_latest public.engine_versions;
    v_problems jsonb;
    v_config jsonb;
    v_hash bytea;
    v_version integer;
begin
    if p_mode is null or p_mode not in ('sequential', 'parallel') then
        perform vanilla.refuse('VS400', 'the mode is sequential or parallel', '{"param": "mode"}');
    elsif v_at_once not between 1 and 1000 or (p_mode = 'sequential') <> (v_at_once is not distinct from 1) then
        perform vanilla.refuse('VS400', 'at once are 2 to 1,000 nodes', '{"param": "at_once"}', 'One at a time is the mode sequential; without a number there is no limit.');
    end if;
    select w.tenant_id, w.name, w.description, null::integer as version, null::jsonb as definition, null::bytea as hash into v_flow from public.ai_workflows w
        where w.id = p_workflow_id and (w.tenant_id = v_tenant or v_tenant is null) and w.origin_tenant_id is null order by w.tenant_id limit 1;
    if not found then perform vanilla.refuse('VS404', 'no such workflow', jsonb_build_object('param', 'workflow_id', 'workflow_id', p_workflow_id)); end if;
    v_tenant := v_flow.tenant_id;
    select (s.version).version, (s.version).definition, (s.version).hash into v_flow.version, v_flow.definition, v_flow.hash
        from vanilla.startable_version(v_tenant, p_workflow_id, p_workflow_version) s;
    v_problems := vanilla.flow_problems(v_tenant, v_flow.definition) || vanilla.parameter_problems(p_parameters, v_flow.definition -> 'input');
    if v_problems <> '[]' then
        perform vanilla.refuse('VS422', 'the flow makes no engine', jsonb_build_object('problems', v_problems), v_problems #>> '{0,message}');
    elsif p_output is not null and (jsonb_typeof(p_output) <> 'object' or octet_length(p_output::text) > 65536) then
        perform vanilla.refuse('VS400', 'the output''s schema is a JSON object of at most 64 KiB', '{"param": "output"}');
    end if;
    select jsonb_build_object('flow', jsonb_build_object('workflow_id', p_workflow_id, 'version', v_flow.version, 'hash', encode(v_flow.hash, 'hex')),
            'models', coalesce(jsonb_object_agg(m.slug, m.model) filter (where m.slug is not null), '{}'),
            'prices', coalesce(jsonb_object_agg(m.slug, m.price) filter (where m.slug is not null), '{}'),
            'input', coalesce(v_flow.definition -> 'input', '{"type": "object"}'), 'output', p_output, 'parameters', p_parameters, 'mode', p_mode, 'at_once', v_at_once)
        into v_config from vanilla.known_models(v_tenant, array(select f.model from vanilla.flow_models(v_flow.definition) f)) m;
    v_hash := sha256(convert_to(v_config::text, 'UTF8'));
    begin
        insert into public.ai_engines as e (tenant_id, slug, name, description, created_at, updated_at)
            values (v_tenant, p_slug, coalesce(p_name, v_flow.name), coalesce(p_description, v_flow.description), v_now, v_now)
            on conflict (tenant_id, slug) do update set name = coalesce(p_name, e.name), description = coalesce(p_description, e.description), status = 'active', updated_at = v_now
            returning * into v_engine;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the engine is not valid: ' || sqlerrm, '{"param": "slug"}',
            'A slug is 1 to 63 of a-z, 0-9, _ and hyphens; a name has at most 200 characters, a description 5,000.');
    end;
    select * into v_latest from public.engine_versions v where v.tenant_id = v_tenant and v.engine_id = v_engine.id order by v.version desc limit 1;
    if v_latest.hash = v_hash and v_latest.state = 'published' then
        return jsonb_build_object('engine_id', v_engine.id, 'slug', p_slug, 'version', v_latest.version, 'hash', encode(v_hash, 'hex'), 'unchanged', true);
    end if;
    v_version := coalesce(v_latest.version, 0) + 1;
    insert into public.engine_versions (tenant_id, engine_id, version, workflow_id, workflow_version, mode, at_once, config, hash, price_hash, deployed_at, deployed_by)
        values (v_tenant, v_engine.id, v_version, p_workflow_id, v_flow.version, p_mode, v_at_once, v_config, v_hash, sha256(convert_to((v_config -> 'prices')::text, 'UTF8')),
            v_now, vanilla.claim(4)::uuid);
    -- the first is what the name means; of later ones promote_engine says it
    insert into public.engine_aliases (tenant_id, engine_id, alias, version, updated_at, updated_by)
        values (v_tenant, v_engine.id, 'stable', v_version, v_now, vanilla.claim(4)::uuid) on conflict do nothing;
    perform vanilla.audit(v_tenant, 'engine.deployed', 'engine', v_engine.id, jsonb_build_object('slug', p_slug, 'version', v_version, 'hash', encode(v_hash, 'hex')));
    return jsonb_build_object('engine_id', v_engine.id, 'slug', p_slug, 'version', v_version, 'hash', encode(v_hash, 'hex'), 'unchanged', false);
end
$f$;
comment on function public.deploy_engine(text, uuid, integer, text, text, text, integer, jsonb, jsonb, uuid) is
    'Freezes a published workflow as the next version of the engine of this slug, or makes the engine; what is its latest version already stays it. VS422 with problems when a model cannot be called, a node starts what is not frozen, or a parameter is not one. The first version is stable at once. Admin or operator.';

create or replace function public.set_engine(p_engine_id uuid, p_name text default null, p_description text default null, p_default_access text default null,
    p_offered boolean default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_engine public.ai_engines := vanilla.own_engine(p_engine_id, p_tenant_id);
begin
    if p_offered and v_engine.tenant_id <> vanilla.platform() then
        perform vanilla.refuse('VS400', 'only the platform offers its engines to other tenants', '{"param": "offered"}');
    end if;
    begin
        update public.ai_engines e set name = coalesce(p_name, e.name), description = coalesce(p_description, e.description),
                default_access = coalesce(p_default_access, e.default_access), offered = coalesce(p_offered, e.offered), updated_at = vanilla.clock()
            where e.tenant_id = v_engine.tenant_id and e.id = v_engine.id returning * into v_engine;
    exception when check_violation then
        perform vanilla.refuse('VS400', 'the engine is not valid: ' || sqlerrm, '{"param": "default_access"}', 'The access is none, read or execute.');
    end;
    perform vanilla.audit(v_engine.tenant_id, 'engine.set', 'engine', v_engine.id, jsonb_build_object('slug', v_engine.slug, 'default_access', v_engine.default_access,
        'offered', v_engine.offered));
    return jsonb_build_object('engine_id', v_engine.id, 'slug', v_engine.slug, 'default_access', v_engine.default_access, 'offered', v_engine.offered);
end
$f$;
comment on function public.set_engine(uuid, text, text, text, boolean, uuid) is
    'Name, description, what users of levels that say nothing may, and whether an engine of the platform is there for all tenants; null leaves it. Admin or operator.';

create or replace function public.promote_engine(p_engine_id uuid, p_version integer, p_alias text default 'stable', p_weight integer default null,
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_engine public.ai_engines := vanilla.own_engine(p_engine_id, p_tenant_id);
    v_state text;
begin
    if p_alias is null or p_alias not in ('stable', 'canary') then
        perform vanilla.refuse('VS400', 'the alias is stable or canary', '{"param": "alias"}');
    elsif (p_alias = 'canary') <> (p_weight is not null) or p_weight not between 0 and 100 then
        perform vanilla.refuse('VS400', 'a canary has a weight of 0 to 100, stable has none', '{"param": "weight"}');
    end if;
    select v.state into v_state from public.engine_versions v where v.tenant_id = v_engine.tenant_id and v.engine_id = v_engine.id and v.version = p_version;
    if not found then
        perform vanilla.refuse('VS404', 'no such version', jsonb_build_object('param', 'version', 'version', p_version));
    elsif v_state = 'retired' then
        perform vanilla.refuse('VS409', format('version %s is retired', p_version), jsonb_build_object('version', p_version), 'Promote another, or deploy it again.');
    end if;
    insert into public.engine_aliases as a (tenant_id, engine_id, alias, version, weight, updated_at, updated_by)
        values (v_engine.tenant_id, v_engine.id, p_alias, p_version, coalesce(p_weight, 100), vanilla.clock(), vanilla.claim(4)::uuid)
        on conflict (tenant_id, engine_id, alias) do update set version = excluded.version, weight = excluded.weight, updated_at = excluded.updated_at, updated_by = excluded.updated_by,
            earlier = case when a.version = excluded.version then a.earlier else (a.earlier || a.version)[greatest(cardinality(a.earlier) - 18, 1) :] end;
    if p_alias = 'stable' then      -- everybody has it now
        delete from public.engine_aliases a where a.tenant_id = v_engine.tenant_id and a.engine_id = v_engine.id and a.alias = 'canary' and a.version = p_version;
    end if;
    perform vanilla.audit(v_engine.tenant_id, 'engine.promoted', 'engine', v_engine.id, jsonb_build_object('slug', v_engine.slug, 'version', p_version, 'alias', p_alias,
        'weight', p_weight));
    return jsonb_build_object('engine_id', v_engine.id, 'alias', p_alias, 'version', p_version, 'weight', coalesce(p_weight, 100));
end
$f$;
comment on function public.promote_engine(uuid, integer, text, integer, uuid) is
    'Lets stable, or for so many of 100 users canary, mean this version from the next start on; what runs stays on its own. A canary that becomes stable is none any more. Admin or operator.';

create or replace function public.rollback_engine(p_engine_id uuid, p_alias text default 'stable', p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_engine public.ai_engines := vanilla.own_engine(p_engine_id, p_tenant_id);
    v_alias public.engine_aliases;
    v_to integer;
    v_place integer;
begin
    select * into v_alias from public.engine_aliases a where a.tenant_id = v_engine.tenant_id and a.engine_id = v_engine.id and a.alias = p_alias;
    if not found then perform vanilla.refuse('VS404', 'no such alias', jsonb_build_object('param', 'alias', 'alias', p_alias)); end if;
    if p_alias = 'canary' then
        delete from public.engine_aliases a where a.tenant_id = v_engine.tenant_id and a.engine_id = v_engine.id and a.alias = 'canary';
    else
        -- the last one that can still be started
        select e.version, e.place into v_to, v_place from unnest(v_alias.earlier) with ordinality e (version, place)
            join public.engine_versions v on v.tenant_id = v_engine.tenant_id and v.engine_id = v_engine.id and v.version = e.version and v.state = 'published'
            order by e.place desc limit 1;
        if not found then
            perform vanilla.refuse('VS409', 'there is nothing to go back to', jsonb_build_object('alias', p_alias, 'version', v_alias.version), 'Promote another version.');
        end if;
        update public.engine_aliases a set version = v_to, earlier = v_alias.earlier[: v_place - 1], updated_at = vanilla.clock(), updated_by = vanilla.claim(4)::uuid
            where a.tenant_id = v_engine.tenant_id and a.engine_id = v_engine.id and a.alias = 'stable';
    end if;
    perform vanilla.audit(v_engine.tenant_id, 'engine.rolled_back', 'engine', v_engine.id, jsonb_build_object('slug', v_engine.slug, 'alias', p_alias, 'from', v_alias.version, 'to', v_to));
    return jsonb_build_object('engine_id', v_engine.id, 'alias', p_alias, 'from', v_alias.version, 'version', v_to);
end
$f$;
comment on function public.rollback_engine(uuid, text, uuid) is
    'Lets stable mean again what it meant before, or ends the canary; what runs stays on its version. Admin or operator.';

create or replace function public.retire_engine(p_engine_id uuid, p_version integer default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_engine public.ai_engines := vanilla.own_engine(p_engine_id, p_tenant_id);
    v_version public.engine_versions;
    v_alias text;
begin
    if p_version is null then
        if v_engine.status = 'retired' then perform vanilla.refuse('VS409', 'the engine is retired already', jsonb_build_object('engine', v_engine.slug)); end if;
        update public.ai_engines e set status = 'retired', updated_at = vanilla.clock() where e.tenant_id = v_engine.tenant_id and e.id = v_engine.id;
    else
        select * into v_version from public.engine_versions v where v.tenant_id = v_engine.tenant_id and v.engine_id = v_engine.id and v.version = p_version;
        if not found then perform vanilla.refuse('VS404', 'no such version', jsonb_build_object('param', 'version', 'version', p_version)); end if;
        select a.alias into v_alias from public.engine_aliases a where a.tenant_id = v_engine.tenant_id and a.engine_id = v_engine.id and a.version = p_version order by a.alias desc limit 1;
        if found then
            perform vanilla.refuse('VS409', format('version %s is %s', p_version, v_alias), jsonb_build_object('version', p_version, 'alias', v_alias),
                case v_alias when 'canary' then 'End the canary with rollback_engine first.' else 'Promote another version first.' end);
        elsif v_version.state = 'retired' then
            perform vanilla.refuse('VS409', format('version %s is retired already', p_version), jsonb_build_object('version', p_version));
        end if;
        update public.engine_versions v set state = 'retired', retired_at = vanilla.clock() where v.tenant_id = v_engine.tenant_id and v.engine_id = v_engine.id and v.version = p_version;
    end if;
    perform vanilla.audit(v_engine.tenant_id, 'engine.retired', 'engine', v_engine.id, jsonb_build_object('slug', v_engine.slug, 'version', p_version));
    return jsonb_build_object('engine_id', v_engine.id, 'version', p_version);
end
$f$;
comment on function public.retire_engine(uuid, integer, uuid) is
    'Nothing starts on a version any more, or on the engine until it is deployed again; what runs goes on. A version that an alias names is not retired. Admin or operator.';

-- who may, and who runs which --------------------------------------------------------------------------------------
create or replace function public.set_level_engine(p_level_id uuid, p_engine_id uuid, p_access text, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_level public.levels := vanilla.own_level(p_tenant_id, p_level_id);
    v_engine public.ai_engines;
begin
    select e.* into v_engine from public.ai_engines e where e.id = p_engine_id and (e.tenant_id = v_level.tenant_id or e.tenant_id = vanilla.platform() and e.offered);
    if not found then perform vanilla.refuse('VS404', 'no such engine', jsonb_build_object('param', 'engine_id', 'engine_id', p_engine_id)); end if;
    if p_access is null then
        delete from public.level_engines l where l.tenant_id = v_level.tenant_id and l.level_id = v_level.id and l.engine_tenant_id = v_engine.tenant_id and l.engine_id = v_engine.id;
    else
        begin
            insert into public.level_engines (tenant_id, level_id, engine_tenant_id, engine_id, access) values (v_level.tenant_id, v_level.id, v_engine.tenant_id, v_engine.id, p_access)
                on conflict (tenant_id, level_id, engine_tenant_id, engine_id) do update set access = excluded.access;
        exception when check_violation then
            perform vanilla.refuse('VS400', 'the access is none, read or execute', '{"param": "access"}', 'null leaves it to the engine''s default_access.');
        end;
    end if;
    perform vanilla.audit(v_level.tenant_id, 'level.engine', 'level', v_level.id, jsonb_build_object('engine', v_engine.slug, 'access', p_access));
end
$f$;
comment on function public.set_level_engine(uuid, uuid, text, uuid) is
    'What users of a level may with an engine of the tenant or one that the platform offers: none, read or execute, from the next start on; null: the engine''s default. Admin or operator.';

create or replace function public.assign_engine(p_engine_id uuid, p_target text, p_target_id uuid default null, p_tier integer default null, p_pin text default null,
    p_priority integer default 0, p_valid_from timestamptz default null, p_valid_to timestamptz default null, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_found record;
    v_engine public.ai_engines;
    v_tenant uuid;
    v_state text;
    v_pin integer := case when p_pin ~ '^[1-9][0-9]{0,8}$' then p_pin::integer end;
    v_id uuid;
begin
    v_found := vanilla.offered_engine(p_engine_id, p_tenant_id);
    v_engine := v_found.engine;
    v_tenant := v_found.tenant_id;
    if p_target is null or p_target not in ('user', 'level', 'tier', 'tenant', 'platform') or (p_target in ('user', 'level')) <> (p_target_id is not null)
            or (p_target = 'tier') <> (p_tier is not null) then
        perform vanilla.refuse('VS400', 'a target is user or level with its id, tier with its number, tenant, or platform', '{"param": "target"}');
    elsif p_target = 'platform' and v_tenant <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'only the platform has a default for everybody', '{"need": "superadmin"}');
    elsif p_target = 'user' then
        perform vanilla.hold_open(vanilla.find_user(v_tenant, p_target_id));
    elsif p_target = 'level' and not exists (select from public.levels l where l.tenant_id = v_tenant and l.id = p_target_id) then
        perform vanilla.refuse('VS404', 'no such level', jsonb_build_object('param', 'target_id', 'level_id', p_target_id));
    end if;
    if v_pin is not null then
        select v.state into v_state from public.engine_versions v where v.tenant_id = v_engine.tenant_id and v.engine_id = v_engine.id and v.version = v_pin;
        if not found then
            perform vanilla.refuse('VS404', 'no such version', jsonb_build_object('param', 'pin', 'version', v_pin));
        elsif v_state = 'retired' then
            perform vanilla.refuse('VS409', format('version %s is retired', v_pin), jsonb_build_object('version', v_pin), 'Pin another version.');
        end if;
    elsif p_pin not in ('stable', 'canary') then
        perform vanilla.refuse('VS400', 'a pin is the number of a version, stable or canary', '{"param": "pin"}', 'Without one the user has what the engine''s name means.');
    end if;
    begin
        insert into public.engine_assignments as a (tenant_id, engine_tenant_id, engine_id, target, user_id, level_id, tier, pin_version, pin_alias, priority, valid_from, valid_to,
                assigned_at, assigned_by)
            values (v_tenant, v_engine.tenant_id, v_engine.id, p_target, case when p_target = 'user' then p_target_id end, case when p_target = 'level' then p_target_id end, p_tier,
                v_pin, case when v_pin is null then p_pin end, coalesce(p_priority, 0), coalesce(p_valid_from, '-infinity'), coalesce(p_valid_to, 'infinity'), vanilla.clock(),
                vanilla.claim(4)::uuid)
            on conflict on constraint engine_assignments_target_key do update set pin_version = excluded.pin_version, pin_alias = excluded.pin_alias, priority = excluded.priority,
                valid_from = excluded.valid_from, valid_to = excluded.valid_to, assigned_at = excluded.assigned_at, assigned_by = excluded.assigned_by
            returning a.id into v_id;
    exception when check_violation then
        perform vanilla.refuse('VS400', 'it ends before it begins', '{"param": "valid_to"}');
    end;
    perform vanilla.audit(v_tenant, 'engine.assigned', 'engine', v_engine.id, jsonb_build_object('engine', v_engine.slug, 'target', p_target, 'target_id', p_target_id, 'tier', p_tier,
        'pin', p_pin, 'priority', p_priority));
    return v_id;
end
$f$;
comment on function public.assign_engine(uuid, text, uuid, integer, text, integer, timestamptz, timestamptz, uuid) is
    'Chooses an engine for those who name none: a user, a level, a tier, the tenant or (of the platform) everybody. Again for the same target changes it. It permits nothing: set_level_engine does. Admin or operator.';

create or replace function public.unassign_engine(p_assignment_id uuid, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_gone public.engine_assignments;
begin
    delete from public.engine_assignments a where a.id = p_assignment_id and (a.tenant_id = v_tenant or v_tenant is null) returning * into v_gone;
    if not found then perform vanilla.refuse('VS404', 'no such assignment', jsonb_build_object('assignment_id', p_assignment_id)); end if;
    perform vanilla.audit(v_gone.tenant_id, 'engine.unassigned', 'engine', v_gone.engine_id, jsonb_build_object('target', v_gone.target,
        'target_id', coalesce(v_gone.user_id, v_gone.level_id), 'tier', v_gone.tier));
end
$f$;
comment on function public.unassign_engine(uuid, uuid) is 'Takes an assignment back. Admin or operator.';

-- the choice -------------------------------------------------------------------------------------------------------
create or replace function vanilla.engine_bucket(p_user_id uuid, p_engine_id uuid) returns integer language sql immutable
    return (select (get_byte(h.hash, 0) * 65536 + get_byte(h.hash, 1) * 256 + get_byte(h.hash, 2)) % 100
        from (select sha256(convert_to(p_user_id || ':' || p_engine_id, 'UTF8')) as hash) h);
comment on function vanilla.engine_bucket(uuid, uuid) is 'The place of a user among 100 of an engine: whoever is below the weight has the canary, each time.';

-- Every question at once: connections resolve one, tests thousands. What precedes is rank, then priority, then what is newer, then the id.
create or replace function vanilla.engine_candidates(p_tenant_ids uuid[], p_user_ids uuid[], p_refs text[], p_at timestamptz)
returns table (nr bigint, rank integer, source text, source_id uuid, priority integer, since timestamptz, engine_tenant_id uuid, engine_id uuid, engine text, version integer,
    alias text, access text, reason text)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    with asked as materialized (
        select a.nr, a.tenant_id, a.user_id, a.ref, w.level_id, l.tier
        from unnest(p_tenant_ids, p_user_ids, p_refs) with ordinality a (tenant_id, user_id, ref, nr)
        left join public.user_token_wallets w on w.tenant_id = a.tenant_id and w.user_id = a.user_id
        left join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id),
    named as (
        select a.nr, 0 as rank, 'reference' as source, null::uuid as source_id, 0 as priority, null::timestamptz as since, e.tenant_id as engine_tenant_id, e.id as engine_id,
                case when p.pin ~ '^[0-9]+$' then p.pin::integer end as pin_version, case when p.pin !~ '^[0-9]+$' then p.pin end as pin_alias,
                '-infinity'::timestamptz as valid_from, 'infinity'::timestamptz as valid_to
            from asked a
            cross join lateral (select nullif(split_part(a.ref, '@', 2), '') as pin) p
            -- the tenant's own before the platform's of the same name
            cross join lateral (select e.tenant_id, e.id from public.ai_engines e where e.slug = split_part(a.ref, '@', 1)
                and (e.tenant_id = a.tenant_id or e.tenant_id = vanilla.platform() and e.offered) order by e.tenant_id = vanilla.platform() limit 1) e
        union all
        select a.nr, case when a.ref is null then 1 else 0 end, case when a.ref is null then 'copy' else 'reference' end, c.id, 0, c.updated_at, c.engine_tenant_id, c.engine_id,
                case when p.pin is null then c.version when p.pin ~ '^[0-9]+$' then p.pin::integer end, case when p.pin !~ '^[0-9]+$' then nullif(p.pin, '') end,
                '-infinity', 'infinity'
            from asked a join public.user_engines c on c.tenant_id = a.tenant_id and c.user_id = a.user_id
            -- my/slug@3, and my/slug@ for what the name means: what a copy would be there. Nobody's reference, but rebase_copy's
            cross join lateral (select substr(a.ref, nullif(strpos(a.ref, '@'), 0) + 1) as pin) p
            where a.ref is null and c.is_default or split_part(a.ref, '@', 1) = 'my/' || c.slug
        union all
        select a.nr, case s.target when 'user' then 2 when 'level' then 3 when 'tier' then 4 when 'tenant' then 5 else 6 end, s.target, s.id, s.priority, s.assigned_at,
                s.engine_tenant_id, s.engine_id, s.pin_version, s.pin_alias, s.valid_from, s.valid_to
            from asked a
            cross join lateral (
                select * from public.engine_assignments x where x.tenant_id = a.tenant_id and x.user_id = a.user_id
                union all
                select * from public.engine_assignments x where x.tenant_id = a.tenant_id and x.level_id = a.level_id
                union all
                select * from public.engine_assignments x where x.tenant_id = a.tenant_id and x.target = 'tier' and x.tier = a.tier and x.user_id is null and x.level_id is null
                union all
                select * from public.engine_assignments x where x.tenant_id = a.tenant_id and x.target = 'tenant' and x.user_id is null and x.level_id is null
                union all
                select * from public.engine_assignments x where x.tenant_id = vanilla.platform() and x.target = 'platform' and x.user_id is null and x.level_id is null) s
            where a.ref is null)
    select n.nr, n.rank, n.source, n.source_id, n.priority, n.since, n.engine_tenant_id, n.engine_id, e.slug, m.version, m.alias, p.access, case
            when n.valid_from > p_at then 'not_yet_valid'
            when n.valid_to <= p_at then 'expired'
            when e.tenant_id <> a.tenant_id and not e.offered then 'not_offered'
            when p.access = 'none' then 'not_entitled'
            when e.status = 'retired' then 'engine_retired'
            when v.version is null then 'no_version'
            when v.state = 'retired' then 'version_retired'
            when p.access = 'read' then 'read_only' end
    from named n
    join asked a on a.nr = n.nr
    join public.ai_engines e on e.tenant_id = n.engine_tenant_id and e.id = n.engine_id
    left join public.level_engines le on le.tenant_id = a.tenant_id and le.level_id = a.level_id and le.engine_tenant_id = e.tenant_id and le.engine_id = e.id
    cross join lateral (select coalesce(le.access, e.default_access) as access) p
    left join public.engine_aliases s on s.tenant_id = e.tenant_id and s.engine_id = e.id and s.alias = 'stable'
    left join public.engine_aliases c on c.tenant_id = e.tenant_id and c.engine_id = e.id and c.alias = 'canary'
    cross join lateral (select case when n.pin_version is null then coalesce(n.pin_alias, case when vanilla.engine_bucket(a.user_id, e.id) < c.weight then 'canary' else 'stable' end)
        end as alias) b
    cross join lateral (select b.alias, coalesce(n.pin_version, case b.alias when 'stable' then s.version else c.version end) as version) m
    left join public.engine_versions v on v.tenant_id = e.tenant_id and v.engine_id = e.id and v.version = m.version
$f$;
comment on function vanilla.engine_candidates(uuid[], uuid[], text[], timestamptz) is
    'Of each user and reference (null: none) everything that could choose an engine, with the version it means and why it does not count; in reason null: it may be run.';

create or replace function vanilla.resolve_engines(p_tenant_ids uuid[], p_user_ids uuid[], p_refs text[], p_at timestamptz)
returns table (nr bigint, rank integer, source text, source_id uuid, priority integer, since timestamptz, engine_tenant_id uuid, engine_id uuid, engine text, version integer,
    alias text, access text, reason text)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select distinct on (c.nr) c.* from vanilla.engine_candidates(p_tenant_ids, p_user_ids, p_refs, p_at) c
        order by c.nr, c.reason is not null, c.rank, c.priority desc, c.since desc, c.source_id
$f$;
comment on function vanilla.resolve_engines(uuid[], uuid[], text[], timestamptz) is
    'Of each user and reference the first candidate that may be run, or the first at all with the reason why none may.';

create or replace function vanilla.check_engine_ref(p_ref text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if p_ref !~ '^(my/[a-z0-9][a-z0-9_-]{0,62}|[a-z0-9][a-z0-9_-]{0,62}(@([1-9][0-9]{0,8}|stable|canary))?)$' then
        perform vanilla.refuse('VS400', 'this names no engine', '{"param": "ref"}', 'slug, slug@3, slug@stable, slug@canary, or my/slug for a copy.');
    end if;
end
$f$;
comment on function vanilla.check_engine_ref(text) is 'Refuses what is not the form of a reference to an engine; null is none.';

create or replace function vanilla.engine_user(p_user_id uuid, p_tenant_id uuid) returns public.users
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_self boolean := vanilla.claim(4) is not null and coalesce(p_user_id, vanilla.claim(4)::uuid) = vanilla.claim(4)::uuid;
begin
    return vanilla.find_user(case when v_self then vanilla.own_tenant(p_tenant_id) else vanilla.acting_tenant(p_tenant_id) end, coalesce(p_user_id, vanilla.claim(4)::uuid));
end
$f$;
comment on function vanilla.engine_user(uuid, uuid) is 'For whom something is looked for or begun: the caller, or a user whom an admin of the tenant or the operator names.';

create or replace function public.resolve_engine(p_user_id uuid default null, p_ref text default null, p_tenant_id uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
    v record;
begin
    perform vanilla.check_engine_ref(p_ref);
    select * into v from vanilla.resolve_engines(array[v_user.tenant_id], array[v_user.id], array[p_ref], vanilla.clock());
    -- what one may not see is not there
    if not found or vanilla.claim(5) = 'user' and v.reason in ('not_entitled', 'not_offered') then
        return jsonb_build_object('engine_id', null, 'denied_reason', case when p_ref is null then 'none_chosen' else 'unknown' end);
    end if;
    return jsonb_build_object('engine_id', v.engine_id, 'engine_tenant_id', v.engine_tenant_id, 'engine', v.engine, 'version', v.version, 'alias', v.alias, 'source', v.source,
        'source_id', v.source_id, 'access', v.access, 'denied_reason', v.reason)
        || coalesce((select jsonb_build_object('input', x.config -> 'input', 'parameters', x.config -> 'parameters') from public.engine_versions x
            where x.tenant_id = v.engine_tenant_id and x.engine_id = v.engine_id and x.version = v.version), '{}');
end
$f$;
comment on function public.resolve_engine(uuid, text, uuid) is
    'Which engine and version a user runs by a reference, or without one, what chose it, the schema of its input and its parameters; denied_reason when they may not. Own, or any user''s by an admin.';

create or replace function public.explain_engine(p_user_id uuid default null, p_ref text default null, p_tenant_id uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
begin
    perform vanilla.check_engine_ref(p_ref);
    return (select coalesce(jsonb_agg(jsonb_build_object('source', c.source, 'source_id', c.source_id, 'priority', c.priority, 'engine_id', c.engine_id, 'engine', c.engine,
            'platform', c.engine_tenant_id = vanilla.platform(), 'version', c.version, 'alias', c.alias, 'access', c.access, 'chosen', c.place = 1 and c.reason is null,
            'reason', case when c.reason is not null then c.reason when c.place > 1 then 'preceded' end) order by c.rank, c.priority desc, c.since desc, c.source_id), '[]')
        from (select c.*, row_number() over (order by c.reason is not null, c.rank, c.priority desc, c.since desc, c.source_id) as place
            from vanilla.engine_candidates(array[v_user.tenant_id], array[v_user.id], array[p_ref], vanilla.clock()) c) c
        where vanilla.claim(5) is distinct from 'user' or coalesce(c.reason, '') not in ('not_entitled', 'not_offered'));
end
$f$;
comment on function public.explain_engine(uuid, text, uuid) is
    'Everything that could choose an engine for a user, in order, which one does, and why the others do not; users do not see what they may not read.';

create or replace function public.my_engines(p_user_id uuid default null, p_tenant_id uuid default null)
returns table (engine_id uuid, platform boolean, slug text, name text, description text, access text, version integer, alias text, mode text, input jsonb, output jsonb, parameters jsonb)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
begin
    return query
        with named as (
            select coalesce(array_agg(e.slug order by e.slug), '{}') as slugs from (select distinct e.slug from public.ai_engines e where e.status = 'active'
                and (e.tenant_id = v_user.tenant_id or e.tenant_id = vanilla.platform() and e.offered)) e)
        select r.engine_id, r.engine_tenant_id = vanilla.platform(), r.engine, e.name, e.description, r.access, r.version, r.alias, v.mode, v.config -> 'input',
            nullif(v.config -> 'output', 'null'), v.config -> 'parameters'
        from named n
        cross join lateral vanilla.resolve_engines(array_fill(v_user.tenant_id, array[cardinality(n.slugs)]), array_fill(v_user.id, array[cardinality(n.slugs)]), n.slugs, vanilla.clock()) r
        join public.ai_engines e on e.tenant_id = r.engine_tenant_id and e.id = r.engine_id
        join public.engine_versions v on v.tenant_id = r.engine_tenant_id and v.engine_id = r.engine_id and v.version = r.version
        where coalesce(r.reason, 'read_only') = 'read_only' order by r.engine;
end
$f$;
comment on function public.my_engines(uuid, uuid) is
    'The cards of the engines a user may read or run: name, the version that the name means to them, schemas, parameters. Own, or any user''s by an admin.';

create or replace function public.offered_engines(p_tenant_id uuid default null)
returns table (engine_id uuid, slug text, name text, description text, default_access text, version integer, mode text, input jsonb, output jsonb, parameters jsonb, hidden boolean,
    levels jsonb)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
begin
    return query
        select e.id, e.slug, e.name, e.description, e.default_access, v.version, v.mode, v.config -> 'input', nullif(v.config -> 'output', 'null'), v.config -> 'parameters',
            exists (select from public.ai_engines o where o.tenant_id = v_tenant and o.slug = e.slug and o.id <> e.id),
            (select coalesce(jsonb_agg(jsonb_build_object('level_id', l.id, 'level', l.slug, 'name', l.name, 'tier', l.tier, 'access', x.access) order by l.tier, l.slug), '[]')
                from public.levels l
                left join public.level_engines x on x.tenant_id = l.tenant_id and x.level_id = l.id and x.engine_tenant_id = e.tenant_id and x.engine_id = e.id
                where l.tenant_id = v_tenant)
        from public.ai_engines e
        join public.engine_aliases a on a.tenant_id = e.tenant_id and a.engine_id = e.id and a.alias = 'stable'
        join public.engine_versions v on v.tenant_id = e.tenant_id and v.engine_id = e.id and v.version = a.version
        where e.tenant_id = vanilla.platform() and e.offered and e.status = 'active' order by e.slug;
end
$f$;
comment on function public.offered_engines(uuid) is
    'The engines that the platform offers, whatever anybody may with them, with what each of the tenant''s levels says; hidden: the tenant has one of the same name. Admin or operator.';

create or replace function vanilla.refuse_engine(p_ref text, p_found record) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_detail jsonb := jsonb_build_object('param', 'ref', 'engine', coalesce(p_found.engine, p_ref), 'version', p_found.version, 'reason', p_found.reason);
begin
    case p_found.reason
    when 'read_only' then
        perform vanilla.refuse('VS403', 'the engine may be read, not run', v_detail || '{"access": "read", "need": "execute"}', 'An admin of the tenant can allow it to the level.');
    when 'engine_retired' then
        perform vanilla.refuse('VS409', 'the engine is retired', v_detail, 'my_engines lists those that can be run.');
    when 'version_retired' then
        perform vanilla.refuse('VS409', format('version %s is retired', p_found.version), v_detail, 'Leave the version out, or copy the engine again.');
    when 'no_version' then
        perform vanilla.refuse('VS404', 'no such version', v_detail, 'Leave the version out.');
    else
        perform vanilla.refuse('VS404', case when p_ref is null then 'no engine is chosen for this user' else 'no such engine' end,
            jsonb_build_object('param', 'ref', 'engine', p_ref), 'my_engines lists those that can be run.');
    end case;
end
$f$;
comment on function vanilla.refuse_engine(text, record) is 'Refuses to run what vanilla.resolve_engines has found, by its reason; what one may not see in the words for what is not there.';

create or replace function vanilla.runnable_engine(p_user public.users, p_ref text) returns record
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
begin
    perform vanilla.check_engine_ref(p_ref);
    select * into v from vanilla.resolve_engines(array[p_user.tenant_id], array[p_user.id], array[p_ref], vanilla.clock());
    if not found or v.reason is not null then perform vanilla.refuse_engine(p_ref, v); end if;
    return v;
end
$f$;
comment on function vanilla.runnable_engine(public.users, text) is 'What a user runs by a reference, or a refusal.';

-- copies -----------------------------------------------------------------------------------------------------------
create or replace function vanilla.check_overlay(p_overlay jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if jsonb_typeof(p_overlay) is distinct from 'object' or octet_length(p_overlay::text) > 65536 then
        perform vanilla.refuse('VS400', 'an overlay is a JSON object of at most 64 KiB', '{"param": "overlay"}');
    end if;
end
$f$;
comment on function vanilla.check_overlay(jsonb) is 'Refuses what no copy keeps as its values.';

create or replace function vanilla.overlay_misfit(p_parameters jsonb, p_name text, p_value jsonb) returns text language sql immutable
    return case when p_parameters ? p_name then vanilla.parameter_misfit(p_parameters -> p_name, p_value) else 'The engine declares no such parameter.' end;
comment on function vanilla.overlay_misfit(jsonb, text, jsonb) is 'Why a value does not fit what a version declares, as a sentence; null: it does.';

create or replace function vanilla.overlay_problems(p_parameters jsonb, p_overlay jsonb) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select coalesce(jsonb_agg(jsonb_build_object('node', null, 'field', 'overlay.' || left(o.key, 63),
            'code', case when p_parameters ? o.key then 'parameter_invalid' else 'parameter_undeclared' end, 'message', m.message) order by o.key), '[]')
        from jsonb_each(p_overlay) o
        cross join lateral (select vanilla.overlay_misfit(p_parameters, o.key, o.value) as message) m
        where m.message is not null
$f$;
comment on function vanilla.overlay_problems(jsonb, jsonb) is 'Which of a copy''s values do not fit what a version declares, and why.';

create or replace function public.fork_engine(p_ref text, p_slug text, p_overlay jsonb default '{}', p_is_default boolean default false, p_user_id uuid default null,
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
    v_found record;
    v_parameters jsonb;
    v_problems jsonb;
    v_id uuid;
begin
    if p_ref is null then perform vanilla.refuse('VS400', 'a copy is of an engine that is named', '{"param": "ref"}'); end if;
    perform vanilla.check_overlay(p_overlay);
    v_found := vanilla.runnable_engine(v_user, p_ref);
    select v.config -> 'parameters' into v_parameters from public.engine_versions v
        where v.tenant_id = v_found.engine_tenant_id and v.engine_id = v_found.engine_id and v.version = v_found.version;
    v_problems := vanilla.overlay_problems(v_parameters, p_overlay);
    if v_problems <> '[]' then
        perform vanilla.refuse('VS422', 'the overlay does not fit the engine''s parameters', jsonb_build_object('param', 'overlay', 'problems', v_problems), v_problems #>> '{0,message}');
    end if;
    -- two that become the default meet here; before hold_open, whose weaker lock two would keep and wait for each other's
    perform from public.users u where u.tenant_id = v_user.tenant_id and u.id = v_user.id for no key update;
    perform vanilla.hold_open(v_user);
    if p_is_default then
        update public.user_engines c set is_default = false where c.tenant_id = v_user.tenant_id and c.user_id = v_user.id and c.is_default and c.slug <> p_slug;
    end if;
    begin
        insert into public.user_engines as c (tenant_id, user_id, slug, engine_tenant_id, engine_id, version, overlay, is_default, created_at, updated_at)
            values (v_user.tenant_id, v_user.id, p_slug, v_found.engine_tenant_id, v_found.engine_id, v_found.version, p_overlay, coalesce(p_is_default, false), vanilla.clock(), vanilla.clock())
            on conflict (tenant_id, user_id, slug) do update set version = excluded.version, overlay = excluded.overlay, is_default = excluded.is_default, updated_at = excluded.updated_at
                where (c.engine_tenant_id, c.engine_id) = (excluded.engine_tenant_id, excluded.engine_id)
            returning c.id into v_id;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the copy is not valid: ' || sqlerrm, '{"param": "slug"}', 'A slug is 1 to 63 of a-z, 0-9, _ and hyphens.');
    end;
    if v_id is null then
        perform vanilla.refuse('VS409', format('the name %s is taken', p_slug), '{"param": "slug"}', 'It is a copy of another engine; choose another slug.');
    end if;
    return jsonb_build_object('id', v_id, 'ref', 'my/' || p_slug, 'engine_id', v_found.engine_id, 'engine', v_found.engine, 'version', v_found.version, 'is_default', coalesce(p_is_default, false));
end
$f$;
comment on function public.fork_engine(text, text, jsonb, boolean, uuid, uuid) is
    'Makes a user''s copy of an engine they may run, or changes the one of this slug: it stays on the version that the reference means now, with values of its own for declared parameters. VS422 for any other.';

create or replace function vanilla.rebase_copy(p_copy public.user_engines, p_to text, p_overlay jsonb, p_drop boolean, p_dry_run boolean) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_ref text := 'my/' || p_copy.slug;
    v_found record;
    v_parameters jsonb;
    v_overlay jsonb := p_copy.overlay;
    v_conflicts jsonb;
    v_changed boolean;
begin
    select * into v_found from vanilla.resolve_engines(array[p_copy.tenant_id], array[p_copy.user_id], array[v_ref || '@' || coalesce(p_to, '')], vanilla.clock());
    if v_found.reason = 'no_version' then
        perform vanilla.refuse('VS404', 'no such version', jsonb_build_object('param', 'to', 'engine', v_found.engine, 'version', coalesce(p_to, 'stable')));
    elsif v_found.reason in ('not_entitled', 'not_offered') and vanilla.claim(5) = 'user' then
        perform vanilla.refuse_engine(v_ref, v_found);
    elsif v_found.reason is not null then
        v_conflicts := jsonb_build_array(jsonb_build_object('node', null, 'field', 'version', 'code', v_found.reason, 'message', case v_found.reason
            when 'version_retired' then format('Version %s is retired.', v_found.version)
            when 'engine_retired' then 'The engine is retired.'
            when 'not_offered' then 'The platform does not offer the engine any more.'
            when 'read_only' then 'The user may read the engine, not run it.'
            else 'The user may not run the engine.' end));
    else
        select v.config -> 'parameters' into v_parameters from public.engine_versions v
            where v.tenant_id = v_found.engine_tenant_id and v.engine_id = v_found.engine_id and v.version = v_found.version;
        select coalesce(jsonb_object_agg(o.key, o.value), '{}') || jsonb_strip_nulls(p_overlay) into v_overlay from jsonb_each(p_copy.overlay) o
            where not p_overlay ? o.key and (not p_drop or vanilla.overlay_misfit(v_parameters, o.key, o.value) is null);
        perform vanilla.check_overlay(v_overlay);
        v_conflicts := vanilla.overlay_problems(v_parameters, v_overlay);
    end if;
    v_changed := v_conflicts = '[]' and (v_found.version, v_overlay) is distinct from (p_copy.version, p_copy.overlay);
    if v_changed and not p_dry_run then
        update public.user_engines c set version = v_found.version, overlay = v_overlay, updated_at = vanilla.clock()
            where c.tenant_id = p_copy.tenant_id and c.id = p_copy.id;
    end if;
    return jsonb_build_object('id', p_copy.id, 'user_id', p_copy.user_id, 'ref', v_ref, 'engine_id', p_copy.engine_id, 'engine', v_found.engine, 'from', p_copy.version,
        'version', v_found.version, 'overlay', v_overlay, 'dropped', (select coalesce(jsonb_agg(o.key order by o.key), '[]') from jsonb_object_keys(p_copy.overlay) o (key)
            where not v_overlay ? o.key), 'conflicts', v_conflicts, 'changed', v_changed);
end
$f$;
comment on function vanilla.rebase_copy(public.user_engines, text, jsonb, boolean, boolean) is
    'Takes a copy to another version unless that conflicts with its values, its user''s level or what is retired, and tells what it came to.';

create or replace function vanilla.check_rebase(p_to text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if p_to !~ '^([1-9][0-9]{0,8}|stable|canary)$' then
        perform vanilla.refuse('VS400', 'a copy goes to the number of a version, stable or canary', '{"param": "to"}', 'Without one to what the engine''s name means to its user.');
    end if;
end
$f$;
comment on function vanilla.check_rebase(text) is 'Refuses what names no version of an engine; null is what its name means.';

create or replace function public.rebase_engine_copy(p_copy_id uuid, p_to text default null, p_overlay jsonb default '{}', p_drop boolean default false,
    p_dry_run boolean default false, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.member_tenant(p_tenant_id);
    v_copy public.user_engines;
    v_told jsonb;
begin
    perform vanilla.check_rebase(p_to);
    perform vanilla.check_overlay(p_overlay);
    select * into v_copy from public.user_engines c where c.id = p_copy_id and (c.tenant_id = v_tenant or v_tenant is null)
        and (vanilla.claim(5) is distinct from 'user' or c.user_id = vanilla.claim(4)::uuid) for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such copy', jsonb_build_object('copy_id', p_copy_id)); end if;
    v_told := vanilla.rebase_copy(v_copy, p_to, p_overlay, coalesce(p_drop, false), coalesce(p_dry_run, false));
    if v_told -> 'conflicts' <> '[]' and p_dry_run is not true then
        perform vanilla.refuse('VS422', format('the copy does not fit version %s', v_told ->> 'version'),
            jsonb_build_object('param', 'to', 'version', v_told -> 'version', 'problems', v_told -> 'conflicts'), v_told #>> '{conflicts,0,message}');
    end if;
    return v_told;
end
$f$;
comment on function public.rebase_engine_copy(uuid, text, jsonb, boolean, boolean, uuid) is
    'Takes a copy to another version of its engine (a number, stable, canary; null: what the name means to its user): own, or any of the tenant''s by an admin. VS422 with problems when its values do not fit or it could not be run there, and nothing is changed: p_overlay sets values (null takes one away), p_drop takes away what does not fit. A dry run tells and changes nothing. What runs stays on its version.';

create or replace function public.rebase_engine_copies(p_engine_id uuid, p_to text default null, p_drop boolean default false, p_dry_run boolean default false,
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_dry_run boolean := coalesce(p_dry_run, false);
    v_engine public.ai_engines;
    v_copy public.user_engines;
    v_told jsonb[] := '{}';
begin
    perform vanilla.check_rebase(p_to);
    select e.* into v_engine from public.ai_engines e where e.id = p_engine_id and (e.tenant_id = v_tenant or v_tenant is null or e.tenant_id = vanilla.platform() and e.offered);
    if not found then perform vanilla.refuse('VS404', 'no such engine', jsonb_build_object('engine_id', p_engine_id)); end if;
    for v_copy in select c.* from public.user_engines c where c.engine_tenant_id = v_engine.tenant_id and c.engine_id = v_engine.id and (c.tenant_id = v_tenant or v_tenant is null)
            order by c.tenant_id, c.user_id, c.id loop
        if not v_dry_run then      -- the user before their copies, of which fork_engine changes two
            perform from public.users u where u.tenant_id = v_copy.tenant_id and u.id = v_copy.user_id for no key update;
            select * into v_copy from public.user_engines c where c.tenant_id = v_copy.tenant_id and c.id = v_copy.id for no key update;
            continue when not found;
        end if;
        v_told := v_told || vanilla.rebase_copy(v_copy, p_to, '{}', coalesce(p_drop, false), v_dry_run);
    end loop;
    if not v_dry_run then
        perform vanilla.audit(coalesce(v_tenant, v_engine.tenant_id), 'engine.copies_rebased', 'engine', v_engine.id, jsonb_build_object('slug', v_engine.slug, 'to', p_to, 'drop', p_drop,
            'changed', (select count(*) from unnest(v_told) t where (t -> 'changed')::boolean), 'conflicts', (select count(*) from unnest(v_told) t where t -> 'conflicts' <> '[]')));
    end if;
    return to_jsonb(v_told);
end
$f$;
comment on function public.rebase_engine_copies(uuid, text, boolean, boolean, uuid) is
    'Takes all copies that the tenant''s users have of an engine to another version, as rebase_engine_copy each: those with conflicts stay as they are, and all are told. Admin or operator.';

create or replace function public.delete_engine_copy(p_copy_id uuid, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.member_tenant(p_tenant_id);
begin
    delete from public.user_engines c where c.id = p_copy_id and (c.tenant_id = v_tenant or v_tenant is null)
        and (vanilla.claim(5) is distinct from 'user' or c.user_id = vanilla.claim(4)::uuid);
    if not found then perform vanilla.refuse('VS404', 'no such copy', jsonb_build_object('copy_id', p_copy_id)); end if;
end
$f$;
comment on function public.delete_engine_copy(uuid, uuid) is 'Deletes a copy of an engine: own, or any of the tenant''s by an admin. What runs of it goes on.';

create or replace function vanilla.forget_engines(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    delete from public.user_engines c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id;
    delete from public.engine_assignments a where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id;
end
$f$;
comment on function vanilla.forget_engines(public.users) is 'Deletes the copies of an erased user, and what was chosen for them.';

-- runs -------------------------------------------------------------------------------------------------------------
create or replace function vanilla.run_hash(p_ref text, p_input jsonb, p_priority integer, p_api_key_id uuid) returns bytea language sql immutable
    return sha256(convert_to(jsonb_build_array('engine', p_ref, p_input, p_priority, p_api_key_id)::text, 'UTF8'));
comment on function vanilla.run_hash(text, jsonb, integer, uuid) is 'What a run was asked for under an idempotency key.';

create or replace function vanilla.run_input(p_version public.engine_versions, p_tenant_id uuid, p_copy_id uuid, p_input jsonb) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $f$
    -- the caller's words before the copy's, the copy's before what the engine declares
    select coalesce((select jsonb_object_agg(p.key, p.value -> 'default') from jsonb_each(p_version.config -> 'parameters') p where p.value ? 'default'), '{}')
        || coalesce((select c.overlay from public.user_engines c where c.tenant_id = p_tenant_id and c.id = p_copy_id), '{}') || p_input
$f$;
comment on function vanilla.run_input(public.engine_versions, uuid, uuid, jsonb) is 'The input of a run: what its caller gives, and for the rest the values of the copy and what the version declares.';

create or replace function vanilla.preview_run(p_user public.users, p_ref text, p_input jsonb, p_idempotency_key text, p_priority integer, p_api_key_id uuid default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_found record;
    v_version public.engine_versions;
    v_run public.engine_executions;
begin
    perform vanilla.check_start(p_input, p_idempotency_key, p_priority);
    if p_idempotency_key is not null and vanilla.started_before(p_user, p_idempotency_key, vanilla.run_hash(p_ref, p_input, p_priority, p_api_key_id)) is not null then
        return jsonb_build_object('replayed', true);
    end if;
    v_found := vanilla.runnable_engine(p_user, p_ref);
    select * into v_version from public.engine_versions v
        where v.tenant_id = v_found.engine_tenant_id and v.engine_id = v_found.engine_id and v.version = v_found.version;
    v_run := vanilla.estimate_run(v_version, p_user.tenant_id);
    return jsonb_build_object('replayed', false, 'engine_id', v_found.engine_id, 'engine', v_found.engine, 'version', v_found.version, 'alias', v_found.alias,
        'source', v_found.source, 'input', vanilla.run_input(v_version, p_user.tenant_id, v_found.source_id, p_input), 'schema', v_version.config -> 'input',
        'price_hash', encode(v_run.price_hash, 'hex'), 'prices_changed', v_run.price_hash <> v_version.price_hash,
        'estimate', jsonb_build_object('p50', v_run.estimate_p50, 'p95', v_run.estimate_p95, 'runs', v_run.estimated_from));
end
$f$;
comment on function vanilla.preview_run(public.users, text, jsonb, text, integer, uuid) is 'What run_engine would start, refused as it refuses: version, whole input and its schema, prices, what those before it cost; or replayed.';

create or replace function vanilla.run_engine(p_user public.users, p_ref text, p_input jsonb, p_idempotency_key text, p_priority integer, p_api_key_id uuid default null,
    p_within jsonb default null, p_begin jsonb default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_found record;
    v_version public.engine_versions;
    v_hash bytea;
    v_started jsonb;
    v_run public.engine_executions;
begin
    perform vanilla.check_start(p_input, p_idempotency_key, p_priority);
    if p_idempotency_key is not null then
        v_hash := vanilla.run_hash(p_ref, p_input, p_priority, p_api_key_id);
        v_started := vanilla.started_before(p_user, p_idempotency_key, v_hash);      -- whatever has become of the engine since
    end if;
    if v_started is null then
        if p_within ? 'engine' then      -- chosen when the run of an agent began
            select * into v_found from jsonb_to_record(p_within -> 'engine')
                as f (engine_tenant_id uuid, engine_id uuid, version integer, alias text, source text, source_id uuid);
        else
            v_found := vanilla.runnable_engine(p_user, p_ref);
        end if;
        if ((p_begin ->> 'engine_id')::uuid, (p_begin ->> 'version')::integer) <> (v_found.engine_id, v_found.version)
           or p_begin is not null and (p_begin ->> 'source_id')::uuid is distinct from v_found.source_id then
            return null;
        end if;
        select * into v_version from public.engine_versions v
            where v.tenant_id = v_found.engine_tenant_id and v.engine_id = v_found.engine_id and v.version = v_found.version;
        if v_version.tenant_id <> p_user.tenant_id then
            perform vanilla.bring_version(p_user.tenant_id, v_version.tenant_id, v_version.workflow_id, v_version.workflow_version);
        end if;
        p_input := vanilla.run_input(v_version, p_user.tenant_id, v_found.source_id, p_input);
        v_started := vanilla.start_version(p_user, v_version.workflow_id, v_version.workflow_version, p_input, p_priority, p_idempotency_key, v_hash, v_version.at_once, p_api_key_id,
            p_within, p_begin);
    end if;
    if (v_started ->> 'replayed')::boolean then
        select * into v_run from public.engine_executions x where x.tenant_id = p_user.tenant_id and x.id = (v_started ->> 'execution_id')::uuid;
    else
        if p_begin is not null then      -- what was found within this second is good enough for the next
            select x.* into v_run from public.engine_executions x where x.tenant_id = p_user.tenant_id and x.engine_id = v_version.engine_id and x.version = v_version.version
                and x.created_at > vanilla.clock() - interval '1 second' order by x.created_at desc limit 1;
        end if;
        if v_run.price_hash is null then
            v_run := vanilla.estimate_run(v_version, p_user.tenant_id);
        end if;
        v_run.config_hash := v_version.hash;
        v_run.tenant_id := p_user.tenant_id;
        v_run.created_at := vanilla.clock();
        v_run.id := (v_started ->> 'execution_id')::uuid;
        v_run.user_id := p_user.id;
        v_run.engine_tenant_id := v_version.tenant_id;
        v_run.engine_id := v_version.engine_id;
        v_run.version := v_version.version;
        v_run.alias := v_found.alias;
        v_run.source := case when p_api_key_id is null then v_found.source else 'key' end;
        v_run.source_id := v_found.source_id;
        v_run.api_key_id := p_api_key_id;
        insert into public.engine_executions select (v_run).*;
    end if;
    return v_started - 'workflow_id' || jsonb_build_object('engine_id', v_run.engine_id, 'version', v_run.version, 'alias', v_run.alias, 'source', v_run.source,
        'estimate', jsonb_build_object('p50', v_run.estimate_p50, 'p95', v_run.estimate_p95, 'runs', v_run.estimated_from));
end
$f$;
comment on function vanilla.run_engine(public.users, text, jsonb, text, integer, uuid, jsonb, jsonb) is
    'Starts what a reference means to a user as an execution of 006, of its own or within another (see start_version), and writes down what was chosen; the same key and input answer with the first run. p_begin as of start_version: null when the reference means another version than it says; within, engine: what the reference meant when the run of an agent began.';

create or replace function vanilla.runs_before(p_run public.engine_executions) returns setof bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
    set enable_seqscan = off as $f$
begin
    return query select e.charged_tokens from (
            select x.id from public.engine_executions x where x.tenant_id = p_run.tenant_id and x.engine_id = p_run.engine_id and x.version = p_run.version
            order by x.created_at desc limit 50) x
        -- each by its key: joined, all executions of the tenant would be read beside the few
        cross join lateral (select w.charged_tokens from public.workflow_executions w where w.tenant_id = p_run.tenant_id and w.id = x.id
            and w.status = 'succeeded' offset 0) e;
end
$f$;
comment on function vanilla.runs_before(public.engine_executions) is 'What those of the last 50 runs of a version in a tenant cost that succeeded.';

create or replace function vanilla.estimate_run(p_version public.engine_versions, p_tenant_id uuid) returns public.engine_executions
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_run public.engine_executions;
begin
    v_run.tenant_id := p_tenant_id;
    v_run.engine_id := p_version.engine_id;
    v_run.version := p_version.version;
    select sha256(convert_to(coalesce(jsonb_object_agg(m.slug, m.price) filter (where m.slug is not null), '{}')::text, 'UTF8')) into v_run.price_hash
        from vanilla.known_models(p_tenant_id, array(select jsonb_object_keys(p_version.config -> 'models'))) m;
    select percentile_disc(0.5) within group (order by b.charged), percentile_disc(0.95) within group (order by b.charged), count(*)
        into v_run.estimate_p50, v_run.estimate_p95, v_run.estimated_from from vanilla.runs_before(v_run) b (charged);
    return v_run;
end
$f$;
comment on function vanilla.estimate_run(public.engine_versions, uuid) is 'What a run of a version in a tenant would begin with: the hash of the prices of now, and what those before it cost.';

create or replace function public.preview_engine(p_ref text default null, p_input jsonb default '{}', p_idempotency_key text default null, p_priority integer default null,
    p_user_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
begin
    return vanilla.preview_run(vanilla.engine_user(p_user_id, p_tenant_id), p_ref, p_input, p_idempotency_key, p_priority);
end
$f$;
comment on function public.preview_engine(text, jsonb, text, integer, uuid, uuid) is
    'What execute_engine would run with the same arguments, and refuses what it refuses: version, source, the input with the copy''s values and defaults, the schema that it must fit, what runs before it cost (estimate: p50, p95, runs), the hash of the prices of now, and whether they are others than when the version was deployed (prices_changed); replayed when the idempotency key has started it. Starts nothing.';

create or replace function public.execute_engine(p_ref text default null, p_input jsonb default '{}', p_idempotency_key text default null, p_priority integer default null,
    p_user_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    return vanilla.run_engine(vanilla.engine_user(p_user_id, p_tenant_id), p_ref, p_input, p_idempotency_key, p_priority);
end
$f$;
comment on function public.execute_engine(text, jsonb, text, integer, uuid, uuid) is
    'Runs an engine by name, or the one chosen for the user, in the caller''s transaction; an admin may name who pays. The version is pinned. Input that does not fit the schema ends the run with input_invalid and costs nothing. Returns execution_id, version, source, estimate.';

create or replace function public.create_engine_key(p_ref text, p_name text, p_prefix text, p_key_hash bytea, p_expires_at timestamptz default 'infinity',
    p_budget_tokens bigint default null, p_user_id uuid default null, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
    v_found record;
    v_key public.api_keys;
begin
    if p_ref is null then perform vanilla.refuse('VS400', 'a key is for an engine that is named', '{"param": "ref"}'); end if;
    v_found := vanilla.runnable_engine(v_user, p_ref);
    v_key.tenant_id := v_user.tenant_id;
    v_key.user_id := v_user.id;
    v_key.name := p_name;
    v_key.prefix := p_prefix;
    v_key.key_hash := p_key_hash;
    v_key.scopes := '{engine}';
    v_key.budget_tokens := p_budget_tokens;
    v_key.expires_at := p_expires_at;
    v_key.engine_tenant_id := v_found.engine_tenant_id;
    v_key.engine_id := v_found.engine_id;
    v_key.engine_ref := p_ref;
    return vanilla.make_api_key(v_user, v_key);
end
$f$;
comment on function public.create_engine_key(text, text, text, bytea, timestamptz, bigint, uuid, uuid) is
    'Keeps the SHA-256 of a key the caller made, which runs what the reference means to its user and opens nothing else. Own, or any user''s by an admin. Returns the id; revoke_api_key ends it.';

create or replace function vanilla.key_to_run(p_key_hash bytea, p_ref text) returns public.api_keys
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_key public.api_keys;
    v_found record;
begin
    if vanilla.key_identity(p_key_hash) is null then
        perform vanilla.refuse('VS411', 'the key is wrong, revoked or expired');
    end if;
    select * into v_key from public.api_keys k where k.key_hash = p_key_hash;
    if v_key.engine_id is null then
        perform vanilla.refuse('VS403', 'the key lacks the scope engine', '{"need": "engine"}', 'Make a key for the engine with create_engine_key.');
    elsif p_ref is distinct from v_key.engine_ref and p_ref is not null then
        perform vanilla.refuse('VS404', 'no such engine', jsonb_build_object('param', 'ref', 'engine', p_ref), 'The key runs one engine; leave the name out.');
    elsif v_key.used_tokens >= v_key.budget_tokens then
        perform vanilla.refuse('VS429', 'the budget of this key is used up', jsonb_build_object('limit', v_key.budget_tokens, 'used', v_key.used_tokens, 'resets_at', null),
            'An admin can make a key with a larger budget.');
    end if;
    -- a name may have come to mean another engine since
    select * into v_found from vanilla.resolve_engines(array[v_key.tenant_id], array[v_key.user_id], array[v_key.engine_ref], vanilla.clock());
    if (v_found.engine_tenant_id, v_found.engine_id) is distinct from (v_key.engine_tenant_id, v_key.engine_id) then
        perform vanilla.refuse('VS404', 'no such engine', jsonb_build_object('param', 'ref', 'engine', v_key.engine_ref));
    end if;
    return v_key;
end
$f$;
comment on function vanilla.key_to_run(bytea, text) is 'A key that runs its engine now, or a refusal.';

create or replace function vanilla.preview_by_key(p_key_hash bytea, p_ref text, p_input jsonb, p_idempotency_key text default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_key public.api_keys := vanilla.key_to_run(p_key_hash, p_ref);
begin
    return vanilla.preview_run(vanilla.find_user(v_key.tenant_id, v_key.user_id), v_key.engine_ref, p_input, p_idempotency_key, null, v_key.id);
end
$f$;
comment on function vanilla.preview_by_key(bytea, text, jsonb, text) is 'What execute_by_key would run with the same arguments, and refuses what it refuses; as preview_engine.';

create or replace function vanilla.execute_by_key(p_key_hash bytea, p_ref text, p_input jsonb, p_idempotency_key text default null, p_request_id text default '',
    p_client_ip text default '') returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_key public.api_keys;
begin
    -- who revokes it ends what it began, and waits for what is beginning
    perform pg_advisory_xact_lock_shared(vanilla.key_lock(k.id)) from public.api_keys k where k.key_hash = p_key_hash;
    v_key := vanilla.key_to_run(p_key_hash, p_ref);
    perform set_config('vanilla.request_id', coalesce(p_request_id, ''), true), set_config('vanilla.client_ip', coalesce(p_client_ip, ''), true);
    update public.api_keys k set last_used_at = vanilla.clock() where k.tenant_id = v_key.tenant_id and k.id = v_key.id
        and coalesce(k.last_used_at, '-infinity') < vanilla.clock() - interval '1 minute';
    return vanilla.run_engine(vanilla.find_user(v_key.tenant_id, v_key.user_id), v_key.engine_ref, p_input, p_idempotency_key, null, v_key.id);
end
$f$;
comment on function vanilla.execute_by_key(bytea, text, jsonb, text, text, text) is
    'Runs the engine of a key as its user; its model calls count on the key''s budget. A revoked or expired key starts nothing.';

-- Whoever is usual, and for whom the reference means what it did the last time: everybody else is started, or refused, by execute_engine.
create or replace function vanilla.begin_engine(p_key_hash bytea, p_session_hash bytea, p_ref text, p_input jsonb, p_idempotency_key text, p_begin jsonb, p_worker uuid, p_n integer,
    p_call jsonb default null) returns json
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $f$
declare
    v_user public.users;
    v_worker record;
    v_run jsonb;
    v_execution_id uuid;
    v_steps json := '[]';
    v_call jsonb;
    v_state text;
    v_message text;
    v_detail text;
    v_hint text;
begin
    v_worker := vanilla.worker_allowance(p_worker, p_n, false);
    if p_key_hash is not null then
        select u.* into v_user from public.api_keys k
            join public.users u on u.tenant_id = k.tenant_id and u.id = k.user_id
            join public.tenants t on t.tenant_id = k.tenant_id and t.id = k.tenant_id
            where k.key_hash = p_key_hash and k.revoked_at is null and k.expires_at > vanilla.clock() and u.status = 'active' and t.status = 'active'
              and k.scopes && array['chat', 'admin'] and k.engine_id is null and k.budget_tokens is null;
    else
        select u.* into v_user from public.sessions s
            join public.users u on u.tenant_id = s.tenant_id and u.id = s.user_id
            join public.tenants t on t.tenant_id = s.tenant_id and t.id = s.tenant_id
            where s.token_hash = p_session_hash and s.revoked_at is null and s.rotated_at is null and s.expires_at > vanilla.clock() and u.status = 'active' and t.status = 'active'
              and not u.must_change_password;
    end if;
    if not found then return null; end if;
    v_run := vanilla.run_engine(v_user, p_ref, p_input, p_idempotency_key, null, null, null, p_begin);
    if v_run is null then return null; end if;
    v_execution_id := (v_run ->> 'execution_id')::uuid;
    if not (v_run ->> 'replayed')::boolean then
        v_steps := vanilla.take_run(p_worker, v_worker.pools, v_worker.allowed, v_user.tenant_id, v_execution_id, true);
    end if;
    -- one transaction with the start, but not one fate: a call that is refused is the failure of its step
    if p_call is not null and json_array_length(v_steps) = 1 and v_steps -> 0 ->> 'node' = p_call ->> 'node' then
        begin
            v_call := jsonb_build_object('ok', vanilla.admit_call(null, null, null, p_call ->> 'model', (p_call ->> 'prompt_tokens')::bigint,
                (p_call ->> 'sandbox_prompt_tokens')::bigint, (p_call ->> 'output_limit')::bigint, (p_call ->> 'choices')::integer, (p_call ->> 'execution_id')::uuid,
                (p_call ->> 'streamed')::boolean, make_interval(secs => (p_call ->> 'ttl_s')::double precision), null, null, jsonb_build_object('worker', p_worker,
                'tenant_id', v_user.tenant_id, 'execution_id', v_execution_id, 'n', v_steps -> 0 -> 'n', 'item', null, 'lease', v_steps -> 0 -> 'lease')));
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint;
            v_call := vanilla.call_error(v_state, v_message, v_detail, v_hint);
        end;
    end if;
    return json_build_object('tenant_id', v_user.tenant_id, 'user_id', v_user.id, 'run', v_run, 'steps', v_steps, 'call', v_call, 'elsewhere',
        exists (select from public.workflow_queue q where q.tenant_id = v_user.tenant_id and q.execution_id = v_execution_id and q.worker is distinct from p_worker));
end
$f$;
comment on function vanilla.begin_engine(bytea, bytea, text, jsonb, text, jsonb, uuid, integer, jsonb) is
    'Starts a run of an engine for a key or session, with its first steps leased to a worker of the process that waits for it, and the one model call that such a step makes admitted or refused (call: ok, error). Null, and nothing is begun, when the reference means another version than p_begin says, or when the caller is no usual one.';

create or replace function public.engine_report(p_engine_id uuid, p_from timestamptz, p_until timestamptz, p_tenant_id uuid default null)
returns table (version integer, alias text, weight smallint, runs bigint, succeeded bigint, failed bigint, cancelled bigint, running bigint, p50_ms bigint, p95_ms bigint,
    charged_tokens numeric, p50_tokens bigint, p95_tokens bigint, cost_micros numeric, p50_micros bigint, p95_micros bigint, gates bigint, gates_passed bigint, gate_pass_rate numeric)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
begin
    return query
        with ran as (
            select x.engine_tenant_id, x.version, e.status, (extract(epoch from e.finished_at - e.started_at) * 1000)::bigint as ms, e.charged_tokens, e.cost_micros,
                    -- what it came to is known when it is over
                    case when e.finished_at is not null then e.charged_tokens end as tokens, case when e.finished_at is not null then e.cost_micros end as micros,
                    g.judged, g.passed
                from public.engine_executions x
                left join public.workflow_executions e on e.tenant_id = x.tenant_id and e.id = x.id
                cross join lateral (select count(*) as judged, count(*) filter (where q.passed) as passed from public.quality_gate_results q
                    where q.tenant_id = x.tenant_id and q.execution_id = x.id) g
                where (x.tenant_id = v_tenant or v_tenant is null) and x.engine_id = p_engine_id and x.created_at >= p_from and x.created_at < p_until),
        added as (
            select r.engine_tenant_id, r.version, count(*) as runs, count(*) filter (where r.status = 'succeeded') as succeeded, count(*) filter (where r.status = 'failed') as failed,
                count(*) filter (where r.status = 'cancelled') as cancelled, count(*) filter (where r.status in ('running', 'paused')) as running,
                percentile_disc(array[0.5, 0.95]) within group (order by r.ms) filter (where r.ms is not null) as ms, coalesce(sum(r.charged_tokens), 0) as charged,
                percentile_disc(array[0.5, 0.95]) within group (order by r.tokens) filter (where r.tokens is not null) as tokens, coalesce(sum(r.cost_micros), 0) as cost,
                percentile_disc(array[0.5, 0.95]) within group (order by r.micros) filter (where r.micros is not null) as micros,
                sum(r.judged)::bigint as judged, sum(r.passed)::bigint as passed
            from ran r group by r.engine_tenant_id, r.version)
        select t.version, a.alias, a.weight, t.runs, t.succeeded, t.failed, t.cancelled, t.running, t.ms[1], t.ms[2], t.charged, t.tokens[1], t.tokens[2], t.cost, t.micros[1], t.micros[2],
            t.judged, t.passed, round(t.passed::numeric / nullif(t.judged, 0), 4)
        from added t
        -- stable when both mean it
        left join lateral (select s.alias, s.weight from public.engine_aliases s where s.tenant_id = t.engine_tenant_id and s.engine_id = p_engine_id and s.version = t.version
            order by s.alias desc limit 1) a on true
        order by t.version;
end
$f$;
comment on function public.engine_report(uuid, timestamptz, timestamptz, uuid) is
    'What the runs of an engine in the tenant came to, by version, and what its name means now: how they ended, how long they took, tokens, micros of USD, the share of judgements of gates that passed. Percentiles are of runs that are over; those whose execution is past retention count as runs alone. Admin or operator.';

grant execute on function public.deploy_engine(text, uuid, integer, text, text, text, integer, jsonb, jsonb, uuid), public.set_engine(uuid, text, text, text, boolean, uuid),
    public.promote_engine(uuid, integer, text, integer, uuid), public.rollback_engine(uuid, text, uuid), public.retire_engine(uuid, integer, uuid),
    public.set_level_engine(uuid, uuid, text, uuid), public.assign_engine(uuid, text, uuid, integer, text, integer, timestamptz, timestamptz, uuid),
    public.unassign_engine(uuid, uuid), public.resolve_engine(uuid, text, uuid), public.explain_engine(uuid, text, uuid), public.my_engines(uuid, uuid),
    public.offered_engines(uuid), public.rebase_engine_copy(uuid, text, jsonb, boolean, boolean, uuid), public.rebase_engine_copies(uuid, text, boolean, boolean, uuid),
    public.preview_engine(text, jsonb, text, integer, uuid, uuid),
    public.fork_engine(text, text, jsonb, boolean, uuid, uuid), public.delete_engine_copy(uuid, uuid), public.execute_engine(text, jsonb, text, integer, uuid, uuid),
    public.create_engine_key(text, text, text, bytea, timestamptz, bigint, uuid, uuid), public.engine_report(uuid, timestamptz, timestamptz, uuid) to vanilla_app, vanilla_operator;
grant execute on function vanilla.execute_by_key(bytea, text, jsonb, text, text, text), vanilla.preview_by_key(bytea, text, jsonb, text),
    vanilla.begin_engine(bytea, bytea, text, jsonb, text, jsonb, uuid, integer, jsonb) to vanilla_runtime;

-- what is there from the first day ---------------------------------------------------------------------------------
set local role vanilla_system;
insert into public.system_configurations (tenant_id, key, value, description, updated_at) values
    (vanilla.platform(), 'retention.engine_executions_days', '90', 'Days that runs of engines are kept.', '2026-01-01+00')
on conflict do nothing;

set local role vanilla_owner;
revoke create on schema vanilla from vanilla_definer;
select vanilla.map_supabase_roles();      -- without 010 too
reset role;
revoke create on schema public from vanilla_definer;
commit;
