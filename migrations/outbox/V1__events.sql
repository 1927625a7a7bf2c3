-- outbox V1: the events table, its id generator, the front door for writers, the publication.
--
-- Applied by `outbox-relay migrate --set outbox`, by any tool that knows Flyway's naming, or by
-- hand: psql -1 -v ON_ERROR_STOP=1 -f V1__events.sql. Every statement may be repeated, so
-- a later `migrate` adopts what was applied by hand. For PostgreSQL 14 and later.
--
-- Run it as the role that is to own the schema; it needs CREATE on the database. The grants for
-- writers and for the relay are in docs/ROLES.md.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

create schema if not exists outbox;

-- Who owns the schema or something in it, or may add to it, decides what everybody else calls here.
do $$
declare
    space record;
    strangers text;
begin
    select n.oid, n.nspowner as owner, m.oid as me,
        case
            when n.nspowner = m.oid then true
            when m.rolsuper then o.rolsuper
            else pg_has_role(n.nspowner, 'usage')
        end as is_ours
    into strict space
    from pg_namespace as n
    join pg_roles as m on m.rolname = current_user
    left join pg_roles as o on o.oid = n.nspowner
    where n.nspname = 'outbox';
    if not space.is_ours then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('the schema outbox belongs to %s, who can change whatever is made '
                'in it', space.owner::regrole),
            hint = format('If %1$s is to own it, migrate as %1$s. If not, somebody made it '
                'beforehand: look at what is in it, then, as a superuser, drop it or let '
                'alter schema outbox rename to outbox_of_a_stranger; and migrate again.',
                space.owner::regrole);
    end if;
    -- Members of the owning role may do what the owner may.
    select string_agg(format('%s of %s', pg_describe_object(d.classid, d.objid, 0),
        o.refobjid::regrole), ', ')
    into strangers
    from pg_depend as d
    join pg_shdepend as o on o.classid = d.classid and o.objid = d.objid and o.deptype = 'o'
        and o.dbid = (select b.oid from pg_database as b where b.datname = current_database())
    where d.refclassid = 'pg_namespace'::regclass and d.refobjid = space.oid
        and o.refobjid <> space.me and not pg_has_role(o.refobjid, space.owner, 'member');
    if strangers is not null then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('in the schema outbox somebody else owns %s', strangers),
            hint = format('Whoever calls it runs what its owner likes. Look at each; then, as a '
                'superuser, drop it or give it to %s; and migrate again.', space.owner::regrole);
    end if;
    select string_agg(case a.grantee when 0 then 'public' else a.grantee::regrole::text end, ', ')
    into strangers
    from pg_namespace as n
    cross join aclexplode(n.nspacl) as a
    where n.oid = space.oid and a.privilege_type = 'CREATE' and a.grantee <> space.me
        and (a.grantee = 0 or not pg_has_role(a.grantee, space.owner, 'member'));
    if strangers is not null then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('others may create what they like in the schema outbox: %s',
                strangers),
            hint = format('revoke create on schema outbox from %s; then migrate again.',
                strangers);
    end if;
end
$$;

comment on schema outbox is 'Transactional outbox, published by outbox-relay';

-- RFC 9562 version 7: 48 bits of Unix milliseconds, 12 bits of their fraction, 62 random bits
-- (and the variant) from gen_random_uuid(). Ids sort by the microsecond in which they were made.
--
-- 4096000 counts in 1/4096 ms, so that time and fraction are 15 hex digits and the version digit
-- goes in between. One expression in which the clock is read once: the planner inlines it. The
-- SQL-standard body binds its names now, so no search_path can change their meaning.
create or replace function outbox.uuid_v7() returns uuid
    language sql volatile parallel safe
    return (
        overlay(
            lpad(to_hex((date_part('epoch', clock_timestamp()) * 4096000)::bigint), 15, '0')
            placing '7' from 13 for 0
        ) || substr(gen_random_uuid()::text, 20)
    )::uuid;
comment on function outbox.uuid_v7() is
    'A new version 7 UUID (RFC 9562): sorts by time, to the microsecond';

-- No index: writers pay for the heap alone, and the relay reads the WAL.
create table if not exists outbox.events (
    id          uuid        not null default outbox.uuid_v7(),
    topic       text        not null,
    key         text,
    type        text,
    payload     jsonb,
    headers     jsonb       not null default '{}',
    partition   int,
    created_at  timestamptz not null default clock_timestamp(),
    xid         xid8        not null default pg_current_xact_id()
) partition by range (created_at);

create table if not exists outbox.events_default partition of outbox.events default;

comment on table outbox.events is
    'One row per event, inserted in the transaction it belongs to; published in commit order';
comment on column outbox.events.id is 'Event id, the record''s header outbox-id';
comment on column outbox.events.topic is 'Destination topic';
comment on column outbox.events.key is 'Partition key; null for none';
comment on column outbox.events.type is 'Event type, header outbox-type; null for none';
comment on column outbox.events.payload is 'The record''s value; null publishes a tombstone';
comment on column outbox.events.headers is
    'Flat object of strings, the record''s headers; names beginning outbox- are refused';
comment on column outbox.events.partition is
    'Explicit partition; null chooses by murmur2 of the key, as Java''s client does';
comment on column outbox.events.created_at is 'The record''s timestamp';
comment on column outbox.events.xid is 'Transaction that wrote the row: lets a repair find it again';
comment on table outbox.events_default is 'Takes the rows that no other partition takes';

-- `create table if not exists` is content with any table of that name. The relay would not be.
do $$
declare
    missing text;
begin
    select string_agg(format('%s %s', expected.name, expected.type), ', ')
    into missing
    from (values
        ('id', 'uuid'), ('topic', 'text'), ('key', 'text'), ('type', 'text'),
        ('payload', 'jsonb'), ('headers', 'jsonb'), ('partition', 'integer'),
        ('created_at', 'timestamp with time zone'), ('xid', 'xid8')
    ) as expected (name, type)
    where not exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = 'outbox.events'::regclass
            and a.attname = expected.name
            and pg_catalog.format_type(a.atttypid, null) = expected.type
            and not a.attisdropped
    );
    if missing is not null then
        raise exception using
            errcode = 'wrong_object_type',
            message = format('a table outbox.events exists that lacks %s', missing),
            hint = 'Rename it, then migrate again; an existing table can be published in its '
                'own layout, with the setting outbox.tables.';
    end if;
end
$$;

-- The front door. What it refuses, the relay would have to refuse after the commit, when nobody
-- is there any more to mend it.
create or replace function outbox.publish(
    topic     text,
    payload   jsonb,
    key       text  default null,
    type      text  default null,
    headers   jsonb default '{}',
    partition int   default null,
    id        uuid  default null
) returns uuid
    language plpgsql volatile security invoker
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    -- Below Kafka's default limit of 1 MiB by what the relay's own headers can take.
    record_bytes_max constant bigint := coalesce(
        pg_size_bytes(nullif(current_setting('outbox.record_bytes_max', true), '')), 1000000);
    record_headers constant jsonb := coalesce(headers, '{}');
    event_id constant uuid := coalesce(id, outbox.uuid_v7());
    record_bytes bigint;
    problem text;
begin
    if topic is null or topic = '' then
        problem := 'the topic is empty';
    elsif topic !~ '^[A-Za-z0-9._-]{1,249}$' or topic in ('.', '..') then
        problem := format('the topic %L is not a name that Kafka takes: at most 249 letters, '
            'digits, dots, underscores and hyphens', left(topic, 249));
    elsif partition < 0 then
        problem := format('the partition %s is negative', partition);
    elsif jsonb_typeof(record_headers) <> 'object' then
        problem := format('headers is a JSON %s; it must be a flat object of strings',
            jsonb_typeof(record_headers));
    elsif record_headers <> '{}' then
        select case
            when jsonb_typeof(h.value) <> 'string'
                then format('the header %L is a JSON %s; it must be a string',
                    h.key, jsonb_typeof(h.value))
            else format('the header %L begins with outbox-, which is the relay''s own', h.key)
        end
        into problem
        from jsonb_each(record_headers) as h
        where jsonb_typeof(h.value) <> 'string' or starts_with(h.key, 'outbox-')
        limit 1;
    end if;

    if problem is null then
        record_bytes := coalesce(octet_length(payload::text), 0) + coalesce(octet_length(key), 0)
            + coalesce(octet_length(type), 0) + octet_length(record_headers::text);
        if record_bytes > record_bytes_max then
            problem := format('the record has %s bytes, more than the %s of the setting '
                'outbox.record_bytes_max', record_bytes, record_bytes_max);
        end if;
    end if;

    if problem is not null then
        raise exception using errcode = 'invalid_parameter_value', message = problem;
    end if;

    insert into outbox.events (id, topic, key, type, payload, headers, partition)
    values (event_id, topic, key, type, payload, record_headers, partition);
    return event_id;
end
$$;
comment on function outbox.publish(text, jsonb, text, text, jsonb, int, uuid) is
    'Writes an event in the caller''s transaction and returns its id; bad input is refused with '
    'SQLSTATE 22023. Size limit: alter database ... set outbox.record_bytes_max = ''2 MB''';

revoke execute on function outbox.uuid_v7() from public;
revoke execute on function outbox.publish(text, jsonb, text, text, jsonb, int, uuid) from public;

do $$
begin
    if not exists (select from pg_catalog.pg_publication where pubname = 'outbox') then
        create publication outbox for table outbox.events
            with (publish = 'insert', publish_via_partition_root = true);
        comment on publication outbox is 'What outbox-relay streams: inserts into outbox.events';
    elsif not exists (
        select from pg_catalog.pg_publication
        where pubname = 'outbox' and (pg_has_role(pubowner, current_user, 'member')
            or pg_has_role(current_user, pubowner, 'usage') and not exists (
                select from pg_roles where rolname = current_user and rolsuper))
    ) then
        raise exception using
            errcode = 'insufficient_privilege',
            message = 'a publication outbox exists that belongs to somebody else, who can have it '
                'leave out events',
            hint = 'Look whose it is (pg_publication.pubowner). As a superuser, drop it, rename it, '
                'or alter publication outbox owner to the role that migrates; then migrate again.';
    elsif not exists (
        select from pg_catalog.pg_publication_tables
        where pubname = 'outbox' and schemaname = 'outbox' and tablename = 'events'
    ) then
        raise exception using
            errcode = 'duplicate_object',
            message = 'a publication outbox exists that does not publish outbox.events',
            hint = 'Rename it: alter publication outbox rename to outbox_mapped; then migrate again. '
                'A relay that is to stream it has postgres.publication = "outbox_mapped".';
    end if;
end
$$;

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
