-- outbox V9: a transaction takes back no other one's notes of deleted rows.
--
-- What a transaction has deleted so far stands in a setting, which any role may set. A writer who set it
-- to places in outbox.deletions had another transaction's notes deleted there, and a repair after a lost
-- slot would not have known that rows were missing.

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
as $$
declare
    state constant text[] := string_to_array(nullif(current_setting('outbox.gone', true), ''), ' ');
    gone bigint := coalesce(state[1]::bigint, 0);
    total numeric := coalesce(state[2]::numeric, 0);
    noted bigint := coalesce(state[3]::bigint, 0);
    notes text := coalesce(state[4], '{}');
    present constant bigint := pg_current_xact_id()::text::bigint;
    written bigint;
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
        if random() < 0.05 then
            -- Others' notes below another one of others; this transaction may yet be undone.
            delete from outbox.deletions where ctid = any (array(
                select d.ctid from outbox.deletions d
                where d.writer <> pg_current_xact_id() and d.newest < (
                    select m.newest from outbox.deletions m
                    where m.writer <> pg_current_xact_id()
                    order by m.newest desc limit 1)
                for update skip locked));
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
