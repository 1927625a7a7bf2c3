-- inbox V9: what is remembered under a watermark can be forgotten whatever is published.
--
-- In a database with a publication of all tables that somebody made, deleting from a table without a key
-- fails: old ids were not forgotten. Only with wal_level = logical are the rows that go written to the WAL.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table inbox.applied replica identity full;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
