-- inbox V4: functions mean the same under any search_path and setting, and nobody waits for maintain().
--
-- Consumers run with a search_path of their own, in which others may have put functions and
-- operators of the same names.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- The oldest and the newest day for which there is a partition; null when there is none. What is
-- older or newer can't be checked, and is never taken for new.
create or replace function inbox.window(out oldest date, out newest date)
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    select min(to_date(right(c.relname, 8), 'YYYYMMDD')), max(to_date(right(c.relname, 8), 'YYYYMMDD'))
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'inbox.messages'::regclass and c.relname ~ '^messages_[0-9]{8}$';
end;

-- Makes the partitions of the days ahead and drops those past retention. Call it at least every
-- `ahead_days`; consumers do so every hour, and every minute while a partition past retention is left.
-- It runs with its owner's rights, since only an owner may drop a partition.
create or replace function inbox.maintain(out oldest date, out newest date)
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    -- Making one waits for others that do the like, such as ANALYZE, and nobody waits behind it.
    set lock_timeout = '2s'
as $$
declare
    today constant date := (statement_timestamp() at time zone 'utc')::date;
    wanted inbox.settings;
    newest_before date;
    made date;
    dropped text;
begin
    -- `outboxmt` in ASCII. One at a time: what another one does need not be done again.
    if pg_try_advisory_xact_lock(8031453476610927988) then
        select * into strict wanted from inbox.settings;
        -- Days below the newest are never made again: an empty partition in place of one that
        -- was dropped would take its messages for new.
        select w.newest into newest_before from inbox.window() as w;
        made := coalesce(newest_before, today - wanted.retention_days - 1);
        begin
            while made < today + wanted.ahead_days loop
                made := made + 1;
                -- Attached, not created in place, which would lock the table against its writers.
                -- Vacuum has nothing to do where nothing is updated or deleted.
                execute format('create table inbox.%I (like inbox.messages including all) '
                    'with (autovacuum_vacuum_insert_threshold = -1)',
                    'messages_' || to_char(made, 'YYYYMMDD'));
                execute format('alter table inbox.messages attach partition inbox.%I '
                    'for values from (%L) to (%L)',
                    'messages_' || to_char(made, 'YYYYMMDD'), made, made + 1);
            end loop;
        exception when lock_not_available then
            if newest_before is null or newest_before < today then
                raise;
            end if;
            raise notice 'inbox.maintain: the table is busy, new partitions are made next time';
        end;
        -- Dropping locks the whole table for a moment, and behind a waiting lock everyone waits.
        perform set_config('lock_timeout', '50ms', true);
        begin
            for dropped in
                select c.relname
                from pg_inherits i
                join pg_class c on c.oid = i.inhrelid
                where i.inhparent = 'inbox.messages'::regclass
                    and c.relname ~ '^messages_[0-9]{8}$'
                    and to_date(right(c.relname, 8), 'YYYYMMDD') < today - wanted.retention_days
                order by c.relname
            loop
                execute format('drop table inbox.%I', dropped);
            end loop;
        exception when lock_not_available then
            raise notice 'inbox.maintain: the table is busy, old partitions stay until next time';
        end;
    end if;
    select w.oldest, w.newest into oldest, newest from inbox.window() as w;
end
$$;

-- Claims messages in the transaction of their effects: which are fresh or wait, and which lanes are
-- parked. What waits is to be added to inbox.parked in this transaction, whose locks on the lanes
-- are taken. Sorted, so that two batches wait for one another in one direction only.
--
-- Two statements on purpose: the second one's snapshot is taken after the first has waited for
-- whoever had one of the messages, so what they parked is seen.
create or replace function inbox.claim_batch(
    consumer int, messages uuid[], days date[], lanes uuid[],
    out claimed uuid[], out parked uuid[]
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    with fresh as (
        insert into inbox.messages (consumer_id, id, day)
        select consumer, m.id, m.day from unnest(messages, days) as m (id, day) order by m.id, m.day
        on conflict do nothing
        returning id
    )
    select coalesce(array_agg(fresh.id), '{}') into claimed from fresh;
    select coalesce(array_agg(l.lane), '{}') into parked
    from (
        select p.lane from inbox.parked_lanes as p
        where p.consumer_id = consumer and p.lane = any (lanes)
        order by p.lane
        for update
    ) as l;
end
$$;

-- Locks a partition's watermark until the end of the transaction, and says which of the lanes are
-- parked. In this order: what the last holder of the lock parked is seen.
create or replace function inbox.lock_watermark(
    consumer int, of_topic text, of_partition int, lanes uuid[],
    out at_position text, out at_before text, out at_offset bigint, out parked uuid[]
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    loop
        select w.position, w.before, w.next_offset into at_position, at_before, at_offset
        from inbox.watermarks as w
        where w.consumer_id = consumer and w.topic = of_topic and w.partition = of_partition
        for update;
        exit when found;
        insert into inbox.watermarks (consumer_id, topic, partition)
        values (consumer, of_topic, of_partition)
        on conflict do nothing;
    end loop;
    select coalesce(array_agg(l.lane), '{}') into parked
    from (
        select p.lane from inbox.parked_lanes as p
        where p.consumer_id = consumer and p.lane = any (lanes)
        order by p.lane
        for update
    ) as l;
end
$$;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
