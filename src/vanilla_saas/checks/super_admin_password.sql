-- A super admin still has the password of the first start.
-- Severity: warning
-- Mend: Sign in and change it, or: vanilla-saas users set-password <email> --tenant platform --generate
select u.email
from public.users u
where u.tenant_id = vanilla.platform() and u.role = 'superadmin' and u.status = 'active'
  and u.must_change_password and u.password_hash is not null
