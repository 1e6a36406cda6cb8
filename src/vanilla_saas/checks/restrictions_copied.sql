-- What calls obey is not what the restrictions of the level say: somebody wrote one of the two by hand.
-- Mend: Set or lift any restriction of the level again: vanilla-saas levels restrict <level> <type> ...
select l.tenant_id, l.id as level_id, l.slug
from public.levels l
where l.restrictions is distinct from (
    select jsonb_object_agg(r.type, case when r.patterns is null then to_jsonb(r.amount) else to_jsonb(r.patterns) end)
    from public.level_restrictions r where r.tenant_id = l.tenant_id and r.level_id = l.id and r.type !~ '^history_days|_per_tenant$')
