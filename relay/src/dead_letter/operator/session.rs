//! The operator's session, and what its commands have in common.

use tokio_postgres::{Client, Transaction, types::Json};
use uuid::Uuid;

use super::error::OperatorError;
use crate::{
    dead_letter::{answer::sorted, headers::Repertoire, message::Message},
    fault::{self, Point},
};

/// The table, for the operator of one relay.
#[derive(Debug)]
pub struct Operator<'a> {
    pub(super) client: &'a mut Client,
    pub(super) relay: String,
}

impl<'a> Operator<'a> {
    /// `relay` is the name of the relay that parked the events.
    pub fn new(client: &'a mut Client, relay: &str) -> Self {
        Operator { client, relay: relay.to_owned() }
    }

    /// Whether a relay of this name has been here: it has a slot, or a dead letter.
    ///
    /// # Errors
    /// [`OperatorError::NoRelay`], with the names that are known.
    pub async fn is_known(&mut self, slot: &str) -> Result<(), OperatorError> {
        let failed = |e| sorted("looking for the relay", e);
        let known = "select exists (select from outbox.dead_letters where relay = $1) \
                         or exists (select from pg_catalog.pg_replication_slots \
                             where slot_name = $2::text and database = current_database())";
        let row = self.client.query_one(known, &[&self.relay, &slot]).await.map_err(failed)?;
        if row.get(0) {
            return Ok(());
        }
        let names = "select coalesce(string_agg(name, ', '), 'none') from ( \
                         select relay as name from outbox.dead_letters \
                         union select substr(slot_name::text, 8) \
                         from pg_catalog.pg_replication_slots \
                         where database = current_database() \
                             and starts_with(slot_name::text, 'outbox_') \
                         order by 1 limit 20) n";
        let row = self.client.query_one(names, &[]).await.map_err(failed)?;
        let relay = self.relay.clone();
        Err(OperatorError::NoRelay { relay, slot: slot.to_owned(), known: row.get(0) })
    }
}

/// Says where in the stream the transaction's changes take their place.
pub(super) async fn announce(
    transaction: &Transaction<'_>,
    relay: &str,
    release: Uuid,
) -> Result<(), tokio_postgres::Error> {
    fault::point(Point::CommandChanged);
    let message = Message { relay: relay.to_owned(), release };
    transaction
        .execute(
            "select pg_catalog.pg_logical_emit_message(true, 'outbox', $1::jsonb::text)",
            &[&Json(message)],
        )
        .await?;
    fault::point(Point::CommandAnnounced);
    Ok(())
}

pub(super) async fn repertoire(
    transaction: &Transaction<'_>,
) -> Result<Repertoire, tokio_postgres::Error> {
    transaction.query_one(Repertoire::QUERY, &[]).await.map(|row| Repertoire::of(row.get(0)))
}

pub(super) async fn commit(transaction: Transaction<'_>) -> Result<(), tokio_postgres::Error> {
    transaction.commit().await?;
    fault::point(Point::CommandCommitted);
    Ok(())
}
