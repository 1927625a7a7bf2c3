//! How a release or a discard is announced in the WAL.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The content of the WAL message that announces a release: its prefix is `outbox`. Which rows
/// belong to the release is in the table, and nowhere else: any role may write such a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Name of the relay that it is for.
    pub relay: String,
    /// The release's id.
    pub release: Uuid,
}

impl Message {
    /// Reads a message's content.
    ///
    /// # Errors
    /// It is no message of this version: ignore it.
    pub fn decode(content: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(content)
    }
}
