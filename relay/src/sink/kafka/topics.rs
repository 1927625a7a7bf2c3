//! Which topics exist, and what of a delivery they take.
//!
//! Looked up before anything is produced, by a client that creates nothing: a broker may create
//! what is produced to. What is known of a topic is at most half a minute old where it lets a
//! record pass; where it refuses one, it was read after the record had come. No one is waited for: a topic that
//! is missing is refused at once, and the daemon releases its events when it appears (`absent`).

pub(super) mod forecast;
pub(super) mod name;

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    time::{Duration, Instant},
};

use self::name::{reserved, unnameable};
use super::{
    absent::{Absences, SharedAttempts},
    acl,
    errors::{refused, sort},
    limits::{self, Limits},
    lookup::{Found, Lookup, Seen},
    settings::Settings,
    stop::Stop,
    target::{Refusal, Target},
};
use crate::{
    core::record::Batch,
    sink::{RefusedRecord, Rest, SinkError},
};

/// A grown topic is seen within this time.
const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// A topic of which a record was refused alone has few others sent otherwise for so long.
const ALONE_FOR: Duration = Duration::from_millis(500);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Topics remembered; beyond that all are forgotten and looked up again.
const REMEMBERED_MAX: usize = 10_000;

/// What is known of topics.
pub(super) struct Topics {
    known: HashMap<String, Target>,
    absences: Absences,
    /// Records shrink on the wire, no one knows how much.
    compressed: bool,
    /// Brokers, as a person types them.
    servers: String,
    /// Bytes of the largest batch that the producer makes by itself.
    batch_bytes: usize,
    delivery: u64,
    /// Topics that have another number of partitions than before: the producer must know.
    changed: Vec<String>,
}

impl Topics {
    pub(super) fn new(settings: &Settings, attempts: SharedAttempts) -> Self {
        let size = settings.properties.get("batch.size").and_then(|size| size.trim().parse().ok());
        Topics {
            known: HashMap::new(),
            absences: Absences::new(settings, attempts),
            compressed: settings.compresses(),
            servers: settings.servers().to_owned(),
            batch_bytes: size.unwrap_or(1_000_000),
            delivery: 0,
            changed: Vec::new(),
        }
    }

    /// Makes sure that every record of `range` has somewhere to go, and would be taken there as
    /// far as one can know. Where one of them is not, the rest of the batch is judged as well: how much
    /// is delivered at a time is no bound on how much is refused at a time, and parking thousands a few
    /// at a time would keep everybody waiting.
    ///
    /// # Errors
    /// `Refused` with all records of which that is not so; nothing was produced. `Unavailable` if
    /// brokers don't answer.
    pub(super) fn resolve(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
        settings: &Settings,
        lookup: &Lookup,
        stop: &Stop,
    ) -> Result<(), SinkError> {
        self.delivery += 1;
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        let mut look =
            Look { begun: Instant::now(), absent: HashMap::new(), settings, lookup, stop };
        let whole = range.start..batch.len();
        let judged = self.examine(batch, range.clone(), &mut look)?;
        if judged.is_empty() {
            return Ok(());
        }
        let records = if range == whole { judged } else { self.examine(batch, whole, &mut look)? };
        Err(SinkError::Refused { records, rest: Rest::NotSent })
    }

    /// The records of `range` that their topics don't take. Topics are looked up where what is known is too
    /// old, or would refuse something and is older than the records.
    fn examine<'b>(
        &mut self,
        batch: &'b Batch,
        range: Range<usize>,
        look: &mut Look<'b, '_>,
    ) -> Result<Vec<RefusedRecord>, SinkError> {
        let names = names(batch, range.clone()).into_iter();
        let stale = names.filter(|name| !self.is_fresh(name) && !look.absent.contains_key(name));
        self.look_up(stale.collect(), look)?;
        let now_ms = now_ms();
        let judged = self.judge(batch, range.clone(), &look.absent, now_ms);
        let old = judged.iter().filter_map(|record| batch.get(record.index));
        let old: HashSet<&str> =
            old.map(|record| record.topic).filter(|t| self.is_older(t, look.begun)).collect();
        if old.is_empty() {
            return Ok(judged);
        }
        self.look_up(old, look)?;
        Ok(self.judge(batch, range, &look.absent, now_ms))
    }

    /// The topic's place, once it was resolved, for the delivery under way.
    pub(super) fn target(&mut self, topic: &str) -> Option<&Target> {
        let delivery = self.delivery;
        let target = self.known.get_mut(topic)?;
        target.turn(delivery);
        Some(target)
    }

    /// As [`Topics::target`], without a new delivery.
    pub(super) fn peek(&self, topic: &str) -> Option<&Target> {
        self.known.get(topic)
    }

    /// Topics of which the producer's own knowledge is out of date.
    pub(super) fn take_changed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.changed)
    }

    /// Something went wrong that may come of what is known of the topics of these records: they
    /// are looked up again before anything more is sent there.
    pub(super) fn doubt(&mut self, batch: &Batch, range: Range<usize>) {
        for name in names(batch, range) {
            if let Some(target) = self.known.get_mut(name) {
                target.doubted = true;
                self.changed.push(name.to_owned());
            }
        }
    }

    /// Whether all topics of these records are still there with all their partitions. Asked while
    /// a delivery takes long; `true` when no one answers.
    pub(super) fn are_there(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
        lookup: &Lookup,
    ) -> bool {
        let names: Vec<&str> = names(batch, range).into_iter().collect();
        let Ok(seen) = lookup.survey(&names, LOOKUP_TIMEOUT) else { return true };
        let gone = |name: &str, seen: &Seen| match (seen.found, self.known.get(name)) {
            (Some(Found::Partitions(count)), Some(known)) => count < known.partitions,
            (Some(Found::Missing | Found::NotAuthorised | Found::Invalid), _) => true,
            _ => false,
        };
        !seen.iter().any(|(name, seen)| gone(name, seen))
    }

    /// The records of this topic go one in a batch, until the delivery has come to its end.
    pub(super) fn send_alone(&mut self, topic: &str) {
        if let Some(target) = self.known.get_mut(topic) {
            target.alone = true;
        }
    }

    /// Leaves out those that can't be the ones that are meant: refused together with others for
    /// their size, and small enough whatever they are sent with. They are sent again.
    pub(super) fn acquit(&self, batch: &Batch, refused: Vec<RefusedRecord>) -> Vec<RefusedRecord> {
        let is_small = |refused: &RefusedRecord| {
            let record = batch.get(refused.index)?;
            let max = self.known.get(record.topic)?.limits.as_ref()?.batch_bytes_max?;
            Some(refused.reason == "too_large" && limits::batch_bytes(&record) <= max)
        };
        let is_meant =
            |refused: &&RefusedRecord| refused.certain || is_small(refused) != Some(true);
        let meant: Vec<_> = refused.iter().filter(is_meant).cloned().collect();
        if meant.is_empty() { refused } else { meant }
    }

    /// As [`Topics::send_alone`], for those topics of these records of which one was just refused so.
    pub(super) fn send_alone_again(&mut self, batch: &Batch, range: Range<usize>) {
        for name in names(batch, range) {
            if let Some(target) = self.known.get_mut(name) {
                target.alone |= target.refused_alone.is_some_and(|at| at.elapsed() < ALONE_FOR);
            }
        }
    }

    /// A delivery of these records has come to its end.
    pub(super) fn ended(&mut self, batch: &Batch, range: Range<usize>, refused: &[RefusedRecord]) {
        self.learn_sizes(batch, range.clone(), refused);
        for record in refused.iter().filter_map(|refused| batch.get(refused.index)) {
            if let Some(target) = self.known.get_mut(record.topic).filter(|target| target.alone) {
                target.refused_alone = Some(Instant::now());
            }
        }
        for name in names(batch, range) {
            if let Some(target) = self.known.get_mut(name) {
                target.alone = false;
            }
        }
    }

    /// Takes note of what a delivery of single records has shown: the sizes that were stored, and
    /// those that were refused.
    fn learn_sizes(&mut self, batch: &Batch, range: Range<usize>, refused: &[RefusedRecord]) {
        let mut refused = refused.iter().peekable();
        for (index, record) in range.filter_map(|index| Some((index, batch.get(index)?))) {
            let refused = refused.next_if(|refused| refused.index == index);
            let Some(target) = self.known.get_mut(record.topic) else { continue };
            if target.limits.is_some() || self.compressed {
                continue;
            }
            let bytes = limits::batch_bytes(&record);
            match refused {
                Some(refused) if refused.reason == "too_large" && refused.certain => {
                    let least = target.too_large_bytes.map_or(bytes, |(least, _)| least.min(bytes));
                    target.too_large_bytes = Some((least, Instant::now()));
                }
                Some(_) => {}
                None if target.alone => target.stored_bytes = target.stored_bytes.max(Some(bytes)),
                None => {}
            }
        }
    }

    /// Looks topics up; those that take no record are absent from then on, with the reason.
    fn look_up<'b>(
        &mut self,
        names: HashSet<&'b str>,
        look: &mut Look<'b, '_>,
    ) -> Result<(), SinkError> {
        let mut valid = Vec::new();
        for name in names {
            // Before anything else is asked: a broker may create what it is asked for.
            match unnameable(name, look.settings) {
                Some(refusal) => drop(look.absent.insert(name, refusal)),
                None => valid.push(name),
            }
        }
        if valid.is_empty() {
            return Ok(());
        }
        let seen = match look.lookup.survey(&valid, LOOKUP_TIMEOUT) {
            Ok(seen) => seen,
            // What is known still holds; the delivery itself will say if the brokers are away.
            Err(error) if valid.iter().all(|name| self.known.contains_key(*name)) => {
                tracing::debug!(%error, "topics could not be looked up again");
                return Ok(());
            }
            Err(error) => return Err(sort("looking up topics", error, None)),
        };
        let mut missing = Vec::new();
        for name in valid {
            match seen.get(name) {
                Some(Seen { found, limits, .. }) => {
                    match self.note(name, *found, limits.clone(), look.settings) {
                        Noted::There => {}
                        Noted::Missing => missing.push(name),
                        Noted::Refused(refusal) => {
                            look.absent.insert(name, refusal);
                        }
                    }
                }
                None => missing.push(name),
            }
        }
        let (made, refused) = self.absences.settle(missing, look.settings, look.lookup, look.stop);
        for (name, Seen { found, limits, .. }) in made {
            self.note(name, found, limits, look.settings);
        }
        look.absent.extend(refused);
        Ok(())
    }

    fn note(
        &mut self,
        name: &str,
        found: Option<Found>,
        limits: Option<Limits>,
        settings: &Settings,
    ) -> Noted {
        let refused = match found {
            Some(Found::Partitions(partitions)) => {
                match self.known.get_mut(name) {
                    Some(target) => {
                        if target.see(name, partitions, limits) {
                            self.changed.push(name.to_owned());
                        }
                    }
                    None => {
                        self.known.insert(name.to_owned(), Target::new(partitions, limits));
                    }
                }
                return Noted::There;
            }
            // What is known holds until the broker knows better.
            None if self.known.contains_key(name) => return Noted::There,
            None | Some(Found::Missing) => None,
            Some(Found::NotAuthorised) => {
                Some((acl::NOT_AUTHORISED, acl::may_not_write(settings, name)))
            }
            Some(Found::Internal) => Some(reserved(name, "the broker says that it is internal")),
            Some(Found::Invalid) => Some(("invalid_topic", format!("the broker refuses {name:?}"))),
        };
        self.known.remove(name);
        refused.map_or(Noted::Missing, Noted::Refused)
    }

    fn is_fresh(&self, name: &str) -> bool {
        let fresh = |target: &Target| !target.doubted && target.looked_up.elapsed() < REFRESH_EVERY;
        self.known.get(name).is_some_and(fresh)
    }

    /// Known from a time before the records came: it may refuse nothing.
    fn is_older(&self, name: &str, begun: Instant) -> bool {
        self.known.get(name).is_some_and(|target| target.looked_up < begun)
    }

    /// Every record that is known to be refused, by its topic or by itself.
    fn judge(
        &self,
        batch: &Batch,
        range: Range<usize>,
        absent: &HashMap<&str, Refusal>,
        now_ms: i64,
    ) -> Vec<RefusedRecord> {
        let records = range.filter_map(|index| Some((index, batch.get(index)?)));
        let judged = records.filter_map(|(index, record)| {
            if let Some((reason, error)) = absent.get(record.topic) {
                return Some(refused(index, reason, error));
            }
            let target = self.known.get(record.topic)?;
            let (reason, error) = target.refuse(&record, self.compressed, &self.servers, now_ms)?;
            Some(refused(index, reason, error))
        });
        judged.collect()
    }

    /// How many bytes a batch for the topic may have, where that is less than the producer makes
    /// by itself.
    pub(super) fn batch_bytes_max(&self, target: &Target) -> Option<usize> {
        let known = target.limits.as_ref().and_then(|limits| limits.batch_bytes_max);
        let max = if target.alone { Some(0) } else { known.or(target.stored_bytes) };
        max.filter(|max| *max < self.batch_bytes)
    }
}

/// One look at the topics of a delivery.
struct Look<'b, 'a> {
    begun: Instant,
    /// Topics that take no record, and why.
    absent: HashMap<&'b str, Refusal>,
    settings: &'a Settings,
    lookup: &'a Lookup,
    stop: &'a Stop,
}

enum Noted {
    There,
    Missing,
    Refused(Refusal),
}

/// The topics of these records.
fn names(batch: &Batch, range: Range<usize>) -> HashSet<&str> {
    let mut names: HashSet<&str> = HashSet::new();
    let mut last = "";
    for record in range.filter_map(|index| batch.get(index)) {
        if record.topic != last || names.is_empty() {
            last = record.topic;
            names.insert(last);
        }
    }
    names
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
