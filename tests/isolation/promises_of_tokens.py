"""Promises of 002 and of the metered call: whose wallet moves, by whom, by how much, and that the books stay right."""

from tests.isolation.promises import Case
from tests.isolation.promises_of_tenancy import DISABLED, SUSPENDED, of

BOOKS = (
    "not exists (select from reconcile_token_wallets() where tenant_id = '{a}')"
    " and not exists (select from verify_token_ledger() where tenant_id = '{a}')"
)
WALLET = "(select %s from user_token_wallets where tenant_id = '{a}' and user_id = '{user}')"
ADJUST = "select adjust_user_tokens('{user}', "
RESERVE = "select adjust_user_tokens('{user}', 40, 'reserve', p_reference_type => 'x', p_reference_id => '{provider}')"
FOLDED = "select vanilla.fold_wallet(w) from user_token_wallets w where tenant_id = '{a}' and user_id = '{user}'"
LATER = "update user_token_holds set expires_at = vanilla.clock() - interval '1 minute' where tenant_id = '{a}' and id = '%s'"
PERIOD = (
    "update user_token_wallets set next_reset_at = vanilla.clock() - interval '1 minute', next_event_at = vanilla.clock()"
    " - interval '1 minute' where tenant_id = '{a}' and user_id = '{user}'; update user_token_grants set expires_at ="
    " (select next_reset_at from user_token_wallets where tenant_id = '{a}' and user_id = '{user}'),"
    " effective_at = '2026-01-01' where tenant_id = '{a}' and user_id = '{user}' and kind = 'plan' and state = 'active'"
)
ROLLOVER = "update level_token_policies set rollover_percent = 50, rollover_cap = null where tenant_id = '{a}'"
SCHEDULED = (
    "insert into user_token_grants (tenant_id, id, user_id, kind, amount, remaining, effective_at, state) values"
    " ('{a}', '{same_id}', '{user}', 'promo', 500, 500, vanilla.clock() - interval '1 minute', 'scheduled');"
    " update user_token_wallets set next_event_at = vanilla.clock() - interval '1 minute'"
    " where tenant_id = '{a}' and user_id = '{user}'"
)


def wallet(expression: str) -> str:
    return WALLET % expression


ADJUSTMENTS = [
    Case("admin", f"{ADJUST}500, 'credit') ->> 'amount'", "= (500)", then=BOOKS, audit="wallet.adjusted"),
    Case("service", f"{ADJUST}500, 'credit')", then=BOOKS),
    Case("admin", f"{ADJUST}500, 'debit') ->> 'amount'", "= (-500)", then=BOOKS + f" and {wallet('spent_tokens')} >= 500"),
    Case("admin", f"{ADJUST}500, 'debit')", then=BOOKS,
         given=f"{{as_admin}}; {ADJUST}300, 'debit'); {ADJUST}900, 'credit')"),
    Case("admin", f"{ADJUST}-5, 'adjustment') ->> 'amount'", "= (-5)", then=BOOKS),
    Case("admin", f"{ADJUST}5, 'adjustment') ->> 'amount'", "= (5)", then=BOOKS),
    Case("user", f"{ADJUST}5, 'credit')", "VS403"),
    Case("nobody", f"{ADJUST}5, 'credit')", "VS401"),
    Case("operator", f"{ADJUST}5, 'credit')", "VS404"),
    Case("operator", "select adjust_user_tokens('{b_user}', 5, 'credit') ->> 'amount'", "42501",
         "revoke execute on function adjust_user_tokens from vanilla_operator"),
    Case("admin", "select adjust_user_tokens('{b_user}', 5, 'credit')", "VS404"),
    Case("admin", f"{ADJUST}5, 'steal')", "VS400"),
    Case("admin", f"{ADJUST}5, null)", "VS400"),
    Case("admin", f"{ADJUST}-5, 'credit')", "VS400"),
    Case("admin", f"{ADJUST}0, 'credit')", "VS400"),
    Case("admin", f"{ADJUST}1000000000000001, 'credit')", "VS400"),
    Case("admin", f"{ADJUST}null, 'credit')", "VS400"),
    Case("admin", f"{ADJUST}5, 'credit', p_expires_at => vanilla.clock())", "VS400"),
    Case("admin", f"{ADJUST}5, 'credit', p_expires_at => null)", "VS400"),
    Case("admin", f"{ADJUST}5, 'credit')", "VS400",
         "update user_token_wallets set available_tokens = 100000000000000000 where tenant_id = '{a}' and user_id = '{user}'"),
    Case("admin", f"{ADJUST}5, 'credit', p_idempotency_key => 'k') ->> 'replayed'", "= (true)",
         f"{{as_admin}}; {ADJUST}5, 'credit', p_idempotency_key => 'k')"),
    Case("admin", f"{ADJUST}6, 'credit', p_idempotency_key => 'k')", "VS410",
         f"{{as_admin}}; {ADJUST}5, 'credit', p_idempotency_key => 'k')"),
    Case("admin", f"{ADJUST}6, 'credit', p_idempotency_key => 'twin-key') ->> 'replayed'", "= (false)"),
    # a key of another user of the tenant is another key
    Case("admin", f"{ADJUST}6, 'credit', p_idempotency_key => 'k') ->> 'replayed'", "= (false)",
         "{as_admin};"
         " select adjust_user_tokens('{other}', 6, 'credit', p_idempotency_key => 'k')"),
    Case("admin", f"{ADJUST}5, 'debit')", "VS415", of("user_token_wallets", "status", "'locked'", "tenant_id = '{a}' and user_id = '{user}'")),
    Case("admin", f"{ADJUST}5, 'credit')", given=of("user_token_wallets", "status", "'locked'", "tenant_id = '{a}' and user_id = '{user}'")),
    Case("admin", f"{ADJUST}5, 'credit')", "VS415", of("user_token_wallets", "status", "'closed'", "tenant_id = '{a}' and user_id = '{user}'")),
    Case("admin", f"{ADJUST}900000000000, 'debit')", "VS402"),
    Case("admin", f"{ADJUST}900000000000, 'debit') -> 'warning' is not null", "= (t)",
         of("user_token_wallets", "enforcement_mode", "'warn'", "tenant_id = '{a}' and user_id = '{user}'"), then=BOOKS),
    Case("admin", f"{ADJUST}5, 'debit')", "VS404", "delete from user_token_grants where tenant_id = '{a}';"
         " set local session_replication_role = replica; delete from user_token_wallets where tenant_id = '{a}';"
         " set local session_replication_role = origin"),
]  # fmt: skip

VOIDED = ("insert into user_token_grants (tenant_id, user_id, kind, priority, amount, remaining, effective_at, expires_at, state)"
          " values ('{a}', '{user}', 'plan', %s, 500, %s, '2026-01-01', '%s', 'voided')")  # fmt: skip
HOLDS = [
    # a grant that is void takes nothing back, gives nothing, and lapses without a word
    Case("admin", f"{ADJUST}10, 'release', p_reference_id => '{{hold}}') ->> 'amount'", "= (10)",
         f"{VOIDED % (99, 0, '2199-01-01')}; {{as_admin}}; {ADJUST}900, 'credit')", then=BOOKS),
    Case("admin", f"{ADJUST}5, 'credit')", given=f"{VOIDED % (1, 500, '2199-01-01')}; {{as_admin}}; {ADJUST}300, 'debit')", then=BOOKS),
    Case("operator", "select reset_monthly_tokens()", "= (1)", f"{PERIOD}; {VOIDED % (20, 7, '2026-02-01')}", then=BOOKS),
    Case("operator", "select reset_monthly_tokens()", "= (1)", f"update tenants set time_zone = 'Asia/Tokyo' where id = '{{a}}'; {PERIOD}",
         then=f"extract(hour from {wallet('next_reset_at')} at time zone 'Asia/Tokyo') = 0"),
    Case("runtime", "select vanilla.reap_holds()", "= (1)",
         "{as_admin}; select settle_user_tokens('{hold}', 5); " + LATER % "{hold}" + "; " + LATER % "{call}",
         then=BOOKS + " and (select state = 'settled' from user_token_holds where tenant_id = '{a}' and id = '{hold}')"),
    # what has expired with another tenant is not brought back on the way
    Case("admin", f"{ADJUST}{{available}} + 10, 'debit')", then=BOOKS, given=LATER % "{hold}"
         + "; update user_token_holds set expires_at = vanilla.clock() - interval '1 minute' where tenant_id = '{twin}'"),
    Case("admin", f"{RESERVE} ->> 'hold_id' is not null", "= (t)", then=BOOKS),
    Case("admin", f"{ADJUST}10, 'release', p_reference_id => '{{hold}}') ->> 'hold_id'", "= ({hold})", then=BOOKS),
    Case("admin", f"{ADJUST}10, 'release', p_reference_id => '{{hold}}')", given=f"{{as_admin}}; {ADJUST}900, 'credit')", then=BOOKS),
    Case("admin", f"{ADJUST}9, 'release', p_reference_id => '{{hold}}')", "VS409"),
    Case("admin", f"{ADJUST}10, 'release', p_reference_id => gen_random_uuid())", "VS404"),
    Case("admin", "select adjust_user_tokens('{other}', 10, 'release', p_reference_id => '{hold}')", "VS404"),
    Case("admin", f"{ADJUST}10, 'release', p_reference_id => '{{hold}}')", "VS404",
         "{as_admin}; select settle_user_tokens('{hold}', 5)"),
    Case("admin", "select settle_user_tokens('{hold}', 4) ->> 'amount'", "= (6)", then=BOOKS),
    Case("admin", "select settle_user_tokens('{hold}', 14) ->> 'direction'", "= (settle)", then=BOOKS),
    Case("admin", "select settle_user_tokens('{hold}', 14) ->> 'direction'", "= (debt)",
         "{as_admin};"
         f" select adjust_user_tokens('{{user}}', -{wallet('available_tokens')}, 'adjustment')", then=BOOKS),
    Case("admin", "select settle_user_tokens('{call}', 4)", "VS409"),
    Case("admin", "select settle_user_tokens('{call}', 1, p_final => false)", "VS409"),
    Case("user", "select refresh_token_wallet('{user}')", "= (f)"),
    Case("user", "select refresh_token_wallet('{other}')", "VS403"),
    Case("admin", "select refresh_token_wallet('{user}')", "= (f)"),
    Case("admin", "select refresh_token_wallet('{b_user}')", "VS404"),
    Case("nobody", "select refresh_token_wallet('{user}')", "VS401"),
    Case("admin", "select settle_user_tokens('{hold}', -1)", "VS400"),
    Case("admin", "select settle_user_tokens('{hold}', null)", "VS400"),
    Case("admin", "select settle_user_tokens('{hold}', 1000000000000001)", "VS400"),
    Case("admin", "select settle_user_tokens(gen_random_uuid(), 5)", "VS404 no such hold"),
    Case("user", "select settle_user_tokens('{hold}', 5)", "VS403"),
    Case("admin", "select settle_user_tokens('{hold}', 5)", "VS409",
         "{as_admin}; select settle_user_tokens('{hold}', 5)"),
    Case("runtime", "select vanilla.reap_holds()", "= (1)", LATER % "{hold}",
         then=BOOKS + " and (select array_agg(state order by id = '{hold}') = '{open,expired}' from user_token_holds"
              " where tenant_id = '{a}' and id in ('{hold}', '{call}'))"),
    Case("runtime", "select vanilla.reap_holds()", "= (0)"),
    Case("runtime", "select vanilla.reap_holds()", "= (0)",
         "{as_admin}; select settle_user_tokens('{hold}', 5);"
         + LATER % "{hold}"),
    # the expired hold is of one user: the other's wallet is not touched for it
    Case("runtime", "select vanilla.reap_holds()", "= (1)", LATER % "{call}" + "; update api_keys set budget_tokens = 1000000,"
         " used_tokens = 500 where tenant_id = '{a}' and key_hash = {user_key}",
         then=BOOKS + " and (select used_tokens < 500 from api_keys where key_hash = {user_key})"
              " and exists (select from ai_executions where tenant_id = '{a}' and hold_id = '{call}' and status = 'abandoned')"),
    # the first touch that needs them takes expired holds back
    Case("admin", f"{ADJUST}{{available}}, 'debit')", given=LATER % "{hold}", then=BOOKS),
]  # fmt: skip

LEVELS = [
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}') ->> 'level_id'", "= ({paid})", audit="wallet.level",
         then=BOOKS + f" and {wallet('level_id')} = '{{paid}}'"),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{level}') ->> 'period_granted'", "= (0)", then=BOOKS),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{level}')", then=BOOKS,
         given="{as_admin};"
               " select auto_allocate_tokens_for_level('{user}', '{paid}')"),
    Case("admin", "select (auto_allocate_tokens_for_level('{user}', '{level}') ->> 'period_granted')::bigint > 0", "= (t)",
         "update user_token_grants set state = 'expired', effective_at = '2026-01-01', expires_at = '2026-02-01'"
         " where tenant_id = '{a}' and user_id = '{user}' and kind = 'plan'"),
    # back on a level: what was left of this period, not of those before
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}') ->> 'restored'", "= (5)",
         "insert into user_token_grants (tenant_id, user_id, kind, amount, remaining, effective_at, expires_at, state, level_id)"
         " select '{a}', '{user}', 'plan', n, n, '2026-01-01', e, 'voided', '{paid}' from (values (5, '2199-01-01'::timestamptz),"
         " (7, '2026-02-01')) s (n, e)"),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}') ->> 'base_granted'", "= (50)",
         "update level_token_policies set base_allocation = 50 where tenant_id = '{a}' and level_id = '{paid}'"),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}')", given="update tenants set time_zone = 'Asia/Tokyo'"
         " where id = '{a}'", then=f"extract(hour from {wallet('next_reset_at')} at time zone 'Asia/Tokyo') = 0"),
    Case("user", "select auto_allocate_tokens_for_level('{user}', '{paid}')", "VS403"),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{b_level}')", "VS404"),
    Case("admin", "select auto_allocate_tokens_for_level('{b_user}', '{level}')", "VS404"),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}')", "VS404",
         "delete from level_token_policies where tenant_id = '{a}' and level_id = '{paid}'"),
    Case("admin", "select auto_allocate_tokens_for_level('{user}', '{paid}')", "VS404",
         "set local session_replication_role = replica; delete from levels where tenant_id = '{a}' and id = '{paid}';"
         " set local session_replication_role = origin"),
    Case("admin", "select set_wallet_status('{user}', 'locked', 'why')", audit="wallet.status",
         then=f"{wallet('status')} = 'locked' and (select status from user_token_wallets where tenant_id = '{{a}}'"
              " and user_id = '{other}') = 'active'"),
    Case("admin", "select set_wallet_status('{user}', 'closed', 'why')", "VS400"),
    Case("admin", "select set_wallet_status('{b_user}', 'locked', 'why')", "VS404"),
    Case("user", "select set_wallet_status('{user}', 'active', 'why')", "VS403"),
    Case("admin", "select set_level_token_policy('{level}', 1, 2, 'monitor')", audit="level.policy",
         then="(select enforcement_mode from user_token_wallets where tenant_id = '{a}' and user_id = '{admin}') = 'monitor'"
              " and (select monthly_allocation from level_token_policies"
              " where tenant_id = '{a}' and level_id = '{level}') = 2"),
    Case("admin", "select set_level_token_policy('{level}', 1, 2, 'monitor')",
         given="update users set display_name = display_name where tenant_id = '{twin}'",
         then="(select enforcement_mode from user_token_wallets where tenant_id = '{a}' and user_id = '{admin}') = 'monitor'"),
    Case("admin", "select set_level_token_policy('{b_level}', 1, 2)", "VS404"),
    Case("admin", "select set_level_token_policy('{level}', -1, 2)", "VS400"),
    Case("admin", "select set_level_token_policy('{level}', 1, 2)", "VS404",
         "set local session_replication_role = replica; delete from levels where tenant_id = '{a}' and id = '{level}';"
         " set local session_replication_role = origin"),
    Case("user", "select set_level_token_policy('{level}', 1, 2)", "VS403"),
    Case("operator", "select reset_monthly_tokens()", "= (1)", PERIOD,
         then=BOOKS + f" and {wallet('next_reset_at')} > vanilla.clock()"),
    Case("super", "select reset_monthly_tokens()", "= (1)", f"{PERIOD}; {ROLLOVER}", then=BOOKS),
    Case("operator", "select reset_monthly_tokens()", "= (0)", SCHEDULED),
    Case("operator", "select reset_monthly_tokens()", "= (0)"),
    Case("admin", "select reset_monthly_tokens()", "VS403"),
    Case("user", "select reset_monthly_tokens()", "VS403"),
    Case("runtime", "select vanilla.run_maintenance() ->> 'wallets_folded'", "= (1)", SCHEDULED, then=BOOKS),
    Case("admin", f"{ADJUST}5, 'debit')", given=SCHEDULED, then=BOOKS + f" and {wallet('next_event_at')} > vanilla.clock()"),
    # a user's own exceptions, and nobody else's
    Case("operator", "select reset_monthly_tokens()", "= (1)", f"{PERIOD}; insert into user_token_policies (tenant_id, user_id,"
         " monthly_allocation) values ('{a}', '{user}', 123) on conflict (tenant_id, user_id) do update set monthly_allocation = 123",
         then="(select amount from user_token_grants where tenant_id = '{a}' and user_id = '{user}' and kind = 'plan'"
              " order by created_at desc limit 1) = 123"),
]  # fmt: skip

PROOFS = [
    Case("admin", "select count(*) from verify_token_ledger()", "= (0)"),
    Case("user", "select count(*) from verify_token_ledger('{user}')", "= (0)"),
    Case("user", "select count(*) from verify_token_ledger('{other}')", "VS403"),
    Case("admin", "select count(*) from verify_token_ledger('{b_user}')", "VS404"),
    Case("user", "select count(*) from verify_token_ledger()", "VS403"),
    Case("admin", "select count(*) > 0 from verify_token_ledger('{user}')", "= (t)",
         "set local session_replication_role = replica; update user_token_ledger set amount = amount + 1"
         " where tenant_id = '{a}' and user_id = '{user}' and seq = 1; set local session_replication_role = origin"),
    Case("admin", "select count(*) from verify_token_ledger('{user}') where seq > 0", "= (1)",
         "update user_token_wallets set head = '\\x00' where tenant_id = '{a}' and user_id = '{user}'"),
    Case("admin", "select count(*) from reconcile_token_wallets()", "= (0)"),
    Case("user", "select count(*) from reconcile_token_wallets()", "VS403"),
    Case("admin", "select count(*) from reconcile_token_wallets()", "= (1)",
         "update user_token_grants set remaining = remaining - 1 where tenant_id = '{a}' and id ="
         " (select id from user_token_grants where tenant_id = '{a}' and user_id = '{user}' and state = 'active' and remaining > 0 limit 1)"),
    Case("admin", "select count(*) from reconcile_token_wallets()", "= (1)",
         "update user_token_holds set amount = amount - 1 where tenant_id = '{a}' and id = '{hold}'"),
    # neither what is spent and gone nor what is settled counts
    Case("admin", "select count(*) from reconcile_token_wallets()", "= (0)",
         "insert into user_token_grants (tenant_id, user_id, kind, amount, remaining, effective_at, state) values"
         " ('{a}', '{user}', 'promo', 5, 5, vanilla.clock(), 'voided'); insert into user_token_holds (tenant_id, user_id, amount,"
         " requested, state, epoch, expires_at, closed_at) values ('{a}', '{user}', 5, 5, 'settled', 0, vanilla.clock(), vanilla.clock())"),
    Case("user", "select token_balance_at('{user}', vanilla.clock())", "= ({balance})"),
    Case("user", "select token_balance_at('{other}', vanilla.clock())", "VS403"),
    Case("admin", "select token_balance_at('{user}', vanilla.clock())", "= ({balance})"),
    Case("admin", "select token_balance_at('{user}', '2000-01-01')", "= (0)"),
    # entries of this number are in the other's ledger too
    Case("admin", "select token_balance_at('{other}', vanilla.clock()) is not null", "= (t)"),
    Case("admin", "select token_balance_at('{b_user}', vanilla.clock())", "VS404"),
    Case("user", "select sum(remaining) from vanilla.grants_after_burn('{a}', '{user}')", "= ({available})"),
    Case("user", "select count(*) from vanilla.grants_after_burn('{a}', '{other}')", "= (0)"),
    Case("admin", "select count(*) from vanilla.grants_after_burn('{b}', '{b_user}')", "= (0)"),
    Case("keeper", "select sum(remaining) from vanilla.grants_after_burn('{a}', '{user}')", "= ({available})",
         "insert into user_token_grants (tenant_id, user_id, kind, amount, remaining, effective_at, state) values"
         " ('{a}', '{user}', 'promo', 5, 5, vanilla.clock(), 'voided')"),
]  # fmt: skip

ADMIT = "select vanilla.admit_call({user_key}, null, null, 'sandbox-small', 10, 10, 10, 1, gen_random_uuid(), false, '60 s')"
BY_SESSION = ADMIT.replace("{user_key}, null, null", "null, {user_session}, null")
FOR = ADMIT.replace("null, null, 'sandbox", "null, 'ext', 'sandbox")
ACT_AS = "update api_keys set scopes = '{chat,act_as}' where key_hash = {user_key}"
CREATES = "update api_keys set scopes = '{chat,act_as:create}' where key_hash = {user_key}"
TOGETHER = (
    "select vanilla.run_calls(jsonb_build_array(jsonb_build_object('function', 'admit', 'key_hash', {user_key},"
    " 'payer', 'not yet here', 'model', 'sandbox-small', 'prompt_tokens', 10, 'sandbox_prompt_tokens', 10, 'output_limit', 10,"
    " 'choices', 1, 'execution_id', gen_random_uuid(), 'streamed', false, 'ttl', '60 s'))) -> 0 -> 'error' ->> 'sqlstate'"
)
EXTERNAL = "update users set external_id = 'ext', status = '%s' where tenant_id = '{a}' and id = '{other}'"
OWN = ADMIT.replace("sandbox-small", "own-model")
OWN_MODEL = (
    "update ai_models set slug = 'own-model', status = 'active', input_price = 1, output_price = 1, context_window = 1000,"
    " max_output_tokens = 100 where tenant_id = '{a}'; update ai_providers set kind = 'custom', base_url = 'http://x.test',"
    " status = 'active', secret = null where tenant_id = '{a}'"
)
SETTLE = "select vanilla.settle_call('{a}', '{call}', 'succeeded', 5, 5, 0, 0)"
KEY_ENDED = [of("api_keys", "revoked_at", "vanilla.clock()", "key_hash = {user_key}"),
             of("api_keys", "expires_at", "vanilla.clock()", "key_hash = {user_key}"), DISABLED, SUSPENDED]  # fmt: skip
SESSION_ENDED = [of("sessions", c, "vanilla.clock()") for c in ("revoked_at", "rotated_at", "expires_at")] + [
    DISABLED,
    SUSPENDED,
]
CALLS = [
    Case("runtime", TOGETHER, "= (VS403)"),
    Case("runtime", TOGETHER, "= (VS404)", ACT_AS),
    Case("runtime", TOGETHER, "= (40001)", CREATES),
    Case("runtime", f"{ADMIT} ->> 'user_id'", "= ({user})", then=BOOKS),
    Case("runtime", f"{ADMIT} ->> 'tenant_id'", "= ({a})"),
    *[Case("runtime", ADMIT, "VS411", given) for given in KEY_ENDED],
    Case("runtime", f"{BY_SESSION} ->> 'user_id'", "= ({user})"),
    *[Case("runtime", BY_SESSION, "VS411", given) for given in SESSION_ENDED],
    Case("runtime", ADMIT, "VS403", "update api_keys set scopes = '{read}' where key_hash = {user_key}"),
    Case("runtime", FOR, "VS403", EXTERNAL % "active"),
    Case("runtime", f"{FOR} ->> 'user_id'", "= ({other})", f"{ACT_AS}; {EXTERNAL % 'active'}"),
    Case("runtime", FOR, "VS404", ACT_AS),
    Case("runtime", FOR, "VS404", f"{ACT_AS}; {EXTERNAL % 'disabled'}"),
    Case("runtime", FOR, "VS404", f"{CREATES}; {EXTERNAL % 'disabled'}"),
    Case("runtime", FOR, given=CREATES, audit="user.created", then="exists (select from users where tenant_id = '{a}' and external_id = 'ext')"),
    Case("runtime", FOR.replace("'ext'", "'twin-only'"), "VS404", ACT_AS),
    Case("runtime", FOR.replace("'ext'", "'twin-only'"), given=CREATES, audit="user.created"),
    Case("runtime", ADMIT.replace("sandbox-small", "twin-model"), "VS414"),
    Case("runtime", ADMIT.replace("sandbox-small", "nothing"), "VS414"),
    Case("runtime", f"{OWN} ->> 'provider_tenant_id'", "= ({a})", OWN_MODEL),
    Case("runtime", f"{OWN} ->> 'base_url'", "= (http://x.test)", OWN_MODEL),
    Case("runtime", OWN, "VS414", f"{OWN_MODEL}; update ai_models set status = 'disabled' where tenant_id = '{{a}}'"),
    Case("runtime", OWN, "VS424", f"{OWN_MODEL}; update ai_providers set status = 'disabled' where tenant_id = '{{a}}'"),
    Case("runtime", OWN, "VS424", f"{OWN_MODEL}; update ai_providers set kind = 'openai' where tenant_id = '{{a}}'"),
    Case("runtime", OWN, "VS424", f"{OWN_MODEL}; update ai_models set input_price = null where tenant_id = '{{a}}'"),
    Case("runtime", OWN.replace("10, 10, 10", "10, 10, 0"), "VS416", OWN_MODEL),
    Case("runtime", OWN, "VS416", f"{OWN_MODEL}; update ai_models set kind = 'embedding' where tenant_id = '{{a}}'"),
    Case("runtime", f"{OWN.replace('10, 10, 10', '10000, 10000, 0')} ->> 'reserved'", "= (10000)",
         f"{OWN_MODEL}; update ai_models set kind = 'embedding' where tenant_id = '{{a}}'"),
    Case("runtime", OWN.replace("10, 10, 10", "10000, 10000, 10"), "VS400", OWN_MODEL),
    Case("runtime", OWN.replace("10, 10, 10", "10, 10, 1000"), "VS400", OWN_MODEL),
    Case("runtime", ADMIT.replace("'60 s')", "'60 s', 'k')"), "VS410", ADMIT.replace("'60 s')", "'60 s', 'k')")),
    Case("runtime", ADMIT.replace("'60 s')", "'60 s', 'twin-key')")),
    Case("runtime", ADMIT, 'VS429 the budget of this key is used up {"used": 1, "limit": 5',
         "update api_keys set budget_tokens = 5, used_tokens = 1 where key_hash = {user_key}"),
    Case("runtime", ADMIT, given="update api_keys set budget_tokens = 500, used_tokens = 0 where key_hash = {user_key}",
         then="(select used_tokens = 20 from api_keys where key_hash = {user_key})"),
    Case("runtime", "select vanilla.quote_call({user_session}, 'sandbox-small', 10, 10, 10) ->> 'reserved'", "= (20)",
         then="(select available_tokens from user_token_wallets where tenant_id = '{a}' and user_id = '{user}') = {available}"),
    Case("runtime", "select vanilla.quote_call({user_session}, 'sandbox-small', 10, 10, 10)", "VS411", DISABLED),
    Case("runtime", f"{SETTLE} ->> 'settled'", "= (true)",
         "update api_keys set budget_tokens = 500, used_tokens = 400 where key_hash = {user_key}",
         then=BOOKS + " and (select used_tokens = 390 from api_keys where key_hash = {user_key})"
              " and exists (select from ai_executions where tenant_id = '{a}' and hold_id = '{call}')"),
    Case("runtime", f"{SETTLE} ->> 'charged'", "= (10)"),
    Case("runtime", f"{SETTLE} ->> 'settled'", "= (false)", SETTLE, then=BOOKS),
    Case("runtime", f"{SETTLE} ->> 'settled'", "= (true)", f"{LATER % '{call}'}; select vanilla.reap_holds()",
         then=BOOKS + " and (select array_agg(status) = '{succeeded}' from ai_executions where tenant_id = '{a}' and hold_id = '{call}')"),
    Case("runtime", SETTLE.replace("5, 5, 0, 0", "0, 0, 0, 0") + " ->> 'settled'", "= (false)", f"{LATER % '{call}'}; select vanilla.reap_holds()"),
    # released by hand, it is charged when it ends
    Case("runtime", f"{SETTLE} ->> 'settled'", "= (true)", "{as_admin}; select release_token_hold('{call}')",
         then=BOOKS + " and (select array_agg(status) = '{succeeded}' from ai_executions where tenant_id = '{a}' and hold_id = '{call}')"),
    *[Case("runtime", SETTLE.replace("5, 5, 0, 0", figures), "VS400") for figures in ("-1, 5, 0, 0", "-1, 5, null, 0", "5, -1, 0, 0", "5, 5, 6, 0", "5, 5, -1, 0")],
    Case("runtime", SETTLE.replace("{call}", "{hold}"), "VS404"),
    Case("runtime", "select vanilla.settle_call('{a}', gen_random_uuid(), 'succeeded', 5, 5, 0, 0)", "VS404"),
    Case("runtime", "select jsonb_path_exists(vanilla.list_models({user_key}), '$[*] ? (@.id == \"own-model\")')", "= (t)", OWN_MODEL),
    Case("runtime", "select jsonb_path_exists(vanilla.list_models({user_key}), '$[*] ? (@.id == \"own-model\")')", "= (f)",
         f"{OWN_MODEL}; update ai_models set status = 'deprecated' where tenant_id = '{{a}}'"),
    Case("runtime", "select jsonb_path_exists(vanilla.list_models({user_key}), '$[*] ? (@.id == \"own-model\")')", "= (f)",
         f"{OWN_MODEL}; update ai_providers set status = 'disabled' where tenant_id = '{{a}}'"),
    Case("runtime", "select jsonb_path_exists(vanilla.list_models({user_key}), '$[*] ? (@.id == \"own-model\" && @.kind == \"embedding\")')", "= (t)",
         f"{OWN_MODEL}; update ai_models set kind = 'embedding' where tenant_id = '{{a}}'"),
    Case("runtime", "select vanilla.list_models({user_key})"),
    Case("runtime", "select vanilla.list_models(null, {user_session}) is not null", "= (t)"),
    Case("runtime", "select vanilla.list_models({user_key})", "VS411", DISABLED),
    Case("admin", "select set_provider_secret('{provider}', 'x', 'hint')", audit="provider.secret",
         then="(select secret = 'x' from ai_providers where tenant_id = '{a}' and id = '{provider}')"),
    Case("user", "select set_provider_secret('{provider}', 'x', 'hint')", "VS403"),
    Case("admin", "select set_provider_secret('{b_provider}', 'x', 'hint')", "VS404"),
    Case("keeper", "select vanilla.setting('{a}', 'twin.only')", "= ()"),
]  # fmt: skip

CASES = [*ADJUSTMENTS, *HOLDS, *LEVELS, *PROOFS, *CALLS]
