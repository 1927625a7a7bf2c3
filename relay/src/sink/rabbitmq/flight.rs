//! What is published and not confirmed, and what the broker's answers say of it. Pure.
//!
//! A message that no queue takes comes back, and is confirmed all the same: the broker is done with it. It
//! is sent back before it is confirmed, so whatever is confirmed and did not come back is stored. A message that
//! came back has no number; it is known by where it went and by its id.

use std::collections::BTreeMap;

/// Unconfirmed messages, by number.
#[derive(Debug, Default)]
pub(super) struct Flight {
    sent: BTreeMap<u64, Sent>,
    bytes: usize,
}

#[derive(Debug)]
struct Sent {
    /// Of the record, in its batch.
    index: usize,
    bytes: usize,
    /// What the broker said when it sent it back.
    returned: Option<String>,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All queues that it went to have it.
    Stored,
    /// No queue takes it, the broker says.
    Unroutable(String),
    /// It is not stored, or not everywhere; it may be sent again.
    NotNow,
}

impl Flight {
    pub(super) fn sent(&mut self, tag: u64, index: usize, bytes: usize) {
        self.bytes += bytes;
        self.sent.insert(tag, Sent { index, bytes, returned: None });
    }

    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A message came back: the first one that `is_it` of those that have not. Whether there is any.
    pub(super) fn returned(&mut self, text: &str, is_it: impl Fn(usize) -> bool) -> bool {
        let mut waiting = self.sent.values_mut().filter(|sent| sent.returned.is_none());
        let Some(sent) = waiting.find(|sent| is_it(sent.index)) else { return false };
        sent.returned = Some(text.to_owned());
        true
    }

    /// A confirmation, of one or of all up to `tag`.
    pub(super) fn confirmed(
        &mut self,
        tag: u64,
        multiple: bool,
        stored: bool,
    ) -> impl Iterator<Item = (usize, Outcome)> {
        let done = match multiple {
            true => {
                let later = self.sent.split_off(&(tag + 1));
                std::mem::replace(&mut self.sent, later)
            }
            false => self.sent.remove_entry(&tag).into_iter().collect(),
        };
        self.bytes -= done.values().map(|sent| sent.bytes).sum::<usize>();
        done.into_values().map(move |sent| {
            let outcome = match (sent.returned, stored) {
                (Some(text), _) => Outcome::Unroutable(text),
                (None, true) => Outcome::Stored,
                (None, false) => Outcome::NotNow,
            };
            (sent.index, outcome)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(outcomes: impl Iterator<Item = (usize, Outcome)>) -> Vec<(usize, Outcome)> {
        outcomes.collect()
    }

    #[test]
    fn what_came_back_is_not_stored_whichever_confirmation_covers_it() {
        let mut flight = Flight::default();
        (1..=6).for_each(|tag| flight.sent(tag, 10 + usize::try_from(tag).expect("small"), 100));
        assert!(flight.returned("312 NO_ROUTE", |index| index == 13));
        assert_eq!(of(flight.confirmed(2, false, true)), [(12, Outcome::Stored)]);
        assert!(flight.returned("312 NO_ROUTE", |index| index == 14));
        let unroutable = || Outcome::Unroutable("312 NO_ROUTE".into());
        let wanted = [(11, Outcome::Stored), (13, unroutable()), (14, unroutable())];
        assert_eq!(of(flight.confirmed(4, true, true)), wanted);
        assert_eq!(of(flight.confirmed(6, false, false)), [(16, Outcome::NotNow)]);
        assert_eq!((flight.len(), flight.bytes()), (1, 100));
        assert!(!flight.returned("312 NO_ROUTE", |index| index == 13), "it is done");
        assert_eq!(of(flight.confirmed(9, true, true)), [(15, Outcome::Stored)]);
        assert_eq!((flight.len(), flight.bytes()), (0, 0));
    }

    #[test]
    fn of_two_alike_that_came_back_each_is_one() {
        let mut flight = Flight::default();
        flight.sent(1, 0, 1);
        flight.sent(2, 1, 1);
        assert!(flight.returned("a", |_| true) && flight.returned("b", |_| true));
        assert!(!flight.returned("c", |_| true));
    }
}
