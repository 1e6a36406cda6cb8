-- A grant or hold whose wallet or user is not of its tenant. Foreign keys forbid it for grants; for holds this check
-- stands instead of one, because its index misleads the planner (see the table).
-- Mend: Find what ran with session_replication_role or disabled triggers; restore the rows from a backup.
select g.tenant_id, g.user_id, 'grant' as what, g.id
from public.user_token_grants g
where not exists (select from public.users u where u.tenant_id = g.tenant_id and u.id = g.user_id)
   or g.level_id is not null and not exists (select from public.levels v where v.tenant_id = g.tenant_id and v.id = g.level_id)
union all
select h.tenant_id, h.user_id, 'hold', h.id
from public.user_token_holds h
where not exists (select from public.user_token_wallets w where w.tenant_id = h.tenant_id and w.user_id = h.user_id)
