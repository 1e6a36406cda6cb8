-- 009: orchestration: agents that work under budgets and talk by agreements (docs/design/orchestration.md, allocations.md, channels.md).
--
-- Allocations, budgets of agents: trees over one wallet
--   Tables:  resource_allocations, allocation_holds
--   Public:  allocation_open, _carve, _hold, _settle, _release, _count_tool_call, _close, _top_up, _tree; allocation_reap for the operator
--   Private: the same names in vanilla, with the tenant in front: what other systems call in their own transaction
--            lock_allocation, lock_subtree   every change of an allocation or of its holds happens under its row
--            draw_allocation                 the one place where a tree's tokens are spent: one ledger row for each settled step
--            allocation_end                  a whole subtree, whatever is open in it
-- Agents and runs
--   Tables:  agents, agent_versions, agent_runs, agent_run_steps, agent_run_state, run_artifacts
--   Public:  save_agent, retire_agent, start_agent
--   Workers: begin_run, ask_engine, record_turn, record_call, record_call_and_admit, make_call, each under the lease of the step that a run is
--   Private: stop_of_call, hold_turn   whether a run may go on, before its next call
--            give_word                 who speaks next in a group chat
--            start_delegates, end_run  children and ends; 006 calls them where steps wait and end
-- Agreements and channels
--   Tables:  protocol_agreements, agreement_parties, agreement_versions, agreement_acceptances, agreement_violations
--            communication_channels, channel_participants, channel_messages, channel_dead_letters
--   Public:  channel_open, _send, _receive, _ack, _nack, _floor, _close, _history, _read; my_channels
--            agreement_propose, _respond, _amend, _withdraw, _suspend, _resume, _terminate, _read; my_agreements
--   Private: schema_problem    why a JSON Schema is not one that SQL enforces whole
--            schema_misfit     where a value does not fit such a schema
--            agreement_breach  which rule of an agreement a message breaks, body_breach which one its body does
--            redact_messages   takes what an agreement names out of what was said, and of what runs keep of it
-- Others:  forget_runs, forget_allocations, forget_channels   erase_person of 001 calls them
--          job_allocations, job_channels                      jobs
--
-- Invariants (checks/allocations_reconcile.sql): carved + held + spent <= budget at every node; carved is the budgets of its open children, held its open
-- holds, spent what its holds and closed children drew; while the wallet's hold of a tree is open, it holds what the open nodes have not spent.
-- A tree lives as long as its hold in the wallet: whoever closes that hold ends the tree, without a lock of it; the job allocations writes it down.
-- What stands in the journal of a run is not done again; a finished run does not change. Messages of a channel count from 1 without gaps, in the order in
-- which they committed; the same sender and message_id are one message; a participant's cursor never goes back, and one worker at a time moves it; a closed
-- channel takes nothing; at most one participant has the floor. What an agreement says never changes, a version is active only when every party accepted
-- its hash, and no message of a bound channel is there that broke a rule of the version then active.
-- Lock order: executions; runs, the root before its children; allocations, of one tree by depth and id, so that a parent comes before its children; holds;
-- wallets; the queue. Holds of steps need no place of their own: the row of their allocation is held by whoever changes them. The job passes by what is
-- locked. After all of these, where a run shows its chat: the user, the channel, a participant, the agreement, its versions. Who writes to a channel holds its row until the commit, so
-- that whoever sees a message sees all before it.
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
    most_tokens bigint,
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
    constraint resource_allocations_most_check check (most_tokens >= budget_tokens),
    constraint resource_allocations_limits_check check (least(max_requests, max_tool_calls, max_concurrent) > 0),
    constraint resource_allocations_counts_check check (least(requests, tool_calls, open_holds) >= 0),
    constraint resource_allocations_tree_check check (case when parent_id is null then depth = 0 and root_id = id and hold_id is not null and counted_by = '{}'
        else depth >= 1 and depth <= 50 and root_id <> id and hold_id is null end),
    constraint resource_allocations_state_check check (state in ('open', 'closed', 'expired')),
    constraint resource_allocations_closed_check check ((state = 'open') = (closed_at is null)),
    constraint resource_allocations_ended_check check (state = 'open' or carved_tokens + held_tokens = 0),
    constraint resource_allocations_key_check check (octet_length(idempotency_key) <= 1020),
    constraint resource_allocations_top_ups_check check (jsonb_typeof(top_ups) = 'object' and octet_length(top_ups::text) <= 65536)
) with (fillfactor = 80);
-- `is not null`, here and below: only who asks for that column may use the index. While tables are empty the planner takes every index that begins with
-- the tenant for as good as the key, and the newest first; connections keep such plans, and then read all that the tenant has.
create index if not exists resource_allocations_user_idx on public.resource_allocations (tenant_id, user_id) where user_id is not null;
create index if not exists resource_allocations_parent_idx on public.resource_allocations (tenant_id, parent_id) where parent_id is not null;
create index if not exists resource_allocations_root_idx on public.resource_allocations (tenant_id, root_id) where root_id is not null;
create unique index if not exists resource_allocations_key_idx on public.resource_allocations (tenant_id, parent_id, idempotency_key)
    where parent_id is not null and idempotency_key is not null;
create index if not exists resource_allocations_open_idx on public.resource_allocations (tenant_id, expires_at) where state = 'open';
create index if not exists resource_allocations_ended_idx on public.resource_allocations (tenant_id, closed_at) where parent_id is null and state <> 'open';
comment on table public.resource_allocations is
    'Budgets of agents: nodes of trees over one wallet. carved + held + spent <= budget; the root''s budget is held in the wallet once.';
comment on column public.resource_allocations.counted_by is 'Its ancestors that have a limit of requests, tool calls or concurrency: what it does counts there too.';
comment on column public.resource_allocations.hold_id is 'Of a root: the hold in the wallet on which every node of the tree draws.';
comment on column public.resource_allocations.carved_tokens is 'The budgets of its open children. What a child left when it closed came back, what it spent counts as spent here.';
comment on column public.resource_allocations.overrun_tokens is 'What its steps used beyond all that it had: the wallet paid apart, and it takes no further hold.';
comment on column public.resource_allocations.wrap_up_tokens is 'The part of the budget that only its one last turn may take.';
comment on column public.resource_allocations.most_tokens is
    'Up to where the budget grows with what its model calls need, out of the parent or the wallet; null: it has what it was given.';
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
create index if not exists allocation_holds_allocation_idx on public.allocation_holds (tenant_id, allocation_id) where allocation_id is not null;
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
    chat jsonb,
    output_schema jsonb,
    turns integer not null default 0,
    tool_calls integer not null default 0,
    children integer not null default 0,
    charged_tokens bigint not null default 0,
    cost_micros bigint not null default 0,
    deadline_at timestamptz,
    started_at timestamptz not null,
    finished_at timestamptz,
    engines jsonb,
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
        'loop_detected', 'cycle_refused', 'canceled', 'provider_failed', 'failed')),
    constraint agent_runs_depth_check check (depth >= 0 and cardinality(path) > depth)
) with (fillfactor = 80);
create unique index if not exists agent_runs_step_idx on public.agent_runs (tenant_id, execution_id, node, item) where finished_at is null;
create index if not exists agent_runs_execution_idx on public.agent_runs (tenant_id, execution_id) where execution_id is not null;
create index if not exists agent_runs_user_idx on public.agent_runs (tenant_id, user_id, id) where user_id is not null;
create index if not exists agent_runs_agent_idx on public.agent_runs (tenant_id, agent_id, version) where agent_id is not null;
create index if not exists agent_runs_speaker_idx on public.agent_runs (tenant_id, speaker_id, speaker_version) where speaker_id is not null;
create index if not exists agent_runs_parent_idx on public.agent_runs (tenant_id, parent_run_id) where parent_run_id is not null;
create index if not exists agent_runs_root_idx on public.agent_runs (tenant_id, root_run_id) where root_run_id is not null;
create index if not exists agent_runs_allocation_idx on public.agent_runs (tenant_id, allocation_id) where allocation_id is not null;
comment on table public.agent_runs is
    'Runs of agents, a tree: each is what a step of a workflow execution computes. States are those of A2A tasks; a finished run has a stop_reason and does not change.';
comment on column public.agent_runs.speaker_id is 'The agent that has the word: the one it began with, or the last that it was handed over to.';
comment on column public.agent_runs.path is 'The agents from the root to this one, and those that it was handed over to: who is in it may not be asked again, unless whoever asks may.';
comment on column public.agent_runs.limits is 'tokens, turns, tool_calls, depth, children, repeats, seconds: the agent''s own, or less where its parent has less.';
comment on column public.agent_runs.children is 'Of a root: how many runs its tree has started.';
comment on column public.agent_runs.output_schema is 'Of a run that bids or works for a contract: what it has to answer, in place of the agent''s own schema.';
comment on column public.agent_runs.chat is
    'Of a group chat: phase (speak, bid, over), messages so far, bids by member, and what ended it.';
comment on column public.agent_runs.charged_tokens is 'What its own turns were charged: model calls, and of an engine all that its run started; of its children their own rows.';
comment on column public.agent_runs.engines is 'Of agents with an engine that have had the word, by id@version: what the engine meant to the user then. It stays for the whole run.';

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
    child_execution_id uuid,
    constraint agent_run_steps_pkey primary key (tenant_id, run_id, n),
    constraint agent_run_steps_run_fkey foreign key (tenant_id, run_id) references public.agent_runs (tenant_id, id),
    constraint agent_run_steps_child_fkey foreign key (tenant_id, child_run_id) references public.agent_runs (tenant_id, id),
    constraint agent_run_steps_kind_check check (kind in ('model', 'bid', 'tool', 'handoff', 'delegate', 'contract')),
    constraint agent_run_steps_status_check check (status in ('open', 'done', 'failed', 'refused')),
    constraint agent_run_steps_finished_check check ((status = 'open') = (finished_at is null))
) with (fillfactor = 80);
create index if not exists agent_run_steps_child_idx on public.agent_run_steps (tenant_id, child_run_id) where child_run_id is not null;
comment on table public.agent_run_steps is
    'The journal of a run: a row for each model call, with the answer, and one for each tool call, handover and delegation that it asked for. What stands here is not done again.';
comment on column public.agent_run_steps.arguments_hash is 'SHA-256 of name and arguments as PostgreSQL prints jsonb: two calls are the same when it is.';
comment on column public.agent_run_steps.child_execution_id is 'Of a turn of an agent with an engine: the run of the engine. The turn is open until that has ended.';
comment on column public.agent_run_steps.approval is 'What people said to a call that needs their approval: decision, comment, by.';

create table if not exists public.contract_calls (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    run_id uuid not null,
    n integer not null,
    task jsonb not null,
    rule text not null,
    most_tokens bigint,
    accept jsonb,
    state text not null default 'open',
    deadline_at timestamptz not null,
    created_at timestamptz not null,
    closed_at timestamptz,
    constraint contract_calls_pkey primary key (tenant_id, id),
    constraint contract_calls_step_fkey foreign key (tenant_id, run_id, n) references public.agent_run_steps (tenant_id, run_id, n),
    constraint contract_calls_rule_check check (rule in ('lowest', 'score')),
    constraint contract_calls_state_check check (state in ('open', 'awarded', 'done', 'failed')),
    constraint contract_calls_closed_check check ((state in ('done', 'failed')) = (closed_at is not null))
) with (fillfactor = 80);
create unique index if not exists contract_calls_step_idx on public.contract_calls (tenant_id, run_id, n);
comment on table public.contract_calls is 'Tasks that a run has put out to bids, by the place of the call in its journal.';
comment on column public.contract_calls.accept is 'JSON schema of the work: what does not fit has failed, and the next bid is taken.';

create table if not exists public.contract_bids (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    call_id uuid not null,
    user_id uuid not null,
    agent_id uuid not null,
    version integer not null,
    state text not null default 'asked',
    price_tokens bigint,
    eta_s bigint,
    plan text,
    score double precision,
    run_id uuid,
    work_run_id uuid,
    decided_at timestamptz,
    constraint contract_bids_pkey primary key (tenant_id, id),
    constraint contract_bids_call_fkey foreign key (tenant_id, call_id) references public.contract_calls (tenant_id, id),
    constraint contract_bids_version_fkey foreign key (tenant_id, agent_id, version) references public.agent_versions (tenant_id, agent_id, version),
    constraint contract_bids_run_fkey foreign key (tenant_id, run_id) references public.agent_runs (tenant_id, id),
    constraint contract_bids_work_fkey foreign key (tenant_id, work_run_id) references public.agent_runs (tenant_id, id),
    constraint contract_bids_state_check check (state in ('asked', 'late', 'refused', 'rejected', 'accepted', 'done', 'failed')),
    constraint contract_bids_price_check check (price_tokens > 0 and eta_s >= 0 and (state not in ('rejected', 'accepted', 'done') or price_tokens is not null))
) with (fillfactor = 80);
create index if not exists contract_bids_call_idx on public.contract_bids (tenant_id, call_id);
create unique index if not exists contract_bids_award_idx on public.contract_bids (tenant_id, call_id) where state in ('accepted', 'done');
create index if not exists contract_bids_agent_idx on public.contract_bids (tenant_id, agent_id, version);
create index if not exists contract_bids_run_idx on public.contract_bids (tenant_id, run_id);
create index if not exists contract_bids_work_idx on public.contract_bids (tenant_id, work_run_id);
comment on table public.contract_bids is 'Whom a task was offered, and what they bid: late, refused (dearer than the call allows, or no bid at all), rejected, or accepted, done, failed.';

create table if not exists public.agent_run_state (
    tenant_id uuid not null,
    root_run_id uuid not null,
    key text not null,
    user_id uuid not null,
    value jsonb,
    version bigint not null,
    run_id uuid not null,
    updated_at timestamptz not null,
    constraint agent_run_state_pkey primary key (tenant_id, root_run_id, key),
    constraint agent_run_state_root_fkey foreign key (tenant_id, root_run_id) references public.agent_runs (tenant_id, id),
    constraint agent_run_state_run_fkey foreign key (tenant_id, run_id) references public.agent_runs (tenant_id, id),
    constraint agent_run_state_key_check check (key <> '' and length(key) <= 100),
    constraint agent_run_state_value_check check (octet_length(value::text) <= 262144),
    constraint agent_run_state_version_check check (version > 0)
);
create index if not exists agent_run_state_run_idx on public.agent_run_state (tenant_id, run_id);
comment on table public.agent_run_state is 'What the runs of a tree share, by key: written only by who names the version they read.';

create table if not exists public.run_artifacts (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    run_id uuid not null,
    user_id uuid not null,
    name text not null,
    media_type text not null,
    content text not null,
    created_at timestamptz not null,
    constraint run_artifacts_pkey primary key (tenant_id, id),
    constraint run_artifacts_run_fkey foreign key (tenant_id, run_id) references public.agent_runs (tenant_id, id),
    constraint run_artifacts_name_check check (name <> '' and length(name) <= 200),
    constraint run_artifacts_media_type_check check (media_type ~ '^[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,60}$'),
    constraint run_artifacts_content_check check (octet_length(content) <= 1048576)
);
create unique index if not exists run_artifacts_name_idx on public.run_artifacts (tenant_id, run_id, name);
comment on table public.run_artifacts is 'What runs made, by name: texts that outlive the conversation.';

-- Agreements: tables -----------------------------------------------------------------------------------------------
create table if not exists public.protocol_agreements (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    name text not null,
    status text not null default 'proposed',
    version integer,
    open_version integer,
    expires_at timestamptz not null default 'infinity',
    violations integer not null default 0,
    suspended_by text,
    reason text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint protocol_agreements_pkey primary key (tenant_id, id),
    constraint protocol_agreements_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint protocol_agreements_name_check check (name <> '' and octet_length(name) <= 800),
    constraint protocol_agreements_status_check check (status in ('proposed', 'active', 'suspended', 'rejected', 'withdrawn', 'terminated', 'expired')),
    constraint protocol_agreements_version_check check (case when status in ('active', 'suspended') then version is not null and version > 0
        when status in ('proposed', 'rejected', 'withdrawn') then version is null else true end),
    constraint protocol_agreements_open_check check (case when status = 'proposed' then open_version is not null and open_version > 0
        when status in ('rejected', 'withdrawn', 'terminated', 'expired') then open_version is null else true end),
    constraint protocol_agreements_violations_check check (violations >= 0),
    constraint protocol_agreements_suspended_check check (suspended_by is null or status = 'suspended'),
    constraint protocol_agreements_reason_check check (octet_length(reason) <= 2000)
);
create index if not exists protocol_agreements_user_idx on public.protocol_agreements (tenant_id, user_id);
comment on table public.protocol_agreements is 'What parties have agreed on: which messages, by whom, in reply to what, until when. Its text stands in agreement_versions.';
comment on column public.protocol_agreements.user_id is 'Who proposed it first.';
comment on column public.protocol_agreements.version is 'The version that binds; null before there is one.';
comment on column public.protocol_agreements.open_version is 'The version that not all parties have answered.';
comment on column public.protocol_agreements.violations is 'Messages that broke it since it began or was resumed; the full count is the rows of agreement_violations.';
comment on column public.protocol_agreements.suspended_by is 'The party that suspended it; null: too many violations, or an admin.';

create or replace function vanilla.keep_agreement() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if new.status <> old.status and not coalesce(new.status = any (case old.status
            when 'proposed' then '{active,rejected,withdrawn,expired,terminated}'
            when 'active' then '{suspended,terminated,expired}'
            when 'suspended' then '{active,terminated,expired}' end::text[]), false)
       or new.version < old.version then
        raise exception 'an agreement that is % does not become %', old.status, new.status using errcode = 'VS409';
    end if;
    return new;
end
$f$;
comment on function vanilla.keep_agreement() is 'Trigger: an agreement changes its status as docs/design/channels.md draws it, and never goes back to an earlier version.';
create or replace trigger protocol_agreements_states before update on public.protocol_agreements
    for each row execute function vanilla.keep_agreement();

create table if not exists public.agreement_parties (
    tenant_id uuid not null,
    agreement_id uuid not null,
    party text not null,
    user_id uuid not null,
    constraint agreement_parties_pkey primary key (tenant_id, agreement_id, party),
    constraint agreement_parties_agreement_fkey foreign key (tenant_id, agreement_id) references public.protocol_agreements (tenant_id, id),
    constraint agreement_parties_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint agreement_parties_party_check check (party ~ '^[a-z][a-z0-9_]{0,62}$')
);
create index if not exists agreement_parties_user_idx on public.agreement_parties (tenant_id, user_id);
comment on table public.agreement_parties is 'Who agrees: a role by name, and the user who answers for it.';

create table if not exists public.agreement_versions (
    tenant_id uuid not null,
    agreement_id uuid not null,
    version integer not null,
    terms jsonb not null,
    hash bytea not null,
    state text not null default 'proposed',
    proposed_by text not null,
    user_id uuid not null,
    proposed_at timestamptz not null,
    decided_at timestamptz,
    constraint agreement_versions_pkey primary key (tenant_id, agreement_id, version),
    constraint agreement_versions_party_fkey foreign key (tenant_id, agreement_id, proposed_by) references public.agreement_parties (tenant_id, agreement_id, party),
    constraint agreement_versions_version_check check (version > 0),
    constraint agreement_versions_hash_check check (hash = sha256(convert_to(terms::text, 'UTF8'))),
    constraint agreement_versions_state_check check (state in ('proposed', 'countered', 'rejected', 'withdrawn', 'expired', 'active', 'superseded')),
    constraint agreement_versions_decided_check check ((state = 'proposed') = (decided_at is null))
);
create index if not exists agreement_versions_user_idx on public.agreement_versions (tenant_id, user_id);
create index if not exists agreement_versions_party_idx on public.agreement_versions (tenant_id, agreement_id, proposed_by);
comment on table public.agreement_versions is 'What was proposed, immutable: acts, price, sla, data, gate, limits, parties and end.';
comment on column public.agreement_versions.terms is 'All that it says, with the parties and expires_at; acts as docs/channels.md describes them.';
comment on column public.agreement_versions.hash is 'SHA-256 of the terms'' text as PostgreSQL prints jsonb, in UTF-8: what a party accepts.';

create table if not exists public.agreement_acceptances (
    tenant_id uuid not null,
    agreement_id uuid not null,
    version integer not null,
    party text not null,
    user_id uuid not null,
    hash bytea not null,
    accepted_at timestamptz not null,
    constraint agreement_acceptances_pkey primary key (tenant_id, agreement_id, version, party),
    constraint agreement_acceptances_version_fkey foreign key (tenant_id, agreement_id, version)
        references public.agreement_versions (tenant_id, agreement_id, version),
    constraint agreement_acceptances_party_fkey foreign key (tenant_id, agreement_id, party)
        references public.agreement_parties (tenant_id, agreement_id, party)
);
create index if not exists agreement_acceptances_party_idx on public.agreement_acceptances (tenant_id, agreement_id, party);
create index if not exists agreement_acceptances_user_idx on public.agreement_acceptances (tenant_id, user_id);
comment on table public.agreement_acceptances is 'Which party accepted which hash, and when. Who proposes a version accepts it.';

create or replace function vanilla.keep_agreement_version() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if (old.tenant_id, old.agreement_id, old.version, old.terms::text, old.hash, old.proposed_by, old.user_id, old.proposed_at)
            is distinct from (new.tenant_id, new.agreement_id, new.version, new.terms::text, new.hash, new.proposed_by, new.user_id, new.proposed_at) then
        raise exception 'what was proposed does not change' using errcode = 'VS409', hint = 'Counter or amend it.';
    elsif new.state <> old.state and old.state <> 'proposed' and not (old.state = 'active' and new.state = 'superseded') then
        raise exception 'a version that is % does not become %', old.state, new.state using errcode = 'VS409';
    elsif new.state = 'active' and old.state = 'proposed' and exists (
            select from public.agreement_parties p where p.tenant_id = new.tenant_id and p.agreement_id = new.agreement_id and not exists (
                select from public.agreement_acceptances a where a.tenant_id = p.tenant_id and a.agreement_id = p.agreement_id and a.version = new.version
                    and a.party = p.party and a.hash = new.hash)) then
        raise exception 'not every party has accepted this version' using errcode = 'VS409';
    end if;
    return new;
end
$f$;
comment on function vanilla.keep_agreement_version() is 'Trigger: terms never change, and a version is active only when every party has accepted its hash.';
create or replace trigger agreement_versions_immutable before update on public.agreement_versions
    for each row execute function vanilla.keep_agreement_version();

create table if not exists public.agreement_violations (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    agreement_id uuid not null,
    version integer not null,
    channel_id uuid not null,
    participant_id uuid not null,
    party text,
    user_id uuid not null,
    performative text not null,
    rule text not null,
    path text not null default '',
    message text not null,
    created_at timestamptz not null,
    constraint agreement_violations_pkey primary key (tenant_id, id),
    constraint agreement_violations_version_fkey foreign key (tenant_id, agreement_id, version)
        references public.agreement_versions (tenant_id, agreement_id, version),
    constraint agreement_violations_rule_check check (rule in ('performative', 'sender', 'reply', 'conversation', 'deadline', 'limit', 'schema', 'price', 'latency', 'gate'))
);
create index if not exists agreement_violations_agreement_idx on public.agreement_violations (tenant_id, agreement_id, version, created_at);
create index if not exists agreement_violations_user_idx on public.agreement_violations (tenant_id, user_id);
comment on table public.agreement_violations is 'Messages that broke an agreement and so were refused, of the rule latency delivered: who, which rule, where. Never what the message said.';
comment on column public.agreement_violations.path is 'JSON pointer into the message''s body, where the rule is one of the body.';

-- Channels: tables -------------------------------------------------------------------------------------------------
create table if not exists public.communication_channels (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    name text not null,
    kind text not null,
    status text not null default 'open',
    agreement_id uuid,
    last_seq bigint not null default 0,
    max_messages bigint,
    max_attempts smallint not null default 5,
    open_conversations integer not null default 0,
    floor_policy text,
    floor_holder uuid,
    floor_s integer not null default 300,
    floor_until timestamptz,
    told_at timestamptz not null default '-infinity',
    created_at timestamptz not null,
    closed_at timestamptz,
    close_reason text,
    constraint communication_channels_pkey primary key (tenant_id, id),
    constraint communication_channels_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint communication_channels_agreement_fkey foreign key (tenant_id, agreement_id) references public.protocol_agreements (tenant_id, id),
    constraint communication_channels_name_check check (name <> '' and octet_length(name) <= 800),
    constraint communication_channels_kind_check check (kind in ('direct', 'group', 'topic')),
    constraint communication_channels_status_check check (status in ('open', 'closed')),
    constraint communication_channels_closed_check check ((status = 'closed') = (closed_at is not null)),
    constraint communication_channels_figures_check check (last_seq >= 0 and max_messages > 0 and last_seq <= max_messages and open_conversations >= 0),
    constraint communication_channels_attempts_check check (max_attempts between 1 and 100),
    constraint communication_channels_policy_check check (floor_policy is null or floor_policy in ('round_robin', 'manager', 'bid') and kind = 'group'),
    constraint communication_channels_floor_check check (floor_s between 1 and 86400 and (floor_holder is null) = (floor_until is null)
        and (floor_holder is null or floor_policy is not null)),
    constraint communication_channels_reason_check check (octet_length(close_reason) <= 2000)
) with (fillfactor = 50);
-- nothing that a message changes is indexed, so that each is a HOT update
create index if not exists communication_channels_user_idx on public.communication_channels (tenant_id, user_id);
create index if not exists communication_channels_agreement_idx on public.communication_channels (tenant_id, agreement_id);
comment on table public.communication_channels is 'Channels: logs that participants write to and read from, in one order for all. Its row is the counter.';
comment on column public.communication_channels.kind is 'direct: two participants; group: any number, by turns with a floor_policy; topic: publishers and subscribers.';
comment on column public.communication_channels.open_conversations is 'Conversations of a bound channel that no act has ended.';
comment on column public.communication_channels.floor_until is 'When the floor may be taken from its holder.';
comment on column public.communication_channels.told_at is 'When waiting participants were last told that there is something to read.';

create table if not exists public.channel_participants (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    channel_id uuid not null,
    place smallint not null,
    name text not null,
    kind text not null,
    user_id uuid not null,
    party text,
    reads boolean not null default true,
    manages boolean not null default false,
    bid numeric,
    cursor_seq bigint not null default 0,
    attempts smallint not null default 0,
    lease_token uuid,
    lease_until timestamptz,
    lease_seq bigint,
    last_error text,
    constraint channel_participants_pkey primary key (tenant_id, id),
    constraint channel_participants_place_key unique (tenant_id, channel_id, place),
    constraint channel_participants_name_key unique (tenant_id, channel_id, name),
    constraint channel_participants_channel_fkey foreign key (tenant_id, channel_id) references public.communication_channels (tenant_id, id),
    constraint channel_participants_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint channel_participants_name_check check (name <> '' and octet_length(name) <= 200),
    constraint channel_participants_kind_check check (kind in ('user', 'agent', 'engine')),
    constraint channel_participants_figures_check check (place >= 0 and cursor_seq >= 0 and attempts >= 0),
    constraint channel_participants_lease_check check ((lease_token is null) = (lease_seq is null) and (lease_token is null or lease_until is not null)),
    constraint channel_participants_error_check check (octet_length(last_error) <= 2000)
) with (fillfactor = 50);
create index if not exists channel_participants_user_idx on public.channel_participants (tenant_id, user_id);
comment on table public.channel_participants is 'Who takes part in a channel, and how far they have read. Any number of workers serve one, of which one at a time has its lease.';
comment on column public.channel_participants.user_id is 'The person, or the one for whom an agent or engine acts.';
comment on column public.channel_participants.party is 'As which party of the channel''s agreement it speaks; null: it only listens.';
comment on column public.channel_participants.reads is 'Whether it acknowledges messages; what a mere publisher has not read is not kept for it.';
comment on column public.channel_participants.cursor_seq is 'All messages up to this one are done with: acknowledged, its own, or dead letters.';
comment on column public.channel_participants.attempts is 'How often the first message after the cursor failed; after the first failure one at a time is given.';
comment on column public.channel_participants.lease_until is 'End of the lease; without a token, when the next attempt may begin.';
comment on column public.channel_participants.lease_seq is 'The last message given under the lease.';

create table if not exists public.channel_messages (
    tenant_id uuid not null,
    channel_id uuid not null,
    seq bigint not null,
    sender_id uuid not null,
    user_id uuid not null,
    performative text not null,
    body jsonb,
    message_id text not null,
    in_reply_to bigint,
    conversation bigint not null,
    ended_by bigint,
    run_id uuid,
    created_at timestamptz not null,
    redact text[],
    execution_ids uuid[],
    redacted_at timestamptz,
    constraint channel_messages_pkey primary key (tenant_id, channel_id, seq),
    constraint channel_messages_sender_key unique (tenant_id, sender_id, message_id),      -- who sends is of one channel
    constraint channel_messages_sender_fkey foreign key (tenant_id, sender_id) references public.channel_participants (tenant_id, id),
    constraint channel_messages_performative_check check (performative in ('request', 'agree', 'refuse', 'inform', 'failure', 'query', 'cfp', 'propose',
        'accept_proposal', 'reject_proposal', 'cancel', 'not_understood', 'subscribe')),
    constraint channel_messages_message_check check (message_id <> '' and octet_length(message_id) <= 200),
    constraint channel_messages_order_check check (seq > 0 and in_reply_to > 0 and in_reply_to < seq and conversation > 0 and conversation <= seq)
);
create index if not exists channel_messages_user_idx on public.channel_messages (tenant_id, user_id) where user_id is not null;
create index if not exists channel_messages_redact_idx on public.channel_messages (tenant_id, channel_id, conversation) where redact is not null and redacted_at is null;
comment on table public.channel_messages is 'What was said, in order. Kept until every reader is past it and retention ends.';
comment on column public.channel_messages.user_id is 'For whom the sender spoke.';
comment on column public.channel_messages.body is 'Null when its author was erased.';
comment on column public.channel_messages.message_id is 'The sender''s own name for it: sent again, it is the same message.';
comment on column public.channel_messages.conversation is 'The message that began the conversation, its own seq when it did.';
comment on column public.channel_messages.ended_by is 'Of a message that began a conversation under an agreement: the one that ended it.';
comment on column public.channel_messages.run_id is 'The run that the sender was in.';
comment on column public.channel_messages.redact is 'Of data.redact of the agreement that bound it, the pointers that its body has something at; null: none.';
comment on column public.channel_messages.execution_ids is 'Of such a message: the executions, each the top of its tree, of the runs that said it and that acknowledged it.';
comment on column public.channel_messages.redacted_at is 'When what its conversation redacts was taken out of it.';

create table if not exists public.channel_dead_letters (
    tenant_id uuid not null,
    channel_id uuid not null,
    participant_id uuid not null,
    seq bigint not null,
    user_id uuid not null,
    attempts smallint not null,
    error text not null,
    created_at timestamptz not null,
    constraint channel_dead_letters_pkey primary key (tenant_id, channel_id, participant_id, seq),
    constraint channel_dead_letters_participant_fkey foreign key (tenant_id, participant_id) references public.channel_participants (tenant_id, id),
    constraint channel_dead_letters_error_check check (octet_length(error) <= 2000)
);
create index if not exists channel_dead_letters_user_idx on public.channel_dead_letters (tenant_id, user_id);
create index if not exists channel_dead_letters_participant_idx on public.channel_dead_letters (tenant_id, participant_id);
comment on table public.channel_dead_letters is 'Messages that a participant failed to handle max_attempts times; its cursor is past them. The message itself stays in the channel.';

-- metrics ----------------------------------------------------------------------------------------------------------
create table if not exists public.usage_events (
    tenant_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    id uuid not null default vanilla.uuid7(),
    kind text not null,
    resource text not null,
    ok boolean not null,
    latency_ms bigint not null,
    charged_tokens bigint not null default 0,
    cost_micros bigint not null default 0,
    constraint usage_events_pkey primary key (tenant_id, created_at, id),
    constraint usage_events_kind_check check (kind in ('agent', 'tool'))
) partition by range (created_at);
comment on table public.usage_events is 'What tools and agents did, a row for each, written with the step that did it: what metrics_rollup counts. Of models ai_executions is that.';

create table if not exists public.resource_performance_metrics (
    tenant_id uuid not null,
    created_at timestamptz not null,
    grain text not null,
    kind text not null,
    resource text not null,
    calls bigint not null,
    ok bigint not null,
    latency_ms_sum bigint not null,
    latency bigint[] not null,
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    charged_tokens bigint not null default 0,
    cost_micros bigint not null default 0,
    constraint resource_performance_metrics_pkey primary key (tenant_id, created_at, grain, kind, resource),
    constraint resource_performance_metrics_grain_check check (grain in ('minute', 'hour')),
    constraint resource_performance_metrics_kind_check check (kind in ('model', 'agent', 'tool')),
    constraint resource_performance_metrics_counts_check check (calls > 0 and ok between 0 and calls and cardinality(latency) = 12)
) partition by range (created_at);
comment on table public.resource_performance_metrics is 'How models, agents and tools did, by the minute and the hour. created_at is the beginning of the window.';
comment on column public.resource_performance_metrics.latency is
    'How many took up to 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 60000 milliseconds, and longer.';

create table if not exists public.resource_health (
    tenant_id uuid not null,
    kind text not null,
    resource text not null,
    calls bigint not null,
    ok_share double precision not null,
    latency_ms double precision not null,
    measured_at timestamptz not null,
    constraint resource_health_pkey primary key (tenant_id, kind, resource),
    constraint resource_health_share_check check (ok_share between 0 and 1 and calls > 0)
);
comment on table public.resource_health is 'How a model of a tenant whose agents are at work did in the last minute: what pick_model goes by.';

create table if not exists public.system_metrics (
    tenant_id uuid not null,
    created_at timestamptz not null,
    name text not null,
    value numeric not null,
    constraint system_metrics_pkey primary key (tenant_id, created_at, name)
) partition by range (created_at);
comment on table public.system_metrics is 'The platform by the minute: what waits, runs and is held. Written by the job metrics, and by nobody else.';
select vanilla.ensure_partitions();

-- the same that 010 writes: functions work before it has run, and no login has anything
grant select, insert, update, delete on public.resource_performance_metrics, public.resource_health, public.system_metrics to vanilla_definer, vanilla_system;
grant select, insert on public.usage_events to vanilla_definer, vanilla_system;
grant select, insert, update, delete on public.resource_allocations, public.allocation_holds, public.agents, public.agent_versions, public.agent_runs,
    public.agent_run_steps, public.agent_run_state, public.run_artifacts, public.contract_calls, public.contract_bids to vanilla_definer, vanilla_system;

grant select, insert, update, delete on public.protocol_agreements, public.agreement_parties, public.agreement_versions, public.agreement_acceptances,
    public.agreement_violations, public.communication_channels, public.channel_participants, public.channel_messages, public.channel_dead_letters
    to vanilla_definer, vanilla_system;

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
    if not p_skip then      -- most have nobody above who counts
        select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id and a.counted_by = '{}'
            and (a.parent_id is null or not p_parent) for no key update;
        if found then return v_node; end if;
    end if;
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

create or replace function vanilla.hold_of_tree(p_allocation public.resource_allocations) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if p_allocation.hold_id is not null then return p_allocation.hold_id; end if;
    return (select r.hold_id from public.resource_allocations r where r.tenant_id = p_allocation.tenant_id and r.id = p_allocation.root_id);
end
$f$;
comment on function vanilla.hold_of_tree(public.resource_allocations) is 'What the tree of an allocation holds of the wallet.';

-- What a step needs before anything else: the node, its time, the hold in the wallet, the wallet.
create or replace function vanilla.require_allocation(p_allocation public.resource_allocations) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v record;
begin
    if p_allocation.state = 'closed' then perform vanilla.refuse_step(p_allocation, 'closed'); end if;
    if p_allocation.state = 'expired' or p_allocation.expires_at <= v_now then perform vanilla.refuse_step(p_allocation, 'deadline'); end if;
    select h.state, h.expires_at, w.status into v from public.user_token_holds h join public.user_token_wallets w on w.tenant_id = h.tenant_id and w.user_id = h.user_id
        where h.tenant_id = p_allocation.tenant_id and h.id = vanilla.hold_of_tree(p_allocation);
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
    if p_allocation.notified_at is null and (p_allocation.spent_tokens + p_allocation.held_tokens) * 5 >= coalesce(p_allocation.most_tokens, p_allocation.budget_tokens) * 4 then
        update public.resource_allocations a set notified_at = vanilla.clock() where a.tenant_id = p_allocation.tenant_id and a.id = p_allocation.id
            returning * into p_allocation;
        perform vanilla.emit_event(p_allocation.tenant_id, 'allocation.warning', p_allocation.user_id, vanilla.allocation_json(p_allocation));
    end if;
    return p_allocation;
end
$f$;
comment on function vanilla.notify_allocation(public.resource_allocations) is 'Tells once that 80 % of a locked allocation''s budget, or of the most that it grows to, is spent or held.';

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
            if not found then
                perform vanilla.refuse('VS404', 'the allocation of this key ended and is past retention', jsonb_build_object('allocation_id', v_old.reference_id),
                    'Use a new key for a new allocation.');
            end if;
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
    if not exists (select from public.allocation_holds h where h.tenant_id = p_tenant_id and h.allocation_id = any (p_allocation_ids) and h.state = 'open') then return 0; end if;
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

create or replace function vanilla.hold_in(p_node public.resource_allocations, p_step text, p_tokens bigint, p_ttl interval, p_call jsonb, p_wrap_up boolean, p_execution_id uuid,
    p_lease bigint) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_hold public.allocation_holds;
    v_full public.resource_allocations;
begin
    if p_step is null or p_step = '' or length(p_step) > 255 then
        perform vanilla.refuse('VS400', 'a step has a name of 1 to 255 characters', '{"param": "step"}');
    elsif p_tokens is null or p_tokens not between 0 and 1000000000000000 then
        perform vanilla.refuse('VS400', 'a step holds 0 to 1,000,000,000,000,000 tokens', '{"param": "tokens"}');
    elsif p_ttl is null or p_ttl not between interval '1 microsecond' and interval '31 days' then
        perform vanilla.refuse('VS400', 'a hold lasts at most 31 days', '{"param": "ttl"}');
    end if;
    select * into v_hold from public.allocation_holds h
        where h.tenant_id = p_node.tenant_id and h.allocation_id = p_node.id and h.step = p_step and h.state <> 'released';
    if v_hold.state = 'settled' then return vanilla.allocation_hold_json(v_hold, p_node, true); end if;
    perform vanilla.require_allocation(p_node);
    if v_hold.state = 'open' then      -- who begins a step anew after a crash has what it had
        update public.allocation_holds h set expires_at = greatest(h.expires_at, least(v_now + p_ttl, p_node.expires_at)), lease = coalesce(p_lease, h.lease)
            where h.tenant_id = p_node.tenant_id and h.id = v_hold.id returning * into v_hold;
        return vanilla.allocation_hold_json(v_hold, p_node, true);
    end if;
    if p_tokens > vanilla.allocation_left(p_node, p_wrap_up) or p_node.open_holds >= p_node.max_concurrent then
        -- what ran out returns at the first touch that needs it
        perform vanilla.release_allocation_holds(p_node.tenant_id, array[p_node.id], v_now);
        select * into p_node from public.resource_allocations a where a.tenant_id = p_node.tenant_id and a.id = p_node.id;
    end if;
    if p_node.overrun_tokens > 0 or p_node.wrapped_up_at is not null or p_tokens > vanilla.allocation_left(p_node, p_wrap_up) then
        perform vanilla.refuse_step(p_node, 'budget_exhausted', jsonb_build_object('needed', p_tokens, 'wrapped_up', p_node.wrapped_up_at is not null));
    end if;
    v_full := p_node;
    if p_node.counted_by <> '{}' then
        select * into v_full from public.resource_allocations a where a.tenant_id = p_node.tenant_id and a.id = any (p_node.counted_by || p_node.id)
            and (a.requests >= a.max_requests or a.open_holds >= a.max_concurrent) order by a.depth limit 1;
    end if;
    if v_full.requests >= v_full.max_requests then
        perform vanilla.refuse_step(v_full, 'max_requests');
    elsif v_full.open_holds >= v_full.max_concurrent then
        perform vanilla.refuse_step(v_full, 'max_concurrent');
    end if;
    if p_node.counted_by <> '{}' then
        update public.resource_allocations a set requests = a.requests + 1, open_holds = a.open_holds + 1 where a.tenant_id = p_node.tenant_id and a.id = any (p_node.counted_by);
    end if;
    update public.resource_allocations a set requests = a.requests + 1, open_holds = a.open_holds + 1, held_tokens = a.held_tokens + p_tokens,
            wrapped_up_at = case when p_wrap_up then v_now end
        where a.tenant_id = p_node.tenant_id and a.id = p_node.id returning * into p_node;
    insert into public.allocation_holds as h (tenant_id, allocation_id, user_id, step, amount, wrap_up, execution_id, lease, call, expires_at, created_at)
        values (p_node.tenant_id, p_node.id, p_node.user_id, p_step, p_tokens, p_wrap_up, p_execution_id, p_lease, p_call, least(v_now + p_ttl, p_node.expires_at), v_now)
        returning * into v_hold;
    return vanilla.allocation_hold_json(v_hold, vanilla.notify_allocation(p_node), false);
end
$f$;
comment on function vanilla.hold_in(public.resource_allocations, text, bigint, interval, jsonb, boolean, uuid, bigint) is 'allocation_hold, of an allocation that is locked as lock_allocation does.';

create or replace function vanilla.allocation_hold(p_tenant_id uuid, p_allocation_id uuid, p_step text, p_tokens bigint, p_ttl interval default '10 minutes',
    p_call jsonb default null, p_wrap_up boolean default false, p_execution_id uuid default null, p_lease bigint default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    return vanilla.hold_in(vanilla.lock_allocation(p_tenant_id, p_allocation_id), p_step, p_tokens, p_ttl, p_call, p_wrap_up, p_execution_id, p_lease);
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
    v_hold_id uuid;
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
    v_node := case when v_step.state = 'open' and p_actual > v_step.amount then vanilla.grow_allocation(p_tenant_id, v_step.allocation_id, p_actual - v_step.amount, true)
        else vanilla.lock_allocation(p_tenant_id, v_step.allocation_id) end;
    select * into v_step from public.allocation_holds h where h.tenant_id = p_tenant_id and h.id = p_hold_id;
    -- What was released and used something after all is charged, unless another attempt of the step stands in its place: a step is never paid twice.
    if v_step.state = 'settled' or v_step.state = 'released' and (p_actual = 0 or exists (select from public.allocation_holds h
            where h.tenant_id = p_tenant_id and h.allocation_id = v_step.allocation_id and h.step = v_step.step and h.state <> 'released')) then
        return vanilla.allocation_hold_json(v_step, v_node, true);
    end if;
    v_open := v_step.state = 'open';
    v_hold_id := vanilla.hold_of_tree(v_node);
    select * into v_wallet_hold from public.user_token_holds h where h.tenant_id = p_tenant_id and h.id = v_hold_id for update;
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
            spent_tokens = a.spent_tokens + v_drawn, overrun_tokens = a.overrun_tokens + v_beyond,
            wrapped_up_at = case when v_step.wrap_up then coalesce(a.wrapped_up_at, v_step.closed_at) else a.wrapped_up_at end      -- released, and had all the same
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

create or replace function vanilla.count_tool_calls(p_tenant_id uuid, p_allocation_id uuid, p_calls integer, out node public.resource_allocations, out lacking public.resource_allocations)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
begin
    -- most have nobody above who counts
    update public.resource_allocations a set tool_calls = a.tool_calls + p_calls where a.tenant_id = p_tenant_id and a.id = p_allocation_id and a.counted_by = '{}'
        and a.state = 'open' and a.expires_at > vanilla.clock() and (a.tool_calls + p_calls > a.max_tool_calls) is not true returning * into node;
    if found then return; end if;
    node := vanilla.lock_allocation(p_tenant_id, p_allocation_id);
    if node.state <> 'open' or node.expires_at <= vanilla.clock() then
        lacking := node;
        return;
    end if;
    select * into lacking from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = any (node.counted_by || node.id) and a.tool_calls + p_calls > a.max_tool_calls
        order by a.depth limit 1;
    if found then return; end if;
    update public.resource_allocations a set tool_calls = a.tool_calls + p_calls where a.tenant_id = p_tenant_id and a.id = any (node.counted_by || node.id);
    node.tool_calls := node.tool_calls + p_calls;
end
$f$;
comment on function vanilla.count_tool_calls(uuid, uuid, integer) is
    'Counts tool calls on an allocation and whoever counts for it, all or none: the allocation, locked, and which one has ended or has no room, the topmost, or null.';

create or replace function vanilla.allocation_count_tool_call(p_tenant_id uuid, p_allocation_id uuid, p_calls integer default 1) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
begin
    if p_calls is null or p_calls not between 1 and 1000000 then perform vanilla.refuse('VS400', 'tool calls are counted from 1 on', '{"param": "calls"}'); end if;
    v := vanilla.count_tool_calls(p_tenant_id, p_allocation_id, p_calls);
    perform vanilla.require_allocation(v.node);
    if (v.lacking).id is not null then perform vanilla.refuse_step(v.lacking, 'max_tool_calls', jsonb_build_object('needed', p_calls)); end if;
    return jsonb_build_object('allocation_id', (v.node).id, 'tool_calls', (v.node).tool_calls, 'max_tool_calls', (v.node).max_tool_calls);
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

create or replace function vanilla.add_to_root(p_root public.resource_allocations, p_wallet public.user_token_wallets, p_tokens bigint, p_reason text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_entry public.user_token_ledger;
begin
    update public.user_token_holds h set amount = h.amount + p_tokens, requested = h.requested + p_tokens
        where h.tenant_id = p_root.tenant_id and h.id = p_root.hold_id and h.state = 'open';
    if not found then return false; end if;
    p_wallet.available_tokens := p_wallet.available_tokens - p_tokens;
    p_wallet.reserved_tokens := p_wallet.reserved_tokens + p_tokens;
    p_wallet.burn := p_wallet.burn + p_tokens;
    v_entry.direction := 'reserve';
    v_entry.amount := -p_tokens;
    v_entry.reserved_amount := p_tokens;
    v_entry.reason := p_reason;
    v_entry.source := 'allocation';
    v_entry.reference_type := 'resource_allocation';
    v_entry.reference_id := p_root.id;
    v_entry.hold_id := p_root.hold_id;
    perform vanilla.post_entry(p_wallet, v_entry);
    return true;
end
$f$;
comment on function vanilla.add_to_root(public.resource_allocations, public.user_token_wallets, bigint, text) is
    'Moves tokens that a locked wallet has into the hold of a locked tree; false when that hold has ended.';

-- What grows takes no more than the call that begins needs, and its ancestors grow with it. Each is locked after its parent; then
-- come the tree's hold and a further one that the caller will need, then the wallet.
create or replace function vanilla.grow_allocation(p_tenant_id uuid, p_allocation_id uuid, p_needed bigint, p_wrap_up boolean default false, p_hold_id uuid default null)
returns public.resource_allocations language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_node public.resource_allocations;
    v_path public.resource_allocations[];
    v_wanted bigint[] := '{}';
    v_wallet public.user_token_wallets;
    v_lacks bigint := p_needed;
    v_tokens bigint;
begin
    select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id and a.most_tokens is null and a.counted_by = '{}' for no key update;
    if found then return v_node; end if;      -- most do not grow, and have nobody above who counts
    select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id;
    if v_node.most_tokens is null then return vanilla.lock_allocation(p_tenant_id, p_allocation_id); end if;
    perform from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id in (
        with recursive up as (
            select v_node.id, v_node.parent_id
            union all
            select b.id, b.parent_id from up join public.resource_allocations b on b.tenant_id = p_tenant_id and b.id = up.parent_id)
        select up.id from up) order by a.depth, a.id for no key update;
    with recursive up as (
        select a.* from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id
        union all
        select b.* from up join public.resource_allocations b on b.tenant_id = p_tenant_id and b.id = up.parent_id)
    select array_agg(row(u.*)::public.resource_allocations order by u.depth desc) into v_path from up u;
    -- from the node up what each lacks, with the tenth of it that is kept for its last turn
    foreach v_node in array v_path loop
        v_lacks := v_lacks - (v_node.budget_tokens - v_node.carved_tokens - v_node.held_tokens - v_node.spent_tokens)
            + case when p_wrap_up or v_node.wrapped_up_at is not null then 0 else v_node.wrap_up_tokens end;
        v_lacks := case when v_lacks > 0 and v_node.state = 'open' then least(v_lacks + v_lacks / 9 + 2, v_node.most_tokens - v_node.budget_tokens) else 0 end;
        exit when v_lacks <= 0;
        v_wanted := v_wanted || v_lacks;
        p_wrap_up := false;
    end loop;
    -- and from the top down what each gets: what an ancestor has left is given also when that gets nothing
    for v_n in reverse cardinality(v_wanted) .. 1 loop
        select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = v_path[v_n].id;
        if v_node.parent_id is null then
            perform from public.user_token_holds h where h.tenant_id = p_tenant_id and h.id in (v_node.hold_id, p_hold_id) order by h.id for update;
            v_wallet := vanilla.lock_wallet(p_tenant_id, v_node.user_id);
            if v_wallet.available_tokens < v_wanted[v_n] then v_wallet := vanilla.reap_wallet(v_wallet); end if;
            v_tokens := case when v_wallet.status = 'active' and v_wallet.borrowed_tokens = 0 then least(v_wanted[v_n], v_wallet.available_tokens) else 0 end;
            continue when v_tokens <= 0 or not vanilla.add_to_root(v_node, v_wallet, v_tokens, 'allocation grew');
        else
            select least(v_wanted[v_n], vanilla.allocation_left(a)) into v_tokens from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = v_node.parent_id;
            continue when v_tokens <= 0;
            update public.resource_allocations a set carved_tokens = a.carved_tokens + v_tokens where a.tenant_id = p_tenant_id and a.id = v_node.parent_id;
        end if;
        update public.resource_allocations a set budget_tokens = a.budget_tokens + v_tokens, wrap_up_tokens = (a.budget_tokens + v_tokens) / 10
            where a.tenant_id = p_tenant_id and a.id = v_node.id;
    end loop;
    select * into v_node from public.resource_allocations a where a.tenant_id = p_tenant_id and a.id = p_allocation_id;
    return v_node;
end
$f$;
comment on function vanilla.grow_allocation(uuid, uuid, bigint, boolean, uuid) is
    'Locks an allocation that begins something and, where it grows, lets it have so much left, as far as it may and its ancestors and the wallet have it.';

create or replace function vanilla.allocation_room(p_allocation public.resource_allocations) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_above bigint;
begin
    if p_allocation.most_tokens is null then return vanilla.allocation_left(p_allocation); end if;
    if p_allocation.parent_id is null then
        select w.available_tokens into v_above from public.user_token_wallets w where w.tenant_id = p_allocation.tenant_id and w.user_id = p_allocation.user_id;
    else
        select vanilla.allocation_room(a) into v_above from public.resource_allocations a where a.tenant_id = p_allocation.tenant_id and a.id = p_allocation.parent_id;
    end if;
    return vanilla.allocation_left(p_allocation) + greatest(least(p_allocation.most_tokens - p_allocation.budget_tokens, v_above), 0) * 9 / 10;
end
$f$;
comment on function vanilla.allocation_room(public.resource_allocations) is 'What an allocation has left and could grow by now, without what would be kept for last turns.';

create or replace function vanilla.allocation_top_up(p_tenant_id uuid, p_allocation_id uuid, p_tokens bigint, p_idempotency_key text default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tokens bigint := vanilla.check_amount(p_tokens);
    v_node public.resource_allocations;
    v_parent public.resource_allocations;
    v_wallet public.user_token_wallets;
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
        perform from public.user_token_holds h where h.tenant_id = p_tenant_id and h.id = v_node.hold_id for update;
        v_wallet := vanilla.require_tokens(vanilla.lock_wallet(p_tenant_id, v_node.user_id), v_tokens);
        v_tokens := least(v_tokens, v_wallet.available_tokens);
        if v_tokens = 0 then
            perform vanilla.refuse('VS402', 'not enough tokens', jsonb_build_object('needed', p_tokens, 'available', 0, 'resets_at', v_wallet.next_reset_at),
                'An admin of the tenant can add tokens or change the level.');
        end if;
        if not vanilla.add_to_root(v_node, v_wallet, v_tokens, 'allocation topped up') then
            perform vanilla.refuse_step(v_node, 'deadline');      -- it ran out this moment
        end if;
    end if;
    update public.resource_allocations a set budget_tokens = a.budget_tokens + v_tokens,
            most_tokens = case when a.most_tokens is not null then greatest(a.most_tokens, a.budget_tokens + v_tokens) end,
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

create or replace function vanilla.lock_trees(p_user public.users) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_root record;
    v_holds jsonb := '[]';
begin
    for v_root in select a.id, a.hold_id from public.resource_allocations a where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and a.parent_id is null
            and a.state = 'open' order by a.id loop
        perform vanilla.lock_subtree(p_user.tenant_id, v_root.id);
        v_holds := v_holds || jsonb_build_object('tenant_id', p_user.tenant_id, 'hold_id', v_root.hold_id);
    end loop;
    return v_holds;
end
$f$;
comment on function vanilla.lock_trees(public.users) is 'Locks the open allocations of a user, trees and all; returns their holds in the wallet, which come next, as lock_money takes them.';

create or replace function vanilla.forget_allocations(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_id uuid;
begin
    -- all of them before their holds, and those before the wallet; who has had executions has them locked already
    perform vanilla.lock_money('{}', '{}', vanilla.lock_trees(p_user));
    for v_id in select a.id from public.resource_allocations a where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and a.parent_id is null
            and a.state = 'open' order by a.id loop
        perform vanilla.allocation_end(p_user.tenant_id, v_id, 'closed', 'erased');
    end loop;
    update public.allocation_holds h set call = null, usage = '{}' from public.resource_allocations a
        where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and h.tenant_id = a.tenant_id and h.allocation_id = a.id and (h.call is not null or h.usage <> '{}');
    update public.resource_allocations a set idempotency_key = null, request_hash = null, top_ups = '{}'
        where a.tenant_id = p_user.tenant_id and a.user_id = p_user.id and (a.idempotency_key is not null or a.top_ups <> '{}');
end
$f$;
comment on function vanilla.forget_allocations(public.users) is 'Ends the allocations of a user who is being erased; what their steps still use is charged as debt. Amounts stay.';

create or replace function vanilla.drop_allocations(p_before timestamptz, p_limit integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tenant uuid := vanilla.platform();
    v_roots uuid[];
    v_nodes uuid[];
    v_dropped integer := 0;
begin
    loop
        select a.tenant_id into v_tenant from public.resource_allocations a where a.tenant_id > v_tenant order by a.tenant_id limit 1;
        exit when not found;
        v_roots := array(
            select r.id from public.resource_allocations r where r.tenant_id = v_tenant and r.parent_id is null and r.state <> 'open' and r.closed_at < p_before
                and not exists (select from public.user_token_holds h where h.tenant_id = r.tenant_id and h.id = r.hold_id and h.state = 'open')
                and not exists (select from public.resource_allocations a where a.tenant_id = r.tenant_id and a.root_id = r.id and (a.state = 'open'
                    or exists (select from public.allocation_holds h where h.tenant_id = a.tenant_id and h.allocation_id = a.id and (h.state = 'open' or h.closed_at >= p_before))
                    or exists (select from public.agent_runs x where x.tenant_id = a.tenant_id and x.allocation_id = a.id)
                    or exists (select from public.workflow_executions e where e.tenant_id = a.tenant_id and e.allocation_id = a.id)))
            order by r.closed_at limit p_limit - v_dropped for update skip locked);
        v_nodes := array(select a.id from public.resource_allocations a where a.tenant_id = v_tenant and a.root_id = any (v_roots));
        delete from public.allocation_holds h where h.tenant_id = v_tenant and h.allocation_id = any (v_nodes);
        delete from public.resource_allocations a where a.tenant_id = v_tenant and a.id = any (v_nodes);
        v_dropped := v_dropped + cardinality(v_roots);
        exit when v_dropped >= p_limit;
    end loop;
    return v_dropped;
end
$f$;
comment on function vanilla.drop_allocations(timestamptz, integer) is
    'Deletes up to p_limit trees that ended before, with their steps, when the runs and executions that they paid are gone; returns how many. The ledger stays.';

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
    elsif coalesce(p_definition ->> 'instructions', '') = '' or coalesce(p_definition ->> 'model', p_definition ->> 'engine', '') = '' then
        return 'An agent has instructions and a model or an engine.';
    elsif p_definition ->> 'engine' is not null then      -- its flow has these of its own
        select f.key into v from jsonb_each(p_definition) f where f.value not in ('null', '[]')
            and f.key in ('model', 'fallbacks', 'temperature', 'max_output_tokens', 'tools', 'handoffs', 'delegates', 'chat', 'contract') order by f.key limit 1;
        if found then return format('An agent with an engine has no %s.', v.key); end if;
    end if;
    for v in select l.key, l.value from jsonb_each(vanilla.agent_limits(p_definition)) l loop
        if not v_most ? v.key then return format('There is no limit %s.', v.key); end if;
        if jsonb_typeof(v.value) <> 'number' or (v.value #>> '{}')::numeric % 1 <> 0
           or (v.value #>> '{}')::numeric not between (v.key not in ('depth', 'children', 'tool_calls'))::integer and (v_most ->> v.key)::numeric then
            return format('The limit %s is a whole number up to %s.', v.key, v_most ->> v.key);
        end if;
    end loop;
    for v in select r.name, x.value from (values ('handoffs', p_definition -> 'handoffs'), ('delegates', p_definition -> 'delegates'), ('members', p_definition #> '{chat,members}'), ('bidders', p_definition #> '{contract,bidders}')) r (name, agents)
            cross join lateral jsonb_array_elements(case when jsonb_typeof(r.agents) = 'array' then r.agents else '[]' end) x loop
        if coalesce(v.value ->> 'agent', '') !~ '^[a-z0-9][a-z0-9_-]{0,39}(@[1-9][0-9]{0,8})?$' then
            return format('Each of %s names an agent: its slug, or slug@version.', v.name);
        end if;
    end loop;
    return case when p_definition #> '{contract,accept}' is not null
        then vanilla.schema_problem(p_definition #> '{contract,accept}', p_definition #> '{contract,accept,$defs}') end;
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
begin
    if v_problem is not null then
        perform vanilla.refuse('VS422', 'the agent is not valid', jsonb_build_object('param', 'definition'), v_problem);
    end if;
    if v_tenant is null then v_tenant := (vanilla.find_user(null, p_user_id)).tenant_id; end if;
    -- whose place it takes again is locked before it
    perform from public.users u join public.agents a on a.tenant_id = u.tenant_id and a.user_id = u.id
        where a.tenant_id = v_tenant and a.slug = p_slug and a.status = 'retired' for no key update of u;
    select * into v_agent from public.agents a where a.tenant_id = v_tenant and a.slug = p_slug for no key update;
    if found and vanilla.claim(5) = 'user' and v_agent.user_id is distinct from vanilla.claim(4)::uuid then
        perform vanilla.refuse('VS409', format('the name %s is taken', p_slug), '{"param": "slug"}', 'Choose another slug.');
    elsif found and v_agent.user_id <> p_user_id then
        perform vanilla.refuse('VS409', format('%s is another user''s agent', p_slug), '{"param": "user_id"}', 'Leave the user out to change it.');
    elsif v_agent.id is null then
        v_user := vanilla.find_user(v_tenant, coalesce(p_user_id, vanilla.claim(4)::uuid));
        perform vanilla.require_place(v_user, 'agents');
        perform vanilla.hold_open(v_user);
    elsif v_agent.status = 'retired' then
        perform vanilla.require_place(u, 'agents') from public.users u where u.tenant_id = v_agent.tenant_id and u.id = v_agent.user_id;
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
    'Makes an agent, or the next version of the one of this slug; the latest text again makes none. A retired one is active again, when the level of whose it is allows one more. Own, or any user''s by an admin. VS422 when the definition is not valid.';

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
    v_above uuid := p_parent.allocation_id;
    v_limits jsonb;
    v_opened jsonb;
    v_most bigint;
begin
    if v_above is null then
        select e.allocation_id into v_above from public.workflow_executions e where e.tenant_id = p_run.tenant_id and e.id = p_run.execution_id;
        p_share := vanilla.run_share(p_run, v_above);
    end if;
    if v_above is not null then
        v_tokens := least(v_tokens, p_share);
        v_most := (select v_tokens from public.resource_allocations a where a.tenant_id = p_run.tenant_id and a.id = v_above and a.most_tokens is not null);
    elsif not p_exact then
        v_most := (select v_tokens from public.agent_versions v where v.tenant_id = p_run.tenant_id and v.agent_id = p_run.agent_id and v.version = p_run.version
            and v.definition #>> '{limits,tokens}' is null);
        -- the agent's own limit is the most it takes, not what it must have
        v_tokens := least(v_tokens, greatest((vanilla.lock_wallet(p_run.tenant_id, p_run.user_id)).available_tokens, 1));
    end if;
    if v_most > 0 then v_tokens := 1; end if;      -- it grows with its calls
    v_limits := jsonb_build_object('requests', p_run.limits -> 'requests', 'tool_calls', nullif(p_run.limits -> 'tool_calls', '0'),
        'wrap_up_tokens', case when p_run.engines ? (p_run.agent_id || '@' || p_run.version) then 0 else v_tokens / 10 end);      -- an engine has no last turn
    if v_above is null then
        v_opened := vanilla.allocation_open(p_run.tenant_id, p_run.user_id, v_tokens, v_limits, p_run.deadline_at, p_run.id);
    else
        if v_most > 0 then perform vanilla.grow_allocation(p_run.tenant_id, v_above, v_tokens); end if;
        v_opened := vanilla.allocation_carve(p_run.tenant_id, v_above, v_tokens, v_limits, p_run.deadline_at, p_run.id);
    end if;
    update public.resource_allocations a set most_tokens = v_most where a.tenant_id = p_run.tenant_id and a.id = (v_opened ->> 'allocation_id')::uuid and v_most > 0;
    return (v_opened ->> 'allocation_id')::uuid;
end
$f$;
comment on function vanilla.open_run_budget(public.agent_runs, public.agent_runs, bigint, boolean) is
    'The allocation of a run that begins: of its parent''s, of at most p_share tokens; else of its execution''s, if that has one; else of the wallet.';

create or replace function vanilla.open_execution_budget(p_execution public.workflow_executions, p_definition jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_tokens bigint := (p_definition ->> 'budget_tokens')::bigint;
    v_ends timestamptz := vanilla.clock() + make_interval(secs => least(coalesce((p_definition ->> 'max_duration_s')::integer, 2592000), 2592000));
    v_opened jsonb;
begin
    if v_tokens is null then return; end if;
    if p_execution.parent_execution_id is null or p_execution.allocation_id is null then
        v_opened := vanilla.allocation_open(p_execution.tenant_id, p_execution.user_id, v_tokens, '{}', v_ends);
    else
        select vanilla.allocation_carve(p_execution.tenant_id, a.id, least(v_tokens, vanilla.allocation_left(a)), '{}', v_ends) into v_opened
            from vanilla.grow_allocation(p_execution.tenant_id, p_execution.allocation_id, v_tokens) a;
    end if;
    update public.workflow_executions e set allocation_id = (v_opened ->> 'allocation_id')::uuid where e.tenant_id = p_execution.tenant_id and e.id = p_execution.id;
end
$f$;
comment on function vanilla.open_execution_budget(public.workflow_executions, jsonb) is
    'An execution whose definition has budget_tokens begins with a budget: of the wallet, or as a child of one that has a budget a part of that.';

create or replace function vanilla.end_execution_budget(p_execution public.workflow_executions) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    -- a child without one of its own has its parent's
    if not exists (select from public.workflow_executions e where e.tenant_id = p_execution.tenant_id and e.id = p_execution.parent_execution_id
            and e.allocation_id = p_execution.allocation_id) then
        perform vanilla.allocation_end(p_execution.tenant_id, p_execution.allocation_id, 'closed', 'execution ended');
    end if;
end
$f$;
comment on function vanilla.end_execution_budget(public.workflow_executions) is 'What an execution did not spend of its own budget goes back.';

create or replace function vanilla.run_share(p_run public.agent_runs, p_allocation_id uuid) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select vanilla.allocation_left(a) / greatest((select count(*) from public.workflow_steps s
            join public.workflow_executions e on e.tenant_id = s.tenant_id and e.id = s.execution_id
            join public.workflow_nodes n on n.tenant_id = s.tenant_id and n.workflow_id = e.workflow_id and n.version = e.version and n.node = s.node
            where s.tenant_id = p_run.tenant_id and s.execution_id = p_run.execution_id and s.status in ('pending', 'ready', 'waiting')
              and (n.kind = 'agent' and s.item = -1 or s.item >= 0)
              and not exists (select from public.agent_runs r where r.tenant_id = s.tenant_id and r.execution_id = s.execution_id and r.node = s.node and r.item = s.item
                and r.finished_at is null)), 1)
    from public.resource_allocations a where a.tenant_id = p_run.tenant_id and a.id = p_allocation_id
$f$;
comment on function vanilla.run_share(public.agent_runs, uuid) is
    'The part of an execution''s budget that a run of one of its nodes may take: what is left, by the nodes and items that have yet to begin.';

-- Inlined.
create or replace function vanilla.budget_view(p_allocation public.resource_allocations) returns jsonb language sql stable
    return jsonb_build_object('allocation_id', p_allocation.id, 'budget', p_allocation.budget_tokens, 'spent', p_allocation.spent_tokens, 'held', p_allocation.held_tokens,
        'carved', p_allocation.carved_tokens, 'left', vanilla.allocation_left(p_allocation), 'notified', p_allocation.notified_at is not null);
comment on function vanilla.budget_view(public.resource_allocations) is 'What a run may still spend, in tokens, as a worker reads it.';

create or replace function vanilla.require_turn(p_run public.agent_runs, p_wrap_up boolean default false) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if p_run.deadline_at <= vanilla.clock() then
        perform vanilla.refuse('VS429', 'the run''s time is over', jsonb_build_object('stop_reason', 'deadline', 'limit', p_run.limits -> 'seconds', 'resets_at', null));
    elsif p_run.turns >= (p_run.limits ->> 'turns')::integer and not p_wrap_up then
        perform vanilla.refuse('VS429', 'the run has had all of its turns', jsonb_build_object('stop_reason', 'max_turns', 'limit', p_run.limits -> 'turns', 'used', p_run.turns,
            'resets_at', null));
    end if;
end
$f$;
comment on function vanilla.require_turn(public.agent_runs, boolean) is 'Refuses the next turn of a run that has no time or no turns left, with the stop reason; the last one with what is put by for it may be one more.';

create or replace function vanilla.hold_turn(p_tenant_id uuid, p_allocation_id uuid, p_step jsonb, p_call jsonb, p_prompt bigint, p_output bigint, p_choices integer, p_clamp boolean, p_ttl interval,
    p_call_id uuid, p_hold_id uuid) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_wrap_up boolean := coalesce((p_step ->> 'wrap_up')::boolean, false);
    v_run public.agent_runs;
    v_node public.resource_allocations;
    v_needed bigint := vanilla.call_tokens(p_call, p_prompt, 0, p_output);
    v_weight numeric := (p_call ->> 'output_weight')::numeric;
    v_clamped bigint;
begin
    if p_step ->> 'run_id' is not null then
        select * into v_run from public.agent_runs r where r.tenant_id = p_tenant_id and r.id = (p_step ->> 'run_id')::uuid and r.execution_id = (p_step ->> 'execution_id')::uuid
            and r.node = (p_step ->> 'n')::smallint and r.item = coalesce((p_step ->> 'item')::integer, -1) and r.finished_at is null;
        if not found then perform vanilla.refuse('VS409', 'no run of this step is under way', '{"stop_reason": "canceled"}'); end if;
        p_allocation_id := v_run.allocation_id;
    end if;
    perform vanilla.require_turn(v_run, v_wrap_up);
    v_node := vanilla.grow_allocation(p_tenant_id, p_allocation_id, v_needed, v_wrap_up, p_hold_id);
    if p_clamp and v_needed > vanilla.allocation_left(v_node, v_wrap_up) and v_weight > 0 then
        v_clamped := floor((vanilla.allocation_left(v_node, v_wrap_up) - vanilla.call_tokens(p_call, p_prompt, 0, 0)) / v_weight);
        if v_clamped >= coalesce((vanilla.setting(p_tenant_id, 'gateway.min_output_tokens'))::bigint, 16) * p_choices then
            p_output := v_clamped;
            v_needed := vanilla.call_tokens(p_call, p_prompt, 0, p_output);
        end if;
    end if;
    return vanilla.hold_in(v_node, p_call_id::text, v_needed, p_ttl, p_call || jsonb_build_object('workflow_execution_id', p_step -> 'execution_id', 'run_id', v_run.id), v_wrap_up,
            p_call_id, (p_step ->> 'lease')::bigint)
        || jsonb_build_object('output_limit', p_output, 'clamped', v_clamped is not null);
end
$f$;
comment on function vanilla.hold_turn(uuid, uuid, jsonb, jsonb, bigint, bigint, integer, boolean, interval, uuid, uuid) is
    'Reserves a model call of a run, or of another step of an execution with a budget, on that budget, in place of the wallet that has reserved that already; with p_clamp an output of what is left. Refused with a stop_reason or the reason of the allocation.';

create or replace function vanilla.allocation_call(p_tenant_id uuid, p_hold_id uuid) returns public.user_token_holds
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_call public.user_token_holds;
begin
    select h.tenant_id, h.id, h.user_id, h.amount, h.amount, 'resource_allocation', h.allocation_id, h.execution_id, (h.call ->> 'api_key_id')::uuid, h.call, h.created_at
        into v_call.tenant_id, v_call.id, v_call.user_id, v_call.amount, v_call.requested, v_call.reference_type, v_call.reference_id, v_call.execution_id, v_call.api_key_id, v_call.call,
            v_call.created_at
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
        select a.tenant_id, a.root_id from unnest(p_tenants, p_ids) e (tenant_id, id)
            cross join lateral (select x.allocation_id from public.workflow_executions x where x.tenant_id = e.tenant_id and x.id = e.id and x.allocation_id is not null offset 0) x
            join public.resource_allocations a on a.tenant_id = e.tenant_id and a.id = x.allocation_id
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
    for v_hold in select h.id from (
                select r.allocation_id from public.agent_runs r where r.tenant_id = p_tenant_id and r.execution_id = p_execution_id and r.finished_at is null
                union
                select e.allocation_id from public.workflow_executions e where e.tenant_id = p_tenant_id and e.id = p_execution_id and e.allocation_id is not null) r
            join public.allocation_holds h on h.tenant_id = p_tenant_id and h.allocation_id = r.allocation_id and h.state = 'open' and (p_lease is null or h.lease = p_lease)
                and h.call ->> 'workflow_execution_id' = p_execution_id::text
            order by h.allocation_id, h.id loop
        perform vanilla.allocation_release(p_tenant_id, v_hold.id);
    end loop;
end
$f$;
comment on function vanilla.release_run_calls(uuid, uuid, bigint) is 'Returns what model calls of an execution with a budget and of the runs in it, or of one lease, still hold.';

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
    v_run.chat := case when p_version.definition ? 'chat' then '{"phase": "speak", "messages": 0, "bids": {}}'::jsonb end;
    v_run.charged_tokens := 0;
    v_run.cost_micros := 0;
    v_run.started_at := vanilla.clock();
    v_run.deadline_at := v_run.started_at + make_interval(secs => (v_run.limits ->> 'seconds')::integer);
    return v_run;
end
$f$;
comment on function vanilla.new_run(public.agent_versions, public.workflow_executions, smallint, integer, jsonb, bigint) is 'A run of an agent as it begins, for a step of an execution; insert_run writes it.';

create or replace function vanilla.chat_members(p_run public.agent_runs) returns public.agent_versions[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_ref text;
    v_members public.agent_versions[] := '{}';
begin
    for v_ref in select x.value ->> 'agent' from public.agent_versions v
        cross join lateral jsonb_array_elements(v.definition #> '{chat,members}') with ordinality x
        where v.tenant_id = p_run.tenant_id and v.agent_id = p_run.agent_id and v.version = p_run.version order by x.ordinality
    loop
        v_members := v_members || vanilla.agent_of(p_run.tenant_id, p_run.user_id, v_ref);
    end loop;
    return v_members;
end
$f$;
comment on function vanilla.chat_members(public.agent_runs) is 'The members of a group chat in their order, as their references mean them now; refused when one is not there.';

create or replace function vanilla.give_word(p_run public.agent_runs, p_answer text default null) returns public.agent_runs
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_chat jsonb := (select v.definition -> 'chat' from public.agent_versions v where v.tenant_id = p_run.tenant_id and v.agent_id = p_run.agent_id and v.version = p_run.version);
    v_members public.agent_versions[] := vanilla.chat_members(p_run);
    v_count integer := cardinality(v_members);
    v_said integer := (p_run.chat ->> 'messages')::integer;
    v_next public.agent_versions;
    v_end text;
begin
    if p_run.chat ->> 'phase' = 'bid' then      -- the number of what it said; who says none does not want the word
        p_run.chat := jsonb_set(p_run.chat, array['bids', p_run.speaker_id::text], to_jsonb(coalesce(substring(p_answer from '[0-9]{1,6}')::integer, 0)));
    elsif p_answer is not null then
        if v_chat ->> 'floor' <> 'manager' or p_run.speaker_id <> p_run.agent_id then v_said := v_said + 1; end if;
        v_end := case when strpos(lower(p_answer), lower(v_chat ->> 'until')) > 0 then 'said'
            when v_chat ->> 'floor' = 'manager' and p_run.speaker_id = p_run.agent_id then 'manager'
            when v_said >= (v_chat ->> 'rounds')::integer * v_count then 'rounds' end;
        p_run.chat := p_run.chat || jsonb_build_object('messages', v_said, 'bids', '{}'::jsonb);
        if v_end is not null then
            p_run.chat := p_run.chat || jsonb_build_object('phase', 'over', 'ended_by', v_end);
            return p_run;
        end if;
    end if;
    if v_chat ->> 'floor' = 'round_robin' then
        v_next := v_members[1 + v_said % v_count];
    elsif v_chat ->> 'floor' = 'manager' then
        select v.* into v_next from public.agent_versions v where v.tenant_id = p_run.tenant_id and v.agent_id = p_run.agent_id and v.version = p_run.version;
    else
        select m.* into v_next from unnest(v_members) m where not p_run.chat -> 'bids' ? m.agent_id::text limit 1;
        p_run.chat := p_run.chat || jsonb_build_object('phase', case when found then 'bid' else 'speak' end);
        if not found then      -- the highest, and of equal ones the first
            select m.* into v_next from unnest(v_members) with ordinality as m order by (p_run.chat -> 'bids' ->> m.agent_id::text)::integer desc, m.ordinality limit 1;
        end if;
    end if;
    p_run.speaker_id := v_next.agent_id;
    p_run.speaker_version := v_next.version;
    return p_run;
end
$f$;
comment on function vanilla.give_word(public.agent_runs, text) is
    'Who speaks next in a group chat, by its floor: in turn, whom the manager has named (and the manager after each), or who bids most; or that it is over (said, manager, rounds).';

create or replace function vanilla.chat_seat(p_run public.agent_runs, p_agent_id uuid) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_seat uuid;
begin
    select p.id into v_seat from public.channel_participants p join public.agents a on a.tenant_id = p.tenant_id and a.slug = p.name
        where p.tenant_id = p_run.tenant_id and p.channel_id = p_run.id and a.id = p_agent_id;
    if not found then
        insert into public.channel_participants (tenant_id, channel_id, place, name, kind, user_id, reads, manages)
            select c.tenant_id, c.id, (select count(*) from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id), a.slug, 'agent', p_run.user_id, false,
                c.floor_policy = 'manager' and a.id = p_run.agent_id
            from public.communication_channels c join public.agents a on a.tenant_id = c.tenant_id and a.id = p_agent_id
            where c.tenant_id = p_run.tenant_id and c.id = p_run.id returning id into v_seat;
    end if;
    return v_seat;
end
$f$;
comment on function vanilla.chat_seat(public.agent_runs, uuid) is 'As which participant an agent is in the channel of a group chat; whom a member hands over to takes a seat then.';

create or replace function vanilla.tell_chat(p_run public.agent_runs, p_speaker_id uuid default null, p_n integer default null, p_text text default '') returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_channel public.communication_channels;
begin
    select * into v_channel from public.communication_channels c where c.tenant_id = p_run.tenant_id and c.id = p_run.id and c.status = 'open' for no key update;
    if not found then return; end if;      -- its owner closed it: the run goes on unwatched
    if p_text <> '' then
        v_channel.last_seq := v_channel.last_seq + 1;
        insert into public.channel_messages (tenant_id, channel_id, seq, sender_id, user_id, performative, body, message_id, conversation, run_id, created_at)
            values (v_channel.tenant_id, v_channel.id, v_channel.last_seq, vanilla.chat_seat(p_run, p_speaker_id), p_run.user_id, 'inform',
                jsonb_build_object('text', left(p_text, 16000)), p_run.id || ':' || p_n, 1, p_run.id, v_now);
    end if;
    v_channel.floor_holder := case p_run.chat ->> 'phase' when 'speak' then vanilla.chat_seat(p_run, p_run.speaker_id) end;
    update public.communication_channels c set last_seq = v_channel.last_seq, floor_holder = v_channel.floor_holder, told_at = v_now,
            floor_until = case when v_channel.floor_holder is not null then v_now + make_interval(secs => c.floor_s) end
        where c.tenant_id = v_channel.tenant_id and c.id = v_channel.id;
    perform pg_notify('vanilla_channels', v_channel.id::text);
end
$f$;
comment on function vanilla.tell_chat(public.agent_runs, uuid, integer, text) is
    'Posts what was said in a group chat to its channel, named by the run and the number in its journal, of which 16,000 characters; and who has the floor now, nobody while they bid.';

create or replace function vanilla.open_chat(p_run public.agent_runs) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_member public.agent_versions;
begin
    insert into public.communication_channels (tenant_id, id, user_id, name, kind, floor_policy, created_at)
        select p_run.tenant_id, p_run.id, p_run.user_id, a.name, 'group', coalesce(v.definition #>> '{chat,floor}', 'bid'), vanilla.clock()
        from public.agents a join public.agent_versions v on v.tenant_id = a.tenant_id and v.agent_id = a.id
        where a.tenant_id = p_run.tenant_id and a.id = p_run.agent_id and v.version = p_run.version;
    foreach v_member in array vanilla.chat_members(p_run) loop
        perform vanilla.chat_seat(p_run, v_member.agent_id);
    end loop;
    perform vanilla.tell_chat(p_run);
end
$f$;
comment on function vanilla.open_chat(public.agent_runs) is 'Opens the channel on which people watch a group chat: it has the id of the run, which alone speaks there, and its members take part.';

create or replace function vanilla.pin_engine(p_run public.agent_runs) returns public.agent_runs
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_key text := p_run.speaker_id || '@' || p_run.speaker_version;
    v_ref text := (select v.definition ->> 'engine' from public.agent_versions v where v.tenant_id = p_run.tenant_id and v.agent_id = p_run.speaker_id and v.version = p_run.speaker_version);
    v_found record;
begin
    if v_ref is not null and not coalesce(p_run.engines ? v_key, false) then
        v_found := vanilla.runnable_engine(vanilla.find_user(p_run.tenant_id, p_run.user_id), v_ref);
        p_run.engines := coalesce(p_run.engines, '{}') || jsonb_build_object(v_key, jsonb_build_object('engine_tenant_id', v_found.engine_tenant_id, 'engine_id', v_found.engine_id,
            'engine', v_found.engine, 'version', v_found.version, 'alias', v_found.alias, 'source', v_found.source, 'source_id', v_found.source_id));
    end if;
    return p_run;
end
$f$;
comment on function vanilla.pin_engine(public.agent_runs) is
    'The engine of who has the word, as the user of the run may run it now, written down once for the whole run; refused as a run of the engine would be.';

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
        p_run.limits := p_run.limits || jsonb_build_object('depth', least((p_run.limits ->> 'depth')::integer, (p_parent.limits ->> 'depth')::integer - 1),
            'tool_calls', least((p_run.limits ->> 'tool_calls')::bigint, (p_parent.limits ->> 'tool_calls')::bigint));
    end if;
    if p_run.chat is not null then p_run := vanilla.give_word(p_run); end if;
    p_run := vanilla.pin_engine(p_run);
    p_run.allocation_id := vanilla.open_run_budget(p_run, p_parent, p_share, p_exact);
    insert into public.agent_runs select (p_run).*;
    if p_run.chat is not null then perform vanilla.open_chat(p_run); end if;
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

create or replace function vanilla.count_anew(p_step public.workflow_queue) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_step.lost > 0 or p_step.attempt > 1 then
        update public.workflow_queue q set lost = 0, attempt = 1
            where q.tenant_id = p_step.tenant_id and q.execution_id = p_step.execution_id and q.node = p_step.node and q.item = p_step.item;
    end if;
end
$f$;
comment on function vanilla.count_anew(public.workflow_queue) is
    'A run that came on is not the one with which workers died or that failed before: it has its attempts again. Comes after money, as the queue does.';

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

-- A model is left out while it fails more than half of its calls, or takes five times as long as another; then one turn in ten tries it. When nobody has
-- asked it for a minute, nothing is known of it, and it is as good as any.
create or replace function vanilla.pick_model(p_tenant_id uuid, p_models text[], p_run_id uuid, p_turn integer) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    return (with known as (
        select m.model, m.place, h.ok_share, h.latency_ms, min(h.latency_ms) filter (where h.ok_share >= 0.5) over () as quickest
        from unnest(p_models) with ordinality as m (model, place)
        left join public.resource_health h on h.tenant_id = p_tenant_id and h.kind = 'model' and h.resource = m.model and h.measured_at > vanilla.clock() - interval '1 minute')
    select k.model from known k
    order by case when k.ok_share < 0.5 or k.latency_ms > 5 * k.quickest
            then cardinality(p_models) = 1 or get_byte(sha256(convert_to(p_run_id::text || p_turn, 'UTF8')), 0) < 26 else true end desc, k.place
    limit 1);
end
$f$;
comment on function vanilla.pick_model(uuid, text[], uuid, integer) is
    'The first of these models that does well now; the first of all when none does. The same turn of a run has the same answer while nothing changes.';

create or replace function vanilla.stop_reason(p_code text) returns text language sql immutable
    return case when p_code in ('max_turns', 'max_tool_calls', 'max_depth', 'max_children', 'budget_exhausted', 'deadline', 'loop_detected', 'cycle_refused',
            'canceled') then p_code
        when p_code in ('provider_error', 'rate_limited', 'timeout', 'provider_not_ready', 'model_not_found', 'unsupported_model') then 'provider_failed'
        when p_code = 'insufficient_tokens' then 'budget_exhausted'
        when p_code = 'cancelled' then 'canceled'
        else 'failed' end;
comment on function vanilla.stop_reason(text) is 'The stop reason of a run whose step ended with the code of an error.';

create or replace function vanilla.engine_code(p_status text, p_error jsonb) returns text language sql immutable
    return case when p_status = 'cancelled' then 'cancelled'
        when p_error #>> '{details,stop_reason}' in ('budget_exhausted', 'deadline') then p_error #>> '{details,stop_reason}'
        when vanilla.stop_reason(p_error ->> 'code') in ('budget_exhausted', 'provider_failed') then p_error ->> 'code'
        else 'engine_failed' end;
comment on function vanilla.engine_code(text, jsonb) is
    'The code by which a run of an agent ends whose engine ended so, or was not started for that error: of its budget, time and models the same, of anything else engine_failed.';

create or replace function vanilla.model_of(p_run public.agent_runs, p_definition jsonb) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if coalesce(p_definition -> 'fallbacks', 'null') in ('null', '[]') then return p_definition ->> 'model'; end if;
    return vanilla.pick_model(p_run.tenant_id, array[p_definition ->> 'model'] || array(select jsonb_array_elements_text(p_definition -> 'fallbacks')), p_run.id, p_run.turns);
end
$f$;
comment on function vanilla.model_of(public.agent_runs, jsonb) is 'The model of the next turn, of those that the definition of who has the word names.';

-- Inlined.
create or replace function vanilla.step_view(p_step public.agent_run_steps, p_slug text, p_end jsonb default null) returns jsonb language sql stable
    return jsonb_build_object('n', p_step.n, 'turn', p_step.turn, 'kind', p_step.kind, 'agent', p_slug, 'name', p_step.name, 'call_id', p_step.call_id,
        'arguments', p_step.arguments, 'status', p_step.status, 'approval', p_step.approval, 'result', p_step.result, 'child_run_id', p_step.child_run_id, 'end', p_end);
comment on function vanilla.step_view(public.agent_run_steps, text, jsonb) is 'A row of the journal as a worker reads it; p_end is how the run of an engine ended that is its turn.';

create or replace function vanilla.run_view(p_run public.agent_runs) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_definition jsonb;
    v_speaker jsonb;
    v_others jsonb := '{}';
    v_engine jsonb;
    v_steps jsonb;
begin
    select v.definition, jsonb_build_object('agent_id', a.id, 'slug', a.slug, 'version', v.version, 'definition', v.definition) into v_definition, v_speaker
        from public.agents a join public.agent_versions v on v.tenant_id = a.tenant_id and v.agent_id = a.id
        where a.tenant_id = p_run.tenant_id and a.id = p_run.speaker_id and v.version = p_run.speaker_version;
    if v_definition ?| '{handoffs,delegates,chat,contract}' then      -- what a tool of a model says of those it may turn to
        select coalesce(jsonb_object_agg(o.slug, o.description), '{}') into v_others from public.agents o where o.tenant_id = p_run.tenant_id and o.slug in (
            select split_part(x.value ->> 'agent', '@', 1)
                from (values (v_definition -> 'handoffs'), (v_definition -> 'delegates'), (v_definition #> '{chat,members}'), (v_definition #> '{contract,bidders}')) k (agents)
                cross join lateral jsonb_array_elements(coalesce(nullif(k.agents, 'null'), '[]')) x);
    end if;
    if p_run.engines is not null then
        select g.pin || jsonb_build_object('input', v.config -> 'input', 'parameters', v.config -> 'parameters') into v_engine
            from (select p_run.engines -> (p_run.speaker_id || '@' || p_run.speaker_version) as pin) g
            join public.engine_versions v on v.tenant_id = (g.pin ->> 'engine_tenant_id')::uuid and v.engine_id = (g.pin ->> 'engine_id')::uuid and v.version = (g.pin ->> 'version')::integer;
    end if;
    if p_run.turns > 0 or p_run.engines is not null then
        select jsonb_agg(vanilla.step_view(s, a.slug, (
                select jsonb_build_object('execution_id', e.id, 'status', e.status, 'output', e.output, 'error', e.error, 'code', vanilla.engine_code(e.status, e.error))
                from public.workflow_executions e where s.status = 'open' and e.tenant_id = s.tenant_id and e.id = s.child_execution_id and e.finished_at is not null)) order by s.n)
            into v_steps from public.agent_run_steps s join public.agents a on a.tenant_id = s.tenant_id and a.id = s.agent_id
            where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id;
    end if;
    return jsonb_build_object('run_id', p_run.id, 'root_run_id', p_run.root_run_id, 'parent_run_id', p_run.parent_run_id, 'state', p_run.state, 'turns', p_run.turns,
        'limits', p_run.limits, 'input', p_run.input, 'deadline_at', p_run.deadline_at, 'left_s', extract(epoch from p_run.deadline_at - vanilla.clock()), 'chat', p_run.chat,
        'output_schema', p_run.output_schema, 'model', vanilla.model_of(p_run, v_definition), 'engine', v_engine,
        'budget', (select vanilla.budget_view(a) from public.resource_allocations a where a.tenant_id = p_run.tenant_id and a.id = p_run.allocation_id),
        'speaker', v_speaker || jsonb_build_object('others', v_others),
        'steps', coalesce(v_steps, '[]'));
end
$f$;
comment on function vanilla.run_view(public.agent_runs) is 'A run as its worker needs it: who has the word, budget, and everything that was done.';

create or replace function vanilla.begin_run(p_lease jsonb, p_ref text, p_input jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $f$
declare
    v_step public.workflow_queue := vanilla.leased_step(p_lease);
    v_run public.agent_runs := vanilla.run_of_step(v_step);
    v_execution public.workflow_executions;
    v_speaker record;
begin
    if v_run.id is null then
        select * into v_execution from public.workflow_executions e where e.tenant_id = v_step.tenant_id and e.id = v_step.execution_id;
        if jsonb_typeof(p_input) is distinct from 'object' then perform vanilla.refuse('VS400', 'the input is a JSON object', '{"param": "input"}'); end if;
        v_run := vanilla.new_run(vanilla.agent_of(v_step.tenant_id, v_step.user_id, p_ref), v_execution, v_step.node, v_step.item, p_input);
        v_run.deadline_at := least(v_run.deadline_at, v_step.claimed_at + (v_run.deadline_at - v_run.started_at));      -- before the step's own time is over, when that is as long
        v_run := vanilla.insert_run(v_run);
    end if;
    if v_run.turns > 0 then      -- before that nobody was asked for anything
        perform vanilla.settle_contracts(v_run);
        -- what its children came to
        update public.agent_run_steps s set status = case c.state when 'completed' then 'done' else 'failed' end, finished_at = c.finished_at,
                result = jsonb_build_object('state', c.state, 'stop_reason', c.stop_reason, 'output', c.output - 'run_id', 'error', c.error)      -- the same answer is equal
            from public.agent_runs c
            where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.status = 'open' and c.tenant_id = s.tenant_id and c.id = s.child_run_id and c.finished_at is not null;
        if not exists (select from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.status = 'open' and s.kind <> 'handoff') then
            with handed as (
                update public.agent_run_steps s set status = 'done', finished_at = vanilla.clock()
                    where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.status = 'open' returning s.n, s.result)
            select a.id, (h.result ->> 'version')::integer as version into v_speaker from handed h join public.agents a on a.tenant_id = v_run.tenant_id and a.slug = h.result ->> 'agent'
                order by h.n desc limit 1;
            if found then
                v_run.speaker_id := v_speaker.id;
                v_run.speaker_version := v_speaker.version;
                if v_run.chat is not null then perform vanilla.tell_chat(v_run); end if;
            end if;
        end if;
    end if;
    v_run := vanilla.pin_engine(v_run);
    update public.agent_runs r set state = 'working', speaker_id = v_run.speaker_id, speaker_version = v_run.speaker_version, engines = v_run.engines
        where r.tenant_id = v_run.tenant_id and r.id = v_run.id
          and (r.state, r.speaker_id, r.speaker_version, r.engines) is distinct from ('working', v_run.speaker_id, v_run.speaker_version, v_run.engines);
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
        if v_edge is null and p_run.chat is not null then      -- a manager names who speaks
            select x.value || '{"again": true}' into v_edge from jsonb_array_elements(p_definition #> '{chat,members}') x
                where 'transfer_to_' || split_part(x.value ->> 'agent', '@', 1) = p_name;
        end if;
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
    if p_kind in ('delegate', 'contract') and (p_run.limits ->> 'depth')::integer < 1 then
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

create or replace function vanilla.cost_within(p_tenant_id uuid, p_execution_id uuid, out charged bigint, out cost_micros bigint)
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
    with recursive within as (
        select p_execution_id as id
        union all
        select e.id from within w join public.workflow_executions e on e.tenant_id = p_tenant_id and e.parent_execution_id = w.id)
    select coalesce(sum(s.charged_tokens), 0)::bigint, coalesce(sum(s.cost_micros), 0)::bigint
        from within w join public.workflow_steps s on s.tenant_id = p_tenant_id and s.execution_id = w.id and s.item = -1
$f$;
comment on function vanilla.cost_within(uuid, uuid) is 'What the steps of an execution and of all that it started were charged so far: tokens, and micros of USD.';

create or replace function vanilla.ask_engine(p_lease jsonb, p_turn integer, p_input jsonb) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $f$
declare
    v_step public.workflow_queue := vanilla.leased_step(p_lease);
    v_run public.agent_runs := vanilla.run_of_step(v_step);
    v_pin jsonb := v_run.engines -> (v_run.speaker_id || '@' || v_run.speaker_version);
begin
    if v_run.id is null or v_pin is null then perform vanilla.refuse('VS409', 'no run of this step with an engine is under way'); end if;
    if exists (select from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.turn = p_turn) then return; end if;      -- it stands there
    if v_run.turns + 1 <> p_turn then perform vanilla.refuse('VS409', 'turns are recorded in their order', jsonb_build_object('turns', v_run.turns)); end if;
    perform vanilla.require_turn(v_run);
    insert into public.agent_run_steps (tenant_id, run_id, n, user_id, turn, kind, agent_id, name, arguments, created_at)
        select v_run.tenant_id, v_run.id, coalesce(max(s.n), 0) + 1, v_run.user_id, p_turn, case v_run.chat ->> 'phase' when 'bid' then 'bid' else 'model' end, v_run.speaker_id,
            format('engine/%s@%s', v_pin ->> 'engine', v_pin ->> 'version'), p_input, vanilla.clock()
        from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id;
end
$f$;
comment on function vanilla.ask_engine(jsonb, integer, jsonb) is
    'Writes to the journal that a turn is a run of the agent''s engine, with its input: it starts when the step waits, and record_turn writes its answer. The same turn again changes nothing.';

create or replace function vanilla.record_turn(p_lease jsonb, p_turn integer, p_calls jsonb, p_answer jsonb, p_wrap_up boolean default false) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_step public.workflow_queue := vanilla.leased_step(p_lease);
    v_run public.agent_runs := vanilla.run_of_step(v_step);
    v_speaker public.agent_versions;
    v_slug text;
    v_call record;
    v_settled record;
    v_asked_before record;
    v_kind text;
    v_hash bytea;
    v_found record;
    v_stop text;
    v_asked integer;
    v_n integer;
    v_said integer;
    v_bids boolean;
    v_tools integer := 0;
    v_node public.resource_allocations;
    v_counted record;
    v_view jsonb;
    v_turn jsonb;
    v_calls integer := coalesce(jsonb_array_length(p_answer -> 'calls'), 0);
begin
    if v_run.id is null then perform vanilla.refuse('VS409', 'no run of this step is under way'); end if;
    if v_run.turns >= p_turn then return vanilla.run_view(v_run) || '{"stop": null}'; end if;      -- it stands there: its answer was lost
    if v_run.turns + 1 <> p_turn then perform vanilla.refuse('VS409', 'turns are recorded in their order', jsonb_build_object('turns', v_run.turns)); end if;
    select v as version, a.slug into v_found from public.agent_versions v join public.agents a on a.tenant_id = v.tenant_id and a.id = v.agent_id
        where v.tenant_id = v_run.tenant_id and v.agent_id = v_run.speaker_id and v.version = v_run.speaker_version;
    v_speaker := v_found.version;
    v_slug := v_found.slug;
    if v_run.parent_run_id is not null and jsonb_path_exists(p_answer, '$.calls[*] ? (@.name like_regex "^delegate_to_" || @.name == "contract_out")') then
        perform from public.agent_runs r where r.tenant_id = v_run.tenant_id and r.id = v_run.root_run_id for no key update;      -- before money: its own turns have it first too
    end if;
    v_settled := vanilla.settle_calls(v_run.tenant_id, p_calls);
    update public.workflow_steps s set charged_tokens = s.charged_tokens + v_settled.charged, cost_micros = s.cost_micros + v_settled.cost_micros
        where s.tenant_id = v_step.tenant_id and s.execution_id = v_step.execution_id and s.node = v_step.node and s.item in (-1, v_step.item);
    if v_run.engines is not null then
        update public.agent_run_steps s set status = 'done', result = p_answer, finished_at = v_now,      -- asked before
                (charged_tokens, cost_micros) = (select c.charged, c.cost_micros from vanilla.cost_within(s.tenant_id, s.child_execution_id) c)
            where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.turn = p_turn returning s.charged_tokens as charged, s.cost_micros, s.n into v_asked_before;
        if found then
            v_settled := v_asked_before;
            v_n := v_asked_before.n;
        end if;
    end if;
    if v_run.engines is null or not found then
        insert into public.agent_run_steps as r (tenant_id, run_id, n, user_id, turn, kind, agent_id, status, result, charged_tokens, cost_micros, created_at, finished_at)
            select v_run.tenant_id, v_run.id, coalesce(max(s.n), 0) + 1, v_run.user_id, p_turn, case v_run.chat ->> 'phase' when 'bid' then 'bid' else 'model' end, v_run.speaker_id, 'done', p_answer,
                v_settled.charged, v_settled.cost_micros, v_now, v_now
            from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id returning r.n, vanilla.step_view(r, v_slug) into v_n, v_view;
        v_turn := jsonb_build_array(v_view);
    end if;
    v_said := v_n;
    if v_calls > 0 and not p_wrap_up then
        if p_turn >= (v_run.limits ->> 'turns')::integer then v_stop := 'max_turns'; end if;
        if v_run.deadline_at <= v_now then v_stop := 'deadline'; end if;
    end if;
    for v_call in select c.value ->> 'id' as id, c.value ->> 'name' as name, coalesce(c.value -> 'arguments', '{}') as arguments
        from jsonb_array_elements(case when p_wrap_up then '[]' else coalesce(p_answer -> 'calls', '[]') end) with ordinality c order by c.ordinality
    loop
        v_n := v_n + 1;
        v_kind := case when starts_with(v_call.name, 'transfer_to_') and (v_speaker.definition ? 'chat' or jsonb_path_exists(v_speaker.definition, '$.handoffs[*].agent')) then 'handoff'
            when starts_with(v_call.name, 'delegate_to_') and jsonb_path_exists(v_speaker.definition, '$.delegates[*].agent') then 'delegate'
            when v_call.name = 'contract_out' and v_speaker.definition ? 'contract' then 'contract' else 'tool' end;
        v_hash := sha256(convert_to(jsonb_build_array(v_call.name, v_call.arguments)::text, 'UTF8'));
        select null::text as stop, null::public.agent_versions as target into v_found;      -- a record that has no fields cannot be asked for one
        if v_stop is null then
            v_found := vanilla.stop_of_call(v_run, v_speaker.definition, v_kind, v_call.name, v_hash);
            v_stop := v_found.stop;
        end if;
        if v_stop is null and v_kind = 'tool' then
            if (v_run.limits ->> 'tool_calls')::bigint = 0 then
                v_stop := 'max_tool_calls';
            else
                v_counted := vanilla.count_tool_calls(v_run.tenant_id, v_run.allocation_id, 1);
                v_node := v_counted.node;
                if (v_counted.lacking).id is not null then v_stop := 'max_tool_calls'; else v_tools := v_tools + 1; end if;
            end if;
        end if;
        if v_stop is null and (v_kind = 'contract' or v_kind = 'delegate' and (v_found.target).agent_id is not null) then
            -- whoever gets a contract works in another run than it has bid in
            v_asked := case v_kind when 'contract' then jsonb_array_length(v_speaker.definition #> '{contract,bidders}') + 1 else 1 end;
            update public.agent_runs r set children = r.children + v_asked where r.tenant_id = v_run.tenant_id and r.id = v_run.root_run_id
                and r.children + v_asked <= (r.limits ->> 'children')::integer;
            if not found then v_stop := 'max_children'; end if;
        end if;
        insert into public.agent_run_steps as r (tenant_id, run_id, n, user_id, turn, kind, agent_id, name, call_id, arguments, arguments_hash, created_at)
            values (v_run.tenant_id, v_run.id, v_n, v_run.user_id, p_turn, v_kind, v_run.speaker_id, v_call.name, v_call.id, v_call.arguments, v_hash, v_now)
            returning vanilla.step_view(r, v_slug) into v_view;
        v_turn := v_turn || v_view;
        if v_kind in ('handoff', 'delegate') then v_turn := null; end if;      -- it is read again
        if v_stop is null and v_kind in ('handoff', 'delegate') and (v_found.target).agent_id is null then
            update public.agent_run_steps s set status = 'failed', result = '{"error": "There is no such agent."}', finished_at = v_now
                where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = v_n;
        elsif v_stop is null and v_kind = 'handoff' then      -- when the calls beside it are done, which are still this agent's: begin_run
            update public.agent_run_steps s set result = jsonb_build_object('agent', substr(v_call.name, 13), 'version', (v_found.target).version)
                where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = v_n;
            v_run.path := v_run.path || (v_found.target).agent_id;
        end if;
    end loop;
    if v_stop is not null then
        v_turn := null;
        update public.agent_run_steps s set status = 'refused', result = jsonb_build_object('error', v_stop), finished_at = v_now
            where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.status = 'open';
    end if;
    if v_run.chat is not null then
        v_bids := v_run.chat ->> 'phase' = 'bid';
        if v_calls = 0 and not p_wrap_up then v_run := vanilla.give_word(v_run, coalesce(p_answer ->> 'text', '')); end if;
        perform vanilla.tell_chat(v_run, v_speaker.agent_id, v_said, case when v_bids then '' else coalesce(p_answer ->> 'text', '') end);
    end if;
    update public.agent_runs r set turns = p_turn, chat = v_run.chat, speaker_id = v_run.speaker_id, speaker_version = v_run.speaker_version, path = v_run.path,
            tool_calls = r.tool_calls + case when v_stop is null then v_tools else 0 end,
            charged_tokens = r.charged_tokens + v_settled.charged, cost_micros = r.cost_micros + v_settled.cost_micros
        where r.tenant_id = v_run.tenant_id and r.id = v_run.id returning * into v_run;
    perform vanilla.count_anew(v_step);
    if v_run.chat is not null or v_run.engines is not null then return vanilla.run_view(v_run) || jsonb_build_object('stop', v_stop); end if;
    -- the rest of it does not change with a turn
    if v_turn is null then
        select jsonb_agg(vanilla.step_view(s, v_slug) order by s.n) into v_turn from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n >= v_said;
    end if;
    if v_node.id is null then select * into v_node from public.resource_allocations a where a.tenant_id = v_run.tenant_id and a.id = v_run.allocation_id; end if;
    return jsonb_build_object('turns', v_run.turns, 'budget', vanilla.budget_view(v_node), 'steps', v_turn, 'stop', v_stop, 'model', vanilla.model_of(v_run, v_speaker.definition));
end
$f$;
comment on function vanilla.record_turn(jsonb, integer, jsonb, jsonb, boolean) is
    'Writes a model''s answer to the journal in the transaction that settles its calls, with what it asks for, and looks before any is made whether the run may go on: `stop` is null or why not. What the turn changed of the run''s view, whose rows of the journal come after those before. The same turn again changes nothing, and gives the whole view.';

-- Inlined.
create or replace function vanilla.call_view(p_call public.agent_run_steps) returns jsonb language sql stable
    return jsonb_build_object('n', p_call.n, 'status', p_call.status, 'approval', p_call.approval, 'result', p_call.result);
comment on function vanilla.call_view(public.agent_run_steps) is 'What a call came to, as a worker reads it.';

create or replace function vanilla.keep_call(p_run public.agent_runs, p_n integer, p_status text, p_result jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_call public.agent_run_steps;
begin
    if p_status = 'approval' then
        update public.agent_run_steps s set approval = p_result where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.n = p_n and s.status = 'open' returning * into v_call;
    elsif p_status in ('done', 'failed') then
        update public.agent_run_steps s set status = p_status, result = p_result, finished_at = vanilla.clock()
            where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.n = p_n and s.status = 'open' returning * into v_call;
        if found then
            insert into public.usage_events (tenant_id, created_at, kind, resource, ok, latency_ms)
                values (v_call.tenant_id, v_call.finished_at, 'tool', v_call.name, p_status = 'done', extract(epoch from v_call.finished_at - v_call.created_at) * 1000);
        end if;
    else
        perform vanilla.refuse('VS400', 'a call is done or failed, or has an approval', '{"param": "status"}');
    end if;
    if v_call.n is null then      -- it stands there: its answer was lost
        select * into v_call from public.agent_run_steps s where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.n = p_n;
    end if;
    return vanilla.call_view(v_call);
end
$f$;
comment on function vanilla.keep_call(public.agent_runs, integer, text, jsonb) is 'Writes to the journal of a locked run what a tool gave, or what people said to its call; gives what it came to.';

create or replace function vanilla.record_call(p_lease jsonb, p_n integer, p_status text, p_result jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $f$
declare
    v_step public.workflow_queue := vanilla.leased_step(p_lease);
    v_call jsonb := vanilla.keep_call(vanilla.run_of_step(v_step), p_n, p_status, p_result);
begin
    perform vanilla.count_anew(v_step);
    return v_call;
end
$f$;
comment on function vanilla.record_call(jsonb, integer, text, jsonb) is 'Writes to the journal what a tool gave, or what people said to its call; gives what it came to.';

create or replace function vanilla.record_call_and_admit(p_step jsonb, p_n integer, p_status text, p_result jsonb, p_model text, p_prompt_tokens bigint, p_sandbox_prompt_tokens bigint,
    p_output_limit bigint, p_choices integer, p_execution_id uuid, p_streamed boolean, p_ttl interval) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $f$
declare
    v_step public.workflow_queue := vanilla.leased_step(p_step);
    v_admitted jsonb;
begin
    perform vanilla.keep_call(vanilla.run_of_step(v_step), p_n, p_status, p_result);
    v_admitted := vanilla.admit_call(null, null, null, p_model, p_prompt_tokens, p_sandbox_prompt_tokens, p_output_limit, p_choices, p_execution_id, p_streamed, p_ttl, null, null, p_step);
    perform vanilla.count_anew(v_step);
    return v_admitted;
end
$f$;
comment on function vanilla.record_call_and_admit(jsonb, integer, text, jsonb, text, bigint, bigint, bigint, integer, uuid, boolean, interval) is
    'record_call of the last call of a turn and admit_call of the turn that follows, in one transaction: gives what admit_call does, and writes nothing when that refuses.';

create or replace function vanilla.write_state(p_run public.agent_runs, p_arguments jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_expected bigint := (p_arguments ->> 'version')::bigint;
    v_version bigint;
begin
    if v_expected = 0 then
        if (select count(*) from public.agent_run_state s where s.tenant_id = p_run.tenant_id and s.root_run_id = p_run.root_run_id) >= 1000 then
            return '{"error": "The state has 1,000 keys, which is all it can have."}';
        end if;
        insert into public.agent_run_state as s (tenant_id, root_run_id, key, user_id, value, version, run_id, updated_at)
            values (p_run.tenant_id, p_run.root_run_id, p_arguments ->> 'key', p_run.user_id, p_arguments -> 'value', 1, p_run.id, vanilla.clock())
            on conflict do nothing returning s.version into v_version;
    else
        update public.agent_run_state s set value = p_arguments -> 'value', version = s.version + 1, run_id = p_run.id, updated_at = vanilla.clock()
            where s.tenant_id = p_run.tenant_id and s.root_run_id = p_run.root_run_id and s.key = p_arguments ->> 'key' and s.version = v_expected
            returning s.version into v_version;
    end if;
    if v_version is null then
        return jsonb_build_object('error', 'Somebody else has written it since.') || coalesce((select jsonb_build_object('value', s.value, 'version', s.version)
            from public.agent_run_state s where s.tenant_id = p_run.tenant_id and s.root_run_id = p_run.root_run_id and s.key = p_arguments ->> 'key'), '{"version": 0}');
    end if;
    return jsonb_build_object('version', v_version);
end
$f$;
comment on function vanilla.write_state(public.agent_runs, jsonb) is
    'Writes a key of the state that a tree of runs shares, if it has the version that the caller read (0: it is not there); else what it is now.';

create or replace function vanilla.make_call(p_lease jsonb, p_n integer) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $f$
declare
    v_step public.workflow_queue := vanilla.leased_step(p_lease);
    v_run public.agent_runs := vanilla.run_of_step(v_step);
    v_call public.agent_run_steps;
    v_result jsonb;
begin
    select * into v_call from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = p_n;
    if v_call.status <> 'open' then return vanilla.call_view(v_call); end if;
    begin
        case v_call.name
        when 'state_read' then
            v_result := coalesce((select jsonb_build_object('value', s.value, 'version', s.version) from public.agent_run_state s
                where s.tenant_id = v_run.tenant_id and s.root_run_id = v_run.root_run_id and s.key = v_call.arguments ->> 'key'), '{"value": null, "version": 0}');
        when 'state_write' then
            v_result := vanilla.write_state(v_run, v_call.arguments);
        when 'artifact_save' then
            insert into public.run_artifacts as a (tenant_id, run_id, user_id, name, media_type, content, created_at)
                values (v_run.tenant_id, v_run.id, v_run.user_id, v_call.arguments ->> 'name', coalesce(v_call.arguments ->> 'media_type', 'text/plain'),
                    v_call.arguments ->> 'content', vanilla.clock())
                on conflict (tenant_id, run_id, name) do update set media_type = excluded.media_type, content = excluded.content, created_at = excluded.created_at
                returning jsonb_build_object('artifact_id', a.id) into v_result;
        end case;
    exception when check_violation or not_null_violation or invalid_text_representation or numeric_value_out_of_range then
        v_result := jsonb_build_object('error', 'The arguments do not fit: ' || sqlerrm);
    end;
    update public.agent_run_steps s set status = case when v_result ? 'error' then 'failed' else 'done' end, result = v_result, finished_at = vanilla.clock()
        where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = p_n returning * into v_call;
    return vanilla.call_view(v_call);
end
$f$;
comment on function vanilla.make_call(jsonb, integer) is
    'Makes a call of a tool that the database itself has, state_read, state_write or artifact_save, in the transaction that writes it to the journal; gives what it came to.';

create or replace function vanilla.start_child_run(p_execution public.workflow_executions, p_step public.workflow_queue, p_run public.agent_runs, p_version public.agent_versions,
    p_message jsonb, p_share bigint, p_limits jsonb default '{}', p_output_schema jsonb default null) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_child public.workflow_executions;
    v_made public.agent_runs;
begin
    if p_execution.depth >= 5 then perform vanilla.refuse('VS409', 'executions start each other at most five deep', '{"limit": 5}'); end if;
    perform vanilla.agent_flow(p_version);
    v_child := vanilla.new_execution(p_execution.user_id, (select row(w.*)::public.workflow_versions from public.workflow_versions w
        where w.tenant_id = p_version.tenant_id and w.workflow_id = p_version.agent_id and w.version = p_version.version), jsonb_build_object('message', p_message), p_execution.priority);
    v_child.depth := p_execution.depth + 1;
    v_child.parent_execution_id := p_execution.id;
    v_child.parent_node := p_step.node;
    v_child.parent_item := p_step.item;
    v_child.started_by := p_execution.started_by;
    v_child.api_key_id := p_execution.api_key_id;
    v_made := vanilla.new_run(p_version, v_child, 1::smallint, -1, v_child.input);
    v_made.limits := v_made.limits || p_limits;
    v_made.output_schema := p_output_schema;
    v_made := vanilla.insert_run(v_made, p_run, p_share);
    perform vanilla.insert_execution(v_child, '{}');
    return v_made.id;
end
$f$;
comment on function vanilla.start_child_run(public.workflow_executions, public.workflow_queue, public.agent_runs, public.agent_versions, jsonb, bigint, jsonb, jsonb) is
    'Starts an agent for the run of a step, as a child execution with at most p_share tokens of its budget; p_limits and p_output_schema go before the agent''s own.';

-- Contract net (Smith 1980): a task is announced, bidders say what they want for it, one of them gets it, and the next if it fails.
create or replace function vanilla.bid_schema() returns jsonb language sql immutable
    return '{"type": "object", "properties": {"price_tokens": {"type": "integer", "minimum": 1}, "eta_s": {"type": "integer", "minimum": 0}, "plan": {"type": "string"}}, "required": ["price_tokens"]}'::jsonb;
comment on function vanilla.bid_schema() is 'What a bid is: price_tokens, the budget that the work gets; eta_s and plan if the bidder likes.';

create or replace function vanilla.announce_contract(p_execution public.workflow_executions, p_step public.workflow_queue, p_run public.agent_runs, p_row public.agent_run_steps) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_terms jsonb := (select v.definition -> 'contract' from public.agent_versions v where v.tenant_id = p_run.tenant_id and v.agent_id = p_run.speaker_id and v.version = p_run.speaker_version);
    v_call public.contract_calls;
    v_version public.agent_versions;
    v_bidder record;
    v_share bigint;
    v_started integer := 0;
begin
    insert into public.contract_calls (tenant_id, user_id, run_id, n, task, rule, most_tokens, accept, deadline_at, created_at)
        values (p_run.tenant_id, p_run.user_id, p_run.id, p_row.n, coalesce(p_row.arguments -> 'message', p_row.arguments), coalesce(v_terms ->> 'rule', 'lowest'),
            (v_terms ->> 'most_tokens')::bigint, v_terms -> 'accept', vanilla.clock() + make_interval(secs => coalesce((v_terms ->> 'bid_s')::integer, 60)), vanilla.clock())
        returning * into v_call;
    select least(coalesce((v_terms ->> 'bid_tokens')::bigint, 2000), vanilla.allocation_room(a) / (1 + jsonb_array_length(v_terms -> 'bidders'))) into v_share
        from public.resource_allocations a where a.tenant_id = p_run.tenant_id and a.id = p_run.allocation_id;
    for v_bidder in select x.value ->> 'agent' as ref from jsonb_array_elements(v_terms -> 'bidders') with ordinality x order by x.ordinality loop
        begin
            v_version := vanilla.agent_of(p_run.tenant_id, p_run.user_id, v_bidder.ref);
            insert into public.contract_bids (tenant_id, call_id, user_id, agent_id, version, run_id)
                values (p_run.tenant_id, v_call.id, p_run.user_id, v_version.agent_id, v_version.version, vanilla.start_child_run(p_execution, p_step, p_run, v_version,
                    jsonb_build_object('bid_for', v_call.task, 'most_tokens', v_call.most_tokens, 'answer', 'JSON: price_tokens (what the work may cost), eta_s, plan. Do not do the work yet.'),
                    v_share, '{"depth": 0, "children": 0, "turns": 3}', vanilla.bid_schema()));
            v_started := v_started + 1;
        exception when others then      -- it does not bid
            if sqlstate not like 'VS%' then raise; end if;
        end;
    end loop;
    return v_started;
end
$f$;
comment on function vanilla.announce_contract(public.workflow_executions, public.workflow_queue, public.agent_runs, public.agent_run_steps) is
    'Puts a task out to the bidders of the agent that has the word: each bids in a run of its own. Returns how many were asked.';

create or replace function vanilla.award_contract(p_call public.contract_calls) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_best public.contract_bids;
begin
    -- what is dearer than what is left could not be paid
    select b.* into v_best from public.contract_bids b
        join public.agent_runs r on r.tenant_id = p_call.tenant_id and r.id = p_call.run_id
        join public.resource_allocations a on a.tenant_id = r.tenant_id and a.id = r.allocation_id
        where b.tenant_id = p_call.tenant_id and b.call_id = p_call.id and b.state = 'rejected' and b.price_tokens <= vanilla.allocation_room(a)
        order by case p_call.rule when 'score' then b.score else b.price_tokens end, b.eta_s nulls last, b.id limit 1;
    if not found then
        update public.contract_calls c set state = 'failed', closed_at = v_now where c.tenant_id = p_call.tenant_id and c.id = p_call.id;
        update public.agent_run_steps s set status = 'failed', finished_at = v_now, result = '{"error": "Nobody who bid could do it."}'
            where s.tenant_id = p_call.tenant_id and s.run_id = p_call.run_id and s.n = p_call.n;
        return;
    end if;
    update public.contract_bids b set state = 'accepted', decided_at = v_now where b.tenant_id = v_best.tenant_id and b.id = v_best.id;
    update public.contract_calls c set state = 'awarded' where c.tenant_id = p_call.tenant_id and c.id = p_call.id;
end
$f$;
comment on function vanilla.award_contract(public.contract_calls) is
    'Gives a task to the best of the bids that stand and have not failed: the lowest price, or the lowest by what became of the bidder''s work before. When there is none the call has failed, and the run is told.';

create or replace function vanilla.read_bids(p_call public.contract_calls) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    -- of 30 days, one good and one bad end before the first: an agent that is new is neither
    update public.contract_bids b set decided_at = vanilla.clock(), price_tokens = x.price, eta_s = x.eta, plan = x.plan, score = x.price / h.share,
            state = case when r.state = 'canceled' and b.state = 'late' then 'late' when x.price is null or x.price > p_call.most_tokens then 'refused' else 'rejected' end
        from public.agent_runs r
        cross join lateral (select case when jsonb_typeof(r.output -> 'json') = 'object' then r.output -> 'json' end as said) o
        cross join lateral (select case when r.state = 'completed' and o.said ->> 'price_tokens' ~ '^[1-9][0-9]{0,14}$' then (o.said ->> 'price_tokens')::bigint end as price,
            case when o.said ->> 'eta_s' ~ '^[0-9]{1,9}$' then (o.said ->> 'eta_s')::bigint end as eta, left(o.said ->> 'plan', 4000) as plan) x
        cross join lateral (select (1 + count(*) filter (where w.state = 'done'))::double precision / (2 + count(*)) as share from public.contract_bids w
            where w.tenant_id = r.tenant_id and w.agent_id = r.agent_id and w.state in ('done', 'failed') and w.decided_at > vanilla.clock() - interval '30 days') h
        where b.tenant_id = p_call.tenant_id and b.call_id = p_call.id and b.state in ('asked', 'late') and r.tenant_id = b.tenant_id and r.id = b.run_id
$f$;
comment on function vanilla.read_bids(public.contract_calls) is 'Takes the bids of a call from the runs that made them, which have ended. All that stand are rejected until one is awarded.';

create or replace function vanilla.settle_contracts(p_run public.agent_runs) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_call public.contract_calls;
    v_bid public.contract_bids;
    v_work public.agent_runs;
    v_fits boolean;
begin
    for v_call in select c.* from public.agent_run_steps s join public.contract_calls c on c.tenant_id = s.tenant_id and c.run_id = s.run_id and c.n = s.n
            where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.kind = 'contract' and s.status = 'open' order by s.n loop
        if v_call.state = 'open' then
            continue when exists (select from public.contract_bids b join public.agent_runs r on r.tenant_id = b.tenant_id and r.id = b.run_id
                where b.tenant_id = v_call.tenant_id and b.call_id = v_call.id and r.finished_at is null);
            perform vanilla.read_bids(v_call);
            perform vanilla.award_contract(v_call);
        else
            select * into v_bid from public.contract_bids b where b.tenant_id = v_call.tenant_id and b.call_id = v_call.id and b.state = 'accepted';
            select * into v_work from public.agent_runs r where r.tenant_id = v_bid.tenant_id and r.id = v_bid.work_run_id and r.finished_at is not null;
            continue when not found;
            v_fits := v_work.state = 'completed' and (v_call.accept is null or (select m.problem is null from vanilla.schema_misfit(v_call.accept, v_work.output -> 'json',
                v_call.accept -> '$defs', '', 0, 10000) m));
            update public.contract_bids b set state = case when v_fits then 'done' else 'failed' end, decided_at = vanilla.clock()
                where b.tenant_id = v_bid.tenant_id and b.id = v_bid.id;
            if v_fits then
                update public.contract_calls c set state = 'done', closed_at = vanilla.clock() where c.tenant_id = v_call.tenant_id and c.id = v_call.id;
                update public.agent_run_steps s set status = 'done', finished_at = vanilla.clock(), child_run_id = v_work.id,
                        result = jsonb_build_object('state', v_work.state, 'output', v_work.output - 'run_id', 'price_tokens', v_bid.price_tokens)
                    where s.tenant_id = v_call.tenant_id and s.run_id = v_call.run_id and s.n = v_call.n;
                continue;
            end if;
            perform vanilla.award_contract(v_call);
        end if;
    end loop;
end
$f$;
comment on function vanilla.settle_contracts(public.agent_runs) is
    'What became of the tasks that a run has put out: bids are read and one is awarded; work that fits ends the call, work that does not gives it to the next.';

create or replace function vanilla.start_contracts(p_execution public.workflow_executions, p_step public.workflow_queue, p_run public.agent_runs) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_row public.agent_run_steps;
    v_call public.contract_calls;
    v_bid record;
    v_started integer := 0;
begin
    for v_row in select * from public.agent_run_steps s where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.kind = 'contract' and s.status = 'open' order by s.n loop
        select * into v_call from public.contract_calls c where c.tenant_id = v_row.tenant_id and c.run_id = v_row.run_id and c.n = v_row.n;
        if not found then
            v_started := v_started + vanilla.announce_contract(p_execution, p_step, p_run, v_row);
            continue;
        end if;
        for v_bid in select b.id, b.price_tokens, row(v.*)::public.agent_versions as version from public.contract_bids b
                join public.agent_versions v on v.tenant_id = b.tenant_id and v.agent_id = b.agent_id and v.version = b.version
                where b.tenant_id = v_call.tenant_id and b.call_id = v_call.id and b.state = 'accepted' and b.work_run_id is null loop
            begin
                update public.contract_bids b set work_run_id = vanilla.start_child_run(p_execution, p_step, p_run, v_bid.version, v_call.task, v_bid.price_tokens,
                        jsonb_build_object('tokens', v_bid.price_tokens), v_call.accept)
                    where b.tenant_id = v_call.tenant_id and b.id = v_bid.id;
                v_started := v_started + 1;
            exception when others then
                if sqlstate not like 'VS%' then raise; end if;
                update public.contract_bids b set state = 'failed', decided_at = vanilla.clock() where b.tenant_id = v_call.tenant_id and b.id = v_bid.id;
                perform vanilla.award_contract(v_call);
            end;
        end loop;
    end loop;
    return v_started;
end
$f$;
comment on function vanilla.start_contracts(public.workflow_executions, public.workflow_queue, public.agent_runs) is
    'Announces the tasks that a run has put out, and starts the work of those that were awarded, with the price as its budget. Returns how many runs it started.';

create or replace function vanilla.open_contracts(p_step public.workflow_queue) returns setof public.contract_calls
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
    select c.* from public.agent_runs r join public.contract_calls c on c.tenant_id = r.tenant_id and c.run_id = r.id and c.state = 'open'
    where r.tenant_id = p_step.tenant_id and r.execution_id = p_step.execution_id and r.node = p_step.node and r.item = p_step.item and r.finished_at is null
$f$;
comment on function vanilla.open_contracts(public.workflow_queue) is 'The tasks that the run under way of a step has put out and that nobody has got yet.';

create or replace function vanilla.late_bids(p_step public.workflow_queue) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_bid record;
begin
    for v_bid in select b.id, r.execution_id from vanilla.open_contracts(p_step) c
            join public.contract_bids b on b.tenant_id = c.tenant_id and b.call_id = c.id and b.state = 'asked'
            join public.agent_runs r on r.tenant_id = b.tenant_id and r.id = b.run_id and r.finished_at is null
            where c.deadline_at <= vanilla.clock() order by r.execution_id loop
        update public.contract_bids b set state = 'late' where b.tenant_id = p_step.tenant_id and b.id = v_bid.id;
        perform vanilla.cancel_one(p_step.tenant_id, v_bid.execution_id, 'late');
    end loop;
end
$f$;
comment on function vanilla.late_bids(public.workflow_queue) is 'Ends the runs of bidders that have not bid in time.';

create or replace function vanilla.start_engine_turn(p_execution public.workflow_executions, p_step public.workflow_queue, p_run public.agent_runs) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_pin jsonb := p_run.engines -> (p_run.speaker_id || '@' || p_run.speaker_version);
    v_row public.agent_run_steps;
    v_most bigint;
    v_budget jsonb;
    v_made uuid;
    v_detail text;
begin
    select * into v_row from public.agent_run_steps s where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.kind in ('model', 'bid') and s.status = 'open'
        and s.child_execution_id is null;
    if not found then return 0; end if;
    begin
        if p_execution.depth >= 5 then perform vanilla.refuse('VS409', 'executions start each other at most five deep', '{"limit": 5}'); end if;
        -- of a flow that names its budget insert_execution carves that
        if not exists (select from public.engine_versions e join public.workflow_versions f on f.tenant_id = e.tenant_id and f.workflow_id = e.workflow_id and f.version = e.workflow_version
                where e.tenant_id = (v_pin ->> 'engine_tenant_id')::uuid and e.engine_id = (v_pin ->> 'engine_id')::uuid and e.version = (v_pin ->> 'version')::integer
                  and f.definition ->> 'budget_tokens' is not null) then
            select a.most_tokens into v_most from vanilla.grow_allocation(p_run.tenant_id, p_run.allocation_id, 1) a;
            v_budget := vanilla.allocation_carve(p_run.tenant_id, p_run.allocation_id, case when v_most is not null then 1 end, '{}', p_run.deadline_at);
            update public.resource_allocations a set most_tokens = v_most where a.tenant_id = p_run.tenant_id and a.id = (v_budget ->> 'allocation_id')::uuid and v_most is not null;
        end if;
        v_made := (vanilla.run_engine(vanilla.find_user(p_run.tenant_id, p_run.user_id), v_pin ->> 'engine', v_row.arguments, null, p_execution.priority,
            p_within => jsonb_build_object('depth', p_execution.depth + 1, 'parent_execution_id', p_execution.id, 'parent_node', p_step.node, 'parent_item', p_step.item,
                'started_by', p_execution.started_by, 'api_key_id', p_execution.api_key_id, 'allocation_id', coalesce(v_budget ->> 'allocation_id', p_run.allocation_id::text),
                'engine', v_pin)) ->> 'execution_id')::uuid;
    exception when others then
        if sqlstate not like 'VS%' then raise; end if;
        get stacked diagnostics v_detail = pg_exception_detail;
        update public.agent_run_steps s set status = 'failed', finished_at = vanilla.clock(), result = jsonb_build_object('error', sqlerrm, 'code',
                coalesce(nullif(vanilla.engine_code(null, jsonb_build_object('details', nullif(v_detail, '')::jsonb)), 'engine_failed'), 'engine_not_started'))
            where s.tenant_id = v_row.tenant_id and s.run_id = v_row.run_id and s.n = v_row.n;
        return 0;
    end;
    update public.agent_run_steps s set child_execution_id = v_made where s.tenant_id = v_row.tenant_id and s.run_id = v_row.run_id and s.n = v_row.n;
    return 1;
end
$f$;
comment on function vanilla.start_engine_turn(public.workflow_executions, public.workflow_queue, public.agent_runs) is
    'Starts the run of the engine that a turn was written down as, once, as a child execution with what is left of the run''s budget. Returns how many; one that cannot be started is told to the run.';

create or replace function vanilla.start_delegates(p_execution public.workflow_executions, p_step public.workflow_queue) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_run public.agent_runs := vanilla.run_of_step(p_step);
    v_speaker public.agent_versions;
    v_row public.agent_run_steps;
    v_version public.agent_versions;
    v_made uuid;
    v_started integer := 0;
    v_share bigint;
begin
    select v.* into v_speaker from public.agent_versions v where v.tenant_id = v_run.tenant_id and v.agent_id = v_run.speaker_id and v.version = v_run.speaker_version;
    -- those it asks now, and itself, have equal parts of what is left
    select vanilla.allocation_room(a) / (1 + (select count(*) from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.kind = 'delegate'
            and s.status = 'open' and s.child_run_id is null)) into v_share
        from public.resource_allocations a where a.tenant_id = v_run.tenant_id and a.id = v_run.allocation_id;
    for v_row in select * from public.agent_run_steps s where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.kind = 'delegate' and s.status = 'open'
            and s.child_run_id is null order by s.n loop
        begin
            v_version := vanilla.agent_of(v_run.tenant_id, v_run.user_id, (select x.value ->> 'agent' from jsonb_array_elements(v_speaker.definition -> 'delegates') x
                where split_part(x.value ->> 'agent', '@', 1) = substr(v_row.name, 13)));
            v_made := vanilla.start_child_run(p_execution, p_step, v_run, v_version, coalesce(v_row.arguments -> 'message', v_row.arguments), v_share);
        exception when others then
            if sqlstate not like 'VS%' then raise; end if;
            update public.agent_run_steps s set status = 'failed', result = jsonb_build_object('error', sqlerrm), finished_at = vanilla.clock()
                where s.tenant_id = v_row.tenant_id and s.run_id = v_row.run_id and s.n = v_row.n;
            continue;
        end;
        update public.agent_run_steps s set child_run_id = v_made where s.tenant_id = v_row.tenant_id and s.run_id = v_row.run_id and s.n = v_row.n;
        v_started := v_started + 1;
    end loop;
    return v_started + vanilla.start_contracts(p_execution, p_step, v_run) + vanilla.start_engine_turn(p_execution, p_step, v_run);
end
$f$;
comment on function vanilla.start_delegates(public.workflow_executions, public.workflow_queue) is
    'Starts the agents that the run of a step asked for, each as a child execution with a part of its budget. Returns how many; what cannot be started is told to the run.';

create or replace function vanilla.end_run(p_run public.agent_runs, p_state text, p_stop_reason text, p_output jsonb default null, p_error jsonb default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
begin
    if p_error ->> 'code' = 'timeout' and p_run.deadline_at <= v_now then p_stop_reason := 'deadline'; end if;      -- whatever did not answer in time
    if p_run.engines is not null then
        with asked as (      -- an engine whose run gave no answer: it costs what it has cost
            update public.agent_run_steps s set status = case p_state when 'failed' then 'failed' else 'refused' end, result = p_error, finished_at = v_now,
                    (charged_tokens, cost_micros) = (select c.charged, c.cost_micros from vanilla.cost_within(s.tenant_id, s.child_execution_id) c)
                where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.status = 'open' and s.child_execution_id is not null returning s.charged_tokens, s.cost_micros)
        update public.agent_runs r set charged_tokens = r.charged_tokens + a.charged_tokens, cost_micros = r.cost_micros + a.cost_micros
            from asked a where r.tenant_id = p_run.tenant_id and r.id = p_run.id;
    end if;
    update public.agent_run_steps s set status = 'refused', finished_at = v_now where s.tenant_id = p_run.tenant_id and s.run_id = p_run.id and s.status = 'open';
    update public.agent_runs r set state = p_state, stop_reason = p_stop_reason, output = p_output, error = p_error, finished_at = v_now
        where r.tenant_id = p_run.tenant_id and r.id = p_run.id and r.finished_at is null returning * into p_run;
    if found and p_state <> 'canceled' then
        insert into public.usage_events (tenant_id, created_at, kind, resource, ok, latency_ms, charged_tokens, cost_micros)
            select p_run.tenant_id, v_now, 'agent', a.slug, p_state = 'completed', extract(epoch from v_now - p_run.started_at) * 1000, p_run.charged_tokens, p_run.cost_micros
            from public.agents a where a.tenant_id = p_run.tenant_id and a.id = p_run.agent_id;
    end if;
    if p_run.allocation_id is not null then perform vanilla.allocation_end(p_run.tenant_id, p_run.allocation_id, 'closed', 'run ended'); end if;
    if p_run.chat is not null then
        update public.communication_channels c set status = 'closed', closed_at = v_now, close_reason = coalesce(p_run.chat ->> 'ended_by', p_stop_reason), floor_holder = null, floor_until = null
            where c.tenant_id = p_run.tenant_id and c.id = p_run.id and c.status = 'open';
        perform pg_notify('vanilla_channels', p_run.id::text);
    end if;
end
$f$;
comment on function vanilla.end_run(public.agent_runs, text, text, jsonb, jsonb) is 'Ends a run: what it still wanted is refused, what is left of its budget goes back.';

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
comment on function vanilla.end_step_run(public.workflow_queue, text, jsonb, jsonb) is 'The run of a step that has its outcome ends with it; steps that are no agent, and items of a map that are none, have no run.';

create or replace function vanilla.tell_call(p_step public.workflow_queue, p_error jsonb) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_run public.agent_runs := vanilla.run_of_step(p_step);
    v_n integer := (p_error #>> '{details,call}')::integer;
begin
    if v_run.id is null or v_run.deadline_at <= vanilla.clock() or not exists (select from public.agent_run_steps s
            where s.tenant_id = v_run.tenant_id and s.run_id = v_run.id and s.n = v_n and s.kind = 'tool' and s.status = 'open') then
        return false;
    end if;
    perform vanilla.keep_call(v_run, v_n, 'failed', jsonb_build_object('error', p_error -> 'message', 'code', p_error -> 'code'));
    perform vanilla.queue_step(e, p_step.node, p_step.item) from public.workflow_executions e where e.tenant_id = p_step.tenant_id and e.id = p_step.execution_id;
    return true;
end
$f$;
comment on function vanilla.tell_call(public.workflow_queue, jsonb) is
    'A call of a tool for which a step failed, and that is not tried again, has failed: the run goes on and its model is told. False when there is no such call or no time left.';

create or replace function vanilla.end_runs(p_tenant_id uuid, p_execution_id uuid, p_status text, p_error jsonb default null, p_nodes smallint[] default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_run public.agent_runs;
begin
    for v_run in select * from public.agent_runs r where r.tenant_id = p_tenant_id and r.execution_id = p_execution_id and r.finished_at is null
            and (p_nodes is null or r.node = any (p_nodes)) order by r.id for no key update loop
        -- others beside the one that failed are cancelled: it was not they
        if p_status = 'failed' and (not coalesce(p_error ? 'node', false) or v_run.item = coalesce((p_error ->> 'item')::integer, -1) and exists (
                select from public.workflow_executions e join public.workflow_nodes n on n.tenant_id = e.tenant_id and n.workflow_id = e.workflow_id and n.version = e.version
                where e.tenant_id = p_tenant_id and e.id = p_execution_id and n.node = v_run.node and n.name = p_error ->> 'node')) then
            perform vanilla.end_run(v_run, 'failed', vanilla.stop_reason(p_error ->> 'code'), null, p_error);
        else
            perform vanilla.end_run(v_run, 'canceled', 'canceled');
        end if;
    end loop;
end
$f$;
comment on function vanilla.end_runs(uuid, uuid, text, jsonb, smallint[]) is 'Runs that are under way when their execution ends, or when their nodes are to run again, end too.';

create or replace function vanilla.agents_due(p_step public.workflow_queue) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select least(vanilla.clock() + make_interval(secs => n.timeout_s), (
            select min(c.deadline_at) from vanilla.open_contracts(p_step) c where c.deadline_at > vanilla.clock()), (
            select r.deadline_at from public.agent_runs r join public.agent_run_steps s on s.tenant_id = r.tenant_id and s.run_id = r.id and s.status = 'open' and s.child_execution_id is not null
            where r.tenant_id = p_step.tenant_id and r.execution_id = p_step.execution_id and r.node = p_step.node and r.item = p_step.item and r.finished_at is null))
        from public.workflow_nodes n where n.tenant_id = p_step.tenant_id and n.workflow_id = p_step.workflow_id and n.version = p_step.version and n.node = p_step.node
$f$;
comment on function vanilla.agents_due(public.workflow_queue) is 'How long a run waits for those it asked: as long as its node lets an attempt run, or until the next bids are due; for its engine no longer than it has time.';

create or replace function vanilla.agents_ended(p_execution public.workflow_executions, p_step public.workflow_queue, p_told boolean) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_late boolean;
    v_running uuid[];
    v_id uuid;
begin
    v_late := not p_told and exists (select from vanilla.open_contracts(p_step) c where c.deadline_at <= vanilla.clock());
    if v_late then perform vanilla.late_bids(p_step); end if;
    v_running := array(select e.id from public.workflow_executions e where e.tenant_id = p_execution.tenant_id and e.parent_execution_id = p_execution.id
        and e.parent_node = p_step.node and e.parent_item = p_step.item and e.finished_at is null order by e.id);
    if p_told and v_running <> '{}' then return; end if;      -- the last one of them tells again
    if v_late and v_running <> '{}' then
        insert into public.workflow_timers (tenant_id, execution_id, node, item, user_id, kind, due_at)
            values (p_step.tenant_id, p_step.execution_id, p_step.node, p_step.item, p_step.user_id, 'execution', vanilla.agents_due(p_step))
            on conflict (tenant_id, execution_id, node, item) do update set kind = excluded.kind, due_at = excluded.due_at;
        return;
    end if;
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
    'A run that waits for those it asked goes on when all have ended; bids that are late are not waited for; when its time is over they are cancelled, and it fails.';

create or replace function vanilla.drop_runs(p_tenant_id uuid, p_runs uuid[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
begin
    if p_runs = '{}' then return; end if;
    delete from public.contract_bids b using public.contract_calls c where c.tenant_id = p_tenant_id and c.run_id = any (p_runs) and b.tenant_id = c.tenant_id and b.call_id = c.id;
    delete from public.contract_calls c where c.tenant_id = p_tenant_id and c.run_id = any (p_runs);
    delete from public.run_artifacts a where a.tenant_id = p_tenant_id and a.run_id = any (p_runs);
    delete from public.agent_run_state s where s.tenant_id = p_tenant_id and s.root_run_id = any (p_runs);
    delete from public.agent_run_steps s where s.tenant_id = p_tenant_id and s.run_id = any (p_runs);
    delete from public.agent_runs r where r.tenant_id = p_tenant_id and r.id = any (p_runs);
end
$f$;
comment on function vanilla.drop_runs(uuid, uuid[]) is 'Deletes runs, whole trees of them, with all that is theirs.';

create or replace function vanilla.delete_runs(p_tenant_id uuid, p_executions uuid[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
    select vanilla.drop_runs(p_tenant_id, array(select r.id from public.agent_runs r join public.agent_runs t on t.tenant_id = r.tenant_id and t.id = r.root_run_id
        where t.tenant_id = p_tenant_id and t.execution_id = any (p_executions)))
$f$;
comment on function vanilla.delete_runs(uuid, uuid[]) is 'Deletes the trees of runs that began in these executions.';

create or replace function vanilla.forget_runs(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_agents uuid[];
begin
    perform vanilla.drop_runs(p_user.tenant_id, array(select r.id from public.agent_runs r where r.tenant_id = p_user.tenant_id and r.user_id = p_user.id));
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
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
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
grant execute on function vanilla.begin_run(jsonb, text, jsonb), vanilla.ask_engine(jsonb, integer, jsonb), vanilla.record_turn(jsonb, integer, jsonb, jsonb, boolean), vanilla.record_call(jsonb, integer, text, jsonb),
    vanilla.record_call_and_admit(jsonb, integer, text, jsonb, text, bigint, bigint, bigint, integer, uuid, boolean, interval), vanilla.make_call(jsonb, integer) to vanilla_runtime;

-- metrics ----------------------------------------------------------------------------------------------------------
create or replace function vanilla.measure_health() returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_measured integer;
begin
    delete from public.resource_health h where h.measured_at < v_now - interval '10 minutes';
    insert into public.resource_health as h (tenant_id, kind, resource, calls, ok_share, latency_ms, measured_at)
        select t.tenant_id, 'model', e.model, count(*), avg((e.status = 'succeeded')::integer), avg(e.latency_ms), v_now
        from (select distinct r.tenant_id from public.agent_runs r where r.finished_at is null) t
        join public.ai_executions e on e.tenant_id = t.tenant_id and e.created_at > v_now - interval '30 seconds' and e.status in ('succeeded', 'failed')
        where e.latency_ms is not null
        group by t.tenant_id, e.model
        order by t.tenant_id, e.model
        on conflict (tenant_id, kind, resource) do update set calls = excluded.calls, ok_share = excluded.ok_share, latency_ms = excluded.latency_ms, measured_at = excluded.measured_at;
    get diagnostics v_measured = row_count;
    return v_measured;
end
$f$;
comment on function vanilla.measure_health() is 'How the models of tenants whose agents are at work did in the last 30 seconds.';

create or replace function vanilla.metrics_rollup(p_from timestamptz, p_until timestamptz) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_from timestamptz := date_trunc('minute', p_from);
    v_until timestamptz := date_trunc('minute', p_until);
    v_limits constant bigint[] := '{10,25,50,100,250,500,1000,2500,5000,10000,60000}';
    v_tenant uuid;
    v_rows integer;
    v_written integer := 0;
begin
    for v_tenant in select t.tenant_id from public.tenants t where t.id = t.tenant_id order by t.tenant_id loop
        delete from public.resource_performance_metrics m where m.tenant_id = v_tenant and m.created_at >= v_from and m.created_at < v_until and m.grain = 'minute';
        insert into public.resource_performance_metrics (tenant_id, created_at, grain, kind, resource, calls, ok, latency_ms_sum, latency, input_tokens, output_tokens,
                charged_tokens, cost_micros)
            select v_tenant, date_trunc('minute', e.created_at), 'minute', e.kind, e.resource, count(*), count(*) filter (where e.ok), sum(e.ms),
                array[count(*) filter (where e.bucket = 0), count(*) filter (where e.bucket = 1), count(*) filter (where e.bucket = 2), count(*) filter (where e.bucket = 3), count(*) filter (where e.bucket = 4), count(*) filter (where e.bucket = 5),
                    count(*) filter (where e.bucket = 6), count(*) filter (where e.bucket = 7), count(*) filter (where e.bucket = 8), count(*) filter (where e.bucket = 9), count(*) filter (where e.bucket = 10), count(*) filter (where e.bucket = 11)], sum(e.input), sum(e.output), sum(e.charged), sum(e.cost)
            from (select u.*, width_bucket(u.ms - 1, v_limits) as bucket from (
                select x.created_at, 'model' as kind, x.model as resource, x.status = 'succeeded' as ok, coalesce(x.latency_ms, 0)::bigint as ms, x.input_tokens as input,
                    x.output_tokens as output, x.charged_tokens as charged, x.cost_micros as cost
                from public.ai_executions x where x.tenant_id = v_tenant and x.created_at >= v_from and x.created_at < v_until and x.status <> 'cancelled'
                union all
                select u.created_at, u.kind, u.resource, u.ok, u.latency_ms, 0, 0, u.charged_tokens, u.cost_micros
                from public.usage_events u where u.tenant_id = v_tenant and u.created_at >= v_from and u.created_at < v_until) u) e
            group by 2, 4, 5;
        get diagnostics v_rows = row_count;
        v_written := v_written + v_rows;
        -- hours that have a minute of this window
        delete from public.resource_performance_metrics m where m.tenant_id = v_tenant and m.created_at >= date_trunc('hour', v_from) and m.created_at < v_until and m.grain = 'hour';
        insert into public.resource_performance_metrics (tenant_id, created_at, grain, kind, resource, calls, ok, latency_ms_sum, latency, input_tokens, output_tokens,
                charged_tokens, cost_micros)
            select v_tenant, date_trunc('hour', m.created_at), 'hour', m.kind, m.resource, sum(m.calls), sum(m.ok), sum(m.latency_ms_sum),
                array[sum(m.latency[1]), sum(m.latency[2]), sum(m.latency[3]), sum(m.latency[4]), sum(m.latency[5]), sum(m.latency[6]), sum(m.latency[7]), sum(m.latency[8]),
                    sum(m.latency[9]), sum(m.latency[10]), sum(m.latency[11]), sum(m.latency[12])], sum(m.input_tokens), sum(m.output_tokens), sum(m.charged_tokens), sum(m.cost_micros)
            from public.resource_performance_metrics m
            where m.tenant_id = v_tenant and m.grain = 'minute' and m.created_at >= date_trunc('hour', v_from) and m.created_at < date_trunc('hour', v_until - interval '1 microsecond') + interval '1 hour'
            group by 2, 4, 5;
    end loop;
    return v_written;
end
$f$;
comment on function vanilla.metrics_rollup(timestamptz, timestamptz) is
    'Counts the minutes of a window, and the hours that they are of, anew: again it writes the same. Whole minutes, p_until is not in it. Returns the rows of minutes.';

create or replace function vanilla.job_metrics(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_last timestamptz := (select max(m.created_at) from public.system_metrics m where m.tenant_id = vanilla.platform());
    v_health integer := vanilla.measure_health();
    v_rows integer := 0;
begin
    if v_last is null or v_last < date_trunc('minute', v_now) then
        -- a minute late, for those that were written when it ended; and what nobody counted while the server was away, up to a day
        v_rows := vanilla.metrics_rollup(greatest(coalesce(v_last, v_now) - interval '2 minutes', v_now - interval '1 day'), v_now);
        insert into public.system_metrics (tenant_id, created_at, name, value)
            select vanilla.platform(), date_trunc('minute', v_now), x.name, x.value from (values
                ('steps_waiting', (select count(*) from public.workflow_queue q where q.worker is null)::numeric),
                ('steps_running', (select count(*) from public.workflow_queue q where q.worker is not null)::numeric),
                ('runs_of_agents', (select count(*) from public.agent_runs r where r.finished_at is null)::numeric),
                ('allocations_open', (select count(*) from public.resource_allocations a where a.state = 'open')::numeric),
                ('workers_active', (select count(*) from public.worker_registry w where w.status = 'active')::numeric),
                ('timers_overdue', (select count(*) from public.workflow_timers t where t.due_at < v_now - interval '1 minute')::numeric)) x (name, value)
            on conflict do nothing;
    end if;
    return jsonb_build_object('health', v_health, 'metrics', v_rows, 'more', false);
end
$f$;
comment on function vanilla.job_metrics(integer) is 'Job: measures the models that agents use, and once a minute counts the last minutes of models, agents and tools, and what the platform has to do.';

-- Agreements: JSON Schema ------------------------------------------------------------------------------------------
-- The part of JSON Schema 2020-12 that is enforced here, whole: a keyword that is not is refused when it is proposed.

create or replace function vanilla.pattern_problem(p_pattern text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    -- what means the same in ECMA-262 (with the flag u) and in PostgreSQL: no dot, no class by a letter, no look-around, no back reference
    c_atom constant text := E'^(?:[^][\\\\^$.*+?(){}|[:cntrl:]]|\\\\[][\\\\^$.*+?(){}|/nrt]'
        || E'|\\[\\^?(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[^][\\\\^[:cntrl:]-]|\\\\[][\\\\^$.*+?(){}|/nrt-])+-?\\])(?:[*+?]|\\{[0-9]{1,3}(?:,[0-9]{0,3})?\\})?';
    v_rest text := regexp_replace(p_pattern, E'^\\^', '');
    v_part text;
    v_bounds text[];
    v_depth integer := 0;
    v_size integer := 0;
    v_empty boolean := true;
begin
    if length(p_pattern) > 200 then return 'a pattern has at most 200 characters'; end if;
    if v_rest ~ E'\\$$' and length(substring(v_rest from E'(\\\\*)\\$$')) % 2 = 0 then
        v_rest := left(v_rest, -1);
    end if;
    while v_rest <> '' loop
        v_part := substring(v_rest from c_atom);
        if v_part is not null then
            v_empty := false;
            v_bounds := regexp_match(v_part, E'\\{([0-9]+)(,?)([0-9]*)\\}$');
            if v_bounds is not null then
                if greatest(v_bounds[1]::integer, nullif(v_bounds[3], '')::integer) > 255 or nullif(v_bounds[3], '')::integer < v_bounds[1]::integer then
                    return 'a pattern repeats at most 255 times, and not fewer than at least';
                end if;
                v_size := v_size + greatest(v_bounds[1]::integer, nullif(v_bounds[3], '')::integer);
            end if;
        elsif v_rest ~ E'^\\((?:\\?:|(?!\\?))' then
            v_part := substring(v_rest from E'^\\((?:\\?:)?');
            v_depth := v_depth + 1;
            v_empty := true;
        elsif v_rest ~ '^[)|]' and not v_empty and (v_depth > 0 or v_rest ~ E'^\\|') then
            v_part := substring(v_rest from E'^(?:\\)[*+?]?|\\|)');
            v_depth := v_depth - (v_part <> '|')::integer;
            v_empty := v_part = '|';
        else
            return format('at %s the pattern has what means different things to different readers, or nothing', to_json(left(v_rest, 10)));
        end if;
        v_rest := substr(v_rest, length(v_part) + 1);
    end loop;
    if v_empty or v_depth <> 0 then return 'the pattern is not complete'; end if;
    if v_size > 1000 then return 'a pattern repeats at most 1,000 times in all'; end if;
    begin
        perform '' ~ p_pattern;
    exception when invalid_regular_expression then
        return 'the pattern is no regular expression';
    end;
    return null;
end
$f$;
comment on function vanilla.pattern_problem(text) is
    'Why a pattern is not one that means the same in ECMA-262 and in PostgreSQL; null: it does. What it accepts has no back reference, so PostgreSQL runs it in time linear in the text.';

create or replace function vanilla.schema_problem(p_schema jsonb, p_defs jsonb, p_path text default '', p_depth integer default 0) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
    v_type text := jsonb_typeof(p_schema);
    v_path text;
    v_problem text;
begin
    if v_type = 'boolean' then return null; end if;
    if v_type is distinct from 'object' then return format('%s: a schema is an object, true or false', p_path); end if;
    if p_depth > 20 then return format('%s: schemas are nested at most 20 deep', p_path); end if;
    for v in select e.key, e.value, jsonb_typeof(e.value) as type, e.value #>> '{}' as text from jsonb_each(p_schema) e loop
        v_path := p_path || '/' || replace(replace(v.key, '~', '~0'), '/', '~1');
        v_problem := null;
        case
        when v.key in ('const', 'default', 'examples') then null;
        when v.key in ('title', 'description', '$comment') then
            if v.type <> 'string' then v_problem := 'it is a text'; end if;
        when v.key = '$schema' then
            if p_depth > 0 or v.text <> 'https://json-schema.org/draft/2020-12/schema' then v_problem := 'the draft is 2020-12, named at the top'; end if;
        when v.key = 'type' then
            if v.type not in ('string', 'array') or v.value = '[]' or exists (
                    select from jsonb_array_elements(case v.type when 'array' then v.value else jsonb_build_array(v.value) end) t group by t.value
                    having count(*) > 1 or t.value not in ('"null"', '"boolean"', '"object"', '"array"', '"number"', '"string"', '"integer"')) then
                v_problem := 'a type is null, boolean, object, array, number, string or integer, or a list of these';
            end if;
        when v.key = 'enum' then
            if v.type <> 'array' or v.value = '[]' then v_problem := 'it is a list that is not empty'; end if;
        when v.key = 'required' then
            if v.type <> 'array' or exists (select from jsonb_array_elements(v.value) t group by t.value having count(*) > 1 or jsonb_typeof(t.value) <> 'string') then
                v_problem := 'it is a list of different texts';
            end if;
        when v.key in ('minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf') then
            if v.type <> 'number' or v.key = 'multipleOf' and v.text::numeric <= 0 then v_problem := 'it is a number, multipleOf one above 0'; end if;
        when v.key in ('minLength', 'maxLength', 'minItems', 'maxItems', 'minProperties', 'maxProperties') then
            if v.type <> 'number' or v.text !~ '^[0-9]{1,9}$' then v_problem := 'it is a whole number from 0'; end if;
        when v.key = 'uniqueItems' then
            if v.type <> 'boolean' then v_problem := 'it is true or false'; end if;
        when v.key = 'pattern' then
            v_problem := case when v.type <> 'string' then 'it is a text' else vanilla.pattern_problem(v.text) end;
        when v.key = '$ref' then
            if v.type <> 'string' or left(v.text, 8) <> '#/$defs/' or not coalesce(p_defs ? substr(v.text, 9), false) then
                v_problem := 'a reference is #/$defs/ and a name that is there';
            end if;
        when v.key in ('items', 'additionalProperties', 'not') then
            v_problem := vanilla.schema_problem(v.value, p_defs, v_path, p_depth + 1);
            if v_problem is not null then return v_problem; end if;
        when v.key in ('properties', '$defs') then
            if v.type <> 'object' then
                v_problem := 'it is an object of schemas';
            elsif v.key = '$defs' and (p_depth > 0 or exists (select from jsonb_object_keys(v.value) k where k !~ '^[A-Za-z0-9_-]{1,63}$')) then
                v_problem := 'definitions stand at the top, with names of A-Z, a-z, 0-9, _ and hyphens';
            else
                select p.problem into v_problem from jsonb_each(v.value) e
                    cross join lateral (select vanilla.schema_problem(e.value, p_defs, v_path || '/' || replace(replace(e.key, '~', '~0'), '/', '~1'), p_depth + 1)) p (problem)
                    where p.problem is not null limit 1;
                if v_problem is not null then return v_problem; end if;
            end if;
        when v.key in ('allOf', 'anyOf', 'oneOf') then
            if v.type <> 'array' or v.value = '[]' then
                v_problem := 'it is a list of schemas that is not empty';
            else
                select p.problem into v_problem from jsonb_array_elements(v.value) with ordinality e (value, nr)
                    cross join lateral (select vanilla.schema_problem(e.value, p_defs, v_path || '/' || e.nr - 1, p_depth + 1)) p (problem)
                    where p.problem is not null limit 1;
                if v_problem is not null then return v_problem; end if;
            end if;
        else
            v_problem := 'this keyword is not enforced';
        end case;
        if v_problem is not null then return format('%s: %s', v_path, v_problem); end if;
    end loop;
    if p_depth = 0 and exists (
            with recursive walk (first, at) as (
                select d.key, r from jsonb_each(p_defs) d cross join vanilla.refs_in_place(d.value) r
                union select w.first, r from walk w cross join vanilla.refs_in_place(p_defs -> w.at) r)
            select from walk w where w.first = w.at) then
        return '/$defs: a definition is itself by way of references';
    end if;
    return null;
end
$f$;
comment on function vanilla.schema_problem(jsonb, jsonb, text, integer) is
    'Why a schema is not one that vanilla.schema_misfit enforces whole: a JSON pointer and a sentence; null: it is. p_defs are the definitions at the top.';

create or replace function vanilla.refs_in_place(p_schema jsonb) returns setof text
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    with recursive parts (part) as (
        select p_schema
        union all
        select c.value from parts s cross join lateral (
            select e.value from unnest(array[s.part -> 'allOf', s.part -> 'anyOf', s.part -> 'oneOf']) l (list)
                cross join jsonb_array_elements(coalesce(l.list, '[]')) e
            union all select s.part -> 'not' where s.part ? 'not') c)
    select substr(s.part ->> '$ref', 9) from parts s where s.part ? '$ref'
$f$;
comment on function vanilla.refs_in_place(jsonb) is 'Definitions that a schema applies to the very value it is applied to.';

create or replace function vanilla.schema_misfit(p_schema jsonb, p_value jsonb, p_defs jsonb, p_path text, p_depth integer, inout steps integer, out problem jsonb)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_type text := jsonb_typeof(p_value);
    v_number numeric;
    v_fits integer;
    v_keyword text;
    v_part record;
    v_item record;
    v record;
begin
    steps := steps - 1;
    if steps <= 0 or p_depth > 32 then
        steps := 0;      -- and so all that asked gives up too
        problem := jsonb_build_object('path', p_path, 'message', case when p_depth > 32 then 'it is nested too deep' else 'it is too much to check' end);
        return;
    end if;
    if p_schema = 'true' then return; end if;
    if p_schema = 'false' then v_keyword := 'false'; end if;
    if p_schema ? 'type' then
        if not (case when jsonb_typeof(p_schema -> 'type') = 'string' then p_schema ->> 'type' = v_type
                or p_schema ->> 'type' = 'integer' and v_type = 'number' and (p_value #>> '{}')::numeric % 1 = 0
            else p_schema -> 'type' ? v_type or p_schema -> 'type' ? 'integer' and v_type = 'number' and (p_value #>> '{}')::numeric % 1 = 0 end) then
            v_keyword := 'type';
        end if;
    end if;
    if v_keyword is null and p_schema ? 'const' and p_value <> p_schema -> 'const' then v_keyword := 'const'; end if;
    if v_keyword is null and p_schema ? 'enum' and not exists (select from jsonb_array_elements(p_schema -> 'enum') e where e.value = p_value) then
        v_keyword := 'enum';
    end if;
    if v_keyword is not null then
        null;
    elsif v_type = 'number' then
        v_number := (p_value #>> '{}')::numeric;
        v_keyword := case when v_number < (p_schema ->> 'minimum')::numeric then 'minimum' when v_number > (p_schema ->> 'maximum')::numeric then 'maximum'
            when v_number <= (p_schema ->> 'exclusiveMinimum')::numeric then 'exclusiveMinimum' when v_number >= (p_schema ->> 'exclusiveMaximum')::numeric then 'exclusiveMaximum'
            when v_number % (p_schema ->> 'multipleOf')::numeric <> 0 then 'multipleOf' end;
    elsif v_type = 'string' then
        v_keyword := case when length(p_value #>> '{}') < (p_schema ->> 'minLength')::integer then 'minLength'
            when length(p_value #>> '{}') > (p_schema ->> 'maxLength')::integer then 'maxLength'
            when (p_value #>> '{}') !~ (p_schema ->> 'pattern') collate "C" then 'pattern' end;
    elsif v_type = 'array' then
        v_keyword := case when jsonb_array_length(p_value) < (p_schema ->> 'minItems')::integer then 'minItems'
            when jsonb_array_length(p_value) > (p_schema ->> 'maxItems')::integer then 'maxItems' end;
        if v_keyword is null and p_schema -> 'uniqueItems' = 'true' and (select count(*) <> count(distinct e.value) from jsonb_array_elements(p_value) e) then
            v_keyword := 'uniqueItems';
        end if;
        if v_keyword is null and p_schema ? 'items' then
            for v in select e.value, e.nr from jsonb_array_elements(p_value) with ordinality e (value, nr) loop
                v_part := vanilla.schema_misfit(p_schema -> 'items', v.value, p_defs, p_path || '/' || v.nr - 1, p_depth + 1, steps);
                steps := v_part.steps;
                problem := v_part.problem;
                if problem is not null then return; end if;
            end loop;
        end if;
    elsif v_type = 'object' then
        if p_schema ? 'required' then
            select 'required' into v_keyword from jsonb_array_elements_text(p_schema -> 'required') r where not p_value ? r limit 1;
        end if;
        if v_keyword is null and (p_schema ? 'minProperties' or p_schema ? 'maxProperties') then
            select case when count(*) < (p_schema ->> 'minProperties')::integer then 'minProperties'
                when count(*) > (p_schema ->> 'maxProperties')::integer then 'maxProperties' end into v_keyword from jsonb_object_keys(p_value);
        end if;
        if v_keyword is null and (p_schema ? 'properties' or p_schema ? 'additionalProperties') then
            for v in select e.key, e.value, coalesce(p_schema -> 'properties' -> e.key, p_schema -> 'additionalProperties') as schema from jsonb_each(p_value) e loop
                continue when v.schema is null;
                v_part := vanilla.schema_misfit(v.schema, v.value, p_defs, p_path || '/' || replace(replace(v.key, '~', '~0'), '/', '~1'), p_depth + 1, steps);
                steps := v_part.steps;
                problem := v_part.problem;
                if problem is not null then return; end if;
            end loop;
        end if;
    end if;
    if v_keyword is null and p_schema ? '$ref' then
        v_part := vanilla.schema_misfit(p_defs -> substr(p_schema ->> '$ref', 9), p_value, p_defs, p_path, p_depth, steps);
        steps := v_part.steps;
        problem := v_part.problem;
        if problem is not null then return; end if;
    end if;
    if v_keyword is null and p_schema ?| array['allOf', 'anyOf', 'oneOf', 'not'] then
        for v in select k.key, case k.key when 'not' then jsonb_build_array(p_schema -> 'not') else p_schema -> k.key end as list
                from unnest(array['allOf', 'anyOf', 'oneOf', 'not']) k (key) where p_schema ? k.key loop
            v_fits := 0;
            for v_item in select e.value from jsonb_array_elements(v.list) e loop
                v_part := vanilla.schema_misfit(v_item.value, p_value, p_defs, p_path, p_depth, steps);
                steps := v_part.steps;
                if v_part.problem is null then v_fits := v_fits + 1; end if;
                if steps = 0 or v.key = 'allOf' and v_part.problem is not null then
                    problem := v_part.problem;
                    return;
                end if;
                exit when v.key = 'anyOf' and v_fits = 1;
            end loop;
            if v.key = 'anyOf' and v_fits = 0 or v.key = 'oneOf' and v_fits <> 1 or v.key = 'not' and v_fits = 1 then
                v_keyword := v.key;
                exit;
            end if;
        end loop;
    end if;
    if v_keyword is not null then
        problem := jsonb_build_object('path', p_path, 'keyword', v_keyword, 'message', format('it does not fit the schema''s %s', v_keyword));
    end if;
end
$f$;
comment on function vanilla.schema_misfit(jsonb, jsonb, jsonb, text, integer, integer) is
    'Where a value does not fit a schema without problems: {path, keyword, message}, null when it does. steps is how many schemas may still be looked at; 0 afterwards: it was too much, which fits nothing.';

-- Agreements: terms ------------------------------------------------------------------------------------------------
create or replace function vanilla.figure_problem(p_terms jsonb, p_key text, p_from bigint, p_until bigint) returns text
language sql immutable return
    case when p_terms ? p_key and (jsonb_typeof(p_terms -> p_key) <> 'number' or p_terms ->> p_key !~ '^[0-9]{1,15}$'
            or (p_terms ->> p_key)::numeric not between p_from and p_until)
        then format('%s is a whole number from %s to %s', p_key, p_from, p_until) end;
comment on function vanilla.figure_problem(jsonb, text, bigint, bigint) is 'Why a figure of the terms, where it is there, is none; null: it is.';

create or replace function vanilla.part_problem(p_terms jsonb, p_key text, p_keys text[]) returns text
language sql immutable return
    case when jsonb_typeof(p_terms -> p_key) <> 'object' then format('%s is an object', p_key)
        when (p_terms -> p_key) - p_keys <> '{}' then format('%s says %s, nothing else', p_key, array_to_string(p_keys, ', ')) end;
comment on function vanilla.part_problem(jsonb, text, text[]) is 'Why a part of the terms, where it is there, is none; null: it is, or is not there.';

create or replace function vanilla.act_opens(p_acts jsonb, p_performative text) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select coalesce((p_acts -> p_performative ->> 'opens')::boolean,
        not exists (select from jsonb_each(p_acts) a where a.key <> p_performative and a.value -> 'replies' ? p_performative))
$f$;
comment on function vanilla.act_opens(jsonb, text) is 'Whether an act may begin a conversation: it says so, or is a reply to no other.';

create or replace function vanilla.act_problem(p_acts jsonb, p_performative text, p_parties text[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_act jsonb := p_acts -> p_performative;
    v_schema jsonb := coalesce(v_act -> 'schema', 'true');
    v_problem text;
begin
    if p_performative not in ('request', 'agree', 'refuse', 'inform', 'failure', 'query', 'cfp', 'propose', 'accept_proposal', 'reject_proposal',
            'cancel', 'not_understood', 'subscribe') then
        return 'it is no performative';
    end if;
    v_problem := coalesce(vanilla.part_problem(p_acts, p_performative, '{schema,senders,replies,reply_within_s,opens,ends}'),
        vanilla.figure_problem(v_act, 'reply_within_s', 1, 31536000));
    if v_problem is not null then
        return v_problem;
    elsif v_act ? 'senders' and (jsonb_typeof(v_act -> 'senders') <> 'array' or v_act -> 'senders' = '[]'
            or exists (select from jsonb_array_elements(v_act -> 'senders') s where jsonb_typeof(s.value) <> 'string' or s.value #>> '{}' <> all (p_parties))) then
        return 'senders is a list of parties';
    elsif v_act ? 'replies' and (jsonb_typeof(v_act -> 'replies') <> 'array'
            or exists (select from jsonb_array_elements(v_act -> 'replies') r where jsonb_typeof(r.value) <> 'string' or not p_acts ? (r.value #>> '{}'))) then
        return 'replies is a list of acts that are there';
    elsif v_act ? 'reply_within_s' and coalesce(v_act -> 'replies', '[]') = '[]' then
        return 'reply_within_s is of an act with replies';
    elsif jsonb_typeof(v_act -> 'opens') <> 'boolean' or jsonb_typeof(v_act -> 'ends') <> 'boolean' then
        return 'opens and ends are true or false';
    end if;
    return '/schema' || vanilla.schema_problem(v_schema, v_schema -> '$defs');
end
$f$;
comment on function vanilla.act_problem(jsonb, text, text[]) is 'What is wrong with an act of the terms; null: nothing.';

create or replace function vanilla.gate_schema(p_gate jsonb) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select case when p_gate ->> 'kind' = 'schema' then p_gate -> 'schema' when p_gate ? 'field' then
            jsonb_build_object('type', 'object', 'required', jsonb_build_array(p_gate -> 'field'), 'properties', jsonb_build_object(p_gate ->> 'field', t.schema))
        else t.schema end
        from (select jsonb_build_object('type', 'string', 'pattern', p_gate -> 'pattern')) t (schema)
$f$;
comment on function vanilla.gate_schema(jsonb) is 'The schema that a gate of an agreement is: its own, or that of a text, the body or one of its fields, in which the pattern is found.';

create or replace function vanilla.gate_problem(p_gate jsonb, p_acts jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_kind text := p_gate ->> 'kind';
    v_keys text[] := case v_kind when 'schema' then '{kind,acts,schema}' else '{kind,acts,pattern,field}' end;
begin
    if p_gate is null then
        return null;
    elsif jsonb_typeof(p_gate) <> 'object' then
        return 'gate is an object';
    elsif v_kind is null or v_kind not in ('schema', 'regex') then
        return 'a gate of an agreement is of the kind schema or regex: it is decided in the transaction that sends the message, which waits for no model, no person and no query';
    elsif p_gate - v_keys <> '{}' then
        return format('a gate of the kind %s says %s, nothing else', v_kind, array_to_string(v_keys, ', '));
    elsif jsonb_typeof(p_gate -> 'acts') is distinct from 'array' or p_gate -> 'acts' = '[]'
            or exists (select from jsonb_array_elements(p_gate -> 'acts') a where jsonb_typeof(a.value) <> 'string' or not p_acts ? (a.value #>> '{}')) then
        return 'the acts of a gate are a list of acts that are there';
    elsif v_kind = 'schema' and not p_gate ? 'schema' or v_kind = 'regex' and not p_gate ? 'pattern' then
        return format('a gate of the kind %s says its %s', v_kind, v_keys[3]);
    elsif p_gate ? 'field' and (jsonb_typeof(p_gate -> 'field') <> 'string' or octet_length(p_gate ->> 'field') not between 1 and 200) then
        return 'the field of a gate is a name of 1 to 200 bytes';
    end if;
    return case when v_kind = 'schema' then 'gate/schema' || vanilla.schema_problem(p_gate -> 'schema', p_gate #> '{schema,$defs}')
        when jsonb_typeof(p_gate -> 'pattern') <> 'string' then 'gate/pattern: it is a text'
        else 'gate/pattern: ' || vanilla.pattern_problem(p_gate ->> 'pattern') end;
end
$f$;
comment on function vanilla.gate_problem(jsonb, jsonb) is 'What is wrong with the gate of the terms, given their acts; null: nothing, or it is not there.';

create or replace function vanilla.redact_problem(p_redact jsonb) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select 'redact is a list of 1 to 20 JSON pointers, each of a field and of at most 200 bytes'
        where jsonb_typeof(p_redact) <> 'array' or p_redact = '[]' or jsonb_array_length(p_redact) > 20
            or exists (select from jsonb_array_elements(p_redact) p where jsonb_typeof(p.value) <> 'string' or p.value #>> '{}' !~ '^(/([^~/]|~[01])+)+$' or octet_length(p.value #>> '{}') > 200)
$f$;
comment on function vanilla.redact_problem(jsonb) is 'What is wrong with data.redact of the terms; null: nothing, or it is not there.';

create or replace function vanilla.terms_problem(p_content jsonb, p_parties text[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_acts jsonb := p_content -> 'acts';
    v_problem text;
begin
    if jsonb_typeof(p_content) is distinct from 'object' or octet_length(p_content::text) > 65536 then
        return 'the content is an object of at most 64 KiB';
    elsif p_content - '{acts,price,sla,data,gate,limits,expires_at}'::text[] <> '{}' then
        return 'the content says acts, price, sla, data, gate, limits and expires_at, nothing else';
    elsif jsonb_typeof(v_acts) is distinct from 'object' or v_acts = '{}' then
        return 'acts are an object with at least one performative';
    end if;
    v_problem := coalesce(vanilla.part_problem(p_content, 'price', '{max_tokens_per_task}'), vanilla.part_problem(p_content, 'sla', '{max_latency_ms,max_attempts}'),
        vanilla.part_problem(p_content, 'data', '{retention_days,redact}'), vanilla.part_problem(p_content, 'limits', '{max_messages,max_open_conversations,max_violations}'),
        vanilla.figure_problem(p_content -> 'price', 'max_tokens_per_task', 0, 1000000000000), vanilla.figure_problem(p_content -> 'sla', 'max_latency_ms', 1, 31536000000),
        vanilla.figure_problem(p_content -> 'sla', 'max_attempts', 1, 100), vanilla.figure_problem(p_content -> 'data', 'retention_days', 1, 36500),
        vanilla.figure_problem(p_content -> 'limits', 'max_messages', 1, 1000000000000), vanilla.figure_problem(p_content -> 'limits', 'max_open_conversations', 1, 1000000),
        vanilla.figure_problem(p_content -> 'limits', 'max_violations', 1, 1000000),
        vanilla.redact_problem(p_content #> '{data,redact}'), vanilla.gate_problem(p_content -> 'gate', v_acts));
    if v_problem is not null then return v_problem; end if;
    if p_content ? 'expires_at' then
        begin
            perform (p_content ->> 'expires_at')::timestamptz;
        exception when invalid_datetime_format or datetime_field_overflow or invalid_parameter_value then
            return 'expires_at is a time with its zone';
        end;
    end if;
    select format('acts/%s: %s', a.key, p.problem) into v_problem from jsonb_each(v_acts) a
        cross join lateral (select vanilla.act_problem(v_acts, a.key, p_parties)) p (problem) where p.problem is not null limit 1;
    if v_problem is null then
        select format('acts/%s: nothing leads to it: it does not open a conversation and is a reply to nothing', a.key) into v_problem from jsonb_object_keys(v_acts) a (key)
            where not vanilla.act_opens(v_acts, a.key) and not exists (select from jsonb_each(v_acts) b where b.value -> 'replies' ? a.key) limit 1;
    end if;
    return v_problem;
end
$f$;
comment on function vanilla.terms_problem(jsonb, text[]) is 'What is wrong with the content of an agreement between these parties; null: every rule in it can be enforced.';

create or replace function vanilla.agreement_state(p_agreement public.protocol_agreements) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    return case when p_agreement.status in ('proposed', 'active', 'suspended') and p_agreement.expires_at <= vanilla.clock() then 'expired' else p_agreement.status end;
end
$f$;
comment on function vanilla.agreement_state(public.protocol_agreements) is 'What an agreement is now: its end comes by the clock, whoever writes it down.';

-- Agreements: from proposal to end ---------------------------------------------------------------------------------
create or replace function vanilla.speaker(p_tenant_id uuid, out tenant_id uuid, out user_id uuid, out role text)
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    tenant_id := vanilla.member_tenant(p_tenant_id);
    user_id := vanilla.claim(4)::uuid;
    role := coalesce(vanilla.claim(5), 'operator');
end
$f$;
comment on function vanilla.speaker(uuid) is 'Who calls, in which tenant: a member, an admin, a program of the tenant, or the operator, whose tenant is null when none is named.';

create or replace function vanilla.speaks_for(p_role text, p_caller uuid, p_user_id uuid) returns boolean
language sql immutable return p_role in ('service', 'operator') or coalesce(p_caller = p_user_id, false);
comment on function vanilla.speaks_for(text, uuid, uuid) is 'Whether a caller says something in a user''s name: the user, or a program. An admin does not put words into their mouth.';

create or replace function vanilla.propose_version(p_agreement public.protocol_agreements, p_party text, p_user_id uuid, p_content jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_parties jsonb;
    v_version public.agreement_versions;
    v_problem text;
begin
    select jsonb_object_agg(p.party, p.user_id) into v_parties from public.agreement_parties p where p.tenant_id = p_agreement.tenant_id and p.agreement_id = p_agreement.id;
    v_problem := vanilla.terms_problem(p_content, array(select jsonb_object_keys(v_parties)));
    if v_problem is not null then
        perform vanilla.refuse('VS422', 'the agreement is not valid: ' || v_problem, jsonb_build_object('param', 'content', 'problem', v_problem));
    elsif (p_content ->> 'expires_at')::timestamptz <= v_now then
        perform vanilla.refuse('VS400', 'the agreement ends before it begins', '{"param": "content"}');
    end if;
    v_version.terms := p_content || jsonb_build_object('parties', v_parties, 'expires_at', coalesce((p_content ->> 'expires_at')::timestamptz, 'infinity'));
    v_version.hash := sha256(convert_to(v_version.terms::text, 'UTF8'));
    select coalesce(max(v.version), 0) + 1 into v_version.version from public.agreement_versions v
        where v.tenant_id = p_agreement.tenant_id and v.agreement_id = p_agreement.id;
    insert into public.agreement_versions (tenant_id, agreement_id, version, terms, hash, proposed_by, user_id, proposed_at)
        values (p_agreement.tenant_id, p_agreement.id, v_version.version, v_version.terms, v_version.hash, p_party, p_user_id, v_now);
    insert into public.agreement_acceptances (tenant_id, agreement_id, version, party, user_id, hash, accepted_at)
        values (p_agreement.tenant_id, p_agreement.id, v_version.version, p_party, p_user_id, v_version.hash, v_now);
    update public.protocol_agreements a set open_version = v_version.version, updated_at = v_now,
            expires_at = case when a.status = 'proposed' then (v_version.terms ->> 'expires_at')::timestamptz else a.expires_at end
        where a.tenant_id = p_agreement.tenant_id and a.id = p_agreement.id;
    return jsonb_build_object('agreement_id', p_agreement.id, 'version', v_version.version, 'hash', encode(v_version.hash, 'hex'), 'status', p_agreement.status);
end
$f$;
comment on function vanilla.propose_version(public.protocol_agreements, text, uuid, jsonb) is 'Writes what a party of a locked agreement proposes, and that it accepts it.';

create or replace function public.agreement_propose(p_name text, p_parties jsonb, p_party text, p_content jsonb, p_user_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
    v_agreement public.protocol_agreements;
begin
    if jsonb_typeof(p_parties) is distinct from 'object' or (select count(*) not between 2 and 20 from jsonb_object_keys(p_parties)) then
        perform vanilla.refuse('VS400', 'parties are an object of 2 to 20 names with their users', '{"param": "parties"}');
    elsif p_parties ->> p_party is distinct from v_user.id::text then
        perform vanilla.refuse('VS400', 'who proposes is one of the parties', '{"param": "party"}', 'Name the party whose user proposes.');
    end if;
    perform vanilla.hold_open(v_user);
    begin
        insert into public.protocol_agreements (tenant_id, user_id, name, open_version, created_at, updated_at)
            values (v_user.tenant_id, v_user.id, p_name, 1, vanilla.clock(), vanilla.clock()) returning * into v_agreement;
        insert into public.agreement_parties (tenant_id, agreement_id, party, user_id)
            select v_user.tenant_id, v_agreement.id, p.key, (vanilla.find_user(v_user.tenant_id, p.value::uuid)).id from jsonb_each_text(p_parties) p order by p.value;
    exception when check_violation or not_null_violation or invalid_text_representation then
        perform vanilla.refuse('VS400', 'the agreement is not valid: ' || sqlerrm, '{"param": "parties"}',
            'A name of at most 800 bytes; parties are 1 to 63 of a-z, 0-9 and _, beginning with a letter, each with the id of a user.');
    end;
    return vanilla.propose_version(v_agreement, p_party, v_user.id, p_content);
end
$f$;
comment on function public.agreement_propose(text, jsonb, text, jsonb, uuid, uuid) is
    'Proposes an agreement between parties, {name: id of the user who answers for it}, of which p_party is the caller''s and accepts it so. Returns agreement_id, version, hash (hexadecimal), status. VS422: the content has a rule that could not be enforced, such as a keyword of JSON Schema that is not looked at.';

create or replace function vanilla.own_agreement(p_agreement_id uuid, p_party text, p_tenant_id uuid, p_binding boolean, out agreement public.protocol_agreements, out user_id uuid)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
    v_state text;
begin
    select * into agreement from public.protocol_agreements a where a.id = p_agreement_id and (a.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
        for no key update;
    if found and v_speaker.role = 'user' and not exists (select from public.agreement_parties p
            where p.tenant_id = agreement.tenant_id and p.agreement_id = agreement.id and p.user_id = v_speaker.user_id) then
        agreement := null;
    end if;
    if agreement.id is null then perform vanilla.refuse('VS404', 'no such agreement', jsonb_build_object('agreement_id', p_agreement_id)); end if;
    select p.user_id into own_agreement.user_id from public.agreement_parties p where p.tenant_id = agreement.tenant_id and p.agreement_id = agreement.id and p.party = p_party;
    if own_agreement.user_id is null and (p_binding or p_party is not null or v_speaker.role = 'user') then
        perform vanilla.refuse('VS404', 'no such party', jsonb_build_object('param', 'party', 'party', p_party));
    elsif not vanilla.speaks_for(v_speaker.role, v_speaker.user_id, own_agreement.user_id) and (p_binding or v_speaker.role = 'user') then
        perform vanilla.refuse('VS403', 'only who answers for the party may do this', jsonb_build_object('need', 'party'));
    end if;
    v_state := vanilla.agreement_state(agreement);
    if v_state not in ('proposed', 'active', 'suspended') then
        perform vanilla.refuse('VS409', format('the agreement is %s', v_state), jsonb_build_object('status', v_state));
    end if;
end
$f$;
comment on function vanilla.own_agreement(uuid, text, uuid, boolean) is
    'An agreement that has not ended, locked, and the user of the party for which the caller acts. p_binding: only that user or a program may; else an admin too, also for no party.';

create or replace function vanilla.open_version(p_agreement public.protocol_agreements, p_hash bytea) returns public.agreement_versions
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_version public.agreement_versions;
begin
    select * into v_version from public.agreement_versions v
        where v.tenant_id = p_agreement.tenant_id and v.agreement_id = p_agreement.id and v.version = p_agreement.open_version;
    if not found then
        perform vanilla.refuse('VS409', 'nothing is proposed', jsonb_build_object('status', p_agreement.status));
    elsif p_hash is distinct from v_version.hash then
        perform vanilla.refuse('VS409', 'something else is proposed by now', jsonb_build_object('version', v_version.version, 'hash', encode(v_version.hash, 'hex')), 'Read it again.');
    end if;
    return v_version;
end
$f$;
comment on function vanilla.open_version(public.protocol_agreements, bytea) is 'The version of a locked agreement that waits for answers, if it is the one whose hash is named.';

create or replace function vanilla.decide_version(p_version public.agreement_versions, p_state text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_agreement public.protocol_agreements;
begin
    if p_state = 'active' then
        update public.agreement_versions v set state = 'superseded', decided_at = v_now
            where v.tenant_id = p_version.tenant_id and v.agreement_id = p_version.agreement_id and v.state = 'active';
    end if;
    update public.agreement_versions v set state = p_state, decided_at = v_now
        where v.tenant_id = p_version.tenant_id and v.agreement_id = p_version.agreement_id and v.version = p_version.version;
    update public.protocol_agreements a set updated_at = v_now, open_version = null,
            status = case when a.status = 'proposed' then p_state else a.status end,
            version = case when p_state = 'active' then p_version.version else a.version end,
            expires_at = case when p_state = 'active' then (p_version.terms ->> 'expires_at')::timestamptz else a.expires_at end
        where a.tenant_id = p_version.tenant_id and a.id = p_version.agreement_id and p_state <> 'countered' returning * into v_agreement;
    if p_state = 'active' then
        perform vanilla.audit(p_version.tenant_id, 'agreement.active', 'agreement', p_version.agreement_id, jsonb_build_object('version', p_version.version, 'hash', encode(p_version.hash, 'hex')));
    end if;
    return v_agreement.status;
end
$f$;
comment on function vanilla.decide_version(public.agreement_versions, text) is 'The open version of a locked agreement is active, countered, rejected or withdrawn; returns what the agreement is.';

create or replace function public.agreement_respond(p_agreement_id uuid, p_party text, p_hash bytea, p_decision text, p_content jsonb default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record;
    v_version public.agreement_versions;
begin
    if p_decision is null or p_decision not in ('accept', 'counter', 'reject') or (p_decision = 'counter') <> (p_content is not null) then
        perform vanilla.refuse('VS400', 'the answer is accept, reject, or counter with a content', '{"param": "decision"}');
    end if;
    v_own := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, true);
    v_version := vanilla.open_version(v_own.agreement, p_hash);
    if p_decision = 'counter' then
        perform vanilla.decide_version(v_version, 'countered');
        return vanilla.propose_version(v_own.agreement, p_party, v_own.user_id, p_content);
    elsif p_decision = 'reject' then
        return jsonb_build_object('agreement_id', p_agreement_id, 'version', v_version.version, 'status', vanilla.decide_version(v_version, 'rejected'));
    end if;
    insert into public.agreement_acceptances (tenant_id, agreement_id, version, party, user_id, hash, accepted_at)
        values (v_version.tenant_id, v_version.agreement_id, v_version.version, p_party, v_own.user_id, v_version.hash, vanilla.clock()) on conflict do nothing;
    return jsonb_build_object('agreement_id', p_agreement_id, 'version', v_version.version, 'hash', encode(v_version.hash, 'hex'), 'status', case
        when exists (select from public.agreement_parties p where p.tenant_id = v_version.tenant_id and p.agreement_id = v_version.agreement_id and not exists (
            select from public.agreement_acceptances a where a.tenant_id = p.tenant_id and a.agreement_id = p.agreement_id and a.version = v_version.version and a.party = p.party))
        then (v_own.agreement).status else vanilla.decide_version(v_version, 'active') end);
end
$f$;
comment on function public.agreement_respond(uuid, text, bytea, text, jsonb, uuid) is
    'A party accepts what is proposed, named by its hash, rejects it, or counters with another content. The last to accept makes it active; a version that was active is superseded. VS409: something else is proposed by now.';

create or replace function public.agreement_amend(p_agreement_id uuid, p_party text, p_content jsonb, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, true);
begin
    if (v_own.agreement).open_version is not null then
        perform vanilla.refuse('VS409', 'something is proposed already', jsonb_build_object('version', (v_own.agreement).open_version), 'Answer that, or withdraw it.');
    end if;
    return vanilla.propose_version(v_own.agreement, p_party, v_own.user_id, p_content);
end
$f$;
comment on function public.agreement_amend(uuid, text, jsonb, uuid) is 'A party of an agreement proposes another version of it. What is active binds until every party has accepted the new one.';

create or replace function public.agreement_withdraw(p_agreement_id uuid, p_party text, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, true);
    v_version public.agreement_versions;
begin
    select * into v_version from public.agreement_versions v where v.tenant_id = (v_own.agreement).tenant_id and v.agreement_id = p_agreement_id
        and v.version = (v_own.agreement).open_version;
    if v_version.proposed_by is distinct from p_party then
        perform vanilla.refuse('VS409', 'the party has proposed nothing that is open', jsonb_build_object('status', (v_own.agreement).status));
    end if;
    return jsonb_build_object('agreement_id', p_agreement_id, 'version', v_version.version, 'status', vanilla.decide_version(v_version, 'withdrawn'));
end
$f$;
comment on function public.agreement_withdraw(uuid, text, uuid) is 'A party takes back what it proposed and not all have accepted; what is active stays so.';

create or replace function vanilla.move_agreement(p_agreement public.protocol_agreements, p_status text, p_party text, p_reason text) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_status in ('terminated', 'expired') then
        update public.agreement_versions v set state = case p_status when 'expired' then 'expired' else 'withdrawn' end, decided_at = vanilla.clock()
            where v.tenant_id = p_agreement.tenant_id and v.agreement_id = p_agreement.id and v.state = 'proposed';
    end if;
    update public.protocol_agreements a set status = p_status, suspended_by = case when p_status = 'suspended' then p_party end, reason = nullif(left(p_reason, 500), ''),
            violations = case when p_status = 'active' then 0 else a.violations end, updated_at = vanilla.clock(),
            open_version = case when p_status in ('terminated', 'expired') then null else a.open_version end
        where a.tenant_id = p_agreement.tenant_id and a.id = p_agreement.id;
    perform vanilla.audit(p_agreement.tenant_id, 'agreement.' || p_status, 'agreement', p_agreement.id, jsonb_build_object('party', p_party, 'reason', p_reason));
    return jsonb_build_object('agreement_id', p_agreement.id, 'version', p_agreement.version, 'status', p_status);
end
$f$;
comment on function vanilla.move_agreement(public.protocol_agreements, text, text, text) is 'A locked agreement is suspended, active again, terminated or expired.';

create or replace function public.agreement_suspend(p_agreement_id uuid, p_party text default null, p_reason text default '', p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, false);
begin
    if (v_own.agreement).status <> 'active' then
        perform vanilla.refuse('VS409', format('the agreement is %s', (v_own.agreement).status), jsonb_build_object('status', (v_own.agreement).status));
    end if;
    return vanilla.move_agreement(v_own.agreement, 'suspended', p_party, p_reason);
end
$f$;
comment on function public.agreement_suspend(uuid, text, text, uuid) is 'A party, or an admin, lets an agreement rest: its channels take no message until it is resumed.';

create or replace function public.agreement_resume(p_agreement_id uuid, p_party text default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, false);
    v_agreement public.protocol_agreements := v_own.agreement;
begin
    if v_agreement.status <> 'suspended' then
        perform vanilla.refuse('VS409', format('the agreement is %s', v_agreement.status), jsonb_build_object('status', v_agreement.status));
    elsif p_party is not null and (v_agreement.suspended_by <> p_party or v_agreement.suspended_by is null and exists (
            select from (select v.party from public.agreement_violations v where v.tenant_id = v_agreement.tenant_id and v.agreement_id = v_agreement.id
                order by v.id desc limit v_agreement.violations) x      -- those since it was last resumed
            where x.party = p_party)) then
        perform vanilla.refuse('VS403', 'it is for another party to resume it', jsonb_build_object('suspended_by', v_agreement.suspended_by),
            'The party that suspended it resumes it; after violations one that made none, or an admin.');
    end if;
    return vanilla.move_agreement(v_agreement, 'active', p_party, null);
end
$f$;
comment on function public.agreement_resume(uuid, text, uuid) is
    'A suspended agreement goes on, and violations count from 0: by the party that suspended it; after too many violations, by one that made none of them; by an admin.';

create or replace function public.agreement_terminate(p_agreement_id uuid, p_party text default null, p_reason text default '', p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, false);
begin
    return vanilla.move_agreement(v_own.agreement, 'terminated', p_party, p_reason);
end
$f$;
comment on function public.agreement_terminate(uuid, text, text, uuid) is 'A party, or an admin, ends an agreement for good: its channels take no message any more.';

create or replace function vanilla.agreement_expire_due(p_tenant_id uuid, p_limit integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_agreement public.protocol_agreements;
    v_expired integer := 0;
begin
    for v_agreement in select * from public.protocol_agreements a where a.tenant_id = p_tenant_id and a.status in ('proposed', 'active', 'suspended')
            and a.expires_at <= vanilla.clock() order by a.id limit p_limit for no key update skip locked loop
        perform vanilla.move_agreement(v_agreement, 'expired', null, null);
        v_expired := v_expired + 1;
    end loop;
    return v_expired;
end
$f$;
comment on function vanilla.agreement_expire_due(uuid, integer) is 'Writes down that agreements of a tenant have expired, which they had without it.';

create or replace function vanilla.readable_agreement(p_agreement_id uuid, p_tenant_id uuid) returns public.protocol_agreements
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
    v_agreement public.protocol_agreements;
begin
    select * into v_agreement from public.protocol_agreements a where a.id = p_agreement_id and (a.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
        and (v_speaker.role <> 'user' or exists (select from public.agreement_parties p where p.tenant_id = a.tenant_id and p.agreement_id = a.id and p.user_id = v_speaker.user_id));
    if not found then perform vanilla.refuse('VS404', 'no such agreement', jsonb_build_object('agreement_id', p_agreement_id)); end if;
    return v_agreement;
end
$f$;
comment on function vanilla.readable_agreement(uuid, uuid) is 'An agreement that the caller may read: their parties'', admins'' all of the tenant.';

create or replace function public.agreement_read(p_agreement_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_agreement public.protocol_agreements := vanilla.readable_agreement(p_agreement_id, p_tenant_id);
begin
    return jsonb_build_object('id', v_agreement.id, 'name', v_agreement.name, 'status', vanilla.agreement_state(v_agreement), 'version', v_agreement.version,
        'open_version', v_agreement.open_version, 'expires_at', nullif(v_agreement.expires_at, 'infinity'), 'violations', v_agreement.violations,
        'suspended_by', v_agreement.suspended_by, 'reason', v_agreement.reason, 'created_at', v_agreement.created_at,
        'versions', (select jsonb_agg(jsonb_build_object('version', v.version, 'state', v.state, 'hash', encode(v.hash, 'hex'), 'terms', v.terms, 'proposed_by', v.proposed_by,
                'proposed_at', v.proposed_at, 'decided_at', v.decided_at, 'accepted_by', (select coalesce(jsonb_agg(a.party order by a.party), '[]')
                    from public.agreement_acceptances a where a.tenant_id = v.tenant_id and a.agreement_id = v.agreement_id and a.version = v.version)) order by v.version desc)
            from public.agreement_versions v where v.tenant_id = v_agreement.tenant_id and v.agreement_id = v_agreement.id),
        'latest_violations', (select coalesce(jsonb_agg(to_jsonb(x) - '{tenant_id,agreement_id,user_id}'::text[] order by x.id desc), '[]') from (
            select * from public.agreement_violations x where x.tenant_id = v_agreement.tenant_id and x.agreement_id = v_agreement.id order by x.id desc limit 20) x));
end
$f$;
comment on function public.agreement_read(uuid, uuid) is 'An agreement with its versions, who accepted them, and the last 20 violations: for its parties and admins.';

create or replace function public.my_agreements(p_tenant_id uuid default null)
returns table (id uuid, name text, status text, version integer, open_version integer, violations integer, expires_at timestamptz, created_at timestamptz)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
begin
    return query select a.id, a.name, vanilla.agreement_state(a), a.version, a.open_version, a.violations, nullif(a.expires_at, 'infinity'), a.created_at
        from public.protocol_agreements a where (a.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
          and (v_speaker.role <> 'user' or exists (select from public.agreement_parties p where p.tenant_id = a.tenant_id and p.agreement_id = a.id and p.user_id = v_speaker.user_id))
        order by a.id desc limit 1000;
end
$f$;
comment on function public.my_agreements(uuid) is 'The newest 1,000 agreements to which the caller is a party; of an admin, all of the tenant.';

-- Agreements: what a message breaks --------------------------------------------------------------------------------
create or replace function vanilla.agreement_breach(p_terms jsonb, p_channel public.communication_channels, p_party text, p_performative text,
    p_replied public.channel_messages, p_root public.channel_messages, p_now timestamptz) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_acts jsonb := p_terms -> 'acts';
    v_act jsonb := v_acts -> p_performative;
    v_asked jsonb := v_acts -> p_replied.performative;
    v_limits jsonb := p_terms -> 'limits';
begin
    return case
        when v_act is null then jsonb_build_object('rule', 'performative', 'message', format('%s is no act of the agreement', p_performative))
        when p_party is null or v_act ? 'senders' and not v_act -> 'senders' ? p_party
            then jsonb_build_object('rule', 'sender', 'message', format('%s is not for %s to say', p_performative, coalesce(p_party, 'a listener')))
        when p_replied.seq is null and not vanilla.act_opens(v_acts, p_performative)
            then jsonb_build_object('rule', 'reply', 'message', format('%s begins no conversation', p_performative))
        when p_replied.seq is not null and not coalesce(v_asked -> 'replies' ? p_performative, false)
            then jsonb_build_object('rule', 'reply', 'message', format('%s is no reply to %s', p_performative, p_replied.performative))
        when p_root.ended_by is not null
            then jsonb_build_object('rule', 'conversation', 'message', 'the conversation has ended')
        when p_replied.created_at + make_interval(secs => (v_asked ->> 'reply_within_s')::double precision) < p_now
            then jsonb_build_object('rule', 'deadline', 'message', format('a reply to %s comes within %s s', p_replied.performative, v_asked ->> 'reply_within_s'))
        when p_channel.last_seq >= (v_limits ->> 'max_messages')::bigint
            then jsonb_build_object('rule', 'limit', 'message', format('a channel has at most %s messages', v_limits ->> 'max_messages'))
        when p_replied.seq is null and p_channel.open_conversations >= (v_limits ->> 'max_open_conversations')::bigint and not vanilla.act_ends(v_act)
            then jsonb_build_object('rule', 'limit', 'message', format('at most %s conversations are open', v_limits ->> 'max_open_conversations')) end;
end
$f$;
comment on function vanilla.agreement_breach(jsonb, public.communication_channels, text, text, public.channel_messages, public.channel_messages, timestamptz) is
    'Which rule but those of its body a message breaks: {rule, message}, null for none. Given are the terms, the locked channel, who speaks, the message it replies to and the one that began the conversation.';

create or replace function vanilla.latency_breach(p_terms jsonb, p_replied public.channel_messages, p_now timestamptz) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('rule', 'latency', 'message', format('an answer comes within %s ms', p_terms #>> '{sla,max_latency_ms}'))
        where p_replied.created_at + (p_terms #>> '{sla,max_latency_ms}')::bigint * interval '1 millisecond' < p_now
$f$;
comment on function vanilla.latency_breach(jsonb, public.channel_messages, timestamptz) is
    'Whether an answer comes later than sla.max_latency_ms after what it answers: {rule, message}; null: it does not, or answers nothing. It is delivered all the same.';

create or replace function vanilla.act_ends(p_act jsonb) returns boolean
language sql immutable return coalesce((p_act ->> 'ends')::boolean, coalesce(p_act -> 'replies', '[]') = '[]');
comment on function vanilla.act_ends(jsonb) is 'Whether an act ends the conversation it is said in: it says so, or nothing replies to it.';

create or replace function vanilla.schema_breach(p_rule text, p_schema jsonb, p_body jsonb) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('rule', p_rule, 'path', left(m.problem ->> 'path', 500), 'message', case p_rule when 'gate'
            then format('it does not pass the gate: %s', coalesce(m.problem ->> 'keyword', m.problem ->> 'message')) else m.problem ->> 'message' end)
        from vanilla.schema_misfit(p_schema, p_body, p_schema -> '$defs', '', 0, 10000) m where p_schema is not null and m.problem is not null
$f$;
comment on function vanilla.schema_breach(text, jsonb, jsonb) is
    'Where a body does not fit the schema of its act, or of the gate that its act is to pass: {rule, path, message}; null: it fits, or there is no schema.';

create or replace function vanilla.price_breach(p_terms jsonb, p_performative text, p_body jsonb) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_most numeric := (p_terms #>> '{price,max_tokens_per_task}')::numeric;
    v_price jsonb := p_body -> 'price_tokens';
begin
    if p_performative <> 'propose' or v_most is null or v_price is null then return null; end if;
    if jsonb_typeof(v_price) = 'number' and (v_price #>> '{}')::numeric <= v_most then return null; end if;
    return jsonb_build_object('rule', 'price', 'path', '/price_tokens', 'message', format('a price is a number of tokens, at most %s', v_most));
end
$f$;
comment on function vanilla.price_breach(jsonb, text, jsonb) is 'Where a bid, the act propose, asks for more than price.max_tokens_per_task: {rule, path, message}; null: it does not, or says no price_tokens.';

create or replace function vanilla.body_breach(p_terms jsonb, p_performative text, p_body jsonb) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select coalesce(
        vanilla.schema_breach('schema', p_terms -> 'acts' -> p_performative -> 'schema', p_body),
        vanilla.price_breach(p_terms, p_performative, p_body),
        vanilla.schema_breach('gate', case when p_terms #> '{gate,acts}' ? p_performative then vanilla.gate_schema(p_terms -> 'gate') end, p_body))
$f$;
comment on function vanilla.body_breach(jsonb, text, jsonb) is 'Which rule of its body a message breaks, the first of schema, price and gate: {rule, path, message}; null: none.';

create or replace function vanilla.record_violation(p_agreement public.protocol_agreements, p_limits jsonb, p_channel_id uuid, p_participant public.channel_participants,
    p_performative text, p_breach jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_agreement public.protocol_agreements;
    v_most integer := coalesce((p_limits ->> 'max_violations')::integer, 10);
begin
    insert into public.agreement_violations (tenant_id, agreement_id, version, channel_id, participant_id, party, user_id, performative, rule, path, message, created_at)
        values (p_agreement.tenant_id, p_agreement.id, p_agreement.version, p_channel_id, p_participant.id, p_participant.party, p_participant.user_id, p_performative,
            p_breach ->> 'rule', coalesce(p_breach ->> 'path', ''), p_breach ->> 'message', vanilla.clock());
    update public.protocol_agreements a set violations = a.violations + 1 where a.tenant_id = p_agreement.tenant_id and a.id = p_agreement.id returning * into v_agreement;
    if v_agreement.violations >= v_most and v_agreement.status = 'active' then
        perform vanilla.move_agreement(v_agreement, 'suspended', null, format('%s violations', v_agreement.violations));
    end if;
    return jsonb_build_object('code', 'agreement_violated', 'rule', p_breach ->> 'rule', 'path', coalesce(p_breach ->> 'path', ''), 'message', p_breach ->> 'message',
        'violations', v_agreement.violations, 'suspended', v_agreement.violations >= v_most);
end
$f$;
comment on function vanilla.record_violation(public.protocol_agreements, jsonb, uuid, public.channel_participants, text, jsonb) is
    'Writes down a message that broke an agreement, counts it, suspends the agreement at the limit, and says what channel_send tells of it.';

-- Agreements: what is not kept -------------------------------------------------------------------------------------
create or replace function vanilla.pointer_path(p_pointer text) returns text[]
language sql immutable return string_to_array(replace(replace(replace(substr(p_pointer, 2), '/', chr(1)), '~1', '/'), '~0', '~'), chr(1));
comment on function vanilla.pointer_path(text) is 'The names that a JSON pointer is made of.';

create or replace function vanilla.words_at(p_value jsonb, p_path text[]) returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    if p_path = '{}' then
        return coalesce((select array_agg(distinct w.value #>> '{}') from jsonb_path_query(p_value, 'strict $.**') w (value)
            where jsonb_typeof(w.value) in ('string', 'number') and length(w.value #>> '{}') >= 5), '{}');
    elsif jsonb_typeof(p_value) = 'array' then
        return (select array_agg(distinct w.word) from (select vanilla.words_at(e.value, p_path) as words from jsonb_array_elements(p_value) e) f
            left join lateral unnest(f.words) w (word) on true where f.words is not null);
    elsif jsonb_typeof(p_value) = 'object' and p_value ? p_path[1] then
        return vanilla.words_at(p_value -> p_path[1], p_path[2:]);
    end if;
    return null;
end
$f$;
comment on function vanilla.words_at(jsonb, text[]) is
    'The texts and numbers of at least five characters that stand at a path, a list on the way meaning each of its elements; null: nothing is there.';

create or replace function vanilla.redact_at(p_value jsonb, p_path text[]) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return case when p_path = '{}' then '"***"'
        when jsonb_typeof(p_value) = 'array' then (select coalesce(jsonb_agg(vanilla.redact_at(e.value, p_path) order by e.ordinality), '[]') from jsonb_array_elements(p_value) with ordinality e)
        when jsonb_typeof(p_value) = 'object' and p_value ? p_path[1] then jsonb_set(p_value, array[p_path[1]], vanilla.redact_at(p_value -> p_path[1], p_path[2:]))
        else p_value end;
end
$f$;
comment on function vanilla.redact_at(jsonb, text[]) is 'A value without what stands at a path: *** is there instead.';

create or replace function vanilla.redact_fields(p_body jsonb, p_redact text[]) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_pointer text;
begin
    foreach v_pointer in array coalesce(p_redact, '{}') loop
        p_body := vanilla.redact_at(p_body, vanilla.pointer_path(v_pointer));
    end loop;
    return p_body;
end
$f$;
comment on function vanilla.redact_fields(jsonb, text[]) is 'A body without the fields that the pointers name.';

create or replace function vanilla.redact_text(p_text text, p_words text[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_word text;
begin
    foreach v_word in array p_words loop
        -- as it stands, and as it stands in JSON that is a text itself
        p_text := replace(replace(p_text, v_word, '***'), substr(left(to_json(v_word)::text, -1), 2), '***');
    end loop;
    return p_text;
end
$f$;
comment on function vanilla.redact_text(text, text[]) is 'A text without these words, the longest of which come first.';

create or replace function vanilla.redact_words(p_value jsonb, p_words text[]) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return case jsonb_typeof(p_value)
        when 'string' then to_jsonb(vanilla.redact_text(p_value #>> '{}', p_words))
        when 'number' then case when p_value #>> '{}' = any (p_words) then '"***"' else p_value end
        when 'array' then (select coalesce(jsonb_agg(vanilla.redact_words(e.value, p_words) order by e.ordinality), '[]') from jsonb_array_elements(p_value) with ordinality e)
        when 'object' then (select coalesce(jsonb_object_agg(vanilla.redact_text(e.key, p_words), vanilla.redact_words(e.value, p_words)), '{}') from jsonb_each(p_value) e)
        else p_value end;
end
$f$;
comment on function vanilla.redact_words(jsonb, text[]) is 'A value without these words, in its texts, its numbers and the names of its members.';

create or replace function vanilla.top_execution(p_tenant_id uuid, p_user_id uuid, p_run_id uuid) returns uuid
language sql stable set search_path = pg_catalog, pg_temp as $f$
    with recursive up as (
        select e.id, e.parent_execution_id from public.workflow_executions e where e.tenant_id = p_tenant_id and e.user_id = p_user_id
            and e.id = coalesce((select r.execution_id from public.agent_runs r where r.tenant_id = p_tenant_id and r.id = p_run_id), p_run_id)
        union all
        select e.id, e.parent_execution_id from up join public.workflow_executions e on e.tenant_id = p_tenant_id and e.id = up.parent_execution_id)
    select up.id from up where up.parent_execution_id is null
$f$;
comment on function vanilla.top_execution(uuid, uuid, uuid) is 'The execution at the top of the tree that a user''s run of an agent, or execution, is in; null: they have no such run.';

create or replace function vanilla.redact_tree(p_tenant_id uuid, p_execution_id uuid, p_words text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_words text[] := array(select w.word from unnest(p_words) w (word) order by length(w.word) desc, w.word);
    v_top public.workflow_executions;
    v_executions uuid[];
    v_runs uuid[];
begin
    select * into v_top from public.workflow_executions e where e.tenant_id = p_tenant_id and e.id = p_execution_id and e.finished_at is not null for no key update;
    if not found or v_words = '{}' then return; end if;
    with recursive down as (
        select e.id from public.workflow_executions e where e.tenant_id = p_tenant_id and e.id = v_top.id
        union all
        select e.id from down join public.workflow_executions e on e.tenant_id = p_tenant_id and e.user_id = v_top.user_id and e.parent_execution_id = down.id)
    select array_agg(d.id) into v_executions from down d;
    v_runs := array(select r.id from public.agent_runs r where r.tenant_id = p_tenant_id and r.execution_id = any (v_executions));
    update public.workflow_executions e set input = vanilla.redact_words(e.input, v_words), output = vanilla.redact_words(e.output, v_words), error = vanilla.redact_words(e.error, v_words),
            slot = vanilla.redact_text(e.slot, v_words) where e.tenant_id = p_tenant_id and e.id = any (v_executions);
    update public.workflow_steps s set value = vanilla.redact_words(s.value, v_words), output = vanilla.redact_words(s.output, v_words), error = vanilla.redact_words(s.error, v_words),
            state = vanilla.redact_words(s.state, v_words), decision = vanilla.redact_words(s.decision, v_words), feedback = vanilla.redact_words(s.feedback, v_words)
        where s.tenant_id = p_tenant_id and s.execution_id = any (v_executions);
    update public.workflow_signals g set payload = vanilla.redact_words(g.payload, v_words) where g.tenant_id = p_tenant_id and g.execution_id = any (v_executions);
    update public.workflow_approval_votes v set comment = vanilla.redact_text(v.comment, v_words), value = vanilla.redact_words(v.value, v_words)
        from public.workflow_approvals a where a.tenant_id = p_tenant_id and a.execution_id = any (v_executions) and v.tenant_id = a.tenant_id and v.approval_id = a.id;
    update public.workflow_approvals a set title = vanilla.redact_text(a.title, v_words), prompt = vanilla.redact_text(a.prompt, v_words), comment = vanilla.redact_text(a.comment, v_words),
            subject = vanilla.redact_words(a.subject, v_words), value = vanilla.redact_words(a.value, v_words) where a.tenant_id = p_tenant_id and a.execution_id = any (v_executions);
    update public.quality_gate_results q set feedback = vanilla.redact_text(q.feedback, v_words), suggestions = vanilla.redact_words(q.suggestions, v_words),
            metrics = vanilla.redact_words(q.metrics, v_words) where q.tenant_id = p_tenant_id and q.execution_id = any (v_executions);
    update public.agent_runs r set input = vanilla.redact_words(r.input, v_words), output = vanilla.redact_words(r.output, v_words), error = vanilla.redact_words(r.error, v_words)
        where r.tenant_id = p_tenant_id and r.id = any (v_runs);
    update public.agent_run_steps s set arguments = vanilla.redact_words(s.arguments, v_words), approval = vanilla.redact_words(s.approval, v_words), result = vanilla.redact_words(s.result, v_words),
            arguments_hash = case when vanilla.redact_words(s.arguments, v_words) = s.arguments then s.arguments_hash end where s.tenant_id = p_tenant_id and s.run_id = any (v_runs);
    update public.agent_run_state s set value = vanilla.redact_words(s.value, v_words),
            key = case when vanilla.redact_text(s.key, v_words) = s.key then s.key else left(vanilla.redact_text(s.key, v_words), 60) || '-' || gen_random_uuid() end
        where s.tenant_id = p_tenant_id and s.root_run_id = any (v_runs);
    update public.run_artifacts a set content = vanilla.redact_text(a.content, v_words),
            name = case when vanilla.redact_text(a.name, v_words) = a.name then a.name else left(vanilla.redact_text(a.name, v_words), 160) || '-' || gen_random_uuid() end
        where a.tenant_id = p_tenant_id and a.run_id = any (v_runs);
    update public.contract_bids b set plan = vanilla.redact_text(b.plan, v_words)
        from public.contract_calls c where c.tenant_id = p_tenant_id and c.run_id = any (v_runs) and b.tenant_id = c.tenant_id and b.call_id = c.id;
    update public.contract_calls c set task = vanilla.redact_words(c.task, v_words) where c.tenant_id = p_tenant_id and c.run_id = any (v_runs);
    update public.channel_messages m set body = vanilla.redact_words(m.body, v_words) where m.tenant_id = p_tenant_id and m.channel_id = any (v_runs);      -- of group chats
end
$f$;
comment on function vanilla.redact_tree(uuid, uuid, text[]) is
    'Takes words out of all that an execution that has ended and all below it keep: inputs, outputs, journals, state, artifacts, contracts, approvals, group chats.';

-- Channels: open, read, close --------------------------------------------------------------------------------------
create or replace function public.channel_open(p_name text, p_kind text, p_participants jsonb, p_agreement_id uuid default null, p_limits jsonb default '{}',
    p_user_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
    v_now timestamptz := vanilla.clock();
    v_policy text := p_limits ->> 'floor';
    v_agreement public.protocol_agreements;
    v_terms jsonb;
    v_channel public.communication_channels;
    v_problem text;
begin
    if jsonb_typeof(p_limits) is distinct from 'object' or p_limits - '{max_messages,max_attempts,floor,floor_s}'::text[] <> '{}' then
        v_problem := 'limits are an object of max_messages, max_attempts, floor and floor_s';
    elsif jsonb_typeof(p_participants) is distinct from 'array' or jsonb_array_length(p_participants) not between 2 and 100
            or p_kind = 'direct' and jsonb_array_length(p_participants) <> 2 then
        v_problem := 'participants are a list of 2 to 100, of a direct channel 2';
    elsif exists (select from jsonb_array_elements(p_participants) p where jsonb_typeof(p.value) <> 'object'
            or p.value - '{name,kind,user_id,party,reads,manages}'::text[] <> '{}') then
        v_problem := 'a participant is an object of name, kind, user_id, party, reads and manages';
    elsif (select count(*) filter (where p.value ->> 'manages' = 'true') from jsonb_array_elements(p_participants) p) <> (v_policy is not distinct from 'manager')::integer then
        v_problem := 'one participant manages where the floor is a manager''s, else none';
    end if;
    v_problem := coalesce(v_problem, vanilla.figure_problem(p_limits, 'max_messages', 1, 1000000000000), vanilla.figure_problem(p_limits, 'max_attempts', 1, 100),
        vanilla.figure_problem(p_limits, 'floor_s', 1, 86400));
    if v_problem is not null then
        perform vanilla.refuse('VS400', 'the channel is not valid: ' || v_problem, jsonb_build_object('param', case when v_problem like 'limits%' then 'limits' else 'participants' end));
    end if;
    perform vanilla.hold_open(v_user);
    if p_agreement_id is not null then
        select * into v_agreement from public.protocol_agreements a where a.tenant_id = v_user.tenant_id and a.id = p_agreement_id
            and (vanilla.claim(5) is distinct from 'user'
                or exists (select from public.agreement_parties p where p.tenant_id = a.tenant_id and p.agreement_id = a.id and p.user_id = v_user.id)) for key share;
        if not found then perform vanilla.refuse('VS404', 'no such agreement', jsonb_build_object('param', 'agreement_id', 'agreement_id', p_agreement_id)); end if;
        v_terms := vanilla.binding_terms(v_agreement);
    end if;
    begin
        insert into public.communication_channels (tenant_id, user_id, name, kind, agreement_id, max_messages, max_attempts, floor_policy, floor_s, created_at)
            values (v_user.tenant_id, v_user.id, p_name, p_kind, p_agreement_id, (p_limits ->> 'max_messages')::bigint,
                coalesce((p_limits ->> 'max_attempts')::smallint, (v_terms #>> '{sla,max_attempts}')::smallint, 5), v_policy, coalesce((p_limits ->> 'floor_s')::integer, 300), v_now)
            returning * into v_channel;
        insert into public.channel_participants (tenant_id, channel_id, place, name, kind, user_id, party, reads, manages)
            select v_user.tenant_id, v_channel.id, p.nr - 1, p.value ->> 'name', coalesce(p.value ->> 'kind', 'agent'),
                case when p.value ? 'user_id' then (vanilla.find_user(v_user.tenant_id, (p.value ->> 'user_id')::uuid)).id else v_user.id end, p.value ->> 'party',
                coalesce((p.value ->> 'reads')::boolean, true), coalesce((p.value ->> 'manages')::boolean, false)
            from jsonb_array_elements(p_participants) with ordinality p (value, nr) order by p.value ->> 'user_id', p.nr;
    exception
        when check_violation or not_null_violation or invalid_text_representation then
            perform vanilla.refuse('VS400', 'the channel is not valid: ' || sqlerrm, '{"param": "participants"}',
                'A name of at most 800 bytes, the kind direct, group or topic, a floor only in a group; participants with a name and the kind user, agent or engine.');
        when unique_violation then
            perform vanilla.refuse('VS409', 'two participants have the same name', '{"param": "participants"}');
    end;
    if exists (select from public.channel_participants p where p.tenant_id = v_user.tenant_id and p.channel_id = v_channel.id and p.party is not null
            and v_terms #>> array['parties', p.party] is distinct from p.user_id::text) then
        perform vanilla.refuse('VS400', 'a participant speaks as a party that its user is not', '{"param": "participants"}');
    end if;
    if v_policy is not null then
        v_channel := vanilla.give_floor(v_channel, vanilla.next_floor(v_channel, null));
        update public.communication_channels c set floor_holder = v_channel.floor_holder, floor_until = v_channel.floor_until
            where c.tenant_id = v_channel.tenant_id and c.id = v_channel.id;
    end if;
    return jsonb_build_object('channel_id', v_channel.id, 'participants', (select jsonb_object_agg(p.name, p.id) from public.channel_participants p
        where p.tenant_id = v_user.tenant_id and p.channel_id = v_channel.id));
end
$f$;
comment on function public.channel_open(text, text, jsonb, uuid, jsonb, uuid, uuid) is
    'Opens a channel between participants, each {name, kind: user, agent or engine, user_id, party, reads, manages}; limits are max_messages, max_attempts, floor (round_robin, manager, bid), floor_s. With an agreement every message is held to it. Returns channel_id and the participants'' ids by name.';

create or replace function vanilla.binding_terms(p_agreement public.protocol_agreements) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_state text := vanilla.agreement_state(p_agreement);
begin
    if v_state <> 'active' then
        perform vanilla.refuse('VS409', format('the agreement is %s', v_state), jsonb_build_object('agreement_id', p_agreement.id, 'status', v_state));
    end if;
    return (select v.terms from public.agreement_versions v where v.tenant_id = p_agreement.tenant_id and v.agreement_id = p_agreement.id and v.version = p_agreement.version);
end
$f$;
comment on function vanilla.binding_terms(public.protocol_agreements) is 'What an agreement says now; VS409 when it is not active.';

create or replace function vanilla.readable_channel(p_channel_id uuid, p_tenant_id uuid) returns public.communication_channels
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
    v_channel public.communication_channels;
begin
    select * into v_channel from public.communication_channels c where c.id = p_channel_id and (c.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
        and (v_speaker.role <> 'user' or c.user_id = v_speaker.user_id
            or exists (select from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.user_id = v_speaker.user_id));
    if not found then perform vanilla.refuse('VS404', 'no such channel', jsonb_build_object('channel_id', p_channel_id)); end if;
    return v_channel;
end
$f$;
comment on function vanilla.readable_channel(uuid, uuid) is 'A channel that the caller may read: its owner''s, its participants'' users'', admins'' all of the tenant.';

create or replace function public.channel_history(p_channel_id uuid, p_after bigint default 0, p_limit integer default 100, p_tenant_id uuid default null)
returns table (seq bigint, sender_id uuid, sender text, performative text, body jsonb, message_id text, in_reply_to bigint, conversation bigint, run_id uuid, created_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $f$
declare
    v_channel public.communication_channels := vanilla.readable_channel(p_channel_id, p_tenant_id);
    v_listens boolean := vanilla.claim(5) = 'user' and not exists (select from public.channel_participants p
        where p.tenant_id = v_channel.tenant_id and p.channel_id = v_channel.id and p.user_id = vanilla.claim(4)::uuid and p.party is not null);
begin
    return query select m.seq, m.sender_id, p.name, m.performative, case when v_listens and m.redact is not null then vanilla.redact_fields(m.body, m.redact) else m.body end, m.message_id, m.in_reply_to, m.conversation, m.run_id, m.created_at
        from public.channel_messages m
        join public.channel_participants p on p.tenant_id = m.tenant_id and p.id = m.sender_id
        where m.tenant_id = v_channel.tenant_id and m.channel_id = v_channel.id and m.seq > p_after order by m.seq limit least(greatest(p_limit, 1), 1000);
end
$f$;
comment on function public.channel_history(uuid, bigint, integer, uuid) is
    'Messages of a channel after a seq, in order, at most 1,000: for its owner, its participants'' users and admins. It moves no cursor. Who is no party does not see what the agreement redacts.';

create or replace function public.channel_read(p_channel_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_channel public.communication_channels := vanilla.readable_channel(p_channel_id, p_tenant_id);
begin
    return to_jsonb(v_channel) - '{tenant_id,told_at,floor_s}'::text[] || jsonb_build_object('participants', (
        select jsonb_agg(jsonb_build_object('id', p.id, 'name', p.name, 'kind', p.kind, 'user_id', p.user_id, 'party', p.party, 'reads', p.reads, 'manages', p.manages,
                'cursor_seq', p.cursor_seq, 'attempts', p.attempts, 'lease_until', p.lease_until, 'last_error', p.last_error,
                'dead_letters', (select count(*) from public.channel_dead_letters d where d.tenant_id = p.tenant_id and d.participant_id = p.id)) order by p.place)
        from public.channel_participants p where p.tenant_id = v_channel.tenant_id and p.channel_id = v_channel.id));
end
$f$;
comment on function public.channel_read(uuid, uuid) is 'A channel with its participants, how far each has read and what it could not handle.';

create or replace function public.my_channels(p_tenant_id uuid default null)
returns table (id uuid, name text, kind text, status text, last_seq bigint, agreement_id uuid, user_id uuid, participants bigint, created_at timestamptz, closed_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
begin
    return query select c.id, c.name, c.kind, c.status, c.last_seq, c.agreement_id, c.user_id,
            (select count(*) from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id), c.created_at, c.closed_at
        from public.communication_channels c where (c.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
          and (v_speaker.role <> 'user' or c.user_id = v_speaker.user_id
            or exists (select from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.user_id = v_speaker.user_id))
        order by c.id desc limit 1000;
end
$f$;
comment on function public.my_channels(uuid) is 'The newest 1,000 channels that the caller owns or takes part in; of an admin, all of the tenant.';

create or replace function public.channel_close(p_channel_id uuid, p_reason text default '', p_tenant_id uuid default null) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_channel public.communication_channels := vanilla.readable_channel(p_channel_id, p_tenant_id);
begin
    if vanilla.claim(5) = 'user' and v_channel.user_id <> vanilla.claim(4)::uuid then
        perform vanilla.refuse('VS403', 'only its owner or an admin closes a channel', '{"need": "owner"}');
    end if;
    update public.communication_channels c set status = 'closed', closed_at = vanilla.clock(), close_reason = nullif(left(p_reason, 500), ''), floor_holder = null, floor_until = null
        where c.tenant_id = v_channel.tenant_id and c.id = v_channel.id and c.status = 'open';
    if found then perform pg_notify('vanilla_channels', p_channel_id::text); end if;
    return found;
end
$f$;
comment on function public.channel_close(uuid, text, uuid) is 'Closes a channel for good: it takes no message, what it has can still be read and acknowledged. False: it was closed already.';

-- Channels: send and receive ---------------------------------------------------------------------------------------
create or replace function vanilla.speaking_participant(p_channel_id uuid, p_participant_id uuid, p_tenant_id uuid) returns public.channel_participants
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
    v_participant public.channel_participants;
begin
    if v_speaker.tenant_id is null then      -- the operator, who names none
        select c.tenant_id into v_speaker.tenant_id from public.communication_channels c where c.id = p_channel_id order by c.tenant_id limit 1;
    end if;
    select * into v_participant from public.channel_participants p where p.tenant_id = v_speaker.tenant_id and p.id = p_participant_id and p.channel_id = p_channel_id;
    if not found or not vanilla.speaks_for(v_speaker.role, v_speaker.user_id, v_participant.user_id)
            and (v_speaker.role = 'user' or v_participant.kind = 'user') then
        perform vanilla.readable_channel(p_channel_id, p_tenant_id);
        if v_participant.id is null then
            perform vanilla.refuse('VS404', 'no such participant', jsonb_build_object('participant_id', p_participant_id));
        end if;
        perform vanilla.refuse('VS403', 'only who it acts for speaks as this participant', jsonb_build_object('need', 'participant'));
    end if;
    return v_participant;
end
$f$;
comment on function vanilla.speaking_participant(uuid, uuid, uuid) is
    'A participant as which the caller may speak and read: the user it acts for, a program of the tenant, an admin unless it is a person.';

create or replace function vanilla.sent_before(p_participant public.channel_participants, p_performative text, p_body jsonb, p_message_id text, p_in_reply_to bigint) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off as $f$
declare
    v_message public.channel_messages;
begin
    select * into v_message from public.channel_messages m where m.tenant_id = p_participant.tenant_id and m.sender_id = p_participant.id and m.message_id = p_message_id;
    if v_message.redacted_at is not null then v_message.body := p_body; end if;      -- what it said nobody knows any more
    if found and (v_message.performative, v_message.body, v_message.in_reply_to) is distinct from (p_performative, p_body, p_in_reply_to) then
        perform vanilla.refuse('VS410', 'the message id was used for another message', jsonb_build_object('message_id', p_message_id, 'seq', v_message.seq));
    end if;
    return v_message.seq;
end
$f$;
comment on function vanilla.sent_before(public.channel_participants, text, jsonb, text, bigint) is 'The seq of a message that its sender has sent before; null: it has not. VS410 when it said something else.';

create or replace function vanilla.next_floor(p_channel public.communication_channels, p_after uuid) returns uuid
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select p.id from public.channel_participants p
    left join public.channel_participants h on h.tenant_id = p.tenant_id and h.id = p_after
    where p.tenant_id = p_channel.tenant_id and p.channel_id = p_channel.id
      and (p.party is not null or p_channel.agreement_id is null) and case p_channel.floor_policy when 'manager' then p.manages when 'bid' then p.bid is not null else true end
    order by p.bid desc nulls last, (p_channel.floor_policy = 'round_robin' and p.place > h.place) desc nulls last, p.place limit 1
$f$;
comment on function vanilla.next_floor(public.communication_channels, uuid) is
    'Who has the floor after somebody: the next in the circle, the manager, or the highest bid, of equal ones the earlier place.';

create or replace function vanilla.give_floor(p_channel public.communication_channels, p_to uuid) returns public.communication_channels
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    p_channel.floor_holder := p_to;
    p_channel.floor_until := case when p_to is not null then vanilla.clock() + make_interval(secs => p_channel.floor_s) end;
    if p_channel.floor_policy = 'bid' then
        update public.channel_participants p set bid = null where p.tenant_id = p_channel.tenant_id and p.id = p_to;
    end if;
    return p_channel;
end
$f$;
comment on function vanilla.give_floor(public.communication_channels, uuid) is 'A locked channel with another holder of the floor, for the caller to write; whose bid won bids no more.';

create or replace function vanilla.is_chat(p_channel public.communication_channels) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    return exists (select from public.agent_runs r where r.tenant_id = p_channel.tenant_id and r.id = p_channel.id);
end
$f$;
comment on function vanilla.is_chat(public.communication_channels) is 'Whether a channel shows the group chat of a run, whose id it has.';

create or replace function public.channel_send(p_channel_id uuid, p_participant_id uuid, p_performative text, p_body jsonb, p_message_id text, p_in_reply_to bigint default null,
    p_run_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off as $f$
declare
    v_participant public.channel_participants := vanilla.speaking_participant(p_channel_id, p_participant_id, p_tenant_id);
    v_now timestamptz;
    v_seq bigint;
    v_looked bigint;
    v_channel public.communication_channels;
    v_agreement public.protocol_agreements;
    v_version integer;
    v_terms jsonb;
    v_breach jsonb;
    v_replied public.channel_messages;
    v_root public.channel_messages;
    v_ends boolean := false;
    v_redact text[];
begin
    if p_performative is null or p_performative not in ('request', 'agree', 'refuse', 'inform', 'failure', 'query', 'cfp', 'propose', 'accept_proposal',
            'reject_proposal', 'cancel', 'not_understood', 'subscribe') then
        perform vanilla.refuse('VS400', 'there is no such performative', '{"param": "performative"}');
    elsif p_message_id is null or p_message_id = '' or octet_length(p_message_id) > 200 then
        perform vanilla.refuse('VS400', 'a message has an id of 1 to 200 bytes', '{"param": "message_id"}');
    elsif p_body is null or pg_column_size(p_body) > 65536 then
        perform vanilla.refuse('VS400', 'a body is JSON of at most 64 KiB', '{"param": "body"}');
    end if;
    -- what takes time is done before the channel is locked, for what is agreed now
    select c.agreement_id, c.last_seq into v_channel.agreement_id, v_looked from public.communication_channels c
        where c.tenant_id = v_participant.tenant_id and c.id = v_participant.channel_id;
    v_seq := vanilla.sent_before(v_participant, p_performative, p_body, p_message_id, p_in_reply_to);
    if v_seq is not null then return jsonb_build_object('seq', v_seq, 'replayed', true); end if;
    if v_channel.agreement_id is not null then
        select * into v_agreement from public.protocol_agreements a where a.tenant_id = v_participant.tenant_id and a.id = v_channel.agreement_id;
        v_terms := vanilla.binding_terms(v_agreement);
        v_version := v_agreement.version;
        v_breach := vanilla.body_breach(v_terms, p_performative, p_body);
    end if;
    select * into v_channel from public.communication_channels c where c.tenant_id = v_participant.tenant_id and c.id = v_participant.channel_id for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such channel', jsonb_build_object('channel_id', p_channel_id)); end if;      -- deleted meanwhile
    if v_channel.last_seq <> v_looked then
        v_seq := vanilla.sent_before(v_participant, p_performative, p_body, p_message_id, p_in_reply_to);
        if v_seq is not null then return jsonb_build_object('seq', v_seq, 'replayed', true); end if;
    end if;
    v_now := vanilla.clock();
    if v_channel.status = 'closed' then
        perform vanilla.refuse('VS409', 'the channel is closed', jsonb_build_object('status', 'closed'));
    elsif v_channel.floor_policy is not null and vanilla.is_chat(v_channel) then
        perform vanilla.refuse('VS409', 'the run of a group chat speaks here, and nobody else', jsonb_build_object('run_id', v_channel.id));
    elsif v_channel.last_seq >= v_channel.max_messages then
        perform vanilla.refuse('VS429', 'the channel is full', jsonb_build_object('limit', v_channel.max_messages, 'used', v_channel.last_seq, 'resets_at', null), 'Open another one.');
    elsif v_channel.floor_policy is not null and v_channel.floor_holder is distinct from p_participant_id then
        perform vanilla.refuse('VS409', 'another participant has the floor', jsonb_build_object('floor_holder', v_channel.floor_holder), 'Wait for it, or ask for it with channel_floor.');
    end if;
    if p_in_reply_to is not null then
        select * into v_replied from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = v_channel.id and m.seq = p_in_reply_to;
        if not found then perform vanilla.refuse('VS404', 'there is no message to reply to', jsonb_build_object('param', 'in_reply_to', 'seq', p_in_reply_to)); end if;
    end if;
    if v_channel.agreement_id is not null then
        select * into v_agreement from public.protocol_agreements a where a.tenant_id = v_participant.tenant_id and a.id = v_channel.agreement_id;
        if v_agreement.version <> v_version or vanilla.agreement_state(v_agreement) <> 'active' then      -- it changed meanwhile
            v_terms := vanilla.binding_terms(v_agreement);
            v_breach := vanilla.body_breach(v_terms, p_performative, p_body);
        end if;
        if p_in_reply_to is not null then
            select * into v_root from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = v_channel.id and m.seq = v_replied.conversation;
        end if;
        v_breach := coalesce(vanilla.agreement_breach(v_terms, v_channel, v_participant.party, p_performative, v_replied, v_root, v_now), v_breach);
        if v_breach is not null then
            return jsonb_build_object('seq', null, 'replayed', false,
                'refused', vanilla.record_violation(v_agreement, v_terms -> 'limits', v_channel.id, v_participant, p_performative, v_breach));
        end if;
        v_breach := vanilla.latency_breach(v_terms, v_replied, v_now);
        if v_terms #> '{data,redact}' is not null then
            v_redact := (select array_agg(r.value) from jsonb_array_elements_text(v_terms #> '{data,redact}') r where vanilla.words_at(p_body, vanilla.pointer_path(r.value)) is not null);
        end if;
        v_ends := vanilla.act_ends(v_terms -> 'acts' -> p_performative);
        if v_ends and p_in_reply_to is not null then
            update public.channel_messages m set ended_by = v_channel.last_seq + 1
                where m.tenant_id = v_participant.tenant_id and m.channel_id = v_channel.id and m.seq = v_replied.conversation;
        end if;
        v_channel.open_conversations := v_channel.open_conversations + case when v_ends = (p_in_reply_to is not null) then case when v_ends then -1 else 1 end else 0 end;
    end if;
    v_channel.last_seq := v_channel.last_seq + 1;
    insert into public.channel_messages (tenant_id, channel_id, seq, sender_id, user_id, performative, body, message_id, in_reply_to, conversation, ended_by, run_id, created_at,
            redact, execution_ids)
        values (v_participant.tenant_id, v_channel.id, v_channel.last_seq, v_participant.id, v_participant.user_id, p_performative, p_body, p_message_id, p_in_reply_to,
            coalesce(v_replied.conversation, v_channel.last_seq), case when v_ends and p_in_reply_to is null then v_channel.last_seq end, p_run_id, v_now,
            v_redact, case when v_redact is not null then array_remove(array[vanilla.top_execution(v_participant.tenant_id, v_participant.user_id, p_run_id)], null) end);
    if v_channel.floor_policy is not null then
        v_channel := vanilla.give_floor(v_channel, vanilla.next_floor(v_channel, p_participant_id));
    end if;
    -- a commit with a notification waits for every other one: who waits for messages looks again for a while after each
    if v_channel.told_at < v_now - interval '50 milliseconds' then
        v_channel.told_at := v_now;
        perform pg_notify('vanilla_channels', v_channel.id::text);
    end if;
    update public.communication_channels c set last_seq = v_channel.last_seq, open_conversations = v_channel.open_conversations, told_at = v_channel.told_at,
            floor_holder = v_channel.floor_holder, floor_until = v_channel.floor_until
        where c.tenant_id = v_participant.tenant_id and c.id = v_channel.id;
    return jsonb_build_object('seq', v_channel.last_seq, 'replayed', false) || case when v_breach is null then '{}' else
        jsonb_build_object('violated', vanilla.record_violation(v_agreement, v_terms -> 'limits', v_channel.id, v_participant, p_performative, v_breach)) end;
end
$f$;
comment on function public.channel_send(uuid, uuid, text, jsonb, text, bigint, uuid, uuid) is
    'Says something as a participant: {seq, replayed}; the same message_id and body again is the same message. What breaks the channel''s agreement is not sent: {seq: null, refused: {code: agreement_violated, rule, path, message, violations, suspended}} is the answer and no error, so that it is written down; commit it. An answer later than sla.max_latency_ms is sent, and tells the same as violated.';

create or replace function vanilla.fail_message(p_participant public.channel_participants, p_error text, p_retry_at timestamptz) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $f$
declare
    v_most smallint := (select c.max_attempts from public.communication_channels c where c.tenant_id = p_participant.tenant_id and c.id = p_participant.channel_id);
    v_first bigint;
    v_dead boolean := p_participant.attempts + 1 >= v_most;
begin
    select m.seq into v_first from public.channel_messages m where m.tenant_id = p_participant.tenant_id and m.channel_id = p_participant.channel_id
        and m.seq > p_participant.cursor_seq and m.sender_id <> p_participant.id order by m.seq limit 1;
    if v_dead then
        insert into public.channel_dead_letters (tenant_id, channel_id, participant_id, seq, user_id, attempts, error, created_at)
            values (p_participant.tenant_id, p_participant.channel_id, p_participant.id, v_first, p_participant.user_id, p_participant.attempts + 1, left(p_error, 500), vanilla.clock());
    end if;
    update public.channel_participants p set lease_token = null, lease_seq = null, lease_until = case when not v_dead then p_retry_at end, last_error = left(p_error, 500),
            attempts = case when v_dead then 0 else p.attempts + 1 end, cursor_seq = case when v_dead then v_first else p.cursor_seq end
        where p.tenant_id = p_participant.tenant_id and p.id = p_participant.id;
    return case when v_dead then 'dead' else 'retry' end;
end
$f$;
comment on function vanilla.fail_message(public.channel_participants, text, timestamptz) is
    'The first message after the cursor of a locked participant failed: another attempt (retry), or a dead letter and the cursor goes on (dead).';

create or replace function public.channel_receive(p_channel_id uuid, p_participant_id uuid, p_limit integer default 50, p_lease interval default '60 s', p_tenant_id uuid default null)
returns table (lease_token uuid, lease_until timestamptz, attempt integer, seq bigint, sender_id uuid, performative text, body jsonb, message_id text, in_reply_to bigint,
    conversation bigint, run_id uuid, created_at timestamptz)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off as $f$
declare
    v_participant public.channel_participants := vanilla.speaking_participant(p_channel_id, p_participant_id, p_tenant_id);
    v_now timestamptz := vanilla.clock();
    v_token uuid := gen_random_uuid();
    v_last bigint;
begin
    if p_limit not between 1 and 1000 or p_limit is null or p_lease not between interval '0.01 s' and interval '1 day' or p_lease is null then
        perform vanilla.refuse('VS400', 'at once are 1 to 1,000 messages, for 10 ms to a day', '{"param": "limit"}');
    end if;
    -- whoever holds the row takes what there is
    select * into v_participant from public.channel_participants p where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id for no key update skip locked;
    if not found or v_participant.lease_until > v_now then return; end if;
    if v_participant.lease_token is not null then
        perform vanilla.fail_message(v_participant, 'its lease ran out', null);
        select * into v_participant from public.channel_participants p where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id;
    end if;
    select max(m.seq) into v_last from (select m.seq from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id
        and m.seq > v_participant.cursor_seq and m.sender_id <> p_participant_id order by m.seq limit case when v_participant.attempts > 0 then 1 else p_limit end) m;
    if v_last is null then      -- only its own, as far as this looks
        select coalesce(min(m.seq) filter (where m.sender_id <> p_participant_id) - 1, max(m.seq)) into v_last from (
            select m.seq, m.sender_id from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id
            and m.seq > v_participant.cursor_seq order by m.seq limit 1000) m;
        update public.channel_participants p set cursor_seq = v_last where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id and v_last > p.cursor_seq;
        return;
    end if;
    update public.channel_participants p set lease_token = v_token, lease_until = v_now + p_lease, lease_seq = v_last
        where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id;
    return query select v_token, v_now + p_lease, v_participant.attempts + 1, m.seq, m.sender_id, m.performative,
            case when v_participant.party is null and m.redact is not null then vanilla.redact_fields(m.body, m.redact) else m.body end, m.message_id, m.in_reply_to, m.conversation, m.run_id, m.created_at
        from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id and m.seq > v_participant.cursor_seq and m.seq <= v_last
          and m.sender_id <> p_participant_id order by m.seq;
end
$f$;
comment on function public.channel_receive(uuid, uuid, integer, interval, uuid) is
    'The next messages of others for a participant, in order, under a lease that nobody else has until it ends or all are acknowledged. None: there are none, or another worker has them. Once one has failed, one at a time.';

create or replace function vanilla.leased_participant(p_channel_id uuid, p_participant_id uuid, p_token uuid, p_tenant_id uuid) returns public.channel_participants
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_participant public.channel_participants := vanilla.speaking_participant(p_channel_id, p_participant_id, p_tenant_id);
begin
    select * into v_participant from public.channel_participants p where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id for no key update;
    if v_participant.lease_token is distinct from p_token or p_token is null or v_participant.lease_until <= vanilla.clock() then
        perform vanilla.refuse('VS409', 'the lease has ended', '{"reason": "lease_lost"}', 'Undo what was done; the messages are given out again.');
    end if;
    return v_participant;
end
$f$;
comment on function vanilla.leased_participant(uuid, uuid, uuid, uuid) is 'A participant, locked, whose lease the caller has; VS409 when it has not, or no longer.';

create or replace function public.channel_ack(p_channel_id uuid, p_participant_id uuid, p_token uuid, p_seq bigint, p_tenant_id uuid default null, p_run_id uuid default null) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off as $f$
declare
    v_participant public.channel_participants := vanilla.leased_participant(p_channel_id, p_participant_id, p_token, p_tenant_id);
    v_execution uuid;
begin
    if p_seq is null or p_seq > v_participant.lease_seq then
        perform vanilla.refuse('VS400', 'this was not given under the lease', jsonb_build_object('param', 'seq', 'until', v_participant.lease_seq));
    elsif p_seq <= v_participant.cursor_seq then
        return false;
    elsif p_run_id is not null then
        v_execution := vanilla.top_execution(v_participant.tenant_id, v_participant.user_id, p_run_id);
        if v_execution is null then perform vanilla.refuse('VS404', 'no such run', jsonb_build_object('param', 'run_id', 'run_id', p_run_id)); end if;
        update public.channel_messages m set execution_ids = m.execution_ids || v_execution where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id
            and m.seq > v_participant.cursor_seq and m.seq <= p_seq and m.sender_id <> p_participant_id and m.redact is not null and m.redacted_at is null and not v_execution = any (m.execution_ids);
    end if;
    update public.channel_participants p set cursor_seq = p_seq, attempts = 0, last_error = null, lease_token = case when p_seq < p.lease_seq then p.lease_token end,
            lease_until = case when p_seq < p.lease_seq then p.lease_until end, lease_seq = case when p_seq < p.lease_seq then p.lease_seq end
        where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id;
    return true;
end
$f$;
comment on function public.channel_ack(uuid, uuid, uuid, bigint, uuid, uuid) is
    'Messages up to a seq are done with, and the lease when it is the last given. In the transaction of what they caused, that happens exactly once. False: they were already. VS409: the lease has ended, so the transaction must not commit. p_run_id is the run of an agent, or execution, that they went to: what it keeps of what the agreement redacts goes with it.';

create or replace function public.channel_nack(p_channel_id uuid, p_participant_id uuid, p_token uuid, p_seq bigint, p_error text default '', p_retry_after interval default '0 s',
    p_tenant_id uuid default null) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $f$
declare
    v_participant public.channel_participants := vanilla.leased_participant(p_channel_id, p_participant_id, p_token, p_tenant_id);
    v_first bigint;
begin
    select m.seq into v_first from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id
        and m.seq > v_participant.cursor_seq and m.sender_id <> p_participant_id order by m.seq limit 1;
    if p_seq is distinct from v_first then
        perform vanilla.refuse('VS400', 'what fails is the first message that is not acknowledged', jsonb_build_object('param', 'seq', 'first', v_first), 'Acknowledge those before it first.');
    elsif p_retry_after is null or p_retry_after not between interval '0 s' and interval '7 days' then
        perform vanilla.refuse('VS400', 'the next attempt is within 7 days', '{"param": "retry_after"}');
    end if;
    return vanilla.fail_message(v_participant, coalesce(nullif(p_error, ''), 'it failed'), case when p_retry_after > interval '0 s' then vanilla.clock() + p_retry_after end);
end
$f$;
comment on function public.channel_nack(uuid, uuid, uuid, bigint, text, interval, uuid) is
    'The first message that is not acknowledged failed, and the lease ends: retry, after p_retry_after, or dead after max_attempts, when the cursor goes on without it.';

create or replace function public.channel_floor(p_channel_id uuid, p_participant_id uuid, p_action text default 'read', p_to uuid default null, p_bid numeric default null,
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_participant public.channel_participants := vanilla.speaking_participant(p_channel_id, p_participant_id, p_tenant_id);
    v_channel public.communication_channels;
    v_gone boolean;
begin
    select * into v_channel from public.communication_channels c where c.tenant_id = v_participant.tenant_id and c.id = p_channel_id for no key update;
    v_gone := v_channel.floor_until <= vanilla.clock();
    if v_channel.floor_policy is null or v_channel.status = 'closed' then
        perform vanilla.refuse('VS409', 'the channel has no floor', jsonb_build_object('status', v_channel.status));
    elsif p_action = 'read' then
        null;
    elsif vanilla.is_chat(v_channel) then
        perform vanilla.refuse('VS409', 'the run of a group chat gives the floor', jsonb_build_object('run_id', v_channel.id));
    elsif p_action = 'pass' and (v_channel.floor_holder = p_participant_id or v_gone) then
        v_channel := vanilla.give_floor(v_channel, vanilla.next_floor(v_channel, v_channel.floor_holder));
    elsif p_action in ('give', 'take') and v_channel.floor_policy = 'manager' and v_participant.manages then
        p_to := case when p_action = 'take' then p_participant_id else p_to end;
        if not exists (select from public.channel_participants p where p.tenant_id = v_channel.tenant_id and p.channel_id = v_channel.id and p.id = p_to) then
            perform vanilla.refuse('VS404', 'no such participant', jsonb_build_object('param', 'to', 'participant_id', p_to));
        end if;
        v_channel := vanilla.give_floor(v_channel, p_to);
    elsif p_action = 'bid' and v_channel.floor_policy = 'bid' and p_bid is not null then
        update public.channel_participants p set bid = p_bid where p.tenant_id = v_channel.tenant_id and p.id = p_participant_id;
        if v_channel.floor_holder is null or v_gone then
            v_channel := vanilla.give_floor(v_channel, vanilla.next_floor(v_channel, v_channel.floor_holder));
        end if;
    elsif p_action in ('pass', 'give', 'take', 'bid') then
        perform vanilla.refuse('VS409', format('%s is not for this participant now', p_action), jsonb_build_object('floor_policy', v_channel.floor_policy, 'floor_holder', v_channel.floor_holder));
    else
        perform vanilla.refuse('VS400', 'the action is read, pass, give, take or bid', '{"param": "action"}');
    end if;
    if p_action <> 'read' then
        update public.communication_channels c set floor_holder = v_channel.floor_holder, floor_until = v_channel.floor_until where c.tenant_id = v_channel.tenant_id and c.id = v_channel.id;
    end if;
    return jsonb_build_object('floor_policy', v_channel.floor_policy, 'floor_holder', v_channel.floor_holder, 'floor_until', v_channel.floor_until);
end
$f$;
comment on function public.channel_floor(uuid, uuid, text, uuid, numeric, uuid) is
    'Who has the floor of a group: read; pass it on, as its holder or when its holder''s time is over; give or take it, as the manager; bid for it. Every message passes it on.';

-- retention and erasure --------------------------------------------------------------------------------------------
create or replace function vanilla.drop_channels(p_tenant_id uuid, p_ids uuid[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    delete from public.channel_dead_letters d where d.tenant_id = p_tenant_id and d.channel_id = any (p_ids);
    delete from public.channel_messages m where m.tenant_id = p_tenant_id and m.channel_id = any (p_ids);
    delete from public.channel_participants p where p.tenant_id = p_tenant_id and p.channel_id = any (p_ids);
    delete from public.communication_channels c where c.tenant_id = p_tenant_id and c.id = any (p_ids);
$f$;
comment on function vanilla.drop_channels(uuid, uuid[]) is 'Deletes locked channels with all that is in them.';

create or replace function vanilla.drop_agreements(p_tenant_id uuid, p_ids uuid[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    delete from public.agreement_violations v where v.tenant_id = p_tenant_id and v.agreement_id = any (p_ids);
    delete from public.agreement_acceptances c where c.tenant_id = p_tenant_id and c.agreement_id = any (p_ids);
    delete from public.agreement_versions v where v.tenant_id = p_tenant_id and v.agreement_id = any (p_ids);
    delete from public.agreement_parties p where p.tenant_id = p_tenant_id and p.agreement_id = any (p_ids);
    delete from public.protocol_agreements a where a.tenant_id = p_tenant_id and a.id = any (p_ids);
$f$;
comment on function vanilla.drop_agreements(uuid, uuid[]) is 'Deletes locked agreements that no channel is bound to, with all that is theirs.';

create or replace function vanilla.redact_messages(p_tenant_id uuid, p_days integer, p_limit integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v record;
    v_held uuid[];
    v_words text[];
    v_redacted integer := 0;
begin
    for v in select c.id as channel_id, x.conversation, x.execution_ids from public.communication_channels c
            cross join lateral (select m.conversation, array_agg(e.id) filter (where e.id is not null) as execution_ids from public.channel_messages m left join lateral unnest(m.execution_ids) e (id) on true
                where m.tenant_id = c.tenant_id and m.channel_id = c.id and m.redact is not null and m.redacted_at is null group by m.conversation) x
            cross join lateral (select max(m.created_at) as said_at, bool_or(m.ended_by is not null) as ended from public.channel_messages m
                where m.tenant_id = c.tenant_id and m.channel_id = c.id and m.seq >= x.conversation and m.conversation = x.conversation) last
            join public.protocol_agreements a on a.tenant_id = c.tenant_id and a.id = c.agreement_id
            join public.agreement_versions g on g.tenant_id = a.tenant_id and g.agreement_id = a.id and g.version = a.version
            cross join lateral (select vanilla.clock() - make_interval(days => least(p_days, (g.terms #>> '{data,retention_days}')::integer)) as before) r
            where c.tenant_id = p_tenant_id
              and ((last.ended or c.status = 'closed' or vanilla.agreement_state(a) in ('terminated', 'expired') or last.said_at < r.before)
                    and not exists (select from public.channel_participants p join public.channel_messages u on u.tenant_id = p.tenant_id and u.channel_id = p.channel_id
                        and u.seq > p.cursor_seq and u.seq >= x.conversation and u.conversation = x.conversation and u.sender_id <> p.id
                        where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.reads)
                or c.closed_at < vanilla.clock() - make_interval(days => p_days))
              and not exists (select from public.workflow_executions e where e.tenant_id = c.tenant_id and e.id = any (x.execution_ids) and e.finished_at is null)
            order by c.id, x.conversation limit p_limit loop
        -- one that is started again meanwhile is for the next time
        v_held := array(select e.id from public.workflow_executions e where e.tenant_id = p_tenant_id and e.id = any (v.execution_ids) and e.finished_at is not null
            order by e.id for no key update skip locked);
        continue when exists (select from public.workflow_executions e where e.tenant_id = p_tenant_id and e.id = any (v.execution_ids) and not e.id = any (v_held));
        v_words := array(select distinct w.word from public.channel_messages m cross join unnest(m.redact) r (pointer)
            cross join unnest(vanilla.words_at(m.body, vanilla.pointer_path(r.pointer))) w (word)
            where m.tenant_id = p_tenant_id and m.channel_id = v.channel_id and m.seq >= v.conversation and m.conversation = v.conversation and m.redacted_at is null);
        perform vanilla.redact_tree(p_tenant_id, e.id, v_words) from unnest(v_held) e (id);
        v_words := array(select w.word from unnest(v_words) w (word) order by length(w.word) desc, w.word);
        update public.channel_messages m set redacted_at = vanilla.clock(), body = vanilla.redact_words(vanilla.redact_fields(m.body, m.redact), v_words)
            where m.tenant_id = p_tenant_id and m.channel_id = v.channel_id and m.seq >= v.conversation and m.conversation = v.conversation;
        update public.channel_dead_letters d set error = vanilla.redact_text(d.error, v_words) where d.tenant_id = p_tenant_id and d.channel_id = v.channel_id;
        update public.channel_participants p set last_error = vanilla.redact_text(p.last_error, v_words)
            where p.tenant_id = p_tenant_id and p.channel_id = v.channel_id and p.last_error <> vanilla.redact_text(p.last_error, v_words);
        v_redacted := v_redacted + 1;
    end loop;
    return v_redacted;
end
$f$;
comment on function vanilla.redact_messages(uuid, integer, integer) is
    'Takes what their agreements redact out of conversations of a tenant that are over and that every reader is past, and out of what the runs keep that said or acknowledged them, once those have ended. Returns how many conversations.';

create or replace function vanilla.prune_messages(p_tenant_id uuid, p_days integer, p_limit integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v record;
    v_count integer;
    v_deleted integer := 0;
begin
    for v in select c.id, vanilla.clock() - make_interval(days => least(p_days, (g.terms #>> '{data,retention_days}')::integer)) as before,
                (select min(p.cursor_seq) from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.reads) as read_until
            from public.communication_channels c
            left join public.protocol_agreements a on a.tenant_id = c.tenant_id and a.id = c.agreement_id
            left join public.agreement_versions g on g.tenant_id = a.tenant_id and g.agreement_id = a.id and g.version = a.version
            where c.tenant_id = p_tenant_id order by c.id loop
        with old as (
            select m.seq from public.channel_messages m where m.tenant_id = p_tenant_id and m.channel_id = v.id and m.seq <= coalesce(v.read_until, 9223372036854775807)
                and m.created_at < v.before and (m.redact is null or m.redacted_at is not null) order by m.seq limit p_limit - v_deleted),
        letters as (
            delete from public.channel_dead_letters d using old where d.tenant_id = p_tenant_id and d.channel_id = v.id and d.seq = old.seq)
        delete from public.channel_messages m using old where m.tenant_id = p_tenant_id and m.channel_id = v.id and m.seq = old.seq;
        get diagnostics v_count = row_count;
        v_deleted := v_deleted + v_count;
        exit when v_deleted >= p_limit;
    end loop;
    return v_deleted;
end
$f$;
comment on function vanilla.prune_messages(uuid, integer, integer) is
    'Deletes messages of a tenant that every reader is past and that are older than so many days, or than their agreement''s data.retention_days; what is to be redacted is, before it goes.';

create or replace function vanilla.job_channels(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_days integer := vanilla.retention_days('channel_messages');
    v_before timestamptz := vanilla.clock() - make_interval(days => v_days);
    v_agreed timestamptz := vanilla.clock() - make_interval(days => vanilla.retention_days('agreements'));
    v_tenant uuid := vanilla.platform();
    v_ids uuid[];
    v_channels integer := 0;
    v_messages integer := 0;
    v_agreements integer := 0;
    v_expired integer := 0;
    v_redacted integer := 0;
begin
    loop
        v_redacted := v_redacted + vanilla.redact_messages(v_tenant, v_days, p_limit);      -- first: executions are locked before channels
        v_ids := array(select c.id from public.communication_channels c where c.tenant_id = v_tenant and c.closed_at < v_before
            and not exists (select from public.channel_messages m where m.tenant_id = c.tenant_id and m.channel_id = c.id and m.redact is not null and m.redacted_at is null)
            order by c.id limit p_limit for update skip locked);
        perform vanilla.drop_channels(v_tenant, v_ids);
        v_channels := v_channels + cardinality(v_ids);
        v_messages := v_messages + vanilla.prune_messages(v_tenant, v_days, p_limit);
        v_ids := array(select a.id from public.protocol_agreements a where a.tenant_id = v_tenant and a.updated_at < v_agreed
            and a.status in ('rejected', 'withdrawn', 'terminated', 'expired')
            and not exists (select from public.communication_channels c where c.tenant_id = a.tenant_id and c.agreement_id = a.id)
            order by a.id limit p_limit for update skip locked);
        perform vanilla.drop_agreements(v_tenant, v_ids);
        v_agreements := v_agreements + cardinality(v_ids);
        v_expired := v_expired + vanilla.agreement_expire_due(v_tenant, p_limit);      -- last: channels are locked before agreements
        exit when greatest(v_channels, v_messages, v_agreements, v_redacted) >= p_limit;
        select t.tenant_id into v_tenant from public.tenants t where t.tenant_id > v_tenant order by t.tenant_id limit 1;
        exit when not found;
    end loop;
    return jsonb_build_object('channels', v_channels, 'messages', v_messages, 'agreements', v_agreements, 'expired', v_expired,
        'redacted', v_redacted, 'more', greatest(v_channels, v_messages, v_agreements, v_redacted) >= p_limit);
end
$f$;
comment on function vanilla.job_channels(integer) is
    'Job: redacts conversations that are over; writes down which agreements have expired; deletes messages that all have read after retention.channel_messages_days, channels closed longer ago than that, and agreements that ended longer ago than retention.agreements_days and that no channel is bound to.';

create or replace function vanilla.forget_channels(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_ids uuid[];
    v_agreement public.protocol_agreements;
begin
    -- what runs of others keep of it that have ended: of those under way nothing will be known
    perform vanilla.redact_tree(m.tenant_id, e.id, w.words) from public.channel_messages m cross join unnest(m.execution_ids) e (id)
        cross join lateral (select array_agg(x.word) as words from unnest(m.redact) r (pointer) cross join unnest(vanilla.words_at(m.body, vanilla.pointer_path(r.pointer))) x (word)) w
        where m.tenant_id = p_user.tenant_id and m.user_id = p_user.id and m.redact is not null and m.redacted_at is null and w.words is not null;
    -- what nobody else took part in is theirs alone
    v_ids := array(select c.id from public.communication_channels c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id
        and not exists (select from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.user_id <> p_user.id) order by c.id for update);
    perform vanilla.drop_channels(p_user.tenant_id, v_ids);
    perform from public.communication_channels c where c.tenant_id = p_user.tenant_id and (c.user_id = p_user.id
        or exists (select from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.user_id = p_user.id)) order by c.id for no key update;
    update public.communication_channels c set name = 'erased', close_reason = null, status = 'closed', closed_at = coalesce(c.closed_at, vanilla.clock()), floor_holder = null, floor_until = null
        where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id;
    update public.channel_messages m set body = null, message_id = 'erased-' || m.seq where m.tenant_id = p_user.tenant_id and m.user_id = p_user.id;
    update public.channel_participants p set name = 'erased-' || p.place, lease_token = null, lease_seq = null, lease_until = null, last_error = null, reads = false
        where p.tenant_id = p_user.tenant_id and p.user_id = p_user.id;
    update public.agreement_violations v set path = '', message = 'erased' where v.tenant_id = p_user.tenant_id and v.user_id = p_user.id;
    update public.channel_dead_letters d set error = 'erased' where d.tenant_id = p_user.tenant_id and d.user_id = p_user.id;
    for v_agreement in select a.* from public.protocol_agreements a where a.tenant_id = p_user.tenant_id and exists (
            select from public.agreement_parties p where p.tenant_id = a.tenant_id and p.agreement_id = a.id and p.user_id = p_user.id) order by a.id for update loop
        update public.protocol_agreements a set name = 'erased', reason = null
            where a.tenant_id = v_agreement.tenant_id and a.id = v_agreement.id and a.user_id = p_user.id;
        if v_agreement.status in ('proposed', 'active', 'suspended') then
            perform vanilla.move_agreement(v_agreement, 'terminated', null, 'a party was erased');
        end if;
        if not exists (select from public.agreement_parties p where p.tenant_id = v_agreement.tenant_id and p.agreement_id = v_agreement.id and p.user_id <> p_user.id)
           and not exists (select from public.communication_channels c where c.tenant_id = v_agreement.tenant_id and c.agreement_id = v_agreement.id) then
            perform vanilla.drop_agreements(v_agreement.tenant_id, array[v_agreement.id]);
        end if;
    end loop;
end
$f$;
comment on function vanilla.forget_channels(public.users) is
    'Deletes the channels and agreements of an erased user in which nobody else took part; elsewhere what they said and were called, and ends what they had agreed on.';

grant execute on function public.agreement_propose(text, jsonb, text, jsonb, uuid, uuid), public.agreement_respond(uuid, text, bytea, text, jsonb, uuid),
    public.agreement_amend(uuid, text, jsonb, uuid), public.agreement_withdraw(uuid, text, uuid), public.agreement_suspend(uuid, text, text, uuid),
    public.agreement_resume(uuid, text, uuid), public.agreement_terminate(uuid, text, text, uuid), public.agreement_read(uuid, uuid), public.my_agreements(uuid),
    public.channel_open(text, text, jsonb, uuid, jsonb, uuid, uuid), public.channel_history(uuid, bigint, integer, uuid), public.channel_read(uuid, uuid),
    public.my_channels(uuid), public.channel_close(uuid, text, uuid), public.channel_send(uuid, uuid, text, jsonb, text, bigint, uuid, uuid),
    public.channel_receive(uuid, uuid, integer, interval, uuid), public.channel_ack(uuid, uuid, uuid, bigint, uuid, uuid),
    public.channel_nack(uuid, uuid, uuid, bigint, text, interval, uuid), public.channel_floor(uuid, uuid, text, uuid, numeric, uuid) to vanilla_app, vanilla_operator;

-- what is there from the first day ---------------------------------------------------------------------------------
set local role vanilla_system;
insert into public.schedules (tenant_id, name, description, kind, period, slots_from, next_run_at, longest_gap) values
    (vanilla.platform(), 'metrics', 'Counts how models, agents and tools do, by the minute and the hour.', 'sql', '10 s', '2026-01-01 00:00+00', '2026-01-01 00:00+00', null),
    (vanilla.platform(), 'allocations', 'Ends budgets of agents whose time is over and returns what is left.', 'sql', '30 s', '2026-01-01 00:00+00', '2026-01-01 00:00+00', null)
on conflict do nothing;
insert into public.system_configurations (tenant_id, key, value, description, updated_at) values
    (vanilla.platform(), 'retention.usage_events_days', '7', 'Days that what tools and agents did is kept, a row for each.', '2026-01-01+00'),
    (vanilla.platform(), 'retention.resource_performance_metrics_days', '90', 'Days that figures of models, agents and tools are kept.', '2026-01-01+00'),
    (vanilla.platform(), 'retention.system_metrics_days', '30', 'Days that figures of the platform by the minute are kept.', '2026-01-01+00'),
    (vanilla.platform(), 'retention.channel_messages_days', '90', 'Days that messages of channels are kept once all have read them, and channels after they were closed.', '2026-01-01+00'),
    (vanilla.platform(), 'retention.agreements_days', '365', 'Days that agreements are kept after their end.', '2026-01-01+00')
on conflict do nothing;
insert into public.schedules (tenant_id, name, description, kind, period, slots_from, next_run_at, longest_gap) values
    (vanilla.platform(), 'channels', 'Deletes messages, channels and agreements that are past retention; writes down which agreements expired.', 'sql', '1 hour',
     '2026-01-01 00:55+00', '2026-01-01 00:55+00', null)
on conflict do nothing;

set local role vanilla_owner;
revoke create on schema vanilla from vanilla_definer;
select vanilla.map_supabase_roles();      -- without 010 too
reset role;
revoke create on schema public from vanilla_definer;
commit;
