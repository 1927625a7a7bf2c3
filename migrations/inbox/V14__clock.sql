-- inbox V14: a key waits no longer than it was to wait, also if the database's clock was ahead when that was stored.
--
-- due_at is a time of the database's clock. If that jumps ahead for a moment and is set back, a key whose message failed
-- meanwhile was due in the far future, and no one could see that this was not asked for.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table inbox.parked_lanes add column if not exists set_at timestamptz not null default now();
comment on column inbox.parked_lanes.set_at is
    'When due_at was set, by the database''s clock. If it is in the future, the clock was set back since';
alter table inbox.parked_lanes add column if not exists asked interval;
comment on column inbox.parked_lanes.asked is
    'For how long from set_at a handler deferred its message, by the clock of its process; else due_at - set_at';

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
