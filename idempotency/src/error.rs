//! What can go wrong between the inbox and its database, sorted by what the caller must do.

use std::{borrow::Cow, error::Error};

use tokio_postgres::error::{Severity, SqlState};

/// Why the inbox has no answer. Nothing that was written in the transaction is there, but for
/// [`InboxError::Unavailable`], which can't know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    #[non_exhaustive]
    Refused {
        /// What the inbox was doing.
        doing: &'static str,
        /// What to look at, or to type.
        remedy: Cow<'static, str>,
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
    /// safely, and its session was ended. Don't move it into a task.
    #[error("the transaction was kept beyond the end of its work, and was rolled back")]
    Escaped,
    /// The work ended its transaction itself, by COMMIT or ROLLBACK among several statements. What it
    /// had written by then is there or not as it said, and so is the message's claim.
    #[error(
        "the work ended its transaction itself, so the message's claim and its effect may not be \
         stored together; return Ok to commit and an error to roll back"
    )]
    Ended,
    /// The work returned while a statement of it was still running, and that took too long to be waited
    /// for: it was cancelled, and nothing was written. Await each statement to its end; `statement_timeout`
    /// ends one that takes too long.
    #[error(
        "a statement was still running when the work returned, and was cancelled; nothing was written"
    )]
    Unfinished,
    /// The session does not know a statement that was prepared in it, or its plan does not fit a table
    /// that was altered. Nothing was written. Run it again: it is prepared again.
    #[error(
        "the session does not know what was prepared in it; if that stays so with PgBouncer, set \
         max_prepared_statements there (1.21 and later), or pool_mode = session"
    )]
    Session(#[source] tokio_postgres::Error),
    /// Something that the consumer's role may not change weakens what the inbox promises: a setting of the
    /// database, the role or the session, or what somebody has put on the inbox's tables.
    #[error("the inbox can't keep its promise: {0}")]
    Setting(String),
}

/// Why [`crate::Inbox::once`] did nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError<E> {
    /// The inbox failed.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The work failed, and everything was rolled back: the message is as good as new.
    #[error("the work failed, and was rolled back")]
    Work(#[source] E),
}

/// What an error of PostgreSQL asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// The server says that it, or one that it asks, has no room, no memory, or can't write now: no message's
    /// fault. The session is there.
    Trouble,
    /// The session is gone: this database is, or the statement itself ends its session. A session that is opened
    /// again tells.
    Lost,
    /// The server failed, and is there: an error that it, or an extension, has no better SQLSTATE for, and
    /// that these values cause.
    Doubt,
    /// Run the transaction again.
    Conflict,
    /// The session's state is at fault: run the transaction again, with everything prepared again.
    Session,
    /// These values will be refused again.
    Permanent,
    /// It may pass.
    Other,
}

/// By SQLSTATE (manual, appendix A).
pub(crate) fn sort(error: &tokio_postgres::Error) -> Sort {
    let Some(state) = error.code() else {
        let io = error.source().is_some_and(|source| source.is::<std::io::Error>());
        return if io || error.is_closed() { Sort::Lost } else { Sort::Other };
    };
    // "cached plan must not change result type", in whatever language; other things of this state
    // are not supported by the server, today or tomorrow.
    let routine = error.as_db_error().and_then(|error| error.routine());
    if *state == SqlState::FEATURE_NOT_SUPPORTED && routine == Some("RevalidateCachedQuery") {
        return Sort::Session;
    }
    let ended = error.as_db_error().and_then(|error| error.parsed_severity());
    match sort_state(state.code()) {
        Sort::Trouble | Sort::Doubt if matches!(ended, Some(Severity::Fatal | Severity::Panic)) => {
            Sort::Lost
        }
        sort => sort,
    }
}

pub(crate) fn sort_state(state: &str) -> Sort {
    match state {
        // Serialization, deadlock, a lock that is not to be had.
        "40001" | "40P01" | "55P03" => Sort::Conflict,
        // A prepared statement is not there, or one of its name is.
        "26000" | "42P05" => Sort::Session,
        // Of a standby, or of a server that was made read-only.
        "25006" => Sort::Trouble,
        // A cancelled statement is not an outage.
        "57014" => Sort::Other,
        _ => match state.get(..2) {
            Some("08" | "53" | "57" | "58") => Sort::Trouble,
            // XX000 is what PostgreSQL and its extensions raise where no one chose a state.
            Some("XX") => Sort::Doubt,
            // 2D: a handler that ends its transaction would do so again.
            Some("22" | "23" | "2D") => Sort::Permanent,
            _ => Sort::Other,
        },
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
            // These statements are the same for all messages.
            Sort::Trouble | Sort::Lost | Sort::Doubt => InboxError::Unavailable(source.into()),
            Sort::Conflict => InboxError::Conflict(source),
            Sort::Session => InboxError::Session(source),
            Sort::Permanent | Sort::Other => {
                InboxError::Refused { doing, remedy: remedy(&source).into(), source }
            }
        }
    }
}

/// What a refusal of the inbox's own statements is about.
fn remedy(error: &tokio_postgres::Error) -> &'static str {
    match error.code().map(SqlState::code) {
        // Of a schema, table, column or function that is not there.
        Some("3F000" | "42P01" | "42703" | "42883") => {
            "the migration set inbox is not applied to this database, or an older one is; type: \
             outbox-relay migrate --set inbox"
        }
        Some("42501") => {
            "the consumer's role lacks a right; give it the grants for inbox_consumer in docs/ROLES.md"
        }
        _ => "the database refused",
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
    // One that is its own cause has no end of them.
    const CAUSES_MAX: usize = 32;
    let mut text = error.to_string();
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    for cause in causes.take(CAUSES_MAX) {
        text.push_str(": ");
        text.push_str(&cause.to_string());
    }
    text
}

/// As PostgreSQL's manual writes it, for errors and dead letters.
pub(crate) fn state_of(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| "none".to_owned(), |state| state.code().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_messages_fault_is_told_from_an_outage() {
        for (state, expected) in [
            ("08006", Sort::Trouble),
            ("57P01", Sort::Trouble),
            ("53100", Sort::Trouble),
            ("53300", Sort::Trouble),
            ("25006", Sort::Trouble),
            ("53200", Sort::Trouble),
            ("58030", Sort::Trouble),
            ("XX000", Sort::Doubt),
            ("XX001", Sort::Doubt),
            ("57014", Sort::Other),
            ("40P01", Sort::Conflict),
            ("22012", Sort::Permanent),
        ] {
            assert_eq!(sort_state(state), expected, "{state}");
        }
    }
}
