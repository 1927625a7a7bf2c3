//! `outbox-relay resume`: an operator's decision where the relay stands still, written as progress.
//!
//! It asks before it leaves out more than was named (`left_out`), with the number of events. It takes
//! the leader's lock and fences, so it can't race a relay that works; the relay that stands still reads
//! the new progress at its next look, and goes on by itself.

mod left_out;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use self::left_out::Facts;
use crate::{
    config::{Config, parts::Parts},
    core::{
        identity::SystemIdentity,
        lsn::Lsn,
        position::{Position, RowPosition},
        progress::Progress,
    },
    fault::{self, Point},
    leader,
    postgres::{
        catalog::slot,
        sql::{self, SqlSession},
    },
    progress_key::{self, KeyError},
    repair,
    sink::{ProgressStore as _, StoredProgress, any::AnySink},
    source::connect::ReplicationConnection,
};

/// A relay that stands still holds the lock only while it looks again.
const LOCK_WAIT: Duration = Duration::from_secs(20);

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Go on from the slot's confirmed position, whatever progress says.
    AtSlot,
    /// Go on from stored progress, with what the slot still has, however the tables are published.
    AtProgress,
    /// Go on where `pg_upgrade` has left off: with the slot, if it brought that, else from the table.
    AtUpgrade,
    /// Make a new slot, and publish from the table what was created after the newest published event:
    /// where another history begins that gives transaction ids again.
    AtTable,
    /// Drop the slot; the relay makes a new one and publishes what is committed from then on.
    AtNow,
    /// Leave this one event out.
    Skip(RowPosition),
}

/// What the decision changed.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Stored before.
    pub before: Option<Position>,
    /// Stored now; `None` when the relay will make a new slot.
    pub after: Option<Position>,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.after {
            Some(after) => write!(f, "the relay continues from {after}")?,
            None => f.write_str("the relay makes a new slot")?,
        }
        let before = self.before.map_or_else(|| "nothing".to_owned(), |at| at.to_string());
        write!(
            f,
            "; stored progress was {before}. It looks again within ten seconds, or when it is started"
        )
    }
}

/// Carries the decision out, once `agreed` has said yes to what it leaves out beyond what it names.
///
/// # Errors
/// A relay is at work, nobody agreed, or the decision does not fit what is there; then nothing was
/// changed.
pub(crate) async fn run(
    config: &Config,
    decision: Decision,
    agreed: impl FnOnce(&str) -> anyhow::Result<bool>,
) -> anyhow::Result<Outcome> {
    let application = format!("outbox-relay {} resume", config.name);
    let parts = config.parts()?;
    let settings = &parts.connect;
    let session = sql::connect(settings, &application).await.context("connecting to PostgreSQL")?;
    let session = Arc::new(session);
    let slot_name = &config.postgres.slot;
    let mut replication = ReplicationConnection::connect(settings, &application).await?;
    let identity = replication.identify_system().await?;
    let known = progress_key::open(&session, &config.name).await.map_err(key_failed)?;
    let has_delivered = known.has_delivered;
    let mut sink = AnySink::start(&parts.sink, &config.name, known.key, &session)?;

    // Asked before the lock is taken: a person may take long.
    let seen = decoded(sink.peek().await?, has_delivered, decision)?;
    let slot = slot::inspect(session.client(), slot_name).await?;
    let confirmed = slot.and_then(|slot| slot.confirmed_flush_lsn);
    let facts = Facts { stored: seen.as_ref(), confirmed, identity: &identity };
    let question = left_out::question(config, &parts, &session, decision, &facts).await?;
    let asked = question.is_some();
    if let Some(question) = question
        && !agreed(&question)?
    {
        bail!("nothing was changed");
    }

    take_lock(&session, slot_name).await?;
    same_server(&session, &mut replication, slot_name).await?;
    sink.fence().await?;
    let stored = decoded(sink.read().await?, has_delivered, decision)?;
    let before = stored.as_ref().and_then(|progress| progress.position);
    if asked && before != seen.and_then(|progress| progress.position) {
        bail!("progress has changed meanwhile, and nothing else was: run the command again");
    }
    let from_table = match decision {
        Decision::AtTable => Some(since_newest(&parts, &session, stored.as_ref()).await?),
        _ => None,
    };
    let after = match decision {
        Decision::AtNow => None,
        Decision::AtTable => Some(Position::UpTo(identity.flush_lsn)),
        decision => Some(position(&session, slot_name, decision, stored.as_ref()).await?),
    };
    let now = SystemTime::now();
    let mut next = decided(stored, decision, after, slot_name, &identity, now);
    if let Some(lower) = from_table {
        next.repair_after(lower, identity.flush_lsn, now);
    }
    let _stored = sink.store(next.encode()).await?;
    fault::point(Point::DecisionStored);
    // Whoever finds the slot after this knows that it is to be dropped.
    if after.is_none() && slot::inspect(session.client(), slot_name).await?.is_some() {
        replication.drop_slot(slot_name).await.context(
            "dropping the slot; the decision is stored, and the relay drops the slot when it starts",
        )?;
    }
    Ok(Outcome { before, after })
}

/// What is known of this relay's progress. What another stored counts for nothing, unless it is a
/// version's that knew no seals. What can't be read is as good as none for a decision that does not go
/// by it.
fn decoded(
    found: StoredProgress,
    has_delivered: bool,
    decision: Decision,
) -> anyhow::Result<Option<Progress>> {
    let StoredProgress { own, stranger } = found;
    let stored = own.or_else(|| stranger.filter(|_| !has_delivered));
    match stored.map(|bytes| Progress::decode(&bytes)).transpose() {
        Err(_) if matches!(decision, Decision::AtSlot | Decision::AtNow) => Ok(None),
        read => Ok(read?),
    }
}

/// Where the relay goes on, with the slot that is there.
async fn position(
    session: &SqlSession,
    slot_name: &str,
    decision: Decision,
    stored: Option<&Progress>,
) -> anyhow::Result<Position> {
    let before = stored.and_then(|progress| progress.position);
    let slot = slot::inspect(session.client(), slot_name).await?;
    let there = || {
        slot.as_ref().with_context(|| {
            format!("slot {slot_name} does not exist; `resume --at now` makes a new one")
        })
    };
    match decision {
        Decision::AtSlot => {
            let confirmed = there()?.confirmed_flush_lsn;
            confirmed.map(Position::UpTo).context("the slot has no position yet")
        }
        Decision::AtProgress => {
            there()?;
            // What the slot has of the new history before that place would be left out unasked.
            if stored.is_some_and(|stored| stored.rolled_back.is_some()) {
                bail!(
                    "stored progress is a place in WAL that the volume lost when it was rolled back: \
                     nothing is changed. `outbox-relay resume --at slot` publishes all since the slot; \
                     `outbox-relay resume --at now` leaves out what is not published"
                );
            }
            let before = before.filter(|_| stored.is_some_and(|stored| stored.repair.is_none()));
            before.map(between).context(
                "there is no stored progress to continue from, or a repair is under way, which continues \
                 by itself",
            )
        }
        Decision::AtUpgrade => upgraded(session, stored, slot.as_ref()).await,
        Decision::Skip(row) => skipped(before, row),
        Decision::AtNow | Decision::AtTable => bail!("a new slot begins where it is made"),
    }
}

/// The progress that says what was decided.
fn decided(
    stored: Option<Progress>,
    decision: Decision,
    position: Option<Position>,
    slot_name: &str,
    identity: &SystemIdentity,
    now: SystemTime,
) -> Progress {
    let steps_back = may_step_back(stored.as_ref(), decision, identity);
    let mut next = stored.unwrap_or_else(|| Progress::before_first_start(slot_name));
    if steps_back {
        next.begin_era(now);
    }
    next.position = position;
    next.landmark = None;
    next.slot = slot_name.to_owned();
    let another = next.system_id != identity.system_id || next.timeline != identity.timeline;
    if another && decision != Decision::AtUpgrade {
        next.snapshots.clear(); // They speak of another history.
    }
    next.system_id.clone_from(&identity.system_id);
    next.timeline = identity.timeline;
    if !matches!(decision, Decision::Skip(_)) {
        next.witness = None;
        next.repair = None;
        next.published = None; // As it is by now.
        next.gap = None;
        next.rolled_back = None;
        if position.is_none() {
            next.leave_slot_out();
        }
        // What they show as committed must be behind the position.
        let reached = position.map_or(Lsn::ZERO, Position::resume_lsn);
        next.snapshots.retain(|snapshot| snapshot.lsn <= reached);
    }
    next
}

/// Whether positions that are given from now on may be the same as earlier ones, or lower, and belong
/// to other events. Of one history they don't: what comes again comes at its place.
fn may_step_back(stored: Option<&Progress>, decision: Decision, identity: &SystemIdentity) -> bool {
    match (decision, stored) {
        (Decision::Skip(_), _) => false,
        (Decision::AtSlot, Some(stored)) => {
            let reached = stored.position.map_or(Lsn::ZERO, Position::resume_lsn);
            stored.system_id != identity.system_id
                || stored.timeline != identity.timeline
                || reached > identity.flush_lsn
                || stored.rolled_back.is_some()
        }
        // It is not known what was published; or a transaction that was sent in part may be counted
        // otherwise by now.
        (Decision::AtSlot, None)
        | (Decision::AtProgress | Decision::AtUpgrade | Decision::AtTable | Decision::AtNow, _) => {
            true
        }
    }
}

fn key_failed(error: KeyError) -> anyhow::Error {
    match error {
        KeyError::Halt(halt) => halt.into(),
        KeyError::Database(error) => {
            anyhow::Error::new(error).context("reading the relay's key from outbox.relay_keys")
        }
    }
}

/// Which events of the tables were created after the newest published one: those that this snapshot does
/// not show.
async fn since_newest(
    parts: &Parts,
    session: &SqlSession,
    stored: Option<&Progress>,
) -> anyhow::Result<String> {
    let witness = stored.and_then(|stored| stored.witness).context(
        "stored progress does not say when the newest published event was created; `resume --at now` \
         publishes what is committed from then on",
    )?;
    let tables = left_out::tables(&parts.mapping, session).await?;
    let tables = tables.map_err(|why| anyhow::anyhow!("the table can't be read: {why}"))?;
    Ok(repair::before(session.client(), &tables, witness.created_ms).await?)
}

/// Where a cluster that `pg_upgrade` made goes on. Transaction ids and the WAL's positions go on in it, so
/// that stored snapshots hold. From 17 on it brings slots, of which everything was confirmed before;
/// without one the relay's next start repairs what came since.
async fn upgraded(
    session: &SqlSession,
    stored: Option<&Progress>,
    slot: Option<&slot::SlotState>,
) -> anyhow::Result<Position> {
    let stored = stored.filter(|progress| progress.repair.is_none());
    let known = stored.and_then(|progress| Some((progress.position?, progress.snapshots.first()?)));
    let Some((position, newest)) = known else {
        bail!("stored progress has no snapshot to continue from, or a repair is under way")
    };
    let goes_on = "select pg_catalog.pg_snapshot_xmax($1::text::pg_catalog.pg_snapshot) \
                   operator(pg_catalog.<=) \
                   pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())";
    if !session.client().query_one(goes_on, &[&newest.snapshot]).await?.try_get::<_, bool>(0)? {
        bail!(
            "this cluster's transaction ids are lower than those of stored progress, so it was not \
             made by pg_upgrade from that one; `resume --at now` publishes what is committed from \
             then on"
        );
    }
    Ok(match slot.and_then(|slot| slot.confirmed_flush_lsn) {
        Some(confirmed) => Position::UpTo(confirmed),
        None => between(position),
    })
}

/// Inside a transaction places count what was sent of it, which may be something else by now: its
/// events come again from its first.
fn between(position: Position) -> Position {
    Position::UpTo(position.resume_lsn())
}

/// Only the event at which the relay stands can be left out, as far as that can be known: it must
/// lie after progress, and progress inside a transaction must lie in the same one.
fn skipped(before: Option<Position>, row: RowPosition) -> anyhow::Result<Position> {
    match before {
        None => bail!("there is no stored progress; nothing to skip from"),
        Some(before) if before.covers(row) => {
            bail!("the event at {row} is done already: progress is at {before}")
        }
        Some(Position::Row(last)) if last.commit != row.commit && row.ordinal > 0 => {
            bail!(
                "progress is at {last}, in another transaction: events before {row} would be lost"
            )
        }
        Some(_) => Ok(Position::Row(row)),
    }
}

/// With several hosts in the URL, or a name that moves, two connections may lead to two servers.
async fn same_server(
    session: &SqlSession,
    replication: &mut ReplicationConnection,
    slot: &str,
) -> anyhow::Result<()> {
    let rows = replication.simple_query(&leader::leads(slot, session.pid())).await?;
    if rows.first().and_then(|row| row.first()?.as_deref()) != Some("t") {
        bail!(
            "two servers answer, {} for SQL and {} for replication: nothing was changed. Name one in \
             postgres.url, or run the command again when a failover is over",
            session.host(),
            replication.host()
        );
    }
    Ok(())
}

async fn take_lock(session: &SqlSession, slot: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    while !leader::try_lead(session.client(), slot).await? {
        if Instant::now() >= deadline {
            let who = leader::holder(session.client(), slot).await?;
            let who = who.map_or_else(|| "unknown process".to_owned(), |who| who.to_string());
            bail!("a relay is at work on slot {slot}: {who}; stop it first");
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(commit: u64, ordinal: u64) -> RowPosition {
        RowPosition { commit: Lsn::new(commit), ordinal }
    }

    #[test]
    fn a_transaction_that_was_delivered_in_part_comes_again_whole() {
        let inside = between(Position::Row(row(100, 3)));
        assert!(!inside.covers(row(100, 0)) && inside.covers(row(99, 9)));
    }

    #[test]
    fn a_decision_after_which_positions_may_step_back_begins_an_era() {
        let identity = |system_id: &str, timeline, flush_lsn| SystemIdentity {
            system_id: system_id.into(),
            timeline,
            flush_lsn: Lsn::new(flush_lsn),
        };
        let stored = Progress {
            position: Some(Position::UpTo(Lsn::new(1000))),
            system_id: "7".into(),
            timeline: 2,
            ..Progress::before_first_start("s")
        };
        let here = identity("7", 2, 1500);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(99);
        let era = |stored: Option<&Progress>, decision, identity: &SystemIdentity| {
            let at = Some(Position::UpTo(Lsn::new(900)));
            decided(stored.cloned(), decision, at, "s", identity, now).era
        };
        for (decision, stored, identity, expected) in [
            (Decision::AtSlot, Some(&stored), &here, 0),
            (Decision::AtSlot, Some(&stored), &identity("7", 2, 999), 99),
            (Decision::AtSlot, Some(&stored), &identity("7", 1, 1500), 99),
            (Decision::AtSlot, Some(&stored), &identity("8", 2, 1500), 99),
            (Decision::AtSlot, None, &here, 99),
            (Decision::AtProgress, Some(&stored), &here, 99),
            (Decision::AtUpgrade, Some(&stored), &identity("8", 1, 1500), 99),
            (Decision::AtNow, Some(&stored), &here, 99),
            (Decision::AtTable, Some(&stored), &here, 99),
            (Decision::AtNow, None, &here, 99),
            (Decision::Skip(row(1000, 0)), Some(&stored), &here, 0),
        ] {
            assert_eq!(era(stored, decision, identity), expected, "{decision:?} {identity:?}");
        }
        let grown = Progress { rolled_back: Some(Lsn::new(900)), ..stored.clone() };
        assert_eq!(era(Some(&grown), Decision::AtSlot, &here), 99, "its WAL has grown since");
        let later = Progress { era: 200, ..stored };
        assert_eq!(era(Some(&later), Decision::AtNow, &here), 201);
    }

    #[test]
    fn an_event_that_is_done_or_far_ahead_is_not_skipped() {
        let inside = Some(Position::Row(row(100, 3)));
        assert!(skipped(None, row(1, 0)).is_err());
        assert!(skipped(inside, row(100, 3)).is_err());
        assert!(skipped(inside, row(200, 1)).is_err());
        assert_eq!(skipped(inside, row(100, 4)).expect("next"), Position::Row(row(100, 4)));
        let between = Some(Position::UpTo(Lsn::new(100)));
        assert_eq!(skipped(between, row(100, 0)).expect("next"), Position::Row(row(100, 0)));
    }
}
