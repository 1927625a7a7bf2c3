//! What is known of the time before a partition was attached.

use crate::{
    core::{
        leaves::Leaves, lsn::Lsn, progress::DepartedRecord, published::Published, streamed::Memory,
    },
    route::{Mapping, TableName},
};

/// What is looked at, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Since<'a> {
    /// The tables' columns.
    pub mapping: &'a Mapping,
    /// Tables of which the column `xid` is the transaction that inserted the row.
    pub stamped: &'a [TableName],
    /// The partitions that there are.
    pub published: &'a Published,
    /// What was there before, as `pg_snapshot`, and the LSN that was read after it.
    pub lower: (Lsn, &'a str),
    /// The partitions that it shows.
    pub leaves: &'a Leaves,
    /// Those that left before.
    pub departed: &'a [DepartedRecord],
    /// How far back it is remembered what the stream has sent.
    pub memory: &'a Memory,
    /// All of `published` are known to be attached since.
    pub every: bool,
    /// Where a relay that halts has left its slot; `None` while it streams.
    pub slot: Option<SlotAt<'a>>,
}

/// A slot as a relay that halts has left it.
#[derive(Clone, Copy, Debug)]
pub struct SlotAt<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it has confirmed; `None` where there is no slot.
    pub confirmed: Option<Lsn>,
}

impl SlotAt<'_> {
    /// That no relay has continued since, as a person types it: each confirms more, or makes a new slot.
    pub(super) fn unchanged(&self) -> String {
        let of_slot = format!("select from pg_replication_slots where slot_name = '{}'", self.name);
        match self.confirmed {
            Some(lsn) => format!("exists ({of_slot} and confirmed_flush_lsn = '{lsn}')"),
            None => format!("not exists ({of_slot})"),
        }
    }
}

/// What is known of the rows that a partition had before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    /// What this shows was sent, for it shows a partition: as `pg_snapshot`. `None` if it was none.
    pub(super) published: Option<&'a str>,
    /// What this does not show is compared with the stream. It is no older than `published`.
    pub(super) lower: &'a str,
    /// All that was sent since is remembered.
    pub(super) is_remembered: bool,
}

impl Known<'_> {
    /// All that was sent of its rows is shown by `published`, or remembered.
    pub(super) fn is_whole(&self) -> bool {
        self.is_remembered && self.published.is_none_or(|published| published == self.lower)
    }
}

impl<'a> Since<'a> {
    /// Of a partition, by its OID.
    pub(super) fn known(&self, partition: u32) -> Known<'a> {
        let Since { lower: (lsn, lower), leaves, departed, memory, .. } = *self;
        let left = || departed.iter().find(|it| it.partition == partition);
        let was = match leaves.oids().contains(&partition) {
            true => Some((lsn, lower)),
            false => left().map(|it| (it.lsn, it.snapshot.as_str())),
        };
        let published = was.map(|(_, snapshot)| snapshot);
        if let Some((_, lower)) = was.filter(|(lsn, _)| memory.from <= *lsn) {
            return Known { published, lower, is_remembered: true };
        }
        if let Some((_, lower)) = was.filter(|(left, _)| *left >= lsn) {
            return Known { published, lower, is_remembered: false };
        }
        let look = memory.look.as_ref().filter(|(at, _)| *at <= lsn);
        let lower = look.map_or(lower, |(_, snapshot)| snapshot);
        Known { published, lower, is_remembered: memory.from <= lsn }
    }
}
