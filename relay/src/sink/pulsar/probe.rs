//! Questions to the cluster beside deliveries: whether a broker answers, and whether a missing topic is there by now.

use std::{sync::Arc, time::Duration};

use super::{
    client::{Client, unavailable},
    directory::look,
    settings::Settings,
};
use crate::sink::SinkError;

/// Asks whether a broker answers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Probe {
    client: Arc<Client>,
}

impl Probe {
    pub(super) fn new(settings: Settings) -> Self {
        Probe { client: Arc::new(Client::new(settings)) }
    }

    /// Asks, within some seconds. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` if no one answers, or the relay is not known there.
    pub async fn check(&self) -> Result<(), SinkError> {
        let asked = self.client.cluster()?.version().await;
        asked.map(drop).map_err(|said| {
            self.client.close();
            unavailable(format!("asking whether {} answers", self.client.settings.name()), said)
        })
    }

    /// How long a missing topic is watched for.
    pub fn grace(&self) -> Duration {
        self.client.settings.topic_grace
    }

    /// Those of `topics` that exist by now.
    ///
    /// # Errors
    /// `Unavailable` if no one answers.
    pub async fn appeared(&self, topics: &[String]) -> Result<Vec<String>, SinkError> {
        let mut found = Vec::new();
        for topic in topics {
            let looked = look(&self.client, &self.client.settings.topic.of(topic)).await;
            if looked.inspect_err(|_| self.client.close())?.is_ok() {
                found.push(topic.clone());
            }
        }
        Ok(found)
    }
}
