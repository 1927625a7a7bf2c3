//! Which message it is, and the day it belongs to.
//!
//! The day decides in which partition of `inbox.messages` the id is looked for, so it must be the
//! same for every copy of a message: it comes from the message itself, never from a clock here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const DAY_SECONDS: i64 = 86_400;

/// A message's identity: 16 bytes, and the UTC day of the message's own time.
///
/// Two copies are the same message only if both agree, so take the time from the message: from its
/// id ([`MessageId::from_uuid`]), or from what the producer stamped on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    uuid: Uuid,
    /// Days since 1970-01-01, UTC.
    day: i32,
}

impl MessageId {
    /// From an id that carries its time, as the relay's do (UUID version 7; 1 and 6 as well);
    /// `None` for any other.
    pub fn from_uuid(uuid: Uuid) -> Option<Self> {
        let (seconds, _) = uuid.get_timestamp()?.to_unix();
        Some(MessageId { uuid, day: day(i64::try_from(seconds).ok()?) })
    }

    /// From an id without a time, and the message's time as its producer stamped it.
    pub fn at(uuid: Uuid, occurred: SystemTime) -> Self {
        MessageId { uuid, day: day(unix_seconds(occurred)) }
    }

    /// From an id of any form: 128 bits of its SHA-256, as a UUID of version 8.
    pub fn of_bytes(id: &[u8], occurred: SystemTime) -> Self {
        MessageId::at(digest(&[id]), occurred)
    }

    /// The 16 bytes.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Days since 1970-01-01, UTC.
    pub(crate) fn day(&self) -> i32 {
        self.day
    }

    /// What [`MessageId::uuid`] and [`MessageId::day`] said.
    pub(crate) fn from_parts(uuid: Uuid, day: i32) -> Self {
        MessageId { uuid, day }
    }
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.uuid.fmt(f)
    }
}

/// 128 bits of SHA-256 over the parts, none of which can run into the next. Never fewer bits: two
/// ids that met would be one lost message.
pub(crate) fn digest(parts: &[&[u8]]) -> Uuid {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut bytes = [0_u8; 16];
    bytes.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn unix_seconds(time: SystemTime) -> i64 {
    let whole = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => whole(after),
        Err(before) => {
            let before = before.duration();
            let up = i64::from(before.subsec_nanos() > 0);
            -whole(before).saturating_add(up)
        }
    }
}

/// A time too far away for the type is on a day that no database has, which is all that matters.
fn day(unix_seconds: i64) -> i32 {
    let day = unix_seconds.div_euclid(DAY_SECONDS);
    i32::try_from(day).unwrap_or(if day > 0 { i32::MAX } else { i32::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_begin_at_midnight_utc_on_both_sides_of_1970() {
        let at = |seconds: i64, nanos: u32| {
            let since = Duration::new(seconds.unsigned_abs(), 0);
            let time = if seconds < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since };
            MessageId::at(Uuid::nil(), time + Duration::new(0, nanos)).day
        };
        assert_eq!(at(0, 0), 0);
        assert_eq!(at(86_399, 999_999_999), 0);
        assert_eq!(at(86_400, 0), 1);
        assert_eq!(at(-1, 999_999_999), -1);
        assert_eq!(at(-86_400, 0), -1);
        assert_eq!(at(-86_401, 999_999_999), -2);
    }

    #[test]
    fn an_id_of_version_7_carries_its_day_and_one_of_version_4_none() {
        let id: Uuid = "01932f3c-8400-7000-8000-000000000000".parse().expect("a uuid");
        let seconds = 0x0193_2f3c_8400_i64 / 1000;
        let found = MessageId::from_uuid(id).expect("version 7");
        assert_eq!(i64::from(found.day), seconds / DAY_SECONDS);
        let random: Uuid = "936da01f-9abd-4d9d-80c7-02af85c822a8".parse().expect("a uuid");
        assert_eq!(MessageId::from_uuid(random), None);
    }

    #[test]
    fn parts_of_a_digest_do_not_run_into_one_another() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_eq!(digest(&[b"ab", b"c"]), digest(&[b"ab", b"c"]));
        assert_eq!(digest(&[b"x"]).get_version_num(), 8);
    }
}
