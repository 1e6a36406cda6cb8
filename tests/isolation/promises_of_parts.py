"""Promises of inner functions, called by themselves, where no call from outside tells whether they look too far.

And of locks: a call holds up nobody whom it has nothing to do with.
"""

from tests.isolation.promises import Case, unlocked
from tests.isolation.promises_of_levels import AGED, EMPTY, FRESH, KEEPS, KEYED, ON_PAID, F, bound
from tests.isolation.promises_of_payments import SHUT
from tests.isolation.promises_of_tenancy import DISABLED, SUSPENDED, opening
from tests.isolation.promises_of_tokens import (
    ACT_AS,
    ADJUST,
    BOOKS,
    CREATES,
    FOR,
    LATER,
    PERIOD,
    SCHEDULED,
    TOGETHER,
    wallet,
)

OF_A = " where tenant_id = '{a}' and user_id = '{user}'"
TODAY = "(vanilla.clock() at time zone 'UTC')::date"
ONLY_A = "update tenants set status = case id when '{a}' then 'active' else 'closed' end"
NOBODY = "update tenants set status = 'closed'"
# a day is over ten minutes after its end: so many are over at any time of the day
CHANGED = "update user_level_changes set created_at = vanilla.clock() - interval '10 minutes' - interval '%s days' where tenant_id = '%s'"
FINAL = (
    f"insert into level_analytics select '{{twin}}', {TODAY} - 1, id, 'x', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '{{}}', '{{}}', true, now()"
    " from levels where tenant_id = '{twin}' and is_default"
)
COUNTED = (
    f"select (select sum(%s) from vanilla.count_level_day('{{a}}', {TODAY})) = (select %s where tenant_id = '{{a}}'%s)"
)
PAST_MIDNIGHT = (
    "do $$ begin execute format('create or replace function vanilla.clock() returns timestamptz language sql volatile parallel safe as %L',"
    " format('select %L::pg_catalog.timestamptz', date_trunc('day', vanilla.clock(), 'UTC') + interval '5 minutes')); end $$"
)
LIMITS = "update level_feature_usage set limit_reached_at = vanilla.clock() where tenant_id in ('{a}', '{twin}')"
RATES = "select round(sum(amount)) from vanilla.paid_rates('{a}', vanilla.clock())"
# what the twin pays: of A's user the lines are of January, and the subscription ended
TWINS_RATES = (
    "update level_invoice_lines set rate = 700, period_end = '2199-01-01' where tenant_id = '{twin}';"
    " update payment_subscriptions set state = case tenant_id when '{twin}' then 'active' else 'canceled' end,"
    " month_amount = 70, currency = 'USD' where user_id = '{user}'"
)
OWN_RATES = "update level_invoice_lines set rate = 300, period_end = '2199-01-01' where tenant_id = '{a}' and user_id = '{user}'"
PRICED = (
    "delete from level_pricing where tenant_id in ('{a}', '{twin}') and level_id = '{level}'; insert into level_pricing"
    " (tenant_id, level_id, cycle, currency, amount, valid_from) values ('{twin}', '{level}', 'monthly', 'CHF', 7, '2026-01-01')"
)
OF_PLATFORM = "(select id from levels where tenant_id = '{platform}' and slug = 'basic')"
TWINS_RULE = (
    "update tenants set subscription_tier = 'basic' where id = '{a}'; set local session_replication_role = replica;"
    f" insert into level_restrictions (tenant_id, level_id, type, amount) select '{{twin}}', {OF_PLATFORM}, t, 7"
    " from unnest(array['tokens_per_tenant', 'users_per_tenant']) t;"
    " set local session_replication_role = origin"
)
TWINS_PLAN = (
    "update tenants set subscription_tier = 'odd' where id = '{a}'; insert into levels (tenant_id, id, slug, name)"
    " values ('{twin}', '{same_id}', 'odd', 'x'); insert into level_restrictions (tenant_id, level_id, type, amount)"
    " values ('{twin}', '{same_id}', 'tokens_per_tenant', 7)"
)
ON_PLAN = (
    f"{bound('tokens_per_tenant', 7, 'basic')};"
    " update tenants set subscription_tier = null where id not in ('{a}', '{platform}')"
)
TRIAL = (
    "update level_changes set trial = true where tenant_id in ('{a}', '{twin}') and user_id = '{user}'; insert into level_changes"
    " (tenant_id, id, user_id, to_level_id, timing, state, requested_at, effective_at, trial, terms)"
    " values ('{a}', '{same_id}', '{user}', '{paid}', 'period_end', 'scheduled', now(), now(), true, '{}')"
)
ENDED = "(select array_agg(trial_ended_at is not null order by state) from level_changes where tenant_id = '{a}' and user_id = '{user}' and trial)"
ZONE = "update tenants set time_zone = 'America/New_York' where id = '{a}'"
PLAN_FROM = (
    "select extract(hour from (vanilla.plan_tokens(w, null, '{paid}', false, vanilla.clock()) ->> 'from')::timestamptz"
    " at time zone 'America/New_York')::int from user_token_wallets w" + OF_A
)
CUSTOMERS = (
    "set local session_replication_role = replica; insert into payment_accounts select (jsonb_populate_record(s, jsonb_build_object("
    "'tenant_id', '{platform}', 'endpoint', sha256('platform'), 'stripe_account', 'acct_platform'))).* from payment_accounts s where tenant_id = '{a}'; update payment_customers set payment_method = 'of the platform',"
    " account_tenant_id = '{platform}' where tenant_id = '{a}' and user_id = '{user}';"
    " insert into payment_customers (tenant_id, user_id, account_tenant_id, customer_id, payment_method)"
    " values ('{a}', '{user}', '{a}', 'cus_case', 'its own'); set local session_replication_role = origin"
)
ANALYTICS = [
    Case("keeper", COUNTED % ("new_users", "count(*) from user_level_changes", f" and created_at >= {TODAY}"), "= (t)"),
    Case("keeper", COUNTED % ("tokens_granted", "sum(amount) from user_token_ledger", f" and direction = 'credit' and created_at >= {TODAY}"), "= (t)"),
    Case("keeper", f"select limit_hits ->> 'document-analysis' from vanilla.count_level_day('{{a}}', {TODAY}) where level = 'free'", "= (2)", LIMITS),
    Case("keeper", RATES, "= ()", TWINS_RATES),
    Case("keeper", RATES, "= (300)", f"{OWN_RATES}; {TWINS_RATES}"),
    Case("keeper", "select vanilla.level_is_paid('{a}', '{level}')", "= (f)", PRICED),
    Case("keeper", "select vanilla.record_level_change('{a}', '{user}', '{level}', '{paid}')",
         given="insert into user_level_changes (tenant_id, user_id, seq, created_at, kind) values ('{twin}', '{user}', 1000, now(), 'left')",
         then="(select max(seq) from user_level_changes where tenant_id = '{a}' and user_id = '{user}') = 2"),
    # a day before anybody of the tenant's had a level
    Case("admin", "select roll_up_level_analytics('2020-01-01', '2020-01-01')", "= (0)", CHANGED % (3000, "{twin}")),
    Case("operator", f"select roll_up_level_analytics({TODAY}, {TODAY})", "= (0)", NOBODY),
    Case("operator", f"select roll_up_level_analytics({TODAY}, {TODAY})", "= (4)", ONLY_A),
    Case("keeper", "select vanilla.job_level_analytics(100) ->> 'days'", "= (0)", NOBODY),
    *[Case("keeper", "select vanilla.job_level_analytics(100) ->> 'days'", "= (40)",
           f"{now}{ONLY_A}; {CHANGED % (40, '{a}')}; {CHANGED % (60, '{twin}')}; {FINAL}") for now in ("", f"{PAST_MIDNIGHT}; ")],
    Case("keeper", COUNTED % ("trials_ended", "count(*) from level_changes", " and trial"), "= (t)",
         "update level_changes set trial = true, trial_converted = false, trial_ended_at = vanilla.clock() where tenant_id in ('{a}', '{twin}') and user_id = '{user}'"),
    # the level is gone in A, so what was final stays
    Case("keeper", f"select vanilla.roll_up_level_day('{{a}}', {TODAY})", "= (4)",
         f"insert into level_analytics select '{{a}}', {TODAY}, '{{same_id}}', 'x', 77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '{{}}', '{{}}', true, now();"
         " insert into levels (tenant_id, id, slug, name) values ('{twin}', '{same_id}', 'gone', 'x');"
         " insert into user_level_changes (tenant_id, user_id, seq, created_at, kind, to_level_id, to_level)"
         " values ('{a}', '{other}', 2, vanilla.clock(), 'moved', '{same_id}', 'x')",
         then=f"(select users = 77 from level_analytics where tenant_id = '{{a}}' and level_id = '{{same_id}}' and day = {TODAY})"),
]  # fmt: skip

PLANS = [
    Case("keeper", "select vanilla.tenant_limit('{a}', 'users_per_tenant')", "= ()", TWINS_RULE),
    *[Case("keeper", "select vanilla.job_tenant_tokens(100) ->> 'tenants'", "= (0)", f"{NOBODY}; {given}")
      for given in (TWINS_RULE, TWINS_PLAN, ON_PLAN)],
    *[Case("keeper", "select vanilla.job_tenant_tokens(100) ->> 'tenants'", f"= ({found})", f"{ONLY_A}; {given}")
      for given, found in ((TWINS_RULE, 0), (TWINS_PLAN, 0), (ON_PLAN, 1))],
    Case("keeper", "select spent = (select sum(spent_tokens) from user_token_wallets where tenant_id = '{a}') from vanilla.tenant_tokens('{a}')", "= (t)",
         "insert into tenant_token_months select '{twin}', date_trunc('month', vanilla.clock() at time zone 'UTC'), 5"),
    Case("keeper", "select vanilla.end_trial(u, true) from users u where tenant_id = '{a}' and id = '{user}'", given=TRIAL,
         then=f"{ENDED} = array[true, false]"),
    Case("keeper", PLAN_FROM, "= (0)", ZONE),
    # who is erased while a call is under way has a wallet that is suspended, on the level that it was
    Case("admin", f"select consume_feature('{{user}}', {F})", "VS404", "update users set status = 'deleted' where tenant_id = '{a}' and id ="
         " '{user}'; update user_token_wallets set status = 'suspended' where tenant_id = '{a}' and user_id = '{user}'"),
    Case("admin", f"select consume_feature('{{user}}', {F})",
         given="update user_token_wallets set status = 'suspended' where tenant_id = '{a}' and user_id = '{user}'"),
    Case("user", f"select (consume_feature('{{user}}', {F}) ->> 'resets_at')::timestamptz at time zone 'America/New_York' ="
         " date_trunc('day', vanilla.clock() at time zone 'America/New_York') + interval '1 day'", "= (t)", ZONE),
    Case("user", "select (check_feature('{user}', 'document-analysis') ->> 'resets_at')::timestamptz ="
         " (date_trunc('day', vanilla.clock() at time zone 'America/New_York') + interval '1 day') at time zone 'America/New_York'", "= (t)", ZONE),
    Case("keeper", "select vanilla.top_up_json(p) ->> 'payment_method' from payments p where tenant_id = '{a}' and id = '{pending}'", "= (\"its own\")", CUSTOMERS),
    Case("user", "select check_feature('{user}', 'document-analysis') -> 'allowed_by' ->> 'slug'", "= (basic)",
         "delete from level_feature_usage where tenant_id = '{a}' and user_id = '{user}'; update level_features set usage_limit ="
         " case level_id when '{level}' then 0 else 3 end, period = 'daily', enabled = true where tenant_id = '{a}' and feature = 'document-analysis'"),
    # the user is on a level that keeps everything
    Case("keeper", "select vanilla.job_history(1000)", given=f"{AGED}; {KEEPS % 8}; {ON_PAID}",
         then="exists (select from ai_executions where tenant_id = '{a}' and user_id = '{user}' and created_at < vanilla.clock() - interval '8 days')"),
    Case("keeper", "select vanilla.job_history(1) ->> 'rows_deleted'", "= (1)",
         f"{KEEPS % 8};"
         " insert into ai_executions (tenant_id, created_at, user_id, provider, model, status) select t::uuid, vanilla.clock() - interval '9 days',"
         " u::uuid, 'x', 'x', 'succeeded' from unnest(array['{twin}', '{a}']) t, unnest(array['{user}', '{other}', '{admin}']) u;"
         " update schedules set progress = jsonb_build_object('_tenant', '{a}', '_user', '{other}') where tenant_id = '{platform}' and name = 'history'"),
]  # fmt: skip

# the level of the others would allow no key
STRICT = (
    "update levels set restrictions = '{\"api_keys\": 0}' where tenant_id = '{a}' and id = '{level}';"
    " update user_token_wallets set level_id = '{paid}' where tenant_id = '{a}' and user_id = '{%s}'"
)
DUE = "update user_token_wallets set next_event_at = vanilla.clock() - interval '1 minute' where tenant_id = '{%s}' and user_id = '{%s}'"
AFTER = "'%s', vanilla.clock() + interval '1 s', '2199-01-01'"
FRAME = "select opening_balance, closing_balance from token_statement_frame("
SAME_SEQ = (
    "set local session_replication_role = replica; insert into user_token_ledger select (jsonb_populate_record(l,"
    " '{\"user_id\": \"{other}\", \"available_after\": 77}')).* from user_token_ledger l where tenant_id = '{a}' and user_id = '{user}'"
    " on conflict do nothing; set local session_replication_role = origin"
)
LEFT = (
    "update users set status = 'deleted', email = null, external_id = null where tenant_id = '{twin}' and id = '{user}'"
)
CLOSE = "select vanilla.close_periods(10)"
GRANT = (
    "insert into user_token_grants (tenant_id, user_id, kind, amount, remaining, effective_at, expires_at, state)"
    " values ('{a}', '{user}', '%s', 7, 0, '2026-01-02', '%s', '%s')"
)
LISTENS = "update webhook_endpoints set event_types = '{*}' where tenant_id = '{a}'"
TOLD = "(select count(*) from webhook_deliveries where tenant_id = '{a}' and attempts = 0)"
WALLETS = [
    *[Case("admin", f"select create_api_key('n', 'p', sha256('n'), p_user_id => '{{{who}}}')", given=STRICT % who) for who in ("user", "other", "admin")],
    *[Case("user", "select refresh_token_wallet('{user}')", "= (f)", DUE % whose) for whose in (("a", "other"), ("twin", "user"))],
    Case("user", "select refresh_token_wallet('{user}')", "= (t)", DUE % ("a", "user")),
    Case("user", f"{FRAME}{AFTER % '{user}'})", "= ({balance},{balance})"),
    Case("user", f"{FRAME}{AFTER % '{user}'})", "= ({balance},{balance})", SAME_SEQ),
    Case("user", f"{FRAME}{AFTER % '{other}'})", "VS403"),
    Case("user", f"{FRAME}'{{user}}', '2026-01-02', '2026-01-01')", "VS400"),
    Case("operator", f"{ADJUST}5, 'credit')", given=LEFT, then=BOOKS),
    Case("admin", f"{ADJUST}-5, 'adjustment')", given="update user_token_wallets set warn_below = available_tokens + reserved_tokens"
         " where tenant_id = '{a}' and user_id = '{user}'; update user_token_wallets set warn_below = 0 where tenant_id = '{twin}'",
         then="exists (select from events where tenant_id = '{a}' and user_id = '{user}' and type = 'token.warning')"),
    Case("admin", "select release_token_hold(gen_random_uuid())", "VS404 no such hold"),
    Case("admin", "select release_token_hold('{hold}') ->> 'direction'", "= (release)", then=BOOKS),
    Case("admin", "select release_token_hold('{hold}')", "VS409 the hold is settled", "{as_admin}; select settle_user_tokens('{hold}', 5)"),
    Case("admin", "select release_token_hold('{hold}')", "VS415", SHUT),
    Case("admin", "select release_token_hold('{hold}')", given=SHUT.replace("closed", "locked"), then=BOOKS),
    Case("admin", "select release_token_hold('{hold}', 'other', p_idempotency_key => 'k')", "VS410",
         "{as_admin}; select release_token_hold('{hold}', 'one', p_idempotency_key => 'k')"),
    Case("admin", "select release_token_hold('{hold}', p_idempotency_key => 'twin-key') ->> 'replayed'", "= (false)"),
    Case("admin", "select void_token_grant('{grant}', 'other', p_idempotency_key => 'k')", "VS410",
         "{as_admin}; select void_token_grant('{grant}', 'one', p_idempotency_key => 'k')"),
    # the zone of a period that is opened one by one
    Case("user", "select refresh_token_wallet('{user}')", "= (t)", f"{ZONE}; {PERIOD}",
         then=f"extract(hour from {wallet('next_reset_at')} at time zone 'America/New_York') = 0"),
    # a grant that is void lapses without a word
    Case("admin", f"{ADJUST}5, 'debit')", given=f"{SCHEDULED}; {GRANT % ('promo', '2026-01-15', 'voided')}",
         then=BOOKS + " and exists (select from user_token_grants where tenant_id = '{a}' and state = 'voided' and expires_at = '2026-01-15')"),
    Case("keeper", CLOSE, "= (1)", PERIOD, then=BOOKS),
    Case("keeper", CLOSE, "= (1)", f"{PERIOD}; {GRANT % ('promo', '2026-01-15', 'voided')}; {GRANT % ('promo', '2199-01-01', 'voided')}",
         then=f"{wallet('next_event_at')} > vanilla.clock()"),
    Case("keeper", CLOSE, "= (1)", f"{PERIOD}; {LISTENS}", then=f"{TOLD} = 1"),
    Case("keeper", CLOSE, "= (1)", f"{PERIOD}; {LISTENS}; update webhook_endpoints set status = 'disabled' where tenant_id = '{{a}}'", then=f"{TOLD} = 0"),
    Case("admin", "select set_level_token_policy('{level}', 1, 2)",
         given="update user_token_wallets set next_event_at = vanilla.clock() - interval '1 minute' where tenant_id = '{twin}'", then=BOOKS),
]  # fmt: skip


def calls(*made: str) -> str:
    return f"vanilla.run_calls(jsonb_build_array({', '.join(f'jsonb_build_object({call})' for call in made)}))"


ADMITS = "'function', 'admit', 'model', 'sandbox-small', 'prompt_tokens', 1, 'sandbox_prompt_tokens', 1, 'output_limit', 1, 'choices', 1, 'execution_id', gen_random_uuid(), 'streamed', false, 'ttl', '60 s'"
BY_KEY, BY_SESSION = f"{ADMITS}, 'key_hash', {{user_key}}", f"{ADMITS}, 'session_hash', {{user_session}}"
SETTLES = "'function', 'settle', 'tenant_id', '{a}', 'hold_id', '{call}', 'status', 'succeeded', 'input', 5, 'output', 5, 'cached', 0, 'reasoning', 0, 'estimated', false"
GIVES_BACK = "'function', 'adjust', 'key_hash', {%s_key}, 'user_id', '{user}', 'amount', 10, 'direction', 'release', 'reference_id', '{hold}'"
TAKES = "'function', 'adjust', 'key_hash', {%s_key}, 'user_id', '{user}', 'amount', 5, 'direction', 'debit'"
PAYER = ", 'payer', 'ext'"
FAILED = "-> %s -> 'error' ->> 'sqlstate'"
OF_OTHER = unlocked("user_token_wallets", "tenant_id = '{a}' and user_id = '{other}'")
OF_USER = unlocked("user_token_wallets", "tenant_id = '{a}' and user_id = '{user}'")
BESIDE_TWINS = (
    '; insert into user_token_ledger select (jsonb_populate_record(l, \'{"tenant_id": "{twin}", "hash": "\\\\x77"}\')).* from user_token_ledger l'
    + OF_A
)
REPLAYED = f"{{as_admin}}; {ADJUST}5, 'debit', p_idempotency_key => 'k'); set local session_replication_role = replica{BESIDE_TWINS} and idempotency_key = 'k'; set local session_replication_role = origin"
FOR_PAYER = (
    f"{ACT_AS}; update users set external_id = 'ext' where tenant_id in ('{{a}}', '{{twin}}') and id = '{{other}}'"
)
# a hold that is over has the reference of the one that is open
OVER = (
    "insert into user_token_holds (tenant_id, id, user_id, amount, requested, state, epoch, expires_at, closed_at, reference_type, reference_id)"
    " values ('{a}', '{same_id}', '{user}', 5, 5, 'settled', 0, vanilla.clock(), vanilla.clock(), 'x', '{hold}')"
)
TWINS_HOLD = (
    OVER.replace("'x', '{hold}'", "'x', '{provider}'")
    + "; "
    + OVER.replace("'{a}'", "'{twin}'").replace(
        "'settled', 0, vanilla.clock(), vanilla.clock()", "'open', 0, '2199-01-01', null"
    )
)
STAYS_OVER = unlocked("user_token_holds", "tenant_id = '{a}' and id = '{same_id}'")
BUDGET = "update api_keys set budget_tokens = 500, used_tokens = 100 where tenant_id = '{a}' and user_id = '{user}'"
IN_BATCH = (
    "select adjust_user_tokens_batch(jsonb_build_array(jsonb_build_object('user_id', '{user}', 'amount', 10, 'direction', 'release',"
    " 'reference_id', '{hold}'))) -> 0 ->> 'ok'"
)
LOCKS = [
    Case("runtime", f"select {calls(BY_KEY)} {FAILED % 0}", "= ()", then=OF_OTHER),
    Case("runtime", f"select {calls(BY_SESSION)} {FAILED % 0}", "= ()", BUDGET, then=OF_OTHER),
    Case("runtime", f"select {calls(SETTLES, BY_KEY)} {FAILED % 0}", "= ()", BUDGET, then=f"{BOOKS} and {OF_OTHER}"),
    Case("runtime", f"select {calls(GIVES_BACK % 'admin')} {FAILED % 0}", "= ()", OVER, then=f"{BOOKS} and {STAYS_OVER}"),
    Case("runtime", f"select {calls(TAKES % 'admin', GIVES_BACK % 'admin')} {FAILED % 0}", "= ()", then=f"{BOOKS} and {OF_OTHER}"),
    Case("runtime", f"select {calls(GIVES_BACK % 'admin')} {FAILED % 0}", "= ()", TWINS_HOLD, then=f"{BOOKS} and {STAYS_OVER}"),
    Case("runtime", f"select {calls(BY_KEY + PAYER)} {FAILED % 0}", "= ()", FOR_PAYER, then=OF_USER),
    Case("runtime", TOGETHER.replace("not yet here", "twin-only"), "= (40001)", CREATES),
    # the wallet goes back to the entry before, which is not the twin's of that number
    Case("admin", f"{ADJUST}5, 'debit', p_idempotency_key => 'k') ->> 'replayed'", "= (true)", REPLAYED, then=BOOKS),
    # a key that may not holds up nobody
    Case("runtime", f"select {calls(GIVES_BACK % 'user')} {FAILED % 0}", "= (VS403)",
         then=f"{OF_USER} and {unlocked('user_token_holds', chr(39) + '{hold}' + chr(39) + ' = id')}"),
    Case("runtime", f"select {calls(TAKES % 'user')} {FAILED % 0}", "= (VS403)", then=OF_USER),
    Case("admin", IN_BATCH, "= (true)", OVER, then=f"{BOOKS} and {STAYS_OVER}"),
    Case("admin", f"{ADJUST}10, 'release', p_reference_id => '{{hold}}')", given=OVER, then=f"{BOOKS} and {STAYS_OVER}"),
    *[Case("runtime", f"select vanilla.run_calls('{odd}')", "VS400 a batch is an array") for odd in ("[]", "{}")],
    Case("runtime", f"select {calls(chr(39) + 'function' + chr(39) + ', 1')} -> 0 -> 'error' ->> 'message'", "= (\"no such call\")"),
    *[Case("keeper", f"select vanilla.adjust_by_key({key}, '{{user}}', 5, 'debit')", code)
      for key, code in (("sha256('none')", "VS411"), ("{user_key}", "VS403"))],
    Case("admin", "select create_api_key('n', 'p', sha256('n'))", given="update levels set restrictions = '{\"api_keys\": 50}' where tenant_id = '{a}'"),
]  # fmt: skip

KEYS = (
    "insert into level_feature_keys (tenant_id, user_id, idempotency_key, feature, amount, answer)"
    f" values ('{{a}}', '{{%s}}', 'k', 'other', 9, '{{\"used\": 9}}'), ('{{a}}', '{{%s}}', 'k', {F}, 1, '{{}}')"
)
REVOKED_ADMIN = "update users set status = 'disabled' where tenant_id = '{a}' and id = '{admin}'"
THIRD = "update users set role = 'admin', status = 'disabled' where tenant_id = '{a}' and id = '{other}'"
KEEPS_ADMIN = "select vanilla.keep_an_admin(u) from users u where tenant_id = '{a}' and id = '{%s}' and set_config('vanilla.context', '{token_user}', true) <> ''"
GONE = "update users set status = 'deleted', email = null, external_id = null where tenant_id = '{a}' and id = '{user}'"
# taken away by hand: what the grant had left is no longer in the wallet
TAKEN = (
    "{as_admin}; select void_token_grant(grant_id, 'x') from payments where tenant_id = '{a}' and id = '{payment}';"
    " update user_token_grants set remaining = 7 where tenant_id = '{a}' and id = (select grant_id from payments where tenant_id = '{a}' and id = '{payment}')"
)
TAKE_BACK = (
    "select vanilla.take_tokens_back(w, (select grant_id from payments where tenant_id = '{a}' and id = '{payment}'), 5, 'x')"
    " from user_token_wallets w where tenant_id = '{a}' and user_id = '{user}'"
)
TERMS_OF_PLATFORM = (
    "insert into level_restrictions (tenant_id, level_id, type, amount) select tenant_id, id, 'api_keys', 5 from levels"
    " where tenant_id = '{platform}' and slug = 'basic'; set local session_replication_role = replica; insert into"
    " level_restrictions (tenant_id, level_id, type, amount) select '{twin}', id, 'tokens_per_minute', 7 from levels where tenant_id ="
    " '{platform}'; delete from levels where tenant_id = '{twin}' and slug = 'premium'; insert into levels (tenant_id, id, slug, name) select '{twin}', id, 'premium', 'x' from levels where tenant_id = '{platform}'"
    " and slug = 'basic'; set local session_replication_role = origin; update levels set slug = slug where tenant_id = '{platform}'"
)
CREATED = " and ".join(
    FRESH.replace("{t}", t) for t in ("level_features", "level_pricing", "level_benefits", "level_restrictions")
)
LAPSED = (
    "insert into payment_customers (tenant_id, user_id, account_tenant_id, customer_id) select t::uuid, '{user}', '{platform}', 'cus_' || t"
    " from unnest(array['{a}', '{twin}']) t; update payment_subscriptions set state = 'past_due', level_id = '{sold}', grace_until = vanilla.clock()"
)
ELSEWHERE = ", account_tenant_id = '{platform}'"
# what PostgREST does in a request; the roles are Supabase's
POSTGREST = (
    "create role authenticator; create role authenticated; grant authenticated to authenticator;"
    " grant usage on schema vanilla to authenticated; grant execute on function vanilla.claim to authenticated"
)
CLAIMED = (
    "select tenant from (select set_config('session_authorization', 'authenticator', true), set_config('role', 'authenticated', true),"
    """ set_config('request.jwt.claims', '{"sub": "{user}", "exp": 4102444800, "app_metadata": {"tenant_id": "{a}"}}', true),"""
    " vanilla.claim(3) as tenant, set_config('session_authorization', 'postgres', true)) x"
)
OTHERS = [
    Case("nobody", CLAIMED, "= ({a})", POSTGREST),
    *[Case("nobody", CLAIMED, "VS401 context refused", f"{POSTGREST}; {given}") for given in (DISABLED, SUSPENDED)],
    Case("user", KEYED, given="update tenants set status = 'closed' where id = '{twin}'"),
    Case("runtime", FOR, given=f"{CREATES}; update users set external_id = 'ext', status = 'disabled' where tenant_id = '{{twin}}' and id = '{{other}}'",
         audit="user.created"),
    Case("keeper", "select vanilla.erase_person(u, 'x') from users u where tenant_id = '{a}' and id = '{user}'", "VS404", GONE),
    Case("keeper", "select vanilla.hold_open(u) from users u where tenant_id = '{a}' and id = '{user}'", "VS404", GONE),
    *[Case("keeper", KEEPS_ADMIN % who, given=REVOKED_ADMIN) for who in ("user", "admin")],
    Case("keeper", KEEPS_ADMIN % "admin", "VS409"),
    Case("admin", "select set_user_status('{user}', 'disabled')", given=THIRD, then=unlocked("users", "tenant_id = '{a}' and id = '{other}'")),
    Case("keeper", TAKE_BACK, given=TAKEN, then=BOOKS),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}')", given=SHUT.replace("closed", "locked"), then=BOOKS),
    Case("admin", "select delete_level('{paid}')", given=f"{EMPTY}; insert into level_restrictions (tenant_id, level_id, type, amount) select t::uuid, '{{paid}}', 'api_keys', 5"
         " from unnest(array['{a}', '{twin}']) t"),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}')", "VS415", SHUT),
    Case("super", "select create_tenant('fresh', 'Fresh')", given=TERMS_OF_PLATFORM, then=CREATED),
    Case("keeper", "select vanilla.job_payments(10) ->> 'lapsed'", "= (1)", LAPSED + OF_A,
         then=unlocked("payment_customers", "tenant_id = '{a}' and account_tenant_id = '{platform}'")),
    Case("keeper", "select vanilla.job_payments(10) ->> 'lapsed'", "= (1)", LAPSED + ELSEWHERE + OF_A,
         then=unlocked("payment_customers", "tenant_id = '{a}' and account_tenant_id = '{a}'")),
    Case("keeper", "select vanilla.job_payments(1) ->> 'expired'", "= (1)", "insert into payments (tenant_id, user_id, account_tenant_id, cause, state, price_id, tokens,"
         " currency, amount) select '{a}', '{user}', '{a}', 'checkout', s, 'x', 50, 'USD', 500 from unnest(array['expired', 'expired', 'open']) s;"
         " update payments set created_at = vanilla.clock() - interval '26 h' where tenant_id = '{a}' and price_id = 'x'",
         then="not exists (select from payments where tenant_id = '{a}' and price_id = 'x' and state = 'open')"),
    Case("runtime", "select vanilla.settle_call('{a}', '{call}', 'succeeded', 5, 5, 0, 0) ->> 'settled'", "= (true)",
         f"{LATER % '{call}'}; select vanilla.reap_holds(); insert into ai_executions (tenant_id, created_at, id, user_id, provider, model, status)"
         " select '{a}', '2026-01-05', execution_id, user_id, 'x', 'x', 'failed' from user_token_holds where tenant_id = '{a}' and id = '{call}'",
         then="(select count(*) = 2 from ai_executions e join user_token_holds h on h.tenant_id = e.tenant_id and h.execution_id = e.id where h.tenant_id = '{a}' and h.id = '{call}')"),
    *[Case("admin", f"select consume_feature('{{{whose}}}', {F}, 1, 'k') ->> 'replayed'", f"= ({again})", KEYS % (other, used),
           then=f"(select answer ->> 'used' from level_feature_keys where tenant_id = '{{a}}' and user_id = '{{{other}}}' and idempotency_key = 'k') = '9'")
      for whose, other, used, again in (("user", "other", "user", "true"), ("other", "user", "other", "true"), ("user", "other", "admin", "false"))],
    Case("platform service", "select count(*) from token_ledger_anchor() where tenant_id <> '{platform}'", "= (0)"),
    Case("service", "select set_user_role('{admin}', 'user')", "VS409 the last admin stays one"),
    Case("opened", "select set_user_role('{admin}', 'user')", given=opening("a", "super"), then="(select role = 'user' from users where tenant_id = '{a}' and id = '{admin}')"),
    *[Case("super", f"select {ends}", "= (t)", opening("twin", "super"))
      for ends in ("close_tenant('{a}', 'why')", "leave_tenant('{a}') = 0")],
    Case("runtime", "select jsonb_array_length(vanilla.claim_webhook_deliveries())", "= (1)", "update webhook_deliveries set next_attempt_at = vanilla.clock()"
         " where (tenant_id, id) in (('{a}', '{failed}'), ('{twin}', '{failed}')); update webhook_endpoints set status = 'disabled',"
         " disabled_reason = 'x' where tenant_id = '{twin}'"),
    Case("runtime", "select jsonb_array_length(vanilla.claim_webhook_deliveries())", "= (0)", "update webhook_deliveries set next_attempt_at = vanilla.clock()"
         " where tenant_id = '{twin}' and id = '{failed}'; update webhook_endpoints set status = 'disabled', disabled_reason = 'x' where tenant_id = '{twin}'",
         then=unlocked("webhook_endpoints", "tenant_id = '{a}'")),
]  # fmt: skip

CASES = [*ANALYTICS, *PLANS, *WALLETS, *LOCKS, *OTHERS]
