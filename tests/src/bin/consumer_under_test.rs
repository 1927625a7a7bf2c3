//! A consumer as the suite runs it: a real process that is killed, frozen and asked to stop. Its
//! handler stores what each event does, publishes a follow-up, and fails now and then.

use anyhow::{Context as _, Result};
use outbox_idempotency::{
    Dedup, Event, Failure, Inbox, Message, Processor, Retry, Tx,
    kafka::{ClientConfig, Runner},
};
use serde::Deserialize;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// From `CONSUMER`, as JSON; `outbox_tests::consumer` writes it.
#[derive(Deserialize)]
struct Settings {
    database: String,
    brokers: String,
    group: String,
    topic: String,
    batch: usize,
    fail_percent: u32,
    watermark: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_ansi(false).init();
    let settings = std::env::var("CONSUMER").context("CONSUMER")?;
    let settings: Settings = serde_json::from_str(&settings)?;
    let pool = outbox_tests::database::pool(settings.database.parse()?, 24);
    let inbox = Inbox::open(pool, &settings.group).await?;

    let fail_percent = settings.fail_percent;
    let one = move |tx: Tx, message: Message<serde_json::Value>| async move {
        store(&tx, std::slice::from_ref(&message)).await?;
        fail(fail_percent)
    };
    let many = move |tx: Tx, messages: Vec<Message<serde_json::Value>>| async move {
        store(&tx, &messages).await?;
        fail(fail_percent)
    };
    let processor = match settings.batch {
        0 => Processor::new(inbox, one),
        max => Processor::batch(inbox, max, many),
    };
    let retry = Retry::exponential(Duration::from_millis(20), Duration::from_millis(200));
    let processor = processor.retry(retry.attempts(1_000));

    let processor = match settings.watermark {
        Some(relay) => processor.dedup(Dedup::Watermark { relay }),
        None => processor,
    };

    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", &settings.group)
        // The shortest that a broker takes by default.
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "500");
    let mut terminated = signal(SignalKind::terminate())?;
    let stop = async {
        terminated.recv().await;
    };
    Runner::new(processor, config, &[&settings.topic]).run(stop).await?;
    Ok(())
}

fn fail(percent: u32) -> Result<(), Failure> {
    if rand::random_range(0..100) < percent {
        return Err(Failure::transient("at random"));
    }
    Ok(())
}

async fn store(tx: &Tx, messages: &[Message<serde_json::Value>]) -> Result<(), Failure> {
    for message in messages {
        let id = message.id.uuid();
        let lane = match &message.key {
            Some(key) => String::from_utf8_lossy(key).into_owned(),
            None => format!("#{}", message.source.partition),
        };
        let n = message.headers.text("sequence").and_then(|n| n.parse::<i64>().ok());
        let insert = "insert into effects (message, lane, n) values ($1, $2, $3)";
        tx.execute(insert, &[&id, &lane, &n]).await?;
        let event = serde_json::json!({ "of": id });
        tx.publish(&Event::new("follow-ups", event)).await?;
    }
    Ok(())
}
