//! The broker: one transaction at a time, epochs, commits whose answer may be lost; or one that stores each
//! record by itself, and may refuse one and store the next.

use std::{collections::BTreeSet, ops::Range};

use bytes::Bytes;

use super::world::{Mutant, Sent, World};
use crate::{
    core::{
        header,
        position::Position,
        progress::Progress,
        record::{Batch, Record},
    },
    sink::{RefusedRecord, SinkError},
};

#[derive(Debug, Default)]
pub(super) struct Broker {
    pub(super) epoch: u64,
    pub(super) open: Option<Transaction>,
    pub(super) transactions: u64,
    pub(super) committed: BTreeSet<u64>,
    /// As the progress topic's newest record has it.
    pub(super) progress: Option<Bytes>,
    /// Its position.
    pub(super) position: Option<Position>,
}

#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) id: u64,
    pub(super) epoch: u64,
    pub(super) records: Vec<Sent>,
    pub(super) progress: Bytes,
    /// Its commit is on the way.
    pub(super) asked: bool,
}

impl Broker {
    /// A release that progress would list for ever.
    pub(super) fn unfinished(&self) -> Option<String> {
        let progress = Progress::decode(self.progress.as_ref()?).unwrap();
        let left = progress.releases.into_iter().find(|release| !release.complete)?;
        Some(format!("progress lists a release that nobody ends: {left:?}"))
    }
}

impl World {
    /// As a first start leaves it.
    pub(super) fn first_progress(&mut self, progress: &Progress) {
        self.broker.progress = Some(progress.encode());
        self.broker.position = progress.position;
    }

    /// The commit that is on the way, if any, arrives.
    pub(super) fn commit_arrives(&mut self) {
        let Some(open) = self.broker.open.take_if(|open| open.asked) else { return };
        self.broker.committed.insert(open.id);
        for sent in open.records {
            self.consumed(sent);
        }
        self.store_progress(open.progress);
    }

    pub(super) fn store_progress(&mut self, mut bytes: Bytes) {
        let mut progress = Progress::decode(&bytes).unwrap();
        if self.is(Mutant::ForgetsReleases) {
            progress.releases.clear();
            bytes = progress.encode();
        }
        self.broker.progress = Some(bytes);
        self.broker.position = progress.position;
        self.progressed(&progress);
    }

    pub(super) fn may_write(&self, epoch: u64) -> Result<(), SinkError> {
        if epoch == self.broker.epoch || self.is(Mutant::FencesNobody) {
            return Ok(());
        }
        Err(SinkError::Fenced("a newer epoch".into()))
    }

    /// The records of the range that are refused. Of lane 0 the broker's client knows in advance.
    pub(super) fn refusals(
        &self,
        batch: &Batch,
        range: &Range<usize>,
    ) -> (Vec<RefusedRecord>, Vec<usize>) {
        let bad = |index: &usize| self.events[id(&batch.get(*index).unwrap())].bad;
        let bad: Vec<usize> = range.clone().filter(bad).collect();
        let known = |index: &usize| self.events[id(&batch.get(*index).unwrap())].lane == Some(0);
        (bad.iter().copied().filter(known).map(|index| refused(index, true)).collect(), bad)
    }
}

pub(super) fn refused(index: usize, certain: bool) -> RefusedRecord {
    RefusedRecord { index, reason: "too_large", error: "scripted".into(), certain }
}

/// The number in the event's id.
pub(super) fn id(record: &Record<'_>) -> usize {
    let id = std::str::from_utf8(record.event_id().expect("every event has an id")).unwrap();
    usize::from_str_radix(&id[24..], 16).unwrap()
}

/// As the consumer sees it.
pub(super) fn sent(record: &Record<'_>) -> Sent {
    let repaired = record.headers().any(|(name, _)| name == header::REPAIRED);
    Sent { id: id(record), position: record.position, repaired }
}
