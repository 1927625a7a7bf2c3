//! A record as a message.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    identity::{IdHeaders, stamped},
    native::Record,
};
use crate::message::{Message, RawMessage, Source};

/// Reads records; topics' names are kept once.
pub(super) struct Reader {
    id_headers: IdHeaders,
    names: HashMap<String, Arc<str>>,
    /// Topics with a record that has no time.
    undated: HashSet<Arc<str>>,
}

impl Reader {
    pub(super) fn new(id_headers: IdHeaders) -> Self {
        Reader { id_headers, names: HashMap::new(), undated: HashSet::new() }
    }

    pub(super) fn topic(&mut self, name: &str) -> Arc<str> {
        if let Some(topic) = self.names.get(name) {
            return Arc::clone(topic);
        }
        let topic: Arc<str> = name.into();
        self.names.insert(name.to_owned(), Arc::clone(&topic));
        topic
    }

    pub(super) fn message(&mut self, record: &Record<'_>) -> RawMessage {
        let topic = self.topic(record.topic());
        let (partition, offset, timestamp) =
            (record.partition(), record.offset(), record.timestamp());
        let headers = record.headers();
        let id = self.id_headers.identify(&headers, (&topic, partition, offset), timestamp);
        let source = Source::new(topic, partition, offset);
        if !id.is_dated() && self.undated.insert(Arc::clone(&source.topic)) {
            report_undated(&source.topic, partition, offset);
        }
        let (key, payload, timestamp) = (record.key(), record.payload(), stamped(timestamp));
        Message { id, key, payload, headers, timestamp, source, attempt: 1 }
    }
}

fn report_undated(topic: &str, partition: i32, offset: i64) {
    tracing::error!(
        topic,
        partition,
        offset,
        "a record's id carries no time, and the record no producer's: a copy of it could not be told \
         from a new message, so it becomes a dead letter with the code `undated`, as will all others \
         like it. If the topic has message.timestamp.type=LogAppendTime, type: kafka-configs.sh \
         --alter --topic {topic} --add-config message.timestamp.type=CreateTime. Else let its producer \
         send timestamps, or ids that are UUIDs of version 7. Then: outbox-relay inbox dead-letters \
         replay --code undated"
    );
}
