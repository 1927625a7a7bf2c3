//! Which cluster a server is of, and where its WAL ends.

use super::lsn::Lsn;

/// Which cluster answers, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// `system_identifier`, decimal. A promoted standby shares it with its primary.
    pub system_id: String,
    /// The timeline that the server writes on (a standby: replays).
    pub timeline: u32,
    /// The protocol's `xlogpos`: the end of what is flushed to disk (a standby: replayed).
    pub flush_lsn: Lsn,
}
