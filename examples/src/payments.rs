//! A consumer that is a producer too: takes the money for each order, and says so.
//!
//! `cargo run -p outbox-examples --bin payments -- POSTGRES_URL BROKERS`, until Ctrl-C or SIGTERM.

use anyhow::Context;
use deadpool_postgres::{Manager, Pool};
use outbox_idempotency::{
    Event, Failure, Inbox, Message, Processor, Tx,
    kafka::{ClientConfig, Runner},
};
use serde_json::json;
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};
use tokio_postgres::NoTls;

const SHOP: i64 = 0;

#[derive(serde::Deserialize)]
struct OrderPlaced {
    order: i64,
    customer: i64,
    amount_cents: i64,
}

/// All of it happens, and once for each order, or nothing: whatever crashes, and however often the
/// message comes. Nothing here has to think of that.
async fn take_payment(tx: Tx, message: Message<OrderPlaced>) -> Result<(), Failure> {
    let OrderPlaced { order, customer, amount_cents } = message.payload;

    let give = "update accounts set balance_cents = balance_cents + $2 where id = $1";
    if tx.execute(give, &[&customer, &-amount_cents]).await? == 0 {
        // Trying again would not help: a dead letter, for a person to look at.
        return Err(Failure::permanent("unknown-customer", format!("customer {customer}")));
    }
    tx.execute(give, &[&SHOP, &amount_cents]).await?;
    let paid = "insert into payments (order_id, amount_cents) values ($1, $2)";
    tx.execute(paid, &[&order, &amount_cents]).await?;

    let event = Event::new("payments", json!({ "order": order, "amount_cents": amount_cents }));
    tx.publish(&event.key(&customer.to_string()).kind("OrderPaid")).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    let mut args = std::env::args().skip(1);
    let usage = "usage: payments POSTGRES_URL BROKERS";
    let (database, brokers) = (args.next().context(usage)?, args.next().context(usage)?);

    let manager = Manager::new(database.parse()?, NoTls);
    let pool = Pool::builder(manager).max_size(32).build()?;
    let inbox = Inbox::open(pool, "payments/take").await?;

    let mut kafka = ClientConfig::new();
    kafka
        .set("bootstrap.servers", &brokers)
        .set("group.id", "payments")
        // Of this instance: one that died and is back has its partitions at once.
        .set("group.instance.id", "payments-1");
    let processor = Processor::new(inbox, take_payment);
    let mut term = signal(SignalKind::terminate())?; // Sent by whoever stops a container.
    let stop = async move { tokio::select!(_ = ctrl_c() => {}, _ = term.recv() => {}) };
    Runner::new(processor, kafka, &["orders"]).run(stop).await?;
    Ok(())
}
