-- What the services own. Beside it: `outbox-relay migrate`, and `migrate --set inbox`.

create table orders (
    id bigint generated always as identity primary key,
    customer bigint not null,
    amount_cents bigint not null
);

create table accounts (
    id bigint primary key,
    balance_cents bigint not null
);

create table payments (
    id bigint generated always as identity primary key,
    order_id bigint not null, -- Not unique, on purpose: the inbox alone sees to that.
    amount_cents bigint not null
);

create table shipments (
    id bigint generated always as identity primary key,
    order_id bigint not null, -- Not unique either.
    customer bigint not null
);

-- The shop, and a hundred customers with money.
insert into accounts select id, case id when 0 then 0 else 100000000 end from generate_series(0, 100) as id;
