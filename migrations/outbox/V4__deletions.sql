-- outbox V4: an account of the rows that are deleted.
--
-- A relay whose replication slot is lost reads from the table what it had not published. Rows that
-- were deleted meanwhile it can't find, and statistics that a crash empties don't tell of them. So
-- each transaction that deletes rows says here up to which transaction's rows it has deleted. What
-- it moves to another partition it takes back. Inserting an event writes nothing here.
-- The grants for the relay are in docs/ROLES.md.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

create table if not exists outbox.deletions (
    newest xid8 not null,
    writer xid8 not null default pg_catalog.pg_current_xact_id()
);

comment on table outbox.deletions is
    'Up to which transaction rows of the outbox were deleted; older notes go by themselves';
comment on column outbox.deletions.newest is
    'No row of a later transaction is among the deleted ones; exact for young rows, rounded up for old';
comment on column outbox.deletions.writer is 'The transaction that deleted them';

-- outbox.gone is the transaction's own: rows that have gone and not come back, the sum of their
-- transactions' ids, the newest that is noted, and where the notes are.
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
        delete from outbox.deletions where ctid = any (notes::tid[]);
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
comment on function outbox.note_deletion() is 'Trigger: notes in outbox.deletions what is deleted';

-- Rows of a table of one's own, with a column xid as outbox.events has it.
create or replace function outbox.note_deletions(target regclass) returns void
    language plpgsql volatile security invoker
    set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from pg_trigger where tgrelid = target and tgname = 'outbox_gone') then
        return;
    end if;
    execute format('create trigger outbox_gone after delete on %s for each row '
        'when (old.xid is not null) execute function outbox.note_deletion()', target);
    execute format('create trigger outbox_moved after insert on %s for each row '
        'when (new.xid <> pg_catalog.pg_current_xact_id()) '
        'execute function outbox.note_deletion()', target);
    execute format('alter table %s enable always trigger outbox_gone', target);
    execute format('alter table %s enable always trigger outbox_moved', target);
end
$$;
comment on function outbox.note_deletions(regclass) is
    'Keeps account of the rows that are deleted from a table, so that a lost slot can be repaired';

revoke execute on function outbox.note_deletion() from public;
revoke execute on function outbox.note_deletions(regclass) from public;

do $$
begin
    perform outbox.note_deletions('outbox.events');
end
$$;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
