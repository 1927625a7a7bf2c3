//! Repairs: a new slot, then what the old one would have sent, read from the tables.
//!
//! [`begin`] announces it and makes the slot; [`run`] delivers page by page and stores the end. Each
//! is a part of an attempt that ends with it: the next start reads the progress that was stored, and
//! streams. So a repair that is cut short anywhere continues like any other start.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::{connections::Connections, feeds, slot, survey::survey};
use crate::{
    config::Config,
    core::{
        halt::Halt,
        landmark::AnotherHistory,
        lsn::Lsn,
        position::Position,
        progress::{FormerTopics, Progress, RepairRecord, UPPER_BYTES_MAX},
        published::Published,
        record::{Batch, BatchLimits},
    },
    daemon::{
        advice::sqlstate_of,
        context::Context,
        ended::{Ended, pipeline_ended},
        started::Repairing,
        steps::store,
        undecodable,
        watch::{broker, control},
    },
    fault::{self, Point},
    metrics::Cause,
    pipeline::delivery::Delivery,
    postgres::sql::SqlSession,
    reconcile::{self, Left},
    repair::{self, End, Page, ReadError, Reader, Recognised, Table},
    route::{Mapping, Router},
    sink::any::AnySink,
    state::Phase,
};

const READING: &str = "reading the outbox tables for a repair";
/// A person at the log sees how far it is this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// For the looks of a rehearsal, which must end in time whatever the tables hold.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// What a repair is to read.
#[derive(Clone, Copy)]
pub(super) struct Needed<'a> {
    pub(super) tables: &'a [Table],
    /// The snapshot of which everything was delivered; without one, all rows that are there.
    pub(super) lower: Option<&'a str>,
    /// What the slot lacks.
    pub(super) gap: Option<&'a str>,
    /// What it could still send.
    pub(super) left: Left,
}

/// Recreates the slot, and stores in `progress` what is to be read. Returns where the stream begins
/// if there is no row at all, as at most first starts. Cancel safe.
pub(super) async fn begin(
    context: &Context,
    connections: &mut Connections<'_>,
    needed: Needed<'_>,
    progress: &mut Progress,
    replace: bool,
) -> Result<Option<Position>, Ended> {
    let Needed { tables, lower, gap, .. } = needed;
    let (config, session) = (&context.config, connections.session);
    let name = &config.postgres.slot;
    recognise(config, session, tables, progress).await?;
    nothing_gone(config, session, needed, progress).await?;
    match (progress.position, gap.filter(|_| needed.left != Left::Gone)) {
        (Some(_), Some(gap)) => tracing::warn!(
            slot = name,
            gap,
            "rows may be missing from the stream: making a new slot, and publishing from the \
             outbox tables what was committed since the last snapshot; what was missing may come \
             behind later events of its key"
        ),
        (Some(position), None) => tracing::warn!(
            slot = name, after = %position,
            "the slot is missing, has lost its WAL, or is ahead of what the broker has kept: making a new one, and \
             publishing what was committed meanwhile from the outbox tables"
        ),
        (None, _) => {
            tracing::info!(slot = name, "publishing the rows that are in the outbox tables")
        }
    }
    progress.announce_repair(lower);
    store(&mut connections.sink, progress).await?;
    fault::point(Point::RepairAnnounced);
    if replace {
        slot::drop(name, &mut connections.replication).await?;
    }
    let (upper, published) = slot::make(context, connections).await?;
    // Open transactions were waited for, and may have dropped a table with the rows that are to be read.
    same_tables(progress, &published)?;
    progress.replace_slot(published);
    // Asked after it is made: what its snapshot shows is there by now.
    if lower.is_none() && no_row(session, tables).await? {
        let from = Position::UpTo(upper.lsn);
        progress.repair = None;
        progress.begin(upper.lsn);
        progress.snapshots = vec![upper];
        store(&mut connections.sink, progress).await?;
        fault::point(Point::SlotStored);
        return Ok(Some(from));
    }
    if upper.snapshot.len() > UPPER_BYTES_MAX {
        let error = anyhow::anyhow!(
            "so many transactions are open that the snapshot of the new slot takes {} bytes, and \
             progress has room for {UPPER_BYTES_MAX}: the repair waits until fewer are; nothing is \
             published meanwhile, and nothing is lost",
            upper.snapshot.len()
        );
        return Err(Ended::retry(Cause::Postgres, "beginning a repair", error));
    }
    progress.begin_repair(lower, upper);
    store(&mut connections.sink, progress).await?;
    fault::point(Point::RepairBegun);
    Ok(None)
}

/// The next start says what can be done about it.
fn same_tables(progress: &Progress, published: &Published) -> Result<(), Ended> {
    progress.another_table(published).map_or(Ok(()), |table| {
        let error = anyhow::anyhow!("{table} is another table than when the repair was decided");
        Err(Ended::retry(Cause::Postgres, READING, error))
    })
}

/// What [`begin`] and [`run`] ask of the tables before they publish from them, for a rehearsal. `false` where the
/// server did not say in time.
pub(super) async fn foresee(
    config: &Config,
    session: &SqlSession,
    needed: Needed<'_>,
    progress: &Progress,
) -> Result<bool, Ended> {
    let looks = async {
        recognise(config, session, needed.tables, progress).await?;
        nothing_gone(config, session, needed, progress).await
    };
    let limit = format!("set statement_timeout = {}", LOOK_MAX.as_millis());
    let failed = |e| Ended::postgres(READING, e);
    session.client().batch_execute(&limit).await.map_err(failed)?;
    let found = tokio::time::timeout(LOOK_MAX, looks).await;
    // The repair itself may take its time. What still runs ends first.
    session.client().batch_execute("reset statement_timeout").await.map_err(failed)?;
    match found {
        Ok(Ok(())) => Ok(true),
        Ok(Err(Ended::Retry { error, .. }))
            if sqlstate_of(&error).as_deref() == Some(SqlState::QUERY_CANCELED.code()) =>
        {
            Ok(false)
        }
        Ok(Err(ended)) => Err(ended),
        Err(_elapsed) => Ok(false),
    }
}

/// Halts where rows that are to be read may be gone.
async fn nothing_gone(
    config: &Config,
    session: &SqlSession,
    Needed { tables, lower, gap, left }: Needed<'_>,
    progress: &Progress,
) -> Result<(), Ended> {
    let slot = &config.postgres.slot;
    complete(config, session, tables, lower, progress).await?.map_err(|why| {
        Ended::Halted(reconcile::incomplete(slot, (gap, left), lower, progress, &why))
    })
}

/// Why a repair that began now might not find all rows that the slot has.
pub(in crate::daemon) async fn gone(
    config: &Config,
    session: &SqlSession,
    tables: &[Table],
    progress: &Progress,
) -> Result<Option<Halt>, Ended> {
    let lower = progress.snapshots.first().map(|newest| &*newest.snapshot);
    Ok(complete(config, session, tables, lower, progress).await?.err())
}

async fn complete(
    config: &Config,
    session: &SqlSession,
    tables: &[Table],
    lower: Option<&str>,
    progress: &Progress,
) -> Result<Result<(), Halt>, Ended> {
    let kept = config.outbox.rows_kept;
    // Of an older snapshot they are not known; whatever has gone since then was delivered.
    let newest = progress.snapshots.first().filter(|newest| Some(&*newest.snapshot) == lower);
    let leaves = newest.map(|newest| newest.leaves.clone()).unwrap_or_default();
    let failed = |e| Ended::postgres(READING, e);
    let complete = repair::complete(session.client(), tables, lower, &leaves, kept).await;
    let complete = complete.map_err(failed)?;
    match &progress.repair {
        Some(RepairRecord { upper, leaves, .. })
            if lower.is_none() && complete.is_ok() && !upper.is_empty() =>
        {
            let there = repair::still_there(session.client(), tables, upper, leaves, kept).await;
            there.map_err(failed)
        }
        _ => Ok(complete),
    }
}

/// Halts where the tables are others than those of which everything is published, or may be.
async fn recognise(
    config: &Config,
    session: &SqlSession,
    tables: &[Table],
    progress: &Progress,
) -> Result<(), Ended> {
    let (Some(witness), Some(delivered)) = (progress.witness, progress.position) else {
        return Ok(());
    };
    let kept = config.outbox.rows_kept;
    match repair::recognise(session.client(), tables, witness, kept).await {
        Ok(Recognised::Same) => Ok(()),
        Ok(Recognised::Another) => {
            Err(Ended::RolledBack(AnotherHistory { delivered, from: witness.commit }))
        }
        Ok(Recognised::Missing) => {
            let (slot, _) = survey(config, session).await?;
            Err(Ended::Halted(reconcile::perhaps_put_back(progress, slot.as_ref())))
        }
        // It may not read the account of deletions, and `nothing_gone` says so.
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(()),
        Err(error) => Err(Ended::postgres(READING, error)),
    }
}

async fn no_row(session: &SqlSession, tables: &[Table]) -> Result<bool, Ended> {
    let found = repair::any_row(session.client(), tables).await;
    found.map(|any| !any).map_err(|e| Ended::postgres(READING, e))
}

/// Delivers what is left of the repair in stored progress, and stores its end. `Ok` also when it was
/// told to stop: what was delivered by then is stored.
pub(in crate::daemon) async fn run(
    context: &Context,
    stop: &CancellationToken,
    session: &Arc<SqlSession>,
    repairing: Repairing,
) -> Result<(), Ended> {
    let config = &context.config;
    let Repairing { mut delivery, probe, look, tables, origin, charset } = repairing;
    // Rows of a table don't say where they were committed.
    let former = delivery.progress().former_topics();
    let former = former.map(|it| FormerTopics { until: Lsn::new(u64::MAX), ..it.clone() });
    let router = Router::repairing(context.parts.mapping.clone(), &origin).with_former(former);
    let work = async {
        let lower = delivery.progress().repair.as_ref().and_then(|it| it.lower.clone());
        let under_way = delivery.progress().repair_to_read().expect("it was begun");
        let feeds = feeds::connect(context, session, tables.clone()).await?;
        let bytes_max = config.batch.record_bytes_max;
        let reader = Reader::open(feeds, under_way, bytes_max, router, charset).await;
        let unread = |error| unread(error, &context.parts.mapping);
        let mut reader = reader.map_err(unread)?;
        // Asked again now that what is there can't go any more; of a first start it is asked from the moment on
        // at which its slot was made.
        reader.begun().await.map_err(unread)?;
        let failed = |e| Ended::postgres(READING, e);
        let (_, published) = look.at(session.client()).await.map_err(failed)?;
        same_tables(delivery.progress(), &published)?;
        if lower.is_some() {
            recognise(config, session, &tables, delivery.progress()).await?;
        }
        let needed =
            Needed { tables: &tables, lower: lower.as_deref(), gap: None, left: Left::Gone };
        nothing_gone(config, session, needed, delivery.progress()).await?;
        pages(context, stop, &mut reader, &mut delivery).await?;
        if stop.is_cancelled() {
            return Ok(());
        }
        end(session, &mut delivery).await
    };
    tokio::select! {
        ended = work => ended,
        // The delivery under way is dropped half-way: its outcome is looked up at the next start.
        lost = control::pulse(context, session) => {
            Err(Ended::postgres("holding the leader's lock", lost))
        }
        never = broker::watch(probe, &context.parts.sink, &context.board) => match never {},
    }
}

async fn pages(
    context: &Context,
    stop: &CancellationToken,
    reader: &mut Reader,
    delivery: &mut Delivery<AnySink, crate::dead_letter::Store>,
) -> Result<(), Ended> {
    let mut batch = Batch::new(context.batch_limits());
    let mut reported: Option<Instant> = None;
    loop {
        let repair = delivery.progress().repair.as_ref();
        let (delivered, cursor) = repair.map_or((0, None), |r| (r.delivered, r.cursor.as_ref()));
        let through = cursor.map(|(moment_us, _)| moment(*moment_us));
        if reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            reported = Some(Instant::now());
            match delivered {
                0 => tracing::info!("publishing from the outbox tables: reading the first rows"),
                rows => tracing::info!(rows, through, "publishing from the outbox tables"),
            }
        }
        context.board.phase(Phase::Repairing { delivered, through });
        let page = tokio::select! {
            biased; // A relay that was asked to stop begins no new page.
            () = stop.cancelled() => break,
            page = reader.page(&mut batch) => {
                page.map_err(|error| unread(error, &context.parts.mapping))?
            }
        };
        let mut page = page;
        if page.is_empty() {
            break;
        }
        let mut shared = Arc::new(batch);
        delivery.deliver(&mut shared, &mut page).await.map_err(pipeline_ended)?;
        delivery.settle_in_time(&mut page).await.map_err(pipeline_ended)?;
        fault::point(Point::RepairPageStored);
        batch = Arc::into_inner(shared).expect("a sink keeps no batch after its delivery");
        batch.clear();
    }
    delivery.settle(&mut Page::default()).await.map_err(pipeline_ended)
}

async fn end(
    session: &SqlSession,
    delivery: &mut Delivery<AnySink, crate::dead_letter::Store>,
) -> Result<(), Ended> {
    fault::point(Point::RepairDelivered);
    let query = "select (extract(epoch from clock_timestamp()) * 1000)::int8";
    let now = session.client().query_one(query, &[]).await.and_then(|row| row.try_get(0));
    let now_ms = now.map_err(|e| Ended::postgres(READING, e))?;
    let rows = delivery.progress().repair.as_ref().map_or(0, |repair| repair.delivered);
    let first = delivery.progress().position.is_none();
    let mut nothing = Arc::new(Batch::new(BatchLimits { records_max: 1, bytes_max: 1 }));
    let mut end = End { now_ms };
    delivery.deliver(&mut nothing, &mut end).await.map_err(pipeline_ended)?;
    delivery.settle(&mut end).await.map_err(pipeline_ended)?;
    fault::point(Point::RepairEnded);
    match first {
        true => tracing::info!(rows, "published the rows that were in the outbox tables"),
        false => {
            tracing::info!(
                rows,
                "repaired: every event that the slot had lost and that is still in the tables is published"
            )
        }
    }
    Ok(())
}

fn unread(error: ReadError, mapping: &Mapping) -> Ended {
    match error {
        ReadError::Unfit(halt) => Ended::Halted(halt),
        error => match undecodable::of_table(&error, mapping) {
            Some(told) => Ended::postgres(READING, told),
            None => Ended::postgres(READING, error),
        },
    }
}

/// As a person reads it; an infinite one has no date.
fn moment(unix_us: i64) -> String {
    jiff::Timestamp::from_microsecond(unix_us)
        .map_or_else(|_| "infinity".to_owned(), |moment| format!("{moment:.3}"))
}
