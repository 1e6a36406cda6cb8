-- No super admin can sign in: none is active and has a password.
-- Severity: warning
-- Mend: vanilla-saas users set-password admin@localhost --tenant platform --generate
select 'nobody' as super_admin
where not exists (select from public.users u
                  where u.tenant_id = vanilla.platform() and u.role = 'superadmin' and u.status = 'active' and u.password_hash is not null)
