-- 002: token wallet functions.
--
-- Public: adjust_user_tokens, adjust_user_tokens_batch, settle_user_tokens, extend_token_hold, release_token_hold,
--         auto_allocate_tokens_for_level, reset_monthly_tokens, grant_user_tokens, void_token_grant, set_wallet_status,
--         set_level_token_policy, set_user_token_policy, get_user_token_policy, refresh_token_wallet, verify_token_ledger, reconcile_token_wallets,
--         token_balance_at, token_statement, token_statement_frame, token_ledger_anchor, verify_token_anchor
-- Private, in the order they stand on each other:
--   move_tokens      the short way of most operations: counter and chain link in one statement, the ledger row in the next
--   post_entry       the long way: writes what its caller decided on a locked and folded wallet
--   add_spendable    tokens come in: debt is repaid first
--   grants_after_burn what readers see of the grants
--   fold_wallet      takes what was burned from the grants, then plays every event that is due, in order of time
--   lock_wallet      row lock, then fold when due: every operation of the long way starts here
--   reserve_tokens, settle_tokens, release_tokens, reap_holds
--   assign_level     level, policy copy, grants of the current period
--   adjust_tokens, run_operations  what adjust_user_tokens and its batch do, for a caller who may
--   run_calls        calls of the gateway and of API keys that leave together, each with its own outcome
--   job_*, tick      what time brings: jobs of public.schedules, retention (docs/design/operations.md)
--
-- Invariants (checks/*.sql): available = remaining of active grants - burn; available - borrowed = sum of amounts;
-- reserved = sum of open holds = sum of reserved amounts; seq has no gap; hash = sha256(hash before, row).
-- Between two grant events the order of burning cannot change, so the hot path never touches a grant.
-- Lock order: allocations (009), the level's policy or the hold that an operation names, then the wallet, then grants, then api_keys. Whoever comes from the wallet to its
-- holds (reaping) skips those in use; jobs over many wallets take them with skip locked, one at a time.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
select vanilla.refuse_after_upgrade();
set local role vanilla_owner;
grant create on schema vanilla to vanilla_definer;
reset role;
grant create on schema public to vanilla_definer;
set local role vanilla_definer;
alter default privileges revoke execute on functions from public;

-- the ledger -------------------------------------------------------------------------------------------------------
-- Arrays in their binary form: the number of elements, the length of each, and which are null, are in it, so no two rows
-- share a form. One array a type: record_send would look up the type of each column at every call. Inlined.
create or replace function vanilla.ledger_hash(p_head bytea, p_row public.user_token_ledger) returns bytea language sql stable parallel safe
    return sha256(p_head
        || array_send(array[p_row.tenant_id, p_row.user_id, p_row.id, p_row.reference_id, p_row.execution_id, p_row.hold_id, p_row.grant_id, p_row.actor_id])
        || array_send(array[p_row.seq, p_row.amount, p_row.reserved_amount, p_row.available_after, p_row.reserved_after, p_row.borrowed_after])
        || timestamptz_send(p_row.created_at)
        || array_send(array[p_row.direction, p_row.reason, p_row.source, p_row.reference_type, p_row.idempotency_key, encode(p_row.request_hash, 'hex'),
            p_row.metadata::text]));
comment on function vanilla.ledger_hash(bytea, public.user_token_ledger) is 'Chain link: SHA-256 of the link before and of every column but hash.';

-- Plain SQL without SET: inlined where it is asked.
create or replace function vanilla.moves_simply(p_wallet public.user_token_wallets, p_amount bigint, p_reserved_amount bigint, p_now timestamptz) returns boolean
language sql immutable parallel safe
    return p_wallet.next_event_at > p_now and p_wallet.borrowed_tokens = 0 and p_wallet.available_tokens + p_amount >= 0
        -- nothing that tell_crossing would tell
        and (p_amount + p_reserved_amount >= 0 or p_wallet.available_tokens + p_wallet.reserved_tokens + p_amount + p_reserved_amount > 0)
        and (p_wallet.warn_below is null or p_wallet.available_tokens + p_wallet.reserved_tokens < p_wallet.warn_below
             or p_wallet.available_tokens + p_wallet.reserved_tokens + p_amount + p_reserved_amount >= p_wallet.warn_below);
comment on function vanilla.moves_simply(public.user_token_wallets, bigint, bigint, timestamptz) is
    'Whether a change of available and of reserved needs no more than the counter: no grant event due, no debt, tokens suffice, nothing to tell.';

-- Most operations need no more than the counter: the grants do not change (next_event_at), there is no debt, tokens suffice
-- and no warning threshold is crossed. Then nothing is locked first; a row that does not qualify goes the long way.
-- p_entry names the wallet (without a tenant: by its user alone), the change of available and of reserved, and the texts.
create or replace function vanilla.move_tokens(p_entry public.user_token_ledger, p_spent bigint, p_epoch integer default null,
    p_ttl interval default null, p_api_key_id uuid default null, p_call jsonb default null) returns public.user_token_ledger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_epoch integer;
begin
    update public.user_token_wallets w set
        available_tokens = w.available_tokens + p_entry.amount,
        reserved_tokens = w.reserved_tokens + p_entry.reserved_amount,
        burn = w.burn - p_entry.amount,
        spent_tokens = w.spent_tokens + p_spent,
        seq = w.seq + 1,
        last_entry_at = greatest(v_now, w.last_entry_at),       -- never before the entry before it
        head = vanilla.ledger_hash(w.head, row(w.tenant_id, w.user_id, w.seq + 1, p_entry.id, greatest(v_now, w.last_entry_at),
            p_entry.amount, p_entry.reserved_amount, w.available_tokens + p_entry.amount, w.reserved_tokens + p_entry.reserved_amount,
            w.borrowed_tokens, p_entry.direction, p_entry.reason, p_entry.source, p_entry.reference_type, p_entry.reference_id,
            p_entry.execution_id, p_entry.hold_id, p_entry.grant_id, p_entry.actor_id, p_entry.idempotency_key, p_entry.request_hash,
            p_entry.metadata, null)::public.user_token_ledger)
    where w.user_id = p_entry.user_id
      and w.tenant_id = coalesce(p_entry.tenant_id, (select case count(*) when 1 then (array_agg(u.tenant_id))[1] end
                                                     from public.users u where u.id = p_entry.user_id))
      and vanilla.moves_simply(w, p_entry.amount, p_entry.reserved_amount, v_now)
      and (p_epoch is null and w.status = 'active' or p_epoch = w.epoch)      -- calls in flight settle
    returning w.tenant_id, w.seq, w.last_entry_at, w.available_tokens, w.reserved_tokens, w.borrowed_tokens, w.head, w.epoch
    into p_entry.tenant_id, p_entry.seq, p_entry.created_at, p_entry.available_after, p_entry.reserved_after, p_entry.borrowed_after, p_entry.hash, v_epoch;
    if p_entry.seq is null then return null; end if;
    insert into public.user_token_ledger values (p_entry.*)
        on conflict (tenant_id, user_id, idempotency_key) where idempotency_key is not null do nothing;
    if not found then
        -- the key was used, perhaps this moment: the wallet goes back to the entry before. Rare, and a savepoint for it would cost every call
        update public.user_token_wallets w set available_tokens = w.available_tokens - p_entry.amount, reserved_tokens = w.reserved_tokens - p_entry.reserved_amount,
                burn = w.burn + p_entry.amount, spent_tokens = w.spent_tokens - p_spent, seq = w.seq - 1, head = coalesce(l.hash, ''),
                last_entry_at = coalesce(l.created_at, '-infinity')
            from (select p_entry.seq - 1 as seq) before
            left join public.user_token_ledger l on l.tenant_id = p_entry.tenant_id and l.user_id = p_entry.user_id and l.seq = before.seq
            where w.tenant_id = p_entry.tenant_id and w.user_id = p_entry.user_id;
        return null;
    end if;
    if p_ttl is not null then
        insert into public.user_token_holds (tenant_id, id, user_id, amount, requested, epoch, expires_at, reference_type, reference_id, execution_id, api_key_id, call, created_at)
        values (p_entry.tenant_id, p_entry.hold_id, p_entry.user_id, p_entry.reserved_amount, p_entry.reserved_amount, v_epoch,
            v_now + p_ttl, p_entry.reference_type, p_entry.reference_id, p_entry.execution_id, p_api_key_id, p_call, v_now);
    end if;
    return p_entry;
end
$f$;
comment on function vanilla.move_tokens(public.user_token_ledger, bigint, integer, interval, uuid, jsonb) is
    'Posts an entry when the wallet allows it without further thought and its key is new, else answers null and writes nothing. p_epoch is that of a hold being closed; with p_ttl it opens the hold of a reserve entry.';

-- Told when tokens are spent, not when they are held: available + reserved crosses a mark once, however many calls come and go.
create or replace function vanilla.tell_crossing(p_before public.user_token_wallets, p_entry public.user_token_ledger) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_before bigint := p_before.available_tokens + p_before.reserved_tokens;
    v_after bigint := p_entry.available_after + p_entry.reserved_after;
    v_payload jsonb;
begin
    if v_after >= v_before and p_entry.borrowed_after <= p_before.borrowed_tokens then return; end if;
    v_payload := vanilla.entry_event(p_entry) || jsonb_build_object('warn_below', p_before.warn_below, 'resets_at', p_before.next_reset_at);
    if v_before >= p_before.warn_below and v_after < p_before.warn_below
       or p_before.borrowed_tokens = 0 and p_entry.borrowed_after > 0 and p_before.enforcement_mode = 'warn' then
        perform vanilla.emit_event(p_entry.tenant_id, 'token.warning', p_entry.user_id, v_payload);
    end if;
    if v_before > 0 and v_after = 0 then
        perform vanilla.emit_event(p_entry.tenant_id, 'token.exhausted', p_entry.user_id, v_payload);
    end if;
end
$f$;
comment on function vanilla.tell_crossing(public.user_token_wallets, public.user_token_ledger) is
    'Events of an entry that spent: token.warning when what is left falls below the mark or debt begins under warn, token.exhausted when nothing is left.';

create or replace function vanilla.post_entry(p_wallet public.user_token_wallets, p_entry public.user_token_ledger) returns public.user_token_ledger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_before public.user_token_wallets;
begin
    -- under the row lock: wall time, never before the entry before it
    p_entry.created_at := greatest(vanilla.clock(), p_wallet.last_entry_at);
    p_entry.tenant_id := p_wallet.tenant_id;
    p_entry.user_id := p_wallet.user_id;
    p_entry.seq := p_wallet.seq + 1;
    p_entry.id := coalesce(p_entry.id, vanilla.uuid7());
    p_entry.reserved_amount := coalesce(p_entry.reserved_amount, 0);
    p_entry.metadata := coalesce(p_entry.metadata, '{}');
    p_entry.actor_id := coalesce(p_entry.actor_id, vanilla.claim(4)::uuid);
    p_entry.available_after := p_wallet.available_tokens;
    p_entry.reserved_after := p_wallet.reserved_tokens;
    p_entry.borrowed_after := p_wallet.borrowed_tokens;
    p_entry.hash := vanilla.ledger_hash(p_wallet.head, p_entry);
    if p_entry.direction in ('debit', 'settle', 'debt', 'adjustment') then
        select * into v_before from public.user_token_wallets w where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id;
    end if;
    update public.user_token_wallets w set
        available_tokens = p_wallet.available_tokens, reserved_tokens = p_wallet.reserved_tokens, borrowed_tokens = p_wallet.borrowed_tokens,
        spent_tokens = p_wallet.spent_tokens, burn = p_wallet.burn, seq = p_entry.seq, head = p_entry.hash, last_entry_at = p_entry.created_at
        where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id;
    insert into public.user_token_ledger values (p_entry.*);
    if v_before.user_id is not null then perform vanilla.tell_crossing(v_before, p_entry); end if;
    return p_entry;
end
$f$;
comment on function vanilla.post_entry(public.user_token_wallets, public.user_token_ledger) is
    'Writes the amounts that the caller set in its copy of the locked wallet, and their ledger row.';

-- Inlined.
create or replace function vanilla.entry_fields(p_entry public.user_token_ledger, p_replayed boolean) returns jsonb language sql stable
    return jsonb_build_object('id', p_entry.id, 'seq', p_entry.seq, 'user_id', p_entry.user_id, 'direction', p_entry.direction,
        'amount', p_entry.amount, 'reserved_amount', p_entry.reserved_amount, 'available_tokens', p_entry.available_after,
        'reserved_tokens', p_entry.reserved_after, 'borrowed_tokens', p_entry.borrowed_after, 'reason', p_entry.reason, 'source', p_entry.source,
        'reference_type', p_entry.reference_type, 'reference_id', p_entry.reference_id, 'execution_id', p_entry.execution_id,
        'hold_id', p_entry.hold_id, 'metadata', p_entry.metadata, 'created_at', p_entry.created_at, 'replayed', p_replayed);
comment on function vanilla.entry_fields(public.user_token_ledger, boolean) is 'A ledger entry as the API shows it, of a wallet without debt.';

create or replace function vanilla.entry_json(p_entry public.user_token_ledger, p_replayed boolean default false) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if p_entry.borrowed_after > 0 and p_entry.direction in ('debit', 'settle', 'debt', 'reserve') and not exists (
            select from public.user_token_wallets w where w.tenant_id = p_entry.tenant_id and w.user_id = p_entry.user_id
              and w.enforcement_mode = 'monitor') then
        return vanilla.entry_fields(p_entry, p_replayed) || '{"warning": "the wallet is in debt; the next credit repays it"}';
    end if;
    return vanilla.entry_fields(p_entry, p_replayed);
end
$f$;
comment on function vanilla.entry_json(public.user_token_ledger, boolean) is 'A ledger entry as the API shows it, with a warning where a wallet that is not only monitored is in debt.';

-- grants -----------------------------------------------------------------------------------------------------------
create or replace function vanilla.add_spendable(p_wallet public.user_token_wallets, p_amount bigint) returns public.user_token_wallets
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_repaid bigint := least(p_wallet.borrowed_tokens, p_amount);
begin
    p_wallet.borrowed_tokens := p_wallet.borrowed_tokens - v_repaid;
    p_wallet.available_tokens := p_wallet.available_tokens + p_amount - v_repaid;
    return p_wallet;
end
$f$;
comment on function vanilla.add_spendable(public.user_token_wallets, bigint) is
    'Adds tokens to a copy of the wallet: debt first, the rest becomes available.';

-- p_wallet is a copy of the locked row; the caller posts nothing in between
create or replace function vanilla.settle_burn(p_wallet public.user_token_wallets) returns public.user_token_wallets
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_wallet.burn > 0 then
        with burning as (
            select id, sum(remaining) over (order by priority, expires_at, id) - remaining as before
            from public.user_token_grants
            where tenant_id = p_wallet.tenant_id and user_id = p_wallet.user_id and state = 'active' and remaining > 0)
        update public.user_token_grants g set remaining = g.remaining - least(g.remaining, p_wallet.burn - b.before)
        from burning b
        where g.tenant_id = p_wallet.tenant_id and g.id = b.id and b.before < p_wallet.burn;
    end if;
    p_wallet.burn := 0;
    p_wallet.epoch := p_wallet.epoch + 1;
    update public.user_token_wallets w set burn = 0, epoch = p_wallet.epoch
        where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id;
    return p_wallet;
end
$f$;
comment on function vanilla.settle_burn(public.user_token_wallets) is 'Takes what was consumed since the last fold from the grants, in order of burning.';

-- The same order of burning, for readers: row-level security decides whose grants they see.
create or replace function vanilla.grants_after_burn(p_tenant_id uuid, p_user_id uuid) returns table (
    id uuid, kind text, priority smallint, amount bigint, remaining bigint, effective_at timestamptz, expires_at timestamptz, level_id uuid)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select g.id, g.kind, g.priority, g.amount, g.remaining - least(g.remaining, greatest(w.burn - g.before, 0)), g.effective_at, g.expires_at, g.level_id
    from (select *, sum(x.remaining) over (order by x.priority, x.expires_at, x.id) - x.remaining as before
          from public.user_token_grants x where x.tenant_id = p_tenant_id and x.user_id = p_user_id and x.state = 'active') g
    join public.user_token_wallets w on w.tenant_id = g.tenant_id and w.user_id = g.user_id
$f$;
comment on function vanilla.grants_after_burn(uuid, uuid) is 'A wallet''s active grants with what is left of each, the burn taken off.';
grant execute on function vanilla.grants_after_burn(uuid, uuid) to vanilla_app, vanilla_readonly, vanilla_operator;

create or replace function vanilla.effective_policy(p_tenant_id uuid, p_user_id uuid, p_level_id uuid,
    out base_allocation bigint, out monthly_allocation bigint, out period text, out period_anchor text, out rollover_percent integer,
    out rollover_cap bigint, out monthly_cap bigint, out enforcement_mode text, out warning_percent integer)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select p.base_allocation, coalesce(u.trial_allocation, u.monthly_allocation, p.monthly_allocation), p.period, p.period_anchor,
        coalesce(u.rollover_percent, p.rollover_percent), coalesce(u.rollover_cap, p.rollover_cap), coalesce(u.monthly_cap, p.monthly_cap),
        coalesce(u.enforcement_mode, p.enforcement_mode), coalesce(u.warning_percent, p.warning_percent)
    from public.level_token_policies p
    left join public.user_token_policies u on u.tenant_id = p.tenant_id and u.user_id = p_user_id
    where p.tenant_id = p_tenant_id and p.level_id = p_level_id
$f$;
comment on function vanilla.effective_policy(uuid, uuid, uuid) is 'The level''s policy with the user''s exceptions, field by field.';

create or replace function vanilla.period_at(p_period text, p_period_anchor text, p_anchor timestamptz, p_time_zone text, p_at timestamptz,
    out starts_at timestamptz, out ends_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_at timestamp := p_at at time zone p_time_zone;
    v_anchor timestamp := case when p_period_anchor = 'calendar' then date_trunc(p_period, v_at) else p_anchor at time zone p_time_zone end;
    v_step interval := case p_period when 'day' then interval '1 day' when 'week' then interval '1 week' when 'year' then interval '1 year' else interval '1 month' end;
    -- always counted from the anchor: the 31st comes back after a shorter month
    v_n integer := case p_period
        when 'day' then floor(extract(epoch from v_at - v_anchor) / 86400)
        when 'week' then floor(extract(epoch from v_at - v_anchor) / 604800)
        when 'year' then extract(year from v_at) - extract(year from v_anchor)
        else (extract(year from v_at) - extract(year from v_anchor)) * 12 + extract(month from v_at) - extract(month from v_anchor) end;
begin
    -- compared as instants: where the clock changes, a local time may not exist or come twice
    while (v_anchor + v_n * v_step) at time zone p_time_zone > p_at loop v_n := v_n - 1; end loop;
    while (v_anchor + (v_n + 1) * v_step) at time zone p_time_zone <= p_at loop v_n := v_n + 1; end loop;
    starts_at := (v_anchor + v_n * v_step) at time zone p_time_zone;
    ends_at := (v_anchor + (v_n + 1) * v_step) at time zone p_time_zone;
end
$f$;
comment on function vanilla.period_at(text, text, timestamptz, text, timestamptz) is
    'The period that holds a moment, in the tenant''s time zone: by the calendar, or counted from the day the user began.';

create or replace function vanilla.next_event(p_wallet public.user_token_wallets) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select least(coalesce(min(case g.state when 'active' then g.expires_at else g.effective_at end), 'infinity'), coalesce(p_wallet.next_reset_at, 'infinity'))
    from public.user_token_grants g
    where g.tenant_id = p_wallet.tenant_id and g.user_id = p_wallet.user_id and g.state in ('active', 'scheduled')
$f$;
comment on function vanilla.next_event(public.user_token_wallets) is
    'When the next grant starts or lapses or the period ends, or infinity.';

create or replace function vanilla.grant_priority(p_kind text) returns smallint language sql immutable
    -- what lapses soonest and was given for free is burned first; what was paid for, last
    return case p_kind when 'rollover' then 10 when 'trial' then 15 when 'plan' then 20 when 'promo' then 30 when 'base' then 40 when 'purchase' then 60 else 50 end::smallint;
comment on function vanilla.grant_priority(text) is 'Where a kind of grant stands in the order of burning; less is burned first.';

-- Gives tokens to a wallet whose burn is settled: the grant, the ledger row, and debt repaid from it.
create or replace function vanilla.grant_tokens(p_wallet public.user_token_wallets, p_kind text, p_amount bigint, p_effective_at timestamptz,
    p_expires_at timestamptz, p_level_id uuid, p_entry public.user_token_ledger, p_priority smallint default null) returns public.user_token_ledger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_repaid bigint := least(p_wallet.borrowed_tokens, p_amount);
begin
    p_entry.grant_id := vanilla.uuid7();
    insert into public.user_token_grants (tenant_id, id, user_id, kind, priority, amount, remaining, effective_at, expires_at, level_id, created_at)
    values (p_wallet.tenant_id, p_entry.grant_id, p_wallet.user_id, p_kind, coalesce(p_priority, vanilla.grant_priority(p_kind)),
        p_amount, p_amount - v_repaid, p_effective_at, p_expires_at, p_level_id, vanilla.clock());
    p_wallet := vanilla.add_spendable(p_wallet, p_amount);
    p_entry.amount := p_amount;
    p_entry := vanilla.post_entry(p_wallet, p_entry);
    update public.user_token_wallets w set next_event_at = least(w.next_event_at, p_expires_at)
        where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id;
    return p_entry;
end
$f$;
comment on function vanilla.grant_tokens(public.user_token_wallets, text, bigint, timestamptz, timestamptz, uuid, public.user_token_ledger, smallint) is
    'Gives tokens to a wallet whose burn is settled: the grant, its ledger row, debt repaid from it.';

create or replace function vanilla.grant_json(p_grant public.user_token_grants, p_replayed boolean default false) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('id', p_grant.id, 'user_id', p_grant.user_id, 'kind', p_grant.kind, 'priority', p_grant.priority, 'amount', p_grant.amount,
        'remaining', p_grant.remaining, 'effective_at', p_grant.effective_at, 'expires_at', p_grant.expires_at, 'state', p_grant.state,
        'level_id', p_grant.level_id, 'reason', p_grant.reason, 'void_reason', p_grant.void_reason, 'metadata', coalesce(p_grant.metadata, '{}'),
        'created_at', p_grant.created_at, 'replayed', p_replayed)
$f$;
comment on function vanilla.grant_json(public.user_token_grants, boolean) is 'A grant as the API shows it.';

create or replace function vanilla.read_wallet(p_tenant_id uuid, p_user_id uuid) returns public.user_token_wallets
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    select * from public.user_token_wallets where tenant_id = p_tenant_id and user_id = p_user_id
$f$;
comment on function vanilla.read_wallet(uuid, uuid) is 'The wallet as it is now; the caller holds its lock.';

-- Plan and rollover of one period, into a wallet whose burn is settled.
create or replace function vanilla.open_period(p_wallet public.user_token_wallets, p_unused bigint, p_starts_at timestamptz, p_ends_at timestamptz) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_policy record;
    v_plan bigint;
    v_rollover bigint;
    v_entry public.user_token_ledger;
begin
    select * into v_policy from vanilla.effective_policy(p_wallet.tenant_id, p_wallet.user_id, p_wallet.level_id);
    v_plan := least(v_policy.monthly_allocation, v_policy.monthly_cap);
    v_rollover := floor(p_unused::numeric * v_policy.rollover_percent / 100);
    v_rollover := least(v_rollover, v_policy.rollover_cap, v_policy.monthly_cap - v_plan);
    update public.user_token_wallets w set period_start = p_starts_at, next_reset_at = p_ends_at
        where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id;
    v_entry.direction := 'credit';
    v_entry.source := 'level_policy';
    if v_rollover > 0 then
        v_entry.reason := 'rollover';
        v_entry.metadata := jsonb_build_object('period_start', p_starts_at, 'unused', p_unused);
        perform vanilla.grant_tokens(p_wallet, 'rollover', v_rollover, p_starts_at, p_ends_at, p_wallet.level_id, v_entry);
        p_wallet := vanilla.read_wallet(p_wallet.tenant_id, p_wallet.user_id);
    end if;
    if v_plan > 0 then
        v_entry.reason := 'period allocation';
        v_entry.metadata := jsonb_build_object('period_start', p_starts_at);
        perform vanilla.grant_tokens(p_wallet, 'plan', v_plan, p_starts_at, p_ends_at, p_wallet.level_id, v_entry);
    end if;
end
$f$;
comment on function vanilla.open_period(public.user_token_wallets, bigint, timestamptz, timestamptz) is
    'Plan and rollover of one period, into a wallet whose burn is settled.';

-- Tokens leave without being spent: a grant lapses or is voided.
create or replace function vanilla.drop_grant(p_wallet public.user_token_wallets, p_grant public.user_token_grants, p_state text, p_direction text, p_reason text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_entry public.user_token_ledger;
begin
    -- a voided grant keeps what was left, for the user who comes back to the level
    update public.user_token_grants set state = p_state, remaining = case p_state when 'voided' then remaining else 0 end
        where tenant_id = p_grant.tenant_id and id = p_grant.id;
    if p_grant.remaining > 0 then
        p_wallet.available_tokens := p_wallet.available_tokens - p_grant.remaining;
        v_entry.direction := p_direction;
        v_entry.amount := -p_grant.remaining;
        v_entry.reason := p_reason;
        v_entry.source := 'level_policy';
        v_entry.grant_id := p_grant.id;
        v_entry.metadata := jsonb_build_object('kind', p_grant.kind);
        v_entry := vanilla.post_entry(p_wallet, v_entry);
        if p_state = 'expired' and p_grant.kind not in ('plan', 'rollover') then      -- of those token.reset tells
            perform vanilla.emit_event(p_grant.tenant_id, 'token.expired', p_grant.user_id,
                vanilla.entry_event(v_entry) || jsonb_build_object('grant_id', p_grant.id, 'kind', p_grant.kind));
        end if;
    end if;
end
$f$;
comment on function vanilla.drop_grant(public.user_token_wallets, public.user_token_grants, text, text, text) is
    'Takes the rest of a grant away unspent: it lapses (expired) or is voided.';

create or replace function vanilla.fold_wallet(p_wallet public.user_token_wallets) returns public.user_token_wallets
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_due timestamptz;
    v_grant public.user_token_grants;
    v_unused bigint;
    v_policy record;
    v_zone text;
    v_ends_at timestamptz;
    v_before bigint;
    v_entry public.user_token_ledger;
begin
    p_wallet := vanilla.settle_burn(p_wallet);
    loop
        v_due := vanilla.next_event(p_wallet);
        exit when v_due > v_now;
        -- in order of time, so that missed periods are caught up one by one
        v_unused := 0;
        for v_grant in select * from public.user_token_grants g
            where g.tenant_id = p_wallet.tenant_id and g.user_id = p_wallet.user_id and g.state = 'active' and g.expires_at <= v_due
            order by g.expires_at, g.id
        loop
            if v_grant.kind = 'plan' and v_due = p_wallet.next_reset_at then v_unused := v_unused + v_grant.remaining; end if;
            perform vanilla.drop_grant(p_wallet, v_grant, 'expired', 'expire', v_grant.kind || ' lapsed');
            p_wallet := vanilla.read_wallet(p_wallet.tenant_id, p_wallet.user_id);
        end loop;
        for v_grant in select * from public.user_token_grants g
            where g.tenant_id = p_wallet.tenant_id and g.user_id = p_wallet.user_id and g.state = 'scheduled' and g.effective_at <= v_due
            order by g.effective_at, g.id
        loop
            update public.user_token_grants set state = 'active', remaining = amount - least(amount, p_wallet.borrowed_tokens)
                where tenant_id = v_grant.tenant_id and id = v_grant.id;
            v_entry := null;
            v_entry.direction := 'credit';
            v_entry.amount := v_grant.amount;
            v_entry.reason := coalesce(v_grant.reason, v_grant.kind || ' begins');
            v_entry.source := 'grant';
            v_entry.grant_id := v_grant.id;
            v_entry.metadata := v_grant.metadata;
            v_entry := vanilla.post_entry(vanilla.add_spendable(p_wallet, v_grant.amount), v_entry);
            perform vanilla.emit_event(p_wallet.tenant_id, 'token.granted', p_wallet.user_id, vanilla.entry_event(v_entry));
            p_wallet := vanilla.read_wallet(p_wallet.tenant_id, p_wallet.user_id);
        end loop;
        if v_due = p_wallet.next_reset_at then
            select * into v_policy from vanilla.effective_policy(p_wallet.tenant_id, p_wallet.user_id, p_wallet.level_id);
            select time_zone into v_zone from public.tenants where tenant_id = p_wallet.tenant_id and id = p_wallet.tenant_id;
            select ends_at into v_ends_at from vanilla.period_at(v_policy.period, v_policy.period_anchor, p_wallet.anchor_at, v_zone, v_due);
            v_before := p_wallet.available_tokens - p_wallet.borrowed_tokens;
            perform vanilla.open_period(p_wallet, v_unused, v_due, v_ends_at);
            p_wallet := vanilla.read_wallet(p_wallet.tenant_id, p_wallet.user_id);
            perform vanilla.emit_event(p_wallet.tenant_id, 'token.reset', p_wallet.user_id, jsonb_build_object('period_start', v_due,
                'next_reset_at', v_ends_at, 'unused', v_unused, 'granted', p_wallet.available_tokens - p_wallet.borrowed_tokens - v_before,
                'available_tokens', p_wallet.available_tokens, 'borrowed_tokens', p_wallet.borrowed_tokens));
        end if;
    end loop;
    update public.user_token_wallets w set next_event_at = v_due
        where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id and w.next_event_at is distinct from v_due;
    return vanilla.read_wallet(p_wallet.tenant_id, p_wallet.user_id);
end
$f$;
comment on function vanilla.fold_wallet(public.user_token_wallets) is
    'Settles the burn, then plays grant starts, lapses and period ends that are due, in order of time. The wallet is locked by the caller.';

create or replace function vanilla.lock_wallet(p_tenant_id uuid, p_user_id uuid) returns public.user_token_wallets
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_wallet public.user_token_wallets;
begin
    select * into v_wallet from public.user_token_wallets where tenant_id = p_tenant_id and user_id = p_user_id for update;
    if not found then
        perform vanilla.refuse('VS404', 'no such wallet', jsonb_build_object('user_id', p_user_id));
    end if;
    if v_wallet.next_event_at <= vanilla.clock() then
        v_wallet := vanilla.fold_wallet(v_wallet);
    end if;
    return v_wallet;
end
$f$;
comment on function vanilla.lock_wallet(uuid, uuid) is 'Locks the wallet row and brings it up to date: every operation starts here.';

-- holds ------------------------------------------------------------------------------------------------------------
create or replace function vanilla.close_hold(p_wallet public.user_token_wallets, p_hold public.user_token_holds, p_returned bigint) returns public.user_token_wallets
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_repaid bigint := least(p_wallet.borrowed_tokens, p_returned);
    v_back bigint := p_returned - v_repaid;
    v_lapsed bigint;
begin
    -- amounts only; the caller posts the entry
    p_wallet.reserved_tokens := p_wallet.reserved_tokens - p_hold.amount;
    if p_hold.epoch = p_wallet.epoch then
        p_wallet.borrowed_tokens := p_wallet.borrowed_tokens - v_repaid;
        p_wallet.available_tokens := p_wallet.available_tokens + v_back;
        p_wallet.burn := p_wallet.burn - v_back;
        return p_wallet;
    end if;
    -- The grants changed since: refill what is still there, the last burned first. What finds no place has lapsed.
    p_wallet := vanilla.settle_burn(p_wallet);
    p_wallet.borrowed_tokens := p_wallet.borrowed_tokens - v_repaid;
    with room as (
        select id, amount - remaining as free,
            sum(amount - remaining) over (order by priority desc, expires_at desc, id desc) - (amount - remaining) as before
        from public.user_token_grants
        where tenant_id = p_wallet.tenant_id and user_id = p_wallet.user_id and state = 'active' and remaining < amount),
    refilled as (
        update public.user_token_grants g set remaining = g.remaining + least(r.free, v_back - r.before)
        from room r where g.tenant_id = p_wallet.tenant_id and g.id = r.id and r.before < v_back
        returning least(r.free, v_back - r.before) as n)
    select v_back - coalesce(sum(n), 0) into v_lapsed from refilled;
    p_wallet.available_tokens := p_wallet.available_tokens + v_back - v_lapsed;
    return p_wallet;
end
$f$;
comment on function vanilla.close_hold(public.user_token_wallets, public.user_token_holds, bigint) is
    'Takes a hold out of the reserve and gives p_returned of it back: to debt, then to the grants it came from.';

create or replace function vanilla.abandon_call(p_hold public.user_token_holds, p_error_code text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_hold.call is null then return; end if;
    -- the call leaves a row, and the key its budget; when it is settled after all, settle_call replaces the one and takes the other
    update public.api_keys k set used_tokens = greatest(k.used_tokens - p_hold.requested, 0)
        where k.tenant_id = p_hold.tenant_id and k.id = p_hold.api_key_id and k.budget_tokens is not null;
    insert into public.ai_executions (tenant_id, created_at, id, user_id, api_key_id, provider_id, model_id, hold_id, provider, model, status, error_code, streamed, request_id)
    values (p_hold.tenant_id, vanilla.clock(), p_hold.execution_id, p_hold.user_id, p_hold.api_key_id, (p_hold.call ->> 'provider_id')::uuid,
        (p_hold.call ->> 'model_id')::uuid, p_hold.id, p_hold.call ->> 'provider', p_hold.call ->> 'model', 'abandoned', p_error_code,
        (p_hold.call ->> 'streamed')::boolean, p_hold.call ->> 'request_id');
end
$f$;
comment on function vanilla.abandon_call(public.user_token_holds, text) is
    'The hold of a model call was given back before the call was settled: expired (hold_expired) or by hand (hold_released).';

create or replace function vanilla.reap_wallet(p_wallet public.user_token_wallets) returns public.user_token_wallets
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_hold public.user_token_holds;
    v_entry public.user_token_ledger;
    v_before bigint;
begin
    for v_hold in select * from public.user_token_holds
        where tenant_id = p_wallet.tenant_id and user_id = p_wallet.user_id and state = 'open' and expires_at <= vanilla.clock()
        order by expires_at, id for update skip locked      -- one that is being closed waits for this wallet
    loop
        v_before := p_wallet.available_tokens - p_wallet.borrowed_tokens;
        p_wallet := vanilla.close_hold(p_wallet, v_hold, v_hold.amount);
        update public.user_token_holds set state = 'expired', closed_at = vanilla.clock() where tenant_id = v_hold.tenant_id and id = v_hold.id;
        v_entry := null;
        v_entry.direction := 'release';
        v_entry.amount := p_wallet.available_tokens - p_wallet.borrowed_tokens - v_before;
        v_entry.reserved_amount := -v_hold.amount;
        v_entry.reason := 'hold expired';
        v_entry.source := 'system';
        v_entry.reference_type := v_hold.reference_type;
        v_entry.reference_id := v_hold.reference_id;
        v_entry.execution_id := v_hold.execution_id;
        v_entry.hold_id := v_hold.id;
        perform vanilla.post_entry(p_wallet, v_entry);
        perform vanilla.abandon_call(v_hold, 'hold_expired');
        p_wallet := vanilla.read_wallet(p_wallet.tenant_id, p_wallet.user_id);
    end loop;
    return p_wallet;
end
$f$;
comment on function vanilla.reap_wallet(public.user_token_wallets) is 'Returns the wallet''s expired holds.';

create or replace function vanilla.require_tokens(p_wallet public.user_token_wallets, p_amount bigint) returns public.user_token_wallets
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_wallet.status <> 'active' then
        perform vanilla.refuse('VS415', format('the wallet is %s', p_wallet.status), jsonb_build_object('status', p_wallet.status), 'An admin of the tenant can open it again.');
    end if;
    if p_wallet.available_tokens < p_amount or p_wallet.borrowed_tokens > 0 then
        p_wallet := vanilla.reap_wallet(p_wallet);      -- expired holds return at the first touch that needs them
        if p_wallet.enforcement_mode = 'hard' and (p_wallet.available_tokens < p_amount or p_wallet.borrowed_tokens > 0) then
            perform vanilla.refuse('VS402', 'not enough tokens', jsonb_build_object('needed', p_amount, 'available', p_wallet.available_tokens,
                'reserved', p_wallet.reserved_tokens, 'borrowed', p_wallet.borrowed_tokens, 'resets_at', p_wallet.next_reset_at),
                'An admin of the tenant can add tokens or change the level.');
        end if;
    end if;
    return p_wallet;
end
$f$;
comment on function vanilla.require_tokens(public.user_token_wallets, bigint) is 'Refuses a closed wallet, and in hard mode one that cannot pay or is in debt.';

create or replace function vanilla.check_amount(p_amount numeric) returns bigint language plpgsql immutable
set search_path = pg_catalog, pg_temp as $f$
begin
    if p_amount is null or p_amount = 0 or abs(p_amount) > 1000000000000000 then
        perform vanilla.refuse('VS400', 'an amount is 1 to 1,000,000,000,000,000 tokens', '{"param": "amount"}');
    end if;
    return p_amount::bigint;
end
$f$;
comment on function vanilla.check_amount(numeric) is
    'The amount in tokens when it is not zero and at most 10^15 either way, else VS400.';

create or replace function vanilla.check_key(p_idempotency_key text) returns void language plpgsql immutable
set search_path = pg_catalog, pg_temp as $f$
begin
    if length(p_idempotency_key) > 255 then      -- what an index takes is less than what a text does
        perform vanilla.refuse('VS400', 'an idempotency key has at most 255 characters', '{"param": "idempotency_key"}');
    end if;
end
$f$;
comment on function vanilla.check_key(text) is 'Refuses an idempotency key that is too long to be one.';

create or replace function vanilla.insert_hold(p_entry public.user_token_ledger, p_requested bigint, p_ttl interval, p_api_key_id uuid, p_call jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
begin
    insert into public.user_token_holds (tenant_id, id, user_id, amount, requested, epoch, expires_at, reference_type, reference_id, execution_id, api_key_id, call, created_at)
    values (p_entry.tenant_id, p_entry.hold_id, p_entry.user_id, p_entry.reserved_amount, p_requested,
        (select w.epoch from public.user_token_wallets w where w.tenant_id = p_entry.tenant_id and w.user_id = p_entry.user_id),
        v_now + p_ttl, p_entry.reference_type, p_entry.reference_id, p_entry.execution_id, p_api_key_id, p_call, v_now);
end
$f$;
comment on function vanilla.insert_hold(public.user_token_ledger, bigint, interval, uuid, jsonb) is
    'The hold of a reserve entry that was just posted; its wallet is locked by that.';

create or replace function vanilla.reserve_tokens(p_wallet public.user_token_wallets, p_entry public.user_token_ledger, p_amount bigint, p_ttl interval,
    p_api_key_id uuid default null, p_call jsonb default null) returns public.user_token_ledger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_held bigint;
begin
    p_wallet := vanilla.require_tokens(p_wallet, p_amount);
    v_held := least(p_amount, p_wallet.available_tokens);      -- less only where the policy warns or monitors
    p_wallet.available_tokens := p_wallet.available_tokens - v_held;
    p_wallet.reserved_tokens := p_wallet.reserved_tokens + v_held;
    p_wallet.burn := p_wallet.burn + v_held;
    p_entry.hold_id := vanilla.uuid7();
    p_entry.direction := 'reserve';
    p_entry.amount := -v_held;
    p_entry.reserved_amount := v_held;
    p_entry := vanilla.post_entry(p_wallet, p_entry);
    perform vanilla.insert_hold(p_entry, p_amount, p_ttl, p_api_key_id, p_call);
    return p_entry;
end
$f$;
comment on function vanilla.reserve_tokens(public.user_token_wallets, public.user_token_ledger, bigint, interval, uuid, jsonb) is
    'Opens a hold on a locked wallet; returns the ledger entry with hold_id.';

-- The last entry is returned: settle, or debt when the actual was above the hold and the wallet could not pay.
create or replace function vanilla.settle_tokens(p_tenant_id uuid, p_hold_id uuid, p_actual bigint, p_late boolean, p_reason text, p_request_id text,
    p_actor_id uuid default null, p_idempotency_key text default null, p_request_hash bytea default null) returns public.user_token_ledger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_hold public.user_token_holds;
    v_wallet public.user_token_wallets;
    v_entry public.user_token_ledger;
    v_common public.user_token_ledger;
    v_before bigint;
    v_extra bigint;
    v_paid bigint;
    v_late boolean := false;
begin
    update public.user_token_holds set state = 'settled', settled = coalesce(settled, 0) + p_actual, closed_at = vanilla.clock()
        where tenant_id = p_tenant_id and id = p_hold_id and state = 'open' returning * into v_hold;
    if not found then
        select * into v_hold from public.user_token_holds where tenant_id = p_tenant_id and id = p_hold_id for update;
        if not found then perform vanilla.refuse('VS404', 'no such hold', jsonb_build_object('hold_id', p_hold_id)); end if;
        if not (p_late and v_hold.state in ('expired', 'released') and p_actual > 0) then
            if p_late then return null; end if;
            perform vanilla.refuse('VS409', format('the hold is %s', v_hold.state), jsonb_build_object('hold_id', p_hold_id, 'state', v_hold.state));
        end if;
        -- the hold ran out or was released before the call ended and its tokens went back: all of it is charged now
        update public.user_token_holds set state = 'settled', settled = coalesce(settled, 0) + p_actual, closed_at = vanilla.clock()
            where tenant_id = p_tenant_id and id = p_hold_id;
        v_late := true;
    end if;
    if not p_late and (v_hold.call is not null or v_hold.reference_type = 'resource_allocation') then perform vanilla.refuse_call(v_hold); end if;
    v_common := row(v_hold.tenant_id, v_hold.user_id, null, null, null, v_hold.amount - p_actual, -v_hold.amount, null, null, null, 'settle', p_reason, 'hold',
        v_hold.reference_type, v_hold.reference_id, v_hold.execution_id, v_hold.id, null, p_actor_id, p_idempotency_key, p_request_hash,
        jsonb_build_object('held', v_hold.amount, 'actual', p_actual)
            || case when p_request_id is null then '{}' else jsonb_build_object('request_id', p_request_id) end, null)::public.user_token_ledger;
    if not v_late then
        v_entry := v_common;
        v_entry.id := vanilla.uuid7();
        v_entry := vanilla.move_tokens(v_entry, p_actual, v_hold.epoch);
        if v_entry.seq is not null then return v_entry; end if;
    end if;
    v_wallet := vanilla.lock_wallet(v_hold.tenant_id, v_hold.user_id);
    v_before := v_wallet.available_tokens - v_wallet.borrowed_tokens;
    if v_late then
        v_hold.amount := 0;
        v_extra := p_actual;
        v_common.metadata := v_common.metadata || '{"late": true}';
    else
        v_wallet := vanilla.close_hold(v_wallet, v_hold, greatest(v_hold.amount - p_actual, 0));
        v_extra := greatest(p_actual - v_hold.amount, 0);
    end if;
    v_paid := least(v_extra, v_wallet.available_tokens);
    v_wallet.available_tokens := v_wallet.available_tokens - v_paid;
    v_wallet.burn := v_wallet.burn + v_paid;
    v_wallet.spent_tokens := v_wallet.spent_tokens + p_actual;
    v_entry := v_common;
    if v_extra > v_paid then v_entry.idempotency_key := null; v_entry.request_hash := null; end if;      -- the last entry is the answer and has the key
    v_entry.amount := v_wallet.available_tokens - v_wallet.borrowed_tokens - v_before;
    v_entry.reserved_amount := -v_hold.amount;
    v_entry := vanilla.post_entry(v_wallet, v_entry);
    if v_extra > v_paid then
        v_wallet := vanilla.read_wallet(v_wallet.tenant_id, v_wallet.user_id);
        v_wallet.borrowed_tokens := v_wallet.borrowed_tokens + v_extra - v_paid;
        v_entry := v_common;
        v_entry.direction := 'debt';
        v_entry.amount := v_paid - v_extra;
        v_entry.reserved_amount := 0;
        v_entry := vanilla.post_entry(v_wallet, v_entry);
    end if;
    return v_entry;
end
$f$;
comment on function vanilla.settle_tokens(uuid, uuid, bigint, boolean, text, text, uuid, text, bytea) is
    'Charges the actual against a hold: the rest returns, an excess is paid from what is available and beyond that is debt. p_late, a model call''s own settlement, also charges an expired or released hold and answers null where nothing is left to do.';

create or replace function vanilla.refuse_call(p_hold public.user_token_holds) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    if p_hold.call is null then      -- 009
        if to_regclass('public.resource_allocations') is not null and exists (select from public.resource_allocations a
                where a.tenant_id = p_hold.tenant_id and a.id = p_hold.reference_id and a.hold_id = p_hold.id) then
            perform vanilla.refuse('VS409', 'the hold belongs to an allocation', jsonb_build_object('hold_id', p_hold.id, 'allocation_id', p_hold.reference_id),
                'Its steps are settled with allocation_settle. release_token_hold returns the tokens now and ends the allocation.');
        end if;
        return;
    end if;
    perform vanilla.refuse('VS409', 'the hold belongs to a model call', jsonb_build_object('hold_id', p_hold.id, 'execution_id', p_hold.execution_id),
        'The gateway settles it when the call ends. release_token_hold returns the tokens now; what the call uses is charged then.');
end
$f$;
comment on function vanilla.refuse_call(public.user_token_holds) is
    'Settled by hand, a model call or the steps of an allocation would be free or paid twice.';

-- The hold shrinks and stays; a part is never more than what is held.
create or replace function vanilla.settle_part(p_tenant_id uuid, p_hold_id uuid, p_part bigint, p_reason text,
    p_idempotency_key text default null, p_request_hash bytea default null) returns public.user_token_ledger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_hold public.user_token_holds;
    v_wallet public.user_token_wallets;
    v_entry public.user_token_ledger;
begin
    select * into v_hold from public.user_token_holds where tenant_id = p_tenant_id and id = p_hold_id for update;
    if not found then perform vanilla.refuse('VS404', 'no such hold', jsonb_build_object('hold_id', p_hold_id)); end if;
    if v_hold.state <> 'open' then
        perform vanilla.refuse('VS409', format('the hold is %s', v_hold.state), jsonb_build_object('hold_id', p_hold_id, 'state', v_hold.state));
    end if;
    if v_hold.call is not null or v_hold.reference_type = 'resource_allocation' then perform vanilla.refuse_call(v_hold); end if;
    if p_part > v_hold.amount then
        perform vanilla.refuse('VS409', format('the hold has %s tokens left, not %s', v_hold.amount, p_part), jsonb_build_object('hold_id', p_hold_id, 'amount', v_hold.amount),
            'Settle finally: then what is above the hold is charged too.');
    end if;
    v_wallet := vanilla.lock_wallet(p_tenant_id, v_hold.user_id);
    update public.user_token_holds set amount = amount - p_part, requested = requested - p_part, settled = coalesce(settled, 0) + p_part
        where tenant_id = p_tenant_id and id = p_hold_id;
    v_wallet.reserved_tokens := v_wallet.reserved_tokens - p_part;
    v_wallet.spent_tokens := v_wallet.spent_tokens + p_part;
    v_entry.direction := 'settle';
    v_entry.amount := 0;
    v_entry.reserved_amount := -p_part;
    v_entry.reason := p_reason;
    v_entry.source := 'hold';
    v_entry.reference_type := v_hold.reference_type;
    v_entry.reference_id := v_hold.reference_id;
    v_entry.execution_id := v_hold.execution_id;
    v_entry.hold_id := v_hold.id;
    v_entry.metadata := jsonb_build_object('held', v_hold.amount, 'actual', p_part, 'final', false);
    v_entry.idempotency_key := p_idempotency_key;
    v_entry.request_hash := p_request_hash;
    return vanilla.post_entry(v_wallet, v_entry);
end
$f$;
comment on function vanilla.settle_part(uuid, uuid, bigint, text, text, bytea) is 'Charges a part of an open hold; the rest stays held.';

create or replace function vanilla.release_tokens(p_wallet public.user_token_wallets, p_hold public.user_token_holds, p_entry public.user_token_ledger) returns public.user_token_ledger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_before bigint := p_wallet.available_tokens - p_wallet.borrowed_tokens;
begin
    p_wallet := vanilla.close_hold(p_wallet, p_hold, p_hold.amount);
    update public.user_token_holds set state = 'released', settled = coalesce(settled, 0), closed_at = vanilla.clock() where tenant_id = p_hold.tenant_id and id = p_hold.id;
    p_entry.direction := 'release';
    p_entry.amount := p_wallet.available_tokens - p_wallet.borrowed_tokens - v_before;
    p_entry.reserved_amount := -p_hold.amount;
    p_entry.hold_id := p_hold.id;
    p_entry.execution_id := coalesce(p_entry.execution_id, p_hold.execution_id);
    p_entry := vanilla.post_entry(p_wallet, p_entry);
    perform vanilla.abandon_call(p_hold, 'hold_released');
    return p_entry;
end
$f$;
comment on function vanilla.release_tokens(public.user_token_wallets, public.user_token_holds, public.user_token_ledger) is
    'Returns a whole hold to its wallet and writes the entry; a model call that still runs for it is charged when it ends.';

-- the seed's functions ---------------------------------------------------------------------------------------------
create or replace function vanilla.request_hash(p_amount bigint, p_direction text, p_reason text, p_source text, p_reference_type text, p_reference_id uuid,
    p_execution_id uuid, p_metadata jsonb, p_expires_at timestamptz) returns bytea language sql stable
    return sha256(array_send(array[p_amount::text, p_direction, p_reason, p_source, p_reference_type, p_reference_id::text, p_execution_id::text,
        p_metadata::text, extract(epoch from p_expires_at)::text]));       -- the same body in every session's time zone
comment on function vanilla.request_hash(bigint, text, text, text, text, uuid, uuid, jsonb, timestamptz) is
    'What an idempotency key stands for: the body of an adjustment.';

-- Inlined. What move_tokens needs of a debit or a reserve stands in it already.
create or replace function vanilla.requested_entry(p_tenant_id uuid, p_actor_id uuid, p_user_id uuid, p_amount bigint, p_direction text, p_reason text, p_source text,
    p_reference_type text, p_reference_id uuid, p_execution_id uuid, p_metadata jsonb, p_idempotency_key text, p_expires_at timestamptz)
returns public.user_token_ledger language sql volatile
    return row(p_tenant_id, p_user_id, null, vanilla.uuid7(), null, case when p_direction in ('debit', 'reserve') then -abs(p_amount) end,
        case p_direction when 'reserve' then abs(p_amount) else 0 end, null, null, null, p_direction, coalesce(p_reason, p_direction),
        coalesce(p_source, 'manual'), p_reference_type, p_reference_id, p_execution_id, case p_direction when 'reserve' then vanilla.uuid7() end, null,
        p_actor_id, p_idempotency_key, case when p_idempotency_key is not null then vanilla.request_hash(p_amount, p_direction, p_reason, p_source,
            p_reference_type, p_reference_id, p_execution_id, p_metadata, p_expires_at) end, coalesce(p_metadata, '{}'), null)::public.user_token_ledger;
comment on function vanilla.requested_entry(uuid, uuid, uuid, bigint, text, text, text, text, uuid, uuid, jsonb, text, timestamptz) is
    'The ledger entry that an adjustment asks for, before the wallet is looked at.';

-- Everything an adjustment does, for a tenant and an actor that the caller has established: the context, or an API key.
create or replace function vanilla.adjust_tokens(p_tenant_id uuid, p_actor_id uuid, p_actor_role text, p_user_id uuid, p_amount bigint, p_direction text,
    p_reason text, p_source text, p_reference_type text, p_reference_id uuid, p_execution_id uuid, p_metadata jsonb, p_idempotency_key text,
    p_expires_at timestamptz) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_amount bigint := vanilla.check_amount(p_amount);
    v_wallet public.user_token_wallets;
    v_hold public.user_token_holds;
    v_entry public.user_token_ledger := vanilla.requested_entry(p_tenant_id, p_actor_id, p_user_id, p_amount, p_direction, p_reason, p_source,
        p_reference_type, p_reference_id, p_execution_id, p_metadata, p_idempotency_key, p_expires_at);
    v_old public.user_token_ledger;
    v_paid bigint;
begin
    if p_idempotency_key is not null then perform vanilla.check_key(p_idempotency_key); end if;
    if p_direction is null or p_direction not in ('credit', 'debit', 'reserve', 'release', 'adjustment') then
        perform vanilla.refuse('VS400', format('unknown direction %s', coalesce(p_direction, 'null')), '{"param": "direction"}',
            'One of credit, debit, reserve, release, adjustment.');
    end if;
    if p_direction = 'credit' and v_amount < 0 then
        perform vanilla.refuse('VS400', 'a credit is positive', '{"param": "amount"}', 'Use debit, or adjustment with a sign.');
    end if;
    if p_direction in ('debit', 'reserve', 'release') then v_amount := abs(v_amount); end if;
    v_entry.tenant_id := (vanilla.find_user(p_tenant_id, p_user_id)).tenant_id;
    if p_direction = 'release' then
        -- a hold is locked before its wallet
        perform from public.user_token_holds h
            where h.tenant_id = v_entry.tenant_id and h.user_id = p_user_id and h.state = 'open' and p_reference_id in (h.id, h.reference_id)
            order by h.id for update;
    end if;
    v_wallet := vanilla.lock_wallet(v_entry.tenant_id, p_user_id);
    if p_idempotency_key is not null then
        select * into v_old from public.user_token_ledger l
            where l.tenant_id = v_entry.tenant_id and l.user_id = p_user_id and l.idempotency_key = p_idempotency_key;
        if found then
            if v_old.request_hash is distinct from v_entry.request_hash then
                perform vanilla.refuse('VS410', 'this idempotency key was used with another body', jsonb_build_object('entry_id', v_old.id), 'Use a new key for a new operation.');
            end if;
            return vanilla.entry_json(v_old, true);
        end if;
    end if;
    -- after the replay, which may come when the grant has lapsed
    if p_expires_at is null or p_expires_at <= vanilla.clock() then
        perform vanilla.refuse('VS400', 'the expiry is in the past', '{"param": "expires_at"}');
    end if;
    if v_wallet.status = 'closed' then v_wallet := vanilla.require_tokens(v_wallet, 0); end if;      -- takes nothing any more, and gives nothing
    if p_direction = 'credit' or (p_direction = 'adjustment' and v_amount > 0) then
        if v_wallet.available_tokens + v_wallet.reserved_tokens + v_amount > 100000000000000000 then
            -- far from 2^63: a period that ends can always grant, so one wallet never stops maintenance for all
            perform vanilla.refuse('VS400', 'a wallet holds at most 100,000,000,000,000,000 tokens', '{"param": "amount"}');
        end if;
        v_wallet := vanilla.settle_burn(v_wallet);
        v_entry := vanilla.grant_tokens(v_wallet, case when p_direction = 'adjustment' then 'adjustment'
            when p_source in ('purchase', 'promo', 'trial', 'refund') then p_source else 'adjustment' end, v_amount, vanilla.clock(), p_expires_at, null, v_entry);
    elsif p_direction = 'reserve' then
        v_entry := vanilla.reserve_tokens(v_wallet, v_entry, v_amount, interval '1 hour');
    elsif p_direction = 'release' then
        v_wallet := vanilla.reap_wallet(v_wallet);
        select * into v_hold from public.user_token_holds h
            where h.tenant_id = v_entry.tenant_id and h.user_id = p_user_id and h.state = 'open'
              and (h.id = p_reference_id or h.reference_id = p_reference_id)
            order by h.id = p_reference_id desc, h.created_at, h.id limit 1;
        if not found then
            perform vanilla.refuse('VS404', 'no open hold of this user has that id or reference', jsonb_build_object('reference_id', p_reference_id),
                'Pass hold_id of the reserve, or the reference it was made with, as p_reference_id.');
        end if;
        if v_amount not in (v_hold.amount, v_hold.requested) then
            perform vanilla.refuse('VS409', format('the hold is of %s tokens, not %s', v_hold.amount, v_amount), jsonb_build_object('hold_id', v_hold.id, 'amount', v_hold.amount),
                'A hold is released whole; settle_user_tokens charges a part and returns the rest.');
        end if;
        v_entry := vanilla.release_tokens(v_wallet, v_hold, v_entry);
    else                                                        -- debit, or an adjustment downwards
        v_amount := abs(v_amount);
        v_wallet := vanilla.require_tokens(v_wallet, v_amount);
        v_paid := least(v_amount, v_wallet.available_tokens);
        v_wallet.available_tokens := v_wallet.available_tokens - v_paid;
        v_wallet.burn := v_wallet.burn + v_paid;
        v_wallet.borrowed_tokens := v_wallet.borrowed_tokens + v_amount - v_paid;
        if p_direction = 'debit' then v_wallet.spent_tokens := v_wallet.spent_tokens + v_amount; end if;
        v_entry.amount := -v_amount;
        v_entry := vanilla.post_entry(v_wallet, v_entry);
    end if;
    if p_direction in ('credit', 'adjustment') then            -- usage is in the ledger; what is given or corrected by hand, here too
        perform vanilla.audit(v_entry.tenant_id, 'wallet.adjusted', 'user', p_user_id,
            jsonb_build_object('entry_id', v_entry.id, 'direction', p_direction, 'amount', v_entry.amount, 'reason', v_entry.reason), p_actor_id, p_actor_role);
        perform vanilla.emit_event(v_entry.tenant_id, case p_direction when 'credit' then 'token.granted' else 'token.adjusted' end, p_user_id,
            vanilla.entry_event(v_entry));
    end if;
    return vanilla.entry_json(v_entry);
end
$f$;
comment on function vanilla.adjust_tokens(uuid, uuid, text, uuid, bigint, text, text, text, text, uuid, uuid, jsonb, text, timestamptz) is
    'The long way of adjust_user_tokens, for a caller who may; without a tenant the user''s own.';

-- Here, in the functions of holds and in what works through wallets part by part, enable_seqscan is off: a session that planned
-- while users or holds were few, or does not know how small a part is, would read all of them each time (tests/query_plans).
create or replace function public.adjust_user_tokens(
    p_user_id uuid,
    p_amount bigint,
    p_direction text,
    p_reason text default null,
    p_source text default 'manual',
    p_reference_type text default null,
    p_reference_id uuid default null,
    p_execution_id uuid default null,
    p_metadata jsonb default '{}',
    p_idempotency_key text default null,
    p_expires_at timestamptz default 'infinity') returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_acting uuid[] := vanilla.acting();
    v_entry public.user_token_ledger;
begin
    if p_direction in ('debit', 'reserve') and p_amount between -1000000000000000 and 1000000000000000 and p_amount <> 0 and p_expires_at = 'infinity'
       and coalesce(length(p_idempotency_key), 0) <= 255 then
        v_entry := vanilla.move_tokens(vanilla.requested_entry(v_acting[1], v_acting[2], p_user_id, p_amount, p_direction, p_reason, p_source, p_reference_type,
                p_reference_id, p_execution_id, p_metadata, p_idempotency_key, p_expires_at),
            case p_direction when 'debit' then abs(p_amount) else 0 end, null, case p_direction when 'reserve' then interval '1 hour' end);
        if v_entry.seq is not null then return vanilla.entry_fields(v_entry, false); end if;
    end if;
    return vanilla.adjust_tokens(v_acting[1], v_acting[2], null, p_user_id, p_amount, p_direction, p_reason, p_source,
        p_reference_type, p_reference_id, p_execution_id, p_metadata, p_idempotency_key, p_expires_at);
end
$f$;
comment on function public.adjust_user_tokens(uuid, bigint, text, text, text, text, uuid, uuid, jsonb, text, timestamptz) is
    'Changes a wallet and writes the ledger: credit, debit, reserve (returns hold_id), release (by hold_id or reference), adjustment (signed). Admin, super admin, service or operator. Returns the ledger entry.';

-- One lock pass. A wallet of which every operation is a debit that takes the short way is written by one statement, together
-- with all others of that kind. The operations of the other wallets run one by one as adjust_user_tokens, each in a
-- transaction of its own inside this one. Wallets know nothing of each other, so only the order within one matters.
-- Look-ups, not joins: connections keep the plan of their first batch, when the tables are nearly empty.
create or replace function vanilla.run_operations(p_tenant_id uuid, p_actor_ids uuid[], p_operations jsonb, p_atomic boolean, p_look_up boolean) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $f$
declare
    v_count integer := jsonb_array_length(p_operations);
    v_now timestamptz;
    v_op record;
    v_done bigint[];
    v_answers jsonb;
    v_results jsonb[];
    v_state text;
    v_message text;
    v_detail text;
    v_hint text;
begin
    if p_operations @> '[{"direction": "release"}]' then        -- holds are locked before wallets
        perform from (
                select h.tenant_id, h.id from jsonb_to_recordset(p_operations) as o (user_id uuid, direction text, reference_id uuid)
                    cross join lateral (select u.tenant_id from public.users u where u.id = o.user_id and (u.tenant_id = p_tenant_id or p_tenant_id is null) offset 0) u
                    cross join lateral (select * from public.user_token_holds x where x.tenant_id = u.tenant_id and x.user_id = o.user_id and x.state = 'open'
                        and o.reference_id in (x.id, x.reference_id) offset 0) h
                where o.direction = 'release' order by h.tenant_id, h.id) o
            cross join lateral (select from public.user_token_holds x where x.tenant_id = o.tenant_id and x.id = o.id for update) h;
    end if;
    perform from (
            select distinct u.tenant_id, u.id from jsonb_to_recordset(p_operations) as o (user_id uuid)
                cross join lateral (select u.tenant_id, u.id from public.users u where u.id = o.user_id and (u.tenant_id = p_tenant_id or p_tenant_id is null) offset 0) u
            order by u.tenant_id, u.id) o
        cross join lateral (select from public.user_token_wallets x where x.tenant_id = o.tenant_id and x.user_id = o.id for update) w;
    v_now := vanilla.clock();
    with asked as materialized (
        select o.*, w.wallet, abs(o.amount) as debit, coalesce(o.direction = 'debit' and o.amount <> 0 and abs(o.amount) <= 1000000000000000
                and coalesce(o.expires_at, 'infinity') = 'infinity' and not (p_look_up and o.idempotency_key is not null and (
                    select l.seq from public.user_token_ledger l where l.tenant_id = (w.wallet).tenant_id and l.user_id = (w.wallet).user_id
                        and l.idempotency_key = o.idempotency_key) is not null), false)
            and (o.idempotency_key is null or length(o.idempotency_key) <= 255 and count(*) over (partition by o.user_id, o.idempotency_key) = 1) as simple
        from rows from (jsonb_to_recordset(p_operations) as (user_id uuid, amount bigint, direction text, reason text, source text, reference_type text,
                reference_id uuid, execution_id uuid, metadata jsonb, idempotency_key text, expires_at timestamptz)) with ordinality
            as o (user_id, amount, direction, reason, source, reference_type, reference_id, execution_id, metadata, idempotency_key, expires_at, n)
        cross join lateral (select x as wallet from public.user_token_wallets x where x.user_id = o.user_id and x.tenant_id = coalesce(p_tenant_id,
            (select case count(*) when 1 then (array_agg(u.tenant_id))[1] end from public.users u where u.id = o.user_id)) offset 0) w),
    judged as (
        select a.*, bool_and(a.simple) over whole and (a.wallet).status = 'active' and vanilla.moves_simply(a.wallet, (- sum(a.debit) over whole)::bigint, 0, v_now) as is_short,
            row_number() over so_far as k, (sum(a.debit) over so_far)::bigint as spent, lead(1) over so_far is null as is_last
        from asked a
        window whole as (partition by (a.wallet).tenant_id, (a.wallet).user_id), so_far as (whole order by a.n rows unbounded preceding)),
    entries as materialized (
        select j.n, j.wallet, j.k, j.spent, j.is_last, row((j.wallet).tenant_id, (j.wallet).user_id, (j.wallet).seq + j.k, vanilla.uuid7(), greatest(v_now, (j.wallet).last_entry_at), -j.debit, 0,
            (j.wallet).available_tokens - j.spent, (j.wallet).reserved_tokens, (j.wallet).borrowed_tokens, 'debit', coalesce(j.reason, 'debit'), coalesce(j.source, 'manual'),
            j.reference_type, j.reference_id, j.execution_id, null, null, p_actor_ids[j.n], j.idempotency_key, case when j.idempotency_key is not null then
                vanilla.request_hash(j.amount, 'debit', j.reason, coalesce(j.source, 'manual'), j.reference_type, j.reference_id, j.execution_id,
                    coalesce(j.metadata, '{}'), 'infinity') end, coalesce(j.metadata, '{}'), null)::public.user_token_ledger as entry
        from judged j where j.is_short),
    chained as materialized (
        select e.n, e.wallet, e.spent, e.is_last, e.entry, case when e.k = 1 and e.is_last then vanilla.ledger_hash((e.wallet).head, e.entry)
            else vanilla.ledger_chain((e.wallet).head, e.entry) over (partition by (e.entry).tenant_id, (e.entry).user_id order by (e.entry).seq) end as link
        from entries e),
    written as (
        insert into public.user_token_ledger
        select (c.entry).tenant_id, (c.entry).user_id, (c.entry).seq, (c.entry).id, (c.entry).created_at, (c.entry).amount, (c.entry).reserved_amount,
            (c.entry).available_after, (c.entry).reserved_after, (c.entry).borrowed_after, (c.entry).direction, (c.entry).reason, (c.entry).source,
            (c.entry).reference_type, (c.entry).reference_id, (c.entry).execution_id, null, null, (c.entry).actor_id, (c.entry).idempotency_key,
            (c.entry).request_hash, (c.entry).metadata, c.link from chained c),
    moved as (
        update public.user_token_wallets w set available_tokens = (c.entry).available_after, spent_tokens = w.spent_tokens + c.spent, burn = w.burn + c.spent,
                seq = (c.entry).seq, head = c.link, last_entry_at = (c.entry).created_at
            from chained c where c.is_last and w.tenant_id = (c.entry).tenant_id and w.user_id = (c.entry).user_id)
    select coalesce(jsonb_agg(jsonb_build_object('ok', true, 'entry', vanilla.entry_fields(c.entry, false)) order by c.n), '[]'), array_agg(c.n order by c.n)
        into v_answers, v_done from chained c;
    if cardinality(v_done) = v_count then return v_answers; end if;

    v_results := array_fill(null::jsonb, array[v_count]);
    for v_op in select d.n, e.answer from unnest(v_done) with ordinality d (n, k) join jsonb_array_elements(v_answers) with ordinality e (answer, k) using (k) loop
        v_results[v_op.n] := v_op.answer;
    end loop;
    for v_op in
        select o.* from rows from (jsonb_to_recordset(p_operations) as (user_id uuid, amount bigint, direction text, reason text, source text, reference_type text,
                reference_id uuid, execution_id uuid, metadata jsonb, idempotency_key text, expires_at timestamptz)) with ordinality
            as o (user_id, amount, direction, reason, source, reference_type, reference_id, execution_id, metadata, idempotency_key, expires_at, n)
        where v_results[o.n] is null order by o.user_id, o.n
    loop
        begin
            v_results[v_op.n] := jsonb_build_object('ok', true, 'entry', vanilla.adjust_tokens(p_tenant_id, p_actor_ids[v_op.n], null, v_op.user_id, v_op.amount, v_op.direction, v_op.reason,
                coalesce(v_op.source, 'manual'), v_op.reference_type, v_op.reference_id, v_op.execution_id, coalesce(v_op.metadata, '{}'),
                v_op.idempotency_key, coalesce(v_op.expires_at, 'infinity')));
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint;
            if v_state not like 'VS%' then raise; end if;
            if p_atomic then
                perform vanilla.refuse(v_state, v_message, case when v_detail like '{%' then v_detail::jsonb else '{}' end
                    || jsonb_build_object('operation', v_op.n - 1), v_hint);
            end if;
            v_results[v_op.n] := jsonb_build_object('ok', false, 'error', jsonb_build_object('sqlstate', v_state, 'message', v_message,
                'detail', case when v_detail like '{%' then v_detail::jsonb else '{}' end, 'hint', nullif(v_hint, '')));
        end;
    end loop;
    return to_jsonb(v_results);
end
$f$;
comment on function vanilla.run_operations(uuid, uuid[], jsonb, boolean, boolean) is
    'A batch of adjustments; p_look_up finds debits whose key was used before, which else end in a unique violation.';

-- Most keys are new, so none is looked up before one is found to be used.
create or replace function vanilla.run_batch(p_tenant_id uuid, p_actor_ids uuid[], p_operations jsonb, p_atomic boolean) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    return vanilla.run_operations(p_tenant_id, p_actor_ids, p_operations, p_atomic, false);
exception when unique_violation then
    return vanilla.run_operations(p_tenant_id, p_actor_ids, p_operations, p_atomic, true);
end
$f$;
comment on function vanilla.run_batch(uuid, uuid[], jsonb, boolean) is 'The body of adjust_user_tokens_batch, for a caller who may; an actor for each operation.';

create or replace function public.adjust_user_tokens_batch(p_operations jsonb, p_atomic boolean default false) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_acting uuid[] := vanilla.acting();
begin
    if jsonb_typeof(p_operations) is distinct from 'array' or jsonb_array_length(p_operations) not between 1 and 1000 then
        perform vanilla.refuse('VS400', 'a batch is an array of 1 to 1,000 operations', '{"param": "operations"}');
    end if;
    return vanilla.run_batch(v_acting[1], array_fill(v_acting[2], array[jsonb_array_length(p_operations)]), p_operations, p_atomic);
exception when invalid_text_representation or numeric_value_out_of_range or datetime_field_overflow or invalid_datetime_format or invalid_parameter_value then
    perform vanilla.refuse('VS400', 'an operation is not valid: ' || sqlerrm, '{"param": "operations"}', 'Each has the parameters of adjust_user_tokens, without p_.');
end
$f$;
comment on function public.adjust_user_tokens_batch(jsonb, boolean) is
    'Many adjustments in one transaction: objects with the parameters of adjust_user_tokens, without p_. Answers {ok, entry} or {ok, error} for each, in order; with p_atomic the first refusal undoes all.';

-- A look-up for each tenant: no index begins with the id, which every reservation would have to keep.
create or replace function vanilla.hold_tenant(p_hold_id uuid) returns uuid language sql stable set search_path = pg_catalog, pg_temp as $f$
    select min(h.tenant_id::text)::uuid from public.tenants t
    cross join lateral (select x.tenant_id from public.user_token_holds x where x.tenant_id = t.tenant_id and x.id = p_hold_id offset 0) h
    having count(*) = 1
$f$;
comment on function vanilla.hold_tenant(uuid) is
    'Where a hold is that an operator names by its id alone; null when it is nowhere, or in several tenants.';

-- What a key stands for on a hold. Hold and wallet are locked, so that the same key waits for its first use.
create or replace function vanilla.hold_replay(p_tenant_id uuid, p_hold_id uuid, p_idempotency_key text, p_request_hash bytea) returns public.user_token_ledger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_user uuid;
    v_entry public.user_token_ledger;
begin
    select h.user_id into v_user from public.user_token_holds h where h.tenant_id = p_tenant_id and h.id = p_hold_id for update;
    if not found then return null; end if;
    perform vanilla.lock_wallet(p_tenant_id, v_user);
    select * into v_entry from public.user_token_ledger l where l.tenant_id = p_tenant_id and l.user_id = v_user and l.idempotency_key = p_idempotency_key;
    if v_entry.seq is not null and v_entry.request_hash is distinct from p_request_hash then
        perform vanilla.refuse('VS410', 'this idempotency key was used with another body', jsonb_build_object('entry_id', v_entry.id), 'Use a new key for a new operation.');
    end if;
    return v_entry;
end
$f$;
comment on function vanilla.hold_replay(uuid, uuid, text, bytea) is
    'Locks a hold and its wallet; the entry that the wallet has under an idempotency key, null when the key is new. Refuses a key of another body.';

create or replace function public.settle_user_tokens(p_hold_id uuid, p_actual bigint, p_reason text default 'settle', p_tenant_id uuid default null,
    p_final boolean default true, p_idempotency_key text default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_acting uuid[] := vanilla.acting(p_tenant_id);
    v_tenant uuid := coalesce(v_acting[1], vanilla.hold_tenant(p_hold_id));
    v_hash bytea;
    v_entry public.user_token_ledger;
begin
    if p_final is null or p_actual is null or p_actual < 0 or p_actual > 1000000000000000 or (p_actual = 0 and not p_final) then
        perform vanilla.refuse('VS400', 'the actual amount is 0 to 1,000,000,000,000,000 tokens; a part is at least 1', '{"param": "actual"}');
    end if;
    if p_idempotency_key is not null then
        perform vanilla.check_key(p_idempotency_key);
        v_hash := vanilla.request_hash(p_actual, case when p_final then 'settle' else 'settle part' end, p_reason, null, null, p_hold_id, null, null, null);
        v_entry := vanilla.hold_replay(v_tenant, p_hold_id, p_idempotency_key, v_hash);
        if v_entry.seq is not null then return vanilla.entry_json(v_entry, true); end if;
    end if;
    v_entry := case when p_final then vanilla.settle_tokens(v_tenant, p_hold_id, p_actual, false, coalesce(p_reason, 'settle'), null, v_acting[2], p_idempotency_key, v_hash)
        else vanilla.settle_part(v_tenant, p_hold_id, p_actual, coalesce(p_reason, 'settle'), p_idempotency_key, v_hash) end;
    return vanilla.entry_json(v_entry);
end
$f$;
comment on function public.settle_user_tokens(uuid, bigint, text, uuid, boolean, text) is
    'Charges the actual against a hold and returns the rest; what is above the hold and not covered becomes debt. With p_final false it charges a part and the rest stays held. Returns the last ledger entry.';

create or replace function public.release_token_hold(p_hold_id uuid, p_reason text default 'release', p_tenant_id uuid default null,
    p_idempotency_key text default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tenant uuid := coalesce(vanilla.acting_tenant(p_tenant_id), vanilla.hold_tenant(p_hold_id));
    v_hash bytea := vanilla.request_hash(null, 'release', p_reason, null, null, p_hold_id, null, null, null);
    v_hold public.user_token_holds;
    v_wallet public.user_token_wallets;
    v_entry public.user_token_ledger;
begin
    if p_idempotency_key is not null then
        perform vanilla.check_key(p_idempotency_key);
        v_entry := vanilla.hold_replay(v_tenant, p_hold_id, p_idempotency_key, v_hash);
        if v_entry.seq is not null then return vanilla.entry_json(v_entry, true); end if;
        v_entry.idempotency_key := p_idempotency_key;
        v_entry.request_hash := v_hash;
    end if;
    select * into v_hold from public.user_token_holds where tenant_id = v_tenant and id = p_hold_id for update;
    if not found then perform vanilla.refuse('VS404', 'no such hold', jsonb_build_object('hold_id', p_hold_id)); end if;
    if v_hold.state <> 'open' then
        perform vanilla.refuse('VS409', format('the hold is %s', v_hold.state), jsonb_build_object('hold_id', p_hold_id, 'state', v_hold.state));
    end if;
    v_wallet := vanilla.lock_wallet(v_tenant, v_hold.user_id);
    if v_wallet.status = 'closed' then v_wallet := vanilla.require_tokens(v_wallet, 0); end if;
    v_entry.reason := coalesce(p_reason, 'release');
    v_entry.source := 'manual';
    v_entry.reference_type := v_hold.reference_type;
    v_entry.reference_id := v_hold.reference_id;
    return vanilla.entry_json(vanilla.release_tokens(v_wallet, v_hold, v_entry));
end
$f$;
comment on function public.release_token_hold(uuid, text, uuid, text) is
    'Returns what an open hold still holds to its wallet. Admin, service or operator. Returns the ledger entry.';

create or replace function public.extend_token_hold(p_hold_id uuid, p_expires_at timestamptz, p_tenant_id uuid default null) returns timestamptz
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tenant uuid := coalesce(vanilla.acting_tenant(p_tenant_id), vanilla.hold_tenant(p_hold_id));
    v_now timestamptz := vanilla.clock();
    v_hold public.user_token_holds;
begin
    if p_expires_at is null or p_expires_at <= v_now or p_expires_at > v_now + interval '30 days' then
        perform vanilla.refuse('VS400', 'a hold ends in the future, within 30 days', '{"param": "expires_at"}');
    end if;
    select * into v_hold from public.user_token_holds where tenant_id = v_tenant and id = p_hold_id for update;
    if not found then perform vanilla.refuse('VS404', 'no such hold', jsonb_build_object('hold_id', p_hold_id)); end if;
    if v_hold.state <> 'open' or v_hold.expires_at <= v_now then      -- what has run out may be gone any moment
        perform vanilla.refuse('VS409', format('the hold is %s', case v_hold.state when 'open' then 'expired' else v_hold.state end),
            jsonb_build_object('hold_id', p_hold_id, 'state', v_hold.state));
    end if;
    update public.user_token_holds set expires_at = p_expires_at where tenant_id = v_tenant and id = p_hold_id;
    return p_expires_at;
end
$f$;
comment on function public.extend_token_hold(uuid, timestamptz, uuid) is
    'Moves the end of an open hold, at most 30 days ahead. Admin, service or operator. Returns the new end.';

create or replace function vanilla.assign_level(p_tenant_id uuid, p_user_id uuid, p_level_id uuid, p_plan jsonb default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_wallet public.user_token_wallets;
    v_policy record;
    v_period record;
    v_granted_from timestamptz;
    v_granted_until timestamptz;
    v_zone text;
    v_grant public.user_token_grants;
    v_entry public.user_token_ledger;
    v_granted bigint := 0;
    v_restored bigint := 0;
    v_base bigint := 0;
    v_seq bigint;
begin
    -- policy before wallet, as set_level_token_policy locks: it finds every wallet that joined before it, and the others find it
    perform from public.level_token_policies p where p.tenant_id = p_tenant_id and p.level_id = p_level_id for share;
    v_wallet := vanilla.lock_wallet(p_tenant_id, p_user_id);
    if v_wallet.status = 'closed' then v_wallet := vanilla.require_tokens(v_wallet, 0); end if;
    v_seq := v_wallet.seq;
    if p_plan is null and v_wallet.level_id <> p_level_id then      -- whoever is moved by hand is in no trial any more
        update public.user_token_policies u set trial_allocation = null
            where u.tenant_id = p_tenant_id and u.user_id = p_user_id and u.trial_allocation is not null;
    end if;
    select * into v_policy from vanilla.effective_policy(p_tenant_id, p_user_id, p_level_id);
    if v_policy.period is null then
        perform vanilla.refuse('VS404', 'the level has no token policy', jsonb_build_object('level_id', p_level_id), 'set_level_token_policy gives it one.');
    end if;
    select time_zone into v_zone from public.tenants where tenant_id = p_tenant_id and id = p_tenant_id;
    select * into v_period from vanilla.period_at(v_policy.period, v_policy.period_anchor, v_wallet.anchor_at, v_zone, v_now);
    v_wallet := vanilla.settle_burn(v_wallet);
    if v_wallet.level_id is distinct from p_level_id and p_plan is null then
        for v_grant in select * from public.user_token_grants g
            where g.tenant_id = p_tenant_id and g.user_id = p_user_id and g.state = 'active' and g.kind in ('plan', 'rollover') order by g.id
        loop
            perform vanilla.drop_grant(v_wallet, v_grant, 'voided', 'void', 'left the level');
            v_wallet := vanilla.read_wallet(p_tenant_id, p_user_id);
        end loop;
    end if;
    if to_regprocedure('vanilla.record_level_change(uuid,uuid,uuid,uuid)') is not null then      -- 007
        perform vanilla.record_level_change(p_tenant_id, p_user_id, v_wallet.level_id, p_level_id);
    end if;
    update public.user_token_wallets w set level_id = p_level_id, enforcement_mode = v_policy.enforcement_mode,
            warn_below = v_policy.monthly_allocation * v_policy.warning_percent / 100
        where w.tenant_id = p_tenant_id and w.user_id = p_user_id;
    v_wallet := vanilla.read_wallet(p_tenant_id, p_user_id);
    v_entry.direction := 'credit';
    v_entry.source := 'level_policy';
    if v_policy.base_allocation > 0 and not exists (select from public.user_token_grants g
            where g.tenant_id = p_tenant_id and g.user_id = p_user_id and g.kind = 'base' and g.level_id = p_level_id) then
        v_entry.reason := 'joined the level';
        v_base := (vanilla.grant_tokens(v_wallet, 'base', v_policy.base_allocation, v_now, 'infinity', p_level_id, v_entry)).amount;
        v_wallet := vanilla.read_wallet(p_tenant_id, p_user_id);
    end if;
    -- a period once granted runs to its end, though the policy or the time zone would now draw its borders elsewhere
    select g.effective_at, g.expires_at into v_granted_from, v_granted_until from public.user_token_grants g
        where g.tenant_id = p_tenant_id and g.user_id = p_user_id and g.kind in ('plan', 'rollover') and g.level_id = p_level_id and g.expires_at > v_now
        order by g.expires_at desc limit 1;
    if p_plan is not null then
        perform vanilla.carry_plan(v_wallet, p_level_id, p_plan);      -- 007: of change_user_level, which computed it
    elsif not found then
        perform vanilla.open_period(v_wallet, 0, v_period.starts_at, v_period.ends_at);
    else
        -- left and came back within a period: what was left then, and no more
        for v_grant in select * from public.user_token_grants g
            where g.tenant_id = p_tenant_id and g.user_id = p_user_id and g.state = 'voided' and g.kind in ('plan', 'rollover')
              and g.level_id = p_level_id and g.expires_at > v_now and g.void_reason is null order by g.id
        loop
            update public.user_token_grants set state = 'active', remaining = greatest(v_grant.remaining - v_wallet.borrowed_tokens, 0)
                where tenant_id = v_grant.tenant_id and id = v_grant.id;
            if v_grant.remaining > 0 then
                v_entry.grant_id := v_grant.id;
                v_entry.reason := 'back on the level';
                v_entry.amount := v_grant.remaining;
                perform vanilla.post_entry(vanilla.add_spendable(v_wallet, v_grant.remaining), v_entry);
                v_restored := v_restored + v_grant.remaining;
            end if;
            v_wallet := vanilla.read_wallet(p_tenant_id, p_user_id);
        end loop;
        update public.user_token_wallets w set period_start = v_granted_from, next_reset_at = v_granted_until
            where w.tenant_id = p_tenant_id and w.user_id = p_user_id;
    end if;
    v_wallet := vanilla.read_wallet(p_tenant_id, p_user_id);
    update public.user_token_wallets w set next_event_at = vanilla.next_event(v_wallet) where w.tenant_id = p_tenant_id and w.user_id = p_user_id;
    select coalesce(sum(l.amount), 0) - v_base - v_restored into v_granted from public.user_token_ledger l
        where l.tenant_id = p_tenant_id and l.user_id = p_user_id and l.seq > v_seq and l.direction = 'credit';
    return jsonb_build_object('user_id', p_user_id, 'level_id', p_level_id, 'base_granted', v_base, 'period_granted', v_granted, 'restored', v_restored,
        'available_tokens', v_wallet.available_tokens, 'borrowed_tokens', v_wallet.borrowed_tokens,
        'period_start', v_wallet.period_start, 'next_reset_at', v_wallet.next_reset_at);
end
$f$;
comment on function vanilla.assign_level(uuid, uuid, uuid, jsonb) is
    'Puts a user on a level: plan grants of another level are voided, base once per level, plan once per period. With a plan (007) nothing is voided: what it says is granted or taken for the rest of the period.';

create or replace function public.auto_allocate_tokens_for_level(p_user_id uuid, p_level_id uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.acting_tenant(), p_user_id);
    v_result jsonb;
begin
    if not exists (select from public.levels where tenant_id = v_user.tenant_id and id = p_level_id) then
        perform vanilla.refuse('VS404', 'no such level', jsonb_build_object('level_id', p_level_id));
    end if;
    v_result := vanilla.assign_level(v_user.tenant_id, v_user.id, p_level_id);
    perform vanilla.audit(v_user.tenant_id, 'wallet.level', 'user', v_user.id, v_result - 'user_id');
    perform vanilla.emit_event(v_user.tenant_id, 'token.level_changed', v_user.id, v_result - 'user_id');
    return v_result;
end
$f$;
comment on function public.auto_allocate_tokens_for_level(uuid, uuid) is
    'Sets the level and grants its tokens, once per (user, level, period). Admin or operator. Returns what was granted.';

create or replace function vanilla.fold_due_wallets(p_limit integer, p_periods boolean default null) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();      -- no index is searched for a volatile function
    v_wallet public.user_token_wallets;
    v_folded integer := 0;
begin
    for v_wallet in
        select w.* from public.tenants t
        join public.user_token_wallets w on w.tenant_id = t.id and w.next_event_at <= v_now and w.next_event_at < 'infinity'
        where t.tenant_id = t.id and (p_periods is null or coalesce(w.next_reset_at <= v_now, false) = p_periods)
        -- in no order: who skips what is locked waits for nobody, and sorting would read all that is due for each part
        limit p_limit for update of w skip locked
    loop
        perform vanilla.fold_wallet(v_wallet);
        v_folded := v_folded + 1;
    end loop;
    return v_folded;
end
$f$;
comment on function vanilla.fold_due_wallets(integer, boolean) is
    'Folds up to p_limit wallets (null: all) that nobody is using and that have an event due, with p_periods only those whose period has ended (true) or has not (false); returns how many.';

-- The hash of the last of several entries over one head; ordered, it is the whole chain of them.
create or replace function vanilla.chain_step(p_state bytea, p_head bytea, p_entry public.user_token_ledger) returns bytea language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp as $f$ begin return vanilla.ledger_hash(coalesce(p_state, p_head), p_entry); end $f$;
comment on function vanilla.chain_step(bytea, bytea, public.user_token_ledger) is 'One link of vanilla.ledger_chain.';
create or replace aggregate vanilla.ledger_chain(bytea, public.user_token_ledger) (sfunc = vanilla.chain_step, stype = bytea);
revoke execute on function vanilla.ledger_chain(bytea, public.user_token_ledger) from public;
comment on aggregate vanilla.ledger_chain(bytea, public.user_token_ledger) is 'The hash that a head has after entries, in their order.';

create or replace function vanilla.border_key(p_policy public.level_token_policies, p_wallet public.user_token_wallets, p_time_zone text) returns text
language sql stable
    return concat_ws(' ', p_policy.period, p_policy.period_anchor, extract(epoch from p_wallet.next_reset_at), p_time_zone,
        case p_policy.period_anchor when 'anniversary' then extract(epoch from p_wallet.anchor_at) end);
comment on function vanilla.border_key(public.level_token_policies, public.user_token_wallets, text) is
    'Names what the next period depends on.';

create or replace function vanilla.left_of_grant(p_remaining bigint, p_burn bigint, p_until numeric) returns bigint language sql immutable
    return p_remaining - least(p_remaining, greatest(p_burn - (p_until - p_remaining), 0))::bigint;
comment on function vanilla.left_of_grant(bigint, bigint, numeric) is
    'What a grant keeps when p_burn is taken from all in order; p_until is the sum up to this one.';

-- What fold_wallet does when the end of one period is all that is due, for many wallets in one statement. The others (debt, a
-- second missed period, grants that start or lapse since) are left to fold_wallet. Every step carries its rows on to the next:
-- joining them again would have the planner guess how many there are.
create or replace function vanilla.close_periods(p_limit integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_actor uuid := vanilla.claim(4)::uuid;
    v_due public.user_token_wallets[];
    v_ends jsonb;      -- the period after a border, found once for all wallets that share it
    v_closed integer;
begin
    select array_agg(d) into v_due from (
        select w.* from public.tenants t
        join public.user_token_wallets w on w.tenant_id = t.id and w.next_event_at <= v_now and w.next_event_at < 'infinity'
        where t.tenant_id = t.id and w.next_event_at = w.next_reset_at and w.borrowed_tokens = 0
          and not exists (select from public.user_token_grants g where g.tenant_id = w.tenant_id and g.user_id = w.user_id
              and (g.state = 'scheduled' and g.effective_at <= v_now
                   or g.state = 'active' and g.expires_at <= v_now and (g.expires_at > w.next_reset_at or g.kind not in ('plan', 'rollover'))))
        limit p_limit for update of w skip locked) d;      -- unsorted: a part reads no more than it closes
    select jsonb_object_agg(b.key, (vanilla.period_at(b.period, b.period_anchor, b.anchor_at, b.time_zone, b.border)).ends_at) into v_ends from (
        select distinct vanilla.border_key(p, d, t.time_zone) as key, p.period, p.period_anchor,
            case p.period_anchor when 'anniversary' then d.anchor_at end as anchor_at, t.time_zone, d.next_reset_at as border
        from unnest(v_due) d join public.tenants t on t.tenant_id = d.tenant_id and t.id = d.tenant_id
        join public.level_token_policies p on p.tenant_id = d.tenant_id and p.level_id = d.level_id) b;
    with closing as materialized (
        select d.*, e.ends_at, a.plan, g.unused_plan, g.grants,
            least(e.ends_at, g.next_lapse, (select min(x.effective_at) from public.user_token_grants x
                where x.tenant_id = d.tenant_id and x.user_id = d.user_id and x.state = 'scheduled')) as event_at,
            least(floor(g.unused_plan * a.rollover_percent / 100), a.rollover_cap, a.monthly_cap - a.plan)::bigint as rollover
        from unnest(v_due) d
        join public.tenants t on t.tenant_id = d.tenant_id and t.id = d.tenant_id
        join public.level_token_policies p on p.tenant_id = d.tenant_id and p.level_id = d.level_id
        left join public.user_token_policies u on u.tenant_id = d.tenant_id and u.user_id = d.user_id
        cross join lateral (select (v_ends ->> vanilla.border_key(p, d, t.time_zone))::timestamptz as ends_at) e
        cross join lateral (select coalesce(u.rollover_percent, p.rollover_percent) as rollover_percent, coalesce(u.rollover_cap, p.rollover_cap) as rollover_cap,
            coalesce(u.monthly_cap, p.monthly_cap) as monthly_cap,
            least(coalesce(u.trial_allocation, u.monthly_allocation, p.monthly_allocation), coalesce(u.monthly_cap, p.monthly_cap)) as plan) a
        cross join lateral (
            select array_agg(x.g) as grants, coalesce(sum(x.unused) filter (where x.lapses and (x.g).kind = 'plan'), 0) as unused_plan,
                min((x.g).expires_at) filter (where not x.lapses) as next_lapse
            from (select g, g.expires_at <= d.next_reset_at as lapses, vanilla.left_of_grant(g.remaining, d.burn, sum(g.remaining) over burning) as unused
                  from public.user_token_grants g where g.tenant_id = d.tenant_id and g.user_id = d.user_id and g.state = 'active'
                  window burning as (order by g.priority, g.expires_at, g.id)) x) g
        where e.ends_at > v_now),
    grants as materialized (
        select c.tenant_id, c.user_id, g.id, g.kind, g.remaining, g.expires_at, g.expires_at <= c.next_reset_at as lapses,
            vanilla.left_of_grant(g.remaining, c.burn, sum(g.remaining) over (partition by c.tenant_id, c.user_id order by g.priority, g.expires_at, g.id)) as unused,
            c.head, c.seq, c.available_tokens, c.reserved_tokens, c.last_entry_at
        from closing c cross join lateral unnest(c.grants) g),
    given as materialized (
        select c.tenant_id, c.user_id, vanilla.uuid7() as id, x.kind, x.amount, x.n, c.unused_plan, c.next_reset_at, c.ends_at, c.level_id,
            c.head, c.seq, c.available_tokens, c.reserved_tokens, c.last_entry_at
        from closing c cross join lateral (values ('rollover', c.rollover, 1), ('plan', c.plan, 2)) x (kind, amount, n) where x.amount > 0),
    changes as (
        select g.tenant_id, g.user_id, 0 as part, g.expires_at, g.id as grant_id, -g.unused as amount, 'expire' as direction, g.kind || ' lapsed' as reason,
            jsonb_build_object('kind', g.kind) as metadata, g.head, g.seq, g.available_tokens, g.reserved_tokens, g.last_entry_at
        from grants g where g.lapses and g.unused > 0
        union all
        select n.tenant_id, n.user_id, n.n, null, n.id, n.amount, 'credit', case n.kind when 'plan' then 'period allocation' else n.kind end,
            case n.kind when 'plan' then jsonb_build_object('period_start', n.next_reset_at)
                else jsonb_build_object('period_start', n.next_reset_at, 'unused', n.unused_plan) end,
            n.head, n.seq, n.available_tokens, n.reserved_tokens, n.last_entry_at
        from given n),
    entries as (
        select c.head, row(c.tenant_id, c.user_id, c.seq + row_number() over wallet, vanilla.uuid7(), greatest(v_now, c.last_entry_at), c.amount, 0,
            c.available_tokens + sum(c.amount) over wallet, c.reserved_tokens, 0, c.direction, c.reason, 'level_policy', null, null, null, null, c.grant_id,
            v_actor, null, null, c.metadata, null)::public.user_token_ledger as entry
        from changes c window wallet as (partition by c.tenant_id, c.user_id order by c.part, c.expires_at, c.grant_id) offset 0),
    chained as materialized (
        select e.entry, vanilla.ledger_chain(e.head, e.entry) over (partition by (e.entry).tenant_id, (e.entry).user_id order by (e.entry).seq) as link,
            lead(1) over (partition by (e.entry).tenant_id, (e.entry).user_id order by (e.entry).seq) is null as is_last
        from entries e),
    written as (
        insert into public.user_token_ledger
        select (c.entry).tenant_id, (c.entry).user_id, (c.entry).seq, (c.entry).id, (c.entry).created_at, (c.entry).amount, (c.entry).reserved_amount,
            (c.entry).available_after, (c.entry).reserved_after, (c.entry).borrowed_after, (c.entry).direction, (c.entry).reason, (c.entry).source,
            null, null, null, null, (c.entry).grant_id, (c.entry).actor_id, null, null, (c.entry).metadata, c.link from chained c),
    spent as (
        update public.user_token_grants g set remaining = case when x.lapses then 0 else x.unused end, state = case when x.lapses then 'expired' else 'active' end
        from grants x where g.tenant_id = x.tenant_id and g.id = x.id and (x.lapses or x.unused <> x.remaining)),
    opened as (
        insert into public.user_token_grants (tenant_id, id, user_id, kind, priority, amount, remaining, effective_at, expires_at, level_id, created_at)
        select n.tenant_id, n.id, n.user_id, n.kind, vanilla.grant_priority(n.kind), n.amount, n.amount, n.next_reset_at, n.ends_at, n.level_id, v_now
        from given n),
    listeners as materialized (
        select e.tenant_id, e.id from public.webhook_endpoints e
        where e.execution_id is null and e.status = 'active' and e.event_types && array['token.reset', '*', 'token.*'] and exists (select from unnest(v_due) d where d.tenant_id = e.tenant_id)
        for key share of e skip locked),
    -- a row is updated once by a statement, so both halves of it come together here
    ends as (
        select c.tenant_id, c.user_id, c.next_reset_at, c.ends_at, c.event_at, null::bigint as seq, null::bytea as link, null::timestamptz as created_at,
            c.available_tokens as available, c.unused_plan, c.plan + greatest(c.rollover, 0) as granted from closing c
        union all
        select (c.entry).tenant_id, (c.entry).user_id, null, null, null, (c.entry).seq, c.link, (c.entry).created_at, (c.entry).available_after, null, null
        from chained c where c.is_last),
    final as materialized (
        select e.tenant_id, e.user_id, max(e.next_reset_at) as starts_at, max(e.ends_at) as ends_at, max(e.event_at) as event_at, max(e.seq) as seq,
            (array_agg(e.link) filter (where e.link is not null))[1] as link, max(e.created_at) as created_at,
            coalesce(max(e.available) filter (where e.link is not null), max(e.available)) as available,
            max(e.unused_plan) as unused_plan, max(e.granted) as granted, vanilla.uuid7() as event_id
        from ends e group by e.tenant_id, e.user_id),
    told as (
        insert into public.events (tenant_id, created_at, id, type, user_id, payload)
        select f.tenant_id, v_now, f.event_id, 'token.reset', f.user_id, jsonb_build_object('period_start', f.starts_at, 'next_reset_at', f.ends_at,
            'unused', f.unused_plan, 'granted', f.granted, 'available_tokens', f.available, 'borrowed_tokens', 0) from final f),
    delivered as (
        insert into public.webhook_deliveries (tenant_id, endpoint_id, event_created_at, event_id, next_attempt_at, created_at)
        select f.tenant_id, e.id, v_now, f.event_id, v_now, v_now from final f join listeners e on e.tenant_id = f.tenant_id)
    update public.user_token_wallets w set burn = 0, epoch = w.epoch + 1, period_start = f.starts_at, next_reset_at = f.ends_at, next_event_at = f.event_at,
            seq = coalesce(f.seq, w.seq), head = coalesce(f.link, w.head), last_entry_at = coalesce(f.created_at, w.last_entry_at),
            available_tokens = f.available
        from final f
        where w.tenant_id = f.tenant_id and w.user_id = f.user_id;
    get diagnostics v_closed = row_count;
    return v_closed;
end
$f$;
comment on function vanilla.close_periods(integer) is
    'Closes the period of up to p_limit wallets that nobody is using and for which nothing else is due, in one statement; returns how many.';

create or replace function public.reset_monthly_tokens(p_limit integer default null) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_done integer := 0;
    v_step integer;
begin
    if vanilla.claim(3)::uuid <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'the reset runs across tenants: super admin or operator', '{"need": "superadmin"}');
    end if;
    perform vanilla.acting_tenant(vanilla.platform());
    loop      -- a few thousand at a time sort in memory
        v_step := vanilla.close_periods(least(p_limit - v_done, 5000));
        v_done := v_done + v_step;
        exit when v_step < 5000;
    end loop;
    return v_done + vanilla.fold_due_wallets(p_limit - v_done, true);
end
$f$;
comment on function public.reset_monthly_tokens(integer) is
    'Closes every period that is due: unused plan tokens lapse or roll over, the new allocation is granted. Returns the number of wallets reset; p_limit does so many, to be repeated until it returns less.';

create or replace function public.set_wallet_status(p_user_id uuid, p_status text, p_reason text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.acting_tenant(), p_user_id);
    v_wallet public.user_token_wallets;
begin
    if p_status is null or p_status not in ('active', 'locked', 'suspended') then
        perform vanilla.refuse('VS400', 'a wallet is active, locked or suspended', '{"param": "status"}');
    end if;
    v_wallet := vanilla.lock_wallet(v_user.tenant_id, v_user.id);
    perform vanilla.find_user(v_user.tenant_id, v_user.id);      -- who was erased meanwhile stays without a wallet
    update public.user_token_wallets set status = p_status where tenant_id = v_user.tenant_id and user_id = v_user.id;
    perform vanilla.audit(v_user.tenant_id, 'wallet.status', 'user', v_user.id, jsonb_build_object('status', p_status, 'reason', p_reason));
    if v_wallet.status <> p_status then
        perform vanilla.emit_event(v_user.tenant_id, 'token.status_changed', v_user.id,
            jsonb_build_object('from', v_wallet.status, 'to', p_status, 'reason', p_reason));
    end if;
end
$f$;
comment on function public.set_wallet_status(uuid, text, text) is 'active, locked or suspended; a locked or suspended wallet refuses debits and reservations.';

create or replace function vanilla.end_wallet(p_wallet public.user_token_wallets) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_entry public.user_token_ledger;
    v_status text := p_wallet.status;
    v_holds bigint := (select count(*) from public.user_token_holds h
        where h.tenant_id = p_wallet.tenant_id and h.user_id = p_wallet.user_id and h.state = 'open');
    v_voided bigint := 0;
begin
    delete from public.user_token_policies p where p.tenant_id = p_wallet.tenant_id and p.user_id = p_wallet.user_id;
    -- what somebody wrote beside a grant is in no chain
    update public.user_token_grants g set reason = null, metadata = null, idempotency_key = null, request_hash = null, void_key = null,
            void_reason = case when g.void_reason is not null then 'erased' end
        where g.tenant_id = p_wallet.tenant_id and g.user_id = p_wallet.user_id
          and num_nonnulls(g.reason, g.metadata, g.idempotency_key, g.void_key, g.void_reason) > 0;
    if v_holds > 0 then      -- suspended: nothing new begins, what is held can still be charged
        update public.user_token_wallets w set status = 'suspended' where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id;
    else
        p_wallet := vanilla.settle_burn(p_wallet);
        update public.user_token_grants g set state = 'voided', remaining = 0, void_reason = 'erased'
            where g.tenant_id = p_wallet.tenant_id and g.user_id = p_wallet.user_id and g.state in ('active', 'scheduled');
        v_voided := p_wallet.available_tokens;
        if v_voided > 0 then
            p_wallet.available_tokens := 0;
            v_entry.direction := 'void';
            v_entry.amount := -v_voided;
            v_entry.reason := 'erased';
            v_entry.source := 'system';
            v_entry := vanilla.post_entry(p_wallet, v_entry);
        end if;
        -- no period ends in it any more; a debt stays what it is
        update public.user_token_wallets w set status = 'closed', period_start = null, next_reset_at = null, next_event_at = 'infinity', warn_below = null
            where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id;
    end if;
    p_wallet := vanilla.read_wallet(p_wallet.tenant_id, p_wallet.user_id);
    if p_wallet.status <> v_status then
        perform vanilla.emit_event(p_wallet.tenant_id, 'token.status_changed', p_wallet.user_id,
            jsonb_build_object('from', v_status, 'to', p_wallet.status, 'reason', 'erased'));
    end if;
    return jsonb_build_object('wallet', p_wallet.status, 'open_holds', v_holds, 'voided_tokens', v_voided, 'debt', p_wallet.borrowed_tokens);
end
$f$;
comment on function vanilla.end_wallet(public.user_token_wallets) is
    'Closes the locked and folded wallet of a person who is erased: grants voided, one ledger row for all that is left. While a hold is open it is suspended only; the job closings closes it then.';

create or replace function public.set_level_token_policy(p_level_id uuid, p_base_allocation bigint, p_monthly_allocation bigint,
    p_enforcement_mode text default 'hard', p_rollover_percent integer default 0, p_rollover_cap bigint default null, p_monthly_cap bigint default null,
    p_period text default 'month', p_period_anchor text default 'calendar', p_warning_percent integer default 20, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_now timestamptz := vanilla.clock();
begin
    if not exists (select from public.levels where tenant_id = v_tenant and id = p_level_id) then
        perform vanilla.refuse('VS404', 'no such level', jsonb_build_object('level_id', p_level_id));
    end if;
    -- users who join the level wait here, or are among its wallets below
    perform from public.level_token_policies p where p.tenant_id = v_tenant and p.level_id = p_level_id for no key update;
    -- in order, as batches lock them; and what is over by now was the old policy's, whoever comes first
    perform from public.user_token_wallets w where w.tenant_id = v_tenant and w.level_id = p_level_id order by w.tenant_id, w.user_id for update;
    perform vanilla.fold_wallet(w) from public.user_token_wallets w
        where w.tenant_id = v_tenant and w.level_id = p_level_id and w.next_event_at <= v_now;
    begin
        insert into public.level_token_policies as p (tenant_id, level_id, base_allocation, monthly_allocation, period, period_anchor, rollover_percent, rollover_cap, monthly_cap, enforcement_mode, warning_percent)
        values (v_tenant, p_level_id, p_base_allocation, p_monthly_allocation, p_period, p_period_anchor, p_rollover_percent, p_rollover_cap, p_monthly_cap, p_enforcement_mode, p_warning_percent)
        on conflict (tenant_id, level_id) do update set base_allocation = excluded.base_allocation, monthly_allocation = excluded.monthly_allocation,
            period = excluded.period, period_anchor = excluded.period_anchor, rollover_percent = excluded.rollover_percent, rollover_cap = excluded.rollover_cap,
            monthly_cap = excluded.monthly_cap, enforcement_mode = excluded.enforcement_mode, warning_percent = excluded.warning_percent;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the policy is not valid: ' || sqlerrm, '{}', 'Amounts are not negative, percentages 0 to 100, period day, week, month or year, enforcement hard, warn or monitor.');
    end;
    -- enforcement at once; amounts from the next period on
    update public.user_token_wallets w set enforcement_mode = e.enforcement_mode, warn_below = e.monthly_allocation * e.warning_percent / 100
        from public.users u, vanilla.effective_policy(u.tenant_id, u.id, p_level_id) e
        where w.tenant_id = v_tenant and w.level_id = p_level_id and u.tenant_id = w.tenant_id and u.id = w.user_id;
    perform vanilla.audit(v_tenant, 'level.policy', 'level', p_level_id, jsonb_build_object('monthly_allocation', p_monthly_allocation, 'enforcement_mode', p_enforcement_mode));
end
$f$;
comment on function public.set_level_token_policy(uuid, bigint, bigint, text, integer, bigint, bigint, text, text, integer, uuid) is
    'Sets a level''s token policy; enforcement takes effect at once, amounts with the next period.';

create or replace function vanilla.give_tokens(p_tenant_id uuid, p_user_id uuid, p_amount bigint, p_kind text, p_effective_at timestamptz, p_expires_at timestamptz,
    p_priority integer, p_reason text, p_metadata jsonb, p_idempotency_key text, p_actor_role text default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(p_tenant_id, p_user_id);
    v_amount bigint := vanilla.check_amount(p_amount);
    v_now timestamptz;
    v_wallet public.user_token_wallets;
    v_entry public.user_token_ledger;
    v_grant public.user_token_grants;
    v_hash bytea := sha256(convert_to(jsonb_build_array('grant', p_amount, p_kind, p_effective_at at time zone 'UTC', p_expires_at at time zone 'UTC', p_priority, p_reason, p_metadata)::text, 'UTF8'));
begin
    perform vanilla.check_key(p_idempotency_key);
    if v_amount < 0 then
        perform vanilla.refuse('VS400', 'a grant is positive', '{"param": "amount"}', 'Use debit, or adjustment with a sign.');
    end if;
    if p_kind is null or p_kind not in ('purchase', 'promo', 'trial', 'refund', 'adjustment') then
        perform vanilla.refuse('VS400', format('unknown kind of grant %s', coalesce(p_kind, 'null')), '{"param": "kind"}',
            'One of purchase, promo, trial, refund, adjustment; plan, rollover and base come from the level.');
    end if;
    if p_priority not between 0 and 100 then
        perform vanilla.refuse('VS400', 'a priority is 0 to 100; less is burned first', '{"param": "priority"}');
    end if;
    v_wallet := vanilla.lock_wallet(v_user.tenant_id, v_user.id);
    v_now := vanilla.clock();
    if p_idempotency_key is not null then
        select * into v_grant from public.user_token_grants g
            where g.tenant_id = v_user.tenant_id and g.user_id = v_user.id and g.idempotency_key = p_idempotency_key;
        if found then
            if v_grant.request_hash is distinct from v_hash then
                perform vanilla.refuse('VS410', 'this idempotency key was used with another body', jsonb_build_object('grant_id', v_grant.id), 'Use a new key for a new operation.');
            end if;
            v_grant.remaining := coalesce((select r.remaining from vanilla.grants_after_burn(v_user.tenant_id, v_user.id) r where r.id = v_grant.id), v_grant.remaining);
            return vanilla.grant_json(v_grant, true);
        end if;
    end if;
    if p_expires_at is null or p_expires_at <= greatest(v_now, p_effective_at) then
        perform vanilla.refuse('VS400', 'the expiry is in the past, or before the grant begins', '{"param": "expires_at"}');
    end if;
    if v_wallet.status = 'closed' then v_wallet := vanilla.require_tokens(v_wallet, 0); end if;
    -- with what is scheduled: when all of it has begun, the wallet must still be far from 2^63
    if v_wallet.available_tokens + v_wallet.reserved_tokens + v_amount + coalesce((select sum(g.amount) from public.user_token_grants g
            where g.tenant_id = v_user.tenant_id and g.user_id = v_user.id and g.state = 'scheduled'), 0) > 100000000000000000 then
        perform vanilla.refuse('VS400', 'a wallet holds at most 100,000,000,000,000,000 tokens', '{"param": "amount"}');
    end if;
    if p_effective_at > v_now then
        -- counted when it begins; until then it only wakes the wallet
        insert into public.user_token_grants (tenant_id, user_id, kind, priority, amount, remaining, effective_at, expires_at, state, created_at)
        values (v_user.tenant_id, v_user.id, p_kind, coalesce(p_priority, vanilla.grant_priority(p_kind)), v_amount, v_amount, p_effective_at, p_expires_at, 'scheduled', v_now)
        returning * into v_grant;
        update public.user_token_wallets w set next_event_at = least(w.next_event_at, p_effective_at) where w.tenant_id = v_user.tenant_id and w.user_id = v_user.id;
    else
        v_entry.direction := 'credit';
        v_entry.reason := coalesce(p_reason, p_kind);
        v_entry.source := 'grant';
        v_entry.metadata := coalesce(p_metadata, '{}');
        v_entry := vanilla.grant_tokens(vanilla.settle_burn(v_wallet), p_kind, v_amount, v_now, p_expires_at, null, v_entry, p_priority::smallint);
        select * into v_grant from public.user_token_grants g where g.tenant_id = v_user.tenant_id and g.id = v_entry.grant_id;
        perform vanilla.emit_event(v_user.tenant_id, 'token.granted', v_user.id, vanilla.entry_event(v_entry));
    end if;
    update public.user_token_grants set reason = p_reason, metadata = p_metadata, idempotency_key = p_idempotency_key,
            request_hash = case when p_idempotency_key is not null then v_hash end
        where tenant_id = v_user.tenant_id and id = v_grant.id returning * into v_grant;
    perform vanilla.audit(v_user.tenant_id, 'wallet.granted', 'user', v_user.id,
        jsonb_build_object('grant_id', v_grant.id, 'kind', p_kind, 'amount', v_amount, 'effective_at', v_grant.effective_at, 'expires_at', p_expires_at, 'reason', p_reason),
        null, p_actor_role);
    return vanilla.grant_json(v_grant);
end
$f$;
comment on function vanilla.give_tokens(uuid, uuid, bigint, text, timestamptz, timestamptz, integer, text, jsonb, text, text) is
    'What grant_user_tokens does, for a caller who may: by an admin, or because tokens were paid.';

create or replace function public.grant_user_tokens(p_user_id uuid, p_amount bigint, p_kind text default 'promo', p_effective_at timestamptz default null,
    p_expires_at timestamptz default 'infinity', p_priority integer default null, p_reason text default null, p_metadata jsonb default '{}',
    p_idempotency_key text default null) returns jsonb
language sql volatile security definer set search_path = pg_catalog, pg_temp as $f$
    select vanilla.give_tokens(vanilla.acting_tenant(), p_user_id, p_amount, p_kind, p_effective_at, p_expires_at, p_priority, p_reason, p_metadata, p_idempotency_key)
$f$;
comment on function public.grant_user_tokens(uuid, bigint, text, timestamptz, timestamptz, integer, text, jsonb, text) is
    'Gives tokens of a kind, from now or from p_effective_at on, until p_expires_at; p_priority orders burning (0 first). Admin, service or operator. Returns the grant.';

create or replace function public.void_token_grant(p_grant_id uuid, p_reason text, p_tenant_id uuid default null, p_idempotency_key text default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    -- an operator who names no tenant means the only grant of this id
    v_tenant uuid := coalesce(vanilla.acting_tenant(p_tenant_id),
        (select min(g.tenant_id::text)::uuid from public.user_token_grants g where g.id = p_grant_id having count(*) = 1));
    v_grant public.user_token_grants;
    v_wallet public.user_token_wallets;
begin
    select * into v_grant from public.user_token_grants g where g.tenant_id = v_tenant and g.id = p_grant_id;
    if not found then perform vanilla.refuse('VS404', 'no such grant', jsonb_build_object('grant_id', p_grant_id)); end if;
    perform vanilla.check_key(p_idempotency_key);
    v_wallet := vanilla.settle_burn(vanilla.lock_wallet(v_grant.tenant_id, v_grant.user_id));
    select * into v_grant from public.user_token_grants g where g.tenant_id = v_grant.tenant_id and g.id = p_grant_id;
    if v_grant.void_key = p_idempotency_key then
        if coalesce(p_reason, v_grant.kind || ' voided') is distinct from v_grant.void_reason then
            perform vanilla.refuse('VS410', 'this idempotency key was used with another body', jsonb_build_object('grant_id', p_grant_id), 'Use a new key for a new operation.');
        end if;
        return vanilla.grant_json(v_grant, true);
    end if;
    if v_grant.state not in ('active', 'scheduled') then
        perform vanilla.refuse('VS409', format('the grant is %s', v_grant.state), jsonb_build_object('grant_id', p_grant_id, 'state', v_grant.state));
    end if;
    if v_grant.state = 'active' then
        perform vanilla.drop_grant(v_wallet, v_grant, 'voided', 'void', coalesce(p_reason, v_grant.kind || ' voided'));
    end if;
    -- nothing is left for a user who comes back to the level: this was taken away on purpose
    update public.user_token_grants set state = 'voided', remaining = 0, void_reason = coalesce(p_reason, kind || ' voided'), void_key = p_idempotency_key
        where tenant_id = v_grant.tenant_id and id = p_grant_id returning * into v_grant;
    v_wallet := vanilla.read_wallet(v_grant.tenant_id, v_grant.user_id);
    update public.user_token_wallets w set next_event_at = vanilla.next_event(v_wallet) where w.tenant_id = v_grant.tenant_id and w.user_id = v_grant.user_id;
    perform vanilla.audit(v_grant.tenant_id, 'wallet.grant_voided', 'user', v_grant.user_id, jsonb_build_object('grant_id', p_grant_id, 'reason', p_reason));
    return vanilla.grant_json(v_grant);
end
$f$;
comment on function public.void_token_grant(uuid, text, uuid, text) is
    'Takes what is left of a grant away, or calls off one that has not begun; what was spent or is held stays so. Admin or operator. Returns the grant.';

create or replace function public.refresh_token_wallet(p_user_id uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
    v_now timestamptz := vanilla.clock();
    v_wallet public.user_token_wallets;
begin
    -- whoever holds it is bringing it up to date: a reader does not wait for that
    select * into v_wallet from public.user_token_wallets w
        where w.tenant_id = v_user.tenant_id and w.user_id = v_user.id and w.next_event_at <= v_now for update skip locked;
    if not found then return false; end if;
    perform vanilla.fold_wallet(v_wallet);
    return true;
end
$f$;
comment on function public.refresh_token_wallet(uuid) is
    'Plays what is due in a wallet (a period that ended, grants that begin or lapse) as its next operation would, so that it can be shown: own, or any of the tenant''s by an admin. False when nothing is due, or somebody is at it.';

create or replace function public.set_user_token_policy(p_user_id uuid, p_monthly_allocation bigint default null, p_rollover_percent integer default null,
    p_rollover_cap bigint default null, p_monthly_cap bigint default null, p_enforcement_mode text default null, p_warning_percent integer default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.acting_tenant(), p_user_id);
    v_wallet public.user_token_wallets := vanilla.lock_wallet(v_user.tenant_id, v_user.id);
begin
    perform vanilla.find_user(v_user.tenant_id, v_user.id);      -- erased while the wallet was waited for: no such user
    begin
        insert into public.user_token_policies as p (tenant_id, user_id, monthly_allocation, rollover_percent, rollover_cap, monthly_cap, enforcement_mode, warning_percent)
        values (v_user.tenant_id, v_user.id, p_monthly_allocation, p_rollover_percent, p_rollover_cap, p_monthly_cap, p_enforcement_mode, p_warning_percent)
        on conflict (tenant_id, user_id) do update set monthly_allocation = excluded.monthly_allocation, rollover_percent = excluded.rollover_percent,
            rollover_cap = excluded.rollover_cap, monthly_cap = excluded.monthly_cap, enforcement_mode = excluded.enforcement_mode, warning_percent = excluded.warning_percent;
    exception when check_violation then
        perform vanilla.refuse('VS400', 'the policy is not valid: ' || sqlerrm, '{}', 'Amounts are not negative, percentages 0 to 100, enforcement hard, warn or monitor.');
    end;
    -- enforcement at once; amounts from the next period on
    update public.user_token_wallets w set enforcement_mode = e.enforcement_mode, warn_below = e.monthly_allocation * e.warning_percent / 100
        from vanilla.effective_policy(v_user.tenant_id, v_user.id, v_wallet.level_id) e
        where w.tenant_id = v_user.tenant_id and w.user_id = v_user.id and e.enforcement_mode is not null;
    perform vanilla.audit(v_user.tenant_id, 'user.policy', 'user', v_user.id, jsonb_strip_nulls(jsonb_build_object('monthly_allocation', p_monthly_allocation,
        'rollover_percent', p_rollover_percent, 'rollover_cap', p_rollover_cap, 'monthly_cap', p_monthly_cap, 'enforcement_mode', p_enforcement_mode, 'warning_percent', p_warning_percent)));
end
$f$;
comment on function public.set_user_token_policy(uuid, bigint, integer, bigint, bigint, text, integer) is
    'A user''s exceptions to the level''s policy, all of them; null means as the level says. Enforcement takes effect at once, amounts with the next period.';

create or replace function public.get_user_token_policy(p_user_id uuid) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
begin
    return (select to_jsonb(e) || jsonb_build_object('level_id', w.level_id, 'exceptions', coalesce((select jsonb_strip_nulls(to_jsonb(p) - 'tenant_id' - 'id' - 'user_id' - 'trial_allocation')
                from public.user_token_policies p where p.tenant_id = v_user.tenant_id and p.user_id = v_user.id), '{}'))
            from public.user_token_wallets w, vanilla.effective_policy(w.tenant_id, w.user_id, w.level_id) e
            where w.tenant_id = v_user.tenant_id and w.user_id = v_user.id);
end
$f$;
comment on function public.get_user_token_policy(uuid) is 'The policy that holds for a user, with exceptions apart: own, or any of the tenant''s by an admin.';

-- proof ------------------------------------------------------------------------------------------------------------
create or replace function public.verify_token_ledger(p_user_id uuid default null) returns table (tenant_id uuid, user_id uuid, seq bigint, problem text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.tenant_for(p_user_id);
begin
    -- no row means that all is well: never the answer for somebody who is not here. A deleted user's chain is verified too.
    if p_user_id is not null and not exists (
            select from public.users u where u.id = p_user_id and (u.tenant_id = v_tenant or v_tenant is null)) then
        perform vanilla.refuse('VS404', 'no such user', jsonb_build_object('user_id', p_user_id));
    end if;
    return query
        -- judged where the row is still the table's own: taken out of a sub-select, every column would be cut from it anew
        with chain as (
            select l.tenant_id as t, l.user_id as u, l.seq as s,
                l.seq <> lag(l.seq, 1, 0::bigint) over w + 1 as missing,
                l.hash <> vanilla.ledger_hash(lag(l.hash, 1, ''::bytea) over w, l) as changed,
                l.available_after - l.borrowed_after <> lag(l.available_after - l.borrowed_after, 1, 0::bigint) over w + l.amount
                    or l.reserved_after <> lag(l.reserved_after, 1, 0::bigint) over w + l.reserved_amount as unequal,
                l.created_at < lag(l.created_at, 1, '-infinity'::timestamptz) over w as older
            from public.user_token_ledger l
            where (l.tenant_id = v_tenant or v_tenant is null) and (l.user_id = p_user_id or p_user_id is null)
            window w as (partition by l.tenant_id, l.user_id order by l.seq))
        select c.t, c.u, c.s, case
            when c.missing then 'rows are missing before it'
            when c.changed then 'the row or the one before it was changed'
            when c.unequal then 'the amounts do not add up'
            else 'it is older than the row before it' end
        from chain c
        where c.missing or c.changed or c.unequal or c.older
        union all
        select w.tenant_id, w.user_id, w.seq, 'the wallet does not end where the ledger ends'
        from public.user_token_wallets w
        left join public.user_token_ledger l on l.tenant_id = w.tenant_id and l.user_id = w.user_id and l.seq = w.seq
        where (w.tenant_id = v_tenant or v_tenant is null) and (w.user_id = p_user_id or p_user_id is null)
          and (w.head <> coalesce(l.hash, '') or (w.seq > 0 and l.seq is null)
               or exists (select from public.user_token_ledger x where x.tenant_id = w.tenant_id and x.user_id = w.user_id and x.seq > w.seq));
end
$f$;
comment on function public.verify_token_ledger(uuid) is
    'Recomputes the chains of one user, of the tenant, or as operator of all: a row for every changed, missing or reordered entry, none when all is well.';

create or replace function public.reconcile_token_wallets() returns table (tenant_id uuid, user_id uuid, problem text, expected bigint, found bigint)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant();
begin
    return query
        with sums as (
            select w.tenant_id as t, w.user_id as u, w.available_tokens - w.borrowed_tokens as balance, w.available_tokens as available, w.reserved_tokens as reserved, w.burn as burn,
                coalesce((select sum(l.amount) from public.user_token_ledger l where l.tenant_id = w.tenant_id and l.user_id = w.user_id), 0)::bigint as ledger,
                coalesce((select sum(l.reserved_amount) from public.user_token_ledger l where l.tenant_id = w.tenant_id and l.user_id = w.user_id), 0)::bigint as ledger_reserved,
                coalesce((select sum(g.remaining) from public.user_token_grants g where g.tenant_id = w.tenant_id and g.user_id = w.user_id and g.state = 'active'), 0)::bigint as grants,
                coalesce((select sum(h.amount) from public.user_token_holds h where h.tenant_id = w.tenant_id and h.user_id = w.user_id and h.state = 'open'), 0)::bigint as holds
            from public.user_token_wallets w where w.tenant_id = v_tenant or v_tenant is null)
        select s.t, s.u, x.problem, x.expected, x.found from sums s,
            lateral (values ('balance is not the sum of the ledger', s.ledger, s.balance),
                            ('reserved is not the sum of the ledger', s.ledger_reserved, s.reserved),
                            ('reserved is not the sum of open holds', s.holds, s.reserved),
                            ('available is not what the grants hold', s.grants - s.burn, s.available)) x (problem, expected, found)
        where x.expected <> x.found;
end
$f$;
comment on function public.reconcile_token_wallets() is 'Wallets against ledger, holds and grants: a row for every difference, none when the books are right.';

create or replace function vanilla.ledger_seq_at(p_tenant_id uuid, p_user_id uuid, p_at timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_low bigint := 0;
    v_high bigint := (select w.seq from public.user_token_wallets w where w.tenant_id = p_tenant_id and w.user_id = p_user_id);
    v_middle bigint;
begin
    -- created_at never falls along seq, so the last entry until then is found by halving
    while v_low < v_high loop
        v_middle := (v_low + v_high + 1) / 2;
        if (select l.created_at <= p_at from public.user_token_ledger l where l.tenant_id = p_tenant_id and l.user_id = p_user_id and l.seq = v_middle) then
            v_low := v_middle;
        else
            v_high := v_middle - 1;
        end if;
    end loop;
    return v_low;
end
$f$;
comment on function vanilla.ledger_seq_at(uuid, uuid, timestamptz) is 'The last entry of a wallet until a moment, 0 before the first.';

create or replace function public.token_balance_at(p_user_id uuid, p_at timestamptz) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
begin
    return coalesce((select l.available_after - l.borrowed_after from public.user_token_ledger l
                     where l.tenant_id = v_user.tenant_id and l.user_id = v_user.id and l.seq = vanilla.ledger_seq_at(v_user.tenant_id, v_user.id, p_at)), 0);
end
$f$;
comment on function public.token_balance_at(uuid, timestamptz) is 'available - borrowed of a user at a moment; own balance, or any of the tenant''s by an admin.';

create or replace function public.token_statement(p_user_id uuid, p_from timestamptz, p_until timestamptz, p_after_seq bigint default 0, p_limit integer default null) returns table (
    seq bigint, created_at timestamptz, direction text, amount bigint, reserved_amount bigint, available_tokens bigint, reserved_tokens bigint,
    borrowed_tokens bigint, reason text, source text, reference_type text, reference_id uuid, execution_id uuid, hold_id uuid, id uuid)
language plpgsql stable security definer rows 1000 set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
begin
    if p_from is null or p_until is null or p_until <= p_from then
        perform vanilla.refuse('VS400', 'a statement is from a moment until a later one', '{"param": "until"}');
    end if;
    return query select l.seq, l.created_at, l.direction, l.amount, l.reserved_amount, l.available_after, l.reserved_after, l.borrowed_after,
            l.reason, l.source, l.reference_type, l.reference_id, l.execution_id, l.hold_id, l.id
        from public.user_token_ledger l
        where l.tenant_id = v_user.tenant_id and l.user_id = v_user.id
          and l.seq > greatest(p_after_seq, vanilla.ledger_seq_at(v_user.tenant_id, v_user.id, p_from - interval '1 microsecond'))
          and l.seq <= vanilla.ledger_seq_at(v_user.tenant_id, v_user.id, p_until - interval '1 microsecond')
        order by l.seq limit p_limit;
end
$f$;
comment on function public.token_statement(uuid, timestamptz, timestamptz, bigint, integer) is
    'A user''s ledger from a moment (included) until another (not), in order: own, or any of the tenant''s by an admin. A long one is read in parts: p_limit entries after p_after_seq.';

create or replace function public.token_statement_frame(p_user_id uuid, p_from timestamptz, p_until timestamptz) returns table (
    after_seq bigint, last_seq bigint, opening_balance bigint, closing_balance bigint)
language plpgsql stable security definer rows 1 set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
begin
    if p_from is null or p_until is null or p_until <= p_from then
        perform vanilla.refuse('VS400', 'a statement is from a moment until a later one', '{"param": "until"}');
    end if;
    after_seq := vanilla.ledger_seq_at(v_user.tenant_id, v_user.id, p_from - interval '1 microsecond');
    last_seq := vanilla.ledger_seq_at(v_user.tenant_id, v_user.id, p_until - interval '1 microsecond');
    opening_balance := coalesce((select l.available_after - l.borrowed_after from public.user_token_ledger l
        where l.tenant_id = v_user.tenant_id and l.user_id = v_user.id and l.seq = after_seq), 0);
    closing_balance := coalesce((select l.available_after - l.borrowed_after from public.user_token_ledger l
        where l.tenant_id = v_user.tenant_id and l.user_id = v_user.id and l.seq = last_seq), 0);
    return next;
end
$f$;
comment on function public.token_statement_frame(uuid, timestamptz, timestamptz) is
    'What stands around token_statement: its entries are after_seq + 1 to last_seq, and the balances (available - borrowed) before and after them.';

create or replace function vanilla.anchored_tenant() returns uuid
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select nullif(vanilla.acting_tenant(), case when vanilla.claim(5) = 'superadmin' then vanilla.platform() end)
$f$;
comment on function vanilla.anchored_tenant() is
    'The tenant whose chains a caller may anchor: an admin''s; null, which is all, for a super admin at the platform and the operator.';

create or replace function public.token_ledger_anchor() returns table (tenant_id uuid, user_id uuid, seq bigint, hash bytea)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.anchored_tenant();
begin
    return query select w.tenant_id, w.user_id, w.seq, w.head from public.user_token_wallets w
        where (w.tenant_id = v_tenant or v_tenant is null) and w.seq > 0 order by w.tenant_id, w.user_id;
end
$f$;
comment on function public.token_ledger_anchor() is
    'The end of every chain of the tenant, or as operator or super admin of all. Kept elsewhere, it convicts whoever rewrites a whole chain: verify_token_anchor.';

create or replace function public.verify_token_anchor(p_anchor jsonb) returns table (tenant_id uuid, user_id uuid, seq bigint, problem text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.anchored_tenant();
begin
    if jsonb_typeof(p_anchor) is distinct from 'array' then
        perform vanilla.refuse('VS400', 'an anchor is an array of {tenant_id, user_id, seq, hash}', '{"param": "anchor"}');
    end if;
    return query select a.tenant_id, a.user_id, a.seq, case when l.seq is null then 'the entry is gone' else 'the chain up to here was rewritten' end
        from jsonb_to_recordset(p_anchor) as a (tenant_id uuid, user_id uuid, seq bigint, hash text)
        left join public.user_token_ledger l on l.tenant_id = a.tenant_id and l.user_id = a.user_id and l.seq = a.seq
        where (a.tenant_id = v_tenant or v_tenant is null) and l.hash is distinct from decode(a.hash, 'hex');
exception when invalid_text_representation or invalid_parameter_value or numeric_value_out_of_range then
    perform vanilla.refuse('VS400', 'the anchor is not valid: ' || sqlerrm, '{"param": "anchor"}');
end
$f$;
comment on function public.verify_token_anchor(jsonb) is
    'Compares kept ends of chains (hash in hex) with the ledger: a row for each that is gone or differs, none when all is well.';

-- maintenance ------------------------------------------------------------------------------------------------------
create or replace function vanilla.reap_holds(p_limit integer default 1000) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_wallet record;
    v_count integer := 0;
begin
    for v_wallet in
        select w.tenant_id, w.user_id from public.user_token_wallets w
        where (w.tenant_id, w.user_id) in (select h.tenant_id, h.user_id from public.user_token_holds h where h.state = 'open' and h.expires_at <= v_now limit p_limit)
        order by w.tenant_id, w.user_id for update skip locked
    loop
        perform vanilla.reap_wallet(vanilla.lock_wallet(v_wallet.tenant_id, v_wallet.user_id));
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$f$;
comment on function vanilla.reap_holds(integer) is 'Returns expired holds of wallets that nobody is using now; the number of wallets.';

create or replace function vanilla.run_maintenance(p_limit integer default 50) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_reaped integer;
    v_folded integer;
begin
    -- one ticker at a time; the others go on serving
    if not pg_try_advisory_xact_lock(hashtext('vanilla_saas.maintenance')) then
        return '{"ran": false, "more": false}';
    end if;
    v_reaped := vanilla.reap_holds(p_limit);
    v_folded := vanilla.fold_due_wallets(p_limit);
    return jsonb_build_object('ran', true, 'partitions', vanilla.ensure_partitions(3), 'wallets_reaped', v_reaped, 'wallets_folded', v_folded,
        'deliveries_forgotten', vanilla.prune_webhook_deliveries(), 'more', v_reaped >= p_limit or v_folded >= p_limit);
end
$f$;
comment on function vanilla.run_maintenance(integer) is
    'Holds, grants, periods, partitions and webhook deliveries at once, whatever their schedules say: at most p_limit wallets each, so that none is locked for long. Repeat while more is true.';

-- calls together ---------------------------------------------------------------------------------------------------
-- Calls that wait for the database at the same moment leave as one statement with one commit (database/coalescer.py). None
-- names a tenant that it has not proven: an API key, a session or a hold decides.
create or replace function vanilla.adjust_by_key(p_key_hash bytea, p_user_id uuid, p_amount bigint, p_direction text, p_reason text default null,
    p_source text default 'manual', p_reference_type text default null, p_reference_id uuid default null, p_execution_id uuid default null,
    p_metadata jsonb default '{}', p_idempotency_key text default null, p_expires_at timestamptz default 'infinity',
    p_request_id text default '', p_client_ip text default '') returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_key jsonb := vanilla.key_identity(p_key_hash);
begin
    if v_key is null then
        perform vanilla.refuse('VS411', 'the key is wrong, revoked or expired');
    end if;
    if v_key ->> 'role' = 'user' then
        perform vanilla.refuse('VS403', 'only an admin of the tenant may do this', '{"need": "admin"}');
    end if;
    perform vanilla.check_key(p_idempotency_key);
    -- for the audit log; the next call of a batch sets its own
    perform set_config('vanilla.request_id', coalesce(p_request_id, ''), true), set_config('vanilla.client_ip', coalesce(p_client_ip, ''), true);
    return vanilla.adjust_tokens((v_key ->> 'tenant_id')::uuid, (v_key ->> 'user_id')::uuid, v_key ->> 'role', p_user_id, p_amount, p_direction,
        p_reason, coalesce(p_source, 'manual'), p_reference_type, p_reference_id, p_execution_id, coalesce(p_metadata, '{}'), p_idempotency_key,
        coalesce(p_expires_at, 'infinity'));
end
$f$;
comment on function vanilla.adjust_by_key(bytea, uuid, bigint, text, text, text, text, uuid, uuid, jsonb, text, timestamptz, text, text) is
    'adjust_user_tokens for the bearer of an API key with the scope admin, in the key''s tenant, as its user.';

-- What the calls of a batch will lock, in the order of every other function: holds, wallets, keys, each sorted. "offset 0" makes
-- of every join a look-up by index for each call: connections keep the plan of their first batch, when the tables are nearly empty.
create or replace function vanilla.lock_calls(p_calls jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v record;
    v_now timestamptz := vanilla.clock();
begin
    for v in
        select s.tenant_id, s.hold_id as id from jsonb_to_recordset(p_calls) as s (function text, tenant_id uuid, hold_id uuid) where s.function = 'settle'
        union
        select k.tenant_id, h.id from jsonb_to_recordset(p_calls) as a (function text, key_hash bytea, user_id uuid, direction text, reference_id uuid)
            cross join lateral (select * from public.api_keys x where x.key_hash = a.key_hash and 'admin' = any (x.scopes) offset 0) k
            cross join lateral (select * from public.user_token_holds x where x.tenant_id = k.tenant_id and x.user_id = a.user_id and x.state = 'open'
                and a.reference_id in (x.id, x.reference_id) offset 0) h
            where a.function = 'adjust' and a.direction = 'release'
        order by 1, 2
    loop
        perform from public.user_token_holds where tenant_id = v.tenant_id and id = v.id for update;
    end loop;
    for v in
        select h.tenant_id, h.user_id from jsonb_to_recordset(p_calls) as s (function text, tenant_id uuid, hold_id uuid)
            cross join lateral (select * from public.user_token_holds x where x.tenant_id = s.tenant_id and x.id = s.hold_id offset 0) h
            where s.function = 'settle'
        union
        select k.tenant_id, a.user_id from (select distinct c.key_hash, c.user_id
                from jsonb_to_recordset(p_calls) as c (function text, key_hash bytea, user_id uuid) where c.function = 'adjust') a
            cross join lateral (select * from public.api_keys x where x.key_hash = a.key_hash and 'admin' = any (x.scopes) offset 0) k
        union
        select k.tenant_id, case when a.payer is null then k.user_id else (select u.id from public.users u
                where u.tenant_id = k.tenant_id and u.external_id = a.payer and k.scopes && array['act_as', 'act_as:create']) end
            from jsonb_to_recordset(p_calls) as a (function text, key_hash bytea, payer text)
            cross join lateral (select * from public.api_keys x where x.key_hash = a.key_hash offset 0) k
            where a.function = 'admit'
        union
        select s.tenant_id, s.user_id from jsonb_to_recordset(p_calls) as a (function text, session_hash bytea)
            cross join lateral (select * from public.sessions x where x.token_hash = a.session_hash offset 0) s
            where a.function = 'admit'
        order by 1, 2
    loop
        perform from public.user_token_wallets where tenant_id = v.tenant_id and user_id = v.user_id for update;
    end loop;
    for v in        -- those that admit or settle will write: a budget, or the time of last use
        select k.tenant_id, k.id from jsonb_to_recordset(p_calls) as a (function text, key_hash bytea)
            cross join lateral (select * from public.api_keys x where x.key_hash = a.key_hash offset 0) k
            where a.function = 'admit' and k.budget_tokens is not null
        union
        select k.tenant_id, k.id from jsonb_to_recordset(p_calls) as s (function text, tenant_id uuid, hold_id uuid)
            cross join lateral (select * from public.user_token_holds x where x.tenant_id = s.tenant_id and x.id = s.hold_id offset 0) h
            cross join lateral (select * from public.api_keys x where x.tenant_id = h.tenant_id and x.id = h.api_key_id offset 0) k
            where s.function = 'settle' and (k.budget_tokens is not null or k.last_used_at is null or k.last_used_at < v_now - interval '1 minute')
        order by 1, 2
    loop
        perform from public.api_keys where tenant_id = v.tenant_id and id = v.id for no key update;
    end loop;
end
$f$;
comment on function vanilla.lock_calls(jsonb) is 'Locks what the calls of a batch will change, so that two batches cannot wait for each other.';

-- No default is repeated here: the coalescer sends every argument.
create or replace function vanilla.run_call(p_call jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    case p_call ->> 'function'
    when 'admit' then
        if p_call ->> 'payer' is not null and exists (select from public.api_keys k where k.key_hash = (p_call ->> 'key_hash')::bytea
                and 'act_as:create' = any (k.scopes) and not exists (
                    select from public.users u where u.tenant_id = k.tenant_id and u.external_id = p_call ->> 'payer')) then
            -- it would wait for others who make users while it holds the wallets of its neighbours
            perform vanilla.refuse('40001', 'a call that makes its payer is not run in a batch');
        end if;
        return vanilla.admit_call((p_call ->> 'key_hash')::bytea, (p_call ->> 'session_hash')::bytea, p_call ->> 'payer', p_call ->> 'model',
            (p_call ->> 'prompt_tokens')::bigint, (p_call ->> 'sandbox_prompt_tokens')::bigint, (p_call ->> 'output_limit')::bigint,
            (p_call ->> 'choices')::integer, (p_call ->> 'execution_id')::uuid, (p_call ->> 'streamed')::boolean, (p_call ->> 'ttl')::interval,
            p_call ->> 'idempotency_key', p_call ->> 'request_id');
    when 'settle' then
        return vanilla.settle_call((p_call ->> 'tenant_id')::uuid, (p_call ->> 'hold_id')::uuid, p_call ->> 'status', (p_call ->> 'input')::bigint,
            (p_call ->> 'output')::bigint, (p_call ->> 'cached')::bigint, (p_call ->> 'reasoning')::bigint, (p_call ->> 'estimated')::boolean,
            p_call ->> 'error_code', (p_call ->> 'latency_ms')::integer, (p_call ->> 'first_token_ms')::integer);
    when 'adjust' then
        return vanilla.adjust_by_key((p_call ->> 'key_hash')::bytea, (p_call ->> 'user_id')::uuid, (p_call ->> 'amount')::bigint, p_call ->> 'direction',
            p_call ->> 'reason', p_call ->> 'source', p_call ->> 'reference_type', (p_call ->> 'reference_id')::uuid, (p_call ->> 'execution_id')::uuid,
            p_call -> 'metadata', p_call ->> 'idempotency_key', (p_call ->> 'expires_at')::timestamptz, p_call ->> 'request_id', p_call ->> 'client_ip');
    else
        perform vanilla.refuse('VS400', 'no such call', '{"param": "function"}', 'One of admit, settle, adjust.');
    end case;
end
$f$;
comment on function vanilla.run_call(jsonb) is 'One call of a batch: a function of the closed list with its arguments, by name without p_.';

create or replace function vanilla.call_error(p_state text, p_message text, p_detail text, p_hint text) returns jsonb language sql immutable
    return jsonb_build_object('error', jsonb_build_object('sqlstate', p_state, 'message', p_message, 'detail', nullif(p_detail, ''), 'hint', nullif(p_hint, '')));
comment on function vanilla.call_error(text, text, text, text) is 'How a batch of calls tells that one failed.';

-- A subtransaction for each: what fails is undone and told, and its neighbours stand.
create or replace function vanilla.try_call(p_call jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_state text;
    v_message text;
    v_detail text;
    v_hint text;
begin
    return jsonb_build_object('ok', vanilla.run_call(p_call));
exception when others then
    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint;
    return vanilla.call_error(v_state, v_message, v_detail, v_hint);
end
$f$;
comment on function vanilla.try_call(jsonb) is 'One call of a batch: {ok} with its answer, or {error} with what undid it.';

create or replace function vanilla.debit_together(p_tenant_id uuid, p_actor_ids uuid[], p_calls jsonb) returns jsonb[]
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    return array(
        select case when r.value ? 'entry' then jsonb_build_object('ok', r.value -> 'entry') else vanilla.call_error(
            r.value #>> '{error,sqlstate}', r.value #>> '{error,message}', r.value #>> '{error,detail}', r.value #>> '{error,hint}') end
        from jsonb_array_elements(vanilla.run_batch(p_tenant_id, p_actor_ids, p_calls, false)) with ordinality r (value, n) order by r.n);
exception when others then      -- one is not what it says: each by itself, so that only that one fails
    return array(select vanilla.try_call(c.value) from jsonb_array_elements(p_calls) with ordinality c (value, n) order by c.n);
end
$f$;
comment on function vanilla.debit_together(uuid, uuid[], jsonb) is 'Debits of one tenant, counted in memory and written together; outcomes as of try_call.';

create or replace function vanilla.run_calls(p_calls jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_call jsonb;
    v_key_hash text;
    v_key jsonb;
    v_together boolean;
    v_tenant uuid;
    v_debits jsonb[] := '{}';      -- consecutive, of one tenant, not yet run
    v_actors uuid[] := '{}';
    v_results jsonb[] := '{}';
begin
    if jsonb_typeof(p_calls) is distinct from 'array' or jsonb_array_length(p_calls) not between 1 and 1000 then
        perform vanilla.refuse('VS400', 'a batch is an array of 1 to 1,000 calls', '{"param": "calls"}');
    end if;
    begin
        perform vanilla.lock_calls(p_calls);
    exception when others then      -- a malformed call, or a deadlock with somebody who is no batch
        return to_jsonb(array_fill(vanilla.call_error('40001', 'not run in this batch: ' || sqlerrm, '', 'Repeat the call alone.'),
            array[jsonb_array_length(p_calls)]));
    end;
    for v_call in select c.value from jsonb_array_elements(p_calls) with ordinality c (value, n) order by c.n loop
        v_together := v_call ->> 'function' = 'adjust' and v_call ->> 'direction' = 'debit';
        if v_together then
            if v_key_hash is distinct from v_call ->> 'key_hash' then
                v_key_hash := v_call ->> 'key_hash';
                v_key := vanilla.key_identity(v_key_hash::bytea);
            end if;
            v_together := v_key ->> 'role' <> 'user';      -- a key that may not is refused by its own call
        end if;
        if v_debits <> '{}' and (v_together is not true or v_tenant <> (v_key ->> 'tenant_id')::uuid) then
            v_results := v_results || vanilla.debit_together(v_tenant, v_actors, to_jsonb(v_debits));
            v_debits := '{}';
            v_actors := '{}';
        end if;
        if v_together then
            v_tenant := (v_key ->> 'tenant_id')::uuid;
            v_actors := v_actors || (v_key ->> 'user_id')::uuid;
            v_debits := v_debits || v_call;
        else
            v_results := v_results || vanilla.try_call(v_call);
        end if;
    end loop;
    if v_debits <> '{}' then
        v_results := v_results || vanilla.debit_together(v_tenant, v_actors, to_jsonb(v_debits));
    end if;
    return to_jsonb(v_results);
end
$f$;
comment on function vanilla.run_calls(jsonb) is
    'Up to 1,000 calls (admit, settle, adjust) in one transaction, in order; answers {ok} or {error} for each. A call that fails is undone alone; one with an error of class 40 was not run and may be repeated.';
grant execute on function vanilla.run_calls(jsonb),
    vanilla.adjust_by_key(bytea, uuid, bigint, text, text, text, text, uuid, uuid, jsonb, text, timestamptz, text, text) to vanilla_runtime;

grant execute on function
    public.adjust_user_tokens(uuid, bigint, text, text, text, text, uuid, uuid, jsonb, text, timestamptz),
    public.adjust_user_tokens_batch(jsonb, boolean),
    public.settle_user_tokens(uuid, bigint, text, uuid, boolean, text), public.extend_token_hold(uuid, timestamptz, uuid), public.release_token_hold(uuid, text, uuid, text), public.auto_allocate_tokens_for_level(uuid, uuid),
    public.reset_monthly_tokens(integer), public.set_wallet_status(uuid, text, text),
    public.set_level_token_policy(uuid, bigint, bigint, text, integer, bigint, bigint, text, text, integer, uuid),
    public.grant_user_tokens(uuid, bigint, text, timestamptz, timestamptz, integer, text, jsonb, text), public.void_token_grant(uuid, text, uuid, text), public.refresh_token_wallet(uuid),
    public.set_user_token_policy(uuid, bigint, integer, bigint, bigint, text, integer), public.get_user_token_policy(uuid),
    public.verify_token_ledger(uuid), public.reconcile_token_wallets(), public.token_balance_at(uuid, timestamptz),
    public.token_statement(uuid, timestamptz, timestamptz, bigint, integer), public.token_statement_frame(uuid, timestamptz, timestamptz), public.token_ledger_anchor(), public.verify_token_anchor(jsonb)
    to vanilla_app, vanilla_operator, vanilla_system;
grant execute on function vanilla.reap_holds(integer), vanilla.run_maintenance(integer) to vanilla_runtime, vanilla_operator, vanilla_system;

-- schedules --------------------------------------------------------------------------------------------------------
-- A job is a row of public.schedules and, when it is SQL, a function vanilla.job_<name>(p_limit integer) returns jsonb that
-- does a part of what is due and says {"more": true} while there is more. Each part is a transaction of its own, so nothing
-- is locked for long and a process that is killed loses one part. Numbers in the answers are added up, other values replaced;
-- what begins with _ is for the next part and is not kept.
-- One lock for each job lets one session at a time run a part of it; it is of the transaction, so it goes with who had it.
create or replace function vanilla.job_monthly_reset(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_one_by_one boolean := (select s.progress -> '_one_by_one' = 'true' from public.schedules s
        where s.tenant_id = vanilla.platform() and s.name = 'monthly_reset');
    v_closed integer := 0;
    v_folded integer;
begin
    -- Debt, several missed periods, grants that start or lapse meanwhile are for fold_wallet. It takes some at every part, so
    -- that they do not gather before those that close_periods looks for, and all when there are none of those left.
    if v_one_by_one is not true then v_closed := vanilla.close_periods(p_limit); end if;
    v_folded := vanilla.fold_due_wallets(greatest(p_limit - v_closed, p_limit / 10), true);
    return jsonb_build_object('wallets', v_closed + v_folded, '_one_by_one', v_closed < p_limit, 'more', v_closed + v_folded >= p_limit);
end
$f$;
comment on function vanilla.job_monthly_reset(integer) is 'Job: closes up to p_limit wallets'' periods that have ended; missed ones one by one.';

create or replace function vanilla.job_grants(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_folded integer := vanilla.fold_due_wallets(p_limit, false);
begin
    return jsonb_build_object('wallets', v_folded, 'more', v_folded >= p_limit);
end
$f$;
comment on function vanilla.job_grants(integer) is 'Job: begins and ends the grants of up to p_limit wallets that are due.';

create or replace function vanilla.job_holds(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_reaped integer := vanilla.reap_holds(p_limit);
begin
    return jsonb_build_object('wallets', v_reaped, 'more', v_reaped >= p_limit);
end
$f$;
comment on function vanilla.job_holds(integer) is 'Job: returns the expired holds of up to p_limit wallets.';

create or replace function vanilla.job_partitions(p_limit integer) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('made', vanilla.ensure_partitions(3), 'more', false)
$f$;
comment on function vanilla.job_partitions(integer) is 'Job: this month and three ahead of every log table.';

-- Retention: what a platform row "retention.<log table>_days" names is kept so long. Fewer days, of a level or a tenant, are the
-- job history's (007): a month is dropped for everybody, a person's rows are deleted before.
create or replace function vanilla.retention_days(p_what text) returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_days jsonb := vanilla.setting(vanilla.platform(), 'retention.' || p_what || '_days');
begin
    if v_days is null or jsonb_typeof(v_days) <> 'number' then
        perform vanilla.refuse('VS409', format('the setting retention.%s_days is not a number of days, so nothing is removed', p_what),
            jsonb_build_object('key', format('retention.%s_days', p_what)), 'Set it in system_configurations as a row of the platform.');
    end if;
    return (v_days #>> '{}')::integer;
end
$f$;
comment on function vanilla.retention_days(text) is 'Days that something is kept by the platform''s settings; refused when there is none.';

create or replace function vanilla.retention_plan()
returns table (log_table name, month regclass, from_at timestamptz, until_at timestamptz, cutoff timestamptz, action text, exported_rows bigint)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    with rule as (
        select coalesce(vanilla.setting(vanilla.platform(), 'retention.export') = 'true', false) as export,
            coalesce(vanilla.setting(vanilla.platform(), 'retention.whole_months') = 'true', false) as whole_months)
    select c.relname, m.month, m.from_at, m.until_at, d.cutoff,
        case when m.until_at > d.cutoff then 'delete' when r.export and x.rows is null then 'export' else 'drop' end, x.rows
    from rule r
    cross join vanilla.log_months() m
    join pg_class c on c.oid = m.log_table
    join public.system_configurations s on s.tenant_id = vanilla.platform() and s.key = format('retention.%s_days', c.relname)
    cross join lateral (select vanilla.clock() - make_interval(days => vanilla.retention_days(c.relname)) as cutoff) d
    left join public.log_exports x on x.tenant_id = vanilla.platform() and x.log_table = c.relname
        and x.month = (m.from_at at time zone 'UTC')::date and x.dropped_at is null and r.export
    where m.until_at <= d.cutoff
       or m.from_at < d.cutoff and not r.whole_months and not r.export      -- what is exported goes in whole months
    order by m.from_at, c.relname
$f$;
comment on function vanilla.retention_plan() is
    'What of the log tables is past retention: months to drop, those to export first, and those of which a part is to be deleted.';

create or replace function vanilla.preview_retention()
returns table (log_table text, month text, action text, rows bigint, bytes bigint, older_than timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
begin
    for v in select * from vanilla.retention_plan() loop
        log_table := v.log_table;
        month := to_char(v.from_at at time zone 'UTC', 'YYYY-MM');
        action := v.action;
        older_than := v.cutoff;
        execute format('select count(*) from public.%I where created_at >= $1 and created_at < $2', v.log_table) into rows
            using v.from_at, least(v.until_at, v.cutoff);
        bytes := case when v.action = 'delete' then null else pg_total_relation_size(v.month) end;
        if v.action <> 'delete' or rows > 0 then return next; end if;
    end loop;
end
$f$;
comment on function vanilla.preview_retention() is
    'What retention would remove now, counted: months to drop, to export and then drop, and rows to delete. Changes nothing.';

create or replace function vanilla.job_retention(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
    v_done bigint;
begin
    for v in select * from vanilla.retention_plan() p where p.action <> 'export' loop
        if v.action = 'delete' then
            v_done := vanilla.delete_log_rows(v.month, v.cutoff, p_limit);
            if v_done > 0 then return jsonb_build_object('rows_deleted', v_done, 'more', true); end if;
            continue;
        end if;
        v_done := vanilla.drop_log_month(v.month, v.cutoff, v.exported_rows);
        if v_done is null then      -- rows came in after it was exported: to be exported again
            delete from public.log_exports x where x.tenant_id = vanilla.platform() and x.log_table = v.log_table
                and x.month = (v.from_at at time zone 'UTC')::date;
            continue;
        end if;
        update public.log_exports x set dropped_at = vanilla.clock()
            where x.tenant_id = vanilla.platform() and x.log_table = v.log_table and x.month = (v.from_at at time zone 'UTC')::date;
        perform vanilla.audit(vanilla.platform(), 'retention.dropped', 'log', null, jsonb_build_object('log_table', v.log_table,
            'month', to_char(v.from_at at time zone 'UTC', 'YYYY-MM'), 'bytes', v_done, 'exported_rows', v.exported_rows), null, 'system');
        return jsonb_build_object('months_dropped', 1, 'bytes_freed', v_done, 'more', true);
    end loop;
    return '{"more": false}';
end
$f$;
comment on function vanilla.job_retention(integer) is
    'Job: drops one month of a log table that is past retention (and exported, where that is asked for), or deletes up to p_limit rows of one that is so in part.';

create or replace function vanilla.months_to_export() returns table (log_table text, month date, partition_name text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $f$
    select p.log_table::text, (p.from_at at time zone 'UTC')::date, c.relname::text
    from vanilla.retention_plan() p join pg_class c on c.oid = p.month
    where p.action = 'export'
$f$;
comment on function vanilla.months_to_export() is 'Months of log tables that are past retention and wait to be exported, oldest first.';

create or replace function vanilla.record_log_export(p_log_table text, p_month date, p_rows bigint, p_bytes bigint, p_sha256 bytea, p_location text)
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    if not exists (select from vanilla.retention_plan() p
            where p.action = 'export' and p.log_table = p_log_table and (p.from_at at time zone 'UTC')::date = p_month) then
        perform vanilla.refuse('VS409', format('%s of %s does not wait to be exported', p_month, p_log_table));
    end if;
    insert into public.log_exports as x (tenant_id, log_table, month, rows, bytes, sha256, location, created_at)
    values (vanilla.platform(), p_log_table, p_month, p_rows, p_bytes, p_sha256, p_location, vanilla.clock())
    on conflict (tenant_id, log_table, month) do update set rows = excluded.rows, bytes = excluded.bytes, sha256 = excluded.sha256,
        location = excluded.location, created_at = excluded.created_at, dropped_at = null;
    perform vanilla.audit(vanilla.platform(), 'retention.exported', 'log', null, jsonb_build_object('log_table', p_log_table,
        'month', to_char(p_month, 'YYYY-MM'), 'rows', p_rows, 'bytes', p_bytes, 'sha256', encode(p_sha256, 'hex'), 'location', p_location), null, 'system');
end
$f$;
comment on function vanilla.record_log_export(text, date, bigint, bigint, bytea, text) is
    'Says that a month is safely written elsewhere: retention may drop it when it still has p_rows rows.';

create or replace function vanilla.job_webhook_deliveries(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_forgotten integer := vanilla.prune_webhook_deliveries(vanilla.retention_days('webhook_deliveries'), p_limit);
begin
    return jsonb_build_object('deliveries', v_forgotten, 'more', v_forgotten >= p_limit);
end
$f$;
comment on function vanilla.job_webhook_deliveries(integer) is 'Job: forgets up to p_limit closed webhook deliveries past retention.';

create or replace function vanilla.job_sign_ins(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_before timestamptz := v_now - make_interval(days => vanilla.retention_days('sign_ins'));
    v_sessions integer;
    v_links integer;
    v_throttles integer;
begin
    -- a rotated session stays until its refresh token would have ended: its second use is what tells of a theft
    delete from public.sessions where ctid = any (array(
        select s.ctid from public.sessions s where greatest(s.expires_at, s.refresh_expires_at) < v_before limit p_limit));
    get diagnostics v_sessions = row_count;
    delete from public.one_time_tokens where ctid = any (array(
        select o.ctid from public.one_time_tokens o where least(o.used_at, o.expires_at) < v_before limit p_limit));
    get diagnostics v_links = row_count;
    delete from public.sign_in_throttles where ctid = any (array(
        select h.ctid from public.sign_in_throttles h where h.window_ends_at < v_now limit p_limit));
    get diagnostics v_throttles = row_count;
    return jsonb_build_object('sessions', v_sessions, 'links', v_links, 'throttles', v_throttles,
        'more', greatest(v_sessions, v_links, v_throttles) >= p_limit);
end
$f$;
comment on function vanilla.job_sign_ins(integer) is
    'Job: forgets up to p_limit sessions and one-time links that ended longer ago than retention.sign_ins_days, and throttles that are over.';

-- Persons and tenants leave for good here, so the job waits when the clock has leapt (schedules.longest_gap).
create or replace function vanilla.job_closings(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_wallet public.user_token_wallets;
    v_tenant public.tenants;
    v_user public.users;
    v_wallets integer := 0;
    v_persons integer := 0;
    v_deliveries integer := 0;
begin
    for v_wallet in
        select w.* from public.user_token_wallets w
        join public.users u on u.tenant_id = w.tenant_id and u.id = w.user_id and u.status = 'deleted'
        where w.status = 'suspended' and not exists (select from public.user_token_holds h
            where h.tenant_id = w.tenant_id and h.user_id = w.user_id and h.state = 'open')
        limit p_limit for update of w skip locked
    loop
        perform vanilla.end_wallet(vanilla.lock_wallet(v_wallet.tenant_id, v_wallet.user_id));
        v_wallets := v_wallets + 1;
    end loop;
    if v_wallets >= p_limit then return jsonb_build_object('wallets', v_wallets, 'more', true); end if;
    -- the strongest lock: who is making a user of it, by a call that began before it closed, is waited for
    select * into v_tenant from public.tenants t where t.erase_at <= v_now and t.erase_at is not null and t.erased_at is null
        order by t.erase_at limit 1 for update skip locked;
    if not found then return jsonb_build_object('wallets', v_wallets, 'more', false); end if;
    for v_user in select u.* from public.users u where u.tenant_id = v_tenant.id and u.status <> 'deleted'
        order by u.id limit p_limit - v_wallets for no key update
    loop
        perform vanilla.erase_person(v_user, 'the tenant is erased', '{"by": "tenant"}', null, 'system');
        v_persons := v_persons + 1;
    end loop;
    if v_persons = 0 then      -- locked first, as in delete_webhook_endpoint: no event adds a delivery from here on
        perform from public.webhook_endpoints e where e.tenant_id = v_tenant.id order by e.id for update;
        with leaving as materialized (
            select d.tenant_id, d.id from public.webhook_deliveries d where d.tenant_id = v_tenant.id limit p_limit),
        tries as (
            delete from public.webhook_attempts a using leaving l where a.tenant_id = l.tenant_id and a.delivery_id = l.id)
        delete from public.webhook_deliveries d using leaving l where d.tenant_id = l.tenant_id and d.id = l.id;
        get diagnostics v_deliveries = row_count;
        if v_deliveries < p_limit then
            delete from public.webhook_endpoints e where e.tenant_id = v_tenant.id;
            if to_regclass('public.payment_accounts') is not null then      -- 007
                update public.payment_accounts a set status = 'disabled', secret = null, secret_hint = null, webhook_secret = null, stripe_account = null
                    where a.tenant_id = v_tenant.id;
            end if;
            update public.ai_providers p set secret = null, secret_hint = null where p.tenant_id = v_tenant.id and p.secret is not null;
            delete from public.system_configurations s where s.tenant_id = v_tenant.id;
            -- the slug stays, so that nobody takes it over
            update public.tenants t set name = t.slug, self_registration = false, erased_at = v_now where t.tenant_id = v_tenant.id and t.id = v_tenant.id;
            perform vanilla.audit(t, 'tenant.erased', 'tenant', v_tenant.id, jsonb_build_object('closed_until', v_tenant.erase_at), null, 'system')
                from unnest(array[vanilla.platform(), v_tenant.id]) t;
            return jsonb_build_object('wallets', v_wallets, 'tenants', 1, 'deliveries', v_deliveries, 'more', true);
        end if;
    end if;
    return jsonb_build_object('wallets', v_wallets, 'persons', v_persons, 'deliveries', v_deliveries, 'more', true);
end
$f$;
comment on function vanilla.job_closings(integer) is
    'Job: closes wallets of erased persons whose calls have settled, and erases tenants whose grace is over, up to p_limit persons at a time.';

create or replace function vanilla.schedule_lock(p_name text) returns integer language sql immutable
    return hashtext('vanilla_saas.schedules.' || p_name);
comment on function vanilla.schedule_lock(text) is 'The advisory lock of a job, beside the class hashtext(''vanilla_saas.schedules'').';

create or replace function vanilla.schedule_delay(p_schedule public.schedules) returns interval language sql immutable
    return case when p_schedule.failures > 0 then least(interval '30 seconds' * power(2, least(p_schedule.failures, 12) - 1), interval '1 hour')
        when p_schedule.held_since is not null then greatest(p_schedule.longest_gap, p_schedule.period)
        else p_schedule.period end;
comment on function vanilla.schedule_delay(public.schedules) is
    'The longest that a job waits: its period, less while it fails, longer while it waits for a clock to settle.';

-- nothing is put off for longer than its delay: a next run beyond that was set before the clock went back
create or replace function vanilla.schedule_due(p_schedule public.schedules, p_now timestamptz) returns boolean language sql immutable
    return p_schedule.requested_at is not null or p_schedule.enabled
        and not p_schedule.next_run_at between p_now + interval '1 microsecond' and p_now + vanilla.schedule_delay(p_schedule);
comment on function vanilla.schedule_due(public.schedules, timestamptz) is 'Whether a job is to run: its time has come, it was asked for, or the clock has gone back.';

create or replace function vanilla.schedule_running(p_name text) returns boolean language sql stable
    return exists (select from pg_locks l where l.locktype = 'advisory' and l.granted and l.objsubid = 2
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.classid::bigint = (hashtext('vanilla_saas.schedules')::bigint & 4294967295)
        and l.objid::bigint = (vanilla.schedule_lock(p_name)::bigint & 4294967295));
comment on function vanilla.schedule_running(text) is 'Whether a session runs a job at this moment.';

create or replace function vanilla.due_schedules() returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
begin
    return (select jsonb_build_object(
        'due', coalesce(jsonb_agg(jsonb_build_object('name', s.name, 'kind', s.kind) order by s.next_run_at, s.name)
            filter (where vanilla.schedule_due(s, v_now)), '[]'),
        'next_in_s', coalesce(extract(epoch from min(s.next_run_at) filter (where s.enabled and s.next_run_at > v_now) - v_now), 3600))
        from public.schedules s where s.tenant_id = vanilla.platform());
end
$f$;
comment on function vanilla.due_schedules() is 'The jobs that are due now, the longest due first, and the seconds until the next one is.';

-- Takes a job for this transaction; null when it is not due (any more), somebody has it, or it waits for the clock.
create or replace function vanilla.take_schedule(p_name text, p_kind text) returns public.schedules
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_job public.schedules;
begin
    if not pg_try_advisory_xact_lock(hashtext('vanilla_saas.schedules'), vanilla.schedule_lock(p_name)) then return null; end if;
    select * into v_job from public.schedules s where s.tenant_id = vanilla.platform() and s.name = p_name and s.kind = p_kind;
    if v_job.name is null or not vanilla.schedule_due(v_job, v_now) then return null; end if;
    -- What cannot be undone does not believe a clock that has leapt, as it seems also after a long stop: it waits, and looks again.
    if v_job.requested_at is null and v_now - v_job.last_run_at > v_job.period + v_job.longest_gap
       and (v_job.held_since is null or v_now - v_job.held_since not between v_job.longest_gap and 2 * v_job.longest_gap + v_job.period) then
        update public.schedules s set held_since = v_now, next_run_at = v_now + v_job.longest_gap where s.tenant_id = v_job.tenant_id and s.name = v_job.name;
        return null;
    end if;
    return v_job;
end
$f$;
comment on function vanilla.take_schedule(text, text) is 'Takes a due job for this transaction, or null; the lock ends with the transaction.';

create or replace function vanilla.close_schedule(p_job public.schedules, p_duration_ms bigint, p_result jsonb, p_error text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
begin
    p_job.failures := case when p_error is null then 0 else p_job.failures + 1 end;
    update public.schedules s set started_at = null, progress = '{}', requested_at = null, held_since = null, last_run_at = v_now,
            last_duration_ms = p_duration_ms, last_result = p_result, last_error = left(p_error, 2000), failures = p_job.failures,
            part_size = least(s.part_size, 20),      -- the next run begins small: the machine may be busier then
            next_run_at = case when p_error is null then date_bin(p_job.period, v_now, p_job.slots_from) + p_job.period
                else v_now + vanilla.schedule_delay(p_job) end
        where s.tenant_id = p_job.tenant_id and s.name = p_job.name;
end
$f$;
comment on function vanilla.close_schedule(public.schedules, bigint, jsonb, text) is
    'Records what a run came to and sets the next one: the next slot, or, after an error, sooner.';

create or replace function vanilla.add_figures(p_one jsonb, p_two jsonb) returns jsonb language sql immutable
set search_path = pg_catalog, pg_temp as $f$
    select coalesce(jsonb_object_agg(k, case when jsonb_typeof(p_one -> k) = 'number' and jsonb_typeof(p_two -> k) = 'number'
        then to_jsonb((p_one ->> k)::numeric + (p_two ->> k)::numeric) else coalesce(p_two -> k, p_one -> k) end), '{}')
    from (select jsonb_object_keys(p_one || p_two) as k) s where k <> 'more'
$f$;
comment on function vanilla.add_figures(jsonb, jsonb) is 'What two parts of a job came to together: numbers are added, of other values the later one counts.';

-- what waits for a lock holds what it has: a job gives up soon and is tried again
create or replace function vanilla.run_schedule_part(p_name text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $f$
declare
    v_job public.schedules := vanilla.take_schedule(p_name, 'sql');
    v_began timestamptz := clock_timestamp();
    v_part jsonb;
    v_error text;
    v_ms bigint;
begin
    if v_job.name is null then return '{"ran": false, "more": false}'; end if;
    begin      -- an error undoes this part and is kept; a cancelled statement or a killed session undoes all of it
        execute format('select vanilla.%I($1)', 'job_' || v_job.name) into v_part using v_job.part_size;
    exception when others then
        v_error := sqlerrm;
    end;
    v_ms := extract(epoch from clock_timestamp() - v_began) * 1000;
    v_job.last_duration_ms := v_ms + case when v_job.started_at is null then 0 else v_job.last_duration_ms end;
    v_job.progress := vanilla.add_figures(v_job.progress, coalesce(v_part, '{}'));
    if v_error is not null or (v_part -> 'more') is distinct from 'true' then
        perform vanilla.close_schedule(v_job, v_job.last_duration_ms,
            (select coalesce(jsonb_object_agg(p.key, p.value), '{}') from jsonb_each(v_job.progress) p where left(p.key, 1) <> '_'), v_error);
    else
        update public.schedules s set started_at = coalesce(s.started_at, vanilla.clock()), progress = v_job.progress,
                last_duration_ms = v_job.last_duration_ms,
                part_size = case when v_ms > 40 then greatest(s.part_size * 25 / v_ms, 1) when v_ms < 15 then least(s.part_size * 2, 10000) else s.part_size end
            where s.tenant_id = v_job.tenant_id and s.name = v_job.name;
    end if;
    return jsonb_build_object('ran', true, 'more', v_error is null and v_part -> 'more' = 'true', 'error', v_error, 'ms', v_ms, 'figures', v_part);
end
$f$;
comment on function vanilla.run_schedule_part(text) is
    'Runs a part of an SQL job that is due, if nobody else does; call it again while "more" is true. An error of the job is recorded, not raised.';

create or replace function vanilla.begin_schedule(p_name text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
begin
    return (vanilla.take_schedule(p_name, 'python')).name is not null;
end
$f$;
comment on function vanilla.begin_schedule(text) is
    'Takes a due job that a process runs; it is its own until the transaction ends, in which it calls finish_schedule.';

create or replace function vanilla.finish_schedule(p_name text, p_duration_ms bigint, p_result jsonb, p_error text default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_job public.schedules;
begin
    if not exists (select from pg_locks l where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.granted and l.objsubid = 2
            and l.classid::bigint = (hashtext('vanilla_saas.schedules')::bigint & 4294967295)
            and l.objid::bigint = (vanilla.schedule_lock(p_name)::bigint & 4294967295)) then
        perform vanilla.refuse('VS409', 'this session does not run the job', jsonb_build_object('schedule', p_name));
    end if;
    select * into v_job from public.schedules s where s.tenant_id = vanilla.platform() and s.name = p_name and s.kind = 'python';
    perform vanilla.close_schedule(v_job, p_duration_ms, p_result, p_error);
end
$f$;
comment on function vanilla.finish_schedule(text, bigint, jsonb, text) is
    'Records what a job came to that this session took with begin_schedule.';

create or replace function vanilla.tick() returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_name text;
    v_more boolean := false;
begin
    for v_name in select d ->> 'name' from jsonb_array_elements(vanilla.due_schedules() -> 'due') d where d ->> 'kind' = 'sql' loop
        v_more := (vanilla.run_schedule_part(v_name) -> 'more')::boolean or v_more;
    end loop;
    return v_more;
end
$f$;
comment on function vanilla.tick() is
    'A part of every SQL job that is due, for cron without vanilla-saas; true while there is more: commit, and call it again.';

create or replace function vanilla.use_pg_cron(p_on boolean default true) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    -- a commit after each part: what a statement has locked it keeps to its end
    v_command text := 'do $tick$ begin while vanilla.tick() loop commit; end loop; end $tick$';
begin
    if to_regnamespace('cron') is null then
        perform vanilla.refuse('VS409', 'pg_cron is not installed in this database', '{}',
            'create extension pg_cron, or let a vanilla-saas process run the schedules: up and serve do.');
    end if;
    if p_on then
        execute 'select cron.schedule($1, $2, $3)' using 'vanilla_saas', '* * * * *', v_command;
    else
        execute 'select cron.unschedule(j.jobname) from cron.job j where j.jobname = $1' using 'vanilla_saas';
    end if;
    return v_command;
end
$f$;
comment on function vanilla.use_pg_cron(boolean) is
    'Lets pg_cron run the SQL jobs every minute, beside or instead of vanilla-saas processes, or no longer; returns the line''s command.';

create or replace function public.list_schedules()
returns table (name text, description text, kind text, period interval, enabled boolean, state text, next_run_at timestamptz, last_run_at timestamptz,
    last_duration_ms bigint, last_result jsonb, last_error text, failures integer, progress jsonb, held_until timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
begin
    if vanilla.claim(3)::uuid <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'schedules are the platform''s: super admin or operator', '{"need": "superadmin"}');
    end if;
    perform vanilla.acting_tenant(vanilla.platform());
    return query
        select s.name, s.description, s.kind, s.period, s.enabled,
            case when vanilla.schedule_running(s.name) or s.started_at is not null and vanilla.schedule_due(s, v_now) then 'running'
                when s.requested_at is not null then 'due'
                when not s.enabled then 'paused'
                when s.failures > 0 then 'failing'
                when s.held_since is not null and not vanilla.schedule_due(s, v_now) then 'held'
                when vanilla.schedule_due(s, v_now) then 'due' else 'waiting' end,
            s.next_run_at, s.last_run_at, s.last_duration_ms, s.last_result, s.last_error, s.failures, s.progress, s.held_since + s.longest_gap
        from public.schedules s where s.tenant_id = vanilla.platform() order by s.name;
end
$f$;
comment on function public.list_schedules() is
    'The jobs of the platform with their state: waiting, due, running, failing, paused, or held while the clock is in doubt. Super admin or operator.';

create or replace function vanilla.own_schedule(p_name text) returns public.schedules
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_job public.schedules;
begin
    if vanilla.claim(3)::uuid <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'schedules are the platform''s: super admin or operator', '{"need": "superadmin"}');
    end if;
    perform vanilla.acting_tenant(vanilla.platform());
    select * into v_job from public.schedules s where s.tenant_id = vanilla.platform() and s.name = p_name for update;
    if not found then
        perform vanilla.refuse('VS404', 'no such schedule', jsonb_build_object('schedule', p_name));
    end if;
    return v_job;
end
$f$;
comment on function vanilla.own_schedule(text) is 'The schedule of that name, locked, for a super admin or the operator.';

create or replace function public.set_schedule(p_name text, p_enabled boolean default null, p_period interval default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_job public.schedules := vanilla.own_schedule(p_name);
begin
    if extract(month from p_period) <> 0 or extract(year from p_period) <> 0 or p_period not between interval '1 second' and interval '366 days' then
        perform vanilla.refuse('VS400', 'a period is given in days or less, from a second to 366 days', '{"param": "period"}');
    end if;
    -- who switches it on again wants it tried again, not after the rest of an hour's delay
    update public.schedules s set enabled = coalesce(p_enabled, s.enabled), period = coalesce(p_period, s.period),
            failures = case when p_enabled then 0 else s.failures end,
            next_run_at = case when p_enabled and s.failures > 0 then vanilla.clock() else s.next_run_at end
        where s.tenant_id = v_job.tenant_id and s.name = v_job.name;
    perform vanilla.audit(vanilla.platform(), 'schedule.changed', 'schedule', null,
        jsonb_strip_nulls(jsonb_build_object('schedule', p_name, 'enabled', p_enabled, 'period', p_period)));
end
$f$;
comment on function public.set_schedule(text, boolean, interval) is
    'Pauses or resumes a job, or changes how often it runs; null leaves as it is. A run in parts stops after the part. Super admin or operator.';

create or replace function public.request_schedule(p_name text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_job public.schedules := vanilla.own_schedule(p_name);
begin
    update public.schedules s set requested_at = vanilla.clock() where s.tenant_id = v_job.tenant_id and s.name = v_job.name;
    perform vanilla.audit(vanilla.platform(), 'schedule.requested', 'schedule', null, jsonb_build_object('schedule', p_name));
end
$f$;
comment on function public.request_schedule(text) is
    'Asks for a run out of turn, of a paused job too; the next tick does it. Super admin or operator.';

grant execute on function vanilla.due_schedules(), vanilla.run_schedule_part(text), vanilla.begin_schedule(text),
    vanilla.finish_schedule(text, bigint, jsonb, text), vanilla.tick() to vanilla_runtime, vanilla_operator;
grant execute on function vanilla.preview_retention(), vanilla.months_to_export(), vanilla.use_pg_cron(boolean),
    vanilla.record_log_export(text, date, bigint, bigint, bytea, text) to vanilla_operator;
grant execute on function public.list_schedules(), public.set_schedule(text, boolean, interval), public.request_schedule(text)
    to vanilla_app, vanilla_operator;

set local role vanilla_owner;
revoke create on schema vanilla from vanilla_definer;
reset role;
revoke create on schema public from vanilla_definer;
commit;
