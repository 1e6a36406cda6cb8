-- The functions of pgTAP that our tests call, for servers without the extension: same names, arguments and TAP lines.
create or replace function extensions.plan(n integer) returns text language sql as $f$
    select set_config('tap.number', '0', true) is null; select '1..' || n $f$;
create or replace function extensions.ok(passed boolean, description text) returns text language sql as $f$
    select case when passed then 'ok ' else 'not ok ' end
        || set_config('tap.number', (current_setting('tap.number')::int + 1)::text, true) || ' - ' || description $f$;
create or replace function extensions.is(have anyelement, want anyelement, description text) returns text language sql as $f$
    select extensions.ok(have is not distinct from want, description) $f$;
create or replace function extensions.cmp_ok(have bigint, op text, want bigint, description text) returns text language plpgsql as $f$
declare v boolean;
begin
    execute format('select %s %s %s', have, op, want) into v;
    return extensions.ok(v, description);
end $f$;
create or replace function extensions.is_empty(query text, description text) returns text language plpgsql as $f$
declare v boolean;
begin
    execute format('select not exists (%s)', query) into v;
    return extensions.ok(v, description);
end $f$;
create or replace function extensions.isnt_empty(query text, description text) returns text language plpgsql as $f$
declare v boolean;
begin
    execute format('select exists (%s)', query) into v;
    return extensions.ok(v, description);
end $f$;
create or replace function extensions.throws_ok(query text, code text, message text, description text) returns text language plpgsql as $f$
begin
    begin
        execute query;
    exception when others then
        return extensions.ok(sqlstate = code, description || case when sqlstate = code then '' else ' # ' || sqlstate || ' ' || sqlerrm end);
    end;
    return extensions.ok(false, description || ' # no error');
end $f$;
create or replace function extensions.finish() returns setof text language sql as $f$ select null::text where false $f$;
