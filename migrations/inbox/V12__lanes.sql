-- inbox V12: a message whose key waits for a retry does not wait for the handler that retries it.
--
-- Whoever takes a waiting key up has its row in inbox.parked_lanes locked while its handler runs. New messages of the
-- key locked the same row, so they waited for that handler, and with them all messages of their batch, or of their
-- partition. Now they only keep the row from being deleted, and are added to inbox.parked at once. Under SERIALIZABLE
-- they wait as before: there, whoever did not wait would make the other fail.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- Claims messages in the transaction of their effects: which are fresh or wait, and which lanes are
-- parked. What waits is to be added to inbox.parked in this transaction.
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
    -- None of the lanes is freed before the end of this transaction. Sorted, so that two batches wait for one another
    -- in one direction only.
    if current_setting('transaction_isolation') = 'serializable' then
        select coalesce(array_agg(l.lane), '{}') into parked
        from (
            select p.lane from inbox.parked_lanes as p
            where p.consumer_id = consumer and p.lane = any (lanes)
            order by p.lane
            for update
        ) as l;
    else
        select coalesce(array_agg(l.lane), '{}') into parked
        from (
            select p.lane from inbox.parked_lanes as p
            where p.consumer_id = consumer and p.lane = any (lanes)
            order by p.lane
            for key share
        ) as l;
    end if;
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
    -- None of the lanes is freed before the end of this transaction. Sorted, so that two batches wait for one another
    -- in one direction only.
    if current_setting('transaction_isolation') = 'serializable' then
        select coalesce(array_agg(l.lane), '{}') into parked
        from (
            select p.lane from inbox.parked_lanes as p
            where p.consumer_id = consumer and p.lane = any (lanes)
            order by p.lane
            for update
        ) as l;
    else
        select coalesce(array_agg(l.lane), '{}') into parked
        from (
            select p.lane from inbox.parked_lanes as p
            where p.consumer_id = consumer and p.lane = any (lanes)
            order by p.lane
            for key share
        ) as l;
    end if;
end
$$;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
