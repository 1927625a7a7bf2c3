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
        let code = answer(error).map(DbError::code).filter(|code| blame::may_explain(code));
        let code = code.filter(|_| is_parking(error))?;
        return Some(Ended::Halted(unexplained(doing, error, code)));
    }
    let (seen, remedy) = altered::in_words(&found);
    let error = in_words(doing, error);
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

fn in_words(doing: &str, error: &anyhow::Error) -> String {
    let error = causes::of(error.as_ref());
    // PostgreSQL's details end with one of their own.
    let error = error.trim_end_matches('.');
    if error.starts_with(doing) { error.to_owned() } else { format!("{doing}: {error}") }
}

/// Nothing was found, and waiting ends it as little.
fn unexplained(doing: &str, error: &anyhow::Error, code: &SqlState) -> Halt {
    Halt::new(
        format!(
            "{} (SQLSTATE {}). PostgreSQL refuses what the relay writes to outbox.dead_letters, and the relay found no change of \
             that table that explains it. Nothing is lost: what is not published yet waits, and is published or \
             parked once the table takes it",
            in_words(doing, error),
            code.code()
        ),
        "look at the table with `\\d+ outbox.dead_letters` in psql, and undo what is not the relay's: PostgreSQL's \
         text says what refuses the event; the relay tries again by itself",
    )
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
