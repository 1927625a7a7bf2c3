//! Records that no relay's position comes with, though one relay is to feed the topic alone: anyone who may write to a
//! topic can put one there, so it must not end the consumer. Each is a dead letter without a claim, and a replay looks
//! its id up.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Processor, Sorted, aside::untellable};
use crate::{failure::Failure, message::RawMessage};

/// The code of a record that names no relay.
const NO_RELAY: &str = "no-relay";
/// The code of one that names the relay, and has no position of a relay's.
const NO_POSITION: &str = "no-position";

/// Topics, and codes of their records.
pub(super) type Told = Mutex<HashSet<(Arc<str>, String)>>;

/// Why there is no position to go by.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// The message's fault.
    Message(Why),
    /// It names another relay: the setting may be wrong, or two relays feed the topic.
    Relay(String),
}

/// A dead letter's code and text.
pub(super) type Why = (&'static str, String);

impl Stranger {
    pub(super) fn no_relay(relay: &str) -> Self {
        let why = format!("it names no relay, and {relay:?} is to feed the topic alone");
        Stranger::Message((NO_RELAY, why))
    }

    pub(super) fn no_position(why: String) -> Self {
        Stranger::Message((NO_POSITION, why))
    }
}

/// What to type so that reading continues at an offset.
pub(super) fn continue_at(consumer_id: i32, topic: &str, partition: i32, next: i64) -> String {
    let topic = topic.replace('\'', "''");
    format!(
        "insert into inbox.watermarks (consumer_id, topic, partition, next_offset) values ({consumer_id}, '{topic}', \
         {partition}, {next}) on conflict (consumer_id, topic, partition) do update set next_offset = {next}"
    )
}

impl Sorted<'_> {
    /// Why one of those outside is given up.
    pub(super) fn why(&self, message: &RawMessage) -> Failure {
        let strange = self.strange.iter().find(|(source, _)| *source == message.source);
        let strange = strange.map(|(_, (code, why))| Failure::permanent(*code, why.as_str()));
        strange.unwrap_or_else(|| untellable(&message.id))
    }
}

impl Processor {
    /// What has reading continue at an offset, as a person types it when the consumer is stopped.
    #[cfg(feature = "kafka-plain")]
    pub(crate) fn to_read_from(
        &self,
        (topic, partition): &(Arc<str>, i32),
        offset: i64,
        group: &str,
    ) -> String {
        let inbox = &self.shared.inbox;
        match self.by_partition() {
            true => {
                let stored = inbox.repertoire().text(topic);
                continue_at(inbox.consumer_id(), &stored, *partition, offset)
            }
            false => format!(
                "kafka-consumer-groups.sh --group {group} --topic {topic}:{partition} --reset-offsets --to-offset \
                 {offset} --execute"
            ),
        }
    }

    /// Once for each topic and kind: if no relay feeds the topic, it will be so of each record.
    pub(super) fn tell_stranger(&self, message: &RawMessage, failure: &Failure) {
        let code = failure.code();
        if ![NO_RELAY, NO_POSITION].contains(&code) {
            return;
        }
        let topic = &message.source.topic;
        let told = &self.shared.strange;
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert((topic.clone(), code.to_owned())) {
            tracing::error!(
                consumer = self.shared.inbox.consumer(),
                %topic,
                partition = message.source.partition,
                offset = message.source.offset,
                code,
                error = failure.text(),
                "a record did not come from the relay, though with Dedup::Watermark the relay feeds the topic alone: it \
                 is a dead letter, and so is each further one; reading continues behind it. Give Write on the topic \
                 to the relay's principal alone, or use Dedup::Rows if others write to it on purpose; to have these \
                 records handled: outbox-relay inbox dead-letters replay --code {code}"
            );
        }
    }
}
