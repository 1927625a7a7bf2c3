//! Moments: from PostgreSQL's two forms of a timestamp to a record's timestamp and RFC 3339.

use crate::core::epoch;

/// Start of the year 10000: RFC 3339 has four digits for the year.
const END_US: i64 = 253_402_300_800_000_000;
const DAY_SECONDS: i64 = 86_400;

/// A moment from 1970 to 9999, in UTC: what a record's timestamp and `ce_time` can both say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    unix_us: i64,
}

/// Why there is no [`Moment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoMoment {
    /// Before 1970, after 9999, or infinite.
    OutOfRange,
    /// Not a timestamp in the ISO form.
    Unreadable,
}

impl Moment {
    fn from_unix_us(unix_us: i64) -> Result<Self, NoMoment> {
        if (0..END_US).contains(&unix_us) {
            Ok(Moment { unix_us })
        } else {
            Err(NoMoment::OutOfRange)
        }
    }

    /// From PostgreSQL's binary form, which has infinity at the ends of the range.
    pub(super) fn from_postgres_us(us: i64) -> Result<Self, NoMoment> {
        us.checked_add(epoch::POSTGRES_US)
            .ok_or(NoMoment::OutOfRange)
            .and_then(Moment::from_unix_us)
    }

    /// From the text form under `DateStyle = ISO`: `2026-11-23 18:31:27.123456+00`. Without an
    /// offset it is taken as UTC.
    pub(super) fn from_iso(text: &[u8]) -> Result<Self, NoMoment> {
        if matches!(text, b"infinity" | b"-infinity") || text.ends_with(b" BC") {
            return Err(NoMoment::OutOfRange);
        }
        iso_unix_us(text).ok_or(NoMoment::Unreadable).and_then(Moment::from_unix_us)
    }

    /// Milliseconds since the Unix epoch.
    pub(super) fn unix_ms(self) -> i64 {
        self.unix_us / 1000
    }

    /// `2026-11-23T18:31:27.123456Z`.
    pub(super) fn rfc3339(self) -> [u8; 27] {
        let seconds = self.unix_us / 1_000_000;
        let (year, month, day) = civil(seconds / DAY_SECONDS);
        let second = seconds % DAY_SECONDS;
        let mut out = *b"0000-00-00T00:00:00.000000Z";
        let mut digits = |end: usize, len: usize, mut number: i64| {
            for place in out.iter_mut().take(end).rev().take(len) {
                *place = b'0' + u8::try_from(number % 10).unwrap_or_default();
                number /= 10;
            }
        };
        digits(4, 4, year);
        digits(7, 2, month);
        digits(10, 2, day);
        digits(13, 2, second / 3600);
        digits(16, 2, second / 60 % 60);
        digits(19, 2, second % 60);
        digits(26, 6, self.unix_us % 1_000_000);
        out
    }
}

/// Reads digits from the front of `text`, at least one and at most `max`.
fn number(text: &mut &[u8], max: usize) -> Option<i64> {
    let len = text.iter().take(max).take_while(|b| b.is_ascii_digit()).count();
    let (digits, rest) = text.split_at_checked(len)?;
    *text = rest;
    (len > 0).then(|| digits.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0')))
}

fn literal(text: &mut &[u8], byte: u8) -> Option<()> {
    *text = text.strip_prefix(&[byte])?;
    Some(())
}

/// A number of at most `max`, after `separator`.
fn field(text: &mut &[u8], separator: u8, max: i64) -> Option<i64> {
    literal(text, separator)?;
    number(text, 2).filter(|n| *n <= max)
}

fn iso_unix_us(mut text: &[u8]) -> Option<i64> {
    let text = &mut text;
    let year = number(text, 6)?;
    let month = field(text, b'-', 12).filter(|month| *month >= 1)?;
    let day = field(text, b'-', 31).filter(|day| *day >= 1)?;
    let hour = field(text, b' ', 24)?;
    let minute = field(text, b':', 59)?;
    let second = field(text, b':', 60)?;
    let mut fraction_us = 0;
    if literal(text, b'.').is_some() {
        let before = text.len();
        fraction_us = number(text, 6)?;
        for _ in before - text.len()..6 {
            fraction_us *= 10;
        }
    }
    let mut offset = 0;
    let sign = text.first().copied();
    if let Some(sign @ (b'+' | b'-')) = sign {
        offset = field(text, sign, 15)? * 3600;
        if text.first() == Some(&b':') {
            offset += field(text, b':', 59)? * 60;
        }
        if text.first() == Some(&b':') {
            offset += field(text, b':', 59)?;
        }
        if sign == b'-' {
            offset = -offset;
        }
    }
    if !text.is_empty() {
        return None;
    }
    let seconds = days(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second;
    // Six digits of years exceed the microseconds of an i64, and so does the end of
    // PostgreSQL's own range; either is far past what a record carries.
    Some((seconds - offset).saturating_mul(1_000_000).saturating_add(fraction_us))
}

/// Days from 1970-01-01 in the Gregorian calendar, the year beginning in March so that the leap
/// day comes last; 719,468 days lie between 0000-03-01 and 1970-01-01.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// The inverse of [`days`], from 1970 on.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn iso(text: &str) -> Result<i64, NoMoment> {
        Moment::from_iso(text.as_bytes()).map(|moment| moment.unix_us)
    }

    #[test]
    fn iso_text_is_read_with_its_fraction_and_offset() {
        assert_eq!(iso("1970-01-01 00:00:00"), Ok(0));
        assert_eq!(iso("2000-01-01 00:00:00+00"), Ok(epoch::POSTGRES_US));
        assert_eq!(iso("2026-11-23 18:31:27.5+00"), Ok(1_795_458_687_500_000));
        assert_eq!(iso("2026-11-24 00:01:27.5+05:30"), Ok(1_795_458_687_500_000));
        assert_eq!(iso("2026-11-23 15:31:17.5-03:00:10"), Ok(1_795_458_687_500_000));
        assert_eq!(iso("9999-12-31 23:59:59.999999"), Ok(END_US - 1));
    }

    #[test]
    fn what_a_record_cannot_carry_is_told_from_what_is_no_timestamp() {
        for text in [
            "infinity",
            "-infinity",
            "1969-12-31 23:59:59.999999",
            "10000-01-01 00:00:00",
            "294276-12-31 23:59:59.999999",
            "999999-12-31 23:59:59.999999",
            "0044-03-15 12:00:00 BC",
        ] {
            assert_eq!(iso(text), Err(NoMoment::OutOfRange), "{text}");
        }
        for text in ["", "now", "2026-11-23", "23/11/2026 18:31:27", "2026-13-01 00:00:00", "1 "] {
            assert_eq!(iso(text), Err(NoMoment::Unreadable), "{text}");
        }
        assert_eq!(Moment::from_postgres_us(i64::MAX), Err(NoMoment::OutOfRange));
        assert_eq!(Moment::from_postgres_us(i64::MIN), Err(NoMoment::OutOfRange));
    }

    proptest! {
        #[test]
        fn rfc3339_says_the_same_moment(unix_us in 0..END_US) {
            let moment = Moment::from_unix_us(unix_us).unwrap();
            let text = String::from_utf8(moment.rfc3339().to_vec()).unwrap();
            let read: jiff::Timestamp = text.parse().unwrap();
            prop_assert_eq!(read.as_microsecond(), unix_us);
            prop_assert_eq!(iso(&text.replace('T', " ").replace('Z', "+00")), Ok(unix_us));
        }

        #[test]
        fn any_text_is_a_moment_or_none(text in "[0-9:+. BC-]{0,40}") {
            let _ = iso(&text);
        }
    }
}
