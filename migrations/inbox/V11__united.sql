-- inbox V11: what has taken effect under one number of a consumer with a watermark is not done again under the other.
--
-- inbox.unite() did not look into inbox.applied, where such a consumer remembers ids. So a message that waited
-- under one number and had taken effect under the other took effect again once it was due.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- For a consumer that has come to have two numbers: what is remembered and what waits under either is one
-- consumer's then, under `into_id`. Of a message that has taken effect under one, no copy waits under the other.
create or replace function inbox.unite(from_id int, into_id int) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- How many ids the arrays of inbox.applied hold is not known to the planner.
    set enable_nestloop = off
as $$
begin
    update inbox.consumers set id = into_id where id = from_id;
    if not found then
        raise exception 'no consumer has the number %', from_id;
    end if;
    with waits as materialized (
        select p.consumer_id, p.message_id, p.topic, p.partition from inbox.parked as p
        where p.consumer_id in (from_id, into_id)
        union
        select d.consumer_id, d.message_id, d.topic, d.partition from inbox.dead_letters as d
        where d.consumer_id in (from_id, into_id) and d.state = 'dead'
    ), taken as materialized (
        select a.consumer_id, a.topic, a.partition, unnest(a.ids) as id from inbox.applied as a
        where a.consumer_id in (from_id, into_id)
    ), settled as (
        -- It took effect, or was discarded, under the other number; or it waits under both.
        select w.consumer_id, w.message_id from waits as w
        where case when exists (select from waits as o
                where o.message_id = w.message_id and o.consumer_id <> w.consumer_id)
            then w.consumer_id = from_id
            else exists (select from inbox.messages as m
                where m.consumer_id = from_id + into_id - w.consumer_id and m.id = w.message_id)
                or exists (select from taken as t
                where t.consumer_id = from_id + into_id - w.consumer_id and t.topic = w.topic
                    and t.partition = w.partition and t.id = w.message_id) end
    ), gone as (
        delete from inbox.parked as p using settled as s
        where p.consumer_id = s.consumer_id and p.message_id = s.message_id
    )
    update inbox.dead_letters as d set state = 'discarded', changed_at = now()
    from settled as s
    where d.consumer_id = s.consumer_id and d.message_id = s.message_id and d.state = 'dead';
    -- Under a watermark, ids are forgotten after some minutes. Of what waits and is no newer than what the
    -- other number has forgotten, no one can tell whether it took effect there.
    with waits as (
        select p.*, case when substr(p.message_id::text, 15, 1) = '7'
            then to_timestamp(('x' || left(replace(p.message_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
            else p.produced_at end as own
        from inbox.parked as p where p.consumer_id in (from_id, into_id)
    ), untold as materialized (
        select w.* from waits as w
        where exists (select from inbox.watermarks as o
                where o.consumer_id = from_id + into_id - w.consumer_id and o.topic = w.topic
                    and o.partition = w.partition and coalesce(w.record_offset < o.next_offset, true))
            and exists (select from inbox.applied as a
                where a.consumer_id = from_id + into_id - w.consumer_id and a.topic = w.topic
                    and a.partition = w.partition and a.ids = '{}' and coalesce(w.own <= a.newest, true))
    ), gone as (
        delete from inbox.parked as p using untold as u
        where p.consumer_id = u.consumer_id and p.lane = u.lane and p.seq = u.seq
    )
    insert into inbox.dead_letters (consumer_id, lane, message_id, day, topic, partition, record_offset, key,
        payload, headers, code, error, attempts, replays, first_failed_at, produced_at, stored_at)
    select u.consumer_id, u.lane, u.message_id, u.day, u.topic, u.partition, u.record_offset, u.key,
        u.payload, u.headers, 'outside-window',
        'it waited when two numbers of the consumer were united: it may have taken effect under the other',
        0, u.replays, u.parked_at, u.produced_at, u.stored_at
    from untold as u
    on conflict do nothing;
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

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
