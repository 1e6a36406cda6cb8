"""What the migrations declare, said again: keys, nulls, values, grants and functions, each compared with the catalog.

A migration that adds one is to add it here too: two places must agree before a boundary moves.
"""

from collections.abc import Awaitable, Callable

import asyncpg

from tests.isolation.catalog import HIDDEN, LOGINS, Table
from tests.isolation.matrix import rolled_back
from tests.isolation.rows import World

NULLABLE = {
    "tenants": "erase_at erased_at subscription_tier calls_stopped_until",
    "users": "email external_id password_hash last_sign_in_at",
    "level_token_policies": "rollover_cap monthly_cap",
    "user_token_policies": "monthly_allocation rollover_percent rollover_cap monthly_cap enforcement_mode"
    " warning_percent trial_allocation",
    "user_token_wallets": "period_start next_reset_at level_id warn_below",
    "user_token_grants": "level_id idempotency_key request_hash reason metadata void_key void_reason",
    "user_token_holds": "settled reference_type reference_id execution_id api_key_id call closed_at",
    "user_token_ledger": "reference_type reference_id execution_id hold_id grant_id actor_id idempotency_key"
    " request_hash",
    "ai_providers": "base_url secret secret_hint",
    "ai_models": "context_window max_output_tokens input_price output_price cached_input_price",
    "api_keys": "budget_tokens revoked_at last_used_at engine_tenant_id engine_id engine_ref",
    "sessions": "rotated_at revoked_at ip user_agent",
    "one_time_tokens": "used_at",
    "ai_executions": "api_key_id provider_id model_id hold_id error_code latency_ms first_token_ms request_id",
    "audit_logs": "actor_id target_type target_id ip request_id",
    "events": "user_id",
    "webhook_endpoints": "disabled_reason failing_since previous_secret previous_secret_until"
    " execution_id config_id context_id",
    "webhook_deliveries": "delivered_at last_duration_ms last_error last_status_code lease_id",
    "webhook_attempts": "duration_ms error status_code",
    "schedules": "held_since last_duration_ms last_error last_result last_run_at longest_gap requested_at started_at",
    "log_exports": "dropped_at",
    "level_features": "usage_limit period",
    "level_restrictions": "amount patterns",
    "levels": "restrictions",
    "level_feature_usage": "resets_at usage_limit limit_reached_at",
    "user_level_changes": "from_level_id from_level to_level_id to_level",
    "payment_accounts": "secret secret_hint webhook_secret stripe_account",
    "payment_customers": "customer_id payment_method",
    "payment_prices": "level_id tokens",
    "payment_subscriptions": "price_id level_id currency month_amount current_period_end past_due_since grace_until"
    " lapsed_at",
    "payments": "intent_id grant_id error lease_id lease_until paid_at",
    "payment_top_ups": "paused_reason told_month",
    "user_subscriptions": "cycle currency trial_grant_id billed_by",
    "level_changes": "from_level_id closed_at trial_ended_at trial_converted reason actor_id idempotency_key"
    " request_hash",
    "level_invoice_lines": "change_id payment_reference",
    "engine_versions": "at_once deployed_by retired_at",
    "engine_aliases": "updated_by",
    "engine_assignments": "user_id level_id tier pin_version pin_alias assigned_by",
    "engine_executions": "alias source_id api_key_id estimate_p50 estimate_p95",
    "ai_workflows": "user_id latest_version origin_tenant_id",
    "workflow_versions": "user_id published_by retired_at",
    "routing_strategies": "pool",
    "worker_registry": "latency_ewma_ms stopped_at",
    "worker_event_logs": "from_status actor_id",
    "routing_decisions": "chosen actor_id",
    "workflow_nodes": "timeout_s retry_node",
    "workflow_executions": "reason error output hold_id allocation_id parent_execution_id parent_node parent_item slot"
    " slot_limit at_once api_key_id idempotency_key request_hash started_by finished_at",
    "workflow_steps": "waits_for branch value output error state decision feedback items_left started_at finished_at",
    "workflow_queue": "worker lease claimed_at deadline_at held_until",
    "workflow_signals": "payload sent_by",
    "workflow_approvals": "subject edit on_deadline escalate_to deadline_at deadline_s value comment decided_at",
    "workflow_approval_votes": "comment value",
    "workflow_shares": "max_running",
    "workflow_schedules": "last_at last_execution_id last_error",
    "resource_allocations": "run_id parent_id hold_id most_tokens estimated_tokens max_requests max_tool_calls"
    " max_concurrent notified_at wrapped_up_at idempotency_key request_hash closed_at",
    "allocation_holds": "settled overrun execution_id lease call closed_at",
    "protocol_agreements": "version open_version suspended_by reason",
    "agreement_versions": "decided_at",
    "agreement_violations": "party",
    "communication_channels": "agreement_id max_messages floor_policy floor_holder floor_until closed_at close_reason",
    "channel_participants": "party bid lease_token lease_until lease_seq last_error",
    "channel_messages": "body in_reply_to ended_by run_id redact execution_ids redacted_at",
    "agents": "user_id",
    "agent_versions": "user_id published_by",
    "agent_runs": "parent_run_id stop_reason error output allocation_id chat deadline_at finished_at output_schema"
    " engines",
    "agent_run_steps": "name call_id arguments arguments_hash approval result child_run_id finished_at"
    " child_execution_id",
    "agent_run_state": "value",
    "contract_calls": "most_tokens accept closed_at",
    "contract_bids": "price_tokens eta_s plan score run_id work_run_id decided_at",
}

PRIMARY = {
    "user_token_wallets": "tenant_id user_id",
    "user_token_ledger": "tenant_id user_id seq",
    "sign_in_throttles": "tenant_id subject_hash",
    "system_configurations": "tenant_id key",
    "ai_executions": "tenant_id created_at id",
    "audit_logs": "tenant_id created_at id",
    "events": "tenant_id created_at id",
    "webhook_attempts": "tenant_id delivery_id attempt",
    "schedules": "tenant_id name",
    "log_exports": "tenant_id log_table month",
    "level_feature_usage": "tenant_id user_id feature period period_start",
    "level_feature_keys": "tenant_id user_id idempotency_key",
    "user_rate_windows": "tenant_id user_id",
    "user_level_changes": "tenant_id user_id seq",
    "level_analytics": "tenant_id day level_id",
    "tenant_token_months": "tenant_id month",
    "payment_top_ups": "tenant_id user_id",
    "payment_events": "tenant_id event_id",
    "user_subscriptions": "tenant_id user_id",
    "engine_versions": "tenant_id engine_id version",
    "engine_aliases": "tenant_id engine_id alias",
    "level_engines": "tenant_id level_id engine_tenant_id engine_id",
    "engine_executions": "tenant_id created_at id",
    "workflow_versions": "tenant_id workflow_id version",
    "worker_event_logs": "tenant_id created_at id",
    "routing_metrics": "tenant_id created_at worker_id",
    "routing_decisions": "tenant_id created_at id",
    "workflow_nodes": "tenant_id workflow_id version node",
    "workflow_steps": "tenant_id execution_id node item",
    "workflow_queue": "tenant_id execution_id node item",
    "workflow_timers": "tenant_id execution_id node item",
    "workflow_signals": "tenant_id execution_id name",
    "workflow_approval_votes": "tenant_id approval_id user_id",
    "workflow_shares": "tenant_id",
    "agreement_parties": "tenant_id agreement_id party",
    "agreement_versions": "tenant_id agreement_id version",
    "agreement_acceptances": "tenant_id agreement_id version party",
    "channel_messages": "tenant_id channel_id seq",
    "channel_dead_letters": "tenant_id channel_id participant_id seq",
    "agent_versions": "tenant_id agent_id version",
    "agent_run_steps": "tenant_id run_id n",
    "agent_run_state": "tenant_id root_run_id key",
    "usage_events": "tenant_id created_at id",
    "resource_performance_metrics": "tenant_id created_at grain kind resource",
    "resource_health": "tenant_id kind resource",
    "system_metrics": "tenant_id created_at name",
}
"""Primary keys that are not (tenant_id, id)."""

UNIQUE = {
    "tenants": {"slug"},
    "users": {"tenant_id email", "tenant_id external_id"},
    "levels": {"tenant_id slug", "tenant_id where is_default"},
    "level_token_policies": {"tenant_id level_id"},
    "user_token_policies": {"tenant_id user_id"},
    "user_token_grants": {"tenant_id user_id idempotency_key where (idempotency_key IS NOT NULL)"},
    "user_token_ledger": {"tenant_id user_id idempotency_key where (idempotency_key IS NOT NULL)"},
    "ai_providers": {"tenant_id slug"},
    "ai_models": {"tenant_id slug"},
    "api_keys": {"key_hash"},
    "sessions": {"token_hash", "refresh_hash"},
    "one_time_tokens": {"token_hash"},
    "level_features": {"tenant_id level_id feature"},
    "level_benefits": {"tenant_id level_id position"},
    "level_restrictions": {"tenant_id level_id type"},
    "payment_accounts": {"tenant_id", "endpoint"},
    "payment_customers": {"tenant_id user_id account_tenant_id", "account_tenant_id customer_id"},
    "payment_prices": {"tenant_id price_id"},
    "payment_subscriptions": {"account_tenant_id subscription_id"},
    "payments": {
        "account_tenant_id intent_id",
        "tenant_id user_id where ((cause = 'auto_top_up'::text) AND (state = 'pending'::text))",
    },
    "payment_reversals": {"tenant_id reversal_id"},
    "level_upgrade_paths": {"tenant_id from_level_id to_level_id"},
    "level_changes": {
        "tenant_id user_id where (state = 'scheduled'::text)",
        "tenant_id user_id idempotency_key where (idempotency_key IS NOT NULL)",
    },
    "ai_engines": {"tenant_id slug"},
    "engine_assignments": {"tenant_id engine_tenant_id engine_id target user_id level_id tier"},
    "user_engines": {"tenant_id user_id slug", "tenant_id user_id where is_default"},
    "ai_workflows": {"tenant_id slug"},
    "workflow_templates": {"tenant_id slug"},
    "routing_strategies": {"tenant_id slug", "tenant_id target pool where (status = 'active'::text)"},
    "webhook_endpoints": {"tenant_id execution_id config_id"},
    "workflow_executions": {"tenant_id user_id idempotency_key where (idempotency_key IS NOT NULL)"},
    "workflow_schedules": {"tenant_id workflow_id name"},
    "resource_allocations": {
        "tenant_id parent_id idempotency_key where ((parent_id IS NOT NULL) AND (idempotency_key IS NOT NULL))"
    },
    "allocation_holds": {"tenant_id allocation_id step where (state <> 'released'::text)"},
    "channel_participants": {"tenant_id channel_id place", "tenant_id channel_id name"},
    "channel_messages": {"tenant_id sender_id message_id"},
    "agents": {"tenant_id slug"},
    "agent_runs": {"tenant_id execution_id node item where (finished_at IS NULL)"},
    "contract_calls": {"tenant_id run_id n"},
    "contract_bids": {"tenant_id call_id where (state = ANY (ARRAY['accepted'::text, 'done'::text]))"},
    "run_artifacts": {"tenant_id run_id name"},
}

REFERENCES = {
    "users": {"tenant_id tenant_id -> tenants tenant_id id"},
    "levels": {"tenant_id tenant_id -> tenants tenant_id id"},
    "level_token_policies": {"tenant_id level_id -> levels tenant_id id"},
    "user_token_policies": {"tenant_id user_id -> users tenant_id id"},
    "user_token_wallets": {"tenant_id user_id -> users tenant_id id", "tenant_id level_id -> levels tenant_id id"},
    "user_token_grants": {"tenant_id user_id -> user_token_wallets tenant_id user_id"},
    "ai_providers": {"tenant_id tenant_id -> tenants tenant_id id"},
    "ai_models": {
        "tenant_id tenant_id -> tenants tenant_id id",
        "provider_tenant_id provider_id -> ai_providers tenant_id id",
    },
    "api_keys": {
        "tenant_id user_id -> users tenant_id id",
        "engine_tenant_id engine_id -> ai_engines tenant_id id",
    },
    "sessions": {"tenant_id user_id -> users tenant_id id"},
    "one_time_tokens": {"tenant_id user_id -> users tenant_id id"},
    "tenant_openings": {"tenant_id tenant_id -> tenants tenant_id id"},
    "system_configurations": {"tenant_id tenant_id -> tenants tenant_id id"},
    "webhook_endpoints": {
        "tenant_id tenant_id -> tenants tenant_id id",
        "tenant_id execution_id -> workflow_executions tenant_id id",
    },
    "webhook_deliveries": {"tenant_id endpoint_id -> webhook_endpoints tenant_id id"},
    "webhook_attempts": {"tenant_id delivery_id -> webhook_deliveries tenant_id id"},
    "schedules": {"tenant_id tenant_id -> tenants tenant_id id"},
    "log_exports": {"tenant_id tenant_id -> tenants tenant_id id"},
    "level_features": {"tenant_id level_id -> levels tenant_id id"},
    "level_feature_usage": {"tenant_id user_id -> users tenant_id id"},
    "level_feature_keys": {"tenant_id user_id -> users tenant_id id"},
    "level_restrictions": {"tenant_id level_id -> levels tenant_id id"},
    "user_rate_windows": {"tenant_id user_id -> users tenant_id id"},
    "level_pricing": {"tenant_id level_id -> levels tenant_id id"},
    "level_benefits": {"tenant_id level_id -> levels tenant_id id"},
    "user_level_changes": {"tenant_id user_id -> users tenant_id id"},
    "level_analytics": {"tenant_id tenant_id -> tenants tenant_id id"},
    "tenant_token_months": {"tenant_id tenant_id -> tenants tenant_id id"},
    "payment_accounts": {"tenant_id tenant_id -> tenants tenant_id id"},
    "payment_customers": {"tenant_id user_id -> users tenant_id id"},
    "payment_prices": {"tenant_id tenant_id -> tenants tenant_id id", "tenant_id level_id -> levels tenant_id id"},
    "payment_subscriptions": {"tenant_id user_id -> users tenant_id id", "tenant_id level_id -> levels tenant_id id"},
    "payments": {"tenant_id user_id -> users tenant_id id"},
    "payment_top_ups": {
        "tenant_id user_id -> users tenant_id id",
        "tenant_id price_id -> payment_prices tenant_id id",
    },
    "level_upgrade_paths": {
        "tenant_id from_level_id -> levels tenant_id id",
        "tenant_id to_level_id -> levels tenant_id id",
    },
    "user_subscriptions": {"tenant_id user_id -> users tenant_id id", "tenant_id level_id -> levels tenant_id id"},
    "level_changes": {"tenant_id user_id -> users tenant_id id"},
    "level_invoice_lines": {"tenant_id user_id -> users tenant_id id"},
    "ai_engines": {"tenant_id tenant_id -> tenants tenant_id id"},
    "engine_versions": {
        "tenant_id engine_id -> ai_engines tenant_id id",
        "tenant_id workflow_id workflow_version -> workflow_versions tenant_id workflow_id version",
    },
    "engine_aliases": {"tenant_id engine_id version -> engine_versions tenant_id engine_id version"},
    "level_engines": {
        "tenant_id level_id -> levels tenant_id id",
        "engine_tenant_id engine_id -> ai_engines tenant_id id",
    },
    "engine_assignments": {
        "tenant_id user_id -> users tenant_id id",
        "tenant_id level_id -> levels tenant_id id",
        "engine_tenant_id engine_id -> ai_engines tenant_id id",
        "engine_tenant_id engine_id pin_version -> engine_versions tenant_id engine_id version",
    },
    "user_engines": {
        "tenant_id user_id -> users tenant_id id",
        "engine_tenant_id engine_id version -> engine_versions tenant_id engine_id version",
    },
    "ai_workflows": {"tenant_id user_id -> users tenant_id id"},
    "workflow_versions": {"tenant_id workflow_id -> ai_workflows tenant_id id"},
    "workflow_templates": {"tenant_id tenant_id -> tenants tenant_id id"},
    "routing_strategies": {"tenant_id tenant_id -> tenants tenant_id id"},
    "protocol_agreements": {"tenant_id user_id -> users tenant_id id"},
    "agreement_parties": {
        "tenant_id agreement_id -> protocol_agreements tenant_id id",
        "tenant_id user_id -> users tenant_id id",
    },
    "agreement_versions": {
        "tenant_id agreement_id proposed_by -> agreement_parties tenant_id agreement_id party",
    },
    "agreement_acceptances": {
        "tenant_id agreement_id version -> agreement_versions tenant_id agreement_id version",
        "tenant_id agreement_id party -> agreement_parties tenant_id agreement_id party",
    },
    "agreement_violations": {"tenant_id agreement_id version -> agreement_versions tenant_id agreement_id version"},
    "communication_channels": {
        "tenant_id user_id -> users tenant_id id",
        "tenant_id agreement_id -> protocol_agreements tenant_id id",
    },
    "channel_participants": {
        "tenant_id channel_id -> communication_channels tenant_id id",
        "tenant_id user_id -> users tenant_id id",
    },
    "channel_messages": {"tenant_id sender_id -> channel_participants tenant_id id"},
    "channel_dead_letters": {"tenant_id participant_id -> channel_participants tenant_id id"},
    "worker_registry": {"tenant_id tenant_id -> tenants tenant_id id"},
    "workflow_nodes": {"tenant_id workflow_id version -> workflow_versions tenant_id workflow_id version"},
    "workflow_executions": {
        "tenant_id user_id -> users tenant_id id",
        "tenant_id workflow_id version -> workflow_versions tenant_id workflow_id version",
    },
    "workflow_signals": {"tenant_id execution_id -> workflow_executions tenant_id id"},
    "workflow_approvals": {"tenant_id execution_id -> workflow_executions tenant_id id"},
    "workflow_approval_votes": {"tenant_id approval_id -> workflow_approvals tenant_id id"},
    "quality_gate_results": {"tenant_id execution_id -> workflow_executions tenant_id id"},
    "workflow_shares": {"tenant_id tenant_id -> tenants tenant_id id"},
    "workflow_schedules": {
        "tenant_id user_id -> users tenant_id id",
        "tenant_id workflow_id -> ai_workflows tenant_id id",
    },
    "resource_allocations": {
        "tenant_id user_id -> users tenant_id id",
        "tenant_id parent_id -> resource_allocations tenant_id id",
        "tenant_id root_id -> resource_allocations tenant_id id",
    },
    "allocation_holds": {"tenant_id allocation_id -> resource_allocations tenant_id id"},
    "agents": {"tenant_id user_id -> users tenant_id id"},
    "agent_versions": {"tenant_id agent_id -> agents tenant_id id"},
    "agent_runs": {
        "tenant_id user_id -> users tenant_id id",
        "tenant_id agent_id version -> agent_versions tenant_id agent_id version",
        "tenant_id speaker_id speaker_version -> agent_versions tenant_id agent_id version",
        "tenant_id parent_run_id -> agent_runs tenant_id id",
        "tenant_id root_run_id -> agent_runs tenant_id id",
        "tenant_id allocation_id -> resource_allocations tenant_id id",
    },
    "agent_run_steps": {
        "tenant_id run_id -> agent_runs tenant_id id",
        "tenant_id child_run_id -> agent_runs tenant_id id",
    },
    "agent_run_state": {
        "tenant_id root_run_id -> agent_runs tenant_id id",
        "tenant_id run_id -> agent_runs tenant_id id",
    },
    "run_artifacts": {"tenant_id run_id -> agent_runs tenant_id id"},
    "contract_calls": {"tenant_id run_id n -> agent_run_steps tenant_id run_id n"},
    "contract_bids": {
        "tenant_id call_id -> contract_calls tenant_id id",
        "tenant_id agent_id version -> agent_versions tenant_id agent_id version",
        "tenant_id run_id -> agent_runs tenant_id id",
        "tenant_id work_run_id -> agent_runs tenant_id id",
    },
}
APPEND_ONLY = {
    "user_token_ledger",
    "audit_logs",
    "events",
    "user_level_changes",
    "worker_event_logs",
    "routing_decisions",
    "engine_executions",
    "usage_events",
}
"""Tables that the roles behind our functions insert into and never change."""

WRITABLE_COLUMNS = {
    "ai_providers": "tenant_id id slug name kind base_url status",
    "ai_models": "tenant_id id provider_tenant_id provider_id slug upstream_model name kind context_window"
    " max_output_tokens input_price output_price cached_input_price input_weight output_weight cached_input_weight"
    " price_source status",
    "system_configurations": "tenant_id key value is_public description updated_at",
}
"""What a request may insert; update takes all of it but tenant_id and id."""

_WHO = (
    "public.get_current_tenant_id public.get_current_user_id vanilla.claim vanilla.clock vanilla.current_tenant_id"
    " vanilla.current_user_id vanilla.current_user_role vanilla.event_types vanilla.grants_after_burn"
    " vanilla.platform vanilla.refuse vanilla.schema_files vanilla.set_context vanilla.task_state"
    " vanilla.uuid7"
)
_PERSONS = {f"vanilla.{name}" for name in ("person_query", "person_tables", "person_tenant", "platform_rows")}
"""What public.open_person_rows calls as whoever called it."""
EXECUTABLE = {
    "vanilla_readonly": set(_WHO.split()),
    "vanilla_app": {
        *_WHO.split(),
        *_PERSONS,
        *(
            f"public.{name}"
            for name in [
                "adjust_user_tokens",
                "adjust_user_tokens_batch",
                "allocation_carve",
                "allocation_close",
                "allocation_count_tool_call",
                "allocation_hold",
                "allocation_open",
                "allocation_release",
                "allocation_settle",
                "allocation_top_up",
                "allocation_tree",
                "assign_engine",
                "auto_allocate_tokens_for_level",
                "begin_checkout",
                "begin_payment_portal",
                "cancel_execution",
                "change_user_level",
                "check_feature",
                "close_tenant",
                "consume_feature",
                "create_api_key",
                "create_engine_key",
                "create_tenant",
                "create_user",
                "create_webhook_endpoint",
                "decide_approval",
                "agreement_amend",
                "agreement_propose",
                "agreement_read",
                "agreement_respond",
                "agreement_resume",
                "agreement_suspend",
                "agreement_terminate",
                "agreement_withdraw",
                "channel_ack",
                "channel_close",
                "channel_floor",
                "channel_history",
                "channel_nack",
                "channel_open",
                "channel_read",
                "channel_receive",
                "channel_send",
                "delete_engine_copy",
                "delete_level",
                "delete_level_feature",
                "delete_level_restriction",
                "delete_upgrade_path",
                "delete_task_notification",
                "delete_webhook_endpoint",
                "delete_workflow",
                "delete_workflow_schedule",
                "deploy_engine",
                "erase_user",
                "drain_worker",
                "end_level_price",
                "engine_report",
                "execute_engine",
                "explain_engine",
                "explain_routing",
                "execution_progress",
                "execution_step",
                "extend_token_hold",
                "fork_engine",
                "gate_statistics",
                "get_user_token_policy",
                "grant_user_tokens",
                "issue_one_time_token",
                "leave_tenant",
                "list_schedules",
                "my_agreements",
                "my_approvals",
                "my_channels",
                "my_engines",
                "offered_engines",
                "open_person_rows",
                "open_tenant",
                "pause_execution",
                "preview_engine",
                "preview_level_change",
                "promote_engine",
                "publish_workflow",
                "rebase_engine_copies",
                "rebase_engine_copy",
                "reconcile_token_wallets",
                "redeliver_webhook",
                "refresh_token_wallet",
                "release_token_hold",
                "replay_executions",
                "request_schedule",
                "reset_monthly_tokens",
                "resolve_engine",
                "restart_execution",
                "resume_execution",
                "retire_agent",
                "retire_engine",
                "retire_workflow",
                "revoke_api_key",
                "rollback_engine",
                "roll_up_level_analytics",
                "rotate_webhook_secret",
                "route_decision",
                "save_agent",
                "save_workflow",
                "send_test_webhook",
                "set_auto_top_up",
                "set_display_name",
                "set_engine",
                "set_level",
                "set_level_benefits",
                "set_level_engine",
                "set_level_feature",
                "set_level_price",
                "set_level_restriction",
                "set_level_token_policy",
                "set_payment_account",
                "set_payment_price",
                "set_provider_secret",
                "set_routing_strategy",
                "set_schedule",
                "set_subscription_tier",
                "set_task_notification",
                "set_tenant_status",
                "set_upgrade_path",
                "set_user_password",
                "set_user_role",
                "set_user_status",
                "set_user_token_policy",
                "set_wallet_status",
                "set_workflow_schedule",
                "set_workflow_share",
                "settle_user_tokens",
                "signal_execution",
                "start_person_export",
                "start_agent",
                "start_workflow",
                "task_notifications",
                "tenant_plan",
                "token_balance_at",
                "token_ledger_anchor",
                "token_statement",
                "token_statement_frame",
                "unassign_engine",
                "undo_level_change",
                "update_webhook_endpoint",
                "validate_workflow",
                "verify_token_anchor",
                "verify_token_ledger",
                "void_token_grant",
            ]
        ),
    },
    "vanilla_runtime": {
        f"vanilla.{name}"
        for name in [
            "adjust_by_key",
            "admit_call",
            "apply_payment_event",
            "ask_engine",
            "begin_engine",
            "begin_password_change",
            "begin_registration",
            "begin_run",
            "begin_schedule",
            "begin_sign_in",
            "bind_payment_customer",
            "bury_workers",
            "change_password",
            "claim_top_ups",
            "claim_webhook_deliveries",
            "close_session",
            "drain_worker",
            "due_schedules",
            "due_workflow_schedules",
            "ensure_partitions",
            "execute_by_key",
            "fail_sign_in",
            "finish_schedule",
            "finish_sign_in",
            "finish_top_up",
            "finish_webhook_delivery",
            "fire_workflow_schedule",
            "heartbeat_worker",
            "held_leases",
            "key_identity",
            "list_models",
            "make_call",
            "one_time_token_user",
            "payment_account",
            "preview_by_key",
            "prune_webhook_deliveries",
            "public_pricing",
            "quote_call",
            "reap_holds",
            "record_call",
            "record_call_and_admit",
            "record_turn",
            "redeem_one_time_token",
            "register_user",
            "register_worker",
            "request_password_link",
            "rotate_session",
            "run_calls",
            "run_maintenance",
            "schema_files",
            "run_schedule_part",
            "session_identity",
            "settle_call",
            "stop_worker",
            "tend_workflows",
            "tick",
            "worker_allowance",
            "tick_run",
            "tick_worker",
            "workflow_plan",
        ]
    },
}
AS_THE_CALLER = set(_WHO.split()) - {"vanilla.claim", "vanilla.schema_files", "vanilla.set_context"} | {
    "public.open_person_rows",
    "vanilla.person_query",
}
"""Functions that a login may execute and that add nothing to what it may do."""
DEFINERS_OF_THE_OPERATOR = {
    "public.allocation_reap",
    "vanilla.claim_super_admin",
    "vanilla.context_key_states",
    "vanilla.expire_context_key",
    "vanilla.install_context_key",
    "vanilla.months_to_export",
    "vanilla.preview_retention",
    "vanilla.record_log_export",
}
DEFINERS_OF_THE_OWNER = {"vanilla.delete_log_rows", "vanilla.drop_log_month"}
"""What functions of ours call to change tables; no login does."""
DEFINERS_OF_SUPABASE = {"vanilla.follow_auth_user", "vanilla.supabase_claim"}
"""A trigger's function, and one that vanilla.claim asks for in a session that PostgREST opened."""
NOT_FOR_LOGINS = DEFINERS_OF_THE_OPERATOR | DEFINERS_OF_THE_OWNER | DEFINERS_OF_SUPABASE
OWNED = {
    "vanilla_keyring": {
        "vanilla.claim",
        "vanilla.context_key_states",
        "vanilla.expire_context_key",
        "vanilla.install_context_key",
    },
    "vanilla_owner": {
        f"vanilla.{name}"
        for name in [
            "begin_upgrade",
            "clock",
            "current_tenant_id",
            "current_user_id",
            "current_user_role",
            "delete_log_rows",
            "drop_log_month",
            "ensure_partitions",
            "expected_grants",
            "expected_policies",
            "expected_protection",
            "found_protection",
            "keep_agreement",
            "keep_agreement_version",
            "keep_agent_version",
            "keep_engine_version",
            "keep_workflow_version",
            "log_months",
            "map_supabase_roles",
            "person_query",
            "person_tables",
            "platform",
            "protect_table",
            "protection_drift",
            "refuse",
            "refuse_after_upgrade",
            "repair_protection",
            "row_conditions",
            "schema_files",
            "uuid7",
        ]
    }
    | {"public.get_current_tenant_id", "public.get_current_user_id"},
}
"""Owners of functions that are not vanilla_definer's."""

FORBIDDEN = {
    "tenants_erase_check": ["erase_at = now()", "erased_at = now()"],
    "tenants_name_check": ["name = ''", "name = repeat('x', 201)"],
    "tenants_self_check": ["id = gen_random_uuid()"],
    "tenants_slug_check": ["slug = 'A b'", "slug = '-a'"],
    "tenants_status_check": ["status = 'odd'"],
    "tenants_subscription_tier_check": ["subscription_tier = 'A b'"],
    "users_display_name_check": ["display_name = repeat('x', 201)"],
    "users_email_check": ["email = 'UPPER@x.test'", "email = 'none'", "email = repeat('x', 250) || '@x.test'"],
    "users_external_id_check": ["external_id = ''", "external_id = repeat('x', 129)"],
    "users_name_check": ["email = null, external_id = null"],
    "users_platform_check": ["role = 'superadmin'"],
    "users_role_check": ["role = 'owner'"],
    "users_status_check": ["status = 'odd'"],
    "levels_slug_check": ["slug = 'A b'"],
    "levels_status_check": ["status = 'odd'"],
    "level_token_policies_amounts_check": [
        "base_allocation = -1", "monthly_allocation = -1", "rollover_cap = -1", "monthly_cap = -1",
        "base_allocation = 1000000000000001", "monthly_allocation = 1000000000000001",
    ],
    "level_token_policies_enforcement_mode_check": ["enforcement_mode = 'odd'"],
    "level_token_policies_period_anchor_check": ["period_anchor = 'odd'"],
    "level_token_policies_period_check": ["period = 'odd'"],
    "level_token_policies_rollover_percent_check": ["rollover_percent = -1", "rollover_percent = 101"],
    "level_token_policies_warning_percent_check": ["warning_percent = -1", "warning_percent = 101"],
    "user_token_policies_amounts_check": ["monthly_allocation = -1", "rollover_cap = -1", "monthly_cap = -1"],
    "user_token_policies_enforcement_mode_check": ["enforcement_mode = 'odd'"],
    "user_token_policies_rollover_percent_check": ["rollover_percent = -1", "rollover_percent = 101"],
    "user_token_policies_warning_percent_check": ["warning_percent = -1", "warning_percent = 101"],
    "user_token_wallets_amounts_check": [
        "available_tokens = -1", "reserved_tokens = -1", "borrowed_tokens = -1", "spent_tokens = -1",
    ],
    "user_token_wallets_enforcement_mode_check": ["enforcement_mode = 'odd'"],
    "user_token_wallets_status_check": ["status = 'odd'"],
    "user_token_grants_amount_check": ["amount = 0, remaining = 0", "remaining = -1", "remaining = amount + 1"],
    "user_token_grants_kind_check": ["kind = 'odd'"],
    "user_token_grants_state_check": ["state = 'odd'"],
    "user_token_grants_times_check": ["expires_at = effective_at"],
    "user_token_holds_amount_check": ["amount = -1", "requested = amount - 1", "settled = -1"],
    "user_token_holds_closed_check": ["closed_at = case when closed_at is null then now() end"],
    "user_token_holds_state_check": ["state = 'odd', closed_at = now()"],
    "user_token_ledger_direction_check": ["direction = 'odd'"],
    "user_token_ledger_seq_check": ["seq = 0"],
    "ai_providers_base_url_check": ["base_url = 'file:///etc'", "base_url = null, kind = 'openai'"],
    "ai_providers_kind_check": ["kind = 'odd', base_url = 'http://x'"],
    "ai_providers_slug_check": ["slug = 'A b'"],
    "ai_providers_status_check": ["status = 'odd'"],
    "ai_models_kind_check": ["kind = 'odd'"],
    "ai_models_prices_check": ["input_price = -1", "output_price = -1", "cached_input_price = -1"],
    "ai_models_provider_check": ["provider_tenant_id = '{b}'"],
    "ai_models_sizes_check": ["context_window = 0", "max_output_tokens = 0"],
    "ai_models_slug_check": ["slug = 'a b'"],
    "ai_models_status_check": ["status = 'odd'"],
    "ai_models_weights_check": ["input_weight = -1, cached_input_weight = -1", "output_weight = -1",
                                "cached_input_weight = input_weight + 1"],
    "api_keys_budget_check": ["budget_tokens = 0", "used_tokens = -1"],
    "api_keys_key_hash_check": ["key_hash = 'short'"],
    "api_keys_name_check": ["name = ''", "name = repeat('x', 201)"],
    "api_keys_scopes_check": ["scopes = '{}'", "scopes = '{odd}'", "scopes = '{chat,engine}'"],
    "api_keys_engine_check": ["scopes = '{engine}'", "engine_ref = 'x'", "engine_id = id"],
    "one_time_tokens_purpose_check": ["purpose = 'odd'"],
    "tenant_openings_reason_check": ["reason = ' '"],
    "system_configurations_key_check": ["key = 'A b'"],
    "system_configurations_gateway_check": [
        "key = 'gateway.min_output_tokens', value = '0'", "key = 'gateway.min_output_tokens', value = '\"few\"'",
        "key = 'gateway.min_output_tokens', value = '1.5'", "key = 'gateway.min_output_tokens', value = '1000001'",
    ],
    "system_configurations_retention_check": ["key = 'retention.events_days', value = '90'"],
    "system_configurations_tenants_check": ["key = 'tenants.grace_days', value = '3'"],
    "schedules_name_check": ["name = 'A b'"],
    "schedules_kind_check": ["kind = 'odd'"],
    "schedules_period_check": ["period = '0 s'", "period = '1 month'", "period = '1 year'", "period = '367 days'"],
    "schedules_figures_check": ["failures = -1", "part_size = 0", "part_size = 10001"],
    "log_exports_sizes_check": ["rows = -1", "bytes = 0"],
    "log_exports_digest_check": ["sha256 = 'short'"],
    "ai_executions_status_check": ["status = 'odd'"],
    "events_type_check": ["type = 'A b'", "type = ''", "type = 'a.'"],
    "webhook_endpoints_config_check": ["config_id = ''", "context_id = repeat('x', 256)"],
    "webhook_endpoints_task_check": ["execution_id = null", "config_id = null", "context_id = null"],
    "webhook_endpoints_concurrency_check": ["concurrency = 0", "concurrency = 33"],
    "webhook_endpoints_description_check": ["description = repeat('x', 501)"],
    "webhook_endpoints_event_types_check": ["event_types = '{}'", "event_types = array_fill('x'::text, '{101}')"],
    "webhook_endpoints_status_check": ["status = 'odd'"],
    "webhook_endpoints_url_check": ["url = 'file:///etc'", "url = 'https://' || repeat('x', 2048)"],
    "webhook_deliveries_cause_check": ["cause = 'odd'"],
    "webhook_deliveries_delivered_check": ["delivered_at = case when delivered_at is null then now() end"],
    "webhook_deliveries_state_check": ["state = 'odd', delivered_at = null"],
    "webhook_attempts_attempt_check": ["attempt = 0"],
    "level_features_feature_check": ["feature = 'A b'"],
    "level_features_name_check": ["name = repeat('x', 201)"],
    "level_features_category_check": ["category = 'A b'"],
    "level_features_limit_check": ["usage_limit = -1, period = 'daily'",
                                   "usage_limit = 1000000000000001, period = 'daily'"],
    "level_features_period_check": ["usage_limit = 1, period = null", "usage_limit = null, period = 'daily'",
                                    "usage_limit = 1, period = 'hourly'"],
    "level_feature_usage_used_check": ["used = 0", "used = 2, usage_limit = 1"],
    "level_restrictions_type_check": ["type = 'odd', amount = 1, patterns = null"],
    "level_restrictions_value_check": [
        "type = 'api_keys', amount = -1, patterns = null", "type = 'api_keys', amount = null, patterns = null",
        "type = 'api_keys', amount = 1, patterns = '{x}'", "type = 'api_keys', amount = 1000000000001, patterns = null",
        "type = 'history_days', amount = 0, patterns = null",
        "type = 'history_days_per_tenant', amount = 0, patterns = null",
        "type = 'denied_models', amount = 1, patterns = null", "type = 'denied_models', amount = 1, patterns = '{x}'",
        "type = 'denied_models', amount = null, patterns = '{}'",
        "type = 'denied_models', amount = null, patterns = '{x,null}'",
        "type = 'denied_models', amount = null, patterns = '{\"\"}'",
    ],
    "level_pricing_cycle_check": ["cycle = 'odd'"],
    "level_pricing_currency_check": ["currency = 'XXX'", "currency = 'eur'"],
    "level_pricing_amounts_check": ["amount = -1", "trial_credits = -1", "amount = 1000000000000001",
                                    "trial_credits = 1000000000000001"],
    "level_pricing_trial_check": ["trial_days = -1", "trial_days = 3661"],
    "level_pricing_times_check": ["valid_until = valid_from"],
    "level_benefits_position_check": ["position = 0"],
    "level_benefits_text_check": ["text = ''", "text = repeat('x', 501)"],
    "user_level_changes_seq_check": ["seq = 0"],
    "user_level_changes_kind_check": ["kind = 'odd'"],
    "payment_accounts_status_check": ["status = 'odd'"],
    "payment_accounts_endpoint_check": ["endpoint = '\\x77'"],
    "payment_accounts_texts_check": ["secret_hint = repeat('x', 41)", "stripe_account = repeat('x', 256)"],
    "payment_accounts_grace_check": ["grace_days = -1", "grace_days = 91"],
    "payment_customers_account_check": ["account_tenant_id = '{b}'"],
    "payment_customers_texts_check": ["customer_id = repeat('x', 256)", "payment_method = repeat('x', 256)"],
    "payment_prices_kind_check": ["kind = 'odd', tokens = null, level_id = null"],
    "payment_prices_status_check": ["status = 'odd'"],
    "payment_prices_price_check": ["price_id = 'a b'", "price_id = ''", "price_id = repeat('x', 256)"],
    "payment_prices_name_check": ["name = ''", "name = repeat('x', 201)"],
    "payment_prices_currency_check": ["currency = 'usd'", "currency = 'DOLLAR'"],
    "payment_prices_amount_check": ["amount = 0", "amount = 100000000"],
    "payment_prices_worth_check": [
        "kind = 'pack', tokens = null, level_id = null", "kind = 'level', tokens = null, level_id = null",
        "kind = 'pack', tokens = 1, level_id = tenant_id", "kind = 'level', tokens = 1, level_id = tenant_id",
        "kind = 'pack', tokens = 0, level_id = null", "kind = 'pack', tokens = 1000000000000001, level_id = null",
    ],
    "payment_subscriptions_account_check": ["account_tenant_id = '{b}'"],
    "payment_subscriptions_state_check": ["state = 'odd'"],
    "payment_subscriptions_amount_check": ["currency = 'USD', month_amount = -1", "currency = 'usd', month_amount = 1",
                                           "currency = null, month_amount = 1"],
    "payments_account_check": ["account_tenant_id = '{b}'"],
    "payments_cause_check": ["cause = 'odd'"],
    "payments_state_check": ["state = 'odd', paid_at = null"],
    "payments_paid_check": ["state = 'succeeded', paid_at = null", "state = 'open', paid_at = now()"],
    "payments_amounts_check": [
        "amount = 0, returned_amount = 0", "tokens = 0, reversed_tokens = 0", "returned_amount = -1",
        "returned_amount = amount + 1", "reversed_tokens = -1", "reversed_tokens = tokens + 1",
    ],
    "payment_reversals_kind_check": ["kind = 'odd'"],
    "payment_reversals_state_check": ["state = 'odd'"],
    "payment_reversals_amount_check": ["amount = -1"],
    "payment_top_ups_amounts_check": [
        "threshold = 0", "threshold = 1000000000000001", "monthly_ceiling = 0", "monthly_ceiling = 10000000000",
    ],
    "level_upgrade_paths_levels_check": ["from_level_id = to_level_id"],
    "level_upgrade_paths_discount_check": ["discount_percent = -1", "discount_percent = 101"],
    "level_upgrade_paths_timing_check": ["timing = 'soon'"],
    "user_subscriptions_amount_check": ["amount = -1"],
    "user_subscriptions_period_check": ["period_end = period_start"],
    "user_subscriptions_cycle_check": ["cycle = 'one_time'"],
    "level_invoice_lines_cycle_check": ["cycle = 'one_time'"],
    "user_subscriptions_currency_check": ["cycle = null", "currency = null"],
    "level_changes_timing_check": ["timing = 'any'"],
    "level_changes_state_check": ["state = 'odd', closed_at = now()"],
    "level_changes_closed_check": ["state = 'applied', closed_at = null", "state = 'scheduled', closed_at = now()"],
    "level_changes_trial_check": [
        "trial_ended_at = now()", "trial_converted = true",
        "trial = false, trial_ended_at = now(), trial_converted = true",
    ],
    "level_invoice_lines_kind_check": ["kind = 'odd'"],
    "level_invoice_lines_rate_check": ["rate = -1"],
    "level_invoice_lines_amount_check": ["kind = 'credit', amount = 1", "kind = 'fee_credit', amount = 1",
                                         "kind = 'charge', amount = 0", "kind = 'renewal', amount = -1"],
    "ai_engines_slug_check": ["slug = 'A b'", "slug = repeat('x', 64)"],
    "ai_engines_name_check": ["name = ''", "name = repeat('x', 801)"],
    "ai_engines_description_check": ["description = repeat('x', 20001)"],
    "ai_engines_status_check": ["status = 'odd'"],
    "ai_engines_access_check": ["default_access = 'odd'"],
    "ai_engines_offered_check": ["offered = true"],
    "engine_versions_version_check": ["version = 0"],
    "engine_versions_mode_check": [
        "mode = 'odd', at_once = null, config = config || '{\"mode\": \"odd\", \"at_once\": null}',"
        " hash = sha256(convert_to((config || '{\"mode\": \"odd\", \"at_once\": null}')::text, 'UTF8'))"
    ],
    "engine_versions_at_once_check": [
        f"mode = '{mode}', at_once = {number}, config = config || '{{\"mode\": \"{mode}\", \"at_once\": {number}}}',"
        f" hash = sha256(convert_to((config || '{{\"mode\": \"{mode}\", \"at_once\": {number}}}')::text, 'UTF8'))"
        for mode, number in (("parallel", 1), ("sequential", 2), ("parallel", 0), ("parallel", 1001))
    ],
    "engine_versions_state_check": ["state = 'odd', retired_at = null"],
    "engine_versions_retired_check": ["state = 'retired', retired_at = null",
                                      "state = 'published', retired_at = now()"],
    "engine_versions_config_check": ["workflow_version = 77", "workflow_id = tenant_id"],
    "engine_versions_hash_check": ["hash = sha256('x')", "config = config || '{\"output\": 1}'"],
    "engine_versions_price_hash_check": ["price_hash = sha256('x')"],
    "engine_aliases_alias_check": ["alias = 'odd', weight = 100"],
    "engine_aliases_weight_check": ["alias = 'stable', weight = 99", "alias = 'canary', weight = 101", "weight = -1"],
    "level_engines_tenant_check": ["engine_tenant_id = '{b}'"],
    "level_engines_access_check": ["access = 'odd'"],
    "engine_assignments_tenant_check": ["engine_tenant_id = '{b}'"],
    "engine_assignments_target_check": ["target = 'odd'"],
    "engine_assignments_whom_check": [
        "target = 'user', user_id = null", "target = 'user', user_id = id, tier = 1",
        "target = 'level', level_id = null", "target = 'level', level_id = id, user_id = id",
        "target = 'tier', tier = null", "target = 'tier', tier = 1, user_id = id",
        "target = 'tenant', tier = 1", "target = 'platform', user_id = null, level_id = null, tier = null",
    ],
    "engine_assignments_alias_check": ["pin_version = null, pin_alias = 'odd'"],
    "engine_assignments_pin_check": ["pin_version = 1, pin_alias = 'stable'"],
    "engine_assignments_validity_check": ["valid_from = now(), valid_to = now()"],
    "user_engines_tenant_check": ["engine_tenant_id = '{b}'"],
    "user_engines_slug_check": ["slug = 'A b'", "slug = repeat('x', 64)"],
    "user_engines_overlay_check": ["overlay = '[]'", "overlay = jsonb_build_object('x', repeat('x', 65536))"],
    "engine_executions_alias_check": ["alias = 'odd'"],
    "engine_executions_source_check": ["source = 'odd'"],
    "ai_workflows_origin_check": [
        "user_id = null", "origin_tenant_id = '00000000-0000-0000-0000-000000000000'",
        "user_id = null, origin_tenant_id = '{b}'",
    ],
    "ai_workflows_slug_check": ["slug = 'A b'", "slug = '-a'", "slug = repeat('x', 64)"],
    "ai_workflows_name_check": ["name = ''", "name = repeat('x', 801)"],
    "ai_workflows_description_check": ["description = repeat('x', 20001)"],
    "ai_workflows_status_check": ["status = 'odd'"],
    "ai_workflows_draft_check": ["draft = '[]'", "draft = jsonb_build_object('x', repeat('x', 1048576))"],
    "ai_workflows_revision_check": ["revision = 0"],
    "ai_workflows_latest_check": ["latest_version = 0"],
    "workflow_versions_version_check": ["version = 0"],
    "workflow_versions_state_check": ["state = 'odd'"],
    "workflow_versions_retired_check": ["state = 'retired', retired_at = null",
                                        "state = 'published', retired_at = now()"],
    "workflow_versions_hash_check": ["hash = sha256('x')", "definition = '{}'"],
    "workflow_templates_slug_check": ["slug = 'A b'", "slug = repeat('x', 64)"],
    "workflow_templates_name_check": ["name = ''", "name = repeat('x', 801)"],
    "workflow_templates_description_check": ["description = repeat('x', 20001)"],
    "workflow_templates_parameters_check": ["parameters = '[]'",
                                            "parameters = jsonb_build_object('x', repeat('x', 65536))"],
    "workflow_templates_definition_check": ["definition = '[]'",
                                            "definition = jsonb_build_object('x', repeat('x', 1048576))"],
    "routing_strategies_slug_check": ["slug = 'A b'", "slug = repeat('x', 64)"],
    "routing_strategies_kind_check": ["kind = 'odd'"],
    "routing_strategies_target_check": ["target = 'odd'"],
    "routing_strategies_config_check": ["config = '[]'", "config = jsonb_build_object('x', repeat('x', 65536))"],
    "routing_strategies_pool_check": ["pool = 'A b'", "pool = repeat('x', 64)"],
    "routing_strategies_status_check": ["status = 'odd'"],
    "routing_strategies_description_check": ["description = repeat('x', 2001)"],
    "worker_registry_name_check": ["name = ''", "name = repeat('x', 201)"],
    "worker_registry_pools_check": ["pools = '{}'", "pools = array_fill('x'::text, '{101}')", "pools = '{x,null}'"],
    "worker_registry_capacity_check": ["capacity = 0", "capacity = 10001"],
    "worker_registry_labels_check": ["labels = '[]'", "labels = jsonb_build_object('x', repeat('x', 8192))"],
    "worker_registry_region_check": ["region = repeat('x', 101)"],
    "worker_registry_release_check": ["release = repeat('x', 101)"],
    "worker_registry_status_check": ["status = 'odd', stopped_at = null"],
    "worker_registry_figures_check": ["health_score = -1", "health_score = 101", "in_flight = -1",
                                      "latency_ewma_ms = -1", "success_ewma = -0.1", "success_ewma = 1.1"],
    "worker_registry_stopped_check": ["status = 'dead', stopped_at = null", "status = 'active', stopped_at = now()"],
    "worker_event_logs_event_check": ["event = 'odd'"],
    "routing_decisions_kind_check": ["kind = 'odd'"],
    "resource_allocations_budget_check": ["budget_tokens = 1, spent_tokens = 2, carved_tokens = 0, held_tokens = 0"],
    "resource_allocations_amounts_check": [
        "budget_tokens = 0, wrap_up_tokens = 0, carved_tokens = 0, held_tokens = 0, spent_tokens = 0",
        "carved_tokens = -1", "held_tokens = -1", "spent_tokens = -1", "overrun_tokens = -1", "estimated_tokens = -1",
    ],
    "resource_allocations_most_check": ["most_tokens = budget_tokens - 1"],
    "resource_allocations_wrap_up_check": ["wrap_up_tokens = -1", "wrap_up_tokens = budget_tokens + 1"],
    "resource_allocations_limits_check": ["max_requests = 0", "max_tool_calls = 0", "max_concurrent = 0"],
    "resource_allocations_counts_check": ["requests = -1", "tool_calls = -1", "open_holds = -1"],
    "resource_allocations_tree_check": [
        "depth = 51, root_id = gen_random_uuid(), parent_id = gen_random_uuid(), hold_id = null",
        "depth = 1, parent_id = null", "hold_id = case when hold_id is null then id end",
        "root_id = id, hold_id = null, parent_id = null, depth = 0",
        "root_id = case when parent_id is null then gen_random_uuid() else id end",
        "counted_by = array[gen_random_uuid()], parent_id = null, depth = 0, root_id = id, hold_id = id",
    ],
    "resource_allocations_state_check": ["state = 'odd', closed_at = now(), carved_tokens = 0, held_tokens = 0"],
    "resource_allocations_closed_check": ["closed_at = case when closed_at is null then now() end"],
    "resource_allocations_ended_check": [
        "state = 'closed', closed_at = now(), carved_tokens = 1, held_tokens = 0",
        "state = 'closed', closed_at = now(), carved_tokens = 0, held_tokens = 1",
    ],
    "resource_allocations_key_check": ["idempotency_key = repeat('x', 1021)"],
    "resource_allocations_top_ups_check": ["top_ups = '[]'", "top_ups = jsonb_build_object('x', repeat('x', 65536))"],
    "allocation_holds_step_check": ["step = ''", "step = repeat('x', 1021)"],
    "allocation_holds_amount_check": [
        "amount = -1", "settled = -1, overrun = -1, state = 'settled', closed_at = now()",
        "settled = 1, overrun = 2, state = 'settled', closed_at = now()",
    ],
    "allocation_holds_state_check": ["state = 'odd', closed_at = now(), settled = null, overrun = null"],
    "allocation_holds_settled_check": [
        "settled = case when settled is null then 1 end, overrun = case when settled is null then 0 end",
        "overrun = case when settled is null then 0 end",
    ],
    "allocation_holds_closed_check": ["closed_at = case when closed_at is null then now() end"],
    "allocation_holds_usage_check": ["usage = '[]'", "usage = jsonb_build_object('x', repeat('x', 65536))"],
    "agents_slug_check": ["slug = 'A b'", "slug = '-a'", "slug = repeat('x', 41)"],
    "agents_name_check": ["name = ''", "name = repeat('x', 801)"],
    "agents_description_check": ["description = repeat('x', 20001)"],
    "agents_status_check": ["status = 'odd'"],
    "agents_latest_check": ["latest_version = 0"],
    "agent_versions_version_check": ["version = 0"],
    "agent_versions_definition_check": [
        "definition = '[]', hash = sha256('[]')",
        "definition = jsonb_build_object('x', repeat('x', 262144)),"
        " hash = sha256(convert_to(jsonb_build_object('x', repeat('x', 262144))::text, 'UTF8'))",
    ],
    "agent_versions_hash_check": ["hash = sha256('x')", "definition = '{}'"],
    "agent_runs_state_check": ["state = 'odd'"],
    "agent_runs_finished_check": [
        "state = 'failed', stop_reason = 'failed', finished_at = null",
        "state = 'working', finished_at = now(), stop_reason = 'done'",
        "state = 'failed', finished_at = now(), stop_reason = null", "stop_reason = 'done'",
    ],
    "agent_runs_stop_check": ["state = 'failed', finished_at = now(), stop_reason = 'odd'"],
    "agent_runs_depth_check": ["depth = -1", "depth = cardinality(path)"],
    "agent_run_steps_kind_check": ["kind = 'odd'"],
    "agent_run_steps_status_check": ["status = 'odd', finished_at = now()"],
    "agent_run_steps_finished_check": ["status = 'open', finished_at = now()", "status = 'done', finished_at = null"],
    "agent_run_state_key_check": ["key = ''", "key = repeat('x', 101)"],
    "agent_run_state_value_check": ["value = to_jsonb(repeat('x', 262144))"],
    "agent_run_state_version_check": ["version = 0"],
    "contract_calls_rule_check": ["rule = 'odd'"],
    "contract_calls_state_check": ["state = 'odd', closed_at = null"],
    "contract_calls_closed_check": ["state = 'awarded', closed_at = now()", "state = 'done', closed_at = null"],
    "contract_bids_state_check": ["state = 'odd'"],
    "contract_bids_price_check": [
        "price_tokens = 0",
        "eta_s = -1",
        "state = 'rejected', price_tokens = null",
        "state = 'accepted', price_tokens = null",
        "state = 'done', price_tokens = null",
    ],
    "run_artifacts_name_check": ["name = ''", "name = repeat('x', 201)"],
    "run_artifacts_media_type_check": ["media_type = 'odd'", "media_type = 'A/b'", "media_type = ''"],
    "run_artifacts_content_check": ["content = repeat('x', 1048577)"],
    "usage_events_kind_check": ["kind = 'odd'"],
    "resource_performance_metrics_grain_check": ["grain = 'day'"],
    "resource_performance_metrics_kind_check": ["kind = 'odd'"],
    "resource_performance_metrics_counts_check": [
        "calls = 0, ok = 0", "ok = -1", "ok = calls + 1", "latency = '{}'",
        "latency = array_append(latency, 0::bigint)",
    ],
    "resource_health_share_check": ["ok_share = -0.1", "ok_share = 1.1", "calls = 0"],
    "routing_decisions_target_check": ["target = 'odd'"],
    "routing_metrics_figures_check": ["finished = -1", "failed = -1", "latency_ms_sum = -1", "in_flight_max = -1"],
    "workflow_nodes_next_check": ["branches = array_append(branches, '')",
                                  "next_needs = array_append(next_needs, 0::smallint)",
                                  "next_pools = array_append(next_pools, '')",
                                  "successors = array_append(successors, 0::smallint)"],
    "workflow_executions_status_check": ["status = 'odd', finished_at = now()"],
    "workflow_executions_finished_check": ["status = 'failed', finished_at = null",
                                           "status = 'paused', finished_at = now()"],
    "workflow_executions_input_check": ["input = '[]'", "input = jsonb_build_object('x', repeat('x', 1048576))"],
    "workflow_executions_priority_check": ["priority = -1", "priority = 10"],
    "workflow_executions_at_once_check": ["at_once = 0", "at_once = 1001"],
    "workflow_executions_depth_check": ["depth = -1", "depth = 6"],
    "workflow_executions_parent_check": ["parent_execution_id = id, parent_node = null, parent_item = -1"],
    "workflow_steps_status_check": ["status = 'running'"],
    "workflow_timers_kind_check": ["kind = 'odd'"],
    "workflow_signals_name_check": ["name = 'A b'", "name = ''", "name = 'x' || repeat('x', 63)"],
    "workflow_signals_payload_check": ["payload = to_jsonb(repeat('x', 1048577))"],
    "workflow_approvals_status_check": ["status = 'odd', decided_at = now()"],
    "workflow_approvals_decided_check": ["status = 'open', decided_at = now()",
                                         "status = 'expired', decided_at = null"],
    "workflow_approvals_deadline_check": ["on_deadline = 'odd'"],
    "workflow_approvals_quorum_check": ["quorum = 0", "quorum = 101"],
    "workflow_approval_votes_decision_check": ["decision = 'odd'"],
    "workflow_approval_votes_comment_check": ["comment = repeat('x', 20001)"],
    "quality_gate_results_score_check": ["score = -0.1", "score = 1.1", "threshold = -0.1", "threshold = 1.1"],
    "workflow_shares_amounts_check": ["weight = 0", "weight = 101", "max_running = 0"],
    "workflow_schedules_name_check": ["name = 'A b'", "name = ''", "name = repeat('x', 64)"],
    "workflow_schedules_cron_check": ["cron = '* * * *'", "cron = ''", "cron = '* * * * * *'",
                                      "cron = '* * * * ' || repeat('1', 193)"],
    "workflow_schedules_input_check": ["input = '[]'", "input = jsonb_build_object('x', repeat('x', 1048576))"],
    "workflow_schedules_catch_up_check": ["catch_up = 'odd'"],
    "protocol_agreements_name_check": ["name = ''", "name = repeat('x', 801)"],
    "protocol_agreements_status_check": ["status = 'odd'"],
    "protocol_agreements_version_check": ["status = 'active', version = null", "status = 'suspended', version = 0",
                                          "status = 'proposed', version = 1, open_version = 1"],
    "protocol_agreements_open_check": ["status = 'proposed', version = null, open_version = null",
                                       "status = 'terminated', open_version = 1"],
    "protocol_agreements_violations_check": ["violations = -1"],
    "protocol_agreements_suspended_check": ["suspended_by = 'first', status = 'active', version = 1"],
    "protocol_agreements_reason_check": ["reason = repeat('x', 2001)"],
    "agreement_parties_party_check": ["party = 'A b'", "party = repeat('x', 64)", "party = ''"],
    "agreement_versions_version_check": ["version = 0"],
    "agreement_versions_hash_check": ["hash = sha256('x')", "terms = '{}'"],
    "agreement_versions_state_check": ["state = 'odd', decided_at = now()"],
    "agreement_versions_decided_check": ["state = 'active', decided_at = null",
                                         "state = 'proposed', decided_at = now()"],
    "agreement_violations_rule_check": ["rule = 'odd'"],
    "communication_channels_name_check": ["name = ''", "name = repeat('x', 801)"],
    "communication_channels_kind_check": ["kind = 'odd', floor_policy = null, floor_holder = null, floor_until = null"],
    "communication_channels_status_check": ["status = 'odd', closed_at = null"],
    "communication_channels_closed_check": ["status = 'closed', closed_at = null",
                                            "status = 'open', closed_at = now()"],
    "communication_channels_figures_check": ["last_seq = -1", "max_messages = 0, last_seq = 0",
                                             "open_conversations = -1", "max_messages = 1, last_seq = 2"],
    "communication_channels_attempts_check": ["max_attempts = 0", "max_attempts = 101"],
    "communication_channels_policy_check": ["floor_policy = 'odd', kind = 'group'",
                                            "floor_policy = 'bid', kind = 'topic'"],
    "communication_channels_floor_check": [
        "floor_s = 0", "floor_s = 86401", "floor_holder = id, floor_until = null, floor_policy = 'bid', kind = 'group'",
        "floor_holder = id, floor_until = now(), floor_policy = null",
    ],
    "communication_channels_reason_check": ["close_reason = repeat('x', 2001)"],
    "channel_participants_name_check": ["name = ''", "name = repeat('x', 201)"],
    "channel_participants_kind_check": ["kind = 'odd'"],
    "channel_participants_figures_check": ["place = -1 - place", "cursor_seq = -1", "attempts = -1"],
    "channel_participants_lease_check": ["lease_token = id, lease_seq = null, lease_until = now()",
                                         "lease_token = id, lease_seq = 1, lease_until = null"],
    "channel_participants_error_check": ["last_error = repeat('x', 2001)"],
    "channel_messages_performative_check": ["performative = 'odd'"],
    "channel_messages_message_check": ["message_id = ''", "message_id = repeat('x', 201)"],
    "channel_messages_order_check": ["seq = 1 - seq, conversation = 1", "in_reply_to = seq", "in_reply_to = 0",
                                     "conversation = seq + 1", "conversation = 0"],
    "channel_dead_letters_error_check": ["error = repeat('x', 2001)"],
    "level_invoice_lines_reference_check": ["payment_reference = ''", "payment_reference = repeat('x', 256)"],
}  # fmt: skip
"""Of each check constraint, values that no row may have and that no other constraint refuses."""

Check = Callable[[asyncpg.Connection, World], Awaitable[list[str]]]


def _differences(what: str, found: set[str], declared: set[str]) -> list[str]:
    extra, missing = sorted(found - declared), sorted(declared - found)
    return [f"{what}: {line} is not declared" for line in extra] + [f"{what}: {line} is missing" for line in missing]


def _base(world: World) -> list[Table]:
    return [t for t in world.tables if not t.parent]


async def _rows(connection: asyncpg.Connection, statement: str) -> set[str]:
    return {" ".join(str(v) for v in row.values()) for row in await connection.fetch(statement)}


async def columns_that_may_be_null(connection: asyncpg.Connection, world: World) -> list[str]:
    found = await _rows(
        connection,
        "select c.relname, a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition"
        " and a.attnum > 0 and not a.attisdropped and not a.attnotnull",
    )
    return _differences("nullable", found, {f"{t} {c}" for t, names in NULLABLE.items() for c in names.split()})


async def keys(connection: asyncpg.Connection, world: World) -> list[str]:
    found = await _rows(
        connection,
        """
        select c.relname || ' ' || case when i.indisprimary then 'primary ' else '' end
            || (select string_agg(a.attname, ' ' order by n) from unnest(i.indkey) with ordinality k(k, n)
                join pg_attribute a on a.attrelid = c.oid and a.attnum = k.k)
            || coalesce(' where ' || pg_get_expr(i.indpred, c.oid), '')
        from pg_index i join pg_class c on c.oid = i.indrelid
        where c.relnamespace = 'public'::regnamespace and not c.relispartition and i.indisunique and i.indisvalid""",
    )
    declared = {f"{t.name} primary {PRIMARY.get(t.name, 'tenant_id id')}" for t in _base(world)}
    return _differences("key", found, declared | {f"{t} {k}" for t, every in UNIQUE.items() for k in every})


async def references(connection: asyncpg.Connection, world: World) -> list[str]:
    found = await _rows(
        connection,
        """
        select k.conrelid::regclass || ' '
            || (select string_agg(a.attname, ' ' order by n) from unnest(k.conkey) with ordinality u(u, n)
                join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.u)
            || ' -> ' || k.confrelid::regclass || ' '
            || (select string_agg(a.attname, ' ' order by n) from unnest(k.confkey) with ordinality u(u, n)
                join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.u)
        from pg_constraint k where k.contype = 'f' and k.connamespace = 'public'::regnamespace and k.conparentid = 0
          and k.convalidated and k.confdeltype in ('a', 'r')""",
    )
    return _differences("reference", found, {f"{t} {r}" for t, every in REFERENCES.items() for r in every})


async def column_grants(connection: asyncpg.Connection, world: World) -> list[str]:
    found = await _rows(
        connection,
        f"""
        select c.relname, l, p, a.attname from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped,
            unnest(array{list(LOGINS)}) l, unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) p
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
          and has_column_privilege(l, c.oid, a.attnum, p)""",
    )
    declared = {
        f"{t.name} {login} SELECT {c.name}"
        for t in _base(world)
        if t.ownership != "platform_only"
        for login in ("vanilla_app", "vanilla_readonly")
        for c in t.columns
        if c.name not in HIDDEN.get(t.name, set())
    }
    for table, names in WRITABLE_COLUMNS.items():
        declared |= {f"{table} vanilla_app INSERT {c}" for c in names.split()}
        declared |= {f"{table} vanilla_app UPDATE {c}" for c in set(names.split()) - {"tenant_id", "id"}}
    return _differences("column grant", found, declared)


async def table_grants(connection: asyncpg.Connection, world: World) -> list[str]:
    found = await _rows(
        connection,
        """
        select c.relname, a.grantee::regrole, a.privilege_type
        from pg_class c, aclexplode(c.relacl) a
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.grantee <> c.relowner
          and not c.relispartition""",
    )
    declared = {f"{t} vanilla_app DELETE" for t in WRITABLE_COLUMNS}
    for table in _base(world):
        writes = ("SELECT", "INSERT") if table.name in APPEND_ONLY else ("SELECT", "INSERT", "UPDATE", "DELETE")
        declared |= {f"{table.name} {r} {p}" for r in ("vanilla_definer", "vanilla_system") for p in writes}
        declared.add(f"{table.name} vanilla_operator SELECT")
        if table.name != "user_token_ledger":
            declared.add(f"{table.name} vanilla_operator DELETE")
    return _differences("grant", found, declared)


async def functions(connection: asyncpg.Connection, world: World) -> list[str]:
    rows = await connection.fetch(
        """
        select p.pronamespace::regnamespace || '.' || p.proname as name, p.prosecdef as definer,
            p.proowner::regrole::text as owner,
            (select s from unnest(p.proconfig) s where s like 'search_path=%') as path,
            array(select l from unnest($1::text[]) l where has_function_privilege(l, p.oid, 'execute')) as logins
        from pg_proc p where p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)""",
        list(LOGINS),
    )
    found, declared = set(), set()
    for row in rows:
        name = row["name"]
        found |= {f"{name} by {login}" for login in row["logins"]}
        found |= {f"{name} of {row['owner']}"} | ({f"{name} with its owner's rights"} if row["definer"] else set())
        if row["path"]:
            # also where the caller's rights are used: the caller may be a definer
            found.add(f"{name} with {row['path']}")
            declared.add(f"{name} with search_path=pg_catalog, pg_temp")
        logins = {login for login, names in EXECUTABLE.items() if name in names}
        declared |= {f"{name} by {login}" for login in logins}
        declared.add(f"{name} of {next((o for o, names in OWNED.items() if name in names), 'vanilla_definer')}")
        if (logins and name not in AS_THE_CALLER) or name in NOT_FOR_LOGINS:
            declared.add(f"{name} with its owner's rights")
    missing = {n for names in EXECUTABLE.values() for n in names} - {r["name"] for r in rows}
    return _differences("function", found, declared | missing)


async def roles(connection: asyncpg.Connection, world: World) -> list[str]:
    """Logins inherit nothing, and what is not a login does not log in."""
    return sorted(
        await _rows(
            connection,
            f"""
            select rolname, 'logs in' from pg_roles where rolname like 'vanilla\\_%' and rolcanlogin
              and rolname <> all (array{list(LOGINS)})
            union all select m.member::regrole::text, 'is a member of ' || m.roleid::regrole from pg_auth_members m
            where m.member::regrole::text like 'vanilla\\_%' and not (m.member = 'vanilla_owner'::regrole
                and m.roleid::regrole::text in ('vanilla_definer', 'vanilla_system', 'vanilla_keyring'))""",
        )
    )


async def values_that_no_row_may_have(connection: asyncpg.Connection, world: World) -> list[str]:
    """Tried on A's rows: each must be refused by the constraint of that name and by no other."""
    constraints = {name: t.name for t in _base(world) for name in t.checks}
    problems = _differences("check", set(constraints), set(FORBIDDEN))
    for name, changes in FORBIDDEN.items():
        table = constraints.get(name, name.removesuffix("_check"))
        for change in changes:
            if problem := await _refused(connection, table, name, change.replace("{b}", world.b.id), world.a.id):
                problems.append(f"{name}: {change}: {problem}")
    return problems


async def _refused(connection: asyncpg.Connection, table: str, name: str, change: str, tenant: str) -> str | None:
    async with rolled_back(connection, "forbidden"):
        try:
            await connection.execute(f"set local session_replication_role = replica; update {table} set {change}"
                                     f" where tenant_id = '{tenant}'")  # fmt: skip
        except asyncpg.CheckViolationError as error:
            return None if error.constraint_name == name else f"refused by {error.constraint_name}"
        except asyncpg.PostgresError as error:
            return f"stopped by {error.sqlstate} {error}"
    return "accepted"


DECLARED: dict[str, Check] = {
    check.__name__: check
    for check in (
        columns_that_may_be_null, keys, references, column_grants, table_grants, functions, roles,
        values_that_no_row_may_have,
    )
}  # fmt: skip
