//! One look after the other at how the tables are published, while the relay streams. Pure.

use crate::core::{
    lsn::Lsn,
    progress::{DepartedRecord, SnapshotRecord},
    published::{Published, Since},
};

/// What the look before has seen.
#[derive(Clone, Debug)]
pub struct Before {
    /// How the tables were published.
    pub published: Published,
    /// As `pg_snapshot`.
    pub snapshot: String,
    /// The end of the WAL, read after it.
    pub lsn: Lsn,
}

impl Before {
    /// Compares with what is seen now.
    ///
    /// # Errors
    /// Why rows may be missing from the stream.
    pub fn compare(&self, now: &Published) -> Result<(), String> {
        // Nothing that is compared tells of it, and a snapshot would show its rows as published.
        if let Some(table) = now.unlogged.first() {
            return Err(format!("{table} is unlogged, temporary or a foreign table"));
        }
        match now.since(&self.published, false) {
            Since::Whole => Ok(()),
            Since::Broken(why) => Err(why),
        }
    }

    /// No row is missing: the next look is compared with this one, which keeps what was known of tables
    /// that are gone. Partitions that have left are added to `departed`.
    pub fn pass(
        &mut self,
        snapshot: &SnapshotRecord,
        published: &mut Published,
        departed: &mut Vec<DepartedRecord>,
    ) {
        published.remember(&self.published);
        let was = self.published.attached.iter().map(|(oid, _)| *oid);
        DepartedRecord::note(departed, was, (self.lsn, &self.snapshot), published);
        *self = Before {
            published: published.clone(),
            snapshot: snapshot.snapshot.clone(),
            lsn: snapshot.lsn,
        };
    }
}
