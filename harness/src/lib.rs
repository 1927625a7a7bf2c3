//! What end-to-end tests run in: real PostgreSQL, real Kafka, relays and consumers as processes.
//!
//! ```text
//! Harness ─► Database (roles, template) ─► Postgres ┐
//!    │ └───► Topic (records)            ─► Kafka    ├─► guardian: nothing stays behind
//!    └─────► Relay (a child process)   ─────────────┘
//! Load, Event ─► committed rows ─► check::compare ◄─ records
//! ```
//!
//! Servers start once per process and are shared; each test owns its database, slot, relay name
//! and topics, so all run at once. Used by `tests`, `bench` and the examples' `books`.

pub mod acl;
pub mod aws;
pub mod certificates;
pub mod check;
pub mod cluster;
pub mod consumer;
pub mod database;
mod docker;
pub mod event;
pub mod file;
pub mod host;
pub mod impostors;
pub mod kafka;
pub mod kafka_tools;
mod lines;
pub mod load;
pub mod local_kafka;
pub mod member;
mod moves;
pub mod murmur2;
pub mod nats;
pub mod postgres;
pub mod postgres_version;
pub mod probes;
mod process;
pub mod proxy;
#[cfg(feature = "pulsar")]
pub mod pulsar;
pub mod python;
pub mod rabbit;
pub mod relay;
mod rights;
pub mod servers;
pub mod storm;
mod template;
pub mod text;
pub mod topic;
pub mod wait;

use std::{path::Path, time::Duration};

use rdkafka::admin::{AdminClient, AdminOptions};
use tempfile::TempDir;

use crate::{
    check::Count,
    database::{Database, Role},
    event::{Committed, Event},
    kafka::Kafka,
    load::{Load, Plan},
    postgres::{Postgres, Session},
    relay::Settings,
    topic::Topic,
};

/// Everything that one test owns.
#[derive(Debug)]
pub struct Harness {
    // Before the database in order of drop: it holds the relays' logs and settings.
    dir: TempDir,
    database: Database,
    kafka: &'static Kafka,
    writer: Session,
}

impl Harness {
    /// A database, a writer in it, and a broker.
    ///
    /// # Panics
    /// When PostgreSQL or Kafka can't be had; the text says what to install.
    pub async fn start() -> Self {
        let (kafka, postgres) = tokio::join!(servers::kafka(), servers::postgres());
        Self::with(postgres, kafka).await
    }

    /// As [`Harness::start`], on servers of the test's own.
    ///
    /// # Panics
    /// When one of them does not answer.
    pub async fn with(postgres: &'static Postgres, kafka: &'static Kafka) -> Self {
        Self::over(Database::create_in(postgres).await, kafka).await
    }

    /// As [`Harness::start`], with a database that was made otherwise.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn over(database: Database, kafka: &'static Kafka) -> Self {
        let writer = database.connect(Role::Writer).await;
        let dir = tempfile::Builder::new().prefix("outbox-test-").tempdir().expect("a directory");
        Harness { dir, database, kafka, writer }
    }

    /// The test's database.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// New sessions, after PostgreSQL was away.
    ///
    /// # Panics
    /// When it does not come back.
    pub async fn reconnect(&mut self) {
        self.database.reconnect().await;
        self.writer = self.database.connect(Role::Writer).await;
    }

    /// The database is on another server by now, which was its standby.
    ///
    /// # Panics
    /// When that does not answer.
    pub async fn fail_over(&mut self, to: &'static Postgres) {
        self.database.fail_over(to).await;
        self.writer = self.database.connect(Role::Writer).await;
    }

    /// The test's broker.
    pub fn kafka(&self) -> &'static Kafka {
        self.kafka
    }

    /// A topic's handle, its name made unique; it need not exist.
    pub fn topic(&self, name: &str) -> Topic {
        Topic::new(self.kafka, format!("{}.{name}", self.database.name()))
    }

    /// A topic by its name as it is in the broker.
    pub fn topic_named(&self, name: &str) -> Topic {
        Topic::new(self.kafka, name.to_owned())
    }

    /// Settings of a relay of this database, named after it.
    pub fn relay(&self) -> Settings {
        self.relay_of(&self.database)
    }

    /// This test's own directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Settings of a relay of another database, in this test's directory.
    pub fn relay_of(&self, database: &Database) -> Settings {
        Settings::new(self.dir.path())
            .set("name", database.name())
            .set("postgres.url", &database.url(Role::Relay))
            .set("sink.properties.\"bootstrap.servers\"", self.kafka.brokers())
            .env("RUST_BACKTRACE", "1")
    }

    /// Writes events in one transaction, as the writer's role.
    ///
    /// # Panics
    /// When the database refuses them.
    pub async fn commit(&mut self, events: impl IntoIterator<Item = Event>) {
        let transaction = self.writer.transaction().await.expect("a transaction begins");
        for event in events {
            event.insert(transaction.client()).await.expect("the event is inserted");
        }
        transaction.commit().await.expect("the transaction is committed");
    }

    /// Writes events in one transaction, and rolls it back.
    ///
    /// # Panics
    /// When the database refuses them.
    pub async fn roll_back(&mut self, events: impl IntoIterator<Item = Event>) {
        let transaction = self.writer.transaction().await.expect("a transaction begins");
        for event in events {
            event.insert(transaction.client()).await.expect("the event is inserted");
        }
        transaction.rollback().await.expect("the transaction is rolled back");
    }

    /// Starts writers in the test's database.
    pub async fn load(&self, plan: &Plan) -> Load {
        Load::start(&self.database, plan).await
    }

    /// What is committed, from the table.
    pub async fn committed(&self) -> Vec<Committed> {
        event::committed(self.database.superuser()).await
    }

    /// Waits until a consumer of `topic` has seen every committed event, and counts.
    ///
    /// # Panics
    /// When one is missing after [`wait::PATIENCE`].
    pub async fn count(&self, topic: &Topic, partitions: i32) -> Count {
        let truth = self.committed().await;
        let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
        let steps = check::positions_that_step_back(&records);
        assert!(steps.is_empty(), "positions grow within a partition: {steps:?}");
        check::compare(&truth, &records, partitions)
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if self.kafka.is_external() {
            delete_topics(self.kafka, self.database.name());
        }
    }
}

/// Removes what a test made in a broker that is not ours: its topics, and its relay's progress.
fn delete_topics(kafka: &'static Kafka, name: &str) {
    let (prefix, progress) = (format!("{name}."), format!("outbox-relay-progress-{name}"));
    let deleted = std::thread::spawn(move || {
        let admin: AdminClient<_> = kafka.client().create()?;
        let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(10))?;
        let ours: Vec<&str> = metadata
            .topics()
            .iter()
            .map(rdkafka::metadata::MetadataTopic::name)
            .filter(|topic| topic.starts_with(&prefix) || *topic == progress)
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(admin.delete_topics(&ours, &AdminOptions::new()))?;
        anyhow::Ok(())
    })
    .join();
    if let Ok(Err(error)) = deleted {
        host::report(&format!("deleting topics of {name}: {error:#}"));
    }
}
