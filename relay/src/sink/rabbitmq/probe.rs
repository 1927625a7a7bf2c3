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

/// A topic that no queue took is tried again after so long, since no one can be asked whether one does by now.
const TRIED_AGAIN: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];
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
    /// Since when a topic is watched for, and how often it was tried.
    watched: HashMap<String, (Instant, usize)>,
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
        let mut asked = self.asked.lock().await;
        // Whether this one exists does not matter: an answer does.
        let connection = self.connected(&mut asked).await?;
        let answered = topology::exists(&connection, "amq.direct").await;
        if answered.is_err() {
            asked.connection = None;
        }
        answered.map(drop)
    }

    async fn connected(&self, asked: &mut Asked) -> Result<Connection, SinkError> {
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
        let mut asked = self.asked.lock().await;
        let now = Instant::now();
        let old = self.settings.topic_grace + Duration::from_secs(60);
        asked.watched.retain(|_, (since, _)| now - *since < old);
        let mut found = Vec::new();
        for topic in topics {
            if asked.watched.len() >= TOPICS_MAX && !asked.watched.contains_key(topic) {
                break;
            }
            let (since, times) = *asked.watched.entry(topic.clone()).or_insert((now, 0));
            let is_due = TRIED_AGAIN.get(times).is_some_and(|after| now - since >= *after);
            if is_due && self.may_take(&mut asked, topic).await? {
                asked.watched.insert(topic.clone(), (since, times + 1));
                found.push(topic.clone());
            }
        }
        Ok(found)
    }

    /// Where the exchange depends on more than the topic, only a try tells.
    async fn may_take(&self, asked: &mut Asked, topic: &str) -> Result<bool, SinkError> {
        let exchange = &self.settings.exchange;
        let depends = ["{partition}", "{key}", "{type}"].iter().any(|part| exchange.has(part));
        let exchange = exchange.to_string().replace("{topic}", topic);
        if depends || exchange.is_empty() || self.settings.declare {
            return Ok(true);
        }
        let connection = self.connected(asked).await?;
        let exists = topology::exists(&connection, &exchange).await?;
        tracing::debug!(exchange = %printable::short(&exchange), exists, "looked for an exchange");
        Ok(exists)
    }
}
