-- A user has no wallet, so every call they pay for is refused as "no such wallet".
-- Mend: Users are made by create_user, which makes the wallet. For a row inserted otherwise:
-- insert into user_token_wallets (tenant_id, user_id) values (...), then auto_allocate_tokens_for_level(user, level).
select u.tenant_id, u.id as user_id
from public.users u
where u.status <> 'deleted'
  and not exists (select from public.user_token_wallets w where w.tenant_id = u.tenant_id and w.user_id = u.id)
