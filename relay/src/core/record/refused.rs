//! Rows and records that are not taken, and why.

use crate::core::position::RowPosition;

/// Why a row can't be a record, and what of it could be read. Nothing of it is in the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Place of the row.
    pub position: RowPosition,
    /// The event's id where it could be read.
    pub event_id: Option<String>,
    /// Its topic where it could be read.
    pub topic: Option<String>,
    /// Its key where it could be read.
    pub key: Option<Vec<u8>>,
    /// Its type where it could be read.
    pub event_type: Option<Vec<u8>>,
    /// Its payload where it could be read.
    pub payload: Option<Vec<u8>>,
    /// Its own headers as the row has them, usable or not.
    pub headers: Option<Vec<u8>>,
    /// Its explicit partition, not negative.
    pub partition: Option<i32>,
    /// A stable word for the kind of refusal, such as `headers_shape`.
    pub reason: &'static str,
    /// What is wrong, for a person; no payload in it.
    pub error: String,
}

/// A record that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRecord {
    /// Index in the batch.
    pub index: usize,
    /// A stable word: `too_large`, `unknown_topic`, `invalid_topic`, `reserved_topic`,
    /// `no_such_partition`, `not_authorised`, `invalid_timestamp`, `invalid_record`, `invalid_characters`, or one
    /// that routing gives.
    pub reason: &'static str,
    /// What is wrong and what to do, for a person; a broker's own code is in it as a detail.
    pub error: String,
    /// Whether it is this very record that is refused, and not one that it was sent together with.
    pub certain: bool,
}
