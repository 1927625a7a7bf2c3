//! One attempt: start, stream, end whole.

use std::{fmt::Display, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    context::Context,
    earlier,
    ended::{Ended, pipeline_ended, stream_ended},
    locks, parked,
    start::{
        self, repair,
        standby::{self, Leading},
    },
    started::{Learnt, Started, Streaming},
    unfinished::Unfinished,
    watch::{broker, control, lookout, missing, retention, stuck, suspects, waiting},
};
use crate::{
    core::{look::Before, lsn::Lsn, position::Confirmable},
    dead_letter::{history::History, pending::Pending},
    metrics::Cause,
    pipeline::{Pipeline, PipelineError, intake::RouteIntake},
    postgres::sql::SqlSession,
    route::Format,
    source::{
        decoder::{Decoder, StreamError},
        handover::handover,
        stream::Stream,
    },
    state::Phase,
};

/// Snapshots that may wait for the pipeline.
const SNAPSHOTS_WAITING_MAX: usize = 2;

/// Time that a file's write has when the lead is lost.
const WRITE_GIVEN_UP: Duration = Duration::from_secs(3);

/// What one of the tasks ended with.
enum Task {
    Stream(Result<(), StreamError>),
    Pipeline(Result<(), PipelineError>),
    Control(Result<(), control::ControlError>),
    Watch,
    Tables(Result<(), Ended>),
    Missing(Result<(), Ended>),
    Waiting(Result<(), Ended>),
}

/// Runs one attempt. `Ok` when it was stopped and everything delivered is confirmed.
pub(super) async fn run(
    context: &Context,
    learnt: Learnt,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    unless_it_panics("attempt", Box::pin(through(context, learnt, stop))).await
}

async fn through(context: &Context, learnt: Learnt, stop: &CancellationToken) -> Result<(), Ended> {
    let board = &context.board;
    let unfinished = Unfinished::default();
    // A stop during start-up drops it half-way: nothing was delivered, nothing confirmed.
    let begun = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        begun = unless_it_panics("start", Box::pin(begin(context, learnt, &unfinished))) => Some(begun),
    };
    unfinished.cancel().await;
    let Some(begun) = begun else { return Ok(()) };
    let (session, started) = begun?;
    board.heard();
    board.broker_heard();
    let progress = started.progress().clone();
    let ended = match started {
        Started::Repair(repairing) => repair::run(context, stop, &session, *repairing).await,
        Started::Stream(streaming) => {
            board.resumed(streaming.from);
            board.stored(streaming.delivery.progress());
            board.phase(Phase::Streaming);
            tracing::info!(from = %streaming.from.resume_lsn(), "streaming");
            stream(context, stop, &session, (*streaming, learnt.silence_max)).await
        }
    };
    match ended {
        Ok(()) => Ok(()),
        Err(Ended::WrittenOtherwise(halt)) => {
            let ended = earlier::explained(context, &session, &progress, halt).await;
            Err(locks::named(&session, ended).await)
        }
        Err(ended) => Err(locks::named(&session, ended).await),
    }
}

/// From standing by to the stream. All the while the session that holds the lock shows that this
/// relay is alive; a step that takes long must not get it deposed.
async fn begin(
    context: &Context,
    learnt: Learnt,
    unfinished: &Unfinished,
) -> Result<(Arc<SqlSession>, Started), Ended> {
    let Leading { session, sink } = standby::lead(context).await?;
    control::first_look(context, &session).await;
    let started = tokio::select! {
        started = start::start(context, &session, sink, learnt, unfinished) => {
            match started {
                Ok(started) => started,
                Err(ended) => return Err(locks::named(&session, ended).await),
            }
        }
        never = broker::listen(&context.parts.sink, &context.board) => match never {},
        // Boxed: it would be part of each caller's future.
        never = Box::pin(stuck::watch(&context.parts.connect, &session, &context.board)) => match never {},
        lost = control::pulse(context, &session) => {
            return Err(Ended::postgres("holding the leader's lock", lost));
        }
    };
    Ok((session, started))
}

/// Runs the tasks until one ends, then lets the others end: the source on its own, the pipeline
/// after the delivery under way, the control session last.
async fn stream(
    context: &Context,
    stop: &CancellationToken,
    session: &Arc<SqlSession>,
    (started, silence_max): (Streaming, Duration),
) -> Result<(), Ended> {
    let Context { config, board, .. } = context;
    let limits = context.batch_limits();
    let (giver, taker) = handover(limits);
    let (confirmed_tx, confirmed_rx) = watch::channel(Confirmable::stored(started.from));
    let (awaited_tx, awaited_rx) = watch::channel(Lsn::ZERO);
    let (seen_tx, seen_rx) = mpsc::channel(SNAPSHOTS_WAITING_MAX);
    let (probe, format) = (started.probe, started.format);
    let pending = || Pending::new(Arc::clone(session), &config.name);
    let (pending, suspects) = (pending(), pending());
    let (watch, unrouted) = (started.watch, started.delivery.missing_topic());
    let suspected = started.delivery.suspected();
    let system_id = started.delivery.progress().system_id.clone();
    let history = config.retention.keep_dead_letters.map(|keep| History {
        relay: config.name.clone(),
        slot: config.postgres.slot.clone(),
        system_id: system_id.clone(),
        keep,
    });
    let slot = config.postgres.slot.clone();
    let (look, published) = started.look;
    let before = Before { published, snapshot: started.snapshot, lsn: started.from.resume_lsn() };
    let departed = started.delivery.progress().departed.clone();
    let (stamped, seen, awaited) = (started.stamped, seen_tx, awaited_tx);
    let eyes = control::Eyes { look, before, departed, stamped, slot, seen, awaited };
    let intake = RouteIntake::new(started.router, started.from, &config.name, board.clone())
        .noting(Arc::clone(&context.streamed));
    let decoder = Decoder::new(giver, intake, started.recognition, config.batch.record_bytes_max)
        .in_charset(started.charset);
    let source = Stream::new(started.accepted, decoder, confirmed_rx, awaited_rx, board.clone())
        .patient(silence_max);
    let pipeline = Pipeline::new(taker, started.delivery, seen_rx, confirmed_tx, limits);

    // Stopping the source ends the pipeline after its delivery, which ends the source in turn.
    let source_stop = stop.child_token();
    let control_stop = CancellationToken::new();
    let mut tasks = Tasks::default();
    let stop = source_stop.clone();
    tasks.spawn("source", async move { Task::Stream(source.run(stop).await) });
    tasks.spawn("pipeline", async move { Task::Pipeline(pipeline.run().await) });
    // Each of the others has its own of these.
    let shared = || (context.clone(), Arc::clone(session), control_stop.clone());
    let (here, session, stop) = shared();
    tasks.spawn("control", async move {
        Task::Control(control::run(&here, &session, eyes, stop).await)
    });
    let (here, session, stop) = shared();
    tasks.spawn("watch", async move {
        let Context { parts, board, .. } = &here;
        tokio::select! {
            () = stop.cancelled() => Task::Watch,
            never = broker::watch(probe.clone(), &parts.sink, board) => match never {},
            never = broker::watch_progress_topic(probe.clone(), board) => match never {},
            never = parked::watch(&here, &session, Some(&system_id)) => match never {},
            never = retention::watch(&session, history, board) => match never {},
            never = stuck::watch(&parts.connect, &session, board) => match never {},
        }
    });
    let stop = control_stop.clone();
    tasks.spawn("missing topics", async move {
        tokio::select! {
            () = stop.cancelled() => Task::Missing(Ok(())),
            ended = missing::watch(pending, watch, unrouted) => Task::Missing(Err(ended)),
            ended = suspects::watch(suspects, suspected) => Task::Missing(Err(ended)),
        }
    });
    let (here, session, stop) = shared();
    tasks.spawn("waiting releases", async move {
        tokio::select! {
            () = stop.cancelled() => Task::Waiting(Ok(())),
            ended = waiting::watch(&here, &session) => Task::Waiting(Err(ended)),
        }
    });
    let (here, session, stop) = shared();
    tasks.spawn("tables", async move {
        tokio::select! {
            () = stop.cancelled() => Task::Tables(Ok(())),
            ended = lookout::watch(&here, &session) => Task::Tables(Err(ended)),
        }
    });

    tasks.until_all_have_ended(context, format, &source_stop, &control_stop).await
}

/// The tasks of a stream, by their names.
#[derive(Default)]
struct Tasks {
    running: JoinSet<Task>,
    names: Vec<(task::Id, &'static str)>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = Task> + Send + 'static) {
        self.names.push((self.running.spawn(task.in_current_span()).id(), name));
    }

    /// When one has ended, the others are told to: the source at once, the helpers behind it. Returns the
    /// first cause, unless a later one says what a person must do.
    async fn until_all_have_ended(
        mut self,
        Context { config, parts, .. }: &Context,
        format: Format,
        source_stop: &CancellationToken,
        control_stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let mut ended = Ok(());
        let mut given_up_at = None;
        loop {
            let task = match given_up_at {
                None => self.next().await,
                Some(at) => match timeout_at(at, self.next()).await {
                    Ok(task) => task,
                    Err(_elapsed) => {
                        tracing::warn!(
                            to = parts.sink.name(),
                            "gave up a write that does not end: whoever leads next writes those events once more, with \
                             the same ids"
                        );
                        break;
                    }
                },
            };
            let Some(task) = task else { break };
            // One that has panicked may be the source.
            let is_source = matches!(task, Ok(Task::Stream(_)) | Err(_));
            let result = task.and_then(|task| match task {
                Task::Stream(result) => {
                    result.map_err(|e| stream_ended(e, &config.postgres, &parts.mapping, format))
                }
                Task::Pipeline(result) => result.map_err(pipeline_ended),
                Task::Control(result) => {
                    result.map_err(|e| Ended::postgres("looking at PostgreSQL", e))
                }
                Task::Watch => Ok(()),
                Task::Tables(result) | Task::Missing(result) | Task::Waiting(result) => result,
            });
            let for_a_person = matches!(
                result,
                Err(Ended::Halted(_)
                    | Ended::NoLeaders(_)
                    | Ended::NoDeadLetters(_)
                    | Ended::WrittenOtherwise(_))
            );
            if result.is_err() && (ended.is_ok() || for_a_person) {
                ended = result;
            }
            // Brokers have limits of their own; no one can say when a file's write ends. A stop has a limit, too.
            if ended.is_err() && parts.sink.waits_within() {
                given_up_at.get_or_insert_with(|| Instant::now() + WRITE_GIVEN_UP);
            }
            source_stop.cancel();
            if is_source {
                control_stop.cancel();
            }
        }
        ended
    }

    /// The next one that has ended; one that panicked is named.
    async fn next(&mut self) -> Option<Result<Task, Ended>> {
        let ended = self.running.join_next().await?;
        Some(ended.map_err(|panicked| {
            let known = self.names.iter().find(|(id, _)| *id == panicked.id());
            let name = known.map_or("unknown", |(_, name)| name);
            has_panicked(name, panicked)
        }))
    }
}

/// A defect in what is no task of its own ends the attempt, not the process.
async fn unless_it_panics<T>(
    name: &str,
    run: impl Future<Output = Result<T, Ended>>,
) -> Result<T, Ended> {
    match AssertUnwindSafe(run).catch_unwind().await {
        Ok(ended) => ended,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Err(has_panicked(name, text.unwrap_or("see the lines before this one")))
        }
    }
}

fn has_panicked(name: &str, said: impl Display) -> Ended {
    let error = anyhow::anyhow!("the task {name} has panicked: {said}");
    Ended::retry(Cause::Other, "running the relay's tasks", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_no_task_is_named() {
        let outcome = unless_it_panics::<()>("start", async { panic!("by {}", "zero") }).await;
        let Err(Ended::Retry { error, .. }) = outcome else { panic!("it is tried again") };
        assert_eq!(error.to_string(), "the task start has panicked: by zero");
    }

    #[tokio::test]
    async fn a_task_that_panics_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("control", std::future::pending());
        tasks.spawn("pipeline", async { panic!("the arithmetic is off") });
        let Some(Err(Ended::Retry { error, .. })) = tasks.next().await else {
            panic!("it ends, and the other does not")
        };
        let error = error.to_string();
        assert!(error.contains("the task pipeline has panicked"), "{error}");
        assert!(error.contains("the arithmetic is off"), "{error}");
    }
}
