-- inbox V3: how far a consumer has come in a partition, by the relay's positions.
--
-- For consumers that name the one relay that feeds a topic. Within a partition the positions that a
-- relay gives never step back, so one row for each partition is enough to tell a message that has
-- taken effect, also one that the relay has published again.

create table if not exists inbox.watermarks (
    consumer_id int         not null,
    topic       text        not null,
    partition   int         not null,
    position    text,
    before      text,
    next_offset bigint      not null default 0,
    changed_at  timestamptz not null default now(),
    primary key (consumer_id, topic, partition)
-- Updated for each transaction, and never in an index: the versions stay in one page.
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
comment on table inbox.watermarks is 'The newest message of each partition that a consumer has taken over';
comment on column inbox.watermarks.position is
    'Its header outbox-position: <system id>:<timeline>:<commit LSN>:<ordinal>';
comment on column inbox.watermarks.before is
    'The highest <commit LSN>:<ordinal> of earlier timelines: up to it, positions may come again';
comment on column inbox.watermarks.next_offset is 'Where to go on reading';

-- Ids of the last minutes, an array for each transaction. A repair of the relay publishes about a
-- second again, under new positions and old ids; so may a relay after a failover.
create table if not exists inbox.applied (
    consumer_id int         not null,
    topic       text        not null,
    partition   int         not null,
    applied_at  timestamptz not null default now(),
    ids         uuid[]      not null
);
comment on table inbox.applied is 'What a consumer with a watermark has taken over lately';

-- Locks a partition's watermark until the end of the transaction, and says which of the lanes are
-- parked. In this order: what the last holder of the lock parked is seen.
create or replace function inbox.lock_watermark(
    consumer int, of_topic text, of_partition int, lanes uuid[],
    out at_position text, out at_before text, out at_offset bigint, out parked uuid[]
)
    language plpgsql volatile
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

-- Of messages whose positions say nothing, those that are new.
create or replace function inbox.claim_by_id(
    consumer int, of_topic text, of_partition int, messages uuid[], days date[]
) returns setof uuid
    language sql volatile
begin atomic
    insert into inbox.messages (consumer_id, id, day)
    select consumer, m.id, m.day
    from unnest(messages, days) as m (id, day)
    where not exists (
        select from inbox.applied as a
        where a.consumer_id = consumer and a.topic = of_topic and a.partition = of_partition
            and a.ids @> array[m.id]
    )
    order by m.id, m.day
    on conflict do nothing
    returning id;
end;

revoke execute on function inbox.lock_watermark(int, text, int, uuid[]) from public;
revoke execute on function inbox.claim_by_id(int, text, int, uuid[], date[]) from public;
