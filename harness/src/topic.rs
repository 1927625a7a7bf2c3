//! A topic of a test's own, and what a consumer that reads committed records finds in it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    admin::{
        AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
    },
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
    producer::{FutureProducer, FutureRecord},
};

use crate::{kafka, kafka::Kafka, wait};

/// How long one question to the broker may take.
const ASK: Duration = Duration::from_secs(10);

/// A topic's name, and the broker it is in.
#[derive(Clone, Debug)]
pub struct Topic {
    kafka: &'static Kafka,
    name: String,
}

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it was found.
    pub topic: String,
    /// Where it was found.
    pub partition: i32,
    /// Where it was found.
    pub offset: i64,
    /// `None` where it has none.
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// In their order; text, as all of ours are.
    pub headers: Vec<(String, String)>,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
}

impl Record {
    /// The value of the header `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The event's id, with either style of headers.
    pub fn id(&self) -> Option<&str> {
        self.header("outbox-id").or_else(|| self.header("ce_id")).or_else(|| self.header("id"))
    }
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
        self.partitions_by(&self.kafka.client().create()?)
    }

    fn partitions_by(&self, consumer: &BaseConsumer) -> Result<Option<i32>> {
        // All topics: asking for one by its name could create it.
        let metadata = consumer.fetch_metadata(None, ASK)?;
        let found = metadata.topics().iter().find(|topic| topic.name() == self.name);
        found.map(|topic| i32::try_from(topic.partitions().len()).context("partitions")).transpose()
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

    /// As [`Topic::records`], one at a time, for more of them than memory should hold.
    ///
    /// # Panics
    /// As [`Topic::records`].
    pub async fn fold<T: Send + 'static>(
        &self,
        mut all: T,
        mut take: impl FnMut(&mut T, Record) + Send + 'static,
    ) -> T {
        let topic = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut reader = Reader::open(&topic)?;
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
                match Reader::open(&topic) {
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

/// A consumer of all partitions from their beginnings.
struct Reader {
    consumer: BaseConsumer,
    partitions: usize,
    /// Partitions whose end was reached, and nothing came since.
    ended: BTreeSet<i32>,
    records: Vec<Record>,
    deadline: Instant,
}

impl Reader {
    fn open(topic: &Topic) -> Result<Self> {
        let consumer: BaseConsumer = topic
            .kafka
            .client()
            .set("group.id", "unused: partitions are assigned by hand")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "20")
            .create()?;
        let there = topic.partitions_by(&consumer)?;
        let partitions = there.with_context(|| format!("no topic {}", topic.name))?;
        // A client that does not know a partition's leader yet asks for its beginning 500 ms later.
        consumer.fetch_metadata(Some(&topic.name), ASK)?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(&topic.name, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        Ok(Reader {
            consumer,
            partitions: usize::try_from(partitions)?,
            ended: BTreeSet::new(),
            records: Vec::new(),
            deadline: Instant::now() + wait::PATIENCE,
        })
    }

    /// Takes what comes next: a record, or the news that a partition holds no more. What an open
    /// transaction hides is past that end.
    fn poll(&mut self) -> Result<()> {
        match self.consumer.poll(Duration::from_millis(20)) {
            Some(Ok(message)) => {
                self.ended.remove(&message.partition());
                self.records.push(record(&message));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(self.ended.insert(partition)),
            Some(Err(error)) => return Err(error).context("reading"),
            None if Instant::now() >= self.deadline => {
                bail!("read {} records and no more came", self.records.len())
            }
            None => {}
        }
        Ok(())
    }
}

fn record(message: &rdkafka::message::BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map(|headers| {
        headers
            .iter()
            .map(|header| {
                let value = header.value.map(|value| String::from_utf8_lossy(value).into_owned());
                (header.key.to_owned(), value.unwrap_or_default())
            })
            .collect()
    });
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
        timestamp_ms: message.timestamp().to_millis(),
    }
}
