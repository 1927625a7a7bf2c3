//! What is read off the board: readiness, status, metrics, a line for the log; and the lag that they
//! tell.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    Board,
    behind::{BEHIND_BYTES_MIN, Behind, Lateness},
};
use crate::{
    core::{lsn::Lsn, position::Position, printable::counted},
    metrics::Gauges,
    state::{
        health::{self, Vitals},
        known::Known,
        status::{Status, approximate},
    },
};

/// While it streams the relay hears of the WAL's end every second, and while it is halted every ten.
const TOLD_WITHIN: Duration = Duration::from_secs(20);
/// For so long after a delivery the age of its newest commit counts as lag.
const DRAINING: Duration = Duration::from_secs(2);

impl Board {
    /// `Err` has the reason why the relay is not delivering and could not.
    pub fn readiness(&self) -> Result<(), String> {
        health::readiness(&self.vitals(self.now()))
    }

    /// `Err` has the reason why the process should be restarted.
    pub fn liveness(&self) -> Result<(), String> {
        health::liveness(&self.vitals(self.now()))
    }

    /// Everything, as of now.
    pub fn status(&self) -> Status {
        let now = self.now();
        let vitals = self.vitals(now);
        let ready = health::readiness(&vitals);
        let (lag_bytes, lag) = self.lag(now).unzip();
        let state = self.state();
        let known = |at: &Known| at.get().map(Lsn::new);
        Status {
            route: None,
            name: self.0.name.clone(),
            version: self.0.version.clone(),
            role: vitals.phase.role().into(),
            phase: vitals.phase.word().into(),
            detail: vitals.phase.detail(),
            ready: ready.is_ok(),
            not_ready_because: ready.err(),
            slot: self.0.slot.clone(),
            server_wal_end: known(&self.0.wal_end),
            received: known(&self.0.received),
            delivered: state.delivered,
            confirmed: known(&self.0.confirmed),
            lag_bytes,
            lag_seconds: lag.map(|lag| lag.as_secs_f64()),
            records_delivered: self.0.records.load(Relaxed),
            bytes_delivered: self.0.bytes.load(Relaxed),
            batches: self.0.batches.load(Relaxed),
            last_batch: state.last_batch.clone(),
            rows_moved: self.0.moved.load(Relaxed),
            parked_lanes: self.0.parked_lanes.get(),
            parked_events: self.parked_events(),
            last_error: state.last_error.clone(),
            concerns: state.concerns.values().cloned().collect(),
            uptime_seconds: now.as_secs_f64(),
        }
    }

    /// The text of `/metrics`, as of now.
    pub fn render_metrics(&self) -> String {
        let status = self.status();
        self.0.metrics.render(&Gauges {
            ready: status.ready,
            role: &status.role,
            server_wal_end: status.server_wal_end.map(Lsn::get),
            received: status.received.map(Lsn::get),
            delivered: status.delivered.map(|position| position.resume_lsn().get()),
            confirmed: status.confirmed.map(Lsn::get),
            parked_lanes: status.parked_lanes,
            parked_events: status.parked_events,
            parked_lost: self.0.parked_lost.get(),
            lag_bytes: status.lag_bytes,
            lag_seconds: status.lag_seconds,
        })
    }

    /// One line for a person who watches; `None` when nothing was delivered since the last one.
    pub fn summary_line(&self) -> Option<String> {
        let now = self.now();
        let records = self.0.records.load(Relaxed);
        let (lag_bytes, lag) = self.lag(now).unwrap_or_default();
        let mut state = self.state();
        let (before, records_before) = std::mem::replace(&mut state.summary, (now, records));
        let new = records.saturating_sub(records_before);
        if new == 0 {
            return None;
        }
        let seconds = now.saturating_sub(before).as_secs_f64().max(0.001);
        let position = state.delivered.map_or_else(String::new, |p| format!(", delivered {p}"));
        Some(format!(
            "{} in {seconds:.0} s ({:.0}/s), lag {:.1} s, {}{position}",
            counted(new, "record"),
            new as f64 / seconds,
            lag.as_secs_f64(),
            approximate(lag_bytes),
        ))
    }

    /// Bytes and time, where both ends are known: not while no one has told for long where the WAL
    /// ends, nor where it ends before what was delivered, as after a rollback of the volume. Where the broker has not said yet what is
    /// delivered, it is at least what is confirmed.
    pub(super) fn lag(&self, now: Duration) -> Option<(u64, Duration)> {
        let end = Lsn::new(self.0.wal_end.get().max(self.0.received.get())?);
        self.0.told.age(now).filter(|age| *age < TOLD_WITHIN)?;
        let mut state = self.state();
        let confirmed = self.0.confirmed.get().map(Lsn::new);
        let delivered = state.delivered.map(Position::resume_lsn).or(confirmed)?;
        if delivered > end {
            return None;
        }
        let waiting = state.lag.behind(now, delivered);
        // While a backlog drains, how late the events are; their commits may be older than we are.
        let late = state
            .last_age
            .filter(|(at, _)| now.saturating_sub(*at) < DRAINING)
            .map_or(Duration::ZERO, |(_, age)| age);
        Some((end.bytes_since(delivered), waiting.max(late)))
    }

    /// As last counted; not known where more lanes are parked by now than there were events then.
    fn parked_events(&self) -> Option<u64> {
        let lanes = self.0.parked_lanes.get().unwrap_or_default();
        self.0.parked_events.get().filter(|events| *events >= lanes)
    }

    /// Whether the stream is behind though it is up, and for how long it has stood at one place. `None` where
    /// little WAL waits: an idle server may leave the end of its WAL half written for seconds.
    pub(super) fn behind(&self, now: Duration) -> Option<Behind> {
        if !self.streams() {
            return None;
        }
        let (bytes, late) = self.lag(now).filter(|(bytes, _)| *bytes >= BEHIND_BYTES_MIN)?;
        let flowed = self.0.flowed.age(now)?;
        let waits = self.0.delivering.age(now).is_some() || {
            let state = self.state();
            state.held_back.is_some() || state.stuck.is_some()
        };
        let still = if waits { Duration::ZERO } else { late.min(flowed) };
        let received = self.received_up_to();
        let within = self.delivered_up_to().filter(|delivered| received > *delivered);
        Some(Behind { bytes, late, still, receiving: within.map(|_| received) })
    }

    /// That the stream is late or does not move, as of now.
    pub fn lateness(&self) -> Option<Lateness> {
        self.behind(self.now()).and_then(|behind| behind.lateness())
    }

    pub(super) fn vitals(&self, now: Duration) -> Vitals {
        let behind = self.behind(now);
        let state = self.state();
        Vitals {
            phase: state.phase.clone(),
            phase_for: now.saturating_sub(state.phase_since),
            silent_for: self.0.heard.age(now),
            answered_ago: self.0.told.age(now),
            delivering_for: self.0.delivering.age(now).and(self.0.unstored.age(now)),
            working_for: self.0.working.age(now),
            held_back: state.held_back.clone(),
            behind,
            stuck: state.stuck.clone(),
            broker_silent_for: self.0.broker_heard.age(now),
            broker_error: state
                .broker_error
                .as_ref()
                .map(|(since, who)| (now.saturating_sub(*since), who.clone())),
            broker_says: state.broker_says.clone(),
            waits_for: state.waits_for.clone(),
            trouble: state.trouble.clone(),
            is_unproven: state.died_at.is_some(),
            beat_ago: self.0.beat.age(now).unwrap_or(now),
        }
    }
}
