//! Released and discarded dead letters that are old enough to go.
//!
//! An event may be sent to the relay again as long as PostgreSQL was not told that it is done. Until
//! then the row is what keeps a discarded or released one from being delivered a second time, so age
//! alone deletes nothing: the event's position must be confirmed, and its release or discard must
//! have had its effect. A repair reads what came since a stored snapshot, confirmed or not: the position must
//! lie before the oldest of these, too. Rows of another cluster's WAL are never sent again. Called by `daemon`.

use std::time::Duration;

use tokio_postgres::{Client, Error};

use crate::core::lsn::Lsn;

/// Rows and bytes of payloads in one statement, beyond one that is larger alone: others use the
/// session, too, and a leader that is silent for long is replaced.
const ROWS: i64 = 500;
const BYTES: i64 = 16 << 20;

/// Whose history, and how old.
#[derive(Clone, Debug)]
pub struct History {
    /// The relay's name.
    pub relay: String,
    /// Its slot, which knows what is confirmed.
    pub slot: String,
    /// The cluster that the slot is in.
    pub system_id: String,
    /// Since the release or discard, by the database's clock.
    pub keep: Duration,
}

impl History {
    /// Deletes the oldest rows; as many as one statement may, and none that a repair from a snapshot at
    /// `repaired_from` or later may read. Returns how many: none where nothing is left to delete.
    ///
    /// # Errors
    /// The database's, such as that the role may not delete.
    pub async fn delete_some(&self, client: &Client, repaired_from: Lsn) -> Result<u64, Error> {
        let sql = "delete from outbox.dead_letters d using ( \
                       select id from ( \
                           select id, pg_catalog.row_number() over (order by changed_at, id) as place, \
                               pg_catalog.sum(coalesce(pg_catalog.octet_length(payload), 0)) \
                                   over (order by changed_at, id) as bytes \
                           from (select id, changed_at, payload from outbox.dead_letters \
                                 where relay = $1 and state in ('released', 'discarded') \
                                     and changed_at < pg_catalog.clock_timestamp() \
                                         - pg_catalog.make_interval(secs => $2) \
                                     and (state = 'released' or release_id is null) \
                                     and (system_id <> $3 or commit_lsn < ( \
                                         select least(confirmed_flush_lsn, \
                                             $7::pg_catalog.text::pg_catalog.pg_lsn) \
                                         from pg_catalog.pg_replication_slots \
                                         where slot_name::pg_catalog.text = $4)) \
                                 order by changed_at, id limit $5) o) o \
                       where bytes <= $6 or place = 1) o \
                   where d.id = o.id and d.state in ('released', 'discarded')";
        let seconds = self.keep.as_secs_f64();
        let from = repaired_from.to_string();
        let Self { relay, slot, system_id, .. } = self;
        client.execute(sql, &[relay, &seconds, system_id, slot, &ROWS, &BYTES, &from]).await
    }
}
