"""Promises of section 9 of 001: who keeps endpoints, where an event goes, and what a try comes to."""

from tests.isolation.promises import Case
from tests.isolation.promises_of_tenancy import SUSPENDED


def endpoint(expression: str) -> str:
    return f"(select {expression} from webhook_endpoints where tenant_id = '{{a}}' and id = '{{webhook}}')"


def delivery(expression: str, which: str = "failed") -> str:
    return f"(select {expression} from webhook_deliveries where tenant_id = '{{a}}' and id = '{{{which}}}')"


def set_endpoint(change: str) -> str:
    return f"update webhook_endpoints set {change} where tenant_id = '{{a}}' and id = '{{webhook}}'"


def set_delivery(change: str, which: str = "failed") -> str:
    return f"update webhook_deliveries set {change} where tenant_id = '{{a}}' and id = '{{{which}}}'"


CREATE = "select create_webhook_endpoint('{provider}', 'https://x.test', '{token.*,token.*}', 'secret'"
MORE = (
    "insert into webhook_endpoints (tenant_id, id, url, event_types, secret)"
    " select '{a}', gen_random_uuid(), 'https://x.test', '{*}', 'x' from generate_series(1, %s)"
)
UPDATE = "select update_webhook_endpoint('{webhook}'"
ROTATE = "select rotate_webhook_secret('{webhook}', 'new'"
OFF = set_endpoint("status = 'disabled', disabled_reason = 'before'")
DEAD = set_delivery("state = 'dead', lease_id = null")
ENDPOINTS = [
    Case("admin", f"{CREATE})", "= ({provider})", audit="webhook.created",
         then="(select event_types = '{token.*}' and secret = 'secret' from webhook_endpoints where tenant_id = '{a}' and id = '{provider}')"),
    Case("operator", f"{CREATE}, p_tenant_id => '{{a}}')", "= ({provider})"),
    Case("operator", f"{CREATE}, p_tenant_id => '{{a}}')", "VS404", SUSPENDED),
    Case("operator", f"{CREATE})", "VS404"),
    Case("user", f"{CREATE})", "VS403"),
    Case("nobody", f"{CREATE}, p_tenant_id => '{{a}}')", "VS401"),
    Case("admin", f"{CREATE}, p_tenant_id => '{{b}}')", "VS404"),
    # others' endpoints are not counted: with B's and the twin's there would be more than twenty
    Case("admin", f"{CREATE})", given=MORE % 18),
    Case("admin", f"{CREATE})", "VS429", MORE % 19),
    Case("admin", f"{CREATE.replace('https', 'file')})", "VS400"),
    Case("admin", f"{CREATE.replace('token.*,token.*', '')})", "VS400"),
    Case("admin", f"{CREATE.replace('token.*,token.*', 'odd')})", "VS400"),
    Case("admin", f"{CREATE.replace('token.*,token.*', '*,null')})", "VS400"),
    Case("admin", f"{CREATE.replace(chr(39) + 'secret' + chr(39), 'null')})", "VS400"),
    Case("admin", f"{CREATE.replace('{provider}', '{webhook}')})", "VS409"),
    Case("admin", f"{UPDATE}, 'https://y.test')", audit="webhook.updated", then=endpoint("url = 'https://y.test' and concurrency = 4")),
    Case("admin", f"{UPDATE}, p_status => 'odd')", "VS400"),
    Case("admin", f"{UPDATE}, p_concurrency => 99)", "VS400"),
    Case("admin", f"{UPDATE}, p_event_types => '{{odd}}')", "VS400"),
    Case("admin", f"{UPDATE}, p_status => 'disabled')",
         then=endpoint("status = 'disabled'") + " and " + delivery("state = 'dead'") + " and " + delivery("state = 'dead'", "leased")),
    Case("admin", f"{UPDATE}, p_status => 'disabled')", given=OFF, then=endpoint("disabled_reason = 'before'")),
    Case("admin", f"{UPDATE}, p_status => 'active')", given=f"{OFF}; {set_endpoint('failing_since = now()')}",
         then=endpoint("status = 'active' and disabled_reason is null and failing_since is null")),
    Case("admin", f"{UPDATE}, 'https://y.test')", given=OFF, then=endpoint("status = 'disabled'")),
    Case("user", f"{UPDATE}, 'https://y.test')", "VS403"),
    Case("admin", f"{UPDATE.replace('{webhook}', '{b_webhook}')}, 'https://y.test')", "VS404"),
    Case("admin", f"{ROTATE})", audit="webhook.secret_rotated",
         then=endpoint("secret = 'new' and previous_secret is not null and previous_secret_until > vanilla.clock()")),
    *[Case("admin", statement, "VS400") for statement in (
        f"{ROTATE}, '31 days')", f"{ROTATE}, '-1 day')", f"{ROTATE.replace(chr(39) + 'new' + chr(39), 'null')})")],
    Case("user", f"{ROTATE})", "VS403"),
    Case("admin", f"{ROTATE.replace('{webhook}', '{b_webhook}')})", "VS404"),
    Case("admin", "select delete_webhook_endpoint('{webhook}')", audit="webhook.deleted",
         then="not exists (select from webhook_endpoints where tenant_id = '{a}' and id = '{webhook}')"),
    Case("user", "select delete_webhook_endpoint('{webhook}')", "VS403"),
    Case("admin", "select delete_webhook_endpoint('{b_webhook}')", "VS404"),
    Case("admin", "select send_test_webhook('{webhook}') is not null", "= (t)",
         then="(select count(*) = 1 from webhook_deliveries where tenant_id = '{a}' and endpoint_id = '{webhook}' and cause = 'test')"),
    Case("admin", "select send_test_webhook('{webhook}')", "VS409", OFF),
    Case("user", "select send_test_webhook('{webhook}')", "VS403"),
    Case("admin", "select send_test_webhook('{b_webhook}')", "VS404"),
    Case("admin", "select redeliver_webhook('{failed}')", "= ({failed})", then=delivery("next_attempt_at <= vanilla.clock()")),
    Case("admin", "select redeliver_webhook('{leased}')", "= ({leased})", then=delivery("next_attempt_at > vanilla.clock()", "leased")),
    Case("admin", "select redeliver_webhook('{failed}') <> '{failed}'", "= (t)", DEAD,
         then="(select count(*) = 1 from webhook_deliveries where tenant_id = '{a}' and cause = 'redelivery' and state = 'pending')"),
    Case("admin", "select redeliver_webhook('{failed}')", "VS409", OFF),
    Case("admin", "select redeliver_webhook('{b_failed}')", "VS404 no such delivery"),
    Case("user", "select redeliver_webhook('{failed}')", "VS403"),
]  # fmt: skip

CLAIM = "select jsonb_array_length(vanilla.claim_webhook_deliveries())"
DUE = set_delivery("next_attempt_at = vanilla.clock()")
FINISH = "select vanilla.finish_webhook_delivery('{a}', '{leased}', '{lease}', "
OLD = "update webhook_deliveries set created_at = '2020-01-01' where tenant_id = '{a}'"
DELIVERIES = [
    Case("keeper", "select vanilla.emit_event('{a}', 'token.granted') is not null", "= (t)",
         then="(select count(*) = 1 from webhook_deliveries where tenant_id = '{a}' and attempts = 0)"),
    Case("keeper", "select vanilla.emit_event('{a}', 'token.granted') is not null", "= (t)", OFF,
         then="not exists (select from webhook_deliveries where tenant_id = '{a}' and attempts = 0)"),
    Case("keeper", "select vanilla.emit_event('{a}', 'token.granted') is not null", "= (t)", set_endpoint("event_types = '{webhook.*}'"),
         then="not exists (select from webhook_deliveries where tenant_id = '{a}' and attempts = 0)"),
    Case("runtime", CLAIM, "= (0)"),
    Case("runtime", CLAIM, "= (1)", DUE, then=delivery("lease_id is not null and next_attempt_at > vanilla.clock()")),
    *[Case("runtime", CLAIM, "= (0)", f"{DUE}; {given}") for given in (SUSPENDED, OFF, set_endpoint("concurrency = 1"))],
    # what of another tenant is in flight takes no room here
    Case("runtime", CLAIM, "= (1)", f"{DUE}; {set_endpoint('concurrency = 2')}"),
    Case("runtime", CLAIM, "= (1)", set_delivery("next_attempt_at = vanilla.clock()", "leased"),
         then="exists (select from webhook_attempts where tenant_id = '{a}' and delivery_id = '{leased}' and attempt = 1 and error like 'the sender stopped%')"),
    Case("runtime", CLAIM, "= (0)", f"{DUE}; delete from events where tenant_id = '{{a}}'", then=delivery("state = 'dead'")),
    Case("runtime", CLAIM, "= (0)", f"{DUE}; {set_delivery('attempts = 10')}", then=delivery("state = 'dead'")),
    Case("runtime", f"{FINISH}200, null, 5)", "= (delivered)", set_endpoint("failing_since = vanilla.clock()"),
         then=delivery("lease_id is null and delivered_at is not null", "leased") + " and " + endpoint("failing_since is null")),
    Case("runtime", f"{FINISH}500, null, 5)", "= (failed)", set_endpoint("failing_since = null"),
         then=delivery("next_attempt_at > vanilla.clock() and last_error = 'answered 500'", "leased") + " and " + endpoint("failing_since is not null")),
    Case("runtime", f"{FINISH}500, null, 5)", "= (dead)", set_delivery("attempts = 10", "leased")),
    Case("runtime", f"{FINISH}500, null, 5)", "= (dead)", OFF, then=endpoint("disabled_reason = 'before'")),
    Case("runtime", f"{FINISH}410, null, 5)", "= (dead)", audit="webhook.disabled",
         then=endpoint("status = 'disabled'") + " and exists (select from events where tenant_id = '{a}' and type = 'webhook.disabled')"),
    Case("runtime", f"{FINISH}500, null, 5)", "= (dead)", set_endpoint("failing_since = vanilla.clock() - interval '6 days'"),
         then=endpoint("status = 'disabled'")),
    Case("runtime", f"{FINISH.replace('{lease}', '{user}')}200, null, 5)", "= ()"),
    Case("runtime", f"{FINISH.replace('{a}', '{b}')}200, null, 5)", "= ()"),
    Case("runtime", "select vanilla.prune_webhook_deliveries()", "= (0)"),
    Case("runtime", "select vanilla.prune_webhook_deliveries()", "= (0)", OLD),
    Case("runtime", "select vanilla.prune_webhook_deliveries()", "= (1)", f"{OLD}; {DEAD}",
         then=f"not exists {delivery('')} and exists {delivery('', 'leased')}"),
    Case("runtime", "select vanilla.prune_webhook_deliveries(6)", "VS400"),
]  # fmt: skip

CASES = [*ENDPOINTS, *DELIVERIES]
