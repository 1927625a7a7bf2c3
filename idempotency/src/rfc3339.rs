//! Times as JSON has them: RFC 3339 in UTC, with milliseconds. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serializer;

const DAY: i128 = 86_400_000;
/// In 400 years the calendar comes round.
const CYCLE_DAYS: i128 = 146_097;

pub(crate) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text(*time))
}

pub(crate) fn serialize_some<S: Serializer>(
    time: &Option<SystemTime>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serialize(time, to),
        None => to.serialize_none(),
    }
}

/// What is smaller than a millisecond is cut off, towards the past.
pub(crate) fn text(time: SystemTime) -> String {
    let micros = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_micros()).unwrap_or(i128::MAX),
        Err(before) => -i128::try_from(before.duration().as_micros()).unwrap_or(i128::MAX),
    };
    let millis = micros.div_euclid(1000);
    let (days, of_day) = (millis.div_euclid(DAY), millis.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (seconds, millis) = (of_day / 1000, of_day % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

/// The date of a day that is counted from 1970. Years are counted from March here, so that a leap day is the
/// last of its year.
fn civil(days: i128) -> (i128, i128, i128) {
    // From 0000-03-01.
    let days = days + 719_468;
    let (cycle, of_cycle) = (days.div_euclid(CYCLE_DAYS), days.rem_euclid(CYCLE_DAYS));
    let leaps = of_cycle / 1_460 - of_cycle / 36_524 + of_cycle / 146_096;
    let year = (of_cycle - leaps) / 365;
    let of_year = of_cycle - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let january_or_february = month >= 10;
    let month = if january_or_february { month - 9 } else { month + 3 };
    (cycle * 400 + year + i128::from(january_or_february), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_is_written_as_its_date_in_utc() {
        let after = |millis| text(UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(after(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(after(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(after(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(after(1_709_251_200_000), "2024-03-01T00:00:00.000Z");
        assert_eq!(after(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(text(UNIX_EPOCH - Duration::from_millis(1)), "1969-12-31T23:59:59.999Z");
    }

    #[test]
    fn each_day_of_eight_hundred_years_follows_the_day_before() {
        let leap = |year| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..2 * CYCLE_DAYS {
            assert_eq!(civil(days), (year, month, day), "day {days}");
            let last = match month {
                2 if leap(year) => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
