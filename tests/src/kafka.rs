//! One Kafka for a run: `OUTBOX_TEST_KAFKA` (brokers), else Docker (`OUTBOX_TEST_KAFKA_IMAGE`),
//! else Apache Kafka's published jars, fetched once with Maven and run by a JDK 17.
//!
//! The broker creates topics by itself, on purpose: only then does a test that finds none prove
//! that the relay asked before it produced. Topics and consumers of a test are `topic`'s.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use outbox_relay::throwaway::{self, guardian};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use testcontainers::{GenericImage, ImageExt, core::IntoContainerPort};

use crate::{docker, proxy::Proxy, servers, wait};

const VERSION: &str = "4.1.0";
/// How long a broker may take from start to its first answer.
const START: Duration = Duration::from_secs(90);
/// How long one question for metadata may take; well above a broker's first answer.
const ASK: Duration = Duration::from_secs(2);

/// A running broker.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    /// Whether it was there before the run: then no topic of ours may stay in it.
    external: bool,
    lines: Mutex<Vec<Line>>,
}

/// A listener of its own for one test's proxy, whose port the broker tells its clients.
#[derive(Debug)]
struct Line {
    listens: String,
    proxy_port: u16,
}

/// Tests that break the line to the broker, and room for more.
const LINES: usize = 16;

impl Kafka {
    pub(crate) async fn start() -> Result<Self> {
        if let Ok(brokers) = std::env::var("OUTBOX_TEST_KAFKA") {
            let kafka = Kafka { brokers, external: true, lines: Mutex::default() };
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
        servers::report(&format!("{no_docker:#}: using Apache Kafka {VERSION} from Maven"));
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
        let port = servers::free_port();
        let mut request = GenericImage::new(name, tag)
            .with_mapped_port(port, 9092.tcp())
            .with_startup_timeout(START);
        let (mut inside, mut lines) = (Vec::new(), Vec::new());
        for inside_port in (9100..).take(LINES) {
            let (outside, proxy_port) = (servers::free_port(), servers::free_port());
            request = request.with_mapped_port(outside, inside_port.tcp());
            inside.push(Line { listens: format!("0.0.0.0:{inside_port}"), proxy_port });
            lines.push(Line { listens: format!("127.0.0.1:{outside}"), proxy_port });
        }
        let advertised = format!("127.0.0.1:{port}");
        let settings = settings("0.0.0.0:9092", &advertised, "127.0.0.1:9093", &inside);
        let request = settings.into_iter().fold(request, |request, (key, value)| {
            let variable = format!("KAFKA_{}", key.to_uppercase().replace('.', "_"));
            request.with_env_var(variable, value)
        });
        let container = docker::start(request).await?;
        let lines = Mutex::new(lines);
        let kafka = Kafka { brokers: advertised, external: false, lines };
        kafka.wait_ready(START).await?;
        // Dropping the handle would stop the container; the guardian does that at the end.
        std::mem::forget(container);
        Ok(kafka)
    }

    async fn start_local() -> Result<Self> {
        let libraries = libraries()?;
        let dir = tempfile::Builder::new().prefix("outbox-kafka-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        let brokers = format!("127.0.0.1:{}", servers::free_port());
        let controller = format!("127.0.0.1:{}", servers::free_port());
        let lines: Vec<Line> = (0..LINES)
            .map(|_| Line {
                listens: format!("127.0.0.1:{}", servers::free_port()),
                proxy_port: servers::free_port(),
            })
            .collect();
        let mut properties = String::new();
        for (key, value) in settings(&brokers, &brokers, &controller, &lines) {
            writeln!(properties, "{key}={value}")?;
        }
        writeln!(properties, "log.dirs={}", dir.join("data").display())?;
        let file = dir.join("server.properties");
        std::fs::write(&file, properties)?;

        let formatted = java(&libraries, "kafka.tools.StorageTool")
            .args(["format", "-t", "b3V0Ym94LXRlc3RzLTAwMQ", "-c"])
            .arg(&file)
            .current_dir(&dir)
            .output()
            .context("java did not start")?;
        if !formatted.status.success() {
            bail!("formatting Kafka's storage: {}", String::from_utf8_lossy(&formatted.stderr));
        }
        let mut server = java(&libraries, "kafka.Kafka");
        server.arg(&file);
        let log = dir.join("log");
        guardian::kill_at_exit(throwaway::spawn_logged(server, &dir, &log)?)?;
        let kafka = Kafka { brokers, external: false, lines: Mutex::new(lines) };
        kafka
            .wait_ready(START)
            .await
            .with_context(|| format!("Kafka's log:\n{}", throwaway::tail(&log)))?;
        Ok(kafka)
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
        let line = self.lines.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let line = line.expect(
            "a listener for a proxy: unset OUTBOX_TEST_KAFKA, for the broker must be started with \
             them; if it was, raise kafka::LINES",
        );
        Proxy::on(line.proxy_port, &line.listens).await.expect("the port that was set aside")
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

    pub(crate) fn is_external(&self) -> bool {
        self.external
    }
}

/// A broker and controller in one, small and quick: the same in a container and without.
fn settings(
    listen: &str,
    advertised: &str,
    controller: &str,
    lines: &[Line],
) -> BTreeMap<String, String> {
    let mut listeners = format!("PLAINTEXT://{listen},CONTROLLER://{controller}");
    let mut advertised = format!("PLAINTEXT://{advertised}");
    let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
    let mut settings = BTreeMap::new();
    for (n, Line { listens, proxy_port }) in lines.iter().enumerate() {
        listeners += &format!(",LINE{n}://{listens}");
        advertised += &format!(",LINE{n}://127.0.0.1:{proxy_port}");
        protocols += &format!(",LINE{n}:PLAINTEXT");
        settings.insert(format!("listener.name.line{n}.num.network.threads"), "1".to_owned());
    }
    let fixed = [
        ("node.id", "1"),
        ("process.roles", "broker,controller"),
        ("listeners", &listeners),
        ("advertised.listeners", &advertised),
        ("controller.listener.names", "CONTROLLER"),
        ("inter.broker.listener.name", "PLAINTEXT"),
        ("listener.security.protocol.map", &protocols),
        ("controller.quorum.voters", &format!("1@{controller}")),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "3"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "5"),
        ("group.initial.rebalance.delay.ms", "0"),
        ("auto.create.topics.enable", "true"),
    ];
    settings.extend(fixed.map(|(key, value)| (key.to_owned(), value.to_owned())));
    settings
}

/// Kafka's jars, for `java -cp`, from `target/harness`; the first process to come fetches them.
fn libraries() -> Result<PathBuf> {
    let cache = servers::cache_dir()?;
    let libraries = cache.join(format!("kafka-libs-{VERSION}"));
    let lock = File::create(cache.join("kafka-libs.lock"))?;
    lock.lock().context("waiting for another process that fetches Kafka's jars")?;
    if libraries.is_dir() {
        return Ok(libraries);
    }
    servers::report(&format!("fetching Apache Kafka {VERSION} with Maven (43 MB, once)"));
    // Into another directory first: an interrupted fetch must not look like a whole one.
    let partial = cache.join("kafka-libs.partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    let maven = Command::new("mvn")
        .args(["--quiet", "--batch-mode", "--file"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/kafka/pom.xml"))
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-Dkafka.version={VERSION}"))
        .arg(format!("-DoutputDirectory={}", partial.display()))
        .output()
        .context("mvn did not start")?;
    if !maven.status.success() {
        bail!("mvn could not fetch Kafka: {}", String::from_utf8_lossy(&maven.stdout));
    }
    std::fs::rename(&partial, &libraries)?;
    Ok(libraries)
}

fn java(libraries: &Path, main: &str) -> Command {
    let mut command = Command::new("java");
    command
        .args(["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        .arg("-Dorg.slf4j.simpleLogger.showDateTime=true")
        .arg("-cp")
        .arg(libraries.join("*"))
        .arg(main);
    command
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
