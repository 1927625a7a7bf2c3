//! A record's headers: the relay's own first, then those of mapped columns, then the row's.

use std::borrow::Cow;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};

use super::{origin::Origin, style::HeaderStyle, time::Moment};
use crate::core::{
    header::{self, DEBEZIUM_ID, cloudevents},
    position::RowPosition,
    record::RecordWriter,
};

const CLOUDEVENTS_PREFIX: &str = "ce_";

/// Which names a row may not set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    pub(super) style: HeaderStyle,
    pub(super) debezium_id: bool,
}

impl Reserved {
    pub(super) fn has(self, name: &str) -> bool {
        name.starts_with(header::RESERVED_PREFIX)
            || (self.style == HeaderStyle::CloudEvents && name.starts_with(CLOUDEVENTS_PREFIX))
            || (self.debezium_id && name == DEBEZIUM_ID)
    }
}

/// Writes headers and counts their bytes.
#[derive(Debug)]
pub(super) struct HeaderWriter<'w, 'b> {
    record: &'w mut RecordWriter<'b>,
    /// Bytes of names and values so far.
    pub(super) size_bytes: usize,
    has_content_type: bool,
}

impl<'w, 'b> HeaderWriter<'w, 'b> {
    pub(super) fn new(record: &'w mut RecordWriter<'b>) -> Self {
        HeaderWriter { record, size_bytes: 0, has_content_type: false }
    }

    #[inline]
    pub(super) fn put(&mut self, name: &str, value: &[u8]) {
        self.size_bytes += name.len() + value.len();
        self.record.header(name, value);
    }

    /// One of a mapped column or of the row.
    pub(super) fn put_own(&mut self, name: &str, value: &[u8]) {
        self.has_content_type |= name == cloudevents::CONTENT_TYPE;
        self.put(name, value);
    }

    /// Says that the payload is JSON, unless the row said what it is. Last, to know that.
    pub(super) fn put_json_content_type(&mut self) {
        if !self.has_content_type {
            self.put(cloudevents::CONTENT_TYPE, b"application/json");
        }
    }
}

/// The relay's own headers, with all that is the same for every record made in advance.
#[derive(Clone, Debug)]
pub(super) struct RelayHeaders {
    reserved: Reserved,
    relay_name: String,
    /// `ce_source`.
    source: String,
    /// `<system id>:<timeline>:`.
    position_prefix: Vec<u8>,
    /// Empty in the first era.
    era: String,
    /// Whether records are marked as those of a repair.
    pub(super) repaired: bool,
}

impl RelayHeaders {
    pub(super) fn new(reserved: Reserved, relay_name: &str, origin: &Origin) -> Self {
        let Origin { system_id, timeline, era } = origin;
        RelayHeaders {
            reserved,
            relay_name: relay_name.to_owned(),
            source: format!("/outbox-relay/{relay_name}"),
            position_prefix: format!("{system_id}:{timeline}:").into_bytes(),
            era: if *era == 0 { String::new() } else { era.to_string() },
            repaired: false,
        }
    }

    pub(super) fn reserved(&self) -> Reserved {
        self.reserved
    }

    pub(super) fn write(
        &self,
        out: &mut HeaderWriter<'_, '_>,
        position: RowPosition,
        id: &[u8],
        event_type: Option<&[u8]>,
        moment: Option<Moment>,
    ) {
        match self.reserved.style {
            HeaderStyle::Outbox => {
                out.put(header::ID, id);
                if let Some(event_type) = event_type {
                    out.put(header::TYPE, event_type);
                }
                out.put(header::RELAY, self.relay_name.as_bytes());
                self.write_position(out, header::POSITION, position);
                self.write_era(out, header::ERA);
                if self.repaired {
                    out.put(header::REPAIRED, b"1");
                }
            }
            HeaderStyle::CloudEvents => {
                out.put(cloudevents::SPECVERSION, b"1.0");
                out.put(cloudevents::ID, id);
                if let Some(event_type) = event_type {
                    out.put(cloudevents::TYPE, event_type);
                }
                out.put(cloudevents::SOURCE, self.source.as_bytes());
                if let Some(moment) = moment {
                    out.put(cloudevents::TIME, &moment.rfc3339());
                }
                out.put(cloudevents::RELAY, self.relay_name.as_bytes());
                self.write_position(out, cloudevents::POSITION, position);
                self.write_era(out, cloudevents::ERA);
                if self.repaired {
                    out.put(cloudevents::REPAIRED, b"1");
                }
            }
        }
        if self.reserved.debezium_id {
            out.put(DEBEZIUM_ID, id);
        }
    }

    fn write_era(&self, out: &mut HeaderWriter<'_, '_>, name: &str) {
        if !self.era.is_empty() {
            out.put(name, self.era.as_bytes());
        }
    }

    fn write_position(&self, out: &mut HeaderWriter<'_, '_>, name: &str, at: RowPosition) {
        let mut digits = *b"0000000000000000:0000000000";
        let (commit, ordinal) = digits.split_at_mut(16);
        let mut lsn = at.commit.get();
        for place in commit.iter_mut().rev() {
            *place = HEX.get((lsn & 15) as usize).copied().unwrap_or(b'0');
            lsn >>= 4;
        }
        let mut rest = at.ordinal;
        for place in ordinal.iter_mut().skip(1).rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        // No transaction has 10^10 rows; were it so, one more digit is better than a wrong one.
        debug_assert_eq!(rest, 0, "ordinal {} has more than ten digits", at.ordinal);
        out.size_bytes += name.len() + self.position_prefix.len() + digits.len();
        out.record.header_with(name, |arena| {
            arena.extend_from_slice(&self.position_prefix);
            arena.extend_from_slice(&digits);
        });
    }
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Why a row's headers can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not a JSON object.
    NoObject,
    /// This member's value is no string.
    NoString(String),
    /// A name that is empty or has a zero byte, which clients of brokers can't carry.
    Name,
    /// This name is the relay's.
    Reserved(String),
    /// More than [`header::COUNT_MAX`].
    TooMany,
}

/// Writes the members of a flat JSON object of strings as headers, in order. A name that comes
/// twice (in `json`; `jsonb` keeps only the last) makes two headers: a consumer that asks for the
/// last header of a name, as Kafka's clients do, sees what JSON means.
pub(super) fn write_own(
    json: &[u8],
    reserved: Reserved,
    out: &mut HeaderWriter<'_, '_>,
) -> Result<(), Fault> {
    // The column's default, so nearly every row of many tables.
    if json == b"{}" {
        return Ok(());
    }
    let mut fault = None;
    let object = Object { reserved, out, fault: &mut fault };
    let mut json = serde_json::Deserializer::from_slice(json);
    match json.deserialize_map(object).and_then(|()| json.end()) {
        Ok(()) => Ok(()),
        Err(_) => Err(fault.unwrap_or(Fault::NoObject)),
    }
}

/// Reads the object member by member without keeping any of it.
struct Object<'o, 'w, 'b> {
    reserved: Reserved,
    out: &'o mut HeaderWriter<'w, 'b>,
    fault: &'o mut Option<Fault>,
}

impl<'de> Visitor<'de> for Object<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut count = 0;
        while let Some(name) = members.next_key_seed(Text)? {
            count += 1;
            let fault = if count > header::COUNT_MAX {
                Fault::TooMany
            } else if name.is_empty() || name.contains('\0') {
                Fault::Name
            } else if self.reserved.has(&name) {
                Fault::Reserved(name.into_owned())
            } else {
                match members.next_value_seed(Text) {
                    Ok(value) => {
                        self.out.put_own(&name, value.as_bytes());
                        continue;
                    }
                    Err(error) => {
                        *self.fault = Some(Fault::NoString(name.into_owned()));
                        return Err(error);
                    }
                }
            };
            *self.fault = Some(fault);
            return Err(de::Error::custom("refused"));
        }
        Ok(())
    }
}

/// A string, borrowed unless it has escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        lsn::Lsn,
        record::{Batch, BatchLimits, RecordHead},
    };

    const PLAIN: Reserved = Reserved { style: HeaderStyle::Outbox, debezium_id: false };

    /// The headers that `write` makes, and the bytes it counted.
    fn written<R>(
        write: impl FnOnce(&mut HeaderWriter<'_, '_>) -> R,
    ) -> (R, usize, Vec<(String, String)>) {
        let mut batch = Batch::new(BatchLimits { records_max: 1, bytes_max: 1 });
        let mut record = batch.start_record(RecordHead {
            position: RowPosition { commit: Lsn::ZERO, ordinal: 0 },
            topic: "t",
            key: None,
            payload: None,
            partition: None,
            timestamp_ms: None,
        });
        let mut out = HeaderWriter::new(&mut record);
        let result = write(&mut out);
        let size_bytes = out.size_bytes;
        record.finish();
        let headers = batch.get(0).unwrap().headers();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (result, size_bytes, headers.map(|(n, v)| (n.to_owned(), text(v))).collect())
    }

    fn own(json: &str, reserved: Reserved) -> Result<Vec<(String, String)>, Fault> {
        let (result, size_bytes, headers) =
            written(|out| write_own(json.as_bytes(), reserved, out));
        assert_eq!(size_bytes, headers.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>());
        result.map(|()| headers)
    }

    #[test]
    fn a_flat_object_of_strings_becomes_headers_in_order() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(own("{}", PLAIN), Ok(vec![]));
        assert_eq!(own(" { } ", PLAIN), Ok(vec![]));
        assert_eq!(
            own(r#"{"b": "1", "a":"ż\n\"\u0001", "b": ""}"#, PLAIN),
            Ok(vec![pair("b", "1"), pair("a", "ż\n\"\u{1}"), pair("b", "")])
        );
        assert_eq!(own(r#"{"\u0061b": "\ud83d\ude00"}"#, PLAIN), Ok(vec![pair("ab", "😀")]));
    }

    #[test]
    fn any_other_shape_is_refused() {
        for json in ["", "null", "[]", "\"a\"", "1", "{", "{\"a", "{} {}", r#"{a: "b"}"#] {
            assert_eq!(own(json, PLAIN), Err(Fault::NoObject), "{json}");
        }
        for value in ["1", "null", "true", "{}", "[\"x\"]", "\"\\ud800\"", "", "\"b"] {
            let json = format!(r#"{{"k": "v", "a": {value}}}"#);
            assert_eq!(own(&json, PLAIN), Err(Fault::NoString("a".to_owned())), "{json}");
        }
        assert_eq!(own(r#"{"": "v"}"#, PLAIN), Err(Fault::Name));
        assert_eq!(own(r#"{"a\u0000": "v"}"#, PLAIN), Err(Fault::Name));
    }

    #[test]
    fn headers_are_counted_and_too_many_are_refused_before_they_are_stored() {
        let of = |count: usize| {
            let members = vec![r#""a":"v""#; count];
            own(&format!("{{{}}}", members.join(",")), PLAIN)
        };
        assert_eq!(of(header::COUNT_MAX).map(|headers| headers.len()), Ok(header::COUNT_MAX));
        assert_eq!(of(header::COUNT_MAX + 1), Err(Fault::TooMany));
    }

    #[test]
    fn the_relays_own_names_are_reserved() {
        let refused = |name: &str, reserved| {
            own(&format!(r#"{{"{name}": "v"}}"#), reserved) == Err(Fault::Reserved(name.to_owned()))
        };
        let cloudevents = Reserved { style: HeaderStyle::CloudEvents, ..PLAIN };
        let debezium = Reserved { debezium_id: true, ..PLAIN };
        assert!(refused("outbox-id", PLAIN) && refused("outbox-anything", cloudevents));
        assert!(refused("ce_id", cloudevents) && !refused("ce_id", PLAIN));
        assert!(refused("id", debezium) && !refused("id", PLAIN));
        assert!(!refused("outbox", PLAIN) && !refused("ce", cloudevents));
    }

    #[test]
    fn positions_are_sortable_text() {
        let at = |commit, ordinal| {
            let system_id = "7312345678901234567".to_owned();
            let origin = Origin { system_id, timeline: 2, era: 0 };
            let headers = RelayHeaders::new(PLAIN, "orders", &origin);
            let position = RowPosition { commit: Lsn::new(commit), ordinal };
            let ((), size_bytes, written) =
                written(|out| headers.write(out, position, b"i", None, None));
            assert_eq!(size_bytes, written.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>());
            written.into_iter().find(|(name, _)| name == header::POSITION).unwrap().1
        };
        assert_eq!(at(0x16_B374_D848, 7), "7312345678901234567:2:00000016B374D848:0000000007");
        assert!(at(u64::MAX, 9_999_999_999).ends_with(":FFFFFFFFFFFFFFFF:9999999999"));
        assert!(at(0x9, 10) < at(0xA, 2) && at(0xA, 2) < at(0xA, 10));
    }
}
