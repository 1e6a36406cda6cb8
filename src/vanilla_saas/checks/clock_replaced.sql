-- The clock of every rule is not the system's: a test's clock was left in this database.
-- Mend: vanilla-saas migrate --repair
select p.prosrc as source
from pg_proc p
where p.oid = 'vanilla.clock()'::regprocedure and p.prosrc <> 'select pg_catalog.clock_timestamp()'
