"""What the functions of 008 promise: whose workers, strategies and decisions are, and which states end what."""

from tests.isolation.promises import Case

WORKER, OWN = "'{worker}'", "'{own_worker}'"
OF_PLATFORM = f"tenant_id = '{{platform}}' and id = {WORKER}"
OF_A = f"tenant_id = '{{a}}' and id = {OWN}"
BEAT = f"select vanilla.heartbeat_worker({WORKER}%s) ->> '%s'"
REPORT = """, '{"finished": 4, "failed": 1, "latency_ms_sum": 1250, "in_flight": 3}'"""
ALLOWED = f"select (vanilla.worker_allowance({WORKER}, 10)).allowed"


def worker(condition: str, which: str = OF_PLATFORM) -> str:
    return f"(select {condition} from worker_registry where {which})"


def state(status: str, which: str = OF_PLATFORM) -> str:
    ended = "vanilla.clock()" if status in ("stopped", "dead") else "null"
    return f"update worker_registry set status = '{status}', stopped_at = {ended} where {which}"


def logged(condition: str, which: str = "worker_id = '{worker}'") -> str:
    return f"(select count(*) from worker_event_logs where tenant_id = '{{%s}}' and {which} and {condition}) = %d"


SILENT = "update worker_registry set heartbeat_at = vanilla.clock() - interval '11 s' where " + OF_PLATFORM
PUNCTUAL = "update worker_registry set heartbeat_at = vanilla.clock() - interval '9 s' where " + OF_PLATFORM
DIED = "event = 'died' and from_status = 'active' and to_status = 'dead'"
DRAINED = "event = 'draining' and actor_id %s and created_at = vanilla.clock()"
SET = "select set_routing_strategy('made', 'sticky'%s)"
MADE = "exists (select from routing_strategies where tenant_id = '{%s}' and slug = 'made' and kind = 'sticky')"
LOAD = """'[{"id": "x", "in_flight": 1}, {"id": "y"}]'"""
ROUTE = "select route_decision('%s'%s) ->> '%s'"
LATEST = "(select %s from routing_decisions where tenant_id = '{a}' order by id desc limit 1)"
EXPLAIN = "select explain_routing('{decision}'%s) ->> '%s'"
HELD = """update routing_strategies set kind = 'region', config = '{"residency": true, "hold_ms": 5000}'
    where tenant_id = '{platform}' and slug = 'capacity_aware'"""
BUSY = "array(select q from workflow_queue q where q.tenant_id = '{a}' and q.lease = {busy})"
PLACE = f"select cardinality(vanilla.place_steps({WORKER}, 'default', {BUSY}))"
PUT_BACK = (
    "update workflow_queue set pool = 'default@', held_until = '2020-01-01', worker = null where tenant_id = '{a}'"
)
DECISIONS = "(select count(*) from routing_decisions where tenant_id = '{a}' and strategy = '{word}')"

CASES = [
    # workers are the platform's
    Case("runtime", "select vanilla.register_worker('made', '{default}', 3) is not null", "= (t)",
         then="(select count(*) from worker_registry where tenant_id = '{platform}' and name = 'made' and status = 'registered') = 1"),
    Case("runtime", "select vanilla.register_worker('made', '{}', 3)", "VS400"),
    Case("runtime", BEAT % (REPORT, "status"), "= (active)",
         then=f"{worker('in_flight = 3 and heartbeat_at = vanilla.clock()')} and exists (select from routing_metrics where tenant_id = '{{platform}}'"
         " and worker_id = '{worker}' and finished = 4 and failed = 1 and latency_ms_sum = 1250 and in_flight_max = 3)"),
    # its peers are the platform's alone: the twin has a quick one in its pool
    Case("runtime", BEAT % (""", '{"finished": 1, "latency_ms_sum": 250}'""", "health_score"), "= (100)"),
    Case("runtime", BEAT % ("", "status"), "= (draining)", state("draining")),
    Case("runtime", BEAT % ("", "status"), "= (stopped)", state("stopped")),
    Case("runtime", BEAT % ("", "status"), "= (dead)", state("dead")),
    Case("runtime", BEAT % ("", "status"), "= (active)", state("registered"), then=logged("event = 'activated'") % ("platform", 2)),
    Case("runtime", f"select vanilla.heartbeat_worker({OWN}) ->> 'status'", "= (dead)"),
    Case("runtime", BEAT % (""", '{"finished": -1}'""", "status"), "VS400"),
    Case("runtime", ALLOWED, "= (10)"),
    Case("runtime", ALLOWED, "= (0)", state("draining")),
    Case("runtime", ALLOWED, "VS409", state("stopped")),
    Case("runtime", ALLOWED, "VS409", state("dead")),
    Case("runtime", f"select (vanilla.worker_allowance({OWN}, 10)).allowed", "VS409"),
    Case("runtime", f"select vanilla.drain_worker({WORKER})", then=worker("status = 'draining'") + " and " + logged(DRAINED % "is null") % ("platform", 1)),
    Case("runtime", f"select vanilla.drain_worker({WORKER})", "VS409", state("dead")),
    Case("runtime", f"select vanilla.drain_worker({WORKER})", "VS409", state("stopped")),
    Case("runtime", f"select vanilla.drain_worker({WORKER})", given=state("draining"), then=logged("event = 'draining'") % ("platform", 0)),
    Case("runtime", f"select vanilla.drain_worker({OWN})", "VS409"),
    Case("runtime", f"select vanilla.stop_worker({WORKER})", then=worker("status = 'stopped' and stopped_at = vanilla.clock()")
         + " and " + logged("event = 'stopped' and from_status = 'active' and to_status = 'stopped' and reason = 'it ended without draining'") % ("platform", 1)),
    Case("runtime", f"select vanilla.stop_worker({WORKER})", "VS409", state("dead")),
    Case("runtime", f"select vanilla.stop_worker({WORKER})", given=state("stopped"), then=logged("event = 'stopped'") % ("platform", 0)),
    Case("runtime", f"select vanilla.stop_worker({OWN})", "VS409"),
    *[Case(who, "select vanilla.bury_workers() = array['{worker}']::uuid[]", "= (t)", SILENT,
           then=worker("status = 'dead' and health_score = 0") + " and " + logged(DIED) % ("platform", 1)) for who in ("runtime", "operator")],
    Case("runtime", "select cardinality(vanilla.bury_workers())", "= (0)", PUNCTUAL),
    Case("runtime", "select cardinality(vanilla.bury_workers())", "= (0)", f"{state('stopped')}; {SILENT}"),
    Case("runtime", "select vanilla.run_schedule_part('workers') ->> 'error'", "= ()", SILENT,
         then=worker("status = 'dead'")),
    # an admin drains the tenant's, nobody else's
    Case("admin", f"select drain_worker({OWN}, 'why')", audit="worker.drained",
         then=worker("status = 'draining'", OF_A) + " and " + logged(DRAINED % "= '{admin}' and reason = 'why'", "worker_id = '{own_worker}'") % ("a", 1)),
    Case("admin", f"select drain_worker({OWN})", "VS409", state("stopped", OF_A)),
    Case("admin", f"select drain_worker({OWN})", "VS409", state("dead", OF_A)),
    Case("admin", f"select drain_worker({OWN})", given=state("draining", OF_A),
         then="not exists (select from audit_logs where action = 'worker.drained' and created_at = vanilla.clock())"),
    Case("admin", f"select drain_worker({WORKER})", "VS404"),
    Case("admin", "select drain_worker('{b_worker}')", "VS404"),
    Case("admin", "select drain_worker('{b_worker}', p_tenant_id => '{b}')", "VS404"),
    Case("user", f"select drain_worker({OWN})", "VS403"),
    Case("nobody", f"select drain_worker({OWN})", "VS401"),
    *[Case(who, f"select drain_worker({WORKER})", audit="worker.drained", then=worker("status = 'draining'")) for who in ("super", "operator")],
    Case("super", f"select drain_worker({OWN})", "VS404"),
    Case("operator", f"select drain_worker({OWN}, p_tenant_id => '{{a}}')", then=worker("status = 'draining'", OF_A)),
    # strategies
    Case("admin", SET % "", audit="routing.strategy_set", then=MADE % "a"),
    *[Case(who, SET % "", then=MADE % "platform") for who in ("super", "operator")],
    Case("operator", SET % ", p_tenant_id => '{a}'", then=MADE % "a"),
    Case("user", SET % "", "VS403"),
    Case("nobody", SET % "", "VS401"),
    Case("admin", SET % ", p_tenant_id => '{b}'", "VS404"),
    Case("admin", SET % """, p_config => '{"odd": 1}'""", "VS400 sticky has no setting odd"),
    Case("admin", "select set_routing_strategy('made', 'odd')", "VS400"),
    Case("admin", SET % ", p_pool => 'twinpool'", then=MADE % "a"),
    Case("admin", SET % ", p_pool => 'mine'", "VS409", "update routing_strategies set pool = 'mine' where tenant_id = '{a}' and slug = '{word}'"),
    Case("admin", "select set_routing_strategy('{word}', 'fallback', p_description => 'new')",
         then="(select kind = 'fallback' and description = 'new' from routing_strategies where tenant_id = '{a}' and slug = '{word}')"),
    Case("keeper", "select (vanilla.pool_strategy('{a}', 'worker', 'twinpool')) is null", "= (t)"),
    Case("keeper", "select (vanilla.pool_strategy('{a}', 'worker', 'default')).slug", "= (capacity_aware)"),
    Case("keeper", "select (vanilla.pool_strategy('{a}', 'worker', 'default')) is null", "= (t)",
         "update routing_strategies set status = 'disabled' where tenant_id = '{platform}' and slug = 'capacity_aware'"),
    # decisions
    Case("admin", ROUTE % ("{word}", f", {LOAD}", "chosen"), "= (y)",
         then=LATEST % "strategy = '{word}' and kind = 'least_loaded' and chosen = 'y' and actor_id = '{admin}'"),
    Case("operator", ROUTE % ("{word}", f", {LOAD}, p_tenant_id => '{{a}}'", "chosen"), "= (y)", then=f"{DECISIONS} = 2"),
    Case("admin", ROUTE % ("{word}", f", {LOAD}", "chosen"), "VS404",
         "update routing_strategies set status = 'disabled' where tenant_id = '{a}' and slug = '{word}'"),
    Case("admin", ROUTE % ("twin-only", f", {LOAD}", "chosen"), "VS404"),
    Case("admin", ROUTE % ("latency", f", {LOAD}", "chosen"), "= (y)"),
    Case("admin", ROUTE % ("latency", "", "chosen"), "VS400"),
    Case("admin", ROUTE % ("{word}", ", to_jsonb(repeat('x', 1048577))", "chosen"), "VS400 candidates have at most"),
    Case("admin", ROUTE % ("{word}", ", '5'", "chosen"), "VS400"),
    # of the tenant's own workers, without any of the others'
    Case("admin", ROUTE % ("least_loaded", "", "chosen"), "= ({own_worker})", state("active", OF_A) + "; update worker_registry set heartbeat_at = vanilla.clock()"
         f" where {OF_A}", then="jsonb_array_length(" + LATEST % "candidates" + ") = 1"),
    Case("super", ROUTE % ("least_loaded", "", "chosen"), "= ({worker})", "update worker_registry set in_flight = capacity where id = '{agents_worker}'"),
    Case("user", ROUTE % ("{word}", f", {LOAD}", "chosen"), "VS403"),
    Case("nobody", ROUTE % ("{word}", f", {LOAD}", "chosen"), "VS401"),
    Case("admin", ROUTE % ("{word}", f", {LOAD}, p_tenant_id => '{{b}}'", "chosen"), "VS404"),
    Case("admin", EXPLAIN % ("", "strategy"), "= ({word})"),
    Case("admin", EXPLAIN % ("", "replayed"), "= (true)"),
    Case("operator", EXPLAIN % (", '{a}'", "strategy"), "= ({word})"),
    *[Case(who, EXPLAIN % ("", "strategy"), "VS404") for who in ("super", "operator")],
    Case("admin", "select explain_routing('{b_decision}')", "VS404"),
    Case("user", EXPLAIN % ("", "strategy"), "VS403"),
    Case("nobody", EXPLAIN % ("", "strategy"), "VS401"),
    Case("keeper", "select vanilla.decide_routing('{a}', vanilla.routing_strategy('{a}', '{word}'), '[]') ->> 'decision_id'", "= ()", then=f"{DECISIONS} = 1"),
    Case("keeper", "select vanilla.decide_routing('{a}', vanilla.routing_strategy('{a}', '{word}'), '[]') ->> 'decision_id' is not null", "= (t)",
         "update routing_strategies set explain = true where tenant_id = '{a}' and slug = '{word}'", then=f"{DECISIONS} = 2"),
    *[Case("keeper", f"select vanilla.route({arguments})", "VS400") for arguments in ("'{}', '[]'", """'{"kind": "sticky"}', '{}'""")],
    # the queue: held for nobody when nobody is eligible, and put back
    Case("keeper", PLACE, "= (1)"),
    Case("keeper", PLACE, "= (0)", HELD, then="(select count(*) from workflow_queue where tenant_id = '{a}' and pool = 'default@' and held_until > vanilla.clock()) = 1"
         " and not exists (select from workflow_queue where tenant_id = '{twin}' and strpos(pool, '@') > 0)"),
    Case("runtime", "select vanilla.tend_workflows(1)", "= (1)", PUT_BACK,
         then="(select count(*) from workflow_queue where tenant_id = '{a}' and pool = 'default' and held_until is null) = 1"),
    # what people may see
    *[Case("admin", f"select count(distinct tenant_id) from {table}", "= (1)")
      for table in ("worker_registry", "worker_event_logs", "routing_metrics", "routing_decisions")],
    *[Case("user", f"select count(*) from {table}", "= (0)")
      for table in ("worker_registry", "worker_event_logs", "routing_metrics", "routing_decisions")],
    Case("user", "select count(distinct tenant_id) from routing_strategies", "= (2)"),
]  # fmt: skip
