//! Header names of a record: the contract with consumers (DESIGN: record headers).

use crate::core::position::RowPosition;

/// Every name that begins so is the relay's own; rows may not set one.
pub const RESERVED_PREFIX: &str = "outbox-";
/// Headers that a row may have. Each costs some hundred bytes in memory, whatever its size, and a row
/// of a few megabytes could have a million; `outbox.publish` refuses more, too.
pub const COUNT_MAX: usize = 10_000;
/// The event's id, a uuid as text.
pub const ID: &str = "outbox-id";
/// Where Debezium's outbox event router puts the event's id.
pub const DEBEZIUM_ID: &str = "id";
/// The event's type; absent when the row has none.
pub const TYPE: &str = "outbox-type";
/// Name of the relay that published the record.
pub const RELAY: &str = "outbox-relay";
/// `<system id>:<timeline>:<commit LSN>:<ordinal>`: decimal, decimal, 16 upper-case hex digits,
/// 10 decimal digits; sortable as text within a timeline.
pub const POSITION: &str = "outbox-position";
/// `1` on a record that a repair published; it may repeat one that was already delivered.
pub const REPAIRED: &str = "outbox-repaired";
/// Absent in the first. Positions can be compared within one era only: it is a number that grows
/// whenever they may have started over at a lower place, as where a database was put back from a backup.
pub const ERA: &str = "outbox-era";
/// The event's time, RFC 3339 in UTC with milliseconds, on a record whose own timestamp is the time
/// of its delivery: the broker would soon delete it for its age otherwise. CloudEvents have it in
/// [`cloudevents::TIME`] anyway.
pub const CREATED_AT: &str = "outbox-created-at";

/// The record's key, in a message that has no key of its own, where it is text that a header can hold.
pub const KEY: &str = "outbox-key";
/// The same in base64, where it is not.
pub const KEY_BASE64: &str = "outbox-key-base64";
/// `1` where the record has no payload, which is something else than an empty one, in a message that can't say so.
pub const TOMBSTONE: &str = "outbox-tombstone";
/// How the payload is written where it is not the message's text as it is: `base64`, or `empty`.
pub const ENCODING: &str = "outbox-encoding";
/// The partition that the event itself names, in a message that has none.
pub const PARTITION: &str = "outbox-partition";

/// Stands in a refused event for headers of the row that can't be used; its value is the column's
/// text. Never sent: no header has an empty name.
pub const UNREADABLE: &str = "";

/// The value of [`POSITION`].
pub fn position(system_id: &str, timeline: u32, position: RowPosition) -> String {
    let RowPosition { commit, ordinal } = position;
    format!("{system_id}:{timeline}:{:016X}:{ordinal:010}", commit.get())
}

/// The CloudEvents Kafka binding's names, used with `headers = "cloudevents"`.
pub mod cloudevents {
    /// Always `1.0`.
    pub const SPECVERSION: &str = "ce_specversion";
    /// The event's id.
    pub const ID: &str = "ce_id";
    /// The event's type.
    pub const TYPE: &str = "ce_type";
    /// Where the event comes from: `/outbox-relay/<relay name>`.
    pub const SOURCE: &str = "ce_source";
    /// RFC 3339 time of the event.
    pub const TIME: &str = "ce_time";
    /// As [`super::POSITION`].
    pub const POSITION: &str = "ce_outboxposition";
    /// As [`super::RELAY`].
    pub const RELAY: &str = "ce_outboxrelay";
    /// As [`super::REPAIRED`].
    pub const REPAIRED: &str = "ce_outboxrepaired";
    /// As [`super::ERA`].
    pub const ERA: &str = "ce_outboxera";
    /// Media type of the payload.
    pub const CONTENT_TYPE: &str = "content-type";
}
