//! What somebody else has had the inbox forget, as its database has noted it.
//!
//! Triggers note rows of `inbox.messages` that are deleted or truncated, and rows of `inbox.consumers` and
//! `inbox.watermarks`, and messages in `inbox.parked` and `inbox.dead_letters` that are truncated;
//! `inbox.maintain()` notes days whose partition is gone. Of a message of such a day no
//! one can tell whether it has taken effect. It is taken, and this tells a person. Without its watermark a
//! partition's progress is not known, and nothing of it is taken.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use crate::{error::InboxError, session::Sessions, transaction::Open};

/// A loss, and the days that it has by now: one that grows is told again.
type Mark = (Uuid, Option<(String, String)>);

const DOING: &str = "looking at what was forgotten";

/// Notes that are read at once.
const LOSSES_MAX: usize = 100;

/// Those of one consumer, without what is there again.
const LOOK: &str = "select l.id, l.what, pg_catalog.to_char(l.first_day, 'YYYY-MM-DD'), \
        pg_catalog.to_char(l.last_day, 'YYYY-MM-DD'), \
        pg_catalog.to_char(l.first_day operator(pg_catalog.+) 1, 'YYYY-MM-DD'), l.messages, \
        l.lost operator(pg_catalog.->>) 'topic'::pg_catalog.text, \
        (l.lost operator(pg_catalog.->>) 'partition'::pg_catalog.text)::pg_catalog.int4, \
        l.by_role, l.noted_at, l.consumer_id, pg_catalog.count(*) over () \
    from inbox.losses as l \
    where (l.consumer_id is null or l.consumer_id operator(pg_catalog.=) $1) \
        and not (l.what operator(pg_catalog.=) 'consumer' and exists (select from inbox.consumers as c \
            where c.id operator(pg_catalog.=) l.consumer_id \
                and c.name operator(pg_catalog.=) (l.lost operator(pg_catalog.->>) 'name'::pg_catalog.text))) \
    order by l.last_at desc, l.id limit $2";

/// Of a watermark that is not there: its note; whether ids say that there was one; whether the row is this
/// transaction's own.
const WATERMARK: &str = "select (select l.id from inbox.losses as l \
            where l.what operator(pg_catalog.=) 'watermark' and l.consumer_id operator(pg_catalog.=) $1 \
                and (l.lost operator(pg_catalog.->>) 'topic'::pg_catalog.text) operator(pg_catalog.=) $2 \
                and (l.lost operator(pg_catalog.->>) 'partition'::pg_catalog.text)::pg_catalog.int4 \
                    operator(pg_catalog.=) $3 \
            order by l.noted_at desc limit 1), \
        exists (select from inbox.applied as a \
            where a.consumer_id operator(pg_catalog.=) $1 and a.topic operator(pg_catalog.=) $2 \
                and a.partition operator(pg_catalog.=) $3), \
        exists (select from inbox.watermarks as w \
            where w.consumer_id operator(pg_catalog.=) $1 and w.topic operator(pg_catalog.=) $2 \
                and w.partition operator(pg_catalog.=) $3 \
                and w.xmin operator(pg_catalog.=) pg_catalog.xid(pg_catalog.pg_current_xact_id()))";

/// Something that the inbox knew and that somebody had it forget.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Of its row in `inbox.losses`.
    pub id: Uuid,
    /// What was done.
    pub kind: LossKind,
    /// The first and the last day (UTC, `YYYY-MM-DD`) of the messages that are forgotten; `None` where it is no
    /// message.
    pub days: Option<(String, String)>,
    /// How many messages, where that is known.
    pub messages: Option<i64>,
    /// The partition whose watermark it was.
    pub partition: Option<(String, i32)>,
    /// The role that did it; of [`LossKind::Dropped`] and [`LossKind::Detached`], the one that found it.
    pub by: String,
    /// When it was done or found.
    pub noted_at: SystemTime,
    day_after_first: Option<String>,
    consumer_id: Option<i32>,
}

/// What was done to the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossKind {
    /// Days of `inbox.messages` were truncated.
    Truncated,
    /// Rows of `inbox.messages` were deleted.
    Deleted,
    /// Days of `inbox.messages` were dropped or renamed. They are there again, empty.
    Dropped,
    /// Days of `inbox.messages` were detached. Their messages are dead letters until they are attached again.
    Detached,
    /// The consumer's row in `inbox.consumers` was deleted.
    Consumer,
    /// A row of `inbox.watermarks` was deleted.
    Watermark,
    /// `inbox.parked` was truncated, with messages that waited.
    Parked,
    /// `inbox.dead_letters` was truncated, with messages that were given up.
    DeadLetters,
    /// A later version's.
    Other,
}

impl LossKind {
    fn of(text: &str) -> Self {
        match text {
            "truncated" => LossKind::Truncated,
            "deleted" => LossKind::Deleted,
            "dropped" => LossKind::Dropped,
            "detached" => LossKind::Detached,
            "consumer" => LossKind::Consumer,
            "watermark" => LossKind::Watermark,
            "parked" => LossKind::Parked,
            "dead_letters" => LossKind::DeadLetters,
            _ => LossKind::Other,
        }
    }
}

impl Loss {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let days: (Option<String>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
        let partition: (Option<String>, Option<i32>) = (row.try_get(6)?, row.try_get(7)?);
        Ok(Loss {
            id: row.try_get(0)?,
            kind: LossKind::of(row.try_get(1)?),
            days: days.0.zip(days.1),
            day_after_first: row.try_get(4)?,
            messages: row.try_get(5)?,
            partition: partition.0.zip(partition.1),
            by: row.try_get(8)?,
            noted_at: row.try_get(9)?,
            consumer_id: row.try_get(10)?,
        })
    }

    /// How messages whose only copy is gone take effect without a backup.
    fn together(&self) -> String {
        let (Some((first, _)), Some(id)) = (&self.days, self.consumer_id) else {
            return String::new();
        };
        format!(
            ". Without one they take effect only together with all other messages since {first}, which then take \
             effect once more. If that is wanted, stop all instances and type, as the owner of the schema inbox: \
             delete from inbox.messages where consumer_id = {id} and day >= '{first}'; \
             delete from inbox.applied where consumer_id = {id}; \
             update inbox.watermarks set position = null, before = null, next_offset = 0, topic_id = null \
             where consumer_id = {id}. Then set the group's offsets back to before {first}, and start them"
        )
    }

    /// Told once, and again where it has grown.
    fn mark(&self) -> Mark {
        (self.id, self.days.clone())
    }
}

/// What happened, what it means, and what to do.
impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.days.as_ref().map_or(("", ""), |(first, last)| (first, last));
        let days =
            if first == last { format!("day {first}") } else { format!("days {first} to {last}") };
        let (id, by) = (self.id, &self.by);
        let done =
            format!("when you have dealt with it: delete from inbox.losses where id = '{id}'");
        let again = format!(
            "whether their messages have taken effect is forgotten, so one that is delivered again takes effect \
             again, and no one notices; compare your effects with what was delivered again since, and don't set \
             the group's offsets back to before; {done}"
        );
        match self.kind {
            LossKind::Truncated => write!(f, "role {by} truncated inbox.messages, {days}: {again}"),
            LossKind::Deleted => {
                let rows = self.messages.unwrap_or_default();
                write!(f, "role {by} deleted {rows} rows of inbox.messages, {days}: {again}")
            }
            LossKind::Dropped => write!(
                f,
                "the partition of inbox.messages is gone (dropped, or detached and renamed), {days}, and was made again, \
                 empty: {again}"
            ),
            LossKind::Detached => {
                let next = self.day_after_first.as_deref().unwrap_or_default();
                let name = first.replace('-', "");
                write!(
                    f,
                    "the partition of inbox.messages is detached, {days}: messages of these days become dead \
                     letters with the code outside-window; attach it again (if PostgreSQL says that it is a partition already, \
                     first type: alter table inbox.messages detach partition inbox.messages_{name} finalize), \
                     for each day: alter table \
                     inbox.messages attach partition inbox.messages_{name} for values from ('{first}') to \
                     ('{next}'); select inbox.maintain()"
                )
            }
            LossKind::Consumer => write!(
                f,
                "role {by} deleted the consumer's row in inbox.consumers: nothing is forgotten, since it comes \
                 back with its number as soon as the consumer runs"
            ),
            LossKind::Watermark => {
                let (topic, partition) = self.partition.clone().unwrap_or_default();
                write!(
                    f,
                    "role {by} deleted the watermark of {topic}/{partition}: how far the consumer has come there is \
                     not known, and it stops at the next message; {}",
                    remedy(Some(id), self.consumer_id.unwrap_or_default(), &topic, partition)
                )
            }
            LossKind::Parked | LossKind::DeadLetters => {
                let table = if self.kind == LossKind::Parked { "parked" } else { "dead_letters" };
                let rows = self.messages.map_or("its".to_owned(), |rows| rows.to_string());
                write!(
                    f,
                    "role {by} truncated inbox.{table}, with {rows} messages of {days}: they have had no effect, and it \
                     had the only copy, so they are lost unless its rows are restored from a backup{}; {done}",
                    self.together()
                )
            }
            LossKind::Other => {
                write!(f, "a later version has noted a loss that this one does not know; {done}")
            }
        }
    }
}

/// How a consumer continues without a partition's watermark.
fn remedy(note: Option<Uuid>, consumer_id: i32, topic: &str, partition: i32) -> String {
    let topic = topic.replace('\'', "''");
    let here =
        format!("consumer_id = {consumer_id} and topic = '{topic}' and partition = {partition}");
    let (back, forget) = match note {
        Some(id) => (
            format!(
                "to continue where it was, type, as the owner of the schema inbox: insert into inbox.watermarks \
                 select (jsonb_populate_record(null::inbox.watermarks, lost)).* from inbox.losses where id = '{id}'; \
                 select inbox.maintain()"
            ),
            format!("; delete from inbox.losses where id = '{id}'"),
        ),
        None => ("restore its row in inbox.watermarks from a backup".to_owned(), String::new()),
    };
    format!(
        "stop all instances; {back}. Or, to begin at the group's offset, where what was taken and comes again takes \
         effect again: delete from inbox.applied where {here}{forget}. Then start them"
    )
}

/// What is noted for one consumer, newest first, and how many notes there are in all.
pub(crate) async fn look(
    sessions: &Arc<Sessions>,
    consumer_id: i32,
) -> Result<(Vec<Loss>, i64), InboxError> {
    let limit = i64::try_from(LOSSES_MAX).unwrap_or(i64::MAX);
    let params: [&(dyn ToSql + Sync); 2] = [&consumer_id, &limit];
    let (open, rows) = Open::begin(sessions, DOING, LOOK, &params).await?;
    open.rollback().await?;
    let refused = |error| InboxError::of(DOING, error);
    let all = rows.first().map_or(Ok(0), |row| row.try_get(11)).map_err(refused)?;
    let losses: Result<_, _> = rows.iter().map(Loss::read).collect();
    Ok((losses.map_err(refused)?, all))
}

/// Whether somebody has deleted the watermark, where a partition seems to have none: what to do then.
pub(crate) async fn of_watermark(
    open: &Open,
    consumer_id: i32,
    topic: &str,
    stored_topic: &str,
    partition: i32,
) -> Result<Option<String>, InboxError> {
    let refused = |error| InboxError::of(DOING, error);
    let params: [&(dyn ToSql + Sync); 3] = [&consumer_id, &stored_topic, &partition];
    let rows = open.query(DOING, WATERMARK, &params).await?;
    let row = rows.first().expect("a query without a table returns one row");
    let note: Option<Uuid> = row.try_get(0).map_err(refused)?;
    let (had_one, is_new): (bool, bool) =
        (row.try_get(1).map_err(refused)?, row.try_get(2).map_err(refused)?);
    Ok((is_new && (had_one || note.is_some())).then(|| {
        format!(
            "somebody has deleted the watermark of {topic}/{partition}, so how far the consumer has come is not \
             known, and nothing of it is taken; {}",
            remedy(note, consumer_id, stored_topic, partition)
        )
    }))
}

/// What was told already.
#[derive(Default)]
pub(crate) struct Told(Mutex<HashSet<Mark>>);

impl Told {
    /// Logs those that were not told yet, oldest first; and how many notes there are, if that is more than are told.
    pub(crate) fn log_new(&self, consumer: &str, losses: &[Loss], all: i64) {
        let new = self.new_of(losses);
        for loss in new.iter().rev() {
            tracing::error!(consumer, "{loss}");
        }
        let shown = losses.len();
        if !new.is_empty() && usize::try_from(all).is_ok_and(|all| all > shown) {
            tracing::error!(
                consumer,
                "inbox.losses has {all} notes about what was forgotten; only the newest {shown} are logged"
            );
        }
    }

    /// Those that were not told yet; from now on they are.
    pub(crate) fn new_of<'a>(&self, losses: &'a [Loss]) -> Vec<&'a Loss> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<&Loss> = losses.iter().filter(|loss| !told.contains(&loss.mark())).collect();
        *told = losses.iter().map(Loss::mark).collect();
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(kind: LossKind) -> Loss {
        Loss {
            id: Uuid::nil(),
            kind,
            days: Some(("2026-11-27".into(), "2026-11-28".into())),
            messages: Some(7),
            partition: Some(("it's".into(), 3)),
            by: "cleaner".into(),
            noted_at: SystemTime::UNIX_EPOCH,
            day_after_first: Some("2026-11-28".into()),
            consumer_id: Some(5),
        }
    }

    #[test]
    fn each_loss_says_what_happened_what_it_means_and_what_to_type() {
        for (kind, parts) in [
            (
                LossKind::Truncated,
                ["role cleaner truncated", "2026-11-27 to 2026-11-28", "delete from inbox.losses"],
            ),
            (
                LossKind::Deleted,
                ["deleted 7 rows", "takes effect again", "delete from inbox.losses"],
            ),
            (
                LossKind::Dropped,
                ["is gone (dropped", "takes effect again", "delete from inbox.losses"],
            ),
            (
                LossKind::Detached,
                [
                    "is detached",
                    "outside-window",
                    "inbox.messages_20261127 for values from ('2026-11-27') to ('2026-11-28')",
                ],
            ),
            (
                LossKind::Parked,
                [
                    "truncated inbox.parked, with 7",
                    "backup",
                    "consumer_id = 5 and day >= '2026-11-27'",
                ],
            ),
            (
                LossKind::DeadLetters,
                ["truncated inbox.dead_letters", "only copy", "before 2026-11-27, and start them"],
            ),
            (LossKind::Watermark, ["it's/3", "it stops", "topic = 'it''s' and partition = 3"]),
        ] {
            let text = loss(kind).to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn a_loss_is_told_once_and_again_when_it_grows_or_comes_back() {
        let told = Told::default();
        let mut losses = vec![loss(LossKind::Dropped)];
        assert_eq!(told.new_of(&losses).len(), 1);
        assert_eq!(told.new_of(&losses).len(), 0);
        losses[0].days = Some(("2026-11-26".into(), "2026-11-28".into()));
        assert_eq!(told.new_of(&losses).len(), 1);
        assert_eq!(told.new_of(&[]).len(), 0);
        assert_eq!(told.new_of(&losses).len(), 1);
    }
}
