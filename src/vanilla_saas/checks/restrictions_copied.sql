-- What calls obey is not what the restrictions of the level say: somebody wrote one of the two by hand.
-- Mend: Set or lift any restriction of the level again: vanilla-saas levels restrict <level> <type> ...
select l.tenant_id, l.id as level_id, l.slug
from public.levels l
where l.restrictions is distinct from vanilla.copied_restrictions(l)
