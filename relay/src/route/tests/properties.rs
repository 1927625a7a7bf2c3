//! Any row: the same record in both formats, and never a panic.

use proptest::{collection::vec, option, prelude::*};

use super::*;

/// One value in text and in binary, with the OID of its type.
type Both = (u32, Option<(Vec<u8>, Vec<u8>)>);

fn both(oid: u32, value: Option<(String, Vec<u8>)>) -> Both {
    (oid, value.map(|(text, binary)| (text.into_bytes(), binary)))
}

fn texts() -> impl Strategy<Value = Both> {
    (prop::sample::select(vec![TEXT, 1043, 1042, 19]), option::weighted(0.9, "\\PC{0,20}"))
        .prop_map(|(oid, text)| both(oid, text.map(|t| (t.clone(), t.into_bytes()))))
}

fn uuids() -> impl Strategy<Value = Both> {
    option::weighted(0.9, any::<u128>()).prop_map(|id| {
        both(UUID, id.map(|id| (uuid::Uuid::from_u128(id).to_string(), id.to_be_bytes().to_vec())))
    })
}

fn ints() -> impl Strategy<Value = Both> {
    prop_oneof![
        option::of(any::<i16>())
            .prop_map(|n| both(21, n.map(|n| (n.to_string(), n.to_be_bytes().to_vec())))),
        option::of(any::<i32>())
            .prop_map(|n| both(INT4, n.map(|n| (n.to_string(), n.to_be_bytes().to_vec())))),
        option::of(any::<i64>())
            .prop_map(|n| both(INT8, n.map(|n| (n.to_string(), n.to_be_bytes().to_vec())))),
    ]
}

fn jsons(text: impl Strategy<Value = String>) -> impl Strategy<Value = Both> {
    (any::<bool>(), option::weighted(0.9, text)).prop_map(|(jsonb, text)| {
        let version: &[u8] = if jsonb { &[1] } else { &[] };
        let value = text.map(|t| (t.clone(), [version, t.as_bytes()].concat()));
        both(if jsonb { JSONB } else { 114 }, value)
    })
}

fn byteas() -> impl Strategy<Value = Both> {
    option::weighted(0.9, vec(any::<u8>(), 0..30)).prop_map(|raw| {
        let hex = |raw: &[u8]| raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        both(BYTEA, raw.map(|raw| (format!("\\x{}", hex(&raw)), raw)))
    })
}

fn times() -> impl Strategy<Value = Both> {
    // 1901 to 2065: both sides of the Unix epoch.
    option::weighted(0.9, -3_124_224_000_000_000_i64..2_051_222_400_000_000).prop_map(|us| {
        let value = us.map(|us| {
            let at =
                jiff::Timestamp::from_microsecond(us + crate::core::epoch::POSTGRES_US).unwrap();
            (at.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string(), us.to_be_bytes().to_vec())
        });
        both(TIMESTAMPTZ, value)
    })
}

/// A value for each column of [`events`], of every type that may serve there.
fn rows() -> impl Strategy<Value = Vec<Both>> {
    let keys = || prop_oneof![texts(), uuids(), ints(), byteas()];
    let headers = prop_oneof![
        Just("{}".to_owned()),
        "\\{\"[a-z\"]{0,3}\": \"\\PC{0,5}\"\\}",
        vec(("[a-z]{1,5}", "[ -!#-~]{0,9}"), 0..4).prop_map(|members| {
            let members: Vec<_> =
                members.into_iter().map(|(name, value)| format!("{name:?}: {value:?}")).collect();
            format!("{{{}}}", members.join(", "))
        }),
    ];
    (
        prop_oneof![uuids(), texts(), ints()],
        texts(),
        keys(),
        texts(),
        prop_oneof![jsons("\\PC{0,40}"), texts(), byteas()],
        jsons(headers),
        ints(),
        times(),
        Just(both(INT4, None)),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i)| vec![a, b, c, d, e, f, g, h, i])
}

proptest! {
    #[test]
    fn a_row_in_text_and_in_binary_is_the_same_record(
        row in rows(), style in prop::sample::select(vec![HeaderStyle::Outbox, HeaderStyle::CloudEvents])
    ) {
        let mut table = events();
        for (column, (oid, _)) in table.columns.iter_mut().zip(&row) {
            column.type_oid = *oid;
        }
        let settings = Settings { header_style: style, ..settings() };
        let values = |binary: bool| -> Vec<Value<'_>> {
            row.iter().map(|(_, value)| match value {
                None => Value::Null,
                Some((_, bytes)) if binary => Value::Binary(bytes),
                Some((text, _)) => Value::Text(text),
            }).collect()
        };
        let in_text = try_route(&settings, &table, &values(false));
        let in_binary = try_route(&settings, &table, &values(true));
        prop_assert_eq!(&in_text, &in_binary);
        if let (Ok(seen), [.., (_, payload), _, _, _, _]) = (&in_text, row.as_slice()) {
            let raw = payload.as_ref().map(|(text, binary)| {
                if text.starts_with(b"\\x") && table.columns[4].type_oid == BYTEA { binary } else { text }
            });
            prop_assert_eq!(seen.payload.as_ref(), raw, "the payload passes untouched");
        }
    }

    #[test]
    fn any_bytes_in_any_column_are_a_record_or_a_refusal(
        oids in vec(prop::sample::select(vec![16, 17, 20, 21, 23, 25, 114, 1114, 1184, 1700, 2950, 3802, 5069]), 9),
        bytes in vec((0_u8..4, vec(any::<u8>(), 0..20)), 9),
    ) {
        let mut table = events();
        for (column, oid) in table.columns.iter_mut().zip(oids) {
            column.type_oid = oid;
        }
        let values: Vec<_> = bytes.iter().map(|(marker, bytes)| match marker {
            0 => Value::Null,
            1 => Value::Unchanged,
            2 => Value::Text(bytes),
            _ => Value::Binary(bytes),
        }).collect();
        let settings = Settings { preset: Preset::Default, ..settings() };
        let mut router = router(&settings, Format::Text);
        if router.relation(&table) == Ok(RelationUse::Mapped) {
            let insert = encode::insert(table.id, &values);
            let _ = route_insert(&mut router, &table, &insert);
        }
    }
}
