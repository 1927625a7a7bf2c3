//! Which rows the stream has sent lately.
//!
//! What was inserted into a table before it became a partition is not in the stream, and nothing says so. Transaction
//! ids don't tell it either: they are given in another order than that of the commits. So the rows of a partition
//! that is new to the relay are compared with those that the stream sends until it has passed the look at that
//! partition; what is left was inserted before. Pure; told by the stream, asked by a start and by the control session.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::core::{lsn::Lsn, position::Position};

/// Rows that are remembered: 4 MiB.
const ROWS_MAX: usize = 1 << 18;
/// Looks that are remembered.
const LOOKS_MAX: usize = 16;

/// A row, by its id and the transaction that inserted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowKey(u64);

impl RowKey {
    /// Of the id as text, and the transaction's id without its epoch; 0 where the row does not name it.
    pub fn new(id: &[u8], xid: u32) -> Self {
        let mut hasher = DefaultHasher::new();
        (id, xid).hash(&mut hasher);
        RowKey(hasher.finish())
    }
}

/// A row of a new partition which no snapshot that counts has shown.
#[derive(Clone, Copy, Debug)]
pub struct Doubtful {
    /// Which one.
    pub key: RowKey,
    /// Its partition's OID.
    pub partition: u32,
    /// The transaction that inserted it; 0 where the row does not name it.
    pub xid: u64,
    /// The stream has it, or is to send it, or it was inserted before its table was attached: all that was sent is
    /// remembered, or the order of transaction ids tells so.
    pub certain: bool,
}

/// How far back it is remembered what was sent.
#[derive(Clone, Debug)]
pub struct Memory {
    /// All rows of commits from here on.
    pub from: Lsn,
    /// The first look since, with its snapshot.
    pub look: Option<(Lsn, String)>,
}

/// Rows that are not remembered.
#[derive(Debug, Default)]
pub struct Compared {
    /// The stream is to send them.
    pub awaited: HashSet<RowKey>,
    /// How many were sent as far as transaction ids tell, by partition.
    pub taken_as_sent: BTreeMap<u32, u64>,
}

/// The stream has passed the look at a partition, and has not sent all of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// How many.
    pub rows: usize,
}

/// The rows that were sent last, and those that are waited for.
#[derive(Debug, Default)]
pub struct Streamed {
    /// By the start of their commit records.
    recent: VecDeque<(Lsn, RowKey)>,
    /// All rows of commits from here on are in `recent`.
    from: Lsn,
    /// Snapshots that were taken since, oldest first: what one does not show was committed after its LSN, or not yet.
    looks: VecDeque<(Lsn, String)>,
    /// How far the stream has come.
    reached: Lsn,
    /// Whose WAL that is: the cluster's identifier and the timeline.
    history: (String, u32),
    /// What is to be sent.
    awaited: Option<Awaited>,
    /// What was not.
    missing: Option<Awaited>,
}

/// Rows that the stream is to send.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// Before it has come here.
    pub until: Lsn,
    /// Those that it has yet to.
    pub rows: HashSet<RowKey>,
    /// As `pg_snapshot`: all that it shows was committed before `until`.
    pub snapshot: String,
    /// The OIDs of their partitions, each with a snapshot that shows none of them.
    pub partitions: BTreeMap<u32, String>,
}

impl Streamed {
    /// A stream begins behind what is `delivered`. One that begins where an earlier one has come to leaves nothing out;
    /// after another one, all is to be looked at anew.
    pub fn begin(&mut self, system_id: &str, timeline: u32, delivered: Position) {
        // The first rows of a transaction that is delivered in part are not noted again.
        let from = match delivered {
            Position::Row(row) => Lsn::new(row.commit.get() + 1),
            Position::UpTo(end) => end,
        };
        let same = (self.history.0.as_str(), self.history.1) == (system_id, timeline);
        if !same || delivered.resume_lsn() > self.reached {
            let history = (system_id.to_owned(), timeline);
            *self = Streamed { from, reached: from, history, ..Streamed::default() };
        }
    }

    /// The stream has sent these rows of a transaction whose commit record starts at `commit`.
    pub fn sent(&mut self, commit: Lsn, rows: &[RowKey]) {
        for row in rows {
            if let Some(awaited) = &mut self.awaited {
                awaited.rows.remove(row);
            }
            if self.recent.len() == ROWS_MAX
                && let Some((forgotten, _)) = self.recent.pop_front()
            {
                self.from = self.from.max(Lsn::new(forgotten.get() + 1));
            }
            self.recent.push_back((commit, *row));
        }
    }

    /// The stream has come to `end`, outside of a transaction.
    ///
    /// # Errors
    /// [`NotSent`]: not all that was awaited has come by now. What is missing is asked for with [`Streamed::missing`].
    pub fn reach(&mut self, end: Lsn) -> Result<(), NotSent> {
        self.reached = self.reached.max(end);
        match self.awaited.take_if(|awaited| awaited.until <= end) {
            Some(awaited) if !awaited.rows.is_empty() => {
                let rows = awaited.rows.len();
                self.missing = Some(awaited);
                Err(NotSent { rows })
            }
            _ => Ok(()),
        }
    }

    /// A look at the server was taken; what the snapshot does not show was committed after `lsn`.
    pub fn look(&mut self, lsn: Lsn, snapshot: &str) {
        while self.looks.front().is_some_and(|(oldest, _)| *oldest < self.from) {
            self.looks.pop_front();
        }
        if self.looks.len() == LOOKS_MAX {
            // Every other one, and the oldest stays.
            let mut keep = [true, false].into_iter().cycle();
            self.looks.retain(|_| keep.next().unwrap_or(true));
        }
        if lsn >= self.from {
            self.looks.push_back((lsn, snapshot.to_owned()));
        }
    }

    /// How far back it remembers.
    pub fn memory(&self) -> Memory {
        let look = self.looks.iter().find(|(lsn, _)| *lsn >= self.from).cloned();
        Memory { from: self.from, look }
    }

    /// Tells apart what may still be to come: what was sent is taken out. Of rows that are not certain, no one above
    /// `published` was published; `None` where that is not known, or none was: rather a row comes twice than never.
    pub fn doubtful(&self, rows: &[Doubtful], published: Option<u64>) -> Compared {
        let sent: HashSet<RowKey> = self.recent.iter().map(|(_, key)| *key).collect();
        let mut compared = Compared::default();
        for row in rows.iter().filter(|row| !sent.contains(&row.key)) {
            match row.certain || published.is_none_or(|published| row.xid > published) {
                true => drop(compared.awaited.insert(row.key)),
                false => *compared.taken_as_sent.entry(row.partition).or_default() += 1,
            }
        }
        compared
    }

    /// Waits for these, too.
    pub fn wait_for(&mut self, more: Awaited) {
        let awaited = match self.awaited.as_mut() {
            None => self.awaited.insert(more),
            Some(awaited) => {
                awaited.until = awaited.until.max(more.until);
                awaited.rows.extend(more.rows);
                awaited.partitions.extend(more.partitions);
                awaited
            }
        };
        // What it has sent since they were read.
        for (_, sent) in &self.recent {
            awaited.rows.remove(sent);
        }
    }

    /// Whether something is awaited.
    pub fn waits(&self) -> bool {
        self.awaited.is_some()
    }

    /// What the stream has not sent, though it has passed the look at it.
    pub fn missing(&self) -> Option<&Awaited> {
        self.missing.as_ref()
    }

    /// It is stored what that is.
    pub fn forget_missing(&mut self) {
        self.missing = None;
    }
}

#[cfg(test)]
mod tests {
    use crate::core::{position::RowPosition, streamed::*};

    fn key(n: u32) -> RowKey {
        RowKey::new(&n.to_be_bytes(), 7)
    }

    fn doubtful(n: u32, xid: u64, certain: bool) -> Doubtful {
        Doubtful { key: key(n), partition: 1, xid, certain }
    }

    fn at(lsn: u64) -> Lsn {
        Lsn::new(lsn)
    }

    fn keys(of: impl IntoIterator<Item = u32>) -> HashSet<RowKey> {
        of.into_iter().map(key).collect()
    }

    #[test]
    fn what_the_stream_does_not_send_until_it_has_passed_the_look_is_missing() {
        let mut streamed = Streamed::default();
        streamed.begin("1", 1, Position::UpTo(at(100)));
        streamed.sent(at(110), &[key(1)]);
        let rows = [1, 2, 3, 4].map(|n| doubtful(n, 7, true));
        let left = streamed.doubtful(&rows, Some(9)).awaited;
        assert_eq!(left, keys([2, 3, 4]));
        streamed.sent(at(120), &[key(2)]);
        let (snapshot, partitions) = ("8:8:".to_owned(), BTreeMap::from([(1, "5:5:".to_owned())]));
        streamed.wait_for(Awaited { until: at(150), rows: left, snapshot, partitions });
        assert_eq!(streamed.reach(at(130)), Ok(()));
        streamed.sent(at(140), &[key(3)]);
        assert_eq!(streamed.reach(at(150)), Err(NotSent { rows: 1 }));
        assert_eq!(streamed.missing().map(|it| &it.rows), Some(&keys([4])));
        assert!(!streamed.waits());
        assert_eq!(streamed.reach(at(160)), Ok(()), "it is told once");
    }

    #[test]
    fn what_was_sent_before_the_relay_was_started_is_told_by_transaction_ids() {
        let mut streamed = Streamed::default();
        streamed.begin("1", 1, Position::UpTo(at(200)));
        let rows = [doubtful(1, 9, false), doubtful(2, 9, true), doubtful(3, 11, false)];
        assert_eq!(streamed.memory().from, at(200));
        // The relay has published up to transaction 10.
        let compared = streamed.doubtful(&rows, Some(10));
        assert_eq!(compared.awaited, keys([2, 3]));
        assert_eq!(compared.taken_as_sent, BTreeMap::from([(1, 1)]));
        assert_eq!(streamed.doubtful(&rows, None).awaited, keys([1, 2, 3]));
    }

    #[test]
    fn a_stream_that_continues_remembers_and_another_one_does_not() {
        let rows = [doubtful(1, 7, true), doubtful(2, 7, true)];
        let after = |system_id: &str, timeline, from| {
            let mut streamed = Streamed::default();
            streamed.begin("1", 1, Position::UpTo(at(100)));
            streamed.sent(at(110), &[key(1)]);
            assert_eq!(streamed.reach(at(120)), Ok(()));
            streamed.begin(system_id, timeline, Position::UpTo(at(from)));
            (streamed.memory().from <= at(105), streamed.doubtful(&rows, Some(9)).awaited)
        };
        assert_eq!(after("1", 1, 115), (true, keys([2])));
        assert_eq!(after("1", 1, 120), (true, keys([2])));
        // Another relay has streamed meanwhile; another server.
        assert_eq!(after("1", 1, 130), (false, keys([1, 2])));
        assert_eq!(after("1", 2, 115), (false, keys([1, 2])));
        assert_eq!(after("2", 1, 115), (false, keys([1, 2])));
    }

    #[test]
    fn a_stream_that_ended_inside_a_transaction_is_continued_there() {
        let row = |ordinal| Position::Row(RowPosition { commit: at(110), ordinal });
        let mut streamed = Streamed::default();
        streamed.begin("1", 1, Position::UpTo(at(100)));
        assert_eq!(streamed.reach(at(110)), Ok(()));
        streamed.sent(at(110), &[key(1)]);
        streamed.begin("1", 1, row(0));
        let rows = [doubtful(1, 7, true), doubtful(2, 7, true)];
        assert!(streamed.memory().from <= at(105));
        assert_eq!(streamed.doubtful(&rows, None).awaited, keys([2]));
        // A process that begins there does not know the first row.
        let mut streamed = Streamed::default();
        streamed.begin("1", 1, row(0));
        assert!(streamed.memory().from > at(110));
    }

    #[test]
    fn so_many_rows_are_remembered_and_no_more() {
        let mut streamed = Streamed::default();
        streamed.begin("1", 1, Position::UpTo(at(0)));
        let rows_max = u32::try_from(ROWS_MAX).expect("it is small");
        for n in 0..rows_max + 2 {
            streamed.sent(at(u64::from(n) + 10), &[key(n)]);
        }
        assert_eq!(streamed.recent.len(), ROWS_MAX);
        assert_eq!(streamed.reach(at(u64::from(rows_max) + 20)), Ok(()));
        assert_eq!(streamed.memory().from, at(12), "those before are forgotten");
    }

    #[test]
    fn the_oldest_look_is_the_first_since_which_all_is_remembered() {
        let look = |streamed: &Streamed| streamed.memory().look.map(|(_, snapshot)| snapshot);
        let mut streamed = Streamed::default();
        streamed.begin("1", 1, Position::UpTo(at(100)));
        assert_eq!(look(&streamed), None);
        streamed.look(at(90), "before");
        assert_eq!(look(&streamed), None);
        for n in 0..1_000 {
            streamed.look(at(100 + n), &n.to_string());
            assert!(streamed.looks.len() <= LOOKS_MAX);
        }
        assert_eq!(look(&streamed), Some("0".to_owned()));
        streamed.from = at(1_050);
        let oldest = look(&streamed).and_then(|it| it.parse::<u64>().ok());
        assert!(oldest.is_some_and(|it| (950..1_000).contains(&it)), "{oldest:?}");
        streamed.look(at(2_000), "new");
        assert!(streamed.looks.iter().all(|(lsn, _)| *lsn >= at(1_050)));
    }
}
