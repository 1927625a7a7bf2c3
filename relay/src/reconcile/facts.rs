//! What is compared.

use crate::{
    core::{
        halt::Halt, identity::SystemIdentity, lsn::Lsn, progress::Progress, published::Published,
    },
    postgres::catalog::slot::SlotState,
};

/// The facts, gathered before anything is changed.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The relay's name.
    pub relay: &'a str,
    /// Slot of the settings.
    pub slot_name: &'a str,
    /// Newest stored progress.
    pub progress: Option<&'a Progress>,
    /// The slot, if it exists.
    pub slot: Option<&'a SlotState>,
    /// The database that the connection leads to.
    pub database: &'a str,
    /// The cluster, from IDENTIFY_SYSTEM.
    pub identity: &'a SystemIdentity,
    /// The first transaction id that is still to come; `None` where that was not asked.
    pub next_xid: Option<u64>,
    /// Timelines that the current one came from, and where each was left; empty where the stored
    /// progress is of the current one.
    pub history: &'a [(u32, Lsn)],
    /// Whether a first start publishes the rows that are there already.
    pub start_with_all: bool,
    /// Another relay that has delivered from this database, where rows are there and no one has said
    /// what a first start does with them.
    pub predecessor: Option<&'a str>,
    /// Another relay that has delivered from this database, and whose default slot has this name.
    pub slot_owner: Option<&'a str>,
    /// How the tables are published now; `None` where that was not asked.
    pub published: Option<&'a Published>,
    /// The stream ended because its publication was missing when what comes next was written.
    pub unpublished_once: bool,
    /// A partition that was attached with rows which the stream does not have.
    pub attached: Option<&'a str>,
    /// A table whose rows don't have their transactions' ids now, so that a repair can't tell which are published.
    pub unstamped: Option<&'a str>,
    /// Why the tables can't be read for a repair, if they can't, and what would correct that.
    pub unrepairable: Option<&'a Halt>,
    /// Progress of this relay was stored before, says the database.
    pub has_delivered: bool,
    /// Progress is in the database, and not at the broker.
    pub progress_in_database: bool,
    /// The broker loses progress together with the records that it covers, and the settings say to publish
    /// these again.
    pub repairs_broker_loss: bool,
    /// The stream of NATS that has records and progress together: what empties it takes both.
    pub stream: Option<&'a str>,
}

impl<'a> Facts<'a> {
    /// Whose start it is, and where: nothing is known yet of progress, slot and tables.
    pub fn new(
        relay: &'a str,
        slot_name: &'a str,
        database: &'a str,
        identity: &'a SystemIdentity,
    ) -> Self {
        Facts {
            relay,
            slot_name,
            progress: None,
            slot: None,
            database,
            identity,
            next_xid: None,
            history: &[],
            start_with_all: false,
            predecessor: None,
            slot_owner: None,
            published: None,
            unpublished_once: false,
            attached: None,
            unstamped: None,
            unrepairable: None,
            has_delivered: false,
            progress_in_database: false,
            repairs_broker_loss: false,
            stream: None,
        }
    }

    /// Since progress was stored, another server has become the primary.
    pub(super) fn was_promoted(&self) -> bool {
        self.progress.is_some_and(|stored| stored.timeline < self.identity.timeline)
    }
}
