//! WAL that a slot keeps though it has confirmed it: from where the oldest open transaction that has written
//! something began. Any role of the cluster may have one; with a limit on what is kept, the slot is lost by it.

use serde::Deserialize;
use tokio_postgres::Client;

use super::{
    error::InspectError,
    rows::rows,
    slot::{self, OpenTransaction},
};

/// Without a limit, so much before it is named.
const UNLIMITED_BYTES: i64 = 1 << 30;
/// With a limit, this part of it.
const PART: i64 = 4;
/// The server notes which transactions are open every 15 s, so a younger one is not why.
const YOUNG_SECONDS: f64 = 15.0;

/// What is kept, and by whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    bytes: i64,
    /// `max_slot_wal_keep_size`; `None` without one.
    limit_bytes: Option<i64>,
    by: OpenTransaction,
}

#[derive(Deserialize)]
struct Found {
    bytes: i64,
    limit_mb: i64,
}

/// What `slot` keeps of what it has confirmed, where that is much and an open transaction is why.
///
/// # Errors
/// [`InspectError`].
pub async fn look(client: &Client, slot: &str) -> Result<Option<Kept>, InspectError> {
    let sql = "select pg_catalog.jsonb_build_object( \
                   'bytes', pg_catalog.pg_wal_lsn_diff(confirmed_flush_lsn, restart_lsn)::int8, \
                   'limit_mb', (select setting::int8 from pg_catalog.pg_settings \
                       where name = 'max_slot_wal_keep_size'))::text \
               from pg_catalog.pg_replication_slots \
               where slot_name::text = $1 and confirmed_flush_lsn > restart_lsn";
    let found: Vec<Found> = rows(client, "pg_replication_slots", sql, &[&slot]).await?;
    let Some(Found { bytes, limit_mb }) = found.into_iter().next() else { return Ok(None) };
    let limit_bytes = (limit_mb >= 0).then_some(limit_mb << 20);
    if bytes < limit_bytes.map_or(UNLIMITED_BYTES, |limit| limit / PART) {
        return Ok(None);
    }
    let open = slot::writers_waited_for(client).await?;
    let oldest = open.into_iter().max_by_key(|it| it.xid_age);
    let oldest = oldest.filter(|it| it.age_seconds.is_none_or(|age| age >= YOUNG_SECONDS));
    Ok(oldest.map(|by| Kept { bytes, limit_bytes, by }))
}

impl Kept {
    /// Whether the same transaction is why.
    pub fn is_by(&self, other: &Kept) -> bool {
        (self.by.pid, &self.by.prepared) == (other.by.pid, &other.by.prepared)
    }

    /// What it means, and what to do.
    pub fn in_words(&self, slot: &str) -> (String, String) {
        let mib = self.bytes >> 20;
        let outcome = match self.limit_bytes.map(|limit| limit >> 20) {
            Some(limit) => format!(
                "of the {limit} MiB of max_slot_wal_keep_size. Beyond them the slot is lost: events wait \
                 until a new one is made, which waits for this transaction, too"
            ),
            None => "without a limit: the disk fills".to_owned(),
        };
        let by = &self.by;
        (
            format!(
                "slot {slot} keeps {mib} MiB of WAL that it has confirmed, for {by}; {outcome}"
            ),
            format!("to end that transaction: {}", by.ends()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_the_wal_is_named_with_what_it_leads_to_and_what_ends_it() {
        let by = OpenTransaction {
            pid: None,
            prepared: Some("'pin'".to_owned()),
            age_seconds: Some(60.0),
            xid_age: 9,
            application: None,
            user: Some("plain".to_owned()),
            database: Some("app".to_owned()),
        };
        let mut kept = Kept { bytes: 50 << 20, limit_bytes: Some(128 << 20), by };
        let (seen, remedy) = kept.in_words("s");
        for words in ["keeps 50 MiB", "'pin', open for 60 s", "128 MiB", "the slot is lost"] {
            assert!(seen.contains(words), "{words:?} is not in: {seen}");
        }
        assert!(remedy.contains("`rollback prepared 'pin'`, as plain"), "{remedy}");
        assert!(remedy.contains("in the database app"), "{remedy}");
        kept.limit_bytes = None;
        assert!(kept.in_words("s").0.contains("the disk fills"));
    }
}
