//! The operator's side of `outbox.dead_letters`: look, edit, release, discard.
//!
//! It speaks to PostgreSQL alone, with no more rights than `docs/ROLES.md` gives an operator. What
//! changes which lanes are parked is announced by a WAL message in the same transaction, and takes
//! effect when the relay's stream has come to it. Called by `cli`.

mod listing;
mod release;
mod selection;

use tokio_postgres::{
    Client, Transaction,
    types::{Json, ToSql},
};
use uuid::Uuid;

use self::{listing::read, selection::CHOSEN};
pub use self::{
    listing::{By, Counted, Entry, Group, Letter},
    release::{Far, Released},
    selection::Selection,
};
use super::{
    DeadLetterError, Lane, Message,
    answer::sorted,
    edit::{Edit, EditError, Event},
    headers::{self, Repertoire},
};
use crate::fault::{self, Point};

/// Why a command did nothing.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The database's answer, or a table that is not there.
    #[error(transparent)]
    DeadLetters(#[from] DeadLetterError),
    /// There is no such dead letter of this relay.
    #[error("relay {relay} has no dead letter {id}; see `outbox-relay dead-letters list --all`")]
    Unknown {
        /// The number that was given.
        id: i64,
        /// The relay's name.
        relay: String,
    },
    /// Nobody of that name has been here.
    #[error(
        "no relay of the name {relay} has parked anything in this database, and none has a slot \
         {slot} in it; names that are known here: {known}; give one with --name"
    )]
    NoRelay {
        /// The name that was given.
        relay: String,
        /// Its slot.
        slot: String,
        /// Those that are, separated by commas.
        known: String,
    },
    /// The selection names something that is not there.
    #[error("nothing that is parked is of {selection}; {there}")]
    NothingChosen {
        /// What was asked for.
        selection: String,
        /// Topics and reasons that there are.
        there: String,
    },
    /// While somebody was asked, others were parked, released or discarded.
    #[error(
        "the selection has changed meanwhile: it had {asked} parked events and has {now}; nothing was \
         discarded"
    )]
    Changed {
        /// Events that were spoken of.
        asked: i64,
        /// Of these and what came since, those that are parked now.
        now: i64,
    },
    /// It is not parked any more.
    #[error("dead letter {id} is {state}, not parked: it can't be changed any more")]
    NotParked {
        /// Its number.
        id: i64,
        /// Its state.
        state: String,
    },
    /// The event can't be what it would become.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// In its new lane it would overtake what is parked there.
    #[error(
        "{count} events of the lane that dead letter {id} would go to are parked, and it would \
         overtake them: release or discard these first"
    )]
    LaneIsParked {
        /// Its number.
        id: i64,
        /// Parked events of the lane.
        count: i64,
    },
}

/// The table, for the operator of one relay.
#[derive(Debug)]
pub struct Operator<'a> {
    client: &'a mut Client,
    relay: String,
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

    /// Changes what a parked event is. Its place does not change, nor what waits behind it; it
    /// goes to its new topic, key or partition when it is released.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn edit(&mut self, id: i64, edit: &Edit) -> Result<Letter, OperatorError> {
        let failed = |e| sorted("editing a dead letter", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let before = read(&transaction, &self.relay, id, "for update").await?;
        is_parked(&before)?;
        let row = transaction
            .query_one(
                "select topic, key, partition, timestamp_ms, payload, headers, lane, fit, reason \
                 from outbox.dead_letters where id = $1",
                &[&id],
            )
            .await
            .map_err(failed)?;
        let event = Event {
            topic: row.get(0),
            key: row.get(1),
            partition: row.get(2),
            timestamp_ms: row.get(3),
            payload: row.get(4),
            headers: headers::again(&row.get(5), Repertoire::Unicode),
        };
        // A row above the size limit was read past: there is no payload to go on with.
        let payload_lost = !row.get::<_, bool>(7)
            && event.payload.is_none()
            && row.get::<_, &str>(8) == "too_large";
        let event = edit.apply(event, payload_lost)?;
        let repertoire = repertoire(&transaction).await.map_err(failed)?;
        let topic = event.topic.as_deref().unwrap_or_default();
        let lane = Lane::of(topic, event.key.as_deref(), event.partition).map(Lane::to_uuid);
        if lane.is_some() && lane != row.get::<_, Option<Uuid>>(6) {
            let count: i64 = transaction
                .query_one(
                    "select count(*) from outbox.dead_letters where relay = $1 and lane = $2 \
                     and state in ('parked', 'releasing')",
                    &[&self.relay, &lane],
                )
                .await
                .map_err(failed)?
                .get(0);
            if count > 0 {
                return Err(OperatorError::LaneIsParked { id, count });
            }
        }
        transaction
            .execute(
                "update outbox.dead_letters set topic = $2, key = $3, partition = $4, \
                     timestamp_ms = $5, payload = $6, headers = $7, fit = true, \
                     changed_at = clock_timestamp() \
                 where id = $1",
                &[
                    &id,
                    &event.topic.as_ref().map(|topic| repertoire.sanitised(topic)),
                    &event.key,
                    &event.partition,
                    &event.timestamp_ms,
                    &event.payload,
                    &headers::again(&event.headers, repertoire),
                ],
            )
            .await
            .map_err(failed)?;
        let after = read(&transaction, &self.relay, id, "").await?;
        commit(transaction).await.map_err(failed)?;
        Ok(after)
    }

    /// Leaves parked events out permanently: exactly those that were counted, or none. Notes who did it
    /// and why.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn discard_all(
        &mut self,
        selection: &Selection,
        counted: Counted,
        why: Option<&str>,
    ) -> Result<(), OperatorError> {
        let failed = |e| sorted("discarding dead letters", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let repertoire = repertoire(&transaction).await.map_err(failed)?;
        let of = selection.parameters(repertoire);
        let release = Uuid::now_v7();
        let sql = format!(
            "update outbox.dead_letters set state = 'discarded', release_id = $6, \
                 discarded_by = session_user, discarded_why = $7, changed_at = clock_timestamp() \
             where relay = $1 and {CHOSEN} and state = 'parked' and id <= $8"
        );
        let Counted { events: asked, newest } = counted;
        let why = why.map(|why| repertoire.sanitised(why));
        let parameters: [&(dyn ToSql + Sync); 8] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason, &release, &why, &newest];
        let found = transaction.execute(&sql, &parameters).await.map_err(failed)?;
        let found = i64::try_from(found).unwrap_or(i64::MAX);
        // What came meanwhile has higher numbers; what a release has put back keeps its own. Nobody was
        // asked about either.
        if found != asked {
            transaction.rollback().await.map_err(failed)?;
            let now = self.count(selection).await.map_or(0, |counted| counted.events);
            return Err(OperatorError::Changed { asked, now });
        }
        if asked > 0 {
            announce(&transaction, &self.relay, release).await.map_err(failed)?;
            commit(transaction).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Leaves an event out: the only way in which one is dropped. What waits behind it stays
    /// parked until it is released; where nothing does, its lane flows again.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn discard(&mut self, id: i64, why: Option<&str>) -> Result<Letter, OperatorError> {
        let failed = |e| sorted("discarding a dead letter", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let before = read(&transaction, &self.relay, id, "for update").await?;
        is_parked(&before)?;
        let release = Uuid::now_v7();
        let repertoire = repertoire(&transaction).await.map_err(failed)?;
        let why = why.map(|why| repertoire.sanitised(why));
        transaction
            .execute(
                "update outbox.dead_letters set state = 'discarded', release_id = $2, \
                     discarded_by = session_user, discarded_why = $3, \
                     changed_at = clock_timestamp() \
                 where id = $1",
                &[&id, &release, &why],
            )
            .await
            .map_err(failed)?;
        announce(&transaction, &self.relay, release).await.map_err(failed)?;
        let after = read(&transaction, &self.relay, id, "").await?;
        commit(transaction).await.map_err(failed)?;
        Ok(after)
    }
}

/// Says where in the stream the transaction's changes take their place.
async fn announce(
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

async fn repertoire(transaction: &Transaction<'_>) -> Result<Repertoire, tokio_postgres::Error> {
    transaction.query_one(Repertoire::QUERY, &[]).await.map(|row| Repertoire::of(row.get(0)))
}

async fn commit(transaction: Transaction<'_>) -> Result<(), tokio_postgres::Error> {
    transaction.commit().await?;
    fault::point(Point::CommandCommitted);
    Ok(())
}

fn is_parked(letter: &Letter) -> Result<(), OperatorError> {
    match letter.entry.state.as_deref() {
        Some("parked") => Ok(()),
        state => Err(OperatorError::NotParked {
            id: letter.entry.id,
            state: state.unwrap_or("unknown").to_owned(),
        }),
    }
}
