-- 007: what a level is worth (features, restrictions, prices, benefits), how one changes it and pays for it, what came of it.
--
-- Tables:  level_features, level_feature_usage, level_feature_keys, level_restrictions, user_rate_windows, level_pricing,
--          level_benefits, user_level_changes, level_analytics, tenant_token_months, level_upgrade_paths,
--          user_subscriptions, level_changes, level_invoice_lines
--          payment_accounts, payment_customers, payment_prices, payment_subscriptions, payments, payment_reversals,
--          payment_top_ups, payment_events
-- Public:  check_feature, consume_feature, set_level_feature, delete_level_feature, set_level_restriction, delete_level_restriction,
--          set_level_price, end_level_price, set_level_benefits, set_level, delete_level, roll_up_level_analytics, tenant_plan,
--          set_subscription_tier, set_payment_account, set_payment_price, begin_payment_portal, begin_checkout, set_auto_top_up,
--          set_upgrade_path, delete_upgrade_path, preview_level_change, change_user_level, undo_level_change
-- Private: feature_period_start, feature_period_end   the day a period begins, the moment it is over
--          explain_feature    what check_feature answers and consume_feature refuses with
--          restrict_call, count_call, return_rate_tokens   admit_call and settle_call of 001 call them where a level restricts
--          copy_level_terms   create_tenant of 001 calls it: a new tenant's levels have the platform's terms
--          public_pricing     the price list, for anybody
--          take_user_place    make_user of 001 calls it: so many users as the tenant's own plan allows
--          record_level_change  assign_level of 002 and erase_person of 001 call it
--          paid_rates, month_amount   what users pay a month, for analytics
--          job_feature_usage, job_history, job_level_analytics, job_tenant_tokens
--          apply_payment_event  what a verified event of Stripe's means; claim_top_ups, finish_top_up, job_payments
--          plan_level_change, apply_level_change, play_subscription   what a change comes to, its writing, what time brings
--          job_level_changes  scheduled changes, ends of trials, renewals
--
-- Invariants: what a period's row counts is never above the limit that held when it was counted; a key counts once;
-- prices of one level, cycle and currency do not overlap in time; levels.restrictions is what level_restrictions says;
-- the invoice lines of a user's period add up to the time on each of its levels, never below nothing; no circle of paths pays.
-- Lock order: a level, then its features, restrictions, prices and benefits; of consume_feature: the key, then the counter;
-- of a call: the wallet, then its rate window; of a change of level: token policies, the wallet, the subscription.
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
create table if not exists public.level_features (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    level_id uuid not null,
    feature text not null,
    name text not null default '',
    category text not null default 'general',
    enabled boolean not null default true,
    usage_limit bigint,
    period text,
    constraint level_features_pkey primary key (tenant_id, id),
    constraint level_features_feature_key unique (tenant_id, level_id, feature),
    constraint level_features_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint level_features_feature_check check (feature ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
    constraint level_features_name_check check (octet_length(name) <= 200),
    constraint level_features_category_check check (category ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    constraint level_features_limit_check check (usage_limit >= 0 and usage_limit <= 1000000000000000),
    -- a limit without a period, or the other way round, would mean nothing
    constraint level_features_period_check check ((usage_limit is null and period is null)
        or (usage_limit is not null and period is not null
            and period in ('daily', 'weekly', 'monthly', 'yearly', 'lifetime')))
);
comment on table public.level_features is
    'What a level allows: on or off, and at most so many uses a period; without a limit as many as one likes. Periods begin in the tenant''s time zone.';

-- No index but the primary key: a count changes nothing that is indexed, so updates stay HOT.
create table if not exists public.level_feature_usage (
    tenant_id uuid not null,
    user_id uuid not null,
    feature text not null,
    period text not null,
    period_start date not null,
    resets_at timestamptz,
    used bigint not null,
    usage_limit bigint,
    updated_at timestamptz not null default clock_timestamp(),
    limit_reached_at timestamptz,
    constraint level_feature_usage_pkey primary key (tenant_id, user_id, feature, period, period_start),
    constraint level_feature_usage_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    -- one and short: each statement reads the stored text of its checks anew. The period is one of level_features, which checks it.
    constraint level_feature_usage_used_check check (used > 0 and used <= usage_limit)
) with (fillfactor = 70);
comment on table public.level_feature_usage is
    'Uses of a feature by a user, a row for each period. What is used without a limit is counted by the month.';
comment on column public.level_feature_usage.limit_reached_at is 'When the last use that the limit allowed was first counted.';
comment on column public.level_feature_usage.resets_at is 'When the period is over, as of the last use; null of lifetime.';
comment on column public.level_feature_usage.period_start is 'The period''s first day in the tenant''s time zone; -infinity of lifetime.';

create table if not exists public.level_feature_keys (
    tenant_id uuid not null,
    user_id uuid not null,
    idempotency_key text not null,
    feature text not null,
    amount bigint not null,
    answer jsonb not null default '{}',
    created_at timestamptz not null default clock_timestamp(),
    constraint level_feature_keys_pkey primary key (tenant_id, user_id, idempotency_key),
    constraint level_feature_keys_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id)
);
comment on table public.level_feature_keys is
    'Idempotency keys of consume_feature with the answer each was given, kept for retention.feature_keys_days.';

create table if not exists public.level_restrictions (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    level_id uuid not null,
    type text not null,
    amount bigint,
    patterns text[],
    constraint level_restrictions_pkey primary key (tenant_id, id),
    constraint level_restrictions_level_type_key unique (tenant_id, level_id, type),
    constraint level_restrictions_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint level_restrictions_type_check check (type in ('allowed_models', 'denied_models', 'requests_per_minute',
        'tokens_per_minute', 'requests_per_day', 'concurrent_executions', 'max_output_tokens', 'max_prompt_tokens', 'api_keys', 'workflows', 'agents', 'history_days',
        'users_per_tenant', 'history_days_per_tenant', 'tokens_per_tenant')),
    constraint level_restrictions_value_check check (case when type in ('allowed_models', 'denied_models')
        then amount is null and patterns is not null and cardinality(patterns) > 0 and cardinality(patterns) <= 100
            and array_position(patterns, null) is null and array_position(patterns, '') is null
        -- a history of no days would take a call away before its answer is read
        else patterns is null and amount is not null and amount >= case when type ~ '^history_days' then 1 else 0 end and amount <= 1000000000000 end)
);
comment on table public.level_restrictions is
    'Typed rules of a level: a number, or patterns of models in which * stands for anything. Those that end in _per_tenant are of the platform''s levels and bind the tenants that have one as their plan.';

-- One row for each user, changed in place: no index but the primary key, so updates stay HOT and nothing piles up.
create table if not exists public.user_rate_windows (
    tenant_id uuid not null,
    user_id uuid not null,
    minute_at timestamptz not null,
    minute_requests bigint not null,
    minute_tokens bigint not null,
    day date not null,
    day_requests bigint not null,
    constraint user_rate_windows_pkey primary key (tenant_id, user_id),
    constraint user_rate_windows_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id)
) with (fillfactor = 50);
comment on table public.user_rate_windows is
    'Calls of a user on a restricted level in the minute and the day of the last one: the minute by UTC, the day in the tenant''s time zone.';

create table if not exists public.level_pricing (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    level_id uuid not null,
    cycle text not null,
    currency text not null,
    amount bigint not null,
    trial_days integer not null default 0,
    trial_credits bigint not null default 0,
    valid_from timestamptz not null,
    valid_until timestamptz not null default 'infinity',
    constraint level_pricing_pkey primary key (tenant_id, id),
    constraint level_pricing_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint level_pricing_cycle_check check (cycle in ('one_time', 'monthly', 'quarterly', 'yearly', 'lifetime')),
    -- the national currencies of ISO 4217; metals, funds and test codes are no price
    constraint level_pricing_currency_check check (currency in (
        'AED', 'AFN', 'ALL', 'AMD', 'AOA', 'ARS', 'AUD', 'AWG', 'AZN', 'BAM', 'BBD', 'BDT', 'BGN', 'BHD', 'BIF', 'BMD', 'BND', 'BOB',
        'BRL', 'BSD', 'BTN', 'BWP', 'BYN', 'BZD', 'CAD', 'CDF', 'CHF', 'CLF', 'CLP', 'CNY', 'COP', 'CRC', 'CUP', 'CVE', 'CZK', 'DJF',
        'DKK', 'DOP', 'DZD', 'EGP', 'ERN', 'ETB', 'EUR', 'FJD', 'FKP', 'GBP', 'GEL', 'GHS', 'GIP', 'GMD', 'GNF', 'GTQ', 'GYD', 'HKD',
        'HNL', 'HTG', 'HUF', 'IDR', 'ILS', 'INR', 'IQD', 'IRR', 'ISK', 'JMD', 'JOD', 'JPY', 'KES', 'KGS', 'KHR', 'KMF', 'KPW', 'KRW',
        'KWD', 'KYD', 'KZT', 'LAK', 'LBP', 'LKR', 'LRD', 'LSL', 'LYD', 'MAD', 'MDL', 'MGA', 'MKD', 'MMK', 'MNT', 'MOP', 'MRU', 'MUR',
        'MVR', 'MWK', 'MXN', 'MYR', 'MZN', 'NAD', 'NGN', 'NIO', 'NOK', 'NPR', 'NZD', 'OMR', 'PAB', 'PEN', 'PGK', 'PHP', 'PKR', 'PLN',
        'PYG', 'QAR', 'RON', 'RSD', 'RUB', 'RWF', 'SAR', 'SBD', 'SCR', 'SDG', 'SEK', 'SGD', 'SHP', 'SLE', 'SOS', 'SRD', 'SSP', 'STN',
        'SVC', 'SYP', 'SZL', 'THB', 'TJS', 'TMT', 'TND', 'TOP', 'TRY', 'TTD', 'TWD', 'TZS', 'UAH', 'UGX', 'USD', 'UYU', 'UZS', 'VED',
        'VES', 'VND', 'VUV', 'WST', 'XAF', 'XCD', 'XOF', 'XPF', 'YER', 'ZAR', 'ZMW', 'ZWG')),
    constraint level_pricing_amounts_check check (amount >= 0 and amount <= 1000000000000000
        and trial_credits >= 0 and trial_credits <= 1000000000000000),
    constraint level_pricing_trial_check check (trial_days >= 0 and trial_days <= 3660),
    constraint level_pricing_times_check check (valid_until > valid_from)
);
create index if not exists level_pricing_level_idx on public.level_pricing (tenant_id, level_id);
comment on table public.level_pricing is
    'What a level costs: a cycle in a currency, from a moment until another. Amounts are minor units (cents). one_time is paid once on joining, beside the others; lifetime once and never again.';
comment on column public.level_pricing.trial_credits is 'Tokens granted for a trial.';

create table if not exists public.level_benefits (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    level_id uuid not null,
    position integer not null,
    text text not null,
    highlighted boolean not null default false,
    constraint level_benefits_pkey primary key (tenant_id, id),
    constraint level_benefits_level_position_key unique (tenant_id, level_id, position),
    constraint level_benefits_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint level_benefits_position_check check (position > 0),
    constraint level_benefits_text_check check (text <> '' and octet_length(text) <= 500)
);
comment on table public.level_benefits is 'Lines of a price page under a level, in order; the highlighted ones stand out.';

-- level changes, analytics and the tenant's own plan: their functions stand in sections of these names
create table if not exists public.user_level_changes (
    tenant_id uuid not null,
    user_id uuid not null,
    seq bigint not null,
    created_at timestamptz not null,
    kind text not null,
    from_level_id uuid,
    from_level text,
    to_level_id uuid,
    to_level text,
    constraint user_level_changes_pkey primary key (tenant_id, user_id, seq),
    constraint user_level_changes_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint user_level_changes_seq_check check (seq > 0),
    constraint user_level_changes_kind_check check (kind in ('joined', 'upgraded', 'downgraded', 'moved', 'churned', 'left'))
);
-- a level may be deleted, what was is not: no foreign key to levels, and the slug beside the id
create index if not exists user_level_changes_created_idx on public.user_level_changes (tenant_id, created_at);
comment on table public.user_level_changes is
    'Every change of a user''s level, in order, append-only. What it was (kind) is said by the tiers and prices of that moment.';

create table if not exists public.level_analytics (
    tenant_id uuid not null,
    day date not null,
    level_id uuid not null,
    level text not null,
    users bigint not null,
    active_users bigint not null,
    new_users bigint not null,
    upgraded bigint not null,
    downgraded bigint not null,
    churned bigint not null,
    trials_ended bigint not null,
    trials_converted bigint not null,
    tokens_granted bigint not null,
    tokens_spent bigint not null,
    tokens_lapsed bigint not null,
    run_rate jsonb not null,
    limit_hits jsonb not null,
    is_final boolean not null,
    computed_at timestamptz not null,
    constraint level_analytics_pkey primary key (tenant_id, day, level_id),
    constraint level_analytics_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id)
);
comment on table public.level_analytics is
    'A day of a level in the tenant''s time zone, computed by roll_up_level_analytics: users at its end, what happened in it.';
comment on column public.level_analytics.active_users is 'Users who spent or reserved tokens in the day, by their level at its end.';
comment on column public.level_analytics.churned is 'Users who were erased, or fell from a paid level to one without a price, by the level they left.';
comment on column public.level_analytics.trials_ended is 'Trials of the level that were over or left in the day; trials_converted: of those, after which a paid period followed.';
comment on column public.level_analytics.tokens_lapsed is 'Tokens that left unspent: lapsed, voided, corrected downwards. granted - spent - lapsed is the change of what users have.';
comment on column public.level_analytics.run_rate is
    'What its users at the end of the day paid a month, in minor units by currency: agreed prices, quarters and years spread. A trial and a level given by hand pay nothing.';
comment on column public.level_analytics.limit_hits is 'How many users used the limit of a feature up in the day, by feature.';
comment on column public.level_analytics.is_final is 'Computed after the day was over.';

create table if not exists public.tenant_token_months (
    tenant_id uuid not null,
    month date not null,
    spent_before bigint not null,
    constraint tenant_token_months_pkey primary key (tenant_id, month),
    constraint tenant_token_months_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id)
);
comment on table public.tenant_token_months is
    'What all wallets of a tenant had spent before a month began, in the tenant''s time zone, where its plan limits the tokens of a month.';

-- Who changes to which level, and how: section "changes of level" below.
create table if not exists public.level_upgrade_paths (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    from_level_id uuid not null,
    to_level_id uuid not null,
    discount_percent integer not null default 0,
    timing text not null default 'any',
    self_service boolean not null default false,
    constraint level_upgrade_paths_pkey primary key (tenant_id, id),
    constraint level_upgrade_paths_levels_key unique (tenant_id, from_level_id, to_level_id),
    constraint level_upgrade_paths_from_fkey foreign key (tenant_id, from_level_id) references public.levels (tenant_id, id),
    constraint level_upgrade_paths_to_fkey foreign key (tenant_id, to_level_id) references public.levels (tenant_id, id),
    constraint level_upgrade_paths_levels_check check (from_level_id <> to_level_id),
    constraint level_upgrade_paths_discount_check check (discount_percent >= 0 and discount_percent <= 100),
    constraint level_upgrade_paths_timing_check check (timing in ('now', 'period_end', 'any'))
);
create index if not exists level_upgrade_paths_to_idx on public.level_upgrade_paths (tenant_id, to_level_id);
comment on table public.level_upgrade_paths is
    'From which level to which one changes: at once, at the end of the period or either; with a discount on the first period; by users themselves or by admins alone.';
comment on column public.level_upgrade_paths.discount_percent is 'Off the price of the first period on the level, once for a user and level.';

-- The period that runs. What each level of it costs is agreed when the user first comes to it and holds until the period ends.
create table if not exists public.user_subscriptions (
    tenant_id uuid not null,
    user_id uuid not null,
    level_id uuid not null,
    cycle text,
    currency text,
    amount bigint not null default 0,
    trial boolean not null default false,
    trial_grant_id uuid,
    anchor_at timestamptz not null,
    period_start timestamptz not null,
    period_end timestamptz not null default 'infinity',
    agreed jsonb not null default '{}',
    allowances jsonb not null default '{}',
    billed_by text,
    constraint user_subscriptions_pkey primary key (tenant_id, user_id),
    constraint user_subscriptions_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint user_subscriptions_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint user_subscriptions_amount_check check (amount >= 0),
    constraint user_subscriptions_period_check check (period_end > period_start),
    constraint user_subscriptions_cycle_check check (cycle in ('monthly', 'quarterly', 'yearly', 'lifetime')),
    constraint user_subscriptions_currency_check check ((cycle is null) = (currency is null))
);
create index if not exists user_subscriptions_level_idx on public.user_subscriptions (tenant_id, level_id);
create index if not exists user_subscriptions_end_idx on public.user_subscriptions (tenant_id, period_end) where period_end < 'infinity';
comment on table public.user_subscriptions is
    'What a user pays for: level, cycle and currency, and the period that runs; one without an end costs nothing more. Written by change_user_level and the job level_changes.';
comment on column public.user_subscriptions.amount is 'The price of a period without discount, in minor units; what a renewal costs when no price is in force then.';
comment on column public.user_subscriptions.agreed is
    'By level id, for the running period: rate (the whole period), fee (once on joining) and since (when it was charged); of a trial, what its end charges.';
comment on column public.user_subscriptions.allowances is 'By level id: plan (tokens of a whole period), from and until, as they were when the user came to it.';
comment on column public.user_subscriptions.billed_by is 'Reference of the last payment that a provider reported, when one bills.';

create table if not exists public.level_changes (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    from_level_id uuid,
    to_level_id uuid not null,
    timing text not null,
    state text not null,
    requested_at timestamptz not null,
    effective_at timestamptz not null,
    closed_at timestamptz,
    trial boolean not null default false,
    trial_ended_at timestamptz,
    trial_converted boolean,
    discount_percent integer not null default 0,
    terms jsonb not null,
    reason text,
    actor_id uuid,
    idempotency_key text,
    request_hash bytea,
    constraint level_changes_pkey primary key (tenant_id, id),
    constraint level_changes_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint level_changes_timing_check check (timing in ('now', 'period_end')),
    constraint level_changes_state_check check (state in ('scheduled', 'applied', 'undone', 'lapsed')),
    constraint level_changes_closed_check check ((state = 'scheduled') = (closed_at is null)),
    constraint level_changes_trial_check check ((trial_ended_at is null) = (trial_converted is null) and (trial or trial_ended_at is null))
);
create unique index if not exists level_changes_scheduled_idx on public.level_changes (tenant_id, user_id) where state = 'scheduled';
create unique index if not exists level_changes_idempotency_idx on public.level_changes (tenant_id, user_id, idempotency_key) where idempotency_key is not null;
create index if not exists level_changes_user_idx on public.level_changes (tenant_id, user_id, requested_at);
create index if not exists level_changes_trial_idx on public.level_changes (tenant_id, trial_ended_at) where trial;
create index if not exists level_changes_due_idx on public.level_changes (tenant_id, effective_at) where state = 'scheduled';
comment on table public.level_changes is
    'Every change of a level by change_user_level, with the numbers it was told: scheduled, then applied, undone or lapsed. Levels in it may be gone.';
comment on column public.level_changes.trial_ended_at is 'Of a change that began a trial: when the trial was over or left.';
comment on column public.level_changes.trial_converted is 'Whether a period that is paid followed.';

create table if not exists public.level_invoice_lines (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    change_id uuid,
    level_id uuid not null,
    kind text not null,
    cycle text not null,
    currency text not null,
    amount bigint not null,
    rate bigint not null default 0,
    period_start timestamptz not null,
    period_end timestamptz not null,
    payment_reference text,
    created_at timestamptz not null,
    constraint level_invoice_lines_pkey primary key (tenant_id, id),
    constraint level_invoice_lines_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint level_invoice_lines_kind_check check (kind in ('charge', 'fee', 'credit', 'fee_credit', 'renewal', 'billed')),
    constraint level_invoice_lines_cycle_check check (cycle in ('monthly', 'quarterly', 'yearly', 'lifetime')),
    constraint level_invoice_lines_amount_check check (case when kind in ('credit', 'fee_credit') then amount < 0 when kind = 'billed' then true else amount > 0 end),
    constraint level_invoice_lines_rate_check check (rate >= 0),
    constraint level_invoice_lines_reference_check check (payment_reference <> '' and octet_length(payment_reference) <= 255)
);
create index if not exists level_invoice_lines_user_idx on public.level_invoice_lines (tenant_id, user_id, created_at);
create index if not exists level_invoice_lines_end_idx on public.level_invoice_lines (tenant_id, period_end);
comment on table public.level_invoice_lines is
    'What changes of level and renewals cost, in minor units: a credit is negative. The lines of a user''s period add up to what it costs, never below nothing.';
comment on column public.level_invoice_lines.rate is 'Of a charge, a renewal or what a provider billed: what the whole period costs on this level, in minor units.';
comment on column public.level_invoice_lines.payment_reference is 'What the provider calls the payment, when one bills and this is its record.';

-- the same that 010 writes: functions and the rows below work before it has run, and no login has anything
grant select, insert, update, delete on public.level_features, public.level_feature_usage, public.level_feature_keys,
    public.level_restrictions, public.user_rate_windows, public.level_pricing, public.level_benefits, public.level_analytics,
    public.tenant_token_months,
    public.level_upgrade_paths, public.user_subscriptions, public.level_changes, public.level_invoice_lines to vanilla_definer, vanilla_system;
grant select, insert on public.user_level_changes to vanilla_definer, vanilla_system;

-- features ---------------------------------------------------------------------------------------------------------
set local role vanilla_definer;
alter default privileges revoke execute on functions from public;

-- Plain SQL without SET: inlined. Days, not moments: a tenant that changes its time zone keeps what was counted.
create or replace function vanilla.feature_period_start(p_period text, p_time_zone text, p_at timestamptz) returns date language sql stable
    return case p_period when 'lifetime' then '-infinity'::date
        else date_trunc(case p_period when 'daily' then 'day' when 'weekly' then 'week' when 'monthly' then 'month' else 'year' end,
            p_at at time zone p_time_zone)::date end;
comment on function vanilla.feature_period_start(text, text, timestamptz) is
    'The first day of the period of a feature''s limit that holds a moment, in the tenant''s time zone; weeks begin on Monday.';

create or replace function vanilla.feature_period_end(p_period text, p_time_zone text, p_start date) returns timestamptz language sql stable
    return case p_period when 'lifetime' then null
        else (p_start + case p_period when 'daily' then interval '1 day' when 'weekly' then interval '1 week'
            when 'monthly' then interval '1 month' else interval '1 year' end) at time zone p_time_zone end;
comment on function vanilla.feature_period_end(text, text, date) is 'When the period that begins on a day is over; null of lifetime.';

create or replace function vanilla.explain_feature(p_tenant_id uuid, p_user_id uuid, p_feature text, p_amount bigint) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_level uuid;
    v_zone text;
    v record;
    v_other jsonb;
begin
    select w.level_id, t.time_zone into v_level, v_zone from public.user_token_wallets w
        join public.tenants t on t.tenant_id = w.tenant_id and t.id = w.tenant_id
        where w.tenant_id = p_tenant_id and w.user_id = p_user_id;
    select l.slug, l.name, f.enabled, f.usage_limit, f.period, coalesce(f.name, '') as title, f.category, coalesce(u.used, 0) as used,
            case when f.period is not null then vanilla.feature_period_end(f.period, v_zone, vanilla.feature_period_start(f.period, v_zone, v_now)) end as resets_at,
            case when f.feature is null then 'not_in_level' when not f.enabled then 'off'
                 when coalesce(u.used, 0) + p_amount > f.usage_limit then 'limit' end as reason
        into v from public.levels l
        left join public.level_features f on f.tenant_id = l.tenant_id and f.level_id = l.id and f.feature = p_feature
        left join public.level_feature_usage u on u.tenant_id = f.tenant_id and u.user_id = p_user_id and u.feature = f.feature
            and u.period = coalesce(f.period, 'monthly') and u.period_start = vanilla.feature_period_start(u.period, v_zone, v_now)
        where l.tenant_id = p_tenant_id and l.id = v_level;
    if not found or v.reason is not null then
        -- what the user has used counts there too, in that level's period
        select jsonb_build_object('id', l.id, 'slug', l.slug, 'name', l.name) into v_other from public.levels l
            join public.level_features f on f.tenant_id = l.tenant_id and f.level_id = l.id and f.feature = p_feature
            left join public.level_feature_usage u on u.tenant_id = f.tenant_id and u.user_id = p_user_id and u.feature = f.feature
                and u.period = coalesce(f.period, 'monthly') and u.period_start = vanilla.feature_period_start(u.period, v_zone, v_now)
            where l.tenant_id = p_tenant_id and l.status = 'active' and f.enabled
              and (f.usage_limit is null or coalesce(u.used, 0) + p_amount <= f.usage_limit)
            order by l.tier, l.slug limit 1;
    end if;
    return jsonb_build_object('feature', p_feature, 'user_id', p_user_id, 'name', coalesce(v.title, ''), 'category', v.category, 'level', v.slug,
        'allowed', v.slug is not null and v.reason is null, 'reason', case when v.slug is null then 'no_level' else v.reason end,
        'used', coalesce(v.used, 0), 'limit', v.usage_limit, 'remaining', case when v.usage_limit is not null then greatest(v.usage_limit - v.used, 0) end, 'period', v.period,
        'resets_at', v.resets_at, 'allowed_by', v_other);
end
$f$;
comment on function vanilla.explain_feature(uuid, uuid, text, bigint) is
    'Whether a user''s level allows so many uses of a feature now, and if not, why, until when, and which level would.';

create or replace function public.check_feature(p_user_id uuid, p_feature text) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
begin
    return vanilla.explain_feature(v_user.tenant_id, v_user.id, p_feature, 1);
end
$f$;
comment on function public.check_feature(uuid, text) is
    'Whether a user may use a feature once more: allowed, reason (no_level, not_in_level, off, limit), used, limit, remaining, period, resets_at, and allowed_by, the lowest level that would allow it. Own, or any of the tenant''s by an admin. Counts nothing.';

-- enable_seqscan: connections keep the plans of their first calls, made while the tables are nearly empty
create or replace function public.consume_feature(p_user_id uuid, p_feature text, p_amount bigint default 1, p_idempotency_key text default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_tenant uuid := vanilla.tenant_for(p_user_id);
    v_now timestamptz := vanilla.clock();
    v_user public.users;
    v_key public.level_feature_keys;
    v_answer jsonb;
begin
    if p_feature is null or length(p_feature) > 63 then
        perform vanilla.refuse('VS400', 'a feature has a name of 1 to 63 characters', '{"param": "feature"}');
    end if;
    if p_amount is null or p_amount < 1 or p_amount > 1000000000000 then
        perform vanilla.refuse('VS400', 'an amount is 1 to 1,000,000,000,000 uses', '{"param": "amount"}');
    end if;
    if v_tenant is null or p_idempotency_key is not null then
        v_user := vanilla.find_user(v_tenant, p_user_id);
        v_tenant := v_user.tenant_id;
    end if;
    if p_idempotency_key is not null then
        perform vanilla.check_key(p_idempotency_key);
        -- whoever sends the same key at this moment waits here, and finds the answer
        insert into public.level_feature_keys (tenant_id, user_id, idempotency_key, feature, amount, created_at)
            values (v_tenant, p_user_id, p_idempotency_key, p_feature, p_amount, v_now)
            on conflict (tenant_id, user_id, idempotency_key) do nothing;
        if not found then
            select * into v_key from public.level_feature_keys k
                where k.tenant_id = v_tenant and k.user_id = p_user_id and k.idempotency_key = p_idempotency_key;
            if v_key.feature is distinct from p_feature or v_key.amount <> p_amount then
                perform vanilla.refuse('VS410', 'the idempotency key was used with another body', '{"param": "idempotency_key"}', 'Use a new key.');
            end if;
            return v_key.answer || '{"replayed": true}';
        end if;
    end if;
    -- One statement: the level's word, the counter and the comparison; of two at the same moment one waits for the other's count.
    -- An erased user's wallet is not active, so that whoever has an active one needs no look: the others are looked up, then counted.
    for v_looked in 0 .. 1 loop
        insert into public.level_feature_usage as u (tenant_id, user_id, feature, period, period_start, resets_at, used, usage_limit, updated_at, limit_reached_at)
        select w.tenant_id, w.user_id, f.feature, p.period, p.period_start, vanilla.feature_period_end(p.period, t.time_zone, p.period_start),
               p_amount, f.usage_limit, v_now, case when p_amount = f.usage_limit then v_now end
            from public.user_token_wallets w
            join public.tenants t on t.tenant_id = w.tenant_id and t.id = w.tenant_id
            join public.level_features f on f.tenant_id = w.tenant_id and f.level_id = w.level_id and f.feature = p_feature
            cross join lateral (select coalesce(f.period, 'monthly') as period,
                vanilla.feature_period_start(coalesce(f.period, 'monthly'), t.time_zone, v_now) as period_start) p
            where w.tenant_id = v_tenant and w.user_id = p_user_id and (w.status = 'active' or v_looked = 1)
              and f.enabled and (f.usage_limit is null or p_amount <= f.usage_limit)
        on conflict (tenant_id, user_id, feature, period, period_start) do update
            set used = u.used + excluded.used, usage_limit = excluded.usage_limit, resets_at = excluded.resets_at, updated_at = excluded.updated_at,
                limit_reached_at = case when u.used + excluded.used = excluded.usage_limit then coalesce(u.limit_reached_at, excluded.updated_at)
                    else u.limit_reached_at end
            where excluded.usage_limit is null or u.used + excluded.used <= excluded.usage_limit
        returning jsonb_build_object('feature', u.feature, 'user_id', u.user_id, 'consumed', p_amount, 'used', u.used, 'limit', u.usage_limit,
                'remaining', u.usage_limit - u.used, 'period', case when u.usage_limit is not null then u.period end,
                'resets_at', case when u.usage_limit is not null then u.resets_at end, 'replayed', false)
            into v_answer;
        exit when v_answer is not null;
        v_user := vanilla.find_user(v_tenant, p_user_id);
    end loop;
    if v_answer is null then
        v_answer := vanilla.explain_feature(v_tenant, p_user_id, p_feature, p_amount);
        if v_answer ->> 'reason' in ('no_level', 'not_in_level', 'off') then
            perform vanilla.refuse('VS403', format('the level does not include %s', p_feature), v_answer,
                case when v_answer -> 'allowed_by' is null or v_answer -> 'allowed_by' = 'null' then 'No level of this tenant includes it.'
                     else format('The level %s includes it.', v_answer #>> '{allowed_by,name}') end);
        end if;
        perform vanilla.refuse('VS429', format('the limit of %s is reached', p_feature), v_answer || jsonb_build_object('needed', p_amount),
            case when v_answer -> 'allowed_by' is null or v_answer -> 'allowed_by' = 'null' then 'An admin of the tenant can raise the level''s limit.'
                 else format('The level %s allows it.', v_answer #>> '{allowed_by,name}') end);
    end if;
    if p_idempotency_key is not null then
        update public.level_feature_keys k set answer = v_answer
            where k.tenant_id = v_tenant and k.user_id = p_user_id and k.idempotency_key = p_idempotency_key;
    end if;
    return v_answer;
end
$f$;
comment on function public.consume_feature(uuid, text, bigint, text) is
    'Counts uses of a feature, all or none: VS429 above the limit of the period, VS403 when the level has it not. With a key it counts once and answers the same again. Own, or any of the tenant''s by an admin.';

-- what an admin sets -----------------------------------------------------------------------------------------------
create or replace function vanilla.own_level(p_tenant_id uuid, p_level_id uuid) returns public.levels
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_level public.levels;
begin
    -- whoever changes a level's terms waits for others who do; users who join it do not
    select * into v_level from public.levels l where l.tenant_id = v_tenant and l.id = p_level_id for no key update;
    if not found then
        perform vanilla.refuse('VS404', 'no such level', jsonb_build_object('level_id', p_level_id));
    end if;
    return v_level;
end
$f$;
comment on function vanilla.own_level(uuid, uuid) is 'A level of the acting tenant, locked against others who change its terms.';

create or replace function public.set_level_feature(p_level_id uuid, p_feature text, p_usage_limit bigint default null, p_period text default null,
    p_enabled boolean default true, p_category text default 'general', p_name text default '', p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_level public.levels := vanilla.own_level(p_tenant_id, p_level_id);
    v_id uuid;
begin
    if (p_usage_limit is null) <> (p_period is null) then
        perform vanilla.refuse('VS400', 'a limit needs a period and a period a limit', '{"param": "period"}',
            'Periods: daily, weekly, monthly, yearly, lifetime. Without both there is no limit.');
    end if;
    begin
        insert into public.level_features as f (tenant_id, level_id, feature, name, category, enabled, usage_limit, period)
            values (v_level.tenant_id, v_level.id, p_feature, p_name, p_category, p_enabled, p_usage_limit, p_period)
            on conflict (tenant_id, level_id, feature) do update set name = excluded.name, category = excluded.category,
                enabled = excluded.enabled, usage_limit = excluded.usage_limit, period = excluded.period
            returning f.id into v_id;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the feature is not valid: ' || sqlerrm, '{"param": "feature"}',
            'A name is 1 to 63 of a-z, 0-9, _, . and -; a limit is not negative; a period is daily, weekly, monthly, yearly or lifetime.');
    end;
    perform vanilla.audit(v_level.tenant_id, 'level.feature', 'level', v_level.id, jsonb_build_object('feature', p_feature, 'enabled', p_enabled,
        'usage_limit', p_usage_limit, 'period', p_period));
    return v_id;
end
$f$;
comment on function public.set_level_feature(uuid, text, bigint, text, boolean, text, text, uuid) is
    'What a level says of a feature: at most p_usage_limit uses a period, any number without one, or off. In force at once; what was used stays counted. Admin or operator.';

create or replace function public.delete_level_feature(p_level_id uuid, p_feature text, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_level public.levels := vanilla.own_level(p_tenant_id, p_level_id);
begin
    delete from public.level_features f where f.tenant_id = v_level.tenant_id and f.level_id = v_level.id and f.feature = p_feature;
    if not found then
        perform vanilla.refuse('VS404', format('the level has no feature %s', p_feature));
    end if;
    perform vanilla.audit(v_level.tenant_id, 'level.feature_removed', 'level', v_level.id, jsonb_build_object('feature', p_feature));
end
$f$;
comment on function public.delete_level_feature(uuid, text, uuid) is 'Takes a feature out of a level. Admin or operator.';

create or replace function public.set_level(p_slug text, p_name text, p_description text default '', p_tier integer default 0,
    p_is_default boolean default false, p_tenant_id uuid default null, p_is_template boolean default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_default uuid;
    v_id uuid;
begin
    if not exists (select from public.tenants where tenant_id = v_tenant and id = v_tenant and status <> 'closed') then
        perform vanilla.refuse('VS404', 'no such tenant');
    end if;
    -- one default: the one before steps down, and two who say so at once do it one after the other
    perform from public.levels l where l.tenant_id = v_tenant order by l.id for no key update;
    select id into v_default from public.levels l where l.tenant_id = v_tenant and l.is_default;
    begin
        if p_is_default then
            update public.levels l set is_default = false where l.tenant_id = v_tenant and l.is_default and l.slug <> p_slug;
        end if;
        insert into public.levels as l (tenant_id, slug, name, description, tier, is_default, is_template)
            values (v_tenant, p_slug, p_name, p_description, p_tier, p_is_default or v_default is null, coalesce(p_is_template, true))
            on conflict (tenant_id, slug) do update set name = excluded.name, description = excluded.description, tier = excluded.tier,
                -- a tenant without a default could register nobody
                is_default = excluded.is_default or l.is_default, status = 'active',
                is_template = coalesce(p_is_template, l.is_template)
            returning l.id into v_id;
        insert into public.level_token_policies (tenant_id, level_id) values (v_tenant, v_id) on conflict (tenant_id, level_id) do nothing;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the level is not valid: ' || sqlerrm, '{"param": "slug"}', 'A slug is 1 to 63 of a-z, 0-9 and hyphens.');
    end;
    perform vanilla.audit(v_tenant, 'level.set', 'level', v_id, jsonb_build_object('slug', p_slug, 'tier', p_tier, 'is_default', p_is_default));
    return v_id;
end
$f$;
comment on function public.set_level(text, text, text, integer, boolean, uuid, boolean) is
    'Makes a level, or changes the one of this slug; a new one grants no tokens until set_level_token_policy. One of the platform that is no template is not copied into new tenants: a plan of tenants only. The tenant keeps one default. Admin or operator. Returns its id.';

create or replace function public.delete_level(p_level_id uuid, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_level public.levels := vanilla.own_level(p_tenant_id, p_level_id);
    v_users bigint;
begin
    if v_level.is_default then
        perform vanilla.refuse('VS409', format('%s is the tenant''s default level', v_level.slug), jsonb_build_object('level', v_level.slug),
            'Make another level the default first.');
    end if;
    if v_level.tenant_id = vanilla.platform() and exists (select from public.tenants t where t.subscription_tier = v_level.slug) then
        perform vanilla.refuse('VS409', format('tenants have the plan %s', v_level.slug), jsonb_build_object('level', v_level.slug),
            'set_subscription_tier moves them to another.');
    end if;
    select count(*) into v_users from public.user_token_wallets w where w.tenant_id = v_level.tenant_id and w.level_id = v_level.id;
    if v_users > 0 then
        perform vanilla.refuse('VS409', format('%s users are on the level %s', v_users, v_level.slug),
            jsonb_build_object('level', v_level.slug, 'users', v_users), 'Move them to another level first.');
    end if;
    if exists (select from public.payment_prices p where p.tenant_id = v_level.tenant_id and p.level_id = v_level.id and p.status = 'active')
       or exists (select from public.payment_subscriptions s where s.tenant_id = v_level.tenant_id and s.level_id = v_level.id
            and s.state not in ('canceled', 'incomplete_expired')) then
        perform vanilla.refuse('VS409', format('the level %s is sold or subscribed to', v_level.slug), jsonb_build_object('level', v_level.slug),
            'Hide its prices (set_payment_price) and end its subscriptions first.');
    end if;
    update public.payment_subscriptions s set level_id = null where s.tenant_id = v_level.tenant_id and s.level_id = v_level.id;
    delete from public.payment_prices p where p.tenant_id = v_level.tenant_id and p.level_id = v_level.id;
    select count(*) into v_users from (
        select from public.user_subscriptions s where s.tenant_id = v_level.tenant_id and s.level_id = v_level.id
        union all
        select from public.level_changes c where c.tenant_id = v_level.tenant_id and c.to_level_id = v_level.id and c.state = 'scheduled') u;
    if v_users > 0 then
        perform vanilla.refuse('VS409', format('%s users pay for the level %s or change to it', v_users, v_level.slug),
            jsonb_build_object('level', v_level.slug, 'users', v_users), 'Let their periods end, or undo the changes.');
    end if;
    delete from public.level_engines e where e.tenant_id = v_level.tenant_id and e.level_id = v_level.id;
    delete from public.engine_assignments a where a.tenant_id = v_level.tenant_id and a.level_id = v_level.id;
    delete from public.level_features f where f.tenant_id = v_level.tenant_id and f.level_id = v_level.id;
    delete from public.level_restrictions r where r.tenant_id = v_level.tenant_id and r.level_id = v_level.id;
    delete from public.level_pricing p where p.tenant_id = v_level.tenant_id and p.level_id = v_level.id;
    delete from public.level_benefits b where b.tenant_id = v_level.tenant_id and b.level_id = v_level.id;
    delete from public.level_upgrade_paths p where p.tenant_id = v_level.tenant_id and v_level.id in (p.from_level_id, p.to_level_id);
    delete from public.level_token_policies p where p.tenant_id = v_level.tenant_id and p.level_id = v_level.id;
    begin
        delete from public.levels l where l.tenant_id = v_level.tenant_id and l.id = v_level.id;
    exception when foreign_key_violation then      -- somebody joined it since the count
        perform vanilla.refuse('VS409', format('a user joined the level %s', v_level.slug), jsonb_build_object('level', v_level.slug));
    end;
    perform vanilla.audit(v_level.tenant_id, 'level.deleted', 'level', v_level.id, jsonb_build_object('slug', v_level.slug));
end
$f$;
comment on function public.delete_level(uuid, uuid) is
    'Deletes a level with its terms; one that users hold, or the default, is refused. Admin or operator.';

-- restrictions -----------------------------------------------------------------------------------------------------
create or replace function vanilla.model_expression(p_patterns text[]) returns text language sql immutable
    return '^(' || (select string_agg(replace(regexp_replace(p.pattern, '([][\\.^$+?(){}|])', '\\\1', 'g'), '*', '.*'), '|' order by p.nr)
        from unnest(p_patterns) with ordinality p (pattern, nr)) || ')$';
comment on function vanilla.model_expression(text[]) is 'The regular expression of patterns of models in which * stands for anything: sessions keep expressions compiled.';

create or replace function vanilla.copied_restrictions(p_level public.levels) returns jsonb language sql stable
    return (select jsonb_object_agg(r.type, case when r.patterns is null then to_jsonb(r.amount) else to_jsonb(vanilla.model_expression(r.patterns)) end)
        from public.level_restrictions r where r.tenant_id = p_level.tenant_id and r.level_id = p_level.id and r.type !~ '^history_days|_per_tenant$');
comment on function vanilla.copied_restrictions(public.levels) is
    'What level_restrictions says of calls, keys, workflows and agents on a level, models as a regular expression; days of history and rules of tenants are left out.';
grant execute on function vanilla.model_expression(text[]), vanilla.copied_restrictions(public.levels) to vanilla_operator;

create or replace function vanilla.copy_restrictions(p_level public.levels) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    update public.levels l set restrictions = vanilla.copied_restrictions(l) where l.tenant_id = p_level.tenant_id and l.id = p_level.id
$f$;
comment on function vanilla.copy_restrictions(public.levels) is 'Copies the restrictions of a level to where a call reads them.';
-- of a database that another version of these files made
select vanilla.copy_restrictions(l) from public.levels l where l.restrictions is distinct from vanilla.copied_restrictions(l);

create or replace function public.set_level_restriction(p_level_id uuid, p_type text, p_amount bigint default null, p_patterns text[] default null,
    p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_level public.levels := vanilla.own_level(p_tenant_id, p_level_id);
    v_id uuid;
begin
    if p_type ~ '_per_tenant$' and v_level.tenant_id <> vanilla.platform() then
        perform vanilla.refuse('VS400', format('%s binds tenants: it is for levels of the platform', p_type), '{"param": "type"}',
            'A tenant has one of them as its plan: set_subscription_tier.');
    end if;
    begin
        insert into public.level_restrictions as r (tenant_id, level_id, type, amount, patterns)
            values (v_level.tenant_id, v_level.id, p_type, p_amount, p_patterns)
            on conflict (tenant_id, level_id, type) do update set amount = excluded.amount, patterns = excluded.patterns
            returning r.id into v_id;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the restriction is not valid: ' || sqlerrm, '{"param": "type"}',
            'allowed_models and denied_models take 1 to 100 patterns; requests_per_minute, tokens_per_minute, requests_per_day, concurrent_executions, '
            'max_output_tokens, max_prompt_tokens, api_keys, workflows and agents a number from 0; history_days one from 1; levels of the platform also users_per_tenant, '
            'tokens_per_tenant and history_days_per_tenant.');
    end;
    perform vanilla.copy_restrictions(v_level);
    perform vanilla.audit(v_level.tenant_id, 'level.restriction', 'level', v_level.id, jsonb_build_object('type', p_type, 'amount', p_amount, 'patterns', p_patterns));
    return v_id;
end
$f$;
comment on function public.set_level_restriction(uuid, text, bigint, text[], uuid) is
    'Restricts a level, for all on it and from the next call on: a number, or patterns of models. Admin or operator.';

create or replace function public.delete_level_restriction(p_level_id uuid, p_type text, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_level public.levels := vanilla.own_level(p_tenant_id, p_level_id);
begin
    delete from public.level_restrictions r where r.tenant_id = v_level.tenant_id and r.level_id = v_level.id and r.type = p_type;
    if not found then
        perform vanilla.refuse('VS404', format('the level has no restriction %s', p_type));
    end if;
    perform vanilla.copy_restrictions(v_level);
    perform vanilla.audit(v_level.tenant_id, 'level.restriction_removed', 'level', v_level.id, jsonb_build_object('type', p_type));
end
$f$;
comment on function public.delete_level_restriction(uuid, text, uuid) is 'Lifts a restriction of a level. Admin or operator.';

create or replace function vanilla.refuse_rate(p_restriction text, p_limit bigint, p_used bigint, p_needed bigint, p_now timestamptz, p_resets_at timestamptz,
    p_window_s integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    perform vanilla.refuse('VS429', format('the level allows %s %s', p_limit, replace(p_restriction, '_', ' ')),
        jsonb_build_object('restriction', p_restriction, 'limit', p_limit, 'used', p_used, 'needed', p_needed, 'resets_at', p_resets_at,
            'window_s', p_window_s, 'retry_after_s', greatest(ceil(extract(epoch from p_resets_at - p_now)), 1)),
        'Try again after the time in Retry-After; an admin can move the user to another level.');
end
$f$;
comment on function vanilla.refuse_rate(text, bigint, bigint, bigint, timestamptz, timestamptz, integer) is
    'Raises limit_reached for a rate: which, how much of it was used, and when its window ends.';

create or replace function vanilla.refuse_window(p_limits jsonb, p_window public.user_rate_windows, p_tokens bigint, p_now timestamptz, p_time_zone text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_window.minute_requests > (p_limits ->> 'requests_per_minute')::bigint then
        perform vanilla.refuse_rate('requests_per_minute', (p_limits ->> 'requests_per_minute')::bigint, p_window.minute_requests - 1, 1, p_now,
            p_window.minute_at + interval '1 minute', 60);
    end if;
    if p_window.minute_tokens > (p_limits ->> 'tokens_per_minute')::bigint then
        perform vanilla.refuse_rate('tokens_per_minute', (p_limits ->> 'tokens_per_minute')::bigint, p_window.minute_tokens - p_tokens, p_tokens, p_now,
            p_window.minute_at + interval '1 minute', 60);
    end if;
    if p_window.day_requests > (p_limits ->> 'requests_per_day')::bigint then
        perform vanilla.refuse_rate('requests_per_day', (p_limits ->> 'requests_per_day')::bigint, p_window.day_requests - 1, 1, p_now,
            vanilla.feature_period_end('daily', p_time_zone, p_window.day), 86400);
    end if;
end
$f$;
comment on function vanilla.refuse_window(jsonb, public.user_rate_windows, bigint, timestamptz, text) is
    'Raises limit_reached when a window, this call counted, is above what the level allows.';

create or replace function vanilla.restrict_call(p_tenant_id uuid, p_user_id uuid, p_time_zone text, p_limits jsonb, p_model text, p_prompt bigint, p_output bigint,
    p_output_named boolean, p_choices integer) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz;
    v_most bigint;
    v_window public.user_rate_windows;
begin
    if p_model ~ (p_limits ->> 'denied_models') or p_model !~ (p_limits ->> 'allowed_models') then
        perform vanilla.refuse('VS403', format('the level does not include the model %s', p_model), jsonb_build_object('restriction',
            case when p_model ~ (p_limits ->> 'denied_models') then 'denied_models' else 'allowed_models' end, 'model', p_model),
            'An admin can move the user to another level.');
    end if;
    v_most := (p_limits ->> 'max_prompt_tokens')::bigint;
    if p_prompt > v_most then
        perform vanilla.refuse('VS400', format('the level allows prompts of %s tokens', v_most), jsonb_build_object('restriction', 'max_prompt_tokens',
            'param', case p_output when 0 then 'input' else 'messages' end, 'limit', v_most, 'needed', p_prompt), 'Shorten the prompt; what is compared is the upper bound that is reserved.');
    end if;
    v_most := (p_limits ->> 'max_output_tokens')::bigint * p_choices;
    if p_output > v_most and p_output_named then
        perform vanilla.refuse('VS400', format('max_tokens is at most %s on this level', v_most / p_choices), jsonb_build_object('restriction', 'max_output_tokens',
            'param', 'max_tokens', 'limit', v_most / p_choices));
    end if;
    -- a window that is full already refuses here, before anything is written that would have to be undone
    if p_limits ?| array['requests_per_minute', 'requests_per_day'] then
        v_now := vanilla.clock();
        select * into v_window from public.user_rate_windows r where r.tenant_id = p_tenant_id and r.user_id = p_user_id;
        if found then
            -- with this call counted; tokens are not known yet
            v_window.minute_requests := case when v_window.minute_at = date_trunc('minute', v_now) then v_window.minute_requests + 1 end;
            v_window.day_requests := case when v_window.day = (v_now at time zone p_time_zone)::date then v_window.day_requests + 1 end;
            v_window.minute_tokens := null;
            perform vanilla.refuse_window(p_limits, v_window, 0, v_now, p_time_zone);
        end if;
    end if;
    return least(p_output, v_most);
end
$f$;
comment on function vanilla.restrict_call(uuid, uuid, text, jsonb, text, bigint, bigint, boolean, integer) is
    'What a level says of a call before anything is reserved: model, sizes, windows that are full. Returns the output limit, clamped when the caller named none.';

create or replace function vanilla.rate_left(p_name text, p_limits jsonb, p_used bigint, p_ends_at timestamptz, p_now timestamptz, p_window_s integer) returns jsonb
language sql stable
    return jsonb_build_object('name', p_name, 'limit', (p_limits ->> p_name)::bigint, 'remaining', (p_limits ->> p_name)::bigint - p_used,
        'reset_s', greatest(ceil(extract(epoch from p_ends_at - p_now)), 0), 'window_s', p_window_s);
comment on function vanilla.rate_left(text, jsonb, bigint, timestamptz, timestamptz, integer) is 'What is left of a rate, as RateLimit headers tell it.';

create or replace function vanilla.count_call(p_tenant_id uuid, p_user_id uuid, p_time_zone text, p_limits jsonb, p_tokens bigint) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_window public.user_rate_windows;
    v_most bigint := (p_limits ->> 'concurrent_executions')::bigint;
    v_running bigint;
    v_minute_end timestamptz;
    v_left jsonb := '[]';
begin
    if v_most is not null then
        select count(*) into v_running from public.user_token_holds h
            where h.tenant_id = p_tenant_id and h.user_id = p_user_id and h.state = 'open' and h.expires_at > v_now and h.call is not null;
        if v_running > v_most then
            perform vanilla.refuse('VS429', format('the level allows %s calls at a time', v_most), jsonb_build_object('restriction', 'concurrent_executions',
                'limit', v_most, 'used', v_running - 1, 'needed', 1, 'resets_at', null, 'retry_after_s', 1), 'Wait until one of them has ended.');
        end if;
    end if;
    if not p_limits ?| array['requests_per_minute', 'tokens_per_minute', 'requests_per_day'] then
        return null;
    end if;
    insert into public.user_rate_windows as r (tenant_id, user_id, minute_at, minute_requests, minute_tokens, day, day_requests)
        values (p_tenant_id, p_user_id, date_trunc('minute', v_now), 1, p_tokens, (v_now at time zone p_time_zone)::date, 1)
        on conflict (tenant_id, user_id) do update set
            -- who read the clock before a neighbour that began the next minute counts there; a clock that leapt ahead and came back does not
            minute_requests = case when r.minute_at >= excluded.minute_at and r.minute_at <= excluded.minute_at + interval '1 minute' then r.minute_requests + 1 else 1 end,
            minute_tokens = case when r.minute_at >= excluded.minute_at and r.minute_at <= excluded.minute_at + interval '1 minute' then r.minute_tokens else 0 end + p_tokens,
            minute_at = case when r.minute_at <= excluded.minute_at + interval '1 minute' then greatest(r.minute_at, excluded.minute_at) else excluded.minute_at end,
            day_requests = case when r.day >= excluded.day and r.day <= excluded.day + 1 then r.day_requests + 1 else 1 end,
            day = case when r.day <= excluded.day + 1 then greatest(r.day, excluded.day) else excluded.day end
        returning r.* into v_window;
    perform vanilla.refuse_window(p_limits, v_window, p_tokens, v_now, p_time_zone);
    v_minute_end := v_window.minute_at + interval '1 minute';
    if p_limits ? 'requests_per_minute' then
        v_left := v_left || vanilla.rate_left('requests_per_minute', p_limits, v_window.minute_requests, v_minute_end, v_now, 60);
    end if;
    if p_limits ? 'tokens_per_minute' then
        v_left := v_left || vanilla.rate_left('tokens_per_minute', p_limits, v_window.minute_tokens, v_minute_end, v_now, 60);
    end if;
    if p_limits ? 'requests_per_day' then
        v_left := v_left || vanilla.rate_left('requests_per_day', p_limits, v_window.day_requests,
            vanilla.feature_period_end('daily', p_time_zone, v_window.day), v_now, 86400);
    end if;
    return v_left;
end
$f$;
comment on function vanilla.count_call(uuid, uuid, text, jsonb, bigint) is
    'Counts a call that has reserved its tokens, under the lock on its wallet; above a rate of the level, or with too many calls under way, it is refused and undone. Answers what is left of each rate.';

create or replace function vanilla.return_rate_tokens(p_tenant_id uuid, p_user_id uuid, p_admitted_at timestamptz, p_tokens bigint) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    update public.user_rate_windows r set minute_tokens = greatest(r.minute_tokens - p_tokens, 0)
        where r.tenant_id = p_tenant_id and r.user_id = p_user_id and r.minute_at = date_trunc('minute', p_admitted_at)
$f$;
comment on function vanilla.return_rate_tokens(uuid, uuid, timestamptz, bigint) is
    'Takes what a call reserved and did not use off the minute in which it was admitted, when that is still the last one.';

-- prices -----------------------------------------------------------------------------------------------------------
create or replace function public.set_level_price(p_level_id uuid, p_cycle text, p_currency text, p_amount bigint, p_trial_days integer default 0,
    p_trial_credits bigint default 0, p_valid_from timestamptz default null, p_valid_until timestamptz default 'infinity',
    p_replace boolean default false, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_level public.levels := vanilla.own_level(p_tenant_id, p_level_id);
    v_from timestamptz := coalesce(p_valid_from, vanilla.clock());
    v_currency text := upper(p_currency);
    v_price public.level_pricing;
    v_id uuid;
begin
    if p_valid_until <= v_from then
        perform vanilla.refuse('VS400', 'a price ends after it begins', '{"param": "valid_until"}');
    end if;
    -- the level is locked: whoever else sets a price of it looks after this one is written
    for v_price in select * from public.level_pricing p
        where p.tenant_id = v_level.tenant_id and p.level_id = v_level.id and p.cycle = p_cycle and p.currency = v_currency
          and p.valid_from < p_valid_until and p.valid_until > v_from
        order by p.valid_from
    loop
        if p_replace and v_price.valid_from < v_from then
            update public.level_pricing p set valid_until = v_from where p.tenant_id = v_price.tenant_id and p.id = v_price.id;
        elsif p_replace and v_price.valid_from = v_from then
            delete from public.level_pricing p where p.tenant_id = v_price.tenant_id and p.id = v_price.id;
        else
            perform vanilla.refuse('VS409', format('another %s price in %s is in force then', p_cycle, v_currency),
                jsonb_build_object('price_id', v_price.id, 'amount', v_price.amount, 'valid_from', v_price.valid_from,
                    'valid_until', nullif(v_price.valid_until, 'infinity')),
                'End that one first, or replace it from a moment after its beginning.');
        end if;
    end loop;
    begin
        insert into public.level_pricing as p (tenant_id, level_id, cycle, currency, amount, trial_days, trial_credits, valid_from, valid_until)
            values (v_level.tenant_id, v_level.id, p_cycle, v_currency, p_amount, p_trial_days, p_trial_credits, v_from, p_valid_until)
            returning p.id into v_id;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the price is not valid: ' || sqlerrm, '{"param": "price"}',
            'A cycle is one_time, monthly, quarterly, yearly or lifetime; a currency a code of ISO 4217 in use; an amount minor units, not negative; a trial at most 3660 days.');
    end;
    perform vanilla.audit(v_level.tenant_id, 'level.price', 'level', v_level.id, jsonb_build_object('cycle', p_cycle, 'currency', v_currency,
        'amount', p_amount, 'valid_from', v_from));
    return v_id;
end
$f$;
comment on function public.set_level_price(uuid, text, text, bigint, integer, bigint, timestamptz, timestamptz, boolean, uuid) is
    'A price of a level from now or a given moment on, in minor units. One that overlaps another of the same cycle and currency is refused, unless it replaces it: then the former ends when this begins. Admin or operator. Returns its id.';

create or replace function public.end_level_price(p_price_id uuid, p_at timestamptz default null, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_at timestamptz := coalesce(p_at, vanilla.clock());
    v_price public.level_pricing;
begin
    select * into v_price from public.level_pricing p where p.tenant_id = v_tenant and p.id = p_price_id for update;
    if not found then
        perform vanilla.refuse('VS404', 'no such price', jsonb_build_object('price_id', p_price_id));
    end if;
    if v_at >= v_price.valid_until then
        perform vanilla.refuse('VS409', 'the price ends before that', jsonb_build_object('valid_until', v_price.valid_until));
    elsif v_at > v_price.valid_from then
        update public.level_pricing p set valid_until = v_at where p.tenant_id = v_tenant and p.id = p_price_id;
    else
        delete from public.level_pricing p where p.tenant_id = v_tenant and p.id = p_price_id;
    end if;
    perform vanilla.audit(v_tenant, 'level.price_ended', 'level', v_price.level_id, jsonb_build_object('cycle', v_price.cycle, 'currency', v_price.currency, 'at', v_at));
end
$f$;
comment on function public.end_level_price(uuid, timestamptz, uuid) is
    'Ends a price now or at a moment; one that has not begun by then is gone. Admin or operator.';

create or replace function public.set_level_benefits(p_level_id uuid, p_benefits jsonb, p_tenant_id uuid default null) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_level public.levels := vanilla.own_level(p_tenant_id, p_level_id);
    v_count integer;
begin
    if jsonb_typeof(p_benefits) is distinct from 'array' or exists (
            select from jsonb_array_elements(p_benefits) b where jsonb_typeof(b.value) <> 'object' or jsonb_typeof(b.value -> 'text') is distinct from 'string'
                or jsonb_typeof(coalesce(b.value -> 'highlighted', 'false')) <> 'boolean') then
        perform vanilla.refuse('VS400', 'benefits are an array of objects', '{"param": "benefits"}', 'Each has a text, and may be highlighted: true.');
    end if;
    delete from public.level_benefits b where b.tenant_id = v_level.tenant_id and b.level_id = v_level.id;
    begin
        insert into public.level_benefits (tenant_id, level_id, position, text, highlighted)
            select v_level.tenant_id, v_level.id, b.n, b.value ->> 'text', coalesce((b.value ->> 'highlighted')::boolean, false)
            from jsonb_array_elements(p_benefits) with ordinality b (value, n);
        get diagnostics v_count = row_count;
    exception when check_violation then
        perform vanilla.refuse('VS400', 'a benefit has 1 to 500 bytes', '{"param": "benefits"}');
    end;
    perform vanilla.audit(v_level.tenant_id, 'level.benefits', 'level', v_level.id, jsonb_build_object('count', v_count));
    return v_count;
end
$f$;
comment on function public.set_level_benefits(uuid, jsonb, uuid) is
    'The benefits of a level, all of them in order: [{"text": ..., "highlighted": true}]. Admin or operator. Returns how many.';

-- changes of level -------------------------------------------------------------------------------------------------
-- docs/design/levels.md says the rules. What a period costs is the sum over the levels of it of the time on each: a change at t
-- gives back the rest of the one and charges the rest of the other. plan_level_change computes, for preview and change alike;
-- apply_level_change writes what was computed; play_subscription does what time brings.
create or replace function vanilla.rest_of(p_amount bigint, p_from timestamptz, p_until timestamptz, p_at timestamptz) returns bigint language sql immutable
    return case when p_at <= p_from or p_until = 'infinity' then p_amount when p_at >= p_until then 0
        else div(p_amount * extract(epoch from p_until - p_at), extract(epoch from p_until - p_from))::bigint end;
comment on function vanilla.rest_of(bigint, timestamptz, timestamptz, timestamptz) is
    'What of an amount for a whole period falls on the rest of it, to the microsecond, rounded down: from the first instant all of it, from the last on nothing.';

create or replace function vanilla.cycle_months(p_cycle text) returns integer
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select case p_cycle when 'monthly' then 1 when 'quarterly' then 3 when 'yearly' then 12 end
$f$;
comment on function vanilla.cycle_months(text) is 'How many months a cycle lasts; null for one that does not come again.';

create or replace function vanilla.cycle_end(p_cycle text, p_anchor timestamptz, p_time_zone text, p_at timestamptz) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_months integer := vanilla.cycle_months(p_cycle);
    v_anchor timestamp := p_anchor at time zone p_time_zone;
    v_at timestamp := p_at at time zone p_time_zone;
    v_n integer := ((extract(year from v_at) - extract(year from v_anchor)) * 12 + extract(month from v_at) - extract(month from v_anchor))::integer / v_months;
begin
    if v_months is null then return 'infinity'; end if;
    -- always counted from the anchor: the 31st comes back after a shorter month
    v_n := greatest(v_n - 1, 1);
    while (v_anchor + make_interval(months => v_n * v_months)) at time zone p_time_zone <= p_at loop v_n := v_n + 1; end loop;
    return (v_anchor + make_interval(months => v_n * v_months)) at time zone p_time_zone;
end
$f$;
comment on function vanilla.cycle_end(text, timestamptz, text, timestamptz) is
    'When the period of a cycle that holds a moment ends, counted from the day it was first paid, in the tenant''s time zone; infinity of lifetime.';

create or replace function vanilla.price_for(p_level public.levels, p_cycle text, p_currency text, p_held public.user_subscriptions, p_own boolean, p_at timestamptz,
    out price_id uuid, out cycle text, out currency text, out amount bigint, out trial_days integer, out trial_credits bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_currency text := upper(coalesce(p_currency, p_held.currency));
    v_all public.level_pricing[];
    v_prices public.level_pricing[];
    v_names text[];
begin
    select array_agg(p) into v_all from public.level_pricing p
        where p.tenant_id = p_level.tenant_id and p.level_id = p_level.id and p.cycle <> 'one_time' and p.valid_from <= p_at and p.valid_until > p_at;
    if v_all is null then
        if p_own then
            perform vanilla.refuse('VS409', format('the level %s has no price', p_level.slug), jsonb_build_object('level', p_level.slug),
                'An admin of the tenant can put you on it.');
        end if;
        amount := 0;
        return;
    end if;
    select array_agg(distinct p.currency order by p.currency) into v_names from unnest(v_all) p;
    if v_currency is null then
        if cardinality(v_names) > 1 and exists (select from unnest(v_all) p where p.amount > 0) then
            perform vanilla.refuse('VS400', format('the level %s has prices in several currencies', p_level.slug),
                jsonb_build_object('param', 'currency', 'currencies', v_names), 'Name one of them.');
        end if;
        v_currency := v_names[1];
    end if;
    select array_agg(p) into v_prices from unnest(v_all) p where p.currency = v_currency;
    if v_prices is null then
        perform vanilla.refuse('VS409', format('the level %s has no price in %s', p_level.slug, v_currency),
            jsonb_build_object('param', 'currency', 'currency', v_currency, 'currencies', v_names), 'A subscription stays in its currency.');
    end if;
    select array_agg(p.cycle order by p.cycle) into v_names from unnest(v_prices) p;
    cycle := coalesce(p_cycle, p_held.cycle);
    if not exists (select from unnest(v_prices) p where p.amount > 0) then
        cycle := coalesce(cycle, v_names[1]);      -- what costs nothing costs nothing by any cycle
        currency := v_currency;
        amount := 0;
        trial_days := 0;
        return;
    end if;
    if p_cycle is null and not cycle = any (v_names) or cycle is null then
        cycle := case when 'monthly' = any (v_names) then 'monthly' when cardinality(v_names) = 1 then v_names[1] end;
    end if;
    if cycle is null or not cycle = any (v_names) then
        perform vanilla.refuse(case when cycle is null then 'VS400' else 'VS409' end, format('the level %s has no %s price in %s', p_level.slug, coalesce(cycle, 'single'), v_currency),
            jsonb_build_object('param', 'cycle', 'cycles', v_names), 'Name one of its cycles.');
    end if;
    select p.id, p.currency, p.amount, p.trial_days, p.trial_credits into price_id, currency, amount, trial_days, trial_credits
        from unnest(v_prices) p where p.cycle = price_for.cycle;
end
$f$;
comment on function vanilla.price_for(public.levels, text, text, public.user_subscriptions, boolean, timestamptz) is
    'The price of a level at a moment for who asks for a cycle and a currency, or keeps those of the running subscription. Refuses what would be a guess.';

create or replace function vanilla.plan_tokens(p_wallet public.user_token_wallets, p_held public.user_subscriptions, p_level_id uuid, p_trial boolean, p_at timestamptz) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_kept jsonb := p_held.allowances -> p_wallet.level_id::text;
    v_from_plan bigint := 0;
    v_from_at timestamptz := p_wallet.period_start;
    v_to jsonb := p_held.allowances -> p_level_id::text;
    v_policy record;
    v_period record;
    v_rest_from bigint := 0;
    v_net bigint;
    v_unused bigint;
begin
    if p_wallet.level_id is not null and p_wallet.next_reset_at > p_at then
        -- the plan as it was when the user came to the level in this period, or as the period opened with it
        if (v_kept ->> 'until')::timestamptz = p_wallet.next_reset_at then
            v_from_plan := (v_kept ->> 'plan')::bigint;
            v_from_at := (v_kept ->> 'from')::timestamptz;
        else
            v_from_plan := coalesce((select g.amount from public.user_token_grants g where g.tenant_id = p_wallet.tenant_id and g.user_id = p_wallet.user_id and g.kind = 'plan'
                and g.level_id = p_wallet.level_id and g.effective_at = p_wallet.period_start and g.expires_at = p_wallet.next_reset_at order by g.id limit 1), 0);
        end if;
        v_rest_from := vanilla.rest_of(v_from_plan, v_from_at, p_wallet.next_reset_at, p_at);
    end if;
    if p_trial and p_wallet.next_reset_at > p_at then      -- a trial has its own tokens; the plan goes on as it was
        v_to := jsonb_build_object('plan', v_from_plan, 'from', v_from_at, 'until', p_wallet.next_reset_at);
    elsif v_to is null or p_level_id = p_wallet.level_id or (v_to ->> 'until')::timestamptz <= p_at then
        select least(coalesce(u.monthly_allocation, p.monthly_allocation), coalesce(u.monthly_cap, p.monthly_cap)) as plan, p.period, p.period_anchor, t.time_zone
            into v_policy from public.level_token_policies p
            join public.tenants t on t.tenant_id = p.tenant_id and t.id = p.tenant_id
            left join public.user_token_policies u on u.tenant_id = p.tenant_id and u.user_id = p_wallet.user_id
            where p.tenant_id = p_wallet.tenant_id and p.level_id = p_level_id;
        if not found then
            perform vanilla.refuse('VS404', 'the level has no token policy', jsonb_build_object('level_id', p_level_id), 'set_level_token_policy gives it one.');
        end if;
        select * into v_period from vanilla.period_at(v_policy.period, v_policy.period_anchor, p_wallet.anchor_at, v_policy.time_zone, p_at);
        v_to := jsonb_build_object('plan', case when p_trial then 0 else v_policy.plan end, 'from', v_period.starts_at, 'until', v_period.ends_at);
    end if;
    v_net := vanilla.rest_of((v_to ->> 'plan')::bigint, (v_to ->> 'from')::timestamptz, (v_to ->> 'until')::timestamptz, p_at) - v_rest_from;
    select coalesce(sum(g.remaining), 0) into v_unused from vanilla.grants_after_burn(p_wallet.tenant_id, p_wallet.user_id) g where g.kind = 'plan';
    return v_to || jsonb_build_object('at', p_at, 'rest_from', v_rest_from, 'rest_to', v_rest_from + v_net, 'granted', greatest(v_net, 0),
        'taken', least(greatest(-v_net, 0), v_unused), 'short', greatest(-v_net - v_unused, 0),
        -- so that a way back within the period finds what the level was
        'kept', case when p_wallet.level_id is not null and p_wallet.next_reset_at > p_at then jsonb_build_object(p_wallet.level_id,
            jsonb_build_object('plan', v_from_plan, 'from', v_from_at, 'until', p_wallet.next_reset_at)) else '{}' end);
end
$f$;
comment on function vanilla.plan_tokens(public.user_token_wallets, public.user_subscriptions, uuid, boolean, timestamptz) is
    'Tokens of a change of level at a moment: the rest of the new plan less the rest of the old one is granted or taken; short is what was to be taken and is spent.';

create or replace function vanilla.plan_level_change(p_user public.users, p_wallet public.user_token_wallets, p_level_id uuid, p_when text, p_cycle text,
    p_currency text, p_trial boolean, p_own boolean, p_look boolean, p_recorded boolean) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_from public.levels;
    v_to public.levels;
    v_held public.user_subscriptions;
    v_path public.level_upgrade_paths;
    v_price record;
    v_zone text := (select t.time_zone from public.tenants t where t.tenant_id = p_wallet.tenant_id and t.id = p_wallet.tenant_id);
    v_at timestamptz;
    v_running boolean;
    v_in_period boolean;
    v_is jsonb;      -- what the level left costs in this period
    v_was jsonb;     -- what the level entered cost, when the user was on it in this period
    v_credit bigint := 0;
    v_fee_credit bigint := 0;
    v_discount integer := 0;
    v_rate bigint;
    v_fee bigint := 0;
    v_since timestamptz;
    v_charge bigint;
    v_fee_charge bigint;
    v_trial boolean;
    v_start timestamptz;
    v_end timestamptz;
    v_tokens jsonb;
begin
    if p_when is null or p_when not in ('now', 'period_end') then
        perform vanilla.refuse('VS400', format('a change is now or at period_end, not %s', coalesce(p_when, 'null')), '{"param": "when"}');
    end if;
    if p_cycle is not null and p_cycle not in ('monthly', 'quarterly', 'yearly', 'lifetime') then
        perform vanilla.refuse('VS400', format('unknown cycle %s', p_cycle), '{"param": "cycle"}', 'monthly, quarterly, yearly or lifetime; a one_time price comes beside it.');
    end if;
    select * into v_to from public.levels l where l.tenant_id = p_user.tenant_id and l.id = p_level_id;
    if not found then
        perform vanilla.refuse('VS404', 'no such level', jsonb_build_object('level_id', p_level_id));
    end if;
    select * into v_from from public.levels l where l.tenant_id = p_user.tenant_id and l.id = p_wallet.level_id;
    if v_from.id = v_to.id then
        perform vanilla.refuse('VS409', format('the user is on the level %s', v_to.slug), jsonb_build_object('level', v_to.slug));
    end if;
    if v_to.status <> 'active' then
        perform vanilla.refuse('VS409', format('the level %s is %s', v_to.slug, v_to.status), jsonb_build_object('level', v_to.slug, 'status', v_to.status));
    end if;
    if not p_recorded and exists (select from public.level_changes c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id and c.state = 'scheduled') then
        perform vanilla.refuse('VS409', 'another change is scheduled', (select jsonb_build_object('change_id', c.id, 'to', c.terms ->> 'to', 'effective_at', c.effective_at)
                from public.level_changes c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id and c.state = 'scheduled'), 'Undo it first.');
    end if;
    select * into v_path from public.level_upgrade_paths p where p.tenant_id = p_user.tenant_id and p.from_level_id = v_from.id and p.to_level_id = v_to.id;
    if not found and not p_recorded then
        perform vanilla.refuse('VS409', format('no path leads from %s to %s', coalesce(v_from.slug, 'no level'), v_to.slug),
            jsonb_build_object('from', v_from.slug, 'to', v_to.slug), 'An admin makes one with set_upgrade_path.');
    end if;
    if p_own and not v_path.self_service then
        if not p_look then
            perform vanilla.refuse('VS403', format('only an admin changes from %s to %s', v_from.slug, v_to.slug), '{"need": "admin"}');
        end if;
        p_own := false;
    end if;
    if not p_recorded and v_path.timing not in ('any', p_when) then
        perform vanilla.refuse('VS409', format('from %s to %s one changes %s', v_from.slug, v_to.slug, case v_path.timing when 'now' then 'at once' else 'at the end of the period' end),
            jsonb_build_object('param', 'when', 'timing', v_path.timing), format('when => ''%s''', v_path.timing));
    end if;

    select * into v_held from public.user_subscriptions s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id;
    v_running := coalesce(v_held.period_end > v_now and v_held.period_end < 'infinity' and not v_held.trial, false);
    v_is := v_held.agreed -> v_held.level_id::text;
    v_at := case when p_when = 'now' then v_now when v_held.period_end < 'infinity' then v_held.period_end else p_wallet.next_reset_at end;
    if v_at is null then
        perform vanilla.refuse('VS409', 'no period runs that could end', '{"param": "when"}', 'when => ''now''');
    end if;
    select * into v_price from vanilla.price_for(v_to, p_cycle, p_currency, v_held, p_own, v_at);
    if v_running and p_when = 'now' then
        v_credit := vanilla.rest_of((v_is ->> 'rate')::bigint, v_held.period_start, v_held.period_end, v_now);
        v_fee_credit := vanilla.rest_of((v_is ->> 'fee')::bigint, (v_is ->> 'since')::timestamptz, v_held.period_end, v_now);
    end if;
    -- while something is paid for, its currency and, until its end, its cycle stay
    if v_running and (v_is ->> 'rate')::bigint + (v_is ->> 'fee')::bigint > 0 then
        if v_price.currency <> v_held.currency then
            perform vanilla.refuse('VS409', format('the period that runs is paid in %s', v_held.currency), jsonb_build_object('param', 'currency', 'currency', v_held.currency));
        end if;
        if p_when = 'now' and v_price.amount > 0 and v_price.cycle <> v_held.cycle and not p_recorded then
            perform vanilla.refuse('VS409', format('the period that runs is %s', v_held.cycle),
                jsonb_build_object('param', 'cycle', 'cycle', v_held.cycle, 'period_end', v_held.period_end), 'Another cycle begins when it ends: when => ''period_end''.');
        end if;
    end if;
    v_in_period := v_running and p_when = 'now' and (v_price.amount = 0 or v_price.cycle = v_held.cycle and v_price.currency = v_held.currency);
    v_was := case when v_in_period then v_held.agreed -> v_to.id::text end;
    v_since := v_at;
    if v_was is not null then      -- a way back within the period costs what it cost: going in a circle gains nothing
        v_rate := (v_was ->> 'rate')::bigint;
        v_fee := (v_was ->> 'fee')::bigint;
        v_since := (v_was ->> 'since')::timestamptz;
    else
        if v_path.discount_percent > 0 and v_price.amount > 0 and not exists (select from public.level_changes c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id
                and c.to_level_id = v_to.id and c.state = 'applied' and c.discount_percent > 0) then
            v_discount := v_path.discount_percent;
        end if;
        v_rate := v_price.amount - div(v_price.amount::numeric * v_discount, 100)::bigint;
        if v_price.cycle = 'lifetime' and exists (select from public.level_invoice_lines i where i.tenant_id = p_user.tenant_id and i.user_id = p_user.id
                and i.level_id = v_to.id and i.cycle = 'lifetime') then
            v_rate := 0;      -- paid once and for all
        end if;
        if v_price.currency is not null and coalesce((select sum(i.amount) from public.level_invoice_lines i where i.tenant_id = p_user.tenant_id and i.user_id = p_user.id
                and i.level_id = v_to.id and i.kind in ('fee', 'fee_credit')), 0) = 0 then
            select p.amount into v_fee from public.level_pricing p where p.tenant_id = p_user.tenant_id and p.level_id = v_to.id
                and p.cycle = 'one_time' and p.currency = v_price.currency and p.valid_from <= v_at and p.valid_until > v_at;
            v_fee := coalesce(v_fee, 0);
        end if;
    end if;
    if v_in_period and v_price.currency is null then      -- a level without a price is still in the period that was paid
        v_price.cycle := v_held.cycle;
        v_price.currency := v_held.currency;
    elsif v_price.amount = 0 and v_fee = 0 and not v_in_period then      -- nothing is paid for, so nothing binds
        v_price.cycle := null;
        v_price.currency := null;
    end if;
    v_trial := p_trial and not p_recorded and p_when = 'now' and not v_running and v_rate > 0 and v_price.trial_days > 0
        and not exists (select from public.level_changes c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id and c.to_level_id = v_to.id and c.trial);
    if v_in_period then
        v_start := v_held.period_start;
        v_end := v_held.period_end;
    else
        v_start := v_at;
        v_end := case when v_trial then (v_at at time zone v_zone + make_interval(days => v_price.trial_days)) at time zone v_zone
            when v_price.amount = 0 then 'infinity' else vanilla.cycle_end(v_price.cycle, v_at, v_zone, v_at) end;
    end if;
    v_charge := case when v_trial then 0 else vanilla.rest_of(v_rate, v_start, v_end, v_at) end;
    v_fee_charge := case when v_trial then 0 else vanilla.rest_of(v_fee, v_since, v_end, v_at) end;
    if p_when = 'now' then
        v_tokens := vanilla.plan_tokens(p_wallet, v_held, v_to.id, v_trial, v_now);
        if p_own and (v_tokens ->> 'short')::bigint > 0 then
            perform vanilla.refuse('VS409', 'tokens of the rest of the period are spent already', jsonb_build_object('param', 'when', 'short', v_tokens -> 'short'),
                'At the end of the period the change is free to happen.');
        end if;
    end if;
    return jsonb_build_object('user_id', p_user.id, 'from', v_from.slug, 'to', v_to.slug, 'from_level_id', v_from.id, 'to_level_id', v_to.id, 'when', p_when, 'effective_at', v_at,
        'cycle', v_price.cycle, 'currency', v_price.currency, 'amount', v_price.amount, 'discount_percent', v_discount, 'rate', v_rate, 'one_time', v_fee, 'since', v_since,
        'in_period', v_in_period, 'period_start', v_start, 'period_end', nullif(v_end, 'infinity'), 'trial', v_trial,
        'trial_credits', case when v_trial then v_price.trial_credits else 0 end, 'self_service', coalesce(v_path.self_service, false),
        'lines', (select coalesce(jsonb_agg(jsonb_build_object('kind', x.kind, 'level', x.level, 'amount', x.amount) order by x.n), '[]')
            from (values (1, 'credit', v_from.slug, -v_credit), (2, 'fee_credit', v_from.slug, -v_fee_credit), (3, 'charge', v_to.slug, v_charge), (4, 'fee', v_to.slug, v_fee_charge)) x (n, kind, level, amount)
            where x.amount <> 0),
        'due', v_charge + v_fee_charge - v_credit - v_fee_credit, 'tokens', v_tokens);
end
$f$;
comment on function vanilla.plan_level_change(public.users, public.user_token_wallets, uuid, text, text, text, boolean, boolean, boolean, boolean) is
    'What a change of level comes to: its lines, its period, its tokens. Writes nothing; preview_level_change tells it, change_user_level does it.';

create or replace function vanilla.write_invoice_line(p_user public.users, p_change_id uuid, p_level_id uuid, p_kind text, p_amount bigint, p_held public.user_subscriptions,
    p_reference text default null) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    insert into public.level_invoice_lines (tenant_id, user_id, change_id, level_id, kind, cycle, currency, amount, rate, period_start, period_end, payment_reference, created_at)
        select p_user.tenant_id, p_user.id, p_change_id, p_level_id, p_kind, p_held.cycle, p_held.currency, p_amount,
            case when p_kind in ('charge', 'renewal', 'billed') then coalesce((p_held.agreed -> p_level_id::text ->> 'rate')::bigint, 0) else 0 end,
            p_held.period_start, p_held.period_end, p_reference, vanilla.clock()
        where p_amount <> 0
$f$;
comment on function vanilla.write_invoice_line(public.users, uuid, uuid, text, bigint, public.user_subscriptions, text) is
    'A line of the period that a subscription is in; none for nothing.';

create or replace function vanilla.carry_plan(p_wallet public.user_token_wallets, p_level_id uuid, p_plan jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_left bigint := (p_plan ->> 'taken')::bigint;
    v_short bigint := (p_plan ->> 'short')::bigint;
    v_part bigint;
    v_grant public.user_token_grants;
    v_entry public.user_token_ledger;
    v_facts jsonb := jsonb_build_object('period_start', p_plan -> 'from', 'next_reset_at', p_plan -> 'until', 'rest_from', p_plan -> 'rest_from', 'rest_to', p_plan -> 'rest_to');
begin
    v_entry.source := 'level_policy';
    v_entry.metadata := v_facts;
    if (p_plan ->> 'granted')::bigint > 0 then
        v_entry.direction := 'credit';
        v_entry.reason := 'rest of the period on the level';
        perform vanilla.grant_tokens(p_wallet, 'plan', (p_plan ->> 'granted')::bigint, (p_plan ->> 'at')::timestamptz, (p_plan ->> 'until')::timestamptz, p_level_id, v_entry);
    else
        for v_grant in select * from public.user_token_grants g
            where g.tenant_id = p_wallet.tenant_id and g.user_id = p_wallet.user_id and g.state = 'active' and g.kind = 'plan' and g.remaining > 0
            order by g.expires_at desc, g.id desc
        loop
            v_part := least(v_left, v_grant.remaining);
            exit when v_part = 0;
            update public.user_token_grants g set remaining = g.remaining - v_part where g.tenant_id = v_grant.tenant_id and g.id = v_grant.id;
            p_wallet.available_tokens := p_wallet.available_tokens - v_part;
            v_entry.id := null;
            v_entry.direction := 'void';
            v_entry.amount := -v_part;
            v_entry.reason := 'rest of the period on the level left';
            v_entry.grant_id := v_grant.id;
            perform vanilla.post_entry(p_wallet, v_entry);
            p_wallet := vanilla.read_wallet(p_wallet.tenant_id, p_wallet.user_id);
            v_left := v_left - v_part;
        end loop;
        if v_short > 0 then      -- what was spent ahead is owed: first from what else there is, then as debt
            v_part := least(v_short, p_wallet.available_tokens);
            p_wallet.available_tokens := p_wallet.available_tokens - v_part;
            p_wallet.burn := p_wallet.burn + v_part;
            p_wallet.borrowed_tokens := p_wallet.borrowed_tokens + v_short - v_part;
            v_entry.id := null;
            v_entry.grant_id := null;
            v_entry.direction := 'adjustment';
            v_entry.amount := -v_short;
            v_entry.reason := 'spent ahead on the level left';
            perform vanilla.post_entry(p_wallet, v_entry);
        end if;
        -- an empty grant of the new level, by which auto_allocate_tokens_for_level knows that its plan of this period was given
        insert into public.user_token_grants (tenant_id, user_id, kind, priority, amount, remaining, effective_at, expires_at, level_id, created_at)
            values (p_wallet.tenant_id, p_wallet.user_id, 'plan', vanilla.grant_priority('plan'), greatest((p_plan ->> 'rest_to')::bigint, 1), 0,
                (p_plan ->> 'at')::timestamptz, (p_plan ->> 'until')::timestamptz, p_level_id, vanilla.clock());
    end if;
    update public.user_token_wallets w set period_start = (p_plan ->> 'from')::timestamptz, next_reset_at = (p_plan ->> 'until')::timestamptz
        where w.tenant_id = p_wallet.tenant_id and w.user_id = p_wallet.user_id;
end
$f$;
comment on function vanilla.carry_plan(public.user_token_wallets, uuid, jsonb) is
    'Tokens of a change of level as plan_tokens computed them, on a wallet whose burn is settled: a grant for the rest of the period, or what of the old plan is taken back. assign_level of 002 calls it.';

create or replace function vanilla.set_trial_allocation(p_user public.users, p_allocation bigint) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    update public.user_token_policies p set trial_allocation = p_allocation where p.tenant_id = p_user.tenant_id and p.user_id = p_user.id;
    insert into public.user_token_policies (tenant_id, user_id, trial_allocation)
        select p_user.tenant_id, p_user.id, p_allocation where p_allocation is not null
        on conflict (tenant_id, user_id) do nothing;
$f$;
comment on function vanilla.set_trial_allocation(public.users, bigint) is 'What a user gets a period while a trial runs; null: what the level says.';

create or replace function vanilla.end_trial(p_user public.users, p_converted boolean) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    update public.level_changes c set trial_ended_at = vanilla.clock(), trial_converted = p_converted
        where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id and c.trial and c.state = 'applied' and c.trial_ended_at is null
$f$;
comment on function vanilla.end_trial(public.users, boolean) is 'Notes with the change that began it that a user''s trial is over, and whether a paid period followed.';

create or replace function vanilla.apply_level_change(p_user public.users, p_wallet public.user_token_wallets, p_terms jsonb, p_change_id uuid,
    p_reference text default null, p_billed bigint default null) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_held public.user_subscriptions;
    v_new public.user_subscriptions;
    v_line_of public.user_subscriptions;
    v_grant public.user_token_grants;
    v_entry public.user_token_ledger;
    v_line jsonb;
    v_result jsonb;
    v_from uuid := (p_terms ->> 'from_level_id')::uuid;
    v_to uuid := (p_terms ->> 'to_level_id')::uuid;
    v_tokens jsonb := p_terms -> 'tokens';
    v_trial boolean := (p_terms ->> 'trial')::boolean;
begin
    select * into v_held from public.user_subscriptions s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id for update;
    v_new.tenant_id := p_user.tenant_id;
    v_new.user_id := p_user.id;
    v_new.level_id := v_to;
    v_new.cycle := p_terms ->> 'cycle';
    v_new.currency := p_terms ->> 'currency';
    v_new.amount := (p_terms ->> 'amount')::bigint;
    v_new.trial := v_trial;
    v_new.period_start := (p_terms ->> 'period_start')::timestamptz;
    v_new.period_end := coalesce((p_terms ->> 'period_end')::timestamptz, 'infinity');
    v_new.anchor_at := case when (p_terms ->> 'in_period')::boolean then v_held.anchor_at else v_new.period_start end;
    v_new.agreed := case when (p_terms ->> 'in_period')::boolean then v_held.agreed else '{}' end
        || jsonb_build_object(v_to, jsonb_build_object('rate', p_terms -> 'rate', 'fee', p_terms -> 'one_time', 'since', p_terms -> 'since'));
    v_new.allowances := coalesce((select jsonb_object_agg(a.key, a.value) from jsonb_each(v_held.allowances) a
            where (a.value ->> 'until')::timestamptz > (v_tokens ->> 'at')::timestamptz), '{}')
        || (v_tokens -> 'kept') || jsonb_build_object(v_to, jsonb_build_object('plan', v_tokens -> 'plan', 'from', v_tokens -> 'from', 'until', v_tokens -> 'until'));
    v_new.billed_by := p_reference;
    -- in the period that is left the credits stand, in the one that begins the charges
    if p_billed is not null then
        v_line_of := v_new;
        if v_new.currency is null then      -- a refund on leaving is in the currency that was paid
            v_line_of := v_held;
            if v_held.currency is null then
                perform vanilla.refuse('VS400', 'neither level has a price, so the amount has no currency', '{"param": "billed_amount"}');
            end if;
        end if;
        perform vanilla.write_invoice_line(p_user, p_change_id, v_to, 'billed', p_billed, v_line_of, p_reference);
    else
        for v_line in select * from jsonb_array_elements(p_terms -> 'lines') loop
            perform vanilla.write_invoice_line(p_user, p_change_id, case when v_line ->> 'kind' in ('credit', 'fee_credit') then v_held.level_id else v_to end,
                v_line ->> 'kind', (v_line ->> 'amount')::bigint, case when v_line ->> 'kind' in ('credit', 'fee_credit') then v_held else v_new end, p_reference);
        end loop;
    end if;
    if v_held.trial_grant_id is not null then      -- the trial is left: what is left of its tokens goes with it
        p_wallet := vanilla.settle_burn(p_wallet);
        select * into v_grant from public.user_token_grants g where g.tenant_id = p_user.tenant_id and g.id = v_held.trial_grant_id and g.state = 'active';
        if found then
            perform vanilla.drop_grant(p_wallet, v_grant, 'voided', 'void', 'left the trial');
        end if;
    end if;
    if v_held.trial then
        perform vanilla.end_trial(p_user, not v_trial and v_new.amount > 0);
    end if;
    if v_trial then
        perform vanilla.set_trial_allocation(p_user, coalesce((select e.monthly_allocation from vanilla.effective_policy(p_user.tenant_id, p_user.id, v_from) e), 0));
    elsif v_held.trial then
        perform vanilla.set_trial_allocation(p_user, null);
    end if;
    v_result := vanilla.assign_level(p_user.tenant_id, p_user.id, v_to, v_tokens);
    if v_trial and (p_terms ->> 'trial_credits')::bigint > 0 then
        v_entry.direction := 'credit';
        v_entry.reason := 'trial';
        v_entry.source := 'level_policy';
        v_entry := vanilla.grant_tokens(vanilla.settle_burn(vanilla.read_wallet(p_user.tenant_id, p_user.id)), 'trial', (p_terms ->> 'trial_credits')::bigint,
            vanilla.clock(), v_new.period_end, v_to, v_entry);
        v_new.trial_grant_id := v_entry.grant_id;
    end if;
    delete from public.user_subscriptions s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id;
    insert into public.user_subscriptions select v_new.*;
    return v_result;
end
$f$;
comment on function vanilla.apply_level_change(public.users, public.user_token_wallets, jsonb, uuid, text, bigint) is
    'Writes what plan_level_change computed: lines, subscription, level and tokens. The wallet is locked by the caller.';

create or replace function vanilla.tell_level_change(p_user public.users, p_terms jsonb, p_result jsonb, p_actor_role text default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_told jsonb := p_result - 'user_id' || jsonb_build_object('from', p_terms -> 'from', 'to', p_terms -> 'to', 'due', p_terms -> 'due', 'currency', p_terms -> 'currency',
        'trial', p_terms -> 'trial', 'change_id', p_terms -> 'change_id');
begin
    perform vanilla.audit(p_user.tenant_id, 'level.changed', 'user', p_user.id, v_told, null, p_actor_role);
    perform vanilla.emit_event(p_user.tenant_id, 'token.level_changed', p_user.id, v_told);
end
$f$;
comment on function vanilla.tell_level_change(public.users, jsonb, jsonb, text) is 'Audit row and event of a change of level that took effect.';

create or replace function vanilla.apply_scheduled(p_user public.users, p_change public.level_changes) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_wallet public.user_token_wallets := vanilla.read_wallet(p_user.tenant_id, p_user.id);
    v_held public.user_subscriptions;
    v_reason text;
    v_terms jsonb := p_change.terms;
begin
    select * into v_held from public.user_subscriptions s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id;
    v_reason := case when v_wallet.level_id is distinct from p_change.from_level_id then 'the user is on another level by now'
        when not exists (select from public.levels l where l.tenant_id = p_user.tenant_id and l.id = p_change.to_level_id and l.status = 'active') then 'the level is not active any more' end;
    if v_reason is null then
        v_terms := v_terms || jsonb_build_object('tokens', vanilla.plan_tokens(v_wallet, v_held, p_change.to_level_id, false, v_now));
        perform vanilla.tell_level_change(p_user, v_terms, vanilla.apply_level_change(p_user, v_wallet, v_terms, p_change.id), 'system');
    else
        perform vanilla.audit(p_user.tenant_id, 'level.change_lapsed', 'user', p_user.id, jsonb_build_object('change_id', p_change.id, 'to', v_terms -> 'to', 'reason', v_reason), null, 'system');
    end if;
    update public.level_changes c set state = case when v_reason is null then 'applied' else 'lapsed' end, reason = v_reason, closed_at = v_now, terms = v_terms
        where c.tenant_id = p_change.tenant_id and c.id = p_change.id;
end
$f$;
comment on function vanilla.apply_scheduled(public.users, public.level_changes) is
    'Carries a scheduled change out with the money it was told and the tokens of now; it lapses when the user is elsewhere or the level is gone.';

create or replace function vanilla.renew_subscription(p_user public.users, p_held public.user_subscriptions) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_wallet public.user_token_wallets := vanilla.read_wallet(p_user.tenant_id, p_user.id);
    v_was_trial boolean := p_held.trial;
    v_agreed jsonb := p_held.agreed -> p_held.level_id::text;
    v_tokens jsonb;
    v_result jsonb;
begin
    p_held.period_start := p_held.period_end;
    p_held.amount := coalesce((select p.amount from public.level_pricing p where p.tenant_id = p_held.tenant_id and p.level_id = p_held.level_id and p.cycle = p_held.cycle
        and p.currency = p_held.currency and p.valid_from <= p_held.period_start and p.valid_until > p_held.period_start limit 1), p_held.amount);
    if not v_was_trial then
        v_agreed := jsonb_build_object('rate', p_held.amount, 'fee', 0);
    else
        p_held.anchor_at := p_held.period_start;
    end if;
    p_held.agreed := jsonb_build_object(p_held.level_id, v_agreed || jsonb_build_object('since', p_held.period_start));
    p_held.period_end := case when p_held.amount = 0 then 'infinity' else vanilla.cycle_end(p_held.cycle, p_held.anchor_at,
        (select t.time_zone from public.tenants t where t.tenant_id = p_held.tenant_id and t.id = p_held.tenant_id), p_held.period_start) end;
    p_held.trial := false;
    p_held.trial_grant_id := null;
    perform vanilla.write_invoice_line(p_user, null, p_held.level_id, case when v_was_trial then 'charge' else 'renewal' end, (v_agreed ->> 'rate')::bigint, p_held);
    perform vanilla.write_invoice_line(p_user, null, p_held.level_id, 'fee', (v_agreed ->> 'fee')::bigint, p_held);
    if v_was_trial then
        perform vanilla.end_trial(p_user, true);
        perform vanilla.set_trial_allocation(p_user, null);
        v_tokens := vanilla.plan_tokens(v_wallet, p_held, p_held.level_id, false, vanilla.clock());
        v_result := vanilla.assign_level(p_user.tenant_id, p_user.id, p_held.level_id, v_tokens);
        p_held.allowances := p_held.allowances || jsonb_build_object(p_held.level_id, jsonb_build_object('plan', v_tokens -> 'plan', 'from', v_tokens -> 'from', 'until', v_tokens -> 'until'));
    end if;
    update public.user_subscriptions s set amount = p_held.amount, trial = false, trial_grant_id = null, anchor_at = p_held.anchor_at, period_start = p_held.period_start,
            period_end = p_held.period_end, agreed = p_held.agreed, allowances = p_held.allowances
        where s.tenant_id = p_held.tenant_id and s.user_id = p_held.user_id;
    perform vanilla.emit_event(p_user.tenant_id, 'level.renewed', p_user.id, jsonb_build_object('level_id', p_held.level_id, 'after_trial', v_was_trial, 'cycle', p_held.cycle,
        'currency', p_held.currency, 'amount', (v_agreed ->> 'rate')::bigint + (v_agreed ->> 'fee')::bigint, 'period_start', p_held.period_start, 'period_end', nullif(p_held.period_end, 'infinity')));
end
$f$;
comment on function vanilla.renew_subscription(public.users, public.user_subscriptions) is
    'The period of a subscription has ended and nothing else was scheduled: the next one begins with its line; after a trial it is the first that is paid, and the plan''s tokens begin.';

create or replace function vanilla.play_subscription(p_user public.users) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_held public.user_subscriptions;
    v_change public.level_changes;
    v_played integer := 0;
begin
    loop      -- in order of time: of several periods that were missed each has its line
        select * into v_held from public.user_subscriptions s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id;
        select * into v_change from public.level_changes c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id and c.state = 'scheduled';
        if v_change.effective_at <= least(v_now, v_held.period_end) then
            perform vanilla.apply_scheduled(p_user, v_change);
        elsif v_held.period_end <= v_now then
            if v_held.level_id = (vanilla.read_wallet(p_user.tenant_id, p_user.id)).level_id then
                perform vanilla.renew_subscription(p_user, v_held);
            else      -- moved by hand since: what was paid for has run out
                perform vanilla.end_trial(p_user, false);
                perform vanilla.set_trial_allocation(p_user, null);
                delete from public.user_subscriptions s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id;
            end if;
        else
            return v_played;
        end if;
        v_played := v_played + 1;
    end loop;
end
$f$;
comment on function vanilla.play_subscription(public.users) is
    'What time has brought to a subscription: its scheduled change, the end of its trial, its renewals. The wallet is locked and folded by the caller. Returns how many.';

create or replace function vanilla.begin_level_change(p_user public.users, p_level_id uuid, p_wait boolean default true) returns public.user_token_wallets
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_wallet public.user_token_wallets;
begin
    -- policies before the wallet, as set_level_token_policy locks: the one asked for, and those that what is due would need
    perform from public.level_token_policies p where p.tenant_id = p_user.tenant_id and p.level_id in (select p_level_id
            union select s.level_id from public.user_subscriptions s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id
            union select c.to_level_id from public.level_changes c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id and c.state = 'scheduled')
        order by p.level_id for share;
    if not p_wait then
        perform from public.user_token_wallets w where w.tenant_id = p_user.tenant_id and w.user_id = p_user.id for update skip locked;
        if not found then return null; end if;
    end if;
    v_wallet := vanilla.lock_wallet(p_user.tenant_id, p_user.id);
    perform vanilla.find_user(p_user.tenant_id, p_user.id);      -- erased while the wallet was waited for: no such user
    if v_wallet.status = 'closed' then v_wallet := vanilla.require_tokens(v_wallet, 0); end if;
    if vanilla.play_subscription(p_user) > 0 then v_wallet := vanilla.read_wallet(p_user.tenant_id, p_user.id); end if;
    return v_wallet;
end
$f$;
comment on function vanilla.begin_level_change(public.users, uuid, boolean) is
    'Locks what a change of level changes and brings it up to date: of two changes of one user the second finds what the first left. Null when it would have to wait and shall not.';

create or replace function public.preview_level_change(p_user_id uuid, p_level_id uuid, p_when text default 'now', p_cycle text default null, p_currency text default null,
    p_trial boolean default true) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
    v_wallet public.user_token_wallets := vanilla.begin_level_change(v_user, p_level_id);
begin
    return vanilla.plan_level_change(v_user, v_wallet, p_level_id, p_when, p_cycle, p_currency, p_trial,
        coalesce(vanilla.claim(5) not in ('admin', 'superadmin', 'service'), false), true, false) || '{"state": "preview"}';
end
$f$;
comment on function public.preview_level_change(uuid, uuid, text, text, text, boolean) is
    'What change_user_level would come to at this moment: lines in minor units, due, period, trial, tokens. Only what is due anyway is brought up to date. Own, or any of the tenant''s by an admin.';

create or replace function public.change_user_level(p_user_id uuid, p_level_id uuid, p_when text default 'now', p_cycle text default null, p_currency text default null,
    p_trial boolean default true, p_idempotency_key text default null, p_payment_reference text default null, p_billed_amount bigint default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
    v_own boolean := coalesce(vanilla.claim(5) not in ('admin', 'superadmin', 'service'), false);
    v_recorded boolean := p_payment_reference is not null;
    v_hash bytea := sha256(convert_to(jsonb_build_array(p_level_id, p_when, p_cycle, p_currency, p_trial, p_payment_reference, p_billed_amount)::text, 'UTF8'));
    v_now timestamptz;
    v_wallet public.user_token_wallets;
    v_change public.level_changes;
    v_terms jsonb;
    v_result jsonb;
begin
    perform vanilla.check_key(p_idempotency_key);
    if v_recorded and v_own then
        perform vanilla.refuse('VS403', 'payments are recorded by an admin or the operator', '{"need": "admin"}');
    end if;
    if p_payment_reference = '' or octet_length(p_payment_reference) > 255 or p_billed_amount is not null and not v_recorded then
        perform vanilla.refuse('VS400', 'a payment has a reference of 1 to 255 bytes', '{"param": "payment_reference"}');
    end if;
    if v_recorded and p_when is distinct from 'now' then
        perform vanilla.refuse('VS400', 'what a provider has billed holds now', '{"param": "when"}');
    end if;
    v_wallet := vanilla.begin_level_change(v_user, p_level_id);
    v_now := vanilla.clock();
    if p_idempotency_key is not null then
        select * into v_change from public.level_changes c where c.tenant_id = v_user.tenant_id and c.user_id = v_user.id and c.idempotency_key = p_idempotency_key;
        if found then
            if v_change.request_hash is distinct from v_hash then
                perform vanilla.refuse('VS410', 'this idempotency key was used with another body', jsonb_build_object('change_id', v_change.id), 'Use a new key for a new operation.');
            end if;
            return v_change.terms || jsonb_build_object('state', v_change.state, 'replayed', true);
        end if;
    end if;
    v_terms := vanilla.plan_level_change(v_user, v_wallet, p_level_id, p_when, p_cycle, p_currency, p_trial, v_own, false, v_recorded);
    v_change.id := vanilla.uuid7();
    v_terms := v_terms || jsonb_build_object('change_id', v_change.id, 'state', case p_when when 'now' then 'applied' else 'scheduled' end, 'replayed', false);
    if p_when = 'now' then
        if v_recorded then
            update public.level_changes c set state = 'lapsed', reason = 'the payment provider reported another', closed_at = v_now
                where c.tenant_id = v_user.tenant_id and c.user_id = v_user.id and c.state = 'scheduled';
        end if;
        v_result := vanilla.apply_level_change(v_user, v_wallet, v_terms, v_change.id, p_payment_reference, p_billed_amount);
        v_terms := v_terms || jsonb_build_object('base_granted', v_result -> 'base_granted', 'available_tokens', (vanilla.read_wallet(v_user.tenant_id, v_user.id)).available_tokens);
    end if;
    insert into public.level_changes (tenant_id, id, user_id, from_level_id, to_level_id, timing, state, requested_at, effective_at, closed_at, trial, discount_percent, terms,
            actor_id, idempotency_key, request_hash)
        values (v_user.tenant_id, v_change.id, v_user.id, v_wallet.level_id, p_level_id, p_when, v_terms ->> 'state', v_now, (v_terms ->> 'effective_at')::timestamptz,
            case when p_when = 'now' then v_now end, (v_terms ->> 'trial')::boolean, (v_terms ->> 'discount_percent')::integer, v_terms, vanilla.claim(4)::uuid, p_idempotency_key,
            case when p_idempotency_key is not null then v_hash end);
    if p_when = 'now' then
        perform vanilla.tell_level_change(v_user, v_terms, v_result);
    else
        perform vanilla.audit(v_user.tenant_id, 'level.change_scheduled', 'user', v_user.id, jsonb_build_object('change_id', v_change.id, 'from', v_terms -> 'from', 'to', v_terms -> 'to',
            'effective_at', v_terms -> 'effective_at'));
        perform vanilla.emit_event(v_user.tenant_id, 'level.change_scheduled', v_user.id, v_terms - 'user_id');
    end if;
    return v_terms;
end
$f$;
comment on function public.change_user_level(uuid, uuid, text, text, text, boolean, text, text, bigint) is
    'Changes a user''s level along a path, now or at period_end: invoice lines and tokens for the rest of the period, a trial where the price has one. Own where the path is self-service, any of the tenant''s by an admin. With p_payment_reference a provider has billed already: no path is asked for, and p_billed_amount is what the line says.';

create or replace function public.undo_level_change(p_user_id uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(p_user_id), p_user_id);
    v_wallet public.user_token_wallets := vanilla.begin_level_change(v_user, null);
    v_change public.level_changes;
begin
    select * into v_change from public.level_changes c where c.tenant_id = v_user.tenant_id and c.user_id = v_user.id and c.state = 'scheduled';
    if not found then
        perform vanilla.refuse('VS409', 'no change is scheduled', coalesce((select jsonb_build_object('last_change', c.id, 'state', c.state, 'to', c.terms ->> 'to')
            from public.level_changes c where c.tenant_id = v_user.tenant_id and c.user_id = v_user.id order by c.requested_at desc limit 1), '{}'),
            'What took effect is changed back with change_user_level.');
    end if;
    if vanilla.claim(5) not in ('admin', 'superadmin', 'service') and v_change.actor_id is distinct from v_user.id then
        perform vanilla.refuse('VS403', 'an admin scheduled this change', '{"need": "admin"}');
    end if;
    update public.level_changes c set state = 'undone', closed_at = vanilla.clock() where c.tenant_id = v_change.tenant_id and c.id = v_change.id;
    perform vanilla.audit(v_user.tenant_id, 'level.change_undone', 'user', v_user.id, jsonb_build_object('change_id', v_change.id, 'to', v_change.terms -> 'to'));
    perform vanilla.emit_event(v_user.tenant_id, 'level.change_undone', v_user.id, jsonb_build_object('change_id', v_change.id, 'to', v_change.terms -> 'to'));
    return v_change.terms || '{"state": "undone"}';
end
$f$;
comment on function public.undo_level_change(uuid) is
    'Calls off the change that is scheduled, as if it had not been asked for; one that took effect is refused. One''s own, or any of the tenant''s by an admin.';

create or replace function public.set_upgrade_path(p_from_level_id uuid, p_to_level_id uuid, p_discount_percent integer default 0, p_timing text default 'any',
    p_self_service boolean default false, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_id uuid;
    v_circle text;
begin
    -- two who make paths at once see each other's, or a circle could close unseen
    perform from public.levels l where l.tenant_id = v_tenant order by l.id for no key update;
    if (select count(*) from public.levels l where l.tenant_id = v_tenant and l.id in (p_from_level_id, p_to_level_id)) < 2 then
        if p_from_level_id = p_to_level_id then
            perform vanilla.refuse('VS400', 'a path leads to another level', '{"param": "to"}');
        end if;
        perform vanilla.refuse('VS404', 'no such level');
    end if;
    begin
        insert into public.level_upgrade_paths as p (tenant_id, from_level_id, to_level_id, discount_percent, timing, self_service)
            values (v_tenant, p_from_level_id, p_to_level_id, p_discount_percent, p_timing, p_self_service)
            on conflict (tenant_id, from_level_id, to_level_id) do update set discount_percent = excluded.discount_percent, timing = excluded.timing,
                self_service = excluded.self_service
            returning p.id into v_id;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the path is not valid: ' || sqlerrm, '{"param": "path"}', 'A discount is 0 to 100 percent; a timing is now, period_end or any.');
    end;
    -- whoever goes round such a circle within a period comes back to the level for less than it costs
    with recursive ways as (
        select p.from_level_id as start, p.to_level_id as here
        from public.level_upgrade_paths p where p.tenant_id = v_tenant and p.timing in ('now', 'any') and p.discount_percent > 0
        union
        select w.start, p.to_level_id
        from ways w join public.level_upgrade_paths p on p.tenant_id = v_tenant and p.from_level_id = w.here and p.timing in ('now', 'any')
        where w.here <> w.start)
    select l.slug into v_circle from ways w join public.levels l on l.tenant_id = v_tenant and l.id = w.start where w.here = w.start order by l.tier, l.slug limit 1;
    if v_circle is not null then
        perform vanilla.refuse('VS409', format('going in a circle from %s and back would pay the user', v_circle), jsonb_build_object('param', 'discount_percent', 'level', v_circle),
            'Take the discount off, or let one path of the circle take effect at the end of a period only: timing => ''period_end''.');
    end if;
    perform vanilla.audit(v_tenant, 'level.path', 'level', p_from_level_id, jsonb_build_object('to_level_id', p_to_level_id, 'discount_percent', p_discount_percent,
        'timing', p_timing, 'self_service', p_self_service));
    return v_id;
end
$f$;
comment on function public.set_upgrade_path(uuid, uuid, integer, text, boolean, uuid) is
    'A path between two levels, or its terms: discount on the first period, when (now, period_end, any), by users themselves or by admins alone. A circle that would pay who goes round it is refused. Admin or operator. Returns its id.';

create or replace function public.delete_upgrade_path(p_from_level_id uuid, p_to_level_id uuid, p_tenant_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
begin
    delete from public.level_upgrade_paths p where p.tenant_id = v_tenant and p.from_level_id = p_from_level_id and p.to_level_id = p_to_level_id;
    if not found then
        perform vanilla.refuse('VS404', 'no such path', jsonb_build_object('from_level_id', p_from_level_id, 'to_level_id', p_to_level_id));
    end if;
    perform vanilla.audit(v_tenant, 'level.path_removed', 'level', p_from_level_id, jsonb_build_object('to_level_id', p_to_level_id));
end
$f$;
comment on function public.delete_upgrade_path(uuid, uuid, uuid) is 'Takes a path away; what was scheduled along it still happens. Admin or operator.';

create or replace function vanilla.end_subscription(p_user public.users, p_reason text, p_converted boolean) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    perform vanilla.end_trial(p_user, p_converted);
    update public.level_changes c set state = 'lapsed', reason = p_reason, closed_at = vanilla.clock()
        where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id and c.state = 'scheduled';
    delete from public.user_subscriptions s where s.tenant_id = p_user.tenant_id and s.user_id = p_user.id;
end
$f$;
comment on function vanilla.end_subscription(public.users, text, boolean) is
    'Nothing renews any more and nothing scheduled happens; lines and changes stay with their amounts. The caller holds the wallet.';

create or replace function vanilla.forget_subscription(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    perform vanilla.end_subscription(p_user, 'erased', false);
    update public.level_changes c set idempotency_key = null, request_hash = null
        where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id and c.idempotency_key is not null;
end
$f$;
comment on function vanilla.forget_subscription(public.users) is
    'Of a person who is erased: nothing renews, nothing scheduled happens; lines and changes stay with their amounts. erase_person of 001 calls it.';

create or replace function vanilla.job_level_changes(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_user public.users;
    v_done integer := 0;
begin
    for v_user in
        select u.* from public.tenants t
        join lateral (
            (select s.user_id from public.user_subscriptions s where s.tenant_id = t.id and s.period_end <= v_now and s.period_end < 'infinity' limit p_limit)
            union
            (select c.user_id from public.level_changes c where c.tenant_id = t.id and c.state = 'scheduled' and c.effective_at <= v_now limit p_limit)) d on true
        join public.users u on u.tenant_id = t.id and u.id = d.user_id and u.status <> 'deleted'
        where t.tenant_id = t.id and t.status = 'active'
        limit p_limit
    loop
        -- whoever has the wallet, another scheduler too, plays it; what is still due then is found at the next tick
        if (vanilla.begin_level_change(v_user, null, false)).user_id is not null then
            v_done := v_done + 1;
        end if;
    end loop;
    return jsonb_build_object('users', v_done, 'more', v_done >= p_limit);
end
$f$;
comment on function vanilla.job_level_changes(integer) is
    'Job: carries out scheduled changes of level, ends of trials and renewals of up to p_limit users, each once and, after downtime, every period of it.';

grant execute on function public.preview_level_change(uuid, uuid, text, text, text, boolean),
    public.change_user_level(uuid, uuid, text, text, text, boolean, text, text, bigint), public.undo_level_change(uuid),
    public.set_upgrade_path(uuid, uuid, integer, text, boolean, uuid), public.delete_upgrade_path(uuid, uuid, uuid)
    to vanilla_app, vanilla_operator;

create or replace function vanilla.public_pricing(p_tenant text) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_tenant public.tenants;
begin
    select * into v_tenant from public.tenants t where t.slug = lower(p_tenant) and t.status = 'active';
    -- in the same words whether there is no such tenant or it keeps its prices to itself
    if not found or vanilla.setting(v_tenant.tenant_id, 'pricing.public') = 'false' then
        perform vanilla.refuse('VS404', 'no such price list');
    end if;
    return jsonb_build_object('tenant', v_tenant.slug, 'name', v_tenant.name, 'levels', coalesce((
        select jsonb_agg(jsonb_build_object('slug', l.slug, 'name', l.name, 'description', l.description, 'tier', l.tier, 'is_default', l.is_default,
            'tokens', jsonb_build_object('base', coalesce(p.base_allocation, 0), 'amount', coalesce(p.monthly_allocation, 0), 'period', coalesce(p.period, 'month')),
            'prices', coalesce((select jsonb_agg(jsonb_build_object('cycle', r.cycle, 'currency', r.currency, 'amount', r.amount,
                    'trial_days', r.trial_days, 'trial_credits', r.trial_credits, 'valid_until', nullif(r.valid_until, 'infinity'))
                    order by r.currency, array_position(array['one_time', 'monthly', 'quarterly', 'yearly', 'lifetime'], r.cycle))
                from public.level_pricing r where r.tenant_id = l.tenant_id and r.level_id = l.id and r.valid_from <= v_now and r.valid_until > v_now), '[]'),
            'benefits', coalesce((select jsonb_agg(jsonb_build_object('text', b.text, 'highlighted', b.highlighted) order by b.position)
                from public.level_benefits b where b.tenant_id = l.tenant_id and b.level_id = l.id), '[]'),
            'features', coalesce((select jsonb_agg(jsonb_build_object('feature', f.feature, 'name', f.name, 'category', f.category, 'enabled', f.enabled,
                    'limit', f.usage_limit, 'period', f.period) order by f.category, f.feature)
                from public.level_features f where f.tenant_id = l.tenant_id and f.level_id = l.id), '[]'))
            order by l.tier, l.slug)
        from public.levels l
        left join public.level_token_policies p on p.tenant_id = l.tenant_id and p.level_id = l.id
        where l.tenant_id = v_tenant.tenant_id and l.status = 'active'), '[]'));
end
$f$;
comment on function vanilla.public_pricing(text) is
    'The price list of an active tenant, for anybody: levels with tokens, the prices in force, benefits and features. The setting pricing.public = false closes it.';

create or replace function vanilla.copy_level_terms(p_tenant_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    insert into public.level_features (tenant_id, level_id, feature, name, category, enabled, usage_limit, period)
        select n.tenant_id, n.id, f.feature, f.name, f.category, f.enabled, f.usage_limit, f.period
        from public.level_features f
        join public.levels l on l.tenant_id = f.tenant_id and l.id = f.level_id
        join public.levels n on n.tenant_id = p_tenant_id and n.slug = l.slug
        where f.tenant_id = vanilla.platform();
    insert into public.level_restrictions (tenant_id, level_id, type, amount, patterns)
        select n.tenant_id, n.id, r.type, r.amount, r.patterns
        from public.level_restrictions r
        join public.levels l on l.tenant_id = r.tenant_id and l.id = r.level_id
        join public.levels n on n.tenant_id = p_tenant_id and n.slug = l.slug
        where r.tenant_id = vanilla.platform() and r.type !~ '_per_tenant$';
    perform vanilla.copy_restrictions(l) from public.levels l where l.tenant_id = p_tenant_id;
    insert into public.level_pricing (tenant_id, level_id, cycle, currency, amount, trial_days, trial_credits, valid_from, valid_until)
        select n.tenant_id, n.id, p.cycle, p.currency, p.amount, p.trial_days, p.trial_credits, p.valid_from, p.valid_until
        from public.level_pricing p
        join public.levels l on l.tenant_id = p.tenant_id and l.id = p.level_id
        join public.levels n on n.tenant_id = p_tenant_id and n.slug = l.slug
        where p.tenant_id = vanilla.platform() and p.valid_until > vanilla.clock();
    insert into public.level_benefits (tenant_id, level_id, position, text, highlighted)
        select n.tenant_id, n.id, b.position, b.text, b.highlighted
        from public.level_benefits b
        join public.levels l on l.tenant_id = b.tenant_id and l.id = b.level_id
        join public.levels n on n.tenant_id = p_tenant_id and n.slug = l.slug
        where b.tenant_id = vanilla.platform();
    insert into public.level_upgrade_paths (tenant_id, from_level_id, to_level_id, discount_percent, timing, self_service)
        select n.tenant_id, n.id, m.id, p.discount_percent, p.timing, p.self_service
        from public.level_upgrade_paths p
        join public.levels l on l.tenant_id = p.tenant_id and l.id = p.from_level_id
        join public.levels k on k.tenant_id = p.tenant_id and k.id = p.to_level_id
        join public.levels n on n.tenant_id = p_tenant_id and n.slug = l.slug
        join public.levels m on m.tenant_id = p_tenant_id and m.slug = k.slug
        where p.tenant_id = vanilla.platform();
end
$f$;
comment on function vanilla.copy_level_terms(uuid) is 'Gives the levels of a new tenant the features, restrictions, prices, benefits and upgrade paths of the platform''s levels of the same slug.';

create or replace function vanilla.job_feature_usage(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_keys integer;
    v_periods integer;
begin
    delete from public.level_feature_keys where ctid = any (array(
        select k.ctid from public.level_feature_keys k
        where k.created_at < v_now - make_interval(days => vanilla.retention_days('feature_keys')) limit p_limit));
    get diagnostics v_keys = row_count;
    delete from public.level_feature_usage where ctid = any (array(
        select u.ctid from public.level_feature_usage u where u.period <> 'lifetime'
          and u.period_start < (v_now - make_interval(days => vanilla.retention_days('feature_usage')))::date limit p_limit));
    get diagnostics v_periods = row_count;
    return jsonb_build_object('keys', v_keys, 'periods', v_periods, 'more', greatest(v_keys, v_periods) >= p_limit);
end
$f$;
comment on function vanilla.job_feature_usage(integer) is
    'Job: forgets up to p_limit idempotency keys and counters of periods longer ago than retention.feature_keys_days and retention.feature_usage_days.';

-- the tenant's own plan --------------------------------------------------------------------------------------------
-- tenants.subscription_tier names a level of the platform; its restrictions that end in _per_tenant bind the tenant.
create or replace function vanilla.tenant_limit(p_tenant_id uuid, p_type text) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select r.amount from public.tenants t
    join public.levels l on l.tenant_id = vanilla.platform() and l.slug = t.subscription_tier
    join public.level_restrictions r on r.tenant_id = l.tenant_id and r.level_id = l.id and r.type = p_type
    where t.tenant_id = p_tenant_id and t.id = p_tenant_id
$f$;
comment on function vanilla.tenant_limit(uuid, text) is 'What the plan of a tenant says of a restriction of tenants; null: nothing.';

create or replace function vanilla.take_user_place(p_tenant_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_most bigint := vanilla.tenant_limit(p_tenant_id, 'users_per_tenant');
    v_users bigint;
begin
    if v_most is null then return; end if;
    -- two who take the last place meet here; the plan is read again, because it may have been changed while this one waited
    perform from public.tenants t where t.tenant_id = p_tenant_id and t.id = p_tenant_id for no key update;
    v_most := vanilla.tenant_limit(p_tenant_id, 'users_per_tenant');
    select count(*) into v_users from (select from public.users u where u.tenant_id = p_tenant_id and u.status <> 'deleted' limit v_most) u;
    if v_users >= v_most then
        perform vanilla.refuse('VS429', format('the plan of the tenant allows %s users', v_most), jsonb_build_object('restriction', 'users_per_tenant',
            'limit', v_most, 'used', v_users, 'resets_at', null), 'A super admin can move the tenant to another plan.');
    end if;
end
$f$;
comment on function vanilla.take_user_place(uuid) is
    'Refuses a user more than the plan of the tenant allows. Until the transaction ends nobody else makes a user of a tenant with such a limit.';

create or replace function vanilla.tenant_month(p_tenant_id uuid, out month date, out from_at timestamptz, out until_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select m.month, m.month::timestamp at time zone t.time_zone, (m.month + interval '1 month') at time zone t.time_zone
    from public.tenants t
    cross join lateral (select date_trunc('month', vanilla.clock() at time zone t.time_zone)::date as month) m
    where t.tenant_id = p_tenant_id and t.id = p_tenant_id
$f$;
comment on function vanilla.tenant_month(uuid) is 'The calendar month of a tenant that holds the present moment.';

-- one statement, one snapshot: what is spent between two sums would be missing
create or replace function vanilla.tenant_tokens(p_tenant_id uuid, out spent bigint, out spent_before bigint)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select w.spent - coalesce(b.spent_before, w.spent - s.spent), coalesce(b.spent_before, w.spent - s.spent)
    from vanilla.tenant_month(p_tenant_id) m
    cross join lateral (select coalesce(sum(w.spent_tokens), 0)::bigint as spent from public.user_token_wallets w where w.tenant_id = p_tenant_id) w
    left join public.tenant_token_months b on b.tenant_id = p_tenant_id and b.month = m.month
    left join lateral (
        select coalesce(-sum(e.amount + e.reserved_amount), 0)::bigint as spent from public.user_token_ledger e
        where b.month is null and e.tenant_id = p_tenant_id and e.created_at >= m.from_at
          and e.direction in ('debit', 'reserve', 'release', 'settle', 'debt')) s on true
$f$;
comment on function vanilla.tenant_tokens(uuid) is
    'Tokens that all users of a tenant spent in its month, and before it: from the ledger once a month, then from the wallets.';

create or replace function vanilla.judge_tenant_tokens(p_tenant_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_most bigint := vanilla.tenant_limit(p_tenant_id, 'tokens_per_tenant');
    v_month date;
    v_before bigint;
    v_until timestamptz;
begin
    if v_most is not null then
        select m.month, t.spent_before, case when t.spent >= v_most then m.until_at end into v_month, v_before, v_until
            from vanilla.tenant_month(p_tenant_id) m, vanilla.tenant_tokens(p_tenant_id) t;
        insert into public.tenant_token_months (tenant_id, month, spent_before) values (p_tenant_id, v_month, v_before)
            on conflict (tenant_id, month) do nothing;
        delete from public.tenant_token_months m where m.tenant_id = p_tenant_id and m.month < v_month;
    end if;
    update public.tenants t set calls_stopped_until = v_until
        where t.tenant_id = p_tenant_id and t.id = p_tenant_id and t.calls_stopped_until is distinct from v_until;
end
$f$;
comment on function vanilla.judge_tenant_tokens(uuid) is
    'Stops the calls of a tenant until its next month when its users have spent the tokens of its plan, and lets them in again when they have not.';

create or replace function vanilla.refuse_tenant_tokens(p_tenant_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_until timestamptz := (vanilla.tenant_month(p_tenant_id)).until_at;
begin
    perform vanilla.refuse('VS429', 'the tenant has used the tokens of its plan', jsonb_build_object('restriction', 'tokens_per_tenant',
        'limit', vanilla.tenant_limit(p_tenant_id, 'tokens_per_tenant'), 'used', (vanilla.tenant_tokens(p_tenant_id)).spent, 'resets_at', v_until,
        'retry_after_s', greatest(ceil(extract(epoch from v_until - vanilla.clock())), 1)),
        'A super admin can move the tenant to another plan.');
end
$f$;
comment on function vanilla.refuse_tenant_tokens(uuid) is 'Raises limit_reached for the tokens of a tenant''s plan: how many, how many were used, when the next month begins.';

create or replace function public.tenant_plan(p_tenant_id uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_month record;
begin
    select * into v_month from vanilla.tenant_month(v_tenant);
    if v_month.month is null then
        perform vanilla.refuse('VS404', 'no such tenant');
    end if;
    return (select jsonb_build_object('tenant_id', t.id, 'tenant', t.slug, 'tier', t.subscription_tier, 'name', l.name,
            'users', jsonb_build_object('used', (select count(*) from public.users u where u.tenant_id = v_tenant and u.status <> 'deleted'),
                'limit', vanilla.tenant_limit(v_tenant, 'users_per_tenant')),
            'tokens', jsonb_build_object('used', (vanilla.tenant_tokens(v_tenant)).spent, 'limit', vanilla.tenant_limit(v_tenant, 'tokens_per_tenant'),
                'resets_at', v_month.until_at, 'stopped', coalesce(t.calls_stopped_until > vanilla.clock(), false)),
            'history_days', vanilla.tenant_limit(v_tenant, 'history_days_per_tenant'))
        from public.tenants t
        left join public.levels l on l.tenant_id = vanilla.platform() and l.slug = t.subscription_tier
        where t.tenant_id = v_tenant and t.id = v_tenant);
end
$f$;
comment on function public.tenant_plan(uuid) is
    'The tenant''s own plan with the platform: users and tokens of this month, used and allowed (null: any number), days of history. Admin or operator.';

create or replace function public.set_subscription_tier(p_tenant_id uuid, p_tier text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_former text;
begin
    if vanilla.claim(3)::uuid <> vanilla.platform() then
        perform vanilla.refuse('VS403', 'only a super admin sets the plan of a tenant', '{"need": "superadmin"}');
    end if;
    perform vanilla.acting_tenant(vanilla.platform());
    if p_tenant_id = vanilla.platform() then
        perform vanilla.refuse('VS409', 'the platform has no plan');
    end if;
    -- who deletes the level holds it while they look for tenants that have it
    perform from public.levels l where l.tenant_id = vanilla.platform() and l.slug = p_tier and l.status = 'active' for share;
    if not found and p_tier is not null then
        perform vanilla.refuse('VS404', format('the platform has no level %s', p_tier), '{"param": "tier"}', 'Plans of tenants are the levels of the tenant platform.');
    end if;
    select t.subscription_tier into v_former from public.tenants t where t.tenant_id = p_tenant_id and t.id = p_tenant_id for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such tenant'); end if;
    update public.tenants t set subscription_tier = p_tier where t.tenant_id = p_tenant_id and t.id = p_tenant_id;
    perform vanilla.judge_tenant_tokens(p_tenant_id);
    perform vanilla.audit(x, 'tenant.subscription_tier', 'tenant', p_tenant_id, jsonb_build_object('from', v_former, 'to', p_tier))
        from unnest(array[vanilla.platform(), p_tenant_id]) x;
    return (select jsonb_build_object('tenant_id', p_tenant_id, 'from', v_former, 'tier', p_tier));
end
$f$;
comment on function public.set_subscription_tier(uuid, text) is
    'Puts a tenant on a plan of the platform, or on none (null: no limits). In force at once; who is there already stays. Super admin or operator.';

create or replace function vanilla.job_tenant_tokens(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_after uuid := (select (s.progress ->> '_after')::uuid from public.schedules s where s.tenant_id = vanilla.platform() and s.name = 'tenant_tokens');
    v_tenant uuid;
    v_tenants integer := 0;
begin
    for v_tenant in
        select t.id from public.tenants t
        where (v_after is null or t.id > v_after) and t.status <> 'closed' and (t.calls_stopped_until is not null or exists (
            select from public.levels l join public.level_restrictions r on r.tenant_id = l.tenant_id and r.level_id = l.id and r.type = 'tokens_per_tenant'
            where l.tenant_id = vanilla.platform() and l.slug = t.subscription_tier))
        order by t.id limit p_limit
    loop
        perform vanilla.judge_tenant_tokens(v_tenant);
        v_tenants := v_tenants + 1;
    end loop;
    return jsonb_build_object('tenants', v_tenants, '_after', v_tenant, 'more', v_tenants >= p_limit);
end
$f$;
comment on function vanilla.job_tenant_tokens(integer) is 'Job: looks at up to p_limit tenants whose plan limits the tokens of a month.';

-- days of history --------------------------------------------------------------------------------------------------
create or replace function vanilla.history_days(p_tenant_id uuid, p_level_id uuid) returns integer
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select least(vanilla.tenant_limit(p_tenant_id, 'history_days_per_tenant'), (
        select r.amount from public.level_restrictions r where r.tenant_id = p_tenant_id and r.level_id = p_level_id and r.type = 'history_days'), 36500)::integer
$f$;
comment on function vanilla.history_days(uuid, uuid) is
    'Days for which executions of users on a level are kept: the least that level and tenant''s plan say, 36,500 without a word of either.';

-- Wallets in the order of their key: each is looked at once a run, and one without old rows costs a look into an index.
create or replace function vanilla.job_history(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v_progress jsonb := (select jsonb_strip_nulls(jsonb_build_object('_tenant', s.progress -> '_tenant', '_user', s.progress -> '_user'))
        from public.schedules s where s.tenant_id = vanilla.platform() and s.name = 'history');
    v_now timestamptz := vanilla.clock();
    v record;
    v_looked integer := 0;
    v_rows integer := 0;
    v_deleted integer;
begin
    if not exists (select from public.level_restrictions r where r.type in ('history_days', 'history_days_per_tenant')) then
        return '{"rows_deleted": 0, "more": false}';
    end if;
    for v in
        select w.tenant_id, w.user_id, vanilla.history_days(w.tenant_id, w.level_id) as days from public.user_token_wallets w
        where (w.tenant_id, w.user_id) > (coalesce((v_progress ->> '_tenant')::uuid, vanilla.platform()),
            coalesce((v_progress ->> '_user')::uuid, vanilla.platform()))
        order by w.tenant_id, w.user_id limit p_limit
    loop
        v_looked := v_looked + 1;
        if v.days < 36500 then
            delete from public.ai_executions e using (
                    select x.created_at, x.id from public.ai_executions x
                    where x.tenant_id = v.tenant_id and x.user_id = v.user_id and x.created_at < v_now - make_interval(days => v.days)
                    limit greatest(p_limit - v_rows, 1)) old
                where e.tenant_id = v.tenant_id and e.created_at = old.created_at and e.id = old.id;
            get diagnostics v_deleted = row_count;
            v_rows := v_rows + v_deleted;
            -- there may be more of this one: it is the first of the next part
            if v_rows >= p_limit then
                return jsonb_build_object('rows_deleted', v_rows, 'more', true) || coalesce(v_progress, '{}');
            end if;
        end if;
        v_progress := jsonb_build_object('_tenant', v.tenant_id, '_user', v.user_id);
    end loop;
    return jsonb_build_object('rows_deleted', v_rows, 'more', v_looked >= p_limit) || coalesce(v_progress, '{}');
end
$f$;
comment on function vanilla.job_history(integer) is
    'Job: deletes up to p_limit executions older than the days of history of their user''s level and tenant.';

-- level changes ----------------------------------------------------------------------------------------------------
create or replace function vanilla.level_is_paid(p_tenant_id uuid, p_level_id uuid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select exists (select from public.level_pricing p where p.tenant_id = p_tenant_id and p.level_id = p_level_id and p.amount > 0
        and p.valid_from <= vanilla.clock() and p.valid_until > vanilla.clock())
$f$;
comment on function vanilla.level_is_paid(uuid, uuid) is 'Whether a level has a price above nothing now.';

-- assign_level of 002 and erase_person of 001 call this under the lock on the wallet, so a user's changes are in order.
create or replace function vanilla.record_level_change(p_tenant_id uuid, p_user_id uuid, p_from uuid, p_to uuid) returns void
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
    insert into public.user_level_changes (tenant_id, user_id, seq, created_at, kind, from_level_id, from_level, to_level_id, to_level)
    select p_tenant_id, p_user_id, coalesce(l.seq, 0) + 1, greatest(vanilla.clock(), l.created_at),
        case when p_from is null then 'joined' when p_to is null then 'left' when n.tier > f.tier then 'upgraded' when n.tier = f.tier then 'moved'
            when vanilla.level_is_paid(p_tenant_id, p_from) and not vanilla.level_is_paid(p_tenant_id, p_to) then 'churned' else 'downgraded' end,
        p_from, f.slug, p_to, n.slug
    from (select) one
    left join public.levels f on f.tenant_id = p_tenant_id and f.id = p_from
    left join public.levels n on n.tenant_id = p_tenant_id and n.id = p_to
    left join lateral (select c.seq, c.created_at from public.user_level_changes c
        where c.tenant_id = p_tenant_id and c.user_id = p_user_id order by c.seq desc limit 1) l on true
    where p_from is distinct from p_to
$f$;
comment on function vanilla.record_level_change(uuid, uuid, uuid, uuid) is
    'Writes that a user''s level changed: null before the first, null after the last. The caller holds the wallet.';

-- payments ---------------------------------------------------------------------------------------------------------
-- What Stripe takes and what a level or a wallet gets for it. The HTTP is Python's (src/vanilla_saas/payments); what an event
-- means is apply_payment_event, of an event whose signature Python has verified. Stripe sends an event more than once and in
-- no order: an event's id counts once, and of an object's states the newest stands (docs/payments.md).
-- Lock order: the customer, then the payment's advisory lock, then the payment, then the wallet.
set local role vanilla_owner;
create table if not exists public.payment_accounts (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    endpoint bytea not null,
    status text not null default 'active',
    secret bytea,
    secret_hint text,
    webhook_secret bytea,
    stripe_account text,
    livemode boolean not null default false,
    grace_days integer not null default 7,
    created_at timestamptz not null default clock_timestamp(),
    constraint payment_accounts_pkey primary key (tenant_id, id),
    constraint payment_accounts_tenant_key unique (tenant_id),
    constraint payment_accounts_endpoint_key unique (endpoint),
    constraint payment_accounts_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint payment_accounts_status_check check (status in ('active', 'disabled')),
    constraint payment_accounts_endpoint_check check (octet_length(endpoint) >= 16),
    constraint payment_accounts_texts_check check (octet_length(secret_hint) <= 40 and octet_length(stripe_account) <= 255),
    constraint payment_accounts_grace_check check (grace_days >= 0 and grace_days <= 90)
);
comment on table public.payment_accounts is
    'A tenant''s Stripe account, or the platform''s for tenants without one; secrets are AES-256-GCM ciphertext that only the runtime decrypts.';
comment on column public.payment_accounts.endpoint is 'Names the account in the address to which Stripe sends its events.';
comment on column public.payment_accounts.stripe_account is 'acct_...: events that name another are refused.';
comment on column public.payment_accounts.grace_days is 'Days that a subscription past due keeps its level.';

create table if not exists public.payment_customers (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    account_tenant_id uuid not null,
    customer_id text,
    payment_method text,
    created_at timestamptz not null default clock_timestamp(),
    constraint payment_customers_pkey primary key (tenant_id, id),
    constraint payment_customers_user_key unique (tenant_id, user_id, account_tenant_id),
    constraint payment_customers_customer_key unique (account_tenant_id, customer_id),
    constraint payment_customers_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint payment_customers_account_check check (account_tenant_id = tenant_id or account_tenant_id = '00000000-0000-0000-0000-000000000000'),
    constraint payment_customers_texts_check check (octet_length(customer_id) <= 255 and octet_length(payment_method) <= 255)
);
comment on table public.payment_customers is 'Who a user is at Stripe, in the tenant''s account or the platform''s. No card data: Stripe has that.';
comment on column public.payment_customers.payment_method is 'Stripe''s id of what may be charged without the user: they agreed to it when they paid.';

create table if not exists public.payment_prices (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    price_id text not null,
    kind text not null,
    name text not null,
    level_id uuid,
    tokens bigint,
    currency text not null,
    amount bigint not null,
    status text not null default 'active',
    created_at timestamptz not null default clock_timestamp(),
    constraint payment_prices_pkey primary key (tenant_id, id),
    constraint payment_prices_price_key unique (tenant_id, price_id),
    constraint payment_prices_tenant_fkey foreign key (tenant_id, tenant_id) references public.tenants (tenant_id, id),
    constraint payment_prices_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint payment_prices_kind_check check (kind in ('level', 'pack')),
    constraint payment_prices_status_check check (status in ('active', 'hidden')),
    constraint payment_prices_price_check check (price_id ~ '^[A-Za-z0-9_]{1,255}$'),
    constraint payment_prices_name_check check (name <> '' and octet_length(name) <= 200),
    constraint payment_prices_currency_check check (currency ~ '^[A-Z]{3}$'),
    constraint payment_prices_amount_check check (amount > 0 and amount <= 99999999),
    constraint payment_prices_worth_check check ((kind = 'pack') = (tokens is not null) and (kind = 'level') = (level_id is not null)
        and coalesce(tokens, 1) >= 1 and coalesce(tokens, 1) <= 1000000000000000)
);
create index if not exists payment_prices_level_idx on public.payment_prices (tenant_id, level_id);
comment on table public.payment_prices is
    'What a price of Stripe''s is worth here: a pack of tokens, paid once, or a level, by subscription. Amounts are minor units (cents).';

create table if not exists public.payment_subscriptions (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    account_tenant_id uuid not null,
    subscription_id text not null,
    state text not null,
    price_id text,
    level_id uuid,
    currency text,
    month_amount numeric,
    current_period_end timestamptz,
    ends_at_period_end boolean not null default false,
    past_due_since timestamptz,
    grace_until timestamptz,
    lapsed_at timestamptz,
    event_at timestamptz not null,
    event_rank integer not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint payment_subscriptions_pkey primary key (tenant_id, id),
    constraint payment_subscriptions_subscription_key unique (account_tenant_id, subscription_id),
    constraint payment_subscriptions_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint payment_subscriptions_level_fkey foreign key (tenant_id, level_id) references public.levels (tenant_id, id),
    constraint payment_subscriptions_account_check check (account_tenant_id = tenant_id or account_tenant_id = '00000000-0000-0000-0000-000000000000'),
    constraint payment_subscriptions_amount_check check (month_amount is null or coalesce(month_amount >= 0 and currency ~ '^[A-Z]{3}$', false)),
    constraint payment_subscriptions_state_check check (state in
        ('incomplete', 'incomplete_expired', 'trialing', 'active', 'past_due', 'unpaid', 'paused', 'canceled'))
);
create index if not exists payment_subscriptions_user_idx on public.payment_subscriptions (tenant_id, user_id);
create index if not exists payment_subscriptions_level_idx on public.payment_subscriptions (tenant_id, level_id);
create index if not exists payment_subscriptions_grace_idx on public.payment_subscriptions (tenant_id, grace_until)
    where grace_until is not null and lapsed_at is null;
comment on table public.payment_subscriptions is 'Subscriptions as Stripe told of them last, and the level that each gives.';
comment on column public.payment_subscriptions.lapsed_at is 'When the grace was over: since then it gives no level, until it is paid.';
comment on column public.payment_subscriptions.event_at is 'When Stripe made the event that says this; an older one changes nothing.';

create table if not exists public.payments (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    account_tenant_id uuid not null,
    cause text not null,
    state text not null,
    price_id text not null,
    tokens bigint not null,
    currency text not null,
    amount bigint not null,
    intent_id text,
    grant_id uuid,
    returned_amount bigint not null default 0,
    reversed_tokens bigint not null default 0,
    error text,
    lease_id uuid,
    lease_until timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    paid_at timestamptz,
    constraint payments_pkey primary key (tenant_id, id),
    constraint payments_intent_key unique (account_tenant_id, intent_id),
    constraint payments_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint payments_account_check check (account_tenant_id = tenant_id or account_tenant_id = '00000000-0000-0000-0000-000000000000'),
    constraint payments_cause_check check (cause in ('checkout', 'auto_top_up')),
    constraint payments_state_check check (state in ('open', 'pending', 'succeeded', 'failed', 'expired')),
    constraint payments_paid_check check ((state = 'succeeded') = (paid_at is not null)),
    constraint payments_amounts_check check (amount > 0 and tokens > 0 and returned_amount >= 0 and returned_amount <= amount
        and reversed_tokens >= 0 and reversed_tokens <= tokens)
);
create index if not exists payments_user_idx on public.payments (tenant_id, user_id, created_at, id);
-- one charge without the user at a time, whoever asks
create unique index if not exists payments_in_flight_idx on public.payments (tenant_id, user_id) where cause = 'auto_top_up' and state = 'pending';
comment on table public.payments is 'Packs of tokens that were to be paid, what Stripe took, and what was given and taken back for it. Amounts are minor units.';
comment on column public.payments.intent_id is 'Stripe''s PaymentIntent, once it is known.';
comment on column public.payments.returned_amount is 'Refunded, or held back in a dispute that is open or lost.';
comment on column public.payments.lease_id is 'Of a charge without the user: set while a server is at it, until lease_until.';

create table if not exists public.payment_reversals (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    reversal_id text not null,
    kind text not null,
    intent_id text not null,
    state text not null,
    amount bigint not null,
    currency text not null,
    event_at timestamptz not null,
    event_rank integer not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint payment_reversals_pkey primary key (tenant_id, id),
    constraint payment_reversals_reversal_key unique (tenant_id, reversal_id),
    constraint payment_reversals_kind_check check (kind in ('refund', 'dispute', 'charge')),
    constraint payment_reversals_state_check check (state in ('counts', 'void')),
    constraint payment_reversals_amount_check check (amount >= 0)
);
create index if not exists payment_reversals_intent_idx on public.payment_reversals (tenant_id, intent_id);
comment on table public.payment_reversals is
    'Refunds and disputes of an account, by payment, and whether each counts: a refund that failed and a dispute that was won do not. Kept though the payment is not known yet.';

create table if not exists public.payment_top_ups (
    tenant_id uuid not null,
    user_id uuid not null,
    price_id uuid not null,
    threshold bigint not null,
    monthly_ceiling bigint not null,
    enabled boolean not null default true,
    paused_reason text,
    told_month date,
    updated_at timestamptz not null default clock_timestamp(),
    constraint payment_top_ups_pkey primary key (tenant_id, user_id),
    constraint payment_top_ups_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint payment_top_ups_price_fkey foreign key (tenant_id, price_id) references public.payment_prices (tenant_id, id),
    constraint payment_top_ups_amounts_check check (threshold > 0 and threshold <= 1000000000000000
        and monthly_ceiling > 0 and monthly_ceiling <= 9999999999)
);
create index if not exists payment_top_ups_price_idx on public.payment_top_ups (tenant_id, price_id);
comment on table public.payment_top_ups is
    'Which pack is bought by itself when less than threshold tokens are left, and the most that this may cost in a calendar month, in minor units.';
comment on column public.payment_top_ups.paused_reason is 'Why nothing is bought until the user says so again.';
comment on column public.payment_top_ups.told_month is 'The month in which it was told that the ceiling is reached.';

create table if not exists public.payment_events (
    tenant_id uuid not null,
    event_id text not null,
    type text not null,
    outcome text not null,
    created_at timestamptz not null,
    received_at timestamptz not null default clock_timestamp(),
    constraint payment_events_pkey primary key (tenant_id, event_id)
);
create index if not exists payment_events_received_idx on public.payment_events (tenant_id, received_at);
comment on table public.payment_events is 'Events that Stripe sent to an account, with what came of each; an id counts once.';

grant select, insert, update, delete on public.payment_accounts, public.payment_customers, public.payment_prices, public.payment_subscriptions,
    public.payments, public.payment_reversals, public.payment_top_ups, public.payment_events to vanilla_definer, vanilla_system;

set local role vanilla_definer;

-- what an admin sets
create or replace function public.set_payment_account(p_account_id uuid, p_endpoint bytea, p_secret bytea default null, p_secret_hint text default null,
    p_webhook_secret bytea default null, p_stripe_account text default null, p_livemode boolean default null, p_grace_days integer default null,
    p_status text default null, p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_id uuid;
begin
    perform from public.tenants where tenant_id = v_tenant and id = v_tenant and status <> 'closed' for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such tenant'); end if;
    begin
        insert into public.payment_accounts as a (tenant_id, id, endpoint, secret, secret_hint, webhook_secret, stripe_account, livemode, grace_days, status)
            values (v_tenant, p_account_id, p_endpoint, p_secret, p_secret_hint, p_webhook_secret, p_stripe_account, coalesce(p_livemode, false),
                coalesce(p_grace_days, 7), coalesce(p_status, 'active'))
            -- a secret is sealed for the row's id, so it is kept with the id it was made for
            on conflict (tenant_id) do update set secret = coalesce(excluded.secret, a.secret), secret_hint = coalesce(excluded.secret_hint, a.secret_hint),
                webhook_secret = coalesce(excluded.webhook_secret, a.webhook_secret), stripe_account = coalesce(excluded.stripe_account, a.stripe_account),
                livemode = coalesce(p_livemode, a.livemode), grace_days = coalesce(p_grace_days, a.grace_days), status = coalesce(p_status, a.status)
                where a.id = excluded.id
            returning a.id into v_id;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the payment account is not valid: ' || sqlerrm, '{"param": "account"}', 'A grace is 0 to 90 days; a status active or disabled.');
    end;
    if v_id is null then
        perform vanilla.refuse('VS409', 'the tenant has a payment account already', '{}', 'Change that one.');
    end if;
    perform vanilla.audit(v_tenant, 'payment.account', 'payment_account', v_id, jsonb_build_object('secret', p_secret is not null,
        'webhook_secret', p_webhook_secret is not null, 'stripe_account', p_stripe_account, 'grace_days', p_grace_days, 'status', p_status));
    return v_id;
end
$f$;
comment on function public.set_payment_account(uuid, bytea, bytea, text, bytea, text, boolean, integer, text, uuid) is
    'Makes the tenant''s payment account, or changes it: what is null stays. Secrets are ciphertext made by the runtime. Admin or operator. Returns its id.';

create or replace function public.set_payment_price(p_price_id text, p_kind text, p_name text, p_currency text, p_amount bigint, p_tokens bigint default null,
    p_level_id uuid default null, p_status text default 'active', p_tenant_id uuid default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_id uuid;
begin
    if p_level_id is not null and not exists (select from public.levels l where l.tenant_id = v_tenant and l.id = p_level_id) then
        perform vanilla.refuse('VS404', 'no such level', jsonb_build_object('level_id', p_level_id));
    end if;
    begin
        insert into public.payment_prices as p (tenant_id, price_id, kind, name, currency, amount, tokens, level_id, status)
            values (v_tenant, p_price_id, p_kind, p_name, upper(p_currency), p_amount, p_tokens, p_level_id, p_status)
            on conflict (tenant_id, price_id) do update set kind = excluded.kind, name = excluded.name, currency = excluded.currency, amount = excluded.amount,
                tokens = excluded.tokens, level_id = excluded.level_id, status = excluded.status
            returning p.id into v_id;
    exception
        when check_violation or not_null_violation then
            perform vanilla.refuse('VS400', 'the price is not valid: ' || sqlerrm, '{"param": "price"}',
                'A pack has tokens, a level a level_id; a currency is three letters; an amount 1 to 99,999,999 minor units; a price id as Stripe shows it (price_...).');
        when foreign_key_violation then
            perform vanilla.refuse('VS404', 'no such tenant');
    end;
    perform vanilla.audit(v_tenant, 'payment.price', 'payment_price', v_id, jsonb_build_object('price_id', p_price_id, 'kind', p_kind, 'amount', p_amount,
        'currency', upper(p_currency), 'tokens', p_tokens, 'level_id', p_level_id, 'status', p_status));
    return v_id;
end
$f$;
comment on function public.set_payment_price(text, text, text, text, bigint, bigint, uuid, text, uuid) is
    'Says what a price of Stripe''s is worth: a pack of tokens or a level; the same price id changes it, hidden takes it off the page. Admin or operator. Returns its id.';

-- what a user asks for
create or replace function vanilla.payment_account_of(p_tenant_id uuid) returns public.payment_accounts
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_account public.payment_accounts;
begin
    select a.* into v_account from public.payment_accounts a
        where a.tenant_id in (p_tenant_id, vanilla.platform()) and a.status = 'active' and a.secret is not null
        order by a.tenant_id = p_tenant_id desc limit 1;
    if not found then
        perform vanilla.refuse('VS409', 'payments are not set up', '{"need": "payment_account"}', 'An admin sets the Stripe account: vanilla-saas payments account.');
    end if;
    return v_account;
end
$f$;
comment on function vanilla.payment_account_of(uuid) is 'The account that takes a tenant''s payments: its own, else the platform''s; VS409 when there is none.';

create or replace function public.begin_payment_portal() returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(coalesce(vanilla.claim(3)::uuid, vanilla.acting_tenant()), vanilla.claim(4)::uuid);
    v_account public.payment_accounts;
    v_customer public.payment_customers;
begin
    perform vanilla.hold_open(v_user);
    v_account := vanilla.payment_account_of(v_user.tenant_id);
    insert into public.payment_customers (tenant_id, user_id, account_tenant_id, created_at)
        values (v_user.tenant_id, v_user.id, v_account.tenant_id, vanilla.clock())
        on conflict (tenant_id, user_id, account_tenant_id) do nothing;
    select * into v_customer from public.payment_customers c
        where c.tenant_id = v_user.tenant_id and c.user_id = v_user.id and c.account_tenant_id = v_account.tenant_id;
    return jsonb_build_object('tenant_id', v_user.tenant_id, 'user_id', v_user.id, 'email', v_user.email, 'endpoint', encode(v_account.endpoint, 'hex'),
        'customer_key', v_customer.id, 'customer_id', v_customer.customer_id);
end
$f$;
comment on function public.begin_payment_portal() is
    'Who the caller is at Stripe, and in which account; customer_id is null until Stripe has made one (bind_payment_customer).';

create or replace function public.begin_checkout(p_price_id uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_who jsonb := public.begin_payment_portal();
    v_tenant uuid := (v_who ->> 'tenant_id')::uuid;
    v_user uuid := (v_who ->> 'user_id')::uuid;
    v_now timestamptz := vanilla.clock();
    v_price public.payment_prices;
    v_payment uuid;
begin
    select * into v_price from public.payment_prices p where p.tenant_id = v_tenant and p.id = p_price_id and p.status = 'active';
    if not found then
        perform vanilla.refuse('VS404', 'no such price', jsonb_build_object('price_id', p_price_id));
    end if;
    -- whoever asks twice at once waits here, so neither the count nor the subscription is missed
    perform from public.payment_customers c where c.tenant_id = v_tenant and c.id = (v_who ->> 'customer_key')::uuid for no key update;
    if v_price.kind = 'level' then
        if exists (select from public.payment_subscriptions s where s.tenant_id = v_tenant and s.user_id = v_user
                and s.state not in ('canceled', 'incomplete_expired', 'incomplete')) then
            perform vanilla.refuse('VS409', 'there is a subscription already', '{"need": "portal"}', 'Change it in the customer portal: two would both be charged.');
        end if;
    else
        if (select count(*) from public.payments p where p.tenant_id = v_tenant and p.user_id = v_user and p.state = 'open'
                and p.created_at > v_now - interval '1 hour') >= 20 then
            perform vanilla.refuse('VS429', 'at most 20 payments are open at a time', jsonb_build_object('limit', 20, 'used', 20, 'retry_after_s', 600), 'Pay one of them, or wait.');
        end if;
        insert into public.payments (tenant_id, user_id, account_tenant_id, cause, state, price_id, tokens, currency, amount, created_at)
            select v_tenant, v_user, c.account_tenant_id, 'checkout', 'open', v_price.price_id, v_price.tokens, v_price.currency, v_price.amount, v_now
            from public.payment_customers c where c.tenant_id = v_tenant and c.id = (v_who ->> 'customer_key')::uuid
            returning id into v_payment;
    end if;
    return v_who || jsonb_build_object('kind', v_price.kind, 'price_id', v_price.price_id, 'payment_id', v_payment);
end
$f$;
comment on function public.begin_checkout(uuid) is
    'Begins paying for a pack or a level by the caller: what Stripe''s checkout is to be made of. A second subscription is refused.';

create or replace function public.set_auto_top_up(p_price_id uuid, p_threshold bigint, p_monthly_ceiling bigint, p_enabled boolean default true,
    p_user_id uuid default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.find_user(vanilla.tenant_for(coalesce(p_user_id, vanilla.claim(4)::uuid)), coalesce(p_user_id, vanilla.claim(4)::uuid));
    v_price public.payment_prices;
begin
    perform vanilla.hold_open(v_user);
    select * into v_price from public.payment_prices p where p.tenant_id = v_user.tenant_id and p.id = p_price_id and p.kind = 'pack' and (p.status = 'active' or not p_enabled);
    if not found then
        perform vanilla.refuse('VS404', 'no such pack', jsonb_build_object('price_id', p_price_id));
    end if;
    if p_enabled and p_monthly_ceiling < v_price.amount then
        perform vanilla.refuse('VS400', 'the ceiling is below the price of one pack', jsonb_build_object('param', 'monthly_ceiling', 'amount', v_price.amount));
    end if;
    if p_enabled and not exists (select from public.payment_customers c where c.tenant_id = v_user.tenant_id and c.user_id = v_user.id
            and c.account_tenant_id = (vanilla.payment_account_of(v_user.tenant_id)).tenant_id and c.payment_method is not null) then
        perform vanilla.refuse('VS409', 'there is nothing to charge', '{"need": "payment_method"}', 'Buy a pack first and agree that its payment method is kept.');
    end if;
    begin
        insert into public.payment_top_ups (tenant_id, user_id, price_id, threshold, monthly_ceiling, enabled, updated_at)
            values (v_user.tenant_id, v_user.id, p_price_id, p_threshold, p_monthly_ceiling, p_enabled, vanilla.clock())
            on conflict (tenant_id, user_id) do update set price_id = excluded.price_id, threshold = excluded.threshold, monthly_ceiling = excluded.monthly_ceiling,
                enabled = excluded.enabled, paused_reason = null, told_month = null, updated_at = excluded.updated_at;
    exception when check_violation or not_null_violation then
        perform vanilla.refuse('VS400', 'the auto top-up is not valid: ' || sqlerrm, '{"param": "threshold"}', 'A threshold is at least one token, a ceiling one minor unit.');
    end;
    perform vanilla.audit(v_user.tenant_id, 'payment.auto_top_up', 'user', v_user.id, jsonb_build_object('price_id', p_price_id, 'threshold', p_threshold,
        'monthly_ceiling', p_monthly_ceiling, 'enabled', p_enabled));
end
$f$;
comment on function public.set_auto_top_up(uuid, bigint, bigint, boolean, uuid) is
    'Buys a pack by itself when less than p_threshold tokens are left, for at most p_monthly_ceiling minor units a calendar month; or stops that. Ends a pause. Own, or any of the tenant''s by an admin.';

-- for the runtime, which proves itself by an account's endpoint or a lease
create or replace function vanilla.payment_account(p_endpoint bytea) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('tenant_id', a.tenant_id, 'id', a.id, 'secret', encode(a.secret, 'base64'), 'webhook_secret', encode(a.webhook_secret, 'base64'))
    from public.payment_accounts a where a.endpoint = p_endpoint and a.status = 'active'
$f$;
comment on function vanilla.payment_account(bytea) is 'The sealed secrets of an active account, for the runtime; null when there is none.';

create or replace function vanilla.bind_payment_customer(p_endpoint bytea, p_customer_key uuid, p_customer_id text) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_account uuid := (select a.tenant_id from public.payment_accounts a where a.endpoint = p_endpoint);
    v_customer text;
begin
    -- of two that had one made at once the first stands; an account of the platform's serves other tenants' users
    update public.payment_customers c set customer_id = coalesce(c.customer_id, p_customer_id)
        where c.account_tenant_id = v_account and c.id = p_customer_key returning c.customer_id into v_customer;
    return v_customer;
end
$f$;
comment on function vanilla.bind_payment_customer(bytea, uuid, text) is 'Keeps the customer that Stripe made for a user, unless there is one. Returns the one that stands.';

create or replace function vanilla.put_on_paid_level(p_tenant_id uuid, p_user_id uuid, p_level_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_result jsonb;
begin
    -- the one place where a payment moves a user: Stripe has billed, so only tokens are decided here
    v_result := vanilla.assign_level(p_tenant_id, p_user_id, p_level_id) - 'user_id';
    perform vanilla.audit(p_tenant_id, 'wallet.level', 'user', p_user_id, v_result || '{"by": "subscription"}', null, 'system');
    perform vanilla.emit_event(p_tenant_id, 'token.level_changed', p_user_id, v_result);
end
$f$;
comment on function vanilla.put_on_paid_level(uuid, uuid, uuid) is 'Puts a user on the level that a subscription gives, or the default one when it gives none any more.';

-- Inlined.
create or replace function vanilla.paid_level(p_subscription public.payment_subscriptions) returns uuid language sql immutable
    return case when (p_subscription).state in ('active', 'trialing') or ((p_subscription).state = 'past_due' and (p_subscription).lapsed_at is null)
        then (p_subscription).level_id end;
comment on function vanilla.paid_level(public.payment_subscriptions) is 'The level that a subscription gives now, or null.';

create or replace function vanilla.follow_subscription(p_before public.payment_subscriptions, p_after public.payment_subscriptions) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_left uuid := vanilla.paid_level(p_before);
    v_held uuid;
    v_level uuid;
begin
    -- a renewal changes nothing: a level that an admin gave meanwhile stays
    if v_left is not distinct from vanilla.paid_level(p_after) then return false; end if;
    select w.level_id into v_held from public.user_token_wallets w
        where w.tenant_id = p_after.tenant_id and w.user_id = p_after.user_id and w.status <> 'closed';
    if not found then return false; end if;
    select l.id into v_level from public.payment_subscriptions s join public.levels l on l.tenant_id = s.tenant_id and l.id = vanilla.paid_level(s)
        where s.tenant_id = p_after.tenant_id and s.user_id = p_after.user_id order by l.tier desc, l.id limit 1;
    if not found then
        -- what a subscription gave is taken back, what an admin gave is not
        if v_held is distinct from v_left then return false; end if;
        select l.id into v_level from public.levels l where l.tenant_id = p_after.tenant_id and l.is_default;
    end if;
    if v_level is null then return false; end if;
    if v_level is distinct from v_held then
        perform vanilla.put_on_paid_level(p_after.tenant_id, p_after.user_id, v_level);
    else
        perform vanilla.lock_wallet(p_after.tenant_id, p_after.user_id);
    end if;
    -- what change_user_level had begun would renew beside it
    perform vanilla.end_subscription(u, 'the payment provider bills', true) from public.users u where u.tenant_id = p_after.tenant_id and u.id = p_after.user_id;
    return v_level is distinct from v_held;
end
$f$;
comment on function vanilla.follow_subscription(public.payment_subscriptions, public.payment_subscriptions) is
    'After a subscription changed what it gives: the highest level that the user''s subscriptions give, else the default. The customer is locked.';

create or replace function vanilla.month_amount(p_item jsonb) returns numeric
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    -- a case: numbers are read of what looks like some only, also while it is planned
    select case when p_item #>> '{price,unit_amount}' ~ '^[0-9]{1,12}$' and coalesce(p_item ->> 'quantity', '1') ~ '^[0-9]{1,9}$'
            and coalesce(p_item #>> '{price,recurring,interval_count}', '1') ~ '^[1-9][0-9]{0,3}$' and p_item #>> '{price,currency}' ~ '^[A-Za-z]{3}$'
        then round((p_item #>> '{price,unit_amount}')::numeric * coalesce(p_item ->> 'quantity', '1')::numeric
            / coalesce(p_item #>> '{price,recurring,interval_count}', '1')::numeric
            * case p_item #>> '{price,recurring,interval}' when 'month' then 1 when 'year' then 1 / 12.0 when 'week' then 52 / 12.0 when 'day' then 365 / 12.0 end, 4)
    end
$f$;
comment on function vanilla.month_amount(jsonb) is
    'What an item of a subscription of Stripe''s costs a month, in minor units; null where its price has no fixed amount or does not recur.';

create or replace function vanilla.apply_subscription(p_account public.payment_accounts, p_type text, p_at timestamptz, p_object jsonb, p_asked boolean) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_rank integer := case split_part(p_type, '.', 3) when 'created' then 0 when 'deleted' then 2 else 1 end;
    v_state text := p_object ->> 'status';
    v_item jsonb := p_object #> '{items,data,0}';
    v_customer public.payment_customers;
    v_before public.payment_subscriptions;
    v_after public.payment_subscriptions;
    v_level uuid;
begin
    select * into v_customer from public.payment_customers c
        where c.account_tenant_id = p_account.tenant_id and c.customer_id = p_object ->> 'customer' for no key update;
    if not found then return 'unknown_customer'; end if;
    if coalesce(v_state, '') not in ('incomplete', 'incomplete_expired', 'trialing', 'active', 'past_due', 'unpaid', 'paused', 'canceled')
       or coalesce(p_object ->> 'id', '') !~ '^[A-Za-z0-9_]{1,255}$' then
        return 'not_understood';
    end if;
    select * into v_before from public.payment_subscriptions s
        where s.account_tenant_id = p_account.tenant_id and s.subscription_id = p_object ->> 'id' for no key update;
    if found then
        if v_before.tenant_id <> v_customer.tenant_id or v_before.user_id <> v_customer.user_id then return 'other_customer'; end if;
        -- what has ended does not come back; of two states the later one stands
        if v_before.state in ('canceled', 'incomplete_expired') or (p_at, v_rank) < (v_before.event_at, v_before.event_rank) then return 'stale'; end if;
        -- Stripe's times are whole seconds: which of two within one came last, only Stripe can say
        if not p_asked and (p_at, v_rank) = (v_before.event_at, v_before.event_rank) and (v_state, v_item #>> '{price,id}') is distinct from (v_before.state, v_before.price_id) then
            return 'unknown_order';
        end if;
    end if;
    select p.level_id into v_level from public.payment_prices p
        where p.tenant_id = v_customer.tenant_id and p.price_id = v_item #>> '{price,id}' and p.kind = 'level';
    v_after := v_before;
    v_after.tenant_id := v_customer.tenant_id;
    v_after.id := coalesce(v_before.id, vanilla.uuid7());
    v_after.user_id := v_customer.user_id;
    v_after.account_tenant_id := p_account.tenant_id;
    v_after.subscription_id := p_object ->> 'id';
    v_after.state := v_state;
    v_after.price_id := left(v_item #>> '{price,id}', 255);
    v_after.level_id := v_level;
    v_after.month_amount := vanilla.month_amount(v_item);
    v_after.currency := case when v_after.month_amount is not null then upper(v_item #>> '{price,currency}') end;
    v_after.current_period_end := to_timestamp(coalesce(v_item ->> 'current_period_end', p_object ->> 'current_period_end')::double precision);
    v_after.ends_at_period_end := coalesce((p_object ->> 'cancel_at_period_end')::boolean, false) or p_object ->> 'cancel_at' is not null;
    if v_state = 'past_due' then
        v_after.past_due_since := coalesce(v_before.past_due_since, p_at);
        v_after.grace_until := coalesce(v_before.grace_until, p_at + make_interval(days => p_account.grace_days));
    else
        v_after.past_due_since := null;
        v_after.grace_until := null;
        v_after.lapsed_at := null;
    end if;
    v_after.event_at := p_at;
    v_after.event_rank := v_rank;
    v_after.created_at := coalesce(v_before.created_at, vanilla.clock());
    delete from public.payment_subscriptions s where s.tenant_id = v_before.tenant_id and s.id = v_before.id;
    insert into public.payment_subscriptions select v_after.*;
    perform vanilla.follow_subscription(v_before, v_after);
    if v_before.state is distinct from v_after.state or v_before.level_id is distinct from v_after.level_id then
        perform vanilla.emit_event(v_after.tenant_id, 'payment.subscription', v_after.user_id, jsonb_build_object('subscription_id', v_after.subscription_id,
            'state', v_after.state, 'former_state', v_before.state, 'level_id', v_after.level_id, 'current_period_end', v_after.current_period_end,
            'grace_until', v_after.grace_until));
    end if;
    return case when v_level is null then 'unknown_price' else 'applied' end;
end
$f$;
comment on function vanilla.apply_subscription(public.payment_accounts, text, timestamptz, jsonb, boolean) is
    'What a subscription is now, unless a later event has said it already, and the level that follows. Returns the outcome.';

create or replace function vanilla.lock_payment(p_account_tenant_id uuid, p_intent_id text) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    select pg_advisory_xact_lock(hashtextextended('vanilla_saas.payment ' || p_account_tenant_id || p_intent_id, 0))
$f$;
comment on function vanilla.lock_payment(uuid, text) is
    'One at a time for a payment of Stripe''s: a refund may arrive before the payment that it refunds, and neither is to miss the other.';

create or replace function vanilla.pause_top_up(p_tenant_id uuid, p_user_id uuid, p_reason text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    update public.payment_top_ups t set paused_reason = left(p_reason, 200), updated_at = vanilla.clock()
        where t.tenant_id = p_tenant_id and t.user_id = p_user_id and t.enabled and t.paused_reason is null;
    if found then
        perform vanilla.emit_event(p_tenant_id, 'payment.top_up_paused', p_user_id, jsonb_build_object('reason', left(p_reason, 200)));
    end if;
end
$f$;
comment on function vanilla.pause_top_up(uuid, uuid, text) is 'Stops buying by itself until the user says so again, and tells why.';

create or replace function vanilla.take_tokens_back(p_wallet public.user_token_wallets, p_grant_id uuid, p_amount bigint, p_reason text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_wallet public.user_token_wallets := vanilla.settle_burn(p_wallet);
    v_entry public.user_token_ledger;
    v_left bigint;
    v_rest bigint;
    v_paid bigint;
begin
    select least(g.remaining, p_amount) into v_left from public.user_token_grants g
        where g.tenant_id = v_wallet.tenant_id and g.id = p_grant_id and g.state = 'active';
    v_left := coalesce(v_left, 0);
    v_rest := p_amount - v_left;
    v_entry.reason := p_reason;
    v_entry.source := 'payment';
    if v_left > 0 then
        -- the grant stays active: what is held of it still finds its place when it comes back
        update public.user_token_grants g set remaining = g.remaining - v_left where g.tenant_id = v_wallet.tenant_id and g.id = p_grant_id;
        v_wallet.available_tokens := v_wallet.available_tokens - v_left;
        v_entry.direction := 'void';
        v_entry.amount := -v_left;
        v_entry.grant_id := p_grant_id;
        perform vanilla.post_entry(v_wallet, v_entry);
        v_wallet := vanilla.read_wallet(v_wallet.tenant_id, v_wallet.user_id);
    end if;
    if v_rest > 0 then
        -- spent already: from what else there is, beyond that as debt, whatever the mode
        v_paid := least(v_rest, v_wallet.available_tokens);
        v_wallet.available_tokens := v_wallet.available_tokens - v_paid;
        v_wallet.burn := v_wallet.burn + v_paid;
        v_wallet.borrowed_tokens := v_wallet.borrowed_tokens + v_rest - v_paid;
        v_entry.direction := 'adjustment';
        v_entry.amount := -v_rest;
        v_entry.grant_id := null;
        perform vanilla.post_entry(v_wallet, v_entry);
    end if;
end
$f$;
comment on function vanilla.take_tokens_back(public.user_token_wallets, uuid, bigint, text) is
    'Takes tokens that were paid back: what is left of their grant, the rest from whatever there is, beyond that as debt. The wallet is locked.';

create or replace function vanilla.balance_payment(p_payment public.payments) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_wallet public.user_token_wallets;
    v_returned bigint;
    v_by_hand bigint;
    v_target bigint;
    v_disputed boolean;
begin
    if p_payment.state <> 'succeeded' or p_payment.intent_id is null then return 'waiting'; end if;
    if exists (select from public.payment_reversals r where r.tenant_id = p_payment.account_tenant_id and r.intent_id = p_payment.intent_id
            and upper(r.currency) <> p_payment.currency) then
        return 'currency_mismatch';
    end if;
    -- a charge tells the sum of its refunds, failed ones perhaps among them; refunds tell of themselves
    select least(p_payment.amount, greatest(coalesce(sum(r.amount) filter (where r.kind = 'refund' and r.state = 'counts'), 0),
                coalesce(max(r.amount) filter (where r.kind = 'charge'), 0) - coalesce(sum(r.amount) filter (where r.kind = 'refund' and r.state = 'void'), 0))
            + coalesce(sum(r.amount) filter (where r.kind = 'dispute' and r.state = 'counts'), 0)),
            coalesce(bool_or(r.kind = 'dispute' and r.state = 'counts'), false)
        into v_returned, v_disputed from public.payment_reversals r
        where r.tenant_id = p_payment.account_tenant_id and r.intent_id = p_payment.intent_id;
    v_wallet := vanilla.lock_wallet(p_payment.tenant_id, p_payment.user_id);
    -- what an admin took of the grant is not taken again
    select coalesce(-sum(l.amount), 0) into v_by_hand from public.user_token_ledger l
        where l.tenant_id = p_payment.tenant_id and l.user_id = p_payment.user_id and l.grant_id = p_payment.grant_id and l.direction = 'void' and l.source <> 'payment';
    -- in proportion, rounded in the user's favour; all of it when all came back
    v_target := greatest(floor(p_payment.tokens::numeric * v_returned / p_payment.amount) - v_by_hand, 0);
    if v_wallet.status = 'closed' or p_payment.grant_id is null then
        v_target := p_payment.reversed_tokens;
    elsif v_target > p_payment.reversed_tokens then
        perform vanilla.take_tokens_back(v_wallet, p_payment.grant_id, v_target - p_payment.reversed_tokens,
            case when v_disputed then 'payment disputed' else 'payment refunded' end);
    elsif v_target < p_payment.reversed_tokens then
        perform vanilla.give_tokens(p_payment.tenant_id, p_payment.user_id, p_payment.reversed_tokens - v_target, 'purchase', null, 'infinity', null,
            'payment stands again', jsonb_build_object('payment_id', p_payment.id), null, 'system');
    end if;
    if v_returned = p_payment.returned_amount and v_target = p_payment.reversed_tokens then return 'unchanged'; end if;
    update public.payments p set returned_amount = v_returned, reversed_tokens = v_target where p.tenant_id = p_payment.tenant_id and p.id = p_payment.id;
    perform vanilla.audit(p_payment.tenant_id, 'payment.reversed', 'payment', p_payment.id, jsonb_build_object('returned_amount', v_returned, 'reversed_tokens', v_target), null, 'system');
    perform vanilla.emit_event(p_payment.tenant_id, 'payment.reversed', p_payment.user_id, jsonb_build_object('payment_id', p_payment.id,
        'amount', p_payment.amount, 'currency', p_payment.currency, 'returned_amount', v_returned, 'tokens', p_payment.tokens, 'reversed_tokens', v_target));
    if v_disputed then perform vanilla.pause_top_up(p_payment.tenant_id, p_payment.user_id, 'a payment is disputed'); end if;
    return 'applied';
end
$f$;
comment on function vanilla.balance_payment(public.payments) is
    'Makes what was taken back of a payment''s tokens what refunds and disputes say: in proportion to the amount. The payment is locked. Returns the outcome.';

create or replace function vanilla.settle_payment(p_payment public.payments, p_intent jsonb) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_grant jsonb;
begin
    if p_payment.state = 'succeeded' then
        return case when p_payment.intent_id = p_intent ->> 'id' then 'unchanged' else 'paid_twice' end;
    end if;
    if upper(p_intent ->> 'currency') is distinct from p_payment.currency then return 'currency_mismatch'; end if;
    if (p_intent ->> 'amount_received')::numeric is distinct from p_payment.amount then return 'amount_mismatch'; end if;
    if not exists (select from public.user_token_wallets w where w.tenant_id = p_payment.tenant_id and w.user_id = p_payment.user_id and w.status = 'closed') then
        v_grant := vanilla.give_tokens(p_payment.tenant_id, p_payment.user_id, p_payment.tokens, 'purchase', null, 'infinity', null, 'tokens bought',
            jsonb_build_object('payment_id', p_payment.id), 'payment:' || p_payment.id, 'system');
    end if;
    update public.payments p set state = 'succeeded', paid_at = vanilla.clock(), intent_id = p_intent ->> 'id', grant_id = (v_grant ->> 'id')::uuid,
            error = null, lease_id = null, lease_until = null
        where p.tenant_id = p_payment.tenant_id and p.id = p_payment.id returning * into p_payment;
    perform vanilla.emit_event(p_payment.tenant_id, 'payment.succeeded', p_payment.user_id, jsonb_build_object('payment_id', p_payment.id, 'cause', p_payment.cause,
        'amount', p_payment.amount, 'currency', p_payment.currency, 'tokens', p_payment.tokens));
    perform vanilla.balance_payment(p_payment);
    return case when v_grant is null then 'wallet_closed' else 'applied' end;
end
$f$;
comment on function vanilla.settle_payment(public.payments, jsonb) is
    'Gives what was paid for, once: Stripe took the amount and the currency of the pack. The payment is locked. Returns the outcome.';

create or replace function vanilla.apply_payment(p_account public.payment_accounts, p_type text, p_object jsonb) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_customer public.payment_customers;
    v_payment public.payments;
begin
    if p_object #>> '{metadata,vanilla_payment}' is null then return 'ignored'; end if;       -- of an invoice, or of something else that the account sells
    select * into v_customer from public.payment_customers c
        where c.account_tenant_id = p_account.tenant_id and c.customer_id = p_object ->> 'customer' for no key update;
    if not found then return 'unknown_customer'; end if;
    if p_type like 'payment_intent.%' then perform vanilla.lock_payment(p_account.tenant_id, p_object ->> 'id'); end if;
    select * into v_payment from public.payments p
        where p.tenant_id = v_customer.tenant_id and p.user_id = v_customer.user_id and p.account_tenant_id = p_account.tenant_id
          and p.id::text = p_object #>> '{metadata,vanilla_payment}' for no key update;
    if not found then return 'unknown_payment'; end if;
    if p_type = 'checkout.session.expired' then
        update public.payments p set state = 'expired' where p.tenant_id = v_payment.tenant_id and p.id = v_payment.id and p.state = 'open';
        return case when found then 'applied' else 'unchanged' end;
    elsif p_type = 'payment_intent.payment_failed' then
        -- at the checkout the user may try another card
        if v_payment.cause <> 'auto_top_up' or v_payment.state <> 'pending' then return 'unchanged'; end if;
        perform vanilla.fail_top_up(v_payment, coalesce(p_object #>> '{last_payment_error,code}', 'payment_failed'));
        return 'applied';
    elsif p_object ->> 'status' is distinct from 'succeeded' then
        return 'not_understood';
    end if;
    if p_object ->> 'setup_future_usage' = 'off_session' and v_payment.state <> 'succeeded' then
        update public.payment_customers c set payment_method = left(p_object ->> 'payment_method', 255)
            where c.tenant_id = v_customer.tenant_id and c.id = v_customer.id and p_object ->> 'payment_method' is not null;
    end if;
    return vanilla.settle_payment(v_payment, p_object);
end
$f$;
comment on function vanilla.apply_payment(public.payment_accounts, text, jsonb) is 'What became of a payment for a pack. Returns the outcome.';

create or replace function vanilla.apply_reversal(p_account public.payment_accounts, p_type text, p_at timestamptz, p_object jsonb) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_kind text := case when p_type like 'charge.dispute.%' then 'dispute' when p_type = 'charge.refunded' then 'charge' else 'refund' end;
    v_intent text := p_object ->> 'payment_intent';
    v_status text := coalesce(p_object ->> 'status', '');
    v_state text;
    v_rank integer;
    v_payment public.payments;
begin
    if v_intent is null then return 'ignored'; end if;       -- a charge that no payment of ours made
    v_state := case when v_kind = 'charge' then 'counts'
        when v_kind = 'dispute' then case when v_status in ('won', 'warning_needs_response', 'warning_under_review', 'warning_closed', 'prevented') then 'void' else 'counts' end
        when v_status in ('failed', 'canceled') then 'void' else 'counts' end;
    v_rank := case when v_status in ('failed', 'canceled', 'won', 'lost', 'warning_closed', 'prevented') then 2 when v_status = 'succeeded' then 1 else 0 end;
    perform vanilla.lock_payment(p_account.tenant_id, v_intent);
    insert into public.payment_reversals as r (tenant_id, reversal_id, kind, intent_id, state, amount, currency, event_at, event_rank)
        values (p_account.tenant_id, p_object ->> 'id', v_kind, v_intent, v_state,
            (p_object ->> case v_kind when 'charge' then 'amount_refunded' else 'amount' end)::bigint, p_object ->> 'currency', p_at, v_rank)
        on conflict (tenant_id, reversal_id) do update set state = excluded.state, amount = excluded.amount, event_at = excluded.event_at, event_rank = excluded.event_rank
            where (excluded.event_at, excluded.event_rank) > (r.event_at, r.event_rank) and r.intent_id = excluded.intent_id and r.kind = excluded.kind;
    if not found then return 'stale'; end if;
    select * into v_payment from public.payments p where p.account_tenant_id = p_account.tenant_id and p.intent_id = v_intent for no key update;
    return case when v_payment.id is null then 'waiting' else vanilla.balance_payment(v_payment) end;
end
$f$;
comment on function vanilla.apply_reversal(public.payment_accounts, text, timestamptz, jsonb) is
    'What a refund or dispute is now, unless a later event has said it already; before its payment it waits. Returns the outcome.';

create or replace function vanilla.apply_payment_event(p_endpoint bytea, p_event jsonb, p_asked boolean default false) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_account public.payment_accounts;
    v_id text := p_event ->> 'id';
    v_type text := p_event ->> 'type';
    v_at timestamptz;
    v_object jsonb := p_event #> '{data,object}';
    v_outcome text;
begin
    select * into v_account from public.payment_accounts a where a.endpoint = p_endpoint and a.status = 'active';
    if not found then perform vanilla.refuse('VS404', 'no such payment account'); end if;
    if coalesce(v_id, '') !~ '^[A-Za-z0-9_]{1,255}$' or coalesce(v_type, '') !~ '^[a-z0-9_.]{1,200}$' or jsonb_typeof(v_object) is distinct from 'object'
       or coalesce(p_event ->> 'created', '') !~ '^[0-9]{1,11}$' then
        perform vanilla.refuse('VS400', 'not an event of Stripe''s', '{"param": "body"}');
    end if;
    v_at := to_timestamp((p_event ->> 'created')::bigint);
    -- ids are forgotten after retention.payment_events_days: nothing as old as that counts again
    if v_at < vanilla.clock() - make_interval(days => vanilla.retention_days('payment_events')) then
        perform vanilla.refuse('VS400', 'the event is too old', jsonb_build_object('param', 'created', 'created', v_at));
    end if;
    -- who sends the same event at this moment waits here
    insert into public.payment_events (tenant_id, event_id, type, outcome, created_at, received_at)
        values (v_account.tenant_id, v_id, v_type, 'begun', v_at, vanilla.clock()) on conflict (tenant_id, event_id) do nothing;
    if not found then
        select e.outcome into v_outcome from public.payment_events e where e.tenant_id = v_account.tenant_id and e.event_id = v_id for no key update;
        -- what was not known here may be when Stripe sends it again
        if v_outcome not like 'unknown%' then
            return jsonb_build_object('event_id', v_id, 'outcome', v_outcome, 'replayed', true);
        end if;
    end if;
    begin
        v_outcome := case
            when p_event ->> 'account' is distinct from v_account.stripe_account and p_event ->> 'account' is not null then 'other_account'
            when coalesce(p_event -> 'livemode' = 'true', false) <> v_account.livemode then 'other_mode'
            when v_type like 'customer.subscription.%' then vanilla.apply_subscription(v_account, v_type, v_at, v_object, p_asked)
            when v_type in ('payment_intent.succeeded', 'payment_intent.payment_failed', 'checkout.session.expired') then vanilla.apply_payment(v_account, v_type, v_object)
            when v_type like 'refund.%' or v_type in ('charge.refunded', 'charge.refund.updated') or v_type like 'charge.dispute.%'
                then vanilla.apply_reversal(v_account, v_type, v_at, v_object)
            else 'ignored' end;
    exception when data_exception or check_violation or not_null_violation then
        v_outcome := 'not_understood';       -- and nothing of it is written
    end;
    update public.payment_events e set outcome = v_outcome where e.tenant_id = v_account.tenant_id and e.event_id = v_id;
    return jsonb_build_object('event_id', v_id, 'outcome', v_outcome, 'replayed', false);
end
$f$;
comment on function vanilla.apply_payment_event(bytea, jsonb, boolean) is
    'What an event of Stripe''s means, whose signature the runtime has verified: once by its id, in any order. Returns the outcome; what is not understood changes nothing. p_asked: its object is what Stripe answered when asked, after unknown_order.';

-- auto top-up
create or replace function vanilla.fail_top_up(p_payment public.payments, p_reason text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    update public.payments p set state = 'failed', error = left(p_reason, 200), lease_id = null, lease_until = null
        where p.tenant_id = p_payment.tenant_id and p.id = p_payment.id;
    perform vanilla.pause_top_up(p_payment.tenant_id, p_payment.user_id, p_reason);
end
$f$;
comment on function vanilla.fail_top_up(public.payments, text) is 'A charge without the user failed: nothing more is charged until they say so.';

create or replace function vanilla.claim_top_ups(p_limit integer default 20, p_lease interval default '2 min') returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_claimed jsonb := '[]';
    v record;
    v_payment public.payments;
    v_spent bigint;
    v_month timestamptz;
begin
    -- whose server died, or got no answer: the same id is the same charge to Stripe, for as long as it keeps keys
    for v_payment in select p.* from public.payments p
        where p.cause = 'auto_top_up' and p.state = 'pending' and p.intent_id is null and p.lease_until <= v_now limit p_limit for no key update skip locked
    loop
        if v_payment.created_at < v_now - interval '20 h' then
            perform vanilla.fail_top_up(v_payment, 'no answer from Stripe');
            continue;
        end if;
        update public.payments p set lease_id = gen_random_uuid(), lease_until = v_now + p_lease
            where p.tenant_id = v_payment.tenant_id and p.id = v_payment.id returning * into v_payment;
        v_claimed := v_claimed || vanilla.top_up_json(v_payment);
    end loop;
    for v in select t.*, p.price_id as stripe_price, p.tokens, p.currency, p.amount, n.time_zone
        from public.payment_top_ups t
        join public.payment_prices p on p.tenant_id = t.tenant_id and p.id = t.price_id and p.status = 'active' and p.kind = 'pack'
        join public.user_token_wallets w on w.tenant_id = t.tenant_id and w.user_id = t.user_id and w.status = 'active'
        join public.tenants n on n.tenant_id = t.tenant_id and n.id = t.tenant_id and n.status = 'active'
        where t.enabled and t.paused_reason is null and w.available_tokens + w.reserved_tokens < t.threshold
          and not exists (select from public.payments q where q.tenant_id = t.tenant_id and q.user_id = t.user_id and q.cause = 'auto_top_up' and q.state = 'pending')
        for update of t skip locked
    loop
        exit when jsonb_array_length(v_claimed) >= p_limit;
        -- as it is now: another's claim may have ended, and paid, since the list was made
        continue when (select w.available_tokens + w.reserved_tokens >= v.threshold from public.user_token_wallets w where w.tenant_id = v.tenant_id and w.user_id = v.user_id);
        v_month := date_trunc('month', v_now at time zone v.time_zone) at time zone v.time_zone;
        -- the setting is locked: whoever else claims for this user comes later and counts this one
        select coalesce(sum(q.amount), 0) into v_spent from public.payments q
            where q.tenant_id = v.tenant_id and q.user_id = v.user_id and q.cause = 'auto_top_up' and q.state in ('pending', 'succeeded') and q.created_at >= v_month;
        if v_spent + v.amount > v.monthly_ceiling then
            update public.payment_top_ups t set told_month = v_month::date where t.tenant_id = v.tenant_id and t.user_id = v.user_id and t.told_month is distinct from v_month::date;
            if found then
                perform vanilla.emit_event(v.tenant_id, 'payment.top_up_ceiling', v.user_id, jsonb_build_object('spent', v_spent, 'amount', v.amount,
                    'monthly_ceiling', v.monthly_ceiling, 'currency', v.currency));
            end if;
            continue;
        end if;
        insert into public.payments (tenant_id, user_id, account_tenant_id, cause, state, price_id, tokens, currency, amount, lease_id, lease_until, created_at)
            select v.tenant_id, v.user_id, c.account_tenant_id, 'auto_top_up', 'pending', v.stripe_price, v.tokens, v.currency, v.amount, gen_random_uuid(), v_now + p_lease, v_now
            from public.payment_customers c
            join public.payment_accounts a on a.tenant_id = c.account_tenant_id and a.status = 'active' and a.secret is not null
            where c.tenant_id = v.tenant_id and c.user_id = v.user_id and c.customer_id is not null and c.payment_method is not null
            order by c.account_tenant_id = c.tenant_id desc limit 1
            on conflict do nothing returning * into v_payment;
        if found then v_claimed := v_claimed || vanilla.top_up_json(v_payment); end if;
    end loop;
    return v_claimed;
end
$f$;
comment on function vanilla.claim_top_ups(integer, interval) is
    'Leases charges that are due without the user: less than the threshold is left, none is in flight, the month''s ceiling is not passed. What Stripe is to be asked for each.';

create or replace function vanilla.top_up_json(p_payment public.payments) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select jsonb_build_object('tenant_id', p_payment.tenant_id, 'payment_id', p_payment.id, 'lease_id', p_payment.lease_id, 'amount', p_payment.amount,
        'currency', p_payment.currency, 'customer_id', c.customer_id, 'payment_method', c.payment_method, 'endpoint', encode(a.endpoint, 'hex'))
    from public.payment_customers c
    join public.payment_accounts a on a.tenant_id = c.account_tenant_id
    where c.tenant_id = p_payment.tenant_id and c.user_id = p_payment.user_id and c.account_tenant_id = p_payment.account_tenant_id
$f$;
comment on function vanilla.top_up_json(public.payments) is 'A charge as the runtime asks Stripe for it.';

create or replace function vanilla.finish_top_up(p_tenant_id uuid, p_payment_id uuid, p_lease_id uuid, p_intent jsonb, p_error text default null) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_payment public.payments;
    v_outcome text;
begin
    select * into v_payment from public.payments p where p.tenant_id = p_tenant_id and p.id = p_payment_id and p.lease_id = p_lease_id;
    if not found then return null; end if;       -- the lease ran out
    if p_intent ->> 'id' is not null then perform vanilla.lock_payment(v_payment.account_tenant_id, p_intent ->> 'id'); end if;
    select * into v_payment from public.payments p where p.tenant_id = p_tenant_id and p.id = p_payment_id and p.lease_id = p_lease_id and p.state = 'pending' for no key update;
    if not found then return null; end if;       -- a webhook was first
    if p_error is not null then
        perform vanilla.fail_top_up(v_payment, p_error);
        return 'failed';
    elsif p_intent is null then
        -- no answer: it may have been charged, so it is asked for again under the same id, and nothing else meanwhile
        update public.payments p set lease_id = null, lease_until = vanilla.clock() + interval '5 min' where p.tenant_id = p_tenant_id and p.id = p_payment_id;
        return 'pending';
    elsif p_intent ->> 'status' = 'succeeded' then
        v_outcome := vanilla.settle_payment(v_payment, p_intent);
        if v_outcome like '%mismatch' then
            perform vanilla.fail_top_up(v_payment, v_outcome);
            return 'failed';
        end if;
        return 'succeeded';
    elsif p_intent ->> 'status' = 'processing' then
        update public.payments p set intent_id = p_intent ->> 'id', lease_id = null, lease_until = null where p.tenant_id = p_tenant_id and p.id = p_payment_id;
        return 'pending';
    end if;
    perform vanilla.fail_top_up(v_payment, coalesce(p_intent ->> 'status', 'unknown'));
    return 'failed';
end
$f$;
comment on function vanilla.finish_top_up(uuid, uuid, uuid, jsonb, text) is
    'What Stripe answered to a charge: its PaymentIntent, an error that is final, or neither when no answer came. Returns the state, or null when the lease is not held any more.';

create or replace function vanilla.job_payments(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_customer public.payment_customers;
    v_before public.payment_subscriptions;
    v_after public.payment_subscriptions;
    v_lapsed integer := 0;
    v_expired integer;
    v_events integer;
begin
    -- the customer first, as events do: one that says it is paid after all comes before or after, never between
    for v_customer in select c.* from public.payment_customers c
        where exists (select from public.payment_subscriptions s where s.tenant_id = c.tenant_id and s.user_id = c.user_id and s.account_tenant_id = c.account_tenant_id
            and s.grace_until <= v_now and s.grace_until is not null and s.lapsed_at is null)
        limit p_limit for no key update of c skip locked
    loop
        for v_before in select s.* from public.payment_subscriptions s where s.tenant_id = v_customer.tenant_id and s.user_id = v_customer.user_id
            and s.account_tenant_id = v_customer.account_tenant_id and s.grace_until <= v_now and s.lapsed_at is null order by s.id for no key update
        loop
            update public.payment_subscriptions s set lapsed_at = v_now where s.tenant_id = v_before.tenant_id and s.id = v_before.id returning * into v_after;
            perform vanilla.follow_subscription(v_before, v_after);
            perform vanilla.emit_event(v_after.tenant_id, 'payment.subscription', v_after.user_id, jsonb_build_object('subscription_id', v_after.subscription_id,
                'state', 'lapsed', 'former_state', v_before.state, 'level_id', v_after.level_id, 'grace_until', v_after.grace_until));
            v_lapsed := v_lapsed + 1;
        end loop;
    end loop;
    -- checkouts that nobody finished; one that is paid after all counts all the same
    update public.payments p set state = 'expired' where p.ctid = any (array(
        select q.ctid from public.payments q where q.state = 'open' and q.created_at < v_now - interval '25 h' limit p_limit for no key update skip locked));
    get diagnostics v_expired = row_count;
    delete from public.payment_events e where e.ctid = any (array(
        select x.ctid from public.payment_events x where x.received_at < v_now - make_interval(days => vanilla.retention_days('payment_events') + 1) limit p_limit));
    get diagnostics v_events = row_count;
    return jsonb_build_object('lapsed', v_lapsed, 'expired', v_expired, 'events', v_events, 'more', greatest(v_lapsed, v_expired, v_events) >= p_limit);
end
$f$;
comment on function vanilla.job_payments(integer) is
    'Job: ends the level of subscriptions whose grace is over, closes checkouts that nobody finished, forgets events past retention.payment_events_days.';

grant execute on function public.set_payment_account(uuid, bytea, bytea, text, bytea, text, boolean, integer, text, uuid),
    public.set_payment_price(text, text, text, text, bigint, bigint, uuid, text, uuid) to vanilla_app, vanilla_operator;
grant execute on function public.begin_payment_portal(), public.begin_checkout(uuid), public.set_auto_top_up(uuid, bigint, bigint, boolean, uuid) to vanilla_app;
grant execute on function vanilla.payment_account(bytea), vanilla.bind_payment_customer(bytea, uuid, text), vanilla.apply_payment_event(bytea, jsonb, boolean),
    vanilla.claim_top_ups(integer, interval), vanilla.finish_top_up(uuid, uuid, uuid, jsonb, text) to vanilla_runtime;
-- the job of that name runs as the operator
grant execute on function vanilla.payment_account(bytea), vanilla.claim_top_ups(integer, interval),
    vanilla.finish_top_up(uuid, uuid, uuid, jsonb, text) to vanilla_operator;

-- analytics --------------------------------------------------------------------------------------------------------
create or replace function vanilla.paid_rates(p_tenant_id uuid, p_at timestamptz) returns table (user_id uuid, level_id uuid, currency text, amount numeric)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    with billed as (
        select s.user_id, s.level_id, s.currency, s.month_amount from public.payment_subscriptions s
        where s.tenant_id = p_tenant_id and s.state in ('active', 'past_due') and s.lapsed_at is null and s.month_amount > 0 and s.created_at < p_at)
    select b.* from billed b
    union all
    select l.* from (
        -- the last line of the period that runs: what came before it in the period is left
        select distinct on (i.user_id) i.user_id, i.level_id, i.currency, i.rate::numeric / vanilla.cycle_months(i.cycle) as amount
        from public.level_invoice_lines i
        where i.tenant_id = p_tenant_id and i.period_end >= p_at and i.period_start < p_at and i.created_at < p_at
          and i.kind in ('charge', 'renewal', 'billed') and i.cycle <> 'lifetime'
        order by i.user_id, i.created_at desc, i.id desc) l
    where l.amount > 0 and not exists (select from billed b where b.user_id = l.user_id)      -- what ran out when the provider took over
$f$;
comment on function vanilla.paid_rates(uuid, timestamptz) is
    'What users of a tenant pay for a level a month, in minor units: agreed with change_user_level, at that moment, and at the payment provider, as it is now. A trial pays nothing.';

create or replace function vanilla.count_level_day(p_tenant_id uuid, p_day date)
returns table (level_id uuid, level text, users bigint, active_users bigint, new_users bigint, upgraded bigint, downgraded bigint, churned bigint,
    trials_ended bigint, trials_converted bigint, tokens_granted bigint, tokens_spent bigint, tokens_lapsed bigint, run_rate jsonb, limit_hits jsonb, is_final boolean)
language sql stable set search_path = pg_catalog, pg_temp as $f$
    with day as (
        select p_day::timestamp at time zone t.time_zone as from_at, (p_day + 1)::timestamp at time zone t.time_zone as until_at, vanilla.clock() as now
        from public.tenants t where t.tenant_id = p_tenant_id and t.id = p_tenant_id),
    last as (      -- of who left in the day, the level that they left
        select c.user_id, coalesce(c.to_level_id, c.from_level_id) as level_id, coalesce(c.to_level, c.from_level) as level, c.to_level_id is not null as is_there
        from (
            select distinct on (x.user_id) x.* from public.user_level_changes x, day d
            where x.tenant_id = p_tenant_id and x.created_at < d.until_at order by x.user_id, x.seq desc) c, day d
        where c.to_level_id is not null or c.created_at >= d.from_at),
    spent as (
        select e.user_id, coalesce(sum(e.amount) filter (where e.direction = 'credit' or e.direction = 'adjustment' and e.amount > 0), 0) as granted,
            coalesce(-sum(e.amount + e.reserved_amount) filter (where e.direction in ('debit', 'reserve', 'release', 'settle', 'debt')), 0) as spent,
            coalesce(-sum(e.amount) filter (where e.direction in ('expire', 'void') or e.direction = 'adjustment' and e.amount < 0), 0) as lapsed,
            coalesce(bool_or(e.direction in ('debit', 'reserve', 'settle')), false) as active
        from public.user_token_ledger e, day d
        where e.tenant_id = p_tenant_id and e.created_at >= d.from_at and e.created_at < d.until_at group by e.user_id),
    changes as (
        select case when c.kind in ('churned', 'left') then c.from_level_id else c.to_level_id end as level_id,
            max(case when c.kind in ('churned', 'left') then c.from_level else c.to_level end) as level,
            count(*) filter (where c.kind = 'joined') as new_users, count(*) filter (where c.kind = 'upgraded') as upgraded,
            count(*) filter (where c.kind = 'downgraded') as downgraded, count(*) filter (where c.kind in ('churned', 'left')) as churned
        from public.user_level_changes c, day d
        where c.tenant_id = p_tenant_id and c.created_at >= d.from_at and c.created_at < d.until_at group by 1),
    trials as (
        select c.to_level_id as level_id, count(*) as ended, count(*) filter (where c.trial_converted) as converted
        from public.level_changes c, day d
        where c.tenant_id = p_tenant_id and c.trial and c.trial_ended_at >= d.from_at and c.trial_ended_at < d.until_at group by 1),
    hits as (
        select h.level_id, jsonb_object_agg(h.feature, h.n) as hits
        from (
            select l.level_id, u.feature, count(*) as n
            from last l
            join public.level_feature_usage u on u.tenant_id = p_tenant_id and u.user_id = l.user_id, day d
            where u.limit_reached_at >= d.from_at and u.limit_reached_at < d.until_at group by l.level_id, u.feature) h
        group by h.level_id),
    rates as (
        select p.level_id, jsonb_object_agg(p.currency, p.amount) as run_rate
        from (
            select l.level_id, r.currency, round(sum(r.amount))::bigint as amount
            from day d cross join lateral vanilla.paid_rates(p_tenant_id, least(d.until_at, d.now)) r
            join last l on l.user_id = r.user_id and l.level_id = r.level_id and l.is_there
            group by l.level_id, r.currency) p
        group by p.level_id),
    of_users as (
        select l.level_id, max(l.level) as level, count(*) filter (where l.is_there) as users, count(*) filter (where s.active) as active_users,
            coalesce(sum(s.granted), 0)::bigint as granted, coalesce(sum(s.spent), 0)::bigint as spent, coalesce(sum(s.lapsed), 0)::bigint as lapsed
        from last l left join spent s on s.user_id = l.user_id group by l.level_id)
    select k.level_id, coalesce(v.slug, o.level, c.level), coalesce(o.users, 0), coalesce(o.active_users, 0), coalesce(c.new_users, 0), coalesce(c.upgraded, 0),
        coalesce(c.downgraded, 0), coalesce(c.churned, 0), coalesce(i.ended, 0), coalesce(i.converted, 0), coalesce(o.granted, 0), coalesce(o.spent, 0), coalesce(o.lapsed, 0),
        coalesce(r.run_rate, '{}'), coalesce(h.hits, '{}'),
        d.now >= d.until_at + interval '10 minutes'
    from (
        select x.id as level_id from public.levels x where x.tenant_id = p_tenant_id
        union select o.level_id from of_users o union select c.level_id from changes c) k
    cross join day d
    left join public.levels v on v.tenant_id = p_tenant_id and v.id = k.level_id
    left join of_users o on o.level_id = k.level_id
    left join changes c on c.level_id = k.level_id
    left join trials i on i.level_id = k.level_id
    left join hits h on h.level_id = k.level_id
    left join rates r on r.level_id = k.level_id
$f$;
comment on function vanilla.count_level_day(uuid, date) is
    'What happened on each level of a tenant in a day of its time zone, from level changes, ledger, counters of features and what is paid. Final when the day has been over for ten minutes, so that what began in it has ended.';

create or replace function vanilla.roll_up_level_day(p_tenant_id uuid, p_day date) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_rows integer;
begin
    -- two who roll up the same days write one after the other
    perform pg_advisory_xact_lock(hashtextextended('vanilla_saas.level_analytics ' || p_tenant_id, 0));
    insert into public.level_analytics as a (tenant_id, day, level_id, level, users, active_users, new_users, upgraded, downgraded, churned,
            trials_ended, trials_converted, tokens_granted, tokens_spent, tokens_lapsed, run_rate, limit_hits, is_final, computed_at)
        select p_tenant_id, p_day, d.level_id, d.level, d.users, d.active_users, d.new_users, d.upgraded, d.downgraded, d.churned,
            d.trials_ended, d.trials_converted, d.tokens_granted, d.tokens_spent, d.tokens_lapsed, d.run_rate, d.limit_hits, d.is_final, vanilla.clock()
        from vanilla.count_level_day(p_tenant_id, p_day) d
        order by d.level_id
        on conflict (tenant_id, day, level_id) do update set level = excluded.level, users = excluded.users, active_users = excluded.active_users,
            new_users = excluded.new_users, upgraded = excluded.upgraded, downgraded = excluded.downgraded, churned = excluded.churned,
            trials_ended = excluded.trials_ended, trials_converted = excluded.trials_converted,
            tokens_granted = excluded.tokens_granted, tokens_spent = excluded.tokens_spent, tokens_lapsed = excluded.tokens_lapsed,
            -- what a provider was paid then is known no more
            run_rate = case when a.is_final then a.run_rate else excluded.run_rate end, is_final = excluded.is_final, computed_at = excluded.computed_at,
            -- counters go with their retention and with erased persons; what was counted of a day never grows less
            limit_hits = (select coalesce(jsonb_object_agg(k.key, greatest((a.limit_hits ->> k.key)::bigint, (excluded.limit_hits ->> k.key)::bigint)), '{}')
                from jsonb_object_keys(a.limit_hits || excluded.limit_hits) k (key))
            -- of a level that was deleted nothing is known better: what was final stays
            where not a.is_final or exists (select from public.levels l where l.tenant_id = a.tenant_id and l.id = a.level_id);
    get diagnostics v_rows = row_count;
    return v_rows;
end
$f$;
comment on function vanilla.roll_up_level_day(uuid, date) is 'Writes a day of a tenant into level_analytics, over what stands there. Returns how many rows.';

create or replace function public.roll_up_level_analytics(p_from date, p_to date, p_tenant_id uuid default null) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_tenant uuid := vanilla.acting_tenant(p_tenant_id);
    v_now timestamptz := vanilla.clock();
    v record;
    v_rows integer := 0;
begin
    if p_from is null or p_to is null or p_to < p_from or not isfinite(p_from) or not isfinite(p_to) then
        perform vanilla.refuse('VS400', 'the last day is not before the first', '{"param": "to"}');
    end if;
    if p_to - p_from > 400 then
        perform vanilla.refuse('VS400', 'at most 401 days at a time', '{"param": "to", "limit": 401}');
    end if;
    if v_tenant is not null and not exists (select from public.tenants t where t.tenant_id = v_tenant and t.id = v_tenant) then
        perform vanilla.refuse('VS404', 'no such tenant');
    end if;
    for v in
        select t.id, d.day::date as day from public.tenants t
        cross join lateral (select (min(c.created_at) at time zone t.time_zone)::date as day from public.user_level_changes c where c.tenant_id = t.id) b
        cross join lateral generate_series(greatest(p_from, b.day)::timestamp, least(p_to, (v_now at time zone t.time_zone)::date)::timestamp, interval '1 day') d (day)
        where (v_tenant is null and t.status <> 'closed' or t.tenant_id = v_tenant and t.id = v_tenant)
        order by t.id, d.day
    loop
        v_rows := v_rows + vanilla.roll_up_level_day(v.id, v.day);
    end loop;
    return v_rows;
end
$f$;
comment on function public.roll_up_level_analytics(date, date, uuid) is
    'Computes level_analytics for the days from p_from to p_to, both included, of the tenant (operator: or all): again gives the same. The day under way is counted so far; days before the first user and days to come have no rows. Admin or operator. Returns how many rows it wrote.';

create or replace function vanilla.job_level_analytics(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
    v_days integer := 0;
begin
    for v in
        select t.id, d.day::date as day from public.tenants t
        cross join lateral (select (min(c.created_at) at time zone t.time_zone)::date as day from public.user_level_changes c where c.tenant_id = t.id) b
        cross join lateral (select max(a.day) + 1 as day from public.level_analytics a where a.tenant_id = t.id and a.is_final) l
        cross join lateral (select (vanilla.clock() - interval '10 minutes') at time zone t.time_zone as at) n
        -- from where it stopped, however long ago; and what is missing of the last weeks, where somebody rolled up later days by hand
        cross join lateral generate_series(greatest(b.day, least(coalesce(l.day, b.day), n.at::date - 35))::timestamp, n.at::date - interval '1 day', interval '1 day') d (day)
        where t.status <> 'closed'
          and not exists (select from public.level_analytics a where a.tenant_id = t.id and a.day = d.day::date and a.is_final)
        order by t.id, d.day limit p_limit
    loop
        perform vanilla.roll_up_level_day(v.id, v.day);
        v_days := v_days + 1;
    end loop;
    return jsonb_build_object('days', v_days, 'more', v_days >= p_limit);
end
$f$;
comment on function vanilla.job_level_analytics(integer) is 'Job: rolls up to p_limit days of tenants that are over and were not rolled up since, the oldest first.';

grant execute on function public.check_feature(uuid, text), public.consume_feature(uuid, text, bigint, text),
    public.set_level_feature(uuid, text, bigint, text, boolean, text, text, uuid), public.delete_level_feature(uuid, text, uuid),
    public.set_level(text, text, text, integer, boolean, uuid, boolean), public.delete_level(uuid, uuid),
    public.set_level_restriction(uuid, text, bigint, text[], uuid), public.delete_level_restriction(uuid, text, uuid),
    public.set_level_price(uuid, text, text, bigint, integer, bigint, timestamptz, timestamptz, boolean, uuid),
    public.end_level_price(uuid, timestamptz, uuid), public.set_level_benefits(uuid, jsonb, uuid),
    public.roll_up_level_analytics(date, date, uuid), public.set_subscription_tier(uuid, text), public.tenant_plan(uuid)
    to vanilla_app, vanilla_operator;
grant execute on function vanilla.public_pricing(text) to vanilla_runtime;

-- what is there from the first day ---------------------------------------------------------------------------------
-- Fixed ids and "on conflict do nothing", as in 004: the platform's rows are copied into new tenants, the default tenant has its own.
set local role vanilla_system;
insert into public.level_features (tenant_id, id, level_id, feature, name, category, enabled, usage_limit, period)
select v.tenant_id, ('00000000-0000-7000-8' || substr(v.id::text, 21, 3) || '-00000071' || right(v.id::text, 2) || f.n)::uuid, v.id,
       f.feature, f.name, f.category, f.enabled, f.usage_limit, f.period
from public.levels v
join (values
    ('free', '01', 'document-analysis', 'Document analysis', 'ai', true, 5, 'daily'),
    ('free', '02', 'report-export', 'Report export', 'reports', false, null, null),
    ('free', '03', 'priority-support', 'Priority support', 'support', false, null, null),
    ('basic', '01', 'document-analysis', 'Document analysis', 'ai', true, 50, 'daily'),
    ('basic', '02', 'report-export', 'Report export', 'reports', true, 10, 'monthly'),
    ('basic', '03', 'priority-support', 'Priority support', 'support', false, null, null),
    ('premium', '01', 'document-analysis', 'Document analysis', 'ai', true, 500, 'daily'),
    ('premium', '02', 'report-export', 'Report export', 'reports', true, 200, 'monthly'),
    ('premium', '03', 'priority-support', 'Priority support', 'support', true, null, null),
    ('enterprise', '01', 'document-analysis', 'Document analysis', 'ai', true, null, null),
    ('enterprise', '02', 'report-export', 'Report export', 'reports', true, null, null),
    ('enterprise', '03', 'priority-support', 'Priority support', 'support', true, null, null)
    ) f (slug, n, feature, name, category, enabled, usage_limit, period) on f.slug = v.slug
where v.tenant_id in ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000001') and v.id::text like '00000000-0000-7000-800_-0000000001%'
on conflict do nothing;

-- minor units: cents
insert into public.level_pricing (tenant_id, id, level_id, cycle, currency, amount, trial_days, trial_credits, valid_from)
select v.tenant_id, ('00000000-0000-7000-8' || substr(v.id::text, 21, 3) || '-00000072' || right(v.id::text, 2) || p.n)::uuid, v.id,
       p.cycle, p.currency, p.amount, p.trial_days, p.trial_credits, '2026-01-01+00'
from public.levels v
join (values
    ('free', '01', 'monthly', 'USD', 0, 0, 0),
    ('free', '02', 'monthly', 'EUR', 0, 0, 0),
    ('basic', '01', 'monthly', 'USD', 900, 14, 20000),
    ('basic', '02', 'yearly', 'USD', 9000, 14, 20000),
    ('basic', '03', 'monthly', 'EUR', 900, 14, 20000),
    ('basic', '04', 'yearly', 'EUR', 9000, 14, 20000),
    ('premium', '01', 'monthly', 'USD', 2900, 14, 100000),
    ('premium', '02', 'yearly', 'USD', 29000, 14, 100000),
    ('premium', '03', 'monthly', 'EUR', 2900, 14, 100000),
    ('premium', '04', 'yearly', 'EUR', 29000, 14, 100000)
    ) p (slug, n, cycle, currency, amount, trial_days, trial_credits) on p.slug = v.slug
where v.tenant_id in ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000001') and v.id::text like '00000000-0000-7000-800_-0000000001%'
on conflict do nothing;

insert into public.level_benefits (tenant_id, id, level_id, position, text, highlighted)
select v.tenant_id, ('00000000-0000-7000-8' || substr(v.id::text, 21, 3) || '-00000073' || right(v.id::text, 2) || lpad(b.position::text, 2, '0'))::uuid, v.id,
       b.position, b.text, b.highlighted
from public.levels v
join (values
    ('free', 1, '10,000 tokens a month', false),
    ('free', 2, '5 document analyses a day', false),
    ('basic', 1, '200,000 tokens a month', true),
    ('basic', 2, 'A quarter of what is left rolls over', false),
    ('basic', 3, '50 document analyses a day', false),
    ('premium', 1, '2,000,000 tokens a month', true),
    ('premium', 2, 'Half of what is left rolls over', false),
    ('premium', 3, '500 document analyses a day', false),
    ('premium', 4, 'Priority support', true),
    ('enterprise', 1, '20,000,000 tokens a month, all of the rest rolls over', true),
    ('enterprise', 2, 'Document analyses and reports without a limit', false),
    ('enterprise', 3, 'Priority support', true)
    ) b (slug, position, text, highlighted) on b.slug = v.slug
where v.tenant_id in ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000001') and v.id::text like '00000000-0000-7000-800_-0000000001%'
on conflict do nothing;

-- Up at once, by an admin or a payment: nothing here collects money. Down by everyone at the end of what is paid.
insert into public.level_upgrade_paths (tenant_id, id, from_level_id, to_level_id, timing, self_service)
select f.tenant_id, ('00000000-0000-7000-8' || substr(f.id::text, 21, 3) || '-00000074' || right(f.id::text, 2) || right(t.id::text, 2))::uuid, f.id, t.id,
       case when t.tier > f.tier then 'any' else 'period_end' end, t.tier < f.tier
from public.levels f
join public.levels t on t.tenant_id = f.tenant_id and t.id <> f.id
where f.tenant_id in ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000001')
  and f.id::text like '00000000-0000-7000-800_-0000000001%' and t.id::text like '00000000-0000-7000-800_-0000000001%'
on conflict do nothing;

insert into public.system_configurations (tenant_id, key, value, description, updated_at) values
    ('00000000-0000-0000-0000-000000000000', 'pricing.public', 'true',
     'Whether anybody may read the price list of a tenant (GET /api/v1/pricing, /pricing); a tenant''s own row says it for that tenant.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.feature_keys_days', '30', 'Days that idempotency keys of consume_feature are kept.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.feature_usage_days', '400', 'Days that counters of feature periods are kept after the day they began.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.payment_events_days', '90', 'Days that ids of payment events are kept; older events are refused.', '2026-01-01+00')
on conflict do nothing;
-- history deletes and level_changes writes what people owe, so they wait like retention when the clock has leapt
insert into public.schedules (tenant_id, name, description, kind, period, slots_from, next_run_at, longest_gap)
select '00000000-0000-0000-0000-000000000000', s.name, s.description, s.kind, s.period::interval, s.slots_from::timestamptz, s.slots_from::timestamptz, s.longest_gap::interval
from (values
    ('feature_usage', 'Forgets idempotency keys and counters of features past retention.', 'sql', '1 day', '2026-01-01 02:40+00', null),
    ('history', 'Deletes executions older than the days of history of a level or a tenant''s plan.', 'sql', '1 day', '2026-01-01 03:45+00', '1 day'),
    ('level_changes', 'Carries out scheduled changes of level, ends of trials and renewals.', 'sql', '30 s', '2026-01-01 00:00+00', '1 day'),
    ('level_analytics', 'Rolls up the days of each tenant that are over, in its time zone.', 'sql', '1 hour', '2026-01-01 00:15+00', null),
    ('tenant_tokens', 'Stops the calls of tenants that have used the tokens of their plan, until their next month.', 'sql', '1 minute', '2026-01-01 00:00+00', null),
    ('payments', 'Ends the level of subscriptions whose grace is over; closes checkouts that nobody finished.', 'sql', '10 min', '2026-01-01 00:05+00', null),
    ('auto_top_up', 'Buys packs of tokens for users who asked for it, where less than their threshold is left.', 'python', '1 min', '2026-01-01 00:00+00', null)
    ) s (name, description, kind, period, slots_from, longest_gap)
on conflict do nothing;
-- users of a database that another version of these files made
insert into public.user_level_changes (tenant_id, user_id, seq, created_at, kind, to_level_id, to_level)
select w.tenant_id, w.user_id, 1, u.created_at, 'joined', w.level_id, l.slug
from public.user_token_wallets w
join public.users u on u.tenant_id = w.tenant_id and u.id = w.user_id and u.status <> 'deleted'
join public.levels l on l.tenant_id = w.tenant_id and l.id = w.level_id
where not exists (select from public.user_level_changes c where c.tenant_id = w.tenant_id and c.user_id = w.user_id);

set local role vanilla_owner;
revoke create on schema vanilla from vanilla_definer;
select vanilla.map_supabase_roles();      -- without 010 too
reset role;
revoke create on schema public from vanilla_definer;
commit;
