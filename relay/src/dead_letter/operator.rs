//! The operator's side of `outbox.dead_letters`: look, edit, release, discard.
//!
//! It speaks to PostgreSQL alone, with no more rights than `docs/ROLES.md` gives an operator. What
//! changes which lanes are parked is announced by a WAL message in the same transaction, and takes
//! effect when the relay's stream has come to it. Called by `cli`.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::{
    Client, Row, Transaction,
    types::{Json, PgLsn, ToSql},
};
use uuid::Uuid;

use super::{
    DeadLetterError, Lane, Message,
    edit::{Edit, EditError, Event},
    headers::{self, Repertoire},
    store::sorted,
};
use crate::fault::{self, Point};

/// A parked event, or one of history, as `list` gives it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// The dead letter's own number.
    pub id: i64,
    /// The event's id.
    pub event_id: Option<String>,
    /// Destination.
    pub topic: Option<String>,
    /// A string, `{"base64": …}` where it is no text, or null.
    pub key: Value,
    /// Where it was parked, such as `16/B374D848:12`.
    pub position: String,
    /// One of a few fixed words.
    pub reason: String,
    /// What is wrong, for a person.
    pub error: String,
    /// RFC 3339, UTC.
    pub parked_at: String,
    /// Only where history is asked for, and for a single one: `parked`, `releasing`, `released` or
    /// `discarded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// With `state`: when it came to that. RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<String>,
}

/// One dead letter with everything that is known of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Letter {
    /// As in `list`.
    #[serde(flatten)]
    pub entry: Entry,
    /// Explicit partition.
    pub partition: Option<i32>,
    /// Record timestamp in milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    /// Whether it is a record; if not, it must be edited before it can be delivered.
    pub fit: bool,
    /// Who discarded it, as logged in to the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discarded_by: Option<String>,
    /// Why, in that person's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discarded_why: Option<String>,
    /// All headers, `[[name, value], …]`; a value is a string or `{"base64": …}`.
    pub headers: Value,
    /// A string, `{"base64": …}` where it is no text, or null.
    pub payload: Value,
}

/// Parked events, by what all of the given says; all where nothing is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// These alone, by their numbers.
    pub ids: Vec<i64>,
    /// Of this topic only.
    pub topic: Option<String>,
    /// Of this key only.
    pub key: Option<String>,
    /// Of this reason only.
    pub reason: Option<String>,
}

/// A condition on `outbox.dead_letters`, with the parameters 2 to 5 of [`Selection::parameters`].
const CHOSEN: &str = "(cardinality($2::int8[]) = 0 or id = any($2)) \
    and ($3::text is null or topic = $3) and ($4::bytea is null or key = $4) \
    and ($5::text is null or reason = $5)";

/// As the database compares them.
struct Parameters {
    ids: Vec<i64>,
    topic: Option<String>,
    key: Option<Vec<u8>>,
    reason: Option<String>,
}

impl Selection {
    fn parameters(&self, repertoire: Repertoire) -> Parameters {
        let text = |text: &Option<String>| text.as_ref().map(|text| repertoire.sanitised(text));
        Parameters {
            ids: self.ids.clone(),
            topic: text(&self.topic),
            key: self.key.clone().map(String::into_bytes),
            reason: text(&self.reason),
        }
    }
}

/// What a release has announced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Released {
    /// Ids of the releases, each of whole lanes; none where there was nothing to release.
    pub releases: Vec<Uuid>,
    /// Events so far; what is parked in the same lanes until the stream comes to it is added.
    pub events: i64,
    /// Lanes; an event alone counts as one.
    pub lanes: i64,
    /// Of its events, those that are no records and so will be parked again, each with all behind
    /// it: edit or discard them. The first hundred.
    pub unfit: Vec<i64>,
}

/// Parked events that have something in common.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Their topic.
    pub topic: Option<String>,
    /// Their key; absent where they are grouped by reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Value>,
    /// The reason of the first of them that was refused itself.
    pub reason: Option<String>,
    /// How many.
    pub events: i64,
    /// The first one's number.
    pub first: i64,
    /// When the first one was parked. RFC 3339, UTC.
    pub parked_at: String,
}

/// By what [`Operator::groups`] groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Topic and key: what waits for one another.
    Lane,
    /// Topic and reason.
    Reason,
}

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
    #[error("nothing that is parked is of {selection}; parked are events of {there}")]
    NothingChosen {
        /// What was asked for.
        selection: String,
        /// Topics and reasons that there are.
        there: String,
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

/// What is common to `list` and `show`.
const ENTRY: &str = "id, event_id, topic, key, commit_lsn::text || ':' || ordinal, reason, error, \
    to_char(parked_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), state, \
    to_char(changed_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
/// Events that are released at a time, and with them all of the last one's lane.
const RELEASE_EVENTS: i64 = 2_000;
/// Events that are no records and that a release names.
const UNFIT_NAMED: usize = 100;
/// Rows that `list` reads at a time.
const PAGE_ROWS: i32 = 1_000;

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

    /// Gives what is parked to `each`, in the order of positions; with `history`, also what was; no
    /// more than `limit`. Returns how many there are besides.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn list(
        &mut self,
        selection: &Selection,
        history: bool,
        limit: Option<i64>,
        mut each: impl FnMut(Entry),
    ) -> Result<i64, OperatorError> {
        const DOING: &str = "listing dead letters";
        let failed = |e| sorted(DOING, e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        let whose = format!(
            "from outbox.dead_letters where relay = $1 and {CHOSEN} \
             and ($6 or state in ('parked', 'releasing'))"
        );
        let sql = format!("select {ENTRY} {whose} order by commit_lsn, ordinal, id limit $7");
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason, &history, &limit];
        let portal = transaction.bind(&sql, &parameters).await.map_err(failed)?;
        let mut listed = 0;
        loop {
            let rows = transaction.query_portal(&portal, PAGE_ROWS).await.map_err(failed)?;
            if rows.is_empty() {
                break;
            }
            listed += i64::try_from(rows.len()).unwrap_or(i64::MAX);
            rows.iter().for_each(|row| each(entry(row, history)));
        }
        if limit.is_none_or(|limit| listed < limit) {
            return Ok(0);
        }
        let count = format!("select count(*) {whose}");
        let parameters = parameters.get(..6).unwrap_or_default();
        let row = transaction.query_one(&count, parameters).await.map_err(failed)?;
        Ok(row.get::<_, i64>(0) - listed)
    }

    /// What is parked, in groups, the largest first.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn groups(
        &mut self,
        selection: &Selection,
        by: By,
        limit: Option<i64>,
    ) -> Result<Vec<Group>, OperatorError> {
        let failed = |e| sorted("grouping dead letters", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        let (columns, key) = match by {
            By::Lane => ("topic, key, coalesce(lane::text, id::text)", "key"),
            By::Reason => ("topic, reason", "null::bytea"),
        };
        let sql = format!(
            "select topic, {key}, min(reason) filter (where reason <> 'lane_parked'), count(*), \
                 min(id), to_char(min(parked_at) at time zone 'UTC', \
                     'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), min(reason) \
             from outbox.dead_letters \
             where relay = $1 and {CHOSEN} and state in ('parked', 'releasing') \
             group by {columns} order by count(*) desc, min(id) limit $6"
        );
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason, &limit];
        let rows = transaction.query(&sql, &parameters).await.map_err(failed)?;
        let group = |row: &Row| Group {
            topic: row.get(0),
            key: (by == By::Lane).then(|| value(row.get(1))),
            reason: row.get::<_, Option<String>>(2).or_else(|| row.get(6)),
            events: row.get(3),
            first: row.get(4),
            parked_at: row.get(5),
        };
        Ok(rows.iter().map(group).collect())
    }

    /// How many parked events the selection has.
    ///
    /// # Errors
    /// [`OperatorError::NothingChosen`] where it names something and has none.
    pub async fn count(&mut self, selection: &Selection) -> Result<i64, OperatorError> {
        let failed = |e| sorted("counting parked events", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        let sql = format!(
            "select count(*) from outbox.dead_letters where relay = $1 and {CHOSEN} \
             and state = 'parked'"
        );
        let parameters: [&(dyn ToSql + Sync); 5] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason];
        let count: i64 = transaction.query_one(&sql, &parameters).await.map_err(failed)?.get(0);
        if count > 0 || *selection == Selection::default() {
            return Ok(count);
        }
        let there = "select coalesce(string_agg(what, ', '), 'no topic: nothing is parked') from ( \
                         select distinct coalesce(topic, '(no topic)') || ' (' || reason || ')' as what \
                         from outbox.dead_letters where relay = $1 and state = 'parked' \
                         order by 1 limit 20) t";
        let there = transaction.query_one(there, &[&self.relay]).await.map_err(failed)?.get(0);
        Err(OperatorError::NothingChosen { selection: selection.to_string(), there })
    }

    /// One dead letter, whatever became of it.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn show(&mut self, id: i64) -> Result<Letter, OperatorError> {
        let failed = |e| sorted("reading a dead letter", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        read(&transaction, &self.relay, id, "").await
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

    /// Announces that whole lanes are released: the relay delivers what is parked in them when its
    /// stream has come to the announcement. Some lanes at a time, so that neither the database nor
    /// what is committed meanwhile waits for all of them; `progress` is told how many events so far.
    ///
    /// # Errors
    /// [`OperatorError`]; what was announced by then is released.
    pub async fn release(
        &mut self,
        selection: &Selection,
        mut progress: impl FnMut(i64),
    ) -> Result<Released, OperatorError> {
        let mut released = Released::default();
        let mut after = After::beginning();
        while let Some(next) = self.release_next(selection, &after, &mut released).await? {
            after = next;
            progress(released.events);
        }
        Ok(released)
    }

    /// The next lanes after those that were looked at; `None` where none is left.
    async fn release_next(
        &mut self,
        selection: &Selection,
        after: &After,
        released: &mut Released,
    ) -> Result<Option<After>, OperatorError> {
        let failed = |e| sorted("releasing parked events", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        // By the index of what is parked, from one place on: the whole takes one pass. Events that
        // stand alone are behind all lanes there.
        let sql = format!(
            "select id, lane, commit_lsn, ordinal from outbox.dead_letters \
             where relay = $1 and state = 'parked' and {CHOSEN} and {} limit {}",
            match after.alone {
                false => "lane > $6 order by relay, lane, commit_lsn, ordinal",
                true =>
                    "lane is null and (commit_lsn, ordinal, id) > ($6, $7, $8) \
                         order by relay, lane, commit_lsn, ordinal, id",
            },
            if after.alone { "$9" } else { "$7" }
        );
        let mut parameters: Vec<&(dyn ToSql + Sync)> =
            vec![&self.relay, &of.ids, &of.topic, &of.key, &of.reason];
        match &after.alone {
            false => parameters.push(&after.lane),
            true => {
                parameters.extend([&after.commit as &(dyn ToSql + Sync), &after.ordinal, &after.id])
            }
        }
        parameters.push(&RELEASE_EVENTS);
        let rows = transaction.query(&sql, &parameters).await.map_err(failed)?;
        let Some(last) = rows.last() else {
            return Ok((!after.alone).then(|| After { alone: true, ..After::beginning() }));
        };
        let next = After {
            alone: after.alone,
            lane: last.get::<_, Option<Uuid>>(1).unwrap_or_default(),
            commit: last.get(2),
            ordinal: last.get(3),
            id: last.get(0),
        };
        let mut lanes: Vec<Uuid> = rows.iter().filter_map(|row| row.get(1)).collect();
        lanes.dedup();
        let alone: Vec<i64> = rows
            .iter()
            .filter(|row| row.get::<_, Option<Uuid>>(1).is_none())
            .map(|row| row.get(0))
            .collect();
        let release = Uuid::now_v7();
        // A lane is released whole: its later events may not go before its earlier ones.
        let row = transaction
            .query_one(
                "with chosen as ( \
                     select c.id, row_number() over (order by c.commit_lsn, c.ordinal, c.id) - 1 as place \
                     from ( \
                         select o.* from unnest($3::uuid[]) l (lane) cross join lateral ( \
                             select id, commit_lsn, ordinal from outbox.dead_letters \
                             where relay = $1 and lane = l.lane and state = 'parked' offset 0) o \
                         union all \
                         select o.* from unnest($4::int8[]) a (id) cross join lateral ( \
                             select id, commit_lsn, ordinal from outbox.dead_letters \
                             where id = a.id and state = 'parked' offset 0) o) c), \
                 changed as ( \
                     update outbox.dead_letters d set state = 'releasing', release_id = $2, \
                         release_ordinal = chosen.place, changed_at = clock_timestamp() \
                     from chosen where d.id = chosen.id and d.relay = $1 and d.state = 'parked' \
                     returning d.id, d.lane, d.fit) \
                 select count(*), count(distinct lane) + count(*) filter (where lane is null), \
                     coalesce((array_agg(id order by id) filter (where not fit))[1:100], '{}') \
                 from changed",
                &[&self.relay, &release, &lanes, &alone],
            )
            .await
            .map_err(failed)?;
        let events = row.get::<_, i64>(0);
        if events > 0 {
            announce(&transaction, &self.relay, release).await.map_err(failed)?;
            commit(transaction).await.map_err(failed)?;
            released.releases.push(release);
            released.events += events;
            released.lanes += row.get::<_, i64>(1);
            released.unfit.extend(row.get::<_, Vec<i64>>(2));
            released.unfit.truncate(UNFIT_NAMED);
        }
        Ok(Some(next))
    }

    /// Leaves parked events out for good, all of them or none, and notes who did it and why. Returns
    /// how many.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn discard_all(
        &mut self,
        selection: &Selection,
        why: Option<&str>,
    ) -> Result<i64, OperatorError> {
        let failed = |e| sorted("discarding dead letters", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let repertoire = repertoire(&transaction).await.map_err(failed)?;
        let of = selection.parameters(repertoire);
        let release = Uuid::now_v7();
        let sql = format!(
            "update outbox.dead_letters set state = 'discarded', release_id = $6, \
                 discarded_by = session_user, discarded_why = $7, changed_at = clock_timestamp() \
             where relay = $1 and {CHOSEN} and state = 'parked'"
        );
        let why = why.map(|why| repertoire.sanitised(why));
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason, &release, &why];
        let count = transaction.execute(&sql, &parameters).await.map_err(failed)?;
        if count > 0 {
            announce(&transaction, &self.relay, release).await.map_err(failed)?;
            commit(transaction).await.map_err(failed)?;
        }
        Ok(i64::try_from(count).unwrap_or(i64::MAX))
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

/// Up to where a release has come.
#[derive(Debug)]
struct After {
    /// Lanes are done; now events that stand alone.
    alone: bool,
    lane: Uuid,
    commit: PgLsn,
    ordinal: i64,
    id: i64,
}

impl After {
    fn beginning() -> Self {
        After { alone: false, lane: Uuid::nil(), commit: PgLsn::from(0), ordinal: -1, id: 0 }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.ids.is_empty() {
            let ids: Vec<String> = self.ids.iter().map(ToString::to_string).collect();
            parts.push(format!("the numbers {}", ids.join(", ")));
        }
        let named = [("topic", &self.topic), ("key", &self.key), ("reason", &self.reason)];
        parts.extend(
            named.iter().filter_map(|(name, value)| {
                value.as_ref().map(|value| format!("the {name} {value}"))
            }),
        );
        f.write_str(&parts.join(" and "))
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

async fn read(
    transaction: &Transaction<'_>,
    relay: &str,
    id: i64,
    lock: &str,
) -> Result<Letter, OperatorError> {
    let sql = format!(
        "select {ENTRY}, partition, timestamp_ms, fit, headers, payload, discarded_by, \
                discarded_why from outbox.dead_letters \
         where relay = $1 and id = $2 {lock}"
    );
    let row = transaction
        .query_opt(&sql, &[&relay, &id])
        .await
        .map_err(|e| sorted("reading a dead letter", e))?
        .ok_or_else(|| OperatorError::Unknown { id, relay: relay.to_owned() })?;
    Ok(Letter {
        entry: entry(&row, true),
        partition: row.get(10),
        timestamp_ms: row.get(11),
        fit: row.get(12),
        headers: headers::again(&row.get(13), Repertoire::Unicode),
        payload: value(row.get(14)),
        discarded_by: row.get(15),
        discarded_why: row.get(16),
    })
}

fn entry(row: &Row, with_state: bool) -> Entry {
    Entry {
        id: row.get(0),
        event_id: row.get(1),
        topic: row.get(2),
        key: value(row.get(3)),
        position: row.get(4),
        reason: row.get(5),
        error: row.get(6),
        parked_at: row.get(7),
        state: with_state.then(|| row.get(8)),
        changed_at: with_state.then(|| row.get(9)),
    }
}

fn value(bytes: Option<&[u8]>) -> Value {
    bytes.map_or_else(|| json!(null), headers::to_value)
}
