//! Which message it is, and the day it belongs to.
//!
//! The day decides in which partition of `inbox.messages` the id is looked for, so it must be the
//! same for every copy of a message: it comes from the message itself, never from a clock here.

use std::{
    cmp::Ordering,
    error::Error,
    hash::{Hash, Hasher},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::BytesMut;
use sha2::{Digest as _, Sha256};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use uuid::{Uuid, Variant};

const DAY_SECONDS: i64 = 86_400;

/// 2010, before Kafka was: an older id that carries its time is none of a message.
const FIRST_V1: Duration = Duration::from_secs(1_262_304_000);
/// 2021, when the drafts of versions 6 and 7 began.
pub(crate) const FIRST_V7: Duration = Duration::from_secs(1_609_459_200);
/// 2100. Random bits that look like a time are mostly after it.
const LAST: Duration = Duration::from_secs(4_102_444_800);

/// A message's identity: 16 bytes, and the UTC day of the message's own time.
///
/// Two copies are the same message only if both agree, so take the time from the message: from its
/// id ([`MessageId::from_uuid`]), or from what the producer stamped on it.
#[derive(Clone, Copy, Debug)]
pub struct MessageId {
    uuid: Uuid,
    day: Day,
    /// The message's own time in ms since 1970, as this copy has it: no part of what the id is.
    own_ms: Option<i64>,
}

impl PartialEq for MessageId {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for MessageId {}

impl PartialOrd for MessageId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MessageId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl Hash for MessageId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

/// Days since 1970-01-01, UTC; PostgreSQL's `date`, without arithmetic that a `search_path` could
/// give another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Day(pub(crate) i32);

impl MessageId {
    /// From an id that carries its time, as the relay's do (UUID version 7; 1 and 6 as well);
    /// `None` for any other, and where the time can't be one: random bits may have these versions.
    pub fn from_uuid(uuid: Uuid) -> Option<Self> {
        let first = if uuid.get_version_num() == 1 { FIRST_V1 } else { FIRST_V7 };
        let (seconds, nanos) = uuid.get_timestamp()?.to_unix();
        let ours = uuid.get_variant() == Variant::RFC4122
            && (first..LAST).contains(&Duration::from_secs(seconds));
        if !ours {
            return None;
        }
        Some(MessageId::at(uuid, UNIX_EPOCH + Duration::new(seconds, nanos)))
    }

    /// From an id without a time, and the message's time as its producer stamped it.
    pub fn at(uuid: Uuid, occurred: SystemTime) -> Self {
        let own_ms = Some(unix_ms(occurred));
        MessageId { uuid, day: Day::of(unix_seconds(occurred)), own_ms }
    }

    /// From an id of any form: 128 bits of its SHA-256, as a UUID of version 8.
    pub fn of_bytes(id: &[u8], occurred: SystemTime) -> Self {
        MessageId::at(digest(&[id]), occurred)
    }

    /// A message of which no one knows when it was sent: no inbox can tell it from a copy.
    pub(crate) fn undated(uuid: Uuid) -> Self {
        MessageId { uuid, day: Day::NONE, own_ms: None }
    }

    /// Whether it has a time at all.
    pub(crate) fn is_dated(&self) -> bool {
        self.day != Day::NONE
    }

    /// Whether its day is after that of `time`.
    pub(crate) fn is_after(&self, time: SystemTime) -> bool {
        self.day > Day::of(unix_seconds(time))
    }

    /// Another id of the same day.
    pub(crate) fn renamed(self, uuid: Uuid) -> Self {
        MessageId { uuid, ..self }
    }

    /// The 16 bytes.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The day of the message's own time.
    pub(crate) fn day(&self) -> Day {
        self.day
    }

    /// The message's own time in seconds since 1970, where it is known and can be one.
    pub(crate) fn own_seconds(&self) -> Option<f64> {
        let last = i64::try_from(LAST.as_millis()).expect("2100 is near");
        let ms = self.own_ms?.clamp(0, last);
        Some(Duration::from_millis(ms.unsigned_abs()).as_secs_f64())
    }

    /// What [`MessageId::uuid`] and [`MessageId::day`] said.
    pub(crate) fn from_parts(uuid: Uuid, day: Day) -> Self {
        MessageId { uuid, day, own_ms: None }
    }

    fn parts(&self) -> (Uuid, Day) {
        (self.uuid, self.day)
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

fn unix_ms(time: SystemTime) -> i64 {
    let whole = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    time.duration_since(UNIX_EPOCH).map_or_else(|before| -whole(before.duration()), whole)
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

impl Day {
    /// 1970-01-01 by PostgreSQL's count, which begins in 2000.
    const UNIX_EPOCH: i32 = -10_957;
    /// The first and the last `date`: 4714-11-24 BC, 5874897-12-31.
    const RANGE: [i32; 2] = [-2_451_545, 2_145_031_948];
    /// No day, before all others: `-infinity`.
    const NONE: Day = Day(i32::MIN);

    /// A time too far away for the type is on a day that no inbox has, which is all that matters.
    fn of(unix_seconds: i64) -> Self {
        let [first, last] = Day::RANGE.map(|day| i64::from(day - Day::UNIX_EPOCH));
        let day = unix_seconds.div_euclid(DAY_SECONDS).clamp(first, last);
        Day(i32::try_from(day).expect("PostgreSQL's days are within the type"))
    }
}

impl ToSql for Day {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.0.saturating_add(Day::UNIX_EPOCH).to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::DATE
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Day {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        match i32::from_sql(ty, raw)? {
            i32::MIN => Ok(Day::NONE),
            day => Ok(Day(day.saturating_sub(Day::UNIX_EPOCH))),
        }
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::DATE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_begin_at_midnight_utc_on_both_sides_of_1970() {
        let at = |seconds: i64, nanos: u32| {
            let since = Duration::new(seconds.unsigned_abs(), 0);
            let time = if seconds < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since };
            MessageId::at(Uuid::nil(), time + Duration::new(0, nanos)).day.0
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
        assert_eq!(i64::from(found.day.0), seconds / DAY_SECONDS);
        let random: Uuid = "936da01f-9abd-4d9d-80c7-02af85c822a8".parse().expect("a uuid");
        assert_eq!(MessageId::from_uuid(random), None);
        // Of version 7 by its bits, but of the year 6429, of 1970, and of no standard's variant.
        for looks_like in [
            "8000db06-0000-7000-8000-000000000000",
            "00000000-0001-7000-8000-000000000000",
            "01932f3c-8400-7000-0000-000000000000",
        ] {
            let looks_like: Uuid = looks_like.parse().expect("a uuid");
            assert_eq!(MessageId::from_uuid(looks_like), None, "{looks_like}");
        }
    }

    #[test]
    fn a_time_that_no_date_has_is_on_the_first_or_the_last() {
        for (seconds, day) in [(i64::MIN, Day::RANGE[0]), (i64::MAX, Day::RANGE[1])] {
            let mut out = BytesMut::new();
            Day::of(seconds).to_sql(&Type::DATE, &mut out).expect("written");
            assert_eq!(out.as_ref(), day.to_be_bytes());
            assert_eq!(Day::from_sql(&Type::DATE, &out).expect("read"), Day::of(seconds));
        }
        let mut out = BytesMut::new();
        Day::NONE.to_sql(&Type::DATE, &mut out).expect("written");
        assert_eq!(out.as_ref(), i32::MIN.to_be_bytes(), "-infinity");
        assert_eq!(Day::from_sql(&Type::DATE, &out).expect("read"), Day::NONE);
    }

    #[test]
    fn parts_of_a_digest_do_not_run_into_one_another() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_eq!(digest(&[b"ab", b"c"]), digest(&[b"ab", b"c"]));
        assert_eq!(digest(&[b"x"]).get_version_num(), 8);
    }
}
