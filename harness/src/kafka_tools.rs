//! Kafka's own command-line tools, run as messages of the relay print them.
//!
//! From the jars of `local_kafka`, so that it takes a JDK and Maven also where the broker runs in Docker.

use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::local_kafka;

/// Tools that messages name, and those that move partitions, with the classes behind the scripts in Kafka's `bin`.
const CLASSES: [(&str, &str); 5] = [
    ("kafka-configs", "kafka.admin.ConfigCommand"),
    ("kafka-leader-election", "org.apache.kafka.tools.LeaderElectionCommand"),
    ("kafka-reassign-partitions", "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"),
    ("kafka-topics", "org.apache.kafka.tools.TopicCommand"),
    ("kafka-transactions", "org.apache.kafka.tools.TransactionsCommand"),
];

/// Runs a command such as `kafka-configs --bootstrap-server HOST:PORT …`, and returns what it says.
///
/// # Panics
/// When it is no tool of Kafka's, or fails.
pub async fn run(command: &str) -> String {
    let owned = command.to_owned();
    let run = tokio::task::spawn_blocking(move || run_blocking(&owned)).await.expect("no panic");
    run.unwrap_or_else(|error| panic!("`{command}`: {error:#}"))
}

/// The first command in backquotes of a message that begins so.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn printed<'a>(message: &'a str, beginning: &str) -> &'a str {
    let quoted = message.split('`').skip(1).step_by(2);
    let mut beginning_so = quoted.filter(|command| command.starts_with(beginning));
    beginning_so.next().unwrap_or_else(|| panic!("no `{beginning}` in {message}"))
}

fn run_blocking(command: &str) -> Result<String> {
    let mut words = command.split_whitespace();
    let tool = words.next().context("a command")?;
    let class = CLASSES.iter().find(|(name, _)| *name == tool).context("no tool of Kafka's")?.1;
    let libraries = local_kafka::libraries()?;
    let mut java = local_kafka::java(&libraries, class);
    let output = java.args(words).stdin(Stdio::null()).output().context("java did not start")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if !output.status.success() {
        bail!("{}: {said}", output.status);
    }
    Ok(said)
}
