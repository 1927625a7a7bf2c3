//! Questions to the service beside deliveries: whether it answers, and whether a missing queue or topic is there by now.

use std::time::Duration;

use outbox_relay_aws::{Kind, Said, What};
use tokio::time::timeout;

use super::{
    client::{Client, unavailable},
    directory::{ASK_LIMIT, look},
};
use crate::sink::SinkError;

/// Whether this one exists does not matter: an answer does.
const ASKED_FOR: &str = "outbox-relay-probe";

/// Asks whether the service answers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Probe {
    client: Client,
}

impl Probe {
    pub(super) fn new(client: Client) -> Self {
        Probe { client }
    }

    /// Asks, within some seconds. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` if no one answers, or the relay's credentials are not accepted.
    pub async fn check(&self) -> Result<(), SinkError> {
        let settings = &self.client.settings;
        let doing = || format!("asking whether {} answers", settings.kind());
        let service = self.client.service().await?;
        let name = settings.destination.of(settings.kind, ASKED_FOR).unwrap_or_default();
        match timeout(ASK_LIMIT, service.find(&name)).await {
            Ok(Err(said)) if matches!(said.what, What::Unknown | What::Uncertain) => {
                Err(unavailable(doing(), said))
            }
            Ok(_) => Ok(()),
            Err(_) => {
                let said = Said::uncertain(format!("no answer within {ASK_LIMIT:?}"));
                Err(unavailable(doing(), said))
            }
        }
    }

    /// How long a topic that has no queue is watched for.
    pub fn grace(&self) -> Duration {
        self.client.settings.topic_grace
    }

    /// Those of `topics` that have a queue or topic by now.
    ///
    /// # Errors
    /// `Unavailable` if no one answers.
    pub async fn appeared(&self, topics: &[String]) -> Result<Vec<String>, SinkError> {
        let settings = &self.client.settings;
        let service = self.client.service().await?;
        let mut found = Vec::new();
        for topic in topics {
            let Ok(name) = settings.destination.of(settings.kind, topic) else { continue };
            // Where a topic of SNS may not be looked at, it is not known to exist.
            let is_there = look(service, settings, &name).await?;
            if is_there.is_ok_and(|it| it.attributes.is_ok() || settings.kind == Kind::Sqs) {
                found.push(topic.clone());
            }
        }
        Ok(found)
    }
}
