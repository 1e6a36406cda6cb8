-- 010: row-level security of the tables of 005 to 009, as far as they exist. Table, ownership class, as in 003.
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
        select to_regclass('public.' || t.name) as oid, t.class
        from (values
            ('level_features', 'tenant_shared'),
            ('level_feature_usage', 'user_read'),
            ('level_feature_keys', 'user_read'),
            ('level_restrictions', 'tenant_shared'),
            ('user_rate_windows', 'user_read'),
            ('level_pricing', 'tenant_shared'),
            ('level_benefits', 'tenant_shared'),
            ('level_upgrade_paths', 'tenant_shared'),
            ('user_subscriptions', 'user_read'),
            ('level_changes', 'user_read'),
            ('level_invoice_lines', 'user_read')) t (name, class)
    loop
        continue when v.oid is null;
        perform vanilla.protect_table(v.oid, v.class);
    end loop;
end
$do$;
select vanilla.map_supabase_roles();
commit;
