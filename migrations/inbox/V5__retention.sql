-- inbox V5: a clock that jumps costs no day, and a retention that grows brings back what it may.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'inbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

create table if not exists inbox.upkeep (
    only_row          boolean     primary key default true check (only_row),
    forgotten_through date,
    visited_on        date,
    doubted_since     timestamptz
);
comment on table inbox.upkeep is 'One row: what inbox.maintain() knows from its visits before';
comment on column inbox.upkeep.forgotten_through is
    'The newest day that was dropped. It and those before it are never made again: an empty partition '
    'in place of one that was dropped would take its messages for new';
comment on column inbox.upkeep.visited_on is 'The day of the last visit whose clock was believed';
comment on column inbox.upkeep.doubted_since is
    'When the clock was first found to be days ahead of the last visit: nothing is dropped until it '
    'has said so for a day';

-- What was dropped before is not known: no day before the oldest is made, unless nobody has taken
-- anything yet.
insert into inbox.upkeep (forgotten_through)
select (select w.oldest - 1 from inbox.window() as w)
where exists (select from inbox.consumers)
on conflict do nothing;
insert into inbox.upkeep default values on conflict do nothing;

-- The oldest and the newest day that are kept without a gap up to today and beyond; null when there
-- is none. What is older or newer can't be checked, and is never taken for new.
create or replace function inbox.window(out oldest date, out newest date)
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    -- A clock that jumps by years leaves days far from all others.
    with days as (
        select to_date(right(c.relname, 8), 'YYYYMMDD') as day
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'inbox.messages'::regclass and c.relname ~ '^messages_[0-9]{8}$'
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

-- Makes the partitions of the days that are kept and of those ahead, and drops those past retention.
-- Call it at least every `ahead_days`; consumers do so every hour, and every minute while a partition
-- past retention is left. It runs with its owner's rights, since only an owner may drop a partition.
create or replace function inbox.maintain(out oldest date, out newest date)
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    -- Making one waits for others that do the like, such as ANALYZE, and nobody waits behind it.
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
    dropped record;
begin
    -- `outboxmt` in ASCII. One at a time: what another one does need not be done again.
    if pg_try_advisory_xact_lock(8031453476610927988) then
        select * into strict wanted from inbox.settings;
        insert into inbox.upkeep default values on conflict do nothing;
        select * into strict known from inbox.upkeep;
        select w.newest into newest_before from inbox.window() as w;
        -- A clock that is days ahead of the last visit is right if nobody came for so long, and wrong
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
                -- Attached, not created in place, which would lock the table against its writers.
                -- Vacuum has nothing to do where nothing is updated or deleted.
                if to_regclass('inbox.messages_' || to_char(made, 'YYYYMMDD')) is null then
                    execute format('create table inbox.%I (like inbox.messages including all) '
                        'with (autovacuum_vacuum_insert_threshold = -1)',
                        'messages_' || to_char(made, 'YYYYMMDD'));
                    execute format('alter table inbox.messages attach partition inbox.%I '
                        'for values from (%L) to (%L)',
                        'messages_' || to_char(made, 'YYYYMMDD'), made, made + 1);
                end if;
                made := made + 1;
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
                select c.relname, to_date(right(c.relname, 8), 'YYYYMMDD') as day
                from pg_inherits i
                join pg_class c on c.oid = i.inhrelid
                where i.inhparent = 'inbox.messages'::regclass
                    and c.relname ~ '^messages_[0-9]{8}$'
                    and to_date(right(c.relname, 8), 'YYYYMMDD') < today - wanted.retention_days
                    and known.doubted_since is null
                order by c.relname
            loop
                execute format('drop table inbox.%I', dropped.relname);
                update inbox.upkeep
                set forgotten_through = greatest(forgotten_through, dropped.day);
            end loop;
        exception when lock_not_available then
            raise notice 'inbox.maintain: the table is busy, old partitions stay until next time';
        end;
    end if;
    select w.oldest, w.newest into oldest, newest from inbox.window() as w;
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
