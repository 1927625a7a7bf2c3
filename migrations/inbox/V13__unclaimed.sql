-- inbox V13: a dead letter of which no claim is kept knows its copies, and whoever truncates inbox.parked or
-- inbox.dead_letters is noted.
--
-- A message outside the window was a dead letter without a claim. Replayed, it took effect though a copy had done so
-- when its day was kept by then, and copies that came later did not know of it.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table inbox.parked add column if not exists unclaimed boolean not null default false;
comment on column inbox.parked.unclaimed is
    'A replayed dead letter without a row in inbox.messages: if its day is kept now, it is claimed when it is handled';
alter table inbox.dead_letters add column if not exists unclaimed boolean not null default false;
comment on column inbox.dead_letters.unclaimed is
    'It had no row in inbox.messages when it was given up, since its day was not kept';
-- Copies are looked for among those that were replayed or discarded, too.
create index if not exists dead_letters_of_message on inbox.dead_letters (consumer_id, message_id);

update inbox.dead_letters as d set unclaimed = true
where d.code in ('outside-window', 'undated') and d.state = 'dead' and not d.unclaimed
    and not exists (
        select from inbox.messages as m
        where m.consumer_id = d.consumer_id and m.id = d.message_id and m.day = d.day);

alter table inbox.losses drop constraint if exists losses_what_check;
alter table inbox.losses add constraint losses_what_check check (what in
    ('truncated', 'deleted', 'dropped', 'detached', 'consumer', 'watermark', 'parked', 'dead_letters'));
comment on column inbox.losses.what is
    'Rows of inbox.messages: truncated, deleted, or a partition dropped (or renamed) or detached. A row '
    'of inbox.consumers or of inbox.watermarks. Messages in inbox.parked or inbox.dead_letters, truncated';

-- Messages that wait, or were given up, are kept nowhere else. Whoever empties a table may not be allowed to write the
-- note.
create or replace function inbox.note_waiting() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    today constant date := (statement_timestamp() at time zone 'utc')::date;
    noted boolean := false;
    of_consumer record;
begin
    for of_consumer in
        -- A day of no calendar is that of a message without a time.
        select w.consumer_id as id, count(*) as rows,
            min(case when w.day between today - 3650 and today then w.day
                else (w.came_at at time zone 'utc')::date end) as first
        from (
            select p.consumer_id, p.day, p.parked_at as came_at from inbox.parked as p
            where tg_table_name = 'parked'
            union all
            select d.consumer_id, d.day, d.first_failed_at from inbox.dead_letters as d
            where tg_table_name = 'dead_letters' and d.state = 'dead'
        ) as w
        group by w.consumer_id order by w.consumer_id
    loop
        perform inbox.note_loss(tg_table_name, of_consumer.id, least(of_consumer.first, today), today,
            of_consumer.rows);
        noted := true;
    end loop;
    -- What others have put there since the snapshot is not seen.
    if not noted and inbox.is_strict() and pg_relation_size(tg_relid) > 0 then
        perform inbox.note_loss(tg_table_name, null, today, today, null);
    end if;
    return null;
end
$$;

revoke execute on function inbox.note_waiting() from public;

create or replace trigger note_truncate before truncate on inbox.parked
    for each statement execute function inbox.note_waiting();
alter table inbox.parked enable always trigger note_truncate;
create or replace trigger note_truncate before truncate on inbox.dead_letters
    for each statement execute function inbox.note_waiting();
alter table inbox.dead_letters enable always trigger note_truncate;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
