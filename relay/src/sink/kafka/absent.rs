//! Topics that do not exist: refused at once, created where the settings say so, and watched for.
//!
//! Nobody waits for a topic of somebody else's: its events are parked as they come, and when the
//! topic appears within `topic_grace` the daemon releases them by itself (`daemon::missing`, which
//! asks [`Watch`]). Only a topic that the relay creates itself is waited for, a moment in all.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::error::RDKafkaErrorCode;

use super::{
    admin,
    errors::sort,
    lookup::{Found, Lookup, Seen},
    settings::{Settings, TopicCreation},
    stop::Stop,
    target::Refusal,
};
use crate::sink::SinkError;

/// Look-ups of a topic just created are this far apart.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Topics that are created in one request.
const CREATED_AT_ONCE: usize = 50;
/// What creating topics may cost all others, each time the same number of seconds has passed.
const PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_EVERY: Duration = Duration::from_secs(10);

/// By a topic's name.
type Named<'n, T> = Vec<(&'n str, T)>;

/// What the sink does about topics that it finds missing.
pub(super) struct Absences {
    creation: Option<TopicCreation>,
    /// When the relay last asked for a topic's creation, the time for others to see it included.
    patience: Patience,
}

/// How long others may still be kept waiting.
struct Patience {
    left: Duration,
    since: Option<Instant>,
}

impl Absences {
    pub(super) fn new(settings: &Settings) -> Self {
        let patience = Patience { left: PATIENCE, since: None };
        Absences { creation: settings.create_topics, patience }
    }

    /// Creates what may be created in a moment. Returns what is there by then, and why the others
    /// take no record.
    pub(super) fn settle<'n>(
        &mut self,
        missing: Vec<&'n str>,
        settings: &Settings,
        lookup: &Lookup,
        stop: &Stop,
    ) -> (Named<'n, Seen>, Named<'n, Refusal>) {
        let mut made = Vec::new();
        let mut open = missing;
        let begun = Instant::now();
        let limit = self.patience.left(begun);
        if let Some(creation) = self.creation
            && !open.is_empty()
            && !limit.is_zero()
        {
            create(settings, open.get(..CREATED_AT_ONCE).unwrap_or(&open), creation, limit);
            loop {
                let seen = lookup.survey(&open, LOOKUP_TIMEOUT).unwrap_or_default();
                open.retain(|name| match seen.get(*name) {
                    Some(seen) if matches!(seen.found, Found::Partitions(_)) => {
                        made.push((*name, seen.clone()));
                        false
                    }
                    _ => true,
                });
                if open.is_empty() || begun.elapsed() >= limit || !stop.sleep(LOOK_AGAIN) {
                    break;
                }
            }
            self.patience.spend(begun.elapsed());
        }
        let refused =
            open.into_iter().map(|name| (name, ("unknown_topic", unknown(name, settings))));
        (made, refused.collect())
    }
}

impl Patience {
    fn left(&mut self, now: Instant) -> Duration {
        if self.since.is_none_or(|since| now.duration_since(since) >= PATIENCE_EVERY) {
            *self = Patience { left: PATIENCE, since: Some(now) };
        }
        self.left
    }

    fn spend(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }
}

fn unknown(name: &str, settings: &Settings) -> String {
    let servers = settings.properties.get("bootstrap.servers").map_or("HOST:PORT", |s| s);
    let grace = settings.topic_grace;
    format!(
        "the topic {name} does not exist: create it with `kafka-topics --bootstrap-server {servers} \
         --create --topic {name} --partitions N`, or set sink.create_topics. If it appears within \
         {grace:?}, its events are released by themselves; later, release them"
    )
}

fn create(settings: &Settings, names: &[&str], creation: TopicCreation, limit: Duration) {
    tracing::info!(topics = ?names, ?creation, "creating missing topics");
    let failed = match admin::create_topics(settings, names, creation, &[], limit) {
        Ok(failed) => failed,
        // Nobody knows; they may be there in a moment.
        Err(error) => return tracing::warn!(%error, "creating topics failed"),
    };
    for (topic, code) in failed {
        let remedy = match code {
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                "grant the relay's principal Create, or create the topic by hand"
            }
            RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::InvalidPartitions
            | RDKafkaErrorCode::InvalidReplicationFactor => {
                "correct sink.create_topics, or create the topic by hand"
            }
            _ => "its events are parked until it is there",
        };
        tracing::warn!(topic, error = %code, "the topic can't be created: {remedy}");
    }
}

/// Tells when missing topics appear, and creates them where the settings say so; works while a
/// delivery is under way.
#[derive(Clone)]
pub struct Watch {
    pub(super) lookup: Arc<Lookup>,
    pub(super) settings: Arc<Settings>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// How long a topic is watched for after its first event was parked.
    pub fn grace(&self) -> Duration {
        self.settings.topic_grace
    }

    /// Those of `topics` that exist. Blocking, for some seconds at most.
    ///
    /// # Errors
    /// `Unavailable` if no broker answers.
    pub fn appeared(&self, topics: &[String]) -> Result<Vec<String>, SinkError> {
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let seen = lookup_all(&self.lookup, &names)?;
        if let Some(creation) = self.settings.create_topics {
            let missing = |name: &&str| seen.get(*name).is_some_and(|s| s.found == Found::Missing);
            let missing: Vec<&str> = names.into_iter().filter(missing).collect();
            for names in missing.chunks(CREATED_AT_ONCE) {
                create(&self.settings, names, creation, LOOKUP_TIMEOUT);
            }
        }
        let there = |seen: &Seen| !matches!(seen.found, Found::Missing | Found::Unclear);
        Ok(seen.into_iter().filter(|(_, seen)| there(seen)).map(|(name, _)| name).collect())
    }
}

fn lookup_all(lookup: &Lookup, names: &[&str]) -> Result<HashMap<String, Seen>, SinkError> {
    lookup.survey(names, LOOKUP_TIMEOUT).map_err(|error| sort("looking up topics", error, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_missing_topics_together_cost_others_half_a_second_in_ten() {
        let mut patience = Patience { left: PATIENCE, since: None };
        let begun = Instant::now();
        assert_eq!(patience.left(begun), PATIENCE);
        patience.spend(Duration::from_millis(400));
        assert_eq!(patience.left(begun + Duration::from_secs(1)), Duration::from_millis(100));
        patience.spend(Duration::from_millis(150));
        assert_eq!(patience.left(begun + Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(patience.left(begun + PATIENCE_EVERY), PATIENCE);
    }
}
