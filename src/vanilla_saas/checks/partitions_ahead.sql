-- A log table has no partition for this month or the next: new rows would land in the default partition.
-- Mend: select vanilla.ensure_partitions(); and find out why nobody ticks (vanilla-saas serve does, every 30 seconds).
select c.relname as table_name, p.relname as partition_missing
from pg_class c
cross join generate_series(0, 1) as months (ahead)
cross join lateral (
    select c.relname || '_' || to_char(vanilla.clock() at time zone 'UTC' + make_interval(months => ahead), 'YYYYMM') as relname) p
where c.relkind = 'p' and c.relnamespace = 'public'::regnamespace and c.relowner = 'vanilla_owner'::regrole
  and not exists (select from pg_inherits i join pg_class x on x.oid = i.inhrelid
                  where i.inhparent = c.oid and x.relname = p.relname)
