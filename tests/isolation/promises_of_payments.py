"""Promises of section payments of 007: whose level an event moves, whose tokens, and who may say what is charged."""

import json
from typing import Any

from tests.isolation.promises import Case
from tests.isolation.promises_of_tenancy import SUSPENDED


def apply(kind: str, thing: dict[str, Any], ahead: int = 100, **more: Any) -> str:
    told = json.dumps({"id": "evt_case", "type": kind, "livemode": False, "data": {"object": thing}} | more)
    created = f"jsonb_build_object('created', extract(epoch from now())::bigint + {ahead})"
    return f"select vanilla.apply_payment_event({{endpoint}}, '{told}'::jsonb || {created}) ->> 'outcome'"


def subscription(state: str, ahead: int = 100, kind: str = "updated", **more: Any) -> str:
    items = {"data": [{"price": {"id": "{sold_price}"}}]}
    thing = {"id": "{subscription}", "customer": "{customer}", "status": state, "items": items} | more
    return apply(f"customer.subscription.{kind}", thing, ahead)


def paid(**more: Any) -> str:
    thing = {"id": "pi_case", "customer": "{customer}", "status": "succeeded", "currency": "usd", "amount_received": 500,
             "metadata": {"vanilla_payment": "{same_id}"}} | more  # fmt: skip
    return apply("payment_intent.succeeded", thing)


def refund(amount: int, **more: Any) -> str:
    thing = {"id": "{refund}", "payment_intent": "{intent}", "amount": amount, "currency": "usd", "status": "succeeded"}
    return apply("refund.updated", thing | more)


def change(table: str, what: str, where: str = "user_id = '{user}'") -> str:
    return f"update {table} set {what} where tenant_id = '{{a}}' and {where}"


def exists(table: str, where: str) -> str:
    return f"exists (select from {table} where tenant_id = '{{a}}' and {where})"


def on(level: str) -> str:
    return exists("user_token_wallets", f"user_id = '{{user}}' and level_id = '{{{level}}}'")


def available(change: int) -> str:
    return exists("user_token_wallets", f"user_id = '{{user}}' and available_tokens = {{available}} + ({change})")


OPEN = (
    "insert into payments (tenant_id, id, user_id, account_tenant_id, cause, state, price_id, tokens, currency, amount)"
    " values ('{a}', '{same_id}', '{user}', '{a}', 'checkout', 'open', 'x', 50, 'USD', 500)"
)
ON_SOLD = change("user_token_wallets", "level_id = '{sold}'")
SUBSCRIBED = change("payment_subscriptions", "state = 'active', level_id = '{sold}'")
PAST_DUE = change("payment_subscriptions", "state = 'past_due', level_id = '{sold}', grace_until = vanilla.clock()")
SHUT = change("user_token_wallets", "status = 'closed'")
IN_TWIN = OPEN.replace("'{a}'", "'{twin}'")
OTHERS_VOID = (
    "insert into user_token_ledger (tenant_id, user_id, seq, id, created_at, amount, reserved_amount, available_after,"
    " reserved_after, borrowed_after, direction, reason, source, grant_id, hash) select '{twin}', '{user}', 1000001,"
    " gen_random_uuid(), now(), -500, 0, 1, 0, 0, 'void', 'x', 'x', grant_id, '' from payments where tenant_id = '{a}'"
    " and id = '{payment}'"
)
ELSEWHERE = (
    "insert into payment_customers (tenant_id, user_id, account_tenant_id, customer_id, payment_method)"
    " values ('{a}', '{user}', '{platform}', 'cus_elsewhere', 'pm_1'); "
    + change("payment_customers", "customer_id = customer_id", "account_tenant_id = '{a}'")
)
NO_ACCOUNT = change("payment_accounts", "status = 'disabled'", "true")
EVENTS = [
    Case("runtime", subscription("active"), "= (applied)", then=on("sold"), audit="wallet.level"),
    Case("runtime", subscription("active"), "VS404", NO_ACCOUNT),
    Case("runtime", subscription("active"), "= (stale)", SUBSCRIBED.replace("state = 'active'", "state = 'canceled'")),
    Case("runtime", subscription("active", -86400), "= (stale)", then=on("level")),
    Case("runtime", subscription("active", customer="cus_nobody"), "= (unknown_customer)", then=on("level")),
    Case("runtime", subscription("active", customer="{other_customer}"), "= (other_customer)", then=on("level")),
    Case("runtime", subscription("active"), "= (unknown_price)", "delete from payment_prices where tenant_id = '{a}'"
         " and kind = 'level'", on("level")),
    Case("runtime", subscription("odd"), "= (not_understood)"),
    Case("runtime", subscription("active"), "= (applied)", SHUT, on("level")),
    Case("runtime", subscription("active"), "= (applied)", "insert into payment_events (tenant_id, event_id, type, outcome,"
         " created_at) values ('{twin}', 'evt_case', 'x', 'ignored', now()), ('{a}', 'evt_case', 'x', 'unknown_price', now())", on("sold")),
    Case("runtime", subscription("canceled", kind="deleted"), "= (applied)", f"{SUBSCRIBED}; {ON_SOLD}", on("level")),
    Case("runtime", subscription("canceled", kind="deleted"), "= (applied)", SUBSCRIBED, on("level")),
    Case("runtime", subscription("past_due"), "= (applied)", f"{SUBSCRIBED}; {ON_SOLD}", on("sold")
         + " and " + exists("payment_subscriptions", "grace_until > vanilla.clock() + interval '6 days'"
                            " and grace_until < vanilla.clock() + interval '8 days'")),
    # of a subscription that begins elsewhere the user keeps the highest level
    Case("runtime", subscription("canceled", kind="deleted"), "= (applied)",
         f"{SUBSCRIBED}; {ON_SOLD}; insert into payment_subscriptions (tenant_id, user_id, account_tenant_id, subscription_id,"
         " state, level_id, event_at, event_rank) values ('{a}', '{user}', '{a}', 'sub_case', 'trialing', '{sold}', now(), 0)",
         on("sold")),
    Case("runtime", subscription("active"), "= (applied)", "insert into payment_events (tenant_id, event_id, type, outcome,"
         " created_at) values ('{a}', 'evt_case', 'x', 'unknown_price', now())", on("sold")),
    Case("runtime", subscription("active"), "= (ignored)", "insert into payment_events (tenant_id, event_id, type, outcome,"
         " created_at) values ('{a}', 'evt_case', 'x', 'ignored', now())", on("level")),
    Case("runtime", apply("customer.subscription.created", {}, account="acct_other"), "= (other_account)"),
    Case("runtime", apply("x", {}, livemode=True), "= (other_mode)"),
    Case("runtime", apply("x", {}), "= (ignored)", then=exists("payment_events", "event_id = 'evt_case' and outcome = 'ignored'")),
    Case("runtime", apply("x", {}, -91 * 86400), "VS400"),
    Case("runtime", apply("x", {}, id="a b"), "VS400"),
    Case("runtime", apply("X", {}), "VS400"),
    Case("runtime", apply("x", {}, data=None), "VS400"),
    Case("runtime", paid(), "= (applied)", OPEN, available(50)),
    Case("runtime", paid(setup_future_usage="off_session", payment_method="pm_new"), "= (applied)", OPEN,
         exists("payment_customers", "user_id = '{user}' and payment_method = 'pm_new'")
         + " and not " + exists("payment_customers", "user_id = '{other}' and payment_method = 'pm_new'")),
    Case("runtime", paid(), "= (applied)", f"{OPEN}; {SHUT.replace('{a}', '{twin}')}", available(50)),
    Case("runtime", paid(), "= (unknown_payment)", f"{OPEN}; " + change("payments", "account_tenant_id = '{platform}'", "id = '{same_id}'"),
         available(0)),
    Case("runtime", paid(id="{intent}", metadata={"vanilla_payment": "{payment}"}, setup_future_usage="off_session", payment_method="pm_new"),
         "= (unchanged)", then=exists("payment_customers", "user_id = '{user}' and payment_method = 'pm_1'")),
    Case("runtime", apply("payment_intent.payment_failed", {"id": "pi_case", "customer": "{customer}",
         "metadata": {"vanilla_payment": "{payment}"}}), "= (unchanged)", change("payments", "cause = 'auto_top_up'", "id = '{payment}'")),
    Case("runtime", apply("checkout.session.expired", {"customer": "{customer}", "metadata": {"vanilla_payment": "{same_id}"}}),
         "= (applied)", f"{OPEN}; {IN_TWIN}"),
    Case("runtime", paid(), "= (unknown_payment)"),
    Case("runtime", paid(), "= (unknown_payment)", OPEN.replace("'{user}'", "'{other}'"), available(0)),
    Case("runtime", paid(customer="{other_customer}"), "= (unknown_payment)", OPEN, available(0)),
    Case("runtime", paid(customer="cus_nobody"), "= (unknown_customer)", OPEN, available(0)),
    Case("runtime", paid(currency="eur"), "= (currency_mismatch)", OPEN, available(0)),
    Case("runtime", paid(amount_received=499), "= (amount_mismatch)", OPEN, available(0)),
    Case("runtime", paid(status="processing"), "= (not_understood)", OPEN, available(0)),
    Case("runtime", paid(metadata={}), "= (ignored)", OPEN, available(0)),
    Case("runtime", paid(), "= (wallet_closed)", f"{OPEN}; " + change("user_token_wallets", "status = 'closed'"), available(0)),
    Case("runtime", paid(metadata={"vanilla_payment": "{payment}"}), "= (paid_twice)", then=available(0)),
    Case("runtime", paid(id="{intent}", metadata={"vanilla_payment": "{payment}"}), "= (unchanged)", then=available(0)),
    Case("runtime", apply("payment_intent.payment_failed", {"id": "pi_case", "customer": "{customer}",
         "metadata": {"vanilla_payment": "{pending}"}}), "= (applied)", then=exists("payments", "id = '{pending}' and state = 'failed'")
         + " and " + exists("payment_top_ups", "user_id = '{user}' and paused_reason = 'payment_failed'")
         + " and not " + exists("payment_top_ups", "user_id = '{other}' and paused_reason is not null")),
    Case("runtime", apply("payment_intent.payment_failed", {"id": "pi_case", "customer": "{customer}",
         "metadata": {"vanilla_payment": "{same_id}"}}), "= (unchanged)", OPEN),
    Case("runtime", apply("checkout.session.expired", {"customer": "{customer}", "metadata": {"vanilla_payment": "{same_id}"}}),
         "= (applied)", OPEN, exists("payments", "id = '{same_id}' and state = 'expired'")),
    Case("runtime", apply("checkout.session.expired", {"customer": "{customer}", "metadata": {"vanilla_payment": "{payment}"}}),
         "= (unchanged)"),
    # 100 of 1000 were taken back for 90 of 900
    Case("runtime", refund(900), "= (applied)", then=available(-900)
         + " and " + exists("payments", "id = '{payment}' and reversed_tokens = 1000"), audit="payment.reversed"),
    Case("runtime", refund(900), "= (applied)", OTHERS_VOID, available(-900)),
    Case("runtime", refund(900), "= (applied)", "update user_token_grants set remaining = 0 where tenant_id = '{twin}' and kind = 'purchase'",
         exists("user_token_grants", "user_id = '{user}' and kind = 'purchase' and remaining = 0")),
    Case("runtime", refund(900), "= (applied)", SHUT, available(0)),
    Case("runtime", refund(900, id="re_case", payment_intent="pi_case"), "= (waiting)", change("payments", "intent_id = 'pi_case'", "id = '{pending}'"),
         available(0)),
    Case("runtime", apply("charge.refunded", {"id": "ch_case", "payment_intent": "{intent}", "amount_refunded": 180, "currency": "usd"}),
         "= (applied)", then=available(-100)),
    Case("runtime", apply("charge.dispute.closed", {"id": "dp_case", "payment_intent": "{intent}", "amount": 900, "currency": "usd",
         "status": "won"}), "= (unchanged)", then=available(0)),
    Case("runtime", apply("charge.dispute.closed", {"id": "dp_case", "payment_intent": "{intent}", "amount": 450, "currency": "usd",
         "status": "won"}), "= (applied)", "insert into payment_reversals (tenant_id, reversal_id, kind, intent_id, state, amount, currency,"
         " event_at, event_rank) values ('{a}', 'ch_case', 'charge', '{intent}', 'counts', 180, 'usd', now(), 0)",
         exists("payment_top_ups", "user_id = '{user}' and paused_reason is null")),
    Case("runtime", refund(90), "= (unchanged)", then=available(0)),
    Case("runtime", refund(90, status="failed"), "= (applied)", then=available(100)),
    Case("runtime", refund(900, id="re_case", payment_intent="pi_nobody"), "= (waiting)", then=available(0)),
    Case("runtime", refund(900, payment_intent="pi_nobody"), "= (stale)", then=available(0)),
    Case("runtime", refund(900, id="re_case", currency="eur"), "= (currency_mismatch)", then=available(0)),
    Case("runtime", refund(900, payment_intent=None), "= (ignored)"),
    Case("runtime", refund(-1, id="re_case"), "= (not_understood)"),
    Case("runtime", apply("charge.dispute.created", {"id": "dp_case", "payment_intent": "{intent}", "amount": 900,
         "currency": "usd", "status": "needs_response"}), "= (applied)", then=available(-900)
         + " and " + exists("payment_top_ups", "user_id = '{user}' and paused_reason is not null")
         + " and not " + exists("payment_top_ups", "user_id = '{other}' and paused_reason is not null")),
]  # fmt: skip

ACCOUNT = "select set_payment_account('{account}', 'sixteen bytes at least', 'new'::bytea"
PRICE = "select set_payment_price('price_case', 'pack', 'Case', 'usd', 5"
ADMINS = [
    Case("admin", f"{ACCOUNT})", "= ({account})", audit="payment.account",
         then=exists("payment_accounts", "secret = 'new' and webhook_secret is not null and endpoint = {endpoint}")),
    Case("operator", f"{ACCOUNT}, p_tenant_id => '{{a}}')", "= ({account})"),
    Case("operator", f"{ACCOUNT}, p_tenant_id => gen_random_uuid())", "VS404"),
    Case("operator", f"{ACCOUNT}, p_tenant_id => '{{a}}')", "VS404", "update tenants set status = 'closed' where id = '{a}' and tenant_id = '{a}'"),
    Case("admin", f"{ACCOUNT.replace('{account}', '{same_id}')})", "VS409"),
    Case("admin", f"{ACCOUNT}, p_grace_days => 91)", "VS400"),
    Case("user", f"{ACCOUNT})", "VS403"),
    Case("nobody", f"{ACCOUNT})", "VS401"),
    Case("admin", f"{ACCOUNT}, p_tenant_id => '{{b}}')", "VS404"),
    Case("admin", f"{PRICE}, 7) is not null", "= (t)", audit="payment.price",
         then=exists("payment_prices", "price_id = 'price_case' and currency = 'USD' and tokens = 7")),
    Case("admin", f"{PRICE})", "VS400"),
    Case("admin", f"{PRICE.replace('pack', 'level')}, p_level_id => '{{b_level}}')", "VS404"),
    Case("admin", f"{PRICE.replace('pack', 'level')}, p_level_id => '{{paid}}')"),
    Case("admin", f"{PRICE.replace('pack', 'level')}, p_level_id => '{{paid}}')", "VS404",
         "update levels set id = gen_random_uuid() where tenant_id = '{a}' and id = '{paid}'"
         " and set_config('session_replication_role', 'replica', true) is not null"),
    Case("operator", f"{PRICE}, 7, p_tenant_id => gen_random_uuid())", "VS404 no such tenant"),
    Case("user", f"{PRICE}, 7)", "VS403"),
    Case("admin", f"{PRICE}, 7, p_tenant_id => '{{b}}')", "VS404"),
    Case("admin", "select delete_level('{sold}')", "VS409"),
    Case("admin", "select delete_level('{sold}')", "VS409", change("payment_prices", "status = 'hidden'", "true") + "; " + SUBSCRIBED),
    Case("admin", "select delete_level('{sold}')", given=change("payment_prices", "status = 'hidden'", "true") + "; "
         + change("payment_subscriptions", "state = 'canceled'", "true"),
         then="not " + exists("payment_prices", "level_id = '{sold}'") + " and not " + exists("payment_subscriptions", "level_id = '{sold}'")),
]  # fmt: skip

CHECKOUT = "select begin_checkout('{pack}')"
MORE = (
    "insert into payments (tenant_id, user_id, account_tenant_id, cause, state, price_id, tokens, currency, amount, created_at)"
    " select '{a}', '{user}', '{a}', 'checkout', 'open', 'x', 1, 'USD', 1, vanilla.clock() from generate_series(1, %s)"
)
TOP_UP = "select set_auto_top_up('{pack}', 5, 900"
USERS = [
    Case("user", f"{CHECKOUT} ->> 'customer_id'", "= ({customer})",
         then=exists("payments", "user_id = '{user}' and state = 'open' and amount = 900 and tokens = 1000")),
    Case("admin", f"{CHECKOUT} ->> 'customer_id'", "= ()"),
    Case("user", f"{CHECKOUT} ->> 'customer_id'", "VS409", NO_ACCOUNT),
    Case("user", f"{CHECKOUT} ->> 'customer_id'", "VS409", change("payment_accounts", "secret = null", "true")),
    Case("user", CHECKOUT, "VS404", change("payment_prices", "status = 'hidden'", "true")),
    Case("user", CHECKOUT.replace("{pack}", "{b_pack}"), "VS404"),
    Case("user", f"{CHECKOUT} ->> 'kind'", "= (pack)", MORE % 19),
    Case("user", CHECKOUT, "VS429", MORE % 20),
    Case("other", f"{CHECKOUT} ->> 'kind'", "= (pack)", MORE % 20),
    Case("user", f"{CHECKOUT.replace('{pack}', '{sold_id}')} ->> 'kind'", "= (level)"),
    Case("user", CHECKOUT.replace("{pack}", "{sold_id}"), "VS409", SUBSCRIBED),
    Case("other", f"{CHECKOUT.replace('{pack}', '{sold_id}')} ->> 'kind'", "= (level)", SUBSCRIBED),
    Case("nobody", CHECKOUT, "VS401"),
    Case("user", "select begin_payment_portal() ->> 'customer_id'", "= ({customer})"),
    Case("user", "select begin_payment_portal() ->> 'customer_id'", "= ({customer})", ELSEWHERE),
    *[Case("user", statement, outcome, f"{NO_ACCOUNT}; insert into payment_accounts (tenant_id, endpoint, secret) values ('{{platform}}',"
           " sha256('case'), 'x'); insert into payment_customers (tenant_id, user_id, account_tenant_id, customer_id, payment_method)"
           " values ('{twin}', '{user}', '{platform}', 'cus_of_twin', 'pm_1')")
      for statement, outcome in (("select begin_payment_portal() ->> 'customer_id'", "= ()"), (f"{TOP_UP})", "VS409"))],
    Case("user", "select begin_payment_portal() ->> 'endpoint' = encode({endpoint}, 'hex')", "= (t)"),
    Case("nobody", "select begin_payment_portal()", "VS401"),
    Case("user", f"{TOP_UP})", audit="payment.auto_top_up", then=exists("payment_top_ups", "user_id = '{user}' and threshold = 5")
         + " and not " + exists("payment_top_ups", "user_id = '{other}' and threshold = 5")),
    Case("user", f"{TOP_UP}, true, '{{other}}')", "VS403"),
    Case("admin", f"{TOP_UP}, true, '{{other}}')", then=exists("payment_top_ups", "user_id = '{other}' and threshold = 5")),
    Case("admin", f"{TOP_UP}, true, '{{b_user}}')", "VS404"),
    Case("admin", f"{TOP_UP})", "VS409"),
    Case("user", f"{TOP_UP})", "VS409", change("payment_customers", "payment_method = null")),
    Case("user", f"{TOP_UP.replace('900', '899')})", "VS400"),
    Case("user", f"{TOP_UP.replace('5', '0')})", "VS400"),
    Case("user", f"{TOP_UP})", "VS404", change("payment_prices", "status = 'hidden'", "true")),
    Case("user", f"{TOP_UP}, false)", given=change("payment_prices", "status = 'hidden'", "true")),
    Case("user", TOP_UP.replace("{pack}", "{sold_id}") + ")", "VS404"),
    Case("user", TOP_UP.replace("{pack}", "{b_pack}") + ")", "VS404"),
    Case("nobody", f"{TOP_UP})", "VS401"),
]  # fmt: skip

CLAIM = "select jsonb_array_length(vanilla.claim_top_ups())"
DUE = (
    change("payments", "state = 'failed', lease_id = null, lease_until = null", "id = '{pending}'")
    + "; "
    + change("payment_top_ups", "threshold = 1000000000000, monthly_ceiling = 1800")
)
LATE = change("payments", "lease_until = vanilla.clock()", "id = '{pending}'")
FINISH = "select vanilla.finish_top_up('{a}', '{pending}', '{pay_lease}', "
ANSWER = '\'{"id": "pi_case", "status": "%s", "currency": "usd", "amount_received": 900}\')'
RUNTIME = [
    Case("runtime", "select vanilla.payment_account({endpoint}) ->> 'tenant_id'", "= ({a})"),
    Case("runtime", "select vanilla.payment_account({endpoint})", "= ()", NO_ACCOUNT),
    Case("runtime", "select vanilla.bind_payment_customer({endpoint}, '{customer_key}', 'cus_new')", "= ({customer})"),
    Case("runtime", "select vanilla.bind_payment_customer({endpoint}, '{customer_key}', 'cus_new')", "= (cus_new)",
         change("payment_customers", "customer_id = null")),
    Case("runtime", "select vanilla.bind_payment_customer({endpoint}, '{user}', 'cus_new')", "= ()"),
    Case("runtime", CLAIM, "= (0)"),
    Case("runtime", CLAIM, "= (1)", DUE, exists("payments", "user_id = '{user}' and state = 'pending' and id <> '{pending}'"
         " and amount = 900 and tokens = 1000 and lease_until > vanilla.clock()") + " and not " + exists("events", "type = 'payment.top_up_ceiling'")),
    Case("runtime", "select vanilla.claim_top_ups() -> 0 ->> 'endpoint' = encode({endpoint}, 'hex')", "= (t)", DUE),
    Case("runtime", "select vanilla.claim_top_ups() -> 0 ->> 'customer_id'", "= ({customer})", f"{DUE}; {ELSEWHERE}"),
    Case("runtime", CLAIM, "= (0)", f"{LATE}; " + change("payments", "state = 'failed'", "id = '{pending}'")),
    Case("runtime", "select vanilla.claim_top_ups() -> 0 ->> 'payment_method'", "= (pm_1)", DUE),
    *[Case("runtime", CLAIM, "= (0)", f"{DUE}; {given}") for given in (
        SUSPENDED, NO_ACCOUNT, change("payment_top_ups", "enabled = false"), change("payment_top_ups", "paused_reason = 'x'"),
        change("payment_prices", "status = 'hidden'", "true"), change("user_token_wallets", "status = 'locked'"),
        change("payment_customers", "payment_method = null"), change("payment_customers", "customer_id = null"),
        change("payment_accounts", "secret = null", "true"), change("payment_top_ups", "threshold = 1"))],
    Case("runtime", CLAIM, "= (0)", f"{DUE}; {change('payment_top_ups', 'monthly_ceiling = 899')}",
         exists("events", "type = 'payment.top_up_ceiling'") + " and not " + exists("payment_top_ups", "user_id = '{other}' and told_month is not null")),
    # what another user, or nobody, paid by hand counts for nothing
    Case("runtime", CLAIM, "= (1)", f"{DUE}; {change('payment_top_ups', 'monthly_ceiling = 900')}"),
    Case("runtime", CLAIM, "= (0)", f"{DUE}; {change('payment_top_ups', 'monthly_ceiling = 1799')}; "
         + change("payments", "cause = 'auto_top_up', created_at = vanilla.clock()", "id = '{payment}'")),
    Case("runtime", CLAIM, "= (1)", f"{DUE}; {change('payment_top_ups', 'monthly_ceiling = 1799')}; "
         + change("payments", "cause = 'auto_top_up', created_at = vanilla.clock() - interval '32 days'", "id = '{payment}'")),
    Case("runtime", CLAIM, "= (1)", LATE, exists("payments", "id = '{pending}' and lease_id <> '{pay_lease}' and lease_until > vanilla.clock()")),
    Case("runtime", CLAIM, "= (0)", f"{LATE}; " + change("payments", "intent_id = 'pi_case'", "id = '{pending}'")),
    Case("runtime", CLAIM, "= (0)", f"{LATE}; " + change("payments", "created_at = vanilla.clock() - interval '21 h'", "id = '{pending}'"),
         exists("payments", "id = '{pending}' and state = 'failed'")),
    Case("runtime", f"{FINISH}{ANSWER % 'succeeded'}", "= (succeeded)", then=available(1000)),
    Case("runtime", f"{FINISH}{ANSWER.replace('900', '1') % 'succeeded'}", "= (failed)", then=available(0)),
    Case("runtime", f"{FINISH}{ANSWER % 'processing'}", "= (pending)", then=exists("payments", "id = '{pending}' and intent_id = 'pi_case' and lease_id is null")),
    Case("runtime", f"{FINISH}{ANSWER % 'odd'}", "= (failed)", then=available(0)),
    Case("runtime", f"{FINISH}null)", "= (pending)", then=exists("payments", "id = '{pending}' and lease_until > vanilla.clock()"
         " and lease_until < vanilla.clock() + interval '1 hour'")),
    Case("runtime", f"{FINISH}null, 'declined')", "= (failed)", then=exists("payment_top_ups", "user_id = '{user}' and paused_reason = 'declined'")),
    Case("runtime", f"{FINISH.replace('{pay_lease}', '{user}')}null, 'declined')", "= ()"),
    Case("runtime", f"{FINISH.replace('{pending}', '{payment}')}null, 'declined')", "= ()"),
    Case("runtime", f"{FINISH.replace('{a}', '{b}')}null, 'declined')", "= ()"),
    Case("runtime", f"{FINISH}null, 'declined')", "= ()", change("payments", "state = 'failed'", "id = '{pending}'")),
    Case("keeper", "select vanilla.job_payments(10) ->> 'lapsed'", "= (0)"),
    Case("keeper", "select vanilla.job_payments(10) ->> 'lapsed'", "= (1)", f"{PAST_DUE}; {ON_SOLD}", on("level")
         + " and " + exists("payment_subscriptions", "user_id = '{user}' and lapsed_at is not null")),
    Case("keeper", "select vanilla.job_payments(10) ->> 'lapsed'", "= (0)", f"{PAST_DUE}; {ON_SOLD}; "
         + change("payment_subscriptions", "lapsed_at = now()"), on("sold")),
    Case("keeper", "select vanilla.job_payments(10) ->> 'expired'", "= (1)", f"{OPEN}; " + change("payments",
         "created_at = vanilla.clock() - interval '26 h'", "id = '{same_id}'"), exists("payments", "id = '{same_id}' and state = 'expired'")),
    Case("keeper", "select vanilla.job_payments(10) ->> 'events'", "= (6)", change("payment_events", "received_at = vanilla.clock() - interval '92 days'", "true")),
    Case("admin", "select erase_user('{user}', 'asked')", then="not " + exists("payment_top_ups", "user_id = '{user}'")
         + " and " + exists("payment_top_ups", "user_id = '{other}'")
         + " and " + exists("payment_customers", "user_id = '{user}' and payment_method is null")
         + " and " + exists("payment_customers", "user_id = '{other}' and payment_method is not null")),
]  # fmt: skip

CASES = [*EVENTS, *ADMINS, *USERS, *RUNTIME]
