//! What the server and its client say, as the relay's errors.

use serde::Deserialize;

use super::settings::Settings;
use crate::sink::{BoxError, PROGRESS_BYTES_MAX, SinkError, unavailable};

/// Nothing is stored, and the stream's last message of a subject is another one than was expected.
pub(super) const WRONG_LAST: [u16; 2] = [10_071, 10_164];
/// There is no such stream.
pub(super) const NO_STREAM: u16 = 10_059;
/// There is no such message.
pub(super) const NO_MESSAGE: u16 = 10_037;

/// The stream can't store it: mostly it is full, and discards what is new.
const NOT_STORED: u16 = 10_077;
/// The message is larger than the stream's `max_msg_size`.
const TOO_LARGE: u16 = 10_054;

/// An error as JetStream answers.
#[derive(Clone, Debug, Deserialize, thiserror::Error, PartialEq, Eq)]
#[error("{description} (JetStream's error {err_code})")]
pub(super) struct ApiError {
    #[serde(default)]
    pub(super) err_code: u16,
    #[serde(default)]
    pub(super) description: String,
}

impl ApiError {
    /// With what waits and what to type, where a limit of the stream is why.
    pub(super) fn explained(self, settings: &Settings) -> BoxError {
        const MEANING: &str =
            "Nothing is lost: events wait in PostgreSQL, and the relay tries again by itself";
        let (stream, progress) = (&settings.stream, settings.progress_subject());
        let full = |limit: &str| {
            format!(
                "{self}: the stream {stream} is full, and deletes nothing by itself. {MEANING}; \
                 `nats stream edit {stream} {limit}=-1` (or a higher limit), or delete what all have read: \
                 `nats stream purge {stream} --subject SUBJECT --seq N`, where N is the first that is not read yet. \
                 Without --seq a purge also deletes what the relay stores meanwhile. Never purge {progress}"
            )
        };
        let said = |words: &str| self.err_code == NOT_STORED && self.description.contains(words);
        let explained = if said("maximum bytes exceeded") {
            full("--max-bytes")
        } else if said("maximum messages exceeded") {
            full("--max-msgs")
        } else if said("maximum messages per subject exceeded") {
            full("--max-msgs-per-subject")
        } else if self.err_code == TOO_LARGE {
            // A record that is too large is parked, and not sent again.
            format!(
                "{self}: the relay's progress is larger than a message of the stream {stream} may be (max_msg_size). \
                 {MEANING}; `nats stream edit {stream} --max-msg-size=-1` (or {PROGRESS_BYTES_MAX} at least)"
            )
        } else {
            return self.into();
        };
        explained.into()
    }
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The server says no: nothing of it was stored.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// No one knows.
    #[error(transparent)]
    Unknown(BoxError),
    /// It was not sent: there is no connection.
    #[error(transparent)]
    NotSent(#[from] SinkError),
}

impl Failed {
    /// As an error of the sink's, where no answer of the server means anything else.
    pub(super) fn into_error(self, doing: impl Into<String>, settings: &Settings) -> SinkError {
        match self {
            Failed::Refused(error) if error.err_code == NO_STREAM => SinkError::Misconfigured {
                what: format!("the stream {} does not exist", settings.stream),
                remedy: format!(
                    "create it, with a subject for each of your topics in place of TOPIC.*: {}; or correct \
                     sink.nats.stream; events wait in PostgreSQL meanwhile. If it was deleted, what it had is gone \
                     with it: once it is there, the next halt says how that is published again",
                    create(settings)
                ),
            },
            Failed::Refused(error) => unavailable(doing, error.explained(settings)),
            Failed::Unknown(error) => unavailable(doing, error),
            Failed::NotSent(error) => error,
        }
    }
}

/// The progress subject is this relay's own: other relays have other streams, and subjects may not overlap.
fn create(settings: &Settings) -> String {
    format!(
        "`nats stream add {} --subjects 'TOPIC.*,{}' --storage file --retention limits --discard new --allow-batch \
         --allow-rollup --defaults`",
        settings.stream,
        settings.progress_subject()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::nats::settings::of_a_test;

    #[test]
    fn a_limit_of_the_stream_is_named_with_the_command_that_raises_it() {
        let told = |err_code, description: &str| {
            let error = ApiError { err_code, description: description.into() };
            error.explained(&of_a_test()).to_string()
        };
        for (err_code, said, flag) in [
            (NOT_STORED, "maximum bytes exceeded", "--max-bytes=-1"),
            (NOT_STORED, "maximum messages exceeded", "--max-msgs=-1"),
            (NOT_STORED, "maximum messages per subject exceeded", "--max-msgs-per-subject=-1"),
            (TOO_LARGE, "message size exceeds maximum allowed", "--max-msg-size=-1"),
        ] {
            let text = told(err_code, said);
            let command = format!("`nats stream edit ORDERS {flag}`");
            for words in [said, command.as_str(), "Nothing is lost: events wait"] {
                assert!(text.contains(words), "{text}");
            }
        }
        let other = told(10_008, "JetStream system temporarily unavailable");
        assert!(!other.contains("nats stream"), "{other}");
    }
}
