-- inbox V7: under a watermark, looking up by id takes one pass over what is remembered, and what was
-- forgotten is not taken for new.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table inbox.applied add column if not exists newest timestamptz;
comment on column inbox.applied.newest is
    'The newest own time of these messages; null where an earlier version has written the row. A row '
    'without ids stands for what was forgotten';

-- What was forgotten before now was taken over before the oldest that is remembered.
insert into inbox.applied (consumer_id, topic, partition, applied_at, ids, newest)
select w.consumer_id, w.topic, w.partition, k.since, '{}', k.since
from inbox.watermarks as w
cross join lateral (
    select coalesce(min(a.applied_at), w.changed_at) as since, bool_or(a.ids = '{}') as has_one
    from inbox.applied as a
    where a.consumer_id = w.consumer_id and a.topic = w.topic and a.partition = w.partition
) as k
where w.position is not null and k.has_one is not true;

-- Of messages whose positions say nothing, those that are new.
create or replace function inbox.claim_by_id(
    consumer int, of_topic text, of_partition int, messages uuid[], days date[]
) returns setof uuid
    language sql volatile
    -- How many ids the arrays hold is not known to the planner, and a partition's transactions wait.
    set enable_nestloop = off
begin atomic
    with known as materialized (
        select x.id
        from (
            select unnest(a.ids) as id
            from inbox.applied as a
            where a.consumer_id = consumer and a.topic = of_topic and a.partition = of_partition
        ) as x
        where x.id in (select unnest(messages))
    )
    insert into inbox.messages (consumer_id, id, day)
    select consumer, m.id, m.day
    from unnest(messages, days) as m (id, day)
    where not exists (select from known as k where k.id = m.id)
    order by m.id, m.day
    on conflict do nothing
    returning id;
end;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('inbox.search_path'), false);
end
$$;
