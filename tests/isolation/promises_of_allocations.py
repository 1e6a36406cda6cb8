"""What the functions of allocations promise: whose a budget is, who settles a step, what ends one, what is told."""

from tests.isolation.promises import Case, unlocked

NODE = "(select %s from resource_allocations where tenant_id = '{a}' and id = '{%s}')"
STEP = "(select %s from allocation_holds where tenant_id = '{a}' and id = '{%s}')"
SET = "update resource_allocations set %s where tenant_id = '{a}' and id = '{%s}'"
SET_STEP = "update allocation_holds set %s where tenant_id = '{a}' and id = '{%s}'"
OPEN = "select allocation_open(%s) ->> '%s'"
MINE = "exists (select from resource_allocations where tenant_id = '{a}' and user_id = '{user}' and budget_tokens = 77 and state = 'open')"
HELD = "exists (select from allocation_holds where tenant_id = '{a}' and allocation_id = '{share}' and step = 'new' and amount = 7 and state = 'open' and user_id = '{user}')"
WALLET = "(select reserved_tokens from user_token_wallets where tenant_id = '{a}' and user_id = '{user}') = (select sum(amount) from user_token_holds where tenant_id = '{a}' and user_id = '{user}' and state = 'open')"
DRAWN = "(select amount from user_token_holds where tenant_id = '{a}' and id = '{budget_hold}') = %d"
LATER = "update user_token_holds set %s where tenant_id = '{a}' and id = '{budget_hold}'"
ENDED = f"{NODE % ('state', 'budget')} = '%s' and {NODE % ('state', 'share')} = '%s' and {STEP % ('state', 'step')} = 'released' and {WALLET}"
CLOSED = SET % ("state = 'closed', closed_at = now(), carved_tokens = 0, held_tokens = 0", "share")
OVER = "VS409 the allocation's time is over"
LOCKED = "update user_token_wallets set status = 'locked' where tenant_id = '{a}' and user_id = '{user}'"
TWINS_STEP = "update allocation_holds set state = 'open', settled = null, overrun = null, closed_at = null where tenant_id = '{twin}' and id = '{step}'"
TWINS_NODE = (
    "update resource_allocations set state = 'open', closed_at = null where tenant_id = '{twin}' and id = '{%s}'"
)
EMPTY = "update user_token_wallets set enforcement_mode = 'monitor', burn = burn + available_tokens, available_tokens = 0 where tenant_id = '{a}' and user_id = '{user}'"
LATE = "exists (select from user_token_ledger where tenant_id = '{a}' and user_id = '{user}' and metadata ->> 'allocation_hold' = '{step}' and metadata ? 'late')"
REAP = "select public.allocation_reap() ->> '%s'"
EXPIRED = "expires_at = vanilla.clock()"
GROWS = f"{SET % ('most_tokens = 5000', 'budget')}; {SET % ('most_tokens = 5000', 'share')}"
OWN = [
    ("select allocation_carve('{budget}', 77)", MINE),
    ("select allocation_top_up('{budget}', 7)", f"{NODE % ('budget_tokens', 'budget')} = 1007 and {WALLET}"),
    ("select allocation_top_up('{share}', 7)", f"{NODE % ('budget_tokens', 'share')} = 407 and {NODE % ('carved_tokens', 'budget')} = 407"),
    ("select id from allocation_tree('{share}')", "true"),
]  # fmt: skip
BY_ADMINS = [
    ("select allocation_hold('{share}', 'new', 7)", f"{HELD} and {NODE % ('held_tokens = 17 and requests = 3 and open_holds = 2', 'share')}"),
    ("select allocation_settle('{step}', 4)", f"{STEP % ('settled', 'step')} = 4 and {NODE % ('spent_tokens = 9 and held_tokens = 0 and open_holds = 0', 'share')} and {DRAWN % 991} and {WALLET} and not {LATE}"),
    ("select allocation_release('{step}')", f"{STEP % ('state', 'step')} = 'released' and {NODE % ('held_tokens = 0 and open_holds = 0', 'share')}"),
    ("select allocation_count_tool_call('{share}')", f"{NODE % ('tool_calls', 'share')} = 1"),
]  # fmt: skip
FULL = [
    ("max_requests = 2", "'s requests are used up"),
    ("max_concurrent = 1", " has as many steps"),
    ("budget_tokens = 16, carved_tokens = 0", "'s budget is used up"),
    ("overrun_tokens = 1", "'s budget is used up"),
    ("wrapped_up_at = now()", "'s budget is used up"),
    ("wrap_up_tokens = 380", "'s budget is used up"),
]


def named(statement: str, whose: str) -> str:
    for name in ("budget", "share", "step"):
        statement = statement.replace(f"{{{name}}}", f"{{{whose}_{name}}}")
    return statement


CASES = [
    # whose a budget is
    *[Case(who, statement, *(["= ({share})"] if "tree" in statement else []), then=then, audit="allocation.topped_up" if "top_up" in statement else "")
      for statement, then in OWN for who in ("user", "admin", "service", "opened")],
    *[Case(who, statement, then=then) for statement, then in BY_ADMINS for who in ("admin", "service", "opened")],
    *[Case("user", statement, "VS403") for statement, _ in BY_ADMINS],
    *[Case("nobody", statement, "VS401") for statement, _ in (*OWN, *BY_ADMINS)],
    *[Case("super", statement, "VS404") for statement, _ in (*OWN, *BY_ADMINS)],
    *[Case("user", named(statement, "others"), "VS404") for statement, _ in OWN],
    *[Case(who, named(statement, "b"), "VS404") for statement, _ in (*OWN, *BY_ADMINS) for who in ("admin", "service")],
    *[Case("admin", f"{statement[:-1]}, p_tenant_id => '{{b}}')", "VS404") for statement, _ in (*OWN, *BY_ADMINS)],
    *[Case("user", f"{statement[:-1]}, p_tenant_id => '{{b}}')", "VS404") for statement, _ in OWN],
    *[Case("operator", f"{statement[:-1]}, p_tenant_id => '{{a}}')", then=then) for statement, then in (*OWN, *BY_ADMINS)],
    *[Case("operator", f"{statement[:-1]}, p_tenant_id => '{{b}}')", "VS404") for statement, _ in (*OWN, *BY_ADMINS)],
    Case("user", "select allocation_close('{share}')", "VS409"),
    Case("user", "select allocation_close('{budget}')", "VS409"),
    Case("user", "select allocation_close('{others_share}')", "VS404"),
    Case("admin", "select allocation_close('{b_share}')", "VS404"),
    Case("nobody", "select allocation_close('{share}')", "VS401"),
    Case("user", "select allocation_close('{share}') ->> 'state'", "= (closed)", "{as_admin}; select allocation_settle('{step}', 4)",
         then=f"{NODE % ('spent_tokens = 9 and carved_tokens = 0', 'budget')} and {WALLET}"),
    Case("user", "select allocation_close('{budget}') ->> 'state'", "= (closed)", "{as_admin}; select allocation_settle('{step}', 4); select allocation_close('{share}')",
         then=f"(select state from user_token_holds where tenant_id = '{{a}}' and id = '{{budget_hold}}') = 'released' and {WALLET}"),
    Case("user", "select allocation_close('{share}') ->> 'replayed'", "= (true)", CLOSED),
    Case("user", "select allocation_close('{share}') ->> 'state'", "= (closed)", SET_STEP % (EXPIRED, "step")),
    # opened for oneself, or by an admin
    Case("user", OPEN % ("77", "budget"), "= (77)", then=f"{MINE} and {WALLET}"),
    Case("admin", OPEN % ("77, p_user_id => '{user}'", "budget"), "= (77)", then=f"{MINE} and {WALLET}"),
    Case("operator", OPEN % ("77, p_user_id => '{user}', p_tenant_id => '{a}'", "budget"), "= (77)", then=MINE),
    Case("user", OPEN % ("77, p_user_id => '{other}'", "budget"), "VS403"),
    Case("admin", OPEN % ("77, p_user_id => '{b_user}'", "budget"), "VS404"),
    Case("user", OPEN % ("77, p_tenant_id => '{b}'", "budget"), "VS404"),
    Case("nobody", OPEN % ("77", "budget"), "VS401"),
    Case("user", OPEN % ("1000000000000", "budget"), "VS402"),
    Case("user", OPEN % ("77", "budget"), "VS415", LOCKED),
    Case("user", OPEN % ("77, p_idempotency_key => 'new'", "replayed"), "= (true)", "{as_admin}; select allocation_open(77, p_idempotency_key => 'new', p_user_id => '{user}')"),
    Case("user", OPEN % ("78, p_idempotency_key => 'new'", "replayed"), "VS410", "{as_admin}; select allocation_open(77, p_idempotency_key => 'new', p_user_id => '{user}')"),
    Case("user", OPEN % ("77, p_idempotency_key => 'twin-key'", "replayed"), "= (false)"),
    *[Case("user", OPEN % (values, "budget"), "VS400") for values in (
        "0", "-5", "null", "77, '[]'", "77, '{\"odd\": 1}'", "77, '{\"requests\": 0}'", "77, '{\"wrap_up_tokens\": 78}'", "77, '{}', vanilla.clock()",
        "77, '{}', vanilla.clock() + interval '40 days'", "77, p_idempotency_key => repeat('x', 256)")],
    *[Case("user", f"select allocation_carve('{{budget}}', {values})", code) for values, code in (
        ("601", "VS429"), ("-5", "VS400 a budget is positive"), ("5, '{\"odd\": 1}'", "VS400"), ("5, '{\"wrap_up_tokens\": 6}'", "VS400"), ("5, '{}', vanilla.clock()", "VS400"),
        ("5, p_idempotency_key => '{word}'", "VS410"), ("5, p_idempotency_key => repeat('x', 256)", "VS400"))],
    Case("user", "select allocation_carve('{budget}') ->> 'budget'", "= (600)"),
    Case("user", "select allocation_carve('{budget}', 5, p_idempotency_key => 'twin-only') ->> 'replayed'", "= (false)",
         "update resource_allocations set idempotency_key = 'twin-only' where tenant_id = '{twin}' and id = '{share}'"),
    Case("user", "select allocation_carve('{budget}', 5, p_idempotency_key => 'new') ->> 'replayed'", "= (true)",
         "{as_admin}; select allocation_carve('{budget}', 5, p_idempotency_key => 'new')"),
    Case("user", "select allocation_carve('{budget}', 5)", "VS429", SET % ("overrun_tokens = 1", "budget")),
    Case("user", "select allocation_carve('{budget}', 5)", "VS429", SET % ("wrapped_up_at = now()", "budget")),
    Case("user", "select allocation_carve('{share}', 5)", "VS409 allocations nest", SET % ("depth = 50", "share")),
    *[Case("keeper", statement, f"VS404 no such {what}") for statement, what in (
        ("select vanilla.allocation_carve('{a}', '{b_budget}', 5)", "allocation"), ("select vanilla.allocation_hold('{a}', '{b_share}', 'new', 5)", "allocation"),
        ("select vanilla.allocation_settle('{a}', '{b_step}', 5)", "hold"), ("select vanilla.allocation_release('{a}', '{b_step}')", "hold"))],
    Case("keeper", "select vanilla.allocation_end('{a}', '{share}')", "= (f)", CLOSED),
    Case("user", OPEN % ("77", "budget"), "VS402", EMPTY),
    Case("user", "select allocation_top_up('{budget}', 7)", "VS402", EMPTY),
    Case("user", OPEN % ("77, p_idempotency_key => 'new'", "budget"), "= (77)", "{as_admin}; select allocation_open(77, p_idempotency_key => 'new', p_user_id => '{user}');"
         " insert into resource_allocations select (jsonb_populate_record(x, '{\"tenant_id\": \"{twin}\", \"budget_tokens\": 5}')).* from resource_allocations x"
         " where tenant_id = '{a}' and budget_tokens = 77"),
    Case("user", "select allocation_close('{share}') ->> 'state'", "= (closed)", "{as_admin}; select allocation_settle('{step}', 4); " + TWINS_STEP),
    # what grows, and what it grows out of
    Case("keeper", "select (vanilla.grow_allocation('{a}', '{share}', 2000)).budget_tokens", "= (2097)", GROWS,
         then=f"{NODE % ('budget_tokens = 2330 and carved_tokens = 2097', 'budget')} and {WALLET}"),
    Case("keeper", "select (vanilla.grow_allocation('{a}', '{share}', 900)).budget_tokens", "= (974)", GROWS,
         then=f"{NODE % ('budget_tokens = 1000 and carved_tokens = 974', 'budget')} and {WALLET}"),
    *[Case("keeper", "select (vanilla.grow_allocation('{a}', '{share}', 2000)).budget_tokens", "= (1000)", f"{GROWS}; {given}",
           then=f"{NODE % ('budget_tokens = 1000 and carved_tokens = 1000', 'budget')} and {WALLET}") for given in (EMPTY, LOCKED)],
    Case("keeper", "select (vanilla.grow_allocation('{a}', '{share}', 2000)).budget_tokens", "= (400)", SET % ("most_tokens = 5000", "budget")),
    Case("keeper", "select (vanilla.grow_allocation('{a}', '{b_share}', 2000)).budget_tokens", "VS404"),
    # what a step needs
    *[Case("admin", "select allocation_hold('{share}', 'new', 7)", f"VS429 the allocation{why}", SET % (full, "share")) for full, why in FULL],
    *[Case("admin", statement, code, given) for given, code in (
        (CLOSED, "VS409 the allocation is closed"), (SET % (EXPIRED, "share"), OVER), (LATER % "state = 'released', closed_at = now()", "VS409 the allocation is closed"),
        (LATER % "state = 'expired', closed_at = now()", OVER), (LATER % EXPIRED, OVER), (CLOSED.replace("'closed'", "'expired'"), OVER), (LOCKED, "VS415"))
      for statement in ("select allocation_hold('{share}', 'new', 7)", "select allocation_count_tool_call('{share}')", "select allocation_carve('{share}', 7)",
                        "select allocation_top_up('{share}', 7)", "select allocation_hold('{share}', '{word}0', 7)")],
    Case("admin", "select allocation_hold('{share}', '{word}0', 7) ->> 'hold_id'", "= ({step})", then=f"{NODE % ('held_tokens', 'share')} = 10"),
    Case("admin", "select allocation_hold('{share}', '{word}1', 7) ->> 'settled'", "= (5)", CLOSED),
    Case("admin", "select allocation_hold('{share}', 'new', 7) ->> 'state'", "= (open)", f"{SET % ('max_concurrent = 1', 'share')}; {SET_STEP % (EXPIRED, 'step')}",
         then=f"{STEP % ('state', 'step')} = 'released' and {NODE % ('held_tokens = 7 and open_holds = 1', 'share')}"),
    Case("admin", "select allocation_hold('{share}', 'new', 385, p_wrap_up => true) ->> 'amount'", "= (385)", SET % ("wrap_up_tokens = 385", "share"),
         then=f"{NODE % ('wrapped_up_at is not null', 'share')}"),
    Case("admin", "select allocation_hold('{share}', 'new', 1)", "VS429", SET % ("counted_by = array['{budget}'::uuid]", "share") + "; " + SET % ("max_requests = 1, requests = 1", "budget")),
    Case("admin", "select allocation_hold('{share}', 'new', 1) ->> 'state'", "= (open)", SET % ("counted_by = array['{budget}'::uuid]", "share"),
         then=f"{NODE % ('requests = 1 and open_holds = 1', 'budget')}"),
    Case("admin", "select allocation_count_tool_call('{share}')", "VS429", SET % ("max_tool_calls = 1, tool_calls = 1", "share")),
    Case("admin", "select allocation_count_tool_call('{share}', 2) ->> 'tool_calls'", "= (2)", SET % ("counted_by = array['{budget}'::uuid]", "share"),
         then=f"{NODE % ('tool_calls', 'budget')} = 2"),
    *[Case("admin", f"select allocation_hold('{{share}}', {values})", "VS400") for values in (
        "'', 7", "null, 7", "repeat('x', 256), 7", "'new', -1", "'new', null", "'new', 7, '0 s'")],
    Case("admin", "select allocation_count_tool_call('{share}', 0)", "VS400"),
    Case("admin", "select allocation_hold('{share}', 'new', 310) ->> 'notified'", "= (true)", then=NODE % ("notified_at is not null", "share") +
         " and exists (select from events where tenant_id = '{a}' and user_id = '{user}' and type = 'allocation.warning')"),
    # how a step ends
    Case("admin", "select allocation_hold('{share}', '{word}0', 7) ->> 'replayed'", "= (true)",
         "{as_admin}; select allocation_release('{step}'); select allocation_hold('{share}', '{word}0', 7)"),
    Case("admin", "select allocation_settle('{step}', 0) ->> 'settled'", "= (0)",
         then="not exists (select from user_token_ledger where tenant_id = '{a}' and metadata ->> 'allocation_hold' = '{step}')"),
    Case("admin", "select allocation_settle('{step}', 4) ->> 'settled'", "= (4)", SET % ("counted_by = array['{budget}'::uuid]", "share") + "; " + SET % ("open_holds = 1", "budget"),
         then=f"{NODE % ('open_holds', 'budget')} = 0"),
    Case("admin", "select allocation_release('{step}') ->> 'state'", "= (released)", TWINS_STEP),
    Case("admin", "select settle_user_tokens('{budget_hold}', 4) ->> 'direction'", "= (settle)",
         "delete from allocation_holds where tenant_id = '{a}'; set local session_replication_role = replica; delete from resource_allocations where tenant_id = '{a}';"
         " set local session_replication_role = origin"),
    Case("admin", "select allocation_settle('{paid_step}', 9) ->> 'settled'", "= (5)", then=f"{DRAWN % 995}"),
    Case("admin", "select allocation_settle('{step}', 4)", "VS409", SET_STEP % ("call = '{}'", "step")),
    Case("admin", "select allocation_release('{step}') ->> 'state'", "= (released)", SET_STEP % ("call = '{}'", "step")),
    Case("admin", "select allocation_release('{paid_step}') ->> 'state'", "= (settled)"),
    Case("admin", "select allocation_settle('{step}', 400) ->> 'overrun'", "= (5)",
         then=f"{NODE % ('spent_tokens = 400 and overrun_tokens = 5', 'share')} and {DRAWN % 600} and {WALLET}"),
    *[Case("admin", f"select allocation_settle('{{step}}', {values})", "VS400") for values in ("-1", "null", "1000000000000001", "5, '[]'")],
    Case("admin", "select allocation_settle('{step}', 4) ->> 'settled'", "= (4)", "{as_admin}; select allocation_release('{step}')", then=f"{DRAWN % 991} and {WALLET}"),
    Case("admin", "select allocation_settle('{step}', 0) ->> 'state'", "= (released)", "{as_admin}; select allocation_release('{step}')"),
    Case("admin", "select allocation_settle('{step}', 4) ->> 'state'", "= (released)",
         "{as_admin}; select allocation_release('{step}'); select allocation_hold('{share}', '{word}0', 7)", then=DRAWN % 995),
    Case("admin", "select allocation_settle('{step}', 4) ->> 'overrun'", "= (4)", "{as_admin}; select release_token_hold('{budget_hold}')", then=f"{WALLET} and {LATE}"),
    Case("admin", "select allocation_settle('{step}', 4) ->> 'overrun'", "= (4)", "{as_admin}; select allocation_release('{step}'); select allocation_close('{share}')", then=WALLET),
    Case("admin", "select settle_user_tokens('{budget_hold}', 4)", "VS409 the hold belongs to an allocation"),
    Case("admin", "select settle_user_tokens('{budget_hold}', 4, p_final => false)", "VS409 the hold belongs to an allocation"),
    # tokens are added
    Case("user", "select allocation_top_up('{budget}', 7, 'new') ->> 'replayed'", "= (true)", "{as_admin}; select allocation_top_up('{budget}', 7, 'new')",
         then=f"{NODE % ('budget_tokens', 'budget')} = 1007"),
    Case("user", "select allocation_top_up('{budget}', 8, 'new')", "VS410", "{as_admin}; select allocation_top_up('{budget}', 7, 'new')"),
    Case("user", "select allocation_top_up('{share}', 601)", "VS429"),
    Case("user", "select allocation_top_up('{share}', 7)", "VS429", SET % ("overrun_tokens = 1", "budget")),
    Case("user", "select allocation_top_up('{share}', 7)", "VS429", SET % ("wrapped_up_at = now()", "budget")),
    Case("user", "select allocation_top_up('{budget}', 1000000000000)", "VS402"),
    *[Case("user", f"select allocation_top_up('{{budget}}', {values})", "VS400") for values in ("-1", "0", "7, repeat('x', 256)")],
    Case("user", "select allocation_top_up('{budget}', 7)", "VS409 the allocation was topped up", SET % ("top_ups = jsonb_build_object('x', repeat('x', 60000))", "budget")),
    # time, and who takes a tree's tokens back
    Case("operator", REAP % "allocations", "= (0)"),
    Case("operator", REAP % "allocations", "= (0)", "update user_token_holds set state = 'released', closed_at = now() where tenant_id = '{twin}' and id = '{budget_hold}'"),
    Case("operator", REAP % "allocations", "= (0)", "update users set status = 'deleted' where tenant_id = '{twin}' and id = '{user}'"),
    Case("operator", REAP % "allocations", "= (1)", f"{SET % (EXPIRED, 'budget')}; {TWINS_NODE % 'share'}"),
    Case("operator", "select erase_user('{user}', 'x', '{a}') ->> 'user_id'", "= ({user})", TWINS_NODE % "share"),
    Case("operator", REAP % "allocations", "= (1)", SET % (EXPIRED, "budget"), then=ENDED % ("expired", "expired")),
    Case("operator", REAP % "allocations", "= (1)", SET % (EXPIRED, "share"), then=f"{NODE % ('state', 'share')} = 'expired' and {NODE % ('carved_tokens = 0 and spent_tokens = 5', 'budget')}"),
    Case("operator", REAP % "steps", "= (1)", SET_STEP % (EXPIRED, "step"), then=f"{STEP % ('state', 'step')} = 'released' and {NODE % ('held_tokens', 'share')} = 0"),
    Case("operator", REAP % "allocations", "= (1)", "{as_admin}; select release_token_hold('{budget_hold}'); select set_config('vanilla.context', '', true)",
         then=ENDED % ("closed", "closed")),
    Case("operator", "select erase_user('{user}', 'x', '{a}') ->> 'user_id'", "= ({user})",
         then=f"{NODE % ('state', 'budget')} = 'closed' and {STEP % ('state', 'step')} = 'released' and {STEP % ('usage', 'paid_step')} = '{{}}'"
              f" and {NODE % ('idempotency_key is null and request_hash is null', 'budget')} and {NODE % ('state', 'others_budget')} = 'open'"),
    *[Case(who, REAP % "steps", "42501") for who in ("user", "admin", "super", "runtime", "nobody")],
    # what one sees
    Case("user", "select count(*) from resource_allocations", "= (5)"),
    Case("admin", "select count(*) from resource_allocations", "= (10)"),
    Case("user", "select count(*) from allocation_holds", "= (5)"),
    Case("admin", "select count(*) from allocation_holds", "= (10)"),
    Case("user", "select count(*) from allocation_tree('{budget}')", "= (2)", then=unlocked("resource_allocations", "tenant_id = '{a}'")),
    Case("user", "select count(*) from allocation_tree('{others_budget}')", "VS404"),
]  # fmt: skip
