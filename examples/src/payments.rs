//! A consumer that is a producer too: takes the money for each order, and says so. From Kafka.
//!
//! `cargo run -p outbox-examples --bin payments -- POSTGRES_URL BROKERS`, until Ctrl-C or SIGTERM. With `shipping` as its
//! last argument it is the other service, which gets every order as well: another consumer group, with an inbox of its own.

use outbox_examples::service;
use outbox_idempotency::kafka::{ClientConfig, Runner};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: payments POSTGRES_URL BROKERS [payments|shipping]";
    let (service, [brokers]) = service::start(usage).await?;
    let mut kafka = ClientConfig::new();
    kafka
        .set("bootstrap.servers", brokers)
        .set("group.id", service.name)
        // Of this instance: one that died and is back has its partitions at once.
        .set("group.instance.id", format!("{}-1", service.name));
    Runner::new(service.processor, kafka, &["orders"]).run(service::stop()?).await?;
    Ok(())
}
