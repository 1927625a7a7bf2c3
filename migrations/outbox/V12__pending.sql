-- outbox V12: what the relay asks the table of parked events is found without reading all of it.
--
-- However many events are parked, and however much history is kept, nobody waits for these looks: they
-- share a session with all that parks and releases.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- Events of topics that may still appear.
create index if not exists dead_letters_missing
    on outbox.dead_letters (relay, parked_at)
    where state = 'parked' and reason = 'unknown_topic';

-- Events that the broker has still to be asked about.
create index if not exists dead_letters_suspected
    on outbox.dead_letters (relay, state, commit_lsn, ordinal, id)
    where state in ('parked', 'releasing') and reason = 'suspected';

-- A repair leaves out what was parked. An id may be longer than a btree takes.
create index if not exists dead_letters_event
    on outbox.dead_letters using hash (event_id);

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
