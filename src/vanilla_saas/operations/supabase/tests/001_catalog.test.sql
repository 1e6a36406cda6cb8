-- What must hold in the catalog of a project: `supabase test db`.
begin;
select plan(8);

select cmp_ok((select count(*) from vanilla.table_ownership), '>=', 19::bigint, 'the tables are installed');
select is_empty($$
    select o.relation from vanilla.table_ownership o
    left join pg_class c on c.relname = o.relation and c.relnamespace = 'public'::regnamespace
    where c.oid is null or not (c.relrowsecurity and c.relforcerowsecurity)
$$, 'every table has row-level security, forced');
select is_empty($$
    select c.oid::regclass from pg_class c
    where c.relispartition and c.relkind = 'r' and pg_get_userbyid(c.relowner) = 'vanilla_owner'
      and not (c.relrowsecurity and c.relforcerowsecurity)
$$, 'every partition has row-level security, forced');
select is_empty($$
    select c.oid::regclass from pg_class c
    where pg_get_userbyid(c.relowner) like 'vanilla\_%' and c.relkind in ('r', 'p', 'v', 'm')
      and (has_table_privilege('anon', c.oid, 'select, insert, update, delete, truncate')
           or has_any_column_privilege('anon', c.oid, 'select, insert, update'))
$$, 'anon reads and writes no table');
select is_empty($$
    select p.oid::regprocedure from pg_proc p
    where pg_get_userbyid(p.proowner) like 'vanilla\_%' and has_function_privilege('anon', p.oid, 'execute')
$$, 'anon executes no function');
select is_empty($$
    select c.oid::regclass, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
    where pg_get_userbyid(c.relowner) like 'vanilla\_%' and a.attname in ('password_hash', 'key_hash', 'secret', 'token_hash', 'inner_key')
      and (has_column_privilege('authenticated', c.oid, a.attnum, 'select') or has_column_privilege('service_role', c.oid, a.attnum, 'select'))
$$, 'no secret column is readable with either key');
select is_empty($$
    select r from unnest(array['authenticated', 'service_role']) r, unnest(array['insert', 'update', 'delete', 'truncate']) p,
        unnest(array['user_token_wallets', 'user_token_ledger']) t
    where has_table_privilege(r, 'public.' || t, p)
$$, 'wallet and ledger are written by functions only');
select isnt_empty($$
    select 1 from pg_trigger where tgrelid = 'auth.users'::regclass and tgname = 'vanilla_follow_auth_user' and tgenabled = 'O'
$$, 'sign-ups become users');

select * from finish();
rollback;
