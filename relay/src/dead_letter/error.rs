//! Why the table of dead letters can't be used.

use tokio_postgres::error::SqlState;

/// Why the table of dead letters can't be used, sorted by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The session broke or the server can't do it now: start again from progress.
    #[error("{doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// The database's answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// It has answered that it does not take these events: a person must look at the table.
    #[error("parking events ({events})")]
    Refused {
        /// Which: the first of them, and how many more.
        events: String,
        /// The database's answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// There is no such table: a person must make it.
    #[error("{what}; {remedy}")]
    Misconfigured {
        /// What is wrong.
        what: String,
        /// What fixes it.
        remedy: String,
    },
}

impl DeadLetterError {
    /// Whether only somebody else's lock was in the way, on the table or a row: nothing was changed, and
    /// it may be tried again.
    pub fn is_locked(&self) -> bool {
        let DeadLetterError::Database { source, .. } = self else { return false };
        let codes = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
        source.code().is_some_and(|code| codes.contains(code))
    }
}
