//! Which events that a repair reads are among the parked ones already.
//!
//! Nothing makes an id unique. An event is known by its id, time, topic and key, and by the transaction that
//! wrote it. Of one transaction's events that share all of it, each letter stands for one: where there are
//! more events than letters, for those whose payloads are as long as the letters', which may have been edited.

use std::collections::HashMap;

use crate::{
    core::record::{Batch, Record},
    dead_letter::headers::Repertoire,
};

/// What a repair has found so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Letters with higher ids are of events that this repair has read before.
    pub(super) newest: Option<i64>,
    /// The letters that stand for events of the last one's millisecond, by their identities: more of these may
    /// come, behind others, since rows are read by the microsecond.
    taken: HashMap<Identity, Kinds>,
    /// That millisecond.
    moment: Option<i64>,
}

/// Of one millisecond, so many identities are remembered; beyond them, those of the last one's id, which
/// come next if their time is the same to the microsecond.
const TAKEN_MAX: usize = 10_000;

/// By what an event is known but for its transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) event_id: String,
    pub(super) topic: Option<String>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) timestamp_ms: Option<i64>,
}

/// An event of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    index: usize,
    xid: Option<u32>,
    bytes: Option<i64>,
}

/// Letters of one identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// `None` where it is not known.
    pub(super) xid: Option<u32>,
    /// Of the payload.
    pub(super) bytes: Option<i64>,
    pub(super) count: i64,
}

pub(super) type Kinds = Vec<Kind>;

/// The events of a batch, by what they are known by, in the order of the first of each; what has no id is
/// never known.
pub(super) fn groups(batch: &Batch, repertoire: Repertoire) -> Vec<(Identity, Vec<Event>)> {
    let mut places = HashMap::new();
    let mut groups: Vec<(Identity, Vec<Event>)> = Vec::new();
    for (index, record) in batch.iter().enumerate() {
        let Some(identity) = Identity::of(&record, repertoire) else { continue };
        let place = *places.entry(identity.clone()).or_insert(groups.len());
        if place == groups.len() {
            groups.push((identity, Vec::new()));
        }
        let bytes = record.payload.and_then(|payload| i64::try_from(payload.len()).ok());
        if let Some((_, events)) = groups.get_mut(place) {
            events.push(Event { index, xid: record.xid, bytes });
        }
    }
    groups
}

impl Found {
    /// The events that letters stand for. `letters` are those of each group; ones that stood for events of
    /// earlier batches count no more.
    pub(super) fn take(
        &mut self,
        groups: &[(Identity, Vec<Event>)],
        letters: &HashMap<usize, Kinds>,
        batch: &Batch,
        repertoire: Repertoire,
    ) -> Vec<usize> {
        let Some(last) = batch.len().checked_sub(1).and_then(|last| batch.get(last)) else {
            return Vec::new();
        };
        let moment = last.timestamp_ms;
        let mut there = Vec::new();
        let mut taken = HashMap::new();
        for (place, (identity, events)) in groups.iter().enumerate() {
            let Some(all) = letters.get(&place) else { continue };
            let mut left = match self.taken.get(identity) {
                Some(taken) => without(all, taken),
                None => all.clone(),
            };
            there.extend(assign(events, &mut left));
            if identity.timestamp_ms == moment {
                taken.insert(identity.clone(), without(all, &left));
            }
        }
        if self.moment != moment {
            self.taken.clear();
            self.moment = moment;
        }
        self.taken.extend(taken);
        if self.taken.len() > TAKEN_MAX {
            let event_id = event_id(&last, repertoire);
            self.taken.retain(|identity, _| Some(&identity.event_id) == event_id.as_ref());
        }
        there.sort_unstable();
        there
    }
}

/// A record's id, as the table has it.
pub(super) fn event_id(record: &Record<'_>, repertoire: Repertoire) -> Option<String> {
    let text = |bytes: &[u8]| repertoire.sanitised(&String::from_utf8_lossy(bytes));
    record.event_id().map(text)
}

/// A record's topic, as the table has it.
pub(super) fn topic(record: &Record<'_>, repertoire: Repertoire) -> Option<String> {
    let topic = Some(record.topic).filter(|topic| !topic.is_empty());
    topic.map(|topic| repertoire.sanitised(topic))
}

impl Identity {
    fn of(record: &Record<'_>, repertoire: Repertoire) -> Option<Self> {
        Some(Identity {
            event_id: event_id(record, repertoire)?,
            topic: topic(record, repertoire),
            key: record.key.map(<[u8]>::to_vec),
            timestamp_ms: record.timestamp_ms,
        })
    }
}

/// Which events letters stand for; takes these letters out. What is certain comes first.
fn assign(events: &[Event], letters: &mut Kinds) -> Vec<usize> {
    let mut open = events.to_vec();
    let mut there = Vec::new();
    let same: fn(&Event, &Kind) -> bool = |event, kind| event.xid == kind.xid;
    let unknown: fn(&Event, &Kind) -> bool =
        |event, kind| event.xid.is_none() || kind.xid.is_none();
    for (of_its_transaction, as_long) in
        [(same, true), (same, false), (unknown, true), (unknown, false)]
    {
        open.retain(|event| {
            let mut fitting = letters.iter_mut().filter(|kind| {
                kind.count > 0
                    && of_its_transaction(event, kind)
                    && (!as_long || kind.bytes == event.bytes)
            });
            let Some(kind) = fitting.next() else { return true };
            kind.count -= 1;
            there.push(event.index);
            false
        });
    }
    there
}

/// `all` without `some`.
fn without(all: &[Kind], some: &[Kind]) -> Kinds {
    let left = all.iter().map(|kind| {
        let alike = some.iter().filter(|it| (it.xid, it.bytes) == (kind.xid, kind.bytes));
        Kind { count: (kind.count - alike.map(|it| it.count).sum::<i64>()).max(0), ..kind.clone() }
    });
    left.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        header,
        lsn::Lsn,
        position::RowPosition,
        record::{BatchLimits, RecordHead},
    };

    const A: Option<u32> = Some(7);
    const B: Option<u32> = Some(8);

    fn events(of: &[(Option<u32>, i64)]) -> Vec<Event> {
        let event = |(index, (xid, bytes)): (usize, &(Option<u32>, i64))| Event {
            index,
            xid: *xid,
            bytes: Some(*bytes),
        };
        of.iter().enumerate().map(event).collect()
    }

    fn kinds(of: &[(Option<u32>, i64, i64)]) -> Kinds {
        let kind = |(xid, bytes, count): &(Option<u32>, i64, i64)| Kind {
            xid: *xid,
            bytes: Some(*bytes),
            count: *count,
        };
        of.iter().map(kind).collect()
    }

    #[test]
    fn each_letter_stands_for_one_event_of_its_transaction() {
        for (of, letters, expected) in [
            (&[(A, 1), (B, 1)][..], &[(A, 1, 1)][..], &[0][..]),
            (&[(A, 1), (B, 1)], &[(B, 1, 9)], &[1]),
            // Of one transaction as many as there are letters, and those of their length first.
            (&[(A, 1), (A, 2), (A, 3)], &[(A, 3, 1)], &[2]),
            (&[(A, 1), (A, 2), (A, 3)], &[(A, 3, 1), (A, 9, 1)], &[0, 2]),
            (&[(A, 1), (A, 1), (A, 1)], &[(A, 1, 2)], &[0, 1]),
            // A letter of an earlier version; what is certain goes before.
            (&[(A, 1), (B, 2)], &[(None, 2, 1)], &[1]),
            (&[(A, 1), (B, 1)], &[(None, 1, 1), (A, 1, 1)], &[0, 1]),
            (&[(A, 1), (B, 1)], &[(None, 5, 1), (B, 9, 1)], &[0, 1]),
            (&[(None, 1), (A, 1)], &[(A, 1, 1)], &[1]),
            (&[(None, 1)], &[(A, 1, 1)], &[0]),
            (&[(A, 1)], &[(B, 1, 1)], &[]),
        ] {
            let mut left = kinds(letters);
            let mut there = assign(&events(of), &mut left);
            there.sort_unstable();
            assert_eq!(there, expected, "{of:?} {letters:?}");
            let taken: i64 = without(&kinds(letters), &left).iter().map(|it| it.count).sum();
            assert_eq!(taken, there.len() as i64, "{of:?} {letters:?}");
        }
    }

    const ANY: Option<u32> = Some(7);

    /// Events of one transaction, topic and key: ids, each with its time in milliseconds.
    fn batch(of: &[(&str, i64)]) -> Batch {
        let mut batch = Batch::new(BatchLimits { records_max: 10, bytes_max: 1 << 20 });
        for (ordinal, (id, timestamp_ms)) in (0..).zip(of) {
            let mut record = batch.start_record(RecordHead {
                position: RowPosition { commit: Lsn::new(7), ordinal },
                topic: "t",
                key: Some(b"k"),
                payload: Some(b"1"),
                partition: None,
                timestamp_ms: Some(*timestamp_ms),
            });
            record.header(header::ID, id.as_bytes());
            record.written_by(ANY);
            record.finish();
        }
        batch
    }

    /// What a repair of these batches leaves out, where the table has a letter of each of these.
    fn left_out(letters: &[(&str, i64)], batches: &[&[(&str, i64)]]) -> Vec<Vec<usize>> {
        let mut found = Found::default();
        let each = batches.iter().map(|of| {
            let batch = batch(of);
            let groups = groups(&batch, Repertoire::Unicode);
            let kinds = |identity: &Identity| {
                let is_its = |(id, ms): &&(&str, i64)| {
                    identity.event_id == *id && identity.timestamp_ms == Some(*ms)
                };
                let count = letters.iter().filter(is_its).count() as i64;
                (count > 0).then(|| vec![Kind { xid: ANY, bytes: Some(1), count }])
            };
            let letters = groups.iter().enumerate();
            let letters =
                letters.filter_map(|(place, (it, _))| kinds(it).map(|kinds| (place, kinds)));
            found.take(&groups, &letters.collect(), &batch, Repertoire::Unicode)
        });
        each.collect()
    }

    #[test]
    fn a_letter_stands_for_one_event_though_they_come_in_two_batches() {
        let letter = [("a", 5)];
        // One behind the other, and with others of their millisecond between: rows are read by the microsecond.
        for batches in [
            [&[("a", 5)][..], &[("a", 5)]],
            [&[("a", 5), ("b", 5)], &[("a", 5)]],
            [&[("a", 5), ("b", 5)], &[("c", 5), ("a", 5)]],
        ] {
            assert_eq!(left_out(&letter, &batches), [vec![0], vec![]], "{batches:?}");
        }
        let batches: [&[_]; 3] = [&[("a", 5)], &[("b", 5)], &[("a", 5)]];
        assert_eq!(left_out(&letter, &batches), [vec![0], vec![], vec![]]);
        let twice = [("a", 5), ("a", 5)];
        assert_eq!(left_out(&twice, &batches), [vec![0], vec![], vec![0]]);
        let later: [&[_]; 2] = [&[("a", 5)], &[("a", 6)]];
        assert_eq!(left_out(&[("a", 5), ("a", 6)], &later), [vec![0], vec![0]]);
    }

    #[test]
    fn what_is_remembered_of_a_millisecond_has_a_bound() {
        let mut found = Found::default();
        for n in 0..=TAKEN_MAX {
            let id = n.to_string();
            let batch = batch(&[(&id, 5)]);
            let groups = groups(&batch, Repertoire::Unicode);
            let letters = HashMap::from([(0, vec![Kind { xid: ANY, bytes: Some(1), count: 1 }])]);
            assert_eq!(found.take(&groups, &letters, &batch, Repertoire::Unicode), [0]);
            assert_eq!(found.take(&groups, &letters, &batch, Repertoire::Unicode), [0; 0]);
            assert!(found.taken.len() <= TAKEN_MAX);
        }
    }
}
