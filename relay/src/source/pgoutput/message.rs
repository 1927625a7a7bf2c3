//! The messages of the logical replication protocol, as far as an outbox needs them.

use crate::core::{
    lsn::Lsn,
    row::{Relation, Tuple},
};

/// One message of `pgoutput`, protocol version 1.
#[derive(Clone, Debug)]
pub enum Message<'a> {
    /// A committed transaction follows.
    Begin(Begin),
    /// It is complete.
    Commit(Commit),
    /// The transaction came to this server from another one; nothing in it is of use here.
    Origin,
    /// A table's shape, before its first row and after each change.
    Relation(Relation),
    /// Name of a type that is not built in; nothing in it is of use here.
    Type,
    /// A row was inserted.
    Insert(Insert<'a>),
    /// A row was updated. Only seen when the publication publishes more than inserts.
    Update {
        /// OID of its table.
        relation_id: u32,
    },
    /// A row was deleted. Only seen when the publication publishes more than inserts.
    Delete {
        /// OID of its table.
        relation_id: u32,
    },
    /// Tables were truncated. Only seen when the publication publishes more than inserts.
    Truncate,
    /// Written by `pg_logical_emit_message`.
    Message(LogicalMessage<'a>),
}

/// Start of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Start of its commit record: what [`RowPosition::commit`](crate::core::position::RowPosition) holds.
    pub final_lsn: Lsn,
    /// When it was committed, in microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    /// Its id, without the epoch.
    pub xid: u32,
}

/// End of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Start of the commit record; equals the Begin's `final_lsn`.
    pub commit_lsn: Lsn,
    /// End of the commit record. The next transaction's `final_lsn` may equal it.
    pub end_lsn: Lsn,
    /// When it was committed, in microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
}

/// An inserted row.
#[derive(Clone, Copy, Debug)]
pub struct Insert<'a> {
    /// OID of its table.
    pub relation_id: u32,
    /// Its values, not yet looked at: [`Tuple::columns`] checks them as it goes.
    pub tuple: Tuple<'a>,
}

/// What `pg_logical_emit_message` wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Whether it belongs to the transaction around it; else it was sent at once.
    pub transactional: bool,
    /// *End* of its WAL record. Not a position: the transaction's Begin gives that.
    pub lsn: Lsn,
    /// Whose it is. Its bytes are in the database's encoding, never converted.
    pub prefix: &'a [u8],
    /// What was written.
    pub content: &'a [u8],
}
