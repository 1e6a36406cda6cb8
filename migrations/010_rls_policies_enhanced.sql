-- 010: row-level security of the tables of 005 to 009, as far as they exist. Table, ownership class, secret columns, as in 003.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
select vanilla.refuse_after_upgrade();
set local role vanilla_owner;
-- 005, 006, 008 and 009 are not there yet: a table that does not exist is passed over
do $do$
declare
    v record;
begin
    for v in
        select to_regclass('public.' || t.name) as oid, t.class, t.hidden, t.append_only
        from (values
            ('user_level_changes', 'user_read', '{}', true),
            ('level_features', 'tenant_shared', '{}', false),
            ('level_feature_usage', 'user_read', '{}', false),
            ('level_feature_keys', 'user_read', '{}', false),
            ('level_restrictions', 'tenant_shared', '{}', false),
            ('user_rate_windows', 'user_read', '{}', false),
            ('level_pricing', 'tenant_shared', '{}', false),
            ('level_benefits', 'tenant_shared', '{}', false),
            ('level_analytics', 'admin_only', '{}', false),
            ('tenant_token_months', 'admin_only', '{}', false),
            ('level_upgrade_paths', 'tenant_shared', '{}', false),
            ('user_subscriptions', 'user_read', '{}', false),
            ('level_changes', 'user_read', '{}', false),
            ('level_invoice_lines', 'user_read', '{}', false),
            ('payment_accounts', 'admin_only', '{secret,webhook_secret}', false),
            ('payment_customers', 'user_read', '{}', false),
            ('payment_prices', 'tenant_shared', '{}', false),
            ('payment_subscriptions', 'user_read', '{}', false),
            ('payments', 'user_read', '{}', false),
            ('payment_reversals', 'admin_only', '{}', false),
            ('payment_top_ups', 'user_read', '{}', false),
            ('payment_events', 'admin_only', '{}', false)) t (name, class, hidden, append_only)
    loop
        continue when v.oid is null;
        perform vanilla.protect_table(v.oid, v.class, p_hidden => v.hidden::name[], p_append_only => v.append_only);
    end loop;
end
$do$;
select vanilla.map_supabase_roles();
commit;
