//! A Pulsar broker from its published jars, fetched once with Maven, in a directory of its own. It can be ended and started
//! again, with all it had stored.

mod topic;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use outbox_relay::throwaway::guardian;

pub use self::topic::PulsarTopic;
use crate::{host, process, wait};

const VERSION: &str = "4.0.7";
const MAIN: &str = "org.apache.pulsar.PulsarStandaloneStarter";
/// What Pulsar's own scripts open to it.
const OPENED: [&str; 9] = [
    "java.base/jdk.internal.loader",
    "java.base/java.lang",
    "java.base/java.io",
    "java.base/java.util.zip",
    "java.base/sun.net",
    "java.management/sun.management",
    "jdk.management/com.sun.management.internal",
    "java.base/jdk.internal.platform",
    "java.base/java.nio",
];

/// Lines of `standalone.conf` with which everyone needs a token. Those of [`ADMIN`] and [`RELAY`] are known.
pub const TOKENS: &str = "authenticationEnabled=true\nauthorizationEnabled=true\n\
    authenticationProviders=org.apache.pulsar.broker.authentication.AuthenticationProviderToken\n\
    tokenSecretKey=data:;base64,b3V0Ym94LXJlbGF5LXRlc3RzLW91dGJveC1yZWxheS10ZXN0cy0wMQ==\n\
    superUserRoles=admin\n\
    brokerClientAuthenticationPlugin=org.apache.pulsar.client.impl.auth.AuthenticationToken\n\
    brokerClientAuthenticationParameters=token:eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c0qbPJxvfI7G-Gken90DyyFR6DvljA1lLfDNqJioP6Y\n";
/// A line of `standalone.conf` with which a topic that is full is noticed soon.
pub const QUOTAS: &str = "backlogQuotaCheckIntervalInSeconds=1\n";
/// May do everything there.
pub const ADMIN: &str =
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c0qbPJxvfI7G-Gken90DyyFR6DvljA1lLfDNqJioP6Y";
/// The token of the role `relay`, which has no rights by itself.
pub const RELAY: &str =
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJyZWxheSJ9.xIxSYU4PO0L3593iDjBCjD46qa9KAIf8NX_TakV3PMM";

/// A broker, running or not; ended by KILL when dropped.
#[derive(Debug)]
pub struct Pulsar {
    libraries: PathBuf,
    dir: PathBuf,
    port: u16,
    admin: u16,
    broker: Child,
}

impl Pulsar {
    /// Starts one on ports of its own. It answers some ten seconds later.
    ///
    /// # Errors
    /// What to install.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// The same, with further lines of `standalone.conf`.
    ///
    /// # Errors
    /// As [`Pulsar::start`].
    pub fn start_with(further: &str) -> Result<Self> {
        let libraries = libraries()?;
        let dir = tempfile::Builder::new().prefix("outbox-pulsar-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        let (port, admin) = (host::free_port(), host::free_port());
        // A process that is killed loses nothing that it has given to the system, so no disk is waited for.
        let settings = format!(
            "clusterName=standalone\nadvertisedAddress=127.0.0.1\nbindAddress=127.0.0.1\nlisteningInterface=lo\n\
             allowLoopback=true\nbrokerServicePort={port}\nwebServicePort={admin}\nallowAutoTopicCreation=false\n\
             managedLedgerDefaultEnsembleSize=1\nmanagedLedgerDefaultWriteQuorum=1\nmanagedLedgerDefaultAckQuorum=1\n\
             loadBalancerEnabled=false\nfunctionsWorkerEnabled=false\njournalSyncData=false\n\
             numHttpServerThreads=4\nnumIOThreads=2\n{further}"
        );
        std::fs::write(dir.join("standalone.conf"), settings)?;
        let broker = spawn(&libraries, &dir)?;
        Ok(Pulsar { libraries, dir, port, admin, broker })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `pulsar://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("pulsar://{}", self.address())
    }

    /// Ends it as a crash does.
    ///
    /// # Panics
    /// When it had ended before.
    pub fn kill9(&mut self) {
        assert!(self.broker.try_wait().expect("a status").is_none(), "it was running until now");
        self.end();
    }

    /// Starts it again, with all it had stored.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.broker = spawn(&self.libraries, &self.dir).expect("the broker starts");
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn wait_ready(&self) {
        let answers = wait::until("Pulsar answers", wait::PATIENCE, || async {
            self.admin("GET", "persistent/public/default", "").map(drop)
        });
        if let Err(error) = answers.await {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let end: Vec<&str> = log.lines().rev().take(30).collect();
            panic!("{error:#}; the broker said: {end:#?}");
        }
    }

    /// A topic with so many partitions, in the namespace `public/default`.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn topic(&self, name: &str, partitions: i32) -> PulsarTopic {
        let place = format!("persistent/public/default/{name}/partitions");
        let made = wait::until("the topic is made", wait::PATIENCE, || async {
            match self.admin("PUT", &place, &partitions.to_string()) {
                // A broker that has answered too late has made it.
                Err(error) if error.to_string().contains("409") => Ok(()),
                made => made.map(drop),
            }
        });
        made.await.expect("the broker takes it");
        PulsarTopic::new(self.address(), name, partitions)
    }

    /// Has a topic take messages of so many bytes.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn limit(&self, topic: &str, bytes: usize) {
        let place = format!("persistent/public/default/{topic}/maxMessageSize");
        let limited = wait::until("the topic is limited", wait::PATIENCE, || async {
            self.admin("POST", &place, &bytes.to_string()).map(drop)?;
            match self.admin("GET", &place, "")? {
                said if said.trim() == bytes.to_string() => Ok(()),
                said => bail!("it is {said:?}"),
            }
        });
        limited.await.expect("the broker takes it");
    }

    /// Gives a role the right to produce in the namespace `public/default`.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn let_produce(&self, role: &str) {
        let place = format!("namespaces/public/default/permissions/{role}");
        self.admin("POST", &place, "[\"produce\"]").expect("the broker takes it");
    }

    /// Gives a role the right to produce to one topic, or takes it away. Whoever produces there must ask again.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn may_produce(&self, role: &str, topic: &str, may: bool) {
        let topic = format!("persistent/public/default/{topic}");
        let place = format!("{topic}/permissions/{role}");
        let changed = match may {
            true => self.admin("POST", &place, "[\"produce\"]"),
            false => self.admin("DELETE", &place, ""),
        };
        changed.expect("the broker takes it");
        self.admin("PUT", &format!("{topic}/unload"), "").expect("the broker unloads it");
    }

    /// Has a topic take nothing more once a subscription, which no one reads, is behind by so many bytes. The broker must
    /// look for that every second ([`QUOTAS`]).
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn fills_up(&self, topic: &str, bytes: usize) {
        let place = format!("persistent/public/default/{topic}");
        let quota = format!("{{\"limitSize\":{bytes},\"policy\":\"producer_exception\"}}");
        let kind = "backlogQuotaType=destination_storage";
        self.admin("PUT", &format!("{place}/subscription/slow"), "{}").expect("a subscription");
        let limited = wait::until("the topic is limited", wait::PATIENCE, || async {
            self.admin("POST", &format!("{place}/backlogQuota?{kind}"), &quota).map(drop)?;
            match self.admin("GET", &format!("{place}/backlogQuotaMap"), "")? {
                said if said.contains(&bytes.to_string()) => Ok(()),
                said => bail!("it is {said:?}"),
            }
        });
        limited.await.expect("the broker takes it");
    }

    /// The subscription of [`Pulsar::fills_up`] has read all.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn is_read(&self, topic: &str, partitions: i32) {
        for partition in 0..partitions {
            let place = format!("persistent/public/default/{topic}-partition-{partition}");
            let skip = format!("{place}/subscription/slow/skip_all");
            self.admin("POST", &skip, "").expect("the broker skips it");
        }
    }

    /// What the admin interface says.
    fn admin(&self, method: &str, place: &str, body: &str) -> Result<String> {
        const ASK: Duration = Duration::from_secs(20);
        let mut line = TcpStream::connect(("127.0.0.1", self.admin))?;
        line.set_read_timeout(Some(ASK))?;
        let head = format!(
            "{method} /admin/v2/{place} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
             authorization: Bearer {ADMIN}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        line.write_all(head.as_bytes())?;
        line.write_all(body.as_bytes())?;
        let mut said = String::new();
        line.read_to_string(&mut said)?;
        let (head, body) = said.split_once("\r\n\r\n").context("no answer")?;
        let first = head.lines().next().unwrap_or_default();
        if !first.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
            bail!("{method} {place}: {first}: {body}");
        }
        Ok(body.to_owned())
    }

    fn end(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.broker.kill();
        let _status = self.broker.wait();
        guardian::forget(self.broker.id());
    }
}

impl Drop for Pulsar {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(libraries: &Path, dir: &Path) -> Result<Child> {
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-XX:MaxDirectMemorySize=256m", "-XX:TieredStopAtLevel=1"]);
    command.args(["-XX:+UseSerialGC", "-Dio.netty.tryReflectionSetAccessible=true"]);
    for opened in OPENED {
        command.args(["--add-opens", &format!("{opened}=ALL-UNNAMED")]);
    }
    command
        .arg("-cp")
        .arg(libraries.join("*"))
        .args([MAIN, "-c", "standalone.conf", "-nfw", "-nss"])
        .args(["--metadata-dir", "data/metadata", "--bookkeeper-dir", "data/bookkeeper"])
        .args(["--advertised-address", "127.0.0.1"])
        .current_dir(dir);
    process::server(&mut command, &dir.join("log")).context("java did not start")
}

/// Pulsar's jars, for `java -cp`, from `target/harness`; the first process to come fetches them.
fn libraries() -> Result<PathBuf> {
    let cache = host::cache_dir()?;
    let libraries = cache.join(format!("pulsar-{VERSION}"));
    let lock = File::create(cache.join("pulsar-libs.lock"))?;
    lock.lock().context("waiting for another process that fetches Pulsar's jars")?;
    if libraries.is_dir() {
        return Ok(libraries);
    }
    host::report(&format!("fetching Apache Pulsar {VERSION} with Maven (235 MB, once)"));
    // Into another directory first: an interrupted fetch must not look like a whole one.
    let partial = cache.join("pulsar-libs.partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    let maven = Command::new("mvn")
        .args(["--quiet", "--batch-mode", "--file"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/pulsar/pom.xml"))
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-Dpulsar.version={VERSION}"))
        .arg(format!("-DoutputDirectory={}", partial.display()))
        .output()
        .context("mvn did not start")?;
    if !maven.status.success() {
        bail!("mvn could not fetch Pulsar: {}", String::from_utf8_lossy(&maven.stdout));
    }
    std::fs::rename(&partial, &libraries)?;
    Ok(libraries)
}
