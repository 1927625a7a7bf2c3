//! Questions to the broker, on a connection of their own: one that publishes may be held up by an alarm.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::connection::Connection;
use tokio::sync::Mutex;

use super::{line, settings::Settings, topology};
use crate::{core::printable, sink::SinkError};

/// A topic that no queue took is tried again after so long, since no one can be asked whether one does by now. Each
/// further try comes after twice as long and a second more: 1 s, 3 s, 7 s, 15 s, …
const FIRST_TRY: Duration = Duration::from_secs(1);
const TOPICS_MAX: usize = 10_000;

/// Asks whether the broker answers. Cheap to clone.
#[derive(Clone)]
pub struct Probe {
    settings: Arc<Settings>,
    asked: Arc<Mutex<Asked>>,
}

#[derive(Default)]
struct Asked {
    connection: Option<Connection>,
    watched: HashMap<String, Watched>,
}

/// A topic that no queue takes.
#[derive(Clone, Copy, Debug)]
struct Watched {
    /// Since when it may be taken, as far as can be asked; `None` while its exchange is not there.
    since: Option<Instant>,
    /// When it is tried next, counted from then.
    next: Duration,
}

impl Watched {
    fn new() -> Self {
        Watched { since: None, next: FIRST_TRY }
    }

    /// It is not to be tried yet, whatever its exchange is.
    fn waits(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now - since < self.next)
    }

    /// Whether it is to be tried now. `may_take`: what is known of its exchange.
    fn is_due(&mut self, now: Instant, may_take: bool) -> bool {
        if !may_take {
            *self = Watched::new();
            return false;
        }
        let waited = now - *self.since.get_or_insert(now);
        let is_due = waited >= self.next;
        while waited >= self.next {
            self.next = self.next * 2 + FIRST_TRY;
        }
        is_due
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

impl Probe {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Probe { settings, asked: Arc::default() }
    }

    /// Asks, within some seconds. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` if no one answers.
    pub async fn check(&self) -> Result<(), SinkError> {
        // Whether this one exists does not matter: an answer does.
        self.exists("amq.direct").await.map(drop)
    }

    /// Whether the exchange exists. Others may ask meanwhile.
    async fn exists(&self, exchange: &str) -> Result<bool, SinkError> {
        let connection = self.connected().await?;
        let answered = topology::exists(&connection, exchange).await;
        if answered.is_err() {
            self.asked.lock().await.connection = None;
        }
        answered
    }

    async fn connected(&self) -> Result<Connection, SinkError> {
        let mut asked = self.asked.lock().await;
        if let Some(connection) = asked.connection.as_ref().filter(|it| it.is_open()) {
            return Ok(connection.clone());
        }
        let connection = Box::pin(line::connect(&self.settings, " questions")).await?;
        asked.connection = Some(connection.clone());
        Ok(connection)
    }

    /// How long a topic that no queue takes is watched for.
    pub fn grace(&self) -> Duration {
        self.settings.topic_grace
    }

    /// Those of `topics` that are worth another try: their exchange exists, and a moment has passed.
    ///
    /// # Errors
    /// `Unavailable` if no one answers.
    pub async fn appeared(&self, topics: &[String]) -> Result<Vec<String>, SinkError> {
        // One whose events were released, or are parked for longer than that, is a new one when it comes again.
        self.asked.lock().await.watched.retain(|topic, _| topics.contains(topic));
        let mut found = Vec::new();
        for topic in topics.iter().take(TOPICS_MAX) {
            let waits = |it: &Watched| it.waits(Instant::now());
            if self.asked.lock().await.watched.get(topic).is_some_and(waits) {
                continue;
            }
            let may_take = self.may_take(topic).await?;
            let mut asked = self.asked.lock().await;
            let watched = asked.watched.entry(topic.clone()).or_insert_with(Watched::new);
            if watched.is_due(Instant::now(), may_take) {
                found.push(topic.clone());
            }
        }
        Ok(found)
    }

    /// Where the exchange depends on more than the topic, only a try tells.
    async fn may_take(&self, topic: &str) -> Result<bool, SinkError> {
        let exchange = &self.settings.exchange;
        let depends = ["{partition}", "{key}", "{type}"].iter().any(|part| exchange.has(part));
        let exchange = exchange.to_string().replace("{topic}", topic);
        if depends || exchange.is_empty() || self.settings.declare {
            return Ok(true);
        }
        let exists = self.exists(&exchange).await?;
        tracing::debug!(exchange = %printable::short(&exchange), exists, "looked for an exchange");
        Ok(exists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When it is tried, in seconds, while a topic is watched for five minutes and its exchange is there from `made` on.
    fn tries(made: u64) -> Vec<u64> {
        let (start, mut watched) = (Instant::now(), Watched::new());
        let at = |quarter: u64| start + Duration::from_millis(250 * quarter);
        let due = (0..1200).filter(|quarter| watched.is_due(at(*quarter), *quarter >= made * 4));
        due.map(|quarter| quarter / 4).collect()
    }

    #[test]
    fn a_topic_is_tried_again_and_again_from_when_its_exchange_is_there() {
        assert_eq!(tries(0), [1, 3, 7, 15, 31, 63, 127, 255]);
        assert_eq!(tries(60), [61, 63, 67, 75, 91, 123, 187]);
    }

    #[test]
    fn an_exchange_that_is_deleted_and_made_again_is_a_new_one() {
        let (now, mut watched) = (Instant::now(), Watched::new());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(!watched.is_due(at(0), true) && watched.is_due(at(1), true));
        assert!(!watched.is_due(at(2), false) && !watched.is_due(at(9), true));
        assert!(watched.is_due(at(10), true));
    }
}
