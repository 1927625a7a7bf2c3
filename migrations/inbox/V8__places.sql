-- inbox V8: a message of a broker without partitions and offsets has none here either, and a message
-- that waits keeps the time at which it was sent.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table inbox.parked
    alter column partition drop not null,
    alter column record_offset drop not null,
    add column if not exists produced_at timestamptz,
    add column if not exists stored_at timestamptz;
comment on column inbox.parked.partition is 'Null where the broker has none';
comment on column inbox.parked.record_offset is 'Null where the broker has none';
comment on column inbox.parked.produced_at is 'When the message was sent, by its producer''s clock';
comment on column inbox.parked.stored_at is
    'The same by the broker''s clock, where the broker''s time took the place of the producer''s';

alter table inbox.dead_letters
    alter column partition drop not null,
    alter column record_offset drop not null,
    add column if not exists produced_at timestamptz,
    add column if not exists stored_at timestamptz;
comment on column inbox.dead_letters.partition is 'Null where the broker has none';
comment on column inbox.dead_letters.record_offset is 'Null where the broker has none';
comment on column inbox.dead_letters.produced_at is 'As in inbox.parked';
comment on column inbox.dead_letters.stored_at is 'As in inbox.parked';

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
