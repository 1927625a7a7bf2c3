//! What has an order to keep, and which of it is parked. Pure.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::position::RowPosition;

/// A lane as 128 bits of a hash: (topic, key), or without a key (topic, explicit partition). It is
/// stored with dead letters, so it is the same in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(u128);

impl Lane {
    /// The lane of an event; `None` for one that stands alone, or whose topic is not known.
    pub fn of(topic: &str, key: Option<&[u8]>, partition: Option<i32>) -> Option<Self> {
        if topic.is_empty() {
            return None;
        }
        let mut hash = Sha256::new();
        // The length keeps topic and key apart.
        hash.update((topic.len() as u64).to_be_bytes());
        hash.update(topic);
        match (key, partition) {
            (Some(key), _) => {
                hash.update(b"k");
                hash.update(key);
            }
            (None, Some(partition)) => {
                hash.update(b"p");
                hash.update(partition.to_be_bytes());
            }
            (None, None) => return None,
        }
        let digest: [u8; 32] = hash.finalize().into();
        let (half, _) = digest.split_first_chunk().expect("32 bytes are more than 16");
        Some(Lane(u128::from_be_bytes(*half)))
    }

    /// As the table holds it.
    pub fn to_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    /// As the table holds it.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Lane(uuid.as_u128())
    }
}

/// More lanes are parked than may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {max} lanes are parked")]
pub struct TooManyLanes {
    /// The setting `parking.lanes_max`.
    pub max: usize,
}

/// The parked lanes, each from a position on: bounded, and empty nearly always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lanes {
    parked: HashMap<Lane, RowPosition>,
    /// Events that are in the table and that progress does not cover: they will come once more.
    there: HashSet<RowPosition>,
    max: usize,
}

impl Lanes {
    /// None is parked, and at most `max` may be.
    pub fn new(max: usize) -> Self {
        Lanes { parked: HashMap::new(), there: HashSet::new(), max }
    }

    /// Whether nothing has to wait.
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty() && self.there.is_empty()
    }

    /// The event at `position` was parked, and progress does not cover it. It waits when it is sent
    /// again, whatever became of it in the table, for that is where it is delivered from.
    pub fn expect(&mut self, position: RowPosition) {
        self.there.insert(position);
    }

    /// How many are parked.
    pub fn len(&self) -> usize {
        self.parked.len()
    }

    /// Whether an event of the lane at `position` has to wait. One before the lane's first parked
    /// event is sent again after a reconnect, and goes its way.
    pub fn hold(&mut self, lane: impl Into<Option<Lane>>, position: RowPosition) -> bool {
        let held = |lane: Lane| self.parked.get(&lane).is_some_and(|from| *from <= position);
        let held = lane.into().is_some_and(held);
        self.there.remove(&position) || held
    }

    /// Parks the lane from `position` on, or from where it is parked already if that is earlier.
    ///
    /// # Errors
    /// [`TooManyLanes`]; the lane is not parked.
    pub fn park(&mut self, lane: Lane, position: RowPosition) -> Result<(), TooManyLanes> {
        let full = self.parked.len() >= self.max;
        match self.parked.entry(lane) {
            Entry::Occupied(mut from) => {
                let earlier = position.min(*from.get());
                from.insert(earlier);
                Ok(())
            }
            Entry::Vacant(_) if full => Err(TooManyLanes { max: self.max }),
            Entry::Vacant(place) => {
                place.insert(position);
                Ok(())
            }
        }
    }

    /// The lane is parked no more.
    pub fn free(&mut self, lane: Lane) {
        self.parked.remove(&lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn at(commit: u64, ordinal: u64) -> RowPosition {
        RowPosition { commit: Lsn::new(commit), ordinal }
    }

    #[test]
    fn a_lane_is_topic_and_key_else_topic_and_partition_else_nothing() {
        let lane = Lane::of;
        assert_eq!(lane("a", Some(b"k"), None), lane("a", Some(b"k"), Some(3)));
        assert_ne!(lane("a", Some(b"k"), None), lane("b", Some(b"k"), None));
        assert_ne!(lane("a", Some(b"bk"), None), lane("ab", Some(b"k"), None));
        assert_ne!(lane("a", Some(b""), None), lane("a", None, Some(0)));
        assert_ne!(lane("a", None, Some(1)), lane("a", None, Some(2)));
        assert!(lane("a", Some(b""), None).is_some(), "an empty key is a key");
        assert_eq!(lane("a", None, None), None);
        assert_eq!(lane("", Some(b"k"), None), None);
    }

    /// Rows of an older version must be found again.
    #[test]
    fn a_lane_s_hash_never_changes() {
        let lane = Lane::of("orders", Some(b"customer-1"), None).expect("a lane");
        assert_eq!(lane.to_uuid().to_string(), "bfaa7160-8e24-f958-e45c-d1e5612944f0");
        assert_eq!(Lane::from_uuid(lane.to_uuid()), lane);
    }

    #[test]
    fn a_lane_holds_from_its_first_parked_event_on() {
        let mut lanes = Lanes::new(2);
        let lane = Lane::of("a", Some(b"k"), None).expect("a lane");
        lanes.park(lane, at(10, 3)).expect("room");
        assert!(!lanes.hold(lane, at(10, 2)) && lanes.hold(lane, at(10, 3)));
        assert!(lanes.hold(lane, at(11, 0)));
        lanes.park(lane, at(12, 0)).expect("it is parked already");
        assert!(lanes.hold(lane, at(10, 3)), "a later one moves nothing");
        lanes.park(lane, at(9, 0)).expect("it is parked already");
        assert!(lanes.hold(lane, at(9, 0)));
        lanes.free(lane);
        assert!(lanes.is_empty() && !lanes.hold(lane, at(20, 0)));
    }

    #[test]
    fn an_event_that_is_in_the_table_waits_once_more_alone_or_not() {
        let mut lanes = Lanes::new(2);
        lanes.expect(at(10, 3));
        assert!(!lanes.is_empty());
        assert_eq!(lanes.len(), 0);
        assert!(!lanes.hold(None, at(10, 2)) && lanes.hold(None, at(10, 3)));
        assert!(lanes.is_empty());
    }

    #[test]
    fn the_lanes_are_bounded() {
        let mut lanes = Lanes::new(2);
        for key in [b"a", b"b"] {
            lanes.park(Lane::of("t", Some(key), None).expect("a lane"), at(1, 0)).expect("room");
        }
        let third = Lane::of("t", Some(b"c"), None).expect("a lane");
        assert_eq!(lanes.park(third, at(1, 0)), Err(TooManyLanes { max: 2 }));
        let first = Lane::of("t", Some(b"a"), None).expect("a lane");
        assert_eq!(lanes.park(first, at(2, 0)), Ok(()));
    }
}
