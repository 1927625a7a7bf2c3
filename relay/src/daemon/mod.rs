//! Builds the parts, owns the tasks, and starts again after whatever ended them.
//!
//! One attempt runs from the leader's lock to the stream (`start`), streams until something ends
//! (`attempt`), and ends whole: retry is replay, from the progress that is read back. What only a
//! person can correct halts the relay; it stays alive, says what to do, and looks again by itself.

mod advice;
mod attempt;
mod context;
mod earlier;
mod ended;
mod leads;
mod limits;
pub(crate) mod locks;
mod parked;
mod refusing;
pub(crate) mod standbys;
pub(crate) mod start;
mod started;
mod steps;
mod supervise;
mod tables;
mod undecodable;
mod unfinished;
mod watch;

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use self::advice::against_shortage;
use self::context::Context;
pub(crate) use self::start::rehearsal::{Rehearsed, rehearse};
use crate::{
    admin::{self, Hosts},
    config::{Config, parts::Parts},
    state::{Phase, boards::Boards},
};

/// SIGTERM is answered within 10 s, broker away or not; this leaves room for the exit itself.
const STOP_MAX: Duration = Duration::from_secs(8);
/// A person at the log sees what is happening this often, while events flow.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

/// Runs all relays, one or one for each route, until `stop`. Returns when all that was delivered is confirmed, or after
/// 8 s of trying.
///
/// # Errors
/// The admin address can never be used, such as one of another machine; a port that is only taken is
/// waited for. Anything later is retried for ever.
pub async fn run(configs: Vec<Config>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut relays = Vec::new();
    for config in configs {
        let parts = config.parts()?;
        warn_of_unverified(&parts);
        tell_of_trust(&parts);
        relays.push(Context::new(config, parts));
    }
    limits::warn_of_files();
    let boards = Boards::from(relays.iter().map(Context::of_relay).collect::<Vec<_>>());
    let mut helpers = JoinSet::new();
    // It is the process's: the same in all of them.
    let admin = relays.first().map(|it| it.config.admin.clone());
    if let Some((address, hosts)) = admin.and_then(|it| Some((it.listen?, it.hosts))) {
        let hosts = Hosts::new(&address, &hosts);
        let (boards, stop) = (boards.clone(), stop.clone());
        match admin::bind(&address).await {
            Ok(listener) => {
                tracing::info!(%address, "admin endpoints are up");
                helpers.spawn(admin::serve(listener, hosts, boards, stop));
            }
            // Any user of the host can take a port: that must not keep events from flowing.
            Err(error) if error.is_taken() => {
                helpers.spawn(admin::serve_when_free(address, hosts, boards, stop));
            }
            Err(error) => return Err(error.into()),
        }
    }
    helpers.spawn(pulse(boards.clone(), stop.clone()));
    for Context { parts, board, .. } in &relays {
        helpers.spawn(watch::broker::watch_quota(parts.sink.clone(), board.clone()));
    }

    let supervised = supervise::all(relays, &stop);
    let deadline = async {
        stop.cancelled().await;
        boards.iter().for_each(|it| it.board.phase(Phase::Stopping));
        tracing::info!("stopping: finishing the delivery under way");
        tokio::time::sleep(STOP_MAX).await;
    };
    tokio::select! {
        // A stop that takes too long abandons the delivery: its outcome is uncertain, nothing of
        // it is confirmed, and the next start finds out from the stored progress.
        () = deadline => tracing::warn!(
            "stopped without an answer from the broker; the delivery under way is not confirmed \
             and will be looked up at the next start"
        ),
        () = supervised => {}
    }
    helpers.abort_all();
    Ok(())
}

/// A password or an event may be read by whoever can pose as the server.
fn warn_of_unverified(parts: &Parts) {
    for host in parts.connect.unverified_hosts() {
        tracing::warn!(
            host,
            "the connection to PostgreSQL is not verified; add sslmode=verify-full (and \
             sslrootcert) to postgres.url"
        );
    }
}

/// Whose word is taken for the brokers' certificates.
fn tell_of_trust(parts: &Parts) {
    if let Some(trusted) = parts.sink.trust() {
        tracing::info!(trusted, "the brokers' certificates are checked");
    }
}

/// Shows that the process makes progress, and what it does.
async fn pulse(boards: Boards, stop: CancellationToken) -> io::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut summarised = Instant::now();
    while !stop.is_cancelled() {
        tick.tick().await;
        boards.iter().for_each(|it| it.board.beat());
        if summarised.elapsed() >= SUMMARY_INTERVAL {
            summarised = Instant::now();
            for it in boards.iter() {
                let Some(line) = it.board.summary_line() else { continue };
                it.span().in_scope(|| tracing::info!("{line}"));
            }
        }
    }
    Ok(())
}
