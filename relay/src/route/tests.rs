//! Routing as a whole: what a row becomes, what is refused, and that both formats agree.

mod properties;
mod rows;

use self::rows::*;
use super::*;
use crate::{
    core::{charset::Charset, lsn::Lsn, position::RowPosition, record::BatchLimits, row::Column},
    source::pgoutput::{Message, decode, decode_large_insert, encode, golden},
};

#[test]
fn a_row_becomes_a_record_with_the_documented_headers() {
    let seen = try_route(&settings(), &events(), &event()).unwrap();
    assert_eq!(seen.topic, "orders");
    assert_eq!(seen.key.as_deref(), Some(b"customer-1".as_slice()));
    assert_eq!(seen.payload.as_deref(), Some(br#"{"total": 1}"#.as_slice()));
    assert_eq!(seen.partition, Some(3));
    assert_eq!(seen.timestamp_ms, Some(1_795_458_687_123));
    assert_eq!(
        seen.header_names(),
        ["outbox-id", "outbox-type", "outbox-relay", "outbox-position"]
    );
    assert_eq!(seen.header("outbox-id"), Some(ID));
    assert_eq!(seen.header("outbox-type"), Some("order.placed"));
    assert_eq!(seen.header("outbox-relay"), Some("orders"));
    let position = "7312345678901234567:1:00000016B374D848:0000000042";
    assert_eq!(seen.header("outbox-position"), Some(position));
}

#[test]
fn nulls_are_absent_and_a_null_payload_is_a_tombstone() {
    let mut values = event();
    for column in [2, 3, 4, 5, 6, 7] {
        values[column] = Value::Null;
    }
    let seen = try_route(&settings(), &events(), &values).unwrap();
    assert_eq!((seen.key.as_ref(), seen.payload.as_ref(), seen.partition), (None, None, None));
    assert_eq!(seen.header("outbox-type"), None);
    assert_eq!(seen.timestamp_ms, Some(1_795_458_687_123), "the commit's time");
}

#[test]
fn the_rows_own_headers_come_last() {
    let mut with_columns = settings();
    with_columns.header_columns = vec![("xid".into(), "tx".into())];
    let values = with(5, text(r#"{"traceparent": "00-a-b-01"}"#));
    let seen = try_route(&with_columns, &events(), &values).unwrap();
    assert_eq!(seen.header_names()[4..], ["tx", "traceparent"]);
    assert_eq!((seen.header("tx"), seen.header("traceparent")), (Some("770"), Some("00-a-b-01")));
}

#[test]
fn cloudevents_headers_are_those_of_the_kafka_binding() {
    let style = Settings { header_style: HeaderStyle::CloudEvents, ..settings() };
    let seen = try_route(&style, &events(), &event()).unwrap();
    let headers: Vec<_> =
        seen.header_names().into_iter().map(|name| (name, seen.header(name).unwrap())).collect();
    assert_eq!(
        headers,
        [
            ("ce_specversion", "1.0"),
            ("ce_id", ID),
            ("ce_type", "order.placed"),
            ("ce_source", "/outbox-relay/orders"),
            ("ce_time", "2026-11-23T18:31:27.123456Z"),
            ("ce_outboxrelay", "orders"),
            ("ce_outboxposition", "7312345678901234567:1:00000016B374D848:0000000042"),
            ("content-type", "application/json"),
        ]
    );
    let own = with(5, text(r#"{"content-type": "application/avro"}"#));
    let seen = try_route(&style, &events(), &own).unwrap();
    assert_eq!(seen.header("content-type"), Some("application/avro"));
    assert_eq!(seen.header_names().len(), 8, "the row's own instead of ours");
    let tombstone = try_route(&style, &events(), &with(4, Value::Null)).unwrap();
    assert_eq!(tombstone.header("content-type"), None);
    assert_eq!(refused(&style, &with(3, Value::Null)).reason, reason::NO_TYPE);
    assert_eq!(
        refused(&style, &with(5, text(r#"{"ce_id": "x"}"#))).reason,
        reason::RESERVED_HEADER
    );
}

#[test]
fn debeziums_table_gives_what_its_router_gives() {
    let debezium = Settings { preset: Preset::Debezium, ..settings() };
    let table = relation(&[
        ("id", UUID),
        ("aggregatetype", 1043),
        ("aggregateid", 1043),
        ("type", 1043),
        ("payload", JSONB),
    ]);
    let row = [text(ID), text("Order"), text("1"), text("OrderPlaced"), text("{}")];
    let seen = try_route(&debezium, &table, &row).unwrap();
    assert_eq!(seen.topic, "outbox.event.Order");
    assert_eq!((seen.key.unwrap(), seen.payload.unwrap()), (b"1".to_vec(), b"{}".to_vec()));
    let (name, value) = seen.headers.last().unwrap();
    assert_eq!((name.as_str(), value.as_slice()), ("id", ID.as_bytes()));
    let empty = try_route(&debezium, &table, &[row[0], text(""), row[2], row[3], row[4]]);
    assert_eq!(empty.unwrap_err().reason, reason::NO_TOPIC);
}

#[test]
fn what_cannot_be_a_record_is_refused_with_its_reason_and_name() {
    for (column, value, reason) in [
        (0, Value::Null, reason::NO_ID),
        (0, Value::Unchanged, reason::MALFORMED_VALUE),
        (1, Value::Null, reason::NO_TOPIC),
        (1, text(""), reason::NO_TOPIC),
        (1, Value::Text(b"\xff"), reason::MALFORMED_VALUE),
        (5, text("[]"), reason::HEADERS_SHAPE),
        (5, text(r#"{"a": 1}"#), reason::HEADERS_SHAPE),
        (5, Value::Text(b"{\"a\": \"\xff\"}"), reason::HEADERS_SHAPE),
        (5, text(r#"{"outbox-id": "x"}"#), reason::RESERVED_HEADER),
        (6, text("-1"), reason::NEGATIVE_PARTITION),
        (6, text("2147483648"), reason::BAD_PARTITION),
        (6, text("one"), reason::BAD_PARTITION),
        (7, text("infinity"), reason::BAD_TIMESTAMP),
        (7, text("yesterday"), reason::BAD_TIMESTAMP),
    ] {
        let refused = refused(&settings(), &with(column, value));
        assert_eq!(refused.reason, reason, "{value:?}");
        assert!(refused.error.starts_with("outbox.events."), "{}", refused.error);
        let by_edit = ![reason::NO_ID, reason::MALFORMED_VALUE].contains(&reason);
        let named = refused.error.contains("`outbox-relay dead-letters edit ID --");
        assert_eq!(named, by_edit, "{}", refused.error);
        assert_eq!(refused.event_id.is_some(), column != 0);
        assert_eq!(refused.topic.is_some(), column != 1);
        assert_eq!(refused.key.as_deref(), Some(b"customer-1".as_slice()));
    }
}

#[test]
fn key_payload_and_headers_together_are_held_to_the_limit() {
    let seen = try_route(&settings(), &events(), &event()).unwrap();
    let size: usize = seen.key.unwrap().len()
        + seen.payload.unwrap().len()
        + seen.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let limited = |record_bytes_max| Settings { record_bytes_max, ..settings() };
    assert!(try_route(&limited(size), &events(), &event()).is_ok());
    assert_eq!(refused(&limited(size - 1), &event()).reason, reason::TOO_LARGE);
    assert_eq!(refused(&limited(3), &event()).reason, reason::TOO_LARGE);
}

#[test]
fn a_row_that_another_transaction_wrote_is_moved_and_not_published_again() {
    let events = events();
    let binary = |xid: &'static [u8]| {
        let mut values = event();
        values[0] = Value::Binary(&[7; 16]);
        values[6] = Value::Null;
        values[7] = Value::Null;
        values[8] = Value::Binary(xid);
        // The forms of text and JSON but for a leading version are the same.
        values[4] = Value::Binary(b"\x01{}");
        values[5] = Value::Binary(b"\x01{}");
        values
    };
    let own = 770_u64 + (9 << 32);
    for (values, format, published) in [
        (with(8, text("770")), Format::Text, true),
        // The stream has no epoch.
        (with(8, text("38654706434")), Format::Text, true),
        (with(8, text("769")), Format::Text, false),
        (with(8, text("4294968067")), Format::Text, false),
        // No one knows.
        (with(8, Value::Null), Format::Text, true),
        (binary(&[0, 0, 0, 9, 0, 0, 3, 2]), Format::Binary, true),
        (binary(&[0, 0, 0, 9, 0, 0, 3, 1]), Format::Binary, false),
    ] {
        assert_eq!(own, 38_654_706_434);
        let insert = encode::insert(events.id, &values);
        for (stamped, published) in [(true, published), (false, true)] {
            let tables = if stamped { settings().validate().unwrap().tables } else { vec![] };
            let mut router = router(&settings(), format).with_stamped(tables);
            router.relation(&events).unwrap();
            let seen = route_insert(&mut router, &events, &insert).unwrap();
            assert_eq!(seen.is_some(), published, "{values:?}, stamped {stamped}");
        }
    }
}

#[test]
fn a_row_cut_off_is_refused_with_what_came_before_the_cut() {
    let (events, settings) = (events(), settings());
    let bytes = encode::insert(events.id, &event());
    let mut router = router(&settings, Format::Text);
    router.relation(&events).unwrap();
    let mut refused_at = |len: usize| {
        let insert = decode_large_insert(bytes.split_at(len).0).unwrap();
        let position = RowPosition { commit: Lsn::ZERO, ordinal: 0 };
        let (tuple, size_bytes) = (insert.tuple, 20_000_000);
        let row = Row {
            position,
            relation: &events,
            commit_time_us: 0,
            writer: None,
            tuple,
            charset: &Charset::AsItIs,
            size_bytes,
        };
        let mut batch = Batch::new(BatchLimits { records_max: 10, bytes_max: 1 << 30 });
        let refused = router.route(&row, &mut batch).unwrap_err();
        assert_eq!((refused.reason, batch.size_bytes()), (reason::TOO_LARGE, 0));
        assert!(refused.error.contains("20000000"), "{}", refused.error);
        [refused.event_id.is_some(), refused.topic.is_some(), refused.key.is_some()]
    };
    assert_eq!(refused_at(8), [false, false, false]);
    assert_eq!(refused_at(50), [true, false, false]);
    assert_eq!(refused_at(62), [true, true, false]);
    assert_eq!(refused_at(bytes.len()), [true, true, true]);
}

#[test]
fn other_tables_are_passed_over() {
    let mut router = router(&settings(), Format::Binary);
    let leaf = Relation { id: 8, table: "events_2026_11".into(), ..events() };
    assert_eq!(router.relation(&events()), Ok(RelationUse::Mapped));
    assert_eq!(router.relation(&leaf), Ok(RelationUse::Ignored));
    let insert = encode::insert(leaf.id, &event());
    assert_eq!(route_insert(&mut router, &leaf, &insert), Ok(None));
    let renamed = Relation { table: "events_old".into(), ..events() };
    assert_eq!(router.relation(&renamed), Ok(RelationUse::Ignored));
    let insert = encode::insert(renamed.id, &event());
    assert_eq!(route_insert(&mut router, &renamed, &insert), Ok(None));
}

#[test]
fn a_table_that_changes_its_shape_is_followed() {
    let mut router = router(&settings(), Format::Text);
    router.relation(&events()).unwrap();
    let mut wider = events();
    wider.columns.insert(0, Column { name: "note".into(), type_oid: TEXT });
    wider.columns[3].type_oid = INT8;
    assert_eq!(router.relation(&wider), Ok(RelationUse::Mapped));
    let mut values = vec![Value::Null];
    values.extend(with(2, text("-42")));
    let insert = encode::insert(wider.id, &values);
    let seen = route_insert(&mut router, &wider, &insert).unwrap().unwrap();
    assert_eq!(seen.key, Some(b"-42".to_vec()));
    let insert = encode::insert(wider.id, &event());
    let refused = route_insert(&mut router, &wider, &insert).unwrap_err();
    assert_eq!(refused.reason, reason::MALFORMED_ROW, "a row of the old shape");
}

#[test]
fn a_table_that_does_not_fit_is_refused_with_all_that_is_wrong_and_its_remedy() {
    let mut table = events();
    table.columns.remove(2);
    table.columns[4].type_oid = INT4;
    let error = router(&settings(), Format::Text).relation(&table).unwrap_err();
    let RelationError::DoesNotFit(misfits) = &error else { panic!("{error}") };
    let columns: Vec<_> = misfits.iter().map(|misfit| misfit.column.as_str()).collect();
    assert_eq!(columns, ["key", "headers"]);
    let text = error.to_string();
    for part in [
        "outbox.events publishes no column key, which outbox.columns.key names",
        "`alter table outbox.events add column key text`",
        "a column headers of type int, which can't serve as outbox.columns.headers",
        "name another column in outbox.columns.headers",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("headers::jsonb"), "there is no such cast: {text}");
    table.columns.push(Column { name: "customer".into(), type_oid: TEXT });
    let error = router(&settings(), Format::Text).relation(&table).unwrap_err();
    let RelationError::DoesNotFit(misfits) = &error else { panic!("{error}") };
    let earlier: Vec<_> = misfits.iter().map(|misfit| misfit.earlier.as_deref()).collect();
    let former = r#"where customer held it then, set outbox.former_columns.customer = "key""#;
    assert_eq!(earlier, [Some(former), None], "no other column could have held the headers");
}

#[test]
fn an_unknown_type_needs_the_text_format_and_works_there() {
    let mut table = events();
    table.columns[2].type_oid = 1700;
    let needs_text =
        RelationError::NeedsText { table: "outbox.events".into(), column: "key".into() };
    assert_eq!(router(&settings(), Format::Binary).relation(&table), Err(needs_text));
    let mapping = settings().validate().unwrap();
    assert_eq!(mapping.format_for(&table), Ok(Format::Text));
    assert_eq!(mapping.format_for(&events()), Ok(Format::Binary));
    let seen = try_route(&settings(), &table, &with(2, text("1.50"))).unwrap();
    assert_eq!(seen.key, Some(b"1.50".to_vec()));
}

#[test]
fn all_problems_of_the_settings_are_reported_at_once() {
    let wrong = Settings {
        tables: vec!["events".into(), "a.b".into(), "A.B".into()],
        columns: Columns { id: Some(String::new()), ..Columns::default() },
        topic: Some("a.{".into()),
        header_style: HeaderStyle::CloudEvents,
        header_columns: vec![("a".into(), "ce_id".into()), ("b".into(), String::new())],
        record_bytes_max: 0,
        ..settings()
    };
    let problems = wrong.validate().unwrap_err();
    let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "outbox.tables",
            "outbox.tables",
            "outbox.topic",
            "outbox.columns.id",
            "outbox.header_columns",
            "outbox.header_columns",
            "batch.record_bytes_max",
        ]
    );
    let both = Settings {
        topic: Some("a".into()),
        columns: Columns { topic: Some("b".into()), ..Columns::default() },
        ..settings()
    };
    assert_eq!(both.validate().unwrap_err()[0].key, "outbox.topic");
    let many = (0..30).map(|i| (format!("c{i}"), format!("h{i}"))).collect();
    let many = Settings { header_columns: many, ..settings() };
    assert_eq!(many.validate().unwrap_err()[0].key, "outbox.header_columns");
    let former = ["nothing", "payload"].map(|present| ("payload".to_owned(), present.to_owned()));
    let former = Settings { former_columns: former.to_vec(), ..settings() }.validate().unwrap_err();
    assert_eq!(
        former.len(),
        2,
        "neither names a column of the settings and another one: {former:?}"
    );
}

/// The present name counts where a row has both.
#[test]
fn a_column_is_found_by_its_former_name_where_a_row_has_no_present_one() {
    let renamed =
        Settings { former_columns: vec![("body".into(), "payload".into())], ..settings() };
    let mapping = renamed.validate().unwrap();
    let columns = |with: &[&str]| {
        let others = ["id", "topic", "key", "type", "headers", "partition", "created_at"];
        let oid = |name: &str| match name {
            "id" => 2950,
            "headers" | "payload" | "body" => 3802,
            "partition" => 23,
            "created_at" => 1184,
            _ => 25,
        };
        let names: Vec<_> = others.iter().chain(with).map(|&name| (name, oid(name))).collect();
        relation(&names)
    };
    let payload_of = |relation: &Relation| mapping.plan(relation).map(|plan| plan.payload.column);
    assert_eq!(payload_of(&columns(&["body"])), Ok(7));
    assert_eq!(payload_of(&columns(&["body", "payload"])), Ok(8));
    assert!(payload_of(&columns(&["other"])).is_err());
    let mut unlike = columns(&["body", "payload"]);
    unlike.columns.last_mut().expect("one").type_oid = 25;
    let found = mapping.plan(&unlike).expect_err("jsonb and text");
    assert!(found[0].what.contains("both payload and body"), "{found:?}");
    assert!(found[0].remedy.contains("alter column payload type jsonb"), "{found:?}");
    assert!(mapping.format_for(&unlike).is_err(), "check says it too");
    assert!(mapping.format_for(&columns(&["body"])).is_err(), "a repair goes by the present name");
}

#[test]
fn what_a_real_server_sends_in_either_format_is_the_same_record() {
    let mapped = Settings {
        tables: vec!["public.outbox_all".into()],
        header_columns: ["ts", "x", "ok", "raw", "j", "pad"]
            .map(|name| (name.to_owned(), format!("h-{name}")))
            .to_vec(),
        ..settings()
    };
    let in_binary =
        Settings { header_columns: mapped.header_columns[1..].to_vec(), ..mapped.clone() };
    let bytes = golden::bytes(golden::RELATION);
    let Ok(Message::Relation(relation)) = decode(&bytes, &Charset::AsItIs) else {
        panic!("no Relation")
    };
    let route = |settings: &Settings, format, insert: &str| {
        let mut router = router(settings, format);
        assert_eq!(router.relation(&relation), Ok(RelationUse::Mapped));
        route_insert(&mut router, &relation, &golden::bytes(insert)).unwrap().unwrap()
    };
    let seen = route(&mapped, Format::Text, golden::INSERT_TEXT);
    assert_eq!((seen.topic.as_str(), seen.key.as_deref()), ("orders", Some(b"-42".as_slice())));
    assert_eq!(seen.timestamp_ms, Some(1_795_458_687_123));
    assert_eq!(seen.header("outbox-id"), Some(ID));
    assert_eq!(seen.header("h-ts"), Some("1999-12-31 23:59:59.5"));
    assert_eq!(seen.header("h-x"), Some("123456789012"));
    assert_eq!(seen.header("h-ok"), Some("true"));
    assert_eq!(seen.header("h-j"), Some(r#"{ "k" :1}"#));
    assert_eq!(seen.header("h-pad"), Some("ab  "));
    assert_eq!(seen.header("x"), Some("y"));
    assert!(seen.headers.contains(&("h-raw".into(), vec![0, 0xff, b'\\'])));
    let as_text = route(&in_binary, Format::Text, golden::INSERT_TEXT);
    let as_binary = route(&in_binary, Format::Binary, golden::INSERT_BINARY);
    assert_eq!(as_text, as_binary);
    // As the record's time a timestamp is read in both formats, as a header only in text.
    assert!(router(&mapped, Format::Binary).relation(&relation).is_err());
}
