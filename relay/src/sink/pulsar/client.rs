//! The cluster as it is opened, and its words as the relay's.

use std::sync::{Arc, Mutex};

use outbox_relay_pulsar::{Cluster, Said, What};

use super::settings::Settings;
use crate::sink::{self, BoxError, SinkError, message::Refusal};

/// A cluster that is opened when it is first needed.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) settings: Arc<Settings>,
    opened: Mutex<Option<Arc<dyn Cluster>>>,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Self {
        Client { settings: Arc::new(settings), opened: Mutex::default() }
    }

    /// One that is open already.
    #[cfg(test)]
    pub(super) fn over(settings: Settings, cluster: Arc<dyn Cluster>) -> Self {
        Client { settings: Arc::new(settings), opened: Mutex::new(Some(cluster)) }
    }

    /// # Errors
    /// `Misconfigured` where a file can't be read.
    pub(super) fn cluster(&self) -> Result<Arc<dyn Cluster>, SinkError> {
        let mut opened = self.opened.lock().expect("no one panics with it");
        if let Some(open) = opened.as_ref() {
            return Ok(Arc::clone(open));
        }
        let fresh = outbox_relay_pulsar::open(&self.settings.place()).map_err(|what| {
            SinkError::Misconfigured {
                what: format!("Pulsar can't be used: {what}"),
                remedy: "correct sink.pulsar.ca_file, sink.pulsar.certificate_file and sink.pulsar.key_file, or use a relay \
                         that is built with `--features pulsar` (docs/PULSAR.md)"
                    .into(),
            }
        })?;
        *opened = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    /// Its connections end with the last producer.
    pub(super) fn close(&self) {
        *self.opened.lock().expect("no one panics with it") = None;
    }
}

/// Nothing is certain, or nothing is said of a record.
pub(super) fn unavailable(doing: impl Into<String>, said: Said) -> SinkError {
    let source = match said.what {
        What::Unknown => BoxError::from(format!(
            "the broker does not know who asks ({said}): correct sink.pulsar.token_file or sink.pulsar.certificate_file"
        )),
        _ => said.into(),
    };
    sink::unavailable(doing, source)
}

/// A stable word, and what a person can do. Of a topic, or of a message that was sent there.
pub(super) fn refusal(topic: &str, said: &Said) -> Refusal {
    match said.what {
        What::Missing => {
            let error = format!(
                "the topic {topic} does not exist: create it (`pulsar-admin topics create-partitioned-topic`), then \
                 `outbox-relay dead-letters release --reason unknown_topic`"
            );
            ("unknown_topic", error)
        }
        What::Denied => {
            let error = format!(
                "the broker refuses it ({said}): give the relay's role the right to produce there (`pulsar-admin namespaces \
                 grant-permission`), then `outbox-relay dead-letters release --reason not_authorised`"
            );
            ("not_authorised", error)
        }
        What::TooLarge => {
            let error = format!(
                "the broker refuses it ({said}): raise the topic's maximum message size, or publish a reference to the data; and \
                 set sink.pulsar.message_bytes_max to what it takes"
            );
            ("too_large", error)
        }
        _ => {
            let error = format!(
                "the broker refuses it for the topic {topic} ({said}): correct the topic, or the event with `outbox-relay \
                 dead-letters edit`, and release it"
            );
            ("invalid_record", error)
        }
    }
}
