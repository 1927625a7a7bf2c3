//! Offsets of the group that no member of this crate has committed.
//!
//! Whoever joins the group with a program of another kind, or sets its offsets, has records passed over that
//! have no effect here, and nothing else would tell.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use super::topics::Start;
use crate::{alert::Alert, dispatch::Partition, processor::Processor};

/// So many are remembered as said; beyond that some are said again.
const SAID_MAX: usize = 10_000;

/// Those that were said.
#[derive(Default)]
pub(super) struct Foreign(Mutex<HashSet<(Partition, i64)>>);

impl Foreign {
    /// Looks where partitions that came continue. `ids` has the topics whose ids the broker tells: commits for
    /// others bore no mark in earlier versions.
    pub(super) fn look(
        &self,
        processor: &Processor,
        group: &str,
        starts: &HashMap<Partition, Start>,
        ids: &HashMap<String, String>,
    ) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= SAID_MAX {
            said.clear();
        }
        for (partition, offset) in foreign(starts, ids) {
            let (topic, number) = partition;
            if !said.insert((partition.clone(), offset)) {
                continue;
            }
            let consumer = processor.inbox().consumer().to_owned();
            tracing::error!(
                consumer,
                group,
                topic = &**topic,
                partition = number,
                offset,
                "the group's offset was committed by another program, or under another consumer's name (each \
                 consumer needs a group of its own): records before offset {offset} that the other one has \
                 read have no effect here. If a person set the offset on purpose, or another consumer was \
                 replaced by this one, nothing is to be done. Else end the other member \
                 (kafka-consumer-groups.sh --describe --members --group {group}), stop this consumer and set \
                 the offset back to the beginning, or to a lower one at which the other had not joined: \
                 kafka-consumer-groups.sh --group {group} --topic {topic}:{number} --reset-offsets \
                 --to-earliest --execute; {}. A time (--to-datetime) is no such place: records carry the time \
                 of their event, and the relay may have sent them later",
                processor.of_copies()
            );
            let topic = topic.to_string();
            processor.raise(&Alert::Foreign { consumer, topic, partition: *number, offset });
        }
    }
}

/// At offset 0 nothing was passed over.
fn foreign<'a>(
    starts: &'a HashMap<Partition, Start>,
    ids: &HashMap<String, String>,
) -> impl Iterator<Item = (&'a Partition, i64)> {
    let told = starts.iter().filter(|((topic, _), _)| ids.contains_key(&**topic));
    told.filter(|(_, start)| !start.ours && start.offset > 0).map(|(at, start)| (at, start.offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_offset_that_somebody_else_has_committed_is_told() {
        let start = |offset, ours| Start { offset, topic_id: None, ours };
        let starts = HashMap::from([
            (("told".into(), 0), start(5, false)),
            (("told".into(), 1), start(5, true)),
            (("told".into(), 2), start(0, false)),
            (("of an old broker".into(), 0), start(5, false)),
        ]);
        let ids = HashMap::from([("told".to_owned(), "3".to_owned())]);
        let found: Vec<_> = foreign(&starts, &ids).collect();
        assert_eq!(found, [(&("told".into(), 0), 5)]);
    }
}
