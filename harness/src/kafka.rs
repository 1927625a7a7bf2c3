//! One Kafka for a run: `OUTBOX_TEST_KAFKA` (brokers), else Docker (`OUTBOX_TEST_KAFKA_IMAGE`),
//! else Apache Kafka's published jars (`local_kafka`).
//!
//! The broker creates topics by itself, on purpose: only then does a test that finds none prove
//! that the relay asked before it produced. Topics and consumers of a test are `topic`'s.

use std::{
    collections::BTreeMap,
    ops::Deref,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use outbox_relay::throwaway;
use rdkafka::{
    ClientConfig,
    admin::AdminClient,
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    metadata::MetadataTopic,
};
use testcontainers::{GenericImage, ImageExt, core::IntoContainerPort};

use crate::{
    docker, host,
    lines::{self, Line, Lines},
    local_kafka::{self, LocalKafka},
    proxy::Proxy,
    wait,
};

/// How long a broker may take from start to its first answer.
const START: Duration = Duration::from_secs(90);
/// How long one question for metadata may take; well above a broker's first answer.
pub(crate) const ASK: Duration = Duration::from_secs(2);

/// A running broker.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    /// Whether it was there before the run: then no topic of ours may stay in it.
    external: bool,
    from_jars: bool,
    lines: Lines,
}

/// Tests that break the line to the broker at the same time, and room for more.
const LINES: usize = 28;

impl Kafka {
    pub(crate) async fn start() -> Result<Self> {
        if let Ok(brokers) = std::env::var("OUTBOX_TEST_KAFKA") {
            let kafka =
                Kafka { brokers, external: true, from_jars: false, lines: Lines::default() };
            kafka.wait_ready(ASK * 5).await.context("OUTBOX_TEST_KAFKA")?;
            return Ok(kafka);
        }
        let no_docker = match docker::engine().await {
            Ok(()) => match Self::start_container().await {
                Ok(kafka) => return Ok(kafka),
                Err(error) => error.context("Docker could not start Kafka"),
            },
            Err(error) => error,
        };
        host::report(&format!("{no_docker:#}: using Apache Kafka from Maven"));
        let local = Self::start_local().await;
        local.with_context(|| {
            format!(
                "no Kafka for the tests: {no_docker:#}. Start Docker, or install a JDK 17 and \
                 Maven (apt-get install openjdk-17-jre-headless maven), or set OUTBOX_TEST_KAFKA \
                 to a broker's address"
            )
        })
    }

    async fn start_container() -> Result<Self> {
        let (name, tag) = docker::image("OUTBOX_TEST_KAFKA_IMAGE", "apache/kafka:4.1.0");
        // The broker tells clients its address, so the port must be known before it starts.
        let port = host::free_port();
        let mut request = GenericImage::new(name, tag)
            .with_mapped_port(port, 9092.tcp())
            .with_startup_timeout(START);
        let (mut inside, mut lines) = (Vec::new(), Vec::new());
        for inside_port in (9100..).take(LINES) {
            let (outside, proxy_port) = (host::free_port(), host::free_port());
            request = request.with_mapped_port(outside, inside_port.tcp());
            inside.push(Line { listens: format!("0.0.0.0:{inside_port}"), proxy_port });
            lines.push(Line { listens: format!("127.0.0.1:{outside}"), proxy_port });
        }
        let advertised = format!("127.0.0.1:{port}");
        let own = Own { controller: "127.0.0.1:9093".into(), broker: "127.0.0.1:9094".into() };
        let settings = settings("0.0.0.0:9092", &advertised, &own, &inside);
        let request = settings.into_iter().fold(request, |request, (key, value)| {
            let variable = format!("KAFKA_{}", key.to_uppercase().replace('.', "_"));
            request.with_env_var(variable, value)
        });
        let container = docker::start(request).await?;
        let lines = Lines::of(lines);
        let kafka = Kafka { brokers: advertised, external: false, from_jars: false, lines };
        kafka.wait_ready(START).await?;
        // Dropping the handle would stop the container; the guardian does that at the end.
        std::mem::forget(container);
        Ok(kafka)
    }

    async fn start_local() -> Result<Self> {
        let brokers = format!("127.0.0.1:{}", host::free_port());
        let own = Own::free();
        let lines = lines::local(LINES);
        let local = LocalKafka::start(&settings(&brokers, &brokers, &own, &lines), &[])?;
        let kafka = Kafka { brokers, external: false, from_jars: true, lines: Lines::of(lines) };
        let ready = kafka.wait_ready(START).await;
        ready.with_context(|| format!("Kafka's log:\n{}", throwaway::tail(&local.log())))?;
        // Dropping the handle would end the broker; the guardian does that at the end.
        std::mem::forget(local);
        Ok(kafka)
    }

    /// A broker that a test has started for itself, once it answers on `brokers`. The handle is
    /// never freed: tests end with their process.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn private(brokers: &str) -> &'static Self {
        Self::kept(brokers, Vec::new()).await
    }

    async fn kept(brokers: &str, lines: Vec<Line>) -> &'static Self {
        let lines = Lines::of(lines);
        let kafka = Kafka { brokers: brokers.to_owned(), external: false, from_jars: true, lines };
        kafka.wait_ready(START).await.expect("the broker answers");
        Box::leak(Box::new(kafka))
    }

    /// A broker for one test, which may end it and start it again; with further properties.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_private(properties: &[(&str, &str)]) -> (&'static Self, LocalKafka) {
        let brokers = format!("127.0.0.1:{}", host::free_port());
        let lines = lines::local(1);
        let mut all = settings(&brokers, &brokers, &Own::free(), &lines);
        all.extend(properties.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())));
        let local = tokio::task::spawn_blocking(move || LocalKafka::start(&all, &[]));
        let local = local.await.expect("no panic").expect("a broker");
        (Self::kept(&brokers, lines).await, local)
    }

    /// Three brokers for one test, each with all the others' records; one may be away. Their ids are 1 to 3, in
    /// this order.
    ///
    /// # Panics
    /// When they don't start.
    pub async fn start_cluster() -> (&'static Self, Vec<LocalKafka>) {
        let address = || format!("127.0.0.1:{}", host::free_port());
        let nodes: Vec<_> = (1..=3).map(|id| (id, address(), Own::free())).collect();
        let voter = |(id, _, own): &(i32, String, Own)| format!("{id}@{}", own.controller);
        let voters: Vec<_> = nodes.iter().map(voter).collect();
        let mut starting = Vec::new();
        for (id, broker, own) in &nodes {
            let mut all = settings(broker, broker, own, &[]);
            let further = [
                ("node.id", id.to_string()),
                ("controller.quorum.voters", voters.join(",")),
                ("default.replication.factor", "3".to_owned()),
                ("min.insync.replicas", "2".to_owned()),
                ("offsets.topic.replication.factor", "3".to_owned()),
                ("transaction.state.log.replication.factor", "3".to_owned()),
                ("transaction.state.log.min.isr", "2".to_owned()),
                // One that is killed is given up soon.
                ("broker.session.timeout.ms", "3000".to_owned()),
                ("broker.heartbeat.interval.ms", "500".to_owned()),
            ];
            all.extend(further.map(|(key, value)| (key.to_owned(), value)));
            starting.push(tokio::task::spawn_blocking(move || LocalKafka::start(&all, &[])));
        }
        let mut started = Vec::new();
        for broker in starting {
            started.push(broker.await.expect("no panic").expect("a broker"));
        }
        let brokers: Vec<_> = nodes.into_iter().map(|(_, broker, _)| broker).collect();
        let kafka = Self::private(&brokers.join(",")).await;
        wait::until("all brokers are there", START, || kafka.lists(brokers.len()))
            .await
            .expect("they join");
        (kafka, started)
    }

    /// Waits until every partition has a leader and all its replicas are up to date.
    ///
    /// # Panics
    /// When they do not become so.
    pub async fn wait_in_sync(&self) {
        let client = self.client();
        let waited = ask("all replicas are in sync", move || {
            let consumer: BaseConsumer = client.create()?;
            let metadata = consumer.fetch_metadata(None, ASK)?;
            let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
            let mut behind =
                partitions.filter(|p| p.leader() < 0 || p.isr().len() < p.replicas().len());
            match behind.next() {
                None => Ok(()),
                Some(partition) => bail!("partition {} is behind", partition.id()),
            }
        });
        waited.await.expect("they catch up");
    }

    async fn lists(&self, brokers: usize) -> Result<()> {
        let client = self.client();
        let ask = move || {
            let consumer: BaseConsumer = client.create()?;
            anyhow::Ok(consumer.fetch_metadata(None, ASK)?.brokers().len())
        };
        match tokio::task::spawn_blocking(ask).await?? {
            found if found == brokers => Ok(()),
            found => bail!("{found} brokers"),
        }
    }

    async fn wait_ready(&self, deadline: Duration) -> Result<()> {
        let consumer: BaseConsumer = self.client().create()?;
        let end = Instant::now() + deadline;
        // One broker, and it is its own controller: when it lists itself, it takes topics.
        tokio::task::spawn_blocking(move || {
            loop {
                match consumer.fetch_metadata(None, ASK) {
                    Ok(metadata) if !metadata.brokers().is_empty() => return Ok(()),
                    outcome if Instant::now() >= end => {
                        outcome.context("Kafka did not answer")?;
                        bail!("Kafka lists no broker")
                    }
                    _ => {}
                }
            }
        })
        .await?
    }

    /// Where it listens, as `bootstrap.servers`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// A line to the broker that can be broken: a proxy whose address is to be the relay's
    /// `bootstrap.servers`. The broker leads its clients back to it.
    ///
    /// # Panics
    /// When the broker is not ours, or more tests break lines than there are.
    pub async fn line(&self) -> Proxy {
        let (port, listens, lent) = self.lines.lend();
        Proxy::on(port, &listens, lent).await.expect("the port that was set aside")
    }

    /// An address that answers, and leads its clients to one at which no one listens.
    ///
    /// # Panics
    /// As [`Kafka::line`].
    pub fn leads_astray(&self) -> String {
        self.lines.take().listens
    }

    /// A client's settings, to be completed.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("reconnect.backoff.ms", "10")
            .set("reconnect.backoff.max.ms", "50")
            .set("allow.auto.create.topics", "false");
        config
    }

    /// A client that asks for changes.
    pub(crate) fn admin(&self) -> Result<Admin> {
        Ok(Admin(Some(self.client().create()?)))
    }

    /// Names of all topics.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn topics(&self) -> Vec<String> {
        let client = self.client();
        let ask = move || {
            let consumer: BaseConsumer = client.create()?;
            let metadata = consumer.fetch_metadata(None, START)?;
            anyhow::Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
        };
        let topics = tokio::task::spawn_blocking(ask).await.expect("no panic");
        topics.expect("the broker lists its topics")
    }

    /// Whether it runs from Apache's jars, with [`local_kafka::jvm_options`].
    pub fn is_from_jars(&self) -> bool {
        self.from_jars
    }

    pub(crate) fn is_external(&self) -> bool {
        self.external
    }
}

/// An admin client that no one waits for when it is dropped: its thread takes up to 100 ms to end.
pub(crate) struct Admin(Option<AdminClient<DefaultClientContext>>);

impl Deref for Admin {
    type Target = AdminClient<DefaultClientContext>;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let client = self.0.take();
        let _detached = std::thread::spawn(move || drop(client));
    }
}

/// Where the node listens for itself. What clients are told is an address outside a container,
/// where the node can't reach it; and it does talk to itself, to end a transaction for one.
struct Own {
    controller: String,
    broker: String,
}

impl Own {
    fn free() -> Self {
        let free = || format!("127.0.0.1:{}", host::free_port());
        Own { controller: free(), broker: free() }
    }
}

/// A broker and controller in one, small and quick: the same in a container and without.
fn settings(listen: &str, advertised: &str, own: &Own, lines: &[Line]) -> BTreeMap<String, String> {
    let Own { controller, broker } = own;
    let mut listeners =
        format!("PLAINTEXT://{listen},INTERNAL://{broker},CONTROLLER://{controller}");
    let mut advertised = format!("PLAINTEXT://{advertised},INTERNAL://{broker}");
    let mut protocols = "PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
    let mut settings = local_kafka::small();
    for (n, Line { listens, proxy_port }) in lines.iter().enumerate() {
        listeners += &format!(",LINE{n}://{listens}");
        advertised += &format!(",LINE{n}://127.0.0.1:{proxy_port}");
        protocols += &format!(",LINE{n}:PLAINTEXT");
        settings.insert(format!("listener.name.line{n}.num.network.threads"), "1".to_owned());
    }
    let listening = [
        ("listeners", listeners),
        ("advertised.listeners", advertised),
        ("listener.security.protocol.map", protocols),
        ("controller.quorum.voters", format!("1@{controller}")),
        ("inter.broker.listener.name", "INTERNAL".to_owned()),
    ];
    settings.extend(listening.map(|(key, value)| (key.to_owned(), value)));
    settings
}

/// Waits until `what` is what the broker says, asking on a blocking thread.
pub(crate) async fn ask<T, F>(what: &str, question: F) -> Result<T>
where
    T: Send + 'static,
    F: Fn() -> Result<T> + Clone + Send + 'static,
{
    wait::until(what, wait::PATIENCE, || {
        let question = question.clone();
        async move { tokio::task::spawn_blocking(question).await? }
    })
    .await
}
