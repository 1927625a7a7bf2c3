//! `outbox-relay check`: a doctor that looks at every precondition and says what corrects it.
//!
//! It changes nothing and disturbs no relay that runs. Each finding stands for itself; what can't
//! be looked at because something before it failed is left out. Ends within 15 s.

mod capacity;
mod database;
mod events;
mod identity;
mod migrations;
mod neighbours;
mod rights;
mod settings;
mod start;

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::timeout;

use crate::{
    config::{Config, parts::Parts},
    core::printable,
    sink::{
        SinkError,
        any::Settings,
        kafka::{self, ProgressTopic},
        nats,
    },
};

/// Bound of each of the two halves, so that the whole ends within 15 s.
const HALF_MAX: Duration = Duration::from_secs(7);

/// How a finding is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and something is worth knowing.
    Warning,
    /// The relay would not work.
    Problem,
}

/// One precondition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What fixes it; empty when nothing is to be corrected.
    pub remedy: String,
}

/// Looks at everything. Problems come as findings, never as errors.
pub(crate) async fn run(config: &Config, parts: &Parts) -> Vec<Finding> {
    let ((mut findings, session), (sink, has_progress_topic)) = tokio::join!(
        half("PostgreSQL", database::looked_at(config, parts)),
        half(name_of(&parts.sink), sink(parts))
    );
    findings.extend(sink);
    if let (Some((session, (expected, looked))), Some(has_topic)) = (session, has_progress_topic) {
        let session = Arc::new(session);
        let rehearsal = async {
            let rehearsed = start::rehearsed(config, parts, &session, has_topic, &findings);
            let found = Box::pin(rehearsed).await;
            (found.into_iter().collect(), None::<()>)
        };
        let foreseen = events::foreseen(parts, expected, looked);
        let ((found, _), (topics, _)) =
            tokio::join!(half("start", rehearsal), half("topics", foreseen));
        // What is corrected by the same words has the same cause, and the start's words have more: what it
        // means for what was published before.
        for start in &found {
            findings
                .retain(|known| known.remedy.is_empty() || !start.remedy.contains(&known.remedy));
        }
        findings.extend(found);
        findings.extend(topics);
    }
    findings
}

/// Variables of the environment that are no settings, each with the one that is meant.
pub(crate) fn stray(variables: &[(String, String)]) -> Vec<Finding> {
    let finding = |(name, meant): &(String, String)| {
        let seen = format!("the environment has {name}, which is no setting and is ignored");
        warning("settings", seen, format!("name it {meant}, or remove it"))
    };
    variables.iter().map(finding).collect()
}

/// Whether none is a problem.
pub(crate) fn passed(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Problem)
}

/// Findings, and what the next half needs where it can be had.
async fn half<T>(
    name: &'static str,
    looks: impl Future<Output = (Vec<Finding>, Option<T>)>,
) -> (Vec<Finding>, Option<T>) {
    timeout(HALF_MAX, looks).await.unwrap_or_else(|_elapsed| {
        let seen = format!("no answer within {} s", HALF_MAX.as_secs());
        let remedy = "check that it is up and that the network lets it through";
        (vec![problem(name, seen, remedy)], None)
    })
}

fn name_of(sink: &Settings) -> &'static str {
    match sink {
        Settings::Kafka(_) => "Kafka",
        Settings::File(_) => "file",
        Settings::Nats(_) => "NATS",
    }
}

/// Whether progress can be looked at is known where the broker answered.
async fn sink(parts: &Parts) -> (Vec<Finding>, Option<bool>) {
    match &parts.sink {
        Settings::Kafka(settings) => kafka(settings).await,
        Settings::File(settings) => {
            let seen = format!("lines of JSON go to {}", settings.name());
            let open = settings.lockable_by_others();
            let open = open.map(|found| warning("file", found.what, found.remedy));
            (vec![open.unwrap_or_else(|| ok("file", seen))], Some(true))
        }
        Settings::Nats(settings) => nats(settings).await,
    }
}

/// Whether progress can be looked at is known where the stream can be used.
async fn nats(settings: &nats::Settings) -> (Vec<Finding>, Option<bool>) {
    let name = "NATS";
    match nats::preflight(settings).await {
        Ok(looked) => {
            let seen = format!(
                "server {} ({}), stream {}, {} replica(s), progress under {}",
                looked.server,
                looked.version,
                settings.stream,
                looked.replicas,
                settings.progress_subject()
            );
            let mut found = vec![ok(name, seen)];
            found.extend(
                looked.advice.into_iter().map(|(what, remedy)| warning(name, what, remedy)),
            );
            (found, Some(true))
        }
        Err(SinkError::Misconfigured { what, remedy }) => (vec![problem(name, what, remedy)], None),
        Err(error) => {
            let remedy =
                "check sink.nats.url, the credentials, and that a server with JetStream is up";
            (vec![problem(name, printable::causes(&error), remedy)], None)
        }
    }
}

/// Whether there is a progress topic is known where the brokers answered.
async fn kafka(settings: &kafka::Settings) -> (Vec<Finding>, Option<bool>) {
    let preflight = match kafka::preflight(settings.clone()).await {
        Ok(preflight) => preflight,
        Err(SinkError::Misconfigured { what, remedy }) => {
            return (vec![problem("Kafka", what, remedy)], None);
        }
        Err(error) => {
            if let Some((seen, remedy)) = settings.login_refused() {
                return (vec![problem("Kafka", seen, remedy)], None);
            }
            let remedy = "check bootstrap.servers, the security settings, and that a broker is up";
            let seen = match kafka::is_silence(&error) {
                true => format!("no answer from {}", settings.silent()),
                false => printable::causes(&error),
            };
            return (vec![problem("Kafka", seen, remedy)], None);
        }
    };
    let cluster = preflight.cluster_id.as_deref().unwrap_or("unknown");
    let brokers = preflight.brokers.join(", ");
    let topic = settings.progress_topic();
    let has_topic = preflight.progress_topic.as_ref().map(|seen| *seen != ProgressTopic::Missing);
    let progress = preflight.progress_topic.map(|seen| match seen {
        ProgressTopic::Missing => ok("progress", format!("{topic} is made by the first start")),
        ProgressTopic::Verified => ok("progress", format!("{topic} is compacted")),
        ProgressTopic::Unverified(why) => warning(
            "progress",
            format!("the settings of {topic} can't be seen: {why}"),
            "allow DescribeConfigs on the topic, so that each start can verify it",
        ),
    });
    let trust = settings.trust().map(|trusted| ok("TLS to Kafka", format!("trusts {trusted}")));
    let mut found = vec![ok("Kafka", format!("cluster {cluster}, brokers {brokers}"))];
    found.extend(progress.into_iter().chain(trust));
    let problems = preflight.problems.into_iter();
    found.extend(problems.map(|(what, remedy)| problem("Kafka", what, remedy)));
    (found, has_topic)
}

fn ok(name: &'static str, seen: String) -> Finding {
    Finding { name, verdict: Verdict::Ok, seen, remedy: String::new() }
}

fn warning(name: &'static str, seen: String, remedy: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Warning, seen, remedy: remedy.into() }
}

fn problem(name: &'static str, seen: String, remedy: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Problem, seen, remedy: remedy.into() }
}
