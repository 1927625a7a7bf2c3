-- outbox V13: how far a relay has come, where its broker can't keep that.
--
-- A relay with sink.kind = "kafka" keeps its progress in Kafka and writes nothing here. Only the relay
-- whose session holds the leader's lock adds rows; the newest one counts. Older ones are deleted now
-- and then.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

create table if not exists outbox.progress (
    relay     text        not null,
    seq       bigint      generated always as identity,
    record    bytea       not null,
    stored_at timestamptz not null default clock_timestamp(),
    primary key (relay, seq)
);

comment on table outbox.progress is
    'How far each relay has come whose broker keeps no progress; of a relay, the row of the highest seq counts';
comment on column outbox.progress.relay is 'The relay''s name';
comment on column outbox.progress.record is
    'JSON: select convert_from(record, ''UTF8'') shows it. Never changed by hand: use outbox-relay resume';

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
