//! Any row of any table is a record, passed over or refused, and a refused one leaves no trace.
//!
//! Input: options, nine column types, then the tuple's bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outbox_fuzz::{core::{charset::Charset, lsn::Lsn, position::RowPosition, record::{Batch, BatchLimits}, row::{Column, Relation, Row}}, route::{Columns, Format, HeaderStyle, Origin, Preset, Routed, Router, Settings, Share}, source::pgoutput::{Message, decode, decode_large_insert}};

const TYPES: [u32; 16] =
    [16, 17, 19, 20, 21, 23, 25, 114, 1042, 1043, 1114, 1184, 1700, 2950, 3802, 5069];
const NAMES: [&str; 9] =
    ["id", "topic", "key", "type", "payload", "headers", "partition", "created_at", "extra"];
const TABLE: u32 = 7;

fn settings(options: u8) -> Settings {
    let flag = |bit: u8| options & (1 << bit) != 0;
    Settings {
        relay_name: "fuzz".into(),
        tables: vec!["outbox.events".into()],
        preset: if flag(0) { Preset::Debezium } else { Preset::Default },
        columns: Columns {
            key: Some("key".into()),
            headers: Some("headers".into()),
            created_at: Some("created_at".into()),
            ..Columns::default()
        },
        topic: (flag(0) || flag(1)).then(|| "{{{topic}}}.{type}".into()),
        header_style: if flag(2) { HeaderStyle::CloudEvents } else { HeaderStyle::Outbox },
        header_columns: vec![("extra".into(), "extra".into())],
        former_columns: vec![("former".into(), "payload".into())],
        record_bytes_max: if flag(3) { 64 } else { 1 << 20 },
        share: flag(4).then(|| Share {
            ours: Some(vec!["o*".into()]),
            others: flag(5).then(|| vec!["*x".into()]),
            takes_the_rest: flag(6),
        }),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some(([options, types @ ..], tuple)) = bytes.split_first_chunk::<10>() else { return };
    let format = if options & 16 != 0 { Format::Text } else { Format::Binary };
    let column = |(name, index): (&&str, &u8)| Column {
        name: (*name).into(),
        type_oid: TYPES[usize::from(*index) % TYPES.len()],
    };
    let relation = Relation {
        id: TABLE,
        schema: "outbox".into(),
        table: "events".into(),
        columns: NAMES.iter().zip(types).map(column).collect(),
    };
    let origin = Origin { system_id: "7312345678901234567".into(), timeline: 1, era: 0 };
    let mapping = settings(*options).validate().expect("these settings make sense");
    let mut router = Router::new(mapping, &origin, format);
    if router.relation(&relation).is_err() {
        return;
    }

    let mut insert = b"I\0\0\0\x07N\0\x09".to_vec();
    insert.extend_from_slice(tuple);
    let whole = match decode(&insert, &Charset::AsItIs) {
        Ok(Message::Insert(insert)) => insert.tuple,
        other => panic!("an Insert is decoded as {other:?}"),
    };
    let cut = decode_large_insert(&insert).expect("an Insert").tuple;
    let mut batch = Batch::new(BatchLimits { records_max: 10, bytes_max: 1 << 20 });
    for tuple in [whole, cut] {
        let row = Row {
            position: RowPosition { commit: Lsn::new(1), ordinal: 2 },
            relation: &relation,
            commit_time_us: 0,
            writer: None,
            tuple,
            charset: &Charset::AsItIs,
            size_bytes: insert.len(),
        };
        let before = (batch.len(), batch.size_bytes());
        match router.route(&row, &mut batch) {
            Ok(Routed::Added) => {
                let record = batch.get(batch.len() - 1).expect("it was added");
                assert!(!record.topic.is_empty());
                assert!(record.partition.is_none_or(|partition| partition >= 0));
                assert!(record.timestamp_ms.is_none_or(|ms| ms >= 0));
                assert!(record.headers().all(|(name, _)| !name.is_empty()));
            }
            Ok(Routed::Elsewhere) => {
                assert_eq!(before, (batch.len(), batch.size_bytes()), "another's row left bytes");
            }
            Ok(Routed::Ignored | Routed::Moved) => panic!("the table is mapped"),
            Err(refused) => {
                assert!(!refused.error.is_empty());
                assert_eq!(before, (batch.len(), batch.size_bytes()), "a refused row left bytes");
            }
        }
    }
});
