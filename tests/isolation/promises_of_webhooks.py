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

# push notifications of tasks: section "the runner" of 006
TELLS = "tenant_id = '{a}' and execution_id = '{running}'"
SET = "select set_task_notification('{running}', '{provider}', 'new', 'c', 'https://x.test', 'secret')"
AGAIN = "select set_task_notification('{running}', '{notification}', '{word}', 'c', 'https://x.test', 'new')"
WAITS_FOR_IT = "(select count(*) from webhook_deliveries d join webhook_endpoints k on k.tenant_id = d.tenant_id and k.id = d.endpoint_id where k.tenant_id = '{a}' and k.%s and d.attempts = 0) = %s"
TO_TASK = WAITS_FOR_IT % ("execution_id = '{running}'", "%s")
DROPS = "select delete_task_notification('{running}', '{word}')"
TOLD = (
    "insert into webhook_deliveries (tenant_id, id, endpoint_id, event_created_at, event_id, next_attempt_at) select tenant_id, '{%s}', id, now(), '{user}', %s from webhook_endpoints where "
    + TELLS
)
TRIED = f"{TOLD % ('user', 'now()')}; insert into webhook_attempts (tenant_id, delivery_id, attempt) values ('{{a}}', '{{user}}', 1)"
NINE = (
    "insert into webhook_endpoints (tenant_id, id, url, event_types, secret, execution_id, config_id, context_id)"
    " select '{a}', gen_random_uuid(), 'https://x.test', '{*}', 'x', '{running}', n::text, 'c' from generate_series(1, %s) n"
)
ASKED = "update workflow_approvals set status = 'expired', decided_at = now() where tenant_id = '{a}' and execution_id = '{running}'"
ENDED = "set local session_replication_role = replica; update workflow_executions set status = '%s', reason = %s, finished_at = now() where tenant_id = '{a}' and id = '{running}'; set local session_replication_role = origin"
STATE = "select vanilla.task_state('{a}', '{running}')"
SENT = (
    "exists (select from events v where v.tenant_id = '{a}' and v.type = 'task.state' and v.user_id = '{user}'"
    ' and v.created_at = vanilla.clock() and v.payload @> \'{"execution_id": "{running}",'
    ' "context_id": "{word}", "state": "%s"}\')'
)
SHOWN = "from task_notifications('{running}')"
NOTIFICATIONS = [
    # it asks people, so it is told at once
    Case("user", SET, audit="task_notification.set", then="(select url = 'https://x.test' and secret = 'secret' and concurrency = 1 and event_types = '{task.state}'"
         " and config_id = 'new' and context_id = 'c' from webhook_endpoints where tenant_id = '{a}' and id = '{provider}') and " + WAITS_FOR_IT % ("config_id = 'new'", 1) + " and " + TO_TASK % 1),
    Case("user", SET, given=ASKED, then=TO_TASK % 0),
    Case("user", AGAIN, given=f"update webhook_endpoints set status = 'disabled', disabled_reason = 'x', failing_since = now() where {TELLS}",
         then=f"(select url = 'https://x.test' and secret = 'new' and status = 'active' and disabled_reason is null and failing_since is null from webhook_endpoints where {TELLS}) and {TO_TASK % 0}"),
    # those of another tenant's execution of this id are not counted
    Case("user", SET, given=NINE % 8),
    Case("user", SET, "VS429", NINE % 9),
    Case("user", AGAIN, given=NINE % 9),
    Case("user", SET.replace("'{provider}'", "'{webhook}'"), "VS409"),
    Case("user", SET.replace("'new'", "'{word}'"), "VS409"),
    *[Case("user", SET.replace(old, new), "VS400") for old, new in (("https", "file"), ("'secret'", "null"), ("'new'", "''"), ("'c'", "null"))],
    Case("user", DROPS, "= (t)", TRIED, audit="task_notification.deleted", then=f"not exists (select from webhook_endpoints where {TELLS})"
         " and not exists (select from webhook_deliveries where tenant_id = '{a}' and id = '{user}') and not exists (select from webhook_attempts where tenant_id = '{a}' and delivery_id = '{user}')"
         " and exists (select from webhook_attempts where tenant_id = '{a}')"),
    *[Case("user", DROPS.replace("'{word}'", name), "= (f)", then=f"exists (select from webhook_endpoints where {TELLS})") for name in ("'x'", "null")],
    *[Case(who, f"select config_id, url, status {SHOWN}", "= ({word},https://{word}.test,active)") for who in ("user", "admin")],
    *[Case(who, f"select count(*) {SHOWN}", "= (0)") for who in ("other", "super")],
    Case("nobody", f"select count(*) {SHOWN}", "VS401"),
    Case("user", f"select count(*) {SHOWN}".replace("{running}", "{b_running}"), "= (0)"),
    # what becomes of it
    Case("keeper", STATE, "= (input_required)"),
    Case("keeper", STATE, "= (working)", ASKED),
    *[Case("keeper", STATE, f"= ({state})", ENDED % (status, reason)) for state, status, reason in (
        ("completed", "succeeded", "null"), ("canceled", "cancelled", "'x'"), ("failed", "failed", "'x'"), ("rejected", "failed", "'input_invalid'"))],
    Case("user", "select cancel_execution('{running}')", then=f"{TO_TASK % 1} and {SENT % 'canceled'}"),
    Case("user", "select cancel_execution('{running}')", given=f"update webhook_endpoints set status = 'disabled' where {TELLS}", then=TO_TASK % 0),
    Case("keeper", "select vanilla.tell_tasks(array['{a}', '{a}']::uuid[], array['{running}', '{others_shared}']::uuid[])", "= (1)", then=f"{TO_TASK % 1} and {SENT % 'input_required'}"),
    Case("keeper", "select vanilla.tell_task('{a}', '{running}')", given=f"update webhook_endpoints set status = 'disabled' where {TELLS}", then=TO_TASK % 0),
    Case("keeper", "select vanilla.tell_asked('{a}', '{running}')", then=TO_TASK % 1),
    Case("keeper", "select vanilla.drop_notifications('{a}', '{}')", "= (0)"),
    # it is no webhook of the tenant's
    Case("keeper", "select vanilla.emit_event('{a}', 'token.granted') is not null", "= (t)", f"update webhook_endpoints set event_types = '{{*}}' where {TELLS}", then=TO_TASK % 0),
    Case("keeper", "select vanilla.emit_events('token.granted', array['{a}']::uuid[], array['{user}']::uuid[], array['{}']::jsonb[])", "= (1)",
         f"update webhook_endpoints set event_types = '{{*}}' where {TELLS}", then=TO_TASK % 0),
    *[Case("admin", f"select {call}", "VS404 no such webhook") for call in (
        "delete_webhook_endpoint('{notification}')", "update_webhook_endpoint('{notification}', 'https://x.test')")],
    # one after the other
    Case("runtime", CLAIM, "= (1)", f"{TOLD % ('user', 'vanilla.clock()')}; {TOLD % ('word_less', 'vanilla.clock()')}".replace("'{word_less}'", "gen_random_uuid()")
         + "; insert into events (tenant_id, created_at, id, type, payload) select tenant_id, event_created_at, event_id, 'task.state', '{}' from webhook_deliveries where id = '{user}'"
         # that of another tenant, of the same id, does not come before
         "; insert into webhook_deliveries (tenant_id, id, endpoint_id, event_created_at, event_id, next_attempt_at)"
         " values ('{twin}', '00000000-0000-7000-8000-000000000001', '{notification}', now(), '{user}', '2199-01-01')"),
]  # fmt: skip

CASES = [*ENDPOINTS, *DELIVERIES, *NOTIFICATIONS]
