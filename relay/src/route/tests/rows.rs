//! Rows as a table would send them, and what routing makes of them.

use super::*;

pub(super) const UUID: u32 = 2950;
pub(super) const TEXT: u32 = 25;
pub(super) const JSONB: u32 = 3802;
pub(super) const BYTEA: u32 = 17;
pub(super) const INT4: u32 = 23;
pub(super) const INT8: u32 = 20;
pub(super) const TIMESTAMPTZ: u32 = 1184;

/// 2026-11-23 18:31:27.123456 UTC, as PostgreSQL counts.
pub(super) const COMMIT_TIME_US: i64 = 848_773_887_123_456;
/// The transaction that the stream has a row in.
pub(super) const WRITER: u32 = 770;
pub(super) const ID: &str = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b";

pub(super) fn settings() -> Settings {
    Settings {
        relay_name: "orders".into(),
        tables: vec!["outbox.events".into()],
        preset: Preset::Default,
        columns: Columns::default(),
        topic: None,
        header_style: HeaderStyle::Outbox,
        header_columns: vec![],
        former_columns: vec![],
        record_bytes_max: 1 << 20,
        share: None,
    }
}

pub(super) fn relation(columns: &[(&str, u32)]) -> Relation {
    let column =
        |(name, type_oid): &(&str, u32)| Column { name: (*name).into(), type_oid: *type_oid };
    Relation {
        id: 7,
        schema: "outbox".into(),
        table: "events".into(),
        columns: columns.iter().map(column).collect(),
    }
}

/// The table that our migration makes.
pub(super) fn events() -> Relation {
    relation(&[
        ("id", UUID),
        ("topic", TEXT),
        ("key", TEXT),
        ("type", TEXT),
        ("payload", JSONB),
        ("headers", JSONB),
        ("partition", INT4),
        ("created_at", TIMESTAMPTZ),
        ("xid", 5069),
    ])
}

/// A row of [`events`], in text.
pub(super) fn event() -> Vec<Value<'static>> {
    [
        ID,
        "orders",
        "customer-1",
        "order.placed",
        r#"{"total": 1}"#,
        "{}",
        "3",
        "2026-11-24 00:01:27.123456+05:30",
        "770",
    ]
    .map(|text| Value::Text(text.as_bytes()))
    .to_vec()
}

pub(super) fn with(column: usize, value: Value<'static>) -> Vec<Value<'static>> {
    let mut values = event();
    values[column] = value;
    values
}

pub(super) fn text(value: &'static str) -> Value<'static> {
    Value::Text(value.as_bytes())
}

/// A record, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) topic: String,
    pub(super) key: Option<Vec<u8>>,
    pub(super) payload: Option<Vec<u8>>,
    pub(super) partition: Option<i32>,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        Some(std::str::from_utf8(value).unwrap())
    }

    pub(super) fn header_names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }
}

pub(super) fn router(settings: &Settings, format: Format) -> Router {
    let origin = Origin { system_id: "7312345678901234567".into(), timeline: 1, era: 0 };
    Router::new(settings.validate().unwrap(), &origin, format)
}

/// Routes one Insert message, and reads what it became.
pub(super) fn route_insert(
    router: &mut Router,
    relation: &Relation,
    insert: &[u8],
) -> Result<Option<Seen>, Box<Refused>> {
    let Ok(Message::Insert(insert)) = decode(insert, &Charset::AsItIs) else { panic!("no Insert") };
    let row = Row {
        position: RowPosition { commit: Lsn::new(0x16_B374_D848), ordinal: 42 },
        relation,
        commit_time_us: COMMIT_TIME_US,
        writer: Some(WRITER),
        charset: &Charset::AsItIs,
        tuple: insert.tuple,
        size_bytes: 0,
    };
    let mut batch = Batch::new(BatchLimits { records_max: 10, bytes_max: 1 << 30 });
    let routed = router.route(&row, &mut batch);
    if routed != Ok(Routed::Added) {
        assert_eq!((batch.len(), batch.size_bytes()), (0, 0), "a row in part");
    }
    if routed? != Routed::Added {
        return Ok(None);
    }
    let record = batch.get(0).unwrap();
    Ok(Some(Seen {
        topic: record.topic.into(),
        key: record.key.map(<[u8]>::to_vec),
        payload: record.payload.map(<[u8]>::to_vec),
        partition: record.partition,
        timestamp_ms: record.timestamp_ms,
        headers: record.headers().map(|(name, value)| (name.into(), value.to_vec())).collect(),
    }))
}

pub(super) fn try_route(
    settings: &Settings,
    relation: &Relation,
    values: &[Value<'_>],
) -> Result<Seen, Box<Refused>> {
    let binary = values.iter().any(|value| matches!(value, Value::Binary(_)));
    let mut router = router(settings, if binary { Format::Binary } else { Format::Text });
    assert_eq!(router.relation(relation), Ok(RelationUse::Mapped));
    let insert = encode::insert(relation.id, values);
    Ok(route_insert(&mut router, relation, &insert)?.expect("the table is mapped"))
}

pub(super) fn refused(settings: &Settings, values: &[Value<'_>]) -> Refused {
    *try_route(settings, &events(), values).expect_err("refused")
}
