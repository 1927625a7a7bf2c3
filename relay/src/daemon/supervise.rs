//! Starts an attempt again after whatever ended it, and says why it has ended.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_postgres::Client;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument as _;

use super::{advice, attempt, context::Context, ended::Ended, refusing, started::Learnt};
use crate::{
    backoff::Backoff,
    capacity, causes,
    config::parts::Parts,
    core::halt::Halt,
    metrics::Cause,
    postgres::{
        catalog::{self, InspectError},
        sql,
    },
    rights,
    route::Format,
    source::decoder::StreamError,
    state::{Board, Phase},
};

/// Waiting time after a failed attempt: from the first to the last of these, doubling.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// An attempt that streamed for this long resets the waiting times.
const STEADY_AFTER: Duration = Duration::from_secs(30);
/// When a halted relay looks whether somebody has corrected the cause: from the first to the last of these, doubling.
/// Whoever stands at the screen waits for a moment, and a halt that lasts for days costs little.
const HALTED_MIN: Duration = Duration::from_secs(1);
const HALTED_MAX: Duration = Duration::from_secs(10);
/// How long a look at the rights may take, beside what it is to explain.
const RIGHTS_MAX: Duration = Duration::from_secs(5);
/// SQLSTATE `object_not_in_prerequisite_state`, as of a slot where `wal_level` is too low.
const NOT_IN_THIS_STATE: &str = "55000";
/// Runs each until `stop`. A panic outside of an attempt ends one, which begins again: the others are not to suffer from it.
pub(super) async fn all(relays: Vec<Context>, stop: &CancellationToken) {
    let relays = relays.into_iter().map(|context| async move {
        let span = context.of_relay().span();
        while !stop.is_cancelled() {
            let (relay, stop) = (context.clone(), stop.clone());
            let running = async move { supervise(relay, &stop).await };
            let running = AbortOnDropHandle::new(tokio::spawn(running.instrument(span.clone())));
            if let Err(error) = running.await {
                let error = causes::of(&error);
                span.in_scope(|| {
                    tracing::error!(error, "the relay's own code has failed: it begins again")
                });
                context.board.error(error);
                tokio::time::sleep(RETRY_MAX).await;
            }
        }
    });
    futures_util::future::join_all(relays).await;
}

async fn supervise(mut context: Context, stop: &CancellationToken) {
    let mut waits = Waits::new();
    let mut learnt = Learnt::nothing();
    while !stop.is_cancelled() {
        let started = Instant::now();
        // Whoever changes passwords rewrites files.
        if let Some(parts) = context.config.renewed(&context.parts) {
            context.parts = Arc::new(parts);
        }
        let ended = Box::pin(attempt::run(&context, learnt, stop)).await;
        let Context { config, parts, board, .. } = &context;
        let ended = explained(parts, &config.name, ended).await;
        let ended = match ended {
            Err(Ended::NoDeadLetters(halt)) => Err(Ended::NoDeadLetters(
                renamed(parts, halt, catalog::renamed::dead_letters).await,
            )),
            Err(Ended::NoLeaders(halt)) => {
                Err(Ended::Halted(renamed(parts, halt, catalog::renamed::schema).await))
            }
            ended => ended,
        };
        let ended = ended.map_err(|ended| {
            let ended = advice::with_what_was_parked(ended, config, board);
            let ended = advice::with_silent_brokers(ended, &parts.sink, board);
            let ended = advice::advised(ended, &parts.connect);
            config.route.iter().fold(ended, |ended, route| ended.of_route(route))
        });
        learnt.another_history = None;
        if started.elapsed() >= STEADY_AFTER {
            waits = Waits::new();
        }
        let wait = match ended {
            Ok(()) => {
                learnt.unpublished_once = false; // If it was, the slot is a new one.
                continue;
            }
            Err(ended) => told(ended, &mut learnt, &mut waits, board),
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// How long until the next attempt.
struct Waits {
    retry: Backoff,
    halted: Backoff,
    /// The halt that was logged last, and when.
    logged: Option<(Halt, Instant)>,
}

impl Waits {
    fn new() -> Self {
        Waits {
            retry: Backoff::new(RETRY_MIN, RETRY_MAX),
            halted: Backoff::new(HALTED_MIN, HALTED_MAX),
            logged: None,
        }
    }

    /// Whether a halt is another one than before, or was not logged for a while.
    fn is_to_be_logged(&mut self, halt: &Halt) -> bool {
        let is_known = self
            .logged
            .as_ref()
            .is_some_and(|(last, at)| last == halt && at.elapsed() < HALTED_MAX);
        if !is_known {
            self.logged = Some((halt.clone(), Instant::now()));
        }
        !is_known
    }
}

/// Tells the log and the board why an attempt has ended, and remembers what the next one is to know. Returns
/// when that is to begin.
fn told(ended: Ended, learnt: &mut Learnt, waits: &mut Waits, board: &Board) -> Duration {
    let is_halt = matches!(
        ended,
        Ended::Halted(_)
            | Ended::NoLeaders(_)
            | Ended::NoDeadLetters(_)
            | Ended::WrittenOtherwise(_)
    );
    if !is_halt {
        waits.halted = Backoff::new(HALTED_MIN, HALTED_MAX);
    }
    let backoff = &mut waits.retry;
    match ended {
        Ended::Halted(halt)
        | Ended::NoLeaders(halt)
        | Ended::NoDeadLetters(halt)
        | Ended::WrittenOtherwise(halt) => {
            if waits.is_to_be_logged(&halt) {
                tracing::error!(reason = %halt.reason, remedy = %halt.remedy, "halted");
            }
            board.error(halt.to_string());
            board.phase(Phase::Halted { reason: halt.reason, remedy: halt.remedy });
            waits.halted.next_wait()
        }
        // Another relay leads, or the broker has ended a transaction that outlived its time:
        // the lock tells which.
        Ended::Fenced => {
            let wait = backoff.next_wait();
            tracing::warn!(retry_in = ?wait, "fenced at the broker; will stand by");
            board.metrics().reconnect(Cause::Fenced);
            board.phase(Phase::Retrying {
                doing: "delivering".into(),
                error: "fenced at the broker".into(),
                next_attempt_in: wait,
            });
            wait
        }
        Ended::NeedsText(reason) => {
            tracing::info!(%reason, "streaming in the text format from now on");
            learnt.format = Format::Text;
            board.metrics().reconnect(Cause::Other);
            board.phase(Phase::Starting { doing: "following a change of the table".into() });
            backoff.next_wait()
        }
        Ended::Unpublished(reason) => {
            tracing::warn!(
                %reason,
                "the publication was missing when the next transaction of the stream was written: the events \
                 that the stream does not have are read from the table"
            );
            learnt.unpublished_once = true;
            board.metrics().reconnect(Cause::Postgres);
            board.error(reason.to_string());
            board.phase(Phase::Starting { doing: "reconciling with the publication".into() });
            backoff.next_wait()
        }
        Ended::RolledBack(found) => {
            tracing::error!(%found, "the volume was put back to an older state");
            learnt.another_history = Some(found);
            board.metrics().reconnect(Cause::Postgres);
            board.error(found.to_string());
            board.phase(Phase::Starting { doing: "remembering a rollback".into() });
            backoff.next_wait()
        }
        Ended::Retry { cause, doing, error } => {
            if let Some(StreamError::Silent(_)) = error.downcast_ref() {
                learnt.was_silent(board.delivered_up_to());
            }
            let wait = backoff.next_wait();
            let error = causes::of(error.as_ref());
            tracing::warn!(doing, error, retry_in = ?wait, "will try again");
            board.metrics().reconnect(cause);
            board.error(format!("{doing}: {error}"));
            board.phase(Phase::Retrying { doing: doing.to_owned(), error, next_attempt_in: wait });
            wait
        }
    }
}

/// What ended for want of a right, or because a person must act, says which rights or settings lack, if any
/// do: one look for all of them, with the statements that give them.
async fn explained(parts: &Parts, name: &str, ended: Result<(), Ended>) -> Result<(), Ended> {
    let unset = match &ended {
        Err(Ended::Halted(_) | Ended::NoLeaders(_)) => false,
        Err(Ended::Retry { error, .. }) if rights::is_refusal(error) || refusing::is_it(error) => {
            false
        }
        Err(Ended::Retry { error, .. })
            if advice::sqlstate_of(error).is_some_and(|code| {
                [NOT_IN_THIS_STATE, advice::TOO_MANY].contains(&code.as_str())
            }) =>
        {
            true
        }
        _ => return ended,
    };
    let asked = tokio::time::timeout(RIGHTS_MAX, async {
        let session = sql::connect(&parts.connect, "outbox-relay rights").await.ok()?;
        let meaning = rights::NOTHING_IS_PUBLISHED;
        if !unset {
            let lacking = rights::stopping(session.client(), &parts.sink.grants(), meaning).await;
            return match (lacking.ok()?, &ended) {
                (None, Err(Ended::Retry { doing, error, .. })) => {
                    refusing::halt(session.client(), (parts, name), doing, error).await
                }
                (lacking, _) => lacking.map(Ended::Halted),
            };
        }
        let found = catalog::slot::capacity(session.client()).await.ok()?;
        // What passes by itself is tried again.
        capacity::halt(&capacity::lasting(&found, parts.connect.user())).map(Ended::Halted)
    });
    match asked.await {
        Ok(Some(explained)) => Err(explained),
        _ => ended,
    }
}

/// If a table or the schema is missing and another one looks like it, which `found` tells, the halt says how to give that
/// its name back, which keeps what is in it.
async fn renamed(
    parts: &Parts,
    halt: Halt,
    found: impl AsyncFnOnce(&Client) -> Result<Option<String>, InspectError>,
) -> Halt {
    let asked = tokio::time::timeout(RIGHTS_MAX, async {
        let session = sql::connect(&parts.connect, "outbox-relay names").await.ok()?;
        found(session.client()).await.ok()?
    });
    match asked.await {
        Ok(Some(back)) => {
            let Halt { reason, remedy } = halt;
            Halt::new(reason, format!("{back}; else {remedy}"))
        }
        _ => halt,
    }
}
