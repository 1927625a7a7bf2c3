//! `outbox-relay resume`: an operator's decision where the relay is halted, written as progress.
//!
//! It asks before it leaves out more than was named (`left_out`), with the number of events. It takes
//! the leader's lock and fences, so it can't race a relay that works; the relay that is halted reads
//! the new progress at its next look, and continues by itself.

mod before;
mod decision;
mod facts;
mod from_table;
mod left_out;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

pub(crate) use self::decision::{Decision, Here, between, decided};
use self::{
    decision::skipped,
    facts::{Facts, tables},
    left_out::Asked,
};
use crate::{
    config::{Config, parts::Parts},
    core::{
        identity::SystemIdentity,
        position::Position,
        progress::{Progress, TopicsRecord},
        published::Published,
    },
    fault::{self, Point},
    leader,
    postgres::{
        catalog::{publication::Look, slot},
        sql::{self, SqlSession},
    },
    progress_key::{self, KeyError},
    reconcile, repair,
    route::Mapping,
    sink::{ProgressStore as _, StoredProgress, any::AnySink},
    source::connect::ReplicationConnection,
};

/// A relay that is halted holds the lock only while it looks again.
const LOCK_WAIT: Duration = Duration::from_secs(20);
const LOCK_RETRY: Duration = Duration::from_millis(100);

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
            Some(after) => {
                write!(f, "the relay continues {}", place(after))?;
                if self.before.is_some_and(|before| after.resume_lsn() < before.resume_lsn()) {
                    f.write_str(" and publishes once more what it had delivered since")?;
                }
            }
            None => f.write_str("the relay makes a new slot")?,
        }
        match self.before {
            Some(before) => write!(f, "; before, its stored progress was {}", place(before))?,
            None => f.write_str("; before, it had no stored progress")?,
        }
        f.write_str(". It looks again within ten seconds, or when it is started")
    }
}

/// Where the stream continues, as people read it.
fn place(position: Position) -> String {
    match position {
        Position::UpTo(lsn) => format!("at {lsn}"),
        Position::Row(row) => format!("after the row {row}"),
    }
}

/// Carries the decision out, once `agreed` has said yes to what it leaves out beyond what it names.
///
/// # Errors
/// A relay is at work, no one agreed, or the decision does not fit what is there; then nothing was
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
    let owner = progress_key::another_of_slot(&session, &config.name, slot_name).await?;
    if let Some(owner) = owner.filter(|_| !has_delivered) {
        return Err(reconcile::of_another(&config.name, slot_name, &owner).into());
    }
    let mut sink = AnySink::start(&parts.sink, &config.name, known.key, &session)?;

    // Not asked of a relay that is at work. Asked before the lock is taken: a person may take long.
    no_relay_at_work(&session, slot_name).await?;
    let seen = decoded(sink.peek().await?, has_delivered, decision)?;
    let slot = slot::inspect(session.client(), slot_name).await?;
    let confirmed = slot.and_then(|slot| slot.confirmed_flush_lsn);
    let since_ms = since(decision);
    let facts = Facts { stored: seen.as_ref(), confirmed, identity: &identity, since_ms };
    let mut asked_about = Asked::default();
    let question =
        left_out::question(config, &parts, &session, decision, &facts, &mut asked_about).await?;
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
    let slot = slot::inspect(session.client(), slot_name).await?;
    let confirmed = slot.and_then(|slot| slot.confirmed_flush_lsn);
    let known = stored.as_ref();
    let mapping = &parts.mapping;
    let facts = Facts { stored: known, confirmed, identity: &identity, since_ms };
    left_out::unchanged(mapping, &session, decision, asked_about, &facts).await?;
    let from_table = match decision {
        Decision::AtTable { .. } => {
            Some(from_table::since_newest(mapping, &session, &facts).await?)
        }
        _ => None,
    };
    let published = published(config, &parts, &session, &replication).await?;
    let after = match decision {
        Decision::AtNow => None,
        Decision::AtTable { .. } => Some(Position::UpTo(identity.flush_lsn)),
        decision => {
            let stored = stored.as_ref();
            Some(position(&session, slot_name, decision, stored, &identity, mapping).await?)
        }
    };
    let now = SystemTime::now();
    let here = Here { slot_name, identity: &identity, published, now };
    let is_nothing_stored = stored.is_none();
    let mut next = decided(stored, decision, after, here);
    if is_nothing_stored && let Some(route) = &config.route {
        // Not all topics, as of a relay that was no route.
        let all = || vec!["*".to_owned()];
        let topics = TopicsRecord { now: route.topics.clone().unwrap_or_else(all), former: None };
        next.topics = Some(topics);
    }
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

/// The moment that a person has named.
fn since(decision: Decision) -> Option<i64> {
    match decision {
        Decision::AtTable { since_ms } => since_ms,
        _ => None,
    }
}

/// How the tables are published by now.
async fn published(
    config: &Config,
    parts: &Parts,
    session: &SqlSession,
    replication: &ReplicationConnection,
) -> anyhow::Result<Published> {
    let tables = parts.mapping.tables().iter();
    let tables = tables.map(|it| (it.to_string(), it.schema.as_str(), it.table.as_str()));
    let publication = &config.postgres.publication;
    let look = Look::new(replication.server_version_num(), publication, tables);
    let (_, published) = look.at(session.client()).await?;
    Ok(published)
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

/// Where the relay continues, with the slot that is there.
async fn position(
    session: &SqlSession,
    slot_name: &str,
    decision: Decision,
    stored: Option<&Progress>,
    identity: &SystemIdentity,
    mapping: &Mapping,
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
            let confirmed = there()?.confirmed_flush_lsn;
            // What the slot has of the new history before that place would be left out unasked.
            if stored.is_some_and(|stored| stored.rolled_back.is_some()) {
                bail!(
                    "stored progress is a place in WAL that the volume lost when it was rolled back: \
                     nothing is changed. `outbox-relay resume --at slot` publishes all since the slot; \
                     `outbox-relay resume --at now` leaves out what is not published"
                );
            }
            let is_here = stored.is_some_and(|stored| {
                stored.system_id == identity.system_id && stored.timeline == identity.timeline
            });
            if let (Some(before), Some(confirmed)) = (before, confirmed)
                && is_here
                && confirmed > before.resume_lsn()
            {
                bail!(
                    "the slot is at {confirmed}, past stored progress, {}, and has nothing of what lies between: \
                     nothing is changed. The halt of the relay, in /readyz and its log, names what loses nothing; \
                     `outbox-relay resume --at slot` leaves it out",
                    place(before)
                );
            }
            let before = before.filter(|_| stored.is_some_and(|stored| stored.repair.is_none()));
            before.map(between).context(
                "there is no stored progress to continue from, or a repair is under way, which continues \
                 by itself",
            )
        }
        Decision::AtUpgrade => upgraded(session, stored, slot.as_ref(), identity, mapping).await,
        Decision::Skip(row) => skipped(before, row),
        Decision::AtNow | Decision::AtTable { .. } => bail!("a new slot begins where it is made"),
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

/// Where a cluster that `pg_upgrade` made continues. Transaction ids and the WAL's positions continue in it, so
/// that stored snapshots hold. From 17 on it brings slots, of which everything was confirmed before;
/// without one the relay's next start repairs what came since.
async fn upgraded(
    session: &SqlSession,
    stored: Option<&Progress>,
    slot: Option<&slot::SlotState>,
    identity: &SystemIdentity,
    mapping: &Mapping,
) -> anyhow::Result<Position> {
    // What it says of where events are would be wrong, and they would be left out unasked.
    if stored.is_some_and(|stored| stored.system_id == identity.system_id) {
        bail!(
            "stored progress is of this very cluster, so pg_upgrade has not made it since: nothing is changed. The halt \
             of the relay, in /readyz and its log, names the commands that fit"
        );
    }
    let stored = stored.filter(|progress| progress.repair.is_none());
    let known = stored.and_then(|progress| Some((progress.position?, progress.snapshots.first()?)));
    let Some((position, newest)) = known else {
        bail!("stored progress has no snapshot to continue from, or a repair is under way")
    };
    let goes_on = "select pg_catalog.pg_snapshot_xmax($1::text::pg_catalog.pg_snapshot) \
                   operator(pg_catalog.<=) \
                   pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())";
    let ids_continue: bool =
        session.client().query_one(goes_on, &[&newest.snapshot]).await?.try_get(0)?;
    // It keeps tables and rows as they were; a dump makes them anew.
    let filled = async || match tables(mapping, session).await? {
        Ok(tables) => Ok(repair::is_filled(session.client(), &tables, &newest.snapshot).await?),
        Err(_) => anyhow::Ok(false), // The relay says so.
    };
    let other = if !ids_continue {
        Some("transaction ids are lower than those of")
    } else if identity.flush_lsn < position.resume_lsn() {
        Some("WAL ends before")
    } else if filled().await? {
        Some("rows were written by other transactions than those of")
    } else {
        None
    };
    if let Some(other) = other {
        bail!(
            "this cluster's {other} stored progress, so it was not \
             made by pg_upgrade from that one; `resume --at table` publishes from the table what was created \
             since the newest published event, and `resume --at now` what is committed from then on"
        );
    }
    Ok(match slot.and_then(|slot| slot.confirmed_flush_lsn) {
        Some(confirmed) => Position::UpTo(confirmed),
        None => between(position),
    })
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
            return Err(at_work(session, slot).await?);
        }
        sleep(LOCK_RETRY).await;
    }
    Ok(())
}

/// As [`take_lock`] would find, without taking it.
async fn no_relay_at_work(session: &SqlSession, slot: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    while leader::holder(session.client(), slot).await?.is_some() {
        if Instant::now() >= deadline {
            return Err(at_work(session, slot).await?);
        }
        sleep(LOCK_RETRY).await;
    }
    Ok(())
}

async fn at_work(session: &SqlSession, slot: &str) -> anyhow::Result<anyhow::Error> {
    let who = leader::holder(session.client(), slot).await?;
    let who = who.map_or_else(|| "unknown process".to_owned(), |who| who.to_string());
    Ok(anyhow::anyhow!("a relay is at work on slot {slot}: {who}; stop it first"))
}
