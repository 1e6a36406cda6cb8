-- The lines of a period of a user come to less than nothing: more was given back than was charged. Periods in which a
-- provider billed are its own affair.
-- Mend: Compare level_invoice_lines of the user with level_changes, then pay what is owed by hand.
select tenant_id, user_id, period_start, currency, sum(amount) as total
from public.level_invoice_lines
group by tenant_id, user_id, period_start, currency
having sum(amount) < 0 and bool_and(kind <> 'billed')
