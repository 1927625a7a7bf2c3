-- inbox V11: whoever unites a consumer's two numbers has nothing done twice under a watermark either.
--
-- inbox.unite() of V10 looked for what had taken effect in inbox.messages alone. Under a watermark the ids are in
-- inbox.applied, for a quarter of an hour.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- The farthest of what either watermark has reached, as in inbox.watermarks.before: up to there one of them may have
-- taken a message that the other has not seen. `kept` is the position that remains, `other` the one that does not.
create or replace function inbox.united_before(kept text, other text, befores text[]) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    -- In another era, rows of one transaction may be counted otherwise: all of it is looked up.
    select b.place
    from (
        select unnest(befores) as place
        union all
        select split_part(split_part(other, '@', 1), ':', 3) || ':' || case
            when split_part(kept, '@', 2) = split_part(other, '@', 2)
                then split_part(split_part(other, '@', 1), ':', 4)
            else '18446744073709551615' end
    ) as b
    where b.place is not null
    order by lpad(split_part(b.place, ':', 1), 16, '0') collate "C" desc, split_part(b.place, ':', 2)::numeric desc
    limit 1;
end;

-- For a consumer that has come to have two numbers: what is remembered and what waits under either is one
-- consumer's then, under `into_id`. Of a message that has taken effect under one, no copy waits under the other. One
-- that may have done so, where that is forgotten, is a dead letter.
create or replace function inbox.unite(from_id int, into_id int) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Of each lane: what the lane's row says of failures is this message's.
    heads bigint[];
    lost record;
begin
    if from_id = into_id then
        raise exception 'both numbers are %, so there is nothing to unite; nothing was changed', from_id;
    end if;
    select l.id, l.consumer_id, l.lost ->> 'topic' as topic, l.lost ->> 'partition' as partition into lost
    from inbox.losses as l
    where l.what = 'watermark' and l.consumer_id in (from_id, into_id) and not exists (
        select from inbox.watermarks as w
        where w.consumer_id in (from_id, into_id) and w.topic = l.lost ->> 'topic'
            and w.partition = (l.lost ->> 'partition')::int and w.next_offset >= (l.lost ->> 'next_offset')::bigint)
    limit 1;
    if found then
        raise exception using
            message = format('the watermark of %s/%s was deleted under the number %s, so what it had taken could '
                'take effect again; nothing was changed', lost.topic, lost.partition, lost.consumer_id),
            hint = format('To continue where it was, type: insert into inbox.watermarks select '
                '(jsonb_populate_record(null::inbox.watermarks, lost)).* from inbox.losses where id = %1$L. If '
                'messages may take effect again, type: delete from inbox.losses where id = %1$L. Then unite '
                'them.', lost.id);
    end if;
    update inbox.consumers set id = into_id where id = from_id;
    if not found then
        raise exception 'no consumer has the number %', from_id;
    end if;

    select array_agg(h.seq) into heads
    from (
        select min(p.seq) as seq from inbox.parked as p where p.consumer_id in (from_id, into_id)
        group by p.consumer_id, p.lane
    ) as h;
    with waits as materialized (
        select p.consumer_id, from_id + into_id - p.consumer_id as other_id, p.message_id, p.day, p.topic,
            p.partition, p.record_offset
        from inbox.parked as p where p.consumer_id in (from_id, into_id)
        union all
        select d.consumer_id, from_id + into_id - d.consumer_id, d.message_id, d.day, d.topic, d.partition,
            d.record_offset
        from inbox.dead_letters as d where d.consumer_id in (from_id, into_id) and d.state = 'dead'
    ), taken as materialized (
        -- By position; or an operator has decided.
        select a.consumer_id, x.id
        from inbox.applied as a
        cross join lateral (select unnest(a.ids) as id) as x
        where a.consumer_id in (from_id, into_id) and x.id in (select w.message_id from waits as w)
        union
        select d.consumer_id, d.message_id from inbox.dead_letters as d
        where d.consumer_id in (from_id, into_id) and d.state <> 'dead'
    ), forgotten as materialized (
        select a.consumer_id, a.topic, a.partition, max(a.newest) as newest,
            (select w.next_offset from inbox.watermarks as w where w.consumer_id = a.consumer_id
                and w.topic = a.topic and w.partition = a.partition) as next_offset
        from inbox.applied as a where a.consumer_id in (from_id, into_id) and a.ids = '{}'
        group by a.consumer_id, a.topic, a.partition
    ), fates as materialized (
        select w.consumer_id, w.message_id, case
            when exists (select from waits as o
                where o.message_id = w.message_id and o.consumer_id = w.other_id)
                then case w.consumer_id when from_id then 'settled' end
            when exists (select from inbox.messages as m
                where m.consumer_id = w.other_id and m.id = w.message_id)
                or (w.other_id, w.message_id) in (select t.consumer_id, t.id from taken as t)
                then 'settled'
            -- Read under the other number too, and no newer than what that has forgotten.
            when exists (select from forgotten as f
                where f.consumer_id = w.other_id and f.topic = w.topic and f.partition = w.partition
                    and w.day <= (f.newest at time zone 'utc')::date
                    and w.record_offset < coalesce(f.next_offset, w.record_offset + 1))
                then 'untold'
            end as fate
        from waits as w
    ), gone as (
        delete from inbox.parked as p using fates as f
        where p.consumer_id = f.consumer_id and p.message_id = f.message_id and f.fate is not null
        returning p.*, f.fate
    ), untold as (
        insert into inbox.dead_letters (consumer_id, lane, message_id, day, topic, partition, record_offset, key,
            payload, headers, code, error, attempts, replays, first_failed_at, produced_at, stored_at)
        select into_id, g.lane, g.message_id, g.day, g.topic, g.partition, g.record_offset, g.key, g.payload,
            g.headers, 'outside-window', format('it waited under the number %s, and whether it took effect '
                'under the number %s is forgotten', g.consumer_id, from_id + into_id - g.consumer_id),
            0, g.replays, g.parked_at, g.produced_at, g.stored_at
        from gone as g where g.fate = 'untold' order by g.seq
        on conflict do nothing
    )
    update inbox.dead_letters as d set state = 'discarded', changed_at = now()
    from fates as f
    where d.consumer_id = f.consumer_id and d.message_id = f.message_id and d.state = 'dead'
        and f.fate = 'settled';

    insert into inbox.parked_lanes (consumer_id, lane)
    select into_id, l.lane from inbox.parked_lanes as l where l.consumer_id = from_id
    on conflict do nothing;
    -- Of the number whose message is the first one now. If it was not before, it has not failed.
    update inbox.parked_lanes as l
    set attempts = coalesce(s.attempts, 0), due_at = coalesce(s.due_at, now()), code = s.code, error = s.error,
        since = coalesce(s.since, now())
    from (
        select distinct on (p.lane) p.lane, p.consumer_id, p.seq from inbox.parked as p
        where p.consumer_id in (from_id, into_id) order by p.lane, p.seq
    ) as f
    left join inbox.parked_lanes as s
        on s.consumer_id = f.consumer_id and s.lane = f.lane and f.seq = any (heads)
    where l.consumer_id = into_id and l.lane = f.lane;
    delete from inbox.parked_lanes where consumer_id = from_id;
    update inbox.parked set consumer_id = into_id where consumer_id = from_id;
    delete from inbox.parked_lanes as l
    where l.consumer_id = into_id and not exists (
        select from inbox.parked as p where p.consumer_id = into_id and p.lane = l.lane);
    update inbox.dead_letters set consumer_id = into_id where consumer_id = from_id;

    -- What an instance has that was not stopped stays under its number, until it stops by itself.
    insert into inbox.messages (day, consumer_id, id)
    select m.day, into_id, m.id from inbox.messages as m where m.consumer_id = from_id
    on conflict do nothing;
    update inbox.applied set consumer_id = into_id where consumer_id = from_id;
    -- The farther one remains, or, where the topic was made anew, the newer one. What is new by it may have come
    -- under the other one, as after a failover: up to where that was, it is looked up.
    update inbox.watermarks as w
    set position = k.position, before = inbox.united_before(k.position, o.position, array[k.before, o.before]),
        next_offset = k.next_offset, topic_id = k.topic_id, changed_at = now()
    from inbox.watermarks as f
    cross join inbox.watermarks as i
    cross join lateral (
        select case when f.topic_id <> i.topic_id then f.changed_at > i.changed_at
            else f.next_offset > i.next_offset end as is_farther
    ) as c
    cross join lateral (
        select case when c.is_farther then f.position else i.position end as position,
            case when c.is_farther then f.before else i.before end as before,
            case when c.is_farther then f.next_offset else i.next_offset end as next_offset,
            case when c.is_farther then f.topic_id else i.topic_id end as topic_id
    ) as k
    cross join lateral (
        select case when c.is_farther then i.position else f.position end as position,
            case when c.is_farther then i.before else f.before end as before
    ) as o
    where f.consumer_id = from_id and i.consumer_id = into_id and i.topic = f.topic
        and i.partition = f.partition and w.consumer_id = into_id and w.topic = f.topic
        and w.partition = f.partition;
    update inbox.watermarks as w set consumer_id = into_id
    where w.consumer_id = from_id and not exists (select from inbox.watermarks as o
        where o.consumer_id = into_id and o.topic = w.topic and o.partition = w.partition);

    update inbox.losses set consumer_id = into_id where consumer_id = from_id and what = 'deleted';
    delete from inbox.losses where consumer_id = from_id;
    -- Rows that stay under a number without a name would be told of as those of no one. With them this goes.
    insert into inbox.losses (what, consumer_id, first_day, last_day, lost)
    select 'consumer', from_id, min(m.day), max(m.day), jsonb_build_object('id', from_id, 'united_into', into_id)
    from inbox.messages as m where m.consumer_id = from_id
    having count(*) > 0;
end
$$;

revoke execute on function inbox.united_before(text, text, text[]) from public;
revoke execute on function inbox.unite(int, int) from public;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
