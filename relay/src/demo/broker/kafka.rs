//! The demo's Kafka: given brokers, or librdkafka's mock cluster inside this process.
//!
//! The mock has no transactions: it shows what was produced in one whether it was committed or
//! not. A relay that believed it would take progress for stored that was not, and lose events. So
//! the relay is set to at-least-once there, and what it repeats after a kill is counted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::FutureExt;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _, StreamConsumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
    mocking::MockCluster,
    producer::DefaultProducerContext,
};

use crate::{
    core::header,
    demo::{count::Order, relay::quoted},
};

const BROKERS: i32 = 1;
/// How long brokers may take to answer a request, and a new topic to appear.
const ANSWER: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

/// A cluster and the topics that the demo makes in it.
pub(in crate::demo) struct Kafka {
    servers: String,
    /// It lives as long as this.
    mock: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl Kafka {
    pub(super) fn obtain(given: Option<&str>) -> Result<Self> {
        if let Some(servers) = given {
            return Ok(Kafka { servers: servers.to_owned(), mock: None });
        }
        let mock = MockCluster::new(BROKERS).context("starting the mock cluster")?;
        Ok(Kafka { servers: mock.bootstrap_servers(), mock: Some(mock) })
    }

    pub(super) fn is_mock(&self) -> bool {
        self.mock.is_some()
    }

    pub(super) fn settings(&self) -> String {
        let delivery = if self.is_mock() { "at-least-once" } else { "exactly-once" };
        let servers = quoted(&self.servers);
        format!(
            "[sink]\ndelivery = \"{delivery}\"\n[sink.properties]\n\"bootstrap.servers\" = {servers}\n"
        )
    }

    /// What it is, for a person.
    pub(super) fn describe(&self) -> String {
        if self.is_mock() {
            "Kafka: librdkafka's mock cluster in this process. It has no transactions, so the \
             relay is set to\n       at-least-once and the consumer drops repetitions by id; \
             --kafka BROKERS or --sink nats shows exactly-once"
                .to_owned()
        } else {
            format!("Kafka: {}, delivery exactly-once", self.servers)
        }
    }

    /// A client's settings, to be completed.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.servers).set("allow.auto.create.topics", "false");
        config
    }

    /// Creates the topic of the events, and on the mock, which creates none when asked by its
    /// clients, that of the relay's progress as well.
    pub(super) async fn create(&self, topic: &str, partitions: i32, progress: &str) -> Result<()> {
        if let Some(mock) = &self.mock {
            mock.create_topic(topic, partitions, BROKERS)?;
            mock.create_topic(progress, 1, BROKERS)?;
            return Ok(());
        }
        // -1: as many replicas as the brokers are set to.
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        let created = self.admin()?.create_topics([&new], &options()).await;
        let servers = &self.servers;
        let created = created.with_context(|| format!("no broker answers at {servers}"))?;
        for outcome in created {
            outcome.map_err(|(name, code)| anyhow::anyhow!("creating topic {name}: {code}"))?;
        }
        self.wait_for(topic).await
    }

    async fn wait_for(&self, topic: &str) -> Result<()> {
        let consumer: BaseConsumer = self.client().create()?;
        let topic = topic.to_owned();
        let wait = move || {
            let deadline = Instant::now() + ANSWER;
            loop {
                let metadata = consumer.fetch_metadata(Some(&topic), ANSWER)?;
                if metadata.topics().iter().any(|t| t.error().is_none() && t.name() == topic) {
                    return Ok(());
                }
                if Instant::now() >= deadline {
                    bail!("topic {topic} was created, and the brokers don't know it");
                }
                std::thread::sleep(POLL);
            }
        };
        tokio::task::spawn_blocking(wait).await?
    }

    /// Deletes topics; one that was never made is as good.
    pub(super) async fn delete(&self, topics: &[&str]) -> Result<()> {
        if self.is_mock() {
            return Ok(()); // They go with the cluster.
        }
        for outcome in self.admin()?.delete_topics(topics, &options()).await? {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((name, code)) => bail!("deleting topic {name}: {code}"),
            }
        }
        Ok(())
    }

    pub(super) fn reader(&self, topic: &str, partitions: u8) -> Result<KafkaReader> {
        let mut client = self.client();
        client
            .set("group.id", "none: partitions are assigned by hand")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "50");
        let next = vec![0; partitions.into()];
        let consumer = Some(subscribed(&client, topic, &next)?);
        Ok(KafkaReader { client, topic: topic.to_owned(), next, consumer, open: None })
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER))
}

/// Reads all partitions of one topic. It remembers no more than the offsets.
pub(in crate::demo) struct KafkaReader {
    client: ClientConfig,
    topic: String,
    /// Offset to continue from, by partition.
    next: Vec<i64>,
    consumer: Option<StreamConsumer>,
    /// Partitions that are not read to their end, once that is looked for.
    open: Option<usize>,
}

impl KafkaReader {
    pub(super) async fn next(&mut self, max: usize) -> Result<Vec<Order>> {
        let consumer = self.consumer.as_ref().context("read to the end before")?;
        // `recv` is cancel safe.
        let (orders, _ends) = take(consumer, &mut self.next, consumer.recv().await, max)?;
        Ok(orders)
    }

    /// From a client of its own: the end of a partition is told once, when it is come to.
    pub(super) async fn rest(&mut self, max: usize) -> Result<Option<Vec<Order>>> {
        let open = match self.open {
            Some(open) => open,
            None => {
                self.consumer = None;
                self.consumer = Some(subscribed(&self.client, &self.topic, &self.next)?);
                self.next.len()
            }
        };
        self.open = Some(open);
        if open == 0 {
            return Ok(None);
        }
        let consumer = self.consumer.as_ref().context("it has just been made")?;
        let (orders, ends) = take(consumer, &mut self.next, consumer.recv().await, max)?;
        self.open = Some(open - ends);
        Ok(Some(orders))
    }
}

fn subscribed(client: &ClientConfig, topic: &str, next: &[i64]) -> Result<StreamConsumer> {
    let consumer: StreamConsumer = client.create()?;
    let mut assignment = TopicPartitionList::new();
    for (partition, next) in (0..).zip(next) {
        assignment.add_partition_offset(topic, partition, Offset::Offset(*next))?;
    }
    consumer.assign(&assignment)?;
    Ok(consumer)
}

/// Takes `first` and what else is there; also how many ends of partitions are among it.
fn take(
    consumer: &StreamConsumer,
    next_offsets: &mut [i64],
    first: Result<BorrowedMessage<'_>, KafkaError>,
    max: usize,
) -> Result<(Vec<Order>, usize)> {
    let (mut ends, mut orders) = (0, Vec::new());
    let mut next = Some(first);
    while let Some(message) = next.take() {
        match message {
            Ok(message) => orders.push(read(&message, next_offsets)?),
            Err(KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => return Err(error).context("consuming"),
        }
        if orders.len() < max {
            next = consumer.recv().now_or_never();
        }
    }
    Ok((orders, ends))
}

fn read(message: &BorrowedMessage<'_>, next: &mut [i64]) -> Result<Order> {
    let place = format!("partition {} offset {}", message.partition(), message.offset());
    let next = usize::try_from(message.partition()).ok().and_then(|p| next.get_mut(p));
    *next.with_context(|| format!("{place} was not asked for"))? = message.offset() + 1;
    let id = message
        .headers()
        .and_then(|headers| headers.iter().find(|header| header.key == header::ID)?.value);
    Order::read(id, message.key(), message.payload()).context(place)
}
