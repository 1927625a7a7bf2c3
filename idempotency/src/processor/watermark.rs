//! How far a partition has come, by the positions that its one relay gives.
//!
//! Within a partition those never step back, so a message is new if its position is past the watermark,
//! which is one row, locked by each transaction that moves it. One that is not past it is known where its
//! offset was read before. What these two can't tell is looked up by its id: what has no key, and so may
//! lie in another partition when it is published again; what a repair published; what a new timeline or
//! era may repeat; and what comes at a new offset behind the watermark, since whoever writes to the topic
//! may have moved that.
//! Deciding is pure; `lock` and `advance` are the statements around it.

use std::{cmp::Ordering, str::FromStr};

use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::position::{Place, Position};
use crate::{
    error::InboxError, inbox::Inbox, message::RawMessage, message_id::Day, transaction::Open,
};

/// A watermark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    position: Option<Position>,
    /// The highest place of earlier timelines and eras.
    before: Option<Place>,
    /// Where reading continues.
    pub(super) next_offset: i64,
    /// The broker's id of the topic, where it was known.
    pub(super) topic_id: Option<String>,
}

/// What a mark says about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fresh,
    Duplicate,
    /// Its position says nothing.
    ById,
    /// Its offset is new, and its position is not past the mark: its id tells whether it was taken.
    Passed,
}

impl Mark {
    /// Judges the next message of the partition, and moves past its position; `placeless` is one
    /// whose position says nothing in this partition.
    ///
    /// # Errors
    /// It comes from another cluster, and no one has told the relay so: positions can't be compared
    /// ([`continue_by_id`]).
    pub(super) fn judge(
        &mut self,
        position: &Position,
        placeless: bool,
        offset: i64,
    ) -> Result<Verdict, String> {
        let Some(at) = self.position.as_ref().filter(|_| !placeless) else {
            return Ok(if placeless { Verdict::ById } else { self.reach(position) });
        };
        if at.era == position.era && at.system_id != position.system_id {
            return Err(format!(
                "the relay's cluster is {} and was {}, and no `outbox-relay resume` has said so: two \
                 relays of one name may feed the topic, so the message is neither taken nor passed over",
                position.system_id, at.system_id
            ));
        }
        let line = |position: &Position| (position.era, position.timeline);
        Ok(match line(position).cmp(&line(at)) {
            Ordering::Less => self.pass(offset),
            Ordering::Equal if position.place <= at.place => self.pass(offset),
            Ordering::Equal => self.reach(position),
            Ordering::Greater => {
                // In another era, rows of one transaction may be counted otherwise.
                let same_era = position.era == at.era;
                let reached = if same_era { at.place } else { at.place.end_of_commit() };
                self.before = self.before.max(Some(reached));
                self.reach(position)
            }
        })
    }

    /// A message with a key is told by its id, though it has a position: once more it may come without the
    /// mark, and so is looked up up to there.
    pub(super) fn is_repaired_up_to(&mut self, position: &Position) {
        self.before = self.before.max(Some(position.place));
    }

    /// The message with this offset was taken over. Offsets step back where a topic was cut or made
    /// again, and then reading continues there.
    pub(super) fn take(&mut self, offset: i64) {
        self.next_offset = offset.saturating_add(1);
    }

    /// Reading starts over, in another topic of the same name, of which something may have been read
    /// before that was noticed: positions up to here tell nothing about what comes.
    #[cfg(any(test, feature = "kafka-plain"))]
    fn set_back(&mut self) {
        self.before = self.before.max(self.position.take().map(|position| position.place));
        self.next_offset = 0;
    }

    /// What is not past the mark was taken over if it was read before. At a new offset it may never have
    /// come: a relay that was frozen sends what it had in its hands, one in at-least-once crashed before it
    /// had stored everything, or a record that was no relay's has moved the mark.
    fn pass(&self, offset: i64) -> Verdict {
        if offset < self.next_offset { Verdict::Duplicate } else { Verdict::Passed }
    }

    /// A new timeline or era begins inside the old one, so up to there its places were given before.
    fn reach(&mut self, position: &Position) -> Verdict {
        self.position = Some(position.clone());
        if Some(position.place) <= self.before { Verdict::ById } else { Verdict::Fresh }
    }

    /// Whether nothing was taken by it, or its row was deleted.
    pub(super) fn is_blank(&self) -> bool {
        self.position.is_none() && self.before.is_none() && self.next_offset == 0
    }

    /// Whether `self` is where `other` is, or past it.
    pub(super) fn includes(&self, other: &Mark) -> bool {
        let key = |mark: &Mark| mark.position.as_ref().map(|p| (p.era, p.timeline, p.place));
        match key(self).cmp(&key(other)) {
            Ordering::Less => false,
            Ordering::Equal => self.next_offset >= other.next_offset,
            Ordering::Greater => true,
        }
    }
}

/// How a consumer continues with another cluster's relay. Positions of that tell nothing about what it sends again, so
/// up to the highest place that there is, ids are looked up.
pub(super) fn continue_by_id(consumer_id: i32, topic: &str) -> String {
    let last = Place::LAST;
    let of =
        format!("where consumer_id = {consumer_id} and topic = '{}'", topic.replace('\'', "''"));
    format!(
        "If the consumer is to continue with it, stop all instances, type `update inbox.watermarks set position = \
         null, before = '{last}' {of}` and start them again. Each of its messages is then looked up by its id, and \
         stored by it, until you stop them once more, when nothing of before can come again, and type `update \
         inbox.watermarks set before = null {of}`"
    )
}

fn stored<T: FromStr>(text: Option<&str>) -> Result<Option<T>, InboxError> {
    text.map(str::parse)
        .transpose()
        .map_err(|_| InboxError::Unsafe("inbox.watermarks holds what is no position".into()))
}

/// Begins, locks the watermark of the messages' partition, and looks which lanes are parked.
pub(super) async fn lock(
    inbox: &Inbox,
    topic: &str,
    partition: i32,
    lanes: &[Uuid],
) -> Result<(Open, Mark, Vec<Uuid>), InboxError> {
    const DOING: &str = "locking a watermark";
    let sql = "select at_position, at_before, at_offset, null::pg_catalog.text, parked, \
                   pg_catalog.pg_backend_pid() as backend, \
                   pg_catalog.pg_current_xact_id()::pg_catalog.text as transaction \
               from inbox.lock_watermark($1, $2, $3, $4)";
    let params: [&(dyn ToSql + Sync); 4] =
        [&inbox.consumer_id(), &inbox.repertoire().text(topic), &partition, &lanes];
    let (open, rows) = Open::begin(inbox.sessions(), DOING, sql, &params).await?;
    let read = |error| InboxError::of(DOING, error);
    let row = rows.first().expect("a function with out parameters returns one row");
    Ok((open, mark_of(row, DOING)?, row.try_get(4).map_err(read)?))
}

/// The watermark of a partition, if it has one that was moved or set back.
#[cfg(feature = "kafka-plain")]
pub(super) async fn look(
    inbox: &Inbox,
    topic: &str,
    partition: i32,
) -> Result<Option<Mark>, InboxError> {
    const DOING: &str = "reading a watermark";
    let sql = "select position, before, next_offset, topic_id from inbox.watermarks \
               where consumer_id operator(pg_catalog.=) $1 and topic operator(pg_catalog.=) $2 \
                   and partition operator(pg_catalog.=) $3 \
                   and (next_offset operator(pg_catalog.>) 0 or topic_id is not null)";
    let params: [&(dyn ToSql + Sync); 3] =
        [&inbox.consumer_id(), &inbox.repertoire().text(topic), &partition];
    let (open, rows) = Open::begin(inbox.sessions(), DOING, sql, &params).await?;
    open.rollback().await?;
    rows.first().map(|row| mark_of(row, DOING)).transpose()
}

fn mark_of(row: &Row, doing: &'static str) -> Result<Mark, InboxError> {
    let read = |error| InboxError::of(doing, error);
    Ok(Mark {
        position: stored(row.try_get(0).map_err(read)?)?,
        before: stored(row.try_get(1).map_err(read)?)?,
        next_offset: row.try_get(2).map_err(read)?,
        topic_id: row.try_get(3).map_err(read)?,
    })
}

/// What was taken over by position, of which no row tells.
#[derive(Debug, Default)]
pub(super) struct Applied {
    ids: Vec<Uuid>,
    days: Vec<Day>,
    own: Vec<Option<f64>>,
}

impl Applied {
    pub(super) fn add(&mut self, message: &RawMessage) {
        self.ids.push(message.id.uuid());
        self.days.push(message.id.day());
        self.own.push(message.id.own_seconds());
    }
}

/// Moves the locked watermark, and remembers what was taken over by position.
pub(super) async fn advance(
    open: &Open,
    inbox: &Inbox,
    topic: &str,
    partition: i32,
    mark: &Mark,
    applied: &Applied,
) -> Result<(), InboxError> {
    // A time in the future is believed for as long as ids are kept: others must not look old by it. Whoever
    // has such a time is remembered by its row instead, where its day has a partition, and its day is what
    // tells where it has none.
    let sql = "with moved as (update inbox.watermarks \
                   set position = $4, before = $5, next_offset = $6, changed_at = pg_catalog.now(), \
                       topic_id = coalesce($8, topic_id) \
                   where consumer_id operator(pg_catalog.=) $1 and topic operator(pg_catalog.=) $2 \
                       and partition operator(pg_catalog.=) $3), \
               taken as (select m.id, m.day, pg_catalog.to_timestamp(m.own) as own \
                   from unnest($7::pg_catalog.uuid[], $9::pg_catalog.date[], $10::pg_catalog.float8[]) \
                       as m (id, day, own)), \
               soon as (select pg_catalog.now() operator(pg_catalog.+) interval '15 minutes' as at), \
               ahead as (insert into inbox.messages (consumer_id, id, day) \
                   select $1, t.id, t.day from taken as t \
                   where t.own operator(pg_catalog.>) (select at from soon) \
                       and t.day operator(pg_catalog.<=) (select w.newest from inbox.window() as w) \
                   order by t.id, t.day on conflict do nothing) \
               insert into inbox.applied (consumer_id, topic, partition, ids, newest) \
               select $1, $2, $3, $7::pg_catalog.uuid[], \
                   least((select pg_catalog.max(own) from taken), (select at from soon)) \
               where pg_catalog.cardinality($7) operator(pg_catalog.>) 0";
    let position = mark.position.as_ref().map(ToString::to_string);
    let before = mark.before.map(|place| place.to_string());
    let topic = inbox.repertoire().text(topic);
    let params: [&(dyn ToSql + Sync); 10] = [
        &inbox.consumer_id(),
        &topic,
        &partition,
        &position,
        &before,
        &mark.next_offset,
        &applied.ids,
        &mark.topic_id,
        &applied.days,
        &applied.own,
    ];
    open.query("moving a watermark", sql, &params).await?;
    Ok(())
}

#[cfg(feature = "kafka-plain")]
/// The topic is another one of the same name: its partition is read from the beginning. Returns where its
/// watermark is then.
pub(super) async fn set_back(
    inbox: &Inbox,
    topic: &str,
    partition: i32,
    topic_id: &str,
) -> Result<Mark, InboxError> {
    let (open, mut mark, _) = lock(inbox, topic, partition, &[]).await?;
    mark.set_back();
    mark.topic_id = Some(topic_id.to_owned());
    advance(&open, inbox, topic, partition, &mark, &Applied::default()).await?;
    open.commit().await?;
    Ok(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(text: &str) -> Position {
        text.parse().expect("a position")
    }

    #[test]
    fn what_is_not_past_the_mark_is_a_duplicate_and_the_rest_is_new() {
        let mut mark = Mark { next_offset: 1, ..Mark::default() };
        let mut judge =
            |text: &str| mark.judge(&position(text), false, 0).expect("the same cluster");
        use Verdict::{ById, Duplicate, Fresh, Passed};
        for (text, expected) in [
            ("1:1:A0:5", Fresh),
            ("1:1:A0:5", Duplicate),
            ("1:1:A0:6", Fresh),
            ("1:1:9F:9", Duplicate),
            ("1:1:B0:0", Fresh),
            // Promoted at a place before the last: up to that, places come again.
            ("1:2:A8:0", ById),
            ("1:2:A8:0", Duplicate),
            ("1:2:B0:0", ById),
            ("1:2:B0:1", Fresh),
            // Read before: a frozen relay's, of before the failover.
            ("1:1:C0:0", Duplicate),
            ("1:3:C0:0", Fresh),
            // The volume was put back: places start over, in whatever cluster and on whatever line.
            ("1:1:90:0@5", ById),
            ("1:1:90:0@5", Duplicate),
            ("1:1:90:1@5", ById),
            ("1:1:C0:7@5", ById),
            ("1:1:C1:0@5", Fresh),
            ("1:3:C1:0", Duplicate),
            ("2:1:10:0@6", ById),
            ("2:1:10:0@6", Duplicate),
            ("2:1:C1:9@6", ById),
            ("2:1:C2:0@6", Fresh),
        ] {
            assert_eq!(judge(text), expected, "{text}");
        }
        mark.judge(&position("3:3:D0:0@6"), false, 0).expect_err("another cluster");
        mark.take(7);
        let read_before = mark.judge(&position("1:1:C0:0"), false, 7);
        assert_eq!(read_before, Ok(Duplicate), "the broker sends once more what was taken over");
        assert_eq!(mark.judge(&position("1:1:C0:0"), false, 8), Ok(Passed));
    }

    #[test]
    fn what_is_behind_the_mark_is_a_duplicate_only_where_its_offset_was_read() {
        let mut mark = Mark::default();
        let mut judge = |text: &str, offset| {
            let verdict = mark.judge(&position(text), false, offset).expect("the same cluster");
            mark.take(offset);
            verdict
        };
        use Verdict::{Duplicate, Fresh, Passed};
        for (text, offset, expected) in [
            ("1:1:A0:0", 4, Fresh),
            // Whoever wrote this.
            ("1:1:FFFFFFFFFFFFFFF0:0", 5, Fresh),
            ("1:1:A1:0", 6, Passed),
            ("1:1:A1:0", 6, Duplicate),
            ("1:9:A2:0", 7, Verdict::ById),
            ("1:1:A3:0", 8, Passed),
            ("1:1:A0:0@9", 9, Verdict::ById),
            ("1:1:A4:0", 10, Passed),
            ("1:1:A4:0", 10, Duplicate),
        ] {
            assert_eq!(judge(text, offset), expected, "{text} at {offset}");
        }
    }

    #[test]
    fn what_was_passed_in_another_topic_of_the_same_name_is_looked_up_where_it_comes() {
        let mut mark = Mark::default();
        let judge = |mark: &mut Mark, text: &str| {
            mark.judge(&position(text), false, 0).expect("the same cluster")
        };
        assert_eq!(judge(&mut mark, "1:1:B0:0"), Verdict::Fresh);
        mark.take(50_000);
        mark.set_back();
        assert_eq!(mark.next_offset, 0);
        for (text, expected) in [
            ("1:1:A0:0", Verdict::ById),
            ("1:1:A0:0", Verdict::Passed),
            ("1:1:B0:0", Verdict::ById),
            ("1:1:B0:1", Verdict::Fresh),
        ] {
            assert_eq!(judge(&mut mark, text), expected, "{text}");
        }
    }

    #[test]
    fn what_a_repair_published_moves_nothing_and_is_looked_up() {
        let mut mark = Mark::default();
        assert_eq!(mark.judge(&position("1:1:A0:0"), false, 7), Ok(Verdict::Fresh));
        mark.take(7);
        let before = mark.clone();
        assert_eq!(mark.judge(&position("1:1:F0:0"), true, 8), Ok(Verdict::ById));
        mark.take(8);
        assert_eq!((&mark.position, mark.next_offset), (&before.position, 9));
        assert!(mark.includes(&before) && !before.includes(&mark));
    }

    #[test]
    fn an_offset_that_steps_back_is_followed_where_the_position_goes_on() {
        let mut mark = Mark::default();
        assert_eq!(mark.judge(&position("1:1:A0:0"), false, 10_000), Ok(Verdict::Fresh));
        mark.take(10_000);
        let before = mark.clone();
        assert_eq!(mark.judge(&position("1:1:B0:0"), false, 0), Ok(Verdict::Fresh));
        mark.take(0);
        assert_eq!(mark.next_offset, 1);
        assert!(mark.includes(&before) && !before.includes(&mark));
    }
}
