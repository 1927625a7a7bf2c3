//! How the relay's own headers are named.

use serde::Deserialize;

/// How the relay's own headers are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderStyle {
    /// `outbox-id` and so on, see [`crate::core::header`].
    #[default]
    Outbox,
    /// The CloudEvents Kafka binding, binary mode, see [`crate::core::header::cloudevents`].
    CloudEvents,
}
