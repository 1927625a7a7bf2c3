//! Which messages go in one request: of one queue or topic, ten at most, and together no larger than one may be. Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use outbox_relay_aws::ENTRIES_MAX;

/// Messages that may be sent now, by where they go.
#[derive(Debug, Default)]
pub(super) struct Requests<'a> {
    waiting: HashMap<&'a str, VecDeque<Waiting>>,
    /// Each that has some waiting, once.
    turns: VecDeque<&'a str>,
    /// Of these the service is to say what it thinks of each.
    alone: HashSet<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    index: usize,
    bytes: usize,
}

impl<'a> Requests<'a> {
    /// It may be sent.
    pub(super) fn add(&mut self, index: usize, destination: &'a str, bytes: usize) {
        let waiting = self.waiting.entry(destination).or_default();
        if waiting.is_empty() {
            self.turns.push_back(destination);
        }
        waiting.push_back(Waiting { index, bytes });
    }

    /// It goes in a request of its own from now on.
    pub(super) fn alone(&mut self, index: usize) {
        self.alone.insert(index);
    }

    /// The next request; queues and topics take turns. `bytes_max` is of each.
    pub(super) fn next(
        &mut self,
        bytes_max: impl Fn(&str) -> usize,
    ) -> Option<(&'a str, Vec<usize>)> {
        let destination = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(destination)?;
        let (mut indexes, mut left) = (Vec::with_capacity(ENTRIES_MAX), bytes_max(destination));
        while let Some(next) = waiting.front() {
            let is_first = indexes.is_empty();
            let fits = indexes.len() < ENTRIES_MAX
                && next.bytes <= left
                && !self.alone.contains(&next.index);
            // The first one was judged by itself.
            if !is_first && !fits {
                break;
            }
            left = left.saturating_sub(next.bytes);
            indexes.push(next.index);
            let is_alone = self.alone.contains(&next.index);
            waiting.pop_front();
            if is_alone {
                break;
            }
        }
        if !waiting.is_empty() {
            self.turns.push_back(destination);
        }
        Some((destination, indexes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(requests: &mut Requests<'static>, bytes_max: usize) -> Vec<(&'static str, Vec<usize>)> {
        std::iter::from_fn(|| requests.next(|_| bytes_max)).collect()
    }

    #[test]
    fn a_request_has_ten_messages_of_one_queue_and_queues_take_turns() {
        let mut requests = Requests::default();
        for index in 0..26 {
            requests.add(index, if index < 24 { "a" } else { "b" }, 1);
        }
        let expected = [
            ("a", (0..10).collect()),
            ("b", vec![24, 25]),
            ("a", (10..20).collect()),
            ("a", (20..24).collect()),
        ];
        assert_eq!(all(&mut requests, 100), expected);
        assert_eq!(all(&mut requests, 100), []);
        requests.add(30, "a", 1);
        assert_eq!(all(&mut requests, 100), [("a", vec![30])]);
    }

    #[test]
    fn a_request_is_no_larger_than_a_message_may_be() {
        let mut requests = Requests::default();
        for (index, bytes) in [60, 30, 10, 1, 100, 1].into_iter().enumerate() {
            requests.add(index, "a", bytes);
        }
        assert_eq!(
            all(&mut requests, 100),
            [("a", vec![0, 1, 2]), ("a", vec![3]), ("a", vec![4]), ("a", vec![5])]
        );
    }

    #[test]
    fn what_is_to_be_told_by_itself_goes_alone() {
        let mut requests = Requests::default();
        requests.alone(1);
        requests.alone(2);
        (0..5).for_each(|index| requests.add(index, "a", 1));
        assert_eq!(
            all(&mut requests, 100),
            [("a", vec![0]), ("a", vec![1]), ("a", vec![2]), ("a", vec![3, 4])]
        );
    }
}
