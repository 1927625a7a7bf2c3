//! One attempt: start, stream, end whole.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    broker, control, locks, missing, repair, retention,
    standby::{self, Leading},
    start::{self, Started, Streaming},
    suspects, tables,
    unfinished::Unfinished,
    waiting,
};
use crate::{
    admin::{Board, Phase},
    config::{Config, PostgresConfig, parts::Parts},
    dead_letter::{history::History, pending::Pending},
    landmark::AnotherHistory,
    lsn::Lsn,
    metrics::Cause,
    pipeline::{Pipeline, PipelineError, intake::RouteIntake},
    position::Confirmable,
    postgres::{ConnectError, error::needs_time, sql::SqlSession},
    reconcile::Halt,
    record::BatchLimits,
    route::Format,
    sink::SinkError,
    source::{decoder::StreamError, handover::handover, intake::IntakeError, stream::Stream},
};

/// SQLSTATE `undefined_object`.
const UNDEFINED_OBJECT: &str = "42704";
/// SQLSTATE of a type that lacks an output function, among others.
const UNDEFINED_FUNCTION: &str = "42883";
/// Snapshots that may wait for the pipeline.
const SNAPSHOTS_WAITING_MAX: usize = 2;

/// Why an attempt ended, sorted by what the daemon does next.
#[derive(Debug)]
pub(super) enum Ended {
    /// A person must mend it.
    Halted(Halt),
    /// Another relay has taken over: stand by.
    Fenced,
    /// Start again, asking for the text format: the stream has rows, now or once, that need it.
    NeedsText(String),
    /// Start again, knowing that the publication was missing where the stream is to go on.
    Unpublished(StreamError),
    /// Start again, and remember that the volume was put back to an older state.
    RolledBack(AnotherHistory),
    /// Wait a little, and start again from the first step.
    Retry {
        /// For the metrics.
        cause: Cause,
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        error: anyhow::Error,
    },
}

impl Ended {
    pub(super) fn retry(
        cause: Cause,
        doing: &'static str,
        error: impl Into<anyhow::Error>,
    ) -> Self {
        Ended::Retry { cause, doing, error: error.into() }
    }

    pub(super) fn connect(doing: &'static str, error: ConnectError) -> Self {
        match error {
            ConnectError::Permanent { what, remedy, .. } => {
                Ended::Halted(Halt::new(format!("{doing}: {what}"), remedy))
            }
            error @ ConnectError::Transient { .. } => Ended::retry(Cause::Postgres, doing, error),
        }
    }

    pub(super) fn sink(doing: &'static str, error: SinkError) -> Self {
        match error {
            SinkError::Fenced(_) => Ended::Fenced,
            SinkError::Misconfigured { what, remedy } => Ended::Halted(Halt::new(what, remedy)),
            error @ (SinkError::Unavailable { .. } | SinkError::Refused { .. }) => {
                Ended::retry(Cause::Broker, doing, error)
            }
        }
    }
}

/// What only the stream has told so far; the catalogs say what holds for what is written now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learnt {
    /// That it has rows for.
    pub(super) format: Format,
    /// Whether its publication was missing where it is to go on.
    pub(super) unpublished_once: bool,
    /// What the last attempt has found instead of what was delivered; of no meaning after the next.
    pub(super) another_history: Option<AnotherHistory>,
}

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
    config: &Config,
    parts: &Parts,
    board: &Board,
    learnt: Learnt,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    let unfinished = Unfinished::default();
    // A stop during start-up drops it half-way: nothing was delivered, nothing confirmed.
    let begun = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        begun = begin(config, parts, board, learnt, &unfinished) => Some(begun),
    };
    unfinished.cancel().await;
    let Some(begun) = begun else { return Ok(()) };
    let (session, started) = begun?;
    board.heard();
    board.broker_heard();
    let ended = match started {
        Started::Repair(repairing) => {
            repair::run(config, parts, board, stop, &session, *repairing).await
        }
        Started::Stream(streaming) => {
            board.resumed(streaming.from);
            board.phase(Phase::Streaming);
            tracing::info!(from = %streaming.from, "streaming");
            stream(config, parts, board, stop, Arc::clone(&session), *streaming).await
        }
    };
    match ended {
        Ok(()) => Ok(()),
        Err(ended) => Err(locks::named(&session, ended).await),
    }
}

/// From standing by to the stream. All the while the session that holds the lock shows that this
/// relay is alive; a step that takes long must not get it deposed.
async fn begin(
    config: &Config,
    parts: &Parts,
    board: &Board,
    learnt: Learnt,
    unfinished: &Unfinished,
) -> Result<(Arc<SqlSession>, Started), Ended> {
    let Leading { session, sink } = standby::lead(config, parts, board).await?;
    let session = Arc::new(session);
    control::first_look(&session, config, board).await;
    let started = tokio::select! {
        started = start::start(config, parts, board, &session, sink, learnt, unfinished) => {
            match started {
                Ok(started) => started,
                Err(ended) => return Err(locks::named(&session, ended).await),
            }
        }
        lost = control::pulse(&session, config, board) => {
            return Err(Ended::retry(Cause::Postgres, "holding the leader's lock", lost));
        }
    };
    Ok((session, started))
}

/// Runs the tasks until one ends, then lets the others end: the source on its own, the pipeline
/// after the delivery under way, the control session last.
async fn stream(
    config: &Config,
    parts: &Parts,
    board: &Board,
    stop: &CancellationToken,
    session: Arc<SqlSession>,
    started: Streaming,
) -> Result<(), Ended> {
    let limits =
        BatchLimits { records_max: config.batch.records_max, bytes_max: config.batch.bytes_max };
    let (giver, taker) = handover(limits);
    let (confirmed_tx, confirmed_rx) = watch::channel(Confirmable::stored(started.from));
    let (awaited_tx, awaited_rx) = watch::channel(Lsn::ZERO);
    let (seen_tx, seen_rx) = mpsc::channel(SNAPSHOTS_WAITING_MAX);
    let intake = RouteIntake::new(started.router, started.from, &config.name, board.clone());
    let (probe, format) = (started.probe, started.format);
    let pending = || Pending::new(Arc::clone(&session), &config.name);
    let (pending, suspects) = (pending(), pending());
    let (watch, parked) = (started.watch, started.delivery.missing_topic());
    let suspected = started.delivery.suspected();
    let history = config.retention.keep_dead_letters.map(|keep| History {
        relay: config.name.clone(),
        slot: config.postgres.slot.clone(),
        system_id: started.delivery.progress().system_id.clone(),
        keep,
    });
    let eyes = control::Eyes { look: started.look, seen: seen_tx, awaited: awaited_tx };
    let names = config.postgres.clone();
    let source = Stream::new(
        started.socket,
        started.unread,
        giver,
        intake,
        started.recognition,
        config.batch.record_bytes_max,
        confirmed_rx,
        awaited_rx,
        board.clone(),
    )
    .in_charset(started.charset);
    let pipeline = Pipeline::new(taker, started.delivery, seen_rx, confirmed_tx, limits);

    // Stopping the source ends the pipeline after its delivery, which ends the source in turn.
    let source_stop = stop.child_token();
    let control_stop = CancellationToken::new();
    let mut tasks = Tasks::default();
    {
        let stop = source_stop.clone();
        tasks.spawn("source", async move { Task::Stream(source.run(stop).await) });
        tasks.spawn("pipeline", async move { Task::Pipeline(pipeline.run().await) });
        let (stop, control_board) = (control_stop.clone(), board.clone());
        let silence_max = config.leader.timeout;
        let (tables_session, watch_session) = (Arc::clone(&session), Arc::clone(&session));
        tasks.spawn("control", async move {
            let run = control::run(&session, eyes, &control_board, silence_max, stop);
            Task::Control(run.await)
        });
        let waiting_board = board.clone();
        let (stop, board, name) = (control_stop.clone(), board.clone(), config.name.clone());
        tasks.spawn("watch", async move {
            tokio::select! {
                () = stop.cancelled() => Task::Watch,
                never = broker::watch(probe, &board) => match never {},
                never = control::watch_parked(&watch_session, &name, &board) => match never {},
                never = retention::watch(&watch_session, history, &board) => match never {},
            }
        });
        let stop = control_stop.clone();
        tasks.spawn("missing topics", async move {
            tokio::select! {
                () = stop.cancelled() => Task::Missing(Ok(())),
                ended = missing::watch(pending, watch, parked) => Task::Missing(Err(ended)),
                ended = suspects::watch(suspects, suspected) => Task::Missing(Err(ended)),
            }
        });
        let waiting_session = Arc::clone(&tables_session);
        let (stop, name) = (control_stop.clone(), config.name.clone());
        tasks.spawn("waiting releases", async move {
            tokio::select! {
                () = stop.cancelled() => Task::Waiting(Ok(())),
                ended = waiting::watch(&waiting_session, &name, &waiting_board) => Task::Waiting(Err(ended)),
            }
        });
        let (stop, config, parts) = (control_stop.clone(), config.clone(), parts.clone());
        tasks.spawn("tables", async move {
            tokio::select! {
                () = stop.cancelled() => Task::Tables(Ok(())),
                ended = tables::watch(&config, &parts, &tables_session) => {
                    Task::Tables(Err(ended))
                }
            }
        });
    }

    let mut ended = Ok(());
    while let Some(task) = tasks.next().await {
        let (result, is_source) = match task {
            Ok(Task::Stream(result)) => (result.map_err(|e| stream_ended(e, &names, format)), true),
            Ok(Task::Pipeline(result)) => (result.map_err(pipeline_ended), false),
            Ok(Task::Control(result)) => (
                result.map_err(|e| Ended::retry(Cause::Postgres, "looking at PostgreSQL", e)),
                false,
            ),
            Ok(Task::Watch) => (Ok(()), false),
            Ok(Task::Tables(result) | Task::Missing(result) | Task::Waiting(result)) => {
                (result, false)
            }
            Err(panicked) => (Err(panicked), false),
        };
        if result.is_err() && (ended.is_ok() || matches!(result, Err(Ended::Halted(_)))) {
            ended = result; // The first cause, unless a later one says what a person must do.
        }
        source_stop.cancel();
        if is_source {
            control_stop.cancel();
        }
    }
    ended
}

/// The tasks of a stream, by their names.
#[derive(Default)]
struct Tasks {
    running: JoinSet<Task>,
    names: Vec<(task::Id, &'static str)>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = Task> + Send + 'static) {
        self.names.push((self.running.spawn(task).id(), name));
    }

    /// The next one that has ended; one that panicked is named.
    async fn next(&mut self) -> Option<Result<Task, Ended>> {
        let ended = self.running.join_next().await?;
        Some(ended.map_err(|panicked| {
            let known = self.names.iter().find(|(id, _)| *id == panicked.id());
            let name = known.map_or("unknown", |(_, name)| name);
            let error = anyhow::anyhow!("the task {name} has panicked: {panicked}");
            Ended::retry(Cause::Other, "running the relay's tasks", error)
        }))
    }
}

fn stream_ended(error: StreamError, names: &PostgresConfig, format: Format) -> Ended {
    let PostgresConfig { publication, slot, .. } = names;
    match error {
        // The server looks it up as it was when what it decodes was written, and before 18 it goes no
        // further, whatever there is by now. The server's language doesn't matter.
        StreamError::Server { ref code, ref message }
            if code == UNDEFINED_OBJECT && message.contains(publication.as_str()) =>
        {
            Ended::Unpublished(error)
        }
        StreamError::AnotherHistory(found) => Ended::RolledBack(found),
        StreamError::Intake(IntakeError::DoesNotFit { what, remedy }) => {
            Ended::Halted(Halt { reason: what, remedy })
        }
        StreamError::Intake(error @ IntakeError::NeedsText { .. }) => {
            Ended::NeedsText(error.to_string())
        }
        // A value below a column of anybody's table, such as the elements of an array, has no binary
        // form: the server fails at its row, again and again.
        StreamError::Server { code, message }
            if code == UNDEFINED_FUNCTION && format == Format::Binary =>
        {
            Ended::NeedsText(message)
        }
        StreamError::Server { ref code, .. } if !code.is_empty() && !needs_time(code) => {
            let error = anyhow::anyhow!(
                "{error}. If it stays so, the server can't decode what comes next: drop the slot \
                 (select pg_drop_replication_slot('{slot}')), and the relay makes a new one and \
                 publishes from the table what this one would have sent, or halts with the interval"
            );
            Ended::retry(Cause::Postgres, "streaming from PostgreSQL", error)
        }
        error => Ended::retry(Cause::Postgres, "streaming from PostgreSQL", error),
    }
}

pub(super) fn pipeline_ended(error: PipelineError) -> Ended {
    match error {
        PipelineError::Sink(error) => Ended::sink("delivering to Kafka", error),
        PipelineError::DeadLetters(error) => start::dead_letters_failed("parking events", error),
        error @ PipelineError::Malformed { .. } => {
            Ended::retry(Cause::Postgres, "reading a row", error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
