//! What a run would meet at the topics of events that are to come: by its own looks and its own rules,
//! with nothing sent and nothing created. For a doctor.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Noted, Refusal, Topics, now_ms, unnameable};
use crate::{
    core::{printable, record::Batch},
    sink::{
        SinkError,
        doctor::{Concern, Expected},
        kafka::{
            absent::{SharedAttempts, uncreatable, unknown},
            admin,
            errors::sort,
            limits::{Limits, Waiting, is_stale},
            lookup::{Found, Lookup, Seen},
            probe::{PROBE_TIMEOUT, blocking, make_lookup},
            settings::Settings,
            twin,
        },
    },
};

/// Topics of which it is asked whether they could be created, at most.
const CREATED_MAX: usize = 50;

/// What a run would meet with these events.
///
/// # Errors
/// `Unavailable` if the brokers don't answer.
pub(in crate::sink) async fn foresee(
    settings: Settings,
    expected: Expected,
) -> Result<Vec<Concern>, SinkError> {
    blocking(move || {
        let lookup = make_lookup(&settings)?;
        let records = expected.waiting.iter().chain(expected.newest.iter());
        let records = records.map(|record| record.topic);
        let names = records.chain(expected.topics.iter().map(String::as_str)).collect();
        let forecast = Forecast::look(names, &settings, &lookup)?;
        let mut found = forecast.parked(&expected);
        found.extend(forecast.of_topics(&expected));
        lookup.serve();
        Ok(found)
    })
    .await
}

/// The topics as they are now.
struct Forecast<'a> {
    settings: &'a Settings,
    topics: Topics,
    seen: HashMap<String, Seen>,
    /// Why a topic takes nothing.
    refusals: HashMap<&'a str, Refusal>,
}

impl<'a> Forecast<'a> {
    fn look(
        names: HashSet<&'a str>,
        settings: &'a Settings,
        lookup: &Lookup,
    ) -> Result<Self, SinkError> {
        let mut topics = Topics::new(settings, SharedAttempts::default());
        let mut refusals = HashMap::new();
        let mut valid = Vec::new();
        for name in names {
            match unnameable(name, settings) {
                Some(refusal) => drop(refusals.insert(name, refusal)),
                None => valid.push(name),
            }
        }
        let seen = lookup.survey(&valid, PROBE_TIMEOUT);
        let seen = seen.map_err(|error| sort("looking up topics", error, None))?;
        let mut missing = Vec::new();
        for name in valid {
            let noted = |seen: &Seen| topics.note(name, seen.found, seen.limits.clone(), settings);
            match seen.get(name).map(noted) {
                Some(Noted::There) => {}
                Some(Noted::Refused(refusal)) => drop(refusals.insert(name, refusal)),
                Some(Noted::Missing) | None => missing.push(name),
            }
        }
        refusals.extend(absent(missing, settings, lookup));
        Ok(Forecast { settings, topics, seen, refusals })
    }

    /// What would be parked, by topic and reason.
    fn parked(&self, expected: &Expected) -> Vec<Concern> {
        let mut found = BTreeMap::new();
        let batches =
            [(&expected.waiting, "events that may wait"), (&expected.newest, "newest events")];
        for (batch, which) in batches {
            let mut counted: BTreeMap<(&str, &str), (usize, String)> = BTreeMap::new();
            let mut refused = self.topics.judge(batch, 0..batch.len(), &self.refusals, now_ms());
            refused.retain(|one| !batch.unfit.iter().any(|unfit| unfit.index == one.index));
            for refused in refused.into_iter().chain(batch.unfit.iter().cloned()) {
                let Some(record) = batch.get(refused.index) else { continue };
                let key = (record.topic, refused.reason);
                counted.entry(key).or_insert_with(|| (0, refused.error)).0 += 1;
            }
            for ((topic, reason), (count, remedy)) in counted {
                let what = format!(
                    "{count} of {} {which} can't be delivered to the topic {} ({reason}): such \
                     events are parked",
                    batch.len(),
                    printable::short(topic)
                );
                found.entry((topic, reason)).or_insert(Concern { stops: false, what, remedy });
            }
        }
        for topic in &expected.topics {
            let Some((reason, remedy)) = self.refusals.get(topic.as_str()) else { continue };
            let what = format!("parked events can't be released to the topic {topic} ({reason})");
            let concern = Concern { stops: false, what, remedy: remedy.clone() };
            found.entry((topic, reason)).or_insert(concern);
        }
        found.into_values().collect()
    }

    /// What of their settings is worth knowing.
    fn of_topics(&self, expected: &Expected) -> Vec<Concern> {
        let waiting = self.waiting(&expected.waiting);
        // What shrinks on its way has no size that is known in advance.
        let bytes_max = if self.settings.compresses() { 0 } else { expected.record_bytes_max };
        let added = (bytes_max, expected.published_in.as_deref());
        let mut seen: Vec<(&String, &Seen)> = self.seen.iter().collect();
        seen.sort_by_key(|(name, _)| *name);
        let mut found = Vec::new();
        for (name, Seen { found: there, limits, replicas }) in seen {
            let (Some(Found::Partitions(partitions)), Some(limits)) = (there, limits) else {
                continue;
            };
            let unwritable = limits.unwritable(self.settings, name, *replicas);
            found.extend(unwritable.map(|(what, remedy)| Concern { stops: true, what, remedy }));
            let waits = waiting.get(name.as_str()).copied().unwrap_or_default();
            let advice = limits.advice(self.settings, name, *partitions, added, &waits);
            let concern = |(what, remedy)| Concern { stops: false, what, remedy };
            found.extend(advice.into_iter().map(concern));
        }
        found
    }

    fn waiting<'b>(&self, batch: &'b Batch) -> HashMap<&'b str, Waiting> {
        let now_ms = now_ms();
        let mut waiting: HashMap<&str, Waiting> = HashMap::new();
        for record in batch.iter() {
            let limits: Option<&Limits> =
                self.seen.get(record.topic).and_then(|seen| seen.limits.as_ref());
            let of_topic = waiting.entry(record.topic).or_default();
            of_topic.records += 1;
            of_topic.bytes += record.size_bytes() as u64;
            let stale = record.timestamp_ms.is_some_and(|ms| is_stale(limits, ms, now_ms));
            of_topic.stale += u64::from(stale);
        }
        waiting
    }
}

/// Topics that are missing, and will be: where the relay creates them, only those that it can't.
fn absent<'n>(
    missing: Vec<&'n str>,
    settings: &Settings,
    lookup: &Lookup,
) -> Vec<(&'n str, Refusal)> {
    let Some(creation) = settings.create_topics else {
        let twins = twin::in_the_way(&missing, lookup, PROBE_TIMEOUT);
        let unknown = |name: &'n str| {
            let twin = twins.get(name).map(String::as_str);
            (name, ("unknown_topic", unknown(name, settings, twin)))
        };
        return missing.into_iter().map(unknown).collect();
    };
    let asked = missing.get(..CREATED_MAX).unwrap_or(&missing);
    let failed = if asked.is_empty() {
        Ok(vec![])
    } else {
        admin::may_create_topics(settings, asked, creation)
    };
    let failed = failed.unwrap_or_default();
    let found = failed.into_iter().filter_map(|(topic, code)| {
        let name = asked.iter().copied().find(|name| *name == topic)?;
        let remedy = uncreatable(code, settings, &topic)?;
        let error = format!("sink.create_topics can't create it ({code}): {remedy}");
        Some((name, ("unknown_topic", error)))
    });
    found.collect()
}
