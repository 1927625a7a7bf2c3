//! A record as a line of JSON. Bytes that are UTF-8 are a text, others `{"base64": …}`; absent is null.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Serialize, Serializer};

use crate::core::record::Record;

/// What every line begins with.
pub(super) const LINE_BEGINS: &str = "{\"topic\":";

/// In the order of the line.
#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    key: Option<Bytes<'a>>,
    partition: Option<i32>,
    /// Milliseconds since the Unix epoch.
    timestamp_ms: Option<i64>,
    /// Name and value, in the record's order.
    headers: Vec<(&'a str, Option<Bytes<'a>>)>,
    payload: Option<Bytes<'a>>,
}

struct Bytes<'a>(&'a [u8]);

#[derive(Serialize)]
struct Base64 {
    base64: String,
}

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Base64 { base64: STANDARD.encode(self.0) }.serialize(serializer),
        }
    }
}

/// Adds the record's line, its end included.
pub(super) fn write_line(lines: &mut Vec<u8>, record: &Record<'_>) {
    let line = Line {
        topic: record.topic,
        key: record.key.map(Bytes),
        partition: record.partition,
        timestamp_ms: record.timestamp_ms,
        headers: record.headers().map(|(name, value)| (name, Some(Bytes(value)))).collect(),
        payload: record.payload.map(Bytes),
    };
    serde_json::to_writer(&mut *lines, &line).expect("texts and numbers, written to memory");
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        lsn::Lsn,
        position::RowPosition,
        record::{Batch, BatchLimits, RecordHead},
    };

    #[test]
    fn a_line_has_all_of_a_record_byte_for_byte() {
        let mut batch = Batch::new(BatchLimits { records_max: 2, bytes_max: 1 << 10 });
        let position = RowPosition { commit: Lsn::new(1), ordinal: 0 };
        let mut writer = batch.start_record(RecordHead {
            position,
            topic: "orders",
            key: Some(b"k\n1"),
            payload: Some(b"{\"a\":1}"),
            partition: Some(2),
            timestamp_ms: Some(5),
        });
        writer.header("outbox-id", b"7");
        writer.header("odd", &[0xff]);
        writer.finish();
        batch
            .start_record(RecordHead {
                position,
                topic: "orders",
                key: None,
                payload: None,
                partition: None,
                timestamp_ms: None,
            })
            .finish();
        let mut lines = Vec::new();
        batch.iter().for_each(|record| write_line(&mut lines, &record));
        assert!(lines.starts_with(LINE_BEGINS.as_bytes()));
        assert_eq!(
            String::from_utf8(lines).unwrap(),
            concat!(
                r#"{"topic":"orders","key":"k\n1","partition":2,"timestamp_ms":5,"#,
                r#""headers":[["outbox-id","7"],["odd",{"base64":"/w=="}]],"payload":"{\"a\":1}"}"#,
                "\n",
                r#"{"topic":"orders","key":null,"partition":null,"timestamp_ms":null,"headers":[],"payload":null}"#,
                "\n"
            )
        );
    }
}
