"""What the runner of 006 promises: whose an execution is, what of it a worker is given, what an outcome changes."""

import json
from typing import Any

from tests.isolation.executions import LONG_S, NODES
from tests.isolation.promises import Case
from tests.isolation.promises_of_tenancy import DISABLED, SUSPENDED, opening

AT = {name: place for place, name in enumerate(NODES, 1)} | {"$start": 0, "$end": len(NODES) + 1}
MEMBERS = ("user", "admin")


def execution(expression: str, which: str = "running") -> str:
    return f"(select {expression} from workflow_executions where tenant_id = '{{a}}' and id = '{{{which}}}')"


def step(node: str, expression: str, which: str = "running", item: int = -1) -> str:
    where = f"tenant_id = '{{a}}' and execution_id = '{{{which}}}' and node = {AT.get(node, 1)} and item = {item}"
    return f"(select {expression} from workflow_steps where {where})"


def count(table: str, which: str = "running", where: str = "true") -> str:
    return f"(select count(*) from {table} where tenant_id = '{{a}}' and execution_id = '{{{which}}}' and {where})"


def at(node: str, where: str = "true", item: int = -1) -> str:
    return f"node = {AT[node]} and item = {item} and {where}"


def queued(node: str, where: str = "worker is null", item: int = -1, which: str = "running") -> str:
    return count("workflow_queue", which, at(node, "pool = 'default' and " + where, item)) + " = 1"


def hold(which: str, expression: str) -> str:
    return f"(select {expression} from user_token_holds where tenant_id = '{{a}}' and {which})"


def change(table: str, values: str, where: str, tenant: str = "a") -> str:
    """As superuser, past the triggers."""
    update = f"update {table} set {values} where tenant_id = '{{{tenant}}}' and {where}"
    return f"set local session_replication_role = replica; {update}; set local session_replication_role = origin"


def in_step(node: str, values: str, item: int = -1, tenant: str = "a") -> str:
    return change("workflow_steps", values, f"execution_id = '{{running}}' and {at(node, item=item)}", tenant)


def in_node(node: str, values: str, tenant: str = "a") -> str:
    return change("workflow_nodes", values, f"workflow_id = '{{flow_run}}' and node = {AT[node]}", tenant)


def due(node: int | str, item: int = -1) -> str:
    number = AT.get(str(node), node)
    return change(
        "workflow_timers",
        "due_at = '2020-01-01'",
        f"execution_id = '{{running}}' and node = {number} and item = {item}",
    )


STEP_CALL = "id = '{step_call}'"
ESTIMATE = "reference_id = '{running}' and call is null"
MINE, THEIRS = "execution_id = '{running}'", "execution_id = '{others_running}'"
UNTOUCHED = (
    f"{execution('status', 'others_running')} = 'running' and {count('workflow_queue', 'others_running')} = 5"
    f" and {count('workflow_timers', 'others_running')} = 6 and {count('workflow_steps', 'others_running')} = {len(NODES) + 4}"
)
APPROVAL = "(select {} from workflow_approvals where tenant_id = '{{a}}' and id = '{{approval}}')"
PAUSED = (
    change("workflow_executions", "status = 'paused'", "id = '{running}'")
    + f"; delete from workflow_queue where tenant_id = '{{a}}' and {MINE} and worker is null"
)
VERBS = {
    "cancel_execution": "'{running}'",
    "pause_execution": "'{running}'",
    "signal_execution": "'{running}', 'go'",
    "restart_execution": "'{lost}'",
    "execution_progress": "'{running}'",
    "execution_step": "'{running}', 'ask'",
    "set_task_notification": "'{running}', '{provider}', 'new', 'c', 'https://x.test', 'x'",
    "delete_task_notification": "'{running}', 'new'",
}


def whose() -> list[Case]:
    """Their owner's, and the admins' of the tenant; an id of another tenant is nobody's."""
    found = []
    for verb, arguments in [*VERBS.items(), ("resume_execution", "'{running}'")]:
        given = PAUSED if verb == "resume_execution" else ""
        found += [
            *[Case(who, f"select {verb}({arguments})", given=given) for who in MEMBERS],
            Case("operator", f"select {verb}({arguments}, p_tenant_id => '{{a}}')", given=given),
            Case(
                "opened", f"select {verb}({arguments})", given="; ".join(filter(None, (opening("a", "super"), given)))
            ),
            Case("other", f"select {verb}({arguments})", "VS404", given),
            Case("service", f"select {verb}({arguments})", given=given),
            *[Case(who, f"select {verb}({arguments})".replace("'{", "'{b_"), "VS404") for who in (*MEMBERS, "super")],
            *[Case(who, f"select {verb}({arguments}, p_tenant_id => '{{b}}')", "VS404") for who in MEMBERS],
            Case("nobody", f"select {verb}({arguments})", "VS401"),
        ]
    return found


START = "select start_workflow(%s)"
STARTED = "(select count(*) from workflow_executions where tenant_id = '{a}' and workflow_id = '{flow}' and version = 1 and user_id = '%s' and status = 'running' and input = '{}')"
QUEUED_ONE = "(select count(*) = 1 and count(distinct execution_id) = 1 from workflow_queue where tenant_id = '{a}' and workflow_id = '{flow}' and pool = 'default' and rank > 0)"
STEPS_OF = "(select string_agg(s.node || s.status, ' ' order by s.node) from workflow_steps s join workflow_executions e on e.tenant_id = s.tenant_id and e.id = s.execution_id where s.tenant_id = '{a}' and e.workflow_id = '{flow}')"
TWINS_VERSION = (
    "set local session_replication_role = replica; insert into workflow_versions select (jsonb_populate_record(v,"
    " jsonb_build_object('version', 2, 'state', 'published', 'retired_at', null))).* from workflow_versions v"
    " where tenant_id = '{twin}' and workflow_id = '{flow}'; set local session_replication_role = origin"
)
STARTS = [
    Case("user", START % "'{flow}'", then=f"{STARTED % '{user}'} = 1 and {QUEUED_ONE} and {STEPS_OF} = '1ready 2pending'"),
    Case("admin", START % "'{flow}'", then=f"{STARTED % '{admin}'} = 1"),
    Case("admin", START % "'{flow}', p_user_id => '{other}'", then=f"{STARTED % '{other}'} = 1"),
    Case("user", START % "'{others_shared}'", then="(select count(*) = 1 from workflow_executions where tenant_id = '{a}' and workflow_id = '{others_shared}' and user_id = '{user}')"),
    Case("operator", START % "'{flow}', p_tenant_id => '{a}'", then=f"{STARTED % '{user}'} = 1"),
    Case("opened", START % "'{flow}', p_user_id => '{user}'", given=opening("a", "super"), then=f"{STARTED % '{user}'} = 1"),
    Case("user", START % "'{others_flow}'", "VS404"),
    Case("service", START % "'{others_flow}'"),
    *[Case(who, START % "'{b_flow}'", "VS404") for who in (*MEMBERS, "super")],
    *[Case(who, START % "'{flow}', p_tenant_id => '{b}'", "VS404") for who in MEMBERS],
    Case("user", START % "'{flow}', p_user_id => '{other}'", "VS403"),
    Case("admin", START % "'{flow}', p_user_id => '{b_user}'", "VS404"),
    Case("nobody", START % "'{flow}'", "VS401"),
    # versions
    Case("user", START % "'{flow}', p_version => 1"),
    Case("user", START % "'{flow}', p_version => 2", "VS404"),
    Case("user", START % "'{flow}', p_version => 2", "VS404", TWINS_VERSION),
    Case("user", START % "'{flow}'", "VS409 version 1 is retired", change("workflow_versions", "state = 'retired', retired_at = now()", "workflow_id = '{flow}'")),
    Case("user", START % "'{flow}'", "VS409 the workflow is retired", change("ai_workflows", "status = 'retired'", "id = '{flow}'")),
    Case("user", START % "'{flow}'", "VS409 the workflow is not published", change("ai_workflows", "latest_version = null", "id = '{flow}'")),
    Case("user", START % "'{flow}', p_input => '[]'", "VS400 the input"),
    Case("user", START % "'{flow}', p_priority => 10", "VS400 a priority"),
    # the same key is another start for another user, and for another tenant
    *[Case(who, START % f"'{{{mine}_run}}', jsonb_build_object('word', '{{word}}'::text), p_idempotency_key => '{{word}}-0'" + " ->> 'execution_id'", f"= ({{{first}}})")
      for who, mine, first in (("user", "flow", "running"), ("other", "others", "others_running"))],
    Case("user", START % "'{flow_run}', p_idempotency_key => '{word}-0'", "VS410"),
    Case("user", START % "'{flow_run}', p_idempotency_key => 'new'",
         then="(select count(*) = 1 from workflow_executions e join user_token_holds h on h.tenant_id = e.tenant_id and h.id = e.hold_id and h.reference_id = e.id and h.amount = 300 where e.tenant_id = '{a}' and e.idempotency_key = 'new')"),
]  # fmt: skip

CANCEL, PAUSE, RESUME, RESTART = (f"select {verb}_execution(%s)" for verb in ("cancel", "pause", "resume", "restart"))
LOST_STEPS = "(select string_agg(node || status, ' ' order by node) from workflow_steps where tenant_id = '{a}' and execution_id = '{lost}')"
ENDED = change("workflow_executions", "status = 'failed', finished_at = now()", "id = '{child}'")
WANTING = change("workflow_executions", "reason = 'insufficient_tokens'", "id = '{lost}'")
CHANGES = [
    Case("user", CANCEL % "'{running}', 'why'", audit="execution.cancelled", then=" and ".join((
        execution("status = 'cancelled' and reason = 'cancelled' and charged_tokens = 10 and hold_id is null and not slot_held and error ->> 'message' = 'why'"),
        f"{count('workflow_queue')} = 0 and {count('workflow_timers', where=('node <> ' + str(AT['sub'])))} = 0",
        APPROVAL.format("status = 'cancelled' and decided_at is not null"),
        execution("status = 'cancelled' and reason = 'parent_ended'", "child"), f"{count('workflow_queue', 'child')} = 0",
        hold(STEP_CALL, "state = 'released'"), hold(ESTIMATE, "state = 'released'"),
        (count('workflow_timers', 'slotted', "node = 0 and item = -1 and kind = 'retry' and due_at = vanilla.clock()") + " = 1"),
        "not exists (select from events where tenant_id = '{a}' and type = 'workflow.cancelled')",
        step("draft", "status = 'succeeded'"), UNTOUCHED))),
    # an approval that was decided stays so
    Case("user", CANCEL % "'{running}'", given=change("workflow_approvals", "status = 'rejected', decided_at = now()", "id = '{approval}'"),
         then=APPROVAL.format("status = 'rejected'")),
    Case("user", CANCEL % "'{ended}'", "VS409"),
    Case("user", CANCEL % "'{child}'", then=f"{count('workflow_timers', where=at('sub', 'due_at = vanilla.clock()', -2))} = 1"),
    Case("user", PAUSE % "'{running}'", then=f"{execution('status')} = 'paused' and {count('workflow_queue')} = 2 and {UNTOUCHED}"),
    Case("user", PAUSE % "'{running}'", "VS409 the execution is paused", PAUSED),
    Case("user", PAUSE % "'{ended}'", "VS409"),
    Case("user", RESUME % "'{running}'", given=PAUSED, then=f"{execution('status')} = 'running' and {count('workflow_queue')} = 5"
         f" and {queued('idle')} and {queued('each', item=0)} and {queued('busy', 'worker is not null')}"),
    # what only the twin has queued, and what is not ready
    Case("user", RESUME % "'{running}'", given=(PAUSED + "; " + in_step('late', "status = 'ready'", tenant='twin')),
         then=f"{count('workflow_queue')} = 5"),
    Case("user", RESUME % "'{running}'", "VS409 the execution is running"),
    Case("user", RESUME % "'{lost}'", "VS409 the execution is failed"),
    Case("user", RESUME % "'{lost}'", given=WANTING, then=f"{execution('status', 'lost')} = 'running'"),
    Case("user", RESUME % "'{lost}'", "VS409", (WANTING + "; " + change('workflow_executions', "status = 'cancelled'", "id = '{lost}'"))),
    Case("user", RESTART % "'{lost}'", audit="execution.restarted",
         then=execution("status = 'running' and reason is null and error is null and finished_at is null", "lost")
         + f" and {LOST_STEPS} = '1ready 2pending' and {count('workflow_queue', 'lost')} = 1"),
    Case("user", RESTART % "'{running}'", "VS409 the execution is running"),
    Case("user", RESTART % "'{child}'", "VS409 the execution belongs", ENDED),
    Case("user", RESTART % "'{ended}'", "VS409 nothing of the execution failed"),
    Case("user", RESTART % "'{ended}', 'one'", then=f"{execution('status', 'ended')} = 'running' and {step('one', 'status', 'ended')} = 'ready'"),
    *[Case("user", RESTART % f"'{{ended}}', '{name}'", "VS409", f"update workflow_steps set status = '{status}' where tenant_id = '{{a}}' and execution_id = '{{ended}}'")
      for name, status in (("none", "failed"), ("$end", "failed"), ("one", "pending"), ("one", "skipped"))],
    # the twin has another step that failed
    Case("user", RESTART % "'{lost}', 'one'", then=f"{LOST_STEPS} = '1ready 2pending' and {count('workflow_queue', 'lost')} = 1"),
    # what was cut off beside the node goes on
    Case("user", RESTART % "'{running}', 'draft'", given=("{as_admin}; " + CANCEL % "'{running}'" + "; set local vanilla.context = ''"),
         then=f"{execution('status')} = 'running' and {queued('ask')} and {queued('draft')} and {queued('hear')} and {count('workflow_queue')} = 9"
         f" and {step('judge', 'status')} = 'pending' and {step('judged', 'status || undecided || taken')} = 'pending10'"),
]  # fmt: skip


def newer(flow: str, nodes: str) -> str:
    """An admin publishes version 2 of a workflow: its first one with other nodes, `n.value` of them by `n.nr`."""
    made = (
        "select publish_workflow(v.workflow_id, p_definition => v.definition || jsonb_build_object('nodes', (select"
        f" {nodes} from jsonb_array_elements(v.definition -> 'nodes') with ordinality n (value, nr))))"
        f" from workflow_versions v where v.tenant_id = '{{a}}' and v.workflow_id = '{{{flow}}}' and v.version = 1"
    )
    return f"{{as_admin}}; {made}; set local vanilla.context = ''"


def on_the_newer(execution: str) -> str:
    return RESTART % f"'{{{execution}}}', p_version => 2"


BEFORE = "jsonb_build_array(jsonb_build_object('id', 'new', 'kind', 'transform', 'value', '1')) || jsonb_agg(n.value)"
RENAMED = "jsonb_agg(n.value || jsonb_build_object('id', 'other'))"
TURNED = "jsonb_agg(n.value order by n.nr desc)"
MENDED = newer("flow_part", BEFORE)
CUT = "{as_admin}; " + CANCEL % "'{running}'" + "; set local vanilla.context = ''"
OTHERS = change("ai_workflows", "user_id = '{other}'", "id = '{flow_part}'")
NEWER = [
    Case("user", on_the_newer("lost"), given=MENDED, audit="execution.restarted", then=" and ".join((
        execution("status = 'running' and version = 2 and finished_at is null", "lost"), f"{LOST_STEPS} = '1ready 2ready 3pending'",
        count("workflow_queue", "lost", "version = 2") + " = 2"))),
    Case("user", RESTART % "'{lost}', p_version => 1", then=execution("status = 'running' and version = 1", "lost")),
    Case("user", RESTART % "'{lost}', p_version => 0", "VS409 version 0 is older"),
    Case("user", on_the_newer("lost"), "VS404 no such version"),
    Case("user", on_the_newer("lost"), "VS404 no such version", TWINS_VERSION.replace("{flow}", "{flow_part}")),
    Case("user", on_the_newer("lost"), "VS409 version 2 is retired", MENDED + "; " + change("workflow_versions", "state = 'retired', retired_at = now()", "workflow_id = '{flow_part}' and version = 2")),
    # the twin's begins with a step that has not run
    Case("user", RESTART % "'{lost}'", given=change("workflow_steps", "feedback = '1'", "execution_id = '{lost}' and node = 1")
         + "; insert into workflow_steps (tenant_id, execution_id, node, item, user_id, status) values ('{twin}', '{lost}', 0, -1, '{user}', 'ready')",
         then=step("one", "status = 'ready' and feedback = '1'", "lost")),
    # whoever could not start it any more
    Case("user", on_the_newer("lost"), "VS404 no such version", MENDED + "; " + OTHERS),
    Case("user", on_the_newer("lost"), given=f"{MENDED}; {OTHERS.replace('user_id =', 'shared = true, user_id =')}"),
    Case("admin", on_the_newer("lost"), given=MENDED),
    Case("user", RESTART % "'{lost}', 'one', p_version => 2", "VS409 the node one is not in version 2", newer("flow_part", RENAMED)),
    Case("user", RESTART % "'{ended}', 'one', p_version => 2", given=MENDED, then=execution("status = 'running' and version = 2", "ended")),
    # of what does not run again the outcome stays, under another number
    Case("user", RESTART % "'{running}', 'hear', p_version => 2", "VS409 what the node draft gave",
         newer("flow_run", "jsonb_agg(case when n.value ->> 'id' = 'draft' then n.value || jsonb_build_object('value', 'x') else n.value end)") + "; " + CUT),
    Case("user", RESTART % "'{running}', 'hear', p_version => 2", given=newer("flow_run", TURNED) + "; " + CUT, then=" and ".join((
        execution("status = 'running' and version = 2 and slot_held"),
        "(select count(*) = 1 from workflow_steps s where s.tenant_id = '{a}' and s.execution_id = '{running}' and s.item = -1 and s.node = 10 and s.status = 'succeeded' and s.charged_tokens = 10)",
        count("workflow_steps", where="node < 0") + " = 0", count("workflow_steps", where="item = -1") + f" = {len(NODES) + 2}",
        count("workflow_approvals", where="status = 'open'") + " = 0", UNTOUCHED))),
]  # fmt: skip

SIGNAL = "select signal_execution('{running}', %s) ->> 'steps'"
SIGNALS = [
    Case("user", SIGNAL % "'word', '5'", "= (1)", then=step("hear", "status = 'succeeded' and branch = 'received' and output = '5'")
         + (" and " + count('workflow_timers', where=at('hear')) + " = 0 and " + count('workflow_signals', where="name = 'word' and payload = '5'") + " = 1 and " + UNTOUCHED)),
    Case("user", SIGNAL % "'go'", "= (0)"),
    Case("user", SIGNAL % "'early'", "VS409 the execution has had"),
    Case("user", SIGNAL % "'A b'", "VS400"),
    Case("user", SIGNAL % "'word'", "= (0)", in_step("hear", "status = 'ready'")),
    Case("user", "select signal_execution('{ended}', 'go')", "VS409"),
    # a worker looks at it first
    Case("user", SIGNAL % "'word', '5'", "= (1)", in_step("hear", "state = '{\"check\": true}'"),
         then=f"{queued('hear')} and {step('hear', 'decision')} = '{{\"payload\": 5}}'"),
    Case("user", SIGNAL % "'word', '5'", "= (1)", (PAUSED + "; " + in_step('hear', "state = '{\"check\": true}'")),
         then=f"{count('workflow_queue')} = 2 and {step('hear', 'status')} = 'ready'"),
]  # fmt: skip

DECIDE = "select decide_approval('{approval}', %s) ->> '%s'"
QUORUM = change("workflow_approvals", "quorum = 2", "id = '{approval}'")
OTHERS = change("workflow_approvals", "approvers = '{role:admin}'", "id = '{approval}'")
EDITED = "jsonb_build_object('text', 'new', 'more', '{word}'::text)"
APPROVALS = [
    Case("user", DECIDE % ("'approved'", "approved_by"), "= (2)", then=APPROVAL.format("status = 'open' and deadline_at is not null") + f" and {UNTOUCHED}"),
    Case("admin", DECIDE % ("'approved'", "status"), "= (open)"),
    Case("user", DECIDE % ("'approved', 'yes'", "status"), "= (approved)", QUORUM, then=" and ".join((
        APPROVAL.format("status = 'approved' and comment = 'yes' and value ->> 'text' = '{word}'"),
        step("ask", "status = 'succeeded' and branch = 'approved' and jsonb_array_length(output -> 'by') = 2 and not output ? 'escalated'"),
        queued("asked"), f"{count('workflow_timers', where=at('ask'))} = 0", UNTOUCHED))),
    Case("user", DECIDE % (f"'approved', null, {EDITED}", "status"), "= (approved)", QUORUM, then=APPROVAL.format("value ->> 'text' = 'new'")),
    Case("user", DECIDE % ("'rejected'", "status"), "= (rejected)", then=f"{step('ask', 'branch')} = 'rejected' and {step('asked', 'status')} = 'skipped'"
         + (" and " + step('$end', 'status') + " = 'pending' and " + APPROVAL.format("status = 'rejected'"))),
    # nothing further is started while it is paused
    Case("user", DECIDE % ("'approved'", "status"), "= (approved)", f"{PAUSED}; {QUORUM}", then=f"{step('asked', 'status')} = 'ready' and {count('workflow_queue')} = 2"),
    Case("other", DECIDE % ("'approved'", "status"), "VS409 you have decided"),
    Case("other", DECIDE % ("'approved'", "status"), "VS404", OTHERS),
    Case("user", DECIDE % ("'approved'", "status"), "VS403", OTHERS),
    Case("admin", DECIDE % ("'approved'", "status"), "= (open)", OTHERS),
    Case("other", DECIDE % ("'approved'", "status"), "VS404", change("workflow_approvals", "approvers = array['user:{admin}']", "id = '{approval}'")),
    Case("admin", DECIDE % ("'approved'", "status"), "= (open)", change("workflow_approvals", "approvers = array['user:{admin}']", "id = '{approval}'")),
    Case("user", DECIDE % ("'approved'", "status"), "VS409 the approval is expired", change("workflow_approvals", "status = 'expired', decided_at = now()", "id = '{approval}'")),
    *[Case("user", DECIDE % (what, "status"), "VS400 a decision") for what in ("'maybe'", "null")],
    Case("user", DECIDE % ("'approved', repeat('x', 20001)", "status"), "VS400 a comment"),
    Case("user", DECIDE % (f"'rejected', null, {EDITED}", "status"), "VS400 nothing"),
    Case("user", DECIDE % (f"'approved', null, {EDITED}", "status"), "VS400 nothing", change("workflow_approvals", "edit = null", "id = '{approval}'")),
    Case("user", DECIDE % ("'approved', null, '{\"text\": \"new\", \"more\": 1}'", "status"), "VS400 only"),
    *[Case(who, "select decide_approval('{b_approval}', 'approved')", "VS404") for who in (*MEMBERS, "super")],
    *[Case(who, DECIDE % ("'approved', p_tenant_id => '{b}'", "status"), "VS404") for who in MEMBERS],
    Case("operator", DECIDE % ("'approved'", "status"), "VS404"),
    Case("nobody", DECIDE % ("'approved'", "status"), "VS401"),
    Case("user", "select id, approved_by, node, workflow from my_approvals()", "= ({approval},1,ask,{word}-run-0)"),
    Case("other", "select id from my_approvals()", "= ({others_approval})"),
    Case("admin", "select count(*) from my_approvals()", "= (2)"),
    *[Case(who, "select count(*) from my_approvals()", "= (0)") for who in ("service", "nobody", "super")],
    Case("user", "select count(*) from my_approvals()", "= (0)", OTHERS),
    Case("user", "select count(*) from my_approvals()", "= (0)", change("workflow_approvals", "status = 'expired', decided_at = now()", "id = '{approval}'")),
]  # fmt: skip

PROGRESS = "select execution_progress('{running}') "
STATISTICS = (
    "select judged, passed, average_score, charged_tokens from gate_statistics('{%s}', '2000-01-01', '2199-01-01')"
)
SHARE = "select set_workflow_share('{a}', %s)"
READS = [
    Case("user", PROGRESS + "->> 'charged_tokens'", "= (10)"),
    Case("user", f"select jsonb_array_length({PROGRESS.removeprefix('select ')} -> 'steps')", f"= ({AT['$end'] + 1})"),
    Case("user", PROGRESS + f"#>> '{{steps, {AT['busy']}, status}}'", "= (running)"),
    *[Case("user", PROGRESS + f"#>> '{{steps, {AT['each']}, {what}}}'", f"= ({number})")
      for what, number in (("items", 2), ("items_done", 0), ("items_running", 0))],
    Case("user", STATISTICS % "flow_run", "= (1,1,1,0)"),
    Case("admin", STATISTICS % "others_run", "= (1,1,1,0)"),
    Case("service", STATISTICS % "others_run", "= (1,1,1,0)"),
    Case("user", f"select count(*) from ({STATISTICS % 'others_run'}) s", "= (0)"),
    Case("admin", f"select count(*) from ({STATISTICS % 'b_flow'}) s", "= (0)"),
    Case("nobody", STATISTICS % "flow_run", "VS401"),
    *[Case(who, (STATISTICS % "flow_run").replace("'2199-01-01')", "'2199-01-01', '{b}')"), "VS404") for who in MEMBERS],
    *[Case(who, SHARE % "7, 70", audit="workflow.share",
           then="(select weight = 7 and max_running = 70 from workflow_shares where tenant_id = '{a}')") for who in ("super", "operator")],
    *[Case(who, SHARE % "7, 70", "VS403") for who in (*MEMBERS, "service", "platform service", "platform user", "nobody")],
    Case("opened", SHARE % "7, 70", "VS403", opening("a", "super")),
    *[Case("super", SHARE % what, "VS400") for what in ("0", "101", "1, 0", "null")],
    Case("super", "select set_workflow_share('{user}')", "VS404"),
    # what a person may see
    *[Case("user", f"select count(*) from {table}", f"= ({number})") for table, number in (
        ("workflow_executions", 8), ("workflow_approvals", 1), ("workflow_approval_votes", 1), ("quality_gate_results", 1), ("workflow_signals", 1), ("workflow_shares", 0))],
    *[Case("admin", f"select count(*) from {table}", f"= ({number})") for table, number in (
        ("workflow_executions", 16), ("workflow_approvals", 2), ("workflow_approval_votes", 2), ("quality_gate_results", 2), ("workflow_signals", 2), ("workflow_shares", 1))],
    *[Case(who, f"select count(*) from {table}", "42501") for table in ("workflow_nodes", "workflow_queue", "workflow_timers") for who in (*MEMBERS, "runtime")],
    Case("user", "select count(*) from workflow_steps where user_id <> '{user}'", "= (0)"),
]  # fmt: skip


def told(
    node: str, outcome: str, lease: str = "", item: int | None = None, which: str = "running", **fields: Any
) -> str:
    """The outcome of a step, as SQL."""
    key = {"tenant_id": "{a}", "execution_id": f"{{{which}}}", "n": AT.get(node, 1), "item": item, "node": node}
    return "'" + json.dumps([key | {"lease": lease or f"{{{node}}}", "outcome": outcome} | fields]) + "'"


def tick(
    done: str = "'[]'", n: int | str = 0, what: str = "stale", state: str = "'{}'", worker: str = "'{hands}'"
) -> str:
    return f"select vanilla.tick_worker({worker}, {done}, {n}, {state}) ->> '{what}'"


def tick_of_run(
    done: str = "'[]'",
    n: int | str = 0,
    what: str = "stale",
    worker: str = "'{hands}'",
    which: str = "running",
    tenant: str = "a",
) -> str:
    return f"select vanilla.tick_run({worker}, {done}, {n}, '{{{tenant}}}', '{{{which}}}') ->> '{what}'"


def claim(n: int = 100, state: str = "'{}'") -> str:
    return f"select json_array_length(vanilla.tick_worker('{{hands}}', '[]', {n}, {state}) -> 'steps')"


ORPHAN = "; ".join(
    change(
        "workflow_executions",
        "parent_execution_id = null, parent_node = null, parent_item = null",
        "id = '{child}'",
        tenant,
    )
    for tenant in ("a", "twin")
)
ASKED_TOO = (
    change("workflow_approvals", "execution_id = '{child}'", "id = '{approval}'")
    + "; "
    + "insert into workflow_steps (tenant_id, execution_id, node, item, user_id, status, waits_for)"
    " select tenant_id, id, 9, -1, user_id, 'waiting', 'approval' from workflow_executions where tenant_id = '{a}' and id = '{child}'"
)


def lease(node: str, number: int, item: int = -1, which: str = "running") -> str:
    """The worker has this step, whatever it was."""
    key = f"tenant_id = '{{a}}' and execution_id = '{{{which}}}' and node = {AT.get(node, 1)} and item = {item}"
    return (
        f"delete from workflow_queue where {key.rpartition(' and ')[0]}; insert into workflow_queue (tenant_id, execution_id, node, item, workflow_id, version, user_id, pool,"
        f" priority, rank, attempt, worker, lease, claimed_at) select tenant_id, id, {AT.get(node, 1)}, {item}, workflow_id, version, user_id, 'default', 5, 0, 1,"
        f" '{{hands}}', {number}, now() from workflow_executions where tenant_id = '{{a}}' and id = '{{{which}}}'"
    )


CALLED = [
    {
        "hold_id": "{step_call}",
        "status": "succeeded",
        "input": 5,
        "output": 5,
        "cached": 0,
        "reasoning": 0,
        "estimated": False,
    }
]
TOOL = {"code": "tool_failed", "message": "no"}
TWINS_POOL = "update workflow_queue set pool = 'default' where tenant_id = '{twin}'"
FROM_A = """'{"default": {"cursor": "{twin}"}}'"""
MARKED = """'{"default": {"cursor": "{twin}", "marks": {"{a}": [0, 99999999999999]}}}'"""
TWINS_WORKER = "insert into worker_registry (tenant_id, id, name, pools, capacity) values ('{twin}', '{hands}', 'x', '{x}', 1) on conflict do nothing"
CAPPED = "update workflow_shares set max_running = %s where tenant_id = '{a}'"
ONLY_THE_TWINS_WAY = "update workflow_shares set max_running = 100000 where tenant_id = '{twin}'"
FAILED_NOW = "status = 'failed' and reason = '%s' and finished_at = vanilla.clock()"
NEWS = (
    "(select count(*) from events where tenant_id = '{a}' and type = '%s' and payload ->> 'execution_id' = '{running}')"
)
TICKS = [
    # what a worker is given: of its pools, whoever's it is, and nothing of another execution
    Case("runtime", "select vanilla.tick_worker('{hands}', '[]', 100)", then="(select count(*) = 12 and count(lease) = 12 from workflow_queue where tenant_id = '{a}' and worker = '{hands}')"),
    Case("runtime", claim(), "= (8)"),
    Case("runtime", claim(0), "= (0)"),
    Case("runtime", claim(), "= (8)", TWINS_WORKER),
    Case("runtime", claim(), "= (1)", CAPPED % 9),
    Case("runtime", claim(), "= (0)", CAPPED % 8),
    Case("runtime", claim(4, FROM_A), "= (4)", TWINS_POOL),
    Case("runtime", claim(100, MARKED), "= (8)"),
    Case("runtime", claim(100, MARKED), "= (1)", f"{CAPPED % 9}; {ONLY_THE_TWINS_WAY}"),
    Case("runtime", tick(worker="'{user}'"), "VS409"),
    Case("runtime", tick("'{}'"), "VS400 a tick"),
    Case("runtime", tick(n=1001), "VS400 a tick"),
    Case("runtime", tick(n="null"), "VS400 a tick"),
    Case("runtime", "select jsonb_array_length(vanilla.held_leases('{hands}'))", "= (4)"),
    Case("runtime", "select vanilla.workflow_plan('{a}', '{flow}', 1) #>> '{definition, name}'", "= ({word})"),
    Case("runtime", "select vanilla.workflow_plan('{b}', '{flow}', 1)", "= ()"),
    # of one execution, for who waits for it
    Case("runtime", tick_of_run(n=100), "= ([])", then="not exists (select from workflow_queue where tenant_id = '{a}' and execution_id <> '{running}' and claimed_at = vanilla.clock())"
         " and not exists (select from workflow_queue where tenant_id = '{a}' and execution_id = '{running}' and worker is null and pool = 'default')"),
    Case("runtime", tick_of_run(n=100), "= ([])", TWINS_WORKER),
    Case("runtime", tick_of_run(n=100), "= ([])", CAPPED % 4, then="not exists (select from workflow_queue where claimed_at = vanilla.clock())"),
    Case("runtime", tick_of_run(n=0), "= ([])", then="not exists (select from workflow_queue where claimed_at = vanilla.clock())"),
    Case("runtime", tick_of_run(n=100, tenant="b"), "= ([])", then="not exists (select from workflow_queue where claimed_at = vanilla.clock())"),
    Case("runtime", tick_of_run(which="ended", what="end").replace("->>", "->") + " ->> 'status'", "= (succeeded)"),
    Case("runtime", tick_of_run(which="ended", what="end", tenant="b"), "= ()"),
    Case("runtime", tick_of_run(what="end"), "= ()"),
    Case("runtime", tick_of_run(what="elsewhere"), "= (true)"),
    Case("runtime", tick_of_run(what="elsewhere", which="ended"), "= (false)"),
    Case("runtime", tick_of_run(worker="'{user}'"), "VS409"),
    Case("runtime", tick_of_run("'{}'"), "VS400 a tick"),
    Case("runtime", tick_of_run(n=1001), "VS400 a tick"),
    Case("runtime", tick_of_run(n="null"), "VS400 a tick"),
    Case("runtime", tick_of_run(told("busy", "succeeded", output=7, calls=CALLED)), "= ([])",
         then=step("busy", "status = 'succeeded' and charged_tokens = 10 and output = '7'") + (" and " + hold(STEP_CALL, "state = 'settled'"))),
    Case("runtime", tick_of_run(told("busy", "succeeded", lease="99999")), "= ([99999])", then=f"{step('busy', 'status')} = 'ready' and {queued('busy', 'worker is not null')}"),
    # outcomes
    Case("runtime", tick(told("busy", "succeeded", output=7)), "= ([])", then=step("busy", "status = 'succeeded' and output = '7' and round = 0") + f" and {count('workflow_queue')} = 4 and {UNTOUCHED}"),
    Case("runtime", tick(told("busy", "succeeded", output=7, calls=CALLED)), "= ([])",
         then=step("busy", "status = 'succeeded' and charged_tokens = 10 and output = '7'") + (" and " + hold(STEP_CALL, "state = 'settled'"))),
    # of a lease that it has not, nothing is taken, and its calls are returned
    *[Case("runtime", tick(told("busy", "succeeded", lease="99999", **more), worker=worker), "= ([99999])", then=f"{step('busy', 'status')} = 'ready' and {queued('busy', 'worker is not null')}")
      for more in ({}, {"calls": CALLED}) for worker in ("'{hands}'",)],
    Case("runtime", tick(told("busy", "succeeded", calls=CALLED)), "= ([{busy}])", "update workflow_queue set worker = null, lease = null where tenant_id = '{a}' and lease = {busy}",
         then=hold(STEP_CALL, "state = 'released'")),
    Case("runtime", tick(told("busy", "succeeded").replace("{a}", "{b}")), "= ([{busy}])"),
    Case("runtime", tick(told("busy", "failed", error=TOOL)), "= ([])", then=" and ".join((
        execution(FAILED_NOW % "tool_failed" + " and error ->> 'node' = 'busy'"), f"{NEWS % 'workflow.failed'} = 1",
        hold(STEP_CALL, "state = 'released'"), step("busy", "status = 'failed'"), execution("status = 'cancelled'", "child"), UNTOUCHED))),
    Case("runtime", tick(told("busy", "failed", error=TOOL | {"retryable": True}, retry_after_s=60)), "= ([])",
         then=step("busy", "status = 'waiting' and waits_for = 'retry' and attempts = 1")
         + (" and " + count('workflow_timers', where=at('busy', "kind = 'retry' and due_at = vanilla.clock() + interval '60 s'")) + " = 1")),
    Case("runtime", tick(told("busy", "failed", error=TOOL | {"retryable": True})), "= ([])", in_node("busy", "attempts = 1"), then=execution(FAILED_NOW % "tool_failed")),
    Case("runtime", tick(told("busy", "failed", error=TOOL)), "= ([])", in_node("busy", "branches = array['failed']"),
         then=(execution('status') + " = 'running' and " + step('busy', "branch = 'failed' and status = 'failed'"))),
    Case("runtime", tick(told("busy", "handed_back")), "= ([])", then=queued("busy")),
    Case("runtime", tick(told("busy", "odd")), "VS400 no such outcome"),
    # lists
    Case("runtime", tick(told("busy", "items", items=[1, 2], concurrency=1)), "= ([])", then=" and ".join((
        step("busy", "status = 'waiting' and waits_for = 'items' and items_left = 2"), queued("busy", item=0), f"{count('workflow_queue', where=('node = ' + str(AT['busy'])))} = 1",
        step("busy", "status = 'pending' and value = '2'", item=1)))),
    Case("runtime", tick(told("busy", "items", items=[1, 2], concurrency=1)), "= ([])", PAUSED, then=f"{count('workflow_queue')} = 1"),
    Case("runtime", tick(told("busy", "items", items=[])), "= ([])", then=step("busy", "output = '[]' and status = 'succeeded'")),
    Case("runtime", tick(told("each", "items", "77", items=[1, 2, 3, 4])), "= ([])", lease("each", 77), then=execution(FAILED_NOW % "too_many_items")),
    Case("runtime", tick(told("each", "items", "77", items=[1, 2, 3])), "= ([])", f"{lease('each', 77)}; delete from workflow_queue where tenant_id = '{{a}}' and {MINE} and node = {AT['each']} and item >= 0", then=f"{count('workflow_queue', where=('node = ' + str(AT['each'])))} = 3"),
    Case("runtime", tick(told("each", "succeeded", "77", item=0, output=5)), "= ([])", lease("each", 77, 0),
         then=(step('each', 'items_left') + " = 1 and " + queued('each', item=1) + " and " + step('each', "status = 'waiting'"))),
    Case("runtime", tick(told("each", "succeeded", "77", item=0, output=5)), "= ([])", lease("each", 77, 0) + "; " + in_step("each", "status = 'waiting'", 1),
         then=f"{count('workflow_queue', where=('node = ' + str(AT['each'])))} = 0"),
    Case("runtime", tick(told("each", "succeeded", "77", item=0, output=5)), "= ([])", lease("each", 77, 0) + "; " + in_step("each", "items_left = 1"),
         then=step("each", "status = 'succeeded' and output = '[5, null]'")),
    Case("runtime", tick(told("each", "failed", "77", item=0, error=TOOL)), "= ([])", lease("each", 77, 0),
         then=execution(FAILED_NOW % "tool_failed") + f" and {step('each', 'status')} = 'failed'"),
    # waits
    Case("runtime", tick(told("busy", "waiting", wait={"kind": "timer", "due_at": "2199-01-01T00:00:00Z"})), "= ([])",
         then=step("busy", "status = 'waiting' and waits_for = 'time'") + (" and " + count('workflow_timers', where=at('busy', "kind = 'wait' and due_at > '2198-01-01'")) + " = 1")),
    Case("runtime", tick(told("busy", "waiting", wait={"kind": "signal", "name": "go", "timeout_s": 60})), "= ([])",
         then=step("busy", "status = 'waiting' and waits_for = 'signal:go'")),
    Case("runtime", tick(told("busy", "waiting", wait={"kind": "signal", "name": "early"})), "= ([])", then=step("busy", "status = 'succeeded' and output = '\"{word}\"'")),
    Case("runtime", tick(told("busy", "waiting", wait={"kind": "signal", "name": "early", "check": True})), "= ([])",
         then=(queued('busy') + " and " + step('busy', "decision ->> 'payload'") + " = '{word}'")),
    Case("runtime", tick(told("busy", "waiting", wait={"kind": "approval", "title": "T", "approvers": ["role:user"], "deadline_s": 60})), "= ([])",
         then=step("busy", "status = 'waiting' and waits_for = 'approval'") + (" and " + count('workflow_approvals', where="title = 'T' and status = 'open'") + " = 1")
         + (" and " + count('workflow_timers', where=at('busy', "kind = 'approval'")) + " = 1 and " + NEWS % 'workflow.approval_requested' + " = 2")),
    *[Case("runtime", tick(told("busy", "waiting", wait={"kind": "execution", "ref": ref, "input": given_})), "= ([])", given, then=then) for ref, given_, given, then in (
        ("{word}-part-0", {}, "", "(select count(*) = 2 from workflow_executions where tenant_id = '{a}' and parent_execution_id = '{running}' and depth = 1 and workflow_id = '{flow_part}')"
         + (" and " + step('busy', "waits_for = 'execution'") + " and " + count('workflow_timers', where=at('busy', f"due_at = vanilla.clock() + interval '{LONG_S} s'")) + " = 1")),
        ("{word}-part-0@1", {}, "", step("busy", "waits_for = 'execution'")),
        *[(*what, execution(FAILED_NOW % "workflow_not_started")) for what in (
            ("{word}-part-0@2", {}, ""),
            ("{word}-part-0@stable", {}, ""),
            ("none", {}, ""),
            ("{word}-part-0", None, ""),
            ("{word}-part-1", {}, ""),
            ("{word}-part-1", {}, change("ai_workflows", "shared = true", "slug = '{word}-part-1'", "twin")),
            ("{word}-part-0", {}, change("workflow_executions", "depth = 5", "id = '{running}'")),
        )],
        ("{word}-1-1", {}, "", step("busy", "waits_for = 'execution'")),
        ("{word}-part-1", {}, "update users set role = 'admin' where tenant_id = '{a}' and id = '{user}'", step("busy", "waits_for = 'execution'")),
    )],
    # an engine that a step runs is its user's to run, and is one of the execution's children
    *[Case("runtime", tick(told("busy", "waiting", wait={"kind": "execution", "of": "engine", "ref": ref, "input": {}})), "= ([])", given, then=then) for ref, given, then in (
        ("{word}", "", "(select count(*) = 1 from engine_executions x join workflow_executions e on e.tenant_id = x.tenant_id and e.id = x.id where x.tenant_id = '{a}'"
         " and x.engine_id = '{engine}' and x.version = 1 and x.user_id = '{user}' and e.parent_execution_id = '{running}' and e.depth = 1 and e.started_at = vanilla.clock()) and "
         + step("busy", "waits_for = 'execution'")),
        *[("{word}", given, execution(FAILED_NOW % "engine_not_started")) for given in (
            "update level_engines set access = 'read' where tenant_id = '{a}' and engine_id = '{engine}'",
            "update level_engines set access = 'none' where tenant_id = '{a}' and engine_id = '{engine}'",
            "update ai_engines set status = 'retired' where tenant_id = '{a}' and id = '{engine}'",
        )],
    )],
    # places of a concurrency key
    Case("runtime", tick(told("$start", "go", "77", which="slotted", key="{word}", limit=1)), "= ([])", lease("$start", 77, which="slotted"),
         then=f"{step('$start', 'waits_for', 'slotted')} = 'slot' and {execution('not slot_held', 'slotted')}"),
    Case("runtime", tick(told("$start", "go", "77", which="slotted", key="{word}", limit=2)), "= ([])", lease("$start", 77, which="slotted"),
         then=f"{step('$start', 'status', 'slotted')} = 'succeeded' and {execution('slot_held', 'slotted')} and {queued('draft', which='slotted')} and {count('workflow_queue', 'slotted')} = {len(NODES) - 4}"),
    Case("runtime", tick(told("$start", "go", "77", which="slotted")), "= ([])", lease("$start", 77, which="slotted"), then=f"{step('$start', 'status', 'slotted')} = 'succeeded'"),
    # ends
    Case("runtime", tick(told("one", "succeeded", "77", which="child", output=7)), "= ([])", lease("one", 77, which="child"),
         then=execution("status = 'succeeded' and output = '{\"one\": 7}' and charged_tokens = 0", "child") + f" and {count('workflow_timers', where=at('sub', 'due_at = vanilla.clock()', -2))} = 1"
         f" and {step('$end', 'status')} = 'pending' and not exists (select from events where tenant_id = '{{a}}' and payload ->> 'execution_id' = '{{child}}')"),
    Case("runtime", tick(told("one", "succeeded", "77", which="child", output=7)), "= ([])", ORPHAN + "; " + lease("one", 77, which="child"),
         then=execution("status = 'succeeded' and output = '{\"one\": 7}' and charged_tokens = 0 and cost_micros = 0", "child")
         + " and (select status from workflow_steps where tenant_id = '{a}' and execution_id = '{child}' and node = 2) = 'succeeded'"
         " and (select count(*) from workflow_executions where tenant_id = '{twin}' and id = '{child}' and status = 'running') = 1"),
    Case("runtime", tick(told("one", "succeeded", "77", which="child", output=7)), "= ([])", f"{ORPHAN}; {ASKED_TOO}; " + lease("one", 77, which="child"),
         then=execution("status = 'succeeded'", "child") + " and " + APPROVAL.format("status = 'cancelled'")),
    Case("runtime", tick(told("$end", "succeeded", "77", output=7)), "= ([])", lease("$end", 77),
         then=execution("status = 'succeeded' and output = '7' and charged_tokens = 10") + (" and " + NEWS % 'workflow.succeeded' + " = 1 and " + APPROVAL.format("status = 'cancelled'"))),
]  # fmt: skip

SCORE = {
    "passed": False,
    "score": 0.2,
    "threshold": 0.5,
    "feedback": "again",
    "suggestions": ["x"],
    "metrics": {"n": 1},
    "value": "bad",
}
JUDGED = "(select count(*) from quality_gate_results where tenant_id = '{a}' and execution_id = '{running}' and gate = 'judge' and round = 0 and %s)"
ESCALATE = in_node("judge", """settings = '{"on_fail": "escalate", "escalate_to": ["role:user"]}'""")
STOPS, BRANCHES = in_node("judge", "settings = '{}'"), in_node("judge", "settings = '{}', branches = array['failed']")
REFUSED = tick(told("judge", "gate", **SCORE))
ASKED = f"{ESCALATE}; {REFUSED}"
ANSWER = (
    "select decide_approval((select id from workflow_approvals where title = 'Gate judge refused'), '%s') ->> 'status'"
)
CHECKED = tick(
    told(
        "judge",
        "waiting",
        wait={"kind": "approval", "title": "Gate judge refused", "approvers": ["role:user"]},
        state={"so": 1},
    )
)
GATES = [
    Case("runtime", tick(told("judge", "gate", **SCORE | {"passed": True})), "= ([])", then=(step('judge', "status = 'succeeded' and branch = 'passed'") + " and " + JUDGED % 'passed' + " = 1 and " + UNTOUCHED)),
    Case("runtime", REFUSED, "= ([])", then=" and ".join((
        f"{JUDGED % 'not passed and score = 0.2'} = 1", queued("draft"), step("draft", "round = 1 and feedback ->> 'value' = 'bad' and charged_tokens = 10"),
        step("judge", "status = 'pending' and round = 1 and undecided = 1 and taken = 0"), step("judged", "status = 'pending' and output is null"),
        f"{count('workflow_queue', where=('node in (' + str(AT['judge']) + ', ' + str(AT['meet']) + ')'))} = 0", queued("busy", "worker is not null"), step("ask", "status = 'waiting'"),
        APPROVAL.format("status = 'open'"), UNTOUCHED))),
    # the second time it ends
    Case("runtime", REFUSED, "= ([])", in_step("judge", "round = 1"), then=execution(FAILED_NOW % "gate_failed")),
    Case("runtime", REFUSED, "= ([])", STOPS, then=execution(FAILED_NOW % "gate_failed") + (" and " + execution("error ->> 'node'") + " = 'judge'")),
    Case("runtime", REFUSED, "= ([])", BRANCHES, then=(execution('status') + " = 'running' and " + step('judge', "branch = 'failed' and status = 'succeeded'"))),
    Case("runtime", REFUSED, "= ([])", ESCALATE, then=(step('judge', "waits_for = 'approval' and status = 'waiting'") + " and " + count('workflow_approvals', where="title = 'Gate judge refused' and approvers = '{role:user}'") + " = 1")),
    Case("admin", ANSWER % "approved", "= (approved)", ASKED, then=step("judge", "status = 'succeeded' and branch = 'passed' and output ->> 'feedback' = 'again'")),
    Case("admin", ANSWER % "rejected", "= (rejected)", ASKED, then=execution(FAILED_NOW % "gate_failed")),
    Case("admin", ANSWER % "rejected", "= (rejected)", (ASKED + "; " + in_node('judge', "branches = array['failed']")),
         then=f"{execution('status')} = 'running' and {step('judge', 'branch')} = 'failed'"),
    # people that a check asked come back to the gate
    Case("admin", ANSWER % "rejected", "= (rejected)", CHECKED, then=(queued('judge') + " and " + step('judge', "decision ->> 'decision'") + " = 'rejected'")),
    # what is asked of a node that runs again is asked no more
    Case("user", RESTART % "'{running}', 'ask'", given=("{as_admin}; " + CANCEL % "'{running}'" + "; set local vanilla.context = ''; " + change('workflow_approvals', "status = 'open', decided_at = null", "id = '{approval}'")),
         then=APPROVAL.format("status = 'cancelled'")),
    Case("user", RESTART % "'{running}', 'ask'", given=("{as_admin}; " + CANCEL % "'{running}'" + "; set local vanilla.context = ''; " + change('workflow_approvals', "status = 'expired', decided_at = now()", "id = '{approval}'")),
         then=APPROVAL.format("status = 'expired'")),
]  # fmt: skip

TEND = "select vanilla.tend_workflows()"
LATE = change("workflow_queue", "deadline_at = '2020-01-01'", "lease = {busy}")
DECIDES = "update workflow_approvals set on_deadline = %s where tenant_id = '{a}' and id = '{approval}'"
CHILD_ENDED = change("workflow_executions", "status = 'succeeded', output = '7', finished_at = now()", "id = '{child}'")
TIMES = [
    Case("runtime", TEND, "= (0)"),
    Case("runtime", TEND, "= (1)", due("late"), then=queued("late") + f" and {UNTOUCHED}"),
    Case("runtime", TEND, "= (1)", f"{due('late')}; {PAUSED}", then=f"{count('workflow_queue')} = 2 and {step('late', 'status')} = 'ready'"),
    Case("runtime", TEND, "= (1)", due("nap"), then=step("nap", "status = 'succeeded' and branch is null and output is null")),
    Case("runtime", TEND, "= (1)", due("hear"), then=step("hear", "status = 'succeeded' and branch = 'expired'")),
    Case("runtime", TEND, "= (1)", due("ask"), then=APPROVAL.format("status = 'open' and approvers = '{role:admin}' and on_deadline is null")
         + f" and {count('workflow_timers', where=at('ask', 'due_at > vanilla.clock()'))} = 1 and {NEWS % 'workflow.approval_requested'} = 2"),
    *[Case("runtime", TEND, "= (1)", f"{due('ask')}; {DECIDES % how}", then=f"{APPROVAL.format('status')} = '{then}' and {step('ask', 'branch')} = '{then}'")
      for how, then in (("'approve'", "approved"), ("'reject'", "rejected"), ("null", "expired"))],
    Case("runtime", TEND, "= (1)", (due('ask') + "; " + change('workflow_approvals', "status = 'rejected', decided_at = now()", "id = '{approval}'")),
         then=step("ask", "status = 'waiting'") + " and " + APPROVAL.format("status = 'rejected'")),
    Case("runtime", TEND, "= (1)", due("sub"), then=execution(FAILED_NOW % "timeout") + (" and " + execution("status = 'cancelled'", 'child'))),
    Case("runtime", TEND, "= (1)", f"{due('sub')}; {CHILD_ENDED}", then=(queued('sub') + " and " + step('sub', "decision ->> 'output'") + " = '7' and " + execution('status') + " = 'running'")),
    Case("runtime", TEND, "= (1)", due(-1), then=execution(FAILED_NOW % "deadline")),
    Case("runtime", TEND, "= (0)", (due('nap') + "; " + change('workflow_executions', "status = 'failed', finished_at = now()", "id = '{running}'")),
         then=step("nap", "status = 'waiting'")),
    # what is beyond its time in the twin is not done with A's
    Case("runtime", TEND.replace("()", "(1)"), "= (1)", f"{due('nap')}; update workflow_timers set due_at = '2020-01-02' where tenant_id = '{{twin}}'"),
    Case("runtime", TEND, "= (1)", LATE, then=(queued('busy', 'worker is null and lease is null and lost = 1 and attempt = 0') + " and " + hold(STEP_CALL, "state = 'released'") + " and " + queued('judge', 'worker is not null'))),
    Case("runtime", TEND, "= (1)", f"{LATE}; update workflow_queue set lost = 2 where tenant_id = '{{a}}' and lease = {{busy}}", then=execution(FAILED_NOW % "timeout")),
    # the steps of a worker that is dead
    Case("keeper", "select vanilla.reclaim_leases('{hands}')", "= (4)", then="not exists (select from workflow_queue where tenant_id = '{a}' and worker is not null and pool = 'default')"
         + (" and " + hold(STEP_CALL, "state = 'released'") + " and " + hold(ESTIMATE, "state = 'open'"))),
    Case("keeper", "select vanilla.reclaim_leases('{user}')", "= (0)"),
]  # fmt: skip

KEY = {
    "tenant_id": "{a}",
    "execution_id": "{running}",
    "n": AT["busy"],
    "item": None,
    "worker": "{hands}",
    "lease": "{busy}",
}
ADMIT = "select vanilla.admit_call(null, null, null, 'sandbox-small', 10, 10, 10, 1, '{same_id}', false, '60 s', null, null, '%s') ->> '%s'"


def admit(what: str = "hold_id", **fields: Any) -> str:
    return ADMIT % (json.dumps(KEY | fields), what)


CALLS = [
    Case("runtime", f"select ({admit().removeprefix('select ')}) is not null", "= (t)",
         then=hold("execution_id = '{same_id}'", "user_id = '{user}' and reference_id = '{running}' and amount = 20 and call ->> 'lease' = '{busy}'")
         + " and " + hold(ESTIMATE, "amount") + " = 240"),
    # an estimate that is used up or was returned gives nothing
    Case("runtime", f"select ({admit().removeprefix('select ')}) is not null", "= (t)", change("user_token_holds", "state = 'released', closed_at = now()", ESTIMATE),
         then=hold(ESTIMATE, "amount") + " = 260"),
    *[Case("runtime", admit(**{name: value}), "VS409 the step") for name, value in (("tenant_id", "{b}"), ("execution_id", "{others_running}"),
        ("n", AT["idle"]), ("item", 0), ("worker", "{user}"), ("lease", "{judge}"))],
    *[Case("runtime", admit(), "VS409 the step", given) for given in (SUSPENDED, DISABLED)],
]  # fmt: skip

GONE = (
    "workflow_executions",
    "workflow_steps",
    "workflow_queue",
    "workflow_timers",
    "workflow_signals",
    "workflow_approvals",
    "quality_gate_results",
    "workflow_schedules",
)
BYSTANDER = "(select string_agg(t, ' ') from (select 'e' || count(*) as t from workflow_executions where tenant_id = '{a}' and user_id = '{other}' and status = %s) s)"
ERASED = [
    Case("admin", "select erase_user('{user}', 'asked')", then=" and ".join((
        *[f"not exists (select from {table} where tenant_id = '{{a}}' and user_id = '{{user}}')" for table in GONE],
        # on another's approval the vote stays, without its words
        "(select decision = 'approved' and comment is null and value is null from workflow_approval_votes where tenant_id = '{a}' and user_id = '{user}' and approval_id = '{others_approval}')",
        "not exists (select from workflow_approval_votes where tenant_id = '{a}' and approval_id = '{approval}')",
        "exists (select from user_token_ledger where tenant_id = '{a}' and user_id = '{user}' and reference_type = 'workflow_execution' and reference_id = '{running}')",
        hold(STEP_CALL, "state = 'released'"), UNTOUCHED,
        "(select count(*) = 8 from workflow_executions where tenant_id = '{a}' and user_id = '{other}')",
        f"{count('workflow_signals', 'others_running')} = 1 and {count('workflow_approvals', 'others_running')} = 1 and {count('quality_gate_results', 'others_running')} = 1"))),
    # what an admin has started of theirs stays, and so does the workflow
    Case("admin", "select erase_user('{user}', 'asked')", given="{as_admin}; select start_workflow('{flow}'); set local vanilla.context = ''",
         then="exists (select from ai_workflows where tenant_id = '{a}' and id = '{flow}') and exists (select from workflow_versions where tenant_id = '{a}' and workflow_id = '{flow}')"
         " and (select count(*) = 1 from workflow_executions where tenant_id = '{a}' and workflow_id = '{flow}' and user_id = '{admin}')"),
    Case("user", "select delete_workflow('{flow_run}')", "VS409 the workflow has executions"),
]  # fmt: skip

TWIN_STARTED = (
    "set local session_replication_role = replica; insert into workflow_executions (tenant_id, id, user_id, workflow_id, version, input, priority,"
    " started_at) values ('{twin}', gen_random_uuid(), '{user}', '{flow}', 1, '{}', 5, now()); set local session_replication_role = origin"
)
SKIPPED = (
    'set local session_replication_role = replica; insert into workflow_nodes select (jsonb_populate_record(n, \'{"node": 0, "name": "x"}\')).*'
    " from workflow_nodes n where tenant_id = '{a}' and workflow_id = '{flow_part}' and node = 1; insert into workflow_steps (tenant_id, execution_id, node,"
    " item, user_id, status) values ('{a}', '{child}', 0, -1, '{user}', 'skipped'),"
    " ('{twin}', '{child}', 0, -1, '{user}', 'succeeded'); set local session_replication_role = origin"
)
CHILD_DONE = tick(told("one", "succeeded", "77", which="child", output=7))
ASKED_FAILED = "; ".join((
    in_step("ask", "status = 'succeeded', branch = 'approved'"), in_step("asked", "status = 'failed'"),
    change("workflow_executions", "status = 'failed', finished_at = now()", "id = '{running}'"),
))  # fmt: skip
LAST_WORKER = "'ffffffff-ffff-ffff-ffff-ffffffffffff'"
APART = [
    # what the twin has otherwise: each of these was once read by a statement that forgot the tenant
    Case("user", "select delete_workflow('{flow}')", given=TWIN_STARTED),
    Case("runtime", CHILD_DONE, "= ([])", lease("one", 77, which="child") + "; " + SKIPPED, then=execution("output = '{\"one\": 7}'", "child")),
    Case("runtime", CHILD_DONE, "= ([])", "; ".join((lease("one", 77, which="child"), change("workflow_nodes", "version = 2", "node = 99", "twin"),
         change("workflow_steps", "status = 'succeeded'", "execution_id = '{child}'", "twin"))), then=execution("output = '{\"one\": 7}'", "child")),
    Case("user", DECIDE % ("'approved'", "status"), "= (approved)", QUORUM, then=step("asked", "undecided = 0 and taken = 1")),
    Case("admin", ANSWER % "rejected", "= (rejected)", ASKED + "; " + in_node("judge", "branches = array['failed']", "twin"), then=execution(FAILED_NOW % "gate_failed")),
    Case("runtime", tick(told("busy", "handed_back")), "= ([])", change("workflow_queue", "worker = '{hands}'", "lease = {busy}", "twin")),
    Case("admin", "select erase_user('{user}', 'asked')", given=change("workflow_executions", "user_id = '{user}', idempotency_key = null", "id = '{others_running}'", "twin"), then=UNTOUCHED),
    Case("user", RESTART % "'{running}', 'asked'", given=ASKED_FAILED + "; " + in_node("ask", "branches = array['rejected']", "twin"),
         then=step("asked", "status = 'ready' and undecided = 0 and taken = 1")),
    Case("runtime", REFUSED, "= ([])", in_node("draft", "successors = '{1}', branches = array[''], next_pools = array['default'], next_needs = '{0}'", "twin"), then=step("ask", "status = 'waiting'")),
    Case("user", RESTART % "'{running}', 'each'", given="{as_admin}; " + CANCEL % "'{running}'" + "; set local vanilla.context = ''",
         then=count("workflow_steps", where="node = " + str(AT["each"])) + " = 1"),
    Case("runtime", TEND, "= (2)", due("nap") + "; " + due("hear"), then=step("hear", "branch = 'expired'") + " and " + step("nap", "status = 'succeeded'")),
    Case("runtime", TEND.replace("()", "(1)"), "= (1)", LATE + "; " + change("workflow_queue", f"deadline_at = '2020-01-01', worker = {LAST_WORKER}", "lease = {busy}", "twin")),
    Case("runtime", TEND, "= (1)", due("ask") + "; " + change("workflow_approvals", "status = 'rejected', decided_at = now()", "id = '{approval}'"),
         then=APPROVAL.format("approvers = '{role:user}'")),
    Case("runtime", "select vanilla.tick_worker('{hands}', '[]', 100)", given="delete from workflow_steps where tenant_id = '{a}' and " + MINE + f" and node = {AT['draft']}"),
]  # fmt: skip


STEP = "select execution_step('{running}', %s) "
REPLAY = "select jsonb_array_length(replay_executions(%s) -> 'restarted')"
LOST_AND_OTHERS = f"{execution('status', 'lost')} = '%s' and {execution('status', 'others_lost')} = '%s'"
REPLAYS = [
    Case("user", STEP % "'draft'" + "->> 'charged_tokens'", "= (10)"),
    Case("user", STEP % "'draft'" + "->> 'output'", "= ({word})"),
    Case("user", STEP % "'each'" + "#>> '{items,1,item}'", "= (1)"),
    Case("user", STEP % "'each', -1, 1" + "->> 'more'", "= (true)"),
    Case("user", STEP % "'each', 0, 1" + "#>> '{items,0,value}'", "= ({word})"),
    Case("user", STEP % "'busy'" + "->> 'status'", "= (running)"),
    Case("user", STEP % "'none'", "VS404 no such node"),
    Case("user", REPLAY % "", "= (1)", then=LOST_AND_OTHERS % ("running", "failed")),
    Case("other", REPLAY % "", "= (1)", then=LOST_AND_OTHERS % ("failed", "running")),
    *[Case(who, REPLAY % "", "= (2)", then=LOST_AND_OTHERS % ("running", "running")) for who in ("admin", "service")],
    Case("operator", REPLAY % "p_tenant_id => '{a}'", "= (2)"),
    Case("admin", REPLAY % "p_limit => 1", "= (1)"),
    *[Case("admin", REPLAY % what, "= (0)") for what in ("'{flow_run}'", "'{b_flow}'", "p_reason => 'none'")],
    Case("admin", REPLAY % "'{flow_part}', 'tool_failed'", "= (1)", then=LOST_AND_OTHERS % ("running", "failed")),
    # what was started within another is not started again alone
    Case("user", REPLAY % "", "= (0)", change("workflow_executions", "parent_execution_id = '{running}', parent_node = 8, parent_item = -1", "id = '{lost}'")),
    *[Case("user", REPLAY % f"p_limit => {limit}", "VS400 a limit") for limit in ("0", "1001", "null")],
    *[Case(who, REPLAY % "p_tenant_id => '{b}'", "VS404") for who in MEMBERS],
    Case("nobody", REPLAY % "", "VS401"),
    Case("user", "select id from my_approvals('{approval}')", "= ({approval})"),
    *[Case("user", f"select count(*) from my_approvals('{{{which}}}')", "= (0)") for which in ("others_approval", "b_approval")],
]  # fmt: skip

SET = "select set_workflow_schedule(%s)"
NEW = "'{flow_part}', 'new', '0 2 * * *'"
SCHEDULE = "(select {} from workflow_schedules where tenant_id = '{{a}}' and id = '{{schedule}}')"
MADE = "(select %s from workflow_schedules where tenant_id = '{a}' and workflow_id = '{flow_part}' and name = 'new')"
DELETE = "select delete_workflow_schedule('{schedule}')"
DUE = "select jsonb_array_length(vanilla.due_workflow_schedules())"
DUE_NOW = change("workflow_schedules", "next_at = '2020-01-01Z'", "id = '{schedule}'")
FIRE = "select vanilla.fire_workflow_schedule('{a}', '{schedule}', '2020-01-01Z', '{2020-01-01Z}', %s)"
FIRE_ON = FIRE % "'2199-01-02Z'"
ENDED = change("workflow_schedules", "enabled = false", "id = '{schedule}'")
FIRED = "(select count(*) from workflow_executions where tenant_id = '{a}' and workflow_id = '{flow_part}' and user_id = '{user}' and status = 'running' and idempotency_key like 'schedule:{schedule}:%' and input ->> 'word' = '{word}' and input ? 'scheduled_at')"
CLOCK = [
    Case("user", SET % NEW, audit="workflow.scheduled", then=MADE % (
        "user_id = '{user}' and time_zone = (select t.time_zone from tenants t where t.tenant_id = '{a}' and t.id = '{a}') and input = '{}' and catch_up = 'one' and enabled and next_at = vanilla.clock()")),
    Case("user", SET % "'{flow_part}', '{word}', '1 2 * * *', p_enabled => false", "= ({schedule})",
         then=SCHEDULE.format("cron = '1 2 * * *' and not enabled and last_error is null and last_at is null")),
    Case("user", SET % f"{NEW}, p_user_id => '{{user}}'"),
    Case("user", SET % f"{NEW}, p_user_id => '{{other}}'", "VS403 only an admin"),
    Case("admin", SET % NEW, then=MADE % "user_id = '{admin}'"),
    Case("admin", SET % f"{NEW}, p_user_id => '{{other}}'", then=MADE % "user_id = '{other}'"),
    Case("admin", SET % f"{NEW}, p_user_id => '{{b_user}}'", "VS404"),
    Case("operator", SET % f"{NEW}, p_tenant_id => '{{a}}'", then=MADE % "user_id = '{user}'"),
    *[Case("user", SET % NEW.replace("{flow_part}", flow), "VS404") for flow in ("{others_part}", "{b_flow}")],
    Case("admin", SET % NEW.replace("{flow_part}", "{b_flow}"), "VS404"),
    *[Case(who, SET % f"{NEW}, p_tenant_id => '{{b}}'", "VS404") for who in MEMBERS],
    Case("nobody", SET % NEW, "VS401"),
    *[Case("user", SET % f"'{{flow_part}}', {what}", "VS400 the schedule is not valid") for what in (
        "'A b', '0 2 * * *'", "'new', '0 2 * *'", "'new', null", "'new', '0 2 * * *', p_input => '[]'", "'new', '0 2 * * *', p_catch_up => 'odd'",
        "'new', '0 2 * * *', p_enabled => null")],
    Case("user", SET % f"{NEW}, 'Nowhere'", "VS400 there is no time zone"),
    *[Case(who, DELETE, audit="workflow.unscheduled", then=f"{SCHEDULE.format('count(*)')} = 0") for who in (*MEMBERS, "service")],
    Case("operator", DELETE.replace("')", "', '{a}')")),
    Case("other", DELETE, "VS404"),
    *[Case(who, DELETE.replace("{schedule}", "{b_schedule}"), "VS404") for who in (*MEMBERS, "super")],
    *[Case(who, DELETE.replace("')", "', '{b}')"), "VS404") for who in MEMBERS],
    Case("nobody", DELETE, "VS401"),
    *[Case(who, "select count(*) from workflow_schedules", f"= ({number})") for who, number in (("user", 1), ("other", 1), ("admin", 2), ("nobody", 0))],
    # when the time has come
    Case("runtime", DUE, "= (0)"),
    Case("runtime", DUE, "= (1)", DUE_NOW),
    Case("runtime", DUE, "= (0)", DUE_NOW + "; " + ENDED),
    Case("runtime", FIRE_ON, "= (1)", DUE_NOW, then=f"{FIRED} = 1 and " + SCHEDULE.format(
        "next_at = '2199-01-02Z' and last_at = '2020-01-01Z' and last_error is null and enabled and last_execution_id in (select e.id from workflow_executions e where e.tenant_id = '{a}' and e.workflow_id = '{flow_part}')")),
    Case("runtime", FIRE % "null", "= (1)", DUE_NOW, then=SCHEDULE.format("next_at = 'infinity' and not enabled")),
    # each time once
    Case("runtime", FIRE_ON, "= (0)", f"{DUE_NOW}; {FIRE_ON}; {DUE_NOW}", then=f"{FIRED} = 1"),
    Case("runtime", FIRE_ON, "= (0)", then=f"{FIRED} = 0 and " + SCHEDULE.format("next_at = '2199-01-01Z'")),
    Case("runtime", FIRE_ON, "= (0)", DUE_NOW + "; " + ENDED, then=f"{FIRED} = 0"),
    Case("runtime", FIRE_ON.replace("{a}", "{b}"), "= (0)", DUE_NOW),
    Case("runtime", FIRE_ON, "= (0)", DUE_NOW + "; " + change("ai_workflows", "status = 'retired'", "id = '{flow_part}'"),
         then=f"{FIRED} = 0 and " + SCHEDULE.format("last_error like '%retired%' and next_at = '2199-01-02Z' and enabled")),
    # with its workflow
    Case("user", "select delete_workflow('{flow}')", given="{as_admin}; " + SET % "'{flow}', 'new', '0 2 * * *'" + "; set local vanilla.context = ''",
         then="not exists (select from workflow_schedules where tenant_id = '{a}' and workflow_id = '{flow}')"),
    Case("keeper", "select vanilla.job_workflow_history(100) ->> 'executions'", "= (0)"),
]  # fmt: skip

CASES = [
    *whose(),
    *STARTS,
    *CHANGES,
    *NEWER,
    *SIGNALS,
    *APPROVALS,
    *READS,
    *REPLAYS,
    *CLOCK,
    *TICKS,
    *GATES,
    *TIMES,
    *CALLS,
    *ERASED,
    *APART,
]
