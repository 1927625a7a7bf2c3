-- outbox V15: a parked event is known by its transaction, and a deletion is noted whatever a session sets.
--
-- A repair left out an event where another one of the same id, time, topic and key was parked or discarded.
-- A role that deletes events could have its deletions not noted, with a setting that any role may set. A
-- publication of all tables made changes of outbox.deletions fail. And an event whose id has more than
-- some 2,700 bytes could not be parked.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

alter table outbox.dead_letters add column if not exists xid xid;

comment on column outbox.dead_letters.xid is
    'The transaction that wrote the event''s row, as its column xid says, without the epoch; null where it '
    'is not known';

-- The id is part of it because a cluster that was restored or promoted gives old positions to new events.
-- Its hash is: an id may be longer than a btree takes.
drop index if exists outbox.dead_letters_position;
create unique index dead_letters_position on outbox.dead_letters
    (relay, commit_lsn, ordinal, hashtextextended(coalesce(event_id, ''), 0));

-- Compressing what is parked was the dearest part of parking. Not every server was built with lz4.
do $$
begin
    alter table outbox.dead_letters alter column payload set compression lz4;
exception when feature_not_supported then
    null;
end
$$;

-- A publication of updates and deletes asks for it, such as one of all tables that somebody makes. There is
-- no key.
alter table outbox.deletions replica identity full;

-- outbox.gone is the transaction's own: its id, rows that have gone and not come back, the sum of their
-- transactions' ids, and where its notes are: the newest, the one of rows that have come, and all. Any role
-- can set it. So nothing of it is believed but beside a note of this very transaction, and which deletions are
-- noted is read from the notes. Who only deletes rows finds each of them noted, whatever the setting says:
-- notes are taken back where rows come, which another trigger tells, and this leaves a note of its own.
create or replace function outbox.note_deletion() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    set jit = off
    -- A note is read at its place alone: reading others makes a SERIALIZABLE transaction fail.
    set enable_seqscan = off
as $$
declare
    present constant xid8 := pg_current_xact_id();
    state constant text[] := string_to_array(current_setting('outbox.gone', true), ' ');
    is_delete constant bool := tg_op = 'DELETE';
    gone bigint := 0;
    total numeric := 0;
    last tid;
    came tid;
    notes text := '{}';
    is_noted bool := false;
    written bigint;
    highest xid8;
    note tid;
begin
    if state[1] = present::text then
        last := state[4]::tid;
        if is_delete then
            perform from outbox.deletions n
                where n.ctid = last and n.writer = present and n.newest >= old.xid;
            is_noted := found;
            if is_noted and left(state[2], 1) <> '-' then
                -- As for all rows of a large DELETE but a few.
                notes := set_config('outbox.gone', concat_ws(' ', present, state[2]::bigint + 1,
                    state[3]::numeric + old.xid::text::numeric, last, state[5], state[6]), true);
                return null;
            end if;
        end if;
        if not is_noted then
            perform from outbox.deletions n where n.ctid = last and n.writer = present;
        end if;
        if found then
            gone := state[2]::bigint;
            total := state[3]::numeric;
            came := nullif(state[5], '-')::tid;
            notes := state[6];
        else
            last := null;
        end if;
    end if;
    if is_delete then
        written := old.xid::text::bigint;
        gone := gone + 1;
        total := total + written;
        if not is_noted then
            -- Rounded up by a part of its age, so that deleting a long history takes few notes.
            written := written + greatest(present::text::bigint - written, 0) / 64;
            insert into outbox.deletions (newest) values (written::text::xid8)
                returning ctid into last;
            notes := (notes::tid[] || last)::text;
        end if;
    else
        -- A row of an earlier transaction: it has come from elsewhere.
        gone := gone - 1;
        total := total - new.xid::text::bigint;
        if came is null and (gone <> 0 or total <> 0) then
            -- Stands for no row: older than any.
            insert into outbox.deletions (newest) values ('0') returning ctid into came;
            last := coalesce(last, came);
            notes := (notes::tid[] || came)::text;
        end if;
    end if;
    if gone = 0 and total = 0 and (not is_delete or exists (
        select from outbox.deletions n
        where n.ctid = came and n.writer = present and n.newest = '0'))
    then
        delete from outbox.deletions where ctid = any (notes::tid[]) and writer = present;
        perform set_config('outbox.gone', '', true);
        return null;
    end if;
    -- Reading notes makes a SERIALIZABLE transaction fail where others write them.
    if is_delete and not is_noted and random() < 0.05
        and current_setting('transaction_isolation') <> 'serializable'
    then
        -- The highest note of others stands for their lower ones from now on. No note of this
        -- transaction does: it may still take them back. Step by step, without a join, whose
        -- plan would depend on statistics that may be missing.
        begin
            select h.ctid, h.newest into note, highest from outbox.deletions h
                where h.writer <> present
                order by h.newest desc limit 1
                for update skip locked;
            if exists (
                select from outbox.deletions l
                where l.writer <> present and l.newest < highest)
            then
                update outbox.deletions set merged = present where ctid = note;
                if found then
                    delete from outbox.deletions where ctid = any (array(
                        select d.ctid from outbox.deletions d
                        where d.writer <> present and d.newest < highest
                        limit 1000
                        for update skip locked));
                end if;
            end if;
        exception when serialization_failure then
            -- REPEATABLE READ, and another one has merged since the snapshot: nothing is left to do.
            null;
        end;
    end if;
    -- Not by PERFORM, which plans and runs a query for it.
    notes := set_config('outbox.gone',
        concat_ws(' ', present, gone, total, last, coalesce(came::text, '-'), notes), true);
    return null;
end
$$;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
