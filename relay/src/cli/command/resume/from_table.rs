//! `resume --at table`: which rows of the tables are published, which of them perhaps again, and which are left out.

use anyhow::{Context, bail};
use tokio_postgres::Client;

use super::facts::{BEFORE_ALL_MS, Facts, tables};
use crate::{
    core::{
        halt::Halt,
        snapshot,
        witness::{self, Witness},
    },
    postgres::sql::SqlSession,
    repair::{self, Around, Table},
    route::Mapping,
};

/// What is asked before it is done.
#[derive(Debug, Default)]
pub(super) struct Asks {
    /// `None` where it does no more than it names.
    pub(super) question: Option<String>,
    /// Rows that it leaves out.
    pub(super) left_out: i64,
}

/// Which events of the tables were created after the newest published one, or are not known to be published: those
/// that this snapshot does not show.
///
/// # Errors
/// That is not known, or a person must type something first.
pub(super) async fn since_newest(
    mapping: &Mapping,
    session: &SqlSession,
    facts: &Facts<'_>,
) -> anyhow::Result<String> {
    let until_ms = facts.published_until_ms().context(
        "there is no stored progress to compare the tables with; with `--since` and a moment, this command publishes \
         what was created since then, and `outbox-relay resume --at now` publishes what is committed from then on",
    )?;
    let tables = tables(mapping, session).await?;
    let tables = tables.map_err(|why| anyhow::anyhow!("the table can't be read: {why}"))?;
    known_here(session, &tables, None).await?;
    published(session.client(), &tables, until_ms, facts).await
}

/// What the tables publish again, and what of them is left out: as [`published`] tells.
pub(super) async fn question(
    mapping: &Mapping,
    session: &SqlSession,
    facts: &Facts<'_>,
) -> anyhow::Result<Asks> {
    let nothing = || Ok(Asks::default());
    // Refused when it is carried out, as is a table that can't be read.
    let Some(until_ms) = facts.published_until_ms() else { return nothing() };
    let Some(around) = around(mapping, session, facts).await? else { return nothing() };
    let Ok(tables) = tables(mapping, session).await? else { return nothing() };
    let ahead = ahead(session.client(), until_ms).await?;
    let known = facts.stored.and_then(|stored| stored.witness).map(Witness::created);
    let newest = match known {
        Some(created) => format!("The newest published event was created at {created}"),
        None if facts.stored.is_none() => "There is no stored progress".to_owned(),
        None if until_ms == BEFORE_ALL_MS => {
            "Stored progress does not say which events are published".to_owned()
        }
        None => format!("No event was published since {}", witness::moment(until_ms)),
    };
    let question = in_question(around, &newest, ahead, facts.newest().is_some());
    // Whoever must type something first is told at the same time what the command will then ask.
    known_here(session, &tables, question.as_deref()).await?;
    Ok(Asks { question, left_out: around.left_out })
}

/// How many rows `resume --at table` leaves out now.
///
/// # Errors
/// The database's.
pub(super) async fn left_out(
    mapping: &Mapping,
    session: &SqlSession,
    facts: &Facts<'_>,
) -> anyhow::Result<i64> {
    Ok(around(mapping, session, facts).await?.map_or(0, |it| it.left_out))
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
        None if until_ms == BEFORE_ALL_MS || facts.stored.is_none() => i64::MAX,
        None => until_ms,
    };
    let Ok(tables) = tables(mapping, session).await? else { return Ok(None) };
    let client = session.client();
    let lower = published(client, &tables, until_ms, facts).await?;
    Ok(Some(repair::rows_around(client, &tables, &lower, created_ms).await?))
}

/// A repair would skip rows that a dump has brought from another cluster, and those that are inserted while the column
/// `xid` has another default, as if nothing was lost. `question` is what is asked otherwise.
async fn known_here(
    session: &SqlSession,
    tables: &[Table],
    question: Option<&str>,
) -> anyhow::Result<()> {
    let agree = question.map(|question| format!(", with --yes if you agree to this: {question}"));
    let agree = agree.unwrap_or_default();
    let unstamped = Table::first_unstamped(tables).map(|name| {
        Halt::new(
            format!("the column xid of {name} has another default than pg_current_xact_id()"),
            format!("`alter table {name} alter column xid set default pg_current_xact_id()`"),
        )
    });
    let foreign = repair::foreign(session.client(), tables).await?;
    let (reasons, remedies): (Vec<_>, Vec<_>) =
        unstamped.into_iter().chain(foreign).map(|it| (it.reason, it.remedy)).unzip();
    if reasons.is_empty() {
        return Ok(());
    }
    bail!(
        "{}, so it can't be told which rows are published: nothing was changed. Type, as the table's owner, {}, and \
         then this command again{agree}",
        reasons.join(", and "),
        remedies.join(" and ")
    )
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
             was open at that time is among them. To publish it, answer no, and add `--since` with the time when \
             the oldest such transaction began: what was created since then comes again"
        }
    };
    let leaves_out = match left_out {
        0 => "It leaves out no row of the tables".to_owned(),
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

/// What of the tables `resume --at table` takes for published, as a snapshot: nothing of what was created later than
/// `until_ms`, nor of what was written after the first of that; and, where stored progress is of this history,
/// nothing that its newest snapshot does not show: a transaction that was open at that time has older rows.
///
/// # Errors
/// The database's.
async fn published(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::printable::counted;

    #[test]
    fn what_the_table_repeats_and_leaves_out_is_asked_with_both_numbers() {
        let around = |earlier, left_out| Around { published: 7, earlier, left_out };
        assert_eq!(in_question(around(0, 0), "At noon", false, false), None);
        for (earlier, left_out) in [(2, 0), (0, 1)] {
            let ask = |ahead| in_question(around(earlier, left_out), "At noon", ahead, false);
            let question = ask(false).expect("it is asked");
            assert!(!question.contains("future"), "{question}");
            assert!(
                ask(true).expect("it is asked").contains("in the future of this server's clock")
            );
            let leaves_out = match left_out {
                0 => "leaves out no row".to_owned(),
                left_out => repair::in_words(left_out),
            };
            let numbers = [counted(7, "row"), repair::in_words(earlier), leaves_out];
            let known = in_question(around(earlier, left_out), "At noon", false, true);
            assert_eq!(known.expect("it is asked").contains("taken for published"), left_out > 0);
            for number in &numbers {
                assert!(question.contains(number), "{number} is not in: {question}");
            }
        }
    }
}
