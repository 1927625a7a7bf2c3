//! A table of the relay that refuses or hides rows, for what someone has changed about it.

use tokio_postgres::{Client, error::SqlState};

use crate::{causes, core::halt::Halt, dead_letter::DeadLetterError, postgres::catalog::altered};

/// Whether the table of dead letters has refused a statement, and will do so again.
pub(super) fn is_it(error: &anyhow::Error) -> bool {
    is_parking(error) && code(error).is_some_and(altered::may_explain)
}

fn is_parking(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<DeadLetterError>())
}

/// What a person must do about it. Where nothing is found that explains it, it is tried again.
pub(super) async fn halt(client: &Client, doing: &str, error: &anyhow::Error) -> Option<Halt> {
    let found = altered::explaining(client, code(error)?, is_parking(error)).await.ok()?;
    if found.is_empty() {
        return None;
    }
    let (seen, remedy) = altered::in_words(&found);
    let error = causes::of(error.as_ref());
    let error = if error.starts_with(doing) { error } else { format!("{doing}: {error}") };
    Some(Halt::new(
        format!(
            "{error}. {seen}. The table was left as it was, and nothing is lost: what is not \
             published yet waits, and is published or parked once the table takes it"
        ),
        remedy,
    ))
}

fn code(error: &anyhow::Error) -> Option<&SqlState> {
    error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>()?.code())
}
