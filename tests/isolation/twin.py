"""A third tenant whose rows have the ids of A's: nothing but the comparison of tenants tells them apart.

Ids are unique within a tenant only, so this may be; it makes visible what random ids would hide, a statement that
names the id and forgets the tenant. The twin's rows come first, in the heap and in every index.
"""

from graphlib import TopologicalSorter

import asyncpg

from tests.isolation.catalog import Table
from tests.isolation.rows import World

TWIN = "00000000-0000-7000-8000-0000000000ee"
WORD = "twin7c0ffee"
DIFFERENT = {
    # a role, a state or a name of the twin's must never be taken for A's
    "users": "role = case role when 'admin' then 'user' else 'admin' end, display_name = '{word}'",
    "tenants": "name = '{word}', time_zone = 'Pacific/Kiritimati', subscription_tier = 'premium'",
    "user_token_wallets": "enforcement_mode = 'monitor'",
    "level_token_policies": "base_allocation = 7, monthly_allocation = 7777777, rollover_percent = 100",
    "user_token_ledger": "hash = sha256(hash), available_after = available_after + 5",
    "level_features": "name = '{word}', usage_limit = null, period = null, enabled = not enabled",
    "level_feature_usage": "used = 5, usage_limit = null",
    "level_feature_keys": "feature = '{word}'",
    "levels": 'restrictions = \'{"requests_per_minute": 0, "api_keys": 0, "workflows": 0, "agents": 0}\'',
    "level_restrictions": "amount = case when amount is not null then 7 end",
    "user_rate_windows": "minute_requests = 500000000, day_requests = 500000000",
    "level_pricing": "amount = 7777777, trial_days = 77",
    "level_benefits": "text = '{word}'",
    "user_level_changes": "kind = 'left'",
    "level_analytics": "level = '{word}', users = 7777777",
    "tenant_token_months": "spent_before = spent_before - 7777777",
    "payment_accounts": "secret = '\\x77', webhook_secret = '\\x77', stripe_account = '{word}', grace_days = 77",
    "payment_customers": "payment_method = '{word}'",
    "payment_prices": "name = '{word}', amount = 7777777, tokens = case when tokens is not null then 7 end",
    "payment_subscriptions": "state = 'active'",
    "payment_reversals": "amount = 7, currency = 'TWN'",
    "level_upgrade_paths": "discount_percent = 77, timing = 'period_end', self_service = not self_service",
    "user_subscriptions": "amount = 7777777, agreed = '{}', allowances = '{}'",
    "level_changes": "terms = '{}'",
    "level_invoice_lines": "payment_reference = '{word}'",
    "ai_engines": "name = '{word}', default_access = 'none', status = 'retired'",
    "engine_versions": "state = 'retired', retired_at = now(), config = config || jsonb_build_object('parameters',"
    " jsonb_build_object(), 'word', '{word}'), hash = sha256(convert_to((config || jsonb_build_object('parameters',"
    " jsonb_build_object(), 'word', '{word}'))::text, 'UTF8'))",
    "engine_aliases": "version = 2, earlier = '{2}', weight = 100",
    "level_engines": "access = 'none'",
    "engine_assignments": "priority = 77, pin_version = null, pin_alias = null",
    "user_engines": 'overlay = \'{"word": "{word}"}\', version = 2, is_default = true',
    "engine_executions": "alias = 'canary', estimate_p50 = 7777777, estimate_p95 = 7777777",
    "ai_workflows": "name = '{word}', draft = '{\"nodes\": []}', revision = revision + 70, latest_version = 77",
    "workflow_versions": "state = 'retired', retired_at = now(), definition = '{}', hash = sha256('{}')",
    "workflow_nodes": "name = '{word}' || node, kind = '$end', pool = '{word}', attempts = 77, timeout_s = 7777,"
    " retry_node = null, settings = '{\"output\": 1}'",
    "workflow_executions": "input = jsonb_build_object('word', '{word}'), output = '\"{word}\"', depth = 5,"
    " charged_tokens = 7777777,"
    " priority = 9, request_hash = sha256(request_hash), hold_id = null",
    "workflow_steps": "output = '\"{word}\"', charged_tokens = 7777777, attempts = 7, round = 7, taken = 7,"
    ' undecided = 7, items_left = 7, state = \'{"check": true, "escalated": 1}\', value = \'"{word}"\'',
    # with another worker, and in a pool of its own
    "workflow_queue": "pool = '{word}', rank = rank - 7, worker = case when worker is not null then tenant_id end",
    "workflow_timers": "due_at = '2199-01-01'",
    "workflow_signals": "payload = '\"{word}\"'",
    "workflow_approvals": "title = '{word}', approvers = '{role:admin,role:user}', quorum = 1, comment = '{word}'",
    "workflow_approval_votes": "comment = '{word}'",
    "quality_gate_results": "score = 0, threshold = 0, passed = not passed, charged_tokens = 7777777",
    "workflow_shares": "weight = 77, max_running = 1",
    "workflow_schedules": "cron = '7 7 7 7 7', input = '{\"word\": \"{word}\"}', catch_up = 'all'",
    "resource_allocations": "state = 'closed', closed_at = now(), carved_tokens = 0, held_tokens = 0,"
    " budget_tokens = 7777777, overrun_tokens = 7, max_requests = 1, requests = 1, max_tool_calls = 1, tool_calls = 1,"
    " max_concurrent = 1, open_holds = 1",
    "allocation_holds": "state = 'settled', closed_at = now(), settled = 7, overrun = 0, call = '{}'",
    "protocol_agreements": "name = '{word}', status = 'terminated', open_version = null, violations = 7777777",
    "agreement_versions": "terms = jsonb_build_object('word', '{word}', 'acts', '{}'::jsonb),"
    " hash = sha256(convert_to(jsonb_build_object('word', '{word}', 'acts', '{}'::jsonb)::text, 'UTF8'))",
    "agreement_acceptances": "hash = sha256('{word}')",
    "agreement_violations": "message = '{word}'",
    "communication_channels": "name = '{word}', status = 'closed', closed_at = now(),"
    " last_seq = 7777777, max_messages = null",
    "channel_participants": "kind = 'user', cursor_seq = 0,"
    " lease_seq = case when lease_seq is not null then 7777777 end",
    "channel_messages": "body = '\"{word}\"', ended_by = 7777777, performative = 'cfp'",
    "channel_dead_letters": "error = '{word}'",
    "agents": "name = '{word}', description = '{word}', status = 'retired', latest_version = 77, shared = not shared",
    "agent_versions": "definition = '{}', hash = sha256('{}'), shared = not shared",
    "agent_runs": "state = 'failed', stop_reason = 'failed', finished_at = now(), turns = 70, tool_calls = 70,"
    ' children = 7777777, charged_tokens = 7777777, limits = \'{"turns": 0, "depth": 0}\'',
    "agent_run_steps": "name = '{word}', result = '{\"word\": \"{word}\"}', status = 'refused', finished_at = now(),"
    " charged_tokens = 7777777",
    "agent_run_state": "value = '\"{word}\"', version = 7777777",
    "run_artifacts": "content = '{word}', media_type = 'text/{word}'",
    "contract_calls": "task = '\"{word}\"', rule = 'score', state = 'open', closed_at = null",
    "contract_bids": "state = 'failed', price_tokens = 7777777, plan = '{word}'",
    "usage_events": "ok = not ok, latency_ms = 7777777, charged_tokens = 7777777, cost_micros = 7777777",
    "resource_performance_metrics": "calls = 7777777, latency_ms_sum = 7777777, charged_tokens = 7777777",
    "resource_health": "ok_share = 0, latency_ms = 7777777",
    "system_metrics": "value = 7777777",
    "ai_providers": "name = '{word}', secret = '\\x77'",
}


async def plant(connection: asyncpg.Connection, world: World) -> None:
    """Copies every row of A to the twin, in the caller's transaction; hashes that find a tenant are its own."""
    tables = {t.name: t for t in world.tables if not t.parent}
    order = TopologicalSorter({t.name: {k.target for k in t.foreign_keys} - {t.name} for t in tables.values()})
    await connection.execute("set local session_replication_role = replica")
    for name in order.static_order():
        await _copy(connection, tables[name], world)
    await connection.execute("set local session_replication_role = origin")


async def _copy(connection: asyncpg.Connection, table: Table, world: World) -> None:
    changes = [f"'tenant_id', '{TWIN}'::uuid"]
    for column in table.columns:
        if column.name in table.unique_columns and column.type == "bytea":
            changes.append(f"'{column.name}', sha256(x.{column.name})")
        elif column.name in ("engine_tenant_id", "origin_tenant_id"):
            changes.append(f"'{column.name}', case when x.{column.name} is not null then '{TWIN}'::uuid end")
        elif column.name in ("provider_tenant_id", "account_tenant_id") or (
            table.name == "tenants" and column.name == "id"
        ):
            changes.append(f"'{column.name}', '{TWIN}'::uuid")
    if table.name == "tenants":
        changes.append(f"'slug', '{WORD}'")
    names = ", ".join(c.name for c in table.columns)
    await connection.execute(
        f"insert into public.{table.name} ({names}) select {names} from (select (jsonb_populate_record("
        f"null::public.{table.name}, to_jsonb(x) || jsonb_build_object({', '.join(changes)}))).*"
        f" from public.{table.name} x where tenant_id = '{world.a.id}') s"
    )
    if table.name in DIFFERENT:
        change = DIFFERENT[table.name].replace("{word}", WORD)
        await connection.execute(f"update public.{table.name} set {change} where tenant_id = '{TWIN}'")
    # A's rows again, behind the twin's
    await connection.execute(
        f"with gone as (delete from public.{table.name} where tenant_id = '{world.a.id}' returning *)"
        f" insert into public.{table.name} ({names}) select {names} from gone"
    )
