//! Whether the brokers answer, also while there is nothing to deliver: `/readyz` must know.

use std::{convert::Infallible, io, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    causes,
    sink::{
        SinkError,
        any::{AnyProbe, Settings},
    },
    state::{Board, concerns::OF_PROCESS},
};

/// Asked this often, unless a delivery has just proven it.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// The progress topic's settings are looked at this often.
const TOPIC_INTERVAL: Duration = Duration::from_secs(10);
/// What was heard is told this often.
const LISTEN_INTERVAL: Duration = Duration::from_millis(250);
/// What was heard of quotas is told this often to the board, and this often to the log.
const QUOTA_INTERVAL: Duration = Duration::from_secs(1);
const QUOTA_TOLD_EVERY: Duration = Duration::from_mins(10);

/// Keeps asking, and tells the board. Ends only by being dropped, at any time.
pub(in crate::daemon) async fn watch(
    probe: AnyProbe,
    settings: &Settings,
    board: &Board,
) -> Infallible {
    let mut waits = false;
    loop {
        sleep(PROBE_INTERVAL).await;
        let proven = board.broker_heard_within(PROBE_INTERVAL);
        let checked = if proven { Ok(()) } else { probe.check().await };
        match &checked {
            Ok(()) if proven => {}
            Ok(()) => board.broker_heard(),
            Err(error) => {
                tracing::debug!(%error, "nothing can be delivered now");
                match settings.is_silence(error) {
                    true => board.broker_silent(settings.silent()),
                    false => board.broker_says(causes::of(error)),
                }
            }
        }
        // The brokers' silence is told by whoever waits for them.
        if settings.waits_within() {
            let reason = checked.err().map(|error| causes::of(&error));
            tell_once(&mut waits, reason.as_deref());
        }
    }
}

fn tell_once(waits: &mut bool, reason: Option<&str>) {
    match (reason, *waits) {
        (Some(reason), false) => tracing::warn!(reason, "nothing can be written now: waiting"),
        (None, true) => tracing::info!("lines are written again"),
        _ => {}
    }
    *waits = reason.is_some();
}

/// Looks at the progress topic's settings, again and again: a start refuses such as lose progress, and
/// somebody may change them after it. Ends only by being dropped, at any time.
pub(in crate::daemon) async fn watch_progress_topic(probe: AnyProbe, board: &Board) -> Infallible {
    const ABOUT: &str = "progress topic";
    loop {
        let concern = match probe.progress_topic().await {
            Err(SinkError::Misconfigured { what, remedy }) => Some((what, remedy)),
            Ok(()) | Err(_) => None,
        };
        let text = concern.as_ref().map(|(what, remedy)| format!("{what}; {remedy}"));
        if board.concern(ABOUT, text)
            && let Some((reason, remedy)) = concern
        {
            tracing::warn!(
                reason,
                remedy,
                "progress may be lost, because the topic or stream that keeps it, or a right on it, was changed: the relay \
                 halts at its next start, or sooner if the brokers refuse to store progress"
            );
        }
        sleep(TOPIC_INTERVAL).await;
    }
}

/// Tells the board and the log of a quota by which brokers slow the relay down, whatever the relay is at: under
/// a small one it never gets as far as streaming for long. Ends only by being dropped, at any time.
pub(in crate::daemon) async fn watch_quota(sink: Settings, board: Board) -> io::Result<()> {
    let mut told: Option<Instant> = None;
    loop {
        sleep(QUOTA_INTERVAL).await;
        let throttled = sink.throttled();
        let text = throttled.as_ref().map(|(what, remedy)| format!("{what}; {remedy}"));
        board.concern(OF_PROCESS, text);
        match throttled {
            Some((reason, remedy)) if told.is_none_or(|at| at.elapsed() >= QUOTA_TOLD_EVERY) => {
                told = Some(Instant::now());
                tracing::warn!(reason, remedy, "throttled");
            }
            _ => {}
        }
    }
}

/// Tells the board what the clients of a start hear of the brokers while they wait for them, and what for.
/// Ends only by being dropped, at any time.
pub(in crate::daemon) async fn listen(settings: &Settings, board: &Board) -> Infallible {
    loop {
        board.waits_for(settings.waits_for());
        match settings.answers() {
            Some(true) => board.broker_answered(),
            Some(false) => board.broker_silent(settings.silent()),
            None => {}
        }
        sleep(LISTEN_INTERVAL).await;
    }
}
