-- An extension stands in schema public, where its functions may be called by every login unless somebody revoked that.
-- Severity: warning
-- Mend: Move it to a schema of its own.
select e.extname as extension,
    format('create schema if not exists extensions; alter extension %I set schema extensions', e.extname) as mend
from pg_extension e
where e.extnamespace = 'public'::regnamespace
