//! A connection that speaks the replication protocol, up to the moment the stream begins.
//!
//! Logs in with `replication=database`, runs the commands that come before the stream, and hands
//! the socket over with `START_REPLICATION`. What is in a slot or a publication is read over SQL
//! in `slot`; the stream itself is `stream`'s. Called by the source's task and by start-up.
//!
//! Commands are not cancel safe: one dropped half-way leaves its answer in the line, and the
//! next returns [`QueryError::Interrupted`]. Drop the connection then.

mod connection;
mod error;
mod login;

use self::login::ReplicationStartup;
pub use self::{
    connection::{Accepted, CreatedSlot, ReplicationConnection},
    error::{QueryError, StartError},
};
pub use super::command::{StreamOptions, is_slot_name};
use crate::postgres::{conninfo::ConnectSettings, dial::dial, error::ConnectError};

impl ReplicationConnection {
    /// Connects to the first host that fits. The URL's own `application_name` goes before the
    /// one given here. Settings are pinned (`pins`), whatever those of the role are.
    ///
    /// Cancel safe: dropped half-way, what was opened is closed.
    ///
    /// # Errors
    /// [`ConnectError`], sorted by whether waiting may help.
    pub async fn connect(
        settings: &ConnectSettings,
        application_name: &str,
    ) -> Result<Self, ConnectError> {
        let settings = &settings.renewed().await;
        // Boxed: the walk holds a whole login, which would be part of each caller's future.
        let startup = ReplicationStartup { settings, application_name };
        let connected = Box::pin(dial(settings, &startup)).await;
        connected.map_err(|e| e.naming(settings.database(), settings.user(), false))
    }
}
