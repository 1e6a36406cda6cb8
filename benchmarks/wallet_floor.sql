-- The least SQL that debits a wallet and remembers it: one counter row and one ledger row, in one statement.
create table floor_wallets (
    user_id uuid primary key,
    tenant_id uuid not null,
    balance bigint not null
) with (fillfactor = 70);

create table floor_ledger (
    id uuid primary key,
    tenant_id uuid not null,
    user_id uuid not null,
    amount bigint not null,
    balance_after bigint not null,
    direction text not null,
    reason text not null,
    created_at timestamptz not null
);
create index floor_ledger_user_idx on floor_ledger (user_id, created_at);
create index floor_ledger_tenant_idx on floor_ledger (tenant_id, created_at);
create index floor_ledger_created_idx on floor_ledger (created_at);
