-- Two tenants that cannot see each other: `supabase test db`. Claims are believed in PostgREST's own session only, so the
-- requests here carry signed contexts, under a key that ends with this transaction.
begin;
select plan(15);

-- two tenants and a sign-up in each
select set_config('test.tenant_a', public.create_tenant('pgtap-a', 'A')::text, true),
       set_config('test.tenant_b', public.create_tenant('pgtap-b', 'B')::text, true),
       set_config('test.user_a', gen_random_uuid()::text, true),
       set_config('test.user_b', gen_random_uuid()::text, true);
insert into auth.users (id, email, raw_app_meta_data)
select current_setting('test.user_' || x)::uuid, 'pgtap-' || x || '@example.test', jsonb_build_object('tenant_id', current_setting('test.tenant_' || x))
from unnest(array['a', 'b']) x;

set local role vanilla_owner;
select vanilla.install_context_key('pgtap', decode(repeat('7a', 32), 'hex'));
reset role;
-- HMAC-SHA-256 under that key: 7a xor 36 = 4c, 7a xor 5c = 26
select set_config('test.token_' || x, p || '.' || encode(sha256(decode(repeat('26', 32) || repeat('5c', 32), 'hex')
    || sha256(decode(repeat('4c', 32) || repeat('36', 32), 'hex') || convert_to(p, 'UTF8'))), 'hex'), true)
from unnest(array['a', 'b']) x,
    lateral (select format('v1.pgtap.%s.%s.user.%s', current_setting('test.tenant_' || x), current_setting('test.user_' || x),
        extract(epoch from clock_timestamp())::bigint + 60)) s (p);

set local role authenticated;
select vanilla.set_context(current_setting('test.token_a'));
select is((select string_agg(user_id::text, ',') from public.user_token_wallets), current_setting('test.user_a'), 'a user sees their own wallet alone');
select is((select string_agg(distinct tenant_id::text, ',') from public.users), current_setting('test.tenant_a'), 'and users of their own tenant');
select is((select count(*) from public.user_token_ledger where user_id = current_setting('test.user_b')::uuid), 0::bigint, 'and nothing of another ledger');
select is((select count(*) from public.audit_logs), 0::bigint, 'and no audit log');
select throws_ok('update public.user_token_wallets set available_tokens = 1', '42501', null, 'a wallet is not updated');
select throws_ok('delete from public.user_token_ledger', '42501', null, 'a ledger entry is not deleted');
select throws_ok('select password_hash from public.users', '42501', null, 'a password hash is not read');
select throws_ok(format('select public.token_balance_at(%L, now())', current_setting('test.user_b')), 'VS403', null, 'another balance is not told');
select throws_ok(format('select public.adjust_user_tokens(%L, 1000, %L)', current_setting('test.user_a'), 'credit'), 'VS403', null, 'nobody credits themselves');
select vanilla.set_context(current_setting('test.token_b'));
select is((select string_agg(user_id::text, ',') from public.user_token_wallets), current_setting('test.user_b'), 'the other user sees theirs');
select throws_ok('select vanilla.set_context(replace(current_setting(''test.token_b''), current_setting(''test.tenant_b''), current_setting(''test.tenant_a'')))',
    'VS401', null, 'a changed token is refused');

-- claims that PostgREST did not set
select vanilla.set_context('');
select set_config('request.jwt.claims', jsonb_build_object('sub', current_setting('test.user_a'), 'role', 'authenticated',
    'exp', extract(epoch from now())::bigint + 60, 'app_metadata', jsonb_build_object('tenant_id', current_setting('test.tenant_a')))::text, true);
select is((select count(*) from public.user_token_wallets), 0::bigint, 'claims are nothing outside PostgREST''s session');
reset role;

set local role anon;
select throws_ok('select 1 from public.user_token_wallets', '42501', null, 'anon reads no wallet');
select throws_ok('select public.reset_monthly_tokens()', '42501', null, 'anon runs no job');
reset role;

delete from auth.users where id = current_setting('test.user_a')::uuid;
select is((select status from public.users where id = current_setting('test.user_a')::uuid), 'deleted', 'a deleted auth user is closed');

select * from finish();
rollback;
