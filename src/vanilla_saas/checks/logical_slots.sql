-- A logical replication slot decodes every row of this database, whatever policies say, and keeps its WAL until it is read.
-- Severity: warning
-- Mend: Drop it, unless the reader is one of your own servers.
select s.slot_name as slot, s.plugin, s.active, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)) as kept,
    format('select pg_drop_replication_slot(%L)', s.slot_name) as mend
from pg_replication_slots s
where s.slot_type = 'logical' and s.database = current_database() and not pg_is_in_recovery()
