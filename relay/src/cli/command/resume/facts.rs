//! What a decision is compared with: stored progress, the slot, the cluster, the tables.

use crate::{
    core::{
        identity::SystemIdentity,
        lsn::Lsn,
        progress::{Progress, SnapshotRecord},
    },
    postgres::{catalog::table, sql::SqlSession},
    repair::{self, Table},
    route::Mapping,
};

/// No row was created by then: that is counted in microseconds.
pub(super) const BEFORE_ALL_MS: i64 = i64::MIN / 1000;

/// What the decision is compared with.
pub(super) struct Facts<'a> {
    pub(super) stored: Option<&'a Progress>,
    /// The slot's position, if it has one.
    pub(super) confirmed: Option<Lsn>,
    pub(super) identity: &'a SystemIdentity,
    /// What was created since then comes again: a person has said so. In milliseconds since the Unix epoch.
    pub(super) since_ms: Option<i64>,
}

impl<'a> Facts<'a> {
    /// The newest stored snapshot. One of another line of history says nothing of this one's transactions.
    pub(super) fn newest(&self) -> Option<&'a SnapshotRecord> {
        let stored = self.stored?;
        let is_here = stored.system_id == self.identity.system_id
            && stored.timeline == self.identity.timeline
            && stored.position?.resume_lsn() <= self.identity.flush_lsn
            && stored.rolled_back.is_none();
        stored.snapshots.first().filter(|_| is_here)
    }

    /// As [`Progress::published_until_ms`]. Where no published event is known, as after a repair that nothing came
    /// after: all that the newest snapshot shows is published, or was left out by a person. Without a snapshot,
    /// no row is known to be published. Earlier, if a person has named an earlier moment. `None` where nothing is
    /// stored and no moment named.
    pub(super) fn published_until_ms(&self) -> Option<i64> {
        let of_snapshot = || self.newest().map(|newest| newest.taken_ms);
        let of_progress = |stored: &Progress| {
            stored.published_until_ms().or_else(of_snapshot).unwrap_or(BEFORE_ALL_MS)
        };
        let named = self.since_ms.map(|since_ms| since_ms.saturating_sub(1));
        self.stored.map(of_progress).into_iter().chain(named).min()
    }
}

/// The tables as a repair reads them, or why it can't.
pub(super) async fn tables(
    mapping: &Mapping,
    session: &SqlSession,
) -> anyhow::Result<Result<Vec<Table>, String>> {
    let mut tables: Vec<Table> = Vec::new();
    for name in mapping.tables() {
        let found = table::inspect(session.client(), &name.schema, &name.table).await?;
        let Some(state) = found else { return Ok(Err(format!("{name} does not exist"))) };
        match repair::fits(name, &state, mapping) {
            Ok(table) => tables.push(table),
            Err(halt) => return Ok(Err(halt.reason)),
        }
    }
    Ok(Ok(tables))
}
