//! Decodes `pgoutput`, logical replication protocol version 1, as PostgreSQL 14 to 18 send it.
//!
//! Pure and borrowing: one message in, one [`Message`] out, no state, no copy but a Relation's
//! names. Nothing the server sends can make it panic or read past the end; whatever does not
//! follow the protocol is [`Malformed`]. An Insert's columns are the one thing it leaves
//! unread: checking them here would walk every row twice, and rows of other tables for nothing,
//! so [`Tuple::columns`] checks while it yields. The framing around these messages is in
//! [`frame`]. Called by `source`'s stream; source: the manual, "Logical Replication Message
//! Formats".

#[cfg(test)]
pub(crate) mod encode;
pub mod frame;
#[cfg(test)]
pub(crate) mod golden;
mod message;
mod read;
#[cfg(test)]
mod tests;

pub use self::message::{Begin, Commit, Insert, LogicalMessage, Message};
use self::read::Reader;
use crate::core::{
    charset::Charset,
    lsn::Lsn,
    row::{Column, Malformed, Relation, Tuple},
};

/// Decodes one message, all of it: bytes left over are an error. Names come in the server's encoding.
///
/// # Errors
/// [`Malformed`]: drop the connection, start again from progress. An unknown tag is named in it.
pub fn decode<'a>(bytes: &'a [u8], charset: &Charset) -> Result<Message<'a>, Malformed> {
    let mut reader = Reader::new(bytes);
    let r = &mut reader;
    match r.u8("message tag")? {
        // First, because nearly every message is one. Its tuple takes all that is left.
        INSERT => insert(r, false).map(Message::Insert),
        b'B' => {
            let begin = Begin {
                final_lsn: lsn(r, "final LSN of a Begin")?,
                commit_time_us: r.i64("commit time of a Begin")?,
                xid: r.u32("transaction id of a Begin")?,
            };
            r.finish("end of a Begin")?;
            Ok(Message::Begin(begin))
        }
        b'C' => {
            r.u8("flags of a Commit")?;
            let commit = Commit {
                commit_lsn: lsn(r, "LSN of a Commit")?,
                end_lsn: lsn(r, "end LSN of a Commit")?,
                commit_time_us: r.i64("commit time of a Commit")?,
            };
            r.finish("end of a Commit")?;
            Ok(Message::Commit(commit))
        }
        b'R' => relation(r, charset).map(Message::Relation),
        b'M' => logical_message(r).map(Message::Message),
        b'U' => update(r),
        b'D' => delete(r),
        b'T' => truncate(r),
        b'Y' => {
            r.u32("OID of a Type")?;
            r.cstr("schema of a Type")?;
            r.cstr("name of a Type")?;
            r.finish("end of a Type")?;
            Ok(Message::Type)
        }
        b'O' => {
            r.u64("LSN of an Origin")?;
            r.cstr("name of an Origin")?;
            r.finish("end of an Origin")?;
            Ok(Message::Origin)
        }
        other => Err(Malformed::byte("message tag of protocol version 1", 0, other)),
    }
}

/// An Insert's tag.
pub const INSERT: u8 = b'I';

/// Decodes an Insert whose large columns were left out: it is told as truncated.
///
/// # Errors
/// [`Malformed`] when not even the table is there.
pub fn decode_large_insert(bytes: &[u8]) -> Result<Insert<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    marker(&mut reader, "tag of an Insert", &[INSERT])?;
    insert(&mut reader, true)
}

/// Decodes the beginning of a Message that was too large to keep: whether it is transactional, and
/// its prefix with whatever of the rest is there. `None` when it is no Message.
///
/// # Errors
/// [`Malformed`] when not even the prefix begins.
pub fn decode_message_prefix(bytes: &[u8]) -> Result<Option<(bool, &[u8])>, Malformed> {
    let mut r = Reader::new(bytes);
    if r.u8("message tag")? != b'M' {
        return Ok(None);
    }
    let flags = r.u8("flags of a Message")?;
    lsn(&mut r, "LSN of a Message")?;
    Ok(Some((flags & 1 == 1, r.rest())))
}

fn lsn(r: &mut Reader<'_>, what: &'static str) -> Result<Lsn, Malformed> {
    r.u64(what).map(Lsn::new)
}

fn insert<'a>(r: &mut Reader<'a>, truncated: bool) -> Result<Insert<'a>, Malformed> {
    let relation_id = r.u32("table of an Insert")?;
    marker(r, "marker of an Insert's tuple", b"N")?;
    let column_count = r.u16("column count of an Insert")?;
    Ok(Insert { relation_id, tuple: Tuple { column_count, bytes: r.rest(), truncated } })
}

fn marker(r: &mut Reader<'_>, what: &'static str, allowed: &[u8]) -> Result<u8, Malformed> {
    let at = r.at();
    let found = r.u8(what)?;
    if allowed.contains(&found) { Ok(found) } else { Err(Malformed::byte(what, at, found)) }
}

fn relation(r: &mut Reader<'_>, charset: &Charset) -> Result<Relation, Malformed> {
    /// Flags, an empty name's zero byte, type and type modifier: what a column takes at least.
    const COLUMN_BYTES_MIN: usize = 10;
    let id = r.u32("OID of a Relation")?;
    let schema = r.name(charset, "schema of a Relation")?;
    let table = r.name(charset, "name of a Relation")?;
    r.u8("replica identity of a Relation")?;
    let count = usize::from(r.u16("column count of a Relation")?);
    // The count is the server's word; memory is only set aside for columns that can be there.
    let mut columns = Vec::with_capacity(count.min(r.left() / COLUMN_BYTES_MIN));
    for _ in 0..count {
        r.u8("flags of a column")?;
        let name = r.name(charset, "name of a column")?;
        let type_oid = r.u32("type of a column")?;
        r.u32("type modifier of a column")?;
        columns.push(Column { name, type_oid });
    }
    r.finish("end of a Relation")?;
    Ok(Relation { id, schema, table, columns })
}

fn logical_message<'a>(r: &mut Reader<'a>) -> Result<LogicalMessage<'a>, Malformed> {
    let flags = r.u8("flags of a Message")?;
    let lsn = lsn(r, "LSN of a Message")?;
    let prefix = r.cstr("prefix of a Message")?;
    let len = r.len("length of a Message")?;
    let content = r.bytes(len, "content of a Message")?;
    r.finish("end of a Message")?;
    Ok(LogicalMessage { transactional: flags & 1 == 1, lsn, prefix, content })
}

fn update<'a>(r: &mut Reader<'_>) -> Result<Message<'a>, Malformed> {
    let relation_id = r.u32("table of an Update")?;
    let what = "marker of an Update's tuple";
    if marker(r, what, b"KON")? != b'N' {
        skip_tuple(r)?;
        marker(r, what, b"N")?;
    }
    skip_tuple(r)?;
    r.finish("end of an Update")?;
    Ok(Message::Update { relation_id })
}

fn delete<'a>(r: &mut Reader<'_>) -> Result<Message<'a>, Malformed> {
    let relation_id = r.u32("table of a Delete")?;
    marker(r, "marker of a Delete's tuple", b"KO")?;
    skip_tuple(r)?;
    r.finish("end of a Delete")?;
    Ok(Message::Delete { relation_id })
}

/// Reads past a tuple that another one may follow.
fn skip_tuple(r: &mut Reader<'_>) -> Result<(), Malformed> {
    for _ in 0..r.u16("column count of a tuple")? {
        if matches!(marker(r, "column marker", b"nutb")?, b't' | b'b') {
            let len = r.len("column length")?;
            r.bytes(len, "column value")?;
        }
    }
    Ok(())
}

fn truncate<'a>(r: &mut Reader<'_>) -> Result<Message<'a>, Malformed> {
    let count = r.len("table count of a Truncate")?;
    r.u8("options of a Truncate")?;
    let what = "tables of a Truncate";
    let bytes = count.checked_mul(4).ok_or(Malformed::new(what, r.at()))?;
    r.bytes(bytes, what)?;
    r.finish("end of a Truncate")?;
    Ok(Message::Truncate)
}
