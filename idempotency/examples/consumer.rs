//! README's consumer: takes orders from Kafka and charges each once.
//!
//! README.md says how to run it: on a database where `outbox-relay migrate --set inbox` was run, and
//! which has a table `charges (order_id bigint primary key, cents bigint not null)`. A record of
//! the topic `orders` is as `{"order": 42, "amount_cents": 1200}`.

use anyhow::Context as _;
use outbox_idempotency::kafka::{ClientConfig, Runner};
use outbox_idempotency::{Classify as _, Failure, Inbox, Message, Processor, Tx};
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

/// The event's payload.
#[derive(serde::Deserialize)]
struct Order {
    order: i64,
    amount_cents: i64,
}

async fn charge(tx: Tx, Message { payload, .. }: Message<Order>) -> Result<(), Failure> {
    let cents = u32::try_from(payload.amount_cents).permanent("bad-amount")?;
    let sql = "insert into charges (order_id, cents) values ($1, $2)";
    tx.execute(sql, &[&payload.order, &i64::from(cents)]).await?;
    Ok(())
}

fn setting(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| name.to_owned())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init(); // Prints its start, its partitions, and what waits.
    let database = setting("DATABASE_URL")?.parse()?;
    let manager = deadpool_postgres::Manager::new(database, tokio_postgres::NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(32).build()?;
    let mut kafka = ClientConfig::new();
    kafka.set("bootstrap.servers", setting("KAFKA")?).set("group.id", "billing");
    let processor = Processor::new(Inbox::open(pool, "billing/charge").await?, charge);
    let mut term = signal(SignalKind::terminate())?; // Sent by whoever stops a container.
    let stop = async move { tokio::select!(_ = ctrl_c() => {}, _ = term.recv() => {}) };
    Ok(Runner::new(processor, kafka, &["orders"]).run(stop).await?)
}
