//! What the server and its client say, as the relay's errors.

use serde::Deserialize;

use super::settings::Settings;
use crate::sink::{BoxError, SinkError, unavailable};

/// Nothing is stored, and the stream's last message of a subject is another one than was expected.
pub(super) const WRONG_LAST: [u16; 2] = [10_071, 10_164];
/// There is no such stream.
pub(super) const NO_STREAM: u16 = 10_059;
/// There is no such message.
pub(super) const NO_MESSAGE: u16 = 10_037;

/// An error as JetStream answers.
#[derive(Clone, Debug, Deserialize, thiserror::Error, PartialEq, Eq)]
#[error("{description} (JetStream's error {err_code})")]
pub(super) struct ApiError {
    #[serde(default)]
    pub(super) err_code: u16,
    #[serde(default)]
    pub(super) description: String,
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
            Failed::Refused(error) => unavailable(doing, error),
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
