-- 010: row-level security of the tables of 005 to 009, as far as they exist. Table, ownership class, secret columns, as in 003.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
select vanilla.refuse_after_upgrade();
set local role vanilla_owner;
-- a table that does not exist is passed over
do $do$
declare
    v record;
begin
    for v in
        select to_regclass('public.' || t.name) as oid, t.class, t.hidden, t.append_only, t.public
        from (values
            ('ai_engines', 'admin_only', '{}', false, null),
            ('engine_versions', 'admin_only', '{}', false, null),
            ('engine_aliases', 'admin_only', '{}', false, null),
            ('level_engines', 'admin_only', '{}', false, null),
            ('engine_assignments', 'admin_only', '{}', false, null),
            ('user_engines', 'user_owned', '{}', false, null),
            ('engine_executions', 'user_read', '{}', true, null),
            ('ai_workflows', 'user_owned', '{}', false, 'shared'),
            ('workflow_versions', 'user_owned', '{}', false, 'shared'),
            ('workflow_templates', 'platform_catalog', '{}', false, null),
            ('workflow_nodes', 'platform_only', '{}', false, null),
            ('workflow_executions', 'user_read', '{}', false, null),
            ('workflow_steps', 'user_read', '{}', false, null),
            ('workflow_queue', 'platform_only', '{}', false, null),
            ('workflow_timers', 'platform_only', '{}', false, null),
            ('workflow_signals', 'user_read', '{}', false, null),
            ('workflow_approvals', 'user_read', '{}', false, null),
            ('workflow_approval_votes', 'user_read', '{}', false, null),
            ('quality_gate_results', 'user_read', '{}', false, null),
            ('workflow_shares', 'admin_only', '{}', false, null),
            ('workflow_schedules', 'user_read', '{}', false, null),
            ('user_level_changes', 'user_read', '{}', true, null),
            ('level_features', 'tenant_shared', '{}', false, null),
            ('level_feature_usage', 'user_read', '{}', false, null),
            ('level_feature_keys', 'user_read', '{}', false, null),
            ('level_restrictions', 'tenant_shared', '{}', false, null),
            ('user_rate_windows', 'user_read', '{}', false, null),
            ('level_pricing', 'tenant_shared', '{}', false, null),
            ('level_benefits', 'tenant_shared', '{}', false, null),
            ('level_analytics', 'admin_only', '{}', false, null),
            ('tenant_token_months', 'admin_only', '{}', false, null),
            ('level_upgrade_paths', 'tenant_shared', '{}', false, null),
            ('user_subscriptions', 'user_read', '{}', false, null),
            ('level_changes', 'user_read', '{}', false, null),
            ('level_invoice_lines', 'user_read', '{}', false, null),
            ('payment_accounts', 'admin_only', '{secret,webhook_secret}', false, null),
            ('payment_customers', 'user_read', '{}', false, null),
            ('payment_prices', 'tenant_shared', '{}', false, null),
            ('payment_subscriptions', 'user_read', '{}', false, null),
            ('payments', 'user_read', '{}', false, null),
            ('payment_reversals', 'admin_only', '{}', false, null),
            ('payment_top_ups', 'user_read', '{}', false, null),
            ('payment_events', 'admin_only', '{}', false, null),
            ('routing_strategies', 'platform_catalog', '{}', false, null),
            ('worker_registry', 'admin_only', '{}', false, null),
            ('worker_event_logs', 'admin_only', '{}', true, null),
            ('routing_metrics', 'admin_only', '{}', false, null),
            ('routing_decisions', 'admin_only', '{}', true, null),
            ('resource_allocations', 'user_read', '{}', false, null),
            ('allocation_holds', 'user_read', '{}', false, null),
            ('agents', 'user_owned', '{}', false, 'shared'),
            ('agent_versions', 'user_owned', '{}', false, 'shared'),
            ('agent_runs', 'user_read', '{}', false, null),
            ('agent_run_steps', 'user_read', '{}', false, null),
            ('agent_run_state', 'user_read', '{}', false, null),
            ('run_artifacts', 'user_read', '{}', false, null),
            ('contract_calls', 'user_read', '{}', false, null),
            ('contract_bids', 'user_read', '{}', false, null),
            ('usage_events', 'admin_only', '{}', true, null),
            ('resource_performance_metrics', 'admin_only', '{}', false, null),
            ('resource_health', 'admin_only', '{}', false, null),
            ('system_metrics', 'admin_only', '{}', false, null),
            ('protocol_agreements', 'user_read', '{}', false, null),
            ('agreement_parties', 'user_read', '{}', false, null),
            ('agreement_versions', 'user_read', '{}', false, null),
            ('agreement_acceptances', 'user_read', '{}', false, null),
            ('agreement_violations', 'user_read', '{}', false, null),
            ('communication_channels', 'user_read', '{}', false, null),
            ('channel_participants', 'user_read', '{lease_token}', false, null),
            ('channel_messages', 'user_read', '{}', false, null),
            ('channel_dead_letters', 'user_read', '{}', false, null)) t (name, class, hidden, append_only, public)
    loop
        continue when v.oid is null;
        perform vanilla.protect_table(v.oid, v.class, p_hidden => v.hidden::name[], p_append_only => v.append_only, p_public => v.public);
    end loop;
end
$do$;
select vanilla.map_supabase_roles();
commit;
