-- For `supabase start` and `supabase db reset` on your machine: a second tenant beside `default`. What every installation
-- needs is a migration and not here, because `supabase db push` leaves seeds out.
select public.create_tenant('acme', 'Acme') where not exists (select from public.tenants where slug = 'acme');
