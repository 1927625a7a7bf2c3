-- outbox V6: whose progress is stored at the broker.
--
-- A relay seals each record of its progress with the key that is here, so that it knows its own from
-- what others may write to that topic. Only relays may read this table: the grants are in
-- docs/ROLES.md. A row must not be changed; it may be deleted when its relay is gone for ever.

-- Names mean PostgreSQL's own here, whatever the session's search_path is. It is put back at the end.
do $$
begin
    perform pg_catalog.set_config(
        'outbox.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
end
$$;

create table if not exists outbox.relay_keys (
    relay        text        primary key,
    key          bytea       not null check (octet_length(key) = 32),
    delivered_at timestamptz
);

comment on table outbox.relay_keys is
    'The key of each relay that has run here, by which it knows its own progress at the broker';
comment on column outbox.relay_keys.relay is 'The relay''s name';
comment on column outbox.relay_keys.delivered_at is
    'When the relay first saw that its progress was stored; null before that';

do $$
begin
    perform pg_catalog.set_config(
        'search_path', pg_catalog.current_setting('outbox.search_path'), false);
end
$$;
