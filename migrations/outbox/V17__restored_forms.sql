-- outbox V17: a parked event that comes back from a copy is marked in the form in which the relay has written its headers.
--
-- A row may have headers of its own that look like those of the other form (`ce_outbox*` beside the relay's `outbox-*`).

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- The header is that of what a repair publishes: the event may have been delivered before.
create or replace function outbox.note_restored() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    mark text := 'ce_outboxrepaired';
begin
    new.restored_at := clock_timestamp();
    if jsonb_typeof(new.headers) = 'array' then
        if exists (select from jsonb_array_elements(new.headers) h where h ->> 0 = 'outbox-position')
            or not exists (select from jsonb_array_elements(new.headers) h where h ->> 0 = 'ce_outboxposition')
        then
            mark := 'outbox-repaired';
        end if;
        if not exists (select from jsonb_array_elements(new.headers) h where h ->> 0 = mark) then
            new.headers := new.headers || jsonb_build_array(jsonb_build_array(mark, '1'));
        end if;
    end if;
    return new;
end
$$;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
