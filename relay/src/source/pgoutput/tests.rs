//! What is encoded reads back; what is cut, changed or made up is an error, never a panic.

use proptest::{collection::vec, option, prelude::*};

use super::{encode, *};
use crate::core::row::Value;

/// A [`Value`] that owns its bytes.
#[derive(Clone, Debug)]
enum Owned {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Owned {
    fn view(&self) -> Value<'_> {
        match self {
            Owned::Null => Value::Null,
            Owned::Unchanged => Value::Unchanged,
            Owned::Text(bytes) => Value::Text(bytes),
            Owned::Binary(bytes) => Value::Binary(bytes),
        }
    }
}

fn values() -> impl Strategy<Value = Vec<Owned>> {
    let bytes = || vec(any::<u8>(), 0..40);
    vec(
        prop_oneof![
            Just(Owned::Null),
            Just(Owned::Unchanged),
            bytes().prop_map(Owned::Text),
            bytes().prop_map(Owned::Binary),
        ],
        0..12,
    )
}

fn view(values: &[Owned]) -> Vec<Value<'_>> {
    values.iter().map(Owned::view).collect()
}

fn relations() -> impl Strategy<Value = Relation> {
    let columns = vec(("[^\0]{0,20}", any::<u32>()), 0..20);
    (any::<u32>(), "[^\0]{0,20}", "[^\0]{0,20}", columns).prop_map(
        |(id, schema, table, columns)| {
            let columns =
                columns.into_iter().map(|(name, type_oid)| Column { name, type_oid }).collect();
            Relation { id, schema, table, columns }
        },
    )
}

/// A valid message of any kind.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let prefix = || vec(1..=u8::MAX, 0..10);
    prop_oneof![
        any::<(u64, i64, u32)>().prop_map(|(lsn, time, xid)| encode::begin(lsn, time, xid)),
        any::<(u64, u64, i64)>().prop_map(|(lsn, end, time)| encode::commit(lsn, end, time)),
        relations().prop_map(|relation| encode::relation(&relation)),
        (any::<u32>(), values()).prop_map(|(id, new)| encode::insert(id, &view(&new))),
        (any::<u32>(), option::of((prop_oneof![Just(b'K'), Just(b'O')], values())), values())
            .prop_map(|(id, old, new)| {
                let old = old.as_ref().map(|(marker, values)| (*marker, view(values)));
                let old = old.as_ref().map(|(marker, values)| (*marker, values.as_slice()));
                encode::update(id, old, &view(&new))
            }),
        (any::<u32>(), values()).prop_map(|(id, old)| encode::delete(id, b'K', &view(&old))),
        vec(any::<u32>(), 0..5).prop_map(|tables| encode::truncate(&tables)),
        (any::<u64>(), "[^\0]{0,9}").prop_map(|(lsn, name)| encode::origin(lsn, &name)),
        (any::<u32>(), "[^\0]{0,9}").prop_map(|(oid, name)| encode::type_(oid, "public", &name)),
        (any::<bool>(), any::<u64>(), prefix(), any::<Vec<u8>>())
            .prop_map(|(tx, lsn, prefix, content)| encode::message(tx, lsn, &prefix, &content)),
    ]
}

/// Decodes and walks to the end, as the relay would.
fn read_all(bytes: &[u8]) -> Result<(), Malformed> {
    match decode(bytes, &Charset::AsItIs)? {
        Message::Insert(insert) => insert.tuple.columns().try_for_each(|value| value.map(drop)),
        _ => Ok(()),
    }
}

proptest! {
    #[test]
    fn a_begin_reads_back(lsn: u64, commit_time_us: i64, xid: u32) {
        let bytes = encode::begin(lsn, commit_time_us, xid);
        let expected = Begin { final_lsn: Lsn::new(lsn), commit_time_us, xid };
        prop_assert!(matches!(decode(&bytes, &Charset::AsItIs), Ok(Message::Begin(begin)) if begin == expected));
    }

    #[test]
    fn a_commit_reads_back(lsn: u64, end: u64, commit_time_us: i64) {
        let bytes = encode::commit(lsn, end, commit_time_us);
        let expected =
            Commit { commit_lsn: Lsn::new(lsn), end_lsn: Lsn::new(end), commit_time_us };
        prop_assert!(matches!(decode(&bytes, &Charset::AsItIs), Ok(Message::Commit(commit)) if commit == expected));
    }

    #[test]
    fn a_relation_reads_back(relation in relations()) {
        let bytes = encode::relation(&relation);
        prop_assert!(matches!(decode(&bytes, &Charset::AsItIs), Ok(Message::Relation(read)) if read == relation));
    }

    #[test]
    fn an_insert_reads_back(id: u32, values in values()) {
        let bytes = encode::insert(id, &view(&values));
        let Ok(Message::Insert(insert)) = decode(&bytes, &Charset::AsItIs) else { panic!("no Insert") };
        prop_assert_eq!(insert.relation_id, id);
        let read: Result<Vec<_>, _> = insert.tuple.columns().collect();
        prop_assert_eq!(read, Ok(view(&values)));
    }

    #[test]
    fn the_beginning_of_a_large_insert_yields_its_first_values(
        id: u32, values in values(), kept in 0.0..1.0
    ) {
        let bytes = encode::insert(id, &view(&values));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
        let cut = 8 + ((bytes.len() - 8) as f64 * kept) as usize;
        let insert = decode_large_insert(bytes.split_at(cut).0).unwrap();
        let read: Vec<_> = insert.tuple.columns().map(|value| value.unwrap()).collect();
        prop_assert!(view(&values).starts_with(&read));
    }

    #[test]
    fn a_wal_message_reads_back(
        transactional: bool, lsn: u64, prefix in vec(1..=u8::MAX, 0..10), content: Vec<u8>
    ) {
        let bytes = encode::message(transactional, lsn, &prefix, &content);
        let expected = LogicalMessage {
            transactional, lsn: Lsn::new(lsn), prefix: &prefix, content: &content,
        };
        prop_assert!(matches!(decode(&bytes, &Charset::AsItIs), Ok(Message::Message(read)) if read == expected));
    }

    #[test]
    fn every_message_is_valid_as_a_whole_and_in_no_other_length(bytes in messages()) {
        prop_assert_eq!(read_all(&bytes), Ok(()));
        for cut in 0..bytes.len() {
            prop_assert!(read_all(bytes.split_at(cut).0).is_err(), "cut at {}", cut);
        }
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(read_all(&longer).is_err());
    }

    #[test]
    fn a_changed_byte_never_panics(
        mut bytes in messages(), at: prop::sample::Index, byte: u8
    ) {
        if let Some(place) = { let at = at.index(bytes.len()); bytes.get_mut(at) } {
            *place = byte;
        }
        let _ = read_all(&bytes);
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(
        tag in prop_oneof![
            any::<u8>(), prop::sample::select(b"BCRIUDTOYM".as_slice())
        ],
        body: Vec<u8>,
    ) {
        let mut bytes = vec![tag];
        bytes.extend(body);
        let _ = read_all(&bytes);
        let _ = decode_large_insert(&bytes).map(|insert| insert.tuple.columns().count());
    }
}

#[test]
fn an_unknown_tag_is_named() {
    let error = decode(b"S1234", &Charset::AsItIs).unwrap_err();
    assert!(error.to_string().contains("0x53 is no message tag"), "{error}");
}

#[test]
fn what_a_real_server_sent_is_understood() {
    let bytes = golden::bytes(golden::BEGIN);
    let Ok(Message::Begin(begin)) = decode(&bytes, &Charset::AsItIs) else { panic!("no Begin") };
    assert_eq!((begin.final_lsn, begin.xid), (Lsn::new(0x152_7D90), 727));

    let bytes = golden::bytes(golden::RELATION_T);
    let Ok(Message::Relation(relation)) = decode(&bytes, &Charset::AsItIs) else {
        panic!("no Relation")
    };
    assert_eq!((relation.schema.as_str(), relation.table.as_str()), ("public", "t"));
    let columns: Vec<_> = relation.columns.iter().map(|c| (c.name.as_str(), c.type_oid)).collect();
    assert_eq!(columns, [("id", 23), ("note", 25)]);

    let bytes = golden::bytes(golden::INSERT_T);
    let Ok(Message::Insert(insert)) = decode(&bytes, &Charset::AsItIs) else { panic!("no Insert") };
    assert_eq!(insert.relation_id, relation.id);
    let values: Vec<_> = insert.tuple.columns().collect();
    assert_eq!(values, [Ok(Value::Text(b"1")), Ok(Value::Null)]);

    let bytes = golden::bytes(golden::COMMIT);
    let Ok(Message::Commit(commit)) = decode(&bytes, &Charset::AsItIs) else { panic!("no Commit") };
    assert_eq!((commit.commit_lsn, commit.end_lsn), (begin.final_lsn, Lsn::new(0x152_7DC0)));
    assert_eq!(commit.commit_time_us, begin.commit_time_us);

    let bytes = golden::bytes(golden::MESSAGE);
    let Ok(Message::Message(message)) = decode(&bytes, &Charset::AsItIs) else {
        panic!("no Message")
    };
    assert!(message.transactional);
    assert_eq!((message.prefix, message.content), (b"outbox".as_slice(), b"hello".as_slice()));

    let bytes = golden::bytes(golden::TRUNCATE);
    assert!(matches!(decode(&bytes, &Charset::AsItIs), Ok(Message::Truncate)));
}
