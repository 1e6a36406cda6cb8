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

-- the same that 010 writes: functions work before it has run, and no login has anything
grant select, insert, update, delete on public.resource_allocations, public.allocation_holds to vanilla_definer, vanilla_system;

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
        vanilla.allocation_json(p_allocation) || jsonb_build_object('reason', p_reason, 'resets_at', null) || case p_reason
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
    elsif p_ttl is null or p_ttl not between interval '1 microsecond' and interval '31 days' then
        perform vanilla.refuse('VS400', 'a hold lasts at most 31 days', '{"param": "ttl"}');
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
    v_common := row(p_wallet_hold.tenant_id, p_wallet_hold.user_id, null, null, null, 0, -p_drawn, null, null, null, 'settle', p_reason, 'allocation', 'resource_allocation',
        p_step.allocation_id, p_step.execution_id, p_wallet_hold.id, null, null, null, null,
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
