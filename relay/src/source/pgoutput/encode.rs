//! Writes the messages that [`decode`](super::decode) reads, for tests here and in `route`.

use crate::core::row::{Relation, Value};

fn cstr(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text);
    out.push(0);
}

fn tuple(out: &mut Vec<u8>, values: &[Value<'_>]) {
    out.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        let (marker, bytes) = match value {
            Value::Null => (b'n', None),
            Value::Unchanged => (b'u', None),
            Value::Text(bytes) => (b't', Some(bytes)),
            Value::Binary(bytes) => (b'b', Some(bytes)),
        };
        out.push(marker);
        if let Some(bytes) = bytes {
            out.extend(i32::try_from(bytes.len()).unwrap().to_be_bytes());
            out.extend(*bytes);
        }
    }
}

pub(crate) fn begin(final_lsn: u64, commit_time_us: i64, xid: u32) -> Vec<u8> {
    let mut out = vec![b'B'];
    out.extend(final_lsn.to_be_bytes());
    out.extend(commit_time_us.to_be_bytes());
    out.extend(xid.to_be_bytes());
    out
}

pub(crate) fn commit(commit_lsn: u64, end_lsn: u64, commit_time_us: i64) -> Vec<u8> {
    let mut out = vec![b'C', 0];
    out.extend(commit_lsn.to_be_bytes());
    out.extend(end_lsn.to_be_bytes());
    out.extend(commit_time_us.to_be_bytes());
    out
}

pub(crate) fn relation(relation: &Relation) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(relation.id.to_be_bytes());
    cstr(&mut out, relation.schema.as_bytes());
    cstr(&mut out, relation.table.as_bytes());
    out.push(b'd');
    out.extend(u16::try_from(relation.columns.len()).unwrap().to_be_bytes());
    for column in &relation.columns {
        out.push(1);
        cstr(&mut out, column.name.as_bytes());
        out.extend(column.type_oid.to_be_bytes());
        out.extend((-1_i32).to_be_bytes());
    }
    out
}

pub(crate) fn insert(relation_id: u32, values: &[Value<'_>]) -> Vec<u8> {
    let mut out = vec![b'I'];
    out.extend(relation_id.to_be_bytes());
    out.push(b'N');
    tuple(&mut out, values);
    out
}

/// `old` with its marker, `K` or `O`.
pub(crate) fn update(
    relation_id: u32,
    old: Option<(u8, &[Value<'_>])>,
    new: &[Value<'_>],
) -> Vec<u8> {
    let mut out = vec![b'U'];
    out.extend(relation_id.to_be_bytes());
    if let Some((marker, values)) = old {
        out.push(marker);
        tuple(&mut out, values);
    }
    out.push(b'N');
    tuple(&mut out, new);
    out
}

pub(crate) fn delete(relation_id: u32, marker: u8, old: &[Value<'_>]) -> Vec<u8> {
    let mut out = vec![b'D'];
    out.extend(relation_id.to_be_bytes());
    out.push(marker);
    tuple(&mut out, old);
    out
}

pub(crate) fn truncate(tables: &[u32]) -> Vec<u8> {
    let mut out = vec![b'T'];
    out.extend(u32::try_from(tables.len()).unwrap().to_be_bytes());
    out.push(0);
    out.extend(tables.iter().flat_map(|table| table.to_be_bytes()));
    out
}

pub(crate) fn origin(lsn: u64, name: &str) -> Vec<u8> {
    let mut out = vec![b'O'];
    out.extend(lsn.to_be_bytes());
    cstr(&mut out, name.as_bytes());
    out
}

pub(crate) fn type_(oid: u32, schema: &str, name: &str) -> Vec<u8> {
    let mut out = vec![b'Y'];
    out.extend(oid.to_be_bytes());
    cstr(&mut out, schema.as_bytes());
    cstr(&mut out, name.as_bytes());
    out
}

pub(crate) fn message(transactional: bool, lsn: u64, prefix: &[u8], content: &[u8]) -> Vec<u8> {
    let mut out = vec![b'M', u8::from(transactional)];
    out.extend(lsn.to_be_bytes());
    cstr(&mut out, prefix);
    out.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
    out.extend(content);
    out
}
