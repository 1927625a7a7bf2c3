//! What the source yields: one inserted row, borrowed from the bytes it arrived in.
//!
//! The leaf that `source` and `route` share; neither knows the other. Nothing is copied or
//! interpreted here: a [`Tuple`] is walked once, column by column, by whoever needs its values.

use crate::position::RowPosition;

/// A table as announced by the stream's Relation message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The table's OID.
    pub id: u32,
    /// Schema and table name, unquoted.
    pub schema: String,
    /// Table name, unquoted.
    pub table: String,
    /// In the order in which a [`Tuple`] carries their values.
    pub columns: Vec<Column>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Unquoted name.
    pub name: String,
    /// OID of its type.
    pub type_oid: u32,
}

/// One column's value as the server sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL null.
    Null,
    /// A TOASTed value that an update did not touch; an insert never carries one.
    Unchanged,
    /// The type's text form, in the client's encoding (UTF-8).
    Text(&'a [u8]),
    /// The type's binary form (its `send` function).
    Binary(&'a [u8]),
}

/// Bytes that don't follow the protocol. The connection that sent them can't be trusted further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what} in the replication stream at byte {at} of its message")]
pub struct Malformed {
    /// The field or message that was being read.
    pub what: &'static str,
    /// Offset in bytes from the start of the message.
    pub at: usize,
}

/// A row's values, undecoded: `TupleData` of the logical replication protocol.
/// Made by `source::pgoutput`; a malformed one yields `Err` once and then ends.
#[derive(Clone, Copy, Debug)]
pub struct Tuple<'a> {
    /// Number of columns announced.
    pub(crate) column_count: u16,
    /// What follows the count.
    pub(crate) bytes: &'a [u8],
    /// The bytes were cut off on purpose (a row above the size limit): columns end early
    /// without an error.
    pub(crate) truncated: bool,
}

/// An inserted row and its place.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its place in the stream.
    pub position: RowPosition,
    /// The table, as last announced.
    pub relation: &'a Relation,
    /// When its transaction was committed, in microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    /// Its values.
    pub tuple: Tuple<'a>,
    /// Size of the whole message in bytes, also when `tuple` is truncated.
    pub size_bytes: usize,
}
