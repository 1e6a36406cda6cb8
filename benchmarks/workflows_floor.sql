-- The least queue that several workers can share: a claim takes what nobody has, a completion deletes what is one's own.
create table floor_queue (
    id bigint generated always as identity primary key,
    priority smallint not null default 0,
    worker integer,
    lease_until timestamptz,
    attempt smallint not null default 0
);
create index floor_queue_ready_idx on floor_queue (priority, id) where worker is null;
