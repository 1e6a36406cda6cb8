-- The least SQL that reserves before a call and settles after it: one counter row, one ledger row each.
create table floor_wallets (
    id integer primary key,
    balance bigint not null,
    reserved bigint not null default 0
) with (fillfactor = 70);

create table floor_ledger (
    id bigint generated always as identity primary key,
    execution_id uuid not null,
    wallet_id integer not null,
    direction text not null,
    amount bigint not null,
    created_at timestamptz not null default clock_timestamp()
);

create function floor_reserve(p_wallet integer, p_execution uuid, p_amount bigint) returns boolean language plpgsql as $f$
begin
    update floor_wallets set reserved = reserved + p_amount where id = p_wallet and balance - reserved >= p_amount;
    if not found then return false; end if;
    insert into floor_ledger (execution_id, wallet_id, direction, amount) values (p_execution, p_wallet, 'reserve', p_amount);
    return true;
end
$f$;

create function floor_settle(p_wallet integer, p_execution uuid, p_held bigint, p_used bigint) returns void language plpgsql as $f$
begin
    update floor_wallets set reserved = reserved - p_held, balance = balance - p_used where id = p_wallet;
    insert into floor_ledger (execution_id, wallet_id, direction, amount) values (p_execution, p_wallet, 'settle', p_used);
end
$f$;

insert into floor_wallets select i, 1000000000000 from generate_series(0, 9999) i;
