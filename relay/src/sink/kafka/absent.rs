//! Topics that do not exist: refused at once, created where the settings say so, and watched for.
//!
//! No one waits for a topic of somebody else's: its events are parked as they come, and when the
//! topic appears within `topic_grace` the daemon releases them by itself (`daemon::watch::missing`, which
//! asks [`Watch`]). Only a topic that the relay creates itself is waited for, a moment in all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::error::RDKafkaErrorCode;

use super::{
    acl, admin,
    errors::sort,
    lookup::{Found, Lookup, Seen},
    settings::{Settings, TopicCreation},
    stop::Stop,
    target::Refusal,
    topics::name::ANOTHER,
    twin,
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

/// After a refused creation the topic is left alone for so long, then twice as long, and so on.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(60);
/// So long an allowance of topics lasts.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Refused creations that are remembered.
const REFUSED_MAX: usize = 10_000;

/// By a topic's name.
type Named<'n, T> = Vec<(&'n str, T)>;

/// What the sink does about topics that it finds missing.
pub(super) struct Absences {
    creation: Option<TopicCreation>,
    attempts: SharedAttempts,
    /// When the relay last asked for a topic's creation, the time for others to see it included.
    patience: Patience,
}

/// How long others may still be kept waiting.
struct Patience {
    left: Duration,
    since: Option<Instant>,
}

impl Absences {
    /// `attempts` is shared with whoever else creates topics.
    pub(super) fn new(settings: &Settings, attempts: SharedAttempts) -> Self {
        let patience = Patience { left: PATIENCE, since: None };
        Absences { creation: settings.create_topics, attempts, patience }
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
            let some = open.get(..CREATED_AT_ONCE).unwrap_or(&open);
            let mut created = create(settings, some, creation, &self.attempts, limit);
            while created > 0 {
                let seen = lookup.survey(&open, LOOKUP_TIMEOUT).unwrap_or_default();
                open.retain(|name| match seen.get(*name) {
                    Some(seen) if matches!(seen.found, Some(Found::Partitions(_))) => {
                        made.push((*name, seen.clone()));
                        created = created.saturating_sub(1);
                        false
                    }
                    _ => true,
                });
                if begun.elapsed() >= limit || !stop.sleep(LOOK_AGAIN) {
                    break;
                }
            }
            self.patience.spend(begun.elapsed());
        }
        let is_used_up = self.creation.is_some() && allowance().left(settings, Instant::now()) == 0;
        let twins = twin::in_the_way(&open, lookup, LOOKUP_TIMEOUT);
        let why = |name: &str| match twins.get(name) {
            None if is_used_up => one_too_many(name, settings),
            twin => unknown(name, settings, twin.map(String::as_str)),
        };
        let refused = open.into_iter().map(|name| (name, ("unknown_topic", why(name))));
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

/// What to do about a missing topic; `twin` is one that is in the way of its creation.
pub(super) fn unknown(name: &str, settings: &Settings, twin: Option<&str>) -> String {
    if let Some(twin) = twin {
        return format!(
            "the topic {name} does not exist, and brokers refuse to create it beside {twin}, because names \
             that differ in '.' and '_' alone collide in the names of metrics: {ANOTHER}; or, if no one needs \
             {twin}, delete that, create {name}, and release its events"
        );
    }
    let or = if settings.create_topics.is_some() { "" } else { ", or set sink.create_topics" };
    let servers = settings.servers();
    let grace = settings.topic_grace;
    format!(
        "the topic {name} does not exist: create it with `kafka-topics --bootstrap-server {servers} \
         --create --topic {name} --partitions N`{or}. If it appears within \
         {grace:?}, its events are released by themselves; later, release them"
    )
}

/// As [`unknown`], where the relay would create it and has created too many.
fn one_too_many(name: &str, settings: &Settings) -> String {
    format!(
        "{}. This relay creates missing topics, and has created {} within a day, which is \
         sink.created_topics_max: look whether such events are meant, create their topics by hand or raise the \
         setting, and release them",
        unknown(name, settings, None),
        settings.created_topics_max
    )
}

/// How many topics may still be created. Whoever may insert an event may name a topic, and each costs the
/// brokers memory and files permanently.
#[derive(Debug)]
struct Allowance {
    created: usize,
    since: Option<Instant>,
}

/// Of the process, whatever starts over in it.
static ALLOWANCE: Mutex<Allowance> = Mutex::new(Allowance { created: 0, since: None });

fn allowance() -> MutexGuard<'static, Allowance> {
    ALLOWANCE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Allowance {
    fn left(&mut self, settings: &Settings, now: Instant) -> usize {
        if self.since.is_some_and(|since| now.duration_since(since) >= DAY) {
            *self = Allowance { created: 0, since: None };
        }
        settings.created_topics_max.saturating_sub(self.created)
    }

    /// Takes as many of `names` as there is room for. What is not created after all is given back.
    fn take<'n>(&mut self, names: Vec<&'n str>, settings: &Settings, now: Instant) -> Vec<&'n str> {
        let left = self.left(settings, now);
        if names.len() > left && left > 0 {
            tracing::warn!(
                max = settings.created_topics_max,
                "no more missing topics are created than sink.created_topics_max within a day: events for \
                 further ones are parked"
            );
        }
        let taken: Vec<&str> = names.into_iter().take(left).collect();
        if !taken.is_empty() {
            self.since.get_or_insert(now);
        }
        self.created += taken.len();
        taken
    }

    fn give_back(&mut self, topics: usize) {
        self.created = self.created.saturating_sub(topics);
    }
}

/// When the creation of topics was refused, and when it may be tried again. Pure: time is told.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    refused: HashMap<String, (Instant, Duration)>,
}

pub(super) type SharedAttempts = Arc<Mutex<Attempts>>;

impl Attempts {
    fn are_due<'n>(&self, names: &[&'n str], now: Instant) -> Vec<&'n str> {
        let due = |name: &&&str| {
            self.refused.get(**name).is_none_or(|(at, wait)| now.duration_since(*at) >= *wait)
        };
        names.iter().filter(due).copied().collect()
    }

    fn refused(&mut self, name: &str, now: Instant) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        let wait = self.refused.get(name).map_or(AGAIN_FIRST, |(_, wait)| *wait * 2);
        self.refused.insert(name.to_owned(), (now, wait.min(AGAIN_LAST)));
    }
}

/// Has those created that were not refused a moment ago; returns how many may be there soon.
fn create(
    settings: &Settings,
    names: &[&str],
    creation: TopicCreation,
    attempts: &SharedAttempts,
    limit: Duration,
) -> usize {
    let attempts = || attempts.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let names = attempts().are_due(names, now);
    let names = allowance().take(names, settings, now);
    if names.is_empty() {
        return 0;
    }
    let TopicCreation { partitions, replication_factor } = creation;
    let replication_factor = match replication_factor {
        -1 => "the broker's default".to_owned(),
        factor => factor.to_string(),
    };
    let topics = names.join(", ");
    tracing::info!(%topics, partitions, %replication_factor, "creating missing topics");
    let failed = match admin::create_topics(settings, &names, creation, &[], limit) {
        Ok(failed) => failed,
        Err(error) => {
            // No one knows; they may be there in a moment.
            tracing::warn!(%error, "creating topics failed");
            names.iter().for_each(|name| attempts().refused(name, Instant::now()));
            return names.len();
        }
    };
    let created = names.len() - failed.len();
    allowance().give_back(failed.len());
    for (topic, code) in failed {
        attempts().refused(&topic, Instant::now());
        let remedy = uncreatable(code, settings, &topic)
            .unwrap_or_else(|| "its events are parked until it is there".into());
        tracing::warn!(topic, error = %code, "the topic can't be created: {remedy}");
    }
    created
}

/// What a person can do where a topic can't be created; `None` where it may be possible later.
pub(super) fn uncreatable(
    code: RDKafkaErrorCode,
    settings: &Settings,
    topic: &str,
) -> Option<String> {
    use RDKafkaErrorCode as Code;
    match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            let grant = acl::grant(settings, &["Create"], &format!("--topic {topic}"));
            Some(format!("{grant}; or create the topic by hand"))
        }
        Code::PolicyViolation | Code::InvalidPartitions | Code::InvalidReplicationFactor => {
            Some("correct sink.create_topics, or create the topic by hand".into())
        }
        Code::InvalidTopic => Some(
            "a topic whose name differs in '.' and '_' only is there already, or the broker's rules \
             forbid the name: give the events another topic"
                .into(),
        ),
        _ => None,
    }
}

/// Tells when missing topics appear, and creates them where the settings say so; works while a
/// delivery is under way.
#[derive(Clone)]
pub struct Watch {
    pub(super) lookup: Arc<Lookup>,
    pub(super) settings: Arc<Settings>,
    pub(super) attempts: SharedAttempts,
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
            let missing =
                |name: &&str| seen.get(*name).is_some_and(|s| s.found == Some(Found::Missing));
            let missing: Vec<&str> = names.into_iter().filter(missing).collect();
            for names in missing.chunks(CREATED_AT_ONCE) {
                create(&self.settings, names, creation, &self.attempts, LOOKUP_TIMEOUT);
            }
        }
        let there = |seen: &Seen| !matches!(seen.found, None | Some(Found::Missing));
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
    fn the_right_to_create_a_topic_is_named_with_the_command_that_gives_it() {
        let settings = super::super::settings::sample("kafka:9092");
        let remedy = |code| uncreatable(code, &settings, "orders");
        let grant = remedy(RDKafkaErrorCode::TopicAuthorizationFailed).expect("a person can");
        assert!(grant.contains("--operation Create --topic orders`"), "{grant}");
        let wrong = remedy(RDKafkaErrorCode::InvalidReplicationFactor).expect("a person can");
        assert!(wrong.contains("sink.create_topics"), "{wrong}");
        assert_eq!(remedy(RDKafkaErrorCode::RequestTimedOut), None, "it may be possible later");
    }

    #[test]
    fn a_topic_whose_creation_was_refused_is_left_alone_longer_each_time() {
        let (mut attempts, begun) = (Attempts::default(), Instant::now());
        let names = ["a.b", "a_b"];
        assert_eq!(attempts.are_due(&names, begun), names);
        // Events trickle: somebody looks four times a second, for ten minutes.
        let mut tried = 0;
        for quarter in 0..2_400 {
            let now = begun + Duration::from_millis(250) * quarter;
            for name in attempts.are_due(&["a_b"], now) {
                tried += 1;
                attempts.refused(name, now);
            }
        }
        assert_eq!(tried, 15, "after 1, 3, 7, 15, 31, 63 s, then once a minute");
        assert_eq!(attempts.are_due(&names, begun), ["a.b"], "nobody refused that one");
        (0..2 * REFUSED_MAX).for_each(|n| attempts.refused(&n.to_string(), begun));
        assert!(attempts.refused.len() <= REFUSED_MAX);
    }

    #[test]
    fn no_more_topics_are_created_within_a_day_than_is_allowed() {
        let mut settings = super::super::settings::sample("kafka:9092");
        settings.created_topics_max = 3;
        let mut allowance = Allowance { created: 0, since: None };
        let begun = Instant::now();
        assert_eq!(allowance.take(vec!["a", "b"], &settings, begun), ["a", "b"]);
        allowance.give_back(1);
        assert_eq!(allowance.take(vec!["c", "d", "e"], &settings, begun), ["c", "d"]);
        assert_eq!(allowance.take(vec!["f"], &settings, begun + DAY / 2), [""; 0]);
        assert_eq!(allowance.take(vec!["f"], &settings, begun + DAY), ["f"]);
        let said = one_too_many("f", &settings);
        assert!(said.contains("has created 3 within a day"), "{said}");
    }

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
