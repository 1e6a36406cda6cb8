-- Roles, tables and policies of `benchmarks isolation`. The cluster is thrown away.
create role bench_floor login bypassrls;
create role bench_plain login;

-- Like the log and wallet tables, without what is the same for every variant: checks, foreign keys, partitions.
create table public.shared_rows (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    amount bigint not null,
    note text not null
);
create table public.owned_rows (like public.shared_rows including defaults);
create table public.grown_rows (like public.shared_rows including defaults);

-- Rows come in the order of time, one of every tenant after the other, so that a tenant's rows lie on as many pages.
-- With p_growth the first p_kept tenants have the rows of one round in p_growth and the others get the rest.
create function public.fill(p_table regclass, p_tenants uuid[], p_per_tenant integer, p_kept integer, p_growth integer)
returns void language plpgsql as $f$
declare
    v_count integer := cardinality(p_tenants);
begin
    execute format($q$
        insert into %s (tenant_id, user_id, created_at, amount, note)
        select ($1)[1 + case when slot < $4 and g / $2 %% $5 <> 0 then $4 + g %% ($2 - $4) else slot end],
            '00000000-0000-7000-8000-00000000beef', timestamptz '2026-01-01' + g * interval '1 millisecond', g %% 1000,
            'One row of a benchmark: ' || g
        from generate_series(0, $2::bigint * $3 * $5 - 1) g, lateral (select (g %% $2)::integer as slot) s
    $q$, p_table) using p_tenants, v_count, p_per_tenant, p_kept, p_growth;
    execute format('alter table %s add primary key (tenant_id, id)', p_table);
    execute format('create index on %s (tenant_id, created_at desc)', p_table);
end
$f$;

select vanilla.protect_table('public.' || t, 'tenant_shared',
    p_writable => '{tenant_id,id,user_id,created_at,amount,note}') from unnest('{shared_rows,grown_rows}'::text[]) t;
select vanilla.protect_table('public.owned_rows', 'user_read');

-- The same policies over plain settings, which whoever may run SQL can set.
grant select, insert on public.shared_rows, public.owned_rows, public.grown_rows to bench_floor, bench_plain;
grant usage on schema vanilla to bench_floor, bench_plain;
grant execute on function vanilla.uuid7() to bench_floor, bench_plain;
create policy plain_select on public.shared_rows for select to bench_plain using (
    tenant_id = (select current_setting('bench.tenant_id')::uuid));
create policy plain_insert on public.shared_rows for insert to bench_plain with check (
    tenant_id = (select current_setting('bench.tenant_id')::uuid)
    and (select current_setting('bench.role')) in ('admin', 'superadmin'));
create policy plain_select on public.owned_rows for select to bench_plain using (
    tenant_id = (select current_setting('bench.tenant_id')::uuid)
    and (user_id = (select current_setting('bench.user_id')::uuid)
         or (select current_setting('bench.role')) in ('admin', 'superadmin')));
