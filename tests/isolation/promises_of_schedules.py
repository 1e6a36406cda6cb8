"""Promises of the section schedules of 002: the platform's rows are run and changed, another tenant's of that name never."""

from tests.isolation.promises import Case


def last(name: str) -> str:
    """Puts the platform's row behind the twin's, in the heap too: a statement that forgets the tenant finds the twin's."""
    return (
        f"with gone as (delete from schedules where tenant_id = '{{platform}}' and name = '{name}' returning *)"
        " insert into schedules select * from gone"
    )


def job(expression: str, name: str) -> str:
    return f"(select {expression} from schedules where tenant_id = '{{platform}}' and name = '{name}')"


QUIET = "update schedules set next_run_at = vanilla.clock() + interval '1 s' where tenant_id = '{platform}'"
HOLDS = "update schedules set next_run_at = vanilla.clock() where tenant_id = '{platform}' and name = 'holds'"
LATE = "update schedules set last_run_at = vanilla.clock() - interval '9 days' where tenant_id = '{platform}' and name = 'retention'"
THROTTLES = (
    "insert into sign_in_throttles select '{a}', sha256(n::text::bytea), 1, '2020-01-01' from generate_series(1, 3) n;"
    " update schedules set part_size = 1 where tenant_id = '{platform}' and name = 'sign_ins'"
)
PART = "select vanilla.run_schedule_part('%s') ->> '%s'"
HELD = "select set_config('t.held', vanilla.begin_schedule('log_export')::text, true)"
SCHEDULES = [
    Case("runtime", "select jsonb_array_length(vanilla.due_schedules() -> 'due')", "= (1)", f"{QUIET}; {HOLDS}"),
    Case("runtime", "select vanilla.due_schedules() #>> '{due,0,name}'", "= (holds)", f"{QUIET}; {HOLDS}"),
    Case("runtime", "select (vanilla.due_schedules() ->> 'next_in_s')::float", "= (1)", QUIET),
    Case("runtime", PART % ("holds", "ran"), "= (true)", last("holds"), then=job("last_run_at = vanilla.clock() and failures = 0", "holds")),
    Case("runtime", PART % ("holds", "ran"), "= (false)", QUIET),
    Case("runtime", PART % ("twin_job", "ran"), "= (false)"),
    Case("runtime", PART % ("monthly_reset", "error"), "= ()", then=job("last_error is null", "monthly_reset")),
    Case("runtime", PART % ("sign_ins", "more"), "= (true)", f"{THROTTLES}; {last('sign_ins')}",
         then=job("started_at is not null and progress ->> 'throttles' = '1'", "sign_ins")),
    Case("runtime", PART % ("retention", "ran"), "= (false)", f"{LATE}; {last('retention')}", then=job("held_since = vanilla.clock()", "retention")),
    Case("runtime", PART % ("webhook_deliveries", "error"), '= ("the setting retention.webhook_deliveries_days is not a number of days, so nothing is removed")',
         "delete from system_configurations where tenant_id = '{platform}' and key = 'retention.webhook_deliveries_days'",
         then=job("failures = 1", "webhook_deliveries")),
    *[Case("runtime", PART % (name, "more"), "= (false)") for name in ("history", "tenant_tokens", "feature_usage", "workflow_history")],
    # a row of the platform's that this suite made is of January: all days since would be rolled up
    Case("runtime", "select vanilla.tick()", "= (f)", "update schedules set enabled = name <> 'level_analytics' where tenant_id = '{platform}'", then=job("last_run_at = vanilla.clock()", "grants")),
    Case("runtime", "select vanilla.begin_schedule('log_export')", "= (t)"),
    Case("runtime", "select vanilla.begin_schedule('holds')", "= (f)"),
    Case("runtime", "select vanilla.finish_schedule('log_export', 5, '{}')", "VS409"),
    Case("runtime", "select vanilla.finish_schedule('log_export', 5, '{}')", given=f"{last('log_export')}; {HELD}",
         then=job("last_duration_ms = 5", "log_export")),
    *[Case(who, "select count(*) from list_schedules()", "= (23)") for who in ("super", "operator")],
    *[Case(who, statement, "VS403 schedules are the platform") for who in ("admin", "user", "service", "opened") for statement in (
        "select name from list_schedules()", "select set_schedule('holds', false)", "select request_schedule('holds')")],
    *[Case("nobody", statement, "VS401") for statement in (
        "select name from list_schedules()", "select set_schedule('holds', false)", "select request_schedule('holds')")],
    *[Case(who, "select set_schedule('holds', false)", given=last("holds"), then=job("not enabled", "holds"), audit="schedule.changed")
      for who in ("super", "operator")],
    Case("super", "select set_schedule('holds', true)", given="update schedules set failures = 3 where name = 'holds' and tenant_id = '{platform}'",
         then=job("enabled and failures = 0", "holds")),
    Case("super", "select set_schedule('holds', p_period => '1 month')", "VS400"),
    Case("super", "select set_schedule('twin_job', false)", "VS404"),
    Case("super", "select request_schedule('holds')", given=last("holds"), then=job("requested_at is not null", "holds"), audit="schedule.requested"),
    Case("super", "select request_schedule('twin_job')", "VS404"),
    Case("operator", "select vanilla.use_pg_cron()", "VS409"),
]  # fmt: skip

ERASED = (
    "update users set status = 'deleted' where tenant_id = '{a}' and id = '{other}';"
    " update user_token_holds set state = 'released', closed_at = vanilla.clock() where tenant_id = '{a}' and user_id = '{other}' and state = 'open';"
    " update user_token_wallets set status = 'suspended', reserved_tokens = 0 where tenant_id = '{a}' and user_id = '{other}'"
)
OVER = "update tenants set status = 'closed', erase_at = vanilla.clock() where id = '{a}'"
EMPTY = f"{OVER}; update users set status = 'deleted' where tenant_id = '{{a}}'"
PERSONS = "exists (select from users where tenant_id = '{a}' and status <> 'deleted')"
CLOSED = "select vanilla.run_schedule_part('closings') #>> '{figures,wallets}'"
CLOSINGS = [
    Case("runtime", CLOSED, "= (1)", ERASED,
         then="(select status = 'closed' and available_tokens = 0 from user_token_wallets where tenant_id = '{a}' and user_id = '{other}')"
              " and (select status = 'active' from user_token_wallets where tenant_id = '{a}' and user_id = '{user}')"),
    # a call is under way; an admin's suspension is no erasure
    Case("runtime", CLOSED, "= (0)", ERASED.replace("{other}", "{user}").split(";")[0]
         + "; update user_token_wallets set status = 'suspended' where tenant_id = '{a}' and user_id = '{user}'"),
    Case("runtime", CLOSED, "= (0)", ERASED.partition(";")[2] + "; update users set status = 'deleted' where tenant_id = '{twin}' and id = '{other}'"),
    Case("runtime", CLOSED, "= (0)", ERASED.replace("'suspended'", "'closed'")),
    Case("runtime", PART % ("closings", "more"), "= (true)", OVER, then=f"not {PERSONS}", audit="user.erased"),
    Case("runtime", PART % ("closings", "more"), "= (false)", OVER.replace("vanilla.clock()", "vanilla.clock() + interval '1 s'"), then=PERSONS),
    Case("runtime", PART % ("closings", "more"), "= (false)", f"{OVER}; update tenants set erased_at = vanilla.clock() where id = '{{a}}'", then=PERSONS),
    Case("runtime", "select vanilla.run_schedule_part('closings') #>> '{figures,tenants}'", "= (1)",
         f"{EMPTY}; update schedules set part_size = 1000 where tenant_id = '{{platform}}' and name = 'closings'", audit="tenant.erased",
         then="(select erased_at is not null and name = slug from tenants where id = '{a}')"
              " and not exists (select from webhook_endpoints where tenant_id = '{a}')"
              " and not exists (select from webhook_attempts where tenant_id = '{a}')"
              " and not exists (select from system_configurations where tenant_id = '{a}')"
              " and not exists (select from ai_providers where tenant_id = '{a}' and (secret is not null or secret_hint is not null))"
              " and (select count(distinct tenant_id) from audit_logs where action = 'tenant.erased' and target_id = '{a}') = 2"),
]  # fmt: skip

OLD = (
    # one month alone: ensure_partitions would look after every log
    "set local role vanilla_owner; create table public.ai_executions_202501 partition of public.ai_executions"
    " for values from ('2025-01-01 00:00:00+00') to ('2025-02-01 00:00:00+00');"
    " select vanilla.repair_protection('public.ai_executions_202501'); reset role;"
    " insert into ai_executions (tenant_id, created_at, user_id, provider, model, status)"
    " values ('{a}', '2025-01-15 12:00+00', '{user}', 'p', 'm', 'succeeded')"
)
EXPORT = "update system_configurations set value = 'true' where tenant_id = '{platform}' and key = 'retention.export'"
RECORD = "select vanilla.record_log_export('ai_executions', '2025-01-01', %s, 5, sha256('x'), 'x')"
RETENTION = "select vanilla.run_schedule_part('retention') #>> '{figures,months_dropped}'"
GONE = "to_regclass('public.ai_executions_202501') is null"
LEAVING = [
    Case("operator", "select action, rows from vanilla.preview_retention()", "= (drop,1)", OLD),
    Case("operator", "select log_table, month from vanilla.months_to_export()", "= (ai_executions,2025-01-01)", f"{OLD}; {EXPORT}"),
    Case("operator", "select log_table from vanilla.months_to_export()", "= ", OLD),
    Case("runtime", RETENTION, "= (1)", OLD, then=GONE, audit="retention.dropped"),
    Case("runtime", RETENTION, "= ()", f"{OLD}; {EXPORT}", then=f"not {GONE}"),
    Case("runtime", RETENTION, "= (1)", f"{OLD}; {EXPORT}; {RECORD % 1}",
         then=f"{GONE} and (select dropped_at is not null from log_exports where tenant_id = '{{platform}}')"),
    # a row came in since: nothing is dropped, and it waits to be exported again
    Case("runtime", RETENTION, "= ()", f"{OLD}; {EXPORT}; {RECORD % 0}",
         then=f"not {GONE} and not exists (select from log_exports where tenant_id = '{{platform}}')"),
    Case("operator", RECORD % 1, given=f"{OLD}; {EXPORT}", audit="retention.exported",
         then="(select rows = 1 from log_exports where tenant_id = '{platform}' and month = '2025-01-01')"),
    Case("operator", RECORD % 1, "VS409", OLD),
    Case("keeper", "select vanilla.drop_log_month('public.ai_executions_default', '2199-01-01')", "VS409"),
    Case("keeper", "select vanilla.drop_log_month('public.ai_executions_202501', '2025-01-31+00')", "VS409", OLD),
    Case("keeper", "select vanilla.drop_log_month('public.ai_executions_202501', '2025-02-01+00', 2)", "= ()", OLD, then=f"not {GONE}"),
    Case("keeper", "select vanilla.delete_log_rows('public.users', '2199-01-01', 1)", "VS409"),
    Case("keeper", "select vanilla.delete_log_rows('public.ai_executions_202501', '2025-01-16+00', 9)", "= (1)", OLD),
    Case("keeper", "select vanilla.delete_log_rows('public.ai_executions_202501', '2025-01-15+00', 9)", "= (0)", OLD),
]  # fmt: skip

CASES = [*SCHEDULES, *CLOSINGS, *LEAVING]
