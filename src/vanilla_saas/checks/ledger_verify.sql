-- A ledger row was changed, removed or reordered, or the wallet does not end where its ledger ends.
-- Mend: Someone wrote past the functions: only a superuser can. Keep the database as evidence, find the session in the
-- server's log, and restore the user's rows from the last backup that verifies.
select tenant_id, user_id, seq, problem from public.verify_token_ledger()
