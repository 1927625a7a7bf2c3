//! What a start has connected to, for the steps that make a slot, repair, and begin the stream.

use std::sync::Arc;

use crate::{
    daemon::unfinished::Unfinished,
    postgres::{catalog::publication::Look, sql::SqlSession},
    sink::any::AnySink,
    source::connect::ReplicationConnection,
};

/// Each of it on the server that the session leads on.
pub(super) struct Connections<'a> {
    /// Holds the leader's lock.
    pub(super) session: &'a Arc<SqlSession>,
    pub(super) replication: ReplicationConnection,
    pub(super) sink: AnySink,
    /// How the publication is looked at on that server.
    pub(super) look: Look,
    /// What that server still does when this start has ended.
    pub(super) unfinished: &'a Unfinished,
}
