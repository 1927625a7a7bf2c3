//! What can go wrong between the inbox and its database, sorted by what the caller must do.

use std::error::Error;

use tokio_postgres::error::SqlState;

/// Why the inbox has no answer. Nothing that was written in the transaction is there, but for
/// [`InboxError::Unavailable`], which can't know.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// The database is away, overloaded or shutting down. Deliver the message again later: if it
    /// had taken effect after all, it will be a duplicate then.
    #[error("the consumer's database is unavailable")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// Another transaction was in the way (serialization, deadlock, lock timeout). Run it again.
    #[error("another transaction was in the way")]
    Conflict(#[source] tokio_postgres::Error),
    /// The database refused, and will refuse again until a person changes something: a migration
    /// is missing, or a right.
    #[error("{doing} failed: {remedy}")]
    Refused {
        /// What the inbox was doing.
        doing: &'static str,
        /// What to look at.
        remedy: &'static str,
        /// The database's answer.
        source: tokio_postgres::Error,
    },
    /// A watermark can't tell whether a message is new: it names another relay or cluster, or the
    /// database has lost what it had committed. Nothing was touched.
    #[error("the watermark can't tell: {0}")]
    Unsafe(String),
    /// The database refused to commit the work, as a deferred constraint does.
    #[error("the transaction could not be committed, so nothing was written")]
    Uncommitted(#[source] tokio_postgres::Error),
    /// The work said that it succeeded, but one of its statements had failed, and PostgreSQL keeps
    /// nothing of such a transaction. Return the error of each statement instead of ignoring it.
    #[error("a statement of the transaction had failed (SQLSTATE {0}), so nothing was written")]
    Aborted(String),
    /// The work kept its [`crate::Tx`] beyond its end, so the transaction could not be committed
    /// safely. Don't move it into a task.
    #[error("the transaction was kept beyond the end of its work, and was rolled back")]
    Escaped,
}

/// Why [`crate::Inbox::once`] did nothing.
#[derive(Debug, thiserror::Error)]
pub enum OnceError<E> {
    /// The inbox failed.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The work failed, and everything was rolled back: the message is as good as new.
    #[error("the work failed, and was rolled back")]
    Work(E),
}

/// What an error of PostgreSQL asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// The database is away; it says nothing about the statement or the message.
    Outage,
    /// Run the transaction again.
    Conflict,
    /// These values will be refused again.
    Permanent,
    /// It may pass.
    Other,
}

/// By SQLSTATE (manual, appendix A).
pub(crate) fn sort(error: &tokio_postgres::Error) -> Sort {
    let Some(state) = error.code() else {
        let io = error.source().is_some_and(|source| source.is::<std::io::Error>());
        return if io || error.is_closed() { Sort::Outage } else { Sort::Other };
    };
    if [
        &SqlState::T_R_SERIALIZATION_FAILURE,
        &SqlState::T_R_DEADLOCK_DETECTED,
        &SqlState::LOCK_NOT_AVAILABLE,
    ]
    .contains(&state)
    {
        return Sort::Conflict;
    }
    match state.code().get(..2) {
        // 25006: a standby after a failover. 57014, a cancelled statement, is not an outage.
        _ if *state == SqlState::READ_ONLY_SQL_TRANSACTION => Sort::Outage,
        _ if *state == SqlState::QUERY_CANCELED => Sort::Other,
        Some("08" | "53" | "57" | "58" | "XX") => Sort::Outage,
        Some("22" | "23") => Sort::Permanent,
        _ => Sort::Other,
    }
}

impl InboxError {
    /// For the inbox's own statements.
    pub(crate) fn of(doing: &'static str, source: tokio_postgres::Error) -> Self {
        // Ours are quick: one that `statement_timeout` ends has waited for another transaction.
        if source.code() == Some(&SqlState::QUERY_CANCELED) {
            return InboxError::Conflict(source);
        }
        match sort(&source) {
            _ if ended_the_session(&source) => InboxError::Unavailable(source.into()),
            Sort::Outage => InboxError::Unavailable(source.into()),
            Sort::Conflict => InboxError::Conflict(source),
            Sort::Permanent | Sort::Other => InboxError::Refused {
                doing,
                remedy: "is the migration set inbox applied, and are docs/ROLES.md's grants given?",
                source,
            },
        }
    }
}

/// Whether the server ended the session because a transaction took longer, or rested longer, than it
/// lets one: the handler was slow, or the line was broken meanwhile.
pub(crate) fn ended_the_session(error: &tokio_postgres::Error) -> bool {
    // 25P04, `transaction_timeout`, is new in PostgreSQL 17.
    error.code().is_some_and(|state| ["25P03", "25P04"].contains(&state.code()))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// As PostgreSQL's manual writes it, for errors and dead letters.
pub(crate) fn state_of(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| "none".to_owned(), |state| state.code().to_owned())
}
