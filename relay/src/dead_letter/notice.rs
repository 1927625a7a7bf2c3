//! What is told of parked events that the table lost, until a person has dealt with it: a row of the table for
//! each loss, with the reason [`REASON`].
//!
//! Only the process that was there sees a loss. In the table every later one finds it, on every server; an
//! operator ends it with the command that discards an event, and may have no other rights for that. Such a
//! row is no event: it is not counted, and no release takes it.

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio_postgres::{Client, Error};

use crate::core::progress::ParkedRecord;

/// The reason of such a row.
pub const REASON: &str = "lost";

/// Losses that are told; the others wait until one of these is dealt with.
const TOLD_MAX: i64 = 5;

/// A loss that no one has dealt with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Its number in the table.
    pub id: i64,
    /// What has happened, and what is to be done.
    pub said: String,
    /// What is lost; nothing where that can't be read.
    pub lost: ParkedRecord,
    system_id: String,
}

impl Notice {
    /// As a person reads it, with the command that ends it.
    pub fn in_words(&self, relay: &str) -> String {
        let Notice { id, said, .. } = self;
        format!(
            "{said}. This is said until it is dealt with: `outbox-relay dead-letters discard {id} --name {relay}`"
        )
    }
}

/// Writes it down; once, however often the same loss is found.
///
/// # Errors
/// The table can't be written, or the session is broken.
pub async fn leave(
    client: &Client,
    relay: &str,
    system_id: &str,
    said: &str,
    lost: &ParkedRecord,
) -> Result<(), Error> {
    let sql = "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, payload, headers, \
                   fit, reason, error) \
               values ($1, $2, '0/0', $3, $4, $5, false, $6, $7) on conflict do nothing";
    let what = serde_json::to_vec(lost).expect("plain data has a JSON form");
    let place = place(&what);
    client.execute(sql, &[&relay, &system_id, &place, &what, &json!([]), &REASON, &said]).await?;
    Ok(())
}

/// Where no event is: by what is lost.
fn place(what: &[u8]) -> i64 {
    let digest: [u8; 32] = Sha256::digest(what).into();
    let (first, _) = digest.split_first_chunk().expect("32 bytes are more than 8");
    i64::from_be_bytes(*first) & i64::MAX
}

/// Those that no one has dealt with, the oldest first.
///
/// # Errors
/// The table can't be read, or the session is broken.
pub async fn open(client: &Client, relay: &str) -> Result<Vec<Notice>, Error> {
    let sql = "select id, error, payload, system_id from outbox.dead_letters \
               where relay = $1 and commit_lsn = '0/0' and reason = $2 and state = 'parked' \
               order by id limit $3";
    let rows = client.query(sql, &[&relay, &REASON, &TOLD_MAX]).await?;
    rows.iter()
        .map(|row| {
            let what: Option<&[u8]> = row.try_get(2)?;
            let lost = what.and_then(|what| serde_json::from_slice(what).ok()).unwrap_or_default();
            let (id, said, system_id) = (row.try_get(0)?, row.try_get(1)?, row.try_get(3)?);
            Ok(Notice { id, said, lost, system_id })
        })
        .collect()
}

/// Writes down again which of `known` have no row any more: whoever deals with one leaves its row. Returns whether any
/// was gone.
///
/// # Errors
/// The table can't be read or written, or the session is broken.
pub async fn restore(client: &Client, relay: &str, known: &[Notice]) -> Result<bool, Error> {
    let mut any = false;
    for Notice { id, said, lost, system_id } in known {
        let there = "select exists (select from outbox.dead_letters \
                         where id = $1 and relay = $2 and commit_lsn = '0/0' and reason = $3)";
        let there = client.query_one(there, &[id, &relay, &REASON]).await?;
        if !there.try_get::<_, bool>(0)? {
            leave(client, relay, system_id, said, lost).await?;
            any = true;
        }
    }
    Ok(any)
}

/// No one need deal with it any more.
///
/// # Errors
/// The table can't be written, or the session is broken.
pub async fn settle(client: &Client, id: i64, why: &str) -> Result<(), Error> {
    let sql = "update outbox.dead_letters set state = 'discarded', discarded_by = session_user, \
                   discarded_why = $2, changed_at = clock_timestamp() \
               where id = $1 and state = 'parked'";
    client.execute(sql, &[&id, &why]).await?;
    Ok(())
}
