-- 009: orchestration, what agents run on (docs/design/orchestration.md).
--
-- Allocations, budgets of agents: trees over one wallet
--   Tables:  resource_allocations, allocation_holds
--   Public:  allocation_open, allocation_carve, allocation_hold, allocation_settle, allocation_release, allocation_count_tool_call, allocation_close,
--            allocation_top_up, allocation_tree; allocation_reap for the operator
--   Private: the same names in vanilla, with the tenant in front: what other systems call in their own transaction
--            lock_allocation, lock_subtree   every change of an allocation or of its holds happens under its row
--            draw_allocation                 the one place where a tree's tokens are spent: one ledger row for each settled step
--            allocation_end                  a whole subtree, whatever is open in it
--   Others:  refuse_allocation of 002 asks for allocations by hand; forget_allocations is called by erase_person of 001
--
-- Invariants (checks/allocations_reconcile.sql): carved + held + spent <= budget at every node; carved is the budgets of its open children, held its open
-- holds, spent what its holds and closed children drew; while the wallet's hold of a tree is open, it holds what the open nodes have not spent.
-- A tree lives as long as its hold in the wallet: whoever closes that hold ends the tree, without a lock of it; the job allocations writes it down.
-- Lock order: executions; allocations, of one tree by depth and id, so that a parent comes before its children; holds; wallets; the queue. Holds of steps
-- need no place of their own: the row of their allocation is held by whoever changes them. The job passes by what is locked.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
select vanilla.refuse_after_upgrade();
set local role vanilla_owner;
grant create on schema vanilla to vanilla_definer;
reset role;
grant create on schema public to vanilla_definer;
set local role vanilla_owner;

-- allocations ------------------------------------------------------------------------------------------------------
create table if not exists public.resource_allocations (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    run_id uuid,
    parent_id uuid,
    root_id uuid not null,
    depth smallint not null default 0,
    counted_by uuid[] not null default '{}',
    hold_id uuid,
    state text not null default 'open',
    budget_tokens bigint not null,
    carved_tokens bigint not null default 0,
    held_tokens bigint not null default 0,
    spent_tokens bigint not null default 0,
    overrun_tokens bigint not null default 0,
    wrap_up_tokens bigint not null default 0,
    estimated_tokens bigint,
    max_requests bigint,
    requests bigint not null default 0,
    max_tool_calls bigint,
    tool_calls bigint not null default 0,
    max_concurrent bigint,
    open_holds bigint not null default 0,
    expires_at timestamptz not null,
    notified_at timestamptz,
    wrapped_up_at timestamptz,
    idempotency_key text,
    request_hash bytea,
    top_ups jsonb not null default '{}',
    created_at timestamptz not null default clock_timestamp(),
    closed_at timestamptz,
    constraint resource_allocations_pkey primary key (tenant_id, id),
    constraint resource_allocations_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint resource_allocations_parent_fkey foreign key (tenant_id, parent_id) references public.resource_allocations (tenant_id, id),
    constraint resource_allocations_root_fkey foreign key (tenant_id, root_id) references public.resource_allocations (tenant_id, id),
    constraint resource_allocations_budget_check check (carved_tokens + held_tokens + spent_tokens <= budget_tokens),
    constraint resource_allocations_amounts_check check (budget_tokens > 0 and least(carved_tokens, held_tokens, spent_tokens, overrun_tokens, estimated_tokens) >= 0),
    constraint resource_allocations_wrap_up_check check (wrap_up_tokens between 0 and budget_tokens),
    constraint resource_allocations_limits_check check (least(max_requests, max_tool_calls, max_concurrent) > 0),
    constraint resource_allocations_counts_check check (least(requests, tool_calls, open_holds) >= 0),
    constraint resource_allocations_tree_check check (case when parent_id is null then depth = 0 and root_id = id and hold_id is not null and counted_by = '{}'
        else depth between 1 and 50 and root_id <> id and hold_id is null end),
    constraint resource_allocations_state_check check (state in ('open', 'closed', 'expired')),
    constraint resource_allocations_closed_check check ((state = 'open') = (closed_at is null)),
    constraint resource_allocations_ended_check check (state = 'open' or carved_tokens + held_tokens = 0),
    constraint resource_allocations_key_check check (octet_length(idempotency_key) <= 1020),
    constraint resource_allocations_top_ups_check check (jsonb_typeof(top_ups) = 'object' and octet_length(top_ups::text) <= 65536)
) with (fillfactor = 80);
create index if not exists resource_allocations_user_idx on public.resource_allocations (tenant_id, user_id);
create index if not exists resource_allocations_parent_idx on public.resource_allocations (tenant_id, parent_id);
create index if not exists resource_allocations_root_idx on public.resource_allocations (tenant_id, root_id);
create unique index if not exists resource_allocations_key_idx on public.resource_allocations (tenant_id, parent_id, idempotency_key)
    where parent_id is not null and idempotency_key is not null;
create index if not exists resource_allocations_open_idx on public.resource_allocations (tenant_id, expires_at) where state = 'open';
comment on table public.resource_allocations is
    'Budgets of agents: nodes of trees over one wallet. carved + held + spent <= budget; the root''s budget is held in the wallet once.';
comment on column public.resource_allocations.counted_by is 'Its ancestors that have a limit of requests, tool calls or concurrency: what it does counts there too.';
comment on column public.resource_allocations.hold_id is 'Of a root: the hold in the wallet on which every node of the tree draws.';
comment on column public.resource_allocations.carved_tokens is 'The budgets of its open children. What a child left when it closed came back, what it spent counts as spent here.';
comment on column public.resource_allocations.overrun_tokens is 'What its steps used beyond all that it had: the wallet paid apart, and it takes no further hold.';
comment on column public.resource_allocations.wrap_up_tokens is 'The part of the budget that only its one last turn may take.';
comment on column public.resource_allocations.open_holds is 'Steps under way, of its own and, where it has a limit, of all below it; requests and tool_calls likewise.';
comment on column public.resource_allocations.notified_at is 'When 80 % of the budget was spent or held.';
comment on column public.resource_allocations.top_ups is 'Tokens that were added, by idempotency key.';

create table if not exists public.allocation_holds (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    allocation_id uuid not null,
    user_id uuid not null,
    step text not null,
    amount bigint not null,
    state text not null default 'open',
    settled bigint,
    overrun bigint,
    wrap_up boolean not null default false,
    execution_id uuid,
    lease bigint,
    call jsonb,
    usage jsonb not null default '{}',
    expires_at timestamptz not null,
    created_at timestamptz not null default clock_timestamp(),
    closed_at timestamptz,
    constraint allocation_holds_pkey primary key (tenant_id, id),
    constraint allocation_holds_allocation_fkey foreign key (tenant_id, allocation_id) references public.resource_allocations (tenant_id, id),
    constraint allocation_holds_step_check check (step <> '' and octet_length(step) <= 1020),
    constraint allocation_holds_amount_check check (amount >= 0 and settled >= 0 and overrun between 0 and settled),
    constraint allocation_holds_state_check check (state in ('open', 'settled', 'released')),
    constraint allocation_holds_settled_check check ((state = 'settled') = (settled is not null) and (settled is null) = (overrun is null)),
    constraint allocation_holds_closed_check check ((state = 'open') = (closed_at is null)),
    constraint allocation_holds_usage_check check (jsonb_typeof(usage) = 'object' and octet_length(usage::text) <= 65536)
) with (fillfactor = 80);
create unique index if not exists allocation_holds_step_idx on public.allocation_holds (tenant_id, allocation_id, step) where state <> 'released';
create index if not exists allocation_holds_allocation_idx on public.allocation_holds (tenant_id, allocation_id);
create index if not exists allocation_holds_open_idx on public.allocation_holds (tenant_id, expires_at) where state = 'open';
comment on table public.allocation_holds is 'What steps of agents hold of their allocation until they are settled, once each. A step that was released may hold again.';
comment on column public.allocation_holds.overrun is 'Of what was settled: what neither the hold nor the allocation had, and the wallet paid apart.';
comment on column public.allocation_holds.call is 'Of a metered call: model, prices and weights as they were at admission. Such a step is not settled by hand.';

-- agents and runs --------------------------------------------------------------------------------------------------
create table if not exists public.agents (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid,
    slug text not null,
    name text not null,
    description text not null default '',
    shared boolean not null default false,
    status text not null default 'active',
    latest_version integer not null,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    constraint agents_pkey primary key (tenant_id, id),
    constraint agents_slug_key unique (tenant_id, slug),
    constraint agents_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint agents_slug_check check (slug ~ '^[a-z0-9][a-z0-9_-]{0,39}$'),
    constraint agents_name_check check (name <> '' and octet_length(name) <= 800),
    constraint agents_description_check check (octet_length(description) <= 20000),
    constraint agents_status_check check (status in ('active', 'retired')),
    constraint agents_latest_check check (latest_version > 0)
);
create index if not exists agents_user_idx on public.agents (tenant_id, user_id);
comment on table public.agents is 'Agents: who they belong to, and which version is the latest. Their owner''s, or with shared for all of the tenant to read and run.';

create table if not exists public.agent_versions (
    tenant_id uuid not null,
    agent_id uuid not null,
    version integer not null,
    user_id uuid,
    shared boolean not null,
    definition jsonb not null,
    hash bytea not null,
    published_at timestamptz not null,
    published_by uuid,
    constraint agent_versions_pkey primary key (tenant_id, agent_id, version),
    constraint agent_versions_agent_fkey foreign key (tenant_id, agent_id) references public.agents (tenant_id, id),
    constraint agent_versions_version_check check (version > 0),
    constraint agent_versions_definition_check check (jsonb_typeof(definition) = 'object' and octet_length(definition::text) <= 262144),
    constraint agent_versions_hash_check check (hash = sha256(convert_to(definition::text, 'UTF8')))
);
comment on table public.agent_versions is 'What an agent was: instructions, model, tools, whom it may ask or hand over to, limits. Immutable; a run pins one.';

create or replace function vanilla.keep_agent_version() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if (old.tenant_id, old.agent_id, old.version, old.definition::text, old.hash, old.published_at, old.published_by)
            is distinct from (new.tenant_id, new.agent_id, new.version, new.definition::text, new.hash, new.published_at, new.published_by) then
        raise exception 'a published version does not change' using errcode = 'VS409', hint = 'Save the agent: that makes another version.';
    end if;
    return new;
end
$f$;
comment on function vanilla.keep_agent_version() is 'Trigger: whose it is and who may read it may change, nothing else.';
create or replace trigger agent_versions_immutable before update on public.agent_versions
    for each row execute function vanilla.keep_agent_version();

create table if not exists public.agent_runs (
    tenant_id uuid not null,
    id uuid not null,
    user_id uuid not null,
    agent_id uuid not null,
    version integer not null,
    speaker_id uuid not null,
    speaker_version integer not null,
    execution_id uuid not null,
    node smallint not null,
    item integer not null,
    parent_run_id uuid,
    root_run_id uuid not null,
    path uuid[] not null,
    depth smallint not null,
    state text not null default 'submitted',
    stop_reason text,
    error jsonb,
    input jsonb not null,
    output jsonb,
    limits jsonb not null,
    allocation_id uuid,
    turns integer not null default 0,
    tool_calls integer not null default 0,
    children integer not null default 0,
    charged_tokens bigint not null default 0,
    cost_micros bigint not null default 0,
    deadline_at timestamptz,
    started_at timestamptz not null,
    finished_at timestamptz,
    constraint agent_runs_pkey primary key (tenant_id, id),
    constraint agent_runs_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint agent_runs_version_fkey foreign key (tenant_id, agent_id, version) references public.agent_versions (tenant_id, agent_id, version),
    constraint agent_runs_speaker_fkey foreign key (tenant_id, speaker_id, speaker_version) references public.agent_versions (tenant_id, agent_id, version),
    constraint agent_runs_parent_fkey foreign key (tenant_id, parent_run_id) references public.agent_runs (tenant_id, id),
    constraint agent_runs_root_fkey foreign key (tenant_id, root_run_id) references public.agent_runs (tenant_id, id),
    constraint agent_runs_allocation_fkey foreign key (tenant_id, allocation_id) references public.resource_allocations (tenant_id, id),
    constraint agent_runs_state_check check (state in ('submitted', 'working', 'input_required', 'auth_required', 'completed', 'failed', 'canceled', 'rejected')),
    constraint agent_runs_finished_check check ((state in ('completed', 'failed', 'canceled', 'rejected')) = (finished_at is not null)
        and (finished_at is null) = (stop_reason is null)),
    constraint agent_runs_stop_check check (stop_reason in ('done', 'max_turns', 'max_tool_calls', 'max_depth', 'max_children', 'budget_exhausted', 'deadline',
        'loop_detected', 'cycle_refused', 'agreement_violated', 'quality_failed', 'canceled', 'provider_failed', 'failed')),
    constraint agent_runs_depth_check check (depth >= 0 and cardinality(path) > depth)
) with (fillfactor = 80);
create unique index if not exists agent_runs_step_idx on public.agent_runs (tenant_id, execution_id, node, item) where finished_at is null;
create index if not exists agent_runs_execution_idx on public.agent_runs (tenant_id, execution_id);
create index if not exists agent_runs_user_idx on public.agent_runs (tenant_id, user_id, id);
create index if not exists agent_runs_agent_idx on public.agent_runs (tenant_id, agent_id, version);
create index if not exists agent_runs_speaker_idx on public.agent_runs (tenant_id, speaker_id, speaker_version);
create index if not exists agent_runs_parent_idx on public.agent_runs (tenant_id, parent_run_id);
create index if not exists agent_runs_root_idx on public.agent_runs (tenant_id, root_run_id);
create index if not exists agent_runs_allocation_idx on public.agent_runs (tenant_id, allocation_id);
comment on table public.agent_runs is
    'Runs of agents, a tree: each is what a step of a workflow execution computes. States are those of A2A tasks; a finished run has a stop_reason and does not change.';
comment on column public.agent_runs.speaker_id is 'The agent that has the word: the one it began with, or the last that it was handed over to.';
comment on column public.agent_runs.path is 'The agents from the root to this one, and those that it was handed over to: who is in it may not be asked again, unless whoever asks may.';
comment on column public.agent_runs.limits is 'tokens, turns, tool_calls, depth, children, repeats, seconds: the agent''s own, or less where its parent has less.';
comment on column public.agent_runs.children is 'Of a root: how many runs its tree has started.';
comment on column public.agent_runs.charged_tokens is 'What its own model calls were charged; of its children their own rows.';

create table if not exists public.agent_run_steps (
    tenant_id uuid not null,
    run_id uuid not null,
    n integer not null,
    user_id uuid not null,
    turn integer not null,
    kind text not null,
    agent_id uuid not null,
    name text,
    call_id text,
    arguments jsonb,
    arguments_hash bytea,
    status text not null default 'open',
    approval jsonb,
    result jsonb,
    child_run_id uuid,
    charged_tokens bigint not null default 0,
    cost_micros bigint not null default 0,
    created_at timestamptz not null,
    finished_at timestamptz,
    constraint agent_run_steps_pkey primary key (tenant_id, run_id, n),
    constraint agent_run_steps_run_fkey foreign key (tenant_id, run_id) references public.agent_runs (tenant_id, id),
    constraint agent_run_steps_child_fkey foreign key (tenant_id, child_run_id) references public.agent_runs (tenant_id, id),
    constraint agent_run_steps_kind_check check (kind in ('model', 'tool', 'handoff', 'delegate')),
    constraint agent_run_steps_status_check check (status in ('open', 'done', 'failed', 'refused')),
    constraint agent_run_steps_finished_check check ((status = 'open') = (finished_at is null))
) with (fillfactor = 80);
create index if not exists agent_run_steps_child_idx on public.agent_run_steps (tenant_id, child_run_id);
comment on table public.agent_run_steps is
    'The journal of a run: a row for each model call, with the answer, and one for each tool call, handover and delegation that it asked for. What stands here is not done again.';
comment on column public.agent_run_steps.arguments_hash is 'SHA-256 of name and arguments as PostgreSQL prints jsonb: two calls are the same when it is.';
comment on column public.agent_run_steps.approval is 'What people said to a call that needs their approval: decision, comment, by.';

-- the same that 010 writes: functions work before it has run, and no login has anything
grant select, insert, update, delete on public.resource_allocations, public.allocation_holds, public.agents, public.agent_versions, public.agent_runs,
    public.agent_run_steps to vanilla_definer, vanilla_system;

set local role vanilla_definer;
alter default privileges revoke execute on functions from public;

create or replace function vanilla.allocation_left(p_allocation public.resource_allocations, p_wrap_up boolean default false) returns bigint language sql immutable
    return p_allocation.budget_tokens - p_allocation.carved_tokens - p_allocation.held_tokens - p_allocation.spent_tokens
        - case when p_wrap_up or p_allocation.wrapped_up_at is not null then 0
            else least(p_allocation.wrap_up_tokens, p_allocation.budget_tokens - p_allocation.carved_tokens - p_allocation.held_tokens - p_allocation.spent_tokens) end;
comment on function vanilla.allocation_left(public.resource_allocations, boolean) is 'What an allocation has left to hold or carve; for its last turn with what is kept for that.';

create or replace function vanilla.allocation_json(p_allocation public.resource_allocations) returns jsonb language sql stable
set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('allocation_id', p_allocation.id, 'user_id', p_allocation.user_id, 'run_id', p_allocation.run_id, 'parent_id', p_allocation.parent_id,
        'root_id', p_allocation.root_id, 'depth', p_allocation.depth, 'state', p_allocation.state, 'budget', p_allocation.budget_tokens, 'carved', p_allocation.carved_tokens,
        'held', p_allocation.held_tokens, 'spent', p_allocation.spent_tokens, 'overrun', p_allocation.overrun_tokens, 'left', vanilla.allocation_left(p_allocation),
        'wrap_up', p_allocation.wrap_up_tokens, 'expires_at', p_allocation.expires_at, 'notified_at', p_allocation.notified_at,
        'wrapped_up_at', p_allocation.wrapped_up_at)
$f$;
comment on function vanilla.allocation_json(public.resource_allocations) is 'An allocation as functions answer it, in tokens.';

create or replace function vanilla.allocation_hold_json(p_hold public.allocation_holds, p_allocation public.resource_allocations, p_replayed boolean) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('hold_id', p_hold.id, 'allocation_id', p_hold.allocation_id, 'step', p_hold.step, 'state', p_hold.state, 'amount', p_hold.amount,
        'settled', p_hold.settled, 'overrun', p_hold.overrun, 'usage', p_hold.usage, 'execution_id', p_hold.execution_id, 'expires_at', p_hold.expires_at,
        'replayed', p_replayed, 'left', vanilla.allocation_left(p_allocation), 'budget', p_allocation.budget_tokens, 'notified', p_allocation.notified_at is not null)
$f$;
comment on function vanilla.allocation_hold_json(public.allocation_holds, public.resource_allocations, boolean) is
    'A step''s hold as functions answer it, with what its allocation has left; notified: 80 % are spent or held.';

-- Which node, how much of what, until when: the same words in API, CLI and console, and stable reasons for programs.
create or replace function vanilla.refuse_step(p_allocation public.resource_allocations, p_reason text, p_details jsonb default '{}') returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    perform vanilla.refuse(case when p_reason in ('closed', 'deadline') then 'VS409' else 'VS429' end,
        case p_reason when 'closed' then 'the allocation is closed' when 'deadline' then 'the allocation''s time is over'
            when 'budget_exhausted' then 'the allocation''s budget is used up' when 'max_requests' then 'the allocation''s requests are used up'
            when 'max_tool_calls' then 'the allocation''s tool calls are used up' else 'the allocation has as many steps under way as it may' end,
        vanilla.allocation_json(p_allocation) || jsonb_build_object('reason', p_reason, 'resets_at', null,
            'stop_reason', case p_reason when 'max_requests' then 'budget_exhausted' when 'closed' then 'canceled' when 'max_concurrent' then null else p_reason end) || case p_reason
            when 'max_requests' then jsonb_build_object('limit', p_allocation.max_requests, 'used', p_allocation.requests)
            when 'max_tool_calls' then jsonb_build_object('limit', p_allocation.max_tool_calls, 'used', p_allocation.tool_calls)
            when 'max_concurrent' then jsonb_build_object('limit', p_allocation.max_concurrent, 'used', p_allocation.open_holds)
            when 'budget_exhausted' then jsonb_build_object('limit', p_allocation.budget_tokens, 'used', p_allocation.spent_tokens + p_allocation.held_tokens)
            else '{}' end || p_details,
        case p_reason when 'budget_exhausted' then 'Its owner or an admin can add tokens with allocation_top_up; one last turn may take what is kept for it.'
            when 'max_concurrent' then 'Try again when one of them has ended.' else 'Open another allocation.' end);
end
$f$;
comment on function vanilla.refuse_step(public.resource_allocations, text, jsonb) is
    'Refuses what an allocation has no room for: budget_exhausted, max_requests, max_tool_calls, max_concurrent (VS429), deadline, closed (VS409).';

create or replace function vanilla.lock_allocation(p_tenant_id uuid, p_allocation_id uuid, p_parent boolean default false, p_skip boolean default false)
returns public.resource_allocations language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_node public.resource_allocations;
    v_above uuid[];
    v_locked integer;
begin
    select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id;
    if not found then perform vanilla.refuse('VS404', 'no such allocation', jsonb_build_object('allocation_id', p_allocation_id)); end if;
    v_above := v_node.counted_by;
    if p_parent and v_node.parent_id is not null and v_node.parent_id <> all (v_above) then v_above := v_above || v_node.parent_id; end if;
    if p_skip then
        select count(*) into v_locked from (select from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = any (v_above || p_allocation_id)
            for no key update skip locked) l;
        if v_locked <= cardinality(v_above) then return null; end if;
    elsif v_above <> '{}' then
        perform from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = any (v_above) order by a.depth, a.id for no key update;
    end if;
    select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id for no key update;
    return v_node;
end
$f$;
comment on function vanilla.lock_allocation(uuid, uuid, boolean, boolean) is
    'Locks an allocation after the ancestors that count what it does, and with p_parent its parent. p_skip waits for nobody: null when somebody has one of them.';

create or replace function vanilla.lock_subtree(p_tenant_id uuid, p_allocation_id uuid, p_skip boolean default false) returns uuid[]
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_node public.resource_allocations := vanilla.lock_allocation(p_tenant_id, p_allocation_id, true, p_skip);
    v_level uuid[] := array[p_allocation_id];
    v_ids uuid[] := v_level;
    v_children uuid[];
begin
    if v_node.id is null then return null; end if;
    -- level by level: nobody carves from what is locked, so none is missed
    loop
        select array_agg(a.id order by a.id) into v_children from public.resource_allocations a
            where a.tenant_id = p_tenant_id and a.parent_id = any (v_level) and a.state = 'open';
        exit when v_children is null;
        if p_skip then
            select array_agg(l.id) into v_level from (select a.id from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = any (v_children)
                and a.state = 'open' for no key update skip locked) l;
            if cardinality(v_level) is distinct from cardinality(v_children) then return null; end if;
        else
            select array_agg(l.id) into v_level from (select a.id from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = any (v_children)
                and a.state = 'open' order by a.id for no key update) l;
            exit when v_level is null;
        end if;
        v_ids := v_ids || v_level;
    end loop;
    return v_ids;
end
$f$;
comment on function vanilla.lock_subtree(uuid, uuid, boolean) is
    'Locks an allocation, its parent, who counts for it, and all that is open below; returns it and those below. p_skip: null when somebody has one of them.';

-- What a step needs before anything else: the node, its time, the hold in the wallet, the wallet.
create or replace function vanilla.require_allocation(p_allocation public.resource_allocations) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v record;
begin
    if p_allocation.state = 'closed' then perform vanilla.refuse_step(p_allocation, 'closed'); end if;
    if p_allocation.state = 'expired' or p_allocation.expires_at <= v_now then perform vanilla.refuse_step(p_allocation, 'deadline'); end if;
    select h.state, h.expires_at, w.status into v from public.resource_allocations r
        join public.user_token_holds h on h.tenant_id = r.tenant_id and h.id = r.hold_id
        join public.user_token_wallets w on w.tenant_id = r.tenant_id and w.user_id = r.user_id
        where r.tenant_id = p_allocation.tenant_id and r.id = p_allocation.root_id;
    if v.state = 'expired' or v.state = 'open' and v.expires_at <= v_now then perform vanilla.refuse_step(p_allocation, 'deadline'); end if;
    if v.state is distinct from 'open' then perform vanilla.refuse_step(p_allocation, 'closed', jsonb_build_object('hold', v.state)); end if;
    if v.status <> 'active' then
        perform vanilla.refuse('VS415', format('the wallet is %s', v.status), jsonb_build_object('status', v.status), 'An admin of the tenant can open it again.');
    end if;
end
$f$;
comment on function vanilla.require_allocation(public.resource_allocations) is
    'Refuses what begins in an allocation that is closed or past its time, whose tokens the wallet has taken back, or whose wallet is not active.';

create or replace function vanilla.notify_allocation(p_allocation public.resource_allocations) returns public.resource_allocations
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_allocation.notified_at is null and (p_allocation.spent_tokens + p_allocation.held_tokens) * 5 >= p_allocation.budget_tokens * 4 then
        update public.resource_allocations a set notified_at = vanilla.clock() where a.tenant_id = p_allocation.tenant_id and a.id = p_allocation.id
            returning * into p_allocation;
        perform vanilla.emit_event(p_allocation.tenant_id, 'allocation.warning', p_allocation.user_id, vanilla.allocation_json(p_allocation));
    end if;
    return p_allocation;
end
$f$;
comment on function vanilla.notify_allocation(public.resource_allocations) is 'Tells once that 80 % of a locked allocation''s budget is spent or held.';

create or replace function vanilla.allocation_limits(p_limits jsonb, p_expires_at timestamptz) returns public.resource_allocations
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_node public.resource_allocations;
    v record;
begin
    if jsonb_typeof(p_limits) is distinct from 'object' then perform vanilla.refuse('VS400', 'limits are a JSON object', '{"param": "limits"}'); end if;
    for v in select l.key, l.value from jsonb_each(p_limits) l where l.value <> 'null' loop
        if v.key not in ('requests', 'tool_calls', 'concurrency', 'wall_ms', 'wrap_up_tokens', 'estimated_tokens') then
            perform vanilla.refuse('VS400', format('unknown limit %s', left(v.key, 63)), '{"param": "limits"}',
                'One of requests, tool_calls, concurrency, wall_ms, wrap_up_tokens, estimated_tokens.');
        elsif (v.value #>> '{}') !~ '^[0-9]{1,13}$' or jsonb_typeof(v.value) <> 'number' or v.value = '0' and v.key not in ('wrap_up_tokens', 'estimated_tokens') then
            perform vanilla.refuse('VS400', format('the limit %s is a number above zero', v.key), '{"param": "limits"}');
        end if;
    end loop;
    v_node.max_requests := (p_limits ->> 'requests')::bigint;
    v_node.max_tool_calls := (p_limits ->> 'tool_calls')::bigint;
    v_node.max_concurrent := (p_limits ->> 'concurrency')::bigint;
    v_node.wrap_up_tokens := coalesce((p_limits ->> 'wrap_up_tokens')::bigint, 0);
    v_node.estimated_tokens := (p_limits ->> 'estimated_tokens')::bigint;
    v_node.expires_at := least(p_expires_at, v_now + (p_limits ->> 'wall_ms')::bigint * interval '1 millisecond');
    if v_node.expires_at <= v_now or v_node.expires_at > v_now + interval '30 days 1 minute' then
        perform vanilla.refuse('VS400', 'an allocation ends in the future, within 30 days', '{"param": "expires_at"}');
    end if;
    v_node.created_at := v_now;
    return v_node;
end
$f$;
comment on function vanilla.allocation_limits(jsonb, timestamptz) is
    'Limits as columns: requests, tool_calls, concurrency (steps under way), wall_ms, wrap_up_tokens (kept for one last turn), estimated_tokens. Null is no limit.';

create or replace function vanilla.allocation_open(p_tenant_id uuid, p_user_id uuid, p_tokens bigint, p_limits jsonb default '{}', p_expires_at timestamptz default null,
    p_run_id uuid default null, p_idempotency_key text default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tokens bigint := vanilla.check_amount(p_tokens);
    v_node public.resource_allocations := vanilla.allocation_limits(p_limits, p_expires_at);
    v_wallet public.user_token_wallets;
    v_entry public.user_token_ledger;
    v_old public.user_token_ledger;
    v_hash bytea;
begin
    if v_tokens < 0 then perform vanilla.refuse('VS400', 'a budget is positive', '{"param": "tokens"}'); end if;
    if p_idempotency_key is not null then
        perform vanilla.check_key(p_idempotency_key);
        v_hash := vanilla.request_hash(v_tokens, 'reserve', 'allocation', null, 'resource_allocation', p_run_id, null, p_limits, p_expires_at);
    end if;
    v_node.id := vanilla.uuid7();
    v_node.expires_at := coalesce(v_node.expires_at, v_node.created_at + interval '1 hour');
    v_entry := vanilla.requested_entry(p_tenant_id, vanilla.claim(4)::uuid, p_user_id, v_tokens, 'reserve', 'allocation', 'allocation', 'resource_allocation', v_node.id, null, '{}', null, null);
    v_entry.idempotency_key := p_idempotency_key;
    v_entry.request_hash := v_hash;
    v_wallet := vanilla.lock_wallet(p_tenant_id, p_user_id);
    if p_idempotency_key is not null then
        select * into v_old from public.user_token_ledger l where l.tenant_id = p_tenant_id and l.user_id = p_user_id and l.idempotency_key = p_idempotency_key;
        if found then
            if v_old.request_hash is distinct from v_hash then
                perform vanilla.refuse('VS410', 'this idempotency key was used with another body', jsonb_build_object('entry_id', v_old.id), 'Use a new key for a new operation.');
            end if;
            select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = v_old.reference_id;
            return vanilla.allocation_json(v_node) || '{"replayed": true}';
        end if;
    end if;
    v_entry := vanilla.reserve_tokens(v_wallet, v_entry, v_tokens, v_node.expires_at - v_node.created_at);
    if v_entry.reserved_amount = 0 then      -- where the policy warns or monitors: a budget is what there is, and never debt
        perform vanilla.refuse('VS402', 'not enough tokens', jsonb_build_object('needed', v_tokens, 'available', 0, 'resets_at', v_wallet.next_reset_at),
            'An admin of the tenant can add tokens or change the level.');
    elsif v_node.wrap_up_tokens > v_tokens then
        perform vanilla.refuse('VS400', 'what is kept for the last turn is part of the budget', '{"param": "limits"}');
    end if;
    insert into public.resource_allocations as a (tenant_id, id, user_id, run_id, root_id, hold_id, budget_tokens, wrap_up_tokens, estimated_tokens, max_requests, max_tool_calls,
            max_concurrent, expires_at, idempotency_key, request_hash, created_at)
        values (p_tenant_id, v_node.id, p_user_id, p_run_id, v_node.id, v_entry.hold_id, v_entry.reserved_amount, least(v_node.wrap_up_tokens, v_entry.reserved_amount),
            v_node.estimated_tokens, v_node.max_requests, v_node.max_tool_calls, v_node.max_concurrent, v_node.expires_at, p_idempotency_key, v_hash, v_node.created_at)
        returning * into v_node;
    return vanilla.allocation_json(v_node) || '{"replayed": false}';
end
$f$;
comment on function vanilla.allocation_open(uuid, uuid, bigint, jsonb, timestamptz, uuid, text) is
    'Opens the root of a tree: its budget is held in the user''s wallet once, until expires_at (an hour). Where the policy warns or monitors it may get less than it asked for.';

create or replace function vanilla.allocation_carve(p_tenant_id uuid, p_parent_id uuid, p_tokens bigint, p_limits jsonb default '{}', p_expires_at timestamptz default null,
    p_run_id uuid default null, p_idempotency_key text default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_node public.resource_allocations := vanilla.allocation_limits(p_limits, p_expires_at);
    v_parent public.resource_allocations;
    v_hash bytea := vanilla.request_hash(p_tokens, 'carve', null, null, 'resource_allocation', p_run_id, p_parent_id, p_limits, p_expires_at);
    v_old public.resource_allocations;
    v_tokens bigint;
begin
    if p_tokens is not null and vanilla.check_amount(p_tokens) < 0 then perform vanilla.refuse('VS400', 'a budget is positive', '{"param": "tokens"}'); end if;
    -- counters of the parent do not change, so who counts for it is left alone
    select * into v_parent from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_parent_id for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such allocation', jsonb_build_object('allocation_id', p_parent_id)); end if;
    if p_idempotency_key is not null then
        perform vanilla.check_key(p_idempotency_key);
        select * into v_old from public.resource_allocations a where a.tenant_id = p_tenant_id and a.parent_id = p_parent_id and a.idempotency_key = p_idempotency_key;
        if found then
            if v_old.request_hash <> v_hash then
                perform vanilla.refuse('VS410', 'this idempotency key was used with another body', jsonb_build_object('allocation_id', v_old.id), 'Use a new key for a new operation.');
            end if;
            return vanilla.allocation_json(v_old) || '{"replayed": true}';
        end if;
    end if;
    perform vanilla.require_allocation(v_parent);
    v_tokens := coalesce(p_tokens, vanilla.allocation_left(v_parent));
    if v_parent.overrun_tokens > 0 or v_parent.wrapped_up_at is not null or v_tokens > vanilla.allocation_left(v_parent) or v_tokens = 0 then
        perform vanilla.refuse_step(v_parent, 'budget_exhausted', jsonb_build_object('needed', v_tokens));
    elsif v_node.wrap_up_tokens > v_tokens then
        perform vanilla.refuse('VS400', 'what is kept for the last turn is part of the budget', '{"param": "limits"}');
    elsif v_parent.depth >= 50 then
        perform vanilla.refuse('VS409', 'allocations nest at most 50 deep', jsonb_build_object('allocation_id', p_parent_id));
    end if;
    update public.resource_allocations a set carved_tokens = a.carved_tokens + v_tokens where a.tenant_id = p_tenant_id and a.id = p_parent_id;
    insert into public.resource_allocations as a (tenant_id, user_id, run_id, parent_id, root_id, depth, counted_by, budget_tokens, wrap_up_tokens, estimated_tokens,
            max_requests, max_tool_calls, max_concurrent, expires_at, idempotency_key, request_hash, created_at)
        values (p_tenant_id, v_parent.user_id, p_run_id, v_parent.id, v_parent.root_id, v_parent.depth + 1,
            case when num_nonnulls(v_parent.max_requests, v_parent.max_tool_calls, v_parent.max_concurrent) > 0 then v_parent.counted_by || v_parent.id else v_parent.counted_by end,
            v_tokens, v_node.wrap_up_tokens, v_node.estimated_tokens, least(v_node.max_requests, v_parent.max_requests), least(v_node.max_tool_calls, v_parent.max_tool_calls),
            least(v_node.max_concurrent, v_parent.max_concurrent), least(v_node.expires_at, v_parent.expires_at), p_idempotency_key, v_hash, v_node.created_at)
        returning * into v_node;
    return vanilla.allocation_json(v_node) || '{"replayed": false}';
end
$f$;
comment on function vanilla.allocation_carve(uuid, uuid, bigint, jsonb, timestamptz, uuid, text) is
    'Carves a child out of what an allocation has left (without a number all of it); it gets the lesser of its limits and the parent''s, and ends no later.';

create or replace function vanilla.release_allocation_holds(p_tenant_id uuid, p_allocation_ids uuid[], p_until timestamptz default 'infinity', p_hold_id uuid default null)
returns integer language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_released integer;
begin
    with released as (
        update public.allocation_holds h set state = 'released', closed_at = vanilla.clock()
            where h.tenant_id = p_tenant_id and h.allocation_id = any (p_allocation_ids) and h.state = 'open' and h.expires_at <= p_until
              and (h.id = p_hold_id or p_hold_id is null)
            returning h.allocation_id, h.amount, h.wrap_up),
    by_node as (
        select a.id, a.counted_by, sum(r.amount) as amount, count(*) as n, bool_or(r.wrap_up) as wrap_up from released r
            join public.resource_allocations a on a.tenant_id = p_tenant_id and a.id = r.allocation_id group by a.id, a.counted_by),
    changed as (
        select c.id, sum(c.amount)::bigint as amount, sum(c.n)::bigint as n, bool_or(c.wrap_up) as wrap_up from (
            select b.id, b.amount, b.n, b.wrap_up from by_node b
            union all
            select c.id, 0, b.n, false from by_node b cross join lateral unnest(b.counted_by) c (id)) c group by c.id),
    written as (
        update public.resource_allocations a set held_tokens = a.held_tokens - c.amount, open_holds = a.open_holds - c.n,
                wrapped_up_at = case when c.wrap_up then null else a.wrapped_up_at end
            from changed c where a.tenant_id = p_tenant_id and a.id = c.id)
    select count(*) into v_released from released;
    return v_released;
end
$f$;
comment on function vanilla.release_allocation_holds(uuid, uuid[], timestamptz, uuid) is
    'Gives back what steps of locked allocations hold: all that is open, that had to end by p_until, or one. Returns how many.';

create or replace function vanilla.allocation_hold(p_tenant_id uuid, p_allocation_id uuid, p_step text, p_tokens bigint, p_ttl interval default '10 minutes',
    p_call jsonb default null, p_wrap_up boolean default false, p_execution_id uuid default null, p_lease bigint default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_node public.resource_allocations := vanilla.lock_allocation(p_tenant_id, p_allocation_id);
    v_now timestamptz := vanilla.clock();
    v_hold public.allocation_holds;
    v_full public.resource_allocations;
begin
    if p_step is null or p_step = '' or length(p_step) > 255 then
        perform vanilla.refuse('VS400', 'a step has a name of 1 to 255 characters', '{"param": "step"}');
    elsif p_tokens is null or p_tokens not between 0 and 1000000000000000 then
        perform vanilla.refuse('VS400', 'a step holds 0 to 1,000,000,000,000,000 tokens', '{"param": "tokens"}');
    elsif p_ttl is null or p_ttl <= interval '0' then
        perform vanilla.refuse('VS400', 'a hold lasts for a while', '{"param": "ttl"}');
    end if;
    select * into v_hold from public.allocation_holds h
        where h.tenant_id = p_tenant_id and h.allocation_id = p_allocation_id and h.step = p_step and h.state <> 'released';
    if v_hold.state = 'settled' then return vanilla.allocation_hold_json(v_hold, v_node, true); end if;
    perform vanilla.require_allocation(v_node);
    if v_hold.state = 'open' then      -- who begins a step anew after a crash has what it had
        update public.allocation_holds h set expires_at = greatest(h.expires_at, least(v_now + p_ttl, v_node.expires_at)), lease = coalesce(p_lease, h.lease)
            where h.tenant_id = p_tenant_id and h.id = v_hold.id returning * into v_hold;
        return vanilla.allocation_hold_json(v_hold, v_node, true);
    end if;
    if p_tokens > vanilla.allocation_left(v_node, p_wrap_up) or v_node.open_holds >= v_node.max_concurrent then
        -- what ran out returns at the first touch that needs it
        perform vanilla.release_allocation_holds(p_tenant_id, array[p_allocation_id], v_now);
        select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id;
    end if;
    if v_node.overrun_tokens > 0 or v_node.wrapped_up_at is not null or p_tokens > vanilla.allocation_left(v_node, p_wrap_up) then
        perform vanilla.refuse_step(v_node, 'budget_exhausted', jsonb_build_object('needed', p_tokens, 'wrapped_up', v_node.wrapped_up_at is not null));
    end if;
    select * into v_full from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = any (v_node.counted_by || v_node.id)
        and (a.requests >= a.max_requests or a.open_holds >= a.max_concurrent) order by a.depth limit 1;
    if found then
        perform vanilla.refuse_step(v_full, case when v_full.requests >= v_full.max_requests then 'max_requests' else 'max_concurrent' end);
    end if;
    if v_node.counted_by <> '{}' then
        update public.resource_allocations a set requests = a.requests + 1, open_holds = a.open_holds + 1 where a.tenant_id = p_tenant_id and a.id = any (v_node.counted_by);
    end if;
    update public.resource_allocations a set requests = a.requests + 1, open_holds = a.open_holds + 1, held_tokens = a.held_tokens + p_tokens,
            wrapped_up_at = case when p_wrap_up then v_now end
        where a.tenant_id = p_tenant_id and a.id = p_allocation_id returning * into v_node;
    insert into public.allocation_holds as h (tenant_id, allocation_id, user_id, step, amount, wrap_up, execution_id, lease, call, expires_at, created_at)
        values (p_tenant_id, p_allocation_id, v_node.user_id, p_step, p_tokens, p_wrap_up, p_execution_id, p_lease, p_call, least(v_now + p_ttl, v_node.expires_at), v_now)
        returning * into v_hold;
    return vanilla.allocation_hold_json(v_hold, vanilla.notify_allocation(v_node), false);
end
$f$;
comment on function vanilla.allocation_hold(uuid, uuid, text, bigint, interval, jsonb, boolean, uuid, bigint) is
    'Holds tokens of an allocation for a step. A step that has a hold gets the same one, one that is settled its settlement. p_wrap_up is the one last turn, which may take what is kept for it.';

-- The one place where tokens of a tree are spent. Its hold in the wallet is locked and alive, or p_drawn is 0.
create or replace function vanilla.draw_allocation(p_wallet_hold public.user_token_holds, p_step public.allocation_holds, p_drawn bigint, p_beyond bigint, p_late boolean, p_reason text)
returns uuid language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_common public.user_token_ledger;
    v_entry public.user_token_ledger;
    v_wallet public.user_token_wallets;
    v_before bigint;
    v_paid bigint;
begin
    if p_drawn > 0 then
        update public.user_token_holds h set amount = h.amount - p_drawn, requested = h.requested - p_drawn, settled = coalesce(h.settled, 0) + p_drawn
            where h.tenant_id = p_wallet_hold.tenant_id and h.id = p_wallet_hold.id;
    end if;
    v_common := row(p_wallet_hold.tenant_id, p_wallet_hold.user_id, null, null, null, 0, -p_drawn, null, null, null, 'settle', p_reason, 'allocation',
        case when p_step.call ? 'workflow_execution_id' then 'workflow_execution' else 'resource_allocation' end,
        coalesce((p_step.call ->> 'workflow_execution_id')::uuid, p_step.allocation_id), p_step.execution_id, p_wallet_hold.id, null, null, null, null,
        jsonb_build_object('held', p_step.amount, 'actual', p_drawn + p_beyond, 'final', false, 'step', p_step.step, 'allocation_hold', p_step.id)
            || case when p_late then '{"late": true}'::jsonb else '{}' end, null)::public.user_token_ledger;
    if p_beyond = 0 then
        v_entry := v_common;
        v_entry.id := vanilla.uuid7();
        v_entry := vanilla.move_tokens(v_entry, p_drawn, p_wallet_hold.epoch);
        if v_entry.seq is not null then return v_entry.id; end if;
    end if;
    v_wallet := vanilla.lock_wallet(p_wallet_hold.tenant_id, p_wallet_hold.user_id);
    v_before := v_wallet.available_tokens - v_wallet.borrowed_tokens;
    v_paid := least(p_beyond, v_wallet.available_tokens);
    v_wallet.available_tokens := v_wallet.available_tokens - v_paid;
    v_wallet.burn := v_wallet.burn + v_paid;
    v_wallet.reserved_tokens := v_wallet.reserved_tokens - p_drawn;
    v_wallet.spent_tokens := v_wallet.spent_tokens + p_drawn + p_beyond;
    v_entry := v_common;
    v_entry.amount := v_wallet.available_tokens - v_wallet.borrowed_tokens - v_before;
    v_entry := vanilla.post_entry(v_wallet, v_entry);
    if p_beyond > v_paid then
        v_wallet := vanilla.read_wallet(v_wallet.tenant_id, v_wallet.user_id);
        v_wallet.borrowed_tokens := v_wallet.borrowed_tokens + p_beyond - v_paid;
        v_entry := v_common;
        v_entry.direction := 'debt';
        v_entry.amount := v_paid - p_beyond;
        v_entry.reserved_amount := 0;
        v_entry := vanilla.post_entry(v_wallet, v_entry);
    end if;
    return v_entry.id;
end
$f$;
comment on function vanilla.draw_allocation(public.user_token_holds, public.allocation_holds, bigint, bigint, boolean, text) is
    'Charges a step: p_drawn from the tree''s hold, p_beyond from what the wallet has and beyond that as debt. One ledger row, and one more for debt; returns the last one''s id.';

create or replace function vanilla.allocation_settle(p_tenant_id uuid, p_hold_id uuid, p_actual bigint, p_usage jsonb default '{}', p_reason text default 'agent step') returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_step public.allocation_holds;
    v_node public.resource_allocations;
    v_wallet_hold public.user_token_holds;
    v_open boolean;
    v_drawn bigint := 0;
    v_beyond bigint;
begin
    if p_actual is null or p_actual not between 0 and 1000000000000000 then
        perform vanilla.refuse('VS400', 'the actual amount is 0 to 1,000,000,000,000,000 tokens', '{"param": "actual"}');
    elsif jsonb_typeof(p_usage) is distinct from 'object' or octet_length(p_usage::text) > 65536 then
        perform vanilla.refuse('VS400', 'usage is a JSON object of at most 64 KiB', '{"param": "usage"}');
    end if;
    select * into v_step from public.allocation_holds h where h.tenant_id = p_tenant_id and h.id = p_hold_id;
    if not found then perform vanilla.refuse('VS404', 'no such hold', jsonb_build_object('hold_id', p_hold_id)); end if;
    v_node := vanilla.lock_allocation(p_tenant_id, v_step.allocation_id);
    select * into v_step from public.allocation_holds h where h.tenant_id = p_tenant_id and h.id = p_hold_id;
    -- What was released and used something after all is charged, unless another attempt of the step stands in its place: a step is never paid twice.
    if v_step.state = 'settled' or v_step.state = 'released' and (p_actual = 0 or exists (select from public.allocation_holds h
            where h.tenant_id = p_tenant_id and h.allocation_id = v_step.allocation_id and h.step = v_step.step and h.state <> 'released')) then
        return vanilla.allocation_hold_json(v_step, v_node, true);
    end if;
    v_open := v_step.state = 'open';
    select h.* into v_wallet_hold from public.resource_allocations r join public.user_token_holds h on h.tenant_id = r.tenant_id and h.id = r.hold_id
        where r.tenant_id = p_tenant_id and r.id = v_node.root_id for update of h;
    if v_node.state = 'open' and v_wallet_hold.state = 'open' then
        v_drawn := least(p_actual, case when v_open then v_step.amount else 0 end + vanilla.allocation_left(v_node, true));
    end if;
    v_beyond := p_actual - v_drawn;
    if p_actual > 0 then
        perform vanilla.draw_allocation(v_wallet_hold, v_step, v_drawn, v_beyond, not v_open or v_wallet_hold.state <> 'open', coalesce(p_reason, 'agent step'));
    end if;
    update public.allocation_holds h set state = 'settled', settled = p_actual, overrun = v_beyond, usage = p_usage, closed_at = vanilla.clock()
        where h.tenant_id = p_tenant_id and h.id = p_hold_id returning * into v_step;
    if v_open and v_node.counted_by <> '{}' then
        update public.resource_allocations a set open_holds = a.open_holds - 1 where a.tenant_id = p_tenant_id and a.id = any (v_node.counted_by);
    end if;
    update public.resource_allocations a set held_tokens = a.held_tokens - case when v_open then v_step.amount else 0 end, open_holds = a.open_holds - v_open::integer,
            spent_tokens = a.spent_tokens + v_drawn, overrun_tokens = a.overrun_tokens + v_beyond
        where a.tenant_id = p_tenant_id and a.id = v_node.id returning * into v_node;
    if v_beyond > 0 then
        perform vanilla.emit_event(p_tenant_id, 'allocation.overrun', v_node.user_id, vanilla.allocation_json(v_node) || jsonb_build_object('step', v_step.step, 'beyond', v_beyond));
    end if;
    return vanilla.allocation_hold_json(v_step, vanilla.notify_allocation(v_node), false);
end
$f$;
comment on function vanilla.allocation_settle(uuid, uuid, bigint, jsonb, text) is
    'Charges a step once; again it answers the same. The rest of its hold returns to the allocation. What is above the hold is paid from what the allocation has left, beyond that by the wallet, and then the allocation takes no further hold. The state released: nothing was charged.';

create or replace function vanilla.allocation_release(p_tenant_id uuid, p_hold_id uuid) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_step public.allocation_holds;
    v_released integer;
begin
    select * into v_step from public.allocation_holds h where h.tenant_id = p_tenant_id and h.id = p_hold_id;
    if not found then perform vanilla.refuse('VS404', 'no such hold', jsonb_build_object('hold_id', p_hold_id)); end if;
    perform vanilla.lock_allocation(p_tenant_id, v_step.allocation_id);
    v_released := vanilla.release_allocation_holds(p_tenant_id, array[v_step.allocation_id], p_hold_id => p_hold_id);
    select * into v_step from public.allocation_holds h where h.tenant_id = p_tenant_id and h.id = p_hold_id;
    return (select vanilla.allocation_hold_json(v_step, a, v_released = 0) from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = v_step.allocation_id);
end
$f$;
comment on function vanilla.allocation_release(uuid, uuid) is
    'Gives what a step holds back to its allocation. A step that is settled stays so; what a released one used after all is charged when it is settled.';

create or replace function vanilla.allocation_count_tool_call(p_tenant_id uuid, p_allocation_id uuid, p_calls integer default 1) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_node public.resource_allocations := vanilla.lock_allocation(p_tenant_id, p_allocation_id);
    v_full public.resource_allocations;
begin
    if p_calls is null or p_calls not between 1 and 1000000 then perform vanilla.refuse('VS400', 'tool calls are counted from 1 on', '{"param": "calls"}'); end if;
    perform vanilla.require_allocation(v_node);
    select * into v_full from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = any (v_node.counted_by || v_node.id)
        and a.tool_calls + p_calls > a.max_tool_calls order by a.depth limit 1;
    if found then perform vanilla.refuse_step(v_full, 'max_tool_calls', jsonb_build_object('needed', p_calls)); end if;
    update public.resource_allocations a set tool_calls = a.tool_calls + p_calls where a.tenant_id = p_tenant_id and a.id = any (v_node.counted_by || v_node.id);
    return jsonb_build_object('allocation_id', v_node.id, 'tool_calls', v_node.tool_calls + p_calls, 'max_tool_calls', v_node.max_tool_calls);
end
$f$;
comment on function vanilla.allocation_count_tool_call(uuid, uuid, integer) is 'Counts tool calls before they are made, or refuses them all; free of tokens.';

create or replace function vanilla.release_root(p_root public.resource_allocations, p_reason text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_hold public.user_token_holds;
    v_entry public.user_token_ledger;
begin
    select * into v_hold from public.user_token_holds h where h.tenant_id = p_root.tenant_id and h.id = p_root.hold_id and h.state = 'open' for update;
    if not found then return; end if;
    v_entry.reason := p_reason;
    v_entry.source := 'allocation';
    v_entry.reference_type := 'resource_allocation';
    v_entry.reference_id := p_root.id;
    perform vanilla.release_tokens(vanilla.lock_wallet(p_root.tenant_id, p_root.user_id), v_hold, v_entry);
end
$f$;
comment on function vanilla.release_root(public.resource_allocations, text) is 'Returns what a tree has not spent to its wallet, unless the wallet has it already.';

create or replace function vanilla.close_node(p_tenant_id uuid, p_allocation_id uuid, p_state text, p_reason text) returns public.resource_allocations
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_node public.resource_allocations;
begin
    update public.resource_allocations a set state = p_state, closed_at = vanilla.clock() where a.tenant_id = p_tenant_id and a.id = p_allocation_id returning * into v_node;
    if v_node.parent_id is null then
        perform vanilla.release_root(v_node, p_reason);
    else
        update public.resource_allocations a set carved_tokens = a.carved_tokens - v_node.budget_tokens, spent_tokens = a.spent_tokens + v_node.spent_tokens
            where a.tenant_id = p_tenant_id and a.id = v_node.parent_id;
    end if;
    return v_node;
end
$f$;
comment on function vanilla.close_node(uuid, uuid, text, text) is
    'Ends a locked allocation with nothing open in it: what is left returns to its locked parent, where what it spent counts as spent, or to the wallet.';

create or replace function vanilla.allocation_close(p_tenant_id uuid, p_allocation_id uuid) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_node public.resource_allocations := vanilla.lock_allocation(p_tenant_id, p_allocation_id, true);
    v_open bigint;
begin
    if v_node.state <> 'open' then return vanilla.allocation_json(v_node) || '{"replayed": true}'; end if;
    perform vanilla.release_allocation_holds(p_tenant_id, array[p_allocation_id], vanilla.clock());
    select count(*) into v_open from public.allocation_holds h where h.tenant_id = p_tenant_id and h.allocation_id = p_allocation_id and h.state = 'open';
    if v_open > 0 or v_node.carved_tokens > 0 then
        perform vanilla.refuse('VS409', 'the allocation has steps or children that are open', vanilla.allocation_json(v_node)
            || jsonb_build_object('reason', 'open', 'open_holds', v_open), 'Settle or release its steps and close its children first.');
    end if;
    return vanilla.allocation_json(vanilla.close_node(p_tenant_id, p_allocation_id, 'closed', 'allocation closed')) || '{"replayed": false}';
end
$f$;
comment on function vanilla.allocation_close(uuid, uuid) is
    'Closes an allocation that has no open steps and children: what it did not spend returns to its parent, of a root to the wallet.';

create or replace function vanilla.allocation_end(p_tenant_id uuid, p_allocation_id uuid, p_state text default 'closed', p_reason text default 'allocation ended', p_skip boolean default false)
returns boolean language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_ids uuid[] := vanilla.lock_subtree(p_tenant_id, p_allocation_id, p_skip);
    v_node public.resource_allocations;
    v_id uuid;
begin
    if v_ids is null then return false; end if;
    select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id;
    if v_node.state <> 'open' then return false; end if;
    if p_skip and v_node.hold_id is not null then      -- who has the hold may wait for the wallet: it is passed by before anything is written
        perform from public.user_token_holds h where h.tenant_id = p_tenant_id and h.id = v_node.hold_id for update skip locked;
        if not found then return false; end if;
    end if;
    perform vanilla.release_allocation_holds(p_tenant_id, v_ids);
    for v_id in select a.id from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = any (v_ids) order by a.depth desc, a.id loop
        perform vanilla.close_node(p_tenant_id, v_id, p_state, p_reason);
    end loop;
    return true;
end
$f$;
comment on function vanilla.allocation_end(uuid, uuid, text, text, boolean) is
    'Ends an allocation and all below it, for a run that ends: open steps are released, and what they used is charged when they are settled. False when it had ended, or, with p_skip, when somebody is at it.';

create or replace function vanilla.allocation_top_up(p_tenant_id uuid, p_allocation_id uuid, p_tokens bigint, p_idempotency_key text default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tokens bigint := vanilla.check_amount(p_tokens);
    v_node public.resource_allocations;
    v_parent public.resource_allocations;
    v_hold public.user_token_holds;
    v_wallet public.user_token_wallets;
    v_entry public.user_token_ledger;
begin
    if v_tokens < 0 then perform vanilla.refuse('VS400', 'tokens are added, not taken', '{"param": "tokens"}'); end if;
    if p_idempotency_key is not null then perform vanilla.check_key(p_idempotency_key); end if;
    v_node := vanilla.lock_allocation(p_tenant_id, p_allocation_id, true);
    if v_node.top_ups ? p_idempotency_key then
        if v_node.top_ups -> p_idempotency_key <> to_jsonb(v_tokens) then
            perform vanilla.refuse('VS410', 'this idempotency key was used with another body', jsonb_build_object('allocation_id', v_node.id), 'Use a new key for a new operation.');
        end if;
        return vanilla.allocation_json(v_node) || '{"replayed": true}';
    end if;
    perform vanilla.require_allocation(v_node);
    if octet_length(v_node.top_ups::text) > 60000 then
        perform vanilla.refuse('VS409', 'the allocation was topped up too often', jsonb_build_object('allocation_id', v_node.id), 'Open another allocation.');
    end if;
    if v_node.parent_id is not null then
        select * into v_parent from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = v_node.parent_id;
        if v_parent.overrun_tokens > 0 or v_parent.wrapped_up_at is not null or v_tokens > vanilla.allocation_left(v_parent) then
            perform vanilla.refuse_step(v_parent, 'budget_exhausted', jsonb_build_object('needed', v_tokens));
        end if;
        update public.resource_allocations a set carved_tokens = a.carved_tokens + v_tokens where a.tenant_id = p_tenant_id and a.id = v_parent.id;
    else
        select * into v_hold from public.user_token_holds h where h.tenant_id = p_tenant_id and h.id = v_node.hold_id for update;
        v_wallet := vanilla.require_tokens(vanilla.lock_wallet(p_tenant_id, v_node.user_id), v_tokens);
        v_tokens := least(v_tokens, v_wallet.available_tokens);
        if v_tokens = 0 then
            perform vanilla.refuse('VS402', 'not enough tokens', jsonb_build_object('needed', p_tokens, 'available', 0, 'resets_at', v_wallet.next_reset_at),
                'An admin of the tenant can add tokens or change the level.');
        end if;
        v_wallet.available_tokens := v_wallet.available_tokens - v_tokens;
        v_wallet.reserved_tokens := v_wallet.reserved_tokens + v_tokens;
        v_wallet.burn := v_wallet.burn + v_tokens;
        v_entry.direction := 'reserve';
        v_entry.amount := -v_tokens;
        v_entry.reserved_amount := v_tokens;
        v_entry.reason := 'allocation topped up';
        v_entry.source := 'allocation';
        v_entry.reference_type := 'resource_allocation';
        v_entry.reference_id := v_node.id;
        v_entry.hold_id := v_hold.id;
        perform vanilla.post_entry(v_wallet, v_entry);
        update public.user_token_holds h set amount = h.amount + v_tokens, requested = h.requested + v_tokens
            where h.tenant_id = p_tenant_id and h.id = v_hold.id and h.state = 'open';
        if not found then perform vanilla.refuse_step(v_node, 'deadline'); end if;      -- it ran out this moment
    end if;
    update public.resource_allocations a set budget_tokens = a.budget_tokens + v_tokens,
            notified_at = case when (a.spent_tokens + a.held_tokens) * 5 >= (a.budget_tokens + v_tokens) * 4 then a.notified_at end,
            top_ups = case when p_idempotency_key is null then a.top_ups else a.top_ups || jsonb_build_object(p_idempotency_key, p_tokens) end
        where a.tenant_id = p_tenant_id and a.id = p_allocation_id returning * into v_node;
    perform vanilla.audit(p_tenant_id, 'allocation.topped_up', 'allocation', v_node.id, jsonb_build_object('tokens', v_tokens, 'budget', v_node.budget_tokens));
    return vanilla.allocation_json(v_node) || '{"replayed": false}';
end
$f$;
comment on function vanilla.allocation_top_up(uuid, uuid, bigint, text) is
    'Adds tokens to an allocation''s budget: to a root out of the wallet into the same hold, to a child out of what its parent has left. Audited.';

create or replace function vanilla.allocation_reap(p_limit integer default 1000) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_steps integer := 0;
    v_ended integer := 0;
    v record;
begin
    for v in select distinct h.tenant_id, h.allocation_id from public.allocation_holds h where h.state = 'open' and h.expires_at <= v_now limit p_limit loop
        if (vanilla.lock_allocation(v.tenant_id, v.allocation_id, p_skip => true)).id is not null then
            v_steps := v_steps + vanilla.release_allocation_holds(v.tenant_id, array[v.allocation_id], v_now);
        end if;
    end loop;
    -- those whose wallet has taken its tokens back have ended already: it is written down. Wallets are waited for, in their order.
    for v in select a.tenant_id, a.id, h.state as hold_state, u.status from public.resource_allocations a
            left join public.user_token_holds h on h.tenant_id = a.tenant_id and h.id = a.hold_id
            left join public.users u on u.tenant_id = a.tenant_id and u.id = a.user_id
            where a.state = 'open' and (a.expires_at <= v_now or a.hold_id is not null and (h.state is distinct from 'open' or u.status = 'deleted'))
            order by a.tenant_id, a.user_id, a.root_id, a.depth, a.id limit p_limit loop
        v_ended := v_ended + vanilla.allocation_end(v.tenant_id, v.id, case when v.hold_state = 'released' or v.status = 'deleted' then 'closed' else 'expired' end,
            'allocation expired', true)::integer;
    end loop;
    return jsonb_build_object('steps', v_steps, 'allocations', v_ended, 'more', greatest(v_steps, v_ended) >= p_limit);
end
$f$;
comment on function vanilla.allocation_reap(integer) is
    'Ends allocations whose time is over or whose hold the wallet has closed, and releases steps that had to be settled by now, of those that nobody is at.';

create or replace function vanilla.job_allocations(p_limit integer) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp as $f$ select vanilla.allocation_reap(p_limit) $f$;
comment on function vanilla.job_allocations(integer) is 'Job: ends up to p_limit allocations whose time is over and releases steps that were not settled in time.';

create or replace function vanilla.forget_allocations(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_roots uuid[] := array(select a.id from public.resource_allocations a where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and a.parent_id is null
        and a.state = 'open' order by a.id);
    v_id uuid;
begin
    -- all of them before their holds, and those before the wallet
    foreach v_id in array v_roots loop perform vanilla.lock_subtree(p_user.tenant_id, v_id); end loop;
    perform from public.user_token_holds h where h.tenant_id = p_user.tenant_id and h.id in (
        select a.hold_id from public.resource_allocations a where a.tenant_id = p_user.tenant_id and a.id = any (v_roots)) order by h.id for update;
    foreach v_id in array v_roots loop perform vanilla.allocation_end(p_user.tenant_id, v_id, 'closed', 'erased'); end loop;
    update public.allocation_holds h set call = null, usage = '{}' from public.resource_allocations a
        where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and h.tenant_id = a.tenant_id and h.allocation_id = a.id and (h.call is not null or h.usage <> '{}');
    update public.resource_allocations a set idempotency_key = null, request_hash = null, top_ups = '{}'
        where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and (a.idempotency_key is not null or a.top_ups <> '{}');
end
$f$;
comment on function vanilla.forget_allocations(public.users) is 'Ends the allocations of a user who is being erased; what their steps still use is charged as debt. Amounts stay.';

-- for people, and for programs with a context ----------------------------------------------------------------------
create or replace function vanilla.own_allocation(p_allocation_id uuid, p_tenant_id uuid) returns public.resource_allocations
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tenant uuid := vanilla.member_tenant(p_tenant_id);
    v_mine uuid := case when vanilla.claim(5) = 'user' then vanilla.claim(4)::uuid end;
    v_node public.resource_allocations;
begin
    select a.* into v_node from public.tenants t
        cross join lateral (select x.* from public.resource_allocations x where x.tenant_id = t.tenant_id and x.id = p_allocation_id offset 0) a
        where (t.tenant_id = v_tenant or v_tenant is null) and (a.user_id = v_mine or v_mine is null);
    if not found then perform vanilla.refuse('VS404', 'no such allocation', jsonb_build_object('allocation_id', p_allocation_id)); end if;
    return v_node;
end
$f$;
comment on function vanilla.own_allocation(uuid, uuid) is 'An allocation of the caller, or for an admin of the tenant, or for the operator any.';

create or replace function vanilla.own_allocation_hold(p_hold_id uuid, p_tenant_id uuid) returns public.allocation_holds
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_hold public.allocation_holds;
begin
    select h.* into v_hold from public.tenants t
        cross join lateral (select x.* from public.allocation_holds x where x.tenant_id = t.tenant_id and x.id = p_hold_id offset 0) h
        where t.tenant_id = v_tenant or v_tenant is null;
    if not found then perform vanilla.refuse('VS404', 'no such hold', jsonb_build_object('hold_id', p_hold_id)); end if;
    return v_hold;
end
$f$;
comment on function vanilla.own_allocation_hold(uuid, uuid) is 'A step''s hold of the acting tenant: admins, services and the operator, for a user could settle their own for nothing.';

create or replace function public.allocation_open(p_tokens bigint, p_limits jsonb default '{}', p_expires_at timestamptz default null,
    p_idempotency_key text default null, p_user_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
begin
    return vanilla.allocation_open(v_user.tenant_id, v_user.id, p_tokens, p_limits, p_expires_at, null, p_idempotency_key);
end
$f$;
comment on function public.allocation_open(bigint, jsonb, timestamptz, text, uuid, uuid) is
    'Opens a budget over the caller''s wallet, or that of a user whom an admin names, until expires_at (an hour). Limits: requests, tool_calls, concurrency, wall_ms, wrap_up_tokens, estimated_tokens.';

create or replace function public.allocation_carve(p_parent_id uuid, p_tokens bigint default null, p_limits jsonb default '{}', p_expires_at timestamptz default null,
    p_idempotency_key text default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_parent public.resource_allocations := vanilla.own_allocation(p_parent_id, p_tenant_id);
begin
    return vanilla.allocation_carve(v_parent.tenant_id, v_parent.id, p_tokens, p_limits, p_expires_at, null, p_idempotency_key);
end
$f$;
comment on function public.allocation_carve(uuid, bigint, jsonb, timestamptz, text, uuid) is
    'Carves a child out of what an allocation has left, without a number all of it. Limits and end are at most the parent''s. Owner, admin or operator.';

create or replace function public.allocation_hold(p_allocation_id uuid, p_step text, p_tokens bigint, p_ttl interval default '10 minutes', p_wrap_up boolean default false,
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    perform vanilla.acting(p_tenant_id);
    return vanilla.allocation_hold((vanilla.own_allocation(p_allocation_id, p_tenant_id)).tenant_id, p_allocation_id, p_step, p_tokens, p_ttl, null, coalesce(p_wrap_up, false));
end
$f$;
comment on function public.allocation_hold(uuid, text, bigint, interval, boolean, uuid) is
    'Holds tokens of an allocation for a step: the same again while it is open, its settlement once it has one. Refused with a reason: budget_exhausted, max_requests, max_concurrent, deadline, closed. Admin, service or operator.';

create or replace function public.allocation_settle(p_hold_id uuid, p_actual bigint, p_usage jsonb default '{}', p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_hold public.allocation_holds := vanilla.own_allocation_hold(p_hold_id, p_tenant_id);
begin
    if v_hold.call is not null then
        perform vanilla.refuse('VS409', 'the hold belongs to a model call', jsonb_build_object('hold_id', v_hold.id, 'execution_id', v_hold.execution_id),
            'It is settled when the call ends. allocation_release returns the tokens now; what the call uses is charged then.');
    end if;
    return vanilla.allocation_settle(v_hold.tenant_id, v_hold.id, p_actual, p_usage);
end
$f$;
comment on function public.allocation_settle(uuid, bigint, jsonb, uuid) is
    'Charges what a step used, once; the rest returns to its allocation, what is beyond both is paid by the wallet. Admin, service or operator.';

create or replace function public.allocation_release(p_hold_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_hold public.allocation_holds := vanilla.own_allocation_hold(p_hold_id, p_tenant_id);
begin
    return vanilla.allocation_release(v_hold.tenant_id, v_hold.id);
end
$f$;
comment on function public.allocation_release(uuid, uuid) is 'Returns what a step holds to its allocation. Admin, service or operator.';

create or replace function public.allocation_count_tool_call(p_allocation_id uuid, p_calls integer default 1, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    perform vanilla.acting(p_tenant_id);
    return vanilla.allocation_count_tool_call((vanilla.own_allocation(p_allocation_id, p_tenant_id)).tenant_id, p_allocation_id, p_calls);
end
$f$;
comment on function public.allocation_count_tool_call(uuid, integer, uuid) is 'Counts tool calls on an allocation and whoever counts for it, or refuses them (max_tool_calls). Admin, service or operator.';

create or replace function public.allocation_close(p_allocation_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    return vanilla.allocation_close((vanilla.own_allocation(p_allocation_id, p_tenant_id)).tenant_id, p_allocation_id);
end
$f$;
comment on function public.allocation_close(uuid, uuid) is
    'Closes an allocation without open steps and children; what it did not spend returns to its parent or the wallet. Again it answers the same. Owner, admin or operator.';

create or replace function public.allocation_top_up(p_allocation_id uuid, p_tokens bigint, p_idempotency_key text default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    return vanilla.allocation_top_up((vanilla.own_allocation(p_allocation_id, p_tenant_id)).tenant_id, p_allocation_id, p_tokens, p_idempotency_key);
end
$f$;
comment on function public.allocation_top_up(uuid, bigint, text, uuid) is
    'Adds tokens to a budget, from the wallet or from what the parent has left. Owner, admin or operator; written to the audit log.';

create or replace function public.allocation_reap(p_limit integer default 1000) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    if not vanilla.caller_is_operator() then perform vanilla.refuse('VS403', 'only the operator may do this', '{"need": "operator"}'); end if;
    return vanilla.allocation_reap(p_limit);
end
$f$;
comment on function public.allocation_reap(integer) is 'Ends what is past its time at once, whatever the schedule of the job allocations says. Operator.';

create or replace function public.allocation_tree(p_allocation_id uuid, p_tenant_id uuid default null)
returns table (id uuid, parent_id uuid, depth smallint, run_id uuid, state text, budget_tokens bigint, carved_tokens bigint, held_tokens bigint, spent_tokens bigint, left_tokens bigint,
    overrun_tokens bigint, estimated_tokens bigint, requests bigint, max_requests bigint, tool_calls bigint, max_tool_calls bigint, open_holds bigint, max_concurrent bigint,
    expires_at timestamptz, notified_at timestamptz, wrapped_up_at timestamptz, closed_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_node public.resource_allocations := vanilla.own_allocation(p_allocation_id, p_tenant_id);
begin
    return query with recursive tree as (
            select a, array[a.id] as way from public.resource_allocations a where a.tenant_id = v_node.tenant_id and a.id = v_node.id
            union all
            select c, t.way || c.id from tree t join public.resource_allocations c on c.tenant_id = v_node.tenant_id and c.parent_id = (t.a).id)
        select (t.a).id, (t.a).parent_id, (t.a).depth, (t.a).run_id, (t.a).state, (t.a).budget_tokens, (t.a).carved_tokens, (t.a).held_tokens, (t.a).spent_tokens,
            vanilla.allocation_left(t.a, true), (t.a).overrun_tokens, (t.a).estimated_tokens, (t.a).requests, (t.a).max_requests, (t.a).tool_calls, (t.a).max_tool_calls,
            (t.a).open_holds, (t.a).max_concurrent, (t.a).expires_at, (t.a).notified_at, (t.a).wrapped_up_at, (t.a).closed_at
        from tree t order by t.way;
end
$f$;
comment on function public.allocation_tree(uuid, uuid) is
    'An allocation and all below it, each before its children: budget, carved, held, spent, left, overrun, limits and what was used of them. Owner, admin or operator.';

grant execute on function public.allocation_open(bigint, jsonb, timestamptz, text, uuid, uuid), public.allocation_carve(uuid, bigint, jsonb, timestamptz, text, uuid),
    public.allocation_hold(uuid, text, bigint, interval, boolean, uuid), public.allocation_settle(uuid, bigint, jsonb, uuid), public.allocation_release(uuid, uuid),
    public.allocation_count_tool_call(uuid, integer, uuid), public.allocation_close(uuid, uuid), public.allocation_top_up(uuid, bigint, text, uuid),
    public.allocation_tree(uuid, uuid) to vanilla_app, vanilla_operator;
grant execute on function public.allocation_reap(integer) to vanilla_operator;

-- agents -----------------------------------------------------------------------------------------------------------
create or replace function vanilla.agent_limits(p_definition jsonb) returns jsonb language sql immutable
    return '{"tokens": 50000, "turns": 20, "requests": 200, "tool_calls": 100, "children": 20, "depth": 4, "repeats": 3, "seconds": 3600}'::jsonb
        || coalesce(nullif(p_definition -> 'limits', 'null'), '{}');
comment on function vanilla.agent_limits(jsonb) is
    'The limits of a definition, with what it leaves out: tokens of the wallet, turns of the run; model calls, tool calls and children of its tree, its depth; how often the same call may be made; seconds.';

create or replace function vanilla.agent_problem(p_definition jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_most constant jsonb := '{"tokens": 1000000000000, "turns": 1000, "requests": 100000, "tool_calls": 100000, "children": 10000, "depth": 4, "repeats": 1000, "seconds": 86400}';
    v record;
begin
    if jsonb_typeof(p_definition) is distinct from 'object' or octet_length(p_definition::text) > 262144 then
        return 'A definition is a JSON object of at most 256 KiB.';
    elsif coalesce(p_definition ->> 'instructions', '') = '' or coalesce(p_definition ->> 'model', '') = '' then
        return 'An agent has instructions and a model.';
    end if;
    for v in select l.key, l.value from jsonb_each(vanilla.agent_limits(p_definition)) l loop
        if not v_most ? v.key then return format('There is no limit %s.', v.key); end if;
        if jsonb_typeof(v.value) <> 'number' or (v.value #>> '{}')::numeric % 1 <> 0
           or (v.value #>> '{}')::numeric not between (v.key not in ('depth', 'children', 'tool_calls'))::integer and (v_most ->> v.key)::numeric then
            return format('The limit %s is a whole number up to %s.', v.key, v_most ->> v.key);
        end if;
    end loop;
    for v in select r.name, x.value from (values ('handoffs'), ('delegates')) r (name)
            cross join lateral jsonb_array_elements(case when jsonb_typeof(p_definition -> r.name) = 'array' then p_definition -> r.name else '[]' end) x loop
        if coalesce(v.value ->> 'agent', '') !~ '^[a-z0-9][a-z0-9_-]{0,39}(@[1-9][0-9]{0,8})?$' then
            return format('Each of %s names an agent: its slug, or slug@version.', v.name);
        end if;
    end loop;
    return null;
end
$f$;
comment on function vanilla.agent_problem(jsonb) is 'Why a definition makes no agent, as a sentence; null: it does.';

create or replace function vanilla.own_agent(p_agent_id uuid, p_tenant_id uuid) returns public.agents
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.member_tenant(p_tenant_id);
    v_agent public.agents;
begin
    select * into v_agent from public.agents a
        where a.id = p_agent_id and (a.tenant_id = v_tenant or v_tenant is null)
          and (vanilla.claim(5) is distinct from 'user' or a.user_id = vanilla.claim(4)::uuid)
        order by a.tenant_id for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such agent', jsonb_build_object('agent_id', p_agent_id)); end if;
    return v_agent;
end
$f$;
comment on function vanilla.own_agent(uuid, uuid) is 'An agent of the caller, or any of the tenant for an admin, locked; one that is only shared is not theirs to change.';

create or replace function public.save_agent(p_slug text, p_definition jsonb, p_shared boolean default null, p_user_id uuid default null, p_tenant_id uuid default null)
returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_self boolean := vanilla.claim(4) is not null and coalesce(p_user_id, vanilla.claim(4)::uuid) = vanilla.claim(4)::uuid;
    v_tenant uuid := case when v_self then vanilla.own_tenant(p_tenant_id) else vanilla.acting_tenant(p_tenant_id) end;
    v_now timestamptz := vanilla.clock();
    v_problem text := vanilla.agent_problem(p_definition);
    v_hash bytea := sha256(convert_to(p_definition::text, 'UTF8'));
    v_user public.users;
    v_agent public.agents;
    v_most bigint;
begin
    if v_problem is not null then
        perform vanilla.refuse('VS422', 'the agent is not valid', jsonb_build_object('param', 'definition'), v_problem);
    end if;
    if v_tenant is null then v_tenant := (vanilla.find_user(null, p_user_id)).tenant_id; end if;
    select * into v_agent from public.agents a where a.tenant_id = v_tenant and a.slug = p_slug for no key update;
    if found and vanilla.claim(5) = 'user' and v_agent.user_id is distinct from vanilla.claim(4)::uuid then
        perform vanilla.refuse('VS409', format('the name %s is taken', p_slug), '{"param": "slug"}', 'Choose another slug.');
    elsif found and v_agent.user_id <> p_user_id then
        perform vanilla.refuse('VS409', format('%s is another user''s agent', p_slug), '{"param": "user_id"}', 'Leave the user out to change it.');
    elsif v_agent.id is null then
        v_user := vanilla.find_user(v_tenant, coalesce(p_user_id, vanilla.claim(4)::uuid));
        perform vanilla.hold_open(v_user);
        select (l.restrictions ->> 'agents')::bigint into v_most from public.user_token_wallets w
            join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id where w.tenant_id = v_user.tenant_id and w.user_id = v_user.id;
        if v_most is not null then
            perform from public.users u where u.tenant_id = v_user.tenant_id and u.id = v_user.id for no key update;      -- two who make the last one meet here
            if (select count(*) from public.agents a where a.tenant_id = v_user.tenant_id and a.user_id = v_user.id and a.status = 'active') >= v_most then
                perform vanilla.refuse('VS429', format('the level allows %s agents', v_most), jsonb_build_object('restriction', 'agents', 'limit', v_most,
                    'used', v_most, 'resets_at', null), 'Retire one, or ask an admin for another level.');
            end if;
        end if;
    end if;
    begin
        if v_agent.id is null then
            insert into public.agents (tenant_id, user_id, slug, name, description, shared, latest_version, created_at, updated_at)
                values (v_user.tenant_id, v_user.id, p_slug, coalesce(p_definition ->> 'name', p_slug), coalesce(p_definition ->> 'description', ''),
                    coalesce(p_shared, false), 1, v_now, v_now) returning * into v_agent;
        else
            if p_shared <> v_agent.shared then
                update public.agent_versions v set shared = p_shared where v.tenant_id = v_agent.tenant_id and v.agent_id = v_agent.id;
            end if;
            update public.agents a set name = coalesce(p_definition ->> 'name', p_slug), description = coalesce(p_definition ->> 'description', ''),
                    shared = coalesce(p_shared, a.shared), status = 'active', updated_at = v_now
                where a.tenant_id = v_agent.tenant_id and a.id = v_agent.id returning * into v_agent;
            if exists (select from public.agent_versions v where v.tenant_id = v_agent.tenant_id and v.agent_id = v_agent.id and v.version = v_agent.latest_version
                    and v.hash = v_hash) then
                return jsonb_build_object('agent_id', v_agent.id, 'slug', p_slug, 'version', v_agent.latest_version, 'hash', encode(v_hash, 'hex'), 'unchanged', true);
            end if;
            update public.agents a set latest_version = a.latest_version + 1 where a.tenant_id = v_agent.tenant_id and a.id = v_agent.id returning * into v_agent;
        end if;
    exception
        when check_violation or not_null_violation then
            perform vanilla.refuse('VS400', 'the agent is not valid: ' || sqlerrm, '{"param": "slug"}',
                'A slug is 1 to 40 of a-z, 0-9, _ and hyphens; a name has at most 200 characters.');
        when unique_violation then
            perform vanilla.refuse('VS409', format('the name %s is taken', p_slug), '{"param": "slug"}', 'Choose another slug, or save again.');
    end;
    insert into public.agent_versions (tenant_id, agent_id, version, user_id, shared, definition, hash, published_at, published_by)
        values (v_agent.tenant_id, v_agent.id, v_agent.latest_version, v_agent.user_id, v_agent.shared, p_definition, v_hash, v_now, vanilla.claim(4)::uuid);
    perform vanilla.audit(v_agent.tenant_id, 'agent.saved', 'agent', v_agent.id, jsonb_build_object('slug', p_slug, 'version', v_agent.latest_version, 'hash', encode(v_hash, 'hex')));
    return jsonb_build_object('agent_id', v_agent.id, 'slug', p_slug, 'version', v_agent.latest_version, 'hash', encode(v_hash, 'hex'), 'unchanged', false);
end
$f$;
comment on function public.save_agent(text, jsonb, boolean, uuid, uuid) is
    'Makes an agent, or the next version of the one of this slug; the latest text again makes none. Own, or any user''s by an admin. VS422 when the definition is not valid.';

create or replace function public.retire_agent(p_agent_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_agent public.agents := vanilla.own_agent(p_agent_id, p_tenant_id);
begin
    update public.agents a set status = 'retired', updated_at = vanilla.clock() where a.tenant_id = v_agent.tenant_id and a.id = v_agent.id;
    perform vanilla.audit(v_agent.tenant_id, 'agent.retired', 'agent', v_agent.id, jsonb_build_object('slug', v_agent.slug));
    return jsonb_build_object('agent_id', v_agent.id, 'slug', v_agent.slug, 'status', 'retired');
end
$f$;
comment on function public.retire_agent(uuid, uuid) is 'Ends an agent until it is saved again: nothing starts it any more, runs that have begun go on.';

create or replace function vanilla.agent_of(p_tenant_id uuid, p_user_id uuid, p_ref text) returns public.agent_versions
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_agent public.agents;
    v_version public.agent_versions;
begin
    select a.* into v_agent from public.agents a join public.users u on u.tenant_id = p_tenant_id and u.id = p_user_id
        where a.tenant_id = p_tenant_id and a.slug = split_part(p_ref, '@', 1) and (a.shared or a.user_id = p_user_id or u.role <> 'user');
    if not found then perform vanilla.refuse('VS404', format('there is no agent %s', p_ref), jsonb_build_object('agent', p_ref)); end if;
    if v_agent.status = 'retired' then
        perform vanilla.refuse('VS409', format('the agent %s is retired', v_agent.slug), jsonb_build_object('agent', p_ref), 'Save it again to run it.');
    end if;
    select v.* into v_version from public.agent_versions v where v.tenant_id = p_tenant_id and v.agent_id = v_agent.id
        and v.version = case when p_ref like '%@%' then substr(split_part(p_ref, '@', 2), 1, 9)::integer else v_agent.latest_version end;
    if not found then perform vanilla.refuse('VS404', format('there is no agent %s', p_ref), jsonb_build_object('agent', p_ref)); end if;
    return v_version;
end
$f$;
comment on function vanilla.agent_of(uuid, uuid, text) is 'The version that a reference, slug or slug@version, means to a user: of an agent of theirs, a shared one, or any for an admin.';

-- A run's budget is an allocation: of the wallet, or carved out of its parent's. A tenth of it is kept for a last turn.
create or replace function vanilla.open_run_budget(p_run public.agent_runs, p_parent public.agent_runs, p_share bigint, p_exact boolean) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_tokens bigint := (p_run.limits ->> 'tokens')::bigint;
    v_limits jsonb;
    v_opened jsonb;
begin
    if p_parent.id is not null then
        v_tokens := least(v_tokens, p_share);
    elsif not p_exact then      -- the agent's own limit is the most it takes, not what it must have
        v_tokens := least(v_tokens, greatest((vanilla.lock_wallet(p_run.tenant_id, p_run.user_id)).available_tokens, 1));
    end if;
    v_limits := jsonb_build_object('requests', p_run.limits -> 'requests', 'tool_calls', nullif(p_run.limits -> 'tool_calls', '0'), 'wrap_up_tokens', v_tokens / 10);
    if p_parent.id is null then
        v_opened := vanilla.allocation_open(p_run.tenant_id, p_run.user_id, v_tokens, v_limits, p_run.deadline_at, p_run.id);
    else
        v_opened := vanilla.allocation_carve(p_run.tenant_id, p_parent.allocation_id, v_tokens, v_limits, p_run.deadline_at, p_run.id);
    end if;
    return (v_opened ->> 'allocation_id')::uuid;
end
$f$;
comment on function vanilla.open_run_budget(public.agent_runs, public.agent_runs, bigint, boolean) is 'The allocation of a run that begins, of at most p_share tokens when it has a parent.';

create or replace function vanilla.run_budget(p_run public.agent_runs) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
    return (select jsonb_build_object('allocation_id', a.id, 'budget', a.budget_tokens, 'spent', a.spent_tokens, 'held', a.held_tokens, 'carved', a.carved_tokens,
            'left', vanilla.allocation_left(a), 'notified', a.notified_at is not null)
        from public.resource_allocations a where a.tenant_id = p_run.tenant_id and a.id = p_run.allocation_id);
comment on function vanilla.run_budget(public.agent_runs) is 'What a run may still spend, in tokens.';

create or replace function vanilla.count_run_call(p_run public.agent_runs) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if (p_run.limits ->> 'tool_calls')::bigint = 0 then return false; end if;
    perform vanilla.allocation_count_tool_call(p_run.tenant_id, p_run.allocation_id);
    return true;
exception when sqlstate 'VS429' or sqlstate 'VS409' then
    return false;
end
$f$;
comment on function vanilla.count_run_call(public.agent_runs) is 'Counts a tool call on the budget of a run and those above it; false when they have had all of theirs.';

create or replace function vanilla.hold_turn(p_tenant_id uuid, p_step jsonb, p_call jsonb, p_prompt bigint, p_output bigint, p_choices integer, p_clamp boolean, p_ttl interval,
    p_call_id uuid) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_wrap_up boolean := coalesce((p_step ->> 'wrap_up')::boolean, false);
    v_run public.agent_runs;
    v_node public.resource_allocations;
    v_needed bigint := vanilla.call_tokens(p_call, p_prompt, 0, p_output);
    v_weight numeric := (p_call ->> 'output_weight')::numeric;
    v_clamped bigint;
begin
    select * into v_run from public.agent_runs r where r.tenant_id = p_tenant_id and r.id = (p_step ->> 'run_id')::uuid and r.execution_id = (p_step ->> 'execution_id')::uuid
        and r.node = (p_step ->> 'n')::smallint and r.item = coalesce((p_step ->> 'item')::integer, -1) and r.finished_at is null;
    if not found then perform vanilla.refuse('VS409', 'no run of this step is under way', '{"stop_reason": "canceled"}'); end if;
    if v_run.deadline_at <= vanilla.clock() then
        perform vanilla.refuse('VS429', 'the run''s time is over', jsonb_build_object('stop_reason', 'deadline', 'limit', v_run.limits -> 'seconds', 'resets_at', null));
    elsif v_run.turns >= (v_run.limits ->> 'turns')::integer and not v_wrap_up then
        perform vanilla.refuse('VS429', 'the run has had all of its turns', jsonb_build_object('stop_reason', 'max_turns', 'limit', v_run.limits -> 'turns', 'used', v_run.turns,
            'resets_at', null));
    end if;
    v_node := vanilla.lock_allocation(p_tenant_id, v_run.allocation_id);
    if p_clamp and v_needed > vanilla.allocation_left(v_node, v_wrap_up) and v_weight > 0 then
        v_clamped := floor((vanilla.allocation_left(v_node, v_wrap_up) - vanilla.call_tokens(p_call, p_prompt, 0, 0)) / v_weight);
        if v_clamped >= coalesce((vanilla.setting(p_tenant_id, 'gateway.min_output_tokens'))::bigint, 16) * p_choices then
            p_output := v_clamped;
            v_needed := vanilla.call_tokens(p_call, p_prompt, 0, p_output);
        end if;
    end if;
    return vanilla.allocation_hold(p_tenant_id, v_run.allocation_id, p_call_id::text, v_needed, p_ttl, p_call || jsonb_build_object('workflow_execution_id', v_run.execution_id,
            'run_id', v_run.id), v_wrap_up, p_call_id, (p_step ->> 'lease')::bigint)
        || jsonb_build_object('output_limit', p_output, 'clamped', v_clamped is not null);
end
$f$;
comment on function vanilla.hold_turn(uuid, jsonb, jsonb, bigint, bigint, integer, boolean, interval, uuid) is
    'Reserves a model call of a run on its budget, in place of the wallet that has reserved that already; with p_clamp an output of what is left. Refused with a stop_reason or the reason of the allocation.';

create or replace function vanilla.allocation_call(p_tenant_id uuid, p_hold_id uuid) returns public.user_token_holds
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_call public.user_token_holds;
begin
    select h.tenant_id, h.id, h.user_id, h.amount, h.amount, 'resource_allocation', h.allocation_id, h.execution_id, h.call, h.created_at
        into v_call.tenant_id, v_call.id, v_call.user_id, v_call.amount, v_call.requested, v_call.reference_type, v_call.reference_id, v_call.execution_id, v_call.call, v_call.created_at
        from public.allocation_holds h where h.tenant_id = p_tenant_id and h.id = p_hold_id;
    return v_call;
end
$f$;
comment on function vanilla.allocation_call(uuid, uuid) is 'A model call that an allocation holds, in the form of one that the wallet holds.';

create or replace function vanilla.lock_run_money(p_tenants uuid[], p_ids uuid[], p_calls jsonb) returns table (tenant_id uuid, hold_id uuid)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $f$
declare
    v_tenants uuid[];
    v_roots uuid[];
begin
    select array_agg(d.tenant_id), array_agg(d.root_id) into v_tenants, v_roots from (
        select a.tenant_id, a.root_id from unnest(p_tenants, p_ids) e (tenant_id, id)
            cross join lateral (select x.allocation_id from public.agent_runs x where x.tenant_id = e.tenant_id and x.execution_id = e.id and x.finished_at is null offset 0) r
            join public.resource_allocations a on a.tenant_id = e.tenant_id and a.id = r.allocation_id
        union
        select a.tenant_id, a.root_id from jsonb_to_recordset(p_calls) as c (tenant_id uuid, hold_id uuid)
            join public.allocation_holds h on h.tenant_id = c.tenant_id and h.id = c.hold_id
            join public.resource_allocations a on a.tenant_id = h.tenant_id and a.id = h.allocation_id) d;
    if v_roots is null then return; end if;
    perform from public.resource_allocations a join unnest(v_tenants, v_roots) t (tenant_id, root_id) on a.tenant_id = t.tenant_id and a.root_id = t.root_id
        where a.state = 'open' order by a.tenant_id, a.depth, a.id for no key update of a;
    return query select a.tenant_id, a.hold_id from public.resource_allocations a join unnest(v_tenants, v_roots) t (tenant_id, root_id) on a.tenant_id = t.tenant_id and a.id = t.root_id;
end
$f$;
comment on function vanilla.lock_run_money(uuid[], uuid[], jsonb) is
    'Locks the budgets of runs under way in locked executions, and those of the given calls, trees and all; returns their holds in the wallet, which come next.';

create or replace function vanilla.release_run_calls(p_tenant_id uuid, p_execution_id uuid, p_lease bigint) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_hold record;
begin
    for v_hold in select h.id from public.agent_runs r
            join public.allocation_holds h on h.tenant_id = r.tenant_id and h.allocation_id = r.allocation_id and h.state = 'open' and (p_lease is null or h.lease = p_lease)
            where r.tenant_id = p_tenant_id and r.execution_id = p_execution_id and r.finished_at is null order by h.allocation_id, h.id loop
        perform vanilla.allocation_release(p_tenant_id, v_hold.id);
    end loop;
end
$f$;
comment on function vanilla.release_run_calls(uuid, uuid, bigint) is 'Returns what model calls of the runs in an execution, or of one lease, still hold of their budgets.';

create or replace function vanilla.settle_turn(p_run public.agent_runs, p_call jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_settled jsonb;
begin
    v_settled := vanilla.settle_call(p_run.tenant_id, (p_call ->> 'hold_id')::uuid, p_call ->> 'status', (p_call ->> 'input')::bigint, (p_call ->> 'output')::bigint,
        (p_call ->> 'cached')::bigint, (p_call ->> 'reasoning')::bigint, (p_call ->> 'estimated')::boolean, p_call ->> 'error_code', (p_call ->> 'latency_ms')::integer,
        (p_call ->> 'first_token_ms')::integer);
    return jsonb_build_object('charged', coalesce(v_settled -> 'charged', '0'), 'cost_micros', coalesce(v_settled -> 'cost_micros', '0'));
end
$f$;
comment on function vanilla.settle_turn(public.agent_runs, jsonb) is 'Settles the model call of a turn as a worker tells it; tokens and micros of USD.';

-- runs -------------------------------------------------------------------------------------------------------------
-- A run is a step of an execution of 006. One that nobody wrote a workflow for has this one, of a single node.
create or replace function vanilla.agent_flow(p_version public.agent_versions) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_agent public.agents;
    v_definition jsonb;
    v_flow public.workflow_versions;
begin
    if exists (select from public.workflow_versions v where v.tenant_id = p_version.tenant_id and v.workflow_id = p_version.agent_id and v.version = p_version.version) then
        return;
    end if;
    select * into v_agent from public.agents a where a.tenant_id = p_version.tenant_id and a.id = p_version.agent_id;
    v_definition := jsonb_build_object('name', v_agent.name, 'output', 'steps.agent.output', 'connections', '[]'::jsonb, 'nodes', jsonb_build_array(jsonb_build_object(
        'id', 'agent', 'kind', 'agent', 'ref', v_agent.slug || '@' || p_version.version, 'input', 'input', 'pool', coalesce(p_version.definition ->> 'pool', 'default'),
        'timeout_s', coalesce((p_version.definition #>> '{limits,seconds}')::integer, 3600),
        'retry', '{"attempts": 3, "initial_ms": 500, "max_ms": 60000, "on": ["timeout", "provider_error", "rate_limited"]}'::jsonb)));
    insert into public.ai_workflows (tenant_id, id, user_id, slug, name, description, draft, created_at, updated_at, origin_tenant_id)
        values (v_agent.tenant_id, v_agent.id, null, 'agent-' || v_agent.id, v_agent.name, v_agent.description, v_definition, vanilla.clock(), vanilla.clock(), v_agent.tenant_id)
        on conflict do nothing;
    -- of two that make it the second waits, then finds it
    insert into public.workflow_versions (tenant_id, workflow_id, version, user_id, shared, definition, hash, published_at, published_by)
        values (v_agent.tenant_id, v_agent.id, p_version.version, null, false, v_definition, sha256(convert_to(v_definition::text, 'UTF8')), p_version.published_at, null)
        on conflict do nothing returning * into v_flow;
    if found then perform vanilla.compile_workflow(v_flow); end if;
end
$f$;
comment on function vanilla.agent_flow(public.agent_versions) is 'Makes the workflow, nobody''s, in which a version of an agent runs that is no node of another.';

create or replace function vanilla.new_run(p_version public.agent_versions, p_execution public.workflow_executions, p_node smallint, p_item integer, p_input jsonb,
    p_tokens bigint default null) returns public.agent_runs
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_run public.agent_runs;
begin
    v_run.tenant_id := p_execution.tenant_id;
    v_run.id := vanilla.uuid7();
    v_run.user_id := p_execution.user_id;
    v_run.agent_id := p_version.agent_id;
    v_run.version := p_version.version;
    v_run.speaker_id := p_version.agent_id;
    v_run.speaker_version := p_version.version;
    v_run.execution_id := p_execution.id;
    v_run.node := p_node;
    v_run.item := p_item;
    v_run.root_run_id := v_run.id;
    v_run.path := array[p_version.agent_id];
    v_run.depth := 0;
    v_run.state := 'submitted';
    v_run.input := p_input;
    v_run.limits := vanilla.agent_limits(p_version.definition) || case when p_tokens is null then '{}' else jsonb_build_object('tokens', p_tokens) end;
    v_run.turns := 0;
    v_run.tool_calls := 0;
    v_run.children := 0;
    v_run.charged_tokens := 0;
    v_run.cost_micros := 0;
    v_run.started_at := vanilla.clock();
    v_run.deadline_at := v_run.started_at + make_interval(secs => (v_run.limits ->> 'seconds')::integer);
    return v_run;
end
$f$;
comment on function vanilla.new_run(public.agent_versions, public.workflow_executions, smallint, integer, jsonb, bigint) is 'A run of an agent as it begins, for a step of an execution; insert_run writes it.';

create or replace function vanilla.insert_run(p_run public.agent_runs, p_parent public.agent_runs default null, p_share bigint default null, p_exact boolean default false)
returns public.agent_runs
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_parent.id is not null then
        p_run.parent_run_id := p_parent.id;
        p_run.root_run_id := p_parent.root_run_id;
        p_run.path := p_parent.path || p_run.path;
        p_run.depth := p_parent.depth + 1;
        p_run.deadline_at := least(p_run.deadline_at, p_parent.deadline_at);
        p_run.limits := p_run.limits || jsonb_build_object('depth', least((p_run.limits ->> 'depth')::integer, (p_parent.limits ->> 'depth')::integer - 1));
    end if;
    p_run.allocation_id := vanilla.open_run_budget(p_run, p_parent, p_share, p_exact);
    insert into public.agent_runs select (p_run).*;
    return p_run;
end
$f$;
comment on function vanilla.insert_run(public.agent_runs, public.agent_runs, bigint, boolean) is 'Begins a run with its budget: of the wallet, or of its parent''s. What the parent may not the child may not either.';

create or replace function vanilla.leased_step(p_lease jsonb) returns public.workflow_queue
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_step public.workflow_queue;
begin
    perform from public.workflow_executions e where e.tenant_id = (p_lease ->> 'tenant_id')::uuid and e.id = (p_lease ->> 'execution_id')::uuid for no key update;
    select * into v_step from public.workflow_queue q
        where q.tenant_id = (p_lease ->> 'tenant_id')::uuid and q.execution_id = (p_lease ->> 'execution_id')::uuid and q.node = (p_lease ->> 'n')::smallint
          and q.item = coalesce((p_lease ->> 'item')::integer, -1) and q.worker = (p_lease ->> 'worker')::uuid and q.lease = (p_lease ->> 'lease')::bigint;
    if not found then perform vanilla.refuse('VS409', 'the step was taken from this worker', '{"stop": true}'); end if;
    return v_step;
end
$f$;
comment on function vanilla.leased_step(jsonb) is 'The step that a worker has under a lease, with its execution locked: nobody takes it away until this commits.';

create or replace function vanilla.run_of_step(p_step public.workflow_queue) returns public.agent_runs
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_run public.agent_runs;
begin
    select * into v_run from public.agent_runs r where r.tenant_id = p_step.tenant_id and r.execution_id = p_step.execution_id and r.node = p_step.node and r.item = p_step.item
        and r.finished_at is null for no key update;
    return v_run;
end
$f$;
comment on function vanilla.run_of_step(public.workflow_queue) is 'The run under way that a step computes, locked.';

create or replace function vanilla.run_view(p_run public.agent_runs) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
    return jsonb_build_object('run_id', p_run.id, 'root_run_id', p_run.root_run_id, 'parent_run_id', p_run.parent_run_id, 'state', p_run.state, 'turns', p_run.turns,
        'limits', p_run.limits, 'input', p_run.input, 'deadline_at', p_run.deadline_at,
        'budget', vanilla.run_budget(p_run),
        'speaker', (select jsonb_build_object('agent_id', a.id, 'slug', a.slug, 'version', v.version, 'definition', v.definition,
                -- what a tool of a model says of those it may turn to
                'others', (select coalesce(jsonb_object_agg(o.slug, o.description), '{}') from public.agents o where o.tenant_id = a.tenant_id and o.slug in (
                    select split_part(x.value ->> 'agent', '@', 1) from (values ('handoffs'), ('delegates')) k (name)
                    cross join lateral jsonb_array_elements(coalesce(nullif(v.definition -> k.name, 'null'), '[]')) x)))
            from public.agents a join public.agent_versions v on v.tenant_id = a.tenant_id and v.agent_id = a.id
            where a.tenant_id = p_run.tenant_id and a.id = p_run.speaker_id and v.version = p_run.speaker_version),
        'steps', (select coalesce(jsonb_agg(jsonb_build_object('n', s.n, 'turn', s.turn, 'kind', s.kind, 'agent', a.slug, 'name', s.name, 'call_id', s.call_id, 'arguments', s.arguments,
                'status', s.status, 'approval', s.approval, 'result', s.result, 'child_run_id', s.child_run_id) order by s.n), '[]')
            from public.agent_run_steps s join public.agents a on a.tenant_id = s.tenant_id and a.id = s.agent_id
            where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id));
comment on function vanilla.run_view(public.agent_runs) is 'A run as its worker needs it: who has the word, budget, and everything that was done.';

create or replace function vanilla.begin_run(p_lease jsonb, p_ref text, p_input jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_step public.workflow_queue := vanilla.leased_step(p_lease);
    v_run public.agent_runs := vanilla.run_of_step(v_step);
    v_execution public.workflow_executions;
begin
    if v_run.id is null then
        select * into v_execution from public.workflow_executions e where e.tenant_id = v_step.tenant_id and e.id = v_step.execution_id;
        if jsonb_typeof(p_input) is distinct from 'object' then perform vanilla.refuse('VS400', 'the input is a JSON object', '{"param": "input"}'); end if;
        v_run := vanilla.insert_run(vanilla.new_run(vanilla.agent_of(v_step.tenant_id, v_step.user_id, p_ref), v_execution, v_step.node, v_step.item, p_input));
    end if;
    -- what its children came to
    update public.agent_run_steps s set status = case c.state when 'completed' then 'done' else 'failed' end, finished_at = c.finished_at,
            result = jsonb_build_object('state', c.state, 'stop_reason', c.stop_reason, 'output', c.output, 'error', c.error)
        from public.agent_runs c
        where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.status = 'open' and c.tenant_id = s.tenant_id and c.id = s.child_run_id and c.finished_at is not null;
    update public.agent_runs r set state = 'working' where r.tenant_id = v_run.tenant_id and r.id = v_run.id and r.state <> 'working';
    v_run.state := 'working';
    return vanilla.run_view(v_run);
end
$f$;
comment on function vanilla.begin_run(jsonb, text, jsonb) is
    'What a worker that claimed a step of the kind agent goes on from: the run under way of that step with its journal, or a new one of the agent that the node names.';

create or replace function vanilla.stop_of_call(p_run public.agent_runs, p_definition jsonb, p_kind text, p_name text, p_hash bytea, out stop text, out target public.agent_versions)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_edge jsonb;
    v_before record;
begin
    if p_kind in ('handoff', 'delegate') then
        select x.value into v_edge from jsonb_array_elements(p_definition -> (p_kind || 's')) x
            where split_part(x.value ->> 'agent', '@', 1) = regexp_replace(p_name, '^(transfer|delegate)_to_', '');
        begin
            target := vanilla.agent_of(p_run.tenant_id, p_run.user_id, v_edge ->> 'agent');
        exception when sqlstate 'VS404' or sqlstate 'VS409' then
            return;      -- it is told that there is none
        end;
        if target.agent_id = any (p_run.path) and not coalesce((v_edge ->> 'again')::boolean, false) then
            stop := 'cycle_refused';
            return;
        end if;
    end if;
    if p_kind = 'delegate' and (p_run.limits ->> 'depth')::integer < 1 then
        stop := 'max_depth';
        return;
    end if;
    if p_kind <> 'handoff' then
        -- the same question with the same answers so often: another will not be another
        select count(*) as calls, count(distinct coalesce(s.result::text, '')) as answers into v_before from public.agent_run_steps s
            where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.arguments_hash = p_hash and s.status in ('done', 'failed');
        if v_before.calls + 1 >= (p_run.limits ->> 'repeats')::integer and v_before.answers <= 1 and v_before.calls > 0 then
            stop := 'loop_detected';
        end if;
    end if;
end
$f$;
comment on function vanilla.stop_of_call(public.agent_runs, jsonb, text, text, bytea) is
    'Why a run must not make a call that its model asked for, as a stop reason; and which agent it leads to.';

create or replace function vanilla.record_turn(p_lease jsonb, p_turn integer, p_call jsonb, p_answer jsonb, p_wrap_up boolean default false) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_step public.workflow_queue := vanilla.leased_step(p_lease);
    v_run public.agent_runs := vanilla.run_of_step(v_step);
    v_speaker public.agent_versions;
    v_call record;
    v_settled jsonb;
    v_kind text;
    v_hash bytea;
    v_found record;
    v_stop text;
    v_n integer;
    v_calls integer := coalesce(jsonb_array_length(p_answer -> 'calls'), 0);
begin
    if v_run.id is null then perform vanilla.refuse('VS409', 'no run of this step is under way'); end if;
    if v_run.turns >= p_turn then return vanilla.run_view(v_run) || '{"stop": null}'; end if;      -- it stands there: its answer was lost
    if v_run.turns + 1 <> p_turn then perform vanilla.refuse('VS409', 'turns are recorded in their order', jsonb_build_object('turns', v_run.turns)); end if;
    select * into v_speaker from public.agent_versions v where v.tenant_id = v_run.tenant_id and v.agent_id = v_run.speaker_id and v.version = v_run.speaker_version;
    select coalesce(max(s.n), 0) into v_n from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id;
    if v_run.parent_run_id is not null and jsonb_path_exists(p_answer, '$.calls[*] ? (@.name like_regex "^delegate_to_")') then
        perform from public.agent_runs r where r.tenant_id = v_run.tenant_id and r.id = v_run.root_run_id for no key update;      -- before money: its own turns have it first too
    end if;
    v_settled := vanilla.settle_turn(v_run, p_call);
    update public.workflow_steps s set charged_tokens = s.charged_tokens + (v_settled ->> 'charged')::bigint, cost_micros = s.cost_micros + (v_settled ->> 'cost_micros')::bigint
        where s.tenant_id = v_step.tenant_id and s.execution_id = v_step.execution_id and s.node = v_step.node and s.item in (-1, v_step.item);
    v_n := v_n + 1;
    insert into public.agent_run_steps (tenant_id, run_id, n, user_id, turn, kind, agent_id, status, result, charged_tokens, cost_micros, created_at, finished_at)
        values (v_run.tenant_id, v_run.id, v_n, v_run.user_id, p_turn, 'model', v_run.speaker_id, 'done', p_answer, (v_settled ->> 'charged')::bigint,
            (v_settled ->> 'cost_micros')::bigint, v_now, v_now);
    if v_calls > 0 and not p_wrap_up then
        if p_turn >= (v_run.limits ->> 'turns')::integer then v_stop := 'max_turns'; end if;
        if v_run.deadline_at <= v_now then v_stop := 'deadline'; end if;
    end if;
    for v_call in select c.value ->> 'id' as id, c.value ->> 'name' as name, coalesce(c.value -> 'arguments', '{}') as arguments
        from jsonb_array_elements(case when p_wrap_up then '[]' else coalesce(p_answer -> 'calls', '[]') end) with ordinality c order by c.ordinality
    loop
        v_n := v_n + 1;
        v_kind := case when starts_with(v_call.name, 'transfer_to_') and jsonb_path_exists(v_speaker.definition, '$.handoffs[*].agent') then 'handoff'
            when starts_with(v_call.name, 'delegate_to_') and jsonb_path_exists(v_speaker.definition, '$.delegates[*].agent') then 'delegate' else 'tool' end;
        v_hash := sha256(convert_to(jsonb_build_array(v_call.name, v_call.arguments)::text, 'UTF8'));
        select null::text as stop, null::public.agent_versions as target into v_found;
        if v_stop is null then
            v_found := vanilla.stop_of_call(v_run, v_speaker.definition, v_kind, v_call.name, v_hash);
            v_stop := v_found.stop;
        end if;
        if v_stop is null and v_kind = 'tool' and not vanilla.count_run_call(v_run) then v_stop := 'max_tool_calls'; end if;
        if v_stop is null and v_kind = 'delegate' then
            update public.agent_runs r set children = r.children + 1 where r.tenant_id = v_run.tenant_id and r.id = v_run.root_run_id
                and r.children < (r.limits ->> 'children')::integer;
            if not found then v_stop := 'max_children'; end if;
        end if;
        insert into public.agent_run_steps (tenant_id, run_id, n, user_id, turn, kind, agent_id, name, call_id, arguments, arguments_hash, created_at)
            values (v_run.tenant_id, v_run.id, v_n, v_run.user_id, p_turn, v_kind, v_run.speaker_id, v_call.name, v_call.id, v_call.arguments, v_hash, v_now);
        if v_stop is null and v_kind <> 'tool' and (v_found.target).agent_id is null then
            update public.agent_run_steps s set status = 'failed', result = '{"error": "There is no such agent."}', finished_at = v_now
                where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = v_n;
        elsif v_stop is null and v_kind = 'handoff' then
            update public.agent_run_steps s set status = 'done', result = jsonb_build_object('agent', substr(v_call.name, 13)), finished_at = v_now
                where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = v_n;
            v_run.speaker_id := (v_found.target).agent_id;
            v_run.speaker_version := (v_found.target).version;
            v_run.path := v_run.path || v_run.speaker_id;
        end if;
    end loop;
    if v_stop is not null then
        update public.agent_run_steps s set status = 'refused', result = jsonb_build_object('error', v_stop), finished_at = v_now
            where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.status = 'open';
    end if;
    update public.agent_runs r set turns = p_turn, speaker_id = v_run.speaker_id, speaker_version = v_run.speaker_version, path = v_run.path,
            tool_calls = r.tool_calls + (select count(*) from public.agent_run_steps s where s.tenant_id = r.tenant_id and s.run_id = r.id and s.turn = p_turn and s.kind = 'tool' and s.status <> 'refused'),
            charged_tokens = r.charged_tokens + (v_settled ->> 'charged')::bigint, cost_micros = r.cost_micros + (v_settled ->> 'cost_micros')::bigint
        where r.tenant_id = v_run.tenant_id and r.id = v_run.id returning * into v_run;
    return vanilla.run_view(v_run) || jsonb_build_object('stop', v_stop);
end
$f$;
comment on function vanilla.record_turn(jsonb, integer, jsonb, jsonb, boolean) is
    'Writes a model''s answer to the journal in the transaction that settles its call, with the calls it asks for, and looks before any is made whether the run may go on: `stop` is null or why not. The same turn again changes nothing.';

create or replace function vanilla.record_call(p_lease jsonb, p_n integer, p_status text, p_result jsonb) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_step public.workflow_queue := vanilla.leased_step(p_lease);
    v_run public.agent_runs := vanilla.run_of_step(v_step);
begin
    if p_status = 'approval' then
        update public.agent_run_steps s set approval = p_result where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = p_n and s.status = 'open';
    elsif p_status in ('done', 'failed') then
        update public.agent_run_steps s set status = p_status, result = p_result, finished_at = vanilla.clock()
            where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = p_n and s.status = 'open';
    else
        perform vanilla.refuse('VS400', 'a call is done or failed, or has an approval', '{"param": "status"}');
    end if;
end
$f$;
comment on function vanilla.record_call(jsonb, integer, text, jsonb) is 'Writes to the journal what a tool gave, or what people said to its call.';

create or replace function vanilla.start_delegates(p_execution public.workflow_executions, p_step public.workflow_queue) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_run public.agent_runs := vanilla.run_of_step(p_step);
    v_speaker public.agent_versions;
    v_row public.agent_run_steps;
    v_version public.agent_versions;
    v_child public.workflow_executions;
    v_made public.agent_runs;
    v_started integer := 0;
    v_share bigint;
begin
    -- those it asks now, and itself, have equal parts of what is left
    select vanilla.allocation_left(a) / (1 + (select count(*) from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.kind = 'delegate'
            and s.status = 'open' and s.child_run_id is null)) into v_share
        from public.resource_allocations a where a.tenant_id = v_run.tenant_id and a.id = v_run.allocation_id;
    for v_row in select * from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.kind = 'delegate' and s.status = 'open'
            and s.child_run_id is null order by s.n loop
        select v.* into v_speaker from public.agent_versions v where v.tenant_id = v_run.tenant_id and v.agent_id = v_row.agent_id order by v.version desc limit 1;
        begin
            v_version := vanilla.agent_of(v_run.tenant_id, v_run.user_id, coalesce((select x.value ->> 'agent' from jsonb_array_elements(v_speaker.definition -> 'delegates') x
                where split_part(x.value ->> 'agent', '@', 1) = substr(v_row.name, 13)), substr(v_row.name, 13)));
            if p_execution.depth >= 5 then perform vanilla.refuse('VS409', 'executions start each other at most five deep', '{"limit": 5}'); end if;
            perform vanilla.agent_flow(v_version);
            v_child := vanilla.new_execution(p_execution.user_id, (select row(w.*)::public.workflow_versions from public.workflow_versions w
                where w.tenant_id = v_version.tenant_id and w.workflow_id = v_version.agent_id and w.version = v_version.version),
                jsonb_build_object('message', coalesce(v_row.arguments -> 'message', v_row.arguments)), p_execution.priority);
            v_child.depth := p_execution.depth + 1;
            v_child.parent_execution_id := p_execution.id;
            v_child.parent_node := p_step.node;
            v_child.parent_item := p_step.item;
            v_child.started_by := p_execution.started_by;
            v_child.api_key_id := p_execution.api_key_id;
            v_made := vanilla.insert_run(vanilla.new_run(v_version, v_child, 1::smallint, -1, v_child.input), v_run, v_share);
            perform vanilla.insert_execution(v_child, '{}');
        exception when sqlstate 'VS404' or sqlstate 'VS409' or sqlstate 'VS402' or sqlstate 'VS429' then
            update public.agent_run_steps s set status = 'failed', result = jsonb_build_object('error', sqlerrm), finished_at = vanilla.clock()
                where s.tenant_id = v_row.tenant_id and s.run_id = v_row.run_id and s.n = v_row.n;
            continue;
        end;
        update public.agent_run_steps s set child_run_id = v_made.id where s.tenant_id = v_row.tenant_id and s.run_id = v_row.run_id and s.n = v_row.n;
        v_started := v_started + 1;
    end loop;
    return v_started;
end
$f$;
comment on function vanilla.start_delegates(public.workflow_executions, public.workflow_queue) is
    'Starts the agents that the run of a step asked for, each as a child execution with a part of its budget. Returns how many; what cannot be started is told to the run.';

create or replace function vanilla.end_run(p_run public.agent_runs, p_state text, p_stop_reason text, p_output jsonb default null, p_error jsonb default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
begin
    update public.agent_run_steps s set status = 'refused', finished_at = v_now where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.status = 'open';
    update public.agent_runs r set state = p_state, stop_reason = p_stop_reason, output = p_output, error = p_error, finished_at = v_now
        where r.tenant_id = p_run.tenant_id and r.id = p_run.id and r.finished_at is null;
    if p_run.allocation_id is not null then perform vanilla.allocation_end(p_run.tenant_id, p_run.allocation_id, 'closed', 'run ended'); end if;
end
$f$;
comment on function vanilla.end_run(public.agent_runs, text, text, jsonb, jsonb) is 'Ends a run: what it still wanted is refused, what is left of its budget goes back.';

create or replace function vanilla.stop_reason(p_code text) returns text language sql immutable
    return case when p_code in ('max_turns', 'max_tool_calls', 'max_depth', 'max_children', 'budget_exhausted', 'deadline', 'loop_detected', 'cycle_refused',
            'agreement_violated', 'quality_failed', 'canceled') then p_code
        when p_code in ('provider_error', 'rate_limited', 'timeout', 'provider_not_ready', 'model_not_found', 'unsupported_model') then 'provider_failed'
        when p_code = 'insufficient_tokens' then 'budget_exhausted'
        when p_code = 'cancelled' then 'canceled'
        else 'failed' end;
comment on function vanilla.stop_reason(text) is 'The stop reason of a run whose step ended with the code of an error.';

create or replace function vanilla.end_step_run(p_step public.workflow_queue, p_status text, p_output jsonb, p_error jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_run public.agent_runs := vanilla.run_of_step(p_step);
begin
    if v_run.id is null then return; end if;
    if p_status = 'succeeded' then
        perform vanilla.end_run(v_run, 'completed', coalesce(p_output ->> 'stop_reason', 'done'), p_output);
    else
        perform vanilla.end_run(v_run, 'failed', vanilla.stop_reason(p_error ->> 'code'), null, p_error);
    end if;
end
$f$;
comment on function vanilla.end_step_run(public.workflow_queue, text, jsonb, jsonb) is 'The run of a step that has its outcome ends with it.';

create or replace function vanilla.end_runs(p_tenant_id uuid, p_execution_id uuid, p_status text, p_error jsonb default null, p_nodes smallint[] default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_run public.agent_runs;
begin
    for v_run in select * from public.agent_runs r where r.tenant_id = p_tenant_id and r.execution_id = p_execution_id and r.finished_at is null
            and (p_nodes is null or r.node = any (p_nodes)) order by r.id for no key update loop
        if p_status = 'failed' then
            perform vanilla.end_run(v_run, 'failed', vanilla.stop_reason(p_error ->> 'code'), null, p_error);
        else
            perform vanilla.end_run(v_run, 'canceled', 'canceled');
        end if;
    end loop;
end
$f$;
comment on function vanilla.end_runs(uuid, uuid, text, jsonb, smallint[]) is 'Runs that are under way when their execution ends, or when their nodes are to run again, end too.';

create or replace function vanilla.agents_ended(p_execution public.workflow_executions, p_step public.workflow_queue, p_told boolean) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_running uuid[] := array(select e.id from public.workflow_executions e where e.tenant_id = p_execution.tenant_id and e.parent_execution_id = p_execution.id
        and e.parent_node = p_step.node and e.parent_item = p_step.item and e.finished_at is null order by e.id);
    v_id uuid;
begin
    if p_told and v_running <> '{}' then return; end if;      -- the last one of them tells again
    foreach v_id in array v_running loop      -- its time is over
        perform vanilla.cancel_one(p_execution.tenant_id, v_id, 'timeout');
    end loop;
    delete from public.workflow_timers t where t.tenant_id = p_execution.tenant_id and t.execution_id = p_execution.id and t.node = p_step.node
        and t.item in (p_step.item, -3 - p_step.item);
    if v_running = '{}' then
        perform vanilla.queue_step(p_execution, p_step.node, p_step.item, greatest(p_step.attempt - 1, 0));
    else
        perform vanilla.fail_step(p_step, '{"code": "deadline", "message": "The agents that it asked took too long."}');
    end if;
end
$f$;
comment on function vanilla.agents_ended(public.workflow_executions, public.workflow_queue, boolean) is
    'A run that waits for those it asked goes on when all have ended; when its time is over they are cancelled, and it fails.';

create or replace function vanilla.delete_runs(p_tenant_id uuid, p_executions uuid[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_runs uuid[] := array(select r.id from public.agent_runs r join public.agent_runs t on t.tenant_id = r.tenant_id and t.id = r.root_run_id
        where t.tenant_id = p_tenant_id and t.execution_id = any (p_executions));
begin
    if v_runs = '{}' then return; end if;
    delete from public.agent_run_steps s where s.tenant_id = p_tenant_id and s.run_id = any (v_runs);
    delete from public.agent_runs r where r.tenant_id = p_tenant_id and r.id = any (v_runs);
end
$f$;
comment on function vanilla.delete_runs(uuid, uuid[]) is 'Deletes the trees of runs that began in these executions.';

create or replace function vanilla.forget_runs(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_agents uuid[];
begin
    delete from public.agent_run_steps s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id;
    delete from public.agent_runs r where r.tenant_id = p_user.tenant_id and r.user_id = p_user.id;
    -- what is shared, or somebody else has run, is the tenant's by now
    delete from public.agent_versions v where v.tenant_id = p_user.tenant_id and v.user_id = p_user.id and not v.shared
        and not exists (select from public.agent_runs r where r.tenant_id = v.tenant_id and v.agent_id in (r.agent_id, r.speaker_id));
    with gone as (
        delete from public.agents a where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and not a.shared
            and not exists (select from public.agent_versions v where v.tenant_id = a.tenant_id and v.agent_id = a.id) returning a.id)
    select array_agg(g.id) into v_agents from gone g;
    -- the flows in which they ran have their names
    delete from public.workflow_nodes n where n.tenant_id = p_user.tenant_id and n.workflow_id = any (v_agents);
    delete from public.workflow_versions v where v.tenant_id = p_user.tenant_id and v.workflow_id = any (v_agents);
    delete from public.ai_workflows w where w.tenant_id = p_user.tenant_id and w.id = any (v_agents);
end
$f$;
comment on function vanilla.forget_runs(public.users) is 'Deletes the runs of a user who is being erased, which have ended, and the agents that they had shared with nobody.';

create or replace function public.start_agent(p_ref text, p_input jsonb default '{}', p_tokens bigint default null, p_idempotency_key text default null,
    p_priority integer default null, p_user_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_self boolean := vanilla.claim(4) is not null and coalesce(p_user_id, vanilla.claim(4)::uuid) = vanilla.claim(4)::uuid;
    v_tenant uuid := case when v_self then vanilla.own_tenant(p_tenant_id) else vanilla.acting_tenant(p_tenant_id) end;
    v_user public.users := vanilla.find_user(v_tenant, coalesce(p_user_id, vanilla.claim(4)::uuid));
    v_version public.agent_versions;
    v_started jsonb;
    v_execution public.workflow_executions;
    v_run public.agent_runs;
    v_hash bytea;
begin
    perform vanilla.check_start(p_input, p_idempotency_key, p_priority);
    if p_tokens < 1 then perform vanilla.refuse('VS400', 'a budget is at least one token', '{"param": "tokens"}'); end if;
    if p_idempotency_key is not null then
        v_hash := sha256(convert_to(jsonb_build_array('agent', p_ref, p_input, p_tokens, p_priority)::text, 'UTF8'));
        v_started := vanilla.started_before(v_user, p_idempotency_key, v_hash);
        if v_started is not null then
            return v_started || jsonb_build_object('run_id', (select r.id from public.agent_runs r where r.tenant_id = v_user.tenant_id
                and r.execution_id = (v_started ->> 'execution_id')::uuid and r.parent_run_id is null order by r.id limit 1));
        end if;
    end if;
    v_version := vanilla.agent_of(v_user.tenant_id, v_user.id, p_ref);
    perform vanilla.agent_flow(v_version);
    v_started := vanilla.start_version(v_user, v_version.agent_id, v_version.version, p_input, p_priority, p_idempotency_key, v_hash);
    select * into v_execution from public.workflow_executions e where e.tenant_id = v_user.tenant_id and e.id = (v_started ->> 'execution_id')::uuid;
    if (v_started ->> 'replayed')::boolean then
        select * into v_run from public.agent_runs r where r.tenant_id = v_execution.tenant_id and r.execution_id = v_execution.id and r.parent_run_id is null order by r.id limit 1;
    else
        v_run := vanilla.insert_run(vanilla.new_run(v_version, v_execution, 1::smallint, -1, p_input, p_tokens), p_exact => p_tokens is not null);
    end if;
    return v_started || jsonb_build_object('run_id', v_run.id);
end
$f$;
comment on function public.start_agent(text, jsonb, bigint, text, integer, uuid, uuid) is
    'Starts an agent, slug or slug@version, for oneself or, by an admin, for a user who pays: an execution and its run, with the budget of tokens that is named or the agent''s own. The same key and input answer with the first run.';

grant execute on function public.save_agent(text, jsonb, boolean, uuid, uuid), public.retire_agent(uuid, uuid),
    public.start_agent(text, jsonb, bigint, text, integer, uuid, uuid) to vanilla_app, vanilla_operator;
grant execute on function vanilla.begin_run(jsonb, text, jsonb), vanilla.record_turn(jsonb, integer, jsonb, jsonb, boolean), vanilla.record_call(jsonb, integer, text, jsonb)
    to vanilla_runtime;

-- what is there from the first day ---------------------------------------------------------------------------------
set local role vanilla_system;
insert into public.schedules (tenant_id, name, description, kind, period, slots_from, next_run_at, longest_gap) values
    (vanilla.platform(), 'allocations', 'Ends budgets of agents whose time is over and returns what is left.', 'sql', '30 s', '2026-01-01 00:00+00', '2026-01-01 00:00+00', null)
on conflict do nothing;

set local role vanilla_owner;
revoke create on schema vanilla from vanilla_definer;
select vanilla.map_supabase_roles();      -- without 010 too
reset role;
revoke create on schema public from vanilla_definer;
commit;
