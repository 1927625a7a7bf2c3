//! What the source yields: one inserted row, borrowed from the bytes it arrived in.
//!
//! The leaf that `source` and `route` share; neither knows the other. Nothing is copied or
//! interpreted here: a [`Tuple`] is walked once, column by column, by whoever needs its values.

use std::fmt;

use crate::core::{charset::Charset, landmark::Landmark, position::RowPosition};

/// A table as announced by the stream's Relation message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The table's OID.
    pub id: u32,
    /// Schema name, unquoted.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The field or message that was being read.
    pub what: &'static str,
    /// Offset in bytes from the start of the message (from the first column, within a tuple).
    pub at: usize,
    /// The byte that can't stand there, where it is a single one: an unknown tag or marker.
    pub found: Option<u8>,
}

impl Malformed {
    /// `what` ends early or contradicts itself at byte `at`.
    pub const fn new(what: &'static str, at: usize) -> Self {
        Malformed { what, at, found: None }
    }

    /// `found` can't stand at byte `at`, where `what` was expected.
    pub const fn byte(what: &'static str, at: usize, found: u8) -> Self {
        Malformed { what, at, found: Some(found) }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Malformed { what, at, found } = self;
        match found {
            Some(byte) => write!(f, "malformed replication stream: {byte:#04x} is no {what}")?,
            None => write!(f, "malformed replication stream: {what} is cut short or inconsistent")?,
        }
        write!(f, " (byte {at} of its message)")
    }
}

impl std::error::Error for Malformed {}

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

impl<'a> Tuple<'a> {
    /// Number of columns announced, also when fewer are there.
    pub fn column_count(&self) -> usize {
        usize::from(self.column_count)
    }

    /// Whether the row was above the size limit, and only its beginning was kept.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The values in the relation's order, checked as they are read: no one has looked at these
    /// bytes before, so that a row is walked once and a table that is not ours never.
    ///
    /// Yields one item a column, or an `Err` and then nothing: on an unknown marker, a length
    /// past the end, bytes after the last column. Truncated rule: the values that are whole come
    /// out, the first that is cut ends the iteration without an error, and bytes after the last
    /// column don't matter.
    pub fn columns(&self) -> ColumnValues<'a> {
        ColumnValues {
            rest: self.bytes,
            left: self.column_count,
            size_bytes: self.bytes.len(),
            truncated: self.truncated,
        }
    }
}

/// Iterator over a [`Tuple`]'s values, see [`Tuple::columns`].
#[derive(Clone, Debug)]
pub struct ColumnValues<'a> {
    rest: &'a [u8],
    left: u16,
    size_bytes: usize,
    truncated: bool,
}

impl<'a> ColumnValues<'a> {
    /// The next value and what follows it; `None` when the bytes end before it does.
    #[inline]
    fn split(rest: &'a [u8], at: usize) -> Result<Option<(Value<'a>, &'a [u8])>, Malformed> {
        let Some((&marker, rest)) = rest.split_first() else { return Ok(None) };
        match marker {
            b'n' => return Ok(Some((Value::Null, rest))),
            b'u' => return Ok(Some((Value::Unchanged, rest))),
            b't' | b'b' => {}
            other => return Err(Malformed::byte("column marker", at, other)),
        }
        let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let len = usize::try_from(i32::from_be_bytes(*len))
            .map_err(|_| Malformed::new("column length", at + 1))?;
        let value = if marker == b't' { Value::Text } else { Value::Binary };
        Ok(rest.split_at_checked(len).map(|(bytes, rest)| (value(bytes), rest)))
    }

    fn end(&mut self, malformed: Malformed) -> Option<Result<Value<'a>, Malformed>> {
        self.left = 0;
        self.rest = &[];
        Some(Err(malformed))
    }
}

impl<'a> Iterator for ColumnValues<'a> {
    type Item = Result<Value<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let at = self.size_bytes - self.rest.len();
        if self.left == 0 {
            if self.rest.is_empty() || self.truncated {
                return None;
            }
            return self.end(Malformed::new("what follows the last column", at));
        }
        match Self::split(self.rest, at) {
            Ok(Some((value, rest))) => {
                self.rest = rest;
                self.left -= 1;
                Some(Ok(value))
            }
            Ok(None) if self.truncated => {
                self.left = 0;
                None
            }
            Ok(None) => self.end(Malformed::new("column value", at)),
            Err(malformed) => self.end(malformed),
        }
    }
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
    /// The id of the transaction that the stream has it in, without the epoch; `None` for a row
    /// that was read from the table.
    pub writer: Option<u32>,
    /// Its values.
    pub tuple: Tuple<'a>,
    /// What their texts are encoded in.
    pub charset: &'a Charset,
    /// Size of the whole message in bytes, also when `tuple` is truncated.
    pub size_bytes: usize,
}

impl Row<'_> {
    /// The commit of its transaction; of a row that was read from the table nothing is known of it.
    pub fn landmark(&self) -> Option<Landmark> {
        let (commit, time_us) = (self.position.commit, self.commit_time_us);
        self.writer.map(|xid| Landmark { commit, xid, time_us })
    }
}

#[cfg(test)]
mod tests {
    use crate::core::row::*;

    const TWO: &[u8] = b"nt\0\0\0\x02hib\0\0\0\0";

    fn tuple(column_count: u16, bytes: &[u8], truncated: bool) -> Tuple<'_> {
        Tuple { column_count, bytes, truncated }
    }

    #[test]
    fn values_come_in_order_and_borrowed() {
        let values: Vec<_> = tuple(3, TWO, false).columns().collect();
        assert_eq!(values, [Ok(Value::Null), Ok(Value::Text(b"hi")), Ok(Value::Binary(b""))]);
    }

    #[test]
    fn a_malformed_tuple_yields_one_error_and_ends() {
        for (count, bytes) in [
            (4, TWO),                                // one column short
            (2, TWO),                                // bytes left over
            (1, b"x".as_slice()),                    // unknown marker
            (1, b"t\xff\xff\xff\xff".as_slice()),    // negative length
            (1, b"t\x7f\xff\xff\xffabc".as_slice()), // length past the end
            (1, b"".as_slice()),
        ] {
            let mut columns = tuple(count, bytes, false).columns();
            assert!(columns.by_ref().any(|value| value.is_err()), "{bytes:?}");
            assert_eq!(columns.next(), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_truncated_tuple_yields_what_is_whole() {
        for cut in 0..TWO.len() {
            let (kept, _) = TWO.split_at(cut);
            let values: Vec<_> = tuple(3, kept, true).columns().collect();
            assert!(values.iter().all(Result::is_ok), "cut at {cut}: {values:?}");
            assert!(values.len() < 3, "cut at {cut}");
        }
    }
}
