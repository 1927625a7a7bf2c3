//! What has an order to keep, and which of it is parked. Pure.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::core::position::RowPosition;

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

/// The parked lanes, each from a position on; empty nearly always. At most as many as it was made
/// for are in memory, whatever anybody has parked: of the others it knows by a filter of fixed size
/// that they may be, and the table has to be asked ([`Lanes::doubtful`], [`Lanes::told`]).
#[derive(Clone, Debug)]
pub struct Lanes {
    parked: HashMap<Lane, RowPosition>,
    /// Events that are in the table and that progress does not cover: they will come once more.
    there: HashSet<RowPosition>,
    max: usize,
    beyond: Option<Beyond>,
}

/// Lanes that found no room.
#[derive(Clone, Debug)]
struct Beyond {
    filter: Filter,
    /// About how many there are, for people.
    count: usize,
    /// Parked lanes of those that were asked for last, and those parked since.
    told: HashMap<Lane, RowPosition>,
    /// Lanes that a release has freed, while the table still has their events as being released.
    freed: HashSet<Lane>,
}

impl Lanes {
    /// None is parked, and at most `max` are kept in memory.
    pub fn new(max: usize) -> Self {
        Lanes { parked: HashMap::new(), there: HashSet::new(), max, beyond: None }
    }

    /// Whether nothing has to wait.
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty() && self.there.is_empty() && self.beyond.is_none()
    }

    /// The event at `position` was parked, and progress does not cover it. It waits when it is sent
    /// again, whatever became of it in the table, for that is where it is delivered from.
    pub fn expect(&mut self, position: RowPosition) {
        self.there.insert(position);
    }

    /// How many are parked; about so many where there are more than memory is for.
    pub fn len(&self) -> usize {
        self.parked.len() + self.beyond.as_ref().map_or(0, |beyond| beyond.count)
    }

    /// Whether there are lanes of which only the table knows.
    pub fn may_doubt(&self) -> bool {
        self.beyond.is_some()
    }

    /// Whether only the table knows if the lane is parked.
    pub fn doubtful(&self, lane: Lane) -> bool {
        self.beyond.as_ref().is_some_and(|beyond| {
            beyond.filter.may_have(lane)
                && !self.parked.contains_key(&lane)
                && !beyond.freed.contains(&lane)
        })
    }

    /// The table was asked for doubtful lanes; these are parked, from there on.
    pub fn told(&mut self, parked: impl IntoIterator<Item = (Lane, RowPosition)>) {
        if let Some(beyond) = &mut self.beyond {
            beyond.told = parked.into_iter().collect();
        }
    }

    /// Whether an event of the lane at `position` has to wait. One before the lane's first parked
    /// event is sent again after a reconnect, and goes its way.
    pub fn hold(&mut self, lane: impl Into<Option<Lane>>, position: RowPosition) -> bool {
        let from = |lane: &Lane| {
            let told = || self.beyond.as_ref()?.told.get(lane);
            self.parked.get(lane).or_else(told)
        };
        let held =
            lane.into().is_some_and(|lane| from(&lane).is_some_and(|from| *from <= position));
        self.there.remove(&position) || held
    }

    /// Parks the lane from `position` on, or from where it is parked already if that is earlier.
    pub fn park(&mut self, lane: Lane, position: RowPosition) {
        let room = self.parked.len() < self.max;
        match self.parked.entry(lane) {
            Entry::Occupied(mut from) => {
                let earlier = position.min(*from.get());
                from.insert(earlier);
            }
            Entry::Vacant(place) if room && self.beyond.is_none() => {
                place.insert(position);
            }
            Entry::Vacant(_) => self.beyond.get_or_insert_with(Beyond::new).park(lane, position),
        }
    }

    /// The lane is parked no more.
    pub fn free(&mut self, lane: Lane) {
        if self.parked.remove(&lane).is_none()
            && let Some(beyond) = &mut self.beyond
            && beyond.filter.may_have(lane)
        {
            beyond.told.remove(&lane);
            beyond.freed.insert(lane);
            beyond.count = beyond.count.saturating_sub(1);
        }
    }

    /// The table says of every lane that was freed that it is.
    pub fn settled(&mut self) {
        if let Some(beyond) = &mut self.beyond {
            beyond.freed.clear();
        }
    }
}

impl Beyond {
    fn new() -> Self {
        let (told, freed) = (HashMap::new(), HashSet::new());
        Beyond { filter: Filter::new(), count: 0, told, freed }
    }

    fn park(&mut self, lane: Lane, position: RowPosition) {
        self.filter.add(lane);
        self.freed.remove(&lane);
        match self.told.entry(lane) {
            Entry::Occupied(mut from) => {
                let earlier = position.min(*from.get());
                from.insert(earlier);
            }
            Entry::Vacant(place) => {
                place.insert(position);
                self.count += 1;
            }
        }
    }
}

/// Which lanes were added, and some that were not (a Bloom filter): one in five hundred with two
/// million of them, one in four with ten.
#[derive(Clone)]
struct Filter(Vec<u64>);

impl Filter {
    /// 4 MiB.
    const WORDS: usize = 1 << 19;

    fn new() -> Self {
        Filter(vec![0; Self::WORDS])
    }

    /// A lane is a hash already: its four quarters are as good as four hashes.
    fn bits(lane: Lane) -> impl Iterator<Item = (usize, u64)> {
        (0..4).map(move |quarter| {
            let hash = (lane.0 >> (32 * quarter)) as usize;
            ((hash >> 6) % Self::WORDS, 1 << (hash & 63))
        })
    }

    fn add(&mut self, lane: Lane) {
        for (word, bit) in Self::bits(lane) {
            if let Some(word) = self.0.get_mut(word) {
                *word |= bit;
            }
        }
    }

    fn may_have(&self, lane: Lane) -> bool {
        Self::bits(lane).all(|(word, bit)| self.0.get(word).is_some_and(|word| word & bit != 0))
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lsn::Lsn;

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
        lanes.park(lane, at(10, 3));
        assert!(!lanes.hold(lane, at(10, 2)) && lanes.hold(lane, at(10, 3)));
        assert!(lanes.hold(lane, at(11, 0)));
        lanes.park(lane, at(12, 0));
        assert!(lanes.hold(lane, at(10, 3)), "a later one moves nothing");
        lanes.park(lane, at(9, 0));
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
    fn beyond_what_memory_is_for_the_table_is_asked() {
        let lane = |n: u32| Lane::of("t", Some(&n.to_be_bytes()), None).expect("a lane");
        let mut lanes = Lanes::new(2);
        (0..10).for_each(|n| lanes.park(lane(n), at(1, u64::from(n))));
        assert_eq!((lanes.len(), lanes.parked.len()), (10, 2));
        assert!(!lanes.doubtful(lane(1)) && lanes.doubtful(lane(9)));
        assert!(lanes.hold(lane(9), at(1, 9)), "it was parked a moment ago");
        let others = (100..1_100).filter(|n| lanes.doubtful(lane(*n))).count();
        assert_eq!(others, 0, "others are not asked for");

        lanes.told([]);
        assert!(!lanes.hold(lane(9), at(2, 0)), "the table says that it is not parked any more");
        lanes.told([(lane(9), at(1, 9))]);
        assert!(lanes.hold(lane(9), at(2, 0)) && !lanes.hold(lane(9), at(1, 8)));

        lanes.free(lane(9));
        assert!(!lanes.doubtful(lane(9)) && !lanes.hold(lane(9), at(2, 0)), "it is being released");
        lanes.park(lane(9), at(3, 0));
        assert!(lanes.hold(lane(9), at(3, 0)), "it was refused again");
        lanes.free(lane(8));
        lanes.settled();
        assert!(lanes.doubtful(lane(8)), "the table knows better again");
        lanes.free(lane(0));
        assert_eq!((lanes.len(), lanes.parked.len()), (8, 1));
    }

    #[test]
    fn millions_of_lanes_take_no_more_memory_and_few_others_are_asked_for() {
        let lane = |n: u32| Lane::of("t", Some(&n.to_be_bytes()), None).expect("a lane");
        let mut filter = Filter::new();
        (0..200_000).for_each(|n| filter.add(lane(n)));
        assert!((0..200_000).all(|n| filter.may_have(lane(n))));
        let others = (1_000_000..1_100_000).filter(|n| filter.may_have(lane(*n))).count();
        assert!(others < 100, "{others} of 100,000");
    }
}
