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

/// What the decision is compared with.
pub(super) struct Facts<'a> {
    pub(super) stored: Option<&'a Progress>,
    /// The slot's position, if it has one.
    pub(super) confirmed: Option<Lsn>,
    pub(super) identity: &'a SystemIdentity,
}

fn part<'a>(decision: Decision, facts: &Facts<'a>) -> Part<'a> {
    let stored = facts.stored.and_then(|stored| Some((stored, stored.position?)));
    // Snapshots of another line of history say nothing of this one's transactions.
    let here = stored.filter(|(stored, position)| {
        stored.system_id == facts.identity.system_id
            && stored.timeline == facts.identity.timeline
            && position.resume_lsn() <= facts.identity.flush_lsn
            && stored.rolled_back.is_none()
    });
    let since = Part::Since(here.and_then(|(stored, _)| stored.snapshots.first()));
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
/// `confirmed` is the slot's position as it was when the question was asked.
///
/// # Errors
/// It has, or the database does not answer.
pub(super) async fn unchanged(
    mapping: &Mapping,
    session: &SqlSession,
    decision: Decision,
    asked: Asked,
    stored: Option<&Progress>,
    confirmed: Option<Lsn>,
) -> anyhow::Result<()> {
    match decision {
        Decision::AtSlot if confirmed != asked.confirmed => bail!(
            "somebody has moved the slot meanwhile: more may be left out than was said. Nothing was changed; run \
             the command again"
        ),
        Decision::AtTable => {
            let left_out = around(mapping, session, stored).await?.map_or(0, |it| it.left_out);
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
    asked.confirmed = facts.confirmed;
    if decision == Decision::AtTable {
        return from_table(&parts.mapping, session, facts.stored, asked).await;
    }
    let what = match decision {
        Decision::AtSlot => "what was committed between stored progress and the slot's position",
        Decision::AtProgress => "what the slot lacks",
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

/// What the tables publish again, and what of them is left out: rows are told by when they were created, and
/// not by whether they were published.
async fn from_table(
    mapping: &Mapping,
    session: &SqlSession,
    stored: Option<&Progress>,
    asked: &mut Asked,
) -> anyhow::Result<Option<String>> {
    // Refused when it is carried out, as is a table that can't be read.
    let known = stored.and_then(|stored| Some((stored.witness?, stored.published_until_ms()?)));
    let Some((witness, until_ms)) = known else { return Ok(None) };
    let Some(around) = around(mapping, session, stored).await? else { return Ok(None) };
    let Ok(tables) = tables(mapping, session).await? else { return Ok(None) };
    asked.left_out = around.left_out;
    let ahead = ahead(session.client(), until_ms).await?;
    let question = in_question(around, &witness.created(), ahead);
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
    stored: Option<&Progress>,
) -> anyhow::Result<Option<Around>> {
    let known = stored.and_then(|stored| Some((stored.witness?, stored.published_until_ms()?)));
    let Some((witness, until_ms)) = known else { return Ok(None) };
    let Ok(tables) = tables(mapping, session).await? else { return Ok(None) };
    let client = session.client();
    let lower = repair::before(client, &tables, until_ms).await?;
    Ok(Some(repair::rows_around(client, &tables, &lower, witness.created_ms).await?))
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

/// `newest` is when the newest published event was created; `ahead`, whether this server's clock is behind
/// that.
fn in_question(around: Around, newest: &str, ahead: bool) -> Option<String> {
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
    let [published, earlier, left_out] = [published, earlier, left_out].map(repair::in_words);
    Some(format!(
        "The newest published event was created at {newest}{ahead}. This publishes {published} of the outbox \
         tables; {earlier} of them were created by then, so they may come again, with their ids. It leaves \
         out {left_out} that were written before: those that are not published by now are lost to consumers. After \
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
    let SnapshotRecord { snapshot, leaves, .. } = since;
    let rows = repair::rows_since(client, &tables, snapshot).await?;
    let kept = config.outbox.rows_kept;
    let gone = repair::complete(client, &tables, Some(snapshot), leaves, kept).await?.err();
    Ok(Ok(match (rows, gone) {
        (0, None) => None,
        (rows, None) => Some(format!(
            "at most {} of the outbox tables, of which those of the last second before progress may \
             be published",
            repair::in_words(rows)
        )),
        (rows, Some(halt)) => Some(format!(
            "at most {} of the outbox tables, and others whose number can't be known: {}",
            repair::in_words(rows),
            halt.reason
        )),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{leaves::Leaves, position::Position};

    #[test]
    fn what_the_table_repeats_and_leaves_out_is_asked_with_both_numbers() {
        let around = |earlier, left_out| Around { published: 7, earlier, left_out };
        assert_eq!(in_question(around(0, 0), "noon", false), None);
        for (earlier, left_out) in [(2, 0), (0, 1)] {
            let ask = |ahead| in_question(around(earlier, left_out), "noon", ahead);
            let question = ask(false).expect("it is asked");
            assert!(!question.contains("future"), "{question}");
            assert!(
                ask(true).expect("it is asked").contains("in the future of this server's clock")
            );
            let numbers =
                [counted(7, "row"), repair::in_words(earlier), repair::in_words(left_out)];
            for number in &numbers {
                assert!(question.contains(number), "{number} is not in: {question}");
            }
        }
    }

    #[test]
    fn a_decision_asks_where_it_leaves_out_what_it_does_not_name() {
        let stored = Progress {
            position: Some(Position::UpTo(Lsn::new(1000))),
            system_id: "7".into(),
            timeline: 2,
            snapshots: vec![SnapshotRecord {
                lsn: Lsn::new(900),
                taken_ms: 1,
                snapshot: "5:5:".into(),
                leaves: Leaves::default(),
            }],
            ..Progress::before_first_start("s")
        };
        let identity = |system_id: &str, timeline, flush_lsn| SystemIdentity {
            system_id: system_id.into(),
            timeline,
            flush_lsn: Lsn::new(flush_lsn),
        };
        let here = identity("7", 2, 2000);
        let rolled_back = identity("7", 2, 950);
        let row = RowPosition { commit: Lsn::new(1000), ordinal: 0 };
        let counted = Part::Since(stored.snapshots.first());
        let unknown = Part::Since(None);
        for (decision, stored, confirmed, identity, expected) in [
            (Decision::AtUpgrade, Some(&stored), 1000, &identity("8", 1, 2000), Part::Nothing),
            (Decision::AtSlot, Some(&stored), 1000, &here, Part::Nothing),
            (Decision::AtSlot, Some(&stored), 1001, &here, counted),
            (Decision::AtSlot, Some(&stored), 900, &rolled_back, Part::Nothing),
            (Decision::AtSlot, Some(&stored), 1001, &identity("7", 1, 2000), unknown),
            (Decision::AtSlot, None, 1001, &here, Part::Nothing),
            (Decision::AtProgress, Some(&stored), 1000, &here, counted),
            (Decision::AtNow, Some(&stored), 1000, &here, counted),
            (Decision::AtNow, Some(&stored), 900, &rolled_back, unknown),
            (Decision::AtNow, Some(&stored), 1000, &identity("8", 2, 2000), unknown),
            (Decision::AtNow, None, 1000, &here, unknown),
            (Decision::Skip(row), Some(&stored), 1000, &here, Part::Before(row)),
        ] {
            let confirmed = Some(Lsn::new(confirmed));
            let found = part(decision, &Facts { stored, confirmed, identity });
            assert_eq!(found, expected, "{decision:?} {confirmed:?} {identity:?}");
        }
    }
}
