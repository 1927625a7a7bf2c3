//! The control session's work while the relay leads: a pulse, what the board is to know whatever
//! the relay is at, and snapshots for a later repair.
//!
//! The session holds the leader's lock, and each of its queries is the sign of life that standbys
//! look for (`leader`). A server that does not answer here for long is gone, whatever the
//! replication socket says; the walsender alone may be silent for good reason while it decodes a
//! huge foreign transaction.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;

use super::{held::Held, late};
use crate::{
    causes,
    core::{
        look::Before,
        lsn::Lsn,
        progress::{DepartedRecord, SnapshotRecord},
        published::Published,
        streamed::Awaited,
    },
    daemon::{context::Context, locks, parked},
    pipeline::Seen,
    postgres::{
        catalog::{InspectError, publication::Look},
        sql::{SessionLost, SqlSession},
    },
    repair::{self, Taken},
    route::TableName,
    state::Board,
};

/// What the board is told of looks that fail.
const LOOKS: &str = "looks at PostgreSQL";
/// A query runs this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// For the first look of an attempt.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(2);
/// A server that has not answered for this long is gone.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The control session has ended: start again.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum ControlError {
    /// The session broke.
    #[error("the control session broke")]
    Broken(#[from] tokio_postgres::Error),
    /// The server does not answer.
    #[error("no answer on the control session for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server's words could not be understood.
    #[error("the server's position could not be read")]
    Lsn(#[from] crate::core::lsn::ParseLsnError),
    /// What the server has could not be asked.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The stream may lack rows from here on: reconcile.
    #[error("rows may be missing from the stream, because {0}")]
    Republished(String),
}

/// Shows that this relay is alive while a start or a repair takes its time, and tells the board how
/// far the server and the slot are meanwhile. Returns when the session has ended; the start's own
/// statements say what else goes wrong, and may well keep this one waiting.
pub(in crate::daemon) async fn pulse(context: &Context, session: &SqlSession) -> SessionLost {
    let beat = async {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // Within a transaction of the start that has failed this fails as well, and was seen.
            let _ = look(session, &context.config.postgres.slot, &context.board).await;
        }
    };
    tokio::select! {
        lost = session.closed() => lost,
        never = beat => never,
        never = parked::watch(context, session, None) => match never {},
    }
}

/// Tells the board where the server's WAL ends and how far the slot is confirmed, before anything
/// else is tried: a start that halts or waits for a broker must not look as if nothing waited.
pub(in crate::daemon) async fn first_look(context: &Context, session: &SqlSession) {
    let looks = async {
        let _ = look(session, &context.config.postgres.slot, &context.board).await;
        let _ = parked::count(context, session, None).await;
    };
    // Whatever is wrong with the session, the start will say so.
    let _ = timeout(FIRST_LOOK_MAX, looks).await;
}

async fn look(session: &SqlSession, slot: &str, board: &Board) -> Result<(), ControlError> {
    // A simple query, so that it takes one round trip. A slot's name has no quote in it.
    let sql = format!(
        "select case when pg_catalog.pg_is_in_recovery() then null \
                     else pg_catalog.pg_current_wal_flush_lsn() end, \
                (select confirmed_flush_lsn from pg_catalog.pg_replication_slots \
                  where slot_name operator(pg_catalog.=) '{slot}')"
    );
    for message in session.client().simple_query(&sql).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        if let Some(end) = row.try_get(0)? {
            board.server_wal_end(end.parse()?);
        }
        if let Some(confirmed) = row.try_get(1)? {
            board.confirmed(confirmed.parse()?);
        }
    }
    Ok(())
}

/// What one look at the server found.
struct Looked {
    seen: Seen,
    /// Where the WAL ends that the server can send.
    wal_end: Lsn,
}

impl Looked {
    /// No one has flushed the WAL as far as the snapshot's position: the server can't send it.
    fn is_unflushed(&self) -> bool {
        self.seen.snapshot.lsn > self.wal_end
    }
}

/// Takes a snapshot, and then the WAL position that delivery must pass before the snapshot counts:
/// in this order, so that whatever the snapshot shows as committed starts before that position.
async fn look_at(session: &SqlSession, look: &Look) -> Result<Looked, ControlError> {
    let (snapshot, published) = look.at(session.client()).await?;
    let position = session.client().query_one(
        "select pg_catalog.pg_current_wal_insert_lsn()::text, \
                pg_catalog.pg_current_wal_flush_lsn()::text, \
                (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::int8, \
                pg_catalog.current_setting('wal_block_size')::int8",
        &[],
    );
    let row = position.await?;
    let inserted: Lsn = row.try_get::<_, &str>(0)?.parse()?;
    let wal_end: Lsn = row.try_get::<_, &str>(1)?.parse()?;
    let lsn = inserted.before_page_header(row.try_get::<_, i64>(3)?.unsigned_abs());
    let leaves = published.leaves();
    let snapshot = SnapshotRecord { lsn, taken_ms: row.try_get(2)?, snapshot, leaves };
    let departed = Vec::new();
    Ok(Looked { seen: Seen { snapshot, published, departed }, wal_end })
}

/// Where what the control session sees goes.
pub(in crate::daemon) struct Eyes {
    /// How to look at the publication.
    pub(in crate::daemon) look: Look,
    /// As it was when the stream began.
    pub(in crate::daemon) before: Before,
    /// Partitions that had left by then.
    pub(in crate::daemon) departed: Vec<DepartedRecord>,
    /// Tables of which the column `xid` is the transaction that inserted the row.
    pub(in crate::daemon) stamped: Vec<TableName>,
    pub(in crate::daemon) slot: String,
    pub(in crate::daemon) seen: mpsc::Sender<Seen>,
    /// For the stream: where the newest snapshot lies.
    pub(in crate::daemon) awaited: watch::Sender<Lsn>,
}

/// Takes snapshots until told to stop, and looks at the publication. A snapshot that finds no room
/// is dropped. Gives up before standbys do: after `leader.timeout` without an answer they may have
/// deposed this relay.
///
/// # Errors
/// [`ControlError`]; the relay starts again from the first step.
pub(in crate::daemon) async fn run(
    context: &Context,
    session: &SqlSession,
    eyes: Eyes,
    stop: CancellationToken,
) -> Result<(), ControlError> {
    let board = &context.board;
    let Eyes { look, mut before, mut departed, stamped, slot, seen, awaited } = eyes;
    let answer_max = ANSWER_MAX.min(context.config.leader.timeout);
    let (mut tail, mut skipped, mut held) =
        (Tail::default(), locks::Skipped::default(), Held::default());
    let (mut unseen, mut late) = (locks::Skipped::default(), late::Late::default());
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        late.tell(board);
        let looks = async {
            held.look(session, &slot, board).await?;
            look_at(session, &look).await
        };
        let looked = timeout(answer_max, looks).await;
        let mut looked = match looked.map_err(|_elapsed| ControlError::Silent(answer_max))? {
            Ok(looked) => looked,
            // The server answers, and that it does is all that the stream needs to know meanwhile.
            Err(error) if locks::passes(&error) => {
                unseen.tell(session, "looking at PostgreSQL", &error).await;
                let error = causes::of(&error);
                board.concern(LOOKS, Some(format!("a look at PostgreSQL fails: {error}")));
                continue;
            }
            Err(error) => return Err(error),
        };
        unseen.passed();
        board.concern(LOOKS, None);
        board.server_wal_end(looked.wal_end);
        before.compare(&looked.seen.published).map_err(ControlError::Republished)?;
        match attached(context, session, (&before, &departed), &looked.seen, &stamped).await {
            Ok(()) => skipped.passed(),
            // No snapshot counts until it was looked into: later ones would hide its rows.
            Err(error) if locks::passes(&error) => {
                skipped.tell(session, "looking into a partition that was attached", &error).await;
                continue;
            }
            Err(error) => return Err(error),
        }
        let Seen { snapshot, published, .. } = &mut looked.seen;
        context.streamed().look(before.lsn, &snapshot.snapshot);
        before.pass(snapshot, published, &mut departed);
        if tail.is_to_be_flushed(&looked, board.records_delivered()) {
            // A transaction that changes nothing: its commit is flushed soon, with all before it.
            let flush = "select pg_catalog.pg_current_xact_id()";
            match session.client().simple_query(flush).await {
                Err(error) if !locks::passes(&error) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        awaited.send_replace(looked.seen.snapshot.lsn);
        // Until the stream has told of a partition's rows, a snapshot that shows it would hide them.
        if !context.streamed().waits() {
            looked.seen.departed.clone_from(&departed);
            // A queue that is full waits for a delivery; the pulse is needed all the same.
            let _ = seen.try_send(looked.seen);
        }
    }
}

/// Has the stream tell whether it has the rows of partitions that were attached since the look before.
async fn attached(
    context: &Context,
    session: &SqlSession,
    (before, departed): (&Before, &[DepartedRecord]),
    Seen { snapshot, published: now, .. }: &Seen,
    stamped: &[TableName],
) -> Result<(), ControlError> {
    let known = &before.published.attached;
    let anew = now.attached.iter().filter(|entry| !known.contains(entry)).copied().collect();
    let anew = Published { attached: anew, ..now.clone() };
    if anew.attached.is_empty() {
        return Ok(());
    }
    let memory = context.streamed().memory();
    let since = repair::Since {
        mapping: &context.parts.mapping,
        stamped,
        published: &anew,
        lower: (before.lsn, &before.snapshot),
        leaves: &before.published.leaves(),
        departed,
        memory: &memory,
        every: true,
        slot: None,
    };
    let found = repair::look_into(session.client(), &since, Some(repair::GLANCED_MAX)).await?;
    if found.halt.is_some() || !found.more.is_empty() {
        // A start has the time to read it, and more to compare it with.
        let why = "a partition was attached with rows in it".to_owned();
        return Err(ControlError::Republished(why));
    }
    found.moved.iter().for_each(Taken::tell);
    let left = context.streamed().doubtful(&found.newer, None).awaited;
    if !left.is_empty() {
        let until = repair::end_of_wal(session.client()).await?;
        let (snapshot, partitions) = (snapshot.snapshot.clone(), found.partitions);
        context.streamed().wait_for(Awaited { until, rows: left, snapshot, partitions });
    }
    Ok(())
}

/// The WAL's end, where no one flushes it: pages that are cleaned up, or an open transaction. After a
/// load the snapshots that show it would wait there until somebody commits.
#[derive(Debug, Default)]
struct Tail {
    /// Was unflushed at the last look, too.
    unflushed: bool,
    /// Records delivered when it was last flushed.
    flushed_at: u64,
}

impl Tail {
    /// Once for what was delivered, so that an idle relay writes nothing.
    fn is_to_be_flushed(&mut self, looked: &Looked, delivered: u64) -> bool {
        let was = std::mem::replace(&mut self.unflushed, looked.is_unflushed());
        let due = was && self.unflushed && delivered != self.flushed_at;
        if due {
            self.flushed_at = delivered;
        }
        due
    }
}

#[cfg(test)]
mod tests;
