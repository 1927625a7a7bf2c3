//! One value in either format, to what a record needs. Nothing here trusts a length.

use std::io::Write;

use uuid::Uuid;

use super::{
    kind::Kind,
    time::{Moment, NoMoment},
};
use crate::core::{
    charset::{Charset, NoCharacter},
    row::Value,
};

/// The bytes don't follow the column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Why a value can't stand in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// [`Unreadable`].
    Type,
    /// Its text has a character that the server's encoding does not have, or Unicode.
    Character,
}

impl From<Unreadable> for Fault {
    fn from(Unreadable: Unreadable) -> Self {
        Fault::Type
    }
}

impl From<NoCharacter> for Fault {
    fn from(NoCharacter: NoCharacter) -> Self {
        Fault::Character
    }
}

/// The bytes that stand for a value in a record: the text form, but the raw bytes of `bytea`, and
/// `true` or `false` as SQL's cast writes them. The same for both formats. `None` is null.
///
/// Borrows from the row where the server's bytes already are what is wanted, else from `scratch`.
#[inline]
pub(super) fn bytes<'a>(
    kind: Kind,
    value: Value<'a>,
    charset: &Charset,
    scratch: &'a mut Vec<u8>,
) -> Result<Option<&'a [u8]>, Fault> {
    match value {
        Value::Null => Ok(None),
        // An insert carries no unchanged value.
        Value::Unchanged => Err(Fault::Type),
        Value::Text(text) => match kind {
            Kind::Bytea => Ok(Some(bytea_from_text(text, scratch)?)),
            Kind::Bool => match text {
                b"t" => Ok(Some(b"true")),
                b"f" => Ok(Some(b"false")),
                _ => Err(Fault::Type),
            },
            _ => Ok(Some(charset.text(text, scratch)?)),
        },
        Value::Binary(binary) => match kind {
            Kind::Text | Kind::Json => Ok(Some(charset.text(binary, scratch)?)),
            Kind::Jsonb => Ok(Some(charset.text(jsonb_text(binary)?, scratch)?)),
            _ => Ok(Some(binary_bytes(kind, binary, scratch)?)),
        },
    }
}

fn binary_bytes<'a>(
    kind: Kind,
    binary: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], Unreadable> {
    scratch.clear();
    match kind {
        Kind::Bytea => return Ok(binary),
        Kind::Uuid => {
            let uuid = Uuid::from_slice(binary).map_err(|_| Unreadable)?;
            let mut text = Uuid::encode_buffer();
            scratch.extend_from_slice(uuid.hyphenated().encode_lower(&mut text).as_bytes());
        }
        Kind::Bool => {
            return match binary {
                [0] => Ok(b"false"),
                [1] => Ok(b"true"),
                _ => Err(Unreadable),
            };
        }
        Kind::Int2 | Kind::Int4 | Kind::Int8 => {
            let number = binary_int(kind, binary)?;
            // Writing to a Vec does not fail.
            write!(scratch, "{number}").map_err(|_| Unreadable)?;
        }
        Kind::Xid8 => {
            let number = u64::from_be_bytes(exactly(binary)?);
            write!(scratch, "{number}").map_err(|_| Unreadable)?;
        }
        // Texts are their caller's.
        Kind::Text | Kind::Json | Kind::Jsonb => return Err(Unreadable),
        Kind::Timestamp | Kind::Timestamptz | Kind::Other => return Err(Unreadable),
    }
    Ok(scratch)
}

/// The only version of jsonb's binary form is 1: that byte, then the text.
fn jsonb_text(binary: &[u8]) -> Result<&[u8], Unreadable> {
    match binary.split_first() {
        Some((1, text)) => Ok(text),
        _ => Err(Unreadable),
    }
}

fn exactly<const N: usize>(binary: &[u8]) -> Result<[u8; N], Unreadable> {
    binary.try_into().map_err(|_| Unreadable)
}

fn binary_int(kind: Kind, binary: &[u8]) -> Result<i64, Unreadable> {
    match kind {
        Kind::Int2 => exactly(binary).map(|bytes| i16::from_be_bytes(bytes).into()),
        Kind::Int4 => exactly(binary).map(|bytes| i32::from_be_bytes(bytes).into()),
        Kind::Int8 => exactly(binary).map(i64::from_be_bytes),
        _ => Err(Unreadable),
    }
}

/// A transaction's id without its epoch, as the stream has it; `None` where it can't be told.
pub(super) fn xid(value: Value<'_>) -> Option<u32> {
    let full: u64 = match value {
        Value::Text(text) => std::str::from_utf8(text).ok()?.parse().ok()?,
        Value::Binary(binary) => u64::from_be_bytes(exactly(binary).ok()?),
        Value::Null | Value::Unchanged => return None,
    };
    u32::try_from(full & u64::from(u32::MAX)).ok()
}

/// A number, `None` for null.
pub(super) fn int(kind: Kind, value: Value<'_>) -> Result<Option<i64>, Unreadable> {
    match value {
        Value::Null => Ok(None),
        Value::Unchanged => Err(Unreadable),
        Value::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| Unreadable)?;
            text.parse().map(Some).map_err(|_| Unreadable)
        }
        Value::Binary(binary) => binary_int(kind, binary).map(Some),
    }
}

/// A moment, `None` for null.
pub(super) fn moment(kind: Kind, value: Value<'_>) -> Result<Option<Moment>, NoMoment> {
    match value {
        Value::Null => Ok(None),
        Value::Unchanged => Err(NoMoment::Unreadable),
        Value::Text(text) => Moment::from_iso(text).map(Some),
        Value::Binary(binary) if matches!(kind, Kind::Timestamp | Kind::Timestamptz) => {
            let us = exactly(binary).map_err(|Unreadable| NoMoment::Unreadable)?;
            Moment::from_postgres_us(i64::from_be_bytes(us)).map(Some)
        }
        Value::Binary(_) => Err(NoMoment::Unreadable),
    }
}

/// Both of `bytea_output`'s forms: `\x00ff`, and `escape` with `\\` and octal `\ooo`.
fn bytea_from_text<'a>(text: &[u8], out: &'a mut Vec<u8>) -> Result<&'a [u8], Unreadable> {
    out.clear();
    if let Some(hex) = text.strip_prefix(b"\\x") {
        let (pairs, odd) = hex.as_chunks::<2>();
        if !odd.is_empty() {
            return Err(Unreadable);
        }
        out.reserve(pairs.len());
        for [high, low] in pairs {
            out.push(digit(*high, 16)? << 4 | digit(*low, 16)?);
        }
        return Ok(out);
    }
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'\\', [b'\\', after @ ..]) => {
                out.push(b'\\');
                after
            }
            (b'\\', [a @ b'0'..=b'3', b, c, after @ ..]) => {
                out.push(digit(*a, 8)? << 6 | digit(*b, 8)? << 3 | digit(*c, 8)?);
                after
            }
            (b'\\', _) => return Err(Unreadable),
            (byte, after) => {
                out.push(*byte);
                after
            }
        };
    }
    Ok(out)
}

fn digit(byte: u8, radix: u32) -> Result<u8, Unreadable> {
    let digit = char::from(byte).to_digit(radix).ok_or(Unreadable)?;
    u8::try_from(digit).map_err(|_| Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, value: Value<'_>) -> Result<Option<Vec<u8>>, Fault> {
        read_in(&Charset::AsItIs, kind, value)
    }

    fn read_in(charset: &Charset, kind: Kind, value: Value<'_>) -> Result<Option<Vec<u8>>, Fault> {
        bytes(kind, value, charset, &mut Vec::new()).map(|bytes| bytes.map(<[u8]>::to_vec))
    }

    #[test]
    fn texts_are_told_in_unicode_and_other_values_are_not_touched() {
        let charset = Charset::parse("WIN1252", "=e282ac0a").expect("a table");
        let euro = Ok(Some("\u{20ac}".into()));
        for (kind, value) in [
            (Kind::Text, Value::Text(b"\x80")),
            (Kind::Other, Value::Text(b"\x80")),
            (Kind::Json, Value::Binary(b"\x80")),
            (Kind::Jsonb, Value::Binary(b"\x01\x80")),
        ] {
            assert_eq!(read_in(&charset, kind, value), euro, "{kind:?}");
        }
        assert_eq!(read_in(&charset, Kind::Text, Value::Binary(b"\x81")), Err(Fault::Character));
        let bytes = Ok(Some(vec![0x81]));
        assert_eq!(read_in(&charset, Kind::Bytea, Value::Binary(b"\x81")), bytes);
    }

    #[test]
    fn both_forms_of_bytea_text_are_the_same_bytes() {
        let raw = Ok(Some(vec![0, 0xff, b'\\', b'a']));
        assert_eq!(read(Kind::Bytea, Value::Text(br"\x00fF5c61")), raw);
        assert_eq!(read(Kind::Bytea, Value::Text(br"\000\377\\a")), raw);
        assert_eq!(read(Kind::Bytea, Value::Binary(b"\x00\xff\\a")), raw);
        for text in [br"\x0".as_slice(), br"\xg0", br"\4", br"\400", br"\08a", b"\\"] {
            assert_eq!(read(Kind::Bytea, Value::Text(text)), Err(Fault::Type), "{text:?}");
        }
    }

    #[test]
    fn a_binary_value_of_the_wrong_length_is_unreadable() {
        for kind in [
            Kind::Uuid,
            Kind::Int2,
            Kind::Int4,
            Kind::Int8,
            Kind::Xid8,
            Kind::Bool,
            Kind::Jsonb,
            Kind::Timestamp,
            Kind::Other,
        ] {
            assert_eq!(read(kind, Value::Binary(b"")), Err(Fault::Type), "{kind:?}");
            assert_eq!(read(kind, Value::Binary(&[2; 17])), Err(Fault::Type), "{kind:?}");
        }
        assert_eq!(read(Kind::Text, Value::Unchanged), Err(Fault::Type));
    }

    #[test]
    fn numbers_read_alike_in_both_formats() {
        for (kind, text, binary) in [
            (Kind::Int2, "-2", (-2_i16).to_be_bytes().to_vec()),
            (Kind::Int4, "2147483647", i32::MAX.to_be_bytes().to_vec()),
            (Kind::Int8, "-9223372036854775808", i64::MIN.to_be_bytes().to_vec()),
        ] {
            let (text, binary) = (Value::Text(text.as_bytes()), Value::Binary(&binary));
            assert_eq!(read(kind, text), read(kind, binary), "{kind:?}");
            assert_eq!(int(kind, text), int(kind, binary), "{kind:?}");
        }
        assert_eq!(int(Kind::Int4, Value::Text(b"1.5")), Err(Unreadable));
    }
}
