-- Rows went to a default partition: no month was made for them. Counted by size, which costs no scan.
-- Mend: select vanilla.ensure_partitions(); moves rows of this month and the coming ones; then vacuum the partition.
select c.relname as partition, pg_relation_size(c.oid) as bytes
from pg_partitioned_table p
join pg_class c on c.oid = p.partdefid
where c.relnamespace = 'public'::regnamespace and c.relowner = 'vanilla_owner'::regrole and pg_relation_size(c.oid) > 0
