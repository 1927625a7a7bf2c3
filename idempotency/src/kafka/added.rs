//! Partitions that are added while a process runs: `auto.offset.reset=latest` is about what was there before.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use rdkafka::{ClientConfig, metadata::Metadata};

/// How many partitions each topic had when this process began.
#[derive(Default)]
pub(super) struct Counts(Mutex<Option<HashMap<String, i32>>>);

impl Counts {
    pub(super) fn learn(&self, cluster: &Metadata) {
        let topics = cluster.topics().iter();
        let count = |topics: usize| i32::try_from(topics).unwrap_or(i32::MAX);
        let found = topics.map(|topic| (topic.name().to_owned(), count(topic.partitions().len())));
        self.first(found.collect());
    }

    fn first(&self, found: HashMap<String, i32>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(found);
    }

    pub(super) fn are_known(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether the partition, or its topic, was not there then.
    pub(super) fn is_new(&self, topic: &str, partition: i32) -> bool {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = counts.as_ref().map(|counts| counts.get(topic).copied().unwrap_or(0));
        before.is_some_and(|before| partition >= before)
    }
}

/// Whether reading begins at the end where the group has no offset.
pub(super) fn begins_at_the_end(config: &ClientConfig) -> bool {
    let reset = config.get("auto.offset.reset").unwrap_or_default();
    ["latest", "largest", "end"].contains(&reset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_there_when_the_process_began_is_new() {
        let counts = Counts::default();
        assert!(!counts.is_new("a", 7), "nothing is known yet");
        counts.first(HashMap::from([("a".to_owned(), 2)]));
        counts.first(HashMap::from([("a".to_owned(), 9)]));
        assert!(!counts.is_new("a", 1));
        assert!(counts.is_new("a", 2));
        assert!(counts.is_new("b", 0), "a topic that appeared later");
    }
}
