//! What was in a topic when it was changed, and what may be missing in the end.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
};

use outbox_harness::{
    check,
    event::Committed,
    host::report,
    murmur2,
    topic::{Record, Topic},
    wait,
};
use outbox_relay::fault::Point;

use super::{BULKY_BYTES, Change, Delivery, PARTITIONS};

/// One case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) point: Point,
    pub(super) delivery: Delivery,
    pub(super) change: Change,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}, {:?})", self.point.name(), self.change, self.delivery)
    }
}

/// What a topic held while its relay was frozen.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// What a consumer of committed records was given.
    committed: Vec<Record>,
    /// That, and what was in an open transaction or was taken back.
    all: Vec<Record>,
    /// Of each partition.
    pub(super) ends: Vec<i64>,
}

impl Held {
    /// Nothing, where the change leaves the topic its records.
    pub(super) async fn in_topic(topic: &Topic, case: Case) -> Self {
        if !case.change.deletes() {
            return Held::default();
        }
        // What the relay sent before it froze may be on its way, also the end of a transaction.
        wait::until("the topic has what the relay sent", wait::PATIENCE, || async {
            let [ends, committed] = topic.ends().await;
            let held = Held {
                committed: topic.records().await,
                all: topic.records_uncommitted().await,
                ends,
            };
            if !case.is_open() && committed != held.ends {
                return Err("a transaction's end is under way");
            }
            match topic.ends().await {
                same if same == [held.ends.clone(), committed] => Ok(held),
                _ => Err("more has come"),
            }
        })
        .await
        .expect("it has")
    }

    pub(super) fn has(&self, id: &str) -> bool {
        ids(&self.all).any(|held| held == id)
    }
}

impl Case {
    /// Whether a transaction with records may be open at the point.
    const fn is_open(self) -> bool {
        let open = matches!(
            self.point,
            Point::RecordsProduced | Point::RecordsStored | Point::CommitUnderWay | Point::Aborting
        );
        matches!(self.delivery, Delivery::ExactlyOnce) && open
    }

    /// Whether that transaction may be committed although its records are gone.
    const fn may_commit(self) -> bool {
        self.is_open() && !matches!(self.point, Point::Aborting)
    }

    /// Compares what is committed with what consumers were given of the topic, before the change (`held`)
    /// and after it (`records`).
    pub(super) fn count(self, truth: &[Committed], held: &Held, records: &[Record]) {
        let exactly_once = self.delivery == Delivery::ExactlyOnce;
        let read = [held.committed.as_slice(), records].concat();
        let count = check::compare(truth, &read, PARTITIONS);
        assert_eq!((count.uncommitted, count.altered), (0, 0), "{count}");
        let given: HashSet<&str> = ids(&read).collect();
        let gone: Vec<&Committed> =
            truth.iter().filter(|row| !given.contains(row.id.as_str())).collect();
        report(&format!("{self}: {count}, {} of these were in the topic", gone.len()));
        self.assert_one_transaction(&gone, held, records);
        if exactly_once {
            assert_eq!(count.duplicated, 0, "{count}");
            for records in [&held.committed, records] {
                assert_eq!(check::positions_that_step_back(records), Vec::<String>::new());
            }
        }
        self.assert_order(truth, held, records);
        self.assert_partitions(truth, records);
    }

    /// What no one could read was in the transaction that was open in the topic, complete: it is newer than
    /// all that was committed there, and older than all that came later.
    fn assert_one_transaction(self, gone: &[&Committed], held: &Held, records: &[Record]) {
        assert!(gone.is_empty() || self.may_commit(), "lost: {gone:?}");
        let position = |record: &Record| record.header("outbox-position").map(str::to_owned);
        let before = held.committed.iter().filter_map(position).max();
        let after = records.iter().filter_map(position).min();
        for row in gone {
            let mut of_row = held.all.iter().filter(|it| it.id() == Some(row.id.as_str()));
            let position = of_row.next().and_then(position);
            assert!(position.is_some(), "lost: {row:?}");
            assert!(position > before, "{position:?} is not after {before:?}: {row:?}");
            assert!(position < after, "{position:?} is not before {after:?}: {row:?}");
        }
    }

    /// A key may be in two partitions of what was recreated or has grown: each of them has it in order,
    /// behind what was there before.
    fn assert_order(self, truth: &[Committed], held: &Held, records: &[Record]) {
        // What was in flight with an event that is refused may precede that one.
        let is_refused = |row: &Committed| {
            self.delivery != Delivery::ExactlyOnce
                && row.payload.as_ref().is_some_and(|payload| payload.len() >= BULKY_BYTES)
        };
        let counted: Vec<Committed> =
            truth.iter().filter(|row| !is_refused(row)).cloned().collect();
        let partitions: BTreeSet<i32> = records.iter().map(|record| record.partition).collect();
        for partition in partitions {
            let of_it = records.iter().filter(|record| record.partition == partition);
            let read: Vec<Record> = held.committed.iter().chain(of_it).cloned().collect();
            assert_eq!(check::overtaken(&counted, &read), Vec::<String>::new());
        }
    }

    /// Each record is where its key belongs, among as many partitions as there were or are.
    fn assert_partitions(self, truth: &[Committed], records: &[Record]) {
        for record in records {
            let row = truth.iter().find(|row| record.id() == Some(row.id.as_str()));
            let row = row.expect("it is committed");
            let key = row.key.as_deref().map(str::as_bytes);
            let of_key = |key| {
                [PARTITIONS, self.change.partitions()]
                    .map(|count| murmur2::partition(key, count))
                    .contains(&record.partition)
            };
            let is_right = match (row.partition, key) {
                (Some(partition), _) => record.partition == partition,
                (None, Some(key)) => of_key(key),
                (None, None) => true,
            };
            assert!(is_right, "{record:?}");
        }
    }
}

/// A topic that was not changed.
pub(super) fn assert_untouched(delivery: Delivery, truth: &[Committed], records: &[Record]) {
    let count = check::compare(truth, records, 1);
    if delivery == Delivery::ExactlyOnce {
        count.assert_exactly_once();
        assert_eq!(check::positions_that_step_back(records), Vec::<String>::new());
    } else {
        check::Count { out_of_order: 0, ..count }.assert_at_least_once();
        assert_eq!(check::overtaken(truth, records), Vec::<String>::new());
    }
}

fn ids(records: &[Record]) -> impl Iterator<Item = &str> {
    records.iter().filter_map(Record::id)
}
