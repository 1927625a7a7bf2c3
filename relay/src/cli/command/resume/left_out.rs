//! What a decision leaves out, and how many events that is: said before anything is changed.

use anyhow::bail;
use tokio_postgres::Client;

use super::{before::between, decision::Decision};
use crate::{
    config::{Config, parts::Parts},
    core::{
        halt::Halt,
        identity::SystemIdentity,
        lsn::Lsn,
        position::RowPosition,
        printable::counted,
        progress::{Progress, RepairRecord, SnapshotRecord},
        snapshot,
        witness::{self, Witness},
    },
    postgres::{catalog::table, sql::SqlSession},
    repair::{self, Around, Table},
    route::Mapping,
};

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    Nothing,
    /// Events that this snapshot does not show; `None` where none says which these are.
    Since(Option<&'a SnapshotRecord>),
    /// What lies before this event, and is not delivered.
    Before(RowPosition),
}

/// No row was created by then: that is counted in microseconds.
const BEFORE_ALL_MS: i64 = i64::MIN / 1000;

/// What the decision is compared with.
pub(super) struct Facts<'a> {
    pub(super) stored: Option<&'a Progress>,
    /// The slot's position, if it has one.
    pub(super) confirmed: Option<Lsn>,
    pub(super) identity: &'a SystemIdentity,
}

impl<'a> Facts<'a> {
    /// The newest stored snapshot. One of another line of history says nothing of this one's transactions.
    fn newest(&self) -> Option<&'a SnapshotRecord> {
        let stored = self.stored?;
        let is_here = stored.system_id == self.identity.system_id
            && stored.timeline == self.identity.timeline
            && stored.position?.resume_lsn() <= self.identity.flush_lsn
            && stored.rolled_back.is_none();
        stored.snapshots.first().filter(|_| is_here)
    }

    /// As [`Progress::published_until_ms`]. Where no published event is known, as after a repair that nothing came
    /// after: all that the newest snapshot shows is published, or was left out by a person. Where there is none either,
    /// nothing is known to be published. `None` where nothing is stored.
    pub(super) fn published_until_ms(&self) -> Option<i64> {
        let of_event = self.stored?.published_until_ms();
        let of_snapshot = || self.newest().map(|newest| newest.taken_ms);
        Some(of_event.or_else(of_snapshot).unwrap_or(BEFORE_ALL_MS))
    }
}

/// What of the tables `resume --at table` takes for published, as a snapshot: nothing of what was created later than
/// `until_ms`, nor of what was written after the first of that; and, where stored progress is of this history,
/// nothing that its newest snapshot does not show: a transaction that was open at that time has older rows.
///
/// # Errors
/// The database's.
pub(super) async fn published(
    client: &Client,
    tables: &[Table],
    until_ms: i64,
    facts: &Facts<'_>,
) -> anyhow::Result<String> {
    let by_time = repair::before(client, tables, until_ms).await?;
    let both = || {
        let last = snapshot::end(&by_time)?.saturating_sub(1);
        snapshot::until(&facts.newest()?.snapshot, last)
    };
    Ok(both().unwrap_or(by_time))
}

fn part<'a>(decision: Decision, facts: &Facts<'a>) -> Part<'a> {
    let stored = facts.stored.and_then(|stored| Some((stored, stored.position?)));
    let since = Part::Since(facts.newest());
    match decision {
        // What is taken from the table is counted by itself.
        Decision::AtUpgrade | Decision::AtTable => Part::Nothing,
        // What a repair has still to read is not in the slot.
        Decision::AtSlot if facts.stored.is_some_and(repairs) => since,
        // What is confirmed was delivered, unless somebody moved the slot.
        Decision::AtSlot => match (stored, facts.confirmed) {
            (Some((_, position)), Some(confirmed)) if confirmed > position.resume_lsn() => since,
            _ => Part::Nothing,
        },
        Decision::AtProgress | Decision::AtNow => since,
        Decision::Skip(row) => Part::Before(row),
    }
}

fn repairs(stored: &Progress) -> bool {
    stored.repair.as_ref().is_some_and(RepairRecord::is_begun)
}

/// That what was asked about has not grown since: called with the lock held, before anything is changed.
///
/// # Errors
/// It has, or the database does not answer.
pub(super) async fn unchanged(
    mapping: &Mapping,
    session: &SqlSession,
    decision: Decision,
    asked: Asked,
    facts: &Facts<'_>,
) -> anyhow::Result<()> {
    match decision {
        Decision::AtSlot if facts.confirmed != asked.confirmed => bail!(
            "somebody has moved the slot meanwhile: more may be left out than was said. Nothing was changed; run \
             the command again"
        ),
        Decision::AtTable => {
            let left_out = around(mapping, session, facts).await?.map_or(0, |it| it.left_out);
            if left_out > asked.left_out {
                bail!(
                    "meanwhile {} more were written that would be left out. Nothing was changed; run the command \
                     again",
                    in_words(left_out - asked.left_out)
                );
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What the question was about, to compare it with what there is when the decision is carried out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// The slot's position.
    pub(super) confirmed: Option<Lsn>,
    /// Rows that `resume --at table` leaves out.
    pub(super) left_out: i64,
}

/// The question to ask before the decision is carried out; `None` where it leaves out no more than it
/// names.
///
/// # Errors
/// The database does not answer, or there is no such event to skip.
pub(super) async fn question(
    config: &Config,
    parts: &Parts,
    session: &SqlSession,
    decision: Decision,
    facts: &Facts<'_>,
    asked: &mut Asked,
) -> anyhow::Result<Option<String>> {
    let question = of_events(config, parts, session, decision, facts, asked).await?;
    Ok(question.map(|question| {
        let stopped = facts.stored.and_then(|it| stops(&it.system_id, &facts.identity.system_id));
        question + &stopped.unwrap_or_default()
    }))
}

/// What the decision does to a relay of the same name at another server, whose progress is `stored`.
fn stops(stored: &str, here: &str) -> Option<String> {
    (stored != here).then(|| {
        format!(
            " Stored progress is of the cluster with system identifier {stored}: if a relay of this name still runs \
             there, as where this is a copy of its database or another environment, this halts it. Then answer no, \
             and give the relay here another name."
        )
    })
}

/// The part of the question that is about events.
async fn of_events(
    config: &Config,
    parts: &Parts,
    session: &SqlSession,
    decision: Decision,
    facts: &Facts<'_>,
    asked: &mut Asked,
) -> anyhow::Result<Option<String>> {
    asked.confirmed = facts.confirmed;
    if decision == Decision::AtTable {
        return from_table(&parts.mapping, session, facts, asked).await;
    }
    let what = match decision {
        Decision::AtSlot => "what was committed between stored progress and the slot's position",
        Decision::AtProgress => {
            "what the slot lacks, which is nothing unless the relay's halt says that the slot may lack rows"
        }
        Decision::AtNow => {
            "what is committed by now and not published, and what is committed until the relay has made its new \
             slot"
        }
        _ => "what is committed by now and not published",
    };
    let how_many = match part(decision, facts) {
        Part::Nothing => return Ok(None),
        Part::Before(row) => {
            let before = facts.stored.and_then(|stored| stored.position);
            let Some(before) = before else { return Ok(None) }; // Refused when it is carried out.
            let found = between(config, &parts.mapping, session, before, row).await?;
            return Ok(match found {
                0 => None,
                events => Some(format!(
                    "{row} is not the next event: {} before it would be left out as well.",
                    in_words(events)
                )),
            });
        }
        Part::Since(None) => {
            "how many events that is can't be known, because no stored snapshot says \
                              which rows of the tables are published"
                .to_owned()
        }
        Part::Since(Some(snapshot)) => {
            match count(config, &parts.mapping, session, snapshot).await? {
                Ok(None) => return Ok(None),
                Ok(Some(events)) => events,
                Err(why) => format!("how many events that is can't be known, because {why}"),
            }
        }
    };
    Ok(Some(format!("This leaves out {what}: {how_many}.")))
}

/// What the tables publish again, and what of them is left out: as [`published`] tells.
async fn from_table(
    mapping: &Mapping,
    session: &SqlSession,
    facts: &Facts<'_>,
    asked: &mut Asked,
) -> anyhow::Result<Option<String>> {
    // Refused when it is carried out, as is a table that can't be read.
    let Some(until_ms) = facts.published_until_ms() else { return Ok(None) };
    let Some(around) = around(mapping, session, facts).await? else { return Ok(None) };
    let Ok(tables) = tables(mapping, session).await? else { return Ok(None) };
    asked.left_out = around.left_out;
    let ahead = ahead(session.client(), until_ms).await?;
    let known = facts.stored.and_then(|stored| stored.witness).map(Witness::created);
    let newest = match known {
        Some(created) => format!("The newest published event was created at {created}"),
        None if until_ms == BEFORE_ALL_MS => {
            "Stored progress does not say which events are published".to_owned()
        }
        None => format!("No event was published since {}", witness::moment(until_ms)),
    };
    let question = in_question(around, &newest, ahead, facts.newest().is_some());
    // Whoever must type something first is told at the same time what the command will then ask.
    known_here(session, &tables, question.as_deref()).await?;
    Ok(question)
}

/// Whether that time is still to come by this server's clock: then what is written here is taken for older.
async fn ahead(client: &Client, until_ms: i64) -> anyhow::Result<bool> {
    let now_ms =
        "select extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.float8 * 1000 < $1";
    Ok(client.query_one(now_ms, &[&(until_ms as f64)]).await?.try_get(0)?)
}

/// The rows of the tables around the newest published event; `None` where they can't be told.
async fn around(
    mapping: &Mapping,
    session: &SqlSession,
    facts: &Facts<'_>,
) -> anyhow::Result<Option<Around>> {
    let Some(until_ms) = facts.published_until_ms() else { return Ok(None) };
    let created_ms = match facts.stored.and_then(|stored| stored.witness) {
        Some(witness) => witness.created_ms,
        None if until_ms == BEFORE_ALL_MS => i64::MAX,
        None => until_ms,
    };
    let Ok(tables) = tables(mapping, session).await? else { return Ok(None) };
    let client = session.client();
    let lower = published(client, &tables, until_ms, facts).await?;
    Ok(Some(repair::rows_around(client, &tables, &lower, created_ms).await?))
}

/// A repair would skip rows that a dump has brought from another cluster, as if nothing was lost.
/// `question` is what is asked otherwise.
pub(super) async fn known_here(
    session: &SqlSession,
    tables: &[Table],
    question: Option<&str>,
) -> anyhow::Result<()> {
    let agree = question.map(|question| format!(", with --yes if you agree to this: {question}"));
    let agree = agree.unwrap_or_default();
    match repair::foreign(session.client(), tables).await? {
        Some(Halt { reason, remedy }) => bail!(
            "{reason}, so it can't be told which of them are published: nothing was changed. Type, as the table's \
             owner, {remedy}, and then this command again{agree}"
        ),
        None => Ok(()),
    }
}

/// `newest` says of the newest published event when it was created; `ahead`, whether this server's clock is behind
/// that; `by_snapshot`, whether stored progress tells of this history what is published.
fn in_question(around: Around, newest: &str, ahead: bool, by_snapshot: bool) -> Option<String> {
    let Around { published, earlier, left_out } = around;
    if earlier == 0 && left_out == 0 {
        return None;
    }
    let ahead = match ahead {
        true => {
            ", which lies in the future of this server's clock, so that events that were written here and never \
             published may be left out"
        }
        false => "",
    };
    let told = match by_snapshot {
        true => {
            "that are taken for published, because they were written before the newest snapshot of stored progress. \
             If a table whose rows are not published was attached as a partition since, answer no, detach it, run \
             this command again, and attach it once the relay is ready: it then halts, and says how to publish them"
        }
        false => {
            "that were written before: those that are not published by now are lost to consumers. Rows are told \
             by created_at alone, because stored progress is not of this history: an event of a transaction that \
             was open at that time is among them"
        }
    };
    let leaves_out = match left_out {
        0 => "It leaves out none that the tables have".to_owned(),
        left_out => format!("It leaves out {} {told}", repair::in_words(left_out)),
    };
    let [published, earlier] = [published, earlier].map(repair::in_words);
    Some(format!(
        "{newest}{ahead}. This publishes {published} of the outbox \
         tables; {earlier} of them may come again, with their ids. {leaves_out}. After \
         a dump the relay may halt once more, since the restore has made the triggers anew that record \
         deletions: what it then says to set publishes all of these."
    ))
}

fn in_words(events: i64) -> String {
    counted(events.unsigned_abs(), "event")
}

/// The tables as a repair reads them, or why it can't.
pub(super) async fn tables(
    mapping: &Mapping,
    session: &SqlSession,
) -> anyhow::Result<Result<Vec<Table>, String>> {
    let mut tables: Vec<Table> = Vec::new();
    for name in mapping.tables() {
        let found = table::inspect(session.client(), &name.schema, &name.table).await?;
        let Some(state) = found else { return Ok(Err(format!("{name} does not exist"))) };
        match repair::fits(name, &state, mapping) {
            Ok(table) => tables.push(table),
            Err(halt) => return Ok(Err(halt.reason)),
        }
    }
    Ok(Ok(tables))
}

/// What of the tables a snapshot does not show. `None` where that is nothing, and nothing was deleted.
async fn count(
    config: &Config,
    mapping: &Mapping,
    session: &SqlSession,
    since: &SnapshotRecord,
) -> anyhow::Result<Result<Option<String>, String>> {
    let client = session.client();
    let tables = match tables(mapping, session).await? {
        Ok(tables) => tables,
        Err(why) => return Ok(Err(why)),
    };
    let SnapshotRecord { snapshot, leaves, taken_ms, .. } = since;
    let since = repair::rows_since(client, &tables, snapshot, leaves).await?;
    let younger = repair::rows_younger(client, &tables, snapshot, *taken_ms).await?;
    let kept = config.outbox.rows_kept;
    let gone = repair::complete(client, &tables, Some(snapshot), leaves, kept).await?.err();
    if since.rows == 0 && younger == 0 && gone.is_none() {
        return Ok(Ok(None));
    }
    let mut counted = format!("at most {}", since.in_words());
    if younger > 0 {
        counted.push_str(&format!(
            ", and {} more that were created later than the newest snapshot of stored progress, with the xid of an \
             earlier transaction: from the slot they are not published, because a moved row looks like that; \
             `outbox-relay resume --at table` publishes them",
            repair::in_words(younger)
        ));
    }
    counted.push_str(&match gone {
        None => ", of which those of the last second before progress may be published".to_owned(),
        Some(halt) => {
            format!(", and others whose number can't be known: {}", halt.reason)
        }
    });
    Ok(Ok(Some(counted)))
}

#[cfg(test)]
mod tests;
