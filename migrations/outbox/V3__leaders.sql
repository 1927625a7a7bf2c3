-- outbox V3: which relay leads.
--
-- Of several relays of one slot the one leads whose session holds the advisory lock that is named
-- here. Each leader draws the lock's key anew, and only relays may write here: so nobody else can
-- hold a lock that looks like a leader's. The grants for the relay are in docs/ROLES.md.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

create table if not exists outbox.leaders (
    slot    text        primary key,
    key     bigint      not null,
    pid     int         not null,
    login   oid         not null,
    since   timestamptz not null default clock_timestamp()
);

comment on table outbox.leaders is
    'The newest leader of each replication slot; it leads as long as its session holds its lock';
comment on column outbox.leaders.key is 'Of the session''s advisory lock, drawn at random';
comment on column outbox.leaders.pid is 'The server''s process of that session';
comment on column outbox.leaders.login is 'The role that the session logged in as';

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
