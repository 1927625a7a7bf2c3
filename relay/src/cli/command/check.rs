//! `outbox-relay check`: a doctor that looks at every precondition and says what corrects it.
//!
//! It changes nothing and disturbs no relay that runs. Each finding stands for itself; what can't
//! be looked at because something before it failed is left out. Ends within 15 s.

mod capacity;
mod database;
mod events;
mod identity;
mod meddling;
mod migrations;
mod neighbours;
mod rights;
mod running;
mod settings;
mod start;
mod tables;

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::timeout;

use crate::{
    config::{Config, Route, parts::Parts},
    sink::doctor::{Examined, Mark, Seen},
};

/// Bound of each of the two halves, so that the whole ends within 15 s.
const HALF_MAX: Duration = Duration::from_secs(7);

/// How the finding begins of a half that did not end.
const SILENT: &str = "no answer within";

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
    /// Which route it is about, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
}

impl Finding {
    /// The same, of that route.
    #[must_use]
    pub(crate) fn of(self, route: Option<&Route>) -> Self {
        let Some(route) = route else { return self };
        let remedy = route.in_commands(&self.remedy);
        Finding { remedy, route: Some(route.name.clone()), ..self }
    }
}

/// Looks at everything. Problems come as findings, never as errors.
pub(crate) async fn run(config: &Config, parts: &Parts) -> Vec<Finding> {
    let ((mut findings, session), (sink, has_progress), running) = tokio::join!(
        half("PostgreSQL", database::looked_at(config, parts)),
        half(parts.sink.kind(), sink(parts)),
        Box::pin(running::asked(config))
    );
    findings.extend(sink);
    if let (Some((session, (expected, looked))), Some(has_progress)) = (session, has_progress) {
        let session = Arc::new(session);
        let rehearsal = async {
            let rehearsed = start::rehearsed(config, parts, &session, has_progress, &findings);
            let found = Box::pin(rehearsed).await;
            (found, None::<()>)
        };
        let foreseen = events::foreseen(parts, expected, looked);
        let ((found, _), (topics, _)) =
            tokio::join!(half("start", rehearsal), half("topics", foreseen));
        let found = start::or_still_reading(found, parts);
        // What is corrected by the same words has the same cause, and the start's words have more: what it
        // means for what was published before.
        for start in &found {
            findings
                .retain(|known| known.remedy.is_empty() || !start.remedy.contains(&known.remedy));
        }
        findings.extend(found);
        findings.extend(topics);
    }
    // What was found here is newer than what the relay says.
    if passed(&findings) {
        findings.extend(running);
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
        let seen = format!("{SILENT} {} s", HALF_MAX.as_secs());
        let remedy = match name {
            "PostgreSQL" => {
                "check that it is up, that the network lets it through, and that nothing holds up logins: an event \
                 trigger on login (PostgreSQL 17 or later), or someone who waits to lock a catalog that each login reads \
                 (on its host, `ps ax | grep 'postgres.*waiting'` shows the process, and `kill` with its number ends it)"
            }
            _ => "check that it is up and that the network lets it through",
        };
        (vec![problem(name, seen, remedy)], None)
    })
}

async fn sink(parts: &Parts) -> (Vec<Finding>, Option<bool>) {
    let Examined { seen, has_progress } = parts.sink.examine().await;
    let finding = |Seen { name, mark, what: seen, remedy }| {
        let verdict = match mark {
            Mark::Fine => Verdict::Ok,
            Mark::Warning => Verdict::Warning,
            Mark::Problem => Verdict::Problem,
        };
        Finding { name, verdict, seen, remedy, route: None }
    };
    (seen.into_iter().map(finding).collect(), has_progress)
}

fn ok(name: &'static str, seen: String) -> Finding {
    Finding { name, verdict: Verdict::Ok, seen, remedy: String::new(), route: None }
}

fn warning(name: &'static str, seen: String, remedy: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Warning, seen, remedy: remedy.into(), route: None }
}

fn problem(name: &'static str, seen: String, remedy: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Problem, seen, remedy: remedy.into(), route: None }
}
