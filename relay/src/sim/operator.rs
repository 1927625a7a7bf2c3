//! What an operator does with the table of dead letters, and the relay's announcements.

use rand::{Rng, seq::IteratorRandom};

use super::{row::State, server::uuid, world::World};

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
