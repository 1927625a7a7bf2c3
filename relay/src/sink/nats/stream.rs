//! What the stream must be, so that records and progress can be stored in one step and progress stays.

use serde::Deserialize;

use super::{link::Link, subject::matches};
use crate::sink::{PROGRESS_BYTES_MAX, SinkError};

/// A stream's settings, as far as they decide anything here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stream {
    pub(super) subjects: Vec<String>,
    retention: String,
    storage: String,
    /// Bytes of a message with its headers; not positive: no limit but the server's.
    max_msg_size: i64,
    max_msgs_per_subject: i64,
    discard_new_per_subject: bool,
    subject_transform: Option<Transform>,
    allow_atomic: bool,
    allow_rollup_hdrs: bool,
    allow_msg_ttl: bool,
    sealed: bool,
    discard: String,
    max_msgs: i64,
    max_bytes: i64,
    /// In nanoseconds; 0: for ever.
    max_age: i64,
    num_replicas: i64,
}

/// Messages of `src` are stored under another subject than they were published to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Transform {
    src: String,
}

impl Transform {
    fn moves(&self, subject: &str) -> bool {
        self.src.is_empty() || matches(&self.src, subject)
    }
}

#[derive(Deserialize)]
struct Info {
    config: Stream,
}

impl Stream {
    /// The stream as it is now.
    pub(super) async fn read(link: &Link) -> Result<Self, SinkError> {
        let name = &link.settings.stream;
        let info = link.api(&format!("STREAM.INFO.{name}"), &serde_json::Value::Null).await;
        let info: Info = info.map_err(|error| {
            error.into_error(format!("looking at the stream {name}"), &link.settings)
        })?;
        Ok(info.config)
    }

    /// Whether it stores messages of this subject.
    pub(super) fn takes(&self, subject: &str) -> bool {
        self.subjects.iter().any(|filter| matches(filter, subject))
    }

    /// Bytes of a message, of which the server takes `server_max`.
    pub(super) fn message_bytes_max(&self, server_max: usize) -> usize {
        match usize::try_from(self.max_msg_size) {
            Ok(max) if max > 0 => max.min(server_max),
            _ => server_max,
        }
    }

    /// Whether a message can say that no age ends it, whatever the stream's `max_age`.
    pub(super) fn keeps_for_ever(&self) -> bool {
        self.allow_msg_ttl
    }

    /// How often it is stored.
    pub(super) fn replicas(&self) -> i64 {
        self.num_replicas
    }

    /// Whether it makes room by deleting, and what to type.
    pub(super) fn deletes_unread(&self, name: &str) -> Option<(String, String)> {
        if self.max_msgs_per_subject > 0 && !(self.discard == "new" && self.discard_new_per_subject)
        {
            return Some((
                format!(
                    "the stream {name} keeps {} message(s) of each subject: older ones are deleted, whether they were \
                     read or not",
                    self.max_msgs_per_subject
                ),
                format!(
                    "`nats stream edit {name} --max-msgs-per-subject=-1`, unless only the newest count"
                ),
            ));
        }
        if self.discard == "new" || (self.max_msgs <= 0 && self.max_bytes <= 0) {
            return None;
        }
        Some((
            format!(
                "the stream {name} deletes its oldest messages at a limit (discard old), whether they were read or not"
            ),
            format!(
                "`nats stream edit {name} --discard new`: the relay then waits, and nothing is deleted unread"
            ),
        ))
    }

    /// What is worth knowing beforehand, each with its remedy.
    pub(super) fn advice(&self, name: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        found.extend(self.deletes_unread(name));
        if self.message_bytes_max(PROGRESS_BYTES_MAX) < PROGRESS_BYTES_MAX {
            let what = format!(
                "the stream {name} takes messages of {} bytes (max_msg_size), and a progress record may have \
                 {PROGRESS_BYTES_MAX}: larger events are parked, and once a progress record is larger, all events wait",
                self.max_msg_size
            );
            found.push((what, format!("`nats stream edit {name} --max-msg-size=-1`")));
        }
        if self.subject_transform.is_some() {
            let what = format!(
                "the stream {name} stores messages under other subjects than they are published to \
                 (subject_transform): who reads the events' own subjects does not see them"
            );
            found.push((
                what,
                format!("`nats stream edit {name} --no-transform`, unless it is meant"),
            ));
        }
        if self.num_replicas < 2 {
            let what = format!(
                "the stream {name} is stored once, and the server writes to disk every two minutes: a power cut can \
                 lose what it confirmed. The relay notices at its next start, and publishes it again"
            );
            found.push((what, "use three replicas, or sync_interval: always on the server".into()));
        }
        found
    }

    /// # Errors
    /// `Misconfigured` with all that keeps it from being the relay's.
    pub(super) fn verify(&self, name: &str, progress_subject: &str) -> Result<(), SinkError> {
        // Whatever else is wrong with it, the server refuses every change of it.
        if self.sealed {
            return Err(SinkError::Misconfigured {
                what: format!(
                    "the stream {name} can't be used: it is sealed: it takes nothing more"
                ),
                remedy: format!(
                    "a seal can't be taken off, and the stream keeps its subjects: once its messages are read, or \
                     copied with `nats stream backup`, remove it with `nats stream rm {name}`, and make it again"
                ),
            });
        }
        let mut wrong = Vec::new();
        let mut remedies = Vec::new();
        let mut demand = |holds: bool, what: String, remedy: String| {
            if !holds {
                wrong.push(what);
                remedies.push(remedy);
            }
        };
        demand(
            self.allow_atomic,
            "it takes no atomic batches (allow_atomic), which exactly-once needs".into(),
            format!("`nats stream edit {name} --allow-batch` (servers from 2.12 on)"),
        );
        demand(
            self.allow_rollup_hdrs,
            "it allows no roll-ups (allow_rollup_hdrs), by which older progress is removed".into(),
            format!("`nats stream edit {name} --allow-rollup`"),
        );
        demand(
            self.takes(progress_subject),
            format!("it has no subject {progress_subject}, where progress is stored"),
            "add that subject to the stream, or set sink.nats.progress_subject to a subject of the stream that no consumer reads"
                .into(),
        );
        demand(
            !self.subject_transform.as_ref().is_some_and(|it| it.moves(progress_subject)),
            format!(
                "it stores what is published to {progress_subject} under another subject \
                 (subject_transform), so progress is not found"
            ),
            format!("`nats stream edit {name} --no-transform`"),
        );
        demand(
            self.retention == "limits",
            format!(
                "its retention is {:?}, which deletes progress that nobody consumes",
                self.retention
            ),
            "use a stream with retention limits".into(),
        );
        demand(
            self.storage == "file",
            format!(
                "its storage is {:?}: a restart of the server forgets records and progress",
                self.storage
            ),
            "use a stream with storage file".into(),
        );
        demand(
            self.max_age == 0 || self.allow_msg_ttl,
            "it deletes what has a certain age (max_age), progress too".into(),
            format!(
                "`nats stream edit {name} --allow-msg-ttl`: the relay then stores its progress as a message that stays, and \
                 all others go at that age"
            ),
        );
        if wrong.is_empty() {
            return Ok(());
        }
        Err(SinkError::Misconfigured {
            what: format!("the stream {name} can't be used: {}", wrong.join("; ")),
            remedy: remedies.join("; "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitting() -> Stream {
        Stream {
            subjects: vec!["orders.*".into(), "outbox-relay-progress.>".into()],
            retention: "limits".into(),
            storage: "file".into(),
            allow_atomic: true,
            allow_rollup_hdrs: true,
            ..Stream::default()
        }
    }

    #[test]
    fn what_a_stream_lacks_is_named_all_at_once() {
        let progress = "outbox-relay-progress.relay";
        fitting().verify("ORDERS", progress).expect("it fits");
        let wrong = Stream { allow_atomic: false, storage: "memory".into(), ..fitting() };
        let error = wrong.verify("ORDERS", progress).expect_err("two things are wrong").to_string();
        for part in ["allow_atomic", "nats stream edit ORDERS --allow-batch", "\"memory\""] {
            assert!(error.contains(part), "{error}");
        }
        let error = fitting().verify("ORDERS", "progress.relay").expect_err("no such subject");
        assert!(error.to_string().contains("progress.relay"), "{error}");
        for wrong in [
            Stream { allow_rollup_hdrs: false, ..fitting() },
            Stream { retention: "workqueue".into(), ..fitting() },
            Stream { subject_transform: Some(Transform::default()), ..fitting() },
            Stream { max_age: 1, ..fitting() },
        ] {
            wrong.verify("ORDERS", progress).expect_err("it does not fit");
        }
        let sealed = Stream { sealed: true, allow_rollup_hdrs: false, ..fitting() };
        let error = sealed.verify("ORDERS", progress).expect_err("it is sealed").to_string();
        assert!(error.contains("nats stream rm") && !error.contains("nats stream edit"), "{error}");
        let aging = Stream { max_age: 1, allow_msg_ttl: true, ..fitting() };
        aging.verify("ORDERS", progress).expect("progress can stay");
    }

    #[test]
    fn a_limit_below_what_a_progress_record_may_have_is_named_in_advance() {
        let told = |max_msg_size| {
            let advice = Stream { max_msg_size, ..fitting() }.advice("ORDERS");
            advice.iter().any(|(_, remedy)| remedy.contains("ORDERS --max-msg-size=-1"))
        };
        assert_eq!([-1, 0, 65_999, 66_000].map(told), [false, false, true, false]);
    }

    #[test]
    fn the_lower_of_both_limits_counts() {
        let of = |max_msg_size| Stream { max_msg_size, ..fitting() }.message_bytes_max(1 << 20);
        assert_eq!((of(-1), of(0), of(1000), of(2 << 20)), (1 << 20, 1 << 20, 1000, 1 << 20));
    }
}
