"""Every function that a login may execute, called by tenant A with B's ids in each uuid argument."""

import json
import re
import uuid
from dataclasses import dataclass
from itertools import combinations

import asyncpg
import pytest

from tests.isolation.canaries import alike
from tests.isolation.catalog import LOGINS
from tests.isolation.conftest import accepted
from tests.isolation.contexts import Context, contexts, enter
from tests.isolation.matrix import Notices, listening, rolled_back, undone
from tests.isolation.rows import World

OPEN_HOLD = (
    "select id from user_token_holds where tenant_id = $1 and user_id = $2 and state = 'open'"
    " and coalesce(reference_type, '') not in ('workflow_execution', 'resource_allocation') order by call is "
)
RUNNING = (
    "select id from workflow_executions where tenant_id = $1 and user_id = $2 and status = 'running' and slot_held"
    " and exists (select from ai_workflows w where w.id = workflow_id and w.user_id is not null)"
)
BUDGET = "select id from resource_allocations where tenant_id = $1 and user_id = $2 and "
STEP = "select id from allocation_holds where tenant_id = $1 and user_id = $2 and state = 'open' order by id"
ANOTHER_LEVEL = "select id from levels where tenant_id = $1 and not is_default order by tier limit 1"
IDS = {
    "p_tenant_id": "select $1::uuid",
    "p_user_id": "select $2::uuid",
    "p_level_id": "select id from levels where tenant_id = $1 and is_default",
    "p_grant_id": "select id from user_token_grants where tenant_id = $1 and user_id = $2 and state = 'active' limit 1",
    "p_key_id": "select id from api_keys where tenant_id = $1 and user_id = $2",
    "p_provider_id": "select id from ai_providers where tenant_id = $1 limit 1",
    "p_execution_id": "select id from ai_executions where tenant_id = $1 limit 1",
    "p_reference_id": OPEN_HOLD + "not null limit 1",
    "p_hold_id": OPEN_HOLD + "not null limit 1",
    "vanilla.settle_call.p_hold_id": OPEN_HOLD + "null limit 1",
    "p_endpoint_id": "select id from webhook_endpoints where tenant_id = $1 and execution_id is null",
    "public.create_webhook_endpoint.p_endpoint_id": "select gen_random_uuid()",
    "public.set_task_notification.p_endpoint_id": "select gen_random_uuid()",
    "p_delivery_id": "select id from webhook_deliveries where tenant_id = $1 and lease_id is not null limit 1",
    "p_price_id": "select id from level_pricing where tenant_id = $1 limit 1",
    "public.delete_level.p_level_id": "select id from levels where tenant_id = $1 and slug <> 'free' and not is_default"
    " and id not in (select level_id from payment_prices where tenant_id = $1 and level_id is not null) limit 1",
    "p_from_level_id": "select id from levels where tenant_id = $1 and is_default",
    "p_to_level_id": ANOTHER_LEVEL,
    "public.change_user_level.p_level_id": ANOTHER_LEVEL,
    "public.preview_level_change.p_level_id": ANOTHER_LEVEL,
    "p_lease_id": "select lease_id from webhook_deliveries where tenant_id = $1 and lease_id is not null limit 1",
    "vanilla.finish_top_up.p_lease_id": "select lease_id from payments where tenant_id = $1 and user_id = $2"
    " and lease_id is not null",
    "p_payment_id": "select id from payments where tenant_id = $1 and user_id = $2 and lease_id is not null",
    "p_account_id": "select id from payment_accounts where tenant_id = $1",
    "p_customer_key": "select id from payment_customers where tenant_id = $1 limit 1",
    "public.begin_checkout.p_price_id": "select id from payment_prices where tenant_id = $1 and kind = 'pack'",
    "public.set_auto_top_up.p_price_id": "select id from payment_prices where tenant_id = $1 and kind = 'pack'",
    "p_worker_id": "select id from worker_registry where tenant_id = $1 limit 1",
    "p_decision_id": "select id from routing_decisions where tenant_id = $1 and kind = 'least_loaded' limit 1",
    "p_workflow_id": "select w.id from ai_workflows w where w.tenant_id = $1 and w.user_id = $2 and not exists"
    " (select from workflow_executions e where e.tenant_id = w.tenant_id and e.workflow_id = w.id)"
    " order by w.id limit 1",
    "public.gate_statistics.p_workflow_id": RUNNING.replace("id", "workflow_id", 1),
    **{f"public.{verb}_execution.p_execution_id": RUNNING for verb in ("cancel", "pause", "resume", "signal")},
    "public.execution_progress.p_execution_id": RUNNING,
    **{
        f"public.{name}.p_execution_id": "select execution_id from webhook_endpoints k join workflow_executions e"
        " on e.tenant_id = k.tenant_id and e.id = k.execution_id where k.tenant_id = $1 and e.user_id = $2"
        for name in ("set_task_notification", "delete_task_notification", "task_notifications")
    },
    "public.execution_step.p_execution_id": RUNNING,
    "vanilla.task_state.p_execution_id": RUNNING,
    "public.restart_execution.p_execution_id": "select id from workflow_executions where tenant_id = $1"
    " and user_id = $2 and status = 'failed'",
    "p_engine_id": "select id from ai_engines where tenant_id = $1",
    "p_assignment_id": "select id from engine_assignments where tenant_id = $1 and user_id = $2",
    "p_copy_id": "select id from user_engines where tenant_id = $1 and user_id = $2",
    "p_target_id": "select $2::uuid",
    "p_allocation_id": BUDGET + "parent_id is not null",
    "p_parent_id": BUDGET + "parent_id is null limit 1",
    **{f"public.allocation_{verb}.p_hold_id": STEP for verb in ("settle", "release")},
    "p_channel_id": "select id from communication_channels where tenant_id = $1"
    " and user_id = $2 and agreement_id is not null",
    "p_participant_id": "select id from channel_participants where tenant_id = $1"
    " and user_id = $2 and lease_token is not null",
    "p_agreement_id": "select id from protocol_agreements where tenant_id = $1 and user_id = $2",
    "p_run_id": "select id from workflow_executions where tenant_id = $1 limit 1",
    "p_token": "select lease_token from channel_participants where tenant_id = $1"
    " and user_id = $2 and lease_token is not null",
    "p_to": "select p.id from channel_participants p where tenant_id = $1 and user_id = $2 and name like '%-n'",
    "public.channel_receive.p_participant_id": "select id from channel_participants where tenant_id = $1"
    " and user_id = $2 and name like '%-c'",
    "public.channel_floor.p_channel_id": "select id from communication_channels where tenant_id = $1 and user_id = $2"
    " and floor_policy is not null",
    "public.channel_floor.p_participant_id": "select id from channel_participants where tenant_id = $1 and user_id = $2"
    " and manages",
    "public.deploy_engine.p_workflow_id": "select workflow_id from engine_versions where tenant_id = $1 limit 1",
    "p_agent_id": "select id from agents where tenant_id = $1 and user_id = $2 order by id limit 1",
    "p_approval_id": "select id from workflow_approvals where tenant_id = $1 and user_id = $2",
    "p_schedule_id": "select id from workflow_schedules where tenant_id = $1 and user_id = $2 order by id limit 1",
    "p_worker": "select id from worker_registry where tenant_id = vanilla.platform() and name = 'of the world'",
}
"""Where the ids of a tenant for an argument of this name come from: $1 the tenant, $2 its user."""

OK = "ok"
PASSWORD = "'$argon2id$other'"

ASKED = {
    "p_model": "'sandbox-small'",
    "p_prompt_tokens": "1",
    "p_sandbox_prompt_tokens": "1",
    "p_output_limit": "1",
    "p_choices": "1",
    "p_streamed": "false",
    "p_ttl": "'60 s'",
}
"""A model call, for who admits it."""
CALLS: dict[str, tuple[str, dict[str, str]]] = {
    # functions of people: what A's admin gets with A's own ids, and the arguments that are not ids
    "public.get_current_tenant_id": (OK, {}),
    "public.get_current_user_id": (OK, {}),
    "vanilla.current_tenant_id": (OK, {}),
    "vanilla.current_user_id": (OK, {}),
    "vanilla.current_user_role": (OK, {}),
    "vanilla.claim": (OK, {"p_index": "3"}),
    "vanilla.clock": (OK, {}),
    "vanilla.uuid7": (OK, {}),
    "vanilla.platform": (OK, {}),
    "vanilla.refuse": ("VS400", {"p_sqlstate": "'VS400'", "p_message": "'no'"}),
    "vanilla.set_context": ("VS401", {"p_token": "'{forged}'"}),
    "public.create_tenant": ("VS403", {"p_slug": "'another'", "p_name": "'Another'"}),
    "public.set_tenant_status": ("VS403", {"p_status": "'suspended'"}),
    "public.close_tenant": ("VS403", {"p_reason": "'x'"}),
    "public.leave_tenant": ("VS403", {}),
    "public.open_tenant": ("VS403", {"p_reason": "'curious'"}),
    "public.create_user": (OK, {"p_email": "'new@example.test'"}),
    "public.set_display_name": (OK, {"p_name": "'x'"}),
    "public.set_user_role": (OK, {"p_role": "'admin'"}),
    "public.set_user_status": (OK, {"p_status": "'disabled'"}),
    "public.erase_user": (OK, {"p_reason": "'x'"}),
    "public.start_person_export": (OK, {}),
    "public.open_person_rows": (OK, {"p_relation": "'user_token_ledger'"}),
    "vanilla.platform_rows": (OK, {"p_relation": "'sessions'"}),
    "vanilla.person_tenant": (OK, {}),
    "vanilla.person_tables": (OK, {}),
    "vanilla.person_query": (
        OK,
        {"p_relation": "'x'", "p_owners": "'{{x}}'", "p_columns": "'{{x}}'", "p_sorted": "'{{x}}'"},
    ),
    "public.set_user_password": (OK, {"p_password_hash": PASSWORD}),
    "public.issue_one_time_token": (OK, {"p_token_hash": "sha256('x')"}),
    "public.create_api_key": (OK, {"p_name": "'n'", "p_prefix": "'p'", "p_key_hash": "sha256('x')"}),
    "public.revoke_api_key": (OK, {}),
    "public.set_provider_secret": (OK, {"p_secret": "'x'", "p_hint": "'x'"}),
    "public.adjust_user_tokens": (OK, {"p_amount": "10", "p_direction": "'release'"}),
    "public.settle_user_tokens": (OK, {"p_actual": "5"}),
    "public.adjust_user_tokens_batch": (
        OK,
        {"p_operations": '\'[{{"user_id": "00000000-0000-7000-8000-00000000dead", "amount": 1}}]\''},
    ),
    "public.release_token_hold": (OK, {}),
    "public.allocation_open": (OK, {"p_tokens": "5"}),
    "public.allocation_carve": (OK, {"p_tokens": "5"}),
    "public.allocation_hold": (OK, {"p_step": "'new'", "p_tokens": "5"}),
    "public.allocation_settle": (OK, {"p_actual": "5"}),
    "public.allocation_release": (OK, {}),
    "public.allocation_count_tool_call": (OK, {}),
    "public.allocation_close": ("VS409", {}),
    "public.allocation_top_up": (OK, {"p_tokens": "5"}),
    "public.allocation_tree": (OK, {}),
    "public.extend_token_hold": (OK, {"p_expires_at": "now() + interval '1 day'"}),
    "public.grant_user_tokens": (OK, {"p_amount": "5"}),
    "public.void_token_grant": (OK, {"p_reason": "'x'"}),
    "public.set_user_token_policy": (OK, {}),
    "public.refresh_token_wallet": (OK, {}),
    "public.get_user_token_policy": (OK, {}),
    "public.token_statement": (OK, {"p_from": "'2000-01-01'", "p_until": "now()"}),
    "public.token_statement_frame": (OK, {"p_from": "'2000-01-01'", "p_until": "now()"}),
    "public.token_ledger_anchor": (OK, {}),
    "public.verify_token_anchor": (OK, {"p_anchor": "'[]'"}),
    "public.auto_allocate_tokens_for_level": (OK, {}),
    "public.reset_monthly_tokens": ("VS403", {}),
    "public.set_wallet_status": (OK, {"p_status": "'locked'", "p_reason": "'x'"}),
    "public.set_level_token_policy": (OK, {"p_base_allocation": "1", "p_monthly_allocation": "1"}),
    "public.check_feature": (OK, {"p_feature": "'document-analysis'"}),
    "public.consume_feature": (OK, {"p_feature": "'document-analysis'"}),
    "public.set_level_feature": (OK, {"p_feature": "'x'"}),
    "public.delete_level_feature": (OK, {"p_feature": "'document-analysis'"}),
    "public.set_level_restriction": (OK, {"p_type": "'api_keys'", "p_amount": "9"}),
    "public.delete_level_restriction": (OK, {"p_type": "'requests_per_minute'"}),
    "public.set_level": (OK, {"p_slug": "'x'", "p_name": "'x'"}),
    "public.delete_level": (OK, {}),
    "public.set_level_price": (OK, {"p_cycle": "'yearly'", "p_currency": "'CHF'", "p_amount": "1"}),
    "public.end_level_price": (OK, {}),
    "public.set_level_benefits": (OK, {"p_benefits": "'[]'"}),
    "public.roll_up_level_analytics": (OK, {"p_from": "'2026-01-01'", "p_to": "'2026-01-02'"}),
    "public.tenant_plan": (OK, {}),
    "public.set_subscription_tier": ("VS403", {"p_tier": "'basic'"}),
    "public.set_upgrade_path": (OK, {}),
    "public.delete_upgrade_path": (OK, {}),
    "public.preview_level_change": (OK, {"p_currency": "'USD'"}),
    "public.change_user_level": (OK, {"p_currency": "'USD'"}),
    "public.undo_level_change": ("VS409", {}),
    "vanilla.public_pricing": (OK, {"p_tenant": "'{word}'"}),
    "public.validate_workflow": (OK, {"p_definition": "'[]'"}),
    "public.save_workflow": (OK, {"p_slug": "'new'", "p_definition": '\'{{"name": "x"}}\''}),
    "public.publish_workflow": (OK, {}),
    "public.retire_workflow": (OK, {}),
    "public.delete_workflow": (OK, {}),
    "public.set_routing_strategy": (OK, {"p_slug": "'new'", "p_kind": "'sticky'"}),
    "public.route_decision": (OK, {"p_strategy": "'least_loaded'"}),
    "public.explain_routing": (OK, {}),
    "public.drain_worker": (OK, {}),
    # workers are the platform's: nothing of a tenant's is in what they are told
    "vanilla.register_worker": (OK, {"p_name": "'x'", "p_pools": "'{{default}}'", "p_capacity": "1"}),
    "vanilla.heartbeat_worker": (OK, {}),
    "vanilla.worker_allowance": (OK, {"p_n": "1"}),
    "vanilla.drain_worker": (OK, {}),
    "vanilla.stop_worker": (OK, {}),
    "vanilla.bury_workers": (OK, {}),
    "public.deploy_engine": (OK, {"p_slug": "'new'"}),
    "public.set_engine": (OK, {}),
    "public.promote_engine": (OK, {"p_version": "2"}),
    "public.rollback_engine": (OK, {"p_alias": "'canary'"}),
    "public.retire_engine": (OK, {}),
    "public.set_level_engine": (OK, {"p_access": "'read'"}),
    "public.assign_engine": (OK, {"p_target": "'user'"}),
    "public.unassign_engine": (OK, {}),
    "public.resolve_engine": (OK, {}),
    "public.explain_engine": (OK, {}),
    "public.my_engines": (OK, {}),
    "public.fork_engine": (OK, {"p_ref": "'{word}'", "p_slug": "'new'"}),
    "public.rebase_engine_copy": (OK, {"p_to": "'2'"}),
    "public.rebase_engine_copies": (OK, {"p_to": "'2'"}),
    "public.delete_engine_copy": (OK, {}),
    "public.offered_engines": (OK, {}),
    "public.preview_engine": (OK, {"p_ref": "'{word}'"}),
    "public.execute_engine": (OK, {"p_ref": "'{word}'"}),
    "public.create_engine_key": (
        OK,
        {"p_ref": "'{word}'", "p_name": "'n'", "p_prefix": "'p'", "p_key_hash": "sha256('x')"},
    ),
    "public.engine_report": (OK, {"p_from": "'2000-01-01'", "p_until": "now()"}),
    # a key of the scope chat runs no engine
    "vanilla.execute_by_key": ("VS403", {"p_key_hash": "{key}", "p_ref": "null", "p_input": "'{{}}'"}),
    "vanilla.preview_by_key": ("VS403", {"p_key_hash": "{key}", "p_ref": "null", "p_input": "'{{}}'"}),
    "vanilla.begin_engine": (
        OK,
        {
            "p_key_hash": "{key}",
            "p_session_hash": "null",
            "p_ref": "'{word}'",
            "p_input": "'{{}}'",
            "p_idempotency_key": "null",
            "p_begin": "'{{}}'",
            "p_n": "10",
        },
    ),
    "public.agreement_propose": (
        OK,
        {
            "p_name": "'new'",
            "p_party": "'first'",
            "p_content": '\'{{"acts": {{"inform": {{}}}}}}\'',
            "p_parties": "(select jsonb_object_agg(case email when 'user@{word}.test' then 'first' else 'second' end,"
            " id)"
            " from users where email in ('user@{word}.test', 'other@{word}.test'))",
        },
    ),
    # an admin puts no words into a party's mouth
    "public.agreement_respond": ("VS403", {"p_party": "'first'", "p_hash": "null", "p_decision": "'accept'"}),
    "public.agreement_amend": ("VS403", {"p_party": "'first'", "p_content": "'{{}}'"}),
    "public.agreement_withdraw": ("VS403", {"p_party": "'first'"}),
    "public.agreement_suspend": (OK, {}),
    "public.agreement_resume": ("VS409", {}),
    "public.agreement_terminate": (OK, {}),
    "public.agreement_read": (OK, {}),
    "public.my_agreements": (OK, {}),
    "public.channel_open": (
        OK,
        {"p_name": "'x'", "p_kind": "'group'", "p_participants": '\'[{{"name": "a"}}, {{"name": "b"}}]\''},
    ),
    "public.channel_read": (OK, {}),
    "public.channel_history": (OK, {}),
    "public.my_channels": (OK, {}),
    "public.channel_close": (OK, {}),
    "public.channel_send": (OK, {"p_performative": "'inform'", "p_body": "'{{}}'", "p_message_id": "'new'"}),
    "public.channel_receive": (OK, {}),
    "public.channel_ack": (OK, {"p_seq": "1"}),
    "public.channel_nack": (OK, {"p_seq": "1"}),
    "public.channel_floor": (OK, {"p_action": "'give'"}),
    "public.save_agent": (
        OK,
        {"p_slug": "'new'", "p_definition": '\'{{"instructions": "x", "model": "sandbox-small"}}\''},
    ),
    "public.retire_agent": (OK, {}),
    "public.start_agent": (OK, {"p_ref": "'{word}-helper-0'", "p_tokens": "5"}),
    # a worker's lease is what names the tenant: this one is nobody's
    "vanilla.begin_run": ("VS409", {"p_lease": "'{{}}'", "p_ref": "'x'", "p_input": "'{{}}'"}),
    "vanilla.ask_engine": ("VS409", {"p_lease": "'{{}}'", "p_turn": "1", "p_input": "'{{}}'"}),
    "vanilla.record_turn": ("VS409", {"p_lease": "'{{}}'", "p_turn": "1", "p_calls": "'[]'", "p_answer": "'{{}}'"}),
    "vanilla.make_call": ("VS409", {"p_lease": "'{{}}'", "p_n": "1"}),
    "vanilla.record_call": ("VS409", {"p_lease": "'{{}}'", "p_n": "1", "p_status": "'done'", "p_result": "'1'"}),
    "vanilla.record_call_and_admit": (
        "VS409",
        {
            "p_step": "'{{}}'",
            "p_n": "1",
            "p_status": "'done'",
            "p_result": "'1'",
            **ASKED,
        },
    ),
    "public.start_workflow": (OK, {}),
    "public.cancel_execution": (OK, {}),
    "public.pause_execution": (OK, {}),
    "public.resume_execution": ("VS409", {}),
    "public.restart_execution": (OK, {}),
    "public.signal_execution": (OK, {"p_name": "'x'"}),
    "public.decide_approval": (OK, {"p_decision": "'approved'"}),
    "public.my_approvals": (OK, {}),
    "public.execution_progress": (OK, {}),
    "public.set_task_notification": (
        OK,
        {"p_config_id": "'x'", "p_context_id": "'x'", "p_url": "'https://example.com/'", "p_secret": "'x'"},
    ),
    "public.delete_task_notification": (OK, {"p_config_id": "'{word}'"}),
    "public.task_notifications": (OK, {}),
    "vanilla.task_state": (OK, {}),
    "public.gate_statistics": (OK, {"p_from": "'2000-01-01'", "p_until": "now()"}),
    "public.set_workflow_share": ("VS403", {}),
    "public.execution_step": (OK, {"p_node": "'ask'"}),
    "public.replay_executions": (OK, {}),
    "public.set_workflow_schedule": (OK, {"p_name": "'new'", "p_cron": "'0 2 * * *'"}),
    "public.delete_workflow_schedule": (OK, {}),
    # over all tenants: nothing of B's is due
    "vanilla.due_workflow_schedules": (OK, {}),
    "vanilla.fire_workflow_schedule": (
        OK,
        {"p_seen_at": "'2199-01-01Z'", "p_times": "array[now()]", "p_next_at": "'2199-01-02Z'"},
    ),
    # a worker runs the steps of every tenant that are in its pools: none of B's is
    "vanilla.tick_worker": (OK, {"p_done": "'[]'", "p_n": "100"}),
    "vanilla.tick_run": (OK, {"p_done": "'[]'", "p_n": "100"}),
    "vanilla.held_leases": (OK, {}),
    "vanilla.tend_workflows": (OK, {}),
    "vanilla.workflow_plan": (OK, {"p_version": "1"}),
    "vanilla.grants_after_burn": (OK, {}),
    "public.verify_token_ledger": (OK, {}),
    "public.reconcile_token_wallets": (OK, {}),
    "public.token_balance_at": (OK, {"p_at": "now()"}),
    "vanilla.event_types": (OK, {}),
    "vanilla.schema_files": (OK, {}),
    "public.create_webhook_endpoint": (
        OK,
        {"p_url": "'https://example.com/'", "p_event_types": "array['*']", "p_secret": "'x'"},
    ),
    "public.update_webhook_endpoint": (OK, {"p_url": "'https://example.com/'"}),
    "public.rotate_webhook_secret": (OK, {"p_secret": "'x'"}),
    "public.delete_webhook_endpoint": (OK, {}),
    "public.send_test_webhook": (OK, {}),
    "public.redeliver_webhook": (OK, {}),
    # functions of the gateway and the workers: they take a key, a session, a hold or a lease of A
    "vanilla.begin_sign_in": (OK, {"p_tenant": "'{word}'", "p_email": "'user@{word}.test'", "p_ip": "'x'"}),
    "vanilla.finish_sign_in": (
        OK,
        {
            "p_tenant": "'{word}'",
            "p_email": "'user@{word}.test'",
            "p_token_hash": "sha256('x')",
            "p_refresh_hash": "sha256('y')",
            "p_ip": "'x'",
            "p_user_agent": "'x'",
        },
    ),
    "vanilla.fail_sign_in": (OK, {"p_tenant": "'{word}'", "p_email": "'user@{word}.test'"}),
    "vanilla.session_identity": (OK, {"p_token_hash": "{session}"}),
    "vanilla.rotate_session": (
        OK,
        {"p_refresh_hash": "{refresh}", "p_token_hash": "sha256('x')", "p_new_refresh_hash": "sha256('y')"},
    ),
    "vanilla.close_session": (OK, {"p_token_hash": "{session}"}),
    "vanilla.begin_password_change": (OK, {"p_token_hash": "{session}"}),
    "vanilla.change_password": (OK, {"p_token_hash": "{session}", "p_password_hash": PASSWORD}),
    "vanilla.request_password_link": (
        OK,
        {"p_tenant": "'{word}'", "p_email": "'user@{word}.test'", "p_ip": "'x'", "p_token_hash": "sha256('x')"},
    ),
    "vanilla.one_time_token_user": (OK, {"p_token_hash": "sha256('x')"}),
    "vanilla.begin_registration": (OK, {"p_ip": "'x'"}),
    "vanilla.redeem_one_time_token": ("VS411", {"p_token_hash": "sha256('x')", "p_password_hash": PASSWORD}),
    "vanilla.register_user": (
        "VS403",
        {
            "p_tenant": "'{word}'",
            "p_email": "'new@example.test'",
            "p_password_hash": PASSWORD,
            "p_display_name": "''",
        },
    ),
    "vanilla.key_identity": (OK, {"p_key_hash": "{key}"}),
    "vanilla.admit_call": (
        OK,
        {
            "p_key_hash": "{key}",
            "p_session_hash": "null",
            "p_payer": "null",
            **ASKED,
        },
    ),
    "vanilla.settle_call": (
        OK,
        {"p_status": "'succeeded'", "p_input": "1", "p_output": "1", "p_cached": "0", "p_reasoning": "0"},
    ),
    "vanilla.adjust_by_key": (OK, {"p_key_hash": "{admin_key}", "p_amount": "10", "p_direction": "'release'"}),
    "vanilla.run_calls": (OK, {"p_calls": "'[{{}}]'"}),
    "vanilla.quote_call": (
        OK,
        {
            "p_session_hash": "{session}",
            "p_model": "'sandbox-small'",
            "p_prompt_tokens": "1",
            "p_sandbox_prompt_tokens": "1",
            "p_output_limit": "1",
        },
    ),
    "vanilla.list_models": (OK, {"p_key_hash": "{key}"}),
    "vanilla.ensure_partitions": (OK, {}),
    "vanilla.reap_holds": (OK, {}),
    "vanilla.run_maintenance": (OK, {}),
    # a job over all tenants: nothing of B's is due, so it is handed nothing of B's
    "vanilla.claim_webhook_deliveries": (OK, {}),
    "vanilla.finish_webhook_delivery": (OK, {"p_status_code": "200", "p_error": "null", "p_duration_ms": "1"}),
    "vanilla.prune_webhook_deliveries": (OK, {}),
    # the platform's jobs: none names a tenant
    "vanilla.due_schedules": (OK, {}),
    "vanilla.run_schedule_part": (OK, {"p_name": "'sign_ins'"}),
    "vanilla.begin_schedule": (OK, {"p_name": "'log_export'"}),
    "vanilla.finish_schedule": ("VS409", {"p_name": "'log_export'", "p_duration_ms": "1", "p_result": "null"}),
    "vanilla.tick": (OK, {}),
    "public.set_payment_account": (OK, {"p_endpoint": "{endpoint}"}),
    "public.set_payment_price": (
        OK,
        {"p_price_id": "'price_x'", "p_kind": "'level'", "p_name": "'X'", "p_currency": "'USD'", "p_amount": "1"},
    ),
    # the admin has never paid: a customer is made
    "public.begin_payment_portal": (OK, {}),
    "public.begin_checkout": (OK, {}),
    "public.set_auto_top_up": (OK, {"p_threshold": "1", "p_monthly_ceiling": "900"}),
    "vanilla.payment_account": (OK, {"p_endpoint": "{endpoint}"}),
    "vanilla.bind_payment_customer": (OK, {"p_endpoint": "{endpoint}", "p_customer_id": "'cus_x'"}),
    "vanilla.apply_payment_event": (
        OK,
        {
            "p_endpoint": "{endpoint}",
            "p_event": "jsonb_build_object('id', 'evt_x', 'type', 'x', 'created', extract(epoch from now())::bigint,"
            " 'data', '{{\"object\": {{}}}}'::jsonb)",
        },
    ),
    # over all tenants: nothing of B's is due, so it is handed nothing of B's
    "vanilla.claim_top_ups": (OK, {}),
    "vanilla.finish_top_up": (OK, {"p_intent": "null"}),
    "public.list_schedules": ("VS403", {}),
    "public.set_schedule": ("VS403", {"p_name": "'holds'", "p_enabled": "false"}),
    "public.request_schedule": ("VS403", {"p_name": "'holds'"}),
}

CAPABILITIES = {
    "vanilla.settle_call": {"p_tenant_id", "p_hold_id"},
    "vanilla.finish_webhook_delivery": {"p_tenant_id", "p_delivery_id", "p_lease_id"},
    "vanilla.finish_top_up": {"p_tenant_id", "p_payment_id", "p_lease_id"},
    **{f"vanilla.{verb}_worker": {"p_worker"} for verb in ("heartbeat", "drain", "stop")},
    "vanilla.worker_allowance": {"p_worker"},
    "vanilla.workflow_plan": {"p_tenant_id", "p_workflow_id"},
    "vanilla.fire_workflow_schedule": {"p_tenant_id", "p_schedule_id"},
    **{f"vanilla.{name}": {"p_worker"} for name in ("tick_worker", "tick_run", "held_leases", "begin_engine")},
}
"""Arguments that together are the right to act, of functions without a context: B's are tried one at a time."""


POWERS = {
    "public.set_tenant_status",
    "public.set_subscription_tier",
    "public.close_tenant",
    "public.open_tenant",
    "public.reset_monthly_tokens",
    "public.list_schedules",
    "public.set_schedule",
    "public.request_schedule",
    "public.token_ledger_anchor",
    "public.verify_token_anchor",
    "public.set_workflow_share",
}
"""With which a super admin at the platform acts on tenants that they have not opened."""

EMPTY = {
    "vanilla.grants_after_burn",
    "vanilla.session_identity",
    "vanilla.finish_webhook_delivery",
    "vanilla.finish_top_up",
    "vanilla.bind_payment_customer",
    "vanilla.workflow_plan",
    "public.replay_executions",
    "public.my_approvals",
    "public.task_notifications",
    "vanilla.task_state",
    "vanilla.fire_workflow_schedule",
    "vanilla.held_leases",
    "vanilla.tick_run",
    "public.gate_statistics",
    "public.engine_report",
}
"""Functions that answer nothing, instead of refusing, for an id that is not here."""
NOTHING = (
    "[]",
    "[None]",
    "['0']",
    """['{"refused": [], "restarted": []}']""",
    """['{"steps" : [], "stale" : [], "end" : null, "elsewhere" : false}']""",
)
WRITE_DOWN_AN_EXECUTION = {"vanilla.admit_call", "vanilla.adjust_by_key", "public.adjust_user_tokens"}
"""What it is that is paid for, in the caller's own words: nothing looks it up."""

EXPRESSION = re.compile(r"(?:SQL|PL/pgSQL) (?:expression|assignment) .*?\\n(?=PL/pgSQL function)")
"""A line of an error's context that PL/pgSQL leaves out the first time a session evaluates the expression."""

MEMBERS = ("none", "user", "admin", "service", "super admin, opened", "super admin, platform")


@dataclass(frozen=True)
class Function:
    name: str
    ids: tuple[str, ...]
    login: str


async def executable(connection: asyncpg.Connection) -> list[Function]:
    """Functions of schemas public and vanilla that a login may execute, with their uuid arguments."""
    rows = await connection.fetch(
        """
        select p.pronamespace::regnamespace || '.' || p.proname as name, l as login,
            array(select a.name from unnest(p.proargnames, coalesce(p.proargmodes::text[], array_fill('i'::text,
                      array[p.pronargs::int])), p.proargtypes::oid[]) with ordinality a(name, mode, type, n)
                  where a.mode = 'i' and a.type = 'uuid'::regtype order by n) as ids
        from pg_proc p, unnest($1::text[]) l
        where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
          and has_function_privilege(l, p.oid, 'execute') order by 1, 2""",
        list(LOGINS),
    )
    return [Function(r["name"], tuple(r["ids"]), r["login"]) for r in rows]


def undeclared(functions: list[Function]) -> set[str]:
    return {f.name for f in functions} ^ set(CALLS)


async def test_every_executable_function_is_in_the_table(superuser: asyncpg.Connection) -> None:
    functions = await executable(superuser)
    assert undeclared(functions) == set()
    assert len({(f.name, f.login) for f in functions}) == len(functions), "an overloaded name hides a function"
    missing = {i for f in functions for i in f.ids if i not in IDS}
    assert missing == set()


async def test_a_function_that_nobody_declared_fails_the_suite(superuser: asyncpg.Connection) -> None:
    async with undone(superuser):
        await superuser.execute(
            "create function public.stray(p_user_id uuid) returns uuid language sql return p_user_id;"
            " revoke execute on function public.stray(uuid) from public"
        )
        assert undeclared(await executable(superuser)) == set()
        await superuser.execute("grant execute on function public.stray(uuid) to vanilla_runtime")
        assert undeclared(await executable(superuser)) == {"public.stray"}


@pytest.mark.parametrize("member", MEMBERS)
async def test_no_function_touches_or_tells_of_another_tenant(
    world: World, superuser: asyncpg.Connection, member: str
) -> None:
    context = next(c for c in contexts(world) if c.name == member)
    problems: list[str] = []
    calls = 0
    async with undone(superuser), listening(superuser) as notices:
        await superuser.execute(context.given or "select")
        digest = await world.digest(superuser, of_b=True)
        for function in await executable(superuser):
            own, theirs = [{i: await _id(superuser, world, function, i, t) for i in function.ids} for t in "ab"]
            for choice in _choices(function):
                calls += 1
                outcomes = []
                for ids in (theirs, {i: str(uuid.uuid4()) for i in function.ids}):
                    arguments = own | {i: ids[i] for i in choice}
                    async with rolled_back(superuser, "call"):
                        outcome = await _call(superuser, world, function, arguments, context, notices)
                        await superuser.execute("reset role")
                        touched = await world.digest(superuser, of_b=True) != digest
                    outcomes.append(outcome)
                    found = _judge(world, function, choice, arguments, context, outcome, touched)
                    problems += [f"{function.login}: {function.name} with {choice} by {member}: {p}" for p in found]
                one, other = [alike(EXPRESSION.sub("", o)) for o in outcomes]
                if choice and one != other and not _may(function, context):
                    problems.append(f"{function.name}: {choice} of b by {member} is told from nobody's: {one} {other}")
    assert problems == [], "\n".join(problems)
    assert calls >= 120, calls


def _may(function: Function, context: Context) -> bool:
    return context.caller.platform and function.name in POWERS


def _judge(
    world: World,
    function: Function,
    choice: tuple[str, ...],
    arguments: dict[str, str],
    context: Context,
    outcome: str,
    touched: bool,
) -> list[str]:
    found = []
    if touched and not _may(function, context):
        found.append("b's rows changed")
    if (leaked := world.leaks(outcome, " ".join(arguments.values()))) and not _may(function, context):
        found.append(f"tells {sorted(leaked)[:3]}")
    expected = CALLS[function.name][0]
    if not choice and context.name == "admin" and not outcome.startswith(expected):
        found.append(f"{expected} was expected, so nothing is proven: {outcome}")
    if not outcome.startswith((OK, "VS4", "42501")):
        found.append(f"fails instead of refusing: {outcome}")
    if choice and outcome.startswith(OK) and not _harmless(function, choice, outcome) and not _may(function, context):
        found.append(f"accepted: {outcome[:200]}")
    return found


def _choices(function: Function) -> list[tuple[str, ...]]:
    """Which arguments are B's: none, each alone, every pair, all; but never a whole right to act."""
    sizes = sorted({0, 1, 2, len(function.ids)} & set(range(len(function.ids) + 1)))
    right = CAPABILITIES.get(function.name)
    return [c for size in sizes for c in combinations(function.ids, size) if not (right and right <= set(c))]


def _harmless(function: Function, choice: tuple[str, ...], outcome: str) -> bool:
    """Nothing came back, or the ids were only written down."""
    nothing = function.name in EMPTY and outcome in {f"{OK} {none}" for none in NOTHING}
    unused = {"p_execution_id"} if function.name in WRITE_DOWN_AN_EXECUTION else set()
    if function.name in ("public.create_webhook_endpoint", "public.set_task_notification"):
        unused.add("p_endpoint_id")  # the caller makes it up
    if function.name == "public.channel_send":
        unused.add("p_run_id")  # in the caller's own words
    return nothing or set(choice) <= unused


async def _id(connection: asyncpg.Connection, world: World, function: Function, name: str, tenant: str) -> str:
    chosen = getattr(world, tenant)
    source = IDS.get(f"{function.name}.{name}", IDS[name])
    tenant_and_user = (uuid.UUID(chosen.id), uuid.UUID(chosen.user.id))
    found = await connection.fetchval(f"with given as (select $1::uuid, $2::uuid) {source}", *tenant_and_user)
    assert found, f"there is no {name} of {function.name}"
    return str(found)


async def _call(
    connection: asyncpg.Connection,
    world: World,
    function: Function,
    arguments: dict[str, str],
    context: Context,
    notices: Notices,
) -> str:
    """`ok` and the rows, or the SQLSTATE and all that the error tells; then what was said beside it."""
    a = world.a
    values = {
        "word": a.word,
        "forged": a.token(world.signer, a.admin).replace(a.id, world.b.id),
        "key": f"'\\x{a.user.key_hash.hex()}'",
        "admin_key": f"'\\x{a.admin.key_hash.hex()}'",
        "session": f"'\\x{a.user.session_hash.hex()}'",
        "refresh": f"'\\x{a.user.refresh_hash.hex()}'",
        "endpoint": f"'\\x{a.endpoint.hex()}'",
    }
    written = [f"{name} => {text.format(**values)}" for name, text in CALLS[function.name][1].items()]
    written += [f"{name} => '{value}'::uuid" for name, value in arguments.items()]
    await connection.execute(f"set local role {function.login}")
    if function.login != "vanilla_runtime":
        assert await enter(connection, function.login, context) is None
    notices.take()
    try:
        async with connection.transaction():
            rows = await connection.fetch(f"select x::text as v from {function.name}({', '.join(written)}) x")
        outcome = f"{OK} {[r['v'] for r in rows]}"
    except asyncpg.PostgresError as error:
        outcome = f"{error.sqlstate} {error.as_dict()}"
    return outcome + notices.take()


async def test_calls_in_a_batch_that_name_what_is_bs_are_refused_in_the_words_for_what_is_nobodys(
    world: World, superuser: asyncpg.Connection
) -> None:
    a, b = world.a, world.b
    hold = await superuser.fetchval(OPEN_HOLD + "null limit 1", uuid.UUID(b.id), uuid.UUID(b.user.id))
    key = {"function": "adjust", "key_hash": f"\\x{a.admin.key_hash.hex()}", "amount": 10}
    # the key of a's admin with each id of b's; and b's hold in a's tenant
    named = [key | {"user_id": b.user.id, "direction": d} for d in ("debit", "credit", "reserve", "adjustment")]
    named.append(key | {"user_id": b.user.id, "direction": "release", "reference_id": str(hold)})
    named.append(key | {"user_id": a.user.id, "direction": "release", "reference_id": str(hold)})
    usage = {"status": "succeeded", "input": 1, "output": 1, "cached": 0, "reasoning": 0, "estimated": False}
    named.append({"function": "settle", "tenant_id": a.id, "hold_id": str(hold), **usage})
    nobodys = json.loads(json.dumps(named).replace(b.user.id, str(uuid.uuid4())).replace(str(hold), str(uuid.uuid4())))
    async with undone(superuser):
        before = await world.digest(superuser, of_b=True)
        await superuser.execute("set local role vanilla_runtime")
        found = []
        for calls in (named, nobodys):
            answer = await superuser.fetchval("select vanilla.run_calls($1::jsonb)::text", json.dumps(calls))
            found.append([call["error"] for call in json.loads(answer)])
        await superuser.execute("reset role")
        assert await world.digest(superuser, of_b=True) == before
    assert [error["sqlstate"] for error in found[0]] == ["VS404"] * len(named)
    assert [error["message"] for error in found[0]] == [error["message"] for error in found[1]]


async def test_tokens_are_adjusted_by_the_operator_without_a_context_and_by_nobody_else(
    world: World, app: asyncpg.Connection, operator_of_world: asyncpg.Connection
) -> None:
    adjust = "select (adjust_user_tokens($1, 5, 'credit') ->> 'amount')::int"
    user = uuid.UUID(world.a.other.id)
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await app.fetchval(adjust, user)
    assert refusal.value.sqlstate == "VS401"
    assert await accepted(app, "") == []
    assert await operator_of_world.fetchval(adjust, user) == 5
    async with operator_of_world.transaction():
        await operator_of_world.execute("set local role vanilla_operator")
        assert await operator_of_world.fetchval(adjust, user) == 5
        await operator_of_world.execute("set local role vanilla_system")
        assert await operator_of_world.fetchval(adjust, user) == 5
