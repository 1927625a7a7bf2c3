//! `outbox.relay_keys`: the key with which a relay seals its progress, and whether it has delivered.
//!
//! Only relays may read it (`docs/ROLES.md`). It outlives the broker: where a relay has delivered and
//! the broker has no progress of it, that is a loss, not a first start. Called by `daemon` and `resume`.

use tokio_postgres::error::SqlState;

use crate::{core::halt::Halt, postgres::sql::SqlSession, seal::SealKey};

/// What the database knows of this relay.
#[derive(Debug)]
pub(crate) struct Known {
    /// Seals its progress.
    pub key: SealKey,
    /// Progress of it was stored.
    pub has_delivered: bool,
}

/// Why the key can't be had.
#[derive(Debug)]
pub(crate) enum KeyError {
    /// A person must fix it.
    Halt(Halt),
    /// Later, perhaps.
    Database(tokio_postgres::Error),
}

impl Known {
    /// A relay that never ran here, for who only looks.
    pub(crate) fn nothing() -> Self {
        Known { key: SealKey::random(), has_delivered: false }
    }
}

/// Reads the relay's key; `None` if it never ran here.
///
/// # Errors
/// [`KeyError`].
pub(crate) async fn look(session: &SqlSession, relay: &str) -> Result<Option<Known>, KeyError> {
    let read = "select key, delivered_at is not null from outbox.relay_keys where relay = $1";
    let found = session.client().query_opt(read, &[&relay]).await.map_err(sorted)?;
    let Some(row) = found else { return Ok(None) };
    let key = row.try_get::<_, Vec<u8>>(0).ok().and_then(|key| SealKey::from_bytes(&key));
    match (key, row.try_get(1)) {
        (Some(key), Ok(has_delivered)) => Ok(Some(Known { key, has_delivered })),
        _ => Err(unusable(relay)),
    }
}

/// Reads the relay's key, and makes it the first time. May be called by one that does not lead: what
/// is there is never changed.
///
/// # Errors
/// [`KeyError`].
pub(crate) async fn open(session: &SqlSession, relay: &str) -> Result<Known, KeyError> {
    if let Some(known) = look(session, relay).await? {
        return Ok(known);
    }
    let make = "insert into outbox.relay_keys (relay, key) values ($1, $2) on conflict do nothing";
    let key = SealKey::random();
    session.client().execute(make, &[&relay, &key.bytes()]).await.map_err(sorted)?;
    look(session, relay).await?.ok_or_else(|| unusable(relay))
}

fn unusable(relay: &str) -> KeyError {
    KeyError::Halt(Halt::new(
        format!("the row of {relay} in outbox.relay_keys can't be read as a key"),
        format!(
            "the relay's role must see all rows of outbox.relay_keys (no row security); put back a row \
             that was changed by hand from a backup; or, where there is none, \
             `delete from outbox.relay_keys where relay = '{relay}'`: the relay then makes a new key, \
             and continues from the progress that is stored"
        ),
    ))
}

/// The relay with none of these names that was the last to deliver for the first time from this database.
///
/// # Errors
/// The database's.
pub(crate) async fn another_that_delivered(
    session: &SqlSession,
    ours: &[&str],
) -> Result<Option<String>, tokio_postgres::Error> {
    let read = "select relay from outbox.relay_keys where relay <> all ($1) and delivered_at is not null \
                order by delivered_at desc limit 1";
    session.client().query_opt(read, &[&ours]).await?.map(|row| row.try_get(0)).transpose()
}

/// The relay of another name that has delivered from this database, and whose default slot has this name.
///
/// # Errors
/// The database's.
pub(crate) async fn another_of_slot(
    session: &SqlSession,
    relay: &str,
    slot: &str,
) -> Result<Option<String>, tokio_postgres::Error> {
    let read = "select relay from outbox.relay_keys \
                where relay <> $1 and 'outbox_' || relay = $2 and delivered_at is not null";
    session.client().query_opt(read, &[&relay, &slot]).await?.map(|row| row.try_get(0)).transpose()
}

/// Notes that progress of the relay is stored.
///
/// # Errors
/// [`KeyError`].
pub(crate) async fn has_delivered(session: &SqlSession, relay: &str) -> Result<(), KeyError> {
    let note = "update outbox.relay_keys set delivered_at = clock_timestamp() where relay = $1";
    session.client().execute(note, &[&relay]).await.map_err(sorted).map(drop)
}

fn sorted(error: tokio_postgres::Error) -> KeyError {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    match error.code() {
        Some(code) if missing.contains(code) => KeyError::Halt(Halt::new(
            "the table outbox.relay_keys, by which the relay knows its own progress, is missing",
            "run `outbox-relay migrate` as the schema's owner, then grant what docs/ROLES.md lists",
        )),
        _ => KeyError::Database(error),
    }
}
