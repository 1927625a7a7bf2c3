//! Until this relay leads: asks for the lock, and meanwhile stands by, ready to take over at once.
//!
//! A standby has its session, its client of the brokers and all checks behind it, and keeps
//! looking: at the leader's signs of life, and whether the brokers answer. It takes the lock only
//! when they do; a leader that can't deliver gives it up by ending its attempt. So the lock goes
//! to who can use it, and a standby that says it is ready is.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;

use super::{
    connect::{connect_replication, connect_sink},
    decision::{identify, open_key},
};
use crate::{
    capacity,
    core::halt::Halt,
    daemon::{
        context::Context,
        ended::Ended,
        leads::lock_failed,
        locks, standbys, steps, tables,
        watch::{broker, stuck},
    },
    fault::{self, Point},
    leader::{self, Holder},
    metrics::Cause,
    postgres::{
        catalog::slot,
        sql::{self, SqlSession},
    },
    rights,
    route::{Format, quoted},
    sink::any::AnySink,
    state::{Board, Phase},
};

/// A standby asks for the lock this often.
const LOCK_RETRY: Duration = Duration::from_millis(200);
/// And looks at the leader's signs of life this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A standby that can't reach the brokers for so long starts over, with what files hold by now.
const BROKER_SILENCE_MAX: Duration = Duration::from_secs(30);

/// And at whether it could lead itself.
const FIT_INTERVAL: Duration = Duration::from_secs(5);

/// What leading begins with.
pub(in crate::daemon) struct Leading {
    /// Holds the lock.
    pub(in crate::daemon) session: Arc<SqlSession>,
    /// Made while standing by; `None` when the lock was free at once.
    pub(in crate::daemon) sink: Option<AnySink>,
}

/// Returns when this relay holds the lock and no one else uses its slot. Cancel safe.
pub(in crate::daemon) async fn lead(context: &Context) -> Result<Leading, Ended> {
    steps::doing(&context.board, "connecting to PostgreSQL");
    let application = format!("outbox-relay {}", context.config.name);
    let session = sql::connect(&context.parts.connect, &application)
        .await
        .map_err(|e| Ended::connect("connecting to PostgreSQL", e))?;
    let session = Arc::new(session);
    standbys::settle(context, &session).await?;
    locks::limit(&session, context.config.leader.timeout).await.map_err(lock_failed(&session))?;
    match take_over(context, &session).await {
        Ok(sink) => Ok(Leading { session, sink }),
        Err(ended) => Err(locks::named(&session, ended).await),
    }
}

async fn take_over(context: &Context, session: &Arc<SqlSession>) -> Result<Option<AnySink>, Ended> {
    let slot = &context.config.postgres.slot;
    let mut sink = None;
    if !leader::try_lead(session.client(), slot).await.map_err(lock_failed(session))? {
        steps::doing(&context.board, "getting ready to stand by");
        let ready = prepare(context, session).await?;
        stand_by(context, session, &ready).await?;
        sink = Some(ready);
    }
    fault::point(Point::Leading);
    not_anothers(context, session).await?; // Another relay's stream is not ours to end.
    evict(session, slot, context.parts.connect.user()).await?;
    Ok(sink)
}

/// Waits for the lock, and deposes a leader that gives no sign of life.
async fn stand_by(context: &Context, session: &SqlSession, sink: &AnySink) -> Result<(), Ended> {
    let board = &context.board;
    let (client, slot) = (session.client(), &context.config.postgres.slot);
    board.broker_heard(); // While getting ready.
    board.heard();
    let watch = broker::watch(sink.probe(), &context.parts.sink, board);
    let wait = async {
        let (mut seen, mut answered) = (Seen::default(), Instant::now());
        loop {
            // Leading without a broker would only keep the lock from who has one.
            if board.broker_answers()
                && leader::try_lead(client, slot).await.map_err(lock_failed(session))?
            {
                return Ok(());
            }
            context.losses().clear(); // They are another's to tell by now.
            // Its client may know a password that has changed.
            if board.broker_answers() {
                answered = Instant::now();
            } else if answered.elapsed() >= BROKER_SILENCE_MAX {
                let silent = || "the brokers do not answer".to_owned();
                let why = board.what_broker_says().map_or_else(silent, |says| {
                    format!("nothing could be delivered for {BROKER_SILENCE_MAX:?}: {says}")
                });
                return Err(Ended::retry(Cause::Broker, "standing by", anyhow::Error::msg(why)));
            }
            if seen.is_due() {
                let holder = leader::holder(client, slot).await.map_err(lock_failed(session))?;
                board.heard();
                seen.tell(board, holder.as_ref());
                if let Some(holder) = &holder {
                    Box::pin(stuck::look_at_leader(session, holder.pid, board)).await;
                }
                if holder.is_some_and(|h| h.silent_for >= Some(context.config.leader.timeout)) {
                    depose(context, session).await?;
                    continue;
                }
            }
            sleep(LOCK_RETRY).await;
        }
    };
    let fit = async {
        loop {
            sleep(FIT_INTERVAL).await;
            if let Err(ended) = could_lead(context, session).await {
                return ended;
            }
        }
    };
    tokio::select! {
        result = wait => result,
        never = watch => match never {},
        ended = fit => Err(ended),
    }
}

/// Whether a start would go through as far as the database can tell, without trying: a standby that
/// says it is ready must be.
pub(super) async fn could_lead(context: &Context, session: &SqlSession) -> Result<(), Ended> {
    const DOING: &str = "looking whether this relay could lead";
    not_anothers(context, session).await?;
    let tables = tables::inspect(context, session, Format::Binary).await?;
    if let Some(halt) = tables.unpublished {
        return Err(Ended::Halted(halt));
    }
    let lacking = rights::stopping(
        session.client(),
        &context.parts.sink.grants(),
        rights::NOTHING_IS_PUBLISHED,
    )
    .await;
    if let Some(halt) = lacking.map_err(|e| Ended::postgres(DOING, e))? {
        return Err(Ended::Halted(halt));
    }
    let found = slot::capacity(session.client()).await;
    let found = found.map_err(|e| Ended::postgres(DOING, e))?;
    match capacity::halt(&capacity::lasting(&found, context.parts.connect.user())) {
        Some(halt) => Err(Ended::Halted(halt)),
        None => Ok(()),
    }
}

/// Checks that no relay of another name streams from the slot. If the settings give all sessions one name, the names
/// say nothing about relays.
pub(super) async fn not_anothers(context: &Context, session: &SqlSession) -> Result<(), Ended> {
    if context.parts.connect.application_name.is_some() {
        return Ok(());
    }
    let (slot, name) = (&context.config.postgres.slot, &context.config.name);
    let another = leader::another_streams(session.client(), slot, name).await;
    another.map_err(lock_failed(session))?.map_or(Ok(()), |halt| Err(Ended::Halted(halt)))
}

async fn depose(context: &Context, session: &SqlSession) -> Result<(), Ended> {
    let timeout = context.config.leader.timeout;
    let role = context.parts.connect.user();
    let deposed = leader::depose(session.client(), &context.config.postgres.slot, timeout)
        .await
        .map_err(|e| not_ended("ending a silent leader's session", role, e))?;
    if let Some(leader) = deposed {
        let silent_for = leader.silent_for.unwrap_or_default();
        tracing::warn!(%leader, ?silent_for, "deposed a leader that gave no sign of life");
    }
    Ok(())
}

async fn evict(session: &SqlSession, slot: &str, role: &str) -> Result<(), Ended> {
    let evicted = leader::evict(session.client(), slot)
        .await
        .map_err(|e| not_ended("ending what still reads from the slot", role, e))?;
    if !evicted.is_empty() {
        tracing::warn!(pids = ?evicted, slot, "ended what an older leader left reading the slot");
    }
    Ok(())
}

/// A process of an older leader, which logged in as another role, is in the way.
fn not_ended(doing: &'static str, role: &str, error: tokio_postgres::Error) -> Ended {
    if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Ended::postgres(doing, error);
    }
    Ended::Halted(Halt::new(
        format!(
            "{doing}: the other relay logs in as another role, whose sessions this one may not end"
        ),
        format!(
            "stop the other relay, or `grant pg_signal_backend, pg_read_all_stats to {}`",
            quoted(role)
        ),
    ))
}

/// What was last seen of the leader, so that each is named once.
#[derive(Default)]
struct Seen {
    looked_at: Option<Instant>,
    pid: Option<i32>,
    said_hidden: bool,
}

impl Seen {
    fn is_due(&mut self) -> bool {
        let due = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL);
        if due {
            self.looked_at = Some(Instant::now());
        }
        due
    }

    fn tell(&mut self, board: &Board, holder: Option<&Holder>) {
        let Some(holder) = holder else { return };
        if self.pid.replace(holder.pid) != Some(holder.pid) {
            tracing::info!(leader = %holder, "standing by");
            board.phase(Phase::Standby { doing: format!("waiting for {holder}") });
        }
        if holder.silent_for.is_none() && !std::mem::replace(&mut self.said_hidden, true) {
            tracing::warn!(
                leader = %holder,
                "the leader's signs of life are hidden, so this relay can't replace it if it hangs: \
                 set track_activities = on; and if the relays log in as different roles, grant \
                 pg_read_all_stats and pg_signal_backend to each of these"
            );
        }
    }
}

/// All that can be done before leading: checks everything, changes nothing, fences no one.
pub(super) async fn prepare(
    context: &Context,
    session: &Arc<SqlSession>,
) -> Result<AnySink, Ended> {
    let identity = identify(&mut connect_replication(context).await?).await?;
    could_lead(context, session).await?;
    let known = open_key(&context.config, session).await?;
    connect_sink(context, session, &identity, &known).await
}
