-- 011: a sample of an upgrade, for the tests alone: a column, a table, a changed function, rows moved.
begin;
set local client_min_messages = warning;
set local role vanilla_owner;
select vanilla.begin_upgrade('011_sample.sql');
alter table public.tenants add column region text not null default 'eu';
-- rows as vanilla_system: row-level security is forced on the owner too, and would change none
set local role vanilla_system;
update public.tenants set region = 'platform' where id = vanilla.platform();
set local role vanilla_owner;
create table public.notes (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    body text not null default '',
    constraint notes_pkey primary key (tenant_id, id),
    constraint notes_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id)
);
create index notes_user_idx on public.notes (tenant_id, user_id);
comment on table public.notes is 'What a user wrote down.';
select vanilla.protect_table('public.notes', 'user_owned', p_writable => '{tenant_id,id,user_id,body}');
create or replace function vanilla.platform() returns uuid language sql immutable parallel safe
    return '00000000-0000-0000-0000-000000000000'::uuid;
comment on function vanilla.platform() is 'The tenant that owns platform-wide rows, as 011 says.';
commit;
