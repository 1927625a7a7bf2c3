//! A topic of a test's own, and what a consumer that reads committed records finds in it.

mod reader;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{
        AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
    },
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
};

pub use self::reader::Record;
use self::reader::{ASK, Isolation, Reader};
use crate::{kafka, kafka::Kafka, wait};

/// A topic's name, and the broker it is in.
#[derive(Clone, Debug)]
pub struct Topic {
    kafka: &'static Kafka,
    name: String,
}

impl Topic {
    /// A topic of a broker by its name there; it need not exist.
    pub fn new(kafka: &'static Kafka, name: String) -> Self {
        Topic { kafka, name }
    }

    /// Settings of a client of its broker, to be completed.
    pub fn client(&self) -> rdkafka::ClientConfig {
        self.kafka.client()
    }

    pub(crate) fn kafka(&self) -> &'static Kafka {
        self.kafka
    }

    /// Its name in the broker.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates it and waits until the broker's metadata shows all partitions.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn create(self, partitions: i32) -> Self {
        self.create_with(partitions, &[]).await
    }

    /// As [`Topic::create`], with settings such as `max.message.bytes`.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn create_with(self, partitions: i32, settings: &[(&str, &str)]) -> Self {
        self.create_replicated(partitions, 1, settings).await
    }

    /// As [`Topic::create_with`], with more than one replica.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn create_replicated(
        self,
        partitions: i32,
        replicas: i32,
        settings: &[(&str, &str)],
    ) -> Self {
        let admin = self.kafka.admin().expect("an admin client");
        let new = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(replicas));
        let new = settings.iter().fold(new, |new, (key, value)| new.set(key, value));
        let outcomes = admin.create_topics([&new], &AdminOptions::new()).await;
        for outcome in outcomes.expect("the broker answers") {
            outcome.expect("the topic is created");
        }
        self.shows("the topic is in the metadata", Some(partitions)).await;
        self
    }

    /// Changes a setting of it, such as `max.message.bytes`, and waits until the broker shows it.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn set(&self, setting: &str, value: &str) {
        self.set_beside(&[], setting, value).await;
    }

    /// As [`Topic::set`], with others that it has already: what is not named goes back to its default.
    ///
    /// # Panics
    /// As [`Topic::set`].
    pub async fn set_beside(&self, others: &[(&str, &str)], setting: &str, value: &str) {
        let all = [others, &[(setting, value)]].concat();
        self.try_set_all(&all).await.expect("the topic is changed");
        wait::until("the topic's setting is shown", wait::PATIENCE, || async {
            match self.setting(setting).await {
                Ok(Some(found)) if found == value => Ok(()),
                found => Err(format!("{found:?}")),
            }
        })
        .await
        .expect("it is changed");
    }

    async fn setting(&self, setting: &str) -> Result<Option<String>> {
        let admin = self.kafka.admin()?;
        let topic = ResourceSpecifier::Topic(&self.name);
        let found = admin.describe_configs([&topic], &AdminOptions::new()).await?;
        let entries = found.into_iter().flatten().flat_map(|resource| resource.entries);
        Ok(entries.filter(|entry| entry.name == setting).find_map(|entry| entry.value))
    }

    /// As [`Topic::set`], for a broker that may be away.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn try_set(&self, setting: &str, value: &str) -> Result<()> {
        self.try_set_all(&[(setting, value)]).await
    }

    async fn try_set_all(&self, settings: &[(&str, &str)]) -> Result<()> {
        let admin = self.kafka.admin()?;
        let topic = AlterConfig::new(ResourceSpecifier::Topic(&self.name));
        let change = settings.iter().fold(topic, |change, (name, value)| change.set(name, value));
        for outcome in admin.alter_configs([&change], &AdminOptions::new()).await? {
            outcome.map_err(|(_, code)| code)?;
        }
        Ok(())
    }

    /// Deletes it, and waits until the broker's metadata no longer has it.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn delete(&self) {
        let admin = self.kafka.admin().expect("an admin client");
        let outcomes = admin.delete_topics(&[&self.name], &AdminOptions::new()).await;
        for outcome in outcomes.expect("the broker answers") {
            outcome.expect("the topic is deleted");
        }
        self.shows("the topic is gone", None).await;
    }

    /// Gives it more partitions, and waits until the broker's metadata shows them.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn grow(&self, partitions: usize) {
        let admin = self.kafka.admin().expect("an admin client");
        let more = NewPartitions::new(&self.name, partitions);
        let outcomes = admin.create_partitions([&more], &AdminOptions::new()).await;
        for outcome in outcomes.expect("the broker answers") {
            outcome.expect("the topic grows");
        }
        self.shows("the topic has grown", i32::try_from(partitions).ok()).await;
    }

    async fn shows(&self, what: &str, wanted: Option<i32>) {
        let topic = self.clone();
        kafka::ask(what, move || match topic.partitions()? {
            found if found == wanted => Ok(()),
            found => bail!("{} has {found:?} partitions", topic.name),
        })
        .await
        .expect("the broker shows it");
    }

    /// Stores a record itself, with a timestamp in milliseconds since the Unix epoch.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn produce(&self, timestamp_ms: i64, payload: &str) {
        let producer: FutureProducer = self.kafka.client().create().expect("a producer");
        let record = FutureRecord::to(&self.name).key("k").payload(payload).timestamp(timestamp_ms);
        producer.send(record, ASK).await.expect("it is stored");
    }

    /// Offset of the first record of partition 0 that is still there.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn begins_at(&self) -> i64 {
        let topic = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = topic.kafka.client().create()?;
            anyhow::Ok(consumer.fetch_watermarks(&topic.name, 0, ASK)?.0)
        });
        asked.await.expect("no panic").expect("the broker answers")
    }

    /// Number of partitions, `None` when there is no such topic. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn partitions(&self) -> Result<Option<i32>> {
        reader::partitions(&self.name, &self.kafka.client().create()?)
    }

    /// Whether the broker has it.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn exists(&self) -> bool {
        let topic = self.clone();
        let partitions = tokio::task::spawn_blocking(move || topic.partitions()).await;
        partitions.expect("no panic").expect("the broker answers").is_some()
    }

    /// Everything committed in it, each partition from its beginning to its end at this moment.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn records(&self) -> Vec<Record> {
        self.fold(Vec::new(), |records, record| records.push(record)).await
    }

    /// As [`Topic::records`], with what is in an open transaction, and what was taken back.
    ///
    /// # Panics
    /// As [`Topic::records`].
    pub async fn records_uncommitted(&self) -> Vec<Record> {
        let take = |records: &mut Vec<Record>, record| records.push(record);
        self.fold_of(Isolation::Uncommitted, Vec::new(), take).await
    }

    /// Where each partition ends: past its newest record, or past the newest before the first open
    /// transaction. Both are the same where there is no open transaction.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn ends(&self) -> [Vec<i64>; 2] {
        let topic = self.clone();
        let asked = tokio::task::spawn_blocking(move || topic.try_ends());
        asked.await.expect("no panic").expect("the broker answers")
    }

    fn try_ends(&self) -> Result<[Vec<i64>; 2]> {
        let ends = |isolation: Isolation| {
            let mut client = self.kafka.client();
            let consumer: BaseConsumer =
                client.set("isolation.level", isolation.level()).create()?;
            let partitions = 0..reader::partitions(&self.name, &consumer)?.unwrap_or(0);
            let end =
                |partition| anyhow::Ok(consumer.fetch_watermarks(&self.name, partition, ASK)?.1);
            partitions.map(end).collect::<Result<Vec<i64>>>()
        };
        Ok([ends(Isolation::Uncommitted)?, ends(Isolation::Committed)?])
    }

    /// Waits until the broker answers for each partition: metadata show a new one before that.
    ///
    /// # Panics
    /// When it does not.
    pub async fn is_served(&self) {
        let topic = self.clone();
        kafka::ask("each partition is served", move || topic.try_ends().map(drop))
            .await
            .expect("it is");
    }

    /// Deletes the records before `ends`, an offset for each partition.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn delete_records(&self, ends: &[i64]) {
        let mut before = TopicPartitionList::new();
        for (partition, end) in (0..).zip(ends) {
            let offset = Offset::Offset(*end);
            before.add_partition_offset(&self.name, partition, offset).expect("a list");
        }
        let admin = self.kafka.admin().expect("an admin client");
        let deleted = admin.delete_records(&before, &AdminOptions::new()).await;
        for partition in deleted.expect("the broker answers").elements() {
            partition.error().expect("the records are deleted");
        }
    }

    /// As [`Topic::records`], one at a time, for more of them than memory should hold.
    ///
    /// # Panics
    /// As [`Topic::records`].
    pub async fn fold<T: Send + 'static>(
        &self,
        all: T,
        take: impl FnMut(&mut T, Record) + Send + 'static,
    ) -> T {
        self.fold_of(Isolation::Committed, all, take).await
    }

    async fn fold_of<T: Send + 'static>(
        &self,
        isolation: Isolation,
        mut all: T,
        mut take: impl FnMut(&mut T, Record) + Send + 'static,
    ) -> T {
        let topic = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut reader = Reader::open(topic.kafka, &topic.name, isolation)?;
            while reader.ended.len() < reader.partitions {
                reader.poll()?;
                for record in reader.records.drain(..) {
                    reader.deadline = Instant::now() + wait::PATIENCE;
                    take(&mut all, record);
                }
            }
            anyhow::Ok(all)
        });
        read.await.expect("no panic").expect("the topic can be read")
    }

    /// Waits until the topic is there and the ids of all of `expected` were seen, and returns everything that is there
    /// then, so that what came twice is there twice.
    ///
    /// # Panics
    /// When they are not all there after [`wait::PATIENCE`], with some that are missing.
    pub async fn records_with(&self, expected: impl IntoIterator<Item = String>) -> Vec<Record> {
        let mut missing: BTreeSet<String> = expected.into_iter().collect();
        let topic = self.clone();
        let waited = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + wait::PATIENCE;
            let mut reader = loop {
                match Reader::open(topic.kafka, &topic.name, Isolation::Committed) {
                    Err(error) if Instant::now() >= deadline => return Err(error),
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    Ok(reader) => break reader,
                }
            };
            loop {
                for id in reader.records.drain(..).filter_map(|r| r.id().map(str::to_owned)) {
                    missing.remove(&id);
                }
                if missing.is_empty() {
                    return anyhow::Ok(());
                }
                reader.poll().with_context(|| {
                    let some: Vec<_> = missing.iter().take(5).collect();
                    format!("{} events are missing, such as {some:?}", missing.len())
                })?;
            }
        });
        waited.await.expect("no panic").expect("every expected record arrives");
        self.records().await
    }
}
