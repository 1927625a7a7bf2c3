//! A relay's `/livez` and `/readyz`, asked again and again while something is done to it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    host::report,
    relay::{Relay, get},
    wait,
};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);
/// A probe that takes longer has failed, as it would in an orchestrator.
const ANSWER: Duration = Duration::from_secs(5);

/// Looks from its making on. A relay must be running all the while.
#[derive(Debug)]
pub struct Probes {
    seen: Arc<Mutex<Seen>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The newest answer of `/readyz`: since when it is as it is, and what it said last.
    ready: Option<(Instant, bool, String)>,
    /// The first answer of `/livez` that was none or not 200.
    dead: Option<String>,
    /// The first reason of `/readyz` that only a person could end.
    halted: Option<String>,
}

impl Probes {
    /// Begins to look.
    pub fn of(relay: &Relay) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(look(relay.admin(), Arc::clone(&seen)));
        Probes { seen, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until it is not ready any more, and returns the reason that it gives.
    ///
    /// # Panics
    /// When it is still ready `limit` after `since`.
    pub async fn not_ready_within(&self, limit: Duration, since: Instant) -> String {
        self.turned(false, limit, since).await
    }

    /// Waits until it is not ready for a reason that has one of `words` in it: between two attempts
    /// it may name the step that it is at.
    ///
    /// # Panics
    /// When it has given no such reason `limit` after `since`.
    pub async fn not_ready_because(&self, words: &[&str], limit: Duration, since: Instant) {
        let left = (since + limit).saturating_duration_since(Instant::now());
        let what = format!("/readyz names one of {words:?}");
        let named = wait::until(&what, left, || {
            let ready = lock(&self.seen).ready.clone();
            async move {
                match ready {
                    Some((_, false, text)) if words.iter().any(|word| text.contains(word)) => {
                        Ok(())
                    }
                    Some((_, _, text)) => bail!("{text}"),
                    None => bail!("no answer yet"),
                }
            }
        });
        named.await.expect("readiness says what is wrong");
    }

    /// Waits until it is ready again.
    ///
    /// # Panics
    /// When it is not `limit` after `since`.
    pub async fn ready_within(&self, limit: Duration, since: Instant) {
        self.turned(true, limit, since).await;
    }

    /// # Panics
    /// When `/livez` has failed once.
    pub fn assert_always_live(&self) {
        assert_eq!(lock(&self.seen).dead, None, "/livez holds through an outage");
    }

    /// # Panics
    /// When `/readyz` has said once that the relay is halted.
    pub fn assert_never_halted(&self) {
        assert_eq!(lock(&self.seen).halted, None, "no one has to do anything");
    }

    async fn turned(&self, wanted: bool, limit: Duration, since: Instant) -> String {
        let what = format!("/readyz says that ready is {wanted}");
        let left = (since + limit).saturating_duration_since(Instant::now());
        let found = wait::until(&what, left, || {
            let ready = lock(&self.seen).ready.clone();
            async move {
                match ready {
                    Some((at, ready, text)) if ready == wanted => Ok((at, text)),
                    Some((_, _, text)) => bail!("{text}"),
                    None => bail!("no answer yet"),
                }
            }
        });
        let (at, text) = found.await.expect("readiness tells the truth in time");
        let took = at.saturating_duration_since(since);
        report(&format!("ready is {wanted} after {took:.1?}: {text}"));
        text
    }
}

async fn look(admin: SocketAddr, seen: Arc<Mutex<Seen>>) {
    loop {
        let live = ask(admin, "/livez").await;
        let ready = ask(admin, "/readyz").await;
        {
            let mut seen = lock(&seen);
            if let Err(error) | Ok((false, error)) = live.map_err(|error| format!("{error:#}")) {
                seen.dead.get_or_insert(error);
            }
            let (is_ready, text) = ready.unwrap_or_else(|error| (false, format!("{error:#}")));
            if text.starts_with("halted:") {
                seen.halted.get_or_insert_with(|| text.clone());
            }
            let at = match &seen.ready {
                Some((at, was, _)) if *was == is_ready => *at,
                _ => Instant::now(),
            };
            seen.ready = Some((at, is_ready, text));
        }
        sleep(EVERY).await;
    }
}

async fn ask(admin: SocketAddr, path: &str) -> Result<(bool, String)> {
    let (status, body) = timeout(ANSWER, get(admin, path)).await??;
    Ok((status == 200, body.trim().to_owned()))
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
