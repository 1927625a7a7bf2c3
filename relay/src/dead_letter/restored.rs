//! Parked events that came into the table from a copy of it (`pg_restore`, for example), as the table's trigger marks
//! them: whichever of them was released or discarded after the copy was made is parked again.
//!
//! Nothing else remembers each event that was released, so a person has to compare; what is released all the same has
//! the header of what a repair publishes. Of an event that the relay has parked again since, it is known that the
//! broker refused it.

use tokio_postgres::{Client, Error};

use super::notice::REASON;

/// Of `outbox.dead_letters`, which events these are.
pub(super) const RESTORED: &str = "restored_at is not null and restored_at > parked_at";

/// What of a relay's parked events came from a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// How many events, at least one.
    pub events: u64,
    /// When the newest of them came. RFC 3339, UTC.
    pub at: String,
}

/// Counts them; `None` if no event came from a copy, or the table is older than migration V16.
///
/// # Errors
/// The table can't be read, or the session is broken.
pub async fn count(client: &Client, relay: &str) -> Result<Option<Restored>, Error> {
    // Asked first: a statement that fails would end a transaction that the session is in.
    let known = "select exists (select from pg_catalog.pg_attribute a \
                     where a.attrelid = pg_catalog.to_regclass('outbox.dead_letters') \
                         and a.attname = 'restored_at' and not a.attisdropped)";
    if !client.query_one(known, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let sql = format!(
        "select count(*), to_char(max(restored_at) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
         from outbox.dead_letters \
         where relay = $1 and {RESTORED} and state in ('parked', 'releasing') and reason <> $2"
    );
    let row = client.query_one(&sql, &[&relay, &REASON]).await?;
    let (events, at): (i64, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(at.map(|at| Restored { events: events.unsigned_abs(), at }))
}

/// What is said of them, and what is to be done.
pub fn in_words(restored: &Restored) -> (String, &'static str) {
    let Restored { events, at } = restored;
    let (these, were) = match events {
        1 => ("1 parked event".to_owned(), "was"),
        events => (format!("{events} parked events"), "were"),
    };
    (
        format!(
            "{these} {were} put back into outbox.dead_letters from a copy ({at}): what was released or discarded \
             after the copy was made is parked again, and would come a second time"
        ),
        "look for them in their topics; discard those that are there, with `outbox-relay dead-letters discard`, and \
         release the others with `outbox-relay dead-letters release` and --yes: they come with the header \
         outbox-repaired",
    )
}
