//! What a decision leaves out, and how many events that is: said before anything is changed.

use anyhow::bail;

use super::{
    before::between,
    decision::Decision,
    facts::{Facts, tables},
    from_table,
};
use crate::{
    config::{Config, parts::Parts},
    core::{
        lsn::Lsn,
        position::RowPosition,
        printable::counted,
        progress::{Progress, RepairRecord, SnapshotRecord},
    },
    postgres::sql::SqlSession,
    repair,
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

fn part<'a>(decision: Decision, facts: &Facts<'a>) -> Part<'a> {
    let stored = facts.stored.and_then(|stored| Some((stored, stored.position?)));
    let since = Part::Since(facts.newest());
    match decision {
        // What is taken from the table is counted by itself.
        Decision::AtUpgrade | Decision::AtTable { .. } => Part::Nothing,
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
        Decision::AtTable { .. } => {
            let left_out = from_table::left_out(mapping, session, facts).await?;
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
    if matches!(decision, Decision::AtTable { .. }) {
        let asks = from_table::question(&parts.mapping, session, facts).await?;
        asked.left_out = asks.left_out;
        return Ok(asks.question);
    }
    if let (Decision::AtSlot, None, Some(confirmed)) = (decision, facts.stored, facts.confirmed) {
        return before_the_slot(&parts.mapping, session, confirmed).await;
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

/// Where nothing is stored, what is before the slot is only known to be published while no one else has moved that.
async fn before_the_slot(
    mapping: &Mapping,
    session: &SqlSession,
    confirmed: Lsn,
) -> anyhow::Result<Option<String>> {
    let rows = match repair::rows_there(session.client(), mapping.tables()).await? {
        Some(0) => return Ok(None),
        Some(rows) => format!("the tables have {}", repair::in_words(rows)),
        None => "the tables can't be read".to_owned(),
    };
    Ok(Some(format!(
        "There is no stored progress, so what was committed before {confirmed}, where the slot is, counts as published. That \
         is right unless somebody has moved the slot or made it anew: {rows}, and those of them that were committed \
         before and are not published are left out. `outbox-relay resume --at table --since TIME` publishes what was \
         created since TIME instead."
    )))
}

fn in_words(events: i64) -> String {
    counted(events.unsigned_abs(), "event")
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
