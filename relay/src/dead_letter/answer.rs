//! What an answer of the database means for whoever uses the table of dead letters.

use tokio_postgres::error::SqlState;

use super::error::DeadLetterError;

/// Sorts it. A right that lacks, or a column, is left as it is: whoever reports it
/// asks which (`rights`, `postgres::catalog::blame`).
pub(super) fn sorted(doing: &'static str, source: tokio_postgres::Error) -> DeadLetterError {
    let absent = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    match source.code() {
        Some(code) if absent.contains(code) => DeadLetterError::Misconfigured {
            what: "the table outbox.dead_letters, where refused events are parked, is missing"
                .into(),
            remedy: "run `outbox-relay migrate` as the schema's owner".into(),
        },
        _ => DeadLetterError::Database { doing, source },
    }
}
