//! Parked events that wait for their topic, or for the broker's word, and for no person: found, and
//! released by the relay.
//!
//! The relay's side of the table, as [`super::Store`]: each step is one statement on the session
//! that holds the leader's lock. The reasons stand in the statements, not in parameters, so that the
//! indexes of these events alone answer them.

use std::{sync::Arc, time::Duration};

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{answer::sorted, error::DeadLetterError};
use crate::postgres::sql::SqlSession;

/// The reason of an event that the broker was not asked about by itself (`pipeline::suspicion`).
pub const SUSPECTED: &str = "suspected";
/// Suspects that are released at a time: so many the sink sends one in a batch.
const SUSPECTS_MAX: i64 = 100;

/// The reason of an event whose topic does not exist.
pub const UNKNOWN_TOPIC: &str = "unknown_topic";
/// Topics looked for at a time; the next ones follow when these are there or given up.
const TOPICS_MAX: i64 = 10_000;

/// Whether there is anything that is only suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspects {
    /// Nothing.
    None,
    /// And some of it is being released.
    UnderWay,
    /// And none of it is being released.
    Parked,
}

/// The events of one relay.
#[derive(Debug)]
pub struct Pending {
    session: Arc<SqlSession>,
    relay: String,
}

impl Pending {
    /// `session` is the one that holds the leader's lock.
    pub fn new(session: Arc<SqlSession>, relay: &str) -> Self {
        Pending { session, relay: relay.to_owned() }
    }

    /// Topics of events that were parked because the topic was missing, no longer than `grace` ago.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn topics(&self, grace: Duration) -> Result<Vec<String>, DeadLetterError> {
        let sql = "select distinct topic from outbox.dead_letters \
                   where relay = $1 and state = 'parked' and reason = 'unknown_topic' \
                       and parked_at > (select clock_timestamp() - make_interval(secs => $2)) \
                       and topic is not null \
                   limit $3";
        let rows = self
            .session
            .client()
            .query(sql, &[&self.relay, &grace.as_secs_f64(), &TOPICS_MAX])
            .await
            .map_err(|error| sorted("looking for events of missing topics", error))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Looks for events that are suspected.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn suspects(&self) -> Result<Suspects, DeadLetterError> {
        let sql = "select exists (select from outbox.dead_letters \
                           where relay = $1 and state = 'parked' and reason = 'suspected'), \
                       exists (select from outbox.dead_letters \
                           where relay = $1 and state = 'releasing' and reason = 'suspected')";
        let row = self
            .session
            .client()
            .query_one(sql, &[&self.relay])
            .await
            .map_err(|error| sorted("looking for suspected events", error))?;
        Ok(match (row.get(0), row.get(1)) {
            (_, true) => Suspects::UnderWay,
            (true, false) => Suspects::Parked,
            (false, false) => Suspects::None,
        })
    }

    /// Announces the release of the oldest suspects, as many as the broker is asked about at a time, and
    /// of what is parked behind them. Returns how many they are.
    ///
    /// # Errors
    /// [`DeadLetterError`]; nothing is changed then.
    pub async fn release_suspects(&self) -> Result<i64, DeadLetterError> {
        let suspects = "id in (select id from outbox.dead_letters \
                where relay = $1 and state = 'parked' and reason = 'suspected' \
                order by commit_lsn, ordinal, id limit $3) \
            and state = 'parked'";
        self.announce(suspects, &[&SUSPECTS_MAX])
            .await
            .map_err(|error| sorted("releasing suspected events", error))
    }

    /// The session, for what else is to be asked.
    pub fn session(&self) -> &SqlSession {
        &self.session
    }

    /// Announces the release of what has waited for these topics no longer than `grace`; what is parked
    /// behind it goes with it when the stream has come to the announcement. Returns how many events are
    /// released.
    ///
    /// # Errors
    /// [`DeadLetterError`]; nothing is changed then.
    pub async fn release(
        &self,
        topics: &[String],
        grace: Duration,
    ) -> Result<i64, DeadLetterError> {
        let of_topics = "relay = $1 and state = 'parked' and reason = 'unknown_topic' \
            and topic = any($3) \
            and parked_at > (select clock_timestamp() - make_interval(secs => $4))";
        self.announce(of_topics, &[&topics, &grace.as_secs_f64()])
            .await
            .map_err(|error| sorted("releasing events of topics that have appeared", error))
    }

    /// Releases the rows that are `chosen`, a condition whose own parameters begin at `$3`, and announces
    /// that if there are any. Returns how many they are.
    async fn announce(
        &self,
        chosen: &str,
        more: &[&(dyn ToSql + Sync)],
    ) -> Result<i64, tokio_postgres::Error> {
        let sql = format!(
            "with released as ( \
                 update outbox.dead_letters set state = 'releasing', release_id = $2, \
                     release_ordinal = null, changed_at = clock_timestamp() \
                 where {chosen} returning id) \
             select count(*), case when count(*) > 0 then pg_catalog.pg_logical_emit_message( \
                 true, 'outbox', pg_catalog.jsonb_build_object('relay', $1::text, \
                     'release', $2::uuid)::text) \
                 end from released"
        );
        let release = Uuid::now_v7();
        let params: Vec<&(dyn ToSql + Sync)> =
            [&self.relay as _, &release as _].into_iter().chain(more.iter().copied()).collect();
        self.session.client().query_one(&sql, &params).await?.try_get(0)
    }
}
