-- inbox V6: which topic a watermark is of, since another one may come to have its name.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table inbox.watermarks add column if not exists topic_id text;
comment on column inbox.watermarks.topic_id is
    'The id that the broker gave the topic; null where it gave none. Where it is another one, the topic '
    'was made anew, and is read from its beginning';

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
