//! The demo's Kafka: given brokers, or librdkafka's mock cluster inside this process.
//!
//! The mock has no transactions: it shows what was produced in one whether it was committed or
//! not. A relay that believed it would take progress for stored that was not, and lose events. So
//! the relay is set to at-least-once there, and what it repeats after a kill is counted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
    mocking::MockCluster,
    producer::DefaultProducerContext,
};

const BROKERS: i32 = 1;
/// How long brokers may take to answer a request, and a new topic to appear.
const ANSWER: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

/// A cluster and the topics that the demo makes in it.
pub(super) struct Broker {
    servers: String,
    /// It lives as long as this.
    mock: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl Broker {
    pub(super) fn obtain(given: Option<&str>) -> Result<Self> {
        if let Some(servers) = given {
            return Ok(Broker { servers: servers.to_owned(), mock: None });
        }
        let mock = MockCluster::new(BROKERS).context("starting the mock cluster")?;
        Ok(Broker { servers: mock.bootstrap_servers(), mock: Some(mock) })
    }

    pub(super) fn is_mock(&self) -> bool {
        self.mock.is_some()
    }

    /// The setting `sink.delivery` that it allows.
    pub(super) fn delivery(&self) -> &'static str {
        if self.is_mock() { "at-least-once" } else { "exactly-once" }
    }

    /// `bootstrap.servers`.
    pub(super) fn servers(&self) -> &str {
        &self.servers
    }

    /// What it is, for a person.
    pub(super) fn describe(&self) -> String {
        if self.is_mock() {
            "Kafka: librdkafka's mock cluster in this process. It has no transactions, so the \
             relay is set to\n       at-least-once and the consumer drops repetitions by id; \
             --kafka BROKERS shows exactly-once"
                .to_owned()
        } else {
            format!("Kafka: {}, delivery exactly-once", self.servers)
        }
    }

    /// A client's settings, to be completed.
    pub(super) fn client(&self) -> ClientConfig {
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

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER))
}
