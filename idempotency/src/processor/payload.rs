//! A message's payload as a parameter of a statement.

use std::error::Error;

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::message::{LARGE, RawMessage};

/// What the parameters behind it take, mostly.
const BEHIND: usize = 64 << 10;

/// The driver encodes a statement in one buffer, which doubles where it is full: behind a large payload, for
/// headers of some bytes, it would be twice as large as the payload, beside the one it is copied from.
#[derive(Debug)]
pub(super) struct Payload<'a>(Option<&'a [u8]>);

impl<'a> Payload<'a> {
    pub(super) fn of(message: &'a RawMessage) -> Self {
        Payload(message.payload.as_deref())
    }
}

impl ToSql for Payload<'_> {
    fn to_sql(
        &self,
        _ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Some(bytes) = self.0 else { return Ok(IsNull::Yes) };
        if bytes.len() > LARGE {
            out.reserve(bytes.len() + BEHIND);
        }
        out.put_slice(bytes);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        <&[u8] as ToSql>::accepts(ty)
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_payload_leaves_room_for_what_is_behind_it() {
        let large = vec![b'x'; 8 << 20];
        let mut out = BytesMut::from(&b"what comes before"[..]);
        Payload(Some(&large)).to_sql(&Type::BYTEA, &mut out).expect("it is encoded");
        let (len, room) = (out.len(), out.capacity());
        out.put_slice(&[0; BEHIND / 2]);
        assert_eq!(out.capacity(), room, "nothing is copied for it");
        assert!(room < len + 2 * BEHIND, "{room} for {len}");
    }

    #[test]
    fn no_payload_is_null_and_an_empty_one_is_not() {
        for (payload, null) in [(None, true), (Some(&b""[..]), false)] {
            let is_null = Payload(payload).to_sql(&Type::BYTEA, &mut BytesMut::new());
            assert_eq!(matches!(is_null, Ok(IsNull::Yes)), null);
        }
    }
}
