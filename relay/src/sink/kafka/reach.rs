//! Which brokers do not answer, and why, in librdkafka's words without its trimmings.
//!
//! Written by the contexts of all clients that are made from the same settings, read by `daemon`: while a
//! call waits, and when it has failed with nothing but "transport failure".

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::throttle::Throttle;

/// Addresses remembered.
const ADDRESSES_MAX: usize = 16;
/// Characters of a reason.
const REASON_MAX: usize = 240;

/// What is known of the brokers' answers. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Whether one answered last; `None` before anything is known.
    answers: Option<bool>,
    /// By address, why it did not, since one last answered.
    failed: BTreeMap<String, String>,
    /// What a call waits for, though they answer.
    waits_for: Option<String>,
    /// How many bytes of the progress topic a reading under way has read, and since when.
    reads: Option<(u64, Instant)>,
    /// Why a broker refused the login, since one last answered.
    refused: Option<String>,
    /// What brokers say of quotas.
    throttle: Throttle,
}

impl Reach {
    /// A call waits for this; `None` where it has ended.
    pub(super) fn waits(&self, what: Option<String>) {
        self.state().waits_for = what;
    }

    /// What a call waits for, though the brokers answer.
    pub fn waits_for(&self) -> Option<String> {
        self.state().waits_for.clone()
    }

    /// The progress topic is being read, so far to this many bytes; `None` where that has ended.
    pub(super) fn reads(&self, bytes: Option<u64>) {
        self.state().reads = bytes.map(|bytes| (bytes, Instant::now()));
    }

    /// How many bytes a reading has read that is under way, and has read some within this time.
    pub(super) fn is_reading(&self, within: Duration) -> Option<u64> {
        let (bytes, since) = self.state().reads?;
        (bytes > 0 && since.elapsed() < within).then_some(bytes)
    }

    /// A broker has answered.
    pub(super) fn heard(&self) {
        let mut state = self.state();
        state.answers = Some(true);
        state.failed.clear();
        state.refused = None;
    }

    /// librdkafka says this of a broker.
    pub(super) fn failed(&self, text: &str) {
        let Some((address, reason)) = parsed(text) else { return };
        let mut state = self.state();
        state.answers = Some(false);
        if state.failed.len() < ADDRESSES_MAX || state.failed.contains_key(&address) {
            state.failed.insert(address, reason);
        }
    }

    /// A broker refuses the login, and librdkafka says this of it.
    pub(super) fn refused(&self, text: &str) {
        let reason = parsed(text).map_or_else(|| text.to_owned(), |(_, reason)| reason);
        self.state().refused = Some(reason);
    }

    /// Why a broker refuses the relay's login, and the setting to correct, where one does.
    pub fn login_refused(&self) -> Option<(String, &'static str)> {
        let reason = self.state().refused.clone()?;
        let remedy = if reason.to_lowercase().contains("mechanism handshake") {
            "set sasl.mechanism in sink.properties to one that the broker supports"
        } else {
            "correct sasl.username and sasl.password in sink.properties, or the account at the broker; for \
             OAUTHBEARER and GSSAPI, the token or the ticket"
        };
        Some((format!("the brokers refuse the relay's login: {reason}"), remedy))
    }

    /// A broker reads nothing from a client for this time, by a quota.
    pub(super) fn throttles(&self, broker: String, wait: Duration) {
        self.state().throttle.told(broker, wait, Instant::now());
    }

    /// A delivery is stored.
    pub(super) fn stored(&self) {
        self.state().throttle.stored(Instant::now());
    }

    /// Which broker throttles, and for how long at its latest answer, where that is worth a word.
    pub(super) fn throttled(&self) -> Option<(String, Duration)> {
        let state = self.state();
        state.throttle.notable(Instant::now()).map(|(broker, wait)| (broker.to_owned(), wait))
    }

    /// Whether a broker answered last; `None` before anything is known.
    pub fn answers(&self) -> Option<bool> {
        self.state().answers
    }

    /// Who does not answer, and why: `kafka:9092 (connection refused)`. Where librdkafka has told nothing,
    /// the servers of the settings.
    pub(super) fn who(&self, servers: &str) -> String {
        let state = self.state();
        let each = |(address, reason): (&String, &String)| format!("{address} ({reason})");
        match state.failed.is_empty() {
            true => format!("{servers} (bootstrap.servers)"),
            false => state.failed.iter().map(each).collect::<Vec<_>>().join(", "),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `sasl_ssl://b1:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms in
/// state CONNECT)` is of `b1:9092 of bootstrap.servers`, and `connection refused`. `None` for what is not of
/// one broker.
fn parsed(text: &str) -> Option<(String, String)> {
    let (name, rest) = text.split_once(": ")?;
    let name = name.rsplit_once("://").map_or(name, |(_, name)| name);
    let (address, rest) = match name.rsplit_once('/') {
        Some((address, "bootstrap")) => (format!("{address} of bootstrap.servers"), rest),
        Some((address, _id)) => (address.to_owned(), rest),
        // A coordinator's line, with the address behind it.
        None => {
            let (address, rest) = rest.split_once(": ")?;
            address.rsplit_once(':')?.1.parse::<u16>().ok()?;
            (address.to_owned(), rest)
        }
    };
    let rest = rest.rsplit_once(" (after ").map_or(rest, |(rest, _)| rest);
    let rest = match rest.split_once(" failed: ") {
        Some((before, reason)) if before.starts_with("Connect to ") => reason,
        _ => rest,
    };
    Some((address, within_a_sentence(rest)?))
}

/// A reason without its capital letter, but for names such as SASL.
fn within_a_sentence(reason: &str) -> Option<String> {
    let mut letters = reason.chars();
    let first = letters.next()?;
    let first = match letters.clone().next().is_some_and(char::is_lowercase) {
        true => first.to_lowercase().to_string(),
        false => first.to_string(),
    };
    Some(first.chars().chain(letters).take(REASON_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_is_told_with_the_setting_until_a_broker_answers() {
        let reach = Reach::default();
        assert_eq!(reach.login_refused(), None);
        for (said, setting) in [
            (
                "SASL authentication error: Authentication failed with SASL mechanism SCRAM-SHA-256",
                "sasl.password",
            ),
            (
                "SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported \
              mechanisms: SCRAM-SHA-512",
                "sasl.mechanism",
            ),
        ] {
            reach.refused(&format!(
                "sasl_ssl://b1:9092/bootstrap: {said} (after 9ms in state AUTH_REQ)"
            ));
            let (why, remedy) = reach.login_refused().expect("it is");
            assert!(why.contains(said) && remedy.contains(setting), "{why}: {remedy}");
        }
        reach.heard();
        assert_eq!(reach.login_refused(), None);
    }

    #[test]
    fn who_does_not_answer_is_told_by_address_and_reason() {
        let reach = Reach::default();
        assert_eq!(
            (reach.answers(), reach.who("a:1,b:2")),
            (None, "a:1,b:2 (bootstrap.servers)".into())
        );
        for line in [
            "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in \
             state CONNECT)",
            "sasl_ssl://b2:9092/2: Disconnected (after 5ms in state UP, 3 identical error(s) suppressed)",
            "TxnCoordinator: b3:9092: Connect to ipv4#10.0.0.1:9092 failed: No route to host (after 1ms in \
             state CONNECT)",
            "1/1 brokers are down",
            "TxnCoordinator: something else",
        ] {
            reach.failed(line);
        }
        assert_eq!(reach.answers(), Some(false));
        assert_eq!(
            reach.who("a:1"),
            "127.0.0.1:1 of bootstrap.servers (connection refused), b2:9092 (disconnected), b3:9092 (no \
             route to host)"
        );
        reach.heard();
        assert_eq!(reach.answers(), Some(true));
        assert_eq!(reach.who("a:1"), "a:1 (bootstrap.servers)");
    }
}
