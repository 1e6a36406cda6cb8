-- Ledger rows of a wallet that is not there. Stands for a foreign key, which would cost 12 to 18 us an entry.
-- Mend: Restore the row of user_token_wallets from a backup; wallets are closed, never deleted.
select l.tenant_id, l.user_id, count(*) as rows
from public.user_token_ledger l
where not exists (select from public.user_token_wallets w where w.tenant_id = l.tenant_id and w.user_id = l.user_id)
group by l.tenant_id, l.user_id
