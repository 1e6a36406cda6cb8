-- The least SQL that appends an ordered row and reads it once: a counter row, a log, a cursor.
create table floor_channels (id integer primary key, last_seq bigint not null default 0) with (fillfactor = 50);
create table floor_messages (channel_id integer, seq bigint, body jsonb not null, primary key (channel_id, seq));
create table floor_cursors (channel_id integer primary key, seq bigint not null default 0) with (fillfactor = 50);
insert into floor_channels values (1);
insert into floor_cursors values (1);

create function floor_send(p_channel integer, p_body jsonb) returns bigint language plpgsql as $f$
declare
    v_seq bigint;
begin
    update floor_channels set last_seq = last_seq + 1 where id = p_channel returning last_seq into v_seq;
    insert into floor_messages values (p_channel, v_seq, p_body);
    return v_seq;
end
$f$;

create function floor_receive(p_channel integer, p_limit integer) returns setof floor_messages language sql as $f$
    select m.* from floor_messages m where m.channel_id = p_channel
        and m.seq > (select c.seq from floor_cursors c where c.channel_id = p_channel) order by m.seq limit p_limit
$f$;

create function floor_ack(p_channel integer, p_seq bigint) returns void language sql as $f$
    update floor_cursors set seq = p_seq where channel_id = p_channel
$f$;
