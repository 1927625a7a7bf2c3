-- outbox V16: parked events that come back from a copy of the table are known as such.
--
-- Whoever puts the table back to an older state, with pg_restore for example, has events parked again that were
-- released or discarded since, and nothing else tells them from those that never were delivered. A row that is
-- inserted with a time of before its transaction began comes from such a copy.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table outbox.dead_letters add column if not exists restored_at timestamptz;

comment on column outbox.dead_letters.restored_at is
    'When it came into the table from a copy: it may have been released or discarded after that was made; null '
    'where the relay parked it';

-- The header is that of what a repair publishes: the event may have been delivered before.
create or replace function outbox.note_restored() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    mark text := 'outbox-repaired';
begin
    new.restored_at := clock_timestamp();
    if jsonb_typeof(new.headers) = 'array' then
        if exists (select from jsonb_array_elements(new.headers) h where h ->> 0 = 'ce_outboxposition') then
            mark := 'ce_outboxrepaired';
        end if;
        if not exists (select from jsonb_array_elements(new.headers) h where h ->> 0 = mark) then
            new.headers := new.headers || jsonb_build_array(jsonb_build_array(mark, '1'));
        end if;
    end if;
    return new;
end
$$;

drop trigger if exists note_restored on outbox.dead_letters;
create trigger note_restored
    before insert on outbox.dead_letters
    for each row when (new.state in ('parked', 'releasing') and new.parked_at < now())
    execute function outbox.note_restored();
-- Also where replicated sessions insert, as some tools that restore do.
alter table outbox.dead_letters enable always trigger note_restored;

create index if not exists dead_letters_restored
    on outbox.dead_letters (relay, restored_at)
    where restored_at is not null and state in ('parked', 'releasing');

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
