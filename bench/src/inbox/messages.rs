//! Messages as the relay would have published them, numbered from 0; what each says follows from
//! its number alone, so the effects that they must have can be told without asking anyone.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outbox_harness::{kafka::Kafka, topic::Topic};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use serde::Deserialize;
use uuid::Uuid;

use crate::terminal::progress;

/// Of the topic.
pub(super) const PARTITIONS: i32 = 8;

/// Rows of the table of effects, and distinct keys of most topics.
pub(super) const ACCOUNTS: u64 = 100_000;
/// Keys of a topic with few.
pub(super) const FEW: i32 = 40;
/// The name that the messages give as their relay's.
pub(super) const RELAY: &str = "bench";
const PAYLOAD_BYTES: usize = 190;
const PRODUCE_MAX: Duration = Duration::from_secs(120);

/// What keys a topic's messages have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keys {
    /// One for each account.
    Many,
    /// Forty in all.
    Few,
    /// None; each account has a partition.
    None,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Transfer {
    pub(super) n: i64,
    pub(super) account: i32,
    pub(super) amount: i64,
}

impl Transfer {
    /// Of the message with this number. Amounts are random, so that a loss here and a repetition
    /// there don't come to the same sum.
    pub(super) fn of(n: usize) -> Self {
        let random = mixed(n as u64);
        Transfer {
            n: i64::try_from(n).expect("fewer messages than that"),
            account: i32::try_from(random % ACCOUNTS).expect("fewer accounts than that"),
            amount: i64::from((mixed(random) >> 40) as u32) + 1,
        }
    }

    /// The same, of a topic with these keys.
    pub(super) fn in_topic(n: usize, keys: Keys) -> Self {
        let transfer = Transfer::of(n);
        match keys {
            Keys::Many | Keys::None => transfer,
            Keys::Few => Transfer { account: transfer.account % FEW, ..transfer },
        }
    }

    fn payload(&self) -> String {
        let Transfer { n, account, amount } = self;
        let mut text = format!(r#"{{"n":{n},"account":{account},"amount":{amount},"pad":""#);
        let padding = PAYLOAD_BYTES.saturating_sub(text.len() + 2);
        text.extend(std::iter::repeat_n('x', padding));
        text + "\"}"
    }
}

/// SplitMix64's finalizer: from a number to what looks random.
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Fills a topic, in the messages' order within each partition.
pub(super) async fn produce(
    kafka: &'static Kafka,
    topic: &Topic,
    messages: usize,
    keys: Keys,
) -> Result<()> {
    let topic = topic.name().to_owned();
    tokio::task::spawn_blocking(move || fill(kafka, &topic, messages, keys)).await?
}

fn fill(kafka: &Kafka, topic: &str, messages: usize, keys: Keys) -> Result<()> {
    let producer: ThreadedProducer<DefaultProducerContext> = kafka
        .client()
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("delivery.report.only.error", "true")
        .create()?;
    let began = Instant::now();
    for n in 0..messages {
        let transfer = Transfer::in_topic(n, keys);
        let (key, payload) = (transfer.account.to_string(), transfer.payload());
        let mut record = BaseRecord::to(topic).payload(&payload).headers(headers(n));
        record = match keys {
            Keys::None => record.partition(transfer.account % PARTITIONS),
            Keys::Many | Keys::Few => record.key(&key),
        };
        while let Err((error, again)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            ensure!(error == full && began.elapsed() < PRODUCE_MAX, "producing: {error}");
            std::thread::sleep(Duration::from_millis(1));
            record = again;
        }
    }
    while producer.in_flight_count() > 0 {
        ensure!(began.elapsed() < PRODUCE_MAX, "producing takes too long");
        std::thread::sleep(Duration::from_millis(1));
    }
    progress(&format!("{messages} messages produced in {:.1?}", began.elapsed()));
    Ok(())
}

/// As the relay gives them; each a commit of its own.
fn headers(n: usize) -> OwnedHeaders {
    let id = Uuid::now_v7().to_string();
    let position = format!("7440000000000000000:1:{:016X}:0000000000", n + 1);
    let values = [
        ("outbox-id", id.as_str()),
        ("outbox-type", "transfer"),
        ("outbox-relay", RELAY),
        ("outbox-position", &position),
    ];
    values.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(*value) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_its_size_and_says_what_its_number_says() {
        for n in [0, 7, 123_456_789] {
            let transfer = Transfer::of(n);
            let payload = transfer.payload();
            assert_eq!(payload.len(), PAYLOAD_BYTES);
            let read: Transfer = serde_json::from_str(&payload).expect("JSON");
            assert_eq!(read, transfer);
        }
    }
}
