-- outbox V7: what no record can be is refused when it is written.
--
-- The server builds a row's text in memory before it sends it, and can't beyond 1 GB: such a row would
-- stop the stream for good, for everybody. A jsonb's size is not its text's: 1e131071 takes 10 bytes
-- there and 131,072 here. So the table has a limit, far above what brokers take: 256 MiB of text, which
-- may be three times as much in UTF-8. Rows that are there already are not looked at.
--
-- A table that is to become a partition needs the same constraint:
--     create table new_partition (like outbox.events including all);

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

-- The front door. What it refuses, the relay would have to refuse after the commit, when nobody
-- is there any more to mend it; what it takes is a record.
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
    encoding constant text := current_setting('server_encoding');
    record_headers constant jsonb := coalesce(headers, '{}');
    headers_bytes constant int := octet_length(record_headers::text);
    event_id constant uuid := coalesce(id, outbox.uuid_v7());
    record_bytes bigint;
    problem text;
begin
    -- Bytes are stored as they come there, and a record's are UTF-8: it fails here or not at all.
    if encoding = 'SQL_ASCII' then
        perform convert_from(convert_to(
            concat(key, type, payload::text, record_headers::text), 'SQL_ASCII'), 'UTF8');
    end if;
    if topic is null or topic = '' then
        problem := 'the topic is empty';
    elsif topic !~ '^[A-Za-z0-9._-]{1,249}$' or topic in ('.', '..') then
        problem := format('the topic %L is not a name that Kafka takes: at most 249 letters, '
            'digits, dots, underscores and hyphens', left(topic, 249));
    elsif topic ~ '^(__|outbox-relay-progress-|_schemas|_confluent)' then
        problem := format('the topic %L is one in which brokers, relays or registries keep state',
            topic);
    elsif partition < 0 then
        problem := format('the partition %s is negative', partition);
    elsif jsonb_typeof(record_headers) <> 'object' then
        problem := format('headers is a JSON %s; it must be a flat object of strings',
            jsonb_typeof(record_headers));
    -- So many names take more than that.
    elsif headers_bytes > 50000
        and (select count(*) from jsonb_object_keys(record_headers)) > 10000 then
        problem := 'there are more than 10000 headers';
    elsif record_headers <> '{}' then
        select case
            when h.key = '' then 'a header has no name'
            when jsonb_typeof(h.value) <> 'string'
                then format('the header %L is a JSON %s; it must be a string',
                    h.key, jsonb_typeof(h.value))
            else format('the header %L begins with outbox-, which is the relay''s own', h.key)
        end
        into problem
        from jsonb_each(record_headers) as h
        where jsonb_typeof(h.value) <> 'string' or h.key = '' or starts_with(h.key, 'outbox-')
        limit 1;
    end if;

    if problem is null then
        record_bytes := coalesce(octet_length(payload::text), 0) + coalesce(octet_length(key), 0)
            + coalesce(octet_length(type), 0) + headers_bytes;
        if encoding not in ('UTF8', 'SQL_ASCII') then
            -- As they are in a record.
            record_bytes := octet_length(convert_to(
                concat(payload::text, key, type, record_headers::text), 'UTF8'));
        end if;
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

-- One constraint, and a short one: its text is read anew for each statement. The defaults are set again,
-- for they may be those of a search_path that came first when the table was made.
alter table outbox.events
    drop constraint if exists events_bytes,
    add constraint events_bytes check (
        octet_length(topic) + octet_length(coalesce(key, '')) + octet_length(coalesce(type, ''))
            + octet_length(headers::text) + coalesce(octet_length(payload::text), 0) <= 268435456
    ) not valid,
    alter column id set default outbox.uuid_v7(),
    alter column created_at set default clock_timestamp(),
    alter column xid set default pg_current_xact_id();

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
