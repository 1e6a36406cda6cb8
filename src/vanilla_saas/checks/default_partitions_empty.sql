-- Rows went to a default partition: no month was made for them. Counted by size, which costs no scan.
-- Mend: Have the months made, which moves the rows; when it stays, vacuum the partition.
select c.relname as partition, pg_relation_size(c.oid) as bytes, 'select vanilla.ensure_partitions()' as mend
from pg_partitioned_table p
join pg_class c on c.oid = p.partdefid
where c.relnamespace = 'public'::regnamespace and c.relowner = 'vanilla_owner'::regrole and pg_relation_size(c.oid) > 0
