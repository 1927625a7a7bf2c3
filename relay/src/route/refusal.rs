//! Why a row can't be a record: the words that stay, and the sentences for people.

use super::plan::Slot;
use crate::core::row::{Malformed, Row};

/// The values of [`Refused::reason`](crate::core::record::Refused::reason) that routing gives. They are
/// stored with dead letters and matched by operators' tools, so they never change.
pub mod reason {
    /// The id is null or empty.
    pub const NO_ID: &str = "no_id";
    /// The topic, or a column of its template, is null or empty.
    pub const NO_TOPIC: &str = "no_topic";
    /// No route takes the topic.
    pub const NO_ROUTE: &str = "no_route";
    /// The type is null or empty, and CloudEvents requires one.
    pub const NO_TYPE: &str = "no_type";
    /// The headers are not a flat JSON object of strings with usable names.
    pub const HEADERS_SHAPE: &str = "headers_shape";
    /// A header of the row has a name of the relay's own.
    pub const RESERVED_HEADER: &str = "reserved_header";
    /// The explicit partition is below 0.
    pub const NEGATIVE_PARTITION: &str = "negative_partition";
    /// The explicit partition is above 2^31 − 1, or no number.
    pub const BAD_PARTITION: &str = "bad_partition";
    /// The timestamp is before 1970, after 9999, infinite, or not in the ISO form.
    pub const BAD_TIMESTAMP: &str = "bad_timestamp";
    /// Key, payload and headers, or the row as it was read, are above `batch.record_bytes_max`.
    pub const TOO_LARGE: &str = "too_large";
    /// A column's bytes don't follow its type, or have no form in UTF-8 where text is needed.
    pub const MALFORMED_VALUE: &str = "malformed_value";
    /// The row as a whole does not follow the protocol or its table's shape. Not the event's
    /// fault: don't park it, drop the connection and start again from progress.
    pub const MALFORMED_ROW: &str = "malformed_row";
    /// Of a dead letter that another version parked, whose word this one does not know.
    pub const UNFIT: &str = "unfit";

    /// The word, as one of these; [`UNFIT`] for any other.
    pub fn known(word: &str) -> &'static str {
        let words = [
            NO_ID,
            NO_TOPIC,
            NO_ROUTE,
            NO_TYPE,
            HEADERS_SHAPE,
            RESERVED_HEADER,
            NEGATIVE_PARTITION,
            BAD_PARTITION,
            BAD_TIMESTAMP,
            TOO_LARGE,
            MALFORMED_VALUE,
        ];
        words.into_iter().find(|known| *known == word).unwrap_or(UNFIT)
    }
}

/// The flags of `dead-letters edit` that correct an event of this reason.
fn edit(reason: &str) -> Option<&'static str> {
    Some(match reason {
        reason::NO_TOPIC => "--topic TOPIC",
        reason::NO_TYPE => "--type TYPE",
        reason::HEADERS_SHAPE | reason::RESERVED_HEADER => "--headers JSON",
        reason::NEGATIVE_PARTITION | reason::BAD_PARTITION => "--no-partition",
        reason::BAD_TIMESTAMP => "--timestamp TIME",
        _ => return None,
    })
}

/// A refusal before it knows the event's id, topic and key.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) error: String,
}

impl Refusal {
    #[cold]
    pub(super) fn new(reason: &'static str, error: String) -> Self {
        Refusal { reason, error }
    }

    #[cold]
    pub(super) fn of_column(
        reason: &'static str,
        row: &Row<'_>,
        slot: Slot,
        what_and_remedy: &str,
    ) -> Self {
        let table = row.relation;
        let column = table.columns.get(usize::from(slot.column)).map_or("?", |c| c.name.as_str());
        let mut error = format!("{}.{}.{column} {what_and_remedy}", table.schema, table.table);
        if let Some(flags) = edit(reason) {
            error.push_str(&format!(
                ". For this event: `outbox-relay dead-letters edit ID {flags}`, then release it"
            ));
        }
        Refusal { reason, error }
    }

    #[cold]
    pub(super) fn malformed_value(row: &Row<'_>, slot: Slot) -> Self {
        Refusal::of_column(
            reason::MALFORMED_VALUE,
            row,
            slot,
            "has a value that does not follow its type; look at the row, and correct or discard it",
        )
    }

    #[cold]
    pub(super) fn no_route() -> Self {
        let error = "no route takes this topic: add it to the topics of the route that is to publish it, in \
                     [routes.<r>] of the settings, and restart the relay. A release publishes this event by the route whose \
                     dead letter it is; if it is another one's, insert the event again, and discard this one";
        Refusal { reason: reason::NO_ROUTE, error: error.to_owned() }
    }

    #[cold]
    pub(super) fn no_character(row: &Row<'_>, slot: Slot) -> Self {
        let encoding = row.charset.name().unwrap_or("the database's encoding");
        let what = format!(
            "has bytes that are no character of {encoding}, or one that Unicode does not have, and a \
             record's text is UTF-8; edit the event and release it, or discard it"
        );
        Refusal::of_column(reason::MALFORMED_VALUE, row, slot, &what)
    }

    #[cold]
    pub(super) fn malformed_row(malformed: Malformed) -> Self {
        Refusal { reason: reason::MALFORMED_ROW, error: malformed.to_string() }
    }
}
