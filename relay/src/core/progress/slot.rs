//! What progress says while a start continues with a slot, or makes one.

use crate::core::{
    landmark::Landmark,
    lsn::Lsn,
    position::Position,
    progress::{DepartedRecord, Progress, RepairRecord, SnapshotRecord},
    published::Published,
};

impl Progress {
    /// The slot's stream continues, and no row is missing from it as the tables are `published`. That counts once delivery
    /// has passed this moment: till then, what is known is how they were.
    pub fn continue_slot(&mut self, published: &Published) {
        if let Some(newest) = self.snapshots.first() {
            let (was, at) = (newest.leaves.oids(), (newest.lsn, newest.snapshot.as_str()));
            DepartedRecord::note(&mut self.departed, was, at, published);
        }
        self.published.get_or_insert_with(|| published.clone());
    }

    /// The stream begins at `from`.
    pub fn stream_from(&mut self, from: Position) {
        self.position = Some(from);
        if let (Position::UpTo(end), None) = (from, self.landmark) {
            // Not known, or decided by a person: nothing more than that is known of what comes before.
            self.landmark = Some(Landmark::beginning(end));
        }
    }

    /// A slot is about to be made, and nothing that was committed before is published.
    pub fn announce_slot(&mut self, published: Published) {
        self.gap = None;
        self.not_sent.clear();
        self.published = Some(published);
        // What was delivered of a release stays delivered, whatever became of the slot.
        self.snapshots.clear();
    }

    /// It is made. Its snapshot shows exactly what the stream will not send.
    pub fn begin_slot(&mut self, snapshot: SnapshotRecord, published: Published) {
        self.published = Some(published);
        self.begin(snapshot.lsn);
        self.snapshots = vec![snapshot];
    }

    /// A slot is about to be made, and what `lower` does not show comes from the tables. Were the relay to die
    /// between making the slot and storing where it begins, the next start would find a slot past its progress;
    /// this says that it is of no use to anybody.
    pub fn announce_repair(&mut self, lower: Option<&str>) {
        self.repair = Some(RepairRecord::announced(lower.map(str::to_owned)));
    }

    /// The slot is made, and stands in for the one that lacked rows.
    pub fn replace_slot(&mut self, published: Published) {
        self.published = Some(published);
        self.gap = None;
        self.not_sent.clear();
    }

    /// The rows that `lower` does not show, and the new slot's snapshot does, are read from the tables.
    pub fn begin_repair(&mut self, lower: Option<&str>, upper: SnapshotRecord) {
        self.repair = Some(RepairRecord {
            consistent_point: upper.lsn,
            upper: upper.snapshot,
            leaves: upper.leaves,
            ..RepairRecord::announced(lower.map(str::to_owned))
        });
    }

    /// What the newest snapshot does not show was committed after this. The end of the WAL is asked for after a snapshot is
    /// taken, and something may be committed between: so the place of the one before counts, if there is one.
    pub fn unshown_since(&self) -> Option<Lsn> {
        let newest = || self.snapshots.first();
        self.snapshots.get(1).or_else(newest).map(|snapshot| snapshot.lsn)
    }

    /// A table that is not the one of which rows are to be read, or of which moved rows can't be told from others any more,
    /// as the tables are `now`. A start that finds one halts.
    pub fn another_table<'a>(&self, now: &'a Published) -> Option<&'a str> {
        let earlier = self.published.as_ref()?;
        now.made_anew(earlier).or_else(|| now.restamped(earlier))
    }

    /// The repair under way, as its rows are read: of what `lower` shows, nothing counts that came after the newest
    /// published event.
    pub fn repair_to_read(&self) -> Option<RepairRecord> {
        let mut repair = self.repair.clone()?;
        if let (Some(lower), Some(witness)) = (&mut repair.lower, self.witness) {
            *lower = witness.cut(lower);
        }
        Some(repair)
    }

    /// The repair is one that a person has decided on: where in the WAL its first row was committed is not known.
    pub fn repairs_as_decided(&self) -> bool {
        // As `repair_after` leaves it: a decision takes the landmark, and no stream has given another since.
        let lower = self.repair.as_ref().and_then(|repair| repair.lower.as_deref());
        let is_it = |only: &SnapshotRecord| lower == Some(only.snapshot.as_str());
        matches!(self.snapshots.as_slice(), [only] if is_it(only)) && self.landmark.is_none()
    }

    /// Rows are written that are not in the stream. Returns whether that is to be stored: where there may be a slot, and
    /// nothing is known to be missing yet.
    pub fn note_gap(&mut self, reason: &str) -> bool {
        // It may be made, and nothing stored of it.
        let is_announced = self.position.is_some() || self.published.is_some();
        let is_new = is_announced && self.gap.is_none();
        if is_new {
            self.gap = Some(reason.to_owned());
        }
        is_new
    }
}
