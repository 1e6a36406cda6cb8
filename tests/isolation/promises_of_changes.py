"""Promises of changes of level in 007: whose level changes, along whose path, at whose price, and what time brings to whom."""

from tests.isolation.promises import Case, unlocked


def level(slug: str, tenant: str = "a") -> str:
    return f"(select id from levels where tenant_id = '{{{tenant}}}' and slug = '{slug}')"


def put(
    function: str, who: str = "user", to: str = "basic", more: str = "p_currency => 'USD', p_trial => false"
) -> str:
    return f"select {function}('{{{who}}}', {level(to)}{', ' if more else ''}{more})"


def given(table: str, columns: str, values: str, tenant: str = "a") -> str:
    return f"insert into {table} (tenant_id, {columns}) select '{{{tenant}}}', {values}"


OPEN = (
    "update level_upgrade_paths set self_service = true, timing = 'any', discount_percent = 0 where tenant_id = '{a}'"
)
CHANGE, PREVIEW = put("change_user_level"), put("preview_level_change")
NO_PATH = "delete from level_upgrade_paths where tenant_id = '{a}'"
ON_BASIC = (
    f"update user_token_wallets set level_id = {level('basic')} where tenant_id = '{{a}}' and user_id = '{{user}}'"
)
"""By hand, behind the twin's row."""
SUM = "(select coalesce(sum(amount), 0) from level_invoice_lines where tenant_id = '{a}' and user_id = '{user}' and created_at = vanilla.clock())"
HELD = "(select %s from user_subscriptions where tenant_id = '{a}' and user_id = '{user}')"
STATE = "(select state from level_changes where tenant_id = '{a}' and id = '{same_id}')"
ON = "(select l.slug from user_token_wallets w join levels l on l.tenant_id = w.tenant_id and l.id = w.level_id where w.tenant_id = '{a}' and w.user_id = '{user}')"


def scheduled(
    by: str = "'{user}'",
    tenant: str = "a",
    to: str = "basic",
    at: str = "vanilla.clock() + interval '1 day'",
    source: str = "{level}",
) -> str:
    """A change that waits, to a level of the tenant; its terms cost 700 in a month from its moment on."""
    return given(
        "level_changes",
        "id, user_id, from_level_id, to_level_id, timing, state, requested_at, effective_at, terms, actor_id",
        f"'{{same_id}}', '{{user}}', '{source}', {level(to, 'a')}, 'period_end', 'scheduled', vanilla.clock(), {at}, jsonb_build_object('to', '{to}',"
        f" 'from', 'free', 'from_level_id', '{{level}}', 'to_level_id', {level(to, 'a')}, 'cycle', 'monthly', 'currency', 'USD', 'amount', 900, 'rate', 700,"
        f" 'one_time', 0, 'since', {at}, 'in_period', false, 'period_start', {at}, 'period_end', {at} + interval '31 days', 'trial', false, 'due', 700,"
        f" 'lines', jsonb_build_array(jsonb_build_object('kind', 'charge', 'level', '{to}', 'amount', 700))), {by}",
        tenant,
    )


def due(tenant: str = "a", more: str = ", cycle = 'yearly', currency = 'JPY'") -> str:
    """A's (or the twin's) user pays for the level it is on, and its period has ended just now."""
    return (
        "update user_subscriptions set period_start = vanilla.clock() - interval '31 days', anchor_at = vanilla.clock() - interval '31 days',"
        " period_end = vanilla.clock(), amount = 333, agreed = jsonb_build_object(level_id, jsonb_build_object('rate', 333, 'fee', 44, 'since', vanilla.clock()))"
        f"{more} where tenant_id = '{{{tenant}}}' and user_id = '{{user}}'"
    )


PRICED = given(
    "level_pricing", "level_id, cycle, currency, amount, valid_from", "'{level}', 'quarterly', 'CHF', 555, '2026-01-01'"
)
ITS_PRICE = ", cycle = 'quarterly', currency = 'CHF'"
FEE = given(
    "level_pricing",
    "level_id, cycle, currency, amount, valid_from",
    f"{level('basic')}, 'one_time', 'USD', 100, '2026-01-01'",
)
FEE_LINE = ("id, user_id, level_id, kind, cycle, currency, amount, period_start, period_end, created_at",
            f"'{{same_id}}', '{{user}}', {level('basic')}, 'fee', 'monthly', 'USD', 100, '2026-01-01', '2026-02-01', '2026-01-01'")  # fmt: skip
TRIED = ("user_id, to_level_id, timing, state, requested_at, effective_at, closed_at, terms, trial, discount_percent",
         f"'{{user}}', {level('basic')}, 'now', 'applied', '2026-01-01', '2026-01-01', '2026-01-01', '{{}}', true, 5")  # fmt: skip
OFFER = "update level_upgrade_paths set discount_percent = 50, timing = 'now' where tenant_id = '{a}' and from_level_id = '{level}'; delete from level_upgrade_paths where tenant_id = '{a}' and to_level_id = '{level}'"
KEYED = ("id, user_id, to_level_id, timing, state, requested_at, effective_at, closed_at, terms, idempotency_key, request_hash",
         "'{same_id}', '{user}', '{level}', 'now', 'applied', '2026-01-01', '2026-01-01', '2026-01-01', '{\"due\": 77}', 'k', null")  # fmt: skip
EVER = given(
    "level_pricing",
    "level_id, cycle, currency, amount, valid_from",
    f"{level('basic')}, 'lifetime', 'USD', 5000, '2026-01-01'",
)
FOR_EVER = put("change_user_level", more="p_currency => 'USD', p_cycle => 'lifetime'")
RUNNING = (
    "update user_subscriptions set period_start = vanilla.clock() - interval '1 day', anchor_at = vanilla.clock() - interval '1 day', period_end = vanilla.clock() + interval '1 day',"
    " agreed = jsonb_build_object(level_id, jsonb_build_object('rate', 400, 'fee', 0, 'since', vanilla.clock() - interval '1 day')) where tenant_id = '{%s}' and user_id = '{user}'"
)
CHANGES = [
    Case("admin", f"{CHANGE} ->> 'due'", "= (900)", audit="level.changed", then=f"{SUM} = 900 and {HELD % 'amount'} = 900 and {ON} = 'basic'"),
    Case("service", f"{CHANGE} ->> 'due'", "= (900)"),
    Case("user", f"{CHANGE} ->> 'due'", "= (900)", OPEN, then=f"{SUM} = 900"),
    Case("user", CHANGE, "VS403"),
    Case("user", put("change_user_level", "other"), "VS403", OPEN),
    Case("admin", put("change_user_level", "b_user"), "VS404"),
    Case("operator", CHANGE, "VS404"),
    Case("nobody", CHANGE, "VS401"),
    Case("user", f"{PREVIEW} ->> 'due'", "= (900)", then=f"{SUM} = 0 and {ON} = 'free'"),
    Case("admin", f"{PREVIEW} ->> 'due'", "= (900)"),
    Case("user", put("preview_level_change", "other"), "VS403"),
    Case("admin", put("preview_level_change", "b_user"), "VS404"),
    Case("nobody", PREVIEW, "VS401"),
    Case("admin", CHANGE, "VS409", NO_PATH),
    Case("admin", CHANGE, "VS409", RETIRED := "update levels set status = 'retired' where tenant_id = '{a}' and slug = 'basic'"),
    Case("admin", put("change_user_level", to="free"), "VS409"),
    Case("admin", "select change_user_level('{user}', '{b_level}')", "VS404"),
    Case("admin", "select change_user_level('{user}', null)", "VS404"),
    *[Case("admin", put("change_user_level", more=more), code) for more, code in (
        ("'soon'", "VS400"), ("null", "VS400"), ("p_cycle => 'weekly'", "VS400"), ("p_currency => 'CHF'", "VS409"),
        ("p_currency => 'USD', p_cycle => 'quarterly'", "VS409"), ("p_currency => 'USD', p_payment_reference => ''", "VS400"),
        ("p_currency => 'USD', p_billed_amount => 1", "VS400"), ("'period_end', p_payment_reference => 'x'", "VS400"),
        ("p_currency => 'USD', p_idempotency_key => repeat('k', 256)", "VS400"))],
    Case("admin", CHANGE, "VS409", "update level_upgrade_paths set timing = 'period_end' where tenant_id = '{a}'"),
    Case("user", put("change_user_level", to="basic", more=""), "VS409", f"{OPEN}; delete from level_pricing where tenant_id = '{{a}}'"),
    # a sum of its own, not one that waits for the twin
    Case("admin", f"{CHANGE} ->> 'due'", "= (900)", scheduled(tenant="twin")),
    Case("admin", CHANGE, "VS409", scheduled()),
    Case("admin", put("change_user_level", more="p_currency => 'USD', p_payment_reference => 'in_1'"), given=f"{scheduled()}; {scheduled(tenant='twin')}; {NO_PATH}",
         then=f"{STATE} = 'lapsed' and (select count(*) from level_changes where id = '{{same_id}}' and state = 'scheduled') = 1"
              " and (select payment_reference from level_invoice_lines where tenant_id = '{a}' and created_at = vanilla.clock()) = 'in_1'"),
    Case("admin", put("change_user_level", more="p_currency => 'USD', p_payment_reference => 'in_1', p_billed_amount => 5"),
         then=f"{SUM} = 5 and (select count(*) from level_changes where tenant_id = '{{a}}' and user_id = '{{user}}' and state = 'applied') = 2"),
    Case("user", put("change_user_level", more="p_currency => 'USD', p_payment_reference => 'in_1'"), "VS403", OPEN),
    # once for a user and level, whatever another tenant's user had
    Case("admin", f"{put('preview_level_change', more='''p_currency => 'USD' ''')} ->> 'trial'", "= (true)", given("level_changes", *TRIED, tenant="twin")),
    Case("admin", f"{put('preview_level_change', more='''p_currency => 'USD' ''')} ->> 'trial'", "= (false)", given("level_changes", *TRIED)),
    Case("admin", f"{put('change_user_level', more='''p_currency => 'USD' ''')} ->> 'trial_credits'", "= (20000)",
         then=f"{HELD % 'trial'} and {SUM} = 0 and (select amount from user_token_grants g where g.tenant_id = '{{a}}' and g.id = {HELD % 'trial_grant_id'}) = 20000"
              " and (select trial_allocation from user_token_policies where tenant_id = '{a}' and user_id = '{user}') = 10000"),
    Case("admin", f"{PREVIEW} ->> 'due'", "= (450)", f"{OFFER}; {given('level_changes', *TRIED, tenant='twin')}"),
    Case("admin", f"{PREVIEW} ->> 'due'", "= (900)", f"{OFFER}; {given('level_changes', *TRIED)}"),
    Case("admin", f"{CHANGE} ->> 'due'", "= (1000)", f"{FEE}; {given('level_invoice_lines', *FEE_LINE, tenant='twin')}"),
    Case("admin", f"{CHANGE} ->> 'due'", "= (900)", f"{FEE}; {given('level_invoice_lines', *FEE_LINE)}"),
    Case("admin", f"{CHANGE} ->> 'due'", "= (900)", FEE.replace("{a}", "{twin}", 1)),
    Case("admin", f"{FOR_EVER} ->> 'due'", "= (5000)", f"{EVER}; {given('level_invoice_lines', FEE_LINE[0], FEE_LINE[1].replace('monthly', 'lifetime').replace('fee', 'charge'), 'twin')}"),
    Case("admin", f"{FOR_EVER} ->> 'due'", "= (0)", f"{EVER}; {given('level_invoice_lines', FEE_LINE[0], FEE_LINE[1].replace('monthly', 'lifetime').replace('fee', 'charge'))}"),
    Case("admin", f"{PREVIEW} ->> 'due'", "= (900)", RUNNING % "twin"),
    Case("admin", f"{PREVIEW} ->> 'due'", "= (250)", RUNNING % "a"),
    Case("admin", f"{CHANGE} ->> 'due'", "= (250)", RUNNING % "a",
         then=f"{SUM} = 250 and {HELD % 'allowances'} ? {level('basic')}::text and {HELD % 'agreed'} ? '{{level}}'"),
    Case("admin", put("change_user_level", more="p_currency => 'EUR'"), "VS409", RUNNING % "a"),
    Case("admin", put("change_user_level", more="p_cycle => 'yearly'"), "VS409", RUNNING % "a"),
    Case("admin", f"{put('change_user_level', more='''p_currency => 'USD', p_idempotency_key => 'k' ''')} ->> 'due'", "= (77)",
         given("level_changes", KEYED[0], KEYED[1].replace("null", "sha256(convert_to(jsonb_build_array({}, 'now', null, 'USD', true, null, null)::text, 'UTF8'))".format(level("basic")))),
         then=f"{ON} = 'free'"),
    Case("admin", put("change_user_level", more="p_currency => 'USD', p_idempotency_key => 'k'"), "VS410", given("level_changes", *KEYED)),
    Case("admin", f"{put('change_user_level', more='''p_currency => 'USD', p_trial => false, p_idempotency_key => 'k' ''')} ->> 'due'", "= (900)",
         given("level_changes", *KEYED, tenant="twin")),
    # tokens: the rest of 200,000 less the rest of 10,000; what is spent ahead binds a user
    Case("admin", f"{CHANGE} #>> '{{tokens,plan}}'", "= (200000)"),
    Case("user", put("change_user_level", to="free"), "VS409", f"{OPEN}; {ON_BASIC}; delete from level_pricing where tenant_id = '{{a}}' and level_id = '{{level}}' and false;"
         f" update user_token_grants set level_id = {level('basic')}, amount = 90000000 where tenant_id = '{{a}}' and user_id = '{{user}}' and kind = 'plan';"
         " update user_token_grants set remaining = 0 where tenant_id = '{a}' and user_id = '{user}' and kind = 'plan'"),
]  # fmt: skip

UNDO = "select undo_level_change('{user}')"
PATH = f"select set_upgrade_path('{{level}}', {level('basic')}, 7, 'now', true)"
ITS = f"(select %s from level_upgrade_paths where tenant_id = '{{a}}' and from_level_id = '{{level}}' and to_level_id = {level('basic')})"
JOB = "select vanilla.job_level_changes(9) ->> 'users'"
OTHERS = [
    Case("user", UNDO, given=f"{scheduled()}; {scheduled(tenant='twin')}", audit="level.change_undone",
         then=f"{STATE} = 'undone' and (select state from level_changes where tenant_id = '{{twin}}' and id = '{{same_id}}') = 'scheduled'"),
    Case("user", UNDO, "VS403", scheduled(by="'{admin}'")),
    Case("admin", UNDO, given=scheduled(), then=f"{STATE} = 'undone'"),
    Case("admin", UNDO, "VS409"),
    Case("admin", UNDO, "VS409", scheduled(tenant="twin")),
    Case("user", "select undo_level_change('{other}')", "VS403"),
    Case("admin", "select undo_level_change('{b_user}')", "VS404"),
    Case("nobody", UNDO, "VS401"),
    Case("admin", PATH, given="update level_upgrade_paths set timing = 'period_end' where tenant_id = '{a}'", audit="level.path",
         then=ITS % "discount_percent = 7 and self_service"),
    Case("admin", PATH, "VS409", "update level_upgrade_paths set timing = 'any' where tenant_id = '{a}'"),
    # a way back of the twin's closes no circle here
    Case("admin", PATH, given=f"{NO_PATH}; update level_upgrade_paths set timing = 'any' where tenant_id = '{{twin}}'"),
    Case("admin", PATH.replace(", 7, ", ", 0, "), given=f"{NO_PATH}; update level_upgrade_paths set timing = 'any', discount_percent = 9 where tenant_id = '{{twin}}'"),
    *[Case("admin", PATH.replace("7, 'now'", wrong), "VS400", NO_PATH) for wrong in ("101, 'now'", "7, 'soon'", "null, 'now'")],
    Case("admin", "select set_upgrade_path('{level}', '{level}')", "VS400"),
    Case("admin", "select set_upgrade_path('{level}', '{b_level}')", "VS404"),
    Case("admin", f"select set_upgrade_path('{{b_level}}', {level('basic')})", "VS404"),
    Case("user", PATH, "VS403"),
    Case("nobody", PATH, "VS401"),
    Case("admin", f"select set_upgrade_path('{{level}}', {level('basic')}, p_tenant_id => '{{b}}')", "VS404"),
    Case("admin", f"select delete_upgrade_path('{{level}}', {level('basic')})", audit="level.path_removed",
         then=f"not exists {ITS % '1'} and (select count(*) from level_upgrade_paths where tenant_id = '{{twin}}') = 12 and (select count(*) from level_upgrade_paths where tenant_id = '{{a}}') = 11"),
    Case("admin", f"select delete_upgrade_path('{{level}}', {level('basic')})", "VS404", NO_PATH),
    Case("user", f"select delete_upgrade_path('{{level}}', {level('basic')})", "VS403"),
    Case("nobody", f"select delete_upgrade_path('{{level}}', {level('basic')})", "VS401"),
    Case("super", "select create_tenant('fresh', 'Fresh')", then="(select count(*) from level_upgrade_paths p join tenants t on t.id = p.tenant_id where t.slug = 'fresh') = 12"),
    Case("admin", f"select delete_level({level('basic')})", "VS409", scheduled()),
    Case("admin", f"select delete_level({level('basic')})", "VS409", f"update user_subscriptions set level_id = {level('basic')} where tenant_id = '{{a}}'"),
    Case("admin", f"select delete_level({level('basic')})", given=f"{scheduled(tenant='twin')}; update user_subscriptions set level_id = {level('basic')} where tenant_id = '{{twin}}'",
         then="(select count(*) from level_upgrade_paths where tenant_id = '{a}') = 6 and (select count(*) from level_upgrade_paths where tenant_id = '{twin}') = 12"),
    # what time brings: a renewal at what it costs now, and by its own tenant's price; the end of a trial at what was agreed
    Case("keeper", JOB, "= (1)", due(), then=f"{SUM} = 333 and {HELD % 'period_start'} = vanilla.clock() and not {HELD % 'trial'}"),
    Case("keeper", JOB, "= (1)", f"{due(more=ITS_PRICE)}; {PRICED}", then=f"{SUM} = 555 and {HELD % 'amount'} = 555"),
    Case("keeper", JOB, "= (1)", f"{due(more=ITS_PRICE)}; {PRICED.replace('{a}', '{twin}', 1)}", then=f"{SUM} = 333"),
    Case("keeper", JOB, "= (1)", due(more=", trial = true, cycle = 'yearly', currency = 'JPY'"), then=f"{SUM} = 377 and {HELD % 'not trial'}"),
    Case("keeper", JOB, "= (1)", f"{due()}; {due('twin')}; update tenants set status = 'suspended' where id = '{{twin}}'", then=f"{SUM} = 333"),
    Case("keeper", JOB, "= (0)", f"{due()}; update tenants set status = 'suspended' where id = '{{a}}'", then=f"{SUM} = 0"),
    Case("keeper", JOB, "= (0)", f"{due()}; update users set status = 'deleted' where tenant_id = '{{a}}' and id = '{{user}}'"),
    Case("keeper", JOB, "= (1)", f"{due()}; {ON_BASIC}", then=f"{SUM} = 0 and not exists {HELD % '1'} and exists (select from user_subscriptions where tenant_id = '{{twin}}' and user_id = '{{user}}')"),
    Case("keeper", JOB, "= (1)", scheduled(at="vanilla.clock()"), then=f"{STATE} = 'applied' and {SUM} = 700 and {ON} = 'basic'"),
    Case("keeper", JOB, "= (1)", f"{scheduled(at='vanilla.clock()')}; {scheduled(tenant='twin')}", then="(select state from level_changes where tenant_id = '{twin}' and id = '{same_id}') = 'scheduled'"),
    Case("keeper", JOB, "= (1)", f"{scheduled(at='vanilla.clock()')}; {RETIRED}", then=f"{STATE} = 'lapsed' and {ON} = 'free'"),
    Case("keeper", JOB, "= (1)", scheduled(at="vanilla.clock()", source="{same_id}"), then=f"{STATE} = 'lapsed' and {ON} = 'free'"),
    Case("keeper", JOB, "= (0)", scheduled(), then=f"{STATE} = 'scheduled'"),
    Case("admin", "select erase_user('{user}', 'x')", given=f"{scheduled()}; {scheduled(tenant='twin')}",
         then=f"{STATE} = 'lapsed' and not exists {HELD % '1'} and exists (select from user_subscriptions where tenant_id = '{{twin}}' and user_id = '{{user}}')"
              " and (select state from level_changes where tenant_id = '{twin}' and id = '{same_id}') = 'scheduled'"
              " and not exists (select from level_changes where tenant_id = '{a}' and user_id = '{user}' and idempotency_key is not null)"
              " and exists (select from level_changes where tenant_id = '{twin}' and user_id = '{user}' and idempotency_key is not null)"),
]  # fmt: skip

UNPAID = "update user_subscriptions set cycle = null, currency = null where tenant_id = '{a}'"
KEPT = (
    "update user_subscriptions s set allowances = jsonb_build_object(w.level_id, jsonb_build_object('plan', %s, 'from', w.period_start, 'until', w.next_reset_at))"
    " from user_token_wallets w where w.tenant_id = s.tenant_id and w.user_id = s.user_id and s.tenant_id = '{a}' and s.user_id = '{user}'"
)
PLAN_LEFT = "(select coalesce(sum(remaining), 0) from user_token_grants where tenant_id = '{%s}' and user_id = '{user}' and kind = 'plan' and state = 'active')"
ABOUT_TRIAL = (
    "update user_token_policies set trial_allocation = 5 where tenant_id in ('{twin}', '{a}') and user_id = '{user}'"
)
TRIALS = "(select %s from user_token_policies where tenant_id = '{%s}' and user_id = '{user}')"
IN_TRIAL = "update user_subscriptions set trial = true, trial_grant_id = '{grant}' where tenant_id = '{a}' and user_id = '{user}'"
GRANT = "(select state from user_token_grants where tenant_id = '{%s}' and id = '{grant}')"
APPLIED = "exists (select from level_changes where tenant_id = '{a}' and user_id = '{user}' and state = 'applied')"
LATER = put("change_user_level", more="'period_end', p_currency => 'USD'")
AHEAD = (
    f"{OPEN}; {ON_BASIC}; update user_token_grants set level_id = {level('basic')}, amount = 90000000 where tenant_id = '{{a}}' and user_id = '{{user}}' and kind = 'plan';"
    " update user_token_grants set remaining = 0 where tenant_id = '{a}' and user_id = '{user}' and kind = 'plan'"
)
FINER = [
    Case("admin", LATER, audit="level.change_scheduled"),
    Case("admin", LATER, "VS409", "delete from user_subscriptions where tenant_id = '{a}'; update user_token_wallets set next_reset_at = null where tenant_id = '{a}'"),
    Case("keeper", JOB, "= (1)", f"{scheduled(at='vanilla.clock()')}; {RETIRED}", audit="level.change_lapsed"),
    Case("admin", f"{put('change_user_level', more='''p_currency => 'USD', p_trial => false, p_idempotency_key => 'k' ''')} ->> 'due'", "= (900)",
         given("level_changes", KEYED[0], KEYED[1].replace("{user}", "{other}"))),
    Case("admin", put("change_user_level", more="p_currency => 'USD', p_payment_reference => 'in_1'"), given=scheduled().replace("'{user}', '{level}', (", "'{other}', '{level}', ("),
         then=f"{STATE} = 'scheduled' and {APPLIED}"),
    Case("admin", UNDO, "VS409", scheduled().replace("'{user}', '{level}', (", "'{other}', '{level}', (")),
    Case("admin", CHANGE, given=IN_TRIAL, then=f"{GRANT % 'a'} = 'voided' and {GRANT % 'twin'} = 'active'"),
    Case("admin", CHANGE, given=f"{IN_TRIAL}; update user_token_grants set state = 'expired' where tenant_id = '{{a}}' and id = '{{grant}}'; update user_token_wallets w"
         " set available_tokens = 0, burn = 0 where tenant_id = '{a}' and user_id = '{user}'", then=f"{GRANT % 'a'} = 'expired'"),
    Case("keeper", JOB, "= (1)", f"{scheduled(at='vanilla.clock()')}; {KEPT % 0}",
         then="(select terms #>> '{tokens,rest_from}' from level_changes where tenant_id = '{a}' and id = '{same_id}') = '0'"),
    Case("admin", f"{CHANGE} #>> '{{tokens,granted}}'", "= (0)", KEPT % 900000000, then=f"{PLAN_LEFT % 'a'} = 0 and {PLAN_LEFT % 'twin'} > 0"),
    # what was voided before is not taken again
    Case("admin", CHANGE, given=f"{KEPT % 900000000}; insert into user_token_grants (tenant_id, user_id, kind, amount, remaining, effective_at, expires_at, state)"
         " values ('{a}', '{user}', 'plan', 500, 500, '2026-01-01', '2199-01-01', 'voided')",
         then="(select sum(remaining) from user_token_grants where tenant_id = '{a}' and user_id = '{user}' and kind = 'plan' and state = 'voided') = 500"),
    Case("admin", f"select delete_level({level('basic')})", given=given("level_changes", *TRIED)),
    Case("admin", "select erase_user('{user}', 'x')", then=APPLIED),
    Case("admin", f"{PREVIEW} ->> 'due'", "= (450)", f"{OFFER}; {given('level_changes', TRIED[0], TRIED[1].replace('applied', 'undone'))}"),
    Case("admin", PREVIEW, "VS415", "update user_token_wallets set status = 'closed' where tenant_id = '{a}'"),
    Case("admin", PREVIEW, "VS404", f"delete from level_token_policies where tenant_id = '{{a}}' and level_id = {level('basic')}"),
    Case("admin", put("preview_level_change", more=""), "VS400", UNPAID),
    Case("admin", f"{PREVIEW} ->> 'cycle'", "= (monthly)", UNPAID),
    Case("admin", f"{PREVIEW} ->> 'cycle'", "= (yearly)", f"{UNPAID}; delete from level_pricing where tenant_id = '{{a}}' and cycle = 'monthly'"),
    Case("admin", put("change_user_level", more="p_payment_reference => 'in', p_billed_amount => 5"), "VS400", f"{UNPAID}; delete from level_pricing where tenant_id = '{{a}}'"),
    Case("user", put("preview_level_change", to="free"), "VS409", AHEAD),
    Case("admin", f"{put('preview_level_change', to='free')} ->> 'to'", "= (free)", AHEAD),
    Case("admin", f"{PREVIEW} #>> '{{tokens,plan}}'", "= (200000)", f"update level_token_policies set monthly_allocation = 200000 where tenant_id = '{{a}}' and level_id = {level('basic')};"
         " update user_token_policies set monthly_allocation = 5 where tenant_id = '{twin}'; update user_token_policies set monthly_allocation = null where tenant_id = '{a}'"),
    Case("admin", f"select ({PREVIEW[7:]} #>> '{{tokens,rest_from}}')::bigint <= 10000", "= (t)",
         "update user_token_grants set amount = 900000000 where tenant_id = '{twin}' and kind = 'plan'; update user_token_grants set reason = null where tenant_id = '{a}'"),
    Case("keeper", JOB, "= (1)", f"{due()}; {scheduled(tenant='twin', at='vanilla.clock()')}; update tenants set status = 'suspended' where id = '{{twin}}'",
         then=f"{SUM} = 333 and (select state from level_changes where tenant_id = '{{twin}}' and id = '{{same_id}}') = 'scheduled'"),
    Case("keeper", JOB, "= (1)", f"{due(more=', trial = true')}; {ABOUT_TRIAL}".replace(", trial = true", ", trial = true, cycle = 'yearly', currency = 'JPY'"),
         then=f"{TRIALS % ('trial_allocation', 'twin')} = 5 and {TRIALS % ('trial_allocation is null', 'a')}"),
    Case("admin", f"select auto_allocate_tokens_for_level('{{user}}', {level('basic')})", given=ABOUT_TRIAL,
         then=f"{TRIALS % ('trial_allocation', 'twin')} = 5 and {TRIALS % ('trial_allocation is null', 'a')}"),
]  # fmt: skip

POLICIES = "tenant_id = '{a}' and level_id in (select id from levels where tenant_id = '{a}' and slug in ('premium', 'enterprise'))"
# what the twin waits for, what it is on, and what was undone here needs no policy of A's
ELSEWHERE = (
    f"{OPEN}; {scheduled(tenant='twin', to='premium')}; update user_subscriptions set level_id = {level('enterprise')}"
    f" where tenant_id = '{{twin}}' and user_id = '{{user}}'; {scheduled(to='premium')}; update level_changes"
    " set state = 'undone', closed_at = vanilla.clock() where tenant_id = '{a}' and id = '{same_id}'"
)
LATEST = (
    "update level_changes set requested_at = vanilla.clock() where tenant_id = '{twin}' or tenant_id = '{a}' and user_id = '{other}';"
    """ update level_changes set terms = '{"to": "theirs"}' where tenant_id = '{a}' and user_id = '{other}'"""
)
LOCKS = [
    Case("user", CHANGE, given=ELSEWHERE, then=unlocked("level_token_policies", POLICIES)),
    Case("user", CHANGE, "VS409 another change is scheduled", f"{OPEN}; {scheduled()}; {scheduled(tenant='twin')}"),
    Case("user", "select undo_level_change('{user}')", 'VS409 no change is scheduled {"to": "plain', LATEST),
    Case("admin", CHANGE, given=f"{OPEN}; update user_token_wallets set status = 'locked' where tenant_id = '{{a}}' and user_id = '{{user}}'"),
]  # fmt: skip

CASES = [*CHANGES, *OTHERS, *FINER, *LOCKS]
