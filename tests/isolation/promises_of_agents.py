"""What agents and their runs promise (009): whose they are, what a worker is given, what stops a run, where money goes."""

import json
from typing import Any

from tests.isolation.promises import Case
from tests.isolation.promises_of_runner import change

NEW = {"instructions": "x", "model": "m"}
AGENT = "(select %s from agents where tenant_id = '{a}' and id = '{agent}')"
MADE = "(select %s from agents a join agent_versions v on v.tenant_id = a.tenant_id and v.agent_id = a.id where a.tenant_id = '{a}' and a.slug = 'new')"
VERSIONS = "(select %s from agent_versions where tenant_id = '{a}' and agent_id = '{%s}')"
RUN = "(select %s from agent_runs where tenant_id = '{a}' and id = '{%s}')"
STEP = "(select %s from agent_run_steps where tenant_id = '{a}' and run_id = '{%s}' and n = %d)"
BUDGET = "(select %s from resource_allocations where tenant_id = '{a}' and id = '{%s}')"
HOLD = "(select %s from allocation_holds where tenant_id = '{a}' and id = '{turn_call}')"
OTHERS = f"{RUN % ('state', 'others_turning')} = 'working' and {BUDGET % ('state', 'others_turn_budget')} = 'open'"
RETIRED = "update agents set status = 'retired' where tenant_id = '{a}' and id = '{%s}'"
ENDED = change("agent_runs", "state = 'failed', stop_reason = 'failed', finished_at = now()", "id = '{turning}'")
MOST = "update levels set restrictions = '{\"agents\": %d}' where tenant_id = '{a}' and id = '{level}'"


def save(slug: str = "new", more: str = "", what: str = "version", **fields: Any) -> str:
    return f"select save_agent('{slug}', '{json.dumps(NEW | fields)}'{more}) ->> '{what}'"


def start(ref: str = "{word}-agent-0", more: str = "", what: str = "status") -> str:
    return f"select start_agent('{ref}'{more}) ->> '{what}'"


def lease(which: str = "turn", **fields: Any) -> str:
    key = {"tenant_id": "{a}", "execution_id": f"{{{which}_execution}}", "n": 1, "item": None,
           "worker": "{agents_worker}", "lease": f"{{{which}_lease}}"}  # fmt: skip
    return "'" + json.dumps(key | fields) + "'"


ANOTHER = {
    "tenant_id": "{b}",
    "execution_id": "{others_turn_execution}",
    "n": 2,
    "item": 0,
    "worker": "{hands}",
    "lease": 1,
}
"""Each of these makes a lease another than the one that the worker has."""
CALL = {
    "hold_id": "{turn_call}",
    "status": "succeeded",
    "input": 5,
    "output": 5,
    "cached": 0,
    "reasoning": 0,
    "estimated": False,
}


def turn(
    *calls: tuple[str, dict[str, Any]], number: int = 2, wrap_up: bool = False, of: str = "", what: str = "stop"
) -> str:
    answer = {
        "text": "x",
        "calls": [{"id": f"c{n}", "name": name, "arguments": given} for n, (name, given) in enumerate(calls)],
    }
    return f"select vanilla.record_turn({of or lease()}, {number}, '{json.dumps([CALL])}', '{json.dumps(answer)}', {str(wrap_up).lower()}) ->> '{what}'"


def limited(run: str = "turning", **limits: int) -> str:
    return change("agent_runs", f"limits = limits || '{json.dumps(limits)}'", f"id = '{{{run}}}'")


def told(outcome: str, which: str = "turn", **fields: Any) -> str:
    done = [{"lease": f"{{{which}_lease}}", "tenant_id": "{a}", "execution_id": f"{{{which}_execution}}", "n": 1, "item": None,
             "node": "agent", "outcome": outcome} | fields]  # fmt: skip
    return f"select json_array_length(vanilla.tick_worker('{{agents_worker}}', '{json.dumps(done)}', 0) -> 'steps')"


ADMIT = "select vanilla.admit_call(null, null, null, 'sandbox-small', 10, 10, %s, 1, '{same_id}', false, '60 s', null, null, %s) ->> '%s'"
RECORD_AND_ADMIT = "select vanilla.record_call_and_admit(%s, %s, '%s', '7', 'sandbox-small', 10, 10, %s, 1, '{same_id}', false, '60 s') ->> 'output_limit'"
OUTPUT = {"text": "x", "stop_reason": "done"}
DELEGATE = ("delegate_to_{word}-helper-0", {"message": "x"})
HANDOFF = ("transfer_to_{word}-helper-0", {})
HANDED = '{"agent": "{word}-helper-0", "version": 1}'
TOLD = '{"text": "x"}'
CAME_TO = '{"text": "x", "run_id": "x"}'
"""What a run came to, and before it what its parent's model is told of it: the same answer is equal."""
TOOL = ("{word}", {"word": "{word}"})
OTHER_TOOL = ("{word}", {"n": 1})

SAVED = [
    Case("user", save(), "= (1)", then=MADE % "a.user_id = '{user}' and v.user_id = '{user}' and v.published_by = '{user}' and not a.shared and not v.shared and a.name = 'new' and a.status = 'active'",
         audit="agent.saved"),
    Case("user", save(more=", true"), then=MADE % "a.shared and v.shared"),
    Case("user", save("{word}-agent-0"), "= (3)", then=f"{AGENT % 'latest_version'} = 3 and {AGENT % 'user_id'} = '{{user}}'"),
    Case("user", save("{word}-agent-0", name="N", description="D"), then=AGENT % "name = 'N' and description = 'D' and not shared"),
    Case("user", save("{word}-agent-0"), given=RETIRED % "agent", then=AGENT % "status = 'active'"),
    Case("user", save("{word}-agent-0", ", true"), then=f"{AGENT % 'shared'} and {VERSIONS % ('bool_and(shared)', 'agent')}"),
    Case("user", save("{word}-helper-0", ", false"), then=f"not {VERSIONS % ('bool_or(shared)', 'helper')}"),
    Case("user", save("{word}-helper-0"), then=VERSIONS % ("bool_and(shared)", "helper")),
    *[Case("user", f"select save_agent('{{word}}-agent-0', (select definition from agent_versions where tenant_id = '{{a}}' and agent_id = '{{agent}}' and version = {n})) ->> 'version'", f"= ({made})")
      for n, made in ((2, 2), (1, 3))],
    *[Case("user", save(slug), "VS409 the name") for slug in ("{word}-agent-1", "{word}-helper-1")],
    Case("admin", save("{word}-agent-0"), "= (3)", then=AGENT % "user_id = '{user}'"),
    Case("admin", save("{word}-agent-0", ", p_user_id => '{user}'"), "= (3)"),
    Case("admin", save("{word}-agent-0", ", p_user_id => '{other}'"), "VS409"),
    Case("admin", save(more=", p_user_id => '{user}'"), then=MADE % "a.user_id = '{user}' and v.published_by = '{admin}'"),
    Case("admin", save(more=", p_user_id => '{b_user}'"), "VS404"),
    Case("user", save(more=", p_user_id => '{other}'"), "VS403"),
    Case("user", save(more=", p_tenant_id => '{b}'"), "VS404"),
    Case("admin", save(more=", p_tenant_id => '{b}'"), "VS404"),
    Case("nobody", save(), "VS401"),
    Case("operator", save(more=", p_user_id => '{user}', p_tenant_id => '{a}'"), then=MADE % "a.user_id = '{user}'"),
    Case("operator", save(more=", p_user_id => '{admin}', p_tenant_id => '{b}'"), "VS404"),
    Case("operator", save("{word}-agent-0", ", p_tenant_id => '{a}'"), "= (3)"),
    Case("user", save("A b"), "VS400"),
    Case("user", save(name="x" * 900), "VS400"),
    Case("user", "select save_agent('new', '[]')", "VS422"),
    *[Case("user", save(**wrong), "VS422") for wrong in (
        {"model": ""}, {"instructions": None}, {"limits": {"odd": 1}}, {"limits": {"turns": 0}}, {"limits": {"turns": 1001}}, {"limits": {"depth": 5}},
        {"limits": {"tokens": "x"}}, {"limits": {"tokens": 1.5}}, {"handoffs": [{"agent": "A b"}]}, {"delegates": [{"agent": "x@0"}]})],
    *[Case("user", save(**right)) for right in ({"limits": {"tool_calls": 0, "children": 0, "depth": 0}}, {"handoffs": [{"agent": "x@1"}]})],
    Case("user", save(), "VS429", MOST % 2),
    Case("user", save(), given=MOST % 3),
    Case("user", save("{word}-agent-0"), given=MOST % 2),
    Case("user", save(), given=f"{MOST % 2}; {RETIRED % 'helper'}"),
    # one that comes back takes a place of its owner's
    *[Case(who, save("{word}-agent-0"), "VS429", f"{MOST % 1}; {RETIRED % 'agent'}") for who in ("user", "admin")],
    Case("user", save("{word}-agent-0"), given=f"{MOST % 2}; {RETIRED % 'agent'}"),
    Case("admin", save("{word}-agent-0"), given=f"{MOST % 2}; {RETIRED % 'agent'}"),
    # retired
    Case("user", "select retire_agent('{agent}') ->> 'status'", "= (retired)", then=AGENT % "status = 'retired'", audit="agent.retired"),
    *[Case("user", f"select retire_agent('{{{id_}}}')", "VS404") for id_ in ("others_agent", "others_helper", "b_agent")],
    *[Case("admin", f"select retire_agent('{{{id_}}}')") for id_ in ("others_agent", "agent")],
    Case("admin", "select retire_agent('{b_agent}')", "VS404"),
    Case("user", "select retire_agent('{agent}', '{b}')", "VS404"),
    Case("nobody", "select retire_agent('{agent}')", "VS401"),
    Case("operator", "select retire_agent('{agent}', '{a}')", then=AGENT % "status = 'retired'"),
    Case("operator", "select retire_agent('{agent}', '{b}')", "VS404"),
    # seen
    *[Case(who, f"select count(*) from {table}", f"= ({n})") for table, of_user, of_admin in
      (("agents", 3, 4), ("agent_versions", 4, 6), ("agent_runs", 3, 6), ("agent_run_steps", 6, 12), ("agent_run_state", 1, 2), ("run_artifacts", 1, 2)) for who, n in (("user", of_user), ("admin", of_admin))],
]  # fmt: skip

STARTED = "(select count(*) = 1 from agent_runs r join resource_allocations b on b.tenant_id = r.tenant_id and b.id = r.allocation_id and b.run_id = r.id join workflow_queue q on q.tenant_id = r.tenant_id and q.execution_id = r.execution_id and q.pool = 'agents' where r.tenant_id = '{a}' and %s)"
FRESH = "r.id <> all (array['{asking}', '{asked}', '{turning}', '{others_asking}', '{others_asked}', '{others_turning}']::uuid[]) and r.state = 'submitted' and r.user_id = '{%s}'"
TWINS_AGENT = (
    "set local session_replication_role = replica; update agents set slug = 'twin-agent', shared = true, status = 'active' where tenant_id = '{twin}' and id = '{agent}';"
    " set local session_replication_role = origin"
)
STARTS = [
    Case("user", start(more=", p_tokens => 50"), "= (running)", then=STARTED % (FRESH % "user" + " and r.agent_id = '{agent}' and r.version = 2 and b.budget_tokens = 50 and b.wrap_up_tokens = 5 and r.limits ->> 'turns' = '20'")),
    Case("user", start(), then=STARTED % (FRESH % "user" + " and b.budget_tokens = 500 and b.max_requests = 200 and b.max_tool_calls = 100")),
    Case("user", start("{word}-agent-0@1"), then=STARTED % (FRESH % "user" + " and r.version = 1")),
    *[Case("user", start(ref), "VS404") for ref in ("{word}-agent-0@3", "{word}-agent-1", "odd", "twin-agent")],
    Case("user", start("twin-agent"), "VS404", TWINS_AGENT),
    Case("user", start("{word}-helper-1"), then=STARTED % (FRESH % "user" + " and r.agent_id = '{others_helper}'")),
    Case("admin", start("{word}-agent-1"), then=STARTED % (FRESH % "admin" + " and r.agent_id = '{others_agent}'")),
    Case("admin", start("{word}-agent-0", ", p_user_id => '{user}'"), then=STARTED % (FRESH % "user")),
    Case("admin", start("{word}-agent-1", ", p_user_id => '{user}'"), "VS404"),
    Case("admin", start(more=", p_user_id => '{b_user}'"), "VS404"),
    Case("user", start(more=", p_user_id => '{other}'"), "VS403"),
    Case("user", start(more=", p_tenant_id => '{b}'"), "VS404"),
    Case("nobody", start(), "VS401"),
    Case("operator", start(more=", p_user_id => '{user}', p_tenant_id => '{a}'"), then=STARTED % (FRESH % "user")),
    Case("operator", start(more=", p_user_id => '{user}', p_tenant_id => '{b}'"), "VS404"),
    Case("user", start(), "VS409", RETIRED % "agent"),
    Case("user", start(more=", p_tokens => 0"), "VS400"),
    Case("user", start(more=", '[]'"), "VS400"),
    Case("user", start(more=", p_tokens => 1000000000"), "VS402"),
    *[Case(who, start(more=f""", '{{"message": "{{word}}"}}', p_idempotency_key => '{{word}}-asks'{whose}""", what="run_id"), "= ({asking})")
      for who, whose in (("user", ""), ("admin", ", p_user_id => '{user}'"))],
    Case("user", start(more=", p_idempotency_key => '{word}-asks'"), "VS410"),
]  # fmt: skip

TURNS = [
    # a worker has a run by the lease of its step, and by nothing else
    Case("runtime", f"select vanilla.begin_run({lease()}, 'x', '{{}}') ->> 'run_id'", "= ({turning})", then=OTHERS),
    *[Case("runtime", f"select vanilla.begin_run({lease()}, 'x', '{{}}') #>> '{path}'", f"= ({value})") for path, value in (
        ("{turns}", 1), ("{state}", "working"), ("{speaker,slug}", "{word}-agent-0"), ("{speaker,version}", 2), ("{speaker,others,{word}-helper-0}", "{word}"),
        ("{steps,1,name}", "{word}"), ("{steps,1,status}", "open"), ("{budget,budget}", 500), ("{budget,spent}", 10), ("{budget,held}", 20))],
    *[Case("runtime", f"select jsonb_array_length(vanilla.begin_run({lease()}, 'x', '{{}}') -> 'steps')", "= (2)")],
    *[Case("runtime", statement % lease(**{name: value}), "VS409") for name, value in ANOTHER.items() for statement in (
        "select vanilla.begin_run(%s, 'x', '{}')", "select vanilla.record_call(%s, 2, 'done', '7')", turn(of="%s"), RECORD_AND_ADMIT % ("%s", 2, "done", 10))],
    Case("runtime", f"select vanilla.begin_run({lease()}, '{{word}}-helper-1', '{{}}') ->> 'state'", "= (working)", ENDED,
         then=STARTED % "r.agent_id = '{others_helper}' and r.user_id = '{user}' and r.execution_id = '{turn_execution}' and r.state = 'working'"),
    Case("runtime", f"select vanilla.begin_run({lease()}, '{{word}}-agent-1', '{{}}')", "VS404", ENDED),
    Case("runtime", f"select vanilla.begin_run({lease()}, '{{word}}-agent-0', '[]')", "VS400", ENDED),
    *[Case("runtime", f"select vanilla.begin_run({lease('asking', lease='{turn_lease}')}, 'x', '{{}}') ->> 'run_id'", "= ({asking})",
           "; ".join((change("workflow_queue", "execution_id = '{asking_execution}'", "lease = {turn_lease}"),
                      change("agent_runs", f"state = '{state}', stop_reason = 'done', output = '{CAME_TO}', finished_at = now()", "id = '{asked}'"))),
           then=STEP % (f"status = '{status}' and finished_at is not null and result -> 'output' = '{TOLD}'", "asking", 2)) for state, status in (("completed", "done"), ("failed", "failed"))],
    Case("runtime", f"select vanilla.begin_run({lease('asking', lease='{turn_lease}')}, 'x', '{{}}') ->> 'run_id'", "= ({asking})",
         change("workflow_queue", "execution_id = '{asking_execution}'", "lease = {turn_lease}"), then=STEP % ("status = 'open'", "asking", 2)),
    # what a model said is paid and written at once
    Case("runtime", turn(), "= ()", then=" and ".join((
        RUN % ("turns = 2 and charged_tokens = 20 and tool_calls = 1", "turning"), STEP % ("kind = 'model' and status = 'done' and charged_tokens = 10 and turn = 2 and user_id = '{user}'", "turning", 3),
        HOLD % "state = 'settled' and settled = 10", BUDGET % ("spent_tokens = 20 and held_tokens = 0", "turn_budget"), OTHERS,
        "(select charged_tokens = 20 from workflow_steps where tenant_id = '{a}' and execution_id = '{turn_execution}' and node = 1 and item = -1)"))),
    Case("runtime", turn(number=1), "= ()", then=f"{RUN % ('turns', 'turning')} = 1 and {HOLD % 'state'} = 'open'"),
    Case("runtime", turn(number=3), "VS409"),
    Case("runtime", turn(), "VS409", ENDED),
    Case("runtime", turn(OTHER_TOOL), "= ()", then=STEP % ("kind = 'tool' and status = 'open' and turn = 2 and call_id = 'c0' and arguments = '{\"n\": 1}'", "turning", 4)),
    Case("runtime", turn(OTHER_TOOL, wrap_up=True), "= ()", then=f"{STEP % ('true', 'turning', 4)} is null"),
    Case("runtime", turn(OTHER_TOOL), "= (max_turns)", limited(turns=2), then=STEP % ("status = 'refused'", "turning", 4)),
    Case("runtime", turn(), "= ()", limited(turns=2)),
    Case("runtime", turn(OTHER_TOOL), "= (deadline)", change("agent_runs", "deadline_at = '2020-01-01'", "id = '{turning}'")),
    Case("runtime", turn(OTHER_TOOL), "= (max_tool_calls)", limited(tool_calls=0)),
    Case("runtime", turn(OTHER_TOOL), "= (max_tool_calls)", change("resource_allocations", "max_tool_calls = 1, tool_calls = 1", "id = '{turn_budget}'")),
    Case("runtime", turn(OTHER_TOOL), "= (max_tool_calls)", change("resource_allocations", "expires_at = '2020-01-01'", "id = '{turn_budget}'")),
    Case("runtime", turn(OTHER_TOOL), "= (max_tool_calls)", change("allocation_holds", "state = 'released', closed_at = now()", "allocation_id = '{turn_budget}' and state = 'open'") + "; "
         + change("resource_allocations", "state = 'closed', closed_at = now(), held_tokens = 0, open_holds = 0", "id = '{turn_budget}'")),
    Case("runtime", turn(OTHER_TOOL), "= ()", then=BUDGET % ("tool_calls = 2", "turn_budget")),
    # the same call
    Case("runtime", turn(TOOL), "= ()", limited(repeats=2)),
    Case("runtime", turn(TOOL), "= (loop_detected)", limited(repeats=2) + "; " + change("agent_run_steps", "status = 'done', finished_at = now(), result = '7'", "run_id = '{turning}' and n = 2")),
    Case("runtime", turn(OTHER_TOOL), "= ()", limited(repeats=2) + "; " + change("agent_run_steps", "status = 'done', finished_at = now(), result = '7'", "run_id = '{turning}' and n = 2")),
    Case("runtime", turn(TOOL), "= ()", change("agent_run_steps", "status = 'done', finished_at = now(), result = '7'", "run_id = '{turning}' and n = 2")),
    # others
    # the calls beside a handover are still this agent's
    Case("runtime", turn(HANDOFF), "= ()", then=" and ".join((RUN % ("speaker_id = '{agent}' and path = array['{agent}', '{helper}']::uuid[]", "turning"),
         STEP % ("kind = 'handoff' and status = 'open' and result = '{\"agent\": \"{word}-helper-0\", \"version\": 1}'", "turning", 4)))),
    *[Case("runtime", f"select vanilla.begin_run({lease()}, 'x', '{{}}') #>> '{{speaker,slug}}'", f"= ({speaker})",
           change("agent_run_steps", f"kind = 'handoff', result = '{HANDED}'", "run_id = '{turning}' and n = 1") + "; " + change("agent_run_steps", "status = 'open', finished_at = null", "run_id = '{turning}' and n = 1")
           + "; " + change("agent_run_steps", f"status = '{status}', finished_at = {finished}", "run_id = '{turning}' and n = 2"), then=RUN % (f"speaker_id = '{{{who}}}' and speaker_version = {version}", "turning"))
      for status, finished, speaker, who, version in (("done", "now()", "{word}-helper-0", "helper", 1), ("open", "null", "{word}-agent-0", "agent", 2))],
    Case("runtime", turn(HANDOFF), "= (cycle_refused)", change("agent_runs", "path = array_append(path, '{helper}')", "id = '{turning}'"), then=RUN % ("speaker_id = '{agent}'", "turning")),
    Case("runtime", turn(HANDOFF), "= ()", RETIRED % "helper", then=STEP % ("status = 'failed'", "turning", 4)),
    Case("runtime", turn(("transfer_to_{word}-helper-1", {})), "= ()", then=f"{STEP % ('status', 'turning', 4)} = 'failed' and {RUN % ('speaker_id', 'turning')} = '{{agent}}'"),
    Case("runtime", turn(DELEGATE), "= ()", then=f"{STEP % ('kind', 'turning', 4)} = 'delegate' and {STEP % ('status', 'turning', 4)} = 'open' and {RUN % ('children', 'turning')} = 1"),
    Case("runtime", turn(DELEGATE, DELEGATE), "= (max_children)", limited(children=1), then=f"{STEP % ('status', 'turning', 4)} = 'refused' and {STEP % ('status', 'turning', 2)} = 'refused'"),
    Case("runtime", turn(DELEGATE), "= (max_depth)", limited(depth=0)),
    Case("runtime", turn(DELEGATE), "= (cycle_refused)", change("agent_runs", "path = array_append(path, '{helper}')", "id = '{turning}'")),
    # what a tool gave
    *[Case("runtime", f"select vanilla.record_call({lease()}, 2, '{status}', '7') ->> 'status'", f"= ({status})", then=STEP % (f"status = '{status}' and result = '7' and finished_at is not null", "turning", 2)) for status in ("done", "failed")],
    Case("runtime", f"select vanilla.record_call({lease()}, 2, 'approval', '7') ->> 'approval'", "= (7)", then=STEP % ("status = 'open' and approval = '7'", "turning", 2)),
    Case("runtime", f"select vanilla.record_call({lease()}, 2, 'odd', '7')", "VS400"),
    Case("runtime", f"select vanilla.make_call({lease()}, 1) ->> 'status'", "= (done)"),
    *[Case("runtime", f"select vanilla.record_call({lease()}, 1, '{status}', '7') #>> '{{{{result,text}}}}'", "= ({word})", then=STEP % ("result ->> 'text' = '{word}' and approval is null", "turning", 1)) for status in ("done", "approval")],
    # and the next turn
    *[Case("runtime", RECORD_AND_ADMIT % (lease(run_id="{turning}"), 2, status, 10), "= (10)", then=" and ".join((STEP % (f"status = '{status}' and result = '7' and finished_at is not null", "turning", 2),
         BUDGET % ("held_tokens = 40", "turn_budget"), OTHERS))) for status in ("done", "failed")],
    Case("runtime", RECORD_AND_ADMIT % (lease(run_id="{turning}"), 2, "done", 10), "= (10)", change("workflow_queue", "attempt = 3, lost = 2", "execution_id = '{turn_execution}' and node = 1"),
         then="(select attempt = 1 and lost = 0 from workflow_queue where tenant_id = '{a}' and execution_id = '{turn_execution}' and node = 1)"),
    Case("runtime", RECORD_AND_ADMIT % (lease(run_id="{turning}"), 1, "done", 10), "= (10)", then=STEP % ("result ->> 'text' = '{word}'", "turning", 1)),
    Case("runtime", RECORD_AND_ADMIT % (lease(run_id="{turning}"), 2, "odd", 10), "VS400"),
    Case("runtime", RECORD_AND_ADMIT % (lease(run_id="{turning}"), 2, "done", 1000), "VS429"),
    *[Case("runtime", RECORD_AND_ADMIT % (lease(run_id=run), 2, "done", 10), "VS409") for run in ("{others_turning}", "{asked}", "{b_turning}")],
    # reserved
    Case("runtime", ADMIT % (10, lease(run_id="{turning}"), "output_limit"), "= (10)", then=f"{BUDGET % ('held_tokens', 'turn_budget')} = 40 and {OTHERS}"),
    Case("runtime", ADMIT % ("null", lease(run_id="{turning}"), "clamped"), "= (true)", then=BUDGET % ("held_tokens + spent_tokens + wrap_up_tokens = budget_tokens", "turn_budget")),
    *[Case("runtime", ADMIT % (10, lease(run_id=run), "output_limit"), "VS409") for run in ("{others_turning}", "{asked}", "{b_turning}")],
    Case("runtime", ADMIT % (10, lease(run_id="{turning}"), "output_limit"), "VS409", ENDED),
    Case("runtime", ADMIT % (10, lease(run_id="{turning}"), "output_limit"), "VS429", change("agent_runs", "deadline_at = '2020-01-01'", "id = '{turning}'")),
    Case("runtime", ADMIT % (10, lease(run_id="{turning}"), "output_limit"), "VS429", limited(turns=1)),
    Case("runtime", ADMIT % (10, lease(run_id="{turning}", wrap_up=True), "output_limit"), "= (10)", limited(turns=1)),
    Case("runtime", ADMIT % (1000, lease(run_id="{turning}"), "output_limit"), "VS429"),
]  # fmt: skip

GIVEN_BACK = f"{BUDGET % ('state', 'turn_budget')} = 'closed' and {HOLD % 'state'} = 'released'"
NO_ANSWER = {"code": "provider_error", "message": "x", "retryable": False, "details": {"call": 2}}
ENDS = [
    Case("runtime", told("succeeded", output=OUTPUT, run="x"), "= (0)", then=" and ".join((
        RUN % ("state = 'completed' and stop_reason = 'done' and output ->> 'text' = 'x'", "turning"), STEP % ("status = 'refused'", "turning", 2), GIVEN_BACK,
        "(select count(*) = 1 from workflow_queue where tenant_id = '{a}' and execution_id = '{turn_execution}' and node = 2)", OTHERS))),
    *[Case("runtime", told("failed", error={"code": code, "message": "x"}), then=" and ".join((RUN % (f"state = 'failed' and stop_reason = '{reason}' and error ->> 'code' = '{code}'", "turning"), GIVEN_BACK)))
      for code, reason in (("max_turns", "max_turns"), ("timeout", "provider_failed"), ("insufficient_tokens", "budget_exhausted"), ("odd", "failed"))],
    Case("runtime", told("failed", error={"code": "provider_error", "message": "x", "retryable": True}, retry_after_s=60), then=f"{RUN % ('state', 'turning')} = 'working' and {BUDGET % ('state', 'turn_budget')} = 'open' and {HOLD % 'state'} = 'released'"),
    *[Case("runtime", told("failed", error={"code": "provider_error", "message": "x", "retryable": True}, retry_after_s=60), given=change("agent_runs", f"deadline_at = vanilla.clock() + interval '{left} s'", f"id = '{{{which}}}'"),
           then=f"{RUN % ('state', 'turning')} = '{state}'")
      for left, which, state in ((30, "turning", "failed"), (90, "turning", "working"), (30, "others_turning", "working"))],
    # a call that is not tried again is told to the model while there is time
    Case("runtime", told("failed", error=NO_ANSWER), then=" and ".join((
        STEP % ("status = 'failed' and result = '{\"code\": \"provider_error\", \"error\": \"x\"}' and finished_at is not null", "turning", 2), RUN % ("state = 'working'", "turning"),
        BUDGET % ("state = 'open'", "turn_budget"), HOLD % "state = 'released'", OTHERS,
        "(select count(*) = 1 from workflow_queue where tenant_id = '{a}' and execution_id = '{turn_execution}' and node = 1 and worker is null and attempt = 0)"))),
    *[Case("runtime", told("failed", error=NO_ANSWER), given=change("agent_run_steps", wrong, "run_id = '{turning}' and n = 2"), then=RUN % ("state = 'failed' and stop_reason = 'provider_failed'", "turning"))
      for wrong in ("kind = 'delegate'", "status = 'done', finished_at = now(), result = '7'")],
    Case("runtime", told("failed", error=NO_ANSWER), given=change("agent_runs", "deadline_at = '2020-01-01'", "id = '{turning}'"),
         then=f"{RUN % ('state', 'turning')} = 'failed' and {STEP % ('status', 'turning', 2)} = 'refused' and {GIVEN_BACK}"),
    Case("runtime", told("waiting", wait={"kind": "approval", "title": "x", "approvers": ["role:admin"], "quorum": 1}), then=RUN % ("state = 'input_required'", "turning") + " and " + RUN % ("state = 'working'", "others_turning")),
    # it asks others
    Case("runtime", told("succeeded", "asked", output=OUTPUT, run="x"), then=" and ".join((
        RUN % ("state = 'completed'", "asked"), BUDGET % ("state = 'closed'", "asked_budget"), BUDGET % ("carved_tokens = 0 and state = 'open'", "asking_budget"), RUN % ("state = 'working'", "asking")))),
    Case("runtime", told("failed", "asked", error={"code": "max_turns", "message": "x"}), then=" and ".join((RUN % ("state = 'failed'", "asked"), RUN % ("state = 'working'", "asking")))),
    Case("runtime", "select vanilla.tend_workflows()", "= (1)", told("failed", "asked", error={"code": "max_turns", "message": "x"}),
         then="(select count(*) = 1 from workflow_queue where tenant_id = '{a}' and execution_id = '{asking_execution}' and pool = 'agents' and worker is null)"),
    # cancelled
    *[Case(who, "select cancel_execution('{asking_execution}')", then=" and ".join((RUN % ("state = 'canceled' and stop_reason = 'canceled'", "asking"), RUN % ("state = 'canceled'", "asked"),
        BUDGET % ("state = 'closed'", "asking_budget"), BUDGET % ("state = 'closed'", "asked_budget"), STEP % ("status = 'refused'", "asking", 2), RUN % ("state = 'working'", "turning"), OTHERS))) for who in ("user", "admin")],
    Case("user", "select cancel_execution('{turn_execution}')", then=f"{RUN % ('state', 'turning')} = 'canceled' and {GIVEN_BACK}"),
    Case("user", "select cancel_execution('{others_turn_execution}')", "VS404"),
    # too long
    Case("runtime", "select vanilla.tend_workflows()", "= (1)", change("workflow_timers", "due_at = '2020-01-01'", "execution_id = '{asking_execution}' and node = 1"),
         then=" and ".join((RUN % ("state = 'failed' and stop_reason = 'deadline'", "asking"), RUN % ("state = 'canceled'", "asked"), BUDGET % ("state = 'closed'", "asking_budget")))),
    Case("keeper", "select vanilla.reclaim_leases('{agents_worker}')", "= (4)", then=f"{RUN % ('state', 'turning')} = 'working' and {BUDGET % ('held_tokens', 'turn_budget')} = 0 and {HOLD % 'state'} = 'released'"),
    # forgotten: what others have, or may read, stays
    Case("admin", "select erase_user('{user}', 'asked')", then=" and ".join((
        *[f"not exists (select from {table} where tenant_id = '{{a}}' and user_id = '{{user}}')" for table in ("agent_runs", "agent_run_steps")],
        *[f"not exists (select from {table} where tenant_id = '{{a}}' and {column} = '{{agent}}')" for table, column in
          (("agents", "id"), ("agent_versions", "agent_id"), ("ai_workflows", "id"), ("workflow_versions", "workflow_id"), ("workflow_nodes", "workflow_id"))],
        "exists (select from agents where tenant_id = '{a}' and id = '{helper}')", "exists (select from ai_workflows where tenant_id = '{a}' and id = '{others_agent}')",
        VERSIONS % ("count(*)", "helper") + " = 1", VERSIONS % ("count(*)", "others_agent") + " = 2", OTHERS))),
    Case("admin", "select erase_user('{user}', 'asked')", given=change("agent_runs", "agent_id = '{agent}', version = 1, speaker_id = '{agent}'", "id = '{others_turning}'"),
         then="exists (select from agents where tenant_id = '{a}' and id = '{agent}') and " + VERSIONS % ("count(*)", "agent") + " = 2"),
]  # fmt: skip

PIN = '{"engine": "{word}", "engine_tenant_id": "{a}", "engine_id": "{engine}", "version": 1, "alias": "stable", "source": "reference", "source_id": null}'
PINNED = change("agent_runs", f"engines = jsonb_build_object('{{agent}}@2', '{PIN}'::jsonb)", "id = '{turning}'")
ASK = "select vanilla.ask_engine(%s, %d, '{\"q\": 1}') is null"
TWINS_TURN = change("agent_run_steps", "turn = 2, n = n + 7", "run_id = '{turning}'", "twin")
TWINS = "(select %s from agent_run_steps where tenant_id = '{twin}' and run_id = '{turning}' and n = 3)"
OF_ENGINE = """select save_agent('new', '{"instructions": "x", "engine": "{word}"}', p_user_id => '{user}', p_tenant_id => '{a}')"""
NO_MORE = "not exists (select from agent_run_steps where tenant_id = '{a}' and run_id = '{turning}' and n = 3)"
ANSWER = f"select vanilla.record_turn({lease()}, 2, '[]', '{{\"text\": \"x\", \"calls\": []}}') ->> 'turns'"
WAITS = told("waiting", wait={"kind": "agents"})
CHARGED = "; ".join(
    change("workflow_steps", f"charged_tokens = {n}, cost_micros = {n + 1}", f"execution_id = '{{{which}_execution}}' and node = 1 and item = -1")
    for n, which in ((7, "asking"), (5, "asked"))
)  # fmt: skip
"""What a run and what it started were charged: 12 tokens and 14 micros, and in the twin something else."""
IN_TIME = change("agent_runs", "deadline_at = vanilla.clock() + interval '1 min'", "id = '{turning}'")
WITH_BUDGET = """definition = definition || '{"budget_tokens": 5}', hash = sha256(convert_to((definition || '{"budget_tokens": 5}')::text, 'UTF8'))"""
STARTED_ENGINE = """(select count(*) = 1 from engine_executions x join workflow_executions e on e.tenant_id = x.tenant_id and e.id = x.id join resource_allocations b on b.tenant_id = e.tenant_id and b.id = e.allocation_id
    join agent_run_steps s on s.tenant_id = e.tenant_id and s.child_execution_id = e.id where x.tenant_id = '{a}' and x.engine_id = '{engine}' and x.version = 1 and x.user_id = '{user}'
    and e.parent_execution_id = '{turn_execution}' and e.parent_node = 1 and e.parent_item = -1 and e.depth = 1 and e.input @> '{"q": 1}' and b.parent_id = '{turn_budget}' and s.run_id = '{turning}' and s.n = 3 and %s)"""


def asked(child: str = "null", tenant: str = "a", n: int = 1) -> str:
    """The second turn is a run of the engine, which has not started when no child is named."""
    row = f"('{{{tenant}}}', '{{turning}}', 3, '{{user}}', 2, 'model', '{{agent}}', 'engine/x@1', '{{\"q\": {n}}}', now(), {child})"
    insert = f"insert into agent_run_steps (tenant_id, run_id, n, user_id, turn, kind, agent_id, name, arguments, created_at, child_execution_id) values {row}"
    return f"set local session_replication_role = replica; {insert}; set local session_replication_role = origin"


RUNS = "; ".join(
    (PINNED, asked("'{asking_execution}'"), asked("'{asking_execution}'", "twin"), CHARGED,
     change("agent_run_steps", "child_execution_id = '{asked_execution}'", "run_id = '{turning}' and n = 1"))
)  # fmt: skip
COST = " and ".join((
    STEP % ("charged_tokens = 12 and cost_micros = 14 and status = '%s'", "turning", 3), RUN % ("charged_tokens = 22", "turning"), RUN % ("charged_tokens = 10", "others_turning"),
    STEP % ("status = 'done' and charged_tokens = 10", "turning", 1), TWINS % "status = 'open' and charged_tokens = 0", "(select charged_tokens = 7777777 from agent_runs where tenant_id = '{twin}' and id = '{turning}')"))  # fmt: skip
ENGINES = [
    # what the engine means is looked at once, when the agent gets the word
    Case("user", start("new"), given=OF_ENGINE, then="(select count(*) = 1 from agent_runs r join resource_allocations b on b.tenant_id = r.tenant_id and b.id = r.allocation_id where r.tenant_id = '{a}' and r.user_id = '{user}'"
         " and r.engines -> (r.agent_id || '@1') @> '{\"engine_id\": \"{engine}\", \"version\": 1}' and b.wrap_up_tokens = 0)"),
    *[Case("user", start("new"), code, f"{OF_ENGINE}; update level_engines set access = '{access}' where tenant_id = '{{a}}' and engine_id = '{{engine}}'") for access, code in (("read", "VS403"), ("none", "VS404"))],
    *[Case("user", f"select save_agent('new', '{{\"instructions\": \"x\", \"engine\": \"e\", {more}}}')", "VS422") for more in ('"model": "m"', '"tools": [{"tool": "x"}]')],
    # a turn is written down, once
    Case("runtime", ASK % (lease(), 2), given=f"{PINNED}; {TWINS_TURN}", then=STEP % (
        "kind = 'model' and status = 'open' and turn = 2 and name = 'engine/{word}@1' and user_id = '{user}' and child_execution_id is null", "turning", 3) + " and " + OTHERS),
    Case("runtime", ASK % (lease(), 1), given=PINNED, then=NO_MORE),
    Case("runtime", ASK % (lease(), 3), "VS409", PINNED),
    Case("runtime", ASK % (lease(), 2), "VS409"),
    Case("runtime", ASK % (lease(), 2), "VS409", f"{PINNED}; {ENDED}"),
    Case("runtime", ASK % (lease(), 2), "VS429", f"{PINNED}; {limited(turns=1)}"),
    Case("runtime", ASK % (lease(), 2), "VS429", f"{PINNED}; " + change("agent_runs", "deadline_at = '2020-01-01'", "id = '{turning}'")),
    *[Case("runtime", ASK % (lease(**{name: value}), 2), "VS409", PINNED) for name, value in ANOTHER.items()],
    # it starts when the step waits, of what is left of the budget
    Case("runtime", WAITS, given="; ".join((PINNED, asked(), asked("null", "twin", 2))), then=" and ".join((STARTED_ENGINE % "b.budget_tokens = 440", TWINS % "child_execution_id is null", OTHERS))),
    Case("runtime", WAITS, given="; ".join((PINNED, asked(), change("workflow_versions", WITH_BUDGET, "true"))), then=STARTED_ENGINE % "b.budget_tokens = 5"),
    *[Case("runtime", WAITS, given="; ".join((PINNED, asked(), asked("null", "twin", 2), given)), then=" and ".join((STEP % (f"status = 'failed' and result ->> 'code' = '{code}' and finished_at is not null", "turning", 3), TWINS % "status = 'open'")))
      for code, given in (("engine_not_started", change("workflow_executions", "depth = 5", "id = '{turn_execution}'")), ("budget_exhausted", change("resource_allocations", "spent_tokens = 450", "id = '{turn_budget}'")))],
    Case("runtime", WAITS, given="; ".join((PINNED, asked(), asked("'{asking_execution}'", "twin"), IN_TIME, change("agent_run_steps", "child_execution_id = '{asked_execution}'", "run_id = '{turning}' and n = 1"))),
         then="exists (select from workflow_timers where tenant_id = '{a}' and execution_id = '{turn_execution}' and due_at < vanilla.clock() + interval '2 min')"),
    # its cost is that of all that it started, when it has answered and when it has not
    Case("runtime", ANSWER, "= (2)", RUNS, then=COST % "done"),
    Case("runtime", told("failed", error={"code": "engine_failed", "message": "x"}), given=RUNS, then=COST % "failed" + " and " + RUN % ("stop_reason = 'failed'", "turning")),
    Case("user", "select cancel_execution('{turn_execution}')", given=RUNS, then=COST % "refused"),
]  # fmt: skip

CASES = [*SAVED, *STARTS, *TURNS, *ENDS, *ENGINES]
