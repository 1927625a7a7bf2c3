-- outbox V5: releases under way are found without reading history.
--
-- The relay finds by these indexes which releases wait and what is next of each; what was released or
-- discarded long ago costs neither room in them nor time.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

create index if not exists dead_letters_waiting
    on outbox.dead_letters (relay, release_id, release_ordinal)
    where state in ('releasing', 'discarded') and release_id is not null;

drop index if exists outbox.dead_letters_release;

comment on column outbox.dead_letters.release_id is
    'The release that changed it, as the WAL message names it; of a discarded event, only until the '
    'relay has come to the message';

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
