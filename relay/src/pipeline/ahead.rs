//! How the tables were published at moments that delivery has not passed yet.
//!
//! Progress must not say so before: where the slot is lost, the rows that it had are looked for in the tables that
//! progress knows, and another table of the same name does not have them. Pure.

use std::collections::VecDeque;

use crate::core::{lsn::Lsn, progress::Progress, published::Published};

/// Changes that may wait; of more, the last waits for longer.
const WAITING_MAX: usize = 8;

/// What progress is to say once delivery has passed a place.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// What is stored, while something waits.
    before: Option<Published>,
    waiting: VecDeque<(Lsn, Published)>,
}

impl Ahead {
    /// The tables were `published` so before the WAL had come to `lsn`.
    pub(super) fn offer(&mut self, lsn: Lsn, published: Published, progress: &Progress) {
        let newest = self.waiting.back().map(|(_, newest)| newest).or(progress.published.as_ref());
        if newest == Some(&published) {
            return;
        }
        if self.waiting.is_empty() {
            self.before.clone_from(&progress.published);
        }
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_back();
        }
        self.waiting.push_back((lsn, published));
    }

    /// Writes into `progress` what holds up to `delivered`. It counts once it is stored.
    pub(super) fn pass(&self, delivered: Lsn, progress: &mut Progress) {
        if self.waiting.is_empty() {
            return;
        }
        let passed = self.waiting.iter().take_while(|(lsn, _)| *lsn <= delivered).last();
        progress.published = passed.map(|(_, it)| it.clone()).or_else(|| self.before.clone());
    }

    /// What was passed last is stored.
    pub(super) fn stored(&mut self, progress: &Progress) {
        let is_it = |(_, it): &(Lsn, Published)| progress.published.as_ref() == Some(it);
        if let Some(last) = self.waiting.iter().rposition(is_it) {
            self.waiting.drain(..=last);
            self.before.clone_from(&progress.published);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_speaks_of_a_table_once_delivery_has_come_to_it() {
        let of = |publication: &str| Published {
            publication: publication.to_owned(),
            ..Published::default()
        };
        let mut progress = Progress::before_first_start("s");
        progress.published = Some(of("a"));
        let mut ahead = Ahead::default();
        for (lsn, published) in [(10, "a"), (20, "b"), (30, "b"), (40, "c")] {
            ahead.offer(Lsn::new(lsn), of(published), &progress);
        }
        let mut passed = |ahead: &Ahead, delivered: u64| {
            ahead.pass(Lsn::new(delivered), &mut progress);
            progress.published.clone().expect("it has one").publication
        };
        assert_eq!(passed(&ahead, 19), "a");
        assert_eq!(passed(&ahead, 45), "c");
        assert_eq!(passed(&ahead, 20), "b", "the delivery before was not stored");
        ahead.stored(&progress);
        let mut passed = |delivered: u64| {
            ahead.pass(Lsn::new(delivered), &mut progress);
            progress.published.clone().expect("it has one").publication
        };
        assert_eq!(passed(39), "b");
        assert_eq!(passed(40), "c");
    }
}
