-- outbox V10: what keeps a discarded event until the relay has come to the discard fires for everybody.
--
-- Also for a session with session_replication_role = replica, as tools have that copy data.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table outbox.dead_letters enable always trigger keep_until_settled;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
