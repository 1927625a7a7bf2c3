//! The consumer: takes records, and keeps what they did in a table, once per event id.
//!
//! As a real one would, it stores id and effect in one transaction, so that a record that comes
//! again does nothing. It remembers no more than the offsets.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::FutureExt;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{broker::Broker, count::Order};
use crate::{core::header, postgres::sql::SqlSession};

pub(super) const TABLES: &str = "
    create table demo.inbox (id uuid primary key);
    create table demo.effects (
        happened bigserial primary key, id uuid not null, customer text not null,
        number int8 not null);
";

/// Ids that are new, and for these the effect, in the order of the records.
const APPLY: &str = "
    with record as (
        select distinct on (id) * from unnest($1::uuid[], $2::text[], $3::int8[])
            with ordinality as r (id, customer, number, n)
        order by id, n
    ), new as (
        insert into demo.inbox select id from record on conflict do nothing returning id
    )
    insert into demo.effects (id, customer, number)
    select id, customer, number from record join new using (id) order by n";

const EFFECTS: &str = "select id, customer, number from demo.effects order by happened";

/// One effect deleted, one done twice, and two of one customer swapped.
const TAMPER: &str = "
    delete from demo.effects where happened = (select max(happened) from demo.effects);
    insert into demo.effects (id, customer, number)
        select id, customer, number from demo.effects order by happened limit 1;
    update demo.effects e set id = other.id, number = other.number
        from demo.effects other
        where e.customer = 'customer-1' and other.customer = e.customer
            and (e.number, other.number) in ((2, 3), (3, 2))";

const RECORDS_MAX: usize = 1000;
/// How long the last records may take.
const END: Duration = Duration::from_secs(30);

/// A consumer of all partitions of one topic.
pub(super) struct Consumer<'a> {
    broker: &'a Broker,
    topic: String,
    session: SqlSession,
    apply: Statement,
    /// Offset to continue from, by partition.
    next: Vec<i64>,
    repeated: u64,
    delivered: watch::Sender<u64>,
}

#[derive(Deserialize)]
struct Payload {
    customer: String,
    number: i64,
}

impl<'a> Consumer<'a> {
    /// `delivered` is told how many events have taken effect.
    pub(super) async fn new(
        broker: &'a Broker,
        topic: &str,
        partitions: usize,
        session: SqlSession,
        delivered: watch::Sender<u64>,
    ) -> Result<Self> {
        let apply = session.client().prepare(APPLY).await?;
        let (topic, next) = (topic.to_owned(), vec![0; partitions]);
        Ok(Consumer { broker, topic, session, apply, next, repeated: 0, delivered })
    }

    /// Records that came again, with an id that had taken effect.
    pub(super) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Takes records until `enough`, then those that are left.
    pub(super) async fn consume(&mut self, enough: &CancellationToken) -> Result<()> {
        let consumer = self.subscribe()?;
        loop {
            // `recv` is cancel safe.
            let first = tokio::select! {
                () = enough.cancelled() => break,
                first = consumer.recv() => first,
            };
            self.take(&consumer, first).await?;
        }
        drop(consumer);
        tokio::time::timeout(END, self.consume_rest())
            .await
            .context("the topic could not be read to its end")?
    }

    /// From a client of its own: the end of a partition is told once, when it is come to.
    async fn consume_rest(&mut self) -> Result<()> {
        let consumer = self.subscribe()?;
        let mut open = self.next.len();
        while open > 0 {
            match consumer.recv().await {
                Err(KafkaError::PartitionEOF(_)) => open -= 1,
                other => open -= self.take(&consumer, other).await?,
            }
        }
        Ok(())
    }

    fn subscribe(&self) -> Result<StreamConsumer> {
        let consumer: StreamConsumer = self
            .broker
            .client()
            .set("group.id", "none: partitions are assigned by hand")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "50")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for (partition, next) in (0..).zip(&self.next) {
            assignment.add_partition_offset(&self.topic, partition, Offset::Offset(*next))?;
        }
        consumer.assign(&assignment)?;
        Ok(consumer)
    }

    /// Takes `first` and what else is there, and returns the number of ends of partitions among it.
    async fn take(
        &mut self,
        consumer: &StreamConsumer,
        first: Result<BorrowedMessage<'_>, KafkaError>,
    ) -> Result<usize> {
        let (mut ends, mut orders) = (0, Vec::new());
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                Ok(message) => orders.push(self.read(&message)?),
                Err(KafkaError::PartitionEOF(_)) => ends += 1,
                Err(error) => return Err(error).context("consuming"),
            }
            if orders.len() < RECORDS_MAX {
                next = consumer.recv().now_or_never();
            }
        }
        self.apply(orders).await?;
        Ok(ends)
    }

    fn read(&mut self, message: &BorrowedMessage<'_>) -> Result<Order> {
        let place = format!("partition {} offset {}", message.partition(), message.offset());
        let next = usize::try_from(message.partition()).ok().and_then(|p| self.next.get_mut(p));
        *next.with_context(|| format!("{place} was not asked for"))? = message.offset() + 1;
        let id = message.headers().and_then(|headers| {
            let id = headers.iter().find(|header| header.key == header::ID)?;
            Uuid::try_parse_ascii(id.value?).ok()
        });
        let id = id.with_context(|| format!("{place} has no event id"))?;
        let payload: Payload = serde_json::from_slice(message.payload().unwrap_or_default())
            .with_context(|| format!("{place} has another payload than was written"))?;
        if message.key() != Some(payload.customer.as_bytes()) {
            bail!("{place} has another key than was written");
        }
        Ok(Order { id, customer: payload.customer, number: payload.number })
    }

    async fn apply(&mut self, orders: Vec<Order>) -> Result<()> {
        let count = orders.len() as u64;
        let (mut ids, mut customers, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for Order { id, customer, number } in orders {
            ids.push(id);
            customers.push(customer);
            numbers.push(number);
        }
        let client = self.session.client();
        let new = client.execute(&self.apply, &[&ids, &customers, &numbers]).await?;
        self.repeated += count - new;
        self.delivered.send_modify(|delivered| *delivered += new);
        Ok(())
    }
}

/// All effects, in the order in which they happened.
pub(super) async fn effects(client: &Client) -> Result<Vec<Order>> {
    let rows = client.query(EFFECTS, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Order { id: row.try_get(0)?, customer: row.try_get(1)?, number: row.try_get(2)? })
        })
        .collect()
}

/// Damages the effects in each way that the count knows.
pub(super) async fn tamper(client: &Client) -> Result<()> {
    Ok(client.batch_execute(TAMPER).await?)
}
