-- A log table has no partition for this month or one of the next two: new rows would land in the default partition.
-- Mend: Find out why nobody ticks (vanilla-saas serve does, every 30 seconds).
select c.relname as table_name, p.relname as partition_missing, 'select vanilla.ensure_partitions()' as mend
from pg_class c
cross join generate_series(0, 2) as months (ahead)
cross join lateral (
    select c.relname || '_' || to_char(vanilla.clock() at time zone 'UTC' + make_interval(months => ahead), 'YYYYMM') as relname) p
where c.relkind = 'p' and c.relnamespace = 'public'::regnamespace and c.relowner = 'vanilla_owner'::regrole
  and not exists (select from pg_inherits i join pg_class x on x.oid = i.inhrelid
                  where i.inhparent = c.oid and x.relname = p.relname)
