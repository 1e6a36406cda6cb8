-- 003: row-level security of the tables of 001. Table, ownership class, secret columns, columns a request may write.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
select vanilla.refuse_after_upgrade();
set local role vanilla_owner;
select vanilla.protect_table('public.tenants', 'tenant_registry');
select vanilla.protect_table('public.users', 'user_owned', p_hidden => '{password_hash}', p_owner => 'id');
select vanilla.protect_table('public.levels', 'tenant_shared');
select vanilla.protect_table('public.level_token_policies', 'admin_only');
select vanilla.protect_table('public.user_token_policies', 'admin_only');
select vanilla.protect_table('public.user_token_wallets', 'user_read');
select vanilla.protect_table('public.user_token_grants', 'user_read');
select vanilla.protect_table('public.user_token_holds', 'user_read');
select vanilla.protect_table('public.user_token_ledger', 'user_read', p_append_only => true);
select vanilla.protect_table('public.ai_providers', 'platform_catalog', p_hidden => '{secret}',
    p_writable => '{tenant_id,id,slug,name,kind,base_url,status}');
select vanilla.protect_table('public.ai_models', 'platform_catalog',
    p_writable => '{tenant_id,id,provider_tenant_id,provider_id,slug,upstream_model,name,kind,context_window,max_output_tokens,input_price,output_price,cached_input_price,input_weight,output_weight,cached_input_weight,price_source,status}');
select vanilla.protect_table('public.ai_executions', 'user_read');
select vanilla.protect_table('public.api_keys', 'user_owned', p_hidden => '{key_hash}');
select vanilla.protect_table('public.sessions', 'platform_only');
select vanilla.protect_table('public.one_time_tokens', 'platform_only');
select vanilla.protect_table('public.sign_in_throttles', 'platform_only');
select vanilla.protect_table('public.tenant_openings', 'platform_only');
select vanilla.protect_table('public.system_configurations', 'platform_catalog',
    p_writable => '{tenant_id,key,value,is_public,description,updated_at}', p_public => 'is_public');
select vanilla.protect_table('public.audit_logs', 'admin_only', p_append_only => true);
select vanilla.protect_table('public.events', 'admin_only', p_append_only => true);
select vanilla.protect_table('public.webhook_endpoints', 'admin_only', p_hidden => '{secret,previous_secret}');
select vanilla.protect_table('public.webhook_deliveries', 'admin_only');
select vanilla.protect_table('public.webhook_attempts', 'admin_only');
select vanilla.protect_table('public.schedules', 'platform_only');
select vanilla.protect_table('public.log_exports', 'platform_only');
select vanilla.map_supabase_roles();
commit;
