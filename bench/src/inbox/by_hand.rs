//! What is written without a crate: a loop around a Kafka consumer, one message in a transaction,
//! its id in a table with a unique index. Correct, and what most services do.

use anyhow::{Context, Result};
use outbox_harness::{
    database::{Database, Role},
    kafka::Kafka,
    topic::Topic,
};
use rdkafka::{
    Message,
    consumer::{Consumer, StreamConsumer},
    message::Headers,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    accounts::{self, Counter, Watch},
    messages::Transfer,
    outcome::Turn,
};

/// So many of these loops at once, each with a consumer of the group and a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByHand {
    pub(super) loops: usize,
}

impl ByHand {
    pub(super) fn name(self) -> String {
        match self.loops {
            1 => "by hand, one in a transaction".to_owned(),
            loops => format!("the same, {loops} consumers of a group"),
        }
    }
}

/// One turn, from the topic's beginning to its end.
pub(super) async fn run(
    ByHand { loops }: ByHand,
    kafka: &Kafka,
    database: &Database,
    topic: &Topic,
    group: &str,
    watch: &Watch,
) -> Result<Turn> {
    let mut consumers = JoinSet::new();
    for _ in 0..loops {
        let client = database.connect(Role::Consumer).await;
        let consumer: StreamConsumer = kafka
            .client()
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("partition.assignment.strategy", "cooperative-sticky")
            // Stored when the message has taken effect, committed once a second.
            .set("enable.auto.offset.store", "false")
            .set("auto.commit.interval.ms", "1000")
            .create()?;
        consumer.subscribe(&[topic.name()])?;
        consumers.spawn(consume(consumer, client, watch.counter()));
    }
    let consuming = async { consumers.join_next().await.context("there is at least one")?? };
    watch.finish(consuming).await
}

async fn consume(
    consumer: StreamConsumer,
    mut client: outbox_harness::postgres::Session,
    counter: Counter,
) -> Result<()> {
    let remember = "insert into seen (id) values ($1) on conflict do nothing";
    let remember = client.prepare(remember).await?;
    let upsert = client.prepare(accounts::UPSERT).await?;
    loop {
        let message = consumer.recv().await?;
        let id: Uuid = id(&message).context("a message without an id")?;
        let transfer: Transfer =
            serde_json::from_slice(message.payload().context("a message without a payload")?)?;
        counter.add(1);
        let transaction = client.transaction().await?;
        if transaction.execute(&remember, &[&id]).await? == 1 {
            let Transfer { n, account, amount } = &transfer;
            transaction.execute(&upsert, &[account, amount, n]).await?;
        }
        transaction.commit().await?;
        consumer.store_offset_from_message(&message)?;
    }
}

fn id(message: &impl Message) -> Option<Uuid> {
    let headers = message.headers()?;
    let header = headers.iter().find(|header| header.key == "outbox-id")?;
    std::str::from_utf8(header.value?).ok()?.parse().ok()
}
