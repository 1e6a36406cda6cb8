"""Promises of 002 about grants, policies of one user, batches, parts of a hold, statements and anchors."""

from tests.isolation.promises import Case
from tests.isolation.promises_of_tenancy import of
from tests.isolation.promises_of_tokens import ADJUST, BOOKS, LATER, SCHEDULED, wallet

OWN_WALLET = "tenant_id = '{a}' and user_id = '{user}'"
LOCKED = of("user_token_wallets", "status", "'locked'", OWN_WALLET)
CLOSED = of("user_token_wallets", "status", "'closed'", OWN_WALLET)
FULL = of("user_token_wallets", "available_tokens", "100000000000000000", OWN_WALLET)

GRANT = "select grant_user_tokens('{user}', 50"
ONCE = f"{GRANT}, p_idempotency_key => 'k')"
VOID = "select void_token_grant('{grant}', 'why')"
GRANTS = [
    Case("admin", f"{GRANT}) ->> 'amount'", "= (50)", then=BOOKS, audit="wallet.granted"),
    Case("service", f"{GRANT})", then=BOOKS),
    Case("user", f"{GRANT})", "VS403"),
    Case("nobody", f"{GRANT})", "VS401"),
    Case("operator", f"{GRANT})", "VS404"),
    Case("admin", "select grant_user_tokens('{b_user}', 50)", "VS404"),
    *[Case("admin", f"{GRANT}{more})", "VS400") for more in (
        ", 'plan'", ", null", ", p_priority => 101", ", p_priority => -1", ", p_expires_at => vanilla.clock()", ", p_expires_at => null",
        ", p_effective_at => vanilla.clock() + interval '2 days', p_expires_at => vanilla.clock() + interval '1 day'")],
    Case("admin", f"{GRANT.replace('50', '-50')})", "VS400"),
    Case("admin", f"{GRANT.replace('50', '0')})", "VS400"),
    Case("admin", f"{GRANT})", "VS400", FULL),
    *[Case("admin", f"{GRANT})", given="insert into user_token_grants (tenant_id, user_id, kind, amount, remaining, effective_at, state)"
           f" values ('{{{tenant}}}', '{{user}}', 'promo', 100000000000000000, 0, vanilla.clock() + interval '1 day', '{state}')", then=BOOKS)
      for tenant, state in (("a", "expired"), ("twin", "scheduled"))],
    # what is to begin for somebody else fills nobody's wallet
    Case("admin", f"{GRANT})", given="insert into user_token_grants (tenant_id, user_id, kind, amount, remaining, effective_at, state)"
         " values ('{a}', '{other}', 'promo', 100000000000000000, 100000000000000000, vanilla.clock() + interval '1 day', 'scheduled')", then=BOOKS),
    Case("admin", f"{GRANT})", "VS415", CLOSED),
    Case("admin", f"{GRANT})", given=LOCKED, then=BOOKS),
    Case("admin", f"{ONCE} ->> 'replayed'", "= (false)", then=BOOKS),
    Case("admin", f"{ONCE} ->> 'replayed'", "= (true)", f"{{as_admin}}; {ONCE}", then=BOOKS),
    Case("admin", ONCE.replace("50", "51"), "VS410", f"{{as_admin}}; {ONCE}"),
    Case("admin", ONCE.replace("'k'", "'twin-base'") + " ->> 'replayed'", "= (false)", then=BOOKS),
    # a key of another user of the tenant is another key
    Case("admin", f"{ONCE} ->> 'replayed'", "= (false)", f"{{as_admin}}; {ONCE.replace('{user}', '{other}')}"),
    Case("admin", f"{GRANT}, p_effective_at => vanilla.clock() + interval '1 day') ->> 'state'", "= (scheduled)",
         "update user_token_wallets set next_event_at = '2198-01-01' where tenant_id = '{a}' and user_id = '{other}'",
         then="(select next_event_at = '2198-01-01' from user_token_wallets where tenant_id = '{a}' and user_id = '{other}') and "
              + f"{BOOKS} and {wallet('available_tokens')} = {{available}} and {wallet('next_event_at')} <= vanilla.clock() + interval '1 day'"),
    Case("admin", f"{VOID} ->> 'state'", "= (voided)", then=BOOKS, audit="wallet.grant_voided"),
    Case("admin", VOID, given=f"{{as_admin}}; {ADJUST}300, 'debit')", then=BOOKS),
    Case("admin", f"{VOID.replace('{grant}', '{provider}')} ->> 'state'", "= (voided)",
         SCHEDULED.replace("{same_id}", "{provider}")
         .replace("clock() - interval '1 minute', 'scheduled'", "clock() + interval '1 day', 'scheduled'"),
         then=f"{BOOKS} and {wallet('available_tokens')} = {{available}}"),
    Case("admin", VOID, "VS409", f"{{as_admin}}; {VOID}"),
    Case("user", VOID, "VS403"),
    Case("nobody", VOID, "VS401"),
    # of two grants with this id the operator has to say which
    Case("operator", VOID, "VS404"),
    Case("operator", VOID.replace("'why'", "'why', '{a}'") + " ->> 'state'", "= (voided)", then=BOOKS),
    Case("admin", VOID.replace("{grant}", "{b_grant}"), "VS404"),
    Case("admin", "select void_token_grant(gen_random_uuid(), 'why')", "VS404 no such grant"),
]  # fmt: skip

SET_POLICY = "select set_user_token_policy('{user}', 123, p_enforcement_mode => 'monitor', p_warning_percent => 10)"
GET_POLICY = "select get_user_token_policy('{user}')"
POLICIES = [
    Case("admin", SET_POLICY, audit="user.policy",
         then=f"{wallet('enforcement_mode')} = 'monitor' and {wallet('warn_below')} = 12 and (select enforcement_mode from user_token_wallets"
              " where tenant_id = '{a}' and user_id = '{other}') = 'hard' and (select monthly_allocation = 123 from user_token_policies"
              " where tenant_id = '{a}' and user_id = '{user}')"),
    Case("admin", "select set_user_token_policy('{user}')", given=f"{{as_admin}}; {SET_POLICY}",
         then=f"{wallet('enforcement_mode')} = 'hard' and (select monthly_allocation is null from user_token_policies where"
              " tenant_id = '{a}' and user_id = '{user}')"),
    Case("admin", "select set_user_token_policy('{user}', p_rollover_percent => 101)", "VS400"),
    Case("admin", "select set_user_token_policy('{b_user}', 5)", "VS404"),
    Case("user", SET_POLICY, "VS403"),
    Case("nobody", SET_POLICY, "VS401"),
    Case("user", f"{GET_POLICY} -> 'exceptions' ->> 'monthly_allocation'", "= (123)", f"{{as_admin}}; {SET_POLICY}"),
    Case("admin", f"{GET_POLICY} -> 'exceptions' ->> 'monthly_allocation'", "= (123)", f"{{as_admin}}; {SET_POLICY}"),
    Case("user", f"{GET_POLICY} -> 'exceptions'", "= ({})", "delete from user_token_policies where tenant_id = '{a}'"),
    # the exceptions of another user are not one's own
    Case("user", f"{GET_POLICY} -> 'exceptions'", "= ({})", "delete from user_token_policies where tenant_id = '{a}'; {as_admin};"
         f" {SET_POLICY.replace('{user}', '{other}')}"),
    Case("user", f"{GET_POLICY} ->> 'base_allocation' = '7'", "= (f)"),
    Case("user", "select get_user_token_policy('{other}')", "VS403"),
    Case("admin", "select get_user_token_policy('{b_user}')", "VS404"),
    Case("nobody", GET_POLICY, "VS401"),
]  # fmt: skip

EXTEND = "select extend_token_hold('{hold}', vanilla.clock() + interval '1 hour')"
PART = "select settle_user_tokens('{hold}', 4, p_final => false)"
SETTLED = "{as_admin}; select settle_user_tokens('{hold}', 5)"
HOLDS = [
    Case("admin", EXTEND, then="(select expires_at = vanilla.clock() + interval '1 hour' from user_token_holds where tenant_id = '{a}' and id = '{hold}')"),
    Case("operator", EXTEND, "VS404"),
    Case("operator", EXTEND.replace("hour')", "hour', '{a}')")),
    Case("user", EXTEND, "VS403"),
    Case("nobody", EXTEND, "VS401"),
    *[Case("admin", EXTEND.replace("vanilla.clock() + interval '1 hour'", until), "VS400")
      for until in ("vanilla.clock()", "null", "vanilla.clock() + interval '31 days'")],
    Case("admin", EXTEND.replace("'{hold}'", "gen_random_uuid()"), "VS404"),
    Case("admin", EXTEND, "VS409", SETTLED),
    Case("admin", EXTEND, "VS409", LATER % "{hold}"),
    Case("admin", f"{PART} ->> 'reserved_amount'", "= (-4)", then=BOOKS + " and (select amount = 6 and settled = 4 and state = 'open' from"
         " user_token_holds where tenant_id = '{a}' and id = '{hold}')"),
    Case("admin", "select settle_user_tokens('{hold}', 6) ->> 'amount'", "= (0)", f"{{as_admin}}; {PART}", then=BOOKS),
    Case("admin", PART.replace("4", "0"), "VS400"),
    Case("admin", PART.replace("4", "11"), "VS409"),
    Case("admin", PART, "VS409", SETTLED),
    Case("admin", PART.replace("'{hold}'", "gen_random_uuid()"), "VS404 no such hold"),
    Case("user", PART, "VS403"),
]  # fmt: skip


def batch(*operations: tuple[str, str], atomic: bool = False, who: str = "user") -> str:
    made = ", ".join(
        f"jsonb_build_object('user_id', '{{{who}}}', 'amount', {amount}, 'direction', '{direction}')"
        for amount, direction in operations
    )
    return f"adjust_user_tokens_batch(jsonb_build_array({made}), {str(atomic).lower()})"


KEYED = 'select adjust_user_tokens_batch(\'[{"user_id": "{user}", "amount": 6, "direction": "debit", "idempotency_key": "%s"}]\')'
DEBITS = batch(("5", "debit"), ("6", "debit"))
BATCHES = [
    Case("admin", f"select {DEBITS} -> 1 -> 'entry' ->> 'amount'", "= (-6)",
         then=f"{BOOKS} and {wallet('available_tokens')} = {{available}} - 11"),
    Case("service", f"select {DEBITS}", then=BOOKS),
    Case("admin", f"select {batch(('5', 'debit'), ('6', 'credit'), ('7', 'debit'))}",
         then=f"{BOOKS} and {wallet('available_tokens')} = {{available}} - 6"),
    Case("admin", f"select {batch(('5', 'debit'), ('900000000000', 'debit'))} -> 1 -> 'error' ->> 'sqlstate'", "= (VS402)", then=BOOKS),
    Case("admin", f"select {batch(('5', 'debit'), ('900000000000', 'debit'), atomic=True)}", "VS402"),
    Case("admin", f"select {batch(('5', 'debit'), who='b_user')} -> 0 -> 'error' ->> 'sqlstate'", "= (VS404)", then=BOOKS),
    # the id is one of two tenants here
    Case("operator", f"select {batch(('5', 'debit'), ('6', 'debit'), atomic=True)}", "VS404"),
    Case("admin", f"select {DEBITS} -> 0 -> 'error' ->> 'sqlstate'", "= (VS415)", LOCKED),
    Case("admin", f"select {DEBITS}", given=SCHEDULED, then=f"{BOOKS} and {wallet('next_event_at')} > vanilla.clock()"),
    Case("admin", KEYED % "k" + " -> 0 -> 'entry' ->> 'replayed'", "= (true)", "{as_admin}; " + KEYED % "k", then=BOOKS),
    Case("admin", KEYED % "twin-key" + " -> 0 -> 'entry' ->> 'replayed'", "= (false)", then=BOOKS),
    Case("user", f"select {DEBITS}", "VS403"),
    Case("nobody", f"select {DEBITS}", "VS401"),
    *[Case("admin", f"select adjust_user_tokens_batch('{odd}')", "VS400") for odd in ("1", "[]", '[{"user_id": "no"}]', "[1]")],
]  # fmt: skip

STATEMENT = "token_statement('{user}', '2000-01-01', '2199-01-01')"
ANCHOR = (
    "(select jsonb_agg(jsonb_build_object('tenant_id', tenant_id, 'user_id', user_id, 'seq', seq, 'hash', encode(hash, 'hex')))"
    " from token_ledger_anchor())"
)
REWRITTEN = (
    "set local session_replication_role = replica; update user_token_ledger l set hash = '\\x00' from user_token_wallets w"
    " where l.tenant_id = '{a}' and l.user_id = '{user}' and w.tenant_id = l.tenant_id and w.user_id = l.user_id and w.seq = l.seq;"
    " set local session_replication_role = origin"
)


def kept(tenant: str, seq: int) -> str:
    return f"""'[{{"tenant_id": "{{{tenant}}}", "user_id": "{{user}}", "seq": {seq}, "hash": "00"}}]'"""


PROOFS = [
    *[Case(who, f"select (select count(*) from {STATEMENT}) = (select count(*) from user_token_ledger where user_id = '{{user}}')", "= (t)")
      for who in ("user", "admin")],
    Case("user", f"select count(*) from {STATEMENT.replace('{user}', '{other}')}", "VS403"),
    Case("admin", f"select count(*) from {STATEMENT.replace('{user}', '{b_user}')}", "VS404"),
    Case("user", f"select count(*) from {STATEMENT.replace('2000', '2199')}", "VS400"),
    Case("user", "select count(*) from token_statement('{user}', null, '2199-01-01')", "VS400"),
    Case("nobody", f"select count(*) from {STATEMENT}", "VS401"),
    Case("admin", "select (select count(*) from token_ledger_anchor()) = (select count(*) from user_token_wallets where seq > 0)", "= (t)"),
    Case("user", "select count(*) from token_ledger_anchor()", "VS403"),
    Case("nobody", "select count(*) from token_ledger_anchor()", "VS401"),
    Case("admin", f"select count(*) from verify_token_anchor({ANCHOR})", "= (0)"),
    Case("admin", f"select count(*) from verify_token_anchor({kept('a', 1)}) where problem like '%rewritten'", "= (1)"),
    # the entry of this number is the twin's
    Case("admin", f"select count(*) from verify_token_anchor({kept('a', 1000000)}) where problem like '%gone'", "= (1)"),
    Case("admin", f"select count(*) from verify_token_anchor({kept('b', 1)})", "= (0)"),
    Case("operator", f"select count(*) from verify_token_anchor({kept('a', 1)})", "= (1)"),
    Case("admin", f"select count(*) from verify_token_anchor({ANCHOR})", "= (1)", REWRITTEN),
    Case("admin", "select count(*) from verify_token_anchor('1')", "VS400 an anchor is an array"),
    Case("admin", "select count(*) from verify_token_anchor('[1]')", "VS400"),
    Case("user", f"select count(*) from verify_token_anchor({kept('a', 1)})", "VS403"),
]  # fmt: skip

CASES = [*GRANTS, *POLICIES, *HOLDS, *BATCHES, *PROOFS]
