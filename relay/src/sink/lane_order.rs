//! In which order records may be sent to a broker that stores each by itself.
//!
//! Such a broker may refuse one and store what was sent after it. So of a lane (the events of one key in
//! one topic; without a key, those of a partition that they name) none is sent before the one ahead of it is known to be stored; lanes do not wait for each
//! other. Then whatever is sent again, by however many relays, consumers first see the events of a lane
//! in its order. Pure.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use crate::core::record::Batch;

/// What events of a topic have in common that must stay in order. Others stand alone.
#[derive(PartialEq, Eq, Hash)]
enum Within<'a> {
    Key(&'a [u8]),
    /// Named by the event, which has no key.
    Partition(i32),
}

/// What of a range may be sent now, and what each of it holds up.
#[derive(Debug)]
pub struct LaneOrder {
    start: usize,
    /// In the order of the range.
    ready: VecDeque<usize>,
    /// Of each record, the next one of its lane.
    next: Vec<Option<usize>>,
}

impl LaneOrder {
    /// The records of `range`, one of each lane at a time; all of them at once where `many` may be in
    /// flight of a lane.
    pub fn new(batch: &Batch, range: Range<usize>, many: bool) -> Self {
        let mut order =
            LaneOrder { start: range.start, ready: VecDeque::new(), next: vec![None; range.len()] };
        let mut last: HashMap<(&str, Within<'_>), usize> = HashMap::new();
        for (index, record) in batch.iter().enumerate().take(range.end).skip(range.start) {
            let within = match (record.key, record.partition) {
                (Some(key), _) => Some(Within::Key(key)),
                (None, Some(partition)) => Some(Within::Partition(partition)),
                (None, None) => None,
            };
            let ahead = within.and_then(|within| last.insert((record.topic, within), index));
            match ahead {
                Some(ahead) if !many => *order.next_of(ahead) = Some(index),
                _ => order.ready.push_back(index),
            }
        }
        order
    }

    /// The next one to send; `None` where nothing may be sent before something is stored.
    pub fn take(&mut self) -> Option<usize> {
        self.ready.pop_front()
    }

    /// It is stored: what it held up may be sent.
    pub fn stored(&mut self, index: usize) {
        let next = self.next_of(index).take();
        self.ready.extend(next);
    }

    /// It is certain that it was not stored, and it may be sent again: before all that it holds up.
    pub fn again(&mut self, index: usize) {
        self.ready.push_front(index);
    }

    fn next_of(&mut self, index: usize) -> &mut Option<usize> {
        let place = index.checked_sub(self.start).and_then(|place| self.next.get_mut(place));
        place.expect("an index of the range")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::{
        lsn::Lsn,
        position::RowPosition,
        record::{BatchLimits, RecordHead},
    };

    fn batch(keys: &[Option<u8>]) -> Batch {
        let mut batch = Batch::new(BatchLimits { records_max: 1_000, bytes_max: 1 << 20 });
        for (ordinal, key) in (0..).zip(keys) {
            let key = key.map(|key| [key]);
            let head = RecordHead {
                position: RowPosition { commit: Lsn::new(1), ordinal },
                topic: "orders",
                key: key.as_ref().map(|key| key.as_slice()),
                payload: None,
                partition: None,
                timestamp_ms: None,
            };
            batch.start_record(head).finish();
        }
        batch
    }

    #[test]
    fn of_a_lane_one_is_sent_when_the_one_ahead_is_stored() {
        let batch = batch(&[Some(1), Some(2), Some(1), None, Some(1), None]);
        let mut order = LaneOrder::new(&batch, 0..6, false);
        let taken: Vec<_> = std::iter::from_fn(|| order.take()).collect();
        assert_eq!(taken, [0, 1, 3, 5]);
        order.stored(1);
        assert_eq!(order.take(), None);
        order.stored(0);
        assert_eq!((order.take(), order.take()), (Some(2), None));
        order.again(2);
        assert_eq!((order.take(), order.take()), (Some(2), None));
        order.stored(2);
        assert_eq!((order.take(), order.take()), (Some(4), None));
        let mut many = LaneOrder::new(&batch, 2..6, true);
        assert_eq!(std::iter::from_fn(|| many.take()).collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    /// What a broker has done with what was sent.
    #[derive(Clone, Copy, Debug)]
    enum Answer {
        Stores,
        Refuses,
        NotNow,
        /// The line is cut: it is stored, or not, and no one is told.
        Cut(bool),
    }

    fn answers() -> impl Strategy<Value = Answer> {
        prop_oneof![
            12 => Just(Answer::Stores),
            1 => Just(Answer::Refuses),
            2 => Just(Answer::NotNow),
            1 => any::<bool>().prop_map(Answer::Cut),
        ]
    }

    proptest! {
        /// The theorem of first sight: any number of relays, each of which begins at or before what is
        /// covered, and is cut off anywhere.
        #[test]
        fn the_first_sight_of_a_lane_is_in_its_order_whatever_is_cut_off_and_sent_again(
            keys in proptest::collection::vec(proptest::option::weighted(0.8, 0..4_u8), 1..40),
            answers in proptest::collection::vec(answers(), 200),
            picks in proptest::collection::vec(any::<proptest::sample::Index>(), 200),
        ) {
            let batch = batch(&keys);
            let mut stored: Vec<usize> = Vec::new();
            let mut refused: Vec<usize> = Vec::new();
            let mut answers = answers.into_iter().zip(picks);
            'relays: loop {
                let mut order = LaneOrder::new(&batch, 0..keys.len(), false);
                let mut sent: Vec<usize> = Vec::new();
                loop {
                    sent.extend(std::iter::from_fn(|| order.take()));
                    if sent.is_empty() {
                        break 'relays;
                    }
                    let Some((answer, pick)) = answers.next() else { break 'relays };
                    let index = sent.swap_remove(pick.index(sent.len()));
                    match answer {
                        // Once refused it always is.
                        _ if refused.contains(&index) => {}
                        Answer::Stores => {
                            stored.push(index);
                            order.stored(index);
                        }
                        Answer::Refuses if !stored.contains(&index) => refused.push(index),
                        Answer::Refuses | Answer::NotNow => order.again(index),
                        Answer::Cut(is_stored) => {
                            // Of all that was on the way any part may be stored, in any order.
                            if is_stored {
                                stored.push(index);
                                stored.extend(sent.iter().copied().filter(|index| !refused.contains(index)));
                            }
                            continue 'relays;
                        }
                    }
                }
            }
            let mut seen: Vec<usize> = Vec::new();
            for index in stored {
                if seen.contains(&index) {
                    continue;
                }
                if let Some(key) = keys[index] {
                    let ahead = (0..index).filter(|ahead| keys[*ahead] == Some(key));
                    let missed = ahead.filter(|ahead| !seen.contains(ahead)).collect::<Vec<_>>();
                    prop_assert_eq!(missed, Vec::<usize>::new(), "{} was seen first", index);
                }
                seen.push(index);
            }
        }
    }
}
