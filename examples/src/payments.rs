//! A consumer that is a producer too: takes the money for each order, and says so. From Kafka.
//!
//! `cargo run -p outbox-examples --bin payments -- POSTGRES_URL BROKERS`, until Ctrl-C or SIGTERM.

use anyhow::Context;
use deadpool_postgres::{Manager, Pool};
use outbox_examples::payment;
use outbox_idempotency::{
    Inbox, Processor,
    kafka::{ClientConfig, Runner},
};
use tokio_postgres::NoTls;

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
    let processor = Processor::new(inbox, payment::take);
    Runner::new(processor, kafka, &["orders"]).run(payment::stop()?).await?;
    Ok(())
}
