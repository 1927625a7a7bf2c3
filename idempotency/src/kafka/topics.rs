//! What becomes of the topics themselves while they are read: recreated, cut, gone.
//!
//! Each is said once where it happens, counted, and raised as an alert: records that were there and
//! have no effect must not be found out by accident. Deciding is pure in `gaps`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Offset,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode as Code},
};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    added::begins_at_the_end,
    error::RunError,
    gaps::{self, Gap},
    native::{self, Place, Queue},
    patience,
    shared::Shared,
};
use crate::{alert::Alert, dispatch::Partition, message_id::digest, processor::Processor};

/// Between two questions whether topics are still the same.
pub(super) const ASK: Duration = Duration::from_secs(5);

pub(super) struct Topics {
    processor: Processor,
    runtime: Handle,
    leave: CancellationToken,
    group: String,
    /// What is out of range is left for the end of the partition.
    to_latest: bool,
    ids: HashMap<String, String>,
    asked: Option<Instant>,
    /// What was said of a topic.
    said: HashSet<(String, String)>,
}

impl Topics {
    /// On a thread of the runtime.
    pub(super) fn new(
        processor: Processor,
        config: &ClientConfig,
        leave: CancellationToken,
    ) -> Self {
        Topics {
            processor,
            runtime: Handle::current(),
            leave,
            group: config.get("group.id").unwrap_or_default().to_owned(),
            to_latest: begins_at_the_end(config),
            ids: HashMap::new(),
            asked: None,
            said: HashSet::new(),
        }
    }

    /// A partition continues at `offset`: is that where it should?
    pub(super) fn goes_on(
        &self,
        consumer: &BaseConsumer<impl ConsumerContext>,
        shared: &Shared,
        partition: &Partition,
        offset: i64,
    ) {
        let expected = shared.lanes().expected(partition);
        if expected.is_none_or(|expected| expected == offset) {
            return;
        }
        let (topic, number) = partition;
        let first = native::first_offset(consumer, topic, *number);
        let consumer = self.processor.inbox().consumer().to_owned();
        let topic = topic.to_string();
        match gaps::judge(expected, offset, first, self.to_latest) {
            Gap::None => {}
            Gap::Skipped { from, to } => {
                tracing::error!(
                    consumer,
                    topic,
                    partition = number,
                    from,
                    to,
                    "records were deleted before this consumer has read them: those from offset {from} \
                     to before {to} have no effect here, and reading continues behind them. If they \
                     were not deleted on purpose, let the topic keep records for longer: \
                     kafka-configs.sh --alter --topic {topic} --add-config retention.ms=..."
                );
                self.processor.meter().skipped(&topic, to - from);
                self.processor.raise(&Alert::Skipped {
                    consumer,
                    topic,
                    partition: *number,
                    from,
                    to,
                });
            }
            Gap::Back { from, to } => {
                tracing::error!(
                    consumer,
                    topic,
                    partition = number,
                    from,
                    to,
                    "the partition was cut, or its topic recreated: reading was at offset {from}, and \
                     begins again at {to}. Of what it reads twice, {}; what was cut off before it was \
                     read has no effect here",
                    self.processor.of_copies()
                );
                shared.lanes().restart(partition);
                self.processor.raise(&Alert::Restarted {
                    consumer,
                    topic,
                    partition: *number,
                    from,
                    to,
                });
            }
        }
    }

    /// Asks whether topics are still the same, now and then; the answer comes to the queue.
    pub(super) fn ask(
        &mut self,
        consumer: &BaseConsumer<impl ConsumerContext>,
        shared: &Shared,
        queue: &Queue,
    ) {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK) {
            return;
        }
        let partitions = shared.lanes().partitions();
        let names: HashSet<&str> = partitions.iter().map(|(topic, _)| &**topic).collect();
        if !names.is_empty() {
            self.asked = Some(Instant::now());
            queue.ask_ids(consumer, &names.into_iter().collect::<Vec<_>>());
        }
    }

    /// The answer. What is read of a topic that was recreated must begin at its beginning: librdkafka
    /// continues where it was in the old one, if the new one is long enough.
    pub(super) fn told(
        &mut self,
        consumer: &BaseConsumer<impl ConsumerContext>,
        shared: &Shared,
        ids: Vec<(String, String)>,
    ) {
        for (topic, id) in ids {
            let before = self.ids.insert(topic.clone(), id.clone());
            let before = before.or_else(|| shared.topic_id(&topic));
            let Some(before) = before.filter(|before| *before != id) else {
                self.processor.topic_is(topic.as_str().into(), Some(id.clone()));
                shared.topic_is(topic.as_str().into(), id);
                continue;
            };
            // Where a message of the old one that is at work now gets, is no place in the new one.
            self.processor.topic_is(topic.as_str().into(), None);
            say_anew(self.processor.inbox().consumer(), &topic);
            let mut ours = shared.lanes().partitions();
            ours.retain(|(name, _)| **name == *topic);
            let from = |partition| shared.lanes().expected(partition).unwrap_or(0);
            let from: Vec<i64> = ours.iter().map(from).collect();
            if self.processor.by_partition() {
                self.set_back(shared, &ours, &id);
            }
            for (partition, from) in ours.iter().zip(from) {
                // Before the seek: what has been fetched until then is dropped by it.
                shared.lanes().restart(partition);
                let sought = consumer.seek(&topic, partition.1, Offset::Beginning, Duration::ZERO);
                if let Err(error) = sought {
                    tracing::warn!(%error, topic, partition = partition.1, "not read from its beginning");
                    self.ids.insert(topic.clone(), before.clone()); // Once more at the next answer.
                }
                let consumer = self.processor.inbox().consumer().to_owned();
                let (topic, partition) = (topic.clone(), partition.1);
                self.processor.raise(&Alert::Restarted { consumer, topic, partition, from, to: 0 });
            }
            shared.topic_is(topic.as_str().into(), id);
        }
    }

    /// What was read of the new topic so far has moved the watermarks past all that comes before it. What
    /// is at work would move them once more.
    fn set_back(&self, shared: &Shared, partitions: &[Partition], id: &str) {
        while shared.queue.drain(partitions, patience::AGAIN) > 0 && !self.leave.is_cancelled() {}
        for partition in partitions {
            let set_back = || self.processor.set_back(partition, id);
            let doing = "setting a watermark back";
            let (on, of) = ((&self.runtime, &self.leave), (&self.processor, shared));
            let _until_it_leaves = patience::ask(on, of, doing, set_back);
        }
        let mut lanes = shared.lanes();
        partitions.iter().for_each(|partition| lanes.assign(partition.clone(), None));
    }

    /// Most errors of a partition pass: brokers that are away, a topic that is not there yet.
    pub(super) fn failed(&mut self, at: Place, code: Code, text: &str) -> Result<(), RunError> {
        match code {
            Code::AutoOffsetReset => Err(RunError::OffsetGone {
                group: self.group.clone(),
                consumer_id: self.processor.inbox().consumer_id(),
                topic: at.topic,
                partition: at.partition,
                text: text.to_owned(),
            }),
            Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed => {
                Err(RunError::Fatal(KafkaError::MessageConsumption(code)))
            }
            _ => {
                let Place { topic, partition, offset } = at;
                if self.said.insert((topic.clone(), format!("{code:?}"))) {
                    tracing::warn!(
                        topic,
                        partition,
                        offset,
                        error = text,
                        "Kafka has an error for a partition, of which nothing is read meanwhile; \
                         is the topic there?"
                    );
                } else {
                    tracing::debug!(topic, partition, offset, error = text, "the same error again");
                }
                Ok(())
            }
        }
    }
}

/// What the broker understands otherwise than it looks: with `group.protocol=consumer`, patterns are
/// matched against whole names.
pub(super) fn odd_pattern<'a>(topics: &'a [String], config: &ClientConfig) -> Option<&'a str> {
    let by_broker = config.get("group.protocol") == Some("consumer");
    let whole = |pattern: &str| [".*", ".+", "$"].iter().any(|end| pattern.ends_with(end));
    let mut patterns = topics.iter().filter(|topic| topic.starts_with('^'));
    patterns.find(|pattern| by_broker && !whole(pattern)).map(String::as_str)
}

pub(super) fn say_anew(consumer: &str, topic: &str) {
    tracing::error!(
        consumer,
        topic,
        "the topic was deleted and recreated: its partitions are read from their beginnings. Records \
         of the old one that were not read yet have no effect here. If this consumer was reading meanwhile, \
         the order of keys may be broken: records of the new one that it read in the seconds before this \
         was noticed have taken effect before earlier ones of their keys"
    );
}

/// The broker's ids of the partitions' topics; nothing where it does not answer.
pub(super) fn ids(
    consumer: &BaseConsumer<impl ConsumerContext>,
    partitions: &[Partition],
) -> HashMap<String, String> {
    let names: HashSet<&str> = partitions.iter().map(|(topic, _)| &**topic).collect();
    if names.is_empty() {
        return HashMap::new();
    }
    native::topic_ids(consumer, &names.into_iter().collect::<Vec<_>>(), ASK).into_iter().collect()
}

/// What a commit says that has no topic's id to say.
const MARK: &str = "outbox-idempotency";

/// By which a consumer's commits are told from those of another consumer in its group, which has other effects.
pub(super) fn seal(consumer: &str) -> String {
    digest(&[consumer.as_bytes()]).simple().to_string().chars().take(12).collect()
}

/// What a commit says.
pub(super) fn mark(topic_id: Option<&str>, seal: &str) -> String {
    format!("{}/{seal}", topic_id.unwrap_or(MARK))
}

/// The topic's id, and whether a commit that says so is ours. Earlier versions had no seal.
fn read_mark(said: &str, seal: &str) -> (Option<String>, bool) {
    let (what, by) = said.split_once('/').map_or((said, None), |(what, by)| (what, Some(by)));
    let topic_id = is_id(what).then(|| what.to_owned());
    let is_marked = topic_id.is_some() || what == MARK;
    (topic_id, is_marked && by.is_none_or(|by| by == seal))
}

/// Where a partition continues, and of which topic that is, where it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) offset: i64,
    pub(super) topic_id: Option<String>,
    /// Whether a member of this crate has committed it, or the database knows it.
    pub(super) ours: bool,
}

/// Of topics that the broker does not tell now, what they were when reading continued last.
pub(super) fn unanswered(
    starts: &HashMap<Partition, Start>,
    ids: &HashMap<String, String>,
) -> Vec<(Arc<str>, String)> {
    let untold = starts.iter().filter(|((topic, _), _)| !ids.contains_key(&**topic));
    let known = untold.filter_map(|((topic, _), start)| Some((topic, start.topic_id.as_ref()?)));
    known.map(|(topic, id)| (Arc::clone(topic), id.clone())).collect()
}

/// Where a group continues, of partitions that it knows; `None` where the broker does not answer. Its
/// members give the topic's id along with an offset.
pub(super) fn committed(
    consumer: &BaseConsumer<impl ConsumerContext>,
    list: &rdkafka::TopicPartitionList,
    seal: &str,
) -> Option<HashMap<Partition, Start>> {
    let found = match consumer.committed_offsets(list.clone(), ASK) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "where the group continues is not known here; records that are gone \
                            since then would not be noticed");
            return None;
        }
    };
    let elements = found.elements();
    let offsets = elements.iter().filter_map(|one| match one.offset() {
        Offset::Offset(offset) => {
            let (topic_id, ours) = read_mark(one.metadata(), seal);
            Some(((Arc::from(one.topic()), one.partition()), Start { offset, topic_id, ours }))
        }
        _ => None,
    });
    Some(offsets.collect())
}

/// Whether a commit's metadata is ours: others may write there what they like.
fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_ours_if_this_consumer_made_it_or_an_earlier_version() {
        let (ours, others) = (seal("billing"), seal("mail"));
        let id = "0123456789abcdef0123456789ABCDEF".to_owned();
        let known = || Some(id.clone());
        assert_eq!(read_mark(&mark(Some(&id), &ours), &ours), (known(), true));
        assert_eq!(read_mark(&mark(Some(&id), &others), &ours), (known(), false));
        assert_eq!(read_mark(&mark(None, &ours), &ours), (None, true));
        assert_eq!(read_mark(&mark(None, &others), &ours), (None, false));
        assert_eq!(read_mark(&id, &ours), (known(), true));
        assert_eq!(read_mark(MARK, &ours), (None, true));
        assert_eq!(read_mark("", &ours), (None, false));
    }

    #[test]
    fn what_a_topic_was_is_known_where_the_broker_does_not_say_what_it_is() {
        let start =
            |id: Option<&str>| Start { offset: 5, topic_id: id.map(str::to_owned), ours: true };
        let starts = HashMap::from([
            (("told".into(), 0), start(Some("1"))),
            (("untold".into(), 1), start(Some("2"))),
            (("new".into(), 0), start(None)),
        ]);
        let ids = HashMap::from([("told".to_owned(), "3".to_owned())]);
        assert_eq!(unanswered(&starts, &ids), [("untold".into(), "2".to_owned())]);
    }

    #[test]
    fn a_pattern_that_the_broker_takes_for_a_whole_name_is_told() {
        let odd = |protocol: &str, topic: &str| {
            let mut config = ClientConfig::new();
            config.set("group.protocol", protocol);
            odd_pattern(&[topic.to_owned()], &config).is_some()
        };
        assert!(odd("consumer", "^orders"));
        assert!(odd("consumer", "^orders[.]"));
        for whole in ["^orders.*", "^orders[.].+", "^orders$", "orders"] {
            assert!(!odd("consumer", whole), "{whole}");
        }
        assert!(!odd("classic", "^orders"), "librdkafka looks for it anywhere in a name");
    }
}
