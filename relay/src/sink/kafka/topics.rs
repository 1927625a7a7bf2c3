//! Which topics exist, with how many partitions, and where a record goes.
//!
//! Looked up before anything is produced, by a client that creates nothing: a broker may create
//! what is produced to. A missing topic is looked for again during a grace, because whoever
//! publishes events may be creating it; then it is created, if the settings say so, or refused.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    admin,
    errors::{refused, sort, unavailable},
    lookup::{Found, Lookup},
    settings::{Settings, TopicCreation},
    stop::Stop,
};
use crate::{
    destination::reserved_by,
    record::{Batch, Record},
    sink::{RefusedRecord, Rest, SinkError, partition::partition_for_key},
};

/// A grown topic is seen within this time.
const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// Look-ups of a missing topic are this far apart.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Topics remembered; beyond that all are forgotten and looked up again.
const REMEMBERED_MAX: usize = 10_000;

/// What is known of topics.
pub(super) struct Topics {
    known: HashMap<String, Target>,
    /// When a topic was first found missing; one that outlasted its grace is not waited for again.
    missing: HashMap<String, Instant>,
    creation: Option<TopicCreation>,
    grace: Duration,
    delivery: u64,
}

/// A topic that exists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    partitions: i32,
    looked_up: Instant,
    /// Partition of this delivery's records without a key.
    sticky: i32,
    delivery: u64,
}

/// Why a topic takes no record.
type Refusal = (&'static str, String);

impl Topics {
    pub(super) fn new(settings: &Settings) -> Self {
        Topics {
            known: HashMap::new(),
            missing: HashMap::new(),
            creation: settings.create_topics,
            grace: settings.topic_grace,
            delivery: 0,
        }
    }

    /// Makes sure that every record of `range` has somewhere to go.
    ///
    /// # Errors
    /// `Refused` with all records that have not; nothing was produced. `Unavailable` if brokers
    /// don't answer.
    pub(super) fn resolve(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
        settings: &Settings,
        lookup: &Lookup,
        stop: &Stop,
    ) -> Result<(), SinkError> {
        self.delivery += 1;
        if self.known.len() + self.missing.len() > REMEMBERED_MAX {
            self.known.clear();
            self.missing.clear();
        }
        let mut names: HashSet<&str> = HashSet::new();
        let mut last = "";
        for record in range.clone().filter_map(|index| batch.get(index)) {
            if record.topic != last {
                last = record.topic;
                names.insert(last);
            }
        }
        let refusals = self.settle(&names, settings, lookup, stop)?;
        let mut records = Vec::new();
        for (index, record) in range.filter_map(|index| Some((index, batch.get(index)?))) {
            if let Some((reason, error)) = refusals.get(record.topic) {
                records.push(refused(index, reason, error));
            } else if let Some(refusal) = self.no_such_partition(index, &record, lookup) {
                records.push(refusal);
            }
        }
        if records.is_empty() {
            Ok(())
        } else {
            Err(SinkError::Refused { records, rest: Rest::NotStored })
        }
    }

    /// The topic's place, once it was resolved, for the delivery under way.
    pub(super) fn target(&mut self, topic: &str) -> Option<Target> {
        let delivery = self.delivery;
        let target = self.known.get_mut(topic)?;
        target.turn(delivery);
        Some(*target)
    }

    /// Looks up those of `names` that are unknown or not fresh, until all are known or refused.
    fn settle<'n>(
        &mut self,
        names: &HashSet<&'n str>,
        settings: &Settings,
        lookup: &Lookup,
        stop: &Stop,
    ) -> Result<HashMap<&'n str, Refusal>, SinkError> {
        let mut refusals = HashMap::new();
        let mut open: Vec<&str> =
            names.iter().copied().filter(|name| !self.is_fresh(name)).collect();
        while !open.is_empty() {
            let mut waiting = Vec::new();
            for name in open {
                match self.look(name, settings, lookup)? {
                    Look::Known => {}
                    Look::Wait => waiting.push(name),
                    Look::Refused(refusal) => {
                        refusals.insert(name, refusal);
                    }
                }
            }
            open = waiting;
            if !open.is_empty() && !stop.sleep(LOOK_AGAIN) {
                return Err(unavailable("waiting for a missing topic", "asked to stop"));
            }
        }
        Ok(refusals)
    }

    fn look(
        &mut self,
        name: &str,
        settings: &Settings,
        lookup: &Lookup,
    ) -> Result<Look, SinkError> {
        if !is_valid_name(name) {
            let error = format!(
                "{name:?} is no topic name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-', not . or .."
            );
            return Ok(Look::Refused(("invalid_topic", error)));
        }
        // Before anything else is asked: a broker may create what it is asked for.
        if let Some(pattern) = reserved_by(name, &settings.reserved_topics) {
            return Ok(reserved(name, &format!("its name is reserved by {pattern:?}")));
        }
        let found = match lookup.find_writable(name, LOOKUP_TIMEOUT) {
            Ok(found) => found,
            // What is known still holds; the delivery itself will say if the brokers are away.
            Err(error) if self.known.contains_key(name) => {
                tracing::debug!(topic = name, %error, "the topic could not be looked up again");
                return Ok(Look::Known);
            }
            Err(error) => return Err(sort(&format!("looking up the topic {name}"), error, None)),
        };
        Ok(match found {
            Found::Partitions(partitions) => {
                self.note(name, partitions);
                Look::Known
            }
            Found::NotAuthorised => {
                self.known.remove(name);
                let error = format!(
                    "the relay's principal may not write to the topic {name}: grant it Describe \
                     and Write"
                );
                Look::Refused(("not_authorised", error))
            }
            Found::Internal => {
                self.known.remove(name);
                reserved(name, "the broker says that it is internal")
            }
            Found::Invalid => {
                Look::Refused(("invalid_topic", format!("the broker refuses {name:?}")))
            }
            Found::Missing => self.missed(name, settings)?,
        })
    }

    fn missed(&mut self, name: &str, settings: &Settings) -> Result<Look, SinkError> {
        self.known.remove(name);
        let first = !self.missing.contains_key(name);
        let since = *self.missing.entry(name.to_owned()).or_insert_with(Instant::now);
        if let Some(creation) = self.creation {
            if first {
                tracing::info!(topic = name, ?creation, "creating a missing topic");
                return create(settings, name, creation);
            }
            // Created, but not yet known to the broker that was asked.
            if since.elapsed() < self.grace.max(LOOKUP_TIMEOUT) {
                return Ok(Look::Wait);
            }
            self.missing.remove(name); // So that the next delivery tries to create it again.
        } else if since.elapsed() < self.grace {
            if first {
                let grace = self.grace;
                tracing::warn!(topic = name, ?grace, "the topic does not exist: waiting for it");
            }
            return Ok(Look::Wait);
        }
        let servers = settings.properties.get("bootstrap.servers").map_or("HOST:PORT", |s| s);
        let error = format!(
            "the topic {name} does not exist: create it with `kafka-topics --bootstrap-server \
             {servers} --create --topic {name} --partitions N`, or set sink.create_topics"
        );
        Ok(Look::Refused(("unknown_topic", error)))
    }

    fn is_fresh(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|target| target.looked_up.elapsed() < REFRESH_EVERY)
    }

    fn note(&mut self, name: &str, partitions: i32) {
        self.missing.remove(name);
        match self.known.get_mut(name) {
            Some(target) => {
                if target.partitions != partitions {
                    tracing::warn!(
                        topic = name,
                        before = target.partitions,
                        now = partitions,
                        "the topic has another number of partitions: keys may change theirs, and \
                         their order across that change is not kept"
                    );
                }
                target.partitions = partitions;
                target.looked_up = Instant::now();
            }
            None => {
                self.known.insert(name.to_owned(), Target::new(partitions));
            }
        }
    }

    /// A partition beyond the last: the topic may have grown since it was looked up.
    fn no_such_partition(
        &mut self,
        index: usize,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Option<RefusedRecord> {
        let wanted = record.partition?;
        let known = self.known.get(record.topic)?;
        if (0..known.partitions).contains(&wanted) {
            return None;
        }
        if known.looked_up.elapsed() > LOOK_AGAIN
            && let Ok(Found::Partitions(partitions)) = lookup.find(record.topic, LOOKUP_TIMEOUT)
        {
            self.note(record.topic, partitions);
            if (0..partitions).contains(&wanted) {
                return None;
            }
        }
        let partitions = self.known.get(record.topic)?.partitions;
        let topic = record.topic;
        let error =
            format!("the topic {topic} has partitions 0 to {}, not {wanted}", partitions - 1);
        Some(refused(index, "no_such_partition", error))
    }
}

enum Look {
    Known,
    Wait,
    Refused(Refusal),
}

/// Others keep state in it by its name.
fn reserved(name: &str, why: &str) -> Look {
    let error = format!(
        "the topic {name} is no destination for events, because others keep state in it ({why}): \
         give the event another topic; see sink.reserved_topics"
    );
    Look::Refused(("reserved_topic", error))
}

fn create(settings: &Settings, name: &str, creation: TopicCreation) -> Result<Look, SinkError> {
    use rdkafka::error::RDKafkaErrorCode as Code;
    let Err(error) = admin::create_topic(settings, name, creation, &[]) else {
        return Ok(Look::Wait); // Until the look-up shows it.
    };
    Ok(match error.rdkafka_error_code() {
        Some(Code::InvalidTopic) => Look::Refused(("invalid_topic", error.to_string())),
        Some(
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::PolicyViolation
            | Code::InvalidPartitions,
        ) => {
            let error = format!("the topic {name} does not exist and can't be created: {error}");
            Look::Refused(("unknown_topic", error))
        }
        // Too few brokers for the replication factor may be an outage of some.
        _ => return Err(sort(&format!("creating the topic {name}"), error, None)),
    })
}

impl Target {
    fn new(partitions: i32) -> Self {
        // Relays that start at once should not all begin with partition 0.
        let sticky = rand::random_range(0..partitions.max(1));
        Target { partitions, looked_up: Instant::now(), sticky, delivery: 0 }
    }

    /// Moves on to the next partition with the first record of each delivery.
    fn turn(&mut self, delivery: u64) {
        if self.delivery != delivery {
            self.delivery = delivery;
            self.sticky = (self.sticky + 1) % self.partitions.max(1);
        }
    }

    /// Where a record goes.
    pub(super) fn partition(&self, record: &Record<'_>) -> i32 {
        match (record.partition, record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, self.partitions),
            (None, None) => self.sticky,
        }
    }
}

/// Kafka's rule for the names of topics.
pub(super) fn is_valid_name(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_refuses_are_known_without_asking() {
        for name in ["", ".", "..", "a b", "ä", "a/b", "a\0b", &"x".repeat(250)] {
            assert!(!is_valid_name(name), "{name:?}");
        }
        for name in ["a", "...", "Orders_v1.x-y", &"x".repeat(249)] {
            assert!(is_valid_name(name), "{name:?}");
        }
    }

    #[test]
    fn records_without_a_key_stay_together_and_move_on_with_each_delivery() {
        let mut target = Target::new(3);
        let mut seen = Vec::new();
        for delivery in 1..=6 {
            target.turn(delivery);
            let partition = target.sticky;
            target.turn(delivery);
            assert_eq!(target.sticky, partition, "one delivery, one partition");
            seen.push(partition);
        }
        assert!(seen.iter().zip(seen.iter().skip(3)).all(|(before, after)| before == after));
        seen.sort_unstable();
        assert_eq!(seen, [0, 0, 1, 1, 2, 2]);
    }
}
