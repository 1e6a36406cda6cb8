"""Promises of 007: whose features are counted, whose terms change, and what of it anybody may read."""

import json

from tests.isolation.promises import Case

F = "'document-analysis'"
CHECK = f"select check_feature('{{user}}', {F})"
CONSUME = f"select consume_feature('{{user}}', {F}"


def limit(n: str, level: str = "level", feature: str = "document-analysis") -> str:
    """The limit of A's level, behind the twin's in the heap."""
    return (
        f"update level_features set usage_limit = {n}, period = case when {n} is null then null else 'daily' end,"
        f" enabled = true where tenant_id = '{{a}}' and level_id = '{{{level}}}' and feature = '{feature}'"
    )


def used(n: int, user: str = "user") -> str:
    return (
        f"(select used from level_feature_usage where tenant_id = '{{a}}' and user_id = '{{{user}}}'"
        f" and feature = 'document-analysis') = {n}"
    )


GONE = "delete from level_features where tenant_id = '{a}' and feature = 'document-analysis'"
NO_LEVEL = "update user_token_wallets set level_id = null where tenant_id = '{a}' and user_id = '{user}'"
ON_PAID = "update user_token_wallets set level_id = '{paid}' where tenant_id = '{a}' and user_id = '{user}'"
KEY = "insert into level_feature_keys (tenant_id, user_id, idempotency_key, feature, amount, answer) values"
RETIRED = "update levels set status = 'retired' where tenant_id = '{a}' and slug = 'basic'"
FEATURES = [
    Case("user", f"{CHECK} ->> 'used'", "= (1)"),
    Case("user", f"{CHECK} ->> 'limit'", "= (5)"),
    Case("user", f"{CHECK} ->> 'level'", "= (free)"),
    Case("user", f"{CHECK} ->> 'allowed'", "= (true)"),
    Case("user", f"{CHECK} ->> 'resets_at'", "= ()", limit("null")),
    Case("user", f"{CHECK} -> 'allowed_by' ->> 'slug'", "= (basic)", limit("1")),
    Case("user", f"{CHECK} -> 'allowed_by' ->> 'slug'", "= (premium)", f"{limit('1')}; {RETIRED}"),
    Case("user", f"{CHECK} -> 'allowed_by' ->> 'slug'", "= ()", GONE),
    Case("user", f"{CHECK} ->> 'reason'", "= (limit)", limit("1")),
    Case("user", f"{CHECK} ->> 'reason'", "= (not_in_level)", GONE),
    Case("user", f"{CHECK} ->> 'reason'", "= (no_level)", NO_LEVEL),
    Case("user", "select check_feature('{user}', 'report-export') ->> 'reason'", "= (off)"),
    Case("user", "select check_feature('{user}', 'report-export') -> 'allowed_by' ->> 'slug'", "= (basic)"),
    # the end of a day is the tenant's own, not the twin's on the other side of the world
    Case("user", f"select ({CHECK[7:]} ->> 'resets_at')::timestamptz at time zone 'UTC' = date_trunc('day',"
         " vanilla.clock() at time zone 'UTC') + interval '1 day'", "= (t)"),
    Case("user", f"select check_feature('{{other}}', {F})", "VS403"),
    Case("admin", f"select check_feature('{{other}}', {F}) ->> 'used'", "= (1)"),
    Case("admin", f"select check_feature('{{admin}}', {F}) ->> 'used'", "= (0)"),
    Case("service", f"{CHECK} ->> 'used'", "= (1)"),
    Case("admin", f"select check_feature('{{b_user}}', {F})", "VS404"),
    Case("operator", CHECK, "VS404"),
    Case("nobody", CHECK, "VS401"),
    Case("user", f"{CONSUME}) ->> 'used'", "= (2)", then=used(2)),
    Case("user", f"{CONSUME}, 4) ->> 'remaining'", "= (0)", then=used(5)),
    Case("user", f"{CONSUME}, 5)", "VS429", then=used(1)),
    Case("admin", f"select consume_feature('{{admin}}', {F}, 6)", "VS429"),
    Case("admin", f"select consume_feature('{{admin}}', {F}, 5) ->> 'used'", "= (5)", then=used(5, "admin")),
    Case("user", f"{CONSUME}) ->> 'limit'", "= (9)", f"{ON_PAID}; {limit('9', 'paid')}; {limit('7')}"),
    Case("user", f"select ({CONSUME[7:]}) ->> 'resets_at')::timestamptz at time zone 'UTC' = date_trunc('day',"
         " vanilla.clock() at time zone 'UTC') + interval '1 day'", "= (t)"),
    Case("user", "select consume_feature('{user}', 'report-export')", "VS403"),
    Case("user", "select consume_feature('{user}', 'twin-only')", "VS403"),
    Case("user", f"{CONSUME})", "VS403", NO_LEVEL),
    Case("user", f"{CONSUME}, 0)", "VS400"),
    Case("user", f"{CONSUME}, null)", "VS400"),
    Case("user", f"{CONSUME}, 1000000000001)", "VS400"),
    Case("user", "select consume_feature('{user}', null)", "VS400"),
    Case("user", f"{CONSUME}, 1, repeat('k', 256))", "VS400"),
    Case("user", f"select consume_feature('{{other}}', {F})", "VS403"),
    Case("admin", f"select consume_feature('{{other}}', {F}) ->> 'used'", "= (2)", then=used(2, "other")),
    Case("admin", f"select consume_feature('{{b_user}}', {F})", "VS404"),
    Case("operator", f"{CONSUME})", "VS404"),
    Case("nobody", f"{CONSUME})", "VS401"),
    Case("user", f"{CONSUME}, 1, 'k') ->> 'replayed'", "= (false)",
         then="(select answer ->> 'used' from level_feature_keys where tenant_id = '{a}' and idempotency_key = 'k') = '2'"),
    Case("user", f"{CONSUME}, 1, 'k') ->> 'used'", "= (77)", f"{KEY} ('{{a}}', '{{user}}', 'k', {F}, 1, '{{\"used\": 77}}')",
         then=used(1)),
    Case("user", f"{CONSUME}, 2, 'k')", "VS410", f"{KEY} ('{{a}}', '{{user}}', 'k', {F}, 1, '{{}}')"),
    Case("user", f"{CONSUME}, 1, 'k')", "VS410", f"{KEY} ('{{a}}', '{{user}}', 'k', 'other', 1, '{{}}')"),
    # a key of the twin's, and of another user of the tenant, is another key
    Case("user", f"{CONSUME}, 1, 'k') ->> 'replayed'", "= (false)", f"{KEY} ('{{twin}}', '{{user}}', 'k', {F}, 1, '{{}}')"),
    Case("user", f"{CONSUME}, 1, 'k') ->> 'replayed'", "= (true)", f"{KEY} ('{{twin}}', '{{user}}', 'k', 'other', 9, '{{}}'),"
         f" ('{{a}}', '{{user}}', 'k', {F}, 1, '{{}}'), ('{{a}}', '{{other}}', 'k', 'other', 9, '{{}}')"),
]  # fmt: skip

SET = "select set_level_feature('{level}', 'new'"
PRICE = "select set_level_price('{level}', 'yearly', 'CHF', 100"
SECOND = (
    "insert into level_pricing (tenant_id, id, level_id, cycle, currency, amount, valid_from)"
    " values ('{a}', '{same_id}', '{level}', 'yearly', 'CHF', 5, '%s')"
)
ITS = "(select %s from level_pricing where tenant_id = '{a}' and id = '{same_id}')"
OLD, NEW = "2026-01-01", "2198-01-01"
NEW_LEVEL = "select set_level('new-level', 'New'"
LEVEL = "(select %s from levels where tenant_id = '{a}' and slug = 'new-level')"
EMPTY = "update user_token_wallets set level_id = '{level}' where tenant_id = '{a}'"
TERMS = [
    Case("admin", f"{SET}, 5, 'daily')", audit="level.feature",
         then="(select usage_limit from level_features where tenant_id = '{a}' and level_id = '{level}' and feature = 'new') = 5"),
    Case("service", f"{SET})"),
    Case("user", f"{SET})", "VS403"),
    Case("nobody", f"{SET})", "VS401"),
    Case("admin", f"{SET}, p_tenant_id => '{{b}}')", "VS404"),
    Case("admin", "select set_level_feature('{b_level}', 'new')", "VS404"),
    Case("admin", f"{SET}, 5)", "VS400 a limit needs a period"),
    Case("admin", f"{SET}, null, 'daily')", "VS400"),
    Case("admin", f"{SET}, -1, 'daily')", "VS400"),
    Case("admin", "select set_level_feature('{level}', null)", "VS400"),
    Case("admin", f"select delete_level_feature('{{level}}', {F})", audit="level.feature_removed",
         then="(select count(*) from level_features where tenant_id = '{a}' and feature = 'document-analysis') = 3"),
    Case("admin", "select delete_level_feature('{level}', 'twin-only')", "VS404",
         "insert into level_features (tenant_id, level_id, feature) values ('{twin}', '{level}', 'twin-only')"),
    Case("admin", "select delete_level_feature('{level}', 'absent')", "VS404"),
    Case("user", f"select delete_level_feature('{{level}}', {F})", "VS403"),
    Case("admin", f"select delete_level_feature('{{b_level}}', {F})", "VS404"),
    Case("admin", f"{PRICE})", audit="level.price"),
    Case("user", f"{PRICE})", "VS403"),
    Case("nobody", f"{PRICE})", "VS401"),
    Case("admin", "select set_level_price('{b_level}', 'yearly', 'CHF', 100)", "VS404"),
    Case("admin", f"{PRICE})", "VS409", SECOND % OLD),
    Case("admin", f"{PRICE}, p_replace => true)", given=SECOND % OLD, then=ITS % "valid_until = vanilla.clock()"),
    Case("admin", f"{PRICE}, p_valid_from => '{OLD}', p_replace => true)", given=SECOND % OLD, then="not exists " + ITS % ""),
    Case("admin", f"{PRICE}, p_replace => true)", "VS409", SECOND % NEW),
    # what the twin asks for at the same time is its own affair
    Case("admin", f"{PRICE})", given=(SECOND % OLD).replace("'{a}'", "'{twin}'")),
    Case("admin", f"{PRICE}, p_replace => true)", given=(SECOND % OLD) + ", " + (SECOND % OLD).partition("values ")[2].replace("{a}", "{twin}"),
         then=ITS % "valid_until = vanilla.clock()"),
    Case("admin", f"{PRICE}, p_valid_from => '{OLD}', p_replace => true)",
         given=(SECOND % OLD) + ", " + (SECOND % OLD).partition("values ")[2].replace("{a}", "{twin}"), then="not exists " + ITS % ""),
    Case("admin", f"{PRICE}, p_valid_until => '{OLD}')", "VS400 a price ends after it begins"),
    Case("admin", "select set_level_price('{level}', 'yearly', 'XXX', 100)", "VS400"),
    Case("admin", "select end_level_price('{same_id}')", given=SECOND % OLD, audit="level.price_ended", then=ITS % "valid_until = vanilla.clock()"),
    Case("admin", "select end_level_price('{same_id}')", given=SECOND % NEW, then="not exists " + ITS % ""),
    Case("admin", "select end_level_price('{same_id}')", given=(SECOND % NEW) + ", " + (SECOND % NEW).partition("values ")[2].replace("{a}", "{twin}"),
         then="not exists " + ITS % ""),
    Case("admin", "select end_level_price('{same_id}')", given=(SECOND % OLD) + ", " + (SECOND % OLD).partition("values ")[2].replace("{a}", "{twin}"),
         then=ITS % "valid_until = vanilla.clock()"),
    Case("admin", "select end_level_price('{same_id}')", "VS404", (SECOND % OLD).replace("'{a}'", "'{twin}'")),
    Case("admin", "select end_level_price('{same_id}')", "VS409", f"{SECOND % OLD}; update level_pricing set valid_until = vanilla.clock()"
         " where tenant_id = '{a}' and id = '{same_id}'"),
    Case("user", "select end_level_price('{same_id}')", "VS403", SECOND % OLD),
    Case("admin", "select set_level_benefits('{level}', '[{\"text\": \"x\"}]')", "= (1)", audit="level.benefits",
         then="(select array_agg(text) from level_benefits where tenant_id = '{a}' and level_id = '{level}') = '{x}'"),
    Case("user", "select set_level_benefits('{level}', '[]')", "VS403"),
    Case("admin", "select set_level_benefits('{b_level}', '[]')", "VS404"),
    Case("admin", "select set_level_benefits('{level}', '{}')", "VS400"),
    Case("admin", "select set_level_benefits('{level}', '[{\"text\": \"\"}]')", "VS400"),
    Case("admin", f"{NEW_LEVEL}, p_tier => 9)", audit="level.set", then=LEVEL % "tier = 9 and not is_default"),
    Case("admin", f"{NEW_LEVEL}, p_is_default => true)", then=LEVEL % "is_default"
         + " and (select count(*) from levels where tenant_id = '{a}' and is_default) = 1"),
    Case("admin", f"{NEW_LEVEL})", given="update levels set is_default = false where tenant_id = '{a}'", then=LEVEL % "is_default"),
    Case("user", f"{NEW_LEVEL})", "VS403"),
    Case("nobody", f"{NEW_LEVEL})", "VS401"),
    Case("admin", f"{NEW_LEVEL}, p_tenant_id => '{{b}}')", "VS404"),
    Case("admin", "select set_level('A b', 'x')", "VS400"),
    Case("operator", f"{NEW_LEVEL}, p_tenant_id => '{{provider}}')", "VS404"),
    Case("operator", f"{NEW_LEVEL}, p_tenant_id => '{{a}}')", "VS404", "update tenants set status = 'closed' where id = '{a}'"),
    Case("operator", f"{NEW_LEVEL}, p_tenant_id => '{{a}}')", then=LEVEL % "true"),
    Case("admin", "select delete_level('{paid}')", given=EMPTY, audit="level.deleted",
         then="not exists (select from levels where tenant_id = '{a}' and id = '{paid}')"
              " and (select count(distinct level_id) from level_features where tenant_id = '{a}') = 3"
              " and (select count(*) from level_token_policies where tenant_id = '{a}') = 3"),
    Case("admin", "select delete_level('{paid}')", "VS409 1 users are on the level", ON_PAID),
    Case("admin", "select delete_level('{paid}')", given=f"{EMPTY}; {ON_PAID.replace('{a}', '{twin}')}"),
    Case("admin", "select delete_level('{level}')", "VS409"),
    Case("admin", "select delete_level('{level}')", "VS409", "update user_token_wallets set level_id = '{paid}' where tenant_id = '{a}';"
         " delete from user_subscriptions where tenant_id = '{a}'"),
    Case("user", "select delete_level('{paid}')", "VS403"),
    Case("admin", "select delete_level('{b_level}')", "VS404"),
    Case("nobody", "select delete_level('{paid}')", "VS401"),
]  # fmt: skip


def rate(**rules: object) -> str:
    """A's default level with these restrictions and no other."""
    return f"update levels set restrictions = '{json.dumps(rules)}' where tenant_id = '{{a}}' and id = '{{level}}'"


ADMIT = (
    "select vanilla.admit_call({user_key}, null, null, 'sandbox-small', 1, 1, 1, 1, gen_random_uuid(), false, '60 s')"
)
BY_SESSION = ADMIT.replace("{user_key}, null", "null, {user_session}")
FOR_OTHER = ADMIT.replace("{user_key}, null, null", "{user_key}, null, 'own'")
ACTS = (
    "update api_keys set scopes = '{chat,act_as}' where tenant_id = '{a}' and user_id = '{user}';"
    " update users set external_id = 'own' where tenant_id = '{a}' and id = '{other}'"
)
WINDOW = "(select %s from user_rate_windows where tenant_id = '{a}' and user_id = '{user}')"
FULL = (
    "delete from user_rate_windows where tenant_id = '{a}'; insert into user_rate_windows"
    " (tenant_id, user_id, minute_at, minute_requests, minute_tokens, day, day_requests)"
    " select '{a}', '{user}', date_trunc('minute', vanilla.clock()), 3, 30, (vanilla.clock() at time zone 'UTC')::date, 3"
)
KEYED = "select create_api_key('n', 'p', sha256('new'))"
RULES = [
    Case("admin", "select set_level_restriction('{level}', 'api_keys', 5)", audit="level.restriction",
         then="(select restrictions ->> 'api_keys' from levels where tenant_id = '{a}' and id = '{level}') = '5'"),
    Case("admin", "select set_level_restriction('{level}', 'api_keys', 5)",
         then="(select count(*) from levels where tenant_id = '{a}' and restrictions ? 'api_keys') = 1"),
    Case("user", "select set_level_restriction('{level}', 'api_keys', 5)", "VS403"),
    Case("nobody", "select set_level_restriction('{level}', 'api_keys', 5)", "VS401"),
    Case("admin", "select set_level_restriction('{b_level}', 'api_keys', 5)", "VS404"),
    Case("admin", "select set_level_restriction('{level}', 'odd', 5)", "VS400"),
    Case("admin", "select delete_level_restriction('{level}', 'requests_per_minute')", audit="level.restriction_removed",
         then="(select restrictions from levels where tenant_id = '{a}' and id = '{level}') ->> 'requests_per_minute' is null"
              " and (select count(*) from level_restrictions where tenant_id = '{a}') = 2"),
    Case("admin", "select delete_level_restriction('{level}', 'api_keys')", "VS404"),
    Case("user", "select delete_level_restriction('{level}', 'requests_per_minute')", "VS403"),
    Case("admin", "select delete_level_restriction('{b_level}', 'requests_per_minute')", "VS404"),
    *[Case("runtime", admit) for admit in (ADMIT, BY_SESSION)],
    Case("runtime", FOR_OTHER, given=ACTS),
    *[Case("runtime", admit, "VS429", rate(requests_per_minute=0)) for admit in (ADMIT, BY_SESSION)],
    Case("runtime", FOR_OTHER, "VS429", f"{ACTS}; {rate(requests_per_minute=0)}"),
    Case("runtime", ADMIT, "VS403", rate(denied_models="^(sandbox-.*)$")),
    Case("runtime", ADMIT, "VS403", rate(allowed_models="^(sandbox-large)$")),
    Case("runtime", ADMIT, "VS400", rate(max_prompt_tokens=0)),
    Case("runtime", ADMIT, "VS400", rate(max_output_tokens=0)),
    Case("runtime", ADMIT, "VS429", f"{rate(requests_per_minute=3)}; {FULL}"),
    Case("runtime", ADMIT, given=f"{rate(requests_per_minute=4)}; {FULL}", then=WINDOW % "minute_requests = 4"),
    Case("runtime", ADMIT, "VS429", f"{rate(tokens_per_minute=31)}; {FULL}"),
    Case("runtime", ADMIT, given=f"{rate(tokens_per_minute=32)}; {FULL}", then=WINDOW % "minute_tokens = 32"),
    Case("runtime", ADMIT, "VS429", f"{rate(requests_per_day=3)}; {FULL}"),
    Case("runtime", ADMIT, given=f"{rate(requests_per_day=4)}; {FULL}", then=WINDOW % "day_requests = 4"),
    Case("runtime", ADMIT, "VS429", rate(concurrent_executions=1)),
    Case("runtime", ADMIT, given=f"{rate(concurrent_executions=1)}; update user_token_holds set state = 'settled', closed_at = vanilla.clock()"
         " where tenant_id = '{a}' and user_id = '{user}' and call is not null and state = 'open'"),
    Case("runtime", ADMIT, given=f"{rate(concurrent_executions=1)}; update user_token_holds set expires_at = vanilla.clock()"
         " where tenant_id = '{a}' and user_id = '{user}' and call is not null"),
    Case("runtime", "select vanilla.settle_call('{a}', '{call}', 'succeeded', 0, 0, 0, 0)",
         given=f"{FULL}; update user_token_holds set call = call || '{{\"rate\": true}}', created_at = vanilla.clock() where tenant_id = '{{a}}' and id = '{{call}}'",
         then=WINDOW % "minute_tokens = 10"),
    Case("user", KEYED),
    Case("user", KEYED, "VS429", rate(api_keys=1)),
    Case("user", KEYED, given=rate(api_keys=2)),
    Case("user", KEYED, given=rate(api_keys=1) + "; update api_keys set revoked_at = vanilla.clock() where tenant_id = '{a}' and user_id = '{user}'"),
    Case("user", KEYED, given=rate(api_keys=1) + "; update api_keys set expires_at = vanilla.clock() where tenant_id = '{a}' and user_id = '{user}'"),
]  # fmt: skip

LIST = "select vanilla.public_pricing('{word}')"
PRIVATE = "insert into system_configurations (tenant_id, key, value) values ('{%s}', 'pricing.public', 'false')"
FRESH = "(select count(*) from {t} x join tenants t on t.id = x.tenant_id where t.slug = 'fresh') = (select count(*) from {t} where tenant_id = '{platform}')"
BEGAN = "update level_feature_usage set period_start = '2020-01-01' where tenant_id = '{a}' and user_id = '{user}'"
LONG_AGO = "update level_feature_keys set created_at = '2020-01-01' where tenant_id = '{a}' and user_id = '{user}'"
OTHERS = [
    Case("runtime", f"{LIST} ->> 'tenant'", "= ({word})"),
    Case("runtime", f"select jsonb_array_length({LIST[7:]} -> 'levels')", "= (4)"),
    Case("runtime", f"select jsonb_array_length({LIST[7:]} -> 'levels' -> 1 -> 'prices')", "= (4)"),
    Case("runtime", f"select jsonb_array_length({LIST[7:]} -> 'levels' -> 1 -> 'benefits')", "= (3)"),
    Case("runtime", f"select jsonb_array_length({LIST[7:]} -> 'levels' -> 1 -> 'features')", "= (3)"),
    Case("runtime", f"select {LIST[7:]} -> 'levels' -> 1 -> 'tokens' ->> 'amount'", "= (200000)"),
    Case("runtime", f"select jsonb_array_length({LIST[7:]} -> 'levels')", "= (3)", RETIRED),
    Case("runtime", LIST, "VS404", "update tenants set status = 'suspended' where id = '{a}'"),
    Case("runtime", LIST, "VS404", PRIVATE % "a"),
    Case("runtime", LIST, given=PRIVATE % "twin"),
    Case("runtime", "select vanilla.public_pricing('nobody-here')", "VS404"),
    *[Case("super", "select create_tenant('fresh', 'Fresh')", then=FRESH.replace("{t}", table))
      for table in ("level_features", "level_pricing", "level_benefits", "level_restrictions")],
    Case("keeper", "select vanilla.job_feature_usage(5)", given=f"{BEGAN}; {LONG_AGO}",
         then="not exists (select from level_feature_keys where tenant_id = '{a}' and user_id = '{user}')"
              " and not exists (select from level_feature_usage where tenant_id = '{a}' and user_id = '{user}')"
              " and exists (select from level_feature_usage where tenant_id = '{a}' and user_id = '{other}')"),
]  # fmt: skip


def bound(kind: str, amount: int, tier: str = "free") -> str:
    """A has a plan of the platform that says so; the twin has another, which says nothing of it."""
    return (
        f"insert into level_restrictions (tenant_id, level_id, type, amount) select tenant_id, id, '{kind}', {amount}"
        f" from levels where tenant_id = '{{platform}}' and slug = '{tier}';"
        f" update tenants set subscription_tier = '{tier}' where id = '{{a}}'"
    )


def stopped(until: str) -> str:
    return f"update tenants set calls_stopped_until = {until} where id = '{{a}}'"


NEW_USER = "select create_user('one@more.test')"
GONE_USER = (
    "update users set status = 'deleted', email = null, external_id = null where tenant_id = '{a}' and id = '{other}'"
)
NOT_BOUND = "update tenants set subscription_tier = null where id = '{a}'"
PUT = "select set_subscription_tier('{a}', 'basic')"
ON_BASIC = "(select subscription_tier from tenants where id = '{a}') = 'basic'"
OF_BASIC = "update tenants set subscription_tier = 'basic' where id = '{a}'"
SPENT = "(select sum(spent_tokens) from user_token_wallets where tenant_id = '{a}')"
PLANS = [
    Case("admin", NEW_USER, "VS429", bound("users_per_tenant", 3)),
    Case("admin", NEW_USER, given=bound("users_per_tenant", 4)),
    Case("admin", NEW_USER, given=f"{bound('users_per_tenant', 3)}; {GONE_USER}"),
    Case("admin", NEW_USER, given=f"{bound('users_per_tenant', 3)}; {NOT_BOUND}"),
    # the plan of the twin binds the twin, and a level of A's of that name binds nobody's tenant
    Case("admin", NEW_USER, given=bound("users_per_tenant", 3, "premium").replace("{a}", "{twin}")),
    Case("admin", NEW_USER, given="insert into level_restrictions (tenant_id, level_id, type, amount) values"
         " ('{a}', '{level}', 'users_per_tenant', 3)"),
    *[Case("runtime", admit, "VS429", stopped("vanilla.clock() + interval '1 s'")) for admit in (ADMIT, BY_SESSION)],
    *[Case("runtime", admit, given=stopped("vanilla.clock()")) for admit in (ADMIT, BY_SESSION)],
    *[Case("runtime", admit, given=stopped("'2190-01-01'").replace("{a}", "{twin}")) for admit in (ADMIT, BY_SESSION)],
    Case("super", PUT, audit="tenant.subscription_tier", then=ON_BASIC),
    Case("operator", PUT, then=ON_BASIC),
    Case("super", "select set_subscription_tier('{a}', null)", given=OF_BASIC, then="not coalesce(" + ON_BASIC + ", false)"),
    *[Case(who, PUT, "VS403") for who in ("admin", "user", "service", "opened")],
    *[Case(who, PUT, "VS403") for who in ("platform user",)],
    Case("nobody", PUT, "VS401"),
    Case("super", PUT, "VS404", "update levels set status = 'retired' where tenant_id = '{platform}' and slug = 'basic'"),
    Case("super", "select set_subscription_tier('{a}', 'new-level')", "VS404",
         "insert into levels (tenant_id, slug, name) values ('{twin}', 'new-level', 'x'), ('{a}', 'new-level', 'x')"),
    Case("super", "select set_subscription_tier('{provider}', 'basic')", "VS404"),
    Case("super", "select set_subscription_tier('{platform}', 'basic')", "VS409"),
    Case("super", PUT, given=bound("tokens_per_tenant", 1, "basic"), then="(select calls_stopped_until > vanilla.clock() from tenants where id = '{a}')"),
    Case("super", PUT, given=stopped("'2190-01-01'"), then="(select calls_stopped_until is null from tenants where id = '{a}')"),
    Case("admin", "select tenant_plan() ->> 'tier'", "= (basic)", OF_BASIC),
    Case("admin", "select tenant_plan() -> 'users' ->> 'used'", "= (3)"),
    Case("admin", "select tenant_plan() -> 'users' ->> 'used'", "= (2)", GONE_USER),
    Case("admin", "select tenant_plan() -> 'users' ->> 'limit'", "= (8)", bound("users_per_tenant", 8)),
    Case("admin", "select (tenant_plan() #>> '{{tokens,used}}')::bigint = (select sum(spent_tokens) from user_token_wallets)".replace("{{", "{").replace("}}", "}"), "= (t)"),
    Case("admin", "select tenant_plan() -> 'tokens' ->> 'used'", "= (5)",
         f"insert into tenant_token_months select '{{a}}', date_trunc('month', vanilla.clock() at time zone 'UTC'), {SPENT} - 5"),
    Case("admin", "select tenant_plan() -> 'tokens' ->> 'stopped'", "= (false)", stopped("vanilla.clock()")),
    Case("user", "select tenant_plan()", "VS403"),
    Case("nobody", "select tenant_plan()", "VS401"),
    Case("admin", "select tenant_plan('{b}')", "VS404"),
    Case("operator", "select tenant_plan('{provider}')", "VS404"),
    Case("super", "select delete_level((select id from levels where slug = 'basic'))", "VS409", OF_BASIC),
    Case("super", "select delete_level((select id from levels where slug = 'basic'))"),
    Case("admin", "select set_level_restriction('{level}', 'users_per_tenant', 5)", "VS400"),
    Case("keeper", "select vanilla.job_tenant_tokens(5)", given=bound("tokens_per_tenant", 1),
         then="(select calls_stopped_until > vanilla.clock() from tenants where id = '{a}')"),
    Case("keeper", "select vanilla.job_tenant_tokens(5)", given=f"{bound('tokens_per_tenant', 1_000_000_000)}; {stopped(chr(39) + '2190-01-01' + chr(39))}",
         then="(select calls_stopped_until is null from tenants where id = '{a}')"),
]  # fmt: skip

AGED = "update ai_executions set created_at = vanilla.clock() - interval '9 days' where tenant_id in ('{a}', '{twin}') and user_id in ('{user}', '{other}')"
KEEPS = (
    "insert into level_restrictions (tenant_id, level_id, type, amount) values ('{a}', '{level}', 'history_days', %s)"
)
KEPT = "(select count(*) from ai_executions where tenant_id = '%s' and created_at < vanilla.clock() - interval '8 days') %s 0"
CHANGED = "(select array_agg(kind || ' ' || coalesce(to_level, '') order by seq) from user_level_changes where tenant_id = '{a}' and user_id = '{user}')"
ROLL = "select roll_up_level_analytics((vanilla.clock() at time zone 'UTC')::date, (vanilla.clock() at time zone 'UTC')::date"
DAY = "(select %s from level_analytics where tenant_id = '{a}' and level = 'free' and day = (vanilla.clock() at time zone 'UTC')::date)"
DAYS = [
    Case("keeper", "select vanilla.job_history(1000)", given=f"{AGED}; {KEEPS % 8}",
         then=f"{KEPT % ('{a}', '=')} and {KEPT % ('{twin}', '>')}"),
    Case("keeper", "select vanilla.job_history(1000)", given=f"{AGED}; {KEEPS % 9}", then=KEPT % ("{a}", ">")),
    Case("keeper", "select vanilla.job_history(1000)", given=f"{AGED}; {bound('history_days_per_tenant', 8)}",
         then=f"{KEPT % ('{a}', '=')} and {KEPT % ('{twin}', '>')}"),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}')", then="(select to_level_id from user_level_changes"
         " where tenant_id = '{a}' and user_id = '{user}' and seq = 2) = '{paid}' and not exists (select from user_level_changes"
         " where tenant_id = '{twin}' and seq > 1)"),
    Case("admin", "select erase_user('{user}', 'x')", then=CHANGED + " = array['joined free', 'left ']"),
    Case("admin", f"{ROLL})", "= (4)", then=DAY % "users = 3 and new_users = 3"),
    Case("admin", f"{ROLL})", then=DAY % "tokens_spent > 0 and active_users = 2"),
    Case("operator", f"{ROLL}, '{{a}}')", "= (4)"),
    Case("admin", f"{ROLL}, '{{b}}')", "VS404"),
    Case("user", f"{ROLL})", "VS403"),
    Case("nobody", f"{ROLL})", "VS401"),
    Case("operator", f"{ROLL}, '{{provider}}')", "VS404"),
    Case("admin", "select roll_up_level_analytics('2026-01-02', '2026-01-01')", "VS400"),
    Case("admin", "select roll_up_level_analytics('2026-01-01', '2027-03-01')", "VS400"),
]  # fmt: skip

CASES = [*FEATURES, *TERMS, *RULES, *OTHERS, *PLANS, *DAYS]
