//! What an operator does with the table of dead letters and about a halt, and the relay's announcements.

use std::time::SystemTime;

use rand::{Rng, seq::IteratorRandom};

use super::{
    row::State,
    server::uuid,
    start::{SLOT, SYSTEM},
    world::World,
};
use crate::{
    cli::{Here, Resume, between, decided},
    core::{
        halt::Halt, identity::SystemIdentity, lsn::Lsn, position::Position, progress::Progress,
    },
};

impl World {
    pub(super) fn release_all(&mut self) {
        self.table.releases += 1;
        let release = uuid(self.table.releases);
        let mut any = false;
        for row in self.table.rows.iter_mut().filter(|row| row.state == State::Parked) {
            any = true;
            row.state = State::Releasing;
            row.release = Some(release.clone());
            row.place = None;
        }
        if any {
            self.tell(|| format!("an operator releases {release}"));
            self.announce(&release);
        }
    }

    pub(super) fn discard_one(&mut self) {
        let parked = self.table.rows.iter_mut().filter(|row| row.state == State::Parked);
        let Some(row) = parked.choose(&mut self.random) else { return };
        self.table.releases += 1;
        let release = uuid(self.table.releases);
        row.state = State::Discarded;
        row.release = Some(release.clone());
        let id = row.id;
        self.events[id].discarded = true;
        self.tell(|| format!("event {id} is discarded by {release}"));
        self.announce(&release);
    }

    /// What is refused is not any more; at once, or an event now and then.
    pub(super) fn fix(&mut self, all: bool) {
        for row in self.table.rows.iter_mut().filter(|row| row.state == State::Parked) {
            if all || self.random.random_bool(0.5) {
                row.fit = true;
                self.events[row.id].bad = false;
            }
        }
        if all {
            self.events.iter_mut().for_each(|event| event.bad = false);
        }
    }

    /// The relay's, at its start.
    pub(super) fn announce_again(&mut self) {
        let mut releases: Vec<String> = Vec::new();
        for row in self.table.rows.iter().filter(|row| row.state == State::Releasing) {
            let release = row.release.clone().expect("it belongs to one");
            if !releases.contains(&release) {
                releases.push(release);
            }
        }
        releases.iter().for_each(|release| self.announce(release));
    }
}

/// Since when events may be missing, in a halt's words; `None` where it names no interval.
fn interval(halt: &Halt) -> Option<Lsn> {
    let (_, from) = halt.reason.split_once("committed between ")?;
    from.split_whitespace().next()?.parse().ok()
}

impl World {
    /// An operator does what a halt says. No relay is at work.
    pub(super) fn obey(&mut self, halt: &Halt) {
        self.tell(|| format!("an operator reads: {halt}"));
        let at_progress = halt.remedy.contains("resume --at progress");
        if !at_progress && !halt.remedy.contains("resume --at now") {
            return self.put_back(true);
        }
        // As the command does: it fences, and reads what is stored.
        self.broker.epoch += 1;
        if self.once_in(2) {
            self.commit_arrives();
        }
        self.broker.open = None;
        let stored = self.broker.progress.as_ref().map(|bytes| Progress::decode(bytes).unwrap());
        let stored = stored.expect("the first start stored some");
        let at = stored.position.filter(|_| at_progress && stored.repair.is_none());
        let at =
            at.filter(|at| self.server.slot.is_some() && self.server.confirmed <= at.resume_lsn());
        let from = interval(halt).unwrap_or(Lsn::ZERO);
        let decision = match at {
            Some(_) if self.once_in(2) => Resume::AtProgress,
            _ => Resume::AtNow,
        };
        let position = at.filter(|_| decision == Resume::AtProgress).map(between);
        self.tell(|| format!("and resumes: {decision:?}, with what is missing from {from} on"));
        match position {
            Some(Position::UpTo(commit)) => {
                self.lack(from, |event| event.hidden);
                let again = self.events.iter_mut();
                again.filter(|it| it.position.commit == commit).for_each(|it| it.again = true);
            }
            _ => {
                self.leaves_out = Some(from);
                self.drop_slot();
            }
        }
        let flush_lsn = self.server.end();
        let identity = SystemIdentity { system_id: SYSTEM.into(), timeline: 1, flush_lsn };
        let now = SystemTime::now();
        let published = self.catalog.published();
        let here = Here { slot_name: SLOT, identity: &identity, published, now };
        let next = decided(Some(stored), decision, position, here);
        self.store_progress(next.encode());
    }

    /// A slot is made, and somebody has decided that what is not published by then is left out. Where that slot is lost
    /// before anything is stored of it, so is what was committed until there is another one.
    pub(super) fn leave_out(&mut self) {
        let from = self.leaves_out.take().unwrap_or(Lsn::ZERO);
        self.lack(from, |_| true);
    }

    /// What is left out must lie in the interval that the halt has named.
    fn lack(&mut self, from: Lsn, is_left_out: impl Fn(&super::world::Event) -> bool) {
        for id in 0..self.events.len() {
            let (event, parked) = (&self.events[id], self.table.has(id));
            if event.delivered || event.discarded || event.left_out || parked || !is_left_out(event)
            {
                continue;
            }
            let commit = event.position.commit;
            if commit < from {
                self.violated(format!("event {id} at {commit} is missing, before {from}"));
            }
            self.events[id].left_out = true;
        }
    }

    /// A row is deleted from the outbox, whoever may need it yet.
    pub(super) fn delete(&mut self) {
        let rows = self.events.iter_mut().filter(|event| !event.deleted);
        if let Some(row) = rows.choose(&mut self.random) {
            row.deleted = true;
        }
    }
}
