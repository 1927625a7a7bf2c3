//! When the broker is no longer asked which of many events it refuses.
//!
//! Some refusals only a broker can tell, and in a transaction it tells of a few records at a time while
//! everybody waits. So it is asked within bounds; beyond these, whatever may share the fate of the
//! refused is parked as suspected, all at once. The daemon releases suspects again, a few at a
//! time, until each was delivered or refused itself. Pure: time is told.

use std::{collections::HashMap, ops::Range, time::Duration};

use crate::{
    core::record::{Batch, RefusedRecord},
    dead_letter::pending::SUSPECTED,
    sink::ALONE_MAX,
};

const ERROR: &str = "the broker is rejecting events of this topic; this one has not been tried on its \
                     own yet. The relay tries such events a few at a time, and then delivers each \
                     or parks it with the broker's reason. There is nothing to do";

/// Others wait so long at a stretch.
const PATIENCE: Duration = Duration::from_millis(400);
/// Of the time that passes, this part (one in so many) may be spent on asking.
const SHARE: u32 = 4;

/// A release asks so many questions more, less one, about those that may be taken without the one that is
/// refused.
pub(super) const INSISTENCE: u32 = 4;

/// How much asking has cost lately.
#[derive(Debug)]
pub(super) struct Suspicion {
    patience: Duration,
    spent: Duration,
}

impl Suspicion {
    pub(super) fn new() -> Self {
        Suspicion { patience: PATIENCE, spent: Duration::ZERO }
    }

    /// Has no time for asking.
    #[cfg(test)]
    pub(super) fn without_patience() -> Self {
        Suspicion { patience: Duration::ZERO, spent: Duration::ZERO }
    }

    /// A delivery was refused after `took`, and so long `since` the one before was.
    pub(super) fn asked(&mut self, took: Duration, since: Duration) {
        let spent = self.spent.saturating_sub(since.saturating_sub(took) / SHARE) + took;
        // A storm that is over is soon forgotten.
        self.spent = spent.min(2 * self.patience.max(took));
    }

    /// Whether the others have waited enough, so long `since` the last refusal.
    pub(super) fn is_exhausted(&self, since: Duration) -> bool {
        self.spent.saturating_sub(since / SHARE) > self.patience
    }
}

/// What is to be parked of a batch of which `range` was refused, where patience is at its end. Where an
/// outcome is insisted on: nothing, as long as of so many none is certain, for fewer are asked about
/// next, and that tells one; and what precedes one that is certain may be taken without it, so it is
/// asked about once more.
pub(super) fn suspects(
    batch: &Batch,
    range: Range<usize>,
    refused: Vec<RefusedRecord>,
    insists: bool,
) -> Vec<RefusedRecord> {
    let certain = refused.iter().find(|refused| refused.certain).map(|certain| certain.index);
    match certain {
        None if insists && range.len() > ALONE_MAX => Vec::new(),
        Some(certain) if insists => alike(batch, certain, refused),
        _ => alike(batch, range.start, refused),
    }
}

/// The records of `batch` from `from` on that may be refused as those of `refused` are, ascending: of the same
/// topic, and where it is for size, no smaller than one of them. Those that are refused for
/// certain stay as they are.
fn alike(batch: &Batch, from: usize, refused: Vec<RefusedRecord>) -> Vec<RefusedRecord> {
    let mut least: HashMap<&str, usize> = HashMap::new();
    for refused in &refused {
        let Some(record) = batch.get(refused.index) else { continue };
        let bytes = if refused.reason == "too_large" { record.size_bytes() } else { 0 };
        let least = least.entry(record.topic).or_insert(bytes);
        *least = bytes.min(*least);
    }
    let mut certain = refused.into_iter().filter(|refused| refused.certain).peekable();
    let mut suspects = Vec::new();
    for (index, record) in batch.iter().enumerate().skip(from) {
        if let Some(certain) = certain.next_if(|certain| certain.index == index) {
            suspects.push(certain);
        } else if least.get(record.topic).is_some_and(|least| record.size_bytes() >= *least) {
            let error = ERROR.to_owned();
            suspects.push(RefusedRecord { index, reason: SUSPECTED, error, certain: false });
        }
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        lsn::Lsn,
        position::RowPosition,
        record::{BatchLimits, RecordHead},
    };

    #[test]
    fn a_refusal_now_and_then_is_asked_about_and_many_in_a_row_are_not() {
        let ms = Duration::from_millis;
        let mut rare = Suspicion::new();
        for _ in 0..100 {
            rare.asked(ms(150), ms(1_000));
            assert!(!rare.is_exhausted(ms(0)));
        }
        let mut many = Suspicion::new();
        let asked = (0..100).take_while(|_| {
            many.asked(ms(50), ms(50));
            !many.is_exhausted(ms(0))
        });
        assert_eq!(asked.count(), 8);
        (0..1_000).for_each(|_| many.asked(ms(50), ms(50)));
        assert!(many.is_exhausted(ms(1_000)));
        assert!(!many.is_exhausted(ms(2_000)), "it is asked again when time has passed");
    }

    #[test]
    fn suspects_are_of_the_refused_topics_and_no_smaller_than_what_is_too_large() {
        let mut batch = Batch::new(BatchLimits { records_max: 10, bytes_max: 1 << 20 });
        let events =
            [("a", 900), ("b", 10), ("a", 900), ("a", 10), ("b", 900), ("c", 900), ("a", 901)];
        for (ordinal, (topic, bytes)) in events.into_iter().enumerate() {
            let head = RecordHead {
                position: RowPosition { commit: Lsn::new(1), ordinal: ordinal as u64 },
                topic,
                key: None,
                payload: Some(&vec![b'x'; bytes]),
                partition: None,
                timestamp_ms: None,
            };
            batch.start_record(head).finish();
        }
        let refused = |index, reason, certain| RefusedRecord {
            index,
            reason,
            error: "by the broker".into(),
            certain,
        };
        let found = |refused| {
            let found = alike(&batch, 1, refused).into_iter();
            found.map(|one| (one.index, one.reason)).collect::<Vec<_>>()
        };
        assert_eq!(found(vec![refused(2, "too_large", false)]), [(2, SUSPECTED), (6, SUSPECTED)]);
        let two = vec![refused(2, "too_large", true), refused(4, "invalid_record", false)];
        assert_eq!(found(two), [(1, SUSPECTED), (2, "too_large"), (4, SUSPECTED), (6, SUSPECTED)]);
    }
}
