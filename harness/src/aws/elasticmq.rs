//! ElasticMQ: SQS's queues, FIFO and standard, in memory; from its published jars, fetched once with Maven.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command},
};

use anyhow::{Context, Result, bail};
use outbox_relay::throwaway::guardian;

use super::{http, queue::Queue};
use crate::{host, process, wait};

const VERSION: &str = "1.7.1";
const MAIN: &str = "org.elasticmq.server.Main";

/// A server; ended by KILL when dropped, with all it had.
#[derive(Debug)]
pub struct ElasticMq {
    port: u16,
    dir: PathBuf,
    server: Child,
}

impl ElasticMq {
    /// Starts one on a port of its own, which answers some seconds later.
    ///
    /// # Errors
    /// What to install.
    pub fn start() -> Result<Self> {
        let libraries = libraries()?;
        let dir = tempfile::Builder::new().prefix("outbox-elasticmq-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        let port = host::free_port();
        let settings = format!(
            "include classpath(\"application.conf\")\n\
             node-address {{ protocol = http, host = \"127.0.0.1\", port = {port}, context-path = \"\" }}\n\
             rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = \"127.0.0.1\", sqs-limits = strict }}\n\
             rest-stats {{ enabled = false }}\nqueues {{}}\n"
        );
        std::fs::write(dir.join("elasticmq.conf"), settings)?;
        let mut command = Command::new("java");
        command
            .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .arg(format!("-Dconfig.file={}", dir.join("elasticmq.conf").display()))
            .arg("-cp")
            .arg(libraries.join("*"))
            .arg(MAIN)
            .current_dir(&dir);
        let server =
            process::server(&mut command, &dir.join("log")).context("java did not start")?;
        Ok(ElasticMq { port, dir, server })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn wait_ready(&self) {
        let address = self.address();
        let empty = serde_json::json!({});
        let answers = wait::until("ElasticMQ answers", wait::PATIENCE, || {
            http::sqs(&address, "ListQueues", &empty)
        });
        if let Err(error) = answers.await {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            panic!("{error:#}; it said: {log}");
        }
    }

    /// Makes a queue; one whose name ends with `.fifo` is a FIFO queue.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn queue(&self, name: &str, partitions: i32) -> Queue {
        let queue = Queue::new(self.address(), name, partitions);
        queue.make().await;
        queue
    }
}

impl Drop for ElasticMq {
    fn drop(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.server.kill();
        let _status = self.server.wait();
        guardian::forget(self.server.id());
    }
}

/// Its jars, from `target/harness`; the first process to come fetches them.
fn libraries() -> Result<PathBuf> {
    let cache = host::cache_dir()?;
    let libraries = cache.join(format!("elasticmq-{VERSION}"));
    let lock = File::create(cache.join("elasticmq.lock"))?;
    lock.lock().context("waiting for another process that fetches ElasticMQ's jars")?;
    if libraries.is_dir() {
        return Ok(libraries);
    }
    host::report(&format!("fetching ElasticMQ {VERSION} with Maven (37 MB, once)"));
    // Into another directory first: an interrupted fetch must not look like a whole one.
    let partial = cache.join("elasticmq.partial");
    host::removed(&partial)?;
    let maven = Command::new("mvn")
        .args(["--quiet", "--batch-mode", "--file"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/aws/pom.xml"))
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-Delasticmq.version={VERSION}"))
        .arg(format!("-DoutputDirectory={}", partial.display()))
        .output()
        .context("mvn did not start")?;
    if !maven.status.success() {
        bail!("mvn could not fetch ElasticMQ: {}", String::from_utf8_lossy(&maven.stdout));
    }
    std::fs::rename(&partial, &libraries)?;
    Ok(libraries)
}
