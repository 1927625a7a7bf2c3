//! The relay that is measured: this program under another name, or one that was named.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use outbox_harness::{
    Harness,
    database::Role,
    relay::{Relay, Settings},
};
use serde::Serialize;

use crate::{process, sample::Sample};

/// Makes this program the relay: one build is enough.
pub(crate) const AS_RELAY: &str = "OUTBOX_BENCH_AS_RELAY";
/// Between two looks at `/status`.
const LOOK: Duration = Duration::from_millis(20);
/// What a drain may take.
const DRAIN_MAX: Duration = Duration::from_secs(180);

/// Whether this process was started to be a relay.
pub(crate) fn is_asked_for() -> bool {
    std::env::var_os(AS_RELAY).is_some()
}

/// How the relay delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// In transactions
    ExactlyOnce,
    /// Without
    AtLeastOnce,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::ExactlyOnce => "exactly-once",
            Mode::AtLeastOnce => "at-least-once",
        }
    }
}

/// How a relay is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) delivery: &'static str,
    pub(crate) unix: bool,
}

impl Setup {
    /// Starts a relay of a new name, and waits until it is ready.
    pub(crate) async fn start(
        self,
        t: &Harness,
        round: u32,
        program: Option<&Path>,
    ) -> Result<Relay> {
        Ok(self.settings(t, round, program)?.start().await)
    }

    /// What a relay of a new name is started with.
    pub(crate) fn settings(
        self,
        t: &Harness,
        round: u32,
        program: Option<&Path>,
    ) -> Result<Settings> {
        let program = program.map_or_else(std::env::current_exe, |path| Ok(PathBuf::from(path)))?;
        let socket = if self.unix { "unix" } else { "tcp" };
        let delivery = self.delivery.replace('-', "_");
        let name = format!("{}_{delivery}_{socket}_{round}", t.database().name());
        // What a relay before it has delivered is not part of its own backlog.
        let settings = t.relay().set("name", &name).set("postgres.start", "now");
        let settings = settings.set("sink.delivery", self.delivery);
        let settings = if self.unix {
            let url = t.database().unix_url(Role::Relay);
            settings.set("postgres.url", &url.context("the server has no Unix socket here")?)
        } else {
            settings
        };
        Ok(settings.program(&program).env(AS_RELAY, "1"))
    }
}

/// Starts a stopped relay on its backlog of `rows`, and stops it once all are delivered.
///
/// The clock runs from the first look at which it streams to the first at which everything is
/// stored by the broker; so does the count of processor time.
pub(crate) async fn drain(relay: &mut Relay, rows: usize) -> Result<Sample> {
    let started = Instant::now();
    relay.restart();
    let pid = relay.pid();
    let mut streaming = None;
    let (began, cpu_before) = loop {
        let status = relay.try_status().await.ok();
        let phase = status.as_ref().and_then(|s| s.get("phase")).and_then(|p| p.as_str());
        if streaming.is_none() && phase == Some("streaming") {
            streaming = Some((Instant::now(), process::cpu(pid)?));
        }
        let delivered = status.as_ref().and_then(|s| s.get("records_delivered"));
        let delivered = delivered.and_then(serde_json::Value::as_u64).unwrap_or(0);
        if let Some(begin) = streaming.filter(|_| delivered >= rows as u64) {
            break begin;
        }
        ensure!(
            started.elapsed() < DRAIN_MAX,
            "the relay has delivered {delivered} of {rows} rows after {DRAIN_MAX:?}: {}",
            relay.log_text()
        );
        tokio::time::sleep(LOOK).await;
    };
    let seconds = began.elapsed().as_secs_f64();
    let cpu = process::cpu(pid)?.saturating_sub(cpu_before);
    let sample = Sample {
        rows,
        seconds,
        start_seconds: Some((began - started).as_secs_f64()),
        cpu_us_per_event: Some(cpu.as_secs_f64() * 1e6 / rows as f64),
        peak_resident_bytes: Some(process::peak_resident_bytes(pid)?),
    };
    let status = relay.sigterm().await;
    ensure!(status.success(), "the relay ended with {status}: {}", relay.log_text());
    Ok(sample)
}
