-- inbox V10: what somebody else has the inbox forget is noted, and told by the consumers.
--
-- A day that is truncated, dropped or detached, rows that are deleted, a consumer's number, a watermark:
-- messages that come again could take effect again, and nothing said so. More than 400 lines, since none of
-- it is of use without the rest.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- `outboxmt` in ASCII: the upkeep's lock, before those of tables, as inbox.maintain() takes it.
do $$
begin
    perform pg_advisory_xact_lock(8031453476610927988);
end
$$;

create table if not exists inbox.losses (
    id          uuid        primary key default gen_random_uuid(),
    what        text        not null check (what in
                    ('truncated', 'deleted', 'dropped', 'detached', 'consumer', 'watermark')),
    consumer_id int,
    first_day   date,
    last_day    date,
    messages    bigint,
    lost        jsonb,
    by_role     text        not null default session_user,
    noted_at    timestamptz not null default clock_timestamp(),
    last_at     timestamptz not null default clock_timestamp()
);
comment on table inbox.losses is
    'What somebody else than inbox.maintain() had the inbox forget. Consumers tell of each row until it '
    'is deleted here, or its days are past retention';
comment on column inbox.losses.what is
    'Rows of inbox.messages: truncated, deleted, or a partition dropped (or renamed) or detached. A row '
    'of inbox.consumers or of inbox.watermarks';
comment on column inbox.losses.consumer_id is 'Whose; null where all consumers'' are';
comment on column inbox.losses.first_day is 'The days of the messages, from this one to last_day';
comment on column inbox.losses.messages is 'How many; null where it is not known';
comment on column inbox.losses.lost is
    'The row, to be put back: insert into inbox.watermarks select '
    '(jsonb_populate_record(null::inbox.watermarks, lost)).* from inbox.losses where id = ...';
comment on column inbox.losses.by_role is
    'Who has done it; of what was dropped or detached, who found it';
comment on column inbox.losses.noted_at is 'When it was noted; of several within an hour, the first';

create table if not exists inbox.days (
    day     date        primary key,
    made_at timestamptz not null default now()
);
comment on table inbox.days is
    'Days of which inbox.maintain() has made a partition and has not dropped it';

insert into inbox.days (day)
select to_date(right(c.relname, 8), 'YYYYMMDD')
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'inbox.messages'::regclass and c.relname ~ '^messages_[0-9]{8}$'
on conflict do nothing;

-- Snapshots last for a transaction: what others have committed since is not seen, and can't be updated.
create or replace function inbox.is_strict() returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    select current_setting('transaction_isolation') in ('repeatable read', 'serializable');
end;

create or replace function inbox.partition_of(day date) returns regclass
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    select to_regclass('inbox.messages_' || to_char(day, 'YYYYMMDD'));
end;

-- Whether the day's table is there and is no partition, or is about to be none. As of now, whatever the
-- transaction's snapshot is.
create or replace function inbox.is_detached(day date) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    select inbox.partition_of(day) is not null
        and pg_partition_root(inbox.partition_of(day)) is distinct from 'inbox.messages'::regclass;
end;

-- Several of one kind within an hour are one: a job may delete row by row. No one waits for another's note,
-- nor fails for it.
create or replace function inbox.note_loss(kind text, consumer int, first date, last date, rows bigint)
    returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if kind = 'detached' and exists (
        select from inbox.losses as l where l.what = kind and first between l.first_day and l.last_day) then
        return;
    end if;
    if not inbox.is_strict() then
        update inbox.losses as l
        set first_day = least(l.first_day, first), last_day = greatest(l.last_day, last),
            messages = l.messages + rows, last_at = clock_timestamp()
        where l.id = (
            select k.id from inbox.losses as k
            where k.what = kind and k.consumer_id is not distinct from consumer
                and case kind when 'detached' then first between k.first_day and k.last_day + 1
                    else k.by_role = session_user and k.noted_at > now() - interval '1 hour' end
            order by k.noted_at desc limit 1
            for update skip locked);
        if found then
            return;
        end if;
    end if;
    insert into inbox.losses (what, consumer_id, first_day, last_day, messages)
    values (kind, consumer, first, last, rows);
end
$$;

-- Whoever empties a table may not be allowed to write the note.
create or replace function inbox.note_messages() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    of_day date;
    of_consumer record;
begin
    if tg_op = 'TRUNCATE' then
        -- A partition has one day, and an empty one loses nothing.
        execute format('select day from %I.%I limit 1', tg_table_schema, tg_table_name) into of_day;
        if of_day is null and inbox.is_strict() and pg_relation_size(tg_relid) > 0
            and tg_table_name ~ '^messages_[0-9]{8}$' then
            of_day := to_date(right(tg_table_name, 8), 'YYYYMMDD');
        end if;
        if of_day is not null then
            perform inbox.note_loss('truncated', null, of_day, of_day, null);
        end if;
    else
        for of_consumer in
            select g.consumer_id as id, min(g.day) as first, max(g.day) as last, count(*) as rows
            from gone as g group by g.consumer_id order by g.consumer_id
        loop
            perform inbox.note_loss('deleted', of_consumer.id, of_consumer.first, of_consumer.last,
                of_consumer.rows);
        end loop;
    end if;
    return null;
end
$$;

-- Rows that can be put back.
create or replace function inbox.note_rows() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    kind constant text := case tg_table_name when 'consumers' then 'consumer' else 'watermark' end;
    gone_row record;
begin
    if tg_op = 'DELETE' then
        for gone_row in select to_jsonb(g) as lost from gone as g
        loop
            perform inbox.note_row(kind, gone_row.lost);
        end loop;
    else
        -- Locked: where a snapshot has an older one, that is no place to continue at, and this fails.
        for gone_row in execute
            format('select to_jsonb(t) as lost from %I.%I as t for update', tg_table_schema, tg_table_name)
        loop
            perform inbox.note_row(kind, gone_row.lost);
        end loop;
    end if;
    return null;
end
$$;

-- The newest of a row alone, where others' transactions allow that.
create or replace function inbox.note_row(kind text, row_that_was jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    consumer constant int :=
        (case kind when 'consumer' then row_that_was ->> 'id' else row_that_was ->> 'consumer_id' end)::int;
begin
    if not inbox.is_strict() then
        delete from inbox.losses as l
        where l.id in (
            select k.id from inbox.losses as k
            where k.what = kind and k.consumer_id = consumer
                and k.lost ->> 'topic' is not distinct from row_that_was ->> 'topic'
                and k.lost ->> 'partition' is not distinct from row_that_was ->> 'partition'
            for update skip locked);
    end if;
    insert into inbox.losses (what, consumer_id, lost) values (kind, consumer, row_that_was);
end
$$;

-- The triggers of inbox.messages or of one of its partitions, to which a statement's don't come from
-- their parent. They fire in each session, and cost nothing but where rows go.
create or replace function inbox.watch(of_table regclass) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if of_table <> 'inbox.messages'::regclass then
        execute format('create or replace trigger note_truncate before truncate on %s '
            'for each statement execute function inbox.note_messages()', of_table);
        execute format('alter table %s enable always trigger note_truncate', of_table);
    end if;
    execute format('create or replace trigger note_delete after delete on %s '
        'referencing old table as gone for each statement execute function inbox.note_messages()',
        of_table);
    execute format('alter table %s enable always trigger note_delete', of_table);
end
$$;

create or replace function inbox.is_watched(of_table regclass) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    select count(*) = case of_table when 'inbox.messages'::regclass then 1 else 2 end
    from pg_trigger as t
    where t.tgrelid = of_table and t.tgname in ('note_truncate', 'note_delete') and t.tgenabled = 'A';
end;

-- The oldest and the newest day that are kept without a gap up to today and beyond; null when there
-- is none. What is older or newer can't be checked, and is never taken for new.
create or replace function inbox.window(out oldest date, out newest date)
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    -- A clock that jumps by years leaves days far from all others. One that is being detached takes no rows.
    with days as (
        select to_date(right(c.relname, 8), 'YYYYMMDD') as day
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'inbox.messages'::regclass and not i.inhdetachpending
            and c.relname ~ '^messages_[0-9]{8}$'
    ), runs as (
        select day, day - (row_number() over (order by day))::int as run from days
    ), ranges as (
        select min(day) as first, max(day) as last from runs group by run
    )
    select first, last from ranges
    order by first > (statement_timestamp() at time zone 'utc')::date,
        abs(first - (statement_timestamp() at time zone 'utc')::date)
    limit 1;
end;

-- Makes the partitions of the days that are kept and of those ahead, and drops those past retention. What
-- somebody else has dropped or detached is noted.
-- Call it at least every `ahead_days`; consumers do so every hour, and every minute while a partition
-- past retention is left. It runs with its owner's rights, since only an owner may drop a partition.
create or replace function inbox.maintain(out oldest date, out newest date)
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    -- Making one waits for sessions that hold the same kind of lock, such as ANALYZE, and no one waits behind it.
    set lock_timeout = '2s'
as $$
declare
    -- Farther than that, days between those that are there and today are not made.
    gap_max constant int := 400;
    today constant date := (statement_timestamp() at time zone 'utc')::date;
    wanted inbox.settings;
    known inbox.upkeep;
    newest_before date;
    made date;
    detached date[] := '{}';
    partition regclass;
    dropped record;
begin
    select * into strict wanted from inbox.settings;
    begin
        -- One at a time. Whoever comes because a day is missing waits for the one that is making it.
        perform pg_advisory_xact_lock(8031453476610927988);
    exception when lock_not_available or deadlock_detected then
        select w.oldest, w.newest into oldest, newest from inbox.window() as w;
        -- Messages of a day that is missing are not to be given up for that.
        if newest is null or newest < today or exists (
            select from inbox.days as d
            where d.day between today - wanted.retention_days and today
                and inbox.partition_of(d.day) is null) then
            raise;
        end if;
        raise notice 'inbox.maintain: somebody else is at it for long, the rest is done next time';
        return;
    end;
    insert into inbox.upkeep default values on conflict do nothing;
    select * into strict known from inbox.upkeep;
    select w.newest into newest_before from inbox.window() as w;
    -- A clock that is days ahead of the last visit is right if no one came for so long, and wrong
    -- if it goes back. Days that are dropped by mistake are lost; kept ones cost a day's disk.
    if known.visited_on is null or today <= known.visited_on + 1
        or statement_timestamp() >= known.doubted_since + interval '1 day' then
        update inbox.upkeep set visited_on = today, doubted_since = null
        where visited_on is distinct from today or doubted_since is not null;
        known.doubted_since := null;
    elsif known.doubted_since is null or statement_timestamp() < known.doubted_since then
        known.doubted_since := statement_timestamp();
        update inbox.upkeep set doubted_since = known.doubted_since;
    end if;
    made := greatest(known.forgotten_through + 1, today - wanted.retention_days);
    if newest_before < made and made - newest_before <= gap_max then
        made := greatest(known.forgotten_through, newest_before) + 1;
    end if;
    begin
        while made <= today + wanted.ahead_days loop
            if inbox.is_detached(made) then
                -- Nothing is forgotten yet, so it is not replaced: the table has the ids.
                detached := detached || made;
            else
                insert into inbox.days (day) values (made) on conflict do nothing;
                if inbox.partition_of(made) is null then
                    -- It was there, and whoever dropped it was not this function.
                    if not found then
                        perform inbox.note_loss('dropped', null, made, made, null);
                    end if;
                    -- Attached, not created in place, which would lock the table against its writers.
                    -- Vacuum has nothing to do where nothing is updated or deleted.
                    execute format('create table inbox.%I (like inbox.messages including all) '
                        'with (autovacuum_vacuum_insert_threshold = -1)',
                        'messages_' || to_char(made, 'YYYYMMDD'));
                    partition := inbox.partition_of(made);
                    perform inbox.watch(partition);
                    execute format('alter table inbox.messages attach partition %s '
                        'for values from (%L) to (%L)', partition, made, made + 1);
                end if;
            end if;
            made := made + 1;
        end loop;
    exception when lock_not_available then
        if newest_before is null or newest_before < today
            or made <= today and exists (select from inbox.days as d where d.day = made) then
            raise;
        end if;
        raise notice 'inbox.maintain: the table is busy, new partitions are made next time';
    end;
    -- From here on, nothing that is in the way is worth a wait: behind a waiting lock on the whole table
    -- everyone waits.
    perform set_config('lock_timeout', '50ms', true);
    begin
        foreach made in array detached loop
            perform inbox.note_loss('detached', null, made, made, null);
        end loop;
        -- What no message can come of any more, and what is as it was again.
        delete from inbox.losses where id in (
            select l.id from inbox.losses as l
            where l.last_day < today - wanted.retention_days and known.doubted_since is null
                or l.what = 'detached' and not exists (
                    select from generate_series(l.first_day, l.last_day, interval '1 day') as d (day)
                    where inbox.is_detached(d.day::date))
                or l.what = 'consumer' and exists (
                    select from inbox.consumers as c
                    where c.id = l.consumer_id and c.name = l.lost ->> 'name')
                or l.what = 'watermark' and exists (
                    select from inbox.watermarks as w
                    where w.consumer_id = l.consumer_id and w.topic = l.lost ->> 'topic'
                        and w.partition = (l.lost ->> 'partition')::int
                        and w.next_offset >= (l.lost ->> 'next_offset')::bigint)
            for update of l skip locked);
    exception when lock_not_available then
        raise notice 'inbox.maintain: inbox.losses is busy, it is looked through next time';
    end;
    for partition in
        select 'inbox.messages'::regclass
        union all
        select i.inhrelid::regclass from pg_inherits as i where i.inhparent = 'inbox.messages'::regclass
    loop
        begin
            if not inbox.is_watched(partition) then
                perform inbox.watch(partition);
            end if;
        -- Busy; dropped meanwhile; another role's; no table of this server.
        exception when lock_not_available or undefined_table or insufficient_privilege or wrong_object_type
            or feature_not_supported then
            raise notice 'inbox.maintain: the triggers of % are not put back: %', partition, sqlerrm;
        end;
    end loop;
    begin
        for dropped in
            select c.relname, to_date(right(c.relname, 8), 'YYYYMMDD') as day
            from pg_inherits i
            join pg_class c on c.oid = i.inhrelid
            where i.inhparent = 'inbox.messages'::regclass and not i.inhdetachpending
                and c.relname ~ '^messages_[0-9]{8}$'
                and to_date(right(c.relname, 8), 'YYYYMMDD') < today - wanted.retention_days
                and known.doubted_since is null
            order by c.relname
        loop
            execute format('drop table inbox.%I', dropped.relname);
            delete from inbox.days where day = dropped.day;
            update inbox.upkeep
            set forgotten_through = greatest(forgotten_through, dropped.day);
        end loop;
    exception when lock_not_available then
        raise notice 'inbox.maintain: the table is busy, old partitions stay until next time';
    end;
    select w.oldest, w.newest into oldest, newest from inbox.window() as w;
end
$$;

-- For a consumer that has come to have two numbers: what is remembered and what waits under either is one
-- consumer's then, under `into_id`. Of a message that has taken effect under one, no copy waits under the other.
create or replace function inbox.unite(from_id int, into_id int) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update inbox.consumers set id = into_id where id = from_id;
    if not found then
        raise exception 'no consumer has the number %', from_id;
    end if;
    with waits as (
        select p.consumer_id, p.message_id from inbox.parked as p where p.consumer_id in (from_id, into_id)
        union
        select d.consumer_id, d.message_id from inbox.dead_letters as d
        where d.consumer_id in (from_id, into_id) and d.state = 'dead'
    ), settled as (
        -- It took effect, or was discarded, under the other number; or it waits under both.
        select w.consumer_id, w.message_id from waits as w
        where case when exists (select from waits as o
                where o.message_id = w.message_id and o.consumer_id <> w.consumer_id)
            then w.consumer_id = from_id
            else exists (select from inbox.messages as m
                where m.consumer_id = from_id + into_id - w.consumer_id and m.id = w.message_id) end
    ), gone as (
        delete from inbox.parked as p using settled as s
        where p.consumer_id = s.consumer_id and p.message_id = s.message_id
    )
    update inbox.dead_letters as d set state = 'discarded', changed_at = now()
    from settled as s
    where d.consumer_id = s.consumer_id and d.message_id = s.message_id and d.state = 'dead';
    insert into inbox.parked_lanes (consumer_id, lane, attempts, due_at, code, error, since)
    select into_id, l.lane, l.attempts, l.due_at, l.code, l.error, l.since
    from inbox.parked_lanes as l where l.consumer_id = from_id
    on conflict do nothing;
    delete from inbox.parked_lanes where consumer_id = from_id;
    update inbox.parked set consumer_id = into_id where consumer_id = from_id;
    update inbox.dead_letters set consumer_id = into_id where consumer_id = from_id;
    insert into inbox.messages (day, consumer_id, id)
    select m.day, into_id, m.id from inbox.messages as m where m.consumer_id = from_id
    on conflict do nothing;
    update inbox.applied set consumer_id = into_id where consumer_id = from_id;
    -- Either began where the other had come to, or before: the farther one has all.
    update inbox.watermarks as w
    set position = f.position, before = f.before, next_offset = f.next_offset, topic_id = f.topic_id,
        changed_at = now()
    from inbox.watermarks as f
    where w.consumer_id = into_id and f.consumer_id = from_id and f.topic = w.topic
        and f.partition = w.partition and f.next_offset > w.next_offset;
    update inbox.watermarks as w set consumer_id = into_id
    where w.consumer_id = from_id and not exists (select from inbox.watermarks as o
        where o.consumer_id = into_id and o.topic = w.topic and o.partition = w.partition);
    update inbox.losses set consumer_id = into_id where consumer_id = from_id and what = 'deleted';
end
$$;

revoke execute on function inbox.is_strict() from public;
revoke execute on function inbox.partition_of(date) from public;
revoke execute on function inbox.is_detached(date) from public;
revoke execute on function inbox.unite(int, int) from public;
revoke execute on function inbox.note_loss(text, int, date, date, bigint) from public;
revoke execute on function inbox.note_messages() from public;
revoke execute on function inbox.note_rows() from public;
revoke execute on function inbox.note_row(text, jsonb) from public;
revoke execute on function inbox.watch(regclass) from public;
revoke execute on function inbox.is_watched(regclass) from public;

do $$
declare
    watched regclass;
    of_rows text;
begin
    -- In the order in which consumers lock them.
    foreach of_rows in array array['consumers', 'watermarks']
    loop
        execute format('create or replace trigger note_truncate before truncate on inbox.%I '
            'for each statement execute function inbox.note_rows()', of_rows);
        execute format('create or replace trigger note_delete after delete on inbox.%I '
            'referencing old table as gone for each statement execute function inbox.note_rows()',
            of_rows);
        execute format('alter table inbox.%I enable always trigger note_truncate', of_rows);
        execute format('alter table inbox.%I enable always trigger note_delete', of_rows);
    end loop;
    perform inbox.watch('inbox.messages'::regclass);
    for watched in
        select i.inhrelid::regclass from pg_inherits as i
        where i.inhparent = 'inbox.messages'::regclass
    loop
        perform inbox.watch(watched);
    end loop;
end
$$;

do $$
begin
    perform inbox.maintain();
end
$$;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
