-- outbox V14: merging the notes of deleted rows makes no writer wait or fail.
--
-- While outbox.deletions was never analysed, merging was planned as a join so dear that it was compiled, for
-- 0.1 s in one of twenty transactions. And a transaction in REPEATABLE READ or SERIALIZABLE failed
-- (40001) where another one had merged since its snapshot.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- outbox.gone is the transaction's own: rows that have gone and not come back, the sum of their
-- transactions' ids, the newest that is noted, and where the notes are. Any role can set it, so it is
-- believed only about this transaction's own notes.
create or replace function outbox.note_deletion() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
declare
    state constant text[] := string_to_array(nullif(current_setting('outbox.gone', true), ''), ' ');
    gone bigint := coalesce(state[1]::bigint, 0);
    total numeric := coalesce(state[2]::numeric, 0);
    noted bigint := coalesce(state[3]::bigint, 0);
    notes text := coalesce(state[4], '{}');
    present constant bigint := pg_current_xact_id()::text::bigint;
    written bigint;
    highest xid8;
    note tid;
begin
    if tg_op = 'DELETE' then
        written := old.xid::text::bigint;
        gone := gone + 1;
        total := total + written;
    else
        -- A row of an earlier transaction: it has come from elsewhere.
        written := new.xid::text::bigint;
        gone := gone - 1;
        total := total - written;
    end if;
    if gone = 0 and total = 0 then
        delete from outbox.deletions
            where ctid = any (notes::tid[]) and writer = pg_current_xact_id();
        noted := 0;
        notes := '{}';
    elsif tg_op = 'DELETE' and written > noted then
        -- Rounded up by a part of its age, so that deleting a long history takes few notes.
        noted := written + greatest(present - written, 0) / 64;
        insert into outbox.deletions (newest) values (noted::text::xid8) returning ctid into note;
        notes := (notes::tid[] || note)::text;
        -- Reading notes makes a SERIALIZABLE transaction fail where others write them.
        if random() < 0.05 and current_setting('transaction_isolation') <> 'serializable' then
            -- The highest note of others stands for their lower ones from now on. No note of this
            -- transaction does: it may still take them back. Step by step, without a join, whose
            -- plan would depend on statistics that may be missing.
            begin
                select h.ctid, h.newest into note, highest from outbox.deletions h
                    where h.writer <> pg_current_xact_id()
                    order by h.newest desc limit 1
                    for update skip locked;
                if exists (
                    select from outbox.deletions l
                    where l.writer <> pg_current_xact_id() and l.newest < highest)
                then
                    update outbox.deletions set merged = pg_current_xact_id() where ctid = note;
                    if found then
                        delete from outbox.deletions where ctid = any (array(
                            select d.ctid from outbox.deletions d
                            where d.writer <> pg_current_xact_id() and d.newest < highest
                            limit 1000
                            for update skip locked));
                    end if;
                end if;
            exception when serialization_failure then
                -- REPEATABLE READ, and another one has merged since the snapshot: nothing is left to do.
                null;
            end;
        end if;
    end if;
    perform set_config('outbox.gone', format('%s %s %s %s', gone, total, noted, notes), true);
    return null;
end
$$;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
