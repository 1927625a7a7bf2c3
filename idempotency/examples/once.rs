//! A service that does what a request says once, however often the client sends it with its `Idempotency-Key`.
//!
//! The requests are calls of a function here; put your HTTP server in their place.
//! `DATABASE_URL=postgres://postgres@localhost/billing cargo run --example once` makes the tables, charges two
//! orders, one of which is sent twice, and ends.

use std::{io::Write as _, time::SystemTime};

use anyhow::Context as _;
use outbox_idempotency::{Inbox, MessageId, Once, Tx, deadpool_postgres::Pool};

/// Charges an order once, however often its client sends the request. Returns the HTTP status to answer with.
async fn charge(pool: &Pool, inbox: &Inbox, key: &str, order: &Order) -> anyhow::Result<u16> {
    // When the key was seen first, so that each copy of the request has the same day.
    let seen = "insert into request_keys (key) values ($1) \
                on conflict (key) do update set key = excluded.key returning seen_at";
    let seen_at: SystemTime = pool.get().await?.query_one(seen, &[&key]).await?.get(0);
    let id = MessageId::of_bytes(key.as_bytes(), seen_at);

    let work = async |tx: Tx| {
        let sql = "insert into charges (order_id, cents) values ($1, $2)";
        tx.execute(sql, &[&order.id, &order.cents]).await
    };
    Ok(match inbox.once(&id, work).await? {
        Once::Applied(_) => 201,
        // It was charged before.
        Once::Duplicate => 200,
        // The key is older than what is remembered, so nothing was done.
        Once::OutsideWindow => 409,
    })
}

struct Order {
    id: i64,
    cents: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    let database = std::env::var("DATABASE_URL").context("DATABASE_URL")?.parse()?;
    let manager = deadpool_postgres::Manager::new(database, tokio_postgres::NoTls);
    let pool = Pool::builder(manager).max_size(32).build()?;
    let mut client = deadpool_postgres::Object::take(pool.get().await?);
    outbox_idempotency::migrate(&mut client).await?;
    let tables = "\
create table if not exists charges (order_id bigint not null, cents bigint not null);
create table if not exists request_keys (key text primary key, seen_at timestamptz not null default now());";
    client.batch_execute(tables).await?;
    let inbox = Inbox::open(pool.clone(), "billing/charge").await?;
    for (key, id) in [("a key", 1), ("another key", 2), ("a key", 1)] {
        let status = charge(&pool, &inbox, key, &Order { id, cents: 1_200 }).await?;
        writeln!(std::io::stdout(), "{key}: {status}")?;
    }
    Ok(())
}
