//! A table of the relay that refuses or hides rows, or lacks a column, for what someone has changed about it.

use tokio_postgres::{
    Client,
    error::{DbError, SqlState},
};

use super::ended::Ended;
use crate::{
    causes,
    config::parts::Parts,
    core::halt::Halt,
    dead_letter::DeadLetterError,
    postgres::catalog::{altered, blame},
};

/// Whether the table of dead letters has refused a statement, or any table lacks a column or has it with another type,
/// so that it fails again.
pub(super) fn is_it(error: &anyhow::Error) -> bool {
    answer(error).map_or_else(
        || is_of_values(error),
        |answer| {
            let code = answer.code();
            *code == SqlState::UNDEFINED_COLUMN
                || blame::is_of_types(code)
                || is_parking(error) && blame::may_explain(code)
        },
    )
}

fn is_parking(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<DeadLetterError>())
}

/// What a person must do about it. Where nothing is found that explains it, it is tried again.
pub(super) async fn halt(
    client: &Client,
    (parts, relay): (&Parts, &str),
    doing: &str,
    error: &anyhow::Error,
) -> Option<Ended> {
    let tables = parts.own_tables();
    let found = blame::explaining(client, answer(error), is_parking(error), &tables, relay).await;
    let found = found.ok()?;
    if found.is_empty() {
        return None;
    }
    let (seen, remedy) = altered::in_words(&found);
    let error = causes::of(error.as_ref());
    let error = if error.starts_with(doing) { error } else { format!("{doing}: {error}") };
    let halt = Halt::new(
        format!(
            "{error}. {seen}. The table was left as it was, and nothing is lost: what is not \
             published yet waits, and is published or parked once the table takes it"
        ),
        remedy,
    );
    Some(match found.iter().any(|it| it.takes_letters) {
        true => Ended::NoDeadLetters(halt),
        false => Ended::Halted(halt),
    })
}

/// Whether the client could not read or write a value, as of a column of another type.
fn is_of_values(error: &anyhow::Error) -> bool {
    let of_client = |it: &(dyn std::error::Error + 'static)| {
        let text = it.downcast_ref::<tokio_postgres::Error>().map(ToString::to_string);
        text.is_some_and(|text| {
            text.starts_with("error deserializing column")
                || text.starts_with("error serializing parameter")
        })
    };
    error.chain().any(of_client)
}

fn answer(error: &anyhow::Error) -> Option<&DbError> {
    error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>()?.as_db_error())
}
