//! How much is delivered at a time, by the pace that the broker showed.
//!
//! A delivery has its time, and one that outlives it is undone and replayed. Behind a slow broker
//! a full batch would so be sent again and again and never get through. So a stream begins with
//! small deliveries and doubles them while they are quick; one that was slow says how much the
//! next may hold. Nothing is remembered from one stream to the next. Pure: no clock.

use std::{ops::Range, time::Duration};

use crate::core::record::Batch;

/// The first delivery of a stream holds no more. Full batches are reached within some ten.
const FIRST_BYTES: usize = 64 << 10;
/// No delivery is made smaller than this, unless it is one record.
const LEAST_BYTES: usize = 8 << 10;

/// Bounds deliveries.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_max: usize,
    /// What a delivery should take at most.
    wanted: Duration,
}

impl Pace {
    /// `limit` is when a delivery is given up. A quarter of it is aimed at: the broker may become
    /// four times slower from one delivery to the next.
    pub(super) fn new(limit: Duration) -> Self {
        Pace { bytes_max: FIRST_BYTES, wanted: limit / 4 }
    }

    /// Where a delivery that begins at `range.start` should end, at `range.end` at the latest. One
    /// record may be more than the pace allows.
    pub(super) fn cut(&self, batch: &Batch, range: Range<usize>) -> usize {
        if batch.size_bytes() <= self.bytes_max {
            return range.end;
        }
        let mut left = self.bytes_max;
        let records = batch.iter().enumerate().skip(range.start).take(range.len());
        for (index, record) in records {
            match left.checked_sub(record.size_bytes()) {
                Some(rest) => left = rest,
                None => return index.max(range.start + 1).min(range.end),
            }
        }
        range.end
    }

    /// A delivery of so many bytes has taken so long.
    pub(super) fn learn(&mut self, bytes: usize, took: Duration) {
        if took > self.wanted {
            let fitting = bytes as u128 * self.wanted.as_micros() / took.as_micros();
            self.bytes_max = usize::try_from(fitting).unwrap_or(usize::MAX).max(LEAST_BYTES);
        } else if took < self.wanted / 2 && bytes >= self.bytes_max / 2 {
            self.bytes_max = self.bytes_max.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        lsn::Lsn,
        position::RowPosition,
        record::{BatchLimits, RecordHead},
    };

    const LIMIT: Duration = Duration::from_secs(10);

    fn batch(payloads: &[usize]) -> Batch {
        let mut batch = Batch::new(BatchLimits { records_max: 1000, bytes_max: 1 << 30 });
        for (ordinal, bytes) in payloads.iter().enumerate() {
            let payload = vec![b'x'; *bytes];
            batch
                .start_record(RecordHead {
                    position: RowPosition { commit: Lsn::new(1), ordinal: ordinal as u64 },
                    topic: "t",
                    key: None,
                    payload: Some(&payload),
                    partition: None,
                    timestamp_ms: None,
                })
                .finish();
        }
        batch
    }

    /// Delivers all at a rate, and returns the longest that a delivery took.
    fn deliver(pace: &mut Pace, batch: &Batch, bytes_per_second: f64) -> Duration {
        let (mut start, mut longest) = (0, Duration::ZERO);
        while start < batch.len() {
            let end = pace.cut(batch, start..batch.len());
            assert!(end > start && end <= batch.len());
            let bytes = batch.iter().skip(start).take(end - start).map(|r| r.size_bytes()).sum();
            let took = Duration::from_secs_f64(bytes as f64 / bytes_per_second);
            pace.learn(bytes, took);
            longest = longest.max(took);
            start = end;
        }
        longest
    }

    #[test]
    fn a_slow_broker_is_never_given_more_than_it_takes_in_time() {
        let batch = batch(&[10_000; 400]);
        for bytes_per_second in [8e3, 50e3, 1e6, 1e9] {
            let longest = deliver(&mut Pace::new(LIMIT), &batch, bytes_per_second);
            assert!(longest < LIMIT, "{bytes_per_second} bytes a second: {longest:?}");
        }
    }

    #[test]
    fn a_quick_broker_soon_gets_full_batches() {
        let batch = batch(&[1_000; 1000]);
        let mut pace = Pace::new(LIMIT);
        deliver(&mut pace, &batch, 1e8);
        assert_eq!(pace.cut(&batch, 0..batch.len()), batch.len());
    }

    #[test]
    fn few_events_in_a_slow_moment_say_little_of_the_pace() {
        let batch = batch(&[100; 2]);
        let mut pace = Pace::new(LIMIT);
        pace.learn(100, LIMIT);
        assert_eq!(pace.cut(&batch, 0..2), 2);
        pace.learn(200, Duration::from_millis(1));
        assert_eq!(pace.bytes_max, LEAST_BYTES, "it was not tried");
    }

    #[test]
    fn a_record_above_the_pace_goes_alone() {
        let batch = batch(&[10, 200_000, 10, 200_000]);
        let pace = Pace::new(LIMIT);
        assert_eq!(pace.cut(&batch, 0..4), 1);
        assert_eq!(pace.cut(&batch, 1..4), 2);
        assert_eq!(pace.cut(&batch, 2..4), 3);
        assert_eq!(pace.cut(&batch, 3..4), 4);
    }
}
