//! Whether the relay is alive and whether it is ready: pure decisions over what the board knows.
//!
//! Readiness sees the replication stream and the deliveries, not just the process, and an outage
//! turns it within 20 s. Liveness holds through outages: a restart would help with none of them.

use std::time::Duration;

use super::behind::{Behind, STILL_MAX};
use crate::core::printable::counted;

/// The stream asks the server for a reply every few seconds, so a longer silence is an outage.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);
/// A server that works answers within this: it is asked every second.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longer than a transaction of Kafka may take when all is well.
pub const DELIVERY_MAX: Duration = Duration::from_secs(15);
/// The brokers are asked every two seconds, and given three to answer.
pub const BROKER_SILENCE_MAX: Duration = Duration::from_secs(12);
/// The daemon's heart beats every second; this long without one, its runtime hangs.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(30);

/// What the relay is at. Set by `daemon`, shown by `/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// On the way to streaming; `doing` is the step, such as `waiting for writers: pid 4711`.
    Starting {
        /// The step.
        doing: String,
    },
    /// Another relay of the name is the leader; this one could take over at once.
    Standby {
        /// Such as `waiting for the leader's lock`.
        doing: String,
    },
    /// Receiving and delivering.
    Streaming,
    /// Publishing from the tables what a lost slot would have sent, or what was there at first.
    Repairing {
        /// Rows so far.
        delivered: u64,
        /// Up to which moment they were written; `None` before the first.
        through: Option<String>,
    },
    /// Only a person can make it continue; the process stays alive to say so.
    Halted {
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// Something failed that may pass.
    Retrying {
        /// What was being done.
        doing: String,
        /// Why it failed.
        error: String,
        /// Time until the next attempt, from when the phase was set.
        next_attempt_in: Duration,
    },
    /// Asked to stop, finishing the delivery under way.
    Stopping,
}

impl Phase {
    /// One word for `/status`.
    pub fn word(&self) -> &'static str {
        match self {
            Phase::Starting { .. } => "starting",
            Phase::Standby { .. } => "standby",
            Phase::Streaming => "streaming",
            Phase::Repairing { .. } => "repairing",
            Phase::Halted { .. } => "halted",
            Phase::Retrying { .. } => "retrying",
            Phase::Stopping => "stopping",
        }
    }

    /// `leader` while it owns the slot, `standby` while another does, else `none`.
    pub fn role(&self) -> &'static str {
        match self {
            Phase::Standby { .. } => "standby",
            Phase::Streaming | Phase::Repairing { .. } => "leader",
            Phase::Starting { .. }
            | Phase::Retrying { .. }
            | Phase::Halted { .. }
            | Phase::Stopping => "none",
        }
    }

    /// What there is to say beyond the word; empty when nothing.
    pub fn detail(&self) -> String {
        match self {
            Phase::Starting { doing } | Phase::Standby { doing } => doing.clone(),
            Phase::Streaming | Phase::Stopping => String::new(),
            Phase::Repairing { delivered, through } => {
                let through = through.as_ref().map(|t| format!(", up to those of {t}"));
                let through = through.unwrap_or_default();
                let rows = counted(*delivered, "row");
                format!("published of the outbox tables: {rows}{through}")
            }
            Phase::Halted { reason, remedy } => format!("{reason}; {remedy}"),
            Phase::Retrying { doing, error, .. } => format!("{doing}: {error}"),
        }
    }
}

/// What the decisions are made of, as of one moment.
#[derive(Clone, Debug)]
pub(super) struct Vitals {
    pub(super) phase: Phase,
    /// How long the phase has held.
    pub(super) phase_for: Duration,
    /// Time since PostgreSQL was last heard of, while it streams over that connection; `None` before the first.
    pub(super) silent_for: Option<Duration>,
    /// Time since any connection was told where the server's WAL ends; `None` before that.
    pub(super) answered_ago: Option<Duration>,
    /// For how long nothing was stored though it was tried; `None` where no delivery is under way.
    pub(super) delivering_for: Option<Duration>,
    /// For how long no event of the current batch was delivered or parked; `None` where there is no batch.
    pub(super) working_for: Option<Duration>,
    /// Why the server sends nothing of what there is.
    pub(super) held_back: Option<String>,
    /// WAL waits though the stream is up.
    pub(super) behind: Option<Behind>,
    /// Which standby a commit of the control session waits for.
    pub(super) stuck: Option<String>,
    /// Time since the brokers last answered; `None` before they first did.
    pub(super) broker_silent_for: Option<Duration>,
    /// For how long they are known not to, and who of them.
    pub(super) broker_error: Option<(Duration, String)>,
    /// What they answer where nothing can be delivered by that.
    pub(super) broker_says: Option<String>,
    /// What the step of a start waits for.
    pub(super) waits_for: Option<String>,
    /// What failed last, until events flow again or another relay leads: each attempt takes a moment, and
    /// the cause lasts.
    pub(super) trouble: Option<String>,
    /// The last stream died, and this one has not delivered anything since.
    pub(super) is_unproven: bool,
    /// Time since the daemon's last heartbeat.
    pub(super) beat_ago: Duration,
}

/// `Err` has the reason, for a person.
pub(super) fn readiness(now: &Vitals) -> Result<(), String> {
    match &now.phase {
        // A standby that could not deliver either is not ready to take over.
        Phase::Standby { .. } | Phase::Streaming => {
            heard_from_postgres(now)?;
            heard_from_brokers(now)?;
            goes_on(now)?;
            now.held_back.clone().map_or(Ok(()), Err)?;
            flows_again(now)?;
            now.behind.as_ref().and_then(Behind::stands_still).map_or(Ok(()), Err)
        }
        Phase::Retrying { next_attempt_in, .. } => {
            let detail = now.phase.detail();
            Err(match next_attempt_in.saturating_sub(now.phase_for).as_secs() {
                0 => format!("{detail}; trying again now"),
                wait => format!("{detail}; next attempt in {wait} s"),
            })
        }
        Phase::Stopping => Err("stopping".into()),
        Phase::Starting { doing } => {
            Err(match (now.stuck.as_ref().or(now.waits_for.as_ref()), &now.trouble) {
                (Some(what), _) => format!("starting: {doing}: {what}"),
                (None, Some(trouble)) => format!("{trouble}; trying again: {doing}"),
                (None, None) => format!("starting: {doing}{}", silent_brokers(now)),
            })
        }
        Phase::Repairing { .. } => {
            let said = now.stuck.iter().chain(&now.broker_says);
            let said = said.map(|said| format!("; {said}")).collect::<String>();
            Err(format!("repairing: {}{said}", now.phase.detail()))
        }
        Phase::Halted { .. } => Err(format!("halted: {}", now.phase.detail())),
    }
}

fn heard_from_postgres(now: &Vitals) -> Result<(), String> {
    match now.silent_for {
        None => Err("nothing was heard from PostgreSQL yet".into()),
        Some(silent) if silent > SILENCE_MAX => {
            // A walsender that decodes may send nothing for long; others of the server's processes answer.
            let answers = now.answered_ago.is_some_and(|ago| ago < ANSWER_MAX);
            let still = now.behind.as_ref().filter(|_| answers).and_then(Behind::stands_still);
            let silent = || format!("nothing was heard from PostgreSQL for {} s", silent.as_secs());
            Err(still.unwrap_or_else(silent))
        }
        Some(_) => Ok(()),
    }
}

fn heard_from_brokers(now: &Vitals) -> Result<(), String> {
    if let Some(said) = &now.broker_says {
        return Err(said.clone());
    }
    match (now.delivering_for, now.broker_silent_for) {
        (Some(taken), _) if taken > DELIVERY_MAX => {
            let silent = silent_brokers(now);
            Err(format!("the broker has not taken a delivery for {} s{silent}", taken.as_secs()))
        }
        (_, Some(silent)) if silent > BROKER_SILENCE_MAX => {
            let who = now.broker_error.as_ref().map_or("no answer", |(_, who)| who);
            Err(format!("the brokers have not answered for {} s: {who}", silent.as_secs()))
        }
        _ => Ok(()),
    }
}

/// Beside the broker, a batch waits for the table of parked events alone.
fn goes_on(now: &Vitals) -> Result<(), String> {
    if let Some(why) = &now.stuck {
        return Err(why.clone());
    }
    match now.working_for {
        Some(time) if time > DELIVERY_MAX => Err(format!(
            "no event was delivered or parked for {} s, though some wait: a statement on outbox.dead_letters \
             takes long, mostly because another session holds a lock on it. Nothing is lost, and events of every key wait; `outbox-relay check` \
             names who holds it",
            time.as_secs()
        )),
        _ => Ok(()),
    }
}

/// After so long a new stream is judged by itself: that it does not move can be said by then.
fn flows_again(now: &Vitals) -> Result<(), String> {
    let is_new = now.phase == Phase::Streaming && now.phase_for <= STILL_MAX;
    let trouble = now.trouble.as_ref().filter(|_| now.is_unproven && is_new);
    trouble.map_or(Ok(()), |trouble| {
        Err(format!("{trouble}; trying again: streaming, and nothing is delivered yet"))
    })
}

fn silent_brokers(now: &Vitals) -> String {
    now.broker_error.as_ref().map_or_else(String::new, |(time, who)| {
        format!("; no answer for {} s from {who}", time.as_secs())
    })
}

/// `Err` has the reason, for a person.
pub(super) fn liveness(now: &Vitals) -> Result<(), String> {
    if now.beat_ago > HEARTBEAT_MAX {
        return Err(format!("no heartbeat of the daemon for {} s", now.beat_ago.as_secs()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::state::health::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn vitals(phase: Phase) -> Vitals {
        Vitals {
            phase,
            phase_for: s(2),
            silent_for: Some(s(1)),
            answered_ago: Some(s(1)),
            delivering_for: None,
            working_for: None,
            held_back: None,
            behind: None,
            stuck: None,
            broker_silent_for: Some(s(2)),
            broker_error: None,
            broker_says: None,
            waits_for: None,
            trouble: None,
            is_unproven: false,
            beat_ago: s(1),
        }
    }

    #[test]
    fn a_relay_that_streams_is_ready_until_an_end_of_the_road_falls_silent() {
        let streaming = vitals(Phase::Streaming);
        assert_eq!(readiness(&streaming), Ok(()));
        let slow =
            Vitals { delivering_for: Some(s(15)), silent_for: Some(s(15)), ..streaming.clone() };
        assert_eq!(readiness(&slow), Ok(()), "slow is not away");
        for (vitals, reason) in [
            (
                Vitals { silent_for: Some(s(16)), ..streaming.clone() },
                "nothing was heard from PostgreSQL for 16 s",
            ),
            (
                Vitals { working_for: Some(s(16)), ..streaming.clone() },
                "no event was delivered or parked for 16 s, though some wait: a statement on \
                 outbox.dead_letters takes long, mostly because another session holds a lock on it. Nothing is lost, and events of every key wait; \
                 `outbox-relay check` names who holds it",
            ),
            (Vitals { held_back: Some("held".into()), ..streaming.clone() }, "held"),
            (
                Vitals {
                    stuck: Some("a standby".into()),
                    working_for: Some(s(16)),
                    ..streaming.clone()
                },
                "a standby",
            ),
            (
                Vitals { silent_for: None, ..streaming.clone() },
                "nothing was heard from PostgreSQL yet",
            ),
            (Vitals { broker_says: Some("it is gone".into()), ..streaming.clone() }, "it is gone"),
            (
                Vitals { delivering_for: Some(s(16)), ..streaming.clone() },
                "the broker has not taken a delivery for 16 s",
            ),
            (
                Vitals {
                    broker_silent_for: Some(s(13)),
                    broker_error: Some((s(11), "kafka:9092 (timed out)".into())),
                    ..streaming
                },
                "the brokers have not answered for 13 s: kafka:9092 (timed out)",
            ),
        ] {
            assert_eq!(readiness(&vitals), Err(reason.to_owned()));
            assert_eq!(liveness(&vitals), Ok(()), "an outage is no reason for a restart");
        }
    }

    /// As where a walsender decodes; where nothing answers, it may be anything.
    #[test]
    fn a_stream_that_is_silent_on_a_server_that_answers_is_said_to_stand_still() {
        let behind = Behind { bytes: 3 << 20, late: s(16), still: s(16), receiving: None };
        for (answered, words) in [(1, "PostgreSQL is decoding"), (16, "nothing was heard from")] {
            let vitals = Vitals {
                silent_for: Some(s(16)),
                answered_ago: Some(s(answered)),
                behind: Some(behind.clone()),
                ..vitals(Phase::Streaming)
            };
            let why = readiness(&vitals).expect_err("no event flows");
            assert!(why.contains(words), "{why}");
        }
    }

    #[test]
    fn a_standby_is_ready_while_it_could_deliver() {
        let standby = vitals(Phase::Standby { doing: "waiting".into() });
        assert_eq!(readiness(&standby), Ok(()));
        let cut_off = Vitals { broker_silent_for: Some(s(13)), ..standby };
        assert!(readiness(&cut_off).is_err());
    }

    #[test]
    fn every_other_phase_says_why_it_is_not_ready() {
        for (phase, reason) in [
            (Phase::Starting { doing: "fencing".into() }, "starting: fencing"),
            (
                Phase::Halted { reason: "row 1:0 has no topic".into(), remedy: "fix it".into() },
                "halted: row 1:0 has no topic; fix it",
            ),
            (
                Phase::Retrying {
                    doing: "connecting to db:5432".into(),
                    error: "connection refused".into(),
                    next_attempt_in: s(5),
                },
                "connecting to db:5432: connection refused; next attempt in 3 s",
            ),
            (
                Phase::Repairing { delivered: 7, through: Some("2026".into()) },
                "repairing: published of the outbox tables: 7 rows, up to those of 2026",
            ),
            (Phase::Stopping, "stopping"),
        ] {
            assert_eq!(readiness(&vitals(phase)), Err(reason.to_owned()));
        }
    }

    #[test]
    fn what_a_step_waits_for_is_said_with_it() {
        let starting = vitals(Phase::Starting { doing: "reading progress".into() });
        let waits = Vitals { waits_for: Some("a transaction".into()), ..starting };
        assert_eq!(readiness(&waits), Err("starting: reading progress: a transaction".into()));
        let repairing = vitals(Phase::Repairing { delivered: 1, through: None });
        let waits = Vitals { broker_says: Some("it is not read".into()), ..repairing };
        let said = "repairing: published of the outbox tables: 1 row; it is not read";
        assert_eq!(readiness(&waits), Err(said.into()));
    }

    #[test]
    fn a_daemon_without_a_heartbeat_is_not_alive() {
        let hung = Vitals { beat_ago: s(31), ..vitals(Phase::Streaming) };
        assert_eq!(liveness(&hung), Err("no heartbeat of the daemon for 31 s".to_owned()));
    }
}
