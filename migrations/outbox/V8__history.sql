-- outbox V8: who discarded an event, and history that may be deleted at any time.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table outbox.dead_letters
    add column if not exists discarded_by  text,
    add column if not exists discarded_why text;

comment on column outbox.dead_letters.discarded_by is 'The login that discarded it';
comment on column outbox.dead_letters.discarded_why is 'What it said why';

-- What was parked just before the relay ended is sent to it once more. Were a discarded event forgotten
-- by then, it would be delivered: until the relay has come to the discard, a DELETE leaves it.
create or replace function outbox.keep_until_settled() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;

drop trigger if exists keep_until_settled on outbox.dead_letters;
create trigger keep_until_settled
    before delete on outbox.dead_letters
    for each row when (old.state = 'discarded' and old.release_id is not null)
    execute function outbox.keep_until_settled();

-- What the relay deletes by retention.keep_dead_letters is found by its age.
create index if not exists dead_letters_history
    on outbox.dead_letters (relay, changed_at)
    where state in ('released', 'discarded');

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
