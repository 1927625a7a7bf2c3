//! A `read_committed` consumer that counts: every row once, each key in its order.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outbox_harness::{kafka::Kafka, topic::Topic};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};

use crate::backlog::{KEYS, PARTITIONS, number};

/// One question to the broker.
const ASK: Duration = Duration::from_secs(10);
/// What reading a whole run may take.
const READ_MAX: Duration = Duration::from_secs(120);

/// Where the partitions of a topic end now: the next run's records begin there.
pub(crate) async fn ends(kafka: &'static Kafka, topic: &Topic) -> Result<Vec<i64>> {
    let name = topic.name().to_owned();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = kafka.client().create()?;
        let end = |partition| Ok(consumer.fetch_watermarks(&name, partition, ASK)?.1);
        (0..PARTITIONS).map(end).collect()
    })
    .await?
}

/// A consumer of all partitions from these offsets on.
pub(crate) fn consumer(kafka: &Kafka, topic: &str, from: &[i64]) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = kafka
        .client()
        .set("group.id", "unused: partitions are assigned by hand")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in (0..).zip(from) {
        assignment.add_partition_offset(topic, partition, Offset::Offset(*offset))?;
    }
    consumer.assign(&assignment)?;
    Ok(consumer)
}

/// Reads everything from `from` to the end, and holds it against rows 0 to `rows - 1`.
///
/// # Errors
/// Anything was lost, doubled, unknown or out of order, or the broker did not answer.
pub(crate) async fn verify(
    kafka: &'static Kafka,
    topic: &Topic,
    from: Vec<i64>,
    rows: usize,
) -> Result<()> {
    let name = topic.name().to_owned();
    tokio::task::spawn_blocking(move || {
        let consumer = consumer(kafka, &name, &from)?;
        let mut count = Count::new(rows, KEYS);
        let mut ended = BTreeSet::new();
        let deadline = Instant::now() + READ_MAX;
        while ended.len() < from.len() {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    ended.remove(&message.partition());
                    count.add(message.payload().and_then(number));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
                Some(Err(error)) => return Err(error).context("reading what was published"),
                None => ensure!(Instant::now() < deadline, "counting took too long: {count:?}"),
            }
        }
        count.finish()
    })
    .await?
}

/// Counts rows by their numbers.
pub(crate) struct Count {
    seen: Vec<bool>,
    /// Newest number of each key.
    newest: Vec<Option<usize>>,
    pub(crate) delivered: usize,
    doubled: usize,
    unknown: usize,
    out_of_order: usize,
}

impl Count {
    pub(crate) fn new(rows: usize, keys: usize) -> Self {
        Count {
            seen: vec![false; rows],
            newest: vec![None; keys],
            delivered: 0,
            doubled: 0,
            unknown: 0,
            out_of_order: 0,
        }
    }

    /// A record came, of the row with this number.
    pub(crate) fn add(&mut self, n: Option<usize>) {
        let Some((n, seen)) = n.and_then(|n| Some((n, self.seen.get_mut(n)?))) else {
            self.unknown += 1;
            return;
        };
        if std::mem::replace(seen, true) {
            self.doubled += 1;
            return;
        }
        self.delivered += 1;
        let keys = self.newest.len();
        if let Some(newest) = self.newest.get_mut(n % keys) {
            if newest.is_some_and(|newest| newest > n) {
                self.out_of_order += 1;
            }
            *newest = Some(n);
        }
    }

    /// # Errors
    /// Anything was lost, doubled, unknown or out of order.
    pub(crate) fn finish(self) -> Result<()> {
        let right = self.delivered == self.seen.len()
            && (self.doubled, self.unknown, self.out_of_order) == (0, 0, 0);
        ensure!(right, "the run counts wrong, so it is no result: {self:?}");
        Ok(())
    }
}

impl std::fmt::Debug for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Count { seen, delivered, doubled, unknown, out_of_order, .. } = self;
        let lost = seen.len() - delivered;
        write!(
            f,
            "{} committed, {lost} lost, {doubled} doubled, {unknown} unknown, {out_of_order} out of \
             order",
            seen.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(numbers: &[usize]) -> Result<()> {
        let mut count = Count::new(2_001, KEYS);
        (0..2_001).filter(|n| !numbers.contains(n)).for_each(|n| count.add(Some(n)));
        numbers.iter().for_each(|n| count.add(Some(*n)));
        count.finish()
    }

    #[test]
    fn only_every_row_once_and_in_order_counts_right() {
        counted(&[]).expect("all of them");
        counted(&[7]).expect_err("after 1007, of the same key");
        counted(&[2_000, 2_000]).expect_err("twice");
        counted(&[2_001]).expect_err("unknown");
        Count::new(1, KEYS).finish().expect_err("lost");
    }
}
