//! A broker from Apache Kafka's published jars, fetched once with Maven and run by a JDK 17, in a
//! directory of its own. It can be ended and started again, with all it had stored.
//!
//! Knows processes and properties; waits for no answer: `kafka` does, and tests that need a broker
//! to themselves.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context, Result, bail};
use outbox_relay::throwaway::guardian;

use crate::{host, process};

/// The version of the jars.
pub const VERSION: &str = "4.1.0";
/// Id of every cluster that is formatted here.
const CLUSTER_ID: &str = "b3V0Ym94LXRlc3RzLTAwMQ";

/// A broker, running or not; ended by KILL when dropped.
#[derive(Debug)]
pub struct LocalKafka {
    libraries: PathBuf,
    dir: PathBuf,
    server: Child,
}

impl LocalKafka {
    /// Formats a directory and starts a broker on it. `format` are further arguments for the
    /// formatting, such as `--add-scram` and its value. Blocks for a second or two.
    ///
    /// # Errors
    /// No jars, no Java, or what the formatting said.
    pub fn start(properties: &BTreeMap<String, String>, format: &[&str]) -> Result<Self> {
        let libraries = libraries()?;
        let dir = tempfile::Builder::new().prefix("outbox-kafka-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        let mut text = String::new();
        for (key, value) in properties {
            writeln!(text, "{key}={value}")?;
        }
        writeln!(text, "log.dirs={}", dir.join("data").display())?;
        std::fs::write(properties_file(&dir), text)?;
        let formatted = java(&libraries, "kafka.tools.StorageTool")
            .args(["format", "-t", CLUSTER_ID, "-c"])
            .arg(properties_file(&dir))
            .args(format)
            .current_dir(&dir)
            .output()
            .context("java did not start")?;
        if !formatted.status.success() {
            bail!("formatting Kafka's storage: {}", String::from_utf8_lossy(&formatted.stderr));
        }
        let server = spawn(&libraries, &dir)?;
        Ok(LocalKafka { libraries, dir, server })
    }

    /// Ends it as a crash does.
    ///
    /// # Panics
    /// When it had ended before.
    pub fn kill9(&mut self) {
        assert!(self.server.try_wait().expect("a status").is_none(), "it was running until now");
        self.end();
    }

    /// Lets it write no file beyond `bytes`, as on a disk that is full. Its next life may again.
    ///
    /// # Panics
    /// When it has ended.
    pub fn limit_files(&self, bytes: u64) {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        let pid = libc::pid_t::try_from(self.pid()).expect("a process id");
        // SAFETY: prlimit reads one limit and writes none; the child was not waited for.
        let set = unsafe {
            libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut())
        };
        assert_eq!(set, 0, "the broker was running");
    }

    /// Whether it has ended by itself.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn has_ended(&mut self) -> bool {
        self.server.try_wait().expect("a status").is_some()
    }

    /// Starts it again, with all it had stored.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.server = spawn(&self.libraries, &self.dir).expect("the broker starts");
    }

    /// Its process id, for signals.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Its log, of all its lives.
    pub fn log(&self) -> PathBuf {
        log_file(&self.dir)
    }

    fn end(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.server.kill();
        let _status = self.server.wait();
        guardian::forget(self.server.id());
    }
}

impl Drop for LocalKafka {
    fn drop(&mut self) {
        self.end();
    }
}

/// The broker's own properties, all but its listeners.
pub fn small() -> BTreeMap<String, String> {
    [
        ("node.id", "1"),
        ("process.roles", "broker,controller"),
        ("controller.listener.names", "CONTROLLER"),
        ("inter.broker.listener.name", "PLAINTEXT"),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "3"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "5"),
        ("group.initial.rebalance.delay.ms", "0"),
        // Tests kill members, and wait until the others have their partitions.
        ("group.min.session.timeout.ms", "500"),
        ("group.consumer.min.session.timeout.ms", "500"),
        ("group.consumer.session.timeout.ms", "3000"),
        ("group.consumer.min.heartbeat.interval.ms", "100"),
        ("group.consumer.heartbeat.interval.ms", "500"),
        ("auto.create.topics.enable", "true"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn spawn(libraries: &Path, dir: &Path) -> Result<Child> {
    let mut command = java(libraries, "kafka.Kafka");
    command.arg(properties_file(dir)).current_dir(dir);
    process::server(&mut command, &log_file(dir)).context("java did not start")
}

fn properties_file(dir: &Path) -> PathBuf {
    dir.join("server.properties")
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Kafka's jars, for `java -cp`, from `target/harness`; the first process to come fetches them.
pub(crate) fn libraries() -> Result<PathBuf> {
    let cache = host::cache_dir()?;
    let libraries = cache.join(format!("kafka-{VERSION}-with-tools"));
    let lock = File::create(cache.join("kafka-libs.lock"))?;
    lock.lock().context("waiting for another process that fetches Kafka's jars")?;
    if libraries.is_dir() {
        return Ok(libraries);
    }
    host::report(&format!("fetching Apache Kafka {VERSION} with Maven (70 MB, once)"));
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

/// The JVM's options for a broker: `OUTBOX_TEST_KAFKA_JVM`, else small and quick to start.
pub fn jvm_options() -> String {
    std::env::var("OUTBOX_TEST_KAFKA_JVM")
        .unwrap_or_else(|_| "-Xmx512m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC".to_owned())
}

pub(crate) fn java(libraries: &Path, main: &str) -> Command {
    let mut command = Command::new("java");
    command
        .args(jvm_options().split_whitespace())
        .arg("-Dorg.slf4j.simpleLogger.showDateTime=true")
        .arg("-cp")
        .arg(libraries.join("*"))
        .arg(main);
    command
}
