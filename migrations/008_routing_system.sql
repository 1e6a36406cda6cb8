-- 008: who runs the work, and by what rule it is chosen: workers that live and die, strategies, decisions that can be replayed.
--
-- Tables:  routing_strategies, worker_registry, worker_event_logs, routing_metrics, routing_decisions
-- Public:  set_routing_strategy, drain_worker, route_decision, explain_routing
-- Workers: vanilla.register_worker, heartbeat_worker, drain_worker, stop_worker, worker_allowance, bury_workers
-- Private: route              a decision as a function of strategy, candidates, context and seed, and of nothing else
--          judge_candidates   who is eligible, and why the others are not
--          score_candidates   the formula of each kind
--          decide_routing     routes by a strategy of the catalogue and records it when that one explains
--          pool_strategy, hold_of, place_steps, free_worker     for the queue of 006
--          job_workers        buries when no worker lives to do it, and forgets those that ended long ago
--
-- Invariants: every transition of a worker is a row of worker_event_logs, written with it; a worker that is dead or stopped
-- claims nothing and stays so; a decision routed again from its row gives the same choice.
-- Lock order: the worker, then leases (006) and its metrics. A claim holds FOR KEY SHARE on its worker's row until it commits,
-- which a heartbeat does not wait for and a burial does: no lease is written for a worker whose leases were just taken away.
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
create table if not exists public.routing_strategies (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    slug text not null,
    kind text not null,
    target text not null default 'worker',
    config jsonb not null default '{}',
    pool text,
    explain boolean not null default false,
    status text not null default 'active',
    description text not null default '',
    updated_at timestamptz not null default clock_timestamp(),
    constraint routing_strategies_pkey primary key (tenant_id, id),
    constraint routing_strategies_slug_key unique (tenant_id, slug),
    constraint routing_strategies_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint routing_strategies_slug_check check (slug ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    constraint routing_strategies_kind_check check (kind in ('round_robin', 'weighted', 'least_loaded', 'power_of_two_choices', 'health_based',
        'capacity_aware', 'sticky', 'affinity', 'region', 'latency', 'cost', 'headroom', 'fair_share', 'fallback')),
    constraint routing_strategies_target_check check (target in ('worker', 'provider')),
    constraint routing_strategies_config_check check (jsonb_typeof(config) = 'object' and octet_length(config::text) <= 65536),
    constraint routing_strategies_pool_check check (pool ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    constraint routing_strategies_status_check check (status in ('active', 'disabled')),
    constraint routing_strategies_description_check check (octet_length(description) <= 2000)
);
create unique index if not exists routing_strategies_pool_idx on public.routing_strategies (tenant_id, target, pool) where status = 'active';
create index if not exists routing_strategies_held_idx on public.routing_strategies (pool)
    where target = 'worker' and status = 'active' and (config ? 'hold_ms' or config @> '{"mode": "hard"}');
comment on table public.routing_strategies is
    'Rules by which a worker or a provider is chosen: the platform''s for everybody, a tenant''s own of the same slug before them.';
comment on column public.routing_strategies.pool is 'The pool to which it applies by itself, one of each; null: it is named by whoever routes.';
comment on column public.routing_strategies.explain is 'Every decision by it is kept in routing_decisions.';

create table if not exists public.worker_registry (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    name text not null,
    pools text[] not null,
    capacity integer not null,
    labels jsonb not null default '{}',
    region text not null default '',
    release text not null default '',
    status text not null default 'registered',
    health_score integer not null default 100,
    in_flight integer not null default 0,
    latency_ewma_ms double precision,
    success_ewma double precision not null default 1,
    started_at timestamptz not null default clock_timestamp(),
    heartbeat_at timestamptz not null default clock_timestamp(),
    stopped_at timestamptz,
    constraint worker_registry_pkey primary key (tenant_id, id),
    constraint worker_registry_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint worker_registry_name_check check (name <> '' and octet_length(name) <= 200),
    constraint worker_registry_pools_check check (cardinality(pools) >= 1 and cardinality(pools) <= 100 and array_position(pools, null) is null),
    constraint worker_registry_capacity_check check (capacity >= 1 and capacity <= 10000),
    constraint worker_registry_labels_check check (jsonb_typeof(labels) = 'object' and octet_length(labels::text) <= 8192),
    constraint worker_registry_region_check check (octet_length(region) <= 100),
    constraint worker_registry_release_check check (octet_length(release) <= 100),
    constraint worker_registry_status_check check (status in ('registered', 'active', 'draining', 'stopped', 'dead')),
    constraint worker_registry_figures_check check (health_score >= 0 and health_score <= 100 and in_flight >= 0 and latency_ewma_ms >= 0
        and success_ewma >= 0 and success_ewma <= 1),
    constraint worker_registry_stopped_check check ((status in ('stopped', 'dead')) = (stopped_at is not null))
) with (fillfactor = 70);
-- no column of a heartbeat is indexed, so that each is a HOT update
create index if not exists worker_registry_live_idx on public.worker_registry (tenant_id, name) where status in ('registered', 'active', 'draining');
comment on table public.worker_registry is
    'Processes that run work: what they serve, how much, how well. Those of vanilla-saas worker are the platform''s. Ended ones stay for retention.workers_days.';
comment on column public.worker_registry.health_score is '0 to 100 as of the last heartbeat, by vanilla.worker_health; above 60 it is healthy.';
comment on column public.worker_registry.latency_ewma_ms is 'Peak EWMA of a step''s duration: a slower sample counts at once, a faster one in the course of 10 s. Null before the first.';
comment on column public.worker_registry.success_ewma is 'Share of steps that did not fail; each step has a weight of a tenth.';

create table if not exists public.worker_event_logs (
    tenant_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    id uuid not null default vanilla.uuid7(),
    worker_id uuid not null,
    worker text not null,
    event text not null,
    from_status text,
    to_status text not null,
    reason text not null,
    health_score integer not null,
    actor_id uuid,
    constraint worker_event_logs_pkey primary key (tenant_id, created_at, id),
    constraint worker_event_logs_event_check check (event in ('registered', 'activated', 'draining', 'stopped', 'died', 'unhealthy', 'recovered'))
) partition by range (created_at);
create index if not exists worker_event_logs_worker_idx on public.worker_event_logs (tenant_id, worker_id, created_at desc);
comment on table public.worker_event_logs is 'Every transition of a worker with its reason, and when its health crossed 60. Insert-only until retention ends.';
comment on column public.worker_event_logs.actor_id is 'Who asked for it, when that was a person.';

create table if not exists public.routing_metrics (
    tenant_id uuid not null,
    created_at timestamptz not null default date_trunc('minute', clock_timestamp()),
    worker_id uuid not null,
    finished bigint not null default 0,
    failed bigint not null default 0,
    latency_ms_sum bigint not null default 0,
    in_flight_max integer not null default 0,
    health_min integer not null default 100,
    constraint routing_metrics_pkey primary key (tenant_id, created_at, worker_id),
    constraint routing_metrics_figures_check check (finished >= 0 and failed >= 0 and latency_ms_sum >= 0 and in_flight_max >= 0)
) partition by range (created_at);
create index if not exists routing_metrics_worker_idx on public.routing_metrics (tenant_id, worker_id, created_at desc);
comment on table public.routing_metrics is 'A minute of a worker: written with its heartbeats, never per step, and not at all when it was idle.';
comment on column public.routing_metrics.created_at is 'The minute.';
comment on column public.routing_metrics.finished is 'Steps that ended well; failed are apart, and latency_ms_sum is of both.';

create table if not exists public.routing_decisions (
    tenant_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    id uuid not null default vanilla.uuid7(),
    strategy text not null,
    kind text not null,
    target text not null,
    config jsonb not null,
    candidates jsonb not null,
    context jsonb not null,
    seed bigint not null,
    result jsonb not null,
    chosen text,
    actor_id uuid,
    constraint routing_decisions_pkey primary key (tenant_id, created_at, id),
    constraint routing_decisions_kind_check check (kind in ('round_robin', 'weighted', 'least_loaded', 'power_of_two_choices', 'health_based',
        'capacity_aware', 'sticky', 'affinity', 'region', 'latency', 'cost', 'headroom', 'fair_share', 'fallback')),
    constraint routing_decisions_target_check check (target in ('worker', 'provider'))
) partition by range (created_at);
create index if not exists routing_decisions_id_idx on public.routing_decisions (tenant_id, id);
comment on table public.routing_decisions is
    'Decisions of strategies that explain, with all that went in: the strategy as it was, the candidates as they were, the context, the seed. Insert-only until retention ends.';
comment on column public.routing_decisions.result is 'What vanilla.route answered: chosen, ranking with scores, refused with reasons, panic, cursor.';

-- the same that 010 writes: functions and the rows below work before it has run, and no login has anything
grant select, insert, update, delete on public.routing_strategies, public.worker_registry, public.routing_metrics to vanilla_definer, vanilla_system;
grant select, insert on public.worker_event_logs, public.routing_decisions to vanilla_definer, vanilla_system;
select vanilla.ensure_partitions();

-- workers ----------------------------------------------------------------------------------------------------------
set local role vanilla_definer;
alter default privileges revoke execute on functions from public;

create or replace function vanilla.worker_health(p_success double precision, p_latency_ms double precision, p_peers_ms double precision,
    p_gap_s double precision) returns integer
language sql immutable parallel safe return
    round(100 * p_success
        * case when p_latency_ms > 2 * p_peers_ms then greatest(0.5, 2 * p_peers_ms / p_latency_ms) else 1 end
        * greatest(0, least(1, (10 - p_gap_s) / 5)))::integer;
comment on function vanilla.worker_health(double precision, double precision, double precision, double precision) is
    '0 to 100: 100 x success rate x speed x punctuality. Speed is 1 up to twice the median latency of live workers of the same pools, then twice the median over the latency, at least 0.5; punctuality is 1 up to 5 s since the last heartbeat and falls to 0 at 10 s, when a worker is dead.';

create or replace function vanilla.log_worker(p_worker public.worker_registry, p_event text, p_from text, p_reason text, p_actor_id uuid default null)
returns void language sql volatile set search_path = pg_catalog, pg_temp as $f$
    insert into public.worker_event_logs (tenant_id, created_at, worker_id, worker, event, from_status, to_status, reason, health_score, actor_id)
    values (p_worker.tenant_id, vanilla.clock(), p_worker.id, p_worker.name, p_event, p_from, p_worker.status, p_reason, p_worker.health_score, p_actor_id)
$f$;
comment on function vanilla.log_worker(public.worker_registry, text, text, text, uuid) is 'Writes a transition of a worker, which is given as it is afterwards.';

create or replace function vanilla.register_worker(p_name text, p_pools text[], p_capacity integer, p_labels jsonb default '{}', p_region text default '',
    p_release text default '') returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_worker public.worker_registry;
begin
    begin
        insert into public.worker_registry (tenant_id, name, pools, capacity, labels, region, release, started_at, heartbeat_at)
            values (vanilla.platform(), p_name, p_pools, p_capacity, coalesce(p_labels, '{}'), coalesce(p_region, ''), coalesce(p_release, ''), v_now, v_now)
            returning * into v_worker;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the worker is not valid: ' || sqlerrm, '{}',
            'A name of at most 200 bytes, 1 to 100 pools, a capacity of 1 to 10,000, labels as an object of at most 8 KiB.');
    end;
    perform vanilla.log_worker(v_worker, 'registered', null, format('it serves %s with %s slots', array_to_string(p_pools, ', '), p_capacity));
    return v_worker.id;
end
$f$;
comment on function vanilla.register_worker(text, text[], integer, jsonb, text, text) is
    'A worker of the platform begins: what it serves and how many steps at once. Returns its id; a process that starts again is another worker.';

create or replace function vanilla.report_figure(p_report jsonb, p_name text) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    if coalesce(p_report -> p_name, 'null') = 'null' then return 0; end if;
    if jsonb_typeof(p_report -> p_name) <> 'number' or (p_report ->> p_name)::numeric not between 0 and 1000000000000 then
        perform vanilla.refuse('VS400', format('%s of a heartbeat is a number from 0', p_name), jsonb_build_object('param', p_name));
    end if;
    return (p_report ->> p_name)::numeric::bigint;
end
$f$;
comment on function vanilla.report_figure(jsonb, text) is 'A figure of a heartbeat''s report; 0 when it is left out.';

create or replace function vanilla.allowance(p_status text, p_health integer, p_n integer) returns integer
language sql immutable parallel safe return
    case when p_status not in ('registered', 'active') or p_n <= 0 then 0 else greatest(1, p_n::bigint * p_health / 100)::integer end;
comment on function vanilla.allowance(text, integer, integer) is
    'How many of p_n steps a worker of this status and health may take: its share by health, at least one, so that it can recover.';

create or replace function vanilla.heartbeat_worker(p_worker uuid, p_report jsonb default '{}') returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_in_flight integer := least(vanilla.report_figure(p_report, 'in_flight'), 1000000);
    v_finished bigint := vanilla.report_figure(p_report, 'finished');
    v_failed bigint := vanilla.report_figure(p_report, 'failed');
    v_latency_ms bigint := vanilla.report_figure(p_report, 'latency_ms_sum');
    v_done double precision := v_finished + v_failed;
    v_was public.worker_registry;
    v_worker public.worker_registry;
    v_gap double precision;
    v_kept double precision;
    v_sample double precision;
    v_peers double precision;
begin
    select * into v_was from public.worker_registry w where w.tenant_id = vanilla.platform() and w.id = p_worker for no key update;
    if not found or v_was.status in ('stopped', 'dead') then
        return jsonb_build_object('status', coalesce(v_was.status, 'dead'), 'health_score', 0, 'allowance', 0);
    end if;
    v_worker := v_was;
    v_gap := greatest(0, least(600, extract(epoch from v_now - v_was.heartbeat_at)));
    if v_done > 0 then
        v_kept := power(0.9::double precision, least(v_done, 1000));
        v_worker.success_ewma := v_was.success_ewma * v_kept + v_finished / v_done * (1 - v_kept);
        v_sample := v_latency_ms / v_done;
        v_worker.latency_ewma_ms := case when v_sample < v_was.latency_ewma_ms
            then v_sample + (v_was.latency_ewma_ms - v_sample) * exp(-v_gap / 10) else v_sample end;
    end if;
    select percentile_cont(0.5) within group (order by w.latency_ewma_ms) into v_peers from public.worker_registry w
        where w.tenant_id = vanilla.platform() and w.status in ('registered', 'active', 'draining') and w.id <> p_worker
          and w.pools && v_was.pools and w.latency_ewma_ms is not null;
    v_worker.health_score := vanilla.worker_health(v_worker.success_ewma, v_worker.latency_ewma_ms, v_peers, v_gap);
    v_worker.status := case when v_was.status = 'registered' then 'active' else v_was.status end;
    update public.worker_registry w set status = v_worker.status, health_score = v_worker.health_score, in_flight = v_in_flight,
            latency_ewma_ms = v_worker.latency_ewma_ms, success_ewma = v_worker.success_ewma, heartbeat_at = v_now
        where w.tenant_id = vanilla.platform() and w.id = p_worker;
    if v_worker.status <> v_was.status then
        perform vanilla.log_worker(v_worker, 'activated', v_was.status, 'its first heartbeat');
    end if;
    if (v_worker.health_score > 60) <> (v_was.health_score > 60) then
        perform vanilla.log_worker(v_worker, case when v_worker.health_score > 60 then 'recovered' else 'unhealthy' end, v_was.status,
            format('health went from %s to %s: %s %% succeed, %s ms a step, %s s since the last heartbeat', v_was.health_score, v_worker.health_score,
                round((100 * v_worker.success_ewma)::numeric), coalesce(round(v_worker.latency_ewma_ms::numeric), 0), round(v_gap::numeric, 1)));
    end if;
    if v_done > 0 or v_in_flight > 0 then
        insert into public.routing_metrics as m (tenant_id, created_at, worker_id, finished, failed, latency_ms_sum, in_flight_max, health_min)
            values (vanilla.platform(), date_trunc('minute', v_now at time zone 'UTC') at time zone 'UTC', p_worker, v_finished, v_failed, v_latency_ms,
                v_in_flight, v_worker.health_score)
            on conflict (tenant_id, created_at, worker_id) do update set finished = m.finished + excluded.finished, failed = m.failed + excluded.failed,
                latency_ms_sum = m.latency_ms_sum + excluded.latency_ms_sum, in_flight_max = greatest(m.in_flight_max, excluded.in_flight_max),
                health_min = least(m.health_min, excluded.health_min);
    end if;
    return jsonb_build_object('status', v_worker.status, 'health_score', v_worker.health_score,
        'allowance', vanilla.allowance(v_worker.status, v_worker.health_score, v_worker.capacity));
end
$f$;
comment on function vanilla.heartbeat_worker(uuid, jsonb) is
    'A worker lives: {in_flight, finished, failed, latency_ms_sum} since its last heartbeat, every 3 s. Answers {status, health_score, allowance}; status draining: take no more; stopped, dead: register again, your leases are others'' now.';

create or replace function vanilla.worker_allowance(p_worker uuid, p_n integer, p_held boolean default true, out allowed integer, out pools text[], out held text[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_status text;
    v_health integer;
begin
    select w.status, w.health_score, w.pools, array(select p.pool from unnest(w.pools) p (pool) where p_held and exists (select from public.routing_strategies s
            where s.pool = p.pool and s.target = 'worker' and s.status = 'active' and (s.config ? 'hold_ms' or s.config @> '{"mode": "hard"}')))
        into v_status, v_health, pools, held from public.worker_registry w
        where w.tenant_id = vanilla.platform() and w.id = p_worker for key share of w;
    if v_status is null or v_status in ('stopped', 'dead') then
        perform vanilla.refuse('VS409', format('the worker is %s', coalesce(v_status, 'unknown')),
            jsonb_build_object('worker_id', p_worker, 'status', coalesce(v_status, 'unknown')), 'Register again; what it held is others'' now.');
    end if;
    allowed := vanilla.allowance(v_status, v_health, p_n);
end
$f$;
comment on function vanilla.worker_allowance(uuid, integer, boolean) is
    'How many steps of p_n a worker may claim now: 0 when it drains, else its share by health, at least 1; of which pools, and, when p_held, in which of them a strategy holds steps for whom it prefers. VS409 when it is dead, stopped or unknown. It is not buried until the caller''s transaction ends.';

create or replace function vanilla.end_worker(p_worker public.worker_registry, p_event text, p_reason text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_from text := p_worker.status;
begin
    p_worker.status := case when p_event = 'died' then 'dead' else 'stopped' end;
    update public.worker_registry w set status = p_worker.status, health_score = p_worker.health_score, stopped_at = vanilla.clock(), in_flight = 0
        where w.tenant_id = p_worker.tenant_id and w.id = p_worker.id;
    perform vanilla.log_worker(p_worker, p_event, v_from, p_reason);
    perform vanilla.reclaim_leases(p_worker.id);
    perform vanilla.free_worker(p_worker);
end
$f$;
comment on function vanilla.end_worker(public.worker_registry, text, text) is 'A worker, whose row is locked, stopped or died: what it held is taken up by others.';

create or replace function vanilla.free_worker(p_worker public.worker_registry) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    select vanilla.free_steps(array(select vanilla.held_pool(p.pool, p_worker.id) from unnest(p_worker.pools) p (pool)))
$f$;
comment on function vanilla.free_worker(public.worker_registry) is 'What is held for a worker that takes no more, whose row is locked, is others'' to take.';

create or replace function vanilla.live_worker(p_worker uuid) returns public.worker_registry
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_worker public.worker_registry;
begin
    select * into v_worker from public.worker_registry w where w.tenant_id = vanilla.platform() and w.id = p_worker for update;
    if v_worker.id is null or v_worker.status = 'dead' then
        perform vanilla.refuse('VS409', format('the worker is %s', coalesce(v_worker.status, 'unknown')),
            jsonb_build_object('worker_id', p_worker, 'status', coalesce(v_worker.status, 'unknown')), 'Register again.');
    end if;
    return v_worker;
end
$f$;
comment on function vanilla.live_worker(uuid) is 'A worker of the platform, locked; VS409 when it is dead or unknown.';

create or replace function vanilla.begin_drain(p_worker public.worker_registry, p_reason text, p_actor_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_from text := p_worker.status;
begin
    if v_from = 'draining' then return; end if;
    if v_from in ('stopped', 'dead') then
        perform vanilla.refuse('VS409', format('the worker is %s', v_from), jsonb_build_object('worker_id', p_worker.id, 'status', v_from));
    end if;
    p_worker.status := 'draining';
    update public.worker_registry w set status = 'draining' where w.tenant_id = p_worker.tenant_id and w.id = p_worker.id;
    perform vanilla.log_worker(p_worker, 'draining', v_from, p_reason, p_actor_id);
    perform vanilla.free_worker(p_worker);
end
$f$;
comment on function vanilla.begin_drain(public.worker_registry, text, uuid) is 'A live worker, whose row is locked, takes no more work; once is enough.';

create or replace function vanilla.drain_worker(p_worker uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    perform vanilla.begin_drain(vanilla.live_worker(p_worker), 'it was asked to end', null);
end
$f$;
comment on function vanilla.drain_worker(uuid) is 'A worker takes no more and finishes what it has; VS409 when it has ended.';

create or replace function vanilla.stop_worker(p_worker uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_worker public.worker_registry := vanilla.live_worker(p_worker);
begin
    if v_worker.status <> 'stopped' then
        perform vanilla.end_worker(v_worker, 'stopped', case when v_worker.status = 'draining' then 'it finished what it had' else 'it ended without draining' end);
    end if;
end
$f$;
comment on function vanilla.stop_worker(uuid) is 'A worker has ended; what it still held is taken up by others at once. VS409 when it is dead already.';

create or replace function vanilla.bury_workers() returns uuid[]
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_worker public.worker_registry;
    v_dead public.worker_registry[];
    v_buried uuid[] := '{}';
begin
    -- a row that its heartbeat or its claim has locked is alive, and so is one that a heartbeat changed while we waited
    select array_agg(w) into v_dead from (
        select w.* from public.worker_registry w
        where w.tenant_id = vanilla.platform() and w.status in ('registered', 'active', 'draining') and w.heartbeat_at < v_now - interval '10 s'
        order by w.id for update skip locked) w;
    if v_dead is not null then      -- of all of them, in the order of 006
        perform vanilla.lock_leases(array(select d.id from unnest(v_dead) d));
    end if;
    foreach v_worker in array coalesce(v_dead, '{}') loop
        v_worker.health_score := 0;
        perform vanilla.end_worker(v_worker, 'died', format('no heartbeat for %s s', round(extract(epoch from v_now - v_worker.heartbeat_at))));
        v_buried := v_buried || v_worker.id;
    end loop;
    return v_buried;
end
$f$;
comment on function vanilla.bury_workers() is
    'Declares dead whose last heartbeat is older than 10 s, and lets others take up what they held. Returns their ids; costs one index scan when there are none.';
grant execute on function vanilla.register_worker(text, text[], integer, jsonb, text, text), vanilla.heartbeat_worker(uuid, jsonb),
    vanilla.worker_allowance(uuid, integer, boolean), vanilla.drain_worker(uuid), vanilla.stop_worker(uuid), vanilla.bury_workers() to vanilla_runtime;
grant execute on function vanilla.bury_workers() to vanilla_operator;

create or replace function vanilla.job_workers(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_buried integer := cardinality(vanilla.bury_workers());
    v_before timestamptz := vanilla.clock() - make_interval(days => vanilla.retention_days('workers'));
    v_forgotten integer;
begin
    delete from public.worker_registry r where (r.tenant_id, r.id) in (
        select w.tenant_id, w.id from public.worker_registry w where w.status in ('stopped', 'dead') and w.stopped_at < v_before limit p_limit);
    get diagnostics v_forgotten = row_count;
    return jsonb_build_object('buried', v_buried, 'forgotten', v_forgotten, 'more', v_forgotten = p_limit);
end
$f$;
comment on function vanilla.job_workers(integer) is
    'Job: declares dead whose heartbeat is missing, when no worker lives to do it, and forgets up to p_limit that ended longer ago than retention.workers_days.';

-- routing: figures and predicates --------------------------------------------------------------------------------
create or replace function vanilla.figure(p_object jsonb, p_key text, p_default double precision) returns double precision
language sql immutable parallel safe return
    case when jsonb_typeof(p_object -> p_key) = 'number'
        then greatest(-1e15, least(1e15, (p_object ->> p_key)::numeric))::double precision else p_default end;
comment on function vanilla.figure(jsonb, text, double precision) is 'A number of a JSON object, within 1e15; the default when it is none.';

create or replace function vanilla.hash_unit(p_key text, p_node text) returns double precision
language sql immutable parallel safe return
    -- the length before the key keeps ('ab', 'c') and ('a', 'bc') apart; 52 bits and a half are exact, and never 0 or 1
    ((('x' || encode(substr(sha256(convert_to(length(p_key) || ':' || p_key || p_node, 'UTF8')), 1, 7), 'hex'))::bit(56)::bigint >> 4) + 0.5::double precision)
        / 4503599627370496;
comment on function vanilla.hash_unit(text, text) is
    'A number between 0 and 1, spread evenly, that two texts always give: the first 52 bits of the SHA-256 of the key''s length, a colon, the key and the node.';

create or replace function vanilla.label_match(p_labels jsonb, p_rule jsonb) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select case
        when coalesce(p_rule, 'null') = 'null' then true
        when jsonb_typeof(p_rule) <> 'object' then false
        else (select coalesce(bool_and(case jsonb_typeof(r.want)
                when 'array' then coalesce(r.want @> jsonb_build_array(r.has), false) and r.has is not null
                when 'object' then
                    (not r.want ? 'not' or r.has is null or not (case jsonb_typeof(r.want -> 'not') when 'array' then r.want -> 'not' else jsonb_build_array(r.want -> 'not') end
                        @> jsonb_build_array(r.has)))
                    and (not r.want ? 'exists' or (r.has is not null) = (r.want -> 'exists' = 'true'))
                    and (not r.want ? 'min' or coalesce(vanilla.figure(p_labels, r.key, null) >= vanilla.figure(r.want, 'min', null), false))
                    and (not r.want ? 'max' or coalesce(vanilla.figure(p_labels, r.key, null) <= vanilla.figure(r.want, 'max', null), false))
                else coalesce(r.has = r.want, false) end), true)
            from (select e.key, e.value as want, p_labels -> e.key as has from jsonb_each(p_rule) e) r) end
$f$;
comment on function vanilla.label_match(jsonb, jsonb) is
    'Whether labels are as a rule says: {label: value}, {label: [one of]}, {label: {not: value or list, exists: boolean, min: number, max: number}}; all of them.';

create or replace function vanilla.freshness(p_heartbeat_at timestamptz) returns double precision
language sql volatile parallel safe return
    greatest(0, least(1, (10 - extract(epoch from vanilla.clock() - p_heartbeat_at)) / 5))::double precision;
comment on function vanilla.freshness(timestamptz) is 'What the time since a heartbeat leaves of a health: 1 up to 5 s, 0 from 10 s.';

create or replace function vanilla.worker_candidates(p_tenant_id uuid, p_pool text default null) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    select coalesce(jsonb_agg(jsonb_build_object('id', w.id, 'name', w.name, 'status', w.status, 'pools', to_jsonb(w.pools), 'capacity', w.capacity,
            'in_flight', w.in_flight, 'health', round(w.health_score * vanilla.freshness(w.heartbeat_at)), 'labels', w.labels, 'region', w.region,
            'latency_ms', w.latency_ewma_ms) order by w.id), '[]')
    from (select * from public.worker_registry r where r.tenant_id = p_tenant_id and r.status in ('registered', 'active', 'draining')
            and (p_pool is null or p_pool = any (r.pools))
          order by r.id limit 1000) w
$f$;
comment on function vanilla.worker_candidates(uuid, text) is 'The live workers of a tenant, of a pool or all, as candidates of vanilla.route: a snapshot.';

-- routing: a decision ----------------------------------------------------------------------------------------------
create or replace function vanilla.judge_candidates(p_kind text, p_config jsonb, p_candidates jsonb, p_context jsonb)
returns table (nr bigint, id text, candidate jsonb, reason text, panic boolean)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
#variable_conflict use_column
begin
    -- PL/pgSQL, because it plans once in a session
    return query
    with given as materialized (
        select c.nr, c.value ->> 'id' as id, c.value as candidate,
            vanilla.figure(c.value, 'health', 100) > vanilla.figure(p_config, 'min_health', 60) as healthy,
            case
                when p_context -> 'exclude' ? (c.value ->> 'id') then 'tried'
                when coalesce(c.value ->> 'status', 'active') not in ('active', 'registered') then 'status'
                when p_context ? 'pool' and c.value ? 'pools' and not c.value -> 'pools' ? (p_context ->> 'pool') then 'pool'
                when c.value ->> 'breaker' = 'open' then 'circuit'
                when p_context ? 'require' and not vanilla.label_match(c.value -> 'labels', p_context -> 'require')
                    or p_config ? 'require' and not vanilla.label_match(c.value -> 'labels', p_config -> 'require') then 'labels'
                when p_kind = 'region' and p_config -> 'residency' = 'true' and c.value ->> 'region' is distinct from p_context ->> 'region' then 'residency'
                when p_kind = 'capacity_aware' and vanilla.figure(c.value, 'in_flight', 0) + vanilla.figure(p_context, 'cost', 1)
                    > vanilla.figure(c.value, 'capacity', 1) then 'capacity'
                when p_kind = 'cost' and (vanilla.figure(c.value, 'input_price', null) is null or vanilla.figure(c.value, 'output_price', null) is null) then 'price'
                when p_kind = 'cost' and vanilla.figure(c.value, 'quality', 0) < vanilla.figure(p_config, 'min_quality', null) then 'quality'
                when p_kind = 'cost' and vanilla.figure(c.value, 'latency_ms', 0) > vanilla.figure(p_config, 'max_latency_ms', null) then 'slow'
                when p_kind = 'headroom' and (vanilla.figure(c.value, 'rpm_left', 1) < 1
                    or vanilla.figure(c.value, 'tpm_left', 1e15) < vanilla.figure(p_context, 'tokens', 0)) then 'headroom'
                when p_kind = 'fair_share' and vanilla.figure(c.value, 'backlog', 1) <= 0 then 'idle'
                when p_kind = 'fallback' and p_config ? 'order' and not p_config -> 'order' ? (c.value ->> 'id') then 'unlisted'
            end as reason
        from jsonb_array_elements(p_candidates) with ordinality c (value, nr)),
    crowd as (
        select count(*) filter (where g.healthy) * 100 < vanilla.figure(p_config, 'panic_percent', 50) * count(*) as panic from given g where g.reason is null)
    select g.nr, g.id, g.candidate, coalesce(g.reason, case when not g.healthy and not c.panic then 'health' end), c.panic
    from given g cross join crowd c;
end
$f$;
comment on function vanilla.judge_candidates(text, jsonb, jsonb, jsonb) is
    'Each candidate with why it is not eligible, or null. The last reason is health of 60 or less; with fewer than half healthy (panic) health is not asked for.';

create or replace function vanilla.list_of(p_value jsonb) returns jsonb
language sql immutable parallel safe return
    case when jsonb_typeof(p_value) = 'array' then p_value else '[]' end;
comment on function vanilla.list_of(jsonb) is 'A JSON array, or an empty one for anything else.';

create or replace function vanilla.distance(p_region text, p_wanted text, p_nearest jsonb) returns integer
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select case when p_wanted is null or p_region = p_wanted then 0
        else coalesce((select o.nr from jsonb_array_elements_text(vanilla.list_of(p_nearest)) with ordinality o (region, nr) where o.region = p_region order by o.nr limit 1),
            jsonb_array_length(vanilla.list_of(p_nearest)) + 1)::integer end
$f$;
comment on function vanilla.distance(text, text, jsonb) is '0 in the wanted region, or when none is wanted; the place in the list of its nearest ones, one more for any other.';

create or replace function vanilla.drr_rounds(p_candidate jsonb, p_weight double precision, p_config jsonb, p_context jsonb) returns double precision
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    -- served at the visit at which its grants cover its cost; the queue under the pointer had its grant of this visit already
    select case when v.pending then v.grants else greatest(v.grants, 1) - 1 end
    from (select greatest(0, ceil((vanilla.figure(p_candidate, 'cost', 1) - vanilla.figure(p_context #> '{cursor,deficits}', p_candidate ->> 'id', 0))
                / (greatest(vanilla.figure(p_config, 'quantum', 1), 1e-9) * p_weight))) as grants,
            coalesce(p_context #>> '{cursor,at}' = p_candidate ->> 'id', false) as pending) v
$f$;
comment on function vanilla.drr_rounds(jsonb, double precision, jsonb, jsonb) is
    'Deficit round robin (Shreedhar and Varghese 1995): after how many whole rounds from the pointer a queue can pay for its first item.';

create or replace function vanilla.score_candidates(p_kind text, p_config jsonb, p_candidates jsonb, p_context jsonb, p_seed bigint)
returns table (place bigint, id text, score double precision, weight double precision)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
#variable_conflict use_column
begin
    -- PL/pgSQL, because it plans once in a session
    return query
    with given as materialized (
        select c.nr, (c.value ->> 'id') collate "C" as id, c.value as candidate,
            greatest(vanilla.figure(c.value, 'weight', 1), 1e-9) as weight,
            greatest(vanilla.figure(c.value, 'in_flight', 0), 0) as in_flight,
            greatest(vanilla.figure(c.value, 'capacity', 1), 1) as capacity,
            vanilla.hash_unit('seed ' || p_seed, c.value ->> 'id') as draw,
            case when p_kind = 'round_robin' then (c.value ->> 'id') collate "C" <= p_context ->> 'cursor'
                 when p_kind = 'fair_share' then (c.value ->> 'id') collate "C" < p_context #>> '{cursor,at}' end as passed
        from jsonb_array_elements(p_candidates) with ordinality c (value, nr)),
    placed as (
        select g.*, g.in_flight / g.capacity as load, count(*) over () as n,
            row_number() over (order by coalesce(g.passed, false), g.id) - 1 as turn,
            row_number() over (order by g.draw, g.id) as lot
        from given g),
    scored as (
        select p.*, case p_kind
            when 'round_robin' then -p.turn
            when 'weighted' then case when p_config ->> 'mode' = 'random' then ln(p.draw) / p.weight
                else vanilla.figure(p_context -> 'cursor', p.id, 0) + p.weight end
            when 'least_loaded' then -p.load
            when 'power_of_two_choices' then case when p.lot <= 2 then -p.load end
            when 'health_based' then vanilla.figure(p.candidate, 'health', 100) * (1 - least(1, p.load))
            when 'capacity_aware' then (p.capacity - p.in_flight - vanilla.figure(p_context, 'cost', 1)) * case when p_config ->> 'fit' = 'best' then -1 else 1 end
            when 'sticky' then p.weight * (-1 / ln(vanilla.hash_unit(coalesce(p_context ->> 'key', ''), p.id)))
            when 'affinity' then (
                select coalesce(sum(vanilla.figure(w.value, 'weight', 1)), 0)
                from jsonb_array_elements(vanilla.list_of(p_context -> 'prefer') || vanilla.list_of(p_config -> 'prefer')) w (value)
                where vanilla.label_match(p.candidate -> 'labels', w.value -> 'match'))
            when 'region' then -vanilla.distance(p.candidate ->> 'region', p_context ->> 'region', p_config #> array['nearest', p_context ->> 'region'])
            when 'latency' then -case when vanilla.figure(p.candidate, 'latency_ms', 0) > 0 then vanilla.figure(p.candidate, 'latency_ms', 0) * (p.in_flight + 1)
                when p.in_flight > 0 then 1e12 + p.in_flight else 0 end
            when 'cost' then -(vanilla.figure(p_context, 'input_tokens', 0) * vanilla.figure(p.candidate, 'input_price', 0)
                + vanilla.figure(p_context, 'output_tokens', 0) * vanilla.figure(p.candidate, 'output_price', 0)) / 1000000
            when 'headroom' then least(
                vanilla.figure(p.candidate, 'rpm_left', 1) / greatest(vanilla.figure(p.candidate, 'rpm_limit', vanilla.figure(p.candidate, 'rpm_left', 1)), 1),
                vanilla.figure(p.candidate, 'tpm_left', 1) / greatest(vanilla.figure(p.candidate, 'tpm_limit', vanilla.figure(p.candidate, 'tpm_left', 1)), 1))
            when 'fair_share' then -(vanilla.drr_rounds(p.candidate, p.weight, p_config, p_context) * p.n + p.turn)
            when 'fallback' then -coalesce((select o.nr from jsonb_array_elements_text(p_config -> 'order') with ordinality o (id, nr) where o.id = p.id order by o.nr limit 1), p.nr)
            end as score
        from placed p)
    select row_number() over (order by s.score desc nulls last, case when p_kind in ('affinity', 'region') then s.load end,
        case when p_kind <> 'weighted' then s.draw end, s.id), s.id, s.score, s.weight
    from scored s;
end
$f$;
comment on function vanilla.score_candidates(text, jsonb, jsonb, jsonb, bigint) is
    'Eligible candidates with their score by a kind''s formula, the highest first; equals are drawn by the seed. docs/design/routing.md has the formulas.';

create or replace function vanilla.next_cursor(p_kind text, p_config jsonb, p_context jsonb, p_eligible jsonb, p_chosen text) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    if p_kind not in ('round_robin', 'weighted', 'fair_share') then return null; end if;
    return (with given as (
        select (c.value ->> 'id') collate "C" as id, greatest(vanilla.figure(c.value, 'weight', 1), 1e-9) as weight, vanilla.figure(c.value, 'cost', 1) as cost,
            vanilla.figure(p_context -> 'cursor', c.value ->> 'id', 0) as current, vanilla.figure(p_context #> '{cursor,deficits}', c.value ->> 'id', 0) as deficit,
            coalesce(p_context #>> '{cursor,at}' = c.value ->> 'id', false) as pending,
            row_number() over (order by coalesce((c.value ->> 'id') collate "C" < p_context #>> '{cursor,at}', false), (c.value ->> 'id') collate "C") as turn,
            vanilla.drr_rounds(c.value, greatest(vanilla.figure(c.value, 'weight', 1), 1e-9), p_config, p_context) as rounds
        from jsonb_array_elements(p_eligible) c (value)),
    chosen as (select g.turn, g.rounds from given g where g.id = p_chosen)
    select case
        when p_chosen is null then p_context -> 'cursor'
        when p_kind = 'round_robin' then to_jsonb(p_chosen)
        when p_kind = 'weighted' and coalesce(p_config ->> 'mode', 'smooth') = 'smooth' then
            (select jsonb_object_agg(g.id, g.current + g.weight - case when g.id = p_chosen then (select sum(o.weight) from given o) else 0 end) from given g)
        when p_kind = 'fair_share' then jsonb_build_object('at', p_chosen, 'deficits',
            -- every visit up to the chosen one gave a grant, but the pending queue's first
            (select jsonb_object_agg(g.id, g.deficit + (c.rounds + case when g.turn <= c.turn then 1 else 0 end - case when g.pending then 1 else 0 end)
                    * greatest(vanilla.figure(p_config, 'quantum', 1), 1e-9) * g.weight - case when g.id = p_chosen then g.cost else 0 end)
             from given g, chosen c)) end);
end
$f$;
comment on function vanilla.next_cursor(text, jsonb, jsonb, jsonb, text) is
    'What round robin, smooth weighted round robin and fair share are given as context.cursor the next time; null for the others.';

create or replace function vanilla.route(p_strategy jsonb, p_candidates jsonb, p_context jsonb default '{}', p_seed bigint default 0) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_kind text := p_strategy ->> 'kind';
    v_config jsonb := coalesce(p_strategy -> 'config', '{}');
    v_eligible jsonb;
    v_waiting jsonb;
    v_refused jsonb;
    v_panic boolean;
    v_ranking jsonb;
    v_chosen text;
    v_waits_for text;
begin
    if v_kind is null or v_kind not in ('round_robin', 'weighted', 'least_loaded', 'power_of_two_choices', 'health_based', 'capacity_aware', 'sticky',
            'affinity', 'region', 'latency', 'cost', 'headroom', 'fair_share', 'fallback') then
        perform vanilla.refuse('VS400', format('there is no kind of strategy %s', coalesce(v_kind, '(none)')), '{"param": "strategy"}');
    end if;
    if jsonb_typeof(v_config) <> 'object' or jsonb_typeof(p_context) is distinct from 'object' or jsonb_typeof(p_candidates) is distinct from 'array'
       or jsonb_array_length(p_candidates) > 1000
       or exists (select from jsonb_array_elements(p_candidates) c (value) where jsonb_typeof(c.value -> 'id') is distinct from 'string')
       or (select count(*) <> count(distinct c.value ->> 'id') from jsonb_array_elements(p_candidates) c (value)) then
        perform vanilla.refuse('VS400', 'candidates are a list of at most 1,000 objects, each with an id of its own', '{"param": "candidates"}',
            'Configuration and context are objects.');
    end if;
    select coalesce(jsonb_agg(j.candidate order by j.nr) filter (where j.reason is null), '[]'),
           coalesce(jsonb_agg(j.candidate order by j.nr) filter (where j.reason is null or j.reason in ('health', 'circuit')), '[]'),
           coalesce(jsonb_agg(jsonb_build_object('id', j.id, 'reason', j.reason) order by j.nr) filter (where j.reason is not null), '[]'),
           coalesce(bool_or(j.panic), false)
        into v_eligible, v_waiting, v_refused, v_panic
        from vanilla.judge_candidates(v_kind, v_config, p_candidates, p_context) j;
    select coalesce(jsonb_agg(jsonb_build_object('id', s.id, 'score', s.score) order by s.place), '[]') into v_ranking
        from vanilla.score_candidates(v_kind, v_config, v_eligible, p_context, p_seed) s;
    v_chosen := v_ranking #>> '{0,id}';
    if v_kind = 'sticky' and v_config ->> 'mode' = 'hard' then
        -- whoever is first for the key, well or not: only one that takes no more work makes room for the next
        select s.id into v_waits_for from vanilla.score_candidates(v_kind, v_config, v_waiting, p_context, p_seed) s where s.place = 1;
        if v_waits_for is distinct from v_chosen then v_chosen := null; else v_waits_for := null; end if;
    end if;
    return jsonb_build_object('chosen', v_chosen, 'waits_for', v_waits_for, 'panic', v_panic, 'ranking', v_ranking, 'refused', v_refused,
        'cursor', vanilla.next_cursor(v_kind, v_config, p_context, v_eligible, v_chosen));
end
$f$;
comment on function vanilla.route(jsonb, jsonb, jsonb, bigint) is
    'Routes by a strategy {kind, config}: {chosen, waits_for, panic, ranking: [{id, score}], refused: [{id, reason}], cursor}. Reads nothing but its arguments, so the same ones give the same choice.';

-- routing: strategies and records -----------------------------------------------------------------------------------
create or replace function vanilla.strategy_problem(p_kind text, p_config jsonb) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select case when k.form is null then format('%s has no setting %s', p_kind, left(e.key, 60))
        else format('%s is %s', e.key, case k.form when 'number' then 'a number from 0' when 'object' then 'an object' when 'array' then 'a list'
            when 'boolean' then 'true or false' else replace(k.form, '|', ' or ') end) end
    from jsonb_each(p_config) e
    left join (values
        (null, 'min_health', 'number'), (null, 'panic_percent', 'number'), (null, 'require', 'object'), (null, 'hold_ms', 'number'),
        ('weighted', 'mode', 'smooth|random'), ('capacity_aware', 'fit', 'worst|best'), ('sticky', 'mode', 'soft|hard'), ('affinity', 'prefer', 'array'),
        ('region', 'nearest', 'object'), ('region', 'residency', 'boolean'), ('cost', 'min_quality', 'number'), ('cost', 'max_latency_ms', 'number'),
        ('fair_share', 'quantum', 'number'), ('fallback', 'order', 'array')) k (kind, key, form) on k.key = e.key and coalesce(k.kind = p_kind, true)
    where k.form is null or case
        when k.form = 'number' then jsonb_typeof(e.value) <> 'number' or vanilla.figure(p_config, e.key, 0) < 0
        when k.form in ('object', 'array', 'boolean') then jsonb_typeof(e.value) <> k.form
        else e.value #>> '{}' <> all (string_to_array(k.form, '|')) end
    order by e.key limit 1
$f$;
comment on function vanilla.strategy_problem(text, jsonb) is 'What is wrong with the configuration of a strategy of a kind, as a sentence; null: nothing.';

create or replace function public.set_routing_strategy(p_slug text, p_kind text, p_target text default 'worker', p_config jsonb default '{}',
    p_pool text default null, p_explain boolean default false, p_status text default 'active', p_description text default '',
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := coalesce(vanilla.acting_tenant(p_tenant_id), vanilla.platform());
    v_problem text;
    v_row public.routing_strategies;
begin
    if jsonb_typeof(p_config) = 'object' then
        v_problem := vanilla.strategy_problem(p_kind, p_config);
        if v_problem is not null then
            perform vanilla.refuse('VS400', v_problem, '{"param": "config"}', 'docs/design/routing.md lists the settings of each kind.');
        end if;
    end if;
    begin
        insert into public.routing_strategies as s (tenant_id, slug, kind, target, config, pool, explain, status, description, updated_at)
            values (v_tenant, p_slug, p_kind, p_target, p_config, p_pool, p_explain, p_status, p_description, vanilla.clock())
            on conflict (tenant_id, slug) do update set kind = excluded.kind, target = excluded.target, config = excluded.config, pool = excluded.pool,
                explain = excluded.explain, status = excluded.status, description = excluded.description, updated_at = excluded.updated_at
            returning * into v_row;
    exception
        when check_violation or not_null_violation or foreign_key_violation then
            perform vanilla.refuse('VS400', 'the strategy is not valid: ' || sqlerrm, '{}',
                'A slug and a pool are 1 to 63 of a-z, 0-9, _ and hyphens; kinds and settings are in docs/design/routing.md.');
        when unique_violation then
            perform vanilla.refuse('VS409', format('another strategy applies to the pool %s', p_pool), '{"param": "pool"}', 'Disable that one, or leave the pool out.');
    end;
    if p_target = 'worker' and p_pool is not null then      -- what another rule held is placed by this one
        perform vanilla.free_steps(array(select vanilla.held_pool(p_pool, w.id) from public.worker_registry w
            where w.tenant_id = vanilla.platform() and w.status in ('registered', 'active', 'draining')) || vanilla.held_pool(p_pool, null));
    end if;
    perform vanilla.audit(v_tenant, 'routing.strategy_set', 'routing_strategy', v_row.id,
        jsonb_build_object('slug', p_slug, 'kind', p_kind, 'target', p_target, 'pool', p_pool, 'status', p_status));
    return to_jsonb(v_row) - array['tenant_id'];
end
$f$;
comment on function public.set_routing_strategy(text, text, text, jsonb, text, boolean, text, text, uuid) is
    'Makes or replaces a strategy of the tenant, by an admin; of the platform, by a super admin there or the operator. Returns it; VS409 when another applies to the pool already.';

create or replace function vanilla.routing_strategy(p_tenant_id uuid, p_slug text) returns public.routing_strategies
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_strategy public.routing_strategies;
begin
    select * into v_strategy from public.routing_strategies s
        where s.tenant_id in (p_tenant_id, vanilla.platform()) and s.slug = p_slug and s.status = 'active'
        order by s.tenant_id = p_tenant_id desc limit 1;
    if not found then
        perform vanilla.refuse('VS404', 'no such strategy', jsonb_build_object('strategy', p_slug));
    end if;
    return v_strategy;
end
$f$;
comment on function vanilla.routing_strategy(uuid, text) is 'The active strategy of this slug, the tenant''s own before the platform''s; VS404 when there is none.';

create or replace function vanilla.pool_strategy(p_tenant_id uuid, p_target text, p_pool text) returns public.routing_strategies
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select s from public.routing_strategies s
    where s.tenant_id in (p_tenant_id, vanilla.platform()) and s.target = p_target and s.pool = p_pool and s.status = 'active'
    order by s.tenant_id = p_tenant_id desc limit 1
$f$;
comment on function vanilla.pool_strategy(uuid, text, text) is 'The strategy that applies to a pool, the tenant''s own before the platform''s; null: none does.';

create or replace function vanilla.hold_of(p_strategy public.routing_strategies) returns interval
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select case when p_strategy.config @> '{"mode": "hard"}' then interval '1000 years'
        when p_strategy.config ? 'hold_ms' then make_interval(secs => least(vanilla.figure(p_strategy.config, 'hold_ms', 0), 3600000) / 1000) end
$f$;
comment on function vanilla.hold_of(public.routing_strategies) is
    'How long the queue keeps a step for whom a strategy prefers: hold_ms, at most an hour; hard: until that worker ends; null: it does not.';

create or replace function vanilla.decide_routing(p_tenant_id uuid, p_strategy public.routing_strategies, p_candidates jsonb, p_context jsonb default '{}',
    p_seed bigint default null, p_record boolean default null, p_actor_id uuid default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    -- 48 random bits: JSON carries them unharmed
    v_seed bigint := coalesce(p_seed, ('x' || right(gen_random_uuid()::text, 12))::bit(48)::bigint);
    v_result jsonb := vanilla.route(jsonb_build_object('kind', p_strategy.kind, 'config', p_strategy.config), p_candidates, p_context, v_seed);
    v_id uuid;
begin
    if coalesce(p_record, p_strategy.explain) then
        insert into public.routing_decisions (tenant_id, created_at, strategy, kind, target, config, candidates, context, seed, result, chosen, actor_id)
            values (p_tenant_id, vanilla.clock(), p_strategy.slug, p_strategy.kind, p_strategy.target, p_strategy.config, p_candidates, p_context, v_seed,
                v_result, v_result ->> 'chosen', p_actor_id)
            returning id into v_id;
    end if;
    return v_result || jsonb_build_object('decision_id', v_id, 'seed', v_seed);
end
$f$;
comment on function vanilla.decide_routing(uuid, public.routing_strategies, jsonb, jsonb, bigint, boolean, uuid) is
    'vanilla.route by a strategy of the catalogue, recorded when that one explains or p_record says so; the seed is drawn when none is given.';

-- Who asks decides: a step that another should have is put aside for that one, and it alone looks there. When the time is over
-- tend_workflows puts it back, and whoever is eligible may have it.
create or replace function vanilla.place_steps(p_worker uuid, p_pool text, p_steps public.workflow_queue[]) returns public.workflow_queue[]
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_candidates jsonb := vanilla.worker_candidates(vanilla.platform(), p_pool);
    v_step public.workflow_queue;
    v_strategy public.routing_strategies;
    v_routing jsonb;
    v_decision jsonb;
    v_for uuid;
    v_mine public.workflow_queue[] := '{}';
    v_held boolean := false;
begin
    foreach v_step in array p_steps loop
        v_strategy := vanilla.pool_strategy(v_step.tenant_id, 'worker', p_pool);
        if vanilla.hold_of(v_strategy) is null then
            v_mine := v_mine || v_step;
            continue;
        end if;
        select coalesce(n.settings -> 'routing', '{}') into v_routing from public.workflow_nodes n
            where n.tenant_id = v_step.tenant_id and n.workflow_id = v_step.workflow_id and n.version = v_step.version and n.node = v_step.node;
        -- the workers are the platform's: what is told of them is for its people
        v_decision := vanilla.decide_routing(vanilla.platform(), v_strategy, v_candidates, v_routing || jsonb_build_object('pool', p_pool, 'key',
            case coalesce(v_routing ->> 'key', 'execution') when 'tenant' then v_step.tenant_id when 'user' then v_step.user_id when 'workflow' then v_step.workflow_id
                else v_step.execution_id end));
        v_for := coalesce(v_decision ->> 'chosen', v_decision ->> 'waits_for')::uuid;
        if v_for = p_worker or v_step.held_until is not null and v_decision -> 'ranking' @> jsonb_build_array(jsonb_build_object('id', p_worker)) then
            v_mine := v_mine || v_step;
            continue;
        end if;
        -- one that ends just now has its row locked: what is put aside for it would be forgotten
        perform from public.worker_registry w where w.tenant_id = vanilla.platform() and w.id = v_for and w.status in ('registered', 'active') for key share skip locked;
        if not found then v_for := null; end if;
        update public.workflow_queue q set pool = vanilla.held_pool(p_pool, v_for),
                held_until = vanilla.clock() + case when v_for is null then interval '1 s' else vanilla.hold_of(v_strategy) end
            where q.tenant_id = v_step.tenant_id and q.execution_id = v_step.execution_id and q.node = v_step.node and q.item = v_step.item;
        v_held := true;
    end loop;
    if v_held then perform vanilla.wake_workers(p_pool); end if;
    return v_mine;
end
$f$;
comment on function vanilla.place_steps(uuid, text, public.workflow_queue[]) is
    'Which of the steps that a worker has locked it may have by the strategy of their pool; the others are held for whom that prefers, or for a second when nobody is eligible.';

create or replace function public.route_decision(p_strategy text, p_candidates jsonb default null, p_context jsonb default '{}', p_seed bigint default null,
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := coalesce(vanilla.acting_tenant(p_tenant_id), vanilla.platform());
    v_strategy public.routing_strategies := vanilla.routing_strategy(v_tenant, p_strategy);
begin
    if p_candidates is null and v_strategy.target <> 'worker' then
        perform vanilla.refuse('VS400', 'this strategy is for providers: name the candidates', '{"param": "candidates"}');
    end if;
    if octet_length(p_candidates::text) > 1048576 or octet_length(p_context::text) > 65536 then
        perform vanilla.refuse('VS400', 'candidates have at most 1 MiB and a context 64 KiB', '{"param": "candidates"}');
    end if;
    return vanilla.decide_routing(v_tenant, v_strategy, coalesce(p_candidates, vanilla.worker_candidates(v_tenant, p_context ->> 'pool')), coalesce(p_context, '{}'),
        p_seed, true, vanilla.claim(4)::uuid);
end
$f$;
comment on function public.route_decision(text, jsonb, jsonb, bigint, uuid) is
    'Routes by a strategy and records the decision, by an admin: among the candidates given, or the tenant''s live workers. Returns what vanilla.route does, with decision_id and seed.';

create or replace function vanilla.replay_routing(p_decision public.routing_decisions) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    -- scores are compared as the order they make: how a float is printed is a setting of the session
    select (r.again ->> 'chosen') is not distinct from p_decision.chosen
        and r.again -> 'refused' = p_decision.result -> 'refused'
        and jsonb_path_query_array(r.again, '$.ranking[*].id') = jsonb_path_query_array(p_decision.result, '$.ranking[*].id')
    from (select vanilla.route(jsonb_build_object('kind', p_decision.kind, 'config', p_decision.config), p_decision.candidates, p_decision.context, p_decision.seed) as again) r
$f$;
comment on function vanilla.replay_routing(public.routing_decisions) is 'Whether a decision, routed again from its row, gives the same choice, order and refusals.';

create or replace function vanilla.routing_figures(p_kind text, p_candidate jsonb, p_score text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select case
        when p_score is null then 'not in the sample of two'
        when p_kind in ('least_loaded', 'power_of_two_choices', 'capacity_aware') then
            format('%s of %s slots taken', coalesce(p_candidate ->> 'in_flight', '0'), coalesce(p_candidate ->> 'capacity', '1'))
        when p_kind = 'health_based' then format('health %s, %s of %s slots taken', coalesce(p_candidate ->> 'health', '100'), coalesce(p_candidate ->> 'in_flight', '0'),
            coalesce(p_candidate ->> 'capacity', '1'))
        when p_kind = 'latency' then format('%s ms, %s in flight', coalesce(p_candidate ->> 'latency_ms', 'no'), coalesce(p_candidate ->> 'in_flight', '0'))
        when p_kind = 'region' then format('region %s', coalesce(p_candidate ->> 'region', '(none)'))
        when p_kind = 'cost' then format('%s micros of USD expected', trim(leading '-' from p_score))
        when p_kind = 'weighted' then format('weight %s, score %s', coalesce(p_candidate ->> 'weight', '1'), left(p_score, 12))
        else format('score %s', left(p_score, 12)) end
$f$;
comment on function vanilla.routing_figures(text, jsonb, text) is 'What a candidate was judged by, in words.';

create or replace function vanilla.routing_sentences(p_decision public.routing_decisions) returns text[]
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select array(
        select s.sentence from (
            select 1, 1, format('%s (%s) chose %s among %s candidates.', p_decision.strategy, p_decision.kind, coalesce(p_decision.chosen, 'nobody'),
                jsonb_array_length(p_decision.candidates))
            union all select 2, 1, case p_decision.kind
                when 'round_robin' then 'The next after the last one, in order of their ids, comes first.'
                when 'weighted' then case when p_decision.config ->> 'mode' = 'random' then 'One is drawn by weight.'
                    else 'Each gains its weight at every choice, the largest sum is chosen and pays the total of all weights.' end
                when 'least_loaded' then 'The smallest share of slots taken comes first.'
                when 'power_of_two_choices' then 'Two are drawn, and of them the one with the smaller share of slots taken is chosen.'
                when 'health_based' then 'Health times the share of slots that are free: the largest comes first.'
                when 'capacity_aware' then case when p_decision.config ->> 'fit' = 'best' then 'Whom it leaves the fewest free slots comes first.'
                    else 'Whom it leaves the most free slots comes first.' end
                when 'sticky' then format('The key %s has an order of all candidates of its own (rendezvous hashing).', coalesce(p_decision.context ->> 'key', '(none)'))
                when 'affinity' then 'The sum of weights of the preferences that its labels fulfil: the largest comes first.'
                when 'region' then format('The nearest to region %s comes first.', coalesce(p_decision.context ->> 'region', '(none)'))
                when 'latency' then 'Latency (peak EWMA) times the calls in flight and this one: the smallest comes first.'
                when 'cost' then 'The smallest expected price comes first.'
                when 'headroom' then 'The largest share of requests and tokens left in the provider''s window comes first.'
                when 'fair_share' then 'Deficit round robin: the first, from the pointer on, whose grants cover its next item.'
                when 'fallback' then 'The first in the list that has not been tried comes first.' end
            union all select 3, 1, 'Fewer than half were healthy, so health was not asked for (panic).' where p_decision.result -> 'panic' = 'true'
            union all select 4, 1, format('It waits for %s, which is first for the key and not well.', p_decision.result ->> 'waits_for')
                where p_decision.result ->> 'waits_for' is not null
            union all (select 5, r.nr, format('%s. %s: %s.', r.nr, coalesce(c.value ->> 'name', r.value ->> 'id'), vanilla.routing_figures(p_decision.kind, c.value, r.value ->> 'score'))
                from jsonb_array_elements(p_decision.result -> 'ranking') with ordinality r (value, nr)
                join jsonb_array_elements(p_decision.candidates) c (value) on c.value ->> 'id' = r.value ->> 'id' where r.nr <= 20)
            union all (select 6, r.nr, format('%s was left out: %s.', coalesce(c.value ->> 'name', r.value ->> 'id'), case r.value ->> 'reason'
                    when 'tried' then 'it was tried already'
                    when 'status' then 'it is ' || coalesce(c.value ->> 'status', 'not active')
                    when 'pool' then format('it does not serve %s', p_decision.context ->> 'pool')
                    when 'circuit' then 'its circuit is open'
                    when 'labels' then 'it lacks the labels that are required'
                    when 'residency' then format('the data may not leave %s', coalesce(p_decision.context ->> 'region', 'its region'))
                    when 'capacity' then format('%s of its %s slots are taken', coalesce(c.value ->> 'in_flight', '0'), coalesce(c.value ->> 'capacity', '1'))
                    when 'price' then 'its price is not known'
                    when 'quality' then format('its quality is %s', coalesce(c.value ->> 'quality', '0'))
                    when 'slow' then format('it takes %s ms', c.value ->> 'latency_ms')
                    when 'headroom' then 'its provider''s window is used up'
                    when 'idle' then 'nothing waits there'
                    when 'unlisted' then 'it is not in the list'
                    when 'health' then format('its health is %s', coalesce(c.value ->> 'health', '100')) end)
                from jsonb_array_elements(p_decision.result -> 'refused') with ordinality r (value, nr)
                join jsonb_array_elements(p_decision.candidates) c (value) on c.value ->> 'id' = r.value ->> 'id' where r.nr <= 20)
            ) s (part, nr, sentence) order by s.part, s.nr)
$f$;
comment on function vanilla.routing_sentences(public.routing_decisions) is 'A decision in sentences: who, by what rule, the first 20 with what they were judged by, and why others were left out.';

create or replace function public.explain_routing(p_decision_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := coalesce(vanilla.acting_tenant(p_tenant_id), vanilla.platform());
    v_decision public.routing_decisions;
begin
    select * into v_decision from public.routing_decisions d where d.tenant_id = v_tenant and d.id = p_decision_id;
    if not found then
        perform vanilla.refuse('VS404', 'no such decision', jsonb_build_object('decision_id', p_decision_id));
    end if;
    return (to_jsonb(v_decision) - array['tenant_id', 'result']) || (v_decision.result - array['chosen'])
        || jsonb_build_object('explanation', to_jsonb(vanilla.routing_sentences(v_decision)), 'replayed', vanilla.replay_routing(v_decision));
end
$f$;
comment on function public.explain_routing(uuid, uuid) is
    'A recorded decision with what went in and came out, as sentences too, and whether routing it again gives the same (replayed), by an admin.';

create or replace function public.drain_worker(p_worker_id uuid, p_reason text default '', p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := coalesce(vanilla.acting_tenant(p_tenant_id), vanilla.platform());
    v_worker public.worker_registry;
begin
    select * into v_worker from public.worker_registry w where w.tenant_id = v_tenant and w.id = p_worker_id for update;
    if not found then
        perform vanilla.refuse('VS404', 'no such worker', jsonb_build_object('worker_id', p_worker_id));
    end if;
    perform vanilla.begin_drain(v_worker, coalesce(nullif(left(p_reason, 500), ''), 'an admin asked for it'), vanilla.claim(4)::uuid);
    if v_worker.status <> 'draining' then
        perform vanilla.audit(v_tenant, 'worker.drained', 'worker', v_worker.id, jsonb_build_object('worker', v_worker.name, 'reason', p_reason));
    end if;
end
$f$;
comment on function public.drain_worker(uuid, text, uuid) is
    'Lets a worker finish what it has and take no more, by an admin of the tenant whose worker it is; of the platform, by a super admin there or the operator.';
grant execute on function public.set_routing_strategy(text, text, text, jsonb, text, boolean, text, text, uuid),
    public.route_decision(text, jsonb, jsonb, bigint, uuid), public.explain_routing(uuid, uuid), public.drain_worker(uuid, text, uuid)
    to vanilla_app, vanilla_operator;

-- rows -------------------------------------------------------------------------------------------------------------
set local role vanilla_system;
insert into public.routing_strategies (tenant_id, id, slug, kind, target, config, pool, description, updated_at)
select '00000000-0000-0000-0000-000000000000', ('00000000-0000-7000-8000-0000000008' || s.nr)::uuid, s.slug, s.kind, s.target, s.config::jsonb, s.pool, s.description, '2026-01-01+00'
from (values
    ('01', 'round_robin', 'round_robin', 'worker', '{}', null, 'Each in turn.'),
    ('02', 'weighted', 'weighted', 'worker', '{"mode": "smooth"}', null, 'Each as often as its weight says, evenly spread.'),
    ('03', 'least_loaded', 'least_loaded', 'worker', '{}', null, 'Whoever has the smallest share of slots taken.'),
    ('04', 'power_of_two_choices', 'power_of_two_choices', 'worker', '{}', null, 'The less loaded of two that are drawn: nearly as good, without a herd.'),
    ('05', 'health_based', 'health_based', 'worker', '{"min_health": 60, "panic_percent": 50}', null, 'The healthiest with room.'),
    ('06', 'capacity_aware', 'capacity_aware', 'worker', '{"fit": "worst"}', 'default', 'Whoever has room, the most room first: what a worker that asks for work amounts to.'),
    ('07', 'sticky', 'sticky', 'worker', '{"mode": "soft", "hold_ms": 500}', null, 'The same worker for the same key while it lives.'),
    ('08', 'affinity', 'affinity', 'worker', '{"hold_ms": 500}', null, 'Whose labels fit best.'),
    ('09', 'region', 'region', 'worker', '{"hold_ms": 500}', null, 'The same region, then the nearest.'),
    ('10', 'fair_share', 'fair_share', 'worker', '{"quantum": 1}', null, 'Tenants by weight, whoever waits; nobody idle while there is work.'),
    ('11', 'latency', 'latency', 'provider', '{}', null, 'The fastest, counting the calls it is busy with.'),
    ('12', 'cost', 'cost', 'provider', '{}', null, 'The cheapest that is good and fast enough.'),
    ('13', 'headroom', 'headroom', 'provider', '{}', null, 'Whose limits of requests and tokens have the most left.'),
    ('14', 'fallback', 'fallback', 'provider', '{}', null, 'The first of a list, the next when it fails.')
    ) s (nr, slug, kind, target, config, pool, description)
on conflict do nothing;

insert into public.system_configurations (tenant_id, key, value, description, updated_at) values
    ('00000000-0000-0000-0000-000000000000', 'retention.worker_event_logs_days', '90', 'Days that transitions of workers are kept.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.routing_metrics_days', '30', 'Days that figures of workers by the minute are kept.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.routing_decisions_days', '30', 'Days that recorded routing decisions are kept.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.workers_days', '30', 'Days that workers are listed after their end.', '2026-01-01+00')
on conflict do nothing;
insert into public.schedules (tenant_id, name, description, kind, period, slots_from, next_run_at, longest_gap) values
    ('00000000-0000-0000-0000-000000000000', 'workers', 'Declares workers dead that stay silent, when no other worker does; forgets those that ended long ago.', 'sql', '10 s',
     '2026-01-01 00:00+00', '2026-01-01 00:00+00', null)
on conflict do nothing;

set local role vanilla_owner;
revoke create on schema vanilla from vanilla_definer;
select vanilla.map_supabase_roles();      -- without 010 too
reset role;
revoke create on schema public from vanilla_definer;
commit;
